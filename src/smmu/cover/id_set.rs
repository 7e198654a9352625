//! Sets of stream IDs as lists of disjoint cubes.

use alloc::vec::Vec;

use bumpalo::Bump;

use super::set::{Set, contains, size};
use super::{CoverError, CoverOptions, Cube, copied, owned};

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

    /// The union of `cubes`, which may overlap.
    ///
    /// # Errors
    ///
    /// [`CoverError::TooComplex`], [`CoverError::OutOfMemory`].
    pub fn from_cubes(cubes: &[Cube]) -> Result<Self, CoverError> {
        let arena = Bump::new();
        let set = Set::union_of(&arena, cubes.iter().copied())?;
        Ok(Self { cubes: owned(set.cubes())?, limit: set.limit() })
    }

    /// The disjoint cubes, in no particular order.
    #[must_use]
    pub fn cubes(&self) -> &[Cube] {
        &self.cubes
    }

    /// How many cubes it may fall into.
    #[must_use]
    pub const fn limit(&self) -> usize {
        self.limit
    }

    /// How many IDs it holds: 0 to 2^32.
    #[must_use]
    pub fn size(&self) -> u64 {
        size(&self.cubes)
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
        contains(&self.cubes, cube)
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
        *self = self.changed(|set| set.insert(cube))?;
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
        *self = self.changed(|set| set.remove(cube))?;
        Ok(())
    }

    /// All IDs of both, with the limit of `self`.
    ///
    /// # Errors
    ///
    /// [`CoverError::TooComplex`], [`CoverError::OutOfMemory`].
    pub fn union(&self, other: &Self) -> Result<Self, CoverError> {
        self.changed(|all| other.cubes.iter().try_for_each(|cube| all.insert(*cube)))
    }

    /// The IDs of `self` that are not in `other`.
    ///
    /// # Errors
    ///
    /// [`CoverError::TooComplex`], [`CoverError::OutOfMemory`].
    pub fn minus(&self, other: &Self) -> Result<Self, CoverError> {
        self.changed(|rest| other.cubes.iter().try_for_each(|cube| rest.remove(*cube)))
    }

    /// The set after a change, which is made in an arena.
    fn changed(&self, change: impl FnOnce(&mut Set<'_>) -> Result<(), CoverError>) -> Result<Self, CoverError> {
        let arena = Bump::new();
        let mut set = Set::from_disjoint(copied(&arena, &self.cubes)?, self.limit);
        change(&mut set)?;
        Ok(Self { cubes: owned(set.cubes())?, limit: self.limit })
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
}
