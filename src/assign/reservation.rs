//! A dry run of an assign, and one that binds.

use core::fmt;
use core::marker::PhantomData;

use super::claim::{Claim, Request};
use super::device::Device;
use super::domain::Domain;
use super::error::{Cause, Error, Left, Operation};
use super::nested::Claims;
use super::service::Service;
use super::steps::Steps;
use super::transaction::state_after;
use crate::few::Few;
use crate::sync::Platform;
use crate::sync::order::Held;

/// An assign that has been planned and cannot be refused any more: the group is claimed, the context reserved.
///
/// It ends with [`commit`](Reservation::commit) or [`abandon`](Reservation::abandon). Forgetting it leaves the group
/// claimed, in fault: that costs liveness, never isolation (contract C-20).
#[must_use = "the group stays claimed until the reservation is committed or abandoned"]
pub struct Reservation<'s, P: Platform> {
    service: &'s Service<P>,
    claim: Claim,
    subjects: Few<Device>,
    domain: Domain<P>,
    steps: Steps,
    not_send: PhantomData<*mut ()>,
}

const fn assign_of(device: &Device) -> Request<'_> {
    Request { operation: Operation::Assign, device, whole_group: false, above: Claims::NONE }
}

impl<P: Platform> Service<P> {
    /// Whether [`assign`](Self::assign) would be refused now: the same checks and the same plan, given back at once.
    ///
    /// # Errors
    ///
    /// What `assign` would say.
    ///
    /// # Context
    ///
    /// Waiting context. Writes no register, but to finish an earlier drain that keeps back all contexts there are.
    pub fn test_assign(&self, device: &Device, domain: &Domain<P>) -> Result<(), Error> {
        self.reserve(device, domain).and_then(Reservation::abandon)
    }

    /// Checks and plans as [`test_assign`](Self::test_assign) does, and keeps the plan: [`Reservation::commit`] cannot be
    /// refused, only fail in hardware.
    ///
    /// Until it ends, every other operation on the group gets `Busy`, and a removal waits for it.
    ///
    /// # Errors
    ///
    /// What `assign` would say. Nothing is kept then.
    ///
    /// # Context
    ///
    /// Waiting context. Writes no register, but to finish an earlier drain that keeps back all contexts there are.
    pub fn reserve(&self, device: &Device, domain: &Domain<P>) -> Result<Reservation<'_, P>, Error> {
        let mut held = Held::enter();
        let request = assign_of(device);
        let (claim, subjects) = self.begin_move(&mut held, &request, domain)?;
        let prepared = self.prepare(&mut held, &claim, &Self::frame(&claim, &request, &subjects, Some(domain)), domain);
        match prepared {
            Ok(steps) => {
                Ok(Reservation { service: self, claim, subjects, domain: domain.clone(), steps, not_send: PhantomData })
            }
            Err(cause) => {
                let refused = Error::unchanged(Operation::Assign, device.label().clone(), cause);
                match self.end_move(&mut held, claim, &subjects, domain, None, Claims::NONE) {
                    None => Err(refused),
                    Some(left) => Err(Error { cause: Cause::Removed, left, ..refused }),
                }
            }
        }
    }
}

impl<P: Platform> Reservation<'_, P> {
    /// Carries the assign out.
    ///
    /// # Errors
    ///
    /// [`Cause::Iommu`] when the hardware fails: the device is quarantined. [`Cause::Removed`] when a removal was asked for
    /// meanwhile.
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn commit(self) -> Result<(), Error> {
        let mut held = Held::enter();
        let device = self.claim.device.clone();
        let Self { service, claim, subjects, domain, steps, .. } = self;
        let request = assign_of(&device);
        let moved = {
            let frame = Service::frame(&claim, &request, &subjects, Some(&domain));
            service.carry_out(&mut held, &frame, &domain, steps)
        };
        let result = moved.map_err(|cause| (cause, Left::Quarantined));
        let state = state_after(&result, &domain);
        let result = match service.end_move(&mut held, claim, &subjects, &domain, state, Claims::NONE) {
            None => result,
            Some(left) => Err((Cause::Removed, left)),
        };
        let subject = device.label().clone();
        let result = result.map_err(|(cause, left)| Error { operation: Operation::Assign, subject, cause, left });
        service.report(&result);
        result
    }

    /// Gives back what was planned.
    ///
    /// # Errors
    ///
    /// [`Cause::Removed`] when a removal was asked for meanwhile: it is carried out now.
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn abandon(self) -> Result<(), Error> {
        let mut held = Held::enter();
        let subject = self.claim.device.label().clone();
        let Self { service, claim, subjects, domain, mut steps, .. } = self;
        steps.abandon(&mut held);
        service.leave_gone(&mut held, &subjects, &domain);
        let overtaken = service.end_move(&mut held, claim, &subjects, &domain, None, Claims::NONE);
        let removed = |left| Error { operation: Operation::Assign, subject, cause: Cause::Removed, left };
        let result = overtaken.map_or(Ok(()), |left| Err(removed(left)));
        service.report(&result);
        result
    }
}

impl<P: Platform> fmt::Debug for Reservation<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({} for {})", self.claim.device.label(), self.domain.label())
    }
}
