//! The driver alone, without the service: it is sound on its own for any caller (contract C-15).
//!
//! A tiny SMMU (4 entries, 2 banks) on the model, under the isolation oracle. Its callers do not claim anything: what
//! they do at once to one device, the driver itself must order or refuse.

use std::sync::Arc;

use iommu_assign::assign::{
    AddressSpace, DeviceId, DomainId, FaultLine, Iommu, IommuError, IommuKey, Label, NewMaster, PhysicalAddress,
    Source, Stream, StreamId, StreamMask,
};
use iommu_assign::smmu::{Architecture, EmptyRoot, Masters, Smmu, SmmuConfig};
use iommu_assign::sync::Explored;
use machine::oracle::Oracle;
use machine::{Machine, ModelRegisters, Stage2Tables};
use smmu_model::{Config, SyncDelay};

use crate::universe::{Answer, Op, Relation, Universe};

const KEY: IommuKey = IommuKey::new(0x5000_0000);
const PAGE: u64 = 0x4000_0000;
const BACKING: [u64; 2] = [0x1_0000_0000, 0x1_1000_0000];

/// A tiny SMMU, two devices and two domains.
pub(crate) struct Driver {
    smmu: Smmu<Explored, ModelRegisters>,
    streams: [Vec<Stream>; 2],
    spaces: [AddressSpace; 2],
    oracle: Oracle,
}

impl Driver {
    fn device(n: usize) -> DeviceId {
        DeviceId::new(n as u64 + 1)
    }

    fn new_master(&self, device: DeviceId, streams: &[Stream]) -> NewMaster {
        let made = self.smmu.new_master(device, streams, None);
        made.unwrap_or_else(|error| panic!("the hardware cannot hold the streams: {error}"))
    }

    /// Plans and installs; gives the plan back where the devices were not in fault.
    fn assign(&self, n: usize, space: usize) -> Result<(), IommuError> {
        let devices = [Self::device(n)];
        let prepared = self.smmu.plan(&devices, &self.spaces[space], &mut |_| ())?;
        self.smmu.install(&devices, prepared)
    }

    fn reassign(&self, n: usize, space: usize) -> Result<(), IommuError> {
        let devices = [Self::device(n)];
        let prepared = self.smmu.plan(&devices, &self.spaces[space], &mut |_| ())?;
        match self.smmu.cut(&devices) {
            Ok(()) => self.smmu.install(&devices, prepared),
            Err(error) => {
                self.smmu.abandon(&devices, prepared);
                Err(error)
            }
        }
    }
}

impl Universe for Driver {
    const NAME: &'static str = "driver";
    const OPS: &'static [Op] = &[Op::Add, Op::Remove, Op::Assign, Op::Deassign, Op::Reassign, Op::Flush, Op::Fault];

    fn new(relation: Relation, _: [Source; 2]) -> Self {
        let machine = Machine::new();
        let model = Config { groups: 4, banks: 2, sync_delay: SyncDelay::Polls(0), ..Config::generic_v2() };
        let empty = EmptyRoot { address: PhysicalAddress::new(0x100_0000), size: 0x10_0000 };
        let mut config = SmmuConfig::new(KEY, u64::from(model.bank_base()) * 2, Architecture::V2, empty);
        config.polls = 20;
        let registers = machine.add_smmu(KEY, model);
        let smmu = Smmu::probe(config, registers, Arc::new(Masters::new()));
        let smmu = smmu.unwrap_or_else(|error| panic!("the universe cannot be made: {error}"));
        let oracle = Oracle::default();
        oracle.watch_only(&machine, KEY, PAGE, [0, 1, 2, 3, 4]);
        let stream = |id| Stream::new(KEY, StreamId::new(id), StreamMask::NONE);
        let second = if relation == Relation::SameGroup { 1 } else { 2 };
        // The driver orders nothing for its callers: either device may be in either domain, but for a shared stream
        // never in two at once.
        oracle.allow(&Label::from("first"), &[(1, 0)], &BACKING);
        oracle.allow(&Label::from("second"), &[(second, 0)], &BACKING);
        let spaces = [0, 1].map(|n: u64| {
            let mut tables = Stage2Tables::new(&machine, 0x8000_0000 + n * 0x10_0000, 40, 40);
            tables.map(PAGE, BACKING[n as usize], true);
            AddressSpace { domain: DomainId::new(n + 1), stage2: tables.stage2() }
        });
        Self { smmu, streams: [vec![stream(1)], vec![stream(second)]], spaces, oracle }
    }

    fn prepare(&self, op: Op, n: usize) {
        if op != Op::Add {
            let _ = self.run(Op::Add, n);
        }
        if matches!(op, Op::Remove | Op::Deassign | Op::Reassign | Op::Flush | Op::Fault) {
            let _ = self.run(Op::Assign, n);
        }
    }

    fn run(&self, op: Op, n: usize) -> Answer {
        let device = Self::device(n);
        answer(match op {
            Op::Add => {
                let mut new = self.new_master(device, &self.streams[n]);
                match self.smmu.publish(&mut new, &mut |_| ()) {
                    Ok(()) => match self.smmu.allot(&mut new).and_then(|_| self.smmu.enrol(&mut new)) {
                        // The device went between two of the steps: added, then removed.
                        Err(IommuError::Unknown) => return Answer::Removed,
                        result => result,
                    },
                    Err(error) => Err(error),
                }
            }
            Op::Remove => match self.smmu.cut(&[device]) {
                Ok(()) if self.smmu.withdraw(device, &[], &mut |_| ()) == Err(IommuError::Busy) => {
                    return Answer::Partial;
                }
                Ok(()) => Ok(()),
                Err(error) => Err(error),
            },
            Op::Assign => self.assign(n, 0),
            Op::Reassign => {
                let was_in = matches!(self.smmu.placement(device), Ok(Some(_)));
                match self.reassign(n, 1) {
                    // Its plan stood, or it was moved between its two steps.
                    Err(IommuError::Busy) if was_in => return Answer::Partial,
                    result => result,
                }
            }
            Op::Deassign => self.smmu.block(&[device], &mut |_| ()),
            Op::Flush => self.smmu.flush(self.spaces[0].domain),
            Op::Fault => {
                // No storm can come of what never faults.
                let _ = self.smmu.take_faults(FaultLine::Context(0), &mut |_| ());
                Ok(())
            }
            Op::RemoveTree | Op::DestroyDomain | Op::UnregisterIommu => Ok(()),
        })
    }

    fn state(&self) -> String {
        let (_, violations) = self.oracle.verdict();
        assert!(violations.is_empty(), "isolation: {violations:#?}");
        self.smmu.audit(&mut |difference| panic!("audit: {difference}"));
        let place = |n| match self.smmu.placement(Self::device(n)) {
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
        for n in 0..4_u64 {
            let stream = Stream::new(KEY, StreamId::new(0x40 + 2 * n as u32), StreamMask::NONE);
            let device = DeviceId::new(n + 10);
            let mut new = self.new_master(device, &[stream]);
            let taken = self.smmu.publish(&mut new, &mut |_| ()).and_then(|()| self.smmu.allot(&mut new));
            assert_eq!(taken, Ok(1), "A-3: an entry has leaked");
            assert_eq!(self.smmu.enrol(&mut new), Ok(()), "A-1: what was allotted can be written");
        }
        for (n, space) in [(0, &self.spaces[0]), (1, &self.spaces[1])] {
            let planned = self.smmu.plan(&[DeviceId::new(n + 10)], space, &mut |_| ());
            assert!(planned.is_ok(), "A-3: a bank has leaked: {planned:?}");
        }
        let (_, violations) = self.oracle.verdict();
        assert!(violations.is_empty(), "isolation: {violations:#?}");
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
