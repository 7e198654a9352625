//! A device's entries: allotted on paper, written in fault, given back.
//!
//! What is allotted can be written whatever others do meanwhile, but for a caller that changes the very group in
//! between. The map holds what is in the registers and nothing else: what is only allotted stands with the device, with
//! the free entries that are kept for it.
//!
//! # Locking
//!
//! `StreamMap` alone, once to look and once to keep or to write; the layout is searched for with nothing locked, and
//! searched for again when someone else's entries changed meanwhile.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::cover::Cube;
use super::instance::Smmu;
use super::layout::{Freedom, Layout, Survey};
use super::mmio::Registers;
use super::registers::{S2cr, gr0, smr};
use super::stream_map::{Entry, EntryIndex, Set, StreamMap, Use, count, each, one};
use crate::assign::{DeviceId, IommuError, Resource};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// What devices were promised.
#[derive(Debug)]
pub(super) struct Allotment {
    pub(super) layout: Layout,
    /// For whom. The first of them keeps it.
    pub(super) devices: Vec<DeviceId>,
    /// The free entries that are kept for it.
    pub(super) slots: Set,
    /// The stream map's, when the layout was made.
    generation: u64,
}

impl Allotment {
    /// It promises nothing any more. Its memory goes with whoever keeps it.
    pub(super) fn void(&mut self) {
        self.devices.clear();
        self.slots = 0;
    }

    /// Whether the map has not changed since the layout was made.
    pub(super) const fn is_of(&self, map: &StreamMap) -> bool {
        self.generation == map.generation
    }

    /// Whether `device` is one of those that it is for.
    pub(super) fn is_for(&self, device: DeviceId) -> bool {
        self.devices.contains(&device)
    }

    /// Whether an entry goes.
    fn drops(&self, number: EntryIndex) -> bool {
        self.layout.dropped.iter().any(|(dropped, _)| *dropped == number)
    }

    /// The cubes that come, new ones and widened ones.
    fn coming(&self) -> impl Iterator<Item = Cube> {
        self.layout.fresh.iter().copied().chain(self.layout.widened.iter().map(|(_, _, cube)| *cube))
    }

    /// What `used` would have of the map with this: how many entries, and whether they match all its streams.
    fn serves(&self, map: &StreamMap, used: &Use) -> (usize, bool) {
        let widened = |number| self.layout.widened.iter().any(|(widened, ..)| *widened == number);
        let kept = each(map.meeting_any(&used.streams)).filter(|number| !self.drops(*number) && !widened(*number));
        let cubes = || kept.clone().filter_map(|number| map.cube(number)).chain(self.coming());
        let meeting = cubes().filter(|cube| used.pairs_with(*cube) > 0).count();
        // Cubes that match never overlap, so that sizes add up.
        let matched = |stream: &Cube| {
            let common = cubes().filter_map(|cube| cube.intersection(*stream));
            common.map(Cube::size).fold(0, u64::saturating_add) >= stream.size()
        };
        (meeting, used.streams.iter().all(matched))
    }

    /// Whether it can be written: all that it rests on is as it was.
    pub(super) fn fits(&self, map: &StreamMap) -> bool {
        let Layout { dropped, widened, fresh, .. } = &self.layout;
        let going = dropped.iter().fold(0, |all, (number, _)| all | one(*number));
        let moves = |used: &Use| used.bank.get().is_some() || used.planned.get();
        let concerned = || map.uses().filter(|used| used.entries.get() & going != 0);
        dropped.iter().all(|(number, cube)| map.cube(*number) == Some(*cube))
            && !concerned().any(moves)
            && widened
                .iter()
                .all(|(number, old, new)| map.cube(*number) == Some(*old) && map.meeting(*new) == one(*number))
            && fresh.iter().all(|cube| map.meeting(*cube) & !going == 0)
            && concerned().all(|used| self.serves(map, used).1)
            && self.devices.iter().all(|device| map.used_by(*device).is_some_and(|used| self.serves(map, used).1))
    }
}

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Keeps entries for `device`, and writes nothing. Returns how many it will use.
    pub(super) fn allot_entries(
        &self,
        held: &mut Held<'_, Unlocked>,
        device: DeviceId,
        mut mates: &[DeviceId],
    ) -> Result<usize, IommuError> {
        let mut survey = self.usual_survey()?;
        loop {
            let looked = {
                let mut map = self.map.lock(held);
                if !mates.is_empty() {
                    map.make_kin(device, core::mem::take(&mut mates));
                }
                let used = map.used_by(device).ok_or(IommuError::Unknown)?;
                if used.entries.get() != 0 {
                    return Ok(count(used.entries.get()));
                }
                if let Some(taken) = map.allotment_of(device, |allotment| allotment.serves(&map, used).0) {
                    return Ok(taken);
                }
                self.look(&map, &[device], &mut survey)?
            };
            if let Err(room) = looked {
                survey = Survey::with_room(room)?;
                continue;
            }
            let draft = self.draft(survey, &[device], Freedom::Repack)?;
            {
                // Memory is released when the lock is free.
                let (_spent, committed);
                let mut map = self.map.lock(held);
                if draft.is_of(&map) {
                    let used = map.used_by(device).ok_or(IommuError::Unknown)?;
                    let taken = draft.serves(&map, used).0;
                    (_spent, committed) = self.commit(&mut map, draft);
                    return committed.map(|()| taken);
                }
            }
            survey = self.usual_survey()?;
        }
    }

    /// What devices without entries lack, laid out and not yet promised.
    pub(super) fn draft(
        &self,
        mut survey: Survey,
        devices: &[DeviceId],
        freedom: Freedom,
    ) -> Result<Box<Allotment>, IommuError> {
        let mut list = Vec::new();
        list.try_reserve_exact(devices.len()).map_err(|_| IommuError::OutOfMemory)?;
        list.extend_from_slice(devices);
        let layout = self.lay_out(&mut survey, freedom)?;
        if let Some(device) = devices.first().filter(|_| !layout.least) {
            log::info!("{}: {device} may have more entries than it needs", self.config.key);
        }
        Ok(Box::new(Allotment { layout, devices: list, slots: 0, generation: survey.generation }))
    }

    /// Keeps free entries for a draft and gives it to its devices, in the place of what they were promised before. On
    /// failure nothing has changed. Returns what is to be dropped when the lock is free.
    pub(super) fn commit(
        &self,
        map: &mut StreamMap,
        mut draft: Box<Allotment>,
    ) -> (Option<Box<Allotment>>, Result<(), IommuError>) {
        let before = draft.devices.iter().fold(0, |all, device| {
            all | map.used_by(*device).and_then(|used| used.allotment(|kept| kept.slots)).unwrap_or(0)
        });
        match self.find_slots(map, &draft.layout, before) {
            Ok(slots) => draft.slots = slots,
            Err(error) => return (Some(draft), Err(error)),
        }
        for device in &draft.devices {
            map.void_allotment(*device);
        }
        (map.keep_allotment(draft), Ok(()))
    }

    /// The free entries that a layout needs besides those that go, `before` counted as free.
    fn find_slots(&self, map: &StreamMap, layout: &Layout, before: Set) -> Result<Set, IommuError> {
        let free = || map.entries().filter(|(n, entry)| entry.is_free() || before & one(*n) != 0).map(|(n, _)| n);
        let going = layout.dropped.len();
        let lacking = layout.fresh.len().saturating_sub(going);
        if !self.geometry.matching {
            // Where a stream ID is the index of its entry, the entry that is needed is free or the group's own.
            let wanted = layout.fresh.iter().filter_map(|cube| u8::try_from(cube.id()).ok());
            return Ok(wanted.filter(|number| free().any(|free| free == *number)).fold(0, |all, n| all | one(n)));
        }
        let available = free().count();
        if available < lacking {
            return Err(IommuError::Exhausted {
                resource: Resource::StreamMapEntries,
                needed: lacking.saturating_sub(available),
                free: available.saturating_add(going),
                total: map.entry_count(),
            });
        }
        Ok(free().take(lacking).fold(0, |all, number| all | one(number)))
    }

    /// Writes what `device` was allotted, in fault. Where that does not fit any more, because its group has changed
    /// meanwhile, or where nothing was allotted, this comes first.
    pub(super) fn enrol_entries(&self, held: &mut Held<'_, Unlocked>, device: DeviceId) -> Result<(), IommuError> {
        loop {
            // Memory is released when the lock is free.
            let (_spent, enrolled) = self.enrol_allotted(&mut self.map.lock(held), device);
            if let Some(enrolled) = enrolled {
                return enrolled;
            }
            self.allot_entries(held, device, &[])?;
        }
    }

    /// `None`: it was allotted nothing that fits. Returns also what is to be dropped when the lock is free.
    fn enrol_allotted(
        &self,
        map: &mut StreamMap,
        device: DeviceId,
    ) -> (Option<Box<Allotment>>, Option<Result<(), IommuError>>) {
        match map.used_by(device) {
            None => return (None, Some(Err(IommuError::Unknown))),
            Some(used) if used.entries.get() != 0 => return (None, Some(Ok(()))),
            Some(_) => {}
        }
        let allotment = map.take_allotment(device);
        let fitting = allotment.as_deref().filter(|allotment| allotment.fits(map));
        let enrolled = fitting.map(|allotment| self.apply(map, allotment));
        (allotment, enrolled)
    }

    /// Brings the entries of a group in fault back to the least that capture exactly its IDs, after a member has left:
    /// `survey` was made when it left, if there was room. Where that is not possible they stay as they are: they capture
    /// more, but nobody else's. Says whether something has changed, with `then` of what is there now.
    pub(super) fn tidy<T>(
        &self,
        held: &mut Held<'_, Unlocked>,
        member: DeviceId,
        mut survey: Option<Survey>,
        then: impl FnOnce(&StreamMap) -> T,
    ) -> Option<T> {
        let tidied = || loop {
            let survey = survey.take().map_or_else(|| self.survey(held, &[member]), Ok)?;
            let mut draft = self.draft(survey, &[member], Freedom::Repack)?;
            if draft.layout.is_empty() {
                return Ok(None);
            }
            let mut map = self.map.lock(held);
            if draft.is_of(&map) && draft.fits(&map) {
                draft.slots = self.find_slots(&map, &draft.layout, 0)?;
                let applied = self.apply(&mut map, &draft);
                return Ok(Some((applied, then(&map))));
            }
        };
        let tidied: Result<_, IommuError> = tidied();
        if !matches!(tidied, Ok(None | Some((Ok(()), _)))) {
            log::info!("{}: the entries of {member} still capture IDs of a device that has left", self.config.key);
        }
        tidied.ok().flatten().map(|(_, then)| then)
    }

    /// Carries an allotment out that fits: its entries stand in the registers, in fault.
    pub(super) fn apply(&self, map: &mut StreamMap, allotment: &Allotment) -> Result<(), IommuError> {
        let Layout { dropped, widened, fresh, .. } = &allotment.layout;
        let mut touched = dropped.iter().fold(0, |all, (number, _)| all | one(*number));
        let mut slots = allotment.slots | touched;
        // I-1: what goes is gone before anything comes. The group is in fault, so that unmatched streams lose nothing.
        for (number, _) in dropped {
            self.free_entry(map, *number);
        }
        let mut written = true;
        for &(number, _, cube) in widened {
            map.set_cube(number, Some(cube));
            written &= self.write_match(number, cube);
            touched |= one(number);
        }
        for &cube in fresh {
            let number = if self.geometry.matching { each(slots).next() } else { u8::try_from(cube.id()).ok() };
            let Some(number) = number else { continue };
            slots &= !one(number);
            map.set_cube(number, Some(cube));
            written &= self.write_new_entry(number, cube);
            touched |= one(number);
        }
        let joins = |used: &Use| allotment.is_for(used.device);
        touched |= map.uses().filter(|used| joins(used)).fold(0, |all, used| all | map.meeting_any(&used.streams));
        touched = map.connected(touched);
        for used in map.uses().filter(|used| joins(used) || used.entries.get() & touched != 0) {
            used.entries.set(map.meeting_any(&used.streams));
        }
        for number in each(map.connected(touched)) {
            map.recount(number);
        }
        // Who shares what has changed, even where no entry has.
        map.generation = map.generation.wrapping_add(1);
        if written {
            return Ok(());
        }
        // An entry that does not hold what was written must not be believed in.
        for device in &allotment.devices {
            self.unclaim(map, *device);
        }
        Err(IommuError::WriteLost { register: "SMR or S2CR" })
    }

    /// Takes a device's entries back; those that nobody else uses become free.
    fn unclaim(&self, map: &mut StreamMap, device: DeviceId) {
        let taken = map.used_by(device).map_or(0, |used| used.entries.replace(0));
        for number in each(taken) {
            self.release(map, number);
        }
    }

    /// Counts an entry anew, and frees it when nobody uses it.
    pub(super) fn release(&self, map: &mut StreamMap, number: EntryIndex) {
        map.recount(number);
        if map.entry(number).is_some_and(|entry| entry.cube.is_some() && entry.registered == 0) {
            self.free_entry(map, number);
        }
    }

    fn free_entry(&self, map: &mut StreamMap, number: EntryIndex) {
        map.set_cube(number, None);
        if let Some(entry) = map.entry_mut(number) {
            *entry = Entry::FREE;
        }
        self.write_free_entry(number);
    }

    // --- registers ---

    /// Makes an entry match, in fault (contract I-5). Says whether it holds.
    pub(super) fn write_new_entry(&self, number: EntryIndex, cube: Cube) -> bool {
        let fault = || self.write_s2cr(number, S2cr::Fault, true);
        if !self.geometry.matching {
            fault()
        } else if self.geometry.extended_ids {
            // Validity is in the S2CR: a stale SMR must be replaced before it can match.
            self.write_match(number, cube) && fault()
        } else {
            fault() && self.write_match(number, cube)
        }
    }

    /// What an entry matches, in one write.
    fn write_match(&self, number: EntryIndex, cube: Cube) -> bool {
        let value = smr::encode(cube.id(), cube.mask(), self.geometry.extended_ids);
        self.registers.write_isolating(gr0::smr(number), value, value, u32::MAX)
    }

    /// What an entry does, in one write (rule O5).
    pub(super) fn write_s2cr(&self, number: EntryIndex, action: S2cr, valid: bool) -> bool {
        let (written, read) = (self.spelling.write(action, valid), self.spelling.read(action, valid));
        self.registers.write_isolating(gr0::s2cr(number), written, read, S2cr::COMPARED)
    }

    /// Makes an entry, which is in fault, match nothing (contract I-5).
    fn write_free_entry(&self, number: EntryIndex) {
        if !self.geometry.matching {
            // The S2CR faults already, and an index cannot be taken away.
        } else if self.geometry.extended_ids {
            self.write_s2cr(number, S2cr::Fault, false);
        } else {
            self.registers.write32(gr0::smr(number), 0);
        }
    }
}
