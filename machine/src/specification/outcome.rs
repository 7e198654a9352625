//! What an operation came to, in classes that the contract tells apart.

use std::collections::BTreeSet;

use iommu_assign::assign::{Cause, Error, IommuError, Left, Resource};

use crate::op::{Ask, Guest, Side, Slot};

/// What an operation came to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Nobody could have asked for it: there is no handle to ask with, or nothing to map.
    Skipped,
    /// It was done.
    Done,
    /// It was done; these devices keep a shared stream translated.
    Deassigned(BTreeSet<Slot>),
    /// It was removed; these devices keep a shared stream translated.
    Removed(BTreeSet<Slot>),
    /// It will be removed by the operation that has its group, when that ends.
    Pending,
    /// A transaction to the first page ended in the memory of a guest, or in a fault.
    Reached(Option<Guest>),
    /// A transaction to the second page ended in the memory of a guest, there in the named one of two frames, or in a
    /// fault.
    ReachedSecond(Option<(Guest, bool)>),
    /// The worker answered this request.
    Worked(Ask, Box<Self>),
    /// The worker has nothing to do now; so many requests wait for a claim to end.
    Idle(usize),
    /// What became of each device, in the order in which they came or went.
    Each(Vec<(Slot, Self)>),
    /// It was refused, or failed, and left this.
    Failed(Refusal, After),
}

/// What a failure left. The library's own type has no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum After {
    /// Nothing changed.
    Unchanged,
    /// In fault, owned by no guest.
    Quarantined,
    /// Assigned still, and perhaps not at each SMMU.
    PartlyAssigned,
    /// In fault, registered, and on its way out.
    Going,
    /// On its way out, and not cut off.
    GoingLive,
    /// Gone.
    Removed,
    /// An SMMU may use what was to be forgotten.
    Stale,
    /// An SMMU takes nothing new, and is not out of service.
    Closing,
    /// Everything was undone that had been done.
    Undone,
    /// Virtual functions are on, and some may be registered.
    SwitchedOn,
    /// What an overlay brought is on its way out still.
    Unfinished,
}

/// Why an operation was not done, without the names that an error carries beside that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the names are those of `Cause` and `IommuError`")]
pub enum Refusal {
    AlreadyAssigned,
    AlreadyOn,
    AlreadyRegistered,
    AppliedAlready,
    Busy,
    Cancelled,
    Denied,
    DomainGone,
    Exhausted(Side, Lacking),
    Gone,
    GroupConflict,
    HasChildren,
    Hook,
    InUse,
    /// An SMMU without power.
    NoPower(Side),
    /// An SMMU that is on its way out, or that somebody else is changing.
    IommuBusy(Side),
    NoStreams,
    NotAssigned,
    NotFound,
    NotRegistered,
    ParentMissing,
    /// An SMMU was not put into service because its probe failed.
    Probe(Side),
    ProviderGone(Side),
    ProviderMissing(Side),
    Removed,
    SyncTimeout(Side),
    TooWide(Side),
    VirtualRegistered,
    /// Nothing that a single caller on this machine should ever see.
    Unexpected,
}

/// What an SMMU ran out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lacking {
    /// Stream-map entries.
    Entries,
    /// Context banks.
    Banks,
    /// Anything else.
    Other,
}

impl Outcome {
    /// A refusal that changed nothing.
    #[must_use]
    pub const fn refused(refusal: Refusal) -> Self {
        Self::Failed(refusal, After::Unchanged)
    }

    /// Whether the contract wants that the operation wrote no register.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            // What a timed-out flush invalidated is a write, and so is an add that is taken back at a second SMMU.
            Self::Failed(Refusal::SyncTimeout(_) | Refusal::Exhausted(_, Lacking::Entries), _) => false,
            Self::Failed(Refusal::Probe(_), _) => false,
            Self::Failed(Refusal::NoPower(_), After::Stale | After::Closing) => true,
            Self::Failed(_, left) => matches!(left, After::Unchanged),
            Self::Worked(_, outcome) => outcome.is_refusal(),
            _ => false,
        }
    }
}

impl From<&Error> for Outcome {
    fn from(error: &Error) -> Self {
        let left = match error.left {
            Left::Unchanged => After::Unchanged,
            Left::Quarantined => After::Quarantined,
            Left::Going => After::Going,
            Left::GoingLive => After::GoingLive,
            Left::Removed => After::Removed,
            Left::Stale => After::Stale,
            Left::Closing => After::Closing,
            _ => After::PartlyAssigned,
        };
        Self::Failed(Refusal::from(&error.cause), left)
    }
}

impl From<&Cause> for Refusal {
    fn from(cause: &Cause) -> Self {
        match cause {
            Cause::AlreadyAssigned { .. } => Self::AlreadyAssigned,
            Cause::AlreadyRegistered { .. } => Self::AlreadyRegistered,
            Cause::Busy { .. } => Self::Busy,
            Cause::Cancelled => Self::Cancelled,
            Cause::Denied { .. } => Self::Denied,
            Cause::DomainGone { .. } => Self::DomainGone,
            Cause::NoStreams => Self::NoStreams,
            Cause::Gone => Self::Gone,
            Cause::GroupConflict { .. } => Self::GroupConflict,
            Cause::HasChildren { .. } => Self::HasChildren,
            Cause::Hook { .. } => Self::Hook,
            Cause::InUse { .. } => Self::InUse,
            Cause::Iommu { iommu, error } => {
                Side::of(*iommu).map_or(Self::Unexpected, |side| Self::of_iommu(side, *error))
            }
            Cause::NotAssigned => Self::NotAssigned,
            Cause::NotFound => Self::NotFound,
            Cause::ParentMissing => Self::ParentMissing,
            Cause::ProviderMissing(iommu) => Side::of(*iommu).map_or(Self::Unexpected, Self::ProviderMissing),
            Cause::Removed => Self::Removed,
            _ => Self::Unexpected,
        }
    }
}

impl Refusal {
    const fn of_iommu(side: Side, error: IommuError) -> Self {
        match error {
            IommuError::Exhausted { resource, .. } => Self::Exhausted(
                side,
                match resource {
                    Resource::StreamMapEntries => Lacking::Entries,
                    Resource::ContextBanks => Lacking::Banks,
                    _ => Lacking::Other,
                },
            ),
            IommuError::Busy => Self::IommuBusy(side),
            IommuError::NoPower(_) => Self::NoPower(side),
            IommuError::ProviderGone => Self::ProviderGone(side),
            IommuError::SyncTimeout(_) => Self::SyncTimeout(side),
            IommuError::TooWide { .. } => Self::TooWide(side),
            _ => Self::Unexpected,
        }
    }
}
