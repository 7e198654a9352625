//! Domains, from create to destroy.
//!
//! # Locking
//!
//! Level `Registry` at either end of a domain's life; nothing is held over a driver.

use core::fmt;

use crate::assign::{
    AddressSpace, CallChain, Cause, Domain, DomainId, DomainRecord, Error, Event, IommuError, Label, Obstacle,
    Operation, Registry, Service, Stage2,
};
use crate::sync::Platform;
use crate::sync::atomic::Ordering;
use crate::sync::broken::broken;
use crate::sync::order::{Held, Unlocked};

/// A domain that has ended, whose tables some IOMMU may still read: an invalidation was not confirmed (contract I-8).
///
/// Its memory must not be given to anyone before [`redeem`](Self::redeem) says so. Dropping it costs that memory.
#[must_use = "the domain's tables must stay until this is redeemed"]
pub struct TablesHeld<P: Platform>(Domain<P>);

impl<P: Platform> TablesHeld<P> {
    /// The domain's name.
    #[must_use]
    pub fn label(&self) -> &Label {
        self.0.label()
    }

    /// Asks every IOMMU once more to forget the tables. After `Ok` their memory is free.
    ///
    /// # Errors
    ///
    /// The token itself, and [`Cause::Iommu`]: what the first IOMMU that does not confirm says.
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn redeem(self) -> Result<(), (Self, Error)> {
        let mut held = Held::enter();
        match self.0.forget(&mut held) {
            Ok(()) => {
                self.0.end(&mut held);
                Ok(())
            }
            Err(cause) => {
                let error = Error::unchanged(Operation::RedeemTables, self.label().clone(), cause);
                Err((self, error))
            }
        }
    }
}

impl<P: Platform> fmt::Debug for TablesHeld<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TablesHeld({})", self.0.label())
    }
}

impl<P: Platform> Service<P> {
    /// Makes a domain of a guest's stage 2. Its tables stay the caller's.
    ///
    /// # Errors
    ///
    /// [`Cause::Incompatible`] for tables that no SMMU could follow ([`Stage2::check`]). What an SMMU of this machine cannot
    /// follow is told by assign, and by [`limits`](Self::limits) before.
    pub fn create_domain(&self, label: Label, stage2: Stage2) -> Result<Domain<P>, Error> {
        let mut held = Held::enter();
        if let Err(incompatible) = stage2.check() {
            let cause = Cause::Incompatible(incompatible);
            return Error::reported(Err(Error::unchanged(Operation::CreateDomain, label, cause)));
        }
        let id = DomainId::new(self.last_domain.fetch_add(1, Ordering::Relaxed).wrapping_add(1));
        let domain = Domain::new(label, AddressSpace { domain: id, stage2 });
        let record = DomainRecord::new(domain.clone());
        self.registry.lock(&mut held).insert_domain(record);
        self.tell(&mut held, || Event::DomainCreated { domain: domain.label().clone() });
        Ok(domain)
    }

    /// Ends a domain. After `Ok` no IOMMU uses its tables: they can be freed.
    ///
    /// # Errors
    ///
    /// [`Cause::InUse`] while a device refers to it, [`Cause::Busy`] while a running operation does, [`Cause::Gone`],
    /// [`Cause::Iommu`] when an IOMMU does not confirm that it forgot the tables: the domain stays, its tables must stay
    /// too, and destroying it can be tried again (contract I-8, I-10).
    pub fn destroy_domain(&self, domain: &Domain<P>) -> Result<(), Error> {
        self.destroy_within(CallChain::NONE, domain)
    }

    pub(in crate::assign) fn destroy_within(&self, above: CallChain<'_>, domain: &Domain<P>) -> Result<(), Error> {
        Error::reported(self.destroy_in(&mut Held::enter(), above, domain))
    }

    fn destroy_in(&self, held: &mut Held<'_, Unlocked>, above: CallChain<'_>, domain: &Domain<P>) -> Result<(), Error> {
        let refuse = |cause| Error::unchanged(Operation::DestroyDomain, domain.label().clone(), cause);
        {
            let registry = self.registry.lock(held);
            let record = registry.creation(domain).ok_or_else(|| refuse(Cause::Gone))?;
            above.meet(Obstacle::Domain(domain.id()));
            if record.is_being_left() {
                // The removal of the last device ends, and is counted then.
                above.meet(Obstacle::Driver);
            }
            registry.check_free(record).map_err(refuse)?;
            record.destroying.set(!broken!("shared_destroy"));
        }
        let drained = domain.forget(held);
        {
            let mut registry = self.registry.lock(held);
            if let Some(record) = registry.domain(domain.id()) {
                record.destroying.set(false);
            }
            if drained.is_ok() {
                registry.bury_domain(domain.id());
            }
        }
        if drained.is_ok() {
            domain.end(held);
            self.tell(held, || Event::DomainDestroyed { domain: domain.label().clone() });
        }
        self.count_end();
        drained.map_err(|cause| {
            above.meet(Obstacle::Driver);
            refuse(cause)
        })
    }

    /// [`destroy_domain`](Self::destroy_domain), also where an IOMMU does not confirm that it forgot the tables: the
    /// domain ends then all the same, and its tables are held by the token. `None`: they can be freed at once.
    ///
    /// # Errors
    ///
    /// As for [`destroy_domain`](Self::destroy_domain), but for `SyncTimeout`.
    ///
    /// # Context
    ///
    /// Waiting context. Contract I-8, I-10.
    pub fn retire_domain(&self, domain: &Domain<P>) -> Result<Option<TablesHeld<P>>, Error> {
        let error = match self.destroy_domain(domain) {
            Ok(()) => return Ok(None),
            Err(error) => error,
        };
        if !matches!(error.cause, Cause::Iommu { error: IommuError::SyncTimeout(_), .. }) {
            return Err(error);
        }
        let mut held = Held::enter();
        let ended = {
            let mut registry = self.registry.lock(&mut held);
            let is_free = registry.creation(domain).is_some_and(|record| registry.check_free(record).is_ok());
            is_free && registry.bury_domain(domain.id())
        };
        if !ended {
            return Err(error);
        }
        self.tell(&mut held, || Event::DomainDestroyed { domain: domain.label().clone() });
        P::wake();
        Ok(Some(TablesHeld(domain.clone())))
    }
}

impl<P: Platform> DomainRecord<P> {
    /// Whether all devices that are assigned to it were asked to go.
    fn is_being_left(&self) -> bool {
        self.assigned.get() > 0 && self.leaving.get() == self.assigned.get()
    }
}

impl<P: Platform> Registry<P> {
    /// Why a domain cannot end now, if it cannot (contract I-10).
    fn check_free(&self, record: &DomainRecord<P>) -> Result<(), Cause> {
        if record.destroying.get() {
            return Err(Cause::busy(Operation::DestroyDomain));
        }
        if record.holds.get() > 0 {
            return Err(Cause::busy(Operation::Assign));
        }
        match record.assigned.get() {
            0 => Ok(()),
            // Every other operation on these devices says already that they are gone (contract C-15).
            _ if record.is_being_left() => Err(Cause::busy(Operation::Remove)),
            devices => {
                let id = record.domain.id();
                Err(self.in_use(devices, |device| device.state.get().owner() == Some(id) && !device.marked.get()))
            }
        }
    }
}
