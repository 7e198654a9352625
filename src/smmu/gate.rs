//! Who may work on an instance now, and who may change what it is: suspended, or gone.
//!
//! # Locking
//!
//! None: one atomic word. Entering counts as a call in flight; a refused entry is never counted (contract C-17).

use core::sync::atomic::{AtomicU32, Ordering};

use crate::assign::IommuError;

/// What an instance is, above the count of calls in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Mode {
    /// In service.
    Running = 0,
    /// Without power, by request: work goes to the shadow only.
    Suspended = 1 << COUNT_BITS,
    /// On its way out: what acquires is refused, what releases still reaches the hardware.
    Leaving = 2 << COUNT_BITS,
    /// Out of service for good: what releases does so in software (contract C-9).
    Gone = 3 << COUNT_BITS,
    /// Being changed from one to another: nobody is inside.
    Changing = 4 << COUNT_BITS,
}

const COUNT_BITS: u32 = 24;
const COUNT: u32 = (1 << COUNT_BITS) - 1;

/// What a call wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To take or to use something.
    Acquire,
    /// To give something back.
    Release,
}

#[derive(Debug)]
pub(super) struct Gate(AtomicU32);

/// A call in flight.
#[derive(Debug)]
#[must_use = "the call counts only while this lives"]
pub(super) struct Inside<'a> {
    gate: &'a Gate,
    pub(super) mode: Mode,
}

/// Nobody is inside, and nobody gets in.
#[derive(Debug)]
#[must_use = "the instance stays as it was unless `finish` is called"]
pub(super) struct Changing<'a> {
    gate: &'a Gate,
    next: Mode,
}

impl Gate {
    pub(super) const fn new() -> Self {
        Self(AtomicU32::new(Mode::Running as u32))
    }

    /// Enters. Waits for a change that is under way, which takes a bounded number of register accesses: `patience` looks.
    pub(super) fn enter(&self, purpose: Purpose, patience: u32) -> Result<Inside<'_>, IommuError> {
        for _ in 0..=patience {
            let seen = self.0.load(Ordering::Relaxed);
            let mode = mode_of(seen);
            match mode {
                Mode::Changing => {
                    core::hint::spin_loop();
                    continue;
                }
                Mode::Leaving | Mode::Gone if purpose == Purpose::Acquire => return Err(IommuError::ProviderGone),
                _ => {}
            }
            if seen & COUNT == COUNT {
                return Err(IommuError::Busy);
            }
            let entered =
                self.0.compare_exchange_weak(seen, seen.wrapping_add(1), Ordering::Acquire, Ordering::Relaxed);
            if entered.is_ok() {
                return Ok(Inside { gate: self, mode });
            }
        }
        Err(IommuError::Busy)
    }

    /// Shuts out everybody, if the instance is `from` and nobody is inside.
    pub(super) fn change(&self, from: Mode) -> Result<Changing<'_>, IommuError> {
        let changed = self.0.compare_exchange(from as u32, Mode::Changing as u32, Ordering::Acquire, Ordering::Relaxed);
        match changed {
            Ok(_) => Ok(Changing { gate: self, next: from }),
            Err(seen) if mode_of(seen) == Mode::Gone => Err(IommuError::ProviderGone),
            Err(_) => Err(IommuError::Busy),
        }
    }

    /// From now on only what releases gets in. Says whether the instance had been in service or suspended.
    pub(super) fn close(&self) -> Mode {
        let close = |seen| match mode_of(seen) {
            Mode::Running => Some(Mode::Leaving as u32 | seen & COUNT),
            _ => None,
        };
        match self.0.fetch_update(Ordering::AcqRel, Ordering::Acquire, close) {
            Ok(_) => Mode::Leaving,
            Err(seen) => mode_of(seen),
        }
    }

    pub(super) fn mode(&self) -> Mode {
        mode_of(self.0.load(Ordering::Acquire))
    }
}

impl Changing<'_> {
    /// What the instance is from now on.
    pub(super) fn finish(mut self, mode: Mode) {
        self.next = mode;
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.gate.0.store(self.next as u32, Ordering::Release);
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.gate.0.fetch_sub(1, Ordering::Release);
    }
}

const fn mode_of(word: u32) -> Mode {
    match word >> COUNT_BITS {
        0 => Mode::Running,
        1 => Mode::Suspended,
        2 => Mode::Leaving,
        3 => Mode::Gone,
        _ => Mode::Changing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_inside_while_it_changes_and_a_refused_entry_is_not_counted() {
        let gate = Gate::new();
        let inside = gate.enter(Purpose::Acquire, 1).map(drop);
        assert_eq!(inside, Ok(()));
        let inside = gate.enter(Purpose::Acquire, 1);
        assert!(gate.change(Mode::Running).is_err(), "somebody is inside");
        drop(inside);
        let Ok(changing) = gate.change(Mode::Running) else { return };
        assert_eq!(gate.enter(Purpose::Release, 3).map(drop), Err(IommuError::Busy));
        changing.finish(Mode::Suspended);
        assert_eq!(gate.mode(), Mode::Suspended);
        assert_eq!(gate.enter(Purpose::Acquire, 1).map(|inside| inside.mode), Ok(Mode::Suspended));
    }

    #[test]
    fn what_leaves_takes_no_more_and_gives_back_still() {
        let gate = Gate::new();
        let inside = gate.enter(Purpose::Acquire, 1);
        assert_eq!(gate.close(), Mode::Leaving);
        assert_eq!(gate.enter(Purpose::Acquire, 1).map(drop), Err(IommuError::ProviderGone));
        assert_eq!(gate.enter(Purpose::Release, 1).map(drop), Ok(()));
        assert!(gate.change(Mode::Leaving).is_err());
        drop(inside);
        assert!(gate.change(Mode::Leaving).is_ok());
    }
}
