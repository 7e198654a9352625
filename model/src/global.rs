//! The two global register spaces: control, identification, global faults, and the banks' attributes.

use crate::config::{Architecture, Config, PageSize, Unimplemented, size_code};
use crate::fault::GlobalFaultKind;
use crate::registers::{self, Block, extended, field, gfsr, gr0, gr1, half, index_in, scr0, with_half};
use crate::smmu::{Smmu, UnknownSource};
use crate::tlb::{Invalidate, Origin, Scope, Sync};

/// Registers of the global space that exist once per security state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Global {
    pub(crate) cr0: u32,
    pub(crate) cr2: u32,
    pub(crate) acr: u32,
    pub(crate) gfar: u64,
    pub(crate) gfsr: u32,
    pub(crate) gfsynr: [u32; 3],
    pub(crate) sync: Sync,
}

impl Global {
    pub(crate) fn reset(config: &Config, unknown: &mut UnknownSource) -> Self {
        // These are the fields that the manual gives no reset value.
        let drawn = scr0::USFCFG | scr0::SMCFCFG | scr0::VMIDPNE | scr0::PTM | 0x000f_e000;
        let cr0 = (unknown.word() & drawn) | scr0::CLIENTPD;
        Self {
            cr0: config.cr0_fixed.apply(cr0 & cr0_bits(config)),
            cr2: unknown.word() & 0xff, // EXSMRGENABLE resets to 0.
            acr: config.acr_reset.unwrap_or_else(|| unknown.word()),
            gfar: unknown.double_word(),
            gfsr: unknown.word() & gfsr_bits(config),
            gfsynr: [unknown.word() & 0x7f, unknown.word() & 0xffff, 0],
            sync: Sync::default(),
        }
    }
}

impl Smmu {
    /// Whether the SMMU takes 16-bit stream IDs now.
    pub(crate) fn extended_ids(&self) -> bool {
        self.config.is_v2() && self.config.extended_ids && self.nonsecure.cr0 & scr0::EXIDENABLE != 0
    }

    /// Whether the SMMU takes 16-bit VMIDs now.
    pub(crate) fn wide_vmids(&self) -> bool {
        self.config.is_v2() && self.config.vmid16 && self.nonsecure.cr0 & scr0::VMID16EN != 0
    }

    /// What a register of GR0 holds; `None` where there is none.
    pub(crate) fn gr0_value(&self, at: usize) -> Option<u32> {
        if let Some(n) = self.group_at(at, gr0::SMR) {
            return Some(self.read_smr(n));
        }
        if let Some(n) = self.group_at(at, gr0::S2CR) {
            return Some(self.map.s2crs.get(n).copied().unwrap_or(0));
        }
        if let Some(n) = index_in(at, gr0::IDR0, 8) {
            return Some(self.identification(n));
        }
        let (secure, at) = self.security_of(at);
        let global = if secure { &self.secure } else { &self.nonsecure };
        Some(match at {
            gr0::STLBGSTATUS => global.sync.status(),
            gr0::SCR0 => global.cr0,
            gr0::SCR2 => global.cr2,
            gr0::SACR => global.acr,
            0x040 | 0x044 => half(global.gfar, at),
            gr0::SGFSR => global.gfsr,
            gr0::SGFSYNR0 => global.gfsynr[0],
            gr0::SGFSYNR1 => global.gfsynr[1],
            gr0::SGFSYNR2 => global.gfsynr[2],
            0xfe0..=0xfec => field(self.config.peripheral_id, low_bits(at).wrapping_mul(8), 8),
            0xfd0 => 0x04,
            0xfd4..=0xfdc => 0,
            0xff0 => 0x0d,
            0xff4 => 0xf0,
            0xff8 => 0x05,
            0xffc => 0xb1,
            _ if is_write_only(at) => 0,
            _ => return None,
        })
    }

    pub(crate) fn write_gr0(&mut self, at: usize, value: u32) {
        if let Some(n) = self.group_at(at, gr0::SMR) {
            return self.write_smr(n, value);
        }
        if let Some(n) = self.group_at(at, gr0::S2CR) {
            return self.write_s2cr(n, value);
        }
        let (secure, at) = self.security_of(at);
        if self.firmware_loses(at, value) {
            return;
        }
        match at {
            gr0::SCR0 => self.write_cr0(secure, value),
            gr0::TLBIVMID => self.invalidate_vmid(value, Scope::Everything),
            gr0::TLBIVMIDS1 if self.config.is_v2() => self.invalidate_vmid(value, Scope::Stage1),
            gr0::TLBIALLNSNH => self.tlb.post(Origin::Global, Invalidate::All, &self.flight),
            // Hyp and Secure entries are not modelled, so these have nothing to remove; they are posted all the same.
            0x060 | gr0::TLBIALLH | gr0::TLBIVAH | 0x0a0..=0x0b4 | 0x0bc..=0x0c4 => {
                self.tlb.post(Origin::Global, Invalidate::Nothing, &self.flight);
            }
            // A Secure sync covers Non-secure maintenance as well: Calxeda's driver has only this one.
            gr0::STLBGSYNC => self.sync_global(secure),
            gr0::STLBGSTATUS | 0x020..=0x03c | 0xfd0..=0xffc => (),
            _ => self.write_global_state(secure, at, value),
        }
    }

    /// The number of an SMR or S2CR. The manual's 128 never fault; what goes on behind them is there as far as there are groups.
    fn group_at(&self, at: usize, base: usize) -> Option<usize> {
        index_in(at, base, usize::from(self.config.group_count()).max(128))
    }

    /// What a register of GR1 holds; `None` where there is none.
    pub(crate) fn gr1_value(&self, at: usize) -> Option<u32> {
        let bank = |base| index_in(at, base, 128).and_then(|n| self.banks.get(n));
        if let Some(bank) = bank(gr1::CBAR) {
            Some(bank.cbar)
        } else if let Some(bank) = bank(gr1::CBFRSYNRA) {
            Some(bank.cbfrsynra)
        } else {
            bank(gr1::CBA2R).map(|bank| bank.cba2r)
        }
    }

    pub(crate) fn write_gr1(&mut self, at: usize, value: u32) {
        if let Some(n) = index_in(at, gr1::CBAR, usize::from(self.config.bank_count())) {
            self.write_cbar(n, value);
        } else if let Some(n) = index_in(at, gr1::CBA2R, usize::from(self.config.bank_count())) {
            self.write_cba2r(n, value);
        } else if let Some(n) = index_in(at, gr1::CBFRSYNRA, usize::from(self.config.bank_count())) {
            if let Some(bank) = self.banks.get_mut(n) {
                bank.cbfrsynra = value & 0xffff;
            }
        } else {
            self.access_fault(Block::Gr1, self.gr1(at), true);
        }
    }

    /// An unimplemented register: nothing, or a configuration access fault; v2 gives none for the banks' pages.
    pub(crate) fn access_fault(&mut self, block: Block, offset: usize, write: bool) {
        let banks = matches!(block, Block::Bank(_) | Block::NoBank);
        if self.config.unimplemented == Unimplemented::Fault && !(banks && self.config.is_v2()) {
            self.record_global_fault(GlobalFaultKind::ConfigurationAccess, offset as u64, 0, u32::from(write) << 1);
        }
    }

    /// Which copy of a banked register an access reaches, and the register's own offset.
    pub(crate) fn security_of(&self, at: usize) -> (bool, usize) {
        if !self.config.quirks.secure_accesses {
            return (false, at);
        }
        match at {
            0x400..=0x5ff => (false, at.wrapping_sub(gr0::NONSECURE)),
            0x000..=0x01f | 0x040..=0x05f | 0x070..=0x077 => (true, at),
            _ => (false, at),
        }
    }

    fn firmware_loses(&mut self, at: usize, value: u32) -> bool {
        let maintenance = matches!(at, 0x060..=0x070 | 0x078 | 0x0a0..=0x0c4) && at != gr0::TLBIVMID;
        let lost = self.config.quirks.zero_maintenance_lost && maintenance && value == 0;
        if lost {
            self.hazard(crate::Hazard::ZeroWriteLost(at));
        }
        lost
    }

    fn write_cr0(&mut self, secure: bool, value: u32) {
        let value = self.config.cr0_fixed.apply(value & cr0_bits(&self.config));
        if secure {
            self.secure.cr0 = value;
            return;
        }
        let changed = self.nonsecure.cr0 ^ value;
        self.nonsecure.cr0 = value;
        if changed & scr0::VMID16EN != 0 {
            self.forget_vmids();
        }
    }

    /// Programmed VMIDs are UNKNOWN once VMID16EN has changed.
    fn forget_vmids(&mut self) {
        for bank in &mut self.banks {
            let unknown = self.unknown.word();
            bank.cbar = (bank.cbar & !0xff) | (unknown & 0xff);
            bank.cba2r = (bank.cba2r & 0xffff) | (unknown & 0xffff_0000);
        }
    }

    fn invalidate_vmid(&mut self, value: u32, scope: Scope) {
        let vmid = if self.wide_vmids() { (value & 0xffff) as u16 } else { (value & 0xff) as u16 };
        self.tlb.post(Origin::Global, Invalidate::Vmid { vmid, scope }, &self.flight);
    }

    fn write_global_state(&mut self, secure: bool, at: usize, value: u32) {
        let status = gfsr_bits(&self.config);
        let extends = self.config.extended_group_count() > 0;
        let cr2_bits = if extends { extended::EXSMRGENABLE | 0xff } else { 0xff };
        let global = if secure { &mut self.secure } else { &mut self.nonsecure };
        match at {
            gr0::SCR2 => global.cr2 = value & cr2_bits,
            gr0::SACR => global.acr = value,
            0x040 | 0x044 => global.gfar = with_half(global.gfar, at, value),
            gr0::SGFSR => global.gfsr &= !value,
            gr0::SGFSRRESTORE => global.gfsr |= value & status,
            gr0::SGFSYNR0 => global.gfsynr[0] = value,
            gr0::SGFSYNR1 => global.gfsynr[1] = value & 0xffff,
            gr0::SGFSYNR2 => global.gfsynr[2] = value,
            _ => self.access_fault(Block::Gr0, at, true),
        }
    }

    fn identification(&self, n: usize) -> u32 {
        let c = &self.config;
        let bit = |set: bool, at: u32| u32::from(set).wrapping_shl(at);
        match n {
            0 => {
                let groups = c.quirks.reported_groups.unwrap_or(c.group_count());
                let interrupts = if c.is_v2() { 1 } else { c.context_interrupts };
                bit(c.stage1, 30)
                    | bit(c.stage2, 29)
                    | bit(c.nested, 28)
                    | bit(c.stream_matching, 27)
                    // Address translation operations are not modelled, and v2 can say so.
                    | bit(c.is_v2(), 26)
                    | (u32::from(interrupts) << 16)
                    | bit(c.quirks.reported_coherent_walk.unwrap_or(c.coherent_walk), 14)
                    | bit(c.extended_group_count() > 0, 15)
                    | bit(c.broadcast_maintenance, 13)
                    | (u32::from(c.stream_id_bits & 15) << 9)
                    | bit(c.is_v2() && c.extended_ids, 8)
                    | u32::from(groups)
            }
            1 => {
                bit(c.page_size == PageSize::Large, 31)
                    | (u32::from(c.num_page_index_bits & 7) << 28)
                    | (u32::from(c.stage2_banks) << 16)
                    | bit(c.conflict_reported, 15)
                    | (u32::from(c.security_index_bits & 15) << 8)
                    | u32::from(c.quirks.reported_banks.unwrap_or(c.bank_count()))
            }
            2 => {
                let sizes = (size_code(c.upstream_bits) << 8)
                    | (size_code(c.output_bits) << 4)
                    | size_code(c.intermediate_bits);
                match c.architecture {
                    Architecture::V1 => sizes & 0xff,
                    Architecture::V1Aarch64 => sizes & 0xff,
                    Architecture::V2 => {
                        sizes
                            | (u32::from(c.extended_group_count()) << 16)
                            | bit(c.vmid16, 15)
                            | bit(c.granule_64k, 14)
                            | bit(c.granule_16k, 13)
                            | bit(c.granule_4k, 12)
                    }
                }
            }
            7 => u32::from(c.revision),
            _ => 0,
        }
    }
}

/// The bits of `sCR0` that exist.
fn cr0_bits(config: &Config) -> u32 {
    let mut bits = 0x0fff_ffff;
    if !(config.is_v2() && config.extended_ids) {
        bits &= !scr0::EXIDENABLE;
    }
    if config.is_v2() && config.vmid16 {
        bits |= scr0::VMID16EN;
    }
    bits
}

fn gfsr_bits(config: &Config) -> u32 {
    let bits = gfsr::MULTI | gfsr::EF | gfsr::CAF | gfsr::UCBF | gfsr::SMCF | gfsr::USF | gfsr::ICF;
    if config.is_v2() { bits } else { bits | gfsr::UCIF }
}

fn is_write_only(at: usize) -> bool {
    matches!(at, gr0::SGFSRRESTORE | 0x060..=0x070 | 0x078 | 0x0a0..=0x0c4)
}

/// Number of a word within its group of four.
fn low_bits(at: usize) -> u32 {
    registers::low_word((at as u64 >> 2) & 3)
}
