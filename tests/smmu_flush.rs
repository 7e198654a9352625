//! Flushes of a range: what is forgotten, at what cost, and where they fall back to the whole domain (contract I-9).

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

use common::driver::{Driver, domain};
use common::parts::parts;
use common::{Bench, Guest, PAGE, SMMU};
use iommu_assign::assign::{Cause, Changed, FlushRange, Iommu, IommuError, Patience, StreamId};
use iommu_assign::sync::Waited;
use machine::Reached;
use smmu_model::{Architecture, Config, Hazard, Injection, SyncDelay, SyncRegister};

const LEAF: u64 = 0x1000;

fn range(start: u64, pages: u64, changed: Changed) -> FlushRange {
    FlushRange { start, size: pages * LEAF, leaf: LEAF, changed }
}

fn at(bench: &Bench, page: u64) -> Reached {
    bench.machine.dma_write(SMMU, StreamId::new(0x10), PAGE + page * LEAF).unwrap()
}

/// A guest with `pages` pages that its device has all touched.
fn touched(bench: &mut Bench, pages: u64) -> Guest {
    let mut guest = bench.guest("guest");
    for page in 1..pages {
        guest.tables.map(PAGE + page * LEAF, 0x7000_0000 + page * LEAF, true);
    }
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    (0..pages).for_each(|page| assert_ne!(at(bench, page), Reached::Fault));
    guest
}

#[test]
fn i9_a_range_is_gone_after_its_flush_on_every_part() {
    for part in parts() {
        for changed in [Changed::Leaf, Changed::TablesFreed] {
            for pages in [1, 3, 40] {
                let name = part.name;
                let mut bench = Bench::new();
                bench.smmu_as(part.config.clone(), part.model.clone());
                let mut guest = touched(&mut bench, 48);
                for page in 2..2 + pages {
                    guest.tables.unmap(PAGE + page * LEAF);
                }
                bench.service.flush_range(&guest.domain, &range(PAGE + 2 * LEAF, pages, changed)).unwrap();
                for page in 2..2 + pages {
                    assert_eq!(at(&bench, page), Reached::Fault, "{name}, {changed:?}, page {page} of {pages}");
                }
                assert_ne!(at(&bench, 1), Reached::Fault, "{name}");
            }
        }
    }
}

#[test]
fn a_page_costs_two_writes_and_one_read() {
    for part in parts() {
        let mut bench = Bench::new();
        let v2 = part.model.architecture == Architecture::V2;
        bench.smmu_as(part.config, Config { sync_delay: SyncDelay::Polls(0), ..part.model });
        let guest = touched(&mut bench, 2);
        let flush = |pages| {
            let (reads, writes, ()) =
                bench.cost(|| bench.service.flush_range(&guest.domain, &range(PAGE, pages, Changed::Leaf)).unwrap());
            (reads, writes)
        };
        assert_eq!(flush(1), (1, 2), "{}", part.name);
        assert_eq!(flush(8), if v2 { (1, 9) } else { (1, 2) }, "{}", part.name);
        assert_eq!(flush(33), (1, 2), "{}: above the threshold the whole VMID", part.name);
    }
}

#[test]
fn i9_freed_tables_are_not_walked_any_more() {
    let mut bench = Bench::v2();
    let mut guest = touched(&mut bench, 2);
    guest.tables.unmap(PAGE);
    guest.tables.unmap(PAGE + LEAF);
    // Their memory is used for something else.
    guest.tables.scribble();
    bench.service.flush_range(&guest.domain, &range(PAGE, 2, Changed::TablesFreed)).unwrap();
    assert_eq!(at(&bench, 0), Reached::Fault);
    assert_eq!(at(&bench, 1), Reached::Fault);
}

#[test]
fn c10_the_atomic_form_has_its_own_smaller_bound() {
    let mut bench = Bench::new();
    let model = Config::generic_v2();
    let mut config = common::described(SMMU, &model);
    config.atomic_polls = 7;
    bench.smmu_as(config, model);
    let guest = touched(&mut bench, 2);
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Bank(0))));
    let flush = range(PAGE, 1, Changed::Leaf);
    let timeout = |polls| Cause::Iommu { iommu: SMMU, error: IommuError::SyncTimeout(Waited { polls, time: None }) };
    let (reads, _, refused) = bench.cost(|| bench.service.flush_range_atomic(&guest.domain, &flush));
    assert_eq!((reads, refused.unwrap_err().cause), (7, timeout(7)));
    let (reads, _, refused) = bench.cost(|| bench.service.flush_range(&guest.domain, &flush));
    assert_eq!((reads, refused.unwrap_err().cause), (100, timeout(100)));
    // The whole domain's flush uses the global sync, and works.
    bench.service.flush(&guest.domain).unwrap();
    bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
    bench.service.flush_range_atomic(&guest.domain, &flush).unwrap();
}

#[test]
fn odd_ranges_fall_back_to_the_whole_domain() {
    let mut bench = Bench::v2();
    let guest = touched(&mut bench, 2);
    for (start, size, leaf) in [
        (PAGE, 0x1000, 0x800),
        (PAGE, 0x1000, 0x3000),
        (u64::MAX - 5, 0x1000, 0x1000),
        (PAGE, 0, 0x1000),
        (0, 0x1000, 0x1000),
    ] {
        bench.machine.smmu(SMMU, smmu_model::Smmu::start_trace);
        let odd = FlushRange { start, size, leaf, changed: Changed::Leaf };
        bench.service.flush_range(&guest.domain, &odd).unwrap();
        let trace = bench.machine.smmu(SMMU, smmu_model::Smmu::take_trace).unwrap();
        assert!(trace.iter().any(|access| access.name == "TLBIVMID"), "{odd:?}");
    }
}

#[test]
fn a_block_is_one_invalidation() {
    let mut bench = Bench::v2();
    let guest = touched(&mut bench, 2);
    let block = FlushRange { start: PAGE + 0x1234, size: 0x20_0000, leaf: 0x20_0000, changed: Changed::Leaf };
    let (_, writes, flushed) = bench.cost(|| bench.service.flush_range(&guest.domain, &block));
    flushed.unwrap();
    assert_eq!(writes, 3, "two blocks are touched, and a sync");
}

/// An impatient flush that gave up let the next sync start over the one in flight, and a patient waiter starved.
#[test]
fn c14_a_flush_that_gives_up_starts_no_sync_over_the_one_in_flight_and_a_patient_one_ends() {
    let model = Config { sync_delay: SyncDelay::Polls(60), ..Config::generic_v2() };
    let config = iommu_assign::smmu::SmmuConfig { atomic_polls: 7, ..common::described(SMMU, &model) };
    let driver = Driver::with(config, Default::default(), model);
    driver.add(1, &[0x10]);
    driver.assign(&[1], 0).unwrap();
    for round in 0..5 {
        let impatient = || driver.smmu.flush(domain(0), None, Patience::Atomic);
        for _ in 0..3 {
            assert!(matches!(impatient(), Err(IommuError::SyncTimeout(_))), "round {round}");
        }
        // Two syncs at most: the one in flight, and the next.
        let (reads, writes, flushed) = driver.bench.cost(|| driver.flush(0, None));
        assert_eq!(
            flushed,
            Err(IommuError::SyncTimeout(Waited { polls: 100, time: None })),
            "60 + 60 polls are needed"
        );
        assert_eq!((reads, writes), (100, 2), "TLBIVMID, and the next sync when the first is complete");
        assert_eq!(driver.flush(0, None).map_err(|_| ()), Ok(()), "round {round}");
    }
    let hazards = driver.bench.machine.smmu(SMMU, |smmu| smmu.hazards().to_vec()).unwrap();
    assert!(!hazards.contains(&Hazard::SyncOverlap), "{hazards:?}");
}

#[test]
fn i9_a_flush_covers_banks_that_drain_and_costs_nothing_where_the_domain_has_none() {
    let driver = Driver::new(Config { sync_delay: SyncDelay::Polls(0), ..Config::generic_v2() });
    driver.add(1, &[0x10]);
    let cost = |expected| {
        let (reads, writes, flushed) = driver.bench.cost(|| driver.flush(0, None));
        assert_eq!((reads, writes, flushed.is_ok()), expected);
    };
    cost((0, 0, true));
    driver.assign(&[1], 0).unwrap();
    cost((1, 2, true));
    // A bank whose drain was not confirmed may still be walked.
    driver.lose_syncs(1);
    driver.block(&[1]).unwrap_err();
    cost((100, 1, false));
    driver.recover();
    driver.block(&[1]).unwrap();
    cost((0, 0, true));
}
