//! Which locks were taken under which, as it happened: what tests compare with the documented order (contract C-13).
//!
//! With feature `trace-locks` only, which is for tests on the host. The recorder knows nothing of the types that keep
//! the order: it sees each acquisition and each release, and what the thread holds in between. Without the feature
//! nothing of it is compiled.
//!
//! Everything is of the calling thread alone; threads do not see each other's locks.
//!
//! ```
//! use iommu_assign::assign::{FirmwareMarks, Service};
//! use iommu_assign::sync::{Spin, trace};
//!
//! let service = Service::<Spin>::new(Box::new(FirmwareMarks));
//! let (count, trace) = trace::record(|| service.devices().count());
//! assert_eq!(count, 0);
//! assert_eq!(trace.most_acquisitions("Registry"), 1);
//! assert!(trace.edges().is_empty() && !trace::is_held());
//! ```

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, Ordering};

/// What was recorded of one thread.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    edges: BTreeSet<(&'static str, &'static str)>,
    holds: Vec<Hold>,
}

/// One lock: its level, and its number among all locks of the process, in the order of their first acquisition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Object {
    /// The level's name, as docs/locking.md spells it.
    pub level: &'static str,
    /// The number.
    pub number: u64,
}

/// One lock, from its acquisition to its release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hold {
    /// The lock.
    pub object: Object,
    /// Register accesses meanwhile, as [`register_access`] told of them.
    pub accesses: u64,
}

impl Trace {
    /// Each pair of levels of which the second was taken while the first was held.
    #[must_use]
    pub const fn edges(&self) -> &BTreeSet<(&'static str, &'static str)> {
        &self.edges
    }

    /// Each hold that has ended, in the order of their ends.
    #[must_use]
    pub fn holds(&self) -> &[Hold] {
        &self.holds
    }

    /// How often each lock was taken.
    #[must_use]
    pub fn acquisitions(&self) -> BTreeMap<Object, u64> {
        let mut all = BTreeMap::new();
        for hold in &self.holds {
            let count: &mut u64 = all.entry(hold.object).or_default();
            *count = count.saturating_add(1);
        }
        all
    }

    /// How often that lock of `level` was taken which was taken most; 0 where none was.
    #[must_use]
    pub fn most_acquisitions(&self, level: &str) -> u64 {
        let counts = self.acquisitions().into_iter();
        counts.filter(|(object, _)| object.level == level).map(|(_, count)| count).max().unwrap_or(0)
    }

    /// The most register accesses under one hold of a lock of `level`.
    #[must_use]
    pub fn longest_hold(&self, level: &str) -> u64 {
        let holds = self.holds.iter().filter(|hold| hold.object.level == level);
        holds.map(|hold| hold.accesses).max().unwrap_or(0)
    }
}

/// Runs `act` and tells what this thread locked meanwhile.
///
/// Where `act` records itself, that part is in the inner trace alone.
pub fn record<T>(act: impl FnOnce() -> T) -> (T, Trace) {
    let mut outer = None;
    note(|state| outer = state.trace.replace(Trace::default()));
    let done = act();
    let mut trace = None;
    note(|state| trace = core::mem::replace(&mut state.trace, outer.take()));
    (done, trace.unwrap_or_default())
}

/// The levels of the locks that this thread holds, or waits for, the outermost first.
#[must_use]
pub fn held() -> Vec<&'static str> {
    let mut levels = Vec::new();
    note(|state| levels.extend(state.held.iter().map(|hold| hold.object.level)));
    levels
}

/// Whether this thread holds a lock, or waits for one. Takes and frees no memory, so that an allocator may ask; the
/// recorder's own memory does not count.
#[must_use]
pub fn is_held() -> bool {
    HELD.get() > 0 && !AT_WORK.get()
}

/// Tells that a register was accessed. For whoever implements [`Registers`](crate::smmu::Registers) in tests.
pub fn register_access() {
    note(|state| {
        for hold in &mut state.held {
            hold.accesses = hold.accesses.saturating_add(1);
        }
    });
}

std::thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static AT_WORK: Cell<bool> = const { Cell::new(false) };
    static STATE: RefCell<State> = const { RefCell::new(State { held: Vec::new(), trace: None }) };
}

/// What is known of a thread.
struct State {
    held: Vec<Hold>,
    trace: Option<Trace>,
}

/// Changes what is known of this thread; a thread that is ending is not recorded any more.
fn note(act: impl FnOnce(&mut State)) {
    AT_WORK.set(true);
    let _ = STATE.try_with(|state| {
        if let Ok(mut state) = state.try_borrow_mut() {
            act(&mut state);
            HELD.set(state.held.len());
        }
    });
    AT_WORK.set(false);
}

/// What a lock is known by. Moves with it.
pub(super) struct Identity(AtomicU64);

/// A hold that is being recorded: it ends with the guard.
pub(super) struct Recorded {
    object: Object,
    /// What one thread holds is no other's business.
    not_send: PhantomData<*mut ()>,
}

impl Identity {
    /// That of a lock that was not taken yet.
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The lock, which is of `level`, is about to be waited for. An acquisition that deadlocks is recorded too.
    pub(super) fn taken(&self, level: &'static str) -> Recorded {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let fresh = || LAST.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        let number = match self.0.load(Ordering::Relaxed) {
            0 => {
                let fresh = fresh();
                self.0
                    .compare_exchange(0, fresh, Ordering::Relaxed, Ordering::Relaxed)
                    .map_or_else(|won| won, |_| fresh)
            }
            known => known,
        };
        let object = Object { level, number };
        note(|state| {
            if let Some(trace) = &mut state.trace {
                trace.edges.extend(state.held.iter().map(|outer| (outer.object.level, level)));
            }
            state.held.push(Hold { object, accesses: 0 });
        });
        Recorded { object, not_send: PhantomData }
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        note(|state| {
            let Some(at) = state.held.iter().rposition(|hold| hold.object == self.object) else { return };
            let hold = state.held.remove(at);
            if let Some(trace) = &mut state.trace {
                trace.holds.push(hold);
            }
        });
    }
}
