//! The one path of a context bank: reserved, live, draining, and free, poisoned, or the next domain's (contract I-6, I-7, I-8). With
//! hardware that walks ahead, syncs that are lost, and callers that come in between.

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

use std::sync::{Arc, Mutex};
use std::thread;

use common::before::Before;
use common::callbacks::{Asked, Hooks, Way};
use common::driver::{Driver, exhausted, lose_power, timed_out as slow, watch_again};
use common::parts::{Part, named, parts};
use common::stopping::{Held, STLBGSTATUS, Stop};
use common::{Anyone, Bench, Guest, NOT_DRAINED, NOT_RESET, PAGE, SMMU, described, stream};
use iommu_assign::assign::{
    Cause, Device, DeviceSpec, DeviceState, Domain, Error, FaultLine, IommuError, IommuFaults, IommuPower, Left,
    Quarantine, Removal, Resource, Service, Streams,
};
use iommu_assign::smmu::{Reserved, Setup, Smmu, SmmuConfig};
use iommu_assign::sync::Spin;
use machine::{Machine, ModelRegisters, Reached, Stage2Tables};
use smmu_model::{Config, Injection, SyncDelay, SyncRegister};

/// Registers of a part that walks ahead whenever it may: before each access every bank whose M is 1 has cached what it
/// finds for [`PAGE`].
type Eager = Before<Box<dyn Fn() + Send + Sync>>;

fn walking_ahead(registers: ModelRegisters, machine: &Machine, banks: u8) -> Eager {
    let machine = machine.clone();
    let walk = move || {
        machine.with_memory(SMMU, |smmu, memory| (0..banks).for_each(|bank| smmu.prefetch(memory, bank, PAGE)));
    };
    Before::new(registers, Box::new(walk))
}

fn eager(part: Part) -> Bench {
    let bench = Bench::new();
    let banks = part.model.banks.min(4);
    let through = |registers| walking_ahead(registers, &bench.machine, banks);
    bench.smmu_through(part.config, Setup::default(), part.model, through);
    bench
}

/// A unit that firmware left at work: bank 5 translates [`PAGE`] to [`PICTURE`] for stream 7, under a VMID that the driver
/// will use too.
fn left_by_firmware(bench: &Bench, model: &Config, tables: &Stage2Tables) -> Eager {
    let registers = bench.machine.add_smmu(SMMU, model.clone());
    let root = tables.stage2().root.value();
    bench.machine.smmu(SMMU, |smmu| {
        for n in 0..model.groups {
            smmu.write32(smmu.s2cr(n), 2 << 16);
            smmu.write32(smmu.smr(n), 0);
        }
        smmu.write32(smmu.cba2r(5), 1);
        smmu.write32(smmu.cbar(5), 1);
        // 40 bits of input and output, 4 KiB, from level 1 on.
        smmu.write32(smmu.bank(5, 0x30), 2 << 16 | 2 << 12 | 1 << 6 | 24);
        smmu.write64(smmu.bank(5, 0x20), root);
        smmu.write32(smmu.bank(5, 0x58), u32::MAX);
        smmu.write32(smmu.bank(5, 0), 1);
        smmu.write32(smmu.s2cr(3), 5);
        smmu.write32(smmu.smr(3), 1 << 31 | 7);
        smmu.write32(0, 1 << 21);
    });
    walking_ahead(registers, &bench.machine, model.banks)
}

const PICTURE: u64 = 0x2_0000_0000;

fn lose_syncs(bench: &Bench, syncs: u32) {
    bench.machine.smmu(SMMU, |smmu| (1..=syncs).for_each(|sync| smmu.inject(Injection::SyncTimesOut(sync))));
}

/// What was lost goes on.
fn release(bench: &Bench) {
    bench.machine.smmu(SMMU, smmu_model::Smmu::release_syncs);
}

fn timed_out(error: &Error) -> bool {
    matches!(error.cause, Cause::Iommu { error: IommuError::SyncTimeout(_), .. })
}

#[test]
fn i7_what_a_bank_walks_ahead_until_it_is_off_is_not_left_to_the_next_owner() {
    for part in parts() {
        let name = part.name;
        let mut bench = eager(part);
        let (one, two) = (bench.guest("one"), bench.guest("two"));
        let device = bench.add("dma", &[(0x10, 0)]);
        for guest in [&one, &two, &one] {
            bench.assign(&device, guest).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing), "{name}");
            drop(bench.deassign(&device).unwrap());
        }
        bench.audit();
    }
}

#[test]
fn i7_i8_a_sync_of_another_caller_does_not_clean_a_bank_that_went_on_walking() {
    for lost in [1, 2] {
        for part in parts().into_iter().filter(|part| part.model.banks > 1) {
            let name = part.name;
            let mut bench = eager(part);
            let (one, two, three) = (bench.guest("one"), bench.guest("two"), bench.guest("three"));
            let (device, mate) = (bench.add("dma", &[(0x10, 0)]), bench.add("mate", &[(0x20, 0)]));
            bench.assign(&device, &one).unwrap();
            bench.assign(&mate, &two).unwrap();
            lose_syncs(&bench, lost);
            let drained = bench.deassign(&device);
            // Where nothing but one sync drains a bank, the second loss meets another caller.
            assert!(timed_out(&drained.unwrap_err()), "{name}");
            for _ in 0..lost {
                release(&bench);
                let _ = bench.service.flush(&two.domain);
            }
            release(&bench);
            bench.service.flush(&two.domain).unwrap();
            // The next domain in the bank that `one` had, with its VMID, gets nothing of `one`.
            if bench.assign(&device, &three).is_ok() {
                assert_eq!(bench.dma(0x10), Reached::Memory(three.backing), "{name}");
            }
            bench.oracle.look_now(&bench.machine, SMMU, PAGE);
            bench.service.destroy_domain(&one.domain).unwrap();
            let _ = bench.deassign(&device);
            bench.assign(&device, &three).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(bench.dma(0x10), Reached::Memory(three.backing), "{name}");
            bench.audit();
        }
    }
}

/// One bank, which is poisoned; and the SMMU works again.
fn poisoned(model: Config) -> (Bench, Device, Guest) {
    let mut bench = Bench::new();
    bench.smmu_as(described(SMMU, &model), model);
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &one).unwrap();
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    assert!(timed_out(&bench.deassign(&device).unwrap_err()));
    (bench, device, two)
}

fn one_bank() -> Config {
    Config { banks: 1, stage2_banks: 0, sync_delay: SyncDelay::Polls(0), ..Config::generic_v2() }
}

#[test]
fn a4_an_assign_succeeds_at_once_when_every_bank_was_poisoned_and_the_smmu_works_again() {
    for part in parts() {
        let name = part.name;
        let mut bench = Bench::new();
        let banks = part.model.banks.min(2);
        let model = Config { banks, stage2_banks: part.model.stage2_banks.min(banks), ..part.model };
        bench.smmu_as(part.config, model);
        let guests = ["one", "two", "last"].map(|guest| bench.guest(guest));
        let devices = ["one", "two"].map(|device| bench.add(device, &[(u32::from(device == "two") << 4, 0)]));
        let (devices, last) = (&devices[..usize::from(banks)], &guests[2]);
        for (device, guest) in devices.iter().zip(&guests) {
            bench.assign(device, guest).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        for device in devices {
            lose_syncs(&bench, 1);
            assert!(timed_out(&bench.deassign(device).unwrap_err()), "{name}");
            release(&bench);
        }
        let device = &devices[0];
        bench.service.test_assign(device, &last.domain).unwrap_or_else(|error| panic!("{name}: {error}"));
        bench.assign(device, last).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(bench.dma(0), Reached::Memory(last.backing), "{name}");
        bench.audit();
    }
}

#[test]
fn a4_i8_an_assign_that_finds_the_smmu_still_stuck_says_so_and_changes_nothing() {
    let (mut bench, device, two) = poisoned(one_bank());
    let (reads, writes, refused) = bench.cost(|| bench.service.assign(&device, &two.domain).unwrap_err());
    assert!(timed_out(&refused), "{refused}");
    assert_eq!(
        (refused.left, reads, writes),
        (Left::Unchanged, 101, 0),
        "a look at the sync in flight, and the bound on polls"
    );
    assert_eq!(bench.state(&device), NOT_DRAINED);
    bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
    bench.assign(&device, &two).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Memory(two.backing));
    bench.audit();
}

#[test]
fn a5_an_ordinary_exhaustion_costs_no_register_access() {
    let mut bench = Bench::new();
    let model = one_bank();
    bench.smmu_as(described(SMMU, &model), model);
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let (device, other) = (bench.add("dma", &[(0x10, 0)]), bench.add("other", &[(0x20, 0)]));
    bench.assign(&device, &one).unwrap();
    let (reads, writes, refused) = bench.cost(|| bench.service.assign(&other, &two.domain).unwrap_err());
    assert!(matches!(refused.cause, Cause::Iommu { error: IommuError::Exhausted { .. }, .. }), "{refused}");
    assert_eq!((reads, writes), (0, 0));
}

#[test]
fn a4_a_retry_costs_a_look_at_the_sync_that_was_lost_and_what_retires_the_bank() {
    let (bench, device, two) = poisoned(one_bank());
    bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
    bench.oracle.allow(device.label(), &[(0x10, 0)], &[two.backing]);
    let (reads, writes, ()) = bench.cost(|| bench.service.assign(&device, &two.domain).unwrap());
    assert_eq!((reads, writes), (2, 1 + 7), "STATUS, SCTLR = 0, FSR; then n+6 W as ever");
}

#[test]
fn i7_q17_what_firmwares_banks_walk_ahead_until_they_are_off_is_not_left_to_the_first_owner() {
    for reserved in [false, true] {
        let mut bench = Bench::new();
        let model = Config::generic_v2();
        let mut tables = Stage2Tables::new(&bench.machine, 0x9000_0000, 40, 40);
        tables.map(PAGE, PICTURE, true);
        let registers = left_by_firmware(&bench, &model, &tables);
        assert_eq!(bench.dma(7), Reached::Memory(PICTURE), "as firmware left it");
        let mut setup = Setup::default();
        if reserved {
            setup.reserved.push(Reserved { streams: vec![stream(SMMU, 7, 0)], space: tables.stage2() });
            bench.oracle.allow(&"boot".into(), &[(7, 0)], &[PICTURE]);
        }
        let smmu = Smmu::probe_with(described(SMMU, &model), setup, registers, bench.masters.clone()).unwrap();
        bench.oracle.watch(&bench.machine, SMMU, PAGE);
        bench.service.register_iommu(Arc::new(smmu)).unwrap();
        assert_eq!(bench.dma(7), if reserved { Reached::Memory(PICTURE) } else { Reached::Fault });
        // Every VMID that there is gets an owner.
        for n in 0..model.banks - u8::from(reserved) {
            let guest = bench.guest(&format!("guest {n}"));
            let id = 0x10 + u32::from(n) * 3;
            let device = bench.add(&format!("dma {n}"), &[(id, 0)]);
            bench.assign(&device, &guest).unwrap();
            assert_eq!(bench.dma(id), Reached::Memory(guest.backing), "{reserved}, {n}");
        }
        bench.audit();
    }
}

/// Where the root of a bank cannot be replaced, an entry that does not take FAULT keeps its stream in the guest's memory.
#[test]
fn i8_a7_a_domain_whose_bank_an_entry_still_names_keeps_its_tables() {
    let (mut bench, part) = (Bench::new(), named("ap806"));
    bench.smmu_as(SmmuConfig { read_back: true, ..part.config }, part.model);
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::WriteDoesNotStick(smmu.s2cr(0))));
    let error = bench.service.deassign(&device).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::WriteLost { .. }, .. }), "{error}");
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing), "nothing can be done about it");
    assert!(timed_out(&bench.service.destroy_domain(&guest.domain).unwrap_err()));
    let held = bench.service.retire_domain(&guest.domain).unwrap().expect("the tables must stay");
    let (_held, _) = held.redeem().unwrap_err();
}

/// The tables of a domain that had ended were redeemed through the driver of an SMMU that was not in service any more: it
/// switched off the bank that the new driver had given to another, whose DMA then passed untranslated.
#[test]
fn i8_c9_tables_that_are_redeemed_after_their_smmu_has_gone_touch_no_register_of_its_successor() {
    let mut bench = Bench::new();
    let model = Config::generic_v2();
    bench.smmu(SMMU, model.clone());
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &one).unwrap();
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    bench.remove(&device).unwrap_err();
    let held = bench.service.retire_domain(&one.domain).unwrap().expect("its drain is not confirmed");
    assert_eq!(
        bench.service.unregister_iommu(SMMU).unwrap_err().cause,
        Cause::InUse { devices: 1, first: "dma".into() }
    );
    assert!(timed_out(&bench.service.force_unregister_iommu(SMMU).unwrap_err()));
    bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
    bench.service.force_unregister_iommu(SMMU).unwrap();
    // The same hardware, and a new driver.
    bench.smmu(SMMU, model);
    let device = bench.add("next", &[(0x10, 0)]);
    bench.assign(&device, &two).unwrap();
    let before = bench.machine.counters(SMMU);
    held.redeem().unwrap();
    assert_eq!(bench.machine.counters(SMMU), before);
    assert_eq!(bench.dma(0x10), Reached::Memory(two.backing));
}

// --- the driver alone: what comes in between ---

const BANKS: Resource = Resource::ContextBanks;
const IDS: [u32; 3] = [0x10, 0x21, 0x42];

/// Whatever a part has, two banks, and an entry for each of three devices.
fn two_banks(part: &Part) -> Config {
    let (groups, stage2_banks) = (part.model.groups.max(3), part.model.stage2_banks.min(1));
    Config { banks: 2, groups, stage2_banks, ..part.model.clone() }
}

/// Devices 1 and 2 are in guests 0 and 1, which have a bank each; device 3 is in fault.
fn two_guests(part: &Part) -> Driver {
    let driver = Driver::with(part.config.clone(), Setup::default(), two_banks(part));
    settle(&driver);
    driver
}

fn settle<R: iommu_assign::smmu::Registers + 'static>(driver: &Driver<R>) {
    (1..).zip(IDS).for_each(|(n, id)| driver.add(n, &[id]));
    driver.assign(&[1], 0).unwrap();
    driver.assign(&[2], 1).unwrap();
}

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

#[test]
fn i6_a_device_that_left_before_owes_the_drain_of_an_entry_that_its_mate_kept_until_now() {
    let driver = Driver::new(Config::generic_v2());
    driver.add(1, &[0x10]);
    driver.add(2, &[0x10]);
    driver.assign(&[1, 2], 0).unwrap();
    assert_eq!(driver.block(&[1]), Ok(Streams::Live));
    driver.lose_syncs(1);
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
fn i8_the_end_of_a_domain_waits_for_the_second_sync_of_a_part_that_splits_64_bit_writes() {
    let part = named("ap806");
    let driver = two_guests(&part);
    driver.inject(Injection::SyncTimesOut(2));
    assert!(slow(&driver.block(&[1])));
    // M is 0 behind the first sync, but what was walked up to there is cached still.
    assert!(slow(&driver.forget(0)), "its tables may be read");
    assert!(slow(&driver.block(&[1])));
    assert!(slow(&driver.withdraw(1)));
    assert!(slow(&driver.smmu.retire()));
    driver.recover();
    driver.forget(0).unwrap();
    driver.block(&[1]).unwrap();
    driver.withdraw(1).unwrap();
    driver.assign(&[3], 2).unwrap();
    driver.check();
    // Through the service, and where the second sync is lost by the end of the domain itself.
    let mut bench = eager(named("ap806"));
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &one).unwrap();
    lose_syncs(&bench, 1);
    assert!(timed_out(&bench.deassign(&device).unwrap_err()));
    bench.machine.smmu(SMMU, smmu_model::Smmu::release_syncs);
    lose_syncs(&bench, 1);
    assert!(timed_out(&bench.service.destroy_domain(&one.domain).unwrap_err()));
    bench.machine.smmu(SMMU, smmu_model::Smmu::release_syncs);
    bench.service.destroy_domain(&one.domain).unwrap();
    bench.assign(&device, &two).unwrap();
    bench.audit();
}

#[test]
fn i6_nothing_says_ok_over_a_drain_that_is_owed_through_the_service_on_every_part() {
    for part in parts() {
        let name = part.name;
        let mut bench = Bench::new();
        bench.part(part);
        let (one, two) = (bench.guest("one"), bench.guest("two"));
        let device = bench.add("dma", &[(0x10, 0)]);
        bench.assign(&device, &one).unwrap();
        lose_syncs(&bench, 1);
        let error = bench.deassign(&device).unwrap_err();
        assert!(timed_out(&error) && error.left == Left::Quarantined, "{name}: {error}");
        assert_eq!(bench.state(&device), NOT_DRAINED, "{name}");
        let service = &bench.service;
        for place in [Quarantine::Faults, Quarantine::Silence(two.domain.space().stage2)] {
            let error = service.quarantine(&device, place).unwrap_err();
            assert!(timed_out(&error) && error.left == Left::Quarantined, "{name}: {error}");
        }
        assert!(timed_out(&service.assign(&device, &two.domain).unwrap_err()), "{name}");
        assert!(timed_out(&service.assign(&device, &one.domain).unwrap_err()), "{name}");
        assert!(timed_out(&service.destroy_domain(&one.domain).unwrap_err()), "{name}");
        assert_eq!(bench.state(&device), NOT_DRAINED, "{name}");
        let error = service.remove(device.key()).unwrap_err();
        assert!(timed_out(&error) && error.left == Left::Going, "{name}: {error}");
        assert_eq!(bench.state(&device), DeviceState::Going, "{name}");
        assert_eq!(service.assign(&device, &two.domain).unwrap_err().cause, Cause::Gone, "{name}");
        assert!(timed_out(&service.remove(device.key()).unwrap_err()), "{name}");
        bench.machine.smmu(SMMU, smmu_model::Smmu::release_syncs);
        assert_eq!(service.remove(device.key()), Ok(Removal::Done), "{name}");
        service.destroy_domain(&one.domain).unwrap();
        service.unregister_iommu(SMMU).unwrap();
    }
}

#[test]
fn i14_a_quarantined_device_is_drained_and_reset_by_the_assign_that_comes_next() {
    let (mut bench, resets) = (Bench::v2(), Arc::new(Mutex::new(0)));
    let count = resets.clone();
    let hooks = Hooks::new().reset(move |_| {
        *count.lock().unwrap() += 1;
        Ok(())
    });
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let spec = bench.spec("dma", &[(0x10, 0)]);
    let device = bench.service.add(DeviceSpec { hooks: Arc::new(hooks), ..spec }).unwrap();
    bench.assign(&device, &one).unwrap();
    lose_syncs(&bench, 1);
    bench.deassign(&device).unwrap_err();
    assert_eq!((*resets.lock().unwrap(), bench.state(&device)), (0, NOT_DRAINED), "no hook before the drain");
    bench.machine.smmu(SMMU, smmu_model::Smmu::release_syncs);
    bench.assign(&device, &two).unwrap();
    assert_eq!(*resets.lock().unwrap(), 1);
    bench.service.quarantine(&device, Quarantine::Faults).unwrap();
    bench.oracle.allow(device.label(), &[(0x10, 0)], &[one.backing]);
    assert_eq!((*resets.lock().unwrap(), bench.state(&device)), (1, NOT_RESET));
    bench.service.assign(&device, &one.domain).unwrap();
    assert_eq!(*resets.lock().unwrap(), 2);
    bench.audit();
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

// --- through the service, from a hook that runs between a block and its install ---

/// A service over an SMMU with two banks, and devices that may reach all its guests.
struct Rig {
    bench: Bench,
    service: Arc<Service<Spin>>,
    way: Way<Spin>,
    domains: [Domain<Spin>; 3],
    backing: [u64; 3],
}

impl Rig {
    fn new(part: &Part) -> Self {
        let mut bench = Bench::with_policy(Box::new(Anyone));
        let smmu = bench.smmu_as(part.config.clone(), two_banks(part));
        let way = Way::new();
        let service = Arc::new(Service::new(Box::new(Asked::new(&way, |_, _| true))));
        way.lead_to(&service);
        service.register_iommu(smmu).unwrap();
        let guests = ["one", "two", "three"].map(|name| (name, bench.guest(name)));
        let backing = [0, 1, 2].map(|n: usize| guests[n].1.backing);
        let domains =
            guests.map(|(name, guest)| service.create_domain(name.into(), guest.domain.space().stage2).unwrap());
        for (name, id) in [("moves", IDS[0]), ("stays", IDS[1]), ("comes", IDS[2])] {
            bench.oracle.allow(&name.into(), &[(id, 0)], &backing);
        }
        Self { bench, service, way, domains, backing }
    }

    fn add(&mut self, name: &str, id: u32) -> Device {
        let spec = self.bench.spec(name, &[(id, 0)]);
        self.service.add(spec).unwrap()
    }

    /// A device whose reset does this, once.
    fn hooked(&mut self, name: &str, id: u32, act: impl FnOnce(&Service<Spin>) + Send + 'static) -> Device {
        let (way, act) = (self.way.clone(), Mutex::new(Some(act)));
        let hooks = Hooks::new().reset(move |_| {
            if let Some(act) = act.lock().unwrap().take() {
                act(&way.service().unwrap());
            }
            Ok(())
        });
        let spec = self.bench.spec(name, &[(id, 0)]);
        self.service.add(DeviceSpec { hooks: Arc::new(hooks), ..spec }).unwrap()
    }

    fn reaches(&self, id: u32, domain: usize) -> bool {
        self.bench.dma(id) == Reached::Memory(self.backing[domain])
    }

    fn audit(&self) {
        let mut findings = Vec::new();
        self.service.audit(&mut |finding| findings.push(finding.to_string()));
        assert_eq!(findings, [""; 0]);
    }
}

#[test]
fn i14_a_bank_is_free_while_the_hooks_of_a_reassign_run() {
    for part in parts() {
        let mut rig = Rig::new(&part);
        let (stays, comes) = (rig.add("stays", IDS[1]), rig.add("comes", IDS[2]));
        let [one, two, three] = rig.domains.clone();
        let (came, third) = (comes.clone(), three.clone());
        let moves = rig.hooked("moves", IDS[0], move |service| service.assign(&came, &third).unwrap());
        rig.service.assign(&moves, &one).unwrap();
        rig.service.assign(&stays, &two).unwrap();
        rig.service.reassign(&moves, &two).unwrap();
        assert!(rig.reaches(IDS[0], 1) && rig.reaches(IDS[1], 1) && rig.reaches(IDS[2], 2), "{}", part.name);
        rig.audit();
        drop(rig.service.deassign(&comes).unwrap());
        rig.service.assign(&comes, &one).unwrap();
        assert!(rig.reaches(IDS[2], 0), "{}", part.name);
    }
}

#[test]
fn c9_i14_an_smmu_that_goes_while_the_hooks_of_a_reassign_run_leaves_its_device_in_fault() {
    let mut rig = Rig::new(&named("generic v2"));
    let [one, two, _] = rig.domains.clone();
    let moves = rig.hooked("moves", IDS[0], |service| service.force_unregister_iommu(SMMU).unwrap());
    rig.service.assign(&moves, &one).unwrap();
    let error = rig.service.reassign(&moves, &two).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::ProviderGone, .. }), "{error}");
    assert_eq!(error.left, Left::Quarantined);
    assert_eq!(rig.bench.dma(IDS[0]), Reached::Fault);
    rig.service.destroy_domain(&one).unwrap();
}

#[test]
fn c8_i10_a_domain_ends_and_its_bank_is_free_though_a_removal_found_a_call_inside() {
    for part in parts() {
        let name = part.name;
        let mut rig = Rig::new(&part);
        let (moves, comes, stays) = (rig.add("moves", IDS[0]), rig.add("comes", IDS[2]), rig.add("stays", IDS[1]));
        let [one, two, three] = rig.domains.clone();
        rig.service.assign(&moves, &one).unwrap();
        rig.service.assign(&stays, &two).unwrap();
        let inside = moves.enter::<Spin>().unwrap();
        let error = rig.service.remove(moves.key()).unwrap_err();
        assert_eq!((error.cause, error.left), (Cause::StillInUse { calls: 1 }, Left::Going), "{name}");
        assert_eq!(rig.bench.dma(IDS[0]), Reached::Fault, "{name}");
        assert_eq!(rig.service.find(moves.key()).map(|info| info.state), Some(DeviceState::Going), "{name}");
        rig.audit();
        rig.service.destroy_domain(&one).unwrap();
        rig.service.assign(&comes, &three).unwrap();
        assert!(rig.reaches(IDS[2], 2), "{name}");
        drop(inside);
        assert_eq!(rig.service.remove(moves.key()), Ok(Removal::Done), "{name}");
        rig.audit();
        for device in [&comes, &stays] {
            rig.service.remove(device.key()).unwrap();
        }
        rig.service.unregister_iommu(SMMU).unwrap();
    }
}

#[test]
fn i6_a_device_that_left_a_shared_entry_before_owes_the_drain_of_whoever_left_last() {
    let driver = Driver::new(Config::generic_v2());
    driver.add(1, &[0x10]);
    driver.add(2, &[0x10]);
    driver.assign(&[1, 2], 0).unwrap();
    assert_eq!(driver.block(&[1]), Ok(Streams::Live));
    driver.lose_syncs(1);
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
