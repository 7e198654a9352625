//! memory is reserved fallibly. From each allocation on all fail, and each time the answer is an error.

#![expect(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "a test fails by panicking")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use iommu_assign::assign::IommuKey;
use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
use iommu_assign::pci::{
    Bus, HostBridge, HostBridgeNumber, MapEntry, MapFault, PortType, Provider, RequesterIdMap, Segment, StreamsError,
    enumerate,
};
use iommu_assign::smmu::cover::{CoverError, CoverOptions, Cube, least_cover};

/// Fails allocations of the thread that asked for it.
struct Failing;

#[global_allocator]
static ALLOCATOR: Failing = Failing;

thread_local! {
    /// How many allocations still succeed before all fail; none fails without a number.
    static LEFT: Cell<Option<u32>> = const { Cell::new(None) };
    /// Whether one has failed.
    static FAILED: Cell<bool> = const { Cell::new(false) };
    /// How many bytes are in use, and the most that were.
    static IN_USE: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// Adds to the bytes in use. A thread that ends has no count any more.
fn count(bytes: usize, sign: isize) {
    let _ = IN_USE.try_with(|cell| {
        let (now, most) = cell.get();
        let now = now + sign * isize::try_from(bytes).unwrap_or(0);
        cell.set((now, most.max(now)));
    });
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
        count(layout.size(), 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(layout.size(), -1);
        // SAFETY: the caller's promise is passed on; `alloc` and `realloc` took all memory from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if fails_now() {
            return std::ptr::null_mut();
        }
        count(layout.size(), -1);
        count(size, 1);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

/// Lets each allocation of `run` fail in turn, and all behind it, until it needs no more; tells how many there were.
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

const V2: CoverOptions = CoverOptions::new(0x7fff, 0x7fff);

fn points(ids: impl IntoIterator<Item = u32>) -> Vec<Cube> {
    ids.into_iter().map(Cube::point).collect()
}

/// All but one in eight of `count` IDs.
fn dense(first: u32, count: u32) -> Vec<Cube> {
    points((0..count).filter(|id| id.wrapping_mul(0x9e37_79b1) >> 29 != 0).map(|id| first | id))
}

#[test]
fn a8_covers_report_that_memory_is_out() {
    let few = points([0, 1, 2, 3, 4, 5, 6, 8, 9, 0x13, 0x110, 0x223]);
    // Components that are searched, and one of more IDs than are searched.
    for (ids, allocations) in [(few, 8), (dense(0, 40), 8), (dense(0, 160), 6)] {
        let least = || least_cover(&ids, &V2);
        assert!(sweep(CoverError::OutOfMemory, least) > allocations);
    }
}

#[test]
fn the_largest_sets_stay_within_a_quarter_of_a_mebibyte() {
    let mut seed = 0x2545_f491_u32;
    let mut scattered = |bits: u32| {
        let next = || {
            seed ^= seed << 13;
            seed ^= seed >> 17;
            seed ^= seed << 5;
            seed & bits
        };
        points(std::iter::repeat_with(next).take(1024))
    };
    // Nothing joins; a component for each; parts of every size; one part, too large to search; parts as large as are
    // searched, one behind the other; the most cubes that can be chosen from.
    let apart = points((0..1024).map(|id| id * 3));
    let parts: Vec<Cube> = (0..9).flat_map(|part| dense(part * 0x600, 128)).collect();
    let most =
        [vec![Cube::new(0x400, 0x3f), Cube::point(0x7ff)], points((0x440..0x480).filter(|id| *id != 0x451))].concat();
    for ids in [apart, scattered(0x7fff), scattered(0x3ff), dense(0, 1024), parts, most] {
        let before = IN_USE.get().0;
        IN_USE.set((before, before));
        let cover = least_cover(&ids, &V2).unwrap();
        let most = IN_USE.get().1 - before;
        assert!(most < 256 << 10 && cover.cubes.len() > 6, "{most} bytes for {} cubes", cover.cubes.len());
    }
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
        passthrough: false,
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
