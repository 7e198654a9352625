//! Groups: devices that the hardware cannot tell apart, and the claims on them.
//!
//! # Locking
//!
//! Part of the [`Registry`]: under its lock throughout.
//!
//! # Invariants
//!
//! See `registry.rs`, 1 to 3.

use super::device::DeviceState;
use super::error::{Cause, Operation};
use super::identity::{DeviceKey, DomainId};
use super::iommu::Sharing;
use super::registry::{DeviceRecord, Registry};
use crate::sync::Platform;

impl<P: Platform> Registry<P> {
    /// The members of `record`'s group. A group of one costs no walk over the others.
    pub(super) fn members<'a>(&'a self, record: &'a DeviceRecord) -> impl Iterator<Item = &'a DeviceRecord> {
        let leader = record.leader.get();
        let alone = self.device(leader).is_none_or(|leader| leader.group_size.get() <= 1);
        let others = (!alone).then(|| {
            self.devices()
                .filter(move |other| other.leader.get() == leader && other.device.key() != record.device.key())
        });
        core::iter::once(record).chain(others.into_iter().flatten())
    }

    /// How many members `record`'s group has.
    pub(super) fn group_size(&self, record: &DeviceRecord) -> usize {
        self.device(record.leader.get()).map_or(1, |leader| leader.group_size.get())
    }

    /// Claims the group of `record` for `operation` (contract C-1).
    pub(super) fn claim(&self, record: &DeviceRecord, operation: Operation) -> Result<(), Cause> {
        let leader = self.device(record.leader.get()).ok_or(Cause::Gone)?;
        match leader.claim.get() {
            Some(running) => Err(Cause::Busy { running }),
            None => {
                leader.claim.set(Some(operation));
                Ok(())
            }
        }
    }

    /// Somebody has met the claim on the group of `record`, and may wait for its end.
    pub(super) fn meet(&self, record: &DeviceRecord) {
        if let Some(leader) = self.device(record.leader.get()) {
            leader.met.set(true);
        }
    }

    /// The place of `record`'s group in the order of claims (contract C-5).
    pub(super) fn position(&self, record: &DeviceRecord) -> (u16, DeviceKey) {
        let leader = record.leader.get();
        (self.device(leader).map_or(0, |leader| leader.device.depth()), leader)
    }

    /// The operation that has claimed the group of `record`.
    pub(super) fn claimed(&self, record: &DeviceRecord) -> Option<Operation> {
        self.device(record.leader.get()).and_then(|leader| leader.claim.get())
    }

    /// Whether a member has left the claimed group of `record`.
    pub(super) fn has_shrunk(&self, record: &DeviceRecord) -> bool {
        self.device(record.leader.get()).is_some_and(|leader| leader.shrunk.get())
    }

    /// Ends the claim on the group of `record`. Where members have left, what is left splits into what still meets, or
    /// is one of the pairs of `sharing`; where these are not known it stays one. Says whether somebody has met the claim.
    pub(super) fn release(&self, record: &DeviceRecord, sharing: Option<&[Sharing]>) -> bool {
        let Some(leader) = self.device(record.leader.get()) else { return false };
        let was_met = leader.met.replace(false);
        match sharing {
            Some(sharing) if leader.shrunk.replace(false) => self.regroup(leader, sharing),
            // Whoever ends a claim next splits it.
            _ => leader.claim.set(None),
        }
        was_met
    }

    /// An assigned member, and with it the domain that owns the group.
    pub(super) fn owner<'a>(&'a self, record: &'a DeviceRecord) -> Option<(&'a DeviceRecord, DomainId)> {
        self.members(record).find_map(|member| match member.state.get() {
            DeviceState::Assigned(domain) => Some((member, domain)),
            _ => None,
        })
    }

    /// Makes one group of two that are both claimed; the first one's claim stays.
    pub(super) fn merge_groups(&self, kept: &DeviceRecord, joined: &DeviceRecord) {
        let (leader, joining) = (kept.leader.get(), joined.leader.get());
        if leader == joining {
            return;
        }
        let size = self.group_size(kept).saturating_add(self.group_size(joined));
        let was_met = self.device(joining).is_some_and(|joining| joining.met.replace(false));
        for member in self.members(joined) {
            member.leader.set(leader);
            member.claim.set(None);
        }
        if let Some(leader) = self.device(leader) {
            leader.group_size.set(size);
            leader.met.set(leader.met.get() || was_met);
        }
    }

    /// Takes `leaving` out of its claimed group; the others stay one claimed group until [`release`](Self::release).
    /// Returns one of them.
    pub(super) fn leave_group<'a>(&'a self, leaving: &'a DeviceRecord) -> Option<&'a DeviceRecord> {
        let key = leaving.device.key();
        let running = self.device(leaving.leader.get()).and_then(|leader| leader.claim.get());
        let was_met = self.device(leaving.leader.get()).is_some_and(|leader| leader.met.replace(false));
        let size = self.group_size(leaving).saturating_sub(1);
        let survivor = self.members(leaving).find(|member| member.device.key() != key);
        if let Some(survivor) = survivor {
            let old = leaving.leader.get();
            let leader = if old == key { survivor.device.key() } else { old };
            for member in self.members(leaving).filter(|member| member.device.key() != key) {
                member.leader.set(leader);
            }
            if let Some(leader) = self.device(leader) {
                leader.group_size.set(size);
                leader.claim.set(running);
                leader.shrunk.set(true);
                leader.met.set(was_met);
            }
        }
        leaving.leader.set(key);
        leaving.group_size.set(1);
        leaving.shrunk.set(false);
        leaving.claim.set(running);
        leaving.met.set(was_met);
        survivor
    }

    /// Makes the groups anew in which the members of `leader`'s group meet or share, all of them unclaimed.
    fn regroup(&self, leader: &DeviceRecord, sharing: &[Sharing]) {
        for member in self.members(leader) {
            member.regrouping.set(true);
        }
        for member in self.regrouping() {
            member.leader.set(member.device.key());
            member.group_size.set(1);
            member.claim.set(None);
        }
        for one in self.regrouping() {
            for other in self.regrouping() {
                let share = sharing.contains(&(one.device.id(), other.device.id()));
                if share || one.device.meets(&other.device).is_some() {
                    self.merge_groups(one, other);
                }
            }
        }
        for member in self.devices() {
            member.regrouping.set(false);
        }
    }

    fn regrouping(&self) -> impl Iterator<Item = &DeviceRecord> {
        self.devices().filter(|record| record.regrouping.get())
    }
}
