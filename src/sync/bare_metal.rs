//! A platform that is ready: [`SpinIrq`](super::SpinIrq)'s lock, the CPU's own counter as the clock, and a wait that sleeps
//! until an event.
//!
//! # Locking
//!
//! None. The event count is one number: [`wake`](Platform::wake) raises it and then signals every CPU; a waiter looks at the
//! number, and sleeps while it stands still. A signal that comes between the look and the sleep ends the sleep at once: the
//! CPU keeps it (DDI 0487, the Wait For Event mechanism).

use core::convert::Infallible;
use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

use super::interrupts::{InterruptSaving, Interrupts};
use super::platform::{InterruptSafe, ManyCpus, Platform, strongest_barrier};
use super::time::Micros;
use super::wait::{TimedOut, Waiter};

/// What a CPU brings for [`TimedSpinIrq`]: interrupts that can be masked, a counter, and events. On aarch64
/// `Daif` has them.
///
/// # Context
///
/// Leaves: they do not call the library and do not lock. `wait_for_event` is called in waiting context, the others in any.
pub trait Cpu: Interrupts {
    /// The counter: it never goes back, and is the same on every CPU.
    fn ticks() -> u64;

    /// How often the counter ticks in a second; 0 where firmware does not say: there is no clock then.
    fn frequency() -> u64;

    /// Sleeps until a CPU signals an event, or for some other reason; not where one was signalled since the last sleep.
    fn wait_for_event();

    /// Signals an event to every CPU. Earlier stores are seen by whom it wakes.
    fn signal_event();
}

/// A platform with everything: the lock of [`SpinIrq`](super::SpinIrq), a clock, and a [`Waiter`].
///
/// `BareMetal` is the one for aarch64. A wait without a deadline sleeps. One with a deadline looks again and again, since an
/// event is all that would end the sleep; a hypervisor with a timer that wakes it can do better in a platform of its own.
pub struct TimedSpinIrq<C>(PhantomData<C>, Infallible);

/// How often something was given back. One for all: a waiter that is woken without need looks again.
static WAKES: AtomicU64 = AtomicU64::new(0);

impl<C: Cpu> Platform for TimedSpinIrq<C> {
    type Lock = InterruptSaving<spin::mutex::TicketMutex<()>, C>;
    type Sharing = ManyCpus;

    fn barrier() {
        strongest_barrier();
    }

    fn now() -> Option<Micros> {
        let (ticks, frequency) = (C::ticks(), C::frequency());
        let (seconds, rest) = (ticks.checked_div(frequency)?, ticks.checked_rem(frequency)?);
        // The rest is less than a second's ticks: no counter is so fast that its product would not fit.
        let micros = rest.saturating_mul(MICROS).checked_div(frequency)?;
        Some(Micros::new(seconds.saturating_mul(MICROS).saturating_add(micros)))
    }

    fn wake() {
        WAKES.fetch_add(1, Ordering::Release);
        C::signal_event();
    }
}

const MICROS: u64 = 1_000_000;

impl<C: Cpu> InterruptSafe for TimedSpinIrq<C> {}

impl<C: Cpu> Waiter for TimedSpinIrq<C> {
    type Ticket = u64;
    /// On the clock of [`Platform::now`]. Without a clock it has always passed.
    type Deadline = Micros;

    fn prepare() -> u64 {
        WAKES.load(Ordering::Acquire)
    }

    fn wait(ticket: u64, deadline: Option<Micros>) -> Result<(), TimedOut> {
        while WAKES.load(Ordering::Acquire) == ticket {
            match deadline {
                Some(deadline) if Self::now().is_none_or(|now| now >= deadline) => return Err(TimedOut),
                Some(_) => core::hint::spin_loop(),
                None => C::wait_for_event(),
            }
        }
        Ok(())
    }
}

impl<C> fmt::Debug for TimedSpinIrq<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TimedSpinIrq")
    }
}

/// The platform for a hypervisor on bare aarch64 that brings none of its own: IRQ and FIQ masked under a fair spinning lock,
/// the generic timer's physical counter, WFE and SEV.
///
/// At EL2 or EL3, or at EL1 where EL2 lets it read the counter. On parts whose counter an erratum spoils (Cortex-A73 858921,
/// Freescale A-008585, HiSilicon 161010101), the clock is the hypervisor's to correct, in a platform of its own.
#[cfg(target_arch = "aarch64")]
pub type BareMetal = TimedSpinIrq<super::interrupts::Daif>;

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "system registers and hints have no safe spelling in core")]
impl Cpu for super::interrupts::Daif {
    fn ticks() -> u64 {
        let ticks: u64;
        // SAFETY: reads the counter. The `isb` keeps it from being read before what comes earlier in the program (DDI 0487,
        // the Generic Timer), so that no span comes out too long.
        unsafe {
            core::arch::asm!("isb", "mrs {}, cntpct_el0", out(reg) ticks, options(nostack, preserves_flags));
        }
        ticks
    }

    fn frequency() -> u64 {
        let frequency: u64;
        // SAFETY: reads a register that firmware has written once.
        unsafe {
            core::arch::asm!("mrs {}, cntfrq_el0", out(reg) frequency, options(nomem, nostack, preserves_flags));
        }
        frequency
    }

    fn wait_for_event() {
        // SAFETY: a hint: control flow goes on after an event, an interrupt, or at once.
        unsafe {
            core::arch::asm!("wfe", options(nostack, preserves_flags));
        }
    }

    fn signal_event() {
        // SAFETY: a barrier and a hint. Whom the event wakes sees the stores that come before.
        unsafe {
            core::arch::asm!("dsb ish", "sev", options(nostack, preserves_flags));
        }
    }
}
