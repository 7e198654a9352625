//! Each operation of the scenario: carried out, counted, and compared with what was expected.

use std::collections::BTreeMap;
use std::rc::Rc;

use iommu_assign::assign::{
    Cause, Device, DeviceInfo, DeviceState, DomainId, Error, FaultCause, FaultLine, FaultRecord, IommuKey, Label, Left,
    Removal, Stream, StreamId,
};
use machine::Reached;
use smmu_model::Counters;

use crate::guests::{self, Guest, HOLE, PAGE};
use crate::hooks;
use crate::policy::Rules;
use crate::recorder::Recorder;
use crate::world::{Subject, World, between};

/// The machine, and the score.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    pub(crate) world: &'a mut World,
    pub(crate) recorder: &'a mut Recorder,
    /// Each domain's guest: its name, and where its page is.
    guests: BTreeMap<DomainId, (Label, u64)>,
}

/// What a stream's DMA must come to, by the registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Must {
    /// It reaches this guest's page, at this address.
    Reach(Label, u64),
    /// It faults for this reason.
    Fault(FaultCause),
}

impl<'a> Stage<'a> {
    /// A stage without guests.
    pub(crate) fn new(world: &'a mut World, recorder: &'a mut Recorder) -> Self {
        Self { world, recorder, guests: BTreeMap::new() }
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

    fn counted<T>(&self, act: impl FnOnce(&World) -> T) -> (T, Counters) {
        let before = self.world.machine.all_counters();
        let result = act(self.world);
        (result, between(before, self.world.machine.all_counters()))
    }

    // --- guests ---

    /// Makes a guest with one page mapped.
    pub(crate) fn create(&mut self, name: &str, number: u64) -> Option<Guest> {
        let limits = self.world.service.limits()?;
        let (tables, backing) = guests::tables(&self.world.machine, number, limits);
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
        let line = self.recorder.line("destroy", guest.label.as_str()).cost(cost);
        match (done, in_use) {
            (Ok(()), expected) => line.result("destroyed").expect(expected.is_none(), "to be refused while in use"),
            (Err(error), Some(devices)) => {
                let held = error.cause == Cause::InUse { devices } && cost.writes == 0;
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
        let line = self.recorder.line("flush", guest.label.as_str()).cost(cost);
        match done {
            Ok(()) => line.result("flushed").expect(cost.writes > 0, "an invalidation and a sync"),
            Err(error) => line.result("failed").detail(words(&error)).expect(false, "to be flushed"),
        }
    }

    // --- devices ---

    /// Lets the operator name a device, and all that share streams with it, for a guest. Firmware's marks need no help.
    pub(crate) fn name(&mut self, subject: &Subject, guest: &Guest) {
        let Rules::Named(operator) = self.world.rules.clone() else { return };
        let mut names: Vec<Label> = vec![subject.label.clone()];
        names.extend(self.mates(subject).iter().map(|mate| mate.label.clone()));
        let fresh: Vec<&Label> = names.iter().filter(|name| operator.name(name, &guest.label)).collect();
        for name in fresh {
            self.recorder.event("name", &format!("{name} for {}", guest.label), "by the operator");
        }
    }

    /// Assigns a device, which must succeed.
    pub(crate) fn assign(&mut self, subject: &Subject, guest: &Guest) {
        self.name(subject, guest);
        let (done, cost) = self.moved(subject, |world, device| world.service.assign(device, &guest.domain));
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
        let (done, cost) = self.moved(subject, |world, device| world.service.reassign(device, &guest.domain));
        let line = self.recorder.line("reassign", format!("{} to {}", subject.label, guest.label)).cost(cost);
        match done {
            Ok(()) => line.result("reassigned").expect(true, ""),
            Err(error) => line.result("refused").detail(error).expect(false, "to be reassigned"),
        }
        self.attempts(subject, &["quiesce", "reset"]);
    }

    /// Takes a device from its guest. `sharer` is who keeps the shared stream translated, if somebody must.
    pub(crate) fn deassign(&mut self, subject: &Subject, sharer: Option<&Subject>) {
        let (done, cost) = self.moved(subject, |world, device| world.service.deassign(device));
        let line = self.recorder.line("deassign", subject.label.as_str()).cost(cost);
        match done {
            Ok(done) => {
                let names: Vec<&str> = done.still_reachable.iter().map(Label::as_str).collect();
                let held = names == sharer.map(|sharer| sharer.label.as_str()).into_iter().collect::<Vec<_>>();
                if names.is_empty() {
                    line.result("in fault").expect(held, "still reachable through the device that shares its stream");
                } else {
                    let detail = format!("its stream stays translated for {}, which shares it", names.join(", "));
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
        let line = self.recorder.line("remove", subject.label.as_str()).cost(cost);
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
        let line = self.recorder.line("add", subject.label.as_str()).cost(cost);
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
        if let Some(owner) = self.owner(subject) {
            let keeps = |mate: &Rc<Subject>| self.owner(mate) == Some(owner) && shares(subject, mate);
            let keeper = self.mates(subject).into_iter().find(keeps);
            self.deassign(subject, keeper.as_deref());
        }
    }

    /// Pulls a PCI function out of its slot, as a surprise. A node of the device tree stays where it is.
    pub(crate) fn pull(&mut self, subject: &Subject) {
        if let Some((bridge, at)) = subject.slot.and_then(|(bridge, at)| Some((self.world.bridges.get(bridge)?, at))) {
            bridge.space.lock().remove(at);
            self.recorder.event("pull", subject.label.as_str(), "reads all ones");
        }
    }

    /// Plugs a function in that was pulled out.
    pub(crate) fn plug(&mut self, subject: &Subject) {
        if let Some((bridge, at)) = subject.slot.and_then(|(bridge, at)| Some((self.world.bridges.get(bridge)?, at))) {
            bridge.plug_again(at);
            self.recorder.event("plug", subject.label.as_str(), "answers again");
        }
    }

    /// Removes all these devices, children first; only what fails is told one by one.
    pub(crate) fn remove_all(&mut self, subjects: &[Rc<Subject>]) {
        let (failed, cost) = self.counted(|world| {
            let removed = subjects.iter().map(|subject| world.service.remove(subject.key));
            removed.filter_map(Result::err).map(|error| error.to_string()).collect::<Vec<_>>()
        });
        let _ = hooks::take(&self.world.attempts);
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

    /// What the device tried while its hooks ran: each must have faulted. Its faults are read and named.
    fn attempts(&mut self, subject: &Subject, hooks: &[&'static str]) {
        let attempts = hooks::take(&self.world.attempts);
        // A mate that keeps its guest keeps the entry: what is common to both is not this device's alone.
        let shared = |stream: Stream| matches!(self.must(stream.iommu(), stream.id()), Must::Reach(..));
        let excused: Vec<bool> =
            attempts.iter().map(|one| one.reached == Reached::Fault || shared(one.stream)).collect();
        for hook in hooks {
            let tried = || attempts.iter().zip(&excused).filter(|(attempt, _)| attempt.during == *hook);
            let all = tried().count();
            let through = tried().filter(|(attempt, _)| attempt.reached != Reached::Fault).count();
            let held = all > 0 && tried().all(|(_, excused)| *excused);
            let result = match through {
                0 => "faults".to_owned(),
                through if held => format!("{} shared still", many(through, "stream")),
                through => format!("{} get through", many(through, "stream")),
            };
            let subject = format!("{} in {hook}, {}", subject.label, many(all, "ID"));
            self.recorder.line("dma", subject).result(result).expect(held, "every stream to fault");
        }
        let mut units: Vec<IommuKey> = attempts.iter().map(|attempt| attempt.stream.iommu()).collect();
        units.dedup();
        for unit in units {
            let (records, _, cost) = self.take_faults(unit);
            let faulted = attempts.iter().any(|one| one.stream.iommu() == unit && one.reached == Reached::Fault);
            let ours = |record: &FaultRecord| {
                record.raw.stream.is_some_and(|id| attempts.iter().any(|one| holds(one.stream, unit, id)))
            };
            if faulted || !records.is_empty() {
                let held = faulted && !records.is_empty() && records.iter().all(ours);
                self.print_faults(unit, &records, cost, held, "a fault of the device's own streams");
            }
        }
    }

    // --- DMA ---

    /// One DMA write by a stream of the device to the page that guests have: it must come to what the registry says.
    pub(crate) fn dma(&mut self, subject: &Subject) {
        let Some(stream) = subject.spec.streams.first().copied() else { return };
        let must = self.must(stream.iommu(), stream.id());
        self.dma_at(subject, stream, PAGE, &must);
    }

    /// One DMA write to the page that was taken from the device's guest.
    pub(crate) fn dma_unmapped(&mut self, subject: &Subject) {
        if let Some(stream) = subject.spec.streams.first().copied() {
            self.dma_at(subject, stream, PAGE, &Must::Fault(FaultCause::Translation));
        }
    }

    /// One DMA write outside of what guests have: a fault of the guest's tables.
    pub(crate) fn dma_into_the_hole(&mut self, subject: &Subject) {
        if let Some(stream) = subject.spec.streams.first().copied() {
            self.dma_at(subject, stream, HOLE, &Must::Fault(FaultCause::Translation));
        }
    }

    /// One DMA write that must come to `must`; a fault must be reported by an interrupt, in the device's name.
    pub(crate) fn dma_at(&mut self, subject: &Subject, stream: Stream, address: u64, must: &Must) {
        let (unit, id) = (stream.iommu(), stream.id());
        let owner = self.owner_of(unit, id);
        let reached = self.world.machine.dma_write(unit, id, address);
        let whither = if address == PAGE { String::new() } else { format!(" to {address:#x}") };
        let line = self.recorder.line("dma", format!("{} id {id}{whither}", subject.label));
        let (result, held) = match (&reached, must) {
            (Some(Reached::Fault), Must::Fault(_)) => ("faults".to_owned(), true),
            (Some(Reached::Memory(at)), Must::Reach(guest, backing)) => {
                (format!("reaches {guest}, {at:#x}"), at == backing)
            }
            (Some(Reached::Memory(at)), _) => (format!("reaches {at:#x}"), false),
            (Some(Reached::Untranslated(at)), _) => (format!("UNTRANSLATED at {at:#x}"), false),
            (Some(Reached::Fault), Must::Reach(..)) => ("faults".to_owned(), false),
            (None, _) => ("no such bus ID".to_owned(), false),
        };
        line.result(result).expect(held, &must.words());
        if reached != Some(Reached::Fault) {
            return;
        }
        let (records, lines, cost) = self.take_faults(unit);
        let Must::Fault(cause) = must else {
            self.print_faults(unit, &records, cost, false, "no fault");
            return;
        };
        let domain = if *cause == FaultCause::Translation { owner.map(|(label, _)| label) } else { None };
        let told = |record: &FaultRecord| {
            record.raw.cause == *cause
                && record.raw.stream == Some(id)
                && record.raw.address == Some(address)
                && record.domain == domain
                && self.names_who_it_can(record, unit, id)
        };
        let held = lines == 1 && records.len() == 1 && records.iter().all(told);
        self.print_faults(
            unit,
            &records,
            cost,
            held,
            &format!("one report of {cause}, in the name of who has the stream"),
        );
    }

    /// Every device tries DMA with the first and the last ID of each stream; each must come to what the registry says.
    pub(crate) fn everyone(&mut self) {
        for subject in self.world.subjects.clone() {
            let streams =
                subject.spec.streams.iter().filter(|stream| self.world.machine.smmu(stream.iommu(), |_| ()).is_some());
            let mut ids: Vec<(IommuKey, StreamId)> = Vec::new();
            for stream in streams {
                let last = StreamId::new(stream.id().value() | stream.mask().value());
                ids.push((stream.iommu(), stream.id()));
                ids.push((stream.iommu(), last));
            }
            ids.dedup();
            ids.retain(|(unit, id)| self.carries(*unit, *id));
            if !ids.is_empty() {
                self.sweep(&subject, &ids);
            }
        }
    }

    fn sweep(&mut self, subject: &Subject, ids: &[(IommuKey, StreamId)]) {
        let before = self.world.machine.all_counters();
        let (mut wrong, mut reports, mut kinds) = (Vec::new(), 0_usize, Vec::new());
        for &(unit, id) in ids {
            let must = self.must(unit, id);
            let reached = self.world.machine.dma_write(unit, id, PAGE);
            let (records, _, _) = self.take_faults(unit);
            reports = reports.saturating_add(records.len());
            let held = match (&must, reached) {
                (Must::Reach(_, backing), Some(Reached::Memory(at))) => at == *backing && records.is_empty(),
                (Must::Fault(cause), Some(Reached::Fault)) => {
                    let told = |record: &FaultRecord| {
                        let names = self.names_who_it_can(record, unit, id);
                        record.raw.cause == *cause && record.raw.stream == Some(id) && names
                    };
                    records.len() == 1 && records.iter().all(told)
                }
                _ => false,
            };
            if !held {
                wrong.push(format!("{unit} {id}: {reached:?}, {}", must.words()));
            }
            if !kinds.contains(&must) {
                kinds.push(must);
            }
        }
        let cost = between(before, self.world.machine.all_counters());
        let many = if ids.len() == 1 { "1 ID".to_owned() } else { format!("{} IDs", ids.len()) };
        let result = kinds.iter().map(Must::result).collect::<Vec<_>>().join("; ");
        let line = self.recorder.line("dma", format!("{}, {many}", subject.label));
        let line = line.result(result).cost(cost);
        let line = wrong.iter().fold(line, |line, text| line.detail(text.clone()));
        line.expect(wrong.is_empty(), "what the registry says, each fault reported once");
    }

    /// An ID that no device has tries DMA at each SMMU.
    pub(crate) fn strangers(&mut self) {
        let units: Vec<IommuKey> = self.world.in_service().map(|(unit, _)| unit.key).collect();
        for unit in units {
            let nobody = (0..=u32::from(u16::MAX)).map(StreamId::new).filter(|id| self.carries(unit, *id));
            let Some(id) = nobody.into_iter().find(|id| self.users_of(unit, *id).next().is_none()) else { continue };
            let reached = self.world.machine.dma_write(unit, id, PAGE);
            let line = self.recorder.line("dma", format!("a stranger at {unit}, id {id}"));
            let result = if reached == Some(Reached::Fault) { "faults" } else { "GETS THROUGH" };
            line.result(result).expect(reached == Some(Reached::Fault), "to fault");
            let (records, lines, cost) = self.take_faults(unit);
            let told = |record: &FaultRecord| {
                record.raw.cause == FaultCause::UnknownStream
                    && record.raw.stream == Some(id)
                    && record.device.is_none()
            };
            let held = lines == 1 && records.len() == 1 && records.iter().all(told);
            self.print_faults(unit, &records, cost, held, "one report of an unknown stream");
        }
    }

    /// What a stream's DMA to the guests' page must come to, by what the registry says of its devices.
    pub(crate) fn must(&self, unit: IommuKey, id: StreamId) -> Must {
        match self.owner_of(unit, id) {
            Some((guest, backing)) => Must::Reach(guest, backing),
            None if self.users_of(unit, id).next().is_some() => Must::Fault(FaultCause::Blocked),
            None => Must::Fault(FaultCause::UnknownStream),
        }
    }

    /// The registered devices that a stream ID belongs to.
    fn users_of(&self, unit: IommuKey, id: StreamId) -> impl Iterator<Item = DeviceInfo> {
        let devices = self.world.service.devices();
        devices.filter(move |info| info.device.streams().iter().any(|stream| holds(*stream, unit, id)))
    }

    fn owner_of(&self, unit: IommuKey, id: StreamId) -> Option<(Label, u64)> {
        let mut owners = self.users_of(unit, id).filter_map(|info| match info.state {
            DeviceState::Assigned(domain) => self.guests.get(&domain).cloned(),
            _ => None,
        });
        owners.next()
    }

    /// Whether the report names a device that has the stream, or none where none has it. A shared stream has several,
    /// and the hardware cannot tell whose transaction it was.
    fn names_who_it_can(&self, record: &FaultRecord, unit: IommuKey, id: StreamId) -> bool {
        let users: Vec<Label> = self.users_of(unit, id).map(|info| info.device.label().clone()).collect();
        record.device.as_ref().map_or(users.is_empty(), |named| users.contains(named))
    }

    /// Whether the hardware's streams have so many bits: what is wider cannot be on its bus.
    fn carries(&self, unit: IommuKey, id: StreamId) -> bool {
        let geometry = self.world.in_service().find(|(one, _)| one.key == unit).map(|(_, geometry)| *geometry);
        geometry.is_some_and(|geometry| id.value() >> u32::from(geometry.stream_id_bits).min(31) == 0)
    }

    // --- faults and audit ---

    /// Handles the interrupts that the SMMU asserts: what was reported, how many lines asked, and what that cost.
    fn take_faults(&self, unit: IommuKey) -> (Vec<FaultRecord>, usize, Counters) {
        let lines = self.world.machine.smmu(unit, |smmu| {
            let context = (0..=u8::MAX).filter(|line| smmu.context_irq(*line)).map(FaultLine::Context);
            smmu.global_irq().then_some(FaultLine::Global).into_iter().chain(context).collect::<Vec<_>>()
        });
        let lines = lines.unwrap_or_default();
        let mut records = Vec::new();
        let (_, cost) = self.counted(|world| {
            for line in &lines {
                let handled = world.service.handle_fault(unit, *line, &mut |record| records.push(record.clone()));
                // An SMMU that is not registered has no faults to tell, and none are found.
                let _ = handled;
            }
        });
        (records, lines.len(), cost)
    }

    fn print_faults(&mut self, unit: IommuKey, records: &[FaultRecord], cost: Counters, held: bool, expected: &str) {
        let cause = records.first().map_or("nothing reported".to_owned(), |record| record.raw.cause.to_string());
        let bank = records.first().and_then(|record| record.raw.bank);
        let place = bank.map_or(format!("{unit}, global"), |bank| format!("{unit}, bank {bank}"));
        let line = self.recorder.line("fault", place).result(cause).cost(cost);
        let line = records.iter().fold(line, |line, record| line.detail(told(record)));
        line.expect(held, expected);
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

impl Must {
    fn result(&self) -> String {
        match self {
            Self::Reach(guest, _) => format!("reach {guest}"),
            Self::Fault(cause) => format!("fault: {cause}"),
        }
    }

    fn words(&self) -> String {
        match self {
            Self::Reach(guest, backing) => format!("to reach {guest} at {backing:#x}"),
            Self::Fault(cause) => format!("to fault: {cause}"),
        }
    }
}

/// `1 device`, `2 devices`.
pub(crate) fn many(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// Whether some transaction could be either's.
pub(crate) fn shares(one: &Subject, other: &Subject) -> bool {
    one.spec.streams.iter().any(|stream| other.spec.streams.iter().any(|theirs| stream.meets(*theirs)))
}

fn holds(stream: Stream, unit: IommuKey, id: StreamId) -> bool {
    stream.meets(Stream::new(unit, id, iommu_assign::assign::StreamMask::NONE))
}

/// Why an operation failed and what it left; the line says already which operation, and on whom.
fn words(error: &Error) -> String {
    format!("{}; {}", error.cause, error.left)
}

/// A fault as the operator reads it; the line says already where, and why.
fn told(record: &FaultRecord) -> String {
    let raw = &record.raw;
    let mut text = raw.access.to_string();
    if let Some(address) = raw.address {
        text.push_str(&format!(" of {address:#x}"));
    }
    match (&record.device, raw.stream) {
        (Some(device), Some(stream)) => text.push_str(&format!(" by {device}, id {stream}")),
        (None, Some(stream)) => text.push_str(&format!(" by unknown id {stream}")),
        _ => {}
    }
    if let Some(domain) = &record.domain {
        text.push_str(&format!(", in {domain}"));
    }
    if raw.more_lost {
        text.push_str("; more came and were not recorded");
    }
    text
}
