//! One driver on one modelled SMMU, with a watcher at every register write.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_assign::assign::{
    AddressSpace, DeviceId, DomainId, Granule, Iommu, IommuKey, PhysicalAddress, Stage2, Stream, StreamId, StreamMask,
    TableMemory,
};
use iommu_assign::smmu::{
    Architecture, EmptyRoot, Implementation, Masters, Power, PowerError, Registers, Setup, Smmu, SmmuConfig,
};
use iommu_assign::sync::Spin;
use smmu_model::{Access, Config, Injection, Memory, Smmu as Model, Verdict};

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
        let Parts { model, memory, allowed } = &*parts;
        for (stream, pages) in allowed {
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
        if self.get_if_on() { Ok(()) } else { Err(PowerError("off")) }
    }

    fn put(&self) {}

    fn get_if_on(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

pub struct Bench {
    pub smmu: Smmu<Spin, Wired>,
    wired: Wired,
    power: Arc<Switch>,
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
        let (memory, ipa_bits) = (&mut bench.wired.parts().memory, bench.ipa_bits);
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
        let mut memory = Memory::new();
        memory.write(0x100_0000, &[0; 0x1_0000]);
        memory.publish_all();
        let v2 = config.architecture == smmu_model::Architecture::V2;
        let split = config.quirks.wide_access != smmu_model::Quirks::NONE.wide_access;
        let model = Model::new(config);
        let size = model.region_size() as u64;
        let wired = Wired(Arc::new(Mutex::new(Parts { model, memory, allowed: BTreeMap::new() })));
        let empty_root = EmptyRoot { address: PhysicalAddress::new(0x100_0000), size: 0x1_0000 };
        let architecture = if v2 { Architecture::V2 } else { Architecture::V1 };
        let mut config = SmmuConfig::new(KEY, size, architecture, empty_root);
        if split {
            config.implementation = Implementation::MarvellAp806;
        }
        config.polls = 50;
        config.atomic_polls = 20;
        let power = Arc::new(Switch(AtomicBool::new(true)));
        let setup = Setup { power: Some(power.clone()), reserved: Vec::new() };
        let smmu = Smmu::probe_with(config, setup, wired.clone(), Arc::new(Masters::new())).expect("probed");
        let ipa_bits = smmu.limits().ipa_bits.min(40);
        Self { smmu, wired, power, ipa_bits }
    }

    pub fn stream(&self, id: u32, mask: u32) -> Stream {
        Stream::new(KEY, StreamId::new(id), StreamMask::new(mask))
    }

    /// Exactly what each stream may reach from now on.
    pub fn expect(&self, allowed: BTreeMap<u16, BTreeSet<u64>>) {
        self.wired.parts().allowed = allowed;
        self.wired.write("a call", |_| ());
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

    pub fn inject(&self, injection: Injection) {
        self.wired.parts().model.inject(injection);
    }

    pub fn heal(&self) {
        self.wired.parts().model.clear_injections();
    }

    pub fn power(&self, on: bool) {
        self.power.0.store(on, Ordering::Relaxed);
    }
}
