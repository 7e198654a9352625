//! What the hypervisor supplies and what must inline: its lock, its barrier, its clock.

use core::cell::Cell;
use core::fmt;
use core::marker::PhantomData;

use lock_api::RawMutex;

use super::time::Micros;

/// The hypervisor under the library, as one type parameter of the public types (contract C-11).
///
/// | platform | for |
/// |---|---|
/// | [`Spin`] | a hypervisor whose interrupt handlers only take faults in |
/// | [`SpinIrq`](super::SpinIrq) | one whose interrupt handlers flush and submit requests too |
/// | [`TimedSpinIrq`](super::TimedSpinIrq), as `BareMetal` on aarch64 | the same, with a clock and a [`Waiter`](super::Waiter): for a first port |
/// | [`OneCpu`](super::OneCpu) | one with a single CPU: no lock, but a flag that catches re-entry |
/// | its own | any [`lock_api`] raw mutex (the crate is `iommu_assign::sync::lock_api`), its own wake-up, its own [`Waiter`](super::Waiter) |
///
/// # Context
///
/// All items are leaves: they do not call back into the library; `barrier`, `now` and `wake` do not block.
pub trait Platform: fmt::Debug + Send + Sync + 'static {
    /// The lock that every lock of the library is made of: any `lock_api` raw mutex.
    type Lock: RawMutex + Send + Sync + 'static;

    /// Whether several CPUs may share what has this platform: [`ManyCpus`], or [`SingleCpu`] where [`Lock`](Self::Lock)
    /// only excludes what a single CPU does.
    type Sharing: Send + 'static;

    /// Orders all earlier stores to memory before all later stores to device registers, as the SMMU's table walker
    /// sees them (`dsb` on Arm; contract S-1).
    fn barrier();

    /// The time on a clock that never goes back, counted from any fixed point; `None` where there is no clock. With one,
    /// the hardware is waited for so long at most, without one, so many polls
    /// ([`SmmuConfig`](crate::smmu::SmmuConfig); contract C-14).
    ///
    /// Called before each poll of a status register, with no lock held, in whatever context the caller is in.
    fn now() -> Option<Micros> {
        None
    }

    /// Wakes whoever waits for the library ([`Waiter`](super::Waiter)). Called with no lock held, whenever a claim ends and
    /// whenever a request is submitted, answered or cancelled, the latter in the context of who does so.
    fn wake() {}
}

/// A platform whose lock keeps interrupts off while it is held, so that a handler can take it too.
///
/// What takes a lock and may run in interrupt context exists only for these platforms, by type (contract C-10, C-11).
/// What takes no lock exists for all: [`IommuHandle`](crate::assign::IommuHandle).
///
/// # Implementation contract
///
/// While [`Platform::Lock`] is held, no interrupt is taken on the holder's CPU whose handler calls the library; and
/// [`Platform::wake`] may be called in interrupt context. A platform that says so and does not do so can
/// deadlock: a handler waits for what it has interrupted. Memory stays safe, so that the trait is not `unsafe`.
pub trait InterruptSafe: Platform {}

/// [`Platform::Sharing`] of a lock that excludes other CPUs: the service is `Sync`.
#[derive(Debug)]
pub enum ManyCpus {}

/// [`Platform::Sharing`] of a lock that does not: the service is not `Sync`, so that no other CPU gets a reference.
#[derive(Debug)]
pub struct SingleCpu(PhantomData<Cell<()>>);

/// The default platform: a fair spinning lock, and the strongest barrier that the target has, without a waiter.
#[derive(Debug)]
pub enum Spin {}

impl Platform for Spin {
    type Lock = spin::mutex::TicketMutex<()>;
    type Sharing = ManyCpus;

    fn barrier() {
        strongest_barrier();
    }
}

/// The barrier of the platforms that the library brings.
pub(super) fn strongest_barrier() {
    #[cfg(target_arch = "aarch64")]
    {
        #[expect(unsafe_code, reason = "the barrier has no safe spelling in core")]
        // SAFETY: `dsb sy` has no operands, changes no register and no memory; it only waits.
        unsafe {
            core::arch::asm!("dsb sy", options(nostack, preserves_flags));
        }
    }
    #[cfg(not(target_arch = "aarch64"))]
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}
