//! Taking entries for a device, giving them back, and refitting those that stay.
//!
//! Reserving is one hold of the tree and of the map: an entry that is found free in it is taken in it. Every result is exact,
//! and none needs a search: what an entry captures already is subtracted, and the rest is disjoint cubes.
//!
//! # Locking
//!
//! The caller holds `Masters` and `StreamMap`.

use core::cell::Cell;

use smallvec::SmallVec;

use super::cover::Cube;
use super::entry::EntryIndex;
use super::map::Entries;
use super::masters::{Tree, is_reserved};
use super::number_set::Set;
use super::user::{StreamUser, Users};
use crate::assign::{DeviceId, IommuError, IommuKey, Streams};
use crate::few;
use crate::sync::broken::broken;

/// In place, for refits alone: an entry that falls into more of them stays as it is.
type Pieces = SmallVec<[Cube; 128]>;

/// The tree and one instance's map, both locked.
pub(in crate::smmu) struct Placing<'a> {
    pub(in crate::smmu) tree: &'a Tree,
    pub(in crate::smmu) iommu: IommuKey,
    pub(in crate::smmu) entries: &'a mut Entries,
    pub(in crate::smmu) users: &'a Users,
}

impl Placing<'_> {
    /// Calls `visit` for each joined user that has a stream in `wanted`, once for each such stream, as long as it says so.
    fn each_user(&self, wanted: Cube, visit: &mut dyn FnMut(&StreamUser) -> bool) -> bool {
        self.tree.each_overlap(self.iommu, wanted, &mut |device| self.users.joined(device).is_none_or(&mut *visit))
    }

    /// Lets a device share the entries that overlap its streams and takes free ones for the rest of them; a lazy one only
    /// with `own`. Nothing has changed on an error. Says whether one of its entries translates.
    pub(in crate::smmu) fn reserve(
        &mut self,
        user: &StreamUser,
        is_claimed: &dyn Fn(DeviceId) -> bool,
        own: bool,
    ) -> Result<Streams, IommuError> {
        if user.joined.get() && !own {
            return Err(IommuError::Busy);
        }
        let cover = if own { user.cover() } else { user.first_cover() };
        let (near, alone) = self.judge(user, is_claimed)?;
        let mut needed = 0_usize;
        cover.iter().for_each(|cube| self.beside(near, *cube, &mut |_, _| needed = needed.saturating_add(1)));
        self.entries.need_free(needed)?;
        user.joined.set(true);
        if !near.is_empty() {
            for number in (near & !user.entries.get()).each() {
                self.entries.join(number, user);
            }
        }
        self.entries.generation = self.entries.generation.wrapping_add(1);
        for cube in cover {
            self.beside(near, *cube, &mut |placing, piece| {
                if alone {
                    placing.entries.take_for(piece, user);
                } else {
                    placing.place(piece);
                }
            });
        }
        Ok(self.entries.streams(near))
    }

    /// Calls `found` with disjoint cubes, together exactly what of `cube` the entries `near` do not capture.
    #[inline]
    fn beside(&mut self, near: Set, cube: Cube, found: &mut impl FnMut(&mut Self, Cube)) {
        if near.is_empty() {
            found(self, cube);
        } else {
            uncovered(self, cube, &|placing, piece| placing.entries.lowest_overlap(near, piece), found);
        }
    }

    /// The entries that overlap the streams of `user`, if all of their users are claimed; and whether no other user's streams
    /// do.
    ///
    /// This is the judge of who shares entries: it runs in the hold that takes them (contract I-11).
    fn judge(&self, user: &StreamUser, is_claimed: &dyn Fn(DeviceId) -> bool) -> Result<(Set, bool), IommuError> {
        let foreign = Cell::new(None);
        let check = |device: DeviceId| {
            let may_share = device == user.device || is_reserved(device) || is_claimed(device);
            if !may_share && !broken!("reserve_without_judge") {
                foreign.set(foreign.get().or(Some(device)));
            }
            foreign.get().is_none()
        };
        let (mut around, mut near, mut alone) = (self.entries.surplus | user.entries.get(), Set::EMPTY, true);
        for stream in user.streams() {
            self.tree.each_overlap(self.iommu, *stream, &mut |device| {
                match self.users.find(device) {
                    // It has not reserved yet, and will ask about this one.
                    Some(other) if device == user.device || !other.joined.get() => return true,
                    Some(other) => around |= other.entries.get(),
                    // A user of an instance of this name that has gone: it uses no entry here.
                    None => {}
                }
                alone = false;
                check(device)
            });
        }
        for stream in user.streams().iter().filter(|_| !around.is_empty()) {
            for (number, cube) in self.entries.overlapping(around, *stream) {
                near.put(number, true);
                // Where the entry captures no more than this stream, all of its users were asked about above.
                if !stream.contains(cube) {
                    self.each_user(cube, &mut |other| !other.entries.has(number) || check(other.device));
                }
            }
        }
        foreign.get().map_or(Ok((near, alone)), |device| Err(IommuError::Foreign(device)))
    }

    /// Takes an entry for IDs that no entry captures, with all joined users whose streams overlap them.
    fn place(&mut self, piece: Cube) -> Option<EntryIndex> {
        let number = self.entries.take(piece)?;
        // A user with several streams in it is met several times, and counted with all of them once.
        self.tree.each_overlap(self.iommu, piece, &mut |device| {
            if let Some(user) = self.users.joined(device).filter(|user| !user.entries.has(number)) {
                self.entries.join(number, user);
            }
            true
        });
        Some(number)
    }

    /// Lets a device join whose entries are about to be taken by [`replace`](Self::replace), in the same hold.
    pub(in crate::smmu) fn admit(
        &self,
        user: &StreamUser,
        is_claimed: &dyn Fn(DeviceId) -> bool,
    ) -> Result<(), IommuError> {
        self.judge(user, is_claimed)?;
        user.joined.set(true);
        user.repacked.set(true);
        Ok(())
    }

    /// Counts a device that is gone from the tree and from the users out of its entries. Returns the entries that are to be
    /// written, and whether one that it used translates still.
    pub(in crate::smmu) fn part(&mut self, user: &StreamUser) -> (Set, Streams) {
        let used = user.entries.get();
        let rest = self.entries.part(user);
        self.entries.generation = self.entries.generation.wrapping_add(1);
        if rest.is_empty() {
            // What no device uses is in fault.
            return (used, Streams::Fault);
        }
        self.entries.surplus |= rest;
        let changed = rest.each().fold(used, |changed, number| changed | self.refit(number));
        (changed, self.entries.streams(rest))
    }

    /// Fits an entry that may capture more than its users have to what they have, where it is in fault: each has its own cubes
    /// of it then, as if it were reserved anew. Returns the entries that are to be written.
    ///
    /// Where entries do not suffice it stays as it was, and a newcomer with such an ID shares it (contract I-15).
    pub(in crate::smmu) fn refit(&mut self, number: EntryIndex) -> Set {
        if broken!("refit_left_out") {
            self.entries.surplus.put(number, false);
            return Set::EMPTY;
        }
        let Some(cube) = self.entries.cube(number) else { return Set::EMPTY };
        let mut pieces = Pieces::new();
        let mut fits = true;
        let in_parts = self.each_user(cube, &mut |user| {
            for part in user.cover().iter().filter_map(|own| own.intersection(cube)) {
                uncovered(&mut pieces, part, &lowest, &mut |pieces, piece| fits &= few::put(pieces, piece));
            }
            !user.cover().iter().any(|own| own.contains(cube))
        });
        if !in_parts {
            self.entries.surplus.put(number, false);
        } else if self.entries.live.has(number) {
            // It is fitted when it goes to fault.
        } else if !fits || pieces.len() > self.entries.free.len().saturating_add(1) {
            let size = pieces.iter().map(|piece| piece.size()).fold(0, u64::saturating_add);
            self.entries.surplus.put(number, !fits || size != cube.size());
        } else {
            return self.replace(Set::one(number), &pieces);
        }
        Set::EMPTY
    }

    /// Gives entries back, all of which are in fault, and takes others for the same IDs or fewer. There are enough.
    /// Returns the entries that are to be written.
    pub(in crate::smmu) fn replace(&mut self, gone: Set, cubes: &[Cube]) -> Set {
        let owed = self.entries.owed(gone);
        for number in gone.each() {
            let Some(cube) = self.entries.cube(number) else { continue };
            self.each_user(cube, &mut |user| {
                user.use_entry(number, false);
                true
            });
            self.entries.release(number);
        }
        let taken = cubes.iter().filter_map(|cube| self.place(*cube));
        let taken = taken.fold(Set::EMPTY, |taken, number| taken | Set::one(number));
        // What the old ones let through, the new ones' users had in flight.
        if let Some(sync) = owed {
            self.entries.owe(taken, sync);
        }
        gone | taken
    }

    /// Gives back the unwritten entries of a device that is at rest, where all their users are lazy and at rest too.
    pub(in crate::smmu) fn unplace(&mut self, user: &StreamUser) {
        let needs_none = |user: &StreamUser| user.lazy && user.is_at_rest();
        for number in (user.entries.get() & self.entries.stale).each().filter(|_| needs_none(user)) {
            let entry = self.entries.at(number);
            let unwritten = entry.cube.filter(|_| entry.written.is_none());
            if unwritten.is_some_and(|cube| self.each_user(cube, &mut |user| needs_none(user))) {
                self.replace(Set::one(number), &[]);
            }
        }
    }
}

/// The lowest of the pieces that overlaps `wanted`.
fn lowest(pieces: &Pieces, wanted: Cube) -> Option<Cube> {
    pieces.iter().copied().filter(|piece| piece.meets(wanted)).min()
}

/// Calls `found` with disjoint cubes, together exactly what of `cube` no other captures. `overlap` names one that overlaps; a
/// piece that was found may be one from then on.
///
/// A piece ignores fewer bits than what it was cut from, so that this nests at most as deep as an ID has bits.
fn uncovered<T>(
    on: &mut T,
    cube: Cube,
    overlap: &impl Fn(&T, Cube) -> Option<Cube>,
    found: &mut impl FnMut(&mut T, Cube),
) {
    match overlap(on, cube) {
        None => found(on, cube),
        Some(other) => cube.minus(other).for_each(|piece| uncovered(on, piece, overlap, found)),
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn what_no_entry_captures_is_cut_exactly() {
        let cubes: Vec<Cube> = (0..32)
            .flat_map(|mask| (0..32).filter(move |id| id & mask == 0).map(move |id| Cube::new(id, mask)))
            .collect();
        for (seed, &cube) in (0..).zip(&cubes) {
            let mut others = Pieces::new();
            for step in 0..5 {
                let Some(&other) = cubes.get((seed * 31 + step * 47) % cubes.len()) else { continue };
                if lowest(&others, other).is_none() {
                    others.push(other);
                }
            }
            let mut pieces = Vec::new();
            uncovered(&mut others, cube, &lowest, &mut |_, piece| pieces.push(piece));
            for id in 0..32 {
                let times = pieces.iter().filter(|piece| piece.holds(id)).count();
                let wanted = cube.holds(id) && !others.iter().any(|other| other.holds(id));
                assert_eq!(times, usize::from(wanted), "{cube} without {others:?} at {id}");
            }
        }
    }
}
