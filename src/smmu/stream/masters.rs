//! The streams of all devices on all instances, in one red-black tree behind one lock.
//!
//! # Locking
//!
//! Level `Masters`: taken to publish, reserve, withdraw and look up. An instance's stream map nests inside it, never the
//! other way (contract C-13). Nodes come in ready-made and go out in a list: nothing is allocated or freed under the lock.
//!
//! # Invariants
//!
//! 1. There is one node for each (instance, device, canonical stream).
//! 2. Nodes are ordered by (instance, mask, ID, device): the streams of one mask stand together, so that an overlap is
//!    found by one look-up for each mask in use and each ID that it can have there.

use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use intrusive_collections::rbtree::Cursor;
use intrusive_collections::{
    Bound, KeyAdapter, RBTree, RBTreeLink, SinglyLinkedList, SinglyLinkedListLink, intrusive_adapter,
};

use super::cover::Cube;
use crate::assign::{DeviceId, IommuKey};
use crate::smmu::hardware::access::halves;
use crate::sync::Platform;
use crate::sync::levels;
use crate::sync::lock::Lock;

/// More looks than this in one class of masks cost more than a walk.
const MOST_LOOKS: u32 = 8;

/// The last device numbers stand for streams that firmware reserved: devices of the driver's own.
const FIRST_RESERVED: u64 = u64::MAX - 0xffff;

/// The driver's own devices, in the order in which reserved streams are given.
pub(in crate::smmu) fn reserved_devices() -> impl Iterator<Item = DeviceId> {
    (FIRST_RESERVED..=u64::MAX).map(DeviceId::new)
}

/// Whether a device stands for a stream that firmware reserved.
pub(in crate::smmu) const fn is_reserved(device: DeviceId) -> bool {
    device.number() >= FIRST_RESERVED
}

/// One stream of one device on one instance.
pub(in crate::smmu) struct Node {
    link: RBTreeLink,
    /// While it is not in the tree.
    chain: SinglyLinkedListLink,
    /// Its [`Place`], in two words.
    iommu: IommuKey,
    mask_and_id: u64,
    device: DeviceId,
}

impl Node {
    const fn place(&self) -> Place {
        (self.iommu.base() as u128) << 64 | self.mask_and_id as u128
    }

    const fn cube(&self) -> Cube {
        let [id, mask] = halves(self.mask_and_id);
        Cube::new(id, mask)
    }

    const fn key(&self) -> (Place, DeviceId) {
        (self.place(), self.device)
    }
}

/// Where a stream stands: its instance, above its mask, above its ID. One number, since every look compares it a dozen times.
type Place = u128;

const fn place(iommu: IommuKey, mask: u32, id: u32) -> Place {
    (iommu.base() as u128) << 64 | (mask as u128) << 32 | id as u128
}

intrusive_adapter!(ByStream = Box<Node>: Node { link => RBTreeLink });
intrusive_adapter!(pub(in crate::smmu) Chained = Box<Node>: Node { chain => SinglyLinkedListLink });

/// Nodes on their way into the tree, or out of it.
pub(in crate::smmu) type Nodes = SinglyLinkedList<Chained>;

impl<'a> KeyAdapter<'a> for ByStream {
    type Key = (Place, DeviceId);

    fn get_key(&self, node: &'a Node) -> (Place, DeviceId) {
        node.key()
    }
}

/// The nodes of a device's streams, in order.
pub(in crate::smmu) fn nodes_of(iommu: IommuKey, device: DeviceId, streams: &[Cube]) -> Nodes {
    let mut nodes = Nodes::new(Chained::NEW);
    for &cube in streams.iter().rev() {
        let (link, chain) = (RBTreeLink::new(), SinglyLinkedListLink::new());
        let mask_and_id = u64::from(cube.mask()) << 32 | u64::from(cube.id());
        nodes.push_front(Box::new(Node { link, chain, iommu, mask_and_id, device }));
    }
    nodes
}

/// The masters of all instances.
///
/// One for a machine; every instance is made with a share of it.
pub struct Masters<P: Platform> {
    pub(in crate::smmu) tree: Lock<levels::Masters, Tree, P::Lock>,
    /// The last VMID that was given to an instance of a chip whose SMMUs share one space of them (quirk Q2).
    last_vmid: AtomicU32,
}

/// The tree itself, as seen under the lock.
pub(in crate::smmu) struct Tree {
    nodes: RBTree<ByStream>,
    /// The union of all masks that ever were in the tree: no class is above it.
    masks: u32,
}

impl<P: Platform> Masters<P> {
    /// No masters.
    #[must_use]
    pub const fn new() -> Self {
        Self { tree: Lock::new(Tree::new()), last_vmid: AtomicU32::new(0) }
    }

    /// The first of as many VMIDs as there are `banks`, of which no other instance has any; none above `highest`.
    ///
    /// They are not given back: what another instance has cached under them is not known.
    pub(in crate::smmu) fn take_vmids(&self, banks: u8, highest: u16) -> Option<u16> {
        let take = |last: u32| last.checked_add(banks.into()).filter(|last| *last <= highest.into());
        let last = self.last_vmid.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        u16::try_from(last.saturating_add(1)).ok()
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
    const fn new() -> Self {
        Self { nodes: RBTree::new(ByStream::NEW), masks: 0 }
    }

    pub(in crate::smmu) fn insert(&mut self, nodes: &mut Nodes) {
        while let Some(node) = nodes.pop_front() {
            self.masks |= node.cube().mask();
            let mut at = self.nodes.insert(node);
            // Streams of one device mostly stand side by side: those that do go in without a look from the root.
            while let Some(node) = nodes.pop_front() {
                let is_next = at.get().is_some_and(|before| before.key() < node.key())
                    && at.peek_next().get().is_none_or(|after| node.key() < after.key());
                if !is_next {
                    nodes.push_front(node);
                    break;
                }
                self.masks |= node.cube().mask();
                at.insert_after(node);
                at.move_next();
            }
        }
    }

    /// Takes a device's nodes out; the caller drops them when the lock is free.
    pub(in crate::smmu) fn take(&mut self, iommu: IommuKey, device: DeviceId, streams: &[Cube]) -> Nodes {
        let mut nodes = Nodes::new(Chained::NEW);
        for cube in streams {
            if let Some(node) = self.nodes.find_mut(&(place(iommu, cube.mask(), cube.id()), device)).remove() {
                nodes.push_front(node);
            }
        }
        nodes
    }

    /// Calls `visit` with the device of each stream on `iommu` that has an ID in common with `wanted`, as long as it says so.
    pub(in crate::smmu) fn each_overlap(
        &self,
        iommu: IommuKey,
        wanted: Cube,
        visit: &mut dyn FnMut(DeviceId) -> bool,
    ) -> bool {
        self.each_overlap_inlined(iommu, wanted, visit)
    }

    /// The same, compiled for its one caller in the way of every add.
    pub(super) fn each_overlap_inlined(
        &self,
        iommu: IommuKey,
        wanted: Cube,
        visit: &mut (impl FnMut(DeviceId) -> bool + ?Sized),
    ) -> bool {
        let mut class = Some(0);
        while let Some(mask) = class {
            if !self.each_in_class(iommu, mask, wanted, visit) {
                return false;
            }
            class = self.next_class(iommu, mask);
        }
        true
    }

    fn each_in_class(
        &self,
        iommu: IommuKey,
        mask: u32,
        wanted: Cube,
        visit: &mut (impl FnMut(DeviceId) -> bool + ?Sized),
    ) -> bool {
        // An overlapping stream of this mask agrees with `wanted` in all bits but these, in which it may be anything.
        let open = wanted.mask() & !mask;
        let lowest = wanted.id() & !mask;
        if open != 0 && open.count_ones() > MOST_LOOKS.ilog2() {
            let last = place(iommu, mask, lowest | open);
            let mut cursor = self.from(place(iommu, mask, lowest));
            let inside = |node: &&Node| node.place() <= last;
            while let Some(node) = cursor.get().filter(inside) {
                if node.cube().meets(wanted) && !visit(node.device) {
                    return false;
                }
                cursor.move_next();
            }
            return true;
        }
        let mut bits = 0_u32;
        loop {
            let here = place(iommu, mask, lowest | bits);
            let mut cursor = self.from(here);
            while let Some(node) = cursor.get().filter(|node| node.place() == here) {
                if !visit(node.device) {
                    return false;
                }
                cursor.move_next();
            }
            // The next subset of the open bits, in ascending order.
            bits = bits.wrapping_sub(open) & open;
            if bits == 0 {
                return true;
            }
        }
    }

    /// The next mask above `mask` that a stream on `iommu` has.
    fn next_class(&self, iommu: IommuKey, mask: u32) -> Option<u32> {
        let next = mask.checked_add(1).filter(|next| *next <= self.masks)?;
        let node = self.from(place(iommu, next, 0)).get()?;
        (node.iommu == iommu).then(|| node.cube().mask())
    }

    /// The first node at or behind a place.
    fn from(&self, place: Place) -> Cursor<'_, ByStream> {
        self.nodes.lower_bound(Bound::Included(&(place, DeviceId::new(0))))
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    const A: IommuKey = IommuKey::new(0x1000);
    const B: IommuKey = IommuKey::new(0x2000);

    fn found(tree: &Tree, wanted: Cube) -> Vec<u64> {
        let mut found = Vec::new();
        let all = tree.each_overlap(A, wanted, &mut |device| {
            found.push(device.number());
            true
        });
        assert!(all);
        assert_eq!(tree.each_overlap(A, wanted, &mut |_| false), found.is_empty());
        found.sort_unstable();
        found
    }

    #[test]
    fn every_overlap_is_found_and_no_other() {
        let mut tree = Tree::new();
        let cubes: Vec<Cube> = (0..32)
            .flat_map(|mask| (0..32).filter(move |id| id & mask == 0).map(move |id| Cube::new(id, mask)))
            .collect();
        let few: Vec<Cube> = cubes.iter().copied().step_by(7).collect();
        for (device, cube) in (1..).zip(&few) {
            tree.insert(&mut nodes_of(A, DeviceId::new(device), &[*cube]));
            tree.insert(&mut nodes_of(B, DeviceId::new(device), &[*cube]));
        }
        for wanted in cubes {
            let expected: Vec<u64> =
                (1..).zip(&few).filter(|(_, cube)| cube.meets(wanted)).map(|(device, _)| device).collect();
            assert_eq!(found(&tree, wanted), expected, "{wanted}");
        }
        drop(tree.take(A, DeviceId::new(1), &few));
        assert!(!found(&tree, Cube::new(0, 31)).contains(&1));
    }
}
