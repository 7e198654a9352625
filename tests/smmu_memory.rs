//! Where there is no memory: what takes some says so and changes nothing, and what gives back takes none (contract ).

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

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use common::driver::{Driver, device};
use common::everything::{Polled, elsewhere};
use common::{Bench, Guest, SMMU, described};
use iommu_assign::assign::{
    Cause, Device, DeviceState, Iommu, IommuError, IommuPower, Left, Quarantine, Removal, Streams,
};
use iommu_assign::smmu::Setup;
use machine::Reached;
use smmu_model::Config;

/// The system's allocator, which has nothing for a thread that says so, but for the hardware behind a register.
struct Empty;

thread_local! {
    static IS_EMPTY: Cell<bool> = const { Cell::new(false) };
}

// SAFETY: every call goes to the system's allocator as it came; returning null is allowed at any time.
unsafe impl GlobalAlloc for Empty {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if IS_EMPTY.get() && !elsewhere() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promises are what `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are what `System` asks for.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Empty = Empty;

/// Runs `act` with no memory to be had.
fn without_memory<T>(act: impl FnOnce() -> T) -> T {
    IS_EMPTY.set(true);
    let done = act();
    IS_EMPTY.set(false);
    done
}

fn driver(model: Config) -> Driver<Polled> {
    let config = described(SMMU, &model);
    Driver::through(config, Setup::default(), model.clone(), |registers| Polled::new(registers, &model))
}

#[test]
fn a8_after_make_master_a_devices_life_takes_no_memory() {
    let driver = driver(Config::generic_v2());
    let ids = [0x10, 0x11, 0x23, 0x40, 0x81];
    let streams: Vec<_> = ids.iter().map(|id| common::stream(SMMU, *id, 0)).collect();
    let pairs = ids.map(|id| (id, 0));
    (1..=2).for_each(|n| driver.opens(n, &pairs, &[0, 1, 2, 3]));
    let (one, two) = ([device(1)], [device(2)]);
    let made = |n| driver.smmu.make_master(device(n), &streams, n == 2).unwrap();
    let (first, second) = (made(1), made(2));
    let spaces = [0, 1].map(|guest| driver.space(guest));
    let smmu = &driver.smmu;
    without_memory(|| {
        assert_eq!(smmu.publish(first), Ok(true));
        smmu.enrol(one[0]).unwrap();
        smmu.plan(&one, &spaces[0], &|_| true).unwrap();
        smmu.abandon(&one);
        smmu.plan(&one, &spaces[0], &|_| true).unwrap();
        smmu.install(&one).unwrap();
        assert_eq!(smmu.publish(second), Ok(false));
        assert_eq!(smmu.overlapping(two[0], None), Some(one[0]));
        assert_eq!(smmu.reserve(two[0], &|_| true), Ok(Streams::Live));
        smmu.enrol(two[0]).unwrap();
        smmu.flush(spaces[0].domain, None, iommu_assign::assign::Patience::Waiting).unwrap();
        smmu.suspend().unwrap();
        smmu.resume().unwrap();
        // A reassign.
        smmu.plan(&one, &spaces[1], &|_| true).unwrap();
        smmu.block(&one).unwrap();
        smmu.install(&one).unwrap();
        smmu.plan(&two, &spaces[1], &|_| true).unwrap();
        smmu.install(&two).unwrap();
        assert_eq!(smmu.block(&one), Ok(Streams::Live));
        assert_eq!(smmu.block(&two), Ok(Streams::Fault));
        smmu.forget(spaces[1].domain).unwrap();
        smmu.withdraw(one[0]).unwrap();
        smmu.withdraw(two[0]).unwrap();
        smmu.retire().unwrap();
    });
}

#[test]
fn a8_a1_a_repack_without_memory_says_so_and_changes_nothing() {
    let driver = driver(Config { groups: 2, ..Config::generic_v2() });
    driver.add(1, &[0x10, 0x13]);
    driver.publish(2, &[0x11, 0x12], false);
    let before = driver.bench.machine.counters(SMMU);
    let ids = [device(2)];
    let reserved = without_memory(|| driver.smmu.reserve(ids[0], &|_| true));
    assert_eq!(reserved, Err(IommuError::OutOfMemory));
    assert_eq!(driver.bench.machine.counters(SMMU), before);
    driver.check();
    driver.reserve(2).unwrap();
    driver.enrol(2).unwrap();
    assert!(driver.smmu.shares(device(1), device(2)));
    driver.check();
}

/// More devices than a list has room for in place, behind one entry: the first one's streams bring them together.
const MEMBERS: u32 = 12;

fn group() -> (Bench, Vec<Device>, Guest) {
    let mut bench = Bench::new();
    let model = Config::generic_v2();
    bench.smmu_through(described(SMMU, &model), Setup::default(), model.clone(), |registers| {
        Polled::new(registers, &model)
    });
    let guest = bench.guest("guest");
    let all: Vec<(u32, u32)> = (0x10..0x10 + MEMBERS - 1).map(|id| (id, 0)).collect();
    let streams = std::iter::once(all.clone()).chain(all.iter().map(|one| vec![*one]));
    let devices = streams.enumerate().map(|(n, streams)| bench.add(&format!("member {n}"), &streams)).collect();
    bench.oracle.allow(&"all".into(), &all, &[guest.backing]);
    (bench, devices, guest)
}

#[test]
fn a8_a1_a_deassign_that_cannot_list_what_stays_reachable_changes_nothing() {
    let (bench, devices, guest) = group();
    for device in &devices {
        bench.service.assign(device, &guest.domain).unwrap();
    }
    let last = &devices[MEMBERS as usize - 1];
    let (reads, writes, error) = bench.cost(|| without_memory(|| bench.service.deassign(last)).unwrap_err());
    assert_eq!((error.cause, error.left), (Cause::OutOfMemory, Left::Unchanged));
    assert_eq!((reads, writes, bench.state(last)), (0, 0, DeviceState::Assigned(guest.domain.id())));
    assert_eq!(bench.service.deassign(last).unwrap().still_reachable.len(), 1, "the one that has the stream too");
    bench.audit();
}

#[test]
fn a8_a4_a_removal_that_cannot_list_what_stays_reachable_can_be_repeated() {
    let (bench, devices, guest) = group();
    for device in &devices {
        bench.service.assign(device, &guest.domain).unwrap();
    }
    let error = without_memory(|| bench.service.remove(devices[0].key())).unwrap_err();
    assert_eq!((error.cause, error.left), (Cause::OutOfMemory, Left::GoingLive));
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing), "as the error says");
    let Ok(Removal::StillReachable(mates)) = bench.service.remove(devices[0].key()) else {
        panic!("mates keep entries")
    };
    assert_eq!(mates.len(), MEMBERS as usize - 1);
    bench.audit();
}

#[test]
fn a8_what_gives_back_one_device_takes_no_memory() {
    let (mut bench, _, _) = group();
    let guest = bench.guest("other");
    let device = bench.add("alone", &[(0x40, 0)]);
    bench.oracle.allow(device.label(), &[(0x40, 0)], &[guest.backing]);
    let service = &bench.service;
    service.assign(&device, &guest.domain).unwrap();
    without_memory(|| drop(service.deassign(&device).unwrap()));
    without_memory(|| service.assign(&device, &guest.domain)).unwrap();
    without_memory(|| service.flush(&guest.domain)).unwrap();
    without_memory(|| service.quarantine(&device, Quarantine::Faults)).unwrap();
    assert_eq!(without_memory(|| service.remove(device.key())), Ok(Removal::Done));
    without_memory(|| service.destroy_domain(&guest.domain)).unwrap();
    bench.audit();
}
