//! What the hypervisor is told as it happens, and how the whole state reads on a console.

use alloc::vec::Vec;
use core::fmt;

use super::device::{DeviceInfo, DeviceState};
use super::guarded;
use super::identity::{DeviceKey, Label};
use super::service::{FaultRecord, Service};
use super::spec::IommuKey;
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

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

/// Nobody listens.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoEvents;

impl EventSink for NoEvents {
    fn event(&self, _: &Event) {}
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

impl<P: Platform> Service<P> {
    pub(super) fn tell(&self, held: &mut Held<'_, Unlocked>, event: &Event) {
        let events = self.events.call(held);
        guarded::told(|| events.event(event));
    }

    /// Writes the whole state as a tree that one reads on a console: each device with its owner, group and streams,
    /// behind the device that it stands behind.
    ///
    /// # Errors
    ///
    /// Those of `out`; one of its own when there is no memory to go deeper.
    ///
    /// # Context
    ///
    /// Waiting context; `out` is called with no lock held. Devices that come or go meanwhile may be there or not.
    pub fn write_tree(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        let mut open: Vec<DeviceInfo> = Vec::new();
        let mut after: Option<DeviceKey> = None;
        loop {
            let parent = open.last().map(|info| info.device.key());
            let next =
                core::iter::successors(self.next_device(after), |last| self.next_device(Some(last.device.key())))
                    .find(|info| info.device.parent() == parent);
            match next {
                Some(info) => {
                    write_line(out, open.len(), &info)?;
                    // Its children come next, wherever their keys stand.
                    after = None;
                    open.try_reserve(1).map_err(|_| fmt::Error)?;
                    open.push(info);
                }
                None => match open.pop() {
                    Some(done) => after = Some(done.device.key()),
                    None => return Ok(()),
                },
            }
        }
    }
}

fn write_line(out: &mut dyn fmt::Write, depth: usize, info: &DeviceInfo) -> fmt::Result {
    for _ in 0..depth {
        out.write_str("  ")?;
    }
    write!(out, "{} ", info.device.label())?;
    match (info.state, &info.domain) {
        (DeviceState::Assigned(_), Some(domain)) => write!(out, "-> {domain}")?,
        (DeviceState::Assigned(id), None) => write!(out, "-> {id}")?,
        (DeviceState::Adding, _) => out.write_str("(being added)")?,
        (DeviceState::Blocked, _) => out.write_str("(blocked)")?,
        (DeviceState::Quarantined, _) => out.write_str("(quarantined)")?,
    }
    if info.group != info.device.key() {
        write!(out, " in the group of {}", info.group)?;
    }
    for stream in info.device.streams() {
        write!(out, " {stream}")?;
    }
    out.write_char('\n')
}
