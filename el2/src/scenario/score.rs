//! Operations, and violations: what was not as it must be.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use alloc::format;
use alloc::string::String;
use iommu_assign::assign::Error;

use crate::iommu::smmus;
use crate::machine::console;

/// Operations of the service that were carried out.
pub(crate) static OPERATIONS: AtomicU64 = AtomicU64::new(0);
/// Of these, requests that the worker answered.
pub(crate) static REQUESTS: AtomicU64 = AtomicU64::new(0);
/// Flushes from timer interrupts.
pub(crate) static FLUSHES: AtomicU64 = AtomicU64::new(0);
/// Of these, flushes that gave up waiting: their bound is small, and a CPU of an emulator may stand still for longer.
pub(crate) static IMPATIENT: AtomicU64 = AtomicU64::new(0);
/// Accesses of masters that were compared with what they must come to.
pub(crate) static ACCESSES: AtomicU64 = AtomicU64::new(0);
/// Functions that were plugged in, unplugged or pulled.
pub(crate) static HOT_PLUGS: AtomicU64 = AtomicU64::new(0);
/// Of these, pulled while they were assigned.
pub(crate) static SURPRISES: AtomicU64 = AtomicU64::new(0);
static VIOLATIONS: AtomicU64 = AtomicU64::new(0);

/// How many are told.
const TOLD: u64 = 20;

/// Counts one.
pub(crate) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

/// Counts several.
pub(crate) fn add(counter: &AtomicU64, number: u64) {
    counter.fetch_add(number, Ordering::Relaxed);
}

/// Something was not as it must be.
pub(crate) fn violation(text: fmt::Arguments<'_>) {
    let before = VIOLATIONS.fetch_add(1, Ordering::Relaxed);
    if before < TOLD {
        console::line(format_args!("el2: violation: {text}"));
    }
}

/// Says and counts a violation.
#[macro_export]
macro_rules! violation {
    ($($text:tt)*) => { $crate::scenario::score::violation(format_args!($($text)*)) };
}

/// Counts an operation that must have been carried out, and gives its result.
pub(crate) fn expect<T>(result: Result<T, Error>) -> Option<T> {
    match result {
        Ok(done) => {
            count(&OPERATIONS);
            Some(done)
        }
        Err(error) => {
            crate::violation!("{error}");
            None
        }
    }
}

/// How many violations there were.
pub(crate) fn violations() -> u64 {
    VIOLATIONS.load(Ordering::Relaxed)
}

/// The sums so far.
pub(crate) fn line(cpus: usize) -> String {
    let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    format!(
        "{} operations on {cpus} CPUs, {} hot-plug events, {} faults by interrupt, {} violations",
        value(&OPERATIONS) + value(&FLUSHES),
        value(&HOT_PLUGS),
        value(&smmus::FAULTS),
        violations(),
    )
}
