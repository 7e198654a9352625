//! Suspend and resume, forced removal, shutdown, crash, and writes that do not hold: C-9, S-5, S-8, A-7.

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

use common::driver::{Driver, exhausted, lose_power, timed_out, watch_again};
use common::parts::{named, parts};
use common::presets::{accesses, names};
use common::{Bench, SMMU, described};
use iommu_assign::assign::{Cause, FaultLine, IommuError, IommuPower, Left};
use iommu_assign::smmu::{Implementation, Setup, SmmuConfig};
use iommu_assign::sync::Waited;
use machine::Reached;
use smmu_model::{Config, Injection, SyncRegister};

#[test]
fn s5_resume_brings_back_what_the_shadow_says_on_every_part() {
    for part in parts() {
        let (name, model) = (part.name, part.model.clone());
        let mut bench = Bench::new();
        bench.part(part);
        let (one, two) = (bench.guest("one"), bench.guest("two"));
        let single = model.banks == 1;
        let (stays, moves) = (bench.add("stays", &[(0x10, 0x1)]), bench.add("moves", &[(0x20, 0)]));
        bench.assign(&stays, &one).unwrap();
        bench.assign(&moves, &one).unwrap();
        bench.service.suspend_iommu(SMMU).unwrap();
        lose_power(&bench, &model, 77);
        let before = bench.machine.counters(SMMU);
        // Meanwhile on paper: one device goes, one moves, one comes.
        if !single {
            bench.service.reassign(&moves, &two.domain).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        bench.service.flush(&one.domain).unwrap();
        assert_eq!(bench.machine.counters(SMMU), before, "{name}: no register was touched");
        let moved = if single { &one } else { &two };
        bench.oracle.allow(moves.label(), &[(0x20, 0)], &[moved.backing]);
        bench.service.resume_iommu(SMMU).unwrap_or_else(|error| panic!("{name}: {error}"));
        watch_again(&bench);
        assert_eq!(bench.dma(0x11), Reached::Memory(one.backing), "{name}");
        assert_eq!(bench.dma(0x20), Reached::Memory(moved.backing), "{name}");
        assert_eq!(bench.dma(0x30), Reached::Fault, "{name}");
        bench.audit();
        bench.service.remove(moves.key()).unwrap();
        bench.oracle.forget(moves.label());
        drop(bench.deassign(&stays).unwrap());
        bench.audit();
    }
}

#[test]
fn s5_a_resume_that_fails_leaves_it_suspended() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    bench.service.suspend_iommu(SMMU).unwrap();
    let busy = Cause::Iommu { iommu: SMMU, error: IommuError::Busy };
    assert_eq!(bench.service.suspend_iommu(SMMU).unwrap_err().cause, busy, "it is suspended already");
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    let timeout = Cause::Iommu { iommu: SMMU, error: IommuError::SyncTimeout(Waited { polls: 100, time: None }) };
    assert_eq!(bench.service.resume_iommu(SMMU).unwrap_err().cause, timeout);
    let (reads, writes, flushed) = bench.cost(|| bench.service.flush(&guest.domain));
    assert_eq!((reads, writes, flushed), (0, 0, Ok(())), "its registers are not touched");
    bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
    bench.service.resume_iommu(SMMU).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
    bench.audit();
}

#[test]
fn i8_poison_is_forgotten_by_a_resume_that_reset_the_hardware_and_not_by_one_that_failed() {
    let model = Config { banks: 1, stage2_banks: 0, ..Config::generic_v2() };
    let driver = Driver::new(model.clone());
    driver.add(1, &[0x10]);
    driver.add(2, &[0x20]);
    driver.assign(&[1], 0).unwrap();
    driver.inject(Injection::StatusNeverClears(SyncRegister::Global));
    assert!(timed_out(&driver.block(&[1])));
    driver.smmu.suspend().unwrap();
    assert!(timed_out(&driver.smmu.resume()));
    assert_eq!(driver.banks(), [0], "nothing has drained it");
    lose_power(&driver.bench, &model, 5);
    driver.smmu.resume().unwrap();
    watch_again(&driver.bench);
    assert_eq!(driver.banks(), [0; 0]);
    driver.assign(&[2], 1).unwrap();
    driver.block(&[2]).unwrap();
    driver.assign(&[1], 2).unwrap();
    assert_eq!(driver.reaches(0x10), Some(2));
    driver.check();
}

#[test]
fn i4_a7_a_bank_that_an_entry_may_name_is_trusted_again_only_after_a_resume() {
    let part = named("generic v2");
    let model = Config { banks: 2, stage2_banks: 0, ..part.model };
    let driver = Driver::with(SmmuConfig { read_back: true, ..part.config }, Setup::default(), model.clone());
    (1..).zip([0x10, 0x20, 0x40]).for_each(|(n, id)| driver.add(n, &[id]));
    driver.assign(&[1], 0).unwrap();
    driver.inject(Injection::WriteDoesNotStick(0xc00));
    assert!(matches!(driver.block(&[1]), Err(IommuError::WriteLost { .. })));
    driver.recover();
    driver.assign(&[2], 1).unwrap();
    let banks = iommu_assign::assign::Resource::ContextBanks;
    assert!(exhausted(&driver.plan(&[3], 2), banks), "the first bank stays on");
    driver.smmu.suspend().unwrap();
    lose_power(&driver.bench, &model, 9);
    driver.smmu.resume().unwrap();
    watch_again(&driver.bench);
    driver.assign(&[3], 2).unwrap();
    assert_eq!([0x10, 0x20, 0x40].map(|id| driver.reaches(id)), [None, Some(1), Some(2)]);
    // Its next retirement is an ordinary one.
    driver.block(&[3]).unwrap();
    driver.assign(&[1], 3).unwrap();
    assert_eq!(driver.reaches(0x10), Some(3));
    driver.check();
}

#[test]
fn i8_a_bank_that_was_poisoned_is_clean_after_resume() {
    let mut bench = Bench::new();
    let model = Config { banks: 1, ..Config::generic_v2() };
    bench.smmu(SMMU, model.clone());
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let (device, other) = (bench.add("dma", &[(0x10, 0)]), bench.add("other", &[(0x20, 0)]));
    bench.assign(&device, &one).unwrap();
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    bench.deassign(&device).unwrap_err();
    assert!(bench.assign(&other, &two).is_err());
    bench.service.suspend_iommu(SMMU).unwrap();
    lose_power(&bench, &model, 5);
    bench.service.resume_iommu(SMMU).unwrap();
    watch_again(&bench);
    bench.assign(&other, &two).unwrap();
    bench.assign(&device, &two).unwrap();
    bench.audit();
}

#[test]
fn c9_a_forced_unregister_faults_everything_and_touches_no_register_afterwards() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let (device, idle) = (bench.add("dma", &[(0x10, 0)]), bench.add("idle", &[(0x20, 0)]));
    bench.assign(&device, &guest).unwrap();
    let handle = bench.service.iommu(SMMU).unwrap();
    bench.service.force_unregister_iommu(SMMU).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Fault);
    assert_eq!(bench.machine.smmu(SMMU, |smmu| smmu.peek32(0) & 1), Some(0), "clients stay enabled");
    let before = bench.machine.counters(SMMU);
    let gone = Cause::Iommu { iommu: SMMU, error: IommuError::ProviderGone };
    assert_eq!(bench.service.assign(&idle, &guest.domain).unwrap_err().cause, gone);
    let error = bench.service.deassign(&device).unwrap_err();
    assert_eq!((error.cause, error.left), (gone, Left::Quarantined));
    let _ = handle.take_faults(FaultLine::Global, &mut |_| panic!("nothing is read"));
    bench.service.flush(&guest.domain).unwrap();
    bench.service.destroy_domain(&guest.domain).unwrap();
    for device in [device, idle] {
        let _ = bench.service.remove(device.key());
        assert!(bench.service.find(device.key()).is_none());
    }
    handle.crash().unwrap();
    assert_eq!(bench.machine.counters(SMMU), before);
    // The same hardware, registered again, knows nothing of the old devices.
    let part = named("generic v2");
    bench.part(part);
    let device = bench.add("again", &[(0x10, 0)]);
    assert_eq!(bench.dma(0x10), Reached::Fault);
    bench.remove(&device).unwrap();
    bench.audit();
}

#[test]
fn c9_a_forced_unregister_that_does_not_drain_lets_nothing_in_and_can_be_repeated() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let (device, late) = (bench.add("dma", &[(0x10, 0)]), bench.add("late", &[(0x20, 0)]));
    bench.assign(&device, &guest).unwrap();
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    let error = bench.service.force_unregister_iommu(SMMU).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::SyncTimeout(_), .. }), "{error}");
    assert_eq!(bench.dma(0x10), Reached::Fault);
    let gone = Cause::Iommu { iommu: SMMU, error: IommuError::ProviderGone };
    assert_eq!(bench.service.assign(&late, &guest.domain).unwrap_err().cause, gone);
    bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
    bench.service.force_unregister_iommu(SMMU).unwrap();
    assert_eq!(bench.service.force_unregister_iommu(SMMU).unwrap_err().cause, Cause::NotFound);
}

#[test]
fn c9_a_forced_unregister_of_a_suspended_instance_brings_it_back_to_put_it_in_fault_on_every_part() {
    for part in parts() {
        for off in [false, true] {
            let (name, model) = (part.name, part.model.clone());
            let mut bench = Bench::new();
            bench.smmu_as(part.config.clone(), model.clone());
            let guest = bench.guest("guest");
            let device = bench.add("dma", &[(0x10, 0)]);
            bench.assign(&device, &guest).unwrap();
            bench.service.suspend_iommu(SMMU).unwrap();
            bench.oracle.allow(device.label(), &[(0x10, 0)], &[]);
            // The power was taken away or not: streams translate still, or pass through a part out of reset.
            bench.machine.observe(SMMU, Box::new(|_, _| ()));
            if off {
                lose_power(&bench, &model, 11);
            }
            bench.service.force_unregister_iommu(SMMU).unwrap_or_else(|error| panic!("{name}: {error}"));
            for id in 0..0x40 {
                assert_eq!(bench.dma(id), Reached::Fault, "{name}, off: {off}");
            }
            let before = bench.machine.counters(SMMU);
            assert_eq!(bench.service.remove(device.key()).unwrap_err().left, Left::Removed, "{name}");
            bench.service.destroy_domain(&guest.domain).unwrap();
            assert_eq!(bench.machine.counters(SMMU), before, "{name}");
        }
    }
}

#[test]
fn s8_a_crash_invalidates_behind_the_last_entry_and_starts_one_sync() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    let groups = Config::generic_v2().groups;
    let trace = accesses(&mut bench, |bench| bench.service.iommu(SMMU).unwrap().crash().unwrap());
    let names = names(&trace);
    let (entries, rest) = names.split_at(groups.into());
    assert!(entries.iter().all(|name| name.starts_with("S2CR")), "{entries:?}");
    assert_eq!(rest[..3], ["TLBIALLNSNH", "sTLBGSYNC", "sTLBGSTATUS"]);
}

#[test]
fn s8_shutdown_and_crash_leave_every_stream_in_fault_with_clients_enabled() {
    for crash in [false, true] {
        for part in parts() {
            let name = part.name;
            let mut bench = Bench::new();
            bench.smmu_as(SmmuConfig { atomic_polls: 50, ..part.config.clone() }, part.model);
            let guest = bench.guest("guest");
            let device = bench.add("dma", &[(0x10, 0x1)]);
            bench.assign(&device, &guest).unwrap();
            assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing), "{name}");
            let handle = bench.service.iommu(SMMU).unwrap();
            if crash {
                handle.crash().unwrap();
            } else {
                bench.service.shutdown().unwrap();
            }
            for id in 0..0x40 {
                assert_eq!(bench.dma(id), Reached::Fault, "{name}");
            }
            let scr0 = if part.config.secure_config_access { 0x400 } else { 0 };
            assert_eq!(bench.machine.smmu(SMMU, |smmu| smmu.peek32(scr0) & 1), Some(0), "{name}");
        }
    }
}

#[test]
fn s8_a_crash_polls_a_bounded_number_of_times() {
    let bench = Bench::new();
    let part = named("generic v2");
    bench.smmu_as(SmmuConfig { atomic_polls: 9, ..part.config }, part.model);
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    let handle = bench.service.iommu(SMMU).unwrap();
    let (reads, _, stopped) = bench.cost(|| handle.crash());
    assert_eq!(reads, 9);
    let (error, timeout) = (stopped.unwrap_err(), IommuError::SyncTimeout(Waited { polls: 9, time: None }));
    assert_eq!((error.cause, error.left), (Cause::Iommu { iommu: SMMU, error: timeout }, Left::Closing));
}

#[test]
fn a7_in_read_back_mode_a_write_that_does_not_hold_is_found_at_once() {
    let part = named("generic v2");
    let config = SmmuConfig { read_back: true, ..part.config };
    let lost = |cause: &Cause| matches!(cause, Cause::Iommu { error: IommuError::WriteLost { .. }, .. });
    // An entry that does not take what is written: refused at add, and nothing of it stays.
    let mut bench = Bench::new();
    bench.smmu_as(config.clone(), part.model.clone());
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::WriteDoesNotStick(0x800)));
    let spec = bench.spec("dma", &[(0x10, 0)]);
    let error = bench.service.add(spec).unwrap_err();
    assert!(lost(&error.cause), "{error}");
    bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
    let device = bench.add("dma", &[(0x10, 0)]);
    // A bank whose root or control does not hold: no entry is turned to it.
    let guest = bench.guest("guest");
    for (bank, register) in [(0, 0x20), (1, 0)] {
        let at = bench.machine.smmu(SMMU, |smmu| smmu.bank(bank, register)).unwrap();
        bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::WriteDoesNotStick(at)));
        let error = bench.assign(&device, &guest).unwrap_err();
        assert!(lost(&error.cause) && error.left == Left::Quarantined, "{error}");
        assert_eq!(bench.dma(0x10), Reached::Fault);
        bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
        // That bank is not trusted again; the next one serves.
        bench.assign(&device, &guest).unwrap();
        assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
        drop(bench.deassign(&device).unwrap());
    }
    // An entry that does not turn.
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::WriteDoesNotStick(0xc00)));
    let error = bench.assign(&device, &guest).unwrap_err();
    assert!(lost(&error.cause), "{error}");
    assert_eq!(bench.dma(0x10), Reached::Fault);
}

#[test]
fn a7_an_entry_that_does_not_take_fault_ends_at_the_empty_root() {
    let part = named("generic v2");
    let mut bench = Bench::new();
    bench.smmu_as(SmmuConfig { read_back: true, ..part.config }, part.model);
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::WriteDoesNotStick(0xc00)));
    let error = bench.deassign(&device).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::WriteLost { .. }, .. }), "{error}");
    // The S2CR still names the bank, which stays on: with no tables behind it, nothing gets through.
    assert_eq!(bench.dma(0x10), Reached::Fault);
}

#[test]
fn i8_a_domain_ends_though_a_drain_is_not_confirmed_and_its_tables_are_held() {
    let mut bench = Bench::v2();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &one).unwrap();
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    bench.deassign(&device).unwrap_err();
    let token = bench.service.retire_domain(&one.domain).unwrap().expect("the tables are held");
    assert_eq!(token.label(), one.domain.label());
    assert_eq!(bench.service.destroy_domain(&one.domain).unwrap_err().cause, Cause::Gone);
    let (token, error) = token.redeem().unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::SyncTimeout(_), .. }), "{error}");
    bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
    token.redeem().unwrap();
    bench.assign(&device, &two).unwrap();
    drop(bench.deassign(&device).unwrap());
    assert!(bench.service.retire_domain(&two.domain).unwrap().is_none(), "nothing is held");
    bench.audit();
}

/// What had no light read as 0: a sync that was lost was taken for complete, and the domain's tables were given back.
#[test]
fn i8_a_sync_that_was_lost_is_not_confirmed_while_it_is_suspended() {
    for part in parts() {
        let (name, driver) = (part.name, Driver::part(part));
        driver.add(1, &[0x10]);
        driver.assign(&[1], 0).unwrap();
        driver.lose_syncs(1);
        assert!(timed_out(&driver.block(&[1])), "{name}");
        driver.smmu.suspend().unwrap();
        for told in [driver.forget(0), driver.block(&[1]).map(drop), driver.withdraw(1).map(drop)] {
            assert!(timed_out(&told), "{name}: {told:?}");
        }
        driver.recover();
        driver.smmu.resume().unwrap();
        driver.forget(0).unwrap();
        driver.withdraw(1).unwrap();
        driver.check();
    }
}

/// What firmware takes for fault was tried anew, on the entry of a device: on a part that takes bypass as it is, it passed.
#[test]
fn i3_q12_a_resume_tries_nothing_on_what_is_translated() {
    let model = Config { groups: 1, ..Config::generic_v2() };
    let mut config = described(SMMU, &model);
    config.implementation = Implementation::Qualcomm;
    let driver = Driver::with(config, Setup::default(), model);
    driver.add(1, &[0x10]);
    driver.assign(&[1], 0).unwrap();
    driver.smmu.suspend().unwrap();
    driver.smmu.resume().unwrap();
    assert_eq!(driver.reaches(0x10), Some(0));
    driver.check();
}
