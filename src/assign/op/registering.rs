//! The second step of an add: the key is registered, and the parent stays (contract C-2, C-18).
//!
//! # Locking
//!
//! Level `Registry`, one hold. What is refused is dropped when it has ended.

use alloc::boxed::Box;

use super::on_all_iommus::LIVE_WORK;
use crate::assign::{
    CallChain, Cause, Claim, Device, DeviceRecord, Group, Member, Nodes, Obstacle, Operation, Registry, Service,
};
use crate::sync::Platform;
use crate::sync::broken::broken;
use crate::sync::order::{Held, Unlocked};

impl<P: Platform> Service<P> {
    /// Registers the key of a device that is being added, and claims its group from birth and its parent's.
    pub(super) fn register<'a>(
        &self,
        held: &mut Held<'_, Unlocked>,
        above: CallChain<'a>,
        device: &Device,
        record: Box<DeviceRecord>,
        nodes: Nodes,
        group: Box<Group>,
    ) -> Result<Claim<'a>, Cause> {
        let mut registry = self.registry.lock(held);
        let placed = check_place(device, above).and_then(|()| registry.take_parent(device, above));
        if broken!("early_release") && registry.check_key(device, above).is_ok() {
            drop(registry);
            registry = self.registry.lock(held);
        }
        let unused = registry.unused();
        let (refused, cause) = match placed {
            Ok((depth, parent)) => {
                device.set_depth(depth);
                match registry.insert_device(record, nodes) {
                    Ok(()) => {
                        drop(registry);
                        drop(unused);
                        let mut claim = Claim::of(device.clone(), group, Operation::Add, above);
                        claim.parent = parent;
                        return Ok(claim);
                    }
                    Err(refused) => {
                        parent.into_iter().for_each(|parent| registry.give_back(parent, above));
                        (refused, Cause::busy(Operation::Add))
                    }
                }
            }
            Err(cause) => ((record, nodes), cause),
        };
        // That the key is in use is said before all else.
        let cause = registry.check_key(device, above).err().unwrap_or(cause);
        drop(registry);
        drop((unused, refused, group));
        Err(cause)
    }
}

/// Refuses a device whose source object or one of whose IOMMUs has gone, or goes.
fn check_place(device: &Device, above: CallChain<'_>) -> Result<(), Cause> {
    if device.is_orphan() {
        // Nobody looks for it any more: those that were registered before have been removed.
        return Err(Cause::SourceEnded);
    }
    device.attachments().iter().try_for_each(|at| {
        at.instance.refusal().map_or(Ok(()), |cause| {
            above.meet(Obstacle::Instance(at.instance.key));
            Err(cause)
        })
    })
}

impl<P: Platform> Registry<P> {
    /// Refuses a key that is in use. One on its way in or out is busy: it may yet become free.
    fn check_key(&self, device: &Device, above: CallChain<'_>) -> Result<(), Cause> {
        let Some(other) = self.device(device.key()) else { return Ok(()) };
        let running = match other.is_shown() {
            _ if broken!("adding_is_registered") => None,
            true if other.is_leaving() => Some(Operation::Remove),
            false => Some(Operation::Add),
            true => None,
        };
        let Some(running) = running else {
            return Err(Cause::AlreadyRegistered { by: other.device.label().clone() });
        };
        above.meet(Obstacle::Registration(other.device.id()));
        Err(Cause::busy(running))
    }

    /// Takes the group of a device's parent, so that the parent stays. Says at which depth the device will stand.
    fn take_parent(&self, device: &Device, above: CallChain<'_>) -> Result<(u16, Option<Box<Group>>), Cause> {
        let Some(key) = device.parent() else { return Ok((0, None)) };
        let parent = self.device(key).filter(|parent| !parent.is_leaving()).ok_or(Cause::ParentMissing)?;
        let group = self.take_group(parent, Operation::Add, above)?;
        if !parent.is_shown() {
            // Only an operation above can own the group of a device that is being added: its add may yet be undone.
            self.give_back(group, above);
            return Err(Cause::ParentMissing);
        }
        let ends_it = |member: &Member| member.work.get() != 0 && LIVE_WORK(member, member.work.get());
        if device.ends_with_parent() && group.member(parent.device.id()).is_some_and(ends_it) {
            // An operation above resets the parent, and has looked already for whom that would end.
            self.give_back(group, above);
            return Err(self.busy(self.leader_of(parent), above));
        }
        Ok((parent.device.depth().saturating_add(1), Some(group)))
    }
}
