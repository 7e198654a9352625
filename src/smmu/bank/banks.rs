//! Context banks: what each is doing, and which one a plan gets.
//!
//! ```text
//! Free -> Reserved -> Live -> Draining -> Free
//!                                 |        ^
//!                                 v        |
//!                              Poisoned ---+   (or Draining -> Reserved, where it is another domain's next)
//! ```
//!
//! # Locking
//!
//! All of it is guarded by the instance's lock of level `StreamMap`.
//!
//! # Invariants
//!
//! 1. A bank that an S2CR names is `Live`, fully programmed, with M = 1 (contract I-2, I-4).
//! 2. A bank is `Free` only when M = 0, no S2CR names it, and a sync has completed behind an invalidation of its VMID that was
//!    posted when the bank could not fill the TLB from its last owner's tables any more: its root was empty, or M was 0
//!    (contract I-7). Until then it is `Draining`, or `Poisoned` where the sync was not confirmed (contract I-8).
//! 3. A domain has one bank, whatever its state; but for spaces of the service's own, which may differ in their tables, and
//!    for banks that are not to be trusted before the next reset.
//! 4. A bank that is `next` for a space takes no other plan, for either domain.

use alloc::vec::Vec;

use super::by_domain::ByDomain;
use crate::assign::{AddressSpace, DomainId, own_space};
use crate::few;
use crate::smmu::hardware::part::BankIndex;
use crate::smmu::stream::number_set::BankSet;
use crate::sync::broken::broken;

/// What a bank is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::smmu) enum BankState {
    /// Nothing names it and nothing is cached under its VMID.
    Free,
    /// Planned for a domain, not yet programmed.
    Reserved(AddressSpace),
    /// Translating.
    Live(AddressSpace),
    /// Its last user has left; a call waits for its drain.
    Draining(DomainId),
    /// Its drain was not confirmed; the sync of this number would have. With [`Bank::NEVER`] it is drained, and not to be trusted
    /// before the next reset.
    Poisoned(DomainId, u64),
}

/// A context bank as the driver believes it to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::smmu) struct Bank {
    pub(in crate::smmu) state: BankState,
    /// Devices that translate through it.
    pub(in crate::smmu) users: u32,
    /// Devices that are planned to.
    pub(in crate::smmu) plans: u32,
    /// M is 1 in the register.
    pub(in crate::smmu) on: bool,
    /// An entry did not take FAULT, and may name it until the next reset (read-back mode only).
    pub(in crate::smmu) stuck: bool,
    /// The space that gets the bank when its users, who are being moved, have left (contract A-1).
    pub(in crate::smmu) next: Option<AddressSpace>,
}

impl Bank {
    const FREE: Self = Self { state: BankState::Free, users: 0, plans: 0, on: false, stuck: false, next: None };

    /// Above the number of every sync.
    pub(super) const NEVER: u64 = u64::MAX;

    /// The domain that the bank belongs to, in whatever state.
    pub(in crate::smmu) const fn domain(&self) -> Option<DomainId> {
        match self.state {
            BankState::Free => None,
            BankState::Draining(domain) | BankState::Poisoned(domain, _) => Some(domain),
            BankState::Live(space) | BankState::Reserved(space) => Some(space.domain),
        }
    }

    /// Whether it belongs to `domain`, or will, and is to be trusted.
    fn is_of(&self, domain: DomainId) -> bool {
        let is_lost = matches!(self.state, BankState::Poisoned(_, Self::NEVER));
        self.domain() == Some(domain) && !is_lost || self.next.is_some_and(|space| space.domain == domain)
    }

    /// Whether it belongs to a space of the service's own.
    pub(in crate::smmu) fn is_own(&self) -> bool {
        self.domain().is_some_and(own_space::is_own)
    }

    /// Whether it translates for no device, now or soon: its plan was given back where no register could be touched.
    pub(in crate::smmu) const fn is_idle(&self) -> bool {
        matches!(self.state, BankState::Live(_)) && self.users == 0 && self.plans == 0
    }

    /// Whether it waits for a drain that a later call can finish.
    pub(in crate::smmu) const fn is_poisoned(&self) -> bool {
        matches!(self.state, BankState::Poisoned(_, sync) if sync != Self::NEVER)
    }

    /// Whether it is to be retired: no device is in it, and none will join.
    pub(super) const fn is_left(&self) -> bool {
        matches!(self.state, BankState::Live(_)) && self.users == 0 && (self.plans == 0 || self.next.is_some())
    }
}

/// What [`Banks::choose`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::smmu) enum Choice {
    /// This bank: one that the domain has, or will have, already; else a free one.
    Bank(BankIndex),
    /// A drain of the domain must be finished first.
    Unfinished,
    /// The domain's bank is on its way to another domain, or draining.
    Busy,
    /// No bank is free.
    None,
}

/// All banks of an instance.
pub(in crate::smmu) struct Banks {
    list: Vec<Bank>,
    pub(in crate::smmu) free: BankSet,
    /// Has a bank at least with its domain, and with that of its next space.
    near: ByDomain,
}

impl Banks {
    /// All banks free. `None` when memory could not be reserved.
    pub(in crate::smmu) fn new(count: u8) -> Option<Self> {
        let mut list = Vec::new();
        list.try_reserve_exact(count.into()).ok()?;
        few::extend_within(&mut list, (0..count).map(|_| Bank::FREE));
        Some(Self { list, free: BankSet::below(count), near: ByDomain::new(count)? })
    }

    /// A bank that exists; a free one for any other number.
    pub(in crate::smmu) fn at(&self, index: BankIndex) -> &Bank {
        self.list.get(usize::from(index)).unwrap_or(&Bank::FREE)
    }

    pub(in crate::smmu) fn at_mut(&mut self, index: BankIndex) -> Option<&mut Bank> {
        self.list.get_mut(usize::from(index))
    }

    pub(in crate::smmu) fn each(&self) -> impl Iterator<Item = (BankIndex, &Bank)> {
        (0..=u8::MAX).zip(&self.list)
    }

    /// The banks that `wanted` accepts.
    pub(in crate::smmu) fn select(&self, wanted: impl Fn(BankIndex, &Bank) -> bool) -> BankSet {
        let chosen = self.each().filter(|(index, bank)| wanted(*index, bank));
        chosen.map(|(index, _)| index).collect()
    }

    /// The bank was `domain`'s, or was to be.
    fn strike(&mut self, domain: DomainId, index: BankIndex) {
        self.near.put(domain, index, false);
        if let Some(stays) = self.at(index).domain() {
            self.near.put(stays, index, true);
        }
    }

    // --- plans ---

    /// The bank for a space. Banks that can only do stage 2 come first (quirk Q24).
    pub(in crate::smmu) fn choose(&self, space: &AddressSpace) -> Choice {
        let near = self.near.near(space.domain);
        if !near.is_empty()
            && let Some(choice) = self.choose_of(near, space)
        {
            return choice;
        }
        self.free.lowest().map_or(Choice::None, Choice::Bank)
    }

    /// Of `near`, the bank that the space's domain has, or what keeps it from having one.
    #[inline(never)]
    fn choose_of(&self, near: BankSet, space: &AddressSpace) -> Option<Choice> {
        near.each().map(|index| (index, self.at(index))).filter(|(_, bank)| bank.is_of(space.domain)).find_map(
            |(index, bank)| match bank.state {
                _ if bank.next.is_some() && !broken!("next_bank_joined") => Some(Choice::Busy),
                BankState::Live(theirs) | BankState::Reserved(theirs) if theirs == *space => Some(Choice::Bank(index)),
                BankState::Draining(_) if broken!("draining_bank_joined") => Some(Choice::Bank(index)),
                // To join it would reprogram a root that is empty for a reason; a fresh bank would be a second one.
                BankState::Draining(_) => Some(Choice::Busy),
                BankState::Poisoned(..) => Some(Choice::Unfinished),
                BankState::Free | BankState::Reserved(_) | BankState::Live(_) => None,
            },
        )
    }

    /// Counts more plans for a bank that [`choose`](Self::choose) has found.
    pub(in crate::smmu) fn reserve(&mut self, index: BankIndex, space: &AddressSpace, plans: u32) {
        let Some(bank) = self.at_mut(index).filter(|_| plans > 0) else { return };
        bank.plans = bank.plans.saturating_add(plans);
        if bank.state == BankState::Free {
            bank.state = BankState::Reserved(*space);
            self.free.put(index, false);
            self.near.put(space.domain, index, true);
        }
    }

    /// Promises a live bank, all of whose users are about to leave it, to `space`.
    pub(in crate::smmu) fn promise(&mut self, index: BankIndex, space: &AddressSpace) {
        if let Some(bank) = self.at_mut(index) {
            bank.next = Some(*space);
            self.near.put(space.domain, index, true);
        }
    }

    /// Gives one plan back. A live bank without devices is idle then.
    pub(in crate::smmu) fn unreserve(&mut self, index: BankIndex) {
        let Some(bank) = self.at_mut(index) else { return };
        bank.plans = bank.plans.saturating_sub(1);
        if bank.plans > 0 {
            return;
        }
        let mut gone = bank.next.take().map(|space| space.domain);
        if let BankState::Reserved(space) = bank.state {
            bank.state = BankState::Free;
            gone = Some(space.domain);
            self.free.put(index, true);
        }
        if let Some(domain) = gone {
            self.strike(domain, index);
        }
    }

    /// The drain was not confirmed: the sync of this number would have.
    pub(in crate::smmu) fn poison(&mut self, index: BankIndex, sync: u64) {
        let Some(bank) = self.at_mut(index) else { return };
        if let BankState::Draining(domain) = bank.state {
            bank.state = BankState::Poisoned(domain, sync);
        }
    }

    /// Takes a poisoned bank to finish its drain: no other call does from here on. Returns the number of its sync.
    pub(in crate::smmu) fn resume_drain(&mut self, index: BankIndex) -> Option<u64> {
        let bank = self.at_mut(index).filter(|bank| bank.is_poisoned())?;
        let BankState::Poisoned(domain, sync) = bank.state else { return None };
        bank.state = BankState::Draining(domain);
        Some(sync)
    }

    pub(super) fn end(&mut self, index: BankIndex, domain: DomainId) {
        let Some(bank) = self.at_mut(index) else { return };
        let Some(next) = bank.next.take() else {
            bank.state = BankState::Free;
            self.free.put(index, true);
            self.near.put(domain, index, false);
            return;
        };
        bank.state = BankState::Reserved(next);
        self.strike(domain, index);
    }
}
