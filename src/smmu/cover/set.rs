//! Sets of stream IDs as lists of disjoint cubes, in an arena.
//!
//! # Invariants
//!
//! An arena gives nothing back before it is reset, so nothing here makes a list where one that is there can be changed in
//! place: what a set takes is at most some times its longest list.

use bumpalo::Bump;
use bumpalo::collections::Vec;

use super::{CoverError, CoverOptions, Cube, try_push, with_room};

/// [`IdSet`](super::IdSet) in an arena, with the same bound on its list and the same invariant.
#[derive(Debug)]
pub(in crate::smmu) struct Set<'a> {
    cubes: Vec<'a, Cube>,
    limit: usize,
}

impl<'a> Set<'a> {
    /// The empty set, which may fall into at most `limit` cubes.
    pub(super) fn with_limit(arena: &'a Bump, limit: usize) -> Self {
        Self { cubes: Vec::new_in(arena), limit }
    }

    /// The caller knows that the cubes are disjoint.
    pub(super) const fn from_disjoint(cubes: Vec<'a, Cube>, limit: usize) -> Self {
        Self { cubes, limit }
    }

    /// The union of `cubes`, which may overlap, with the default limit of cubes.
    pub(in crate::smmu) fn union_of(
        arena: &'a Bump,
        cubes: impl IntoIterator<Item = Cube>,
    ) -> Result<Self, CoverError> {
        let mut set = Self::with_limit(arena, CoverOptions::DEFAULT_MAX_CUBES);
        for cube in cubes {
            set.insert(cube)?;
        }
        Ok(set)
    }

    /// The disjoint cubes, in no particular order.
    pub(in crate::smmu) fn cubes(&self) -> &[Cube] {
        &self.cubes
    }

    pub(super) fn into_cubes(self) -> Vec<'a, Cube> {
        self.cubes
    }

    pub(super) const fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn size(&self) -> u64 {
        size(&self.cubes)
    }

    pub(in crate::smmu) fn is_empty(&self) -> bool {
        self.cubes.is_empty()
    }

    /// Whether every ID of `cube` is in it.
    pub(in crate::smmu) fn contains(&self, cube: Cube) -> bool {
        contains(&self.cubes, cube)
    }

    /// Adds the IDs of `cube`. On an error the set is as it was.
    pub(in crate::smmu) fn insert(&mut self, cube: Cube) -> Result<(), CoverError> {
        if self.cubes.iter().any(|own| own.contains(cube)) {
            return Ok(());
        }
        let before = self.cubes.len();
        if let Err(error) = self.append_rest(cube) {
            self.cubes.truncate(before);
            return Err(error);
        }
        let mut old = before;
        self.cubes.retain(|own| {
            let swallowed = old > 0 && cube.contains(*own);
            old = old.saturating_sub(1);
            !swallowed
        });
        Ok(())
    }

    /// Appends what the set lacks of `cube`. What `cube` swallows need not cut it into pieces, and is to go.
    fn append_rest(&mut self, cube: Cube) -> Result<(), CoverError> {
        let before = self.cubes.len();
        let mut swallowed = 0usize;
        try_push(&mut self.cubes, cube)?;
        for at in 0..before {
            let Some(&own) = self.cubes.get(at) else { break };
            if cube.contains(own) {
                swallowed = swallowed.saturating_add(1);
            } else {
                subtract(&mut self.cubes, before, own, self.limit)?;
            }
        }
        let left = self.cubes.len().saturating_sub(swallowed);
        if left > self.limit { Err(CoverError::TooComplex { limit: self.limit }) } else { Ok(()) }
    }

    /// Removes the IDs of `cube`. On an error the set is as it was.
    pub(in crate::smmu) fn remove(&mut self, cube: Cube) -> Result<(), CoverError> {
        subtract(&mut self.cubes, 0, cube, self.limit)
    }

    /// Cuts every cube so that none ignores one of `bits`.
    pub(super) fn enumerate_bits(&mut self, bits: u32) -> Result<(), CoverError> {
        let before = self.cubes.len();
        if self.cubes.iter().all(|cube| cube.mask() & bits == 0) {
            return Ok(());
        }
        for at in 0..before {
            let Some(&cube) = self.cubes.get(at) else { break };
            let cut = cube.mask() & bits;
            let mut value = 0u32;
            loop {
                if self.cubes.len().saturating_sub(before) >= self.limit {
                    return Err(CoverError::TooComplex { limit: self.limit });
                }
                try_push(&mut self.cubes, Cube::new(cube.id() | value, cube.mask() & !cut))?;
                // The next subset of `cut` in ascending order.
                value = value.wrapping_sub(cut) & cut;
                if value == 0 {
                    break;
                }
            }
        }
        self.cubes.drain(..before);
        Ok(())
    }

    /// Joins cubes that differ in exactly one of `bits`, until none do. The set stays the same.
    pub(super) fn merge(&mut self, bits: u32) {
        loop {
            let before = self.cubes.len();
            for bit in each_bit(bits) {
                self.merge_along(bit);
            }
            if self.cubes.len() == before {
                self.cubes.sort_unstable();
                return;
            }
        }
    }

    fn merge_along(&mut self, bit: u32) {
        // Neighbours along `bit` become neighbours in the list.
        self.cubes.sort_unstable_by_key(|cube| (cube.mask(), cube.id() & !bit, cube.id()));
        self.cubes.dedup_by(|cube, last| {
            let joins = last.mask() == cube.mask() && last.id() ^ cube.id() == bit;
            if joins {
                *last = last.widened(bit);
            }
            joins
        });
    }

    /// The bits in which some of its IDs differ.
    pub(super) fn varying_bits(&self) -> u32 {
        let first = self.cubes.first().map_or(0, |cube| cube.id());
        self.cubes.iter().fold(0, |bits, cube| bits | cube.mask() | (cube.id() ^ first))
    }

    /// Those of `bits` on which membership of no ID depends.
    pub(super) fn independent_bits(&self, bits: u32) -> u32 {
        each_bit(self.varying_bits() & bits)
            .filter(|bit| {
                self.cubes
                    .iter()
                    .all(|cube| cube.mask() & bit != 0 || self.contains(Cube::new(cube.id() ^ bit, cube.mask())))
            })
            .fold(0, |bits, bit| bits | bit)
    }

    /// The part of the set in which all of `bits` are zero.
    pub(super) fn restricted_to_zero<'b>(&self, arena: &'b Bump, bits: u32) -> Result<Set<'b>, CoverError> {
        let zero = || self.cubes.iter().filter(|cube| cube.id() & bits == 0);
        let mut cubes = with_room(arena, zero().count())?;
        cubes.extend(zero().map(|cube| Cube::new(cube.id(), cube.mask() & !bits)));
        Ok(Set { cubes, limit: self.limit })
    }
}

/// How many IDs disjoint cubes hold: 0 to 2^32.
pub(super) fn size(cubes: &[Cube]) -> u64 {
    cubes.iter().fold(0, |sum, cube| sum.saturating_add(cube.size()))
}

/// Whether every ID of `cube` is in one of the disjoint `cubes`.
pub(super) fn contains(cubes: &[Cube], cube: Cube) -> bool {
    let mut missing = cube.size();
    for part in cubes.iter().filter_map(|own| own.intersection(cube)) {
        missing = missing.saturating_sub(part.size());
        if missing == 0 {
            return true;
        }
    }
    false
}

/// The bits of `bits`, lowest first.
pub(super) fn each_bit(bits: u32) -> impl Iterator<Item = u32> {
    let mut left = bits;
    core::iter::from_fn(move || {
        let bit = left & left.wrapping_neg();
        left &= !bit;
        (bit != 0).then_some(bit)
    })
}

/// Cuts `cut` out of the cubes from `first` on, which become at most `limit` pieces in the same order. On an error the list
/// is as it was.
fn subtract(cubes: &mut Vec<'_, Cube>, first: usize, cut: Cube, limit: usize) -> Result<(), CoverError> {
    let before = cubes.len();
    let met = cubes.iter().skip(first).position(|cube| cube.meets(cut));
    let Some(same) = met else { return Ok(()) };
    let start = first.saturating_add(same);
    // The pieces are made behind the list, and then close up.
    let most = before.saturating_add(limit.saturating_sub(same));
    for at in start..before {
        let Some(cube) = cubes.get(at).copied() else { break };
        for piece in cube.minus(cut) {
            let pushed =
                if cubes.len() >= most { Err(CoverError::TooComplex { limit }) } else { try_push(cubes, piece) };
            if let Err(error) = pushed {
                cubes.truncate(before);
                return Err(error);
            }
        }
    }
    cubes.drain(start..before);
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn merging_finds_the_largest_aligned_cube() {
        let arena = Bump::new();
        let mut set = Set::with_limit(&arena, 2048);
        for id in 0..1024 {
            set.insert(Cube::point(id)).unwrap();
        }
        set.merge(u32::MAX);
        assert_eq!(set.cubes(), [Cube::new(0, 0x3ff)]);
    }

    #[test]
    fn bits_that_do_not_matter_are_found() {
        let arena = Bump::new();
        let cubes = [Cube::new(0, 0x11), Cube::point(6), Cube::point(7), Cube::new(0x16, 1)];
        let set = Set::union_of(&arena, cubes).unwrap();
        assert_eq!(set.independent_bits(u32::MAX), 0x11);
        assert_eq!(set.restricted_to_zero(&arena, 0x11).unwrap().size(), 2);
    }

    #[test]
    fn a_set_past_its_limit_keeps_its_list() {
        let arena = Bump::new();
        let mut set = Set::with_limit(&arena, 8);
        for cube in [Cube::new(0x100, 0x3f), Cube::new(0, 0x40), Cube::new(0x21, 0x80)] {
            set.insert(cube).unwrap();
        }
        let before = set.cubes().to_vec();
        let full = CoverError::TooComplex { limit: 8 };
        assert_eq!(set.insert(Cube::new(0, 0x3f)), Err(full));
        assert_eq!(set.cubes(), before);
        set.limit = 5;
        assert_eq!(set.remove(Cube::point(0x101)), Err(CoverError::TooComplex { limit: 5 }));
        assert_eq!(set.cubes(), before);
        set.limit = 8;
        set.remove(Cube::point(0x101)).unwrap();
        assert_eq!((set.cubes().len(), set.size()), (8, 67));
    }
}
