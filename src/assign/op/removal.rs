//! Removal: refuse, cut, wait, unregister, release (contract C-8).
//!
//! A removal is a mark on the device and the claim of its group. What has the claim when it is put back carries the removal out:
//! the caller of `remove`, or the operation that it met. Where the cut could not be made or was not confirmed, or calls are
//! inside, the device stays registered, is `Going`, and its mark is spent: it can be removed again.

use alloc::vec::Vec;
use core::iter;

use intrusive_collections::LinkedList;

use super::on_all_iommus::{self, Crew, Failure, LIVE_WORK, Power, names_of_keepers, room_for_keepers};

use crate::assign::guarded;
use crate::assign::{
    Attempt, CallChain, Cause, Claim, Device, DeviceRecord, DeviceState, Error, Event, HookContext, IommuError, Label,
    Lacks, Left, Marked, Member, Members, Operation, Registry, Service, Target, is_protected,
};
use crate::sync::broken::broken;
use crate::sync::order::{Held, Unlocked};
use crate::sync::{Platform, Waiter};

/// What `remove` did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Removal {
    /// The device is gone.
    Done,
    /// The device is gone, but these devices of its group keep a live stream-map entry that captures its streams: they
    /// reach that domain until the entry is in fault (contract I-6; a live entry is not narrowed, I-15).
    StillReachable(Vec<Label>),
    /// Another operation of the device's group is running: it will finish the removal when it ends, and undo itself.
    Pending,
}

/// A look at the device to be removed, in the hold that claims it: what it refuses stays.
type Look<'a, P> = &'a mut dyn FnMut(&Registry<P>, &DeviceRecord) -> Result<(), Cause>;

/// What became of a device that was asked to go.
#[must_use = "the device may be gone"]
pub(super) enum Outcome {
    /// It was removed. Names what keeps its streams' entries live; an error where its IOMMU is out of service.
    Removed(Result<Vec<Label>, Error>),
    /// It is going still.
    Going(Error),
}

impl Outcome {
    /// What the operation says that the removal overtook.
    pub(super) fn overtook(self, operation: Operation, device: &Device) -> Error {
        let left = match self {
            Self::Removed(_) => Left::Removed,
            Self::Going(error) => error.left,
        };
        Error { operation, subject: device.label().clone(), cause: Cause::Removed, left }
    }

    /// Says a failure of which no caller is told.
    pub(super) fn log(self) {
        if let Self::Removed(Err(error)) | Self::Going(error) = self {
            log::warn!("{error}");
        }
    }

    pub(super) fn result(self) -> Result<Removal, Error> {
        match self {
            Self::Removed(names) => names.map(done),
            Self::Going(error) => Err(error),
        }
    }
}

pub(super) fn done(names: Vec<Label>) -> Removal {
    if names.is_empty() { Removal::Done } else { Removal::StillReachable(names) }
}

impl<P: Platform> Service<P> {
    /// Removes a device, whatever its state: its DMA is cut, then it is forgotten. The device is named by its handle or by
    /// its key ([`Target`]).
    ///
    /// Removing an assigned device is legal (a surprise unplug): the domain loses it.
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`]; [`Cause::HasChildren`] while devices stand behind it, [`Cause::Busy`] while all of these are on their
    /// way out; [`Cause::StillInUse`] with [`Left::Going`] while calls are inside the device ([`Device::enter`]): its DMA is
    /// cut, call again; [`Cause::Iommu`] with [`Left::Going`] or [`Left::GoingLive`] where its DMA could not be cut, or the cut was
    /// not confirmed: call again; with [`Left::Removed`] where an IOMMU of the device is out of service.
    ///
    /// # Context
    ///
    /// Waiting context (a drain is polled, a hook is called). Contract C-2, C-8.
    pub fn remove(&self, device: impl Into<Target>) -> Result<Removal, Error> {
        self.remove_within(CallChain::NONE, &device.into())
    }

    /// [`remove`](Self::remove), and waits until the device is gone: where another operation finishes the removal, and
    /// where calls are inside the device.
    ///
    /// # Errors
    ///
    /// As for [`remove`](Self::remove), and [`Cause::TimedOut`]: with [`Left::Pending`] the removal stays asked for, with
    /// [`Left::Unchanged`] children that are on their way out were waited for in vain.
    ///
    /// # Context
    ///
    /// Waiting context; see [`wait`](Self::wait).
    pub fn remove_and_wait(&self, device: impl Into<Target>, deadline: Option<P::Deadline>) -> Result<(), Error>
    where
        P: Waiter,
    {
        self.remove_waiting(CallChain::NONE, &device.into(), deadline)
    }

    pub(in crate::assign) fn remove_within(&self, above: CallChain<'_>, target: &Target) -> Result<Removal, Error> {
        Error::reported(self.remove_in(&mut Held::enter(), above, target, None))
    }

    /// [`remove`](Self::remove), unless a domain owns the device or another operation has its group: nothing is changed then,
    /// and no mark is left.
    pub(crate) fn remove_unassigned(&self, device: &Device) -> Result<Removal, Error> {
        self.remove_looking(device, &mut |registry, record| match registry.owner_of(record) {
            Some(domain) => Err(Cause::AlreadyAssigned { domain: domain.label().clone() }),
            None => Ok(()),
        })
    }

    /// [`remove_unassigned`](Self::remove_unassigned) of a device that carries nothing over from a guest: one that is quarantined
    /// stays, too, with [`Cause::NotAssigned`].
    pub(crate) fn remove_blocked(&self, device: &Device) -> Result<Removal, Error> {
        self.remove_looking(device, &mut |registry, record| match (record.state.get(), registry.owner_of(record)) {
            (_, Some(domain)) => Err(Cause::AlreadyAssigned { domain: domain.label().clone() }),
            (DeviceState::Quarantined(_), None) => Err(Cause::NotAssigned),
            _ => Ok(()),
        })
    }

    /// [`remove`](Self::remove), unless `look` refuses or another operation has the group: no mark is left then.
    pub(super) fn remove_looking(&self, device: &Device, look: Look<'_, P>) -> Result<Removal, Error> {
        Error::reported(self.remove_in(&mut Held::enter(), CallChain::NONE, &device.into(), Some(look)))
    }

    fn remove_in(
        &self,
        held: &mut Held<'_, Unlocked>,
        above: CallChain<'_>,
        target: &Target,
        look: Option<Look<'_, P>>,
    ) -> Result<Removal, Error> {
        let operation = Operation::Remove;
        let (device, group) = {
            let registry = self.registry.lock(held);
            let record =
                registry.target(target).ok_or_else(|| Error::unchanged(operation, target.label(), Cause::NotFound))?;
            let refuse = |cause| Error::unchanged(operation, record.device.label().clone(), cause);
            registry.check_children(record, above).map_err(refuse)?;
            let id = record.device.id();
            let taken = registry.take_group(record, operation, above).and_then(|group| {
                // Of a frame above: the operation there is about the device, or adds a child of it, which sees the mark.
                if is_protected(&group, id) || !record.is_shown() || record.children.get() > 0 {
                    registry.give_back(group, above);
                    return Err(registry.busy(registry.leader_of(record), above));
                }
                Ok(group)
            });
            let group = match taken {
                Ok(group) => match look.map_or(Ok(()), |look| look(&registry, record)) {
                    Ok(()) => group,
                    Err(cause) => {
                        registry.give_back(group, above);
                        return Err(refuse(cause));
                    }
                },
                Err(cause @ Cause::WouldDeadlock { .. }) => return Err(refuse(cause)),
                Err(cause) if look.is_some() => return Err(refuse(cause)),
                Err(_) => {
                    if !broken!("dropped_mark") {
                        registry.mark(record);
                    }
                    return Ok(Removal::Pending);
                }
            };
            registry.mark(record);
            (record.device.clone(), group)
        };
        let mut claim = Claim::of(device.clone(), group, operation, above);
        let outcome = self.remove_claimed(held, &mut claim, &device);
        let marked = self.put_back(held, claim);
        self.carry_out(held, marked, above, &mut |_, outcome| outcome.log());
        outcome.result()
    }

    pub(in crate::assign) fn remove_waiting(
        &self,
        above: CallChain<'_>,
        target: &Target,
        deadline: Option<P::Deadline>,
    ) -> Result<(), Error>
    where
        P: Waiter,
    {
        let mut held = Held::enter();
        let found = self.registry.lock(&mut held).target(target).map(|record| record.device.clone());
        let Some(device) = found else {
            return self.remove_within(above, target).map(drop);
        };
        let target = Target::from(&device);
        let attempt = Attempt::default();
        loop {
            let (met, left) = match self.remove_in(&mut held, above.trying(&attempt), &target, None) {
                Ok(Removal::Done | Removal::StillReachable(_)) | Err(Error { cause: Cause::NotFound, .. }) => {
                    return Ok(());
                }
                Ok(Removal::Pending) => (Cause::TimedOut { running: Operation::Remove }, Left::Pending),
                Err(Error { cause: Cause::Busy { running }, operation, subject, left }) => {
                    if above.depth() > 0 {
                        // Its children are on their way out, maybe by an operation above.
                        return Err(Error { operation, subject, cause: Cause::WouldDeadlock { running }, left });
                    }
                    (Cause::TimedOut { running }, Left::Unchanged)
                }
                Err(Error { cause: Cause::StillInUse { calls }, .. }) => (Cause::StillInUse { calls }, Left::Going),
                result => return Error::reported(result.map(drop)),
            };
            let waited = self.wait_while(deadline, |held| self.removal_must_wait(held, &device));
            if waited.is_err() {
                let subject = device.label().clone();
                return Error::reported(Err(Error { operation: Operation::Remove, subject, cause: met, left }));
            }
        }
    }

    /// Whether the removal of `device` can only be waited for now: another operation has its group, its children are going
    /// still, or calls are inside.
    fn removal_must_wait(&self, held: &mut Held<'_, Unlocked>, device: &Device) -> bool {
        let registry = self.registry.lock(held);
        let Some(record) = registry.registration(device) else { return false };
        registry.leader_of(record).is_out() || record.children.get() > 0 || device.in_flight() > 0
    }

    /// Carries out the removals that a put-back has found, and those that their own put-backs find. Tells what became of each
    /// device. Sources hear of it at the end, when nothing is claimed that a hook may wait for.
    pub(super) fn carry_out(
        &self,
        held: &mut Held<'_, Unlocked>,
        mut marked: Marked,
        above: CallChain<'_>,
        tell: &mut dyn FnMut(&Device, Outcome),
    ) {
        let mut departed = LinkedList::new(Members::new());
        if let Some(member) = marked.departed.take() {
            departed.push_back(member);
        }
        while let Some(mut group) = marked.groups.pop() {
            let doomed = group.doomed.take().and_then(|id| group.member(id));
            let Some(device) = doomed.map(|member| member.device.clone()) else {
                self.registry.lock(held).give_back(group, above);
                continue;
            };
            let mut claim = Claim::of(device.clone(), group, Operation::Remove, above);
            let outcome = self.remove_claimed(held, &mut claim, &device);
            let found = self.put_back(held, claim);
            marked.groups.append(found.groups);
            if let Some(member) = found.departed {
                departed.push_back(member);
            }
            tell(&device, outcome);
        }
        while let Some(member) = departed.pop_front() {
            let device = &member.device;
            if marked.unheard != Some(device.id()) {
                let hooks = device.hooks().call(held);
                guarded::told(|| hooks.release(&HookContext { device, chain: above }));
            }
        }
    }

    /// The second and third steps, and the driver's part of the fourth, on the claim's device. Afterwards it has departed from
    /// its group, or is going. On several IOMMUs power is had on all of them first, so that it goes from all or from none.
    fn remove_claimed(&self, held: &mut Held<'_, Unlocked>, claim: &mut Claim<'_>, device: &Device) -> Outcome {
        let Some(member) = claim.member(device.id()) else { return Outcome::Removed(Ok(Vec::new())) };
        member.work.set(claim.level);
        let is_on_one = device.attachments().len() < 2 || broken!("unpowered_cut");
        let power = if is_on_one { Ok(None) } else { Power::of(held, iter::once(device)).map(Some) };
        let removed = match power {
            Ok(power) => {
                let removed = cut_and_withdraw(held, claim, device);
                power.into_iter().for_each(|power| power.release(held));
                removed
            }
            Err((instance, error)) => Err((Cause::Iommu { iommu: instance.key, error }, left_uncut(claim))),
        };
        let fail = |cause, left| Error { operation: Operation::Remove, subject: device.label().clone(), cause, left };
        match removed {
            Ok((names, gone)) => {
                self.tell(held, || Event::Removed { device: device.label().clone() });
                claim.depart(device.id());
                Outcome::Removed(gone.map_or(Ok(names), |cause| Err(fail(cause, Left::Removed))))
            }
            Err((cause, left)) => {
                claim.member(device.id()).inspect(|member| member.going.set(true));
                Outcome::Going(fail(cause, left))
            }
        }
    }
}

/// Cuts the device's DMA, and withdraws it where no call is inside. Names the mates that keep its streams' entries live, and
/// an IOMMU that is out of service, if one is.
fn cut_and_withdraw(
    held: &mut Held<'_, Unlocked>,
    claim: &mut Claim<'_>,
    device: &Device,
) -> Result<(Vec<Label>, Option<Cause>), Failure> {
    let may_keep = |mate: &Member| mate.state.get().owner().is_some();
    let names = room_for_keepers(claim, may_keep).map_err(|cause| (cause, Left::GoingLive))?;
    // 2: cut.
    let is_live = claim.members().any(|member| LIVE_WORK(member, claim.level));
    let mut gone = if is_live { cut(held, claim)? } else { None };
    // 3: wait for calls in flight.
    let calls = device.in_flight();
    if calls > 0 {
        return Err((Cause::StillInUse { calls }, Left::Going));
    }
    // 4: the drivers forget it, then the registry.
    let names = names_of_keepers(held, claim, |member| member.device.id() == device.id(), names);
    match withdraw(held, device) {
        Ok(()) => {}
        Err(cause @ Cause::Iommu { error: IommuError::ProviderGone, .. }) => gone = gone.or(Some(cause)),
        Err(cause) => return Err((cause, Left::Going)),
    }
    Ok((names, gone))
}

/// Puts the device in fault, drained: it lacks a reset from now on. Names an IOMMU that is out of service, if one is.
fn cut(held: &mut Held<'_, Unlocked>, claim: &mut Claim<'_>) -> Result<Option<Cause>, Failure> {
    let set_lacks = |lacks| {
        if let Some(member) = claim.member(claim.device.id()) {
            member.state.set(DeviceState::Quarantined(lacks));
        }
    };
    let mut crew = Crew::of(claim).map_err(|cause| (cause, Left::GoingLive))?;
    let mut blocked = on_all_iommus::block(held, claim, &mut crew, LIVE_WORK);
    let gone = match blocked.result() {
        Ok(()) => None,
        Err(cause @ Cause::Iommu { error: IommuError::ProviderGone, .. }) => Some(cause),
        Err(cause) if blocked.is_live => return Err((cause, left_uncut(claim))),
        Err(cause) => {
            set_lacks(blocked.lacks());
            return Err((cause, Left::Going));
        }
    };
    set_lacks(Lacks { drain: false, reset: true });
    Ok(gone)
}

/// What is left of the device where its DMA was not cut.
fn left_uncut(claim: &Claim<'_>) -> Left {
    let is_assigned = claim.member(claim.device.id()).is_some_and(|member| member.state.get().owner().is_some());
    if is_assigned { Left::GoingLive } else { Left::Going }
}

/// Has every IOMMU forget a device, which is in fault. One that has forgotten it already says so; one that is out of service
/// forgets it in software, which is told when all have.
pub(super) fn withdraw(held: &mut Held<'_, Unlocked>, device: &Device) -> Result<(), Cause> {
    let mut gone = Ok(());
    for at in device.attachments() {
        match at.instance.iommu.call(held).withdraw(device.id()) {
            Ok(_) | Err(IommuError::Unknown) => {}
            Err(error @ IommuError::ProviderGone) => gone = Err(Cause::Iommu { iommu: at.instance.key, error }),
            Err(error) => return Err(Cause::Iommu { iommu: at.instance.key, error }),
        }
    }
    gone
}
