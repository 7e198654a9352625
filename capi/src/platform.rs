//! What the integrator supplies once for the whole process: memory, lock, barrier, clock, waiter, log, and a way to stop.

use alloc::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::ffi::{c_char, c_void};

use iommu_assign::sync::{InterruptSafe, ManyCpus, Micros, Platform, Spin, TimedOut, Waiter};
use lock_api::{GuardNoSend, RawMutex};

use crate::border::Text;
use crate::status::iommu_status;

/// The version of this interface: what `iommu_platform.version` must be. It changes with every struct and function.
pub const IOMMU_ABI_VERSION: u32 = 1;

/// A deadline that never comes.
pub const IOMMU_NO_DEADLINE: u64 = u64::MAX;

/// What the hypervisor supplies. Zero the struct, set `size` to `sizeof(struct iommu_platform)`, `version` to
/// `IOMMU_ABI_VERSION`, and the members that are needed. Each function is handed `context`, and may be called from any
/// CPU. None of them may call the library.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct iommu_platform {
    /// `sizeof(struct iommu_platform)`.
    pub size: u32,
    /// `IOMMU_ABI_VERSION`.
    pub version: u32,
    /// Handed to each function below.
    pub context: *mut c_void,
    /// Needed. `size` bytes, aligned to `alignment` (a power of two), or NULL. The library has no other memory. Called in
    /// waiting context with no lock of the library held, and never in an interrupt handler.
    pub allocate: Option<extern "C" fn(context: *mut c_void, size: usize, alignment: usize) -> *mut c_void>,
    /// Needed. Takes back what `allocate` gave, with the same size and alignment. Context as for `allocate`.
    pub release: Option<extern "C" fn(context: *mut c_void, memory: *mut c_void, size: usize, alignment: usize)>,
    /// Needed. Waits for the lock whose state is `*word`: 0 while it is free, whatever the integrator likes while it is
    /// taken. Acquires: what the last holder wrote is seen. Holds are short; no callback and no poll runs under one. With
    /// `interrupts_masked` it masks interrupts, and may note in the word what was masked.
    pub lock: Option<extern "C" fn(context: *mut c_void, word: *mut u64)>,
    /// Needed. Lets go of the lock, and leaves `*word` 0. Releases: the next holder sees what was written.
    pub unlock: Option<extern "C" fn(context: *mut c_void, word: *mut u64)>,
    /// Orders earlier stores to memory before later stores to device registers, as the SMMU's table walker sees them.
    /// NULL: `dsb sy` on Arm.
    pub barrier: Option<extern "C" fn(context: *mut c_void)>,
    /// Microseconds on a clock that never goes back. NULL: without a clock the hardware is polled a number of times
    /// instead of a span of time.
    pub now: Option<extern "C" fn(context: *mut c_void) -> u64>,
    /// Wakes whoever waits in `wait`. Called whenever something was given back. NULL: nobody waits.
    pub wake: Option<extern "C" fn(context: *mut c_void)>,
    /// Takes a ticket to wait from: how often `wake` was called, for example. NULL: there are no wait forms.
    pub prepare: Option<extern "C" fn(context: *mut c_void) -> u64>,
    /// Waits until `wake` was called after `ticket` was taken (true), or until `deadline` on the integrator's own clock
    /// (false); `IOMMU_NO_DEADLINE` never comes. To return true too early is allowed. NULL: there are no wait forms.
    pub wait: Option<extern "C" fn(context: *mut c_void, ticket: u64, deadline: u64) -> bool>,
    /// A line of log: `level` 1 for errors, 2 for warnings, 3 and above for less. `text` has `length` bytes and a NUL,
    /// and is the library's. Never called under a lock or in an interrupt handler. NULL: no log.
    pub log: Option<extern "C" fn(context: *mut c_void, level: u32, text: *const c_char, length: usize)>,
    /// Needed. Stops the hypervisor and does not return: the library met a state that it cannot have, or `allocate` gave
    /// nothing for an object of fixed size. `text` says which.
    pub abort: Option<extern "C" fn(context: *mut c_void, text: *const c_char, length: usize)>,
    /// Not 0: `lock` keeps interrupts off until `unlock`, and `wake` may be called in interrupt handlers. Without it
    /// `iommu_flush_range_in_interrupt` is refused.
    pub interrupts_masked: u32,
}

/// The table, with what is needed taken out of its options.
#[derive(Debug)]
struct Table {
    given: iommu_platform,
    #[cfg_attr(test, expect(dead_code, reason = "tests have the host's memory"))]
    allocate: extern "C" fn(*mut c_void, usize, usize) -> *mut c_void,
    #[cfg_attr(test, expect(dead_code, reason = "tests have the host's memory"))]
    release: extern "C" fn(*mut c_void, *mut c_void, usize, usize),
    lock: extern "C" fn(*mut c_void, *mut u64),
    unlock: extern "C" fn(*mut c_void, *mut u64),
    #[cfg_attr(any(feature = "std", test), expect(dead_code, reason = "std has a panic handler of its own"))]
    abort: extern "C" fn(*mut c_void, *const c_char, usize),
}

// SAFETY: nothing here follows `context`; it is handed to functions that may be called from any CPU (the struct says so).
unsafe impl Send for Table {}
// SAFETY: as for `Send`; the table does not change.
unsafe impl Sync for Table {}

static TABLE: spin::Once<Table> = spin::Once::new();

/// Whether the integrator has said what he supplies.
pub(crate) fn is_there() -> bool {
    TABLE.is_completed()
}

/// Whether there are wait forms.
pub(crate) fn can_wait() -> bool {
    TABLE.get().is_some_and(|table| table.given.wait.is_some() && table.given.prepare.is_some())
}

/// Whether the lock keeps interrupts off.
pub(crate) fn masks_interrupts() -> bool {
    TABLE.get().is_some_and(|table| table.given.interrupts_masked != 0)
}

/// Says what the hypervisor supplies: before every other call, once.
///
/// @param platform is copied.
/// @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_INVALID_ARGUMENT` for a NULL, a missing function, another version, or a struct
/// of another size; `IOMMU_STATUS_ALREADY_INITIALISED`.
///
/// Context: boot, on one CPU. It allocates nothing.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_init(platform: Option<&iommu_platform>) -> iommu_status {
    let Some(given) = platform else { return iommu_status::InvalidArgument };
    let same = usize::try_from(given.size) == Ok(size_of::<iommu_platform>()) && given.version == IOMMU_ABI_VERSION;
    let iommu_platform { allocate, release, lock, unlock, abort, .. } = *given;
    let (true, Some(allocate), Some(release), Some(lock), Some(unlock), Some(abort)) =
        (same, allocate, release, lock, unlock, abort)
    else {
        return iommu_status::InvalidArgument;
    };
    let mut first = false;
    TABLE.call_once(|| {
        first = true;
        Table { given: *given, allocate, release, lock, unlock, abort }
    });
    if !first {
        return iommu_status::AlreadyInitialised;
    }
    if given.log.is_some() && log::set_logger(&Line).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    iommu_status::Ok
}

// --- memory ---

/// The integrator's memory.
#[cfg_attr(test, expect(dead_code, reason = "tests have the host's memory"))]
struct Supplied;

// The tests' own harness allocates before anybody could say with what.
#[cfg(not(test))]
#[global_allocator]
static MEMORY: Supplied = Supplied;

const _: () = {
    // SAFETY: `allocate` gives memory of the size and alignment that were asked for until `release` gets it back, by its
    // contract in `iommu_platform`; a block that is not aligned is given back and counts as none. Nothing here unwinds.
    unsafe impl GlobalAlloc for Supplied {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            let Some(table) = TABLE.get() else { return core::ptr::null_mut() };
            let (context, size, alignment) = (table.given.context, layout.size(), layout.align());
            let memory = (table.allocate)(context, size, alignment);
            if !memory.is_null() && !memory.addr().is_multiple_of(alignment) {
                (table.release)(context, memory, size, alignment);
                return core::ptr::null_mut();
            }
            memory.cast()
        }

        unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
            if let Some(table) = TABLE.get() {
                (table.release)(table.given.context, memory.cast(), layout.size(), layout.align());
            }
        }
    }
};

// --- lock, barrier, clock, waiter ---

/// The hypervisor in C, as the library knows it.
#[derive(Debug)]
pub(crate) enum Hypervisor {}

/// A lock that the integrator's functions take.
pub(crate) struct SuppliedLock(UnsafeCell<u64>);

// SAFETY: Rust never looks at the word; it is handed to `lock` and `unlock`, whose matter its synchronisation is.
unsafe impl Sync for SuppliedLock {}

// SAFETY: `lock` returns when its caller alone has the lock of this word, until `unlock` (contract of `iommu_platform`).
// Every lock of the library belongs to an object that was made after `iommu_init`; without a table nobody gets in.
unsafe impl RawMutex for SuppliedLock {
    const INIT: Self = Self(UnsafeCell::new(0));

    type GuardMarker = GuardNoSend;

    fn lock(&self) {
        match TABLE.get() {
            Some(table) => (table.lock)(table.given.context, self.0.get()),
            None => loop {
                core::hint::spin_loop();
            },
        }
    }

    /// The library never tries: it waits.
    fn try_lock(&self) -> bool {
        false
    }

    unsafe fn unlock(&self) {
        if let Some(table) = TABLE.get() {
            (table.unlock)(table.given.context, self.0.get());
        }
    }
}

impl Platform for Hypervisor {
    type Lock = SuppliedLock;
    type Sharing = ManyCpus;

    fn barrier() {
        match TABLE.get().and_then(|table| Some((table.given.barrier?, table.given.context))) {
            Some((barrier, context)) => barrier(context),
            None => Spin::barrier(),
        }
    }

    fn now() -> Option<Micros> {
        let table = TABLE.get()?;
        Some(Micros::new(table.given.now?(table.given.context)))
    }

    fn wake() {
        if let Some(table) = TABLE.get()
            && let Some(wake) = table.given.wake
        {
            wake(table.given.context);
        }
    }
}

// `iommu_flush_range_in_interrupt` asks `masks_interrupts` before it makes use of it.
impl InterruptSafe for Hypervisor {}

impl Waiter for Hypervisor {
    type Ticket = u64;
    type Deadline = u64;

    fn prepare() -> u64 {
        let ticket = TABLE.get().and_then(|table| Some(table.given.prepare?(table.given.context)));
        ticket.unwrap_or_default()
    }

    fn wait(ticket: u64, deadline: Option<u64>) -> Result<(), TimedOut> {
        let deadline = deadline.unwrap_or(IOMMU_NO_DEADLINE);
        let woken = TABLE.get().and_then(|table| Some(table.given.wait?(table.given.context, ticket, deadline)));
        if woken == Some(true) { Ok(()) } else { Err(TimedOut) }
    }
}

// --- log and end ---

/// Hands lines of log on.
struct Line;

impl log::Log for Line {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if let Some(table) = TABLE.get()
            && let Some(log) = table.given.log
        {
            let text = Text::<512>::of(record.args());
            log(table.given.context, record.level() as u32, text.as_ptr(), text.len());
        }
    }

    fn flush(&self) {}
}

#[cfg(not(any(feature = "std", test)))]
#[panic_handler]
fn stop(info: &core::panic::PanicInfo<'_>) -> ! {
    if let Some(table) = TABLE.get() {
        let text = Text::<512>::of(info);
        (table.abort)(table.given.context, text.as_ptr(), text.len());
    }
    loop {
        core::hint::spin_loop();
    }
}
