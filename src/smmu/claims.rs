//! A device's entries: laid out and promised on paper, written in fault, given back.
//!
//! A layout is made with nothing locked, from what was seen when the device was published; that there are entries enough
//! for it is a [`Promise`], which takes no lock either. Where all that it rests on is still as it was it is carried out
//! under one hold of the lock; else it is made anew. The map holds what is in the registers and nothing else.
//!
//! # Locking
//!
//! `StreamMap`: once to write, and once to look, where whoever published or withdrew has not. `Spare`, alone or inside it, to
//! have the room for a layout that no device brings.

use alloc::boxed::Box;
use alloc::sync::Arc;

use super::budget::{Promise, Promised};
use super::cover::Cube;
use super::entries::Incoming;
use super::instance::Smmu;
use super::layout::{Freedom, Layout, Workshop};
use super::levels;
use super::mmio::Registers;
use super::registers::{S2cr, gr0, smr};
use super::reserved;
use super::stream_map::{Entry, EntryIndex, Set, StreamMap, Use, each, one};
use crate::assign::{DeviceId, IommuError};
use crate::few::Few;
use crate::sync::Platform;
use crate::sync::order::{Before, Held, Unlocked};

/// What devices are to have, promised and not written yet; or the room for that, which is used again and again.
#[derive(Debug)]
pub(super) struct Draft {
    pub(super) workshop: Workshop,
    /// For whom; nobody: there is nothing in it.
    devices: Few<DeviceId>,
    /// It may capture IDs that nobody had then.
    loose: bool,
    /// The free entries that it needs beside those that go.
    promise: Option<Promise>,
}

impl Draft {
    /// Room, on an SMMU of so many entries, for a device of so many streams.
    pub(super) fn new(entries: EntryIndex, streams: usize) -> Result<Self, IommuError> {
        let workshop = Workshop::new(entries.into(), streams)?;
        Ok(Self { workshop, devices: Few::new(), loose: false, promise: None })
    }

    /// Promises nothing any more.
    pub(super) fn void(&mut self) {
        self.devices.clear();
        self.promise = None;
    }

    /// Whether `device` is one of those that it is for.
    pub(super) fn is_for(&self, device: DeviceId) -> bool {
        self.devices.contains(&device)
    }

    /// Whether an entry goes.
    fn drops(&self, number: EntryIndex) -> bool {
        self.workshop.layout.dropped.iter().any(|(dropped, _)| *dropped == number)
    }

    /// Whether the map has not changed since it was looked at.
    const fn is_of(&self, map: &StreamMap) -> bool {
        self.workshop.generation == map.generation
    }

    /// Whether the map matches all streams of `used` with this.
    fn serves(&self, map: &StreamMap, used: &Use) -> bool {
        let widened = |number| self.workshop.layout.widened.iter().any(|(widened, ..)| *widened == number);
        let kept = each(map.meeting_any(&used.streams)).filter(|number| !self.drops(*number) && !widened(*number));
        let cubes = || kept.clone().filter_map(|number| map.cube(number)).chain(self.workshop.layout.coming());
        // Cubes that match never overlap, so that sizes add up.
        used.streams.iter().all(|stream| {
            let common = cubes().filter_map(|cube| cube.intersection(*stream));
            common.map(Cube::size).fold(0, u64::saturating_add) >= stream.size()
        })
    }

    /// Whether it can be written: all that it rests on is as it was.
    pub(super) fn fits(&self, map: &StreamMap) -> bool {
        // Somebody may have come who has one of the IDs that nobody had, and has no entry to be seen by.
        if self.loose && !self.is_of(map) {
            return false;
        }
        let Layout { dropped, widened, fresh, .. } = &self.workshop.layout;
        let going = dropped.iter().fold(0, |all, (number, _)| all | one(*number));
        let moves = |used: &Use| used.bank.get().is_some() || used.planned.get();
        let concerned = || map.uses().filter(|used| used.entries.get() & going != 0);
        dropped.iter().all(|(number, cube)| map.cube(*number) == Some(*cube))
            && !concerned().any(moves)
            && widened
                .iter()
                .all(|(number, old, new)| map.cube(*number) == Some(*old) && map.meeting(*new) == one(*number))
            && fresh.iter().all(|cube| map.meeting(*cube) & !going == 0)
            && concerned().all(|used| self.serves(map, used))
            && self.devices.iter().all(|device| map.used_by(*device).is_some_and(|used| self.serves(map, used)))
    }
}

/// One of each of several groups, and where the first shows what it was promised.
pub(super) type Mates = (Few<DeviceId>, Arc<Promised>);

/// One each of the groups that use an entry of `left` and are in fault throughout, as many as stand in place; the entries of
/// those that were looked at are taken from `left`.
pub(super) fn next_mates(map: &StreamMap, left: &mut Set) -> Option<Mates> {
    let (mut mates, mut shown) = (Few::new(), None);
    for number in each(*left) {
        if *left & one(number) == 0 || mates.len() == mates.inline_size() {
            continue;
        }
        let group = map.connected(one(number));
        *left &= !group;
        let moves = |used: &Use| used.entries.get() & group != 0 && (used.bank.get().is_some() || used.planned.get());
        let user = map.entry(number).and_then(|entry| entry.user).filter(|user| !reserved::is_reserved(*user));
        let user = user.and_then(|user| map.used_by(user));
        if let Some(used) = user
            && !map.uses().any(moves)
        {
            mates.push(used.device);
            shown.get_or_insert_with(|| used.promised.clone());
        }
    }
    shown.map(|shown| (mates, shown))
}

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Keeps entries for a published device, and writes nothing. Returns how many it will use.
    pub(super) fn allot_entries(
        &self,
        held: &mut Held<'_, Unlocked>,
        incoming: &mut Incoming,
    ) -> Result<usize, IommuError> {
        let Incoming { device, streams, promised, draft, seen, .. } = incoming;
        // What was promised before counts as free.
        draft.void();
        if !core::mem::take(seen) {
            self.survey(held, &[*device], &mut draft.workshop)?;
        }
        self.draft(draft, &[*device], promised, Freedom::Repack)?;
        Ok(draft.workshop.count_for(streams))
    }

    /// Lays out what devices lack around which the draft's workshop has looked, and has it promised: shown by the device
    /// that `shown` is of.
    pub(super) fn draft(
        &self,
        draft: &mut Draft,
        devices: &[DeviceId],
        shown: &Arc<Promised>,
        freedom: Freedom,
    ) -> Result<(), IommuError> {
        draft.void();
        draft.devices.try_reserve(devices.len()).map_err(|_| IommuError::OutOfMemory)?;
        self.lay_out(&mut draft.workshop, freedom)?;
        let layout = &draft.workshop.layout;
        if let Some(device) = devices.first().filter(|_| !layout.least) {
            log::info!("{}: {device} may have more entries than it needs", self.config.key);
        }
        // Where a stream ID is the index of its entry, the entry that is needed is free or the group's own.
        let lacking = if self.geometry.matching { layout.lacking() } else { 0 };
        draft.promise = Some(self.budget.promise(lacking, shown)?);
        draft.loose = freedom == Freedom::Repack && !self.unused.is_empty();
        draft.devices.extend_from_slice(devices);
        Ok(())
    }

    /// The room that the instance keeps for laying out where no device brings it; none while somebody has it.
    pub(super) fn take_spare<H: Before<levels::Spare>>(&self, held: &mut Held<'_, H>) -> Option<Box<Draft>> {
        self.spare.lock(held).take()
    }

    /// Gives it back. Where the instance has some again already, it is dropped when the lock is free.
    pub(super) fn give_spare(&self, held: &mut Held<'_, Unlocked>, mut draft: Box<Draft>) {
        draft.void();
        let _more;
        let mut spare = self.spare.lock(held);
        _more = if spare.is_none() { spare.replace(draft) } else { Some(draft) };
    }

    /// Writes what a device was allotted, in fault. Where that does not fit any more, because its group has changed
    /// meanwhile, or where nothing was allotted, this comes first.
    pub(super) fn enrol_entries(
        &self,
        held: &mut Held<'_, Unlocked>,
        incoming: &mut Incoming,
    ) -> Result<(), IommuError> {
        loop {
            let enrolled = self.enrol_drafted(&mut self.map.lock(held), incoming);
            if let Some(enrolled) = enrolled {
                incoming.draft.void();
                return enrolled;
            }
            self.allot_entries(held, incoming)?;
        }
    }

    /// `None`: it was allotted nothing that fits.
    fn enrol_drafted(&self, map: &mut StreamMap, incoming: &Incoming) -> Option<Result<(), IommuError>> {
        match map.used_by(incoming.device) {
            None => return Some(Err(IommuError::Unknown)),
            // It was withdrawn, and another one has been published under its number.
            Some(used) if !Arc::ptr_eq(&used.promised, &incoming.promised) => return Some(Err(IommuError::Unknown)),
            Some(used) if used.entries.get() != 0 => return Some(Ok(())),
            Some(_) => {}
        }
        let draft = &*incoming.draft;
        (draft.is_for(incoming.device) && draft.fits(map)).then(|| self.apply(map, draft))
    }

    /// Packs anew what a device has left behind: the groups of `mates`, and those in fault that use an entry in `left`.
    /// `spare`: the instance's room, if it was there, and whether it looked around `mates` when the device left. Calls `then`
    /// with the map whenever something has changed.
    pub(super) fn tidy(
        &self,
        held: &mut Held<'_, Unlocked>,
        mut mates: Mates,
        mut left: Set,
        spare: Option<(Box<Draft>, bool)>,
        then: &mut dyn FnMut(&StreamMap),
    ) {
        let mut made;
        let (mut kept, mut seen) = spare.map_or((None, false), |(draft, seen)| (Some(draft), seen));
        let draft = match kept.as_deref_mut() {
            Some(draft) => draft,
            None => match Draft::new(self.geometry.entries, 0) {
                Ok(draft) => {
                    made = draft;
                    &mut made
                }
                Err(error) => return self.log_untidy(&mates, error),
            },
        };
        loop {
            if let Err(error) = self.tidy_groups(held, &mates, draft, core::mem::take(&mut seen), then) {
                self.log_untidy(&mates, error);
            }
            if left == 0 {
                break;
            }
            let next = next_mates(&self.map.lock(held), &mut left);
            let Some(next) = next else { break };
            mates = next;
        }
        if let Some(draft) = kept {
            self.give_spare(held, draft);
        }
    }

    /// Brings the entries of groups in fault back to the least that capture exactly their IDs. Where it is not possible they
    /// stay as they are: they capture more, but nobody else's. `seen`: the draft's workshop has looked.
    fn tidy_groups(
        &self,
        held: &mut Held<'_, Unlocked>,
        (mates, shown): &Mates,
        draft: &mut Draft,
        mut seen: bool,
        then: &mut dyn FnMut(&StreamMap),
    ) -> Result<(), IommuError> {
        loop {
            if !core::mem::take(&mut seen) {
                self.survey(held, mates, &mut draft.workshop)?;
            }
            self.draft(draft, mates, shown, Freedom::Repack)?;
            if draft.workshop.layout.is_empty() {
                return Ok(());
            }
            let mut map = self.map.lock(held);
            if draft.is_of(&map) && draft.fits(&map) {
                let applied = self.apply(&mut map, draft);
                then(&map);
                return applied;
            }
        }
    }

    fn log_untidy(&self, (mates, _): &Mates, error: IommuError) {
        let (iommu, Some(mate)) = (self.config.key, mates.first()) else { return };
        log::info!("{iommu}: the entries of {mate} may still capture IDs of a device that has left: {error}");
    }

    /// Carries a draft out that fits: its entries stand in the registers, in fault.
    pub(super) fn apply(&self, map: &mut StreamMap, draft: &Draft) -> Result<(), IommuError> {
        let Layout { dropped, widened, fresh, .. } = &draft.workshop.layout;
        // They count twice until the promise goes: too many, never too few.
        self.budget.take(fresh.len());
        let mut touched = dropped.iter().fold(0, |all, (number, _)| all | one(*number));
        let mut came: Set = 0;
        // I-1: what goes is gone before anything comes. The group is in fault, so that unmatched streams lose nothing.
        for (number, _) in dropped {
            self.clear_entry(map, *number);
        }
        let mut written = true;
        for &(number, _, cube) in widened {
            map.set_cube(number, Some(cube));
            written &= self.write_match(number, cube);
            touched |= one(number);
        }
        for &cube in fresh {
            let number = if self.geometry.matching { map.free_entries().next() } else { u8::try_from(cube.id()).ok() };
            let Some(number) = number else { continue };
            map.set_cube(number, Some(cube));
            written &= self.write_new_entry(number, cube);
            came |= one(number);
        }
        touched |= came;
        self.budget.give(dropped.len());
        let joins = |used: &Use| draft.is_for(used.device);
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
        // An entry that does not hold what was written must not be believed in. Who was to use a new one has none from
        // now on, as if added lazily; all of them are in fault.
        for &(number, old, _) in widened {
            map.set_cube(number, Some(old));
            self.write_match(number, old);
        }
        let unsure = |map: &StreamMap| {
            let is_unsure = |used: &&Use| {
                let entries = used.entries.get();
                entries != 0 && (draft.is_for(used.device) || entries & came != 0)
            };
            map.uses().find(is_unsure).map(|used| used.device)
        };
        while let Some(device) = unsure(map) {
            self.unclaim(map, device);
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
            self.clear_entry(map, number);
            self.budget.give(1);
        }
    }

    fn clear_entry(&self, map: &mut StreamMap, number: EntryIndex) {
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

    /// What an entry does, in one write: it is the old owner's, or the new one's, and never half of each.
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
