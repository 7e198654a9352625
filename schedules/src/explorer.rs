//! One thing explored after the other, and a line for each.

use std::io::{IsTerminal, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use loom::model::Builder;

/// How long a search without a bound on preemptions may take, and how long where somebody is in a hurry.
const UNBOUNDED: Duration = Duration::from_secs(2);
const HURRIED: Duration = Duration::from_millis(60);

/// After how many schedules the time is looked at.
const LOOK_AT_TIME: usize = 100;

/// How far something is explored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Up to three preemptions; without a bound too, where that ends in time.
    Bounded,
    /// Up to two preemptions, or three where nobody is in a hurry: for many threads.
    Few,
    /// Like [`Bounded`](Self::Bounded), but whoever is not in a hurry waits until it ends.
    Patient,
    /// Every interleaving, however long it takes.
    Whole,
}

/// What is to be explored, and what was found so far.
pub(crate) struct Explorer {
    quick: bool,
    first: bool,
    wanted: Option<String>,
    stopped: bool,
    /// How many lines there will be, and when the first began; until then they are counted.
    total: u64,
    begun: Option<Instant>,
    pairs: u64,
    /// Of these, how many were explored without a bound, to the end.
    complete: u64,
    schedules: u64,
    violations: u64,
}

impl Explorer {
    pub(crate) fn new(arguments: &[String]) -> Self {
        let has = |option: &str| arguments.iter().any(|argument| argument == option);
        // The value of an option is a number; what a line is searched for is not.
        let wanted = arguments.iter().find(|word| !word.starts_with("--") && word.parse::<u64>().is_err());
        Self {
            quick: has("--quick"),
            first: has("--first"),
            wanted: wanted.cloned(),
            stopped: false,
            total: 0,
            begun: None,
            pairs: 0,
            complete: 0,
            schedules: 0,
            violations: 0,
        }
    }

    /// The lines are counted: from now on they are explored.
    pub(crate) fn begin(&mut self) {
        self.begun = Some(Instant::now());
    }

    /// How far it is, and about how long it will take still, where somebody looks on.
    fn print_progress(&self, begun: Instant) {
        if std::io::stdout().is_terminal() {
            let left = self.total.saturating_sub(self.pairs);
            let seconds = begun.elapsed().as_secs().saturating_mul(left).checked_div(self.pairs).unwrap_or(0);
            print!("[{:>4} of {}, {seconds:>4} s left] ", self.pairs.saturating_add(1), self.total);
        }
    }

    /// Explores `run`, whose line begins with `name`. Nothing more once it stopped at the first violation, as it was asked
    /// to. `lacking` names what some schedule must have shown, and none has: a suite that never meets what it is about
    /// proves nothing.
    pub(crate) fn explore(
        &mut self,
        name: &str,
        reach: Reach,
        run: impl Fn() + Send + Sync + 'static,
        lacking: impl FnOnce() -> Option<String>,
    ) {
        self.explore_after(name, reach, || (), run, lacking);
    }

    /// [`explore`](Self::explore), after `first` was run once, in one thread: what it finds out need not be found out again in
    /// every schedule.
    pub(crate) fn explore_after(
        &mut self,
        name: &str,
        reach: Reach,
        first: impl Fn() + Send + Sync + 'static,
        run: impl Fn() + Send + Sync + 'static,
        lacking: impl FnOnce() -> Option<String>,
    ) {
        if self.stopped || self.wanted.as_ref().is_some_and(|wanted| !name.contains(wanted.as_str())) {
            return;
        }
        let Some(all_begun) = self.begun else {
            self.total = self.total.saturating_add(1);
            return;
        };
        let begun = Instant::now();
        self.print_progress(all_begun);
        // A deadlock aborts: the line says by then where.
        print!("{name:<74} ");
        let _ = std::io::stdout().flush();
        let run = Arc::new(run);
        let prepared = check(&Arc::new(first), None, None);
        let (mut bound, mut found) = match reach {
            _ if prepared.is_err() => ("none", Err(0)),
            Reach::Whole => ("all", check(&run, None, None)),
            // Bound 3 finds nearly everything, and always ends; without a bound nothing is left out, where that ends.
            Reach::Bounded | Reach::Patient => ("bound 3", check(&run, Some(3), None)),
            Reach::Few if self.quick => ("bound 2", check(&run, Some(2), None)),
            Reach::Few => ("bound 3", check(&run, Some(3), None)),
        };
        if matches!(reach, Reach::Bounded | Reach::Patient) && found.is_ok() {
            let begun = Instant::now();
            let limit = match reach {
                _ if self.quick => Some(HURRIED),
                Reach::Patient => None,
                _ => Some(UNBOUNDED),
            };
            let unbounded = check(&run, None, limit);
            let complete = limit.is_none_or(|limit| begun.elapsed() < limit);
            if complete || unbounded.is_err() {
                (bound, found) = ("all", unbounded);
            }
        }
        let lacking = if found.is_ok() { lacking() } else { None };
        let (mut verdict, explored) = match found {
            Ok(explored) => (String::from("ok"), explored),
            Err(explored) => (String::from("VIOLATION"), explored),
        };
        if let Some(lacking) = &lacking {
            verdict = format!("VIOLATION: no schedule shows {lacking}");
        }
        println!("{bound:<7} {explored:>8} schedules {:>6.2} s  {verdict}", begun.elapsed().as_secs_f32());
        self.pairs = self.pairs.saturating_add(1);
        self.complete = self.complete.saturating_add(u64::from(bound == "all"));
        self.schedules = self.schedules.saturating_add(explored);
        if found.is_err() || lacking.is_some() {
            self.violations = self.violations.saturating_add(1);
            self.stopped = self.first;
        }
    }

    /// The last two lines.
    pub(crate) fn finish(self) -> ExitCode {
        let Self { pairs, complete, schedules, violations, .. } = self;
        println!("without a bound, to the end: {complete} of {pairs} pairs");
        println!("schedules: {pairs} pairs, {schedules} schedules, {violations} violations");
        match (pairs, violations) {
            (0, _) => ExitCode::from(2),
            (_, 0) => ExitCode::SUCCESS,
            _ => ExitCode::FAILURE,
        }
    }
}

/// Explores `run`; how many schedules, up to the first violation if there is one.
fn check(
    run: &Arc<impl Fn() + Send + Sync + 'static>,
    preemptions: Option<usize>,
    duration: Option<Duration>,
) -> Result<u64, u64> {
    let explored = Arc::new(AtomicU64::new(0));
    let (count, run) = (explored.clone(), run.clone());
    let result = catch_unwind(AssertUnwindSafe(move || {
        let mut builder = Builder::new();
        builder.preemption_bound = preemptions;
        // A universe is set up and taken down inside the model: each atomic there counts.
        builder.max_branches = 10_000;
        builder.max_duration = duration;
        builder.checkpoint_interval = LOOK_AT_TIME;
        builder.check(move || {
            count.fetch_add(1, Ordering::Relaxed);
            run();
        });
    }));
    let explored = explored.load(Ordering::Relaxed);
    result.map(|()| explored).map_err(|_| explored)
}
