//! Errors of the service: which operation, on whom, why, and what was left.

use core::fmt;

use thiserror::Error as ThisError;

use super::{Incompatible, IommuError, IommuKey, Label, Operation};

/// Who has to act on an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Blame {
    /// The caller asked for something that the state or the policy does not allow.
    Caller,
    /// Firmware described the device in a way that cannot be honoured.
    Firmware,
    /// The hardware did not do what its manual says.
    Hardware,
    /// Something of which there is a fixed number is used up.
    Exhausted,
    /// The source's own hook failed.
    Source,
}

impl fmt::Display for Blame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Caller => "caller",
            Self::Firmware => "firmware",
            Self::Hardware => "hardware",
            Self::Exhausted => "exhausted",
            Self::Source => "source",
        })
    }
}

/// What a failed operation left behind (contract A-1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Left {
    /// Nothing changed, in software or hardware.
    Unchanged,
    /// The device is in fault, or reaches only its scratch page, and is owned by no domain. An assign does first what it lacks.
    Quarantined,
    /// The device is assigned as before, but only some of its streams still translate. Deassign it again.
    PartlyAssigned,
    /// The device is in fault and refuses every call: it is on its way out, and goes when it is removed again.
    Going,
    /// The device refuses every call and is on its way out, but its DMA could not be cut. Remove it again.
    GoingLive,
    /// The device is as it was, but refuses every call: the operation that has its group removes it when it ends.
    Pending,
    /// The device is removed. Where the cause is an IOMMU that is out of service, that faults everything and was not written.
    Removed,
    /// An IOMMU may still use translations that were to be forgotten: what was unmapped can still be reached. Flush again.
    Stale,
    /// The IOMMU takes nothing new, and is not out of service yet: what it translated may still get through. Call again.
    Closing,
}

impl fmt::Display for Left {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unchanged => "nothing changed",
            Self::Quarantined => "the device is quarantined",
            Self::PartlyAssigned => {
                "the device is still assigned, and some of its streams reach the domain: deassign it again"
            }
            Self::Going => "the device is in fault and going: remove it again",
            Self::GoingLive => "the device is going, but its DMA is not cut: remove it again",
            Self::Pending => "the running operation removes the device when it ends",
            Self::Removed => "the device is removed",
            Self::Stale => "old translations may still be in use: flush it again",
            Self::Closing => "the IOMMU takes nothing new but is not out of service: call again",
        })
    }
}

/// Why two devices cannot have different owners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConflictReason {
    /// Their streams, or the entries that capture them, overlap at this IOMMU.
    SharedStream(IommuKey),
    /// Their bus does not keep them apart (missing ACS, or a bridge that hides who asked).
    SharedBus,
}

impl fmt::Display for ConflictReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SharedStream(iommu) => write!(f, "their streams overlap at {iommu}"),
            Self::SharedBus => f.write_str("their bus does not isolate them from each other"),
        }
    }
}

/// Why an operation failed.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum Cause {
    /// The device or its group is assigned already.
    #[error("it is assigned to {domain} already")]
    AlreadyAssigned {
        /// Its owner.
        domain: Label,
    },
    /// The key is in use.
    #[error("{by} is registered under the same key already")]
    AlreadyRegistered {
        /// Who has the key.
        by: Label,
    },
    /// Another operation on the same group runs.
    #[error("busy with another operation ({running}); try again")]
    Busy {
        /// The running operation.
        running: Operation,
    },
    /// Its request was cancelled before it started.
    #[error("it was cancelled")]
    Cancelled,
    /// The policy did not say yes.
    #[error("the policy does not allow it to go to {domain}")]
    Denied {
        /// The domain that was asked for.
        domain: Label,
    },
    /// The domain was destroyed, or is another service's.
    #[error("domain {domain} does not exist any more")]
    DomainGone {
        /// The domain that was asked for.
        domain: Label,
    },
    /// The device has no streams on any IOMMU: nothing could confine it.
    #[error("it has no stream at any IOMMU, so that nothing could confine its DMA")]
    NoStreams,
    /// The object was removed or destroyed.
    #[error("it was removed")]
    Gone,
    /// A device of the same group has another owner.
    #[error("{with} of the same group has another owner: {reason}")]
    GroupConflict {
        /// The device that has another owner.
        with: Label,
        /// Why the hardware cannot tell them apart.
        reason: ConflictReason,
    },
    /// The device has children that must be removed first.
    #[error("{} behind it must be removed first", Counted(first, *children))]
    HasChildren {
        /// How many.
        children: usize,
        /// The one with the least key.
        first: Label,
    },
    /// A hook of the source failed.
    #[error("its {step} failed: {reason}")]
    Hook {
        /// Which hook.
        step: &'static str,
        /// What the source says.
        reason: &'static str,
    },
    /// No SMMU could follow the domain's tables.
    #[error("{0}")]
    Incompatible(Incompatible),
    /// Devices still refer to the object.
    #[error("{} still {} it", Counted(first, *devices), if *devices == 1 { "uses" } else { "use" })]
    InUse {
        /// How many.
        devices: usize,
        /// The one with the least key.
        first: Label,
    },
    /// An IOMMU driver refused or failed.
    #[error("{iommu}: {error}")]
    Iommu {
        /// The instance.
        iommu: IommuKey,
        /// What it says.
        error: IommuError,
    },
    /// The device is assigned to nobody.
    #[error("it is assigned to no domain")]
    NotAssigned,
    /// Nothing is registered under this name.
    #[error("nothing of this name is registered")]
    NotFound,
    /// Memory could not be reserved.
    #[error("out of memory")]
    OutOfMemory,
    /// The parent is not registered, or is being removed.
    #[error("its parent is not registered, or is being removed")]
    ParentMissing,
    /// An IOMMU that the device's streams name is not registered.
    #[error("{0}, which its streams name, is not registered (disabled by firmware, or not probed yet)")]
    ProviderMissing(IommuKey),
    /// A removal overtook the operation.
    #[error("it was removed meanwhile")]
    Removed,
    /// The source object that its registration would end with has ended (contract C-7).
    #[error("the source object that it was to go with has gone already")]
    SourceEnded,
    /// Calls are inside a device that is to go.
    #[error("{calls} call{} still inside it", if *.calls == 1 { " is" } else { "s are" })]
    StillInUse {
        /// How many.
        calls: u32,
    },
    /// The deadline of a wait form came before the group was free.
    #[error("another operation ({running}) had it until the deadline")]
    TimedOut {
        /// The operation that was running when time was up.
        running: Operation,
    },
    /// From inside a callback, a wait for this claim could close a circle with the claims above (contract C-4).
    #[error("another operation ({running}) has it, and a wait for that from here could never end; try again later")]
    WouldDeadlock {
        /// The operation that holds the claim.
        running: Operation,
    },
}

impl Cause {
    /// Another operation runs.
    pub(super) const fn busy(running: Operation) -> Self {
        Self::Busy { running }
    }

    /// Who has to act.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Hook { .. } => Blame::Source,
            Self::NoStreams | Self::ProviderMissing(_) => Blame::Firmware,
            Self::OutOfMemory => Blame::Exhausted,
            Self::Iommu { error, .. } => match error {
                IommuError::Exhausted { .. } | IommuError::OutOfMemory => Blame::Exhausted,
                IommuError::NotResumed(_) | IommuError::SyncTimeout(_) | IommuError::WriteLost { .. } => {
                    Blame::Hardware
                }
                IommuError::TooWide { .. } => Blame::Firmware,
                _ => Blame::Caller,
            },
            _ => Blame::Caller,
        }
    }
}

/// A failed operation: one line that tells an operator what happened, to whom, why, and what to expect now.
///
/// `docs/errors.md` shows the line of every cause.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("{operation} {subject}: {}; {left}", Reason(subject, cause))]
#[non_exhaustive]
pub struct Error {
    /// The operation.
    pub operation: Operation,
    /// The device, domain or IOMMU that it was about.
    pub subject: Label,
    /// Why it failed.
    pub cause: Cause,
    /// What it left.
    pub left: Left,
}

impl Error {
    /// An error that left everything as it was.
    pub(super) const fn unchanged(operation: Operation, subject: Label, cause: Cause) -> Self {
        Self { operation, subject, cause, left: Left::Unchanged }
    }

    /// What is said of a removal that another operation carries out when it ends.
    pub(crate) const fn removal_is_pending(subject: Label) -> Self {
        let cause = Cause::busy(Operation::Remove);
        Self { operation: Operation::Remove, subject, cause, left: Left::Pending }
    }

    /// Tries again what meets another operation, as long as `again` says so.
    pub(crate) fn while_busy<T>(
        again: &mut dyn FnMut() -> bool,
        mut attempt: impl FnMut() -> Result<T, Self>,
    ) -> Result<T, Self> {
        loop {
            match attempt() {
                Err(Self { cause: Cause::Busy { .. }, .. }) if again() => {}
                result => return result,
            }
        }
    }

    /// A result whose failure was said in one line of log. Only called where nothing is locked (contract C-3).
    pub(super) fn reported<T>(result: Result<T, Self>) -> Result<T, Self> {
        match &result {
            Ok(_) | Err(Self { cause: Cause::Busy { .. }, .. }) => {}
            Err(error) => warn(error),
        }
        result
    }

    /// An error of an operation on an IOMMU instance.
    pub(super) const fn of_iommu(operation: Operation, iommu: IommuKey, cause: Cause) -> Self {
        Self::unchanged(operation, Label::of_iommu(iommu), cause)
    }
}

/// A line of log. It is written where nothing else is on the stack for it.
#[cold]
#[inline(never)]
fn warn(error: &Error) {
    log::warn!("{error}");
}

/// A cause, told of a subject: an IOMMU that is the subject is not named twice.
struct Reason<'a>(&'a Label, &'a Cause);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(subject, Cause::Iommu { iommu, error }) if **subject == Label::of_iommu(*iommu) => error.fmt(f),
            Self(_, cause) => cause.fmt(f),
        }
    }
}

/// The first of some devices, and how many others there are.
struct Counted<'a>(&'a Label, usize);

impl fmt::Display for Counted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1.saturating_sub(1) {
            0 => self.0.fmt(f),
            1 => write!(f, "{} and 1 other device", self.0),
            others => write!(f, "{} and {others} other devices", self.0),
        }
    }
}

#[cfg(test)]
#[path = "error_tests.rs"]
mod tests;
