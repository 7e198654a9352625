//! Guests and their tables.

use std::collections::BTreeSet;

use super::operations::{Steps, changed, done, refuse, skip};
use super::{Outcome, Refusal, Running, Specification};
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
    let mut users = state.devices.keys().filter(|slot| state.owner(**slot) == Some(guest)).peekable();
    if users.peek().is_some() {
        let stays = users.any(|user| !state.marked.contains(user));
        return refuse(state, BTreeSet::from([if stays { Refusal::InUse } else { Refusal::Busy }]));
    }
    if state.reserved.values().any(|to| *to == guest) {
        return refuse(state, BTreeSet::from([Refusal::Busy]));
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
        let here = state.side(side);
        let must = state.live_banks(side).contains(&guest) || here.dirty.contains(&guest) || here.kept.contains(&guest);
        // An SMMU that is about to go flushes nothing any more, and is asked where the guest ever had a device there.
        let refused = here.leaving && !ends;
        let may = here.cleaned.contains(&guest) || refused;
        ways = ways
            .into_iter()
            .flat_map(|(failed, next)| {
                let mut asked = next.clone();
                let complaint = if refused {
                    Some(Refusal::ProviderGone(side))
                } else {
                    (!asked.side_mut(side).sync()).then_some(Refusal::SyncTimeout(side))
                };
                let mut ways = Vec::new();
                if must || may {
                    ways.push((failed.iter().copied().chain(complaint).collect(), asked));
                }
                if !must {
                    ways.push((failed, next));
                }
                ways
            })
            .collect();
    }
    let end = |(failed, mut next): (BTreeSet<Refusal>, Specification)| {
        if failed.is_empty() {
            for side in Side::ALL {
                let here = next.side_mut(side);
                here.dirty.retain(|dirty| *dirty != guest);
                here.cleaned.remove(&guest);
                here.stale.retain(|(stale, _)| *stale != guest);
            }
            return done(next);
        }
        // Any of several failures may be the one that is told.
        refuse(&next, failed)
    };
    ways.into_iter().flat_map(end).collect()
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
