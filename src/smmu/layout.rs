//! Which entries a device is to have: shared with its group, merged, repacked where the group is in fault, or one of
//! them widened. Nothing here changes anything.
//!
//! What an entry matches is never more than the group's own IDs (exact), unless the integrator named IDs that nobody
//! uses (loose). Live entries never move (contract I-15).
//!
//! All memory that this needs is a [`Workshop`], which goes from hand to hand and is used again and again: one that has room
//! takes nothing from the system.
//!
//! # Locking
//!
//! `StreamMap`, once, to look at what is there: the caller's, or on its own. The least cover is searched for with nothing
//! locked.

use alloc::vec::Vec;

use bumpalo::Bump;
use bumpalo::collections;

use super::cover::{CoverError, CoverOptions, Cube, Set as IdSet, least_in, loose_in};
use super::instance::Smmu;
use super::mmio::Registers;
use super::stream_map::{EntryIndex, Set, StreamMap, Use, one};
use crate::assign::{DeviceId, IommuError, Resource};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

#[cfg(test)]
mod tests;

/// What may become of the entries that a group has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freedom {
    /// They may be packed anew, or widened where they are live.
    Repack,
    /// They stay as they are: what is missing comes beside them, and captures nothing else.
    Grow,
}

/// A device, or all devices that may share entries though their streams do not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kin {
    Alone(DeviceId),
    Of(u64),
}

impl From<&Use> for Kin {
    fn from(used: &Use) -> Self {
        used.kin.map_or(Self::Alone(used.device), Self::Of)
    }
}

/// What is there before a device's entries are laid out.
#[derive(Debug, Default)]
struct Survey {
    /// The IDs of the devices that have no entries yet.
    own: Vec<(Kin, Cube)>,
    /// The IDs of all devices that are connected with them, their own included.
    group: Vec<(Kin, Cube)>,
    /// What the group's entries capture.
    entries: Vec<(EntryIndex, Cube)>,
    /// Those of the entries that meet the devices' own IDs.
    shared: Set,
    /// What nobody outside the group may be made to capture; only looked at for loose merging.
    others: Vec<Cube>,
    /// An entry of the group translates, or is about to.
    live: bool,
    free: usize,
    /// The group's entries capture IDs that none of it has any more, and that the integrator did not name as unused.
    surplus: bool,
}

/// How much a survey lists.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    own: usize,
    group: usize,
    entries: usize,
    others: usize,
}

impl Survey {
    fn clear(&mut self) {
        self.own.clear();
        self.group.clear();
        self.entries.clear();
        self.others.clear();
    }

    fn make_room(&mut self, room: Room) -> Result<(), IommuError> {
        self.clear();
        let reserved = (self.own.try_reserve(room.own))
            .and_then(|()| self.group.try_reserve(room.group))
            .and_then(|()| self.entries.try_reserve(room.entries))
            .and_then(|()| self.others.try_reserve(room.others));
        reserved.map_err(|_| IommuError::OutOfMemory)
    }

    fn has_room(&self, room: Room) -> bool {
        room.own <= self.own.capacity()
            && room.group <= self.group.capacity()
            && room.entries <= self.entries.capacity()
            && room.others <= self.others.capacity()
    }

    fn captured(&self) -> impl Iterator<Item = Cube> {
        self.entries.iter().map(|(_, cube)| *cube)
    }
}

/// Takes a part of a list of devices' IDs out: devices whose streams meet, or that are kin, over any number of steps. A
/// group that lost the member which joined it has several parts.
fn take_part(devices: &mut Vec<(Kin, Cube)>, part: &mut collections::Vec<'_, Cube>) -> Result<(), IommuError> {
    part.clear();
    part.try_reserve(devices.len()).map_err(|_| IommuError::OutOfMemory)?;
    let Some(&(mut mate, _)) = devices.first() else { return Ok(()) };
    loop {
        part.extend(devices.iter().filter(|(other, _)| *other == mate).map(|(_, cube)| *cube));
        devices.retain(|(other, _)| *other != mate);
        let next = devices.iter().find(|(_, cube)| part.iter().any(|ours| ours.meets(*cube)));
        let Some(&(other, _)) = next else { return Ok(()) };
        mate = other;
    }
}

/// What is to change.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// Entries that go, with what they match now.
    pub(super) dropped: Vec<(EntryIndex, Cube)>,
    /// Entries that match more than now, with both.
    pub(super) widened: Vec<(EntryIndex, Cube, Cube)>,
    /// What new entries match.
    pub(super) fresh: Vec<Cube>,
    /// There is no smaller one.
    pub(super) least: bool,
}

impl Layout {
    /// How many of the entries that will be there meet one of `streams`.
    fn count_for(&self, survey: &Survey, streams: &[Cube]) -> usize {
        let stays = |number: EntryIndex| {
            let goes = self.dropped.iter().any(|(dropped, _)| *dropped == number);
            !goes && self.widened.iter().all(|(widened, ..)| *widened != number)
        };
        let kept = survey.entries.iter().filter(|(number, _)| stays(*number)).map(|(_, cube)| *cube);
        let there = kept.chain(self.coming());
        there.filter(|cube| streams.iter().any(|stream| stream.meets(*cube))).count()
    }

    /// The cubes that come, new ones and widened ones.
    pub(super) fn coming(&self) -> impl Iterator<Item = Cube> {
        self.fresh.iter().copied().chain(self.widened.iter().map(|(_, _, cube)| *cube))
    }

    /// How many free entries it takes beside those that go.
    pub(super) fn lacking(&self) -> usize {
        self.fresh.len().saturating_sub(self.dropped.len())
    }

    /// Whether all stays as it is.
    pub(super) const fn is_empty(&self) -> bool {
        self.dropped.is_empty() && self.widened.is_empty() && self.fresh.is_empty()
    }

    fn clear(&mut self) {
        self.dropped.clear();
        self.widened.clear();
        self.fresh.clear();
    }
}

/// All memory that a laying-out needs, from the look at the map to the result.
///
/// Lists are emptied and never given back. An arena that had to grow keeps its largest piece.
#[derive(Debug)]
pub(super) struct Workshop {
    survey: Survey,
    /// The stream map's, when it was looked at.
    pub(super) generation: u64,
    /// What [`lay_out`](Smmu::lay_out) found.
    pub(super) layout: Layout,
    /// The entries of a group that is packed anew, until it is known whether it will be.
    packed: Vec<Cube>,
    /// What lives as long as one laying-out.
    arena: Bump,
    /// What lives as long as the search for the cover of one part.
    desk: Bump,
    /// What lives as long as the search in one component.
    scratch: Bump,
}

/// What entries may be here.
struct Rules<'a> {
    options: CoverOptions,
    /// IDs that they may capture though nobody has them.
    unused: &'a [Cube],
    /// How many the SMMU has.
    entries: usize,
}

impl Rules<'_> {
    fn uncovered(&self, error: CoverError) -> IommuError {
        match error {
            CoverError::OutOfMemory => IommuError::OutOfMemory,
            _ => IommuError::Exhausted {
                resource: Resource::StreamMapEntries,
                needed: self.entries.saturating_add(1),
                free: 0,
                total: self.entries,
            },
        }
    }
}

impl Workshop {
    /// For how many IDs of a group there is room at first, where the SMMU has no more entries.
    const IDS: usize = 64;
    /// Bytes for sets, and as many for the cover of one part: rounded up to 4 KiB. A group of 64 IDs without a pattern has
    /// room in them, the boards' groups in a quarter.
    const LISTS: usize = 3 << 10;
    /// Bytes for the search in one component: rounded up to 24 KiB. One of 32 IDs has room in 16 KiB, one of 64 in 28, the
    /// boards' in 4.
    const SCRATCH: usize = 23 << 10;

    /// With room for what is usual on an SMMU of so many entries, and for a device of so many streams.
    pub(super) fn new(entries: usize, streams: usize) -> Result<Self, IommuError> {
        let arena = |room| Bump::try_with_capacity(room).map_err(|_| IommuError::OutOfMemory);
        let mut workshop = Self {
            survey: Survey::default(),
            generation: 0,
            layout: Layout::default(),
            packed: Vec::new(),
            arena: arena(Self::LISTS)?,
            desk: arena(Self::LISTS)?,
            scratch: arena(Self::SCRATCH)?,
        };
        let ids = entries.max(streams).max(Self::IDS);
        workshop.make_room(Room { own: ids, group: ids, entries, others: entries.saturating_mul(2) })?;
        let Layout { dropped, widened, fresh, .. } = &mut workshop.layout;
        let reserved = (dropped.try_reserve_exact(entries))
            .and_then(|()| widened.try_reserve_exact(entries))
            .and_then(|()| fresh.try_reserve_exact(ids))
            .and_then(|()| workshop.packed.try_reserve_exact(ids));
        reserved.map_err(|_| IommuError::OutOfMemory)?;
        Ok(workshop)
    }

    /// How many of the entries that will be there meet one of `streams`.
    pub(super) fn count_for(&self, streams: &[Cube]) -> usize {
        self.layout.count_for(&self.survey, streams)
    }

    /// Takes the room that a look lacked. What was seen is forgotten.
    pub(super) fn make_room(&mut self, room: Room) -> Result<(), IommuError> {
        self.survey.make_room(room)
    }

    /// `free` entries are neither in use nor promised; entries may capture unused IDs, or not.
    fn look(
        &mut self,
        map: &StreamMap,
        devices: &[DeviceId],
        free: usize,
        loose: bool,
    ) -> Result<Result<(), Room>, IommuError> {
        let survey = &mut self.survey;
        survey.clear();
        if devices.iter().any(|device| map.used_by(*device).is_none()) {
            return Err(IommuError::Unknown);
        }
        let subjects = || devices.iter().filter_map(|device| map.used_by(*device));
        let bare = || subjects().filter(|used| used.entries.get() == 0);
        survey.shared = subjects().fold(0, |all, used| all | map.meeting_any(&used.streams));
        let is_kin = |used: &&Use| used.kin.is_some() && subjects().any(|one| one.kin == used.kin);
        let kin = map.uses().filter(is_kin).fold(0, |all, used| all | used.entries.get());
        let connected = map.connected(survey.shared | kin);
        let is_mate = |used: &&Use| devices.contains(&used.device) || used.entries.get() & connected != 0;
        let mates = || map.uses().filter(is_mate);
        let strangers = || map.uses().filter(|used| loose && !is_mate(used));
        let room = Room {
            own: bare().map(|used| used.streams.len()).fold(0, usize::saturating_add),
            group: mates().map(|used| used.streams.len()).fold(0, usize::saturating_add),
            entries: map.entry_count(),
            others: strangers()
                .map(|used| used.streams.len())
                .fold(if loose { map.entry_count() } else { 0 }, usize::saturating_add),
        };
        if !survey.has_room(room) {
            return Ok(Err(room));
        }
        for used in bare() {
            survey.own.extend(used.streams.iter().map(|stream| (Kin::from(used), *stream)));
        }
        for used in mates() {
            survey.group.extend(used.streams.iter().map(|stream| (Kin::from(used), *stream)));
        }
        for (number, entry) in map.entries() {
            match entry.cube {
                Some(cube) if connected & one(number) != 0 => survey.entries.push((number, cube)),
                Some(cube) if loose => survey.others.push(cube),
                _ => {}
            }
        }
        for used in strangers() {
            survey.others.extend_from_slice(&used.streams);
        }
        let moving = mates().any(|mate| mate.bank.get().is_some() || mate.planned.get());
        survey.live = moving || survey.entries.iter().any(|(number, _)| map.is_live(*number));
        survey.free = free;
        self.generation = map.generation;
        Ok(Ok(()))
    }

    fn lay_out(&mut self, rules: &Rules<'_>, freedom: Freedom) -> Result<(), IommuError> {
        let Self { survey, layout, packed, arena, desk, scratch, .. } = self;
        arena.reset();
        let mut drawing = Drawing { rules, arena, desk, scratch };
        layout.clear();
        layout.least = survey.entries.is_empty();
        drawing.grow(survey, layout, freedom)?;
        if survey.live || freedom == Freedom::Grow || survey.entries.is_empty() {
            return Ok(());
        }
        // The group is in fault: all of its entries may be made anew (I-15).
        let before = survey.entries.len();
        let as_it_is = before.saturating_add(layout.fresh.len());
        packed.clear();
        let (least, parts) = drawing.repack(survey, packed)?;
        let wrong = parts > 1 || survey.surplus;
        if packed.len() < as_it_is || (wrong && packed.len() <= before.saturating_add(survey.free)) {
            layout.clear();
            layout.dropped.try_reserve(before).map_err(|_| IommuError::OutOfMemory)?;
            layout.dropped.extend(survey.entries.iter().filter(|(_, cube)| !packed.contains(cube)));
            layout.fresh.try_reserve(packed.len()).map_err(|_| IommuError::OutOfMemory)?;
            layout.fresh.extend(packed.iter().filter(|cube| !survey.captured().any(|old| old == **cube)));
            layout.least = least;
        } else {
            layout.least = least && packed.len() == as_it_is;
        }
        Ok(())
    }
}

/// A laying-out under way.
struct Drawing<'a> {
    rules: &'a Rules<'a>,
    arena: &'a Bump,
    desk: &'a mut Bump,
    scratch: &'a mut Bump,
}

impl<'a> Drawing<'a> {
    /// What is missing, beside the entries that are there.
    fn grow(&mut self, survey: &mut Survey, layout: &mut Layout, freedom: Freedom) -> Result<(), IommuError> {
        let mut unused = self.unused_of(survey)?;
        self.cut(&mut unused, survey.captured())?;
        let mut part = collections::Vec::new_in(self.arena);
        while !survey.own.is_empty() {
            // Devices that do not meet get entries of their own.
            take_part(&mut survey.own, &mut part)?;
            let mut missing = self.set_of(part.iter().copied())?;
            self.cut(&mut missing, survey.captured())?;
            if survey.live && freedom == Freedom::Repack {
                self.widen(survey, &mut missing, layout)?;
            }
            layout.least &= self.cover(missing.cubes(), &mut unused, &mut layout.fresh)?;
        }
        Ok(())
    }

    /// The entries of a group that is packed anew: whether there are no fewer, and into how many parts it falls.
    fn repack(&mut self, survey: &mut Survey, packed: &mut Vec<Cube>) -> Result<(bool, usize), IommuError> {
        let mut unused = self.unused_of(survey)?;
        let mut surplus = self.set_of(survey.captured())?;
        let mut part = collections::Vec::new_in(self.arena);
        let (mut least, mut parts) = (true, 0_usize);
        while !survey.group.is_empty() {
            take_part(&mut survey.group, &mut part)?;
            least &= self.cover(&part, &mut unused, packed)?;
            parts = parts.saturating_add(1);
            self.cut(&mut surplus, part.iter().copied())?;
        }
        self.cut(&mut surplus, self.rules.unused.iter().copied())?;
        survey.surplus = !surplus.is_empty();
        Ok((least, parts))
    }

    /// Widens entries that the device shares anyway by whole neighbours, which must all be the device's own, and takes
    /// these from what is missing. A live entry changes with one SMR write, and captures nothing new of anyone else's
    /// (I-15).
    fn widen(&self, survey: &Survey, missing: &mut IdSet<'_>, layout: &mut Layout) -> Result<(), IommuError> {
        let mask_bits = self.rules.options.mask_bits;
        for &(number, cube) in survey.entries.iter().filter(|(number, _)| survey.shared & one(*number) != 0) {
            let mut widest = cube;
            for bit in (0..16).map(|shift| 1_u32 << shift).filter(|bit| mask_bits & bit != 0) {
                let neighbour = Cube::new(widest.id() ^ bit, widest.mask());
                if widest.mask() & bit == 0 && missing.contains(neighbour) {
                    missing.remove(neighbour).map_err(|error| self.rules.uncovered(error))?;
                    widest = widest.widened(bit);
                }
            }
            if widest != cube {
                layout.widened.try_reserve(1).map_err(|_| IommuError::OutOfMemory)?;
                layout.widened.push((number, cube, widest));
            }
        }
        Ok(())
    }

    fn set_of(&self, ids: impl IntoIterator<Item = Cube>) -> Result<IdSet<'a>, IommuError> {
        IdSet::union_of(self.arena, ids).map_err(|error| self.rules.uncovered(error))
    }

    fn cut(&self, set: &mut IdSet<'_>, without: impl IntoIterator<Item = Cube>) -> Result<(), IommuError> {
        without.into_iter().try_for_each(|cube| set.remove(cube)).map_err(|error| self.rules.uncovered(error))
    }

    /// What entries may capture besides, for loose merging: not what any entry captures already or is about to, and not
    /// what a device has, whether it has entries or not.
    fn unused_of(&self, survey: &Survey) -> Result<IdSet<'a>, IommuError> {
        let mut unused = self.set_of(self.rules.unused.iter().copied())?;
        self.cut(&mut unused, survey.others.iter().copied())?;
        self.cut(&mut unused, survey.group.iter().map(|(_, cube)| *cube))?;
        Ok(unused)
    }

    /// Adds the fewest entries for `ids`, and tells whether they are. What they capture besides is unused no more.
    fn cover(&mut self, ids: &[Cube], unused: &mut IdSet<'_>, entries: &mut Vec<Cube>) -> Result<bool, IommuError> {
        let Self { rules, desk, scratch, .. } = self;
        desk.reset();
        let cover = if unused.is_empty() {
            least_in(desk, scratch, ids, &rules.options)
        } else {
            loose_in(desk, scratch, ids, unused.cubes(), &rules.options)
        };
        let (cubes, least) = cover.map_err(|error| rules.uncovered(error))?;
        entries.try_reserve(cubes.len()).map_err(|_| IommuError::OutOfMemory)?;
        entries.extend_from_slice(&cubes);
        cubes.iter().try_for_each(|cube| unused.remove(*cube)).map_err(|error| rules.uncovered(error))?;
        Ok(least)
    }
}

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Looks at what is there around `devices`. Memory is reserved with nothing locked.
    pub(super) fn survey(
        &self,
        held: &mut Held<'_, Unlocked>,
        devices: &[DeviceId],
        workshop: &mut Workshop,
    ) -> Result<(), IommuError> {
        loop {
            let looked = self.look(&self.map.lock(held), devices, workshop)?;
            let Err(room) = looked else { return Ok(()) };
            workshop.make_room(room)?;
        }
    }

    /// Looks at what is there around `devices`, and takes no memory. Says how much room it lacks.
    pub(super) fn look(
        &self,
        map: &StreamMap,
        devices: &[DeviceId],
        workshop: &mut Workshop,
    ) -> Result<Result<(), Room>, IommuError> {
        workshop.look(map, devices, self.budget.free(), !self.unused.is_empty())
    }

    /// Finds the entries that are to be there, with nothing locked: afterwards they are the workshop's layout, which means
    /// nothing after an error. What was seen is used up.
    pub(super) fn lay_out(&self, workshop: &mut Workshop, freedom: Freedom) -> Result<(), IommuError> {
        let options = CoverOptions::new(self.widths.id_bits, self.widths.mask_bits);
        let unused = if freedom == Freedom::Grow { &[] } else { self.unused.as_slice() };
        let rules = Rules { options, unused, entries: self.geometry.entries.into() };
        workshop.lay_out(&rules, freedom)
    }
}
