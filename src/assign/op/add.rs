//! Adding a device: register, publish, reserve, then join (design: mechanism 2).
//!
//! The key is registered first, in state `Adding`, with its group claimed from the start. Then the streams are published, and the
//! entries are reserved: that hold of the driver is the judge of who shares them. Where it finds a device that is not claimed,
//! the groups of all that overlap are, and it is asked again. Until the claim is put back its groups stay apart, so that a
//! refused add leaves each as it was. Undoing an add is a removal.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::any::Any;
use core::iter;

use smallvec::SmallVec;

use super::joining::owner_of_joined;
use super::on_all_iommus::{Power, no_place};
use super::removal::{self, Outcome};
use crate::assign::{
    Attachment, CallChain, Cause, Claim, Device, DeviceId, DeviceRecord, DeviceSpec, DeviceState, Error, Event, Group,
    Instance, IommuError, Left, Member, Nodes, Obstacle, Operation, Registry, Service, Stream, Streams, nodes_of,
};
use crate::few;
use crate::sync::Platform;
use crate::sync::atomic::Ordering;
use crate::sync::broken::broken;
use crate::sync::order::{Held, Unlocked};

/// A device that is ready to be registered, with all memory that its life takes.
struct NewDevice {
    device: Device,
    record: Box<DeviceRecord>,
    nodes: Nodes,
    group: Box<Group>,
    /// Its state when it is added.
    state: DeviceState,
    /// One for each attachment.
    masters: SmallVec<[Box<dyn Any + Send>; 2]>,
}

impl<P: Platform> Service<P> {
    /// Registers a device: its streams take their stream-map entries, in fault, and it joins the group that they overlap.
    ///
    /// # Errors
    ///
    /// [`Cause::NoStreams`], [`Cause::ProviderMissing`] (offer it again when the IOMMU is registered),
    /// [`Cause::AlreadyRegistered`], [`Cause::ParentMissing`], [`Cause::GroupConflict`] when it would bridge two owners
    /// or share a live stream without the policy's yes, [`Cause::Busy`] when a group that it overlaps is claimed, or its parent's,
    /// [`Cause::SourceEnded`], [`Cause::Removed`], [`Cause::OutOfMemory`], and what the IOMMUs say. Nothing is changed then, but with [`Left::Going`]:
    /// entries that were written could not be taken back; the device is registered, and is to be removed.
    ///
    /// # Context
    ///
    /// Waiting context. It allocates before anything else, and nowhere later. Contract C-2, I-11, A-5, A-6, A-8.
    pub fn add(&self, spec: DeviceSpec) -> Result<Device, Error> {
        self.add_within(CallChain::NONE, spec)
    }

    pub(in crate::assign) fn add_within(&self, above: CallChain<'_>, spec: DeviceSpec) -> Result<Device, Error> {
        self.add_as(above, spec, DeviceState::Blocked)
    }

    /// An add after which the device is in `state`, and in fault.
    pub(super) fn add_as(&self, above: CallChain<'_>, spec: DeviceSpec, state: DeviceState) -> Result<Device, Error> {
        let mut held = Held::enter();
        let made = self.make(&mut held, spec, state);
        Error::reported(made.and_then(|new| self.add_powered(&mut held, above, new)))
    }

    /// On several IOMMUs power is had on all of them before the first change, and until an add that fails is undone (contract
    /// On one, `enrol` has it before it writes, and what was not written is withdrawn without.
    fn add_powered(
        &self,
        held: &mut Held<'_, Unlocked>,
        above: CallChain<'_>,
        new: NewDevice,
    ) -> Result<Device, Error> {
        let device = new.device.clone();
        if device.attachments().len() < 2 {
            return self.add_made(held, above, new);
        }
        let refuse = |cause| Error::unchanged(Operation::Add, device.label().clone(), cause);
        let power = Power::of(held, iter::once(&device));
        let power = power.map_err(|(instance, error)| refuse(no_place(&instance, error)))?;
        let result = self.add_made(held, above, new);
        power.release(held);
        result
    }

    fn add_made(&self, held: &mut Held<'_, Unlocked>, above: CallChain<'_>, new: NewDevice) -> Result<Device, Error> {
        let NewDevice { device, record, nodes, group, state, masters } = new;
        let refuse = |cause| Error::unchanged(Operation::Add, device.label().clone(), cause);
        let mut claim = self.register(held, above, &device, record, nodes, group).map_err(refuse)?;
        let entered = self.enter_iommus(held, &mut claim, &device, masters);
        let joined = entered.and_then(|()| self.join(held, &mut claim, &device));
        if let Err(cause) = joined {
            return Err(self.undo_add(held, claim, cause));
        }
        if let Some(member) = claim.member(device.id()) {
            member.state.set(state);
            member.untouched.set(true);
        }
        self.tell(held, || Event::Added { device: device.label().clone() });
        let parent = device.parent();
        let is_unwanted = |registry: &Registry<P>| {
            let parent = parent.and_then(|key| registry.device(key));
            let parent_leaves = parent.is_some_and(DeviceRecord::is_leaving) && !broken!("parent_mark_ignored");
            // Taken out of service by force meanwhile: look-ups have missed the device since (contract C-9, C-15).
            parent_leaves || refusal(&device).is_some()
        };
        match self.put_back_unless(held, claim, is_unwanted) {
            Err(claim) => {
                // It was told of: what is told last must be so.
                self.tell(held, || Event::Removed { device: device.label().clone() });
                let cause = refusal(&device).unwrap_or(Cause::ParentMissing);
                Err(self.undo_add(held, claim, cause))
            }
            Ok(marked) if marked.is_nothing() => Ok(device),
            Ok(marked) => {
                let mut result = Ok(device.clone());
                self.carry_out(held, marked, above, &mut |removed, outcome| {
                    if removed.id() == device.id() {
                        result = Err(was_removed(outcome, &device));
                    } else {
                        outcome.log();
                    }
                });
                result
            }
        }
    }

    // --- 1: everything is made, with nothing locked ---

    fn make(
        &self,
        held: &mut Held<'_, Unlocked>,
        mut spec: DeviceSpec,
        state: DeviceState,
    ) -> Result<NewDevice, Error> {
        few::sort(&mut spec.streams, &|one, other| one < other);
        spec.streams.dedup();
        let attachments = match self.attach_to_instances(held, &spec.streams) {
            Ok(attachments) => attachments,
            Err(cause) => return Err(Error::unchanged(Operation::Add, spec.label, cause)),
        };
        let id = DeviceId::new(self.last_device.fetch_add(1, Ordering::Relaxed).wrapping_add(1));
        let device = Device::new(id, spec, attachments.into_boxed_slice());
        let refuse = |cause| Error::unchanged(Operation::Add, device.label().clone(), cause);
        let mut masters = SmallVec::new();
        masters.try_reserve_exact(device.attachments().len()).map_err(|_| refuse(Cause::OutOfMemory))?;
        for at in device.attachments() {
            let iommu = at.instance.iommu.call(held);
            let made = iommu.make_master(id, device.streams_on(at), device.is_lazy());
            few::put(&mut masters, made.map_err(|error| refuse(no_place(&at.instance, error)))?);
        }
        let record = DeviceRecord::adding(device.clone());
        let (nodes, group) = (nodes_of(&device), Group::of(Member::new(device.clone())));
        Ok(NewDevice { device, record, nodes, group, state, masters })
    }

    /// The IOMMUs that sorted streams are on.
    fn attach_to_instances(&self, held: &mut Held<'_, Unlocked>, streams: &[Stream]) -> Result<Vec<Attachment>, Cause> {
        if streams.is_empty() {
            return Err(Cause::NoStreams);
        }
        let chunks = || few::runs(streams, |one, next| one.iommu() == next.iommu());
        let mut attachments = Vec::new();
        attachments.try_reserve_exact(chunks().count()).map_err(|_| Cause::OutOfMemory)?;
        let mut start = 0_u32;
        let instances = self.instances.lock(held);
        for chunk in chunks() {
            let Some(key) = chunk.first().map(|stream| stream.iommu()) else { continue };
            let instance = instances.find(key).ok_or(Cause::ProviderMissing(key))?;
            let end = start.saturating_add(u32::try_from(chunk.len()).unwrap_or(u32::MAX));
            few::push_within(&mut attachments, Attachment { instance, streams: start..end });
            start = end;
        }
        Ok(attachments)
    }

    // --- 3 to 5: the streams are published, and their entries reserved; what they overlap is claimed, and what the bus does not
    // keep apart ---

    fn enter_iommus(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &mut Claim<'_>,
        device: &Device,
        masters: SmallVec<[Box<dyn Any + Send>; 2]>,
    ) -> Result<(), Cause> {
        if device.isolation().is_some() {
            let registry = self.registry.lock(held);
            if let Some(mate) = registry.bus_mate(device).filter(|mate| !claim.owns(mate.device.id())) {
                claim.take_in(&registry, mate)?;
            }
        }
        for (at, master) in device.attachments().iter().zip(masters) {
            let published = at.instance.iommu.call(held).publish(master);
            // Most devices overlap nothing, and this is all.
            if !published.map_err(|error| no_place(&at.instance, error))? {
                self.take_entries(held, &at.instance, claim, device)?;
            }
        }
        Ok(())
    }

    #[cold]
    fn take_entries(
        &self,
        held: &mut Held<'_, Unlocked>,
        instance: &Instance,
        claim: &mut Claim<'_>,
        device: &Device,
    ) -> Result<(), Cause> {
        let mut reserved = reserve_at(held, instance, claim, device);
        if matches!(reserved, Err(IommuError::Foreign(_))) {
            self.claim_overlapping(held, instance, claim, device)?;
            reserved = reserve_at(held, instance, claim, device);
        }
        match reserved {
            Ok(_) => Ok(()),
            Err(IommuError::Foreign(_)) => {
                claim.above.meet(Obstacle::Driver);
                Err(Cause::busy(Operation::Add))
            }
            Err(error) => Err(no_place(instance, error)),
        }
    }

    fn claim_overlapping(
        &self,
        held: &mut Held<'_, Unlocked>,
        instance: &Instance,
        claim: &mut Claim<'_>,
        device: &Device,
    ) -> Result<(), Cause> {
        let mut after = None;
        while let Some(id) = instance.iommu.call(held).overlapping(device.id(), after) {
            after = Some(id);
            if is_own(claim, id) {
                continue;
            }
            let registry = self.registry.lock(held);
            // One that is not registered any more has left the driver since.
            if let Some(record) = registry.by_id(id) {
                claim.take_in(&registry, record)?;
            }
        }
        Ok(())
    }

    // --- 6 and 7: owners and the policy agree; entries are written ---

    fn join(&self, held: &mut Held<'_, Unlocked>, claim: &mut Claim<'_>, device: &Device) -> Result<(), Cause> {
        if let Some(owner) = owner_of_joined(held, claim, device)? {
            self.ask_to_share(held, claim, device, owner)?;
        }
        for at in device.attachments() {
            let enrolled = at.instance.iommu.call(held).enrol(device.id());
            enrolled.map_err(|error| no_place(&at.instance, error))?;
        }
        Ok(())
    }

    /// Takes an add back: the drivers forget the device, then the registry, and each group that was claimed goes back as it was.
    fn undo_add(&self, held: &mut Held<'_, Unlocked>, mut claim: Claim<'_>, cause: Cause) -> Error {
        let (device, above) = (claim.device.clone(), claim.above);
        let left = match removal::withdraw(held, &device) {
            Ok(()) | Err(Cause::Iommu { error: IommuError::ProviderGone, .. }) => {
                claim.depart(device.id());
                Left::Unchanged
            }
            Err(withdrawal) => {
                log::warn!("{} is registered, and is to be removed: {withdrawal}", device.label());
                if let Some(member) = claim.member(device.id()) {
                    member.state.set(DeviceState::Blocked);
                    member.going.set(true);
                }
                Left::Going
            }
        };
        let marked = self.put_back(held, claim);
        self.carry_out(held, marked, above, &mut |_, outcome| outcome.log());
        Error { operation: Operation::Add, subject: device.label().clone(), cause, left }
    }
}

/// Whether a device is of a group that this add has claimed.
fn is_own(claim: &Claim<'_>, id: DeviceId) -> bool {
    claim.owns(id) && !broken!("own_group_is_out")
}

/// Takes the entries of one IOMMU, where all who have streams in them are claimed.
fn reserve_at(
    held: &mut Held<'_, Unlocked>,
    instance: &Instance,
    claim: &Claim<'_>,
    device: &Device,
) -> Result<Streams, IommuError> {
    let is_claimed = |id| is_own(claim, id) || broken!("unclaimed_join");
    instance.iommu.call(held).reserve(device.id(), &is_claimed)
}

/// Why one of its IOMMUs takes no device any more, if so.
fn refusal(device: &Device) -> Option<Cause> {
    device.attachments().iter().find_map(|at| at.instance.refusal())
}

/// What an add says that a removal overtook. It says so though an IOMMU of the device went meanwhile: look-ups may have seen
/// the device, which they had not where the add was refused (contract C-15).
fn was_removed(outcome: Outcome, device: &Device) -> Error {
    let error = outcome.overtook(Operation::Add, device);
    let left = if error.left == Left::Removed { Left::Unchanged } else { error.left };
    Error { left, ..error }
}
