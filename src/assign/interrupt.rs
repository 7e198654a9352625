//! What interrupt handlers may call, as a type of its own (contract C-10).

use core::fmt;

use super::domain::Domain;
use super::error::Error;
use super::iommu::{FlushRange, Patience};
use super::service::Service;
use crate::sync::InterruptSafe;

/// The service as interrupt handlers may use it: nothing here waits, claims, allocates or logs.
///
/// What takes a lock is here, and exists only where the platform's lock keeps interrupts off:
///
/// ```compile_fail,E0277
/// use iommu_assign::{assign::{InterruptHandle, Service}, sync::Spin};
/// fn handler(service: &Service<Spin>) {
///     let _: InterruptHandle<'_, Spin> = service.in_interrupts();
/// }
/// ```
///
/// On such a platform it does exist:
///
/// ```
/// use iommu_assign::{assign::{InterruptHandle, Service}, sync::{Interrupts, SpinIrq}};
/// fn handler<I: Interrupts>(service: &Service<SpinIrq<I>>) {
///     let _: InterruptHandle<'_, SpinIrq<I>> = service.in_interrupts();
/// }
/// ```
///
/// What takes no lock is for every platform: [`IommuHandle`](super::IommuHandle) takes faults in and stops an instance.
pub struct InterruptHandle<'s, P: InterruptSafe> {
    service: &'s Service<P>,
}

impl<P: InterruptSafe> Service<P> {
    /// What interrupt handlers may call.
    #[must_use]
    pub const fn in_interrupts(&self) -> InterruptHandle<'_, P> {
        InterruptHandle { service: self }
    }
}

impl<P: InterruptSafe> InterruptHandle<'_, P> {
    /// [`Service::flush_range`] with the smaller bound of [`Service::flush_range_atomic`], and nothing logged.
    ///
    /// # Errors
    ///
    /// As for [`Service::flush_range_atomic`].
    ///
    /// # Context
    ///
    /// Any, interrupts included. The caller keeps the domain, and whoever takes an IOMMU instance out of service keeps
    /// an [`IommuHandle`](super::IommuHandle) of it until no handler can be in here: nothing may be freed in one
    /// (contract C-16).
    pub fn flush_range(&self, domain: &Domain<P>, range: &FlushRange) -> Result<(), Error> {
        self.service.flush_pages(domain, range, Patience::Atomic)
    }
}

impl<P: InterruptSafe> Clone for InterruptHandle<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: InterruptSafe> Copy for InterruptHandle<'_, P> {}

impl<P: InterruptSafe> fmt::Debug for InterruptHandle<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InterruptHandle")
    }
}
