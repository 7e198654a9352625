//! How long the hardware is waited for: so much time where the hypervisor has a clock, else so many polls (contract C-14).

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

use std::cell::Cell;
use std::sync::Arc;

use common::{PAGE, SMMU, described, stream};
use iommu_assign::assign::{
    Cause, Changed, Device, DeviceKey, DeviceSpec, Domain, FlushRange, IommuError, Label, Service, Source,
};
use iommu_assign::smmu::{Masters, ProbeError, Smmu, SmmuConfig};
use iommu_assign::sync::{Micros, Platform, Spin, Waited};
use machine::{Machine, Stage2Tables};
use smmu_model::{Config, Hazard, Injection, SyncDelay, SyncRegister};

thread_local! {
    /// What the clock shows, and by how much it goes on with each look.
    static CLOCK: Cell<(u64, u64)> = const { Cell::new((1_000_000, 0)) };
}

fn clock_goes_by(step: u64) {
    CLOCK.with(|clock| clock.set((clock.get().0, step)));
}

/// A platform with a clock that a test turns.
#[derive(Debug)]
enum Clocked {}

impl Platform for Clocked {
    type Lock = <Spin as Platform>::Lock;
    type Sharing = <Spin as Platform>::Sharing;

    fn barrier() {}

    fn now() -> Option<Micros> {
        CLOCK.with(|clock| {
            let (shown, step) = clock.get();
            clock.set((shown + step, step));
            Some(Micros::new(shown))
        })
    }
}

struct Setup {
    machine: Machine,
    service: Service<Clocked>,
    device: Device,
    domain: Domain<Clocked>,
    _tables: Stage2Tables,
}

fn config(model: &Config) -> SmmuConfig {
    SmmuConfig {
        timeout: Micros::new(1000),
        atomic_timeout: Micros::new(50),
        polls: 3000,
        atomic_polls: 70,
        ..described(SMMU, model)
    }
}

/// A device in a guest, behind an SMMU with a timeout of 1000 us, in atomic context 50 us.
fn setup() -> Setup {
    let (machine, model) = (Machine::new(), Config { sync_delay: SyncDelay::Polls(2), ..Config::generic_v2() });
    let service = Service::<Clocked>::new(Box::new(common::Anyone));
    let registers = machine.add_smmu(SMMU, model.clone());
    let smmu = Smmu::probe(config(&model), registers, Arc::new(Masters::<Clocked>::new())).unwrap();
    service.register_iommu(Arc::new(smmu)).unwrap();
    let spec = DeviceSpec::new(DeviceKey::new(Source::Dt, 1), Label::from("dma"), vec![stream(SMMU, 0x10, 0)]);
    let device = service.add(spec).unwrap();
    let mut tables = Stage2Tables::new(&machine, 0x8000_0000, 40, 40);
    tables.map(PAGE, 0x1_0000_0000, true);
    let domain = service.create_domain(Label::from("guest"), tables.stage2()).unwrap();
    service.assign(&device, &domain).unwrap();
    Setup { machine, service, device, domain, _tables: tables }
}

fn stick(setup: &Setup, register: SyncRegister) {
    setup.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(register)));
}

fn waited(cause: &Cause) -> Waited {
    match cause {
        Cause::Iommu { error: IommuError::SyncTimeout(waited), .. } => *waited,
        other => panic!("{other}"),
    }
}

#[test]
fn c14_with_a_clock_a_wait_ends_after_its_time_and_not_after_its_polls() {
    let setup = setup();
    stick(&setup, SyncRegister::Global);
    // The clock is read when the first look has found the sync active.
    for (step, times) in [(100, 10), (1_000_000, 1), (1, 1000), (999, 2)] {
        clock_goes_by(step);
        let error = setup.service.flush(&setup.domain).unwrap_err();
        let time = Some(Micros::new(step * u64::from(times)));
        assert_eq!(waited(&error.cause), Waited { polls: 1 + times, time });
    }
    clock_goes_by(100);
    let error = setup.service.deassign(&setup.device).unwrap_err();
    assert_eq!(
        error.to_string(),
        "deassign dma: iommu@50000000: it did not confirm an invalidation within 11 polls in 1000 us; the device is \
         quarantined"
    );
}

#[test]
fn c14_a_clock_that_stands_still_leaves_it_to_the_polls() {
    let setup = setup();
    stick(&setup, SyncRegister::Global);
    let error = setup.service.flush(&setup.domain).unwrap_err();
    assert_eq!(waited(&error.cause), Waited { polls: 3000, time: Some(Micros::new(0)) });
}

#[test]
fn c14_hardware_that_is_done_when_the_time_is_over_is_not_stuck() {
    // This CPU was away for a second between the sync and the look at its status.
    let (machine, model) = (Machine::new(), Config { sync_delay: SyncDelay::Polls(0), ..Config::generic_v2() });
    let registers = machine.add_smmu(SMMU, model.clone());
    clock_goes_by(1_000_000);
    Smmu::probe(config(&model), registers, Arc::new(Masters::<Clocked>::new())).unwrap();
}

#[test]
fn c10_c14_atomic_context_has_a_time_of_its_own() {
    let setup = setup();
    stick(&setup, SyncRegister::Bank(0));
    let range = FlushRange { start: PAGE, size: 0x1000, leaf: 0x1000, changed: Changed::Leaf };
    clock_goes_by(10);
    let error = setup.service.flush_range_atomic(&setup.domain, &range).unwrap_err();
    assert_eq!(waited(&error.cause), Waited { polls: 6, time: Some(Micros::new(50)) });
    let error = setup.service.flush_range(&setup.domain, &range).unwrap_err();
    assert_eq!(waited(&error.cause), Waited { polls: 101, time: Some(Micros::new(1000)) });
    clock_goes_by(0);
    let error = setup.service.flush_range_atomic(&setup.domain, &range).unwrap_err();
    assert_eq!(waited(&error.cause), Waited { polls: 70, time: Some(Micros::new(0)) });
    // So has a hypervisor that is crashing.
    stick(&setup, SyncRegister::Global);
    clock_goes_by(25);
    let crashed = setup.service.iommu(SMMU).unwrap().crash().unwrap_err();
    assert_eq!(waited(&crashed.cause), Waited { polls: 2, time: Some(Micros::new(50)) });
}

#[test]
fn c14_a7_a_probe_waits_no_longer_either() {
    let (machine, model) = (Machine::new(), Config::generic_v2());
    let registers = machine.add_smmu(SMMU, model.clone());
    machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    clock_goes_by(500);
    let refused = Smmu::probe(config(&model), registers, Arc::new(Masters::<Clocked>::new())).map(|_| ()).unwrap_err();
    let waited = Waited { polls: 3, time: Some(Micros::new(1000)) };
    assert_eq!(refused, ProbeError::SyncTimeout { iommu: SMMU, waited });
}

#[test]
fn c14_a_probe_waits_for_the_sync_that_an_earlier_one_left_in_flight() {
    let (machine, model) = (Machine::new(), Config::generic_v2());
    let masters = Arc::new(Masters::<Spin>::new());
    let registers = machine.add_smmu(SMMU, model.clone());
    machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    let refused = Smmu::probe(described(SMMU, &model), registers.clone(), masters.clone()).map(|_| ());
    assert!(matches!(refused, Err(ProbeError::SyncTimeout { .. })), "{refused:?}");
    machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
    Smmu::probe(described(SMMU, &model), registers, masters).unwrap();
    let hazards = machine.smmu(SMMU, |smmu| smmu.hazards().to_vec()).unwrap();
    assert!(!hazards.contains(&Hazard::SyncOverlap), "{hazards:?}");
}
