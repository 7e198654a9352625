//! A device's way into the instance and out of it: publish, withdraw, and whom it meets.
//!
//! # Locking
//!
//! `publish` and `withdraw` change the tree of masters and the stream map in one step: `Masters`, then `StreamMap`
//! inside it; a withdrawal takes `Spare` inside both, where something stays. `find_owner` takes `StreamMap`, then `Masters`,
//! one after the other.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::budget::Promised;
use super::claims::{Draft, next_mates};
use super::context::Bank;
use super::cover::Cube;
use super::cut::list_keepers;
use super::instance::Smmu;
use super::master::{Master, Tree};
use super::mmio::Registers;
use super::reserved;
use super::stream_map::{StreamMap, Use, each, one};
use crate::assign::{DeviceId, IommuError, IommuKey, Sharing, Stream, StreamId, Withdrawn};
use crate::few::{self, Few};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// A device on its way in: what stands for it in the tree and in the map, and what its entries are to be.
pub(super) struct Incoming {
    pub(super) iommu: IommuKey,
    pub(super) device: DeviceId,
    pub(super) streams: Vec<Cube>,
    pub(super) promised: Arc<Promised>,
    unpublished: Option<(Box<Master>, Box<Use>)>,
    pub(super) draft: Box<Draft>,
    /// The draft's workshop looked when the device was published; else it is to be looked at on its own.
    pub(super) seen: bool,
}

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Makes all that it takes to add a device.
    pub(super) fn make_master(
        &self,
        device: DeviceId,
        streams: &[Stream],
        kin: Option<u64>,
    ) -> Result<Incoming, IommuError> {
        let cubes = self.admit(streams)?;
        let used = Use::new(device, copy(&cubes)?, kin);
        let promised = used.promised.clone();
        let master = Master::new(self.config.key, device, copy(&cubes)?);
        let draft = Box::new(Draft::new(self.geometry.entries, cubes.len())?);
        let (iommu, unpublished) = (self.config.key, Some((master, used)));
        Ok(Incoming { iommu, device, unpublished, promised, streams: cubes, draft, seen: false })
    }

    /// Publishes a device, and looks at what is there around it.
    pub(super) fn publish_master(
        &self,
        held: &mut Held<'_, Unlocked>,
        incoming: &mut Incoming,
        met: &mut dyn FnMut(DeviceId),
    ) -> Result<(), IommuError> {
        let device = incoming.device;
        let mut meets: Few<DeviceId> = Few::new();
        incoming.seen = loop {
            let room = meets.capacity();
            let wanted = {
                let mut guard = self.masters.tree.lock(held);
                let (tree, held) = guard.split();
                let mut map = self.map.lock(held);
                if map.used_by(device).is_some() {
                    return Err(IommuError::Known);
                }
                let wanted = self.met_by(tree, &map, &incoming.streams).count();
                if wanted <= room {
                    meets.extend(self.met_by(tree, &map, &incoming.streams));
                    let (master, used) = incoming.unpublished.take().ok_or(IommuError::Known)?;
                    tree.insert(master);
                    map.insert_use(used);
                    let looked = self.look(&map, &[device], &mut incoming.draft.workshop);
                    break matches!(looked, Ok(Ok(()))) && !displaces(&map, device);
                }
                wanted
            };
            // Memory is reserved with nothing locked; whoever came in between is counted again.
            meets.try_reserve(wanted).map_err(|_| IommuError::OutOfMemory)?;
        };
        meets.sort_unstable();
        meets.dedup();
        meets.into_iter().for_each(met);
        Ok(())
    }

    /// The streams as the hardware would hold them, or the one that it cannot hold (contract A-6).
    pub(super) fn admit(&self, streams: &[Stream]) -> Result<Vec<Cube>, IommuError> {
        let mut cubes = Vec::new();
        cubes.try_reserve_exact(streams.len()).map_err(|_| IommuError::OutOfMemory)?;
        let (id_bits, mask_bits) = (self.widths.id_bits, self.widths.mask_bits);
        for &stream in streams {
            let (id, mask) = (stream.id().value(), stream.mask().value());
            // Q22: a bit that no SMR compares is ignored whether the mask says so or not; one that no stream carries
            // here cannot be meant.
            if id & !id_bits != 0 || mask & !self.widths.carried != 0 {
                return Err(IommuError::TooWide { stream, id_bits, mask_bits });
            }
            cubes.push(Cube::new(id, mask & id_bits));
        }
        cubes.sort_unstable();
        cubes.dedup();
        Ok(cubes)
    }

    /// Devices whose streams, or whose entries, meet `cubes`: of those that share an entry, and so are one group, one; of
    /// a live entry, one that keeps it live.
    fn met_by<'a>(
        &'a self,
        tree: &'a Tree,
        map: &'a StreamMap,
        cubes: &'a [Cube],
    ) -> impl Iterator<Item = DeviceId> + 'a {
        let entries = map.meeting_any(cubes);
        let keeps_live =
            move |number| map.uses().find(|used| used.entries.get() & one(number) != 0 && used.bank.get().is_some());
        let by_entry = each(entries).filter_map(move |number| {
            let entry = map.entry(number)?;
            // Who keeps it live is the one that the policy wants to know of (contract I-11).
            let live = if entry.assigned > 0 { keeps_live(number) } else { None };
            live.map(|used| used.device).or(entry.user)
        });
        // A device without entries (not yet enrolled, or added lazily) is met by its streams; so is one that the map does not
        // know, which is with an instance that had this one's name before: the hardware is the same.
        let last = cubes.iter().map(|cube| cube.last()).max().unwrap_or(0);
        let bare = move |device: DeviceId| map.used_by(device).is_none_or(|used| used.entries.get() == 0);
        let by_stream = tree
            .up_to(self.config.key, StreamId::new(last))
            .filter(move |master| bare(master.device) && master.meets(cubes))
            .map(|master| master.device);
        by_entry.chain(by_stream)
    }

    pub(super) fn withdraw_master(
        &self,
        held: &mut Held<'_, Unlocked>,
        device: DeviceId,
        rest: &[DeviceId],
        tell: &mut dyn FnMut(Withdrawn),
    ) -> Result<(), IommuError> {
        let mut sharing = few::with_room(rest.len()).unwrap_or_default();
        let mut keepers = Few::new();
        let mut lacking = false;
        let (gone, stays, mut known) = loop {
            let mut guard = self.masters.tree.lock(held);
            let (tree, held) = guard.split();
            let mut map_guard = self.map.lock(held);
            let (map, held) = map_guard.split();
            self.end_announced(map, &[device]);
            let used = map.used_by(device).ok_or(IommuError::Unknown)?;
            if used.planned.get() || used.draining.get().is_some() || used.bank.get().is_some() {
                return Err(IommuError::Busy);
            }
            if let Err(wanted) = list_keepers(map, &[device], &mut keepers)
                && !lacking
            {
                drop(map_guard);
                drop(guard);
                lacking = keepers.try_reserve_exact(wanted).is_err();
                continue;
            }
            let lowest = super::master::lowest(&used.streams);
            let used = map.take_use(device);
            let mut left = used.as_ref().map_or(0, |used| used.entries.get());
            for number in each(left) {
                self.release(map, number);
            }
            let stays = next_mates(map, &mut left).map(|mates| {
                let spare = self.take_spare(held).map(|mut draft| {
                    let looked = self.look(map, &mates.0, &mut draft.workshop);
                    (draft, matches!(looked, Ok(Ok(()))))
                });
                (mates, left, spare)
            });
            let known = list_sharing(map, rest, &mut sharing);
            break ((tree.take(self.config.key, lowest, device), used), stays, known);
        };
        drop(gone);
        if let Some((mates, left, spare)) = stays {
            self.tidy(held, mates, left, spare, &mut |map| known = list_sharing(map, rest, &mut sharing));
        }
        keepers.into_iter().map(Withdrawn::Keeper).for_each(&mut *tell);
        sharing.into_iter().map(Withdrawn::Sharing).for_each(tell);
        if known && !lacking { Ok(()) } else { Err(IommuError::OutOfMemory) }
    }

    /// Whose stream it is: through the entry that matches it, else by the streams of devices without entries.
    pub(super) fn find_owner(&self, held: &mut Held<'_, Unlocked>, stream: StreamId) -> Option<DeviceId> {
        let id = stream.value() & self.widths.id_bits;
        {
            let map = self.map.lock(held);
            if let Some(user) = map.matching(id).and_then(|entry| entry.user) {
                let owns = |used: &&Use| used.holds(id) && !reserved::is_reserved(used.device);
                let owner = map.used_by(user).filter(owns).or_else(|| map.uses().find(owns));
                return owner.map(|used| used.device);
            }
        }
        let wanted = [Cube::point(id)];
        let mut guard = self.masters.tree.lock(held);
        let (tree, held) = guard.split();
        let map = self.map.lock(held);
        let owns = |master: &&Master| master.meets(&wanted) && map.used_by(master.device).is_some();
        tree.up_to(self.config.key, StreamId::new(id)).find(owns).map(|master| master.device)
    }
}

/// Whether `device` shares entries with one in a space of the service's own, which may make way before it is enrolled.
fn displaces(map: &StreamMap, device: DeviceId) -> bool {
    let is_own = |other: &Use| map.bank_of(other).is_some_and(Bank::is_own);
    map.used_by(device).is_some_and(|used| map.sharers(used).any(is_own))
}

fn copy(cubes: &[Cube]) -> Result<Vec<Cube>, IommuError> {
    let mut copy = Vec::new();
    copy.try_reserve_exact(cubes.len()).map_err(|_| IommuError::OutOfMemory)?;
    copy.extend_from_slice(cubes);
    Ok(copy)
}

/// Lists which of `devices` use the same entries, over any number of steps: behind the first of each such lot, each other
/// one. Says whether the list has room for as many as `devices`; without it, it stays empty.
pub(super) fn list_sharing(map: &StreamMap, devices: &[DeviceId], sharing: &mut Few<Sharing>) -> bool {
    let reach = |device: &DeviceId| map.used_by(*device).map_or(0, |used| used.reach(map));
    sharing.clear();
    if sharing.capacity() < devices.len() {
        return false;
    }
    for device in devices {
        let entries = reach(device);
        sharing.push((*device, *device));
        for other in devices.iter().take_while(|other| *other != device) {
            let lot = |sharing: &[Sharing], wanted| sharing.iter().find(|(_, one)| *one == wanted).map(|(lot, _)| *lot);
            if reach(other) & entries != 0
                && let (Some(one), Some(two)) = (lot(sharing, *other), lot(sharing, *device))
            {
                for (lot, _) in sharing.iter_mut().filter(|(lot, _)| *lot == two) {
                    *lot = one;
                }
            }
        }
    }
    sharing.retain(|(first, device)| first != device);
    true
}
