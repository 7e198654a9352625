//! The hypervisor under the library: a lock that masks interrupts, the architectural counter as its clock, and a wait that
//! sleeps.

use core::sync::atomic::{AtomicU64, Ordering};

use iommu_assign::sync::{
    Daif, InterruptSafe, InterruptSaving, Interrupts, ManyCpus, Micros, Platform, Spin, TimedOut, Waiter,
};
use spin::mutex::SpinMutex;

use crate::machine::time;
use crate::scenario::measure;

/// The platform.
#[derive(Debug)]
pub(crate) enum Hypervisor {}

/// The library with this hypervisor under it.
pub(crate) type Service = iommu_assign::assign::Service<Hypervisor>;
/// A guest's address space.
pub(crate) type Domain = iommu_assign::assign::Domain<Hypervisor>;

/// The CPU's interrupt masks, watched: how long are they on?
#[derive(Debug)]
pub(crate) enum Watched {}

/// PSTATE.I, as DAIF has it.
const IRQ: u64 = 1 << 7;

impl Interrupts for Watched {
    type State = u64;

    fn save_and_mask() -> u64 {
        let state = Daif::save_and_mask();
        if state & IRQ == 0 {
            measure::masked();
        }
        state
    }

    fn restore(state: u64) {
        if state & IRQ == 0 {
            measure::unmasked();
        }
        Daif::restore(state);
    }
}

/// Calls of `wake` so far.
static WAKES: AtomicU64 = AtomicU64::new(0);

impl Platform for Hypervisor {
    type Lock = InterruptSaving<SpinMutex<()>, Watched>;
    type Sharing = ManyCpus;

    fn barrier() {
        Spin::barrier();
    }

    fn now() -> Option<Micros> {
        Some(time::now())
    }

    fn wake() {
        WAKES.fetch_add(1, Ordering::Release);
        aarch64_cpu::asm::barrier::dsb(aarch64_cpu::asm::barrier::ISHST);
        aarch64_cpu::asm::sev();
    }
}

impl InterruptSafe for Hypervisor {}

/// An event count: WFE sleeps until `wake`'s SEV, or an interrupt; every CPU has a timer that runs.
impl Waiter for Hypervisor {
    type Ticket = u64;
    /// On the clock of [`Platform::now`].
    type Deadline = Micros;

    fn prepare() -> u64 {
        WAKES.load(Ordering::Acquire)
    }

    fn wait(ticket: u64, deadline: Option<Micros>) -> Result<(), TimedOut> {
        while WAKES.load(Ordering::Acquire) == ticket {
            if deadline.is_some_and(|deadline| time::now() >= deadline) {
                return Err(TimedOut);
            }
            aarch64_cpu::asm::wfe();
        }
        Ok(())
    }
}
