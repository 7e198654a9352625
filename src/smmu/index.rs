//! Which entry matches a stream ID, and which entries meet a set of them, without looking at all entries.
//!
//! Entries stand in chains by a hash of their (ID, mask), linked by their numbers. A stream ID is looked up with one
//! hash for each mask that is in use, of which real boards have one to three; the most frequent comes first.

use alloc::vec::Vec;

use super::cover::Cube;
use super::stream_map::{EntryIndex, Set, one};

/// Chains: twice as many as the largest part has entries, so that most have one or none.
const CHAINS: usize = 256;
const END: u8 = u8::MAX;
/// A set that this many hashes find is not looked for among all entries.
const FEW: u32 = 8;

/// An entry's place in a chain.
#[derive(Clone, Copy, Debug)]
struct Slot {
    cube: Option<Cube>,
    next: u8,
}

/// How many entries have a mask.
#[derive(Clone, Copy, Debug)]
struct Frequency {
    mask: u32,
    entries: u8,
}

/// The entries that match something.
///
/// # Invariants
///
/// 1. All lists have the capacity of the stream map's list of entries, so that inserting never allocates.
/// 2. An entry with a cube is in the chain of its cube's hash, and in no other; one without is in none.
/// 3. No two entries match exactly the same IDs: none of a stream map even meet.
/// 4. `masks` has the masks of all entries with their numbers of entries, the most frequent first.
#[derive(Debug)]
pub(super) struct Index {
    slots: Vec<Slot>,
    masks: Vec<Frequency>,
    heads: [u8; CHAINS],
}

impl Index {
    /// Room for `entries`. `None` when memory could not be reserved.
    pub(super) fn new(entries: u8) -> Option<Self> {
        let mut index = Self { slots: Vec::new(), masks: Vec::new(), heads: [END; CHAINS] };
        index.slots.try_reserve_exact(entries.into()).ok()?;
        index.slots.resize(entries.into(), Slot { cube: None, next: END });
        index.masks.try_reserve_exact(entries.into()).ok()?;
        Some(index)
    }

    /// Makes an entry match `cube`, that matches nothing.
    pub(super) fn insert(&mut self, cube: Cube, entry: EntryIndex) {
        let (Some(head), Some(slot)) =
            (self.heads.get_mut(chain(cube.id(), cube.mask())), self.slots.get_mut(usize::from(entry)))
        else {
            return;
        };
        *slot = Slot { cube: Some(cube), next: core::mem::replace(head, entry) };
        let mut at = self.masks.iter().position(|known| known.mask == cube.mask()).unwrap_or(self.masks.len());
        if at == self.masks.len() && at < self.masks.capacity() {
            self.masks.push(Frequency { mask: cube.mask(), entries: 0 });
        }
        if let Some(known) = self.masks.get_mut(at) {
            known.entries = known.entries.saturating_add(1);
        }
        while let Some(before) = at.checked_sub(1)
            && self.entries_at(before) < self.entries_at(at)
        {
            self.masks.swap(before, at);
            at = before;
        }
    }

    /// Makes an entry match nothing.
    pub(super) fn remove(&mut self, entry: EntryIndex) {
        let Some(slot) = self.slots.get_mut(usize::from(entry)) else { return };
        let Some(cube) = slot.cube.take() else { return };
        let next = core::mem::replace(&mut slot.next, END);
        let Some(head) = self.heads.get_mut(chain(cube.id(), cube.mask())) else { return };
        if *head == entry {
            *head = next;
        } else if let Some(before) = self.slots.iter_mut().find(|slot| slot.next == entry) {
            before.next = next;
        }
        let Some(at) = self.masks.iter().position(|known| known.mask == cube.mask()) else { return };
        if let Some(known) = self.masks.get_mut(at) {
            known.entries = known.entries.saturating_sub(1);
        }
        for at in at..self.masks.len() {
            if self.entries_at(at) < self.entries_at(at.saturating_add(1)) {
                self.masks.swap(at, at.saturating_add(1));
            }
        }
        if self.masks.last().is_some_and(|known| known.entries == 0) {
            self.masks.pop();
        }
    }

    /// The entry that matches `id`: at most one does (contract I-1).
    pub(super) fn matching(&self, id: u32) -> Option<EntryIndex> {
        self.find(id, || ())
    }

    /// [`matching`](Self::matching), saying each time that an entry or the head of a chain is looked at.
    fn find(&self, id: u32, mut looked: impl FnMut()) -> Option<EntryIndex> {
        self.masks.iter().find_map(|known| self.exact(id & !known.mask, known.mask, &mut looked))
    }

    /// The entry that matches exactly the IDs of one cube.
    fn exact(&self, id: u32, mask: u32, mut looked: impl FnMut()) -> Option<EntryIndex> {
        looked();
        let mut at = *self.heads.get(chain(id, mask))?;
        while let Some(slot) = self.slots.get(usize::from(at)) {
            looked();
            if slot.cube.is_some_and(|cube| cube.id() == id && cube.mask() == mask) {
                return Some(at);
            }
            at = slot.next;
        }
        None
    }

    /// The entries that match some ID of `wanted`.
    pub(super) fn meeting(&self, wanted: Cube) -> Set {
        // Of each mask there can be one entry for each value of the bits that `wanted` ignores and the mask does not.
        let values = |known: &Frequency| 1_u32.checked_shl((wanted.mask() & !known.mask).count_ones());
        let all = self.masks.iter().map(|known| values(known).unwrap_or(u32::MAX)).fold(0, u32::saturating_add);
        let mut met = 0;
        if all > FEW {
            for (entry, slot) in (0..END).zip(&self.slots) {
                if slot.cube.is_some_and(|cube| cube.meets(wanted)) {
                    met |= one(entry);
                }
            }
            return met;
        }
        for known in &self.masks {
            let open = wanted.mask() & !known.mask;
            let mut value = 0;
            loop {
                met |= self.exact((wanted.id() | value) & !known.mask, known.mask, || ()).map_or(0, one);
                // The next value of the bits in `open`; the last one is followed by none.
                value = (value | !open).wrapping_add(1) & open;
                if value == 0 {
                    break;
                }
            }
        }
        met
    }

    fn entries_at(&self, at: usize) -> u8 {
        self.masks.get(at).map_or(0, |known| known.entries)
    }
}

/// The chain of a cube. Neighbouring IDs, which most boards have, fall into different ones.
const fn chain(id: u32, mask: u32) -> usize {
    let mixed = id.wrapping_mul(0x9e37_79b1).wrapping_add(mask.wrapping_mul(0x85eb_ca6b));
    (mixed >> 24) as usize
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
                _ => Cube::new(n << 5, 0x7000),
            })
            .collect();
        let mut index = Index::new(96).unwrap();
        for (entry, cube) in (0..96).zip(&cubes) {
            index.insert(*cube, entry);
        }
        let mut gone = alloc::collections::BTreeSet::new();
        // Taken out from everywhere in their chains, and two put back.
        for entry in [7, 0, 95, 40, 41, 42, 43, 8, 12, 16, 20] {
            index.remove(entry);
            index.remove(entry);
            gone.insert(entry);
        }
        for entry in [95_u8, 40] {
            index.insert(*cubes.get(usize::from(entry)).unwrap(), entry);
            gone.remove(&entry);
        }
        let scan = |wanted: Cube| -> Vec<u8> {
            let there = (0..96_u8).zip(&cubes).filter(|(n, _)| !gone.contains(n));
            there.filter(|(_, cube)| cube.meets(wanted)).map(|(n, _)| n).collect()
        };
        for id in (0..0x8000).step_by(37) {
            for mask in [0, 1, 0x3f, 0x40, 0x7000, 0x7fff] {
                let wanted = Cube::new(id, mask);
                let found: Vec<u8> = super::super::stream_map::each(index.meeting(wanted)).collect();
                assert_eq!(found, scan(wanted), "{wanted}");
            }
            // These cubes overlap here and there; in a stream map at most one matches.
            let (one, all) = (index.matching(id), scan(Cube::point(id)));
            assert!(one.map_or(all.is_empty(), |one| all.contains(&one)));
        }
        for entry in 0..96 {
            index.remove(entry);
        }
        assert!(index.masks.is_empty() && index.heads.iter().all(|head| *head == END));
    }

    #[test]
    #[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    fn a_full_map_of_128_is_searched_in_a_few_steps() {
        type Board = (&'static str, fn(u32) -> Cube);
        let boards: [Board; 6] = [
            ("IDs one after the other", |n| Cube::point(n)),
            ("PCI functions 0", |n| Cube::point(n << 3)),
            ("PCI devices with all functions", |n| Cube::new(n << 3, 7)),
            ("Layerscape: bits that the bus adds", |n| Cube::new(n, 0x7c00)),
            ("clusters of a GPU and its neighbours", |n| if n < 64 { Cube::point(n) } else { Cube::new(n << 8, 0x7f) }),
            ("three masks", |n| Cube::new(n << 7, [0, 0x1f, 0x7f].get(n as usize % 3).copied().unwrap_or(0))),
        ];
        for (board, cube) in boards {
            let mut index = Index::new(128).unwrap();
            for entry in 0..128_u8 {
                index.insert(cube(entry.into()), entry);
            }
            let (mut most, mut sum, mut looks) = (0_u32, 0_u32, 0_u32);
            for id in 0..0x8000_u32 {
                let mut steps = 0_u32;
                let found = index.find(id, || steps = steps.saturating_add(1));
                assert_eq!(found, (0..128_u8).find(|entry| cube((*entry).into()).holds(id)), "{board}: {id:#x}");
                most = most.max(steps);
                sum = sum.saturating_add(steps);
                looks = looks.saturating_add(1);
            }
            let hundredths = sum.saturating_mul(100) / looks;
            // A scan looks at 128 entries for an ID that none matches, and at 64 on average for one that is matched.
            assert!(most <= 16 && hundredths <= 700, "{board}: at most {most}, {hundredths}/100 on average");
        }
    }
}
