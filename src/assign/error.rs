//! Errors of the service: which operation, on whom, why, and what was left.

use core::fmt;

use thiserror::Error as ThisError;

use super::{IommuError, IommuKey, Label};

/// An operation of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// `add` a device.
    Add,
    /// `assign` a device or group to a domain.
    Assign,
    /// `create` a domain.
    CreateDomain,
    /// `deassign` a device or group.
    Deassign,
    /// `destroy` a domain.
    DestroyDomain,
    /// `flush` a domain.
    Flush,
    /// `register` an IOMMU instance.
    RegisterIommu,
    /// `reassign` a device or group from one domain to another.
    Reassign,
    /// `remove` a device.
    Remove,
    /// `unregister` an IOMMU instance.
    UnregisterIommu,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Add => "add",
            Self::Assign => "assign",
            Self::CreateDomain => "create domain",
            Self::Deassign => "deassign",
            Self::DestroyDomain => "destroy domain",
            Self::Flush => "flush",
            Self::RegisterIommu => "register iommu",
            Self::Reassign => "reassign",
            Self::Remove => "remove",
            Self::UnregisterIommu => "unregister iommu",
        })
    }
}

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
    #[error("busy: {running} of a device in its group is running; try again")]
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
    #[error("{children} device{} behind it must be removed first", plural(*.children))]
    HasChildren {
        /// How many.
        children: usize,
    },
    /// A hook of the source failed.
    #[error("its {step} failed: {reason}")]
    Hook {
        /// Which hook.
        step: &'static str,
        /// What the source says.
        reason: &'static str,
    },
    /// Something still refers to the object.
    #[error("{devices} device{} still refer{} to it", plural(*.devices), if *.devices == 1 { "s" } else { "" })]
    InUse {
        /// How many.
        devices: usize,
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
    /// No device has this key.
    #[error("no such device is registered")]
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
    #[error("{calls} call{} still inside it; remove it again", if *.calls == 1 { " is" } else { "s are" })]
    StillInUse {
        /// How many.
        calls: u32,
    },
    /// The deadline of a wait form came before the group was free.
    #[error("its group stayed busy until the deadline: {running}")]
    TimedOut {
        /// The operation that was running when time was up.
        running: Operation,
    },
    /// From inside a callback, a wait for this claim could close a circle with the claims above (contract C-4).
    #[error("to wait for the {running} of a device in its group could never end from here; try again later")]
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
                IommuError::SyncTimeout(_) => Blame::Hardware,
                IommuError::TooWide { .. } => Blame::Firmware,
                _ => Blame::Caller,
            },
            _ => Blame::Caller,
        }
    }
}

/// A failed operation: one line that tells an operator what happened, to whom, why, and what to expect now.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[error("{operation} {subject}: {cause}; {left}")]
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
}

const fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}
