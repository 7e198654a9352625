//! Two lifetimes: registration keeps the device, a reference keeps the object (contract C-7, C-8, C-17).

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
use std::sync::atomic::{AtomicU32, Ordering};

use common::callbacks::Hooks;
use common::{Bench, SMMU};
use iommu_assign::assign::{Cause, Device, DeviceSpec, DeviceState, Left, Operation, Removal};
use iommu_assign::sync::Spin;
use machine::Reached;
use smmu_model::Config;

/// Counts when it goes.
struct Counted(Arc<[AtomicU32; 2]>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0[1].fetch_add(1, Ordering::Relaxed);
    }
}

/// `spec`, with hooks that count how often they are let go of, and whether their storage has gone.
fn counted(spec: DeviceSpec) -> (DeviceSpec, Arc<[AtomicU32; 2]>) {
    let counts: Arc<[AtomicU32; 2]> = Arc::default();
    let own = Counted(counts.clone());
    let hooks = Hooks::new().release(move |_| {
        own.0[0].fetch_add(1, Ordering::Relaxed);
    });
    (DeviceSpec { hooks: Arc::new(hooks), ..spec }, counts)
}

fn read(counts: &[AtomicU32; 2]) -> [u32; 2] {
    [counts[0].load(Ordering::Relaxed), counts[1].load(Ordering::Relaxed)]
}

#[test]
fn c8_a_removal_cuts_first_and_does_not_end_while_a_call_is_inside() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let (spec, counts) = counted(bench.spec("dma", &[(0x10, 0)]));
    let device = bench.service.add(spec).unwrap();
    bench.assign(&device, &guest).unwrap();
    let inside = [device.enter::<Spin>().unwrap(), device.enter::<Spin>().unwrap()];
    let error = bench.remove(&device).unwrap_err();
    assert_eq!((error.cause, error.left), (Cause::StillInUse { calls: 2 }, Left::Going));
    assert_eq!(bench.dma(0x10), Reached::Fault, "its DMA is cut");
    assert!(device.enter::<Spin>().is_none(), "C-17: nobody gets in any more");
    assert_eq!(bench.service.assign(&device, &guest.domain).unwrap_err().cause, Cause::Gone, "it refuses every call");
    assert_eq!(bench.state(&device), DeviceState::Going);
    let again = bench.spec("dma", &[(0x10, 0)]);
    let again = DeviceSpec { key: device.key(), ..again };
    let busy = bench.service.add(again.clone()).unwrap_err().cause;
    assert_eq!(busy, Cause::Busy { running: Operation::Remove }, "its key is not free yet");
    let [one, two] = inside;
    drop(one);
    assert_eq!(bench.service.remove(device.key()).unwrap_err().cause, Cause::StillInUse { calls: 1 });
    assert_eq!(read(&counts)[0], 0, "released before the last call had left");
    drop(two);
    assert_eq!(bench.service.remove(device.key()), Ok(Removal::Done));
    assert_eq!(read(&counts)[0], 1);
    bench.service.add(again).unwrap();
    bench.audit();
}

#[test]
fn c8_a_removal_that_found_a_call_inside_is_going_until_it_is_asked_for_again_and_its_group_goes_on() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let (first, mate) = (bench.add("first", &[(0x10, 0)]), bench.add("mate", &[(0x10, 0)]));
    let inside = first.enter::<Spin>().unwrap();
    assert_eq!(bench.remove(&first).unwrap_err().left, Left::Going);
    bench.shares(&first, &guest);
    bench.assign(&mate, &guest).unwrap();
    drop(inside);
    drop(bench.deassign(&mate).unwrap());
    // That outcome has spent the mark: no put-back tries again, and none loops.
    assert_eq!(bench.state(&first), DeviceState::Going);
    assert_eq!(bench.service.assign(&first, &guest.domain).unwrap_err().cause, Cause::Gone);
    bench.remove(&first).unwrap();
    bench.remove(&mate).unwrap();
    bench.audit();
}

#[test]
fn c8_c5_a_parent_that_waits_for_a_child_goes_when_that_has_gone() {
    let mut bench = Bench::v2();
    let parent = bench.add("parent", &[(0x10, 0)]);
    // The child is of a group with another device, which stays.
    let mut child = bench.spec("child", &[(0x20, 0)]);
    child.parent = Some(parent.key());
    let child = bench.service.add(child).unwrap();
    let mate = bench.add("mate", &[(0x20, 0)]);
    let inside = child.enter::<Spin>().unwrap();
    assert_eq!(bench.service.remove_tree(parent.key()).unwrap_err().cause, Cause::StillInUse { calls: 1 });
    drop(inside);
    assert_eq!(bench.service.remove(child.key()), Ok(Removal::Done));
    let left: Vec<_> = bench.service.devices().map(|info| info.device.key()).collect();
    assert_eq!(left, [mate.key()], "the parent had waited for its child only");
    bench.audit();
}

#[test]
fn c8_i6_a_removal_says_who_keeps_a_shared_entry_live() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let (first, mate) = (bench.add("first", &[(0x10, 0)]), bench.add("mate", &[(0x10, 0)]));
    bench.shares(&first, &guest);
    bench.assign(&mate, &guest).unwrap();
    let removed = bench.service.remove(first.key()).unwrap();
    assert_eq!(removed, Removal::StillReachable(vec![mate.label().clone()]));
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing), "which is what it says");
    bench.remove(&mate).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Fault);
}

#[test]
fn c7_storage_outlives_the_registration_and_is_released_by_waiting_context_alone() {
    let mut bench = Bench::v2();
    let (spec, counts) = counted(bench.spec("dma", &[(0x10, 0)]));
    let device = bench.service.add(spec).unwrap();
    let kept = device.clone();
    drop(device);
    bench.service.remove(kept.key()).unwrap();
    bench.service.reap();
    assert_eq!(read(&counts), [1, 0], "released by the source, kept by a reference");
    assert_eq!(kept.label().to_string(), "dma");
    drop(kept);
    assert_eq!(read(&counts), [1, 0], "the last handle frees nothing: it may be dropped in an interrupt handler");
    bench.service.reap();
    assert_eq!(read(&counts), [1, 1], "released once, by waiting context");
}

#[test]
fn c7_every_operation_releases_some_of_what_nobody_refers_to() {
    let mut bench = Bench::v2();
    let mut all = Vec::new();
    for n in 0..40 {
        let (spec, counts) = counted(bench.spec("dma", &[(n, 0)]));
        let device = bench.service.add(spec).unwrap();
        // Some are kept by somebody, and stand in the way of none.
        let kept = (n % 3 == 0).then(|| device.clone());
        bench.service.remove(device.key()).unwrap();
        all.push((counts, kept));
    }
    let freed = || all.iter().filter(|(counts, _)| read(counts)[1] == 1).count();
    assert!(freed() > 16, "{} of 26 have gone on the way", freed());
    bench.service.reap();
    assert_eq!(freed(), 26);
    assert!(all.iter().all(|(counts, kept)| read(counts)[1] == u32::from(kept.is_none())));
}

#[test]
fn c7_a_domain_and_an_iommu_are_released_by_waiting_context_too() {
    let mut bench = Bench::new();
    let smmu = bench.smmu(SMMU, Config::generic_v2());
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    bench.remove(&device).unwrap();
    bench.service.destroy_domain(&guest.domain).unwrap();
    bench.service.unregister_iommu(SMMU).unwrap();
    let weak = Arc::downgrade(&smmu);
    drop((smmu, guest.domain, device));
    assert!(weak.upgrade().is_some(), "nothing is freed by the last handle");
    bench.service.reap();
    bench.service.reap();
    assert!(weak.upgrade().is_none(), "nothing refers to the instance any more");
}

#[test]
fn c7_registrations_end_with_their_sources_object_the_last_one_first() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let object = bench.service.source_object();
    let mut devices: Vec<Device> = Vec::new();
    for (name, stream) in [("bridge", 0x10), ("function", 0x11), ("other", 0x12)] {
        let mut spec = bench.spec(name, &[(stream, 0)]);
        spec.source = Some(object.life());
        spec.parent = (name == "function").then(|| devices[0].key());
        devices.push(bench.service.add(spec).unwrap());
    }
    let stays = bench.add("stays", &[(0x20, 0)]);
    bench.assign(&devices[1], &guest).unwrap();
    bench.service.end_source(object).unwrap();
    let left: Vec<_> = bench.service.devices().map(|info| info.device.key()).collect();
    assert_eq!(left, [stays.key()], "the bridge came last, after its child");
    assert_eq!(bench.dma(0x11), Reached::Fault);
    assert_eq!(devices[1].label().to_string(), "function", "storage is a handle's business");
    bench.audit();
}

#[test]
fn c7_a_source_object_that_is_dropped_somewhere_ends_its_registrations_when_waiting_context_comes() {
    let mut bench = Bench::v2();
    let object = bench.service.source_object();
    let mut spec = bench.spec("dma", &[(0x10, 0)]);
    spec.source = Some(object.life());
    let device = bench.service.add(spec).unwrap();
    let inside = device.enter::<Spin>().unwrap();
    // As in an interrupt handler: no lock, nothing freed, nothing removed.
    drop(object);
    assert!(bench.service.find(device.key()).is_some());
    bench.service.reap();
    assert!(bench.service.find(device.key()).is_some(), "a call is inside");
    drop(inside);
    bench.service.reap();
    assert!(bench.service.find(device.key()).is_none());
    bench.audit();
}
