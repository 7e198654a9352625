//! What the threads saw, and whether some order of it is what the specification allows.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use iommu_assign::assign::Label;
use machine::op::{Op, Slot};
use machine::specification::{After, Outcome, Owner, Refusal, Specification};

/// What an operation answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// It met a claim and did nothing.
    Busy,
    /// A removal overtook it.
    Removed,
    /// Its removal will be carried out by the operation that it met.
    Pending,
    Told(Outcome),
}

/// One operation of a history, with the times at which it was called and had returned.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) op: Op,
    pub(super) called: u64,
    pub(super) returned: u64,
    pub(super) seen: Seen,
    /// What others did meanwhile.
    pub(super) beside: Vec<Op>,
}

/// Tells each call what overlapped it.
pub(super) fn see_beside(histories: &mut [Vec<Call>]) {
    let all: Vec<(u64, u64, Op)> =
        histories.iter().flatten().map(|call| (call.called, call.returned, call.op)).collect();
    for call in histories.iter_mut().flatten() {
        let beside = all.iter().filter(|(called, returned, _)| *called < call.returned && call.called < *returned);
        call.beside = beside.filter(|(called, ..)| *called != call.called).map(|(.., op)| *op).collect();
    }
}

/// What was asked of the queue as a thread for each device: only of one device are requests in order (contract C-12).
pub(super) fn asked_apart(mut histories: Vec<Vec<Call>>, client: Option<usize>) -> Vec<Vec<Call>> {
    let asked = client.map(|client| std::mem::take(&mut histories[client])).unwrap_or_default();
    let mut devices: BTreeMap<Option<Slot>, Vec<Call>> = BTreeMap::new();
    for call in asked {
        devices.entry(about(call.op)).or_default().push(call);
    }
    histories.extend(devices.into_values());
    histories
}

/// Pending removals as threads of their own that go on for ever: they are answered before they are carried out.
pub(super) fn apart(histories: &[Vec<Call>]) -> Vec<Vec<Call>> {
    let mut threads: Vec<Vec<Call>> = Vec::new();
    for calls in histories {
        let (pending, told): (Vec<Call>, Vec<Call>) =
            calls.iter().cloned().partition(|call| call.seen == Seen::Pending);
        threads.push(told);
        threads.extend(pending.into_iter().map(|call| vec![Call { returned: u64::MAX, ..call }]));
    }
    threads
}

const fn about(op: Op) -> Option<Slot> {
    match op {
        Op::Add(slot) | Op::Remove(slot) => Some(slot),
        op => moved(op),
    }
}

const fn moved(op: Op) -> Option<Slot> {
    match op {
        Op::Assign(slot, _) | Op::Reassign(slot, _) | Op::Deassign(slot) => Some(slot),
        _ => None,
    }
}

/// The states that one operation, done at one instant, can lead to.
pub(super) fn follow(states: &BTreeSet<Specification>, call: &Call) -> BTreeSet<Specification> {
    let mut after = BTreeSet::new();
    for state in states {
        let steps = state.step(call.op).into_iter();
        match &call.seen {
            Seen::Busy => {
                after.insert(state.clone());
            }
            Seen::Removed => {
                after.insert(state.clone());
                after.extend(steps.filter(|(outcome, _)| !outcome.is_refusal()).map(|(_, next)| next));
            }
            Seen::Pending => {
                after.insert(state.clone());
                let is_gone = |outcome: &Outcome| match outcome {
                    Outcome::Done | Outcome::Pending | Outcome::Removed(_) | Outcome::Failed(_, After::Removed) => true,
                    _ => false,
                };
                after.extend(steps.filter(|(outcome, _)| is_gone(outcome)).map(|(_, next)| next));
            }
            Seen::Told(told) => {
                if matches!(told, Outcome::Failed(Refusal::Exhausted(..), _)) {
                    after.insert(state.clone());
                }
                // A request names its device by key.
                let absent = moved(call.op).is_some_and(|slot| !state.shown().contains_key(&slot));
                if absent && *told == Outcome::refused(Refusal::NotFound) {
                    after.insert(state.clone());
                }
                let ends = call.beside.iter().any(|op| matches!(op, Op::ForceUnregister(_)));
                let overtaken = if ends { state.overtaken(call.op) } else { Vec::new() };
                let all = steps.chain(overtaken);
                after.extend(all.filter(|(outcome, _)| outcome == told).map(|(_, next)| next));
            }
        }
    }
    after
}

/// Whether some order of the calls, which keeps those in order that did not overlap, is what the specification allows
/// and ends in what was left.
pub(super) fn linearizable(
    states: &BTreeSet<Specification>,
    histories: &[Vec<Call>],
    left: &BTreeMap<Slot, Option<Label>>,
) -> bool {
    let mut tried: HashSet<(Vec<usize>, Vec<u8>)> = HashSet::new();
    let mut open = vec![(vec![0_usize; histories.len()], states.clone())];
    while let Some((at, states)) = open.pop() {
        let key = format!("{states:?}").into_bytes();
        if states.is_empty() || !tried.insert((at.clone(), key)) {
            continue;
        }
        let next: Vec<(usize, &Call)> =
            histories.iter().enumerate().filter_map(|(n, calls)| Some((n, calls.get(at[n])?))).collect();
        if next.is_empty() && states.iter().any(|state| matches(state, left)) {
            return true;
        }
        for (n, call) in &next {
            if next.iter().any(|(_, other)| other.returned < call.called) {
                continue;
            }
            let mut further = at.clone();
            further[*n] += 1;
            open.push((further, follow(&states, call)));
        }
    }
    false
}

/// Whether the specification's state is what the service shows.
fn matches(state: &Specification, left: &BTreeMap<Slot, Option<Label>>) -> bool {
    let expected: BTreeMap<Slot, Option<Label>> = state
        .shown()
        .into_iter()
        .map(|(slot, (owner, _))| {
            let owner = match owner {
                Owner::Assigned(guest) => Some(Label::from(guest.name())),
                Owner::Blocked | Owner::Quarantined(_) | Owner::Going => None,
            };
            (slot, owner)
        })
        .collect();
    expected == *left
}
