//! Which handler an interrupt has.
//!
//! Handlers are installed once, before the first shared interrupt is let through, and found without a lock.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use spin::Once;

use super::gic;

/// What is done when an interrupt is taken. It runs with interrupts masked, and must not allocate or wait.
pub(crate) type Handler = Box<dyn Fn() + Send + Sync>;

static HANDLERS: Once<BTreeMap<u32, Handler>> = Once::new();
static TIMER: AtomicU32 = AtomicU32::new(u32::MAX);
static TICK: Once<fn()> = Once::new();
static TAKEN: AtomicU64 = AtomicU64::new(0);

/// Installs the handlers of shared interrupts, once.
pub(crate) fn install(handlers: BTreeMap<u32, Handler>) {
    HANDLERS.call_once(|| handlers);
}

/// Says which private interrupt is the timer's, and what a tick does.
pub(crate) fn install_timer(interrupt: u32, tick: fn()) {
    TICK.call_once(|| tick);
    TIMER.store(interrupt, Ordering::Release);
}

/// The timer's private interrupt, where the tree names it.
pub(crate) fn timer() -> Option<u32> {
    Some(TIMER.load(Ordering::Acquire)).filter(|interrupt| *interrupt != u32::MAX)
}

/// Interrupts that were taken, on all CPUs.
pub(crate) fn count() -> u64 {
    TAKEN.load(Ordering::Relaxed)
}

/// Called by the exception vector, on the interrupted CPU's stack.
pub(crate) extern "C" fn taken() {
    while let Some(id) = gic::acknowledge() {
        TAKEN.fetch_add(1, Ordering::Relaxed);
        let number = u32::from(id);
        if Some(number) == timer() {
            if let Some(tick) = TICK.get() {
                tick();
            }
        } else if let Some(handler) = HANDLERS.get().and_then(|handlers| handlers.get(&number)) {
            handler();
        }
        gic::end(id);
    }
}

/// Lets interrupts in on this CPU.
pub(crate) fn unmask() {
    // SAFETY: the vectors stand, and every handler keeps to the rules above.
    unsafe { core::arch::asm!("msr daifclr, #3", options(nostack, preserves_flags)) };
}
