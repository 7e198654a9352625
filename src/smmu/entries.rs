//! A device's way into the stream map and out of it: publish, claim entries in fault, withdraw.
//!
//! # Locking
//!
//! `publish` and `withdraw` change the tree of masters and the stream map in one step: `Masters`, then `StreamMap`
//! inside it. Claiming entries takes `StreamMap` alone, once to look and once to write; the least cover is searched for
//! with nothing locked.

use alloc::vec::Vec;

use super::cover::{CoverError, CoverOptions, Cube, IdSet, least_cover};
use super::instance::Smmu;
use super::master::Master;
use super::mmio::Registers;
use super::registers::{S2cr, gr0, smr};
use super::stream_map::{Entry, EntryIndex, EntryUse, StreamMap, Use};
use crate::assign::{DeviceId, IommuError, Resource, Stream};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

impl<P: Platform, R: Registers> Smmu<P, R> {
    pub(super) fn publish_master(
        &self,
        held: &mut Held<'_, Unlocked>,
        device: DeviceId,
        streams: &[Stream],
    ) -> Result<Vec<DeviceId>, IommuError> {
        let cubes = self.admit(streams)?;
        let mut published =
            Some((Master::new(self.config.key, device, copy(&cubes)?), Use::new(device, copy(&cubes)?)));
        let mut meets: Vec<DeviceId> = Vec::new();
        loop {
            let room = meets.capacity();
            let wanted = {
                let mut guard = self.masters.tree.lock(held);
                let (tree, held) = guard.split();
                if tree.of(self.config.key).any(|master| master.device == device) {
                    return Err(IommuError::Known);
                }
                let mut map = self.map.lock(held);
                let met = || met_by(tree.of(self.config.key), &map, &cubes);
                let wanted = met().count();
                if wanted <= room {
                    meets.extend(met());
                    if let Some((master, used)) = published.take() {
                        tree.insert(master);
                        map.insert_use(used);
                    }
                    break;
                }
                wanted
            };
            // Memory is reserved with nothing locked; whoever came in between is counted again.
            meets.try_reserve(wanted).map_err(|_| IommuError::OutOfMemory)?;
        }
        meets.sort_unstable();
        meets.dedup();
        Ok(meets)
    }

    /// The streams as the hardware would hold them, or the one that it cannot hold (contract A-6).
    fn admit(&self, streams: &[Stream]) -> Result<Vec<Cube>, IommuError> {
        let mut cubes = Vec::new();
        cubes.try_reserve_exact(streams.len()).map_err(|_| IommuError::OutOfMemory)?;
        for &stream in streams {
            let (id, mask) = (stream.id().value(), stream.mask().value());
            if (id | mask) & !self.widths.id_bits != 0 {
                let (id_bits, mask_bits) = (self.widths.id_bits, self.widths.mask_bits);
                return Err(IommuError::TooWide { stream, id_bits, mask_bits });
            }
            cubes.push(Cube::new(id, mask));
        }
        cubes.sort_unstable();
        cubes.dedup();
        Ok(cubes)
    }

    /// Takes entries for `device`: those that its group has already, and new ones for the rest of its IDs.
    pub(super) fn claim_entries(&self, held: &mut Held<'_, Unlocked>, device: DeviceId) -> Result<usize, IommuError> {
        let mut streams: Vec<Cube> = Vec::new();
        let mut shared: Vec<Cube> = Vec::new();
        shared.try_reserve_exact(self.geometry.entries.into()).map_err(|_| IommuError::OutOfMemory)?;
        loop {
            let (wanted, generation) = {
                let map = self.map.lock(held);
                let used = map.used_by(device).ok_or(IommuError::Unknown)?;
                let enrolled = used.with_entries(<[EntryUse]>::len);
                if enrolled > 0 {
                    return Ok(enrolled);
                }
                shared.clear();
                if used.streams.len() <= streams.capacity() {
                    streams.clear();
                    streams.extend_from_slice(&used.streams);
                    shared.extend(map.matching().map(|(_, cube)| cube).filter(|cube| used.pairs_with(*cube) > 0));
                    (0, map.generation)
                } else {
                    (used.streams.len(), map.generation)
                }
            };
            if wanted > 0 {
                streams.try_reserve_exact(wanted).map_err(|_| IommuError::OutOfMemory)?;
                continue;
            }
            let fresh = self.cover(&streams, &shared)?;
            let mut entries: Vec<EntryUse> = Vec::new();
            let all = shared.len().saturating_add(fresh.len());
            entries.try_reserve_exact(all).map_err(|_| IommuError::OutOfMemory)?;
            let mut map = self.map.lock(held);
            if map.generation != generation {
                // Someone else's entries changed meanwhile: what was planned may overlap them now.
                continue;
            }
            let old = self.write_entries(&mut map, device, &fresh, entries)?;
            drop(map);
            drop(old);
            return Ok(all);
        }
    }

    /// The least new entries for what `shared` does not capture of `streams` already.
    fn cover(&self, streams: &[Cube], shared: &[Cube]) -> Result<Vec<Cube>, IommuError> {
        let options = CoverOptions::new(self.widths.id_bits, self.widths.mask_bits);
        let plan = || {
            let rest = IdSet::from_cubes(streams)?.minus(&IdSet::from_cubes(shared)?)?;
            least_cover(rest.cubes(), &options)
        };
        plan().map(|cover| cover.cubes).map_err(|error| match error {
            CoverError::OutOfMemory => IommuError::OutOfMemory,
            _ => IommuError::Exhausted {
                resource: Resource::StreamMapEntries,
                needed: usize::from(self.geometry.entries).saturating_add(1),
                free: 0,
                total: self.geometry.entries.into(),
            },
        })
    }

    /// Writes `fresh` entries in fault and counts the device's pairs. All or nothing.
    fn write_entries(
        &self,
        map: &mut StreamMap,
        device: DeviceId,
        fresh: &[Cube],
        mut entries: Vec<EntryUse>,
    ) -> Result<Vec<EntryUse>, IommuError> {
        let free = map.free_entries().count();
        // Where a stream ID is the index of its entry, the entry that is needed is either free or the group's own.
        if self.geometry.matching && free < fresh.len() {
            return Err(IommuError::Exhausted {
                resource: Resource::StreamMapEntries,
                needed: fresh.len().saturating_sub(free),
                free,
                total: map.entries.len(),
            });
        }
        for &cube in fresh {
            let index = if self.geometry.matching { map.free_entries().next() } else { u8::try_from(cube.id()).ok() };
            let Some(index) = index else { continue };
            if let Some(entry) = map.entry_mut(index) {
                *entry = Entry { cube: Some(cube), action: S2cr::Fault, registered: 0, assigned: 0 };
            }
            self.write_new_entry(index, cube);
        }
        let used = map.used_by(device).ok_or(IommuError::Unknown)?;
        entries.extend(map.matching().filter_map(|(entry, cube)| {
            let pairs = used.pairs_with(cube);
            (pairs > 0).then_some(EntryUse { entry, pairs })
        }));
        let counts: &[EntryUse] = &entries;
        for used in counts {
            if let Some(entry) = map.entries.get_mut(usize::from(used.entry)) {
                entry.registered = entry.registered.saturating_add(used.pairs);
            }
        }
        map.generation = map.generation.wrapping_add(1);
        Ok(map.used_by(device).map_or_else(Vec::new, |used| used.replace_entries(entries)))
    }

    /// Makes an entry match, in fault (contract I-5).
    fn write_new_entry(&self, index: EntryIndex, cube: Cube) {
        let extended = self.geometry.extended_ids;
        let fault = S2cr::Fault.encode(extended);
        if !self.geometry.matching {
            self.registers.write32(gr0::s2cr(index), fault);
            return;
        }
        let matches = smr::encode(cube.id(), cube.mask(), extended);
        if extended {
            // Validity is in the S2CR: a stale SMR must be replaced before it can match.
            self.registers.write32(gr0::smr(index), matches);
            self.registers.write32(gr0::s2cr(index), fault);
        } else {
            self.registers.write32(gr0::s2cr(index), fault);
            self.registers.write32(gr0::smr(index), matches);
        }
    }

    /// Makes an entry, which is in fault, match nothing (contract I-5).
    fn write_free_entry(&self, index: EntryIndex) {
        if !self.geometry.matching {
            // The S2CR faults already, and an index cannot be taken away.
        } else if self.geometry.extended_ids {
            self.registers.write32(gr0::s2cr(index), S2cr::Fault.encode(false));
        } else {
            self.registers.write32(gr0::smr(index), 0);
        }
    }

    pub(super) fn withdraw_master(&self, held: &mut Held<'_, Unlocked>, device: DeviceId) -> Result<(), IommuError> {
        let gone = {
            let mut guard = self.masters.tree.lock(held);
            let (tree, held) = guard.split();
            let mut map = self.map.lock(held);
            let used = map.used_by(device).ok_or(IommuError::Unknown)?;
            if used.bank.get().is_some() || used.planned.get() {
                return Err(IommuError::Busy);
            }
            let used = map.take_use(device);
            if let Some(used) = &used {
                let entries = used.replace_entries(Vec::new());
                for used in &entries {
                    self.release_entry(&mut map, *used);
                }
                if !entries.is_empty() {
                    map.generation = map.generation.wrapping_add(1);
                }
                let _ = used.replace_entries(entries);
            }
            (tree.take(self.config.key, device), used)
        };
        drop(gone);
        Ok(())
    }

    fn release_entry(&self, map: &mut StreamMap, used: EntryUse) {
        let Some(entry) = map.entry_mut(used.entry) else { return };
        entry.registered = entry.registered.saturating_sub(used.pairs);
        if entry.registered == 0 {
            entry.cube = None;
            self.write_free_entry(used.entry);
        }
    }

    pub(super) fn sharers_of(&self, held: &mut Held<'_, Unlocked>, device: DeviceId) -> Vec<DeviceId> {
        let mut found = Vec::new();
        loop {
            let wanted = {
                let map = self.map.lock(held);
                let Some(used) = map.used_by(device) else { return found };
                let wanted = map.sharers(used).count();
                if wanted <= found.capacity() {
                    found.extend(map.sharers(used).map(|other| other.device));
                    return found;
                }
                wanted
            };
            if found.try_reserve_exact(wanted).is_err() {
                return found;
            }
        }
    }
}

/// The devices whose streams, or whose entries, meet `cubes`.
fn met_by<'a>(
    masters: impl Iterator<Item = &'a Master> + 'a,
    map: &'a StreamMap,
    cubes: &'a [Cube],
) -> impl Iterator<Item = DeviceId> + 'a {
    let by_stream = masters.filter(|master| master.meets(cubes)).map(|master| master.device);
    // An entry may still capture IDs of a device that has left a group which keeps the entry.
    let by_entry = map.uses().filter(|used| {
        used.with_entries(|entries| {
            entries.iter().any(|used| {
                let cube = map.entry(used.entry).and_then(|entry| entry.cube);
                cube.is_some_and(|cube| cubes.iter().any(|wanted| wanted.meets(cube)))
            })
        })
    });
    by_stream.chain(by_entry.map(|used| used.device))
}

fn copy(cubes: &[Cube]) -> Result<Vec<Cube>, IommuError> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(cubes.len()).map_err(|_| IommuError::OutOfMemory)?;
    copy.extend_from_slice(cubes);
    Ok(copy)
}
