//! Four threads of random operations through service and driver, in random schedules; each history is checked for
//! linearizability against the sequential specification (contract C-15).
//!
//! `Busy` is nothing done; an operation that a removal overtook was done and undone, or not done; who asked for a removal
//! that another operation carries out was answered early; `Exhausted` may be due to what another operation held. What a
//! forced unregister overtook stands in `Specification::overtaken`, for the calls that it overlapped. A request in the queue
//! is an operation from its submission to its answer; those about one device keep their order.

mod history;
mod run;

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use history::{Call, apart, asked_apart, follow, linearizable, see_beside};
use iommu_assign::assign::Finding;
use machine::op::{Ask, Guest, Op, Side, Slot};
use run::{Mine, Run};
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::{Config, Runner};

const THREADS: usize = 4;
/// After how many schedules it is said how far it is, where somebody looks on.
const PROGRESS: u64 = 500;
const FIXED_SEED: u64 = 0x1d0_4a55;
/// Of PCT: how many preemptions a bug may need.
const DEPTH: usize = 3;

/// Few devices, so that operations meet.
const SLOTS: [Slot; 8] =
    [Slot::Usb, Slot::Companion, Slot::Wide, Slot::Far, Slot::Both, Slot::Mate, Slot::Bridge, Slot::First];

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

    fn ask(&mut self) -> Ask {
        let (slot, guest) = (SLOTS[self.below(SLOTS.len())], Guest::ALL[self.below(Guest::ALL.len())]);
        match self.below(6) {
            0 | 1 => Ask::Offer(slot),
            2 => Ask::Unplug(slot),
            3 => Ask::Give(slot, guest),
            4 => Ask::Pass(slot, guest),
            _ => Ask::Take(slot),
        }
    }

    fn op(&mut self) -> Op {
        let slot = SLOTS[self.below(SLOTS.len())];
        let guest = Guest::ALL[self.below(Guest::ALL.len())];
        let side = Side::ALL[self.below(Side::ALL.len())];
        match self.below(17) {
            0..=2 => Op::Add(slot),
            3 | 4 => Op::Remove(slot),
            5 | 6 => Op::Assign(slot, guest),
            7 => Op::AssignGroup(slot, guest),
            8 => Op::Reassign(slot, guest),
            9 => Op::Deassign(slot),
            10 => Op::Flush(guest),
            11 => Op::ForceUnregister(side),
            12 => Op::Register(side),
            13 | 14 => Op::Reserve(slot, guest),
            15 => Op::Commit(slot),
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
        if matches!(op, Op::Destroy(_) | Op::Remove(_) | Op::Flush(_) | Op::Reserve(..)) {
            op = Op::Add(Slot::Usb);
        }
        if let Some(call) = run.act(op, &mut Mine::new()) {
            states = follow(&states, &call);
            assert!(!states.is_empty(), "the prelude is not as specified: {call:?}");
        }
    }
    let run = Arc::new(run);
    // In every second schedule the last thread asks a queue, and one more works for it.
    let clients = numbers.below(2);
    let mut histories: Vec<_> = (clients..THREADS)
        .map(|_| {
            let ops: Vec<Op> = (0..2 + numbers.below(2)).map(|_| numbers.op()).collect();
            let run = run.clone();
            let commits = numbers.below(2) == 0;
            shuttle::thread::spawn(move || {
                let mut mine = Mine::new();
                let mut calls: Vec<Call> = ops.into_iter().filter_map(|op| run.act(op, &mut mine)).collect();
                let end = if commits { Op::Commit } else { Op::Abandon };
                let left: Vec<Op> = mine.keys().copied().map(end).collect();
                calls.extend(left.into_iter().filter_map(|op| run.act(op, &mut mine)));
                calls
            })
        })
        .collect();
    if clients > 0 {
        let asks: Vec<Ask> = (0..3).map(|_| numbers.ask()).collect();
        let cancels = numbers.below(4) == 0;
        let (client, worker) = (run.clone(), run.clone());
        histories.push(shuttle::thread::spawn(move || {
            let submitted = asks.into_iter().filter_map(|ask| client.submit(ask)).collect();
            let calls = client.collect(submitted, cancels);
            client.served.fetch_add(1, Ordering::SeqCst);
            calls
        }));
        histories.push(shuttle::thread::spawn(move || {
            worker.work(clients);
            Vec::new()
        }));
    }
    let histories: Vec<Vec<Call>> = histories
        .into_iter()
        .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        .collect();
    let mut histories = asked_apart(histories, (clients > 0).then_some(THREADS - clients));
    see_beside(&mut histories);
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
    kind: &'static str,
    name: &'static str,
    seed: u64,
    schedules: usize,
    scheduler: impl Scheduler + Send + 'static,
) -> u64 {
    let begun = Instant::now();
    let count = Arc::new(Mutex::new(seed));
    let (watched, first) = (std::io::stderr().is_terminal(), seed);
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        Runner::new(scheduler, Config::new()).run(move || {
            let seed = {
                let mut count = count.lock().unwrap_or_else(PoisonError::into_inner);
                *count = count.wrapping_add(1);
                *count
            };
            schedule(seed);
            let done = seed.wrapping_sub(first);
            if watched && done.is_multiple_of(PROGRESS) {
                eprint!("\r{kind} {name}: {done} of {schedules} schedules ");
            }
        });
    }));
    if watched {
        eprint!("\r{:60}\r", "");
    }
    let verdict = if result.is_ok() { "ok" } else { "VIOLATION" };
    println!(
        "{kind:<7} {name} seed {seed:<12} {schedules:>8} schedules {:>6.2} s  {verdict}",
        begun.elapsed().as_secs_f32()
    );
    u64::from(result.is_err())
}
