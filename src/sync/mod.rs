//! The lock order, the locks, and the platform that supplies them. This floor alone names a lock crate.
//!
//! | file | what |
//! |---|---|
//! | `atomic.rs` | the atomics, those of an explorer where one runs |
//! | `broken.rs` | defects that tests switch on |
//! | `order.rs` | the lock order as types: levels, edges, the token |
//! | `levels.rs` | all levels and edges of the library |
//! | `outside.rs` | what may only be called with no lock held |
//! | `trace.rs` | a recorder of which locks were taken under which, for tests |
//! | `lock.rs` | a lock of a level, and its guard |
//! | `time.rs` | microseconds |
//! | `platform.rs` | what the hypervisor supplies: lock, barrier, clock |
//! | `watch.rs` | a bounded wait for the hardware |
//! | `wait.rs` | a hypervisor that can put a caller to sleep |
//! | `inflight.rs` | revocable access: who is inside, and a mark after which nobody enters |
//! | `interrupts.rs` | a platform that masks interrupts while a lock is held |
//! | `bare_metal.rs` | a platform with a clock and a wait, ready for aarch64 |
//! | `one_cpu.rs` | a platform with a single CPU |
//! | `explored.rs` | a platform for explorers of schedules |
//!
//! # Locking
//!
//! `order.rs` has the rules, `levels.rs` the levels of every floor above. The whole order stands in `docs/locking.md`,
//! which a test compares with the types, and another one, by `trace.rs`, with what really happens.

pub(crate) mod atomic;
pub(crate) mod broken;
pub(crate) mod order;
pub(crate) mod levels;
pub(crate) mod outside;
#[cfg(feature = "trace-locks")]
#[cfg_attr(docsrs, doc(cfg(feature = "trace-locks")))]
pub mod trace;
pub(crate) mod lock;
mod time;
mod platform;
mod watch;
mod wait;
pub(crate) mod inflight;
mod interrupts;
mod bare_metal;
mod one_cpu;
#[cfg(any(loom, shuttle))]
mod explored;

/// Something that is said once, and read without a lock.
pub(crate) use spin::Once;

/// Something small that interrupt handlers share: they try to lock it and never wait for it (contract C-16). Others hold
/// it for a few accesses to memory or registers.
pub(crate) use spin::Mutex as Tried;

/// The crate of the trait that [`Platform::Lock`] wants: for a lock of one's own.
pub use lock_api;

#[cfg(target_arch = "aarch64")]
pub use bare_metal::BareMetal;
pub use bare_metal::{Cpu, TimedSpinIrq};
#[cfg(any(loom, shuttle))]
pub use explored::{Explored, ExploredLock};
#[cfg(loom)]
pub use explored::{ExploredCall, ExploredDoor};
#[cfg(target_arch = "aarch64")]
pub use interrupts::Daif;
pub use interrupts::{InterruptSaving, Interrupts, SpinIrq};
pub use one_cpu::{CheckedFlag, Halt, OneCpu, Reentry};
pub use platform::{InterruptSafe, ManyCpus, Platform, SingleCpu, Spin};
pub use time::Micros;
pub use wait::{TimedOut, Waiter};
pub use watch::Waited;
pub(crate) use watch::{Bound, Watch};

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
