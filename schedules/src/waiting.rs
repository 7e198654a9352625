//! The wait forms: whoever waits is woken, and no two wait for each other (contract C-2, C-4, C-5, C-8).

use iommu_assign::assign::Cause;

use crate::stage::{Case, Outcome, Script, Stage};
use crate::universe::{Op, Relation};

/// Each reset waits to take the other device from its domain.
const DEASSIGNS_THE_OTHER: Script = Script {
    reset: |stage, n, chain| {
        stage.nest(n, chain, |within| within.wait(None, |service| service.deassign(&stage.devices[n ^ 1])));
    },
    ..Script::PLAIN
};

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "same device: reassign | deassign",
        relation: Relation::SameIommu,
        starts: Op::Reassign,
        threads: &[|stage| stage.reassign(0), |stage| stage.deassign(0)],
        check: |_, outcomes| assert_eq!(outcomes[1], Ok(()), "C-2: it waited, and did not get its turn"),
        shows: &["0 Ok", "0 NotAssigned"],
        ..Case::PLAIN
    },
    Case {
        name: "same group: assign | assign",
        relation: Relation::SameGroup,
        starts: Op::Assign,
        threads: &[|stage| stage.assign(0), |stage| stage.assign(1)],
        check: |_, outcomes| assert_eq!(outcomes, [Ok(()), Ok(())], "C-2: both waited for their turn"),
        ..Case::PLAIN
    },
    Case {
        name: "same group: add | assign",
        relation: Relation::SameGroup,
        starts: Op::Assign,
        before: |stage| assert_eq!(stage.remove(1), Ok(())),
        threads: &[|stage| stage.add(1), |stage| stage.assign(0)],
        check: |_, outcomes| assert_eq!(outcomes, [Ok(()), Ok(())], "C-2: both waited for their turn"),
        ..Case::PLAIN
    },
    Case {
        name: "same group: add | remove and wait",
        relation: Relation::SameGroup,
        starts: Op::Assign,
        before: |stage| assert_eq!(stage.remove(1), Ok(())),
        threads: &[|stage| stage.add(1), |stage| stage.remove(0)],
        check: |stage, outcomes| {
            removed(stage, &outcomes[1..]);
            assert_eq!(outcomes[0], Ok(()), "C-2: it waited, and did not get its turn");
        },
        ..Case::PLAIN
    },
    Case {
        name: "same group: add | add that is refused",
        relation: Relation::SameGroup,
        starts: Op::Assign,
        before: |stage| assert_eq!(stage.remove(1), Ok(())),
        threads: &[|stage| stage.add(1), |stage| stage.add(0)],
        check: |_, outcomes| {
            assert_eq!(outcomes[0], Ok(()), "C-2: it waited, and did not get its turn");
            assert!(matches!(outcomes[1], Err(Cause::AlreadyRegistered { .. })), "C-2: {:?}", outcomes[1]);
        },
        ..Case::PLAIN
    },
    Case {
        name: "same group: deassign | deassign | deassign",
        relation: Relation::SameGroup,
        starts: Op::Deassign,
        threads: &[|stage| stage.deassign(0), |stage| stage.deassign(1), |stage| stage.deassign(0)],
        check: |_, outcomes| assert_eq!(outcomes[1], Ok(()), "C-2: it waited, and did not get its turn"),
        shows: &["0 NotAssigned", "2 NotAssigned"],
        ..Case::PLAIN
    },
    Case {
        name: "same device: remove and wait | assign",
        relation: Relation::SameIommu,
        starts: Op::Assign,
        threads: &[|stage| stage.remove(0), |stage| stage.assign(0)],
        check: removed,
        shows: &["1 Ok", "1 Removed", "1 Gone"],
        ..Case::PLAIN
    },
    Case {
        name: "same device: remove and wait | reassign",
        relation: Relation::SameIommu,
        starts: Op::Reassign,
        threads: &[|stage| stage.remove(0), |stage| stage.reassign(0)],
        check: removed,
        shows: &["1 Ok", "1 Removed", "1 Gone"],
        ..Case::PLAIN
    },
    Case {
        name: "same device: remove and wait | call inside",
        relation: Relation::SameIommu,
        starts: Op::Assign,
        threads: &[|stage| stage.remove(0), |stage| stage.call(0)],
        check: removed,
        shows: &["1 Ok", "1 Gone"],
        ..Case::PLAIN
    },
    Case {
        name: "same device: remove and wait | remove and wait | call inside",
        relation: Relation::SameIommu,
        starts: Op::Assign,
        threads: &[|stage| stage.remove(0), |stage| stage.remove(0), |stage| stage.call(0)],
        check: |stage, outcomes| removed_by_one(stage, 0, &outcomes[..2]),
        shows: &["2 Ok", "2 Gone"],
        ..Case::PLAIN
    },
    Case {
        name: "same device: remove and wait | reassign | call inside",
        relation: Relation::SameIommu,
        starts: Op::Reassign,
        threads: &[|stage| stage.remove(0), |stage| stage.reassign(0), |stage| stage.call(0)],
        check: removed,
        shows: &["1 Removed", "2 Ok"],
        ..Case::PLAIN
    },
    Case {
        name: "same group: remove and wait | deassign | call inside",
        relation: Relation::SameGroup,
        starts: Op::Deassign,
        threads: &[|stage| stage.remove(0), |stage| stage.deassign(1), |stage| stage.call(0)],
        check: |stage, outcomes| {
            removed(stage, outcomes);
            assert_eq!(outcomes[1], Ok(()), "C-2: it waited, and did not get its turn");
        },
        shows: &["2 Ok", "2 Gone"],
        ..Case::PLAIN
    },
    Case {
        name: "parent, child: remove tree | remove and wait the parent",
        relation: Relation::ParentChild,
        starts: Op::Assign,
        threads: &[Stage::remove_tree, |stage| stage.remove(0)],
        check: |_, outcomes| assert_eq!(outcomes[0], Ok(())),
        shows: &["1 Ok", "1 HasChildren"],
        ..Case::PLAIN
    },
    Case {
        name: "parent, child: remove tree | remove and wait the child | call inside",
        relation: Relation::ParentChild,
        starts: Op::Assign,
        threads: &[Stage::remove_tree, |stage| stage.remove(1), |stage| stage.call(1)],
        check: |stage, outcomes| removed_by_one(stage, 1, &outcomes[1..2]),
        shows: &["2 Ok", "2 Gone"],
        ..Case::PLAIN
    },
    Case {
        name: "same group: add the third | assign",
        third: &[1],
        threads: &[|stage| stage.add(2), |stage| stage.assign(0)],
        check: |_, outcomes| assert_eq!(outcomes, [Ok(()), Ok(())], "C-2: both waited for their turn"),
        ..Case::PLAIN
    },
    Case {
        name: "unrelated: add the third, which overlaps both | assign | assign",
        relation: Relation::SameIommu,
        third: &[1, 2],
        threads: &[|stage| stage.add(2), |stage| stage.assign(0), |stage| stage.assign(1)],
        check: |_, outcomes| assert_eq!(outcomes, [Ok(()), Ok(()), Ok(())], "C-2: all waited for their turn"),
        ..Case::PLAIN
    },
    Case {
        name: "parent shares: add the child | deassign the parent",
        relation: Relation::SharingParent,
        starts: Op::Deassign,
        before: |stage| assert_eq!(stage.remove(1), Ok(())),
        threads: &[|stage| stage.add(1), |stage| stage.deassign(0)],
        check: |_, outcomes| assert_eq!(outcomes, [Ok(()), Ok(())], "C-2: both waited for their turn"),
        ..Case::PLAIN
    },
    Case {
        name: "unrelated: deassign | assign to the domain whose context drains",
        relation: Relation::SameIommu,
        before: |stage| assert_eq!(stage.assign(0), Ok(())),
        threads: &[|stage| stage.deassign(0), |stage| stage.assign(1)],
        check: |_, outcomes| assert_eq!(outcomes, [Ok(()), Ok(())], "C-2: both waited for their turn"),
        ..Case::PLAIN
    },
    Case {
        name: "same device: add | remove and wait | add",
        relation: Relation::SameIommu,
        before: |stage| assert_eq!(stage.remove(0), Ok(())),
        threads: &[|stage| stage.add(0), |stage| stage.remove(0), |stage| stage.add(0)],
        check: |_, outcomes| {
            let added = [0, 2].into_iter().filter(|n: &usize| outcomes[*n] == Ok(())).count();
            let removed = usize::from(outcomes[1] == Ok(()));
            let overtaken = outcomes.iter().filter(|outcome| **outcome == Err(Cause::Removed)).count();
            assert!(added + overtaken >= 1, "C-2: no add got its turn: {outcomes:?}");
            assert!(overtaken <= removed, "C-15: {outcomes:?}");
        },
        shows: &["0 Ok", "0 AlreadyRegistered", "0 Removed", "1 NotFound", "1 Ok"],
        ..Case::PLAIN
    },
    Case {
        name: "add | unregister its IOMMU",
        relation: Relation::SameIommu,
        before: |stage| assert_eq!([stage.remove(0), stage.remove(1)], [Ok(()), Ok(())]),
        threads: &[|stage| stage.add(0), Stage::unregister],
        check: |_, outcomes| match outcomes {
            [Ok(()), Err(Cause::InUse { .. })] | [Err(Cause::ProviderMissing(_)), Ok(())] => {}
            outcomes => panic!("C-9: {outcomes:?}"),
        },
        shows: &["0 Ok", "1 Ok"],
        ..Case::PLAIN
    },
    Case {
        name: "remove and wait | destroy its domain",
        relation: Relation::SameIommu,
        starts: Op::Deassign,
        before: |stage| assert_eq!(stage.deassign(1), Ok(())),
        threads: &[|stage| stage.remove(0), Stage::destroy],
        check: |_, outcomes| {
            assert_eq!(outcomes[0], Ok(()), "C-8: whoever waits for the removal hears that it is done");
            assert!(matches!(outcomes[1], Ok(()) | Err(Cause::InUse { .. })), "I-10: {:?}", outcomes[1]);
        },
        shows: &["1 Ok", "1 InUse"],
        ..Case::PLAIN
    },
    Case {
        name: "assign | destroy its domain",
        relation: Relation::SameIommu,
        threads: &[|stage| stage.assign(0), Stage::destroy],
        check: |_, outcomes| match outcomes {
            [Ok(()), Err(Cause::InUse { .. })] | [Err(Cause::DomainGone { .. }), Ok(())] => {}
            outcomes => panic!("I-10: {outcomes:?}"),
        },
        shows: &["0 Ok", "1 Ok"],
        ..Case::PLAIN
    },
    Case {
        name: "unrelated: each reset waits to deassign the other",
        relation: Relation::SameIommu,
        starts: Op::Reassign,
        script: DEASSIGNS_THE_OTHER,
        threads: &[|stage| stage.reassign(0), |stage| stage.reassign(1)],
        check: nested,
        shows: &["second's hook: Ok", "second's hook: WouldDeadlock", "first's hook: Ok"],
        ..Case::PLAIN
    },
    Case {
        name: "parent, child: each reset waits to deassign the other",
        relation: Relation::ParentChild,
        starts: Op::Reassign,
        script: DEASSIGNS_THE_OTHER,
        threads: &[|stage| stage.reassign(0), |stage| stage.reassign(1)],
        check: nested,
        shows: &["second's hook: Ok", "second's hook: WouldDeadlock", "first's hook: Ok"],
        ..Case::PLAIN
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
    let [first, second] = [0, 1].map(|n: usize| stage.hooks[n].answers());
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
