//! What the ID registers say, with contradictions refused (IHI 0062D, SMMU_IDR0..IDR7).

use thiserror::Error;

use super::mmio::Registers;
use super::quirks::{self, Effects};
use super::registers::{bit, cb, field, gr0};
use super::smmu_config::{Architecture, SmmuConfig};
use crate::assign::{Granules, IommuError, IommuKey};
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
    /// Entries: stream-mapping register groups, or S2CRs where streams are indices. 1..=128; of some Qualcomm parts up to 244
    /// (quirk Q13).
    pub entries: u8,
    /// Stream matching (SMRs); without it a stream ID is the index of its S2CR.
    pub matching: bool,
    /// Another map can stand in for the SMRs and S2CRs: extended groups or compressed indices (IDR0.EXSMRGS,
    /// IDR2.COMPINDEXS). It is kept switched off, so that what it has matches nothing.
    pub other_map: bool,
    /// Extended (16-bit) stream IDs are implemented.
    pub extended_ids: bool,
    /// 16-bit VMIDs are implemented.
    pub vmid16: bool,
    /// Bits of a stream ID that come from the master (IDR0.NUMSIDB).
    pub stream_id_bits: u8,
    /// Coherent table walks, as the register says (IDR0.CTTW).
    pub coherent_walks: bool,
    /// Context interrupts (IDR0.NUMIRPT); meaningful in version 1.
    pub context_interrupts: u8,
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
    /// Registers of more or of fewer instances are given than firmware lists: one that is not driven lets everything pass.
    #[error("{iommu}: firmware lists {listed} instances (register regions), and registers of {given} are given")]
    Instances {
        /// The SMMU.
        iommu: IommuKey,
        /// Instances by firmware ([`SmmuConfig::instances`]).
        listed: usize,
        /// Instances by [`Registers::member`].
        given: usize,
    },
    /// Fewer registers are mapped than the ID registers promise and firmware's region holds.
    #[error("{iommu}: context bank {bank} reads as all ones: not all of the region is mapped")]
    NotMapped {
        /// The instance.
        iommu: IommuKey,
        /// The last bank.
        bank: u8,
    },
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
        "{0}: in use with other stream IDs, VMIDs or stream map (sCR0.EXIDENABLE, VMID16EN; sCR2) than it will have; its \
         clients must be stopped first"
    )]
    LiveInOtherMode(IommuKey),
    /// sCR0 or sCR2 did not take a bit that isolation needs.
    #[error(
        "{iommu}: {register} reads {found:#x} after {written:#x} was written: some streams would not fault as they must"
    )]
    ControlNotTaken {
        /// The instance.
        iommu: IommuKey,
        /// The manual's name of the register.
        register: &'static str,
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
    /// Reads and checks the ID registers of every instance, and that the last bank is there: five or fewer reads of each,
    /// no write.
    ///
    /// # Errors
    ///
    /// What makes the instance unusable; see [`ProbeError`].
    pub fn read(registers: &impl Registers, config: &SmmuConfig) -> Result<Self, ProbeError> {
        let iommu = config.key;
        let members = || (0..).map_while(|index| registers.member(index));
        let given = members().count();
        if given != config.instances {
            return Err(ProbeError::Instances { iommu, listed: config.instances, given });
        }
        let identify = |one: &dyn Registers| [gr0::IDR0, gr0::IDR1, gr0::IDR2, gr0::IDR7].map(|at| one.read32(at));
        let [idr0, idr1, idr2, idr7] = members().next().map_or([u32::MAX; 4], identify);
        if idr0 == u32::MAX && idr1 == u32::MAX {
            return Err(ProbeError::NotThere(iommu));
        }
        let (stage1, stage2, nested) = (bit(idr0, 30), bit(idr0, 29), bit(idr0, 28));
        if !stage2 && !nested {
            return Err(ProbeError::NoStage2(iommu));
        }
        let effects = quirks::effects_of(config, low_byte(idr7));
        let has = |effect| effects.contains(effect);
        let version2 = config.architecture == Architecture::V2;

        let page_shift = if bit(idr1, 31) { 16 } else { 12 };
        let bank_base = config.bank_base.unwrap_or((2_u32 << field(idr1, 30, 28)) << page_shift);
        let (counted, stage2_banks) = (field(idr1, 7, 0), field(idr1, 23, 16));
        let banks = if has(Effects::HIDDEN_BANKS) { quirks::usable_banks(config.chip, counted) } else { counted };

        let matching = bit(idr0, 27);
        let extended_ids = version2 && bit(idr0, 8);
        let stream_id_bits = if extended_ids { 16 } else { field(idr0, 12, 9) };
        let groups = field(idr0, 7, 0);
        let most = if has(Effects::MANY_GROUPS) { u8::MAX } else { LISTED_GROUPS };
        let entries = if matching { groups } else { 1_u32 << stream_id_bits.min(7) };

        let aarch64 = version2 && !has(Effects::NO_AARCH64);
        let long_granules = Granules {
            kib4: aarch64 && bit(idr2, 12),
            kib16: aarch64 && bit(idr2, 13) && !has(Effects::NO_KIB16),
            kib64: aarch64 && bit(idr2, 14) || has(Effects::AARCH64_KIB64),
        };
        let aarch32_long = !version2 || field(idr0, 25, 24) != 2;

        let contradictions = [
            (
                members().skip(1).any(|one| identify(one) != [idr0, idr1, idr2, idr7]),
                "the ID registers of the instances that are to be programmed alike differ",
            ),
            (!matching && stream_id_bits > 7, "stream indexing (SMS = 0) with more than 7 bits of stream ID (NUMSIDB)"),
            (nested && !(stage1 && stage2), "nested translation (NTS) without both stages (S1TS, S2TS)"),
            (banks == 0 || banks > 128, "the number of context banks (NUMCB) is 0 or above 128"),
            (stage2_banks > counted, "more stage-2 banks (NUMS2CB) than banks (NUMCB)"),
            (matching && groups == 0, "stream matching (SMS) without a stream-mapping group (NUMSMRG)"),
            (groups > u32::from(most), "more than 128 stream-mapping groups (NUMSMRG)"),
            (long_granules == NO_GRANULES && !aarch32_long, "no table format at all (PTFS, PTFSv8)"),
        ];
        if let Some((_, what)) = contradictions.into_iter().find(|(is_met, _)| *is_met) {
            return Err(ProbeError::Contradiction { iommu, what });
        }
        let needed = u64::from(bank_base).saturating_add(u64::from(banks) << page_shift);
        if needed > config.region_size {
            return Err(ProbeError::RegionTooSmall { iommu, needed, given: config.region_size });
        }
        let geometry = Self {
            architecture: config.architecture,
            page_shift,
            bank_base,
            banks: low_byte(banks),
            stage2_banks: low_byte(stage2_banks),
            entries: low_byte(entries),
            matching,
            other_map: version2 && (bit(idr0, 15) || bit(idr2, 29)),
            extended_ids,
            vmid16: version2 && bit(idr2, 15),
            stream_id_bits: low_byte(stream_id_bits),
            coherent_walks: bit(idr0, 14),
            context_interrupts: low_byte(field(idr0, 23, 16)),
            revision: low_byte(idr7),
            long_granules,
            cba2r: version2 || has(Effects::AARCH64_KIB64),
            aarch32_long,
            ipa_bits: address_bits(field(idr2, 3, 0)),
            output_bits: address_bits(field(idr2, 7, 4)),
            register_bytes: u64::from(bank_base).saturating_mul(2),
        };
        let bank = geometry.banks.saturating_sub(1);
        // Some bits of SCTLR are always zero.
        let is_there = |one: &dyn Registers| one.read32(geometry.bank(bank, cb::SCTLR)) != u32::MAX;
        if members().all(is_there) { Ok(geometry) } else { Err(ProbeError::NotMapped { iommu, bank }) }
    }

    /// Offset of a register of context bank `bank`.
    #[must_use]
    pub(in crate::smmu) const fn bank(&self, bank: u8, register: u32) -> u32 {
        self.bank_base.wrapping_add((bank as u32) << self.page_shift).wrapping_add(register)
    }

    /// Bits of an intermediate physical address, and of an output address, in tables of AArch64's (`long`) or AArch32's format.
    pub(in crate::smmu) fn reach(&self, long: bool) -> (u8, u8) {
        let most = if long { 48 } else { 40 };
        (self.ipa_bits.min(most), self.output_bits.min(most))
    }

    /// Offset of a register of global space 1.
    #[must_use]
    pub(in crate::smmu) const fn gr1(&self, register: u32) -> u32 {
        (1_u32 << self.page_shift).wrapping_add(register)
    }
}

/// As many groups as the manual knows.
pub(in crate::smmu) const LISTED_GROUPS: u8 = 128;

pub(in crate::smmu) const NO_GRANULES: Granules = Granules { kib4: false, kib16: false, kib64: false };

/// The low byte of a field that is at most eight bits wide, or was checked to be.
const fn low_byte(value: u32) -> u8 {
    value.to_le_bytes()[0]
}

/// IDR2.IAS and OAS; values that the manual leaves out count as the largest.
fn address_bits(code: u32) -> u8 {
    [32, 36, 40, 42, 44].into_iter().zip(0..).find(|(_, known)| *known == code).map_or(48, |(bits, _)| bits)
}
