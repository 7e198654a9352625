//! Domains from create to destroy, and the flushes of their tables.
//!
//! # Locking
//!
//! Level `Registry` at either end of a domain's life, level `FlushList` for each flush, and never the registry for that
//! (contract C-17); nothing is held over a driver.

use core::fmt;

use super::domain::Domain;
use super::error::{Cause, Error, Operation};
use super::event::Event;
use super::identity::{DomainId, Label};
use super::iommu::{FlushRange, IommuError, Patience};
use super::registry::DomainRecord;
use super::service::Service;
use super::space::{AddressSpace, Stage2};
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
    /// The token itself, and what the first IOMMU that does not confirm says.
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn redeem(self) -> Result<(), (Self, Cause)> {
        let mut held = Held::enter();
        match self.0.forget(&mut held) {
            Ok(()) => {
                self.0.end(&mut held);
                Ok(())
            }
            Err(cause) => Err((self, cause)),
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
    /// None today; the result leaves room for a limit.
    pub fn create_domain(&self, label: Label, stage2: Stage2) -> Result<Domain<P>, Error> {
        let mut held = Held::enter();
        let id = DomainId::new(self.last_domain.fetch_add(1, Ordering::Relaxed).wrapping_add(1));
        let domain = Domain::new(label, AddressSpace { domain: id, stage2 });
        let record = DomainRecord::new(domain.clone());
        self.registry.lock(&mut held).insert_domain(record);
        self.tell(&mut held, &Event::DomainCreated { domain: domain.label().clone() });
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
        let mut held = Held::enter();
        let result = self.destroy_in(&mut held, domain);
        self.report(&result);
        result
    }

    fn destroy_in(&self, held: &mut Held<'_, Unlocked>, domain: &Domain<P>) -> Result<(), Error> {
        let refuse = |cause| Error::unchanged(Operation::DestroyDomain, domain.label().clone(), cause);
        {
            let registry = self.registry.lock(held);
            let record = registry.domain(domain.id()).ok_or_else(|| refuse(Cause::Gone))?;
            if record.assigned.get() > 0 {
                return Err(refuse(registry.use_of(domain.id())));
            }
            if record.destroying.get() {
                return Err(refuse(Cause::Busy { running: Operation::DestroyDomain }));
            }
            if record.holds.get() > 0 {
                return Err(refuse(Cause::Busy { running: Operation::Assign }));
            }
            record.destroying.set(!broken!("shared_destroy"));
        }
        // Costs nothing where the last device's drain was confirmed; finds out where it was not.
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
            self.tell(held, &Event::DomainDestroyed { domain: domain.label().clone() });
        }
        P::wake();
        drained.map_err(refuse)
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
            let idle = registry.domain(domain.id()).is_some_and(|record| {
                record.assigned.get() == 0 && record.holds.get() == 0 && !record.destroying.get()
            });
            idle && registry.bury_domain(domain.id())
        };
        if !ended {
            return Err(error);
        }
        self.tell(&mut held, &Event::DomainDestroyed { domain: domain.label().clone() });
        P::wake();
        Ok(Some(TablesHeld(domain.clone())))
    }

    // --- flushes ---

    /// Makes every IOMMU forget what it cached of `domain`'s tables: needed after a mapping was removed or narrowed,
    /// never after one was added (contract I-9).
    ///
    /// # Errors
    ///
    /// [`Cause::Iommu`]: stale translations may still be in use there; the other IOMMUs were flushed.
    pub fn flush(&self, domain: &Domain<P>) -> Result<(), Error> {
        let flushed = domain.on_all(&mut Held::enter(), |iommu, domain| iommu.flush(domain));
        let result = flushed.map_err(|cause| Error::unchanged(Operation::Flush, domain.label().clone(), cause));
        self.report(&result);
        result
    }

    /// [`flush`](Self::flush) of part of the domain: by page where the hardware can and it is worth it.
    ///
    /// # Errors
    ///
    /// [`Cause::Iommu`]: stale translations may still be in use there; the other IOMMUs were flushed.
    ///
    /// # Context
    ///
    /// Waiting context. Contract I-9.
    pub fn flush_range(&self, domain: &Domain<P>, range: &FlushRange) -> Result<(), Error> {
        let result = self.flush_pages(domain, range, Patience::Waiting);
        self.report(&result);
        result
    }

    /// [`flush_range`](Self::flush_range) with a smaller bound of its own, and nothing logged.
    ///
    /// # Errors
    ///
    /// As for [`flush_range`](Self::flush_range), and where an instance has no power.
    ///
    /// # Context
    ///
    /// Atomic context: where nothing may sleep, under a spin lock of the caller's own. Not in interrupt handlers: they
    /// have [`in_interrupts`](Self::in_interrupts), where the platform allows it (contract C-10).
    pub fn flush_range_atomic(&self, domain: &Domain<P>, range: &FlushRange) -> Result<(), Error> {
        self.flush_pages(domain, range, Patience::Atomic)
    }

    pub(super) fn flush_pages(&self, domain: &Domain<P>, range: &FlushRange, patience: Patience) -> Result<(), Error> {
        let flushed = domain.on_all(&mut Held::enter(), |iommu, id| iommu.flush_range(id, range, patience));
        flushed.map_err(|cause| Error::unchanged(Operation::Flush, domain.label().clone(), cause))
    }
}
