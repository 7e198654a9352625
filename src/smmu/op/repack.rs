//! A smaller cover for all streams of a group, when entries run out: the only search that meets concurrency.
//!
//! What is to be covered is copied out under the lock, the search runs with nothing locked, and its result is taken where the
//! map has not changed meanwhile. It is bounded by one number of nodes for the whole operation.
//!
//! # Locking
//!
//! `StreamMap` to copy, `Masters` and `StreamMap` to apply.

use alloc::vec::Vec;

use crate::assign::{DeviceId, IommuError, Streams};
use crate::few;
use crate::smmu::hardware::Registers;
use crate::smmu::instance::Smmu;
use crate::smmu::stream::cover::{CoverError, CoverOptions, Cube, least_cover};
use crate::smmu::stream::map::Entries;
use crate::smmu::stream::number_set::Set;
use crate::smmu::stream::placing::Placing;
use crate::smmu::stream::user::{StreamUser, Users};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

impl<P: Platform, R: Registers> Smmu<P, R> {
    /// Covers the streams of the claimed devices, and of `newcomers`, with fewer entries, if these suffice: then the newcomers
    /// have all that they need.
    pub(super) fn repack(
        &self,
        held: &mut Held<'_, Unlocked>,
        newcomers: &[DeviceId],
        is_claimed: &dyn Fn(DeviceId) -> bool,
    ) -> Result<bool, IommuError> {
        let mut streams: Vec<Cube> = Vec::new();
        let mut room = 0_usize;
        // Memory is reserved with nothing locked; what has come in between is counted again.
        let (gone, generation) = loop {
            streams.clear();
            streams.try_reserve_exact(room).map_err(|_| IommuError::OutOfMemory)?;
            let shadow = self.shadow.lock(held);
            let Some(gone) = group_of(&shadow.entries, &shadow.users, newcomers, is_claimed) else { return Ok(false) };
            let all = || members(&shadow.users, newcomers, is_claimed).flat_map(|user| user.streams().iter().copied());
            room = all().count();
            if room <= streams.capacity() {
                few::extend_within(&mut streams, all());
                break (gone, shadow.entries.generation);
            }
        };
        let widths = &self.part.widths;
        let options = CoverOptions::new(widths.id_bits, widths.mask_bits);
        let cubes = match least_cover(&streams, &options) {
            Ok(cover) => cover.cubes,
            Err(CoverError::OutOfMemory) => return Err(IommuError::OutOfMemory),
            Err(_) => return Ok(false),
        };
        self.placing(held, |placing, _, _| {
            let Placing { entries, users, .. } = &*placing;
            let fits = cubes.len() <= entries.free.len().saturating_add(gone.len());
            if entries.generation != generation || !fits || group_of(entries, users, newcomers, is_claimed).is_none() {
                return Ok(false);
            }
            for &device in newcomers {
                placing.admit(users.find(device).ok_or(IommuError::Unknown)?, is_claimed)?;
            }
            placing.replace(gone, &cubes);
            Ok(true)
        })
    }
}

/// The newcomers, and the claimed devices that have entries of their own. What a lazy one had it takes anew in its next plan.
fn members<'a>(
    users: &'a Users,
    newcomers: &'a [DeviceId],
    is_claimed: &'a dyn Fn(DeviceId) -> bool,
) -> impl Iterator<Item = &'a StreamUser> {
    let stays = move |user: &&StreamUser| user.joined.get() && !user.lazy && is_claimed(user.device);
    users.each().filter(move |user| newcomers.contains(&user.device) || stays(user))
}

/// The entries that a repack may change: those of the group, if nothing of it translates and no device outside it uses one of them.
fn group_of(
    entries: &Entries,
    users: &Users,
    newcomers: &[DeviceId],
    is_claimed: &dyn Fn(DeviceId) -> bool,
) -> Option<Set> {
    let mut gone = Set::EMPTY;
    for user in members(users, newcomers, is_claimed) {
        gone |= user.entries.get();
        // What overlaps is not necessarily used yet, and is in the way of the new cover all the same.
        for stream in user.streams() {
            entries.overlapping(!entries.free, *stream).for_each(|(number, _)| gone.put(number, true));
        }
    }
    let outside = |user: &StreamUser| {
        let inside = (newcomers.contains(&user.device) || is_claimed(user.device)) && user.is_at_rest();
        !inside && !(user.entries.get() & gone).is_empty()
    };
    let usable = entries.streams(gone) == Streams::Fault && !users.each().any(outside);
    usable.then_some(gone)
}
