//! A bounded wait for the hardware: by time where the hypervisor has a clock, else by polls (contract C-14).

use core::fmt;
use core::marker::PhantomData;

use super::platform::Platform;
use super::time::Micros;

/// How long was waited for the hardware before it was taken for stuck.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waited {
    /// How often a status was read.
    pub polls: u32,
    /// The time that passed, where the hypervisor has a clock.
    pub time: Option<Micros>,
}

impl fmt::Display for Waited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { polls, time } = self;
        match time {
            Some(time) => write!(f, "{polls} polls in {time}"),
            None => write!(f, "{polls} polls"),
        }
    }
}

/// The most that is waited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bound {
    /// What counts where the clock is missing or stands still.
    pub(crate) polls: u32,
    /// What counts where there is a clock.
    pub(crate) time: Micros,
}

/// A wait that has begun.
#[derive(Debug)]
pub(crate) struct Watch<P> {
    bound: Bound,
    started: Option<Micros>,
    waited: Waited,
    platform: PhantomData<P>,
}

impl<P: Platform> Watch<P> {
    pub(crate) fn start(bound: Bound) -> Self {
        Self::resume(bound, 0)
    }

    /// A wait that has looked so often already.
    pub(crate) fn resume(bound: Bound, polls: u32) -> Self {
        Self { bound, started: P::now(), waited: Waited { polls, time: None }, platform: PhantomData }
    }

    /// Counts a poll that is about to be made, and says whether it is the last one. Asked before the poll, so that
    /// however long this CPU was held up, the hardware is looked at once more after its time was over.
    pub(crate) fn is_last(&mut self) -> bool {
        self.waited.polls = self.waited.polls.saturating_add(1);
        self.waited.time = self.started.zip(P::now()).map(|(started, now)| now.since(started));
        match self.waited.time {
            Some(passed) if passed > Micros::default() => passed >= self.bound.time,
            _ => self.waited.polls >= self.bound.polls,
        }
    }

    /// How long it has taken so far.
    pub(crate) const fn waited(&self) -> Waited {
        self.waited
    }
}

#[cfg(all(test, not(any(loom, shuttle))))]
mod tests {
    use core::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::sync::Spin;

    /// A clock that shows one value after the other.
    #[derive(Debug)]
    enum Stepping {}

    static SHOWN: AtomicU64 = AtomicU64::new(0);
    static STEP: AtomicU64 = AtomicU64::new(0);

    impl Platform for Stepping {
        type Lock = <Spin as Platform>::Lock;
        type Sharing = <Spin as Platform>::Sharing;

        fn barrier() {}

        fn now() -> Option<Micros> {
            Some(Micros::new(SHOWN.fetch_add(STEP.load(Ordering::Relaxed), Ordering::Relaxed)))
        }
    }

    fn polls<P: Platform>(bound: Bound) -> Waited {
        let mut watch = Watch::<P>::start(bound);
        while !watch.is_last() {}
        watch.waited()
    }

    #[test]
    fn c14_time_decides_where_there_is_a_clock_that_goes() {
        let bound = Bound { polls: 5, time: Micros::new(100) };
        assert_eq!(polls::<Spin>(bound), Waited { polls: 5, time: None });
        for (step, polls_made, passed) in [(10, 10, 100), (1000, 1, 1000), (1, 100, 100), (0, 5, 0)] {
            STEP.store(step, Ordering::Relaxed);
            assert_eq!(polls::<Stepping>(bound), Waited { polls: polls_made, time: Some(Micros::new(passed)) });
        }
    }
}
