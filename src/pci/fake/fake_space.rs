//! The functions of a segment, which can be pulled out, plugged in again, and renumbered with their buses.

use alloc::collections::BTreeMap;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use super::fake_function::FakeFunction;
use super::fake_resets::BRIDGE_CONTROL;
use crate::pci::{Bus, ConfigSpace, Sbdf};
use crate::sync::Micros;

/// A configuration space of [`FakeFunction`]s. What is not there reads as all ones.
///
/// Functions stand where they were inserted. Where software has given the bridge above another secondary bus since, they
/// answer there. Virtual functions answer where their physical function's capability says, while they are on.
///
/// Accesses go through atomics, so that tests can share it between threads; several CPUs changing one function at a
/// time is as wrong as in hardware.
#[derive(Debug, Default)]
pub struct FakeConfigSpace {
    functions: BTreeMap<Sbdf, FakeFunction>,
    accesses: AtomicU32,
    writes: AtomicU32,
    /// After so many accesses everything is gone; 0: never.
    gone_after: AtomicU32,
    clock: Option<fn() -> Micros>,
    has_virtual_functions: bool,
    is_renumbered: AtomicBool,
}

impl FakeConfigSpace {
    /// A space without functions.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Plugs a function in, in the place of the one that was there.
    pub fn insert(&mut self, at: Sbdf, function: FakeFunction) {
        self.has_virtual_functions |= function.has_virtual_functions();
        self.functions.insert(at, function);
    }

    /// Pulls a function out: from now on it reads as all ones, and so do its virtual functions. Legal at any time, from any
    /// thread.
    pub fn remove(&self, at: Sbdf) {
        if let Some(function) = self.functions.get(&at) {
            function.pull_out();
        }
    }

    /// Plugs a function in again that was pulled out, as it is after a reset. Legal at any time, from any thread.
    pub fn plug_in(&self, at: Sbdf) {
        if let Some(function) = self.functions.get(&at) {
            function.plug_in();
        }
    }

    /// The function that was inserted at this place, present or not.
    #[must_use]
    pub fn function(&self, at: Sbdf) -> Option<&FakeFunction> {
        self.functions.get(&at)
    }

    /// How many reads and writes there were.
    #[must_use]
    pub fn accesses(&self) -> u32 {
        self.accesses.load(Relaxed)
    }

    /// How many of them were writes.
    #[must_use]
    pub fn writes(&self) -> u32 {
        self.writes.load(Relaxed)
    }

    /// Lets all functions vanish after `accesses` more reads and writes.
    pub fn vanish_after(&self, accesses: u32) {
        self.gone_after.store(self.accesses().saturating_add(accesses).saturating_add(1), Relaxed);
    }

    /// Tells time by this clock, for what takes time after virtual functions were switched.
    #[must_use]
    pub fn with_clock(mut self, clock: fn() -> Micros) -> Self {
        self.clock = Some(clock);
        self
    }

    /// In microseconds; the end of time without a clock, so that nothing comes too early.
    fn now(&self) -> u64 {
        self.clock.map_or(u64::MAX, |clock| clock().value())
    }

    fn reached(&self, at: Sbdf) -> Option<&FakeFunction> {
        let count = self.accesses.fetch_add(1, Relaxed).saturating_add(1);
        let limit = self.gone_after.load(Relaxed);
        let function =
            self.inserted(at).and_then(|at| self.functions.get(&at)).filter(|function| function.is_present());
        let function = function.or_else(|| self.virtual_function(at))?;
        let in_reset = self.functions.values().any(|bridge| bridge.holds_in_reset(at.bus.0));
        ((limit == 0 || count < limit) && !in_reset).then_some(function)
    }

    fn virtual_function(&self, at: Sbdf) -> Option<&FakeFunction> {
        if !self.has_virtual_functions {
            return None;
        }
        let same_segment = self.functions.iter().filter(|(own, _)| own.segment == at.segment);
        let (wanted, now) = (at.requester_id().0, self.now());
        let mut found = same_segment.filter_map(|(own, function)| {
            let bus = self.numbers().find(|(first, _)| *first == own.bus).map_or(own.bus, |(_, bus)| bus);
            function.virtual_with(Sbdf { bus, ..*own }.requester_id().0, wanted, now)
        });
        found.next()
    }

    /// Where the function was inserted that now answers at a place.
    fn inserted(&self, at: Sbdf) -> Option<Sbdf> {
        if !self.is_renumbered.load(Relaxed) {
            return Some(at);
        }
        let here = self.numbers().find(|(_, bus)| *bus == at.bus).map(|(first, _)| first);
        let has_left = || self.numbers().any(|(first, _)| first == at.bus);
        let bus = if let Some(first) = here {
            first
        } else if has_left() {
            return None;
        } else {
            at.bus
        };
        Some(Sbdf { bus, ..at })
    }

    /// The secondary bus of each bridge: as it was inserted, and now.
    fn numbers(&self) -> impl Iterator<Item = (Bus, Bus)> {
        let bridges = self.functions.values().filter(|function| function.peek(HEADER_TYPE) >> 16 & 0x7f == 1);
        bridges.map(|bridge| {
            let [_, first, ..] = bridge.registers.initial(BUS_NUMBERS).to_le_bytes();
            let [_, now, ..] = bridge.peek(BUS_NUMBERS).to_le_bytes();
            (Bus(first), Bus(now))
        })
    }
}

impl ConfigSpace for FakeConfigSpace {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        self.reached(function).map_or(u32::MAX, |function| function.read(offset, self.now()))
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        self.writes.fetch_add(1, Relaxed);
        let Some(reached) = self.reached(function) else { return };
        reached.write(offset, value, self.now());
        if offset == BUS_NUMBERS {
            self.is_renumbered.store(true, Relaxed);
        }
        // What is below loses everything while its bus is held in reset.
        if offset & 0xffc == BRIDGE_CONTROL {
            let below = self.functions.iter().filter(|(at, _)| reached.holds_in_reset(at.bus.0));
            below.for_each(|(_, function)| function.reset());
        }
    }
}

const HEADER_TYPE: u16 = 0x0c;
const BUS_NUMBERS: u16 = 0x18;
