//! Read-back mode: a write that did not hold, and what rests on it afterwards. Contract A-7, I-2, I-4.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use common::parts::named;
use common::{Bench, SMMU};
use iommu_assign::assign::{Cause, Error, IommuError};
use iommu_assign::smmu::SmmuConfig;
use machine::Reached;
use smmu_model::{Config, Injection};

const S2CR: usize = 0xc00;

fn bench(part: &str, model: impl FnOnce(Config) -> Config) -> Bench {
    let part = named(part);
    let bench = Bench::new();
    bench.smmu_as(SmmuConfig { read_back: true, ..part.config }, model(part.model));
    bench
}

fn loses(bench: &Bench, injection: Injection) {
    bench.machine.smmu(SMMU, |smmu| smmu.inject(injection)).unwrap();
}

fn recovers(bench: &Bench) {
    bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections).unwrap();
}

fn is_lost<T>(result: &Result<T, Error>) -> bool {
    matches!(result, Err(Error { cause: Cause::Iommu { error: IommuError::WriteLost { .. }, .. }, .. }))
}

#[test]
fn i4_a_bank_stays_on_that_an_entry_may_name_whoever_leaves_it_last() {
    for part in ["generic v2", "ap806"] {
        let mut bench = bench(part, |model| model);
        let (one, two) = (bench.guest("one"), bench.guest("two"));
        let (stuck, last) = (bench.add("stuck", &[(0x10, 0)]), bench.add("last", &[(0x20, 0)]));
        bench.assign(&stuck, &one).unwrap();
        bench.assign(&last, &one).unwrap();
        loses(&bench, Injection::WriteDoesNotStick(S2CR));
        // Its stream reaches what it did while the other one is there: that much the hardware takes away.
        assert!(is_lost(&bench.service.deassign(&stuck)), "{part}");
        // A bank that is switched off lets everything pass.
        drop(bench.deassign(&last).unwrap());
        assert_eq!(bench.dma(0x20), Reached::Fault, "{part}");
        assert_ne!(bench.machine.smmu(SMMU, |smmu| smmu.peek32(smmu.bank(0, 0)) & 1), Some(0), "{part}: M");
        // Nor does it become another's.
        bench.assign(&last, &two).unwrap();
        assert_eq!(bench.dma(0x20), Reached::Memory(two.backing), "{part}");
        assert_ne!(bench.dma(0x10), Reached::Memory(two.backing), "{part}");
    }
}

#[test]
fn i2_a_resume_that_failed_at_a_bank_does_not_lose_it() {
    let mut bench = bench("generic v2", |model| model);
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    let root = bench.machine.smmu(SMMU, |smmu| smmu.bank(0, 0x20)).unwrap();
    bench.service.suspend_iommu(SMMU).unwrap();
    bench.machine.observe(SMMU, Box::new(|_, _| ()));
    let model = named("generic v2").model;
    bench.machine.smmu(SMMU, |smmu| *smmu = smmu_model::Smmu::new(model.seed(5)));
    loses(&bench, Injection::WriteDoesNotStick(root));
    bench.service.resume_iommu(SMMU).unwrap_err();
    recovers(&bench);
    bench.service.resume_iommu(SMMU).unwrap();
    bench.oracle.watch(&bench.machine, SMMU, common::PAGE);
    bench.oracle.look_now(&bench.machine, SMMU, common::PAGE);
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
    bench.audit();
}

#[test]
fn a7_a_mate_whose_new_entry_did_not_hold_gets_another() {
    let mut bench = bench("generic v2", |model| model);
    let guest = bench.guest("guest");
    let mate = bench.add("mate", &[(0x10, 0)]);
    let spec = bench.spec("joins", &[(0x10, 1)]);
    // The mate's entry goes, and the SMR of one for both is lost.
    loses(&bench, Injection::WriteIsLost(3));
    assert!(is_lost(&bench.service.add(spec)));
    bench.assign(&mate, &guest).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
    assert_eq!(bench.dma(0x11), Reached::Fault);
    bench.audit();
}

#[test]
fn a7_a_live_entry_that_could_not_be_widened_is_what_it_was() {
    let mut bench = bench("generic v2", |model| model);
    let guest = bench.guest("guest");
    let mate = bench.add("mate", &[(0x10, 0)]);
    bench.assign(&mate, &guest).unwrap();
    let spec = bench.spec("joins", &[(0x10, 0), (0x11, 0)]);
    loses(&bench, Injection::WriteIsLost(1));
    assert!(is_lost(&bench.service.add(spec)));
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
    assert_eq!(bench.dma(0x11), Reached::Fault);
    bench.audit();
}
