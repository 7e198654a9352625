//! The functions of a segment, which can be pulled out.

use alloc::collections::BTreeMap;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::fake_function::FakeFunction;
use super::fake_resets::BRIDGE_CONTROL;
use crate::pci::{ConfigSpace, Sbdf};

/// A configuration space of [`FakeFunction`]s. What is not there reads as all ones.
///
/// Accesses go through atomics, so that tests can share it between threads; several CPUs changing one function at a
/// time is as wrong as in hardware.
#[derive(Debug, Default)]
pub struct FakeConfigSpace {
    functions: BTreeMap<Sbdf, FakeFunction>,
    accesses: AtomicU32,
    /// After so many accesses everything is gone; 0: never.
    gone_after: AtomicU32,
}

impl FakeConfigSpace {
    /// A space without functions.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Plugs a function in, in the place of the one that was there.
    pub fn insert(&mut self, at: Sbdf, function: FakeFunction) {
        self.functions.insert(at, function);
    }

    /// Pulls a function out: from now on it reads as all ones. Legal at any time, from any thread.
    pub fn remove(&self, at: Sbdf) {
        if let Some(function) = self.functions.get(&at) {
            function.pull_out();
        }
    }

    /// The function at this place, present or not.
    #[must_use]
    pub fn function(&self, at: Sbdf) -> Option<&FakeFunction> {
        self.functions.get(&at)
    }

    /// How many reads and writes there were.
    #[must_use]
    pub fn accesses(&self) -> u32 {
        self.accesses.load(Relaxed)
    }

    /// Lets all functions vanish after `accesses` more reads and writes.
    pub fn vanish_after(&self, accesses: u32) {
        self.gone_after.store(self.accesses().saturating_add(accesses).saturating_add(1), Relaxed);
    }

    fn reached(&self, at: Sbdf) -> Option<&FakeFunction> {
        let count = self.accesses.fetch_add(1, Relaxed).saturating_add(1);
        let limit = self.gone_after.load(Relaxed);
        let function = self.functions.get(&at).filter(|function| function.is_present())?;
        let in_reset = self.functions.values().any(|bridge| bridge.holds_in_reset(at.bus.0));
        ((limit == 0 || count < limit) && !in_reset).then_some(function)
    }
}

impl ConfigSpace for FakeConfigSpace {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        self.reached(function).map_or(u32::MAX, |function| function.read(offset))
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        let Some(reached) = self.reached(function) else { return };
        reached.write(offset, value);
        // What is below loses everything while its bus is held in reset.
        if offset & 0xffc == BRIDGE_CONTROL {
            let below = self.functions.iter().filter(|(at, _)| reached.holds_in_reset(at.bus.0));
            below.for_each(|(_, function)| function.reset());
        }
    }
}
