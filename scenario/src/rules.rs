//! Who may be assigned.

use iommu_assign::assign::{Policy, PolicyRequest, Why};

/// Firmware's word, but for bridges: they are never assigned, and may share what is below them.
#[derive(Debug)]
pub struct Rules;

impl Policy for Rules {
    fn allows(&self, request: &PolicyRequest<'_>) -> bool {
        match request.why {
            Why::Shares { .. } => true,
            _ => request.device.passthrough(),
        }
    }
}
