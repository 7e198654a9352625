//! Covers against an oracle that tries everything, and what must hold for sets of any size.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

use std::collections::HashMap;

use iommu_assign::smmu::cover::{CoverError, CoverOptions, Cube, Flaw, check, least_cover};
use proptest::prelude::*;

const V2: CoverOptions = CoverOptions::new(0xffff, 0xffff);

/// All cubes over `bits` ID bits that ignore only `mask_bits`, as bit sets of their members.
fn all_cubes(bits: u32, mask_bits: u32) -> Vec<u32> {
    let masks = (0..1u32 << bits).filter(|mask| mask & !mask_bits == 0);
    masks
        .flat_map(|mask| (0..1u32 << bits).filter(move |id| id & mask == 0).map(move |id| (id, mask)))
        .map(|(id, mask)| (0..1u32 << bits).filter(|n| n & !mask == id).fold(0, |set, n| set | 1 << n))
        .collect()
}

/// The least number of disjoint cubes whose union is `set`: the lowest member is in one of them, so try each.
fn least(set: u32, cubes: &[u32], known: &mut HashMap<u32, usize>) -> usize {
    if set == 0 {
        return 0;
    }
    if let Some(&count) = known.get(&set) {
        return count;
    }
    let lowest = set & set.wrapping_neg();
    let inside = cubes.iter().filter(|cube| **cube & lowest != 0 && **cube & !set == 0);
    let count = 1 + inside.map(|cube| least(set & !cube, cubes, known)).min().unwrap();
    known.insert(set, count);
    count
}

fn members(set: u32) -> Vec<Cube> {
    (0..32).filter(|n| set >> n & 1 == 1).map(Cube::point).collect()
}

#[test]
fn every_set_of_four_bit_ids_is_solved_exactly() {
    let cubes = all_cubes(4, 0xf);
    let mut known = HashMap::new();
    for set in 0..1u32 << 16 {
        let cover = least_cover(&members(set), &V2).unwrap();
        assert!(cover.exact, "{set:#x}");
        assert_eq!(cover.cubes.len(), least(set, &cubes, &mut known), "{set:#x}: {:?}", cover.cubes);
    }
}

#[test]
fn every_set_of_three_bit_ids_under_every_mask_is_solved_exactly() {
    for mask_bits in 0..8 {
        let cubes = all_cubes(3, mask_bits);
        let mut known = HashMap::new();
        for set in 0..1u32 << 8 {
            let cover = least_cover(&members(set), &CoverOptions::new(7, mask_bits)).unwrap();
            assert!(cover.exact && cover.cubes.iter().all(|cube| cube.mask() & !mask_bits == 0));
            assert_eq!(cover.cubes.len(), least(set, &cubes, &mut known), "{set:#x} under {mask_bits:#x}");
        }
    }
}

/// Cubes with at most `ignored` ignored bits, anywhere in `bits`.
fn cubes(bits: u32, ignored: u32, count: usize) -> impl Strategy<Value = Vec<Cube>> {
    let cube = (any::<u32>(), any::<u32>(), any::<u32>(), any::<u32>());
    let cube = cube.prop_map(move |(id, a, b, c)| {
        let mut mask = a & b & c & bits;
        while mask.count_ones() > ignored {
            mask &= mask - 1;
        }
        Cube::new(id & bits, mask)
    });
    prop::collection::vec(cube, 0..count)
}

/// How many disjoint cubes the IDs are, the widest cut out of all that follow.
fn pieces(ids: &[Cube]) -> usize {
    let mut wide = ids.to_vec();
    wide.sort_by_key(|cube| std::cmp::Reverse(cube.size()));
    let mut all: Vec<Cube> = Vec::new();
    for cube in wide {
        let rest = |pieces: Vec<Cube>, own: &Cube| pieces.iter().flat_map(|piece| piece.minus(*own)).collect();
        let new = all.iter().fold(vec![cube], rest);
        all.extend(new);
    }
    all.len()
}

/// `cargo xtask search` asks for more.
fn cases() -> u32 {
    std::env::var("COVER_CASES").map_or(64, |cases| cases.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn five_bit_sets_are_least(set in any::<u32>()) {
        let cover = least_cover(&members(set), &V2).unwrap();
        prop_assert!(cover.exact);
        prop_assert_eq!(cover.cubes.len(), least(set, &all_cubes(5, 0x1f), &mut HashMap::new()));
    }

    #[test]
    fn five_bit_sets_are_least_under_any_mask(set in any::<u32>(), mask_bits in 0u32..32) {
        let cover = least_cover(&members(set), &CoverOptions::new(0x1f, mask_bits)).unwrap();
        prop_assert!(cover.exact);
        prop_assert_eq!(cover.cubes.len(), least(set, &all_cubes(5, mask_bits), &mut HashMap::new()));
    }

    /// Bits on which nothing depends cost nothing, however many IDs they make of it.
    #[test]
    fn wide_copies_of_small_sets_are_least(set in any::<u32>(), free in prop::sample::select(vec![0x00ff, 0x7f07, 0x5555])) {
        // The five bits of a small ID go where `free` has zeros.
        let spread = |id: u32| {
            let places = (0..16).filter(|bit| free >> bit & 1 == 0);
            places.zip(0..5).fold(0, |wide, (place, bit)| wide | (id >> bit & 1) << place)
        };
        let ids: Vec<Cube> = members(set).iter().map(|cube| Cube::new(spread(cube.id()), free)).collect();
        let cover = least_cover(&ids, &V2).unwrap();
        prop_assert!(cover.exact);
        prop_assert_eq!(cover.cubes.len(), least(set, &all_cubes(5, 0x1f), &mut HashMap::new()));
    }

    /// I-1: what a planner returns is disjoint and captures the given IDs and nothing else, whatever was given.
    #[test]
    fn any_input_is_covered_exactly(ids in cubes(0xffff, 6, 40)) {
        let cover = least_cover(&ids, &V2).unwrap();
        prop_assert_eq!(check(&ids, &cover.cubes), Ok(()));
        prop_assert!(cover.cubes.len() <= pieces(&ids));
        prop_assert!(cover.cubes.is_sorted());
    }

    #[test]
    fn thirty_two_bit_input_is_covered_or_refused(ids in cubes(u32::MAX, 12, 24)) {
        match least_cover(&ids, &CoverOptions { nodes: 500, ..CoverOptions::new(u32::MAX, u32::MAX) }) {
            Ok(cover) => prop_assert_eq!(check(&ids, &cover.cubes), Ok(())),
            Err(error) => prop_assert!(matches!(error, CoverError::TooComplex { .. }), "{error}"),
        }
    }

    /// the order of the input changes nothing.
    #[test]
    fn the_result_does_not_depend_on_order(
        (ids, shuffled) in cubes(0x3ff, 3, 24).prop_flat_map(|ids| (Just(ids.clone()), Just(ids).prop_shuffle()))
    ) {
        prop_assert_eq!(least_cover(&ids, &V2), least_cover(&shuffled, &V2));
    }

    #[test]
    fn too_few_nodes_still_give_a_cover(ids in cubes(0xff, 2, 40), nodes in 0u32..60) {
        let hasty = least_cover(&ids, &CoverOptions { nodes, ..V2 }).unwrap();
        prop_assert_eq!(check(&ids, &hasty.cubes), Ok(()));
        let patient = least_cover(&ids, &V2).unwrap();
        prop_assert!(patient.cubes.len() <= hasty.cubes.len());
        prop_assert!(!(hasty.exact && patient.cubes.len() < hasty.cubes.len()));
    }

    #[test]
    fn the_check_finds_what_was_broken(ids in cubes(0xff, 3, 12), at in any::<prop::sample::Index>(), bit in 0u32..8) {
        let cover = least_cover(&ids, &V2).unwrap();
        prop_assume!(!cover.cubes.is_empty());
        let at = at.index(cover.cubes.len());
        let mut missing = cover.cubes.clone();
        let gone = missing.remove(at);
        prop_assert!(matches!(check(&ids, &missing), Err(Flaw::Missed(_))));
        let mut wide = cover.cubes.clone();
        wide[at] = Cube::new(gone.id(), gone.mask() ^ 1 << bit);
        prop_assert!(check(&ids, &wide).is_err());
    }
}
