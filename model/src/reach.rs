//! The question that an isolation oracle asks: what could this stream reach at this instant? Asking changes nothing.

use alloc::vec::Vec;

use crate::fault::Fault;
use crate::flight::{InFlight, State, TransactionId};
use crate::memory::Memory;
use crate::smmu::Smmu;
use crate::stream::Steering;
use crate::transaction::{Access, Path, Transaction};
use crate::walk::{Decision, View};

/// One thing that could happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// What.
    pub verdict: Verdict,
    /// To which transaction.
    pub source: Source,
}

/// What a transaction would come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It reaches memory.
    Reaches {
        /// Where.
        physical: u64,
        /// How; names the entry, the bank, the VMID and the root.
        path: Path,
    },
    /// It is ended by a fault.
    Faults(Fault),
    /// It waits: for `RESUME` of this bank, or (`None`) because another bank's stall blocks all.
    Waits(Option<u8>),
}

/// Which transaction a verdict is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// One that would be accepted now.
    New,
    /// One that is in flight and has seen older registers.
    InFlight(TransactionId),
}

impl Smmu {
    /// Everything that a data access of `stream` to `address` could come to now: through each cached entry, or past all
    /// of them, since the part may drop a cached entry at any time; and what the stream's transactions in flight to the
    /// same 4 KiB could still come to.
    pub fn reach(&self, memory: &Memory, stream: u16, address: u64, access: Access) -> Vec<Reach> {
        let transaction = Transaction { access, ..Transaction::read(stream, address, 1) };
        self.reach_of(memory, &transaction)
    }

    /// [`reach`](Smmu::reach) for a transaction with privilege and instruction marks.
    pub fn reach_of(&self, memory: &Memory, transaction: &Transaction) -> Vec<Reach> {
        let verdicts = self.verdicts_of_new(memory, transaction);
        let mut all: Vec<_> = verdicts.into_iter().map(|verdict| Reach { verdict, source: Source::New }).collect();
        let same = |one: &&InFlight| {
            one.transaction.stream == transaction.stream
                && one.transaction.address >> 12 == transaction.address >> 12
                && one.transaction.access == transaction.access
        };
        for one in self.flight.iter().filter(same) {
            all.extend(self.reach_in_flight(memory, one));
        }
        all
    }

    /// Everything that the transactions in flight could still come to, whatever their stream.
    pub fn reach_of_all_in_flight(&self, memory: &Memory) -> Vec<Reach> {
        self.flight.iter().flat_map(|one| self.reach_in_flight(memory, one)).collect()
    }

    fn reach_in_flight(&self, memory: &Memory, one: &InFlight) -> Vec<Reach> {
        let verdicts = match &one.state {
            State::Accepted => self.verdicts_of_new(memory, &one.transaction),
            State::Steered(steering) => self.verdicts_of_steered(memory, &one.transaction, *steering),
            State::Latched(view) => self.verdicts_of_latched(memory, &one.transaction, view),
            State::Translated { physical, path } => alloc::vec![Verdict::Reaches { physical: *physical, path: *path }],
            State::Stalled(bank) => alloc::vec![Verdict::Waits(Some(*bank))],
            State::Ending(bank) => alloc::vec![Verdict::Faults(Fault::Context {
                bank: *bank,
                kind: crate::ContextFaultKind::ResumeTerminate,
                level: 0
            })],
        };
        verdicts.into_iter().map(|verdict| Reach { verdict, source: Source::InFlight(one.id()) }).collect()
    }

    fn verdicts_of_new(&self, memory: &Memory, transaction: &Transaction) -> Vec<Verdict> {
        if self.is_blocked() {
            return alloc::vec![Verdict::Waits(None)];
        }
        let steerings = self.steer(transaction.stream);
        deduplicated(steerings.into_iter().flat_map(|steering| self.verdicts_of_steered(memory, transaction, steering)))
    }

    fn verdicts_of_steered(&self, memory: &Memory, transaction: &Transaction, steering: Steering) -> Vec<Verdict> {
        match steering {
            Steering::Fault(kind) => alloc::vec![Verdict::Faults(Fault::global(kind))],
            Steering::Bypass(bypass) => {
                let physical = self.truncated(transaction.address);
                alloc::vec![Verdict::Reaches { physical, path: Path::Bypass(bypass) }]
            }
            Steering::Bank { group, bank, s2cr } => match self.latch(group, bank) {
                Ok(view) => self.verdicts_of_latched(memory, &transaction.clone().overridden(s2cr), &view),
                Err((kind, bank, nested)) => {
                    alloc::vec![Verdict::Faults(Fault::Global { kind, bank: Some(bank), nested })]
                }
            },
        }
    }

    fn verdicts_of_latched(&self, memory: &Memory, transaction: &Transaction, view: &View) -> Vec<Verdict> {
        let decisions = self.decide(memory, view, transaction, self.tlb.now());
        deduplicated(decisions.into_iter().map(|(decision, _)| match decision {
            Decision::Pass { physical, path } => Verdict::Reaches { physical, path },
            Decision::Unmodelled { bank } => Verdict::Faults(Fault::Unmodelled { bank }),
            Decision::Fault { bank, .. } if self.stalls(bank) => Verdict::Waits(Some(bank)),
            Decision::Fault { bank, kind, level } => Verdict::Faults(Fault::Context { bank, kind, level }),
        }))
    }
}

fn deduplicated(verdicts: impl Iterator<Item = Verdict>) -> Vec<Verdict> {
    let mut all = Vec::new();
    for verdict in verdicts {
        if !all.contains(&verdict) {
            all.push(verdict);
        }
    }
    all
}
