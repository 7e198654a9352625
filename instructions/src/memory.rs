//! Counts what is allocated: how often, how much is live, and the most that was live since a mark.
//!
//! Sizes are those that were asked for, without the allocator's own overhead. One thread allocates.

#![expect(unsafe_code, reason = "`GlobalAlloc` is an unsafe trait; every call goes to the system's allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator as it came. The default `realloc` and `alloc_zeroed` are made of
// `alloc` and `dealloc`, so that memory that grows counts as one allocation more.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are what `take` asks for.
        unsafe { take(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are what `give_back` asks for.
        unsafe { give_back(at, layout) }
    }
}

/// A function of its own, not inlined, so that an instruction counter can tell what is the allocator's.
///
/// # Safety
///
/// As [`GlobalAlloc::alloc`].
#[inline(never)]
unsafe fn take(layout: Layout) -> *mut u8 {
    ALLOCATIONS.fetch_add(1, Relaxed);
    let live = LIVE.fetch_add(layout.size(), Relaxed).saturating_add(layout.size());
    PEAK.fetch_max(live, Relaxed);
    // SAFETY: the caller's promises are what `System` asks for.
    unsafe { System.alloc(layout) }
}

/// The same for freeing.
///
/// # Safety
///
/// As [`GlobalAlloc::dealloc`].
#[inline(never)]
unsafe fn give_back(at: *mut u8, layout: Layout) {
    LIVE.fetch_sub(layout.size(), Relaxed);
    // SAFETY: the caller's promises are what `System` asks for.
    unsafe { System.dealloc(at, layout) }
}

/// What was live at one moment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    live: usize,
}

impl Mark {
    /// Now. The peak is counted from here.
    pub(crate) fn now() -> Self {
        let live = LIVE.load(Relaxed);
        PEAK.store(live, Relaxed);
        Self { live }
    }

    /// Bytes that were live at most since then, beyond those that were live then.
    pub(crate) fn carried(self) -> usize {
        PEAK.load(Relaxed).saturating_sub(self.live)
    }

    /// Bytes that are live now beyond those that were live then.
    pub(crate) fn kept(self) -> usize {
        LIVE.load(Relaxed).saturating_sub(self.live)
    }
}

/// How many allocations there were so far.
pub(crate) fn allocations() -> usize {
    ALLOCATIONS.load(Relaxed)
}
