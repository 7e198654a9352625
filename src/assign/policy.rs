//! What the integrator decides.

use core::fmt;

use super::{CallChain, Device, Label};

/// Decides who may be assigned what (contract A-11).
///
/// # Context
///
/// Called with no lock of the library held, from the waiting context of the operation that asks. It may come back
/// through [`Service::within`](super::Service::within) with the request's chain.
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
    pub chain: CallChain<'a>,
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
