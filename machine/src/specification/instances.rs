//! SMMUs that come into service and leave it.

use std::collections::BTreeSet;

use super::cover::Cube;
use super::operations::{Steps, done, failures, refuse};
use super::{After, Drain, Outcome, Refusal, Specification, State, claims, entries, is_on, meets_cube, moves};
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
        Self::changed(state, |gone| {
            let mut left = gone.clone();
            if !left.devices.remove(&slot) {
                return vec![left];
            }
            let used = gone.entries.iter().copied().filter(|cube| meets_cube(slot, gone.side, *cube)).collect();
            let ways = entries::after_remove(&left.alone(state), &used, gone.side).into_iter();
            ways.map(|entries| Self { entries, ..left.clone() }).collect()
        })
    }

    /// What there may be when devices of SMMUs that went were put in fault, in software.
    pub(super) fn blocked(state: &Specification, slots: &BTreeSet<Slot>, side: Side) -> Vec<Specification> {
        Self::changed(state, |gone| {
            if gone.side != side || gone.devices.is_disjoint(slots) {
                return vec![gone.clone()];
            }
            let ways = entries::after_block(&gone.alone(state), side).into_iter();
            // A drain that was nothing to do fits nothing.
            ways.map(|entries| Self { entries, ..gone.clone() }).chain([gone.clone()]).collect()
        })
    }

    fn changed(state: &Specification, change: impl Fn(&Self) -> Vec<Self>) -> Vec<Specification> {
        let mut ways = vec![Specification { gone: BTreeSet::new(), ..state.clone() }];
        for gone in &state.gone {
            let lefts = change(gone);
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
    let here = state.side(side);
    if !here.registered {
        return refuse(state, BTreeSet::from([Refusal::NotFound]));
    }
    let mut devices = state.devices.keys().filter(|slot| state.is_at(**slot, side)).peekable();
    if devices.peek().is_some() {
        let are_leaving = devices.all(|slot| state.marked.contains(slot));
        return refuse(state, BTreeSet::from([if are_leaving { Refusal::Busy } else { Refusal::InUse }]));
    }
    if here.leaving {
        // It was forced, and that has not come to its end: it does now, or is as it was.
        let as_it_was = |(outcome, next)| match outcome {
            Outcome::Failed(reason, After::Closing) => (Outcome::refused(reason), next),
            outcome => (outcome, next),
        };
        return force_unregister(state, side).into_iter().map(as_it_was).collect();
    }
    // Nothing could confirm a drain when the SMMU is gone (contract I-8): it is confirmed now, or the SMMU stays.
    let ended = |here: &State| {
        let mut next = state.clone();
        let at = next.side_mut(side);
        at.clone_from(here);
        at.poisoned.clear();
        at.registered = false;
        (Outcome::Done, next)
    };
    let Some(drain) = here.poisoned.values().max() else { return vec![ended(here)] };
    let mut steps = Steps::new();
    if *drain == Drain::Late {
        // It may have been finished already.
        steps.push(ended(here));
    }
    if !here.powered {
        steps.extend(refuse(state, BTreeSet::from([Refusal::NoPower(side)])));
        return steps;
    }
    for (confirmed, after) in here.finish(*drain) {
        let mut next = state.clone();
        next.side_mut(side).clone_from(&after);
        let refused = || (Outcome::refused(Refusal::SyncTimeout(side)), next.clone());
        steps.push(if confirmed { ended(&after) } else { refused() });
    }
    steps
}

/// Every stream faults, whatever comes of it; what was in flight has drained, or it is not out of service yet.
pub(super) fn force_unregister(state: &Specification, side: Side) -> Steps {
    if !state.side(side).registered {
        return refuse(state, BTreeSet::from([Refusal::NotFound]));
    }
    let mut next = state.clone();
    if !next.side(side).powered {
        // Nothing new gets in; what translates goes on.
        next.side_mut(side).leaving = true;
        return vec![(Outcome::Failed(Refusal::NoPower(side), After::Closing), next)];
    }
    (next.side_mut(side).leaving, next.side_mut(side).silenced) = (true, true);
    if !next.side_mut(side).sync() {
        return vec![(Outcome::Failed(Refusal::SyncTimeout(side), After::Closing), next)];
    }
    let devices: BTreeSet<Slot> = state.devices.keys().copied().filter(|slot| state.is_at(*slot, side)).collect();
    let here = next.side_mut(side);
    let State { part, entries, stuck, next_lost, powered, .. } = here.clone();
    *here = State { registered: false, stuck, next_lost, powered, ..State::new(part) };
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
    if !next.side(side).powered || !next.side_mut(side).sync() {
        return vec![(Outcome::refused(Refusal::Probe(side)), next)];
    }
    let here = next.side_mut(side);
    here.registered = true;
    // The reset has forgotten everything.
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
            failures(state, gone.chain(sides().map(Refusal::IommuBusy)).collect(), After::Stale)
        }
        Op::ForceUnregister(side) if state.side(side).registered => {
            // Whoever else is at it keeps this one out; or calls inside do, and nothing that acquires gets in any more.
            let mut closed = state.clone();
            (closed.side_mut(side).leaving, closed.side_mut(side).silenced) = (true, true);
            let busy = Outcome::Failed(Refusal::IommuBusy(side), After::Closing);
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
