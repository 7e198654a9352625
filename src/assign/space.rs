//! A guest's address space, as the hypervisor describes it and as IOMMUs can follow it.

use core::fmt;

use thiserror::Error;

use super::DomainId;

/// An address in the machine's physical memory.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

impl fmt::Debug for PhysicalAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PhysicalAddress({self})")
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

impl fmt::Display for Granule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kib4 => "4 KiB",
            Self::Kib16 => "16 KiB",
            Self::Kib64 => "64 KiB",
        })
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

impl Stage2 {
    /// The widest address of the architecture, in bits.
    const WIDEST: u8 = 48;

    /// Whether there could be an SMMUv1/v2 that follows these tables, whatever it implements.
    ///
    /// # Errors
    ///
    /// What no SMMU can follow.
    pub fn check(&self) -> Result<(), Incompatible> {
        let Self { root, ipa_bits, start_level, granule, output_bits, .. } = *self;
        let alignment = self.root_bytes().ok_or(Incompatible::StartLevel { start_level, ipa_bits, granule })?;
        if !matches!(output_bits, 32 | 36 | 40 | 42 | 44 | 48) {
            return Err(Incompatible::OutputSize(output_bits));
        }
        if root.value() & alignment.wrapping_sub(1) != 0 {
            return Err(Incompatible::Root { root, alignment });
        }
        if root.value() >> Self::WIDEST != 0 {
            return Err(Incompatible::RootReach { root, possible: Self::WIDEST });
        }
        Ok(())
    }

    /// How many bytes the start level's tables take, to which the root must be aligned; `None` where start level, IPA size
    /// and granule do not belong together (IHI 0062D, TTBR0 alignment). Up to 16 tables can be concatenated.
    #[must_use]
    pub fn root_bytes(&self) -> Option<u64> {
        let size = 64_u8.checked_sub(self.ipa_bits)?;
        let (range, sum) = match (self.granule, self.start_level) {
            (Granule::Kib4, 0) => (16..=24, 28),
            (Granule::Kib4, 1) => (21..=33, 37),
            (Granule::Kib4, 2) => (30..=39, 46),
            (Granule::Kib16, 1) => (16..=27, 31),
            (Granule::Kib16, 2) => (24..=38, 42),
            (Granule::Kib16, 3) => (35..=39, 53),
            (Granule::Kib64, 1) => (16..=21, 25),
            (Granule::Kib64, 2) => (18..=34, 38),
            (Granule::Kib64, 3) => (31..=39, 51),
            _ => return None,
        };
        let shift = range.contains(&size).then(|| u8::checked_sub(sum, size))??;
        1_u64.checked_shl(u32::from(shift))
    }
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
    #[error("the domain has {wanted}-bit guest addresses, and the IOMMU takes {possible}")]
    IpaBits {
        /// Bits of the domain.
        wanted: u8,
        /// Bits of the IOMMU.
        possible: u8,
    },
    /// The tables give out more address bits than the IOMMU can send.
    #[error("the domain's tables give out {wanted}-bit addresses, and the IOMMU sends {possible}")]
    OutputBits {
        /// Bits of the domain.
        wanted: u8,
        /// Bits of the IOMMU.
        possible: u8,
    },
    /// No translation control has such an output size.
    #[error("the domain's tables give out {0}-bit addresses, and a walker knows 32, 36, 40, 42, 44 and 48")]
    OutputSize(u8),
    /// The walker does not know the granule.
    #[error("the domain's tables have a granule of {0}, which the IOMMU lacks")]
    Granule(Granule),
    /// The start level, IPA size and granule do not belong together.
    #[error(
        "a walk cannot start at level {start_level} for {ipa_bits}-bit guest addresses with a granule of {granule}"
    )]
    StartLevel {
        /// Start level of the domain.
        start_level: u8,
        /// IPA bits of the domain.
        ipa_bits: u8,
        /// Granule of the domain.
        granule: Granule,
    },
    /// The root is not aligned to the size of the start level's tables.
    #[error("the domain's table root {root} is not aligned to the {alignment:#x} bytes of its start level")]
    Root {
        /// The root.
        root: PhysicalAddress,
        /// What its address must be a multiple of, in bytes.
        alignment: u64,
    },
    /// The root lies above what the walker can address.
    #[error("the domain's table root {root} lies beyond the {possible} address bits of the walker")]
    RootReach {
        /// The root.
        root: PhysicalAddress,
        /// Bits of the walker's addresses.
        possible: u8,
    },
    /// The hypervisor's tables are write-back but this IOMMU's walks are not coherent.
    #[error("the domain's tables are write-back, and the IOMMU's walks are not coherent with the CPU's caches")]
    Coherency,
    /// The root that stands for "nothing is mapped" is too small for this domain's start level.
    #[error("the domain's start level takes {wanted:#x} bytes, and the empty root has {possible:#x}")]
    EmptyRoot {
        /// Bytes that the start level's tables take.
        wanted: u64,
        /// Bytes of zeros that the integrator supplied.
        possible: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn stage2(granule: Granule, ipa_bits: u8, start_level: u8) -> Stage2 {
        let root = PhysicalAddress::new(0x8000_0000);
        Stage2 { root, ipa_bits, start_level, granule, output_bits: 40, tables: TableMemory::NonCacheable }
    }

    #[test]
    fn the_root_is_aligned_to_its_concatenated_tables() {
        assert_eq!(stage2(Granule::Kib4, 40, 1).root_bytes(), Some(1 << 13));
        assert_eq!(stage2(Granule::Kib4, 40, 0).root_bytes(), Some(1 << 4));
        assert_eq!(stage2(Granule::Kib4, 43, 1).root_bytes(), Some(1 << 16));
        assert_eq!(stage2(Granule::Kib4, 44, 1).root_bytes(), None);
        assert_eq!(stage2(Granule::Kib64, 42, 2).root_bytes(), Some(1 << 16));
        assert_eq!(stage2(Granule::Kib64, 42, 0).root_bytes(), None);
    }

    #[test]
    fn s2_tables_that_no_smmu_could_follow_are_told() {
        let good = stage2(Granule::Kib4, 40, 1);
        assert_eq!(good.check(), Ok(()));
        let at = |root| Stage2 { root: PhysicalAddress::new(root), ..good };
        let (low, high) = (PhysicalAddress::new(0x8000_1000), PhysicalAddress::new(1 << 48));
        assert_eq!(at(0x8000_1000).check(), Err(Incompatible::Root { root: low, alignment: 0x2000 }));
        assert_eq!(at(1 << 48).check(), Err(Incompatible::RootReach { root: high, possible: 48 }));
        assert_eq!(Stage2 { output_bits: 41, ..good }.check(), Err(Incompatible::OutputSize(41)));
        for (ipa_bits, start_level) in [(0, 1), (24, 2), (49, 0), (255, 0), (40, 3), (40, 4)] {
            let told = Incompatible::StartLevel { start_level, ipa_bits, granule: Granule::Kib4 };
            assert_eq!(Stage2 { ipa_bits, start_level, ..good }.check(), Err(told));
        }
    }
}
