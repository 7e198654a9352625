//! The wait forms: whoever waits is woken, and no two wait for each other (contract C-2, C-4, C-5, C-8).
//!
//! The waiter is the explorer's: a wake-up that is lost, and a circle of those who wait, are deadlocks, which it reports.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use iommu_assign::assign::{Cause, Device, DeviceHooks, Error, HookContext, HookError, Service, Source};

use crate::explorer::{Explorer, Reach};
use crate::queue::Waiting;
use crate::universe::{Op, Relation, Universe};
use crate::world::World;

type Outcome = Result<(), Cause>;

/// A world with its two devices registered.
struct Stage {
    world: World<Waiting>,
    devices: [Device; 2],
    hooks: [Arc<Nested>; 2],
}

impl Stage {
    fn new(relation: Relation, starts: Op, hooked: bool) -> Arc<Self> {
        let mut world = World::new(relation, [Source::Dt; 2]);
        let hooks = [0, 1].map(|n: usize| Arc::new(Nested { wants: n ^ 1, ..Nested::default() }));
        if hooked {
            for (spec, hooks) in world.specs.iter_mut().zip(&hooks) {
                spec.hooks = hooks.clone();
            }
        }
        for n in [0, 1] {
            world.prepare(starts, n);
        }
        let devices = [0, 1].map(|n| {
            let info = world.service.find(world.specs[n].key);
            info.unwrap_or_else(|| panic!("device {n} is not there")).device
        });
        let stage = Arc::new(Self { world, devices, hooks });
        for hooks in &stage.hooks {
            let _ = hooks.stage.set(Arc::downgrade(&stage));
        }
        stage
    }

    fn wait<T>(&self, operation: impl FnMut(&Service<Waiting>) -> Result<T, Error>) -> Outcome {
        self.world.service.wait(None, operation).map(drop).map_err(|error| error.cause)
    }

    fn assign(&self, n: usize) -> Outcome {
        self.wait(|service| service.assign(&self.devices[n], &self.world.domains[0]))
    }

    fn reassign(&self, n: usize) -> Outcome {
        self.wait(|service| service.reassign(&self.devices[n], &self.world.domains[1]))
    }

    fn deassign(&self, n: usize) -> Outcome {
        self.wait(|service| service.deassign(&self.devices[n]))
    }

    fn remove(&self, n: usize) -> Outcome {
        let removed = self.world.service.remove_and_wait(self.devices[n].key(), None).map_err(|error| error.cause);
        if removed.is_ok() {
            assert!(self.devices[n].enter::<Waiting>().is_none(), "C-17: a call got in after the removal");
        }
        removed
    }

    fn add(&self, n: usize) -> Outcome {
        self.wait(|service| service.add(self.world.specs[n].clone()))
    }

    fn remove_tree(&self) -> Outcome {
        self.world.service.remove_tree(self.devices[0].key()).map(drop).map_err(|error| error.cause)
    }

    /// A call that is inside for a moment, where it gets in.
    fn call(&self, n: usize) -> Outcome {
        let call = self.devices[n].enter::<Waiting>().ok_or(Cause::Gone)?;
        let registered = self.world.service.find(self.devices[n].key()).is_some();
        assert!(registered, "C-8: the device is gone while a call is inside");
        drop(call);
        Ok(())
    }
}

loom::thread_local! {
    /// A hook of this thread waits already.
    static INSIDE: std::cell::Cell<bool> = std::cell::Cell::new(false);
}

/// Hooks whose reset waits to take the other device from its domain.
#[derive(Default)]
struct Nested {
    stage: OnceLock<Weak<Stage>>,
    wants: usize,
    answers: Mutex<Vec<Outcome>>,
}

impl std::fmt::Debug for Nested {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Nested({})", self.wants)
    }
}

impl DeviceHooks for Nested {
    fn quiesce(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        Ok(())
    }

    fn reset(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        let Some(stage) = self.stage.get().and_then(Weak::upgrade) else { return Ok(()) };
        if INSIDE.with(|inside| inside.replace(true)) {
            return Ok(());
        }
        let within = stage.world.service.within(context.claims);
        let answer = within.wait(None, |service| service.deassign(&stage.devices[self.wants]));
        INSIDE.with(|inside| inside.set(false));
        let answer = answer.map(drop).map_err(|error| error.cause);
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
        Ok(())
    }

    fn release(&self, _: &HookContext<'_>) {}
}

/// Operations that meet, and what must come of it.
struct Case {
    name: &'static str,
    relation: Relation,
    /// Both devices are where this makes sense.
    starts: Op,
    hooked: bool,
    /// What happens first, before the threads.
    before: fn(&Stage),
    threads: &'static [fn(&Stage) -> Outcome],
    check: fn(&Stage, &[Outcome]),
    /// What some schedule must show, of the outcomes in words.
    shows: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        name: "same device: reassign | deassign",
        relation: Relation::SameIommu,
        starts: Op::Reassign,
        hooked: false,
        before: |_| (),
        threads: &[|stage| stage.reassign(0), |stage| stage.deassign(0)],
        check: |_, outcomes| assert_eq!(outcomes[1], Ok(()), "C-2: it waited, and did not get its turn"),
        shows: &["0 Ok", "0 NotAssigned"],
    },
    Case {
        name: "same group: assign | assign",
        relation: Relation::SameGroup,
        starts: Op::Assign,
        hooked: false,
        before: |_| (),
        threads: &[|stage| stage.assign(0), |stage| stage.assign(1)],
        check: |_, outcomes| assert_eq!(outcomes, [Ok(()), Ok(())], "C-2: both waited for their turn"),
        shows: &[],
    },
    Case {
        name: "same group: add | assign",
        relation: Relation::SameGroup,
        starts: Op::Assign,
        hooked: false,
        before: |stage| assert_eq!(stage.remove(1), Ok(())),
        threads: &[|stage| stage.add(1), |stage| stage.assign(0)],
        check: |_, outcomes| assert_eq!(outcomes, [Ok(()), Ok(())], "C-2: both waited for their turn"),
        shows: &[],
    },
    Case {
        name: "same group: add | remove and wait",
        relation: Relation::SameGroup,
        starts: Op::Assign,
        hooked: false,
        before: |stage| assert_eq!(stage.remove(1), Ok(())),
        threads: &[|stage| stage.add(1), |stage| stage.remove(0)],
        check: |stage, outcomes| {
            removed(stage, &outcomes[1..]);
            assert_eq!(outcomes[0], Ok(()), "C-2: it waited, and did not get its turn");
        },
        shows: &[],
    },
    Case {
        name: "same group: add | add that is refused",
        relation: Relation::SameGroup,
        starts: Op::Assign,
        hooked: false,
        before: |stage| assert_eq!(stage.remove(1), Ok(())),
        threads: &[|stage| stage.add(1), |stage| stage.add(0)],
        check: |_, outcomes| {
            assert_eq!(outcomes[0], Ok(()), "C-2: it waited, and did not get its turn");
            assert!(matches!(outcomes[1], Err(Cause::AlreadyRegistered { .. })), "C-2: {:?}", outcomes[1]);
        },
        shows: &[],
    },
    Case {
        name: "same group: deassign | deassign | deassign",
        relation: Relation::SameGroup,
        starts: Op::Deassign,
        hooked: false,
        before: |_| (),
        threads: &[|stage| stage.deassign(0), |stage| stage.deassign(1), |stage| stage.deassign(0)],
        check: |_, outcomes| assert_eq!(outcomes[1], Ok(()), "C-2: it waited, and did not get its turn"),
        shows: &["0 NotAssigned", "2 NotAssigned"],
    },
    Case {
        name: "same device: remove and wait | assign",
        relation: Relation::SameIommu,
        starts: Op::Assign,
        hooked: false,
        before: |_| (),
        threads: &[|stage| stage.remove(0), |stage| stage.assign(0)],
        check: removed,
        shows: &["1 Ok", "1 Removed", "1 Gone"],
    },
    Case {
        name: "same device: remove and wait | reassign",
        relation: Relation::SameIommu,
        starts: Op::Reassign,
        hooked: false,
        before: |_| (),
        threads: &[|stage| stage.remove(0), |stage| stage.reassign(0)],
        check: removed,
        shows: &["1 Ok", "1 Removed", "1 Gone"],
    },
    Case {
        name: "same device: remove and wait | call inside",
        relation: Relation::SameIommu,
        starts: Op::Assign,
        hooked: false,
        before: |_| (),
        threads: &[|stage| stage.remove(0), |stage| stage.call(0)],
        check: removed,
        shows: &["1 Ok", "1 Gone"],
    },
    Case {
        name: "same device: remove and wait | remove and wait | call inside",
        relation: Relation::SameIommu,
        starts: Op::Assign,
        hooked: false,
        before: |_| (),
        threads: &[|stage| stage.remove(0), |stage| stage.remove(0), |stage| stage.call(0)],
        check: |stage, outcomes| removed_by_one(stage, 0, &outcomes[..2]),
        shows: &["2 Ok", "2 Gone"],
    },
    Case {
        name: "same device: remove and wait | reassign | call inside",
        relation: Relation::SameIommu,
        starts: Op::Reassign,
        hooked: false,
        before: |_| (),
        threads: &[|stage| stage.remove(0), |stage| stage.reassign(0), |stage| stage.call(0)],
        check: removed,
        shows: &["1 Removed", "2 Ok"],
    },
    Case {
        name: "same group: remove and wait | deassign | call inside",
        relation: Relation::SameGroup,
        starts: Op::Deassign,
        hooked: false,
        before: |_| (),
        threads: &[|stage| stage.remove(0), |stage| stage.deassign(1), |stage| stage.call(0)],
        check: |stage, outcomes| {
            removed(stage, outcomes);
            assert_eq!(outcomes[1], Ok(()), "C-2: it waited, and did not get its turn");
        },
        shows: &["2 Ok", "2 Gone"],
    },
    Case {
        name: "parent, child: remove tree | remove and wait the parent",
        relation: Relation::ParentChild,
        starts: Op::Assign,
        hooked: false,
        before: |_| (),
        threads: &[Stage::remove_tree, |stage| stage.remove(0)],
        check: |_, outcomes| assert_eq!(outcomes[0], Ok(())),
        shows: &["1 Ok", "1 HasChildren"],
    },
    Case {
        name: "parent, child: remove tree | remove and wait the child | call inside",
        relation: Relation::ParentChild,
        starts: Op::Assign,
        hooked: false,
        before: |_| (),
        threads: &[Stage::remove_tree, |stage| stage.remove(1), |stage| stage.call(1)],
        check: |stage, outcomes| removed_by_one(stage, 1, &outcomes[1..2]),
        shows: &["2 Ok", "2 Gone"],
    },
    Case {
        name: "unrelated: each reset waits to deassign the other",
        relation: Relation::SameIommu,
        starts: Op::Reassign,
        hooked: true,
        before: |_| (),
        threads: &[|stage| stage.reassign(0), |stage| stage.reassign(1)],
        check: nested,
        shows: &["second's hook: Ok", "second's hook: WouldDeadlock", "first's hook: Ok"],
    },
    Case {
        name: "parent, child: each reset waits to deassign the other",
        relation: Relation::ParentChild,
        starts: Op::Reassign,
        hooked: true,
        before: |_| (),
        threads: &[|stage| stage.reassign(0), |stage| stage.reassign(1)],
        check: nested,
        shows: &["second's hook: Ok", "second's hook: WouldDeadlock", "first's hook: Ok"],
    },
];

/// The first device went, whatever else happened.
fn removed(stage: &Stage, outcomes: &[Outcome]) {
    assert_eq!(outcomes[0], Ok(()), "C-8: whoever waits for the removal hears that it is done");
    assert!(stage.world.service.find(stage.devices[0].key()).is_none(), "C-8: removed, and still there");
}

/// Of several who remove one device all hear that it went, but for those who came after that.
fn removed_by_one(stage: &Stage, n: usize, outcomes: &[Outcome]) {
    let fits = |outcome: &Outcome| matches!(outcome, Ok(()) | Err(Cause::NotFound));
    assert!(outcomes.iter().all(fits), "C-8: whoever waits for the removal hears that it is done: {outcomes:?}");
    assert!(stage.world.service.find(stage.devices[n].key()).is_none(), "C-8: removed, and still there");
}

/// Who holds the claim that comes first may wait for the other; never the other way round.
fn nested(stage: &Stage, outcomes: &[Outcome]) {
    let [first, second] = stage.hooks.each_ref().map(|hooks| {
        let answers = hooks.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.clone()
    });
    for answer in &first {
        assert!(matches!(answer, Ok(()) | Err(Cause::NotAssigned)), "C-5: {answer:?} of what comes later in the order");
    }
    for answer in &second {
        let fits = matches!(answer, Ok(()) | Err(Cause::NotAssigned | Cause::WouldDeadlock { .. }));
        assert!(fits, "C-5: {answer:?} of what comes earlier in the order");
    }
    for outcome in outcomes {
        assert!(matches!(outcome, Ok(()) | Err(Cause::NotAssigned)), "C-4: {outcome:?} of an operation with a hook");
    }
}

fn word(outcome: &Outcome) -> String {
    match outcome {
        Ok(()) => "Ok".into(),
        Err(cause) => format!("{cause:?}").split([' ', '(']).next().unwrap_or_default().into(),
    }
}

impl Case {
    /// One explored run.
    fn run(&self, shown: &Mutex<BTreeSet<String>>) {
        let stage = Stage::new(self.relation, self.starts, self.hooked);
        (self.before)(&stage);
        let [others @ .., last] = self.threads else { return };
        let spawned: Vec<_> = others
            .iter()
            .map(|thread| {
                let stage = stage.clone();
                loom::thread::spawn(move || thread(&stage))
            })
            .collect();
        let last = last(&stage);
        let mut outcomes: Vec<Outcome> = spawned
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect();
        outcomes.push(last);
        for outcome in &outcomes {
            let waits =
                matches!(outcome, Err(Cause::Busy { .. } | Cause::TimedOut { .. } | Cause::WouldDeadlock { .. }));
            assert!(!waits, "C-2: a wait form without a deadline answered {outcome:?}");
        }
        (self.check)(&stage, &outcomes);
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.extend(outcomes.iter().enumerate().map(|(n, outcome)| format!("{n} {}", word(outcome))));
        for (name, hooks) in ["first", "second"].iter().zip(&stage.hooks) {
            let answers = hooks.answers.lock().unwrap_or_else(PoisonError::into_inner);
            shown.extend(answers.iter().map(|answer| format!("{name}'s hook: {}", word(answer))));
        }
        drop(shown);
        let _ = stage.world.state();
        stage.world.take_down();
    }
}

pub(crate) fn explore(explorer: &mut Explorer) {
    for case in CASES {
        let shown = Arc::new(Mutex::new(BTreeSet::new()));
        let seen = shown.clone();
        explorer.explore(
            &format!("waiting {}", case.name),
            Reach::Bounded,
            move || case.run(&seen),
            || {
                let shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
                let lacking = case.shows.iter().find(|show| !shown.contains(**show));
                lacking.map(|lacking| format!("'{lacking}', but {shown:?}"))
            },
        );
    }
}
