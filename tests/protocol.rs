//! The rules of the claims' protocol (docs/architecture.md), each forced by a callback or a driver that comes back at the
//! moment at which it counts. Every interleaving is explored in `schedules/`.

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

use common::SMMU;
use common::between::Moment;
use common::callbacks::Hooks;
use common::rig::{Alone, cause};
use iommu_assign::assign::{
    Cause, Device, DeviceKey, DeviceSpec, DeviceState, Domain, Left, Operation, Quarantine, Removal, Resource, Why,
};
use machine::Reached;
use smmu_model::Config;

type Rig = common::rig::Rig<Alone>;

/// Devices and domains that a callback needs, known once the rig stands.
type Later<T> = Arc<OnceLock<T>>;

fn busy(running: Operation) -> Cause {
    Cause::Busy { running }
}

// --- rule 2, 11: groups come together and fall apart ---

#[test]
fn i11_a_group_that_lost_its_joint_stays_one_while_a_member_is_assigned_and_splits_when_all_are_in_fault() {
    let mut rig = Rig::new();
    let (left, right) = (rig.add("a", 0x10), rig.add("b", 0x11));
    let joint = rig.bench.spec("c", &[(0x10, 1)]);
    let joint = rig.service.add(joint).unwrap();
    let [one, two] = rig.domains.clone();
    rig.service.assign(&left, &one).unwrap();
    rig.service.remove(joint.key()).unwrap();
    assert_eq!(rig.group(&left), rig.group(&right));
    assert!(matches!(cause(&rig.service.assign(&right, &two)), Cause::GroupConflict { .. }));
    drop(rig.service.deassign(&left).unwrap());
    assert_ne!(rig.group(&left), rig.group(&right));
    rig.service.assign(&left, &one).unwrap();
    rig.service.assign(&right, &two).unwrap();
    rig.audit();
}

#[test]
fn i11_a_group_whose_leader_is_removed_goes_on_under_another() {
    let mut rig = Rig::new();
    let members = ["a", "b", "c"].map(|name| rig.add(name, 0x10));
    rig.service.remove(rig.group(&members[0])).unwrap();
    let left: Vec<&Device> = members.iter().filter(|device| rig.state(device).is_some()).collect();
    assert_eq!((left.len(), rig.group(left[0])), (2, rig.group(left[1])));
    rig.service.assign_group(left[0], &rig.domains[0]).unwrap();
    assert!(left.iter().all(|device| rig.state(device) == Some(DeviceState::Assigned(rig.domains[0].id()))));
    rig.audit();
}

#[test]
fn c2_i11_what_a_marked_joint_leaves_falls_apart_though_a_part_has_a_mark_of_its_own() {
    let mut rig = Rig::new();
    let [left, goes, stays] = [("a", 0x10), ("b", 0x11), ("d", 0x11)].map(|(name, id)| rig.add(name, id));
    let joint = rig.bench.spec("c", &[(0x10, 1)]);
    let joint = rig.service.add(joint).unwrap();
    let reservation = rig.service.reserve(&left, &rig.domains[0]).unwrap();
    for device in [&joint, &goes] {
        assert_eq!(rig.service.remove(device.key()), Ok(Removal::Pending));
    }
    reservation.abandon().unwrap();
    let kept: Vec<DeviceKey> = rig.service.devices().map(|info| info.device.key()).collect();
    assert_eq!(kept, [left.key(), stays.key()]);
    for (device, domain) in [&left, &stays].into_iter().zip(&rig.domains) {
        assert_eq!(rig.group(device), device.key());
        rig.service.assign(device, domain).unwrap();
    }
    rig.audit();
}

#[test]
fn c2_i11_a_refused_add_leaves_the_groups_that_it_had_claimed_apart() {
    // Refused by the policy, and by a removal of its parent, which is seen last of all.
    for overtaken in [false, true] {
        let mut rig = Rig::asking(|_, request| matches!(request.why, Why::Assign) || request.device.parent().is_some());
        let (left, right, parent) = (rig.add("a", 0x10), rig.add("b", 0x11), rig.add("d", 0x12));
        rig.service.assign(&left, &rig.domains[0]).unwrap();
        let spec = rig.bench.spec("c", &[(0x10, 1)]);
        let joint = DeviceSpec { parent: overtaken.then_some(parent.key()), ..spec };
        let key = parent.key();
        rig.driver.at(Moment::AfterPublish, move |service| {
            assert!(!overtaken || service.remove(key) == Ok(Removal::Pending));
        });
        let refused = rig.service.add(joint);
        let is_expected = match cause(&refused) {
            Cause::ParentMissing => overtaken,
            Cause::GroupConflict { .. } => !overtaken,
            _ => false,
        };
        assert!(is_expected, "{refused:?}");
        assert_ne!(rig.group(&left), rig.group(&right));
        rig.service.assign(&right, &rig.domains[1]).unwrap();
        assert_eq!(rig.state(&parent).is_none(), overtaken, "the end of the add carried the removal out");
        rig.audit();
    }
}

// --- rule 3: what is owned already is not busy ---

#[test]
fn c2_an_add_that_overlaps_two_devices_of_one_group_and_its_parent_is_not_busy_with_itself() {
    let mut rig = Rig::new();
    let parent = rig.add("a", 0x10);
    let mates = ["b", "c"].map(|name| rig.add(name, 0x11));
    let spec = rig.bench.spec("d", &[(0x10, 0), (0x11, 0)]);
    let child = rig.service.add(DeviceSpec { parent: Some(parent.key()), ..spec }).unwrap();
    assert!(mates.iter().chain([&parent]).all(|device| rig.group(device) == rig.group(&child)));
}

// --- rule 4, 15: marks, and whose put-back acts on them ---

#[test]
fn c2_c4_a_mark_is_acted_on_when_the_group_goes_back_to_the_registry_and_not_to_a_frame() {
    let mut rig = Rig::new();
    let [first, mate] = rig.on_one_bus();
    let mate = rig.service.add(mate).unwrap();
    let inner = mate.clone();
    let (first, seen) = rig.hooked(first, move |service, context| {
        let (within, key) = (service.within(context.chain), context.device.key());
        let marked = within.remove(key);
        // Its put-back gives the group to the frame of the operation that works on the marked device.
        let nested = within.deassign(&inner).map(drop);
        (marked, nested, service.find(key).is_some())
    });
    let first = rig.service.add(first).unwrap();
    rig.service.assign_group(&first, &rig.domains[0]).unwrap();
    let overtaken = rig.service.deassign(&first).unwrap_err();
    assert_eq!((overtaken.cause, overtaken.left), (Cause::Removed, Left::Removed));
    assert_eq!(*seen.lock().unwrap(), [(Ok(Removal::Pending), Ok(()), true)]);
    assert_eq!((rig.state(&first), rig.state(&mate)), (None, Some(DeviceState::Blocked)));
    rig.audit();
}

#[test]
fn c2_c8_a_removal_that_met_an_operation_is_carried_out_at_the_end_of_that_with_its_hooks() {
    let mut rig = Rig::new();
    let (way, released) = (rig.way.clone(), Arc::new(Mutex::new(Vec::new())));
    let seen = released.clone();
    let hooks = Hooks::new().release(move |context| {
        let found = way.service().unwrap().find(context.device.key()).is_some();
        seen.lock().unwrap().push((context.device.key(), found));
    });
    let [first, mate] = rig.on_one_bus();
    let mate = rig.service.add(DeviceSpec { hooks: Arc::new(hooks), ..mate }).unwrap();
    let first = rig.service.add(first).unwrap();
    let key = mate.key();
    rig.driver.at(Moment::AfterPlan, move |service| assert_eq!(service.remove(key), Ok(Removal::Pending)));
    rig.service.assign(&first, &rig.domains[0]).unwrap();
    assert_eq!(*released.lock().unwrap(), [(key, false)], "once, when it was unregistered");
    assert_eq!(*cause(&rig.service.remove(key)), Cause::NotFound);
    assert!(matches!(rig.state(&first), Some(DeviceState::Assigned(_))));
    rig.audit();
}

// --- rule 5: where a group goes is said before the first callback ---

#[test]
fn c4_i11_a_mate_cannot_go_elsewhere_from_the_policy_of_an_assign_and_can_when_that_was_denied() {
    for allowed in [true, false] {
        let target: Later<(Device, Domain<Alone>)> = Arc::default();
        let (mate, seen) = (target.clone(), Arc::new(Mutex::new(Vec::new())));
        let noted = seen.clone();
        let mut rig = Rig::asking(move |service, request| {
            if request.device.label().to_string() != "a" || !matches!(request.why, Why::Assign) {
                return true;
            }
            let (mate, there) = mate.get().unwrap();
            noted.lock().unwrap().push(service.within(request.chain).assign(mate, there));
            allowed
        });
        let (device, mate) = (rig.add("a", 0x10), rig.add("b", 0x10));
        let [one, two] = rig.domains.clone();
        target.set((mate.clone(), two.clone())).unwrap();
        assert_eq!(rig.service.assign(&device, &one).is_ok(), allowed);
        let seen = seen.lock().unwrap();
        assert!(matches!(cause(&seen[0]), Cause::GroupConflict { .. }), "{seen:?}");
        // A target that came to nothing is forgotten.
        assert_eq!(rig.service.assign(&mate, &two).is_ok(), !allowed);
        assert_eq!(rig.bench.dma(0x10), Reached::Memory(rig.backing[usize::from(!allowed)]));
        rig.audit();
    }
}

// --- rule 6: the group is found again after a callback ---

#[test]
fn c4_a_nested_add_that_joins_the_groups_of_two_operations_above_leaves_both_their_group() {
    let mut rig = Rig::new();
    let domain = rig.domains[0].clone();
    let joint = rig.bench.spec("c", &[(0x10, 1)]);
    let spec = joint.clone();
    let inner = rig.spec("b", 0x11);
    let (inner, added) = rig.hooked(inner, move |service, context| {
        service.within(context.chain).add(spec.clone()).map(|device| device.key())
    });
    let inner = rig.service.add(inner).unwrap();
    let outer = rig.spec("a", 0x10);
    let nested = inner.clone();
    let (outer, seen) = rig.hooked(outer, move |service, context| {
        // The operation above finds its group in this frame, and the innermost one in the outermost.
        service.within(context.chain).deassign(&nested).map(drop)
    });
    let outer = rig.service.add(outer).unwrap();
    for device in [&outer, &inner] {
        rig.service.assign(device, &domain).unwrap();
    }
    drop(rig.service.deassign(&outer).unwrap());
    assert_eq!((&*added.lock().unwrap(), &*seen.lock().unwrap()), (&vec![Ok(joint.key)], &vec![Ok(())]));
    let infos: Vec<_> = rig.service.devices().collect();
    assert!(infos.iter().all(|info| info.group == infos[0].group && info.state == DeviceState::Blocked), "{infos:?}");
    assert_eq!(infos.len(), 3);
    rig.service.assign_group(&outer, &domain).unwrap();
    rig.audit();
}

#[test]
fn c4_a_group_that_a_new_device_joins_is_joined_whatever_the_policy_nests_in_it() {
    let target: Later<Device> = Arc::default();
    let owner = target.clone();
    let mut rig = Rig::asking(move |service, request| {
        if matches!(request.why, Why::Shares { .. }) {
            drop(service.within(request.chain).deassign(owner.get().unwrap()).unwrap());
        }
        true
    });
    let owner = rig.add("a", 0x10);
    target.set(owner.clone()).unwrap();
    rig.service.assign(&owner, &rig.domains[0]).unwrap();
    let late = rig.add("b", 0x10);
    assert_eq!(rig.group(&owner), rig.group(&late));
    rig.audit();
}

// --- rule 7, 8: keys, parents and children on their way ---

#[test]
fn c2_c15_a_key_that_is_on_its_way_in_or_out_is_busy() {
    let mut rig = Rig::new();
    let spec = rig.spec("a", 0x10);
    let again = spec.clone();
    let seen: Arc<Mutex<Vec<Cause>>> = Arc::default();
    let tries = |seen: &Arc<Mutex<Vec<Cause>>>| {
        let (seen, spec) = (seen.clone(), again.clone());
        move |service: &iommu_assign::assign::Service<Alone>| {
            seen.lock().unwrap().push(service.add(spec).unwrap_err().cause);
        }
    };
    rig.driver.at(Moment::AfterPublish, tries(&seen));
    let device = rig.service.add(spec).unwrap();
    rig.service.assign(&device, &rig.domains[0]).unwrap();
    rig.driver.at(Moment::BeforeBlock, tries(&seen));
    rig.service.remove(device.key()).unwrap();
    // Marked: the removal waits for the operation.
    let device = rig.service.add(again.clone()).unwrap();
    let (key, then) = (device.key(), tries(&seen));
    rig.driver.at(Moment::AfterPlan, move |service| {
        service.remove(key).unwrap();
        then(service);
    });
    rig.service.assign(&device, &rig.domains[0]).unwrap_err();
    assert_eq!(*seen.lock().unwrap(), [busy(Operation::Add), busy(Operation::Remove), busy(Operation::Remove)]);
    let device = rig.service.add(again.clone()).unwrap();
    let refused = rig.service.add(again.clone());
    assert_eq!(*cause(&refused), Cause::AlreadyRegistered { by: device.label().clone() });
}

#[test]
fn c5_nothing_is_added_behind_a_device_that_is_going() {
    let mut rig = Rig::new();
    let parent = rig.add("a", 0x10);
    let child = DeviceSpec { parent: Some(parent.key()), ..rig.spec("b", 0x11) };
    let inside = parent.enter::<Alone>().unwrap();
    assert_eq!(rig.service.remove(parent.key()).unwrap_err().left, Left::Going);
    assert_eq!(*cause(&rig.service.add(child.clone())), Cause::ParentMissing);
    drop(inside);
    rig.service.remove(parent.key()).unwrap();
    assert_eq!(*cause(&rig.service.add(child)), Cause::ParentMissing);
}

#[test]
fn c2_c5_a_parent_whose_children_are_all_on_their_way_out_is_busy_and_not_refused() {
    let mut rig = Rig::new();
    let parent = rig.add("a", 0x10);
    let key = parent.key();
    let child = DeviceSpec { parent: Some(key), ..rig.spec("b", 0x11) };
    let (child, seen) = rig.hooked(child, move |service, context| {
        (service.remove(key), service.remove(context.device.key()), service.remove(key))
    });
    let child = rig.service.add(child).unwrap();
    rig.service.assign(&child, &rig.domains[0]).unwrap();
    rig.service.deassign(&child).unwrap_err();
    let seen = seen.lock().unwrap();
    let (before, marked, after) = &seen[0];
    assert_eq!(
        (cause(before), cause(after)),
        (&Cause::HasChildren { children: 1, first: "b".into() }, &busy(Operation::Remove))
    );
    assert_eq!(*marked, Ok(Removal::Pending));
    assert_eq!(rig.service.devices().map(|info| info.device.key()).collect::<Vec<DeviceKey>>(), [key]);
}

#[test]
fn c4_c5_a_wait_for_the_removal_of_a_parent_from_its_childs_add_would_deadlock_and_leaves_no_mark() {
    let bridge: Later<DeviceKey> = Arc::default();
    let (key, seen) = (bridge.clone(), Arc::new(Mutex::new(Vec::new())));
    let noted = seen.clone();
    let mut rig = Rig::asking(move |service, request| {
        if matches!(request.why, Why::Shares { .. }) {
            noted.lock().unwrap().push(service.within(request.chain).remove_and_wait(*key.get().unwrap(), None));
        }
        true
    });
    let (parent, owner) = (rig.add("a", 0x10), rig.add("b", 0x11));
    bridge.set(parent.key()).unwrap();
    rig.service.assign(&owner, &rig.domains[0]).unwrap();
    let child = DeviceSpec { parent: Some(parent.key()), ..rig.spec("c", 0x11) };
    rig.service.add(child).unwrap();
    assert_eq!(*cause(&seen.lock().unwrap()[0]), Cause::WouldDeadlock { running: Operation::Add });
    assert!(parent.enter::<Alone>().is_some(), "no effect: calls still enter");
}

// --- rule 9: a bank that is kept for another domain ---

/// With one bank, which a reassign frees for its own use.
fn one_bank(ask: impl Fn(&iommu_assign::assign::PolicyRequest<'_>) -> bool + Send + Sync + 'static) -> Rig {
    Rig::on(Config { banks: 1, ..Config::generic_v2() }, move |_, request| ask(request))
}

#[test]
fn i13_a_bank_that_a_reassign_frees_for_itself_takes_nobody_else_meanwhile() {
    let mut rig = one_bank(|_| true);
    let (device, other) = (rig.add("a", 0x10), rig.add("b", 0x11));
    let [one, two] = rig.domains.clone();
    rig.service.assign(&device, &one).unwrap();
    let (seen, late) = (Arc::new(Mutex::new(Vec::new())), other.clone());
    let (noted, domains) = (seen.clone(), [one, two.clone()]);
    rig.driver.at(Moment::AfterPlan, move |service| {
        let tries = domains.iter().map(|domain| service.assign(&late, domain).unwrap_err().cause);
        noted.lock().unwrap().extend(tries);
    });
    rig.service.reassign(&device, &two).unwrap();
    assert!(seen.lock().unwrap().iter().all(|cause| matches!(cause, Cause::Busy { .. })), "{seen:?}");
    assert_eq!(seen.lock().unwrap().len(), 2);
    rig.service.assign(&other, &two).unwrap();
    assert_eq!([0x10, 0x11].map(|id| rig.bench.dma(id)), [Reached::Memory(rig.backing[1]); 2]);
    rig.audit();
}

#[test]
fn a1_i13_a_reassign_that_was_promised_its_old_bank_and_is_denied_leaves_one_bank_for_its_domain() {
    // The policy is asked about the mate that would go along when the bank has been promised.
    let mut rig =
        one_bank(|request| !(matches!(request.why, Why::Shares { .. }) && request.domain.to_string() == "two"));
    let (device, mate) = (rig.add("a", 0x10), rig.add("b", 0x10));
    let [one, two] = rig.domains.clone();
    rig.service.assign(&device, &one).unwrap();
    let denied = rig.service.reassign(&device, &two).unwrap_err();
    assert_eq!((denied.cause, denied.left), (Cause::Denied { domain: "two".into() }, Left::Unchanged));
    rig.service.assign(&mate, &one).unwrap();
    let other = rig.add("c", 0x11);
    rig.service.assign(&other, &one).unwrap();
    let mut banks = 0;
    let count = &mut |usage: &iommu_assign::assign::UsageRecord| {
        banks += usize::from(usage.resource == Resource::ContextBanks);
    };
    rig.service.usage(SMMU, count).unwrap();
    assert_eq!(banks, 1);
    assert_eq!([0x10, 0x11].map(|id| rig.bench.dma(id)), [Reached::Memory(rig.backing[0]); 2]);
    rig.audit();
}

// --- rule 10: a wait form waits for what was busy ---

#[test]
fn c19_a_waiting_operation_is_not_woken_by_what_it_gave_back_itself() {
    // A claimed group.
    let mut rig = Rig::new();
    let device = rig.add("a", 0x10);
    let reservation = rig.service.reserve(&device, &rig.domains[0]).unwrap();
    let spec = rig.bench.spec("b", &[(0x10, 0), (0x11, 0)]);
    let (mut tries, before) = (0, Alone::sleeps());
    let refused = rig.service.wait(None, |service| {
        tries += 1;
        service.add(spec.clone())
    });
    assert_eq!(*cause(&refused), Cause::TimedOut { running: Operation::Assign });
    assert_eq!((tries, Alone::sleeps() - before), (1, 1));
    reservation.abandon().unwrap();
    rig.service.wait(None, |service| service.add(spec.clone())).unwrap();
    // A bank on its way to another domain.
    let mut rig = one_bank(|_| true);
    let (device, other) = (rig.add("a", 0x10), rig.add("b", 0x11));
    let [one, two] = rig.domains.clone();
    rig.service.assign(&device, &one).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (noted, there) = (seen.clone(), two.clone());
    rig.driver.at(Moment::AfterPlan, move |service| {
        let (mut tries, before) = (0, Alone::sleeps());
        let refused = service.wait(None, |service| {
            tries += 1;
            service.assign(&other, &there)
        });
        let timed_out = matches!(cause(&refused), Cause::TimedOut { .. });
        noted.lock().unwrap().push((timed_out, tries, Alone::sleeps() - before));
    });
    rig.service.reassign(&device, &two).unwrap();
    assert_eq!(*seen.lock().unwrap(), [(true, 1, 1)]);
}

// --- holds, flushes and owners ---

#[test]
fn i9_a_flush_as_soon_as_a_bank_is_live_reaches_it() {
    let mut rig = Rig::new();
    let device = rig.add("a", 0x10);
    let (domain, machine) = (rig.domains[0].clone(), rig.bench.machine.clone());
    rig.driver.at(Moment::AfterInstall, move |service| {
        let before = machine.counters(SMMU).writes;
        service.flush(&domain).unwrap();
        assert_eq!(machine.counters(SMMU).writes - before, 2, "an invalidation and a sync");
    });
    rig.service.assign(&device, &rig.domains[0]).unwrap();
}

#[test]
fn c1_i10_a_domain_that_is_being_destroyed_takes_no_hold_and_one_that_is_held_is_not_destroyed() {
    let mut rig = Rig::new();
    let (device, other) = (rig.add("a", 0x10), rig.add("b", 0x11));
    let domain = rig.domains[0].clone();
    let held = domain.clone();
    rig.driver.at(Moment::AfterPlan, move |service| {
        assert_eq!(*cause(&service.destroy_domain(&held)), busy(Operation::Assign));
    });
    rig.service.assign(&device, &domain).unwrap();
    drop(rig.service.deassign(&device).unwrap());
    let ending = domain.clone();
    rig.driver.at(Moment::BeforeForget, move |service| {
        let refused = [service.assign(&other, &ending), service.destroy_domain(&ending)];
        assert!(refused.iter().all(|refused| *cause(refused) == busy(Operation::DestroyDomain)), "{refused:?}");
    });
    rig.service.destroy_domain(&domain).unwrap();
    assert_eq!(*cause(&rig.service.assign(&device, &domain)), Cause::DomainGone { domain: "one".into() });
    rig.audit();
}

#[test]
fn i11_a_mate_that_stays_in_the_old_domain_forbids_a_reassign_and_nothing_is_written() {
    let mut rig = Rig::new();
    let [first, mate] = rig.on_one_bus().map(|spec| rig.service.add(spec).unwrap());
    let [one, two] = rig.domains.clone();
    rig.service.assign_group(&first, &one).unwrap();
    let (_, writes, refused) = rig.bench.cost(|| rig.service.reassign(&first, &two));
    assert!(matches!(cause(&refused), Cause::GroupConflict { with, .. } if *with == *mate.label()), "{refused:?}");
    assert_eq!((refused.unwrap_err().left, writes), (Left::Unchanged, 0));
    rig.service.reassign_group(&first, &two).unwrap();
    assert_eq!([0x10, 0x11].map(|id| rig.bench.dma(id)), [Reached::Memory(rig.backing[1]); 2]);
    // Nor does one stay behind when the whole group is quarantined.
    rig.service.quarantine(&mate, Quarantine::Faults).unwrap();
    assert_eq!([0x10, 0x11].map(|id| rig.bench.dma(id)), [Reached::Fault; 2]);
    rig.audit();
}
