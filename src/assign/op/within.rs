//! Operations from inside a callback: the forms that know of the claims above (contract C-4), and the wait form.
//!
//! # Invariants
//!
//! A wait form waits for a group only when that comes after every claim above it, in the order (depth, key) of the groups'
//! leaders: what waits for one of those claims has only smaller ones, so that no circle closes (contract C-5).

use core::fmt;

use super::deassign::{Deassigned, Quarantine};
use super::moves::Move;
use super::removal::Removal;
use crate::assign::{CallChain, Device, DeviceSpec, Domain, Error, IommuKey, Operation, Service, Target};
use crate::sync::{Platform, Waiter};

/// The service, as a callback may use it: the operations of [`Service`] with the claims above in mind.
///
/// In a group that an operation above has claimed they work under that claim: other members can be taken from their
/// domain and removed, and go where that operation goes; a device that an operation above is about gets
/// [`Cause::Busy`](crate::assign::Cause::Busy). A child can be added behind a device of such a group.
pub struct Within<'a, P: Platform> {
    service: &'a Service<P>,
    above: CallChain<'a>,
}

impl<P: Platform> Service<P> {
    /// The service, for a callback that was handed `chain`.
    ///
    /// Outside a callback the methods of the service itself serve. A callback that calls these gets `Busy` from every group
    /// that an operation above has claimed, and must not wait.
    #[must_use]
    pub fn within<'a>(&'a self, chain: CallChain<'a>) -> Within<'a, P> {
        Within { service: self, above: chain }
    }

    /// The wait form of an operation: tries it, and where it is busy waits until what was in its way is free and tries again.
    ///
    /// ```text
    /// service.wait(Some(deadline), |service| service.assign(&device, &domain))
    /// ```
    ///
    /// # Errors
    ///
    /// [`Cause::TimedOut`](crate::assign::Cause::TimedOut) when it stayed busy until the deadline (nothing changed then), and whatever the operation says but
    /// `Busy`.
    ///
    /// # Context
    ///
    /// Waiting context, with no lock that another operation could want. From inside a callback use
    /// [`Within::wait`](Within::wait), which knows what must not be waited for. Contract C-2, C-19.
    pub fn wait<T>(
        &self,
        deadline: Option<P::Deadline>,
        mut operation: impl FnMut(&Within<'_, P>) -> Result<T, Error>,
    ) -> Result<T, Error>
    where
        P: Waiter,
    {
        self.until(CallChain::NONE, deadline, |chain| operation(&self.within(chain)))
    }
}

impl<P: Platform> Within<'_, P> {
    /// [`Service::add`]. Behind a parent of a group that an operation above has claimed, it works under that claim.
    ///
    /// # Errors
    ///
    /// As there. [`Cause::Busy`](crate::assign::Cause::Busy) for a child that ends with its parent
    /// ([`DeviceSpec::ends_with_parent`]), while an operation above resets that.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn add(&self, spec: DeviceSpec) -> Result<Device, Error> {
        self.service.add_within(self.above, spec)
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
        self.service.move_within(self.above, &Move { operation: Operation::Assign, device, whole_group: false, domain })
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
        self.service
            .move_within(self.above, &Move { operation: Operation::Reassign, device, whole_group: false, domain })
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
        self.service.deassign_within(self.above, device, false)
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
    pub fn remove(&self, device: impl Into<Target>) -> Result<Removal, Error> {
        self.service.remove_within(self.above, &device.into())
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
    pub fn remove_tree(&self, device: impl Into<Target>) -> Result<Removal, Error> {
        self.service.remove_tree_within(self.above, &device.into())
    }

    /// [`Service::assign_group`], for the members that no operation above is about.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn assign_group(&self, device: &Device, domain: &Domain<P>) -> Result<(), Error> {
        self.service.move_within(self.above, &Move { operation: Operation::Assign, device, whole_group: true, domain })
    }

    /// [`Service::reassign_group`], for the members that no operation above is about.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn reassign_group(&self, device: &Device, domain: &Domain<P>) -> Result<(), Error> {
        self.service
            .move_within(self.above, &Move { operation: Operation::Reassign, device, whole_group: true, domain })
    }

    /// [`Service::deassign_group`], for the members that no operation above is about.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn deassign_group(&self, device: &Device) -> Result<Deassigned, Error> {
        self.service.deassign_within(self.above, device, true)
    }

    /// [`Service::quarantine`], for the members that no operation above is about.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn quarantine(&self, device: &Device, place: Quarantine) -> Result<(), Error> {
        self.service.quarantine_within(self.above, device, place)
    }

    /// [`Service::destroy_domain`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn destroy_domain(&self, domain: &Domain<P>) -> Result<(), Error> {
        self.service.destroy_within(self.above, domain)
    }

    /// [`Service::unregister_iommu`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn unregister_iommu(&self, key: IommuKey) -> Result<(), Error> {
        self.service.unregister_within(self.above, key)
    }

    /// [`Service::wait`], where no circle can close.
    ///
    /// # Errors
    ///
    /// As there, and [`Cause::WouldDeadlock`](crate::assign::Cause::WouldDeadlock) where the operation meets a claim that does not come after all claims above:
    /// nothing changed then.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn wait<T>(
        &self,
        deadline: Option<P::Deadline>,
        mut operation: impl FnMut(&Within<'_, P>) -> Result<T, Error>,
    ) -> Result<T, Error>
    where
        P: Waiter,
    {
        self.service.until(self.above, deadline, |chain| operation(&self.service.within(chain)))
    }

    /// [`Service::remove_and_wait`], where no circle can close.
    ///
    /// # Errors
    ///
    /// As there, and [`Cause::WouldDeadlock`](crate::assign::Cause::WouldDeadlock) where it would have to wait for a claim that does not come after all claims
    /// above: no removal was asked for then. [`remove`](Self::remove) leaves its mark and does not wait.
    ///
    /// # Context
    ///
    /// A callback in waiting context.
    pub fn remove_and_wait(&self, device: impl Into<Target>, deadline: Option<P::Deadline>) -> Result<(), Error>
    where
        P: Waiter,
    {
        self.service.remove_waiting(self.above, &device.into(), deadline)
    }
}

impl<P: Platform> fmt::Debug for Within<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Within({:?})", self.above)
    }
}
