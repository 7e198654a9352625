//! Adding a device: its streams become known, it joins whom they meet, and its entries stand in fault.

use alloc::vec::Vec;

use super::claim::{Claim, End, Members};
use super::device::{Attachment, Device, DeviceSpec, DeviceState, Place};
use super::error::{Cause, ConflictReason, Error, Left, Operation};
use super::event::Event;
use super::identity::{DeviceId, DomainId, Label, Source};
use super::iommu::IommuError;
use super::nested::{Claims, Frame};
use super::policy::{PolicyRequest, Why};
use super::registry::DeviceRecord;
use super::removal::{Going, Outcome};
use super::service::Service;
use super::space::AddressSpace;
use super::spec::{IommuKey, Stream};
use super::stray::move_stray;
use crate::few;
use crate::sync::Platform;
use crate::sync::broken::broken;
use crate::sync::order::{Held, Unlocked};

impl<P: Platform> Service<P> {
    /// Registers a device: its streams take their stream-map entries, in fault, and it joins the group that they meet.
    ///
    /// # Errors
    ///
    /// [`Cause::NoStreams`], [`Cause::ProviderMissing`] (offer it again when the IOMMU is registered),
    /// [`Cause::AlreadyRegistered`], [`Cause::ParentMissing`], [`Cause::GroupConflict`] when it would bridge two owners
    /// or share a live stream without the policy's yes, [`Cause::Busy`] when a group that it meets is claimed,
    /// [`Cause::Removed`], [`Cause::Stray`] for a key of [`Source::Stray`](super::Source::Stray), and what the IOMMUs say.
    /// Nothing is changed then, but that a stray whose stream the device has may have gone: its stream faults again.
    ///
    /// # Context
    ///
    /// Waiting context. Contract C-2, I-11, A-5, A-6.
    pub fn add(&self, spec: DeviceSpec) -> Result<Device, Error> {
        self.add_within(Claims::NONE, spec)
    }

    pub(super) fn add_within(&self, above: Claims<'_>, spec: DeviceSpec) -> Result<Device, Error> {
        let mut held = Held::enter();
        let result = self.add_in(&mut held, above, spec, None);
        self.report(&result);
        result
    }

    /// `silence`: where a stray is to be when its add ends. One that is not there is not added.
    pub(super) fn add_in(
        &self,
        held: &mut Held<'_, Unlocked>,
        above: Claims<'_>,
        mut spec: DeviceSpec,
        silence: Option<&AddressSpace>,
    ) -> Result<Device, Error> {
        let label = spec.label.clone();
        let refuse = |cause| Error::unchanged(Operation::Add, label.clone(), cause);
        if spec.key.source() == Source::Stray && silence.is_none() {
            return Err(refuse(Cause::Stray));
        }
        spec.streams.sort_unstable();
        spec.streams.dedup();
        let wanted = Wanted::of(&spec).map_err(refuse)?;
        let device = Device::new(self.next_device_id(), spec);
        let mut claim = self.enter(held, above, &device, wanted).map_err(refuse)?;
        let subjects = core::slice::from_ref(&device);
        let joined = self.join(held, above, &device, &mut claim);
        let outcome = match joined.and_then(|()| silence.map_or(Ok(()), |space| move_stray(held, subjects, space))) {
            Ok(()) => {
                self.tell(held, &Event::Added { device: device.label().clone() });
                let state = if silence.is_some() { DeviceState::Quarantined } else { DeviceState::Blocked };
                if silence.is_some() {
                    self.tell_moved(held, subjects, state, None);
                }
                self.conclude(held, claim, End::in_state(subjects, state), above)
            }
            Err(cause) => {
                // A failed add is a removal by itself.
                let going = Going::unheard_of(&device);
                let _ = self.finish(held, claim, End::UNCHANGED, Some(going), above);
                return Err(refuse(cause));
            }
        };
        match outcome {
            Outcome::Stays => Ok(device),
            Outcome::Removed(result) => {
                let left = if result.is_ok() { Left::Unchanged } else { Left::Removed };
                Err(Error { operation: Operation::Add, subject: label, cause: Cause::Removed, left })
            }
            Outcome::InUse(_) => {
                Err(Error { operation: Operation::Add, subject: label, cause: Cause::Removed, left: Left::Going })
            }
        }
    }

    /// Registers the device, in state `Adding` with its own group claimed, and claims its parent's: that one stays.
    fn enter(
        &self,
        held: &mut Held<'_, Unlocked>,
        above: Claims<'_>,
        device: &Device,
        wanted: Vec<Wanted>,
    ) -> Result<Claim, Cause> {
        let record = DeviceRecord::adding(device.clone());
        let members = Members::with_room(few::USUAL).ok_or(Cause::OutOfMemory)?;
        let mut attachments: Vec<Attachment> = Vec::new();
        attachments.try_reserve_exact(wanted.len()).map_err(|_| Cause::OutOfMemory)?;
        let mut wanted = wanted.into_iter();
        let mut registry = self.registry.lock(held);
        let unused = registry.unused();
        let admitted = (|| {
            if let Some(other) = registry.device(device.key()) {
                // On its way in or out: whoever asks again later finds how that ended (contract C-2).
                let running = match other.state.get() {
                    _ if other.remove_pending.get() => Operation::Remove,
                    DeviceState::Adding => Operation::Add,
                    _ => return Err(Cause::AlreadyRegistered { by: other.device.label().clone() }),
                };
                return Err(above.busy(&registry, other, running));
            }
            while let Some(key) = wanted.as_slice().first().map(|next| next.iommu) {
                let instance = registry.iommu(key).ok_or(Cause::ProviderMissing(key))?;
                if instance.leaving.get() {
                    instance.met.set(true);
                    return Err(Cause::Busy { running: Operation::UnregisterIommu });
                }
                let Some(Wanted { streams, .. }) = wanted.next() else { break };
                attachments.push(Attachment { key, iommu: instance.iommu.clone(), streams });
            }
            let Some(key) = device.parent() else { return Ok((0, None)) };
            let parent =
                registry.device(key).filter(|parent| !parent.remove_pending.get() && !parent.device.is_stray());
            let parent = parent.ok_or(Cause::ParentMissing)?;
            let depth = parent.device.depth().saturating_add(1);
            // One whose own add runs above may still fail, and must not leave a child behind.
            if above.hold(&registry, parent) && parent.state.get() != DeviceState::Adding {
                return Ok((depth, None));
            }
            if let Some(running) = registry.claimed(parent) {
                return Err(above.busy(&registry, parent, running));
            }
            registry.claim(parent, Operation::Add)?;
            Ok((depth, Some(parent.device.clone())))
        })();
        let (depth, parent) = match admitted {
            Ok(admitted) => admitted,
            Err(cause) => {
                // What was made for it is released when the lock is free.
                drop(registry);
                return Err(cause);
            }
        };
        device.put(Place { depth, attachments });
        if broken!("early_release") {
            drop(registry);
            registry = self.registry.lock(held);
        }
        registry.insert_device(record);
        drop(registry);
        drop(unused);
        let mut claim = Claim::new(device.clone(), members, false);
        claim.parent = parent;
        Ok(claim)
    }

    /// Publishes the device's streams, joins the groups that they meet, and takes entries in fault.
    fn join(
        &self,
        held: &mut Held<'_, Unlocked>,
        above: Claims<'_>,
        device: &Device,
        claim: &mut Claim,
    ) -> Result<(), Cause> {
        let mut meets: Vec<Met> = Vec::new();
        for attachment in device.attachments() {
            let met = attachment.iommu.call(held).publish(device.id(), &attachment.streams);
            let met = met.map_err(|error| Cause::Iommu { iommu: attachment.key, error })?;
            meets.try_reserve(met.len()).map_err(|_| Cause::OutOfMemory)?;
            meets.extend(met.into_iter().map(|device| Met { device, iommu: attachment.key, stray: None }));
        }
        if device.is_stray()
            && let Some(met) = meets.first()
        {
            return Err(self.not_stray(held, above, device, met));
        }
        if let Some(shared) = self.join_groups(held, above, device, &mut meets, claim)? {
            let frame = Frame {
                device,
                subjects: core::slice::from_ref(device),
                operation: Operation::Add,
                // The yes is for this owner alone.
                target: Some(shared.owner),
                above,
            };
            self.ask_to_share(held, &frame, &shared)?;
        }
        // Its streams are the device's now that they are published: no new stray can come.
        for stray in meets.iter().filter_map(|met| met.stray.as_ref()) {
            self.evict(held, above, stray)?;
        }
        if !device.is_lazy() {
            // All that can be lacking is kept on every IOMMU before anything is written on one (contract A-1).
            let mates = self.merging_mates(held, device, claim)?;
            for attachment in device.attachments() {
                let allotted = attachment.iommu.call(held).allot(device.id(), &mates);
                allotted.map_err(|error| Cause::Iommu { iommu: attachment.key, error })?;
            }
            for attachment in device.attachments() {
                let enrolled = attachment.iommu.call(held).enrol(device.id());
                enrolled.map_err(|error| Cause::Iommu { iommu: attachment.key, error })?;
            }
        }
        Ok(())
    }

    /// Claims the groups that the device meets and makes one group of them. Returns whose live entry it would share, if
    /// there is one.
    fn join_groups(
        &self,
        held: &mut Held<'_, Unlocked>,
        above: Claims<'_>,
        device: &Device,
        meets: &mut Vec<Met>,
        claim: &mut Claim,
    ) -> Result<Option<Shared>, Cause> {
        let registry = loop {
            let registry = self.registry.lock(held);
            let lost = |met: &&Met| self.has_given(met.device) && registry.device_by_id(met.device).is_none();
            let Some(lost) = meets.iter().find(lost).map(|met| met.device) else { break registry };
            drop(registry);
            let mut known = device.attachments().iter().map(|attachment| attachment.iommu.call(held).placement(lost));
            if known.all(|placement| placement == Err(IommuError::Unknown)) {
                // It has gone since, and others that it stood for may stay: whom the device meets is to be asked again.
                return Err(Cause::Busy { running: Operation::Remove });
            }
            // It could not be withdrawn, and is nobody's.
            meets.retain(|met| met.device != lost);
        };
        let record = registry.registration(device).ok_or(Cause::Gone)?;
        for met in &mut *meets {
            let Some(stray) = registry.device_by_id(met.device).filter(|other| other.device.is_stray()) else {
                continue;
            };
            if let Some(running) = registry.claimed(stray) {
                return Err(above.busy(&registry, stray, running));
            }
            met.stray = Some(stray.device.clone());
        }
        let same_bus =
            |other: &DeviceRecord| device.isolation().is_some() && other.device.isolation() == device.isolation();
        let met = || {
            registry.devices().filter(|other| {
                let by_stream = meets.iter().any(|met| met.device == other.device.id() && met.stray.is_none());
                other.device.id() != device.id() && (by_stream || same_bus(other))
            })
        };
        let parent = claim.parent.as_ref().and_then(|parent| registry.registration(parent));
        let is_parents = |other: &DeviceRecord| parent.is_some_and(|parent| parent.leader.get() == other.leader.get());
        // First only looks: a refusal must leave the groups as they are (contract I-11).
        let mut owner: Option<DomainId> = None;
        for other in met() {
            if let Some(running) = registry.claimed(other)
                && !is_parents(other)
                && !broken!("unclaimed_join")
            {
                return Err(above.busy(&registry, other, running));
            }
            match (owner, registry.owner(other)) {
                (Some(one), Some((second, two))) if one != two => {
                    let reason = device.meets(&second.device).unwrap_or(ConflictReason::SharedBus);
                    return Err(Cause::GroupConflict { with: second.device.label().clone(), reason });
                }
                (None, found) => owner = found.map(|(_, domain)| domain),
                _ => {}
            }
        }
        for other in met() {
            registry.merge_groups(record, other);
        }
        claim.members.fill(&registry, record);
        // Whoever meets the device at an IOMMU and is assigned keeps the entry live that the device would share; members
        // that only their bus brings into the group share none.
        Ok(meets.iter().find_map(|met| {
            let member = registry.device_by_id(met.device)?;
            let DeviceState::Assigned(owner) = member.state.get() else { return None };
            let domain = registry.domain(owner)?.domain.label().clone();
            Some(Shared { with: member.device.clone(), owner, domain, iommu: met.iommu })
        }))
    }

    /// A device that would share a live entry is not blocked, whatever its state says: the policy must say yes.
    fn ask_to_share(&self, held: &mut Held<'_, Unlocked>, frame: &Frame<'_>, shared: &Shared) -> Result<(), Cause> {
        let Shared { with, domain, iommu, .. } = shared;
        let (device, why, claims) = (frame.device, Why::Shares { with }, Claims::of(frame));
        if self.permits(held, &PolicyRequest { device, domain, why, claims }) {
            return Ok(());
        }
        Err(Cause::GroupConflict { with: with.label().clone(), reason: ConflictReason::SharedStream(*iommu) })
    }
}

/// A device's streams on one IOMMU, before that was looked up.
struct Wanted {
    iommu: IommuKey,
    streams: Vec<Stream>,
}

impl Wanted {
    /// What `spec` names, whose streams are sorted.
    fn of(spec: &DeviceSpec) -> Result<Vec<Self>, Cause> {
        let mut wanted: Vec<Self> = Vec::new();
        for group in spec.streams.chunk_by(|one, next| one.iommu() == next.iommu()) {
            let Some(iommu) = group.first().map(|stream| stream.iommu()) else { continue };
            let mut streams: Vec<Stream> = Vec::new();
            streams.try_reserve_exact(group.len()).map_err(|_| Cause::OutOfMemory)?;
            streams.extend_from_slice(group);
            wanted.try_reserve(1).map_err(|_| Cause::OutOfMemory)?;
            wanted.push(Self { iommu, streams });
        }
        if wanted.is_empty() { Err(Cause::NoStreams) } else { Ok(wanted) }
    }
}

/// A device that a new one meets, and where.
pub(super) struct Met {
    pub(super) device: DeviceId,
    pub(super) iommu: IommuKey,
    /// It is one, which makes way.
    stray: Option<Device>,
}

/// An assigned device whose entry a new one would share.
struct Shared {
    with: Device,
    owner: DomainId,
    domain: Label,
    iommu: IommuKey,
}
