//! Which stream-map entries there may be after a device came, went to fault or left (contract I-1, I-11, I-15).
//!
//! A device gets a least cover of its own streams, without what entries of its group capture already: those are shared.
//! A group's entries are packed anew only when entries run out, and only in fault. An entry that a device has left is refitted
//! to what its users have, where it is in fault and entries suffice. Which of equal covers is taken, and along which bits a cube
//! is cut, is the driver's choice: all of that is allowed here.

use std::collections::BTreeSet;

use super::Specification;
use super::cover::{Cube, ids, least_covers};
use crate::op::{Side, Slot};

pub(super) type Entries = BTreeSet<Cube>;

/// What an add may come to at one SMMU.
#[derive(Debug, Default)]
pub(super) struct Added {
    /// Every set of entries that may be there then.
    pub(super) ways: Vec<Entries>,
    /// The entries may run out.
    pub(super) may_lack: bool,
}

/// What may come of it when `slot` is added to `mates`, with which it will be one group.
pub(super) fn after_add(state: &Specification, slot: Slot, mates: &BTreeSet<Slot>, side: Side) -> Added {
    let here = state.side(side);
    let own: BTreeSet<u32> = own_ids(slot, side).collect();
    let mut ways = BTreeSet::new();
    for cover in least_covers(&own, here.part.mask_bits) {
        let pieces = product(cover.iter().map(|cube| cuts(*cube, &here.entries)));
        ways.extend(pieces.into_iter().map(|pieces| here.entries.union(&pieces).copied().collect::<Entries>()));
    }
    let all = ways.len();
    ways.retain(|way| way.len() <= here.part.entries);
    if ways.len() == all && all > 0 {
        return Added { ways: ways.into_iter().collect(), may_lack: false };
    }
    let packed = repacked(state, slot, mates, side);
    let may_lack = packed.is_empty();
    ways.extend(packed);
    Added { ways: ways.into_iter().collect(), may_lack }
}

/// Every least way to give `slot` and its mates entries from nothing, if they suffice and nothing of theirs translates.
fn repacked(state: &Specification, slot: Slot, mates: &BTreeSet<Slot>, side: Side) -> Vec<Entries> {
    let here = state.side(side);
    let theirs: Entries = mates.iter().flat_map(|mate| state.used(*mate, side)).collect();
    let others: Entries = here.entries.difference(&theirs).copied().collect();
    if theirs.iter().any(|cube| state.is_live(side, *cube)) {
        return Vec::new();
    }
    let members = mates.iter().filter(|mate| state.is_at(**mate, side)).chain([&slot]);
    let wanted: BTreeSet<u32> = members.flat_map(|member| own_ids(*member, side)).collect();
    let covers = least_covers(&wanted, here.part.mask_bits).into_iter();
    let ways = covers.map(|cover| others.iter().copied().chain(cover).collect::<Entries>());
    ways.filter(|way| way.len() <= here.part.entries).collect()
}

/// Every set of entries that may be there when a device, which is no longer in `state`, has given back what it `used`.
pub(super) fn after_remove(state: &Specification, used: &Entries, side: Side) -> Vec<Entries> {
    let here = state.side(side);
    let is_used = |cube: &Cube| state.users(side, *cube).next().is_some();
    let kept: Entries = here.entries.iter().copied().filter(is_used).collect();
    let left: Entries = kept.intersection(used).copied().collect();
    let free = |entries: &Entries| here.part.entries.saturating_sub(entries.len());
    // The entries that it had alone may become free before the others are refitted, or after.
    refitted(state, side, &kept, &left, free(&here.entries)..=free(&kept))
}

/// Every set of entries that may be there when a drain of entries that are in fault now has ended.
pub(super) fn after_block(state: &Specification, side: Side) -> Vec<Entries> {
    let here = state.side(side);
    let free = here.part.entries.saturating_sub(here.entries.len());
    refitted(state, side, &here.entries, &here.entries, free..=free)
}

/// Fits those of `entries` that are `loose`, and in fault, to what their users have. Each that fits takes free ones, of which
/// there are this many.
fn refitted(
    state: &Specification,
    side: Side,
    entries: &Entries,
    loose: &Entries,
    free: std::ops::RangeInclusive<usize>,
) -> Vec<Entries> {
    let (least, most) = free.into_inner();
    let mut ways = vec![(entries.clone(), least, most)];
    for cube in loose.iter().filter(|cube| !state.is_live(side, **cube)) {
        let wanted: BTreeSet<u32> = state.users(side, *cube).flat_map(|user| own_ids(user, side)).collect();
        if ids(*cube).all(|id| wanted.contains(&id)) {
            continue;
        }
        let pieces = pieces_of(state, side, *cube);
        let mut next = Vec::new();
        for (way, least, most) in ways {
            for pieces in &pieces {
                let more = pieces.len().saturating_sub(1);
                if more <= most {
                    let others = way.iter().copied().filter(|other| other != cube);
                    let refitted = others.chain(pieces.iter().copied()).collect();
                    next.push((refitted, least.saturating_sub(more), most.saturating_sub(more)));
                }
                if more > least {
                    next.push((way.clone(), least, most));
                }
            }
        }
        ways = next;
    }
    let ways: BTreeSet<Entries> = ways.into_iter().map(|(way, ..)| way).collect();
    ways.into_iter().collect()
}

/// Every way to capture those IDs of a cube that its users have: what each user's own cover has in it.
fn pieces_of(state: &Specification, side: Side, cube: Cube) -> Vec<Entries> {
    let mask_bits = state.side(side).part.mask_bits;
    let mut ways = vec![Entries::new()];
    for user in state.users(side, cube) {
        let own: BTreeSet<u32> = own_ids(user, side).collect();
        let covers = least_covers(&own, mask_bits);
        let with = |way: &Entries| {
            let mut all = Vec::new();
            for cover in &covers {
                let theirs = cover.iter().filter_map(|own| intersection(*own, cube));
                let fresh = product(theirs.map(|part| cuts(part, way)));
                all.extend(fresh.into_iter().map(|fresh| way.union(&fresh).copied().collect::<Entries>()));
            }
            all
        };
        ways = ways.iter().flat_map(with).collect();
    }
    let ways: BTreeSet<Entries> = ways.into_iter().collect();
    ways.into_iter().collect()
}

/// Every way to cut what `entries` capture already out of a cube, along one bit after the other.
fn cuts(cube: Cube, entries: &Entries) -> Vec<Entries> {
    let (id, mask) = cube;
    let met: Vec<Cube> = entries.iter().copied().filter(|other| intersection(cube, *other).is_some()).collect();
    if met.is_empty() {
        return vec![Entries::from([cube])];
    }
    if met.iter().any(|(_, other)| mask & !other == 0) {
        return vec![Entries::new()];
    }
    let useful = met.iter().fold(0, |bits, (_, other)| bits | (mask & !other));
    let bits = (0..u32::BITS).map(|bit| 1_u32 << bit).filter(|bit| useful & bit != 0);
    let ways: BTreeSet<Entries> = bits
        .flat_map(|bit| {
            product([(id, mask & !bit), (id | bit, mask & !bit)].map(|half| cuts(half, entries)).into_iter())
        })
        .collect();
    ways.into_iter().collect()
}

/// One way of each, together.
fn product(parts: impl Iterator<Item = Vec<Entries>>) -> Vec<Entries> {
    parts.fold(vec![Entries::new()], |ways, part| {
        ways.iter().flat_map(|way| part.iter().map(|more| way.union(more).copied().collect())).collect()
    })
}

fn intersection(one: Cube, other: Cube) -> Option<Cube> {
    let mask = one.1 & other.1;
    let meet = (one.0 ^ other.0) & !(one.1 | other.1) == 0;
    meet.then_some(((one.0 | other.0) & !mask, mask))
}

fn own_ids(slot: Slot, side: Side) -> impl Iterator<Item = u32> {
    slot.ids(side).map(|(_, id)| id.into())
}

#[cfg(test)]
mod tests {
    use super::super::cover::captures;
    use super::*;

    #[test]
    fn what_entries_capture_is_cut_out_of_a_cube() {
        let entries = Entries::from([(0xc, 0)]);
        let ways = cuts((0x8, 0x7), &entries);
        assert_eq!(ways.len(), 6, "three bits, in any order");
        for way in ways {
            assert_eq!(way.len(), 3);
            for id in 0..0x40 {
                let times = way.iter().filter(|cube| captures(**cube, id)).count();
                assert_eq!(times, usize::from((0x8..0x10).contains(&id) && id != 0xc));
            }
        }
        assert_eq!(cuts((0x8, 0x7), &Entries::from([(0x0, 0xf)])), [Entries::new()], "one captures it all");
        assert_eq!(intersection((0xf, 0x20), (0x8, 0x7)), Some((0xf, 0)));
    }
}
