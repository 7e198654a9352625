//! Entries that merge, repack, widen and fall apart: contract I-15, A-5.

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

use std::sync::Arc;

use common::parts::{named, parts};
use common::{Bench, SMMU, block, described, stream, withdraw};
use iommu_assign::assign::{Cause, Device, Iommu, IommuError, IommuKey, Resource, Stream};
use iommu_assign::smmu::{Setup, Smmu};
use machine::Reached;
use smmu_model::{Config, Direction};

/// The (ID, mask) of every entry that matches, as the registers have them.
fn entries(bench: &Bench) -> Vec<(u32, u32)> {
    let read = |smmu: &mut smmu_model::Smmu| {
        let smrs = (0..128).map(|n| smmu.peek32(smmu.smr(n)));
        smrs.filter(|smr| smr >> 31 == 1).map(|smr| (smr & 0x7fff, smr >> 16 & 0x7fff)).collect()
    };
    let mut entries: Vec<(u32, u32)> = bench.machine.smmu(SMMU, read).unwrap();
    entries.sort_unstable();
    entries
}

fn writes(bench: &mut Bench, act: impl FnOnce(&mut Bench)) -> Vec<String> {
    bench.machine.smmu(SMMU, smmu_model::Smmu::start_trace);
    act(bench);
    let trace = bench.machine.smmu(SMMU, smmu_model::Smmu::take_trace).unwrap();
    trace.into_iter().filter(|access| access.direction == Direction::Write).map(|access| access.name).collect()
}

#[test]
fn a_devices_ids_merge_into_the_least_entries_that_capture_exactly_them() {
    for part in parts().into_iter().filter(|part| part.model.stream_matching) {
        let name = part.name;
        let mut bench = Bench::new();
        bench.part(part);
        // 0x10..=0x17 without 0x13 is three entries at least; here 0x10..=0x13 in four specifiers is one.
        let device = bench.add("dma", &[(0x10, 0), (0x11, 0), (0x12, 0), (0x13, 0)]);
        let guest = bench.guest("guest");
        bench.assign(&device, &guest).unwrap();
        for id in 0..0x40 {
            let expected = if (0x10..0x14).contains(&id) { Reached::Memory(guest.backing) } else { Reached::Fault };
            assert_eq!(bench.dma(id), expected, "{name}: {id:#x}");
        }
        let mut used = 0;
        bench
            .service
            .usage(SMMU, &mut |usage| used += usize::from(usage.resource == Resource::StreamMapEntries))
            .unwrap();
        assert_eq!(used, 1, "{name}");
        bench.audit();
    }
}

#[test]
fn i15_a_group_in_fault_is_packed_anew_when_a_member_joins() {
    let mut bench = Bench::v2();
    bench.add("one", &[(0x10, 0), (0x11, 0)]);
    assert_eq!(entries(&bench), [(0x10, 1)]);
    let trace = writes(&mut bench, |bench| drop(bench.add("two", &[(0x11, 0), (0x12, 0), (0x13, 0)])));
    assert_eq!(entries(&bench), [(0x10, 3)]);
    // Gone before the new one comes: at no instant do two match.
    assert_eq!(trace, ["SMR0", "S2CR0", "SMR0"]);
    bench.audit();
}

#[test]
fn i15_a_live_entry_is_widened_by_one_write_and_does_not_move() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let one = bench.add("one", &[(0x10, 0), (0x11, 0)]);
    bench.assign(&one, &guest).unwrap();
    let spec = bench.spec("two", &[(0x11, 0), (0x12, 0), (0x13, 0)]);
    // 0x12 and 0x13 go along with the entry that `two` shares: the policy has said yes to that.
    bench.oracle.allow(&"two".into(), &[(0x11, 0), (0x12, 1)], &[guest.backing]);
    let trace = writes(&mut bench, |bench| drop(bench.service.add(spec).unwrap()));
    assert_eq!(trace, ["SMR0"]);
    assert_eq!(entries(&bench), [(0x10, 3)]);
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
    bench.audit();
}

#[test]
fn i15_a_live_group_is_not_packed_anew() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let one = bench.add("one", &[(0x10, 0), (0x21, 0)]);
    bench.assign(&one, &guest).unwrap();
    let before = entries(&bench);
    // 0x11 would merge with 0x10, but `two` shares 0x21 only: 0x11 must not go along.
    let two = bench.spec("two", &[(0x21, 0), (0x11, 0)]);
    bench.oracle.allow(&"two".into(), &[(0x21, 0)], &[guest.backing]);
    bench.service.add(two).unwrap();
    let after = entries(&bench);
    assert!(before.iter().all(|entry| after.contains(entry)), "{before:x?} {after:x?}");
    assert_eq!(bench.dma(0x11), Reached::Fault);
    bench.audit();
}

#[test]
fn what_is_left_of_a_group_captures_no_more_than_its_own() {
    let mut bench = Bench::v2();
    let one = bench.add("one", &[(0x10, 0), (0x11, 0)]);
    let two = bench.add("two", &[(0x11, 0), (0x12, 0), (0x13, 0)]);
    bench.remove(&two).unwrap();
    assert_eq!(entries(&bench), [(0x10, 1)]);
    bench.audit();
    bench.remove(&one).unwrap();
    assert_eq!(entries(&bench), []);
    bench.audit();
}

#[test]
fn a5_a_device_that_does_not_fit_is_refused_and_usage_says_who_has_what() {
    let mut bench = Bench::new();
    bench.smmu(SMMU, Config { groups: 2, ..Config::generic_v2() });
    bench.add("hog", &[(0x1, 0)]);
    let spec = bench.spec("late", &[(0x10, 0), (0x23, 0)]);
    let (reads, writes, refused) = bench.cost(|| bench.service.add(spec));
    let error = refused.unwrap_err();
    let exhausted = IommuError::Exhausted { resource: Resource::StreamMapEntries, needed: 1, free: 1, total: 2 };
    assert_eq!(error.cause, Cause::Iommu { iommu: SMMU, error: exhausted });
    assert_eq!((reads, writes), (0, 0));
    let mut users = Vec::new();
    bench.service.usage(SMMU, &mut |usage| users.push(usage.device.clone().unwrap())).unwrap();
    assert_eq!(users, ["hog".into()]);
}

#[test]
fn a_lazy_device_claims_at_its_first_plan_and_gives_back_what_was_not_used() {
    let bench = Bench::new();
    let registers = bench.machine.add_smmu(SMMU, Config { groups: 2, ..Config::generic_v2() });
    let config = described(SMMU, &Config::generic_v2());
    let smmu = Smmu::probe(config, registers, bench.masters.clone()).unwrap();
    // The driver alone: published, never enrolled.
    let device = |n| iommu_assign::assign::DeviceId::new(n);
    let publish = |n, streams: &[Stream]| {
        let mut met = Vec::new();
        let mut new = smmu.new_master(device(n), streams, None).unwrap();
        smmu.publish(&mut new, &mut |device| met.push(device)).unwrap();
        met
    };
    publish(1, &[stream(SMMU, 0x10, 0)]);
    publish(2, &[stream(SMMU, 0x20, 0), stream(SMMU, 0x41, 0)]);
    assert_eq!(publish(3, &[stream(SMMU, 0x20, 0)]), [device(2)], "met before it is enrolled");
    withdraw(&smmu, device(3), &[]).unwrap();
    let tables = machine::Stage2Tables::new(&bench.machine, 0x9000_0000, 40, 40);
    let space = |n| iommu_assign::assign::AddressSpace {
        domain: iommu_assign::assign::DomainId::new(n),
        stage2: tables.stage2(),
    };
    let before = bench.machine.counters(SMMU);
    let plan = smmu.plan(&[device(2)], &space(1), &mut |_| ()).unwrap();
    assert_eq!(bench.machine.counters(SMMU), before, "a plan writes nothing");
    let refused = smmu.plan(&[device(1)], &space(1), &mut |_| ()).unwrap_err();
    assert!(matches!(refused, IommuError::Exhausted { resource: Resource::StreamMapEntries, .. }), "{refused}");
    smmu.abandon(&[device(2)], plan);
    let plan = smmu.plan(&[device(1)], &space(1), &mut |_| ()).unwrap();
    smmu.install(&[device(1)], plan).unwrap();
    assert_eq!(entries(&bench), [(0x10, 0)]);
    let mut differences = Vec::new();
    smmu.audit(&mut |difference| differences.push(difference));
    assert_eq!(differences, []);
    drop(block(&smmu, &[device(1)]).unwrap());
    withdraw(&smmu, device(1), &[]).unwrap();
    withdraw(&smmu, device(2), &[]).unwrap();
    assert_eq!(entries(&bench), []);
}

#[test]
fn loose_merging_is_an_opt_in_and_never_captures_what_another_has() {
    let part = named("generic v2");
    let ids = [(0x10, 0), (0x11, 0), (0x12, 0)];
    let mut bench = Bench::new();
    bench.smmu_as(part.config.clone(), part.model.clone());
    bench.add("exact", &ids);
    assert_eq!(entries(&bench).len(), 2);
    let mut bench = Bench::new();
    let setup = Setup { unused: vec![stream(SMMU, 0x10, 0xf)], ..Setup::default() };
    bench.smmu_through(part.config, setup, part.model, |registers| registers);
    let device = bench.add("loose", &ids);
    assert_eq!(entries(&bench), [(0x10, 3)]);
    // 0x13 was said to be unused. A device that has it all the same is in the same group.
    let late = bench.add("late", &[(0x13, 0)]);
    let group = |bench: &Bench, device: &Device| bench.service.find(device.key()).unwrap().group;
    assert_eq!(group(&bench, &device), group(&bench, &late));
    bench.add("next", &[(0x14, 0), (0x15, 0), (0x16, 0)]);
    let all = entries(&bench);
    assert!(
        all.iter().enumerate().all(|(n, one)| all[n + 1..].iter().all(|two| (one.0 ^ two.0) & !(one.1 | two.1) != 0))
    );
    bench.audit();
}

#[test]
fn many_devices_are_found_by_their_streams() {
    let mut bench = Bench::new();
    let smmu = bench.part(named("mmu-500 Layerscape"));
    let devices: Vec<Device> = (0..100).map(|n| bench.add(&format!("dev{n}"), &[(n << 4, n & 3)])).collect();
    for (n, device) in (0..100_u32).zip(&devices) {
        assert_eq!(smmu.owner_of(iommu_assign::assign::StreamId::new(n << 4)), Some(device.id()));
    }
    assert_eq!(smmu.owner_of(iommu_assign::assign::StreamId::new(8)), None);
    let _: &Arc<_> = &smmu;
}

#[test]
fn a_host_bridge_with_more_ids_than_entries_adds_lazily() {
    let mut bench = Bench::new();
    bench.smmu(SMMU, Config { groups: 2, ..Config::generic_v2() });
    let guest = bench.guest("guest");
    let functions: Vec<Device> = (0..6)
        .map(|n| {
            let mut spec = bench.spec(&format!("function {n}"), &[(0x11 << n, 0)]);
            spec.lazy = true;
            bench.service.add(spec).unwrap()
        })
        .collect();
    assert_eq!(entries(&bench), []);
    bench.audit();
    for function in &functions[..2] {
        bench.assign(function, &guest).unwrap();
    }
    assert_eq!(bench.dma(0x22), Reached::Memory(guest.backing));
    let (_, writes, refused) = bench.cost(|| bench.service.assign(&functions[2], &guest.domain));
    let exhausted = IommuError::Exhausted { resource: Resource::StreamMapEntries, needed: 1, free: 0, total: 2 };
    assert_eq!((writes, refused.unwrap_err().cause), (0, Cause::Iommu { iommu: SMMU, error: exhausted }));
    let mut users = Vec::new();
    let sink = &mut |usage: &iommu_assign::assign::UsageRecord| users.extend(usage.device.clone());
    bench.service.usage(SMMU, sink).unwrap();
    assert_eq!(users, ["function 0".into(), "function 1".into()]);
    bench.remove(&functions[0]).unwrap();
    bench.assign(&functions[2], &guest).unwrap();
    bench.audit();
    for function in &functions[1..] {
        bench.remove(function).unwrap();
    }
    assert_eq!(entries(&bench), []);
}

#[test]
fn a11_a_lazy_device_does_not_go_along_unasked() {
    /// Allows the device that is assigned, and nothing that shares with it.
    #[derive(Debug)]
    struct Alone;
    impl iommu_assign::assign::Policy for Alone {
        fn allows(&self, request: &iommu_assign::assign::PolicyRequest<'_>) -> bool {
            matches!(request.why, iommu_assign::assign::Why::Assign)
        }
    }
    for lazy in [[true, true], [true, false], [false, true]] {
        let mut bench = Bench::with_policy(Box::new(Alone));
        bench.smmu(SMMU, Config::generic_v2());
        let guest = bench.guest("guest");
        let [one, _] = [("one", lazy[0]), ("two", lazy[1])].map(|(name, lazy)| {
            let mut spec = bench.spec(name, &[(0x10, 0)]);
            spec.lazy = lazy;
            bench.service.add(spec).unwrap()
        });
        let refused = bench.service.assign(&one, &guest.domain).unwrap_err();
        assert!(matches!(refused.cause, Cause::Denied { .. }), "{lazy:?}: {refused}");
        assert_eq!(bench.dma(0x10), Reached::Fault);
    }
}

#[test]
fn i11_a_lazy_device_whose_stream_is_live_needs_the_policys_yes_at_add() {
    let mut bench = Bench::with_policy(Box::new(iommu_assign::assign::FirmwareMarks));
    bench.smmu(SMMU, Config::generic_v2());
    let guest = bench.guest("guest");
    let mut spec = bench.spec("owner", &[(0x10, 0)]);
    spec.passthrough = true;
    let owner = bench.service.add(spec).unwrap();
    bench.assign(&owner, &guest).unwrap();
    let mut spec = bench.spec("lazy", &[(0x10, 0)]);
    spec.lazy = true;
    let refused = bench.service.add(spec).unwrap_err();
    assert!(matches!(refused.cause, Cause::GroupConflict { .. }), "{refused}");
    bench.audit();
}

#[test]
fn i15_who_shares_an_entry_on_an_smmu_that_a_leaver_is_not_on_stays_one_group() {
    const SECOND: IommuKey = IommuKey::new(0x6000_0000);
    let mut bench = Bench::v2();
    bench.smmu(SECOND, Config::generic_v2());
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let mut add = |name: &str, first: &[u32], second: &[u32]| {
        let mut spec = bench.spec(name, &[]);
        spec.streams = first.iter().map(|id| stream(SMMU, *id, 0)).collect();
        spec.streams.extend(second.iter().map(|id| stream(SECOND, *id, 0)));
        let ids: Vec<_> = first.iter().chain(second).map(|id| (*id, 0)).collect();
        bench.oracle.allow(&name.into(), &ids, &[one.backing]);
        bench.service.add(spec).unwrap()
    };
    let narrow = add("narrow", &[0x30], &[0x10]);
    let far = add("far", &[], &[0x11]);
    let wide = add("wide", &[], &[0x10, 0x11]);
    let leaver = add("leaver", &[0x30], &[]);
    bench.service.assign(&narrow, &one.domain).unwrap();
    // The one entry on the second SMMU is live: it outlives the device for which it was made.
    drop(bench.service.remove(wide.key()).unwrap());
    drop(bench.service.remove(leaver.key()).unwrap());
    let refused = bench.service.assign(&far, &two.domain).unwrap_err();
    assert!(matches!(refused.cause, Cause::GroupConflict { .. }), "{refused}");
    bench.audit();
}
