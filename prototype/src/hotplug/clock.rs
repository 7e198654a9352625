//! The time of the scenario, which passes when someone waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use iommu_assign::pci::Delay;
use iommu_assign::sync::Micros;

static NOW: AtomicU64 = AtomicU64::new(0);

/// The time.
pub(super) fn now() -> Micros {
    Micros::new(NOW.load(Ordering::SeqCst))
}

/// Lets time pass for all threads, and others run meanwhile.
fn pass(time: Micros) {
    NOW.fetch_add(time.value(), Ordering::SeqCst);
    thread::yield_now();
}

/// How the library lets time pass.
pub(super) const DELAY: Delay = Delay::sleeping(pass);
