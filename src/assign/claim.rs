//! Claims: an operation takes a group out of the registry, works on what it owns, and puts it back.
//!
//! While the group is out, its leader's record holds none: another operation that comes to it is `Busy`, or leaves a mark on the
//! device that it wants removed. So nothing can change between two steps of an operation, and nothing is looked at twice.
//!
//! During a callback the operation lends its groups to nested operations, through a [`Frame`] of the [`CallChain`] that the
//! callback is handed. A nested operation takes a group from the innermost frame that has it, and puts it back there.
//!
//! # Locking
//!
//! Level `Registry`, once at each end; nothing is held in between.
//!
//! # Invariants
//!
//! A [`Claim`] is consumed by [`put_back`](Service::put_back). Forgetting one costs liveness, never isolation.

use alloc::boxed::Box;
use core::cell::Cell;
use core::iter;
use core::marker::PhantomData;
use core::mem;
use core::num::NonZeroU16;

use super::lending::{Lent, give_back_to, take_lent};
use super::{
    CallChain, Cause, Device, DeviceId, DeviceRecord, DomainId, Frame, Group, Groups, Member, Operation, Registry,
    Service, why_joined,
};
use crate::sync::Platform;
use crate::sync::broken::broken;
use crate::sync::order::{Held, Unlocked};

/// What an operation owns.
#[must_use = "the groups stay claimed until the claim is put back"]
pub(super) struct Claim<'a> {
    /// The device through which it was claimed.
    pub(super) device: Device,
    /// The group of that device.
    group: Option<Box<Group>>,
    /// Further groups: of an add, until they are joined or put back as they were.
    pub(super) others: Groups,
    /// The group of an add's parent, so that the parent stays. It is among `others` where it is joined, too.
    pub(super) parent: Option<Box<Group>>,
    pub(super) operation: Operation,
    pub(super) above: CallChain<'a>,
    /// Its place in the chain, counted from 1.
    pub(super) level: u16,
    /// The domain on which it has a hold.
    pub(super) hold: Option<DomainId>,
    /// A device that is unregistered when the claim is put back.
    departed: Option<Departed>,
    not_send: PhantomData<*mut ()>,
}

/// A member that has left its group, with what it brought into it.
struct Departed {
    member: Box<Member>,
    _emptied: Option<Box<Group>>,
}

/// Looks at a claimed group under the registry's lock, and may refuse it.
type Check<'c, 'a, P> = dyn FnMut(&Registry<P>, &mut Claim<'a>) -> Result<(), Cause> + 'c;

/// What a put-back leaves to do ([`removal::carry_out`](super::op)).
#[must_use = "a removal that was asked for must be carried out"]
#[derive(Default)]
pub(super) struct Marked {
    /// Groups that were kept back because a member was asked to go.
    pub(super) groups: Groups,
    /// The device that was unregistered.
    pub(super) departed: Option<Box<Member>>,
    /// A device of which its source has not heard: its add has not returned.
    pub(super) unheard: Option<DeviceId>,
}

impl Marked {
    /// Whether nothing is left to do.
    pub(super) fn is_nothing(&self) -> bool {
        self.groups.is_empty() && self.departed.is_none()
    }

    /// A group that has a doomed member.
    pub(super) fn of(group: Box<Group>) -> Self {
        let mut groups = Groups::default();
        groups.push(group);
        Self { groups, ..Self::default() }
    }
}

impl<'a> Claim<'a> {
    /// The claim of a group that was taken.
    pub(super) fn of(device: Device, group: Box<Group>, operation: Operation, above: CallChain<'a>) -> Self {
        Self {
            device,
            group: Some(group),
            others: Groups::default(),
            parent: None,
            operation,
            above,
            level: above.depth().saturating_add(1),
            hold: None,
            departed: None,
            not_send: PhantomData,
        }
    }

    pub(super) fn group(&self) -> Option<&Group> {
        self.group.as_deref()
    }

    /// The members of the device's own group.
    pub(super) fn members(&self) -> impl Iterator<Item = &Member> {
        let mut members = self.group().map(|group| group.members.iter());
        iter::from_fn(move || members.as_mut()?.next())
    }

    /// Whether the device's own group has no other member, as most have none.
    pub(super) fn is_alone(&self) -> bool {
        self.members().nth(1).is_none()
    }

    pub(super) fn member(&self, id: DeviceId) -> Option<&Member> {
        self.group().and_then(|group| group.member(id))
    }

    /// The members that this operation moves.
    pub(super) fn movers(&self) -> impl Iterator<Item = &Member> {
        self.members().filter(|member| member.moves(self.level))
    }

    /// The member with the least number above `after` that `wanted` accepts: a way through the group while callbacks change it.
    pub(super) fn next_member(&self, after: Option<DeviceId>, wanted: impl Fn(&Member) -> bool) -> Option<&Member> {
        let later = |member: &&Member| after.is_none_or(|after| member.device.id() > after);
        self.members().filter(|member| wanted(member)).filter(later).min_by_key(|member| member.device.id())
    }

    /// Whether a device is in one of the groups that are about to be one.
    pub(super) fn owns(&self, id: DeviceId) -> bool {
        self.group.iter().any(|group| group.contains(id)) || self.others.iter().any(|group| group.contains(id))
    }

    /// Takes the group of `record`, to be joined.
    pub(super) fn take_in<P: Platform>(&mut self, registry: &Registry<P>, record: &DeviceRecord) -> Result<(), Cause> {
        let id = record.device.id();
        let group = match self.parent.take_if(|group| group.contains(id)) {
            Some(group) => group,
            None => registry.take_group(record, self.operation, self.above)?,
        };
        self.others.push(group);
        Ok(())
    }

    /// Where this operation takes a group.
    pub(super) fn target(&self, domain: DomainId) -> Option<(DomainId, NonZeroU16)> {
        NonZeroU16::new(self.level).map(|level| (domain, level))
    }

    /// Says where the group goes, before the first callback: what is nested goes nowhere else.
    pub(super) fn set_target(&mut self, domain: DomainId) {
        let target = self.target(domain);
        if let Some(group) = &mut self.group {
            group.target = group.target.or(target);
        }
    }

    /// Lends the groups to whatever `call` nests, and takes them back.
    pub(super) fn call_out<T>(&mut self, call: impl FnOnce(CallChain<'_>) -> T) -> T {
        let mut all = mem::take(&mut self.others);
        self.parent.take().into_iter().for_each(|group| all.push(group));
        self.group.take().into_iter().for_each(|group| all.push(group));
        let lent = Lent(Cell::new(all));
        let frame = Frame { operation: self.operation, level: self.level, above: self.above, lent: &lent };
        let done = call(CallChain::of(&frame));
        let mut all = lent.0.take();
        let id = self.device.id();
        let own = all.take(|group| group.contains(id));
        // A nested add that joined groups of two frames has left what became of them in the outer one.
        self.group = own.or_else(|| {
            let is_own = |group: &Group| group.contains(id) && !broken!("merged_group_forgotten");
            take_lent(self.above, is_own)
        });
        self.others = all;
        done
    }

    /// Takes a member out of its group: it is unregistered when the claim is put back.
    pub(super) fn depart(&mut self, id: DeviceId) {
        let Some((member, emptied)) = self.group.as_mut().and_then(|group| group.take(id)) else { return };
        let emptied = emptied.or_else(|| self.group.take_if(|group| group.members.is_empty()));
        self.departed = Some(Departed { member, _emptied: emptied });
    }
}

impl<P: Platform> Registry<P> {
    /// Writes into the records what a group says, each member's leader and state, and gives it back; keeps it where a member was
    /// asked to go and may.
    fn settle(&self, mut group: Box<Group>, above: CallChain<'_>, kept: &mut Groups) {
        if !broken!("unnamed_leader") || self.by_id(group.leader).is_some() {
            group.name_leader();
        }
        let acts = self.marks.get() > 0 && (group.lenders == 0 || broken!("mark_acted_on_in_a_frame"));
        let (mut leader, mut doomed) = (None, None);
        for member in group.members.iter() {
            let Some(record) = self.registration(&member.device) else { continue };
            if !broken!("unnamed_part") || !record.may_go() {
                record.leader.set(group.leader);
            }
            self.set_state(record, member.state.get());
            record.going.set(member.going.get());
            if member.device.id() == group.leader {
                leader = Some(record);
            }
            if acts && doomed.is_none() && record.may_go() {
                doomed = Some(member.device.id());
            }
        }
        group.doomed = doomed;
        if doomed.is_some() {
            leader.inspect(|leader| leader.running.set(Operation::Remove));
            kept.push(group);
        } else {
            give_back_to(leader, group, above);
        }
    }
}

impl<P: Platform> Service<P> {
    /// Claims the group of a device. `check` looks at it and at the registry in the same hold, and may take a hold on a domain;
    /// what it refuses is not claimed.
    pub(super) fn claim<'a>(
        &self,
        held: &mut Held<'_, Unlocked>,
        above: CallChain<'a>,
        device: &Device,
        operation: Operation,
        check: &mut Check<'_, 'a, P>,
    ) -> Result<Claim<'a>, Cause> {
        let registry = self.registry.lock(held);
        let record = registry.registration(device).ok_or(Cause::Gone)?;
        if record.is_leaving() || !record.is_shown() {
            return Err(Cause::Gone);
        }
        let group = registry.take_group(record, operation, above)?;
        let mut claim = Claim::of(device.clone(), group, operation, above);
        let is_free = claim.member(device.id()).is_some_and(|member| member.work.get() == 0);
        let checked = if is_free { check(&registry, &mut claim).map_err(Some) } else { Err(None) };
        match checked {
            Ok(()) => Ok(claim),
            Err(cause) => {
                if let Some(mut group) = claim.group.take() {
                    release(&mut group, claim.level);
                    registry.give_back(group, above);
                }
                // Only now do the frames above lend again what this call must not wait for.
                let cause = cause.unwrap_or_else(|| registry.busy(registry.leader_of(record), above));
                Err(cause)
            }
        }
    }

    /// Ends a claim: what the members' states are is written down, a device that has departed is unregistered, and the groups
    /// go back, in one hold. A group that lost a member and is owned by no domain is split before. A group of which a member
    /// was asked to go is kept back; so is the group of a parent that was waiting for its last child to go.
    pub(super) fn put_back(&self, held: &mut Held<'_, Unlocked>, claim: Claim<'_>) -> Marked {
        self.put_back_unless(held, claim, |_| false).unwrap_or_default()
    }

    /// [`put_back`](Self::put_back), unless `veto` says, in the same hold, that the operation must undo itself first: then the
    /// claim stands as it was.
    pub(super) fn put_back_unless<'a>(
        &self,
        held: &mut Held<'_, Unlocked>,
        mut claim: Claim<'a>,
        veto: impl FnOnce(&Registry<P>) -> bool,
    ) -> Result<Marked, Claim<'a>> {
        let above = claim.above;
        let mut parts = Groups::default();
        if let Some(own) = &mut claim.group {
            release(own, claim.level);
            if is_to_be_split(own) {
                parts = own.split(held);
                if let Some(part) = parts.take(|part| part.contains(claim.device.id())) {
                    parts.push(mem::replace(own, part));
                }
            }
        }
        let mut joined = Groups::default();
        if !claim.others.is_empty() || claim.parent.is_some() {
            joined = sort_out(held, &mut claim, &mut parts);
        }
        let mut nodes = None;
        let mut parent = None;
        let mut registry = self.registry.lock(held);
        if veto(&registry) {
            parts.append(joined);
            claim.others = parts;
            return Err(claim);
        }
        if let Some(own) = &mut claim.group {
            while let Some(group) = joined.pop() {
                own.merge(group);
            }
        }
        let departed = claim.departed.take();
        if let Some(departed) = &departed {
            nodes = Some(registry.bury_device(&departed.member.device));
            parent = departed.member.device.parent();
        } else if claim.operation == Operation::Remove
            && let Some(record) = registry.registration(&claim.device).filter(|_| !broken!("mark_not_consumed"))
        {
            // The mark is spent: the removal was tried, and the device is going.
            registry.unmark(record);
        }
        if let Some(domain) = claim.hold.take_if(|_| broken!("early_unhold")) {
            registry.unhold(domain);
            drop(registry);
            registry = self.registry.lock(held);
        }
        let mut kept = Groups::default();
        while let Some(group) = claim.group.take().or_else(|| parts.pop()) {
            registry.settle(group, above, &mut kept);
        }
        let parent = parent.and_then(|key| registry.device(key)).filter(|parent| parent.may_go());
        if let Some(parent) = parent
            && let Some(mut group) = registry.leader_of(parent).take_group()
        {
            group.doomed = Some(parent.device.id());
            registry.leader_of(parent).running.set(Operation::Remove);
            kept.push(group);
        }
        if let Some(domain) = claim.hold.take() {
            registry.unhold(domain);
        }
        drop(registry);
        drop(nodes);
        above.count_end();
        self.count_end();
        let unheard = (claim.operation == Operation::Add).then_some(claim.device.id());
        Ok(Marked { groups: kept, departed: departed.map(|departed| departed.member), unheard })
    }
}

/// The further groups of a claim, most of them an add's: what joins its device, and in `parts` the others. What joins stays apart until
/// nothing can undo the add any more; an undone one joins nothing.
#[cold]
fn sort_out(held: &mut Held<'_, Unlocked>, claim: &mut Claim<'_>, parts: &mut Groups) -> Groups {
    let mut others = mem::take(&mut claim.others);
    claim.parent.take().into_iter().for_each(|parent| others.push(parent));
    while let Some(mut group) = others.pop() {
        release(&mut group, claim.level);
        if is_to_be_split(&group) {
            parts.append(group.split(held));
        }
        parts.push(group);
    }
    let mut joined = Groups::default();
    if claim.operation == Operation::Add && claim.departed.is_none() {
        while let Some(group) = parts.take(|group| why_joined(held, &claim.device, group).is_some()) {
            joined.push(group);
        }
    }
    joined
}

/// Whether a group lost a member, is owned by no domain, and goes back to the registry.
fn is_to_be_split(group: &Group) -> bool {
    group.loose && group.lenders == 0 && group.owner().is_none() && !broken!("never_split")
}

/// The operation of this level is about none of the members any more, and takes them nowhere.
fn release(group: &mut Group, level: u16) {
    group.target = group.target.filter(|(_, by)| by.get() != level);
    for member in group.members.iter().filter(|member| member.work.get() == level) {
        member.work.set(0);
        member.along.set(false);
    }
}

/// Whether a device is the subject of an operation above.
pub(super) fn is_protected(group: &Group, id: DeviceId) -> bool {
    group.member(id).is_some_and(|member| member.work.get() != 0)
}
