//! One driver on one modelled SMMU, with a watcher at every register write.

#![allow(dead_code, reason = "not every test uses all of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_assign::assign::{
    AddressSpace, DeviceId, DomainId, Granule, Iommu, IommuError, IommuKey, PhysicalAddress, Stage2, Stream, StreamId,
    StreamMask, Streams, TableMemory,
};
use iommu_assign::smmu::{
    Architecture, EmptyRoot, Implementation, Masters, Power, PowerError, ProbeError, Registers, Reserved, Setup, Smmu,
    SmmuConfig,
};
use iommu_assign::sync::Spin;
use smmu_model::{Access, Config, Injection, Memory, Outcome, Smmu as Model, Transaction, Verdict};

pub const KEY: IommuKey = IommuKey::new(0x5000_0000);
/// The guest-physical page that every guest has mapped.
const PAGE: u64 = 0x4000_0000;

pub fn device(number: u64) -> DeviceId {
    DeviceId::new(number)
}

struct Parts {
    model: Model,
    memory: Memory,
    /// What each watched stream may reach.
    allowed: BTreeMap<u16, BTreeSet<u64>>,
    enabled: bool,
}

#[derive(Clone)]
pub struct Wired(Arc<Mutex<Parts>>);

impl Wired {
    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, what: &str, act: impl FnOnce(&mut Model)) {
        let mut parts = self.parts();
        act(&mut parts.model);
        let Parts { model, memory, allowed, enabled } = &*parts;
        for (stream, pages) in allowed.iter().filter(|_| *enabled) {
            for reach in model.reach(memory, *stream, PAGE, Access::Write) {
                if let Verdict::Reaches { physical, path } = reach.verdict {
                    let inside = !path.is_untranslated() && pages.contains(&physical);
                    assert!(inside, "after {what} stream {stream:#x} reaches {physical:#x} by {path:?}");
                }
            }
        }
    }
}

impl fmt::Debug for Wired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wired")
    }
}

impl Registers for Wired {
    fn read32(&self, offset: u32) -> u32 {
        self.parts().model.read32(offset as usize)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.write(&format!("write32 {offset:#x} {value:#x}"), |model| model.write32(offset as usize, value));
    }

    fn read64(&self, offset: u32) -> u64 {
        self.parts().model.read64(offset as usize)
    }

    fn write64(&self, offset: u32, value: u64) {
        self.write(&format!("write64 {offset:#x} {value:#x}"), |model| model.write64(offset as usize, value));
    }
}

#[derive(Debug)]
struct Switch(AtomicBool);

impl Power for Switch {
    fn get(&self) -> Result<(), PowerError> {
        if self.is_on() { Ok(()) } else { Err(PowerError("off")) }
    }

    fn put(&self) {}

    fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub struct Bench {
    pub smmu: Smmu<Spin, Wired>,
    wired: Wired,
    power: Arc<Switch>,
    after_probe: u64,
    ipa_bits: u8,
}

/// A guest with one page mapped.
pub struct Guest {
    pub domain: DomainId,
    pub page: u64,
    stage2: Stage2,
}

impl Guest {
    pub fn new(bench: &Bench, number: u64) -> Self {
        Self::in_memory(&mut bench.wired.parts().memory, number, bench.ipa_bits)
    }

    fn in_memory(memory: &mut Memory, number: u64, ipa_bits: u8) -> Self {
        let pool = 0x8000_0000 + number * 0x10_0000;
        let page = 0x9000_0000 + number * 0x1000;
        // Two concatenated level-1 tables, one of level 2, one of level 3, 4 KiB granule.
        memory.write(pool, &[0; 0x4000]);
        memory.write_u64(pool + (PAGE >> 30) * 8, (pool + 0x2000) | 3);
        memory.write_u64(pool + 0x2000 + (PAGE >> 21 & 0x1ff) * 8, (pool + 0x3000) | 3);
        memory.write_u64(pool + 0x3000 + (PAGE >> 12 & 0x1ff) * 8, page | 1 << 10 | 3 << 8 | 3 << 6 | 0xf << 2 | 3);
        memory.publish(pool..pool + 0x4000);
        let stage2 = Stage2 {
            root: PhysicalAddress::new(pool),
            ipa_bits,
            start_level: 1,
            granule: Granule::Kib4,
            output_bits: 40,
            tables: TableMemory::NonCacheable,
        };
        Self { domain: DomainId::new(number), page, stage2 }
    }

    pub fn space(&self) -> AddressSpace {
        AddressSpace { domain: self.domain, stage2: self.stage2 }
    }
}

impl Bench {
    pub fn new(config: Config) -> Self {
        Self::taken_over(config, |_| (), &[]).expect("probed").0
    }

    /// With every isolating write read back.
    pub fn read_back(config: Config) -> Self {
        Self::made(config, |_| (), &[], true).expect("probed").0
    }

    /// After `firmware` has left the part as it is found, with `reserved` streams that go on in the tables of guest 9.
    pub fn taken_over(
        config: Config,
        firmware: impl FnOnce(&mut Model),
        reserved: &[u16],
    ) -> Result<(Self, Guest), ProbeError> {
        Self::made(config, firmware, reserved, false)
    }

    fn made(
        config: Config,
        firmware: impl FnOnce(&mut Model),
        reserved: &[u16],
        read_back: bool,
    ) -> Result<(Self, Guest), ProbeError> {
        let mut memory = Memory::new();
        memory.write(0x100_0000, &[0; 0x1_0000]);
        memory.publish_all();
        let v2 = config.architecture == smmu_model::Architecture::V2;
        let split = config.quirks.wide_access != smmu_model::Quirks::NONE.wide_access;
        let mut model = Model::new(config);
        firmware(&mut model);
        let restricted = Guest::in_memory(&mut memory, 9, 40);
        let allowed = reserved.iter().map(|stream| (*stream, BTreeSet::from([restricted.page]))).collect();
        let size = model.region_size() as u64;
        let parts = Parts { model, memory, allowed, enabled: false };
        let wired = Wired(Arc::new(Mutex::new(parts)));
        let empty_root = EmptyRoot { address: PhysicalAddress::new(0x100_0000), size: 0x1_0000 };
        let architecture = if v2 { Architecture::V2 } else { Architecture::V1 };
        let mut config = SmmuConfig::new(KEY, size, architecture, empty_root);
        if split {
            config.implementation = Implementation::MarvellAp806;
        }
        config.read_back = read_back;
        config.polls = 50;
        config.atomic_polls = 20;
        let power = Arc::new(Switch(AtomicBool::new(true)));
        let streams = reserved.iter().map(|id| Stream::new(KEY, StreamId::new((*id).into()), StreamMask::new(0)));
        let kept: Vec<Stream> = streams.collect();
        let kept = (!kept.is_empty()).then_some(Reserved { streams: kept, space: restricted.stage2 });
        let setup = Setup { power: power.clone(), reserved: kept.into_iter().collect() };
        let smmu = Smmu::probe_with(config, setup, wired.clone(), Arc::new(Masters::new()))?;
        let ipa_bits = smmu.limits().ipa_bits.min(40);
        wired.parts().enabled = true;
        let after_probe = wired.parts().model.counters().writes;
        Ok((Self { smmu, wired, power, after_probe, ipa_bits }, restricted))
    }

    pub fn stream(&self, id: u32, mask: u32) -> Stream {
        Stream::new(KEY, StreamId::new(id), StreamMask::new(mask))
    }

    pub fn add(&self, number: u64, streams: &[(u32, u32)], lazy: bool) -> Result<Streams, IommuError> {
        self.add_with(number, streams, lazy, &|_| true)
    }

    pub fn add_with(
        &self,
        number: u64,
        streams: &[(u32, u32)],
        lazy: bool,
        is_claimed: &dyn Fn(DeviceId) -> bool,
    ) -> Result<Streams, IommuError> {
        let streams: Vec<Stream> = streams.iter().map(|(id, mask)| self.stream(*id, *mask)).collect();
        let made = self.smmu.make_master(device(number), &streams, lazy)?;
        self.smmu.publish(made)?;
        let shared = self.smmu.reserve(device(number), is_claimed)?;
        self.smmu.enrol(device(number))?;
        Ok(shared)
    }

    /// Plan and install, with `streams` allowed to reach the guest's page from now on.
    pub fn assign(&self, numbers: &[u64], guest: &Guest, streams: &[u16]) -> Result<(), IommuError> {
        let devices: Vec<DeviceId> = numbers.iter().copied().map(device).collect();
        self.smmu.plan(&devices, &guest.space(), &|_| true)?;
        self.allow(streams, guest.page);
        self.smmu.install(&devices)
    }

    /// Block, with `streams` allowed to reach nothing afterwards.
    pub fn block(&self, numbers: &[u64], streams: &[u16]) -> Result<Streams, IommuError> {
        let devices: Vec<DeviceId> = numbers.iter().copied().map(device).collect();
        let blocked = self.smmu.block(&devices);
        if blocked.is_ok() {
            self.watch(streams);
            self.wired.write("block", |_| ());
        }
        blocked
    }

    pub fn watch(&self, streams: &[u16]) {
        for stream in streams {
            self.wired.parts().allowed.insert(*stream, BTreeSet::new());
        }
    }

    /// Exactly what each stream may reach from now on.
    pub fn expect(&self, allowed: BTreeMap<u16, BTreeSet<u64>>) {
        self.wired.parts().allowed = allowed;
        self.wired.write("a call", |_| ());
    }

    pub fn allow(&self, streams: &[u16], page: u64) {
        for stream in streams {
            self.wired.parts().allowed.entry(*stream).or_default().insert(page);
        }
    }

    pub fn dma(&self, stream: u16) -> Option<u64> {
        let mut parts = self.wired.parts();
        let Parts { model, memory, .. } = &mut *parts;
        match model.dma(memory, Transaction::write(stream, PAGE, &[0xd3])) {
            Outcome::Completed { physical, path, .. } => {
                assert!(!path.is_untranslated(), "{stream:#x}");
                Some(physical)
            }
            _ => None,
        }
    }

    pub fn audited(&self) {
        let mut differences = Vec::new();
        self.smmu.audit(&mut |difference| differences.push(difference.to_string()));
        assert!(differences.is_empty(), "{differences:?}");
    }

    /// Everything is free.
    pub fn empty(&self) {
        self.audited();
        assert_eq!(self.smmu.next_known(None), None);
        let mut used = Vec::new();
        self.smmu.usage(&mut |usage| used.push(usage));
        assert!(used.is_empty(), "{used:?}");
    }

    pub fn accesses(&self) -> (u64, u64) {
        let counters = self.wired.parts().model.counters();
        (counters.reads, counters.writes)
    }

    pub fn writes(&self) -> u64 {
        self.accesses().1
    }

    pub fn writes_since_probe(&self) -> u64 {
        self.writes() - self.after_probe
    }

    pub fn inject(&self, injection: Injection) {
        self.wired.parts().model.inject(injection);
    }

    pub fn heal(&self) {
        self.wired.parts().model.clear_injections();
    }

    pub fn power(&self, on: bool) {
        self.power.0.store(on, Ordering::Relaxed);
    }

    /// The unit loses its power and gets it again; its masters are stopped until it is resumed.
    pub fn reset(&self) {
        let mut parts = self.wired.parts();
        parts.enabled = false;
        parts.model.reset();
    }
}
