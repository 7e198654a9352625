//! Lists of disjoint cubes.
//!
//! Because they are disjoint, sizes add up, and a cube lies inside a list exactly when the sizes of its intersections
//! with the list add up to its own.

use alloc::vec::Vec;
use core::cmp::Ordering;

use super::check::Flaw;
use super::cube::Cube;
use crate::few;

/// Why a set has no cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CoverError {
    /// A stream's ID or mask has bits that the hardware does not compare: it would be truncated and alias another
    /// (contract A-6).
    #[error("stream {cube} is wider than the hardware's ID bits {id_bits:#x}")]
    TooWide {
        /// The input.
        cube: Cube,
        /// What the hardware compares.
        id_bits: u32,
    },
    /// The set falls into more disjoint cubes than allowed, often because mask bits must be enumerated that the
    /// hardware cannot ignore; or its cover would take too long to check.
    #[error("the set of stream IDs falls into more than {limit} pieces")]
    TooComplex {
        /// The limit that was met.
        limit: usize,
    },
    /// No memory for the work.
    #[error("out of memory while planning stream-map entries")]
    OutOfMemory,
    /// The result failed its check and was withheld: a defect of this library.
    #[error("a planned cover was wrong and is withheld: {0}")]
    Unsound(Flaw),
}

/// The union of `ids`, at most `limit`, as so many disjoint cubes at most that ignore none but `mask_bits`.
pub(super) fn disjoint(ids: &[Cube], mask_bits: u32, limit: usize) -> Result<Vec<Cube>, CoverError> {
    if ids.len() > limit {
        return Err(CoverError::TooComplex { limit });
    }
    let mut inputs = with_room(ids.len())?;
    few::extend_within(&mut inputs, ids.iter().copied());
    // Widest first: what is there already is never inside what comes, which would be cut into pieces around it.
    let width = |cube: &Cube| (cube.mask() & mask_bits).count_ones();
    few::sort(&mut inputs, &|one, other| match width(other).cmp(&width(one)) {
        Ordering::Equal => one.is_before(other),
        order => order == Ordering::Less,
    });
    let mut all = Vec::new();
    for part in inputs.iter().flat_map(|cube| cube.parts(!mask_bits)) {
        let before = all.len();
        push(&mut all, part, limit)?;
        for at in 0..before {
            let Some(&own) = all.get(at) else { break };
            subtract(&mut all, before, own, limit)?;
        }
    }
    Ok(all)
}

/// Cuts `cut` out of the cubes from `first` on. On an error the list is useless.
pub(super) fn subtract(cubes: &mut Vec<Cube>, first: usize, cut: Cube, limit: usize) -> Result<(), CoverError> {
    let mut at = first;
    while let Some(&cube) = cubes.get(at) {
        if cube.meets(cut) {
            cubes.swap_remove(at);
            cube.minus(cut).try_for_each(|piece| push(cubes, piece, limit))?;
        } else {
            at = at.saturating_add(1);
        }
    }
    Ok(())
}

/// An empty list with room for `count`.
pub(super) fn with_room<T>(count: usize) -> Result<Vec<T>, CoverError> {
    let mut list = Vec::new();
    list.try_reserve_exact(count).map_err(|_| CoverError::OutOfMemory)?;
    Ok(list)
}

pub(super) fn try_push<T>(list: &mut Vec<T>, item: T) -> Result<(), CoverError> {
    few::push(list, item).map_err(|_| CoverError::OutOfMemory)
}

fn push(cubes: &mut Vec<Cube>, cube: Cube, limit: usize) -> Result<(), CoverError> {
    if cubes.len() >= limit {
        return Err(CoverError::TooComplex { limit });
    }
    try_push(cubes, cube)
}

/// Joins cubes that differ in exactly one of `bits`, until none do.
pub(super) fn merge(cubes: &mut Vec<Cube>, bits: u32) {
    loop {
        let before = cubes.len();
        for bit in each_bit(bits) {
            // Neighbours along `bit` become neighbours in the list.
            let place = |cube: &Cube| (cube.mask(), cube.id() & !bit, cube.id());
            few::sort(cubes, &|one, other| place(one) < place(other));
            cubes.dedup_by(|cube, last| {
                let joins = last.mask() == cube.mask() && last.id() ^ cube.id() == bit;
                if joins {
                    *last = last.widened(bit);
                }
                joins
            });
        }
        if cubes.len() == before {
            return few::sort(cubes, &Cube::is_before);
        }
    }
}

/// Moves from `rest` to the empty `component`, which has room, what no cube inside the set can keep apart from `seed`:
/// what is connected with it by steps of one bit that can be ignored.
pub(super) fn take_component(seed: Cube, rest: &mut Vec<Cube>, component: &mut Vec<Cube>, mask_bits: u32) {
    few::push_within(component, seed);
    let mut grown = 0_usize;
    while let Some(&from) = component.get(grown) {
        few::extend_within(component, rest.extract_if(.., |cube| from.touches(*cube, mask_bits)));
        grown = grown.saturating_add(1);
    }
}

/// Those of `bits` on which membership of no ID depends.
pub(super) fn independent_bits(cubes: &[Cube], bits: u32) -> u32 {
    let flipped = |cube: &Cube, bit| Cube::new(cube.id() ^ bit, cube.mask());
    let is_free = |bit: &u32| cubes.iter().all(|cube| cube.mask() & bit != 0 || contains(cubes, flipped(cube, *bit)));
    each_bit(bits).filter(is_free).fold(0, |all, bit| all | bit)
}

/// How many IDs are in the list: 0 to 2^32.
pub(super) fn size(cubes: &[Cube]) -> u64 {
    cubes.iter().map(|cube| cube.size()).fold(0, u64::saturating_add)
}

/// Whether every ID of `cube` is in the list.
pub(super) fn contains(cubes: &[Cube], cube: Cube) -> bool {
    let common = cubes.iter().filter_map(|own| own.intersection(cube));
    common.map(Cube::size).fold(0, u64::saturating_add) == cube.size()
}

/// The bits of `bits`, lowest first.
pub(super) fn each_bit(bits: u32) -> impl Iterator<Item = u32> {
    (0..u32::BITS).map(|place| 1_u32.wrapping_shl(place)).filter(move |bit| bits & bit != 0)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    #[test]
    fn merging_finds_the_largest_aligned_cube() {
        let mut cubes: Vec<Cube> = (0..1024).map(Cube::point).collect();
        merge(&mut cubes, u32::MAX);
        assert_eq!(cubes, [Cube::new(0, 0x3ff)]);
    }

    #[test]
    fn bits_that_do_not_matter_are_found() {
        let ids = [Cube::new(0, 0x11), Cube::point(6), Cube::point(7), Cube::new(0x16, 1)];
        let cubes = disjoint(&ids, u32::MAX, 100).unwrap();
        assert_eq!((size(&cubes), independent_bits(&cubes, u32::MAX)), (8, 0x11));
    }

    #[test]
    fn overlapping_input_becomes_disjoint_whatever_its_order() {
        let mut ids =
            [Cube::new(0, 0x0f), Cube::new(0x8, 0x13), Cube::point(9), Cube::new(0x40, 0x0f), Cube::point(0x20)];
        let cubes = disjoint(&ids, 0x3f, 100).unwrap();
        ids.reverse();
        assert_eq!(disjoint(&ids, 0x3f, 100).unwrap(), cubes);
        assert!(cubes.iter().zip(1..).all(|(one, next)| cubes.iter().skip(next).all(|two| !one.meets(*two))));
        assert_eq!((cubes.len(), size(&cubes)), (4, 37));
        assert_eq!(disjoint(&ids, 0x3f, 3), Err(CoverError::TooComplex { limit: 3 }));
        assert_eq!(size(&disjoint(&ids, 0x3c, 100).unwrap()), 37, "two bits are enumerated");
    }

    #[test]
    fn what_is_cut_out_is_gone_and_nothing_else() {
        let mut cubes: Vec<Cube> = [Cube::new(0, 0x1f), Cube::new(0x40, 0x0f)].into();
        subtract(&mut cubes, 0, Cube::new(0x8, 0x43), 100).unwrap();
        for id in 0..0x80 {
            let wanted = (id < 0x20 || (0x40..0x50).contains(&id)) && id & 0x3c != 8;
            assert_eq!(contains(&cubes, Cube::point(id)), wanted, "{id:#x}");
        }
        assert_eq!(subtract(&mut cubes, 0, Cube::point(0), 5), Err(CoverError::TooComplex { limit: 5 }));
    }
}
