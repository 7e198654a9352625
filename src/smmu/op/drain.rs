//! Waiting for drains, and finishing those that were not confirmed.
//!
//! # Locking
//!
//! `TlbSync` to post, `StreamMap` for what follows; no lock is held while a status is polled (contract C-14).
//!
//! # Invariants
//!
//! 1. M is cleared only when no S2CR names the bank and a sync has completed behind an invalidation that was posted after
//!    the last such S2CR was put in fault (contract I-4).
//! 2. A bank is `Draining` exactly while one call waits for its drain; that call retires or poisons it.
//! 3. An entry that was put in fault remembers the sync that confirms its drain, from the hold that did so until it is seen
//!    complete. Every device that uses the entry owes the drain until then, whoever left the entry last.

use crate::assign::{DeviceId, IommuError, Patience, Streams};
use crate::smmu::bank::banks::{Bank, BankState, Banks};
use crate::smmu::bank::tlb::{SyncTimeout, Ticket};
use crate::smmu::hardware::Registers;
use crate::smmu::hardware::part::BankIndex;
use crate::smmu::hardware::quirks::Effects;
use crate::smmu::hardware::registers::gr0;
use crate::smmu::instance::{Shadow, Smmu, timed_out};
use crate::smmu::stream::map::Entries;
use crate::smmu::stream::number_set::{BankSet, Set};
use crate::smmu::stream::user::StreamUser;
use crate::sync::Platform;
use crate::sync::broken::broken;
use crate::sync::levels;
use crate::sync::order::{Before, Held, Unlocked};

/// What is to be drained.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Drain {
    /// The banks whose VMIDs are to be invalidated.
    pub(super) banks: BankSet,
    /// Those of them that are to be retired, and are `Draining`.
    pub(super) retiring: BankSet,
    /// The entries that were put in fault.
    pub(super) faulted: Set,
}

/// A drain was not confirmed: the sync that would have, and how long it was waited for.
type Unconfirmed = (Ticket, SyncTimeout);

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Counts a device out of its bank, and puts the entries in fault that no other keeps. Says whether they hold.
    ///
    /// What is missing is a drain, of which `drain` takes a note; [`post_drain`](Self::post_drain) of the same hold posts it.
    #[inline(always)]
    pub(super) fn detach(
        &self,
        entries: &mut Entries,
        banks: &mut Banks,
        user: &StreamUser,
        drain: &mut Drain,
    ) -> bool {
        let Some(index) = user.bank.take() else { return true };
        let (holds, any) = entries.fault(&self.part, user, &mut drain.faulted);
        let Some(bank) = banks.at_mut(index) else { return holds };
        bank.stuck |= !holds;
        bank.users = bank.users.saturating_sub(1);
        if any || bank.users == 0 {
            drain.banks.put(index, true);
        }
        holds
    }

    /// Begins to retire the banks of `drain` that no device uses any more, and posts the invalidation of all of them.
    #[inline(always)]
    pub(super) fn post_drain(
        &self,
        held: &mut Held<'_, levels::StreamMap>,
        entries: &mut Entries,
        banks: &mut Banks,
        drain: &mut Drain,
    ) -> Ticket {
        let port = self.port();
        for bank in drain.banks.each() {
            drain.retiring.put(bank, port.park_if_left(banks, bank));
        }
        let ticket = self.post_vmids(held, drain.banks);
        entries.owe(drain.faulted, ticket.0);
        ticket
    }

    /// Waits until the hardware has confirmed a drain that was posted. Nothing is retired yet.
    fn confirm(&self, held: &mut Held<'_, Unlocked>, retiring: BankSet, ticket: Ticket) -> Result<(), Unconfirmed> {
        self.await_sync(held, ticket)?;
        if retiring.is_empty() || !self.part.registers.has(Effects::SPLIT_64) {
            return Ok(());
        }
        self.confirm_stopped(held, retiring)
    }

    /// [`confirm`](Self::confirm), where a root cannot be replaced.
    #[cold]
    #[inline(never)]
    fn confirm_stopped(&self, held: &mut Held<'_, Unlocked>, retiring: BankSet) -> Result<(), Unconfirmed> {
        // Q8: without an empty root a bank walks ahead until its M is 0. What it has cached up to there goes only now.
        let walked = {
            let mut shadow = self.shadow.lock(held);
            let port = self.port();
            retiring.filter(|bank| port.stop_walking(&mut shadow.banks, bank))
        };
        if walked.is_empty() {
            return Ok(());
        }
        let ticket = self.post_vmids(held, walked);
        self.await_sync(held, ticket)
    }

    #[inline(always)]
    fn await_sync(&self, held: &mut Held<'_, Unlocked>, ticket: Ticket) -> Result<(), Unconfirmed> {
        if broken!("bank_freed_before_sync") {
            return Ok(());
        }
        let bound = || self.part.config.bound(Patience::Waiting);
        let waited = self.tlb.wait(held, &self.part.registers, ticket, bound);
        waited.map_err(|timeout| (ticket, timeout))
    }

    /// Posts the invalidation of the VMIDs of `banks`.
    pub(super) fn post_vmids<H: Before<levels::TlbSync>>(&self, held: &mut Held<'_, H>, banks: BankSet) -> Ticket {
        self.tlb.post(held, &self.part.registers, |registers| {
            for bank in banks.each() {
                registers.write32(gr0::TLBIVMID, self.part.vmid(bank));
            }
        })
    }

    /// Waits for a drain, and retires its banks, or poisons them where it was not confirmed. Says whether entries of `devices`
    /// translate still; `None` where some are to be refitted first.
    pub(super) fn drain(
        &self,
        held: &mut Held<'_, Unlocked>,
        drain: &Drain,
        ticket: Ticket,
        devices: &[DeviceId],
    ) -> Result<Option<Streams>, IommuError> {
        let confirmed = self.confirm(held, drain.retiring, ticket);
        let mut guard = self.shadow.lock(held);
        let (Shadow { entries, users, banks }, held) = guard.split();
        if let Err((last, timeout)) = confirmed {
            drain.retiring.each().for_each(|bank| banks.poison(bank, last.0));
            // Q8: the second one is owed too. Another call may have been content with the first.
            let owing = (drain.faulted & entries.owing).filter(|number| entries.at(number).drain == ticket.0);
            entries.owe(owing, last.0);
            return Err(timed_out(timeout));
        }
        drain.retiring.each().for_each(|bank| self.port().retire(held, banks, bank));
        Ok(entries.surplus.is_empty().then(|| entries.streams(users.all_of(devices).entries())))
    }

    /// Finishes drains that were not confirmed in their time, of the banks that `chosen` accepts, and ends those of them that
    /// are idle. Waits for the sync that was waited for in vain, and for the one of `beside`; only what was never posted is.
    pub(in crate::smmu) fn finish_drains(
        &self,
        held: &mut Held<'_, Unlocked>,
        chosen: impl Fn(BankIndex, &Bank) -> bool,
        beside: Option<Ticket>,
    ) -> Result<(), IommuError> {
        let owed = |index, bank: &Bank| (bank.is_poisoned() || bank.is_idle()) && chosen(index, bank);
        let owed = self.shadow.lock(held).banks.select(owed);
        if owed.is_empty() && beside.is_none() {
            return Ok(());
        }
        // It may have completed since.
        self.tlb.look(held, &self.part.registers);
        let mut drain = Drain::default();
        let mut ticket = beside.filter(|ticket| !self.tlb.is_complete(*ticket));
        {
            let mut guard = self.shadow.lock(held);
            let (shadow, held) = guard.split();
            let port = self.port();
            for index in owed.each() {
                let banks = &mut shadow.banks;
                if port.park_if_left(banks, index) {
                    drain.banks.put(index, true);
                } else if let Some(sync) = banks.resume_drain(index).map(Ticket) {
                    if !self.tlb.is_complete(sync) {
                        ticket = ticket.max(Some(sync));
                    } else if port.stop_walking(banks, index) {
                        drain.banks.put(index, true);
                    } else {
                        port.retire(held, banks, index);
                        continue;
                    }
                } else {
                    continue;
                }
                drain.retiring.put(index, true);
            }
            if !drain.banks.is_empty() {
                ticket = Some(self.post_vmids(held, drain.banks));
            }
        }
        ticket.map_or(Ok(()), |ticket| self.drain(held, &drain, ticket, &[]).map(|_| ()))
    }

    /// Finishes the drains that `devices` owe (contract I-6).
    pub(super) fn finish_owed(&self, held: &mut Held<'_, Unlocked>, devices: &[DeviceId]) -> Result<(), IommuError> {
        let last = {
            let mut shadow = self.shadow.lock(held);
            shadow.entries.settle(self.tlb.completed());
            shadow.entries.owed(shadow.users.all_of(devices).entries())
        };
        let Some(last) = last else { return Ok(()) };
        let before = |bank: &Bank| matches!(bank.state, BankState::Poisoned(_, sync) if sync <= last);
        let finished = self.finish_drains(held, |_, bank| before(bank), Some(Ticket(last)));
        // What else a bank lacks is not theirs.
        if self.tlb.is_complete(Ticket(last)) { Ok(()) } else { finished }
    }
}
