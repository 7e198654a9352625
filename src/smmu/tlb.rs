//! Post and synchronise: invalidations, and the one sync in flight of a sync register.
//!
//! An instance has a global sync, which completes everything, and in version 2 one in each bank, which completes what
//! was posted in that bank. Each is a [`Tlb`] of its own.
//!
//! # Locking
//!
//! Level `TlbSync`, held to post an invalidation and the sync behind it and to note that one has completed: a few
//! register writes, never a poll (contract C-14). Those who post while a sync is in flight share the next one.
//!
//! # Invariants
//!
//! 1. Syncs are numbered from 1; at most one is in flight that has not been given up; `completed` never exceeds `issued`.
//! 2. Sync `n` was started after every invalidation whose ticket is at most `n` was written, so that its completion
//!    completes them (IHI 0062D, TLB maintenance).

use super::access::Access;
use super::geometry::Geometry;
use super::levels::TlbSync;
use super::mmio::Registers;
use super::registers::{ANY_VALUE, cb, gr0};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::lock::Lock;
use crate::sync::order::{Before, Held};
use crate::sync::{Bound, Platform, Waited, Watch};

/// The number of the sync that completes what was posted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[must_use = "an invalidation is complete only when its sync is"]
pub(super) struct Ticket(pub(super) u64);

/// The sync was not confirmed within the bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SyncTimeout(pub(super) Waited);

/// One sync register and what was posted for it.
#[derive(Debug)]
pub(super) struct Tlb<P: Platform> {
    /// Offsets of the register that starts a sync and of its status.
    sync: u32,
    status: u32,
    state: Lock<TlbSync, State, P::Lock>,
    /// Copies that can be read without the lock; written under it.
    issued: AtomicU64,
    completed: AtomicU64,
    given_up: AtomicU64,
}

#[derive(Debug)]
struct State {
    in_flight: bool,
}

impl<P: Platform> Tlb<P> {
    /// The instance's global sync.
    pub(super) fn global() -> Self {
        Self::at(gr0::STLBGSYNC, gr0::STLBGSTATUS)
    }

    /// The sync of one bank (version 2).
    pub(super) fn of_bank(geometry: &Geometry, bank: u8) -> Self {
        Self::at(geometry.bank(bank, cb::TLBSYNC), geometry.bank(bank, cb::TLBSTATUS))
    }

    fn at(sync: u32, status: u32) -> Self {
        let state = Lock::new(State { in_flight: false });
        Self {
            sync,
            status,
            state,
            issued: AtomicU64::new(0),
            completed: AtomicU64::new(0),
            given_up: AtomicU64::new(0),
        }
    }

    /// Writes invalidations, and a sync behind them where none is in flight.
    pub(super) fn post<H: Before<TlbSync>, R: Registers>(
        &self,
        held: &mut Held<'_, H>,
        registers: &Access<R>,
        invalidate: impl FnOnce(&Access<R>),
    ) -> Ticket {
        let mut state = self.state.lock(held);
        // Table writes are visible to the walker before the invalidation is (contract S-1).
        P::barrier();
        invalidate(registers);
        let issued = self.issued.load(Ordering::Relaxed);
        if state.in_flight {
            // That sync may have passed these invalidations already: only the next one is sure to cover them.
            return Ticket(issued.saturating_add(1));
        }
        Ticket(self.start(&mut state, registers))
    }

    /// Polls, with no lock held, until the sync of `ticket` has completed.
    pub(super) fn wait<H: Before<TlbSync>, R: Registers>(
        &self,
        held: &mut Held<'_, H>,
        registers: &Access<R>,
        ticket: Ticket,
        bound: Bound,
    ) -> Result<(), SyncTimeout> {
        const ACTIVE: u32 = 1;
        let mut watch = Watch::<P>::start(bound);
        let mut was_last = false;
        while !self.is_complete(ticket) {
            if was_last {
                self.give_up(held, ticket);
                return Err(SyncTimeout(watch.waited()));
            }
            was_last = watch.is_last();
            // Which sync the status is about must be known before it is read: afterwards another may be in flight.
            let about = self.issued.load(Ordering::Acquire);
            if registers.status(self.status) & ACTIVE != 0 {
                core::hint::spin_loop();
                continue;
            }
            let mut state = self.state.lock(held);
            if state.in_flight && self.issued.load(Ordering::Relaxed) == about {
                state.in_flight = false;
                self.completed.store(about, Ordering::Release);
            }
            if !state.in_flight && !self.is_complete(ticket) {
                self.start(&mut state, registers);
            }
        }
        Ok(())
    }

    /// Whether everything that was posted under `ticket` is complete.
    pub(super) fn is_complete(&self, ticket: Ticket) -> bool {
        self.completed.load(Ordering::Acquire) >= ticket.0
    }

    /// Lets the next post start a sync of its own: the one in flight may be stuck for good. Whoever waits for it is
    /// served by the later one, which covers all that came before.
    fn give_up<H: Before<TlbSync>>(&self, held: &mut Held<'_, H>, ticket: Ticket) {
        let mut state = self.state.lock(held);
        state.in_flight = false;
        self.given_up.store(ticket.0.max(self.given_up.load(Ordering::Relaxed)), Ordering::Release);
    }

    /// Whether a sync was given up and none has completed since: what it was to drain may be in flight still.
    pub(super) fn is_behind(&self) -> bool {
        !self.is_complete(Ticket(self.given_up.load(Ordering::Acquire)))
    }

    fn start<R: Registers>(&self, state: &mut State, registers: &Access<R>) -> u64 {
        let number = self.issued.load(Ordering::Relaxed).saturating_add(1);
        registers.write32(self.sync, ANY_VALUE);
        self.issued.store(number, Ordering::Release);
        state.in_flight = true;
        number
    }
}
