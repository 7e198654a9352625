//! What has handles outside, until nobody refers to it.
//!
//! Whoever drops a handle must not free what it refers to: that may happen in interrupt context. So the library's own
//! reference outlives all use here, and waiting context takes it from here when it is the only one left: a handle that
//! others drop is never the last (contract C-7).
//!
//! # Locking
//!
//! Part of the [`Registry`](super::registry::Registry), and of a request queue's lists: under their locks, but what was
//! taken is dropped outside them.

use intrusive_collections::linked_list::LinkedListOps;
use intrusive_collections::{Adapter, LinkedList, PointerOps};

/// How many are looked at in one go, so that the lock is held for a bounded time.
const LOOKS: usize = 4;

type Pointer<A> = <<A as Adapter>::PointerOps as PointerOps>::Pointer;

/// The library's own references to what others may refer to still.
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
    pub(super) fn take(&mut self, unused: impl Fn(&Pointer<A>) -> bool) -> Option<Pointer<A>> {
        for _ in 0..LOOKS {
            let record = self.records.pop_front()?;
            if unused(&record) {
                self.count = self.count.saturating_sub(1);
                return Some(record);
            }
            self.records.push_back(record);
        }
        None
    }
}

/// Has `step` take what it can, one go at a time, until it has looked at everything in vain. It says in how many goes
/// that is, and drops what it took when no lock is held.
pub(super) fn take_all<T>(mut step: impl FnMut() -> (Option<T>, usize)) {
    let mut in_vain = 0_usize;
    loop {
        let (taken, rounds) = step();
        in_vain = if taken.is_none() { in_vain.saturating_add(1) } else { 0 };
        if in_vain > rounds {
            return;
        }
    }
}
