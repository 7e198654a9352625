//! Where the registers are and what their fields mean: the model's own statement, shared with no driver.
//!
//! Offsets are in bytes from the start of their block; [`Smmu::gr1`](crate::Smmu::gr1) and
//! [`Smmu::bank`](crate::Smmu::bank) give those of a block from the base.

use alloc::string::String;
use alloc::{format, string::ToString};

use crate::config::Config;

/// Global register space 0.
#[allow(missing_docs, reason = "the names are the manual's, and the name is all there is to say")]
pub mod gr0 {
    pub const SCR0: usize = 0x000;
    pub const SCR1: usize = 0x004;
    pub const SCR2: usize = 0x008;
    pub const SACR: usize = 0x010;
    pub const IDR0: usize = 0x020;
    pub const IDR1: usize = 0x024;
    pub const IDR2: usize = 0x028;
    pub const IDR7: usize = 0x03c;
    pub const SGFAR: usize = 0x040;
    pub const SGFSR: usize = 0x048;
    pub const SGFSRRESTORE: usize = 0x04c;
    pub const SGFSYNR0: usize = 0x050;
    pub const SGFSYNR1: usize = 0x054;
    pub const SGFSYNR2: usize = 0x058;
    pub const TLBIVMID: usize = 0x064;
    pub const TLBIALLNSNH: usize = 0x068;
    pub const TLBIALLH: usize = 0x06c;
    pub const STLBGSYNC: usize = 0x070;
    pub const STLBGSTATUS: usize = 0x074;
    pub const TLBIVAH: usize = 0x078;
    pub const TLBIVALH64: usize = 0x0b0;
    pub const TLBIVMIDS1: usize = 0x0b8;
    pub const TLBIVAH64: usize = 0x0c0;
    pub const SMR: usize = 0x800;
    pub const S2CR: usize = 0xc00;
    pub const PIDR0: usize = 0xfe0;
    pub const CIDR0: usize = 0xff0;
    /// Where Secure software finds the Non-secure copies of the banked registers, from their own offset.
    pub const NONSECURE: usize = 0x400;
}

/// Fields of `sCR2`, and the pages of the groups that it switches to.
#[allow(missing_docs, reason = "the names are the manual's, and the name is all there is to say")]
pub mod extended {
    pub const EXSMRGENABLE: u32 = 1 << 31;
    pub const EXSMR_PAGE: usize = 6;
    pub const EXS2CR_PAGE: usize = 7;
}

/// Global register space 1.
#[allow(missing_docs, reason = "the names are the manual's, and the name is all there is to say")]
pub mod gr1 {
    pub const CBAR: usize = 0x000;
    pub const CBFRSYNRA: usize = 0x400;
    pub const CBA2R: usize = 0x800;
}

/// One context bank.
#[allow(missing_docs, reason = "the names are the manual's, and the name is all there is to say")]
pub mod cb {
    pub const SCTLR: usize = 0x000;
    pub const ACTLR: usize = 0x004;
    pub const RESUME: usize = 0x008;
    pub const TCR2: usize = 0x010;
    pub const TTBR0: usize = 0x020;
    pub const TTBR1: usize = 0x028;
    pub const TCR: usize = 0x030;
    pub const CONTEXTIDR: usize = 0x034;
    pub const MAIR0: usize = 0x038;
    pub const MAIR1: usize = 0x03c;
    pub const PAR: usize = 0x050;
    pub const FSR: usize = 0x058;
    pub const FSRRESTORE: usize = 0x05c;
    pub const FAR: usize = 0x060;
    pub const FSYNR0: usize = 0x068;
    pub const FSYNR1: usize = 0x06c;
    pub const IPAFAR: usize = 0x070;
    pub const TLBIALL: usize = 0x618;
    pub const TLBIIPAS2: usize = 0x630;
    pub const TLBIIPAS2L: usize = 0x638;
    pub const TLBSYNC: usize = 0x7f0;
    pub const TLBSTATUS: usize = 0x7f4;
}

/// Fields of `sCR0` (IHI 0062, `SMMU_sCR0`).
#[allow(missing_docs, reason = "the names are the manual's, and the name is all there is to say")]
pub mod scr0 {
    pub const CLIENTPD: u32 = 1;
    pub const GFRE: u32 = 1 << 1;
    pub const GFIE: u32 = 1 << 2;
    pub const EXIDENABLE: u32 = 1 << 3;
    pub const GCFGFRE: u32 = 1 << 4;
    pub const GCFGFIE: u32 = 1 << 5;
    pub const STALLD: u32 = 1 << 8;
    pub const GSE: u32 = 1 << 9;
    pub const USFCFG: u32 = 1 << 10;
    pub const VMIDPNE: u32 = 1 << 11;
    pub const PTM: u32 = 1 << 12;
    pub const SMCFCFG: u32 = 1 << 21;
    pub const VMID16EN: u32 = 1 << 31;
}

/// Fields of `SMR` without extended IDs, and of `S2CR`.
#[allow(missing_docs, reason = "the names are the manual's, and the name is all there is to say")]
pub mod stream {
    pub const SMR_VALID: u32 = 1 << 31;
    pub const S2CR_EXIDVALID: u32 = 1 << 10;
    pub const S2CR_TRANSLATE: u32 = 0;
    pub const S2CR_BYPASS: u32 = 1 << 16;
    pub const S2CR_FAULT: u32 = 2 << 16;
    pub const S2CR_TYPE: u32 = 3 << 16;
}

/// Fields of `CBAR` and `CBA2R`.
#[allow(missing_docs, reason = "the names are the manual's, and the name is all there is to say")]
pub mod bank_attributes {
    pub const STAGE2: u32 = 0;
    pub const STAGE1_BYPASS: u32 = 1 << 16;
    pub const STAGE1_FAULT: u32 = 2 << 16;
    pub const NESTED: u32 = 3 << 16;
    pub const TYPE: u32 = 3 << 16;
    pub const VA64: u32 = 1;
}

/// Fields of `SCTLR`.
#[allow(missing_docs, reason = "the names are the manual's, and the name is all there is to say")]
pub mod sctlr {
    pub const M: u32 = 1;
    pub const TRE: u32 = 1 << 1;
    pub const AFE: u32 = 1 << 2;
    pub const AFFD: u32 = 1 << 3;
    pub const CFRE: u32 = 1 << 5;
    pub const CFIE: u32 = 1 << 6;
    pub const CFCFG: u32 = 1 << 7;
    pub const HUPCF: u32 = 1 << 8;
}

/// Fields of `FSR`.
#[allow(missing_docs, reason = "the names are the manual's, and the name is all there is to say")]
pub mod fsr {
    pub const TF: u32 = 1 << 1;
    pub const AFF: u32 = 1 << 2;
    pub const PF: u32 = 1 << 3;
    pub const EF: u32 = 1 << 4;
    pub const TLBMCF: u32 = 1 << 5;
    pub const TLBLKF: u32 = 1 << 6;
    pub const ASF: u32 = 1 << 7;
    pub const UUT: u32 = 1 << 8;
    pub const FORMAT: u32 = 3 << 9;
    pub const SS: u32 = 1 << 30;
    pub const MULTI: u32 = 1 << 31;
}

/// Fields of `sGFSR`.
#[allow(missing_docs, reason = "the names are the manual's, and the name is all there is to say")]
pub mod gfsr {
    pub const ICF: u32 = 1;
    pub const USF: u32 = 1 << 1;
    pub const SMCF: u32 = 1 << 2;
    pub const UCBF: u32 = 1 << 3;
    pub const UCIF: u32 = 1 << 4;
    pub const CAF: u32 = 1 << 5;
    pub const EF: u32 = 1 << 6;
    pub const MULTI: u32 = 1 << 31;
}

/// Bits of `FSYNR0` in a stage-2 bank.
pub(crate) mod fsynr0 {
    pub(crate) const NESTED: u32 = 1 << 2;
    pub(crate) const WNR: u32 = 1 << 4;
    pub(crate) const PNU: u32 = 1 << 5;
    pub(crate) const IND: u32 = 1 << 6;
    pub(crate) const NSATTR: u32 = 1 << 8;
    pub(crate) const PTWF: u32 = 1 << 10;
}

/// Bits of `sGFSYNR0`.
pub(crate) mod gfsynr0 {
    pub(crate) const NESTED: u32 = 1;
    pub(crate) const WNR: u32 = 1 << 1;
    pub(crate) const PNU: u32 = 1 << 2;
    pub(crate) const IND: u32 = 1 << 3;
    pub(crate) const NSSTATE: u32 = 1 << 4;
    pub(crate) const NSATTR: u32 = 1 << 5;
}

/// A part of the register space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Global register space 0.
    Gr0,
    /// Global register space 1.
    Gr1,
    /// A page of the global half that is neither: implementation-defined, PMU, SSD, reserved.
    Global(u32),
    /// A context bank's page.
    Bank(u8),
    /// A page of the bank half without a bank.
    NoBank,
    /// Outside the SMMU.
    Outside,
}

/// Splits an offset from the base into block and offset within it.
pub(crate) fn locate(config: &Config, offset: usize) -> (Block, usize) {
    let Ok(at) = u32::try_from(offset) else { return (Block::Outside, offset) };
    let page = config.page_bytes();
    let within = (at & page.wrapping_sub(1)) as usize;
    let base = config.bank_base();
    if at >= base {
        let number = at.wrapping_sub(base) >> config.page_shift();
        let within = (at.wrapping_sub(base) & page.wrapping_sub(1)) as usize;
        if number >= config.pages() {
            return (Block::Outside, offset);
        }
        return match u8::try_from(number) {
            Ok(number) if number < config.bank_count() => (Block::Bank(number), within),
            _ => (Block::NoBank, within),
        };
    }
    match at >> config.page_shift() {
        0 => (Block::Gr0, within),
        1 => (Block::Gr1, within),
        other => (Block::Global(other), within),
    }
}

/// `(value >> low) & (2^width - 1)`.
pub(crate) const fn field(value: u32, low: u32, width: u32) -> u32 {
    value.wrapping_shr(low) & 1u32.wrapping_shl(width).wrapping_sub(1)
}

/// The low word of a double word.
pub(crate) const fn low_word(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// The high word of a double word.
pub(crate) const fn high_word(value: u64) -> u32 {
    (value >> 32) as u32
}

/// A double word from its halves.
pub(crate) const fn double_word(high: u32, low: u32) -> u64 {
    ((high as u64) << 32) | low as u64
}

/// `old` with the half at `offset` (0 or 4 modulo 8) replaced.
pub(crate) const fn with_half(old: u64, offset: usize, value: u32) -> u64 {
    if offset & 4 == 0 { double_word(high_word(old), value) } else { double_word(value, low_word(old)) }
}

/// The half at `offset` (0 or 4 modulo 8).
pub(crate) const fn half(value: u64, offset: usize) -> u32 {
    if offset & 4 == 0 { low_word(value) } else { high_word(value) }
}

/// Number of a register in an array of words that starts at `base`, when `offset` lies within `count` of them.
pub(crate) fn index_in(offset: usize, base: usize, count: usize) -> Option<usize> {
    let index = offset.checked_sub(base)?.wrapping_div(4);
    (index < count).then_some(index)
}

/// The name of a register, as the trace prints it.
pub(crate) fn name(block: Block, offset: usize) -> String {
    match block {
        Block::Gr0 => gr0_name(offset),
        Block::Gr1 => gr1_name(offset),
        Block::Bank(_) => bank_name(offset).into(),
        Block::Global(6) => format!("EXSMR{}", offset.wrapping_div(4)),
        Block::Global(7) => format!("EXS2CR{}", offset.wrapping_div(4)),
        Block::Global(_) | Block::NoBank | Block::Outside => "-".into(),
    }
}

fn gr0_name(offset: usize) -> String {
    if let Some(n) = index_in(offset, gr0::SMR, 244) {
        return format!("SMR{n}");
    }
    if let Some(n) = index_in(offset, gr0::S2CR, 244) {
        return format!("S2CR{n}");
    }
    if let Some(n) = index_in(offset, 0x020, 8) {
        return format!("IDR{n}");
    }
    match offset {
        0x400..=0x5ff => {
            let mut name = "NS".to_string();
            name.push_str(gr0_plain(offset.wrapping_sub(gr0::NONSECURE)).trim_start_matches('s'));
            name
        }
        _ => gr0_plain(offset).into(),
    }
}

fn gr0_plain(offset: usize) -> &'static str {
    match offset {
        0x000 => "sCR0",
        0x004 => "SCR1",
        0x008 => "sCR2",
        0x010 => "sACR",
        0x040 => "sGFAR",
        0x044 => "sGFAR.high",
        0x048 => "sGFSR",
        0x04c => "sGFSRRESTORE",
        0x050 => "sGFSYNR0",
        0x054 => "sGFSYNR1",
        0x058 => "sGFSYNR2",
        0x060 => "STLBIALL",
        0x064 => "TLBIVMID",
        0x068 => "TLBIALLNSNH",
        0x06c => "TLBIALLH",
        0x070 => "sTLBGSYNC",
        0x074 => "sTLBGSTATUS",
        0x078 => "TLBIVAH",
        0x0a0 | 0x0a4 => "STLBIVALM",
        0x0a8 | 0x0ac => "STLBIVAM",
        0x0b0 | 0x0b4 => "TLBIVALH64",
        0x0b8 => "TLBIVMIDS1",
        0x0bc => "STLBIALLM",
        0x0c0 | 0x0c4 => "TLBIVAH64",
        0xfd0..=0xfdf => "PIDR4-7",
        0xfe0..=0xfef => "PIDR0-3",
        0xff0..=0xfff => "CIDR0-3",
        _ => "-",
    }
}

fn gr1_name(offset: usize) -> String {
    for (base, name) in [(gr1::CBAR, "CBAR"), (gr1::CBFRSYNRA, "CBFRSYNRA"), (gr1::CBA2R, "CBA2R")] {
        if let Some(n) = index_in(offset, base, 128) {
            return format!("{name}{n}");
        }
    }
    "-".into()
}

fn bank_name(offset: usize) -> &'static str {
    match offset {
        0x000 => "SCTLR",
        0x004 => "ACTLR",
        0x008 => "RESUME",
        0x010 => "TCR2",
        0x020 => "TTBR0",
        0x024 => "TTBR0.high",
        0x028 => "TTBR1",
        0x02c => "TTBR1.high",
        0x030 => "TCR",
        0x034 => "CONTEXTIDR",
        0x038 => "MAIR0",
        0x03c => "MAIR1",
        0x050 => "PAR",
        0x054 => "PAR.high",
        0x058 => "FSR",
        0x05c => "FSRRESTORE",
        0x060 => "FAR",
        0x064 => "FAR.high",
        0x068 => "FSYNR0",
        0x06c => "FSYNR1",
        0x070 => "IPAFAR",
        0x074 => "IPAFAR.high",
        0x600 => "TLBIVA",
        0x608 => "TLBIVAA",
        0x610 => "TLBIASID",
        0x618 => "TLBIALL",
        0x620 => "TLBIVAL",
        0x628 => "TLBIVAAL",
        0x630 => "TLBIIPAS2",
        0x638 => "TLBIIPAS2L",
        0x7f0 => "TLBSYNC",
        0x7f4 => "TLBSTATUS",
        _ => "-",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_for_both_page_sizes() {
        let config = Config::mmu500_zynqmp();
        assert_eq!(locate(&config, 0x1004), (Block::Gr1, 4));
        assert_eq!(locate(&config, 0x1_2058), (Block::Bank(2), 0x58));
        assert_eq!(locate(&config, 0x2_0000), (Block::Outside, 0x2_0000));
        let config = Config::generic_v2();
        assert_eq!(locate(&config, 0x1_0800), (Block::Gr1, 0x800));
    }

    #[test]
    fn names_are_the_manuals() {
        assert_eq!(name(Block::Gr0, 0xc04), "S2CR1");
        assert_eq!(name(Block::Gr0, 0x448), "NSGFSR");
        assert_eq!(name(Block::Gr1, 0x808), "CBA2R2");
        assert_eq!(name(Block::Bank(0), 0x24), "TTBR0.high");
    }
}
