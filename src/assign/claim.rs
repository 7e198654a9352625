//! Claims: an operation has a group to itself from [`begin`](Service::begin) to [`conclude`](Service::conclude).
//!
//! # Locking
//!
//! Level `Registry`, once at each end; nothing is held in between.
//!
//! # Invariants
//!
//! Whoever holds a [`Claim`] consumes it with `conclude`; forgetting one costs liveness, never isolation.

use core::marker::PhantomData;
use core::mem;

use super::device::{Device, DeviceState};
use super::domain::Domain;
use super::error::{Cause, Error, Operation};
use super::guarded;
use super::identity::{DeviceId, DomainId};
use super::iommu::Sharing;
use super::nested::{Claims, Frame};
use super::policy::HookContext;
use super::registry::{DeviceRecord, Registry};
use super::removal::{Cut, Going, Outcome};
use super::service::Service;
use crate::few::{self, Few};
use crate::sync::Platform;
use crate::sync::atomic::AtomicU64;
use crate::sync::order::{Held, Unlocked};

/// A claimed group, by one of its members.
#[derive(Debug)]
#[must_use = "the group stays claimed until the claim is concluded"]
pub(super) struct Claim {
    pub(super) device: Device,
    pub(super) members: Members,
    /// An operation above holds the claim: the group is not this one's to let go.
    pub(super) nested: bool,
    /// The parent of a device that is added, whose group is claimed beside.
    pub(super) parent: Option<Device>,
    not_send: PhantomData<*mut ()>,
}

/// The members of a claimed group as the claim found them.
#[derive(Debug, Default)]
pub(super) struct Members {
    list: Few<(Device, DeviceState)>,
    /// There was room for all of them.
    complete: bool,
}

/// What an operation is about.
pub(super) struct Request<'a> {
    pub(super) operation: Operation,
    pub(super) device: &'a Device,
    pub(super) whole_group: bool,
    pub(super) above: Claims<'a>,
}

/// How an operation ends, in the registry.
pub(super) struct End<'a> {
    /// These devices are in this state from now on.
    pub(super) subjects: &'a [Device],
    pub(super) state: Option<DeviceState>,
    /// The hold on this domain ends.
    pub(super) unhold: Option<DomainId>,
}

/// Who of a group share entries; `None` where there is no memory to tell.
type Shared = Option<Few<Sharing>>;

/// What comes next at the end of a claim.
enum Next {
    Done,
    /// Members have left; of those that stay, this many, some may share an entry.
    FindSharing(usize),
    /// A device was asked to go.
    Go(Going),
}

/// A group whose claim is still to be let go.
pub(super) struct Open {
    pub(super) member: Device,
    nested: bool,
    /// It is the group whose members the claim listed.
    listed: bool,
}

impl Claim {
    pub(super) fn new(device: Device, members: Members, nested: bool) -> Self {
        Self { device, members, nested, parent: None, not_send: PhantomData }
    }
}

impl Members {
    /// With room for `count`.
    pub(super) fn with_room(count: usize) -> Option<Self> {
        Some(Self { list: few::with_room(count)?, complete: false })
    }

    /// Lists the group of `record` anew, as far as there is room.
    pub(super) fn fill<P: Platform>(&mut self, registry: &Registry<P>, record: &DeviceRecord) {
        // Handles that are dropped here are never the last: the registry has one of each.
        self.list.clear();
        let room = self.list.capacity();
        self.list.extend(registry.members(record).take(room).map(|member| (member.device.clone(), member.state.get())));
        self.complete = self.list.len() == registry.group_size(record);
    }

    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether the group has no others.
    pub(super) fn are_all_among(&self, devices: &[Device]) -> bool {
        self.complete && self.list.len() == devices.len()
    }

    pub(super) fn devices(&self) -> impl Iterator<Item = &Device> {
        self.list.iter().map(|(device, _)| device)
    }

    /// Those that stay when `leaving` goes; `None` where there is no memory for all of them.
    pub(super) fn without(&self, leaving: Option<&Device>) -> Option<Few<DeviceId>> {
        let mut rest = few::with_room(self.list.len()).filter(|_| self.complete)?;
        rest.extend(self.devices().map(Device::id).filter(|id| Some(*id) != leaving.map(Device::id)));
        Some(rest)
    }

    pub(super) fn find(&self, id: DeviceId) -> Option<&(Device, DeviceState)> {
        self.list.iter().find(|(device, _)| device.id() == id)
    }
}

impl<'a> End<'a> {
    /// Nothing has changed.
    pub(super) const UNCHANGED: End<'static> = End { subjects: &[], state: None, unhold: None };

    /// The subjects are in `state` now.
    pub(super) const fn in_state(subjects: &'a [Device], state: DeviceState) -> Self {
        End { subjects, state: Some(state), unhold: None }
    }

    fn apply<P: Platform>(&self, registry: &Registry<P>, moves: &AtomicU64) {
        if let Some(state) = self.state {
            for record in self.subjects.iter().filter_map(|device| registry.registration(device)) {
                registry.set_state(record, state, moves);
            }
        }
        if let Some(domain) = self.unhold {
            registry.unhold(domain);
        }
    }
}

impl<P: Platform> Service<P> {
    /// Claims the group of a device, and lists those of it that the operation is about: the device alone, or all.
    /// `admit` looks at these under the same hold of the lock, may leave some out, and refuses what cannot be: nothing is
    /// claimed then.
    pub(super) fn begin(
        &self,
        held: &mut Held<'_, Unlocked>,
        request: &Request<'_>,
        admit: impl Fn(&Registry<P>, &DeviceRecord, &mut Few<Device>) -> Result<(), Cause>,
    ) -> Result<(Claim, Few<Device>), Error> {
        let &Request { operation, device, whole_group, .. } = request;
        let refuse = |cause| Error::unchanged(operation, device.label().clone(), cause);
        let mut room = few::USUAL;
        loop {
            let mut members = Members::with_room(room).ok_or_else(|| refuse(Cause::OutOfMemory))?;
            let mut subjects: Few<Device> = few::with_room(room).ok_or_else(|| refuse(Cause::OutOfMemory))?;
            let mut registry = self.registry.lock(held);
            let unused = registry.unused();
            let claimed = (|| {
                let record = registry.registration(device).ok_or(Cause::Gone)?;
                if record.remove_pending.get() {
                    return Err(Cause::Gone);
                }
                let nested = self.may_claim(&registry, record, request)?;
                members.fill(&registry, record);
                if !members.is_complete() {
                    return Ok(Err(registry.group_size(record)));
                }
                subjects.extend(members.devices().filter(|member| whole_group || member.id() == device.id()).cloned());
                admit(&registry, record, &mut subjects)?;
                if !nested {
                    registry.claim(record, operation)?;
                }
                Ok(Ok(nested))
            })();
            drop(registry);
            drop(unused);
            match claimed.map_err(refuse)? {
                Ok(nested) => return Ok((Claim::new(device.clone(), members, nested), subjects)),
                Err(size) => room = size,
            }
        }
    }

    /// Whether an operation above has claimed the group of `record`, so that this one works under that claim; refused
    /// where another one has.
    fn may_claim(&self, registry: &Registry<P>, record: &DeviceRecord, request: &Request<'_>) -> Result<bool, Cause> {
        let Some(running) = registry.claimed(record) else { return Ok(false) };
        let above = request.above;
        let under = above.hold(registry, record);
        if under && !request.whole_group && !above.protects(request.device) {
            return Ok(true);
        }
        Err(above.busy(registry, record, running))
    }

    /// Ends a claim: puts down how the operation ended, carries out every removal that was asked for while the claim
    /// stood (contract C-2), then lets the group go. Says what became of the device through which the group was claimed.
    pub(super) fn conclude(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: Claim,
        end: End<'_>,
        above: Claims<'_>,
    ) -> Outcome {
        self.finish(held, claim, end, None, above)
    }

    /// [`conclude`](Self::conclude), where the caller knows already that the device `going` is to go.
    pub(super) fn finish(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: Claim,
        end: End<'_>,
        mut going: Option<Going>,
        above: Claims<'_>,
    ) -> Outcome {
        let Claim { device: subject, mut members, nested, mut parent, .. } = claim;
        let mut outcome = Outcome::Stays;
        let mut open = Some(Open { member: subject.clone(), nested, listed: members.is_complete() });
        let mut sharing = None;
        // Whoever could wait for what ends here: for the domain, for a removal, for a claim.
        let mut wakes = end.unhold.is_some();
        let mut end = Some(end);
        loop {
            let mut cut = going.take().map(|going| self.cut(held, going, &members));
            if let Some(cut) = cut.as_mut().filter(|cut| cut.drained) {
                // Who shares with whom is asked again whenever one more has left.
                let listed = open.as_ref().is_some_and(|open| open.listed);
                sharing = listed.then(|| Self::sharing(held, &members, Some(cut)));
            }
            let mut registry = self.registry.lock(held);
            let unused = registry.unused();
            if let Some(end) = end.take() {
                end.apply(&registry, &self.moves);
            }
            if let Some(cut) = &cut {
                wakes |= cut.put_down(&mut registry, &mut open, &self.moves);
            }
            let next = Self::next_of(&registry, &mut open, &mut parent, sharing.as_ref(), above, &mut wakes);
            let next = match next {
                // One that waited for the last of its children, or for a call to leave.
                Next::Done if cut.is_some() => match registry.forsaken() {
                    Some(record) if registry.claim(record, Operation::Remove).is_ok() => {
                        open = Some(Open { member: record.device.clone(), nested: false, listed: false });
                        Next::Go(Going::of(record))
                    }
                    _ => Next::Done,
                },
                next => next,
            };
            drop(registry);
            drop(unused);
            if let Some(cut) = cut {
                let coming = if let Next::Go(going) = &next { Some(&going.device) } else { None };
                self.let_go(held, &cut, open.as_ref().map(|open| &open.member), coming, above);
                let is_subject = cut.going.device.id() == subject.id();
                let gone = self.gone(held, cut, &members);
                if is_subject {
                    outcome = gone;
                } else if let Outcome::Removed(Err(error)) = gone {
                    log::warn!("{error}");
                }
            }
            match next {
                Next::Done => break,
                Next::Go(next) => going = Some(next),
                Next::FindSharing(size) => {
                    if let Some(open) = &mut open {
                        members = self.members(held, &open.member, size);
                        open.listed = true;
                    }
                    sharing = Some(Self::sharing(held, &members, None));
                }
            }
        }
        if wakes {
            P::wake();
        }
        outcome
    }

    /// Lets go of the groups in hand, up to the first that has something left to do.
    fn next_of(
        registry: &Registry<P>,
        open: &mut Option<Open>,
        parent: &mut Option<Device>,
        sharing: Option<&Shared>,
        above: Claims<'_>,
        wakes: &mut bool,
    ) -> Next {
        loop {
            let Some(Open { member, nested, listed }) = &*open else {
                let Some(parent) = parent.take() else { return Next::Done };
                *open = Some(Open { member: parent, nested: false, listed: false });
                continue;
            };
            // A parent whose group became one with its child's is let go with that.
            let record = registry.registration(member).filter(|record| registry.claimed(record).is_some());
            if let Some(record) = record {
                let leaving = registry.members(record).find(|mate| mate.may_go() && !above.protects(&mate.device));
                if let Some(leaving) = leaving {
                    return Next::Go(Going::of(leaving));
                }
                if !nested {
                    *wakes |= match sharing.filter(|_| *listed) {
                        None if registry.has_shrunk(record) => {
                            return Next::FindSharing(registry.group_size(record));
                        }
                        None => registry.release(record, Some(&[])),
                        Some(shared) => registry.release(record, shared.as_deref()),
                    };
                }
            }
            *open = None;
        }
    }

    /// The members of a claimed group, where the claim had no room for them.
    fn members(&self, held: &mut Held<'_, Unlocked>, of: &Device, size: usize) -> Members {
        let mut members = Members::with_room(size).unwrap_or_default();
        let registry = self.registry.lock(held);
        if let Some(record) = registry.registration(of) {
            members.fill(&registry, record);
        }
        members
    }

    /// Who of the claimed group uses the same entries, whether or not their streams meet: an entry outlives the device
    /// for which it was made while another uses it, and must not be in two groups (contract I-15). Where a member has just
    /// been `cut`, its IOMMUs have said so of the others.
    fn sharing(held: &mut Held<'_, Unlocked>, members: &Members, cut: Option<&mut Cut>) -> Shared {
        let leaving = cut.as_ref().map(|cut| cut.going.device.clone());
        let (mut sharing, mut asked) =
            cut.map(|cut| (mem::take(&mut cut.sharing), mem::take(&mut cut.asked))).unwrap_or_default();
        let rest = members.without(leaving.as_ref())?;
        let staying = members.devices().filter(|device| rest.contains(&device.id()));
        for attachment in staying.flat_map(Device::attachments) {
            if rest.len() < 2 || asked.iter().any(|asked| asked.is_same(&attachment.iommu)) {
                continue;
            }
            let mut all_shared = true;
            let told = attachment.iommu.call(held).sharing(&rest, &mut |pair| {
                all_shared &= few::put(&mut sharing, pair);
            });
            if told.is_err() || !all_shared {
                return None;
            }
            // Who cannot be noted is asked again for the next member.
            let _ = few::put(&mut asked, attachment.iommu.clone());
        }
        Some(sharing)
    }

    /// The source lets go of what it has of a device that is registered no more. `coming` is the next to be removed: not
    /// by what the source nests here.
    fn let_go(
        &self,
        held: &mut Held<'_, Unlocked>,
        cut: &Cut,
        open: Option<&Device>,
        coming: Option<&Device>,
        above: Claims<'_>,
    ) {
        let device = &cut.going.device;
        if !cut.drained || !cut.going.was_added {
            // A device whose add failed was never the source's to release.
            return;
        }
        let subjects = coming.map_or(&[][..], core::slice::from_ref);
        let frame =
            Frame { device: open.unwrap_or(device), subjects, operation: Operation::Remove, target: None, above };
        let claims = Claims::of(&frame);
        let hooks = device.hooks().call(held);
        guarded::told(|| hooks.release(&HookContext { device, claims }));
    }

    /// The frame of an operation that has claimed and is about to call out.
    pub(super) fn frame<'a>(
        claim: &'a Claim,
        request: &Request<'a>,
        subjects: &'a [Device],
        target: Option<&Domain<P>>,
    ) -> Frame<'a> {
        let (operation, above) = (request.operation, request.above);
        Frame { device: &claim.device, subjects, operation, target: target.map(Domain::id), above }
    }
}
