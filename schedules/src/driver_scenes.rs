//! Scenes for the driver alone: what pairs cannot show (contract C-15, I-6 to I-8, I-15, A-1).

use std::sync::Arc;

use iommu_assign::assign::{DeviceId, Iommu, IommuError, Label};
use smmu_model::Injection;

use crate::driver::{KEY, Part, Step, device};

/// Runs two calls beside each other.
fn beside<A: 'static, B>(part: &Arc<Part>, one: fn(&Part) -> A, two: impl FnOnce(&Part) -> B) -> (A, B) {
    let other = {
        let part = part.clone();
        loom::thread::spawn(move || one(&part))
    };
    let two = two(part);
    (other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), two)
}

fn added(part: &Part, n: usize, name: &str, streams: &[(u32, u32)], domains: &[u64]) {
    part.allow(name, streams, domains);
    assert_eq!(part.add(device(n), streams, &|_| true), Ok(()), "the scene cannot be set up");
}

fn remove(part: &Part, n: usize) -> Result<(), IommuError> {
    part.smmu.block(&[device(n)]).and_then(|_| part.smmu.withdraw(device(n))).map(drop)
}

/// No domain has two banks.
fn check_banks(part: &Part) {
    part.check();
    let mut domains = Vec::new();
    part.smmu.usage(&mut |usage| {
        if let Some(domain) = usage.domain.filter(|_| usage.resource == iommu_assign::assign::Resource::ContextBanks) {
            domains.push((domain, usage.index));
        }
    });
    domains.sort_unstable();
    domains.dedup();
    for pair in domains.windows(2) {
        assert_ne!(pair[0].0, pair[1].0, "a domain has two banks: {domains:?}");
    }
}

/// Two devices share a stream, and neither caller has claimed the other's: the hold that reserves is the judge.
fn judge() {
    let part = Arc::new(Part::new());
    part.allow("first", &[(1, 0)], &[0]);
    part.allow("second", &[(1, 0)], &[0]);
    let add = |part: &Part| part.add(device(1), &[(1, 0)], &|_| false);
    let both = beside(&part, |part| part.add(device(0), &[(1, 0)], &|_| false), add);
    let foreign = |other: DeviceId| Err(IommuError::Foreign(other));
    let fits = both == (Ok(()), foreign(device(0))) || both == (foreign(device(1)), Ok(()));
    assert!(fits, "I-11: {both:?}");
    part.check();
}

/// Two reassigns into one domain, with no bank free but those that the two leave.
fn reassign_both() {
    let part = Arc::new(Part::new());
    added(&part, 0, "first", &[(1, 0)], &[0, 2]);
    added(&part, 1, "second", &[(2, 0)], &[1, 2]);
    assert_eq!([part.assign(device(0), 0), part.assign(device(1), 1)], [Ok(()), Ok(())]);
    let (one, two) = beside(&part, |part| part.reassign(device(0), 2), |part| part.reassign(device(1), 2));
    for outcome in [one, two] {
        let fits = matches!(outcome, Ok(()) | Err((Step::Plan, IommuError::Busy)));
        assert!(fits, "A-1: {outcome:?}: what was planned cannot be refused");
    }
    assert!(one.is_ok() || two.is_ok(), "both were busy with each other for good");
    check_banks(&part);
    // Whoever was busy gets its turn.
    for (n, outcome) in [(0, one), (1, two)] {
        if outcome.is_err() {
            assert_eq!(part.reassign(device(n), 2), Ok(()), "A-4: tried again");
        }
    }
    check_banks(&part);
}

/// A domain's only device leaves it while another comes.
fn join_draining() {
    let part = Arc::new(Part::new());
    added(&part, 0, "first", &[(1, 0)], &[0]);
    added(&part, 1, "second", &[(2, 0)], &[0]);
    assert_eq!(part.assign(device(0), 0), Ok(()));
    let (blocked, assigned) =
        beside(&part, |part| part.smmu.block(&[device(0)]).map(drop), |part| part.assign(device(1), 0));
    assert_eq!(blocked, Ok(()));
    let fits = matches!(assigned, Ok(()) | Err((Step::Plan, IommuError::Busy)));
    assert!(fits, "A-1: {assigned:?}: what was planned cannot be refused");
    check_banks(&part);
}

/// A device is blocked, with DMA in flight, while another comes into its bank: nothing passes a bank that is switched off.
fn drain() {
    let part = Arc::new(Part::new());
    added(&part, 0, "first", &[(1, 0)], &[0]);
    added(&part, 1, "second", &[(2, 0)], &[1, 2]);
    assert_eq!([part.assign(device(0), 0), part.assign(device(1), 1)], [Ok(()), Ok(())]);
    part.send(1);
    part.send(2);
    let (blocked, moved) =
        beside(&part, |part| part.smmu.block(&[device(0)]).map(drop), |part| part.reassign(device(1), 2));
    assert_eq!(blocked, Ok(()));
    assert!(matches!(moved, Ok(()) | Err((Step::Plan, IommuError::Busy))), "A-1: {moved:?}");
    check_banks(&part);
}

/// A device leaves an entry that captures more than its mate has; another comes for the rest.
fn refit() {
    let part = Arc::new(Part::new());
    added(&part, 0, "first", &[(2, 0), (3, 0)], &[0]);
    added(&part, 1, "second", &[(3, 0)], &[0]);
    let add_third = |part: &Part| {
        part.allow("third", &[(2, 0)], &[1]);
        part.add(device(2), &[(2, 0)], &|other| other == device(2))
    };
    let (removed, came) = beside(&part, |part| remove(part, 0), add_third);
    assert_eq!(removed, Ok(()));
    if let Err(error) = came {
        assert_eq!(error, IommuError::Foreign(device(0)), "I-15: its IDs are another device's still");
        assert_eq!(remove(&part, 2), Ok(()));
        assert_eq!(add_third(&part), Ok(()), "I-15: the entry was not refitted");
    }
    part.oracle.forget(&Label::from("first"));
    assert_eq!([part.assign(device(1), 0), part.assign(device(2), 1)], [Ok(()), Ok(())], "I-15: they share an entry");
    part.check();
}

/// A drain is not confirmed: two callers come to the device before it is, and after.
fn owed() {
    let part = Arc::new(Part::new());
    added(&part, 0, "first", &[(1, 0)], &[0, 1]);
    assert_eq!(part.assign(device(0), 0), Ok(()));
    part.machine.smmu(KEY, |smmu| smmu.inject(Injection::SyncTimesOut(1)));
    let is_late = |error: &IommuError| matches!(error, IommuError::SyncTimeout(_) | IommuError::Busy);
    let blocked = part.smmu.block(&[device(0)]);
    assert!(matches!(blocked, Err(IommuError::SyncTimeout(_))), "I-8: {blocked:?}");
    let (again, planned) = beside(
        &part,
        |part| part.smmu.block(&[device(0)]).map(drop),
        |part| part.smmu.plan(&[device(0)], &part.spaces[1], &|_| true),
    );
    assert!(again.as_ref().is_err_and(is_late), "I-6: Ok over a drain that is owed: {again:?}");
    assert!(planned.as_ref().is_err_and(is_late), "I-6: Ok over a drain that is owed: {planned:?}");
    part.machine.smmu(KEY, smmu_model::Smmu::clear_injections);
    let (again, moved) =
        beside(&part, |part| part.smmu.block(&[device(0)]).map(drop), |part| part.assign(device(0), 1));
    assert!(matches!(again, Ok(()) | Err(IommuError::Busy)), "A-4: {again:?}");
    assert!(matches!(moved, Ok(()) | Err((_, IommuError::Busy))), "A-4: {moved:?}");
    check_banks(&part);
    assert_eq!(remove(&part, 0), Ok(()), "A-4: it can be removed");
    let domain = part.spaces[0].domain;
    assert_eq!(part.smmu.forget(domain), Ok(()), "A-4: its domain can end");
}

/// A domain ends while its last device leaves it.
fn forget() {
    let part = Arc::new(Part::new());
    added(&part, 0, "first", &[(1, 0)], &[0]);
    assert_eq!(part.assign(device(0), 0), Ok(()));
    let (blocked, forgotten) = beside(
        &part,
        |part| part.smmu.block(&[device(0)]).map(drop),
        |part| {
            let forgotten = part.smmu.forget(part.spaces[0].domain);
            if forgotten.is_ok() {
                // Its tables are the hypervisor's again: what still reaches them is seen by the oracle.
                part.allow("first", &[(1, 0)], &[]);
                part.oracle.look_now(&part.machine, KEY, crate::driver::PAGE);
            }
            forgotten
        },
    );
    assert_eq!(blocked, Ok(()));
    assert!(matches!(forgotten, Ok(()) | Err(IommuError::InUse | IommuError::SyncTimeout(_))), "I-10: {forgotten:?}");
    part.check();
}

/// What is explored: a name, and one run.
pub(crate) const SCENES: &[(&str, fn())] = &[
    ("reserve | reserve, unclaimed", judge),
    ("reassign | reassign, into a third domain", reassign_both),
    ("leave a domain | join it", join_draining),
    ("a drain with DMA in flight | reassign", drain),
    ("leave a wide entry | come for the rest", refit),
    ("an owed drain: block | plan", owed),
    ("leave a domain | forget it", forget),
];
