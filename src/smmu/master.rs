//! The masters of all instances, in one red-black tree behind one lock.
//!
//! # Locking
//!
//! Level `Masters`: taken to publish, withdraw, look up and iterate. An instance's stream map nests inside it, never the
//! other way (contract C-13). Nodes come in ready-made and go out whole: nothing is allocated or freed under the lock.
//!
//! # Invariants
//!
//! 1. A device has at most one master for each instance.
//! 2. Masters are ordered by (instance, lowest stream, device): those of one instance stand together.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeLink, intrusive_adapter};

use super::context::Vmids;
use super::cover::Cube;
use super::levels;
use crate::assign::{DeviceId, IommuKey, StreamId};
use crate::sync::Platform;
use crate::sync::lock::Lock;

/// The driver's record of a device: its streams on one instance.
pub(super) struct Master {
    link: RBTreeLink,
    iommu: IommuKey,
    pub(super) device: DeviceId,
    streams: Vec<Cube>,
}

intrusive_adapter!(ByStream = Box<Master>: Master { link => RBTreeLink });

type Key = (IommuKey, StreamId, DeviceId);

impl<'a> KeyAdapter<'a> for ByStream {
    type Key = Key;

    fn get_key(&self, master: &'a Master) -> Key {
        (master.iommu, lowest(&master.streams), master.device)
    }
}

impl Master {
    pub(super) fn new(iommu: IommuKey, device: DeviceId, streams: Vec<Cube>) -> Box<Self> {
        Box::new(Self { link: RBTreeLink::new(), iommu, device, streams })
    }

    /// Whether some transaction could belong to both.
    pub(super) fn meets(&self, streams: &[Cube]) -> bool {
        self.streams.iter().any(|ours| streams.iter().any(|theirs| ours.meets(*theirs)))
    }
}

/// The masters of all instances.
///
/// One for a machine; every instance is made with a share of it.
pub struct Masters<P: Platform> {
    pub(super) tree: Lock<levels::Masters, Tree, P::Lock>,
    /// The last VMID that was given to an instance of a chip whose SMMUs share one space of them (quirk Q2).
    last_vmid: AtomicU32,
}

/// The tree itself, as seen under the lock.
pub(super) struct Tree(RBTree<ByStream>);

impl<P: Platform> Masters<P> {
    /// No masters.
    #[must_use]
    pub const fn new() -> Self {
        Self { tree: Lock::new(Tree(RBTree::new(ByStream::NEW))), last_vmid: AtomicU32::new(0) }
    }

    /// As many VMIDs as there are `banks`, of which no other instance has any; none above `highest`.
    ///
    /// They are not given back: what another instance has cached under them is not known.
    pub(super) fn take_vmids(&self, banks: u8, highest: u16) -> Option<Vmids> {
        let take = |last: u32| last.checked_add(banks.into()).filter(|last| *last <= highest.into());
        let last = self.last_vmid.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        u16::try_from(last.saturating_add(1)).ok().map(Vmids::from)
    }
}

impl<P: Platform> Default for Masters<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Platform> fmt::Debug for Masters<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Masters").field(&self.tree).finish()
    }
}

impl Tree {
    /// The masters of one instance that can meet an ID up to `last`: those whose lowest ID is not above it.
    pub(super) fn up_to(&self, iommu: IommuKey, last: StreamId) -> impl Iterator<Item = &Master> {
        let first: Key = (iommu, StreamId::new(0), DeviceId::new(0));
        let mut cursor = self.0.lower_bound(Bound::Included(&first));
        core::iter::from_fn(move || {
            let master = cursor.get().filter(|master| master.iommu == iommu && lowest(&master.streams) <= last)?;
            cursor.move_next();
            Some(master)
        })
    }

    pub(super) fn insert(&mut self, master: Box<Master>) {
        self.0.insert(master);
    }

    /// Takes a device's master out; the caller drops it when the lock is free.
    pub(super) fn take(&mut self, iommu: IommuKey, lowest: StreamId, device: DeviceId) -> Option<Box<Master>> {
        self.0.find_mut(&(iommu, lowest, device)).remove()
    }
}

/// The lowest ID of a device: its place in the tree.
pub(super) fn lowest(streams: &[Cube]) -> StreamId {
    StreamId::new(streams.iter().map(|cube| cube.id()).min().unwrap_or(0))
}
