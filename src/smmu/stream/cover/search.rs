//! Fewer cubes for a component: a bound that proves most covers least, and branch and bound over all cubes inside a
//! small set.

use alloc::vec::Vec;
use core::cmp::Reverse;
use core::slice::Iter;

use smallvec::SmallVec;

use super::cube::Cube;
use super::list::{CoverError, contains, each_bit, size, try_push, with_room};
use crate::few;

/// The largest component, in IDs and after bits were set aside on which it does not depend, that is solved exactly.
///
/// One machine word of IDs keeps a search node cheap. The largest component on any board known has fewer than 32.
const MAX_POINTS: usize = u128::BITS as usize;

/// Cubes up to which corners are compared.
const CORNERS: usize = 64;

/// One cube that a cover may use, and which of the points it captures (bit n: the n-th point).
#[derive(Clone, Copy)]
struct Choice {
    cube: Cube,
    points: u128,
}

/// A step on the way down: one more cube of the cover.
struct Step<'a> {
    /// What is still to be captured.
    remaining: u128,
    /// The point that this step's cube is to capture.
    point: u128,
    /// How many cubes `remaining` needs at least.
    bound: usize,
    untried: Iter<'a, Choice>,
    taken: Option<Cube>,
}

/// The choices that still capture a point: how many, and all points that they capture.
#[derive(Clone, Copy, Default)]
struct Reach {
    choices: u32,
    points: u128,
}

/// How many cubes any cover of the set needs at least: the larger of two bounds.
///
/// Sizes of cubes are powers of two, and n such numbers have a sum with at most n one bits. And corners of which no
/// two lie in a common cube inside the set need a cube each.
fn lower_bound(cubes: &[Cube]) -> usize {
    let mut apart = SmallVec::<[u32; CORNERS]>::new();
    for corner in cubes.iter().flat_map(|cube| [cube.id(), cube.last()]).filter(|_| cubes.len() <= CORNERS) {
        let is_apart = |other: &u32| !contains(cubes, Cube::point(*other).span(Cube::point(corner)));
        if apart.iter().all(is_apart) {
            few::put(&mut apart, corner);
        }
    }
    apart.len().max(size(cubes).count_ones() as usize)
}

/// Replaces `best`, the cover of a component, by a smaller one, if one is found. Says whether it is then proven least.
pub(super) fn improve(best: &mut Vec<Cube>, mask_bits: u32, nodes: &mut u32) -> Result<bool, CoverError> {
    if best.len() <= lower_bound(best) {
        return Ok(true);
    }
    // To list the cubes inside a set takes as long as a node for each ID.
    let listing = u32::try_from(size(best)).unwrap_or(u32::MAX);
    let Some(left) = nodes.checked_sub(listing).filter(|_| size(best) <= MAX_POINTS as u64) else { return Ok(false) };
    *nodes = left;
    let choices = cubes_inside(best, mask_bits)?;
    let price = u32::try_from(choices.len() / 512).unwrap_or(u32::MAX).saturating_add(1);
    let all = choices.iter().fold(0, |all, choice| all | choice.points);
    let (mut steps, mut reach) = (with_room(best.len())?, with_room(MAX_POINTS)?);
    few::push_within(&mut steps, next_step(all, &choices, &mut reach));
    while let Some(depth) = steps.len().checked_sub(1)
        && let Some(step) = steps.last_mut()
    {
        let (remaining, point) = (step.remaining, step.point);
        let fits = |choice: &&Choice| choice.points & !remaining == 0 && choice.points & point != 0;
        let may_win = depth.saturating_add(step.bound) < best.len();
        let Some(choice) = may_win.then(|| step.untried.find(fits)).flatten() else {
            steps.pop();
            continue;
        };
        step.taken = Some(choice.cube);
        let remaining = remaining & !choice.points;
        if remaining == 0 {
            best.clear();
            few::extend_within(best, steps.iter().filter_map(|step| step.taken));
            continue;
        }
        if depth.saturating_add(1).saturating_add(fewest(remaining)) >= best.len() {
            continue;
        }
        let Some(left) = nodes.checked_sub(price) else { return Ok(false) };
        *nodes = left;
        // A step is one cube of a cover that is smaller than the best: there is room.
        few::push_within(&mut steps, next_step(remaining, &choices, &mut reach));
    }
    Ok(true)
}

/// Every cube that lies inside the set and ignores only `bits`, widest first.
///
/// A set of n IDs holds at most n^1.59 cubes: 2187 for 128 IDs.
fn cubes_inside(set: &[Cube], bits: u32) -> Result<Vec<Choice>, CoverError> {
    let mut choices = with_room(MAX_POINTS)?;
    let points = set.iter().flat_map(|cube| cube.parts(u32::MAX)).take(MAX_POINTS);
    few::extend_within(&mut choices, points.map(|cube| Choice { cube, points: 0 }));
    // From here on the list is sorted by mask and ID: the masks that a further bit makes are above all earlier ones.
    few::sort(&mut choices, &|one, other| one.cube.is_before(&other.cube));
    choices.iter_mut().zip(each_place()).for_each(|(choice, place)| choice.points = place);
    for bit in each_bit(bits) {
        for at in 0..choices.len() {
            let Some(&Choice { cube, points }) = choices.get(at) else { break };
            let key = (cube.mask(), cube.id() | bit);
            let other = choices.binary_search_by_key(&key, |choice| (choice.cube.mask(), choice.cube.id()));
            if let Ok(other) = other
                && let Some(other) = choices.get(other).filter(|other| other.cube != cube)
            {
                let both = Choice { cube: cube.widened(bit), points: points | other.points };
                try_push(&mut choices, both)?;
            }
        }
    }
    let place = |choice: &Choice| (Reverse(choice.cube.size()), choice.cube);
    few::sort(&mut choices, &|one, other| place(one) < place(other));
    Ok(choices)
}

/// The next step: at the point that the fewest choices still capture.
fn next_step<'a>(remaining: u128, choices: &'a [Choice], reach: &mut Vec<Reach>) -> Step<'a> {
    reach.clear();
    few::extend_within(reach, (0..MAX_POINTS).map(|_| Reach::default()));
    for choice in choices.iter().filter(|choice| choice.points & !remaining == 0) {
        let mut points = choice.points;
        while let Some(of_point) = reach.get_mut(points.trailing_zeros() as usize) {
            of_point.choices = of_point.choices.saturating_add(1);
            of_point.points |= choice.points;
            points &= points.wrapping_sub(1);
        }
    }
    let among = |points: u128| each_place().zip(&*reach).filter(move |(place, _)| points & place != 0);
    let point = among(remaining).min_by_key(|(_, reach)| reach.choices).map_or(0, |(place, _)| place);
    // Points of which no choice captures two need a choice each. They are taken greedily.
    let (mut candidates, mut bound) = (remaining, 0_usize);
    let narrowest =
        |points: u128| among(points).map(|(_, reach)| reach.points).min_by_key(|reach| (reach & points).count_ones());
    while let Some(reach) = narrowest(candidates) {
        candidates &= !reach;
        bound = bound.saturating_add(1);
    }
    Step { remaining, point, bound: bound.max(fewest(remaining)), untried: choices.iter(), taken: None }
}

/// How many cubes a number of points needs at least: sizes of cubes are powers of two, and n such numbers have a sum
/// with at most n one bits.
const fn fewest(points: u128) -> usize {
    points.count_ones().count_ones() as usize
}

/// One bit for each point.
fn each_place() -> impl Iterator<Item = u128> {
    (0..u128::BITS).map(|place| 1_u128.wrapping_shl(place))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::super::list::merge;
    use super::*;

    fn points(ids: impl IntoIterator<Item = u32>) -> Vec<Cube> {
        ids.into_iter().map(Cube::point).collect()
    }

    fn solved(ids: &[u32], mut nodes: u32) -> (usize, bool) {
        let mut cubes = points(ids.iter().copied());
        let exact = improve(&mut cubes, u32::MAX, &mut nodes).unwrap();
        (cubes.len(), exact)
    }

    #[test]
    fn all_cubes_inside_a_set_are_listed_once() {
        let choices = cubes_inside(&[Cube::new(0, 7)], 7).unwrap();
        let mut cubes: Vec<Cube> = choices.iter().map(|choice| choice.cube).collect();
        assert!(choices.iter().all(|choice| u64::from(choice.points.count_ones()) == choice.cube.size()));
        cubes.sort_unstable();
        cubes.dedup();
        assert_eq!(cubes.len(), 27);
        assert_eq!(cubes_inside(&points(0..8), 5).unwrap().len(), 18);
        assert_eq!(cubes_inside(&[Cube::new(0x300, 0x80ee)], u32::MAX).unwrap().len(), 2187);
    }

    #[test]
    fn a_cover_may_need_cubes_that_are_not_prime() {
        // The six IDs of three bits that are not all equal: three disjoint pairs, though all primes overlap in a ring.
        assert_eq!(solved(&[1, 2, 3, 4, 5, 6], 1000), (3, true));
        assert_eq!(solved(&[0, 1, 2], 1000), (2, true));
    }

    #[test]
    fn without_nodes_the_start_is_returned_as_inexact() {
        assert_eq!(solved(&[1, 2, 3, 4, 5, 6], 0), (6, false));
        assert_eq!(solved(&[1, 2, 3, 4, 5, 6], 6), (6, false), "the cubes are listed, and no more");
        assert_eq!(solved(&[0, 3, 5], 0), (3, true), "the bound needs no search");
    }

    #[test]
    fn large_sets_are_proven_by_a_bound() {
        // All but one of so many IDs is a cube for each bit.
        let mut all_but_one: Vec<Cube> = (0..16).map(|bit| Cube::new(1 << bit, (1 << bit) - 1)).collect();
        assert_eq!(improve(&mut all_but_one, u32::MAX, &mut 0), Ok(true));
        // A wide range and crumbs beside it: no two of their corners lie in one cube.
        let mut crumbs = [Cube::new(0, 0xff), Cube::point(0x110), Cube::point(0x223)].into();
        assert_eq!(improve(&mut crumbs, u32::MAX, &mut 0), Ok(true));
        let mut both_ends = all_but_one.clone();
        both_ends.pop();
        both_ends.extend(both_ends.clone().iter().map(|cube| Cube::new(!cube.last() & 0xffff, cube.mask())));
        assert_eq!((improve(&mut both_ends, u32::MAX, &mut 1000), both_ends.len()), (Ok(false), 30));
    }

    #[test]
    fn the_bound_is_never_above_the_least_cover() {
        for ids in 1..1_u32 << 16 {
            let mut cubes: Vec<Cube> = (0..16).filter(|id| ids >> id & 1 == 1).map(Cube::point).collect();
            merge(&mut cubes, u32::MAX);
            let bound = lower_bound(&cubes);
            assert!(improve(&mut cubes, u32::MAX, &mut 10_000).unwrap() && bound <= cubes.len(), "{ids:#x}");
        }
    }
}
