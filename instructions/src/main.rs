//! `instructions CASE`: builds the world of one case, then runs a device through its life there [`LIVES`] times.
//!
//! Every operation runs inside [`measured`]. An instruction counter collects there only, and writes one file each time
//! that function is left. For each such file there is one line of output: the operation, its allocations, the bytes that
//! were live at most, and the bytes that it kept, with tabs between them. Lines that begin with `#` tell of heap that
//! belongs to no operation. Without arguments it names the cases.

#![deny(unsafe_code)]
#![allow(clippy::arithmetic_side_effects, reason = "small numbers, on the host")]

mod memory;
mod plain;

use std::error::Error;
use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;

use iommu_assign::assign::{
    Changed, Device, DeviceKey, DeviceSpec, Domain, FaultLine, FlushRange, Granule, IommuKey, Label, PhysicalAddress,
    Policy, PolicyRequest, Service, Source, Stage2, Stream, StreamId, StreamMask, TableMemory,
};
use iommu_assign::smmu::{Architecture, ContextLines, EmptyRoot, FaultLimits, Masters, Smmu, SmmuConfig};
use iommu_assign::sync::Spin;
use memory::Mark;
use plain::{ENTRIES, Plain, SIZE};
use smmu_model::{Config, PageSize};

/// Lives that are measured, after one that is not: it fills what is made at a first use.
const LIVES: u32 = 4;

/// What is there before the device that is measured, and what that device is.
struct Case {
    name: &'static str,
    smmus: u32,
    /// Devices that are there, dealt out to the SMMUs in turn, each with a stream ID of its own.
    devices: u32,
    /// Of the devices on one SMMU, each so-manieth is assigned.
    assigned: u32,
    /// The domains that they are assigned to, in turn: as many banks on an SMMU at most.
    domains: u32,
    streams: u32,
    /// Devices that share the measured device's stream, one of which is assigned beside it.
    mates: u32,
    /// Whether there is room for one more device, with which the measured one shares a bank.
    company: bool,
}

const PLAIN: Case =
    Case { name: "", smmus: 1, devices: 0, assigned: 8, domains: 16, streams: 1, mates: 0, company: true };

const CASES: &[Case] = &[
    Case { name: "1 device", ..PLAIN },
    Case { name: "128 devices, 2 SMMUs", devices: 128, smmus: 2, ..PLAIN },
    Case { name: "1024 devices, 9 SMMUs", devices: 1024, smmus: 9, ..PLAIN },
    Case { name: "4096 devices, 33 SMMUs", devices: 4096, smmus: 33, ..PLAIN },
    Case { name: "64 SMMUs x 8 devices", devices: 512, smmus: 64, ..PLAIN },
    Case { name: "127th of 128 entries", devices: 126, ..PLAIN },
    Case { name: "16 streams, 100 of 128 entries", devices: 100, streams: 16, ..PLAIN },
    Case { name: "16 devices", devices: 16, ..PLAIN },
    Case { name: "1 SMMU x 8 devices", devices: 8, ..PLAIN },
    Case { name: "8 live banks", devices: 8, assigned: 1, domains: 8, ..PLAIN },
    Case { name: "127 live banks", devices: 127, assigned: 1, domains: 127, company: false, ..PLAIN },
    Case { name: "group of 8", devices: 16, mates: 6, ..PLAIN },
];

#[derive(Debug)]
struct Anyone;

impl Policy for Anyone {
    fn allows(&self, _: &PolicyRequest<'_>) -> bool {
        true
    }
}

/// What the counter counts: everything from here on until this returns.
///
/// The closure is inlined: beside the library's call these are a few instructions that pass its arguments.
#[inline(never)]
fn measured<T>(act: impl FnOnce() -> T) -> T {
    act()
}

struct World {
    case: &'static Case,
    service: Service<Spin>,
    /// The SMMU of the device that is measured: the last that was registered.
    smmu: IommuKey,
    registers: Plain,
    guests: [Domain<Spin>; 2],
    /// Keeps what is there besides.
    _others: Vec<Domain<Spin>>,
    _devices: Vec<Device>,
}

const fn smmu(index: u32) -> IommuKey {
    IommuKey::new(0x5000_0000 + index as u64 * 0x10_0000)
}

fn stage2(index: u32) -> Stage2 {
    Stage2 {
        root: PhysicalAddress::new(0x8000_0000 + u64::from(index) * 0x1_0000),
        ipa_bits: 40,
        start_level: 1,
        granule: Granule::Kib4,
        output_bits: 40,
        tables: TableMemory::NonCacheable,
    }
}

fn spec(key: u32, smmu: IommuKey, ids: impl Iterator<Item = u32>) -> DeviceSpec {
    let streams = ids.map(|id| Stream::new(smmu, StreamId::new(id), StreamMask::new(0))).collect();
    DeviceSpec::new(DeviceKey::new(Source::Dt, key.into()), Label::from("device"), streams)
}

/// The stream IDs of the measured device. Any two of them differ in two bits, so that no two fit in one entry.
fn own_ids(count: u32) -> impl Iterator<Item = u32> {
    (0..count).map(|code| 0x6000 | code << 1 | code.count_ones() & 1)
}

/// Bytes for each, rounded up.
fn each(mark: Mark, count: u32) -> usize {
    mark.kept().div_ceil(count.max(1) as usize)
}

fn world(case: &'static Case) -> Result<World, Box<dyn Error>> {
    let service = Service::new(Box::new(Anyone));
    // 2^(6 + 1) small pages in each half: one for each bank.
    let page_size = PageSize::Small;
    let model = Config { groups: ENTRIES, banks: ENTRIES, page_size, num_page_index_bits: 6, ..Config::generic_v2() };
    assert_eq!(model.bank_base() * 2, SIZE, "the region is as large as the part's");
    let masters = Arc::new(Masters::<Spin>::new());
    let registers: Vec<Plain> = (0..case.smmus).map(|_| Plain::of(&model)).collect();
    let mark = Mark::now();
    for (index, registers) in (0_u32..).zip(&registers) {
        let empty = EmptyRoot { address: PhysicalAddress::new(0x100_0000), size: 0x10_0000 };
        let config = SmmuConfig {
            context_lines: ContextLines::each(ENTRIES),
            fault_limits: FaultLimits { records: u32::MAX, storm: u32::MAX, line: u32::MAX },
            ..SmmuConfig::new(smmu(index), SIZE.into(), Architecture::V2, empty)
        };
        let smmu = Smmu::probe(config, registers.clone(), Arc::clone(&masters))?;
        service.register_iommu(Arc::new(smmu))?;
    }
    println!("# SMMU\t{}", each(mark, case.smmus));
    let mark = Mark::now();
    let guests = [service.create_domain("one".into(), stage2(0))?, service.create_domain("two".into(), stage2(1))?];
    println!("# domain\t{}", each(mark, 2));
    let others = (0..case.domains).map(|index| service.create_domain(Label::from("others"), stage2(2 + index)));
    let others = others.collect::<Result<Vec<_>, _>>()?;
    let mut devices = Vec::with_capacity((case.devices + case.mates) as usize);
    let mark = Mark::now();
    for index in 0..case.devices {
        devices.push(service.add(spec(1 + index, smmu(index % case.smmus), [0x10 + index * 4].into_iter()))?);
    }
    println!("# device\t{}", each(mark, case.devices));
    let mut domains = others.iter().cycle();
    let nth = |index: u32| index / case.smmus;
    for (index, device) in (0..case.devices).zip(&devices).filter(|(index, _)| nth(*index) % case.assigned == 0) {
        // The first on each SMMU starts anew with the first domain: SMMUs have the same domains.
        if case.assigned == 1 {
            service.assign(device, domains.next().ok_or("no domain")?)?;
        } else {
            let nth = nth(index) / case.assigned % case.domains;
            service.assign(device, others.get(nth as usize).ok_or("no domain")?)?;
        }
    }
    let own = smmu(case.smmus - 1);
    for mate in 0..case.mates {
        devices.push(service.add(spec(0x1_0000 + mate, own, own_ids(1)))?);
    }
    let registers = registers.into_iter().next_back().ok_or("no SMMU")?;
    Ok(World { case, service, smmu: own, registers, guests, _others: others, _devices: devices })
}

/// One life of the device. The first one is not measured.
struct Life<'w> {
    world: &'w World,
    measures: bool,
}

impl Life<'_> {
    fn run<T>(&self, operation: &str, act: impl FnOnce() -> T) -> T {
        self.run_since(Mark::now(), operation, act)
    }

    /// Heap is counted from `mark` on.
    fn run_since<T>(&self, mark: Mark, operation: &str, act: impl FnOnce() -> T) -> T {
        self.world.registers.clear_faults();
        self.run_as_is(mark, operation, act)
    }

    fn run_as_is<T>(&self, mark: Mark, operation: &str, act: impl FnOnce() -> T) -> T {
        if !self.measures {
            return black_box(act());
        }
        let before = memory::allocations();
        let result = black_box(measured(act));
        let (allocations, carried, kept) = (memory::allocations() - before, mark.carried(), mark.kept());
        println!("{operation}\t{allocations}\t{carried}\t{kept}");
        result
    }

    fn live(&self) -> Result<(), Box<dyn Error>> {
        let World { case, service, guests: [one, two], registers, .. } = self.world;
        let range = FlushRange { start: 0x4000_0000, size: 0x1000, leaf: 0x1000, changed: Changed::Leaf };
        let banks: Vec<u8> = registers.live_banks().collect();

        let mark = Mark::now();
        let offer = spec(0x2_0000, self.world.smmu, own_ids(case.streams));
        let device = self.run_since(mark, "add", || service.add(offer))?;
        self.run("first assign", || service.assign(&device, one))?;
        let bank = registers.live_banks().find(|bank| !banks.contains(bank)).ok_or("no bank went live")?;
        self.run("flush, a page", || service.flush_range(one, &range))?;
        self.run("flush, a domain", || service.flush(one))?;
        self.fault(bank)?;
        drop(self.run("deassign, last", || service.deassign(&device))?);
        self.run("assign again, fresh bank", || service.assign(&device, one))?;
        if case.company {
            self.run("reassign", || service.reassign(&device, two))?;
            drop(service.deassign(&device)?);
            // One more device of the same domain, so that the bank is there, and stays. In a group it is a mate.
            let id = if case.mates > 0 { own_ids(1).next() } else { Some(0x7000) };
            let company = service.add(spec(0x3_0000, self.world.smmu, id.into_iter()))?;
            service.assign(&company, one)?;
            self.run("assign again, bank there", || service.assign(&device, one))?;
            drop(self.run("deassign, not last", || service.deassign(&device))?);
            drop(service.deassign(&company)?);
            service.remove(company.key())?;
        } else {
            drop(service.deassign(&device)?);
        }
        drop(self.run("remove", || service.remove(device.key()))?);
        Ok(())
    }

    fn fault(&self, bank: u8) -> Result<(), Box<dyn Error>> {
        let handle = self.world.service.iommu(self.world.smmu).ok_or("no IOMMU")?;
        let line = FaultLine::Context(bank);
        let mut faults = 0_u32;
        // What clears a record in hardware stands in plain memory as one, which a bank that is retired leaves to be told.
        let _ = handle.take_faults(line, &mut |_| ());
        self.world.registers.clear_faults();
        self.world.registers.put_fault(bank);
        let mark = Mark::now();
        let act = || handle.take_faults(line, &mut |_| faults += 1);
        let _ = self.run_as_is(mark, "fault intake", act);
        assert_eq!(faults, 1, "the bank has one fault, and one line of its own");
        Ok(())
    }
}

fn run(case: &'static Case) -> Result<(), Box<dyn Error>> {
    let world = world(case)?;
    for life in 0..=LIVES {
        Life { world: &world, measures: life > 0 }.live()?;
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.as_slice() {
        [] => {
            CASES.iter().for_each(|case| println!("{}", case.name));
            Ok(())
        }
        [name] => match CASES.iter().find(|case| case.name == name) {
            Some(case) => run(case),
            None => Err("no such case".into()),
        },
        _ => Err("usage: instructions [CASE]".into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
