//! What a second look at the assignment layer found: instances that go and come under an operation, callbacks that come
//! back, and what ends unheard.

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

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use common::between::{Between, Moment};
use common::callbacks::Hooks;
use common::rig::Alone;
use common::{Anyone, Bench, SMMU};
use iommu_assign::assign::{
    Cause, Device, DeviceKey, DeviceSpec, Domain, Event, EventSink, IommuError, Left, Operation, Removal, Service, Why,
};
use machine::Reached;
use smmu_model::Config;

type Rig = common::rig::Rig<Alone>;
type Way = common::callbacks::Way<Alone>;

#[test]
fn c9_devices_of_the_old_and_of_the_new_instance_of_one_name_are_each_blocked_where_they_are() {
    let mut rig = Rig::new();
    let on_bus = |spec: DeviceSpec| DeviceSpec { isolation: Some(7), ..spec };
    let old = on_bus(rig.spec("a", 0x10));
    let old = rig.service.add(old).unwrap();
    rig.service.assign(&old, &rig.domains[0]).unwrap();
    rig.service.force_unregister_iommu(SMMU).unwrap();
    let smmu = rig.again();
    rig.service.register_iommu(smmu).unwrap();
    let new = on_bus(rig.spec("b", 0x11));
    let new = rig.service.add(new).unwrap();
    rig.service.assign(&new, &rig.domains[0]).unwrap();
    assert!(matches!(rig.bench.dma(0x11), Reached::Memory(_)));
    let error = rig.service.deassign_group(&old).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::ProviderGone, .. }), "{error}");
    assert_eq!(rig.bench.dma(0x11), Reached::Fault, "it is owned by nobody now");
}

#[test]
fn c9_i10_a_domain_can_end_though_an_instance_went_under_its_assign() {
    let mut rig = Rig::new();
    let device = rig.add("a", 0x10);
    rig.driver.at(Moment::AfterPlan, |service| service.force_unregister_iommu(SMMU).unwrap());
    let error = rig.service.assign(&device, &rig.domains[0]).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::ProviderGone, .. }), "{error}");
    rig.service.flush(&rig.domains[0]).unwrap();
    rig.service.destroy_domain(&rig.domains[0]).unwrap();
}

#[test]
fn c9_an_unregister_does_not_take_the_instance_that_came_after() {
    for forced in [false, true] {
        let rig = Rig::new();
        let after = Between::new(rig.driver.inner.clone(), &rig.way);
        rig.driver.at(if forced { Moment::BeforeClose } else { Moment::AfterRetire }, move |service| {
            service.force_unregister_iommu(SMMU).unwrap();
            service.register_iommu(after).unwrap();
        });
        let result = if forced { rig.service.force_unregister_iommu(SMMU) } else { rig.service.unregister_iommu(SMMU) };
        assert_eq!(result.unwrap_err().cause, Cause::NotFound, "forced {forced}");
        assert!(rig.service.iommu(SMMU).is_some(), "forced {forced}");
    }
}

#[test]
fn c2_what_is_removed_from_a_release_hook_is_removed_once() {
    let mut rig = Rig::new();
    let keeper = rig.add("a", 0x10);
    let released: Arc<Mutex<Vec<u8>>> = Arc::default();
    let specs = [rig.spec("b", 0x10), rig.spec("c", 0x10)];
    let keys = [specs[0].key, specs[1].key];
    for (n, spec) in specs.into_iter().enumerate() {
        let (seen, other) = (released.clone(), keys[1 - n]);
        let way = rig.way.clone();
        let hooks = Hooks::new().release(move |context| {
            seen.lock().unwrap().push(n as u8);
            let _ = way.service().unwrap().within(context.chain).remove(other);
        });
        rig.service.add(DeviceSpec { hooks: Arc::new(hooks), ..spec }).unwrap();
    }
    // Both are asked to go while the group is claimed.
    rig.driver.at(Moment::AfterPlan, move |service| {
        for key in keys {
            service.remove(key).unwrap();
        }
    });
    rig.service.assign(&keeper, &rig.domains[0]).unwrap();
    released.lock().unwrap().sort_unstable();
    assert_eq!(*released.lock().unwrap(), [0, 1]);
    assert!(keys.iter().all(|key| rig.service.find(*key).is_none()));
    drop(rig.service.deassign(&keeper).unwrap());
}

#[test]
fn c5_nobody_stands_behind_a_device_whose_add_has_not_ended() {
    let child: Arc<Mutex<Option<DeviceSpec>>> = Arc::default();
    let (offered, came) = (child.clone(), Arc::new(Mutex::new(None)));
    let seen = came.clone();
    let mut rig = Rig::asking(move |service, request| {
        if !matches!(request.why, Why::Shares { .. }) {
            return true;
        }
        if let Some(child) = offered.lock().unwrap().take() {
            let child = DeviceSpec { parent: Some(request.device.key()), ..child };
            *seen.lock().unwrap() = Some(service.within(request.chain).add(child));
            return false;
        }
        true
    });
    *child.lock().unwrap() = Some(rig.spec("c", 0x12));
    let owner = rig.add("a", 0x10);
    rig.service.assign(&owner, &rig.domains[0]).unwrap();
    let parent = rig.spec("b", 0x10);
    rig.service.add(parent).unwrap_err();
    let came = came.lock().unwrap().take().unwrap();
    assert_eq!(came.unwrap_err().cause, Cause::ParentMissing);
    assert_eq!(rig.service.devices().count(), 1, "nobody is left behind a parent that never was");
}

#[test]
fn i11_a_new_device_joins_the_mates_of_one_that_went_while_it_came() {
    let mut rig = Rig::new();
    let (one, two) = (rig.add("a", 0x10), rig.add("b", 0x10));
    let gone = one.key();
    rig.driver.at(Moment::AfterPublish, move |service| drop(service.remove(gone).unwrap()));
    let late = rig.spec("c", 0x10);
    let late = match rig.service.add(late.clone()) {
        Err(error) => {
            assert_eq!(error.cause, Cause::Busy { running: Operation::Remove });
            rig.service.add(late).unwrap()
        }
        Ok(late) => late,
    };
    assert_eq!(rig.group(&two), rig.group(&late));
}

#[test]
fn i11_the_owner_of_a_shared_stream_stays_while_the_policy_is_asked_about_it() {
    let target: Arc<OnceLock<(Device, Domain<Alone>)>> = Arc::default();
    let once = std::sync::Once::new();
    let (owner, came) = (target.clone(), Arc::new(Mutex::new(None)));
    let seen = came.clone();
    let mut rig = Rig::asking(move |service, request| {
        if request.device.label().to_string() != "b" || request.domain.to_string() != "one" {
            return true;
        }
        once.call_once(|| {
            let ((owner, domain), within) = (owner.get().unwrap(), service.within(request.chain));
            drop(within.deassign(owner).unwrap());
            *seen.lock().unwrap() = Some(within.assign(owner, domain));
        });
        true
    });
    let owner = rig.add("a", 0x10);
    rig.service.assign(&owner, &rig.domains[0]).unwrap();
    target.set((owner, rig.domains[1].clone())).unwrap();
    let late = rig.spec("b", 0x10);
    rig.service.add(late).unwrap();
    let came = came.lock().unwrap().take().unwrap();
    assert!(matches!(came.unwrap_err().cause, Cause::GroupConflict { .. }));
}

#[test]
fn i6_a_mate_that_a_hook_assigned_is_named_as_keeping_the_stream() {
    let mut rig = Rig::new();
    let mate = rig.add("b", 0x10);
    let spec = rig.spec("a", 0x10);
    let (other, domain) = (mate, rig.domains[0].clone());
    let once = std::sync::Once::new();
    let way = rig.way.clone();
    let hooks = Hooks::new().reset(move |context| {
        once.call_once(|| way.service().unwrap().within(context.chain).assign(&other, &domain).unwrap());
        Ok(())
    });
    let device = rig.service.add(DeviceSpec { hooks: Arc::new(hooks), ..spec }).unwrap();
    rig.service.assign(&device, &rig.domains[0]).unwrap();
    let deassigned = rig.service.deassign(&device).unwrap();
    assert!(matches!(rig.bench.dma(0x10), Reached::Memory(_)));
    assert_eq!(deassigned.still_reachable.iter().map(ToString::to_string).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn i11_the_policy_is_asked_about_a_stream_that_went_live_while_a_device_came() {
    let mut rig = Rig::asking(|_, request| request.device.label().to_string() != "c");
    let [_, mate] = ["a", "b"].map(|name| rig.add(name, 0x10));
    let domain = rig.domains[0].clone();
    rig.driver.at(Moment::AfterPublish, move |service| service.assign(&mate, &domain).unwrap());
    let late = rig.spec("c", 0x10);
    let error = rig.service.add(late).unwrap_err();
    assert!(matches!(error.cause, Cause::GroupConflict { .. }), "{error}");
    assert!(matches!(rig.bench.dma(0x10), Reached::Memory(_)));
}

#[test]
fn i11_who_shares_a_live_stream_is_the_one_that_shares_it_when_the_policy_is_asked() {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = asked.clone();
    let mut rig = Rig::asking(move |_, request| {
        if let Why::Shares { with } = request.why {
            seen.lock().unwrap().push(format!(
                "{} with {} in {}",
                request.device.label(),
                with.label(),
                request.domain
            ));
        }
        request.device.label().to_string() != "c"
    });
    let [one, two] = ["a", "b"].map(|name| rig.add(name, 0x10));
    rig.service.assign(&one, &rig.domains[0]).unwrap();
    let domain = rig.domains[1].clone();
    rig.driver.at(Moment::AfterPublish, move |service| {
        drop(service.deassign(&one).unwrap());
        service.assign(&two, &domain).unwrap();
    });
    let late = rig.spec("c", 0x10);
    let error = rig.service.add(late).unwrap_err();
    assert!(matches!(error.cause, Cause::GroupConflict { .. }), "{error}");
    assert_eq!(asked.lock().unwrap().last().unwrap(), "c with b in two");
}

#[test]
fn i11_a_new_device_joins_those_that_one_that_went_kept_together() {
    for first in ["wide", "narrow"] {
        let mut rig = Rig::new();
        let wide = |rig: &mut Rig| rig.service.add(rig.bench.spec("a", &[(0x10, 3)])).unwrap();
        let (going, mates) = if first == "wide" {
            let going = wide(&mut rig);
            (going, [rig.add("b", 0x10), rig.add("c", 0x11)])
        } else {
            let mates = [rig.add("b", 0x10), rig.add("c", 0x11)];
            (wide(&mut rig), mates)
        };
        let gone = going.key();
        rig.driver.at(Moment::AfterPublish, move |service| drop(service.remove(gone).unwrap()));
        for (name, id, n) in [("d", 0x10, 0_usize), ("e", 0x11, 1)] {
            let late = rig.bench.spec(name, &[(id, 0)]);
            let late = rig.service.add(late.clone()).or_else(|_| rig.service.add(late)).unwrap();
            assert_eq!(rig.group(&mates[n]), rig.group(&late), "{first} {name}");
        }
    }
}

#[test]
fn c9_an_add_whose_instance_went_before_its_key_was_registered_is_not_added_to_the_next_of_that_name() {
    for forced in [false, true] {
        let mut rig = Rig::new();
        let next = Between::new(rig.driver.inner.clone(), &rig.way);
        rig.driver.at(Moment::AfterMakeMaster, move |service| {
            if forced { service.force_unregister_iommu(SMMU) } else { service.unregister_iommu(SMMU) }.unwrap();
            service.register_iommu(next).unwrap();
        });
        let spec = rig.spec("a", 0x10);
        let error = rig.service.add(spec).unwrap_err();
        assert_eq!((error.cause, rig.service.devices().count()), (Cause::ProviderMissing(SMMU), 0), "forced {forced}");
    }
}

#[test]
fn c19_an_add_that_is_told_to_overlap_a_device_that_has_left_does_not_wait_for_it() {
    let mut rig = Rig::new();
    let gone = rig.add("a", 0x10);
    rig.service.remove(gone.key()).unwrap();
    *rig.driver.also_overlaps.lock().unwrap() = Some(gone.id());
    let spec = rig.spec("b", 0x10);
    rig.service.wait(None, |service| service.add(spec.clone())).unwrap();
    assert_eq!(Alone::sleeps(), 0);
}

#[test]
fn c2_c15_an_add_that_meets_another_add_is_busy_and_gives_back_what_it_had_claimed() {
    let mut rig = Rig::new();
    let owner = rig.add("a", 0x10);
    let late = rig.spec("c", 0x10);
    let spec = late.clone();
    rig.driver.at(Moment::AfterPublish, move |service| {
        assert_eq!(service.add(spec).unwrap_err().cause, Cause::Busy { running: Operation::Add });
    });
    let first = rig.add("b", 0x10);
    assert_eq!(rig.group(&owner), rig.group(&first));
    rig.service.add(late).unwrap();
}

#[test]
fn i10_c15_a_domain_that_a_device_is_leaving_is_in_use() {
    let mut rig = Rig::new();
    let left = rig.domains[0].clone();
    let spec = rig.spec("a", 0x10);
    let (spec, seen) = rig.hooked(spec, move |service, _| service.destroy_domain(&left).unwrap_err().cause);
    let device = rig.service.add(spec).unwrap();
    let [old, new] = &rig.domains;
    rig.service.assign(&device, old).unwrap();
    rig.service.reassign(&device, new).unwrap();
    assert_eq!(*seen.lock().unwrap(), [Cause::InUse { devices: 1, first: "a".into() }]);
    rig.service.destroy_domain(old).unwrap();
}

#[test]
fn i11_the_policy_is_asked_though_the_one_that_was_met_has_left_the_owner() {
    for cut_inside in [false, true] {
        let mut rig = Rig::asking(|_, request| request.device.label().to_string() != "c");
        let [one, two] = ["a", "b"].map(|name| rig.add(name, 0x10));
        for device in [&one, &two] {
            rig.service.assign(device, &rig.domains[0]).unwrap();
        }
        let inside = one.enter::<Alone>().filter(|_| cut_inside);
        let left = one.clone();
        rig.driver.at(Moment::AfterPublish, move |service| {
            if cut_inside {
                service.remove(left.key()).unwrap_err();
            } else {
                drop(service.deassign(&left).unwrap());
            }
        });
        let late = rig.spec("c", 0x10);
        let error = rig.service.add(late).unwrap_err();
        assert!(matches!(error.cause, Cause::GroupConflict { .. }), "{error}");
        assert!(matches!(rig.bench.dma(0x10), Reached::Memory(_)), "the other one keeps it live");
        drop(inside);
    }
}

#[test]
fn c2_c5_a_removal_of_a_parent_overtakes_the_child_that_is_on_its_way_in() {
    for allowed in [false, true] {
        let (seen, bridge) = (Arc::new(Mutex::new(Vec::new())), Arc::new(OnceLock::<DeviceKey>::new()));
        let (noted, parent) = (seen.clone(), bridge.clone());
        let mut rig = Rig::asking(move |service, request| {
            let shares = matches!(request.why, Why::Shares { .. });
            if shares {
                noted.lock().unwrap().push(service.remove(*parent.get().unwrap()));
            }
            !shares || allowed
        });
        let parent = rig.add("a", 0x10);
        bridge.set(parent.key()).unwrap();
        let owner = rig.add("b", 0x11);
        rig.service.assign(&owner, &rig.domains[0]).unwrap();
        let child = DeviceSpec { parent: Some(parent.key()), ..rig.spec("c", 0x11) };
        let error = rig.service.add(child).unwrap_err();
        // An add that is undone for a reason of its own tells that.
        let expected = |cause: &Cause| {
            if allowed { *cause == Cause::ParentMissing } else { matches!(cause, Cause::GroupConflict { .. }) }
        };
        assert!(expected(&error.cause), "{error}");
        assert_eq!(*seen.lock().unwrap(), [Ok(Removal::Pending)], "a child that is being added does not count");
        assert_eq!(rig.service.devices().map(|info| info.device.key()).collect::<Vec<_>>(), [owner.key()]);
        rig.audit();
    }
}

/// A listener that forces the SMMU out of service when it hears of a device, and says whether the device is there by what it heard.
struct Forcing(Way, Arc<AtomicBool>);

impl std::fmt::Debug for Forcing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Forcing")
    }
}

impl EventSink for Forcing {
    fn event(&self, event: &Event) {
        if let (Event::Added { .. }, Some(service)) = (event, self.0.service()) {
            self.1.store(true, Ordering::Relaxed);
            service.force_unregister_iommu(SMMU).unwrap();
        }
        if matches!(event, Event::Removed { .. }) {
            assert!(self.1.swap(false, Ordering::Relaxed), "it was told of");
        }
    }
}

#[test]
fn c9_c15_an_add_that_a_forced_unregister_overtakes_leaves_nothing() {
    // Before the device is told of.
    let mut rig = Rig::new();
    rig.driver.at(Moment::AfterPublish, |service| service.force_unregister_iommu(SMMU).unwrap());
    let spec = rig.spec("a", 0x10);
    let error = rig.service.add(spec).unwrap_err();
    assert_eq!((error.cause, rig.service.devices().count()), (Cause::ProviderMissing(SMMU), 0));
    // After that: look-ups have not seen it yet.
    let mut bench = Bench::new();
    let smmu = bench.smmu(SMMU, Config::generic_v2());
    let (way, is_there) = (Way::new(), Arc::new(AtomicBool::new(true)));
    let service = Arc::new(Service::with_events(Box::new(Anyone), Box::new(Forcing(way.clone(), is_there.clone()))));
    way.lead_to(&service);
    service.register_iommu(smmu).unwrap();
    let error = service.add(bench.spec("a", &[(0x10, 0)])).unwrap_err();
    assert_eq!((error.cause, error.left), (Cause::ProviderMissing(SMMU), Left::Unchanged));
    assert_eq!((service.devices().count(), is_there.load(Ordering::Relaxed)), (0, false));
}
