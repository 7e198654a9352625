//! Each operation: who may refuse it, what it does, how it may fail.

use std::collections::BTreeSet;

use super::cover::Cube;
use super::{After, Lacking, Outcome, Owner, Refusal, Specification, entries, guests, is_on, meets_cube};
use crate::op::{Guest, Op, Side, Slot};

pub(super) type Steps = Vec<(Outcome, Specification)>;

pub(super) fn step(state: &Specification, op: Op) -> Steps {
    match op {
        Op::Add(slot) => add(state, slot),
        Op::Remove(slot) => remove(state, slot),
        Op::Assign(slot, guest) => assign(state, slot, guest, false),
        Op::AssignGroup(slot, guest) => assign(state, slot, guest, true),
        Op::Reassign(slot, guest) => reassign(state, slot, guest, false),
        Op::ReassignGroup(slot, guest) => reassign(state, slot, guest, true),
        Op::Deassign(slot) => deassign(state, slot, false),
        Op::DeassignGroup(slot) => deassign(state, slot, true),
        Op::TestAssign(slot, guest) => test_assign(state, slot, guest),
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
        Op::Unregister(side) => guests::unregister(state, side),
        Op::Register(side) => guests::register(state, side),
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
        reasons.insert(Refusal::AlreadyRegistered);
    }
    if slot.streams().is_empty() {
        reasons.insert(Refusal::NoStreams);
    }
    if slot.parent().is_some_and(|parent| !state.devices.contains_key(&parent)) {
        reasons.insert(Refusal::ParentMissing);
    }
    for (side, id, mask) in slot.streams() {
        if !state.side(*side).registered {
            reasons.insert(Refusal::ProviderMissing(*side));
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
    let mut may_be_lacking = BTreeSet::new();
    let mut nexts = vec![state.clone()];
    for side in Side::ALL.into_iter().filter(|side| is_on(slot, *side)) {
        let ways = entries::after_add(state, slot, side);
        let (fitting, excess): (Vec<_>, Vec<_>) =
            ways.into_iter().partition(|way| way.len() <= state.side(side).part.entries);
        let lacking = Refusal::Exhausted(side, Lacking::Entries);
        if fitting.is_empty() {
            reasons.insert(lacking);
        } else if !excess.is_empty() {
            may_be_lacking.insert(lacking);
        }
        nexts = with_entries(&nexts, side, &fitting);
    }
    if !reasons.is_empty() {
        reasons.extend(may_be_lacking);
        return refuse(state, reasons);
    }
    let registered = |mut next: Specification| {
        next.devices.insert(slot, Owner::Blocked);
        if !next.handles.insert(slot) {
            next.old_handles.insert(slot);
        }
        (Outcome::Done, next)
    };
    let mut steps = refuse(state, may_be_lacking);
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
    if state.devices.keys().any(|other| other.parent() == Some(slot)) {
        return refuse(state, BTreeSet::from([Refusal::HasChildren]));
    }
    let mut next = state.clone();
    let failed = block(&mut next, &BTreeSet::from([slot]), &Side::ALL);
    next.devices.remove(&slot);
    let mut nexts = vec![next.clone()];
    for side in Side::ALL {
        let used = state.side(side).entries.iter().copied().filter(|cube| meets_cube(slot, side, *cube)).collect();
        nexts = with_entries(&nexts, side, &entries::after_remove(&next, &used, side));
    }
    let still: BTreeSet<Slot> = state.sharers(slot).into_iter().filter(|mate| state.owner(*mate).is_some()).collect();
    let end = |mut next: Specification| {
        for side in Side::ALL {
            next.side_mut(side).undrained.remove(&slot);
        }
        match &failed {
            failed if !failed.is_empty() => timeouts(&next, failed.clone(), After::Removed),
            _ if still.is_empty() => done(next),
            _ => vec![(Outcome::Removed(still.clone()), next)],
        }
    };
    nexts.into_iter().flat_map(end).collect()
}

fn timeouts(next: &Specification, failed: Vec<Side>, after: After) -> Steps {
    let outcome = |side| Outcome::Failed(Refusal::SyncTimeout(side), after);
    failed.into_iter().map(|side| (outcome(side), next.clone())).collect()
}

// --- moves ---

/// What an operation comes to without a handle to ask with, or with one that is of no use any more. `None`: the device is
/// registered.
fn missing(state: &Specification, slot: Slot, guest: Option<Guest>) -> Option<Steps> {
    if !state.handles.contains(&slot) || guest.is_some_and(|guest| !state.guests.contains_key(&guest)) {
        return Some(skip(state));
    }
    if state.devices.contains_key(&slot) {
        return None;
    }
    let mut reasons = BTreeSet::from([Refusal::Gone]);
    reasons.extend(guest.filter(|guest| is_ended(state, *guest)).map(|_| Refusal::DomainGone));
    Some(refuse(state, reasons))
}

fn is_ended(state: &Specification, guest: Guest) -> bool {
    state.guests.get(&guest).is_none_or(|running| !running.alive)
}

fn assign(state: &Specification, slot: Slot, guest: Guest, whole_group: bool) -> Steps {
    if let Some(missing) = missing(state, slot, Some(guest)) {
        return missing;
    }
    let (subjects, reasons) = assign_reasons(state, slot, guest, whole_group);
    with_banks(state, &subjects, guest, reasons, |next| install(next, &subjects, guest))
}

fn test_assign(state: &Specification, slot: Slot, guest: Guest) -> Steps {
    if let Some(missing) = missing(state, slot, Some(guest)) {
        return missing;
    }
    let (subjects, reasons) = assign_reasons(state, slot, guest, false);
    with_banks(state, &subjects, guest, reasons, done)
}

fn assign_reasons(
    state: &Specification,
    slot: Slot,
    guest: Guest,
    whole_group: bool,
) -> (BTreeSet<Slot>, BTreeSet<Refusal>) {
    let named = if whole_group { state.group(slot) } else { BTreeSet::from([slot]) };
    let subjects: BTreeSet<Slot> = named.into_iter().filter(|named| state.owner(*named).is_none()).collect();
    let mut reasons = BTreeSet::new();
    if subjects.is_empty() {
        reasons.insert(Refusal::AlreadyAssigned);
    }
    if state.owners([slot]).iter().any(|owner| *owner != guest) {
        reasons.insert(Refusal::GroupConflict);
    }
    if is_denied(state, &subjects, guest) {
        reasons.insert(Refusal::Denied);
    }
    (subjects, reasons)
}

fn reassign(state: &Specification, slot: Slot, guest: Guest, whole_group: bool) -> Steps {
    if let Some(missing) = missing(state, slot, Some(guest)) {
        return missing;
    }
    let named = if whole_group { state.group(slot) } else { BTreeSet::from([slot]) };
    let subjects: BTreeSet<Slot> = named.into_iter().filter(|named| state.owner(*named).is_some()).collect();
    let mut reasons = BTreeSet::new();
    if subjects.is_empty() {
        reasons.insert(Refusal::NotAssigned);
    }
    if subjects.iter().any(|subject| state.owner(*subject) == Some(guest)) {
        reasons.insert(Refusal::AlreadyAssigned);
    }
    let stays_elsewhere = |mate: &Slot| state.owner(*mate).is_some_and(|owner| owner != guest);
    if state.group(slot).difference(&subjects).any(stays_elsewhere) {
        reasons.insert(Refusal::GroupConflict);
    }
    if is_denied(state, &subjects, guest) {
        reasons.insert(Refusal::Denied);
    }
    with_banks(state, &subjects, guest, reasons, |mut next| {
        let failed = block(&mut next, &subjects, &Side::ALL);
        if !failed.is_empty() {
            settle(&mut next, &subjects, Owner::Quarantined);
            return timeouts(&next, failed, After::Quarantined);
        }
        cleanse(next, &subjects, |next| install(next, &subjects, guest))
    })
}

fn deassign(state: &Specification, slot: Slot, whole_group: bool) -> Steps {
    if let Some(missing) = missing(state, slot, None) {
        return missing;
    }
    let named = if whole_group { state.group(slot) } else { BTreeSet::from([slot]) };
    let subjects: BTreeSet<Slot> = named.into_iter().filter(|named| state.owner(*named).is_some()).collect();
    if subjects.is_empty() {
        return refuse(state, BTreeSet::from([Refusal::NotAssigned]));
    }
    let mut next = state.clone();
    let failed = block(&mut next, &subjects, &Side::ALL);
    if !failed.is_empty() {
        settle(&mut next, &subjects, Owner::Quarantined);
        return timeouts(&next, failed, After::Quarantined);
    }
    cleanse(next, &subjects, |next| {
        let sharers = subjects.iter().flat_map(|subject| next.sharers(*subject));
        let still = sharers.filter(|sharer| next.owner(*sharer).is_some()).collect();
        vec![(Outcome::Deassigned(still), next)]
    })
}

/// The policy is asked about everyone whose DMA would reach the guest (contract A-11).
fn is_denied(state: &Specification, subjects: &BTreeSet<Slot>, guest: Guest) -> bool {
    let sharers = subjects.iter().flat_map(|subject| state.sharers(*subject));
    let along = sharers.filter(|sharer| !subjects.contains(sharer) && state.owner(*sharer).is_none());
    subjects.iter().copied().chain(along).any(|slot| !guest.may_have(slot))
}

/// Goes on where nothing refuses and each SMMU has a bank (contract ).
fn with_banks(
    state: &Specification,
    subjects: &BTreeSet<Slot>,
    guest: Guest,
    mut reasons: BTreeSet<Refusal>,
    then: impl Fn(Specification) -> Steps,
) -> Steps {
    if is_ended(state, guest) {
        reasons.insert(Refusal::DomainGone);
    }
    let mut may_be_told = BTreeSet::new();
    // Where the plan may have got to at each SMMU, and from where it can go on.
    let (mut reached, mut ready) = (BTreeSet::from([state.clone()]), BTreeSet::from([state.clone()]));
    for side in Side::ALL.into_iter().filter(|side| subjects.iter().any(|subject| is_on(*subject, *side))) {
        let here = state.side(side);
        let live = state.live_banks(side);
        let frees_one = live.iter().any(|owner| {
            let mut users =
                state.devices.keys().filter(|slot| is_on(**slot, side) && state.owner(**slot) == Some(*owner));
            users.all(|user| subjects.contains(user))
        });
        let synced = |states: &BTreeSet<Specification>| -> BTreeSet<Specification> {
            let sync = |mut next: Specification| {
                next.side_mut(side).sync();
                next
            };
            states.iter().cloned().map(sync).collect()
        };
        let has_one = live.contains(&guest) || frees_one;
        let free = here.part.banks.saturating_sub(live.len());
        if !has_one && free == 0 {
            reasons.insert(Refusal::Exhausted(side, Lacking::Banks));
        } else if !has_one && free <= here.dirty.len() {
            // A poisoned bank is clean when the SMMU works again, and the operation sees to it (contract A-4).
            reached.extend(synced(&reached));
            if here.is_sound() {
                ready = synced(&ready);
            } else {
                reasons.insert(Refusal::SyncTimeout(side));
            }
        } else if !has_one && !here.cleaned.is_empty() {
            // On some parts somebody else's sync is not enough to clean one (contract I-7).
            reached.extend(synced(&reached));
            if here.is_sound() {
                ready.extend(synced(&ready));
            } else {
                may_be_told.insert(Refusal::SyncTimeout(side));
            }
        }
        if !here.is_sound() && here.behind {
            // The plan may find out already that an earlier drain cannot be confirmed (contract I-8).
            may_be_told.insert(Refusal::SyncTimeout(side));
        }
    }
    let refused = !reasons.is_empty();
    reasons.extend(may_be_told);
    let mut steps: Steps = reached.iter().flat_map(|state| refuse(state, reasons.clone())).collect();
    if !refused {
        steps.extend(ready.into_iter().flat_map(then));
    }
    steps
}

/// Puts devices in fault at some SMMUs, and drains. Returns where the drain was not confirmed.
fn block(state: &mut Specification, subjects: &BTreeSet<Slot>, sides: &[Side]) -> Vec<Side> {
    let before = state.clone();
    settle(state, subjects, Owner::Blocked);
    let mut failed = Vec::new();
    for &side in sides {
        let was_live = |cube: &&Cube| before.users(side, **cube).any(|user| before.owner(user).is_some());
        let is_live = |cube: &Cube| state.users(side, *cube).any(|user| state.owner(user).is_some());
        let cut = before.side(side).entries.iter().filter(was_live).any(|cube| !is_live(cube));
        if !cut {
            continue;
        }
        let live = state.live_banks(side);
        let retired: Vec<Guest> = before.live_banks(side).difference(&live).copied().collect();
        let here = state.side_mut(side);
        if here.sync() {
            here.stale.retain(|(guest, _)| !retired.contains(guest));
        } else {
            here.dirty.extend(retired);
            here.undrained.extend(subjects.iter().filter(|subject| is_on(**subject, side)));
            failed.push(side);
        }
    }
    failed
}

/// Opens devices, which are in fault, to a guest.
fn install(state: Specification, subjects: &BTreeSet<Slot>, guest: Guest) -> Steps {
    let concerned = |side: &Side| subjects.iter().any(|subject| is_on(*subject, *side));
    let sides: Vec<Side> = Side::ALL.into_iter().filter(concerned).collect();
    install_at(state, subjects, guest, &sides, 0)
}

/// The same at all of `sides` but the first ones, where it is done.
fn install_at(
    mut state: Specification,
    subjects: &BTreeSet<Slot>,
    guest: Guest,
    sides: &[Side],
    installed: usize,
) -> Steps {
    let Some(&side) = sides.get(installed) else {
        settle(&mut state, subjects, Owner::Assigned(guest));
        return done(state);
    };
    let next = installed.saturating_add(1);
    let here = state.side(side);
    let mut steps = Steps::new();
    if here.undrained.is_disjoint(subjects) {
        steps.extend(install_at(state.clone(), subjects, guest, sides, next));
    }
    // Nothing of an earlier owner may be in flight (contract I-8). Where that is not known of the whole SMMU, an SMMU
    // may want to know it whoever comes: a device that was removed meanwhile leaves nobody to ask.
    if here.behind {
        if state.side_mut(side).sync() {
            steps.extend(install_at(state, subjects, guest, sides, next));
        } else {
            // What was opened already is put in fault again; the first failure is the one to tell.
            settle(&mut state, subjects, Owner::Assigned(guest));
            block(&mut state, subjects, sides.get(..installed).unwrap_or_default());
            settle(&mut state, subjects, Owner::Quarantined);
            steps.extend(timeouts(&state, vec![side], After::Quarantined));
        }
    }
    steps
}

/// The sources' hooks, of which one may fail.
fn cleanse(state: Specification, subjects: &BTreeSet<Slot>, then: impl FnOnce(Specification) -> Steps) -> Steps {
    let broken: Vec<Slot> = state.broken.intersection(subjects).copied().collect();
    if broken.is_empty() {
        return then(state);
    }
    let fail = |slot| {
        let mut next = state.clone();
        next.broken.remove(&slot);
        settle(&mut next, subjects, Owner::Quarantined);
        (Outcome::Failed(Refusal::Hook, After::Quarantined), next)
    };
    broken.into_iter().map(fail).collect()
}

fn settle(state: &mut Specification, subjects: &BTreeSet<Slot>, owner: Owner) {
    for subject in subjects {
        state.devices.insert(*subject, owner);
    }
}
