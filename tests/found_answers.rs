//! What a second reading of the service found: answers that did not say what was left, and callers that waited or span for ever
//! (contract A-1, C-2, C-4, C-7, C-15, C-18).

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

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread;

use common::SMMU;
use common::between::Moment;
use common::callbacks::Hooks;
use common::rig::{Alone, Rig, cause};
use iommu_assign::assign::{
    Cause, Device, DeviceSpec, DeviceState, HookError, IommuError, IommuPower, Left, Operation, Quarantine, Removal,
    Why,
};
use iommu_assign::sync::Spin;

#[test]
fn a1_a_mate_that_cannot_be_cleansed_leaves_the_device_that_was_to_move_as_it_was() {
    let mut rig = Rig::<Spin>::new();
    let hooks = Arc::new(Hooks::new().reset(|_| Err(HookError("stuck"))));
    let mate = DeviceSpec { hooks, ..rig.spec("mate", 0x10) };
    let mate = rig.service.add(mate).unwrap();
    rig.service.quarantine(&mate, Quarantine::Faults).unwrap();
    let device = rig.add("device", 0x10);
    let error = rig.service.assign(&device, &rig.domains[0]).unwrap_err();
    assert!(matches!(error.cause, Cause::Hook { .. }), "{error}");
    assert_eq!((error.left, rig.state(&device)), (Left::Unchanged, Some(DeviceState::Blocked)));
    rig.audit();
}

#[test]
fn c4_a_release_hook_may_wait_for_what_the_tree_removal_has_left() {
    let mut rig = Rig::<Alone>::new();
    let mate: Arc<OnceLock<Device>> = Arc::default();
    let (to_assign, way, domain) = (mate.clone(), rig.way.clone(), rig.domains[0].clone());
    let came = Arc::new(Mutex::new(None));
    let record = came.clone();
    let hooks = Arc::new(Hooks::new().release(move |context| {
        let (service, mate) = (way.service().unwrap(), to_assign.get().unwrap());
        let assigned = service.within(context.chain).wait(None, |service| service.assign(mate, &domain));
        *record.lock().unwrap() = Some(assigned);
    }));
    let parent = rig.add("parent", 0x10);
    let child = DeviceSpec { hooks, parent: Some(parent.key()), ..rig.spec("child", 0x12) };
    let _ = rig.service.add(child).unwrap();
    mate.set(rig.add("mate", 0x10)).unwrap();
    assert_eq!(rig.service.remove_tree(parent.key()), Ok(Removal::Done));
    assert_eq!(came.lock().unwrap().take(), Some(Ok(())), "the parent's group was claimed by nobody");
    rig.audit();
}

#[test]
fn c19_a_wait_is_not_woken_by_what_its_own_callbacks_gave_back() {
    let asked = Arc::new(AtomicU32::new(0));
    let (count, other) = (asked.clone(), Arc::new(OnceLock::<Device>::new()));
    let nested = other.clone();
    let mut rig = Rig::<Alone>::asking(move |service, request| {
        if matches!(request.why, Why::Assign) && request.device.label().to_string() == "device" {
            count.fetch_add(1, Ordering::Relaxed);
            let _ = service.within(request.chain).deassign(nested.get().unwrap());
        }
        true
    });
    let device = rig.add("device", 0x10);
    let ending = rig.add("other", 0x12);
    rig.service.assign(&ending, &rig.domains[0]).unwrap();
    other.set(ending).unwrap();
    rig.driver.plans_are_busy.store(true, Ordering::Relaxed);
    let before = Alone::sleeps();
    let error = rig.service.wait(None, |service| service.assign(&device, &rig.domains[0])).unwrap_err();
    assert!(matches!(error.cause, Cause::TimedOut { .. }), "{error}");
    assert_eq!((asked.load(Ordering::Relaxed), Alone::sleeps() - before), (1, 1), "asked once, then slept");
}

#[test]
fn c5_a_child_whose_removal_failed_is_a_child() {
    let mut rig = Rig::<Alone>::new();
    let parent = rig.add("parent", 0x10);
    let child = DeviceSpec { parent: Some(parent.key()), ..rig.spec("child", 0x11) };
    let child = rig.service.add(child).unwrap();
    let inside = child.enter::<Alone>().unwrap();
    assert!(matches!(cause(&rig.service.remove(child.key())), Cause::StillInUse { calls: 1 }));
    let refused = rig.service.remove_and_wait(parent.key(), None);
    assert_eq!(
        *cause(&refused),
        Cause::HasChildren { children: 1, first: child.label().clone() },
        "nobody removes it, so nobody waits for that"
    );
    drop(inside);
    rig.service.remove(child.key()).unwrap();
    rig.service.remove_and_wait(parent.key(), None).unwrap();
}

#[test]
fn c2_a_removal_that_was_waited_for_in_vain_says_that_it_is_pending() {
    let mut rig = Rig::<Alone>::new();
    let device = rig.add("device", 0x10);
    let reservation = rig.service.reserve(&device, &rig.domains[0]).unwrap();
    let error = rig.service.remove_and_wait(device.key(), None).unwrap_err();
    assert_eq!((error.cause, error.left), (Cause::TimedOut { running: Operation::Remove }, Left::Pending));
    assert_eq!(*cause(&reservation.commit()), Cause::Removed);
    assert_eq!(rig.state(&device), None);
}

#[test]
fn c7_a_device_of_a_source_that_has_ended_is_not_added() {
    let mut rig = Rig::<Spin>::new();
    let source = rig.service.source_object();
    let spec = DeviceSpec { source: Some(source.life()), ..rig.spec("late", 0x10) };
    rig.service.end_source(source).unwrap();
    let error = rig.service.add(spec).unwrap_err();
    assert_eq!((error.cause, error.left), (Cause::SourceEnded, Left::Unchanged));
    assert_eq!(rig.service.devices().count(), 0);
    rig.audit();
}

#[test]
fn c18_handles_of_another_service_are_strangers() {
    let mut rig = Rig::<Spin>::new();
    let mut other = Rig::<Spin>::new();
    let (mine, theirs) = (rig.add("device", 0x10), other.add("device", 0x10));
    assert_eq!((mine.id(), mine.key()), (theirs.id(), theirs.key()), "numbers and keys are a service's own");
    assert_eq!(rig.domains[0].id(), other.domains[0].id());
    assert!(matches!(cause(&rig.service.assign(&mine, &other.domains[0])), Cause::DomainGone { .. }));
    assert_eq!(*cause(&rig.service.assign(&theirs, &rig.domains[0])), Cause::Gone);
    assert_eq!(*cause(&rig.service.destroy_domain(&other.domains[0])), Cause::Gone);
    assert_eq!(rig.state(&mine), Some(DeviceState::Blocked));
    rig.service.assign(&mine, &rig.domains[0]).unwrap();
    rig.audit();
}

#[test]
fn c15_an_instance_whose_last_device_is_being_removed_is_busy() {
    let mut rig = Rig::<Spin>::new();
    let device = rig.add("device", 0x10);
    assert_eq!(
        *cause(&rig.service.unregister_iommu(common::SMMU)),
        Cause::InUse { devices: 1, first: device.label().clone() }
    );
    let reservation = rig.service.reserve(&device, &rig.domains[0]).unwrap();
    assert_eq!(rig.service.remove(device.key()), Ok(Removal::Pending));
    assert_eq!(*cause(&rig.service.assign(&device, &rig.domains[0])), Cause::Gone);
    assert_eq!(*cause(&rig.service.unregister_iommu(common::SMMU)), Cause::Busy { running: Operation::Remove });
    assert_eq!(*cause(&reservation.abandon()), Cause::Removed);
    rig.service.unregister_iommu(common::SMMU).unwrap();
}

/// `one` and `two` belong together through `bridge` alone. The policy, asked whether `late` may share the entry of `one`, removes
/// `bridge`, and says no.
#[test]
fn c2_a_group_that_falls_apart_under_a_refused_add_stays_apart() {
    let to_remove: Arc<OnceLock<Device>> = Arc::default();
    let found = to_remove.clone();
    let mut rig = Rig::<Spin>::asking(move |service, request| {
        if !matches!(request.why, Why::Shares { .. }) || request.device.label().to_string() != "late" {
            return true;
        }
        service.within(request.chain).remove(found.get().unwrap().key()).unwrap();
        false
    });
    let one = rig.add("one", 0x10);
    let bridge = rig.bench.spec("bridge", &[(0x10, 0), (0x11, 0)]);
    let bridge = rig.service.add(bridge).unwrap();
    let two = rig.add("two", 0x11);
    assert_eq!(rig.group(&one), rig.group(&two));
    rig.service.assign(&one, &rig.domains[0]).unwrap();
    to_remove.set(bridge).unwrap();
    let late = rig.spec("late", 0x10);
    assert!(matches!(cause(&rig.service.add(late)), Cause::GroupConflict { .. }));
    let _ = rig.service.deassign(&one).unwrap();
    assert_ne!(rig.group(&one), rig.group(&two), "nothing ties them together any more");
    rig.audit();
}

/// The same, where the add succeeds: it joins only the part that it belongs to.
#[test]
fn c2_an_add_joins_no_part_of_a_group_that_fell_apart_meanwhile() {
    let to_remove: Arc<OnceLock<Device>> = Arc::default();
    let found = to_remove.clone();
    let mut rig = Rig::<Spin>::asking(move |service, request| {
        if matches!(request.why, Why::Shares { .. }) && request.device.label().to_string() == "late" {
            let within = service.within(request.chain);
            within.remove(found.get().unwrap().key()).unwrap();
        }
        true
    });
    let one = rig.add("one", 0x10);
    let bridge = rig.bench.spec("bridge", &[(0x10, 0), (0x11, 0)]);
    let bridge = rig.service.add(bridge).unwrap();
    let two = rig.add("two", 0x11);
    rig.service.assign(&one, &rig.domains[0]).unwrap();
    to_remove.set(bridge).unwrap();
    let late = rig.spec("late", 0x10);
    let late = rig.service.add(late).unwrap();
    let _ = rig.service.deassign(&one).unwrap();
    assert_eq!(rig.group(&one), rig.group(&late));
    assert_ne!(rig.group(&one), rig.group(&two));
    rig.audit();
}

/// Between the driver's last word and the service's, a forced unregister is neither done nor undone.
#[test]
fn c9_a_domain_is_not_destroyed_while_an_iommu_of_its_own_is_being_closed() {
    let mut rig = Rig::<Spin>::new();
    let device = rig.add("device", 0x10);
    rig.service.assign(&device, &rig.domains[0]).unwrap();
    rig.driver.inner.close().unwrap();
    assert!(matches!(cause(&rig.service.deassign(&device)), Cause::Iommu { error: IommuError::ProviderGone, .. }));
    let error = rig.service.destroy_domain(&rig.domains[0]).unwrap_err();
    assert_eq!(error.cause, Cause::Busy { running: Operation::UnregisterIommu }, "{error}");
    rig.service.force_unregister_iommu(common::SMMU).unwrap();
    rig.service.destroy_domain(&rig.domains[0]).unwrap();
}

/// Whoever asked for it was told that it goes.
#[test]
fn c2_c18_a_device_that_is_asked_to_go_while_it_is_registered_anew_stays_out() {
    let mut rig = Rig::<Alone>::new();
    let spec = rig.spec("a", 0x10);
    let device = rig.service.add(spec.clone()).unwrap();
    rig.service.assign(&device, &rig.domains[0]).unwrap();
    let key = spec.key;
    rig.driver.at(Moment::BeforeWithdraw, move |service| assert_eq!(service.remove(key), Ok(Removal::Pending)));
    let results = rig.service.reregister(&[device], &mut || vec![spec.clone()], &mut || false).unwrap();
    let error = results[0].result.clone().unwrap_err();
    assert_eq!((error.cause, error.left, results[0].device.is_none()), (Cause::Removed, Left::Removed, true));
    assert_eq!(rig.service.devices().count(), 0);
    rig.service.destroy_domain(&rig.domains[0]).unwrap();
}

/// What is in the way of a device that is registered anew goes its way, and the device comes back.
#[test]
fn c18_a_device_that_is_registered_anew_waits_for_what_is_in_its_way() {
    let mut rig = Rig::<Spin>::new();
    let ((entered, is_in), (go, may_go)) = (mpsc::channel(), mpsc::channel());
    let may_go = Mutex::new(may_go);
    let hooks = Hooks::new().quiesce(move |_| {
        entered.send(()).unwrap();
        may_go.lock().unwrap().recv().unwrap();
        Ok(())
    });
    let (before, mate) = (rig.spec("a", 0x10), DeviceSpec { hooks: Arc::new(hooks), ..rig.spec("b", 0x11) });
    let now = DeviceSpec { streams: mate.streams.clone(), ..before.clone() };
    let (device, mate) = (rig.service.add(before).unwrap(), rig.service.add(mate).unwrap());
    rig.service.assign(&mate, &rig.domains[0]).unwrap();
    let (service, leaving) = (rig.service.clone(), mate.clone());
    let mut other = Some(thread::spawn(move || service.deassign(&leaving).map(drop)));
    is_in.recv().unwrap();
    let mut again = || {
        go.send(()).unwrap();
        other.take().unwrap().join().unwrap().unwrap();
        true
    };
    let results = rig.service.reregister(&[device], &mut || vec![now.clone()], &mut again).unwrap();
    results[0].result.clone().unwrap();
    assert!(other.is_none());
    assert_eq!(rig.group(results[0].device.as_ref().unwrap()), rig.group(&mate));
    rig.audit();
}

/// Look-ups have seen the device, which no refused add would have let them.
#[test]
fn c2_c15_an_add_that_ends_in_its_removal_says_so_though_its_iommu_goes_too() {
    let mut rig = Rig::<Alone>::new();
    let (spec, domain) = (rig.spec("a", 0x10), rig.domains[0].clone());
    let key = spec.key;
    rig.driver.at(Moment::AfterPublish, move |service| assert_eq!(service.remove(key), Ok(Removal::Pending)));
    rig.driver.at(Moment::BeforeWithdraw, move |service| {
        let device = service.find(key).unwrap().device;
        service.force_unregister_iommu(SMMU).unwrap();
        assert_eq!(service.reassign(&device, &domain).unwrap_err().cause, Cause::Gone);
    });
    let error = rig.service.add(spec).unwrap_err();
    assert_eq!((error.cause, error.left), (Cause::Removed, Left::Unchanged));
    assert_eq!(rig.service.devices().count(), 0);
}
