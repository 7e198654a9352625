//! The lock for schedule exploration: every acquisition is a point at which the explorer may run another thread.
//!
//! Compiled with `--cfg loom` (exhaustive, small) or `--cfg shuttle` (random, larger) only.

use std::boxed::Box;
use std::cell::UnsafeCell;
use std::sync::OnceLock;

#[cfg(loom)]
use loom::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
use shuttle::sync::{Mutex, MutexGuard};

#[cfg(loom)]
use super::inflight::{InFlight, Inside};
use super::platform::{ManyCpus, Platform};

/// The platform under exploration.
#[derive(Debug)]
pub enum Explored {}

impl Platform for Explored {
    type Lock = ExploredLock;
    type Sharing = ManyCpus;

    fn barrier() {}
}

/// A raw mutex over the explorer's own.
///
/// # Invariants
///
/// `guard` is only touched by the thread that holds `mutex`.
pub struct ExploredLock {
    // The explorer's mutex cannot be made in a constant; it is made where it is first taken, within the explored run.
    mutex: OnceLock<Box<Mutex<()>>>,
    guard: UnsafeCell<Option<MutexGuard<'static, ()>>>,
}

#[expect(unsafe_code, reason = "the guard must outlive the call that takes it")]
// SAFETY: `guard` is only touched by the thread that holds the mutex, and explorers run one thread at a time.
unsafe impl Sync for ExploredLock {}
#[expect(unsafe_code, reason = "the guard must outlive the call that takes it")]
// SAFETY: a lock that is moved is not held.
unsafe impl Send for ExploredLock {}

#[expect(unsafe_code, reason = "the trait is unsafe: it promises mutual exclusion")]
// SAFETY: the explorer's mutex excludes.
unsafe impl lock_api::RawMutex for ExploredLock {
    #[expect(clippy::declare_interior_mutable_const, reason = "as the trait wants it")]
    const INIT: Self = Self { mutex: OnceLock::new(), guard: UnsafeCell::new(None) };

    type GuardMarker = lock_api::GuardNoSend;

    fn lock(&self) {
        let mutex: *const Mutex<()> = &raw const **self.mutex.get_or_init(|| Box::new(Mutex::new(())));
        #[expect(unsafe_code, reason = "the guard must outlive the call that takes it")]
        // SAFETY: the boxed mutex lives as long as `self`, and `unlock` drops the guard before that ends.
        let guard = unsafe { &*mutex }.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        #[expect(unsafe_code, reason = "the guard must outlive the call that takes it")]
        // SAFETY: this thread holds the mutex (the type's invariant).
        unsafe {
            *self.guard.get() = Some(guard);
        }
    }

    fn try_lock(&self) -> bool {
        self.lock();
        true
    }

    unsafe fn unlock(&self) {
        #[expect(unsafe_code, reason = "the guard must outlive the call that takes it")]
        // SAFETY: the caller holds the mutex, as the trait asks.
        let guard = unsafe { (*self.guard.get()).take() };
        drop(guard);
    }
}

impl std::fmt::Debug for ExploredLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExploredLock")
    }
}

/// Revocable access alone: the library's own word and steps over the explorer's atomic (contract C-17).
#[cfg(loom)]
#[derive(Debug)]
pub struct ExploredDoor(InFlight<super::atomic::AtomicU32>);

/// A call inside an [`ExploredDoor`], until it leaves or is dropped.
#[cfg(loom)]
#[derive(Debug)]
#[must_use = "the call counts only while this lives"]
pub struct ExploredCall<'d>(Inside<'d, super::atomic::AtomicU32>);

#[cfg(loom)]
impl Default for ExploredDoor {
    fn default() -> Self {
        Self(InFlight::new(Self::OPEN))
    }
}

#[cfg(loom)]
impl ExploredDoor {
    const OPEN: u8 = 0;
    const REVOKED: u8 = 1;

    /// Enters, unless it was revoked.
    #[must_use]
    pub fn enter(&self) -> Option<ExploredCall<'_>> {
        self.0.enter(|state| state == Self::OPEN).map(ExploredCall).ok()
    }

    /// Lets nobody enter from now on.
    pub fn revoke(&self) {
        // It names a state for whatever it sees, so that it cannot be refused.
        let _ = self.0.change(|_| Some(Self::REVOKED));
    }

    /// How many calls are inside.
    #[must_use]
    pub fn calls(&self) -> u32 {
        self.0.seen().calls
    }
}

#[cfg(loom)]
impl ExploredCall<'_> {
    /// Leaves. Whether it was the last, of a door that was revoked: it must wake who waits for that.
    #[must_use]
    pub fn leave(self) -> bool {
        let seen = self.0.leave();
        seen.calls == 0 && seen.state != ExploredDoor::OPEN
    }
}
