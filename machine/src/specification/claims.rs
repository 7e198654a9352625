//! Reservations: an assign in two steps, with its group claimed in between (contract C-1, C-2, C-20).

use std::collections::BTreeSet;

use super::moves::{self, install, missing, with_banks};
use super::operations::{Steps, changed, done, refuse, remove_now, skip};
use super::{After, Outcome, Refusal, Specification};
use crate::op::{Guest, Side, Slot};

/// Whether the group of a registered device is claimed.
pub(super) fn is_claimed(state: &Specification, slot: Slot) -> bool {
    !state.reserved.is_empty() && state.group(slot).iter().any(|member| state.reserved.contains_key(member))
}

/// What a move of a device comes to that is on its way out, or whose group is claimed.
pub(super) fn kept_off(state: &Specification, slot: Slot) -> Option<Steps> {
    let refusal = if state.marked.contains(&slot) { Refusal::Gone } else { Refusal::Busy };
    let is_off = state.marked.contains(&slot) || is_claimed(state, slot);
    is_off.then(|| refuse(state, BTreeSet::from([refusal])))
}

/// Whether a bank at an SMMU is promised to a guest.
pub(super) fn is_promised(state: &Specification, side: Side, guest: Guest) -> bool {
    state.reserved.iter().any(|(slot, to)| *to == guest && state.is_at(*slot, side))
}

pub(super) fn reserve(state: &Specification, slot: Slot, guest: Guest) -> Steps {
    if let Some(missing) = missing(state, slot, Some(guest)) {
        return missing;
    }
    let (subjects, reasons) = moves::assign_reasons(state, slot, guest, false);
    with_banks(state, &subjects, guest, reasons, |next| {
        changed(&next, |next| {
            next.reserved.insert(slot, guest);
        })
    })
}

pub(super) fn commit(state: &Specification, slot: Slot) -> Steps {
    let Some(guest) = state.reserved.get(&slot).copied() else { return skip(state) };
    let committed = install(state.clone(), &BTreeSet::from([slot]), guest);
    committed.into_iter().flat_map(|(outcome, next)| conclude(next, slot, outcome)).collect()
}

/// A commit that meets an SMMU on its way out.
pub(super) fn overtaken(state: &Specification, slot: Slot) -> Steps {
    let Some(guest) = state.reserved.get(&slot).copied() else { return Steps::new() };
    let mut steps = Steps::new();
    for side in Side::ALL.into_iter().filter(|side| state.is_at(slot, *side)) {
        let (opened, left) = if side == Side::A { (&[][..], &Side::ALL[..]) } else { (&[Side::A][..], &[Side::B][..]) };
        let told = Refusal::IommuBusy(side);
        let ends = moves::roll_back(state.clone(), &BTreeSet::from([slot]), guest, (opened, left), told);
        steps.extend(ends.into_iter().flat_map(|(outcome, next)| conclude(next, slot, outcome)));
    }
    steps
}

pub(super) fn abandon(state: &Specification, slot: Slot) -> Steps {
    let Some(guest) = state.reserved.get(&slot).copied() else { return skip(state) };
    let mut next = state.clone();
    Side::ALL.into_iter().for_each(|side| give_back(&mut next, slot, guest, side));
    conclude(next, slot, Outcome::Done)
}

/// A bank that was kept for this alone drains now. Nobody is told if that is not confirmed: it waits for a sync.
pub(super) fn give_back(state: &mut Specification, slot: Slot, guest: Guest, side: Side) {
    if !state.is_at(slot, side) {
        return;
    }
    let others = state.reserved.iter().any(|(other, to)| *other != slot && *to == guest && state.is_at(*other, side));
    let live = state.live_banks(side).contains(&guest);
    let here = state.side_mut(side);
    if others || live || !here.kept.remove(&guest) {
        return;
    }
    if here.sync() {
        here.stale.retain(|(stale, _)| *stale != guest);
    } else {
        here.dirty.push(guest);
    }
}

/// The claim ends: who was asked to go meanwhile goes (contract C-2).
fn conclude(mut state: Specification, slot: Slot, outcome: Outcome) -> Steps {
    let group = state.group(slot);
    state.reserved.remove(&slot);
    for side in Side::ALL {
        let left: BTreeSet<Guest> =
            state.side(side).kept.iter().copied().filter(|guest| is_promised(&state, side, *guest)).collect();
        state.side_mut(side).kept = left;
    }
    let removed = Outcome::Failed(Refusal::Removed, After::Removed);
    let outcome = if state.marked.contains(&slot) { removed } else { outcome };
    let going: BTreeSet<Slot> = group.intersection(&state.marked).copied().collect();
    let mut ends = BTreeSet::new();
    leave(state, going, &mut ends);
    ends.into_iter().map(|state| (outcome.clone(), state)).collect()
}

/// Removes `going`, in any order, and after them the parents that wait for it.
fn leave(state: Specification, going: BTreeSet<Slot>, ends: &mut BTreeSet<Specification>) {
    if going.is_empty() {
        ends.insert(state);
        return;
    }
    for slot in &going {
        for (_, mut next) in remove_now(&state, *slot) {
            next.marked.remove(slot);
            let mut going = going.clone();
            going.remove(slot);
            let has_children = |parent: Slot| next.devices.keys().any(|child| child.parent() == Some(parent));
            going.extend(slot.parent().filter(|parent| next.marked.contains(parent) && !has_children(*parent)));
            leave(next, going, ends);
        }
    }
}

/// The removal of a device that cannot go now.
pub(super) fn remove_later(state: &Specification, slot: Slot) -> Option<Steps> {
    let has_children = state.devices.keys().any(|child| child.parent() == Some(slot));
    if !has_children && !is_claimed(state, slot) {
        return None;
    }
    let mut next = state.clone();
    next.marked.insert(slot);
    Some(done(next).into_iter().map(|(_, next)| (Outcome::Pending, next)).collect())
}
