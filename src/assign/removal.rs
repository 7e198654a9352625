//! Removal: refuse, cut, wait, unregister, release (contract C-8).
//!
//! A removal is a mark on the device and the claim of its group. Whoever holds the claim when it ends carries the
//! removal out: the caller of `remove`, or the operation that it met.

use super::claim::Claim;
use super::device::{Device, DeviceState};
use super::error::{Cause, Error, Left, Operation};
use super::event::Event;
use super::guarded;
use super::identity::{DeviceKey, Label};
use super::policy::HookContext;
use super::service::Service;
use super::steps::Steps;
use crate::sync::order::{Held, Unlocked};
use crate::sync::{Platform, Waiter};

/// What became of a device when the claim on its group ended.
#[derive(Debug)]
#[must_use = "the device may be gone"]
pub(super) enum Outcome {
    /// It is registered still.
    Stays,
    /// It was removed, because a removal was asked for.
    Removed(Result<(), Error>),
}

/// What `remove` did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Removal {
    /// The device is gone.
    Done,
    /// Another operation of the device's group is running: it will finish the removal when it ends, and undo itself.
    Pending,
}

impl<P: Platform> Service<P> {
    /// Removes the device that is registered under `key`, whatever its state: its DMA is cut, then it is forgotten.
    ///
    /// Removing an assigned device is legal (a surprise unplug): the domain loses it.
    /// Where a device of its group keeps a live stream-map entry that captures its streams, they reach that device's domain
    /// until the entry is in fault: a live entry is not narrowed (contract I-15).
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`]; [`Cause::HasChildren`] while devices stand behind it; [`Cause::Iommu`] with
    /// [`Left::Removed`] when the device is gone but its IOMMU has not confirmed that its last DMA drained.
    ///
    /// # Context
    ///
    /// Waiting context (a drain is polled, a hook is called). Contract C-2, C-8.
    pub fn remove(&self, key: DeviceKey) -> Result<Removal, Error> {
        let mut held = Held::enter();
        let result = self.remove_in(&mut held, key);
        self.report(&result);
        result
    }

    /// [`remove`](Self::remove), and waits until the device is gone where another operation finishes the removal.
    ///
    /// # Errors
    ///
    /// As for [`remove`](Self::remove), and [`Cause::TimedOut`]: the removal stays asked for.
    ///
    /// # Context
    ///
    /// Waiting context; see [`wait`](Self::wait).
    pub fn remove_and_wait(&self, key: DeviceKey, deadline: Option<P::Deadline>) -> Result<(), Error>
    where
        P: Waiter,
    {
        let Some(going) = self.find(key) else { return self.remove(key).map(drop) };
        match self.remove(key) {
            // Not found any more: someone else's removal got there first.
            Ok(Removal::Done) | Err(Error { cause: Cause::NotFound, .. }) => return Ok(()),
            Ok(Removal::Pending) => {}
            Err(error) => return Err(error),
        }
        // The mark stands: asking again could only hit a device that was registered under the key since (contract C-7).
        loop {
            let ticket = P::prepare();
            if self.find(key).is_none_or(|info| info.device.id() != going.device.id()) {
                return Ok(());
            }
            if P::wait(ticket, deadline).is_err() {
                let cause = Cause::TimedOut { running: Operation::Remove };
                return Err(Error::unchanged(Operation::Remove, going.device.label().clone(), cause));
            }
        }
    }

    /// Removes the device that is registered under `key` and everything that stands behind it, children first.
    ///
    /// From the call on, no child can be added anywhere in the tree.
    ///
    /// # Errors
    ///
    /// As for [`remove`](Self::remove), but for children. What fails for one device does not keep the others: the first
    /// failure is told.
    ///
    /// # Context
    ///
    /// Waiting context. Contract C-5.
    pub fn remove_tree(&self, key: DeviceKey) -> Result<Removal, Error> {
        let mut held = Held::enter();
        let result = self.remove_tree_in(&mut held, key);
        self.report(&result);
        result
    }

    fn remove_tree_in(&self, held: &mut Held<'_, Unlocked>, key: DeviceKey) -> Result<Removal, Error> {
        // As in `remove_in`: made before the lock is taken, and dropped when it is free.
        let unknown = Label::from(alloc::format!("{key}").as_str());
        {
            let registry = self.registry.lock(held);
            let Some(root) = registry.device(key) else {
                return Err(Error::unchanged(Operation::Remove, unknown, Cause::NotFound));
            };
            registry.mark_tree(root);
        }
        let mut result = Ok(Removal::Done);
        loop {
            let claim = {
                let registry = self.registry.lock(held);
                // What is claimed is left to who has claimed it: it sees the mark, and goes on upwards.
                let Some(leaf) = registry.leaf_of(key) else { break };
                if registry.claim(leaf, Operation::Remove).is_err() {
                    break;
                }
                Claim { device: leaf.device.clone() }
            };
            if let Outcome::Removed(Err(error)) = self.conclude(held, claim)
                && result.is_ok()
            {
                result = Err(error);
            }
        }
        let registry = self.registry.lock(held);
        if result.is_ok() && registry.device(key).is_some() { Ok(Removal::Pending) } else { result }
    }

    fn remove_in(&self, held: &mut Held<'_, Unlocked>, key: DeviceKey) -> Result<Removal, Error> {
        // The subject of an error about a key that is not known; made before the lock is taken.
        let unknown = Label::from(alloc::format!("{key}").as_str());
        let claim = {
            let registry = self.registry.lock(held);
            let Some(record) = registry.device(key) else {
                return Err(Error::unchanged(Operation::Remove, unknown, Cause::NotFound));
            };
            let children = registry.staying_children(record);
            if children > 0 {
                let label = record.device.label().clone();
                return Err(Error::unchanged(Operation::Remove, label, Cause::HasChildren { children }));
            }
            record.mark();
            if record.children.get() > 0 {
                // They are all on their way out: whoever removes the last of them goes on with this one.
                return Ok(Removal::Pending);
            }
            if registry.claim(record, Operation::Remove).is_err() {
                #[cfg(broken = "dropped_mark")]
                record.remove_pending.set(false);
                return Ok(Removal::Pending);
            }
            Claim { device: record.device.clone() }
        };
        match self.conclude(held, claim) {
            Outcome::Removed(result) => result.map(|()| Removal::Done),
            // The mark was set under the claim, so that `conclude` has removed the device; were it not so, it stays
            // marked and whoever claims its group next removes it.
            Outcome::Stays => Ok(Removal::Pending),
        }
    }

    /// Cuts, forgets and releases a device whose group the caller has claimed. Returns a member that is left, and how
    /// it went.
    pub(super) fn unregister(
        &self,
        held: &mut Held<'_, Unlocked>,
        device: &Device,
    ) -> (Option<Device>, Result<(), Error>) {
        let mut failed = None;
        match Steps::of(core::slice::from_ref(device)) {
            Ok(steps) => {
                failed = steps.block(held).1.or(failed);
                failed = steps.withdraw(held).or(failed);
            }
            Err(cause) => failed = Some(cause),
        }
        let (survivor, was_added, record) = {
            let mut registry = self.registry.lock(held);
            let mut was_added = false;
            let survivor = registry.registration(device).and_then(|record| {
                was_added = record.state.get() != DeviceState::Adding;
                registry.set_state(record, DeviceState::Blocked);
                registry.leave_group(record).map(|member| member.device.clone())
            });
            (survivor, was_added, registry.take_device(device.key()))
        };
        // A device whose add failed was never the source's to release, nor anyone's to hear of.
        if was_added {
            let hooks = device.hooks().call(held);
            guarded::told(|| hooks.release(&HookContext { device }));
            self.tell(held, &Event::Removed { device: device.label().clone() });
        }
        drop(record);
        let result = failed.map_or(Ok(()), |cause| {
            Err(Error { operation: Operation::Remove, subject: device.label().clone(), cause, left: Left::Removed })
        });
        (survivor, result)
    }
}
