//! Context banks: their registers, their attributes, stall and resume.

use crate::config::Config;
use crate::fault::format_bits;
use crate::flight::State;
use crate::registers::{Block, bank_attributes, cb, fsr, half, sctlr, with_half};
use crate::smmu::{Smmu, UnknownSource};
use crate::tlb::{Invalidate, Origin, Sync};

/// The registers of one bank, with its words in GR1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bank {
    pub(crate) cbar: u32,
    pub(crate) cbfrsynra: u32,
    pub(crate) cba2r: u32,
    pub(crate) sctlr: u32,
    pub(crate) actlr: u32,
    pub(crate) tcr2: u32,
    pub(crate) ttbr: [u64; 2],
    pub(crate) tcr: u32,
    pub(crate) contextidr: u32,
    pub(crate) mair: [u32; 2],
    pub(crate) par: u64,
    pub(crate) fsr: u32,
    pub(crate) far: u64,
    pub(crate) fsynr: [u32; 2],
    pub(crate) sync: Sync,
    /// SCTLR.CFCFG as it acts: a change waits until FSR is clear.
    pub(crate) stalls: bool,
}

impl Bank {
    pub(crate) fn reset(config: &Config, n: u8, unknown: &mut UnknownSource) -> Self {
        // The manual's reset value for parts that know the 32-bit formats, as all of these do.
        let cba2r = 0;
        let control = unknown.word() & !sctlr::CFIE;
        let control = config.sctlr_reset.unwrap_or(control) & sctlr_bits(config);
        let cbar = config.cbar_reset.unwrap_or_else(|| unknown.word());
        Self {
            cbar: fixed_cbar(config, n, cbar),
            cbfrsynra: unknown.word() & 0xffff,
            cba2r,
            sctlr: control,
            actlr: config.actlr_reset.unwrap_or_else(|| unknown.word()),
            tcr2: unknown.word(),
            ttbr: [unknown.double_word(), unknown.double_word()],
            tcr: unknown.word(),
            contextidr: unknown.word(),
            mair: [unknown.word(), unknown.word()],
            par: unknown.double_word(),
            fsr: (unknown.word() & fsr_bits(config)) | format_bits(config.is_v2(), cba2r),
            far: unknown.double_word(),
            fsynr: [unknown.word(), unknown.word()],
            sync: Sync::default(),
            stalls: control & sctlr::CFCFG != 0,
        }
    }

    /// Whether the bank holds a fault that software has not cleared.
    pub(crate) fn is_faulted(&self) -> bool {
        self.fsr & !fsr::FORMAT != 0
    }

    /// Level of the bank's interrupt.
    pub(crate) fn irq(&self) -> bool {
        self.is_faulted() && self.sctlr & sctlr::CFIE != 0
    }

    fn settle_stall_mode(&mut self) {
        if !self.is_faulted() {
            self.stalls = self.sctlr & sctlr::CFCFG != 0;
        }
    }
}

impl Smmu {
    /// The VMID that bank `n` tags its translations with.
    pub(crate) fn vmid_of(&self, n: u8) -> u16 {
        let Some(bank) = self.banks.get(usize::from(n)) else { return 0 };
        if self.wide_vmids() { (bank.cba2r >> 16) as u16 } else { (bank.cbar & 0xff) as u16 }
    }

    /// What a register of bank `n` holds; `None` where there is none.
    pub(crate) fn bank_value(&self, n: u8, at: usize) -> Option<u32> {
        let v2 = self.config.is_v2();
        let bank = self.banks.get(usize::from(n))?;
        Some(match at {
            cb::TLBSTATUS if self.has_bank_sync(n) => bank.sync.status(),
            cb::SCTLR => bank.sctlr,
            cb::ACTLR => bank.actlr,
            cb::TCR2 => bank.tcr2,
            0x020 | 0x024 => half(bank.ttbr[0], at),
            0x028 | 0x02c => half(bank.ttbr[1], at),
            cb::TCR => bank.tcr,
            cb::CONTEXTIDR => bank.contextidr,
            cb::MAIR0 => bank.mair[0],
            cb::MAIR1 => bank.mair[1],
            0x050 | 0x054 => half(bank.par, at),
            cb::FSR => bank.fsr,
            0x060 | 0x064 => half(bank.far, at),
            cb::FSYNR0 => bank.fsynr[0],
            cb::FSYNR1 => bank.fsynr[1],
            0x070 | 0x074 if v2 => half(bank.far, at),
            cb::RESUME | cb::FSRRESTORE | cb::TLBSYNC | 0x600..=0x63c => 0,
            _ => return None,
        })
    }

    pub(crate) fn write_bank(&mut self, n: u8, at: usize, value: u32) {
        if is_wide_operation(at) {
            return self.bank_operation(n, at, u64::from(value));
        }
        let locked = self.config.quirks.cache_lock && self.nonsecure.acr & (1 << 26) != 0;
        let (status, control) = (fsr_bits(&self.config), sctlr_bits(&self.config));
        let Some(bank) = self.banks.get_mut(usize::from(n)) else { return };
        match at {
            cb::SCTLR => {
                bank.sctlr = value & control;
                bank.settle_stall_mode();
            }
            cb::ACTLR if locked => (),
            cb::ACTLR => bank.actlr = value,
            cb::RESUME => self.resume(n, value & 1 != 0),
            cb::TCR2 => bank.tcr2 = value,
            0x020 | 0x024 => bank.ttbr[0] = with_half(bank.ttbr[0], at, value),
            0x028 | 0x02c => bank.ttbr[1] = with_half(bank.ttbr[1], at, value),
            cb::TCR => bank.tcr = value,
            cb::CONTEXTIDR => bank.contextidr = value,
            cb::MAIR0 => bank.mair[0] = value,
            cb::MAIR1 => bank.mair[1] = value,
            0x050 | 0x054 => bank.par = with_half(bank.par, at, value),
            cb::FSR => {
                bank.fsr &= !(value & status);
                bank.settle_stall_mode();
            }
            cb::FSRRESTORE => bank.fsr |= value & status,
            0x060 | 0x064 => bank.far = with_half(bank.far, at, value),
            cb::FSYNR0 => bank.fsynr[0] = value,
            cb::FSYNR1 => bank.fsynr[1] = value,
            // Stage-1 maintenance has nothing to remove, since stage-1 translations are not cached.
            0x600..=0x62c => self.tlb.post(Origin::Bank(n), Invalidate::Nothing, &self.flight),
            cb::TLBSYNC if self.has_bank_sync(n) => self.sync_bank(n),
            cb::TLBSTATUS | 0x070 | 0x074 | 0x634 | 0x63c => (),
            _ => self.access_fault(Block::Bank(n), self.bank(n, at), true),
        }
    }

    /// `TLBIIPAS2` and `TLBIIPAS2L`: one page number in bits 35:0.
    pub(crate) fn bank_operation(&mut self, n: u8, at: usize, value: u64) {
        if !self.config.is_v2() {
            return self.access_fault(Block::Bank(n), self.bank(n, at), true);
        }
        let page = (value & 0xf_ffff_ffff) << 12;
        let invalidate = Invalidate::Page { vmid: self.vmid_of(n), page, leaf: at == cb::TLBIIPAS2L };
        self.tlb.post(Origin::Bank(n), invalidate, &self.flight);
    }

    pub(crate) fn write_cbar(&mut self, n: usize, value: u32) {
        let number = u8::try_from(n).unwrap_or(u8::MAX);
        let wide = self.wide_vmids();
        let mut value = fixed_cbar(&self.config, number, value);
        if wide {
            value &= !0xff;
        }
        if let Some(bank) = self.banks.get_mut(n) {
            bank.cbar = value;
        }
        self.retry_after_bank_write(number);
    }

    pub(crate) fn write_cba2r(&mut self, n: usize, value: u32) {
        let bits = cba2r_bits(&self.config);
        let v2 = self.config.is_v2();
        if let Some(bank) = self.banks.get_mut(n) {
            bank.cba2r = value & bits;
            bank.fsr = (bank.fsr & !fsr::FORMAT) | format_bits(v2, bank.cba2r);
        }
        self.retry_after_bank_write(u8::try_from(n).unwrap_or(u8::MAX));
    }

    /// `RESUME`: every stalled transaction of the bank is ended, or starts again from its stream ID.
    fn resume(&mut self, n: u8, terminate: bool) {
        if let Some(bank) = self.banks.get_mut(usize::from(n)) {
            bank.fsr &= !fsr::SS;
            bank.settle_stall_mode();
        }
        for flight in &mut self.flight {
            if flight.state == State::Stalled(n) {
                flight.state = if terminate { State::Ending(n) } else { State::Accepted };
            }
        }
    }

    fn retry_after_bank_write(&mut self, n: u8) {
        let stalled = self.flight.iter().any(|flight| flight.state == State::Stalled(n));
        if self.config.bank_write_retries && stalled {
            self.resume(n, false);
        }
    }

    /// Stage-2 banks have a sync of their own in v2 only.
    pub(crate) fn has_bank_sync(&self, n: u8) -> bool {
        let cbar = self.banks.get(usize::from(n)).map_or(0, |bank| bank.cbar);
        self.config.is_v2() || cbar & bank_attributes::TYPE != bank_attributes::STAGE2
    }
}

/// Registers of a bank that start an operation with a 64-bit operand.
pub(crate) fn is_wide_operation(at: usize) -> bool {
    matches!(at, cb::TLBIIPAS2 | cb::TLBIIPAS2L)
}

fn cba2r_bits(config: &Config) -> u32 {
    match (config.has_cba2r(), config.is_v2() && config.vmid16) {
        (false, _) => 0,
        (true, false) => 0x3,
        (true, true) => 0xffff_0003,
    }
}

fn fsr_bits(config: &Config) -> u32 {
    let bits = fsr::MULTI | fsr::TLBLKF | fsr::TLBMCF | fsr::EF | fsr::PF | fsr::AFF | fsr::TF;
    if config.is_v2() { bits | fsr::UUT | fsr::ASF } else { bits }
}

fn sctlr_bits(config: &Config) -> u32 {
    if config.stall { 0x0fff_ffff } else { 0x0fff_ffff & !sctlr::CFCFG }
}

/// A stage-2-only bank may hold TYPE at 0; v2 holds IRPTNDX at 0.
fn fixed_cbar(config: &Config, n: u8, value: u32) -> u32 {
    let mut value = value;
    if config.fixed_bank_type && n < config.stage2_banks {
        value &= !bank_attributes::TYPE;
    }
    if config.is_v2() { value & 0x00ff_ffff } else { value }
}
