//! Adding a device: its streams become known, it joins whom they meet, and its entries stand in fault.

use core::mem;

use super::claim::{Claim, End, Members};
use super::device::{Attachment, Device, DeviceSpec, DeviceState, Place};
use super::error::{Cause, ConflictReason, Error, Left, Operation};
use super::event::Event;
use super::identity::{DeviceId, DomainId, Label};
use super::iommu::IommuError;
use super::nested::{Claims, Frame};
use super::new_device::NewDevice;
use super::policy::{PolicyRequest, Why};
use super::registry::{DeviceRecord, Registry};
use super::removal::{Going, Outcome};
use super::service::Service;
use super::space::AddressSpace;
use super::spec::IommuKey;
use super::stray::{move_stray, not_stray};
use crate::few::{self, Few};
use crate::sync::Platform;
use crate::sync::atomic::Ordering;
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
        let made = self.make_described(&mut held, spec);
        let result = made.and_then(|new| self.add_in(&mut held, above, new, None));
        self.report(&result);
        result
    }

    /// [`add`](Self::add) of a device that was made ready: nothing is allocated for a device that meets up to eight others,
    /// and whose group has up to eight members.
    ///
    /// # Errors
    ///
    /// As for [`add`](Self::add), but for what [`new_device`](Self::new_device) has said already. [`Cause::ProviderMissing`]
    /// where an IOMMU was unregistered since then, also where one was registered under its name again, or where another
    /// service made the device. It is gone after any error, a [`Cause::Busy`] too: make it anew.
    ///
    /// # Context
    ///
    /// Waiting context; no lock is held over a callback, and none of the service's while the IOMMUs are asked. Contract A-8,
    /// C-2, C-9.
    pub fn add_new(&self, new: NewDevice) -> Result<Device, Error> {
        self.add_new_within(Claims::NONE, new)
    }

    pub(super) fn add_new_within(&self, above: Claims<'_>, new: NewDevice) -> Result<Device, Error> {
        let result = self.add_in(&mut Held::enter(), above, new, None);
        self.report(&result);
        result
    }

    /// `silence`: where a stray is to be when its add ends.
    pub(super) fn add_in(
        &self,
        held: &mut Held<'_, Unlocked>,
        above: Claims<'_>,
        mut new: NewDevice,
        silence: Option<&AddressSpace>,
    ) -> Result<Device, Error> {
        let device = new.device.clone();
        let label = device.label().clone();
        let refuse = |cause| Error::unchanged(Operation::Add, label.clone(), cause);
        self.arrivals.begin();
        let moves = self.moves.load(Ordering::Acquire);
        let published = self.publish(held, &mut new);
        let entered = published.and_then(|meets| self.enter(held, above, &mut new, meets, moves));
        let (claim, owner, strays) = match entered {
            Ok(entered) => entered,
            Err(refusal) => {
                Self::take_back(held, &new);
                let (cause, wakes) = match refusal {
                    Refusal::Because(cause) => (cause, self.arrivals.end()),
                    Refusal::Met => (Cause::Busy { running: Operation::Add }, self.arrivals.give_way()),
                    // Who goes unmet wakes nobody, and whoever tries this again must not sleep.
                    Refusal::Lost(_) => {
                        self.arrivals.end();
                        (Cause::Busy { running: Operation::Remove }, true)
                    }
                };
                if wakes {
                    P::wake();
                }
                return Err(refuse(cause));
            }
        };
        let subjects = core::slice::from_ref(&device);
        let joined = self.join(held, above, &mut new, owner.as_ref(), &strays);
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
                // What was promised is free before anybody hears of the end.
                new.masters.clear();
                // A failed add is a removal by itself.
                let going = Going::unheard_of(&device);
                let _ = self.finish(held, claim, End::UNCHANGED, Some(going), above);
                return Err(refuse(cause));
            }
        };
        match outcome {
            Outcome::Stays => Ok(device),
            Outcome::Removed(result) => {
                // It never left fault: what an instance that went did not confirm is nothing.
                let is_unconfirmed =
                    |error: &Error| !matches!(error.cause, Cause::Iommu { error: IommuError::ProviderGone, .. });
                let left =
                    if result.is_err_and(|error| is_unconfirmed(&error)) { Left::Removed } else { Left::Unchanged };
                let cause = self.missing(held, &device).map_or(Cause::Removed, Cause::ProviderMissing);
                Err(Error { operation: Operation::Add, subject: label, cause, left })
            }
            Outcome::InUse(_) => {
                Err(Error { operation: Operation::Add, subject: label, cause: Cause::Removed, left: Left::Going })
            }
        }
    }

    /// An IOMMU of the device that has gone, if one has.
    fn missing(&self, held: &mut Held<'_, Unlocked>, device: &Device) -> Option<IommuKey> {
        let instances = self.instances.lock(held);
        let is_gone = |at: &&Attachment| instances.find(at.key).is_none_or(|instance| !instance.is_same(&at.iommu));
        device.attachments().iter().find(is_gone).map(|attachment| attachment.key)
    }

    /// Publishes the device's streams everywhere. From here on whoever has them too meets this one.
    fn publish(&self, held: &mut Held<'_, Unlocked>, new: &mut NewDevice) -> Result<Few<Met>, Refusal> {
        let mut meets: Few<Met> = Few::new();
        for (attachment, master) in new.places() {
            let iommu = attachment.key;
            let mut listed = Ok(());
            let mut list = |device| {
                listed = listed.and_then(|()| meets.try_reserve(1).map_err(|_| IommuError::OutOfMemory));
                if listed.is_ok() {
                    meets.push(Met { device, iommu });
                }
            };
            let published = attachment.iommu.call(held).publish(master, &mut list);
            published.and(listed).map_err(|error| self.no_place(held, attachment, error))?;
        }
        Ok(meets)
    }

    /// Takes back what was published of a device that is not registered.
    fn take_back(held: &mut Held<'_, Unlocked>, new: &NewDevice) {
        for attachment in &new.attachments {
            match attachment.iommu.call(held).withdraw(new.device.id(), &[], &mut |_| ()) {
                Ok(_) | Err(IommuError::Unknown | IommuError::ProviderGone) => {}
                Err(error) => log::warn!("{}: {} was not taken back: {error}", attachment.key, new.device.label()),
            }
        }
    }

    /// Registers the device, in state `Adding`; claims its parent's group, and the groups that it meets, which become one
    /// with its own. Returns who owns the group, if somebody does, and the strays that make way. `moves`: how many there had
    /// been before its streams were published.
    fn enter(
        &self,
        held: &mut Held<'_, Unlocked>,
        above: Claims<'_>,
        new: &mut NewDevice,
        mut meets: Few<Met>,
        moves: u64,
    ) -> Result<(Claim, Option<Owner>, Few<Device>), Refusal> {
        let mut members = Members::with_room(few::USUAL).ok_or(Cause::OutOfMemory)?;
        let mut strays: Few<Device> = few::with_room(meets.len()).ok_or(Cause::OutOfMemory)?;
        let (mut registry, admitted) = loop {
            let registry = self.registry.lock(held);
            let lost = match self.admit(&registry, above, new, &meets) {
                Err(Refusal::Lost(lost)) => lost,
                admitted => break (registry, admitted),
            };
            drop(registry);
            let mut known = new.attachments.iter().map(|attachment| attachment.iommu.call(held).placement(lost));
            if known.all(|placement| placement == Err(IommuError::Unknown)) {
                // It has gone since, and others that it stood for may stay: whom the device meets is to be asked again.
                return Err(Refusal::Lost(lost));
            }
            // It could not be withdrawn, and is nobody's.
            meets.retain(|met| met.device != lost);
        };
        let Admitted { depth, parent } = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                drop(registry);
                return Err(refusal);
            }
        };
        let Some(record) = new.record.take() else {
            drop(registry);
            return Err(Cause::Gone.into());
        };
        let device = &new.device;
        let unused = registry.unused();
        if let Some(parent) = parent.as_ref().and_then(|parent| registry.registration(parent)) {
            // Nobody has claimed it, or the device was not admitted.
            let _ = registry.claim(parent, Operation::Add);
        }
        if broken!("early_release") {
            drop(registry);
            registry = self.registry.lock(held);
        }
        device.put(Place { depth, attachments: mem::take(&mut new.attachments) });
        // Not left to the end of the claim: whoever has met an arrival could not see in what order that comes.
        let was_met = self.arrivals.end();
        registry.insert_device(record);
        if let Some(record) = registry.registration(device) {
            for other in met_by(&registry, device, &meets) {
                registry.merge_groups(record, other);
            }
            members.fill(&registry, record);
        }
        let met = meets.iter().filter_map(|met| registry.device_by_id(met.device));
        strays.extend(met.map(|other| &other.device).filter(|other| other.is_stray()).cloned());
        let owner = Owner::of(&registry, device, &meets, &members, moves);
        drop(registry);
        drop(unused);
        if was_met {
            P::wake();
        }
        let mut claim = Claim::new(new.device.clone(), members, false);
        claim.parent = parent;
        Ok((claim, owner, strays))
    }

    /// Looks whether the device can be registered, and changes nothing: a refusal leaves the groups as they are (contract
    /// I-11).
    fn admit(
        &self,
        registry: &Registry<P>,
        above: Claims<'_>,
        new: &NewDevice,
        meets: &[Met],
    ) -> Result<Admitted, Refusal> {
        let device = &new.device;
        if let Some(other) = registry.device(device.key()) {
            // On its way in or out: whoever asks again later finds how that ended (contract C-2).
            let running = match other.state.get() {
                _ if other.remove_pending.get() => Operation::Remove,
                DeviceState::Adding => Operation::Add,
                _ => return Err(Cause::AlreadyRegistered { by: other.device.label().clone() }.into()),
            };
            return Err(above.busy(registry, other, running).into());
        }
        for attachment in &new.attachments {
            registry.is_in_service(attachment)?;
        }
        let admitted = Self::admit_behind(registry, above, device)?;
        // Who is not registered is on its way in or out, or was left behind.
        let lost = |met: &&Met| self.has_given(met.device) && registry.device_by_id(met.device).is_none();
        if let Some(lost) = meets.iter().find(lost) {
            if self.arrivals.meet() {
                return Err(Refusal::Met);
            }
            return Err(Refusal::Lost(lost.device));
        }
        if let Some(met) = meets.first().filter(|_| device.is_stray()) {
            return Err(not_stray(registry, above, device, met).into());
        }
        let strays = meets.iter().filter_map(|met| registry.device_by_id(met.device));
        for stray in strays.filter(|other| other.device.is_stray()) {
            if let Some(running) = registry.claimed(stray) {
                return Err(above.busy(registry, stray, running).into());
            }
        }
        let mut owner: Option<DomainId> = None;
        for other in met_by(registry, device, meets) {
            if let Some(running) = registry.claimed(other)
                && !broken!("unclaimed_join")
            {
                return Err(above.busy(registry, other, running).into());
            }
            match (owner, registry.owner(other)) {
                (Some(one), Some((second, two))) if one != two => {
                    let reason = device.meets(&second.device).unwrap_or(ConflictReason::SharedBus);
                    return Err(Cause::GroupConflict { with: second.device.label().clone(), reason }.into());
                }
                (None, found) => owner = found.map(|(_, domain)| domain),
                _ => {}
            }
        }
        Ok(admitted)
    }

    /// Where the device will stand: its depth, and the parent whose group is to be claimed too, so that it stays.
    fn admit_behind(registry: &Registry<P>, above: Claims<'_>, device: &Device) -> Result<Admitted, Cause> {
        let Some(key) = device.parent() else { return Ok(Admitted { depth: 0, parent: None }) };
        let parent = registry.device(key).filter(|parent| !parent.remove_pending.get() && !parent.device.is_stray());
        let parent = parent.ok_or(Cause::ParentMissing)?;
        let depth = parent.device.depth().saturating_add(1);
        // One whose own add runs above may still fail, and must not leave a child behind.
        if above.hold(registry, parent) && parent.state.get() != DeviceState::Adding {
            return Ok(Admitted { depth, parent: None });
        }
        match registry.claimed(parent) {
            Some(running) => Err(above.busy(registry, parent, running)),
            None => Ok(Admitted { depth, parent: Some(parent.device.clone()) }),
        }
    }

    /// Asks whoever must be asked, has strays make way, and takes entries in fault.
    fn join(
        &self,
        held: &mut Held<'_, Unlocked>,
        above: Claims<'_>,
        new: &mut NewDevice,
        owner: Option<&Owner>,
        strays: &[Device],
    ) -> Result<(), Cause> {
        let device = &new.device;
        if let Some(owner) = owner
            && let Some((with, iommu)) = self.keeper(held, device, owner)?
        {
            let frame = Frame {
                device,
                subjects: core::slice::from_ref(device),
                operation: Operation::Add,
                // The yes is for this owner alone.
                target: Some(owner.owner),
                above,
            };
            // A device that would share a live entry is not blocked, whatever its state says: the policy must say yes.
            let (domain, why, claims) = (&owner.domain, Why::Shares { with: &with }, Claims::of(&frame));
            if !self.permits(held, &PolicyRequest { device, domain, why, claims }) {
                let reason = ConflictReason::SharedStream(iommu);
                return Err(Cause::GroupConflict { with: with.label().clone(), reason });
            }
        }
        // Its streams are the device's now that they are published: no new stray can come.
        for stray in strays {
            self.evict(held, above, stray)?;
        }
        if device.is_lazy() {
            return Ok(());
        }
        // All that can be lacking is kept on every IOMMU before anything is written on one (contract A-1).
        for (attachment, master) in device.attachments().iter().zip(&mut new.masters) {
            let allotted = attachment.iommu.call(held).allot(master);
            allotted.map_err(|error| Cause::Iommu { iommu: attachment.key, error })?;
        }
        for (attachment, master) in device.attachments().iter().zip(&mut new.masters) {
            let enrolled = attachment.iommu.call(held).enrol(master);
            enrolled.map_err(|error| Cause::Iommu { iommu: attachment.key, error })?;
        }
        Ok(())
    }

    /// Whose live entry the device would share, and where. Members that only their bus brings into the group share none.
    ///
    /// Of those that share an entry publishing named one. That may have left its owner since, or the owner come to another:
    /// where no owned one was met, and a state has changed, the IOMMUs are asked again, now that the group is claimed.
    fn keeper(
        &self,
        held: &mut Held<'_, Unlocked>,
        device: &Device,
        owner: &Owner,
    ) -> Result<Option<(Device, IommuKey)>, Cause> {
        if owner.live.is_some() || !owner.has_moved {
            return Ok(owner.live.clone());
        }
        for attachment in device.attachments() {
            let mut keepers: Few<DeviceId> = Few::new();
            let mut all_told = true;
            let mut tell = |keeper| all_told &= few::put(&mut keepers, keeper);
            let iommu = attachment.key;
            // The device is in fault: nothing is done but to tell.
            let told = attachment.iommu.call(held).block(&[device.id()], &mut tell);
            told.map_err(|error| Cause::Iommu { iommu, error })?;
            if !all_told {
                return Err(Cause::OutOfMemory);
            }
            let registry = self.registry.lock(held);
            let records = keepers.iter().filter_map(|keeper| registry.device_by_id(*keeper));
            let mut owned = records.filter(|record| record.state.get() == DeviceState::Assigned(owner.owner));
            if let Some(keeper) = owned.next() {
                return Ok(Some((keeper.device.clone(), iommu)));
            }
        }
        Ok(None)
    }
}

/// Where a device that may be registered will stand.
struct Admitted {
    depth: u16,
    /// To be claimed.
    parent: Option<Device>,
}

impl Owner {
    /// Who owns the group that `device` has joined. `moves`: how many there had been before it was published.
    fn of<P: Platform>(
        registry: &Registry<P>,
        device: &Device,
        meets: &[Met],
        members: &Members,
        moves: u64,
    ) -> Option<Self> {
        let (_, owner) = registry.owner(registry.registration(device)?)?;
        let domain = registry.domain(owner)?.domain.label().clone();
        let keeps_live = |other: &DeviceRecord, iommu| {
            // One that is still with an instance that went shares nothing with this one.
            let here = device.attachments().iter().find(|mine| mine.key == iommu);
            other.state.get() == DeviceState::Assigned(owner) && here.is_some_and(|here| other.is_on(&here.iommu))
        };
        let live = meets.iter().find_map(|met| {
            let other = registry.device_by_id(met.device).filter(|other| keeps_live(other, met.iommu))?;
            Some((other.device.clone(), met.iommu))
        });
        let mut records = members.devices().filter_map(|member| registry.registration(member));
        let has_moved = !members.is_complete() || records.any(|member| member.moved.get() > moves);
        Some(Self { owner, domain, live, has_moved })
    }
}

/// Why a device is not admitted.
enum Refusal {
    Because(Cause),
    /// It meets one whose own add may be about to register that.
    Met,
    /// It meets this one, which is registered no more and whose add does not run.
    Lost(DeviceId),
}

impl From<Cause> for Refusal {
    fn from(cause: Cause) -> Self {
        Self::Because(cause)
    }
}

/// Who becomes one group with `device`: whom its streams meet, but for strays, and whom its bus does not keep apart from it.
fn met_by<'a, P: Platform>(
    registry: &'a Registry<P>,
    device: &'a Device,
    meets: &'a [Met],
) -> impl Iterator<Item = &'a DeviceRecord> {
    let same_bus = device.isolation().is_some();
    registry.devices().filter(move |other| {
        let by_stream = !other.device.is_stray() && meets.iter().any(|met| met.device == other.device.id());
        let by_bus = same_bus && other.device.isolation() == device.isolation();
        other.device.id() != device.id() && (by_stream || by_bus)
    })
}

/// A device that a new one meets, and where.
pub(super) struct Met {
    pub(super) device: DeviceId,
    pub(super) iommu: IommuKey,
}

/// Who owns the group that a new device has joined.
struct Owner {
    owner: DomainId,
    domain: Label,
    /// An assigned device that it met, and where: it keeps the entry live that the two would share.
    live: Option<(Device, IommuKey)>,
    /// A member may have come to the owner, or left it, since the device's streams were published.
    has_moved: bool,
}
