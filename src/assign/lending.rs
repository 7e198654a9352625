//! Where a claimed group is taken from, and goes back to: the record of its leader, or the frame of an operation above that
//! lends its groups to what it nests (contract C-4).
//!
//! # Locking
//!
//! Under the lock of level `Registry`; a frame is reached by its own call chain only.

use alloc::boxed::Box;
use core::cell::Cell;

use super::{CallChain, Cause, DeviceRecord, Group, Groups, Obstacle, Operation, Registry};
use crate::sync::Platform;
use crate::sync::broken::broken;

/// The groups that a frame lends.
pub(super) struct Lent(pub(super) Cell<Groups>);

/// The deepest chain of callbacks that is followed: one bit each in [`Group::lenders`].
const DEEPEST: u16 = 62;

/// Takes a group out of the innermost frame that lends one that `wanted` accepts.
pub(super) fn take_lent(above: CallChain<'_>, wanted: impl Fn(&Group) -> bool) -> Option<Box<Group>> {
    above.frames().filter(|frame| frame.level <= DEEPEST).find_map(|frame| {
        let lent = frame.lent.downcast_ref::<Lent>()?;
        let mut groups = lent.0.take();
        let found = groups.take(&wanted);
        lent.0.set(groups);
        found.map(|mut group| {
            group.lenders |= 1_u64.wrapping_shl(frame.level.into());
            group
        })
    })
}

/// Puts a group into the innermost frame that lent it, or into the record of its leader.
pub(super) fn give_back_to(leader: Option<&DeviceRecord>, mut group: Box<Group>, above: CallChain<'_>) {
    let Some(level) = group.lenders.checked_ilog2() else {
        if let Some(leader) = leader {
            leader.put_group(group);
        }
        return;
    };
    group.lenders &= !1_u64.wrapping_shl(level);
    let lender = above.frames().find(|frame| u32::from(frame.level) == level);
    if let Some(lent) = lender.and_then(|frame| frame.lent.downcast_ref::<Lent>()) {
        let mut groups = lent.0.take();
        groups.push(group);
        lent.0.set(groups);
    }
}

impl<P: Platform> Registry<P> {
    /// Takes the group of `record` for an operation, out of the registry or out of a frame above.
    pub(super) fn take_group(
        &self,
        record: &DeviceRecord,
        operation: Operation,
        above: CallChain<'_>,
    ) -> Result<Box<Group>, Cause> {
        let leader = self.leader_of(record);
        if let Some(mut group) = leader.take_group() {
            leader.running.set(operation);
            group.lenders = 0;
            return Ok(group);
        }
        let id = leader.device.id();
        take_lent(above, |group| group.leader == id).ok_or_else(|| self.busy(leader, above))
    }

    /// What a call gets that comes to a claimed group. From inside a callback it waits only for a group that comes after all
    /// claims above, in the order (depth, key) of the leaders: so no circle of waits closes (contract C-5).
    pub(super) fn busy(&self, leader: &DeviceRecord, above: CallChain<'_>) -> Cause {
        let (running, wanted) = (leader.running.get(), (leader.device.depth(), leader.device.key()));
        above.meet(Obstacle::Group(wanted.1));
        let before = |group: &Group| {
            let position = group.position();
            position < Some(wanted) || (broken!("swapped_claim_order") && position != Some(wanted))
        };
        let after_all = above.frames().all(|frame| {
            let Some(lent) = frame.lent.downcast_ref::<Lent>() else { return true };
            let groups = lent.0.take();
            let after = groups.iter().all(before);
            lent.0.set(groups);
            after
        });
        if above.waits() && !after_all { Cause::WouldDeadlock { running } } else { Cause::busy(running) }
    }

    /// Puts a group where it was taken from: into a frame, or into its leader's record.
    pub(super) fn give_back(&self, group: Box<Group>, above: CallChain<'_>) {
        let leader = self.by_id(group.leader);
        give_back_to(leader, group, above);
    }
}
