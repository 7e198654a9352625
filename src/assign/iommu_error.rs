//! What an IOMMU driver says: why it did not do something, who uses what, and what is not as it believes.

use core::fmt;

use thiserror::Error;

use super::{DeviceId, DomainId, Incompatible, IommuKey, Stream};
use crate::sync::Waited;

/// What an IOMMU can run out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resource {
    /// Stream-map entries.
    StreamMapEntries,
    /// Contexts for address spaces.
    ContextBanks,
    /// Tags for cached translations.
    Vmids,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StreamMapEntries => "stream-map entries",
            Self::ContextBanks => "context banks",
            Self::Vmids => "VMIDs",
        })
    }
}

/// Why an IOMMU driver did not do what it was asked.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum IommuError {
    /// Another caller is changing the same device, or an operation that is under way there does not end in time.
    #[error("another operation there is still running")]
    Busy,
    /// The domain's tables cannot be followed here.
    #[error("{0}")]
    Incompatible(Incompatible),
    /// The hardware has no more of something.
    #[error("out of {resource}: {needed} more needed, {free} of {total} free")]
    Exhausted {
        /// What ran out.
        resource: Resource,
        /// How many the operation lacks.
        needed: usize,
        /// How many are free.
        free: usize,
        /// How many there are.
        total: usize,
    },
    /// The device is published already.
    #[error("the device is registered here already")]
    Known,
    /// The instance has no power, and could not get it.
    #[error("it has no power: {0}")]
    NoPower(&'static str),
    /// The instance could not be brought back.
    #[error("it did not come back: {0}")]
    NotResumed(&'static str),
    /// The instance was taken out of service.
    #[error("it is out of service")]
    ProviderGone,
    /// A stream-map entry that the streams fall in has a user outside the caller's claim.
    #[error("{0} uses a stream-map entry that the streams fall in")]
    Foreign(DeviceId),
    /// A device is in the domain still.
    #[error("a device is in the domain still")]
    InUse,
    /// Memory could not be reserved.
    #[error("out of memory")]
    OutOfMemory,
    /// The hardware did not confirm an invalidation.
    #[error("it did not confirm an invalidation within {0}")]
    SyncTimeout(Waited),
    /// A stream ID or mask has bits that the hardware does not keep.
    #[error("stream {stream} does not fit: the hardware keeps ID bits {id_bits:#x} and mask bits {mask_bits:#x}")]
    TooWide {
        /// The stream.
        stream: Stream,
        /// ID bits that can be written.
        id_bits: u32,
        /// Mask bits that can be written.
        mask_bits: u32,
    },
    /// The device was never published, or was withdrawn.
    #[error("the device is not registered here")]
    Unknown,
    /// The driver has no such function.
    #[error("its driver cannot do that")]
    Unsupported,
    /// A register does not hold what was written to it (contract A-7; found in read-back mode).
    #[error("a write to {register} did not hold")]
    WriteLost {
        /// The manual's name of the register.
        register: &'static str,
    },
}

/// One of something scarce that is in use, by whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// What it is one of.
    pub resource: Resource,
    /// Its number.
    pub index: u8,
    /// A device that uses it; reported once for each.
    pub device: Option<DeviceId>,
    /// The domain that it serves now.
    pub domain: Option<DomainId>,
}

/// One thing that is not as the driver believes (contract A-10).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Difference {
    /// The instance.
    pub iommu: IommuKey,
    /// Which register or count, as the manual or the driver calls it.
    pub what: &'static str,
    /// Its index, where there are several.
    pub index: usize,
    /// What the driver believes.
    pub expected: u64,
    /// What was found.
    pub found: u64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}[{}]: expected {:#x}, found {:#x}",
            self.iommu, self.what, self.index, self.expected, self.found
        )
    }
}

impl fmt::Debug for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Difference({self})")
    }
}
