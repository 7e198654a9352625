//! Streams that nobody described and that storm (contract ).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::parts::{Part, named, parts};
use common::{Bench, PAGE, SMMU, stream};
use iommu_assign::assign::{
    AddressSpace, Cause, Device, DeviceId, DeviceKey, DeviceState, Difference, DomainId, Error, FaultAnswer, FaultLine,
    Iommu, IommuError, IommuKey, Left, NewMaster, Operation, Prepared, Quarantine, RawFault, Resource, Sharing, Stage2,
    Stage2Limits, Storm, Stream, StreamId, Withdrawn,
};
use iommu_assign::smmu::{FaultLimits, Reserved, Setup, Smmu, SmmuConfig};
use iommu_assign::sync::{ManyCpus, Platform, Spin};
use machine::{ModelRegisters, Reached, Stage2Tables};
use smmu_model::Config;

const LIMITS: FaultLimits = FaultLimits { records: 3, storm: 5 };
/// The stream that nobody has.
const STRAY: u32 = 0x11;
/// The integrator's scratch page.
const SCRATCH: u64 = 0x3_0000_0000;

fn bench(part: Part) -> Bench {
    let bench = Bench::new();
    bench.smmu_as(SmmuConfig { fault_limits: LIMITS, ..part.config }, part.model);
    bench.service.enable_reports(SMMU).unwrap();
    bench
}

fn generic() -> Bench {
    bench(named("generic v2"))
}

/// Few of everything.
fn small(model: Config) -> Bench {
    let config = common::described(SMMU, &model);
    bench(Part { name: "small", model, config })
}

fn silence(bench: &Bench) -> Quarantine {
    Quarantine::Silence(root(bench, None))
}

fn root(bench: &Bench, page: Option<u64>) -> Stage2 {
    let mut tables = Stage2Tables::new(&bench.machine, 0x9000_0000, 40, 40);
    page.into_iter().for_each(|page| tables.map(PAGE, page, true));
    tables.stage2()
}

fn dma(bench: &Bench, stream: u32) -> Reached {
    bench.machine.dma_write(SMMU, StreamId::new(stream), PAGE + 0x5000).unwrap()
}

/// Records taken from the global line, and what the handler answers.
fn take(bench: &Bench) -> (usize, FaultAnswer) {
    let mut reported = 0;
    let handle = bench.service.iommu(SMMU).unwrap();
    let answer = handle.take_faults(FaultLine::Global, &mut |_| reported += 1);
    (reported, answer)
}

fn storm(bench: &Bench, stream: u32) {
    storm_on(bench, stream, FaultLine::Global);
}

fn storm_on(bench: &Bench, stream: u32, line: FaultLine) {
    let handle = bench.service.iommu(SMMU).unwrap();
    let storming = (0..100).any(|_| {
        dma(bench, stream);
        handle.take_faults(line, &mut |_| ()) == FaultAnswer::Mask(line)
    });
    assert!(storming, "{stream:#x} storms");
}

fn tend(bench: &Bench, place: Quarantine) -> Vec<(u32, Option<Result<Device, Error>>)> {
    let mut told = Vec::new();
    let sink = &mut |storm: &Storm| told.push((storm.stream.value(), storm.ended.clone()));
    bench.service.tend_faults(SMMU, place, sink).unwrap();
    told
}

/// Storms, and is quarantined.
fn stray(bench: &Bench, stream: u32, place: Quarantine) -> Device {
    storm(bench, stream);
    let mut told = tend(bench, place);
    assert_eq!(told.len(), 1);
    let (id, ended) = told.remove(0);
    assert_eq!(id, stream);
    ended.expect("a stray").expect("its storm has ended")
}

fn is_there(bench: &Bench, stream: u32) -> bool {
    bench.service.find(DeviceKey::stray(SMMU, StreamId::new(stream))).is_some()
}

fn raised(bench: &Bench) -> bool {
    let lines = |smmu: &mut smmu_model::Smmu| smmu.global_irq() || (0..8).any(|line| smmu.context_irq(line));
    bench.machine.smmu(SMMU, lines).unwrap()
}

fn is_silent(bench: &Bench, stream: u32) -> bool {
    (0..20).all(|_| dma(bench, stream) == Reached::Fault && !raised(bench)) && take(bench) == (0, FaultAnswer::Done)
}

/// How many entries and banks are in use.
fn used(bench: &Bench) -> (usize, usize) {
    let mut used = (0, 0);
    bench
        .service
        .usage(SMMU, &mut |usage| match usage.resource {
            Resource::StreamMapEntries => used.0 += 1,
            Resource::ContextBanks => used.1 += 1,
            _ => {}
        })
        .unwrap();
    used
}

#[test]
fn a12_the_storm_of_an_unknown_stream_ends_and_its_device_can_come() {
    for part in parts() {
        let (name, banks) = (part.name, part.model.banks);
        let mut bench = bench(part);
        let before = used(&bench);
        let guest = bench.guest("guest");
        let calm = bench.add("calm", &[(0x10, 0)]);
        if banks > 1 {
            bench.assign(&calm, &guest).unwrap();
        }
        let reached = bench.dma(0x10);
        let place = silence(&bench);
        let silent = stray(&bench, STRAY, place);
        assert_eq!(silent.label().to_string(), format!("stray stream 0x11 at {SMMU}"), "{name}");
        assert_eq!(bench.service.find(silent.key()).unwrap().state, DeviceState::Quarantined, "{name}");
        assert!(is_silent(&bench, STRAY), "{name}: unmasked, nobody hears of it");
        assert_eq!(tend(&bench, place).len(), 0, "{name}");
        assert_eq!(bench.dma(0x10), reached, "{name}");
        bench.audit();

        bench.remove(&calm).unwrap();
        let (late, other) = (bench.add("late", &[(STRAY, 0)]), bench.guest("other"));
        assert!(!is_there(&bench, STRAY), "{name}: it made way");
        assert_eq!(bench.service.find(late.key()).unwrap().group, late.key(), "{name}");
        assert_eq!(bench.dma(STRAY), Reached::Fault, "{name}");
        bench.audit();
        bench.assign(&late, &other).unwrap();
        assert_eq!(bench.dma(STRAY), Reached::Memory(other.backing), "{name}");
        bench.audit();
        bench.remove(&late).unwrap();
        assert_eq!(used(&bench), before, "{name}");
        bench.audit();
    }
}

#[test]
fn a3_a_stray_is_removed_by_its_key_and_leaves_nothing() {
    let mut bench = generic();
    let before = used(&bench);
    let place = silence(&bench);
    for _ in 0..3 {
        let (one, two) = (stray(&bench, STRAY, place), stray(&bench, 0x22, place));
        assert_eq!(used(&bench), (before.0 + 2, before.1 + 1), "one bank serves all");
        bench.remove(&one).unwrap();
        assert!(!is_silent(&bench, STRAY));
        let _ = take(&bench);
        assert!(is_silent(&bench, 0x22));
        bench.service.remove(DeviceKey::stray(SMMU, StreamId::new(0x22))).unwrap();
        drop((one, two));
        let _ = (take(&bench), tend(&bench, Quarantine::Faults));
        assert_eq!(used(&bench), before);
        bench.audit();
    }
}

#[test]
fn a11_nobody_gets_a_stray_whatever_the_policy_says() {
    let mut bench = generic();
    let guest = bench.guest("guest");
    let stray = stray(&bench, STRAY, silence(&bench));
    let cause = |result: Result<(), Error>| result.unwrap_err().cause;
    assert_eq!(cause(bench.service.assign(&stray, &guest.domain)), Cause::Stray);
    assert_eq!(cause(bench.service.assign_group(&stray, &guest.domain)), Cause::Stray);
    assert_eq!(cause(bench.service.reassign(&stray, &guest.domain)), Cause::Stray);
    assert_eq!(cause(bench.service.deassign(&stray).map(drop)), Cause::NotAssigned);
    let mut child = bench.spec("child", &[(0x20, 0)]);
    child.parent = Some(stray.key());
    assert_eq!(cause(bench.service.add(child).map(drop)), Cause::ParentMissing);
    let mut forged = bench.spec("forged", &[(0x20, 0)]);
    forged.key = DeviceKey::stray(SMMU, StreamId::new(0x20));
    assert_eq!(cause(bench.service.add(forged).map(drop)), Cause::Stray);
    assert!(is_silent(&bench, STRAY));
    bench.audit();
}

#[test]
fn i11_a_device_that_meets_strays_and_owners_is_judged_by_the_owners() {
    let mut bench = generic();
    let place = silence(&bench);
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    for (name, id, guest) in [("first", 0x10, &one), ("second", 0x12, &two)] {
        let device = bench.add(name, &[(id, 0)]);
        bench.assign(&device, guest).unwrap();
    }
    for id in [STRAY, 0x13] {
        let _ = stray(&bench, id, place);
    }
    let spec = bench.spec("bridge", &[(0x10, 3)]);
    assert!(matches!(bench.service.add(spec).unwrap_err().cause, Cause::GroupConflict { .. }));
    // Refused before anything was done about the strays.
    assert!(is_silent(&bench, STRAY) && is_silent(&bench, 0x13));
    let wide = bench.add("wide", &[(STRAY, 0), (0x13, 0)]);
    assert!(!is_there(&bench, STRAY) && !is_there(&bench, 0x13));
    bench.audit();
    bench.assign(&wide, &one).unwrap();
    assert_eq!(bench.dma(0x13), Reached::Memory(one.backing));
    bench.audit();
}

#[test]
fn a12_a_lazy_device_makes_a_stray_go_too() {
    let mut bench = generic();
    let guest = bench.guest("guest");
    let _ = stray(&bench, STRAY, silence(&bench));
    let mut spec = bench.spec("lazy", &[(STRAY, 0)]);
    spec.lazy = true;
    let lazy = bench.service.add(spec).unwrap();
    assert!(!is_there(&bench, STRAY));
    bench.assign(&lazy, &guest).unwrap();
    assert_eq!(bench.dma(STRAY), Reached::Memory(guest.backing));
    bench.audit();
}

#[test]
fn a5_a_stray_for_which_nothing_is_left_changes_nothing() {
    let full = Config { groups: 2, ..Config::generic_v2() };
    let banked = Config { banks: 1, ..Config::generic_v2() };
    for (model, lacking) in [(full, Resource::StreamMapEntries), (banked, Resource::ContextBanks)] {
        let mut bench = small(model);
        let guest = bench.guest("guest");
        let (dma, _other) = (bench.add("dma", &[(0x10, 0)]), bench.add("other", &[(0x20, 0)]));
        bench.assign(&dma, &guest).unwrap();
        let before = used(&bench);
        storm(&bench, STRAY);
        let generation = bench.service.devices().count();
        let told = tend(&bench, silence(&bench));
        let [(STRAY, Some(Err(error)))] = told.as_slice() else { panic!("{told:?}") };
        assert_eq!((error.operation, error.left), (Operation::Add, Left::Unchanged));
        let exhausted =
            |error: &IommuError| matches!(error, IommuError::Exhausted { resource, .. } if *resource == lacking);
        assert!(matches!(&error.cause, Cause::Iommu { error, .. } if exhausted(error)), "{error}");
        assert_eq!((used(&bench), bench.service.devices().count()), (before, generation));
        assert!(!is_there(&bench, STRAY));
        assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
        bench.audit();
        // With something to spare it works.
        bench.remove(&dma).unwrap();
        let _ = stray(&bench, STRAY, silence(&bench));
        assert!(is_silent(&bench, STRAY));
    }
}

#[test]
fn a12_a_stream_that_somebody_s_entry_captures_is_no_stray() {
    let mut bench = Bench::new();
    let part = named("generic v2");
    let config = SmmuConfig { fault_limits: LIMITS, ..part.config };
    let reserved = Reserved { streams: vec![stream(SMMU, 0x30, 0)], space: root(&bench, None) };
    let setup = Setup { unused: vec![stream(SMMU, 0x10, 0xf)], reserved: vec![reserved], ..Setup::default() };
    bench.smmu_through(config, setup, part.model, |registers| registers);
    bench.service.enable_reports(SMMU).unwrap();
    bench.add("loose", &[(0x10, 0), (0x11, 0), (0x12, 0)]);
    let line = FaultLine::Context(0);
    for (id, line, owner) in [(0x13, FaultLine::Global, "loose"), (0x30, line, "a reserved stream")] {
        storm_on(&bench, id, line);
        let told = tend(&bench, silence(&bench));
        let [(_, Some(Err(error)))] = told.as_slice() else { panic!("{told:?}") };
        assert!(matches!(&error.cause, Cause::GroupConflict { with, .. } if with.to_string() == owner), "{error}");
        assert_eq!((error.left, is_there(&bench, id)), (Left::Unchanged, false));
        bench.audit();
    }
}

/// A host that counts its wakes.
#[derive(Debug)]
enum Heard {}

static WAKES: AtomicU32 = AtomicU32::new(0);

impl Platform for Heard {
    type Lock = <Spin as Platform>::Lock;
    type Sharing = ManyCpus;

    fn barrier() {}

    fn wake() {
        WAKES.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn c8_a_stray_that_is_busy_keeps_its_device_waiting() {
    let mut bench = generic();
    let stray = stray(&bench, STRAY, silence(&bench));
    let call = stray.enter::<Heard>().unwrap();
    let spec = bench.spec("late", &[(STRAY, 0)]);
    let error = bench.service.add(spec.clone()).unwrap_err();
    assert_eq!((error.cause, error.left), (Cause::Busy { running: Operation::Remove }, Left::Unchanged));
    assert!(bench.service.find(spec.key).is_none());
    assert!(is_silent(&bench, STRAY), "nothing was done about it");
    bench.audit();
    assert_eq!(WAKES.load(Ordering::Relaxed), 0);
    drop(call);
    assert_eq!(WAKES.load(Ordering::Relaxed), 1, "C-19: whoever waits with that add is woken");
    bench.service.add(spec).unwrap();
    assert!(!is_there(&bench, STRAY));
    bench.audit();
}

#[test]
fn s5_a_stray_is_silent_after_a_resume_too() {
    let bench = generic();
    let _ = stray(&bench, STRAY, silence(&bench));
    bench.service.suspend_iommu(SMMU).unwrap();
    bench.service.resume_iommu(SMMU).unwrap();
    assert!(is_silent(&bench, STRAY));
    bench.audit();
}

#[test]
fn c9_strays_go_with_their_iommu() {
    for forced in [false, true] {
        let mut bench = generic();
        let device = bench.add("dma", &[(0x10, 0)]);
        let place = silence(&bench);
        let _ = (stray(&bench, STRAY, place), stray(&bench, 0x22, place));
        let refused = bench.service.unregister_iommu(SMMU).unwrap_err();
        assert_eq!(refused.cause, Cause::InUse { devices: 1 });
        assert!(is_silent(&bench, STRAY), "refused before anything was done");
        bench.remove(&device).unwrap();
        if forced {
            bench.service.force_unregister_iommu(SMMU).unwrap();
        } else {
            bench.service.unregister_iommu(SMMU).unwrap();
        }
        assert_eq!(bench.service.devices().count(), 0);
        assert_eq!(dma(&bench, STRAY), Reached::Fault);
    }
}

#[test]
fn s6_a_stray_may_end_in_a_scratch_page() {
    for name in ["generic v1", "generic v2", "extended", "stream indexing"] {
        let mut bench = bench(named(name));
        let place = Quarantine::Scratch(root(&bench, Some(SCRATCH)));
        let label = format!("stray stream {STRAY:#x} at {SMMU}");
        bench.oracle.allow(&label.to_string().as_str().into(), &[(STRAY, 0)], &[SCRATCH]);
        let stray = stray(&bench, STRAY, place);
        assert_eq!(bench.dma(STRAY), Reached::Memory(SCRATCH), "{name}");
        // What misses the page is heard by nobody.
        assert!(is_silent(&bench, STRAY), "{name}");
        bench.audit();
        // In fault it is heard again, and silenced again.
        bench.service.quarantine(&stray, Quarantine::Faults).unwrap();
        storm(&bench, STRAY);
        assert!(
            matches!(tend(&bench, silence(&bench)).as_slice(), [(STRAY, Some(Ok(same)))] if same.id() == stray.id())
        );
        assert!(is_silent(&bench, STRAY), "{name}");
        bench.remove(&stray).unwrap();
        assert_eq!(used(&bench), (0, 0), "{name}");
    }
}

/// A driver that was asked whose a stream is before its device came.
#[derive(Debug)]
struct Early(Arc<Smmu<Spin, ModelRegisters>>);

impl Iommu for Early {
    fn owner_of(&self, _: StreamId) -> Option<DeviceId> {
        None
    }

    fn key(&self) -> IommuKey {
        self.0.key()
    }

    fn limits(&self) -> Stage2Limits {
        self.0.limits()
    }

    fn new_master(&self, device: DeviceId, streams: &[Stream], kin: Option<u64>) -> Result<NewMaster, IommuError> {
        self.0.new_master(device, streams, kin)
    }

    fn publish(&self, master: &mut NewMaster, met: &mut dyn FnMut(DeviceId)) -> Result<(), IommuError> {
        self.0.publish(master, met)
    }

    fn allot(&self, master: &mut NewMaster) -> Result<usize, IommuError> {
        self.0.allot(master)
    }

    fn enrol(&self, master: &mut NewMaster) -> Result<(), IommuError> {
        self.0.enrol(master)
    }

    fn sharing(&self, devices: &[DeviceId], tell: &mut dyn FnMut(Sharing)) -> Result<(), IommuError> {
        self.0.sharing(devices, tell)
    }

    fn plan(
        &self,
        devices: &[DeviceId],
        space: &AddressSpace,
        along: &mut dyn FnMut(Sharing),
    ) -> Result<Prepared, IommuError> {
        self.0.plan(devices, space, along)
    }

    fn abandon(&self, devices: &[DeviceId], prepared: Prepared) {
        self.0.abandon(devices, prepared);
    }

    fn install(&self, devices: &[DeviceId], prepared: Prepared) -> Result<(), IommuError> {
        self.0.install(devices, prepared)
    }

    fn block(&self, devices: &[DeviceId], tell: &mut dyn FnMut(DeviceId)) -> Result<(), IommuError> {
        self.0.block(devices, tell)
    }

    fn cut(&self, devices: &[DeviceId]) -> Result<(), IommuError> {
        self.0.cut(devices)
    }

    fn withdraw(&self, device: DeviceId, rest: &[DeviceId], tell: &mut dyn FnMut(Withdrawn)) -> Result<(), IommuError> {
        self.0.withdraw(device, rest, tell)
    }

    fn flush(&self, domain: DomainId) -> Result<(), IommuError> {
        self.0.flush(domain)
    }

    fn take_faults(&self, line: FaultLine, report: &mut dyn FnMut(RawFault)) -> FaultAnswer {
        self.0.take_faults(line, report)
    }

    fn tend_faults(&self, storming: &mut dyn FnMut(StreamId, u32)) {
        self.0.tend_faults(storming);
    }

    fn audit(&self, report: &mut dyn FnMut(Difference)) {
        self.0.audit(report);
    }

    fn placement(&self, device: DeviceId) -> Result<Option<DomainId>, IommuError> {
        self.0.placement(device)
    }
}

#[test]
fn c15_a_stray_gives_way_to_a_device_that_came_since() {
    let mut bench = Bench::new();
    let part = named("generic v2");
    let config = SmmuConfig { fault_limits: LIMITS, ..part.config };
    let registers = bench.machine.add_smmu(SMMU, part.model);
    let smmu = Smmu::probe(config, registers, bench.masters.clone()).unwrap();
    bench.service.register_iommu(Arc::new(Early(Arc::new(smmu)))).unwrap();
    bench.oracle.watch(&bench.machine, SMMU, PAGE);
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(STRAY, 0)]);
    storm(&bench, STRAY);
    let told = tend(&bench, silence(&bench));
    let [(STRAY, Some(Err(error)))] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((&error.cause, error.left), (&Cause::Busy { running: Operation::Add }, Left::Unchanged));
    assert!(!is_there(&bench, STRAY));
    bench.assign(&device, &guest).unwrap();
    assert_eq!(bench.dma(STRAY), Reached::Memory(guest.backing));
    bench.audit();
}

#[test]
fn c15_a_device_and_the_stray_of_its_stream_never_stand_side_by_side() {
    let mut bench = generic();
    let (spec, place) = (bench.spec("dma", &[(STRAY, 0)]), silence(&bench));
    let (bench, going) = (&bench, &Arc::new(()));
    let is_busy = |error: &Error| matches!(error.cause, Cause::Busy { .. });
    std::thread::scope(|scope| {
        let mine = going.clone();
        scope.spawn(move || {
            // Dropped also where an assertion fails.
            let _mine = mine;
            for round in 0..100 {
                // Every other time there is a stray to meet.
                let soon = Instant::now() + Duration::from_secs(20);
                while round % 2 == 0 && !is_there(bench, STRAY) {
                    assert!(Instant::now() < soon, "its stream storms");
                    std::thread::yield_now();
                }
                while let Err(error) = bench.service.add(spec.clone()) {
                    assert!(is_busy(&error), "{error}");
                }
                assert!(!is_there(bench, STRAY));
                bench.service.remove(spec.key).unwrap();
                while bench.service.find(spec.key).is_some() {
                    std::thread::yield_now();
                }
            }
        });
        scope.spawn(move || {
            while Arc::strong_count(going) > 1 {
                for _ in 0..LIMITS.storm {
                    dma(bench, STRAY);
                    let _ = take(bench);
                }
                for (_, ended) in tend(bench, place) {
                    if let Some(Err(error)) = ended {
                        let overtaken = matches!(error.cause, Cause::Gone | Cause::Removed);
                        assert!(is_busy(&error) || overtaken, "{error}");
                    }
                }
            }
        });
    });
    let _ = (take(bench), tend(bench, Quarantine::Faults));
    let _ = bench.service.remove(DeviceKey::stray(SMMU, StreamId::new(STRAY)));
    assert_eq!((bench.service.devices().count(), used(bench)), (0, (0, 0)));
    bench.audit();
}
