//! Timer interrupts: each flushes a guest's page, submits a request for the worker, and now and then takes faults in.
//!
//! The requests are about one device of this CPU's own, so that their order, and with it each answer, is known: assign,
//! reassign, deassign, and again.

use core::sync::atomic::{AtomicU64, Ordering};

use iommu_assign::assign::{Completion, ReadyRequest, Request, Target};
use iommu_assign::sync::Micros;

use super::WORLD;
use super::life::deadline;
use super::score::{self, FLUSHES, IMPATIENT, OPERATIONS, REQUESTS};
use super::world::World;
use crate::boot::MAX_CPUS;
use crate::iommu::guests::Guest;
use crate::iommu::platform::Hypervisor;
use crate::lock::Lock;
use crate::machine::{console, time};

/// Until the first tick.
pub(crate) const FIRST: Micros = Micros::from_millis(5);
const SHORTEST: u64 = 700;
const SPREAD: u64 = 1600;

/// Where a CPU's request is.
enum Stage {
    /// There is none.
    None,
    /// It is made, for a tick to submit.
    Ready(ReadyRequest<Hypervisor>),
    /// It is submitted.
    Submitted(Completion<Hypervisor>),
}

/// A CPU's ticks so far.
struct Ticks {
    count: AtomicU64,
    requests: AtomicU64,
    stage: Lock<Stage>,
}

static TICKS: [Ticks; MAX_CPUS] =
    [const { Ticks { count: AtomicU64::new(0), requests: AtomicU64::new(0), stage: Lock::new(Stage::None) } };
        MAX_CPUS];

/// The timer's interrupt handler: allocates nothing, waits for nothing but a sync's small bound.
pub(crate) fn tick() {
    let cpu = console::cpu();
    let (Some(world), Some(ticks)) = (WORLD.get(), TICKS.get(cpu)) else { return };
    let count = ticks.count.fetch_add(1, Ordering::Relaxed);
    let guest = &world.guests[(count as usize + cpu) % world.guests.len()];
    match world.service.in_interrupts().flush_range(&guest.domain, &Guest::range(count)) {
        Ok(()) => score::count(&FLUSHES),
        Err(_) => score::count(&IMPATIENT),
    }
    // Faults are taken in wherever one looks for them: here too, in turn with the SMMUs' own interrupts.
    if let Some(unit) = world.units.get(count as usize % (8 * world.units.len())) {
        unit.look();
    }
    let mut stage = ticks.stage.lock();
    *stage = match core::mem::replace(&mut *stage, Stage::None) {
        Stage::Ready(request) => Stage::Submitted(world.queue.in_interrupts().submit(request)),
        other => other,
    };
    drop(stage);
    time::interrupt_after(Micros::new(SHORTEST + count.wrapping_mul(0x9e37_79b9) % SPREAD));
}

/// This CPU's part in waiting context: looks at the answer, and makes the next request.
pub(crate) fn prepare(world: &World) {
    let cpu = console::cpu();
    let Some(ticks) = TICKS.get(cpu) else { return };
    let answered = {
        let mut stage = ticks.stage.lock();
        match &*stage {
            Stage::None => None,
            Stage::Submitted(completion) if completion.poll().is_some() => {
                Some(core::mem::replace(&mut *stage, Stage::None))
            }
            _ => return,
        }
    };
    if let Some(Stage::Submitted(completion)) = answered {
        match completion.poll() {
            Some(Err(error)) => crate::violation!("a request of CPU {cpu}: {error}"),
            _ => {
                score::count(&REQUESTS);
                score::count(&OPERATIONS);
            }
        }
    }
    let Some(master) = world.requested.get(cpu) else { return };
    let number = ticks.requests.fetch_add(1, Ordering::Relaxed);
    let guest = |by: u64| world.guests[((number / 3 + by) % world.guests.len() as u64) as usize].domain.clone();
    let target = Target::Key(master.key());
    let request = match number % 3 {
        0 => Request::Assign(target, guest(0)),
        1 => Request::Reassign(target, guest(1)),
        _ => Request::Deassign(target),
    };
    *ticks.stage.lock() = Stage::Ready(world.queue.prepare(request));
}

/// Withdraws what was not submitted, waits for what was, and removes the device.
pub(crate) fn finish(world: &World) {
    let cpu = console::cpu();
    let Some(ticks) = TICKS.get(cpu) else { return };
    let last = core::mem::replace(&mut *ticks.stage.lock(), Stage::None);
    if let Stage::Submitted(completion) = last {
        // A request that has started is waited for by the removal.
        let _ = completion.cancel();
    }
    if let Some(master) = world.requested.get(cpu) {
        score::expect(world.service.remove_and_wait(master.key(), deadline()));
    }
}
