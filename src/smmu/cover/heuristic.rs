//! Covers of sets that are too large to solve exactly, with a bound that sometimes proves them least.

use bumpalo::Bump;
use bumpalo::collections::Vec;

use super::set::each_bit;
use super::{CoverError, Cube, Set, copied, try_push, with_room};

/// A small cover of `core`, whose neighbours were merged before, and whether it is proven least.
///
/// Takes the widest cube that grows from what is left, again and again, as long as there are nodes: one is spent for
/// each cube grown, and one more for each 32 cubes that it had to be compared with.
pub(super) fn cover<'a>(
    arena: &'a Bump,
    core: &Set<'_>,
    mask_bits: u32,
    nodes: &mut u32,
) -> Result<(Vec<'a, Cube>, bool), CoverError> {
    let bound = lower_bound(core);
    let mut best = copied(arena, core.cubes())?;
    if best.len() > bound
        && let Some(cubes) = greedy(arena, core, mask_bits & core.varying_bits(), best.len(), nodes)?
    {
        best = cubes;
    }
    let exact = best.len() <= bound;
    Ok((best, exact))
}

/// Fewer than `best` cubes, or nothing.
fn greedy<'a>(
    arena: &'a Bump,
    core: &Set<'_>,
    bits: u32,
    best: usize,
    nodes: &mut u32,
) -> Result<Option<Vec<'a, Cube>>, CoverError> {
    let mut taken = with_room(arena, best)?;
    let mut rest = Set::from_disjoint(copied(arena, core.cubes())?, core.limit());
    while !rest.is_empty() {
        let mut widest: Option<Cube> = None;
        let price = u32::try_from(rest.cubes().len() / 32).unwrap_or(u32::MAX).saturating_add(1);
        for &seed in rest.cubes() {
            let Some(left) = nodes.checked_sub(price) else { return Ok(None) };
            *nodes = left;
            let rising = grow(&rest, seed, each_bit(bits));
            let falling = grow(&rest, seed, each_bit(bits.reverse_bits()).map(u32::reverse_bits));
            for grown in [rising, falling] {
                let wider = |cube: Cube| (grown.size(), cube) > (cube.size(), grown);
                if widest.is_none_or(wider) {
                    widest = Some(grown);
                }
            }
        }
        let Some(cube) = widest else { break };
        try_push(&mut taken, cube)?;
        if taken.len() >= best || rest.remove(cube).is_err() {
            return Ok(None);
        }
    }
    Ok(Some(taken))
}

/// `seed`, ignoring also each of `bits` in turn with which it stays inside `set`.
fn grow(set: &Set<'_>, seed: Cube, bits: impl Iterator<Item = u32>) -> Cube {
    bits.filter(|bit| seed.mask() & bit == 0).fold(seed, |cube, bit| {
        let other_half = Cube::new(cube.id() ^ bit, cube.mask());
        if set.contains(other_half) { cube.widened(bit) } else { cube }
    })
}

/// How many cubes any cover needs at least: the larger of two bounds.
///
/// Sizes of cubes are powers of two, and n such numbers have a sum with at most n one bits. And corners of which no
/// two lie in a common cube inside the set need a cube each.
fn lower_bound(core: &Set<'_>) -> usize {
    let mut corners = [0u32; CORNERS];
    let mut count = 0usize;
    for corner in core.cubes().iter().flat_map(|cube| [cube.id(), cube.last()]) {
        let apart = |other: &u32| !core.contains(Cube::point(*other).span(Cube::point(corner)));
        if corners.iter().take(count).all(apart) {
            let Some(slot) = corners.get_mut(count) else { break };
            *slot = corner;
            count = count.saturating_add(1);
        }
    }
    count.max(core.size().count_ones() as usize)
}

/// How many corners are tried: a set that needs more cubes than this is only bounded by this.
const CORNERS: usize = 64;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::IdSet;
    use super::*;

    fn covered(ranges: &[(u32, u64)], nodes: u32) -> (usize, bool) {
        let mut ids = IdSet::new();
        for &(first, length) in ranges {
            ids.insert_range(first, length).unwrap();
        }
        let arena = Bump::new();
        let mut set = Set::union_of(&arena, ids.cubes().iter().copied()).unwrap();
        set.merge(u32::MAX);
        let mut left = nodes;
        let (cubes, exact) = cover(&arena, &set, u32::MAX, &mut left).unwrap();
        assert_eq!(super::super::check(set.cubes(), &[], &cubes), Ok(()));
        (cubes.len(), exact)
    }

    #[test]
    fn all_but_one_is_as_many_cubes_as_bits() {
        assert_eq!(covered(&[(1, 0xffff)], 0), (16, true));
        assert_eq!(covered(&[(1, 0xffff_ffff)], 0), (32, true));
    }

    #[test]
    fn a_wide_range_with_crumbs_is_proven_by_its_corners() {
        assert_eq!(covered(&[(0, 0x100), (0x110, 1), (0x223, 1)], 0), (3, true));
    }

    #[test]
    fn a_ragged_range_stays_valid() {
        let (count, exact) = covered(&[(0x123, 0x7654)], 10_000);
        assert!(count <= 22 && !exact, "{count}");
        assert!(covered(&[(0x123, 0x7654)], 0).0 >= count);
        assert_eq!(covered(&[(1, 0xfffe)], 0), (30, false), "aligned pieces, of which far fewer are needed");
    }

    #[test]
    fn the_bound_is_never_above_the_least_cover() {
        let mut arena = Bump::new();
        for ids in 1..1u32 << 16 {
            arena.reset();
            let mut points = Vec::new_in(&arena);
            points.extend((0..16).filter(|id| ids >> id & 1 == 1).map(Cube::point));
            let mut set = Set::from_disjoint(points, 100);
            set.merge(u32::MAX);
            let mut left = 10_000;
            let (cubes, exact) = super::super::search::least(&arena, &set, u32::MAX, &mut left).unwrap();
            assert!(exact && lower_bound(&set) <= cubes.len(), "{ids:#x}");
        }
    }
}
