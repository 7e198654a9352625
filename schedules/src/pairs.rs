//! Every pair of operations, in every relation, in every interleaving that loom finds.
//!
//! What the two answered, and the state that is left, must be what one of the two sequential orders gives; `Busy` counts
//! as nothing done, and an operation that a removal overtook as done and undone (contract C-15).

use std::sync::Arc;

use iommu_assign::assign::Source;

use crate::explorer::{Explorer, Reach};
use crate::universe::{Answer, Op, Relation, Universe};

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

/// Explores the pairs of one universe.
pub(crate) fn explore<U: Universe>(explorer: &mut Explorer) {
    for pair in all(U::OPS) {
        let name = format!("{:<7} {}", U::NAME, pair.name());
        explorer.explore(&name, Reach::Bounded, move || pair.run::<U>(), || None);
    }
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
