//! A small IOMMU behind the `Iommu` trait that checks its caller.
//!
//! It takes an explored lock for each step of each call, so that the explorer may switch threads wherever a real driver
//! lets go of its own lock: between the writes of a block and its drain above all.

use std::collections::{BTreeMap, BTreeSet};

use iommu_assign::assign::{
    AddressSpace, DeviceId, Difference, DomainId, FaultAnswer, FaultLine, Granules, Iommu, IommuError, IommuKey,
    NewMaster, Prepared, RawFault, Resource, Sharing, Stage2Limits, Stream, StreamId, Withdrawn,
};
use iommu_assign::sync::ExploredLock;

/// What the fake believes of one device.
#[derive(Clone, Debug, Default)]
struct Record {
    streams: Vec<Stream>,
    allotted: bool,
    enrolled: bool,
    space: Option<DomainId>,
    planned: bool,
    draining: bool,
    /// What its last drain ends with is left to the next call that is about it.
    open: bool,
}

#[derive(Debug, Default)]
struct State {
    devices: BTreeMap<DeviceId, Record>,
    /// How often the hypervisor has changed tables.
    epoch: u64,
    /// From which of these times each live context may have cached translations.
    cached: BTreeMap<DomainId, u64>,
    /// Spaces that plans hold.
    reserved: Vec<DomainId>,
}

/// An IOMMU with a number of entries (one for each stream ID) and of contexts.
pub(crate) struct FakeIommu {
    key: IommuKey,
    entries: usize,
    contexts: usize,
    state: lock_api::Mutex<ExploredLock, State>,
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
                domains.extend(record.space.map(DomainId::number));
            }
        }
        reach
    }
}

impl FakeIommu {
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
}

impl State {
    fn live(&self) -> BTreeSet<DomainId> {
        self.devices.values().filter_map(|record| record.space).chain(self.reserved.iter().copied()).collect()
    }

    fn used_entries(&self) -> BTreeSet<u32> {
        let allotted = self.devices.values().filter(|record| record.allotted);
        allotted.flat_map(|record| record.streams.iter().map(|stream| stream.id().value())).collect()
    }

    /// No stream may reach two domains: what the contract is about.
    fn check(&self) {
        for (id, one) in &self.devices {
            for (other_id, other) in &self.devices {
                let meet = one.streams.iter().any(|stream| other.streams.iter().any(|theirs| stream.meets(*theirs)));
                if id < other_id && meet && one.space.is_some() && other.space.is_some() {
                    assert_eq!(one.space, other.space, "I-11: {id} and {other_id} share a stream and have two owners");
                }
            }
        }
    }

    fn share(&self, one: DeviceId, other: DeviceId) -> bool {
        let (Some(one), Some(other)) = (self.devices.get(&one), self.devices.get(&other)) else { return false };
        let meet = || one.streams.iter().any(|stream| other.streams.iter().any(|theirs| stream.meets(*theirs)));
        one.enrolled && other.enrolled && meet()
    }

    fn sharing(&self, devices: &[DeviceId]) -> Vec<Sharing> {
        let pairs = devices.iter().flat_map(|one| devices.iter().map(move |other| (*one, *other)));
        pairs.filter(|(one, other)| one < other && self.share(*one, *other)).collect()
    }

    fn end_drains(&mut self, devices: &[DeviceId]) {
        for device in devices {
            self.record(*device).open = false;
        }
    }

    fn record(&mut self, device: DeviceId) -> &mut Record {
        self.devices.entry(device).or_default()
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

    fn new_master(&self, device: DeviceId, streams: &[Stream], _: Option<u64>) -> Result<NewMaster, IommuError> {
        Ok(NewMaster::new(device, Box::new(streams.to_vec())))
    }

    fn publish(&self, master: &mut NewMaster, met: &mut dyn FnMut(DeviceId)) -> Result<(), IommuError> {
        let device = master.device();
        let streams = std::mem::take(master.made::<Vec<Stream>>().ok_or(IommuError::Unknown)?);
        let meets =
            |record: &Record| record.streams.iter().any(|stream| streams.iter().any(|theirs| stream.meets(*theirs)));
        let all: Vec<DeviceId> = {
            let mut state = self.state.lock();
            assert!(!state.devices.contains_key(&device), "a registration is published once");
            let all = state.devices.iter().filter(|(_, record)| meets(record)).map(|(id, _)| *id).collect();
            state.devices.insert(device, Record { streams, ..Record::default() });
            all
        };
        all.into_iter().for_each(met);
        Ok(())
    }

    fn allot(&self, master: &mut NewMaster) -> Result<usize, IommuError> {
        let device = master.device();
        let mut state = self.state.lock();
        let used = state.used_entries();
        let streams: BTreeSet<u32> = state.record(device).streams.iter().map(|stream| stream.id().value()).collect();
        let needed = streams.difference(&used).count();
        let free = self.entries.saturating_sub(used.len());
        if needed > free {
            let resource = Resource::StreamMapEntries;
            return Err(IommuError::Exhausted {
                resource,
                needed: needed.saturating_sub(free),
                free,
                total: self.entries,
            });
        }
        state.record(device).allotted = true;
        Ok(streams.len())
    }

    fn enrol(&self, master: &mut NewMaster) -> Result<(), IommuError> {
        let mut state = self.state.lock();
        let record = state.record(master.device());
        assert!(record.allotted, "A-1: enrolled before all that can fail was in the plan");
        record.enrolled = true;
        Ok(())
    }

    fn sharing(&self, devices: &[DeviceId], tell: &mut dyn FnMut(Sharing)) -> Result<(), IommuError> {
        let sharing = self.state.lock().sharing(devices);
        sharing.into_iter().for_each(tell);
        Ok(())
    }

    fn plan(
        &self,
        devices: &[DeviceId],
        space: &AddressSpace,
        along: &mut dyn FnMut(Sharing),
    ) -> Result<Prepared, IommuError> {
        let mut state = self.state.lock();
        for device in devices {
            let record = state.record(*device);
            assert!(record.enrolled, "a plan is for enrolled devices");
            assert!(!record.planned, "C-1: two operations plan for {device} at once");
            assert!(!record.open, "an operation on {device} has left a drain open");
        }
        let live = state.live();
        // A context whose only users are these devices is freed by this very move.
        let freed = devices.iter().filter_map(|device| state.devices.get(device)?.space).find(|domain| {
            let users = state.devices.iter().filter(|(_, record)| record.space == Some(*domain));
            users.into_iter().all(|(id, _)| devices.contains(id)) && !state.reserved.contains(domain)
        });
        if !live.contains(&space.domain) && live.len() >= self.contexts && freed.is_none() {
            let total = self.contexts;
            return Err(IommuError::Exhausted { resource: Resource::ContextBanks, needed: 1, free: 0, total });
        }
        state.reserved.push(space.domain);
        for device in devices {
            state.record(*device).planned = true;
        }
        let outside = state.devices.keys().filter(|other| !devices.contains(other));
        let with = |other: &DeviceId| {
            let first = devices.iter().find(|device| state.share(**device, *other));
            first.map(|device| (*device, *other))
        };
        let sharers: Vec<Sharing> = outside.filter_map(with).collect();
        drop(state);
        sharers.into_iter().for_each(along);
        Ok(Prepared { space: *space, ticket: 0, kept: None })
    }

    fn abandon(&self, devices: &[DeviceId], prepared: Prepared) {
        let mut state = self.state.lock();
        for device in devices {
            state.record(*device).planned = false;
        }
        state.end_drains(devices);
        if let Some(at) = state.reserved.iter().position(|domain| *domain == prepared.space.domain) {
            state.reserved.swap_remove(at);
        }
    }

    fn install(&self, devices: &[DeviceId], prepared: Prepared) -> Result<(), IommuError> {
        for device in devices {
            // One lock for each device: a real driver writes one entry after the other.
            let mut state = self.state.lock();
            let record = state.record(*device);
            assert!(record.planned, "installed without a plan");
            assert!(record.enrolled, "installed without entries");
            assert_eq!(record.space, None, "I-14: a device goes through fault between two owners");
            assert!(!record.draining, "I-6: installed before the last owner has drained");
            (record.planned, record.open) = (false, false);
            record.space = Some(prepared.space.domain);
            state.check();
            // The walker may cache from the moment that the context is on.
            let epoch = state.epoch;
            state.cached.entry(prepared.space.domain).or_insert(epoch);
        }
        let mut state = self.state.lock();
        if let Some(at) = state.reserved.iter().position(|domain| *domain == prepared.space.domain) {
            state.reserved.swap_remove(at);
        }
        Ok(())
    }

    fn block(&self, devices: &[DeviceId], _: &mut dyn FnMut(DeviceId)) -> Result<(), IommuError> {
        self.cut(devices)?;
        self.state.lock().end_drains(devices);
        Ok(())
    }

    fn cut(&self, devices: &[DeviceId]) -> Result<(), IommuError> {
        let mut cut = Vec::new();
        {
            let mut state = self.state.lock();
            for device in devices {
                let record = state.record(*device);
                if record.space.take().is_some() {
                    (record.draining, record.open) = (true, true);
                    cut.push(*device);
                }
            }
        }
        let mut state = self.state.lock();
        for device in &cut {
            state.record(*device).draining = false;
        }
        let live: BTreeSet<DomainId> = state.devices.values().filter_map(|record| record.space).collect();
        state.cached.retain(|domain, _| live.contains(domain));
        Ok(())
    }

    fn withdraw(&self, device: DeviceId, rest: &[DeviceId], tell: &mut dyn FnMut(Withdrawn)) -> Result<(), IommuError> {
        let mut state = self.state.lock();
        let is_live = state.devices.get(&device).is_some_and(|record| record.space.is_some());
        assert!(!is_live, "C-8: forgotten while its streams reach a domain");
        if let Some(record) = state.devices.remove(&device) {
            assert!(!record.draining, "C-8: forgotten before it has drained");
            assert!(!record.planned, "forgotten while a plan names it");
            let sharing = state.sharing(rest);
            drop(state);
            sharing.into_iter().map(Withdrawn::Sharing).for_each(tell);
            return Ok(());
        }
        Err(IommuError::Unknown)
    }

    fn flush(&self, domain: DomainId) -> Result<(), IommuError> {
        let mut state = self.state.lock();
        let epoch = state.epoch;
        if let Some(cached) = state.cached.get_mut(&domain) {
            *cached = epoch;
        }
        Ok(())
    }

    fn take_faults(&self, _: FaultLine, report: &mut dyn FnMut(RawFault)) -> FaultAnswer {
        report(RawFault {
            iommu: self.key,
            bank: None,
            domain: None,
            stream: Some(StreamId::new(1)),
            address: None,
            access: iommu_assign::assign::Access::Read,
            cause: iommu_assign::assign::FaultCause::Blocked,
            more_lost: false,
        });
        FaultAnswer::Done
    }

    fn owner_of(&self, stream: StreamId) -> Option<DeviceId> {
        let state = self.state.lock();
        let holds = |record: &Record| record.streams.iter().any(|own| own.id() == stream);
        state.devices.iter().find(|(_, record)| holds(record)).map(|(id, _)| *id)
    }

    fn audit(&self, _: &mut dyn FnMut(Difference)) {}

    fn placement(&self, device: DeviceId) -> Result<Option<DomainId>, IommuError> {
        let state = self.state.lock();
        state.devices.get(&device).map(|record| record.space).ok_or(IommuError::Unknown)
    }
}
