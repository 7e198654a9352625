//! What the hypervisor supplies and what must inline: its lock and its barrier.

use core::fmt;

use lock_api::RawMutex;

/// The hypervisor under the library, as one type parameter of the public types (contract C-11).
///
/// # Context
///
/// All items are leaves: they do not call back into the library; `barrier` and `wake` do not block.
pub trait Platform: fmt::Debug + Send + Sync + 'static {
    /// The lock that every lock of the library is made of.
    ///
    /// Any `lock_api` raw mutex. Handlers that run in interrupt context need one that keeps interrupts off while it
    /// is held.
    type Lock: RawMutex + Send + Sync + 'static;

    /// Orders all earlier stores to memory before all later stores to device registers, as the SMMU's table walker
    /// sees them (`dsb` on Arm; contract S-1).
    fn barrier();

    /// Wakes whoever waits for the library ([`Waiter`](super::Waiter)). Called with no lock held, whenever a claim ends.
    fn wake() {}
}

/// The default platform: a fair spinning lock, and the strongest barrier that the target has without an interrupt
/// controller or a waiter.
#[derive(Debug)]
pub enum Spin {}

impl Platform for Spin {
    type Lock = spin::mutex::TicketMutex<()>;

    fn barrier() {
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
}
