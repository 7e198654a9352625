//! The registry against the drivers, and each driver against its hardware (contract A-10).
//!
//! # Locking
//!
//! Level `Registry` for one device at a time, level `Instances` for one instance; nothing is held over a driver or the sink.

use core::fmt;

use super::{DeviceId, DeviceState, Difference, DomainId, InstanceState, IommuKey, Label, Service};
use crate::sync::Platform;
use crate::sync::order::Held;

/// Something that `audit` found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// A register or a driver's count is not as the driver believes.
    Hardware(Difference),
    /// The registry and a driver disagree about where a device is.
    Placement {
        /// The device.
        device: Label,
        /// The IOMMU.
        iommu: IommuKey,
        /// Where the registry has it.
        registry: Option<DomainId>,
        /// Where the driver has it.
        driver: Option<DomainId>,
    },
    /// A driver knows a device that is not registered, or not on this IOMMU.
    Unregistered {
        /// The device, by the number that the driver knows it by.
        device: DeviceId,
        /// The IOMMU.
        iommu: IommuKey,
    },
    /// A driver does not know a device that is registered on its IOMMU.
    Unknown {
        /// The device.
        device: Label,
        /// The IOMMU.
        iommu: IommuKey,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unregistered { device, iommu } => {
                write!(f, "{device} at {iommu}: the driver knows it, the registry does not")
            }
            Self::Unknown { device, iommu } => {
                write!(f, "{device} at {iommu}: the registry knows it, the driver does not")
            }
            Self::Hardware(difference) => difference.fmt(f),
            Self::Placement { device, iommu, registry, driver } => {
                write!(
                    f,
                    "{device} at {iommu}: the registry has it in {}, the driver in {}",
                    Place(*registry),
                    Place(*driver)
                )
            }
        }
    }
}

/// Where a device is.
struct Place(Option<DomainId>);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(domain) => domain.fmt(f),
            None => f.write_str("no domain"),
        }
    }
}

impl<P: Platform> Service<P> {
    /// Compares the registry with the drivers, both ways, and each driver with its hardware. Changes nothing (contract A-10).
    ///
    /// Meaningful while no operation runs: a device under way is where its operation has brought it.
    pub fn audit(&self, sink: &mut dyn FnMut(&Finding)) {
        let mut held = Held::enter();
        let mut after = None;
        while let Some(instance) = self.next_instance(&mut held, after) {
            let iommu = instance.key;
            after = Some(iommu);
            instance.iommu.call(&mut held).audit(&mut |difference| sink(&Finding::Hardware(difference)));
            let mut last = None;
            while let Some((device, driver)) = instance.iommu.call(&mut held).next_known(last) {
                last = Some(device);
                let found = {
                    let registry = self.registry.lock(&mut held);
                    let record = registry.by_id(device);
                    let here = record.filter(|record| record.device.attachment_to(&instance).is_some());
                    here.map(|record| (record.device.label().clone(), record.state.get().owner()))
                };
                match found {
                    None => sink(&Finding::Unregistered { device, iommu }),
                    Some((device, registry)) if registry != driver => {
                        sink(&Finding::Placement { device, iommu, registry, driver });
                    }
                    Some(_) => {}
                }
            }
        }
        for info in self.devices().filter(|info| info.state != DeviceState::Going) {
            for at in info.device.attachments().iter().filter(|at| at.instance.state() != InstanceState::Gone) {
                let id = info.device.id();
                let before = id.number().checked_sub(1).map(DeviceId::new);
                let known = at.instance.iommu.call(&mut held).next_known(before);
                if known.is_none_or(|(known, _)| known != id) {
                    sink(&Finding::Unknown { device: info.device.label().clone(), iommu: at.instance.key });
                }
            }
        }
    }
}
