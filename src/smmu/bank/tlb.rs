//! Post and synchronise: invalidations, and the one sync in flight of a sync register.
//!
//! An instance has a global sync, which completes everything, and in version 2 one in each bank, which completes what
//! was posted in that bank. Each is a [`Tlb`] of its own. The global one also knows which banks may hold translations of
//! which domain, so that a flush of a domain takes this lock alone.
//!
//! # Locking
//!
//! Level `TlbSync`, held to post an invalidation and the sync behind it, to note that a sync has completed, and to look
//! up or change the banks of a domain: a few register writes, never a poll (contract C-14).
//!
//! # Invariants
//!
//! 1. Syncs are numbered from 1. `issued` is the last one that was written to the register, `completed` the last one
//!    whose completion was seen. `issued` is `completed` (none in flight) or one more.
//! 2. Sync `n` was started after every invalidation whose ticket is at most `n` was written, so that its completion
//!    completes them (IHI 0062D, TLB maintenance).
//! 3. A sync is started only when the status was seen inactive after the one before it was started. A waiter that gives up
//!    changes nothing: its sync stays in flight, and its ticket completes when that sync is seen complete.
//! 4. `near` has a bank with the domain that `holder` names for it, and with no other.

use alloc::vec::Vec;

use super::by_domain::ByDomain;

use crate::assign::{DomainId, own_space};
use crate::few;
use crate::smmu::hardware::Geometry;
use crate::smmu::hardware::Registers;
use crate::smmu::hardware::access::Access;
use crate::smmu::hardware::part::BankIndex;
use crate::smmu::hardware::registers::{ANY_VALUE, cb, gr0};
use crate::smmu::stream::number_set::BankSet;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::levels::TlbSync;
use crate::sync::lock::Lock;
use crate::sync::order::{Before, Held};
use crate::sync::{Bound, Platform, Waited, Watch};

/// The number of the sync that completes what was posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[must_use = "an invalidation is complete only when its sync is"]
pub(in crate::smmu) struct Ticket(pub(in crate::smmu) u64);

/// The sync was not confirmed within the bound. Its ticket completes later, if the hardware ever completes the sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::smmu) struct SyncTimeout(pub(in crate::smmu) Waited);

/// One sync register and what was posted for it.
#[derive(Debug)]
pub(in crate::smmu) struct Tlb<P: Platform> {
    /// Offsets of the register that starts a sync and of its status.
    sync: u32,
    status: u32,
    state: Lock<TlbSync, State, P::Lock>,
    /// Written under the lock, read without it.
    issued: AtomicU64,
    completed: AtomicU64,
}

struct State {
    /// The highest ticket that was given out.
    wanted: u64,
    holders: Holders,
}

/// Which banks may hold translations of which domain. Empty in a bank's own `Tlb`.
struct Holders {
    /// By bank: the domain, or [`NOBODY`].
    holder: Vec<DomainId>,
    near: ByDomain,
}

/// No domain has this number: one that had would be flushed more than it needs.
const NOBODY: DomainId = DomainId::new(own_space::RESERVED.number() - 1);

/// Of a status register: a sync is in flight.
const ACTIVE: u32 = 1;

impl<P: Platform> Tlb<P> {
    /// The global sync of an instance with so many banks. `None` when memory could not be reserved.
    pub(in crate::smmu) fn global(banks: u8) -> Option<Self> {
        let mut holder = Vec::new();
        holder.try_reserve_exact(banks.into()).ok()?;
        few::extend_within(&mut holder, (0..banks).map(|_| NOBODY));
        let holders = Holders { holder, near: ByDomain::new(banks)? };
        Some(Self::at(gr0::STLBGSYNC, gr0::STLBGSTATUS, holders))
    }

    /// The sync of one bank (version 2).
    pub(in crate::smmu) fn of_bank(geometry: &Geometry, bank: BankIndex) -> Self {
        let holders = Holders { holder: Vec::new(), near: ByDomain::NONE };
        Self::at(geometry.bank(bank, cb::TLBSYNC), geometry.bank(bank, cb::TLBSTATUS), holders)
    }

    fn at(sync: u32, status: u32, holders: Holders) -> Self {
        let state = Lock::new(State { wanted: 0, holders });
        Self { sync, status, state, issued: AtomicU64::new(0), completed: AtomicU64::new(0) }
    }

    // --- which banks hold a domain's translations ---

    /// From now on a flush of `domain` invalidates the VMID of `bank`. Called before the bank's M becomes 1, with a barrier
    /// in between (contract C-17, I-9).
    pub(in crate::smmu) fn enter<H: Before<TlbSync>>(&self, held: &mut Held<'_, H>, domain: DomainId, bank: BankIndex) {
        self.state.lock(held).holders.enter(bank, domain);
    }

    /// Nothing of `domain` is cached under the VMID of `bank` any more: the bank is retired (contract I-7).
    pub(in crate::smmu) fn leave<H: Before<TlbSync>>(&self, held: &mut Held<'_, H>, domain: DomainId, bank: BankIndex) {
        self.state.lock(held).holders.leave(bank, domain);
    }

    /// The banks that may hold translations of `domain`, for invalidations in the banks themselves.
    pub(in crate::smmu) fn banks_of<H: Before<TlbSync>>(&self, held: &mut Held<'_, H>, domain: DomainId) -> BankSet {
        // Of a bank that joins after this look, the walker sees the tables as they are now.
        P::barrier();
        let state = self.state.lock(held);
        state.holders.banks_of(domain).collect()
    }

    /// Before the first sync of this driver: one may be in flight that firmware started, or a probe that gave up. It is waited
    /// for like one of the driver's own, since one sync register has one sync in flight (contract C-14).
    pub(in crate::smmu) fn meet_what_is_in_flight<R: Registers>(&self, registers: &Access<R>) {
        if registers.status(self.status) & ACTIVE != 0 {
            self.issued.store(1, Ordering::Release);
        }
    }

    // --- posting ---

    /// Writes invalidations, and a sync behind them where none is in flight. Otherwise the next sync completes them.
    pub(in crate::smmu) fn post<H: Before<TlbSync>, R: Registers>(
        &self,
        held: &mut Held<'_, H>,
        registers: &Access<R>,
        invalidate: impl FnOnce(&Access<R>),
    ) -> Ticket {
        // Without light nothing is written, and nothing is to be waited for: the reset that brings it back drains all.
        if registers.is_dark() {
            return Ticket(0);
        }
        // Table writes are visible to the walker before the invalidation is (contract S-1).
        P::barrier();
        let mut state = self.state.lock(held);
        invalidate(registers);
        self.synchronise(&mut state.wanted, registers)
    }

    /// Writes the invalidation of every VMID that `domain` has here, and the sync behind them, in one hold. `None`, without a
    /// register access, where no bank holds the domain. No flush gets in while it is dark.
    pub(in crate::smmu) fn post_domain<H: Before<TlbSync>, R: Registers>(
        &self,
        held: &mut Held<'_, H>,
        registers: &Access<R>,
        domain: DomainId,
        vmid_of: impl Fn(BankIndex) -> u32,
    ) -> Option<Ticket> {
        // Before the look too: of a bank that joins after it, the walker sees the tables as they are now (contract C-17).
        P::barrier();
        let mut guard = self.state.lock(held);
        let State { wanted, holders } = &mut *guard;
        let mut banks = holders.banks_of(domain);
        let mut bank = banks.next()?;
        loop {
            registers.write32(gr0::TLBIVMID, vmid_of(bank));
            let Some(next) = banks.next() else { break };
            bank = next;
        }
        Some(self.synchronise(wanted, registers))
    }

    /// A ticket for what was written under this hold.
    fn synchronise<R: Registers>(&self, wanted: &mut u64, registers: &Access<R>) -> Ticket {
        let issued = self.issued.load(Ordering::Relaxed);
        // A sync in flight may have passed these invalidations already: only the next one is sure to cover them.
        let next = issued.wrapping_add(1);
        *wanted = next;
        if issued == self.completed.load(Ordering::Relaxed) {
            self.start(issued, registers);
        }
        Ticket(next)
    }

    /// Starts the sync after `issued`, which was seen complete. The lock is held.
    fn start<R: Registers>(&self, issued: u64, registers: &Access<R>) {
        registers.write32(self.sync, ANY_VALUE);
        self.issued.store(issued.wrapping_add(1), Ordering::Release);
    }

    // --- waiting ---

    /// The last sync that was seen complete. Reads no register.
    pub(in crate::smmu) fn completed(&self) -> u64 {
        self.completed.load(Ordering::Acquire)
    }

    /// Whether everything that was posted under `ticket` is known to be complete. Reads no register.
    pub(in crate::smmu) fn is_complete(&self, ticket: Ticket) -> bool {
        self.completed() >= ticket.0
    }

    /// Reads the status once, with no lock held. Where it is inactive, the sync in flight is complete, and the next one
    /// starts if a ticket needs it, whether or not the ticket's holder still waits.
    #[inline]
    pub(in crate::smmu) fn look<H: Before<TlbSync>, R: Registers>(
        &self,
        held: &mut Held<'_, H>,
        registers: &Access<R>,
    ) {
        // Which sync the status is about must be known before it is read: afterwards another may be in flight.
        let about = self.issued.load(Ordering::Acquire);
        // A sync that was posted before the light went is not confirmed by what cannot be read.
        if registers.status(self.status) & ACTIVE != 0 {
            return;
        }
        let state = self.state.lock(held);
        if self.issued.load(Ordering::Relaxed) != about {
            return;
        }
        self.completed.store(about, Ordering::Release);
        if state.wanted > about {
            self.start(about, registers);
        }
    }

    /// Polls, with no lock held, until the sync of `ticket` is seen complete. A wait that times out can be repeated with the
    /// same ticket: it joins the sync in flight.
    #[inline(always)]
    pub(in crate::smmu) fn wait<H: Before<TlbSync>, R: Registers>(
        &self,
        held: &mut Held<'_, H>,
        registers: &Access<R>,
        ticket: Ticket,
        bound: impl FnOnce() -> Bound,
    ) -> Result<(), SyncTimeout> {
        // Mostly one look is enough.
        self.look(held, registers);
        if self.is_complete(ticket) {
            return Ok(());
        }
        self.wait_longer(held, registers, ticket, Watch::resume(bound(), 1))
    }

    /// [`wait`](Self::wait), after the first look.
    #[cold]
    #[inline(never)]
    fn wait_longer<H: Before<TlbSync>, R: Registers>(
        &self,
        held: &mut Held<'_, H>,
        registers: &Access<R>,
        ticket: Ticket,
        mut watch: Watch<P>,
    ) -> Result<(), SyncTimeout> {
        loop {
            // Asked before the look, so that there is one after the time is over.
            let is_last = watch.is_last();
            core::hint::spin_loop();
            self.look(held, registers);
            if self.is_complete(ticket) {
                return Ok(());
            }
            if is_last {
                return Err(SyncTimeout(watch.waited()));
            }
        }
    }
}

impl Holders {
    fn has(&self, bank: BankIndex, domain: DomainId) -> bool {
        self.holder.get(usize::from(bank)) == Some(&domain)
    }

    fn enter(&mut self, bank: BankIndex, domain: DomainId) {
        let Some(holder) = self.holder.get_mut(usize::from(bank)) else { return };
        let last = core::mem::replace(holder, domain);
        if last != NOBODY {
            self.near.put(last, bank, false);
        }
        self.near.put(domain, bank, true);
    }

    fn leave(&mut self, bank: BankIndex, domain: DomainId) {
        if let Some(holder) = self.holder.get_mut(usize::from(bank)).filter(|holder| **holder == domain) {
            *holder = NOBODY;
            self.near.put(domain, bank, false);
        }
    }

    fn banks_of(&self, domain: DomainId) -> impl Iterator<Item = BankIndex> {
        self.near.near(domain).each().filter(move |bank| self.has(*bank, domain))
    }
}

#[cfg(test)]
#[path = "tlb_tests.rs"]
mod tests;
