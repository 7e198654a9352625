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

use common::parts::{Part, parts};
use common::{Bench, Guest, PAGE, SMMU, described};
use iommu_assign::assign::{Cause, Device, DeviceState, Error, IommuError, Left};
use iommu_assign::smmu::{Registers, Setup};
use machine::{Machine, ModelRegisters, Reached};
use smmu_model::{Config, Injection, SyncDelay, SyncRegister};

/// Registers of a part that walks ahead whenever it may: before each access every bank whose M is 1 has cached what it
/// finds for [`PAGE`].
#[derive(Debug)]
struct Eager {
    registers: ModelRegisters,
    machine: Machine,
    banks: u8,
}

impl Eager {
    fn walk(&self) -> &ModelRegisters {
        self.machine.with_memory(SMMU, |smmu, memory| {
            (0..self.banks).for_each(|bank| smmu.prefetch(memory, bank, PAGE));
        });
        &self.registers
    }
}

impl Registers for Eager {
    fn read32(&self, offset: u32) -> u32 {
        self.walk().read32(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.walk().write32(offset, value);
    }

    fn read64(&self, offset: u32) -> u64 {
        self.walk().read64(offset)
    }

    fn write64(&self, offset: u32, value: u64) {
        self.walk().write64(offset, value);
    }
}

fn eager(part: Part) -> Bench {
    let bench = Bench::new();
    let (machine, banks) = (bench.machine.clone(), part.model.banks.min(4));
    bench.smmu_through(part.config, Setup::default(), part.model, |registers| Eager { registers, machine, banks });
    bench
}

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
