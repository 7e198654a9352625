//! Which entries a device is to have: shared with its group, merged, repacked where the group is in fault, or one of
//! them widened. Nothing here changes anything.
//!
//! What an entry matches is never more than the group's own IDs (exact), unless the integrator named IDs that nobody
//! uses (loose). Live entries never move (contract I-15).
//!
//! # Locking
//!
//! `StreamMap`, once, to look at what is there: the caller's, or on its own. The least cover is searched for with nothing
//! locked.

use alloc::vec::Vec;

use super::cover::{Cover, CoverError, CoverOptions, Cube, IdSet, least_cover, loose_cover};
use super::instance::Smmu;
use super::mmio::Registers;
use super::stream_map::{EntryIndex, Set, StreamMap, Use, one};
use crate::assign::{DeviceId, IommuError, Resource};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// What may become of the entries that a group has already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Freedom {
    /// They may be packed anew, or widened where they are live.
    Repack,
    /// They stay as they are: what is missing comes beside them.
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
pub(super) struct Survey {
    /// The stream map's, when this was looked at.
    pub(super) generation: u64,
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
    /// The group's entries capture IDs that none of it has any more.
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
    /// Empty, with room.
    pub(super) fn with_room(room: Room) -> Result<Self, IommuError> {
        let mut survey = Self::default();
        let reserved = (survey.own.try_reserve(room.own))
            .and_then(|()| survey.group.try_reserve(room.group))
            .and_then(|()| survey.entries.try_reserve(room.entries))
            .and_then(|()| survey.others.try_reserve(room.others));
        reserved.map_err(|_| IommuError::OutOfMemory)?;
        Ok(survey)
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
fn take_part(devices: &mut Vec<(Kin, Cube)>) -> Result<Vec<Cube>, IommuError> {
    let mut part: Vec<Cube> = Vec::new();
    part.try_reserve(devices.len()).map_err(|_| IommuError::OutOfMemory)?;
    let Some(&(mut mate, _)) = devices.first() else { return Ok(part) };
    loop {
        part.extend(devices.iter().filter(|(other, _)| *other == mate).map(|(_, cube)| *cube));
        devices.retain(|(other, _)| *other != mate);
        let next = devices.iter().find(|(_, cube)| part.iter().any(|ours| ours.meets(*cube)));
        let Some(&(other, _)) = next else { return Ok(part) };
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
    pub(super) fn count_for(&self, survey: &Survey, streams: &[Cube]) -> usize {
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
}

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// A survey with room enough for most groups, so that one look suffices.
    pub(super) fn usual_survey(&self) -> Result<Survey, IommuError> {
        self.survey_for(0)
    }

    /// The same, with room for so many streams of its own.
    pub(super) fn survey_for(&self, streams: usize) -> Result<Survey, IommuError> {
        let entries = self.geometry.entries.into();
        let others = if self.unused.is_empty() { 0 } else { entries };
        let usual = streams.max(16);
        Survey::with_room(Room { own: usual, group: usual, entries, others })
    }

    /// Looks at what is there around `devices`. Memory is reserved with nothing locked.
    pub(super) fn survey(&self, held: &mut Held<'_, Unlocked>, devices: &[DeviceId]) -> Result<Survey, IommuError> {
        let mut survey = self.usual_survey()?;
        loop {
            let looked = self.look(&self.map.lock(held), devices, &mut survey)?;
            let Err(room) = looked else { return Ok(survey) };
            survey = Survey::with_room(room)?;
        }
    }

    /// Looks at what is there around `devices`, for an empty survey. Says how much room it lacks.
    pub(super) fn look(
        &self,
        map: &StreamMap,
        devices: &[DeviceId],
        survey: &mut Survey,
    ) -> Result<Result<(), Room>, IommuError> {
        let loose = !self.unused.is_empty();
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
        survey.free = self.budget.free();
        survey.generation = map.generation;
        Ok(Ok(()))
    }

    /// The entries that are to be there, with nothing locked.
    pub(super) fn lay_out(&self, survey: &mut Survey, freedom: Freedom) -> Result<Layout, IommuError> {
        let mut grown = Layout { least: survey.entries.is_empty(), ..Layout::default() };
        let mut unused = self.minus(self.unused_of(survey)?.cubes(), survey.captured())?;
        while !survey.own.is_empty() {
            // Devices that do not meet get entries of their own.
            let part = take_part(&mut survey.own)?;
            let mut missing = self.minus(&part, survey.captured())?;
            if survey.live && freedom == Freedom::Repack {
                missing = self.widen(survey, missing.cubes(), &mut grown)?;
            }
            let cover = self.cover(missing.cubes(), &mut unused)?;
            grown.least &= cover.exact;
            grown.fresh.try_reserve(cover.cubes.len()).map_err(|_| IommuError::OutOfMemory)?;
            grown.fresh.extend(cover.cubes);
        }
        if survey.live || freedom == Freedom::Grow || survey.entries.is_empty() {
            return Ok(grown);
        }
        // The group is in fault: all of its entries may be made anew (I-15).
        let before = survey.entries.len();
        let as_it_is = before.saturating_add(grown.fresh.len());
        let (packed, parts) = self.repack(survey)?;
        let wrong = parts > 1 || survey.surplus;
        if packed.cubes.len() < as_it_is || (wrong && packed.cubes.len() <= before.saturating_add(survey.free)) {
            let mut dropped: Vec<(EntryIndex, Cube)> = Vec::new();
            dropped.try_reserve_exact(before).map_err(|_| IommuError::OutOfMemory)?;
            dropped.extend(survey.entries.iter().filter(|(_, cube)| !packed.cubes.contains(cube)));
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
        let mut surplus = self.set_of(survey.captured())?;
        while !survey.group.is_empty() {
            let part = take_part(&mut survey.group)?;
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
                layout.widened.push((number, cube, widest));
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

    fn set_of(&self, ids: impl Iterator<Item = Cube>) -> Result<IdSet, IommuError> {
        let set = || {
            let mut set = IdSet::new();
            for cube in ids {
                set.insert(cube)?;
            }
            Ok(set)
        };
        set().map_err(|error| self.uncovered(error))
    }

    /// What entries may capture besides, for loose merging: not what any entry captures already or is about to, and not
    /// what a device has, whether it has entries or not.
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
}
