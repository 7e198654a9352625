//! Who is registered: devices of every source by key, domains, IOMMU instances. It knows no stream.
//!
//! # Locking
//!
//! All of it stands behind the one lock of level `Registry`. Records are owned by the trees and reached only through
//! `&Registry`, so that their cells are guarded by that lock too; what leaves the lock is a clone of a handle.
//! Nothing is allocated or freed under the lock: nodes come in ready-made and go out whole (contract A-8).
//!
//! # Invariants
//!
//! 1. All members of a group name the same `leader`, which is one of them.
//! 2. A group's claim and size stand in its leader's record. Whoever holds it is the only one who changes the group's
//!    membership or the state of a member.
//! 3. All assigned members of a group are assigned to one domain (contract I-11).
//! 4. `DomainRecord::assigned` counts the devices in state `Assigned` to it, `DeviceRecord::children` those that name
//!    it as parent, `IommuRecord::devices` those with a stream on it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::cell::Cell;

use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeLink, intrusive_adapter};

use super::claim::Sharing;
use super::device::{Device, DeviceInfo, DeviceState};
use super::domain::Domain;
use super::error::{Cause, Operation};
use super::identity::{DeviceKey, DomainId};
use super::iommu::Iommu;
use super::spec::IommuKey;
use crate::sync::Platform;
use crate::sync::outside::Outside;

/// A device's registration.
pub(super) struct DeviceRecord {
    link: RBTreeLink,
    pub(super) device: Device,
    pub(super) state: Cell<DeviceState>,
    /// The member in whose record the group's own data stand.
    pub(super) leader: Cell<DeviceKey>,
    /// Of a leader: how many members the group has.
    group_size: Cell<usize>,
    /// Of a leader: the operation that has claimed the group.
    claim: Cell<Option<Operation>>,
    /// Of a leader: a member has left since the claim began.
    shrunk: Cell<bool>,
    /// Set only while a group is being split, within one hold of the lock.
    regrouping: Cell<bool>,
    /// A removal was asked for while the group was claimed by another operation (contract C-2).
    pub(super) remove_pending: Cell<bool>,
    pub(super) children: Cell<usize>,
}

/// A domain's registration.
pub(super) struct DomainRecord<P: Platform> {
    link: RBTreeLink,
    pub(super) domain: Domain<P>,
    /// Devices assigned to it.
    pub(super) assigned: Cell<usize>,
    /// Operations that are about to change that: shared holds (contract C-1).
    pub(super) holds: Cell<usize>,
    /// It is being destroyed: the exclusive hold.
    pub(super) destroying: Cell<bool>,
}

/// An IOMMU instance's registration.
pub(super) struct IommuRecord {
    link: RBTreeLink,
    key: IommuKey,
    pub(super) iommu: Outside<Arc<dyn Iommu>>,
    /// Devices registered with streams on it.
    pub(super) devices: Cell<usize>,
    /// It is being taken out of service: the exclusive hold. No device is added with streams on it.
    pub(super) leaving: Cell<bool>,
}

intrusive_adapter!(ByDevice = Box<DeviceRecord>: DeviceRecord { link => RBTreeLink });
intrusive_adapter!(ByDomain<P> = Box<DomainRecord<P>>: DomainRecord<P> { link => RBTreeLink } where P: Platform);
intrusive_adapter!(ByIommu = Box<IommuRecord>: IommuRecord { link => RBTreeLink });

impl<'a> KeyAdapter<'a> for ByDevice {
    type Key = DeviceKey;

    fn get_key(&self, record: &'a DeviceRecord) -> DeviceKey {
        record.device.key()
    }
}

impl<'a, P: Platform> KeyAdapter<'a> for ByDomain<P> {
    type Key = DomainId;

    fn get_key(&self, record: &'a DomainRecord<P>) -> DomainId {
        record.domain.id()
    }
}

impl<'a> KeyAdapter<'a> for ByIommu {
    type Key = IommuKey;

    fn get_key(&self, record: &'a IommuRecord) -> IommuKey {
        record.key
    }
}

impl<P: Platform> DomainRecord<P> {
    pub(super) fn new(domain: Domain<P>) -> Box<Self> {
        Box::new(Self {
            link: RBTreeLink::new(),
            domain,
            assigned: Cell::new(0),
            holds: Cell::new(0),
            destroying: Cell::new(false),
        })
    }
}

impl IommuRecord {
    pub(super) fn new(iommu: Arc<dyn Iommu>) -> Box<Self> {
        let key = iommu.key();
        Box::new(Self {
            link: RBTreeLink::new(),
            key,
            iommu: Outside::new(iommu),
            devices: Cell::new(0),
            leaving: Cell::new(false),
        })
    }
}

impl DeviceRecord {
    fn is_shown(&self) -> bool {
        self.state.get() != DeviceState::Adding
    }

    /// A removal is asked for: no call enters the device from now on.
    pub(super) fn mark(&self) {
        self.remove_pending.set(true);
        self.device.revoke();
    }

    /// A removal was asked for, and no child stands in its way.
    pub(super) fn may_go(&self) -> bool {
        self.remove_pending.get() && self.children.get() == 0
    }

    /// A registration that is being added, in a group of its own which the adding operation has claimed.
    pub(super) fn adding(device: Device) -> Box<Self> {
        let key = device.key();
        Box::new(Self {
            link: RBTreeLink::new(),
            device,
            state: Cell::new(DeviceState::Adding),
            leader: Cell::new(key),
            group_size: Cell::new(1),
            shrunk: Cell::new(false),
            regrouping: Cell::new(false),
            claim: Cell::new(Some(Operation::Add)),
            remove_pending: Cell::new(false),
            children: Cell::new(0),
        })
    }
}

/// The registered things.
pub(super) struct Registry<P: Platform> {
    devices: RBTree<ByDevice>,
    domains: RBTree<ByDomain<P>>,
    iommus: RBTree<ByIommu>,
    /// Changes with every registration and unregistration (contract C-6).
    pub(super) generation: u64,
}

impl<P: Platform> Registry<P> {
    pub(super) const fn new() -> Self {
        Self {
            devices: RBTree::new(ByDevice::NEW),
            domains: RBTree::new(ByDomain::NEW),
            iommus: RBTree::new(ByIommu::NEW),
            generation: 0,
        }
    }

    // --- devices ---

    pub(super) fn device(&self, key: DeviceKey) -> Option<&DeviceRecord> {
        self.devices.find(&key).get()
    }

    /// The record of this very registration, not of a later one under the same key (contract C-7).
    pub(super) fn registration(&self, device: &Device) -> Option<&DeviceRecord> {
        self.device(device.key()).filter(|record| record.device.id() == device.id())
    }

    pub(super) fn insert_device(&mut self, record: Box<DeviceRecord>) {
        if let Some(parent) = record.device.parent().and_then(|key| self.device(key)) {
            parent.children.set(parent.children.get().saturating_add(1));
        }
        for attachment in record.device.attachments() {
            if let Some(iommu) = self.iommu(attachment.key) {
                iommu.devices.set(iommu.devices.get().saturating_add(1));
            }
        }
        self.devices.insert(record);
        self.generation = self.generation.wrapping_add(1);
    }

    /// Takes a device that left its group out of the tree. The caller drops the record when the lock is free.
    pub(super) fn take_device(&mut self, key: DeviceKey) -> Option<Box<DeviceRecord>> {
        let record = self.devices.find_mut(&key).remove()?;
        if let Some(parent) = record.device.parent().and_then(|key| self.device(key)) {
            parent.children.set(parent.children.get().saturating_sub(1));
        }
        for attachment in record.device.attachments() {
            if let Some(iommu) = self.iommu(attachment.key) {
                iommu.devices.set(iommu.devices.get().saturating_sub(1));
            }
        }
        self.generation = self.generation.wrapping_add(1);
        Some(record)
    }

    /// A device as look-ups show it: not before its add has come to an end (contract C-15).
    pub(super) fn shown(&self, key: DeviceKey) -> Option<DeviceInfo> {
        self.device(key).filter(|record| record.is_shown()).map(|record| self.info(record))
    }

    /// The first device whose key is above `after`, as a traversal shows it.
    pub(super) fn next_device(&self, after: Option<DeviceKey>) -> Option<DeviceInfo> {
        let bound = after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut cursor = self.devices.lower_bound(bound);
        loop {
            let record = cursor.get()?;
            if record.is_shown() {
                return Some(self.info(record));
            }
            cursor.move_next();
        }
    }

    /// How many devices stand directly behind `record`, but for those that are on their way out.
    pub(super) fn staying_children(&self, record: &DeviceRecord) -> usize {
        if record.children.get() == 0 {
            return 0;
        }
        let key = Some(record.device.key());
        self.devices.iter().filter(|child| child.device.parent() == key && !child.remove_pending.get()).count()
    }

    /// How many devices are assigned to `domain`, but for those that are on their way out.
    pub(super) fn users(&self, domain: DomainId) -> usize {
        let stays = |record: &&DeviceRecord| {
            record.state.get() == DeviceState::Assigned(domain) && !record.remove_pending.get()
        };
        self.devices.iter().filter(stays).count()
    }

    pub(super) fn devices(&self) -> impl Iterator<Item = &DeviceRecord> {
        self.devices.iter()
    }

    pub(super) fn device_by_id(&self, id: super::DeviceId) -> Option<&DeviceRecord> {
        self.devices.iter().find(|record| record.device.id() == id)
    }

    fn info(&self, record: &DeviceRecord) -> DeviceInfo {
        let state = record.state.get();
        let domain = match state {
            DeviceState::Assigned(id) => self.domain(id).map(|record| record.domain.label().clone()),
            _ => None,
        };
        DeviceInfo { device: record.device.clone(), state, group: record.leader.get(), domain }
    }

    /// Moves a device to `state` and keeps the domains' counts.
    pub(super) fn set_state(&self, record: &DeviceRecord, state: DeviceState) {
        let before = record.state.replace(state);
        if let DeviceState::Assigned(id) = before
            && let Some(domain) = self.domain(id)
        {
            domain.assigned.set(domain.assigned.get().saturating_sub(1));
        }
        if let DeviceState::Assigned(id) = state
            && let Some(domain) = self.domain(id)
        {
            domain.assigned.set(domain.assigned.get().saturating_add(1));
        }
    }

    /// Marks `root` and all that stands behind it for removal.
    pub(super) fn mark_tree(&self, root: &DeviceRecord) {
        root.mark();
        // Children have a greater depth than their parent, whatever their key: each round goes one level down.
        for depth in 1..=u16::MAX {
            let level =
                self.devices.iter().filter(|record| record.device.depth() == root.device.depth().saturating_add(depth));
            let mut found = false;
            for record in level {
                found = true;
                let parent = record.device.parent().and_then(|key| self.device(key));
                if parent.is_some_and(|parent| parent.remove_pending.get()) {
                    record.mark();
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
        self.devices.iter().filter(|record| record.may_go() && self.claimed(record).is_none()).find(below)
    }

    // --- groups ---

    /// The members of `record`'s group. A group of one costs no walk over the others.
    pub(super) fn members<'a>(&'a self, record: &'a DeviceRecord) -> impl Iterator<Item = &'a DeviceRecord> {
        let leader = record.leader.get();
        let alone = self.device(leader).is_none_or(|leader| leader.group_size.get() <= 1);
        let others = (!alone).then(|| {
            self.devices
                .iter()
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

    /// The operation that has claimed the group of `record`.
    pub(super) fn claimed(&self, record: &DeviceRecord) -> Option<Operation> {
        self.device(record.leader.get()).and_then(|leader| leader.claim.get())
    }

    /// Whether a member has left the claimed group of `record`.
    pub(super) fn has_shrunk(&self, record: &DeviceRecord) -> bool {
        self.device(record.leader.get()).is_some_and(|leader| leader.shrunk.get())
    }

    /// Ends the claim on the group of `record`. Where members have left, what is left splits into what still meets, or
    /// is one of the pairs of `sharing`.
    pub(super) fn release(&self, record: &DeviceRecord, sharing: &[Sharing]) {
        let Some(leader) = self.device(record.leader.get()) else { return };
        if leader.shrunk.replace(false) {
            self.regroup(leader, sharing);
        } else {
            leader.claim.set(None);
        }
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
        for member in self.members(joined) {
            member.leader.set(leader);
            member.claim.set(None);
        }
        if let Some(leader) = self.device(leader) {
            leader.group_size.set(size);
        }
    }

    /// Takes `leaving` out of its claimed group; the others stay one claimed group until [`release`](Self::release).
    /// Returns one of them.
    pub(super) fn leave_group<'a>(&'a self, leaving: &'a DeviceRecord) -> Option<&'a DeviceRecord> {
        let key = leaving.device.key();
        let running = self.device(leaving.leader.get()).and_then(|leader| leader.claim.get());
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
            }
        }
        leaving.leader.set(key);
        leaving.group_size.set(1);
        leaving.shrunk.set(false);
        leaving.claim.set(running);
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
        for member in self.devices.iter() {
            member.regrouping.set(false);
        }
    }

    fn regrouping(&self) -> impl Iterator<Item = &DeviceRecord> {
        self.devices.iter().filter(|record| record.regrouping.get())
    }

    // --- domains ---

    pub(super) fn domain(&self, id: DomainId) -> Option<&DomainRecord<P>> {
        self.domains.find(&id).get()
    }

    /// The first domain whose number is above `after`.
    pub(super) fn next_domain(&self, after: Option<DomainId>) -> Option<&DomainRecord<P>> {
        self.domains.lower_bound(after.as_ref().map_or(Bound::Unbounded, Bound::Excluded)).get()
    }

    pub(super) fn insert_domain(&mut self, record: Box<DomainRecord<P>>) {
        self.domains.insert(record);
    }

    pub(super) fn take_domain(&mut self, id: DomainId) -> Option<Box<DomainRecord<P>>> {
        self.domains.find_mut(&id).remove()
    }

    // --- IOMMU instances ---

    pub(super) fn iommu(&self, key: IommuKey) -> Option<&IommuRecord> {
        self.iommus.find(&key).get()
    }

    pub(super) fn next_iommu(&self, after: Option<IommuKey>) -> Option<&IommuRecord> {
        self.iommus.lower_bound(after.as_ref().map_or(Bound::Unbounded, Bound::Excluded)).get()
    }

    /// Registers an instance; gives the record back when its key is in use.
    pub(super) fn insert_iommu(&mut self, record: Box<IommuRecord>) -> Result<(), Box<IommuRecord>> {
        if self.iommu(record.key).is_some() {
            return Err(record);
        }
        self.iommus.insert(record);
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    pub(super) fn take_iommu(&mut self, key: IommuKey) -> Option<Box<IommuRecord>> {
        self.generation = self.generation.wrapping_add(1);
        self.iommus.find_mut(&key).remove()
    }
}
