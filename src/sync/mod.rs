//! The lock order, the locks, and the platform that supplies them. This floor alone names a lock crate.
//!
//! # Locking
//!
//! `order.rs` has the rules; every floor above declares its levels with them. The whole order stands in
//! `docs/locking.md`, which a test compares with the types, and another one, by `trace.rs`, with what really happens.

pub(crate) mod atomic;
pub(crate) mod broken;
#[cfg(any(loom, shuttle))]
mod explored;
pub(crate) mod inflight;
mod interrupts;
pub(crate) mod lock;
mod one_cpu;
pub(crate) mod order;
pub(crate) mod outside;
mod platform;
mod time;
#[cfg(feature = "trace-locks")]
#[cfg_attr(docsrs, doc(cfg(feature = "trace-locks")))]
pub mod trace;
mod wait;

/// Something that is said once, and read without a lock.
pub(crate) use spin::Once;

/// Something small that interrupt handlers share: they try to lock it and never wait for it (contract C-16). Others hold
/// it for a few accesses to memory or registers.
pub(crate) use spin::Mutex as Tried;

#[cfg(any(loom, shuttle))]
pub use explored::{Explored, ExploredLock};
#[cfg(loom)]
pub use explored::{ExploredCall, ExploredDoor};
#[cfg(target_arch = "aarch64")]
pub use interrupts::Daif;
pub use interrupts::{InterruptSaving, Interrupts, SpinIrq};
pub use one_cpu::{CheckedFlag, Halt, OneCpu, Reentry};
pub use platform::{InterruptSafe, ManyCpus, Platform, SingleCpu, Spin};
pub(crate) use time::{Bound, Watch};
pub use time::{Micros, Waited};
pub use wait::{TimedOut, Waiter};

/// Lets others go on, in a loop that waits for one of them.
pub(crate) fn pause() {
    #[cfg(loom)]
    loom::thread::yield_now();
    #[cfg(all(shuttle, not(loom)))]
    shuttle::thread::yield_now();
    #[cfg(not(any(loom, shuttle)))]
    core::hint::spin_loop();
}

#[cfg(test)]
mod tests;
