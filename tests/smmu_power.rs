//! Power that an instance is given for as long as its registers are touched, and power that is not there. Contract A-1, S-5, C-8.

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
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use common::before::Before;
use common::driver::{Driver, domain, lose_power};
use common::parts::{named, parts};
use common::{Bench, PAGE, SMMU};
use iommu_assign::assign::{
    Cause, DeviceState, FaultLine, Iommu, IommuError, IommuFaults, IommuPower, Left, Patience, Removal, StreamId,
};
use iommu_assign::smmu::{ContextLines, Power, PowerError, ProbeError, Setup, Smmu, SmmuConfig};
use machine::Reached;
use smmu_model::{Config, Injection, SyncRegister};

/// Power that is there only between get and put, and registers that notice.
#[derive(Debug, Default)]
struct Counted {
    users: AtomicI64,
    refuses: AtomicI64,
}

impl Power for Counted {
    fn get(&self) -> Result<(), PowerError> {
        if self.refuses.load(Ordering::SeqCst) > 0 {
            return Err(PowerError("the supply is broken"));
        }
        self.users.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn put(&self) {
        assert!(self.users.fetch_sub(1, Ordering::SeqCst) > 0);
    }

    fn get_if_on(&self) -> bool {
        let on = self.is_on();
        self.users.fetch_add(on.into(), Ordering::SeqCst);
        on
    }
}

impl Counted {
    fn is_on(&self) -> bool {
        self.users.load(Ordering::SeqCst) > 0
    }

    /// What is to hold at every access.
    fn clock(self: &Arc<Self>) -> impl Fn() + use<> {
        let supply = self.clone();
        move || assert!(supply.is_on(), "an access without a clock hangs the bus")
    }
}

/// A supply, and the setup of an instance that has it.
fn counted() -> (Arc<Counted>, Setup) {
    let power = Arc::new(Counted::default());
    let setup = Setup { power: Some(power.clone()), ..Setup::default() };
    (power, setup)
}

#[test]
fn q21_s5_every_access_lies_between_get_and_put() {
    let mut bench = Bench::new();
    let (power, setup) = counted();
    let part = named("mmu-500 ZynqMP");
    let clocked = |registers| Before::new(registers, power.clock());
    bench.smmu_through(SmmuConfig { context_lines: ContextLines::each(1), ..part.config }, setup, part.model, clocked);
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &one).unwrap();
    bench.service.flush(&one.domain).unwrap();
    bench.reassign(&device, &two).unwrap();
    bench.audit();
    // An interrupt handler only asks.
    bench.machine.dma_write(SMMU, StreamId::new(0x10), PAGE + 0x5000).unwrap();
    let mut faults = 0;
    let _ = bench.service.handle_fault(SMMU, FaultLine::Context(0), &mut |_| faults += 1).unwrap();
    assert_eq!(faults, 0, "no power, no access");
    power.get().unwrap();
    let _ = bench.service.handle_fault(SMMU, FaultLine::Context(0), &mut |_| faults += 1).unwrap();
    power.put();
    assert_eq!(faults, 1);
    // Without power nothing is done, and nothing is lost.
    power.refuses.store(1, Ordering::SeqCst);
    let error = bench.service.flush(&two.domain).unwrap_err();
    let refused = Cause::Iommu { iommu: SMMU, error: IommuError::NoPower("the supply is broken") };
    assert_eq!(error.cause, refused);
    power.refuses.store(0, Ordering::SeqCst);
    drop(bench.deassign(&device).unwrap());
    bench.remove(&device).unwrap();
    bench.audit();
    assert_eq!(power.users.load(Ordering::SeqCst), 0);
}

/// A bench whose power fails when the test says so.
fn failing_power() -> (Bench, Arc<Counted>) {
    let (bench, part) = (Bench::new(), named("generic v2"));
    let (power, setup) = counted();
    bench.smmu_through(part.config, setup, part.model, |registers| registers);
    (bench, power)
}

const NO_POWER: Cause = Cause::Iommu { iommu: SMMU, error: IommuError::NoPower("the supply is broken") };

#[test]
fn a1_i6_a_deassign_or_reassign_without_power_changes_nothing() {
    let (mut bench, power) = failing_power();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &one).unwrap();
    power.refuses.store(1, Ordering::SeqCst);
    for error in [bench.deassign(&device).unwrap_err(), bench.reassign(&device, &two).unwrap_err()] {
        assert_eq!((error.cause, error.left), (NO_POWER, Left::Unchanged));
    }
    assert_eq!(bench.state(&device), DeviceState::Assigned(one.domain.id()));
    assert_eq!(bench.dma(0x10), Reached::Memory(one.backing));
    assert_eq!(
        bench.service.destroy_domain(&one.domain).unwrap_err().cause,
        Cause::InUse { devices: 1, first: "dma".into() }
    );
    power.refuses.store(0, Ordering::SeqCst);
    bench.audit();
    bench.reassign(&device, &two).unwrap();
    drop(bench.deassign(&device).unwrap());
    bench.service.destroy_domain(&one.domain).unwrap();
    bench.audit();
}

#[test]
fn a1_an_add_without_power_changes_nothing_and_can_be_repeated() {
    let (mut bench, power) = failing_power();
    bench.add("mate", &[(0x10, 1)]);
    for streams in [&[(0x30, 0)][..], &[(0x10, 0)], &[(0x11, 0), (0x40, 0)]] {
        let spec = bench.spec("dma", streams);
        power.refuses.store(1, Ordering::SeqCst);
        let error = bench.service.add(spec.clone()).unwrap_err();
        assert_eq!((error.cause, error.left), (NO_POWER, Left::Unchanged), "{streams:x?}");
        assert!(bench.service.find(spec.key).is_none());
        power.refuses.store(0, Ordering::SeqCst);
        bench.audit();
        let device = bench.service.add(spec).unwrap();
        bench.audit();
        assert_eq!(bench.service.remove(device.key()), Ok(Removal::Done));
        bench.audit();
    }
}

#[test]
fn c8_i10_a_removal_without_power_forgets_nothing_that_translates_still() {
    let (mut bench, power) = failing_power();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    power.refuses.store(1, Ordering::SeqCst);
    let error = bench.remove(&device).unwrap_err();
    assert_eq!((error.cause, error.left), (NO_POWER, Left::GoingLive));
    assert_eq!(bench.state(&device), DeviceState::Going);
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing), "as the error says");
    assert_eq!(bench.service.deassign(&device).unwrap_err().cause, Cause::Gone);
    assert_eq!(
        bench.service.destroy_domain(&guest.domain).unwrap_err().cause,
        Cause::InUse { devices: 1, first: "dma".into() }
    );
    let spec = bench.spec("next", &[(0x10, 0)]);
    let error = bench.service.add(spec.clone()).unwrap_err();
    assert_eq!((error.cause, error.left), (NO_POWER, Left::Unchanged));
    power.refuses.store(0, Ordering::SeqCst);
    // A device with the same stream joins the group that is live: it is not taken for blocked alone.
    bench.oracle.allow(&"next".into(), &[(0x10, 0)], &[guest.backing]);
    let next = bench.service.add(spec).unwrap();
    let group = |key| bench.service.find(key).unwrap().group;
    assert_eq!(group(next.key()), group(device.key()));
    assert_eq!(bench.service.remove(device.key()), Ok(Removal::Done));
    assert_eq!(bench.dma(0x10), Reached::Fault);
    bench.service.destroy_domain(&guest.domain).unwrap();
    bench.audit();
}

#[test]
fn q21_s5_s8_a_crash_touches_no_register_of_an_instance_without_power() {
    let mut bench = Bench::new();
    let (power, setup) = counted();
    let part = named("mmu-500 ZynqMP");
    bench.smmu_through(part.config, setup, part.model, |registers| Before::new(registers, power.clock()));
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    let handle = bench.service.iommu(SMMU).unwrap();
    let off = IommuError::NoPower("it is off, and a crash cannot switch it on");
    let error = handle.crash().unwrap_err();
    assert_eq!((error.cause, error.left), (Cause::Iommu { iommu: SMMU, error: off }, Left::Unchanged));
    power.get().unwrap();
    handle.crash().unwrap();
    assert_eq!(bench.dma(0x10), Reached::Fault);
}

#[test]
fn s5_without_power_there_is_no_probe() {
    let bench = Bench::new();
    let power = Arc::new(Counted::default());
    power.refuses.store(1, Ordering::SeqCst);
    let part = named("generic v2");
    let registers = bench.machine.add_smmu(SMMU, part.model);
    let setup = Setup { power: Some(power), ..Setup::default() };
    let refused = Smmu::probe_with(part.config, setup, registers, bench.masters.clone()).unwrap_err();
    assert_eq!(refused, ProbeError::NoPower { iommu: SMMU, reason: "the supply is broken" });
}

#[test]
fn c9_a_forced_unregister_of_a_suspended_instance_that_does_not_come_back_says_so_and_can_be_repeated() {
    let (mut bench, power) = failing_power();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    bench.service.suspend_iommu(SMMU).unwrap();
    power.refuses.store(1, Ordering::SeqCst);
    assert_eq!(bench.service.force_unregister_iommu(SMMU).unwrap_err().cause, NO_POWER);
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing), "as the error says");
    power.refuses.store(0, Ordering::SeqCst);
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    let error = bench.service.force_unregister_iommu(SMMU).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::SyncTimeout(_), .. }), "{error}");
    bench.machine.smmu(SMMU, |smmu| {
        smmu.clear_injections();
        // sCR0 takes no write, and the reset value lets everything pass.
        *smmu = smmu_model::Smmu::new(named("generic v2").model.seed(3));
        smmu.inject(Injection::WriteDoesNotStick(0));
    });
    bench.machine.observe(SMMU, Box::new(|_, _| ()));
    let error = bench.service.force_unregister_iommu(SMMU).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::NotResumed(_), .. }), "{error}");
    bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
    bench.service.force_unregister_iommu(SMMU).unwrap();
    bench.oracle.allow(device.label(), &[(0x10, 0)], &[]);
    assert_eq!(bench.dma(0x10), Reached::Fault);
    assert_eq!(power.users.load(Ordering::SeqCst), 0);
}

/// An assign that found no power at its install left the device planned, for good.
#[test]
fn a4_a_plan_is_given_back_without_power_and_the_bank_that_it_kept_is_not_lost() {
    let mut bench = Bench::new();
    let (power, setup) = counted();
    let part = named("generic v2");
    let smmu = bench.smmu_through(part.config, setup, Config { banks: 1, ..part.model }, |registers| registers);
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let (first, second) = (bench.add("first", &[(0x10, 0)]), bench.add("second", &[(0x20, 0)]));
    power.refuses.store(1, Ordering::SeqCst);
    assert!(matches!(
        bench.assign(&first, &one).unwrap_err().cause,
        Cause::Iommu { error: IommuError::NoPower(_), .. }
    ));
    power.refuses.store(0, Ordering::SeqCst);
    bench.assign(&first, &one).unwrap();
    // The last device leaves while a plan keeps the bank; then that is given back.
    for ends in [false, true] {
        smmu.plan(&[second.id()], one.domain.space(), &|_| true).unwrap();
        drop(bench.deassign(&first).unwrap());
        power.refuses.store(1, Ordering::SeqCst);
        smmu.abandon(&[second.id()]);
        power.refuses.store(0, Ordering::SeqCst);
        if ends {
            bench.service.destroy_domain(&one.domain).unwrap();
            assert_eq!(bench.machine.smmu(SMMU, |smmu| smmu.peek32(smmu.bank(0, 0)) & 1), Some(0), "M");
        } else {
            bench.assign(&second, &two).unwrap();
            drop(bench.deassign(&second).unwrap());
            bench.assign(&first, &one).unwrap();
        }
        bench.audit();
    }
    bench.assign(&second, &two).unwrap();
}

fn driver_with_power() -> (Driver, Arc<Counted>) {
    let part = named("generic v2");
    let (power, setup) = counted();
    (Driver::with(part.config, setup, part.model), power)
}

/// A move of several instances found the power of one gone that had been resumed meanwhile, and said that nothing had changed.
#[test]
fn a1_power_that_is_held_while_suspended_is_there_when_a_resume_comes_meanwhile() {
    let (driver, power) = driver_with_power();
    driver.add(1, &[0x10]);
    driver.assign(&[1], 0).unwrap();
    driver.smmu.suspend().unwrap();
    driver.smmu.hold_power().unwrap();
    driver.smmu.resume().unwrap();
    power.refuses.store(1, Ordering::SeqCst);
    driver.block(&[1]).unwrap();
    assert_eq!(driver.reaches(0x10), None);
    driver.smmu.release_power();
    assert_eq!(power.users.load(Ordering::SeqCst), 0);
    assert!(matches!(driver.plan(&[1], 0).and_then(|()| driver.install(&[1])), Err(IommuError::NoPower(_))));
}

/// One count stood for all: who had asked while it was suspended gave another's power back.
#[test]
fn s5_each_gives_back_the_power_that_it_holds_and_no_other() {
    let (driver, power) = driver_with_power();
    driver.smmu.suspend().unwrap();
    driver.smmu.hold_power().unwrap();
    driver.smmu.resume().unwrap();
    driver.smmu.hold_power().unwrap();
    power.refuses.store(1, Ordering::SeqCst);
    driver.smmu.release_power();
    assert_eq!(power.users.load(Ordering::SeqCst), 1, "the other's");
    driver.smmu.hold_power().unwrap();
    driver.smmu.release_power();
    driver.smmu.release_power();
    assert_eq!(power.users.load(Ordering::SeqCst), 0);
    assert!(matches!(driver.smmu.hold_power(), Err(IommuError::NoPower(_))));
}

/// A handler had looked whether the power was on; the last who had it gave it back between two of its reads.
#[test]
fn q21_s5_what_cannot_wait_has_the_power_itself_for_as_long_as_it_touches_registers() {
    let (power, setup) = counted();
    let part = named("generic v2");
    let (supply, leaves) = (power.clone(), Arc::new(AtomicBool::new(false)));
    let other = leaves.clone();
    let clock = move || {
        if other.swap(false, Ordering::SeqCst) {
            supply.put();
        }
        assert!(supply.is_on(), "an access without a clock hangs the bus");
    };
    let driver = Driver::through(part.config, setup, part.model, |registers| Before::new(registers, clock));
    driver.add(1, &[0x10]);
    driver.assign(&[1], 0).unwrap();
    driver.reaches(0x33);
    power.get().unwrap();
    leaves.store(true, Ordering::SeqCst);
    let mut faults = 0;
    let _ = driver.smmu.take_faults(FaultLine::Global, &mut |_| faults += 1);
    assert_eq!((faults, power.users.load(Ordering::SeqCst)), (1, 0));
    power.get().unwrap();
    leaves.store(true, Ordering::SeqCst);
    driver.smmu.flush(domain(0), None, Patience::Atomic).unwrap();
    assert_eq!(power.users.load(Ordering::SeqCst), 0);
    assert!(matches!(driver.smmu.flush(domain(0), None, Patience::Atomic), Err(IommuError::NoPower(_))));
}

/// A crash said that every stream of a suspended instance faults, and wrote nothing.
#[test]
fn s8_a_crash_puts_a_suspended_unit_in_fault_or_says_that_it_has_no_power() {
    for off in [false, true] {
        for part in parts() {
            let (name, model) = (part.name, part.model.clone());
            let (power, setup) = counted();
            let driver = Driver::with(part.config, setup, part.model);
            driver.add(1, &[0x10]);
            driver.assign(&[1], 0).unwrap();
            driver.smmu.suspend().unwrap();
            assert!(matches!(driver.smmu.crash(), Err(IommuError::NoPower(_))), "{name}");
            if off {
                lose_power(&driver.bench, &model, 3);
            }
            power.get().unwrap();
            driver.smmu.crash().unwrap();
            for id in 0..0x40 {
                assert_eq!(driver.reaches(id), None, "{name}, off: {off}, {id:#x}");
            }
        }
    }
}
