//! The exact search: branch and bound over the cubes inside a small set.

use core::cmp::Reverse;
use core::ops::Range;

use bumpalo::Bump;
use bumpalo::collections::Vec;

use super::set::each_bit;
use super::{CoverError, Cube, Set, copied, try_extend, try_push, with_room};

/// The largest component, in IDs and after bits were set aside on which it does not depend, that is solved exactly.
///
/// One machine word of IDs keeps a search node cheap. The largest component on any board known has fewer than 32.
pub const MAX_POINTS: usize = u128::BITS as usize;

/// The fewest cubes that partition `core`, which has at most [`MAX_POINTS`] IDs, and whether that is proven.
pub(super) fn least<'a>(
    arena: &'a Bump,
    core: &Set<'_>,
    mask_bits: u32,
    nodes: &mut u32,
) -> Result<(Vec<'a, Cube>, bool), CoverError> {
    let points = points_of(arena, core)?;
    let choices = cubes_inside(arena, &points, core.varying_bits() & mask_bits)?;
    Problem::new(arena, &points, choices, true)?.solve(arena, copied(arena, core.cubes())?, nodes)
}

/// All IDs of a set, ascending.
pub(super) fn points_of<'a>(arena: &'a Bump, set: &Set<'_>) -> Result<Vec<'a, u32>, CoverError> {
    let mut points = Vec::new_in(arena);
    for cube in set.cubes() {
        let mut value = 0u32;
        loop {
            try_push(&mut points, cube.id() | value)?;
            value = value.wrapping_sub(cube.mask()) & cube.mask();
            if value == 0 {
                break;
            }
        }
    }
    points.sort_unstable();
    Ok(points)
}

/// Every cube that lies inside the set of `points` and ignores only `bits`.
///
/// A set of n points holds at most n^1.59 cubes: 2187 for 128 points.
fn cubes_inside<'a>(arena: &'a Bump, points: &[u32], bits: u32) -> Result<Vec<'a, Choice>, CoverError> {
    let mut choices = Vec::new_in(arena);
    for &point in points {
        try_push(&mut choices, Choice::of(Cube::point(point), points))?;
    }
    let mut grown = 0usize;
    while let Some(&from) = choices.get(grown) {
        // Each cube is made once, its ignored bits in ascending order.
        let later = bits & !from.cube.mask() & !from.cube.id() & !below(from.cube.mask());
        for bit in each_bit(later) {
            let choice = Choice::of(from.cube.widened(bit), points);
            if u64::from(choice.points.count_ones()) == choice.cube.size() {
                try_push(&mut choices, choice)?;
            }
        }
        grown = grown.wrapping_add(1);
    }
    Ok(choices)
}

/// All bits below the highest bit of `mask`.
const fn below(mask: u32) -> u32 {
    match mask.checked_ilog2() {
        Some(highest) => 1u32.wrapping_shl(highest).wrapping_sub(1),
        None => 0,
    }
}

/// One cube that a cover may use, and which of the points it captures (bit n: the n-th point).
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    cube: Cube,
    points: u128,
}

impl Choice {
    pub(super) fn of(cube: Cube, points: &[u32]) -> Self {
        let captured = points.iter().zip(each_place()).filter(|(point, _)| cube.holds(**point));
        Self { cube, points: captured.fold(0, |set, (_, place)| set | place) }
    }
}

/// An exact-cover problem: choose the fewest choices that are disjoint and together capture every point.
///
/// # Invariants
///
/// For each point there is the choice that captures it alone, so that every partial cover can be completed.
pub(super) struct Problem<'a> {
    /// Widest first, so that the first dive is a greedy cover.
    choices: Vec<'a, Choice>,
    /// For each point the choices that capture it, as indices, concatenated.
    by_point: Vec<'a, u16>,
    /// Where the list of each point ends in `by_point`.
    ends: Vec<'a, usize>,
    /// Every ID of every choice is a point: choices are disjoint when their points are, and sizes are powers of two.
    full: bool,
}

/// A step on the way down: what was still to be captured, and which choices for its branching point are untried.
struct Frame {
    remaining: u128,
    /// Positions in `by_point`.
    untried: Range<usize>,
    /// How many choices `remaining` needs at least.
    bound: usize,
    /// The choice that was taken, as an index.
    chosen: usize,
}

impl<'a> Problem<'a> {
    pub(super) fn new(
        arena: &'a Bump,
        points: &[u32],
        mut choices: Vec<'a, Choice>,
        full: bool,
    ) -> Result<Self, CoverError> {
        choices.sort_unstable_by_key(|choice| (Reverse(choice.points.count_ones()), choice.cube));
        let mut ends = with_room(arena, points.len())?;
        let mut by_point = Vec::new_in(arena);
        for (_, place) in points.iter().zip(each_place()) {
            // Both searches look at some thousand choices at most.
            let numbered = || (0..=u16::MAX).zip(&choices).filter(|(_, choice)| choice.points & place != 0);
            try_extend(&mut by_point, numbered().count(), numbered().map(|(index, _)| index))?;
            ends.push(by_point.len());
        }
        Ok(Self { choices, by_point, ends, full })
    }

    /// A cover no larger than `best`, which must be one, and whether it is proven least.
    ///
    /// The first node is free: where the bound at the root meets `best`, no search is needed to know it.
    pub(super) fn solve<'b>(
        &self,
        arena: &Bump,
        mut best: Vec<'b, Cube>,
        nodes: &mut u32,
    ) -> Result<(Vec<'b, Cube>, bool), CoverError> {
        let count = self.ends.len();
        let mut frames: Vec<'_, Frame> = with_room(arena, count.saturating_add(1))?;
        let mut reach = with_room(arena, count)?;
        let mut remaining = each_place().take(count).fold(0, |set, place| set | place);
        loop {
            // Here every frame has taken its choice, and together they capture all but `remaining`.
            if remaining == 0 {
                if frames.len() < best.len() {
                    best.clear();
                    best.extend(frames.iter().filter_map(|frame| self.choices.get(frame.chosen)).map(|it| it.cube));
                }
            } else {
                let branch = self.branch(remaining, &mut reach);
                if frames.len().saturating_add(branch.bound) < best.len() {
                    let Some(left) = nodes.checked_sub(1) else { return Ok((best, false)) };
                    *nodes = left;
                    frames.push(branch);
                }
            }
            remaining = loop {
                let Some(mut frame) = frames.pop() else { return Ok((best, true)) };
                if frames.len().saturating_add(frame.bound) >= best.len() {
                    continue;
                }
                if let Some((chosen, rest)) = self.next_choice(&mut frame, &frames) {
                    frames.push(Frame { chosen, ..frame });
                    break rest;
                }
            };
        }
    }

    /// The next untried choice of `frame` that is disjoint from those taken above it, and what then remains.
    fn next_choice(&self, frame: &mut Frame, above: &[Frame]) -> Option<(usize, u128)> {
        let remaining = frame.remaining;
        let taken = above.iter().filter_map(|frame| self.choices.get(frame.chosen));
        let free = |cube: Cube| self.full || taken.clone().all(|taken| !taken.cube.meets(cube));
        frame.untried.by_ref().find_map(|position| {
            let &index = self.by_point.get(position)?;
            let choice = self.choices.get(usize::from(index))?;
            (choice.points & !remaining == 0 && free(choice.cube))
                .then_some((usize::from(index), remaining & !choice.points))
        })
    }

    /// Where to branch: at the point that the fewest choices still capture; and how many choices are needed at least.
    fn branch(&self, remaining: u128, reach: &mut Vec<'_, (u128, u128)>) -> Frame {
        reach.clear();
        let mut fewest = usize::MAX;
        let mut untried = 0..0;
        let mut start = 0usize;
        for (place, &end) in each_place().zip(&self.ends) {
            let list = start..end;
            start = end;
            if remaining & place == 0 {
                continue;
            }
            let (mut options, mut together) = (0usize, 0u128);
            let indices = self.by_point.get(list.clone()).unwrap_or_default();
            for choice in indices.iter().filter_map(|index| self.choices.get(usize::from(*index))) {
                if choice.points & !remaining == 0 {
                    options = options.saturating_add(1);
                    together |= choice.points;
                }
            }
            reach.push((place, together));
            if options < fewest {
                fewest = options;
                untried = list;
            }
        }
        let mut bound = independent_points(remaining, reach);
        if self.full {
            // Sizes of cubes are powers of two, and n such numbers have a sum with at most n one bits.
            bound = bound.max(remaining.count_ones().count_ones() as usize);
        }
        Frame { remaining, untried, bound, chosen: usize::MAX }
    }
}

/// The number of points, taken greedily, of which no choice captures two: each needs a choice of its own.
///
/// `reach` has for each remaining point all points that some choice captures together with it.
fn independent_points(remaining: u128, reach: &[(u128, u128)]) -> usize {
    let mut candidates = remaining;
    let mut count = 0usize;
    loop {
        let open = reach.iter().filter(|(place, _)| candidates & place != 0);
        let Some((_, together)) = open.min_by_key(|(_, together)| (together & candidates).count_ones()) else {
            return count;
        };
        candidates &= !together;
        count = count.saturating_add(1);
    }
}

/// One bit for each point.
fn each_place() -> impl Iterator<Item = u128> {
    core::iter::successors(Some(1u128), |place| place.checked_mul(2))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    fn solved(ids: &[u32], nodes: u32) -> (usize, bool) {
        let arena = Bump::new();
        let set = Set::union_of(&arena, ids.iter().copied().map(Cube::point)).unwrap();
        let mut left = nodes;
        let (cubes, exact) = least(&arena, &set, u32::MAX, &mut left).unwrap();
        (cubes.len(), exact)
    }

    #[test]
    fn all_cubes_inside_a_set_are_listed_once() {
        let arena = Bump::new();
        let cubes_inside = |points: &[u32], bits| cubes_inside(&arena, points, bits);
        let points: Vec<u32> = (0..8).collect();
        let mut cubes: Vec<Cube> = cubes_inside(&points, 7).unwrap().iter().map(|choice| choice.cube).collect();
        cubes.sort_unstable();
        cubes.dedup();
        assert_eq!(cubes.len(), 27);
        assert_eq!(cubes_inside(&points, 5).unwrap().len(), 18);
        assert_eq!(cubes_inside(&(0..128).collect::<Vec<u32>>(), 127).unwrap().len(), 2187);
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
        assert_eq!(solved(&[0, 3, 5], 0), (3, true), "the bound at the root needs no search");
    }

    #[test]
    fn all_points_of_a_set() {
        let arena = Bump::new();
        let set = Set::union_of(&arena, [Cube::new(4, 3), Cube::new(1, 0x10)]).unwrap();
        assert_eq!(points_of(&arena, &set).unwrap()[..], [1, 4, 5, 6, 7, 0x11]);
    }
}
