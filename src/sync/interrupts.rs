//! Locks that keep interrupts off while they are held.
//!
//! # Locking
//!
//! The state from before is kept in the lock itself, so that locks can be nested: the inner one saves "masked" and gives
//! that back, the outer one what was before both. This is right when they are released in the reverse order. Released the
//! other way round, the outer one would let interrupts in while the inner one is held, and the inner one would leave
//! them off for good. Inside the library the order of release is a type: the guard of an inner lock borrows the token out
//! of the outer lock's guard (`order.rs`, invariant 1), which therefore cannot be dropped before it.

use core::cell::Cell;
use core::convert::Infallible;
use core::fmt;
use core::marker::PhantomData;

use lock_api::{GuardNoSend, RawMutex};

use super::platform::{InterruptSafe, ManyCpus, Platform, strongest_barrier};

/// How interrupts are masked on the CPU that calls. The hypervisor implements it, or takes `Daif` (aarch64).
///
/// # Context
///
/// A leaf: it does not call the library, lock or block, and is called in any context.
pub trait Interrupts: fmt::Debug + Send + Sync + 'static {
    /// What was masked.
    type State: Copy + Send + 'static;

    /// Masks every interrupt whose handler may call the library, and says what was masked before.
    fn save_and_mask() -> Self::State;

    /// Brings back what [`save_and_mask`](Self::save_and_mask) has said, on the same CPU.
    fn restore(state: Self::State);
}

/// A raw mutex that masks interrupts before it takes `L`, and gives them back after it has let go.
///
/// Who waits for it waits with interrupts masked. The holds of the library are short and never cover a poll, a callback
/// or an allocation, which bounds that wait.
///
/// Whoever uses it for locks of his own releases nested ones in the reverse order (the module says why).
///
/// # Invariants
///
/// 1. `saved` is touched by the holder of `inner` only, and is `Some` exactly between its `lock` and its `unlock`.
/// 2. The CPU that locks is the one that unlocks: the guard is not `Send`, and masked interrupts keep its thread there.
pub struct InterruptSaving<L, I: Interrupts> {
    inner: L,
    saved: Cell<Option<I::State>>,
}

#[expect(unsafe_code, reason = "the cell is guarded by the lock beside it")]
// SAFETY: `saved` is touched only by the holder of `inner` (invariant 1), which excludes all others; what is in it is
// `Send`, for the next holder may be another CPU.
unsafe impl<L: Sync, I: Interrupts> Sync for InterruptSaving<L, I> {}

#[expect(unsafe_code, reason = "the trait is unsafe: it promises mutual exclusion")]
// SAFETY: `inner` excludes: `lock` and a successful `try_lock` return with it held, and only `unlock` lets go of it.
unsafe impl<L: RawMutex, I: Interrupts> RawMutex for InterruptSaving<L, I> {
    const INIT: Self = Self { inner: L::INIT, saved: Cell::new(None) };

    type GuardMarker = GuardNoSend;

    fn lock(&self) {
        // Masked first: an interrupt between the two would find the lock held by what it has interrupted.
        let state = I::save_and_mask();
        self.inner.lock();
        self.saved.set(Some(state));
    }

    fn try_lock(&self) -> bool {
        let state = I::save_and_mask();
        let locked = self.inner.try_lock();
        if locked {
            self.saved.set(Some(state));
        } else {
            I::restore(state);
        }
        locked
    }

    unsafe fn unlock(&self) {
        // Taken out before the lock is free: from then on the cell is the next holder's.
        let state = self.saved.take();
        #[expect(unsafe_code, reason = "the inner lock's own contract")]
        // SAFETY: the caller holds the lock, and with it `inner`.
        unsafe {
            self.inner.unlock();
        }
        if let Some(state) = state {
            I::restore(state);
        }
    }
}

impl<L, I: Interrupts> fmt::Debug for InterruptSaving<L, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InterruptSaving")
    }
}

/// The platform whose lock is [`Spin`](super::Spin)'s with interrupts masked: `SpinIrq<Daif>` on aarch64, or with the
/// hypervisor's own [`Interrupts`].
#[derive(Debug)]
pub struct SpinIrq<I>(PhantomData<I>, Infallible);

impl<I: Interrupts> Platform for SpinIrq<I> {
    type Lock = InterruptSaving<spin::mutex::TicketMutex<()>, I>;
    type Sharing = ManyCpus;

    fn barrier() {
        strongest_barrier();
    }
}

impl<I: Interrupts> InterruptSafe for SpinIrq<I> {}

/// IRQ and FIQ of an aarch64 CPU, by `DAIF`: the same at EL1, EL2 and EL3.
#[cfg(target_arch = "aarch64")]
#[derive(Debug)]
pub enum Daif {}

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "a system register has no safe spelling in core")]
impl Interrupts for Daif {
    type State = u64;

    fn save_and_mask() -> u64 {
        let state: u64;
        // SAFETY: reads PSTATE's mask bits and sets those of IRQ and FIQ: no memory, no stack, no condition flags; control
        // flow goes on. Such a write is seen by every later instruction without an `isb` (DDI 0487, D1, "PSTATE"). It is
        // not `nomem`, so that the compiler moves no access of the guarded data before it.
        unsafe {
            core::arch::asm!("mrs {}, daif", "msr daifset, #3", out(reg) state, options(nostack, preserves_flags));
        }
        state
    }

    fn restore(state: u64) {
        // SAFETY: writes the mask bits that `save_and_mask` has read on this CPU; otherwise as there.
        unsafe {
            core::arch::asm!("msr daif, {}", in(reg) state, options(nostack, preserves_flags));
        }
    }
}
