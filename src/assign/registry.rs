//! What is registered: devices of every source by key, and domains. It knows no stream.
//!
//! # Locking
//!
//! All of it stands behind the one lock of level `Registry`. Records are owned by the trees and reached only through
//! `&Registry`, so that their cells are guarded by that lock too; what leaves the lock is a clone of a handle, or a group.
//! Nothing is allocated or freed under the lock: nodes come in ready-made and go out whole (contract A-8).
//!
//! # Invariants
//!
//! 1. All members of a group name the same `leader`, which is one of them and registered. The group stands in the leader's
//!    record, or is out: then it is claimed.
//! 2. A record's `state` is the member's as of the last put-back. `DomainRecord::assigned` counts the records in state
//!    `Assigned` to it, `DeviceRecord::children` those that name it as parent, an instance's count those with a stream on it.
//! 3. Every record has a node in `keys`, one in `kin` for its parent, and one for its bus where that does not isolate it.

use alloc::alloc::handle_alloc_error;
use alloc::boxed::Box;
use core::alloc::Layout;
use core::cell::Cell;

use intrusive_collections::{Bound, KeyAdapter, LinkedList, RBTree};

use super::records::{ByDomain, ById, ByKey, ByKin, GoneDevices, GoneDomains, Kin, Sources};
use super::{
    CallChain, Cause, Device, DeviceId, DeviceInfo, DeviceKey, DeviceRecord, DeviceState, Domain, DomainId,
    DomainRecord, Graveyard, Nodes, Obstacle, Operation, SourceRecord, Target,
};
use crate::by_number::ByNumber;
use crate::sync::Platform;
use crate::sync::broken::broken;

/// Records to which nothing refers any more, to be dropped when the lock is free.
#[must_use = "it is to be dropped when the lock is free"]
pub(super) struct Unused<P: Platform> {
    device: Option<Box<DeviceRecord>>,
    domain: Option<Box<DomainRecord<P>>>,
    source: Option<Box<SourceRecord>>,
}

impl<P: Platform> Unused<P> {
    pub(super) fn is_empty(&self) -> bool {
        self.device.is_none() && self.domain.is_none() && self.source.is_none()
    }
}

/// Over how many lists devices and domains are spread.
const DEVICE_LISTS: usize = 256;
const DOMAIN_LISTS: usize = 64;

/// There is none for the service itself (contract A-8).
fn no_memory<T>() -> T {
    handle_alloc_error(Layout::new::<[usize; DEVICE_LISTS]>())
}

/// The registered things.
pub(super) struct Registry<P: Platform> {
    /// By number: what has a handle is found here.
    devices: ByNumber<ById, DEVICE_LISTS>,
    keys: RBTree<ByKey>,
    kin: RBTree<ByKin>,
    domains: ByNumber<ByDomain<P>, DOMAIN_LISTS>,
    gone_devices: Graveyard<GoneDevices>,
    gone_domains: Graveyard<GoneDomains<P>>,
    /// Buried from the start, for nothing looks them up.
    sources: Graveyard<Sources>,
    /// How many records are marked: while there are none, no put-back looks for them.
    pub(super) marks: Cell<usize>,
    /// How many devices end with their parent: while there are none, no reset looks for them.
    pub(super) dependents: Cell<usize>,
    /// Changes with every registration and unregistration (contract C-6).
    pub(super) generation: u64,
}

impl<P: Platform> Registry<P> {
    pub(super) fn new() -> Self {
        Self {
            devices: ByNumber::new().unwrap_or_else(no_memory),
            keys: RBTree::new(ByKey::NEW),
            kin: RBTree::new(ByKin::NEW),
            domains: ByNumber::new().unwrap_or_else(no_memory),
            gone_devices: Graveyard::new(LinkedList::new(GoneDevices::NEW)),
            gone_domains: Graveyard::new(LinkedList::new(GoneDomains::NEW)),
            sources: Graveyard::new(LinkedList::new(Sources::NEW)),
            marks: Cell::new(0),
            dependents: Cell::new(0),
            generation: 0,
        }
    }

    // --- what is registered no more ---

    /// In how many goes of [`unused`](Self::unused) everything that is gone is looked at.
    pub(super) fn rounds(&self) -> usize {
        self.gone_devices.rounds().max(self.gone_domains.rounds()).max(self.sources.rounds())
    }

    /// Takes one record of each kind to which nothing refers any more.
    pub(super) fn unused(&mut self) -> Unused<P> {
        Unused {
            device: self.gone_devices.take(|record| record.device.is_last()),
            domain: self.gone_domains.take(|record| record.domain.is_last()),
            source: self.sources.take(|record| record.life.is_last()),
        }
    }

    pub(super) fn keep_source(&mut self, record: Box<SourceRecord>) {
        self.sources.bury(record);
    }

    // --- devices ---

    pub(super) fn device(&self, key: DeviceKey) -> Option<&DeviceRecord> {
        let node = self.keys.lower_bound(Bound::Included(&key)).get().filter(|node| node.device.key() == key)?;
        self.by_id(node.device.id())
    }

    /// The record of the device that is meant.
    pub(super) fn target(&self, target: &Target) -> Option<&DeviceRecord> {
        match target {
            Target::Device(device) => self.registration(device),
            Target::Key(key) | Target::Named(key, _) => self.device(*key),
        }
    }

    /// The record of this very registration, not of a later one under the same key (contract C-7) nor of another service's.
    pub(super) fn registration(&self, device: &Device) -> Option<&DeviceRecord> {
        self.by_id(device.id()).filter(|record| record.device.is(device))
    }

    pub(super) fn by_id(&self, id: DeviceId) -> Option<&DeviceRecord> {
        self.devices.find(id.number())
    }

    /// The record of the leader of `record`'s group.
    pub(super) fn leader_of<'a>(&'a self, record: &'a DeviceRecord) -> &'a DeviceRecord {
        let leader = record.leader.get();
        if leader == record.device.id() { record } else { self.by_id(leader).unwrap_or(record) }
    }

    /// The device with the highest number below `below` whose source object has gone.
    pub(super) fn last_orphan(&self, below: Option<DeviceId>) -> Option<Device> {
        let devices = self.devices.each().map(|record| &record.device);
        let below = |device: &&Device| device.is_orphan() && below.is_none_or(|below| device.id() < below);
        devices.filter(below).max_by_key(|device| device.id()).cloned()
    }

    /// Another device that the bus does not keep apart from `device`.
    pub(super) fn bus_mate(&self, device: &Device) -> Option<&DeviceRecord> {
        let bus = device.isolation()?;
        let on_bus = |kin| matches!(kin, Kin::Bus(of, _) if of == bus);
        let first = self.kin_from(Bound::Included(&Kin::Bus(bus, DeviceKey::LEAST)), on_bus)?;
        let is_other = first.id() != device.id();
        let mate = if is_other { first } else { self.kin_from(Bound::Excluded(&Kin::Bus(bus, device.key())), on_bus)? };
        self.registration(mate)
    }

    /// The first child of `parent` whose key is above `after`.
    pub(super) fn child(&self, parent: DeviceKey, after: Option<DeviceKey>) -> Option<&DeviceRecord> {
        let is_child = |kin| matches!(kin, Kin::Child(of, _) if of == parent);
        let child = match after {
            None => self.kin_from(Bound::Included(&Kin::Child(parent, DeviceKey::LEAST)), is_child),
            Some(after) => self.kin_from(Bound::Excluded(&Kin::Child(parent, after)), is_child),
        };
        self.registration(child?)
    }

    /// The children of a device, ascending by key.
    fn children<'a>(&'a self, record: &'a DeviceRecord) -> impl Iterator<Item = &'a DeviceRecord> {
        let parent = record.device.key();
        let first = if record.children.get() > 0 { self.child(parent, None) } else { None };
        core::iter::successors(first, move |last| self.child(parent, Some(last.device.key())))
    }

    /// Refuses to remove a device alone behind which others stand. One that is on its way in does not count: its add may be
    /// undone, and sees the mark of its parent. Where the removal of all of them is pending this one comes too early; one whose
    /// removal was tried in vain stays until it is removed again.
    pub(super) fn check_children(&self, record: &DeviceRecord, above: CallChain<'_>) -> Result<(), Cause> {
        let (mut staying, mut first, mut leaving) = (0_usize, None, None);
        for child in self.children(record) {
            if child.marked.get() {
                leaving = Some(child.device.id());
            } else if child.is_shown() {
                staying = staying.saturating_add(1);
                first.get_or_insert_with(|| child.device.label().clone());
            }
        }
        match (first, leaving) {
            (Some(first), _) => Err(Cause::HasChildren { children: staying, first }),
            (None, Some(child)) => {
                above.meet(Obstacle::Registration(child));
                Err(Cause::busy(Operation::Remove))
            }
            (None, None) => Ok(()),
        }
    }

    /// Refuses to reset a device whose children would end with that (a child's add claims the group of its parent, so that
    /// none comes in while that is claimed).
    pub(super) fn check_dependents(&self, parent: &Device) -> Result<(), Cause> {
        if self.dependents.get() == 0 || broken!("dependents_ignored") {
            return Ok(());
        }
        let (mut children, mut first) = (0_usize, None);
        for child in self.registration(parent).into_iter().flat_map(|record| self.children(record)) {
            if child.device.ends_with_parent() {
                children = children.saturating_add(1);
                first.get_or_insert_with(|| child.device.label().clone());
            }
        }
        first.map_or(Ok(()), |first| Err(Cause::HasChildren { children, first }))
    }

    fn kin_from(&self, start: Bound<&Kin>, belongs: impl Fn(Kin) -> bool) -> Option<&Device> {
        let node = self.kin.lower_bound(start).get()?;
        belongs(ByKin::NEW.get_key(node)).then_some(&node.device)
    }

    /// Registers a device, or gives its record and its nodes back where the key is in use.
    pub(super) fn insert_device(
        &mut self,
        record: Box<DeviceRecord>,
        nodes: Nodes,
    ) -> Result<(), (Box<DeviceRecord>, Nodes)> {
        let key = record.device.key();
        let mut next = self.keys.lower_bound_mut(Bound::Included(&key));
        if next.get().is_some_and(|node| node.device.key() == key) && !broken!("early_release") {
            return Err((record, nodes));
        }
        let [key, bus, child] = nodes;
        key.into_iter().for_each(|key| next.insert_before(key));
        self.count(&record.device, 1);
        self.devices.insert(record);
        for node in [bus, child].into_iter().flatten() {
            self.kin.insert(node);
        }
        self.generation = self.generation.wrapping_add(1);
        Ok(())
    }

    /// Ends the registration of a device that has left its group. Returns its nodes, to be dropped when the lock is free.
    #[must_use = "they are to be dropped when the lock is free"]
    pub(super) fn bury_device(&mut self, device: &Device) -> Nodes {
        let bus = device.isolation().map(|bus| Kin::Bus(bus, device.key()));
        let child = device.parent().map(|parent| Kin::Child(parent, device.key()));
        let Some(record) = self.devices.take(device.id().number()) else { return [None, None, None] };
        self.count(device, -1);
        self.set_state(&record, DeviceState::Going);
        self.unmark(&record);
        self.generation = self.generation.wrapping_add(1);
        self.gone_devices.bury(record);
        let mut take = |kin: Option<Kin>| kin.and_then(|kin| self.kin.find_mut(&kin).remove());
        let (bus, child) = (take(bus), take(child));
        let mut key = self.keys.lower_bound_mut(Bound::Included(&device.key()));
        let is_its_own = key.get().is_some_and(|node| node.device.id() == device.id());
        [if is_its_own { key.remove() } else { None }, bus, child]
    }

    /// Counts a device at its parent and its IOMMUs.
    fn count(&self, device: &Device, by: i8) {
        if let Some(parent) = device.parent().and_then(|key| self.device(key)) {
            parent.children.set(parent.children.get().saturating_add_signed(by.into()));
        }
        if device.ends_with_parent() {
            self.dependents.set(self.dependents.get().saturating_add_signed(by.into()));
        }
        for attachment in device.attachments() {
            attachment.instance.count(by.into());
        }
    }

    /// A removal is asked for: no call enters the device from now on.
    pub(super) fn mark(&self, record: &DeviceRecord) {
        if record.marked.replace(true) {
            record.device.set_unwanted();
        } else if !broken!("uncounted_mark") {
            self.marks.set(self.marks.get().saturating_add(1));
            self.count_leaving(record.state.get().owner(), 1);
            record.device.attachments().iter().for_each(|at| at.instance.count_leaving(1));
        }
        record.device.revoke();
    }

    pub(super) fn unmark(&self, record: &DeviceRecord) {
        if record.marked.replace(false) {
            self.marks.set(self.marks.get().saturating_sub(1));
            self.count_leaving(record.state.get().owner(), -1);
            record.device.attachments().iter().for_each(|at| at.instance.count_leaving(-1));
        }
    }

    fn count_leaving(&self, domain: Option<DomainId>, by: isize) {
        if let Some(record) = domain.and_then(|id| self.domain(id)) {
            record.leaving.set(record.leaving.get().saturating_add_signed(by));
        }
    }

    /// A device as look-ups show it.
    pub(super) fn shown(&self, key: DeviceKey) -> Option<DeviceInfo> {
        self.device(key).filter(|record| record.is_shown()).map(|record| self.info(record))
    }

    /// The first device whose key is above `after`, as a traversal shows it.
    pub(super) fn next_device(&self, after: Option<DeviceKey>) -> Option<DeviceInfo> {
        let mut cursor = self.keys.lower_bound(after.as_ref().map_or(Bound::Unbounded, Bound::Excluded));
        loop {
            let record = self.by_id(cursor.get()?.device.id())?;
            if record.is_shown() {
                return Some(self.info(record));
            }
            cursor.move_next();
        }
    }

    /// Says that `devices` devices still use something, and names the first that does. Without one, the count is about to
    /// change.
    pub(super) fn in_use(&self, devices: usize, uses: impl Fn(&DeviceRecord) -> bool) -> Cause {
        match self.devices.each().filter(|record| uses(record)).min_by_key(|record| record.device.id()) {
            Some(record) => Cause::InUse { devices, first: record.device.label().clone() },
            None => Cause::busy(Operation::Remove),
        }
    }

    /// The domain that owns a device.
    pub(super) fn owner_of(&self, record: &DeviceRecord) -> Option<&Domain<P>> {
        let owner = record.state.get().owner().and_then(|id| self.domain(id));
        owner.map(|record| &record.domain)
    }

    fn info(&self, record: &DeviceRecord) -> DeviceInfo {
        let state = if record.going.get() { DeviceState::Going } else { record.state.get() };
        let domain = state.owner().and_then(|_| self.owner_of(record)).map(|domain| domain.label().clone());
        DeviceInfo { device: record.device.clone(), state, group: self.leader_of(record).device.key(), domain }
    }

    /// Brings a record's copy of the state, and the domains' counts, to what the member says.
    pub(super) fn set_state(&self, record: &DeviceRecord, state: DeviceState) {
        let before = record.state.replace(state);
        if before == state || before.owner() == state.owner() {
            return;
        }
        let count = |domain: Option<DomainId>, by: isize| {
            if let Some(record) = domain.and_then(|id| self.domain(id)) {
                record.assigned.set(record.assigned.get().saturating_add_signed(by));
            }
        };
        count(before.owner(), -1);
        count(state.owner(), 1);
        if record.marked.get() {
            self.count_leaving(before.owner(), -1);
            self.count_leaving(state.owner(), 1);
        }
    }

    // --- domains ---

    pub(super) fn domain(&self, id: DomainId) -> Option<&DomainRecord<P>> {
        self.domains.find(id.number())
    }

    /// The record of this very domain, not of another service's (contract C-18).
    pub(super) fn creation(&self, domain: &Domain<P>) -> Option<&DomainRecord<P>> {
        self.domain(domain.id()).filter(|record| record.domain.is(domain))
    }

    /// The first domain whose number is above `after`.
    pub(super) fn next_domain(&self, after: Option<DomainId>) -> Option<&DomainRecord<P>> {
        let domains = self.domains.each().filter(|record| Some(record.domain.id()) > after);
        domains.min_by_key(|record| record.domain.id())
    }

    pub(super) fn insert_domain(&mut self, record: Box<DomainRecord<P>>) {
        self.domains.insert(record);
    }

    /// Ends the registration of a domain. Says whether there was one.
    pub(super) fn bury_domain(&mut self, id: DomainId) -> bool {
        let record = self.domains.take(id.number());
        record.map(|record| self.gone_domains.bury(record)).is_some()
    }

    /// Takes a shared hold on a domain (contract C-1).
    pub(super) fn hold(&self, domain: &Domain<P>) -> Result<(), Cause> {
        let gone = || Cause::DomainGone { domain: domain.label().clone() };
        let record = self.creation(domain).ok_or_else(gone)?;
        if record.destroying.get() {
            return Err(Cause::busy(Operation::DestroyDomain));
        }
        record.holds.set(record.holds.get().saturating_add(1));
        Ok(())
    }

    pub(super) fn unhold(&self, domain: DomainId) {
        if let Some(record) = self.domain(domain).filter(|_| !broken!("forgotten_hold")) {
            record.holds.set(record.holds.get().saturating_sub(1));
        }
    }
}
