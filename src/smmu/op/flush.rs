//! Making the TLB forget: a whole VMID, or pages of it.
//!
//! # Locking
//!
//! `TlbSync` alone: which banks cache a domain is recorded beside what is posted. No lock is held while a status is polled.

use crate::assign::{Changed, DomainId, FlushRange, IommuError, Patience};
use crate::smmu::bank::tlb::{Ticket, Tlb};
use crate::smmu::hardware::Registers;
use crate::smmu::hardware::access::halves;
use crate::smmu::hardware::part::BankIndex;
use crate::smmu::hardware::quirks::Effects;
use crate::smmu::hardware::registers::cb;
use crate::smmu::instance::{Smmu, timed_out};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// Invalidations by page above which the whole VMID is invalidated instead.
///
/// A write for each page stands against reads of the walker for whatever else of the domain was cached. `cargo bench
/// --bench cost` counts both on the model: for a device that goes on using 64 pages, 32 pages cost 33 writes one by one,
/// and 2 writes and 34 reads as a whole.
const MOST_PAGES: u64 = 32;

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Removes what is cached of a domain, or of a range of its addresses.
    #[inline]
    pub(in crate::smmu) fn flush_domain(
        &self,
        held: &mut Held<'_, Unlocked>,
        domain: DomainId,
        range: Option<&FlushRange>,
        patience: Patience,
    ) -> Result<(), IommuError> {
        let registers = &self.part.registers;
        let Some((range, pages)) = range.and_then(|range| Some((range, self.pages(range)?))) else {
            let vmid_of = |bank| self.part.vmid(bank);
            let Some(ticket) = self.tlb.post_domain(held, registers, domain, vmid_of) else { return Ok(()) };
            let bound = || self.part.config.bound(patience);
            return self.tlb.wait(held, registers, ticket, bound).map_err(timed_out);
        };
        self.flush_pages(held, domain, range, pages, patience)
    }

    #[inline(never)]
    fn flush_pages(
        &self,
        held: &mut Held<'_, Unlocked>,
        domain: DomainId,
        range: &FlushRange,
        pages: u64,
        patience: Patience,
    ) -> Result<(), IommuError> {
        for bank in self.tlb.banks_of(held, domain).each() {
            let Some(tlb) = self.bank_tlbs.get(usize::from(bank)) else { continue };
            let ticket = self.post_pages(held, tlb, bank, range, pages);
            let bound = || self.part.config.bound(patience);
            tlb.wait(held, &self.part.registers, ticket, bound).map_err(timed_out)?;
        }
        Ok(())
    }

    /// How many invalidations by page a range takes, where they are possible and worth it.
    fn pages(&self, range: &FlushRange) -> Option<u64> {
        // Version 1 has no invalidation by page, and banks without a sync of their own.
        if self.bank_tlbs.is_empty() || range.leaf < 0x1000 || !range.leaf.is_power_of_two() {
            return None;
        }
        if range.changed == Changed::TablesFreed && self.part.registers.has(Effects::WALK_CACHE_BY_VMID) {
            return None;
        }
        let first = range.start & !range.leaf.wrapping_sub(1);
        let last = range.start.checked_add(range.size.checked_sub(1)?)?;
        // Q14: the operand must not be 0. Q8: one of two halves carries 32 bits of it.
        let widest = if self.part.registers.has(Effects::SPLIT_64) { 1 << 44 } else { 1 << 48 };
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
        bank: BankIndex,
        range: &FlushRange,
        pages: u64,
    ) -> Ticket {
        let register = match range.changed {
            Changed::Leaf => cb::TLBIIPAS2L,
            Changed::TablesFreed => cb::TLBIIPAS2,
        };
        let register = self.part.geometry.bank(bank, register);
        let first = range.start & !range.leaf.wrapping_sub(1);
        tlb.post(held, &self.part.registers, |registers| {
            for page in 0..pages {
                let address = first.wrapping_add(page.wrapping_mul(range.leaf));
                if registers.has(Effects::SPLIT_64) {
                    // A write of the low word starts the operation, and the high word is ignored.
                    let [low, _] = halves(address >> 12);
                    registers.write32(register, low);
                } else {
                    registers.write64(register, address >> 12);
                }
            }
        })
    }
}
