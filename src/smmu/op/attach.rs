//! From fault into a domain: plan, install; or abandon.
//!
//! # Locking
//!
//! `StreamMap`; `Masters` around it where a device is lazy, or shares entries with a space of the service's own. None while a
//! status is polled (contract C-14).

use super::drain::Drain;
use super::enrol::written;
use crate::assign::{AddressSpace, DeviceId, IommuError, Resource, own_space};
use crate::smmu::bank::banks::{BankState, Banks, Choice};
use crate::smmu::bank::stage2;
use crate::smmu::gate::Purpose;
use crate::smmu::hardware::Registers;
use crate::smmu::hardware::part::BankIndex;
use crate::smmu::instance::{Shadow, Smmu};
use crate::smmu::stream::map::Entries;
use crate::smmu::stream::number_set::{BankSet, Set};
use crate::smmu::stream::user::{Members, StreamUser, Users};
use crate::sync::Platform;
use crate::sync::levels;
use crate::sync::order::{Held, Unlocked};

/// Why there is no plan for now.
enum Lack {
    /// A drain that one of the devices owes, or one of the domain.
    Drain,
    /// Entries of lazy devices.
    Entries(IommuError),
    /// A bank.
    Bank,
    /// The tree, for a device is lazy: `plan_lazy` has it.
    Tree,
    /// Nothing that could be done about.
    Refused(IommuError),
}

/// What was done about lacks.
#[derive(Default)]
struct Tried {
    drained: bool,
    packed: bool,
    finished: Option<Result<(), IommuError>>,
}

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Reserves a bank, and the entries of lazy devices.
    pub(in crate::smmu) fn plan_move(
        &self,
        held: &mut Held<'_, Unlocked>,
        devices: &[DeviceId],
        space: &AddressSpace,
        is_claimed: &dyn Fn(DeviceId) -> bool,
    ) -> Result<(), IommuError> {
        stage2::check(&self.part, &space.stage2).map_err(IommuError::Incompatible)?;
        let mut tried = Tried::default();
        loop {
            match self.try_plan(held, devices, space, is_claimed, tried.finished.is_none()) {
                Ok(()) => return Ok(()),
                Err(lack) => self.remedy(held, devices, space, is_claimed, lack, &mut tried)?,
            }
        }
    }

    /// Does what can be done about a lack, once each.
    #[cold]
    #[inline(never)]
    fn remedy(
        &self,
        held: &mut Held<'_, Unlocked>,
        devices: &[DeviceId],
        space: &AddressSpace,
        is_claimed: &dyn Fn(DeviceId) -> bool,
        lack: Lack,
        tried: &mut Tried,
    ) -> Result<(), IommuError> {
        match lack {
            Lack::Drain if !tried.drained => {
                tried.drained = true;
                self.powered(held, Purpose::Acquire, |held| {
                    self.finish_owed(held, devices)?;
                    self.finish_drains(held, |_, bank| bank.domain() == Some(space.domain), None)
                })
            }
            Lack::Entries(_) if !tried.packed && self.repack(held, devices, is_claimed)? => {
                tried.packed = true;
                Ok(())
            }
            Lack::Bank => {
                if let Some(finished) = tried.finished.take() {
                    finished?;
                    let total = usize::from(self.part.geometry.banks);
                    let resource = Resource::ContextBanks;
                    return Err(IommuError::Exhausted { resource, needed: 1, free: 0, total });
                }
                let all = |held: &mut Held<'_, Unlocked>| self.finish_drains(held, |_, _| true, None);
                tried.finished = Some(self.powered(held, Purpose::Acquire, all));
                Ok(())
            }
            Lack::Drain | Lack::Tree => Err(IommuError::Busy),
            Lack::Entries(error) | Lack::Refused(error) => Err(error),
        }
    }

    /// Reserves everything, or nothing and says what is lacking.
    fn try_plan(
        &self,
        held: &mut Held<'_, Unlocked>,
        devices: &[DeviceId],
        space: &AddressSpace,
        is_claimed: &dyn Fn(DeviceId) -> bool,
        finishable: bool,
    ) -> Result<(), Lack> {
        let _inside = self.enter(Purpose::Acquire).map_err(Lack::Refused)?;
        let planned = {
            let mut guard = self.shadow.lock(held);
            let Shadow { entries, users, banks } = &mut *guard;
            entries.settle(self.tlb.completed());
            plan_bank(entries, users, banks, devices, space, finishable, false)
        };
        match planned {
            Err(Lack::Tree) => self.plan_lazy(held, devices, space, is_claimed, finishable),
            planned => planned,
        }
    }

    /// [`try_plan`](Self::try_plan), with entries for those of the devices that are lazy.
    #[inline(never)]
    fn plan_lazy(
        &self,
        held: &mut Held<'_, Unlocked>,
        devices: &[DeviceId],
        space: &AddressSpace,
        is_claimed: &dyn Fn(DeviceId) -> bool,
        finishable: bool,
    ) -> Result<(), Lack> {
        self.placing(held, |placing, banks, _| {
            let users = placing.users;
            plan_bank(placing.entries, users, banks, devices, space, finishable, true)?;
            for user in users.all_of(devices).filter(|user| user.lazy) {
                if let Err(error) = placing.reserve(user, is_claimed, true) {
                    unplan(users, banks, devices);
                    users.all_of(devices).for_each(|user| placing.unplace(user));
                    let exhausted = matches!(error, IommuError::Exhausted { .. });
                    return Err(if exhausted { Lack::Entries(error) } else { Lack::Refused(error) });
                }
            }
            Ok(())
        })
    }

    /// Gives back what a plan reserved. A bank that it alone has kept live ends now, or where there is no power with the
    /// next drain that is finished.
    pub(in crate::smmu) fn abandon_plan(&self, devices: &[DeviceId]) {
        let mut held = Held::enter();
        let Ok(inside) = self.enter(Purpose::Release) else { return };
        let (idle, lazy) = {
            let mut shadow = self.shadow.lock(&mut held);
            let Shadow { users, banks, .. } = &mut *shadow;
            let left = unplan(users, banks, devices);
            (left.each().any(|bank| banks.at(bank).is_idle()), users.all_of(devices).any(|user| user.lazy))
        };
        if lazy {
            self.placing(&mut held, |placing, _, _| {
                placing.users.all_of(devices).for_each(|user| placing.unplace(user));
            });
        }
        drop(inside);
        if idle {
            // A timeout poisons the bank, which is all that can be done about it here.
            let _ = self
                .powered(&mut held, Purpose::Release, |held| self.finish_drains(held, |_, bank| bank.is_idle(), None));
        }
    }

    /// Moves devices into the space that was planned. What is in a space of the service's own leaves it first.
    pub(in crate::smmu) fn install_move(
        &self,
        held: &mut Held<'_, Unlocked>,
        devices: &[DeviceId],
    ) -> Result<(), IommuError> {
        loop {
            {
                let mut guard = self.shadow.lock(held);
                let (Shadow { entries, users, banks }, held) = guard.split();
                match self.turn(held, entries, users, banks, devices) {
                    Err(IommuError::Busy) if any_in_own_space(entries, users, banks, devices) => {}
                    turned => return turned,
                }
            }
            self.leave_own_spaces(held, devices)?;
        }
    }

    /// Puts those of the devices in fault that are in a space of the service's own, and other devices that keep an entry of
    /// theirs in one: a reserved stream ends where a device that has it is assigned.
    #[cold]
    #[inline(never)]
    fn leave_own_spaces(&self, held: &mut Held<'_, Unlocked>, devices: &[DeviceId]) -> Result<(), IommuError> {
        let mut drain = Drain::default();
        let ticket = {
            let mut guard = self.shadow.lock(held);
            let (Shadow { entries, users, banks }, held) = guard.split();
            let live = users.all_of(devices).entries() & entries.live;
            let next = users.all_of(devices).next().and_then(|user| user.planned.get());
            let shares = |user: &StreamUser| user.bank.get() != next && !(user.entries.get() & live).is_empty();
            for user in users.each().filter(|user| devices.contains(&user.device) || shares(user)) {
                if user.bank.get().is_some_and(|bank| banks.at(bank).is_own()) {
                    self.detach(entries, banks, user, &mut drain);
                }
            }
            if drain.banks.is_empty() {
                // Another call has just done so.
                return Err(IommuError::Busy);
            }
            self.post_drain(held, entries, banks, &mut drain)
        };
        self.drain(held, &drain, ticket, devices).map(|_| ())
    }

    /// Programs the bank where that is still to do, writes entries that are not, and turns all of them. `Busy` comes before anything
    /// has changed, and where a device is in a space of the service's own that it must leave.
    fn turn(
        &self,
        held: &mut Held<'_, levels::StreamMap>,
        entries: &mut Entries,
        users: &Users,
        banks: &mut Banks,
        devices: &[DeviceId],
    ) -> Result<(), IommuError> {
        let members = users.all_of(devices);
        let planned = members.clone().next().and_then(|user| user.planned.get());
        let Some(index) = planned else { return if devices.is_empty() { Ok(()) } else { Err(IommuError::Busy) } };
        let bank = banks.at(index);
        let (BankState::Live(space) | BankState::Reserved(space)) = bank.state else { return Err(IommuError::Busy) };
        entries.settle(self.tlb.completed());
        let (mut quiet, mut ready) = (true, 0_u32);
        for user in members.clone() {
            if user.bank.get().is_some() || user.planned.get() != Some(index) {
                return Err(IommuError::Busy);
            }
            quiet &= entries.are_quiet(user);
            ready = ready.wrapping_add(1);
        }
        let owes = || any_owes(entries, users, banks, devices, &space);
        if !quiet && (any_in_own_space(entries, users, banks, devices) || !matches!(owes(), Ok(false))) {
            return Err(IommuError::Busy);
        }
        // Without `ready` one is not known; with a next space the users that were to leave have not: the devices were not blocked.
        if ready as usize != devices.len() || !Users::are_distinct(devices) || bank.next.is_some() {
            return Err(IommuError::Busy);
        }
        if matches!(bank.state, BankState::Reserved(_)) {
            let programmed = self.port().program(held, banks, index, &space);
            programmed.map_err(|register| IommuError::WriteLost { register })?;
        }
        let stale = entries.stale;
        if !stale.is_empty() {
            let wanted = |user: &StreamUser| if user.repacked.get() { stale } else { user.entries.get() };
            let wanted = members.clone().fold(Set::EMPTY, |all, user| all | wanted(user));
            written(entries.write(&self.part, wanted))?;
        }
        if let Some(bank) = banks.at_mut(index) {
            bank.users = bank.users.saturating_add(ready);
            bank.plans = bank.plans.saturating_sub(ready);
        }
        let mut holds = true;
        for user in members {
            user.repacked.set(false);
            user.planned.set(None);
            user.bank.set(Some(index));
            holds &= entries.turn(&self.part, user, index);
        }
        if holds { Ok(()) } else { Err(IommuError::WriteLost { register: "S2CR" }) }
    }
}

/// Checks the devices, and reserves a bank for them.
///
/// With `finishable` drains that are owed are finished before a bank is promised. A lazy device takes the tree (`with_tree`).
fn plan_bank(
    entries: &Entries,
    users: &Users,
    banks: &mut Banks,
    devices: &[DeviceId],
    space: &AddressSpace,
    finishable: bool,
    with_tree: bool,
) -> Result<(), Lack> {
    const BUSY: Lack = Lack::Refused(IommuError::Busy);
    let members = users.all_of(devices);
    let (mut quiet, mut lazy, mut known) = (true, false, 0_u32);
    for user in members.clone() {
        known = known.wrapping_add(1);
        if user.planned.get().is_some() || !user.joined.get() {
            return Err(BUSY);
        }
        quiet &= entries.are_quiet(user);
        lazy |= user.lazy;
    }
    let owes = !quiet && any_owes(entries, users, banks, devices, space)?;
    if known as usize != devices.len() {
        return Err(Lack::Refused(IommuError::Unknown));
    }
    // One that is named twice would be counted twice.
    if !Users::are_distinct(devices) {
        return Err(BUSY);
    }
    if owes {
        return Err(Lack::Drain);
    }
    if lazy && !with_tree {
        return Err(Lack::Tree);
    }
    let bank = match banks.choose(space) {
        Choice::Bank(bank) => bank,
        Choice::Unfinished => return Err(Lack::Drain),
        Choice::Busy => return Err(BUSY),
        Choice::None if finishable && banks.each().any(|(_, bank)| bank.is_poisoned() || bank.is_idle()) => {
            return Err(Lack::Bank);
        }
        Choice::None => {
            let bank = freed_by(banks, members.clone()).ok_or(Lack::Bank)?;
            banks.promise(bank, space);
            bank
        }
    };
    for user in members {
        user.planned.set(Some(bank));
    }
    banks.reserve(bank, space, known);
    Ok(())
}

/// The bank that this very move frees: all of its users are `members` (contract A-1).
fn freed_by(banks: &Banks, mut members: Members<'_>) -> Option<BankIndex> {
    let index = members.clone().next()?.bank.get()?;
    let users = members.try_fold(0_u32, |users, user| users.checked_add((user.bank.get() == Some(index)).into()))?;
    let bank = banks.at(index);
    let live = matches!(bank.state, BankState::Live(_)) && !bank.stuck;
    (live && bank.users == users && bank.plans == 0 && bank.next.is_none()).then_some(index)
}

/// Takes the devices' plans back. Returns their banks.
fn unplan(users: &Users, banks: &mut Banks, devices: &[DeviceId]) -> BankSet {
    let mut left = BankSet::EMPTY;
    for bank in users.all_of(devices).filter_map(|user| user.planned.take()) {
        banks.unreserve(bank);
        left.put(bank, true);
    }
    left
}

/// Whether one of the devices owes a drain; `Busy` where a device that is not among them keeps an entry of theirs in another
/// domain.
///
/// A space of the service's own is no domain: devices leave it when a group-mate is moved.
#[cold]
#[inline(never)]
fn any_owes(
    entries: &Entries,
    users: &Users,
    banks: &Banks,
    devices: &[DeviceId],
    space: &AddressSpace,
) -> Result<bool, Lack> {
    let members = users.all_of(devices);
    let conflicts = |number| {
        let theirs = entries.bank_of(number).map_or(Some(space.domain), |bank| banks.at(bank).domain());
        if theirs == Some(space.domain) || theirs.is_some_and(own_space::is_own) {
            return false;
        }
        let entry = entries.at(number);
        let live = members.clone().filter(|user| user.bank.get().is_some());
        entry.assigned > live.map(|user| user.pairs_in(entry)).fold(0, u32::saturating_add)
    };
    let used = members.clone().entries();
    if (used & entries.live).each().any(conflicts) {
        return Err(Lack::Refused(IommuError::Busy));
    }
    Ok(entries.owed(used).is_some())
}

#[cold]
#[inline(never)]
fn any_in_own_space(entries: &Entries, users: &Users, banks: &Banks, devices: &[DeviceId]) -> bool {
    users.all_of(devices).any(|user| in_own_space(entries, banks, user))
}

/// Whether a device, or one of its entries, is in a space of the service's own that it must leave.
fn in_own_space(entries: &Entries, banks: &Banks, user: &StreamUser) -> bool {
    let leaves = |bank: BankIndex| banks.at(bank).is_own() && user.planned.get() != Some(bank);
    user.bank.get().is_some_and(|bank| banks.at(bank).is_own())
        || (user.entries.get() & entries.live).each().any(|number| entries.bank_of(number).is_some_and(leaves))
}
