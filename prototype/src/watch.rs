//! Isolation at every register write: an oracle for each SMMU, told who may reach what.
//!
//! A device may reach its own guest's page, and through entries that it shares the page of a mate's guest. While an
//! operation runs, the guest that the device comes from or goes to.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use iommu_assign::assign::{DeviceInfo, IommuKey, Label};
use machine::Machine;
use machine::oracle::Oracle;

use crate::guests::{Guest, PAGE};
use crate::stage::{Stage, many};
use crate::world::Subject;

/// One oracle for each SMMU: devices behind different ones may use the same IDs.
#[derive(Debug, Default)]
pub(crate) struct Watch(BTreeMap<IommuKey, Oracle>);

impl Watch {
    /// Looks at these SMMUs from now on.
    pub(crate) fn begin(machine: &Machine, units: impl IntoIterator<Item = IommuKey>) -> Self {
        let watched = units.into_iter().map(|unit| {
            let oracle = Oracle::default();
            oracle.watch(machine, unit, PAGE);
            (unit, oracle)
        });
        Self(watched.collect())
    }

    fn allow(&self, subject: &Subject, backings: &BTreeSet<u64>) {
        let backings: Vec<u64> = backings.iter().copied().collect();
        for (unit, oracle) in &self.0 {
            let streams = subject.spec.streams.iter().filter(|stream| stream.iommu() == *unit);
            let streams: Vec<(u32, u32)> = streams.map(|one| (one.id().value(), one.mask().value())).collect();
            if !streams.is_empty() {
                oracle.allow(&subject.label, &streams, &backings);
            }
        }
    }

    fn forget(&self, label: &Label) {
        self.0.values().for_each(|oracle| oracle.forget(label));
    }
}

impl Stage<'_> {
    /// An operation on `subject` begins that may lead to `guest`: the way there is allowed.
    pub(crate) fn permit(&self, subject: &Subject, guest: &Guest) {
        let companions = self.companions_of(subject);
        let concerned = |other: &&Rc<Subject>| companions.iter().any(|info| info.device.key() == other.key);
        for other in self.world.subjects.iter().filter(concerned) {
            let mut backings = self.may_reach(other);
            backings.insert(guest.backing);
            self.watch.allow(other, &backings);
        }
    }

    /// The operation has ended: what the registry says holds, and is looked at once more.
    pub(crate) fn settle(&self) {
        for subject in &self.world.subjects {
            if self.info(subject).is_some() {
                self.watch.allow(subject, &self.may_reach(subject));
            } else {
                self.watch.forget(&subject.label);
            }
        }
        for (unit, oracle) in &self.watch.0 {
            oracle.look_now(&self.world.machine, *unit, PAGE);
        }
    }

    /// Says what was seen.
    pub(crate) fn verdicts(&mut self) {
        let verdicts: Vec<_> = self.watch.0.iter().map(|(unit, oracle)| (*unit, oracle.verdict())).collect();
        let (mut all_writes, mut all_violations) = (0_usize, 0_usize);
        for (unit, (writes, violations)) in verdicts {
            let writes = usize::try_from(writes).unwrap_or(usize::MAX);
            let line = self.recorder.line("isolated", format!("{unit}, {}", many(writes, "register write")));
            let line = line.result(many(violations.len(), "violation"));
            let line = violations.iter().fold(line, |line, seen| line.detail(seen.clone()));
            line.expect(violations.is_empty() && writes > 0, "no stream to reach what is not its own, at any write");
            all_writes = all_writes.saturating_add(writes);
            all_violations = all_violations.saturating_add(violations.len());
        }
        let (devices, units) = (many(self.world.subjects.len(), "device"), many(self.watch.0.len(), "SMMU"));
        self.recorder.conclude(format!("Came out: {} with {devices} at {units}.", many(self.recorder.steps(), "step")));
        let (writes, violations) = (many(all_writes, "register write"), many(all_violations, "violation"));
        self.recorder
            .conclude(format!("After each of {writes} all streams were looked at: {violations} of isolation."));
    }

    fn may_reach(&self, subject: &Subject) -> BTreeSet<u64> {
        let guests = self.companions_of(subject).into_iter().filter_map(|info| self.guest_of(&info));
        guests.map(|(_, backing)| backing).collect()
    }

    /// The device itself, and whoever may share entries with it.
    fn companions_of(&self, subject: &Subject) -> Vec<DeviceInfo> {
        let units: BTreeSet<IommuKey> = subject.spec.streams.iter().map(|stream| stream.iommu()).collect();
        units.into_iter().flat_map(|unit| self.companions(unit, &subject.spec.streams)).collect()
    }
}
