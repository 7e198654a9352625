//! Revocable access to a device: calls that touch it, which a removal shuts out and waits for (contract C-8, C-17).
//!
//! # Locking
//!
//! None. Entering never meets the registry, whatever lock of its own the caller holds.

use core::fmt;
use core::marker::PhantomData;

use super::device::Device;
use crate::sync::Platform;
use crate::sync::atomic::AtomicU32;
use crate::sync::broken::broken;
use crate::sync::inflight::Inside;

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
