//! What does devices' DMA, also while they change owners.

use std::sync::Arc;

use ::scenario::{Guest, Score, compare};
use iommu_assign::assign::{DeviceHooks, DeviceSpec, HookContext, HookError, Stream};
use iommu_assign::pci::FunctionHooks;
use machine::{Machine, Reached};

use super::interrupts::{self, Line};
use super::tenant::Tenant;
use crate::pci_world::Space;

/// A master on the machine's bus.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    pub(super) machine: Machine,
    pub(super) score: Arc<Score>,
    pub(super) line: Line,
}

impl Engine {
    fn dma(&self, stream: Stream, page: u64) -> Reached {
        let reached = self.machine.dma_write(stream.iommu(), stream.id(), Tenant::address(page));
        // Behind no SMMU there is nothing that it could reach.
        let reached = reached.unwrap_or(Reached::Fault);
        if reached == Reached::Fault {
            self.line.raise();
            interrupts::take();
        }
        reached
    }
}

impl ::scenario::Engine for Engine {
    type Guest = Tenant;

    fn is_there(&self) -> bool {
        true
    }

    fn stray(&self, spec: &DeviceSpec) {
        for stream in &spec.streams {
            let _ = self.dma(*stream, 0);
        }
    }

    fn check(&self, spec: &DeviceSpec, owner: Option<&Tenant>, _: &[Tenant], page: u64) -> u64 {
        let expected = owner.map_or(Reached::Fault, |guest| Reached::Memory(guest.physical(page)));
        compare(&self.score, &spec.label, &spec.streams, &expected, |stream| self.dma(stream, page))
    }
}

/// Hooks of a device that is told to stop, and does not. That is what isolation is for.
#[derive(Debug)]
pub(super) struct Stubborn {
    pub(super) engine: Engine,
    /// Its streams are no other device's, which may have an owner meanwhile.
    pub(super) is_alone: bool,
    /// The library's hooks, of a PCI function.
    pub(super) function: Option<FunctionHooks<Space>>,
}

impl Stubborn {
    fn try_dma(&self, context: &HookContext<'_>) {
        if self.is_alone {
            let (Engine { score, .. }, device) = (&self.engine, context.device);
            compare(score, device.label(), device.streams(), &Reached::Fault, |stream| self.engine.dma(stream, 0));
        }
    }
}

impl DeviceHooks for Stubborn {
    fn quiesce(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        self.try_dma(context);
        self.function.as_ref().map_or(Ok(()), |function| function.quiesce(context))
    }

    fn reset(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        self.try_dma(context);
        self.function.as_ref().map_or(Ok(()), |function| function.reset(context))
    }

    fn release(&self, context: &HookContext<'_>) {
        self.try_dma(context);
    }
}
