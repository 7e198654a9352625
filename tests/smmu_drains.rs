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
use common::{Bench, PAGE, SMMU};
use iommu_assign::assign::{Cause, Error, IommuError};
use iommu_assign::smmu::{Registers, Setup};
use machine::{Machine, ModelRegisters, Reached};
use smmu_model::Injection;

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
    matches!(error.cause, Cause::Iommu { error: IommuError::SyncTimeout { .. }, .. })
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
