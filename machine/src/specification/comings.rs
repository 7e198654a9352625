//! Devices that come and go with what they stand in: a slot, virtual functions, overlays.
//!
//! Each of these operations is several of those that a source does by itself, in an order that the contract gives (C-5):
//! what they come to is told device by device, or undone.

use std::collections::BTreeSet;

use super::moves;
use super::operations::{Steps, add, done, refuse, remove, remove_now, skip};
use super::{After, Lacks, Outcome, Owner, Refusal, Specification};
use crate::op::{Sheet, Slot};

/// What became of each device so far, and the state that follows.
type Ways = Vec<(Vec<(Slot, Outcome)>, Specification)>;

const VIRTUAL: [Slot; 2] = [Slot::FirstVirtual, Slot::SecondVirtual];

// --- a slot ---

pub(super) fn plug(state: &Specification) -> Steps {
    if state.plugged {
        return skip(state);
    }
    let mut next = state.clone();
    next.plugged = true;
    // What did not go when the card went is known still.
    let known = state.devices.contains_key(&Slot::Card);
    let steps =
        if known { refuse(&next, BTreeSet::from([Refusal::AlreadyRegistered])) } else { add(&next, Slot::Card) };
    steps.into_iter().map(|(outcome, next)| (Outcome::Each(vec![(Slot::Card, outcome)]), next)).collect()
}

pub(super) fn pull(state: &Specification) -> Steps {
    if !state.plugged {
        return skip(state);
    }
    let mut next = state.clone();
    (next.plugged, next.on) = (false, false);
    let mut ways: Ways = vec![(Vec::new(), next)];
    for slot in VIRTUAL {
        ways = each(
            ways,
            slot,
            |state| {
                if state.devices.contains_key(&slot) { remove_now(state, slot) } else { Steps::new() }
            },
        );
    }
    ways = each(ways, Slot::Card, |state| {
        let mut next = state.clone();
        if !state.devices.contains_key(&Slot::Card) {
            return Steps::new();
        }
        if has_children(state) {
            // It goes with the last of them.
            next.marked.insert(Slot::Card);
            return vec![(Outcome::Pending, next)];
        }
        next.marked.remove(&Slot::Card);
        remove_now(&next, Slot::Card)
    });
    ways.into_iter().map(|(told, next)| (Outcome::Each(told), next)).collect()
}

pub(super) fn unplug(state: &Specification) -> Steps {
    if !state.plugged {
        return skip(state);
    }
    let listed = [Slot::SecondVirtual, Slot::FirstVirtual, Slot::Card].into_iter();
    let mut ways: Ways = vec![(Vec::new(), state.clone())];
    for slot in listed.filter(|slot| state.devices.contains_key(slot)) {
        ways = each(ways, slot, |state| take_out(state, slot));
    }
    let ended = |(told, mut next): (Vec<(Slot, Outcome)>, Specification)| {
        if told.iter().all(|(_, outcome)| matches!(outcome, Outcome::Done | Outcome::Removed(_))) {
            (next.plugged, next.on) = (false, false);
        }
        (Outcome::Each(told), next)
    };
    ways.into_iter().map(ended).collect()
}

/// From its guest, quiet and reset, also where that failed before; then out.
fn take_out(state: &Specification, slot: Slot) -> Steps {
    let is_unclean = (state.owner(slot).is_some() || state.is_quarantined(slot)) && !state.is_going(slot);
    if !is_unclean {
        return remove_unassigned(state, slot);
    }
    let mut steps = Steps::new();
    for (outcome, mut next) in moves::deassign_or_reset(state, slot) {
        next.go_on(state);
        match outcome {
            Outcome::Deassigned(_) | Outcome::Failed(Refusal::NotAssigned | Refusal::Gone, _) => {
                steps.extend(remove_unassigned(&next, slot));
            }
            failed => steps.push((failed, next)),
        }
    }
    steps
}

/// A removal that takes nothing from a guest.
fn remove_unassigned(state: &Specification, slot: Slot) -> Steps {
    if !state.devices.contains_key(&slot) {
        return done(state.clone());
    }
    let has_children = slot == Slot::Card && has_children(state);
    if state.owner(slot).is_some() && !has_children {
        return refuse(state, BTreeSet::from([Refusal::AlreadyAssigned]));
    }
    remove(state, slot)
}

fn has_children(state: &Specification) -> bool {
    VIRTUAL.iter().any(|slot| state.devices.contains_key(slot))
}

/// One device more.
fn each(ways: Ways, slot: Slot, act: impl Fn(&Specification) -> Steps) -> Ways {
    let mut next = Ways::new();
    for (told, state) in ways {
        let steps = act(&state);
        if steps.is_empty() {
            next.push((told, state));
            continue;
        }
        next.extend(steps.into_iter().map(|(outcome, mut next)| {
            next.go_on(&state);
            let told = told.iter().cloned().chain([(slot, outcome)]).collect();
            (told, next)
        }));
    }
    next
}

// --- virtual functions ---

pub(super) fn switch_on(state: &Specification) -> Steps {
    let refused = |refusal| refuse(state, BTreeSet::from([refusal]));
    if !state.plugged {
        return skip(state);
    }
    if state.on {
        return refused(Refusal::AlreadyOn);
    }
    if has_children(state) {
        return refused(Refusal::VirtualRegistered);
    }
    if !state.devices.contains_key(&Slot::Card) {
        return refused(Refusal::NotRegistered);
    }
    let mut steps = Steps::new();
    for (outcome, next) in add(state, Slot::FirstVirtual) {
        let Outcome::Failed(refusal, _) = outcome else {
            steps.extend(second_on(&next, state));
            continue;
        };
        steps.push((Outcome::Failed(refusal, After::Undone), next));
    }
    steps
}

/// `before`: when nobody had a handle of the first one.
fn second_on(state: &Specification, before: &Specification) -> Steps {
    let mut steps = Steps::new();
    for (outcome, mut next) in add(state, Slot::SecondVirtual) {
        let Outcome::Failed(refusal, _) = outcome else {
            next.on = true;
            steps.push((Outcome::Done, next));
            continue;
        };
        for (removed, mut next) in remove(&next, Slot::FirstVirtual) {
            let is_gone = matches!(removed, Outcome::Done | Outcome::Removed(_));
            next.on = !is_gone;
            next.handles.clone_from(&before.handles);
            next.old_handles.clone_from(&before.old_handles);
            let left = if is_gone { After::Undone } else { After::SwitchedOn };
            steps.push((Outcome::Failed(refusal, left), next));
        }
    }
    steps
}

pub(super) fn switch_off(state: &Specification) -> Steps {
    if !state.plugged {
        return skip(state);
    }
    if VIRTUAL.iter().any(|slot| state.owner(*slot).is_some() && !state.is_going(*slot)) {
        return refuse(state, BTreeSet::from([Refusal::InUse]));
    }
    let (mut on, mut steps) = (vec![state.clone()], Steps::new());
    for slot in VIRTUAL.into_iter().rev().filter(|slot| state.devices.contains_key(slot)) {
        let mut next = Vec::new();
        let removed =
            on.iter().flat_map(|state| remove_unassigned(state, slot).into_iter().map(move |step| (state, step)));
        for (before, (outcome, mut state)) in removed {
            state.go_on(before);
            match outcome {
                Outcome::Failed(refusal, _) => steps.push((Outcome::Failed(refusal, After::SwitchedOn), state)),
                _ => next.push(state),
            }
        }
        on = next;
    }
    steps.extend(on.into_iter().flat_map(|mut state| {
        state.on = false;
        done(state)
    }));
    steps
}

// --- overlays ---

pub(super) fn apply(state: &Specification, sheet: Sheet) -> Steps {
    finish(state, |state| {
        if state.sheets.contains(&sheet) {
            return refuse(state, BTreeSet::from([Refusal::AppliedAlready]));
        }
        let slot = sheet.slot();
        let mut steps = add(state, slot);
        for (_, next) in steps.iter_mut().filter(|(outcome, _)| *outcome == Outcome::Done) {
            next.sheets.insert(sheet);
            if next.not_reset.remove(&slot) {
                next.settle(&BTreeSet::from([slot]), Owner::Quarantined(Lacks::RESET));
            }
        }
        steps
    })
}

pub(super) fn revert(state: &Specification, sheet: Sheet) -> Steps {
    if !state.sheets.contains(&sheet) {
        return skip(state);
    }
    finish(state, |state| {
        let slot = sheet.slot();
        let told = |(refusal, mut next): (Option<Refusal>, Specification)| {
            next.sheets.remove(&sheet);
            let Some(refusal) = refusal else { return (Outcome::Done, next) };
            next.leaving.push(slot);
            (Outcome::Each(vec![(slot, Outcome::Failed(refusal, After::Unfinished))]), next)
        };
        let_go(state, slot).into_iter().map(told).collect()
    })
}

/// What an earlier revert left goes first.
fn finish(state: &Specification, then: impl Fn(&Specification) -> Steps) -> Steps {
    let mut ways: Vec<(Option<Refusal>, Vec<Slot>, Specification)> = vec![(None, Vec::new(), state.clone())];
    for slot in &state.leaving {
        let mut gone = Vec::new();
        for (first, stays, state) in ways {
            for (refusal, mut next) in let_go(&state, *slot) {
                next.go_on(&state);
                let stays = stays.iter().copied().chain(refusal.map(|_| *slot)).collect();
                gone.push((first.or(refusal), stays, next));
            }
        }
        ways = gone;
    }
    let mut steps = Steps::new();
    for (first, stays, mut state) in ways {
        state.leaving = stays;
        match first {
            Some(refusal) => steps.push((Outcome::Failed(refusal, After::Unfinished), state)),
            None => steps.extend(then(&state)),
        }
    }
    steps
}

/// A device goes with the node that it is: from its guest in order, if that can be, then out.
fn let_go(state: &Specification, slot: Slot) -> Vec<(Option<Refusal>, Specification)> {
    let is_assigned = state.owner(slot).is_some() && !state.is_going(slot);
    let taken = if is_assigned { moves::deassign(state, slot, false) } else { done(state.clone()) };
    let mut ways = Vec::new();
    for (_, mut next) in taken {
        next.go_on(state);
        let Some(record) = next.devices.get(&slot).copied() else {
            ways.push((None, next));
            continue;
        };
        if !record.going && matches!(record.owner, Owner::Assigned(_) | Owner::Quarantined(_)) {
            next.not_reset.insert(slot);
        }
        ways.extend(remove_now(&next, slot).into_iter().map(|(outcome, next)| match outcome {
            Outcome::Failed(refusal, _) => (Some(refusal), next),
            _ => (None, next),
        }));
    }
    ways
}
