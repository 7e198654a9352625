//! Offsets and fields, as Arm IHI 0062D names them. Nothing here decides anything.

use bitflags::bitflags;

/// Global register space 0 (offsets from the instance's base).
pub(in crate::smmu) mod gr0 {
    pub(in crate::smmu) const SCR0: u32 = 0x000;
    pub(in crate::smmu) const SCR2: u32 = 0x008;
    pub(in crate::smmu) const SACR: u32 = 0x010;
    pub(in crate::smmu) const IDR0: u32 = 0x020;
    pub(in crate::smmu) const IDR1: u32 = 0x024;
    pub(in crate::smmu) const IDR2: u32 = 0x028;
    pub(in crate::smmu) const IDR7: u32 = 0x03c;
    pub(in crate::smmu) const SGFAR: u32 = 0x040;
    pub(in crate::smmu) const SGFSR: u32 = 0x048;
    pub(in crate::smmu) const SGFSYNR0: u32 = 0x050;
    pub(in crate::smmu) const SGFSYNR1: u32 = 0x054;
    pub(in crate::smmu) const TLBIVMID: u32 = 0x064;
    pub(in crate::smmu) const TLBIALLNSNH: u32 = 0x068;
    pub(in crate::smmu) const TLBIALLH: u32 = 0x06c;
    pub(in crate::smmu) const STLBGSYNC: u32 = 0x070;
    pub(in crate::smmu) const STLBGSTATUS: u32 = 0x074;

    /// As many groups as there is room for in front of PIDR4. The manual has 128 of them (quirk Q13).
    pub(in crate::smmu) const MOST_GROUPS: u32 = 244;

    /// SMRn.
    pub(in crate::smmu) const fn smr(index: u8) -> u32 {
        (index as u32).wrapping_add(0x200) << 2
    }

    /// S2CRn.
    pub(in crate::smmu) const fn s2cr(index: u8) -> u32 {
        (index as u32).wrapping_add(0x300) << 2
    }
}

/// Global register space 1 (offsets from one page above the base).
pub(in crate::smmu) mod gr1 {
    /// CBARn, n < 128.
    pub(in crate::smmu) const fn cbar(bank: u8) -> u32 {
        ((bank & 0x7f) as u32) << 2
    }

    /// CBFRSYNRAn, n < 128.
    pub(in crate::smmu) const fn cbfrsynra(bank: u8) -> u32 {
        0x400 | ((bank & 0x7f) as u32) << 2
    }

    /// CBA2Rn, n < 128.
    pub(in crate::smmu) const fn cba2r(bank: u8) -> u32 {
        0x800 | ((bank & 0x7f) as u32) << 2
    }
}

/// A context bank (offsets from the bank's page).
pub(in crate::smmu) mod cb {
    pub(in crate::smmu) const SCTLR: u32 = 0x000;
    pub(in crate::smmu) const ACTLR: u32 = 0x004;
    pub(in crate::smmu) const TTBR0: u32 = 0x020;
    pub(in crate::smmu) const TCR: u32 = 0x030;
    pub(in crate::smmu) const RESUME: u32 = 0x008;
    pub(in crate::smmu) const FSR: u32 = 0x058;
    pub(in crate::smmu) const FAR: u32 = 0x060;
    pub(in crate::smmu) const FSYNR0: u32 = 0x068;
    pub(in crate::smmu) const TLBIIPAS2: u32 = 0x630;
    pub(in crate::smmu) const TLBIIPAS2L: u32 = 0x638;
    pub(in crate::smmu) const TLBSYNC: u32 = 0x7f0;
    pub(in crate::smmu) const TLBSTATUS: u32 = 0x7f4;
}

/// Written where the value is ignored: never zero, which some hypervisors below mis-decode (quirk Q14).
pub(in crate::smmu) const ANY_VALUE: u32 = 0xffff_ffff;

bitflags! {
    /// sCR0: the instance's control register.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::smmu) struct Scr0: u32 {
        const CLIENTPD = 1 << 0;
        const GFRE = 1 << 1;
        const GFIE = 1 << 2;
        const EXIDENABLE = 1 << 3;
        const GCFGFRE = 1 << 4;
        const GCFGFIE = 1 << 5;
        const STALLD = 1 << 8;
        const USFCFG = 1 << 10;
        const VMIDPNE = 1 << 11;
        const PTM = 1 << 12;
        const SMCFCFG = 1 << 21;
        const VMID16EN = 1 << 31;
        const _ = !0;
    }

    /// sCR2, of version 2: what stands in for the stream map. Other bits are implementation-defined or Secure.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::smmu) struct Scr2: u32 {
        /// A table gives the index of a stream's S2CR.
        const COMPINDEXENABLE = 1 << 29;
        /// EXSMRs and EXS2CRs are looked at instead of SMRs and S2CRs.
        const EXSMRGENABLE = 1 << 31;
        const _ = !0;
    }

    /// Stage-2 SCTLR of a context bank.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::smmu) struct Sctlr: u32 {
        const M = 1 << 0;
        const TRE = 1 << 1;
        const AFE = 1 << 2;
        const CFRE = 1 << 5;
        const CFIE = 1 << 6;
        const HUPCF = 1 << 8;
        const _ = !0;
    }

    /// sGFSR: global fault status. MULTI is where FSR has it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::smmu) struct Gfsr: u32 {
        const ICF = 1 << 0;
        const USF = 1 << 1;
        const SMCF = 1 << 2;
        const UCBF = 1 << 3;
        const UCIF = 1 << 4;
        const CAF = 1 << 5;
        const EF = 1 << 6;
        const _ = !0;
    }

    /// FSR of a context bank. Format (10:9) is no fault.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in crate::smmu) struct Fsr: u32 {
        const TF = 1 << 1;
        const AFF = 1 << 2;
        const PF = 1 << 3;
        const EF = 1 << 4;
        const ASF = 1 << 7;
        const SS = 1 << 30;
        const MULTI = 1 << 31;
        /// Whatever says that something faulted: the bits above, TLBMCF, TLBLKF and UUT.
        const FAULTS = 0xc000_01fe;
        const _ = !0;
    }
}

/// FSYNR0 and sGFSYNR0 bits that tell what the transaction wanted.
pub(in crate::smmu) mod syndrome {
    pub(in crate::smmu) const FSYNR0_WNR: u32 = 1 << 4;
    pub(in crate::smmu) const FSYNR0_IND: u32 = 1 << 6;
    pub(in crate::smmu) const GFSYNR0_WNR: u32 = 1 << 1;
    pub(in crate::smmu) const GFSYNR0_IND: u32 = 1 << 3;
    /// StreamID of sGFSYNR1 and CBFRSYNRA.
    pub(in crate::smmu) const STREAM_ID: u32 = 0xffff;
}

/// S2CR as a value: what an entry does on a match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::smmu) enum S2cr {
    /// TYPE 2.
    Fault,
    /// TYPE 0, to this bank.
    Translate(u8),
}

impl S2cr {
    /// TYPE and CBNDX: what an audit compares. The rest is implementation-defined or attributes that stay zero.
    pub(in crate::smmu) const COMPARED: u32 = 3 << 16 | 1 << 10 | 0xff;

    /// TYPE of what was read, and the bank that it names.
    pub(in crate::smmu) const fn decode(value: u32) -> Option<Self> {
        match (value >> 16) & 3 {
            0 => Some(Self::Translate(value.to_le_bytes()[0])),
            1 => None,
            _ => Some(Self::Fault),
        }
    }
}

/// How S2CR is spelled on a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::smmu) struct Spelling {
    /// TYPE as it must be written for a stream to fault (quirk Q12).
    pub(in crate::smmu) fault: u32,
    /// Validity stands in the S2CR (extended IDs with stream matching).
    pub(in crate::smmu) validity: bool,
}

impl Spelling {
    /// TYPE 2, as the manual has it, and as it is read everywhere.
    pub(in crate::smmu) const FAULT: u32 = 2 << 16;
    /// TYPE 1.
    pub(in crate::smmu) const BYPASS: u32 = 1 << 16;
    const EXIDVALID: u32 = 1 << 10;

    /// What is written for an entry that matches (`valid`) or not.
    pub(in crate::smmu) const fn write(self, action: S2cr, valid: bool) -> u32 {
        self.spell(action, valid, self.fault)
    }

    /// What is read from it then.
    pub(in crate::smmu) const fn read(self, action: S2cr, valid: bool) -> u32 {
        self.spell(action, valid, Self::FAULT)
    }

    /// Whether an S2CR that was read says that its entry matches, where it is the S2CR that says so.
    pub(in crate::smmu) const fn is_valid(self, s2cr: u32) -> bool {
        s2cr & Self::EXIDVALID != 0
    }

    const fn spell(self, action: S2cr, valid: bool, fault: u32) -> u32 {
        let validity = if self.validity && valid { Self::EXIDVALID } else { 0 };
        validity
            | match action {
                S2cr::Fault => fault,
                S2cr::Translate(bank) => bank as u32,
            }
    }
}

/// SMR as a value.
pub(in crate::smmu) mod smr {
    const VALID: u32 = 1 << 31;

    /// An entry that matches: ID and MASK in place, and VALID where it stands here (without extended IDs).
    pub(in crate::smmu) const fn encode(id: u32, mask: u32, extended: bool) -> u32 {
        if extended { (mask & 0xffff) << 16 | id & 0xffff } else { VALID | (mask & 0x7fff) << 16 | id & 0x7fff }
    }

    /// Splits what was read into (valid, id, mask); validity is the caller's to know with extended IDs.
    pub(in crate::smmu) const fn decode(value: u32, extended: bool) -> (bool, u32, u32) {
        if extended {
            (true, value & 0xffff, value >> 16)
        } else {
            (value & VALID != 0, value & 0x7fff, (value >> 16) & 0x7fff)
        }
    }
}

/// A field of an identification register.
pub(in crate::smmu) const fn field(value: u32, high: u32, low: u32) -> u32 {
    (value >> low) & (u32::MAX >> (31_u32.saturating_sub(high).saturating_add(low)))
}

/// One bit of an identification register.
pub(in crate::smmu) const fn bit(value: u32, index: u32) -> bool {
    (value >> index) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_cut_out_as_the_manual_numbers_them() {
        // ZynqMP's IDR0 as its register reference prints it.
        let idr0 = 0xfc01_3e30;
        assert!(bit(idr0, 29), "S2TS");
        assert_eq!(field(idr0, 7, 0), 48, "NUMSMRG");
        assert_eq!(field(idr0, 12, 9), 15, "NUMSIDB");
        assert_eq!(field(u32::MAX, 31, 0), u32::MAX);
    }

    #[test]
    fn a_mask_bit_of_one_ignores() {
        assert_eq!(smr::encode(0x400, 0x3ff, false), 0x83ff_0400);
        assert_eq!(smr::decode(0x83ff_0400, false), (true, 0x400, 0x3ff));
        assert_eq!(smr::encode(0x8001, 0x7ffe, true), 0x7ffe_8001);
    }
}
