//! Operations from inside callbacks: what works under the claims above, what is refused, and what is never waited for
//! (contract C-4, C-5).

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

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use common::SMMU;
use common::rig::cause;
use iommu_assign::assign::{Cause, Deassigned, DeviceSpec, DeviceState, Error, IommuError, Left, Operation, Removal};

type Rig = common::rig::Rig<common::waiting::Host<0>>;

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_secs(20))
}

#[test]
fn c4_a_bridge_adds_its_children_from_its_own_hook_under_its_claim() {
    let mut rig = Rig::new();
    let bridge = rig.spec("bridge", 0x10);
    let mut child = rig.spec("child", 0x11);
    child.parent = Some(bridge.key);
    let offered = child.clone();
    let (bridge, seen) = rig.hooked(bridge, move |service, context| {
        let outside = service.add(offered.clone()).map(|device| device.key());
        let inside = service.within(context.chain).add(offered.clone()).map(|device| device.key());
        (outside, inside)
    });
    let bridge = rig.service.add(bridge).unwrap();
    rig.service.assign(&bridge, &rig.domains[0]).unwrap();
    rig.service.reassign(&bridge, &rig.domains[1]).unwrap();
    let seen = seen.lock().unwrap();
    let (outside, inside) = &seen[0];
    assert_eq!(*cause(outside), Cause::Busy { running: Operation::Reassign }, "C-4: outside, add claims the parent");
    assert_eq!(*inside, Ok(child.key));
    assert!(rig.service.find(child.key).is_some_and(|info| info.device.depth() == 1));
    assert_eq!(
        cause(&rig.service.remove(bridge.key())),
        &Cause::HasChildren { children: 1, first: "child".into() },
        "C-5: the parent counts it"
    );
    rig.service.remove_tree(bridge.key()).unwrap();
    rig.audit();
}

#[test]
fn c4_an_add_outside_lets_its_parents_claim_go_whether_it_succeeds_or_fails() {
    let mut rig = Rig::new();
    let bridge = rig.spec("bridge", 0x10);
    let bridge = rig.service.add(bridge).unwrap();
    let mut child = rig.spec("child", 0x11);
    child.parent = Some(bridge.key());
    let mut bad = child.clone();
    bad.streams = vec![common::stream(SMMU, 0x8_0000, 0)];
    assert!(matches!(cause(&rig.service.add(bad)), Cause::Iommu { .. }));
    rig.service.assign(&bridge, &rig.domains[0]).unwrap();
    // A child of the parent's own group: the claims become one, and are let go once.
    let mut alias = rig.spec("child", 0x10);
    alias.parent = Some(bridge.key());
    let alias = rig.service.add(alias).unwrap();
    let child = rig.service.add(child).unwrap();
    drop(rig.service.deassign(&bridge).unwrap());
    for device in [child, alias, bridge] {
        assert_eq!(rig.service.remove(device.key()), Ok(Removal::Done));
    }
    rig.audit();
}

#[test]
fn c4_what_waits_in_a_circle_hears_would_deadlock_and_nothing_happens() {
    let mut rig = Rig::new();
    let (first, second, third) = (rig.spec("first", 0x10), rig.spec("second", 0x11), rig.spec("third", 0x12));
    let (first, third) = (rig.service.add(first).unwrap(), rig.service.add(third).unwrap());
    let domain = rig.domains[0].clone();
    let (before, after, target) = (first.clone(), third.clone(), domain.clone());
    let (second, seen) = rig.hooked(second, move |service, context| {
        let within = service.within(context.chain);
        let own = within.wait(soon(), |s| s.assign(context.device, &target));
        let own_try = within.assign(context.device, &target);
        // Nobody has claimed these: there is nothing to wait for, whatever their place in the order.
        let earlier = within.wait(soon(), |s| s.assign(&before, &target));
        let later = within.wait(soon(), |s| s.assign(&after, &target));
        [own, own_try, earlier, later]
    });
    let second = rig.service.add(second).unwrap();
    rig.service.assign(&second, &domain).unwrap();
    drop(rig.service.deassign(&second).unwrap());
    let seen = seen.lock().unwrap();
    let [own, own_try, earlier, later] = &seen[0];
    assert_eq!(*cause(own), Cause::WouldDeadlock { running: Operation::Deassign });
    assert_eq!(*cause(own_try), Cause::Busy { running: Operation::Deassign }, "try forms are always legal");
    assert_eq!((earlier, later), (&Ok(()), &Ok(())));
    for device in [&first, &third] {
        assert_eq!(rig.state(device), Some(DeviceState::Assigned(domain.id())));
    }
    assert_eq!(rig.state(&second), Some(DeviceState::Blocked), "its own operation went on");
}

/// Two devices whose resets each want the other: whoever is later in the order must not wait.
#[test]
fn c4_c5_two_hooks_that_wait_for_each_other_both_end() {
    let mut rig = Rig::new();
    let specs = [rig.spec("first", 0x10), rig.spec("second", 0x11)];
    let keys = [specs[0].key, specs[1].key];
    let inside = Arc::new(std::sync::Barrier::new(2));
    let mut records = Vec::new();
    let mut devices = Vec::new();
    for (n, spec) in specs.into_iter().enumerate() {
        let (other, together) = (keys[1 - n], inside.clone());
        let once = std::sync::Once::new();
        let (spec, seen) = rig.hooked(spec, move |service, context| {
            if once.is_completed() {
                // The other one's nested operation resets this device too.
                return Ok(Deassigned::default());
            }
            once.call_once(|| ());
            together.wait();
            let other = service.find(other).unwrap().device;
            service.within(context.chain).wait(soon(), |s| s.deassign(&other))
        });
        devices.push(rig.service.add(spec).unwrap());
        records.push(seen);
    }
    for device in &devices {
        rig.service.assign(device, &rig.domains[0]).unwrap();
    }
    std::thread::scope(|scope| {
        for device in &devices {
            let (service, domain) = (&rig.service, &rig.domains[1]);
            scope.spawn(move || service.reassign(device, domain).unwrap());
        }
    });
    let later = records[1].lock().unwrap();
    assert_eq!(*cause(&later[0]), Cause::WouldDeadlock { running: Operation::Reassign });
    // The earlier one waited until the later one was done, and took it from its new owner (its reset met nobody then).
    assert!(records[0].lock().unwrap()[0].is_ok(), "{:?}", records[0]);
    assert_eq!(rig.state(&devices[0]), Some(DeviceState::Assigned(rig.domains[1].id())));
    assert_eq!(rig.state(&devices[1]), Some(DeviceState::Blocked));
}

#[test]
fn c4_a_group_that_is_claimed_above_can_be_worked_in_but_not_be_split_between_owners() {
    let mut rig = Rig::new();
    let [first, mate] = rig.on_one_bus();
    let mate = rig.service.add(mate).unwrap();
    let [one, two] = rig.domains.clone();
    let (inner, here, there) = (mate.clone(), one.clone(), two.clone());
    let (first, seen) = rig.hooked(first, move |service, context| {
        let within = service.within(context.chain);
        let out = within.deassign(&inner).map(drop);
        let elsewhere = within.assign(&inner, &there);
        let back = within.assign(&inner, &here);
        let again = within.deassign(&inner).map(drop);
        let gone = within.remove(inner.key());
        let own = within.remove(context.device.key());
        (out, elsewhere, back, again, gone, own)
    });
    let first = rig.service.add(first).unwrap();
    rig.service.assign_group(&first, &one).unwrap();
    let error = rig.service.deassign(&first).unwrap_err();
    assert_eq!((error.cause, error.left), (Cause::Removed, Left::Removed), "its own removal came with its end");
    let seen = seen.lock().unwrap();
    let (out, elsewhere, back, again, gone, own) = &seen[0];
    assert_eq!((out, back, again), (&Ok(()), &Ok(()), &Ok(())));
    assert!(matches!(cause(elsewhere), Cause::GroupConflict { .. }), "{elsewhere:?}");
    assert_eq!((gone, own), (&Ok(Removal::Done), &Ok(Removal::Pending)));
    assert_eq!(rig.service.devices().count(), 0);
    rig.audit();
}

#[test]
fn c4_i11_a_mate_does_not_go_where_the_operation_above_does_not() {
    let mut rig = Rig::new();
    let [first, mate] = rig.on_one_bus();
    let mate = rig.service.add(mate).unwrap();
    let [one, two] = rig.domains.clone();
    let (inner, here, there) = (mate.clone(), one.clone(), two.clone());
    let (first, seen) = rig.hooked(first, move |service, context| {
        let within = service.within(context.chain);
        // The registry still has the first device with its old owner; it is on its way to the new one.
        [within.assign(&inner, &here), within.assign(&inner, &there)]
    });
    let first = rig.service.add(first).unwrap();
    rig.service.assign(&first, &one).unwrap();
    rig.service.reassign(&first, &two).unwrap();
    for refused in &seen.lock().unwrap()[0] {
        assert!(matches!(cause(refused), Cause::GroupConflict { .. }), "{refused:?}");
    }
    assert_eq!(rig.state(&first), Some(DeviceState::Assigned(two.id())));
    assert_eq!(rig.state(&mate), Some(DeviceState::Blocked));
}

#[test]
fn c4_a_nested_wait_for_a_later_group_sleeps_until_that_is_free() {
    let mut rig = Rig::new();
    let (first, second) = (rig.spec("first", 0x10), rig.spec("second", 0x11));
    let second_key = second.key;
    let entered = Arc::new(std::sync::Barrier::new(2));
    let (meet, release) = (entered.clone(), Arc::new(std::sync::Barrier::new(2)));
    let target = rig.domains[1].clone();
    let go = release.clone();
    let (second, _) = rig.hooked(second, move |_, _| {
        meet.wait();
        go.wait();
    });
    let (first, seen) = rig.hooked(first, move |service, context| {
        let other = service.find(second_key).unwrap().device;
        let within = service.within(context.chain);
        let tried = within.reassign(&other, &target);
        release.wait();
        let waited = within.remove_and_wait(other.key(), soon());
        (tried, waited)
    });
    let (first, second) = (rig.service.add(first).unwrap(), rig.service.add(second).unwrap());
    for device in [&first, &second] {
        rig.service.assign(device, &rig.domains[0]).unwrap();
    }
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| rig.service.reassign(&second, &rig.domains[1]));
        entered.wait();
        rig.service.reassign(&first, &rig.domains[1]).unwrap();
        // The removal overtook it, or came behind it.
        let moved = moving.join().unwrap();
        assert!(moved.is_ok() || *cause(&moved) == Cause::Removed, "{moved:?}");
    });
    let (tried, waited) = &seen.lock().unwrap()[0];
    assert_eq!(*cause(tried), Cause::Busy { running: Operation::Reassign });
    assert_eq!(*waited, Ok(()));
    assert!(rig.service.find(second_key).is_none());
}

#[test]
fn c4_a_removal_from_the_policy_leaves_its_mark_and_does_not_wait() {
    let seen: Arc<Mutex<Vec<Result<Removal, Error>>>> = Arc::default();
    let record = seen.clone();
    let mut rig = Rig::asking(move |service, request| {
        let (within, key) = (service.within(request.chain), request.device.key());
        record.lock().unwrap().push(within.remove(key));
        let waited = within.remove_and_wait(key, soon()).map(|()| Removal::Done);
        record.lock().unwrap().push(waited);
        true
    });
    let spec = rig.spec("first", 0x10);
    let device = rig.service.add(spec).unwrap();
    let error = rig.service.assign(&device, &rig.domains[0]).unwrap_err();
    assert_eq!((error.cause, error.left), (Cause::Removed, Left::Removed));
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0], Ok(Removal::Pending));
    assert_eq!(*cause(&seen[1]), Cause::WouldDeadlock { running: Operation::Assign });
    assert!(rig.service.find(device.key()).is_none());
    rig.audit();
}

#[test]
fn c9_a4_a_domain_ends_though_an_assign_to_it_met_the_end_of_its_iommu() {
    let mut rig = Rig::asking(|service, _| {
        service.force_unregister_iommu(SMMU).unwrap();
        true
    });
    let spec = rig.spec("first", 0x10);
    let device = rig.service.add(spec).unwrap();
    let refused = rig.service.assign(&device, &rig.domains[0]);
    let gone = Cause::Iommu { iommu: SMMU, error: IommuError::ProviderGone };
    assert_eq!(*cause(&refused), gone);
    assert_eq!(rig.service.destroy_domain(&rig.domains[0]), Ok(()));
    let removed = rig.service.remove(device.key());
    assert_eq!((cause(&removed), rig.state(&device)), (&gone, None), "done in software, and said");
}

#[test]
fn c4_c5_a_child_that_a_reset_ends_does_not_come_from_inside_that_reset() {
    let mut rig = Rig::new();
    let (parent, child) = (rig.spec("parent", 0x10), rig.spec("child", 0x11));
    let child = DeviceSpec { parent: Some(parent.key), ends_with_parent: true, ..child };
    let offered = child.clone();
    let (parent, seen) = rig.hooked(parent, move |service, context| {
        let within = service.within(context.chain);
        let waited = within.wait(None, |service| service.add(offered.clone()));
        [within.add(offered.clone()), waited].map(|added| added.map(drop).map_err(|error| error.cause))
    });
    let parent = rig.service.add(parent).unwrap();
    rig.service.assign(&parent, &rig.domains[0]).unwrap();
    let _ = rig.service.deassign(&parent).unwrap();
    let running = Operation::Deassign;
    assert_eq!(*seen.lock().unwrap(), [[Err(Cause::Busy { running }), Err(Cause::WouldDeadlock { running })]]);
    assert_eq!(rig.service.devices().count(), 1);
    let _ = rig.service.add(child).unwrap();
    rig.audit();
}
