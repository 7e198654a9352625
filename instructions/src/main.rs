//! `instructions OPERATION TIMES`: runs through the life of a device so many times, and one operation of it through
//! [`measured`], which an instruction counter switches on. Without arguments it names the operations.
//!
//! Registers are plain memory here, so that what is counted is the library's own work.

#![forbid(unsafe_code)]
#![allow(clippy::arithmetic_side_effects, reason = "small numbers, on the host")]

use std::error::Error;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use iommu_assign::assign::{
    Changed, DeviceKey, DeviceSpec, Domain, FaultLine, FlushRange, Granule, IommuHandle, IommuKey, Label,
    PhysicalAddress, Policy, PolicyRequest, Service, Source, Stage2, Stream, StreamId, StreamMask, TableMemory,
};
use iommu_assign::smmu::{Architecture, EmptyRoot, FaultLimits, Masters, Registers, Smmu, SmmuConfig};
use iommu_assign::sync::Spin;
use smmu_model::Config;

const OPERATIONS: &[&str] = &[
    "add",
    "find",
    "assign, fresh bank",
    "flush of one page",
    "flush of a domain",
    "fault intake",
    "reassign, last to fresh",
    "deassign, last",
    "remove",
];

const SMMU: IommuKey = IommuKey::new(0x5000_0000);
/// Devices that are there besides, each with one stream.
const NEIGHBOURS: u32 = 16;

/// Registers that hold what was written, but for the fault status of banks: there is always a fault to tell of.
#[derive(Debug)]
struct Plain {
    words: Box<[AtomicU32]>,
    banks: u32,
}

impl Plain {
    /// As many as the part has, with its ID registers.
    fn of(model: &Config, banks: u32) -> Self {
        let mut part = smmu_model::Smmu::new(model.clone());
        let words = (0..banks / 2).map(|word| match word * 4 {
            // IDR0 to IDR7; everything else starts at zero, where no sync is running and nothing faults.
            offset @ 0x20..0x40 => part.read32(offset as usize).into(),
            // FSR of every bank: a translation fault.
            offset if is_fsr(banks, offset) => AtomicU32::new(1 << 1),
            _ => AtomicU32::new(0),
        });
        Self { words: words.collect(), banks }
    }

    fn word(&self, offset: u32) -> Option<&AtomicU32> {
        self.words.get(offset as usize / 4)
    }
}

const fn is_fsr(banks: u32, offset: u32) -> bool {
    offset >= banks && offset & 0xfff == 0x58
}

impl Registers for Plain {
    fn read32(&self, offset: u32) -> u32 {
        self.word(offset).map_or(u32::MAX, |word| word.load(Ordering::Relaxed))
    }

    fn write32(&self, offset: u32, value: u32) {
        if let Some(word) = self.word(offset).filter(|_| !is_fsr(self.banks, offset)) {
            word.store(value, Ordering::Relaxed);
        }
    }

    fn read64(&self, offset: u32) -> u64 {
        u64::from(self.read32(offset)) | u64::from(self.read32(offset.wrapping_add(4))) << 32
    }

    fn write64(&self, offset: u32, value: u64) {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.write32(offset, u32::from_le_bytes([a, b, c, d]));
        self.write32(offset.wrapping_add(4), u32::from_le_bytes([e, f, g, h]));
    }
}

#[derive(Debug)]
struct Anyone;

impl Policy for Anyone {
    fn allows(&self, _: &PolicyRequest<'_>) -> bool {
        true
    }
}

/// What the counter counts: everything from here on until this returns.
#[inline(never)]
fn measured<T>(act: impl FnOnce() -> T) -> T {
    black_box(act())
}

/// The operation that is asked for is measured, the others only run.
struct Wanted<'a>(&'a str);

impl Wanted<'_> {
    fn run<T>(&self, operation: &str, act: impl FnOnce() -> T) -> T {
        if operation == self.0 { measured(act) } else { act() }
    }
}

struct World {
    service: Service<Spin>,
    handle: IommuHandle,
    guests: [Domain<Spin>; 2],
}

fn world() -> Result<World, Box<dyn Error>> {
    let service = Service::new(Box::new(Anyone));
    let model = Config::generic_v2();
    let bank_base = model.bank_base();
    let empty = EmptyRoot { address: PhysicalAddress::new(0x100_0000), size: 0x10_0000 };
    let config = SmmuConfig {
        context_lines: model.banks.into(),
        fault_limits: FaultLimits { records: u32::MAX, storm: u32::MAX },
        ..SmmuConfig::new(SMMU, u64::from(bank_base) * 2, Architecture::V2, empty)
    };
    let registers = Plain::of(&model, bank_base);
    let smmu = Smmu::probe(config, registers, Arc::new(Masters::<Spin>::new()))?;
    service.register_iommu(Arc::new(smmu))?;
    let handle = service.iommu(SMMU).ok_or("no IOMMU")?;
    let guest = |name: &str, root: u64| {
        let stage2 = Stage2 {
            root: PhysicalAddress::new(root),
            ipa_bits: 40,
            start_level: 1,
            granule: Granule::Kib4,
            output_bits: 40,
            tables: TableMemory::NonCacheable,
        };
        service.create_domain(Label::from(name), stage2)
    };
    let (others, one, two) = (guest("others", 0x8000_0000)?, guest("one", 0x9000_0000)?, guest("two", 0xa000_0000)?);
    for neighbour in 0..NEIGHBOURS {
        // Not next to each other, so that they stay entries of their own.
        let device = service.add(spec(1 + neighbour, &[0x100 + neighbour * 0x10]))?;
        service.assign(&device, &others)?;
    }
    Ok(World { service, handle, guests: [one, two] })
}

fn spec(key: u32, ids: &[u32]) -> DeviceSpec {
    let streams = ids.iter().map(|id| Stream::new(SMMU, StreamId::new(*id), StreamMask::new(0))).collect();
    DeviceSpec::new(DeviceKey::new(Source::Dt, key.into()), Label::from("device"), streams)
}

fn live(world: &World, wanted: &Wanted<'_>) -> Result<(), Box<dyn Error>> {
    let World { service, handle, guests: [one, two] } = world;
    let range = FlushRange { start: 0x4000_0000, size: 0x1000, leaf: 0x1000, changed: Changed::Leaf };
    let offer = spec(0x1000, &[0x10, 0x23, 0x4c]);
    let device = wanted.run("add", || service.add(offer))?;
    let found = wanted.run("find", || service.find(device.key()));
    assert!(found.is_some(), "it was added");
    wanted.run("assign, fresh bank", || service.assign(&device, one))?;
    wanted.run("flush of one page", || service.flush_range(one, &range))?;
    wanted.run("flush of a domain", || service.flush(one))?;
    let mut faults = 0_u32;
    // The neighbours have bank 0, the device the next one, whose line is its own.
    let line = FaultLine::Context(1);
    let _ = wanted.run("fault intake", || handle.take_faults(line, &mut |_| faults = faults.saturating_add(1)));
    assert_eq!(faults, 1, "one bank reports on the line");
    wanted.run("reassign, last to fresh", || service.reassign(&device, two))?;
    let cut = wanted.run("deassign, last", || service.deassign(&device))?;
    assert!(cut.still_reachable.is_empty(), "nobody shares its streams");
    wanted.run("remove", || service.remove(device.key()))?;
    Ok(())
}

fn run(wanted: &str, times: u32) -> Result<(), Box<dyn Error>> {
    let world = world()?;
    for _ in 0..times {
        live(&world, &Wanted(wanted))?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.as_slice() {
        [] => {
            OPERATIONS.iter().for_each(|operation| println!("{operation}"));
            Ok(())
        }
        [wanted, times] if OPERATIONS.contains(&wanted.as_str()) => {
            times.parse().map_err(Into::into).and_then(|times| run(wanted, times))
        }
        _ => Err("usage: instructions [OPERATION TIMES]".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
