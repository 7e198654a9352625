//! Fault handling of an instance: what handlers and workers call, and the registers that are written for it.
//!
//! # Locking
//!
//! The intake takes none (contract C-16). SCTLR and sCR0 are rewritten under `StreamMap`.

use super::gate::{Mode, Purpose};
use super::hardware::Registers;
use super::hardware::part::BankIndex;
use super::instance::Smmu;
use super::reset;
use crate::assign::{
    DomainId, FaultAnswer, FaultCounts, FaultLine, IommuError, IommuFaults, RawFault, StormReport, StreamId,
};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// On which of its context lines, counted from 0, `bank` reports; `None` where nothing says so, and every line
    /// must be taken for its own (contract S-4, quirk Q23).
    #[must_use]
    pub fn line_of(&self, bank: u8) -> Option<u8> {
        self.part.line_of(bank)
    }

    /// Writes the register that says whether faults of a bank, or those on the global line, raise interrupts, as it is
    /// to be now.
    fn rewrite_report(&self, held: &mut Held<'_, Unlocked>, bank: Option<BankIndex>) {
        let shadow = self.shadow.lock(held);
        match bank {
            None => reset::rewrite_control(&self.part, self.faults.reports(None)),
            Some(bank) => self.port().rewrite_control(&shadow.banks, bank),
        }
    }
}

impl<P: Platform, R: Registers> IommuFaults for Smmu<P, R> {
    fn take_faults(&self, line: FaultLine, report: &mut dyn FnMut(RawFault)) -> FaultAnswer {
        let held = &mut Held::enter();
        // A handler counts as a call in flight, so that nothing suspends the instance meanwhile, and takes the power itself:
        // another CPU may be about to give it back (contract C-17, S-5).
        let Ok(inside) = self.gate.try_enter(Purpose::Acquire) else { return FaultAnswer::Done };
        if inside.mode != Mode::Running || !self.power.take_if_on(held) {
            return FaultAnswer::Done;
        }
        let answer = self.faults.intake(&self.part, line, report);
        self.power.give(held);
        answer
    }

    fn enable_reports(&self) -> Result<(), IommuError> {
        self.powered(&mut Held::enter(), Purpose::Acquire, |held| {
            self.faults.want_reports();
            (0..self.part.geometry.banks).map(Some).chain([None]).for_each(|bank| self.rewrite_report(held, bank));
            Ok(())
        })
    }

    fn tend_faults(&self, storming: &mut dyn FnMut(StormReport)) {
        let _ = self.powered(&mut Held::enter(), Purpose::Acquire, |held| {
            let owner_of = |stream, domain| self.find_owner(stream, domain);
            self.faults.tend(owner_of, |bank| self.rewrite_report(held, bank), storming);
            Ok(())
        });
    }

    fn fault_counts(&self) -> FaultCounts {
        self.faults.counts()
    }

    fn unknown_streams(&self, report: &mut dyn FnMut(StreamId, u32)) {
        self.faults.unknown(report);
    }

    fn coupled(&self, line: FaultLine, report: &mut dyn FnMut(DomainId)) {
        self.faults.coupled(line, report);
    }
}
