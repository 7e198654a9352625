//! A mutual-exclusion lock that knows its place in the order.

use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};

use lock_api::RawMutex;

use super::order::{Before, Held, Level};
#[cfg(feature = "trace-locks")]
use super::trace;

/// A value behind the hypervisor's own kind of lock `R`, at level `L` of the order.
pub(crate) struct Lock<L, T, R> {
    mutex: lock_api::Mutex<R, T>,
    level: PhantomData<fn() -> L>,
    #[cfg(feature = "trace-locks")]
    identity: trace::Identity,
}

impl<L: Level, T, R: RawMutex> Lock<L, T, R> {
    /// A lock around `value`, free.
    pub(crate) const fn new(value: T) -> Self {
        Self {
            mutex: lock_api::Mutex::new(value),
            level: PhantomData,
            #[cfg(feature = "trace-locks")]
            identity: trace::Identity::new(),
        }
    }

    /// Waits for the lock. `held` says what the caller holds already; it stays borrowed until the guard is dropped.
    pub(crate) fn lock<'a, H: Before<L>>(&'a self, held: &'a mut Held<'_, H>) -> Guard<'a, L, T, R> {
        Guard {
            #[cfg(feature = "trace-locks")]
            recorded: self.identity.taken(L::NAME),
            held: held.nest(),
            value: self.mutex.lock(),
        }
    }
}

// Takes no lock: a state that is printed while it changes must not stop the change (and printing under the lock's own
// guard must not deadlock).
impl<L: Level, T, R> fmt::Debug for Lock<L, T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lock({})", L::NAME)
    }
}

/// The lock is held while this lives.
#[must_use = "the lock is released at once when the guard is not kept"]
pub(crate) struct Guard<'a, L, T, R: RawMutex> {
    value: lock_api::MutexGuard<'a, R, T>,
    held: Held<'a, L>,
    // After the guard: the lock is free before its hold ends.
    #[cfg(feature = "trace-locks")]
    #[expect(dead_code, reason = "kept for its drop")]
    recorded: trace::Recorded,
}

impl<'a, L, T, R: RawMutex> Guard<'a, L, T, R> {
    /// The guarded value, and the token under which an inner lock can be taken beside it.
    pub(crate) fn split(&mut self) -> (&mut T, &mut Held<'a, L>) {
        (&mut self.value, &mut self.held)
    }
}

impl<L, T, R: RawMutex> Deref for Guard<'_, L, T, R> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<L, T, R: RawMutex> DerefMut for Guard<'_, L, T, R> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

impl<L: Level, T, R: RawMutex> fmt::Debug for Guard<'_, L, T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guard({})", L::NAME)
    }
}
