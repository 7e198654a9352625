//! Decoding of register fields for the trace.

use alloc::string::String;
use core::fmt::Write;

use crate::registers::{Block, cb, field, gr0, gr1, index_in, low_word};
use crate::smmu::Smmu;

/// Single bits by name.
type Flags = &'static [(u32, &'static str)];

/// The fields of `value` that matter in a review, as `NAME=value` and bare names of set bits.
pub(crate) fn decode(smmu: &Smmu, block: Block, at: usize, value: u64) -> String {
    let word = low_word(value);
    let mut text = String::new();
    // Writing to a string cannot fail.
    _ = match block {
        Block::Gr0 => global(&mut text, smmu, at, word),
        Block::Gr1 => attributes(&mut text, smmu, at, word),
        Block::Bank(_) => bank(&mut text, at, value),
        Block::Global(_) | Block::NoBank | Block::Outside => Ok(()),
    };
    text.truncate(text.trim_end().len());
    text
}

fn global(out: &mut String, smmu: &Smmu, at: usize, word: u32) -> core::fmt::Result {
    if index_in(at, gr0::SMR, 128).is_some() {
        return if smmu.extended_ids() {
            write!(out, "EXID={:#x} EXMASK={:#x}", field(word, 0, 16), field(word, 16, 16))
        } else {
            flags(out, word, &[(31, "VALID")])?;
            write!(out, "ID={:#x} MASK={:#x}", field(word, 0, 15), field(word, 16, 15))
        };
    }
    if index_in(at, gr0::S2CR, 128).is_some() {
        let low = field(word, 0, 8);
        match field(word, 16, 2) {
            0 => write!(out, "TYPE=translate CBNDX={low} ")?,
            1 => write!(out, "TYPE=bypass VMID={low} ")?,
            2 => write!(out, "TYPE=fault ")?,
            _ => write!(out, "TYPE=reserved ")?,
        }
        let extended = if smmu.extended_ids() { word } else { 0 };
        return flags(out, extended, &[(10, "EXIDVALID")]);
    }
    match at {
        gr0::SCR0 | 0x400 => flags(out, word, SCR0),
        gr0::SGFSR | 0x448 => flags(out, word, SGFSR),
        gr0::SGFSYNR1 | 0x454 => write!(out, "StreamID={:#x}", field(word, 0, 16)),
        gr0::TLBIVMID | gr0::TLBIVMIDS1 => write!(out, "VMID={}", field(word, 0, 16)),
        gr0::STLBGSTATUS | 0x474 => flags(out, word, &[(0, "GSACTIVE")]),
        gr0::IDR0 => {
            flags(out, word, IDR0)?;
            let (ids, groups) = (field(word, 9, 4), field(word, 0, 8));
            write!(out, "NUMIRPT={} NUMSIDB={ids} NUMSMRG={groups}", field(word, 16, 8))
        }
        gr0::IDR1 => {
            let page = if word >> 31 != 0 { "64K" } else { "4K" };
            write!(out, "PAGESIZE={page} NUMPAGENDXB={} ", field(word, 28, 3))?;
            flags(out, word, &[(15, "SMCD")])?;
            write!(out, "NUMS2CB={} NUMCB={}", field(word, 16, 8), field(word, 0, 8))
        }
        gr0::IDR2 => {
            flags(out, word, IDR2)?;
            write!(out, "UBS={} OAS={} IAS={}", field(word, 8, 4), field(word, 4, 4), field(word, 0, 4))
        }
        _ => Ok(()),
    }
}

fn attributes(out: &mut String, smmu: &Smmu, at: usize, word: u32) -> core::fmt::Result {
    if index_in(at, gr1::CBAR, 128).is_some() {
        match field(word, 16, 2) {
            0 => write!(out, "TYPE=s2 ")?,
            1 => write!(out, "TYPE=s1-bypass ")?,
            2 => write!(out, "TYPE=s1-fault ")?,
            _ => write!(out, "TYPE=nested CBNDX={} ", field(word, 8, 8))?,
        }
        if !smmu.config().is_v2() {
            write!(out, "IRPTNDX={} ", field(word, 24, 8))?;
        }
        return write!(out, "VMID={}", field(word, 0, 8));
    }
    if index_in(at, gr1::CBA2R, 128).is_some() {
        flags(out, word, &[(1, "MONC"), (0, "VA64")])?;
        return if smmu.wide_vmids() { write!(out, "VMID16={}", field(word, 16, 16)) } else { Ok(()) };
    }
    if index_in(at, gr1::CBFRSYNRA, 128).is_some() {
        return write!(out, "StreamID={:#x}", field(word, 0, 16));
    }
    Ok(())
}

fn bank(out: &mut String, at: usize, value: u64) -> core::fmt::Result {
    let word = low_word(value);
    match at {
        cb::SCTLR => flags(out, word, SCTLR),
        cb::RESUME => write!(out, "{}", if word & 1 == 0 { "retry" } else { "terminate" }),
        cb::TCR => {
            let (size, start, granule) = (field(word, 0, 6), field(word, 6, 2), field(word, 14, 2));
            write!(out, "T0SZ={size} SL0={start} TG0={granule} PASize={}", field(word, 16, 3))
        }
        cb::FSR => flags(out, word, FSR),
        cb::FSYNR0 => {
            flags(out, word, FSYNR0)?;
            write!(out, "PLVL={}", field(word, 0, 2))
        }
        cb::TLBIIPAS2 | cb::TLBIIPAS2L => write!(out, "IPA={:#x}", (value & 0xf_ffff_ffff) << 12),
        cb::TLBSTATUS => flags(out, word, &[(0, "SACTIVE")]),
        _ => Ok(()),
    }
}

fn flags(out: &mut String, word: u32, flags: Flags) -> core::fmt::Result {
    for (bit, name) in flags {
        if field(word, *bit, 1) != 0 {
            write!(out, "{name} ")?;
        }
    }
    Ok(())
}

const SCR0: Flags = &[
    (31, "VMID16EN"),
    (21, "SMCFCFG"),
    (13, "FB"),
    (12, "PTM"),
    (11, "VMIDPNE"),
    (10, "USFCFG"),
    (9, "GSE"),
    (8, "STALLD"),
    (5, "GCFGFIE"),
    (4, "GCFGFRE"),
    (3, "EXIDENABLE"),
    (2, "GFIE"),
    (1, "GFRE"),
    (0, "CLIENTPD"),
];
const SGFSR: Flags = &[
    (31, "MULTI"),
    (8, "UUT"),
    (7, "PF"),
    (6, "EF"),
    (5, "CAF"),
    (4, "UCIF"),
    (3, "UCBF"),
    (2, "SMCF"),
    (1, "USF"),
    (0, "ICF"),
];
const IDR0: Flags = &[
    (30, "S1TS"),
    (29, "S2TS"),
    (28, "NTS"),
    (27, "SMS"),
    (26, "ATOSNS"),
    (15, "EXSMRGS"),
    (14, "CTTW"),
    (13, "BTM"),
    (8, "EXIDS"),
];
const IDR2: Flags = &[(15, "VMID16S"), (14, "64K"), (13, "16K"), (12, "4K")];
const SCTLR: Flags = &[
    (13, "PTW"),
    (8, "HUPCF"),
    (7, "CFCFG"),
    (6, "CFIE"),
    (5, "CFRE"),
    (4, "E"),
    (3, "AFFD"),
    (2, "AFE"),
    (1, "TRE"),
    (0, "M"),
];
const FSR: Flags = &[
    (31, "MULTI"),
    (30, "SS"),
    (8, "UUT"),
    (7, "ASF"),
    (6, "TLBLKF"),
    (5, "TLBMCF"),
    (4, "EF"),
    (3, "PF"),
    (2, "AFF"),
    (1, "TF"),
];
const FSYNR0: Flags = &[(10, "PTWF"), (6, "IND"), (5, "PNU"), (4, "WNR"), (3, "S1PTWF"), (2, "NESTED")];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::registers::bank_attributes;

    #[test]
    fn a_bypass_is_not_called_a_bank() {
        let smmu = Smmu::new(Config::generic_v2());
        assert_eq!(decode(&smmu, Block::Gr0, 0xc00, 0x0001_0007), "TYPE=bypass VMID=7");
        assert_eq!(bank_text(bank_attributes::NESTED | 0x0305, &smmu), "TYPE=nested CBNDX=3 VMID=5");
    }

    fn bank_text(value: u32, smmu: &Smmu) -> String {
        decode(smmu, Block::Gr1, 0, u64::from(value))
    }
}
