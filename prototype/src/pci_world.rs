//! Cards behind a board's PCI host bridges.
//!
//! A device tree says which requester IDs a host bridge maps, not what is plugged in. So functions are put where the map
//! has IDs for them: behind a root port first, then on the root bus, and one whose ID the map folds onto another's.
//! What they are then is found out as on hardware: by enumerating configuration space.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_assign::assign::Stream;
use iommu_assign::dt;
use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
use iommu_assign::pci::{
    AcsControls, Bus, ConfigSpace, Delay, DeviceFunction, Enumeration, FunctionHooks, HostBridge, HostBridgeNumber,
    PortType, RequesterId, Sbdf, Segment, enumerate,
};

use crate::doorbells::Doorbell;
use crate::names::Names;

/// A configuration space, shared by the host bridge and the hooks of its functions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Space(Arc<Mutex<FakeConfigSpace>>);

impl Space {
    /// The space itself.
    pub(crate) fn lock(&self) -> MutexGuard<'_, FakeConfigSpace> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConfigSpace for Space {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        self.lock().read(function, offset)
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        self.lock().write(function, offset, value);
    }
}

/// A host bridge with what is behind it.
#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) path: String,
    pub(crate) host: HostBridge,
    pub(crate) space: Space,
    /// Where MSIs of functions behind it go, and what of that guests have mapped.
    pub(crate) msi: Option<dt::Msi>,
    pub(crate) doorbell: Option<Doorbell>,
    /// What was found by enumeration.
    pub(crate) found: Enumeration,
    /// Why nothing was plugged in, or what enumeration could not use.
    pub(crate) remarks: Vec<String>,
    cards: BTreeMap<Sbdf, Card>,
}

/// What a function is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Card {
    /// A root port, from its bus to the bus below.
    Port {
        /// The bus that it is on.
        bus: u8,
        /// The bus below.
        below: u8,
    },
    /// A network controller.
    Ethernet {
        /// One of several functions of its device.
        of_several: bool,
    },
    /// An NVMe controller.
    Storage,
    /// A USB controller.
    Usb,
    /// A sound controller.
    Sound,
}

impl Card {
    fn function(self) -> FakeFunction {
        match self {
            Self::Port { bus, below } => FakeFunction::bridge(VENDOR, 0x1, bus, below, below)
                .express(PortType::RootPort)
                .acs(AcsControls::all(), AcsControls::all()),
            Self::Ethernet { of_several } => {
                let function = FakeFunction::endpoint(VENDOR, 0x2, 0x02_0000).express(PortType::Endpoint);
                if of_several { function.multi_function() } else { function }
            }
            // ATS is on as a boot loader may leave it: the hypervisor has to turn it off.
            Self::Storage => FakeFunction::endpoint(VENDOR, 0x3, 0x01_0802).express(PortType::Endpoint).ats(),
            Self::Usb => FakeFunction::endpoint(VENDOR, 0x4, 0x0c_0330).express(PortType::IntegratedEndpoint),
            Self::Sound => FakeFunction::endpoint(VENDOR, 0x5, 0x04_0300).express(PortType::IntegratedEndpoint),
        }
    }
}

/// What a class code stands for.
pub(crate) const fn kind(class: u32) -> &'static str {
    match class >> 8 {
        0x0108 => "NVMe",
        0x0200 => "Ethernet",
        0x0403 => "sound",
        0x0604 => "bridge",
        0x0c03 => "USB",
        _ => "function",
    }
}

/// Plugs cards in behind all host bridges of the board that firmware enables. Each with its node.
pub(crate) fn plug_all(board: &dt::Board<'_>, names: &Names) -> Vec<(Bridge, dt::NodeId)> {
    let bridges = || board.host_bridges().iter().filter(|bridge| bridge.enabled);
    let mut taken: Vec<u16> = bridges().filter_map(|bridge| bridge.segment).collect();
    let mut all: Vec<(Bridge, dt::NodeId)> = Vec::new();
    for (bridge, number) in bridges().zip(0..) {
        let segment = bridge.segment.or_else(|| (0..=u16::MAX).find(|segment| !taken.contains(segment)));
        let segment = segment.unwrap_or(number);
        taken.push(segment);
        let same_place = |(other, _): &&(Bridge, dt::NodeId)| {
            let buses = &other.host.buses;
            other.host.segment.0 == segment
                && buses.start().0 <= *bridge.buses.end()
                && *bridge.buses.start() <= buses.end().0
        };
        let twin = all.iter().find(same_place).map(|(other, _)| names.name(&other.path));
        all.push((Bridge::plug(bridge, number, segment, twin.as_deref()), bridge.node));
    }
    all
}

impl Bridge {
    /// Plugs cards in behind `bridge` and looks for them. `twin` has buses of the same numbers in the same segment.
    fn plug(bridge: &dt::HostBridge, number: u16, segment: u16, twin: Option<&str>) -> Self {
        let (number, segment) = (HostBridgeNumber(number), Segment(segment));
        let (host, refused) = match bridge.pci(number, segment) {
            Ok(host) => (host, None),
            Err(reason) => {
                let buses = Bus(*bridge.buses.start())..=Bus(*bridge.buses.end());
                let map = bridge.requesters.clone();
                (HostBridge { number, segment, buses, map, passthrough: bridge.passthrough }, Some(reason))
            }
        };
        let mut plugged = Self {
            path: bridge.path.clone(),
            host,
            space: Space::default(),
            msi: None,
            doorbell: None,
            found: Enumeration::default(),
            remarks: Vec::new(),
            cards: BTreeMap::new(),
        };
        if let Some(reason) = refused {
            plugged.remarks.push(format!("{reason}: nothing is plugged in"));
            return plugged;
        }
        if let Some(twin) = twin {
            plugged.remarks.push(format!("{twin} has the same buses: nothing is plugged in"));
            return plugged;
        }
        plugged.cards = Plan::of(&plugged.host, bridge.buses.clone()).0;
        for (at, card) in &plugged.cards {
            plugged.space.lock().insert(*at, card.function());
        }
        if plugged.cards.is_empty() {
            plugged.remarks.push("its map has no requester ID where a function could be".to_owned());
        }
        let found = enumerate(&*plugged.space.lock(), &plugged.host);
        match found {
            Ok(found) => {
                plugged.remarks.extend(found.problems.iter().map(ToString::to_string));
                plugged.found = found;
            }
            Err(error) => plugged.remarks.push(error.to_string()),
        }
        plugged
    }

    /// The library's hooks of a function, which turn off what would go round the SMMU. Nothing here takes real time.
    pub(crate) fn hooks(&self, function: &iommu_assign::pci::Function) -> Result<FunctionHooks<Space>, String> {
        let delay = Delay::sleeping(|_| ());
        FunctionHooks::new(self.space.clone(), function, &self.found, delay).map_err(|error| error.to_string())
    }

    /// Plugs the function in that was pulled out of this place.
    pub(crate) fn plug_again(&self, at: Sbdf) {
        if let Some(card) = self.cards.get(&at) {
            self.space.lock().insert(at, card.function());
        }
    }
}

/// Which card goes where.
struct Plan(BTreeMap<Sbdf, Card>);

impl Plan {
    fn of(host: &HostBridge, buses: RangeInclusive<u8>) -> Self {
        let mut plan = Self(BTreeMap::new());
        let root = *buses.start();
        let stream = |bus: u8, device: u8, function: u8| -> Option<Stream> {
            let place = DeviceFunction::new(device, function)?;
            host.map.stream(RequesterId::new(Bus(bus), place)).ok()
        };
        let mut put = |bus: u8, device: u8, function: u8, card: Card| {
            if let Some(place) = DeviceFunction::new(device, function) {
                plan.0.insert(Sbdf::new(host.segment, Bus(bus), place), card);
            }
        };
        let mut taken: BTreeSet<Stream> = BTreeSet::new();

        // A port must be somewhere, mapped or not; better where it is.
        let port = (0..32).find(|device| stream(root, *device, 0).is_some()).unwrap_or(0);
        let below = buses.clone().skip(1).find(|bus| stream(*bus, 0, 0).is_some());
        if let Some(below) = below {
            let of_several = stream(below, 0, 1).is_some();
            put(root, port, 0, Card::Port { bus: root, below });
            put(below, 0, 0, Card::Ethernet { of_several });
            if of_several {
                put(below, 0, 1, Card::Ethernet { of_several });
            }
            taken.extend([stream(root, port, 0), stream(below, 0, 0), stream(below, 0, 1)].into_iter().flatten());
        }
        let first_free = if below.is_some() { port.saturating_add(1) } else { 0 };

        let mut kinds = [Card::Storage, Card::Usb].into_iter();
        for device in first_free..32 {
            let Some(fresh) = stream(root, device, 0).filter(|fresh| !taken.contains(fresh)) else { continue };
            let Some(card) = kinds.next() else { break };
            put(root, device, 0, card);
            taken.insert(fresh);
        }
        // Last, one that the host bridge cannot tell from another on its bus.
        let folded = |device: &u8| stream(root, *device, 0).is_some_and(|stream| taken.contains(&stream));
        let is_used = |device: u8| {
            let place = DeviceFunction::new(device, 0).map(|place| Sbdf::new(host.segment, Bus(root), place));
            place.is_none_or(|place| plan.0.contains_key(&place))
        };
        if let Some(device) = (first_free..32).filter(|device| !is_used(*device)).find(folded)
            && let Some(place) = DeviceFunction::new(device, 0)
        {
            plan.0.insert(Sbdf::new(host.segment, Bus(root), place), Card::Sound);
        }
        plan
    }
}

/// Nobody's vendor ID: the cards are invented.
const VENDOR: u16 = 0x1234;
