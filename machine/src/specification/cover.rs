//! Which entries a device may be given: every least exact cover of its stream IDs, found by trying everything.

use std::collections::BTreeSet;

/// An (ID, mask) pair of the stream map.
pub(super) type Cube = (u32, u32);

/// Stream IDs of the universe are below this.
const IDS: u32 = 0x40;

/// Whether a cube captures an ID.
pub(super) const fn captures((base, mask): Cube, id: u32) -> bool {
    (id ^ base) & !mask == 0
}

/// The IDs that a cube captures.
pub(super) fn ids(cube: Cube) -> impl Iterator<Item = u32> {
    (0..IDS).filter(move |id| captures(cube, *id))
}

/// Every way to capture exactly `wanted` by the least number of disjoint cubes, with masks of `mask_bits` only.
pub(super) fn least_covers(wanted: &BTreeSet<u32>, mask_bits: u32) -> Vec<Vec<Cube>> {
    let masks: Vec<u32> = (0..IDS).filter(|mask| mask & !mask_bits == 0).collect();
    // Deepening: the first number of cubes that suffices is the least.
    (0..=wanted.len())
        .map(|budget| {
            let mut found = Vec::new();
            extend(wanted, &masks, budget, &mut Vec::new(), &mut found);
            found
        })
        .find(|found| !found.is_empty())
        .unwrap_or_default()
}

fn extend(rest: &BTreeSet<u32>, masks: &[u32], budget: usize, chosen: &mut Vec<Cube>, found: &mut Vec<Vec<Cube>>) {
    let Some(&lowest) = rest.first() else {
        found.push(chosen.clone());
        return;
    };
    let Some(budget) = budget.checked_sub(1) else { return };
    // The lowest ID that is left is the lowest of its cube, so that each cover is found once.
    for &mask in masks.iter().filter(|mask| lowest & **mask == 0) {
        let cube = (lowest, mask);
        if ids(cube).all(|id| rest.contains(&id)) {
            let left = rest.iter().copied().filter(|id| (id ^ lowest) & !mask != 0).collect();
            chosen.push(cube);
            extend(&left, masks, budget, chosen, found);
            chosen.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn least_covers_are_found_and_all_of_them() {
        let cover = |ids: &[u32], mask_bits| least_covers(&ids.iter().copied().collect(), mask_bits);
        assert_eq!(cover(&[], 0x7fff), [[]]);
        assert_eq!(cover(&[0x10, 0x11, 0x12, 0x13], 0x7fff), [[(0x10, 3)]]);
        assert_eq!(cover(&[1, 2], 0x7fff), [[(1, 0), (2, 0)]]);
        assert_eq!(cover(&[0, 1, 2], 0x7fff).len(), 2, "which pair merges is free");
        assert_eq!(cover(&[0, 1], 0), [[(0, 0), (1, 0)]], "hardware without masks");
    }
}
