//! Every pair of operations, in every relation, in every interleaving that loom finds.
//!
//! What the two answered, and the state that is left, must be what one of the two sequential orders gives; `Busy` counts
//! as nothing done, and an operation that a removal overtook as done and undone (contract C-15). Then the scenes of the
//! request queue.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use iommu_assign::assign::Source;
use loom::model::Builder;

use crate::driver::Driver;
use crate::queue;
use crate::universe::{Answer, Op, Relation, Universe};
use crate::world::World;

/// What can be seen of a run: the two answers, and what is left.
type History = (Answer, Answer, String);

/// One pair, in one relation, from one starting point.
#[derive(Clone, Copy)]
struct Pair {
    relation: Relation,
    one: Op,
    two: Op,
    /// The operation whose starting point is taken where both are about one device.
    start: Op,
    sources: [Source; 2],
}

impl Pair {
    fn name(self) -> String {
        let start = match self.relation {
            Relation::SameDevice => format!(" (from {})", self.start.name()),
            _ => String::new(),
        };
        let [one, two] = self.sources.map(|source| source.to_string());
        let relation = self.relation.name();
        format!("{relation:<13} {one:>4} {:<11} | {two:>4} {:<11}{start}", self.one.name(), self.two.name())
    }

    fn targets(self) -> [usize; 2] {
        if self.relation == Relation::SameDevice { [0, 0] } else { [0, 1] }
    }

    fn world<U: Universe>(self) -> U {
        let world = U::new(self.relation, self.sources);
        if self.relation == Relation::SameDevice {
            world.prepare(self.start, 0);
        } else {
            // The child's own starting point must not undo the parent's: a parent that is to be added is not there.
            world.prepare(self.one, 0);
            if !(self.relation == Relation::ParentChild && self.one == Op::Add) {
                world.prepare(self.two, 1);
            }
        }
        world
    }

    /// What sequential histories give.
    fn sequential<U: Universe>(self) -> Vec<History> {
        let [n, m] = self.targets();
        let mut allowed = Vec::new();
        let world: U = self.world();
        let one = world.run(self.one, n);
        let two = world.run(self.two, m);
        allowed.push((one, two, world.state()));
        let world: U = self.world();
        let two = world.run(self.two, m);
        let one = world.run(self.one, n);
        allowed.push((one, two, world.state()));
        // An operation that met a claim did nothing.
        let world: U = self.world();
        allowed.push((world.run(self.one, n), Answer::Busy, world.state()));
        let world: U = self.world();
        let two = world.run(self.two, m);
        allowed.push((Answer::Busy, two, world.state()));
        allowed.push((Answer::Busy, Answer::Busy, self.world::<U>().state()));
        // All who ask for one removal get its outcome.
        let removes = |op| matches!(op, Op::Remove | Op::RemoveTree);
        if removes(self.one) && removes(self.two) && n == m {
            let world: U = self.world();
            let one = world.run(self.one, n);
            allowed.push((one.clone(), one, world.state()));
        }
        // One that a removal overtook was done, then undone.
        if removes(self.two) {
            let world: U = self.world();
            let _ = world.run(self.one, n);
            let two = world.run(self.two, m);
            allowed.push((Answer::Removed, two, world.state()));
        }
        if removes(self.one) {
            let world: U = self.world();
            let _ = world.run(self.two, m);
            let one = world.run(self.one, n);
            allowed.push((one, Answer::Removed, world.state()));
        }
        allowed
    }

    /// One explored run.
    fn run<U: Universe>(self) {
        let allowed = self.sequential::<U>();
        let world: Arc<U> = Arc::new(self.world());
        let [n, m] = self.targets();
        let other = {
            let world = world.clone();
            loom::thread::spawn(move || world.run(self.two, m))
        };
        let one = world.run(self.one, n);
        let two = other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let stopped = [&one, &two].into_iter().any(|answer| *answer == Answer::Partial);
        let history = (one, two, world.state());
        assert!(stopped || allowed.contains(&history), "not linearizable: {history:#?}\nallowed: {allowed:#?}");
        world.take_down();
    }
}

/// How long a pair may take without a bound on preemptions.
const UNBOUNDED: Duration = Duration::from_secs(30);

/// What was found so far.
#[derive(Default)]
struct Tally {
    pairs: u64,
    /// Of these, how many were explored without a bound, to the end.
    complete: u64,
    schedules: u64,
    violations: u64,
}

/// Explores all pairs, or those whose line contains the argument that is no option.
pub(crate) fn explore(arguments: &[String]) -> ExitCode {
    let mut tally = Tally::default();
    let whole = explore_in::<World>(arguments, &mut tally)
        && explore_in::<Driver>(arguments, &mut tally)
        && queue::SCENES.iter().all(|(name, run)| explore_one(&format!("queue   {name}"), *run, arguments, &mut tally));
    let Tally { pairs, complete, schedules, violations } = tally;
    println!(
        "schedules: {pairs} pairs, {complete} of them without a bound, {schedules} schedules, {violations} violations"
    );
    if whole && violations == 0 && pairs > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Explores the pairs of one universe. False: it stopped at the first violation, as it was asked to.
fn explore_in<U: Universe>(arguments: &[String], tally: &mut Tally) -> bool {
    all(U::OPS).all(|pair| {
        let name = format!("{:<7} {}", U::NAME, pair.name());
        explore_one(&name, move || pair.run::<U>(), arguments, tally)
    })
}

/// Explores one line, where it is asked for. False: it found a violation, and was asked to stop there.
fn explore_one(
    name: &str,
    run: impl Fn() + Copy + Send + Sync + 'static,
    arguments: &[String],
    tally: &mut Tally,
) -> bool {
    let has = |option: &str| arguments.iter().any(|argument| argument == option);
    let (quick, first) = (has("--quick"), has("--first"));
    // The value of an option is a number; what a line is searched for is not.
    let wanted = arguments.iter().find(|word| !word.starts_with("--") && word.parse::<u64>().is_err());
    if wanted.is_some_and(|wanted| !name.contains(wanted.as_str())) {
        return true;
    }
    let begun = Instant::now();
    // Bound 3 finds nearly everything, and always ends; without a bound nothing is left out, where that ends.
    let mut found = check(run, Some(3), None);
    let mut bound = "bound 3";
    if !quick && found.is_ok() {
        let begun = Instant::now();
        let unbounded = check(run, None, Some(UNBOUNDED));
        let complete = begun.elapsed() < UNBOUNDED;
        if complete || unbounded.is_err() {
            (found, bound) = (unbounded, "all");
            tally.complete = tally.complete.saturating_add(1);
        }
    }
    let (verdict, explored) = match found {
        Ok(explored) => ("ok", explored),
        Err(explored) => ("VIOLATION", explored),
    };
    println!("{name:<74} {bound:<7} {explored:>8} schedules {:>6.2} s  {verdict}", begun.elapsed().as_secs_f32());
    tally.pairs = tally.pairs.saturating_add(1);
    tally.schedules = tally.schedules.saturating_add(explored);
    tally.violations = tally.violations.saturating_add(u64::from(found.is_err()));
    found.is_ok() || !first
}

/// Explores one run; how many schedules, up to the first violation if there is one.
fn check(
    run: impl Fn() + Send + Sync + 'static,
    preemptions: Option<usize>,
    duration: Option<Duration>,
) -> Result<u64, u64> {
    let explored = Arc::new(AtomicU64::new(0));
    let count = explored.clone();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let mut builder = Builder::new();
        builder.preemption_bound = preemptions;
        builder.max_duration = duration;
        // So often loom looks at the clock.
        builder.checkpoint_interval = 100;
        builder.check(move || {
            count.fetch_add(1, Ordering::Relaxed);
            run();
        });
    }));
    let explored = explored.load(Ordering::Relaxed);
    result.map(|()| explored).map_err(|_| explored)
}

fn all(ops: &'static [Op]) -> impl Iterator<Item = Pair> {
    Relation::ALL.into_iter().flat_map(move |relation| {
        ops.iter().copied().enumerate().flat_map(move |(at, one)| {
            // Parent and child, and PCI against DT, are not symmetric.
            let seconds = if relation == Relation::ParentChild { 0 } else { at };
            ops.iter().copied().skip(seconds).flat_map(move |two| variants(relation, one, two))
        })
    })
}

fn variants(relation: Relation, one: Op, two: Op) -> Vec<Pair> {
    let [dt, pci] = [Source::Dt, Source::Pci];
    let pair = |start, sources| Pair { relation, one, two, start, sources };
    match relation {
        Relation::SameDevice if one == two => vec![pair(one, [dt, dt])],
        Relation::SameDevice => vec![pair(one, [dt, dt]), pair(two, [dt, dt])],
        Relation::ParentChild => vec![pair(one, [dt, dt])],
        _ => {
            let comes_or_goes = |op| matches!(op, Op::Add | Op::Remove | Op::RemoveTree);
            let moves = comes_or_goes(one) && comes_or_goes(two);
            if moves { vec![pair(one, [dt, dt]), pair(one, [pci, dt])] } else { vec![pair(one, [pci, dt])] }
        }
    }
}
