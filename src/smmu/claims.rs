//! Entries for a device: shared with its group, merged, repacked where the group is in fault, or one of them widened.
//!
//! What is in the hardware never matches more than the group's own IDs (exact), unless the integrator named IDs that
//! nobody uses (loose). Live entries never move (contract I-15).
//!
//! # Locking
//!
//! `StreamMap` alone, once to look and once to write; the least cover is searched for with nothing locked, and searched
//! for again when someone else's entries changed meanwhile.

use alloc::vec::Vec;

use super::cover::{Cover, CoverError, CoverOptions, Cube, IdSet, least_cover, loose_cover};
use super::instance::Smmu;
use super::mmio::Registers;
use super::registers::{S2cr, gr0, smr};
use super::stream_map::{Entry, EntryIndex, Set, StreamMap, each, one};
use crate::assign::{DeviceId, IommuError, Resource};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// Whether entries are written at once, or only allotted until the device is assigned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arming {
    Now,
    Later,
}

/// What is there before a device's entries are planned.
#[derive(Debug, Default)]
struct Survey {
    generation: u64,
    /// The device's own IDs.
    streams: Vec<Cube>,
    /// The IDs of all devices that are connected with it, its own included, each device under a number.
    group: Vec<(usize, Cube)>,
    /// What the group's entries capture.
    entries: Vec<(EntryIndex, Cube)>,
    /// Those of the entries that meet the device's own IDs.
    shared: Set,
    /// What entries of other groups capture; only looked at for loose merging.
    others: Vec<Cube>,
    /// An entry of the group translates, or is about to.
    live: bool,
    free: usize,
    /// The group's entries capture IDs that none of it has any more.
    surplus: bool,
}

impl Survey {
    fn reserve(&mut self, own: usize, all: usize, entries: usize) -> Result<(), IommuError> {
        let Self { streams, group, entries: pairs, others, .. } = self;
        let reserved = (streams.try_reserve(own))
            .and_then(|()| group.try_reserve(all))
            .and_then(|()| pairs.try_reserve(entries))
            .and_then(|()| others.try_reserve(entries));
        reserved.map_err(|_| IommuError::OutOfMemory)
    }

    fn captured(&self) -> impl Iterator<Item = Cube> {
        self.entries.iter().map(|(_, cube)| *cube)
    }

    /// Takes a part of the group out: devices whose streams meet, over any number of steps. A group that lost the
    /// member which joined it has several parts.
    fn take_part(&mut self) -> Result<Vec<Cube>, IommuError> {
        let mut part: Vec<Cube> = Vec::new();
        part.try_reserve(self.group.len()).map_err(|_| IommuError::OutOfMemory)?;
        let Some(&(mut mate, _)) = self.group.first() else { return Ok(part) };
        loop {
            part.extend(self.group.iter().filter(|(other, _)| *other == mate).map(|(_, cube)| *cube));
            self.group.retain(|(other, _)| *other != mate);
            let next = self.group.iter().find(|(_, cube)| part.iter().any(|ours| ours.meets(*cube)));
            let Some(&(other, _)) = next else { return Ok(part) };
            mate = other;
        }
    }
}

/// What is to change.
#[derive(Debug, Default)]
struct Layout {
    dropped: Set,
    widened: Vec<(EntryIndex, Cube)>,
    fresh: Vec<Cube>,
    least: bool,
}

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Takes entries for `device`. Returns how many it uses then.
    pub(super) fn claim_entries(
        &self,
        held: &mut Held<'_, Unlocked>,
        device: DeviceId,
        arming: Arming,
    ) -> Result<usize, IommuError> {
        loop {
            let mut survey = Survey::default();
            {
                let map = self.map.lock(held);
                let used = map.used_by(device).ok_or(IommuError::Unknown)?;
                if used.entries.get() != 0 {
                    return Ok(count(used.entries.get()));
                }
            }
            self.survey(held, device, &mut survey)?;
            let layout = self.lay_out(&mut survey, arming)?;
            if !layout.least {
                log::info!("{}: {device} may have more entries than it needs", self.config.key);
            }
            if let Some(taken) = self.apply(held, device, &survey, &layout, arming)? {
                return Ok(taken);
            }
        }
    }

    /// Brings the entries of a group in fault back to the least that capture exactly its IDs, after a member has left.
    /// Where that is not possible they stay as they are: they capture more, but nobody else's.
    pub(super) fn tidy(&self, held: &mut Held<'_, Unlocked>, member: DeviceId) {
        let mut survey = Survey::default();
        let done = self.survey(held, member, &mut survey).and_then(|()| {
            let layout = self.lay_out(&mut survey, Arming::Now)?;
            self.apply(held, member, &survey, &layout, Arming::Now)
        });
        if done.is_err() {
            log::info!("{}: the entries of {member} still capture IDs of a device that has left", self.config.key);
        }
    }

    /// Looks at what is there. Memory is reserved with nothing locked.
    fn survey(&self, held: &mut Held<'_, Unlocked>, device: DeviceId, survey: &mut Survey) -> Result<(), IommuError> {
        let loose = !self.unused.is_empty();
        let (mut room, mut all) = (0_usize, 0_usize);
        loop {
            survey.reserve(room, all, self.geometry.entries.into())?;
            let map = self.map.lock(held);
            let used = map.used_by(device).ok_or(IommuError::Unknown)?;
            survey.shared = map.meeting_any(&used.streams);
            let connected = map.connected(survey.shared);
            let mates = || map.uses().filter(|mate| mate.device == device || mate.entries.get() & connected != 0);
            room = used.streams.len();
            all = mates().map(|mate| mate.streams.len()).fold(0, usize::saturating_add);
            if room > survey.streams.capacity() || all > survey.group.capacity() {
                continue;
            }
            survey.streams.extend_from_slice(&used.streams);
            for (mate, used) in mates().enumerate() {
                survey.group.extend(used.streams.iter().map(|stream| (mate, *stream)));
            }
            for (number, entry) in map.entries() {
                match entry.cube {
                    Some(cube) if connected & one(number) != 0 => survey.entries.push((number, cube)),
                    Some(cube) if loose => survey.others.push(cube),
                    _ => {}
                }
            }
            let moving = mates().any(|mate| mate.bank.get().is_some() || mate.planned.get());
            survey.live = moving || survey.entries.iter().any(|(number, _)| map.entry(*number).is_some_and(is_live));
            survey.free = map.free_entries().count();
            survey.generation = map.generation;
            return Ok(());
        }
    }

    /// The entries that are to be there, with nothing locked.
    fn lay_out(&self, survey: &mut Survey, arming: Arming) -> Result<Layout, IommuError> {
        let missing = self.minus(&survey.streams, survey.captured())?;
        let mut grown = Layout::default();
        let mut rest = missing.cubes();
        let widened;
        if survey.live && arming == Arming::Now {
            widened = self.widen(survey, missing.cubes(), &mut grown)?;
            rest = widened.cubes();
        }
        let mut unused = self.minus(self.unused_of(survey)?.cubes(), survey.captured())?;
        let cover = self.cover(rest, &mut unused)?;
        grown.least = cover.exact && survey.entries.is_empty();
        grown.fresh = cover.cubes;
        if survey.live || arming == Arming::Later || survey.entries.is_empty() {
            return Ok(grown);
        }
        // The group is in fault: all of its entries may be made anew (I-15).
        let before = survey.entries.len();
        let as_it_is = before.saturating_add(grown.fresh.len());
        let (packed, parts) = self.repack(survey)?;
        let kept = |cube: Cube| packed.cubes.contains(&cube);
        let dropped = survey.entries.iter().filter(|(_, cube)| !kept(*cube)).fold(0, |all, (n, _)| all | one(*n));
        let wrong = parts > 1 || survey.surplus;
        if packed.cubes.len() < as_it_is || (wrong && packed.cubes.len() <= before.saturating_add(survey.free)) {
            let least = packed.exact;
            let mut fresh = packed.cubes;
            fresh.retain(|cube| !survey.captured().any(|old| old == *cube));
            return Ok(Layout { dropped, widened: Vec::new(), fresh, least });
        }
        grown.least = packed.exact && packed.cubes.len() == as_it_is;
        Ok(grown)
    }

    /// The entries of a group that is packed anew, and into how many parts it falls.
    fn repack(&self, survey: &mut Survey) -> Result<(Cover, usize), IommuError> {
        let mut unused = self.unused_of(survey)?;
        let mut all = Cover { cubes: Vec::new(), exact: true };
        let mut parts = 0_usize;
        let mut surplus = self.minus_all(survey.captured(), &[])?;
        while !survey.group.is_empty() {
            let part = survey.take_part()?;
            let cover = self.cover(&part, &mut unused)?;
            all.cubes.try_reserve(cover.cubes.len()).map_err(|_| IommuError::OutOfMemory)?;
            all.cubes.extend(cover.cubes);
            all.exact &= cover.exact;
            parts = parts.saturating_add(1);
            surplus = self.minus(surplus.cubes(), part.into_iter())?;
        }
        survey.surplus = !surplus.is_empty() && self.unused.is_empty();
        Ok((all, parts))
    }

    /// Widens entries that the device shares anyway by whole neighbours, which must all be the device's own. Returns
    /// what is left. A live entry changes with one SMR write, and captures nothing new of anyone else's (I-15).
    fn widen(&self, survey: &Survey, missing: &[Cube], layout: &mut Layout) -> Result<IdSet, IommuError> {
        let mut rest = self.minus(missing, core::iter::empty())?;
        for &(number, cube) in survey.entries.iter().filter(|(number, _)| survey.shared & one(*number) != 0) {
            let mut widest = cube;
            for bit in (0..16).map(|shift| 1_u32 << shift).filter(|bit| self.widths.mask_bits & bit != 0) {
                let neighbour = Cube::new(widest.id() ^ bit, widest.mask());
                if widest.mask() & bit == 0 && rest.contains(neighbour) {
                    rest.remove(neighbour).map_err(|error| self.uncovered(error))?;
                    widest = widest.widened(bit);
                }
            }
            if widest != cube {
                layout.widened.try_reserve(1).map_err(|_| IommuError::OutOfMemory)?;
                layout.widened.push((number, widest));
            }
        }
        Ok(rest)
    }

    fn minus(&self, ids: &[Cube], without: impl Iterator<Item = Cube>) -> Result<IdSet, IommuError> {
        let set = || {
            let mut set = IdSet::from_cubes(ids)?;
            for cube in without {
                set.remove(cube)?;
            }
            Ok(set)
        };
        set().map_err(|error| self.uncovered(error))
    }

    fn minus_all(&self, ids: impl Iterator<Item = Cube>, without: &[Cube]) -> Result<IdSet, IommuError> {
        let set = || {
            let mut set = IdSet::new();
            for cube in ids {
                set.insert(cube)?;
            }
            for cube in without {
                set.remove(*cube)?;
            }
            Ok(set)
        };
        set().map_err(|error| self.uncovered(error))
    }

    /// What entries may capture besides, for loose merging: not what any entry captures already, or a device has.
    fn unused_of(&self, survey: &Survey) -> Result<IdSet, IommuError> {
        let had = survey.group.iter().map(|(_, cube)| *cube);
        self.minus(&self.unused, survey.others.iter().copied().chain(had))
    }

    fn cover(&self, ids: &[Cube], unused: &mut IdSet) -> Result<Cover, IommuError> {
        let options = CoverOptions::new(self.widths.id_bits, self.widths.mask_bits);
        let cover =
            if unused.is_empty() { least_cover(ids, &options) } else { loose_cover(ids, unused.cubes(), &options) };
        let cover = cover.map_err(|error| self.uncovered(error))?;
        if !unused.is_empty() {
            for cube in &cover.cubes {
                unused.remove(*cube).map_err(|error| self.uncovered(error))?;
            }
        }
        Ok(cover)
    }

    fn uncovered(&self, error: CoverError) -> IommuError {
        match error {
            CoverError::OutOfMemory => IommuError::OutOfMemory,
            _ => IommuError::Exhausted {
                resource: Resource::StreamMapEntries,
                needed: usize::from(self.geometry.entries).saturating_add(1),
                free: 0,
                total: self.geometry.entries.into(),
            },
        }
    }

    /// Carries a layout out, all or nothing. `None`: someone else's entries changed since the survey.
    fn apply(
        &self,
        held: &mut Held<'_, Unlocked>,
        device: DeviceId,
        survey: &Survey,
        layout: &Layout,
        arming: Arming,
    ) -> Result<Option<usize>, IommuError> {
        let mut map = self.map.lock(held);
        if map.used_by(device).is_none() {
            // Withdrawn since the survey: entries would belong to nobody.
            return Err(IommuError::Unknown);
        }
        let went_live = each(layout.dropped).any(|number| map.entry(number).is_some_and(is_live));
        if map.generation != survey.generation || went_live {
            // What was planned may overlap with others now, or would take an entry that translates (I-15).
            return Ok(None);
        }
        let free = map.free_entries().count().saturating_add(count(layout.dropped));
        // Where a stream ID is the index of its entry, the entry that is needed is either free or the group's own.
        if self.geometry.matching && free < layout.fresh.len() {
            return Err(IommuError::Exhausted {
                resource: Resource::StreamMapEntries,
                needed: layout.fresh.len().saturating_sub(free),
                free,
                total: map.entry_count(),
            });
        }
        // I-1: what goes is gone before anything comes. The group is in fault, so that unmatched streams lose nothing.
        for number in each(layout.dropped) {
            self.free_entry(&mut map, number);
        }
        let mut written = true;
        let mut touched = layout.dropped;
        for &(number, cube) in &layout.widened {
            map.set_cube(number, Some(cube));
            written &= self.write_match(number, cube);
            touched |= one(number);
        }
        for &cube in &layout.fresh {
            let number = if self.geometry.matching { map.free_entries().next() } else { u8::try_from(cube.id()).ok() };
            let Some(number) = number else { continue };
            map.set_cube(number, Some(cube));
            if let Some(entry) = map.entry_mut(number) {
                *entry = Entry { cube: Some(cube), armed: arming == Arming::Now, ..Entry::FREE };
            }
            written &= arming == Arming::Later || self.write_new_entry(number, cube);
            touched |= one(number);
        }
        touched |= map.used_by(device).map_or(0, |used| map.meeting_any(&used.streams));
        touched = map.connected(touched);
        for used in map.uses().filter(|used| used.device == device || used.entries.get() & touched != 0) {
            used.entries.set(map.meeting_any(&used.streams));
        }
        for number in each(map.connected(touched)) {
            map.recount(number);
        }
        let taken = map.used_by(device).map_or(0, |used| used.entries.get());
        if !written {
            // An entry that does not hold what was written must not be believed in.
            self.unclaim(&mut map, device);
            return Err(IommuError::WriteLost { register: "SMR or S2CR" });
        }
        Ok(Some(count(taken)))
    }

    /// Takes a device's entries back; those that nobody else uses become free.
    pub(super) fn unclaim(&self, map: &mut StreamMap, device: DeviceId) {
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

    /// Writes the entries that were only allotted so far, in fault. Says whether they hold.
    pub(super) fn arm(&self, map: &mut StreamMap, device: DeviceId) -> bool {
        let entries = map.used_by(device).map_or(0, |used| used.entries.get());
        let mut written = true;
        for number in each(entries) {
            if let Some(entry) = map.entry_mut(number)
                && !entry.armed
                && let Some(cube) = entry.cube
            {
                entry.armed = true;
                written &= self.write_new_entry(number, cube);
            }
        }
        written
    }

    /// Takes back what was only allotted: a lazily added device whose first move was given up.
    pub(super) fn disarm(&self, map: &mut StreamMap, device: DeviceId) {
        let entries = map.used_by(device).map_or(0, |used| used.entries.get());
        if each(entries).any(|number| map.entry(number).is_some_and(|entry| !entry.armed)) {
            self.unclaim(map, device);
        }
    }

    fn free_entry(&self, map: &mut StreamMap, number: EntryIndex) {
        let armed = map.entry(number).is_some_and(|entry| entry.armed);
        map.set_cube(number, None);
        if let Some(entry) = map.entry_mut(number) {
            *entry = Entry::FREE;
        }
        if armed {
            self.write_free_entry(number);
        }
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

fn is_live(entry: &Entry) -> bool {
    entry.assigned > 0
}

/// How many members a set has.
pub(super) fn count(set: Set) -> usize {
    usize::try_from(set.count_ones()).unwrap_or(usize::MAX)
}
