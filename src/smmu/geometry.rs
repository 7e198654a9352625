//! What the ID registers say, with contradictions refused (IHI 0062D, SMMU_IDR0..IDR7).

use core::fmt;

use thiserror::Error;

use super::config::{Architecture, SmmuConfig};
use super::mmio::Registers;
use super::quirks::{self, Effects};
use super::registers::{bit, field, gr0};
use crate::assign::{Granules, IommuError, IommuKey, Stage2Limits};
use crate::sync::Waited;

/// What an instance is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Geometry {
    /// The architecture version.
    pub architecture: Architecture,
    /// log2 of the register page size in bytes: 12 or 16.
    pub page_shift: u8,
    /// Offset of context bank 0 from the base, from IDR1 (never from the region's size; quirk Q20).
    pub bank_base: u32,
    /// Context banks, 1..=128.
    pub banks: u8,
    /// Of these, how many can only do stage 2. They come first.
    pub stage2_banks: u8,
    /// Entries: stream-mapping register groups, or S2CRs where streams are indices. 1..=128.
    pub entries: u8,
    /// Stream matching (SMRs); without it a stream ID is the index of its S2CR.
    pub matching: bool,
    /// Extended (16-bit) stream IDs are implemented.
    pub extended_ids: bool,
    /// 16-bit VMIDs are implemented.
    pub vmid16: bool,
    /// Bits of a stream ID that come from the master (IDR0.NUMSIDB).
    pub stream_id_bits: u8,
    /// Coherent table walks, as the register says (IDR0.CTTW).
    pub coherent_walks: bool,
    /// Stage-1 translation is there too.
    pub stage1: bool,
    /// Context interrupts (IDR0.NUMIRPT); meaningful in version 1.
    pub context_interrupts: u8,
    /// Conflicting entries are detected for every transaction (IDR1.SMCD).
    pub conflicts_detected: bool,
    /// The product's revision (IDR7: major in 7:4, minor in 3:0). Not the architecture's version.
    pub revision: u8,
    /// Granules that a bank in AArch64 format walks.
    pub long_granules: Granules,
    /// Banks have a CBA2R, and with it AArch64 formats.
    pub cba2r: bool,
    /// AArch32 long-descriptor tables can be walked.
    pub aarch32_long: bool,
    /// Bits of an intermediate physical address.
    pub ipa_bits: u8,
    /// Bits of an output address.
    pub output_bits: u8,
    /// Bytes of registers, as far as IDR1 tells.
    pub register_bytes: u64,
}

/// Why an instance cannot be driven.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProbeError {
    /// The ID registers read as all ones: nothing is there, or it has no power or clock.
    #[error("{0}: the ID registers read as all ones: no SMMU there, or it is not powered or clocked")]
    NotThere(IommuKey),
    /// Stage 2 is not implemented, or firmware hides it.
    #[error("{0}: stage-2 translation is not there (IDR0.S2TS = 0)")]
    NoStage2(IommuKey),
    /// Two ID fields contradict each other.
    #[error("{iommu}: contradicting ID registers: {what}")]
    Contradiction {
        /// The instance.
        iommu: IommuKey,
        /// Which fields.
        what: &'static str,
    },
    /// The banks that the ID registers promise lie outside the region that firmware gives.
    #[error("{iommu}: the ID registers need {needed:#x} bytes of registers, firmware gives {given:#x}")]
    RegionTooSmall {
        /// The instance.
        iommu: IommuKey,
        /// Bytes up to the end of the last bank.
        needed: u64,
        /// Bytes of the region.
        given: u64,
    },
    /// The global sync after the reset's invalidation did not complete: enabling would be unsafe.
    #[error("{iommu}: the invalidation at reset was not confirmed within {waited}; the SMMU is left as it was")]
    SyncTimeout {
        /// The instance.
        iommu: IommuKey,
        /// How long was waited.
        waited: Waited,
    },
    /// An SMMU that is in use cannot be brought into the mode that it needs without letting its streams through.
    #[error(
        "{0}: in use with other stream IDs (sCR0.EXIDENABLE) or VMIDs than it will have; its clients must be stopped first"
    )]
    LiveInOtherMode(IommuKey),
    /// sCR0 did not take a bit that isolation needs.
    #[error(
        "{iommu}: sCR0 reads {found:#x} after {written:#x} was written: unknown or conflicting streams would not fault"
    )]
    ControlNotTaken {
        /// The instance.
        iommu: IommuKey,
        /// What was written.
        written: u32,
        /// What was read.
        found: u32,
    },
    /// Memory could not be reserved.
    #[error("{0}: out of memory")]
    OutOfMemory(IommuKey),
    /// There is no power for it.
    #[error("{iommu}: no power: {reason}")]
    NoPower {
        /// The instance.
        iommu: IommuKey,
        /// What the power hook says.
        reason: &'static str,
    },
    /// Every entry of a live unit matches a reserved stream: none is left to find out what entries keep.
    #[error("{0}: reserved streams take every stream-map entry")]
    NoSpareEntry(IommuKey),
    /// The SMMUs of the chip share one space of VMIDs, and it is used up (quirk Q2).
    #[error("{0}: no VMIDs are left on this chip")]
    NoVmids(IommuKey),
    /// A reserved stream could not be given its restricted translation. The unit is not enabled, or is still live with
    /// all but reserved streams in fault.
    #[error("{iommu}: reserved streams: {error}")]
    Reserved {
        /// The instance.
        iommu: IommuKey,
        /// Why not.
        error: IommuError,
    },
}

impl Geometry {
    /// Reads and checks the ID registers: four or fewer reads, no write.
    ///
    /// # Errors
    ///
    /// What makes the instance unusable; see [`ProbeError`].
    pub fn read(registers: &impl Registers, config: &SmmuConfig) -> Result<Self, ProbeError> {
        let iommu = config.key;
        let contradiction = |what| Err(ProbeError::Contradiction { iommu, what });
        let idr0 = registers.read32(gr0::IDR0);
        let idr1 = registers.read32(gr0::IDR1);
        if idr0 == u32::MAX && idr1 == u32::MAX {
            return Err(ProbeError::NotThere(iommu));
        }
        let idr2 = registers.read32(gr0::IDR2);
        let idr7 = registers.read32(gr0::IDR7);
        let version2 = config.architecture == Architecture::V2;

        let stage1 = bit(idr0, 30);
        let stage2 = bit(idr0, 29);
        if bit(idr0, 28) && !(stage1 && stage2) {
            return contradiction("nested translation (NTS) without both stages (S1TS, S2TS)");
        }
        if !stage2 {
            return Err(ProbeError::NoStage2(iommu));
        }
        let page_shift = if bit(idr1, 31) { 16 } else { 12 };
        let effects = quirks::effects_of(config, low_byte(idr7));
        let pages = 2_u32 << field(idr1, 30, 28);
        let bank_base = config.bank_base.unwrap_or(pages << page_shift);
        let counted = field(idr1, 7, 0);
        let hides = effects.contains(Effects::HIDDEN_BANKS);
        let banks = if hides { quirks::usable_banks(config.chip, counted) } else { counted };
        let stage2_banks = field(idr1, 23, 16);
        if banks == 0 || banks > 128 {
            return contradiction("the number of context banks (NUMCB) is 0 or above 128");
        }
        if stage2_banks > counted {
            return contradiction("more stage-2 banks (NUMS2CB) than banks (NUMCB)");
        }
        let needed = u64::from(bank_base).saturating_add(u64::from(banks) << page_shift);
        if needed > config.region_size {
            return Err(ProbeError::RegionTooSmall { iommu, needed, given: config.region_size });
        }
        let matching = bit(idr0, 27);
        let extended_ids = version2 && bit(idr0, 8);
        let stream_id_bits = if extended_ids { 16 } else { field(idr0, 12, 9) };
        let groups = field(idr0, 7, 0);
        let entries = if matching { groups.min(128) } else { 1_u32 << stream_id_bits.min(7) };
        if matching && groups == 0 {
            return contradiction("stream matching (SMS) without a stream-mapping group (NUMSMRG)");
        }
        if groups > 128 && !effects.contains(Effects::CLAMP_GROUPS) {
            return contradiction("more than 128 stream-mapping groups (NUMSMRG)");
        }

        let kib64_on_v1 = effects.contains(Effects::AARCH64_KIB64);
        let long_granules = match version2 {
            true if effects.contains(Effects::NO_AARCH64) => NO_GRANULES,
            true => Granules {
                kib4: bit(idr2, 12),
                kib16: bit(idr2, 13) && !effects.contains(Effects::NO_KIB16),
                kib64: bit(idr2, 14),
            },
            false => Granules { kib64: kib64_on_v1, ..NO_GRANULES },
        };
        let aarch32_long = if version2 { field(idr0, 25, 24) != 2 } else { true };
        if long_granules == NO_GRANULES && !aarch32_long {
            return contradiction("no table format at all (PTFS, PTFSv8)");
        }
        Ok(Self {
            architecture: config.architecture,
            page_shift,
            bank_base,
            banks: low_byte(banks),
            stage2_banks: low_byte(stage2_banks),
            entries: low_byte(entries),
            matching,
            extended_ids,
            vmid16: version2 && bit(idr2, 15),
            stream_id_bits: low_byte(stream_id_bits),
            coherent_walks: bit(idr0, 14),
            stage1,
            context_interrupts: low_byte(field(idr0, 23, 16)),
            conflicts_detected: bit(idr1, 15),
            revision: low_byte(idr7),
            long_granules,
            cba2r: version2 || kib64_on_v1,
            aarch32_long,
            ipa_bits: address_bits(field(idr2, 3, 0)),
            output_bits: address_bits(field(idr2, 7, 4)),
            register_bytes: u64::from(bank_base).saturating_mul(2),
        })
    }

    /// What tables a stage-2 bank can follow. `coherent` is what firmware says of the walks.
    #[must_use]
    pub fn limits(&self, coherent: bool, blocks: bool) -> Stage2Limits {
        let long = self.long_granules != NO_GRANULES;
        let kib4_short = self.aarch32_long && !self.long_granules.kib4;
        // The AArch32 format ends at 40 bits on both sides.
        let reach = |bits: u8| if long { bits } else { bits.min(40) };
        Stage2Limits {
            ipa_bits: reach(self.ipa_bits),
            output_bits: reach(self.output_bits),
            granules: Granules { kib4: self.long_granules.kib4 || kib4_short, ..self.long_granules },
            coherent,
            blocks,
        }
    }

    /// Offset of a register of context bank `bank`.
    #[must_use]
    pub(super) const fn bank(&self, bank: u8, register: u32) -> u32 {
        self.bank_base.wrapping_add((bank as u32) << self.page_shift).wrapping_add(register)
    }

    /// Offset of a register of global space 1.
    #[must_use]
    pub(super) const fn gr1(&self, register: u32) -> u32 {
        (1_u32 << self.page_shift).wrapping_add(register)
    }
}

impl fmt::Display for Geometry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = match self.architecture {
            Architecture::V1 => 1,
            Architecture::V2 => 2,
        };
        let streams = if self.matching { "match entries" } else { "indexed streams" };
        write!(
            f,
            "SMMUv{version} r{}p{}, {} {streams}, {} banks ({} stage-2 only), {}-bit stream IDs, IPA {} bits, PA {} bits",
            self.revision >> 4,
            self.revision & 0xf,
            self.entries,
            self.banks,
            self.stage2_banks,
            self.stream_id_bits,
            self.ipa_bits,
            self.output_bits,
        )
    }
}

const NO_GRANULES: Granules = Granules { kib4: false, kib16: false, kib64: false };

/// The low byte of a field that is at most eight bits wide, or was checked to be.
const fn low_byte(value: u32) -> u8 {
    value.to_le_bytes()[0]
}

/// IDR2.IAS and OAS; values that the manual leaves out count as the largest.
const fn address_bits(code: u32) -> u8 {
    match code {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => 48,
    }
}
