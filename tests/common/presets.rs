//! What tests that run on every part look at: the accesses of an operation, and the registers after each write of it.

use std::sync::{Arc, Mutex};

use iommu_assign::assign::{Cause, IommuError, Resource, UsageRecord};
use smmu_model::{Access, Config, Direction, Injection, Memory, Record, Smmu, Source, SyncRegister, Verdict};

use super::parts::{Part, parts};
use super::{Bench, PAGE, SMMU};

/// Runs a test on every part, each in service on a bench of its own.
pub(crate) fn on_every_part(test: impl Fn(&Config, Bench)) {
    for part in parts() {
        println!("on {}", part.name);
        let model = part.model.clone();
        let bench = Bench::new();
        bench.part(part);
        test(&model, bench);
    }
}

/// The register accesses of [`SMMU`] while `act` runs.
pub(crate) fn accesses(bench: &mut Bench, act: impl FnOnce(&mut Bench)) -> Vec<Record> {
    bench.machine.smmu(SMMU, Smmu::start_trace);
    act(bench);
    bench.machine.smmu(SMMU, Smmu::take_trace).unwrap()
}

/// The writes among them.
pub(crate) fn writes(bench: &mut Bench, act: impl FnOnce(&mut Bench)) -> Vec<Record> {
    let mut writes = accesses(bench, act);
    writes.retain(|access| access.direction == Direction::Write);
    writes
}

/// The manual's names; a part whose accesses count as Secure uses the Non-secure aliases.
pub(crate) fn names(records: &[Record]) -> Vec<&str> {
    records.iter().map(|record| if record.name == "NSTLBGSYNC" { "sTLBGSYNC" } else { record.name.as_str() }).collect()
}

/// What was seen after each write.
pub(crate) struct Seen<T>(Arc<Mutex<Vec<T>>>);

impl<T> Seen<T> {
    /// All of it; from now on anew.
    pub(crate) fn take(&self) -> Vec<T> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

/// Looks at [`SMMU`] after every write to its registers from now on, beside the oracle.
pub(crate) fn at_every_write<T: Send + 'static>(
    bench: &Bench,
    mut look: impl FnMut(&Smmu, &Memory) -> T + Send + 'static,
) -> Seen<T> {
    let (seen, oracle) = (Arc::new(Mutex::new(Vec::new())), bench.oracle.clone());
    let log = seen.clone();
    let observer = move |smmu: &Smmu, memory: &Memory| {
        oracle.look(smmu, memory, PAGE);
        log.lock().unwrap().push(look(smmu, memory));
    };
    bench.machine.observe(SMMU, Box::new(observer));
    Seen(seen)
}

/// Whether an S2CR's value as it is written faults on this part: where firmware stores bypass as fault, bypass is written.
pub(crate) fn is_fault(model: &Config, s2cr: u64) -> bool {
    let fault = if model.quirks.fault_write_ignored { 1 } else { 2 };
    s2cr >> 16 & 3 == fault
}

/// An entry that selects streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Selecting {
    pub(crate) number: u8,
    /// ID and mask; of an index, itself.
    pub(crate) stream: (u32, u32),
    pub(crate) s2cr: u32,
}

impl Selecting {
    /// The bank that it translates through.
    pub(crate) fn bank(self) -> Option<u8> {
        (self.s2cr >> 16 & 3 == 0).then_some(self.s2cr as u8)
    }
}

/// The entries that select streams, as the registers say.
pub(crate) fn selecting(smmu: &Smmu) -> Vec<Selecting> {
    let (matching, extended) = (smmu.config().stream_matching, smmu.config().extended_ids);
    let entry = |number| {
        let s2cr = smmu.peek32(smmu.s2cr(number));
        if !matching {
            return Some(Selecting { number, stream: (number.into(), 0), s2cr });
        }
        let smr = smmu.peek32(smmu.smr(number));
        let (valid, bits) = if extended { (s2cr & 1 << 10 != 0, 0xffff) } else { (smr >> 31 == 1, 0x7fff) };
        valid.then_some(Selecting { number, stream: (smr & bits, smr >> 16 & bits), s2cr })
    };
    (0..smmu.config().groups).filter_map(entry).collect()
}

/// [`selecting`] now, without indices that fault.
pub(crate) fn entries(bench: &Bench) -> Vec<Selecting> {
    let (mut entries, matching) =
        bench.machine.smmu(SMMU, |smmu| (selecting(smmu), smmu.config().stream_matching)).unwrap();
    entries.retain(|entry| matching || entry.bank().is_some());
    entries
}

/// The VMID of a bank.
pub(crate) fn vmid(smmu: &Smmu, bank: u8) -> u32 {
    if smmu.config().vmid16 { smmu.peek32(smmu.cba2r(bank)) >> 16 } else { smmu.peek32(smmu.cbar(bank)) & 0xff }
}

/// Where a new write of `stream` to [`PAGE`] could arrive.
pub(crate) fn reached(smmu: &Smmu, memory: &Memory, stream: u16) -> Vec<u64> {
    let all = smmu.reach(memory, stream, PAGE, Access::Write).into_iter().filter(|reach| reach.source == Source::New);
    all.filter_map(|reach| match reach.verdict {
        Verdict::Reaches { physical, .. } => Some(physical & !0xfff),
        _ => None,
    })
    .collect()
}

/// How many entries and banks are in use.
pub(crate) fn used(bench: &Bench) -> (usize, usize) {
    let (mut entries, mut banks) = (0, 0);
    let mut count = |usage: &UsageRecord| match usage.resource {
        Resource::StreamMapEntries => entries += 1,
        Resource::ContextBanks => banks += 1,
        _ => {}
    };
    bench.service.usage(SMMU, &mut count).unwrap();
    (entries, banks)
}

/// Global syncs do not complete any more.
pub(crate) fn stuck() -> Injection {
    Injection::StatusNeverClears(SyncRegister::Global)
}

pub(crate) fn timed_out(cause: &Cause) -> bool {
    matches!(cause, Cause::Iommu { error: IommuError::SyncTimeout(_), .. })
}

/// Every part, with at most `banks` banks.
pub(crate) fn with_banks(banks: u8) -> impl Iterator<Item = Part> {
    parts().into_iter().map(move |mut part| {
        println!("on {}", part.name);
        part.model.banks = part.model.banks.min(banks);
        part.model.stage2_banks = part.model.stage2_banks.min(banks);
        part
    })
}

/// sCR0 as the part's accesses reach it.
pub(crate) fn scr0(model: &Config) -> usize {
    if model.quirks.secure_accesses { 0x400 } else { 0 }
}
