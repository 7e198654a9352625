//! The first thread: cards that come and go, and virtual functions that are switched on and off.

use std::sync::Arc;
use std::thread;

use iommu_assign::assign::{Device, DeviceSpec, Removal};
use iommu_assign::pci::hotplug::{Departure, HotPlug, Slot, left};
use iommu_assign::pci::sriov::PhysicalFunction;
use iommu_assign::pci::{ConfigSpace, Enumeration, Function, FunctionHooks, FunctionKind};

use super::backplane::{Backplane, NETWORK, SLOTS, VIRTUAL};
use super::clock::DELAY;
use super::dice::Dice;
use super::rig::Rig;
use super::tally::Work;
use super::watched_hooks::{Kind, WatchedHooks};

/// What it knows of the slots.
pub(super) struct Functions<'a> {
    rig: &'a Rig,
    dice: Dice,
    /// What was found in each slot when its card came; none in one whose card has been taken out.
    found: [Option<Enumeration>; SLOTS],
}

impl<'a> Functions<'a> {
    pub(super) fn new(rig: &'a Rig) -> Self {
        Self { rig, dice: Dice::new(1), found: [const { None }; SLOTS] }
    }

    pub(super) fn play(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.step();
            (0..DMA).for_each(|_| self.rig.ledger.try_any(&mut self.dice));
        }
    }

    fn step(&mut self) {
        let slot = self.dice.below(SLOTS);
        if !self.is_in(slot) {
            self.plug(slot);
        } else if self.rig.backplane.is_out(slot) {
            self.leave(slot);
        } else {
            self.maybe_pull(slot, 8);
            match self.dice.below(12) {
                0 => {
                    self.rig.backplane.pull(slot);
                    self.leave(slot);
                }
                1 | 2 => self.request(slot),
                3 => self.arrive(slot),
                4..=7 => self.switch_on(),
                _ => self.switch_off(),
            }
        }
    }

    /// Someone begins to pull at the card, once in so many times.
    fn maybe_pull(&mut self, slot: usize, times: usize) {
        if self.dice.once_in(times) {
            let accesses = self.dice.below(400).saturating_add(1);
            self.rig.backplane.pull_after(slot, u32::try_from(accesses).unwrap_or(1));
        }
    }

    /// Whether a card came, and its departure was not told yet.
    fn is_in(&self, slot: usize) -> bool {
        self.found.get(slot).is_some_and(Option::is_some)
    }

    fn keep(&mut self, slot: usize, found: Option<Enumeration>) {
        if let Some(place) = self.found.get_mut(slot) {
            *place = found;
        }
    }

    fn below(&self, slot: usize) -> Option<Slot> {
        self.rig.ports.get(slot).map(|port| Slot::Below(*port))
    }

    // --- cards ---

    /// A card is plugged in, and gets power: whatever it held is lost.
    fn plug(&mut self, slot: usize) {
        self.rig.backplane.plug(slot);
        self.rig.ledger.was_reset(|key| self.rig.slot_of(key) == Some(slot));
        self.rig.tally.event();
        self.maybe_pull(slot, 6);
        self.arrive(slot);
    }

    /// What is in the slot is offered; what is known stays.
    fn arrive(&mut self, slot: usize) {
        let Some(below) = self.below(slot) else { return };
        let rig = self.rig;
        let events = HotPlug::new(&rig.service, &*rig.backplane, &rig.host, DELAY);
        let arrival = match events.arrived(below, &mut |function, found, spec| offer(rig, function, found, spec)) {
            Ok(arrival) => arrival,
            Err(error) => return rig.tally.violation(error.to_string()),
        };
        for arrived in &arrival.functions {
            rig.tally.arrived(&arrived.result, rig.backplane.is_out(slot));
            if let Ok(device) = &arrived.result {
                rig.ledger.meet(device);
            }
        }
        if !arrival.found.problems.is_empty() && !rig.backplane.is_out(slot) {
            let first = arrival.found.problems.first().map(ToString::to_string).unwrap_or_default();
            rig.tally.violation(format!("an arrival found a problem: {first}"));
        }
        self.keep(slot, Some(arrival.found));
    }

    /// Someone wants to take the card out. Where all of it is gone it loses its power.
    fn request(&mut self, slot: usize) {
        let Some(below) = self.below(slot) else { return };
        let rig = self.rig;
        let events = HotPlug::new(&rig.service, &*rig.backplane, &rig.host, DELAY);
        let departures = match events.requested(below) {
            Ok(departures) => departures,
            Err(error) => return rig.tally.violation(error.to_string()),
        };
        for departure in &departures {
            rig.tally.ended_at_function(Work::Request, &departure.result, rig.backplane.is_out(slot));
            if departure.is_gone() {
                rig.ledger.must_fault(&departure.device, "after it was taken out");
            }
        }
        if departures.iter().all(Departure::is_gone) {
            rig.backplane.pull(slot);
            rig.tally.event();
            self.keep(slot, None);
        }
    }

    /// The card is out: what it was leaves, whoever has it.
    fn leave(&mut self, slot: usize) {
        let Some(below) = self.below(slot) else { return };
        let rig = self.rig;
        let mut told: Vec<Device> = Vec::new();
        for _ in 0..PATIENCE {
            let departures = match left(&rig.service, below) {
                Ok(departures) => departures,
                Err(error) => return rig.tally.violation(error.to_string()),
            };
            let mut pending = false;
            for Departure { device, result, .. } in departures {
                if result == Ok(Removal::Pending) {
                    pending = true;
                } else {
                    rig.tally.ended(Work::Leave, &result);
                }
                if !told.iter().any(|known| known.id() == device.id()) {
                    told.push(device);
                }
            }
            if !pending {
                break;
            }
            // Another operation has it, and removes it when it ends.
            thread::yield_now();
        }
        let stays =
            |device: &&Device| rig.service.find(device.key()).is_some_and(|info| info.device.id() == device.id());
        if let Some(device) = told.iter().find(stays) {
            rig.tally.violation(format!("{} was pulled out and is registered still", device.label()));
        }
        told.iter().for_each(|device| rig.ledger.must_fault(device, "after it was pulled out"));
        rig.tally.event();
        self.keep(slot, None);
    }

    // --- virtual functions ---

    fn switch_on(&mut self) {
        let count = u16::try_from(self.dice.below(VIRTUAL.into())).unwrap_or(0).saturating_add(1);
        let rig = self.rig;
        let Some(physical) = self.physical() else { return };
        let mut offered = |function: &Function, spec: DeviceSpec| match self.found.get(NETWORK) {
            Some(Some(found)) => offer(rig, function, found, spec),
            _ => spec,
        };
        let on = physical.switch_on(&rig.service, count, DELAY, &mut offered);
        let is_out = rig.backplane.is_out(NETWORK);
        rig.tally.switched(Work::SwitchOn, &on, is_out);
        for one in on.iter().flatten() {
            rig.ledger.meet(&one.device);
        }
        // From here on nobody may reset the physical function.
        if let Ok(on) = &on {
            let listed = physical.virtual_functions();
            let is_out = rig.backplane.is_out(NETWORK);
            let keys = on.iter().map(|one| one.function.key);
            let all_on = listed.as_ref().is_ok_and(|listed| listed.iter().map(|one| one.key).eq(keys));
            if !all_on && !is_out {
                let told = listed.map_or_else(|error| error.to_string(), |listed| format!("{} are on", listed.len()));
                rig.tally.violation(format!("{count} virtual functions were switched on, and then: {told}"));
            }
        }
    }

    fn switch_off(&mut self) {
        let rig = self.rig;
        let Some(physical) = self.physical() else { return };
        let off = physical.switch_off(&rig.service, DELAY);
        rig.tally.switched(Work::SwitchOff, &off, rig.backplane.is_out(NETWORK));
    }

    /// The physical function, where its card is in.
    fn physical(&self) -> Option<PhysicalFunction<'_, Backplane>> {
        let found = self.found.get(NETWORK)?.as_ref()?;
        let rig = self.rig;
        let key = found.functions.iter().find(|function| function.capabilities.sr_iov.is_some())?.key;
        PhysicalFunction::new(&*rig.backplane, &rig.host, found, key).ok()
    }

    // --- the end ---

    /// Takes everything out, with nobody else there.
    pub(super) fn finish(&mut self) {
        for slot in (0..SLOTS).filter(|slot| self.is_in(*slot)).collect::<Vec<_>>() {
            self.rig.backplane.let_be(slot);
            if self.rig.backplane.is_out(slot) {
                self.leave(slot);
                continue;
            }
            if slot == NETWORK {
                self.switch_off();
            }
            self.request(slot);
        }
        if (0..SLOTS).any(|slot| self.is_in(slot)) {
            self.rig.tally.violation("a card could not be taken out at the end");
        }
    }
}

/// A function with the library's hooks, its bus mastering on as firmware may leave it. Bridges are not for guests.
fn offer(rig: &Rig, function: &Function, found: &Enumeration, spec: DeviceSpec) -> DeviceSpec {
    let is_endpoint = matches!(function.kind, FunctionKind::Endpoint | FunctionKind::Virtual);
    // It is as after a reset, for it was off.
    rig.ledger.was_reset(|key| key == spec.key && function.kind == FunctionKind::Virtual);
    let hooks = FunctionHooks::new(rig.backplane.clone(), function, found, DELAY);
    let kind = hooks.map_or(Kind::Pulled, |hooks| Kind::Function(Box::new(hooks)));
    if is_endpoint {
        rig.backplane.write(function.sbdf, COMMAND, MEMORY_AND_BUS_MASTER);
    }
    let hooks = Arc::new(WatchedHooks { ledger: rig.ledger.clone(), kind });
    DeviceSpec { hooks, passthrough: is_endpoint, ..spec }
}

const COMMAND: u16 = 4;
const MEMORY_AND_BUS_MASTER: u32 = 6;

/// How often a removal that waits for another operation is looked for.
const PATIENCE: usize = 1_000_000;

/// DMA that is tried after each step.
const DMA: usize = 4;
