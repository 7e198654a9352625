//! Moves from fault into a domain: plan, install.
//!
//! # Locking
//!
//! `StreamMap` for bookkeeping and register writes, `TlbSync` to post invalidations; never both, and neither while a
//! status is polled (contract C-14). A plan takes `Spare` inside the map, where a device has no entries yet.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::any::Any;

use super::budget::Promised;
use super::claims::Draft;
use super::context::{self, BankIndex, BankState};
use super::drain::Cut;
use super::instance::Smmu;
use super::layout::Freedom;
use super::mmio::Registers;
use super::registers::S2cr;
use super::stream_map::{Set, StreamMap, Use, each, one};
use super::tlb::SyncTimeout;
use crate::assign::{AddressSpace, DeviceId, IommuError, Patience, Prepared, Sharing};
use crate::few::{self, Few};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

impl<P: Platform, R: Registers> Smmu<P, R> {
    pub(super) fn plan_move(
        &self,
        held: &mut Held<'_, Unlocked>,
        devices: &[DeviceId],
        space: &AddressSpace,
        along: &mut dyn FnMut(Sharing),
    ) -> Result<Prepared, IommuError> {
        let mut draft = None;
        let planned = self.plan_drafted(held, devices, space, along, &mut draft);
        if let Some(draft) = draft {
            self.give_spare(held, draft);
        }
        planned
    }

    /// [`plan_move`](Self::plan_move); room that was taken and did not go into the plan is left in `draft`.
    fn plan_drafted(
        &self,
        held: &mut Held<'_, Unlocked>,
        devices: &[DeviceId],
        space: &AddressSpace,
        along: &mut dyn FnMut(Sharing),
        draft: &mut Option<Box<Draft>>,
    ) -> Result<Prepared, IommuError> {
        context::check(&self.geometry, &self.table_limits(), self.config.empty_root.size, &space.stage2)
            .map_err(IommuError::Incompatible)?;
        let mut bare = few::with_room(devices.len()).ok_or(IommuError::OutOfMemory)?;
        let mut shown: Option<Arc<Promised>> = None;
        let (mut sharers, mut room) = (Few::new(), 0);
        let bank = loop {
            // It may be the last one, which is not freed under the lock.
            drop(shown.take());
            sharers.clear();
            sharers.try_reserve_exact(room).map_err(|_| IommuError::OutOfMemory)?;
            let mut map_guard = self.map.lock(held);
            let (map, inside) = map_guard.split();
            if let Err(wanted) = list_sharers(map, devices, &mut sharers) {
                room = wanted;
                continue;
            }
            shown = list_bare(map, devices, &mut bare)?;
            if shown.is_none() {
                break self.plan_bank(map, devices, space)?;
            }
            // Devices that were added lazily have their entries laid out now, together.
            if draft.is_none() {
                *draft = self.take_spare(inside);
            }
            let looked = draft.as_deref_mut().map(|draft| self.look(map, &bare, &mut draft.workshop)).transpose()?;
            if looked.is_some_and(|looked| looked.is_ok()) {
                break self.plan_bank(map, devices, space)?;
            }
            drop(map_guard);
            match (draft.as_deref_mut(), looked) {
                (Some(draft), Some(Err(room))) => draft.workshop.make_room(room)?,
                _ => *draft = Some(Box::new(Draft::new(self.geometry.entries, 0)?)),
            }
        };
        if let Some((shown, draft)) = shown.as_ref().zip(draft.as_deref_mut())
            && let Err(error) = self.draft(draft, &bare, shown, Freedom::Grow)
        {
            self.unplan(&mut self.map.lock(held), devices, bank);
            return Err(error);
        }
        let kept = draft.take_if(|_| shown.is_some()).map(|draft| -> Box<dyn Any + Send> { draft });
        sharers.into_iter().for_each(along);
        Ok(Prepared { space: *space, ticket: bank.into(), kept })
    }

    fn plan_bank(
        &self,
        map: &mut StreamMap,
        devices: &[DeviceId],
        space: &AddressSpace,
    ) -> Result<BankIndex, IommuError> {
        let mut leaving = None;
        for &device in devices {
            let used = map.used_by(device).ok_or(IommuError::Unknown)?;
            if used.planned.get() {
                return Err(IommuError::Busy);
            }
            leaving = leaving.or(used.bank.get());
        }
        let bank = match self.reserve_bank(map, devices, leaving, space) {
            Err(IommuError::Exhausted { .. }) if self.give_up_announced(map) => {
                self.reserve_bank(map, devices, leaving, space)?
            }
            reserved => reserved?,
        };
        let conflict =
            devices.iter().filter_map(|device| map.used_by(*device)).any(|used| map.conflicts(used, bank, devices));
        if conflict {
            self.unreserve_bank(map, bank);
            return Err(IommuError::Busy);
        }
        for used in devices.iter().filter_map(|device| map.used_by(*device)) {
            used.planned.set(true);
        }
        Ok(bank)
    }

    /// Gives a plan back on paper. A bank that nobody has any more is idle then, and ends with the next drain that is
    /// finished.
    fn unplan(&self, map: &mut StreamMap, devices: &[DeviceId], bank: BankIndex) {
        for used in devices.iter().filter_map(|device| map.used_by(*device)) {
            used.planned.set(false);
        }
        self.unreserve_bank(map, bank);
    }

    /// Takes back the room that a plan has kept.
    pub(super) fn clear_plan(&self, held: &mut Held<'_, Unlocked>, prepared: &mut Prepared) {
        if let Some(kept) = prepared.kept.take()
            && let Ok(draft) = kept.downcast()
        {
            self.give_spare(held, draft);
        }
    }

    /// [`abandon_move`](Self::abandon_move) where there is no power.
    pub(super) fn abandon_on_paper(&self, held: &mut Held<'_, Unlocked>, devices: &[DeviceId], prepared: &Prepared) {
        self.unplan(&mut self.map.lock(held), devices, bank_of(prepared));
    }

    pub(super) fn abandon_move(&self, held: &mut Held<'_, Unlocked>, devices: &[DeviceId], prepared: &Prepared) {
        let bank = bank_of(prepared);
        let mut cut = Cut::default();
        {
            let mut map = self.map.lock(held);
            self.end_announced(&mut map, devices);
            self.unplan(&mut map, devices, bank);
            // The domain's last device may have left while the plan held the bank.
            if self.park_if_unused(&mut map, bank) {
                cut = Cut { banks: one(bank), retiring: one(bank), lost: false };
            }
        }
        if cut.retiring != 0 {
            // A timeout poisons the bank, which is all that can be done about it here.
            let _ = self.drain(held, cut, Patience::Waiting);
        }
    }

    pub(super) fn install_move(
        &self,
        held: &mut Held<'_, Unlocked>,
        devices: &[DeviceId],
        prepared: &mut Prepared,
    ) -> Result<(), IommuError> {
        let installed = self.turn(held, devices, prepared);
        if let Err(error) = installed {
            if matches!(error, IommuError::WriteLost { .. }) {
                // Some entries may have been turned; what this says is what is told already.
                let _ = self.block_devices(held, devices, &mut |_| ());
            }
            self.abandon_move(held, devices, prepared);
        }
        self.clear_plan(held, prepared);
        installed
    }

    /// Programs the bank where that is still to do, and turns the devices' entries to it. Whoever is in a space of the
    /// service's own leaves it first.
    fn turn(&self, held: &mut Held<'_, Unlocked>, devices: &[DeviceId], prepared: &Prepared) -> Result<(), IommuError> {
        loop {
            self.settle_drains(held).map_err(timed_out)?;
            let cut = {
                let mut map = self.map.lock(held);
                self.end_announced(&mut map, devices);
                let cut = self.leave_own_spaces(&mut map, devices);
                if cut.banks == 0 {
                    return self.turn_now(&mut map, devices, prepared);
                }
                cut
            };
            self.drain(held, cut, Patience::Waiting).map_err(timed_out)?;
        }
    }

    /// [`turn`](Self::turn), with what was drafted for those of the devices that have no entries yet.
    fn turn_now(&self, map: &mut StreamMap, devices: &[DeviceId], prepared: &Prepared) -> Result<(), IommuError> {
        let bank = bank_of(prepared);
        let is_bare = |device: &DeviceId| map.used_by(*device).is_some_and(|used| used.entries.get() == 0);
        let draft = prepared.kept.as_ref().and_then(|kept| kept.downcast_ref::<Draft>());
        let draft = draft.filter(|_| devices.iter().any(is_bare));
        // Who came in between since the plan, with no claim to keep others off, is seen here.
        let has = |used: &Use| used.entries.get() != 0 || draft.is_some_and(|draft| draft.is_for(used.device));
        let ready = |used: &Use| {
            let in_fault = used.bank.get().is_none() && used.draining.get().is_none();
            in_fault && has(used) && !map.conflicts(used, bank, devices)
        };
        let fits = draft.is_none_or(|draft| draft.fits(map));
        if !fits || !devices.iter().all(|device| map.used_by(*device).is_some_and(ready)) {
            return Err(IommuError::Busy);
        }
        let state = map.bank(bank).map(|bank| bank.state).ok_or(IommuError::Unknown)?;
        match state {
            BankState::Live(live) if live == prepared.space => {}
            BankState::Reserved(space) if space == prepared.space => self.program_bank(map, bank, &space)?,
            // The users that were to leave have not: the caller did not block them first.
            _ => return Err(IommuError::Busy),
        }
        if let Some(draft) = draft {
            self.apply(map, draft)?;
        }
        let mut holds = true;
        for &device in devices {
            holds &= self.attach(map, device, bank);
        }
        if !holds {
            return Err(IommuError::WriteLost { register: "S2CR" });
        }
        if let Some(bank) = map.bank_mut(bank) {
            bank.reserved = bank.reserved.saturating_sub(1);
        }
        Ok(())
    }

    /// Puts devices in fault that are in a space of the service's own, with whoever shares their entries there: who
    /// is quarantined, or reserved, ends where a group-mate gets an owner.
    fn leave_own_spaces(&self, map: &mut StreamMap, devices: &[DeviceId]) -> Cut {
        let mut cut = Cut::default();
        let all = devices.iter().filter_map(|device| map.used_by(*device));
        let entries = all.fold(0, |all: Set, used| all | used.reach(map));
        let next = |map: &StreamMap| {
            let leaves = |used: &&Use| {
                let concerned = devices.contains(&used.device) || used.entries.get() & entries != 0;
                concerned && map.bank_of(used).is_some_and(context::Bank::is_own)
            };
            map.uses().find(leaves).map(|used| used.device)
        };
        while let Some(device) = next(map) {
            self.detach(map, device, &mut cut);
        }
        self.park_unused(map, &mut cut);
        cut
    }

    /// Counts the device in, and turns the entries that nobody else had turned. Says whether they hold.
    fn attach(&self, map: &mut StreamMap, device: DeviceId, bank: BankIndex) -> bool {
        let Some(used) = map.used_by(device) else { return true };
        used.planned.set(false);
        used.bank.set(Some(bank));
        let mut holds = true;
        for number in each(used.entries.get()) {
            let pairs = map.pairs(device, number);
            let action = S2cr::Translate(bank);
            let Some(entry) = map.entry_mut(number) else { continue };
            entry.assigned = entry.assigned.saturating_add(pairs);
            if entry.action != action {
                entry.action = action;
                holds &= self.write_s2cr(number, action, true);
            }
        }
        if let Some(bank) = map.bank_mut(bank) {
            bank.users = bank.users.saturating_add(1);
        }
        holds
    }
}

/// Lists those of `devices` that have no entries yet, in `bare`, which has room for all of them. Returns where the first
/// of them shows what it was promised.
fn list_bare(
    map: &StreamMap,
    devices: &[DeviceId],
    bare: &mut Few<DeviceId>,
) -> Result<Option<Arc<Promised>>, IommuError> {
    bare.clear();
    let mut shown = None;
    for &device in devices {
        let used = map.used_by(device).ok_or(IommuError::Unknown)?;
        if used.entries.get() == 0 {
            bare.push(device);
            shown.get_or_insert_with(|| used.promised.clone());
        }
    }
    Ok(shown)
}

/// Lists whose DMA would go along with `devices`, in `sharers`. Where its room does not suffice, says how much would.
fn list_sharers(map: &StreamMap, devices: &[DeviceId], sharers: &mut Few<Sharing>) -> Result<(), usize> {
    let outside = |other: &&Use| !devices.contains(&other.device);
    let with = |used| map.sharers(used).filter(outside).map(|other| (used.device, other.device));
    let room = sharers.capacity();
    list(sharers, room, || devices.iter().filter_map(|device| map.used_by(*device)).flat_map(with))
}

/// Fills an empty list that has `room`, or says how much it lacks: that is reserved when the lock is free.
pub(super) fn list<T, I: Iterator<Item = T>>(
    found: &mut impl Extend<T>,
    room: usize,
    all: impl Fn() -> I,
) -> Result<(), usize> {
    let wanted = all().count();
    if wanted > room {
        return Err(wanted);
    }
    found.extend(all());
    Ok(())
}

pub(super) fn timed_out(timeout: SyncTimeout) -> IommuError {
    IommuError::SyncTimeout(timeout.0)
}

/// The ticket of a plan is the bank's index.
fn bank_of(prepared: &Prepared) -> BankIndex {
    u8::try_from(prepared.ticket).unwrap_or(u8::MAX)
}
