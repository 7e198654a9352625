//! Each operation of the scenario: carried out, counted, and compared with what was expected.

use std::collections::BTreeMap;
use std::iter;
use std::rc::Rc;

use iommu_assign::assign::{Cause, Device, DeviceInfo, DeviceState, DomainId, Error, IommuKey, Label, Left, Removal};
use smmu_model::Counters;

use crate::guests::{self, Guest, PAGE};
use crate::policy::Rules;
use crate::recorder::Recorder;
use crate::watch::Watch;
use crate::world::{Subject, World, between};

/// The machine, and the score.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) recorder: &'a mut Recorder,
    /// Each domain's guest: its name, and where its page is.
    pub(crate) guests: BTreeMap<DomainId, (Label, u64)>,
    pub(crate) watch: Watch,
}

impl<'a> Stage<'a> {
    /// A stage without guests.
    pub(crate) fn new(world: &'a mut World, recorder: &'a mut Recorder) -> Self {
        let units = world.in_service().map(|(unit, _)| unit.key);
        let watch = Watch::begin(&world.machine, units);
        let stage = Self { world, recorder, guests: BTreeMap::new(), watch };
        // From here on devices try DMA while their hooks run.
        let _ = stage.world.attempts.take();
        stage.settle();
        stage
    }

    /// The device's registration now, if it has one.
    pub(crate) fn info(&self, subject: &Subject) -> Option<DeviceInfo> {
        self.world.service.find(subject.key)
    }

    /// The domain that the device is assigned to.
    pub(crate) fn owner(&self, subject: &Subject) -> Option<DomainId> {
        match self.info(subject)?.state {
            DeviceState::Assigned(domain) => Some(domain),
            _ => None,
        }
    }

    /// The devices of the same group, itself excepted.
    pub(crate) fn mates(&self, subject: &Subject) -> Vec<Rc<Subject>> {
        let group = self.info(subject).map(|info| info.group);
        let is_mate = |other: &&Rc<Subject>| {
            other.key != subject.key && group.is_some() && self.info(other).map(|info| info.group) == group
        };
        self.world.subjects.iter().filter(is_mate).cloned().collect()
    }

    pub(crate) fn counted<T>(&self, act: impl FnOnce(&World) -> T) -> (T, Counters) {
        let before = self.world.machine.all_counters();
        let result = act(self.world);
        (result, between(before, self.world.machine.all_counters()))
    }

    // --- guests ---

    /// Makes a guest with one page mapped.
    pub(crate) fn create(&mut self, name: &str, number: u64) -> Option<Guest> {
        let limits = self.world.service.limits()?;
        let (mut tables, backing) = guests::tables(&self.world.machine, number, limits);
        for doorbell in self.world.doorbells.iter() {
            tables.map(doorbell.guest_page, doorbell.page, true);
        }
        let label = Label::from(name);
        let stage2 = tables.stage2();
        let (made, cost) = self.counted(|world| world.service.create_domain(label.clone(), stage2));
        let line = self.recorder.line("create", name).cost(cost);
        match made {
            Ok(domain) => {
                let bits = stage2.ipa_bits;
                let detail =
                    format!("{bits}-bit guest addresses, 4 KiB pages; page {PAGE:#x} is memory at {backing:#x}");
                line.result("created").detail(detail).expect(cost.writes == 0, "no register written");
                self.guests.insert(domain.id(), (label.clone(), backing));
                Some(Guest { label, domain, tables, backing })
            }
            Err(error) => {
                line.result("refused").detail(error.to_string()).expect(false, "the guest to be created");
                None
            }
        }
    }

    /// Destroys a guest; `InUse` is what is expected while it has devices.
    pub(crate) fn destroy(&mut self, guest: &Guest, in_use: Option<usize>) {
        let (done, cost) = self.counted(|world| world.service.destroy_domain(&guest.domain));
        let line = self.recorder.line("destroy", guest.label.to_string()).cost(cost);
        match (done, in_use) {
            (Ok(()), expected) => line.result("destroyed").expect(expected.is_none(), "to be refused while in use"),
            (Err(error), Some(devices)) => {
                let counted = matches!(error.cause, Cause::InUse { devices: told, .. } if told == devices);
                let held = counted && cost.writes == 0;
                line.result("refused").detail(words(&error)).expect(held, "to be in use, no register written");
            }
            (Err(error), None) => line.result("refused").detail(words(&error)).expect(false, "to be destroyed"),
        }
    }

    /// Takes the guest's page away from it, in the tables alone.
    pub(crate) fn unmap(&mut self, guest: &mut Guest) {
        let ((), cost) = self.counted(|_| guest.tables.unmap(PAGE));
        let line = self.recorder.line("unmap", format!("{PAGE:#x} of {}", guest.label)).cost(cost);
        line.result("unmapped in the tables").expect(cost == Counters::default(), "no register access");
    }

    /// Gives the guest its page back.
    pub(crate) fn map(&mut self, guest: &mut Guest) {
        let backing = guest.backing;
        let ((), cost) = self.counted(|_| guest.tables.map(PAGE, backing, true));
        let line = self.recorder.line("map", format!("{PAGE:#x} of {}", guest.label)).cost(cost);
        line.result("mapped in the tables").expect(cost == Counters::default(), "no register access");
    }

    /// Makes the SMMUs forget what they cached of the guest's tables.
    pub(crate) fn flush(&mut self, guest: &Guest) {
        let (done, cost) = self.counted(|world| world.service.flush(&guest.domain));
        let line = self.recorder.line("flush", guest.label.to_string()).cost(cost);
        match done {
            Ok(()) => line.result("flushed").expect(cost.writes > 0, "an invalidation and a sync"),
            Err(error) => line.result("failed").detail(words(&error)).expect(false, "to be flushed"),
        }
    }

    // --- devices ---

    /// Lets the operator name a device, and all that share streams with it, for a guest. Firmware's marks need no help.
    pub(crate) fn name(&mut self, subject: &Subject, guest: &Guest) {
        for name in self.named(subject, guest) {
            self.recorder.event("name", &format!("{name} to {}", guest.label), "by the operator");
        }
    }

    /// The same without a word. Returns who was not named before.
    pub(crate) fn named(&self, subject: &Subject, guest: &Guest) -> Vec<Label> {
        let Rules::Named(operator) = &self.world.rules else { return Vec::new() };
        let mates = self.mates(subject);
        let names = iter::once(&subject.label).chain(mates.iter().map(|mate| &mate.label));
        names.filter(|name| operator.name(name, &guest.label)).cloned().collect()
    }

    /// Assigns a device, which must succeed.
    pub(crate) fn assign(&mut self, subject: &Subject, guest: &Guest) {
        self.name(subject, guest);
        self.permit(subject, guest);
        let (done, cost) = self.moved(subject, |world, device| world.service.assign(device, &guest.domain));
        self.settle();
        let line = self.recorder.line("assign", format!("{} to {}", subject.label, guest.label)).cost(cost);
        match done {
            Ok(()) => line.result("assigned").expect(true, ""),
            Err(error) => line.result("refused").detail(error).expect(false, "to be assigned"),
        }
    }

    /// Tries to assign a device, which must be refused for a reason that `fits`, and nothing written.
    pub(crate) fn assign_refused(
        &mut self,
        device: &Device,
        guest: &Guest,
        expected: &str,
        fits: impl FnOnce(&Cause) -> bool,
    ) {
        let (done, cost) = self.counted(|world| world.service.assign(device, &guest.domain));
        let line = self.recorder.line("assign", format!("{} to {}", device.label(), guest.label)).cost(cost);
        match done {
            Ok(()) => line.result("assigned").expect(false, expected),
            Err(error) => {
                let held = fits(&error.cause) && error.left == Left::Unchanged && cost.writes == 0;
                line.result("refused").detail(words(&error)).expect(held, expected);
            }
        }
    }

    /// Moves a device to another guest, which must succeed; the device tries DMA in the middle, which must fault.
    pub(crate) fn reassign(&mut self, subject: &Subject, guest: &Guest) {
        self.name(subject, guest);
        self.permit(subject, guest);
        let (done, cost) = self.moved(subject, |world, device| world.service.reassign(device, &guest.domain));
        self.settle();
        let line = self.recorder.line("reassign", format!("{} to {}", subject.label, guest.label)).cost(cost);
        match done {
            Ok(()) => line.result("reassigned").expect(true, ""),
            Err(error) => line.result("refused").detail(error).expect(false, "to be reassigned"),
        }
        self.attempts(subject, &["quiesce", "reset"]);
    }

    /// Takes a device from its guest. Mates with the same guest that share its streams keep those translated.
    pub(crate) fn deassign(&mut self, subject: &Subject) {
        let owner = self.owner(subject);
        let mates: Vec<_> = self.mates(subject).into_iter().filter(|mate| self.owner(mate) == owner).collect();
        let keepers: Vec<_> = mates.iter().filter(|mate| shares(subject, mate)).collect();
        let (done, cost) = self.moved(subject, |world, device| world.service.deassign(device));
        self.settle();
        let line = self.recorder.line("deassign", subject.label.to_string()).cost(cost);
        match done {
            Ok(done) => {
                let names: Vec<&Label> = done.still_reachable.iter().collect();
                // An entry of the group can serve streams of several members, so that more than those keep it.
                let all_kept = keepers.iter().all(|keeper| names.contains(&&keeper.label));
                let held = all_kept && names.iter().all(|name| mates.iter().any(|mate| mate.label == **name));
                if names.is_empty() {
                    line.result("in fault").expect(held, "still reachable through who shares its streams");
                } else {
                    let names = names.into_iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                    let detail = format!("what it shares with {names} stays translated");
                    line.result("still reachable").detail(detail).expect(held, "cut off from the guest");
                }
            }
            Err(error) => line.result("failed").detail(error).expect(false, "to be taken from its guest"),
        }
        self.attempts(subject, &["quiesce", "reset"]);
    }

    /// Removes a device in whatever state; the device tries DMA when it is forgotten, which must fault.
    pub(crate) fn remove(&mut self, subject: &Subject) {
        let (done, cost) = self.counted(|world| world.service.remove(subject.key));
        self.settle();
        let line = self.recorder.line("remove", subject.label.to_string()).cost(cost);
        match done {
            Ok(Removal::Done) => line.result("removed").expect(true, ""),
            Ok(_) => line.result("pending").expect(false, "to be removed at once"),
            Err(error) => line.result("failed").detail(words(&error)).expect(false, "to be removed"),
        }
        self.attempts(subject, &["release"]);
    }

    /// Offers a device again that was removed.
    pub(crate) fn add(&mut self, subject: &Subject) {
        let (done, cost) = self.counted(|world| world.service.add(subject.spec.clone()));
        self.settle();
        let line = self.recorder.line("add", subject.label.to_string()).cost(cost);
        match done {
            Ok(_) => line.result("added, in fault").expect(true, ""),
            Err(error) => line.result("refused").detail(words(&error)).expect(false, "to be added"),
        }
    }

    /// Brings a device to a guest from wherever it is; where it is there already, says nothing.
    pub(crate) fn bring(&mut self, subject: &Subject, guest: &Guest) {
        match self.owner(subject) {
            Some(owner) if owner == guest.domain.id() => {}
            Some(_) => self.reassign(subject, guest),
            None => {
                for mate in self.mates(subject) {
                    if self.owner(&mate).is_some_and(|owner| owner != guest.domain.id()) {
                        self.clear(&mate);
                    }
                }
                self.assign(subject, guest);
            }
        }
    }

    /// Takes a device from its guest, if it has one.
    pub(crate) fn clear(&mut self, subject: &Subject) {
        if self.owner(subject).is_some() {
            self.deassign(subject);
        }
    }

    /// Pulls a PCI function out of its slot, as a surprise. A node of the device tree stays where it is.
    pub(crate) fn pull(&mut self, subject: &Subject) {
        if let Some((bridge, at)) = subject.slot.and_then(|(bridge, at)| Some((self.world.bridges.get(bridge)?, at))) {
            bridge.space.lock().remove(at);
            self.recorder.event("pull", &subject.label.to_string(), "reads all ones");
        }
    }

    /// Plugs a function in that was pulled out.
    pub(crate) fn plug(&mut self, subject: &Subject) {
        if let Some((bridge, at)) = subject.slot.and_then(|(bridge, at)| Some((self.world.bridges.get(bridge)?, at))) {
            bridge.plug_again(at);
            self.recorder.event("plug", &subject.label.to_string(), "answers again");
        }
    }

    /// Removes all these devices, children first; only what fails is told one by one.
    pub(crate) fn remove_all(&mut self, subjects: &[Rc<Subject>]) {
        let (failed, cost) = self.counted(|world| {
            let removed = subjects.iter().map(|subject| world.service.remove(subject.key));
            removed.filter_map(Result::err).map(|error| error.to_string()).collect::<Vec<_>>()
        });
        self.settle();
        let _ = self.world.attempts.take();
        let units: Vec<IommuKey> = self.world.in_service().map(|(unit, _)| unit.key).collect();
        for unit in units {
            let _ = self.take_faults(unit);
        }
        let left = self.world.service.devices().count();
        let line = self.recorder.line("remove", many(subjects.len(), "device")).cost(cost);
        let line = failed.iter().fold(line.result(format!("{left} left")), |line, text| line.detail(text.clone()));
        line.expect(failed.is_empty() && left == 0, "all of them to be removed");
    }

    /// Takes SMMUs out of service, which nobody uses any more.
    pub(crate) fn unregister(&mut self, units: &[IommuKey]) {
        for unit in units {
            let (done, cost) = self.counted(|world| world.service.unregister_iommu(*unit));
            let line = self.recorder.line("retire", unit.to_string()).cost(cost);
            match done {
                Ok(()) => line.result("out of service").expect(true, ""),
                Err(error) => line.result("refused").detail(words(&error)).expect(false, "to go out of service"),
            }
        }
    }

    /// Does something with a registered device and counts it; an error comes in words.
    fn moved<T>(
        &self,
        subject: &Subject,
        act: impl FnOnce(&World, &Device) -> Result<T, Error>,
    ) -> (Result<T, String>, Counters) {
        match self.info(subject) {
            Some(info) => {
                let (done, cost) = self.counted(|world| act(world, &info.device));
                (done.map_err(|error| words(&error)), cost)
            }
            None => (Err("it is not registered".to_owned()), Counters::default()),
        }
    }

    /// Compares registry, driver and registers, which must agree.
    pub(crate) fn audit(&mut self) {
        let mut findings = Vec::new();
        let ((), cost) = self.counted(|world| world.service.audit(&mut |finding| findings.push(finding.to_string())));
        let devices = self.world.service.devices().count();
        let units = self.world.in_service().count();
        let line = self.recorder.line("audit", format!("{}, {}", many(devices, "device"), many(units, "SMMU")));
        let line = line.result(many(findings.len(), "difference")).cost(cost);
        let line = findings.iter().fold(line, |line, finding| line.detail(finding.clone()));
        line.expect(findings.is_empty() && cost.writes == 0, "no difference, and no register written");
    }
}

/// `1 device`, `2 devices`.
pub(crate) fn many(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Whether some transaction could be either's.
pub(crate) fn shares(one: &Subject, other: &Subject) -> bool {
    one.spec.streams.iter().any(|stream| other.spec.streams.iter().any(|theirs| stream.overlaps(*theirs)))
}

/// Why an operation failed and what it left; the line says already which operation, and on whom.
fn words(error: &Error) -> String {
    format!("{}; {}", error.cause, error.left)
}
