//! One step of an operation on all IOMMUs that it concerns: plan on all or on none, commit on all or end in fault (contract A-1).
//!
//! IOMMUs are gone through in the order of their names. Power is had on all of them before the first changes.

use alloc::sync::Arc;
use alloc::vec::Vec;

use smallvec::SmallVec;

use crate::assign::{
    AddressSpace, Attachment, Cause, Claim, Device, DeviceId, Instance, IommuError, Label, Lacks, Left, Member,
    Obstacle, Operation, Streams, shared_at,
};
use crate::few::{self, Few};
use crate::sync::broken::broken;
use crate::sync::order::{Held, Unlocked};

/// Why an operation did not succeed, and what it left.
pub(super) type Failure = (Cause, Left);

/// Which members a step is about.
pub(super) type Which = fn(&Member, u16) -> bool;

/// The members that the operation moves.
pub(super) const MOVERS: Which = Member::moves;
/// These, and those that it must cleanse.
pub(super) const ALL_WORK: Which = |member, level| member.work.get() == level;
/// Of these, those that are assigned or lack something.
pub(super) const LIVE_WORK: Which = |member, level| {
    let state = member.state.get();
    member.work.get() == level && (state.owner().is_some() || state.is_quarantined())
};

/// Room for the numbers of the devices that an operation is about. It is made before the first change (contract A-8).
pub(super) struct Crew(Few<DeviceId>);

impl Crew {
    pub(super) fn of(claim: &Claim<'_>) -> Result<Self, Cause> {
        if claim.is_alone() {
            return Ok(Self(Few::new()));
        }
        let count = claim.members().filter(|member| member.work.get() == claim.level).count();
        few::with_room(count).map(Self).ok_or(Cause::OutOfMemory)
    }
}

/// Runs `act` for each IOMMU of the members that `which` accepts, with those that are on it, until it says that that is enough.
fn each<T>(
    claim: &Claim<'_>,
    crew: &mut Crew,
    which: Which,
    mut act: impl FnMut(&Arc<Instance>, &[DeviceId]) -> Option<T>,
) -> Option<T> {
    let members = || claim.members().filter(|member| which(member, claim.level));
    let mut some = members();
    let first = &some.next()?.device;
    if some.next().is_none() {
        // A device alone, as most are: its attachments are in order.
        return first.attachments().iter().find_map(|at| act(&at.instance, &[first.id()]));
    }
    let mut enough = None;
    each_of_several(claim, crew, which, &mut |instance, devices| {
        enough = act(instance, devices);
        enough.is_some()
    });
    enough
}

/// [`each`], of several devices. It is compiled once: what the steps have of their own is small.
fn each_of_several(
    claim: &Claim<'_>,
    crew: &mut Crew,
    which: Which,
    act: &mut dyn FnMut(&Arc<Instance>, &[DeviceId]) -> bool,
) {
    let members = || claim.members().filter(|member| which(member, claim.level));
    let mut after = None;
    loop {
        let instances = members().flat_map(|member| member.device.attachments()).map(|at| &at.instance);
        let later = instances.filter(|instance| after.is_none_or(|after| instance.order() > after));
        let Some(instance) = later.min_by_key(|instance| instance.order()) else { return };
        after = Some(instance.order());
        crew.0.clear();
        let here = members().filter(|member| member.device.attachment_to(instance).is_some());
        few::put_all(&mut crew.0, here.map(|member| member.device.id()));
        if act(instance, &crew.0) {
            return;
        }
    }
}

/// What a driver's refusal is for the operation: where another operation is in its way it is busy.
pub(super) fn refusal(claim: &Claim<'_>, instance: &Instance, error: IommuError) -> Cause {
    let running = match error {
        IommuError::Busy => Operation::Reassign,
        IommuError::Foreign(_) => Operation::Add,
        error => return Cause::Iommu { iommu: instance.key, error },
    };
    claim.above.meet(Obstacle::Driver);
    Cause::busy(running)
}

/// Why an instance that was registered has no place for a device.
pub(super) fn no_place(instance: &Instance, error: IommuError) -> Cause {
    match instance.refusal() {
        Some(cause) if error == IommuError::ProviderGone => cause,
        _ => Cause::Iommu { iommu: instance.key, error },
    }
}

/// Reserves on all IOMMUs, or on none.
pub(super) fn plan(
    held: &mut Held<'_, Unlocked>,
    claim: &Claim<'_>,
    crew: &mut Crew,
    space: &AddressSpace,
) -> Result<(), Cause> {
    let failed = each(claim, crew, MOVERS, |instance, devices| {
        let planned = instance.iommu.call(held).plan(devices, space, &|id| claim.owns(id));
        planned.err().map(|error| (instance.clone(), error))
    });
    let Some((instance, error)) = failed else { return Ok(()) };
    each(claim, crew, MOVERS, |before, devices| {
        let is_planned = before.order() < instance.order();
        if is_planned {
            before.iommu.call(held).abandon(devices);
        }
        (!is_planned).then_some(())
    });
    Err(refusal(claim, &instance, error))
}

/// Gives back what was planned.
pub(super) fn abandon(held: &mut Held<'_, Unlocked>, claim: &Claim<'_>, crew: &mut Crew) {
    each(claim, crew, MOVERS, |instance, devices| -> Option<()> {
        instance.iommu.call(held).abandon(devices);
        None
    });
}

/// Moves on all IOMMUs. Where one fails, what was planned is given back; the caller blocks the devices.
pub(super) fn install(held: &mut Held<'_, Unlocked>, claim: &Claim<'_>, crew: &mut Crew) -> Result<(), Cause> {
    let failed = each(claim, crew, MOVERS, |instance, devices| {
        let installed = instance.iommu.call(held).install(devices);
        installed.err().map(|error| Cause::Iommu { iommu: instance.key, error })
    });
    failed.map_or(Ok(()), |cause| {
        abandon(held, claim, crew);
        Err(cause)
    })
}

/// How far a block has come.
#[derive(Debug, Default)]
pub(super) struct Blocked {
    /// The first failure of an IOMMU that is in service, else of one that is not.
    failed: Option<Cause>,
    /// `failed` is of an IOMMU that is out of service: it faults everything, and nothing of the devices is in flight there.
    is_only_gone: bool,
    /// An IOMMU did nothing: streams there translate as before.
    pub(super) is_live: bool,
    /// An IOMMU did something.
    has_begun: bool,
    /// A drain was not confirmed.
    pub(super) owes: bool,
}

impl Blocked {
    fn note(&mut self, instance: &Instance, blocked: Result<Streams, IommuError>) {
        let untouched = matches!(blocked, Err(IommuError::NoPower(_) | IommuError::Busy | IommuError::OutOfMemory));
        self.is_live |= untouched;
        self.has_begun |= !untouched;
        match blocked {
            Ok(_) => {}
            Err(error) => {
                self.owes |= matches!(error, IommuError::SyncTimeout(_) | IommuError::WriteLost { .. });
                let is_gone = error == IommuError::ProviderGone;
                if self.failed.is_none() || self.is_only_gone && !is_gone {
                    self.failed = Some(Cause::Iommu { iommu: instance.key, error });
                    self.is_only_gone = is_gone;
                }
            }
        }
    }

    /// What is left where an IOMMU did nothing.
    pub(super) const fn left_live(&self) -> Left {
        if self.has_begun { Left::PartlyAssigned } else { Left::Unchanged }
    }

    /// What the devices lack afterwards, if all of them are in fault. They were not reset.
    pub(super) const fn lacks(&self) -> Lacks {
        Lacks { drain: self.owes, reset: true }
    }

    pub(super) fn result(&mut self) -> Result<(), Cause> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// The same, where an IOMMU out of service is no failure.
    pub(super) fn result_in_service(&mut self) -> Result<(), Cause> {
        if self.is_only_gone { Ok(()) } else { self.result() }
    }
}

/// Whether the devices are on more than one IOMMU.
pub(super) fn spans_several(claim: &Claim<'_>, which: Which) -> bool {
    let mut others = devices(claim, which);
    let first = others.next().map_or(&[][..], Device::attachments);
    let is_elsewhere = |at: &Attachment| first.iter().all(|first| first.instance.number != at.instance.number);
    first.len() > 1 || others.flat_map(Device::attachments).any(is_elsewhere)
}

/// Power that is had on some IOMMUs, so that devices change on all of them or on none. It says itself where it is had: members
/// can come and go during callbacks.
#[must_use = "the power stays on until it is released"]
pub(super) struct Power(SmallVec<[Arc<Instance>; 2]>);

impl Power {
    /// Has power on all IOMMUs of `devices`. On an error none is held.
    pub(super) fn of<'d>(
        held: &mut Held<'_, Unlocked>,
        devices: impl Iterator<Item = &'d Device>,
    ) -> Result<Self, (Arc<Instance>, IommuError)> {
        let mut power = Self(SmallVec::new());
        for at in devices.flat_map(Device::attachments) {
            if power.0.iter().any(|instance| instance.number == at.instance.number) {
                continue;
            }
            let room = power.0.try_reserve(1).map_err(|_| IommuError::OutOfMemory);
            match room.and_then(|()| at.instance.iommu.call(held).hold_power()) {
                Ok(()) => _ = few::put(&mut power.0, at.instance.clone()),
                Err(error) => {
                    power.release(held);
                    return Err((at.instance.clone(), error));
                }
            }
        }
        Ok(power)
    }

    pub(super) fn release(self, held: &mut Held<'_, Unlocked>) {
        self.0.iter().for_each(|instance| instance.iommu.call(held).release_power());
    }
}

/// The devices of the members that a step is about.
pub(super) fn devices<'c>(claim: &'c Claim<'_>, which: Which) -> impl Iterator<Item = &'c Device> {
    claim.members().filter(move |member| which(member, claim.level)).map(|member| &member.device)
}

/// Puts the devices in fault on every IOMMU, also after one of them failed. Where there are several, power is had on all of
/// them first, so that a device is cut off as a whole or not at all.
///
/// The result is made in the caller's frame: the deepest calls of an operation are below this one.
#[inline]
pub(super) fn block(held: &mut Held<'_, Unlocked>, claim: &Claim<'_>, crew: &mut Crew, which: Which) -> Blocked {
    let mut all = Blocked::default();
    if spans_several(claim, which) && !broken!("unpowered_cut") {
        block_several(held, claim, crew, which, &mut all);
    } else {
        block_each(held, claim, crew, which, &mut all);
    }
    all
}

/// The same with power on all of them before the first.
#[inline(never)]
fn block_several(held: &mut Held<'_, Unlocked>, claim: &Claim<'_>, crew: &mut Crew, which: Which, all: &mut Blocked) {
    match Power::of(held, devices(claim, which)) {
        Ok(power) => {
            block_each(held, claim, crew, which, all);
            power.release(held);
        }
        Err((instance, error)) => all.note(&instance, Err(error)),
    }
}

fn block_each(held: &mut Held<'_, Unlocked>, claim: &Claim<'_>, crew: &mut Crew, which: Which, all: &mut Blocked) {
    each(claim, crew, which, |instance, devices| -> Option<()> {
        all.note(instance, instance.iommu.call(held).block(devices));
        None
    });
}

/// Room for the names of the members that stay and that `may_keep` accepts, so that the first change is made with it at hand.
pub(super) fn room_for_keepers(claim: &Claim<'_>, may_keep: impl Fn(&Member) -> bool) -> Result<Vec<Label>, Cause> {
    let mut names = Vec::new();
    let staying = claim.members().filter(|mate| mate.work.get() == 0 && may_keep(mate));
    names.try_reserve_exact(staying.count()).map_err(|_| Cause::OutOfMemory)?;
    Ok(names)
}

/// The assigned mates that keep an entry live which one of `leaving` uses too. Of those that came during a callback as many as
/// there is memory for.
pub(super) fn names_of_keepers(
    held: &mut Held<'_, Unlocked>,
    claim: &Claim<'_>,
    leaving: impl Fn(&Member) -> bool,
    mut names: Vec<Label>,
) -> Vec<Label> {
    for mate in claim.members().filter(|mate| !leaving(mate) && mate.state.get().owner().is_some()) {
        let mut left = claim.members().filter(|member| leaving(member));
        if left.any(|one| shared_at(held, &one.device, &mate.device).is_some()) {
            // Without memory it is not named.
            let _ = few::push(&mut names, mate.device.label().clone());
        }
    }
    names
}
