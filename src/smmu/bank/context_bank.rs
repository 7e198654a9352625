//! The registers of context banks, along the path that [`banks`](super::banks) describes.
//!
//! Nothing else writes CBA2R, CBAR, SCTLR, TCR or TTBR0, but the reset; invalidations (`tlb.rs`) and fault records stand
//! elsewhere.
//!
//! # Locking
//!
//! The caller holds `StreamMap`; `TlbSync` nests inside.

use super::banks::{Bank, BankState, Banks};
use super::stage2;
use super::tlb::Tlb;
use crate::assign::AddressSpace;
use crate::smmu::faults::fault_records::FaultRecords;
use crate::smmu::hardware::Registers;
use crate::smmu::hardware::part::{BankIndex, Part};
use crate::smmu::hardware::quirks::Effects;
use crate::smmu::hardware::registers::{Sctlr, cb, gr1};
use crate::smmu::stream::number_set::BankSet;
use crate::sync::Platform;
use crate::sync::levels::StreamMap;
use crate::sync::order::Held;

/// The registers of the banks, and what is told to flushes and to fault handlers.
pub(in crate::smmu) struct BankPort<'a, P: Platform, R> {
    pub(in crate::smmu) part: &'a Part<R>,
    pub(in crate::smmu) tlb: &'a Tlb<P>,
    pub(in crate::smmu) faults: &'a FaultRecords,
}

impl<P: Platform, R: Registers> BankPort<'_, P, R> {
    /// Programs a bank that no S2CR names: everything before M, and the tables visible before that (contract I-4). Without
    /// it, names the register that did not hold.
    pub(in crate::smmu) fn program(
        &self,
        held: &mut Held<'_, StreamMap>,
        banks: &mut Banks,
        index: BankIndex,
        space: &AddressSpace,
    ) -> Result<(), &'static str> {
        let Part { geometry, registers, .. } = self.part;
        let image = stage2::image(self.part, index, &space.stage2);
        let base = geometry.bank(index, 0);
        let at = |register: u32| base.wrapping_add(register);
        let write = |offset, value| registers.write_isolating(offset, value, value, u32::MAX);
        let cba2r = image.cba2r.is_none_or(|cba2r| write(geometry.gr1(gr1::cba2r(index)), cba2r));
        let cbar = write(geometry.gr1(gr1::cbar(index)), image.cbar);
        let tcr = write(at(cb::TCR), image.tcr);
        let ttbr0 = registers.write64_isolating(at(cb::TTBR0), image.ttbr0);
        registers.write32(at(cb::FSR), u32::MAX);
        // A flush that does not find the bank here ran before; the barrier shows the walker what it flushed (contract C-17).
        self.tlb.enter(held, space.domain, index);
        self.faults.show_bank(index, space.domain);
        P::barrier();
        let control = stage2::control(self.faults.reports(Some(index)), space.domain).bits();
        let sctlr = registers.write_isolating(at(cb::SCTLR), control, control, Sctlr::M.bits());
        let Some(bank) = banks.at_mut(index) else { return Ok(()) };
        if cba2r & cbar & tcr & ttbr0 & sctlr {
            (bank.state, bank.on) = (BankState::Live(*space), true);
            return Ok(());
        }
        // No S2CR names it, so that it may be off; it is not to be trusted again.
        registers.write32(at(cb::SCTLR), 0);
        self.faults.retire_bank(self.part, index);
        self.tlb.leave(held, space.domain, index);
        (bank.state, bank.on) = (BankState::Poisoned(space.domain, Bank::NEVER), false);
        let all = [("CBA2R", cba2r), ("CBAR", cbar), ("TCR", tcr), ("TTBR0", ttbr0)];
        Err(all.iter().find(|(_, holds)| !holds).map_or("SCTLR", |(register, _)| register))
    }

    /// Begins to retire a bank that no device is in any more, before its drain: it is pointed to the empty root, so that
    /// what is in flight finds nothing to fill the TLB from (contract I-7). Where that would take two writes (quirk Q8), M = 0
    /// stands for the empty root: see [`stop_walking`](Self::stop_walking). Says whether the bank is being retired.
    pub(in crate::smmu) fn park_if_left(&self, banks: &mut Banks, index: BankIndex) -> bool {
        let Some(bank) = banks.at_mut(index).filter(|bank| bank.is_left()) else { return false };
        let BankState::Live(space) = bank.state else { return false };
        bank.state = BankState::Draining(space.domain);
        if !self.part.registers.has(Effects::SPLIT_64) {
            let parked = self.part.config.empty_root.address.value();
            self.part.registers.write64(self.part.geometry.bank(index, cb::TTBR0), parked);
        }
        true
    }

    /// Switches off a bank that could go on filling the TLB. Says whether its VMID must be invalidated once more: up to
    /// this write it may have walked ahead (IHI 0062D, TLB behaviour).
    pub(in crate::smmu) fn stop_walking(&self, banks: &mut Banks, index: BankIndex) -> bool {
        let Some(bank) = banks.at_mut(index) else { return false };
        // M must not be cleared while an entry may name it (contract I-4).
        let walked = self.walks_on(bank) && !bank.stuck;
        if walked {
            self.switch_off(index, bank);
        }
        walked
    }

    /// Whether a bank that nothing is steered to may still fill the TLB: its root could not be replaced (quirk Q8).
    pub(in crate::smmu) fn walks_on(&self, bank: &Bank) -> bool {
        bank.on && self.part.registers.has(Effects::SPLIT_64)
    }

    /// The drain is confirmed: off, and free or the next domain's; but where an entry may name it (contract I-4).
    #[inline(always)]
    pub(in crate::smmu) fn retire(&self, held: &mut Held<'_, StreamMap>, banks: &mut Banks, index: BankIndex) {
        let Some(bank) = banks.at_mut(index) else { return };
        let BankState::Draining(domain) = bank.state else { return };
        if bank.stuck {
            bank.state = BankState::Poisoned(domain, Bank::NEVER);
            return;
        }
        self.switch_off(index, bank);
        self.tlb.leave(held, domain, index);
        banks.end(index, domain);
    }

    /// After a reset nothing is in flight, and no bank is on: what was poisoned is free, or the next domain's. Returns the banks
    /// that are to be programmed again.
    pub(in crate::smmu) fn reset(&self, held: &mut Held<'_, StreamMap>, banks: &mut Banks) -> BankSet {
        for index in 0..self.part.geometry.banks {
            let Some(bank) = banks.at_mut(index) else { continue };
            (bank.on, bank.stuck) = (false, false);
            if let BankState::Draining(domain) | BankState::Poisoned(domain, _) = bank.state {
                bank.state = BankState::Draining(domain);
                self.retire(held, banks, index);
                self.faults.retire_bank(self.part, index);
            }
        }
        banks.select(|_, bank| matches!(bank.state, BankState::Live(_)))
    }

    /// Programs a live bank again. Where that does not hold it stays live all the same: its entries name it still, and the
    /// next resume tries again.
    pub(in crate::smmu) fn reprogram(
        &self,
        held: &mut Held<'_, StreamMap>,
        banks: &mut Banks,
        index: BankIndex,
    ) -> Result<(), &'static str> {
        let BankState::Live(space) = banks.at(index).state else { return Ok(()) };
        let programmed = self.program(held, banks, index, &space);
        if programmed.is_err()
            && let Some(bank) = banks.at_mut(index)
        {
            bank.state = BankState::Live(space);
            self.tlb.enter(held, space.domain, index);
        }
        programmed
    }

    /// Says anew whether the faults of a live bank raise interrupts.
    pub(in crate::smmu) fn rewrite_control(&self, banks: &Banks, index: BankIndex) {
        if let BankState::Live(space) = banks.at(index).state {
            let control = stage2::control(self.faults.reports(Some(index)), space.domain).bits();
            self.part.registers.write32(self.part.geometry.bank(index, cb::SCTLR), control);
        }
    }

    fn switch_off(&self, index: BankIndex, bank: &mut Bank) {
        if bank.on {
            self.part.registers.write32(self.part.geometry.bank(index, cb::SCTLR), 0);
            self.faults.retire_bank(self.part, index);
            bank.on = false;
        }
    }
}
