//! Devices that are registered anew, and devices that end with their parent, while others look (contract C-5, C-15, C-18,
//! I-10, I-14).
//!
//! To others a reregistration is a removal, an add and an assign of each device, between which they may come. Each case lists
//! what a sequential order of these and of the other operation answers and leaves; `Busy` is nothing done by the step that says
//! it.

use iommu_assign::assign::{Cause, DeviceState, Quarantine, Stream, StreamId, StreamMask};

use crate::stage::{Case, Outcome, Script, Stage, word};
use crate::universe::{Op, Relation};
use crate::world::IOMMU;

/// The stream of the first device when it is registered anew. It had stream 1.
const NEW: u32 = 3;

/// The first device is one guest's, the second nobody's.
const ANEW: Case = Case {
    relation: Relation::SameIommu,
    starts: Op::Deassign,
    before: |stage| assert_eq!(stage.deassign(1), Ok(())),
    ..Case::PLAIN
};

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "reregister | assign to another domain",
        threads: &[reregister, assign_elsewhere],
        check: |stage, outcomes| {
            let allowed = [
                "Ok | AlreadyAssigned: one [3]",
                "Ok | Gone: one [3]",
                "Ok | Busy: one [3]",
                // It came before the owner had it back.
                "AlreadyAssigned | Ok: two [3]",
                "Busy | Ok: two [3]",
            ];
            ends(stage, outcomes, &allowed);
            let resets = stage.hooks[0].resets();
            assert_eq!(resets, usize::from(outcomes[1].is_ok()), "I-14: a reset between two owners, and no other");
        },
        shows: &["0 Ok", "0 AlreadyAssigned", "1 Ok", "1 Gone"],
        ..ANEW
    },
    Case {
        name: "reregister | assign to another domain, then quarantine",
        threads: &[reregister, |stage| {
            assign_elsewhere(stage)?;
            let device = stage.find(0).ok_or(Cause::Gone)?;
            stage.world.service.quarantine(&device, Quarantine::Faults).map_err(|error| error.cause)
        }],
        check: |stage, outcomes| {
            if outcomes == [Ok(()), Ok(())] {
                assert_eq!(stage.hooks[0].resets(), 2, "I-14: the owner got what another guest left");
            }
        },
        shows: &["0 Ok", "1 Ok"],
        ..ANEW
    },
    Case {
        name: "reregister | remove",
        threads: &[reregister, |stage| stage.ask_to_go(0).map(drop)],
        check: |stage, outcomes| {
            let allowed = [
                "Ok | Ok: gone []",
                "Gone | Ok: gone []",
                "NotFound | Ok: gone []",
                "Busy | Ok: gone []",
                "Removed | Ok: gone []",
                "Ok | NotFound: one [3]",
            ];
            ends(stage, outcomes, &allowed);
        },
        shows: &["0 Ok", "0 Gone", "0 Removed", "1 Ok", "1 NotFound"],
        ..ANEW
    },
    Case {
        name: "reregister | add of a device that overlaps it",
        third: &[NEW],
        threads: &[reregister, |stage| stage.try_add(2)],
        check: |stage, outcomes| {
            // Where its own add is busy it is out, which it says, and is to be offered again.
            let allowed = ["Ok | Ok: one [3]", "Ok | Busy: one [3]", "Busy | Ok: gone []", "Busy | Busy: gone []"];
            let allowed = [&allowed[..], &["Busy | Ok: Quarantined []"]].concat();
            ends(stage, outcomes, &allowed);
        },
        shows: &["0 Ok", "0 Busy", "1 Ok", "1 Busy"],
        ..ANEW
    },
    Case {
        name: "reregister | its IOMMU is forced out of service",
        threads: &[reregister, |stage| stage.world.service.force_unregister_iommu(IOMMU).map_err(|error| error.cause)],
        check: |stage, outcomes| {
            let allowed = [
                "Ok | Ok: one []",
                "Iommu | Ok: gone []",
                "ProviderMissing | Ok: gone []",
                "Iommu | Ok: Quarantined []",
            ];
            ends(stage, outcomes, &allowed);
        },
        shows: &["0 Ok", "0 Iommu", "0 ProviderMissing"],
        ..ANEW
    },
    Case {
        name: "reregister | destroy its domain",
        threads: &[reregister, |stage| {
            stage.world.service.destroy_domain(&stage.world.domains[0]).map_err(|error| error.cause)
        }],
        check: |stage, outcomes| ends(stage, outcomes, &["Ok | InUse: one [3]", "Ok | Busy: one [3]"]),
        shows: &["1 InUse", "1 Busy"],
        ..ANEW
    },
    Case {
        name: "a child ends with its parent: remove the parent | assign the child",
        relation: Relation::ParentChild,
        ends_with_parent: true,
        threads: &[|stage| stage.ask_to_go(0).map(drop), |stage| stage.assign(1)],
        check: |stage, outcomes| ends(stage, outcomes, &["HasChildren | Ok: Blocked [2]"]),
        ..Case::PLAIN
    },
    Case {
        name: "a child ends with its parent: remove tree | assign the child",
        relation: Relation::ParentChild,
        ends_with_parent: true,
        threads: &[Stage::remove_tree, |stage| stage.assign(1)],
        check: |stage, outcomes| {
            ends(stage, outcomes, &["Ok | Ok: gone []", "Ok | Removed: gone []", "Ok | Gone: gone []"]);
            assert!(stage.find(1).is_none(), "C-5: a child outlives its parent");
        },
        shows: &["1 Ok", "1 Removed", "1 Gone"],
        ..Case::PLAIN
    },
    Case {
        name: "a child ends with its parent: deassign the parent | add the child",
        relation: Relation::ParentChild,
        ends_with_parent: true,
        starts: Op::Deassign,
        script: Script {
            reset: |stage, _, _| {
                assert!(stage.find(1).is_none(), "C-5: a child does not outlive a reset of its parent")
            },
            ..Script::PLAIN
        },
        before: |stage| assert_eq!(stage.remove(1), Ok(())),
        threads: &[
            |stage| stage.world.service.deassign(&stage.devices[0]).map(drop).map_err(|error| error.cause),
            |stage| stage.try_add(1),
        ],
        check: |stage, outcomes| {
            let allowed =
                ["Ok | Ok: Blocked []", "HasChildren | Ok: one [1]", "Ok | Busy: Blocked []", "Busy | Ok: one [1]"];
            ends(stage, outcomes, &allowed);
        },
        shows: &["0 Ok", "0 HasChildren", "1 Ok", "1 Busy"],
        ..Case::PLAIN
    },
];

fn reregister(stage: &Stage) -> Outcome {
    let device = stage.find(0).ok_or(Cause::Gone)?;
    let stream = Stream::new(IOMMU, StreamId::new(NEW), StreamMask::NONE);
    let mut change = || {
        let mut spec = stage.world.specs[0].clone();
        spec.streams = vec![stream];
        vec![spec]
    };
    let results = stage.world.service.reregister(&[device], &mut change, &mut || false).map_err(|error| error.cause)?;
    results.into_iter().try_for_each(|one| one.result.map_err(|error| error.cause))
}

fn assign_elsewhere(stage: &Stage) -> Outcome {
    let device = stage.find(0).ok_or(Cause::Gone)?;
    stage.world.service.assign(&device, &stage.world.domains[1]).map_err(|error| error.cause)
}

/// What was answered, whose the first device is and which streams reach a domain is one of these.
fn ends(stage: &Stage, outcomes: &[Outcome], allowed: &[&str]) {
    let info = stage.world.service.find(stage.world.specs[0].key);
    let whose = info.map_or("gone".into(), |info| match (info.domain, info.state) {
        (Some(domain), _) => domain.to_string(),
        (None, DeviceState::Quarantined(_)) => "Quarantined".into(),
        (None, state) => format!("{state:?}"),
    });
    let answers: Vec<String> = outcomes.iter().map(word).collect();
    let told = format!("{}: {whose} {:?}", answers.join(" | "), stage.world.live_streams());
    assert!(allowed.contains(&told.as_str()), "C-15: {told}");
}
