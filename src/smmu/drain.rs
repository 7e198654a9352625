//! The end of a bank's life: drained, switched off, free; or poisoned, until a later drain is confirmed.
//!
//! A drain ends in three steps: the hardware confirms it; the banks that nobody uses any more are switched off and free; its
//! devices may move again. Who began it takes all three, but after a `cut` ([`cut`](super::cut)) the last two may wait: that
//! the first is done is *announced* by an atomic, without a lock, and the rest is done by whoever holds the map next for one
//! of its devices (an install, an abandoned plan, a withdrawal, another cut), by a flush that waits for the domain, or by
//! a plan that finds no bank. So nobody is kept from a bank while a source's hooks run between a cut and an install.
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
//! 3. A drain is announced only when all its syncs have completed, the second one of quirk Q8 included, so that 1 and 2 hold
//!    of its banks whoever ends it: until then they stay `Draining`, which nobody else takes, and its devices, all of which
//!    are in fault, neither move nor go.
//! 4. A drain stands with one of its devices, whose use outlives it. It is ended as a whole and once: the set of its banks
//!    is taken out under the lock under which its devices are let go.

use super::context::{self, Bank, BankIndex, BankState};
use super::instance::Smmu;
use super::mmio::Registers;
use super::quirks::Effects;
use super::registers::cb;
use super::stream_map::{Set, StreamMap, Use, each, one};
use super::tlb::{SyncTimeout, Ticket};
use crate::assign::{DeviceId, DomainId, Patience};
use crate::sync::order::{Held, Unlocked};
use crate::sync::{Platform, Watch};

/// The number of a sync that has completed, whenever: syncs are numbered from 1.
const CONFIRMED: u64 = 0;

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
        let (drained, poison) = self.confirm(held, cut, patience);
        self.retire_all(&mut self.map.lock(held), cut.retiring, poison);
        drained
    }

    /// [`drain`](Self::drain) up to its end: after it, the retired banks are to be switched off and free, or poisoned with
    /// the ticket that it returns. Locks the map only where a bank walks ahead (quirk Q8).
    pub(super) fn confirm(
        &self,
        held: &mut Held<'_, Unlocked>,
        cut: Cut,
        patience: Patience,
    ) -> (Result<(), SyncTimeout>, Option<Ticket>) {
        let Cut { mut banks, retiring, .. } = cut;
        let mut all_off = retiring == 0 || !self.registers.has(Effects::SPLIT_64);
        loop {
            let ticket = self.post_vmids(held, banks);
            let drained = self.tlb.wait(held, &self.registers, ticket, self.config.bound(patience));
            let poison = drained.err().map(|_| ticket);
            if poison.is_some() || all_off {
                return (drained, poison);
            }
            all_off = true;
            let mut map = self.map.lock(held);
            let walking = each(retiring).filter(|bank| self.stop_walking(&mut map, *bank));
            banks = walking.fold(0, |all, bank| all | one(bank));
            if banks == 0 {
                return (drained, None);
            }
        }
    }

    /// Ends the drains of `devices` that the hardware has confirmed.
    pub(super) fn end_announced(&self, map: &mut StreamMap, devices: &[DeviceId]) {
        for device in devices {
            if let Some(lead) = map.used_by(*device).and_then(|used| used.draining.get())
                && map.used_by(lead).is_some_and(Use::is_drained)
            {
                self.end_drain(map, lead, None);
            }
        }
    }

    /// Ends every drain that the hardware has confirmed.
    pub(super) fn end_all_announced(&self, map: &mut StreamMap) {
        while let Some(lead) = map.announced() {
            self.end_drain(map, lead, None);
        }
    }

    /// Ends every drain that the hardware has confirmed, without a register access: the banks are clean but for M, which
    /// whoever takes them clears. Says whether there was one.
    pub(super) fn give_up_announced(&self, map: &mut StreamMap) -> bool {
        let mut any = false;
        while let Some(lead) = map.announced() {
            any = true;
            for index in each(map.close_drain(lead)) {
                let Some(bank) = map.bank_mut(index) else { continue };
                let BankState::Draining(domain) = bank.state else { continue };
                let left_on = bank.on.then_some((domain, CONFIRMED));
                bank.state = match (bank.promised.take(), left_on) {
                    (Some(space), _) => BankState::Reserved(space),
                    (None, Some((domain, sync))) => BankState::Poisoned(domain, sync),
                    (None, None) => BankState::Free,
                };
                bank.left_on = left_on.filter(|_| matches!(bank.state, BankState::Reserved(_)));
            }
        }
        any
    }

    /// Ends the drain that `lead` stands for.
    pub(super) fn end_drain(&self, map: &mut StreamMap, lead: DeviceId, poison: Option<Ticket>) {
        let retiring = map.close_drain(lead);
        self.retire_all(map, retiring, poison);
    }

    /// Finishes drains that were not confirmed in their time, of the domains that `whose` accepts, and ends banks that are
    /// idle. What is missing is posted, and waited for. Says whether a bank has become free.
    pub(super) fn finish_drains(
        &self,
        held: &mut Held<'_, Unlocked>,
        whose: impl Fn(DomainId) -> bool,
        patience: Patience,
    ) -> Result<bool, SyncTimeout> {
        let (mut left, mut freed) = (0, false);
        {
            let mut map = self.map.lock(held);
            self.end_all_announced(&mut map);
            for index in 0..self.geometry.banks {
                let Some(bank) = map.bank_mut(index) else { continue };
                if bank.is_idle() && bank.domain().is_some_and(&whose) {
                    left |= if self.park_if_unused(&mut map, index) { one(index) } else { 0 };
                    continue;
                }
                let BankState::Poisoned(domain, sync) = bank.state else { continue };
                if sync == context::NEVER || !whose(domain) {
                    continue;
                }
                // From here on the bank is this caller's: nobody else finishes it, and no plan takes it.
                bank.state = BankState::Draining(domain);
                if !self.tlb.is_complete(Ticket(sync)) || self.stop_walking(&mut map, index) {
                    left |= one(index);
                } else {
                    self.retire(&mut map, index, None);
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
        let is_poisoned = |bank: &Bank| matches!(bank.state, BankState::Poisoned(_, sync) if sync != context::NEVER);
        let owes = |bank: &Bank| bank.is_idle() || is_poisoned(bank);
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

    fn retire_all(&self, map: &mut StreamMap, retiring: Set, poison: Option<Ticket>) {
        for bank in each(retiring) {
            self.retire(map, bank, poison);
        }
    }

    /// Off and free where the drain is confirmed, poisoned where it is not.
    fn retire(&self, map: &mut StreamMap, index: BankIndex, poison: Option<Ticket>) {
        let Some(bank) = map.bank_mut(index) else { return };
        let BankState::Draining(domain) = bank.state else { return };
        if let Some(Ticket(sync)) = poison {
            bank.state = BankState::Poisoned(domain, sync);
            return;
        }
        self.switch_off(index, bank);
        bank.state = bank.promised.take().map_or(BankState::Free, BankState::Reserved);
    }

    /// Switches off a bank that could go on filling the TLB. Says whether its VMID must be invalidated once more: up to
    /// this write it may have walked ahead, whoever asked for it (IHI 0062D, TLB behaviour).
    fn stop_walking(&self, map: &mut StreamMap, index: BankIndex) -> bool {
        let Some(bank) = map.bank_mut(index) else { return false };
        let walked = self.walks_on(bank);
        if walked {
            self.switch_off(index, bank);
        }
        walked
    }

    fn switch_off(&self, index: BankIndex, bank: &mut Bank) {
        if bank.on {
            self.registers.write32(self.geometry.bank(index, cb::SCTLR), 0);
            self.publish_bank(index, None);
            bank.on = false;
        }
    }
}
