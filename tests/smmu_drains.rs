//! Banks that are retired on hardware that walks ahead, and drains that are not confirmed (contract I-7, I-8).

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

use common::before::Before;
use common::parts::{Part, named, parts};
use common::stopping::{Held, STLBGSTATUS, Stop};
use std::sync::Arc;
use std::thread;

use common::{Bench, Guest, PAGE, SMMU, block, described, stream};
use iommu_assign::assign::{Cause, Device, DeviceState, Error, Iommu, IommuError, Left};
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
fn i7_i8_a_sync_of_somebody_else_does_not_clean_a_bank_that_went_on_walking() {
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
            // Where nothing but one sync drains a bank, the second loss meets somebody else.
            assert!(timed_out(&drained.unwrap_err()), "{name}");
            for _ in 0..lost {
                let _ = bench.service.flush(&two.domain);
            }
            bench.service.flush(&two.domain).unwrap();
            // Whoever gets the bank that `one` had, with its VMID, gets nothing of `one`.
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
    assert_eq!((refused.left, reads, writes), (Left::Unchanged, 100, 2), "TLBIVMID, sTLBGSYNC, and the bound on polls");
    assert_eq!(bench.service.find(device.key()).unwrap().state, DeviceState::Quarantined);
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
fn a4_what_a_retry_costs_is_one_drain_more() {
    let (bench, device, two) = poisoned(one_bank());
    bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
    bench.oracle.allow(device.label(), &[(0x10, 0)], &[two.backing]);
    let (reads, writes, ()) = bench.cost(|| bench.service.assign(&device, &two.domain).unwrap());
    assert_eq!((reads, writes), (1, 3 + 7), "TLBIVMID, sTLBGSYNC, SCTLR; then n+6 W as ever");
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

/// A bank was promised to the move that was to empty it, the move failed, and before the promise was taken back another
/// plan took the bank: it was never free again.
#[test]
fn a3_a4_a_bank_that_was_promised_and_then_poisoned_is_not_lost() {
    let mut bench = Bench::new();
    let model = Config { banks: 2, stage2_banks: 0, ..Config::generic_v2() };
    let smmu = bench.smmu(SMMU, model);
    let guests = ["one", "two", "three", "four"].map(|name| bench.guest(name));
    let devices = [(0x10, "moves"), (0x20, "stays"), (0x40, "comes")].map(|(id, name)| bench.add(name, &[(id, 0)]));
    let [moves, stays, comes] = [0, 1, 2].map(|n: usize| [devices[n].id()]);
    let space = |n: usize| *guests[n].domain.space();
    let everywhere: Vec<u64> = guests.iter().map(|guest| guest.backing).collect();
    for (device, id) in devices.iter().zip([0x10, 0x20, 0x40]) {
        bench.oracle.allow(device.label(), &[(id, 0)], &everywhere);
    }
    let plan = |devices: &[iommu_assign::assign::DeviceId], n| smmu.plan(devices, &space(n), &mut |_| ());
    for (device, n) in [(&moves, 0), (&stays, 1)] {
        smmu.install(device, plan(device, n).unwrap()).unwrap();
    }
    let promised = plan(&moves, 2).unwrap();
    lose_syncs(&bench, 1);
    assert!(matches!(block(&*smmu, &moves), Err(IommuError::SyncTimeout(_))));
    // Somebody else's sync completes, and somebody else plans.
    smmu.flush(guests[1].domain.id()).unwrap();
    let planned = plan(&comes, 3);
    smmu.abandon(&moves, promised);
    let planned = planned.or_else(|_| plan(&comes, 3)).unwrap();
    smmu.install(&comes, planned).unwrap();
    assert_eq!(block(&*smmu, &comes), Ok(vec![]));
    smmu.install(&moves, plan(&moves, 3).unwrap()).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Memory(guests[3].backing));
}

/// Its tables went to somebody else while a bank with their root was on, whose drain an assign of another domain was
/// finishing just then.
#[test]
fn i8_a_domain_does_not_end_while_a_bank_may_still_walk_its_tables() {
    let (mut bench, part, stop) = (Bench::new(), named("ap806"), Stop::nowhere());
    let model = Config { banks: 1, ..part.model };
    let held = stop.clone();
    bench.smmu_through(part.config, Setup::default(), model, |registers| Held::new(registers, held));
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &one).unwrap();
    lose_syncs(&bench, 1);
    assert!(timed_out(&bench.deassign(&device).unwrap_err()));
    bench.oracle.allow(device.label(), &[(0x10, 0)], &[two.backing]);
    let root = one.tables.stage2().root.value();
    let walks = |smmu: &smmu_model::Smmu| {
        let ttbr0 = smmu.bank(0, 0x20);
        smmu.peek32(smmu.bank(0, 0)) & 1 != 0 && u64::from(smmu.peek32(ttbr0)) == root & 0xffff_ffff
    };
    let service = &bench.service;
    let (mut ended, mut walked) = (Ok(()), Some(false));
    thread::scope(|scope| {
        stop.at(STLBGSTATUS);
        scope.spawn(|| service.assign(&device, &two.domain));
        stop.meet();
        ended = service.destroy_domain(&one.domain);
        walked = bench.machine.smmu(SMMU, |smmu| walks(smmu));
        stop.meet();
    });
    assert_eq!(walked, Some(true));
    assert!(timed_out(&ended.unwrap_err()));
    assert_eq!(bench.dma(0x10), Reached::Memory(two.backing));
    bench.service.destroy_domain(&one.domain).unwrap();
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
/// switched off the bank that the new driver had given to somebody else, whose DMA then passed untranslated.
#[test]
fn i8_c9_an_smmu_goes_when_the_drains_of_ended_domains_are_confirmed_too() {
    let mut bench = Bench::new();
    let model = Config::generic_v2();
    bench.smmu(SMMU, model.clone());
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &one).unwrap();
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    bench.remove(&device).unwrap_err();
    let held = bench.service.retire_domain(&one.domain).unwrap().expect("its drain is not confirmed");
    assert!(timed_out(&bench.service.unregister_iommu(SMMU).unwrap_err()));
    bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
    bench.service.unregister_iommu(SMMU).unwrap();
    // The same hardware, and a new driver.
    bench.smmu(SMMU, model);
    let device = bench.add("next", &[(0x10, 0)]);
    bench.assign(&device, &two).unwrap();
    let before = bench.machine.counters(SMMU);
    held.redeem().unwrap();
    assert_eq!(bench.machine.counters(SMMU), before);
    assert_eq!(bench.dma(0x10), Reached::Memory(two.backing));
}
