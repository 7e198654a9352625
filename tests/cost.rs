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
use iommu_assign::assign::{FaultLine, Removal, StreamId};
use smmu_model::{Config, SyncDelay};

/// Three entries that do not merge.
const STREAMS: [(u32, u32); 3] = [(0x10, 0), (0x23, 0), (0x4c, 0)];
const N: u64 = 3;

fn bench() -> Bench {
    let bench = Bench::new();
    // Syncs complete at the first poll: later polls are not the driver's cost.
    bench.smmu(SMMU, Config { sync_delay: SyncDelay::Polls(0), ..Config::generic_v2() });
    bench
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
        let (reads, writes) = if registers == "mmu-500" { (12 + 2 * banks, 13 + banks) } else { (11, 12) };
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
    let cost = |act: &dyn Fn()| {
        let (reads, writes, _) = bench.cost(act);
        (reads, writes)
    };
    bench.oracle.allow(device.label(), &STREAMS, &[guest.backing]);
    bench.oracle.allow(mate.label(), &[(0x80, 0)], &[guest.backing]);
    assert_eq!(cost(&|| service.assign(&device, &guest.domain).unwrap()), (0, N + 6), "assign, fresh bank: n+6 W");
    assert_eq!(cost(&|| drop(service.deassign(&device).unwrap())), (1, N + 4), "deassign, last: n+4 W, 1 R");
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
    assert_eq!(cost(&two), (1, 2 * N + 10), "last -> fresh");
    service.assign(&stays, &two.domain).unwrap();
    assert_eq!(cost(&one), (1, 2 * N + 8), "not last -> fresh");
    assert_eq!(cost(&two), (1, 2 * N + 4), "last -> existing");
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
