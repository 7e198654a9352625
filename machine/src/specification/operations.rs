//! Each operation, and devices that come and go: who may refuse it, what it does, how it may fail.

use std::collections::BTreeSet;

use super::cover::Cube;
use super::instances::{self, Gone};
use super::moves::{self, block};
use super::{After, Lacking, Lacks, Outcome, Owner, Record, Refusal, Specification};
use super::{claims, comings, entries, guests, is_on, queue};
use crate::op::{Op, Side, Slot};

pub(super) type Steps = Vec<(Outcome, Specification)>;

pub(super) fn step(state: &Specification, op: Op) -> Steps {
    match op {
        Op::Add(slot) if !slot.is_offered() => skip(state),
        Op::Add(slot) => add(state, slot),
        Op::Remove(slot) => remove(state, slot),
        Op::Assign(slot, guest) => moves::assign(state, slot, guest, false),
        Op::AssignGroup(slot, guest) => moves::assign(state, slot, guest, true),
        Op::Reassign(slot, guest) => moves::reassign(state, slot, guest, false),
        Op::ReassignGroup(slot, guest) => moves::reassign(state, slot, guest, true),
        Op::Deassign(slot) => moves::deassign(state, slot, false),
        Op::DeassignGroup(slot) => moves::deassign(state, slot, true),
        Op::Reserve(slot, _) if !slot.is_offered() => skip(state),
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
        Op::Heal(side) => changed(state, |next| next.side_mut(side).heal()),
        Op::CutPower(side) => changed(state, |next| next.side_mut(side).powered = false),
        Op::RestorePower(side) => changed(state, |next| next.side_mut(side).powered = true),
        Op::BreakHook(slot) => changed(state, |next| {
            next.broken.insert(slot);
        }),
        Op::Plug => comings::plug(state),
        Op::Unplug => comings::unplug(state),
        Op::Pull => comings::pull(state),
        Op::SwitchOn => comings::switch_on(state),
        Op::SwitchOff => comings::switch_off(state),
        Op::Apply(sheet) => comings::apply(state, sheet),
        Op::Revert(sheet) => comings::revert(state, sheet),
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

pub(super) fn add(state: &Specification, slot: Slot) -> Steps {
    let mut reasons = BTreeSet::new();
    if state.devices.contains_key(&slot) {
        let is_leaving = state.is_leaving_device(slot);
        reasons.insert(if is_leaving { Refusal::Busy } else { Refusal::AlreadyRegistered });
    }
    let joined = state.joined(slot);
    let parent_group = slot.parent().map(|parent| state.group(parent)).unwrap_or_default();
    if joined.iter().flatten().chain(&parent_group).any(|met| state.reserved.contains_key(met)) {
        reasons.insert(Refusal::Busy);
    }
    if slot.streams().is_empty() {
        reasons.insert(Refusal::NoStreams);
    }
    let stays = |slot: Slot| state.devices.contains_key(&slot) && !state.is_leaving_device(slot);
    if slot.parent().is_some_and(|parent| !stays(parent)) {
        reasons.insert(Refusal::ParentMissing);
    }
    for (side, id, mask) in slot.streams() {
        let here = state.side(*side);
        if !here.registered {
            reasons.insert(Refusal::ProviderMissing(*side));
        }
        if here.leaving {
            reasons.insert(Refusal::ProviderGone(*side));
        }
        if (id | mask) & !here.part.id_bits != 0 {
            reasons.insert(Refusal::TooWide(*side));
        }
        if here.registered && !here.powered {
            reasons.insert(Refusal::NoPower(*side));
        }
    }
    // One that would bridge two owners, or share a live entry without the policy's yes (contract I-11).
    let opens =
        Side::ALL.into_iter().flat_map(|side| slot.ids(side)).filter_map(|(side, id)| state.reach(side, id.into()));
    if state.owners(&joined).len() > 1 || opens.into_iter().any(|guest| !guest.may_have(slot)) {
        reasons.insert(Refusal::GroupConflict);
    }
    let mates: BTreeSet<Slot> = joined.iter().flatten().copied().collect();
    let mut may_be_told = BTreeSet::new();
    let mut nexts = vec![state.clone()];
    for side in Side::ALL.into_iter().filter(|side| is_on(slot, *side)) {
        let added = entries::after_add(state, slot, &mates, side);
        let lacking = Refusal::Exhausted(side, Lacking::Entries);
        if added.ways.is_empty() {
            reasons.insert(lacking);
        } else if added.may_lack {
            may_be_told.insert(lacking);
        }
        nexts = with_entries(&nexts, side, &added.ways);
    }
    if !reasons.is_empty() {
        reasons.extend(may_be_told);
        return refuse(state, reasons);
    }
    let registered = |mut next: Specification| {
        next.devices.insert(slot, Record { owner: Owner::Blocked, going: false });
        next.join(slot, &joined);
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
pub(super) fn with_entries(states: &[Specification], side: Side, ways: &[BTreeSet<Cube>]) -> Vec<Specification> {
    let with = |state: &Specification, way: &BTreeSet<Cube>| {
        let mut next = state.clone();
        next.side_mut(side).entries.clone_from(way);
        next
    };
    states.iter().flat_map(|state| ways.iter().map(|way| with(state, way))).collect()
}

pub(super) fn remove(state: &Specification, slot: Slot) -> Steps {
    if !state.devices.contains_key(&slot) {
        return refuse(state, BTreeSet::from([Refusal::NotFound]));
    }
    let mut children = state.devices.keys().filter(|child| child.parent() == Some(slot)).peekable();
    if children.peek().is_some() {
        // One whose removal was tried in vain stays until it is removed again.
        let stays = children.any(|child| !state.marked.contains(child));
        return refuse(state, BTreeSet::from([if stays { Refusal::HasChildren } else { Refusal::Busy }]));
    }
    let steps = claims::remove_later(state, slot).unwrap_or_else(|| remove_now(state, slot));
    steps.into_iter().flat_map(|(outcome, next)| parent_follows(slot, outcome, next)).collect()
}

/// A parent that was asked to go with its children goes with the last of them (contract C-5).
fn parent_follows(child: Slot, outcome: Outcome, mut state: Specification) -> Steps {
    let parent = child.parent().filter(|parent| state.marked.contains(parent));
    let is_last = !state.devices.keys().any(|other| other.parent() == child.parent());
    match parent.filter(|_| is_last) {
        None => vec![(outcome, state)],
        Some(parent) => {
            state.marked.remove(&parent);
            remove_now(&state, parent).into_iter().map(|(_, next)| (outcome.clone(), next)).collect()
        }
    }
}

/// The removal of a registered device to which nothing stands in the way. Where its DMA cannot be cut, or the cut is not
/// confirmed, the device stays registered (contract C-8).
pub(super) fn remove_now(state: &Specification, slot: Slot) -> Steps {
    let Some(record) = state.devices.get(&slot).copied() else { return Steps::new() };
    let dark = |side: &Side| state.is_at(slot, *side) && !state.side(*side).powered;
    let dark: Vec<Refusal> = Side::ALL.into_iter().filter(dark).map(Refusal::NoPower).collect();
    if !dark.is_empty() {
        let left = if state.owner(slot).is_some() { After::GoingLive } else { After::Going };
        let mut next = state.clone();
        next.devices.insert(slot, Record { going: true, ..record });
        let mut steps = failures(&next, dark, left);
        // Where other devices use all of its entries there, none is to be invalidated.
        let is_shared = |side: Side| {
            state.used(slot, side).into_iter().all(|cube| state.users(side, cube).any(|user| user != slot))
        };
        let shared = Side::ALL.into_iter().filter(|side| !state.side(*side).powered).all(is_shared);
        if record.owner == Owner::Blocked && shared {
            steps.extend(remove_powered(state, slot));
        }
        return steps;
    }
    remove_powered(state, slot)
}

fn remove_powered(state: &Specification, slot: Slot) -> Steps {
    let Some(record) = state.devices.get(&slot).copied() else { return Steps::new() };
    let group = state.group(slot);
    let mut steps = Steps::new();
    let slots = BTreeSet::from([slot]);
    let gone = Side::ALL.into_iter().filter(|side| state.is_stranded(slot, *side)).map(Refusal::ProviderGone);
    let gone: Vec<Refusal> = gone.collect();
    for way in block(state.clone(), &slots, &Side::ALL) {
        if way.owes {
            let mut next = way.state;
            let owner = Owner::Quarantined(Lacks { drain: true, reset: true });
            next.devices.insert(slot, Record { owner, going: true });
            steps.extend(failures(&next, way.failed, After::Going));
            continue;
        }
        let sharers = way.state.sharers(slot).into_iter();
        let still: BTreeSet<Slot> = sharers.filter(|mate| way.state.owner(*mate).is_some()).collect();
        let mut next = way.state.clone();
        next.devices.remove(&slot);
        next.part(slot);
        let mut nexts = Gone::without(&next, slot);
        for side in Side::ALL {
            next.side_mut(side).owed.remove(&slot);
            let used = way.state.used(slot, side);
            nexts = with_entries(&nexts, side, &entries::after_remove(&next, &used, side));
        }
        let mut rest = group.clone();
        rest.remove(&slot);
        for next in nexts {
            let told = if still.is_empty() { Outcome::Done } else { Outcome::Removed(still.clone()) };
            let done = vec![(told, next.clone())];
            // An SMMU that went says so, at least when it first hears of it.
            let mut ends = failures(&next, gone.clone(), After::Removed);
            if gone.is_empty() || record.going {
                ends.extend(done);
            }
            steps.extend(moves::split_after(ends, &rest));
        }
    }
    steps
}

/// What was done, but for one of these, of which any may be told.
pub(super) fn failures(next: &Specification, failed: Vec<Refusal>, after: After) -> Steps {
    failed.into_iter().map(|refusal| (Outcome::Failed(refusal, after), next.clone())).collect()
}
