//! Read-back mode: a write that did not hold, and what rests on it afterwards. Contract A-7, I-2, I-4.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::driver::{Driver, exhausted, timed_out};
use common::parts::named;
use common::presets::used;
use common::supply::Supply;
use common::{Bench, SMMU};
use iommu_assign::assign::{Cause, DeviceSpec, Error, IommuError, IommuPower, Left, Resource};
use iommu_assign::smmu::{Setup, SmmuConfig};
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
fn i4_a_bank_that_an_entry_may_name_stays_on_when_its_last_device_leaves() {
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
        // Nor does another domain get it.
        bench.assign(&last, &two).unwrap();
        assert_eq!(bench.dma(0x20), Reached::Memory(two.backing), "{part}");
        assert_ne!(bench.dma(0x10), Reached::Memory(two.backing), "{part}");
    }
}

#[test]
fn a1_i4_a_bank_that_an_entry_may_name_does_not_count_as_freed_by_a_move() {
    let part = named("generic v2");
    let model = Config { banks: 1, stage2_banks: 0, ..part.model };
    let driver = Driver::with(SmmuConfig { read_back: true, ..part.config }, Setup::default(), model);
    driver.add(1, &[0x10]);
    driver.add(2, &[0x20]);
    driver.assign(&[1, 2], 0).unwrap();
    driver.inject(Injection::WriteDoesNotStick(S2CR));
    assert!(matches!(driver.block(&[1]), Err(IommuError::WriteLost { .. })));
    driver.recover();
    assert!(exhausted(&driver.plan(&[2], 1), Resource::ContextBanks));
    assert_eq!(driver.reaches(0x20), Some(0), "it stays where it was");
    driver.block(&[2]).unwrap();
    assert_eq!(driver.reaches(0x20), None);
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
    // Nor does its domain get a second one.
    let mate = bench.add("mate", &[(0x20, 0)]);
    bench.assign(&mate, &guest).unwrap();
    assert_eq!(used(&bench).1, 1);
    bench.audit();
}

/// The bank of a stuck entry that only a plan had kept was ended without an invalidation: what its stream had cached stayed.
#[test]
fn i7_an_idle_bank_that_an_entry_may_name_is_drained_too() {
    let (part, supply) = (named("generic v2"), Arc::new(Supply::default()));
    let setup = Setup { power: Some(supply.clone()), ..Setup::default() };
    let driver = Driver::with(SmmuConfig { read_back: true, ..part.config }, setup, part.model);
    driver.add(1, &[0x10]);
    driver.add(2, &[0x20]);
    driver.assign(&[1], 0).unwrap();
    driver.plan(&[2], 0).unwrap();
    driver.inject(Injection::WriteDoesNotStick(S2CR));
    assert!(matches!(driver.block(&[1]), Err(IommuError::WriteLost { .. })));
    driver.recover();
    supply.0.store(true, Ordering::SeqCst);
    driver.abandon(&[2]);
    supply.0.store(false, Ordering::SeqCst);
    assert_eq!(driver.reaches(0x10), Some(0), "nothing can be done about it while the bank has tables");
    driver.forget(0).unwrap();
    assert_eq!(driver.reaches(0x10), None);
}

/// The end of a domain took a bank that is not to be trusted for one that was drained.
#[test]
fn i8_a_domain_ends_only_when_the_bank_of_a_stuck_entry_is_drained() {
    let part = named("generic v2");
    let driver = Driver::with(SmmuConfig { read_back: true, ..part.config }, Setup::default(), part.model);
    driver.add(1, &[0x10]);
    driver.assign(&[1], 0).unwrap();
    assert_eq!(driver.reaches(0x10), Some(0));
    driver.inject(Injection::WriteDoesNotStick(S2CR));
    driver.lose_syncs(1);
    driver.block(&[1]).unwrap_err();
    assert!(timed_out(&driver.forget(0)));
    driver.recover();
    driver.forget(0).unwrap();
    assert_eq!(driver.reaches(0x10), None);
}

/// A resume that failed at its last entry left those before it translating, in a unit that had been on all the time.
#[test]
fn i2_a_resume_that_failed_at_an_entry_leaves_every_stream_in_fault() {
    let part = named("generic v2");
    let driver = Driver::with(SmmuConfig { read_back: true, ..part.config }, Setup::default(), part.model);
    for (n, id) in [(1, 0x10), (2, 0x20)] {
        driver.add(n, &[id]);
        driver.assign(&[n], n).unwrap();
    }
    let again = |driver: &Driver| driver.smmu.suspend().and_then(|()| driver.smmu.resume());
    let writes = driver.writes(|| again(&driver).unwrap());
    let last = writes.iter().rposition(|name| name.starts_with("S2CR")).unwrap();
    assert_eq!([0x10, 0x20].map(|id| driver.reaches(id)), [Some(1), Some(2)]);
    driver.inject(Injection::WriteIsLost(u32::try_from(last).unwrap() + 1));
    assert!(matches!(again(&driver), Err(IommuError::WriteLost { .. })));
    assert_eq!([0x10, 0x20].map(|id| driver.reaches(id)), [None; 2]);
    driver.smmu.resume().unwrap();
    assert_eq!([0x10, 0x20].map(|id| driver.reaches(id)), [Some(1), Some(2)]);
    driver.check();
}

#[test]
fn a7_a_mate_whose_entry_a_repack_lost_gets_another() {
    // One entry is free, and the newcomer needs two: the mate's goes, and the SMR of one for both is lost.
    let mut bench = bench("generic v2", |model| Config { groups: 2, ..model });
    let guest = bench.guest("guest");
    let mate = bench.add("mate", &[(0x10, 0), (0x13, 0)]);
    let spec = bench.spec("joins", &[(0x11, 0), (0x12, 0), (0x13, 0)]);
    loses(&bench, Injection::WriteIsLost(4));
    assert!(is_lost(&bench.service.add(spec.clone())));
    recovers(&bench);
    assert!(bench.service.find(spec.key).is_none());
    bench.assign(&mate, &guest).unwrap();
    for (id, reaches) in [(0x10, true), (0x11, false), (0x12, false), (0x13, true)] {
        assert_eq!(bench.dma(id) == Reached::Memory(guest.backing), reaches, "{id:#x}");
    }
    bench.audit();
}

#[test]
fn a7_a_live_mate_is_what_it_was_when_a_newcomers_own_entry_is_lost() {
    let mut bench = bench("generic v2", |model| model);
    let guest = bench.guest("guest");
    let mate = bench.add("mate", &[(0x10, 0)]);
    bench.assign(&mate, &guest).unwrap();
    let spec = bench.spec("joins", &[(0x10, 0), (0x11, 0)]);
    // Its S2CR faults as the last one left it; the SMR is lost.
    loses(&bench, Injection::WriteIsLost(2));
    assert!(is_lost(&bench.service.add(spec.clone())));
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
    assert_eq!(bench.dma(0x11), Reached::Fault);
    bench.audit();
    bench.service.add(spec).unwrap();
    bench.audit();
}

#[test]
fn a7_i13_an_install_that_loses_any_of_its_writes_leaves_every_stream_in_fault_and_can_be_repeated() {
    // CBA2R, CBAR, TCR, TTBR0, FSR, SCTLR; a lazy device's entries, S2CR and SMR each; two S2CRs turned. What FSR held and what an
    // S2CR in fault held is no loss.
    for (lazy, writes) in [(false, vec![1, 2, 3, 4, 6, 7, 8]), (true, vec![1, 2, 3, 4, 6, 8, 10, 11, 12])] {
        for write in writes {
            let mut bench = bench("generic v2", |model| model);
            let guest = bench.guest("guest");
            let spec = bench.spec("dma", &[(0x10, 0), (0x23, 0)]);
            let device = bench.service.add(DeviceSpec { lazy, ..spec }).unwrap();
            loses(&bench, Injection::WriteIsLost(write));
            let error = bench.assign(&device, &guest).unwrap_err();
            assert!(is_lost::<()>(&Err(error.clone())), "write {write}, lazy {lazy}: {error}");
            assert_eq!(error.left, Left::Quarantined);
            assert_eq!([0x10, 0x23].map(|id| bench.dma(id)), [Reached::Fault; 2], "write {write}, lazy {lazy}");
            bench.assign(&device, &guest).unwrap();
            assert_eq!([0x10, 0x23].map(|id| bench.dma(id)), [Reached::Memory(guest.backing); 2]);
            bench.audit();
        }
    }
}
