//! Runs operations on the real service, the real driver and modelled SMMUs, and compares each with the specification.
//!
//! After every operation it asks: was the outcome allowed; do the registered devices, their owners and groups agree; did
//! any register write, or the state that was left, let a stream where it may not go; did a refusal write nothing; was an
//! SMMU left alone that is not in service; is the audit empty. At the end: is everything free again.

mod board;
mod checks;
mod comings;
mod ending;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use iommu_assign::assign::{
    Deassigned, Device, DeviceHooks, DeviceSpec, Domain, Error, FaultLine, FaultRecord, HookContext, HookError,
    IommuKey, Label, Policy, PolicyRequest, Removal, Reservation, Service, StreamId,
};
use iommu_assign::smmu::{Masters, Power, PowerError, Setup, Smmu};
use iommu_assign::sync::Spin;
use smmu_model::{Injection, SyncRegister};

use crate::op::{Guest, Op, Script, Side, Slot};
use crate::oracle::Oracle;
use crate::specification::{Outcome, Refusal, Specification};
use crate::{Machine, ModelRegisters, Reached, Stage2Tables};

pub use board::Board;
use comings::Comings;
use requests::Requests;

/// The guest-physical page that every guest has mapped, and which the oracle watches.
const PAGE: u64 = 0x4000_0000;
/// The page that guests map and unmap.
const SECOND: u64 = 0x4000_1000;
/// More states than this are not told apart any more: the sequence is too ambiguous to go on with.
const MOST_STATES: usize = 4096;

/// The machine, what drives it, and what is expected of them.
pub struct World<'s> {
    board: Board,
    machine: Machine,
    service: &'s Service<Spin>,
    reservations: BTreeMap<Slot, Reservation<'s, Spin>>,
    requests: Requests,
    comings: Comings,
    masters: Arc<Masters<Spin>>,
    oracles: [Oracle; 2],
    smmus: [Option<Arc<Smmu<Spin, ModelRegisters>>>; 2],
    registers: [ModelRegisters; 2],
    powers: [Arc<Switch>; 2],
    /// The handles of a device's last registration and of the one before.
    handles: BTreeMap<Slot, (Device, Option<Device>)>,
    hooks: BTreeMap<Slot, Arc<Hooks>>,
    /// The guest that each registered device was assigned to last, and whether it was after the last operation.
    owners: BTreeMap<Slot, (Guest, bool)>,
    guests: BTreeMap<Guest, Running>,
    /// What the contract allows the machine to be in.
    states: BTreeSet<Specification>,
    script: Script,
}

struct Running {
    domain: Domain<Spin>,
    tables: Stage2Tables,
    last: bool,
}

/// A difference between what was seen and what the contract allows: the sequence, as Rust, and what was seen.
#[derive(Clone, PartialEq, Eq)]
pub struct Violation {
    /// The machine.
    pub board: Board,
    /// The operations up to the one that went wrong.
    pub script: Script,
    /// What is wrong.
    pub what: String,
}

impl fmt::Debug for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\nrun(Board::{:?}, &{:?});", self.what, self.board, self.script)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// A service for one [`World`], with the policy of [`Guest::may_have`].
#[must_use]
pub fn service() -> Service<Spin> {
    Service::new(Box::new(Universe))
}

/// Runs a sequence to its end, and ends it: everything is removed and must be free.
///
/// # Errors
///
/// The first violation.
pub fn run(board: Board, script: &[Op]) -> Result<(), Violation> {
    let service = service();
    let mut world = World::new(board, &service)?;
    for op in script {
        world.run(*op)?;
    }
    world.finish()
}

impl<'s> World<'s> {
    /// Two SMMUs in service, and nothing else. `service` is a new one of [`service()`].
    ///
    /// # Errors
    ///
    /// A violation when one of the SMMUs cannot be probed.
    pub fn new(board: Board, service: &'s Service<Spin>) -> Result<Self, Violation> {
        let machine = Machine::new();
        let registers = Side::ALL.map(|side| machine.add_smmu(side.key(), board.model(side)));
        let unread = || Violation { board, script: Script(Vec::new()), what: "slot or tree cannot be read".into() };
        let comings = Comings::new().ok_or_else(unread)?;
        let mut world = Self {
            board,
            machine,
            service,
            reservations: BTreeMap::new(),
            requests: Requests::default(),
            comings,
            masters: Arc::new(Masters::new()),
            oracles: <[Oracle; 2]>::default(),
            smmus: [None, None],
            registers,
            powers: Default::default(),
            handles: BTreeMap::new(),
            hooks: BTreeMap::new(),
            owners: BTreeMap::new(),
            guests: BTreeMap::new(),
            states: BTreeSet::from([Specification::new(Side::ALL.map(|side| board.part(side)))]),
            script: Script(Vec::new()),
        };
        for side in Side::ALL {
            if world.put_into_service(side) != Outcome::Done {
                return Err(world.violation(format!("SMMU {side:?} cannot be probed")));
            }
            let ids = Slot::ALL.into_iter().flat_map(|slot| slot.ids(side)).map(|(_, id)| id);
            let strangers = ids.chain([Slot::STRANGER, 0x7fff]);
            world.oracle(side).watch_only(&world.machine, side.key(), PAGE, strangers);
        }
        Ok(world)
    }

    /// Does one operation and looks at everything that must hold then.
    ///
    /// # Errors
    ///
    /// What does not hold.
    pub fn run(&mut self, op: Op) -> Result<Outcome, Violation> {
        self.script.0.push(op);
        let expected: Vec<(Outcome, Specification)> = self.states.iter().flat_map(|state| state.step(op)).collect();
        self.allow_transitions(op, &expected);
        let is_due = match op {
            Op::Apply(_) | Op::Revert(_) => self.comings.are_unfinished(),
            _ => self.states.iter().any(Specification::owes_drains),
        };
        let before = self.counters();
        let outcome = self.act(op).map_err(|what| self.violation(what))?;
        // A sync that was lost is slower than the operation that waited for it.
        for side in Side::ALL {
            self.machine.smmu(side.key(), smmu_model::Smmu::release_syncs);
        }
        let after = self.counters();
        self.compare(op, &outcome, expected).map_err(|what| self.violation(what))?;
        self.check_accesses(op, &outcome, is_due, before, after).map_err(|what| self.violation(what))?;
        self.check_cleansed().map_err(|what| self.violation(what))?;
        self.check_isolation().map_err(|what| self.violation(what))?;
        self.check_audit().map_err(|what| self.violation(what))?;
        Ok(outcome)
    }

    fn violation(&self, what: String) -> Violation {
        Violation { board: self.board, script: self.script.clone(), what }
    }

    fn oracle(&self, side: Side) -> &Oracle {
        let [a, b] = &self.oracles;
        match side {
            Side::A => a,
            Side::B => b,
        }
    }

    // --- operations ---

    /// Does it. An error is something that the specification has no words for.
    fn act(&mut self, op: Op) -> Result<Outcome, String> {
        Ok(match op {
            Op::Add(slot) if !slot.is_offered() => Outcome::Skipped,
            Op::Add(slot) => self.add(slot),
            Op::Remove(slot) => told(&self.service.remove(slot.key()), removed),
            Op::Assign(slot, guest) => self.moving(slot, guest, Service::assign),
            Op::AssignGroup(slot, guest) => self.moving(slot, guest, Service::assign_group),
            Op::Reassign(slot, guest) => self.moving(slot, guest, Service::reassign),
            Op::ReassignGroup(slot, guest) => self.moving(slot, guest, Service::reassign_group),
            Op::TestAssign(slot, guest) => self.moving(slot, guest, Service::test_assign),
            Op::Reserve(slot, _) if !slot.is_offered() => Outcome::Skipped,
            Op::Reserve(slot, guest) => self.reserve(slot, guest),
            Op::Commit(slot) => self.end(slot, Reservation::commit),
            Op::Abandon(slot) => self.end(slot, Reservation::abandon),
            Op::Submit(ask) => self.submit(ask),
            Op::Cancel(slot) => self.requests.cancel(slot)?,
            Op::Work => self.work()?,
            Op::Deassign(slot) => self.leaving(slot, Service::deassign),
            Op::DeassignGroup(slot) => self.leaving(slot, Service::deassign_group),
            Op::AssignOld(slot, guest) => {
                let old = self.handles.get(&slot).and_then(|(_, old)| old.as_ref());
                let both = old.zip(self.guests.get(&guest));
                both.map_or(Outcome::Skipped, |(device, guest)| {
                    told(&self.service.assign(device, &guest.domain), |()| Outcome::Done)
                })
            }
            Op::Create(guest) => self.create(guest),
            Op::Destroy(guest) => self.destroy(guest),
            Op::Map(guest) => self.map(guest),
            Op::Unmap(guest) => self.unmap(guest),
            Op::Flush(guest) => self
                .guests
                .get(&guest)
                .map_or(Outcome::Skipped, |running| told(&self.service.flush(&running.domain), |()| Outcome::Done)),
            Op::Dma(slot, choice) => {
                slot.stream_id(choice).map_or(Ok(Outcome::Skipped), |(side, id)| self.dma(side, id))?
            }
            Op::DmaSecond(slot, choice) => {
                slot.stream_id(choice).map_or(Ok(Outcome::Skipped), |(side, id)| self.dma_second(side, id))?
            }
            Op::DmaUnknown(side) => self.dma(side, Slot::STRANGER)?,
            Op::HandleGlobal(side) => self.handle(side, FaultLine::Global)?,
            Op::HandleContext(side, line) => self.handle(side, FaultLine::Context(line))?,
            // Looked at after every operation.
            Op::Audit => Outcome::Done,
            Op::Unregister(side) => self.take_out(side, Service::unregister_iommu),
            Op::ForceUnregister(side) => self.take_out(side, Service::force_unregister_iommu),
            Op::Register(side) => self.put_into_service(side),
            Op::Stick(side) => self.inject(side, Injection::StatusNeverClears(SyncRegister::Global)),
            Op::LoseSync(side) => self.inject(side, Injection::SyncTimesOut(1)),
            Op::Heal(side) => {
                self.machine.smmu(side.key(), smmu_model::Smmu::clear_injections);
                Outcome::Done
            }
            Op::CutPower(side) => self.switch(side, false),
            Op::RestorePower(side) => self.switch(side, true),
            Op::BreakHook(slot) => {
                self.hooks(slot).broken.store(true, Ordering::Relaxed);
                Outcome::Done
            }
            Op::Plug => self.plug()?,
            Op::Unplug => self.unplug()?,
            Op::Pull => self.pull()?,
            Op::SwitchOn => self.switch_on()?,
            Op::SwitchOff => self.switch_off()?,
            Op::Apply(sheet) => self.apply(sheet),
            Op::Revert(sheet) => self.revert(sheet),
        })
    }

    fn add(&mut self, slot: Slot) -> Outcome {
        let spec = self.spec(slot);
        let result = self.service.add(spec);
        if let Ok(device) = &result {
            self.keep(slot, device);
        }
        told(&result, |_| Outcome::Done)
    }

    fn spec(&mut self, slot: Slot) -> DeviceSpec {
        DeviceSpec {
            parent: slot.parent().map(Slot::key),
            isolation: slot.isolation(),
            hooks: self.hooks(slot),
            ..DeviceSpec::new(slot.key(), slot.label(), slot.offered())
        }
    }

    fn keep(&mut self, slot: Slot, device: &Device) {
        let old = self.handles.remove(&slot).map(|(last, _)| last);
        self.handles.insert(slot, (device.clone(), old));
    }

    fn moving(
        &self,
        slot: Slot,
        guest: Guest,
        act: impl FnOnce(&Service<Spin>, &Device, &Domain<Spin>) -> Result<(), Error>,
    ) -> Outcome {
        let both = self.handles.get(&slot).zip(self.guests.get(&guest));
        both.map_or(Outcome::Skipped, |((device, _), guest)| {
            told(&act(self.service, device, &guest.domain), |()| Outcome::Done)
        })
    }

    fn reserve(&mut self, slot: Slot, guest: Guest) -> Outcome {
        let both = self.handles.get(&slot).zip(self.guests.get(&guest));
        let Some(((device, _), running)) = both else { return Outcome::Skipped };
        match self.service.reserve(device, &running.domain) {
            Ok(reservation) => {
                self.reservations.insert(slot, reservation);
                Outcome::Done
            }
            Err(error) => Outcome::from(&error),
        }
    }

    fn end(&mut self, slot: Slot, act: impl FnOnce(Reservation<'s, Spin>) -> Result<(), Error>) -> Outcome {
        let reservation = self.reservations.remove(&slot);
        reservation.map_or(Outcome::Skipped, |reservation| told(&act(reservation), |()| Outcome::Done))
    }

    fn leaving(&self, slot: Slot, act: impl FnOnce(&Service<Spin>, &Device) -> Result<Deassigned, Error>) -> Outcome {
        self.handles.get(&slot).map_or(Outcome::Skipped, |(device, _)| told(&act(self.service, device), deassigned))
    }

    fn create(&mut self, guest: Guest) -> Outcome {
        if self.guests.get(&guest).is_some_and(|running| self.is_alive(&running.domain)) {
            return Outcome::Skipped;
        }
        // The memory of a guest's earlier tables is used again, which is what makes a stale root dangerous.
        let pool = 0x8000_0000_u64.wrapping_add((guest as u64) << 20);
        let mut tables = Stage2Tables::new(&self.machine, pool, 40, 40);
        tables.map(PAGE, backing(guest), true);
        let created = self.service.create_domain(Label::from(guest.name()), tables.stage2());
        told(&created, |domain| {
            self.guests.insert(guest, Running { domain: domain.clone(), tables, last: false });
            Outcome::Done
        })
    }

    /// Whether the service knows the domain still: it is the only one that gives nothing back to a second destroyer.
    fn is_alive(&self, domain: &Domain<Spin>) -> bool {
        let guest = Guest::ALL.into_iter().find(|guest| domain.label().to_string() == guest.name());
        guest.is_some_and(|guest| self.states.first().is_some_and(|state| state.is_running(guest)))
    }

    fn destroy(&mut self, guest: Guest) -> Outcome {
        let Some(running) = self.guests.get_mut(&guest) else { return Outcome::Skipped };
        let result = self.service.destroy_domain(&running.domain);
        if result.is_ok() {
            running.tables.scribble();
        }
        told(&result, |()| Outcome::Done)
    }

    fn map(&mut self, guest: Guest) -> Outcome {
        let mappable =
            self.states.first().is_some_and(|state| state.is_running(guest) && state.second(guest).is_none());
        let running = self.guests.get_mut(&guest).filter(|_| mappable);
        running.map_or(Outcome::Skipped, |running| {
            running.last = !running.last;
            running.tables.map(SECOND, frame(guest, running.last), true);
            Outcome::Done
        })
    }

    fn unmap(&mut self, guest: Guest) -> Outcome {
        let mapped = self.states.first().is_some_and(|state| state.is_running(guest) && state.second(guest).is_some());
        let running = self.guests.get_mut(&guest).filter(|_| mapped);
        running.map_or(Outcome::Skipped, |running| {
            running.tables.unmap(SECOND);
            Outcome::Done
        })
    }

    fn dma(&self, side: Side, id: u16) -> Result<Outcome, String> {
        let physical = match self.machine.dma_write(side.key(), StreamId::new(id.into()), PAGE) {
            Some(Reached::Memory(physical)) => physical,
            Some(Reached::Fault) => return Ok(Outcome::Reached(None)),
            other => return Err(format!("I-3: stream {id:#x} of SMMU {side:?} came to {other:?}")),
        };
        let guest = Guest::ALL.into_iter().find(|guest| backing(*guest) == physical);
        guest
            .map(|guest| Outcome::Reached(Some(guest)))
            .ok_or_else(|| format!("I-2: stream {id:#x} of SMMU {side:?} reached {physical:#x}, which is nobody's"))
    }

    fn dma_second(&self, side: Side, id: u16) -> Result<Outcome, String> {
        let physical = match self.machine.dma_write(side.key(), StreamId::new(id.into()), SECOND) {
            Some(Reached::Memory(physical)) => physical,
            Some(Reached::Fault) => return Ok(Outcome::ReachedSecond(None)),
            other => return Err(format!("I-3: stream {id:#x} of SMMU {side:?} came to {other:?}")),
        };
        let frames = Guest::ALL.into_iter().flat_map(|guest| [(guest, false), (guest, true)]);
        let found = frames.into_iter().find(|(guest, last)| frame(*guest, *last) == physical);
        found
            .map(|found| Outcome::ReachedSecond(Some(found)))
            .ok_or_else(|| format!("I-2: stream {id:#x} of SMMU {side:?} reached {physical:#x}, which is nobody's"))
    }

    fn handle(&self, side: Side, line: FaultLine) -> Result<Outcome, String> {
        let mut records: Vec<FaultRecord> = Vec::new();
        if self.service.handle_fault(side.key(), line, &mut |record| records.push(record.clone())).is_err() {
            return Ok(Outcome::refused(Refusal::NotFound));
        }
        records.iter().try_for_each(|record| self.check_record(side, record))?;
        Ok(Outcome::Done)
    }

    fn put_into_service(&mut self, side: Side) -> Outcome {
        let smmu = match self.smmu_mut(side).clone() {
            Some(smmu) => smmu,
            None => {
                let setup = Setup { power: Some(self.power(side).clone()), ..Setup::default() };
                let masters = self.masters.clone();
                match Smmu::probe_with(self.board.config(side), setup, self.registers(side), masters) {
                    Ok(smmu) => Arc::new(smmu),
                    Err(_) => return Outcome::refused(Refusal::Probe(side)),
                }
            }
        };
        let result = self.service.register_iommu(smmu.clone());
        *self.smmu_mut(side) = Some(smmu);
        told(&result, |()| Outcome::Done)
    }

    fn take_out(&mut self, side: Side, act: impl FnOnce(&Service<Spin>, IommuKey) -> Result<(), Error>) -> Outcome {
        let result = act(self.service, side.key());
        if result.is_ok() {
            *self.smmu_mut(side) = None;
        }
        told(&result, |()| Outcome::Done)
    }

    fn inject(&self, side: Side, injection: Injection) -> Outcome {
        self.machine.smmu(side.key(), |smmu| smmu.inject(injection));
        Outcome::Done
    }

    const fn smmu_mut(&mut self, side: Side) -> &mut Option<Arc<Smmu<Spin, ModelRegisters>>> {
        let [a, b] = &mut self.smmus;
        match side {
            Side::A => a,
            Side::B => b,
        }
    }

    fn registers(&self, side: Side) -> ModelRegisters {
        let [a, b] = &self.registers;
        match side {
            Side::A => a.clone(),
            Side::B => b.clone(),
        }
    }

    fn power(&self, side: Side) -> &Arc<Switch> {
        let [a, b] = &self.powers;
        match side {
            Side::A => a,
            Side::B => b,
        }
    }

    fn switch(&self, side: Side, on: bool) -> Outcome {
        self.power(side).off.store(!on, Ordering::Relaxed);
        Outcome::Done
    }

    fn hooks(&mut self, slot: Slot) -> Arc<Hooks> {
        self.hooks.entry(slot).or_default().clone()
    }
}

impl fmt::Debug for World<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "World({:?} after {:?})", self.board, self.script)
    }
}

/// The memory behind a guest's first page.
const fn backing(guest: Guest) -> u64 {
    0x1_0000_0000_u64.wrapping_add((guest as u64) << 28)
}

/// One of the two frames that a guest's second page is mapped to in turn.
const fn frame(guest: Guest, last: bool) -> u64 {
    backing(guest).wrapping_add(if last { 0x2000 } else { 0x1000 })
}

fn removed(removal: &Removal) -> Outcome {
    match removal {
        Removal::Done => Outcome::Done,
        Removal::Pending => Outcome::Pending,
        Removal::StillReachable(mates) => Outcome::Removed(mates.iter().filter_map(Slot::named).collect()),
        _ => Outcome::refused(Refusal::Unexpected),
    }
}

fn deassigned(deassigned: &Deassigned) -> Outcome {
    Outcome::Deassigned(deassigned.still_reachable.iter().filter_map(Slot::named).collect())
}

fn told<T>(result: &Result<T, Error>, done: impl FnOnce(&T) -> Outcome) -> Outcome {
    match result {
        Ok(value) => done(value),
        Err(error) => Outcome::from(error),
    }
}

/// The policy of [`Guest::may_have`].
#[derive(Debug)]
struct Universe;

impl Policy for Universe {
    fn allows(&self, request: &PolicyRequest<'_>) -> bool {
        let guest = Guest::ALL.into_iter().find(|guest| request.domain.to_string() == guest.name());
        let slot = Slot::of(request.device.key());
        guest.zip(slot).is_none_or(|(guest, slot)| guest.may_have(slot))
    }
}

/// The power of an SMMU.
#[derive(Debug, Default)]
struct Switch {
    off: AtomicBool,
    users: AtomicUsize,
}

impl Power for Switch {
    fn get(&self) -> Result<(), PowerError> {
        if self.off.load(Ordering::Relaxed) {
            return Err(PowerError("it is cut"));
        }
        self.users.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn put(&self) {
        self.users.fetch_sub(1, Ordering::Relaxed);
    }

    fn get_if_on(&self) -> bool {
        self.get().is_ok()
    }
}

/// Hooks that fail once when they are told to.
#[derive(Debug, Default)]
struct Hooks {
    broken: AtomicBool,
    quiet: AtomicBool,
    /// It was quiesced and reset since it was seen assigned last.
    clean: AtomicBool,
}

impl Hooks {
    fn act(&self) -> Result<(), HookError> {
        if self.broken.swap(false, Ordering::Relaxed) { Err(HookError("broken")) } else { Ok(()) }
    }
}

impl DeviceHooks for Hooks {
    fn quiesce(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        let quiet = self.act();
        self.quiet.store(quiet.is_ok(), Ordering::Relaxed);
        quiet
    }

    fn reset(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        self.act()?;
        self.clean.store(self.quiet.load(Ordering::Relaxed), Ordering::Relaxed);
        Ok(())
    }

    fn release(&self, _: &HookContext<'_>) {}
}
