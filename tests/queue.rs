//! The queue in front of the service: contract C-12.

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
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::time::{Duration, Instant};

use common::callbacks::Hooks;
use common::waiting::Host;
use common::{Anyone, PAGE, SMMU, described, stream};
use iommu_assign::assign::{
    Answer, Cause, Completion, DeviceHooks, DeviceKey, DeviceSpec, Domain, HookContext, NoAnswer, Progress, Removal,
    Request, RequestQueue, Service, Source, StreamId, Target,
};
use iommu_assign::smmu::{Masters, Smmu};
use iommu_assign::sync::{Interrupts, Platform, Spin, SpinIrq};
use machine::{Machine, Reached, Stage2Tables};
use smmu_model::Config;

fn soon() -> Option<Instant> {
    Some(Instant::now() + Duration::from_millis(30))
}

// --- what the calling thread allocates and frees ---

struct Counted;

thread_local! {
    static MEMORY: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

#[global_allocator]
static ALLOCATOR: Counted = Counted;

// SAFETY: the system's allocator does the work; counting allocates nothing.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = MEMORY.try_with(|memory| memory.set((memory.get().0 + 1, memory.get().1)));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        let _ = MEMORY.try_with(|memory| memory.set((memory.get().0, memory.get().1 + 1)));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Allocations and frees of this thread while `act` runs.
fn memory<T>(act: impl FnOnce() -> T) -> ((usize, usize), T) {
    let before = MEMORY.get();
    let result = act();
    let after = MEMORY.get();
    ((after.0 - before.0, after.1 - before.1), result)
}

// --- a board ---

const BACKING: [u64; 2] = [0x1_0000_0000, 0x1_1000_0000];

struct Board<P: Platform> {
    machine: Machine,
    service: Service<P>,
    queue: RequestQueue<P>,
    one: Domain<P>,
    two: Domain<P>,
}

impl<P: Platform> Board<P> {
    fn new() -> Self {
        let (machine, model) = (Machine::new(), Config::generic_v2());
        let registers = machine.add_smmu(SMMU, model.clone());
        let smmu = Smmu::probe(described(SMMU, &model), registers, Arc::new(Masters::<P>::new())).unwrap();
        let service = Service::<P>::new(Box::new(Anyone));
        service.register_iommu(Arc::new(smmu)).unwrap();
        let [one, two] = [0, 1].map(|n| {
            let mut tables = Stage2Tables::new(&machine, 0x8000_0000 + ((n as u64) << 20), 40, 40);
            tables.map(PAGE, BACKING[n], true);
            service.create_domain(["one", "two"][n].into(), tables.stage2()).unwrap()
        });
        Self { machine, service, queue: RequestQueue::new(), one, two }
    }

    fn submit(&self, request: Request<P>) -> Completion<P> {
        self.queue.submit(self.queue.prepare(request))
    }

    fn drain(&self) -> usize {
        self.queue.worker().expect("nobody else works").drain(&self.service)
    }

    fn dma(&self, id: u32) -> Reached {
        self.machine.dma_write(SMMU, StreamId::new(id), PAGE).unwrap()
    }

    fn audit(&self) {
        self.service.audit(&mut |finding| panic!("audit: {finding}"));
    }
}

fn key(n: u32) -> DeviceKey {
    DeviceKey::new(Source::Dt, n.into())
}

/// Device `n` with stream `n`.
fn spec(n: u32) -> DeviceSpec {
    DeviceSpec::new(key(n), format!("device {n}").as_str().into(), vec![stream(SMMU, n, 0)])
}

fn target(n: u32) -> Target {
    key(n).into()
}

fn cause<P: Platform>(completion: &Completion<P>) -> Cause {
    completion.poll().expect("answered").as_ref().expect_err("refused").cause.clone()
}

fn is_done<P: Platform>(completion: &Completion<P>) -> bool {
    matches!(completion.poll(), Some(Ok(_)))
}

/// A device whose quiesce does something.
fn hooked(n: u32, act: impl Fn(&HookContext<'_>) + Send + Sync + 'static) -> DeviceSpec {
    let hooks = Hooks::new().quiesce(move |context| {
        act(context);
        Ok(())
    });
    DeviceSpec { hooks: Arc::new(hooks), ..spec(n) }
}

/// A device whose deassign stops in the middle, twice: when it has come there, and until it may go on.
fn gated(n: u32) -> (DeviceSpec, Arc<Barrier>) {
    let gate = Arc::new(Barrier::new(2));
    let inner = gate.clone();
    let spec = hooked(n, move |_| {
        inner.wait();
        inner.wait();
    });
    (spec, gate)
}

// --- order ---

#[test]
fn c12_requests_about_one_device_are_carried_out_in_order() {
    let board = Board::<Spin>::new();
    let added = board.submit(Request::Add(spec(1)));
    let assigned = board.submit(Request::Assign(target(1), board.one.clone()));
    let mut worker = board.queue.worker().unwrap();
    assert!(added.poll().is_none(), "nothing runs without the worker");
    assert_eq!(worker.run_one(&board.service), Progress::Answered);
    assert!(matches!(added.poll(), Some(Ok(Answer::Added(device))) if device.key() == key(1)));
    assert_eq!((assigned.poll().is_none(), board.dma(1)), (true, Reached::Fault));
    assert_eq!(worker.run_one(&board.service), Progress::Answered);
    assert_eq!(board.dma(1), Reached::Memory(BACKING[0]));
    let moved = board.submit(Request::Reassign(target(1), board.two.clone()));
    let refused = board.submit(Request::Assign(target(1), board.one.clone()));
    let ended = board.submit(Request::Deassign(target(1)));
    let removed = board.submit(Request::Remove(key(1).into()));
    let late = board.submit(Request::Deassign(target(1)));
    assert_eq!(worker.drain(&board.service), 0);
    assert_eq!(worker.run_one(&board.service), Progress::Idle { waiting: 0 });
    assert!(is_done(&assigned) && is_done(&moved));
    assert_eq!(cause(&refused), Cause::AlreadyAssigned { domain: "two".into() });
    assert!(matches!(ended.poll(), Some(Ok(Answer::Deassigned(done))) if done.still_reachable.is_empty()));
    assert!(matches!(removed.poll(), Some(Ok(Answer::Removed(Removal::Done)))));
    assert_eq!(cause(&late), Cause::NotFound);
    board.audit();
}

#[test]
fn c12_whole_groups_quarantines_and_trees_go_through_the_queue() {
    let board = Board::<Spin>::new();
    let child = DeviceSpec { parent: Some(key(1)), ..spec(2) };
    let mate = DeviceSpec { streams: vec![stream(SMMU, 1, 0)], ..spec(3) };
    let device = board.service.add(spec(1)).unwrap();
    let requests = [
        Request::Add(child),
        Request::Add(mate),
        Request::AssignGroup((&device).into(), board.one.clone()),
        Request::ReassignGroup(target(1), board.two.clone()),
        Request::DeassignGroup(target(1)),
        Request::Quarantine(target(1), iommu_assign::assign::Quarantine::Faults),
        Request::RemoveTree(key(1).into()),
    ];
    let completions: Vec<_> = requests.into_iter().map(|request| board.submit(request)).collect();
    assert_eq!(board.drain(), 0);
    assert!(completions.iter().all(is_done), "{completions:#?}");
    let left: Vec<DeviceKey> = board.service.devices().map(|info| info.device.key()).collect();
    assert_eq!(left, [key(3)]);
    board.audit();
}

#[test]
fn c12_a_handle_names_one_registration_and_a_key_whoever_has_it_then() {
    let board = Board::<Spin>::new();
    let old = board.service.add(spec(1)).unwrap();
    board.service.remove(key(1)).unwrap();
    let by_handle = board.submit(Request::Assign((&old).into(), board.one.clone()));
    let added = board.submit(Request::Add(spec(1)));
    let by_old_handle = board.submit(Request::Assign((&old).into(), board.one.clone()));
    let by_key = board.submit(Request::Assign(target(1), board.one.clone()));
    board.drain();
    assert_eq!((cause(&by_handle), cause(&by_old_handle)), (Cause::Gone, Cause::Gone));
    assert!(is_done(&added) && is_done(&by_key));
}

// --- busy groups ---

#[test]
fn c12_a_request_that_meets_a_claimed_group_keeps_its_place_and_the_others_go_on() {
    let board = Board::<Spin>::new();
    let (spec_1, gate) = gated(1);
    let device = board.service.add(spec_1).unwrap();
    board.service.add(spec(2)).unwrap();
    board.service.assign(&device, &board.one).unwrap();
    let assigned = board.submit(Request::Assign(target(1), board.two.clone()));
    let removed = board.submit(Request::Remove(key(1).into()));
    let other = board.submit(Request::Assign(target(2), board.one.clone()));
    std::thread::scope(|scope| {
        let deassign = scope.spawn(|| board.service.deassign(&device).map(drop));
        gate.wait();
        assert_eq!(board.drain(), 2, "both wait for the one claim");
        assert!(is_done(&other) && board.dma(2) == Reached::Memory(BACKING[0]), "the worker went on");
        assert!(assigned.poll().is_none() && removed.poll().is_none(), "the removal does not overtake the assign");
        let late = board.submit(Request::Deassign(target(1)));
        assert_eq!(board.drain(), 3);
        assert!(late.cancel() && late.cancel());
        assert_eq!(cause(&late), Cause::Cancelled);
        gate.wait();
        deassign.join().unwrap().unwrap();
    });
    // The group is free, and reassigning it would stop at the gate again: the removal does not.
    assert_eq!(board.drain(), 0);
    assert!(is_done(&assigned), "{assigned:?}");
    assert!(matches!(removed.poll(), Some(Ok(Answer::Removed(Removal::Done)))), "{removed:?}");
    assert!(board.service.find(key(1)).is_none());
    board.audit();
}

#[test]
fn c12_what_waits_for_a_claim_can_be_cancelled_and_does_not_hold_up_its_device() {
    let board = Board::<Spin>::new();
    let (spec, gate) = gated(1);
    let device = board.service.add(spec).unwrap();
    board.service.assign(&device, &board.one).unwrap();
    let first = board.submit(Request::Assign(target(1), board.two.clone()));
    let second = board.submit(Request::Assign(target(1), board.one.clone()));
    let removal = board.submit(Request::Remove(key(1).into()));
    std::thread::scope(|scope| {
        let deassign = scope.spawn(|| board.service.deassign(&device).map(drop));
        gate.wait();
        assert_eq!(board.drain(), 3);
        drop(first);
        assert!(second.cancel());
        assert_eq!(board.drain(), 0);
        // C-2: a removal does not wait for the claim: it leaves its mark.
        assert!(matches!(removal.poll(), Some(Ok(Answer::Removed(Removal::Pending)))), "{removal:?}");
        gate.wait();
        assert_eq!(deassign.join().unwrap().unwrap_err().cause, Cause::Removed);
    });
    assert!(board.service.find(key(1)).is_none(), "the running operation has finished the removal");
}

#[test]
fn c12_c19_the_worker_sleeps_while_all_that_is_left_is_busy() {
    let board = Board::<Host<0>>::new();
    let (spec_1, gate) = gated(1);
    let device = board.service.add(spec_1).unwrap();
    board.service.assign(&device, &board.one).unwrap();
    let end = Instant::now() + Duration::from_millis(400);
    std::thread::scope(|scope| {
        let deassign = scope.spawn(|| board.service.deassign(&device).map(drop));
        gate.wait();
        let assigned = board.submit(Request::Assign(target(1), board.two.clone()));
        // An add that meets a claimed group ends a claim too, its own: nobody can have met that, so that it wakes nobody.
        let sharing = DeviceSpec { key: key(9), ..spec(1) };
        let added = board.submit(Request::Add(sharing));
        let before = Host::<0>::prepared();
        scope.spawn(|| board.queue.worker().unwrap().serve(&board.service, Some(end)));
        std::thread::sleep(Duration::from_millis(60));
        let rounds = Host::<0>::prepared() - before;
        assert!((1..4).contains(&rounds), "{rounds} rounds in which nothing could be done");
        assert!(assigned.poll().is_none());
        gate.wait();
        deassign.join().unwrap().unwrap();
        assert!(assigned.wait(Some(end)).unwrap().is_ok(), "the end of the claim woke the worker");
        assert!(added.wait(Some(end)).unwrap().is_ok());
    });
}

// --- cancelling and dropping ---

#[test]
fn c12_a_request_can_be_cancelled_until_it_starts() {
    let board = Board::<Spin>::new();
    let never = board.submit(Request::Add(spec(1)));
    assert!(never.cancel());
    assert_eq!(cause(&never), Cause::Cancelled);
    let added = board.submit(Request::Add(spec(2)));
    assert_eq!(board.drain(), 0);
    assert!(!added.cancel(), "it is answered");
    assert!(is_done(&added));
    assert_eq!(board.service.devices().count(), 1);
    let line = never.poll().unwrap().as_ref().unwrap_err().to_string();
    assert_eq!(line, "add device 1: it was cancelled; nothing changed");
}

#[test]
fn c12_what_has_started_cannot_be_cancelled_and_its_dropped_handle_leaves_it_to_itself() {
    let board = Arc::new(Board::<Spin>::new());
    let running: Arc<Mutex<Option<Completion<Spin>>>> = Arc::default();
    let (handle, seen) = (running.clone(), Arc::new(Mutex::new(Vec::new())));
    let record = seen.clone();
    let spec = hooked(1, move |_| {
        let completion = handle.lock().unwrap().take().unwrap();
        record.lock().unwrap().push((completion.cancel(), completion.poll().is_some()));
    });
    let device = board.service.add(spec).unwrap();
    board.service.assign(&device, &board.one).unwrap();
    *running.lock().unwrap() = Some(board.submit(Request::Deassign(target(1))));
    assert_eq!(board.drain(), 0);
    assert_eq!(board.dma(1), Reached::Fault, "it was carried out");
    assert_eq!(*seen.lock().unwrap(), [(false, false)], "it is running: neither cancelled nor answered");
}

#[test]
fn c12_a_dropped_handle_cancels_and_a_detached_one_does_not() {
    let board = Board::<Spin>::new();
    drop(board.submit(Request::Add(spec(1))));
    board.submit(Request::Add(spec(2))).detach();
    drop(board.queue.prepare(Request::Add(spec(3))));
    assert_eq!(board.drain(), 0);
    assert_eq!(board.service.devices().map(|info| info.device.key()).collect::<Vec<_>>(), [key(2)]);
}

#[test]
fn c12_a_queue_that_goes_cancels_what_it_holds() {
    let board = Board::<Spin>::new();
    let queue = RequestQueue::<Spin>::new();
    let completion = queue.submit(queue.prepare(Request::Add(spec(1))));
    drop(queue);
    assert_eq!(cause(&completion), Cause::Cancelled);
    assert_eq!(board.service.devices().count(), 0);
}

// --- memory ---

#[derive(Debug)]
enum Unmasked {}

impl Interrupts for Unmasked {
    type State = ();

    fn save_and_mask() {}

    fn restore((): ()) {}
}

#[test]
fn c12_c16_what_is_legal_in_interrupts_allocates_and_frees_nothing() {
    let board = Board::<SpinIrq<Unmasked>>::new();
    let ready: Vec<_> = (1..5).map(|n| board.queue.prepare(Request::Add(spec(n)))).collect();
    let mut ready = ready.into_iter();
    let interrupts = board.queue.in_interrupts();
    let mut submit = || interrupts.submit(ready.next().unwrap());
    let (cost, (first, second, third)) = memory(|| {
        let (first, second, third) = (submit(), submit(), submit());
        assert!(first.poll().is_none() && second.cancel() && second.poll().is_some());
        (first, second, third)
    });
    assert_eq!(cost, (0, 0));
    // Not started, cancelled, never submitted; then one that is answered.
    assert_eq!(memory(|| (drop(third), drop(second), ready.by_ref().for_each(drop))).0, (0, 0));
    assert_eq!(board.drain(), 0);
    assert!(is_done(&first));
    assert_eq!(memory(|| drop(first)).0, (0, 0), "what the answer holds, too");
    assert_eq!(board.service.devices().count(), 1);
}

#[test]
fn c7_c12_requests_are_let_go_in_waiting_context_once_nobody_refers_to_them() {
    let board = Board::<Spin>::new();
    let hooks: Arc<dyn DeviceHooks> = Arc::new(Hooks::new());
    let with_hooks = |n| DeviceSpec { hooks: hooks.clone(), ..spec(n) };
    let kept = board.submit(Request::Add(DeviceSpec { parent: Some(key(99)), ..with_hooks(1) }));
    let dropped = board.submit(Request::Add(with_hooks(2)));
    let unsent = board.queue.prepare(Request::Add(with_hooks(3)));
    assert_eq!(Arc::strong_count(&hooks), 4);
    drop((dropped, unsent));
    assert_eq!(Arc::strong_count(&hooks), 4, "a drop frees nothing");
    board.drain();
    assert_eq!(cause(&kept), Cause::ParentMissing);
    assert_eq!(Arc::strong_count(&hooks), 2, "the worker has let go of two, the third is referred to");
    drop(kept);
    // Where no worker ever comes, making requests keeps the number of forgotten ones down.
    for n in 10..20 {
        drop(board.queue.prepare(Request::Add(with_hooks(n))));
    }
    assert!(Arc::strong_count(&hooks) <= 3, "{}", Arc::strong_count(&hooks));
}

// --- waiting ---

#[test]
fn c12_c19_a_completion_is_waited_for_until_its_deadline() {
    let board = Board::<Host<1>>::new();
    let completion = board.submit(Request::Add(spec(1)));
    assert_eq!(completion.wait(soon()).unwrap_err(), NoAnswer::TimedOut);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| completion.wait(None).map(Result::is_ok));
        scope.spawn(|| board.drain());
        assert_eq!(waits.join().unwrap(), Ok(true));
    });
    let completion = board.submit(Request::Remove(key(1).into()));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| completion.wait(None).unwrap().as_ref().unwrap_err().cause.clone());
        std::thread::sleep(Duration::from_millis(20));
        assert!(completion.cancel());
        assert_eq!(waits.join().unwrap(), Cause::Cancelled, "a cancelled request wakes who waits for it");
    });
}

#[test]
fn c12_c19_a_submission_wakes_the_worker() {
    let board = Board::<Host<4>>::new();
    let end = Instant::now() + Duration::from_millis(400);
    std::thread::scope(|scope| {
        scope.spawn(|| board.queue.worker().unwrap().serve(&board.service, Some(end)));
        std::thread::sleep(Duration::from_millis(40));
        let completion = board.submit(Request::Add(spec(1)));
        assert!(completion.wait(Some(end - Duration::from_millis(100))).unwrap().is_ok());
    });
}

#[test]
fn c12_c4_a_hook_that_would_wait_for_the_worker_hears_that_it_would_deadlock() {
    let board = Arc::new(Board::<Host<2>>::new());
    let (inner, seen) = (Arc::downgrade(&board), Arc::new(Mutex::new(Vec::new())));
    let record = seen.clone();
    let spec = hooked(1, move |context| {
        let board = inner.upgrade().unwrap();
        let nested = board.submit(Request::Remove(key(1).into()));
        let answer = nested.wait_within(context.chain).map(Result::is_ok);
        record.lock().unwrap().push((answer, board.queue.worker().is_none()));
        nested.detach();
    });
    board.submit(Request::Add(spec)).detach();
    board.submit(Request::Assign(target(1), board.one.clone())).detach();
    board.submit(Request::Deassign(target(1))).detach();
    assert_eq!(board.drain(), 0);
    assert_eq!(*seen.lock().unwrap(), [(Err(NoAnswer::WouldDeadlock), true)], "there is one worker, and it is here");
    assert!(board.service.find(key(1)).is_none(), "what the hook asked for came after it");
    assert!(board.queue.worker().is_some(), "a worker that is dropped is back");
}

// --- many at once ---

/// Numbers from a seed: splitmix64.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % bound
    }
}

#[test]
fn c12_a_random_mixture_ends_with_every_request_answered_once() {
    const SUBMITTERS: u64 = 3;
    let board = Board::<Host<3>>::new();
    let stop = AtomicUsize::new(0);
    let mixture = |seed: u64| {
        let mut numbers = Numbers(seed);
        let mut submitted = Vec::new();
        for _ in 0..200 {
            let n = numbers.below(4) as u32;
            let domain = if numbers.below(2) == 0 { &board.one } else { &board.two };
            let request = match numbers.below(6) {
                0 | 1 => Request::Add(spec(n)),
                2 => Request::Assign(target(n), domain.clone()),
                3 => Request::Reassign(target(n), domain.clone()),
                4 => Request::Deassign(target(n)),
                _ => Request::Remove(key(n).into()),
            };
            let completion = board.submit(request);
            match numbers.below(8) {
                0 => drop(completion),
                1 => completion.detach(),
                2 => {
                    let cancelled = completion.cancel();
                    let answer = completion.wait(None).unwrap();
                    let says = matches!(answer, Err(error) if error.cause == Cause::Cancelled);
                    assert!(says || !cancelled, "what is cancelled says so: {answer:?}");
                }
                _ => submitted.push(completion),
            }
        }
        for completion in &submitted {
            let first: *const _ = completion.wait(None).unwrap();
            assert!(std::ptr::eq(first, completion.poll().unwrap()), "an answer does not change");
            assert_ne!(completion.poll().unwrap().as_ref().err().map(|error| &error.cause), Some(&Cause::Cancelled));
        }
    };
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let mut worker = board.queue.worker().unwrap();
            while stop.load(Ordering::Acquire) == 0 {
                worker.serve(&board.service, soon());
            }
            worker.drain(&board.service)
        });
        // Somebody who does not use the queue, so that groups are busy now and then.
        let direct = scope.spawn(|| {
            for n in 0..300_u32 {
                if let Some(info) = board.service.find(key(n % 4)) {
                    let _ = board.service.assign(&info.device, &board.one);
                    let _ = board.service.deassign(&info.device);
                }
            }
        });
        let submitters: Vec<_> = (0..SUBMITTERS).map(|seed| scope.spawn(move || mixture(seed))).collect();
        for thread in submitters {
            thread.join().unwrap();
        }
        direct.join().unwrap();
        stop.store(1, Ordering::Release);
        assert_eq!(worker.join().unwrap(), 0, "nothing is busy, and nothing is left");
    });
    board.audit();
}
