//! A device that is ready to be added: all memory that its add takes is made (contract A-8).
//!
//! # Locking
//!
//! Level `Instances`, once, to find the IOMMUs; what they make, they make with nothing locked.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;

use super::device::{Attachment, Device, DeviceSpec};
use super::error::{Cause, Error, Operation};
use super::identity::Source;
use super::iommu::{IommuError, NewMaster};
use super::registry::DeviceRecord;
use super::service::Service;
use super::spec::{IommuKey, Stream};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// A device that is ready to be added, by [`Service::add_new`]. Dropped, it is as if it had never been.
#[must_use = "nobody knows the device before it is added"]
pub struct NewDevice {
    pub(super) device: Device,
    pub(super) record: Option<Box<DeviceRecord>>,
    pub(super) attachments: Vec<Attachment>,
    /// One for each attachment.
    pub(super) masters: Vec<NewMaster>,
}

impl NewDevice {
    /// The IOMMUs, with what they made.
    pub(super) fn places(&mut self) -> impl Iterator<Item = (&Attachment, &mut NewMaster)> {
        self.attachments.iter().zip(&mut self.masters)
    }
}

impl fmt::Debug for NewDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("NewDevice").field(&self.device).finish()
    }
}

impl<P: Platform> Service<P> {
    /// Makes all that adding a device takes, so that [`add_new`](Self::add_new) need not allocate: a hypervisor that must
    /// not run out of memory half-way through makes its devices first.
    ///
    /// # Errors
    ///
    /// [`Cause::NoStreams`], [`Cause::ProviderMissing`] (offer the device again when the IOMMU is registered),
    /// [`Cause::OutOfMemory`], [`Cause::Stray`] for a key of [`Source::Stray`](super::Source::Stray), and what the
    /// IOMMUs say of the streams (contract A-6).
    ///
    /// # Context
    ///
    /// Waiting context. Nothing has changed when it returns. Contract A-8.
    pub fn new_device(&self, spec: DeviceSpec) -> Result<NewDevice, Error> {
        let mut held = Held::enter();
        let result = self.make_described(&mut held, spec);
        self.report(&result);
        result
    }

    pub(super) fn make_described(&self, held: &mut Held<'_, Unlocked>, spec: DeviceSpec) -> Result<NewDevice, Error> {
        if spec.key.source() == Source::Stray {
            return Err(Error::unchanged(Operation::Add, spec.label, Cause::Stray));
        }
        self.make_device(held, spec)
    }

    pub(super) fn make_device(&self, held: &mut Held<'_, Unlocked>, mut spec: DeviceSpec) -> Result<NewDevice, Error> {
        spec.streams.sort_unstable();
        spec.streams.dedup();
        let device = Device::new(self.next_device_id(), spec);
        let made = self.make(held, &device);
        made.map_err(|cause| Error::unchanged(Operation::Add, device.label().clone(), cause))
    }

    fn make(&self, held: &mut Held<'_, Unlocked>, device: &Device) -> Result<NewDevice, Cause> {
        let mut wanted = wanted(device)?.into_iter();
        let mut attachments: Vec<Attachment> = Vec::new();
        attachments.try_reserve_exact(wanted.len()).map_err(|_| Cause::OutOfMemory)?;
        let mut masters: Vec<NewMaster> = Vec::new();
        masters.try_reserve_exact(wanted.len()).map_err(|_| Cause::OutOfMemory)?;
        let missing = {
            let instances = self.instances.lock(held);
            loop {
                let Some(key) = wanted.as_slice().first().map(|(key, _)| *key) else { break None };
                let Some(iommu) = instances.find(key) else { break Some(key) };
                let Some((_, streams)) = wanted.next() else { break None };
                attachments.push(Attachment { key, iommu: iommu.clone(), streams });
            }
        };
        if let Some(key) = missing {
            return Err(Cause::ProviderMissing(key));
        }
        for attachment in &attachments {
            let made = attachment.iommu.call(held).new_master(device.id(), &attachment.streams, device.kin());
            masters.push(made.map_err(|error| self.no_place(held, attachment, error))?);
        }
        let record = Some(DeviceRecord::adding(device.clone()));
        Ok(NewDevice { device: device.clone(), record, attachments, masters })
    }

    /// Why an instance that was registered has no place for a device.
    pub(super) fn no_place(&self, held: &mut Held<'_, Unlocked>, attachment: &Attachment, error: IommuError) -> Cause {
        let iommu = attachment.key;
        if error == IommuError::ProviderGone
            && let Err(cause) = self.registry.lock(held).is_in_service(attachment)
        {
            return cause;
        }
        Cause::Iommu { iommu, error }
    }
}

/// A device's streams, which are sorted, by IOMMU.
fn wanted(device: &Device) -> Result<Vec<(IommuKey, Vec<Stream>)>, Cause> {
    let mut wanted = Vec::new();
    for group in device.streams().chunk_by(|one, next| one.iommu() == next.iommu()) {
        let Some(iommu) = group.first().map(|stream| stream.iommu()) else { continue };
        let mut streams: Vec<Stream> = Vec::new();
        streams.try_reserve_exact(group.len()).map_err(|_| Cause::OutOfMemory)?;
        streams.extend_from_slice(group);
        wanted.try_reserve(1).map_err(|_| Cause::OutOfMemory)?;
        wanted.push((iommu, streams));
    }
    if wanted.is_empty() { Err(Cause::NoStreams) } else { Ok(wanted) }
}
