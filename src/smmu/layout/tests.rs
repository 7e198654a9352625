//! What a laying-out takes of its workshop, counted by the allocator itself.

#![expect(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "a test fails by panicking")]

extern crate std;

use std::alloc::{GlobalAlloc, System};
use std::cell::Cell;
use std::thread_local;

use super::*;

/// The system's allocator, with each thread's calls counted.
struct Counting;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
}

#[expect(unsafe_code, reason = "an allocator is unsafe by its trait")]
// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: core::alloc::Layout) -> *mut u8 {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promises are what `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: core::alloc::Layout) {
        CALLS.set(CALLS.get() + 1);
        // SAFETY: the caller's promises are what `System` asks for.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const RULES: Rules<'static> = Rules { options: CoverOptions::new(0x7fff, 0x7fff), unused: &[], entries: ENTRIES };
const ENTRIES: usize = 64;

/// All IDs of device `n`, for each device.
type Devices = Vec<Vec<u32>>;

fn map_of(devices: &Devices) -> (StreamMap, Vec<DeviceId>) {
    let mut map = StreamMap::new(64, 8).unwrap();
    let ids: Vec<DeviceId> = (1..).map(DeviceId::new).take(devices.len()).collect();
    for (device, streams) in ids.iter().zip(devices) {
        map.insert_use(Use::new(*device, streams.iter().copied().map(Cube::point).collect(), None));
    }
    (map, ids)
}

/// Gives each ID an entry of its own, in fault.
fn enrolled(map: &mut StreamMap) {
    let mut streams: Vec<Cube> = map.uses().flat_map(|used| used.streams.clone()).collect();
    streams.sort_unstable();
    streams.dedup();
    for (number, stream) in (0..).zip(streams) {
        map.set_cube(number, Some(stream));
    }
    for used in map.uses() {
        used.entries.set(map.meeting_any(&used.streams));
    }
}

/// Looks and lays out; tells how often the system was asked for memory, or given some back.
fn calls(workshop: &mut Workshop, map: &StreamMap, devices: &[DeviceId], rules: &Rules<'_>) -> u64 {
    let before = CALLS.get();
    workshop.look(map, devices, ENTRIES, !rules.unused.is_empty()).unwrap().unwrap();
    workshop.lay_out(rules, Freedom::Repack).unwrap();
    CALLS.get() - before
}

/// IDs without a pattern.
fn scattered(count: u32) -> Vec<u32> {
    (1..=count).map(|n| n.wrapping_mul(0x9e37_79b1) >> 17).collect()
}

#[test]
fn a8_a_ready_workshop_lays_out_a_device_alone_without_the_system() {
    let (map, devices) = map_of(&[[0x10, 0x23, 0x4c].into()].into());
    let mut workshop = Workshop::new(ENTRIES, 0).unwrap();
    assert_eq!(calls(&mut workshop, &map, &devices, &RULES), 0);
    assert_eq!(workshop.layout.fresh, [0x10, 0x23, 0x4c].map(Cube::point));
    assert!(workshop.layout.least && workshop.layout.dropped.is_empty());
    assert!(CALLS.get() > 0, "the allocator is asked at all");
}

#[test]
fn a8_a_ready_workshop_packs_a_group_anew_without_the_system() {
    // Each of eight devices has four IDs, and shares one of the next.
    let ids: Vec<u32> = (0..).filter(|id| id % 7 != 3).take(32).collect();
    let group = (0..8).map(|n| ids.iter().cycle().skip(n * 4).take(5).copied().collect()).collect();
    let (mut map, devices) = map_of(&group);
    enrolled(&mut map);
    let before = map.entries().filter(|(_, entry)| entry.cube.is_some()).count();
    let mut workshop = Workshop::new(ENTRIES, 0).unwrap();
    for _ in 0..3 {
        assert_eq!(calls(&mut workshop, &map, devices.get(..1).unwrap(), &RULES), 0);
    }
    let Layout { dropped, fresh, .. } = &workshop.layout;
    assert_eq!((before, dropped.len() - fresh.len()), (32, 21), "eleven entries in the place of 32");
}

#[test]
fn a8_sixty_four_scattered_ids_have_room_in_a_new_workshop() {
    let loose = Rules { unused: &[Cube::new(0, 0xff), Cube::new(0x4000, 0xff)], ..RULES };
    let alone = [scattered(64)].into();
    let apart = scattered(64).into_iter().map(|id| [id].into()).collect();
    let mut workshop = Workshop::new(ENTRIES, 0).unwrap();
    for ids in [alone, apart] {
        let (map, devices) = map_of(&ids);
        for rules in [&RULES, &loose] {
            assert_eq!(calls(&mut workshop, &map, &devices, rules), 0);
            assert!((60..=64).contains(&workshop.layout.fresh.len()));
        }
    }
}

#[test]
fn a8_a_look_that_lacks_room_says_so_and_a_workshop_keeps_what_it_took() {
    let (map, devices) = map_of(&[scattered(200)].into());
    let mut workshop = Workshop::new(ENTRIES, 0).unwrap();
    let before = CALLS.get();
    let room = workshop.look(&map, &devices, ENTRIES, false).unwrap().unwrap_err();
    assert_eq!((CALLS.get() - before, room.own, room.group), (0, 200, 200));
    workshop.make_room(room).unwrap();
    assert!(calls(&mut workshop, &map, &devices, &RULES) > 0);
    // An arena keeps its largest piece only, so that the second time it may take one more.
    calls(&mut workshop, &map, &devices, &RULES);
    assert_eq!(calls(&mut workshop, &map, &devices, &RULES), 0);
}

#[test]
fn a_group_of_many_parts_takes_no_more_than_its_lists_are_long() {
    let (map, devices) = map_of(&scattered(128).into_iter().map(|id| [id].into()).collect());
    // Nobody's IDs, in as many pieces.
    let unused: Vec<Cube> = scattered(400).into_iter().skip(128).map(Cube::point).collect();
    let loose = Rules { unused: &unused, ..RULES };
    let mut workshop = Workshop::new(ENTRIES, 0).unwrap();
    let room = workshop.look(&map, &devices, ENTRIES, true).unwrap().unwrap_err();
    workshop.make_room(room).unwrap();
    calls(&mut workshop, &map, &devices, &loose);
    assert!(workshop.layout.fresh.len() > 60);
    let Workshop { arena, desk, scratch, .. } = &workshop;
    let bytes = [arena, desk, scratch].map(Bump::allocated_bytes);
    assert!(bytes.iter().sum::<usize>() < 64 << 10, "{bytes:?}");
}

#[test]
fn a_workshop_may_be_handed_to_another_thread() {
    const fn is_send<T: Send>() {}
    is_send::<Workshop>();
}
