//! What a hypervisor supplies, and the platforms that the library brings.

use core::sync::atomic::{AtomicUsize, Ordering};

use iommu_assign::smmu::{Lockstep, Mmio, Smmu};
use iommu_assign::sync::lock_api::RawMutex;
use iommu_assign::sync::{
    CheckedFlag, Cpu, Halt, InterruptSaving, Interrupts, Micros, OneCpu, Platform, Spin, SpinIrq, TimedOut,
    TimedSpinIrq, Waited, Waiter,
};

use super::{keep, keep_types};

/// The platform: the CPU is from outside.
pub(crate) type P = TimedSpinIrq<Outside>;
/// The driver, of as many instances as firmware says.
pub(crate) type R = Smmu<P, Lockstep<Mmio>>;

/// What is from outside reads and writes this.
static WORD: AtomicUsize = AtomicUsize::new(0);

#[derive(Debug)]
pub(crate) enum Outside {}

impl Interrupts for Outside {
    type State = usize;

    fn save_and_mask() -> usize {
        WORD.swap(0, Ordering::AcqRel)
    }

    fn restore(state: usize) {
        WORD.store(state, Ordering::Release);
    }
}

impl Cpu for Outside {
    fn ticks() -> u64 {
        WORD.load(Ordering::Acquire) as u64
    }

    fn frequency() -> u64 {
        WORD.load(Ordering::Acquire) as u64
    }

    fn wait_for_event() {
        WORD.store(1, Ordering::Release);
    }

    fn signal_event() {
        WORD.store(2, Ordering::Release);
    }
}

pub(crate) fn keep_all() {
    keep![
        Micros::new,
        Micros::from_millis,
        Micros::value,
        Micros::since,
        <OneCpu as Platform>::barrier,
        <Spin as Platform>::barrier,
        <SpinIrq<Outside> as Platform>::barrier,
        <P as Platform>::barrier,
        <P as Platform>::now,
        <P as Platform>::wake,
        <P as Waiter>::prepare,
        <P as Waiter>::wait,
        <CheckedFlag<Halt> as RawMutex>::lock,
        <CheckedFlag<Halt> as RawMutex>::try_lock,
        <CheckedFlag<Halt> as RawMutex>::unlock,
        <<Spin as Platform>::Lock as RawMutex>::lock,
        <<Spin as Platform>::Lock as RawMutex>::try_lock,
        <<P as Platform>::Lock as RawMutex>::lock,
        <<P as Platform>::Lock as RawMutex>::try_lock,
        <<P as Platform>::Lock as RawMutex>::unlock,
    ];
    keep_types![
        CheckedFlag<Halt>, Halt, InterruptSaving<<Spin as Platform>::Lock, Outside>, Micros, OneCpu, Spin, SpinIrq<Outside>, TimedOut, P,
        Waited,
    ];
    #[cfg(target_arch = "aarch64")]
    {
        use iommu_assign::sync::{BareMetal, Daif};
        keep![
            <BareMetal as Platform>::now,
            <BareMetal as Platform>::wake,
            <BareMetal as Waiter>::prepare,
            <BareMetal as Waiter>::wait,
            <Daif as Interrupts>::save_and_mask,
            <Daif as Interrupts>::restore,
        ];
    }
}

#[cfg(target_os = "none")]
mod bare {
    use core::alloc::{GlobalAlloc, Layout};
    use core::ptr::null_mut;
    use core::sync::atomic::AtomicPtr;

    use super::*;

    static MEMORY: AtomicPtr<u8> = AtomicPtr::new(null_mut());

    struct Heap;

    #[expect(unsafe_code, reason = "the trait is unsafe")]
    // SAFETY: it gives what it was given from outside; this image never runs.
    unsafe impl GlobalAlloc for Heap {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            MEMORY.swap(null_mut(), Ordering::AcqRel).wrapping_add(layout.size())
        }

        unsafe fn dealloc(&self, memory: *mut u8, _: Layout) {
            MEMORY.store(memory, Ordering::Release);
        }
    }

    #[global_allocator]
    static HEAP: Heap = Heap;

    struct Log;

    impl log::Log for Log {
        fn enabled(&self, _: &log::Metadata<'_>) -> bool {
            WORD.load(Ordering::Acquire) > 0
        }

        fn log(&self, record: &log::Record<'_>) {
            struct Sink;
            impl core::fmt::Write for Sink {
                fn write_str(&mut self, text: &str) -> core::fmt::Result {
                    WORD.store(text.len(), Ordering::Release);
                    Ok(())
                }
            }
            // The sink takes everything.
            let _ = core::fmt::write(&mut Sink, *record.args());
        }

        fn flush(&self) {}
    }

    #[unsafe(no_mangle)]
    extern "C" fn _start() {
        // Once.
        let _ = log::set_logger(&Log);
        log::set_max_level(log::LevelFilter::Trace);
        crate::all();
    }

    #[panic_handler]
    #[inline(never)]
    fn panicked(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {
            WORD.store(3, Ordering::Release);
        }
    }
}
