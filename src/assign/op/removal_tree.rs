//! Removal of a device with all that stands behind it, children first (contract C-5, C-8).
//!
//! All of the tree is marked in one hold, so that no child comes in any more. Then leaf after leaf is removed as
//! [`removal`](super::removal) does it; when the last child of a device goes, its own removal follows.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::removal::{Removal, done};
use crate::assign::{
    CallChain, Cause, Device, DeviceRecord, Error, Group, Marked, Operation, Registry, Service, Target,
};
use crate::few;
use crate::sync::Platform;
use crate::sync::broken::broken;
use crate::sync::order::{Held, Unlocked};

impl<P: Platform> Service<P> {
    /// Removes a device and everything that stands behind it, children first. The device is named by its handle or by its
    /// key ([`Target`]).
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
    pub fn remove_tree(&self, device: impl Into<Target>) -> Result<Removal, Error> {
        self.remove_tree_within(CallChain::NONE, &device.into())
    }

    pub(in crate::assign) fn remove_tree_within(
        &self,
        above: CallChain<'_>,
        target: &Target,
    ) -> Result<Removal, Error> {
        let mut result = Ok(Vec::new());
        let is_gone =
            self.remove_tree_in(&mut Held::enter(), above, target, &mut |_, removed| match (removed, &mut result) {
                (Ok(Removal::StillReachable(names)), Ok(all)) => {
                    // Without memory they are not named.
                    let _ = few::extend(all, names);
                }
                (Err(error), Ok(_)) => result = Err(error),
                _ => {}
            });
        let names: Result<Vec<_>, Error> = result;
        Error::reported(is_gone.and_then(|is_gone| {
            let names = names?;
            if is_gone { Ok(done(names)) } else { Ok(Removal::Pending) }
        }))
    }

    /// [`remove_tree`](Self::remove_tree), which tells what became of each device, children first. Of one that is not told of
    /// another operation has the group: it goes when that ends.
    pub(crate) fn remove_tree_telling(
        &self,
        device: &Device,
        tell: &mut dyn FnMut(&Device, Result<Removal, Error>),
    ) -> Result<(), Error> {
        self.remove_tree_in(&mut Held::enter(), CallChain::NONE, &device.into(), tell).map(drop)
    }

    /// Says whether the whole tree is gone.
    fn remove_tree_in(
        &self,
        held: &mut Held<'_, Unlocked>,
        above: CallChain<'_>,
        target: &Target,
        tell: &mut dyn FnMut(&Device, Result<Removal, Error>),
    ) -> Result<bool, Error> {
        let root = {
            let registry = self.registry.lock(held);
            let root = registry.target(target);
            let root = root.ok_or_else(|| Error::unchanged(Operation::Remove, target.label(), Cause::NotFound))?;
            registry.mark_tree(root);
            root.device.clone()
        };
        loop {
            let group = {
                let registry = self.registry.lock(held);
                let leaf = registry.registration(&root).and_then(|root| registry.doomed_leaf(root));
                leaf.and_then(|leaf| registry.take_doomed(leaf))
            };
            let Some(group) = group else { break };
            // When the last child goes its parent follows: the whole tree can go with any leaf.
            self.carry_out(held, Marked::of(group), above, &mut |device, outcome| tell(device, outcome.result()));
        }
        Ok(self.registry.lock(held).registration(&root).is_none())
    }
}

impl<P: Platform> Registry<P> {
    /// Takes the group of a marked device, to remove it.
    fn take_doomed(&self, record: &DeviceRecord) -> Option<Box<Group>> {
        let mut group = self.take_group(record, Operation::Remove, CallChain::NONE).ok()?;
        group.doomed = Some(record.device.id());
        Some(group)
    }

    /// Marks `root` and all that stands behind it.
    fn mark_tree(&self, root: &DeviceRecord) {
        let mut at = root;
        loop {
            self.mark(at);
            match self.next_below(root, at) {
                Some(next) if !broken!("child_left_behind") => at = next,
                _ => return,
            }
        }
    }

    /// A marked device in the tree of `root` that has no child and whose group is not claimed.
    fn doomed_leaf<'a>(&'a self, root: &'a DeviceRecord) -> Option<&'a DeviceRecord> {
        let mut at = root;
        loop {
            if at.may_go() && !self.leader_of(at).is_out() {
                return Some(at);
            }
            at = self.next_below(root, at)?;
        }
    }

    /// The record after `at` in the tree of `root`: its first child, else the next one beside it or beside one above it.
    fn next_below<'a>(&'a self, root: &DeviceRecord, at: &'a DeviceRecord) -> Option<&'a DeviceRecord> {
        if let Some(child) = self.child(at.device.key(), None) {
            return Some(child);
        }
        let mut at = at;
        while at.device.id() != root.device.id() {
            let parent = at.device.parent()?;
            if let Some(next) = self.child(parent, Some(at.device.key())) {
                return Some(next);
            }
            at = self.device(parent)?;
        }
        None
    }
}
