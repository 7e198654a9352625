//! Groups: devices that the hardware or the bus cannot tell apart (contract I-11).
//!
//! A group that a member has left stays together while a device of it is assigned, for it has one owner; then it is split.

use std::collections::BTreeSet;

use super::{Specification, is_on, meets_cube};
use crate::op::{Guest, Side, Slot};

impl Specification {
    /// The group of a registered device.
    pub(super) fn group(&self, slot: Slot) -> BTreeSet<Slot> {
        self.groups.keys().find(|group| group.contains(&slot)).cloned().unwrap_or_default()
    }

    /// The devices that share an entry with `slot`.
    pub(super) fn sharers(&self, slot: Slot) -> BTreeSet<Slot> {
        let mut sharers = BTreeSet::new();
        for side in Side::ALL {
            for cube in self.used(slot, side) {
                sharers.extend(self.users(side, cube));
            }
        }
        for gone in self.gone.iter().filter(|gone| gone.devices.contains(&slot)) {
            sharers.extend(gone.alone(self).sharers(slot));
        }
        sharers.remove(&slot);
        sharers
    }

    /// The groups that a new device joins: those of which it cannot be told from a member by its streams or its bus, or
    /// of which a member uses an entry that captures one of its streams.
    pub(super) fn joined(&self, slot: Slot) -> BTreeSet<BTreeSet<Slot>> {
        let shares = |other: Slot| {
            let on = |side: &Side| is_on(slot, *side);
            Side::ALL
                .into_iter()
                .filter(on)
                .any(|side| self.used(other, side).into_iter().any(|cube| meets_cube(slot, side, cube)))
        };
        let joins = |group: &&BTreeSet<Slot>| group.iter().any(|other| overlap(slot, *other) || shares(*other));
        self.groups.keys().filter(joins).cloned().collect()
    }

    /// The guests that own these groups.
    pub(super) fn owners<'a>(&self, groups: impl IntoIterator<Item = &'a BTreeSet<Slot>>) -> BTreeSet<Guest> {
        groups.into_iter().flatten().filter_map(|member| self.owner(*member)).collect()
    }

    /// A new device has joined these groups.
    pub(super) fn join(&mut self, slot: Slot, groups: &BTreeSet<BTreeSet<Slot>>) {
        let mut all = BTreeSet::from([slot]);
        let mut loose = false;
        for group in groups {
            loose |= self.groups.remove(group).unwrap_or(false);
            all.extend(group);
        }
        self.groups.insert(all, loose);
    }

    /// A device has left its group.
    pub(super) fn part(&mut self, slot: Slot) {
        let mut rest = self.group(slot);
        self.groups.remove(&rest);
        rest.remove(&slot);
        if !rest.is_empty() {
            self.groups.insert(rest, true);
        }
    }

    /// The operation on it ends: a group that a member has left, and that no guest owns, is split into what belongs together.
    pub(super) fn split(&mut self, group: &BTreeSet<Slot>) {
        let is_owned = group.iter().any(|member| self.owner(*member).is_some());
        if is_owned || self.groups.get(group) != Some(&true) {
            return;
        }
        self.groups.remove(group);
        let mut rest = group.clone();
        while let Some(first) = rest.pop_first() {
            let mut part = BTreeSet::from([first]);
            let mut reached = vec![first];
            while let Some(member) = reached.pop() {
                let sharers = self.sharers(member);
                let near: BTreeSet<Slot> =
                    rest.iter().copied().filter(|other| overlap(member, *other) || sharers.contains(other)).collect();
                rest.retain(|other| !near.contains(other));
                reached.extend(&near);
                part.extend(near);
            }
            self.groups.insert(part, false);
        }
    }
}

/// Whether two devices cannot be told apart by what their sources say.
fn overlap(one: Slot, other: Slot) -> bool {
    let shares_bus = one.isolation().is_some() && one.isolation() == other.isolation();
    shares_bus || one.streams().iter().any(|(side, id, mask)| meets_cube(other, *side, (*id, *mask)))
}
