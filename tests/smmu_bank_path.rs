//! The one path of a context bank, in the driver alone: kept for another domain, draining, owed, named twice. Contract, C-15,
//! I-6, I-7, I-8, I-14.

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

use common::SMMU;
use common::driver::{
    Driver, IDS, exhausted, lose_power, settle, timed_out as slow, two_banks, two_guests, watch_again,
};
use common::parts::{named, parts};
use common::stopping::{Held, STLBGSTATUS, Stop};
use iommu_assign::assign::{FaultLine, IommuError, IommuFaults, IommuPower, Resource, Streams};
use iommu_assign::smmu::{Setup, SmmuConfig};
use smmu_model::Config;

const BANKS: Resource = Resource::ContextBanks;

const BUSY: Result<(), IommuError> = Err(IommuError::Busy);

#[test]
fn a1_c15_a_bank_that_is_kept_for_another_domain_takes_no_third_device_for_either() {
    for part in parts() {
        let (name, driver) = (part.name, two_guests(&part));
        // The bank that this move frees counts.
        let (reads, writes, planned) = driver.bench.cost(|| driver.plan(&[1], 2));
        assert_eq!((reads, writes, planned), (0, 0, Ok(())), "{name}");
        for guest in [0, 2] {
            assert_eq!(driver.plan(&[3], guest), BUSY, "{name}: to guest {guest}");
        }
        assert!(exhausted(&driver.plan(&[3], 3), BANKS), "{name}");
        assert_eq!(driver.install(&[1]), BUSY, "{name}: it was not blocked");
        assert_eq!(driver.forget(2), Err(IommuError::InUse), "{name}");
        // Given back: the bank is what it was.
        driver.abandon(&[1]);
        driver.plan(&[3], 0).unwrap();
        assert!(exhausted(&driver.plan(&[1], 2), BANKS), "{name}: another is on its way to it");
        driver.install(&[3]).unwrap();
        assert!(exhausted(&driver.plan(&[1], 2), BANKS), "{name}: it would not be free");
        driver.block(&[3]).unwrap();
        driver.plan(&[1], 2).unwrap();
        assert_eq!(driver.block(&[1]), Ok(Streams::Fault), "{name}");
        // It is the new domain's now, before anything is installed: others may join, and none takes it.
        assert!(exhausted(&driver.plan(&[3], 3), BANKS), "{name}");
        driver.plan(&[3], 2).unwrap();
        driver.install(&[1]).unwrap();
        driver.install(&[3]).unwrap();
        assert_eq!(IDS.map(|id| driver.reaches(id)), [Some(2), Some(1), Some(2)], "{name}");
        // Of two that move, one was not blocked: the bank is the old domain's still.
        driver.plan(&[1, 3], 0).unwrap();
        driver.block(&[1]).unwrap();
        assert_eq!(driver.install(&[1]), BUSY, "{name}");
        assert_eq!(IDS.map(|id| driver.reaches(id)), [None, Some(1), Some(2)], "{name}");
        driver.block(&[3]).unwrap();
        driver.install(&[1, 3]).unwrap();
        assert_eq!(IDS.map(|id| driver.reaches(id)), [Some(0), Some(1), Some(0)], "{name}");
        driver.check();
    }
}

#[test]
fn i7_a_bank_is_free_when_its_drain_is_confirmed_whatever_else_is_planned() {
    for part in parts() {
        let (name, driver) = (part.name, two_guests(&part));
        // The guest that it goes to has a bank: the one that it leaves is free.
        driver.plan(&[1], 1).unwrap();
        driver.block(&[1]).unwrap();
        driver.check();
        driver.assign(&[3], 2).unwrap();
        driver.install(&[1]).unwrap();
        assert_eq!(IDS.map(|id| driver.reaches(id)), [Some(1), Some(1), Some(2)], "{name}");
        driver.check();
    }
}

#[test]
fn a3_i7_a_bank_that_a_plan_alone_keeps_live_is_retired_when_the_plan_is_given_back() {
    for lost in [false, true] {
        let driver = two_guests(&named("generic v2"));
        driver.plan(&[3], 0).unwrap();
        assert_eq!(driver.block(&[1]), Ok(Streams::Fault));
        assert_eq!(driver.banks(), [0, 1], "it is kept for the plan");
        if lost {
            driver.lose_syncs(1);
        }
        driver.abandon(&[3]);
        assert_eq!(driver.banks(), if lost { vec![0, 1] } else { vec![1] });
        assert_eq!(slow(&driver.forget(0)), lost);
        driver.recover();
        driver.assign(&[3], 2).unwrap();
        driver.check();
    }
}

#[test]
fn c15_i7_a_bank_whose_drain_is_waited_for_is_busy_and_nothing_says_ok_over_it() {
    for name in ["generic v2", "ap806", "mmu-401 small"] {
        let (part, stop) = (named(name), Stop::nowhere());
        let config = SmmuConfig { polls: 1000, ..part.config.clone() };
        let driver =
            Driver::through(config, Setup::default(), two_banks(&part), |registers| Held::new(registers, stop.clone()));
        settle(&driver);
        let mut seen = Vec::new();
        let mut blocked = None;
        thread::scope(|scope| {
            stop.at(STLBGSTATUS);
            driver.lose_syncs(1);
            scope.spawn(|| blocked = Some(driver.block(&[1])));
            stop.meet();
            seen.push(("another device to that domain", driver.plan(&[3], 0)));
            seen.push(("the device to another domain", driver.plan(&[1], 1)));
            seen.push(("a second block", driver.block(&[1]).map(drop)));
            seen.push(("a withdrawal", driver.withdraw(1).map(drop)));
            seen.push(("the domain's end", driver.forget(0)));
            seen.push(("the instance's end", driver.smmu.retire()));
            seen.push(("a third domain", driver.plan(&[3], 2)));
            driver.recover();
            stop.meet();
        });
        assert_eq!(blocked, Some(Ok(Streams::Fault)), "{name}");
        for (what, result) in seen {
            let expected = match what {
                // Each waits for the same sync.
                "the device to another domain" | "a second block" | "a withdrawal" => slow(&result),
                "the domain's end" => slow(&result),
                "a third domain" => exhausted(&result, BANKS),
                _ => result == BUSY,
            };
            assert!(expected, "{name}: {what} said {result:?}");
        }
        driver.assign(&[3], 2).unwrap();
        driver.withdraw(1).unwrap();
        driver.forget(0).unwrap();
        driver.check();
    }
}

#[test]
fn i6_i8_a_drain_that_was_not_confirmed_is_owed_until_what_comes_next_has_finished_it() {
    type Next = (&'static str, fn(&Driver) -> Result<(), IommuError>);
    let nexts: [Next; 6] = [
        ("block", |driver| driver.block(&[1]).map(drop)),
        ("a plan for another domain", |driver| driver.plan(&[1], 1)),
        ("a plan for the same domain", |driver| driver.plan(&[1], 0)),
        ("withdraw", |driver| driver.withdraw(1).map(drop)),
        ("forget", |driver| driver.forget(0)),
        ("retire", |driver| driver.smmu.retire()),
    ];
    for part in parts() {
        for (what, next) in nexts {
            // Where one of two that leave the bank is last, and where another stays in it.
            for stays in [false, true] {
                let (name, driver) = (part.name, two_guests(&part));
                if stays {
                    driver.assign(&[3], 0).unwrap();
                }
                driver.lose_syncs(1);
                assert!(slow(&driver.block(&[1])), "{name}");
                assert_eq!(driver.reaches(IDS[0]), None, "{name}");
                let told = next(&driver);
                if stays && ["forget", "retire"].contains(&what) {
                    // The domain is in use, and the instance's end is about banks: its devices have gone before.
                    assert!(told == Err(IommuError::InUse) || what == "retire", "{name}, {what}: {told:?}");
                    continue;
                }
                assert!(slow(&told), "{name}, {what}, {stays}: {told:?}");
                if !stays {
                    let other = driver.plan(&[3], 3);
                    assert!(slow(&other), "{name}: the bank is poisoned: {other:?}");
                }
                driver.recover();
                assert_eq!(next(&driver), Ok(()), "{name}, {what}, {stays}");
                if what != "retire" {
                    driver.check();
                    driver.abandon(&[1]);
                    let banks = if stays { vec![0, 1] } else { vec![1] };
                    assert_eq!(driver.banks(), banks, "{name}, {what}: nothing is lost");
                    driver.forget(2).unwrap();
                    driver.check();
                }
            }
        }
    }
}

/// Two devices share an entry, the first has left it, and the next sync is lost.
fn one_left_a_shared_entry() -> Driver {
    let driver = Driver::new(Config::generic_v2());
    driver.add(1, &[0x10]);
    driver.add(2, &[0x10]);
    driver.assign(&[1, 2], 0).unwrap();
    assert_eq!(driver.block(&[1]), Ok(Streams::Live));
    driver.lose_syncs(1);
    driver
}

#[test]
fn i6_a_device_that_left_before_owes_the_drain_of_an_entry_that_its_mate_kept_until_now() {
    let driver = one_left_a_shared_entry();
    assert!(slow(&driver.block(&[1, 2])));
    for n in [1, 2] {
        assert!(slow(&driver.withdraw(n)), "{n}");
        assert!(slow(&driver.plan(&[n], 1)), "{n}");
    }
    driver.recover();
    driver.withdraw(1).unwrap();
    driver.withdraw(2).unwrap();
    driver.check();
}

/// The instance's end looked for drains, then waited for the call inside: its drain was not confirmed either.
#[test]
fn i8_c9_the_end_of_an_instance_looks_again_at_the_drain_of_the_call_that_it_waited_for() {
    const POLLS: u32 = 400_000;
    let (part, stop) = (named("generic v2"), Stop::nowhere());
    let config = SmmuConfig { polls: POLLS, ..part.config.clone() };
    let driver =
        Driver::through(config, Setup::default(), two_banks(&part), |registers| Held::new(registers, stop.clone()));
    driver.add(1, &[0x10]);
    driver.assign(&[1], 0).unwrap();
    driver.lose_syncs(1);
    stop.after(POLLS - 1, STLBGSTATUS);
    let (mut blocked, mut retired) = (None, None);
    thread::scope(|scope| {
        scope.spawn(|| blocked = Some(driver.block(&[1])));
        // At its last look.
        stop.meet();
        scope.spawn(|| retired = Some(driver.smmu.retire()));
        // Nobody gets in any more, when a fault handler does not.
        loop {
            let before = driver.bench.machine.counters(SMMU);
            let _ = driver.smmu.take_faults(FaultLine::Global, &mut |_| ());
            if driver.bench.machine.counters(SMMU) == before {
                break;
            }
        }
        stop.meet();
    });
    let (blocked, retired) = (blocked.unwrap(), retired.unwrap());
    assert!(slow(&blocked) && slow(&retired), "{blocked:?}, {retired:?}");
    driver.recover();
    driver.smmu.retire().unwrap();
    assert_eq!(driver.bench.machine.smmu(SMMU, |smmu| smmu.peek32(smmu.bank(0, 0)) & 1), Some(0), "M");
}

/// One that was named twice counted twice in its bank, which was not given back any more.
#[test]
fn a3_c15_a_device_that_is_named_twice_is_refused() {
    let driver = two_guests(&named("generic v2"));
    assert_eq!(driver.plan(&[3, 3], 0), BUSY);
    driver.plan(&[3], 0).unwrap();
    assert_eq!(driver.install(&[3, 3]), BUSY);
    driver.install(&[3]).unwrap();
    driver.block(&[1, 3, 1]).unwrap();
    assert_eq!(driver.banks(), [1]);
    driver.forget(0).unwrap();
    driver.check();
}

/// The bank that the device had left was another domain's by then, and draining again: the device was busy with that.
#[test]
fn i6_an_owed_drain_does_not_wait_for_what_its_bank_does_next() {
    let (part, stop) = (named("generic v2"), Stop::nowhere());
    let config = SmmuConfig { polls: 1000, ..part.config.clone() };
    let driver =
        Driver::through(config, Setup::default(), two_banks(&part), |registers| Held::new(registers, stop.clone()));
    settle(&driver);
    driver.lose_syncs(1);
    assert!(slow(&driver.block(&[1])));
    driver.recover();
    driver.assign(&[3], 2).unwrap();
    let (mut blocked, mut withdrawn) = (None, None);
    thread::scope(|scope| {
        stop.at(STLBGSTATUS);
        scope.spawn(|| blocked = Some(driver.block(&[3])));
        stop.meet();
        withdrawn = Some(driver.withdraw(1));
        stop.meet();
    });
    assert_eq!((blocked, withdrawn), (Some(Ok(Streams::Fault)), Some(Ok(Streams::Fault))));
    driver.check();
}

/// A mate that came when the entry was in fault already, and whose own entry took the place of the one that was drained.
#[test]
fn i6_a_drain_is_owed_by_whatever_takes_the_place_of_the_entry() {
    let driver = Driver::new(Config { groups: 2, ..Config::generic_v2() });
    driver.add(1, &[0x10, 0x13]);
    driver.assign(&[1], 0).unwrap();
    driver.lose_syncs(1);
    assert!(slow(&driver.block(&[1])));
    // One entry for all of them.
    driver.add(2, &[0x11, 0x12, 0x13]);
    for n in [1, 2] {
        assert!(slow(&driver.withdraw(n)), "{n}");
        assert!(slow(&driver.plan(&[n], 1)), "{n}");
    }
    driver.recover();
    driver.assign(&[1, 2], 1).unwrap();
    assert_eq!([0x10, 0x11, 0x12, 0x13].map(|id| driver.reaches(id)), [Some(1); 4]);
    driver.check();
}

#[test]
fn a3_a4_a_bank_that_was_promised_and_then_poisoned_is_not_lost() {
    let driver = two_guests(&named("generic v2"));
    driver.plan(&[1], 2).unwrap();
    driver.lose_syncs(1);
    assert!(slow(&driver.block(&[1])));
    driver.recover();
    // The sync of another completes, and another plans.
    driver.flush(1, None).unwrap();
    let planned = driver.plan(&[3], 3);
    driver.abandon(&[1]);
    planned.or_else(|_| driver.plan(&[3], 3)).unwrap();
    driver.install(&[3]).unwrap();
    assert_eq!(driver.block(&[3]), Ok(Streams::Fault));
    driver.assign(&[1], 3).unwrap();
    assert_eq!(driver.reaches(IDS[0]), Some(3));
    driver.check();
}

#[test]
fn i14_a_promise_survives_a_drain_that_another_finishes() {
    for part in parts() {
        let (name, driver) = (part.name, two_guests(&part));
        driver.plan(&[1], 2).unwrap();
        driver.lose_syncs(1);
        assert!(slow(&driver.block(&[1])), "{name}");
        driver.recover();
        // It finishes the drain, and finds that the bank is promised all the same.
        assert!(exhausted(&driver.plan(&[3], 3), BANKS), "{name}");
        driver.block(&[1]).unwrap();
        driver.install(&[1]).unwrap();
        assert_eq!(driver.reaches(IDS[0]), Some(2), "{name}");
        driver.check();
    }
}

#[test]
fn s5_a_suspend_between_a_block_and_its_install_takes_nothing_from_either() {
    for part in [named("generic v2"), named("ap806"), named("mmu-401 small")] {
        let (name, driver) = (part.name, two_guests(&part));
        driver.plan(&[1], 2).unwrap();
        driver.block(&[1]).unwrap();
        driver.smmu.suspend().unwrap();
        lose_power(&driver.bench, &two_banks(&part), 7);
        assert!(exhausted(&driver.plan(&[3], 3), BANKS), "{name}");
        driver.smmu.resume().unwrap();
        watch_again(&driver.bench);
        assert_eq!(driver.reaches(IDS[0]), None, "{name}");
        driver.install(&[1]).unwrap();
        assert_eq!(IDS.map(|id| driver.reaches(id)), [Some(2), Some(1), None], "{name}");
        driver.check();
    }
}

#[test]
fn i6_a_device_that_left_a_shared_entry_before_owes_the_drain_of_whoever_left_last() {
    let driver = one_left_a_shared_entry();
    assert!(slow(&driver.block(&[2])));
    assert!(slow(&driver.block(&[1])), "what it had in flight has not drained");
    assert!(slow(&driver.withdraw(1)));
    driver.recover();
    driver.block(&[1]).unwrap();
    driver.assign(&[1], 1).unwrap();
    driver.block(&[1]).unwrap();
    driver.withdraw(1).unwrap();
    driver.withdraw(2).unwrap();
}

#[test]
fn c10_out_of_service_a_suspended_unit_is_put_in_fault_too() {
    let driver = Driver::new(Config::generic_v2());
    driver.add(1, &[0x10]);
    driver.assign(&[1], 0).unwrap();
    driver.smmu.suspend().unwrap();
    driver.block(&[1]).unwrap();
    driver.withdraw(1).unwrap();
    driver.forget(0).unwrap();
    driver.smmu.retire().unwrap();
    assert_eq!(driver.reaches(0x10), None, "its power was never off");
}
