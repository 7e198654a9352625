//! Adding a device: its streams become known, it joins whom they meet, and its entries stand in fault.

use alloc::vec::Vec;

use super::claim::Claim;
use super::device::{Attachment, Device, DeviceSpec, DeviceState};
use super::error::{Cause, ConflictReason, Error, Left, Operation};
use super::event::Event;
use super::identity::{DeviceId, Label};
use super::policy::{PolicyRequest, Why};
use super::registry::DeviceRecord;
use super::removal::Outcome;
use super::service::Service;
use super::spec::{IommuKey, Stream};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

impl<P: Platform> Service<P> {
    /// Registers a device: its streams take their stream-map entries, in fault, and it joins the group that they meet.
    ///
    /// # Errors
    ///
    /// [`Cause::NoStreams`], [`Cause::ProviderMissing`] (offer it again when the IOMMU is registered),
    /// [`Cause::AlreadyRegistered`], [`Cause::ParentMissing`], [`Cause::GroupConflict`] when it would bridge two owners
    /// or share a live stream without the policy's yes, [`Cause::Busy`] when a group that it meets is claimed,
    /// [`Cause::Removed`], and what the IOMMUs say. Nothing is changed then.
    ///
    /// # Context
    ///
    /// Waiting context. Contract C-2, I-11, A-5, A-6.
    pub fn add(&self, spec: DeviceSpec) -> Result<Device, Error> {
        let mut held = Held::enter();
        let result = self.add_in(&mut held, spec);
        self.report(&result);
        result
    }

    fn add_in(&self, held: &mut Held<'_, Unlocked>, mut spec: DeviceSpec) -> Result<Device, Error> {
        let label = spec.label.clone();
        let refuse = |cause| Error::unchanged(Operation::Add, label.clone(), cause);
        spec.streams.sort_unstable();
        spec.streams.dedup();
        let device = self.resolve(held, spec).map_err(refuse)?;
        let record = DeviceRecord::adding(device.clone());
        {
            let mut registry = self.registry.lock(held);
            let refused = match (registry.device(device.key()), self.unresolved(&registry, &device)) {
                // It is on its way in or out: whoever asks again later finds how that ended (contract C-2).
                (Some(other), _) if other.remove_pending.get() => Some(Cause::Busy { running: Operation::Remove }),
                (Some(other), _) if other.state.get() == DeviceState::Adding => {
                    Some(Cause::Busy { running: Operation::Add })
                }
                (Some(other), _) => Some(Cause::AlreadyRegistered { by: other.device.label().clone() }),
                (None, unresolved) => unresolved,
            };
            if let Some(cause) = refused {
                // The record's memory is released when the lock is free.
                drop(registry);
                drop(record);
                return Err(refuse(cause));
            }
            #[cfg(broken = "early_release")]
            {
                drop(registry);
                registry = self.registry.lock(held);
            }
            registry.insert_device(record);
        }
        let claim = Claim { device: device.clone() };
        let joined = self.join(held, &device);
        if joined.is_err() {
            // A failed add is a removal by itself: the claim is still held, and `conclude` forgets the device.
            let registry = self.registry.lock(held);
            if let Some(record) = registry.registration(&device) {
                record.remove_pending.set(true);
            }
        }
        match (self.conclude(held, claim), joined) {
            (_, Err(cause)) => Err(refuse(cause)),
            (Outcome::Stays, Ok(())) => Ok(device),
            (Outcome::Removed(result), Ok(())) => {
                let left = if result.is_ok() { Left::Unchanged } else { Left::Removed };
                Err(Error { operation: Operation::Add, subject: label, cause: Cause::Removed, left })
            }
        }
    }

    /// Looks up the IOMMUs and the parent that `spec` names.
    fn resolve(&self, held: &mut Held<'_, Unlocked>, spec: DeviceSpec) -> Result<Device, Cause> {
        if spec.streams.is_empty() {
            return Err(Cause::NoStreams);
        }
        let mut attachments: Vec<Attachment> = Vec::new();
        for group in spec.streams.chunk_by(|one, next| one.iommu() == next.iommu()) {
            let Some(key) = group.first().map(|stream| stream.iommu()) else { continue };
            let iommu = {
                let registry = self.registry.lock(held);
                registry.iommu(key).map(|record| record.iommu.clone())
            };
            let iommu = iommu.ok_or(Cause::ProviderMissing(key))?;
            let mut streams: Vec<Stream> = Vec::new();
            streams.try_reserve_exact(group.len()).map_err(|_| Cause::OutOfMemory)?;
            streams.extend_from_slice(group);
            attachments.try_reserve(1).map_err(|_| Cause::OutOfMemory)?;
            attachments.push(Attachment { key, iommu, streams });
        }
        let depth = match spec.parent {
            None => 0,
            Some(parent) => {
                let registry = self.registry.lock(held);
                let parent = registry.device(parent).ok_or(Cause::ParentMissing)?;
                parent.device.depth().saturating_add(1)
            }
        };
        Ok(Device::new(self.next_device_id(), spec, depth, attachments))
    }

    /// Whether what [`resolve`](Self::resolve) found is still there.
    fn unresolved(&self, registry: &super::registry::Registry<P>, device: &Device) -> Option<Cause> {
        if let Some(parent) = device.parent()
            && registry.device(parent).is_none_or(|parent| parent.remove_pending.get())
        {
            return Some(Cause::ParentMissing);
        }
        device.attachments().iter().find_map(|attachment| match registry.iommu(attachment.key) {
            None => Some(Cause::ProviderMissing(attachment.key)),
            Some(record) if record.leaving.get() => Some(Cause::Busy { running: Operation::UnregisterIommu }),
            Some(_) => None,
        })
    }

    /// Publishes the device's streams, joins the groups that they meet, and takes entries in fault.
    fn join(&self, held: &mut Held<'_, Unlocked>, device: &Device) -> Result<(), Cause> {
        let mut meets: Vec<Met> = Vec::new();
        for attachment in device.attachments() {
            let met = attachment.iommu.call(held).publish(device.id(), &attachment.streams);
            let met = met.map_err(|error| Cause::Iommu { iommu: attachment.key, error })?;
            meets.try_reserve(met.len()).map_err(|_| Cause::OutOfMemory)?;
            meets.extend(met.into_iter().map(|device| Met { device, iommu: attachment.key }));
        }
        if let Some(shared) = self.join_groups(held, device, &meets)? {
            self.ask_to_share(held, device, &shared)?;
        }
        if !device.is_lazy() {
            // All that can be lacking is kept on every IOMMU before anything is written on one (contract A-1).
            let mates = self.merging_mates(held, device)?;
            for attachment in device.attachments() {
                let allotted = attachment.iommu.call(held).allot(device.id(), &mates);
                allotted.map_err(|error| Cause::Iommu { iommu: attachment.key, error })?;
            }
            for attachment in device.attachments() {
                let enrolled = attachment.iommu.call(held).enrol(device.id());
                enrolled.map_err(|error| Cause::Iommu { iommu: attachment.key, error })?;
            }
        }
        {
            let registry = self.registry.lock(held);
            if let Some(record) = registry.registration(device) {
                registry.set_state(record, DeviceState::Blocked);
            }
        }
        self.tell(held, &Event::Added { device: device.label().clone() });
        Ok(())
    }

    /// Claims the groups that the device meets and makes one group of them. Returns whose live entry it would share, if
    /// there is one.
    fn join_groups(
        &self,
        held: &mut Held<'_, Unlocked>,
        device: &Device,
        meets: &[Met],
    ) -> Result<Option<Shared>, Cause> {
        let registry = self.registry.lock(held);
        let record = registry.registration(device).ok_or(Cause::Gone)?;
        let same_bus =
            |other: &DeviceRecord| device.isolation().is_some() && other.device.isolation() == device.isolation();
        let met = || {
            registry.devices().filter(|other| {
                let by_stream = meets.iter().any(|met| met.device == other.device.id());
                other.device.id() != device.id() && (by_stream || same_bus(other))
            })
        };
        // First only looks: a refusal must leave the groups as they are (contract I-11).
        let mut owner: Option<(&DeviceRecord, super::DomainId)> = None;
        for other in met() {
            if let Some(running) = registry.claimed(other).filter(|_| !cfg!(broken = "unclaimed_join")) {
                return Err(Cause::Busy { running });
            }
            match (owner, registry.owner(other)) {
                (Some((first, one)), Some((second, two))) if one != two => {
                    let reason = device.meets(&second.device).unwrap_or(ConflictReason::SharedBus);
                    let _ = first;
                    return Err(Cause::GroupConflict { with: second.device.label().clone(), reason });
                }
                (None, found) => owner = found,
                _ => {}
            }
        }
        for other in met() {
            registry.merge_groups(record, other);
        }
        // Whoever meets the device at an IOMMU and is assigned keeps the entry live that the device would share; members
        // that only their bus brings into the group share none.
        Ok(meets.iter().find_map(|met| {
            let member = registry.device_by_id(met.device)?;
            let DeviceState::Assigned(domain) = member.state.get() else { return None };
            let domain = registry.domain(domain)?.domain.label().clone();
            Some(Shared { with: member.device.clone(), domain, iommu: met.iommu })
        }))
    }

    /// A device that would share a live entry is not blocked, whatever its state says: the policy must say yes.
    fn ask_to_share(&self, held: &mut Held<'_, Unlocked>, device: &Device, shared: &Shared) -> Result<(), Cause> {
        let Shared { with, domain, iommu } = shared;
        let request = PolicyRequest { device, domain, why: Why::Shares { with } };
        if self.permits(held, &request) {
            return Ok(());
        }
        Err(Cause::GroupConflict { with: with.label().clone(), reason: ConflictReason::SharedStream(*iommu) })
    }
}

/// A device that a new one meets, and where.
struct Met {
    device: DeviceId,
    iommu: IommuKey,
}

/// An assigned device whose entry a new one would share.
struct Shared {
    with: Device,
    domain: Label,
    iommu: IommuKey,
}
