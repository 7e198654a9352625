//! The architectural counter, and EL2's physical timer.

use core::arch::asm;

use aarch64_cpu::registers::{CNTFRQ_EL0, CNTPCT_EL0, Readable};
use iommu_assign::sync::Micros;

/// Ticks in a second. Firmware says so, where there is one.
fn frequency() -> u64 {
    match CNTFRQ_EL0.get() {
        0 => 62_500_000,
        frequency => frequency,
    }
}

/// Microseconds since the counter started.
pub(crate) fn now() -> Micros {
    let (ticks, frequency) = (CNTPCT_EL0.get(), frequency());
    Micros::new(ticks / frequency * 1_000_000 + ticks % frequency * 1_000_000 / frequency)
}

/// Has the timer interrupt this CPU once, after `span`.
pub(crate) fn interrupt_after(span: Micros) {
    let ticks = (span.value() * frequency() / 1_000_000).min(i32::MAX as u64);
    // SAFETY: CNTHP raises this CPU's private interrupt, whose handler stands or which is not enabled; nothing else.
    unsafe {
        asm!(
            "msr cnthp_tval_el2, {ticks}",
            "msr cnthp_ctl_el2, {enable}",
            "isb",
            ticks = in(reg) ticks,
            enable = in(reg) 1_u64,
            options(nostack, preserves_flags),
        );
    }
}

/// Turns the timer off on this CPU.
pub(crate) fn stop() {
    // SAFETY: as above; nothing is raised from here on.
    unsafe { asm!("msr cnthp_ctl_el2, xzr", "isb", options(nostack, preserves_flags)) };
}

/// Lets `span` pass. Interrupts are served meanwhile, where they are not masked.
pub(crate) fn pass(span: Micros) {
    let start = now();
    while now().since(start) < span {
        core::hint::spin_loop();
    }
}
