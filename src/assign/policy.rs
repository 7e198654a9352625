//! What the integrator decides and what a source does for its own devices.

use core::fmt;

use super::device::Device;
use super::identity::Label;
use super::nested::Claims;

/// Decides who may be assigned what (contract A-11).
///
/// # Context
///
/// Called with no lock of the library held, from the waiting context of the operation that asks. It may come back
/// through [`Service::within`](super::Service::within) with the request's claims.
pub trait Policy: Send + Sync + fmt::Debug {
    /// Whether the request may go on. Anything but a yes refuses the operation, and nothing is written.
    fn allows(&self, request: &PolicyRequest<'_>) -> bool;
}

/// What the policy is asked.
#[derive(Debug)]
#[non_exhaustive]
pub struct PolicyRequest<'a> {
    /// The device in question.
    pub device: &'a Device,
    /// The domain that would reach its DMA.
    pub domain: &'a Label,
    /// Why it is asked.
    pub why: Why<'a>,
    /// What runs above the question.
    pub claims: Claims<'a>,
}

/// Why the policy is asked.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Why<'a> {
    /// The device itself is to be assigned.
    Assign,
    /// The device is not to be assigned, but shares a stream with `with`, which is or would be: its DMA reaches that
    /// domain too.
    Shares {
        /// The device whose assignment opens the shared stream.
        with: &'a Device,
    },
}

/// The default policy: yes for what firmware marked for passthrough (`xen,passthrough`), no for all else.
#[derive(Clone, Copy, Debug, Default)]
pub struct FirmwareMarks;

impl Policy for FirmwareMarks {
    fn allows(&self, request: &PolicyRequest<'_>) -> bool {
        request.device.passthrough()
    }
}

/// What a source does for one of its devices.
///
/// # Context
///
/// Called with no lock of the library held, from the waiting context of the operation; a reset may take its time. A
/// hook may come back through [`Service::within`](super::Service::within) with its context's claims.
pub trait DeviceHooks: Send + Sync + fmt::Debug {
    /// Stops the device from starting new DMA. Its streams are in fault already.
    ///
    /// # Errors
    ///
    /// What went wrong; the operation ends with the device quarantined.
    fn quiesce(&self, context: &HookContext<'_>) -> Result<(), HookError>;

    /// Brings the device to a state that carries nothing over from one owner to the next.
    ///
    /// # Errors
    ///
    /// What went wrong; the operation ends with the device quarantined.
    fn reset(&self, context: &HookContext<'_>) -> Result<(), HookError>;

    /// The device is unregistered: the source may let go of its own things. Not called for a device whose add failed.
    fn release(&self, context: &HookContext<'_>);
}

/// What a hook is told.
#[derive(Debug)]
#[non_exhaustive]
pub struct HookContext<'a> {
    /// The device.
    pub device: &'a Device,
    /// What runs above the hook.
    pub claims: Claims<'a>,
}

/// Why a hook failed, in the source's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HookError(pub &'static str);

/// Hooks for a device that cannot be stopped or reset from outside: streams in fault are all that confines it.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoHooks;

impl DeviceHooks for NoHooks {
    fn quiesce(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        Ok(())
    }

    fn reset(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        Ok(())
    }

    fn release(&self, _: &HookContext<'_>) {}
}
