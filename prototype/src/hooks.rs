//! What this hypervisor does to a device while it changes owners, and a look at its DMA from the middle of it.
//!
//! A device that is told to stop and does not is what isolation is for: each hook lets the device try DMA.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_assign::assign::{DeviceHooks, HookContext, HookError, Stream};
use iommu_assign::pci::FunctionHooks;
use machine::{Machine, Reached};

use crate::guests::PAGE;
use crate::pci_world::Space;

/// What a device's DMA came to during a hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// The hook.
    pub(crate) during: &'static str,
    /// The stream, and where it went.
    pub(crate) stream: Stream,
    pub(crate) reached: Reached,
}

/// What devices tried, in order; shared by all of them. `None`: nobody looks, and they need not try.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempts(Arc<Mutex<Option<Vec<Attempt>>>>);

impl Attempts {
    /// Takes what has been noted since the last time, and looks on.
    pub(crate) fn take(&self) -> Vec<Attempt> {
        self.lock().replace(Vec::new()).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<Attempt>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hooks of one device.
#[derive(Debug)]
pub(crate) struct Hooks {
    pub(crate) machine: Machine,
    pub(crate) attempts: Attempts,
    /// The library's hooks, of a PCI function.
    pub(crate) function: Option<FunctionHooks<Space>>,
}

impl Hooks {
    fn attempt(&self, during: &'static str, context: &HookContext<'_>) {
        let mut attempts = self.attempts.lock();
        let Some(attempts) = &mut *attempts else { return };
        for &stream in context.device.streams() {
            if let Some(reached) = self.machine.dma_write(stream.iommu(), stream.id(), PAGE) {
                attempts.push(Attempt { during, stream, reached });
            }
        }
    }
}

impl DeviceHooks for Hooks {
    fn quiesce(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        self.attempt("quiesce", context);
        self.function.as_ref().map_or(Ok(()), |function| function.quiesce(context))
    }

    fn reset(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        self.attempt("reset", context);
        self.function.as_ref().map_or(Ok(()), |function| function.reset(context))
    }

    fn release(&self, context: &HookContext<'_>) {
        self.attempt("release", context);
    }
}
