//! The machine that the threads work on, and each operation on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use iommu_assign::assign::{
    Cause, DeviceSpec, DeviceState, Domain, Error, Label, Policy, PolicyRequest, Removal, Reservation, Service,
};
use iommu_assign::smmu::{Masters, Smmu};
use iommu_assign::sync::Explored;
use machine::op::{Guest, Op, Side, Slot};
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
        (Self { service, domains, oracles, clock: AtomicU64::new(0), board, masters, registers, out }, specification)
    }

    /// Runs one operation; `None` where nobody could have asked for it.
    pub(super) fn act<'a>(&'a self, op: Op, mine: &mut Mine<'a>) -> Option<Call> {
        let device = |slot: Slot| self.service.find(slot.key()).map(|info| info.device);
        let domain = |guest: Guest| self.domains.get(&guest);
        let ready: Box<dyn FnOnce(&mut Mine<'a>) -> Seen + '_> = match op {
            Op::Add(slot) => {
                let spec = DeviceSpec {
                    parent: slot.parent().map(Slot::key),
                    isolation: slot.isolation(),
                    ..DeviceSpec::new(slot.key(), slot.label(), slot.offered())
                };
                Box::new(move |_| seen(self.service.add(spec), |_| Outcome::Done))
            }
            Op::Remove(slot) => Box::new(move |_| match self.service.remove(slot.key()) {
                Ok(Removal::Pending) => Seen::Pending,
                result => seen(result, |removal| match removal {
                    Removal::StillReachable(mates) => Outcome::Removed(mates.iter().filter_map(Slot::named).collect()),
                    _ => Outcome::Done,
                }),
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
                Box::new(move |_| {
                    seen(self.service.deassign(&device), |done| {
                        Outcome::Deassigned(done.still_reachable.iter().filter_map(Slot::named).collect())
                    })
                })
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
        Some(Call { op, called, returned, seen })
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
