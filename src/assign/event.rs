//! What the hypervisor is told as it happens.

use core::fmt;

use super::{FaultRecord, IommuKey, Label};

/// Hears of every change, after the hardware has followed it.
///
/// # Context
///
/// Called with no lock of the library held, in the waiting context of the operation that it tells of, while its group is
/// still claimed and just before the registry shows the new state: of one group, events come in order. It may call the
/// service about other devices in the try forms.
pub trait EventSink: Send + Sync + fmt::Debug {
    /// Something has happened.
    fn event(&self, event: &Event);
}

/// Something that has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A device is registered, in fault.
    Added {
        /// The device.
        device: Label,
    },
    /// A device's DMA is translated by the domain's tables from now on.
    Assigned {
        /// The device.
        device: Label,
        /// Its owner.
        domain: Label,
    },
    /// A device is in fault, and what it had in flight has drained.
    Deassigned {
        /// The device.
        device: Label,
    },
    /// A domain was made.
    DomainCreated {
        /// The domain.
        domain: Label,
    },
    /// A domain has ended: its tables can be freed.
    DomainDestroyed {
        /// The domain.
        domain: Label,
    },
    /// Something faulted.
    Fault(FaultRecord),
    /// An IOMMU instance is in service: devices that were refused for want of it can be offered again (contract C-9).
    IommuRegistered {
        /// The instance.
        iommu: IommuKey,
    },
    /// An IOMMU instance is out of service.
    IommuUnregistered {
        /// The instance.
        iommu: IommuKey,
    },
    /// An operation failed after its first write: the device is in fault and owned by nobody.
    Quarantined {
        /// The device.
        device: Label,
    },
    /// A device is no longer registered.
    Removed {
        /// The device.
        device: Label,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Added { device } => write!(f, "added {device}"),
            Self::Assigned { device, domain } => write!(f, "assigned {device} to {domain}"),
            Self::Deassigned { device } => write!(f, "deassigned {device}"),
            Self::DomainCreated { domain } => write!(f, "created {domain}"),
            Self::DomainDestroyed { domain } => write!(f, "destroyed {domain}"),
            Self::Fault(record) => write!(f, "fault at {record}"),
            Self::IommuRegistered { iommu } => write!(f, "registered {iommu}"),
            Self::IommuUnregistered { iommu } => write!(f, "unregistered {iommu}"),
            Self::Quarantined { device } => write!(f, "quarantined {device}"),
            Self::Removed { device } => write!(f, "removed {device}"),
        }
    }
}
