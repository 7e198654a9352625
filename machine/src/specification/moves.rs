//! Devices that change their owner: who may refuse it, what it does, how it may fail.

use std::collections::BTreeSet;

use super::cover::Cube;
use super::instances::Gone;
use super::operations::{Steps, done, failures, refuse, skip, with_entries};
use super::{After, Lacking, Lacks, Outcome, Owner, Refusal, Specification, State, claims, entries, is_on};
use crate::op::{Guest, Side, Slot};

type Slots = BTreeSet<Slot>;

/// What an operation comes to without a handle to ask with, or with one that is of no use any more. `None`: the device is
/// registered, and may be moved.
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

// --- into a domain ---

pub(super) fn assign(state: &Specification, slot: Slot, guest: Guest, whole_group: bool) -> Steps {
    if let Some(missing) = missing(state, slot, Some(guest)) {
        return missing;
    }
    let (movers, reasons) = assign_reasons(state, slot, guest, whole_group);
    with_banks(state, &movers, guest, reasons, |next| carry_out(next, &movers, guest))
}

pub(super) fn test_assign(state: &Specification, slot: Slot, guest: Guest) -> Steps {
    if let Some(missing) = missing(state, slot, Some(guest)) {
        return missing;
    }
    let (movers, reasons) = assign_reasons(state, slot, guest, false);
    with_banks(state, &movers, guest, reasons, done)
}

pub(super) fn assign_reasons(
    state: &Specification,
    slot: Slot,
    guest: Guest,
    whole_group: bool,
) -> (Slots, BTreeSet<Refusal>) {
    let movers: Slots =
        named(state, slot, whole_group).into_iter().filter(|named| state.owner(*named).is_none()).collect();
    let mut reasons = BTreeSet::new();
    if movers.is_empty() {
        reasons.insert(Refusal::AlreadyAssigned);
    }
    if state.owners([&state.group(slot)]).iter().any(|owner| *owner != guest) {
        reasons.insert(Refusal::GroupConflict);
    }
    if is_denied(state, &movers, guest) {
        reasons.insert(Refusal::Denied);
    }
    if movers.iter().any(|mover| state.is_quarantined(*mover) && state.has_dependents(*mover)) {
        reasons.insert(Refusal::HasChildren);
    }
    (movers, reasons)
}

pub(super) fn reassign(state: &Specification, slot: Slot, guest: Guest, whole_group: bool) -> Steps {
    if let Some(missing) = missing(state, slot, Some(guest)) {
        return missing;
    }
    let movers: Slots =
        named(state, slot, whole_group).into_iter().filter(|named| state.owner(*named).is_some()).collect();
    let mut reasons = BTreeSet::new();
    if movers.is_empty() {
        reasons.insert(Refusal::NotAssigned);
    }
    if movers.iter().any(|mover| state.owner(*mover) == Some(guest)) {
        reasons.insert(Refusal::AlreadyAssigned);
    }
    let stays_elsewhere = |mate: &Slot| state.owner(*mate).is_some_and(|owner| owner != guest);
    if state.group(slot).difference(&movers).any(stays_elsewhere) {
        reasons.insert(Refusal::GroupConflict);
    }
    if is_denied(state, &movers, guest) {
        reasons.insert(Refusal::Denied);
    }
    if movers.iter().any(|mover| state.has_dependents(*mover)) {
        reasons.insert(Refusal::HasChildren);
    }
    with_banks(state, &movers, guest, reasons, |next| carry_out(next, &movers, guest))
}

/// The device alone, or those of its group that are not on their way out.
fn named(state: &Specification, slot: Slot, whole_group: bool) -> Slots {
    if !whole_group {
        return Slots::from([slot]);
    }
    state.group(slot).into_iter().filter(|member| !state.is_going(*member)).collect()
}

/// Everything after the plan: what is assigned or lacks something is put in fault, drained, quiesced and reset first, mates
/// that share an entry included; then the entries are opened (contract I-14). Without power nothing changes.
pub(super) fn carry_out(state: Specification, movers: &Slots, guest: Guest) -> Steps {
    let along: Slots = along(&state, movers).into_iter().filter(|mate| state.is_quarantined(*mate)).collect();
    let unclean: Slots = movers
        .iter()
        .copied()
        .filter(|mover| state.owner(*mover).is_some() || state.is_quarantined(*mover))
        .chain(along.iter().copied())
        .collect();
    let all: Slots = movers.union(&along).copied().collect();
    let unpowered = without_power(&state, &all);
    if !unpowered.is_empty() {
        let mut next = state;
        for side in Side::ALL {
            movers.iter().for_each(|mover| claims::give_back(&mut next, *mover, guest, side));
        }
        let mut steps = refuse(&next, unpowered);
        // One that is about to go, since this was reserved, may say so before it looks for power.
        let closed = |side: &Side| next.side(*side).leaving && movers.iter().any(|mover| next.is_at(*mover, *side));
        let closed: Vec<Refusal> = Side::ALL.into_iter().filter(closed).map(Refusal::ProviderGone).collect();
        next.settle(movers, Owner::Quarantined(Lacks::RESET));
        steps.extend(failures(&next, closed, After::Quarantined));
        return steps;
    }
    // Of a mate's SMMU that went nothing is asked here: what the mate had there has drained.
    cleanse(state, &unclean, true, |mut next| {
        next.settle(&along, Owner::Blocked);
        install(next, movers, guest)
    })
}

/// What is not assigned, does not move, and shares an entry with what does.
fn along(state: &Specification, movers: &Slots) -> Slots {
    let sharers = movers.iter().flat_map(|mover| state.sharers(*mover));
    sharers.filter(|sharer| !movers.contains(sharer) && state.owner(*sharer).is_none()).collect()
}

/// The policy is asked about every device whose DMA would reach the guest (contract A-11).
fn is_denied(state: &Specification, movers: &Slots, guest: Guest) -> bool {
    movers.iter().copied().chain(along(state, movers)).any(|slot| !guest.may_have(slot))
}

/// The SMMUs of these devices that have no power.
fn without_power(state: &Specification, slots: &Slots) -> BTreeSet<Refusal> {
    let dark = |side: &Side| !state.side(*side).powered && slots.iter().any(|slot| state.is_at(*slot, *side));
    Side::ALL.into_iter().filter(dark).map(Refusal::NoPower).collect()
}

// --- out of a domain ---

pub(super) fn deassign(state: &Specification, slot: Slot, whole_group: bool) -> Steps {
    close(state, slot, whole_group, |state, named| state.owner(named).is_some())
}

/// Also of what no guest has and lacks something.
pub(super) fn deassign_or_reset(state: &Specification, slot: Slot) -> Steps {
    close(state, slot, false, |state, named| state.owner(named).is_some() || state.is_quarantined(named))
}

fn close(state: &Specification, slot: Slot, whole_group: bool, leaves: fn(&Specification, Slot) -> bool) -> Steps {
    if let Some(missing) = missing(state, slot, None) {
        return missing;
    }
    let movers: Slots = named(state, slot, whole_group).into_iter().filter(|named| leaves(state, *named)).collect();
    if movers.is_empty() {
        return refuse(state, BTreeSet::from([Refusal::NotAssigned]));
    }
    if movers.iter().any(|mover| state.has_dependents(*mover)) {
        return refuse(state, BTreeSet::from([Refusal::HasChildren]));
    }
    let group = state.group(slot);
    let unpowered = without_power(state, &movers);
    if !unpowered.is_empty() {
        return refuse(state, unpowered);
    }
    let steps = cleanse(state.clone(), &movers, false, |mut next| {
        let sharers = movers.iter().flat_map(|mover| next.sharers(*mover));
        let still = sharers.filter(|sharer| next.owner(*sharer).is_some()).collect();
        next.settle(&movers, Owner::Blocked);
        vec![(Outcome::Deassigned(still), next)]
    });
    split_after(steps, &group)
}

/// The same steps, with the group split where they leave it to.
pub(super) fn split_after(mut steps: Steps, group: &Slots) -> Steps {
    steps.iter_mut().for_each(|(_, next)| next.split(group));
    steps
}

// --- the plan ---

/// Goes on where nothing refuses and each SMMU has a bank (contract ). A drain that is owed is finished first, or
/// refuses (I-6).
pub(super) fn with_banks(
    state: &Specification,
    movers: &Slots,
    guest: Guest,
    mut reasons: BTreeSet<Refusal>,
    then: impl Fn(Specification) -> Steps,
) -> Steps {
    if is_ended(state, guest) {
        reasons.insert(Refusal::DomainGone);
    }
    // Where the plan may get to, and from where it can go on.
    let (mut reached, mut ready) = (BTreeSet::from([state.clone()]), BTreeSet::from([state.clone()]));
    let mut refused = BTreeSet::new();
    for side in Side::ALL {
        // Nothing is to be had of an SMMU that went, or is about to go (contract C-9).
        let is_stranded = movers.iter().any(|mover| state.is_stranded(*mover, side));
        let is_here = movers.iter().any(|mover| state.is_at(*mover, side));
        if is_stranded || (is_here && state.side(side).leaving) {
            reasons.insert(Refusal::ProviderGone(side));
            continue;
        }
        if !is_here {
            continue;
        }
        let mut next = BTreeSet::new();
        for state in ready {
            for (refusal, planned) in plan(&state, side, movers, guest) {
                reached.insert(planned.clone());
                match refusal {
                    Some(refusal) => drop(refused.insert((refusal, planned))),
                    None => drop(next.insert(planned)),
                }
            }
        }
        ready = next;
    }
    let mut steps: Steps = Steps::new();
    for (refusal, state) in refused {
        steps.extend(refuse(&state, BTreeSet::from([refusal])));
    }
    if reasons.is_empty() {
        steps.extend(ready.into_iter().flat_map(then));
    } else {
        steps.extend(reached.iter().flat_map(|state| refuse(state, reasons.clone())));
    }
    let group = movers.first().map(|mover| state.group(*mover)).unwrap_or_default();
    split_after(steps, &group)
}

/// What the plan may come to at one SMMU.
fn plan(state: &Specification, side: Side, movers: &Slots, guest: Guest) -> Vec<(Option<Refusal>, Specification)> {
    let with = |here: State| {
        let mut next = state.clone();
        *next.side_mut(side) = here;
        next
    };
    let here = state.side(side);
    let unconfirmed = if here.powered { Refusal::SyncTimeout(side) } else { Refusal::NoPower(side) };
    // What the devices owe, and the guest's own bank.
    let mut ways = vec![(true, here.clone())];
    let theirs = movers.iter().filter_map(|mover| here.owed.get(mover)).chain(here.poisoned.get(&guest));
    if let Some(drain) = theirs.max() {
        ways = if here.powered { here.finish(*drain) } else { vec![(false, here.clone())] };
        for (confirmed, after) in &mut ways {
            if *confirmed {
                after.owed.retain(|device, _| !movers.contains(device));
                after.poisoned.remove(&guest);
            }
        }
    }
    let live = state.live_banks(side);
    let promised = Guest::ALL.into_iter().filter(|guest| claims::is_promised(state, side, *guest));
    let taken: BTreeSet<Guest> = live.iter().copied().chain(promised).collect();
    let frees_one = live.iter().any(|owner| {
        let mut users =
            state.devices.keys().filter(|slot| state.is_at(**slot, side) && state.owner(**slot) == Some(*owner));
        users.all(|user| movers.contains(user)) && !claims::is_promised(state, side, *owner)
    });
    let mut all = Vec::new();
    for (confirmed, after) in ways {
        if !confirmed {
            all.push((Some(unconfirmed), with(after)));
            continue;
        }
        let free = after.part.banks.saturating_sub(taken.len());
        if taken.contains(&guest) || free > after.poisoned.len() {
            all.push((None, with(after)));
        } else if free == 0 && after.poisoned.is_empty() {
            let exhausted = Refusal::Exhausted(side, Lacking::Banks);
            if !frees_one && !after.powered {
                // It may have looked for a drain to finish.
                all.push((Some(unconfirmed), with(after.clone())));
            }
            all.push(((!frees_one).then_some(exhausted), with(after)));
        } else if after.powered {
            // A poisoned bank is clean when the SMMU works again, and the operation sees to it (contract A-4).
            let best = after.poisoned.values().min().copied();
            for (confirmed, after) in best.into_iter().flat_map(|drain| after.finish(drain)) {
                all.push(((!confirmed && !frees_one).then_some(unconfirmed), with(after)));
            }
            if free == 0 {
                // It was clean already, and the bank is another's now.
                let exhausted = Refusal::Exhausted(side, Lacking::Banks);
                all.push(((!frees_one).then_some(exhausted), with(after)));
            }
        } else {
            all.push((None, with(after.clone())));
            all.push(((!frees_one).then_some(unconfirmed), with(after)));
        }
    }
    all
}

// --- block, cleanse, install ---

/// How devices were put in fault.
pub(super) struct Blocked {
    pub(super) state: Specification,
    /// What was not confirmed: a drain, or all of it where the SMMU has gone (contract C-9).
    pub(super) failed: Vec<Refusal>,
    /// A drain was not confirmed.
    pub(super) owes: bool,
}

impl Blocked {
    fn lacks(&self) -> Lacks {
        Lacks { drain: self.owes, reset: true }
    }
}

/// Puts devices in fault at some SMMUs, all of which have power, drains, and finishes what they owe.
pub(super) fn block(state: Specification, slots: &Slots, sides: &[Side]) -> Vec<Blocked> {
    let before = state.clone();
    let mut state = state;
    state.settle(slots, Owner::Blocked);
    let mut ways = vec![Blocked { state, failed: Vec::new(), owes: false }];
    for &side in sides {
        ways = ways.into_iter().flat_map(|way| block_at(&before, way, slots, side)).collect();
    }
    ways
}

fn block_at(before: &Specification, mut way: Blocked, slots: &Slots, side: Side) -> Vec<Blocked> {
    let mut ways = Vec::new();
    if slots.iter().any(|slot| before.is_stranded(*slot, side)) {
        way.failed.push(Refusal::ProviderGone(side));
        for state in Gone::blocked(&way.state, slots, side) {
            ways.push(Blocked { state, failed: way.failed.clone(), owes: way.owes });
        }
        // A device is at one of the two.
        if !slots.iter().any(|slot| before.is_at(*slot, side)) {
            return ways;
        }
    } else {
        ways.push(way);
    }
    ways.into_iter().flat_map(|way| drain_at(before, way, slots, side)).collect()
}

fn drain_at(before: &Specification, way: Blocked, slots: &Slots, side: Side) -> Vec<Blocked> {
    let Blocked { mut state, failed, owes } = way;
    let went = |cube: &Cube| before.is_live(side, *cube) && !state.is_live(side, *cube);
    let cut: BTreeSet<Cube> = before.side(side).entries.iter().copied().filter(went).collect();
    let here: Slots = slots.iter().copied().filter(|slot| state.is_at(*slot, side)).collect();
    let owed = here.iter().filter_map(|slot| state.side(side).owed.get(slot)).max().copied();
    if cut.is_empty() && owed.is_none() {
        return vec![Blocked { state, failed, owes }];
    }
    let mut confirmed = vec![(true, state.clone())];
    if !cut.is_empty() {
        let live = state.live_banks(side);
        let left: BTreeSet<Guest> = before.live_banks(side).difference(&live).copied().collect();
        let (kept, retired): (BTreeSet<Guest>, BTreeSet<Guest>) =
            left.iter().partition(|guest| claims::is_promised(&state, side, **guest));
        // Whoever shared such an entry reached its guest too, assigned or not (contract I-6).
        let users = before.devices.keys().copied();
        let drained: Slots = users.filter(|slot| !before.used(*slot, side).is_disjoint(&cut)).collect();
        let at = state.side_mut(side);
        at.kept.extend(kept);
        let is_drained = at.sync();
        if is_drained {
            at.stale.retain(|(guest, _)| !left.contains(guest));
            at.owed.retain(|device, _| !here.contains(device));
        } else {
            let drain = at.failed_drain();
            at.poisoned.extend(retired.into_iter().map(|guest| (guest, drain)));
            at.owed.extend(drained.into_iter().map(|device| (device, drain)));
        }
        confirmed = vec![(is_drained, state)];
    } else if let Some(drain) = owed {
        let finish = |(confirmed, mut after): (bool, State)| {
            if confirmed {
                after.owed.retain(|device, _| !here.contains(device));
            }
            let mut next = state.clone();
            *next.side_mut(side) = after;
            (confirmed, next)
        };
        confirmed = state.side(side).finish(drain).into_iter().map(finish).collect();
    }
    let mut ways = Vec::new();
    for (confirmed, state) in confirmed {
        let failed: Vec<Refusal> =
            failed.iter().copied().chain((!confirmed).then_some(Refusal::SyncTimeout(side))).collect();
        let refitted = with_entries(std::slice::from_ref(&state), side, &entries::after_block(&state, side));
        let blocked = |state| Blocked { state, failed: failed.clone(), owes: owes || !confirmed };
        ways.extend(refitted.into_iter().map(blocked));
    }
    ways
}

/// Devices that have or had an owner are put in fault, drained, quiesced and reset; `then` goes on with them `Blocked`.
/// `passes_gone`: an SMMU that went is no failure.
fn cleanse(state: Specification, slots: &Slots, passes_gone: bool, then: impl Fn(Specification) -> Steps) -> Steps {
    if slots.is_empty() {
        return then(state);
    }
    let mut steps = Steps::new();
    for mut way in block(state, slots, &Side::ALL) {
        way.failed.retain(|refusal| !passes_gone || !matches!(refusal, Refusal::ProviderGone(_)));
        if !way.failed.is_empty() {
            let lacks = way.lacks();
            way.state.settle(slots, Owner::Quarantined(lacks));
            steps.extend(failures(&way.state, way.failed, After::Quarantined));
            continue;
        }
        let broken: Vec<Slot> = way.state.broken.intersection(slots).copied().collect();
        for slot in &broken {
            let mut next = way.state.clone();
            next.broken.remove(slot);
            next.settle(slots, Owner::Quarantined(Lacks::RESET));
            steps.push((Outcome::Failed(Refusal::Hook, After::Quarantined), next));
        }
        if broken.is_empty() {
            steps.extend(then(way.state));
        }
    }
    steps
}

/// Opens devices, which are in fault, to a guest.
fn install(mut state: Specification, movers: &Slots, guest: Guest) -> Steps {
    let concerned = |side: &Side| movers.iter().any(|mover| is_on(*mover, *side));
    let sides: Vec<Side> = Side::ALL.into_iter().filter(concerned).collect();
    for (installed, side) in sides.iter().enumerate() {
        // It went, or is about to, since this was reserved (contract C-9).
        if state.side(*side).leaving || movers.iter().any(|mover| state.is_stranded(*mover, *side)) {
            return roll_back(state, movers, guest, sides.split_at(installed), Refusal::ProviderGone(*side));
        }
    }
    state.settle(movers, Owner::Assigned(guest));
    done(state)
}

/// What was opened already is put in fault again, and what was reserved is given back; the first failure is the one to
/// tell.
pub(super) fn roll_back(
    mut state: Specification,
    movers: &Slots,
    guest: Guest,
    (opened, left): (&[Side], &[Side]),
    told: Refusal,
) -> Steps {
    for side in left {
        movers.iter().for_each(|mover| claims::give_back(&mut state, *mover, guest, *side));
    }
    let reserved = std::mem::take(&mut state.reserved);
    state.reserved = reserved.into_iter().filter(|(slot, _)| !movers.contains(slot)).collect();
    state.settle(movers, Owner::Assigned(guest));
    let mut steps = Steps::new();
    for mut way in block(state, movers, opened) {
        let lacks = way.lacks();
        way.state.settle(movers, Owner::Quarantined(lacks));
        steps.extend(failures(&way.state, vec![told], After::Quarantined));
    }
    steps
}

/// A move whose SMMUs were in service when it was planned: where one is not when it comes to be written, the devices are
/// left in fault (contract A-1, C-9).
pub(super) fn overtaken(state: &Specification, named: &Slots, guest: Guest, reassigns: bool) -> Steps {
    let is_mover = |slot: &&Slot| {
        let owner = state.owner(**slot);
        state.devices.contains_key(*slot)
            && if reassigns { owner.is_some_and(|it| it != guest) } else { owner.is_none() }
    };
    let movers: Slots = named.iter().filter(is_mover).copied().collect();
    // Whose the rest of the group is has not changed since the plan, which it would have refused.
    let mates = movers.iter().flat_map(|mover| state.group(*mover)).filter(|mate| !movers.contains(mate));
    let elsewhere = mates.filter_map(|mate| state.owner(mate)).any(|owner| owner != guest);
    if movers.is_empty() || elsewhere || is_ended(state, guest) || is_denied(state, &movers, guest) {
        return Steps::new();
    }
    let mut steps = Steps::new();
    for mut way in block(state.clone(), &movers, &Side::ALL) {
        let lacks = way.lacks();
        way.state.settle(&movers, Owner::Quarantined(lacks));
        for side in Side::ALL.into_iter().filter(|side| movers.iter().any(|mover| is_on(*mover, *side))) {
            let is_gone = state.side(side).leaving || movers.iter().any(|mover| state.is_stranded(*mover, side));
            steps.extend(refuse(state, BTreeSet::from([Refusal::IommuBusy(side), Refusal::Busy])));
            let gone = is_gone.then_some(Refusal::ProviderGone(side));
            let told = gone.into_iter().chain([Refusal::IommuBusy(side)]).collect();
            steps.extend(failures(&way.state, told, After::Quarantined));
        }
    }
    let group = movers.first().map(|mover| state.group(*mover)).unwrap_or_default();
    split_after(steps, &group)
}
