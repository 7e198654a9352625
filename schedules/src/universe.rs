//! What the explorer needs of a universe, whatever stands in it: the service over a fake, or the driver alone.

use iommu_assign::assign::Source;

/// Two devices and what can be done with them.
pub(crate) trait Universe: Send + Sync + Sized + 'static {
    /// How the line of a pair begins.
    const NAME: &'static str;
    /// The operations that have a meaning here.
    const OPS: &'static [Op];
    /// Whether [`Relation::GROUPS`] and [`Op::FAILING`] have a meaning here too.
    const FURTHER: bool;

    fn new(relation: Relation, sources: [Source; 2]) -> Self;

    /// Brings the universe to where `op` on device `n` makes sense.
    fn prepare(&self, op: Op, n: usize);

    /// Runs one operation.
    fn run(&self, op: Op, n: usize) -> Answer;

    /// The whole state in words that do not depend on the order of registrations.
    fn state(&self) -> String;

    /// Everything can be taken down, and nothing is left.
    fn take_down(&self);
}

/// How two devices stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relation {
    /// Both operations are about one device.
    SameDevice,
    /// The two devices share a stream.
    SameGroup,
    /// The second stands behind the first.
    ParentChild,
    /// They share nothing but their IOMMU.
    SameIommu,
    /// They share a bus that does not keep them apart, and no stream.
    SameBus,
    /// They share a stream on each of two IOMMUs.
    TwoIommus,
    /// The second stands behind the first and shares its stream.
    SharingParent,
}

impl Relation {
    /// Those in which every pair is explored.
    pub(crate) const EVERY_PAIR: [Self; 4] = [Self::SameDevice, Self::SameGroup, Self::ParentChild, Self::SameIommu];
    /// Those in which pairs of the operations are explored that groups are made and taken apart by.
    pub(crate) const GROUPS: [Self; 3] = [Self::SameBus, Self::TwoIommus, Self::SharingParent];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::SameDevice => "same device",
            Self::SameGroup => "same group",
            Self::ParentChild => "parent, child",
            Self::SameIommu => "same IOMMU",
            Self::SameBus => "same bus",
            Self::TwoIommus => "two IOMMUs",
            Self::SharingParent => "parent shares",
        }
    }

    /// Whether the second device stands behind the first.
    pub(crate) const fn is_behind(self) -> bool {
        matches!(self, Self::ParentChild | Self::SharingParent)
    }

    pub(crate) const fn shares_stream(self) -> bool {
        matches!(self, Self::SameGroup | Self::TwoIommus | Self::SharingParent)
    }
}

/// An operation on device 0 or 1 of a universe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Add,
    Remove,
    RemoveTree,
    Assign,
    Deassign,
    Reassign,
    DestroyDomain,
    Flush,
    Fault,
    UnregisterIommu,
    /// Quarantine the whole group.
    Quarantine,
    /// Assign from quarantine: drain, quiesce and reset first.
    Cleanse,
    /// Its drain is not confirmed, if this thread waits for it.
    LossyDeassign,
    /// The same.
    LossyRemove,
    /// Without power on the IOMMU, or on the second one of two.
    PowerlessDeassign,
}

impl Op {
    /// Explored in every relation of [`Relation::EVERY_PAIR`], with each other.
    pub(crate) const ALL: [Self; 10] = [
        Self::Add,
        Self::Remove,
        Self::RemoveTree,
        Self::Assign,
        Self::Deassign,
        Self::Reassign,
        Self::DestroyDomain,
        Self::Flush,
        Self::Fault,
        Self::UnregisterIommu,
    ];

    /// What makes groups and takes them apart.
    pub(crate) const GROUPING: [Self; 5] = [Self::Add, Self::Remove, Self::Assign, Self::Deassign, Self::Reassign];

    /// What goes wrong, or follows on what did.
    pub(crate) const FAILING: [Self; 5] =
        [Self::Quarantine, Self::Cleanse, Self::LossyDeassign, Self::LossyRemove, Self::PowerlessDeassign];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Remove => "remove",
            Self::RemoveTree => "remove tree",
            Self::Assign => "assign",
            Self::Deassign => "deassign",
            Self::Reassign => "reassign",
            Self::DestroyDomain => "destroy",
            Self::Flush => "flush",
            Self::Fault => "fault",
            Self::UnregisterIommu => "unregister",
            Self::Quarantine => "quarantine",
            Self::Cleanse => "cleanse",
            Self::LossyDeassign => "lossy deass.",
            Self::LossyRemove => "lossy remove",
            Self::PowerlessDeassign => "dark deass.",
        }
    }

    /// What it may come to: another thread may carry out what this one asked for, and its drain is not lost.
    pub(crate) fn meanings(self) -> Vec<Self> {
        if self == Self::LossyRemove { vec![self, Self::Remove] } else { vec![self] }
    }

    /// Whether it removes one device.
    pub(crate) const fn removes(self) -> bool {
        matches!(self, Self::Remove | Self::RemoveTree | Self::LossyRemove)
    }
}

/// What an operation answered, as far as a sequential history can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It was done.
    Done,
    /// A removal that the operation that it met carries out, or has tried to.
    Pending,
    /// It met a claim and did nothing.
    Busy,
    /// A removal overtook it: done, then undone.
    Removed,
    /// Of an operation in several steps: it was stopped between two of them. What is left must be safe, and no more.
    Partial,
    /// It was refused; the text names the cause.
    Refused(String),
}

impl Answer {
    /// Whether a sequential history's answer explains this one. A pending removal may come to nothing: the drain of whoever
    /// carries it out may be lost, and a device whose add is refused was never there.
    pub(crate) fn is_explained_by(&self, sequential: &Self) -> bool {
        let ends = |told: &Self| match told {
            Self::Done => true,
            Self::Refused(cause) => matches!(cause.as_str(), "Iommu" | "Gone"),
            _ => false,
        };
        self == sequential || (*self == Self::Pending && ends(sequential))
    }
}
