//! Interrupt lines: which bank reports where, and what a handler does with a line.
//!
//! # Locking
//!
//! The intake takes none (contract C-16).

use core::sync::atomic::Ordering;

use super::config::Architecture;
use super::context::{self, BankIndex, BankState};
use super::fault;
use super::gate::{Mode, Purpose};
use super::instance::Smmu;
use super::mmio::Registers;
use super::probe;
use super::registers::{cb, gr0};
use crate::assign::{DomainId, FaultAnswer, FaultLine, RawFault};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// On which of its context lines, counted from 0, `bank` reports; `None` where nothing says so, and every line
    /// must be taken for its own (contract S-4, quirk Q23).
    #[must_use]
    pub fn line_of(&self, bank: u8) -> Option<u8> {
        let lines = self.config.context_lines;
        match self.config.architecture {
            _ if lines <= 1 => Some(0),
            // The driver chooses among the lines that firmware lists.
            Architecture::V1 if lines >= u32::from(self.geometry.context_interrupts) => Some(self.interrupt_of(bank)),
            Architecture::V2 if lines >= u32::from(self.geometry.banks) => Some(bank),
            // Fewer lines than interrupts: nothing says which of them share one.
            _ => None,
        }
    }

    /// CBAR.IRPTNDX of a bank, in version 1.
    pub(super) fn interrupt_of(&self, bank: BankIndex) -> u8 {
        match self.config.architecture {
            Architecture::V1 => bank.checked_rem(self.geometry.context_interrupts).unwrap_or(0),
            Architecture::V2 => 0,
        }
    }

    fn reports_on(&self, bank: BankIndex, line: u8) -> bool {
        self.line_of(bank).is_none_or(|own| own == line)
    }

    pub(super) fn intake(&self, line: FaultLine, report: &mut dyn FnMut(RawFault)) -> FaultAnswer {
        let mut answer = FaultAnswer::Done;
        // A handler counts as a call in flight too: the power stays until it has left (contract C-17, S-5).
        let Ok(inside) = self.gate.try_enter(Purpose::Acquire) else { return answer };
        if inside.mode != Mode::Running || !self.power.call(&mut Held::enter()).is_on() {
            return answer;
        }
        let limits = self.config.fault_limits;
        let mut take = |fault: RawFault| {
            let judgement = self.counters.judge(&fault, limits);
            if judgement.report {
                report(fault);
            }
            if judgement.storm {
                answer = FaultAnswer::Mask(line);
            }
        };
        let iommu = self.config.key;
        for member in self.registers.members() {
            let FaultLine::Context(number) = line else {
                fault::take_global(&self.registers, member, iommu).into_iter().for_each(&mut take);
                continue;
            };
            for (bank, slot) in (0..=u8::MAX).zip(&self.bank_domains) {
                let domain = slot.load(Ordering::Acquire);
                if domain != 0 && self.reports_on(bank, number) {
                    let domain = DomainId::new(domain);
                    fault::take_context(&self.registers, member, &self.geometry, iommu, bank, domain)
                        .into_iter()
                        .for_each(&mut take);
                }
            }
        }
        answer
    }

    pub(super) fn coupled_on(&self, line: FaultLine, report: &mut dyn FnMut(DomainId)) {
        for (bank, slot) in (0..=u8::MAX).zip(&self.bank_domains) {
            let domain = slot.load(Ordering::Acquire);
            let here = match line {
                FaultLine::Global => false,
                FaultLine::Context(line) => self.reports_on(bank, line),
            };
            if domain != 0 && here {
                report(DomainId::new(domain));
            }
        }
    }

    /// Whether faults raise interrupts.
    pub(super) fn reports_enabled(&self) -> bool {
        self.reports.load(Ordering::Acquire)
    }

    /// From now on they do.
    pub(super) fn start_reports(&self, held: &mut Held<'_, Unlocked>) {
        self.reports.store(true, Ordering::Release);
        let map = self.map.lock(held);
        for (index, bank) in map.banks() {
            if let BankState::Live(space) = bank.state {
                let control = context::control(true, space.domain).bits();
                self.registers.write32(self.geometry.bank(index, cb::SCTLR), control);
            }
        }
        self.registers.write32(gr0::SCR0, probe::control(&self.geometry, true).bits());
    }
}
