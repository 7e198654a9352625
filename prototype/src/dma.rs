//! DMA on the stage: tried, compared with what the registry says, and its faults handled as interrupts ask for it.

use std::collections::BTreeSet;

use iommu_assign::assign::{FaultCause, FaultLine, FaultRecord, IommuKey, Stream, StreamId};
use iommu_assign::smmu::ContextLines;
use iommu_assign::smmu::cover::Cube;
use machine::{Machine, Reached};
use smmu_model::Counters;

use crate::guests::{HOLE, PAGE};
use crate::hooks::Attempt;
use crate::must::{Must, holds};
use crate::stage::{Stage, many};
use crate::world::{Subject, between};

impl Stage<'_> {
    /// One DMA write by a stream of the device to the page that guests have: it must come to what the registry says.
    pub(crate) fn dma(&mut self, subject: &Subject) {
        self.dma_first(subject, "");
    }

    /// The same, where that holds only because the SMMU has not been told yet.
    pub(crate) fn dma_stale(&mut self, subject: &Subject) {
        self.dma_first(subject, "still ");
    }

    fn dma_first(&mut self, subject: &Subject, remark: &str) {
        if let Some(stream) = subject.spec.streams.first().copied() {
            let must = self.must(stream.iommu(), stream.id());
            self.dma_at(subject, stream, PAGE, &must, remark);
        }
    }

    /// One DMA write by a stream that the device shares with `mate`.
    pub(crate) fn dma_shared(&mut self, subject: &Subject, mate: &Subject) {
        let pairs =
            subject.spec.streams.iter().flat_map(|one| mate.spec.streams.iter().map(move |other| (*one, *other)));
        let common = pairs
            .filter(|(one, other)| one.overlaps(*other))
            .find_map(|(one, other)| Some(Cube::from(one).intersection(Cube::from(other))?.at(one.iommu())));
        if let Some(stream) = common {
            let must = self.must(stream.iommu(), stream.id());
            self.dma_at(subject, stream, PAGE, &must, "");
        }
    }

    /// One DMA write to the page that was taken from the device's guest.
    pub(crate) fn dma_unmapped(&mut self, subject: &Subject) {
        if let Some(stream) = subject.spec.streams.first().copied() {
            self.dma_at(subject, stream, PAGE, &Must::Fault(FaultCause::Translation), "");
        }
    }

    /// One DMA write outside of what guests have: a fault of the guest's tables.
    pub(crate) fn dma_into_the_hole(&mut self, subject: &Subject) {
        if let Some(stream) = subject.spec.streams.first().copied() {
            let remark = format!("{HOLE:#x} ");
            self.dma_at(subject, stream, HOLE, &Must::Fault(FaultCause::Translation), &remark);
        }
    }

    /// A function interrupts, where its host bridge leads to a doorbell that guests have mapped: a write as any other.
    pub(crate) fn interrupt(&mut self, subject: &Subject) {
        let slot = subject.slot.and_then(|(bridge, at)| Some((self.world.bridges.get(bridge)?, at.requester_id())));
        let Some((bridge, rid)) = slot else { return };
        let (Some(doorbell), Some(msi), Some(stream)) =
            (bridge.doorbell.clone(), &bridge.msi, subject.spec.streams.first().copied())
        else {
            return;
        };
        let id = msi.targets(rid).ok().and_then(|mut targets| targets.find_map(|target| target.id));
        let id = id.map_or_else(|| "no ID that firmware says".to_owned(), |id| format!("ID {id:#x}"));
        let (unit, at) = (stream.iommu(), doorbell.guest_register());
        let reached = self.world.machine.dma_write(unit, stream.id(), at);
        let line = self.recorder.line("msi", format!("{} id {}", subject.label, stream.id()));
        let result = match reached {
            Some(Reached::Memory(at)) => format!("reaches {at:#x}"),
            _ => "DOES NOT ARRIVE".to_owned(),
        };
        let name = doorbell.controller.rsplit('/').next().unwrap_or_default().to_owned();
        let detail = format!("the doorbell of {name}, mapped at {:#x}, with {id} there", doorbell.guest_page);
        let held = reached == Some(Reached::Memory(doorbell.register));
        line.result(result).detail(detail).expect(held, &format!("to reach the doorbell at {:#x}", doorbell.register));
    }

    /// One DMA write that must come to `must`; a fault must be reported by an interrupt, in the device's name.
    fn dma_at(&mut self, subject: &Subject, stream: Stream, address: u64, must: &Must, remark: &str) {
        let (unit, id) = (stream.iommu(), stream.id());
        let owner = self.owner_of(unit, id);
        let reached = self.world.machine.dma_write(unit, id, address);
        let line = self.recorder.line("dma", format!("{} id {id}", subject.label));
        let result = match (&reached, must.guest()) {
            (Some(Reached::Memory(at)), Some((guest, backing))) if *at == backing && remark.is_empty() => {
                format!("reaches {guest}, {at:#x}")
            }
            (Some(Reached::Memory(at)), _) => format!("{remark}reaches {at:#x}"),
            (Some(Reached::Untranslated(at)), _) => format!("UNTRANSLATED at {at:#x}"),
            (Some(Reached::Fault), _) => format!("{remark}faults"),
            (None, _) => "no such bus ID".to_owned(),
        };
        line.result(result).expect(must.agrees(reached), &must.words());
        if reached != Some(Reached::Fault) {
            return;
        }
        let (records, lines, cost) = self.take_faults(unit);
        let in_tables = must.allows(FaultCause::Translation);
        let domain = if in_tables { owner.map(|(label, _)| label) } else { None };
        let told = |record: &FaultRecord| {
            must.allows(record.raw.cause)
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
            &format!("one report, in the name of who has the stream, {}", must.words()),
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
            let told = |record: &FaultRecord| {
                must.allows(record.raw.cause)
                    && record.raw.stream == Some(id)
                    && record.raw.address == Some(PAGE)
                    && self.names_who_it_can(record, unit, id)
            };
            let faults = usize::from(reached == Some(Reached::Fault));
            let held = must.agrees(reached) && records.len() == faults && records.iter().all(told);
            if !held {
                let reports: Vec<String> = records.iter().map(ToString::to_string).collect();
                wrong.push(format!("{unit}, id {id}: {reached:?}, expected {}; reports: {reports:?}", must.words()));
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
                    && record.raw.address == Some(PAGE)
                    && record.device.is_none()
            };
            let held = lines == 1 && records.len() == 1 && records.iter().all(told);
            self.print_faults(unit, &records, cost, held, "one report of an unknown stream");
        }
    }

    /// What the device tried while its hooks ran: each must have faulted. Its faults are read and named.
    pub(crate) fn attempts(&mut self, subject: &Subject, hooks: &[&'static str]) {
        let attempts = self.world.attempts.take();
        // A mate that keeps its guest keeps the entry: what is common to both is not this device's alone.
        let shared = |one: &Attempt| self.must(one.stream.iommu(), one.stream.id()).agrees(Some(one.reached));
        let excused: Vec<bool> = attempts.iter().map(|one| one.reached == Reached::Fault || shared(one)).collect();
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
        units.sort_unstable();
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

    // --- faults ---

    /// Handles the interrupts that the SMMU asserts: what was reported, how many lines asked, and what that cost.
    pub(crate) fn take_faults(&self, unit: IommuKey) -> (Vec<FaultRecord>, usize, Counters) {
        let wired = self.world.units.iter().find(|one| one.key == unit).map(|one| &one.lines);
        let lines = raised(&self.world.machine, unit, wired);
        let mut records = Vec::new();
        let (_, cost) = self.counted(|world| {
            for line in &lines {
                let handled = world.service.handle_fault(unit, *line, &mut |record| records.push(record.clone()));
                // An SMMU that is not registered has no faults to tell, and none are found.
                let _ = handled;
            }
        });
        // The worker's part: no device is given up here for trying often.
        if let Some((_, service)) = self.world.in_service().find(|(one, _)| one.key == unit) {
            service.driver.tend_faults(&mut |_| {});
        }
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

/// The lines that the SMMU asserts, where its context interrupts reach the interrupt controller so.
pub(crate) fn raised(machine: &Machine, unit: IommuKey, wired: Option<&ContextLines>) -> Vec<FaultLine> {
    let lines = machine.smmu(unit, |smmu| {
        let raised = (0..=u8::MAX).filter(|interrupt| smmu.context_irq(*interrupt));
        // Where firmware does not say which line it is, one is as good as another.
        let context = raised.map(|interrupt| wired.and_then(|wired| wired.line(interrupt)).unwrap_or(0));
        let context = context.collect::<BTreeSet<u8>>().into_iter().map(FaultLine::Context);
        smmu.global_irq().then_some(FaultLine::Global).into_iter().chain(context).collect()
    });
    lines.unwrap_or_default()
}
