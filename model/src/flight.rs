//! Transactions in flight: accepted, steered, latched, translated and performed at instants of their own.
//!
//! [`Smmu::dma`] does all at once. A test that wants the instants apart calls [`Smmu::accept`] and then [`Smmu::step`];
//! whatever it writes in between meets a transaction that has already seen the older registers.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::fault::{ContextFaultKind, Fault, GlobalFaultKind};
use crate::memory::{Memory, PAGE};
use crate::registers::{fsr, fsynr0, scr0, sctlr};
use crate::smmu::{Hazard, Smmu};
use crate::stream::Steering;
use crate::tlb::{Invalidate, Leaf, Scope, Table};
use crate::transaction::{Access, Bypass, Outcome, Path, Transaction};
use crate::walk::{Decision, View};

/// Names a transaction in flight, for one model's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TransactionId(pub(crate) u64);

/// How far a transaction has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Its stream ID has not been looked at.
    Accepted,
    /// Its stream-map entry was read.
    Steered,
    /// The bank's registers were read: M, root, control.
    Latched,
    /// Its physical address is known; memory is untouched yet.
    Translated,
    /// It waits, as [`Outcome::Stalled`] and [`Outcome::Blocked`] say.
    Waiting(Outcome),
    /// It is over, and no longer in flight.
    Done(Outcome),
}

/// A transaction between two instants.
#[derive(Clone, Debug)]
pub struct InFlight {
    id: TransactionId,
    pub(crate) transaction: Transaction,
    pub(crate) state: State,
    /// VMID of the bank that it was steered to.
    vmid: Option<u16>,
    /// The TLB's clock when it was steered: what it caches is that old.
    age: u64,
}

impl PartialEq for InFlight {
    fn eq(&self, other: &Self) -> bool {
        self.transaction == other.transaction && self.state == other.state && self.vmid == other.vmid
    }
}

impl Eq for InFlight {}

impl InFlight {
    /// Its name.
    pub fn id(&self) -> TransactionId {
        self.id
    }

    /// What the master asked for.
    pub fn transaction(&self) -> &Transaction {
        &self.transaction
    }

    /// The bank that it waits in, if it is stalled.
    pub fn stalled_in(&self) -> Option<u8> {
        match self.state {
            State::Stalled(bank) => Some(bank),
            _ => None,
        }
    }

    /// Whether a sync has to wait for it where an invalidate concerns it. A stalled one cannot be waited for.
    pub fn is_draining(&self) -> bool {
        matches!(self.state, State::Steered(_) | State::Latched(_) | State::Translated { .. })
    }

    pub(crate) fn is_awaited_by(&self, invalidate: Invalidate, leaves: &[Leaf], tables: &[Table]) -> bool {
        if !self.is_draining() {
            return false;
        }
        match invalidate {
            Invalidate::All => true,
            Invalidate::Nothing | Invalidate::Vmid { scope: Scope::Stage1, .. } => false,
            Invalidate::Vmid { vmid, scope: Scope::Everything } => self.vmid == Some(vmid),
            Invalidate::Page { vmid, page, leaf } => {
                let input = self.transaction.address;
                let same = input.wrapping_div(PAGE) == page.wrapping_div(PAGE);
                let of_leaf = leaves.iter().any(|one| one.covers(vmid, page) && one.covers(vmid, input));
                let of_table = tables.iter().any(|one| one.covers(vmid, page) && one.covers(vmid, input));
                self.vmid == Some(vmid) && (same || of_leaf || (!leaf && of_table))
            }
        }
    }
}

/// What a transaction in flight has seen so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Accepted,
    Steered(Steering),
    Latched(Box<View>),
    Translated {
        physical: u64,
        path: Path,
    },
    Stalled(u8),
    /// Ended through `RESUME`.
    Ending(u8),
}

impl Smmu {
    /// One whole transaction, from its acceptance to its end, or to where it stalls.
    pub fn dma(&mut self, memory: &mut Memory, transaction: Transaction) -> Outcome {
        let id = self.accept(transaction);
        self.finish(memory, id).unwrap_or(Outcome::Blocked { id })
    }

    /// Takes a transaction from its master; nothing else happens to it yet.
    pub fn accept(&mut self, transaction: Transaction) -> TransactionId {
        let id = TransactionId(self.next_transaction);
        self.next_transaction = self.next_transaction.wrapping_add(1);
        self.flight.push(InFlight { id, transaction, state: State::Accepted, vmid: None, age: 0 });
        id
    }

    /// The transactions in flight, oldest first.
    pub fn in_flight(&self) -> &[InFlight] {
        &self.flight
    }

    /// Moves one transaction on by one instant; `None` if none of that name is in flight.
    pub fn step(&mut self, memory: &mut Memory, id: TransactionId) -> Option<Stage> {
        let at = self.flight.iter().position(|one| one.id == id)?;
        let mut one = self.flight.remove(at);
        let stage = self.advance(memory, &mut one);
        if !matches!(stage, Stage::Done(_)) {
            self.flight.insert(at, one);
        }
        Some(stage)
    }

    /// Steps one transaction until it is over or waits; `None` if none of that name is in flight.
    pub fn finish(&mut self, memory: &mut Memory, id: TransactionId) -> Option<Outcome> {
        loop {
            match self.step(memory, id)? {
                Stage::Waiting(outcome) | Stage::Done(outcome) => return Some(outcome),
                Stage::Accepted | Stage::Steered | Stage::Latched | Stage::Translated => (),
            }
        }
    }

    /// Finishes every transaction in flight, oldest first: what the passing of time does while a driver polls a sync.
    pub fn drain(&mut self, memory: &mut Memory) -> Vec<(TransactionId, Outcome)> {
        let ids: Vec<_> = self.flight.iter().map(InFlight::id).collect();
        ids.into_iter().filter_map(|id| Some((id, self.finish(memory, id)?))).collect()
    }

    /// Walks `address` through bank `n` ahead of any transaction and caches what it finds, as a part may at any time
    /// while the bank's M is 1.
    pub fn prefetch(&mut self, memory: &Memory, n: u8, address: u64) {
        let Ok(view) = self.latch(0, n) else { return };
        let ahead = Transaction::read(0, address, 1);
        if let Some((_, fill)) = self.decide(memory, &view, &ahead, self.tlb.now()).into_iter().next() {
            self.tlb.fill(&self.config, fill.leaf, fill.tables);
        }
    }

    /// Whether a stalled bank makes every other transaction wait.
    pub(crate) fn is_blocked(&self) -> bool {
        let stalled = self.flight.iter().any(|one| matches!(one.state, State::Stalled(_)));
        stalled && (self.config.quirks.stall_blocks_all || self.nonsecure.cr0 & scr0::GSE != 0)
    }

    /// Whether a fault in bank `n` stalls its transaction.
    pub(crate) fn stalls(&self, n: u8) -> bool {
        let stalls = self.banks.get(usize::from(n)).is_some_and(|bank| bank.stalls);
        stalls && self.nonsecure.cr0 & scr0::STALLD == 0
    }

    fn advance(&mut self, memory: &mut Memory, one: &mut InFlight) -> Stage {
        match one.state.clone() {
            State::Accepted if self.is_blocked() => Stage::Waiting(Outcome::Blocked { id: one.id }),
            State::Accepted => {
                let steering = self.steer_once(one.transaction.stream);
                one.age = self.tlb.now();
                one.vmid = match steering {
                    Steering::Bank { bank, .. } => Some(self.vmid_of(bank)),
                    Steering::Bypass(Bypass::Stream { vmid, .. }) => Some(u16::from(vmid)),
                    Steering::Bypass(_) | Steering::Fault(_) => None,
                };
                one.state = State::Steered(steering);
                Stage::Steered
            }
            State::Steered(Steering::Fault(kind)) => self.end_globally(one, kind, None, false),
            State::Steered(Steering::Bypass(bypass)) => {
                let physical = self.truncated(one.transaction.address);
                one.state = State::Translated { physical, path: Path::Bypass(bypass) };
                Stage::Translated
            }
            State::Steered(Steering::Bank { group, bank, s2cr }) => match self.latch(group, bank) {
                Ok(view) => {
                    one.transaction = one.transaction.clone().overridden(s2cr);
                    one.state = State::Latched(Box::new(view));
                    Stage::Latched
                }
                Err((kind, bank, nested)) => self.end_globally(one, kind, Some(bank), nested),
            },
            State::Latched(view) => self.translate(memory, one, &view),
            State::Translated { physical, path } => Stage::Done(perform(memory, &one.transaction, physical, path)),
            State::Stalled(bank) => Stage::Waiting(Outcome::Stalled { id: one.id, bank }),
            State::Ending(bank) => Stage::Done(self.ended(bank, ContextFaultKind::ResumeTerminate, 0)),
        }
    }

    fn translate(&mut self, memory: &Memory, one: &mut InFlight, view: &View) -> Stage {
        let all = self.decide(memory, view, &one.transaction, one.age);
        let Some((decision, fill)) = all.into_iter().next() else {
            return self.end_globally(one, GlobalFaultKind::InvalidContext, None, false);
        };
        self.tlb.fill(&self.config, fill.leaf, fill.tables);
        match decision {
            Decision::Pass { physical, path } => {
                one.state = State::Translated { physical, path };
                self.prefetch_after(memory, view, one);
                Stage::Translated
            }
            Decision::Unmodelled { bank } => {
                self.hazard(Hazard::Unmodelled(bank));
                Stage::Done(Outcome::Faulted { fault: Fault::Unmodelled { bank }, aborted: true })
            }
            Decision::Fault { bank, kind: ContextFaultKind::HitUnderFault, level } => {
                if self.stalls(bank) {
                    self.stall(one, bank)
                } else {
                    Stage::Done(self.ended(bank, ContextFaultKind::HitUnderFault, level))
                }
            }
            Decision::Fault { bank, kind, level } => {
                self.record_context_fault(bank, kind, level, view, one);
                if self.stalls(bank) { self.stall(one, bank) } else { Stage::Done(self.ended(bank, kind, level)) }
            }
        }
    }

    fn stall(&mut self, one: &mut InFlight, bank: u8) -> Stage {
        if let Some(state) = self.banks.get_mut(usize::from(bank)) {
            state.fsr |= fsr::SS;
        }
        one.state = State::Stalled(bank);
        Stage::Waiting(Outcome::Stalled { id: one.id, bank })
    }

    fn ended(&self, bank: u8, kind: ContextFaultKind, level: u8) -> Outcome {
        let aborted = self.banks.get(usize::from(bank)).is_some_and(|bank| bank.sctlr & sctlr::CFRE != 0);
        Outcome::Faulted { fault: Fault::Context { bank, kind, level }, aborted }
    }

    fn end_globally(&mut self, one: &InFlight, kind: GlobalFaultKind, bank: Option<u8>, nested: bool) -> Stage {
        let transaction = &one.transaction;
        let stream = self.carried(transaction.stream);
        self.record_global_fault(kind, transaction.address, stream, transaction.global_syndrome(nested));
        let aborted = self.nonsecure.cr0 & scr0::GFRE != 0;
        Stage::Done(Outcome::Faulted { fault: Fault::Global { kind, bank, nested }, aborted })
    }

    fn record_context_fault(&mut self, n: u8, kind: ContextFaultKind, level: u8, view: &View, one: &InFlight) {
        let stream = self.carried(one.transaction.stream);
        let transaction = &one.transaction;
        if let Some(bank) = self.banks.get_mut(usize::from(n)) {
            if bank.is_faulted() {
                bank.fsr |= fsr::MULTI;
            } else {
                bank.fsr |= kind.bit();
                bank.far = transaction.address;
                bank.fsynr[0] = syndrome(transaction, kind, level, view.nested_under(n));
                bank.cbfrsynra = u32::from(stream);
            }
        }
        self.check_interrupt_exists(n, transaction.address, stream, transaction.global_syndrome(false));
    }

    /// Walks the next page ahead where the part prefetches; what it finds is cached, what fails is forgotten.
    fn prefetch_after(&mut self, memory: &Memory, view: &View, one: &InFlight) {
        if !self.config.prefetch {
            return;
        }
        let next = Transaction { address: one.transaction.address.wrapping_add(PAGE), ..one.transaction.clone() };
        if let Some((_, fill)) = self.decide(memory, view, &next, one.age).into_iter().next() {
            self.tlb.fill(&self.config, fill.leaf, fill.tables);
        }
    }

    /// An untranslated address as the output side carries it.
    pub(crate) fn truncated(&self, address: u64) -> u64 {
        let bits = u32::from(self.config.output_bits);
        address & 1u64.checked_shl(bits).map_or(u64::MAX, |bit| bit.wrapping_sub(1))
    }
}

fn perform(memory: &mut Memory, transaction: &Transaction, physical: u64, path: Path) -> Outcome {
    let length = usize::try_from(transaction.burst()).unwrap_or(0);
    if memory.is_faulty(physical, transaction.burst()) {
        return Outcome::BusError { physical, path };
    }
    let mut data = Vec::new();
    match transaction.access {
        Access::Read => {
            data.resize(length, 0);
            memory.read(physical, &mut data);
        }
        Access::Write => {
            let mut bytes = transaction.data.clone();
            bytes.resize(length, 0);
            memory.store_dma(physical, &bytes);
        }
    }
    Outcome::Completed { physical, path, data }
}

fn syndrome(transaction: &Transaction, kind: ContextFaultKind, level: u8, nested_under: Option<u8>) -> u32 {
    let mut syndrome = u32::from(level & 3) | fsynr0::NSATTR;
    for (set, bit) in [
        (transaction.access == Access::Write, fsynr0::WNR),
        (transaction.privileged, fsynr0::PNU),
        (transaction.instruction, fsynr0::IND),
        (kind == ContextFaultKind::External, fsynr0::PTWF),
    ] {
        syndrome |= if set { bit } else { 0 };
    }
    match nested_under {
        Some(first) => syndrome | fsynr0::NESTED | (u32::from(first) << 16),
        None => syndrome,
    }
}
