//! Covers that may also capture IDs which are known to be unused.

use bumpalo::Bump;
use bumpalo::collections::Vec;

use super::search::{Choice, MAX_POINTS, Problem, points_of};
use super::{
    Cover, CoverError, CoverOptions, Cube, Set, admitted, copied, cover_set, owned, try_extend, try_push, verified,
    with_room,
};

/// The fewest disjoint cubes that capture all of `ids`, may capture IDs of `unused`, and capture nothing else.
///
/// What an unknown ID can reach changes by this, so it is for callers that were told to: an ID that firmware never
/// named may still be driven by hardware. `unused` may be wider than the hardware's ID bits, and may overlap `ids`.
///
/// [`Cover::exact`] is true only where the least number is proven, which needs at most [`MAX_POINTS`] IDs after
/// bits were set aside on which neither set depends.
///
/// # Errors
///
/// As [`least_cover`](super::least_cover).
pub fn loose_cover(ids: &[Cube], unused: &[Cube], options: &CoverOptions) -> Result<Cover, CoverError> {
    let (arena, mut scratch) = (Bump::new(), Bump::new());
    let (cubes, exact) = loose_in(&arena, &mut scratch, ids, unused, options)?;
    Ok(Cover { cubes: owned(&cubes)?, exact })
}

/// [`loose_cover`] in arenas: the list of its cubes, and whether no smaller cover exists. `scratch` is emptied.
pub(in crate::smmu) fn loose_in<'a>(
    arena: &'a Bump,
    scratch: &mut Bump,
    ids: &[Cube],
    unused: &[Cube],
    options: &CoverOptions,
) -> Result<(Vec<'a, Cube>, bool), CoverError> {
    let wanted = admitted(arena, ids, options)?;
    let mut spare = copied(arena, unused)?;
    spare.sort_unstable();
    let mut allowed = Set::with_limit(arena, options.max_cubes.saturating_mul(2));
    for &cube in wanted.cubes() {
        allowed.insert(cube)?;
    }
    let hardware = Cube::new(0, options.id_bits);
    for cube in spare.iter().filter_map(|cube| cube.intersection(hardware)) {
        allowed.insert(cube)?;
    }
    allowed.merge(u32::MAX);

    let mut nodes = options.nodes;
    let (mut cubes, _) = cover_set(arena, scratch, &wanted, options, &mut nodes)?;
    // Looking at a pair is cheap beside a node, and the search needs fewer nodes the better its start is.
    let pairs = options.nodes.saturating_mul(16);
    join(&mut cubes, &allowed, options.mask_bits, pairs);
    scratch.reset();
    let exact = search(scratch, &wanted, &allowed, &mut cubes, options, &mut nodes)?;
    Ok((verified(ids, unused, cubes)?, exact))
}

/// Joins cubes of a cover into one that spans both, as long as that stays inside `allowed` and cuts no third: for each
/// cube in turn the partner whose span swallows most, until nothing joins or
/// `pairs` were looked at.
fn join(cubes: &mut Vec<'_, Cube>, allowed: &Set<'_>, mask_bits: u32, mut pairs: u32) {
    cubes.sort_unstable();
    let mut at = 0usize;
    let mut since_last_join = 0usize;
    while since_last_join < cubes.len() {
        at = if at < cubes.len() { at } else { 0 };
        let Some(&one) = cubes.get(at) else { break };
        let mut best: Option<(usize, Cube)> = None;
        for &two in cubes.iter().filter(|two| **two != one && one.span(**two).mask() & !mask_bits == 0) {
            let Some(left) = pairs.checked_sub(1) else { return };
            pairs = left;
            let span = one.span(two);
            let swallowed = cubes.iter().filter(|cube| span.contains(**cube)).count();
            let better = best.is_none_or(|(most, cube)| (swallowed, cube) > (most, span));
            let clean = || cubes.iter().all(|cube| span.contains(*cube) || !span.meets(*cube));
            if better && clean() && allowed.contains(span) {
                best = Some((swallowed, span));
            }
        }
        if let Some((_, span)) = best {
            cubes.retain(|cube| !span.contains(*cube));
            // In the place of two at least.
            cubes.push(span);
            since_last_join = 0;
        } else {
            at = at.wrapping_add(1);
            since_last_join = since_last_join.saturating_add(1);
        }
    }
}

/// The exact search, where the set is small enough for it, from the cover `cubes`, which it makes smaller. Says whether the
/// cover is proven least.
///
/// Any cube of a cover can be shrunk to the span of the wanted IDs in it without harm, so the spans of subsets of the
/// wanted IDs are all the choices there are.
fn search(
    scratch: &Bump,
    wanted: &Set<'_>,
    allowed: &Set<'_>,
    cubes: &mut Vec<'_, Cube>,
    options: &CoverOptions,
    nodes: &mut u32,
) -> Result<bool, CoverError> {
    let free = wanted.independent_bits(options.mask_bits) & allowed.independent_bits(options.mask_bits);
    let core = wanted.restricted_to_zero(scratch, free)?;
    let start = Set::from_disjoint(copied(scratch, cubes)?, wanted.limit());
    let start = start.restricted_to_zero(scratch, free)?.into_cubes();
    let (found, exact) = if start.len() <= 1 {
        (start, true)
    } else if core.size() > MAX_POINTS as u64 {
        (start, false)
    } else {
        let points = points_of(scratch, &core)?;
        let allowed = allowed.restricted_to_zero(scratch, free)?;
        let (choices, complete) = spans(scratch, &points, &allowed, options.mask_bits, nodes)?;
        let problem = Problem::new(scratch, &points, choices, false)?;
        let (found, least) = problem.solve(scratch, start, nodes)?;
        (found, complete && least)
    };
    cubes.clear();
    try_extend(cubes, found.len(), found.iter().map(|cube| cube.widened(free)))?;
    Ok(exact)
}

/// All spans of subsets of `points` that lie inside `allowed` and ignore only `mask_bits`; false if there are too many.
fn spans<'a>(
    arena: &'a Bump,
    points: &[u32],
    allowed: &Set<'_>,
    mask_bits: u32,
    nodes: &mut u32,
) -> Result<(Vec<'a, Choice>, bool), CoverError> {
    // Two lists: one sorted to look up in, one in the order of finding.
    let mut known: Vec<'_, Cube> = with_room(arena, points.len())?;
    known.extend(points.iter().copied().map(Cube::point));
    let mut found = copied(arena, &known)?;
    let mut complete = true;
    let mut grown = 0usize;
    'all: while let Some(&from) = found.get(grown) {
        grown = grown.wrapping_add(1);
        for &point in points.iter().filter(|point| !from.holds(**point)) {
            let span = from.span(Cube::point(point));
            let Err(place) = known.binary_search(&span) else { continue };
            if span.mask() & !mask_bits != 0 || !allowed.contains(span) {
                continue;
            }
            let Some(left) = nodes.checked_sub(1).filter(|_| known.len() < MAX_SPANS) else {
                complete = false;
                break 'all;
            };
            *nodes = left;
            try_push(&mut found, span)?;
            known.try_reserve(1).map_err(|_| CoverError::OutOfMemory)?;
            known.insert(place, span);
        }
    }
    let mut choices = with_room(arena, known.len())?;
    choices.extend(known.iter().map(|cube| Choice::of(*cube, points)));
    Ok((choices, complete))
}

/// How many choices the loose search looks at.
const MAX_SPANS: usize = 4096;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use alloc::vec::Vec;

    use super::super::check;
    use super::*;

    const OPTIONS: CoverOptions = CoverOptions::new(0x7fff, 0x7fff);

    #[test]
    fn unused_ids_make_one_entry_of_many() {
        let ids: Vec<Cube> = [0, 1, 2, 3, 4, 5, 6, 8, 9].map(Cube::point).into();
        let tight = loose_cover(&ids, &[], &OPTIONS).unwrap();
        assert_eq!((tight.cubes.len(), tight.exact), (4, true));
        let loose = loose_cover(&ids, &[Cube::new(0, 0xf)], &OPTIONS).unwrap();
        assert_eq!(loose, Cover { cubes: alloc::vec![Cube::new(0, 0xf)], exact: true });
    }

    #[test]
    fn spans_that_cross_in_unused_ids_are_not_both_taken() {
        // 0-3 and 1-2 span the same square, whose diagonals are both wanted.
        let ids = [Cube::point(0b000), Cube::point(0b011), Cube::point(0b101)];
        let unused = [Cube::point(0b001), Cube::point(0b111)];
        let cover = loose_cover(&ids, &unused, &OPTIONS).unwrap();
        assert_eq!(check(&ids, &unused, &cover.cubes), Ok(()));
        assert_eq!((cover.cubes.len(), cover.exact), (2, true));
    }

    #[test]
    fn a_set_too_large_to_search_is_still_joined() {
        let mut ids: Vec<Cube> = (0..200).map(|n| Cube::point(n * 2)).collect();
        ids.push(Cube::point(1));
        let cover = loose_cover(&ids, &[Cube::new(0, 0x1ff)], &OPTIONS).unwrap();
        assert_eq!(cover.cubes, [Cube::new(0, 0x1ff)]);
        assert!(cover.exact);
    }
}
