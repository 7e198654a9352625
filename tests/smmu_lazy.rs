//! Lazy devices: entries at the first assign, not at add. Contract, I-11.

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

use common::driver::{Driver, device, entries, exhausted, unchanged};
use common::{Bench, SMMU};
use iommu_assign::assign::{Cause, FirmwareMarks, Iommu, Policy, PolicyRequest, Resource, Why};
use machine::Reached;
use smmu_model::Config;

const ENTRIES: Resource = Resource::StreamMapEntries;

#[test]
fn a3_a_lazy_device_takes_entries_at_its_first_plan_and_gives_back_what_was_not_used() {
    let driver = Driver::new(Config { groups: 2, ..Config::generic_v2() });
    driver.add_lazily(1, &[0x10]);
    driver.add_lazily(2, &[0x20, 0x41]);
    assert_eq!(entries(&driver.bench), []);
    assert_eq!(driver.writes(|| driver.plan(&[2], 0).unwrap()), [""; 0], "a plan writes nothing");
    assert!(exhausted(&unchanged(&driver, || driver.plan(&[1], 0)), ENTRIES));
    driver.abandon(&[2]);
    driver.plan(&[1], 0).unwrap();
    driver.install(&[1]).unwrap();
    assert_eq!(entries(&driver.bench), [(0x10, 0)]);
    assert!(exhausted(&unchanged(&driver, || driver.plan(&[2], 0)), ENTRIES), "the bank is not kept either");
    driver.check();
    driver.block(&[1]).unwrap();
    assert_eq!(driver.banks(), [0; 0]);
    driver.withdraw(1).unwrap();
    driver.assign(&[2], 0).unwrap();
    driver.block(&[2]).unwrap();
    driver.withdraw(2).unwrap();
    assert_eq!(entries(&driver.bench), []);
    driver.check();
}

#[test]
fn i11_a_lazy_device_shares_at_its_add_what_entries_there_are_and_takes_no_other() {
    let driver = Driver::new(Config::generic_v2());
    driver.add(1, &[0x10]);
    driver.add_lazily(2, &[0x10, 0x20]);
    assert!(driver.smmu.shares(device(1), device(2)));
    assert_eq!(entries(&driver.bench), [(0x10, 0)]);
    // An eager one that comes later brings an entry which the lazy one uses too.
    driver.add(3, &[0x20]);
    assert!(driver.smmu.shares(device(3), device(2)));
    driver.check();
    driver.assign(&[2], 0).unwrap();
    assert_eq!([0x10, 0x20].map(|id| driver.reaches(id)), [Some(0); 2]);
    driver.block(&[2]).unwrap();
    for n in [1, 3, 2] {
        driver.withdraw(n).unwrap();
        driver.check();
    }
    assert_eq!(entries(&driver.bench), []);
}

#[test]
fn a1_a_plan_that_is_given_back_leaves_an_entry_that_another_has_come_to_use() {
    for comes in [false, true] {
        let driver = Driver::new(Config::generic_v2());
        driver.add_lazily(1, &[0x10, 0x20]);
        driver.plan(&[1], 0).unwrap();
        if comes {
            driver.publish(2, &[0x10], false);
            driver.reserve(2).unwrap();
        }
        driver.abandon(&[1]);
        if comes {
            driver.enrol(2).unwrap();
            driver.assign(&[2], 0).unwrap();
            assert_eq!(driver.reaches(0x10), Some(0));
        }
        driver.check();
    }
}

#[test]
fn a11_a_lazy_device_does_not_go_along_unasked() {
    /// Allows the device that is assigned, and nothing that shares with it.
    #[derive(Debug)]
    struct Alone;
    impl Policy for Alone {
        fn allows(&self, request: &PolicyRequest<'_>) -> bool {
            matches!(request.why, Why::Assign)
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
        bench.audit();
    }
}

#[test]
fn i11_a_lazy_device_whose_stream_is_live_needs_the_policys_yes_at_add() {
    let mut bench = Bench::with_policy(Box::new(FirmwareMarks));
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
