//! Fault records: read and cleared by interrupt handlers, rescued from banks that are retired, and storms ended.
//!
//! # Locking
//!
//! The intake runs in interrupt handlers (contract C-16). What it shares is atomics, and small things that are [`Tried`]:
//! where a handler finds one locked, the record waits for the next interrupt, or its stream is not counted. The driver
//! calls [`show_bank`](FaultRecords::show_bank) and [`retire_bank`](FaultRecords::retire_bank) with the stream map's
//! lock held, which orders the changes of a bank; [`tend`](FaultRecords::tend) with no lock held, since its callbacks
//! take locks.
//!
//! # Invariants
//!
//! 1. A record is read and cleared by one CPU at a time (`taking`), so that it is delivered once. A handler that finds
//!    a record taken passes over it, and counts that: one that interrupts the handler that reads is masked after a
//!    while instead of interrupting for ever.
//! 2. A context record is told with a domain only if the bank belonged to it before the record was read and after it
//!    was cleared.
//! 3. A record that stands when its bank is retired is kept in `late`, and the next intake on any line tells it once;
//!    where there is no room it counts as lost.
//! 4. Every record counts for its bank, or for the global line, whatever the list of streams holds. So neither a full
//!    list nor a device that rotates through stream IDs hides a storm (contract A-12).
//! 5. Whether faults raise interrupts is computed here alone ([`reports`](FaultRecords::reports)). A change of the
//!    state is followed by a write of the register, under the stream map's lock, from the state as it is then.

use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use smallvec::SmallVec;

use super::fault_counters::{Counted, count};
use super::fault_reading;
use super::fault_storms::{accuse, bound};
use crate::assign::{
    DeviceId, DomainId, FaultAnswer, FaultCause, FaultCounts, FaultLine, RawFault, StormReport, StreamId, own_space,
};
use crate::few;
use crate::smmu::hardware::part::{BankIndex, Part};
use crate::smmu::hardware::{FaultLimits, Registers};
use crate::sync::Tried;

/// Streams that are counted one by one between two calls of the worker.
const STREAMS: usize = 64;
/// Unknown streams that are counted one by one, for good.
const UNKNOWN: usize = 32;
/// Records that are kept of banks that are retired.
const LATE: usize = 8;

/// An instance's records, and what is known of the banks where no lock may be taken. Where a bank is asked for, `None`
/// is what reports on the global line.
#[derive(Debug)]
pub(in crate::smmu) struct FaultRecords {
    limits: FaultLimits,
    /// The global record, then the banks.
    slots: Vec<Slot>,
    /// Each bank raises a line of its own, which has its number: the others need not be looked at.
    own_lines: bool,
    late: Tried<[Option<RawFault>; LATE]>,
    /// Since the last call of the worker, as are the counts of the slots.
    streams: Tried<SmallVec<[Counted; STREAMS]>>,
    /// How often a record was found taken, since then.
    met: AtomicU64,
    unknown: Tried<SmallVec<[Counted; UNKNOWN]>>,
    unknown_elsewhere: AtomicU64,
    lost: AtomicU64,
    limited: AtomicU64,
    /// Handlers stand on all lines.
    wanted: AtomicBool,
}

/// A bank, or the global record.
#[derive(Debug, Default)]
struct Slot {
    /// The context line that it raises; `None` for the global record, and where every line can be a bank's own.
    line: Option<u8>,
    /// The domain whose faults are to be told; 0 for none.
    domain: AtomicU64,
    /// Held while the record is read and cleared.
    taking: Tried<()>,
    /// Records that were taken here.
    faults: AtomicU64,
    silenced: AtomicBool,
}

impl Slot {
    fn domain(&self) -> Option<DomainId> {
        Some(self.domain.load(Ordering::Acquire)).filter(|number| *number != 0).map(DomainId::new)
    }
}

impl FaultRecords {
    /// Those of a part. `None` when memory could not be reserved.
    pub(in crate::smmu) fn new<R>(part: &Part<R>) -> Option<Self> {
        let (limits, banks) = (part.config.fault_limits, part.geometry.banks);
        let mut slots = Vec::new();
        slots.try_reserve_exact(usize::from(banks).saturating_add(1)).ok()?;
        few::push_within(&mut slots, Slot::default());
        few::extend_within(&mut slots, (0..banks).map(|bank| Slot { line: part.line_of(bank), ..Slot::default() }));
        let storm = limits.storm.max(limits.records);
        Some(Self {
            limits: FaultLimits { storm, line: limits.line.max(storm), ..limits },
            own_lines: (0..banks).all(|bank| part.line_of(bank) == Some(bank)),
            slots,
            late: Tried::default(),
            streams: Tried::default(),
            met: AtomicU64::new(0),
            unknown: Tried::default(),
            unknown_elsewhere: AtomicU64::new(0),
            lost: AtomicU64::new(0),
            limited: AtomicU64::new(0),
            wanted: AtomicBool::new(false),
        })
    }

    fn slot(&self, bank: Option<BankIndex>) -> Option<&Slot> {
        self.slots.get(bank.map_or(0, |bank| usize::from(bank).saturating_add(1)))
    }

    fn each(&self) -> impl Iterator<Item = (Option<BankIndex>, &Slot)> {
        (0_u8..).zip(&self.slots).map(|(place, slot)| (place.checked_sub(1), slot))
    }

    fn each_on(&self, line: FaultLine) -> impl Iterator<Item = (Option<BankIndex>, &Slot)> {
        let (first, count) = match line {
            FaultLine::Global => (0, 1),
            FaultLine::Context(line) if self.own_lines => (usize::from(line).saturating_add(1), 1),
            FaultLine::Context(_) => (1, usize::MAX),
        };
        self.each().skip(first).take(count).filter(move |(_, slot)| match line {
            FaultLine::Global => true,
            FaultLine::Context(line) => slot.line.is_none_or(|own| own == line) && slot.domain().is_some(),
        })
    }

    // --- which faults raise interrupts ---

    /// Handlers stand on all lines from now on. The driver rewrites SCTLR of every live bank, then sCR0.
    pub(in crate::smmu) fn want_reports(&self) {
        self.wanted.store(true, Ordering::Release);
    }

    /// Whether faults of a bank raise interrupts (SCTLR.CFIE), or those on the global line (sCR0.GFIE and GCFGFIE).
    pub(in crate::smmu) fn reports(&self, bank: Option<BankIndex>) -> bool {
        let silenced = self.slot(bank).is_some_and(|slot| slot.silenced.load(Ordering::Acquire));
        self.wanted.load(Ordering::Acquire) && !silenced
    }

    // --- the domain of a bank ---

    /// Faults of `bank` are the domain's from now on. Called after FSR was cleared, before M = 1, with a barrier in
    /// between. A quiet space's faults are not told.
    pub(in crate::smmu) fn show_bank(&self, bank: BankIndex, domain: DomainId) {
        if let Some(slot) = self.slot(Some(bank)) {
            slot.silenced.store(false, Ordering::Relaxed);
            let told = if own_space::is_quiet(domain) { 0 } else { domain.number() };
            slot.domain.store(told, Ordering::Release);
        }
    }

    /// Rescues the record that stands in `bank`, and forgets the bank's domain. Called after SCTLR = 0 (the bank raises
    /// no interrupt, and nothing is recorded in it any more) and before anything else of it is programmed.
    ///
    /// # Context
    ///
    /// Waiting context: a handler on another CPU that is reading the record is waited for.
    pub(in crate::smmu) fn retire_bank<R: Registers>(&self, from: &Part<R>, bank: BankIndex) {
        /// A handler reads at most six registers of each member.
        const LOOKS: u32 = 10_000;
        let Some(slot) = self.slot(Some(bank)) else { return };
        let Some(domain) = slot.domain() else { return };
        let taking = (0..LOOKS).find_map(|_| {
            crate::sync::pause();
            slot.taking.try_lock()
        });
        let members = from.registers.members().filter(|_| taking.is_some());
        for fault in members.filter_map(|member| fault_reading::take(from, member, Some(bank))) {
            let mut late = self.late.lock();
            match late.iter_mut().find(|place| place.is_none()) {
                Some(place) => *place = Some(RawFault { domain: Some(domain), ..fault }),
                None => _ = self.lost.fetch_add(if fault.more_lost { 2 } else { 1 }, Ordering::Relaxed),
            }
        }
        slot.domain.store(0, Ordering::Release);
        // Its counts are not the next domain's.
        if slot.faults.swap(0, Ordering::Relaxed) != 0 {
            self.streams.lock().retain(|counted| counted.bank != Some(bank));
        }
    }

    /// Forgets the domain of every bank: the instance is out of service. Touches no register.
    pub(in crate::smmu) fn forget_banks(&self) {
        self.slots.iter().for_each(|slot| slot.domain.store(0, Ordering::Release));
    }

    /// The domains whose banks report on `line`.
    pub(in crate::smmu) fn coupled(&self, line: FaultLine, report: &mut dyn FnMut(DomainId)) {
        self.each_on(line).filter_map(|(_, slot)| slot.domain()).for_each(report);
    }

    // --- intake ---

    /// Reads, clears and tells what faulted on `line`. Interrupt handlers call it (contract C-16); the caller has seen
    /// to power.
    pub(in crate::smmu) fn intake<R: Registers>(
        &self,
        from: &Part<R>,
        line: FaultLine,
        report: &mut dyn FnMut(RawFault),
    ) -> FaultAnswer {
        let limits = self.limits;
        // One by one: all at once would be most of the stack that there is here.
        for fault in (0..LATE).map_while(|_| self.late.try_lock()?.iter_mut().find_map(Option::take)) {
            self.note(&fault);
            report(fault);
        }
        let (most_on_line, mut storms) = (bound(limits, None), false);
        for (bank, slot) in self.each_on(line) {
            for fault in from.registers.members().filter_map(|member| self.take(from, member, bank)) {
                let (here, most_here) =
                    (slot.faults.fetch_add(1, Ordering::Relaxed).saturating_add(1), bound(limits, bank));
                let taken = |(_, slot): (_, &Slot)| slot.faults.load(Ordering::Relaxed);
                let on_line = self.each_on(line).map(taken).fold(0, u64::saturating_add);
                let counted = |stream| count(&mut *self.streams.try_lock()?, bank, stream, limits.storm);
                let of_stream = fault.stream.and_then(counted).unwrap_or(0);
                self.note(&fault);
                if of_stream <= limits.records && here <= most_here && on_line <= most_on_line {
                    report(fault);
                } else {
                    self.limited.fetch_add(1, Ordering::Relaxed);
                }
                storms |= of_stream >= limits.storm || here >= most_here || on_line >= most_on_line;
            }
        }
        storms |= self.met.load(Ordering::Relaxed) >= most_on_line;
        if storms { FaultAnswer::Mask(line) } else { FaultAnswer::Done }
    }

    /// Reads and clears a record, if there is one that is not taken.
    fn take<R: Registers>(&self, from: &Part<R>, member: usize, bank: Option<BankIndex>) -> Option<RawFault> {
        let slot = self.slot(bank)?;
        let before = slot.domain();
        let Some(_taking) = slot.taking.try_lock() else {
            self.met.fetch_add(1, Ordering::Relaxed);
            return None;
        };
        let fault = fault_reading::take(from, member, bank)?;
        // The registers are read before the slot is looked at again.
        fence(Ordering::SeqCst);
        Some(RawFault { domain: before.filter(|_| slot.domain() == before), ..fault })
    }

    /// Counts what a record says for good: of others, and of a stream that no entry matches.
    fn note(&self, fault: &RawFault) {
        self.lost.fetch_add(fault.more_lost.into(), Ordering::Relaxed);
        let unknown = fault.stream.filter(|_| fault.cause == FaultCause::UnknownStream);
        let counted = |stream| count(&mut *self.unknown.try_lock()?, None, stream, 0);
        if unknown.is_some_and(|stream| counted(stream).is_none()) {
            self.unknown_elsewhere.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(in crate::smmu) fn counts(&self) -> FaultCounts {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let (lost, limited) = (of(&self.lost), of(&self.limited));
        FaultCounts { lost, limited, unknown_elsewhere: of(&self.unknown_elsewhere) }
    }

    pub(in crate::smmu) fn unknown(&self, report: &mut dyn FnMut(StreamId, u32)) {
        let mut unknown = SmallVec::<[Counted; UNKNOWN]>::new();
        few::put_all(&mut unknown, self.unknown.lock().iter().copied());
        unknown.iter().for_each(|counted| report(counted.stream, counted.faults));
    }

    // --- the worker ---

    /// Names what has stormed since the last call, silences what no device can be blamed for, lets report again what
    /// was silenced and is quiet now, and starts all counts anew.
    ///
    /// `owner_of` says which device has a stream, and translates it for the domain where one is given; `rewrite` writes
    /// anew the register that [`reports`](Self::reports) is about. They are called with no lock held.
    pub(in crate::smmu) fn tend(
        &self,
        owner_of: impl Fn(StreamId, Option<DomainId>) -> Option<DeviceId>,
        mut rewrite: impl FnMut(Option<BankIndex>),
        storming: &mut dyn FnMut(StormReport),
    ) {
        self.met.store(0, Ordering::Relaxed);
        // A record may name a stream that does not use the bank it stands in: the bank is believed, the stream is not.
        let domain_of = |bank| self.slot(bank).and_then(Slot::domain);
        let counted = core::mem::take(&mut *self.streams.lock()).into_iter();
        let named = counted.map(|one| (owner_of(one.stream, domain_of(one.bank)), one));
        let mut suspects = SmallVec::<[(Option<DeviceId>, Counted); STREAMS]>::new();
        few::put_all(&mut suspects, named);
        let place = |(device, counted): &(Option<DeviceId>, Counted)| (counted.bank, *device);
        few::sort(&mut suspects, &|one, other| place(one) < place(other));
        for (bank, slot) in self.each() {
            let (faults, domain) = (slot.faults.swap(0, Ordering::Relaxed), slot.domain());
            if bank.is_some() && domain.is_none() {
                continue;
            }
            let silence = accuse(bank, domain, faults, &suspects, self.limits, storming);
            let was_silenced = slot.silenced.swap(silence, Ordering::AcqRel);
            if slot.domain() != domain {
                // It is another domain's by now, which did not storm.
                slot.silenced.store(false, Ordering::Release);
            }
            if was_silenced != silence {
                rewrite(bank);
            }
        }
    }
}
