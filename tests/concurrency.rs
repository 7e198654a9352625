//! Concurrency, as far as one thread can show it through hooks that come back: contract section 3.

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

use std::sync::{Arc, Mutex, OnceLock, Weak};

use common::{Anyone, Bench, PAGE, SMMU, stream};
use iommu_assign::assign::{
    Cause, Device, DeviceHooks, DeviceKey, Error, HookContext, HookError, IommuError, IommuKey, Left, Operation,
    Removal, Service, Source, StreamId,
};
use iommu_assign::sync::Spin;
use machine::Reached;
use smmu_model::{Config, Injection, SyncRegister};

type Act = dyn Fn(&Device) -> Result<(), HookError> + Send + Sync;

/// Hooks that run a closure in the middle of an operation.
struct InTheMiddle(Box<Act>);

impl std::fmt::Debug for InTheMiddle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("InTheMiddle")
    }
}

impl DeviceHooks for InTheMiddle {
    fn quiesce(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        (self.0)(context.device)
    }

    fn reset(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        Ok(())
    }

    fn release(&self, _: &HookContext<'_>) {}
}

fn hooked(act: impl Fn(&Device) -> Result<(), HookError> + Send + Sync + 'static) -> Arc<dyn DeviceHooks> {
    Arc::new(InTheMiddle(Box::new(act)))
}

/// The service as a hook reaches it.
type Way = Arc<OnceLock<Weak<Service<Spin>>>>;

#[test]
fn c1_c2_a_claimed_group_answers_busy_and_i14_faults_in_the_middle() {
    let mut bench = Bench::v2();
    let machine = bench.machine.clone();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    let mut spec = bench.spec("dma", &[(0x10, 0)]);
    spec.hooks = hooked(move |_| {
        record.lock().unwrap().push(machine.dma_write(SMMU, StreamId::new(0x10), PAGE).unwrap());
        Ok(())
    });
    let device = bench.service.add(spec).unwrap();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    bench.assign(&device, &one).unwrap();
    bench.reassign(&device, &two).unwrap();
    assert_eq!(*seen.lock().unwrap(), [Reached::Fault], "in between the device reaches nobody");
}

/// A bench whose service can be reached from hooks.
fn shared() -> (Bench, Way) {
    (Bench::v2(), Arc::new(OnceLock::new()))
}

#[test]
fn c1_c2_c4_what_a_hook_may_and_may_not_do() {
    let (mut bench, way) = shared();
    let service: Arc<Service<Spin>> = Arc::new(Service::new(Box::new(Anyone)));
    way.set(Arc::downgrade(&service)).unwrap();
    let smmu = bench.smmu(IommuKey::new(0x6000_0000), Config::generic_v2());
    service.register_iommu(smmu).unwrap();
    let key = IommuKey::new(0x6000_0000);
    let guest = bench.guest("guest");
    let domain = service.create_domain("guest".into(), guest.domain.space().stage2).unwrap();
    let seen: Arc<Mutex<Vec<Result<(), Error>>>> = Arc::default();
    let mut spec = bench.spec("device", &[]);
    spec.streams.push(stream(key, 0x10, 0));
    let mut other = bench.spec("added by the hook", &[]);
    other.streams.push(stream(key, 0x20, 0));
    let (inner, record, target) = (way.clone(), seen.clone(), domain.clone());
    spec.hooks = hooked(move |device| {
        let service = inner.get().unwrap().upgrade().unwrap();
        let mut seen = record.lock().unwrap();
        // The same group is claimed: no effect, and no deadlock.
        seen.push(service.assign(device, &target));
        // Another device is free to come and go.
        seen.push(service.add(other.clone()).and_then(|added| service.remove(added.key())).map(drop));
        // A removal of the device itself is not lost: it follows the operation.
        seen.push(service.remove(device.key()).map(|removal| assert_eq!(removal, Removal::Pending)));
        Ok(())
    });
    let device = service.add(spec).unwrap();
    bench.oracle.allow(device.label(), &[(0x10, 0)], &[guest.backing]);
    service.assign(&device, &domain).unwrap();
    let error = service.deassign(&device).unwrap_err();
    assert_eq!((error.cause, error.left), (Cause::Removed, Left::Removed));
    let seen = seen.lock().unwrap();
    let busy = seen[0].as_ref().unwrap_err();
    assert_eq!(busy.cause, Cause::Busy { running: Operation::Deassign });
    assert_eq!(seen[1..], [Ok(()), Ok(())]);
    assert!(service.find(device.key()).is_none(), "C-2: the mark was honoured");
    service.destroy_domain(&domain).unwrap();
}

#[test]
fn c5_a_parent_goes_after_its_children_and_a_child_needs_a_parent() {
    let mut bench = Bench::v2();
    let bridge = bench.add("bridge", &[(0x10, 0)]);
    let mut spec = bench.spec("child", &[(0x20, 0)]);
    spec.parent = Some(bridge.key());
    let child = bench.service.add(spec.clone()).unwrap();
    assert_eq!((bridge.depth(), child.depth()), (0, 1));
    assert_eq!(bench.remove(&bridge).unwrap_err().cause, Cause::HasChildren { children: 1 });
    bench.remove(&child).unwrap();
    bench.remove(&bridge).unwrap();
    assert_eq!(bench.service.add(spec).unwrap_err().cause, Cause::ParentMissing);
}

#[test]
fn c6_a_traversal_survives_the_removal_of_the_entry_that_it_stands_on() {
    let mut bench = Bench::v2();
    let devices: Vec<Device> = (0..6).map(|id| bench.add(&format!("device {id}"), &[(id * 2, 0)])).collect();
    let generation = bench.service.generation();
    let mut seen = Vec::new();
    let mut at = None;
    while let Some(info) = bench.service.next_device(at) {
        at = Some(info.device.key());
        if seen.len() == 2 {
            bench.service.remove(info.device.key()).unwrap();
        }
        seen.push(info.device.key());
    }
    assert_eq!(seen, devices.iter().map(Device::key).collect::<Vec<_>>());
    assert_ne!(bench.service.generation(), generation);
    assert_eq!(bench.service.devices().count(), 5);
}

#[test]
fn c7_an_old_handle_never_means_the_device_that_came_after() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let spec = bench.spec("plug", &[(0x10, 0)]);
    let old = bench.service.add(spec.clone()).unwrap();
    bench.remove(&old).unwrap();
    let new = bench.service.add(spec).unwrap();
    assert_eq!(old.key(), new.key());
    assert_eq!(bench.assign(&old, &guest).unwrap_err().cause, Cause::Gone);
    assert_eq!(bench.dma(0x10), Reached::Fault);
    bench.assign(&new, &guest).unwrap();
    assert_eq!(bench.deassign(&old).unwrap_err().cause, Cause::Gone);
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
}

#[test]
fn c8_a_device_that_is_unplugged_while_assigned_is_cut_drained_and_forgotten() {
    let mut bench = Bench::v2();
    let mut guest = bench.guest("guest");
    let device = bench.add("nic", &[(0x10, 0x3)]);
    bench.assign(&device, &guest).unwrap();
    assert_eq!(bench.dma(0x11), Reached::Memory(guest.backing));
    assert_eq!(bench.remove(&device).unwrap(), Removal::Done);
    // The tables may go now: nothing leads into them.
    bench.service.destroy_domain(&guest.domain).unwrap();
    guest.tables.scribble();
    assert_eq!(bench.dma(0x11), Reached::Fault);
    bench.audit();
}

#[test]
fn c9_a_provider_goes_only_when_nobody_needs_it_and_a_missing_one_is_named() {
    let mut bench = Bench::v2();
    let device = bench.add("dma", &[(0x10, 0)]);
    assert_eq!(bench.service.unregister_iommu(SMMU).unwrap_err().cause, Cause::InUse { devices: 1 });
    bench.remove(&device).unwrap();
    bench.service.unregister_iommu(SMMU).unwrap();
    assert_eq!(bench.service.unregister_iommu(SMMU).unwrap_err().cause, Cause::NotFound);
    let spec = bench.spec("later", &[(0x10, 0)]);
    assert_eq!(bench.service.add(spec).unwrap_err().cause, Cause::ProviderMissing(SMMU));
}

#[test]
fn c14_a_sync_that_never_completes_holds_up_nobody_else() {
    let other = IommuKey::new(0x6000_0000);
    let mut bench = Bench::v2();
    bench.smmu(other, Config::generic_v2());
    let guest = bench.guest("guest");
    let stuck = bench.add("stuck", &[(0x10, 0)]);
    let mut spec = bench.spec("free", &[]);
    spec.streams.push(stream(other, 0x20, 0));
    let free = bench.service.add(spec).unwrap();
    bench.assign(&stuck, &guest).unwrap();
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    let (reads, _, refused) = bench.cost(|| bench.service.deassign(&stuck));
    assert!(matches!(refused.unwrap_err().cause, Cause::Iommu { error: IommuError::SyncTimeout { .. }, .. }));
    assert_eq!(reads, 100, "the bound that the integrator gave");
    bench.oracle.allow(stuck.label(), &[(0x10, 0)], &[]);
    bench.assign(&free, &guest).unwrap();
    drop(bench.deassign(&free).unwrap());
}

#[test]
fn c20_a_hook_that_fails_ends_with_the_device_quarantined_and_nobody_busy() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let mut spec = bench.spec("device", &[(0x10, 0)]);
    spec.hooks = hooked(|_| Err(HookError("link is down")));
    let device = bench.service.add(spec).unwrap();
    bench.assign(&device, &guest).unwrap();
    let error = bench.deassign(&device).unwrap_err();
    assert_eq!(error.cause, Cause::Hook { step: "quiesce", reason: "link is down" });
    assert_eq!(error.left, Left::Quarantined);
    assert_eq!(bench.dma(0x10), Reached::Fault);
    bench.assign(&device, &guest).unwrap();
    bench.remove(&device).unwrap();
    bench.audit();
}

#[test]
fn c15_two_cpus_adding_devices_of_one_group_end_in_one_group_or_busy() {
    let mut bench = Bench::v2();
    let specs: Vec<_> = (0..16).map(|n| bench.spec(&format!("function {n}"), &[(0x40, 0x7), (0x100 + n, 0)])).collect();
    let service = &bench.service;
    std::thread::scope(|scope| {
        for half in specs.chunks(8) {
            scope.spawn(move || {
                for spec in half {
                    loop {
                        match service.add(spec.clone()) {
                            Ok(_) => break,
                            Err(error) => assert!(matches!(error.cause, Cause::Busy { .. }), "{error}"),
                        }
                    }
                }
            });
        }
    });
    let groups: std::collections::BTreeSet<DeviceKey> = bench.service.devices().map(|info| info.group).collect();
    assert_eq!((bench.service.devices().count(), groups.len()), (16, 1));
    bench.audit();
    assert_eq!(specs[0].key.source(), Source::Dt);
}

#[test]
fn a_group_falls_apart_when_the_member_that_joined_it_leaves() {
    let mut bench = Bench::v2();
    let (left, right) = (bench.add("left", &[(0x10, 0)]), bench.add("right", &[(0x11, 0)]));
    let middle = bench.add("middle", &[(0x10, 0x1)]);
    let group = |bench: &Bench, device: &Device| bench.service.find(device.key()).unwrap().group;
    assert_eq!(group(&bench, &left), group(&bench, &right));
    bench.remove(&middle).unwrap();
    assert_ne!(group(&bench, &left), group(&bench, &right));
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    bench.assign(&left, &one).unwrap();
    bench.assign(&right, &two).unwrap();
    bench.audit();
}
