//! A small IOMMU behind the `Iommu` trait that checks its caller.
//!
//! It takes an explored lock for each step of each call, so that the explorer may switch threads wherever a real driver
//! lets go of its own lock: between the writes of a block and its drain above all. A device goes
//! `Fault -> Planned -> Live -> Draining -> Fault`; a call that does not fit is the service's fault, for the service owns the
//! group of every device that it names.

use std::any::Any;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use iommu_assign::assign::{
    Access, AddressSpace, DeviceId, Difference, DomainId, FaultAnswer, FaultCause, FaultLine, FlushRange, Granules,
    Iommu, IommuError, IommuFaults, IommuKey, IommuPower, Patience, RawFault, Resource, Stage2Limits, Stream, StreamId,
    Streams,
};
use iommu_assign::sync::{ExploredLock, Waited};

loom::thread_local! {
    /// How many of the next drains of this thread are not confirmed.
    static LOST_DRAINS: Cell<u32> = Cell::new(0);
    /// The IOMMU that has no power when this thread next asks, by its number; 0 for none.
    static WITHOUT_POWER: Cell<u64> = Cell::new(0);
}

/// Runs `act` with the next drain of this thread lost.
pub(crate) fn with_lost_drain<T>(act: impl FnOnce() -> T) -> T {
    LOST_DRAINS.with(|lost| lost.set(1));
    let done = act();
    LOST_DRAINS.with(|lost| lost.set(0));
    done
}

/// Runs `act` with an IOMMU that has no power when it is first asked for.
pub(crate) fn without_power<T>(iommu: IommuKey, act: impl FnOnce() -> T) -> T {
    WITHOUT_POWER.with(|without| without.set(iommu.base()));
    let done = act();
    WITHOUT_POWER.with(|without| without.set(0));
    done
}

/// What a device's entries do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Fault,
    Live(DomainId),
    Draining(DomainId),
}

/// What the fake believes of one device.
#[derive(Clone, Debug, Default)]
struct Record {
    streams: Vec<Stream>,
    /// It has its entries, in the shadow.
    reserved: bool,
    /// They are written.
    enrolled: bool,
    phase: Phase,
    planned: Option<DomainId>,
    /// The domain whose drain was not confirmed.
    owes: Option<DomainId>,
}

impl Record {
    fn live(&self) -> Option<DomainId> {
        match self.phase {
            Phase::Live(domain) => Some(domain),
            Phase::Fault | Phase::Draining(_) => None,
        }
    }

    /// The domains whose contexts it keeps.
    fn contexts(&self) -> impl Iterator<Item = DomainId> {
        let active = match self.phase {
            Phase::Fault => None,
            Phase::Live(domain) | Phase::Draining(domain) => Some(domain),
        };
        [active, self.planned, self.owes].into_iter().flatten()
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.streams.iter().any(|stream| other.streams.iter().any(|theirs| stream.overlaps(*theirs)))
    }
}

#[derive(Debug, Default)]
struct State {
    devices: BTreeMap<DeviceId, Record>,
    /// How often the hypervisor has changed tables.
    epoch: u64,
    /// From which of these times each live context may have cached translations.
    cached: BTreeMap<DomainId, u64>,
    /// Operations that hold its power.
    powered: usize,
    /// It was taken out of service by force.
    closed: bool,
}

/// An IOMMU with a number of entries (one for each stream ID) and of contexts.
pub(crate) struct FakeIommu {
    key: IommuKey,
    entries: usize,
    contexts: usize,
    state: lock_api::Mutex<ExploredLock, State>,
}

/// What `make_master` makes.
struct Master {
    device: DeviceId,
    streams: Vec<Stream>,
}

impl FakeIommu {
    pub(crate) fn new(key: IommuKey, entries: usize, contexts: usize) -> Self {
        Self { key, entries, contexts, state: lock_api::Mutex::new(State::default()) }
    }

    /// Which domain each stream reaches, for the canonical state.
    pub(crate) fn reach(&self) -> BTreeMap<u32, BTreeSet<u64>> {
        let state = self.state.lock();
        let mut reach: BTreeMap<u32, BTreeSet<u64>> = BTreeMap::new();
        for record in state.devices.values() {
            for stream in &record.streams {
                let domains = reach.entry(stream.id().value()).or_default();
                domains.extend(record.live().map(DomainId::number));
            }
        }
        reach
    }

    /// No operation is under way: none of its traces may be left.
    pub(crate) fn check_quiet(&self) {
        let state = self.state.lock();
        assert_eq!(state.powered, 0, "S-5: power is held by nothing");
        for (id, record) in &state.devices {
            assert_eq!(record.planned, None, "A-3: a plan for {id} was left behind");
            assert!(!matches!(record.phase, Phase::Draining(_)), "C-8: {id} drains for ever");
            assert!(record.enrolled, "A-1: {id} is known, and its entries are not written");
        }
    }

    /// The hypervisor takes a mapping away. Returns the time.
    pub(crate) fn tables_changed(&self) -> u64 {
        let mut state = self.state.lock();
        state.epoch = state.epoch.wrapping_add(1);
        state.epoch
    }

    /// A flush of `domain` that began after time `epoch` has returned: nothing older may be cached.
    pub(crate) fn flushed(&self, domain: DomainId, epoch: u64) {
        let state = self.state.lock();
        let cached = state.cached.get(&domain).copied().unwrap_or(u64::MAX);
        assert!(cached >= epoch, "I-9: a context has cached what a flush that returned was to remove");
    }

    /// Whether the hardware confirms the drain that this thread waits for.
    fn confirm(&self) -> Result<(), IommuError> {
        let lost = LOST_DRAINS.with(|lost| {
            let left = lost.get();
            lost.set(left.saturating_sub(1));
            left > 0
        });
        let waited = Waited { polls: 0, time: None };
        if lost { Err(IommuError::SyncTimeout(waited)) } else { Ok(()) }
    }

    fn check_power(&self) -> Result<(), IommuError> {
        let without = WITHOUT_POWER.with(|without| {
            let is_this = without.get() == self.key.base();
            if is_this {
                without.set(0);
            }
            is_this
        });
        if without { Err(IommuError::NoPower("the test says so")) } else { Ok(()) }
    }

    /// Finishes what `devices` owe, which is confirmed or is not.
    fn finish_owed(&self, devices: &[DeviceId]) -> Result<(), IommuError> {
        let owes = |state: &State| devices.iter().any(|device| state.owes(*device));
        if !owes(&self.state.lock()) {
            return Ok(());
        }
        self.confirm()?;
        let mut state = self.state.lock();
        for device in devices {
            if let Some(record) = state.devices.get_mut(device) {
                record.owes = None;
            }
        }
        Ok(())
    }
}

impl State {
    /// The domains that have a context, but for what `without` alone keeps.
    fn contexts(&self, without: &[DeviceId]) -> BTreeSet<DomainId> {
        let others = self.devices.iter().filter(|(id, _)| !without.contains(id));
        others.flat_map(|(_, record)| record.contexts()).collect()
    }

    fn owes(&self, device: DeviceId) -> bool {
        self.devices.get(&device).is_some_and(|record| record.owes.is_some())
    }

    /// What acquires gets in while it is in service; what releases is done, and says the same.
    fn in_service(&self) -> Result<(), IommuError> {
        if self.closed { Err(IommuError::ProviderGone) } else { Ok(()) }
    }

    fn used_entries(&self) -> BTreeSet<u32> {
        let reserved = self.devices.values().filter(|record| record.reserved);
        reserved.flat_map(|record| record.streams.iter().map(|stream| stream.id().value())).collect()
    }

    /// No stream may reach two domains: what the contract is about.
    fn check(&self) {
        for (id, one) in &self.devices {
            for (other_id, other) in &self.devices {
                if let (Some(mine), Some(theirs)) = (one.live(), other.live()) {
                    let apart = id == other_id || mine == theirs || !one.overlaps(other);
                    assert!(apart, "I-11: {id} and {other_id} share a stream and have two owners");
                }
            }
        }
    }

    /// Who shares an entry with `device`.
    fn sharers(&self, device: DeviceId) -> impl Iterator<Item = (DeviceId, &Record)> {
        let own = self.devices.get(&device);
        let shares = move |other: &Record| own.is_some_and(|own| other.reserved && own.overlaps(other));
        self.devices.iter().filter(move |(id, other)| **id != device && shares(other)).map(|(id, other)| (*id, other))
    }

    /// Whether devices beside these keep entries of theirs live.
    fn streams(&self, devices: &[DeviceId]) -> Streams {
        let others = |device: &DeviceId| {
            let mut sharers = self.sharers(*device);
            sharers.any(|(other, record)| !devices.contains(&other) && record.live().is_some())
        };
        if devices.iter().any(others) { Streams::Live } else { Streams::Fault }
    }

    /// The record of a device that an operation of the service owns.
    fn owned(&mut self, device: DeviceId) -> Result<&mut Record, IommuError> {
        self.devices.get_mut(&device).ok_or(IommuError::Unknown)
    }

    fn reserve(
        &mut self,
        total: usize,
        device: DeviceId,
        is_claimed: &dyn Fn(DeviceId) -> bool,
    ) -> Result<Streams, IommuError> {
        if let Some((foreign, _)) = self.sharers(device).find(|(other, _)| !is_claimed(*other)) {
            return Err(IommuError::Foreign(foreign));
        }
        let used = self.used_entries();
        let record = self.owned(device)?;
        assert!(!record.reserved, "A-1: reserved twice");
        let streams: BTreeSet<u32> = record.streams.iter().map(|stream| stream.id().value()).collect();
        let needed = streams.difference(&used).count();
        let free = total.saturating_sub(used.len());
        if needed > free {
            let resource = Resource::StreamMapEntries;
            return Err(IommuError::Exhausted { resource, needed: needed.saturating_sub(free), free, total });
        }
        record.reserved = true;
        Ok(self.streams(&[device]))
    }
}

impl std::fmt::Debug for FakeIommu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FakeIommu({})", self.key)
    }
}

impl Iommu for FakeIommu {
    fn key(&self) -> IommuKey {
        self.key
    }

    fn limits(&self) -> Stage2Limits {
        Stage2Limits {
            ipa_bits: 48,
            output_bits: 48,
            granules: Granules { kib4: true, kib16: true, kib64: true },
            coherent: true,
            blocks: true,
        }
    }

    fn make_master(&self, device: DeviceId, streams: &[Stream], _: bool) -> Result<Box<dyn Any + Send>, IommuError> {
        Ok(Box::new(Master { device, streams: streams.to_vec() }))
    }

    fn publish(&self, master: Box<dyn Any + Send>) -> Result<bool, IommuError> {
        let Master { device, streams } = *master.downcast::<Master>().map_err(|_| IommuError::Unknown)?;
        let mut state = self.state.lock();
        state.in_service()?;
        let old = state.devices.insert(device, Record { streams, ..Record::default() });
        assert!(old.is_none(), "a registration is published once");
        let overlaps = |new: &Record| state.devices.iter().any(|(id, other)| *id != device && new.overlaps(other));
        let alone = !state.devices.get(&device).is_some_and(overlaps);
        Ok(alone && state.reserve(self.entries, device, &|_| false).is_ok())
    }

    fn overlapping(&self, device: DeviceId, after: Option<DeviceId>) -> Option<DeviceId> {
        let state = self.state.lock();
        let own = state.devices.get(&device)?;
        let mut others = state.devices.iter().filter(|(id, _)| **id != device && Some(**id) > after);
        others.find(|(_, other)| own.overlaps(other)).map(|(id, _)| *id)
    }

    fn reserve(&self, device: DeviceId, is_claimed: &dyn Fn(DeviceId) -> bool) -> Result<Streams, IommuError> {
        let mut state = self.state.lock();
        state.in_service()?;
        state.reserve(self.entries, device, is_claimed)
    }

    fn enrol(&self, device: DeviceId) -> Result<(), IommuError> {
        let mut state = self.state.lock();
        state.in_service()?;
        let record = state.owned(device)?;
        assert!(record.reserved, "A-1: enrolled before all that can fail was in the plan");
        record.enrolled = true;
        Ok(())
    }

    fn shares(&self, one: DeviceId, other: DeviceId) -> bool {
        let state = self.state.lock();
        let is_reserved = state.devices.get(&one).is_some_and(|record| record.reserved);
        is_reserved && state.sharers(one).any(|(sharer, _)| sharer == other)
    }

    fn plan(
        &self,
        devices: &[DeviceId],
        space: &AddressSpace,
        is_claimed: &dyn Fn(DeviceId) -> bool,
    ) -> Result<(), IommuError> {
        self.finish_owed(devices)?;
        let mut state = self.state.lock();
        state.in_service()?;
        for device in devices {
            let record = state.owned(*device)?;
            assert!(record.enrolled, "a plan is for enrolled devices");
            assert_eq!(record.planned, None, "C-1: two operations plan for {device} at once");
            assert!(!matches!(record.phase, Phase::Draining(_)), "C-1: {device} drains for another operation");
            for (other, sharer) in state.sharers(*device) {
                assert!(is_claimed(other), "C-1: {other} shares an entry of {device} and is not claimed");
                let apart = devices.contains(&other) || sharer.live().is_none_or(|domain| domain == space.domain);
                assert!(apart, "I-11: {device} is to go where {other}, which shares an entry, is not");
            }
        }
        let drains = |record: &Record| record.phase == Phase::Draining(space.domain);
        if state.devices.values().any(drains) {
            return Err(IommuError::Busy);
        }
        // What these devices alone keep is free after the move.
        let others = state.contexts(devices);
        if !others.contains(&space.domain) && others.len() >= self.contexts {
            let total = self.contexts;
            return Err(IommuError::Exhausted { resource: Resource::ContextBanks, needed: 1, free: 0, total });
        }
        for device in devices {
            state.owned(*device)?.planned = Some(space.domain);
        }
        Ok(())
    }

    fn abandon(&self, devices: &[DeviceId]) {
        let mut state = self.state.lock();
        for device in devices {
            if let Ok(record) = state.owned(*device) {
                record.planned = None;
            }
        }
    }

    fn install(&self, devices: &[DeviceId]) -> Result<(), IommuError> {
        self.check_power()?;
        for device in devices {
            // One lock for each device: a real driver writes one entry after the other.
            let mut state = self.state.lock();
            state.in_service()?;
            let epoch = state.epoch;
            let record = state.owned(*device)?;
            assert!(record.enrolled, "installed without entries");
            assert_eq!(record.phase, Phase::Fault, "I-14: a device goes through fault between two owners");
            assert_eq!(record.owes, None, "I-6: installed before the last owner's drain was confirmed");
            let planned = record.planned.take();
            let domain = planned.unwrap_or_else(|| panic!("{device} is installed without a plan"));
            record.phase = Phase::Live(domain);
            state.check();
            // The walker may cache from the moment that the context is on.
            state.cached.entry(domain).or_insert(epoch);
        }
        Ok(())
    }

    fn block(&self, devices: &[DeviceId]) -> Result<Streams, IommuError> {
        let mut cut = Vec::new();
        {
            let mut state = self.state.lock();
            let is_live = |device: &DeviceId| state.devices.get(device).is_some_and(|record| record.live().is_some());
            if devices.iter().any(is_live) {
                self.check_power()?;
            }
            for device in devices {
                let Ok(record) = state.owned(*device) else { continue };
                match record.phase {
                    Phase::Fault => {}
                    Phase::Live(domain) => {
                        record.phase = Phase::Draining(domain);
                        cut.push((*device, domain));
                    }
                    Phase::Draining(_) => panic!("C-1: two operations block {device} at once"),
                }
            }
        }
        if !cut.is_empty() {
            let confirmed = self.confirm();
            let mut state = self.state.lock();
            for (device, domain) in cut {
                let record = state.owned(device)?;
                record.phase = Phase::Fault;
                record.owes = record.owes.or(confirmed.is_err().then_some(domain));
            }
            let live: BTreeSet<DomainId> = state.devices.values().filter_map(Record::live).collect();
            state.cached.retain(|domain, _| live.contains(domain));
            confirmed?;
        }
        self.finish_owed(devices)?;
        let state = self.state.lock();
        state.in_service().map(|()| state.streams(devices))
    }

    fn withdraw(&self, device: DeviceId) -> Result<Streams, IommuError> {
        self.finish_owed(&[device])?;
        let mut state = self.state.lock();
        let record = state.owned(device)?;
        assert_eq!(record.phase, Phase::Fault, "C-8: forgotten while its streams reach a domain, or have not drained");
        assert_eq!(record.planned, None, "forgotten while a plan names it");
        let streams = state.streams(&[device]);
        state.devices.remove(&device);
        state.in_service().map(|()| streams)
    }

    fn flush(&self, domain: DomainId, _: Option<&FlushRange>, _: Patience) -> Result<(), IommuError> {
        let mut state = self.state.lock();
        let epoch = state.epoch;
        if let Some(cached) = state.cached.get_mut(&domain) {
            *cached = epoch;
        }
        Ok(())
    }

    fn forget(&self, domain: DomainId) -> Result<(), IommuError> {
        let owing: Vec<DeviceId> = {
            let state = self.state.lock();
            for (id, record) in &state.devices {
                let uses = record.contexts().any(|used| used == domain) && record.owes != Some(domain);
                assert!(!uses, "I-10: a domain ends while {id} refers to it");
            }
            let owing = state.devices.iter().filter(|(_, record)| record.owes == Some(domain));
            owing.map(|(id, _)| *id).collect()
        };
        self.finish_owed(&owing)
    }

    fn owner_of(&self, stream: StreamId, _: Option<DomainId>) -> Option<DeviceId> {
        let state = self.state.lock();
        let holds = |record: &Record| record.streams.iter().any(|own| own.id() == stream);
        state.devices.iter().find(|(_, record)| holds(record)).map(|(id, _)| *id)
    }

    fn next_known(&self, after: Option<DeviceId>) -> Option<(DeviceId, Option<DomainId>)> {
        let state = self.state.lock();
        let mut known = state.devices.iter().filter(|(id, _)| Some(**id) > after);
        known.next().map(|(id, record)| (*id, record.live()))
    }

    fn audit(&self, _: &mut dyn FnMut(Difference)) {}
}

impl IommuPower for FakeIommu {
    fn hold_power(&self) -> Result<(), IommuError> {
        self.check_power()?;
        let mut state = self.state.lock();
        state.powered = state.powered.saturating_add(1);
        Ok(())
    }

    fn release_power(&self) {
        let mut state = self.state.lock();
        state.powered = state.powered.checked_sub(1).unwrap_or_else(|| panic!("S-5: power is given back twice"));
    }

    fn close(&self) -> Result<(), IommuError> {
        let mut state = self.state.lock();
        state.closed = true;
        state.cached.clear();
        let live = state.devices.values_mut().filter(|record| record.live().is_some());
        live.for_each(|record| record.phase = Phase::Fault);
        Ok(())
    }

    fn retire(&self) -> Result<(), IommuError> {
        let state = self.state.lock();
        assert!(state.devices.is_empty(), "C-9: out of service while devices are on it");
        Ok(())
    }
}

impl IommuFaults for FakeIommu {
    fn take_faults(&self, _: FaultLine, report: &mut dyn FnMut(RawFault)) -> FaultAnswer {
        report(RawFault {
            iommu: self.key,
            bank: None,
            domain: None,
            stream: Some(StreamId::new(1)),
            address: None,
            access: Access::Read,
            cause: FaultCause::Blocked,
            more_lost: false,
        });
        FaultAnswer::Done
    }
}
