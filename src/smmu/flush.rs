//! Making the TLB forget: a whole VMID, or pages of it.
//!
//! # Locking
//!
//! `StreamMap` to see which banks hold the domain, then `TlbSync` to post; never both, and no poll under either.

use super::context::{Bank, BankState};
use super::instance::Smmu;
use super::mmio::Registers;
use super::moves::timed_out;
use super::quirks::Effects;
use super::registers::{cb, gr0};
use super::stream_map::{Set, Use, each, one};
use super::tlb::{SyncTimeout, Ticket, Tlb};
use crate::assign::{Changed, DomainId, FlushRange, IommuError, Patience};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// Invalidations by page above which the whole VMID is invalidated instead.
///
/// A write for each page stands against reads of the walker for whatever else of the domain was cached. `cargo bench
/// --bench cost` counts both on the model: for a device that goes on using 64 pages, 32 pages cost 33 writes one by one,
/// and 2 writes and 34 reads as a whole.
pub(super) const MOST_PAGES: u64 = 32;

/// Where a domain may be cached.
#[derive(Clone, Copy, Debug, Default)]
struct Cached {
    /// Banks that translate for it.
    live: Set,
    /// Banks that did, and have not been drained for certain, or not at all.
    leaving: Set,
}

impl<P: Platform, R: Registers> Smmu<P, R> {
    pub(super) fn flush_domain(
        &self,
        held: &mut Held<'_, Unlocked>,
        domain: DomainId,
        patience: Patience,
    ) -> Result<(), IommuError> {
        let cached = self.cached(held, domain);
        self.flush_cached(held, domain, cached, patience)
    }

    /// [`flush_domain`](Self::flush_domain) of one that ends. What it still has here goes to fault first: its cut found no
    /// power, and the service does not know (contract I-10).
    pub(super) fn flush_for_good(&self, held: &mut Held<'_, Unlocked>, domain: DomainId) -> Result<(), IommuError> {
        loop {
            let cached = self.cached(held, domain);
            let left = (cached.live != 0).then(|| {
                let map = self.map.lock(held);
                let is_left = |used: &&Use| map.bank_of(used).and_then(Bank::domain) == Some(domain);
                map.uses().find(is_left).map(|used| used.device)
            });
            let Some(left) = left.flatten() else {
                return self.flush_cached(held, domain, cached, Patience::Waiting);
            };
            self.block_devices(held, &[left], &mut |_| ())?;
        }
    }

    fn flush_cached(
        &self,
        held: &mut Held<'_, Unlocked>,
        domain: DomainId,
        cached: Cached,
        patience: Patience,
    ) -> Result<(), IommuError> {
        let banks = cached.live | cached.leaving;
        if banks == 0 {
            return Ok(());
        }
        let ticket = self.post_vmids(held, banks);
        self.tlb.wait(held, &self.registers, ticket, self.config.bound(patience)).map_err(timed_out)?;
        // What leaves has been drained by that, or needs one step more.
        if cached.leaving != 0 {
            self.finish_drains(held, |theirs| theirs == domain, patience).map_err(timed_out)?;
        }
        Ok(())
    }

    pub(super) fn flush_pages(
        &self,
        held: &mut Held<'_, Unlocked>,
        domain: DomainId,
        range: &FlushRange,
        patience: Patience,
    ) -> Result<(), IommuError> {
        let cached = self.cached(held, domain);
        let Some(pages) = self.pages(range).filter(|_| cached.leaving == 0) else {
            return self.flush_domain(held, domain, patience);
        };
        for bank in each(cached.live) {
            let Some(tlb) = self.bank_tlbs.get(usize::from(bank)) else { continue };
            let ticket = self.post_pages(held, tlb, bank, range, pages);
            tlb.wait(held, &self.registers, ticket, self.config.bound(patience)).map_err(timed_out)?;
        }
        Ok(())
    }

    /// How many invalidations by page a range takes, where they are possible and worth it.
    fn pages(&self, range: &FlushRange) -> Option<u64> {
        // Version 1 has no invalidation by page, and banks without a sync of their own.
        if self.bank_tlbs.is_empty() || range.leaf < 0x1000 || !range.leaf.is_power_of_two() {
            return None;
        }
        if range.changed == Changed::TablesFreed && self.registers.has(Effects::WALK_CACHE_BY_VMID) {
            return None;
        }
        let first = range.start & !range.leaf.wrapping_sub(1);
        let last = range.start.checked_add(range.size.checked_sub(1)?)?;
        // Q14: the operand must not be 0. Q8: one of two halves carries 32 bits of it.
        let widest = if self.registers.has(Effects::SPLIT_64) { 1 << 44 } else { 1 << 48 };
        if first >> 12 == 0 || last >= widest {
            return None;
        }
        let pages = (last.wrapping_sub(first) >> range.leaf.trailing_zeros()).saturating_add(1);
        (pages <= MOST_PAGES).then_some(pages)
    }

    fn post_pages(
        &self,
        held: &mut Held<'_, Unlocked>,
        tlb: &Tlb<P>,
        bank: u8,
        range: &FlushRange,
        pages: u64,
    ) -> Ticket {
        let register = match range.changed {
            Changed::Leaf => cb::TLBIIPAS2L,
            Changed::TablesFreed => cb::TLBIIPAS2,
        };
        let register = self.geometry.bank(bank, register);
        let first = range.start & !range.leaf.wrapping_sub(1);
        tlb.post(held, &self.registers, |registers| {
            for page in 0..pages {
                let address = first.wrapping_add(page.wrapping_mul(range.leaf));
                if registers.has(Effects::SPLIT_64) {
                    // A write of the low word starts the operation, and the high word is ignored.
                    let [low, _] = super::access::halves(address >> 12);
                    registers.write32(register, low);
                } else {
                    registers.write64(register, address >> 12);
                }
            }
        })
    }

    /// Posts the invalidation of the VMIDs of `banks`.
    pub(super) fn post_vmids(&self, held: &mut Held<'_, Unlocked>, banks: Set) -> Ticket {
        self.tlb.post(held, &self.registers, |registers| {
            for bank in each(banks) {
                registers.write32(gr0::TLBIVMID, self.vmids.of(bank).value());
            }
        })
    }

    fn cached(&self, held: &mut Held<'_, Unlocked>, domain: DomainId) -> Cached {
        let map = self.map.lock(held);
        let mut cached = Cached::default();
        for (index, bank) in map.banks().filter(|(_, bank)| bank.domain() == Some(domain)) {
            match bank.state {
                BankState::Live(_) if !bank.is_idle() => cached.live |= one(index),
                BankState::Live(_) => cached.leaving |= one(index),
                BankState::Draining(_) | BankState::Poisoned(..) => cached.leaving |= one(index),
                BankState::Free | BankState::Reserved(_) => {}
            }
        }
        cached
    }

    /// Invalidates everything and waits. Used where the instance is started and where it is taken out of service.
    pub(super) fn flush_everything(&self, held: &mut Held<'_, Unlocked>) -> Result<(), SyncTimeout> {
        let ticket = super::probe::post_everything(held, &self.registers, &self.tlb);
        self.tlb.wait(held, &self.registers, ticket, self.config.bound(Patience::Waiting))
    }
}
