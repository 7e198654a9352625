//! The other CPUs: started by PSCI, each with a stack of its own and the map of the boot CPU.

use core::sync::atomic::{AtomicUsize, Ordering};

use aarch64_cpu::registers::{TPIDR_EL2, Writeable};
use alloc::boxed::Box;

use super::{gic, interrupts, power};
use crate::boot::{MAX_CPUS, mmu, stack_top};

/// What a CPU finds at the address in x0 (`entry.s` knows the layout).
#[repr(C)]
struct Start {
    registers: mmu::Registers,
    stack: u64,
    cpu: u64,
}

static RUNNING: AtomicUsize = AtomicUsize::new(1);

unsafe extern "C" {
    fn secondary_entry();
}

/// Names the boot CPU.
pub(crate) fn name_boot_cpu() {
    TPIDR_EL2.set(0);
}

/// CPUs that run.
pub(crate) fn count() -> usize {
    RUNNING.load(Ordering::Acquire)
}

/// Starts every CPU of `affinities` but this one, one after the other, and waits until each runs. Returns how many run.
pub(crate) fn start(affinities: &[u64], own: u64) -> usize {
    let Some(registers) = mmu::registers() else { return count() };
    for &affinity in affinities.iter().filter(|affinity| **affinity != own).take(MAX_CPUS - 1) {
        let cpu = count();
        let start = Box::leak(Box::new(Start { registers, stack: stack_top(cpu), cpu: cpu as u64 }));
        // It is read with the MMU off.
        let address = (&raw const *start).addr();
        mmu::clean(address..address + size_of::<Start>());
        let entry = (secondary_entry as *const ()).addr() as u64;
        match power::start_cpu(affinity, entry, address as u64) {
            Ok(()) => {
                while count() == cpu {
                    core::hint::spin_loop();
                }
            }
            Err(error) => log::warn!("CPU {affinity:#x} does not start: {error}"),
        }
    }
    count()
}

/// The first Rust that a secondary CPU runs.
pub(crate) extern "C" fn secondary_main(cpu: usize) -> ! {
    TPIDR_EL2.set(cpu as u64);
    gic::init_cpu();
    RUNNING.store(cpu + 1, Ordering::Release);
    interrupts::unmask();
    crate::scenario::secondary()
}
