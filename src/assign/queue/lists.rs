//! Where the requests of a queue stand. Every method is one bounded step under the queue's lock.

use alloc::sync::Arc;
use core::sync::atomic::Ordering;

use intrusive_collections::{
    Bound, KeyAdapter, LinkedList, LinkedListAtomicLink, RBTree, RBTreeAtomicLink, intrusive_adapter,
};

use super::node::Node;
use crate::assign::{DeviceKey, Graveyard};
use crate::sync::Platform;

intrusive_adapter!(Kept<P> = Arc<Node<P>>: Node<P> { kept => LinkedListAtomicLink } where P: Platform);
intrusive_adapter!(InLine<P> = Arc<Node<P>>: Node<P> { line => LinkedListAtomicLink } where P: Platform);
intrusive_adapter!(Aside<P> = Arc<Node<P>>: Node<P> { aside => RBTreeAtomicLink } where P: Platform);

impl<'a, P: Platform> KeyAdapter<'a> for Aside<P> {
    type Key = (DeviceKey, u64);

    fn get_key(&self, node: &'a Node<P>) -> (DeviceKey, u64) {
        (node.key(), node.turn.load(Ordering::Relaxed))
    }
}

/// The lists of one queue.
pub(super) struct Lists<P: Platform> {
    /// All that may be referred to from outside (the queue's invariant 1).
    kept: Graveyard<Kept<P>>,
    /// Submitted, in order.
    line: LinkedList<InLine<P>>,
    /// What met a claimed group, with all later ones about the same device, by device and turn.
    aside: RBTree<Aside<P>>,
    turns: u64,
    aside_count: usize,
}

impl<P: Platform> Lists<P> {
    pub(super) fn new() -> Self {
        Self {
            kept: Graveyard::new(LinkedList::new(Kept::new())),
            line: LinkedList::new(InLine::new()),
            aside: RBTree::new(Aside::new()),
            turns: 0,
            aside_count: 0,
        }
    }

    pub(super) fn keep(&mut self, node: Arc<Node<P>>) {
        self.kept.bury(node);
    }

    /// Takes a request to which nobody refers any more.
    pub(super) fn take_unused(&mut self) -> Option<Arc<Node<P>>> {
        // The list's reference is in hand: were there another one, it could be cloned from; there is none.
        self.kept.take(|node| Arc::strong_count(node) == 1)
    }

    /// In how many goes of [`take_unused`](Self::take_unused) all that are kept are looked at.
    pub(super) const fn rounds(&self) -> usize {
        self.kept.rounds()
    }

    /// Puts a request at the end of the line.
    pub(super) fn line_up(&mut self, node: Arc<Node<P>>) {
        self.turns = self.turns.saturating_add(1);
        node.turn.store(self.turns, Ordering::Relaxed);
        self.line.push_back(node);
    }

    /// The first in line.
    pub(super) fn take_first(&mut self) -> Option<Arc<Node<P>>> {
        self.line.pop_front()
    }

    /// Whether a request has come that was not tried yet.
    pub(super) fn has_new(&self) -> bool {
        !self.line.is_empty()
    }

    /// Whether something about this device is aside.
    pub(super) fn has_aside(&self, key: DeviceKey) -> bool {
        self.aside.lower_bound(Bound::Included(&(key, 0))).get().is_some_and(|node| node.key() == key)
    }

    pub(super) fn put_aside(&mut self, node: Arc<Node<P>>) {
        self.aside_count = self.aside_count.saturating_add(1);
        self.aside.insert(node);
    }

    /// The oldest aside of the first device after `after`.
    pub(super) fn take_aside(&mut self, after: Option<DeviceKey>) -> Option<Arc<Node<P>>> {
        let last = after.map(|key| (key, u64::MAX));
        let node = self.aside.lower_bound_mut(last.as_ref().map_or(Bound::Unbounded, Bound::Excluded)).remove();
        if node.is_some() {
            self.aside_count = self.aside_count.saturating_sub(1);
        }
        node
    }

    /// How many are aside.
    pub(super) const fn aside(&self) -> usize {
        self.aside_count
    }
}

impl<P: Platform> Drop for Lists<P> {
    /// The queue goes: nobody will carry out what is left.
    fn drop(&mut self) {
        while let Some(node) = self.take_first().or_else(|| self.take_aside(None)) {
            node.cancel();
        }
        P::wake();
    }
}
