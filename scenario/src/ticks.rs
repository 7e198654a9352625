//! Timer interrupts: each flushes a guest's page, submits a request for the worker, and now and then takes faults in.
//!
//! The requests are about one device of this CPU's own, so that their order, and with it each answer, is known: assign,
//! reassign, deassign, and again.
//!
//! # Locking
//!
//! A CPU's stage has the platform's lock, which masks interrupts: the handler takes it too.

use core::sync::atomic::{AtomicU64, Ordering};

use iommu_assign::assign::{Completion, ReadyRequest, Request, Target};
use iommu_assign::sync::lock_api::Mutex;
use iommu_assign::sync::{Micros, Platform};

use super::machine::{Guest, Machine, Unit};
use super::world::World;
use super::{deadline, turn};

/// Until the first tick.
pub(crate) const FIRST: Micros = Micros::from_millis(5);
const SHORTEST: u64 = 700;
const SPREAD: u64 = 1600;
/// One tick in so many takes in the faults of an SMMU.
const LOOKS: u64 = 8;

/// Where a CPU's request is.
enum Stage<P: Platform> {
    /// There is none.
    None,
    /// It is made, for a tick to submit.
    Ready(ReadyRequest<P>),
    /// It is submitted.
    Submitted(Completion<P>),
}

/// A CPU's ticks so far.
pub(crate) struct Ticks<P: Platform> {
    count: AtomicU64,
    requests: AtomicU64,
    stage: Mutex<P::Lock, Stage<P>>,
}

impl<P: Platform> Ticks<P> {
    pub(crate) const fn new() -> Self {
        Self { count: AtomicU64::new(0), requests: AtomicU64::new(0), stage: Mutex::new(Stage::None) }
    }

    fn replace(&self, stage: Stage<P>) -> Stage<P> {
        core::mem::replace(&mut *self.stage.lock(), stage)
    }
}

impl<M: Machine> World<M> {
    /// The timer's interrupt handler: allocates nothing, waits for nothing but a sync's small bound.
    pub fn tick(&self) {
        let cpu = self.machine.cpu();
        let Some(ticks) = self.ticks.get(cpu) else { return };
        let count = ticks.count.fetch_add(1, Ordering::Relaxed);
        if let Some(guest) = turn(&self.guests, count.wrapping_add(as_number(cpu))) {
            match self.service.in_interrupts().flush_range(guest.domain(), &M::Guest::range(count)) {
                Ok(()) => self.score().flushes.count(),
                Err(_) => self.score().impatient.count(),
            };
        }
        // Faults are taken in wherever one looks for them: here too, in turn with the SMMUs' own interrupts.
        let looks = as_number(self.units.len()).saturating_mul(LOOKS);
        let unit = count.checked_rem(looks).and_then(|turn| self.units.get(usize::try_from(turn).ok()?));
        if let Some(unit) = unit {
            unit.look();
        }
        let mut stage = ticks.stage.lock();
        *stage = match core::mem::replace(&mut *stage, Stage::None) {
            Stage::Ready(request) => Stage::Submitted(self.queue.in_interrupts().submit(request)),
            other => other,
        };
        drop(stage);
        let more = count.wrapping_mul(0x9e37_79b9) % SPREAD;
        self.machine.interrupt_after(Micros::new(SHORTEST.saturating_add(more)));
    }

    /// This CPU's part in waiting context: looks at the answer, and makes the next request.
    pub(crate) fn prepare(&self) {
        let cpu = self.machine.cpu();
        let Some(ticks) = self.ticks.get(cpu) else { return };
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
                Some(Err(error)) => self.score().violation(format_args!("a request of CPU {cpu}: {error}")),
                _ => {
                    self.score().requests.count();
                    self.score().operations.count();
                }
            }
        }
        let Some(master) = self.requested.get(cpu) else { return };
        let number = ticks.requests.fetch_add(1, Ordering::Relaxed);
        let guest = |by: u64| turn(&self.guests, (number / 3).wrapping_add(by)).map(|guest| guest.domain().clone());
        let Some((first, second)) = guest(0).zip(guest(1)) else { return };
        let target = Target::Key(master.key());
        let request = match number % 3 {
            0 => Request::Assign(target, first),
            1 => Request::Reassign(target, second),
            _ => Request::Deassign(target),
        };
        ticks.replace(Stage::Ready(self.queue.prepare(request)));
    }

    /// Withdraws what was not submitted, waits for what was, and removes the device.
    pub(crate) fn withdraw(&self) {
        let cpu = self.machine.cpu();
        let Some(ticks) = self.ticks.get(cpu) else { return };
        if let Stage::Submitted(completion) = ticks.replace(Stage::None) {
            // A request that has started is waited for by the removal.
            let _ = completion.cancel();
        }
        if let Some(master) = self.requested.get(cpu) {
            self.score().expect(self.service.remove_and_wait(master.key(), deadline::<M::Platform>()));
        }
    }
}

fn as_number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}
