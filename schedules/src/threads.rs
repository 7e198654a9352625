//! Four threads of random operations through service and driver, in random schedules; each history is checked for
//! linearizability against the sequential specification (contract C-15).
//!
//! `Busy` is nothing done; an operation that a removal overtook was done and undone, or not done; who asked for a removal
//! that another operation carries out was answered early; `Exhausted` may be due to what another operation held.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use iommu_assign::assign::{
    Cause, DeviceSpec, DeviceState, Domain, Error, Finding, Label, Policy, PolicyRequest, Removal, Service,
};
use iommu_assign::smmu::{Masters, Smmu};
use iommu_assign::sync::Explored;
use machine::op::{Guest, Op, Side, Slot};
use machine::oracle::Oracle;
use machine::specification::{Outcome, Refusal, Specification};
use machine::world::Board;
use machine::{Machine, Stage2Tables};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};

const PAGE: u64 = 0x4000_0000;
const THREADS: usize = 4;
const FIXED_SEED: u64 = 0x1d0_4a55;
/// Of PCT: how many preemptions a bug may need.
const DEPTH: usize = 3;

/// What an operation answered.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// It met a claim and did nothing.
    Busy,
    /// A removal overtook it.
    Removed,
    /// Its removal will be carried out by the operation that it met.
    Pending,
    Told(Outcome),
}

/// One operation of a history, with the times at which it was called and had returned.
#[derive(Clone, Debug)]
struct Call {
    op: Op,
    called: u64,
    returned: u64,
    seen: Seen,
}

/// The service, the driver and two small SMMUs.
struct Run {
    service: Service<Explored>,
    domains: BTreeMap<Guest, Domain<Explored>>,
    oracles: [Oracle; 2],
    clock: AtomicU64,
}

#[derive(Debug)]
struct ByGuest;

impl Policy for ByGuest {
    fn allows(&self, request: &PolicyRequest<'_>) -> bool {
        let guest = Guest::ALL.into_iter().find(|guest| request.domain.to_string() == guest.name());
        let slot = Slot::of(request.device.key());
        guest.zip(slot).is_none_or(|(guest, slot)| guest.may_have(slot))
    }
}

impl Run {
    fn new() -> (Self, Specification) {
        let board = Board::Small;
        let machine = Machine::new();
        let service = Service::new(Box::new(ByGuest));
        let masters = Arc::new(Masters::<Explored>::new());
        let oracles = <[Oracle; 2]>::default();
        for (side, oracle) in Side::ALL.into_iter().zip(&oracles) {
            let registers = machine.add_smmu(side.key(), board.model(side));
            let smmu = must(Smmu::probe(board.config(side), registers, masters.clone()));
            must(service.register_iommu(Arc::new(smmu)));
            oracle.watch_only(&machine, side.key(), PAGE, [Slot::STRANGER, 0x7fff]);
        }
        let mut specification = Specification::new(Side::ALL.map(|side| board.part(side)));
        let mut domains = BTreeMap::new();
        for (n, guest) in (0_u64..).zip(Guest::ALL) {
            let mut tables = Stage2Tables::new(&machine, 0x8000_0000 + (n << 20), 40, 40);
            tables.map(PAGE, backing(guest), true);
            domains.insert(guest, must(service.create_domain(Label::from(guest.name()), tables.stage2())));
            let created =
                specification.step(Op::Create(guest)).into_iter().find(|(outcome, _)| *outcome == Outcome::Done);
            specification = created.map(|(_, after)| after).unwrap_or(specification);
        }
        // Whose a device is changes while others look: either guest that may have it will do, never a stranger's
        // memory, never untranslated, never two at once.
        for slot in Slot::ALL {
            let mayers: Vec<u64> = Guest::ALL.into_iter().map(backing).collect();
            for (side, oracle) in Side::ALL.into_iter().zip(&oracles) {
                let streams: Vec<(u32, u32)> = slot.ids(side).map(|(_, id)| (u32::from(id), 0)).collect();
                oracle.allow(&slot.label(), &streams, &mayers);
            }
        }
        (Self { service, domains, oracles, clock: AtomicU64::new(0) }, specification)
    }

    /// Runs one operation; `None` where nobody could have asked for it.
    fn act(&self, op: Op) -> Option<Call> {
        let device = |slot: Slot| self.service.find(slot.key()).map(|info| info.device);
        let domain = |guest: Guest| self.domains.get(&guest);
        let ready: Box<dyn FnOnce() -> Seen + '_> = match op {
            Op::Add(slot) => {
                let spec = DeviceSpec {
                    parent: slot.parent().map(Slot::key),
                    isolation: slot.isolation(),
                    ..DeviceSpec::new(slot.key(), slot.label(), slot.offered())
                };
                Box::new(move || seen(self.service.add(spec), |_| Outcome::Done))
            }
            Op::Remove(slot) => Box::new(move || match self.service.remove(slot.key()) {
                Ok(Removal::Pending) => Seen::Pending,
                result => seen(result, |removal| match removal {
                    Removal::StillReachable(mates) => Outcome::Removed(mates.iter().filter_map(Slot::named).collect()),
                    _ => Outcome::Done,
                }),
            }),
            Op::Assign(slot, guest) => {
                let (device, domain) = (device(slot)?, domain(guest)?);
                Box::new(move || seen(self.service.assign(&device, domain), |()| Outcome::Done))
            }
            Op::AssignGroup(slot, guest) => {
                let (device, domain) = (device(slot)?, domain(guest)?);
                Box::new(move || seen(self.service.assign_group(&device, domain), |()| Outcome::Done))
            }
            Op::Reassign(slot, guest) => {
                let (device, domain) = (device(slot)?, domain(guest)?);
                Box::new(move || seen(self.service.reassign(&device, domain), |()| Outcome::Done))
            }
            Op::Deassign(slot) => {
                let device = device(slot)?;
                Box::new(move || {
                    seen(self.service.deassign(&device), |done| {
                        Outcome::Deassigned(done.still_reachable.iter().filter_map(Slot::named).collect())
                    })
                })
            }
            Op::TestAssign(slot, guest) => {
                let (device, domain) = (device(slot)?, domain(guest)?);
                Box::new(move || seen(self.service.test_assign(&device, domain), |()| Outcome::Done))
            }
            Op::Flush(guest) => {
                let domain = domain(guest)?;
                Box::new(move || seen(self.service.flush(domain), |()| Outcome::Done))
            }
            Op::Destroy(guest) => {
                let domain = domain(guest)?;
                Box::new(move || seen(self.service.destroy_domain(domain), |()| Outcome::Done))
            }
            _ => return None,
        };
        let called = self.clock.fetch_add(1, Ordering::SeqCst);
        let seen = ready();
        let returned = self.clock.fetch_add(1, Ordering::SeqCst);
        Some(Call { op, called, returned, seen })
    }

    /// Registered devices, whose they are and who is in their group, as the specification shows them.
    fn shown(&self) -> BTreeMap<Slot, Option<Label>> {
        let mut shown = BTreeMap::new();
        for info in self.service.devices() {
            if let Some(slot) = Slot::of(info.device.key()) {
                let owner = matches!(info.state, DeviceState::Assigned(_)).then_some(info.domain).flatten();
                shown.insert(slot, owner);
            }
        }
        shown
    }
}

fn seen<T>(result: Result<T, Error>, done: impl FnOnce(&T) -> Outcome) -> Seen {
    match &result {
        Ok(value) => Seen::Told(done(value)),
        Err(error) => match error.cause {
            Cause::Busy { .. } => Seen::Busy,
            Cause::Removed => Seen::Removed,
            _ => Seen::Told(Outcome::from(error)),
        },
    }
}

fn backing(guest: Guest) -> u64 {
    0x1_0000_0000 + ((guest as u64) << 28)
}

/// Numbers from a seed: splitmix64.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % bound as u64) as usize
    }

    fn op(&mut self) -> Op {
        // Few devices, so that operations meet.
        const SLOTS: [Slot; 8] =
            [Slot::Usb, Slot::Companion, Slot::Wide, Slot::Far, Slot::Both, Slot::Mate, Slot::Bridge, Slot::First];
        let slot = SLOTS[self.below(SLOTS.len())];
        let guest = Guest::ALL[self.below(Guest::ALL.len())];
        match self.below(12) {
            0..=2 => Op::Add(slot),
            3 | 4 => Op::Remove(slot),
            5 | 6 => Op::Assign(slot, guest),
            7 => Op::AssignGroup(slot, guest),
            8 => Op::Reassign(slot, guest),
            9 => Op::Deassign(slot),
            10 => Op::Flush(guest),
            _ => Op::Destroy(guest),
        }
    }
}

/// One schedule: a prelude, four threads, and the check of what they saw.
fn schedule(seed: u64) {
    let mut numbers = Numbers(seed);
    let (run, specification) = Run::new();
    let mut states = BTreeSet::from([specification]);
    for _ in 0..6 {
        let mut op = numbers.op();
        if matches!(op, Op::Destroy(_) | Op::Remove(_) | Op::Flush(_)) {
            op = Op::Add(Slot::Usb);
        }
        if let Some(call) = run.act(op) {
            states = follow(&states, &call);
            assert!(!states.is_empty(), "the prelude is not as specified: {call:?}");
        }
    }
    let run = Arc::new(run);
    let histories: Vec<_> = (0..THREADS)
        .map(|_| {
            let ops: Vec<Op> = (0..2 + numbers.below(2)).map(|_| numbers.op()).collect();
            let run = run.clone();
            shuttle::thread::spawn(move || ops.into_iter().filter_map(|op| run.act(op)).collect::<Vec<Call>>())
        })
        .collect();
    let histories: Vec<Vec<Call>> = histories
        .into_iter()
        .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        .collect();
    let shown = run.shown();
    if !linearizable(&states, &apart(&histories), &shown) {
        let lines = |(n, calls): (usize, &Vec<Call>)| {
            let line =
                |call: &Call| format!("  {n}: {:>2}-{:<2} {}: {:?}\n", call.called, call.returned, call.op, call.seen);
            calls.iter().map(line).collect::<String>()
        };
        let history: String = histories.iter().enumerate().map(lines).collect();
        let before: Vec<String> = states.iter().map(|state| format!("{:?}", state.shown())).collect();
        panic!("seed {seed}: not linearizable:\n{history}before: {before:?}\nleft: {shown:?}");
    }
    let mut findings: Vec<String> = Vec::new();
    run.service.audit(&mut |finding: &Finding| findings.push(finding.to_string()));
    assert!(findings.is_empty(), "audit: {findings:#?}");
    for oracle in &run.oracles {
        let (_, violations) = oracle.verdict();
        assert!(violations.is_empty(), "isolation: {violations:#?}");
    }
}

/// Pending removals as threads of their own that go on for ever: they are answered before they are carried out.
fn apart(histories: &[Vec<Call>]) -> Vec<Vec<Call>> {
    let mut threads: Vec<Vec<Call>> = Vec::new();
    for calls in histories {
        let (pending, told): (Vec<Call>, Vec<Call>) =
            calls.iter().cloned().partition(|call| call.seen == Seen::Pending);
        threads.push(told);
        threads.extend(pending.into_iter().map(|call| vec![Call { returned: u64::MAX, ..call }]));
    }
    threads
}

/// The states that one operation, done at one instant, can lead to.
fn follow(states: &BTreeSet<Specification>, call: &Call) -> BTreeSet<Specification> {
    let mut after = BTreeSet::new();
    for state in states {
        let steps = state.step(call.op).into_iter();
        match &call.seen {
            Seen::Busy => {
                after.insert(state.clone());
            }
            Seen::Removed => {
                after.insert(state.clone());
                after.extend(steps.filter(|(outcome, _)| !outcome.is_refusal()).map(|(_, next)| next));
            }
            Seen::Pending => {
                after.insert(state.clone());
                after.extend(
                    steps
                        .filter(|(outcome, _)| matches!(outcome, Outcome::Done | Outcome::Removed(_)))
                        .map(|(_, next)| next),
                );
            }
            Seen::Told(told) => {
                if matches!(told, Outcome::Failed(Refusal::Exhausted(..), _)) {
                    after.insert(state.clone());
                }
                after.extend(steps.filter(|(outcome, _)| outcome == told).map(|(_, next)| next));
            }
        }
    }
    after
}

/// Whether some order of the calls, which keeps those in order that did not overlap, is what the specification allows
/// and ends in what was left.
fn linearizable(
    states: &BTreeSet<Specification>,
    histories: &[Vec<Call>],
    left: &BTreeMap<Slot, Option<Label>>,
) -> bool {
    let mut tried: HashSet<(Vec<usize>, Vec<u8>)> = HashSet::new();
    let mut open = vec![(vec![0_usize; histories.len()], states.clone())];
    while let Some((at, states)) = open.pop() {
        let key = format!("{states:?}").into_bytes();
        if states.is_empty() || !tried.insert((at.clone(), key)) {
            continue;
        }
        let next: Vec<(usize, &Call)> =
            histories.iter().enumerate().filter_map(|(n, calls)| Some((n, calls.get(at[n])?))).collect();
        if next.is_empty() && states.iter().any(|state| matches(state, left)) {
            return true;
        }
        for (n, call) in &next {
            if next.iter().any(|(_, other)| other.returned < call.called) {
                continue;
            }
            let mut further = at.clone();
            further[*n] += 1;
            open.push((further, follow(&states, call)));
        }
    }
    false
}

/// Whether the specification's state is what the service shows.
fn matches(state: &Specification, left: &BTreeMap<Slot, Option<Label>>) -> bool {
    use machine::specification::Owner;
    let expected: BTreeMap<Slot, Option<Label>> = state
        .shown()
        .into_iter()
        .map(|(slot, (owner, _))| {
            let owner = match owner {
                Owner::Assigned(guest) => Some(Label::from(guest.name())),
                Owner::Blocked | Owner::Quarantined => None,
            };
            (slot, owner)
        })
        .collect();
    expected == *left
}

/// Explores `--schedules N` (10,000 by default) with each scheduler, half with a fixed and half with a fresh seed, which is
/// printed; `--seed S` repeats one.
pub(crate) fn explore(arguments: &[String]) -> ExitCode {
    let number = |option: &str| {
        let at = arguments.iter().position(|argument| argument == option)?;
        arguments.get(at + 1)?.parse::<u64>().ok()
    };
    let schedules = number("--schedules").unwrap_or(10_000);
    let fresh = number("--seed").unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64 & 0xffff_ffff)
    });
    let half = (schedules / 2) as usize;
    let mut violations = 0;
    for (name, seed) in [("fixed", FIXED_SEED), ("fresh", fresh)] {
        violations += explore_with("random", name, seed, half, RandomScheduler::new_from_seed(seed, half));
        violations += explore_with("pct", name, seed, half, PctScheduler::new_from_seed(seed, DEPTH, half));
    }
    println!("threads: {THREADS} threads, {} schedules, {violations} violations", 4 * half);
    if violations == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn explore_with(
    kind: &str,
    name: &str,
    seed: u64,
    schedules: usize,
    scheduler: impl Scheduler + Send + 'static,
) -> u64 {
    let begun = Instant::now();
    let count = Arc::new(Mutex::new(seed));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        Runner::new(scheduler, Config::new()).run(move || {
            let seed = {
                let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
                *count = count.wrapping_add(1);
                *count
            };
            schedule(seed);
        });
    }));
    let verdict = if result.is_ok() { "ok" } else { "VIOLATION" };
    println!(
        "{kind:<7} {name} seed {seed:<12} {schedules:>8} schedules {:>6.2} s  {verdict}",
        begun.elapsed().as_secs_f32()
    );
    u64::from(result.is_err())
}

fn must<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("the machine cannot be made: {error}"))
}
