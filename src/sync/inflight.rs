//! Revocable access: who is inside a thing, and whether anybody may still enter it.
//!
//! One atomic word holds a state and the number of calls in flight. Entering and counting are one step, so that a refused
//! entry is never counted, and a state in which nobody is admitted, once nobody is inside, stays empty (contract C-17).
//!
//! # Locking
//!
//! None: one atomic word. Every method is legal in interrupt context.

use core::fmt;
use core::sync::atomic::{AtomicU32, Ordering};

use super::broken::broken;

const COUNT_BITS: u32 = 24;
const COUNT: u32 = (1 << COUNT_BITS) - 1;

/// The word: the processor's, or an explorer's that may switch threads at each access.
pub(crate) trait Word: fmt::Debug {
    fn new(value: u32) -> Self;
    fn load(&self) -> u32;
    /// Changes it as `next` says in one step, with what it was.
    fn update(&self, next: impl FnMut(u32) -> Option<u32>) -> Result<u32, u32>;
    /// Counts one less, with what it was.
    fn leave(&self) -> u32;
}

macro_rules! word {
    ($atomic:ty) => {
        impl Word for $atomic {
            fn new(value: u32) -> Self {
                Self::new(value)
            }

            fn load(&self) -> u32 {
                self.load(Ordering::Acquire)
            }

            fn update(&self, next: impl FnMut(u32) -> Option<u32>) -> Result<u32, u32> {
                self.fetch_update(Ordering::AcqRel, Ordering::Acquire, next)
            }

            fn leave(&self) -> u32 {
                self.fetch_sub(1, Ordering::AcqRel)
            }
        }
    };
}

word!(AtomicU32);
#[cfg(any(loom, shuttle))]
word!(super::atomic::AtomicU32);

/// A state, and how many calls are in flight.
#[derive(Debug)]
pub(crate) struct InFlight<W: Word = AtomicU32>(W);

/// What the word said at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The state.
    pub(crate) state: u8,
    /// Calls in flight.
    pub(crate) calls: u32,
}

/// A call in flight, until it is dropped.
#[derive(Debug)]
#[must_use = "the call counts only while this lives"]
pub(crate) struct Inside<'a, W: Word = AtomicU32>(&'a InFlight<W>);

impl<W: Word> InFlight<W> {
    /// Nobody is inside.
    pub(crate) fn new(state: u8) -> Self {
        Self(W::new(word(state, 0)))
    }

    /// What the word says now. Whoever sees no call in flight sees all that those calls did.
    pub(crate) fn seen(&self) -> Seen {
        read(self.0.load())
    }

    /// Counts a call in, if `admits` says so of the state. Otherwise says what it saw.
    pub(crate) fn enter(&self, mut admits: impl FnMut(u8) -> bool) -> Result<Inside<'_, W>, Seen> {
        let entered = self.0.update(|now| {
            let seen = read(now);
            let admitted = admits(seen.state) && seen.calls < COUNT;
            (admitted || broken!("counted_refusal")).then(|| now.wrapping_add(1))
        });
        match entered.map(read) {
            Ok(seen) if broken!("counted_refusal") && !admits(seen.state) => Err(seen),
            Ok(_) => Ok(Inside(self)),
            Err(now) => Err(read(now)),
        }
    }

    /// Goes to the state that `next` names for what it sees; those inside stay counted. `Err` where it names none.
    pub(crate) fn change(&self, next: impl Fn(Seen) -> Option<u8>) -> Result<Seen, Seen> {
        let changed = self.0.update(|now| {
            let seen = read(now);
            next(seen).map(|state| word(state, seen.calls))
        });
        changed.map(read).map_err(read)
    }
}

impl<W: Word> Inside<'_, W> {
    /// Leaves, and says what the word says after that: whoever leaves last, of a state that admits nobody, wakes.
    pub(crate) fn leave(self) -> Seen {
        let left = read(self.0.0.leave());
        core::mem::forget(self);
        Seen { calls: left.calls.saturating_sub(1), ..left }
    }
}

impl<W: Word> Drop for Inside<'_, W> {
    fn drop(&mut self) {
        if !broken!("forgotten_leave") {
            self.0.0.leave();
        }
    }
}

const fn word(state: u8, calls: u32) -> u32 {
    ((state as u32) << COUNT_BITS) | (calls & COUNT)
}

const fn read(word: u32) -> Seen {
    Seen { state: (word >> COUNT_BITS) as u8, calls: word & COUNT }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use super::*;

    #[test]
    fn c17_a_refused_entry_is_never_counted_and_the_last_to_leave_sees_it() {
        let door = InFlight::<AtomicU32>::new(0);
        let open = |state| state == 0;
        let (one, two) = (door.enter(open), door.enter(open));
        assert_eq!(door.change(|_| Some(1)), Ok(Seen { state: 0, calls: 2 }));
        assert!(door.enter(open).is_err());
        assert_eq!(one.map(Inside::leave), Ok(Seen { state: 1, calls: 1 }));
        assert!(door.enter(open).is_err());
        assert_eq!(two.map(Inside::leave), Ok(Seen { state: 1, calls: 0 }));
        assert_eq!(door.seen(), Seen { state: 1, calls: 0 });
    }

    #[test]
    fn a_change_that_is_refused_changes_nothing() {
        let door = InFlight::<AtomicU32>::new(3);
        let inside = door.enter(|_| true);
        assert_eq!(door.change(|seen| (seen.calls == 0).then_some(4)), Err(Seen { state: 3, calls: 1 }));
        drop(inside);
        assert_eq!(door.change(|seen| (seen.calls == 0).then_some(4)), Ok(Seen { state: 3, calls: 0 }));
        assert_eq!(door.seen().state, 4);
    }
}
