//! The stream-map entries of one instance, and who uses them: the shadow, which is the truth. What a register holds is lost
//! with the power, and on some parts reads back as something else.
//!
//! # Locking
//!
//! All of it is guarded by the instance's lock of level `StreamMap`.
//!
//! # Invariants
//!
//! 1. No two entries' cubes have an ID in common, and no two entries' written cubes (contract I-1).
//! 2. `registered` and `assigned` of an entry count pairs of joined users and their streams (contract I-12).
//! 3. `free` are the entries without a cube; `live` those that translate; `stale` those whose registers are not as they should be; `surplus` those that may
//!    capture IDs that none of their users has; `owing` those in fault whose drain is not known to be confirmed. Whoever uses one
//!    of these owes its drain (contract I-6).

use alloc::vec::Vec;

use super::cover::Cube;
use super::entry::{Entry, EntryIndex};
use super::number_set::Set;
use super::user::StreamUser;
use crate::assign::{IommuError, Resource, Streams};
use crate::few;
use crate::smmu::hardware::Registers;
use crate::smmu::hardware::part::{BankIndex, Part};
use crate::smmu::hardware::registers::S2cr;
use crate::sync::broken::broken;

/// All entries.
pub(in crate::smmu) struct Entries {
    list: Vec<Entry>,
    pub(in crate::smmu) free: Set,
    pub(in crate::smmu) live: Set,
    pub(in crate::smmu) surplus: Set,
    pub(in crate::smmu) stale: Set,
    pub(in crate::smmu) owing: Set,
    /// Changes whenever an entry is to match something else, and when a device joins or goes.
    pub(in crate::smmu) generation: u64,
    /// A stream ID is the index of its entry: there are no SMRs.
    indexed: bool,
}

impl Entries {
    /// All entries free. `None` when memory could not be reserved.
    pub(in crate::smmu) fn new(count: u8, matching: bool) -> Option<Self> {
        let mut list = Vec::new();
        list.try_reserve_exact(count.into()).ok()?;
        few::extend_within(&mut list, (0..count).map(|_| Entry::FREE));
        let empty = Set::EMPTY;
        let (free, indexed) = (Set::below(count), !matching);
        Some(Self { list, free, live: empty, surplus: empty, stale: empty, owing: empty, generation: 0, indexed })
    }

    /// Only the first `count` are there. All of them are free.
    pub(in crate::smmu) fn truncate(&mut self, count: u8) {
        self.list.truncate(count.into());
        self.free = Set::below(count);
    }

    pub(in crate::smmu) fn count(&self) -> usize {
        self.list.len()
    }

    /// An entry that exists; a free one for any other number.
    pub(in crate::smmu) fn at(&self, number: EntryIndex) -> &Entry {
        self.list.get(usize::from(number)).unwrap_or(&Entry::FREE)
    }

    fn at_mut(&mut self, number: EntryIndex) -> Option<&mut Entry> {
        self.list.get_mut(usize::from(number))
    }

    pub(in crate::smmu) fn cube(&self, number: EntryIndex) -> Option<Cube> {
        self.at(number).cube
    }

    /// The bank through which an entry translates.
    pub(in crate::smmu) fn bank_of(&self, number: EntryIndex) -> Option<BankIndex> {
        match self.at(number).action {
            S2cr::Translate(bank) => Some(bank),
            S2cr::Fault => None,
        }
    }

    /// Whether one of `set` translates.
    pub(in crate::smmu) fn streams(&self, set: Set) -> Streams {
        if (set & self.live).is_empty() { Streams::Fault } else { Streams::Live }
    }

    pub(in crate::smmu) fn each(&self) -> impl Iterator<Item = (EntryIndex, &Entry)> {
        (0..=u8::MAX).zip(&self.list)
    }

    /// Those of `set` that have an ID in common with `wanted`, and what they are to match.
    pub(in crate::smmu) fn overlapping(&self, set: Set, wanted: Cube) -> impl Iterator<Item = (EntryIndex, Cube)> {
        let overlap = move |number| self.cube(number).filter(|cube| cube.meets(wanted)).map(|cube| (number, cube));
        set.each().filter_map(overlap)
    }

    /// Of those of `set` that overlap `wanted`, the lowest cube: what does not depend on numbers.
    pub(in crate::smmu) fn lowest_overlap(&self, set: Set, wanted: Cube) -> Option<Cube> {
        self.overlapping(set, wanted).map(|(_, cube)| cube).min()
    }

    // --- what an entry is to match ---

    /// Whether `needed` entries are free.
    #[inline]
    pub(in crate::smmu) fn need_free(&self, needed: usize) -> Result<(), IommuError> {
        if needed == 0 || self.free.each().nth(needed.wrapping_sub(1)).is_some() {
            return Ok(());
        }
        let (total, free) = (self.count(), self.free.len());
        let needed = needed.saturating_sub(free);
        Err(IommuError::Exhausted { resource: Resource::StreamMapEntries, needed, free, total })
    }

    /// Takes a free entry for `cube`; no device uses it yet.
    pub(in crate::smmu) fn take(&mut self, cube: Cube) -> Option<EntryIndex> {
        let named = |id: u32| u8::try_from(id).ok().filter(|number| self.free.has(*number));
        let number = if self.indexed { named(cube.id()) } else { self.free.lowest() }?;
        self.set_cube(number, Some(cube));
        Some(number)
    }

    /// Takes a free entry for `cube`, which `user` alone has.
    pub(in crate::smmu) fn take_for(&mut self, cube: Cube, user: &StreamUser) {
        if let Some(number) = self.take(cube) {
            self.join(number, user);
        }
    }

    /// Takes the entries of `user`, whose streams no other device's overlap. `false`, and nothing has changed, where an entry may
    /// capture what its users do not have, or where entries run out.
    #[inline]
    pub(in crate::smmu) fn reserve_alone(&mut self, user: &StreamUser) -> bool {
        let cover = user.first_cover();
        let fits = self.surplus.is_empty() && self.need_free(cover.len()).is_ok();
        if fits {
            user.joined.set(true);
            cover.iter().for_each(|cube| self.take_for(*cube, user));
            self.generation = self.generation.wrapping_add(1);
        }
        fits
    }

    /// An entry that no device uses any more is to match nothing.
    pub(in crate::smmu) fn release(&mut self, number: EntryIndex) {
        if let Some(entry) = self.at_mut(number) {
            (entry.registered, entry.assigned) = (0, 0);
        }
        self.surplus.put(number, false);
        self.owing.put(number, false);
        self.set_cube(number, None);
    }

    fn set_cube(&mut self, number: EntryIndex, cube: Option<Cube>) {
        let Some(entry) = self.at_mut(number) else { return };
        entry.cube = cube;
        let stale = entry.written != cube;
        self.free.put(number, cube.is_none());
        self.stale.put(number, stale);
        self.generation = self.generation.wrapping_add(1);
    }

    /// An entry that firmware made, as its registers have it.
    pub(in crate::smmu) fn adopt(&mut self, number: EntryIndex, cube: Cube) {
        if let Some(entry) = self.at_mut(number) {
            entry.written = Some(cube);
        }
        self.set_cube(number, Some(cube));
        self.surplus.put(number, true);
    }

    // --- counts ---

    /// Counts `user` in at an entry that overlaps its streams.
    pub(in crate::smmu) fn join(&mut self, number: EntryIndex, user: &StreamUser) {
        let Some(entry) = self.at_mut(number) else { return };
        entry.registered = entry.registered.saturating_add(user.pairs_in_used(entry));
        user.use_entry(number, true);
    }

    /// Counts `user`, which goes, out of its entries, and releases those that no other uses. Returns the rest.
    pub(in crate::smmu) fn part(&mut self, user: &StreamUser) -> Set {
        user.entries.take().filter(|number| {
            let Some(entry) = self.at_mut(number) else { return false };
            entry.registered = entry.registered.saturating_sub(user.pairs_in_used(entry));
            let used = entry.registered > 0;
            if !used {
                self.release(number);
            }
            used
        })
    }

    // --- drains ---

    /// What the entries of `set` let through has left when `sync` is complete.
    pub(in crate::smmu) fn owe(&mut self, set: Set, sync: u64) {
        for number in set.each() {
            if let Some(entry) = self.at_mut(number) {
                entry.drain = sync;
                self.owing.put(number, true);
            }
        }
    }

    /// Forgets the drains that are confirmed: syncs up to `completed` are.
    #[inline]
    pub(in crate::smmu) fn settle(&mut self, completed: u64) {
        if !self.owing.is_empty() {
            self.settle_owing(completed);
        }
    }

    #[inline(never)]
    fn settle_owing(&mut self, completed: u64) {
        let owes = |number| self.at(number).drain > completed && !broken!("owed_drain_ignored");
        self.owing = self.owing.filter(|number| owes(number) && !broken!("bank_freed_before_sync"));
    }

    /// Whether no entry of `user` translates or owes a drain.
    #[inline]
    pub(in crate::smmu) fn are_quiet(&self, user: &StreamUser) -> bool {
        (user.entries.get() & (self.live | self.owing)).is_empty()
    }

    /// The sync behind which `set` owes nothing any more; `None` where it does not now.
    #[inline]
    pub(in crate::smmu) fn owed(&self, set: Set) -> Option<u64> {
        // Usually nothing is owed.
        if self.owing.is_empty() { None } else { self.last_owed(set & self.owing) }
    }

    #[inline(never)]
    fn last_owed(&self, set: Set) -> Option<u64> {
        set.each().map(|number| self.at(number).drain).max()
    }

    // --- registers ---

    /// Writes those of `wanted` whose registers are not as they should be, in fault. Says whether they hold.
    ///
    /// Everything that is to stop matching is invalidated before anything new is written: two valid entries must never match
    /// one ID (contract I-1). In between the streams fault, as before.
    pub(in crate::smmu) fn write<R: Registers>(&mut self, part: &Part<R>, wanted: Set) -> bool {
        let mut numbers = self.stale.each();
        let Some(first) = numbers.next() else { return true };
        if numbers.next().is_none() {
            return !wanted.has(first) || self.write_only(part, first);
        }
        let wanted = wanted & self.stale;
        let mut goes = wanted;
        let others = self.stale & !wanted;
        if !others.is_empty() {
            let comes = |cube: Cube| wanted.each().any(|number| self.cube(number).is_some_and(|new| new.meets(cube)));
            goes |= others.filter(|number| self.at(number).written.is_some_and(comes));
        }
        for number in goes.each() {
            let Some(entry) = self.at_mut(number) else { continue };
            let stale = entry.cube.is_some();
            if entry.written.take().is_some() {
                part.write_free_entry(number);
            }
            self.stale.put(number, stale);
        }
        let mut holds = true;
        for number in wanted.each() {
            let Some(entry) = self.at_mut(number) else { continue };
            let Some(cube) = entry.cube else { continue };
            // Where it does not hold it may match all the same: it is invalidated before it is written again.
            entry.written = Some(cube);
            let held = part.write_new_entry(number, cube);
            self.stale.put(number, !held);
            holds &= held;
        }
        holds
    }

    /// [`write`](Self::write), where no other entry is stale: mostly so.
    fn write_only<R: Registers>(&mut self, part: &Part<R>, number: EntryIndex) -> bool {
        let Some(entry) = self.at_mut(number) else { return true };
        if entry.written.take().is_some() {
            part.write_free_entry(number);
        }
        entry.written = entry.cube;
        let holds = entry.cube.is_none_or(|cube| part.write_new_entry(number, cube));
        if holds {
            self.stale = Set::EMPTY;
        }
        holds
    }

    /// Counts `user` into a space, and turns the entries that no other user has turned. Says whether they hold.
    pub(in crate::smmu) fn turn<R: Registers>(&mut self, part: &Part<R>, user: &StreamUser, bank: BankIndex) -> bool {
        let action = S2cr::Translate(bank);
        let mut holds = true;
        for number in user.entries.get().each() {
            let Some(entry) = self.at_mut(number) else { continue };
            entry.assigned = entry.assigned.saturating_add(user.pairs_in_used(entry));
            if entry.action != action {
                entry.action = action;
                holds &= part.write_action(number, action);
                self.live.put(number, true);
            }
        }
        holds
    }

    /// Counts `user` out of its space, and puts the entries in fault that no other user keeps: says whether they hold, and
    /// whether there are any, which come into `faulted`.
    pub(in crate::smmu) fn fault<R: Registers>(
        &mut self,
        part: &Part<R>,
        user: &StreamUser,
        faulted: &mut Set,
    ) -> (bool, bool) {
        let (mut holds, mut any) = (true, false);
        for number in user.entries.get().each() {
            let Some(entry) = self.at_mut(number) else { continue };
            entry.assigned = entry.assigned.saturating_sub(user.pairs_in_used(entry));
            if entry.assigned == 0 && entry.action != S2cr::Fault {
                entry.action = S2cr::Fault;
                holds &= part.write_action(number, S2cr::Fault);
                faulted.put(number, true);
                any = true;
                self.live.put(number, false);
            }
        }
        (holds, any)
    }

    /// Writes every entry that was written before the power went, and what it does. Says whether they hold.
    pub(in crate::smmu) fn replay<R: Registers>(&self, part: &Part<R>) -> bool {
        self.each().all(|(number, entry)| {
            let Some(cube) = entry.written else { return true };
            part.write_new_entry(number, cube)
                && (entry.action == S2cr::Fault || part.write_action(number, entry.action))
        })
    }
}
