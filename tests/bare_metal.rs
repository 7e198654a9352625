//! The platform that is ready for a first port, on a CPU made of threads: its clock, its wait, and the service on it
//! (contract C-11, C-19).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

mod common;

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use common::{Anyone, SMMU, described, stream};
use iommu_assign::assign::{Cause, DeviceKey, DeviceSpec, Operation, Service, Source};
use iommu_assign::smmu::{Masters, Smmu};
use iommu_assign::sync::{Cpu, InterruptSafe, Interrupts, Micros, Platform, TimedOut, TimedSpinIrq, Waiter};
use machine::{Machine, Stage2Tables};
use smmu_model::Config;

/// CPUs as threads: the event register of each is a number of events that it has seen.
#[derive(Debug)]
enum Threads {}

static TICKS: AtomicU64 = AtomicU64::new(0);
static EVENTS: Mutex<u64> = Mutex::new(0);
static SIGNAL: Condvar = Condvar::new();

thread_local! {
    static FREQUENCY: Cell<u64> = const { Cell::new(62_500_000) };
    static SEEN: Cell<u64> = const { Cell::new(0) };
    static SLEEPS: Cell<u64> = const { Cell::new(0) };
    /// What is done just before this thread sleeps.
    static BEFORE_SLEEP: Cell<Option<fn()>> = const { Cell::new(None) };
}

impl Interrupts for Threads {
    type State = ();

    fn save_and_mask() {}

    fn restore((): ()) {}
}

impl Cpu for Threads {
    fn ticks() -> u64 {
        TICKS.fetch_add(1, Ordering::SeqCst)
    }

    fn frequency() -> u64 {
        FREQUENCY.get()
    }

    fn wait_for_event() {
        if let Some(act) = BEFORE_SLEEP.take() {
            act();
        }
        SLEEPS.set(SLEEPS.get() + 1);
        let events = EVENTS.lock().unwrap();
        let events = SIGNAL.wait_while(events, |events| *events == SEEN.get()).unwrap();
        SEEN.set(*events);
    }

    fn signal_event() {
        *EVENTS.lock().unwrap() += 1;
        SIGNAL.notify_all();
    }
}

type Ready = TimedSpinIrq<Threads>;

#[test]
fn c14_the_counter_is_told_in_microseconds_whatever_its_frequency() {
    thread_local! {
        static AT: Cell<u64> = const { Cell::new(0) };
        static PER_SECOND: Cell<u64> = const { Cell::new(0) };
    }
    #[derive(Debug)]
    enum Still {}
    impl Interrupts for Still {
        type State = ();
        fn save_and_mask() {}
        fn restore((): ()) {}
    }
    impl Cpu for Still {
        fn ticks() -> u64 {
            AT.get()
        }
        fn frequency() -> u64 {
            PER_SECOND.get()
        }
        fn wait_for_event() {}
        fn signal_event() {}
    }
    let at = |ticks, frequency| {
        AT.set(ticks);
        PER_SECOND.set(frequency);
        TimedSpinIrq::<Still>::now()
    };
    assert_eq!(at(62_500, 62_500_000), Some(Micros::new(1_000)));
    assert_eq!(at(62_499, 62_500_000), Some(Micros::new(999)));
    assert_eq!(at(19_200_000 * 3600 + 96, 19_200_000), Some(Micros::new(3_600_000_005)));
    assert_eq!(at(1_000_000_001, 1_000_000_000), Some(Micros::new(1_000_000)));
    // A counter of 64 bits at 1 GHz wraps after 584 years, and its product does not wrap before.
    assert_eq!(at(u64::MAX, 1_000_000_000), Some(Micros::new(u64::MAX / 1_000)));
    assert_eq!(at(5, 0), None, "firmware says no frequency: there is no clock");
    assert_eq!(TimedSpinIrq::<Still>::wait(TimedSpinIrq::<Still>::prepare(), Some(Micros::new(9))), Err(TimedOut));
}

#[test]
fn c19_a_wake_between_the_look_and_the_sleep_is_not_lost() {
    let ticket = Ready::prepare();
    Ready::wake();
    assert_eq!((Ready::wait(ticket, None), SLEEPS.get()), (Ok(()), 0), "it came before the look");
    let ticket = Ready::prepare();
    BEFORE_SLEEP.set(Some(Ready::wake));
    assert_eq!((Ready::wait(ticket, None), SLEEPS.get()), (Ok(()), 1), "it came after the look");
}

#[test]
fn c19_a_wait_ends_at_its_deadline_without_an_event() {
    let ticket = Ready::prepare();
    let soon = Micros::new(Ready::now().unwrap().value() + 3);
    // Other tests wake too; a wait that ends early is a spurious one.
    match Ready::wait(ticket, Some(soon)) {
        Err(TimedOut) => assert!(Ready::now().unwrap() >= soon),
        Ok(()) => assert_ne!(Ready::prepare(), ticket),
    }
    assert_eq!(SLEEPS.get(), 0, "no event would have ended the sleep");
}

#[test]
fn c11_c19_the_service_waits_on_it_until_the_group_is_free() {
    const fn interrupt_safe<P: InterruptSafe + Waiter>() {}
    interrupt_safe::<Ready>();
    let (machine, model) = (Machine::new(), Config::generic_v2());
    let masters = Arc::new(Masters::<Ready>::new());
    let smmu = Smmu::probe(described(SMMU, &model), machine.add_smmu(SMMU, model.clone()), masters).unwrap();
    let service = Service::<Ready>::new(Box::new(Anyone));
    service.register_iommu(Arc::new(smmu)).unwrap();
    let tables = Stage2Tables::new(&machine, 0x8000_0000, 40, 40);
    let guest = service.create_domain("guest".into(), tables.stage2()).unwrap();
    let spec = DeviceSpec::new(DeviceKey::new(Source::Dt, 1), "dma".into(), vec![stream(SMMU, 0x10, 0)]);
    let device = service.add(spec).unwrap();
    let reserved = service.reserve(&device, &guest).unwrap();
    thread::scope(|scope| {
        let waits = scope.spawn(|| service.wait(None, |service| service.deassign(&device)));
        // The wait meets the reservation, and goes on when that is committed.
        thread::sleep(Duration::from_millis(20));
        assert!(!waits.is_finished());
        reserved.commit().unwrap();
        assert_eq!(waits.join().unwrap().map(drop), Ok(()));
    });
    // At its deadline it says what was in the way.
    let reserved = service.reserve(&device, &guest).unwrap();
    let now = Ready::now();
    let late = service.wait(now, |service| service.assign(&device, &guest)).unwrap_err();
    assert_eq!(late.cause, Cause::TimedOut { running: Operation::Assign });
    reserved.abandon().unwrap();
    // Interrupt handlers may flush.
    let page = iommu_assign::assign::FlushRange {
        start: 0x4000_0000,
        size: 0x1000,
        leaf: 0x1000,
        changed: iommu_assign::assign::Changed::Leaf,
    };
    service.in_interrupts().flush_range(&guest, &page).unwrap();
}
