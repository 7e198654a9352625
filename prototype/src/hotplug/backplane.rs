//! Configuration space with three slots, whose cards can be pulled out at any access.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
use iommu_assign::pci::{AcsControls, Bus, ConfigSpace, DeviceFunction, PortType, Sbdf, Segment};

use super::clock;

/// A slot: the port that leads to it, and the card that belongs there.
#[derive(Debug)]
struct Slot {
    port: Sbdf,
    buses: std::ops::RangeInclusive<u8>,
    card: Vec<Sbdf>,
    is_out: AtomicBool,
    /// The card is pulled at the access that takes the last one of these; 0: it stays.
    fuse: AtomicU32,
}

/// The configuration space.
#[derive(Debug)]
pub(super) struct Backplane {
    space: FakeConfigSpace,
    slots: Vec<Slot>,
}

impl Backplane {
    /// All slots are empty.
    pub(super) fn new(segment: Segment) -> Self {
        let mut space = FakeConfigSpace::new().with_clock(clock::now);
        let mut slots = Vec::new();
        let place = |bus: u8, device: u8, function: u8| {
            DeviceFunction::new(device, function).map(|place| Sbdf::new(segment, Bus(bus), place))
        };
        for (port, device, card) in [(port(1, 4), 1, switch()), (port(5, 6), 2, network()), (port(7, 7), 3, pair())] {
            let Some(at) = place(0, device, 0) else { continue };
            let mut places = Vec::new();
            for ((bus, device, function), made) in card {
                let Some(at) = place(bus, device, function) else { continue };
                space.insert(at, made);
                places.push(at);
            }
            let first = places.iter().map(|place| place.bus.0).min().unwrap_or(0);
            let last = places.iter().map(|place| place.bus.0).max().unwrap_or(0);
            let (is_out, fuse) = (AtomicBool::new(false), AtomicU32::new(0));
            space.insert(at, port);
            // Virtual functions may be on the bus behind.
            slots.push(Slot {
                port: at,
                buses: first..=last.saturating_add(u8::from(first == 5)),
                card: places,
                is_out,
                fuse,
            });
        }
        let backplane = Self { space, slots };
        (0..SLOTS).for_each(|slot| backplane.pull(slot));
        backplane
    }

    /// Whether the slot is empty.
    pub(super) fn is_out(&self, slot: usize) -> bool {
        self.slots.get(slot).is_none_or(|slot| slot.is_out.load(Ordering::SeqCst))
    }

    /// The slot that a bus leads to.
    pub(super) fn slot_of(&self, bus: u8) -> Option<usize> {
        self.slots.iter().position(|slot| slot.buses.contains(&bus))
    }

    /// Pulls the card out.
    pub(super) fn pull(&self, slot: usize) {
        let Some(slot) = self.slots.get(slot) else { return };
        slot.fuse.store(0, Ordering::SeqCst);
        slot.is_out.store(true, Ordering::SeqCst);
        slot.card.iter().for_each(|place| self.space.remove(*place));
    }

    /// Plugs the card in, as it is after a reset.
    pub(super) fn plug(&self, slot: usize) {
        let Some(slot) = self.slots.get(slot) else { return };
        slot.card.iter().for_each(|place| self.space.plug_in(*place));
        slot.is_out.store(false, Ordering::SeqCst);
    }

    /// Someone begins to pull at the card: it is out after so many accesses.
    pub(super) fn pull_after(&self, slot: usize, accesses: u32) {
        if let Some(slot) = self.slots.get(slot) {
            slot.fuse.store(accesses, Ordering::SeqCst);
        }
    }

    /// The fuse that was lit goes out.
    pub(super) fn let_be(&self, slot: usize) {
        self.pull_after(slot, 0);
    }

    /// All registers of the functions of a slot, with their places.
    pub(super) fn registers(&self, slot: usize, of_port: bool) -> Vec<(Sbdf, u16, u32)> {
        let Some(slot) = self.slots.get(slot) else { return Vec::new() };
        let places = if of_port { std::slice::from_ref(&slot.port) } else { &slot.card };
        let functions = places.iter().filter_map(|place| Some((*place, self.space.function(*place)?)));
        functions
            .flat_map(|(at, one)| (0..0x1000).step_by(4).map(move |offset| (at, offset, one.peek(offset))))
            .collect()
    }

    fn accessed(&self, function: Sbdf) {
        let Some(number) = self.slot_of(function.bus.0) else { return };
        let Some(slot) = self.slots.get(number) else { return };
        let burnt = slot.fuse.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if burnt == Ok(1) {
            self.pull(number);
        }
    }
}

impl ConfigSpace for Backplane {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        self.accessed(function);
        self.space.read(function, offset)
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        self.accessed(function);
        self.space.write(function, offset, value);
    }
}

/// How many slots there are.
pub(super) const SLOTS: usize = 3;

/// The slot of the card with virtual functions, and how many it can have.
pub(super) const NETWORK: usize = 1;
pub(super) const VIRTUAL: u16 = 8;

type Card = Vec<((u8, u8, u8), FakeFunction)>;

/// A root port that keeps apart what is below it.
fn port(secondary: u8, subordinate: u8) -> FakeFunction {
    let port = FakeFunction::bridge(VENDOR, 0x1, 0, secondary, subordinate).express(PortType::RootPort);
    port.acs(AcsControls::all(), AcsControls::all()).ari_forwarding()
}

/// A card with a switch: two ports, an endpoint below each.
fn switch() -> Card {
    let upstream = FakeFunction::bridge(VENDOR, 0x2, 1, 2, 4).express(PortType::SwitchUpstream);
    let down = |below| {
        let port = FakeFunction::bridge(VENDOR, 0x3, 2, below, below).express(PortType::SwitchDownstream);
        port.acs(AcsControls::all(), AcsControls::all())
    };
    // ATS is on as a boot loader may leave it.
    let storage = FakeFunction::endpoint(VENDOR, 0x4, 0x01_0802).express(PortType::Endpoint).ats();
    let usb = FakeFunction::endpoint(VENDOR, 0x5, 0x0c_0330).express(PortType::Endpoint);
    vec![((1, 0, 0), upstream), ((2, 0, 0), down(3)), ((2, 1, 0), down(4)), ((3, 0, 0), storage), ((4, 0, 0), usb)]
}

/// A network card with virtual functions, some of them on the bus behind its own.
fn network() -> Card {
    let virtual_function = |_| {
        let function = FakeFunction::virtual_function(0x02_0000).express(PortType::Endpoint).ats();
        function.acs(AcsControls::all(), AcsControls::empty())
    };
    let card = FakeFunction::endpoint(VENDOR, 0x6, 0x02_0000).express(PortType::Endpoint).ari();
    let card = card.sr_iov(VIRTUAL, 0xe0, 8).virtual_functions(0x7, virtual_function);
    vec![((5, 0, 0), card.virtual_bar(0, 0x8_0000_0000, 0x4000))]
}

/// A card with two functions that nothing keeps apart.
fn pair() -> Card {
    let function =
        |device| FakeFunction::endpoint(VENDOR, device, 0x04_0300).express(PortType::Endpoint).multi_function();
    // Their stream IDs differ in two bits: no entry holds just the two, and each has its own also when entries run out.
    vec![((7, 0, 0), function(0x8)), ((7, 0, 3), function(0x9))]
}

/// Nobody's vendor ID: the cards are invented.
const VENDOR: u16 = 0x1234;
