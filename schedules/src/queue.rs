//! The request queue against its worker, in every interleaving that loom finds (contract C-12).
//!
//! The platform's event count is made of loom's own lock and condition variable: a wake-up that is lost leaves somebody
//! waiting for ever, which loom reports as a deadlock.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use iommu_assign::assign::{
    Answer, Cause, Completion, DeviceHooks, DeviceKey, DeviceSpec, Domain, Error, Granule, HookContext, HookError,
    IommuKey, Label, PhysicalAddress, Policy, PolicyRequest, Request, RequestQueue, Service, Source, Stage2, Stream,
    StreamId, StreamMask, TableMemory,
};
use iommu_assign::sync::{ExploredLock, ManyCpus, Platform, TimedOut, Waiter};
use loom::sync::{Condvar, Mutex};

use crate::fake::FakeIommu;

const IOMMU: IommuKey = IommuKey::new(0x1000);

loom::lazy_static! {
    static ref EVENTS: (Mutex<u64>, Condvar) = (Mutex::new(0), Condvar::new());
}

/// A platform whose waits loom follows.
#[derive(Debug)]
pub(crate) enum Waiting {}

impl Platform for Waiting {
    type Lock = ExploredLock;
    type Sharing = ManyCpus;

    fn barrier() {}

    fn wake() {
        let mut count = done(EVENTS.0.lock());
        *count = count.wrapping_add(1);
        EVENTS.1.notify_all();
    }
}

impl Waiter for Waiting {
    type Ticket = u64;
    type Deadline = ();

    fn prepare() -> u64 {
        *done(EVENTS.0.lock())
    }

    fn wait(ticket: u64, _: Option<()>) -> Result<(), TimedOut> {
        let mut now = done(EVENTS.0.lock());
        while *now == ticket {
            now = done(EVENTS.1.wait(now));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Anyone;

impl Policy for Anyone {
    fn allows(&self, _: &PolicyRequest<'_>) -> bool {
        true
    }
}

/// Hooks that count how often their device was released.
#[derive(Debug)]
struct Released(Arc<AtomicUsize>);

impl DeviceHooks for Released {
    fn quiesce(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        Ok(())
    }

    fn reset(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        Ok(())
    }

    fn release(&self, _: &HookContext<'_>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A service with one device, and a queue in front of it.
struct Front {
    service: Service<Waiting>,
    queue: RequestQueue<Waiting>,
    domains: [Domain<Waiting>; 2],
    released: Arc<AtomicUsize>,
}

impl Front {
    fn new() -> Arc<Self> {
        let service = Service::new(Box::new(Anyone));
        done(service.register_iommu(Arc::new(FakeIommu::new(IOMMU, 4, 2))));
        let stage2 = Stage2 {
            root: PhysicalAddress::new(0x8000_0000),
            ipa_bits: 40,
            start_level: 1,
            granule: Granule::Kib4,
            output_bits: 40,
            tables: TableMemory::NonCacheable,
        };
        let domains = ["one", "two"].map(|name| done(service.create_domain(Label::from(name), stage2)));
        let front = Self { service, queue: RequestQueue::new(), domains, released: Arc::default() };
        done(front.service.add(front.spec(1)));
        Arc::new(front)
    }

    fn spec(&self, n: u32) -> DeviceSpec {
        let streams = vec![Stream::new(IOMMU, StreamId::new(n), StreamMask::NONE)];
        let spec = DeviceSpec::new(key(n), Label::from("device"), streams);
        DeviceSpec { hooks: Arc::new(Released(self.released.clone())), ..spec }
    }

    fn submit(&self, request: Request<Waiting>) -> Completion<Waiting> {
        self.queue.submit(self.queue.prepare(request))
    }

    /// Works until `last` is answered. It waits for what the library wakes it for, and for nothing else.
    fn work_until(&self, last: &Completion<Waiting>) {
        let Some(mut worker) = self.queue.worker() else { panic!("C-12: there is one worker, and it is here") };
        loop {
            let ticket = Waiting::prepare();
            worker.drain(&self.service);
            if last.poll().is_some() {
                return;
            }
            let _ = Waiting::wait(ticket, None);
        }
    }

    fn is_there(&self) -> bool {
        self.service.find(key(1)).is_some()
    }
}

fn key(n: u32) -> DeviceKey {
    DeviceKey::new(Source::Dt, n.into())
}

/// The answer, waited for; it is the same when it is asked for again.
fn answer(completion: &Completion<Waiting>) -> Result<Answer, Error> {
    let answer = done(completion.wait(None)).clone();
    let again = completion.poll().cloned();
    assert_eq!(format!("{again:?}"), format!("{:?}", Some(&answer)), "C-12: an answer does not change");
    answer
}

fn is_cancelled(answer: &Result<Answer, Error>) -> bool {
    matches!(answer, Err(Error { cause: Cause::Cancelled, .. }))
}

fn beside<T: 'static>(front: &Arc<Front>, act: impl FnOnce(&Front) -> T + 'static) -> loom::thread::JoinHandle<T> {
    let front = front.clone();
    loom::thread::spawn(move || act(&front))
}

fn join<T>(thread: loom::thread::JoinHandle<T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Somebody submits and waits while the worker goes to sleep.
fn submit_and_wait() {
    let front = Front::new();
    let ready = front.queue.prepare(Request::Remove(key(1).into()));
    let last = front.queue.prepare(Request::Remove(key(2).into()));
    let other = beside(&front, move |front| {
        let removed = front.queue.submit(ready);
        let last = front.queue.submit(last);
        assert!(answer(&removed).is_ok(), "one device, two requests, in order");
        (answer(&last).map(drop).map_err(|error| error.cause), front.released.load(Ordering::Relaxed))
    });
    let Some(mut worker) = front.queue.worker() else { panic!("C-12: the worker was not out") };
    let mut answered = 0;
    while answered < 2 {
        let ticket = Waiting::prepare();
        while worker.run_one(&front.service) == iommu_assign::assign::Progress::Answered {
            answered += 1;
        }
        if answered < 2 {
            let _ = Waiting::wait(ticket, None);
        }
    }
    assert_eq!(join(other), (Err(Cause::NotFound), 1));
}

/// Cancelled while the worker may be starting it.
fn cancel() {
    let front = Front::new();
    let removal = front.submit(Request::Remove(key(1).into()));
    let last = front.submit(Request::Remove(key(2).into()));
    let other = beside(&front, move |front| {
        let cancelled = removal.cancel();
        let answer = answer(&removal);
        assert_eq!(is_cancelled(&answer), cancelled, "C-12: cancelled or carried out: {answer:?}");
        assert_eq!(front.is_there(), cancelled);
    });
    front.work_until(&last);
    join(other);
}

/// Dropped while the worker may be starting it: carried out once or not at all.
fn drop_it() {
    let front = Front::new();
    let removal = front.submit(Request::Remove(key(1).into()));
    let last = front.submit(Request::Remove(key(2).into()));
    let other = beside(&front, move |_| drop(removal));
    front.work_until(&last);
    join(other);
    assert_eq!(front.released.load(Ordering::Relaxed), usize::from(!front.is_there()));
}

/// The device's group is claimed, and its claim ends while the worker may be going to sleep.
fn busy() {
    let front = Front::new();
    let removal = front.submit(Request::Assign(key(1).into(), front.domains[0].clone()));
    let other = beside(&front, |front| {
        let device = front.service.find(key(1)).map(|info| info.device);
        let Some(device) = device else { panic!("nobody removes it") };
        match front.service.reserve(&device, &front.domains[1]) {
            Ok(reservation) => done(reservation.abandon()),
            Err(error) => assert!(matches!(error.cause, Cause::Busy { .. } | Cause::AlreadyAssigned { .. }), "{error}"),
        }
    });
    front.work_until(&removal);
    assert!(answer(&removal).is_ok(), "C-12: what met a claimed group is tried again");
    join(other);
}

/// The same, and cancelled meanwhile.
fn busy_and_cancelled() {
    let front = Front::new();
    let removal = Arc::new(front.submit(Request::Assign(key(1).into(), front.domains[0].clone())));
    let cancelled = removal.clone();
    let other = beside(&front, move |front| {
        let device = front.service.find(key(1)).map(|info| info.device);
        let Some(device) = device else { panic!("nobody removes it") };
        let reservation = front.service.reserve(&device, &front.domains[1]);
        let is_cancelled = cancelled.cancel();
        if let Ok(reservation) = reservation {
            done(reservation.abandon());
        }
        is_cancelled
    });
    front.work_until(&removal);
    let (was_cancelled, answer) = (join(other), answer(&removal));
    assert!(is_cancelled(&answer) || !was_cancelled, "C-12: cancelled and carried out: {answer:?}");
    let owned = front.service.find(key(1)).is_some_and(|info| info.domain.is_some());
    assert_eq!(owned, answer.is_ok(), "C-12: what is cancelled has done nothing");
}

/// What is explored: a name, and one run.
pub(crate) const SCENES: &[(&str, fn())] = &[
    ("submit, wait | work, sleep", submit_and_wait),
    ("cancel | work", cancel),
    ("drop | work", drop_it),
    ("claim, let go | work, sleep", busy),
    ("claim, cancel, let go | work, sleep", busy_and_cancelled),
];

fn done<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("{error}"))
}
