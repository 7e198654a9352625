//! From nodes to what the service and PCI enumeration take: everything that firmware says of a device, or why there is nothing
//! to offer.

use super::devices::{self, DtDevice};
use super::iommu_map::HostBridge;
use super::tree::{NodeId, Tree};
use crate::assign::{DeviceKey, DeviceSpec, Label, Source, Target};
use crate::few;
use crate::pci;

/// Why a node is not offered for assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotOffered {
    /// The node or a node above it is disabled.
    #[error("firmware disables it")]
    Disabled,
    /// An IOMMU that nobody here programs sees its DMA too: what that lets through is not known.
    #[error("an IOMMU that is no SMMUv1/v2 sees its DMA too, and nobody programs it")]
    ForeignIommu {
        /// The first such IOMMU.
        iommu: NodeId,
    },
    /// The node is no PCI host bridge.
    #[error("it is no PCI host bridge")]
    NotPci,
    /// An SMMU that sees its DMA is disabled: nothing could confine it.
    #[error("an SMMU that sees its DMA is disabled by firmware")]
    OnDisabledSmmu,
    /// There is no memory for a copy of its streams.
    #[error("there is no memory for its streams")]
    OutOfMemory,
}

impl DtDevice {
    /// Under which key the service knows the device.
    #[must_use]
    pub const fn device_key(&self) -> DeviceKey {
        DeviceKey::new(Source::Dt, self.key as u128)
    }

    /// Why the device is not to be offered for assignment, if so.
    #[must_use]
    pub fn not_offered(&self) -> Option<NotOffered> {
        if !self.enabled {
            return Some(NotOffered::Disabled);
        }
        if self.on_disabled_smmu {
            return Some(NotOffered::OnDisabledSmmu);
        }
        self.foreign_iommus.first().map(|iommu| NotOffered::ForeignIommu { iommu: *iommu })
    }

    /// The device as [`Service::add`](crate::assign::Service::add) takes it: its key, its path as label, its streams, the
    /// mark for passing through, and as parent the nearest node above that is offered too. Devices that are added in the
    /// order of [`Board::devices`](super::Board::devices) find their parents registered.
    ///
    /// Hooks, a source object and another label are the caller's to set.
    ///
    /// # Errors
    ///
    /// Why there is nothing to add. Not that an SMMU was not registered: `add` says that.
    ///
    /// # Context
    ///
    /// Waiting context: it allocates.
    pub fn spec(&self) -> Result<DeviceSpec, NotOffered> {
        if let Some(reason) = self.not_offered() {
            return Err(reason);
        }
        let label = Label::from(self.path.as_str());
        let streams = few::copied(&self.streams).map_err(|_| NotOffered::OutOfMemory)?;
        Ok(DeviceSpec {
            parent: self.offered_parent.map(|key| DeviceKey::new(Source::Dt, key.into())),
            passthrough: self.passthrough,
            ..DeviceSpec::new(self.device_key(), label, streams)
        })
    }
}

/// For a removal: an error says the path.
impl From<&DtDevice> for Target {
    fn from(device: &DtDevice) -> Self {
        Self::Named(device.device_key(), Label::from(device.path.as_str()))
    }
}

impl HostBridge {
    /// The host bridge as [`pci::enumerate`] takes it. `segment` counts where firmware fixes none.
    /// [`Board::pci_hosts`](super::Board::pci_hosts) does this for all of a board, and finds a number and a segment for each.
    ///
    /// # Errors
    ///
    /// Why the functions behind it are not to be offered. An IOMMU of another kind is told of the functions that it sees:
    /// [`pci::Function::spec`].
    ///
    /// # Context
    ///
    /// Waiting context: it allocates.
    pub fn pci(&self, number: pci::HostBridgeNumber, segment: pci::Segment) -> Result<pci::HostBridge, NotOffered> {
        if !self.is_pci {
            return Err(NotOffered::NotPci);
        }
        if !self.enabled {
            return Err(NotOffered::Disabled);
        }
        if self.on_disabled_smmu {
            return Err(NotOffered::OnDisabledSmmu);
        }
        Ok(pci::HostBridge {
            number,
            segment: self.segment.map_or(segment, pci::Segment),
            buses: pci::Bus(*self.buses.start())..=pci::Bus(*self.buses.end()),
            map: self.requesters.copied().map_err(|_| NotOffered::OutOfMemory)?,
            passthrough: self.passthrough,
        })
    }
}

/// Has each device know the nearest one above it that is offered.
pub(super) fn name_parents(tree: &Tree<'_>, devices: &mut [DtDevice]) {
    for index in 0..devices.len() {
        let node = devices.get(index).and_then(|device| tree.node(device.node));
        let above = node.and_then(|node| {
            let mut devices_above = node.ancestors().filter_map(|above| devices::find(devices, above.id()));
            devices_above.find(|above| above.not_offered().is_none()).map(|above| above.key)
        });
        if let Some(device) = devices.get_mut(index) {
            device.offered_parent = above;
        }
    }
}
