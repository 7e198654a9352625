//! What may be called from anywhere: revocable access to a device, and the service in interrupt handlers.
//!
//! # Locking
//!
//! Entering a device takes none (contract C-17), whatever lock of its own the caller holds. What interrupt handlers may call
//! takes `FlushList` and the driver's locks, and exists only where the platform's lock keeps interrupts off.

use core::fmt;
use core::marker::PhantomData;

use crate::assign::{Device, Domain, Error, FlushRange, Patience, Service};
use crate::sync::atomic::AtomicU32;
use crate::sync::broken::broken;
use crate::sync::inflight::Inside;
use crate::sync::{InterruptSafe, Platform};

/// A call that touches a device's registers: whoever removes the device waits until it has left.
///
/// It must not be held over a callback, nor over a call of the service about the same device.
#[must_use = "the device can be gone as soon as this is dropped"]
pub struct DeviceCall<'d, P: Platform> {
    inside: Option<Inside<'d, AtomicU32>>,
    device: &'d Device,
    platform: PhantomData<P>,
    not_send: PhantomData<*mut ()>,
}

impl Device {
    /// Enters the device: while the result lives, a removal does not get past its third step, so that the device's own
    /// registers may be touched. `None` once a removal was asked for: nothing of it may be touched any more.
    ///
    /// # Context
    ///
    /// Any, interrupts included: one atomic operation. Whoever leaves last calls [`Platform::wake`].
    #[must_use]
    pub fn enter<P: Platform>(&self) -> Option<DeviceCall<'_, P>> {
        let inside = self.calls().enter(Self::admits).ok()?;
        Some(DeviceCall { inside: Some(inside), device: self, platform: PhantomData, not_send: PhantomData })
    }
}

impl<P: Platform> Drop for DeviceCall<'_, P> {
    fn drop(&mut self) {
        let last = self.inside.take().filter(|_| !broken!("forgotten_leave")).map(Inside::leave);
        if last.is_some_and(|seen| seen.calls == 0 && seen.state != Device::OPEN) {
            P::wake();
        }
    }
}

impl<P: Platform> fmt::Debug for DeviceCall<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceCall({})", self.device.label())
    }
}

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
        self.service.flush_with(domain, Some(range), Patience::Atomic)
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
