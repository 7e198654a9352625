//! Operations from inside callbacks, and groups that are joined and split while others look (contract C-4, C-15, I-11).

use iommu_assign::assign::{Cause, Quarantine, Removal, Why};

use crate::stage::{Case, Outcome, Script, Stage};
use crate::universe::{Op, Relation};

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "the mate is deassigned in a reset | the device is asked to go",
        starts: Op::Deassign,
        script: Script {
            reset: |stage, n, chain| stage.nest(n, chain, |within| within.deassign(&stage.devices[n ^ 1])),
            ..Script::PLAIN
        },
        threads: &[|stage| stage.deassign(0), |stage| stage.ask_to_go(0).map(drop)],
        check: |stage, outcomes| {
            assert!(matches!(outcomes[0], Ok(()) | Err(Cause::Removed | Cause::Gone)), "C-2: {outcomes:?}");
            assert_eq!(outcomes[1], Ok(()), "C-2: a removal is carried out or pending");
            assert!(stage.find(0).is_none(), "C-2: a removal was lost");
            nested_fits(stage, 0, |answer| matches!(answer, Ok(()) | Err(Cause::NotAssigned)));
        },
        shows: &["0 Ok", "0 Removed", "0 Gone", "first's hook: Ok"],
        ..Case::PLAIN
    },
    Case {
        name: "the mate is removed in a reset | the mate is assigned",
        starts: Op::Deassign,
        before: |stage| assert_eq!(stage.deassign(1), Ok(())),
        script: Script {
            reset: |stage, n, chain| stage.nest(n, chain, |within| within.remove(stage.devices[1].key())),
            ..Script::PLAIN
        },
        threads: &[|stage| stage.deassign(0), |stage| stage.assign(1)],
        check: |stage, outcomes| {
            assert_eq!(outcomes[0], Ok(()), "C-4: {outcomes:?}");
            assert!(matches!(outcomes[1], Ok(()) | Err(Cause::Removed | Cause::Gone)), "C-2: {outcomes:?}");
            assert!(stage.find(1).is_none(), "C-4: a nested removal was lost");
        },
        shows: &["1 Ok", "1 Gone", "first's hook: Ok"],
        ..Case::PLAIN
    },
    Case {
        name: "the policy assigns the mate elsewhere | the mate is removed",
        script: Script {
            allows: |stage, request| {
                let is_outer = request.device.key() == stage.devices[0].key() && matches!(request.why, Why::Assign);
                if is_outer {
                    let elsewhere = &stage.world.domains[1];
                    stage.nest(0, request.chain, |within| within.assign(&stage.devices[1], elsewhere));
                }
                true
            },
            ..Script::PLAIN
        },
        threads: &[|stage| stage.assign(0), |stage| stage.remove(1)],
        check: |stage, outcomes| {
            assert_eq!(outcomes, [Ok(()), Ok(())], "C-4: {outcomes:?}");
            let fits = |answer: &Outcome| matches!(answer, Err(Cause::GroupConflict { .. } | Cause::Gone));
            nested_fits(stage, 0, fits);
        },
        shows: &["first's hook: GroupConflict", "first's hook: Gone"],
        ..Case::PLAIN
    },
    Case {
        name: "a nested add joins the groups of two frames | one of them is asked to go",
        relation: Relation::SameIommu,
        third: &[1, 2],
        starts: Op::Deassign,
        script: Script { reset: joins_two_frames, ..Script::PLAIN },
        threads: &[|stage| stage.reassign(0), |stage| stage.ask_to_go(1).map(drop)],
        check: |stage, outcomes| {
            assert_eq!(outcomes, [Ok(()), Ok(())], "C-4: {outcomes:?}");
            assert!(stage.find(1).is_none(), "C-2: a removal was lost");
            let all = |stage: &Stage, n: usize| stage.hooks[n].answers();
            assert!(all(stage, 1).iter().all(|answer| *answer == Ok(())), "C-4: the add: {:?}", all(stage, 1));
        },
        shows: &["first's hook: Ok", "second's hook: Ok", "first's hook: Gone"],
        ..Case::PLAIN
    },
    Case {
        name: "the child is added in a reset of its parent | the parent is asked to go",
        relation: Relation::ParentChild,
        starts: Op::Deassign,
        before: |stage| assert_eq!([stage.remove(1), stage.assign(0)], [Ok(()), Err(already(stage))]),
        script: Script {
            reset: |stage, n, chain| {
                if n == 0 {
                    stage.nest(0, chain, |within| within.add(stage.world.specs[1].clone()));
                }
            },
            ..Script::PLAIN
        },
        threads: &[|stage| stage.deassign(0), |stage| stage.ask_to_go(0).map(drop)],
        check: |stage, outcomes| {
            let is_child_there = stage.find(1).is_some();
            match &outcomes[1] {
                Ok(()) => assert!(stage.find(0).is_none() && !is_child_there, "C-2: a removal was lost: {outcomes:?}"),
                Err(Cause::HasChildren { .. }) => assert!(is_child_there, "C-5: {outcomes:?}"),
                other => panic!("C-2: {other:?}"),
            }
        },
        shows: &["0 Ok", "0 Removed", "1 HasChildren", "first's hook: ParentMissing"],
        ..Case::PLAIN
    },
    Case {
        name: "a bridge is removed | a device at one end of it is asked to go",
        relation: Relation::SameIommu,
        third: &[1, 2],
        // The other end comes last, and leads: it stays when the bridge goes.
        before: |stage| assert_eq!([stage.add(2), stage.remove(0), stage.add(0)], [Ok(()), Ok(()), Ok(())]),
        threads: &[
            |stage| {
                let asked = stage.ask_to_go(1);
                // Read in this order: the bridge is gone for good.
                let is_apart = stage.find(2).is_none();
                if let Some(info) = stage.world.service.find(stage.devices[1].key()).filter(|_| is_apart) {
                    assert_eq!(info.group, stage.devices[1].key(), "a record leads to a group that does not hold it");
                }
                asked.map(drop)
            },
            |stage| stage.remove(2),
        ],
        check: |stage, outcomes| {
            assert_eq!(outcomes, [Ok(()), Ok(())], "C-8: {outcomes:?}");
            assert!([1, 2].iter().all(|n| stage.find(*n).is_none()), "C-2: a removal was lost");
        },
        ..Case::PLAIN
    },
    Case {
        name: "a bridge is removed | a device at one end of it is deassigned",
        relation: Relation::SameIommu,
        third: &[1, 2],
        before: |stage| {
            assert_eq!([stage.add(2), stage.assign(0)], [Ok(()), Ok(())]);
        },
        threads: &[|stage| stage.remove(2), |stage| stage.deassign(0)],
        check: |stage, outcomes| {
            assert_eq!(outcomes, [Ok(()), Ok(())], "C-8: {outcomes:?}");
            let [first, second] = [0, 1].map(|n: usize| stage.world.service.find(stage.devices[n].key()));
            let groups = [first, second].map(|info| info.map(|info| info.group));
            assert_ne!(groups[0], groups[1], "I-11: what the bridge alone held together is not one group");
        },
        ..Case::PLAIN
    },
    Case {
        name: "an add that the policy refuses | the same add",
        starts: Op::Deassign,
        before: |stage| assert_eq!(stage.remove(1), Ok(())),
        script: Script { allows: |_, request| matches!(request.why, Why::Assign), ..Script::PLAIN },
        threads: &[|stage| stage.try_add(1), |stage| stage.try_add(1)],
        check: |stage, outcomes| {
            let fits = |outcome: &Outcome| matches!(outcome, Err(Cause::GroupConflict { .. } | Cause::Busy { .. }));
            assert!(outcomes.iter().all(fits), "C-15: {outcomes:?}");
            assert!(stage.find(1).is_none(), "A-1: a refused add has left something");
        },
        shows: &["0 GroupConflict", "0 Busy"],
        ..Case::PLAIN
    },
    Case {
        name: "a quarantined group: one is assigned | the other is asked to go",
        starts: Op::Cleanse,
        threads: &[|stage| stage.assign(0), |stage| stage.ask_to_go(1).map(drop)],
        check: |stage, outcomes| {
            assert_eq!(outcomes, [Ok(()), Ok(())], "I-14: {outcomes:?}");
            assert_eq!(stage.hooks[0].resets(), 1, "I-14: assigned from quarantine without a reset");
            let mate = stage.hooks[1].resets();
            assert!(mate <= 1, "I-14: {mate} resets");
        },
        ..Case::PLAIN
    },
    Case {
        name: "a quarantined group: one is assigned | its domain is flushed",
        starts: Op::Cleanse,
        threads: &[
            |stage| stage.assign(0),
            |stage| stage.world.service.flush(&stage.world.domains[0]).map_err(|error| error.cause),
        ],
        check: |stage, outcomes| {
            assert_eq!(outcomes, [Ok(()), Ok(())], "I-14: {outcomes:?}");
            let resets = [0, 1].map(|n: usize| stage.hooks[n].resets());
            assert_eq!(resets, [1, 1], "I-14: a shared entry opens before its users were reset");
        },
        ..Case::PLAIN
    },
    Case {
        name: "a quarantine in a reset | the device is asked to go",
        starts: Op::Deassign,
        script: Script {
            reset: |stage, n, chain| {
                stage.nest(n, chain, |within| within.quarantine(&stage.devices[n], Quarantine::Faults));
            },
            ..Script::PLAIN
        },
        threads: &[|stage| stage.deassign(0), |stage| stage.ask_to_go(0).map(drop)],
        check: |stage, outcomes| {
            assert!(matches!(outcomes[0], Ok(()) | Err(Cause::Removed | Cause::Gone)), "C-2: {outcomes:?}");
            assert!(stage.find(0).is_none(), "C-2: a removal was lost");
        },
        ..Case::PLAIN
    },
    Case {
        name: "the device asks for its own removal in its reset | it is asked to go",
        relation: Relation::SameIommu,
        starts: Op::Deassign,
        script: Script {
            reset: |stage, n, chain| {
                stage.nest(n, chain, |within| {
                    let asked = within.remove(stage.devices[n].key());
                    let is_pending = matches!(asked, Ok(Removal::Pending));
                    assert!(is_pending, "C-4: {asked:?} of a device that the operation above is about");
                    asked
                });
            },
            ..Script::PLAIN
        },
        threads: &[|stage| stage.deassign(0), |stage| stage.ask_to_go(0).map(drop)],
        check: |stage, outcomes| {
            assert!(matches!(outcomes[0], Err(Cause::Removed | Cause::Gone)), "C-2: {outcomes:?}");
            assert!(matches!(outcomes[1], Ok(()) | Err(Cause::NotFound)), "C-2: {outcomes:?}");
            assert!(stage.find(0).is_none(), "C-2: a removal was lost");
        },
        shows: &["0 Removed", "1 Ok", "1 NotFound"],
        ..Case::PLAIN
    },
];

/// The first device's reset moves the second to the same domain; the reset of that adds the third, which overlaps both.
fn joins_two_frames(stage: &Stage, n: usize, chain: iommu_assign::assign::CallChain<'_>) {
    if n == 0 {
        stage.nest_again(0, chain, |within| within.reassign(&stage.devices[1], &stage.world.domains[1]));
    } else if stage.find(2).is_none() {
        stage.nest_again(1, chain, |within| within.add(stage.world.specs[2].clone()));
    }
}

fn already(stage: &Stage) -> Cause {
    Cause::AlreadyAssigned { domain: stage.world.domains[0].label().clone() }
}

/// All that the hook of a device has nested answered so.
fn nested_fits(stage: &Stage, n: usize, fits: impl Fn(&Outcome) -> bool) {
    for answer in stage.hooks[n].answers() {
        assert!(fits(&answer), "C-4: nested: {answer:?}");
    }
}
