//! All functions behind a host bridge.

use alloc::vec::Vec;

use super::capability::{Capabilities, PortType};
use super::config::{ConfigError, ConfigSpace, FunctionConfig, HeaderType};
use super::function::{Function, FunctionKind};
use super::host_bridge::HostBridge;
use super::key::{HostBridgeNumber, KeyError, PciKey};
use super::quirk_table::{FunctionQuirk, KNOWN_QUIRKS, Quirks};
use super::topology::{self, Alias, AliasKind, Isolation, IsolationCause};
use super::{Bus, DeviceFunction, Sbdf, Segment};
use crate::few;

/// What [`enumerate`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Enumeration {
    /// The functions, ascending by key: a bridge comes before what is below it.
    pub functions: Vec<Function>,
    /// What is there and cannot be used, with what is below it.
    pub problems: Vec<Problem>,
}

impl Enumeration {
    /// The function that `key` names, if it was found.
    #[must_use]
    pub fn function(&self, key: PciKey) -> Option<&Function> {
        let index = self.functions.binary_search_by_key(&key, |function| function.key).ok()?;
        self.functions.get(index)
    }
}

/// Something behind a host bridge that cannot be used. It stands in the way of nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// A function's configuration space is broken, or it vanished while it was read.
    #[error("{0}")]
    Config(ConfigError),
    /// A bridge's bus numbers lie outside those of the bus above, or are another bridge's. What is below is unknown.
    #[error("bridge {bridge} forwards to buses {:02x}-{:02x}, which are not its own", secondary.0, subordinate.0)]
    Buses {
        /// The bridge.
        bridge: Sbdf,
        /// The bus right below.
        secondary: Bus,
        /// The last bus below.
        subordinate: Bus,
    },
    /// What is below a bridge has no key.
    #[error("{0}")]
    Depth(KeyError),
}

/// No memory to list the functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("out of memory while listing PCI functions")]
pub struct OutOfMemory;

/// Lists all functions behind a host bridge. Reads only.
///
/// Any waiting context. Ends whatever the configuration space answers: each bus of the range is looked at once, each
/// function on it once, and capability lists are walked with a bound.
///
/// Virtual functions are not listed: they have no vendor ID of their own to be found by (9.3.4.1.1), and come and go
/// with their physical function. Those that are on already are [requester IDs](AliasKind::Virtual) of it; nobody may switch
/// on others ([`control::GuestWrites`](super::control::GuestWrites)).
///
/// # Errors
///
/// [`OutOfMemory`]. All else is among the [`Problem`]s.
pub fn enumerate<C: ConfigSpace + ?Sized>(space: &C, host: &HostBridge) -> Result<Enumeration, OutOfMemory> {
    enumerate_with(space, host, &[KNOWN_QUIRKS])
}

/// [`enumerate`] with other tables of quirks: `&[KNOWN_QUIRKS, MINE]` adds some, `&[MINE]` replaces the known ones.
///
/// # Errors
///
/// As for [`enumerate`].
pub fn enumerate_with<C: ConfigSpace + ?Sized>(
    space: &C,
    host: &HostBridge,
    quirks: &[&[FunctionQuirk]],
) -> Result<Enumeration, OutOfMemory> {
    enumerate_around(space, host, quirks, &|_| true)
}

/// [`enumerate_with`], of the buses below those bridges alone that `leads` accepts: those that lead to what is looked for,
/// and those below it.
pub(super) fn enumerate_around<C: ConfigSpace + ?Sized>(
    space: &C,
    host: &HostBridge,
    quirks: &[&[FunctionQuirk]],
    leads: &dyn Fn(PciKey) -> bool,
) -> Result<Enumeration, OutOfMemory> {
    let (segment, found, quirks) = (host.segment, Enumeration::default(), Quirks(quirks));
    let mut walk = Walk { space, segment, host: host.number, quirks, leads, found };
    let mut waiting = Vec::new();
    if host.buses.start() <= host.buses.end() {
        try_push(&mut waiting, Level::root(*host.buses.start(), *host.buses.end()))?;
    }
    while let Some(level) = waiting.pop() {
        walk.bus(&level, &mut waiting)?;
    }
    few::sort(&mut walk.found.functions, &|one, other| one.key < other.key);
    Ok(walk.found)
}

/// A bus to look at.
struct Level {
    bus: Bus,
    /// The last bus that may be below.
    last: Bus,
    /// The bridge above; none above a root bus.
    above: Option<PciKey>,
    /// A link leads to this bus, with one device at most.
    is_link: bool,
    /// The bus inside a switch, which its downstream ports are on.
    is_switch: bool,
    /// The port above forwards to 256 functions.
    ari: bool,
    /// What bridges above substitute.
    substitutes: Vec<Alias>,
    /// The group of all that is below, if a bridge above keeps nothing apart.
    group: Option<PciKey>,
}

impl Level {
    const fn root(bus: Bus, last: Bus) -> Self {
        Self {
            bus,
            last,
            above: None,
            is_link: false,
            is_switch: false,
            ari: false,
            substitutes: Vec::new(),
            group: None,
        }
    }
}

struct Walk<'a, C: ?Sized> {
    space: &'a C,
    segment: Segment,
    host: HostBridgeNumber,
    quirks: Quirks<'a>,
    leads: &'a dyn Fn(PciKey) -> bool,
    found: Enumeration,
}

/// Functions that could reach each other directly: those of one device, or the ports of one switch.
#[derive(Clone, Copy)]
struct Peers {
    count: u32,
    all_controlled: bool,
}

impl Peers {
    const NONE: Self = Self { count: 0, all_controlled: true };

    const fn with(self, more: Self) -> Self {
        Self {
            count: self.count.saturating_add(more.count),
            all_controlled: self.all_controlled && more.all_controlled,
        }
    }

    const fn are_apart(self) -> bool {
        self.count < 2 || self.all_controlled
    }
}

impl<C: ConfigSpace + ?Sized> Walk<'_, C> {
    fn bus(&mut self, level: &Level, waiting: &mut Vec<Level>) -> Result<(), OutOfMemory> {
        let begin = self.found.functions.len();
        let mut bus = Peers::NONE;
        // By the upper five bits of the function's place; behind a link all of them are device 0.
        let mut devices = [Peers::NONE; 32];
        for (number, device) in (0u8..).zip(&mut devices).take(if level.is_link { 1 } else { 32 }) {
            *device = self.device(level, DeviceFunction(number << 3))?;
            bus = bus.with(*device);
        }
        let mut free = BusSet::above(level.bus, level.last);
        let mut index = begin;
        while let Some(function) = self.found.functions.get_mut(index) {
            let place = function.sbdf.device_function;
            let first = if level.is_link { DeviceFunction(0) } else { place.first_of_device() };
            let device = devices.get(usize::from(first.device())).copied().unwrap_or(Peers::NONE);
            let key = function.key;
            let (group, cause) = match level.group {
                Some(group) => (group, IsolationCause::Bridge),
                None if level.is_switch && !bus.are_apart() => (key.sibling(DeviceFunction(0)), IsolationCause::Switch),
                None if !device.are_apart() => (key.sibling(first), IsolationCause::Device),
                None => (key, IsolationCause::Apart),
            };
            function.isolation = Isolation { group, cause };
            if let Some(below) = self.below(index, level, &mut free)? {
                try_push(waiting, below)?;
            }
            index = index.wrapping_add(1);
        }
        Ok(())
    }

    /// Lists the functions of one device.
    fn device(&mut self, level: &Level, first: DeviceFunction) -> Result<Peers, OutOfMemory> {
        let mut peers = Peers::NONE;
        let mut numbers = 0..=0u8;
        let mut next = numbers.next();
        while let Some(number) = next {
            let place = DeviceFunction(first.0 | number);
            let config = FunctionConfig::new(self.space, Sbdf::new(self.segment, level.bus, place));
            match config {
                Ok(config) => {
                    let capabilities = self.function(level, &config)?;
                    let controlled = capabilities.is_some_and(|found| self.is_controlled(config.ids(), &found));
                    peers = peers.with(Peers { count: 1, all_controlled: controlled });
                    if number == 0 {
                        let is_ari = level.ari && capabilities.is_some_and(|found| found.ari.is_some());
                        numbers = match config.is_multi_function() {
                            _ if is_ari => 1..=u8::MAX,
                            true => 1..=7,
                            false => numbers,
                        };
                    }
                }
                Err(ConfigError::NotPresent { .. }) => {}
                Err(error) => {
                    peers = peers.with(Peers { count: 1, all_controlled: false });
                    self.problem(Problem::Config(error))?;
                }
            }
            next = numbers.next();
        }
        Ok(peers)
    }

    /// Whether a function's requests to peers go up to the root complex.
    fn is_controlled(&self, ids: (u16, u16), capabilities: &Capabilities) -> bool {
        topology::has_access_control(capabilities) || self.quirks.keep_apart(ids, capabilities)
    }

    /// Lists one function that answered, and tells its capabilities if it can be used.
    fn function(&mut self, level: &Level, config: &FunctionConfig<'_, C>) -> Result<Option<Capabilities>, OutOfMemory> {
        let sbdf = config.function();
        let place = sbdf.device_function;
        let key = match level.above.map_or(Ok(PciKey::root(self.host, place)), |above| above.child(place)) {
            Ok(key) => key,
            Err(error) => return self.problem(Problem::Depth(error)).map(|()| None),
        };
        let read = || Ok((config.header_type()?, Capabilities::read(config)?));
        let (header, capabilities) = match read() {
            Ok(read) => read,
            Err(error) => return self.problem(Problem::Config(error)).map(|()| None),
        };
        let (ids, header_of_endpoint) = (config.ids(), matches!(header, HeaderType::Endpoint));
        let subsystem = header_of_endpoint.then(|| config.subsystem());
        let (vendor, device) = ids;
        let own = Alias { rid: sbdf.requester_id(), kind: AliasKind::Own };
        let mut requester_ids = Vec::new();
        for alias in core::iter::once(own)
            .chain(topology::phantoms(own.rid, &capabilities, level.ari))
            .chain(topology::virtual_functions(own.rid, &capabilities))
            .chain(self.quirks.aliases(own.rid, ids, subsystem))
            .chain(level.substitutes.iter().copied())
        {
            try_push(&mut requester_ids, alias)?;
        }
        let function = Function {
            sbdf,
            key,
            kind: match header {
                HeaderType::Endpoint => FunctionKind::Endpoint,
                HeaderType::Bridge { secondary, subordinate, .. } => FunctionKind::Bridge { secondary, subordinate },
                HeaderType::CardBus => FunctionKind::CardBus,
            },
            vendor,
            device,
            class: config.class(),
            capabilities,
            requester_ids,
            // Known when all functions of the device are.
            isolation: Isolation { group: key, cause: IsolationCause::Apart },
        };
        try_push(&mut self.found.functions, function)?;
        Ok(Some(capabilities))
    }

    /// The bus below a function, if it is a bridge to one.
    fn below(&mut self, index: usize, level: &Level, free: &mut BusSet) -> Result<Option<Level>, OutOfMemory> {
        let Some(bridge) = self.found.functions.get(index) else { return Ok(None) };
        let FunctionKind::Bridge { secondary, subordinate } = bridge.kind else { return Ok(None) };
        if secondary == Bus(0) {
            return Ok(None);
        }
        if !free.take(secondary, subordinate) {
            let bridge = bridge.sbdf;
            return self.problem(Problem::Buses { bridge, secondary, subordinate }).map(|()| None);
        }
        if !(self.leads)(bridge.key) {
            return Ok(None);
        }
        let port_type = bridge.capabilities.express.map(|express| express.port_type);
        let own = bridge.sbdf.requester_id();
        let mut substitutes = Vec::new();
        for alias in topology::substitutes(bridge.key, own, secondary, port_type, level.is_link)
            .chain(level.substitutes.iter().copied())
        {
            try_push(&mut substitutes, alias)?;
        }
        let is_link = port_type.is_some_and(PortType::is_downstream_port);
        let controlled = self.is_controlled((bridge.vendor, bridge.device), &bridge.capabilities);
        let apart = bridge.isolation.cause == IsolationCause::Apart;
        let isolates = topology::isolates_below(port_type, controlled, apart);
        Ok(Some(Level {
            bus: secondary,
            last: subordinate,
            above: Some(bridge.key),
            is_link,
            is_switch: port_type == Some(PortType::SwitchUpstream),
            ari: is_link && bridge.capabilities.express.is_some_and(|express| express.ari_forwarding),
            substitutes,
            // A bridge in a group of others does not isolate, so this hands the group from above down too.
            group: if isolates { None } else { Some(bridge.isolation.group) },
        }))
    }

    fn problem(&mut self, problem: Problem) -> Result<(), OutOfMemory> {
        try_push(&mut self.found.problems, problem)
    }
}

/// Bus numbers that no bridge on a bus has taken yet.
struct BusSet([u64; 4]);

impl BusSet {
    fn above(bus: Bus, last: Bus) -> Self {
        let mut set = Self([0; 4]);
        for number in (bus.0..=last.0).skip(1) {
            if let Some(word) = set.0.get_mut(usize::from(number >> 6)) {
                *word |= 1 << (number & 63);
            }
        }
        set
    }

    /// Takes a range; nothing if it is empty or not all of it is free.
    fn take(&mut self, first: Bus, last: Bus) -> bool {
        let mut rest = Self(self.0);
        for number in first.0..=last.0 {
            let Some(word) = rest.0.get_mut(usize::from(number >> 6)) else { return false };
            let bit = 1u64 << (number & 63);
            if *word & bit == 0 {
                return false;
            }
            *word &= !bit;
        }
        *self = rest;
        first <= last
    }
}

fn try_push<T>(list: &mut Vec<T>, item: T) -> Result<(), OutOfMemory> {
    few::push(list, item).map_err(|_| OutOfMemory)
}
