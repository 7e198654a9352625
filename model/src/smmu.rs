//! The SMMU: its state, its reset, and the way in for every register access.

use alloc::vec::Vec;

use crate::bank::Bank;
use crate::config::{Config, Unknown, WideAccess};
use crate::flight::InFlight;
use crate::global::Global;
use crate::inject::Injection;
use crate::registers::{self, Block, cb, gr0, gr1};
use crate::stream::Groups;
use crate::tlb::Tlb;
use crate::trace::{Counters, Direction, Record};

/// One SMMUv1 or SMMUv2, with its registers, TLB and the transactions in it.
///
/// Equality compares what the part is and what it would do next: configuration, registers, cached translations,
/// transactions in flight, posted maintenance and injections. It leaves out what only observes: counters, trace,
/// hazards, and the ages and numbers of things.
#[derive(Clone, Debug)]
pub struct Smmu {
    pub(crate) config: Config,
    pub(crate) nonsecure: Global,
    pub(crate) secure: Global,
    pub(crate) map: Groups,
    pub(crate) extended_map: Groups,
    pub(crate) banks: Vec<Bank>,
    pub(crate) tlb: Tlb,
    pub(crate) flight: Vec<InFlight>,
    pub(crate) next_transaction: u64,
    pub(crate) unknown: UnknownSource,
    pub(crate) injections: Vec<Injection>,
    pub(crate) counters: Counters,
    pub(crate) trace: Option<Vec<Record>>,
    pub(crate) hazards: Vec<Hazard>,
}

/// Something that software did and that no register reports: a part may hang, reset or misbehave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hazard {
    /// A context bank was touched that firmware hides
    /// ([`Quirks::hidden_banks_from`](crate::Quirks::hidden_banks_from)); a board resets.
    HiddenBank(u8),
    /// An access was not aligned to its size, or lay outside the SMMU; it was ignored.
    BadAccess(usize),
    /// A sync was started while the one before it in the same register was still active.
    SyncOverlap,
    /// A stage-1 translation in a format that the model does not walk was needed; it faulted.
    Unmodelled(u8),
    /// A register access met a part whose power is off ([`Injection::AllOnes`](crate::Injection::AllOnes)).
    PoweredOff,
    /// A maintenance or sync write of zero was lost in firmware
    /// ([`Quirks::zero_maintenance_lost`](crate::Quirks::zero_maintenance_lost)).
    ZeroWriteLost(usize),
}

impl Smmu {
    /// The part that `config` describes, out of reset.
    pub fn new(config: Config) -> Self {
        let mut unknown = UnknownSource::new(config.unknown);
        let nonsecure = Global::reset(&config, &mut unknown);
        let secure = Global::reset(&config, &mut unknown);
        let map = Groups::reset(&config, config.group_count(), &mut unknown);
        let banks = (0..config.bank_count()).map(|n| Bank::reset(&config, n, &mut unknown)).collect();
        let tlb = Tlb::reset(&config, &mut unknown);
        let extended_map = Groups::reset(&config, config.extended_group_count(), &mut unknown);
        Self {
            config,
            nonsecure,
            secure,
            map,
            extended_map,
            banks,
            tlb,
            flight: Vec::new(),
            next_transaction: 0,
            unknown,
            injections: Vec::new(),
            counters: Counters::default(),
            trace: None,
            hazards: Vec::new(),
        }
    }

    /// Resets the part: every register goes to its reset value, UNKNOWN ones to the same drawn values as at first;
    /// transactions in flight are lost. Injections, counters and the trace stay.
    pub fn reset(&mut self) {
        let fresh = Self::new(self.config.clone());
        let old = core::mem::replace(self, fresh);
        self.injections = old.injections;
        self.counters = old.counters;
        self.trace = old.trace;
        self.hazards = old.hazards;
        self.next_transaction = old.next_transaction;
    }

    /// What the part is.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Bytes of register space, both halves.
    pub fn region_size(&self) -> usize {
        self.config.bank_base().wrapping_add(self.config.half_bytes()) as usize
    }

    /// Offset from the base of `register` in global register space 1.
    pub fn gr1(&self, register: usize) -> usize {
        register.wrapping_add(self.config.page_bytes() as usize)
    }

    /// Offset from the base of `register` in context bank `n`.
    pub fn bank(&self, n: u8, register: usize) -> usize {
        let bank = u32::from(n).wrapping_mul(self.config.page_bytes());
        register.wrapping_add(self.config.bank_base().wrapping_add(bank) as usize)
    }

    /// Offset from the base of `CBARn`.
    pub fn cbar(&self, n: u8) -> usize {
        self.gr1(word(gr1::CBAR, n))
    }

    /// Offset from the base of `CBA2Rn`.
    pub fn cba2r(&self, n: u8) -> usize {
        self.gr1(word(gr1::CBA2R, n))
    }

    /// Offset from the base of `SMRn`.
    pub fn smr(&self, n: u8) -> usize {
        word(gr0::SMR, n)
    }

    /// Offset from the base of `S2CRn`.
    pub fn s2cr(&self, n: u8) -> usize {
        word(gr0::S2CR, n)
    }

    /// A 32-bit read `offset` bytes from the base. Reading a sync status counts down its polls.
    pub fn read32(&mut self, offset: usize) -> u32 {
        self.counters.reads = self.counters.reads.wrapping_add(1);
        let value = self.read_word(offset);
        self.record(Direction::Read, 32, offset, u64::from(value));
        value
    }

    /// A 32-bit write `offset` bytes from the base.
    pub fn write32(&mut self, offset: usize, value: u32) {
        self.write32_observed(offset, value, &mut |_| ());
    }

    /// A 64-bit read `offset` bytes from the base; a pair of 32-bit registers reads as two of them.
    pub fn read64(&mut self, offset: usize) -> u64 {
        self.counters.reads = self.counters.reads.wrapping_add(1);
        let value = match self.config.quirks.wide_access {
            _ if offset & 7 != 0 => self.bad_access(offset).into(),
            WideAccess::Lost => 0,
            WideAccess::LowWord => u64::from(self.read_word(offset)),
            WideAccess::Atomic => {
                let low = self.read_word(offset);
                registers::double_word(self.read_word(offset.wrapping_add(4)), low)
            }
        };
        self.record(Direction::Read, 64, offset, value);
        value
    }

    /// A 64-bit write `offset` bytes from the base.
    pub fn write64(&mut self, offset: usize, value: u64) {
        self.write64_observed(offset, value, &mut |_| ());
    }

    /// [`write32`](Smmu::write32), then calls `observer` with the state that the write left: an isolation oracle looks
    /// at every instant with it.
    pub fn write32_observed(&mut self, offset: usize, value: u32, observer: &mut dyn FnMut(&Self)) {
        self.counters.writes = self.counters.writes.wrapping_add(1);
        self.record(Direction::Write, 32, offset, u64::from(value));
        if !self.injected_write(offset) {
            self.write_word(offset, value);
        }
        observer(self);
    }

    /// [`write64`](Smmu::write64), then calls `observer` with the state that the write left; the write is one instant.
    pub fn write64_observed(&mut self, offset: usize, value: u64, observer: &mut dyn FnMut(&Self)) {
        self.counters.writes = self.counters.writes.wrapping_add(1);
        self.record(Direction::Write, 64, offset, value);
        let lost = self.injected_write(offset);
        match self.config.quirks.wide_access {
            _ if lost => (),
            _ if offset & 7 != 0 => _ = self.bad_access(offset),
            WideAccess::Lost => (),
            WideAccess::LowWord => self.write_word(offset, registers::low_word(value)),
            WideAccess::Atomic => self.write_double_word(offset, value),
        }
        observer(self);
    }

    /// What the 32-bit register `offset` bytes from the base holds, without an access: nothing is polled, counted,
    /// recorded or injected. Where there is no register it is 0. Meant for observers and oracles.
    pub fn peek32(&self, offset: usize) -> u32 {
        let (block, at) = registers::locate(&self.config, offset);
        if offset & 3 != 0 { 0 } else { self.value(block, at).unwrap_or(0) }
    }

    /// [`peek32`](Smmu::peek32) of a 64-bit register.
    pub fn peek64(&self, offset: usize) -> u64 {
        registers::double_word(self.peek32(offset.wrapping_add(4)), self.peek32(offset))
    }

    /// Register accesses since the model was made.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What software did that no register reports.
    pub fn hazards(&self) -> &[Hazard] {
        &self.hazards
    }

    pub(crate) fn hazard(&mut self, hazard: Hazard) {
        if !self.hazards.contains(&hazard) {
            self.hazards.push(hazard);
        }
    }

    /// The bank whose page `offset` lies in, unless firmware hides it.
    fn visible(&mut self, block: Block) -> Block {
        if let (Block::Bank(n), Some(first)) = (block, self.config.quirks.hidden_banks_from)
            && n >= first
        {
            self.hazard(Hazard::HiddenBank(n));
            return Block::NoBank;
        }
        block
    }

    fn bad_access(&mut self, offset: usize) -> u32 {
        self.hazard(Hazard::BadAccess(offset));
        0
    }

    fn read_word(&mut self, offset: usize) -> u32 {
        if let Some(value) = self.injected_read(offset) {
            return value;
        }
        if offset & 3 != 0 {
            return self.bad_access(offset);
        }
        let (block, at) = registers::locate(&self.config, offset);
        match self.visible(block) {
            Block::Gr0 if self.security_of(at).1 == gr0::STLBGSTATUS => self.poll_global(self.security_of(at).0),
            Block::Bank(n) if at == cb::TLBSTATUS && self.has_bank_sync(n) => self.poll_bank(n),
            Block::Outside => self.bad_access(offset),
            block => self.value(block, at).unwrap_or_else(|| {
                self.access_fault(block, offset, false);
                0
            }),
        }
    }

    fn value(&self, block: Block, at: usize) -> Option<u32> {
        match block {
            Block::Gr0 => self.gr0_value(at),
            Block::Gr1 => self.gr1_value(at),
            Block::Bank(n) => self.bank_value(n, at),
            Block::Global(page) => self.extended_value(page, at),
            Block::NoBank | Block::Outside => None,
        }
    }

    fn write_word(&mut self, offset: usize, value: u32) {
        if offset & 3 != 0 {
            self.bad_access(offset);
            return;
        }
        let (block, at) = registers::locate(&self.config, offset);
        match self.visible(block) {
            Block::Gr0 => self.write_gr0(at, value),
            Block::Gr1 => self.write_gr1(at, value),
            Block::Bank(n) => self.write_bank(n, at, value),
            Block::Outside => _ = self.bad_access(offset),
            Block::Global(page) if self.extended_value(page, at).is_some() => self.write_extended(page, at, value),
            block => self.access_fault(block, offset, true),
        }
    }

    /// A 64-bit operation register starts once, with its whole value; all else is its two words.
    fn write_double_word(&mut self, offset: usize, value: u64) {
        let (block, at) = registers::locate(&self.config, offset);
        match block {
            Block::Bank(n) if crate::bank::is_wide_operation(at) => {
                if let Block::Bank(n) = self.visible(Block::Bank(n)) {
                    self.bank_operation(n, at, value);
                }
            }
            _ => {
                self.write_word(offset, registers::low_word(value));
                self.write_word(offset.wrapping_add(4), registers::high_word(value));
            }
        }
    }
}

impl PartialEq for Smmu {
    fn eq(&self, other: &Self) -> bool {
        self.config == other.config
            && self.nonsecure == other.nonsecure
            && self.secure == other.secure
            && self.map == other.map
            && self.extended_map == other.extended_map
            && self.banks == other.banks
            && self.tlb == other.tlb
            && self.flight == other.flight
            && self.injections == other.injections
    }
}

impl Eq for Smmu {}

/// Where UNKNOWN values come from. Not a source of randomness for anything else than being unpredictable to a driver.
#[derive(Clone, Debug)]
pub(crate) struct UnknownSource {
    kind: Unknown,
    state: u64,
}

impl UnknownSource {
    fn new(kind: Unknown) -> Self {
        let state = match kind {
            Unknown::Seed(seed) => seed,
            Unknown::Zeroes | Unknown::Ones => 0,
        };
        Self { kind, state }
    }

    /// The next UNKNOWN double word (splitmix64: equal seeds, equal parts).
    pub(crate) fn double_word(&mut self) -> u64 {
        match self.kind {
            Unknown::Zeroes => 0,
            Unknown::Ones => u64::MAX,
            Unknown::Seed(_) => self.draw(),
        }
    }

    /// The next UNKNOWN word.
    pub(crate) fn word(&mut self) -> u32 {
        registers::high_word(self.double_word())
    }

    /// The next choice among things that the architecture leaves open, also where UNKNOWN registers are constant.
    pub(crate) fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

fn word(base: usize, n: u8) -> usize {
    base.wrapping_add(usize::from(n).wrapping_mul(4))
}
