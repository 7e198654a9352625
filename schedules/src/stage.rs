//! A stage for scenes: a world whose hooks and policy follow a script, and threads on it (contract C-2, C-4, C-5, C-8).
//!
//! The waiter is the explorer's: a wake-up that is lost, and a circle of those who wait, are deadlocks, which it reports.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use iommu_assign::assign::{
    CallChain, Cause, Device, DeviceHooks, Error, HookContext, HookError, Policy, PolicyRequest, Removal, Source,
    Within,
};

use crate::explorer::{Explorer, Reach};
use crate::queue::Waiting;
use crate::universe::{Op, Relation, Universe};
use crate::world::{IOMMU, World};

pub(crate) type Outcome = Result<(), Cause>;

/// What a callback does; it notes what the operations that it nests have answered.
#[derive(Clone, Copy)]
pub(crate) struct Script {
    /// The reset of a device, by its number.
    pub(crate) reset: fn(&Stage, usize, CallChain<'_>),
    /// The policy about a device.
    pub(crate) allows: fn(&Stage, &PolicyRequest<'_>) -> bool,
}

impl Script {
    /// Callbacks that nest nothing.
    pub(crate) const PLAIN: Self = Self { reset: |_, _, _| (), allows: |_, _| true };
}

/// A world with its two devices registered, and perhaps a third on offer.
pub(crate) struct Stage {
    pub(crate) world: World<Waiting>,
    pub(crate) devices: [Device; 2],
    pub(crate) hooks: Vec<Arc<Scripted>>,
}

loom::thread_local! {
    /// A callback of this thread has nested something already.
    static INSIDE: std::cell::Cell<bool> = std::cell::Cell::new(false);
}

/// Hooks of a device, or the policy, by the script.
#[derive(Default)]
pub(crate) struct Scripted {
    stage: OnceLock<(Weak<Stage>, Script)>,
    n: usize,
    resets: AtomicUsize,
    is_resetting: AtomicBool,
    answers: Mutex<Vec<Outcome>>,
}

impl Scripted {
    fn stage(&self) -> Option<(Arc<Stage>, Script)> {
        self.stage.get().and_then(|(stage, script)| Some((stage.upgrade()?, *script)))
    }

    /// What nested operations have answered.
    pub(crate) fn answers(&self) -> Vec<Outcome> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often its device was reset.
    pub(crate) fn resets(&self) -> usize {
        self.resets.load(Ordering::SeqCst)
    }
}

impl std::fmt::Debug for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Scripted({})", self.n)
    }
}

impl DeviceHooks for Scripted {
    fn quiesce(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        Ok(())
    }

    fn reset(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        let Some((stage, script)) = self.stage() else { return Ok(()) };
        self.resets.fetch_add(1, Ordering::SeqCst);
        self.is_resetting.store(true, Ordering::SeqCst);
        (script.reset)(&stage, self.n, context.chain);
        self.is_resetting.store(false, Ordering::SeqCst);
        Ok(())
    }

    fn release(&self, _: &HookContext<'_>) {
        assert!(!self.is_resetting.load(Ordering::SeqCst), "C-4: a device went while its reset hook ran");
    }
}

/// The policy's part of the script.
#[derive(Debug)]
struct ScriptedPolicy(Arc<Scripted>);

impl Policy for ScriptedPolicy {
    fn allows(&self, request: &PolicyRequest<'_>) -> bool {
        self.0.stage().is_none_or(|(stage, script)| (script.allows)(&stage, request))
    }
}

impl Stage {
    fn new(case: &Case) -> Arc<Self> {
        let policy = Arc::new(Scripted::default());
        let mut world = World::with_policy(case.relation, [Source::Dt; 2], Box::new(ScriptedPolicy(policy.clone())));
        world.specs[1].ends_with_parent = case.ends_with_parent;
        if !case.third.is_empty() {
            world.offer_third(case.third);
        }
        let hooks: Vec<_> = (0..world.specs.len()).map(|n| Arc::new(Scripted { n, ..Scripted::default() })).collect();
        for (spec, hooks) in world.specs.iter_mut().zip(&hooks) {
            spec.hooks = hooks.clone();
        }
        for n in [0, 1] {
            world.prepare(case.starts, n);
        }
        let devices = [0, 1].map(|n| {
            let info = world.service.find(world.specs[n].key);
            info.unwrap_or_else(|| panic!("device {n} is not there")).device
        });
        let stage = Arc::new(Self { world, devices, hooks });
        (case.before)(&stage);
        for scripted in stage.hooks.iter().chain([&policy]) {
            let _ = scripted.stage.set((Arc::downgrade(&stage), case.script));
        }
        stage
    }

    /// A device's handle, looked up.
    pub(crate) fn find(&self, n: usize) -> Option<Device> {
        self.world.service.find(self.world.specs[n].key).map(|info| info.device)
    }

    /// Nests an operation in a callback, once for each thread, and notes what it has answered for device `n`.
    pub(crate) fn nest<T>(
        &self,
        n: usize,
        chain: CallChain<'_>,
        operation: impl FnOnce(&Within<'_, Waiting>) -> Result<T, Error>,
    ) {
        if !INSIDE.with(|inside| inside.replace(true)) {
            self.nest_again(n, chain, operation);
            INSIDE.with(|inside| inside.set(false));
        }
    }

    /// Nests an operation, however deep.
    pub(crate) fn nest_again<T>(
        &self,
        n: usize,
        chain: CallChain<'_>,
        operation: impl FnOnce(&Within<'_, Waiting>) -> Result<T, Error>,
    ) {
        let answer = operation(&self.world.service.within(chain)).map(drop).map_err(|error| error.cause);
        self.hooks[n].answers.lock().unwrap_or_else(PoisonError::into_inner).push(answer);
    }

    fn wait<T>(&self, operation: impl FnMut(&Within<'_, Waiting>) -> Result<T, Error>) -> Outcome {
        waited(self.world.service.wait(None, operation).map(drop).map_err(|error| error.cause))
    }

    pub(crate) fn assign(&self, n: usize) -> Outcome {
        let device = self.find(n).ok_or(Cause::Gone)?;
        self.wait(|service| service.assign(&device, &self.world.domains[0]))
    }

    pub(crate) fn reassign(&self, n: usize) -> Outcome {
        self.wait(|service| service.reassign(&self.devices[n], &self.world.domains[1]))
    }

    pub(crate) fn deassign(&self, n: usize) -> Outcome {
        self.wait(|service| service.deassign(&self.devices[n]))
    }

    pub(crate) fn remove(&self, n: usize) -> Outcome {
        let key = self.world.specs[n].key;
        let handle = self.find(n);
        let removed = waited(self.world.service.remove_and_wait(key, None).map_err(|error| error.cause));
        if let Some(handle) = handle.filter(|_| removed.is_ok()) {
            assert!(handle.enter::<Waiting>().is_none(), "C-17: a call got in after the removal");
        }
        removed
    }

    pub(crate) fn add(&self, n: usize) -> Outcome {
        self.wait(|service| service.add(self.world.specs[n].clone()))
    }

    /// Adds a device, without waiting.
    pub(crate) fn try_add(&self, n: usize) -> Outcome {
        self.world.service.add(self.world.specs[n].clone()).map(drop).map_err(|error| error.cause)
    }

    pub(crate) fn unregister(&self) -> Outcome {
        self.wait(|service| service.unregister_iommu(IOMMU))
    }

    pub(crate) fn destroy(&self) -> Outcome {
        self.wait(|service| service.destroy_domain(&self.world.domains[0]))
    }

    /// Asks for the removal of a device; whether somebody else has to carry it out.
    pub(crate) fn ask_to_go(&self, n: usize) -> Result<Removal, Cause> {
        self.world.service.remove(self.world.specs[n].key).map_err(|error| error.cause)
    }

    pub(crate) fn remove_tree(&self) -> Outcome {
        self.world.service.remove_tree(self.devices[0].key()).map(drop).map_err(|error| error.cause)
    }

    /// A call that is inside for a moment, where it gets in.
    pub(crate) fn call(&self, n: usize) -> Outcome {
        let call = self.devices[n].enter::<Waiting>().ok_or(Cause::Gone)?;
        let registered = self.world.service.find(self.devices[n].key()).is_some();
        assert!(registered, "C-8: the device is gone while a call is inside");
        drop(call);
        Ok(())
    }
}

/// Operations that meet, and what must come of it.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) relation: Relation,
    /// The streams of the third device; none without it.
    pub(crate) third: &'static [u32],
    /// The second device ends with its parent, the first.
    pub(crate) ends_with_parent: bool,
    /// Both devices are where this makes sense.
    pub(crate) starts: Op,
    pub(crate) script: Script,
    /// What happens first, before the threads and without the script.
    pub(crate) before: fn(&Stage),
    pub(crate) threads: &'static [fn(&Stage) -> Outcome],
    pub(crate) check: fn(&Stage, &[Outcome]),
    /// What some schedule must show, of the outcomes in words.
    pub(crate) shows: &'static [&'static str],
}

impl Case {
    /// Two devices in one group, and a script that nests nothing.
    pub(crate) const PLAIN: Self = Self {
        name: "",
        relation: Relation::SameGroup,
        third: &[],
        ends_with_parent: false,
        starts: Op::Assign,
        script: Script::PLAIN,
        before: |_| (),
        threads: &[],
        check: |_, _| (),
        shows: &[],
    };

    /// One explored run.
    fn run(&self, shown: &Mutex<BTreeSet<String>>) {
        let stage = Stage::new(self);
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
        (self.check)(&stage, &outcomes);
        let mut shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.extend(outcomes.iter().enumerate().map(|(n, outcome)| format!("{n} {}", word(outcome))));
        for (name, hooks) in ["first", "second", "third"].iter().zip(&stage.hooks) {
            shown.extend(hooks.answers().iter().map(|answer| format!("{name}'s hook: {}", word(answer))));
        }
        drop(shown);
        let _ = stage.world.state();
        stage.world.take_down();
    }
}

/// What a wait form without a deadline can answer.
fn waited(outcome: Outcome) -> Outcome {
    let is_busy = matches!(outcome, Err(Cause::Busy { .. } | Cause::TimedOut { .. } | Cause::WouldDeadlock { .. }));
    assert!(!is_busy, "C-2: a wait form without a deadline answered {outcome:?}");
    outcome
}

pub(crate) fn word(outcome: &Outcome) -> String {
    match outcome {
        Ok(()) => "Ok".into(),
        Err(cause) => format!("{cause:?}").split([' ', '(']).next().unwrap_or_default().into(),
    }
}

/// Explores cases of one suite.
pub(crate) fn explore(explorer: &mut Explorer, suite: &str, cases: &'static [Case]) {
    for case in cases {
        let shown = Arc::new(Mutex::new(BTreeSet::new()));
        let seen = shown.clone();
        explorer.explore(
            &format!("{suite:<7} {}", case.name),
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
