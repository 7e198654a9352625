//! What the explorer needs of a universe, whatever stands in it: the service over a fake, or the driver alone.

use iommu_assign::assign::Source;

/// Two devices and what can be done with them.
pub(crate) trait Universe: Send + Sync + Sized + 'static {
    /// How the line of a pair begins.
    const NAME: &'static str;
    /// The operations that have a meaning here.
    const OPS: &'static [Op];

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
}

impl Relation {
    pub(crate) const ALL: [Self; 4] = [Self::SameDevice, Self::SameGroup, Self::ParentChild, Self::SameIommu];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::SameDevice => "same device",
            Self::SameGroup => "same group",
            Self::ParentChild => "parent, child",
            Self::SameIommu => "same IOMMU",
        }
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
}

impl Op {
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
        }
    }
}

/// What an operation answered, as far as a sequential history can tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// It was done, or will be by the operation that it met (a pending removal).
    Done,
    /// It met a claim and did nothing.
    Busy,
    /// A removal overtook it: done, then undone.
    Removed,
    /// Of an operation in several steps: it was stopped between two of them. What is left must be safe, and no more.
    Partial,
    /// It was refused; the text names the cause.
    Refused(String),
}
