//! Guests and their tables.

use std::collections::BTreeSet;

use super::operations::{Steps, changed, done, refuse, skip};
use super::{After, Drain, Outcome, Refusal, Running, Specification, State};
use crate::op::{Guest, Side, Slot};

pub(super) fn create(state: &Specification, guest: Guest) -> Steps {
    if state.guests.get(&guest).is_some_and(|running| running.alive) {
        return skip(state);
    }
    changed(state, |next| {
        next.guests.insert(guest, Running { alive: true, second: None, last: false });
    })
}

pub(super) fn destroy(state: &Specification, guest: Guest) -> Steps {
    let Some(running) = state.guests.get(&guest) else { return skip(state) };
    if !running.alive {
        return refuse(state, BTreeSet::from([Refusal::Gone]));
    }
    let mut reasons = BTreeSet::new();
    if state.devices.keys().any(|slot| state.owner(*slot) == Some(guest)) {
        reasons.insert(Refusal::InUse);
    }
    if state.reserved.values().any(|to| *to == guest) {
        reasons.insert(Refusal::Busy);
    }
    if !reasons.is_empty() {
        return refuse(state, reasons);
    }
    let end = |(outcome, mut next): (Outcome, Specification)| {
        if outcome == Outcome::Done
            && let Some(running) = next.guests.get_mut(&guest)
        {
            running.alive = false;
            super::queue::end_domain(&mut next, guest);
        }
        (outcome, next)
    };
    flush(state, guest, true).into_iter().map(end).collect()
}

pub(super) fn flush_op(state: &Specification, guest: Guest) -> Steps {
    match state.guests.get(&guest) {
        None => skip(state),
        Some(running) if running.alive => flush(state, guest, false),
        Some(_) => vec![(Outcome::Done, state.clone()), (Outcome::refused(Refusal::Gone), state.clone())],
    }
}

/// Makes every SMMU forget a guest's tables, also after one of them failed. `ends`: for good.
fn flush(state: &Specification, guest: Guest, ends: bool) -> Steps {
    let mut ways: Vec<(BTreeSet<Refusal>, Specification)> = vec![(BTreeSet::new(), state.clone())];
    for side in Side::ALL {
        let from = ways.into_iter().flat_map(|(failed, next)| {
            let with = move |(failure, here): (Option<Refusal>, State)| {
                let mut next = next.clone();
                *next.side_mut(side) = here;
                (failed.iter().copied().chain(failure).collect(), next)
            };
            flush_at(state, side, guest, ends).into_iter().map(with)
        });
        ways = from.collect();
    }
    let end = |(failed, mut next): (BTreeSet<Refusal>, Specification)| {
        if failed.is_empty() {
            for side in Side::ALL {
                let here = next.side_mut(side);
                here.stale.retain(|(stale, _)| *stale != guest);
                if ends {
                    here.poisoned.remove(&guest);
                }
            }
            return done(next);
        }
        // Any of several failures may be the one that is told.
        let left = if ends { After::Unchanged } else { After::Stale };
        failed.into_iter().map(|reason| (Outcome::Failed(reason, left), next.clone())).collect()
    };
    ways.into_iter().flat_map(end).collect()
}

/// What it may come to at one SMMU.
fn flush_at(state: &Specification, side: Side, guest: Guest, ends: bool) -> Vec<(Option<Refusal>, State)> {
    let here = state.side(side);
    if !here.registered {
        return vec![(None, here.clone())];
    }
    let drain = here.poisoned.get(&guest).copied();
    let is_live = state.live_banks(side).contains(&guest) || here.kept.contains(&guest);
    // A poisoned bank may have been finished by now.
    let (must, may) = (is_live || drain == Some(Drain::Stuck), drain.is_some());
    let mut ways = Vec::new();
    if !must {
        ways.push((None, here.clone()));
    }
    // One that is about to go flushes nothing any more; one without power may want it before it looks.
    let refused = [(here.leaving && !ends).then_some(Refusal::ProviderGone(side))];
    let refused = refused.into_iter().chain([(!here.powered).then_some(Refusal::NoPower(side))]);
    let before = ways.len();
    ways.extend(refused.flatten().map(|refusal| (Some(refusal), here.clone())));
    if ways.len() > before || !(must || may) {
        return ways;
    }
    let timeout = |confirmed: bool| (!confirmed).then_some(Refusal::SyncTimeout(side));
    match drain {
        Some(drain) if ends => ways.extend(here.finish(drain).into_iter().map(|(done, here)| (timeout(done), here))),
        _ => {
            let mut synced = here.clone();
            let confirmed = synced.sync();
            ways.push((timeout(confirmed), synced));
        }
    }
    ways
}

pub(super) fn map(state: &Specification, guest: Guest) -> Steps {
    let running = state.guests.get(&guest).filter(|running| running.alive && running.second.is_none());
    let Some(running) = running else { return skip(state) };
    let frame = !running.last;
    changed(state, |next| {
        next.guests.insert(guest, Running { alive: true, second: Some(frame), last: frame });
    })
}

pub(super) fn unmap(state: &Specification, guest: Guest) -> Steps {
    let Some(running) = state.guests.get(&guest).filter(|running| running.alive) else { return skip(state) };
    let Some(frame) = running.second else { return skip(state) };
    changed(state, |next| {
        next.guests.insert(guest, Running { second: None, ..*running });
        for side in Side::ALL.into_iter().filter(|side| state.live_banks(*side).contains(&guest)) {
            next.side_mut(side).stale.insert((guest, frame));
        }
    })
}

pub(super) fn dma_second(state: &Specification, slot: Slot, choice: u8) -> Steps {
    let Some((side, id)) = slot.stream_id(choice) else { return skip(state) };
    let guest = state.reach(side, id.into());
    let mapped = guest.and_then(|guest| state.guests.get(&guest)).and_then(|running| running.second);
    // An addition is seen at once (contract I-9); what was unmapped may be seen until a flush.
    let mut frames = BTreeSet::from([guest.zip(mapped)]);
    if let Some(guest) = guest {
        frames.extend(
            [false, true]
                .map(|frame| (guest, frame))
                .into_iter()
                .filter(|it| state.side(side).stale.contains(it))
                .map(Some),
        );
    }
    frames.into_iter().map(|frame| (Outcome::ReachedSecond(frame), state.clone())).collect()
}
