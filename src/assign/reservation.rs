//! A dry run of an assign, and one that binds.

use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;

use super::claim::Claim;
use super::device::Device;
use super::domain::Domain;
use super::error::{Cause, Error, Left, Operation};
use super::removal::Outcome;
use super::service::Service;
use super::steps::Steps;
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// An assign that has been planned and cannot be refused any more: the group is claimed, the context reserved.
///
/// It ends with [`commit`](Reservation::commit) or [`abandon`](Reservation::abandon). Forgetting it leaves the group
/// claimed, in fault: that costs liveness, never isolation (contract C-20).
#[must_use = "the group stays claimed until the reservation is committed or abandoned"]
pub struct Reservation<'s, P: Platform> {
    service: &'s Service<P>,
    claim: Claim,
    subjects: Vec<Device>,
    domain: Domain<P>,
    steps: Steps,
    not_send: PhantomData<*mut ()>,
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

    /// The same, and keeps what was planned: [`Reservation::commit`] cannot be refused, only fail in hardware.
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
        let held = &mut held;
        let (claim, mut subjects) = self.begin(held, device, Operation::Assign, false)?;
        match self.prepare(held, Operation::Assign, &mut subjects, domain) {
            Ok(steps) => {
                Ok(Reservation { service: self, claim, subjects, domain: domain.clone(), steps, not_send: PhantomData })
            }
            Err(cause) => {
                let refused = Error::unchanged(Operation::Assign, device.label().clone(), cause);
                match self.conclude(held, claim) {
                    Outcome::Stays => Err(refused),
                    Outcome::Removed(_) => Err(Error { cause: Cause::Removed, left: Left::Removed, ..refused }),
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
        let Self { service, claim, subjects, domain, steps, .. } = self;
        let moved = service.carry_out(&mut held, Operation::Assign, &subjects, &domain, steps);
        end(service, &mut held, claim, moved.map_err(|cause| (cause, Left::Quarantined)))
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
        let Self { service, claim, domain, mut steps, .. } = self;
        steps.abandon(&mut held);
        service.unhold(&mut held, &domain);
        end(service, &mut held, claim, Ok(()))
    }
}

fn end<P: Platform>(
    service: &Service<P>,
    held: &mut Held<'_, Unlocked>,
    claim: Claim,
    result: Result<(), (Cause, Left)>,
) -> Result<(), Error> {
    let subject = claim.device.label().clone();
    let result = match (service.conclude(held, claim), result) {
        (Outcome::Stays, result) => result,
        (Outcome::Removed(_), _) => Err((Cause::Removed, Left::Removed)),
    };
    let result = result.map_err(|(cause, left)| Error { operation: Operation::Assign, subject, cause, left });
    service.report(&result);
    result
}

impl<P: Platform> fmt::Debug for Reservation<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({} for {})", self.claim.device.label(), self.domain.label())
    }
}
