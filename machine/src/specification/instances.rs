//! SMMUs that come into service and leave it.

use std::collections::BTreeSet;

use super::cover::Cube;
use super::operations::{Steps, changed, done, failures, refuse};
use super::{After, Outcome, Refusal, Specification, State, claims, entries, is_on, meets_cube, moves};
use crate::op::{Op, Side, Slot};

/// An SMMU that was taken out of service while devices were registered on it. They stay with it, whatever comes after it
/// at its place, and have nothing of it but what its driver believes (contract C-9).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Gone {
    pub(super) side: Side,
    pub(super) entries: BTreeSet<Cube>,
    pub(super) devices: BTreeSet<Slot>,
}

impl Gone {
    /// What there may be when `slot`, which is no longer registered, has been taken out of those that went.
    pub(super) fn without(state: &Specification, slot: Slot) -> Vec<Specification> {
        let mut ways = vec![Specification { gone: BTreeSet::new(), ..state.clone() }];
        for gone in &state.gone {
            let mut left = gone.clone();
            let was_there = left.devices.remove(&slot);
            let mut lefts = vec![left.clone()];
            if was_there {
                let used = gone.entries.iter().copied().filter(|cube| meets_cube(slot, gone.side, *cube)).collect();
                let anew = entries::after_remove(&left.alone(state), &used, gone.side).into_iter();
                lefts = anew.map(|entries| Self { entries, ..left.clone() }).collect();
            }
            let with = |way: &Specification| {
                let with = |left: &Self| {
                    let mut way = way.clone();
                    way.gone.extend(Some(left.clone()).filter(|left| !left.devices.is_empty()));
                    way
                };
                lefts.iter().map(with).collect::<Vec<_>>()
            };
            ways = ways.iter().flat_map(with).collect();
        }
        ways
    }

    /// The machine as its driver sees it: with nobody else, and as if it were in service.
    pub(super) fn alone(&self, state: &Specification) -> Specification {
        let mut alone = Specification { gone: BTreeSet::new(), ..state.clone() };
        alone.devices.retain(|slot, _| self.devices.contains(slot));
        alone.side_mut(self.side).entries.clone_from(&self.entries);
        alone
    }
}

pub(super) fn unregister(state: &Specification, side: Side) -> Steps {
    if !state.side(side).registered {
        return refuse(state, BTreeSet::from([Refusal::NotFound]));
    }
    let mut users = state.devices.keys().filter(|slot| state.is_at(**slot, side)).peekable();
    if users.peek().is_some() {
        let stays = users.any(|user| !state.marked.contains(user));
        return refuse(state, BTreeSet::from([if stays { Refusal::InUse } else { Refusal::Busy }]));
    }
    if state.side(side).leaving {
        // It was forced, and that has not come to its end: it is to be asked for again.
        return refuse(state, BTreeSet::from([Refusal::ProviderGone(side)]));
    }
    // Who would confirm a drain when the SMMU is gone (contract I-8)? It is confirmed now, or the SMMU stays.
    let here = state.side(side);
    let mut steps = Steps::new();
    if here.dirty.is_empty() {
        steps.extend(changed(state, |next| next.side_mut(side).registered = false));
    }
    if !here.dirty.is_empty() || !here.cleaned.is_empty() {
        let mut next = state.clone();
        if next.side_mut(side).sync() {
            next.side_mut(side).cleaned.clear();
            next.side_mut(side).registered = false;
            steps.push((Outcome::Done, next));
        } else {
            steps.push((Outcome::refused(Refusal::SyncTimeout(side)), next));
        }
    }
    steps
}

/// Every stream faults, whatever comes of it; what was in flight has drained, or it is not out of service yet.
pub(super) fn force_unregister(state: &Specification, side: Side) -> Steps {
    if !state.side(side).registered {
        return refuse(state, BTreeSet::from([Refusal::NotFound]));
    }
    let mut next = state.clone();
    next.side_mut(side).leaving = true;
    if !next.side_mut(side).sync() {
        return refuse(&next, BTreeSet::from([Refusal::SyncTimeout(side)]));
    }
    let devices: BTreeSet<Slot> = state.devices.keys().copied().filter(|slot| state.is_at(*slot, side)).collect();
    let here = next.side_mut(side);
    let State { part, entries, stuck, next_lost, .. } = here.clone();
    *here = State { registered: false, stuck, next_lost, ..State::new(part) };
    if !devices.is_empty() {
        next.gone.insert(Gone { side, entries, devices });
    }
    done(next)
}

pub(super) fn register(state: &Specification, side: Side) -> Steps {
    if state.side(side).registered {
        return refuse(state, BTreeSet::from([Refusal::AlreadyRegistered]));
    }
    let mut next = state.clone();
    if !next.side_mut(side).sync() {
        return vec![(Outcome::refused(Refusal::Probe(side)), next)];
    }
    let here = next.side_mut(side);
    here.registered = true;
    // The reset has forgotten everything.
    here.cleaned.clear();
    here.stale.clear();
    debug_assert!(here.entries.iter().all(|cube| Slot::ALL.iter().all(|slot| !meets_cube(*slot, side, *cube))));
    done(next)
}

/// See [`Specification::overtaken`].
pub(super) fn overtaken(state: &Specification, op: Op) -> Steps {
    let is_out = |side: &Side| !state.side(*side).registered || state.side(*side).leaving;
    let sides = || Side::ALL.into_iter();
    match op {
        Op::Add(slot) => {
            let here = || sides().filter(|side| is_on(slot, *side));
            let gone = here().filter(is_out).map(Refusal::ProviderGone);
            refuse(state, gone.chain(here().map(Refusal::IommuBusy)).collect())
        }
        Op::Remove(slot) => {
            // It had been cut, and was nobody's any more, when the SMMU went.
            let gone: Vec<Refusal> = sides().filter(|side| is_on(slot, *side)).map(Refusal::ProviderGone).collect();
            let done = super::operations::step(state, op).into_iter();
            let done = done.filter(|(outcome, _)| matches!(outcome, Outcome::Done | Outcome::Removed(_)));
            done.flat_map(|(_, next)| failures(&next, gone.clone(), After::Removed)).collect()
        }
        Op::Flush(guest) if state.is_running(guest) => {
            let gone = sides().filter(is_out).map(Refusal::ProviderGone);
            refuse(state, gone.chain(sides().map(Refusal::IommuBusy)).collect())
        }
        Op::ForceUnregister(side) if state.side(side).registered => {
            // Whoever else is at it keeps this one out; or calls inside do, and nothing that acquires gets in any more.
            let mut closed = state.clone();
            closed.side_mut(side).leaving = true;
            let busy = Outcome::refused(Refusal::IommuBusy(side));
            // Or it began what another one ends.
            vec![(busy.clone(), state.clone()), (busy, closed.clone()), (Outcome::refused(Refusal::NotFound), closed)]
        }
        Op::Reserve(slot, _) => {
            let here = sides().filter(|side| is_on(slot, *side));
            refuse(state, here.map(Refusal::IommuBusy).collect())
        }
        Op::Commit(slot) => claims::overtaken(state, slot),
        Op::Assign(slot, guest) => moves::overtaken(state, &BTreeSet::from([slot]), guest, false),
        Op::AssignGroup(slot, guest) => moves::overtaken(state, &state.group(slot), guest, false),
        Op::Reassign(slot, guest) => moves::overtaken(state, &BTreeSet::from([slot]), guest, true),
        Op::ReassignGroup(slot, guest) => moves::overtaken(state, &state.group(slot), guest, true),
        _ => Steps::new(),
    }
}
