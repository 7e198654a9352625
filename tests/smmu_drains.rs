//! Drains: hardware that walks ahead, syncs that are lost, banks that are poisoned and come back (contract I-6, I-7, I-8, A-4).

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

use common::before::Before;
use common::callbacks::Hooks;
use common::driver::{timed_out as slow, two_guests};
use common::parts::{Part, named, parts};
use common::{Bench, Guest, NOT_DRAINED, NOT_RESET, PAGE, SMMU, described, stream};
use iommu_assign::assign::{
    Cause, Device, DeviceSpec, DeviceState, Error, IommuError, IommuPower, Left, Quarantine, Removal,
};
use iommu_assign::smmu::{Reserved, Setup, Smmu, SmmuConfig};
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
