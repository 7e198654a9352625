//! Records of objects that handles outside may refer to still.
//!
//! Dropping a handle is legal in interrupt context, so it must not free. The library keeps a reference of its own here until it
//! is the last one; waiting context takes it out and frees (contract C-7).
//!
//! # Locking
//!
//! Part of the registry, of the instances, and of a request queue's lists: under their locks. What is taken out is dropped with
//! no lock held.

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

/// Runs `step` until it has looked at everything in vain. It returns what it took, and in how many goes everything is looked
/// at; what it took is dropped here, with no lock held.
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
