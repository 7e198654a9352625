//! Which entry matches a stream ID, and which entries meet a set of them, without looking at all entries.
//!
//! Entries with one mask are sorted by ID: a stream ID is looked up with one binary search for each mask that is in
//! use, of which real boards have one to three.

use alloc::vec::Vec;

use super::cover::Cube;
use super::stream_map::EntryIndex;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slot {
    mask: u32,
    id: u32,
    entry: EntryIndex,
}

/// The entries that match something, sorted by (mask, ID).
///
/// # Invariants
///
/// 1. As long as the stream map's list of entries and with the same capacity, so that inserting never allocates.
#[derive(Debug)]
pub(super) struct Index(Vec<Slot>);

impl Index {
    /// Room for `entries`. `None` when memory could not be reserved.
    pub(super) fn new(entries: u8) -> Option<Self> {
        let mut slots = Vec::new();
        slots.try_reserve_exact(entries.into()).ok()?;
        Some(Self(slots))
    }

    pub(super) fn insert(&mut self, cube: Cube, entry: EntryIndex) {
        let slot = Slot { mask: cube.mask(), id: cube.id(), entry };
        let at = self.0.partition_point(|other| *other < slot);
        if self.0.len() < self.0.capacity() {
            self.0.insert(at, slot);
        }
    }

    pub(super) fn remove(&mut self, entry: EntryIndex) {
        self.0.retain(|slot| slot.entry != entry);
    }

    /// The entry that matches `id`: at most one does (contract I-1).
    pub(super) fn matching(&self, id: u32) -> Option<EntryIndex> {
        self.meeting(Cube::point(id)).next().map(|(entry, _)| entry)
    }

    /// The entries that match some ID of `wanted`.
    pub(super) fn meeting(&self, wanted: Cube) -> impl Iterator<Item = (EntryIndex, Cube)> {
        // IDs that meet `wanted` agree with it above the highest bit that it ignores.
        let below = u32::MAX.checked_shr(wanted.mask().leading_zeros()).unwrap_or(0);
        self.runs().flat_map(move |run| {
            let mask = run.first().map_or(0, |slot| slot.mask);
            let first = wanted.id() & !mask & !below;
            let start = run.partition_point(|slot| slot.id < first);
            let near = run.get(start..).unwrap_or(&[]).iter().take_while(move |slot| slot.id & !below == first);
            near.map(|slot| (slot.entry, Cube::new(slot.id, slot.mask))).filter(move |(_, cube)| cube.meets(wanted))
        })
    }

    /// The slots of one mask after the other.
    fn runs(&self) -> impl Iterator<Item = &[Slot]> {
        let mut rest = self.0.as_slice();
        core::iter::from_fn(move || {
            let mask = rest.first()?.mask;
            let (run, later) = rest.split_at_checked(rest.partition_point(|slot| slot.mask <= mask))?;
            rest = later;
            Some(run)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    fn it_finds_what_a_scan_finds() {
        let cubes: Vec<Cube> = (0..96_u32)
            .map(|n| match n % 4 {
                0 => Cube::new(n << 6, 0x3f),
                1 => Cube::new(n << 6, 0x15),
                2 => Cube::new(n << 6, 0),
                _ => Cube::new(n << 6 & 0x7ff, 0x7000),
            })
            .collect();
        let mut index = Index::new(96).unwrap();
        for (entry, cube) in (0..96).zip(&cubes) {
            index.insert(*cube, entry);
        }
        index.remove(7);
        let scan = |wanted: Cube| -> Vec<u8> {
            (0..96_u8).zip(&cubes).filter(|(n, cube)| *n != 7 && cube.meets(wanted)).map(|(n, _)| n).collect()
        };
        for id in (0..0x8000).step_by(37) {
            for mask in [0, 1, 0x3f, 0x40, 0x7000, 0x7fff] {
                let wanted = Cube::new(id, mask);
                let mut found: Vec<u8> = index.meeting(wanted).map(|(entry, _)| entry).collect();
                found.sort_unstable();
                assert_eq!(found, scan(wanted), "{wanted}");
            }
        }
    }
}
