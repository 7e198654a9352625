//! Reservations: an assign in two steps, with its group claimed in between (contract C-1, C-2, C-20).

use std::collections::BTreeSet;

use super::moves::{self, missing, with_banks};
use super::operations::{Steps, changed, refuse, remove_now, skip};
use super::{After, Outcome, Refusal, Specification};
use crate::op::{Guest, Side, Slot};

/// Whether the group of a registered device is claimed.
pub(super) fn is_claimed(state: &Specification, slot: Slot) -> bool {
    !state.reserved.is_empty() && state.group(slot).iter().any(|member| state.reserved.contains_key(member))
}

/// What a move of a device comes to that is on its way out, or whose group is claimed.
pub(super) fn kept_off(state: &Specification, slot: Slot) -> Option<Steps> {
    let is_leaving = state.is_leaving_device(slot);
    let refusal = if is_leaving { Refusal::Gone } else { Refusal::Busy };
    (is_leaving || is_claimed(state, slot)).then(|| refuse(state, BTreeSet::from([refusal])))
}

/// Whether a bank at an SMMU is promised to a guest.
pub(super) fn is_promised(state: &Specification, side: Side, guest: Guest) -> bool {
    state.reserved.iter().any(|(slot, to)| *to == guest && state.is_at(*slot, side))
}

pub(super) fn reserve(state: &Specification, slot: Slot, guest: Guest) -> Steps {
    if let Some(missing) = missing(state, slot, Some(guest)) {
        return missing;
    }
    let (movers, reasons) = moves::assign_reasons(state, slot, guest, false);
    with_banks(state, &movers, guest, reasons, |next| {
        changed(&next, |next| {
            next.reserved.insert(slot, guest);
        })
    })
}

pub(super) fn commit(state: &Specification, slot: Slot) -> Steps {
    let Some(guest) = state.reserved.get(&slot).copied() else { return skip(state) };
    let committed = moves::carry_out(state.clone(), &BTreeSet::from([slot]), guest);
    committed.into_iter().flat_map(|(outcome, next)| conclude(next, slot, outcome)).collect()
}

/// A commit that meets an SMMU on its way out.
pub(super) fn overtaken(state: &Specification, slot: Slot) -> Steps {
    let Some(guest) = state.reserved.get(&slot).copied() else { return Steps::new() };
    let mut steps = Steps::new();
    for side in Side::ALL.into_iter().filter(|side| state.is_at(slot, *side)) {
        let (opened, left) = if side == Side::A { (&[][..], &Side::ALL[..]) } else { (&[Side::A][..], &[Side::B][..]) };
        for told in [Refusal::IommuBusy(side), Refusal::ProviderGone(side)] {
            let ends = moves::roll_back(state.clone(), &BTreeSet::from([slot]), guest, (opened, left), told);
            steps.extend(ends.into_iter().flat_map(|(outcome, next)| conclude(next, slot, outcome)));
        }
    }
    steps
}

pub(super) fn abandon(state: &Specification, slot: Slot) -> Steps {
    let Some(guest) = state.reserved.get(&slot).copied() else { return skip(state) };
    let mut next = state.clone();
    Side::ALL.into_iter().for_each(|side| give_back(&mut next, slot, guest, side));
    conclude(next, slot, Outcome::Done)
}

/// A bank that was kept for this alone drains now. A drain that is not confirmed waits for a sync, and the caller is not told.
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
    if here.powered && here.sync() {
        here.stale.retain(|(stale, _)| *stale != guest);
    } else {
        let drain = here.failed_drain();
        here.poisoned.insert(guest, drain);
    }
}

/// The claim ends: a member that was asked to go meanwhile goes (contract C-2).
fn conclude(mut state: Specification, slot: Slot, outcome: Outcome) -> Steps {
    let group = state.group(slot);
    state.reserved.remove(&slot);
    for side in Side::ALL {
        let left: BTreeSet<Guest> =
            state.side(side).kept.iter().copied().filter(|guest| is_promised(&state, side, *guest)).collect();
        state.side_mut(side).kept = left;
    }
    state.split(&group);
    let going = group.intersection(&state.marked).copied().collect();
    let mut ends = BTreeSet::new();
    leave(state, slot, outcome, &going, &mut ends);
    ends.into_iter().collect()
}

/// Removes `going`, in any order. `outcome` is told, unless `slot` is among them.
fn leave(
    state: Specification,
    slot: Slot,
    outcome: Outcome,
    going: &BTreeSet<Slot>,
    ends: &mut BTreeSet<(Outcome, Specification)>,
) {
    if going.is_empty() {
        ends.insert((outcome, state));
        return;
    }
    for gone in going {
        for (removal, mut next) in remove_now(&state, *gone) {
            next.marked.remove(gone);
            let overtook = match removal {
                Outcome::Failed(_, left @ (After::Going | After::GoingLive)) => left,
                _ => After::Removed,
            };
            let overtook = Outcome::Failed(Refusal::Removed, overtook);
            let outcome = if *gone == slot { overtook } else { outcome.clone() };
            let others = going.iter().copied().filter(|other| other != gone).collect();
            leave(next, slot, outcome, &others, ends);
        }
    }
}

/// The removal of a device whose group is claimed.
pub(super) fn remove_later(state: &Specification, slot: Slot) -> Option<Steps> {
    if !is_claimed(state, slot) {
        return None;
    }
    let mut next = state.clone();
    next.marked.insert(slot);
    Some(vec![(Outcome::Pending, next)])
}
