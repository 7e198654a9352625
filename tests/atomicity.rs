//! Atomicity, limits, bad input: contract section 5.

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

use common::{Bench, EMPTY, PAGE, SMMU, described, stream};
use iommu_assign::assign::{
    Access, Blame, Cause, DeviceKey, DeviceState, FaultCause, FaultLine, FaultRecord, Finding, FirmwareMarks, Granule,
    Incompatible, IommuError, IommuKey, Label, Left, PhysicalAddress, Resource, Source, Stage2, TableMemory,
};
use iommu_assign::smmu::{Architecture, EmptyRoot, ProbeError, Smmu, SmmuConfig};
use iommu_assign::sync::Waited;
use machine::Reached;
use smmu_model::{Config, Injection, SyncRegister};

/// IDR0, IDR1 and IDR2, as IHI 0062D places them.
const IDR: [usize; 3] = [0x20, 0x24, 0x28];

fn faults(bench: &Bench, line: FaultLine) -> Vec<FaultRecord> {
    let mut faults = Vec::new();
    let _ = bench.service.handle_fault(SMMU, line, &mut |fault| faults.push(fault.clone())).unwrap();
    faults
}

#[test]
fn a1_a_refused_assign_leaves_hardware_and_software_as_they_were() {
    let mut bench = Bench::new();
    bench.smmu(SMMU, Config { banks: 1, ..Config::generic_v2() });
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let (first, second) = (bench.add("first", &[(1, 0)]), bench.add("second", &[(2, 0)]));
    bench.assign(&first, &one).unwrap();
    let before = bench.machine.smmu(SMMU, |smmu| smmu.clone()).unwrap();
    let error = bench.assign(&second, &two).unwrap_err();
    assert_eq!(error.left, Left::Unchanged);
    let after = bench.machine.smmu(SMMU, |smmu| smmu.clone()).unwrap();
    assert!(before == after, "not even a register was read");
    assert_eq!(bench.service.find(second.key()).unwrap().state, DeviceState::Blocked);
    bench.audit();
}

/// A second SMMU for devices that have streams on both.
const SECOND: IommuKey = IommuKey::new(0x6000_0000);

#[test]
fn a1_an_add_that_the_second_smmu_cannot_take_writes_nothing_on_the_first() {
    let mut bench = Bench::v2();
    bench.smmu(SECOND, Config { groups: 1, ..Config::generic_v2() });
    let mut hog = bench.spec("hog", &[]);
    hog.streams.push(stream(SECOND, 1, 0));
    bench.service.add(hog).unwrap();
    // A mate on the first, one of whose entries the newcomer shares.
    bench.add("mate", &[(0x10, 0), (0x11, 0)]);
    let mut wide = bench.spec("wide", &[(0x11, 0), (0x12, 0), (0x13, 0), (0x40, 0)]);
    wide.streams.push(stream(SECOND, 2, 0));
    let counters = |bench: &Bench| [SMMU, SECOND].map(|key| bench.machine.counters(key));
    let before = counters(&bench);
    let error = bench.service.add(wide.clone()).unwrap_err();
    let exhausted = IommuError::Exhausted { resource: Resource::StreamMapEntries, needed: 1, free: 0, total: 1 };
    assert_eq!(error.cause, Cause::Iommu { iommu: SECOND, error: exhausted });
    assert_eq!(error.left, Left::Unchanged);
    assert_eq!(counters(&bench), before, "I-11: a refusal writes nothing");
    bench.audit();
    // what was allotted on the first is given back, and the add can be tried again.
    bench.service.remove(DeviceKey::new(Source::Dt, 1)).unwrap();
    bench.service.add(wide).unwrap();
    bench.audit();
}

#[test]
fn a2_every_illegal_pair_of_state_and_operation_is_an_error_without_effect() {
    let mut bench = Bench::v2();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let device = bench.add("dma", &[(1, 0)]);
    assert_eq!(bench.deassign(&device).unwrap_err().cause, Cause::NotAssigned);
    assert_eq!(bench.reassign(&device, &one).unwrap_err().cause, Cause::NotAssigned);
    bench.assign(&device, &one).unwrap();
    let already = Cause::AlreadyAssigned { domain: Label::from("one") };
    assert_eq!(bench.assign(&device, &one).unwrap_err().cause, already);
    assert_eq!(bench.assign(&device, &two).unwrap_err().cause, already);
    assert_eq!(bench.reassign(&device, &one).unwrap_err().cause, already);
    bench.audit();
    bench.remove(&device).unwrap();
    for error in [
        bench.assign(&device, &one).unwrap_err(),
        bench.reassign(&device, &one).unwrap_err(),
        bench.deassign(&device).unwrap_err(),
    ] {
        assert_eq!((error.cause, error.left), (Cause::Gone, Left::Unchanged));
    }
    bench.audit();
}

#[test]
fn a3_add_and_remove_again_and_again_leaks_nothing() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    for round in 0..400 {
        let device = bench.add("plug", &[(0x10, 0xf), (0x21, 0), (0x22, 0)]);
        bench.assign(&device, &guest).unwrap_or_else(|error| panic!("round {round}: {error}"));
        if round % 2 == 0 {
            drop(bench.deassign(&device).unwrap());
        }
        bench.remove(&device).unwrap();
    }
    bench.audit();
    // All 32 entries of the part are free again.
    for id in 0..32 {
        bench.add(&format!("one of 32: {id}"), &[(2 * id, 0)]);
    }
}

#[test]
fn a5_running_out_of_entries_changes_nothing_and_says_how_many() {
    let mut bench = Bench::new();
    bench.smmu(SMMU, Config::mmu401_juno_small());
    bench.add("first", &[(1, 0)]);
    let before = bench.machine.smmu(SMMU, |smmu| smmu.clone()).unwrap();
    let spec = bench.spec("second", &[(4, 0), (8, 0)]);
    let error = bench.service.add(spec).unwrap_err();
    let exhausted = IommuError::Exhausted { resource: Resource::StreamMapEntries, needed: 1, free: 1, total: 2 };
    assert_eq!(error.cause, Cause::Iommu { iommu: SMMU, error: exhausted });
    assert_eq!(error.cause.blame(), Blame::Exhausted);
    assert_eq!(
        error.to_string(),
        "add second: iommu@50000000: out of stream-map entries: 1 more needed, 1 of 2 free; nothing changed"
    );
    assert!(before == bench.machine.smmu(SMMU, |smmu| smmu.clone()).unwrap());
    // the cause goes, the add can be repeated.
    bench.add("small enough", &[(4, 0)]);
    bench.audit();
}

#[test]
fn a6_ids_and_masks_wider_than_the_hardware_are_refused_not_truncated() {
    let mut bench = Bench::v2();
    for (id, mask) in [(0x8000, 0), (0x1_0001, 0), (0x10, 0x8000), (u32::MAX, 0)] {
        let spec = bench.spec("wide", &[(id, mask)]);
        let error = bench.service.add(spec).unwrap_err();
        assert!(matches!(error.cause, Cause::Iommu { error: IommuError::TooWide { .. }, .. }), "{error}");
        assert_eq!(error.cause.blame(), Blame::Firmware);
    }
    assert!(bench.service.next_device(None).is_none());
    let mut extended = Bench::new();
    extended.smmu(SMMU, Config::extended());
    extended.add("16 bits", &[(0x8000, 0)]);
}

#[test]
fn a6_a_device_without_streams_or_without_its_iommu_is_refused() {
    let mut bench = Bench::v2();
    let spec = bench.spec("bare", &[]);
    assert_eq!(bench.service.add(spec).unwrap_err().cause, Cause::NoStreams);
    let elsewhere = IommuKey::new(0x7000_0000);
    let mut spec = bench.spec("elsewhere", &[]);
    spec.streams.push(stream(elsewhere, 1, 0));
    let error = bench.service.add(spec).unwrap_err();
    assert_eq!(error.cause, Cause::ProviderMissing(elsewhere));
    assert!(bench.service.next_device(None).is_none());
}

#[test]
fn a7_hardware_that_cannot_isolate_fails_its_probe() {
    let probe = |model: Config, lie: Option<Injection>| {
        let bench = Bench::new();
        let config = described(SMMU, &model);
        let registers = bench.machine.add_smmu(SMMU, model);
        if let Some(lie) = lie {
            bench.machine.smmu(SMMU, |smmu| smmu.inject(lie));
        }
        Smmu::probe(config, registers, bench.masters.clone()).map(drop).unwrap_err()
    };
    let v2 = Config::generic_v2;
    assert_eq!(probe(v2(), Some(Injection::AllOnes)), ProbeError::NotThere(SMMU));
    assert_eq!(probe(Config { stage2: false, nested: false, ..v2() }, None), ProbeError::NoStage2(SMMU));
    let contradiction = |lie| {
        let error = probe(v2(), Some(lie));
        assert!(matches!(error, ProbeError::Contradiction { .. }), "{error}");
        error.to_string()
    };
    // IDR1: 8 banks, of which 9 can only do stage 2; no bank at all.
    assert!(contradiction(Injection::ReadsAs(IDR[1], 0x8009_0008 | 3 << 28)).contains("NUMS2CB"));
    assert!(contradiction(Injection::ReadsAs(IDR[1], 0x8000_0000 | 3 << 28)).contains("NUMCB"));
    // IDR0: nesting without stage 1; matching without a group.
    assert!(contradiction(Injection::ReadsAs(IDR[0], 0x3800_1e20)).contains("NTS"));
    assert!(contradiction(Injection::ReadsAs(IDR[0], 0x7800_1e00)).contains("NUMSMRG"));
    let stuck = probe(v2(), Some(Injection::StatusNeverClears(SyncRegister::Global)));
    assert_eq!(stuck, ProbeError::SyncTimeout { iommu: SMMU, waited: Waited { polls: 100, time: None } });
    let deaf = probe(v2(), Some(Injection::WriteDoesNotStick(0)));
    assert!(matches!(deaf, ProbeError::ControlNotTaken { .. }), "{deaf}");
}

#[test]
fn a7_a_register_region_that_is_too_small_is_refused_and_a_larger_one_is_not_trusted() {
    let bench = Bench::new();
    let model = Config::generic_v2();
    let registers = bench.machine.add_smmu(SMMU, model.clone());
    let small = SmmuConfig { region_size: 0x2_0000, ..described(SMMU, &model) };
    let error = Smmu::probe(small, registers.clone(), bench.masters.clone()).map(drop).unwrap_err();
    assert!(matches!(error, ProbeError::RegionTooSmall { .. }), "{error}");
    let mut bench = Bench::new();
    // Q20: the bank base comes from IDR1, not from half the region.
    let config = described(SMMU, &model);
    bench.smmu_as(SmmuConfig { region_size: config.region_size * 2, ..config }, model);
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(1, 0)]);
    bench.assign(&device, &guest).unwrap();
    assert_eq!(bench.dma(1), Reached::Memory(guest.backing));
}

#[test]
fn a7_an_smmu_whose_reset_did_not_drain_is_not_enabled() {
    let bench = Bench::new();
    let model = Config::generic_v2();
    let config = described(SMMU, &model);
    let registers = bench.machine.add_smmu(SMMU, model);
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    let before = bench.machine.smmu(SMMU, |smmu| smmu.read32(0)).unwrap();
    Smmu::probe(config, registers, bench.masters.clone()).map(drop).unwrap_err();
    let after = bench.machine.smmu(SMMU, |smmu| smmu.read32(0)).unwrap();
    assert_eq!((before & 1, after & 1), (1, 1), "CLIENTPD stays as it was found");
}

#[test]
fn a9_the_same_calls_make_the_same_register_accesses() {
    let run = || {
        let mut bench = Bench::v2();
        bench.machine.smmu(SMMU, smmu_model::Smmu::start_trace);
        let guest = bench.guest("guest");
        let devices: Vec<_> =
            (0..10).map(|id| bench.add(&format!("device {id}"), &[(id * 8, 1), (id * 8 + 4, 3)])).collect();
        for device in &devices {
            bench.assign(device, &guest).unwrap();
        }
        for device in &devices {
            bench.remove(device).unwrap();
        }
        let trace = bench.machine.smmu(SMMU, smmu_model::Smmu::take_trace).unwrap();
        trace.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let first = run();
    assert!(first.len() > 50);
    assert_eq!(first, run());
}

#[test]
fn a10_audit_names_each_difference_and_changes_nothing() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    bench.audit();
    let s2cr0 = 0xc00;
    // Someone else turns the entry to fault behind the driver's back.
    bench.machine.smmu(SMMU, |smmu| smmu.write32(s2cr0, 2 << 16));
    let before = bench.machine.smmu(SMMU, |smmu| smmu.clone()).unwrap();
    let mut findings = Vec::new();
    bench.service.audit(&mut |finding| findings.push(finding.to_string()));
    assert_eq!(findings, ["iommu@50000000 S2CR[0]: expected 0x0, found 0x20000"]);
    let (_, writes, ()) = bench.cost(|| bench.service.audit(&mut |_: &Finding| ()));
    assert_eq!(writes, 0);
    let dma = bench.machine.smmu(SMMU, |smmu| smmu.tlb().to_vec()).unwrap();
    assert_eq!(dma, before.tlb().to_vec());
}

#[test]
fn a11_what_firmware_did_not_mark_is_not_assigned_by_default() {
    let mut bench = Bench::with_policy(Box::new(FirmwareMarks));
    bench.smmu(SMMU, Config::generic_v2());
    let guest = bench.guest("guest");
    let unmarked = bench.add("unmarked", &[(1, 0)]);
    let mut spec = bench.spec("marked", &[(2, 0)]);
    spec.passthrough = true;
    let marked = bench.service.add(spec).unwrap();
    let (_, writes, refused) = bench.cost(|| bench.service.assign(&unmarked, &guest.domain));
    assert_eq!(refused.unwrap_err().cause, Cause::Denied { domain: Label::from("guest") });
    assert_eq!(writes, 0);
    bench.assign(&marked, &guest).unwrap();
}

#[test]
fn a11_the_policy_is_asked_about_a_mate_that_would_go_along() {
    let mut bench = Bench::with_policy(Box::new(FirmwareMarks));
    bench.smmu(SMMU, Config::generic_v2());
    let guest = bench.guest("guest");
    let mut spec = bench.spec("marked", &[(2, 0)]);
    spec.passthrough = true;
    let marked = bench.service.add(spec).unwrap();
    bench.add("unmarked mate", &[(2, 0)]);
    let error = bench.assign(&marked, &guest).unwrap_err();
    assert_eq!(error.cause, Cause::Denied { domain: Label::from("guest") });
}

#[test]
fn a1_plans_are_given_back_where_the_policy_denies_who_would_go_along() {
    let mut bench = Bench::with_policy(Box::new(FirmwareMarks));
    bench.smmu(SMMU, Config { banks: 1, ..Config::generic_v2() });
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let marked = |bench: &mut Bench, name: &str, id| {
        let mut spec = bench.spec(name, &[(id, 0)]);
        spec.passthrough = true;
        bench.service.add(spec).unwrap()
    };
    let subject = marked(&mut bench, "subject", 2);
    // So many that the last one, who may not, is past the room that a plan makes at first.
    for mate in 0..10 {
        let mate = marked(&mut bench, &format!("mate {mate}"), 2);
        bench.shares(&mate, &one);
    }
    let unmarked = bench.add("unmarked", &[(2, 0)]);
    for _ in 0..2 {
        let (_, writes, result) = bench.cost(|| bench.service.assign(&subject, &one.domain));
        let error = result.unwrap_err();
        assert_eq!((error.cause, error.left), (Cause::Denied { domain: Label::from("one") }, Left::Unchanged));
        assert_eq!(writes, 0);
    }
    // The only bank is free, and no move of the subject is planned.
    let other = marked(&mut bench, "other", 3);
    bench.assign(&other, &two).unwrap();
    drop(bench.service.deassign(&other).unwrap());
    bench.service.remove(unmarked.key()).unwrap();
    bench.assign(&subject, &one).unwrap();
    bench.audit();
}

#[test]
fn a12_a_context_fault_names_device_domain_address_access_and_cause() {
    let mut bench = Bench::v2();
    let mut guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    guest.tables.map(PAGE + 0x1000, 0x7000_0000, false);
    let unmapped = PAGE + 0x5000;
    bench.machine.dma_write(SMMU, iommu_assign::assign::StreamId::new(0x10), unmapped).unwrap();
    let records = faults(&bench, FaultLine::Context(0));
    let [record] = records.as_slice() else { panic!("one record: {records:?}") };
    assert_eq!(record.device, Some(Label::from("dma")));
    assert_eq!(record.domain, Some(Label::from("guest")));
    assert_eq!((record.raw.cause, record.raw.access), (FaultCause::Translation, Access::Write));
    assert_eq!((record.raw.address, record.raw.bank), (Some(unmapped), Some(0)));
    assert!(!record.raw.more_lost);
    assert_eq!(faults(&bench, FaultLine::Context(0)), [], "delivered once");
    bench.machine.dma_write(SMMU, iommu_assign::assign::StreamId::new(0x10), PAGE + 0x1000).unwrap();
    bench.machine.dma_write(SMMU, iommu_assign::assign::StreamId::new(0x10), unmapped).unwrap();
    let records = faults(&bench, FaultLine::Context(0));
    assert_eq!(records.iter().map(|record| record.raw.cause).collect::<Vec<_>>(), [FaultCause::Permission]);
    assert!(records.iter().all(|record| record.raw.more_lost), "MULTI counts as lost");
}

#[test]
fn a12_a_global_fault_tells_blocked_from_unknown_streams() {
    let mut bench = Bench::v2();
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.dma(0x10);
    let blocked = faults(&bench, FaultLine::Global);
    bench.dma(0x33);
    let unknown = faults(&bench, FaultLine::Global);
    let told =
        |faults: &[FaultRecord]| faults.iter().map(|one| (one.raw.cause, one.device.clone())).collect::<Vec<_>>();
    assert_eq!(told(&blocked), [(FaultCause::Blocked, Some(device.label().clone()))]);
    assert_eq!(told(&unknown), [(FaultCause::UnknownStream, None)]);
}

#[test]
fn s1_tables_are_walked_only_as_they_were_published() {
    let mut bench = Bench::v2();
    let mut guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    // Table bytes in a CPU cache only: the walk must not see them before they are cleaned.
    bench.assign(&device, &guest).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
    guest.tables.unmap(PAGE);
    bench.service.flush(&guest.domain).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Fault);
}

#[test]
fn s2_tables_that_an_smmu_cannot_follow_fail_the_plan() {
    let mut bench = Bench::new();
    bench.smmu(SMMU, Config::generic_v1());
    let device = bench.add("dma", &[(0x10, 0)]);
    let good = bench.guest("good");
    let stage2 = *good.domain.space();
    let limits = bench.service.limits().unwrap();
    assert_eq!((limits.ipa_bits, limits.granules.kib64, limits.coherent), (40, false, false));
    let refused = |change: &dyn Fn(&mut Stage2)| {
        let mut stage2 = stage2.stage2;
        change(&mut stage2);
        let domain = bench.service.create_domain(Label::from("bad"), stage2).unwrap();
        let (_, writes, result) = bench.cost(|| bench.service.assign(&device, &domain));
        assert_eq!(writes, 0);
        match result.unwrap_err().cause {
            Cause::Iommu { error: IommuError::Incompatible(why), .. } => why,
            other => panic!("{other}"),
        }
    };
    assert_eq!(
        refused(&|stage2| (stage2.ipa_bits, stage2.start_level) = (48, 0)),
        Incompatible::IpaBits { wanted: 48, possible: 40 }
    );
    assert_eq!(refused(&|stage2| stage2.output_bits = 48), Incompatible::OutputBits { wanted: 48, possible: 40 });
    let in_64k = refused(&|stage2| (stage2.granule, stage2.start_level) = (Granule::Kib64, 2));
    assert_eq!(in_64k, Incompatible::Granule(Granule::Kib64));
    assert_eq!(refused(&|stage2| stage2.tables = TableMemory::WriteBackInnerShareable), Incompatible::Coherency);
    let far = PhysicalAddress::new(1 << 40);
    assert_eq!(refused(&|stage2| stage2.root = far), Incompatible::RootReach { root: far, possible: 40 });
}

#[test]
fn s6_an_empty_root_too_small_for_the_domain_is_found_in_the_plan() {
    let mut bench = Bench::new();
    let model = Config::generic_v2();
    let empty_root = EmptyRoot { size: 0x1000, ..EMPTY };
    bench.smmu_as(SmmuConfig { empty_root, ..described(SMMU, &model) }, model);
    let guest = bench.guest("two concatenated tables");
    let device = bench.add("dma", &[(0x10, 0)]);
    let error = bench.assign(&device, &guest).unwrap_err();
    let incompatible = Incompatible::EmptyRoot { wanted: 0x2000, possible: 0x1000 };
    assert_eq!(error.cause, Cause::Iommu { iommu: SMMU, error: IommuError::Incompatible(incompatible) });
}

#[test]
fn o15_an_smmu_found_live_is_taken_over_without_letting_anything_through() {
    let mut bench = Bench::new();
    let model = Config::generic_v2();
    let config = described(SMMU, &model);
    let registers = bench.machine.add_smmu(SMMU, model);
    bench.machine.smmu(SMMU, |smmu| {
        // Firmware: all entries fault, entry 0 bypasses stream 5, unknown streams bypass, clients enabled.
        for entry in 0..32 {
            let (smr, s2cr) = (smmu.smr(entry), smmu.s2cr(entry));
            smmu.write32(smr, 0);
            smmu.write32(s2cr, 2 << 16);
        }
        let (smr, s2cr) = (smmu.smr(0), smmu.s2cr(0));
        smmu.write32(s2cr, 1 << 16);
        smmu.write32(smr, 1 << 31 | 5);
        smmu.write32(0, 0);
    });
    assert_eq!(bench.dma(5), Reached::Untranslated(PAGE));
    let smmu = Smmu::probe(config, registers, bench.masters.clone()).unwrap();
    bench.service.register_iommu(std::sync::Arc::new(smmu)).unwrap();
    assert_eq!(bench.dma(5), Reached::Fault);
    assert_eq!(bench.dma(6), Reached::Fault);
    let guest = bench.guest("guest");
    let device = bench.add("display", &[(5, 0)]);
    bench.assign(&device, &guest).unwrap();
    assert_eq!(bench.dma(5), Reached::Memory(guest.backing));
    bench.audit();
}

#[test]
fn c18_a_key_never_seen_is_not_found() {
    let bench = Bench::v2();
    let error = bench.service.remove(DeviceKey::new(Source::Pci, 77)).unwrap_err();
    assert_eq!(error.cause, Cause::NotFound);
    assert_eq!(error.to_string(), "remove pci:4d: nothing of this name is registered; nothing changed");
    let _ = Architecture::V2;
}
