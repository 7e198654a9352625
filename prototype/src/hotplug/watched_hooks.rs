//! What a device's source does when it changes owners, and the device's DMA meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use iommu_assign::assign::{DeviceHooks, HookContext, HookError};
use iommu_assign::pci::FunctionHooks;

use super::backplane::Backplane;
use super::ledger::Ledger;

/// The hooks of one registration.
#[derive(Debug)]
pub(super) struct WatchedHooks {
    pub(super) ledger: Arc<Ledger>,
    pub(super) kind: Kind,
}

/// What the device is.
#[derive(Debug)]
pub(super) enum Kind {
    /// A function: the library's own hooks.
    Function(Box<FunctionHooks<Arc<Backplane>>>),
    /// A function that was pulled out before its hooks could be made.
    Pulled,
    /// A node: its reset fails now and then.
    Node(Arc<Resets>),
}

/// The resets of all nodes.
#[derive(Debug, Default)]
pub(super) struct Resets {
    tried: AtomicUsize,
    /// How many there are between two that fail; 0: none does.
    between: AtomicUsize,
}

impl Resets {
    /// From now on each of so many fails.
    pub(super) fn fail_each(&self, between: usize) {
        self.between.store(between, Ordering::SeqCst);
    }

    fn next(&self) -> Result<(), HookError> {
        let (tried, between) = (self.tried.fetch_add(1, Ordering::SeqCst), self.between.load(Ordering::SeqCst));
        if tried.checked_rem(between) == Some(0) { Err(HookError("no answer")) } else { Ok(()) }
    }
}

impl DeviceHooks for WatchedHooks {
    fn quiesce(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        self.ledger.must_fault_in(context.device, "in its quiesce hook");
        thread::yield_now();
        match &self.kind {
            Kind::Function(hooks) => hooks.quiesce(context),
            Kind::Pulled => Err(HookError("the function is not there any more")),
            Kind::Node(_) => Ok(()),
        }
    }

    fn reset(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        match &self.kind {
            Kind::Function(hooks) => hooks.reset(context),
            Kind::Pulled => Err(HookError("the function is not there any more")),
            Kind::Node(resets) => resets.next(),
        }?;
        let own = context.device.key();
        self.ledger.was_reset(|key| key == own);
        self.ledger.must_fault_in(context.device, "in its reset hook");
        thread::yield_now();
        Ok(())
    }

    fn release(&self, context: &HookContext<'_>) {
        self.ledger.must_fault_in(context.device, "in its release hook");
        self.ledger.released(context.device);
    }
}
