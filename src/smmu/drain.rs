//! The end of a bank's life: drained, switched off, free; or poisoned, until a later drain is confirmed.
//!
//! # Locking
//!
//! `TlbSync` to post, `StreamMap` for what follows; never both, and no poll under either.
//!
//! # Invariants
//!
//! 1. M is cleared only when no S2CR names the bank and a sync has completed behind an invalidation that was posted after
//!    the last such S2CR was put in fault (contract I-4).
//! 2. A bank becomes free when a sync has completed behind an invalidation of its VMID that was posted when the bank
//!    could not fill the TLB from its last owner's tables any more: its root was empty, or its M was 0 (contract I-7).

use super::context::{self, Bank, BankIndex, BankState};
use super::instance::Smmu;
use super::mmio::Registers;
use super::registers::cb;
use super::stream_map::{Set, StreamMap, each, one};
use super::tlb::{SyncTimeout, Ticket};
use crate::assign::{DomainId, Patience};
use crate::sync::order::{Held, Unlocked};
use crate::sync::{Platform, Watch};

/// What taking devices from their banks has done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cut {
    /// Banks that lost a user, and whose entries were put in fault.
    pub(super) banks: Set,
    /// Of these, the banks that nobody uses any more.
    pub(super) retiring: Set,
    /// A write that puts an entry in fault did not hold (read-back mode only).
    pub(super) lost: bool,
}

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Invalidates the banks' VMIDs and waits until it is done; then ends the life of those that are retired.
    pub(super) fn drain(&self, held: &mut Held<'_, Unlocked>, cut: Cut, patience: Patience) -> Result<(), SyncTimeout> {
        self.drain_and(held, cut, patience, |_| ()).0
    }

    /// [`drain`](Self::drain), and `then`, whether or not it was confirmed, under the lock under which it ends.
    pub(super) fn drain_and<T>(
        &self,
        held: &mut Held<'_, Unlocked>,
        cut: Cut,
        patience: Patience,
        then: impl FnOnce(&StreamMap) -> T,
    ) -> (Result<(), SyncTimeout>, T) {
        let Cut { mut banks, mut retiring, lost } = cut;
        loop {
            let ticket = self.post_vmids(held, banks);
            let drained = self.tlb.wait(held, &self.registers, ticket, self.config.bound(patience));
            // An entry that did not take FAULT may name its bank for good.
            let poison = if lost { Some(Ticket(context::NEVER)) } else { drained.err().map(|_| ticket) };
            let mut map = self.map.lock(held);
            retiring = self.retire_all(&mut map, retiring, poison);
            if retiring == 0 || drained.is_err() {
                return (drained, then(&map));
            }
            banks = retiring;
        }
    }

    /// Finishes drains that were not confirmed in their time, of the domains that `whose` accepts. What is missing is
    /// posted, and waited for. Says whether a bank has become free.
    pub(super) fn finish_drains(
        &self,
        held: &mut Held<'_, Unlocked>,
        whose: impl Fn(DomainId) -> bool,
        patience: Patience,
    ) -> Result<bool, SyncTimeout> {
        let (mut left, mut freed) = (0, false);
        {
            let mut map = self.map.lock(held);
            for index in 0..self.geometry.banks {
                let Some(bank) = map.bank_mut(index) else { continue };
                let BankState::Poisoned(domain, sync) = bank.state else { continue };
                if sync == context::NEVER || !whose(domain) {
                    continue;
                }
                // From here on the bank is this caller's: nobody else finishes it, and no plan takes it.
                bank.state = BankState::Draining(domain);
                if !self.tlb.is_complete(Ticket(sync)) || self.retire(&mut map, index, None) {
                    left |= one(index);
                } else {
                    freed = true;
                }
            }
        }
        if left != 0 {
            self.drain(held, Cut { banks: left, retiring: left, lost: false }, patience)?;
        }
        Ok(freed || left != 0)
    }

    /// Waits until no bank of `domain` that is being retired may walk the domain's tables any more: somebody else may be
    /// finishing its drain just now, or an entry may name it for good (quirk Q8; elsewhere its root is empty).
    pub(super) fn await_drains(&self, held: &mut Held<'_, Unlocked>, domain: DomainId) -> Result<(), SyncTimeout> {
        let retiring = |bank: &Bank| match bank.state {
            BankState::Draining(theirs) | BankState::Poisoned(theirs, _) => theirs == domain && self.walks_on(bank),
            BankState::Free | BankState::Reserved(_) | BankState::Live(_) => false,
        };
        let mut watch = Watch::<P>::start(self.config.looks());
        loop {
            let is_last = watch.is_last();
            if self.map.lock(held).find_bank(retiring).is_none() {
                return Ok(());
            }
            if is_last {
                return Err(SyncTimeout(watch.waited()));
            }
            core::hint::spin_loop();
        }
    }

    /// Whether there is anything for [`finish_drains`](Self::finish_drains) to do.
    pub(super) fn owes_drains(&self, held: &mut Held<'_, Unlocked>) -> bool {
        let owes = |bank: &Bank| matches!(bank.state, BankState::Poisoned(_, sync) if sync != context::NEVER);
        self.map.lock(held).find_bank(owes).is_some()
    }

    /// Sees to it that nothing of an earlier owner is in flight any more, where a sync has timed out (contract I-8).
    ///
    /// The invalidations were posted then; what is missing is a sync behind them that completes.
    pub(super) fn settle_drains(&self, held: &mut Held<'_, Unlocked>) -> Result<(), SyncTimeout> {
        if !self.tlb.is_behind() {
            return Ok(());
        }
        let ticket = self.tlb.post(held, &self.registers, |_| ());
        self.tlb.wait(held, &self.registers, ticket, self.config.bound(Patience::Waiting))
    }

    /// Takes banks whose drain has ended one step on. Returns those whose VMID must be invalidated once more.
    fn retire_all(&self, map: &mut StreamMap, retiring: Set, poison: Option<Ticket>) -> Set {
        let again = each(retiring).filter(|bank| self.retire(map, *bank, poison));
        again.fold(0, |all, bank| all | one(bank))
    }

    /// Off and free where the drain is confirmed, poisoned where it is not. Says whether the bank's VMID must be
    /// invalidated once more before the bank is free.
    fn retire(&self, map: &mut StreamMap, index: BankIndex, poison: Option<Ticket>) -> bool {
        let Some(bank) = map.bank_mut(index) else { return false };
        let BankState::Draining(domain) = bank.state else { return false };
        if let Some(Ticket(sync)) = poison {
            bank.state = BankState::Poisoned(domain, sync);
            return false;
        }
        let walked = self.walks_on(bank);
        if bank.on {
            self.registers.write32(self.geometry.bank(index, cb::SCTLR), 0);
            self.publish_bank(index, None);
            bank.on = false;
        }
        if walked {
            // Up to that write it may have walked ahead, whoever asked for it (IHI 0062D, TLB behaviour).
            return true;
        }
        bank.state = bank.promised.take().map_or(BankState::Free, BankState::Reserved);
        false
    }
}
