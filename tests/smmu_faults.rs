//! Faults as a hypervisor meets them: lines, limits, storms, quarantine (contract A-12, S-4, C-16).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod common;

use std::thread;

use common::parts::{named, parts};
use common::stopping::{Held, Stop};
use common::{Bench, Guest, NOT_RESET, PAGE, SMMU};
use iommu_assign::assign::{
    Cause, Device, DeviceState, DomainId, FaultAnswer, FaultLine, Iommu, IommuError, IommuFaults, Left, Quarantine,
    RawFault, Stage2, Storm, StreamId,
};
use iommu_assign::smmu::{ContextLines, FaultLimits, Setup, SmmuConfig};
use machine::{Reached, Stage2Tables};
use smmu_model::{Config, Injection, Wiring};

const LIMITS: FaultLimits = FaultLimits { records: 3, storm: 5, line: 40 };
const CONTEXT: FaultLine = FaultLine::Context(0);
/// The integrator's scratch page.
const SCRATCH: u64 = 0x3_0000_0000;

fn bench() -> Bench {
    bench_with(LIMITS)
}

fn bench_with(fault_limits: FaultLimits) -> Bench {
    let bench = Bench::new();
    let part = named("generic v2");
    bench.smmu_as(SmmuConfig { fault_limits, ..part.config }, part.model);
    bench
}

fn stray(bench: &Bench, stream: u32) {
    bench.machine.dma_write(SMMU, StreamId::new(stream), PAGE + 0x5000).unwrap();
}

fn take(bench: &Bench, line: FaultLine) -> (usize, FaultAnswer) {
    let mut reported = 0;
    let handle = bench.service.iommu(SMMU).unwrap();
    let answer = handle.take_faults(line, &mut |_| reported += 1);
    (reported, answer)
}

fn empty(bench: &Bench) -> Stage2 {
    Stage2Tables::new(&bench.machine, 0x9000_0000, 40, 40).stage2()
}

#[test]
fn s4_nothing_interrupts_before_handlers_stand() {
    for part in parts() {
        let name = part.name;
        let separate = part.model.wiring == Wiring::Separate;
        let mut bench = Bench::new();
        let smmu = bench.part(part);
        let guest = bench.guest("guest");
        let device = bench.add("dma", &[(0x10, 0)]);
        bench.assign(&device, &guest).unwrap();
        stray(&bench, 0x10);
        stray(&bench, 0x3f);
        let raised = |bench: &Bench| {
            let lines = |smmu: &mut smmu_model::Smmu| (smmu.global_irq(), (0..4).any(|line| smmu.context_irq(line)));
            bench.machine.smmu(SMMU, lines).unwrap()
        };
        assert_eq!(raised(&bench), (false, false), "{name}");
        // What was recorded meanwhile is not lost.
        bench.service.enable_reports(SMMU).unwrap();
        assert_eq!(raised(&bench), (true, true), "{name}");
        let line = smmu.line_of(0).unwrap_or(0);
        assert!(separate || line == 0);
        assert_eq!(take(&bench, FaultLine::Context(line)).0, 1, "{name}");
        assert_eq!(take(&bench, FaultLine::Global).0, 1, "{name}");
        assert_eq!(raised(&bench), (false, false), "{name}");
        // Banks that go live from here on report at once.
        let (other, two) = (bench.add("other", &[(0x20, 0)]), bench.guest("two"));
        if bench.assign(&other, &two).is_ok() {
            stray(&bench, 0x20);
            assert_eq!(raised(&bench), (false, true), "{name}");
        }
        bench.audit();
    }
}

#[test]
fn a12_records_of_a_stream_are_limited_and_the_rest_is_counted() {
    let mut bench = bench();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    let mut reported = 0;
    for round in 1..=5 {
        stray(&bench, 0x10);
        let (records, answer) = take(&bench, CONTEXT);
        reported += records;
        let storm = if round < 5 { FaultAnswer::Done } else { FaultAnswer::Mask(CONTEXT) };
        assert_eq!(answer, storm, "round {round}");
    }
    assert_eq!(reported, 3);
    let counts = bench.service.iommu(SMMU).unwrap().fault_counts();
    assert_eq!((counts.limited, counts.lost), (2, 0));
    // Another stream is not limited by it.
    stray(&bench, 0x10);
    assert_eq!(take(&bench, CONTEXT).0, 0);
    stray(&bench, 0x2f);
    assert_eq!(take(&bench, FaultLine::Global), (1, FaultAnswer::Done));
}

#[test]
fn a12_what_the_hardware_lost_is_counted() {
    let mut bench = bench();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    stray(&bench, 0x10);
    stray(&bench, 0x10);
    let mut lost = false;
    let _ = bench.service.handle_fault(SMMU, CONTEXT, &mut |fault| lost = fault.raw.more_lost).unwrap();
    assert!(lost);
    assert_eq!(bench.service.iommu(SMMU).unwrap().fault_counts().lost, 1);
}

#[test]
fn a12_unknown_streams_are_counted_by_their_ids() {
    let bench = bench();
    for id in 0..40 {
        for _ in 0..=(id % 2) {
            stray(&bench, 0x100 + id);
            let _ = take(&bench, FaultLine::Global);
        }
    }
    let handle = bench.service.iommu(SMMU).unwrap();
    let mut counted = Vec::new();
    handle.unknown_streams(&mut |stream, count| counted.push((stream.value(), count)));
    assert_eq!(counted.len(), 32);
    assert!(counted.iter().all(|(id, count)| *count == 1 + id % 2));
    assert_eq!(handle.fault_counts().unknown_elsewhere, 12);
}

fn storm(bench: &Bench, stream: u32, line: FaultLine) {
    let storming = (0..100).any(|_| {
        stray(bench, stream);
        take(bench, line).1 == FaultAnswer::Mask(line)
    });
    assert!(storming);
}

fn tend(bench: &Bench, place: Quarantine) -> Vec<(u32, bool)> {
    let mut told = Vec::new();
    let sink = &mut |storm: &Storm| {
        told.push((storm.stream.map_or(0, StreamId::value), storm.ended.as_ref().is_some_and(Result::is_ok)));
    };
    bench.service.tend_faults(SMMU, place, sink).unwrap();
    told
}

#[test]
fn a12_a_storm_ends_in_a_silent_bank_and_other_domains_go_on() {
    for line in [CONTEXT, FaultLine::Global] {
        let mut bench = bench();
        bench.service.enable_reports(SMMU).unwrap();
        let (one, two) = (bench.guest("one"), bench.guest("two"));
        let (noisy, calm) = (bench.add("noisy", &[(0x10, 0)]), bench.add("calm", &[(0x20, 0)]));
        // A blocked device storms on the global line, an assigned one on its bank's.
        if line == CONTEXT {
            bench.assign(&noisy, &one).unwrap();
        }
        bench.assign(&calm, &two).unwrap();
        storm(&bench, 0x10, line);
        let silence = Quarantine::Silence(empty(&bench));
        assert_eq!(tend(&bench, silence), [(0x10, true)]);
        let raised = |bench: &Bench| {
            let lines = |smmu: &mut smmu_model::Smmu| smmu.global_irq() || (0..8).any(|line| smmu.context_irq(line));
            bench.machine.smmu(SMMU, lines).unwrap()
        };
        let _ = take(&bench, line);
        for _ in 0..20 {
            stray(&bench, 0x10);
            assert!(!raised(&bench), "it is not heard of any more");
        }
        assert_eq!(bench.state(&noisy), NOT_RESET);
        assert_eq!(bench.dma(0x20), Reached::Memory(two.backing));
        bench.audit();
        assert_eq!(tend(&bench, silence), [], "counts start anew");
        // It can be assigned again, and leaves nothing behind.
        bench.assign(&noisy, &one).unwrap();
        assert_eq!(bench.dma(0x10), Reached::Memory(one.backing));
        bench.audit();
        drop(bench.deassign(&noisy).unwrap());
        bench.remove(&noisy).unwrap();
        bench.audit();
    }
}

#[test]
fn a12_an_unknown_storming_stream_is_told_of() {
    let bench = bench();
    storm(&bench, 0x77, FaultLine::Global);
    assert_eq!(tend(&bench, Quarantine::Faults), [(0x77, false)]);
}

fn quarantined(bench: &mut Bench, place: Quarantine) -> (iommu_assign::assign::Device, Guest) {
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    bench.oracle.allow(device.label(), &[(0x10, 0)], &[guest.backing, SCRATCH]);
    bench.service.quarantine(&device, place).unwrap();
    bench.oracle.allow(device.label(), &[(0x10, 0)], &[SCRATCH]);
    (device, guest)
}

#[test]
fn s6_quarantine_with_and_without_a_scratch_page_on_every_part() {
    for name in parts().iter().map(|part| part.name) {
        for scratch in [false, true] {
            let mut bench = Bench::new();
            bench.part(named(name));
            let mut tables = Stage2Tables::new(&bench.machine, 0x9000_0000, 40, 40);
            tables.map(PAGE, SCRATCH, true);
            let place = if scratch { Quarantine::Scratch(tables.stage2()) } else { Quarantine::Faults };
            let (device, guest) = quarantined(&mut bench, place);
            let expected = if scratch { Reached::Memory(SCRATCH) } else { Reached::Fault };
            assert_eq!(bench.dma(0x10), expected, "{name}");
            assert_eq!(bench.state(&device), NOT_RESET);
            bench.audit();
            // The domain does not refer to it any more.
            bench.service.destroy_domain(&guest.domain).unwrap();
            let next = bench.guest("next");
            bench.oracle.allow(device.label(), &[(0x10, 0)], &[SCRATCH, next.backing]);
            bench.service.assign(&device, &next.domain).unwrap();
            bench.oracle.allow(device.label(), &[(0x10, 0)], &[next.backing]);
            assert_eq!(bench.dma(0x10), Reached::Memory(next.backing), "{name}");
            bench.audit();
            bench.oracle.allow(device.label(), &[(0x10, 0)], &[SCRATCH, next.backing]);
            bench.service.quarantine(&device, place).unwrap_or_else(|error| panic!("{name}: {error}"));
            bench.remove(&device).unwrap();
            assert_eq!(bench.dma(0x10), Reached::Fault, "{name}");
            bench.audit();
        }
    }
}

#[test]
fn s6_a_removed_quarantined_device_gives_its_bank_back() {
    let mut bench = Bench::new();
    bench.smmu(SMMU, Config { banks: 1, ..Config::generic_v2() });
    let place = Quarantine::Silence(empty(&bench));
    let (device, _) = quarantined(&mut bench, place);
    bench.remove(&device).unwrap();
    let (guest, other) = (bench.guest("other"), bench.add("other", &[(0x20, 0)]));
    bench.assign(&other, &guest).unwrap();
    bench.audit();
}

#[test]
fn s6_a_quarantine_that_fails_leaves_the_device_in_fault_owned_by_no_domain_and_lacking_a_reset() {
    let part = named("generic v2");
    let mut bench = Bench::new();
    let config = SmmuConfig { read_back: true, ..part.config };
    bench.smmu_as(config, Config { banks: 1, stage2_banks: 0, ..part.model });
    let place = Quarantine::Silence(empty(&bench));
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let (device, other) = (bench.add("dma", &[(0x10, 0)]), bench.add("other", &[(0x20, 0)]));
    bench.assign(&device, &one).unwrap();
    let failed = |bench: &Bench, device: &Device, wanted: &dyn Fn(&IommuError) -> bool| {
        let error = bench.service.quarantine(device, place).unwrap_err();
        assert!(matches!(&error.cause, Cause::Iommu { error, .. } if wanted(error)), "{error}");
        assert_eq!((error.left, bench.state(device)), (Left::Quarantined, NOT_RESET));
    };
    // No bank is left for the other one.
    failed(&bench, &other, &|error| matches!(error, IommuError::Exhausted { .. }));
    assert_eq!(bench.dma(0x10), Reached::Memory(one.backing));
    // The bank that the device leaves is enough, but its root does not hold.
    let root = bench.machine.smmu(SMMU, |smmu| smmu.bank(0, 0x20)).unwrap();
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::WriteDoesNotStick(root)));
    bench.oracle.allow(device.label(), &[(0x10, 0)], &[]);
    failed(&bench, &device, &|error| matches!(error, IommuError::WriteLost { .. }));
    assert_eq!([0x10, 0x20].map(|id| bench.dma(id)), [Reached::Fault; 2]);
    bench.service.destroy_domain(&one.domain).unwrap();
    // That bank is not to be trusted before the next reset.
    bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
    assert!(bench.assign(&device, &two).is_err());
    bench.audit();
}

#[test]
fn q23_v1_lines_follow_irptndx() {
    let bench = Bench::new();
    let part = named("generic v1");
    let smmu = bench.smmu_as(SmmuConfig { context_lines: ContextLines::each(4), ..part.config }, part.model);
    assert_eq!((0..8).map(|bank| smmu.line_of(bank).unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3, 0, 1, 2, 3]);
    let part = named("generic v2");
    let other = iommu_assign::assign::IommuKey::new(0x6000_0000);
    let smmu =
        bench.smmu_as(SmmuConfig { key: other, context_lines: ContextLines::each(2), ..part.config }, part.model);
    assert_eq!(smmu.line_of(3), None, "nothing says which banks share two lines");
    let refused = bench.service.enable_reports(iommu_assign::assign::IommuKey::new(1));
    assert_eq!(
        refused.unwrap_err().to_string(),
        "enable reports of iommu@1: nothing of this name is registered; nothing changed"
    );
    let _: &dyn Iommu = &*smmu;
}

#[test]
fn q23_where_nothing_says_which_banks_share_a_line_every_line_tells_of_every_bank() {
    for line in 0..2 {
        let mut bench = Bench::new();
        let part = named("generic v2");
        bench.smmu_as(SmmuConfig { context_lines: ContextLines::each(2), ..part.config }, part.model);
        let guest = bench.guest("guest");
        let device = bench.add("dma", &[(0x10, 0)]);
        bench.assign(&device, &guest).unwrap();
        stray(&bench, 0x10);
        assert_eq!(take(&bench, FaultLine::Global).0, 0);
        assert_eq!(take(&bench, FaultLine::Context(line)).0, 1);
    }
}

// --- what a hostile review has found ---

/// The records that an intake tells: the domain's number or 0, and the stream.
fn told(bench: &Bench, line: FaultLine) -> (Vec<(u64, u32)>, FaultAnswer) {
    let mut all = Vec::new();
    let handle = bench.service.iommu(SMMU).unwrap();
    let number = |fault: &RawFault| (fault.domain.map_or(0, DomainId::number), fault.stream.unwrap().value());
    let answer = handle.take_faults(line, &mut |fault| all.push(number(&fault)));
    (all, answer)
}

/// What is told of storms: stream or 0, faults, whether a device was quarantined, whether reports were silenced.
fn storms(bench: &Bench) -> Vec<(u32, u32, bool, bool)> {
    let mut told = Vec::new();
    let sink = &mut |storm: &Storm| {
        let ended = storm.ended.as_ref().is_some_and(Result::is_ok);
        told.push((storm.stream.map_or(0, StreamId::value), storm.faults, ended, storm.silenced));
    };
    bench.service.tend_faults(SMMU, Quarantine::Faults, sink).unwrap();
    told
}

fn raised(bench: &Bench) -> (bool, bool) {
    let lines = |smmu: &mut smmu_model::Smmu| (smmu.global_irq(), (0..8).any(|line| smmu.context_irq(line)));
    bench.machine.smmu(SMMU, lines).unwrap()
}

#[test]
fn a12_a_stream_that_storms_behind_sixty_four_that_fault_once_is_masked_and_named() {
    let bench = bench_with(FaultLimits { line: 1000, ..LIMITS });
    for id in 0..64 {
        stray(&bench, 0x100 + id);
        assert_eq!(take(&bench, FaultLine::Global), (1, FaultAnswer::Done));
    }
    storm(&bench, 0x77, FaultLine::Global);
    assert_eq!(storms(&bench), [(0x77, 5, false, true)]);
}

#[test]
fn a12_rotating_through_unknown_streams_is_masked_by_the_lines_own_rate() {
    let bench = bench();
    bench.service.enable_reports(SMMU).unwrap();
    let mut reported = 0;
    for round in 1..=60 {
        stray(&bench, 0x100 + round);
        let (records, answer) = take(&bench, FaultLine::Global);
        reported += records;
        assert_eq!(answer == FaultAnswer::Mask(FaultLine::Global), round >= 40, "round {round}");
    }
    assert_eq!(reported, 40, "what the line's limit leaves out is counted");
    assert_eq!(bench.service.iommu(SMMU).unwrap().fault_counts().limited, 20);
    assert_eq!(storms(&bench), [(0, 60, false, true)]);
    stray(&bench, 0x100);
    assert_eq!(raised(&bench), (false, false));
}

#[test]
fn a12_a_device_that_rotates_through_its_streams_is_masked_by_its_banks_rate_and_quarantined() {
    let mut bench = bench();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x100, 0x7f)]);
    bench.assign(&device, &guest).unwrap();
    for round in 1..=5 {
        stray(&bench, 0x100 + round);
        let storm = if round < 5 { FaultAnswer::Done } else { FaultAnswer::Mask(CONTEXT) };
        assert_eq!(take(&bench, CONTEXT), (1, storm), "round {round}");
    }
    let [(_, 5, true, false)] = storms(&bench)[..] else { panic!("the device is to blame") };
    assert_eq!(bench.state(&device), NOT_RESET);
}

#[test]
fn a12_a_fault_recorded_just_before_a_deassign_is_told_once_and_as_its_domains() {
    for again in [false, true] {
        let mut bench = bench();
        let (one, two) = (bench.guest("one"), bench.guest("two"));
        let device = bench.add("dma", &[(0x10, 0)]);
        bench.assign(&device, &one).unwrap();
        stray(&bench, 0x10);
        drop(bench.deassign(&device).unwrap());
        if again {
            bench.assign(&device, &two).unwrap();
        }
        assert_eq!(told(&bench, CONTEXT).0, [(one.domain.id().number(), 0x10)]);
        assert_eq!(told(&bench, CONTEXT).0, []);
        assert_eq!(bench.service.iommu(SMMU).unwrap().fault_counts().lost, 0);
    }
}

#[test]
fn a12_a_record_that_finds_no_room_when_its_bank_is_retired_counts_as_lost() {
    let mut bench = bench();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    for _ in 0..10 {
        bench.assign(&device, &guest).unwrap();
        stray(&bench, 0x10);
        drop(bench.deassign(&device).unwrap());
    }
    assert_eq!(told(&bench, CONTEXT).0.len(), 8);
    assert_eq!(bench.service.iommu(SMMU).unwrap().fault_counts().lost, 2);
}

#[test]
fn a12_a_record_that_names_a_stream_of_another_bank_blames_its_bank_and_not_that_device() {
    let mut bench = bench();
    bench.service.enable_reports(SMMU).unwrap();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let (calm, noisy) = (bench.add("calm", &[(0, 0)]), bench.add("noisy", &[(0x10, 0)]));
    bench.assign(&calm, &one).unwrap();
    bench.assign(&noisy, &two).unwrap();
    // This part reports stream 0 for every fault.
    for bank in 0..8 {
        bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::ReadsAs(smmu.gr1(0x400 + 4 * bank), 0)));
    }
    let mut device = Some("".into());
    stray(&bench, 0x10);
    let _ = bench.service.handle_fault(SMMU, CONTEXT, &mut |fault| device = fault.device.clone()).unwrap();
    let _ =
        bench.service.handle_fault(SMMU, FaultLine::Context(1), &mut |fault| device = fault.device.clone()).unwrap();
    assert_eq!(device, None);
    storm(&bench, 0x10, FaultLine::Context(1));
    assert_eq!(storms(&bench), [(0, 5, false, true)]);
    assert_eq!(bench.state(&calm), DeviceState::Assigned(one.domain.id()));
    stray(&bench, 0x10);
    assert_eq!(raised(&bench), (false, false), "the bank is silenced");
    stray(&bench, 0);
    assert_eq!(raised(&bench), (false, true), "others are heard");
    let _ = take(&bench, CONTEXT);
    // A quiet tend lets it report again, and so does a new owner.
    assert_eq!(storms(&bench), []);
    assert_eq!(raised(&bench), (false, true));
    assert_eq!(take(&bench, FaultLine::Context(1)).0, 1);
    assert_eq!(bench.dma(0x10), Reached::Memory(two.backing));
    bench.audit();
}

#[test]
fn a12_a_storm_of_unknown_streams_is_silenced_until_a_quiet_tend() {
    let bench = bench();
    bench.service.enable_reports(SMMU).unwrap();
    storm(&bench, 0x77, FaultLine::Global);
    assert_eq!(storms(&bench), [(0x77, 5, false, true)]);
    (0..20).for_each(|_| stray(&bench, 0x77));
    assert_eq!(raised(&bench), (false, false));
    assert_eq!(storms(&bench), []);
    assert_eq!(raised(&bench), (true, false), "what was recorded meanwhile is not lost");
    assert_eq!(take(&bench, FaultLine::Global), (1, FaultAnswer::Done));
}

#[test]
fn a12_a_handler_that_is_held_up_while_its_bank_changes_hands_blames_neither_domain() {
    const FSR_OF_BANK_0: u32 = 0x58;
    let (mut bench, stop, part) = (Bench::new(), Stop::nowhere(), named("generic v2"));
    let held = stop.clone();
    let smmu = bench.smmu_through(part.config, Setup::default(), part.model, |registers| Held::new(registers, held));
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &one).unwrap();
    bench.oracle.allow(device.label(), &[(0x10, 0)], &[one.backing, two.backing]);
    let bank = bench.machine.smmu(SMMU, |smmu| u32::try_from(smmu.bank(0, 0)).unwrap()).unwrap();
    let mut told = None;
    thread::scope(|scope| {
        stop.at(bank + FSR_OF_BANK_0);
        let handler = scope.spawn(|| {
            let mut told = Vec::new();
            let _ = smmu.take_faults(CONTEXT, &mut |fault| told.push((fault.bank, fault.domain)));
            told
        });
        stop.meet();
        drop(bench.service.deassign(&device).unwrap());
        bench.service.assign(&device, &two.domain).unwrap();
        stray(&bench, 0x10);
        stop.meet();
        told = Some(handler.join().unwrap());
    });
    assert_eq!(told, Some(vec![(Some(0), None)]));
}
