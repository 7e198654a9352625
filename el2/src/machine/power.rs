//! PSCI: whom to call, and the end.

use core::sync::atomic::{AtomicU8, Ordering};

use smccc::{Hvc, Smc, psci};

use super::tree::Conduit;

/// 0: none; 1: HVC; 2: SMC.
static CONDUIT: AtomicU8 = AtomicU8::new(0);

/// Says how PSCI is called.
pub(crate) fn init(conduit: Option<Conduit>) {
    let code = match conduit {
        None => 0,
        Some(Conduit::Hvc) => 1,
        Some(Conduit::Smc) => 2,
    };
    CONDUIT.store(code, Ordering::Relaxed);
}

/// Has the firmware start the CPU `affinity` at `entry`, with `argument` in x0.
pub(crate) fn start_cpu(affinity: u64, entry: u64, argument: u64) -> Result<(), psci::Error> {
    match CONDUIT.load(Ordering::Relaxed) {
        1 => psci::cpu_on::<Hvc>(affinity, entry, argument),
        2 => psci::cpu_on::<Smc>(affinity, entry, argument),
        _ => Err(psci::Error::NotSupported),
    }
}

/// Power off. Where no firmware can turn the power off, the CPU sleeps. PSCI carries no status: a run that did not reach its end
/// says so in the last line, for a script.
pub(crate) fn end(status: u8) -> ! {
    if status != 0 {
        crate::say!("stopped, status {status}");
    }
    let _ = match CONDUIT.load(Ordering::Relaxed) {
        1 => psci::system_off::<Hvc>(),
        2 => psci::system_off::<Smc>(),
        _ => Err(psci::Error::NotSupported),
    };
    loop {
        aarch64_cpu::asm::wfe();
    }
}
