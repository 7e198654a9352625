//! Each operation, and devices that come and go: who may refuse it, what it does, how it may fail.

use std::collections::BTreeSet;

use super::cover::Cube;
use super::instances::{self, Gone};
use super::moves::{self, block};
use super::{After, Lacking, Outcome, Owner, Refusal, Specification, claims, entries, guests, is_on, queue};
use crate::op::{Guest, Op, Side, Slot};

pub(super) type Steps = Vec<(Outcome, Specification)>;

pub(super) fn step(state: &Specification, op: Op) -> Steps {
    match op {
        Op::Add(slot) => add(state, slot),
        Op::Remove(slot) => remove(state, slot),
        Op::Assign(slot, guest) => moves::assign(state, slot, guest, false),
        Op::AssignGroup(slot, guest) => moves::assign(state, slot, guest, true),
        Op::Reassign(slot, guest) => moves::reassign(state, slot, guest, false),
        Op::ReassignGroup(slot, guest) => moves::reassign(state, slot, guest, true),
        Op::Deassign(slot) => moves::deassign(state, slot, false),
        Op::DeassignGroup(slot) => moves::deassign(state, slot, true),
        Op::Reserve(slot, guest) => claims::reserve(state, slot, guest),
        Op::Commit(slot) => claims::commit(state, slot),
        Op::Abandon(slot) => claims::abandon(state, slot),
        Op::Submit(ask) => queue::submit(state, ask),
        Op::Cancel(slot) => queue::cancel(state, slot),
        Op::Work => queue::work(state),
        Op::TestAssign(slot, guest) => moves::test_assign(state, slot, guest),
        Op::AssignOld(slot, guest) => {
            let known = state.old_handles.contains(&slot) && state.guests.contains_key(&guest);
            let gone = BTreeSet::from([Refusal::Gone]);
            if known { refuse(state, gone) } else { skip(state) }
        }
        Op::Create(guest) => guests::create(state, guest),
        Op::Destroy(guest) => guests::destroy(state, guest),
        Op::Map(guest) => guests::map(state, guest),
        Op::Unmap(guest) => guests::unmap(state, guest),
        Op::Flush(guest) => guests::flush_op(state, guest),
        Op::Dma(slot, choice) => {
            let reached = slot.stream_id(choice).map(|(side, id)| state.reach(side, id.into()));
            reached.map_or_else(|| skip(state), |guest| vec![(Outcome::Reached(guest), state.clone())])
        }
        Op::DmaSecond(slot, choice) => guests::dma_second(state, slot, choice),
        Op::DmaUnknown(_) => vec![(Outcome::Reached(None), state.clone())],
        Op::HandleGlobal(side) | Op::HandleContext(side, _) => {
            if state.side(side).registered {
                done(state.clone())
            } else {
                refuse(state, BTreeSet::from([Refusal::NotFound]))
            }
        }
        Op::Audit => done(state.clone()),
        Op::Unregister(side) => instances::unregister(state, side),
        Op::ForceUnregister(side) => instances::force_unregister(state, side),
        Op::Register(side) => instances::register(state, side),
        Op::Stick(side) => changed(state, |next| next.side_mut(side).stuck = true),
        Op::LoseSync(side) => changed(state, |next| next.side_mut(side).next_lost = true),
        Op::Heal(side) => changed(state, |next| {
            next.side_mut(side).stuck = false;
            next.side_mut(side).next_lost = false;
        }),
        Op::BreakHook(slot) => changed(state, |next| {
            next.broken.insert(slot);
        }),
    }
}

pub(super) fn skip(state: &Specification) -> Steps {
    vec![(Outcome::Skipped, state.clone())]
}

pub(super) fn done(state: Specification) -> Steps {
    vec![(Outcome::Done, state)]
}

pub(super) fn changed(state: &Specification, change: impl FnOnce(&mut Specification)) -> Steps {
    let mut next = state.clone();
    change(&mut next);
    done(next)
}

/// Where several reasons hold, any of them may be told.
pub(super) fn refuse(state: &Specification, reasons: BTreeSet<Refusal>) -> Steps {
    reasons.into_iter().map(|reason| (Outcome::refused(reason), state.clone())).collect()
}

// --- devices come and go ---

fn add(state: &Specification, slot: Slot) -> Steps {
    let mut reasons = BTreeSet::new();
    if state.devices.contains_key(&slot) {
        let is_going = state.marked.contains(&slot);
        reasons.insert(if is_going { Refusal::Busy } else { Refusal::AlreadyRegistered });
    }
    if state.met(slot).into_iter().chain(slot.parent()).any(|met| claims::is_claimed(state, met)) {
        reasons.insert(Refusal::Busy);
    }
    if slot.streams().is_empty() {
        reasons.insert(Refusal::NoStreams);
    }
    let is_parent = |slot: Slot| state.devices.contains_key(&slot) && !state.marked.contains(&slot);
    if slot.parent().is_some_and(|parent| !is_parent(parent)) {
        reasons.insert(Refusal::ParentMissing);
    }
    for (side, id, mask) in slot.streams() {
        if !state.side(*side).registered {
            reasons.insert(Refusal::ProviderMissing(*side));
        }
        if state.side(*side).leaving {
            reasons.insert(Refusal::ProviderGone(*side));
        }
        if (id | mask) & !state.side(*side).part.id_bits != 0 {
            reasons.insert(Refusal::TooWide(*side));
        }
    }
    // One that would bridge two owners, or share a live entry without the policy's yes (contract I-11).
    let shared = state.sharers(slot).into_iter().filter_map(|sharer| state.owner(sharer));
    let shares_forbidden = shared.into_iter().any(|guest| !guest.may_have(slot) && shares_live(state, slot, guest));
    if state.owners(state.met(slot)).len() > 1 || shares_forbidden {
        reasons.insert(Refusal::GroupConflict);
    }
    let mut may_be_told = BTreeSet::new();
    let mut nexts = vec![state.clone()];
    for side in Side::ALL.into_iter().filter(|side| is_on(slot, *side)) {
        let ways = entries::after_add(state, slot, side);
        let (fitting, excess): (Vec<_>, Vec<_>) =
            ways.into_iter().partition(|way| way.len() <= state.side(side).part.entries);
        let lacking = Refusal::Exhausted(side, Lacking::Entries);
        if fitting.is_empty() {
            reasons.insert(lacking);
        } else if !excess.is_empty() {
            may_be_told.insert(lacking);
        }
        nexts = with_entries(&nexts, side, &fitting);
    }
    if !reasons.is_empty() {
        reasons.extend(may_be_told);
        return refuse(state, reasons);
    }
    let registered = |mut next: Specification| {
        next.devices.insert(slot, Owner::Blocked);
        if !next.handles.insert(slot) {
            next.old_handles.insert(slot);
        }
        (Outcome::Done, next)
    };
    let mut steps = refuse(state, may_be_told);
    steps.extend(nexts.into_iter().map(registered));
    steps
}

/// Each state with each set of entries.
fn with_entries(states: &[Specification], side: Side, ways: &[BTreeSet<Cube>]) -> Vec<Specification> {
    let with = |state: &Specification, way: &BTreeSet<Cube>| {
        let mut next = state.clone();
        next.side_mut(side).entries.clone_from(way);
        next
    };
    states.iter().flat_map(|state| ways.iter().map(|way| with(state, way))).collect()
}

/// Whether an entry that translates for `guest` captures a stream of `slot`.
fn shares_live(state: &Specification, slot: Slot, guest: Guest) -> bool {
    Side::ALL.into_iter().any(|side| slot.ids(side).any(|(_, id)| state.reach(side, id.into()) == Some(guest)))
}

fn remove(state: &Specification, slot: Slot) -> Steps {
    if !state.devices.contains_key(&slot) {
        return refuse(state, BTreeSet::from([Refusal::NotFound]));
    }
    let stays = |child: &&Slot| child.parent() == Some(slot) && !state.marked.contains(*child);
    if state.devices.keys().any(|child| stays(&child)) {
        return refuse(state, BTreeSet::from([Refusal::HasChildren]));
    }
    claims::remove_later(state, slot).unwrap_or_else(|| remove_now(state, slot))
}

/// The removal of a registered device to which nothing stands in the way.
pub(super) fn remove_now(state: &Specification, slot: Slot) -> Steps {
    let mut next = state.clone();
    let failed = block(&mut next, &BTreeSet::from([slot]), &Side::ALL);
    next.devices.remove(&slot);
    let mut nexts = Gone::without(&next, slot);
    for side in Side::ALL {
        let used = state.used(slot, side);
        nexts = with_entries(&nexts, side, &entries::after_remove(&next, &used, side));
    }
    let still: BTreeSet<Slot> = state.sharers(slot).into_iter().filter(|mate| state.owner(*mate).is_some()).collect();
    let end = |mut next: Specification| {
        for side in Side::ALL {
            next.side_mut(side).undrained.remove(&slot);
        }
        match &failed {
            failed if !failed.is_empty() => failures(&next, failed.clone(), After::Removed),
            _ if still.is_empty() => done(next),
            _ => vec![(Outcome::Removed(still.clone()), next)],
        }
    };
    nexts.into_iter().flat_map(end).collect()
}

/// What was done, but for one of these, of which any may be told.
pub(super) fn failures(next: &Specification, failed: Vec<Refusal>, after: After) -> Steps {
    failed.into_iter().map(|refusal| (Outcome::Failed(refusal, after), next.clone())).collect()
}
