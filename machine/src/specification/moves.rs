//! Devices that change their owner: who may refuse it, what it does, how it may fail.

use std::collections::BTreeSet;

use super::cover::Cube;
use super::operations::{Steps, done, failures, refuse, skip};
use super::{After, Lacking, Outcome, Owner, Refusal, Specification, claims, is_on};
use crate::op::{Guest, Side, Slot};

/// What an operation comes to without a handle to ask with, or with one that is of no use any more. `None`: the device is
/// registered.
pub(super) fn missing(state: &Specification, slot: Slot, guest: Option<Guest>) -> Option<Steps> {
    if !state.handles.contains(&slot) || guest.is_some_and(|guest| !state.guests.contains_key(&guest)) {
        return Some(skip(state));
    }
    if state.devices.contains_key(&slot) {
        return claims::kept_off(state, slot);
    }
    let mut reasons = BTreeSet::from([Refusal::Gone]);
    reasons.extend(guest.filter(|guest| is_ended(state, *guest)).map(|_| Refusal::DomainGone));
    Some(refuse(state, reasons))
}

pub(super) fn is_ended(state: &Specification, guest: Guest) -> bool {
    state.guests.get(&guest).is_none_or(|running| !running.alive)
}

pub(super) fn assign(state: &Specification, slot: Slot, guest: Guest, whole_group: bool) -> Steps {
    if let Some(missing) = missing(state, slot, Some(guest)) {
        return missing;
    }
    let (subjects, reasons) = assign_reasons(state, slot, guest, whole_group);
    with_banks(state, &subjects, guest, reasons, |next| install(next, &subjects, guest))
}

pub(super) fn test_assign(state: &Specification, slot: Slot, guest: Guest) -> Steps {
    if let Some(missing) = missing(state, slot, Some(guest)) {
        return missing;
    }
    let (subjects, reasons) = assign_reasons(state, slot, guest, false);
    with_banks(state, &subjects, guest, reasons, done)
}

pub(super) fn assign_reasons(
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

pub(super) fn reassign(state: &Specification, slot: Slot, guest: Guest, whole_group: bool) -> Steps {
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
            return failures(&next, failed, After::Quarantined);
        }
        cleanse(next, &subjects, |next| install(next, &subjects, guest))
    })
}

/// A move whose SMMUs were in service when it was planned: where one is not when it comes to be written, the devices are
/// left in fault (contract A-1, C-9).
pub(super) fn overtaken(state: &Specification, named: &BTreeSet<Slot>, guest: Guest, reassigns: bool) -> Steps {
    let is_subject = |slot: &&Slot| match state.devices.get(*slot) {
        None => false,
        Some(Owner::Assigned(owner)) => reassigns && *owner != guest,
        Some(_) => !reassigns,
    };
    let subjects: BTreeSet<Slot> = named.iter().filter(is_subject).copied().collect();
    // Whose the rest of the group is has not changed since the plan, which it would have refused.
    let mates = subjects.iter().flat_map(|subject| state.group(*subject)).filter(|mate| !subjects.contains(mate));
    let elsewhere = mates.filter_map(|mate| state.owner(mate)).any(|owner| owner != guest);
    if subjects.is_empty() || elsewhere || is_ended(state, guest) || is_denied(state, &subjects, guest) {
        return Steps::new();
    }
    let mut next = state.clone();
    block(&mut next, &subjects, &Side::ALL);
    settle(&mut next, &subjects, Owner::Quarantined);
    let mut steps = Steps::new();
    for side in Side::ALL.into_iter().filter(|side| subjects.iter().any(|subject| is_on(*subject, *side))) {
        let is_gone = state.side(side).leaving || subjects.iter().any(|subject| state.is_stranded(*subject, side));
        steps.extend(refuse(state, BTreeSet::from([Refusal::IommuBusy(side)])));
        let gone = is_gone.then_some(Refusal::ProviderGone(side));
        steps.extend(failures(&next, gone.into_iter().chain([Refusal::IommuBusy(side)]).collect(), After::Quarantined));
    }
    steps
}

pub(super) fn deassign(state: &Specification, slot: Slot, whole_group: bool) -> Steps {
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
        return failures(&next, failed, After::Quarantined);
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
pub(super) fn with_banks(
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
    for side in Side::ALL {
        // Nothing is to be had of an SMMU that went, or is about to go (contract C-9).
        if subjects.iter().any(|subject| state.is_stranded(*subject, side)) {
            reasons.insert(Refusal::ProviderGone(side));
        }
        if !subjects.iter().any(|subject| state.is_at(*subject, side)) {
            continue;
        }
        let here = state.side(side);
        if here.leaving {
            reasons.insert(Refusal::ProviderGone(side));
            continue;
        }
        let live = state.live_banks(side);
        let promised = Guest::ALL.into_iter().filter(|guest| claims::is_promised(state, side, *guest));
        let taken: BTreeSet<Guest> = live.iter().copied().chain(promised).collect();
        let frees_one = live.iter().any(|owner| {
            let mut users =
                state.devices.keys().filter(|slot| state.is_at(**slot, side) && state.owner(**slot) == Some(*owner));
            users.all(|user| subjects.contains(user)) && !claims::is_promised(state, side, *owner)
        });
        let synced = |states: &BTreeSet<Specification>| -> BTreeSet<Specification> {
            let sync = |mut next: Specification| {
                next.side_mut(side).sync();
                next
            };
            states.iter().cloned().map(sync).collect()
        };
        let has_one = taken.contains(&guest) || frees_one;
        let free = here.part.banks.saturating_sub(taken.len());
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

/// Puts devices in fault at some SMMUs, and drains. Returns what was not confirmed: a drain, or all of it where the SMMU
/// has gone (contract C-9).
pub(super) fn block(state: &mut Specification, subjects: &BTreeSet<Slot>, sides: &[Side]) -> Vec<Refusal> {
    let before = state.clone();
    settle(state, subjects, Owner::Blocked);
    let mut failed = Vec::new();
    for &side in sides {
        if subjects.iter().any(|subject| state.is_stranded(*subject, side)) {
            failed.push(Refusal::ProviderGone(side));
        }
        let was_live = |cube: &&Cube| before.users(side, **cube).any(|user| before.owner(user).is_some());
        let is_live = |cube: &Cube| state.users(side, *cube).any(|user| state.owner(user).is_some());
        let cut = before.side(side).entries.iter().filter(was_live).any(|cube| !is_live(cube));
        if !cut {
            continue;
        }
        let live = state.live_banks(side);
        let left: BTreeSet<Guest> = before.live_banks(side).difference(&live).copied().collect();
        let (kept, retired): (BTreeSet<Guest>, BTreeSet<Guest>) =
            left.iter().partition(|guest| claims::is_promised(state, side, **guest));
        let there: Vec<Slot> = subjects.iter().copied().filter(|subject| state.is_at(*subject, side)).collect();
        let here = state.side_mut(side);
        here.kept.extend(kept);
        if here.sync() {
            here.stale.retain(|(guest, _)| !left.contains(guest));
        } else {
            here.dirty.extend(retired);
            here.undrained.extend(there);
            failed.push(Refusal::SyncTimeout(side));
        }
    }
    failed
}

/// Opens devices, which are in fault, to a guest.
pub(super) fn install(state: Specification, subjects: &BTreeSet<Slot>, guest: Guest) -> Steps {
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
    // It went, or is about to, since this was reserved (contract C-9).
    if here.leaving || subjects.iter().any(|subject| state.is_stranded(*subject, side)) {
        return roll_back(state, subjects, guest, sides.split_at(installed), Refusal::ProviderGone(side));
    }
    if here.undrained.is_disjoint(subjects) {
        steps.extend(install_at(state.clone(), subjects, guest, sides, next));
    }
    // Nothing of an earlier owner may be in flight (contract I-8). Where that is not known of the whole SMMU, an SMMU
    // may want to know it whoever comes: a device that was removed meanwhile leaves nobody to ask.
    if here.behind {
        if state.side_mut(side).sync() {
            steps.extend(install_at(state, subjects, guest, sides, next));
        } else {
            let told = Refusal::SyncTimeout(side);
            steps.extend(roll_back(state, subjects, guest, sides.split_at(installed), told));
        }
    }
    steps
}

/// What was opened already is put in fault again, and what was reserved is given back; the first failure is the one to
/// tell.
pub(super) fn roll_back(
    mut state: Specification,
    subjects: &BTreeSet<Slot>,
    guest: Guest,
    (opened, left): (&[Side], &[Side]),
    told: Refusal,
) -> Steps {
    for side in left {
        subjects.iter().for_each(|subject| claims::give_back(&mut state, *subject, guest, *side));
    }
    let reserved = std::mem::take(&mut state.reserved);
    state.reserved = reserved.into_iter().filter(|(slot, _)| !subjects.contains(slot)).collect();
    settle(&mut state, subjects, Owner::Assigned(guest));
    block(&mut state, subjects, opened);
    settle(&mut state, subjects, Owner::Quarantined);
    failures(&state, vec![told], After::Quarantined)
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

pub(super) fn settle(state: &mut Specification, subjects: &BTreeSet<Slot>, owner: Owner) {
    for subject in subjects {
        state.devices.insert(*subject, owner);
    }
}
