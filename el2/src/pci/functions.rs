//! What a function needs when it changes owners: no bus mastering, and a function-level reset.

use core::sync::atomic::{AtomicU64, Ordering};

use alloc::sync::Arc;
use iommu_assign::assign::{DeviceHooks, HookContext, HookError};
use iommu_assign::pci::control::{Progress, Quiesce, Reset, turn_translation_services_off};
use iommu_assign::pci::{Capabilities, Function, FunctionConfig, FunctionKind, Sbdf};
use iommu_assign::sync::Micros;

use super::ecam::Ecam;
use crate::machine::time;

/// Function-level resets that came to their end.
pub(crate) static RESETS: AtomicU64 = AtomicU64::new(0);

/// The time after which a function must answer again, and before which it may not be accessed (6.6.2).
const RESET_TIME: Micros = Micros::from_millis(100);
const STEP: Micros = Micros::from_millis(1);
/// A second in all.
const STEPS: u32 = 1000;

/// The hooks of one function. An operation owns its device's group, so that one CPU at a time is in here.
#[derive(Debug)]
pub(crate) struct FunctionHooks {
    space: Arc<Ecam>,
    at: Sbdf,
    capabilities: Capabilities,
    has_reset: bool,
}

impl FunctionHooks {
    /// Turns off what would go around the SMMU. `None` where the function keeps it on, or has gone.
    pub(crate) fn new(space: &Arc<Ecam>, function: &Function) -> Option<Self> {
        let config = FunctionConfig::new(&**space, function.sbdf).ok()?;
        turn_translation_services_off(&config, &function.capabilities).ok()?;
        // A function with virtual functions on would lose them by its reset: they are set up once, at boot.
        let has_virtual = function.capabilities.sr_iov.is_some_and(|sr_iov| sr_iov.enabled);
        let can = function.capabilities.express.is_some_and(|express| express.function_level_reset);
        let has_reset = can && function.kind == FunctionKind::Endpoint && !has_virtual;
        Some(Self { space: space.clone(), at: function.sbdf, capabilities: function.capabilities, has_reset })
    }
}

impl DeviceHooks for FunctionHooks {
    fn quiesce(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        let config = FunctionConfig::new(&*self.space, self.at).map_err(|_| GONE)?;
        let mut quiesce = Quiesce::begin(&config, &self.capabilities, STEPS)
            .map_err(|_| HookError("bus mastering cannot be turned off"))?;
        while quiesce.step(&config).map_err(|_| HookError("transactions stay pending"))? == Progress::Waiting {
            time::pass(STEP);
        }
        Ok(())
    }

    fn reset(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        if !self.has_reset {
            return Ok(());
        }
        let config = FunctionConfig::new(&*self.space, self.at).map_err(|_| GONE)?;
        let mut reset =
            Reset::begin(&config, &self.capabilities, STEPS).map_err(|_| HookError("its reset cannot begin"))?;
        time::pass(RESET_TIME);
        while reset.step(&*self.space).map_err(|_| HookError("it did not come back from its reset"))?
            == Progress::Waiting
        {
            time::pass(STEP);
        }
        RESETS.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn release(&self, _: &HookContext<'_>) {}
}

const GONE: HookError = HookError("the function is not there any more");
