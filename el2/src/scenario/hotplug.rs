//! Functions that come and go while everything else goes on.
//!
//! What is plugged in is powered, found, numbered, added and assigned. When its button is pressed it is taken from its guest,
//! removed, and its slot powered off. Each third one is pulled instead: its slot loses power while it is assigned, and the
//! service hears of it afterwards.

use alloc::vec::Vec;

use ::scenario::{Sideline, deadline};
use iommu_assign::pci::{Enumeration, Function, FunctionKind, PciKey, enumerate};
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
            place.here.clear();
        }
    }
}

impl Place<'_> {
    fn plug_in(&mut self, world: &World, number: usize) {
        self.slot.power_on(&self.bridge.space);
        let slot = self.slot.key;
        let is_below = |function: &&Function| slot.is_above(function.key);
        let mut found = self.look();
        for _ in 0..START_UP {
            if found.functions.iter().any(|function| is_below(&function)) {
                break;
            }
            time::pass(Micros::from_millis(1));
            found = self.look();
        }
        let guest = &world.guests[number % world.guests.len()];
        for function in found.functions.iter().filter(is_below) {
            let Some(master) = self.bridge.master(&found, function, &world.units) else { continue };
            let Some(device) = world.carry_out(|service| service.add(master.spec.clone())) else { continue };
            world.check(&master, None, 0);
            if function.kind == FunctionKind::Endpoint {
                world.carry_out(|service| service.assign(&device, &guest.domain));
                world.check(&master, Some(guest), 0);
            }
            self.here.push(master);
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

    fn look(&self) -> Enumeration {
        buses::number(&self.bridge.space, &self.bridge.host);
        enumerate(&*self.bridge.space, &self.bridge.host).unwrap_or_default()
    }

    /// The button was pressed.
    fn unplug(&mut self, world: &World) {
        self.take_back(world);
        self.slot.power_off(&self.bridge.space);
        SCORE.hot_plugs.count();
        crate::say!("slot {}: {} functions unplugged", self.slot.port, self.here.len());
        self.here.clear();
        self.pulled_at = None;
    }

    /// A surprise removal: the power goes while the functions are assigned.
    fn pull(&mut self, world: &World) {
        self.pulled_at = None;
        self.slot.power_off(&self.bridge.space);
        self.pulled(world);
    }

    /// The functions have gone, and the service does not know yet.
    fn pulled(&mut self, world: &World) {
        for master in self.here.iter().filter(|master| master.spec.passthrough) {
            let Some(info) = world.service.find(master.key()) else { continue };
            // Its function cannot be made quiet any more: it is taken from its guest all the same, and quarantined.
            if world.service.wait(deadline::<Hypervisor>(), |service| service.deassign(&info.device)).is_ok() {
                crate::violation!("{} was made quiet after it had gone", master.label());
            }
            world.check(master, None, 0);
        }
        self.remove(world);
        SCORE.hot_plugs.count();
        SCORE.surprises.count();
        crate::say!("slot {}: {} functions pulled while they were assigned", self.slot.port, self.here.len());
        self.here.clear();
        self.pulled_at = None;
    }

    fn take_back(&self, world: &World) {
        for master in self.here.iter().filter(|master| master.spec.passthrough) {
            if let Some(info) = world.service.find(master.key()) {
                world.carry_out(|service| service.deassign(&info.device));
                world.check(master, None, 0);
            }
        }
        self.remove(world);
    }

    /// What stands behind the slot goes as a tree, from each of its roots.
    fn remove(&self, world: &World) {
        let is_root = |key: PciKey| key.parent() == Some(self.slot.key);
        let roots = self.here.iter().filter(|master| PciKey::of(master.key()).is_some_and(is_root));
        for master in roots {
            world.carry_out(|service| service.remove_tree(master.key()));
        }
    }
}
