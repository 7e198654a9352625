//! Sets of stream IDs that real boards have, and shapes that planners elsewhere get wrong.

#![expect(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "a test fails by panicking")]

use iommu_assign::smmu::cover::{CoverError, CoverOptions, Cube, check, least_cover};

const V2: CoverOptions = CoverOptions::new(0x7fff, 0x7fff);

fn points(ids: impl IntoIterator<Item = u32>) -> Vec<Cube> {
    ids.into_iter().map(Cube::point).collect()
}

/// The naturally aligned cubes of a range.
fn range(first: u32, length: u32) -> Vec<Cube> {
    let (mut at, end, mut cubes) = (first, first + length, Vec::new());
    while at < end {
        let bits = at.trailing_zeros().min((end - at).ilog2());
        cubes.push(Cube::new(at, (1 << bits) - 1));
        at += 1 << bits;
    }
    cubes
}

/// The number of entries, which must be proven least.
fn least(ids: &[Cube], options: &CoverOptions) -> usize {
    let cover = least_cover(ids, options).unwrap();
    assert!(cover.exact, "not proven: {:?}", cover.cubes);
    cover.cubes.len()
}

const VENUS: [u32; 20] = [
    0x00, 0x01, 0x0a, 0x07, 0x0e, 0x0f, 0x08, 0x09, 0x0b, 0x0c, 0x0d, 0x10, 0x11, 0x21, 0x28, 0x29, 0x2b, 0x2c, 0x2d,
    0x31,
];

#[test]
fn msm8996_venus_needs_six_entries() {
    assert_eq!(least(&points(VENUS), &V2), 6);
}

/// Each part of a set had a budget of its own, so that a search in an add ran for two seconds.
#[test]
fn c14_one_budget_of_nodes_serves_all_parts_of_a_set() {
    let exact = |ids: &[Cube], nodes| least_cover(ids, &CoverOptions { nodes, ..V2 }).unwrap().exact;
    let scattered =
        |seed: u32| (0..0x40).filter(|id| (((id + 1) * (seed | 1) * 0x9e37) >> 3) & 3 != 0).map(Cube::point).collect();
    let mut hard = (1..).map(scattered).filter(|ids: &Vec<Cube>| !exact(ids, 20) && exact(ids, 300));
    let one = hard.next().unwrap();
    let enough = (20..300).find(|nodes| exact(&one, *nodes)).unwrap();
    let parts: Vec<Cube> =
        [0, 0x3000, 0x5000].iter().flat_map(|base| one.iter().map(move |id| Cube::point(base | id.id()))).collect();
    assert!(!exact(&parts, enough) && !exact(&parts, 2 * enough));
    assert!(exact(&parts, 3 * enough));
}

#[test]
fn sdm660_multimedia_needs_eight_entries() {
    let venus = VENUS.map(|id| if id == 0x2b { 0x42b } else { id | 0x400 });
    let groups = [points(venus), points([0]), points(0xc00..=0xc03)];
    assert_eq!(groups.iter().map(|ids| least(ids, &V2)).sum::<usize>(), 8);
}

#[test]
fn juno_pl330_needs_two_entries() {
    assert_eq!(least(&points(0..=8), &V2), 2);
    let cover = least_cover(&points(0..=8), &V2).unwrap();
    assert_eq!(cover.cubes, [Cube::new(0, 7), Cube::point(8)]);
}

#[test]
fn overdrive_masks_with_holes() {
    assert_eq!(least(&[Cube::new(0, 0x1f)], &V2), 1);
    assert_eq!(least(&[Cube::new(0, 0x17)], &V2), 1);
    assert_eq!(least(&[Cube::new(0, 0x17), Cube::new(0x8, 0x17)], &V2), 1);
    assert_eq!(least(&points([0, 2, 0x40, 0x42]), &V2), 1);
    assert_eq!(least(&points([0xe, 0xf, 0x1e]), &V2), 2);
}

#[test]
fn qualcomm_masks_with_holes() {
    let crypto = [0x704, 0x706, 0x714, 0x716].map(|id| Cube::new(id, 1));
    assert_eq!(least_cover(&crypto, &V2).unwrap().cubes, [Cube::new(0x704, 0x13)]);
    // Camera: pairs that name one set twice.
    let camera = [(0x800, 0x400), (0xc00, 0x400), (0x820, 0x400), (0xc20, 0x400)];
    assert_eq!(least(&camera.map(|(id, mask)| Cube::new(id, mask)), &V2), 1);
    let compute = (1..=8).map(|n| Cube::new(0x1020 | n, 0x1420));
    assert_eq!(least(&compute.collect::<Vec<_>>(), &V2), 4);
}

#[test]
fn zynqmp_sata_is_the_one_that_merges() {
    let sata = points(0x4c0..=0x4c3);
    let singles: Vec<u32> =
        (0x14e8..=0x14ef).chain(0x868..=0x873).chain(0x874..=0x877).chain([0x860, 0x861, 0x4d0]).collect();
    assert_eq!(singles.len() + sata.len(), 31);
    assert_eq!(singles.len() + least(&sata, &V2), 28);
    // All in one domain.
    assert_eq!(least(&[points(singles), sata].concat(), &V2), 6);
}

#[test]
fn pci_maps_are_ranges() {
    assert_eq!(least(&points(0x1c10..0x1c20), &V2), 1);
    assert_eq!(least(&[points(0x1c00..0x1c10), points(0x1c10..0x1c20)].concat(), &V2), 1);
    assert_eq!(least(&[range(0x480, 0x20), range(0x4a0, 0x20), range(0x4c0, 0x20)].concat(), &V2), 2);
    assert_eq!(least(&range(0x17, 0xe), &V2), 4);
    let wide = CoverOptions::new(0xffff, 0xffff);
    assert_eq!(least_cover(&range(0, 0x10000), &wide).unwrap().cubes, [Cube::new(0, 0xffff)]);
    assert_eq!(least(&range(1, 0xffff), &wide), 16);
    assert_eq!(least(&[], &wide), 0);
}

#[test]
fn a_6_ids_and_masks_wider_than_the_hardware_are_refused() {
    let id = Cube::point(0x8000);
    assert_eq!(least_cover(&[id], &V2), Err(CoverError::TooWide { cube: id, id_bits: 0x7fff }));
    let mask = Cube::new(0, 0x8001);
    assert_eq!(least_cover(&[mask], &V2), Err(CoverError::TooWide { cube: mask, id_bits: 0x7fff }));
    assert!(least_cover(&range(0, 0x10000), &V2).is_err(), "never truncated to 15 bits");
}

#[test]
fn bits_that_the_hardware_cannot_ignore_are_enumerated() {
    let partial = CoverOptions::new(0x7fff, 0x7f80);
    let cover = least_cover(&[Cube::new(0x100, 0x81)], &partial).unwrap();
    assert_eq!(cover.cubes, [Cube::new(0x100, 0x80), Cube::new(0x101, 0x80)]);
    assert_eq!(least(&range(0, 0x100), &partial), 128);
    let too_many = least_cover(&range(0, 0x100), &CoverOptions { max_cubes: 100, ..partial });
    assert_eq!(too_many, Err(CoverError::TooComplex { limit: 100 }));
    let none = CoverOptions::new(0x7fff, 0);
    assert_eq!(least(&points(0..16), &none), 16);
}

#[test]
fn a_mask_that_cannot_end_is_refused_at_once() {
    let none = CoverOptions::new(u32::MAX, 0);
    assert!(matches!(least_cover(&[Cube::new(0, u32::MAX)], &none), Err(CoverError::TooComplex { .. })));
}

#[test]
fn a_thousand_scattered_ids_end_in_a_valid_cover() {
    let mut state = 1u32;
    let ids = points((0..1000).map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 18
    }));
    let cover = least_cover(&ids, &CoverOptions::new(0xffff, 0xffff)).unwrap();
    assert_eq!(check(&ids, &cover.cubes), Ok(()));
    assert!(cover.cubes.len() < 1000);
}
