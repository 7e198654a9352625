//! No memory is taken or given back while a lock is held: in every operation, counted by the allocator itself.

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
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};

use common::everything::{elsewhere, every_operation};
use iommu_assign::sync::trace;

/// The system's allocator, which looks whether the thread that calls it holds a lock.
struct Watching;

thread_local! {
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static LOOKING: Cell<bool> = const { Cell::new(false) };
    static FOUND: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

fn look(what: &str) {
    if !elsewhere() {
        CALLS.set(CALLS.get() + 1);
    }
    if trace::is_held() && !elsewhere() && !LOOKING.replace(true) {
        tell(what);
        LOOKING.set(false);
    }
}

/// Notes what was found, in memory of its own: nobody looks meanwhile.
fn tell(what: &str) {
    let stack = Backtrace::force_capture().to_string();
    let ours = |line: &&str| line.trim_start().starts_with("at ./src/");
    let place: Vec<&str> = stack.lines().filter(ours).map(str::trim_start).take(4).collect();
    FOUND.with_borrow_mut(|found| found.push(format!("{what} under {:?} {place:?}", trace::held())));
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        look("taken");
        // SAFETY: the caller's promises are what `System` asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        look("given back");
        // SAFETY: the caller's promises are what `System` asks for.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        look("grown");
        // SAFETY: the caller's promises are what `System` asks for.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

#[test]
fn a8_c7_no_memory_is_taken_or_given_back_under_a_lock() {
    let mut all: Vec<(&str, Vec<String>)> = Vec::new();
    every_operation(&mut |name, act| {
        act();
        let found = FOUND.take();
        if !found.is_empty() {
            all.push((name, found));
        }
    });
    assert!(CALLS.get() > 100, "the allocator is asked at all");
    assert!(all.is_empty(), "memory under a lock: {all:#?}");
}

#[test]
fn c12_c16_c17_flushes_fault_intake_and_requests_take_no_memory() {
    let mut seen = 0;
    every_operation(&mut |name, act| {
        let before = CALLS.get();
        act();
        let calls = CALLS.get() - before;
        let free = [
            "flush",
            "flush_range",
            "flush_range_atomic",
            "take_faults",
            "handle counts",
            "queue submit",
            "queue cancel, poll, drop",
        ];
        if free.contains(&name) {
            seen += 1;
            assert_eq!(calls, 0, "{name}");
        }
    });
    assert!(seen > 3);
}
