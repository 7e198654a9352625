//! Cached translations, and the maintenance that removes them: posted first, done only by a sync that was polled to its
//! end.

use alloc::vec::Vec;

use crate::config::{Config, SyncDelay};
use crate::flight::{InFlight, TransactionId};
use crate::inject::{Injection, SyncRegister};
use crate::smmu::{Hazard, Smmu, UnknownSource};

/// One cached leaf: a page or block that the SMMU may use without looking at memory.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// The tag. Banks that share a VMID share entries.
    pub vmid: u16,
    /// First input address, aligned to `size`.
    pub input: u64,
    /// Bytes covered.
    pub size: u64,
    /// First output address.
    pub output: u64,
    /// `S2AP`: bit 0 read, bit 1 write.
    pub permissions: u8,
    /// Instruction fetches are forbidden.
    pub execute_never: bool,
    /// Level of the descriptor, 1 to 3.
    pub level: u8,
    /// Root of the table that the descriptor was found in.
    pub root: u64,
    pub(crate) age: u64,
}

impl PartialEq for Leaf {
    /// All but the age, which decides nothing that a later sync does not.
    fn eq(&self, other: &Self) -> bool {
        self.vmid == other.vmid
            && self.input == other.input
            && self.size == other.size
            && self.output == other.output
            && self.permissions == other.permissions
            && self.execute_never == other.execute_never
            && self.level == other.level
            && self.root == other.root
    }
}

impl Eq for Leaf {}

impl Leaf {
    pub(crate) fn covers(&self, vmid: u16, input: u64) -> bool {
        self.vmid == vmid && input.wrapping_sub(self.input) < self.size
    }
}

/// One cached table descriptor: where a walk may start without reading the levels above.
#[derive(Clone, Debug)]
pub struct Table {
    /// The tag.
    pub vmid: u16,
    /// First input address that the table translates.
    pub input: u64,
    /// Bytes that it translates.
    pub size: u64,
    /// Address of the table.
    pub table: u64,
    /// Level of the table, 1 to 3.
    pub level: u8,
    /// Bits of the granule: 12, 14 or 16. Walks with another granule do not use the entry.
    pub granule: u8,
    /// Root of the tree that it hangs in.
    pub root: u64,
    pub(crate) age: u64,
}

impl PartialEq for Table {
    fn eq(&self, other: &Self) -> bool {
        self.vmid == other.vmid
            && self.input == other.input
            && self.size == other.size
            && self.table == other.table
            && self.level == other.level
            && self.granule == other.granule
            && self.root == other.root
    }
}

impl Eq for Table {}

impl Table {
    pub(crate) fn covers(&self, vmid: u16, input: u64) -> bool {
        self.vmid == vmid && input.wrapping_sub(self.input) < self.size
    }
}

/// Which of a VMID's entries an invalidate removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Everything,
    Stage1,
}

/// What an invalidate removes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalidate {
    All,
    Nothing,
    Vmid { vmid: u16, scope: Scope },
    Page { vmid: u16, page: u64, leaf: bool },
}

/// Where an invalidate was posted: a bank's sync completes its own only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Global,
    Bank(u8),
}

/// A posted invalidate.
#[derive(Clone, Debug)]
struct Posted {
    origin: Origin,
    invalidate: Invalidate,
    /// Transactions that were steered before and may use what it removes.
    awaits: Vec<TransactionId>,
    number: u64,
}

impl PartialEq for Posted {
    fn eq(&self, other: &Self) -> bool {
        self.origin == other.origin && self.invalidate == other.invalidate && self.awaits == other.awaits
    }
}

impl Eq for Posted {}

/// One sync register's state.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sync {
    active: Option<Active>,
}

#[derive(Clone, Debug)]
struct Active {
    up_to: u64,
    polls_left: Option<u32>,
}

impl PartialEq for Sync {
    fn eq(&self, other: &Self) -> bool {
        match (&self.active, &other.active) {
            (None, None) => true,
            (Some(a), Some(b)) => a.polls_left == b.polls_left,
            _ => false,
        }
    }
}

impl Eq for Sync {}

impl Sync {
    /// The status register, as long as nobody polls it on.
    pub(crate) fn status(&self) -> u32 {
        u32::from(self.active.is_some())
    }
}

/// Everything that is cached, and the maintenance posted against it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Tlb {
    pub(crate) leaves: Vec<Leaf>,
    pub(crate) tables: Vec<Table>,
    posted: Vec<Posted>,
    clock: Clock,
}

/// Orders fills against invalidates. All clocks are equal: they say nothing of what the SMMU will do.
#[derive(Clone, Debug, Default)]
struct Clock(u64);

impl PartialEq for Clock {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Clock {}

impl Tlb {
    /// A TLB with as many stale entries, of low VMIDs and low addresses, as the part is asked to have.
    pub(crate) fn reset(config: &Config, unknown: &mut UnknownSource) -> Self {
        let stale = |n: u8| Leaf {
            vmid: u16::from(n & 7),
            input: (unknown.draw() & 0xff) << 21,
            size: 1 << 21,
            output: (unknown.draw() & 0x7ff) << 21,
            permissions: 3,
            execute_never: false,
            level: 2,
            root: 0,
            age: 0,
        };
        let leaves = (0..config.stale_entries).map(stale).collect();
        Self { leaves, tables: Vec::new(), posted: Vec::new(), clock: Clock(1) }
    }

    /// Takes over what another SMMU of the same chip has cached, and its clock.
    pub(crate) fn share(&mut self, other: &Self) {
        self.leaves.clone_from(&other.leaves);
        self.tables.clone_from(&other.tables);
        self.clock.clone_from(&other.clock);
    }

    /// What a translation that starts now is dated with.
    pub(crate) fn now(&self) -> u64 {
        self.clock.0
    }

    pub(crate) fn post(&mut self, origin: Origin, invalidate: Invalidate, flight: &[InFlight]) {
        let awaited = |one: &&InFlight| one.is_awaited_by(invalidate, &self.leaves, &self.tables);
        let awaits = flight.iter().filter(awaited).map(InFlight::id).collect();
        let number = self.clock.0;
        self.clock.0 = number.wrapping_add(1);
        self.posted.push(Posted { origin, invalidate, awaits, number });
    }

    pub(crate) fn fill(&mut self, config: &Config, leaf: Option<Leaf>, tables: Vec<Table>) {
        if let Some(leaf) = leaf
            && !self.leaves.contains(&leaf)
        {
            push_bounded(&mut self.leaves, leaf, config.tlb_entries);
        }
        for table in tables {
            if !self.tables.contains(&table) {
                push_bounded(&mut self.tables, table, config.walk_cache_entries);
            }
        }
    }

    /// Whether any invalidate that `sync` covers still waits for a transaction.
    fn is_waiting(&self, origin: Option<u8>, up_to: u64, flight: &[InFlight]) -> bool {
        self.posted
            .iter()
            .filter(|posted| posted.is_covered(origin, up_to))
            .any(|posted| posted.awaits.iter().any(|id| flight.iter().any(|one| one.id() == *id && one.is_draining())))
    }

    fn complete(&mut self, config: &Config, origin: Option<u8>, up_to: u64) {
        let posted = core::mem::take(&mut self.posted);
        let (done, left): (Vec<_>, Vec<_>) = posted.into_iter().partition(|one| one.is_covered(origin, up_to));
        self.posted = left;
        for one in done {
            let everything = config.over_invalidate;
            let sticks = config.quirks.walk_cache_sticks;
            self.leaves.retain(|leaf| leaf.age > one.number || !(everything || one.invalidate.removes_leaf(leaf)));
            self.tables
                .retain(|table| table.age > one.number || !(everything || one.invalidate.removes_table(table, sticks)));
        }
    }
}

impl Posted {
    fn is_covered(&self, origin: Option<u8>, up_to: u64) -> bool {
        self.number < up_to && origin.is_none_or(|bank| self.origin == Origin::Bank(bank))
    }
}

impl Invalidate {
    fn removes_leaf(self, leaf: &Leaf) -> bool {
        match self {
            Self::All => true,
            Self::Nothing | Self::Vmid { scope: Scope::Stage1, .. } => false,
            Self::Vmid { vmid, scope: Scope::Everything } => leaf.vmid == vmid,
            Self::Page { vmid, page, .. } => leaf.covers(vmid, page),
        }
    }

    fn removes_table(self, table: &Table, sticks: bool) -> bool {
        match self {
            Self::All => true,
            Self::Nothing | Self::Vmid { scope: Scope::Stage1, .. } => false,
            Self::Vmid { vmid, scope: Scope::Everything } => table.vmid == vmid,
            Self::Page { vmid, page, leaf } => !leaf && !sticks && table.covers(vmid, page),
        }
    }
}

impl Smmu {
    /// The cached leaves, in the order in which they were filled.
    pub fn tlb(&self) -> &[Leaf] {
        &self.tlb.leaves
    }

    /// The cached table descriptors, in the order in which they were filled.
    pub fn walk_cache(&self) -> &[Table] {
        &self.tlb.tables
    }

    /// Whether an invalidate was posted that no sync has completed.
    pub fn has_posted_maintenance(&self) -> bool {
        !self.tlb.posted.is_empty()
    }

    pub(crate) fn sync_global(&mut self, secure: bool) {
        let sync = self.start_sync(SyncRegister::Global);
        let global = if secure { &mut self.secure } else { &mut self.nonsecure };
        let overlap = global.sync.active.replace(sync).is_some();
        self.note_overlap(overlap);
    }

    pub(crate) fn sync_bank(&mut self, n: u8) {
        let sync = self.start_sync(SyncRegister::Bank(n));
        let Some(bank) = self.banks.get_mut(usize::from(n)) else { return };
        let overlap = bank.sync.active.replace(sync).is_some();
        self.note_overlap(overlap);
    }

    pub(crate) fn poll_global(&mut self, secure: bool) -> u32 {
        let global = if secure { &mut self.secure } else { &mut self.nonsecure };
        let mut sync = core::mem::take(&mut global.sync);
        let active = self.poll(&mut sync, None);
        let global = if secure { &mut self.secure } else { &mut self.nonsecure };
        global.sync = sync;
        active
    }

    pub(crate) fn poll_bank(&mut self, n: u8) -> u32 {
        let Some(bank) = self.banks.get_mut(usize::from(n)) else { return 0 };
        let mut sync = core::mem::take(&mut bank.sync);
        let active = self.poll(&mut sync, Some(n));
        if let Some(bank) = self.banks.get_mut(usize::from(n)) {
            bank.sync = sync;
        }
        active
    }

    fn start_sync(&mut self, register: SyncRegister) -> Active {
        let up_to = self.tlb.now();
        let polls_left = match (self.sync_is_injected(register), self.config.sync_delay) {
            (true, _) | (_, SyncDelay::Never) => None,
            (false, SyncDelay::Polls(n)) => Some(n),
        };
        Active { up_to, polls_left }
    }

    /// Lets syncs that an injection held go on, except in registers whose status still never clears: each completes with the
    /// next look at its status.
    pub fn release_syncs(&mut self) {
        if self.config.sync_delay == SyncDelay::Never {
            return;
        }
        let held = |register| self.injections.contains(&Injection::StatusNeverClears(register));
        let global_held = held(SyncRegister::Global);
        let banks = (0_u8..).zip(&mut self.banks);
        let banks =
            banks.filter(|(n, _)| !self.injections.contains(&Injection::StatusNeverClears(SyncRegister::Bank(*n))));
        let global = [&mut self.nonsecure.sync, &mut self.secure.sync].into_iter().filter(|_| !global_held);
        for sync in global.chain(banks.map(|(_, bank)| &mut bank.sync)) {
            if let Some(active) = &mut sync.active {
                active.polls_left.get_or_insert(0);
            }
        }
    }

    fn note_overlap(&mut self, overlap: bool) {
        if overlap {
            self.hazard(Hazard::SyncOverlap);
        }
    }

    /// One read of a status: 1 while active; the read that gives 0 is the one that completes the invalidates.
    fn poll(&mut self, sync: &mut Sync, origin: Option<u8>) -> u32 {
        let Some(active) = &mut sync.active else { return 0 };
        match &mut active.polls_left {
            None => return 1,
            Some(0) => (),
            Some(left) => {
                *left = left.saturating_sub(1);
                return 1;
            }
        }
        if self.tlb.is_waiting(origin, active.up_to, &self.flight) {
            return 1;
        }
        self.tlb.complete(&self.config, origin, active.up_to);
        sync.active = None;
        0
    }
}

fn push_bounded<T>(entries: &mut Vec<T>, entry: T, limit: u16) {
    if limit == 0 {
        return;
    }
    if entries.len() >= usize::from(limit) {
        entries.remove(0);
    }
    entries.push(entry);
}
