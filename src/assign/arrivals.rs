//! Adds that have published their streams and are not registered yet: whoever meets one finds nobody under its number.
//!
//! # Locking
//!
//! None: one word. It is looked at under the registry's lock, so that an arrival that is not found there is counted here,
//! or gone from its IOMMUs.

use crate::sync::atomic::{AtomicU64, Ordering};

/// How many, and whether somebody has met one and may wait for what becomes of it.
#[derive(Debug)]
pub(super) struct Arrivals(AtomicU64);

const MET: u64 = 1 << 63;

impl Arrivals {
    pub(super) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// One is about to publish its streams.
    pub(super) fn begin(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    /// One is registered, or has taken its streams back. Says whether somebody may wait for that.
    pub(super) fn end(&self) -> bool {
        let without = |word: u64| Some((word & !MET).saturating_sub(1));
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, without).is_ok_and(|word| word & MET != 0)
    }

    /// [`end`](Self::end) of one that has met another, and so may wait itself: the others wake, lest it wakes itself and
    /// tries without end. The last one has nobody to leave that to.
    pub(super) fn give_way(&self) -> bool {
        let without = |word: u64| Some(if word & !MET > 1 { word.saturating_sub(1) } else { 0 });
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, without).is_ok_and(|word| word == MET | 1)
    }

    /// Whether there are others than the one that asks, which may have to wait for them.
    pub(super) fn meet(&self) -> bool {
        let others = |word: u64| (word & !MET > 1).then_some(word | MET);
        self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, others).is_ok()
    }
}
