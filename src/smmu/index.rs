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

/// The slots of one mask: those before `end` that are in no earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    mask: u32,
    end: usize,
}

/// The entries that match something, sorted by (mask, ID).
///
/// # Invariants
///
/// 1. Both lists have the capacity of the stream map's list of entries, so that inserting never allocates.
/// 2. `runs` tells the masks of `slots`, in their order.
#[derive(Debug)]
pub(super) struct Index {
    slots: Vec<Slot>,
    runs: Vec<Run>,
}

impl Index {
    /// Room for `entries`. `None` when memory could not be reserved.
    pub(super) fn new(entries: u8) -> Option<Self> {
        let mut index = Self { slots: Vec::new(), runs: Vec::new() };
        index.slots.try_reserve_exact(entries.into()).ok()?;
        index.runs.try_reserve_exact(entries.into()).ok()?;
        Some(index)
    }

    pub(super) fn insert(&mut self, cube: Cube, entry: EntryIndex) {
        let slot = Slot { mask: cube.mask(), id: cube.id(), entry };
        let at = self.slots.partition_point(|other| *other < slot);
        if self.slots.len() < self.slots.capacity() {
            self.slots.insert(at, slot);
        }
        self.find_runs();
    }

    pub(super) fn remove(&mut self, entry: EntryIndex) {
        self.slots.retain(|slot| slot.entry != entry);
        self.find_runs();
    }

    fn find_runs(&mut self) {
        self.runs.clear();
        let mut end = 0_usize;
        for same in self.slots.chunk_by(|one, next| one.mask == next.mask) {
            end = end.saturating_add(same.len());
            let mask = same.first().map_or(0, |slot| slot.mask);
            if self.runs.len() < self.runs.capacity() {
                self.runs.push(Run { mask, end });
            }
        }
    }

    /// The entry that matches `id`: at most one does (contract I-1).
    pub(super) fn matching(&self, id: u32) -> Option<EntryIndex> {
        let mut start = 0_usize;
        for run in &self.runs {
            let slots = self.slots.get(start..run.end)?;
            if let Ok(at) = slots.binary_search_by_key(&(id & !run.mask), |slot| slot.id) {
                return slots.get(at).map(|slot| slot.entry);
            }
            start = run.end;
        }
        None
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
        let mut start = 0_usize;
        self.runs.iter().filter_map(move |run| {
            let slots = self.slots.get(start..run.end);
            start = run.end;
            slots
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
            // These cubes overlap here and there; in a stream map at most one matches.
            let (one, all) = (index.matching(id), scan(Cube::point(id)));
            assert!(one.map_or(all.is_empty(), |one| all.contains(&one)));
        }
    }
}
