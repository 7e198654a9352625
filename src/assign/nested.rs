//! Operations from inside a callback: what runs above them, and the forms that know of it (contract C-4).
//!
//! A callback runs with the group of its operation claimed. It may come back into the service. There is no thread identity
//! from which the service could tell who asks: each hook and the policy are handed a [`Claims`], and
//! [`Service::within`] gives the operations that know of them.
//!
//! # Invariants
//!
//! A wait form waits for a group only when that comes after every claim above it, in the order (depth, key) of the
//! groups' leaders: whoever waits for one of those claims has only smaller ones, so that no circle closes (contract C-5).

use core::fmt;

use super::device::{Device, DeviceSpec};
use super::domain::Domain;
use super::error::{Cause, Error, Operation};
use super::identity::{DeviceKey, DomainId};
use super::new_device::NewDevice;
use super::registry::{DeviceRecord, Registry};
use super::removal::Removal;
use super::service::{Deassigned, Service};
use crate::sync::broken::broken;
use crate::sync::{Platform, Waiter};

/// The claims above a callback: those of the operation that calls, and of the operations from whose callbacks that came.
#[derive(Clone, Copy, Default)]
pub struct Claims<'a> {
    innermost: Option<&'a Frame<'a>>,
    waits: bool,
}

/// One running operation that has called out.
pub(super) struct Frame<'a> {
    /// A member of the group that it has claimed.
    pub(super) device: &'a Device,
    /// The devices that it is about: nothing nested changes them.
    pub(super) subjects: &'a [Device],
    pub(super) operation: Operation,
    /// Where it takes them: no mate goes elsewhere meanwhile.
    pub(super) target: Option<DomainId>,
    pub(super) above: Claims<'a>,
}

impl<'a> Claims<'a> {
    /// Nothing: the call comes from outside.
    pub(super) const NONE: Claims<'static> = Claims { innermost: None, waits: false };

    /// The claims of a callback of the operation `frame`.
    pub(super) const fn of(frame: &'a Frame<'a>) -> Self {
        Self { innermost: Some(frame), waits: false }
    }

    /// The same, for a call that waits where it meets a claim.
    const fn waiting(self) -> Self {
        Self { waits: true, ..self }
    }

    fn frames(self) -> impl Iterator<Item = &'a Frame<'a>> {
        core::iter::successors(self.innermost, |frame| frame.above.innermost)
    }

    /// The operations above in the group of `record`.
    fn in_group<P: Platform>(
        self,
        registry: &Registry<P>,
        record: &DeviceRecord,
    ) -> impl Iterator<Item = &'a Frame<'a>> {
        let leader = record.leader.get();
        self.frames().filter(move |frame| {
            registry.registration(frame.device).is_some_and(|claimed| claimed.leader.get() == leader)
        })
    }

    /// Whether an operation above has claimed the group of `record`.
    pub(super) fn hold<P: Platform>(self, registry: &Registry<P>, record: &DeviceRecord) -> bool {
        self.in_group(registry, record).next().is_some()
    }

    /// A device that an operation above takes elsewhere than to `domain`, in the group of `record`.
    pub(super) fn bound_elsewhere<P: Platform>(
        self,
        registry: &Registry<P>,
        record: &DeviceRecord,
        domain: DomainId,
    ) -> Option<&'a Device> {
        let elsewhere = |frame: &&Frame<'_>| frame.target.is_some_and(|target| target != domain);
        self.in_group(registry, record).find(elsewhere).map(|frame| frame.device)
    }

    /// Whether an operation above is about `device`.
    pub(super) fn protects(self, device: &Device) -> bool {
        self.frames().any(|frame| {
            frame.device.id() == device.id() || frame.subjects.iter().any(|subject| subject.id() == device.id())
        })
    }

    /// What a call gets that meets the claim of `running` on the group of `record`: whoever ends that wakes.
    pub(super) fn busy<P: Platform>(self, registry: &Registry<P>, record: &DeviceRecord, running: Operation) -> Cause {
        registry.meet(record);
        let wanted = registry.position(record);
        let after_all = self.frames().filter_map(|frame| registry.registration(frame.device)).all(|claimed| {
            let position = registry.position(claimed);
            position < wanted || (broken!("swapped_claim_order") && position != wanted)
        });
        if self.waits && !after_all { Cause::WouldDeadlock { running } } else { Cause::Busy { running } }
    }
}

impl fmt::Debug for Claims<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frames = self.frames().map(|frame| (frame.operation, frame.device));
        f.debug_list().entries(frames).finish()
    }
}

/// The service, as a callback may use it: the operations of [`Service`] with the claims above in mind.
///
/// In a group that an operation above has claimed they work under that claim: other members can be taken from their
/// domain and removed, and go where that operation goes; a device that an operation above is about gets
/// [`Cause::Busy`]. A child can be added behind a device of such a group.
pub struct Within<'a, P: Platform> {
    service: &'a Service<P>,
    above: Claims<'a>,
}

impl<P: Platform> Service<P> {
    /// The service, for a callback that was handed `claims`.
    ///
    /// Outside a callback the methods of the service itself serve. A callback that calls these gets `Busy` from every group
    /// that an operation above has claimed, and must not wait.
    #[must_use]
    pub fn within<'a>(&'a self, claims: Claims<'a>) -> Within<'a, P> {
        Within { service: self, above: claims }
    }
}

impl<P: Platform> Within<'_, P> {
    /// [`Service::add`]. Behind a parent of a group that an operation above has claimed, it works under that claim.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn add(&self, spec: DeviceSpec) -> Result<Device, Error> {
        self.service.add_within(self.above, spec)
    }

    /// [`Service::add_new`]. Behind a parent of a group that an operation above has claimed, it works under that claim.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Context
    ///
    /// A callback in waiting context. Contract C-4.
    pub fn add_new(&self, new: NewDevice) -> Result<Device, Error> {
        self.service.add_new_within(self.above, new)
    }

    /// [`Service::assign`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn assign(&self, device: &Device, domain: &Domain<P>) -> Result<(), Error> {
        self.service.move_in(self.above, device, domain, Operation::Assign, false)
    }

    /// [`Service::reassign`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn reassign(&self, device: &Device, domain: &Domain<P>) -> Result<(), Error> {
        self.service.move_in(self.above, device, domain, Operation::Reassign, false)
    }

    /// [`Service::deassign`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn deassign(&self, device: &Device) -> Result<Deassigned, Error> {
        self.service.move_out(self.above, device, false)
    }

    /// [`Service::remove`]. A device that an operation above is about is marked, and goes when that ends.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn remove(&self, key: DeviceKey) -> Result<Removal, Error> {
        self.service.remove_within(self.above, key)
    }

    /// [`Service::remove_tree`]. What an operation above is about is marked, and goes when that ends.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn remove_tree(&self, key: DeviceKey) -> Result<Removal, Error> {
        self.service.remove_tree_within(self.above, key)
    }

    /// [`Service::wait`], where no circle can close.
    ///
    /// # Errors
    ///
    /// As there, and [`Cause::WouldDeadlock`] where the operation meets a claim that does not come after all claims above:
    /// nothing changed then.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn wait<T>(
        &self,
        deadline: Option<P::Deadline>,
        mut operation: impl FnMut(&Self) -> Result<T, Error>,
    ) -> Result<T, Error>
    where
        P: Waiter,
    {
        let waiting = Self { service: self.service, above: self.above.waiting() };
        self.service.until(deadline, || operation(&waiting))
    }

    /// [`Service::remove_and_wait`], where no circle can close.
    ///
    /// # Errors
    ///
    /// As there, and [`Cause::WouldDeadlock`] where it would have to wait for a claim that does not come after all claims
    /// above: no removal was asked for then. [`remove`](Self::remove) leaves its mark and does not wait.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn remove_and_wait(&self, key: DeviceKey, deadline: Option<P::Deadline>) -> Result<(), Error>
    where
        P: Waiter,
    {
        self.service.remove_waiting(self.above.waiting(), key, deadline)
    }
}

impl<P: Platform> fmt::Debug for Within<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Within({:?})", self.above)
    }
}
