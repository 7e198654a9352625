//! Register accesses of each operation, exactly. A change of these numbers is a change of the driver.

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

use common::{Bench, PAGE, SMMU};
use iommu_assign::assign::{DeviceSpec, FaultLine, Quarantine, Removal, StreamId};
use smmu_model::{Config, SyncDelay};

/// Three entries that do not merge.
const STREAMS: [(u32, u32); 3] = [(0x10, 0), (0x23, 0), (0x4c, 0)];
const N: u64 = 3;

/// Syncs complete at the first poll: later polls are not the driver's cost.
fn model() -> Config {
    Config { sync_delay: SyncDelay::Polls(0), ..Config::generic_v2() }
}

fn bench() -> Bench {
    let bench = Bench::new();
    bench.smmu(SMMU, model());
    bench
}

/// Reads and writes of `act`.
fn cost<T>(bench: &Bench, act: impl FnOnce() -> T) -> (u64, u64) {
    let (reads, writes, _) = bench.cost(act);
    (reads, writes)
}

#[test]
fn probe_and_reset() {
    for (model, registers) in [(Config::generic_v2(), "generic"), (Config::mmu500_zynqmp(), "mmu-500")] {
        let (groups, banks) = (u64::from(model.groups), u64::from(model.banks));
        let bench = Bench::new();
        let mut config = common::described(SMMU, &model);
        if registers == "mmu-500" {
            config.implementation = iommu_assign::smmu::Implementation::Mmu500;
        }
        bench.smmu_as(config, Config { sync_delay: SyncDelay::Polls(0), ..model });
        let counters = bench.machine.counters(SMMU);
        let (reads, writes) = if registers == "mmu-500" { (14 + 2 * banks, 13 + banks) } else { (13, 12) };
        assert_eq!((counters.reads, counters.writes), (reads, writes + 2 * groups + 2 * banks), "{registers}");
    }
}

#[test]
fn add_assign_deassign_remove() {
    let mut bench = bench();
    let guest = bench.guest("guest");
    let before = bench.machine.counters(SMMU);
    let device = bench.add("dma", &STREAMS);
    let mate = bench.add("mate", &[(0x80, 0)]);
    let after = bench.machine.counters(SMMU);
    assert_eq!((after.reads - before.reads, after.writes - before.writes), (0, 2 * (N + 1)), "add: 2n W");
    let service = &bench.service;
    let cost = |act: &dyn Fn()| cost(&bench, act);
    bench.oracle.allow(device.label(), &STREAMS, &[guest.backing]);
    bench.oracle.allow(mate.label(), &[(0x80, 0)], &[guest.backing]);
    assert_eq!(cost(&|| service.assign(&device, &guest.domain).unwrap()), (0, N + 6), "assign, fresh bank: n+6 W");
    assert_eq!(cost(&|| drop(service.deassign(&device).unwrap())), (2, N + 4), "deassign, last: n+4 W, 2 R");
    service.assign(&mate, &guest.domain).unwrap();
    assert_eq!(cost(&|| service.assign(&device, &guest.domain).unwrap()), (0, N), "assign, bank exists: n W");
    assert_eq!(cost(&|| drop(service.deassign(&device).unwrap())), (1, N + 2), "deassign, not last: n+2 W, 1 R");
    assert_eq!(cost(&|| assert_eq!(service.remove(device.key()).unwrap(), Removal::Done)), (0, N), "remove: n W");
}

#[test]
fn reassign_in_all_four_forms() {
    let mut bench = bench();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let device = bench.add("dma", &STREAMS);
    let (stays, there) = (bench.add("stays", &[(0x80, 0)]), bench.add("there", &[(0x81, 0)]));
    for name in [&device, &stays, &there] {
        let streams: Vec<(u32, u32)> = name.streams().iter().map(|stream| (stream.id().value(), 0)).collect();
        bench.oracle.allow(name.label(), &streams, &[one.backing, two.backing]);
    }
    let service = &bench.service;
    let cost = |goal: &common::Guest| {
        let (reads, writes, _) = bench.cost(|| service.reassign(&device, &goal.domain).unwrap());
        (reads, writes)
    };
    service.assign(&device, &one.domain).unwrap();
    assert_eq!(cost(&two), (2, 2 * N + 10), "last -> fresh");
    service.assign(&stays, &two.domain).unwrap();
    assert_eq!(cost(&one), (1, 2 * N + 8), "not last -> fresh");
    assert_eq!(cost(&two), (2, 2 * N + 4), "last -> existing");
    service.assign(&there, &one.domain).unwrap();
    assert_eq!(cost(&one), (1, 2 * N + 2), "not last -> existing");
}

#[test]
fn flush() {
    let mut bench = bench();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &STREAMS);
    let flush = |bench: &Bench| {
        let (reads, writes, _) = bench.cost(|| bench.service.flush(&guest.domain).unwrap());
        (reads, writes)
    };
    assert_eq!(flush(&bench), (0, 0), "a domain without a bank");
    bench.assign(&device, &guest).unwrap();
    assert_eq!(flush(&bench), (1, 2), "a domain: 2 W, 1 R");
    drop(bench.deassign(&device).unwrap());
    assert_eq!(flush(&bench), (0, 0), "a bank that was retired");
}

#[test]
fn context_fault() {
    let mut bench = bench();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &STREAMS);
    bench.assign(&device, &guest).unwrap();
    let take = |bench: &Bench| {
        let mut records = 0;
        let count = &mut |_: &_| records += 1;
        let (reads, writes, _) = bench.cost(|| bench.service.handle_fault(SMMU, FaultLine::Context(0), count).unwrap());
        (records, reads, writes)
    };
    assert_eq!(take(&bench), (0, 1, 0), "spurious: 1 R");
    bench.machine.dma_write(SMMU, StreamId::new(0x10), PAGE + 0x8000).unwrap();
    assert_eq!(take(&bench), (1, 4, 1), "real: 4 R, 1 W");
}

#[test]
fn test_assign_and_refusals_cost_nothing() {
    let mut bench = bench();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &STREAMS);
    let (reads, writes, result) = bench.cost(|| bench.service.test_assign(&device, &guest.domain));
    assert_eq!((reads, writes, result), (0, 0, Ok(())));
    let (reads, writes, result) = bench.cost(|| bench.service.deassign(&device));
    assert_eq!((reads, writes, result.is_err()), (0, 0, true));
    bench.audit();
}

#[test]
fn entries_that_are_shared_lazy_packed_anew_or_refitted() {
    let mut bench = Bench::new();
    bench.smmu(SMMU, Config { groups: 4, ..model() });
    let guest = bench.guest("guest");
    let mut specs =
        [("wide", &[(0x10, 1)][..], false), ("shares", &[(0x10, 0)], false), ("lazy", &[(0x20, 0), (0x23, 0)], true)]
            .map(|(name, streams, lazy)| Some(DeviceSpec { lazy, ..bench.spec(name, streams) }));
    let mut add = |n: usize| {
        let (reads, writes, device) = bench.cost(|| bench.service.add(specs[n].take().unwrap()).unwrap());
        ((reads, writes), device)
    };
    let (wide, shares, lazy) = (add(0), add(1), add(2));
    assert_eq!((wide.0, shares.0, lazy.0), ((0, 2), (0, 0), (0, 0)), "2 W for each new entry");
    let (wide, lazy) = (wide.1, lazy.1);
    let service = &bench.service;
    bench.oracle.allow(lazy.label(), &[(0x20, 0), (0x23, 0)], &[guest.backing]);
    assert_eq!(cost(&bench, || service.assign(&lazy, &guest.domain).unwrap()), (0, 6 + 3 * 2), "bank, and 3n W");
    assert_eq!(cost(&bench, || drop(service.deassign(&lazy).unwrap())), (2, 2 + 4), "it keeps its entries");
    assert_eq!(cost(&bench, || service.assign(&lazy, &guest.domain).unwrap()), (0, 6 + 2));
    drop(service.deassign(&lazy).unwrap());
    // In fault: the entry of two IDs goes, one of one comes.
    assert_eq!(cost(&bench, || service.remove(wide.key()).unwrap()), (0, 1 + 2), "remove, refitted: 1 W out, 2 W in");
    bench.audit();
    let mut bench = Bench::new();
    bench.smmu(SMMU, Config { groups: 3, ..model() });
    bench.add("one", &[(0x10, 0), (0x13, 0)]);
    // One entry is left, and two are needed: one of four IDs takes the place of two.
    let spec = bench.spec("packs", &[(0x11, 0), (0x12, 0), (0x13, 0)]);
    assert_eq!(cost(&bench, || bench.service.add(spec).unwrap()), (0, 2 + 2), "packed anew: 2 W out, 2 W in");
    bench.audit();
}

#[test]
fn quarantine_and_removal_of_an_assigned_device() {
    let mut bench = bench();
    let (guest, scratch) = (bench.guest("guest"), bench.guest("scratch"));
    let device = bench.add("dma", &STREAMS);
    bench.oracle.allow(device.label(), &STREAMS, &[guest.backing, scratch.backing]);
    let service = &bench.service;
    let quarantine = |place| cost(&bench, || service.quarantine(&device, place).unwrap());
    assert_eq!(quarantine(Quarantine::Faults), (0, 0), "of a blocked device");
    service.assign(&device, &guest.domain).unwrap();
    assert_eq!(quarantine(Quarantine::Faults), (2, N + 4), "as a deassign");
    assert_eq!(quarantine(Quarantine::Scratch(scratch.domain.space().stage2)), (0, N + 6), "as an assign");
    // A quiet bank keeps no fault record.
    assert_eq!(cost(&bench, || service.assign(&device, &guest.domain).unwrap()), (1, N + 4 + N + 6), "out of scratch");
    assert_eq!(cost(&bench, || service.remove(device.key()).unwrap()), (2, N + 4 + N), "remove: deassign, and n W");
    assert_eq!(cost(&bench, || service.destroy_domain(&guest.domain).unwrap()), (0, 0), "its drain is confirmed");
}

#[test]
fn power_and_the_end() {
    let mut bench = bench();
    let (groups, banks) = (u64::from(model().groups), u64::from(model().banks));
    let guest = bench.guest("guest");
    let device = bench.add("dma", &STREAMS);
    bench.add("idle", &[(0x80, 0)]);
    bench.assign(&device, &guest).unwrap();
    let service = &bench.service;
    let probe = bench.machine.smmu(SMMU, |smmu| smmu.peek32(0)).unwrap();
    assert_eq!(cost(&bench, || service.enable_reports(SMMU).unwrap()), (0, 1 + 1), "each live bank, and sCR0");
    assert_ne!(bench.machine.smmu(SMMU, |smmu| smmu.peek32(0)), Some(probe));
    assert_eq!(cost(&bench, || service.suspend_iommu(SMMU).unwrap()), (0, 0));
    assert_eq!(cost(&bench, || service.flush(&guest.domain).unwrap()), (0, 0), "suspended");
    let replayed = 6 + 2 * (N + 1) + N;
    let resumed = cost(&bench, || service.resume_iommu(SMMU).unwrap());
    assert_eq!(resumed, (7, 12 + 2 * groups + 2 * banks + replayed), "a probe without ID registers, and the shadow");
    bench.oracle.allow(device.label(), &STREAMS, &[guest.backing]);
    let handle = bench.service.iommu(SMMU).unwrap();
    assert_eq!(
        cost(&bench, || service.force_unregister_iommu(SMMU).unwrap()),
        (1, groups + 3),
        "each entry there is, 2 TLBI, sync"
    );
    assert_eq!(cost(&bench, || handle.crash().unwrap()), (0, 0), "it is out of service");
    let bench = self::bench();
    let handle = bench.service.iommu(SMMU).unwrap();
    assert_eq!(cost(&bench, || handle.crash().unwrap()), (1, groups + 2), "each entry there is, TLBI, sync");
}

#[test]
fn a_drain_that_was_lost_costs_no_second_invalidation() {
    let mut bench = bench();
    let (guest, other) = (bench.guest("guest"), bench.guest("other"));
    let device = bench.add("dma", &STREAMS);
    bench.assign(&device, &guest).unwrap();
    bench.machine.smmu(SMMU, |smmu| smmu.inject(smmu_model::Injection::SyncTimesOut(1)));
    assert_eq!(cost(&bench, || bench.service.deassign(&device).unwrap_err()), (100, N + 3), "SCTLR is left as it is");
    bench.machine.smmu(SMMU, smmu_model::Smmu::release_syncs);
    bench.oracle.allow(device.label(), &STREAMS, &[other.backing]);
    let assign = || bench.service.assign(&device, &other.domain).unwrap();
    assert_eq!(cost(&bench, assign), (2, 1 + N + 6), "STATUS; SCTLR, FSR; an assign");
    bench.audit();
}
