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
//! 2. Nodes are ordered by (instance, mask, ID, low half of the device's number): the streams of one mask stand together, so
//!    that an overlap is found by one look-up for each mask in use and each ID that it can have there.

use alloc::boxed::Box;
use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use intrusive_collections::rbtree::Cursor;
use intrusive_collections::{
    Bound, KeyAdapter, RBTree, RBTreeLink, SinglyLinkedList, SinglyLinkedListLink, intrusive_adapter,
};

use super::cover::Cube;
use crate::assign::{DeviceId, IommuKey};
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
    below: u64,
    device: DeviceId,
}

impl Node {
    const fn new(iommu: IommuKey, cube: Cube, device: DeviceId) -> Self {
        let (link, chain) = (RBTreeLink::new(), SinglyLinkedListLink::new());
        Self { link, chain, iommu, below: below(cube, device), device }
    }

    const fn place(&self) -> Place {
        (self.iommu.base() as Place) << 64 | self.below as Place
    }

    const fn cube(&self) -> Cube {
        Cube::new((self.below >> 32) as u32 & 0xffff, (self.below >> 48) as u32)
    }
}

/// Where a stream stands: its instance, above its mask, above its ID, above as much of its device's number as there is room for.
/// One number, since every look compares it a dozen times.
type Place = u128;

/// The device in a [`Place`].
const LOW: Place = u32::MAX as Place;

/// The lower word of a [`Place`]: no ID has more than 16 bits.
const fn below(cube: Cube, device: DeviceId) -> u64 {
    (cube.mask() as u64) << 48 | (cube.id() as u64 & 0xffff) << 32 | device.number() & u32::MAX as u64
}

const fn place(iommu: IommuKey, cube: Cube, device: DeviceId) -> Place {
    (iommu.base() as Place) << 64 | below(cube, device) as Place
}

/// The first place of a stream.
const fn first_at(iommu: IommuKey, mask: u32, id: u32) -> Place {
    place(iommu, Cube::new(id, mask), DeviceId::new(0))
}

intrusive_adapter!(ByStream = Box<Node>: Node { link => RBTreeLink });
intrusive_adapter!(pub(in crate::smmu) Chained = Box<Node>: Node { chain => SinglyLinkedListLink });

/// Nodes on their way into the tree, or out of it.
pub(in crate::smmu) type Nodes = SinglyLinkedList<Chained>;

impl<'a> KeyAdapter<'a> for ByStream {
    type Key = Place;

    fn get_key(&self, node: &'a Node) -> Place {
        node.place()
    }
}

/// The nodes of a device's streams, in order.
pub(in crate::smmu) fn nodes_of(iommu: IommuKey, device: DeviceId, streams: &[Cube]) -> Nodes {
    let mut nodes = Nodes::new(Chained::NEW);
    for &cube in streams.iter().rev() {
        nodes.push_front(Box::new(Node::new(iommu, cube, device)));
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

    /// Puts a device's nodes in. `true` where no stream of another overlaps one of them; `false` also where it takes a search to
    /// say so.
    pub(in crate::smmu) fn insert(&mut self, nodes: &mut Nodes) -> bool {
        let mut alone = true;
        while let Some(node) = nodes.pop_front() {
            self.masks |= node.cube().mask();
            let mut last = node.place();
            let first = last & !LOW;
            let mut at = self.nodes.lower_bound_mut(Bound::Included(&first));
            let after = at.get().map_or(Place::MAX, Node::place);
            if after <= first | LOW {
                // Others have the stream too, and stand in the order of their numbers.
                alone = false;
                self.nodes.insert(node);
                continue;
            }
            at.insert_before(node);
            // Streams of one device mostly stand side by side: those that do go in without a look from the root.
            while let Some(node) = nodes.pop_front() {
                let place = node.place();
                if place < last || after <= place | LOW {
                    nodes.push_front(node);
                    break;
                }
                last = place;
                self.masks |= node.cube().mask();
                at.insert_before(node);
            }
        }
        // Where all streams are single IDs, those that overlap are equal.
        alone && self.masks == 0
    }

    /// Takes a device's nodes out; the caller drops them when the lock is free.
    pub(in crate::smmu) fn take(&mut self, iommu: IommuKey, device: DeviceId, streams: &[Cube]) -> Nodes {
        let mut nodes = Nodes::new(Chained::NEW);
        for cube in streams {
            let first = place(iommu, *cube, device);
            let mut cursor = self.nodes.lower_bound_mut(Bound::Included(&first));
            while cursor.get().is_some_and(|node| node.place() == first && node.device != device) {
                cursor.move_next();
            }
            if cursor.get().is_some_and(|node| node.place() == first)
                && let Some(node) = cursor.remove()
            {
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
        let mut class = Some(0);
        while let Some(mask) = class {
            if !self.each_in_class(iommu, mask, wanted, visit) {
                return false;
            }
            class = self.next_class(iommu, mask);
        }
        true
    }

    fn each_in_class(&self, iommu: IommuKey, mask: u32, wanted: Cube, visit: &mut dyn FnMut(DeviceId) -> bool) -> bool {
        // An overlapping stream of this mask agrees with `wanted` in all bits but these, in which it may be anything.
        let open = wanted.mask() & !mask;
        let lowest = wanted.id() & !mask;
        if open != 0 && open.count_ones() > MOST_LOOKS.ilog2() {
            let last = first_at(iommu, mask, lowest | open) | LOW;
            let mut cursor = self.from(first_at(iommu, mask, lowest));
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
            let here = first_at(iommu, mask, lowest | bits);
            let mut cursor = self.from(here);
            while let Some(node) = cursor.get().filter(|node| node.place() <= here | LOW) {
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
        let node = self.from(first_at(iommu, next, 0)).get()?;
        (node.iommu == iommu).then(|| node.cube().mask())
    }

    /// The first node at or behind a place.
    fn from(&self, place: Place) -> Cursor<'_, ByStream> {
        self.nodes.lower_bound(Bound::Included(&place))
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
