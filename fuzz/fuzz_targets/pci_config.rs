//! Whatever a configuration space answers, enumeration, control, hooks and guest writes end, with sound answers; and nothing is
//! written to a function that has read as all ones.
#![no_main]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use arbitrary::{Arbitrary, Unstructured};
use iommu_assign::assign::{
    Device, DeviceSpec, DeviceState, Domain, IommuKey, Label, PhysicalAddress, Policy, PolicyRequest, Service, StreamId,
};
use iommu_assign::pci::control::{GuestWrites, Phase, Quiesce, Reset, ResetMethod, Width, power_up};
use iommu_assign::pci::sriov::PhysicalFunction;
use iommu_assign::pci::{
    Bus, Capabilities, ConfigSpace, Delay, DeviceFunction, Enumeration, ExtendedCapability, Function, FunctionConfig,
    FunctionHooks, FunctionKind, HostBridge, HostBridgeNumber, MapEntry, PciKey, Provider, RequesterIdMap, Sbdf,
    Segment, enumerate,
};
use iommu_assign::smmu::{Architecture, ContextLines, EmptyRoot, Masters, Smmu, SmmuConfig};
use iommu_assign::sync::{Micros, Spin};
use libfuzzer_sys::fuzz_target;
use machine::{Machine, Reached, Stage2Tables};

/// A function as the fuzzer has it: plausible, but for what is overwritten.
#[derive(Arbitrary, Clone, Debug)]
struct Shape {
    /// 2 bits of bus, then device and function: near each other, so that they meet.
    place: u16,
    header: Header,
    capabilities: Vec<(u8, u8)>,
    extended: Vec<(Kind, u8)>,
    /// Virtual functions stand behind it, if it can have some.
    has_virtual: bool,
    /// Registers that say anything.
    words: Vec<(u16, u32)>,
    /// Bits that each read flips, in turn.
    noise: Vec<u32>,
    /// Writes that are lost.
    read_only: bool,
}

/// An extended capability.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Acs,
    Ari,
    Ats,
    SrIov,
    Pri,
    Pasid,
    ResizableBars,
    Other(u8),
}

impl Kind {
    fn id(self) -> u16 {
        match self {
            Self::Acs => ExtendedCapability::ACS,
            Self::Ari => ExtendedCapability::ARI,
            Self::Ats => ExtendedCapability::ATS,
            Self::SrIov => ExtendedCapability::SR_IOV,
            Self::Pri => ExtendedCapability::PRI,
            Self::Pasid => ExtendedCapability::PASID,
            Self::ResizableBars => ExtendedCapability::RESIZABLE_BAR,
            Self::Other(id) => id.into(),
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Header {
    Endpoint {
        multi: bool,
    },
    Bridge {
        secondary: u8,
        subordinate: u8,
    },
    Other(u8),
    /// A virtual function's: its IDs read as all ones.
    Virtual,
}

#[derive(Arbitrary, Debug)]
struct Input {
    functions: Vec<Shape>,
    last_bus: u8,
    /// Everything reads as all ones from this access of an operation on, if it has so many.
    gone_after: Option<u16>,
    /// How much of the input is spent on each: which function, and what is written.
    guest_writes: Vec<(u16, u8, u32)>,
    method: u8,
    virtual_functions: u8,
}

#[derive(Debug)]
struct Registers {
    words: Box<[u32; 1024]>,
    noise: Vec<u32>,
    read_only: bool,
    reads: usize,
    /// It has read as all ones, and not answered since.
    doubted: bool,
    /// Where the base addresses of virtual functions are, whose low bits are read-only.
    bars: Option<u16>,
}

#[derive(Debug, Default)]
struct Space(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    functions: BTreeMap<Sbdf, Registers>,
    accesses: u64,
    gone_at: Option<u64>,
    writes: u64,
}

impl Space {
    fn new(shapes: &[Shape]) -> Self {
        let mut functions = BTreeMap::new();
        for shape in shapes.iter().take(SHAPES) {
            let [low, high] = shape.place.to_le_bytes();
            let at = Sbdf::new(Segment(0), Bus(high & 3), DeviceFunction(low));
            functions.insert(at, Registers::new(shape, at));
            let physical = shape.has_virtual && shape.extended.iter().take(8).any(|(kind, _)| *kind == Kind::SrIov);
            for number in (1..=VIRTUAL).filter(|_| physical) {
                let place = Sbdf { device_function: DeviceFunction(low.wrapping_add(number)), ..at };
                let shape = Shape { header: Header::Virtual, words: Vec::new(), ..shape.clone() };
                functions.entry(place).or_insert_with(|| Registers::new(&shape, place));
            }
        }
        Self(Mutex::new(Inner { functions, ..Inner::default() }))
    }

    /// Runs `act`, which may take so many accesses; it sees all ones from `gone_after` of them on.
    fn bounded<T>(&self, most: u64, gone_after: Option<u16>, act: impl FnOnce(&Self) -> T) -> T {
        let before = {
            let mut inner = self.0.lock().unwrap();
            inner.gone_at = gone_after.map(|after| inner.accesses + u64::from(after));
            inner.accesses
        };
        let result = act(self);
        let mut inner = self.0.lock().unwrap();
        assert!(inner.accesses - before <= most, "{} accesses, at most {most}", inner.accesses - before);
        inner.gone_at = None;
        result
    }
}

impl ConfigSpace for Space {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        assert!(offset < 0x1000 && offset.is_multiple_of(4), "{offset:#x}");
        let mut inner = self.0.lock().unwrap();
        inner.accesses += 1;
        let is_gone = inner.gone_at.is_some_and(|at| inner.accesses > at);
        let Some(registers) = inner.functions.get_mut(&function) else { return u32::MAX };
        let noise =
            if registers.noise.is_empty() { 0 } else { registers.noise[registers.reads % registers.noise.len()] };
        registers.reads += 1;
        let value = if is_gone { u32::MAX } else { registers.words[usize::from(offset / 4)] ^ noise };
        // A virtual function has no IDs to answer with, and does so by Command.
        let is_virtual = registers.words[0] == u32::MAX;
        match (value, offset) {
            (u32::MAX, 0) if is_virtual => {}
            (u32::MAX, _) => registers.doubted = true,
            (_, 4) if is_virtual => registers.doubted = false,
            (_, 0) => registers.doubted = false,
            _ => {}
        }
        value
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        assert!(offset < 0x1000 && offset.is_multiple_of(4), "{offset:#x}");
        let mut inner = self.0.lock().unwrap();
        inner.accesses += 1;
        inner.writes += 1;
        let is_gone = inner.gone_at.is_some_and(|at| inner.accesses > at);
        let Some(registers) = inner.functions.get_mut(&function) else { return };
        assert!(!registers.doubted, "{function} was written to at {offset:#x} after it had read as all ones");
        if !registers.read_only && !is_gone && offset != 0 {
            let is_bar = registers.bars.is_some_and(|bars| (bars..bars + 24).contains(&offset));
            registers.words[usize::from(offset / 4)] = if is_bar { value & 0xffff_f000 } else { value };
        }
    }
}

impl Registers {
    fn new(shape: &Shape, at: Sbdf) -> Self {
        let bars = shape.extended.iter().take(8).position(|(kind, _)| *kind == Kind::SrIov);
        Self {
            words: words(shape, at),
            noise: shape.noise.iter().take(16).copied().collect(),
            read_only: shape.read_only,
            reads: 0,
            doubted: false,
            bars: bars.and_then(|index| u16::try_from(0x124 + 0x40 * index).ok()),
        }
    }
}

/// So many functions, and the virtual ones of each.
const SHAPES: usize = 24;
/// How many virtual functions there are behind a physical one, right behind its place.
const VIRTUAL: u8 = 8;

/// What a function of this shape has in its registers.
fn words(shape: &Shape, at: Sbdf) -> Box<[u32; 1024]> {
    let mut words = Box::new([0; 1024]);
    words[0] = 0x10d3_8086;
    words[1] = 0x0010_0006;
    let layout = match shape.header {
        Header::Endpoint { multi } => u32::from(multi) << 7,
        Header::Bridge { secondary, subordinate } => {
            words[6] = u32::from_le_bytes([at.bus.0, secondary & 7, subordinate & 7, 0]);
            1
        }
        Header::Other(layout) => u32::from(layout),
        Header::Virtual => {
            words[0] = u32::MAX;
            0
        }
    };
    words[3] = layout << 16;
    let mut pointer = 0x34;
    for (index, (id, body)) in (0_u16..).zip(shape.capabilities.iter().take(6)) {
        let offset = 0x40 + index * 0x20;
        let bits = if pointer == 0x34 { 0 } else { 8 };
        words[usize::from(pointer / 4)] |= u32::from(offset) << bits;
        fill(&mut words, offset, u32::from(id % 0x16), u32::from(*body), 8);
        pointer = offset;
    }
    for (index, (kind, body)) in (0_u16..).zip(shape.extended.iter().take(8)) {
        let offset = 0x100 + index * 0x40;
        let next = if usize::from(index) + 1 < shape.extended.len().min(8) { u32::from(offset + 0x40) } else { 0 };
        let header = u32::from(kind.id()) | 1 << 16 | next << 20;
        fill(&mut words, offset, header, u32::from(*body), 16);
        if *kind == Kind::SrIov {
            let places = 1 | 1 << 16;
            let all = [header, 0, 0, 0x0008_0008, 0, places, 0x1520_0000, 0x553, 1, 0x9000_0000, 0, 0, 0, 0, 0, 0];
            words[usize::from(offset / 4)..][..all.len()].copy_from_slice(&all);
        }
    }
    for (offset, value) in shape.words.iter().take(64) {
        words[usize::from(offset % 0x1000 / 4)] = *value;
    }
    words
}

fn fill(words: &mut [u32; 1024], offset: u16, header: u32, body: u32, count: usize) {
    let first = usize::from(offset / 4);
    words[first] |= header;
    for (index, word) in words[first + 1..][..count - 1].iter_mut().enumerate() {
        *word = body.rotate_left(index as u32 * 5).wrapping_mul(0x0101_0101);
    }
    if header & 0xffff == 0x10 {
        // PCI Express of the kind and version that the body says.
        words[first] |= (body & 0xff) << 16;
    }
}

#[derive(Debug)]
struct Anyone;

impl Policy for Anyone {
    fn allows(&self, _: &PolicyRequest<'_>) -> bool {
        true
    }
}

const SMMU: IommuKey = IommuKey::new(0x5000_0000);
const PAGE: u64 = 0x4000_0000;
/// Two lists of capabilities, each place once with all its registers, and the looks whether the function is there.
const WALK: u64 = 64 * 12 + 960 * 12 + 64;
/// A second of steps, and what a reset reads and writes, by up to two methods.
const RESET: u64 = 2 * (WALK + 1001 * 4 + 600);
/// The places of virtual functions that are on, the rest of the device, and what is read of those that answer: at most
/// [`SHAPES`] with the virtual ones of each.
const OTHERS: u64 = 2 * (0x1_0000 + 0x100 + SHAPES as u64 * (1 + VIRTUAL as u64) * WALK);

fuzz_target!(|data: &[u8]| {
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(data)) else { return };
    let space = Arc::new(Space::new(&input.functions));
    let host = host(input.last_bus & 7);
    let buses = u64::from(host.buses.end().0) + 1;
    // First as it is, then while everything goes.
    let most = buses * 256 * (WALK + 64);
    let found = space.bounded(most, None, |space| enumerate(space, &host)).expect("memory");
    check(&found, &host);
    let partly = space.bounded(most, input.gone_after, |space| enumerate(space, &host)).expect("memory");
    check(&partly, &host);
    assert_eq!(space.0.lock().unwrap().writes, 0, "enumeration reads only");

    for function in found.functions.iter().take(4) {
        control(&space, function, &found, &input);
        guest(&space, function, &input);
    }
    if let Some(function) = found.functions.iter().find(|function| function.kind == FunctionKind::Endpoint) {
        hooks(&space, function, &found, &host, &input);
    }
});

fn host(last: u8) -> HostBridge {
    let entry = MapEntry::new(0, Provider::Smmu(SMMU), 0, 0x1_0000);
    HostBridge {
        number: HostBridgeNumber(0),
        segment: Segment(0),
        buses: Bus(0)..=Bus(last),
        map: RequesterIdMap::new([entry], RequesterIdMap::NO_MASK).expect("one entry"),
        passthrough: false,
    }
}

/// What was found holds together.
fn check(found: &Enumeration, host: &HostBridge) {
    assert!(found.functions.is_sorted_by(|one, two| one.key < two.key), "each key once");
    for function in &found.functions {
        assert!(host.buses.contains(&function.sbdf.bus));
        assert_eq!(PciKey::from_number(function.key.number()), Some(function.key));
        if let Some(parent) = function.key.parent() {
            assert!(found.function(parent).is_some(), "{} without its bridge", function.key);
        }
        let streams = host.streams(function).expect("all is mapped");
        assert!(streams.is_sorted_by(|one, two| one < two) && streams.len() <= function.requester_ids.len());
    }
    for problem in &found.problems {
        assert!(!problem.to_string().is_empty());
    }
}

/// What is looked at beside a function that can have virtual ones.
fn others(function: &Function) -> u64 {
    if function.capabilities.sr_iov.is_some() { OTHERS } else { 0 }
}

/// The single steps.
fn control(space: &Space, function: &Function, found: &Enumeration, input: &Input) {
    let gone = input.gone_after.map(|after| after % 256);
    let capabilities = &function.capabilities;
    space.bounded(RESET + others(function), gone, |space| {
        let Ok(config) = FunctionConfig::new(space, function.sbdf) else { return };
        let _ = iommu_assign::pci::control::turn_translation_services_off(&config, capabilities);
        if let Ok(mut quiesce) = Quiesce::begin(&config, capabilities, 8) {
            let _ = (0..10).map_while(|_| quiesce.step(&config).ok()).count();
        }
        let _ = power_up(&config, capabilities);
        let method = ResetMethod::ALL[usize::from(input.method) % ResetMethod::ALL.len()];
        let bridge = function.key.parent().and_then(|key| found.function(key)).map(|bridge| bridge.sbdf);
        if let Ok(mut reset) = Reset::begin_by(method, &config, capabilities, bridge, 8) {
            let steps = (0..20).map_while(|_| reset.step(space).ok()).count();
            assert!(steps <= 20);
        }
        let _ = Capabilities::read(&config);
    });
}

/// Any write of a guest.
fn guest(space: &Space, function: &Function, input: &Input) {
    let most = WALK * 2 + input.guest_writes.len() as u64 * 8;
    space.bounded(most, None, |space| {
        let Ok(config) = FunctionConfig::new(space, function.sbdf) else { return };
        let Ok(writes) = GuestWrites::read(&config) else { return };
        for (offset, width, value) in input.guest_writes.iter().take(64) {
            let phase = if width & 0x80 == 0 { Phase::Owned } else { Phase::Transition };
            let width = [Width::Byte, Width::Word, Width::Double][usize::from(width % 3)];
            let answer = writes.answer(*offset, width, phase);
            let whole = [0xff, 0xffff, u32::MAX][width as usize];
            assert_eq!(answer.passes | answer.emulated | answer.ignored, whole);
            assert_eq!(answer.passes & answer.emulated | answer.passes & answer.ignored, 0);
            let is_address = (0x10..0x28).contains(offset) || (0x30..0x34).contains(offset);
            assert!(answer.passes == 0 || !(is_address || phase == Phase::Transition));
            let parts: Vec<_> = writes.parts(*offset, width, phase).collect();
            assert_eq!(parts.iter().fold(0, |bits, part| bits ^ part.bits), whole);
            let before = space.0.lock().unwrap().writes;
            let _ = writes.write(&config, *offset, width, *value, phase);
            let wrote = space.0.lock().unwrap().writes - before;
            assert!(wrote == 0 || answer.passes != 0 && wrote == 1);
        }
    });
}

/// A machine with a service, and a guest.
struct Rig {
    machine: Machine,
    service: Service<Spin>,
    domain: Domain<Spin>,
}

impl Rig {
    fn new() -> Self {
        let machine = Machine::new();
        let model = smmu_model::Config::generic_v2();
        let empty = EmptyRoot { address: PhysicalAddress::new(0x100_0000), size: 0x10_0000 };
        let mut config = SmmuConfig::new(SMMU, u64::from(model.bank_base()) * 2, Architecture::V2, empty);
        config.polls = 100;
        config.context_lines = ContextLines::each(model.banks);
        let registers = machine.add_smmu(SMMU, model);
        let service = Service::<Spin>::new(Box::new(Anyone));
        let masters = Arc::new(Masters::<Spin>::new());
        service.register_iommu(Arc::new(Smmu::probe(config, registers, masters).expect("probe"))).expect("register");
        let mut tables = Stage2Tables::new(&machine, 0x8000_0000, 40, 40);
        tables.map(PAGE, 0x1_0000_0000, true);
        let domain = service.create_domain(Label::from("A"), tables.stage2()).expect("domain");
        Self { machine, service, domain }
    }

    fn faults(&self, device: &Device) -> bool {
        device.streams().iter().all(|stream| {
            self.machine.dma_write(SMMU, StreamId::new(stream.id().value()), PAGE) == Some(Reached::Fault)
        })
    }
}

const DELAY: Delay = Delay::sleeping(|_: Micros| ());

/// A life with the standard hooks, under an SMMU.
fn hooks(space: &Arc<Space>, function: &Function, found: &Enumeration, host: &HostBridge, input: &Input) {
    let most = 200 + others(function);
    let made = space.bounded(most, None, |_| FunctionHooks::new(space.clone(), function, found, DELAY));
    let (Ok(hooks), Ok(mut spec)) = (made, function.spec(host, found)) else { return };
    if spec.streams.len() > 8 {
        return;
    }
    let hooks = Arc::new(hooks);
    (spec.parent, spec.hooks) = (None, hooks.clone());
    let rig = Rig::new();
    // Streams that the part cannot hold are refused.
    let Ok(device) = rig.service.add(spec) else { return };
    if function.capabilities.sr_iov.is_some() {
        virtual_functions(space, function, found, host, input, &rig);
    }
    if rig.service.assign(&device, &rig.domain).is_err() {
        // Its virtual functions are still there.
        return;
    }
    let before = space.0.lock().unwrap().writes;
    let most = RESET + 1100 * 4 + others(function);
    let result = space.bounded(most, input.gone_after, |_| rig.service.deassign(&device).map(drop));
    let state = rig.service.find(device.key()).expect("registered").state;
    match result {
        Ok(()) => {
            assert_eq!(state, DeviceState::Blocked);
            assert!(!hooks.in_transition() && hooks.last_reset().is_some());
        }
        Err(error) if error.cause.to_string().contains("behind it") => return,
        Err(_) => assert!(matches!(state, DeviceState::Quarantined(_)), "{state:?}"),
    }
    let after = space.0.lock().unwrap().writes;
    assert!(after - before <= 200, "{} writes", after - before);
    assert!(rig.faults(&device));
}

/// Virtual functions that are said to be anywhere, and may not be there.
fn virtual_functions(
    space: &Arc<Space>,
    function: &Function,
    found: &Enumeration,
    host: &HostBridge,
    input: &Input,
    rig: &Rig,
) {
    let physical = PhysicalFunction::new(&**space, host, found, function.key).expect("it has the capability");
    // Each is read, maybe waited for, for a second, and undone; at most eight of them.
    let most = 16 * (WALK + 1001 * 4 + 600) + 16 * OTHERS;
    let count = u16::from(input.virtual_functions % 8) + 1;
    let on = space.bounded(most, input.gone_after, |_| {
        physical.switch_on(&rig.service, count, DELAY, &mut |function, spec| {
            let hooks = FunctionHooks::new(space.clone(), function, found, DELAY);
            match hooks {
                Ok(hooks) => DeviceSpec { hooks: Arc::new(hooks), ..spec },
                Err(_) => spec,
            }
        })
    });
    let registered = || rig.service.devices().filter(|info| info.device.key() != function.key.into()).count();
    match on {
        Ok(on) => {
            assert_eq!((on.len(), registered()), (usize::from(count), usize::from(count)));
            for one in &on {
                assert!(host.buses.contains(&one.function.sbdf.bus) && one.function.sbdf != function.sbdf);
                assert!(rig.faults(&one.device));
            }
            let first = &on[0].device;
            if rig.service.assign(first, &rig.domain).is_ok() {
                let _ = space.bounded(most, input.gone_after, |_| rig.service.deassign(first).map(drop));
                assert!(rig.faults(first));
            }
            let _ = space.bounded(most, None, |_| physical.switch_off(&rig.service, DELAY));
            assert_eq!(registered(), 0, "nobody has one");
        }
        Err(error) => {
            assert!(!error.to_string().is_empty());
            assert_eq!(registered(), 0, "all or none: {error}");
        }
    }
    let _ = space.bounded(most, input.gone_after, |_| physical.virtual_functions().map(drop));
}
