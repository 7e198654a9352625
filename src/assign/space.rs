//! A guest's address space, as the hypervisor describes it and as IOMMUs can follow it.

use core::fmt;

use thiserror::Error;

use super::DomainId;

/// An address in the machine's physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PhysicalAddress(u64);

impl PhysicalAddress {
    /// The byte at `address`.
    #[must_use]
    pub const fn new(address: u64) -> Self {
        Self(address)
    }

    /// The address itself.
    #[must_use]
    pub const fn value(self) -> u64 {
        self.0
    }
}

impl fmt::Display for PhysicalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// The smallest page of a translation table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Granule {
    /// 4 KiB pages.
    Kib4,
    /// 16 KiB pages.
    Kib16,
    /// 64 KiB pages.
    Kib64,
}

impl Granule {
    /// log2 of the page size in bytes.
    #[must_use]
    pub const fn page_shift(self) -> u8 {
        match self {
            Self::Kib4 => 12,
            Self::Kib16 => 14,
            Self::Kib64 => 16,
        }
    }
}

/// A set of granules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granules {
    /// 4 KiB.
    pub kib4: bool,
    /// 16 KiB.
    pub kib16: bool,
    /// 64 KiB.
    pub kib64: bool,
}

impl Granules {
    /// Whether `granule` is in the set.
    #[must_use]
    pub const fn contains(self, granule: Granule) -> bool {
        match granule {
            Granule::Kib4 => self.kib4,
            Granule::Kib16 => self.kib16,
            Granule::Kib64 => self.kib64,
        }
    }

    /// The granules in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self { kib4: self.kib4 && other.kib4, kib16: self.kib16 && other.kib16, kib64: self.kib64 && other.kib64 }
    }
}

/// How the walker's reads of the tables behave towards the CPU's caches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableMemory {
    /// Inner shareable, write-back: for IOMMUs whose walks are coherent with the CPU's caches.
    WriteBackInnerShareable,
    /// Non-cacheable, outer shareable: the hypervisor cleans table bytes to the point of coherency.
    NonCacheable,
}

/// A guest's stage 2, in the words of VTCR_EL2: shared with the CPU, so that it must be told, never chosen here
/// (contract S-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2 {
    /// The first table of the start level.
    pub root: PhysicalAddress,
    /// Size of the guest's physical address space in bits, 25..=48.
    pub ipa_bits: u8,
    /// Level at which a walk starts: 0, 1, 2 or 3.
    pub start_level: u8,
    /// The tables' granule.
    pub granule: Granule,
    /// Size of the addresses that the tables may give out, in bits: 32, 36, 40, 42, 44 or 48.
    pub output_bits: u8,
    /// Attributes of the walker's own reads.
    pub tables: TableMemory,
}

/// A domain's stage 2, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressSpace {
    /// Whose it is. An IOMMU keeps one context for each domain.
    pub domain: DomainId,
    /// The tables.
    pub stage2: Stage2,
}

/// What tables an IOMMU can follow.
///
/// A hypervisor intersects the limits of all IOMMUs that a guest will use before it builds the guest's tables
/// (contract S-2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2Limits {
    /// Most bits of a guest-physical address.
    pub ipa_bits: u8,
    /// Most bits of an output address.
    pub output_bits: u8,
    /// Granules that the walker knows.
    pub granules: Granules,
    /// Walks are coherent with the CPU's caches.
    pub coherent: bool,
    /// Blocks above the last level may be used.
    pub blocks: bool,
}

impl Stage2Limits {
    /// What both can follow.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self {
            ipa_bits: self.ipa_bits.min(other.ipa_bits),
            output_bits: self.output_bits.min(other.output_bits),
            granules: self.granules.intersection(other.granules),
            coherent: self.coherent && other.coherent,
            blocks: self.blocks && other.blocks,
        }
    }
}

/// What of a domain's stage 2 an IOMMU cannot follow.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum Incompatible {
    /// The guest's address space is larger than the IOMMU's input.
    #[error("{wanted}-bit guest addresses, the IOMMU takes {possible}")]
    IpaBits {
        /// Bits of the domain.
        wanted: u8,
        /// Bits of the IOMMU.
        possible: u8,
    },
    /// The tables give out more address bits than the IOMMU can send.
    #[error("{wanted}-bit output addresses, the IOMMU gives {possible}")]
    OutputBits {
        /// Bits of the domain.
        wanted: u8,
        /// Bits of the IOMMU.
        possible: u8,
    },
    /// The walker does not know the granule.
    #[error("a table granule ({0:?}) that the IOMMU lacks")]
    Granule(Granule),
    /// The start level, IPA size and granule do not belong together.
    #[error("start level {start_level} does not fit {ipa_bits}-bit guest addresses with granule {granule:?}")]
    StartLevel {
        /// Start level of the domain.
        start_level: u8,
        /// IPA bits of the domain.
        ipa_bits: u8,
        /// Granule of the domain.
        granule: Granule,
    },
    /// The root is not aligned to the size of the start level's tables, or lies above what the walker can address.
    #[error("table root {root} must be aligned to {alignment:#x} bytes and within the walker's reach")]
    Root {
        /// The root.
        root: PhysicalAddress,
        /// What its address must be a multiple of, in bytes.
        alignment: u64,
    },
    /// The hypervisor's tables are write-back but this IOMMU's walks are not coherent.
    #[error("write-back tables, but the IOMMU's walks are not coherent with the CPU's caches")]
    Coherency,
    /// The root that stands for "nothing is mapped" is too small for this domain's start level.
    #[error("the empty root has {possible:#x} bytes, this start level walks {wanted:#x}")]
    EmptyRoot {
        /// Bytes that the start level's tables take.
        wanted: u64,
        /// Bytes of zeros that the integrator supplied.
        possible: u64,
    },
}
