//! The life of a context bank up to its drain: reserved, programmed, parked. How it ends is in [`drain`](super::drain).
//!
//! `docs/smmu.md` draws the states.
//!
//! # Locking
//!
//! The caller holds `StreamMap`.

use super::context::{self, Bank, BankIndex, BankState};
use super::drain::Cut;
use super::instance::Smmu;
use super::mmio::Registers;
use super::quirks::Effects;
use super::registers::{Sctlr, cb, gr1};
use super::stream_map::{StreamMap, each, one};
use super::tlb::Ticket;
use crate::assign::{AddressSpace, DeviceId, IommuError, Resource};
use crate::sync::Platform;

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// The space's own bank, a free one, or the one that this very move frees (contract A-1).
    pub(super) fn reserve_bank(
        &self,
        map: &mut StreamMap,
        devices: &[DeviceId],
        leaving: Option<BankIndex>,
        space: &AddressSpace,
    ) -> Result<BankIndex, IommuError> {
        // A bank that is promised away is about to be parked: who joined it now would find it gone at install.
        let own = map.find_bank(|bank| bank.is_for(space) && bank.promised.is_none());
        let found = own.or_else(|| map.find_bank(|bank| self.is_available(bank)));
        if let Some(index) = found
            && let Some(bank) = map.bank_mut(index)
        {
            bank.left_on = match bank.state {
                BankState::Poisoned(domain, sync) if bank.on => Some((domain, sync)),
                BankState::Reserved(_) => bank.left_on,
                _ => None,
            };
            if !matches!(bank.state, BankState::Live(_)) {
                bank.state = BankState::Reserved(*space);
            }
            bank.reserved = bank.reserved.saturating_add(1);
            return Ok(index);
        }
        if let Some(index) = leaving {
            let moving = devices.iter().filter_map(|device| map.used_by(*device));
            let users = moving.filter(|used| used.bank.get() == Some(index)).count();
            if let Some(bank) = map.bank_mut(index)
                && bank.users == users
                && bank.reserved == 0
                && bank.promised.is_none()
            {
                bank.promised = Some(*space);
                bank.reserved = 1;
                return Ok(index);
            }
        }
        let free = 0;
        Err(IommuError::Exhausted { resource: Resource::ContextBanks, needed: 1, free, total: map.banks.len() })
    }

    /// Free, or poisoned by a sync that has completed since and was the last that it needs.
    fn is_available(&self, bank: &Bank) -> bool {
        let clean = match bank.state {
            BankState::Free => true,
            BankState::Poisoned(_, sync) => self.tlb.is_complete(Ticket(sync)) && !self.walks_on(bank),
            _ => false,
        };
        clean && bank.reserved == 0
    }

    /// Whether a bank that nothing is steered to may still fill the TLB from its last owner's tables (quirk Q8: its root
    /// could not be replaced).
    pub(super) fn walks_on(&self, bank: &Bank) -> bool {
        bank.on && self.registers.has(Effects::SPLIT_64)
    }

    pub(super) fn unreserve_bank(&self, map: &mut StreamMap, index: BankIndex) {
        let Some(bank) = map.bank_mut(index) else { return };
        bank.reserved = bank.reserved.saturating_sub(1);
        if bank.reserved > 0 {
            return;
        }
        bank.promised = None;
        if matches!(bank.state, BankState::Reserved(_)) {
            // One that was left on is clean by now, but not off.
            bank.state =
                bank.left_on.take().map_or(BankState::Free, |(domain, sync)| BankState::Poisoned(domain, sync));
        }
    }

    /// Programs a bank that no S2CR names: everything before M, and the tables visible before that (contract I-4).
    pub(super) fn program_bank(
        &self,
        map: &mut StreamMap,
        index: BankIndex,
        space: &AddressSpace,
    ) -> Result<(), IommuError> {
        let Some(bank) = map.bank_mut(index) else { return Err(IommuError::Unknown) };
        let image = context::image(&self.geometry, self.vmids.of(index), self.interrupt_of(index), &space.stage2);
        let at = |register| self.geometry.bank(index, register);
        if bank.on {
            // Left on by its drain; a sync that has completed since its last entry was in fault says that nothing is
            // steered to it.
            self.registers.write32(at(cb::SCTLR), 0);
        }
        if let Some(cba2r) = image.cba2r {
            self.registers.write32(self.geometry.gr1(gr1::cba2r(index)), cba2r);
        }
        self.registers.write32(self.geometry.gr1(gr1::cbar(index)), image.cbar);
        self.registers.write32(at(cb::TCR), image.tcr);
        let rooted = self.registers.write64_isolating(at(cb::TTBR0), image.ttbr0);
        self.registers.write32(at(cb::FSR), u32::MAX);
        self.publish_bank(index, Some(space.domain));
        P::barrier();
        let control = context::control(self.reports_enabled(), space.domain).bits();
        let on = self.registers.write_isolating(at(cb::SCTLR), control, control, Sctlr::M.bits());
        if rooted && on {
            *bank = Bank { state: BankState::Live(*space), on: true, left_on: None, ..*bank };
            return Ok(());
        }
        // No S2CR names it, so that it may be off; it is not to be trusted again.
        self.registers.write32(at(cb::SCTLR), 0);
        self.publish_bank(index, None);
        *bank = Bank { state: BankState::Poisoned(space.domain, context::NEVER), on: false, left_on: None, ..*bank };
        Err(IommuError::WriteLost { register: if rooted { "SCTLR" } else { "TTBR0" } })
    }

    /// Parks the banks of `cut` that nobody uses any more.
    pub(super) fn park_unused(&self, map: &mut StreamMap, cut: &mut Cut) {
        for bank in each(cut.banks) {
            if self.park_if_unused(map, bank) {
                cut.retiring |= one(bank);
            }
        }
    }

    /// Points a bank that nothing uses any more to the empty root, before its drain: whatever is still in flight finds
    /// nothing to refill the TLB from (contract I-7). Where that would take two writes, a bank that is off stands for the
    /// empty root, which [`drain`](Self::drain) sees to. Returns whether it is being retired: it is not where an entry may
    /// name it still.
    pub(super) fn park_if_unused(&self, map: &mut StreamMap, index: BankIndex) -> bool {
        let Some(bank) = map.bank_mut(index) else { return false };
        let waits_for_promise = bank.promised.is_some();
        let BankState::Live(space) = bank.state else { return false };
        if bank.users > 0 || (bank.reserved > 0 && !waits_for_promise) {
            return false;
        }
        // M must not be cleared while an entry may name it (contract I-4), whoever was the last to leave.
        let stuck = bank.stuck;
        bank.state =
            if stuck { BankState::Poisoned(space.domain, context::NEVER) } else { BankState::Draining(space.domain) };
        if !self.registers.has(Effects::SPLIT_64) {
            let parked = context::parked(self.config.empty_root.address);
            self.registers.write64(self.geometry.bank(index, cb::TTBR0), parked);
        }
        !stuck
    }
}
