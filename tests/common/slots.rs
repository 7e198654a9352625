//! A machine with cards behind a host bridge: the bench, a configuration space of fakes, and a map from requester IDs to
//! streams of the same numbers.

use std::cell::Cell;
use std::sync::Arc;

use iommu_assign::assign::{Device, DeviceKey, Stream};
use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
use iommu_assign::pci::{
    AcsControls, Bus, Delay, Enumeration, Function, FunctionConfig, HostBridge, HostBridgeNumber, MapEntry, PciKey,
    PortType, Provider, RequesterIdMap, Sbdf, Segment, control, enumerate,
};

use iommu_assign::smmu::Setup;
use iommu_assign::sync::Micros;
use smmu_model::Config;

use super::supply::Supply;
use super::{Bench, SMMU, described};

thread_local! {
    static NOW: Cell<u64> = const { Cell::new(0) };
}

/// The time of this thread.
pub(crate) fn now() -> Micros {
    Micros::new(NOW.get())
}

/// Lets the time of this thread pass.
pub(crate) fn pass(time: Micros) {
    NOW.set(NOW.get() + time.value());
    std::thread::yield_now();
}

pub(crate) const DELAY: Delay = Delay::sleeping(pass);

pub(crate) fn at(text: &str) -> Sbdf {
    text.parse().unwrap()
}

/// A host bridge of which `streams` requester IDs from 0 up have a stream.
pub(crate) fn host(streams: u32) -> HostBridge {
    let map = RequesterIdMap::new([MapEntry::new(0, Provider::Smmu(SMMU), 0, streams)], RequesterIdMap::NO_MASK);
    HostBridge {
        number: HostBridgeNumber(1),
        segment: Segment(0),
        buses: Bus(0)..=Bus(0xff),
        map: map.unwrap(),
        passthrough: true,
    }
}

/// A root port on bus 0 that keeps apart what is below it.
pub(crate) fn port(secondary: u8, subordinate: u8) -> FakeFunction {
    FakeFunction::bridge(0x1b36, 0x000c, 0, secondary, subordinate)
        .express(PortType::RootPort)
        .acs(AcsControls::all(), AcsControls::all())
}

pub(crate) fn nic() -> FakeFunction {
    FakeFunction::endpoint(0x8086, 0x10d3, 0x02_0000).express(PortType::Endpoint)
}

/// A card with up to four virtual functions, whose access control services are `enabled` from the start.
pub(crate) fn sr_iov_nic(enabled: AcsControls) -> FakeFunction {
    nic()
        .ari()
        .sr_iov(4, 0x10, 2)
        .virtual_functions(0x1520, move |_| {
            FakeFunction::virtual_function(0x02_0000).express(PortType::Endpoint).acs(AcsControls::all(), enabled)
        })
        .virtual_bar(0, 0x8_0000_0000, 0x4000)
}

/// The bench, and what is plugged in.
pub(crate) struct Slots {
    pub(crate) bench: Bench,
    pub(crate) space: Arc<FakeConfigSpace>,
    pub(crate) host: HostBridge,
}

impl Slots {
    pub(crate) fn new(functions: Vec<(&str, FakeFunction)>) -> Self {
        let mut space = FakeConfigSpace::new().with_clock(now);
        for (place, function) in functions {
            space.insert(at(place), function);
        }
        Self { bench: Bench::v2(), space: Arc::new(space), host: host(0x8000) }
    }

    /// The same, with an SMMU whose power fails when the supply says so.
    pub(crate) fn with_supply(functions: Vec<(&str, FakeFunction)>) -> (Self, Arc<Supply>) {
        let (mut slots, bench, supply) = (Self::new(functions), Bench::new(), Arc::new(Supply::default()));
        let (setup, model) = (Setup { power: Some(supply.clone()), ..Setup::default() }, Config::generic_v2());
        bench.smmu_through(described(SMMU, &model), setup, model, |registers| registers);
        slots.bench = bench;
        (slots, supply)
    }

    pub(crate) fn found(&self) -> Enumeration {
        enumerate(&*self.space, &self.host).unwrap()
    }

    pub(crate) fn key(&self, place: &str) -> PciKey {
        let found = self.found();
        found.functions.iter().find(|function| function.sbdf == at(place)).unwrap().key
    }

    /// Adds a function that was found, and all bridges above it.
    pub(crate) fn add(&mut self, place: &str) -> Device {
        let found = self.found();
        let function = found.functions.iter().find(|function| function.sbdf == at(place)).unwrap();
        for above in found.functions.iter().filter(|above| above.key.is_above(function.key)) {
            if self.bench.service.find(above.key.into()).is_none() {
                self.add_one(&found, above);
            }
        }
        self.add_one(&found, function)
    }

    fn add_one(&self, found: &Enumeration, function: &Function) -> Device {
        let config = FunctionConfig::new(&*self.space, function.sbdf).unwrap();
        control::turn_translation_services_off(&config, &function.capabilities).unwrap();
        self.bench.service.add(function.spec(&self.host, found).unwrap()).unwrap()
    }

    /// The labels of all that is registered, in the order of their keys.
    pub(crate) fn registered(&self) -> Vec<String> {
        self.bench.service.devices().map(|info| info.device.label().to_string()).collect()
    }

    /// All registers of all functions at these places.
    pub(crate) fn registers(&self, places: &[&str]) -> Vec<u32> {
        let functions = places.iter().map(|place| self.space.function(at(place)).unwrap());
        functions.flat_map(|function| (0..4096).step_by(4).map(|offset| function.peek(offset))).collect()
    }
}

/// The IDs of a device's streams.
pub(crate) fn ids(device: &Device) -> Vec<u32> {
    device.streams().iter().map(|stream: &Stream| stream.id().value()).collect()
}

/// The key under which the service knows a function.
pub(crate) fn service_key(key: PciKey) -> DeviceKey {
    key.into()
}
