//! Who may be assigned what, on this hypervisor.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use iommu_assign::assign::{FirmwareMarks, Label, Policy, PolicyRequest};

/// How it is decided who may be assigned.
#[derive(Clone, Debug)]
pub(crate) enum Rules {
    /// What firmware marked for passing through, may.
    Firmware,
    /// What the operator named, may go where he named it to go. Real boards carry no marks.
    Named(Arc<Operator>),
}

impl Rules {
    /// Rules of an operator who has named nothing yet.
    pub(crate) fn operator() -> Self {
        Self::Named(Arc::default())
    }

    /// The policy that the service asks.
    pub(crate) fn policy(&self) -> Box<dyn Policy> {
        match self {
            Self::Firmware => Box::new(FirmwareMarks),
            Self::Named(operator) => Box::new(AskOperator(operator.clone())),
        }
    }
}

/// An operator's decisions: devices, each with the domains that it may go to.
#[derive(Debug, Default)]
pub(crate) struct Operator(Mutex<BTreeSet<(Label, Label)>>);

impl Operator {
    /// Allows `device` to go to `domain`. Says whether that is new.
    pub(crate) fn name(&self, device: &Label, domain: &Label) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert((device.clone(), domain.clone()))
    }
}

#[derive(Debug)]
struct AskOperator(Arc<Operator>);

impl Policy for AskOperator {
    fn allows(&self, request: &PolicyRequest<'_>) -> bool {
        let asked = (request.device.label().clone(), request.domain.clone());
        self.0.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&asked)
    }
}
