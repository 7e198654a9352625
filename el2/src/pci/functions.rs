//! The library's hooks of a function, and a count of the resets that came to their end.

use core::sync::atomic::{AtomicU64, Ordering};

use alloc::sync::Arc;
use iommu_assign::assign::{DeviceHooks, HookContext, HookError};
use iommu_assign::pci::control::ControlError;
use iommu_assign::pci::{Delay, Ecam, Enumeration, Function, FunctionHooks};

use crate::machine::time;

/// Resets that came to their end.
pub(crate) static RESETS: AtomicU64 = AtomicU64::new(0);

/// The hooks of one function.
#[derive(Debug)]
pub(crate) struct Counted(FunctionHooks<Arc<Ecam>>);

impl Counted {
    /// Turns off what would go around the SMMU.
    ///
    /// # Errors
    ///
    /// The function keeps it on, or has gone.
    pub(crate) fn new(space: &Arc<Ecam>, function: &Function, found: &Enumeration) -> Result<Self, ControlError> {
        let hooks = FunctionHooks::new(space.clone(), function, found, Delay::sleeping(time::pass))?;
        let capabilities = &function.capabilities;
        // A function with virtual functions on would lose them by its reset: they are set up once, at boot. What has no
        // reset of its own is one of QEMU's that remembers nothing.
        let has_virtual = capabilities.sr_iov.is_some_and(|sr_iov| sr_iov.enabled);
        let has_reset = capabilities.express.is_some_and(|express| express.function_level_reset);
        Ok(Self(if has_reset && !has_virtual { hooks } else { hooks.without_reset() }))
    }
}

impl DeviceHooks for Counted {
    fn quiesce(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        self.0.quiesce(context)
    }

    fn reset(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        self.0.reset(context)?;
        if self.0.last_reset().is_some() {
            RESETS.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn release(&self, context: &HookContext<'_>) {
        self.0.release(context);
    }
}
