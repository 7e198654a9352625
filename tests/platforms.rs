//! The hypervisor's choice of a lock: contract C-10, C-11, and what may not leave its CPU (C-20).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

mod common;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::before::Before;
use common::{Anyone, PAGE, SMMU, described, stream};
use iommu_assign::assign::{
    Changed, DeviceKey, DeviceSpec, Domain, FlushRange, InterruptHandle, IommuHandle, Reservation, Service, Source,
    StreamId,
};
use iommu_assign::smmu::{Masters, Smmu};
use iommu_assign::sync::{
    CheckedFlag, InterruptSafe, InterruptSaving, Interrupts, ManyCpus, OneCpu, Platform, Reentry, SingleCpu, Spin,
    SpinIrq,
};
use lock_api::RawMutex;
use machine::{Machine, Reached, Stage2Tables};
use smmu_model::Config;

/// Whether a type has a trait, as a constant: an inherent function hides the trait's where its bound holds.
macro_rules! has {
    ($type:ty: $($bound:tt)+) => {{
        #[allow(dead_code, reason = "only called where the bound does not hold")]
        trait No {
            fn has() -> bool {
                false
            }
        }
        struct Probe<T: ?Sized>(core::marker::PhantomData<T>);
        impl<T: ?Sized> No for Probe<T> {}
        #[allow(dead_code, reason = "only called where the bound holds")]
        impl<T: ?Sized + $($bound)+> Probe<T> {
            fn has() -> bool {
                true
            }
        }
        Probe::<$type>::has()
    }};
}

// --- one CPU with interrupts, as far as one thread can be one ---

thread_local! {
    static MASKED: Cell<bool> = const { Cell::new(false) };
    static PENDING: Cell<bool> = const { Cell::new(false) };
    static TAKEN: Cell<[usize; 2]> = const { Cell::new([0; 2]) };
    static HANDLER: RefCell<Option<Rc<dyn Fn()>>> = const { RefCell::new(None) };
}

/// The interrupts of the thread that calls.
#[derive(Debug)]
enum Cpu {}

impl Interrupts for Cpu {
    type State = bool;

    fn save_and_mask() -> bool {
        MASKED.replace(true)
    }

    fn restore(state: bool) {
        MASKED.set(state);
        if !state && PENDING.replace(false) {
            take(1);
        }
    }
}

/// An interrupt comes: now, or when it is let in.
fn interrupt() {
    if MASKED.get() { PENDING.set(true) } else { take(0) }
}

/// Runs the handler, as hardware does: with interrupts masked. There is one at a time.
fn take(kind: usize) {
    let Some(handler) = HANDLER.take() else { return };
    let mut taken = TAKEN.get();
    taken[kind] += 1;
    TAKEN.set(taken);
    MASKED.set(true);
    handler();
    MASKED.set(false);
    PENDING.set(false);
    HANDLER.set(Some(handler));
}

/// Registers at each of whose accesses an interrupt comes.
type Interrupted = Before<fn()>;

/// A service over one modelled SMMU, with two domains.
struct Board<P: Platform> {
    machine: Machine,
    service: Service<P>,
    smmu: Arc<Smmu<P, Interrupted>>,
    domains: [Domain<P>; 2],
}

const BACKING: [u64; 2] = [0x1_0000_0000, 0x1_1000_0000];

impl<P: Platform> Board<P> {
    fn new() -> Self {
        let (machine, model) = (Machine::new(), Config::generic_v2());
        let registers = Interrupted::new(machine.add_smmu(SMMU, model.clone()), interrupt);
        let smmu = Arc::new(Smmu::probe(described(SMMU, &model), registers, Arc::new(Masters::<P>::new())).unwrap());
        let service = Service::<P>::new(Box::new(Anyone));
        service.register_iommu(smmu.clone()).unwrap();
        let domains = [0, 1].map(|n| {
            let mut tables = Stage2Tables::new(&machine, 0x8000_0000 + ((n as u64) << 20), 40, 40);
            tables.map(PAGE, BACKING[n], true);
            service.create_domain(["one", "two"][n].into(), tables.stage2()).unwrap()
        });
        Self { machine, service, smmu, domains }
    }

    fn dma(&self) -> Reached {
        self.machine.dma_write(SMMU, StreamId::new(0x10), PAGE).unwrap()
    }

    /// The life of a device.
    fn story(&self) {
        let streams = vec![stream(SMMU, 0x10, 0)];
        let device = self.service.add(DeviceSpec::new(DeviceKey::new(Source::Dt, 1), "dma".into(), streams)).unwrap();
        self.service.assign(&device, &self.domains[0]).unwrap();
        assert_eq!(self.dma(), Reached::Memory(BACKING[0]));
        self.service.flush_range_atomic(&self.domains[0], &PAGES).unwrap();
        self.service.reassign(&device, &self.domains[1]).unwrap();
        assert_eq!(self.dma(), Reached::Memory(BACKING[1]));
        drop(self.service.deassign(&device).unwrap());
        assert_eq!(self.dma(), Reached::Fault);
        self.service.remove(device.key()).unwrap();
        for domain in &self.domains {
            self.service.destroy_domain(domain).unwrap();
        }
        self.service.audit(&mut |finding| panic!("audit: {finding}"));
    }
}

const PAGES: FlushRange = FlushRange { start: PAGE, size: 0x1000, leaf: 0x1000, changed: Changed::Leaf };

// --- any lock ---

/// A raw mutex of the test's own, which counts.
struct Counting(spin::mutex::TicketMutex<()>);

static HOLDS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the inner lock excludes.
unsafe impl RawMutex for Counting {
    const INIT: Self = Self(spin::mutex::TicketMutex::new(()));
    type GuardMarker = lock_api::GuardSend;

    fn lock(&self) {
        RawMutex::lock(&self.0);
        HOLDS.fetch_add(1, Ordering::Relaxed);
    }

    fn try_lock(&self) -> bool {
        RawMutex::try_lock(&self.0)
    }

    unsafe fn unlock(&self) {
        // SAFETY: the caller holds it.
        unsafe { RawMutex::unlock(&self.0) }
    }
}

struct With<L>(std::marker::PhantomData<fn() -> L>);

impl<L> std::fmt::Debug for With<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("With")
    }
}

impl<L: RawMutex + Send + Sync + 'static> Platform for With<L> {
    type Lock = L;
    type Sharing = ManyCpus;

    fn barrier() {}
}

#[test]
fn c11_the_service_and_the_driver_run_on_any_raw_mutex() {
    Board::<Spin>::new().story();
    Board::<With<spin::mutex::SpinMutex<()>>>::new().story();
    Board::<SpinIrq<Cpu>>::new().story();
    assert!(!MASKED.get(), "every lock has given back what it masked");
    Board::<OneCpu<Unwinds>>::new().story();
    Board::<With<Counting>>::new().story();
    assert!(HOLDS.load(Ordering::Relaxed) > 20, "the locks are made of the mutex that was given");
}

// --- interrupt-saving ---

#[test]
fn c11_interrupts_are_masked_before_the_lock_is_taken_and_come_back_after_it_is_free() {
    /// An inner lock that asserts that interrupts are masked whenever it changes hands.
    struct Watched(spin::mutex::TicketMutex<()>);
    // SAFETY: the inner lock excludes.
    unsafe impl RawMutex for Watched {
        const INIT: Self = Self(spin::mutex::TicketMutex::new(()));
        type GuardMarker = lock_api::GuardSend;

        fn lock(&self) {
            assert!(MASKED.get());
            RawMutex::lock(&self.0);
        }

        fn try_lock(&self) -> bool {
            assert!(MASKED.get());
            RawMutex::try_lock(&self.0)
        }

        unsafe fn unlock(&self) {
            assert!(MASKED.get());
            // SAFETY: the caller holds it.
            unsafe { RawMutex::unlock(&self.0) }
        }
    }
    let outer = lock_api::Mutex::<InterruptSaving<Watched, Cpu>, u32>::new(1);
    let inner = lock_api::Mutex::<InterruptSaving<Watched, Cpu>, u32>::new(2);
    {
        let _outer = outer.lock();
        assert!(outer.try_lock().is_none());
        assert!(MASKED.get(), "a try that fails gives back what it found: masked");
        // As on another CPU.
        MASKED.set(false);
        assert!(outer.try_lock().is_none());
        assert!(!MASKED.get(), "or not masked");
        MASKED.set(true);
        drop(inner.lock());
        assert!(MASKED.get(), "the inner lock gives back what it found: masked");
    }
    assert!(!MASKED.get());
    drop(outer.try_lock().unwrap());
    assert!(!MASKED.get());
    MASKED.set(true);
    drop(outer.lock());
    assert!(MASKED.get(), "who came with interrupts masked leaves with them masked");
    MASKED.set(false);
}

#[test]
fn c10_c16_a_flush_in_an_interrupt_at_every_register_access_meets_no_held_lock() {
    let board = Rc::new(Board::<SpinIrq<Cpu>>::new());
    let inner = board.clone();
    HANDLER.set(Some(Rc::new(move || {
        inner.service.in_interrupts().flush_range(&inner.domains[0], &PAGES).unwrap();
    })));
    board.story();
    HANDLER.set(None);
    let [at_once, later] = TAKEN.get();
    assert!(at_once > 0 && later > 0, "some came with no lock held, some had to wait: {at_once}, {later}");
    assert!(!MASKED.get());
}

#[test]
fn c11_many_cpus_share_an_interrupt_saving_lock() {
    let count = lock_api::Mutex::<<SpinIrq<Cpu> as Platform>::Lock, usize>::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..1000 {
                    *count.lock() += 1;
                    assert!(!MASKED.get(), "each CPU has its own state back");
                }
            });
        }
    });
    assert_eq!(*count.lock(), 4000);
}

// --- one CPU ---

/// A way to stop that a test can see.
#[derive(Debug)]
enum Unwinds {}

impl Reentry for Unwinds {
    fn reentered() -> ! {
        panic!("re-entered")
    }
}

#[test]
fn c11_the_flag_of_a_single_cpu_catches_reentry() {
    let flag = CheckedFlag::<Unwinds>::INIT;
    flag.lock();
    assert!(!flag.try_lock());
    let caught = catch_unwind(AssertUnwindSafe(|| flag.lock())).unwrap_err();
    assert_eq!(caught.downcast_ref::<&str>(), Some(&"re-entered"));
    // SAFETY: taken above; the one that was refused took nothing.
    unsafe { flag.unlock() };
    flag.lock();
    // SAFETY: taken just now.
    unsafe { flag.unlock() };
}

#[test]
fn c11_a_handler_that_calls_what_is_for_waiting_context_is_caught_on_a_single_cpu() {
    let board = Rc::new(Board::<OneCpu<Unwinds>>::new());
    let (inner, caught) = (board.clone(), Rc::new(Cell::new(0)));
    let count = caught.clone();
    HANDLER.set(Some(Rc::new(move || {
        use iommu_assign::assign::{Iommu, Patience};
        let flush = || inner.smmu.flush(inner.domains[0].id(), None, Patience::Waiting);
        let flushed = catch_unwind(AssertUnwindSafe(flush));
        count.set(count.get() + usize::from(flushed.is_err()));
    })));
    board.story();
    HANDLER.set(None);
    assert!(caught.get() > 0, "some register is written under a lock");
}

#[test]
fn c11_a_service_on_a_single_cpu_is_not_shared() {
    assert!(has!(Service<Spin>: Sync));
    assert!(has!(Service<SpinIrq<Cpu>>: Sync));
    assert!(!has!(Service<OneCpu>: Sync));
    assert!(!has!(SingleCpu: Sync));
    assert!(has!(Service<OneCpu>: Send), "boot code may make it and hand it on");
}

// --- contexts by type ---

#[test]
fn c10_what_takes_a_lock_in_interrupts_exists_only_where_the_lock_masks_them() {
    assert!(!has!(Spin: InterruptSafe));
    assert!(!has!(OneCpu: InterruptSafe));
    assert!(has!(SpinIrq<Cpu>: InterruptSafe));
    // A handler on any CPU may use both; that `in_interrupts` does not exist for `Spin` is in its own documentation.
    assert!(has!(InterruptHandle<'static, SpinIrq<Cpu>>: Send + Sync + Copy));
    assert!(has!(IommuHandle: Send + Sync));
}

#[test]
fn c20_what_is_held_does_not_leave_its_cpu() {
    assert!(!has!(Reservation<'static, Spin>: Send));
    assert!(!has!(lock_api::MutexGuard<'static, <SpinIrq<Cpu> as Platform>::Lock, ()>: Send));
    assert!(!has!(lock_api::MutexGuard<'static, <OneCpu as Platform>::Lock, ()>: Send));
}
