//! Faults: their names, how the registers record them, and the interrupt lines that follow.

use crate::config::{Architecture, Wiring};
use crate::registers::{bank_attributes, field, fsr, gfsr, gfsynr0, scr0, sctlr};
use crate::smmu::Smmu;

/// Kind of a global fault, as `sGFSR` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GlobalFaultKind {
    /// ICF: the entry faults, or the bank cannot do what its attributes ask.
    InvalidContext,
    /// USF: no stream-map entry matched.
    UnidentifiedStream,
    /// SMCF: several stream-map entries matched.
    StreamMatchConflict,
    /// UCBF: the bank does not exist.
    UnimplementedBank,
    /// UCIF: the bank's interrupt does not exist (v1).
    UnimplementedInterrupt,
    /// CAF: a register access went nowhere.
    ConfigurationAccess,
}

impl GlobalFaultKind {
    /// The bit of `sGFSR`.
    pub const fn bit(self) -> u32 {
        match self {
            Self::InvalidContext => gfsr::ICF,
            Self::UnidentifiedStream => gfsr::USF,
            Self::StreamMatchConflict => gfsr::SMCF,
            Self::UnimplementedBank => gfsr::UCBF,
            Self::UnimplementedInterrupt => gfsr::UCIF,
            Self::ConfigurationAccess => gfsr::CAF,
        }
    }
}

/// Kind of a context fault, as `FSR` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContextFaultKind {
    /// TF: no valid descriptor, or an input outside the table.
    Translation,
    /// AFF: access flag clear.
    AccessFlag,
    /// PF: permission.
    Permission,
    /// EF: the walk met a bus error.
    External,
    /// ASF: an address is larger than it may be (v2).
    AddressSize,
    /// No new fault: the bank holds an unread one and ends every transaction (`SCTLR.HUPCF` = 0).
    HitUnderFault,
    /// No new fault: software ended the stalled transaction through `RESUME`.
    ResumeTerminate,
}

impl ContextFaultKind {
    /// The bit of `FSR`; 0 for the kinds that record nothing.
    pub const fn bit(self) -> u32 {
        match self {
            Self::Translation => fsr::TF,
            Self::AccessFlag => fsr::AFF,
            Self::Permission => fsr::PF,
            Self::External => fsr::EF,
            Self::AddressSize => fsr::ASF,
            Self::HitUnderFault | Self::ResumeTerminate => 0,
        }
    }
}

/// Why a transaction did not reach memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A fault of the SMMU as a whole; nobody's bank was reached.
    Global {
        /// Which.
        kind: GlobalFaultKind,
        /// The bank that was asked for, where one was.
        bank: Option<u8>,
        /// It concerns the second bank of a nested pair.
        nested: bool,
    },
    /// A fault of one context bank.
    Context {
        /// The bank that records it: for a nested pair the one of the stage that faulted.
        bank: u8,
        /// Which.
        kind: ContextFaultKind,
        /// Level of the table whose descriptor faulted, 0 to 3.
        level: u8,
    },
    /// The bank translates in a way that the model does not walk (stage 1 with M = 1). An oracle should treat it as
    /// reaching anything.
    Unmodelled {
        /// The bank.
        bank: u8,
    },
}

impl Fault {
    pub(crate) const fn global(kind: GlobalFaultKind) -> Self {
        Self::Global { kind, bank: None, nested: false }
    }
}

impl Smmu {
    /// Level of the global fault interrupt (`NSgIrpt`).
    pub fn global_irq(&self) -> bool {
        let status = self.nonsecure.gfsr;
        status & !gfsr::CAF != 0 && self.nonsecure.cr0 & scr0::GFIE != 0
    }

    /// Level of the configuration access fault interrupt (`NSgCfgIrpt`).
    pub fn config_irq(&self) -> bool {
        self.nonsecure.gfsr & gfsr::CAF != 0 && self.nonsecure.cr0 & scr0::GCFGFIE != 0
    }

    /// Level of context interrupt `line`: in v2 the bank's number, in v1 `IRPTNDX`, with [`Wiring::Combined`] always 0.
    pub fn context_irq(&self, line: u8) -> bool {
        (0u8..).zip(&self.banks).any(|(n, bank)| bank.irq() && self.line_of(n, bank.cbar) == Some(line))
    }

    /// The interrupt line that bank `n` drives; `None` where `IRPTNDX` names one that does not exist, or the bank does
    /// not exist.
    pub fn context_line(&self, n: u8) -> Option<u8> {
        self.line_of(n, self.banks.get(usize::from(n))?.cbar)
    }

    pub(crate) fn record_global_fault(&mut self, kind: GlobalFaultKind, address: u64, stream: u16, syndrome: u32) {
        let global = &mut self.nonsecure;
        if global.gfsr != 0 {
            global.gfsr |= gfsr::MULTI;
            return;
        }
        global.gfsr = kind.bit();
        global.gfar = address;
        global.gfsynr[0] = syndrome | gfsynr0::NSSTATE | gfsynr0::NSATTR;
        if kind != GlobalFaultKind::ConfigurationAccess {
            global.gfsynr[1] = u32::from(stream);
        }
    }

    /// v1: a bank that wants to interrupt through a line that does not exist raises a global fault as well.
    pub(crate) fn check_interrupt_exists(&mut self, bank: u8, address: u64, stream: u16, syndrome: u32) {
        let Some(state) = self.banks.get(usize::from(bank)) else { return };
        let wants = state.sctlr & sctlr::CFIE != 0;
        if !self.config.is_v2() && wants && self.line_of(bank, state.cbar).is_none() {
            self.record_global_fault(GlobalFaultKind::UnimplementedInterrupt, address, stream, syndrome);
        }
    }

    fn line_of(&self, n: u8, cbar: u32) -> Option<u8> {
        match (self.config.architecture, self.config.wiring) {
            (_, Wiring::Combined) => Some(0),
            (Architecture::V2, Wiring::Separate) => Some(n),
            (_, Wiring::Separate) => {
                let index = (field(cbar, 24, 8) & 0xff) as u8;
                (index < self.config.context_interrupts).then_some(index)
            }
        }
    }
}

/// What `FSR.Format` says of a bank: 1 AArch32 long, 2 AArch64; v1 has no such field.
pub(crate) fn format_bits(v2: bool, cba2r: u32) -> u32 {
    match (v2, cba2r & bank_attributes::VA64) {
        (false, _) => 0,
        (true, 0) => 1 << 9,
        (true, _) => 2 << 9,
    }
}
