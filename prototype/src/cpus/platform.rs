//! The hypervisor under the library: a lock that masks interrupts and lets other threads run, the host's clock, and a wait.
//!
//! The lock is not fair: with more CPUs than the host has, a fair one makes all wait for the CPU that is next.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use iommu_assign::sync::{
    InterruptSafe, InterruptSaving, ManyCpus, Micros, Platform, Spin, TimedOut, Waiter, lock_api,
};
use spin::mutex::SpinMutex;

use super::interrupts::{self, Mask};

/// The platform.
#[derive(Debug)]
pub(super) enum Threads {}

/// The lock of what interrupt handlers share.
pub(super) type Lock<T> = lock_api::Mutex<<Threads as Platform>::Lock, T>;

/// Calls of `wake` so far.
static WAKES: AtomicU64 = AtomicU64::new(0);

/// Microseconds since the first call.
pub(super) fn clock() -> Micros {
    static START: OnceLock<Instant> = OnceLock::new();
    let passed = START.get_or_init(Instant::now).elapsed();
    Micros::new(u64::try_from(passed.as_micros()).unwrap_or(u64::MAX))
}

/// Lets `span` pass.
pub(super) fn pass(span: Micros) {
    let start = clock();
    while clock().since(start) < span {
        interrupts::take();
        thread::yield_now();
    }
}

impl Platform for Threads {
    type Lock = InterruptSaving<SpinMutex<(), spin::Yield>, Mask>;
    type Sharing = ManyCpus;

    fn barrier() {
        Spin::barrier();
    }

    fn now() -> Option<Micros> {
        interrupts::take();
        Some(clock())
    }

    fn wake() {
        WAKES.fetch_add(1, Ordering::Release);
    }
}

impl InterruptSafe for Threads {}

impl Waiter for Threads {
    type Ticket = u64;
    type Deadline = Micros;

    fn prepare() -> u64 {
        WAKES.load(Ordering::Acquire)
    }

    fn wait(ticket: u64, deadline: Option<Micros>) -> Result<(), TimedOut> {
        while WAKES.load(Ordering::Acquire) == ticket {
            if deadline.is_some_and(|deadline| clock() >= deadline) {
                return Err(TimedOut);
            }
            interrupts::take();
            thread::yield_now();
        }
        Ok(())
    }
}
