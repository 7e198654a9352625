//! One device or domain on several SMMUs: what fails on one does not stop the others, and what cannot be had on one changes
//! nothing on any (contract A-1, I-9, I-13, C-9).

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

use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::callbacks::{Asked, Way};
use common::supply::Supply;
use common::{Anyone, Bench, Guest, NOT_DRAINED, NOT_RESET, PAGE, SMMU, described, stream};
use iommu_assign::assign::{Cause, Device, DeviceState, Error, Iommu, IommuKey, Left, Removal, Service, StreamId, Why};
use iommu_assign::smmu::{Setup, SmmuConfig};
use iommu_assign::sync::Spin;
use machine::Reached;
use smmu_model::{Config, Injection, SyncRegister};

const fn key(n: u64) -> IommuKey {
    IommuKey::new(0x5000_0000 + n * 0x100_0000)
}

/// A device with stream 0x10 on each of some SMMUs.
struct Spread {
    bench: Bench,
    supplies: Vec<Arc<Supply>>,
    device: Device,
}

impl Spread {
    fn over(count: u64) -> Self {
        let mut bench = Bench::new();
        let mut supplies = Vec::new();
        for n in 0..count {
            let supply = Arc::new(Supply::default());
            let setup = Setup { power: Some(supply.clone()), ..Setup::default() };
            let model = Config::generic_v2();
            let config = SmmuConfig { read_back: true, ..described(key(n), &model) };
            bench.smmu_through(config, setup, model, |registers| registers);
            supplies.push(supply);
        }
        let mut spec = bench.spec("spread", &[]);
        spec.streams.extend((0..count).map(|n| stream(key(n), 0x10, 0)));
        let device = bench.service.add(spec).unwrap();
        Self { bench, supplies, device }
    }

    fn inject(&self, n: u64, injection: Injection) {
        self.bench.machine.smmu(key(n), |smmu| smmu.inject(injection));
    }

    fn stuck(&self, n: u64) {
        self.inject(n, Injection::StatusNeverClears(SyncRegister::Global));
    }

    fn recover(&self) {
        (0..self.supplies.len() as u64).for_each(|n| {
            self.bench.machine.smmu(key(n), smmu_model::Smmu::clear_injections);
        });
    }

    fn reached(&self) -> Vec<Reached> {
        (0..self.supplies.len() as u64).map(|n| self.reached_at(n)).collect()
    }

    fn reached_at(&self, n: u64) -> Reached {
        self.bench.machine.dma_write(key(n), StreamId::new(0x10), PAGE).unwrap()
    }

    fn all_reach(&self, guest: &Guest) -> bool {
        self.reached().iter().all(|reached| *reached == Reached::Memory(guest.backing))
    }

    fn all_fault(&self) -> bool {
        self.reached().iter().all(|reached| *reached == Reached::Fault)
    }
}

fn failed_at(error: &Error, n: u64) -> bool {
    matches!(&error.cause, Cause::Iommu { iommu, .. } if *iommu == key(n))
}

#[test]
fn i6_a_cut_that_is_not_confirmed_on_one_of_three_is_made_on_the_others_too() {
    for stuck in 0..3 {
        let mut spread = Spread::over(3);
        let (one, two) = (spread.bench.guest("one"), spread.bench.guest("two"));
        let device = spread.device.clone();
        spread.bench.assign(&device, &one).unwrap();
        spread.stuck(stuck);
        let error = spread.bench.deassign(&device).unwrap_err();
        assert!(failed_at(&error, stuck) && error.left == Left::Quarantined, "{error}");
        assert!(spread.all_fault(), "{stuck}");
        assert_eq!(spread.bench.state(&device), NOT_DRAINED);
        // The others' banks are free: their drains were waited for.
        let mut kept = Vec::new();
        for n in 0..3 {
            let sink = &mut |usage: &iommu_assign::assign::UsageRecord| kept.extend(usage.domain.clone().map(|_| n));
            spread.bench.service.usage(key(n), sink).unwrap();
        }
        assert_eq!(kept, [stuck]);
        assert!(failed_at(&spread.bench.assign(&device, &two).unwrap_err(), stuck));
        assert!(spread.all_fault());
        spread.recover();
        spread.bench.assign(&device, &two).unwrap();
        assert!(spread.all_reach(&two));
        spread.bench.audit();
    }
}

#[test]
fn i13_an_install_that_fails_on_one_of_three_ends_in_fault_on_all() {
    for lost in 0..3 {
        let mut spread = Spread::over(3);
        let guest = spread.bench.guest("guest");
        let device = spread.device.clone();
        spread.inject(lost, Injection::WriteDoesNotStick(0xc00));
        let error = spread.bench.assign(&device, &guest).unwrap_err();
        assert!(failed_at(&error, lost) && error.left == Left::Quarantined, "{error}");
        assert!(spread.all_fault(), "{lost}");
        assert_eq!(spread.bench.state(&device), NOT_RESET);
        spread.recover();
        spread.bench.audit();
        spread.bench.assign(&device, &guest).unwrap();
        assert!(spread.all_reach(&guest));
        spread.bench.audit();
    }
}

#[test]
fn a1_a_plan_that_one_of_three_refuses_reserves_nothing_on_the_others() {
    let mut spread = Spread::over(3);
    let guest = spread.bench.guest("guest");
    // The last one has no bank left.
    let banks = Config::generic_v2().banks;
    for n in 0..banks {
        let hog = spread.bench.guest(&format!("hog {n}"));
        let mut spec = spread.bench.spec(&format!("hog {n}"), &[]);
        spec.streams.push(stream(key(2), 0x20 + u32::from(n), 0));
        let device = spread.bench.service.add(spec).unwrap();
        spread.bench.assign(&device, &hog).unwrap();
    }
    let before = spread.bench.machine.all_counters();
    let error = spread.bench.service.assign(&spread.device, &guest.domain).unwrap_err();
    assert!(failed_at(&error, 2) && error.left == Left::Unchanged, "{error}");
    assert_eq!(spread.bench.machine.all_counters(), before);
    let mut kept = 0;
    for n in 0..2 {
        spread.bench.service.usage(key(n), &mut |usage| kept += usize::from(usage.domain.is_some())).unwrap();
    }
    assert_eq!(kept, 0);
    spread.bench.service.destroy_domain(&guest.domain).unwrap();
}

#[test]
fn a1_i13_where_one_of_three_has_no_power_nothing_changes_on_any() {
    for dark in 0..3 {
        let mut spread = Spread::over(3);
        let (one, two) = (spread.bench.guest("one"), spread.bench.guest("two"));
        let device = spread.device.clone();
        spread.bench.assign(&device, &one).unwrap();
        spread.supplies[dark as usize].0.store(true, Ordering::SeqCst);
        let before = spread.bench.machine.all_counters();
        for error in [spread.bench.deassign(&device).unwrap_err(), spread.bench.reassign(&device, &two).unwrap_err()] {
            assert!(failed_at(&error, dark) && error.left == Left::Unchanged, "{error}");
        }
        let error = spread.bench.remove(&device).unwrap_err();
        assert!(failed_at(&error, dark) && error.left == Left::GoingLive, "{error}");
        assert_eq!(spread.bench.machine.all_counters(), before);
        assert!(spread.all_reach(&one));
        spread.supplies[dark as usize].0.store(false, Ordering::SeqCst);
        spread.bench.oracle.allow(device.label(), &[(0x10, 0)], &[one.backing]);
        assert_eq!(spread.bench.service.remove(device.key()), Ok(Removal::Done));
        assert!(spread.all_fault());
        spread.bench.audit();
    }
}

#[test]
fn i9_a_flush_of_ten_smmus_reaches_all_ten_and_goes_on_past_one_that_fails() {
    let mut spread = Spread::over(10);
    let mut guest = spread.bench.guest("guest");
    let device = spread.device.clone();
    spread.bench.assign(&device, &guest).unwrap();
    for stuck in [None, Some(0), Some(4), Some(9)] {
        guest.tables.map(PAGE, guest.backing, true);
        spread.bench.service.flush(&guest.domain).unwrap();
        assert!(spread.all_reach(&guest), "each has cached the page");
        guest.tables.unmap(PAGE);
        if let Some(stuck) = stuck {
            spread.stuck(stuck);
        }
        let flushed = spread.bench.service.flush(&guest.domain);
        match stuck {
            None => flushed.unwrap(),
            Some(stuck) => assert!(failed_at(&flushed.unwrap_err(), stuck)),
        }
        let others = (0..10).filter(|n| Some(*n) != stuck);
        assert!(others.clone().all(|n| spread.reached_at(n) == Reached::Fault), "{stuck:?}: {:?}", spread.reached());
        spread.recover();
    }
}

#[test]
fn i10_a_domain_ends_only_when_all_of_three_have_confirmed() {
    let mut spread = Spread::over(3);
    let guest = spread.bench.guest("guest");
    let device = spread.device.clone();
    spread.bench.assign(&device, &guest).unwrap();
    spread.stuck(1);
    spread.bench.deassign(&device).unwrap_err();
    assert!(failed_at(&spread.bench.service.destroy_domain(&guest.domain).unwrap_err(), 1));
    spread.recover();
    spread.bench.service.destroy_domain(&guest.domain).unwrap();
    assert_eq!(spread.bench.state(&device), NOT_DRAINED, "what it lacks is done by its next assign");
}

#[test]
fn a1_c9_an_add_that_one_instance_cannot_take_leaves_nothing_on_the_other() {
    for forced in [false, true] {
        let mut bench = Bench::new();
        let (first, _) = (bench.smmu(SMMU, Config::generic_v2()), bench.smmu(key(1), Config::generic_v2()));
        let mut spec = bench.spec("a", &[(0x10, 0)]);
        spec.streams.push(stream(key(1), 0x10, 0));
        let service = &bench.service;
        if forced { service.force_unregister_iommu(key(1)) } else { service.unregister_iommu(key(1)) }.unwrap();
        let error = service.add(spec).unwrap_err();
        assert_eq!((error.cause, error.left), (Cause::ProviderMissing(key(1)), Left::Unchanged), "forced {forced}");
        assert_eq!(first.owner_of(StreamId::new(0x10), None), None, "forced {forced}");
        service.unregister_iommu(SMMU).unwrap();
    }
}

#[test]
fn a1_c9_an_add_whose_second_instance_goes_while_the_policy_is_asked_leaves_nothing_on_the_first() {
    let mut bench = Bench::with_policy(Box::new(Anyone));
    let (first, second) = (bench.smmu(SMMU, Config::generic_v2()), bench.smmu(key(1), Config::generic_v2()));
    let way = Way::new();
    let goes = |service: &Service<Spin>, request: &iommu_assign::assign::PolicyRequest<'_>| {
        if matches!(request.why, Why::Shares { .. }) {
            service.force_unregister_iommu(key(1)).unwrap();
        }
        true
    };
    let service: Arc<Service<Spin>> = Arc::new(Service::new(Box::new(Asked::new(&way, goes))));
    way.lead_to(&service);
    service.register_iommu(first.clone()).unwrap();
    service.register_iommu(second).unwrap();
    let guest = bench.guest("guest");
    let domain = service.create_domain("guest".into(), guest.domain.space().stage2).unwrap();
    let owner = service.add(bench.spec("owner", &[(0x10, 0)])).unwrap();
    bench.oracle.allow(owner.label(), &[(0x10, 0)], &[guest.backing]);
    service.assign(&owner, &domain).unwrap();
    // It shares a live entry on the first, so that the policy is asked.
    let mut spec = bench.spec("spread", &[(0x10, 0)]);
    spec.streams.push(stream(key(1), 0x10, 0));
    let error = service.add(spec.clone()).unwrap_err();
    assert_eq!((error.cause, error.left), (Cause::ProviderMissing(key(1)), Left::Unchanged));
    assert!(service.find(spec.key).is_none());
    let known: Vec<_> =
        std::iter::successors(first.next_known(None), |(last, _)| first.next_known(Some(*last))).collect();
    assert_eq!(known, [(owner.id(), Some(domain.id()))]);
    assert_eq!(service.find(owner.key()).unwrap().state, DeviceState::Assigned(domain.id()));
    assert_eq!(service.remove(owner.key()), Ok(Removal::Done));
    let mut findings = Vec::new();
    service.audit(&mut |finding| findings.push(finding.to_string()));
    assert_eq!(findings, [""; 0]);
}

#[test]
fn s8_a_shutdown_goes_on_past_an_instance_that_fails() {
    let mut spread = Spread::over(3);
    let guest = spread.bench.guest("guest");
    let device = spread.device.clone();
    spread.bench.assign(&device, &guest).unwrap();
    spread.stuck(0);
    spread.bench.oracle.allow(device.label(), &[(0x10, 0)], &[guest.backing]);
    let failed = spread.bench.service.shutdown().unwrap_err();
    assert!(failed_at(&failed, 0) && failed.left == Left::Closing, "{failed}");
    assert!(spread.all_fault());
    spread.recover();
    spread.bench.service.shutdown().unwrap();
}
