//! The machine that the threads work on, and each operation on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use iommu_assign::assign::{
    Answer, Cause, Completion, Deassigned, DeviceSpec, DeviceState, Domain, Error, Label, Policy, PolicyRequest,
    Removal, Request, RequestQueue, Reservation, Service, Target,
};
use iommu_assign::smmu::{Masters, Smmu};
use iommu_assign::sync::Explored;
use machine::op::{Ask, Guest, Op, Side, Slot};
use machine::oracle::Oracle;
use machine::specification::{Outcome, Specification};
use machine::world::Board;
use machine::{Machine, ModelRegisters, Stage2Tables};

use super::history::{Call, Seen};

const PAGE: u64 = 0x4000_0000;

/// The service, the driver and two small SMMUs.
pub(super) struct Run {
    pub(super) service: Service<Explored>,
    domains: BTreeMap<Guest, Domain<Explored>>,
    pub(super) oracles: [Oracle; 2],
    clock: AtomicU64,
    queue: RequestQueue<Explored>,
    /// How many clients of the queue have all their answers.
    pub(super) served: AtomicUsize,
    board: Board,
    masters: Arc<Masters<Explored>>,
    registers: [ModelRegisters; 2],
    /// SMMUs that are out of service, and that nobody is putting back.
    out: [AtomicBool; 2],
}

/// What one thread has reserved.
pub(super) type Mine<'a> = BTreeMap<Slot, Reservation<'a, Explored>>;

#[derive(Debug)]
struct ByGuest;

impl Policy for ByGuest {
    fn allows(&self, request: &PolicyRequest<'_>) -> bool {
        let guest = Guest::ALL.into_iter().find(|guest| request.domain.to_string() == guest.name());
        let slot = Slot::of(request.device.key());
        guest.zip(slot).is_none_or(|(guest, slot)| guest.may_have(slot))
    }
}

impl Run {
    pub(super) fn new() -> (Self, Specification) {
        let board = Board::Small;
        let machine = Machine::new();
        let service = Service::new(Box::new(ByGuest));
        let masters = Arc::new(Masters::<Explored>::new());
        let oracles = <[Oracle; 2]>::default();
        let registers = Side::ALL.map(|side| machine.add_smmu(side.key(), board.model(side)));
        for ((side, oracle), registers) in Side::ALL.into_iter().zip(&oracles).zip(&registers) {
            let smmu = must(Smmu::probe(board.config(side), registers.clone(), masters.clone()));
            must(service.register_iommu(Arc::new(smmu)));
            oracle.watch_only(&machine, side.key(), PAGE, [Slot::STRANGER, 0x7fff]);
        }
        let mut specification = Specification::new(Side::ALL.map(|side| board.part(side)));
        let mut domains = BTreeMap::new();
        for (n, guest) in (0_u64..).zip(Guest::ALL) {
            let mut tables = Stage2Tables::new(&machine, 0x8000_0000 + (n << 20), 40, 40);
            tables.map(PAGE, backing(guest), true);
            domains.insert(guest, must(service.create_domain(Label::from(guest.name()), tables.stage2())));
            let created =
                specification.step(Op::Create(guest)).into_iter().find(|(outcome, _)| *outcome == Outcome::Done);
            specification = created.map(|(_, after)| after).unwrap_or(specification);
        }
        // Whose a device is changes while others look: either guest that may have it will do, never a stranger's
        // memory, never untranslated, never two at once.
        for slot in Slot::ALL {
            let mayers: Vec<u64> = Guest::ALL.into_iter().map(backing).collect();
            for (side, oracle) in Side::ALL.into_iter().zip(&oracles) {
                let streams: Vec<(u32, u32)> = slot.ids(side).map(|(_, id)| (u32::from(id), 0)).collect();
                oracle.allow(&slot.label(), &streams, &mayers);
            }
        }
        let out = Default::default();
        let (queue, served, clock) = (RequestQueue::new(), AtomicUsize::new(0), AtomicU64::new(0));
        (Self { service, domains, oracles, clock, queue, served, board, masters, registers, out }, specification)
    }

    /// Runs one operation; `None` where nobody could have asked for it.
    pub(super) fn act<'a>(&'a self, op: Op, mine: &mut Mine<'a>) -> Option<Call> {
        let device = |slot: Slot| self.service.find(slot.key()).map(|info| info.device);
        let domain = |guest: Guest| self.domains.get(&guest);
        let ready: Box<dyn FnOnce(&mut Mine<'a>) -> Seen + '_> = match op {
            Op::Add(slot) => {
                let spec = spec(slot);
                Box::new(move |_| seen(self.service.add(spec), |_| Outcome::Done))
            }
            Op::Remove(slot) => Box::new(move |_| match self.service.remove(slot.key()) {
                Ok(Removal::Pending) => Seen::Pending,
                result => seen(result, removed),
            }),
            Op::Assign(slot, guest) => {
                let (device, domain) = (device(slot)?, domain(guest)?);
                Box::new(move |_| seen(self.service.assign(&device, domain), |()| Outcome::Done))
            }
            Op::AssignGroup(slot, guest) => {
                let (device, domain) = (device(slot)?, domain(guest)?);
                Box::new(move |_| seen(self.service.assign_group(&device, domain), |()| Outcome::Done))
            }
            Op::Reassign(slot, guest) => {
                let (device, domain) = (device(slot)?, domain(guest)?);
                Box::new(move |_| seen(self.service.reassign(&device, domain), |()| Outcome::Done))
            }
            Op::Deassign(slot) => {
                let device = device(slot)?;
                Box::new(move |_| seen(self.service.deassign(&device), deassigned))
            }
            Op::TestAssign(slot, guest) => {
                let (device, domain) = (device(slot)?, domain(guest)?);
                Box::new(move |_| seen(self.service.test_assign(&device, domain), |()| Outcome::Done))
            }
            Op::Reserve(slot, guest) => {
                let (device, domain) = (device(slot)?, domain(guest)?);
                Box::new(move |mine| match self.service.reserve(&device, domain) {
                    Ok(reservation) => {
                        mine.insert(slot, reservation);
                        Seen::Told(Outcome::Done)
                    }
                    Err(error) => seen::<()>(Err(error), |()| Outcome::Done),
                })
            }
            Op::Commit(slot) => {
                let reservation = mine.remove(&slot)?;
                Box::new(move |_| seen(reservation.commit(), |()| Outcome::Done))
            }
            Op::Abandon(slot) => {
                let reservation = mine.remove(&slot)?;
                Box::new(move |_| seen(reservation.abandon(), |()| Outcome::Done))
            }
            Op::Flush(guest) => {
                let domain = domain(guest)?;
                Box::new(move |_| seen(self.service.flush(domain), |()| Outcome::Done))
            }
            Op::Destroy(guest) => {
                let domain = domain(guest)?;
                Box::new(move |_| seen(self.service.destroy_domain(domain), |()| Outcome::Done))
            }
            Op::ForceUnregister(side) => Box::new(move |_| {
                let result = self.service.force_unregister_iommu(side.key());
                if result.is_ok() {
                    self.out[side as usize].store(true, Ordering::SeqCst);
                }
                seen(result, |()| Outcome::Done)
            }),
            Op::Register(side) => {
                // Two drivers for one SMMU are nobody's to sort out: who probes it is alone.
                if !self.out[side as usize].swap(false, Ordering::SeqCst) {
                    return None;
                }
                Box::new(move |_| {
                    let registers = self.registers[side as usize].clone();
                    let smmu = must(Smmu::probe(self.board.config(side), registers, self.masters.clone()));
                    seen(self.service.register_iommu(Arc::new(smmu)), |()| Outcome::Done)
                })
            }
            _ => return None,
        };
        let called = self.clock.fetch_add(1, Ordering::SeqCst);
        let seen = ready(mine);
        let returned = self.clock.fetch_add(1, Ordering::SeqCst);
        Some(Call { op, called, returned, seen, beside: Vec::new() })
    }

    /// Puts a request in the queue, and says when. `None` where nobody could have asked for it.
    pub(super) fn submit(&self, ask: Ask) -> Option<Submitted> {
        let target = Target::Key(ask.slot().key());
        let domain = |guest: Guest| self.domains.get(&guest).cloned();
        let request = match ask {
            Ask::Offer(slot) => Request::Add(spec(slot)),
            Ask::Unplug(slot) => Request::Remove(slot.key().into()),
            Ask::Give(_, guest) => Request::Assign(target, domain(guest)?),
            Ask::Pass(_, guest) => Request::Reassign(target, domain(guest)?),
            Ask::Take(_) => Request::Deassign(target),
        };
        let ready = self.queue.prepare(request);
        let called = self.clock.fetch_add(1, Ordering::SeqCst);
        Some(Submitted { ask, called, completion: self.queue.submit(ready) })
    }

    /// Waits for the answers, in order; cancels the last one before, where `cancels`.
    pub(super) fn collect(&self, submitted: Vec<Submitted>, cancels: bool) -> Vec<Call> {
        if let Some(last) = submitted.last().filter(|_| cancels) {
            let _ = last.completion.cancel();
        }
        let answered = |Submitted { ask, called, completion }: Submitted| {
            let seen = loop {
                match completion.poll() {
                    Some(answer) => break queued(answer.clone()),
                    None => shuttle::thread::yield_now(),
                }
            };
            let returned = self.clock.fetch_add(1, Ordering::SeqCst);
            Call { op: ask.op(), called, returned, seen, beside: Vec::new() }
        };
        submitted.into_iter().map(answered).collect()
    }

    /// Works until all `clients` of the queue have their answers.
    pub(super) fn work(&self, clients: usize) {
        let mut worker = must(self.queue.worker().ok_or("the worker is out"));
        while self.served.load(Ordering::SeqCst) < clients {
            let _ = worker.drain(&self.service);
            shuttle::thread::yield_now();
        }
    }

    /// Registered devices, whose they are and who is in their group, as the specification shows them.
    pub(super) fn shown(&self) -> BTreeMap<Slot, Option<Label>> {
        let mut shown = BTreeMap::new();
        for info in self.service.devices() {
            if let Some(slot) = Slot::of(info.device.key()) {
                let owner = matches!(info.state, DeviceState::Assigned(_)).then_some(info.domain).flatten();
                shown.insert(slot, owner);
            }
        }
        shown
    }
}

/// A request without an answer yet.
pub(super) struct Submitted {
    ask: Ask,
    called: u64,
    completion: Completion<Explored>,
}

fn spec(slot: Slot) -> DeviceSpec {
    DeviceSpec {
        parent: slot.parent().map(Slot::key),
        isolation: slot.isolation(),
        ..DeviceSpec::new(slot.key(), slot.label(), slot.offered())
    }
}

fn removed(removal: &Removal) -> Outcome {
    match removal {
        Removal::StillReachable(mates) => Outcome::Removed(mates.iter().filter_map(Slot::named).collect()),
        _ => Outcome::Done,
    }
}

fn deassigned(done: &Deassigned) -> Outcome {
    Outcome::Deassigned(done.still_reachable.iter().filter_map(Slot::named).collect())
}

fn queued(answer: Result<Answer, Error>) -> Seen {
    match answer {
        Ok(Answer::Removed(Removal::Pending)) => Seen::Pending,
        Err(Error { cause: Cause::Busy { .. }, .. }) => panic!("C-12: the queue tries again what met a claimed group"),
        // Nothing was done (contract C-15).
        Err(Error { cause: Cause::Cancelled, .. }) => Seen::Busy,
        answer => seen(answer, |answer| match answer {
            Answer::Removed(removal) => removed(removal),
            Answer::Deassigned(done) => deassigned(done),
            _ => Outcome::Done,
        }),
    }
}

fn seen<T>(result: Result<T, Error>, done: impl FnOnce(&T) -> Outcome) -> Seen {
    match &result {
        Ok(value) => Seen::Told(done(value)),
        Err(error) => match error.cause {
            Cause::Busy { .. } => Seen::Busy,
            Cause::Removed => Seen::Removed,
            _ => Seen::Told(Outcome::from(error)),
        },
    }
}

fn backing(guest: Guest) -> u64 {
    0x1_0000_0000 + ((guest as u64) << 28)
}

fn must<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    result.unwrap_or_else(|error| panic!("the machine cannot be made: {error}"))
}
