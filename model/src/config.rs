//! What a part is: its geometry, its widths, and where it departs from the architecture.
//!
//! A [`Config`] is plain data. Start from a preset ([`Config::mmu500_zynqmp`] and its siblings) and change fields; the
//! model accepts any value and clamps what no part could have, so that generated configurations are as safe as written
//! ones.

/// Which architecture the part follows (IHI 0062, and the "64 KiB AArch64" extension of MMU-401).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// SMMUv1: 32-bit table formats, 8-bit VMID, context interrupts through `CBAR.IRPTNDX`.
    V1,
    /// SMMUv1 with `CBA2R` and the AArch64 64 KiB granule (MMU-401).
    V1Aarch64,
    /// SMMUv2.
    V2,
}

/// Size of one register page (`IDR1.PAGESIZE`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageSize {
    /// 4 KiB pages, `IDR1.PAGESIZE` = 0.
    Small,
    /// 64 KiB pages, `IDR1.PAGESIZE` = 1.
    Large,
}

/// What happens when several valid stream-map entries match one stream (IHI 0062, stream match conflicts).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// Always detected: `SMCF` or bypass, as `sCR0.SMCFCFG` says. The only reading for `IDR1.SMCD` = 1.
    Detected,
    /// Not detected: the lowest matching entry is used.
    Lowest,
    /// Not detected: the highest matching entry is used.
    Highest,
    /// Sometimes detected, sometimes any of the entries: drawn from the seed for each transaction.
    Varies,
}

/// How one unimplemented register of the global space answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unimplemented {
    /// Reads as zero, ignores writes.
    Ignored,
    /// A configuration access fault (`GFSR.CAF`). Pages of context banks do so in v1 only.
    Fault,
}

/// What one 64-bit access does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WideAccess {
    /// It is atomic, as the architecture says.
    Atomic,
    /// It is lost: reads give zero, writes change nothing (Marvell AP806, erratum 582743: software must use two 32-bit
    /// accesses).
    Lost,
    /// Only its low word arrives.
    LowWord,
}

/// Where register values come from that the manual calls UNKNOWN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// Drawn from this seed; equal seeds give equal parts.
    Seed(u64),
    /// All zeroes: the friendliest part, which hides drivers that forget to initialise.
    Zeroes,
    /// All ones.
    Ones,
}

/// When a sync that was started completes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncDelay {
    /// The status reads as active this many times first; the read after them completes the sync.
    Polls(u32),
    /// Never.
    Never,
}

/// How the context banks' faults reach interrupt lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wiring {
    /// v2: one line per bank. v1: the line that `CBAR.IRPTNDX` names.
    Separate,
    /// Every bank drives line 0 (MSM8916, i.MX8).
    Combined,
}

/// Which fault a VA64 = 0 stage-2 bank with M = 0 gives to an input above 40 bits: the manual's text and its table 3-2
/// disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WideInput {
    /// The text and the pseudocode: an address size fault.
    AddressSize,
    /// The table: a translation fault.
    Translation,
}

/// A field that is not writable: the bits of `mask` always read as those of `value`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// The bits that software cannot change.
    pub mask: u32,
    /// What they read as.
    pub value: u32,
}

impl Fixed {
    /// `value` with the fixed bits forced.
    pub const fn apply(self, value: u32) -> u32 {
        (value & !self.mask) | (self.value & self.mask)
    }
}

/// What one vendor's part or firmware does differently, as far as a driver can observe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quirks {
    /// 64-bit accesses (Marvell AP806).
    pub wide_access: WideAccess,
    /// Firmware stores `S2CR.TYPE` = bypass as fault (Qualcomm), in the first 128 groups.
    pub bypass_becomes_fault: bool,
    /// Firmware ignores a write of `S2CR.TYPE` = fault (Qualcomm: the fault write there is the bypass write), likewise.
    pub fault_write_ignored: bool,
    /// Firmware loses a write of literal zero to TLB maintenance and sync registers (Qualcomm).
    pub zero_maintenance_lost: bool,
    /// Banks from this number on must not be touched although `IDR1` counts them; doing so is a
    /// [`Hazard`](crate::Hazard).
    pub hidden_banks_from: Option<u8>,
    /// `IDR0.NUMSMRG` when it is not the number of groups that exist (Qualcomm reports more than 128).
    pub reported_groups: Option<u8>,
    /// `IDR1.NUMCB` when it is not the number of banks that exist.
    pub reported_banks: Option<u8>,
    /// Accesses arrive as Secure, so GR0's banked registers are the Secure copies and +0x400 the Non-secure ones
    /// (Calxeda).
    pub secure_accesses: bool,
    /// Context banks start here, in bytes, whatever `IDR1` says (msm8974: 0x8000).
    pub bank_base: Option<u32>,
    /// `IDR0.CTTW` when it does not tell whether walks are coherent.
    pub reported_coherent_walk: Option<bool>,
    /// One stalled bank blocks the transactions of all (ZynqMP).
    pub stall_blocks_all: bool,
    /// `sACR.CACHE_LOCK` (bit 26) locks the banks' `ACTLR` (MMU-500 r2 and later).
    pub cache_lock: bool,
    /// A walk-cache entry survives `TLBIIPAS2` (Tegra194/234: only a whole invalidate removes it).
    pub walk_cache_sticks: bool,
}

impl Quirks {
    /// A part without quirks.
    pub const NONE: Self = Self {
        wide_access: WideAccess::Atomic,
        bypass_becomes_fault: false,
        fault_write_ignored: false,
        zero_maintenance_lost: false,
        hidden_banks_from: None,
        reported_groups: None,
        reported_banks: None,
        secure_accesses: false,
        bank_base: None,
        reported_coherent_walk: None,
        stall_blocks_all: false,
        cache_lock: false,
        walk_cache_sticks: false,
    };
}

/// One part: geometry, widths, behaviour, quirks.
///
/// Fields hold what the part *is*; the ID registers are computed from them. Address sizes are in bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Which architecture.
    pub architecture: Architecture,
    /// Size of a register page.
    pub page_size: PageSize,
    /// `IDR1.NUMPAGENDXB`, 0 to 7: each half of the register space has 2^(n+1) pages.
    pub num_page_index_bits: u8,
    /// Stage 1 is implemented (`IDR0.S1TS`).
    pub stage1: bool,
    /// Stage 2 is implemented (`IDR0.S2TS`).
    pub stage2: bool,
    /// Nested translation is implemented (`IDR0.NTS`).
    pub nested: bool,
    /// Streams are matched (`IDR0.SMS`); otherwise the stream ID indexes the S2CRs.
    pub stream_matching: bool,
    /// Stream-map groups that Non-secure software sees: 0 to 128, and on some Qualcomm parts more, up to 244; `SMR` and `S2CR`
    /// go on where the manual ends them, and end in front of `PIDR4`.
    pub groups: u8,
    /// Groups of the extended stream matching extension (`IDR0.EXSMRGS`, `IDR2.EXNUMSMRG`, v2), which take the place of the
    /// others while `sCR2.EXSMRGENABLE` is set. The manual has up to 1024 of them.
    pub extended_groups: u8,
    /// Stream ID bits (`IDR0.NUMSIDB`), 0 to 15.
    pub stream_id_bits: u8,
    /// The bits of `SMR.ID` that are implemented.
    pub smr_id: u16,
    /// The bits of `SMR.MASK` that are implemented.
    pub smr_mask: u16,
    /// Context banks that Non-secure software sees, 1 to 128.
    pub banks: u8,
    /// Banks below this number are stage-2 only (`IDR1.NUMS2CB`).
    pub stage2_banks: u8,
    /// `CBAR.TYPE` reads as 0 and ignores writes in stage-2-only banks.
    pub fixed_bank_type: bool,
    /// Context interrupts (`IDR0.NUMIRPT`); v2 reports 1.
    pub context_interrupts: u8,
    /// How faults reach interrupt lines.
    pub wiring: Wiring,
    /// Intermediate address size in bits (`IDR2.IAS`): 32, 36, 40, 42, 44 or 48.
    pub intermediate_bits: u8,
    /// Output address size in bits (`IDR2.OAS`): 32, 36, 40, 42, 44 or 48.
    pub output_bits: u8,
    /// Upstream bus size in bits (`IDR2.UBS`): as above, 49 or 64.
    pub upstream_bits: u8,
    /// 4 KiB granule in AArch64 format (`IDR2.PTFSv8_4K`).
    pub granule_4k: bool,
    /// 16 KiB granule in AArch64 format.
    pub granule_16k: bool,
    /// 64 KiB granule in AArch64 format.
    pub granule_64k: bool,
    /// 16-bit stream IDs are implemented (`IDR0.EXIDS`, v2).
    pub extended_ids: bool,
    /// 16-bit VMIDs are implemented (`IDR2.VMID16S`, v2).
    pub vmid16: bool,
    /// Several matching entries.
    pub conflict: Conflict,
    /// `IDR1.SMCD`: conflicts are always detected.
    pub conflict_reported: bool,
    /// The walker sees the processors' caches; otherwise only bytes that were [published](crate::Memory::publish).
    pub coherent_walk: bool,
    /// `IDR0.BTM`.
    pub broadcast_maintenance: bool,
    /// Bits of `sCR0` that software cannot change.
    pub cr0_fixed: Fixed,
    /// Stall mode exists (`SCTLR.CFCFG` is writable).
    pub stall: bool,
    /// Unimplemented registers.
    pub unimplemented: Unimplemented,
    /// Reset value of `CBAR`, where the part defines one.
    pub cbar_reset: Option<u32>,
    /// Reset value of `SCTLR`, where the part defines one.
    pub sctlr_reset: Option<u32>,
    /// Reset value of `ACTLR`, where the part defines one.
    pub actlr_reset: Option<u32>,
    /// Reset value of `sACR`, where the part defines one.
    pub acr_reset: Option<u32>,
    /// Bits of `CBAR` and `CBA2R` writes that make a stalled transaction start again: the architecture allows it.
    pub bank_write_retries: bool,
    /// Both readings of a contradiction in the manual.
    pub wide_input: WideInput,
    /// Leaf entries that the TLB holds.
    pub tlb_entries: u16,
    /// Table entries that the walk cache holds.
    pub walk_cache_entries: u16,
    /// After each walk the next page is walked and cached, too.
    pub prefetch: bool,
    /// Entries with drawn contents that stand in the TLB at reset.
    pub stale_entries: u8,
    /// Every invalidate removes everything, which the architecture always allows.
    pub over_invalidate: bool,
    /// How long a sync takes.
    pub sync_delay: SyncDelay,
    /// `IDR1.NUMSSDNDXB`, a number of bits that tells a Non-secure driver nothing.
    pub security_index_bits: u8,
    /// UNKNOWN values.
    pub unknown: Unknown,
    /// `IDR7`: product revision, major in 7:4 and minor in 3:0.
    pub revision: u8,
    /// `PIDR0` to `PIDR3` in its low bytes.
    pub peripheral_id: u32,
    /// Departures.
    pub quirks: Quirks,
}

impl Config {
    /// The same part with other UNKNOWN values.
    pub fn seed(mut self, seed: u64) -> Self {
        self.unknown = Unknown::Seed(seed);
        self
    }

    /// The same part with another sync delay.
    pub fn sync(mut self, delay: SyncDelay) -> Self {
        self.sync_delay = delay;
        self
    }

    /// The same part with other departures.
    pub fn quirks(mut self, quirks: Quirks) -> Self {
        self.quirks = quirks;
        self
    }

    /// Bytes in one register page.
    pub const fn page_bytes(&self) -> u32 {
        1 << self.page_shift()
    }

    pub(crate) const fn page_shift(&self) -> u32 {
        match self.page_size {
            PageSize::Small => 12,
            PageSize::Large => 16,
        }
    }

    /// Pages in each half of the register space.
    pub const fn pages(&self) -> u32 {
        2u32.wrapping_shl((self.num_page_index_bits & 7) as u32)
    }

    /// Bytes in each half of the register space.
    pub const fn half_bytes(&self) -> u32 {
        self.pages().wrapping_mul(self.page_bytes())
    }

    /// Where context bank 0 really is, in bytes from the base: a whole number of pages, above both global spaces.
    pub fn bank_base(&self) -> u32 {
        let base = self.quirks.bank_base.unwrap_or(self.half_bytes());
        (base & !self.page_bytes().wrapping_sub(1)).max(self.page_bytes() << 1)
    }

    /// Groups that exist: 0 to 244.
    pub(crate) fn group_count(&self) -> u8 {
        self.groups.min(244)
    }

    /// Extended groups that exist.
    pub(crate) fn extended_group_count(&self) -> u8 {
        if self.is_v2() { self.extended_groups } else { 0 }
    }

    /// Banks that exist: 1 to 128.
    pub(crate) fn bank_count(&self) -> u8 {
        self.banks.clamp(1, 128)
    }

    /// Whether `CBA2R` exists.
    pub(crate) fn has_cba2r(&self) -> bool {
        !matches!(self.architecture, Architecture::V1)
    }

    pub(crate) fn is_v2(&self) -> bool {
        matches!(self.architecture, Architecture::V2)
    }
}

/// The code of an address size in `IDR2` (and of `TCR.PASize`).
pub(crate) fn size_code(bits: u8) -> u32 {
    match bits {
        0..=32 => 0,
        33..=36 => 1,
        37..=40 => 2,
        41..=42 => 3,
        43..=44 => 4,
        45..=48 => 5,
        49 => 5,
        _ => 0xf,
    }
}

/// The address size in bits of a code; codes that are reserved act as 48.
pub(crate) fn code_size(code: u32) -> u8 {
    match code {
        0 => 32,
        1 => 36,
        2 => 40,
        3 => 42,
        4 => 44,
        _ => 48,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_codes_agree() {
        for (code, bits) in (0..).zip([32, 36, 40, 42, 44, 48]) {
            assert_eq!((size_code(bits), code_size(code)), (code, bits));
        }
        assert_eq!((size_code(49), size_code(64), code_size(7)), (5, 0xf, 48));
    }

    #[test]
    fn zynqmp_has_16_pages_in_each_half() {
        let config = Config::mmu500_zynqmp();
        assert_eq!((config.pages(), config.half_bytes(), config.bank_base()), (16, 0x1_0000, 0x1_0000));
    }
}
