//! The records of the registry: what it keeps of a device, a domain and a source object, and by what each is found.
//!
//! # Locking
//!
//! Their cells are guarded by the lock of level `Registry`: the trees of [`Registry`](super::Registry) own them, and they are
//! reached only through `&Registry`.
//!
//! # Invariants
//!
//! A record's `state` is the member's as of the last put-back. [`DomainRecord::assigned`] counts the records in state `Assigned`
//! to it, [`DeviceRecord::children`] those that name it as parent.

use alloc::boxed::Box;
use core::cell::Cell;

use intrusive_collections::{KeyAdapter, LinkedListLink, RBTreeLink, SinglyLinkedListLink, intrusive_adapter};

use super::{Device, DeviceId, DeviceKey, DeviceState, Domain, Group, Operation, SourceLife};
use crate::by_number::Numbered;
use crate::sync::Platform;

/// A device's registration.
pub(super) struct DeviceRecord {
    link: SinglyLinkedListLink,
    gone: LinkedListLink,
    pub(super) device: Device,
    /// A copy of the member's, as of the last put-back.
    pub(super) state: Cell<DeviceState>,
    pub(super) leader: Cell<DeviceId>,
    /// Of a leader: the group, unless it is claimed.
    group: Cell<Option<Box<Group>>>,
    /// Of a leader: the operation that has the group, while it is claimed.
    pub(super) running: Cell<Operation>,
    /// A removal was asked for, and is carried out by the operation that owns the group, when it puts that back (C-2).
    pub(super) marked: Cell<bool>,
    /// A removal has begun and was not complete.
    pub(super) going: Cell<bool>,
    pub(super) children: Cell<u32>,
}

/// A further place of a device in the registry.
pub(super) struct Node {
    link: RBTreeLink,
    place: Place,
    pub(super) device: Device,
}

/// What a node is found by.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// By its key.
    Key,
    /// By the bus that does not isolate it from others.
    Bus,
    /// By its parent.
    Child,
}

/// The order of the nodes in [`Registry::kin`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kin {
    Bus(u64, DeviceKey),
    Child(DeviceKey, DeviceKey),
}

/// All nodes of a device.
pub(super) type Nodes = [Option<Box<Node>>; 3];

/// A domain's registration.
pub(super) struct DomainRecord<P: Platform> {
    link: SinglyLinkedListLink,
    gone: LinkedListLink,
    pub(super) domain: Domain<P>,
    /// Devices assigned to it.
    pub(super) assigned: Cell<usize>,
    /// Of these, those that were asked to go.
    pub(super) leaving: Cell<usize>,
    /// Operations that are about to change that: shared holds (contract C-1).
    pub(super) holds: Cell<usize>,
    /// It is being destroyed: the exclusive hold.
    pub(super) destroying: Cell<bool>,
}

/// The service's own reference of a source object's life, so that the source's is never the last.
pub(super) struct SourceRecord {
    link: LinkedListLink,
    pub(super) life: SourceLife,
}

intrusive_adapter!(pub(super) ById = Box<DeviceRecord>: DeviceRecord { link => SinglyLinkedListLink });
intrusive_adapter!(pub(super) ByKey = Box<Node>: Node { link => RBTreeLink });
intrusive_adapter!(pub(super) ByKin = Box<Node>: Node { link => RBTreeLink });
intrusive_adapter!(pub(super) ByDomain<P> = Box<DomainRecord<P>>: DomainRecord<P> { link => SinglyLinkedListLink } where P: Platform);
intrusive_adapter!(pub(super) GoneDevices = Box<DeviceRecord>: DeviceRecord { gone => LinkedListLink });
intrusive_adapter!(pub(super) GoneDomains<P> = Box<DomainRecord<P>>: DomainRecord<P> { gone => LinkedListLink } where P: Platform);
intrusive_adapter!(pub(super) Sources = Box<SourceRecord>: SourceRecord { link => LinkedListLink });

impl Numbered for DeviceRecord {
    fn number(&self) -> u64 {
        self.device.id().number()
    }
}

impl<'a> KeyAdapter<'a> for ByKey {
    type Key = DeviceKey;

    fn get_key(&self, node: &'a Node) -> DeviceKey {
        node.device.key()
    }
}

impl<'a> KeyAdapter<'a> for ByKin {
    type Key = Kin;

    fn get_key(&self, node: &'a Node) -> Kin {
        let device = &node.device;
        match (node.place, device.isolation(), device.parent()) {
            (Place::Bus, Some(bus), _) => Kin::Bus(bus, device.key()),
            (_, _, Some(parent)) => Kin::Child(parent, device.key()),
            (_, bus, None) => Kin::Bus(bus.unwrap_or(0), device.key()),
        }
    }
}

impl<P: Platform> Numbered for DomainRecord<P> {
    fn number(&self) -> u64 {
        self.domain.id().number()
    }
}

impl<P: Platform> DomainRecord<P> {
    pub(super) fn new(domain: Domain<P>) -> Box<Self> {
        Box::new(Self {
            link: SinglyLinkedListLink::new(),
            gone: LinkedListLink::new(),
            domain,
            assigned: Cell::new(0),
            leaving: Cell::new(0),
            holds: Cell::new(0),
            destroying: Cell::new(false),
        })
    }
}

impl SourceRecord {
    pub(super) fn new(life: SourceLife) -> Box<Self> {
        Box::new(Self { link: LinkedListLink::new(), life })
    }
}

impl DeviceRecord {
    /// A device that is being added, whose group the adding operation owns from the start.
    pub(super) fn adding(device: Device) -> Box<Self> {
        let leader = device.id();
        Box::new(Self {
            link: SinglyLinkedListLink::new(),
            gone: LinkedListLink::new(),
            device,
            state: Cell::new(DeviceState::Adding),
            leader: Cell::new(leader),
            group: Cell::new(None),
            running: Cell::new(Operation::Add),
            marked: Cell::new(false),
            going: Cell::new(false),
            children: Cell::new(0),
        })
    }

    /// Whether look-ups show it: not before its add has come to an end (contract C-15).
    pub(super) fn is_shown(&self) -> bool {
        self.state.get() != DeviceState::Adding
    }

    /// Whether it is on its way out.
    pub(super) fn is_leaving(&self) -> bool {
        self.marked.get() || self.going.get()
    }

    /// Whether a removal was asked for that can begin: children go first.
    pub(super) fn may_go(&self) -> bool {
        self.marked.get() && self.children.get() == 0
    }

    /// Takes the group out of a leader's record; `None` while it is claimed.
    pub(super) fn take_group(&self) -> Option<Box<Group>> {
        self.group.take()
    }

    pub(super) fn put_group(&self, group: Box<Group>) {
        self.group.set(Some(group));
    }

    /// Whether a leader's group is claimed.
    pub(super) fn is_out(&self) -> bool {
        let group = self.group.take();
        let is_out = group.is_none();
        self.group.set(group);
        is_out
    }
}

/// The nodes of a device, ready to be registered.
pub(super) fn nodes_of(device: &Device) -> Nodes {
    let node = |place| Some(Box::new(Node { link: RBTreeLink::new(), place, device: device.clone() }));
    let bus = device.isolation().and_then(|_| node(Place::Bus));
    let child = device.parent().and_then(|_| node(Place::Child));
    [node(Place::Key), bus, child]
}
