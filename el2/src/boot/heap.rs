//! The global allocator: a buddy system over memory that is part of the image, so that every loader keeps it free.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ptr;

use buddy_system_allocator::Heap;

use crate::lock::Lock;

/// Bytes of heap.
const SIZE: usize = 64 << 20;

/// Interrupt handlers do not allocate; the lock masks interrupts all the same, for one that submits a request may
/// interrupt a holder.
struct Allocator(Lock<Heap<33>>);

#[global_allocator]
static ALLOCATOR: Allocator = Allocator(Lock::new(Heap::new()));

#[repr(C, align(4096))]
struct Memory(UnsafeCell<[u8; SIZE]>);

// SAFETY: only the allocator refers to it, under its lock.
unsafe impl Sync for Memory {}

static MEMORY: Memory = Memory(UnsafeCell::new([0; SIZE]));

/// Gives the allocator its memory. Once, by the boot CPU, with the MMU on.
pub(crate) fn init() {
    // SAFETY: the memory is the allocator's alone, for ever, and is given once.
    unsafe { ALLOCATOR.0.lock().init(MEMORY.0.get().addr(), SIZE) };
}

/// Bytes that are allocated now, as they were asked for.
pub(crate) fn used() -> usize {
    ALLOCATOR.0.lock().stats_alloc_user()
}

// SAFETY: a buddy system gives out disjoint blocks that fit the layout; its lock orders the CPUs.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0.lock().alloc(layout).map_or(ptr::null_mut(), ptr::NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let Some(pointer) = ptr::NonNull::new(pointer) {
            self.0.lock().dealloc(pointer, layout);
        }
    }
}
