//! Sets of stream IDs as lists of disjoint cubes.

use alloc::vec::Vec;

use super::{CoverError, CoverOptions, Cube, try_push};

/// A set of 32-bit IDs.
///
/// Equality is equality as sets, however they are cut into cubes. Every operation that can grow the list is bounded
/// by the set's limit and reports [`CoverError::TooComplex`] past it, leaving the set as it was.
///
/// # Invariants
///
/// The cubes are pairwise disjoint, so sizes add up and a cube lies inside the set exactly when the sizes of its
/// intersections with the list add up to its own.
#[derive(Clone, Debug)]
pub struct IdSet {
    cubes: Vec<Cube>,
    limit: usize,
}

impl IdSet {
    /// The empty set, with the default limit of cubes.
    #[must_use]
    pub const fn new() -> Self {
        Self::with_limit(CoverOptions::DEFAULT_MAX_CUBES)
    }

    /// The empty set, which may fall into at most `limit` cubes.
    #[must_use]
    pub const fn with_limit(limit: usize) -> Self {
        Self { cubes: Vec::new(), limit }
    }

    /// The caller knows that the cubes are disjoint.
    pub(super) const fn from_disjoint(cubes: Vec<Cube>, limit: usize) -> Self {
        Self { cubes, limit }
    }

    /// The union of `cubes`, which may overlap.
    ///
    /// # Errors
    ///
    /// [`CoverError::TooComplex`], [`CoverError::OutOfMemory`].
    pub fn from_cubes(cubes: &[Cube]) -> Result<Self, CoverError> {
        let mut set = Self::new();
        for &cube in cubes {
            set.insert(cube)?;
        }
        Ok(set)
    }

    /// The disjoint cubes, in no particular order.
    #[must_use]
    pub fn cubes(&self) -> &[Cube] {
        &self.cubes
    }

    pub(super) fn into_cubes(self) -> Vec<Cube> {
        self.cubes
    }

    /// How many cubes it may fall into.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// How many IDs it holds: 0 to 2^32.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.cubes.iter().fold(0, |sum, cube| sum.saturating_add(cube.size()))
    }

    /// Whether it holds no ID.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cubes.is_empty()
    }

    /// Whether `id` is in it.
    #[must_use]
    pub fn holds(&self, id: u32) -> bool {
        self.cubes.iter().any(|cube| cube.holds(id))
    }

    /// Whether every ID of `cube` is in it.
    #[must_use]
    pub fn contains(&self, cube: Cube) -> bool {
        let mut missing = cube.size();
        for part in self.cubes.iter().filter_map(|own| own.intersection(cube)) {
            missing = missing.saturating_sub(part.size());
            if missing == 0 {
                return true;
            }
        }
        false
    }

    /// Whether some ID of `cube` is in it.
    #[must_use]
    pub fn meets(&self, cube: Cube) -> bool {
        self.cubes.iter().any(|own| own.meets(cube))
    }

    /// Whether some ID is in both.
    #[must_use]
    pub fn intersects(&self, other: &Self) -> bool {
        other.cubes.iter().any(|&cube| self.meets(cube))
    }

    /// Adds the IDs of `cube`.
    ///
    /// # Errors
    ///
    /// [`CoverError::TooComplex`], [`CoverError::OutOfMemory`].
    pub fn insert(&mut self, cube: Cube) -> Result<(), CoverError> {
        if self.cubes.iter().any(|own| own.contains(cube)) {
            return Ok(());
        }
        // What the newcomer swallows need not cut it into pieces.
        let mut pieces = Vec::new();
        try_push(&mut pieces, cube)?;
        for &own in self.cubes.iter().filter(|own| !cube.contains(**own)) {
            pieces = subtracted(&pieces, own, self.limit)?;
        }
        let kept = self.cubes.iter().filter(|own| !cube.contains(**own)).count();
        if kept.saturating_add(pieces.len()) > self.limit {
            return Err(CoverError::TooComplex { limit: self.limit });
        }
        self.cubes.try_reserve(pieces.len()).map_err(|_| CoverError::OutOfMemory)?;
        self.cubes.retain(|own| !cube.contains(*own));
        self.cubes.extend(pieces);
        Ok(())
    }

    /// Adds `length` consecutive IDs from `first`. A length of 0 adds nothing.
    ///
    /// # Errors
    ///
    /// [`CoverError::RangeOverflow`] past the 32-bit ID space, [`CoverError::TooComplex`], [`CoverError::OutOfMemory`];
    /// on an error part of the range may have been added.
    pub fn insert_range(&mut self, first: u32, length: u64) -> Result<(), CoverError> {
        for cube in aligned_cubes(first, length)? {
            self.insert(cube)?;
        }
        Ok(())
    }

    /// Removes the IDs of `cube`.
    ///
    /// # Errors
    ///
    /// [`CoverError::TooComplex`], [`CoverError::OutOfMemory`].
    pub fn remove(&mut self, cube: Cube) -> Result<(), CoverError> {
        self.cubes = subtracted(&self.cubes, cube, self.limit)?;
        Ok(())
    }

    /// All IDs of both, with the limit of `self`.
    ///
    /// # Errors
    ///
    /// [`CoverError::TooComplex`], [`CoverError::OutOfMemory`].
    pub fn union(&self, other: &Self) -> Result<Self, CoverError> {
        let mut all = Self { cubes: super::try_copy(&self.cubes)?, limit: self.limit };
        for &cube in &other.cubes {
            all.insert(cube)?;
        }
        Ok(all)
    }

    /// The IDs of `self` that are not in `other`.
    ///
    /// # Errors
    ///
    /// [`CoverError::TooComplex`], [`CoverError::OutOfMemory`].
    pub fn minus(&self, other: &Self) -> Result<Self, CoverError> {
        let mut rest = Self { cubes: super::try_copy(&self.cubes)?, limit: self.limit };
        for &cube in &other.cubes {
            rest.remove(cube)?;
        }
        Ok(rest)
    }

    /// Cuts every cube so that none ignores one of `bits`.
    pub(super) fn enumerate_bits(&mut self, bits: u32) -> Result<(), CoverError> {
        let mut out = Vec::new();
        for &cube in &self.cubes {
            let cut = cube.mask() & bits;
            let mut value = 0u32;
            loop {
                if out.len() >= self.limit {
                    return Err(CoverError::TooComplex { limit: self.limit });
                }
                try_push(&mut out, Cube::new(cube.id() | value, cube.mask() & !cut))?;
                // The next subset of `cut` in ascending order.
                value = value.wrapping_sub(cut) & cut;
                if value == 0 {
                    break;
                }
            }
        }
        self.cubes = out;
        Ok(())
    }

    /// Joins cubes that differ in exactly one of `bits`, until none do. The set stays the same.
    pub(super) fn merge(&mut self, bits: u32) -> Result<(), CoverError> {
        loop {
            let before = self.cubes.len();
            for bit in each_bit(bits) {
                self.merge_along(bit)?;
            }
            if self.cubes.len() == before {
                self.cubes.sort_unstable();
                return Ok(());
            }
        }
    }

    fn merge_along(&mut self, bit: u32) -> Result<(), CoverError> {
        // Neighbours along `bit` become neighbours in the list.
        let key = |cube: &Cube| (cube.mask(), cube.id() & !bit, cube.id());
        self.cubes.sort_unstable_by_key(key);
        let mut out: Vec<Cube> = Vec::new();
        out.try_reserve_exact(self.cubes.len()).map_err(|_| CoverError::OutOfMemory)?;
        for &cube in &self.cubes {
            match out.last_mut() {
                Some(last) if last.mask() == cube.mask() && last.id() ^ cube.id() == bit => *last = last.widened(bit),
                _ => out.push(cube),
            }
        }
        self.cubes = out;
        Ok(())
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
    pub(super) fn restricted_to_zero(&self, bits: u32) -> Result<Self, CoverError> {
        let mut cubes = Vec::new();
        cubes.try_reserve_exact(self.cubes.len()).map_err(|_| CoverError::OutOfMemory)?;
        let zero = self.cubes.iter().filter(|cube| cube.id() & bits == 0);
        cubes.extend(zero.map(|cube| Cube::new(cube.id(), cube.mask() & !bits)));
        Ok(Self { cubes, limit: self.limit })
    }
}

impl Default for IdSet {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for IdSet {
    fn eq(&self, other: &Self) -> bool {
        self.size() == other.size() && self.cubes.iter().all(|&cube| other.contains(cube))
    }
}

impl Eq for IdSet {}

/// The naturally aligned cubes of a range, in ascending order: at most 62.
///
/// # Errors
///
/// [`CoverError::RangeOverflow`] when the range runs past the 32-bit ID space.
fn aligned_cubes(first: u32, length: u64) -> Result<impl Iterator<Item = Cube>, CoverError> {
    let overflow = CoverError::RangeOverflow { first, length };
    let end = u64::from(first).checked_add(length).filter(|end| *end <= 1 << 32).ok_or(overflow)?;
    let mut at = u64::from(first);
    Ok(core::iter::from_fn(move || {
        let left = end.checked_sub(at).filter(|left| *left > 0)?;
        let aligned = if at == 0 { 32 } else { at.trailing_zeros() };
        let step = 1u64.wrapping_shl(aligned.min(left.ilog2()));
        let cube = Cube::new(u32::try_from(at).ok()?, u32::try_from(step.wrapping_sub(1)).ok()?);
        at = at.wrapping_add(step);
        Some(cube)
    }))
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

fn subtracted(cubes: &[Cube], cut: Cube, limit: usize) -> Result<Vec<Cube>, CoverError> {
    let mut out = Vec::new();
    out.try_reserve(cubes.len()).map_err(|_| CoverError::OutOfMemory)?;
    for piece in cubes.iter().flat_map(|cube| cube.minus(cut)) {
        if out.len() >= limit {
            return Err(CoverError::TooComplex { limit });
        }
        try_push(&mut out, piece)?;
    }
    Ok(out)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn equality_is_by_ids_not_by_cubes() {
        let one = IdSet::from_cubes(&[Cube::new(0, 0xf)]).unwrap();
        let mut many = IdSet::new();
        for id in (0..16).rev() {
            many.insert(Cube::point(id)).unwrap();
        }
        assert_eq!(one, many);
        many.remove(Cube::point(3)).unwrap();
        assert_ne!(one, many);
    }

    #[test]
    fn ranges_become_aligned_cubes() {
        let mut set = IdSet::new();
        set.insert_range(0x480, 0x20).unwrap();
        assert_eq!(set.cubes(), [Cube::new(0x480, 0x1f)]);
        let mut all = IdSet::new();
        all.insert_range(0, 1 << 32).unwrap();
        assert_eq!(all.cubes(), [Cube::new(0, u32::MAX)]);
        let mut odd = IdSet::new();
        odd.insert_range(1, (1 << 32) - 2).unwrap();
        assert_eq!((odd.cubes().len(), odd.size()), (62, (1 << 32) - 2));
        let none = odd.insert_range(u32::MAX, 2);
        assert_eq!(none, Err(CoverError::RangeOverflow { first: u32::MAX, length: 2 }));
        assert!(odd.insert_range(u32::MAX, u64::MAX).is_err());
        odd.insert_range(7, 0).unwrap();
        assert_eq!(odd.size(), (1 << 32) - 2);
    }

    #[test]
    fn a_set_past_its_limit_is_refused_and_unchanged() {
        let mut set = IdSet::with_limit(8);
        set.insert(Cube::new(0, u32::MAX)).unwrap();
        assert_eq!(set.remove(Cube::point(0)), Err(CoverError::TooComplex { limit: 8 }));
        assert_eq!(set.size(), 1 << 32);
    }

    #[test]
    fn set_algebra() {
        let a = IdSet::from_cubes(&[Cube::new(0, 0xff)]).unwrap();
        let b = IdSet::from_cubes(&[Cube::new(0x80, 0xff), Cube::new(0x80, 0x17f)]).unwrap();
        assert!(a.intersects(&b));
        let only_a = a.minus(&b).unwrap();
        assert!(!only_a.intersects(&b));
        assert_eq!(only_a.union(&b).unwrap(), a.union(&b).unwrap());
    }

    #[test]
    fn merging_finds_the_largest_aligned_cube() {
        let mut set = IdSet::new();
        for id in 0..1024 {
            set.insert(Cube::point(id)).unwrap();
        }
        set.merge(u32::MAX).unwrap();
        assert_eq!(set.cubes(), [Cube::new(0, 0x3ff)]);
    }

    #[test]
    fn bits_that_do_not_matter_are_found() {
        let set = IdSet::from_cubes(&[Cube::new(0, 0x11), Cube::point(6), Cube::point(7), Cube::new(0x16, 1)]).unwrap();
        assert_eq!(set.independent_bits(u32::MAX), 0x11);
        assert_eq!(set.restricted_to_zero(0x11).unwrap().size(), 2);
    }
}
