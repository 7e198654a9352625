//! How many stream-map entries are spoken for: those in use, and those that were promised and are not written yet.
//!
//! A promise is made with nothing locked. What it rests on, whose entries stand where, is looked at again when it is
//! carried out; that there are enough of them needs no second look.
//!
//! # Locking
//!
//! None: one word counts.
//!
//! # Invariants
//!
//! 1. At any instant the count is at least what is in use and promised together. Whoever takes adds first; whoever frees
//!    subtracts last. So it can be too high for a moment, and a promise be refused for what an overlapping operation holds
//!    (contract C-15), but never too low.

use alloc::sync::Arc;

use super::stream_map::EntryIndex;
use crate::assign::{IommuError, Resource};
use crate::sync::atomic::{AtomicU32, Ordering};

/// The entries of one instance.
#[derive(Debug)]
pub(super) struct Budget {
    total: u32,
    taken: AtomicU32,
}

/// How many entries a device was promised, for whoever asks who has them (contract A-5).
#[derive(Debug, Default)]
pub(super) struct Promised(AtomicU32);

/// Entries that are kept free. They are given back when this goes: at the latest when its holder is dropped, which takes
/// no lock.
#[derive(Debug)]
#[must_use = "what is promised is given back when this is dropped"]
pub(super) struct Promise {
    budget: Arc<Budget>,
    shown: Arc<Promised>,
    count: u32,
}

impl Budget {
    pub(super) fn new(total: EntryIndex) -> Arc<Self> {
        Arc::new(Self { total: total.into(), taken: AtomicU32::new(0) })
    }

    /// How many entries are neither in use nor promised.
    pub(super) fn free(&self) -> usize {
        usize::try_from(self.total.saturating_sub(self.taken.load(Ordering::Relaxed))).unwrap_or(0)
    }

    /// Keeps `count` entries for the device that shows `shown`.
    pub(super) fn promise(self: &Arc<Self>, count: usize, shown: &Arc<Promised>) -> Result<Promise, IommuError> {
        let wanted = u32::try_from(count).unwrap_or(u32::MAX);
        let take = |taken: u32| taken.checked_add(wanted).filter(|taken| *taken <= self.total);
        if let Err(taken) = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take) {
            let free = usize::try_from(self.total.saturating_sub(taken)).unwrap_or(0);
            return Err(IommuError::Exhausted {
                resource: Resource::StreamMapEntries,
                needed: count.saturating_sub(free),
                free,
                total: usize::try_from(self.total).unwrap_or(usize::MAX),
            });
        }
        shown.0.fetch_add(wanted, Ordering::Relaxed);
        Ok(Promise { budget: self.clone(), shown: shown.clone(), count: wanted })
    }

    /// So many free entries come into use.
    pub(super) fn take(&self, count: usize) {
        self.taken.fetch_add(u32::try_from(count).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    /// So many entries have become free.
    pub(super) fn give(&self, count: usize) {
        self.taken.fetch_sub(u32::try_from(count).unwrap_or(0), Ordering::Relaxed);
    }
}

impl Promised {
    pub(super) fn count(&self) -> usize {
        usize::try_from(self.0.load(Ordering::Relaxed)).unwrap_or(usize::MAX)
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.shown.0.fetch_sub(self.count, Ordering::Relaxed);
        self.budget.taken.fetch_sub(self.count, Ordering::Relaxed);
    }
}
