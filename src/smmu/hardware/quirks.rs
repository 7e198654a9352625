//! What parts do otherwise than the architecture says: one table, consulted as data.
//!
//! A row says which parts it is about and what the driver does there. The driver never asks which implementation it
//! drives; it asks for an [`Effects`] flag. `docs/quirks.md` is made from this table and compared with it by a test;
//! `tests/smmu_quirks.rs` shows each row on the model.

use bitflags::bitflags;

use super::smmu_config::{Architecture, Chip, Implementation, SmmuConfig};

bitflags! {
    /// What the driver does differently on a part.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Effects: u32 {
        /// Banked registers of global space 0 are reached 0x400 higher.
        const SECURE_ALIASES = 1 << 0;
        /// VMIDs are drawn from one space for the whole chip.
        const CHIP_WIDE_VMIDS = 1 << 1;
        /// sACR.CACHE_LOCK is cleared before a bank's ACTLR is written.
        const UNLOCK_ACTLR = 1 << 2;
        /// ACTLR.CPRE is cleared in every bank.
        const NO_PREFETCH = 1 << 3;
        /// 64-bit registers are accessed in two halves.
        const SPLIT_64 = 1 << 4;
        /// Tables in AArch64 format are not offered.
        const NO_AARCH64 = 1 << 5;
        /// Blocks above the last level are not offered.
        const NO_BLOCKS = 1 << 6;
        /// An invalidation that concerns table entries is by VMID.
        const WALK_CACHE_BY_VMID = 1 << 7;
        /// Whether TYPE = fault is stored is tried out; where it is not, faulting is spelled TYPE = bypass.
        const TRY_FAULT_WRITE = 1 << 8;
        /// More than 128 stream-mapping groups are believed, up to 244; below firmware that stores bypass as fault, 128 of them.
        const MANY_GROUPS = 1 << 9;
        /// Some of the banks that IDR1 counts are left alone.
        const HIDDEN_BANKS = 1 << 10;
        /// The 16 KiB granule is not offered.
        const NO_KIB16 = 1 << 11;
        /// A version 1 that walks AArch64 tables of 64 KiB pages.
        const AARCH64_KIB64 = 1 << 12;
    }
}

/// How the driver meets a quirk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remedy {
    /// On the parts that the row names, the driver does this.
    Effect(Effects),
    /// The driver does it on every part: right everywhere, and needed on some.
    Always,
    /// It does not concern a hypervisor that translates stage 2 only, or someone else deals with it.
    NotConcerned,
}

/// One row.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Quirk {
    /// Its number, counted from 1.
    pub number: u8,
    /// What is different.
    pub what: &'static str,
    /// The parts that it is about.
    pub who: &'static str,
    /// The kind of remedy.
    pub remedy: Remedy,
    /// What the driver does, or why it does nothing.
    pub how: &'static str,
    applies: fn(&Part<'_>) -> bool,
}

/// What is known of a part when the table is consulted.
struct Part<'a> {
    config: &'a SmmuConfig,
    /// IDR7.MAJOR.
    major: u8,
}

impl Part<'_> {
    fn is(&self, implementation: Implementation) -> bool {
        self.config.implementation == implementation
    }
}

impl core::fmt::Debug for Quirk {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Q{} {}", self.number, self.what)
    }
}

/// The table, in the order of its numbers.
#[must_use]
pub const fn quirks() -> &'static [Quirk] {
    &TABLE
}

/// The rows that apply to a part with this description and this IDR7 (`revision`: major in 7:4, minor in 3:0).
pub fn quirks_of(config: &SmmuConfig, revision: u8) -> impl Iterator<Item = &'static Quirk> {
    let major = revision >> 4;
    TABLE.iter().filter(move |quirk| (quirk.applies)(&Part { config, major }))
}

/// All that the driver does differently on that part.
pub(in crate::smmu) fn effects_of(config: &SmmuConfig, revision: u8) -> Effects {
    quirks_of(config, revision).fold(Effects::empty(), |all, quirk| match quirk.remedy {
        Remedy::Effect(effects) => all | effects,
        Remedy::Always | Remedy::NotConcerned => all,
    })
}

/// The banks that may be touched of those that IDR1 counts (Q15).
pub(in crate::smmu) fn usable_banks(chip: Chip, counted: u32) -> u32 {
    let hidden = HIDDEN_BANKS.iter().find(|(hiding, reported, _)| *hiding == chip && *reported == counted);
    hidden.map_or(counted, |(_, _, usable)| *usable)
}

/// Chips whose firmware keeps banks to itself: the chip, how many its SMMU counts, how many may be touched.
const HIDDEN_BANKS: [(Chip, u32, u32); 4] =
    [(Chip::Msm8998, 13, 12), (Chip::Sdm630, 21, 7), (Chip::Sdm630, 14, 13), (Chip::Sdm630, 5, 2)];

const ANY: fn(&Part<'_>) -> bool = |_| true;
/// An MMU-500, whoever made the chip.
const MMU500: fn(&Part<'_>) -> bool = |part| {
    use Implementation::{MarvellAp806, Mmu500, Nvidia, QualcommMmu500};
    matches!(part.config.implementation, Mmu500 | MarvellAp806 | Nvidia | QualcommMmu500)
};
const QUALCOMM: fn(&Part<'_>) -> bool =
    |part| matches!(part.config.implementation, Implementation::Qualcomm | Implementation::QualcommMmu500);

/// A row of what the driver does on every part, until more is said.
const fn quirk(number: u8, what: &'static str, who: &'static str) -> Quirk {
    Quirk { number, what, who, remedy: Remedy::Always, how: "", applies: ANY }
}

impl Quirk {
    const fn does(self, effects: Effects, applies: fn(&Part<'_>) -> bool) -> Self {
        Self { remedy: Remedy::Effect(effects), applies, ..self }
    }

    const fn not_concerned(self, applies: fn(&Part<'_>) -> bool) -> Self {
        Self { remedy: Remedy::NotConcerned, applies, ..self }
    }

    const fn how(self, how: &'static str) -> Self {
        Self { how, ..self }
    }
}

const TABLE: [Quirk; 26] = [
    quirk(1, "all accesses count as Secure", "MMU-400 with `calxeda,smmu-secure-config-access`")
        .does(Effects::SECURE_ALIASES, |part| part.config.secure_config_access)
        .how("the banked registers of global space 0 are reached through their Non-secure aliases, 0x400 higher"),
    quirk(2, "erratum 27704: cached translations are shared by the SMMUs of a chip", "Cavium CN88xx")
        .does(Effects::CHIP_WIDE_VMIDS, |part| part.is(Implementation::Cavium))
        .how(
            "every instance draws the VMIDs of its banks from one space; probe refuses an instance for which none are \
             left",
        ),
    quirk(3, "sACR.CACHE_LOCK: a bank's ACTLR takes no write", "MMU-500 from r2 on")
        .does(Effects::UNLOCK_ACTLR, |part| MMU500(part) && part.major >= 2)
        .how("the lock is cleared at reset; where the Secure side keeps it, the probe notes it"),
    quirk(4, "errata 841119, 826419, 562869, 1047329: the prefetcher walks with a stale context", "MMU-500")
        .does(Effects::NO_PREFETCH, MMU500)
        .how("ACTLR.CPRE is cleared in every bank at reset and read back"),
    quirk(5, "sACR can let the TLB keep unmatched and bypassed streams", "MMU-500")
        .not_concerned(MMU500)
        .how("performance of bypassed streams only, and no stream is bypassed here: the bits are left as found"),
    quirk(6, "erratum 842869: SCTLR.CFCFG must not be set", "MMU-40x, MMU-500")
        .how("no bank ever stalls a transaction"),
    quirk(7, "one stalled transaction blocks other streams", "seen on ZynqMP").how(
        "CFCFG is 0 and sCR0.STALLD is set where it exists; a stall that a live unit brings along is ended at \
             reset",
    ),
    quirk(8, "erratum 582743: 64-bit accesses are lost", "Marvell AP806")
        .does(Effects::SPLIT_64.union(Effects::NO_AARCH64), |part| part.is(Implementation::MarvellAp806))
        .how(
            "two 32-bit accesses, high half first; AArch32 tables only (40 bits); a bank is retired with two drains, \
             since its root cannot be replaced in one write",
        ),
    quirk(9, "two or three instances that must be programmed alike", "NVIDIA Tegra194, Tegra234").how(
        "`Lockstep` writes to all and reads the first; the driver takes a status from all, and faults of each. Probe \
             refuses another number of instances than firmware lists, and instances that differ",
    ),
    quirk(10, "entries of the walk cache survive an invalidation by address", "NVIDIA Tegra194, Tegra234")
        .does(Effects::NO_BLOCKS.union(Effects::WALK_CACHE_BY_VMID), |part| part.is(Implementation::Nvidia))
        .how("blocks are not offered to the hypervisor; freed tables are invalidated by VMID"),
    quirk(11, "the memory controller chooses stream IDs", "NVIDIA Tegra186 and later")
        .not_concerned(|part| part.is(Implementation::Nvidia))
        .how(
            "the memory controller's driver sets the IDs that the device tree names; a stream that it did not set \
             carries an ID that no entry matches, and faults",
        ),
    quirk(12, "firmware stores S2CR.TYPE = bypass as fault, and ignores fault", "Qualcomm")
        .does(Effects::TRY_FAULT_WRITE, QUALCOMM)
        .how(
            "tried out on the last entry below 128 before the SMMU is enabled; where it is so, faulting is spelled bypass. No \
             bank is spent on a bypass that a hypervisor does not want",
        ),
    quirk(13, "more than 128 stream-mapping groups", "Qualcomm")
        .does(Effects::MANY_GROUPS, QUALCOMM)
        .how(
            "all are put in fault, used and audited, up to 244, where SMRs and S2CRs end; below firmware that Q12 finds, \
             which does not know the others, 128. On other parts such a number is a contradiction and probe fails",
        ),
    quirk(14, "firmware mis-decodes a store of the zero register", "Qualcomm").how(
        "operations are never started with 0: all ones where the value does not matter, VMIDs from 1, and a flush \
             of guest page 0 goes by VMID",
    ),
    quirk(
        15,
        "banks that IDR1 counts belong to firmware; touching one resets the board",
        "Qualcomm MSM8998, SDM630, SDM660",
    )
    .does(Effects::HIDDEN_BANKS, |part| part.config.chip != Chip::Unnamed)
    .how("the count is looked up by chip and by what IDR1 says; what is above is not touched"),
    quirk(16, "the 16 KiB granule does not work", "Qualcomm's GPU SMMU (`qcom,adreno-smmu`)")
        .does(Effects::NO_KIB16, |part| part.config.adreno)
        .how("it is not offered"),
    quirk(17, "streams that firmware set up must go on", "Qualcomm, and any display that is on at boot").how(
        "streams that are declared reserved keep a restricted translation from the integrator's tables; all \
             others fault",
    ),
    quirk(18, "prefetch and invalidation settings for each client", "Qualcomm")
        .not_concerned(QUALCOMM)
        .how("performance of stage 1, and debugging"),
    quirk(19, "IDR0.CTTW does not tell whether walks are coherent", "various")
        .how("firmware's `dma-coherent` decides; a difference is noted at probe"),
    quirk(20, "the register region is not as large as IDR1 says", "Tegra; msm8974 starts its banks elsewhere").how(
        "banks start where IDR1 says, or where the board's description overrides it; a larger region is noted, \
             one that is too small is refused",
    ),
    quirk(21, "registers behind power, clock or interconnect", "Qualcomm")
        .how("every access lies between get and put of the power hook; a fault handler asks whether there is power"),
    quirk(22, "bits of a stream ID that no SMR compares", "i.MX8, MSM8916, ZynqMP, Tegra186").how(
        "ID and mask bits that the SMRs keep are found out at reset; mask bits beyond are ignored anyway, ID bits \
             beyond are refused at add",
    ),
    quirk(23, "several banks on one interrupt line", "MSM8916, i.MX8")
        .how("a shared line scans its live banks; which domains it couples is told"),
    quirk(24, "the first banks can only do stage 2", "IDR1.NUMS2CB")
        .how("banks are taken from 0 upwards, so that others stay free for stage 1"),
    quirk(25, "version 1 with AArch64 tables of 64 KiB pages", "MMU-401")
        .does(Effects::AARCH64_KIB64, |part| {
            part.is(Implementation::Mmu401) && part.config.architecture == Architecture::V1
        })
        .how("CBA2R is there and the 64 KiB granule is offered"),
    quirk(26, "VMIDs are mixed up with the CPU's", "version 2 with broadcast maintenance")
        .how("sCR0.VMIDPNE and PTM keep broadcasts out; VMIDs are the driver's own"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_numbered_without_gaps() {
        assert!((1..).zip(quirks()).all(|(number, quirk)| quirk.number == number));
    }

    #[test]
    fn hidden_banks_go_by_chip_and_count() {
        assert_eq!(usable_banks(Chip::Sdm630, 21), 7);
        assert_eq!(usable_banks(Chip::Sdm630, 16), 16);
        assert_eq!(usable_banks(Chip::Unnamed, 21), 21);
    }
}
