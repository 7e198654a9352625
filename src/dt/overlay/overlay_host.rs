//! What the integrator does while an overlay comes or goes.

use alloc::sync::Arc;

use crate::assign::{DeviceSpec, HookError, Iommu, IommuKey};
use crate::dt::{DtDevice, HostBridge, SmmuNode};

/// The integrator's part of [`Overlays::apply`](super::Overlays::apply) and [`revert`](super::Overlays::revert), in the
/// order in which an apply calls it. The undoing of a failed apply calls the opposite ones.
///
/// # Context
///
/// The context of the operation, which is waiting context; no lock of the library is held. They may call the service, but
/// for devices and SMMUs that the overlay brings. They must not panic.
pub trait OverlayHost {
    /// Makes a driver for an SMMU that comes: maps its registers ([`SmmuNode::map`]), powers it, probes it
    /// ([`Smmu::probe`](crate::smmu::Smmu::probe)). The service registers what is returned. Handlers for its interrupts and
    /// [`enable_reports`](crate::assign::Service::enable_reports) come after the apply.
    ///
    /// # Errors
    ///
    /// Why there is none; the overlay is not applied.
    fn probe(&mut self, smmu: &SmmuNode<'_>) -> Result<Arc<dyn Iommu>, HookError>;

    /// An SMMU that [`probe`](Self::probe) made a driver for, or that was in service at boot, is out of service: none of
    /// its registers is touched any more, and it may be unmapped.
    fn smmu_left(&mut self, smmu: IommuKey);

    /// What to offer of a device that comes: its [`spec`](DtDevice::spec) with hooks, with another label, or nothing. The
    /// same that was done at boot.
    fn offer(&mut self, device: &DtDevice, spec: DeviceSpec) -> Option<DeviceSpec> {
        let _ = device;
        Some(spec)
    }

    /// A host bridge comes: its SMMU is in service. Functions behind it may be enumerated and added now, or later, under a number
    /// that no other has: places in [`Board::pci_hosts`](crate::dt::Board::pci_hosts) may be others in the new tree.
    ///
    /// # Errors
    ///
    /// Why it cannot be used; the overlay is not applied.
    fn bridge_came(&mut self, bridge: &HostBridge) -> Result<(), HookError>;

    /// The host bridge of this path goes: the functions behind it are to be removed.
    ///
    /// # Errors
    ///
    /// Why they cannot go now. It is called again by [`Overlays::finish`](super::Overlays::finish).
    fn bridge_goes(&mut self, path: &str) -> Result<(), HookError>;
}
