//! Flushes of a domain's tables (contract I-9).
//!
//! # Locking
//!
//! Level `FlushList`, and never the registry (contract C-17); nothing is held over a driver.

use crate::assign::{Cause, Domain, Error, FlushRange, Left, Operation, Patience, Service};
use crate::sync::Platform;
use crate::sync::order::Held;

impl<P: Platform> Service<P> {
    /// Makes every IOMMU forget what it cached of `domain`'s tables: needed after a mapping was removed or narrowed,
    /// never after one was added (contract I-9).
    ///
    /// # Errors
    ///
    /// [`Cause::Iommu`](crate::assign::Cause::Iommu): stale translations may still be in use there; the other IOMMUs were flushed.
    pub fn flush(&self, domain: &Domain<P>) -> Result<(), Error> {
        Error::reported(self.flush_with(domain, None, Patience::Waiting))
    }

    /// [`flush`](Self::flush) of part of the domain: by page where the hardware can and it is worth it.
    ///
    /// # Errors
    ///
    /// [`Cause::Iommu`](crate::assign::Cause::Iommu): stale translations may still be in use there; the other IOMMUs were flushed.
    ///
    /// # Context
    ///
    /// Waiting context. Contract I-9.
    pub fn flush_range(&self, domain: &Domain<P>, range: &FlushRange) -> Result<(), Error> {
        Error::reported(self.flush_with(domain, Some(range), Patience::Waiting))
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
        self.flush_with(domain, Some(range), Patience::Atomic)
    }

    pub(super) fn flush_with(
        &self,
        domain: &Domain<P>,
        range: Option<&FlushRange>,
        patience: Patience,
    ) -> Result<(), Error> {
        let flushed = domain.on_all(&mut Held::enter(), |iommu, id| iommu.flush(id, range, patience));
        flushed.map_err(|cause| stale(domain, cause))
    }
}

#[cold]
#[inline(never)]
fn stale<P: Platform>(domain: &Domain<P>, cause: Cause) -> Error {
    Error { left: Left::Stale, ..Error::unchanged(Operation::Flush, domain.label().clone(), cause) }
}
