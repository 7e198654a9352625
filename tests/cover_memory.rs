//! memory is reserved fallibly. From each allocation on all fail, and each time the answer is an error.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use iommu_assign::assign::IommuKey;
use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
use iommu_assign::pci::{
    Bus, HostBridge, HostBridgeNumber, MapEntry, MapFault, PortType, Provider, RequesterIdMap, Segment, StreamsError,
    enumerate,
};
use iommu_assign::smmu::cover::{CoverError, CoverOptions, Cube, IdSet, least_cover, loose_cover};

/// Fails allocations of the thread that asked for it.
struct Failing;

#[global_allocator]
static ALLOCATOR: Failing = Failing;

thread_local! {
    /// How many allocations still succeed before all fail; none fails without a number.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    /// Whether one has failed.
    static FAILED: Cell<bool> = const { Cell::new(false) };
}

fn fails_now() -> bool {
    LEFT.with(|left| {
        let now = left.get() == Some(0);
        left.set(left.get().map(|count| count.saturating_sub(1)));
        FAILED.set(now || FAILED.get());
        now
    })
}

// SAFETY: `System` keeps the contract; returning null is allowed at any time.
#[expect(unsafe_code, reason = "an allocator is unsafe by its trait")]
unsafe impl GlobalAlloc for Failing {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if fails_now() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on; `alloc` and `realloc` took all memory from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if fails_now() {
            return std::ptr::null_mut();
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Lets each allocation of `run` fail in turn, and all behind it, until it needs no more; tells how many there were. An
/// arena that is refused a large piece tries a smaller one, so that one failure alone is none.
fn sweep<T, E: PartialEq + std::fmt::Debug>(expected: E, run: impl Fn() -> Result<T, E>) -> u32 {
    for count in 0.. {
        LEFT.set(Some(count));
        let result = run();
        LEFT.take();
        let failed = FAILED.take();
        match result {
            Ok(_) => {
                assert!(!failed, "allocation {count} failed and was not noticed");
                return count;
            }
            Err(error) => assert_eq!(error, expected, "allocation {count}"),
        }
    }
    0
}

#[test]
fn covers_report_that_memory_is_out() {
    let ids: Vec<Cube> = [0, 1, 2, 3, 4, 5, 6, 8, 9, 0x13, 0x110, 0x223].map(Cube::point).into();
    let options = CoverOptions::new(0xffff, 0xffff);
    // A piece of each arena, and the list that is returned; all that lies in the arenas is tried inside the crate.
    assert!(sweep(CoverError::OutOfMemory, || least_cover(&ids, &options)) > 2);
    assert!(sweep(CoverError::OutOfMemory, || loose_cover(&ids, &[Cube::new(0, 0xff)], &options)) > 3);
    // One component of more IDs than are searched.
    let mut wide = IdSet::new();
    wide.insert_range(0x123, 0x765).unwrap();
    assert!(sweep(CoverError::OutOfMemory, || least_cover(wide.cubes(), &options)) > 2);
    let one = IdSet::from_cubes(&ids).unwrap();
    assert!(sweep(CoverError::OutOfMemory, || one.union(&wide)?.minus(&one)) > 2);
}

#[test]
fn host_bridges_report_that_memory_is_out() {
    let entry = MapEntry::new(0, Provider::Smmu(IommuKey::new(0)), 0, 0x10000);
    assert!(sweep(MapFault::OutOfMemory, || RequesterIdMap::new([entry], RequesterIdMap::NO_MASK)) > 0);
    let host = HostBridge {
        number: HostBridgeNumber(0),
        segment: Segment(0),
        buses: Bus(0)..=Bus(9),
        map: RequesterIdMap::new([entry], RequesterIdMap::NO_MASK).unwrap(),
    };
    let mut space = FakeConfigSpace::new();
    let root = FakeFunction::bridge(0x1b36, 0xc, 0, 1, 2).express(PortType::RootPort);
    space.insert("00:01.0".parse().unwrap(), root);
    space
        .insert("01:00.0".parse().unwrap(), FakeFunction::bridge(0x1b36, 0xe, 1, 2, 2).express(PortType::ExpressToPci));
    space.insert("02:04.0".parse().unwrap(), FakeFunction::endpoint(0x10ec, 0x8139, 0x02_0000));
    space.insert("02:05.0".parse().unwrap(), FakeFunction::endpoint(0x10ec, 0x8139, 0x02_0000).broken(4, 0x0010_0000));
    let out = enumerate(&space, &host).map(|found| found.functions).unwrap();
    assert!(sweep(iommu_assign::pci::OutOfMemory, || enumerate(&space, &host)) > 5);
    let last = out.last().unwrap();
    assert!(sweep(StreamsError::OutOfMemory, || host.streams(last)) > 0);
}
