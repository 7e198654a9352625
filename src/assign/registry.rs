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

use intrusive_collections::{Bound, KeyAdapter, LinkedList, LinkedListLink, RBTree, RBTreeLink, intrusive_adapter};

use super::device::{Attachment, Device, DeviceInfo, DeviceState};
use super::domain::Domain;
use super::error::{Cause, Operation};
use super::graveyard::Graveyard;
use super::identity::{DeviceId, DeviceKey, DomainId};
use super::iommu::Iommu;
use super::source::{SourceRecord, Sources};
use super::spec::IommuKey;
use crate::sync::Platform;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::broken::broken;
use crate::sync::outside::Outside;

/// A device's registration.
pub(super) struct DeviceRecord {
    link: RBTreeLink,
    gone: LinkedListLink,
    pub(super) device: Device,
    pub(super) state: Cell<DeviceState>,
    /// Which of all changes of a state its last one was.
    pub(super) moved: Cell<u64>,
    /// The member in whose record the group's own data stand.
    pub(super) leader: Cell<DeviceKey>,
    /// Of a leader: how many members the group has.
    pub(super) group_size: Cell<usize>,
    /// Of a leader: the operation that has claimed the group.
    pub(super) claim: Cell<Option<Operation>>,
    /// Of a leader: somebody has met the claim, and may wait for its end.
    pub(super) met: Cell<bool>,
    /// Of a leader: a member has left since the claim began.
    pub(super) shrunk: Cell<bool>,
    /// Set only while a group is being split, within one hold of the lock.
    pub(super) regrouping: Cell<bool>,
    /// A removal was asked for; whoever holds the group's claim carries it out when that ends (contract C-2).
    pub(super) remove_pending: Cell<bool>,
    /// The removal has cut its DMA, and found calls in flight (contract C-8).
    pub(super) cut: Cell<bool>,
    pub(super) children: Cell<usize>,
}

/// A domain's registration.
pub(super) struct DomainRecord<P: Platform> {
    link: RBTreeLink,
    gone: LinkedListLink,
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
    gone: LinkedListLink,
    key: IommuKey,
    pub(super) iommu: Outside<Arc<dyn Iommu>>,
    /// Devices registered with streams on it.
    pub(super) devices: Cell<usize>,
    /// It is being taken out of service: the exclusive hold. No device is added with streams on it.
    pub(super) leaving: Cell<bool>,
    /// Somebody has met that, and may wait for its end.
    pub(super) met: Cell<bool>,
}

intrusive_adapter!(ByDevice = Box<DeviceRecord>: DeviceRecord { link => RBTreeLink });
intrusive_adapter!(ByDomain<P> = Box<DomainRecord<P>>: DomainRecord<P> { link => RBTreeLink } where P: Platform);
intrusive_adapter!(ByIommu = Box<IommuRecord>: IommuRecord { link => RBTreeLink });

intrusive_adapter!(GoneDevices = Box<DeviceRecord>: DeviceRecord { gone => LinkedListLink });
intrusive_adapter!(GoneDomains<P> = Box<DomainRecord<P>>: DomainRecord<P> { gone => LinkedListLink } where P: Platform);
intrusive_adapter!(GoneIommus = Box<IommuRecord>: IommuRecord { gone => LinkedListLink });

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
            gone: LinkedListLink::new(),
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
            gone: LinkedListLink::new(),
            key,
            iommu: Outside::new(iommu),
            devices: Cell::new(0),
            leaving: Cell::new(false),
            met: Cell::new(false),
        })
    }
}

impl DeviceRecord {
    pub(super) fn is_shown(&self) -> bool {
        self.state.get() != DeviceState::Adding
    }

    /// Whether it has streams on this very instance.
    pub(super) fn is_on(&self, iommu: &Outside<Arc<dyn Iommu>>) -> bool {
        self.device.attachments().iter().any(|attachment| attachment.iommu.is_same(iommu))
    }

    /// A removal was asked for, and neither a child nor a call that is known to be in flight stands in its way.
    pub(super) fn may_go(&self) -> bool {
        let in_use = self.cut.get() && self.device.in_flight() > 0;
        self.remove_pending.get() && self.children.get() == 0 && !in_use
    }

    /// A registration that is being added, in a group of its own which the adding operation has claimed.
    pub(super) fn adding(device: Device) -> Box<Self> {
        let key = device.key();
        Box::new(Self {
            link: RBTreeLink::new(),
            gone: LinkedListLink::new(),
            device,
            state: Cell::new(DeviceState::Adding),
            moved: Cell::new(0),
            leader: Cell::new(key),
            group_size: Cell::new(1),
            met: Cell::new(false),
            shrunk: Cell::new(false),
            regrouping: Cell::new(false),
            claim: Cell::new(Some(Operation::Add)),
            remove_pending: Cell::new(false),
            cut: Cell::new(false),
            children: Cell::new(0),
        })
    }
}

/// Records to which nobody referred any more, to be dropped when the lock is free.
#[must_use = "it is to be dropped when the lock is free"]
pub(super) struct Unused<P: Platform> {
    device: Option<Box<DeviceRecord>>,
    domain: Option<Box<DomainRecord<P>>>,
    iommu: Option<Box<IommuRecord>>,
    source: Option<Box<SourceRecord>>,
}

impl<P: Platform> Unused<P> {
    pub(super) fn is_empty(&self) -> bool {
        self.device.is_none() && self.domain.is_none() && self.iommu.is_none() && self.source.is_none()
    }
}

/// The registered things.
pub(super) struct Registry<P: Platform> {
    devices: RBTree<ByDevice>,
    domains: RBTree<ByDomain<P>>,
    iommus: RBTree<ByIommu>,
    gone_devices: Graveyard<GoneDevices>,
    gone_domains: Graveyard<GoneDomains<P>>,
    gone_iommus: Graveyard<GoneIommus>,
    /// Of sources; buried from the start, for nothing looks them up.
    sources: Graveyard<Sources>,
    /// Registered devices that were asked to go.
    pub(super) marked: Cell<usize>,
    /// Changes with every registration and unregistration (contract C-6).
    pub(super) generation: u64,
}

impl<P: Platform> Registry<P> {
    pub(super) const fn new() -> Self {
        Self {
            devices: RBTree::new(ByDevice::NEW),
            domains: RBTree::new(ByDomain::NEW),
            iommus: RBTree::new(ByIommu::NEW),
            gone_devices: Graveyard::new(LinkedList::new(GoneDevices::NEW)),
            gone_domains: Graveyard::new(LinkedList::new(GoneDomains::NEW)),
            gone_iommus: Graveyard::new(LinkedList::new(GoneIommus::NEW)),
            sources: Graveyard::new(LinkedList::new(Sources::NEW)),
            marked: Cell::new(0),
            generation: 0,
        }
    }

    /// In how many goes of [`unused`](Self::unused) everything that is gone is looked at.
    pub(super) fn rounds(&self) -> usize {
        let graves = [self.gone_devices.rounds(), self.gone_domains.rounds(), self.gone_iommus.rounds()];
        graves.into_iter().fold(self.sources.rounds(), usize::max)
    }

    /// Takes one record of each kind to which nobody refers any more.
    pub(super) fn unused(&mut self) -> Unused<P> {
        Unused {
            device: self.gone_devices.take(|record| record.device.is_last()),
            domain: self.gone_domains.take(|record| record.domain.is_last()),
            iommu: self.gone_iommus.take(|record| record.iommu.is_last()),
            source: self.sources.take(|record| record.is_last()),
        }
    }

    /// Keeps a source object's life until nobody else does.
    pub(super) fn keep_source(&mut self, record: Box<SourceRecord>) {
        self.sources.bury(record);
    }

    /// The device below `below` that was registered last, of those whose source object has gone.
    pub(super) fn last_orphan(&self, below: Option<DeviceId>) -> Option<Device> {
        let orphans = self.devices.iter().map(|record| &record.device).filter(|device| device.is_orphan());
        let left = orphans.filter(|device| below.is_none_or(|below| device.id() < below));
        left.max_by_key(|device| device.id()).cloned()
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
        self.count(&record.device, 1);
        self.devices.insert(record);
        self.generation = self.generation.wrapping_add(1);
    }

    /// Ends the registration of a device that left its group.
    pub(super) fn bury_device(&mut self, key: DeviceKey) {
        let Some(record) = self.devices.find_mut(&key).remove() else { return };
        self.count(&record.device, -1);
        if record.remove_pending.get() {
            self.marked.set(self.marked.get().saturating_sub(1));
        }
        self.generation = self.generation.wrapping_add(1);
        self.gone_devices.bury(record);
    }

    /// Counts a device at its parent and its IOMMUs.
    fn count(&self, device: &Device, by: isize) {
        let add = |count: &Cell<usize>| count.set(count.get().saturating_add_signed(by));
        if let Some(parent) = device.parent().and_then(|key| self.device(key)) {
            add(&parent.children);
        }
        for attachment in device.attachments() {
            // An instance that was registered since under the same key never had this device.
            if let Some(iommu) = self.instance(attachment.key, &attachment.iommu) {
                add(&iommu.devices);
            }
        }
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

    /// Moves a device to `state`, the next of all `moves`, and keeps the domains' counts.
    pub(super) fn set_state(&self, record: &DeviceRecord, state: DeviceState, moves: &AtomicU64) {
        record.moved.set(moves.fetch_add(1, Ordering::AcqRel).wrapping_add(1));
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

    /// Ends the registration of a domain. Says whether there was one.
    pub(super) fn bury_domain(&mut self, id: DomainId) -> bool {
        let record = self.domains.find_mut(&id).remove();
        record.map(|record| self.gone_domains.bury(record)).is_some()
    }

    /// Takes a shared hold on a domain (contract C-1).
    pub(super) fn hold(&self, domain: &Domain<P>) -> Result<(), Cause> {
        let gone = || Cause::DomainGone { domain: domain.label().clone() };
        let record = self.domain(domain.id()).ok_or_else(gone)?;
        if record.destroying.get() {
            return Err(Cause::Busy { running: Operation::DestroyDomain });
        }
        record.holds.set(record.holds.get().saturating_add(1));
        Ok(())
    }

    /// Ends a hold. Whoever destroys the domain may wait for that: the end of the claim, which comes with it, wakes.
    pub(super) fn unhold(&self, domain: DomainId) {
        if let Some(record) = self.domain(domain).filter(|_| !broken!("forgotten_hold")) {
            record.holds.set(record.holds.get().saturating_sub(1));
        }
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

    /// The record of this very instance, not of a later one under the same key (contract C-9).
    pub(super) fn instance(&self, key: IommuKey, iommu: &Outside<Arc<dyn Iommu>>) -> Option<&IommuRecord> {
        self.iommu(key).filter(|record| record.iommu.is_same(iommu))
    }

    /// Whether a device may be registered with streams on this very instance; why not.
    pub(super) fn is_in_service(&self, attachment: &Attachment) -> Result<(), Cause> {
        let instance = self.instance(attachment.key, &attachment.iommu);
        let instance = instance.ok_or(Cause::ProviderMissing(attachment.key))?;
        if instance.leaving.get() {
            instance.met.set(true);
            return Err(Cause::Busy { running: Operation::UnregisterIommu });
        }
        Ok(())
    }

    /// Ends the registration of an instance. Says whether there was one.
    pub(super) fn bury_iommu(&mut self, key: IommuKey, iommu: &Outside<Arc<dyn Iommu>>) -> bool {
        if self.instance(key, iommu).is_none() {
            return false;
        }
        let Some(record) = self.iommus.find_mut(&key).remove() else { return false };
        self.gone_iommus.bury(record);
        self.generation = self.generation.wrapping_add(1);
        true
    }
}
