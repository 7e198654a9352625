//! Which stream-map entries there may be after a device came or went (contract I-1, I-11, I-15).
//!
//! The contract wants entries that capture exactly a group's IDs, the least that a bounded search finds; it forbids that
//! live ones move, and lets one be widened by the group's own IDs. When a group in fault is packed anew is the driver's
//! choice, and so is every least cover: all of that is allowed here.

use std::collections::BTreeSet;

use super::cover::{Cube, captures, ids, least_covers};
use super::{Specification, meets_cube};
use crate::op::{Side, Slot};

type Entries = BTreeSet<Cube>;

/// Every set of entries that may be there when `slot` has been added.
pub(super) fn after_add(state: &Specification, slot: Slot, side: Side) -> Vec<Entries> {
    let here = state.side(side);
    let shared: Entries = here.entries.iter().copied().filter(|cube| meets_cube(slot, side, *cube)).collect();
    let captured: BTreeSet<u32> = here.entries.iter().copied().flat_map(ids).collect();
    let missing: BTreeSet<u32> = own_ids(slot, side).filter(|id| !captured.contains(id)).collect();
    let group = Component::around(state, side, &shared);
    let mask_bits = here.part.mask_bits;
    let mut all = Vec::new();
    let list: Vec<Cube> = shared.iter().copied().collect();
    let widenings = if group.is_live(state) { widened(&list, &missing, mask_bits) } else { vec![(list, missing)] };
    for (wider, rest) in widenings {
        let kept: Entries = here.entries.difference(&shared).copied().chain(wider).collect();
        let covers = least_covers(&rest, mask_bits).into_iter();
        all.extend(covers.map(|cover| kept.iter().copied().chain(cover).collect()));
    }
    if !shared.is_empty() && !group.is_live(state) {
        let mut members = group.users;
        members.insert(slot);
        let others: Entries = here.entries.difference(&group.entries).copied().collect();
        all.extend(packed(&members, side, mask_bits).into_iter().map(|fresh| &others | &fresh));
    }
    all
}

/// Every set of entries that may be there when a device, which is no longer in `state`, has given back what it `used`.
pub(super) fn after_remove(state: &Specification, used: &Entries, side: Side) -> Vec<Entries> {
    let here = state.side(side);
    let kept: Entries = here.entries.iter().copied().filter(|cube| state.users(side, *cube).next().is_some()).collect();
    let mut ways = vec![kept.clone()];
    let mut left: Entries = kept.intersection(used).copied().collect();
    while let Some(cube) = left.pop_first() {
        let group = Component::around(state, side, &BTreeSet::from([cube]));
        left = left.difference(&group.entries).copied().collect();
        if group.is_live(state) {
            continue;
        }
        let fresh = packed(&group.users, side, here.part.mask_bits);
        let repacked = |way: &Entries| {
            let others: Entries = way.difference(&group.entries).copied().collect();
            let ways: Vec<Entries> = fresh.iter().map(|fresh| &others | fresh).collect();
            ways
        };
        let anew: Vec<Entries> = ways.iter().flat_map(repacked).collect();
        ways.extend(anew);
    }
    ways.sort();
    ways.dedup();
    ways
}

/// Entries that are connected by the devices that use them, and these devices.
struct Component {
    entries: Entries,
    users: BTreeSet<Slot>,
}

impl Component {
    fn around(state: &Specification, side: Side, entries: &Entries) -> Self {
        let mut all = Self { entries: entries.clone(), users: BTreeSet::new() };
        let mut left: Vec<Cube> = entries.iter().copied().collect();
        while let Some(cube) = left.pop() {
            for user in state.users(side, cube) {
                all.users.insert(user);
                let uses = state.side(side).entries.iter().copied().filter(|cube| meets_cube(user, side, *cube));
                left.extend(uses.filter(|cube| all.entries.insert(*cube)));
            }
        }
        all
    }

    fn is_live(&self, state: &Specification) -> bool {
        self.users.iter().any(|user| state.owner(*user).is_some())
    }
}

/// Every least way to give these devices entries from nothing: one cover for each part whose streams meet.
fn packed(devices: &BTreeSet<Slot>, side: Side, mask_bits: u32) -> Vec<Entries> {
    let mut left = devices.clone();
    let mut ways = vec![Entries::new()];
    while let Some(first) = left.pop_first() {
        let mut part: BTreeSet<u32> = own_ids(first, side).collect();
        while let Some(next) = left.iter().copied().find(|slot| own_ids(*slot, side).any(|id| part.contains(&id))) {
            left.remove(&next);
            part.extend(own_ids(next, side));
        }
        let covers = least_covers(&part, mask_bits);
        ways =
            ways.iter().flat_map(|way| covers.iter().map(|cover| way.iter().chain(cover).copied().collect())).collect();
    }
    ways
}

/// Every way to widen some of these entries by IDs that are `missing`, with what is missing still.
fn widened(entries: &[Cube], missing: &BTreeSet<u32>, mask_bits: u32) -> Vec<(Vec<Cube>, BTreeSet<u32>)> {
    let Some((&(id, mask), others)) = entries.split_first() else { return vec![(Vec::new(), missing.clone())] };
    let mut ways = Vec::new();
    for wider in (0..0x40_u32).filter(|wider| wider & mask == mask && wider & !mask & !mask_bits == 0) {
        let cube = (id & !wider, wider);
        if !ids(cube).all(|new| captures((id, mask), new) || missing.contains(&new)) {
            continue;
        }
        let rest = missing.iter().copied().filter(|id| !captures(cube, *id)).collect();
        for (mut way, rest) in widened(others, &rest, mask_bits) {
            way.push(cube);
            ways.push((way, rest));
        }
    }
    ways
}

fn own_ids(slot: Slot, side: Side) -> impl Iterator<Item = u32> {
    slot.ids(side).map(|(_, id)| id.into())
}
