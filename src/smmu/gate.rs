//! Who may work on an instance now, and who may change what it is: suspended, or gone.
//!
//! # Locking
//!
//! None: one atomic word. Entering counts as a call in flight; a refused entry is never counted (contract C-17).

use crate::assign::IommuError;
use crate::sync::inflight::{InFlight, Inside as Counted};
use crate::sync::{Bound, Platform, Watch, pause};

/// What an instance is. The order is that of the calls that get in: with each that follows, fewer do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Mode {
    /// In service.
    Running = 0,
    /// Without power, by request: work goes to the shadow only.
    Suspended = 1,
    /// On its way out: what acquires is refused, what releases still reaches the hardware.
    Leaving = 2,
    /// Out of service for good: what releases does so in software (contract C-9).
    Gone = 3,
    /// Being changed from one to another: nobody gets in, and those inside are waited for.
    Changing = 4,
}

/// What a call wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To take or to use something.
    Acquire,
    /// To give something back.
    Release,
}

#[derive(Debug)]
pub(super) struct Gate(InFlight);

/// A call in flight.
#[derive(Debug)]
#[must_use = "the call counts only while this lives"]
pub(super) struct Inside<'a> {
    _counted: Counted<'a>,
    pub(super) mode: Mode,
}

/// Nobody gets in; nobody is inside, once [`Gate::change`] has returned it.
#[derive(Debug)]
#[must_use = "the instance stays as it was unless `finish` is called"]
pub(super) struct Changing<'a> {
    gate: &'a Gate,
    next: Mode,
}

impl Gate {
    pub(super) fn new() -> Self {
        Self(InFlight::new(Mode::Running as u8))
    }

    /// What the instance is at this moment.
    pub(super) fn mode(&self) -> Mode {
        mode_of(self.0.seen().state)
    }

    /// Enters, if that is possible now. Otherwise says what the instance is.
    pub(super) fn try_enter(&self, purpose: Purpose) -> Result<Inside<'_>, Mode> {
        let last = if purpose == Purpose::Release { Mode::Gone } else { Mode::Suspended };
        let mut mode = Mode::Changing;
        let counted = self.0.enter(|state| {
            mode = mode_of(state);
            state <= last as u8
        });
        counted.map(|counted| Inside { _counted: counted, mode }).map_err(|_| mode)
    }

    /// Enters. Waits for a change that is under way: what acquires within `bound`; what gives back until it ends, for who
    /// is refused there takes for cut off what the change brings back. Every change has a bound of its own.
    #[inline]
    pub(super) fn enter<P: Platform>(
        &self,
        purpose: Purpose,
        bound: impl FnOnce() -> Bound,
    ) -> Result<Inside<'_>, IommuError> {
        self.try_enter(purpose).or_else(|_| self.wait_to_enter::<P>(purpose, bound()))
    }

    #[cold]
    fn wait_to_enter<P: Platform>(&self, purpose: Purpose, bound: Bound) -> Result<Inside<'_>, IommuError> {
        let mut watch = Watch::<P>::start(bound);
        loop {
            // Asked before the look, so that there is one after the time is over.
            let was_last = watch.is_last();
            match self.try_enter(purpose) {
                Ok(inside) => return Ok(inside),
                Err(Mode::Leaving | Mode::Gone) => return Err(IommuError::ProviderGone),
                Err(Mode::Changing) if purpose == Purpose::Release || !was_last => pause(),
                Err(_) => return Err(IommuError::Busy),
            }
        }
    }

    /// Shuts out everybody, if the instance is `from`; then waits, within `bound`, for those inside to leave. Where they
    /// do not, it opens again as it was (contract C-1: no new holds, then drain).
    pub(super) fn change<P: Platform>(&self, from: Mode, bound: Bound) -> Result<Changing<'_>, IommuError> {
        let shut = self.0.change(|seen| (mode_of(seen.state) == from).then_some(Mode::Changing as u8));
        let changing = match shut {
            Ok(_) => Changing { gate: self, next: from },
            Err(seen) if mode_of(seen.state) == Mode::Gone => return Err(IommuError::ProviderGone),
            Err(_) => return Err(IommuError::Busy),
        };
        let mut watch = Watch::<P>::start(bound);
        loop {
            let is_last = watch.is_last();
            if self.0.seen().calls == 0 {
                return Ok(changing);
            }
            if is_last {
                return Err(IommuError::Busy);
            }
            pause();
        }
    }

    /// From now on only what releases gets in. Says whether the instance had been in service or suspended. Waits, within
    /// `bound`, for a change that is under way: it is not this caller's to take over.
    pub(super) fn close<P: Platform>(&self, bound: Bound) -> Result<Mode, IommuError> {
        let mut watch = Watch::<P>::start(bound);
        loop {
            let is_last = watch.is_last();
            let closed = self.0.change(|seen| (mode_of(seen.state) == Mode::Running).then_some(Mode::Leaving as u8));
            match closed.map_or_else(|seen| mode_of(seen.state), |_| Mode::Leaving) {
                Mode::Changing if is_last => return Err(IommuError::Busy),
                Mode::Changing => pause(),
                mode => return Ok(mode),
            }
        }
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
        // Nobody else changes a word that says `Changing`.
        let _ = self.gate.0.change(|_| Some(self.next as u8));
    }
}

const fn mode_of(state: u8) -> Mode {
    match state {
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
    use crate::sync::{Micros, Spin};

    const BOUND: Bound = Bound { polls: 3, time: Micros::new(0) };

    fn enter(gate: &Gate, purpose: Purpose) -> Result<Mode, IommuError> {
        gate.enter::<Spin>(purpose, || BOUND).map(|inside| inside.mode)
    }

    fn change(gate: &Gate, from: Mode) -> Result<Changing<'_>, IommuError> {
        gate.change::<Spin>(from, BOUND)
    }

    #[test]
    fn nobody_is_inside_while_it_changes_and_a_refused_entry_is_not_counted() {
        let gate = Gate::new();
        assert_eq!(enter(&gate, Purpose::Acquire), Ok(Mode::Running));
        let inside = gate.try_enter(Purpose::Acquire);
        assert!(change(&gate, Mode::Running).is_err(), "somebody is inside");
        assert_eq!(enter(&gate, Purpose::Acquire), Ok(Mode::Running), "it is open again");
        drop(inside);
        let Ok(changing) = change(&gate, Mode::Running) else { return };
        assert_eq!(enter(&gate, Purpose::Acquire), Err(IommuError::Busy));
        assert!(gate.try_enter(Purpose::Release).is_err());
        assert_eq!(gate.close::<Spin>(BOUND), Err(IommuError::Busy), "it is another one's to change");
        changing.finish(Mode::Suspended);
        assert_eq!(enter(&gate, Purpose::Acquire), Ok(Mode::Suspended));
    }

    #[test]
    fn what_leaves_takes_no_more_and_gives_back_still() {
        let gate = Gate::new();
        let inside = gate.try_enter(Purpose::Acquire);
        assert_eq!(gate.close::<Spin>(BOUND), Ok(Mode::Leaving));
        assert_eq!(enter(&gate, Purpose::Acquire), Err(IommuError::ProviderGone));
        assert_eq!(enter(&gate, Purpose::Release), Ok(Mode::Leaving));
        assert!(change(&gate, Mode::Leaving).is_err());
        drop(inside);
        assert!(change(&gate, Mode::Leaving).is_ok());
    }
}
