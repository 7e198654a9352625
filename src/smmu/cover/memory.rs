//! What searches take of their arenas, and that an arena without room is an error.

#![expect(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "a test fails by panicking")]

use alloc::vec::Vec;
use core::fmt::Debug;

use bumpalo::Bump;

use super::loose::loose_in;
use super::{CoverError, CoverOptions, Cube, Set, cover_component, least_in};

const V2: CoverOptions = CoverOptions::new(0x7fff, 0x7fff);

fn points(ids: impl IntoIterator<Item = u32>) -> Vec<Cube> {
    ids.into_iter().map(Cube::point).collect()
}

/// IDs without a pattern, some of them twice.
fn scattered(count: usize, bits: u32) -> Vec<Cube> {
    let mut seed = 0x2545_f491_u32;
    let next = || {
        seed ^= seed << 13;
        seed ^= seed >> 17;
        seed ^= seed << 5;
        seed & bits
    };
    points(core::iter::repeat_with(next).take(count))
}

/// All but one in eight of `count` IDs.
fn dense(first: u32, count: u32) -> Vec<Cube> {
    points((0..count).filter(|id| id.wrapping_mul(0x9e37_79b1) >> 29 != 0).map(|id| first | id))
}

/// How many bytes the arenas are in the end, and how many cubes the cover.
fn taken(ids: &[Cube]) -> (usize, usize) {
    let (arena, mut scratch) = (Bump::new(), Bump::new());
    let count = least_in(&arena, &mut scratch, ids, &V2).unwrap().0.len();
    (arena.allocated_bytes() + scratch.allocated_bytes(), count)
}

#[test]
fn the_largest_sets_stay_within_half_a_mebibyte() {
    const MOST: usize = 512 << 10;
    // Nothing joins; a component for each; parts of every size; one part, too large to search; parts as large as are
    // searched, one behind the other.
    let apart = points((0..2048).map(|id| id * 3));
    let parts: Vec<Cube> = (0..16).flat_map(|part| dense(part * 0x600, 128)).collect();
    let sets = [apart, scattered(2048, 0x7fff), scattered(2048, 0x7ff), dense(0, 2048), parts];
    for (index, ids) in sets.iter().enumerate() {
        let (bytes, count) = taken(ids);
        assert!(bytes < MOST && count > 60, "set {index}: {bytes} bytes for {count} cubes");
    }
}

#[test]
fn a_set_that_is_cut_again_and_again_stays_as_small_as_its_list() {
    let arena = Bump::new();
    let mut set = Set::with_limit(&arena, 2048);
    for round in 0..64 {
        set.insert(Cube::new(0, 0xffff)).unwrap();
        for id in 0..64 {
            set.remove(Cube::point(id * 0x155 + round)).unwrap();
        }
    }
    assert!(set.cubes().len() > 400);
    assert!(arena.allocated_bytes() < 64 << 10, "{}", arena.allocated_bytes());
}

/// An arena that has `room` bytes, and gets no more.
fn filled(room: usize) -> Bump {
    let arena = Bump::with_capacity(room);
    arena.set_allocation_limit(Some(arena.allocated_bytes()));
    arena.alloc_slice_fill_copy(arena.chunk_capacity() - room, 0_u8);
    arena
}

/// Runs with more and more room, until it suffices; tells how often it did not.
fn sweep<T: PartialEq + Debug>(wanted: &T, run: impl Fn(&Bump) -> Result<T, CoverError>) -> u32 {
    for (step, room) in (0..).zip((0..).step_by(64)) {
        match run(&filled(room)) {
            Ok(found) => {
                assert_eq!(found, *wanted, "{room} bytes");
                return step;
            }
            Err(error) => assert_eq!(error, CoverError::OutOfMemory, "{room} bytes"),
        }
    }
    0
}

#[test]
fn a8_wherever_an_arena_is_full_the_answer_is_out_of_memory() {
    let hasty = V2.with_nodes(20);
    let few = points([0, 1, 2, 3, 4, 5, 6, 8, 9, 0x13, 0x110, 0x223]);
    let unused = [Cube::new(0, 0xff), Cube::new(0x100, 0x21)];
    for ids in [&few, &dense(0, 40), &dense(0, 160)] {
        let least = |arena: &Bump, scratch: &mut Bump| {
            least_in(arena, scratch, ids, &hasty).map(|(cubes, exact)| (cubes.to_vec(), exact))
        };
        let loose = |arena: &Bump, scratch: &mut Bump| {
            loose_in(arena, scratch, ids, &unused, &hasty).map(|(cubes, exact)| (cubes.to_vec(), exact))
        };
        let wanted = least(&Bump::new(), &mut Bump::new()).unwrap();
        assert!(sweep(&wanted, |arena| least(arena, &mut Bump::new())) > 3);
        let wanted = loose(&Bump::new(), &mut Bump::new()).unwrap();
        assert!(sweep(&wanted, |arena| loose(arena, &mut Bump::new())) > 3);
    }
    // The scratch arena is emptied for each component: here it is for one.
    for ids in [dense(0, 40), dense(0, 160)] {
        let all = Bump::new();
        let set = Set::union_of(&all, ids).unwrap();
        let search = |scratch: &Bump| {
            cover_component(scratch, &set, 0, &V2, &mut 20).map(|(cubes, exact)| (cubes.to_vec(), exact))
        };
        let wanted = search(&Bump::new()).unwrap();
        assert!(sweep(&wanted, search) > 20);
    }
}
