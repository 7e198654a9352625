//! A dry run of an assign, and one that binds.

use core::fmt;

use super::moves::{Move, choose_movers};
use super::on_all_iommus::{self, Crew};
use crate::assign::{CallChain, Cause, Claim, Device, Domain, Error, Left, Operation, Registry, Service};
use crate::sync::Platform;
use crate::sync::order::Held;

/// An assign that has been planned and cannot be refused any more: the group is claimed, the context reserved.
///
/// It ends with [`commit`](Reservation::commit) or [`abandon`](Reservation::abandon). Forgetting it leaves the group
/// claimed, in fault: that costs liveness, never isolation (contract C-20).
#[must_use = "the group stays claimed until the reservation is committed or abandoned"]
pub struct Reservation<'s, P: Platform> {
    service: &'s Service<P>,
    claim: Claim<'static>,
    crew: Crew,
    domain: Domain<P>,
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
        let operation = Operation::Assign;
        let asked = Move { operation, device, whole_group: false, domain };
        let check = |registry: &Registry<P>, claim: &mut Claim<'static>| choose_movers(registry, claim, &asked);
        let claimed = self.claim(&mut held, CallChain::NONE, device, operation, &mut { check });
        let refuse = |cause| Error::unchanged(operation, device.label().clone(), cause);
        let mut claim = claimed.map_err(refuse)?;
        let crew = Crew::of(&claim).map_err(|cause| (cause, Left::Unchanged));
        let prepared = crew.and_then(|mut crew| {
            self.prepare(&mut held, &mut claim, &mut crew, domain)?;
            Ok(crew)
        });
        match prepared {
            Ok(crew) => Ok(Reservation { service: self, claim, crew, domain: domain.clone() }),
            Err(failure) => {
                self.end(&mut held, claim, Err::<(), _>(failure))?;
                Err(refuse(Cause::Gone))
            }
        }
    }
}

impl<P: Platform> Reservation<'_, P> {
    /// Carries the assign out.
    ///
    /// # Errors
    ///
    /// [`Cause::Iommu`](super::super::Cause::Iommu) when the hardware fails: the device is quarantined.
    /// [`Cause::Removed`](super::super::Cause::Removed) when a removal was asked for meanwhile.
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn commit(self) -> Result<(), Error> {
        let mut held = Held::enter();
        let Self { service, mut claim, mut crew, domain } = self;
        let moved = service.carry_out_move(&mut held, &mut claim, &mut crew, &domain);
        Error::reported(service.end(&mut held, claim, moved))
    }

    /// Gives back what was planned.
    ///
    /// # Errors
    ///
    /// [`Cause::Removed`](super::super::Cause::Removed) when a removal was asked for meanwhile: it is carried out now.
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn abandon(self) -> Result<(), Error> {
        let mut held = Held::enter();
        let Self { service, claim, mut crew, domain } = self;
        on_all_iommus::abandon(&mut held, &claim, &mut crew);
        service.leave_flush_list(&mut held, &claim, &domain);
        Error::reported(service.end(&mut held, claim, Ok(())))
    }
}

impl<P: Platform> fmt::Debug for Reservation<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reservation({} for {})", self.claim.device.label(), self.domain.label())
    }
}
