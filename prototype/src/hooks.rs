//! What this hypervisor does to a device while it changes owners, and a look at its DMA from the middle of it.
//!
//! A device that is told to stop and does not is what isolation is for: each hook lets the device try DMA.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_assign::assign::{DeviceHooks, HookContext, HookError, Stream};
use iommu_assign::pci::control::{Progress, Quiesce, Reset};
use iommu_assign::pci::{Capabilities, FunctionConfig, Sbdf};
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
    /// Where the configuration space of a PCI function is.
    pub(crate) function: Option<Function>,
}

/// A PCI function that can be brought under control.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) space: Space,
    pub(crate) at: Sbdf,
    pub(crate) capabilities: Capabilities,
    pub(crate) is_endpoint: bool,
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
        self.function.as_ref().map_or(Ok(()), Function::quiesce)
    }

    fn reset(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        self.attempt("reset", context);
        self.function.as_ref().map_or(Ok(()), Function::reset)
    }

    fn release(&self, context: &HookContext<'_>) {
        self.attempt("release", context);
    }
}

impl Function {
    fn quiesce(&self) -> Result<(), HookError> {
        let space = self.space.lock();
        let config = FunctionConfig::new(&*space, self.at).map_err(|_| HookError(GONE))?;
        let mut quiesce = Quiesce::begin(&config, &self.capabilities, STEPS)
            .map_err(|_| HookError("bus mastering cannot be turned off"))?;
        while quiesce.step(&config).map_err(|_| HookError("transactions stay pending"))? == Progress::Waiting {}
        Ok(())
    }

    /// A bridge has no reset of its own and carries no guest's data: it is left as it is.
    fn reset(&self) -> Result<(), HookError> {
        let can = self.capabilities.express.is_some_and(|express| express.function_level_reset);
        if !(can && self.is_endpoint) {
            return Ok(());
        }
        let space = self.space.lock();
        let config = FunctionConfig::new(&*space, self.at).map_err(|_| HookError(GONE))?;
        let mut reset =
            Reset::begin(&config, &self.capabilities, STEPS).map_err(|_| HookError("its reset cannot begin"))?;
        while reset.step(&*space).map_err(|_| HookError("it did not come back from its reset"))? == Progress::Waiting {}
        Ok(())
    }
}

const GONE: &str = "the function is not there any more";

/// Steps before a function is given up; nothing here takes real time.
const STEPS: u32 = 100;
