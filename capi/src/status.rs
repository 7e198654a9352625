//! What became of a call, as a code.

use core::ffi::c_char;

use crate::border;

/// What became of a call. Values are never given another meaning; new ones come at the end.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum iommu_status {
    /// Done.
    Ok = 0,
    /// A needed pointer is NULL, or a value is none that the parameter has.
    InvalidArgument,
    /// `iommu_init` was not called, or refused.
    NotInitialised,
    /// `iommu_init` was called before.
    AlreadyInitialised,
    /// The platform has no waiter, or its lock does not keep interrupts off, and the call needs that.
    NotSupplied,
    /// The library panicked: a defect. Only with the feature `std`; without it `abort` is called.
    Panicked,
    /// Another operation has the group, domain or IOMMU: nothing changed, try again.
    Busy,
    /// The deadline of a wait form came first.
    TimedOut,
    /// From inside a callback, this wait could never end.
    WouldDeadlock,
    /// Nothing is registered under this key.
    NotFound,
    /// The object was removed or destroyed.
    Gone,
    /// The domain was destroyed.
    DomainGone,
    /// A removal was asked for while the operation ran, and has been carried out.
    Removed,
    /// The source object has gone.
    SourceEnded,
    /// The key is in use.
    AlreadyRegistered,
    /// The device, or one of its group, is assigned already.
    AlreadyAssigned,
    /// The device is assigned to nobody.
    NotAssigned,
    /// The policy did not say yes.
    Denied,
    /// A device that the hardware cannot tell from this one has another owner.
    GroupConflict,
    /// Devices behind this one must be removed first.
    HasChildren,
    /// Something still refers to the object.
    InUse,
    /// Calls are inside the device: its DMA is cut, remove it again.
    StillInUse,
    /// The device has no stream at any IOMMU.
    NoStreams,
    /// The device that it stands behind is not registered.
    ParentMissing,
    /// An IOMMU that its streams name is not registered.
    ProviderMissing,
    /// The IOMMU was taken out of service.
    ProviderGone,
    /// One of the integrator's hooks failed.
    HookFailed,
    /// Memory could not be reserved.
    OutOfMemory,
    /// Entries, banks or VMIDs are used up.
    Exhausted,
    /// The IOMMU cannot follow the domain's tables.
    Incompatible,
    /// A stream ID or mask does not fit the hardware.
    TooWide,
    /// The IOMMU has no power.
    NoPower,
    /// The IOMMU did not come back from its suspension.
    NotResumed,
    /// The hardware did not confirm an invalidation in time.
    SyncTimeout,
    /// A register did not keep what was written.
    WriteLost,
    /// The IOMMU's driver cannot do that.
    Unsupported,
    /// The IOMMU cannot be driven: the sentence says why.
    ProbeFailed,
    /// The device tree is malformed, or a node in it.
    BadDeviceTree,
    /// Firmware describes the device or bridge in a way that leaves nothing to assign: the sentence says why.
    NotOffered,
    /// Something that this version has no code for: the sentence says what.
    Other,
}

impl iommu_status {
    /// All of them, in the order of their values.
    const ALL: [Self; 40] = [
        Self::Ok,
        Self::InvalidArgument,
        Self::NotInitialised,
        Self::AlreadyInitialised,
        Self::NotSupplied,
        Self::Panicked,
        Self::Busy,
        Self::TimedOut,
        Self::WouldDeadlock,
        Self::NotFound,
        Self::Gone,
        Self::DomainGone,
        Self::Removed,
        Self::SourceEnded,
        Self::AlreadyRegistered,
        Self::AlreadyAssigned,
        Self::NotAssigned,
        Self::Denied,
        Self::GroupConflict,
        Self::HasChildren,
        Self::InUse,
        Self::StillInUse,
        Self::NoStreams,
        Self::ParentMissing,
        Self::ProviderMissing,
        Self::ProviderGone,
        Self::HookFailed,
        Self::OutOfMemory,
        Self::Exhausted,
        Self::Incompatible,
        Self::TooWide,
        Self::NoPower,
        Self::NotResumed,
        Self::SyncTimeout,
        Self::WriteLost,
        Self::Unsupported,
        Self::ProbeFailed,
        Self::BadDeviceTree,
        Self::NotOffered,
        Self::Other,
    ];

    /// What it means, without whom and where.
    pub(crate) const fn sentence(self) -> &'static str {
        match self {
            Self::Ok => "done",
            Self::InvalidArgument => "an argument is NULL or has a value that it cannot have",
            Self::NotInitialised => "iommu_init was not called",
            Self::AlreadyInitialised => "iommu_init was called before",
            Self::NotSupplied => "the platform does not supply what the call needs",
            Self::Panicked => "the library panicked, which is a defect of it",
            Self::Busy => "another operation is running: try again",
            Self::TimedOut => "the deadline came first",
            Self::WouldDeadlock => "the wait could never end from inside this callback",
            Self::NotFound => "nothing is registered under this key",
            Self::Gone => "it was removed",
            Self::DomainGone => "the domain does not exist any more",
            Self::Removed => "it was removed while the operation ran",
            Self::SourceEnded => "its source has gone",
            Self::AlreadyRegistered => "the key is in use",
            Self::AlreadyAssigned => "it is assigned already",
            Self::NotAssigned => "it is assigned to no domain",
            Self::Denied => "the policy does not allow it",
            Self::GroupConflict => "a device that cannot be told from it has another owner",
            Self::HasChildren => "devices behind it must be removed first",
            Self::InUse => "something still refers to it",
            Self::StillInUse => "calls are inside the device",
            Self::NoStreams => "it has no stream at any IOMMU",
            Self::ParentMissing => "the device that it stands behind is not registered",
            Self::ProviderMissing => "an IOMMU that its streams name is not registered",
            Self::ProviderGone => "the IOMMU is out of service",
            Self::HookFailed => "a hook failed",
            Self::OutOfMemory => "out of memory",
            Self::Exhausted => "the hardware has no more entries, banks or VMIDs",
            Self::Incompatible => "the IOMMU cannot follow the domain's tables",
            Self::TooWide => "a stream ID or mask does not fit the hardware",
            Self::NoPower => "the IOMMU has no power",
            Self::NotResumed => "the IOMMU did not come back",
            Self::SyncTimeout => "the IOMMU did not confirm an invalidation",
            Self::WriteLost => "a register did not keep what was written",
            Self::Unsupported => "the IOMMU's driver cannot do that",
            Self::ProbeFailed => "the IOMMU cannot be driven",
            Self::BadDeviceTree => "the device tree cannot be followed",
            Self::NotOffered => "firmware's description leaves nothing to assign",
            Self::Other => "an error that this interface has no code for",
        }
    }
}

/// What a status means, as a sentence in the caller's buffer; who and where stands in `struct iommu_error`.
///
/// @param status any value, also one that this version does not know.
/// @param text may be NULL with a `size` of 0.
/// @return the sentence's length without its NUL. Where it is not below `size`, it was cut.
///
/// Context: any, interrupts included, also before `iommu_init`.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_status_describe(status: u32, text: *mut c_char, size: usize) -> usize {
    let known = usize::try_from(status).ok().and_then(|index| iommu_status::ALL.get(index));
    border::describe(&known.map_or("an unknown status", |status| status.sentence()), text, size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_statuses_is_in_the_order_of_their_values() {
        for (index, status) in iommu_status::ALL.into_iter().enumerate() {
            assert_eq!(status as usize, index, "{status:?}");
        }
        assert_eq!(iommu_status::ALL.last(), Some(&iommu_status::Other));
    }
}
