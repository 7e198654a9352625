//! What went wrong, as a code and as a sentence.
//!
//! The only file that knows the library's error types.

use core::ffi::c_char;
use core::fmt;

use iommu_assign::assign::{Blame, Cause, Error, IommuError, Left};
use iommu_assign::dt::{DtError, NotOffered};
use iommu_assign::pci::MapError;
use iommu_assign::smmu::ProbeError;

use crate::border::Text;
use crate::status::iommu_status;

/// Bytes of the sentence in a `struct iommu_error`, its NUL included.
pub const IOMMU_TEXT_SIZE: usize = 256;

/// Who has to act.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum iommu_blame {
    /// Nobody: there is no error.
    Nobody = 0,
    /// The caller.
    Caller,
    /// Firmware.
    Firmware,
    /// The hardware.
    Hardware,
    /// Whoever uses up what there is a fixed number of.
    Exhausted,
    /// The integrator's hook.
    Source,
}

/// What a failed call left.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum iommu_left {
    /// Nothing changed.
    Unchanged = 0,
    /// The device is in fault, or in its scratch page, and owned by no domain.
    Quarantined,
    /// The device is assigned as before, but only some of its streams translate: deassign it again.
    PartlyAssigned,
    /// The device is in fault and on its way out: remove it again.
    Going,
    /// The device is on its way out, but its DMA is not cut: remove it again.
    GoingLive,
    /// The running operation removes the device when it ends.
    Pending,
    /// The device is removed.
    Removed,
    /// Old translations may still be in use: flush again.
    Stale,
    /// The IOMMU takes nothing new, and is not out of service yet: call again.
    Closing,
    /// Something that this version has no code for.
    Unknown,
}

/// What went wrong, in the caller's memory. Each call that is given one fills it in whole, also where nothing went wrong:
/// the caller need not.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct iommu_error {
    /// What the call returned.
    pub status: iommu_status,
    /// Who has to act.
    pub blame: iommu_blame,
    /// What was left.
    pub left: iommu_left,
    /// The sentence's bytes without its NUL.
    pub length: usize,
    /// One line: which operation, on whom, why, what was left. Cut where it does not fit; empty without an error.
    pub text: [c_char; IOMMU_TEXT_SIZE],
}

impl iommu_error {
    pub(crate) fn of(failure: Option<&Failure>) -> Self {
        let text = failure.map(Text::<IOMMU_TEXT_SIZE>::of);
        Self {
            status: failure.map_or(iommu_status::Ok, Failure::status),
            blame: failure.map_or(iommu_blame::Nobody, Failure::blame),
            left: failure.map_or(iommu_left::Unchanged, Failure::left),
            length: text.as_ref().map_or(0, Text::len),
            text: text.map_or([0; IOMMU_TEXT_SIZE], Text::into_bytes),
        }
    }
}

impl fmt::Debug for iommu_error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("iommu_error").field("status", &self.status).field("left", &self.left).finish_non_exhaustive()
    }
}

/// Why a call failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The border's own.
    Of(iommu_status),
    /// What is wrong with an argument.
    Argument(&'static str),
    Service(Error),
    Cause(Cause),
    Probe(ProbeError),
    Board(DtError),
    Unmapped(MapError),
    NotOffered(NotOffered),
}

impl Failure {
    pub(crate) fn status(&self) -> iommu_status {
        match self {
            Self::Of(status) => *status,
            Self::Argument(_) => iommu_status::InvalidArgument,
            Self::Service(error) => of_cause(&error.cause),
            Self::Cause(cause) => of_cause(cause),
            Self::Probe(ProbeError::NoPower { .. }) => iommu_status::NoPower,
            Self::Probe(ProbeError::OutOfMemory(_)) | Self::Board(DtError::OutOfMemory) => iommu_status::OutOfMemory,
            Self::Probe(ProbeError::SyncTimeout { .. }) => iommu_status::SyncTimeout,
            Self::Probe(_) => iommu_status::ProbeFailed,
            Self::Board(_) => iommu_status::BadDeviceTree,
            Self::Unmapped(_) => iommu_status::NoStreams,
            Self::NotOffered(_) => iommu_status::NotOffered,
        }
    }

    fn blame(&self) -> iommu_blame {
        let cause = match self {
            Self::Of(_) | Self::Argument(_) => return iommu_blame::Caller,
            Self::Probe(_) => return iommu_blame::Hardware,
            Self::Board(DtError::OutOfMemory) => return iommu_blame::Exhausted,
            Self::Board(_) | Self::Unmapped(_) | Self::NotOffered(_) => return iommu_blame::Firmware,
            Self::Service(error) => &error.cause,
            Self::Cause(cause) => cause,
        };
        match cause.blame() {
            Blame::Firmware => iommu_blame::Firmware,
            Blame::Hardware => iommu_blame::Hardware,
            Blame::Exhausted => iommu_blame::Exhausted,
            Blame::Source => iommu_blame::Source,
            _ => iommu_blame::Caller,
        }
    }

    fn left(&self) -> iommu_left {
        let Self::Service(error) = self else { return iommu_left::Unchanged };
        match error.left {
            Left::Unchanged => iommu_left::Unchanged,
            Left::Quarantined => iommu_left::Quarantined,
            Left::PartlyAssigned => iommu_left::PartlyAssigned,
            Left::Going => iommu_left::Going,
            Left::GoingLive => iommu_left::GoingLive,
            Left::Pending => iommu_left::Pending,
            Left::Removed => iommu_left::Removed,
            Left::Stale => iommu_left::Stale,
            Left::Closing => iommu_left::Closing,
            _ => iommu_left::Unknown,
        }
    }
}

fn of_cause(cause: &Cause) -> iommu_status {
    match cause {
        Cause::AlreadyAssigned { .. } => iommu_status::AlreadyAssigned,
        Cause::AlreadyRegistered { .. } => iommu_status::AlreadyRegistered,
        Cause::Busy { .. } => iommu_status::Busy,
        Cause::Denied { .. } => iommu_status::Denied,
        Cause::DomainGone { .. } => iommu_status::DomainGone,
        Cause::NoStreams => iommu_status::NoStreams,
        Cause::Gone => iommu_status::Gone,
        Cause::GroupConflict { .. } => iommu_status::GroupConflict,
        Cause::HasChildren { .. } => iommu_status::HasChildren,
        Cause::Hook { .. } => iommu_status::HookFailed,
        Cause::Incompatible(_) => iommu_status::Incompatible,
        Cause::InUse { .. } => iommu_status::InUse,
        Cause::Iommu { error, .. } => of_driver(error),
        Cause::NotAssigned => iommu_status::NotAssigned,
        Cause::NotFound => iommu_status::NotFound,
        Cause::OutOfMemory => iommu_status::OutOfMemory,
        Cause::ParentMissing => iommu_status::ParentMissing,
        Cause::ProviderMissing(_) => iommu_status::ProviderMissing,
        Cause::Removed => iommu_status::Removed,
        Cause::SourceEnded => iommu_status::SourceEnded,
        Cause::StillInUse { .. } => iommu_status::StillInUse,
        Cause::TimedOut { .. } => iommu_status::TimedOut,
        Cause::WouldDeadlock { .. } => iommu_status::WouldDeadlock,
        _ => iommu_status::Other,
    }
}

fn of_driver(error: &IommuError) -> iommu_status {
    match error {
        IommuError::Busy => iommu_status::Busy,
        IommuError::Incompatible(_) => iommu_status::Incompatible,
        IommuError::Exhausted { .. } => iommu_status::Exhausted,
        IommuError::NoPower(_) => iommu_status::NoPower,
        IommuError::NotResumed(_) => iommu_status::NotResumed,
        IommuError::ProviderGone => iommu_status::ProviderGone,
        IommuError::Foreign(_) => iommu_status::GroupConflict,
        IommuError::InUse => iommu_status::InUse,
        IommuError::OutOfMemory => iommu_status::OutOfMemory,
        IommuError::SyncTimeout(_) => iommu_status::SyncTimeout,
        IommuError::TooWide { .. } => iommu_status::TooWide,
        IommuError::Unsupported => iommu_status::Unsupported,
        IommuError::WriteLost { .. } => iommu_status::WriteLost,
        IommuError::Known => iommu_status::AlreadyRegistered,
        IommuError::Unknown => iommu_status::NotFound,
        _ => iommu_status::Other,
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Of(status) => f.write_str(status.sentence()),
            Self::Argument(what) => f.write_str(what),
            Self::Service(error) => error.fmt(f),
            Self::Cause(cause) => cause.fmt(f),
            Self::Probe(error) => error.fmt(f),
            Self::Board(error) => error.fmt(f),
            Self::Unmapped(error) => error.fmt(f),
            Self::NotOffered(error) => error.fmt(f),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Service(error)
    }
}

impl From<Cause> for Failure {
    fn from(cause: Cause) -> Self {
        Self::Cause(cause)
    }
}

impl From<ProbeError> for Failure {
    fn from(error: ProbeError) -> Self {
        Self::Probe(error)
    }
}

impl From<DtError> for Failure {
    fn from(error: DtError) -> Self {
        Self::Board(error)
    }
}
