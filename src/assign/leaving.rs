//! Who is on its way in or out, and what that keeps from ending.
//!
//! # Locking
//!
//! Part of the [`Registry`]: under its lock throughout.

use alloc::sync::Arc;

use super::device::DeviceState;
use super::error::{Cause, Operation};
use super::identity::{DeviceKey, DomainId};
use super::iommu::Iommu;
use super::registry::{DeviceRecord, IommuRecord, Registry};
use crate::sync::Platform;
use crate::sync::outside::Outside;

impl<P: Platform> Registry<P> {
    // --- marks ---

    /// A removal is asked for: no call enters the device from now on.
    pub(super) fn mark(&self, record: &DeviceRecord) {
        if !record.remove_pending.replace(true) {
            self.marked.set(self.marked.get().saturating_add(1));
        }
        record.device.revoke();
    }

    /// Marks what is being added with streams on an instance that has gone: it ends as removed.
    pub(super) fn mark_arriving(&self, iommu: &Outside<Arc<dyn Iommu>>) {
        for record in self.devices().filter(|record| !record.is_shown() && record.is_on(iommu)) {
            self.mark(record);
        }
    }

    /// Marks `root` and all that stands behind it for removal.
    pub(super) fn mark_tree(&self, root: &DeviceRecord) {
        self.mark(root);
        // Children have a greater depth than their parent, whatever their key: each round goes one level down.
        for depth in 1..=u16::MAX {
            let level =
                self.devices().filter(|record| record.device.depth() == root.device.depth().saturating_add(depth));
            let mut found = false;
            for record in level {
                found = true;
                let parent = record.device.parent().and_then(|key| self.device(key));
                if parent.is_some_and(|parent| parent.remove_pending.get()) {
                    self.mark(record);
                }
            }
            if !found {
                break;
            }
        }
    }

    /// A device behind `root`, or `root` itself, that is marked and has no child left.
    pub(super) fn leaf_of(&self, root: DeviceKey) -> Option<&DeviceRecord> {
        let below = |record: &&DeviceRecord| {
            let mut at = Some(*record);
            while let Some(record) = at {
                if record.device.key() == root {
                    return true;
                }
                at = record.device.parent().and_then(|key| self.device(key));
            }
            false
        };
        self.devices().filter(|record| record.may_go() && self.claimed(record).is_none()).find(below)
    }

    /// A device that was asked to go and may, in a group that nobody has claimed.
    pub(super) fn forsaken(&self) -> Option<&DeviceRecord> {
        let forsaken = |record: &&DeviceRecord| record.may_go() && self.claimed(record).is_none();
        // Nothing is asked to go, nearly always.
        if self.marked.get() == 0 { None } else { self.devices().find(forsaken) }
    }

    // --- what something else waits for ---

    /// How many devices stand directly behind `record`, but for those that are on their way in or out.
    pub(super) fn staying_children(&self, record: &DeviceRecord) -> usize {
        self.children(record).filter(|child| child.is_shown()).count()
    }

    /// A device that is being added directly behind `record`: its add may fail.
    pub(super) fn coming_child(&self, record: &DeviceRecord) -> Option<&DeviceRecord> {
        self.children(record).find(|child| !child.is_shown())
    }

    /// The devices directly behind `record`, but for those that are on their way out.
    fn children(&self, record: &DeviceRecord) -> impl Iterator<Item = &DeviceRecord> {
        let key = Some(record.device.key()).filter(|_| record.children.get() > 0);
        let is_child =
            move |child: &&DeviceRecord| key.is_some() && child.device.parent() == key && !child.remove_pending.get();
        self.devices().filter(is_child)
    }

    /// Why `domain`, to which devices are assigned, cannot end: it is in use, or busy where all of them are on their way out.
    pub(super) fn use_of(&self, domain: DomainId) -> Cause {
        let leaving = |record: &DeviceRecord| match self.claimed(record) {
            // One that is being removed answers `Gone` already.
            _ if record.remove_pending.get() => Some(Operation::Remove),
            // What others find of an IOMMU or of a mate may be what comes after it already.
            running => running.filter(|running| matches!(running, Operation::Deassign | Operation::Reassign)),
        };
        let users = || self.devices().filter(|record| record.state.get() == DeviceState::Assigned(domain));
        let devices = users().filter(|record| leaving(record).is_none()).count();
        let mut running = Operation::Remove;
        for (record, operation) in users().filter_map(|record| Some((record, leaving(record)?))) {
            self.meet(record);
            running = operation;
        }
        if devices > 0 { Cause::InUse { devices } } else { Cause::Busy { running } }
    }

    /// Why an instance cannot be unregistered, if it cannot: it is in use, or busy where all its devices are on their way in
    /// or out. Strays go with it.
    pub(super) fn use_of_iommu(&self, record: &IommuRecord) -> Option<Cause> {
        if record.devices.get() == 0 {
            return None;
        }
        let users = self.devices().filter(|user| !user.device.is_stray() && user.is_on(&record.iommu));
        let (mut devices, mut going) = (0_usize, None);
        for user in users {
            if user.remove_pending.get() || !user.is_shown() {
                self.meet(user);
                let running = if user.is_shown() { Operation::Remove } else { Operation::Add };
                going = Some(Cause::Busy { running });
            } else {
                devices = devices.saturating_add(1);
            }
        }
        if devices > 0 { Some(Cause::InUse { devices }) } else { going }
    }
}
