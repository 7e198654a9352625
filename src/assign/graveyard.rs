//! What is registered no more, until nobody refers to it.
//!
//! Whoever drops a handle must not free what it refers to: that may happen in interrupt context. So the registry's own
//! reference outlives the registration here, and waiting context takes it from here when it is the only one left: a
//! handle that others drop is never the last (contract C-7).
//!
//! # Locking
//!
//! Part of the [`Registry`](super::registry::Registry): under its lock, but what was taken is dropped outside it.

use intrusive_collections::linked_list::LinkedListOps;
use intrusive_collections::{Adapter, LinkedList, PointerOps};

/// How many are looked at in one go, so that the lock is held for a bounded time.
const LOOKS: usize = 4;

type Pointer<A> = <<A as Adapter>::PointerOps as PointerOps>::Pointer;
type Value<A> = <<A as Adapter>::PointerOps as PointerOps>::Value;

/// Records whose registration has ended.
pub(super) struct Graveyard<A: Adapter>
where
    A::LinkOps: LinkedListOps,
{
    records: LinkedList<A>,
    count: usize,
}

impl<A: Adapter> Graveyard<A>
where
    A::LinkOps: LinkedListOps,
{
    pub(super) const fn new(records: LinkedList<A>) -> Self {
        Self { records, count: 0 }
    }

    pub(super) fn bury(&mut self, record: Pointer<A>) {
        self.records.push_back(record);
        self.count = self.count.saturating_add(1);
    }

    /// In how many goes all of them are looked at.
    pub(super) const fn rounds(&self) -> usize {
        self.count.div_ceil(LOOKS)
    }

    /// Takes a record to which nobody else refers, if there is one among the next few.
    pub(super) fn take(&mut self, unused: impl Fn(&Value<A>) -> bool) -> Option<Pointer<A>> {
        for _ in 0..LOOKS {
            if unused(self.records.front().get()?) {
                self.count = self.count.saturating_sub(1);
                return self.records.pop_front();
            }
            let kept = self.records.pop_front()?;
            self.records.push_back(kept);
        }
        None
    }
}
