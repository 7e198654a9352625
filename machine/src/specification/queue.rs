//! The request queue and its worker (contract C-12).
//!
//! Requests about one device are answered in the order of their submission. One that meets a claimed group steps aside
//! with all later ones of its device; each round of the worker tries what is aside first, one request of each device, then
//! the line. What met a claimed group has done nothing.

use std::collections::BTreeSet;

use super::operations::{Steps, changed, refuse, skip, step};
use super::{After, Outcome, Refusal, Specification};
use crate::op::{Ask, Op, Slot};

/// A request without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Waiting {
    ask: Ask,
    /// The domain that it names has ended. Another one may be the guest's now.
    ended: bool,
    /// It is answered; its place is taken until its turn comes.
    cancelled: bool,
}

impl Waiting {
    pub(super) const fn op(&self) -> Op {
        self.ask.op()
    }
}

pub(super) fn submit(state: &Specification, ask: Ask) -> Steps {
    if matches!(ask, Ask::Offer(slot) if !slot.is_offered()) {
        return skip(state);
    }
    let running = ask.guest().map(|guest| state.guests.get(&guest));
    match running {
        Some(None) => skip(state),
        running => {
            let ended = running.flatten().is_some_and(|running| !running.alive);
            changed(state, |next| next.line.push(Waiting { ask, ended, cancelled: false }))
        }
    }
}

pub(super) fn cancel(state: &Specification, slot: Slot) -> Steps {
    let mut next = state.clone();
    let mut waiting = next.aside.iter_mut().chain(&mut next.line);
    match waiting.find(|waiting| waiting.ask.slot() == slot && !waiting.cancelled) {
        Some(oldest) => oldest.cancelled = true,
        None => return skip(state),
    }
    vec![(Outcome::refused(Refusal::Cancelled), next)]
}

/// A guest's domain has ended: what names it has nowhere to go.
pub(super) fn end_domain(state: &mut Specification, guest: crate::op::Guest) {
    for waiting in state.aside.iter_mut().chain(&mut state.line) {
        waiting.ended |= waiting.ask.guest() == Some(guest);
    }
}

pub(super) fn work(state: &Specification) -> Steps {
    let mut steps = Steps::new();
    let mut devices: Vec<Slot> = state.aside.iter().map(|waiting| waiting.ask.slot()).collect();
    devices.sort_by_key(|slot| slot.key());
    devices.dedup();
    try_aside(state.clone(), &devices, &mut steps);
    steps
}

/// The first of each device that has something aside, then the line.
fn try_aside(state: Specification, devices: &[Slot], steps: &mut Steps) {
    let Some((device, others)) = devices.split_first() else { return try_line(state, steps) };
    let Some(at) = state.aside.iter().position(|waiting| waiting.ask.slot() == *device) else {
        return try_aside(state, others, steps);
    };
    let waiting = state.aside.get(at).copied();
    let mut taken = state.clone();
    taken.aside.remove(at);
    if waiting.is_some_and(|waiting| waiting.cancelled) {
        return try_aside(taken, devices, steps);
    }
    if attempt(taken, waiting, steps) {
        try_aside(state, others, steps);
    }
}

fn try_line(mut state: Specification, steps: &mut Steps) {
    while !state.line.is_empty() {
        let waiting = state.line.remove(0);
        let mut aside = state.clone();
        aside.aside.push(waiting);
        let is_behind = state.aside.iter().any(|other| other.ask.slot() == waiting.ask.slot());
        if !is_behind && waiting.cancelled {
            continue;
        }
        if !is_behind && !attempt(state, Some(waiting), steps) {
            return;
        }
        state = aside;
    }
    steps.push((Outcome::Idle(state.aside.len()), state));
}

/// What a request may be answered. Says whether it may have met a claimed group instead.
fn attempt(state: Specification, waiting: Option<Waiting>, steps: &mut Steps) -> bool {
    let Some(Waiting { ask, ended, .. }) = waiting else { return false };
    let busy = Outcome::refused(Refusal::Busy);
    let mut met_claim = false;
    for (outcome, next) in answers(&state, ask, ended) {
        if outcome == busy {
            met_claim = true;
        } else {
            steps.push((Outcome::Worked(ask, Box::new(outcome)), next));
        }
    }
    met_claim
}

fn answers(state: &Specification, ask: Ask, ended: bool) -> Steps {
    let is_move = matches!(ask, Ask::Give(..) | Ask::Pass(..) | Ask::Take(_));
    if is_move && !state.devices.contains_key(&ask.slot()) {
        return refuse(state, BTreeSet::from([Refusal::NotFound]));
    }
    let steps = step(state, ask.op());
    if !ended {
        return steps;
    }
    // It is refused for that, or for whatever else would refuse it; all that is assigned in its group is another's.
    let told = steps.into_iter().filter_map(|(outcome, _)| match outcome {
        Outcome::Failed(refusal, After::Unchanged) => Some(refusal),
        _ => None,
    });
    let told: BTreeSet<Refusal> = told.collect();
    if told.contains(&Refusal::Busy) || told.contains(&Refusal::Gone) {
        return refuse(state, told);
    }
    let mut reasons: BTreeSet<Refusal> =
        told.into_iter().filter(|refusal| matches!(refusal, Refusal::NotAssigned | Refusal::Denied)).collect();
    reasons.insert(Refusal::DomainGone);
    if !state.owners([&state.group(ask.slot())]).is_empty() {
        reasons.extend([Refusal::GroupConflict, Refusal::AlreadyAssigned]);
    }
    refuse(state, reasons)
}
