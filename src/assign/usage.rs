//! What there is a fixed number of, and what uses it (contract A-5).
//!
//! # Locking
//!
//! Level `Instances` to find the instance, level `Registry` for each name; nothing is held over the driver or the sink.

use super::{Error, IommuKey, Label, Operation, Resource, Service, Usage};
use crate::sync::Platform;
use crate::sync::order::Held;

/// One of something scarce that is in use, with the names that the service knows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageRecord {
    /// What it is one of.
    pub resource: Resource,
    /// Its number.
    pub index: u8,
    /// A device that uses it.
    pub device: Option<Label>,
    /// The domain that it serves.
    pub domain: Option<Label>,
}

impl<P: Platform> Service<P> {
    /// Who uses what there is a fixed number of at `iommu` (contract A-5).
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`](super::Cause::NotFound).
    ///
    /// # Context
    ///
    /// Waiting context. `sink` is called with no lock of the service held; it must not call the service.
    pub fn usage(&self, iommu: IommuKey, sink: &mut dyn FnMut(&UsageRecord)) -> Result<(), Error> {
        let mut held = Held::enter();
        let instance = self.named_instance(&mut held, Operation::Usage, iommu)?;
        instance.iommu.call(&mut held).usage(&mut |usage| sink(&self.named(&usage)));
        Ok(())
    }

    fn named(&self, usage: &Usage) -> UsageRecord {
        let mut held = Held::enter();
        let registry = self.registry.lock(&mut held);
        let device = usage.device.and_then(|id| registry.by_id(id)).map(|record| &record.device);
        let domain = usage.domain.and_then(|id| registry.domain(id));
        UsageRecord {
            resource: usage.resource,
            index: usage.index,
            device: device.map(|device| device.label().clone()),
            domain: domain.map(|record| record.domain.label().clone()),
        }
    }
}
