//! Isolation, at every register write: contract section 4. The oracle of `common` looks after each write of each test.

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

use common::{Bench, NOT_DRAINED, PAGE, SMMU, stream};
use iommu_assign::assign::{Cause, ConflictReason, IommuError, Label, Left, StreamId};
use iommu_assign::sync::Waited;
use machine::Reached;
use smmu_model::{Config, Direction, Injection, SyncDelay, SyncRegister, Transaction};

/// The writes of one operation, as "REGISTER fields" lines.
fn trace(bench: &mut Bench, act: impl FnOnce(&mut Bench)) -> Vec<String> {
    bench.machine.smmu(SMMU, smmu_model::Smmu::start_trace);
    act(bench);
    let records = bench.machine.smmu(SMMU, smmu_model::Smmu::take_trace).unwrap();
    let writes = records.into_iter().filter(|record| record.direction == Direction::Write);
    writes.map(|record| record.name.clone()).collect()
}

fn banked(config: Config, banks: u8) -> Config {
    Config { banks, ..config }
}

#[test]
fn i1_i2_i3_every_write_of_a_life_keeps_every_stream_where_it_may_go() {
    for (name, model) in [
        ("generic v2", Config::generic_v2()),
        ("generic v1", Config::generic_v1()),
        ("mmu-400", Config::mmu400()),
        ("mmu-401", Config::mmu401_juno_large()),
        ("mmu-500 ZynqMP", Config::mmu500_zynqmp()),
        ("mmu-500 Layerscape", Config::mmu500_layerscape()),
        ("extended IDs", Config::extended()),
        ("stream indexing", Config::stream_indexing()),
    ] {
        for seed in 0..4 {
            println!("{name}, seed {seed}");
            let mut bench = Bench::new();
            bench.smmu(SMMU, model.clone().seed(seed));
            let (one, two) = (bench.guest("one"), bench.guest("two"));
            let dma = bench.add("dma", &[(0x10, 0x3), (0x14, 0), (0x15, 0)]);
            let usb = bench.add("usb", &[(0x20, 0)]);
            bench.assign(&dma, &one).unwrap();
            bench.assign(&usb, &one).unwrap();
            assert_eq!(bench.dma(0x12), Reached::Memory(one.backing), "{name}");
            assert_eq!(bench.dma(0x15), Reached::Memory(one.backing), "{name}");
            bench.reassign(&dma, &two).unwrap();
            assert_eq!(bench.dma(0x20), Reached::Memory(one.backing), "{name}");
            assert_eq!(bench.dma(0x13), Reached::Memory(two.backing), "{name}");
            bench.reassign(&usb, &two).unwrap();
            bench.audit();
            assert_eq!(bench.deassign(&dma).unwrap().still_reachable, []);
            assert_eq!(bench.dma(0x10), Reached::Fault);
            bench.remove(&usb).unwrap();
            bench.remove(&dma).unwrap();
            for id in 0..0x40 {
                assert_eq!(bench.dma(id), Reached::Fault, "{name}: stream {id:#x}");
            }
            bench.audit();
            let (writes, _) = bench.oracle.verdict();
            assert!(writes > 20, "the oracle looked");
        }
    }
}

#[test]
fn i3_o8_zeroed_state_is_open_and_is_closed_before_clients_are_enabled() {
    for unknown in [smmu_model::Unknown::Zeroes, smmu_model::Unknown::Ones, smmu_model::Unknown::Seed(7)] {
        let bench = Bench::new();
        bench.smmu(SMMU, Config { unknown, ..Config::generic_v2() });
        for id in 0..0x80 {
            assert_eq!(bench.dma(id), Reached::Fault);
        }
    }
}

#[test]
fn i4_a_bank_is_programmed_in_full_before_an_s2cr_names_it() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    let writes = trace(&mut bench, |bench| bench.assign(&device, &guest).unwrap());
    assert_eq!(writes, ["CBA2R0", "CBAR0", "TCR", "TTBR0", "FSR", "SCTLR", "S2CR0"]);
}

#[test]
fn i5_s2cr_before_smr_on_the_way_in_and_the_other_way_round_with_extended_ids() {
    for (model, order) in [(Config::generic_v2(), ["S2CR0", "SMR0"]), (Config::extended(), ["SMR0", "S2CR0"])] {
        let mut bench = Bench::new();
        bench.smmu(SMMU, model);
        let writes = trace(&mut bench, |bench| drop(bench.add("dma", &[(0x10, 0)])));
        assert_eq!(writes, order);
    }
}

#[test]
fn i6_i7_a_bank_is_retired_empty_root_first_and_switched_off_last() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    let writes = trace(&mut bench, |bench| drop(bench.deassign(&device).unwrap()));
    assert_eq!(writes, ["S2CR0", "TTBR0", "TLBIVMID", "sTLBGSYNC", "SCTLR"]);
}

#[test]
fn i6_a_detach_that_is_not_the_last_drains_too() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let (one, two) = (bench.add("one", &[(0x10, 0)]), bench.add("two", &[(0x20, 0)]));
    bench.assign(&one, &guest).unwrap();
    bench.assign(&two, &guest).unwrap();
    let writes = trace(&mut bench, |bench| drop(bench.deassign(&one).unwrap()));
    assert_eq!(writes, ["S2CR0", "TLBIVMID", "sTLBGSYNC"]);
    assert_eq!(bench.dma(0x20), Reached::Memory(guest.backing));
}

#[test]
fn i6_deassign_is_not_ok_while_a_steered_transaction_can_still_arrive() {
    let mut bench = Bench::v2();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &one).unwrap();
    let id = bench.machine.smmu(SMMU, |smmu| smmu.accept(Transaction::read(0x10, PAGE, 8))).unwrap();
    // Steered towards the bank before the deassign begins, and held up on the bus.
    bench.machine.with_memory(SMMU, |smmu, memory| smmu.step(memory, id)).unwrap();
    let error = bench.deassign(&device).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::SyncTimeout(_), .. }), "{error}");
    assert!(bench.assign(&device, &two).is_err(), "nor is it given away before that has drained");
    bench.machine.with_memory(SMMU, |smmu, memory| smmu.finish(memory, id)).unwrap();
    bench.assign(&device, &two).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Memory(two.backing));
    bench.audit();
}

#[test]
fn i8_a_sync_that_times_out_poisons_the_bank_until_a_later_one_completes() {
    let mut bench = Bench::new();
    bench.smmu(SMMU, banked(Config::generic_v2(), 1));
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let device = bench.add("dma", &[(0x10, 0)]);
    let other = bench.add("other", &[(0x20, 0)]);
    bench.assign(&device, &one).unwrap();
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    let error = bench.deassign(&device).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::SyncTimeout(_), .. }), "{error}");
    assert_eq!(error.left, Left::Quarantined);
    assert_eq!(bench.dma(0x10), Reached::Fault, "in fault all the same");
    let error = bench.assign(&other, &two).unwrap_err();
    assert!(
        matches!(error.cause, Cause::Iommu { error: IommuError::SyncTimeout(_), .. }),
        "the bank is kept apart: {error}"
    );
    assert_eq!(error.left, Left::Unchanged);
    let error = bench.service.destroy_domain(&one.domain).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { .. }), "its tables must stay: {error}");
    // the cause goes, everything can be done.
    bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
    bench.service.destroy_domain(&one.domain).unwrap();
    bench.assign(&other, &two).unwrap();
    assert_eq!(bench.dma(0x20), Reached::Memory(two.backing));
    assert_eq!(bench.dma(0x10), Reached::Fault);
    bench.audit();
}

#[test]
fn i8_a_device_whose_drain_timed_out_is_not_given_to_the_next_owner() {
    let mut bench = Bench::v2();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let (device, mate) = (bench.add("dma", &[(0x10, 0)]), bench.add("mate", &[(0x20, 0)]));
    bench.assign(&device, &one).unwrap();
    bench.assign(&mate, &one).unwrap();
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    bench.deassign(&device).unwrap_err();
    let error = bench.assign(&device, &two).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::SyncTimeout(_), .. }), "{error}");
    assert_eq!(bench.dma(0x10), Reached::Fault);
    assert_eq!(bench.dma(0x20), Reached::Memory(one.backing), "the other device goes on");
    bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
    bench.assign(&device, &two).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Memory(two.backing));
    bench.audit();
}

#[test]
fn i9_a_removed_mapping_is_gone_after_flush_and_an_added_one_costs_nothing() {
    let mut bench = Bench::v2();
    let mut guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
    let (_, writes, ()) = bench.cost(|| guest.tables.map(PAGE + 0x1000, 0x7000_0000, true));
    assert_eq!(writes, 0);
    let at = |bench: &Bench| bench.machine.dma_write(SMMU, StreamId::new(0x10), PAGE + 0x1000).unwrap();
    assert_eq!(at(&bench), Reached::Memory(0x7000_0000));
    guest.tables.unmap(PAGE + 0x1000);
    assert_eq!(at(&bench), Reached::Memory(0x7000_0000), "the TLB keeps what was not invalidated");
    bench.service.flush(&guest.domain).unwrap();
    assert_eq!(at(&bench), Reached::Fault);
}

#[test]
fn i9_a_flush_that_timed_out_says_so() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::SyncTimesOut(1)));
    let error = bench.service.flush(&guest.domain).unwrap_err();
    assert!(
        matches!(error.cause, Cause::Iommu { error: IommuError::SyncTimeout(Waited { polls: 100, time: None }), .. }),
        "{error}"
    );
}

#[test]
fn i10_a_domain_is_not_destroyed_while_a_device_refers_to_it() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    assert_eq!(
        bench.service.destroy_domain(&guest.domain).unwrap_err().cause,
        Cause::InUse { devices: 1, first: "dma".into() }
    );
    drop(bench.deassign(&device).unwrap());
    bench.service.destroy_domain(&guest.domain).unwrap();
    assert_eq!(bench.service.destroy_domain(&guest.domain).unwrap_err().cause, Cause::Gone);
    assert!(matches!(bench.assign(&device, &guest).unwrap_err().cause, Cause::DomainGone { .. }));
}

#[test]
fn i11_a_member_of_an_owned_group_goes_nowhere_else_and_nothing_is_written() {
    let mut bench = Bench::v2();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let (ohci, ehci) = (bench.add("ohci", &[(0, 0)]), bench.add("ehci", &[(0, 0)]));
    bench.assign(&ohci, &one).unwrap();
    let (_, writes, refused) = bench.cost(|| bench.service.assign(&ehci, &two.domain));
    let error = refused.unwrap_err();
    let reason = ConflictReason::SharedStream(SMMU);
    assert_eq!(error.cause, Cause::GroupConflict { with: Label::from("ohci"), reason });
    assert_eq!(error.subject, Label::from("ehci"));
    assert_eq!(writes, 0);
    // The same domain is no conflict.
    bench.assign(&ehci, &one).unwrap();
    bench.audit();
}

#[test]
fn i11_partly_overlapping_streams_are_one_group() {
    let mut bench = Bench::v2();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let wide = bench.add("wide", &[(0x10, 0xf)]);
    let narrow = bench.add("narrow", &[(0x18, 0x0f)]);
    let far = bench.add("far", &[(0x1f, 0x100)]);
    let group = |device| bench.service.find(device).unwrap().group;
    assert_eq!(group(wide.key()), group(narrow.key()));
    assert_eq!(group(wide.key()), group(far.key()));
    // The entry of 0x10..0x1f is shared, and the policy has said yes to that: its other users go along.
    bench.shares(&wide, &one);
    bench.shares(&narrow, &one);
    bench.assign(&far, &one).unwrap();
    assert_eq!(bench.dma(0x11f), Reached::Memory(one.backing));
    assert!(matches!(bench.assign(&wide, &two).unwrap_err().cause, Cause::GroupConflict { .. }));
    bench.audit();
}

#[test]
fn i11_a_device_that_would_bridge_two_owners_is_refused() {
    let mut bench = Bench::v2();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let (left, right) = (bench.add("left", &[(0x10, 0)]), bench.add("right", &[(0x11, 0)]));
    bench.assign(&left, &one).unwrap();
    bench.assign(&right, &two).unwrap();
    let bridge = bench.spec("bridge", &[(0x10, 0x1)]);
    let (_, writes, refused) = bench.cost(|| bench.service.add(bridge));
    assert!(matches!(refused.unwrap_err().cause, Cause::GroupConflict { .. }));
    assert_eq!(writes, 0);
    bench.audit();
    let group = |device| bench.service.find(device).unwrap().group;
    assert_ne!(group(left.key()), group(right.key()), "the refusal left the groups apart");
}

#[test]
fn i12_detaching_one_sharer_leaves_the_other_working() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let (ohci, ehci) = (bench.add("ohci", &[(0, 0), (1, 0)]), bench.add("ehci", &[(0, 0)]));
    bench.assign(&ohci, &guest).unwrap();
    bench.assign(&ehci, &guest).unwrap();
    let left = bench.deassign(&ohci).unwrap();
    assert_eq!(left.still_reachable, [Label::from("ehci")], "I-6: StillReachable, and by whom");
    assert_eq!(bench.dma(0), Reached::Memory(guest.backing));
    bench.audit();
    bench.remove(&ohci).unwrap();
    assert_eq!(bench.dma(0), Reached::Memory(guest.backing));
    bench.audit();
    assert_eq!(bench.deassign(&ehci).unwrap().still_reachable, []);
    assert_eq!(bench.dma(0), Reached::Fault);
    bench.audit();
}

#[test]
fn i13_a_device_on_two_smmus_moves_on_both_or_on_none() {
    let second = iommu_assign::assign::IommuKey::new(0x6000_0000);
    let mut bench = Bench::new();
    bench.smmu(SMMU, Config::generic_v2());
    bench.smmu(second, banked(Config::generic_v2(), 1));
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let mut spec = bench.spec("both", &[(0x10, 0)]);
    spec.streams.push(stream(second, 0x20, 0));
    let both = bench.service.add(spec).unwrap();
    let mut spec = bench.spec("hog", &[]);
    spec.streams.push(stream(second, 0x30, 0));
    let hog = bench.service.add(spec).unwrap();
    bench.assign(&hog, &two).unwrap();
    // The second SMMU has no bank left for domain one: the plan fails there, and nothing is written on the first.
    let (_, writes, refused) = bench.cost(|| bench.service.assign(&both, &one.domain));
    assert!(
        matches!(refused.unwrap_err().cause, Cause::Iommu { iommu, error: IommuError::Exhausted { .. } } if iommu == second)
    );
    assert_eq!(writes, 0);
    assert_eq!(bench.dma(0x10), Reached::Fault);
    bench.audit();
}

#[test]
fn i14_a_reassign_frees_the_bank_that_it_needs() {
    let mut bench = Bench::new();
    bench.smmu(SMMU, Config { sync_delay: SyncDelay::Polls(0), ..banked(Config::generic_v2(), 1) });
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &one).unwrap();
    bench.reassign(&device, &two).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Memory(two.backing));
    bench.audit();
}

#[test]
fn i14_a_reassign_that_fails_after_the_first_write_leaves_the_device_quarantined() {
    let mut bench = Bench::v2();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &one).unwrap();
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    let error = bench.reassign(&device, &two).unwrap_err();
    assert_eq!(error.left, Left::Quarantined);
    assert_eq!(bench.dma(0x10), Reached::Fault);
    assert_eq!(bench.state(&device), NOT_DRAINED);
}
