//! The driver alone, without the service: it is sound on its own for any caller (contract C-15).
//!
//! A tiny SMMU (4 entries, 2 banks) on the model, under the isolation oracle. Its callers do not claim anything: what
//! they do at once to one device, the driver itself must order or refuse.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use iommu_assign::assign::{
    AddressSpace, DeviceId, DomainId, FaultLine, Iommu, IommuError, IommuFaults, IommuKey, Label, Patience,
    PhysicalAddress, Source, Stream, StreamId, StreamMask,
};
use iommu_assign::smmu::{Architecture, EmptyRoot, Masters, Power, PowerError, Registers, Setup, Smmu, SmmuConfig};
use iommu_assign::sync::Explored;
use machine::oracle::Oracle;
use machine::{Machine, ModelRegisters, Stage2Tables};
use smmu_model::{Access, Config, SyncDelay, Transaction};

use crate::universe::{Answer, Op, Relation, Universe};

pub(crate) const KEY: IommuKey = IommuKey::new(0x5000_0000);
pub(crate) const PAGE: u64 = 0x4000_0000;

/// The memory of a domain.
fn backing(n: u64) -> u64 {
    0x1_0000_0000 + n * 0x1000_0000
}

/// A tiny SMMU and three domains, under the oracle.
pub(crate) struct Part {
    pub(crate) smmu: Smmu<Explored, Timely>,
    pub(crate) machine: Machine,
    pub(crate) spaces: [AddressSpace; 3],
    pub(crate) oracle: Oracle,
}

/// Counts who holds the power, as the explorer's own eyes see it.
#[derive(Debug, Default)]
struct Counted(AtomicU32);

impl Power for Counted {
    fn get(&self) -> Result<(), PowerError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn put(&self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }

    fn get_if_on(&self) -> bool {
        let join = |users: u32| users.checked_add(1).filter(|_| users > 0);
        self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, join).is_ok()
    }
}

/// Registers that time passes at: what is in flight ends while a status is polled.
pub(crate) struct Timely {
    registers: ModelRegisters,
    machine: Machine,
    /// Reads since the last write.
    reads: AtomicU32,
}

impl std::fmt::Debug for Timely {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Timely")
    }
}

impl Registers for Timely {
    fn read32(&self, offset: u32) -> u32 {
        if self.reads.fetch_add(1, Ordering::SeqCst) > 0 {
            self.machine.with_memory(KEY, |smmu, memory| smmu.drain(memory));
        }
        self.registers.read32(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.reads.store(0, Ordering::SeqCst);
        self.registers.write32(offset, value);
    }

    fn read64(&self, offset: u32) -> u64 {
        self.registers.read64(offset)
    }

    fn write64(&self, offset: u32, value: u64) {
        self.reads.store(0, Ordering::SeqCst);
        self.registers.write64(offset, value);
    }
}

impl Part {
    pub(crate) fn new() -> Self {
        let machine = Machine::new();
        let model = Config { groups: 4, banks: 2, sync_delay: SyncDelay::Polls(1), ..Config::generic_v2() };
        let empty = EmptyRoot { address: PhysicalAddress::new(0x100_0000), size: 0x10_0000 };
        let mut config = SmmuConfig::new(KEY, u64::from(model.bank_base()) * 2, Architecture::V2, empty);
        config.polls = 20;
        let registers = machine.add_smmu(KEY, model);
        let registers = Timely { registers, machine: machine.clone(), reads: AtomicU32::new(0) };
        let power = Arc::new(Counted::default());
        let setup = Setup { power: Some(power.clone()), ..Setup::default() };
        let smmu = Smmu::probe_with(config, setup, registers, Arc::new(Masters::new()));
        let smmu = smmu.unwrap_or_else(|error| panic!("the universe cannot be made: {error}"));
        let oracle = Oracle::default();
        oracle.watch_only(&machine, KEY, PAGE, [0, 1, 2, 3, 4]);
        let looks = oracle.clone();
        machine.observe(
            KEY,
            Box::new(move |smmu, memory| {
                assert!(power.0.load(Ordering::SeqCst) > 0, "S-5: a register is written without power");
                looks.look(smmu, memory, PAGE);
            }),
        );
        let spaces = [0, 1, 2].map(|n: u64| {
            let mut tables = Stage2Tables::new(&machine, 0x8000_0000 + n * 0x10_0000, 40, 40);
            tables.map(PAGE, backing(n), true);
            AddressSpace { domain: DomainId::new(n + 1), stage2: tables.stage2() }
        });
        Self { smmu, machine, spaces, oracle }
    }

    /// The driver orders nothing for its callers: a device may be in any of these domains, but for a shared stream never in
    /// two at once.
    pub(crate) fn allow(&self, device: &str, streams: &[(u32, u32)], domains: &[u64]) {
        let backings: Vec<u64> = domains.iter().map(|n| backing(*n)).collect();
        self.oracle.allow(&Label::from(device), streams, &backings);
    }

    /// Publishes, reserves and enrols a device, up to the first step that fails.
    pub(crate) fn add(
        &self,
        device: DeviceId,
        streams: &[(u32, u32)],
        is_claimed: &dyn Fn(DeviceId) -> bool,
    ) -> Result<(), IommuError> {
        let stream = |(id, mask): &(u32, u32)| Stream::new(KEY, StreamId::new(*id), StreamMask::new(*mask));
        let streams: Vec<Stream> = streams.iter().map(stream).collect();
        let master = self.smmu.make_master(device, &streams, false);
        let master = master.unwrap_or_else(|error| panic!("the hardware cannot hold the streams: {error}"));
        if !self.smmu.publish(master)? {
            self.smmu.reserve(device, is_claimed)?;
        }
        self.smmu.enrol(device)
    }

    /// Plans and installs; gives the plan back where the device was not in fault.
    pub(crate) fn assign(&self, device: DeviceId, space: usize) -> Result<(), (Step, IommuError)> {
        self.smmu.plan(&[device], &self.spaces[space], &|_| true).map_err(|error| (Step::Plan, error))?;
        self.smmu.install(&[device]).map_err(|error| {
            self.smmu.abandon(&[device]);
            (Step::AfterPlan, error)
        })
    }

    pub(crate) fn reassign(&self, device: DeviceId, space: usize) -> Result<(), (Step, IommuError)> {
        self.smmu.plan(&[device], &self.spaces[space], &|_| true).map_err(|error| (Step::Plan, error))?;
        let moved = self.smmu.block(&[device]).and_then(|_| self.smmu.install(&[device]));
        moved.map_err(|error| {
            self.smmu.abandon(&[device]);
            (Step::AfterPlan, error)
        })
    }

    /// A write of `stream` that is in flight, steered and not translated yet.
    pub(crate) fn send(&self, stream: u32) {
        let Ok(stream) = u16::try_from(stream) else { return };
        self.machine.with_memory(KEY, |smmu, memory| {
            let sent = smmu.accept(Transaction { access: Access::Write, ..Transaction::read(stream, PAGE, 1) });
            smmu.step(memory, sent)
        });
    }

    /// In which domain a device is; an error where it is not known.
    pub(crate) fn place(&self, device: DeviceId) -> Result<Option<DomainId>, IommuError> {
        let before = device.number().checked_sub(1).map(DeviceId::new);
        let known = self.smmu.next_known(before).filter(|(known, _)| *known == device);
        known.map(|(_, domain)| domain).ok_or(IommuError::Unknown)
    }

    /// Nothing that must not be was seen, and what the driver believes is what the registers say.
    pub(crate) fn check(&self) {
        let (_, violations) = self.oracle.verdict();
        assert!(violations.is_empty(), "isolation: {violations:#?}");
        self.smmu.audit(&mut |difference| panic!("audit: {difference}"));
    }
}

/// How far a move came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Plan,
    AfterPlan,
}

/// A part, and two devices.
pub(crate) struct Driver {
    part: Part,
    streams: [(u32, u32); 2],
    /// No other call is about the same streams: what was planned cannot be refused.
    apart: bool,
}

pub(crate) fn device(n: usize) -> DeviceId {
    DeviceId::new(n as u64 + 1)
}

impl Universe for Driver {
    const NAME: &'static str = "driver";
    const OPS: &'static [Op] = &[Op::Add, Op::Remove, Op::Assign, Op::Deassign, Op::Reassign, Op::Flush, Op::Fault];
    const FURTHER: bool = false;

    fn new(relation: Relation, _: [Source; 2]) -> Self {
        let part = Part::new();
        let streams = [(1, 0), (if relation.shares_stream() { 1 } else { 2 }, 0)];
        part.allow("first", &streams[..1], &[0, 1]);
        part.allow("second", &streams[1..], &[0, 1]);
        let apart = !relation.shares_stream() && relation != Relation::SameDevice;
        Self { part, streams, apart }
    }

    fn prepare(&self, op: Op, n: usize) {
        if op != Op::Add {
            let _ = self.run(Op::Add, n);
        }
        if matches!(op, Op::Remove | Op::Deassign | Op::Reassign | Op::Flush | Op::Fault) {
            let _ = self.run(Op::Assign, n);
            self.part.send(self.streams[n].0);
        }
    }

    fn run(&self, op: Op, n: usize) -> Answer {
        let Part { smmu, spaces, .. } = &self.part;
        let device = device(n);
        let moved = |moved: Result<(), (Step, IommuError)>| match moved {
            Err((Step::AfterPlan, error)) if self.apart => panic!("A-1: {error} after the plan"),
            moved => moved.map_err(|(_, error)| error),
        };
        answer(match op {
            Op::Add => match self.part.add(device, &self.streams[n..=n], &|_| true) {
                // The device went between two of the steps: added, then removed.
                Err(IommuError::Unknown) => return Answer::Removed,
                result => result,
            },
            Op::Remove => match smmu.block(&[device]).and_then(|_| smmu.withdraw(device)) {
                // It was planned, or moved, between the two steps.
                Err(IommuError::Busy) => return Answer::Partial,
                result => result.map(drop),
            },
            Op::Assign => moved(self.part.assign(device, 0)),
            Op::Reassign => {
                let was_in = matches!(self.part.place(device), Ok(Some(_)));
                match moved(self.part.reassign(device, 1)) {
                    // Its plan stood, or it was moved between its two steps.
                    Err(IommuError::Busy) if was_in => return Answer::Partial,
                    result => result,
                }
            }
            Op::Deassign => smmu.block(&[device]).map(drop),
            Op::Flush => smmu.flush(spaces[0].domain, None, Patience::Waiting),
            Op::Fault => {
                // No storm can come of what never faults.
                let _ = smmu.take_faults(FaultLine::Context(0), &mut |_| ());
                Ok(())
            }
            _ => Ok(()),
        })
    }

    fn state(&self) -> String {
        self.part.check();
        let place = |n| match self.part.place(device(n)) {
            Ok(Some(domain)) => format!("in {domain}"),
            Ok(None) => "in fault".into(),
            Err(_) => "unknown".into(),
        };
        format!("first {}, second {}", place(0), place(1))
    }

    fn take_down(&self) {
        for n in [0, 1] {
            let answer = self.run(Op::Remove, n);
            assert!(matches!(answer, Answer::Done | Answer::Refused(_)), "A-4: {answer:?} on removing device {n}");
        }
        // All four entries and both banks are free again.
        for n in 0..4 {
            let added = self.part.add(device(10 + n), &[(0x40 + 2 * n as u32, 0)], &|_| false);
            assert_eq!(added, Ok(()), "A-3: an entry has leaked");
        }
        for n in 0..2 {
            let planned = self.part.smmu.plan(&[device(10 + n)], &self.part.spaces[n], &|_| false);
            assert!(planned.is_ok(), "A-3: a bank has leaked: {planned:?}");
        }
        self.part.check();
    }
}

fn answer(result: Result<(), IommuError>) -> Answer {
    match result {
        Ok(()) => Answer::Done,
        Err(IommuError::Busy) => Answer::Busy,
        // Explained by what the other operation held, or was draining: nothing done (contract C-15).
        Err(IommuError::Exhausted { .. }) => Answer::Busy,
        Err(error) => Answer::Refused(error.to_string()),
    }
}
