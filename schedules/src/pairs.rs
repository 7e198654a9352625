//! Every pair of operations, and triples, in every relation, in every interleaving that loom finds.
//!
//! What they answered, and the state that is left, must be what a sequential order gives; `Busy` counts as nothing done, and
//! an operation that a removal overtook as done and undone (contract C-15).

use std::sync::{Arc, OnceLock};

use iommu_assign::assign::Source;

use crate::explorer::{Explorer, Reach};
use crate::universe::{Answer, Op, Relation, Universe};

/// Operations that meet, in one relation, from one starting point.
#[derive(Clone, Debug)]
struct Meeting {
    relation: Relation,
    /// Each with the device that it is about.
    acts: Vec<(Op, usize)>,
    /// The operation whose starting point each device is in.
    starts: [Option<Op>; 2],
    sources: [Source; 2],
}

/// One sequential history: what each operation answered, `None` where it did nothing; and what is left.
struct History {
    answers: Vec<Option<Answer>>,
    left: String,
}

impl Meeting {
    fn name(&self) -> String {
        let several = self.acts.len() > 2 || self.relation == Relation::SameDevice;
        let starts = self.starts.iter().flatten().map(|start| start.name()).collect::<Vec<_>>().join(", ");
        let start = if several { format!(" (from {starts})") } else { String::new() };
        let act = |(op, n): &(Op, usize)| format!("{:>4} {:<12}", self.sources[*n].to_string(), op.name());
        let acts: Vec<String> = self.acts.iter().map(act).collect();
        format!("{:<13} {}{start}", self.relation.name(), acts.join(" | "))
    }

    fn world<U: Universe>(&self) -> U {
        let world = U::new(self.relation, self.sources);
        let [first, second] = self.starts;
        if let Some(first) = first {
            world.prepare(first, 0);
        }
        // The child's own starting point must not undo the parent's: a parent that is to be added is not there.
        let is_absent = self.relation.is_behind() && first == Some(Op::Add);
        if let Some(second) = second.filter(|_| !is_absent) {
            world.prepare(second, 1);
        }
        world
    }

    /// What sequential histories give: all orders, with each set of operations that met a claim and did nothing.
    fn sequential<U: Universe>(&self) -> Vec<History> {
        let mut histories = Vec::new();
        for order in orders(self.acts.len()) {
            for idle in 0_u32..1 << self.acts.len() {
                let acting: Vec<usize> = order.iter().copied().filter(|n| idle & (1 << n) == 0).collect();
                // One order of those that do nothing is enough.
                let is_first = order.windows(2).all(|pair| idle & (1 << pair[0]) == 0 || pair[0] < pair[1]);
                if !is_first && idle != 0 {
                    continue;
                }
                for meanings in self.meanings() {
                    let world: U = self.world();
                    let mut answers = vec![None; self.acts.len()];
                    for n in &acting {
                        answers[*n] = Some(world.run(meanings[*n], self.acts[*n].1));
                    }
                    histories.push(History { answers, left: world.state() });
                }
            }
        }
        histories
    }

    /// What the operations may come to.
    fn meanings(&self) -> Vec<Vec<Op>> {
        let mut all = vec![Vec::new()];
        for (op, _) in &self.acts {
            let further = |so_far: &Vec<Op>| {
                let with = |op| so_far.iter().copied().chain([op]).collect::<Vec<Op>>();
                op.meanings().into_iter().map(with).collect::<Vec<_>>()
            };
            all = all.iter().flat_map(further).collect();
        }
        all
    }

    fn is_explained_by(&self, answers: &[Answer], left: &str, history: &History) -> bool {
        let is_removal = |n: usize| self.acts[n].0.removes();
        let explains = |n: usize| match (&answers[n], &history.answers[n]) {
            (Answer::Busy, None) => true,
            // It was done, then undone.
            (Answer::Removed, Some(_)) => (0..answers.len()).any(|other| other != n && is_removal(other)),
            (seen, Some(told)) => seen.is_explained_by(told),
            // All who ask for one removal get its outcome.
            (seen, None) => (0..answers.len()).any(|other| {
                let same = self.acts[other].1 == self.acts[n].1 && is_removal(n) && is_removal(other);
                let told = history.answers[other].as_ref();
                same && told.is_some_and(|told| seen.is_explained_by(told))
            }),
        };
        left == history.left && (0..answers.len()).all(explains)
    }

    /// One explored run.
    fn run<U: Universe>(&self, allowed: &[History]) {
        let world: Arc<U> = Arc::new(self.world());
        let [(op, n), others @ ..] = self.acts.as_slice() else { return };
        let spawned: Vec<_> = others
            .iter()
            .map(|(op, n)| {
                let (world, op, n) = (world.clone(), *op, *n);
                loom::thread::spawn(move || world.run(op, n))
            })
            .collect();
        let mut answers = vec![world.run(*op, *n)];
        answers.extend(
            spawned.into_iter().map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
        );
        let left = world.state();
        let stopped = answers.contains(&Answer::Partial);
        let is_linearizable = stopped || allowed.iter().any(|history| self.is_explained_by(&answers, &left, history));
        if !is_linearizable {
            let lines = |history: &History| format!("  {:?}: {}\n", history.answers, history.left);
            let allowed: String = allowed.iter().map(lines).collect();
            panic!("not linearizable: {answers:?}: {left}\nallowed:\n{allowed}");
        }
        world.take_down();
    }
}

/// All orders of so many things.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let mut orders = vec![Vec::new()];
    for n in 0..count {
        let put = |order: &Vec<usize>| {
            let at = |at: usize| [&order[..at], &[n], &order[at..]].concat();
            (0..=order.len()).map(at).collect::<Vec<_>>()
        };
        orders = orders.iter().flat_map(put).collect();
    }
    orders
}

/// Explores the pairs of one universe.
pub(crate) fn explore<U: Universe>(explorer: &mut Explorer) {
    let further = if U::FURTHER { further().collect() } else { Vec::new() };
    for pair in all(&Relation::EVERY_PAIR, U::OPS).chain(further) {
        explore_one::<U>(explorer, Reach::Bounded, pair);
    }
}

/// Explores triples of one universe: two operations about the first device and one about the second, or the other way round.
pub(crate) fn explore_triples<U: Universe>(explorer: &mut Explorer) {
    for relation in [Relation::SameGroup, Relation::ParentChild, Relation::SharingParent] {
        for twice in [0, 1] {
            if twice == 1 && !relation.is_behind() {
                continue;
            }
            for (at, one) in Op::GROUPING.into_iter().enumerate() {
                for two in Op::GROUPING.into_iter().skip(at) {
                    for other in Op::GROUPING {
                        for meeting in triples(relation, twice, [one, two], other) {
                            explore_one::<U>(explorer, Reach::Few, meeting);
                        }
                    }
                }
            }
        }
    }
}

fn triples(relation: Relation, twice: usize, ops: [Op; 2], other: Op) -> Vec<Meeting> {
    let acts = vec![(ops[0], twice), (ops[1], twice), (other, 1 - twice)];
    let from = |start: Op| {
        let starts = if twice == 0 { [Some(start), Some(other)] } else { [Some(other), Some(start)] };
        Meeting { relation, acts: acts.clone(), starts, sources: [Source::Dt; 2] }
    };
    if ops[0] == ops[1] { vec![from(ops[0])] } else { vec![from(ops[0]), from(ops[1])] }
}

fn explore_one<U: Universe>(explorer: &mut Explorer, reach: Reach, meeting: Meeting) {
    let name = format!("{:<7} {}", U::NAME, meeting.name());
    let (meeting, allowed) = (Arc::new(meeting), Arc::new(OnceLock::new()));
    let first = {
        let (meeting, allowed) = (meeting.clone(), allowed.clone());
        move || {
            let _ = allowed.set(meeting.sequential::<U>());
        }
    };
    let run = move || meeting.run::<U>(allowed.get().map_or(&[], Vec::as_slice));
    explorer.explore_after(&name, reach, first, run, || None);
}

fn all(relations: &'static [Relation], ops: &'static [Op]) -> impl Iterator<Item = Meeting> {
    relations.iter().copied().flat_map(move |relation| {
        ops.iter().copied().enumerate().flat_map(move |(at, one)| {
            // Parent and child, and PCI against DT, are not symmetric.
            let seconds = if relation.is_behind() { 0 } else { at };
            ops.iter().copied().skip(seconds).flat_map(move |two| variants(relation, one, two))
        })
    })
}

/// Groups of other kinds, and what fails against what does not.
fn further() -> impl Iterator<Item = Meeting> {
    let failing = [Relation::SameDevice, Relation::SameGroup, Relation::TwoIommus].into_iter().flat_map(|relation| {
        Op::FAILING.into_iter().flat_map(move |one| {
            let others = Op::GROUPING.into_iter().chain([Op::DestroyDomain, one]);
            others.flat_map(move |two| variants(relation, one, two))
        })
    });
    all(&Relation::GROUPS, &Op::GROUPING).chain(failing)
}

fn variants(relation: Relation, one: Op, two: Op) -> Vec<Meeting> {
    let [dt, pci] = [Source::Dt, Source::Pci];
    let from =
        |start| Meeting { relation, acts: vec![(one, 0), (two, 0)], starts: [Some(start), None], sources: [dt, dt] };
    let pair = |sources| Meeting { relation, acts: vec![(one, 0), (two, 1)], starts: [Some(one), Some(two)], sources };
    match relation {
        Relation::SameDevice if one == two => vec![from(one)],
        Relation::SameDevice => vec![from(one), from(two)],
        Relation::ParentChild | Relation::SharingParent => vec![pair([dt, dt])],
        Relation::SameBus | Relation::TwoIommus => vec![pair([pci, dt])],
        Relation::SameGroup | Relation::SameIommu => {
            let comes_or_goes = |op| matches!(op, Op::Add | Op::Remove | Op::RemoveTree);
            let moves = comes_or_goes(one) && comes_or_goes(two);
            if moves { vec![pair([dt, dt]), pair([pci, dt])] } else { vec![pair([pci, dt])] }
        }
    }
}
