//! The operations of the service, by name.

use core::fmt;

/// An operation of the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// `add` a device.
    Add,
    /// `assign` a device or group to a domain.
    Assign,
    /// `crash`: stop an IOMMU instance while the hypervisor is crashing.
    CrashIommu,
    /// `create` a domain.
    CreateDomain,
    /// `deassign` a device or group.
    Deassign,
    /// `destroy` a domain.
    DestroyDomain,
    /// `enable_reports` of an IOMMU instance.
    EnableReports,
    /// `flush` a domain.
    Flush,
    /// `handle_fault` of an IOMMU instance.
    HandleFault,
    /// `quarantine` a group.
    Quarantine,
    /// `reassign` a device or group from one domain to another.
    Reassign,
    /// `redeem` the tables of a domain that has ended.
    RedeemTables,
    /// `register` an IOMMU instance.
    RegisterIommu,
    /// `remove` a device.
    Remove,
    /// `resume` an IOMMU instance.
    ResumeIommu,
    /// `shutdown` of all IOMMU instances: the subject is the first that failed.
    Shutdown,
    /// `suspend` an IOMMU instance.
    SuspendIommu,
    /// `tend_faults` of an IOMMU instance.
    TendFaults,
    /// `unregister` an IOMMU instance.
    UnregisterIommu,
    /// `usage` of an IOMMU instance.
    Usage,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Add => "add",
            Self::Assign => "assign",
            Self::CrashIommu => "crash-stop",
            Self::CreateDomain => "create domain",
            Self::Deassign => "deassign",
            Self::DestroyDomain => "destroy domain",
            Self::EnableReports => "enable reports of",
            Self::Flush => "flush",
            Self::HandleFault => "handle faults of",
            Self::Quarantine => "quarantine",
            Self::Reassign => "reassign",
            Self::RedeemTables => "redeem tables of",
            Self::RegisterIommu => "register",
            Self::Remove => "remove",
            Self::ResumeIommu => "resume",
            Self::Shutdown => "shut down",
            Self::SuspendIommu => "suspend",
            Self::TendFaults => "tend faults of",
            Self::UnregisterIommu => "unregister",
            Self::Usage => "list usage of",
        })
    }
}
