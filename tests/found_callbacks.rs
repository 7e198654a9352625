//! What a second reading of the service found: callbacks that nest an operation about a sharer of what is being moved, added or
//! removed (contract C-2, C-4, C-7, I-11, I-14, A-11).

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

use std::sync::{Arc, Mutex, OnceLock};

use common::callbacks::Hooks;
use common::rig::Rig;
use iommu_assign::assign::{Cause, Device, DeviceSpec, DeviceState, Domain, Left, Operation, Quarantine, Removal, Why};
use iommu_assign::sync::Spin;

/// A device whose assign asks the policy; that assigns a sharer of its entry first, then says no.
fn denied_beside_a_sharer(quarantined: bool) {
    let sharer: Arc<OnceLock<(Device, Domain<Spin>)>> = Arc::default();
    let (seen, nested) = (sharer.clone(), Arc::new(Mutex::new(None)));
    let found = nested.clone();
    let mut rig = Rig::<Spin>::asking(move |service, request| {
        let Some((sharer, domain)) = seen.get().filter(|_| request.device.label().to_string() == "a") else {
            return true;
        };
        *found.lock().unwrap() = Some(service.within(request.chain).assign(sharer, domain));
        false
    });
    let a = rig.add("a", 0x10);
    if quarantined {
        rig.service.assign(&a, &rig.domains[1]).unwrap();
        rig.service.quarantine(&a, Quarantine::Faults).unwrap();
    }
    let b = rig.add("b", 0x10);
    sharer.set((b.clone(), rig.domains[0].clone())).unwrap();
    let error = rig.service.assign(&a, &rig.domains[0]).unwrap_err();
    assert!(matches!(error.cause, Cause::Denied { .. }), "{error}");
    let nested = nested.lock().unwrap().take().unwrap().unwrap_err();
    assert!(matches!(nested.cause, Cause::Busy { .. }), "{nested}");
    assert_eq!(rig.state(&b), Some(DeviceState::Blocked), "their entry is one");
    rig.audit();
}

#[test]
fn a11_a_nested_assign_does_not_take_along_what_is_being_asked_about() {
    denied_beside_a_sharer(false);
    denied_beside_a_sharer(true);
}

#[test]
fn i14_a_nested_group_reassign_leaves_what_is_being_deassigned() {
    let mut rig = Rig::<Spin>::new();
    let b = rig.add("b", 0x10);
    let (sharer, other) = (b.clone(), rig.domains[1].clone());
    let spec = rig.spec("a", 0x10);
    let (spec, came) = rig
        .hooked(spec, move |service, context| service.within(context.chain).reassign_group(&sharer, &other).is_err());
    let a = rig.service.add(spec).unwrap();
    rig.service.assign(&a, &rig.domains[0]).unwrap();
    rig.service.assign(&b, &rig.domains[0]).unwrap();
    let _ = rig.service.deassign(&a).unwrap();
    assert_eq!(came.lock().unwrap().first(), Some(&true), "its group has an owner that it shares an entry with");
    assert_eq!(rig.state(&a), Some(DeviceState::Blocked));
    assert_eq!(rig.state(&b), Some(DeviceState::Assigned(rig.domains[0].id())));
    rig.audit();
}

/// The policy denies every sharer, and nests the add of one while `a` is on its way to another domain.
#[test]
fn i11_an_add_during_a_reassign_asks_about_the_entry_that_it_shares() {
    let spec: Arc<OnceLock<DeviceSpec>> = Arc::default();
    let (to_add, added) = (spec.clone(), Arc::new(Mutex::new(None)));
    let found = added.clone();
    let mut rig = Rig::<Spin>::asking(move |service, request| {
        if let (Why::Assign, Some(spec)) = (request.why, to_add.get()) {
            *found.lock().unwrap() = Some(service.within(request.chain).add(spec.clone()));
        }
        !matches!(request.why, Why::Shares { .. })
    });
    let a = rig.add("a", 0x10);
    rig.service.assign(&a, &rig.domains[0]).unwrap();
    spec.set(rig.spec("c", 0x10)).unwrap();
    rig.service.reassign(&a, &rig.domains[1]).unwrap();
    let error = added.lock().unwrap().take().unwrap().unwrap_err();
    assert!(matches!(error.cause, Cause::GroupConflict { .. }), "{error}");
    assert_eq!(rig.service.devices().count(), 1);
    rig.audit();
}

#[test]
fn i11_an_add_in_a_reset_hook_asks_about_the_entry_that_will_be_live() {
    let mut rig = Rig::<Spin>::asking(|_, request| !matches!(request.why, Why::Shares { .. }));
    let (sharer, spec) = (rig.spec("c", 0x10), rig.spec("a", 0x10));
    let (spec, came) =
        rig.hooked(spec, move |service, context| service.within(context.chain).add(sharer.clone()).is_err());
    let a = rig.service.add(spec).unwrap();
    rig.service.assign(&a, &rig.domains[0]).unwrap();
    rig.service.reassign(&a, &rig.domains[1]).unwrap();
    assert_eq!(came.lock().unwrap().first(), Some(&true));
    assert_eq!(rig.service.devices().count(), 1);
    rig.audit();
}

#[test]
fn c2_a_removal_from_the_callback_of_its_own_add_is_carried_out_when_that_ends() {
    let (answers, released) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
    let seen = answers.clone();
    let mut rig = Rig::<Spin>::asking(move |service, request| {
        if matches!(request.why, Why::Shares { .. }) {
            seen.lock().unwrap().push(service.within(request.chain).remove(request.device.key()));
        }
        true
    });
    let a = rig.add("a", 0x10);
    rig.service.assign(&a, &rig.domains[0]).unwrap();
    let count = released.clone();
    let hooks = Arc::new(Hooks::new().release(move |_| *count.lock().unwrap() += 1));
    let spec = DeviceSpec { hooks, ..rig.spec("c", 0x10) };
    let error = rig.service.add(spec).unwrap_err();
    assert_eq!((error.operation, error.cause, error.left), (Operation::Add, Cause::Removed, Left::Unchanged));
    assert_eq!(*answers.lock().unwrap(), [Ok(Removal::Pending)]);
    assert_eq!((rig.service.devices().count(), *released.lock().unwrap()), (1, 0));
    rig.audit();
}

#[test]
fn c7_a_registration_whose_removal_was_pending_when_its_source_ended_is_reaped() {
    let mut rig = Rig::<Spin>::new();
    let source = rig.service.source_object();
    let spec = DeviceSpec { source: Some(source.life()), ..rig.spec("a", 0x10) };
    let a = rig.service.add(spec).unwrap();
    let reservation = rig.service.reserve(&a, &rig.domains[0]).unwrap();
    let call = a.enter::<Spin>();
    rig.service.end_source(source).unwrap();
    assert!(reservation.abandon().is_err());
    assert_eq!(rig.state(&a), Some(DeviceState::Going), "a call is inside");
    drop(call);
    rig.service.reap();
    assert_eq!(rig.state(&a), None);
}
