//! Functions that come and go while everything else goes on.
//!
//! What is plugged in is powered and numbered here, found and added by the library (`arrived`), and assigned. When its button
//! is pressed the library takes it from its guest and removes it (`requested`), and its slot is powered off. Each third one is
//! pulled instead: its slot loses power while it is assigned, and the service hears of it afterwards (`left`).

use alloc::vec::Vec;

use ::scenario::Sideline;
use iommu_assign::pci::hotplug::{self, Departure};
use iommu_assign::pci::{Delay, Ecam, FunctionKind, OutOfMemory, enumerate};
use iommu_assign::sync::Micros;

use super::SCORE;
use super::world::{Bridge, World};
use crate::iommu::masters::Master;
use crate::iommu::platform::Hypervisor;
use crate::machine::time;
use crate::pci::buses;
use crate::pci::slots::{Event, Slot};

/// All slots of the machine.
pub(crate) struct HotPlug<'w> {
    world: &'w World,
    slots: Vec<Place<'w>>,
    plugged: usize,
    looked: Micros,
}

/// A slot with what is in it.
struct Place<'w> {
    bridge: &'w Bridge,
    slot: Slot,
    /// What was plugged in since the boot, as devices, bridges first.
    here: Vec<Master>,
    /// It is pulled at this time.
    pulled_at: Option<Micros>,
}

/// Slots are looked at so often.
const INTERVAL: Micros = Micros::from_millis(10);
/// How long what was powered on may take to answer.
const START_UP: u32 = 1000;
const PULL_AFTER: u64 = 50_000;

impl<'w> HotPlug<'w> {
    /// The slots that were empty at boot: what stood in the others belongs to other CPUs.
    pub(crate) fn new(world: &'w World) -> Self {
        let slots = world.machine.bridges.iter().flat_map(|bridge| {
            let functions = enumerate(&*bridge.space, &bridge.host).map(|found| found.functions).unwrap_or_default();
            let slots: Vec<Slot> = functions.iter().filter_map(|function| Slot::of(&bridge.space, function)).collect();
            slots.into_iter().map(move |slot| Place { bridge, slot, here: Vec::new(), pulled_at: None })
        });
        let slots: Vec<Place<'w>> = slots.filter(|place| !place.slot.is_occupied(&place.bridge.space)).collect();
        if !slots.is_empty() {
            // A script plugs things in from here on.
            crate::say!("{} empty slots", slots.len());
        }
        Self { world, slots, plugged: 0, looked: time::now() }
    }
}

impl Sideline for HotPlug<'_> {
    /// Looks at the slots, from time to time.
    fn step(&mut self) {
        let now = time::now();
        if now.since(self.looked) < INTERVAL {
            return;
        }
        self.looked = now;
        for place in &mut self.slots {
            match place.slot.poll(&place.bridge.space) {
                Some(Event::Attention) if place.here.is_empty() => {
                    place.plug_in(self.world, self.plugged);
                    self.plugged += 1;
                }
                Some(Event::Attention) => place.unplug(self.world),
                Some(Event::Gone) if !place.here.is_empty() => place.pulled(self.world),
                Some(Event::Gone) => {}
                None if place.pulled_at.is_some_and(|at| now >= at) => place.pull(self.world),
                None => {}
            }
        }
    }

    /// Removes what is plugged in still.
    fn finish(&mut self) {
        for place in &mut self.slots {
            place.take_back(self.world);
            place.empty(self.world);
        }
    }
}

impl Place<'_> {
    /// What stands below the port.
    fn below(&self) -> hotplug::Slot {
        hotplug::Slot::Below(self.slot.key)
    }

    /// The library's part.
    fn library<'a>(&'a self, world: &'a World) -> hotplug::HotPlug<'a, Hypervisor, Ecam> {
        hotplug::HotPlug::new(&world.service, &self.bridge.space, &self.bridge.host, Delay::sleeping(time::pass))
    }

    fn plug_in(&mut self, world: &World, number: usize) {
        self.slot.power_on(&self.bridge.space);
        let mut here = Vec::new();
        let mut arrived = Vec::new();
        for _ in 0..START_UP {
            buses::number(&self.bridge.space, &self.bridge.host);
            let arrival = self.library(world).arrived(self.below(), &mut |function, found, spec| {
                let Some(master) = self.bridge.master(spec.clone(), function, found, &world.units) else { return spec };
                here.push(master.clone());
                master.spec
            });
            arrived = arrival.map(|arrival| arrival.functions).unwrap_or_default();
            if !arrived.is_empty() {
                break;
            }
            time::pass(Micros::from_millis(1));
        }
        let guest = &world.guests[number % world.guests.len()];
        for (function, device) in arrived.iter().filter_map(|one| Some((&one.function, one.result.as_ref().ok()?))) {
            let Some(master) = here.iter().find(|master| master.key() == device.key()) else { continue };
            SCORE.operations.count();
            world.check(master, None, 0);
            if function.kind == FunctionKind::Endpoint {
                world.carry_out(|service| service.assign(device, &guest.domain));
                world.check(master, Some(guest), 0);
            }
            self.here.push(master.clone());
        }
        if self.here.is_empty() {
            crate::violation!("slot {}: what was plugged in does not answer", self.slot.port);
            return;
        }
        SCORE.hot_plugs.count();
        if number % 3 == 2 {
            self.pulled_at = Some(Micros::new(time::now().value() + PULL_AFTER));
        }
        crate::say!(
            "slot {}: {} functions plugged in, assigned to {}",
            self.slot.port,
            self.here.len(),
            guest.domain.label()
        );
    }

    /// The button was pressed.
    fn unplug(&mut self, world: &World) {
        self.take_back(world);
        self.slot.power_off(&self.bridge.space);
        SCORE.hot_plugs.count();
        crate::say!("slot {}: {} functions unplugged", self.slot.port, self.here.len());
        self.empty(world);
    }

    /// A surprise removal: the power goes while the functions are assigned.
    fn pull(&mut self, world: &World) {
        self.slot.power_off(&self.bridge.space);
        self.pulled(world);
    }

    /// The functions have gone, and the service does not know yet.
    fn pulled(&mut self, world: &World) {
        self.judge(hotplug::left(&world.service, self.below()));
        SCORE.hot_plugs.count();
        SCORE.surprises.count();
        crate::say!("slot {}: {} functions pulled while they were assigned", self.slot.port, self.here.len());
        self.empty(world);
    }

    fn take_back(&self, world: &World) {
        self.judge(self.library(world).requested(self.below()));
    }

    /// Everything that was in the slot has gone from the service.
    fn judge(&self, departures: Result<Vec<Departure>, OutOfMemory>) {
        match departures {
            Ok(departures) => {
                for Departure { device, result, .. } in departures.iter().filter(|departure| !departure.is_gone()) {
                    crate::violation!("slot {}: {} has not gone: {result:?}", self.slot.port, device.label());
                }
                departures.iter().for_each(|_| _ = SCORE.operations.count());
            }
            Err(error) => crate::violation!("slot {}: {error}", self.slot.port),
        }
    }

    /// Nothing that was there reaches anything any more.
    fn empty(&mut self, world: &World) {
        self.here.drain(..).for_each(|master| world.check(&master, None, 0));
        self.pulled_at = None;
    }
}
