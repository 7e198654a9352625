//! Operations, and violations: what was not as it must be.

use alloc::format;
use alloc::string::String;
use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering};

use iommu_assign::assign::Error;

/// What all CPUs count.
#[derive(Debug)]
pub struct Score {
    /// Operations of the service that were carried out.
    pub operations: Counter,
    /// Of these, requests that the worker answered.
    pub requests: Counter,
    /// Flushes from timer interrupts.
    pub flushes: Counter,
    /// Flushes from timer interrupts that gave up waiting: their bound is small, and a CPU of an emulator may stand still for
    /// longer.
    pub impatient: Counter,
    /// Accesses of masters that were compared with what they must come to.
    pub accesses: Counter,
    /// Functions that were plugged in, unplugged or pulled.
    pub hot_plugs: Counter,
    /// Of these, pulled while they were assigned.
    pub surprises: Counter,
    /// Faults that interrupt handlers took in.
    pub faults: Counter,
    /// How often a handler masked its interrupt.
    pub masked: Counter,
    violations: Counter,
    tell: fn(fmt::Arguments<'_>),
}

/// Counts from any CPU and in any context.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts several. Says how many there were before.
    pub fn add(&self, number: u64) -> u64 {
        self.0.fetch_add(number, Ordering::Relaxed)
    }

    /// Counts one. Says how many there were before.
    pub fn count(&self) -> u64 {
        self.add(1)
    }

    /// How many there are.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Score {
    /// Nothing counted yet. `tell` says what is a violation, in any context.
    #[must_use]
    pub const fn new(tell: fn(fmt::Arguments<'_>)) -> Self {
        Self {
            operations: Counter::new(),
            requests: Counter::new(),
            flushes: Counter::new(),
            impatient: Counter::new(),
            accesses: Counter::new(),
            hot_plugs: Counter::new(),
            surprises: Counter::new(),
            faults: Counter::new(),
            masked: Counter::new(),
            violations: Counter::new(),
            tell,
        }
    }

    /// Something was not as it must be. The first few are told.
    pub fn violation(&self, text: fmt::Arguments<'_>) {
        if self.violations.count() < TOLD {
            (self.tell)(text);
        }
    }

    /// Counts an operation that must have been carried out, and gives its result.
    pub fn expect<T>(&self, result: Result<T, Error>) -> Option<T> {
        match result {
            Ok(done) => {
                self.operations.count();
                Some(done)
            }
            Err(error) => {
                self.violation(format_args!("{error}"));
                None
            }
        }
    }

    /// The sums so far. With the end's it is the last line of a run.
    #[must_use]
    pub fn line(&self, cpus: usize) -> String {
        format!(
            "{} operations on {cpus} CPUs, {} hot-plug events, {} faults by interrupt, {} violations",
            self.operations.value().saturating_add(self.flushes.value()),
            self.hot_plugs.value(),
            self.faults.value(),
            self.violations.value(),
        )
    }

    /// The status that a run ends with.
    #[must_use]
    pub fn status(&self) -> u8 {
        u8::from(self.violations.value() > 0)
    }
}

/// How many violations are told.
const TOLD: u64 = 20;

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    extern crate std;

    use std::string::ToString;
    use std::sync::Mutex;
    use std::vec::Vec;

    use iommu_assign::assign::{DeviceKey, Service, Source};
    use iommu_assign::sync::Spin;

    use super::super::Rules;
    use super::*;

    static TOLD_HERE: Mutex<Vec<String>> = Mutex::new(Vec::new());

    fn tell(text: fmt::Arguments<'_>) {
        TOLD_HERE.lock().unwrap().push(text.to_string());
    }

    #[test]
    fn a_violation_is_counted_and_the_first_twenty_are_told() {
        let score = Score::new(tell);
        assert_eq!(score.status(), 0);
        assert_eq!(score.line(2), "0 operations on 2 CPUs, 0 hot-plug events, 0 faults by interrupt, 0 violations");
        (0..25).for_each(|number| score.violation(format_args!("number {number}")));
        assert_eq!(score.status(), 1);
        assert!(score.line(2).ends_with(", 25 violations"), "{}", score.line(2));
        let told = TOLD_HERE.lock().unwrap();
        assert_eq!((told.len(), told.last().unwrap().as_str()), (20, "number 19"));
    }

    #[test]
    fn an_operation_that_fails_is_a_violation() {
        let score = Score::new(|_| ());
        assert_eq!(score.expect(Ok(7)), Some(7));
        let service = Service::<Spin>::new(alloc::boxed::Box::new(Rules));
        assert!(score.expect(service.remove(DeviceKey::new(Source::Dt, 1))).is_none());
        assert!(score.line(1).starts_with("1 operations") && score.line(1).ends_with(" 1 violations"));
        assert_eq!(score.status(), 1);
    }
}
