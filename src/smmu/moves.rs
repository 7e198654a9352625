//! Moves between fault and a domain: plan, install, block, retire, flush.
//!
//! # Locking
//!
//! `StreamMap` for bookkeeping and register writes, `TlbSync` to post invalidations; never both, and neither while a
//! status is polled (contract C-14).

use alloc::vec::Vec;

use super::context::{self, Bank, BankIndex, BankState, Vmid};
use super::instance::Smmu;
use super::mmio::Registers;
use super::registers::{S2cr, cb, gr0, gr1};
use super::stream_map::{EntryUse, StreamMap, Use};
use super::tlb::{SyncTimeout, Ticket};
use crate::assign::{AddressSpace, DeviceId, DomainId, Iommu, IommuError, Prepared, Resource};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// A bank that lost a user, and whether that was its last.
#[derive(Clone, Copy, Debug)]
struct Left {
    bank: BankIndex,
    retiring: bool,
}

impl<P: Platform, R: Registers> Smmu<P, R> {
    pub(super) fn plan_move(
        &self,
        held: &mut Held<'_, Unlocked>,
        devices: &[DeviceId],
        space: &AddressSpace,
    ) -> Result<Prepared, IommuError> {
        context::check(&self.geometry, &self.limits(), self.config.empty_root.size, &space.stage2)
            .map_err(IommuError::Incompatible)?;
        let mut map = self.map.lock(held);
        let mut leaving = None;
        for &device in devices {
            let used = map.used_by(device).ok_or(IommuError::Unknown)?;
            if used.planned.get() {
                return Err(IommuError::Busy);
            }
            if used.with_entries(<[EntryUse]>::is_empty) {
                return Err(IommuError::Unknown);
            }
            leaving = leaving.or(used.bank.get());
        }
        let bank = self.reserve_bank(&mut map, devices, leaving, space)?;
        let conflict =
            devices.iter().filter_map(|device| map.used_by(*device)).any(|used| map.conflicts(used, bank, devices));
        if conflict {
            self.unreserve_bank(&mut map, bank, space.domain);
            return Err(IommuError::Busy);
        }
        for used in devices.iter().filter_map(|device| map.used_by(*device)) {
            used.planned.set(true);
        }
        Ok(Prepared { space: *space, ticket: bank.into() })
    }

    /// The domain's own bank, a free one, or the one that this very move frees (contract A-1).
    fn reserve_bank(
        &self,
        map: &mut StreamMap,
        devices: &[DeviceId],
        leaving: Option<BankIndex>,
        space: &AddressSpace,
    ) -> Result<BankIndex, IommuError> {
        let own = |bank: &Bank| match bank.state {
            BankState::Live(live) => live.domain == space.domain,
            BankState::Reserved(domain) => domain == space.domain,
            _ => false,
        };
        let found = map.find_bank(own).or_else(|| map.find_bank(|bank| self.is_available(bank)));
        if let Some(index) = found
            && let Some(bank) = map.bank_mut(index)
        {
            if !matches!(bank.state, BankState::Live(_)) {
                bank.state = BankState::Reserved(space.domain);
            }
            bank.reserved = bank.reserved.saturating_add(1);
            return Ok(index);
        }
        let moving = |map: &StreamMap, index| {
            devices
                .iter()
                .filter(|device| map.used_by(**device).is_some_and(|used| used.bank.get() == Some(index)))
                .count()
        };
        if let Some(index) = leaving {
            let users = moving(map, index);
            if let Some(bank) = map.bank_mut(index)
                && bank.users == users
                && bank.reserved == 0
                && bank.promised.is_none()
            {
                bank.promised = Some(space.domain);
                bank.reserved = 1;
                return Ok(index);
            }
        }
        Err(IommuError::Exhausted { resource: Resource::ContextBanks, needed: 1, free: 0, total: map.banks.len() })
    }

    /// Free, or poisoned by a sync that has completed since.
    fn is_available(&self, bank: &Bank) -> bool {
        match bank.state {
            BankState::Free => true,
            BankState::Poisoned(_, sync) => self.tlb.is_complete(Ticket(sync)),
            _ => false,
        }
    }

    fn unreserve_bank(&self, map: &mut StreamMap, index: BankIndex, domain: DomainId) {
        let Some(bank) = map.bank_mut(index) else { return };
        bank.reserved = bank.reserved.saturating_sub(1);
        if bank.reserved > 0 {
            return;
        }
        if bank.promised == Some(domain) {
            bank.promised = None;
        }
        if bank.state == BankState::Reserved(domain) {
            bank.state = BankState::Free;
        }
    }

    pub(super) fn abandon_move(&self, held: &mut Held<'_, Unlocked>, devices: &[DeviceId], prepared: &Prepared) {
        let bank = bank_of(prepared);
        let retiring = {
            let mut map = self.map.lock(held);
            for used in devices.iter().filter_map(|device| map.used_by(*device)) {
                used.planned.set(false);
            }
            self.unreserve_bank(&mut map, bank, prepared.space.domain);
            // The domain's last device may have left while the plan held the bank.
            self.park_if_unused(&mut map, bank)
        };
        if retiring {
            let left = [Left { bank, retiring }];
            // A timeout poisons the bank, which is all that can be done about it here.
            let _ = self.drain(held, &left, &[]);
        }
    }

    pub(super) fn install_move(
        &self,
        held: &mut Held<'_, Unlocked>,
        devices: &[DeviceId],
        prepared: &Prepared,
    ) -> Result<(), IommuError> {
        let bank = bank_of(prepared);
        if let Err(SyncTimeout { polls }) = self.settle_drains(held, devices) {
            self.abandon_move(held, devices, prepared);
            return Err(IommuError::SyncTimeout { polls });
        }
        let mut map = self.map.lock(held);
        let Some(state) = map.bank(bank).map(|bank| bank.state) else { return Err(IommuError::Unknown) };
        match state {
            BankState::Live(live) if live.domain == prepared.space.domain => {}
            BankState::Reserved(domain) if domain == prepared.space.domain => {
                if let Some(shadow) = map.bank_mut(bank) {
                    self.program_bank(bank, &prepared.space, shadow.on);
                    *shadow = Bank { state: BankState::Live(prepared.space), on: true, ..*shadow };
                }
            }
            // The users that were to leave have not: the caller did not block them first.
            _ => {
                drop(map);
                self.abandon_move(held, devices, prepared);
                return Err(IommuError::Busy);
            }
        }
        for &device in devices {
            self.attach(&mut map, device, bank);
        }
        if let Some(bank) = map.bank_mut(bank) {
            bank.reserved = bank.reserved.saturating_sub(1);
        }
        Ok(())
    }

    /// Sees to it that nothing of an earlier owner is in flight any more (contract I-8).
    fn settle_drains(&self, held: &mut Held<'_, Unlocked>, devices: &[DeviceId]) -> Result<(), SyncTimeout> {
        let pending = {
            let map = self.map.lock(held);
            let undrained = devices.iter().filter_map(|device| map.used_by(*device)?.undrained.get());
            undrained.max_by_key(|ticket| ticket.0)
        };
        let Some(mut ticket) = pending else { return Ok(()) };
        if !self.tlb.is_complete(ticket) {
            // The invalidation was posted then; what is missing is a sync behind it that completes.
            ticket = self.tlb.post(held, &self.registers, |_| ());
        }
        self.tlb.wait(held, &self.registers, ticket, self.config.polls)?;
        let map = self.map.lock(held);
        for used in devices.iter().filter_map(|device| map.used_by(*device)) {
            used.undrained.set(None);
        }
        Ok(())
    }

    /// Programs a bank that no S2CR names: everything before M, and the tables visible before that (contract I-4, O1,
    /// O2).
    fn program_bank(&self, bank: BankIndex, space: &AddressSpace, still_on: bool) {
        let image = context::image(&self.geometry, bank, &space.stage2);
        let at = |register| self.geometry.bank(bank, register);
        if still_on {
            // Left on when its drain timed out; a sync that completed since says that nothing is steered to it.
            self.registers.write32(at(cb::SCTLR), 0);
        }
        if let Some(cba2r) = image.cba2r {
            self.registers.write32(self.geometry.gr1(gr1::cba2r(bank)), cba2r);
        }
        self.registers.write32(self.geometry.gr1(gr1::cbar(bank)), image.cbar);
        self.registers.write32(at(cb::TCR), image.tcr);
        self.write64(at(cb::TTBR0), image.ttbr0);
        self.registers.write32(at(cb::FSR), u32::MAX);
        self.publish_bank(bank, Some(space.domain));
        P::barrier();
        self.registers.write32(at(cb::SCTLR), image.sctlr.bits());
    }

    fn write64(&self, register: u32, value: u64) {
        if self.splits_64() {
            let [low, high] = halves(value);
            self.registers.write32(register.wrapping_add(4), high);
            self.registers.write32(register, low);
        } else {
            self.registers.write64(register, value);
        }
    }

    /// Counts the device in, and turns the entries that nobody else had turned.
    fn attach(&self, map: &mut StreamMap, device: DeviceId, bank: BankIndex) {
        let Some(used) = map.used_by(device) else { return };
        used.planned.set(false);
        if used.bank.replace(Some(bank)).is_some() {
            return;
        }
        let entries = used.replace_entries(Vec::new());
        for used in &entries {
            let Some(entry) = map.entry_mut(used.entry) else { continue };
            entry.assigned = entry.assigned.saturating_add(used.pairs);
            let action = S2cr::Translate(bank);
            if entry.action != action {
                entry.action = action;
                self.write_action(used.entry, action);
            }
        }
        if let Some(used) = map.used_by(device) {
            let _ = used.replace_entries(entries);
        }
        if let Some(bank) = map.bank_mut(bank) {
            bank.users = bank.users.saturating_add(1);
        }
    }

    /// One atomic write that retargets an entry (rule O5).
    fn write_action(&self, entry: u8, action: S2cr) {
        self.registers.write32(gr0::s2cr(entry), action.encode(self.geometry.extended_ids && self.geometry.matching));
    }

    pub(super) fn block_devices(
        &self,
        held: &mut Held<'_, Unlocked>,
        devices: &[DeviceId],
    ) -> Result<Vec<DeviceId>, IommuError> {
        let mut left: Vec<Left> = Vec::new();
        left.try_reserve_exact(devices.len()).map_err(|_| IommuError::OutOfMemory)?;
        let mut cut = false;
        {
            let mut map = self.map.lock(held);
            for &device in devices {
                if let Some((bank, faulted)) = self.detach(&mut map, device) {
                    cut |= faulted;
                    if !left.iter().any(|other| other.bank == bank) {
                        left.push(Left { bank, retiring: false });
                    }
                }
            }
            for left in &mut left {
                left.retiring = self.park_if_unused(&mut map, left.bank);
            }
        }
        if cut {
            self.drain(held, &left, devices).map_err(|SyncTimeout { polls }| IommuError::SyncTimeout { polls })?;
        }
        Ok(self.still_live(held, devices))
    }

    /// Counts the device out, and puts the entries in fault that nobody else keeps. Tells which bank it left and
    /// whether any entry was put in fault.
    fn detach(&self, map: &mut StreamMap, device: DeviceId) -> Option<(BankIndex, bool)> {
        let used = map.used_by(device)?;
        let bank = used.bank.take()?;
        let entries = used.replace_entries(Vec::new());
        let mut faulted = false;
        for used in &entries {
            let Some(entry) = map.entry_mut(used.entry) else { continue };
            entry.assigned = entry.assigned.saturating_sub(used.pairs);
            if entry.assigned == 0 {
                entry.action = S2cr::Fault;
                self.write_action(used.entry, S2cr::Fault);
                faulted = true;
            }
        }
        if let Some(used) = map.used_by(device) {
            let _ = used.replace_entries(entries);
        }
        if let Some(bank) = map.bank_mut(bank) {
            bank.users = bank.users.saturating_sub(1);
        }
        Some((bank, faulted))
    }

    /// Points a bank that nothing uses any more to the empty root, before its drain: whatever is still in flight finds
    /// nothing to refill the TLB from (contract I-7). Returns whether it is being retired.
    fn park_if_unused(&self, map: &mut StreamMap, index: BankIndex) -> bool {
        let Some(bank) = map.bank_mut(index) else { return false };
        let waits_for_promise = bank.promised.is_some();
        let BankState::Live(space) = bank.state else { return false };
        if bank.users > 0 || (bank.reserved > 0 && !waits_for_promise) {
            return false;
        }
        bank.state = BankState::Draining(space.domain);
        if !self.splits_64() {
            let parked = context::parked(self.config.empty_root.address);
            self.registers.write64(self.geometry.bank(index, cb::TTBR0), parked);
        }
        true
    }

    /// Invalidates the banks' VMIDs and waits until it is done; then switches off those that are retired.
    fn drain(&self, held: &mut Held<'_, Unlocked>, left: &[Left], devices: &[DeviceId]) -> Result<(), SyncTimeout> {
        let mut rounds = 1;
        if self.splits_64() && left.iter().any(|left| left.retiring) {
            // Without the empty root, what was in flight may have refilled the TLB during the first round (I-7).
            rounds = 2;
        }
        let mut drained = Ok(());
        let mut ticket = Ticket(0);
        for _ in 0..rounds {
            ticket = self.tlb.post(held, &self.registers, |registers| {
                for left in left {
                    registers.write32(gr0::TLBIVMID, Vmid::of(left.bank).value());
                }
            });
            drained = drained.and_then(|()| self.tlb.wait(held, &self.registers, ticket, self.config.polls));
        }
        if left.iter().any(|left| left.retiring) || drained.is_err() {
            let mut map = self.map.lock(held);
            for left in left.iter().filter(|left| left.retiring) {
                self.retire(&mut map, left.bank, drained.is_ok(), ticket);
            }
            if drained.is_err() {
                for used in devices.iter().filter_map(|device| map.used_by(*device)) {
                    used.undrained.set(Some(ticket));
                }
            }
        }
        drained
    }

    /// Ends the life of a parked bank: off where the drain is confirmed, poisoned where it is not.
    fn retire(&self, map: &mut StreamMap, index: BankIndex, drained: bool, ticket: Ticket) {
        let Some(bank) = map.bank_mut(index) else { return };
        let BankState::Draining(domain) = bank.state else { return };
        if !drained {
            bank.state = BankState::Poisoned(domain, ticket.0);
            return;
        }
        self.registers.write32(self.geometry.bank(index, cb::SCTLR), 0);
        self.publish_bank(index, None);
        bank.on = false;
        bank.state = bank.promised.take().map_or(BankState::Free, BankState::Reserved);
    }

    /// Devices outside `devices` that keep an entry of theirs translated (contract I-6).
    fn still_live(&self, held: &mut Held<'_, Unlocked>, devices: &[DeviceId]) -> Vec<DeviceId> {
        let mut still: Vec<DeviceId> = Vec::new();
        loop {
            let wanted = {
                let map = self.map.lock(held);
                let keeps = |used: &&Use| used.bank.get().is_some() && !devices.contains(&used.device);
                let keepers = || {
                    let blocked = devices.iter().filter_map(|device| map.used_by(*device));
                    blocked.flat_map(|used| map.sharers(used)).filter(keeps)
                };
                let wanted = keepers().count();
                if wanted <= still.capacity() {
                    still.extend(keepers().map(|used| used.device));
                    break;
                }
                wanted
            };
            if still.try_reserve_exact(wanted).is_err() {
                break;
            }
        }
        still.sort_unstable();
        still.dedup();
        still
    }

    pub(super) fn flush_domain(&self, held: &mut Held<'_, Unlocked>, domain: DomainId) -> Result<(), IommuError> {
        // A domain has one live bank here, and one for each drain of its own that was not confirmed.
        let mut cached = [false; 128];
        let mut any = false;
        {
            let map = self.map.lock(held);
            for (slot, bank) in cached.iter_mut().zip(&map.banks) {
                *slot = bank.domain() == Some(domain) && !matches!(bank.state, BankState::Reserved(_));
                any |= *slot;
            }
        }
        if !any {
            return Ok(());
        }
        let banks = || (0..=u8::MAX).zip(&cached).filter(|(_, cached)| **cached).map(|(bank, _)| bank);
        let ticket = self.tlb.post(held, &self.registers, |registers| {
            for bank in banks() {
                registers.write32(gr0::TLBIVMID, Vmid::of(bank).value());
            }
        });
        self.tlb
            .wait(held, &self.registers, ticket, self.config.polls)
            .map_err(|SyncTimeout { polls }| IommuError::SyncTimeout { polls })?;
        self.revive(held, domain);
        Ok(())
    }

    /// Frees the banks of `domain` whose drain had timed out, now that a later sync has completed.
    fn revive(&self, held: &mut Held<'_, Unlocked>, domain: DomainId) {
        let mut map = self.map.lock(held);
        let poisoned = |bank: &Bank| match bank.state {
            BankState::Poisoned(owner, sync) => owner == domain && self.tlb.is_complete(Ticket(sync)),
            _ => false,
        };
        while let Some(index) = map.find_bank(poisoned) {
            if let Some(bank) = map.bank_mut(index) {
                bank.state = BankState::Draining(domain);
            }
            self.retire(&mut map, index, true, Ticket(0));
        }
    }
}

/// The low and the high word.
const fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// The ticket of a plan is the bank's index.
fn bank_of(prepared: &Prepared) -> BankIndex {
    u8::try_from(prepared.ticket).unwrap_or(u8::MAX)
}
