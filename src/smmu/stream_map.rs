//! Stream-map entries, who uses them, and the counts that say what each entry may do.
//!
//! # Locking
//!
//! All of it is guarded by the instance's lock of level `StreamMap`; the cells of a [`Use`] too, since a use is only
//! reached through the map.
//!
//! # Invariants
//!
//! 1. No two used entries match one stream ID (contract I-1): new cubes are disjoint from all used ones.
//! 2. `registered` of an entry is the number of (device, canonical stream) pairs that meet it; 0 exactly when the entry
//!    does not match. `assigned` is the part of them whose device is in a space; 0 exactly when the entry faults
//!    (contract I-12).
//! 3. Devices that share an entry and are in a domain are in the same one: the caller keeps groups (contract I-11), and
//!    [`StreamMap::conflicts`] refuses a caller that does not.
//! 4. A device either uses every entry that meets its streams, or none: then it is not enrolled.
//! 5. What devices were promised and what is in use are together never more entries than there are: the
//!    [`Budget`](super::budget::Budget) counts both.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cell::Cell;

use intrusive_collections::{KeyAdapter, RBTree, RBTreeLink, intrusive_adapter};

use super::budget::Promised;
use super::context::{Bank, BankIndex};
use super::cover::Cube;
use super::index::Index;
use super::registers::S2cr;
use crate::assign::DeviceId;
use crate::sync::atomic::{AtomicBool, Ordering};

/// The index of an entry, 0..=127.
pub(super) type EntryIndex = u8;

/// A set of entries, or of banks: bit `n` stands for number `n`.
pub(super) type Set = u128;

/// The set with one member.
pub(super) const fn one(number: u8) -> Set {
    (1 as Set).wrapping_shl(number as u32)
}

/// The members of a set, lowest first.
pub(super) fn each(set: Set) -> impl Iterator<Item = u8> + Clone {
    let mut left = set;
    core::iter::from_fn(move || {
        let lowest = u8::try_from(left.trailing_zeros()).ok().filter(|_| left != 0)?;
        left &= !one(lowest);
        Some(lowest)
    })
}

/// A stream-map entry as the driver believes it to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// What it matches; `None` when it is free.
    pub(super) cube: Option<Cube>,
    /// What it does.
    pub(super) action: S2cr,
    /// Pairs that meet it.
    pub(super) registered: usize,
    /// Pairs whose device is in a space.
    pub(super) assigned: usize,
    /// One of the devices that use it.
    pub(super) user: Option<DeviceId>,
}

impl Entry {
    pub(super) const FREE: Self = Self { cube: None, action: S2cr::Fault, registered: 0, assigned: 0, user: None };

    /// Whether it matches nothing.
    pub(super) const fn is_free(&self) -> bool {
        self.cube.is_none()
    }
}

/// What a device uses of the map.
pub(super) struct Use {
    link: RBTreeLink,
    pub(super) device: DeviceId,
    pub(super) streams: Vec<Cube>,
    /// The entries that meet its streams; none: it is not enrolled.
    pub(super) entries: Cell<Set>,
    /// Devices with one number here may share entries though their streams do not meet.
    pub(super) kin: Option<u64>,
    /// How many entries it was promised beside. No other device has the same one, so that it tells a device from a later one
    /// of its number.
    pub(super) promised: Arc<Promised>,
    /// The bank that translates for it.
    pub(super) bank: Cell<Option<BankIndex>>,
    /// A move is planned.
    pub(super) planned: Cell<bool>,
    /// It was put in fault, and the drain behind that has not ended: by the device that stands for all of that drain.
    pub(super) draining: Cell<Option<DeviceId>>,
    /// Of the drain that it stands for: the banks to be retired.
    pub(super) retiring: Cell<Set>,
    /// Of the drain that it stands for: the hardware has confirmed it. Set without the lock, by whoever waited for that.
    pub(super) drained: Arc<AtomicBool>,
}

impl Use {
    pub(super) fn new(device: DeviceId, streams: Vec<Cube>, kin: Option<u64>) -> Box<Self> {
        Box::new(Self {
            link: RBTreeLink::new(),
            device,
            streams,
            entries: Cell::new(0),
            kin,
            promised: Arc::default(),
            bank: Cell::new(None),
            planned: Cell::new(false),
            draining: Cell::new(None),
            retiring: Cell::new(0),
            drained: Arc::new(AtomicBool::new(false)),
        })
    }

    /// How many of the device's streams meet `cube`.
    pub(super) fn pairs_with(&self, cube: Cube) -> usize {
        self.streams.iter().filter(|stream| stream.meets(cube)).count()
    }

    /// The entries that the device uses, or those of others that it will.
    pub(super) fn reach(&self, map: &StreamMap) -> Set {
        if self.entries.get() == 0 { map.meeting_any(&self.streams) } else { self.entries.get() }
    }

    /// Whether the hardware has confirmed the drain that the device stands for.
    pub(super) fn is_drained(&self) -> bool {
        self.draining.get() == Some(self.device) && self.drained.load(Ordering::Acquire)
    }

    /// Whether `id` is one of the device's.
    pub(super) fn holds(&self, id: u32) -> bool {
        self.streams.iter().any(|stream| stream.holds(id))
    }
}

intrusive_adapter!(ByDevice = Box<Use>: Use { link => RBTreeLink });

impl<'a> KeyAdapter<'a> for ByDevice {
    type Key = DeviceId;

    fn get_key(&self, used: &'a Use) -> DeviceId {
        used.device
    }
}

/// The stream map and the context banks of one instance: its shadow, which is the truth. What a register holds is lost with
/// the power, and on some parts reads back as something else.
pub(super) struct StreamMap {
    entries: Vec<Entry>,
    pub(super) banks: Vec<Bank>,
    index: Index,
    uses: RBTree<ByDevice>,
    /// Changes whenever an entry starts or stops to match, or matches something else, when a device comes, and when one
    /// begins to share. Who is in which bank, or about to be, does not change it.
    pub(super) generation: u64,
}

impl StreamMap {
    /// All entries free, all banks free. `None` when memory could not be reserved.
    pub(super) fn new(entries: u8, banks: u8) -> Option<Self> {
        let index = Index::new(entries)?;
        let mut map =
            Self { entries: Vec::new(), banks: Vec::new(), index, uses: RBTree::new(ByDevice::NEW), generation: 0 };
        map.entries.try_reserve_exact(entries.into()).ok()?;
        map.entries.resize(entries.into(), Entry::FREE);
        map.banks.try_reserve_exact(banks.into()).ok()?;
        map.banks.resize(banks.into(), Bank::FREE);
        Some(map)
    }

    // --- uses ---

    pub(super) fn used_by(&self, device: DeviceId) -> Option<&Use> {
        self.uses.find(&device).get()
    }

    pub(super) fn uses(&self) -> impl Iterator<Item = &Use> {
        self.uses.iter()
    }

    pub(super) fn insert_use(&mut self, used: Box<Use>) {
        self.uses.insert(used);
        self.generation = self.generation.wrapping_add(1);
    }

    /// Takes a device's use out, with the entries that it used counted without it.
    pub(super) fn take_use(&mut self, device: DeviceId) -> Option<Box<Use>> {
        let used = self.uses.find_mut(&device).remove()?;
        for entry in each(used.entries.get()) {
            self.recount(entry);
        }
        Some(used)
    }

    /// The devices other than `used`'s that use one of its entries, or will: of two that were added lazily, the streams
    /// tell.
    pub(super) fn sharers<'a>(&'a self, used: &'a Use) -> impl Iterator<Item = &'a Use> {
        let mine = used.reach(self);
        self.uses.iter().filter(move |other| {
            let theirs = other.entries.get();
            let meets = || used.streams.iter().any(|stream| other.pairs_with(*stream) > 0);
            other.device != used.device && (theirs & mine != 0 || (theirs == 0 && meets()))
        })
    }

    /// Whether an entry of `used` translates to another domain's bank for a device outside `moving`.
    ///
    /// A space of the service's own is no domain: devices leave it when a group-mate is moved.
    pub(super) fn conflicts(&self, used: &Use, bank: BankIndex, moving: &[DeviceId]) -> bool {
        self.sharers(used).any(|other| {
            let theirs = other.bank.get().filter(|theirs| !self.bank(*theirs).is_some_and(Bank::is_own));
            !moving.contains(&other.device) && theirs.is_some_and(|theirs| theirs != bank)
        })
    }

    /// The entries of all devices that are connected with `start` through shared entries, `start` included.
    pub(super) fn connected(&self, start: Set) -> Set {
        let mut reached = start;
        loop {
            let shared = self.uses.iter().map(|used| used.entries.get()).filter(|entries| entries & reached != 0);
            let grown = shared.fold(reached, |all, entries| all | entries);
            if grown == reached {
                return reached;
            }
            reached = grown;
        }
    }

    // --- drains ---

    /// Begins a drain for those of `devices` that are in none: the first of these stands for it. Returns it, and what is to
    /// be set when the drain is confirmed.
    pub(super) fn open_drain(&self, devices: &[DeviceId], retiring: Set) -> Option<(DeviceId, Arc<AtomicBool>)> {
        let idle = |device: &DeviceId| self.used_by(*device).filter(|used| used.draining.get().is_none());
        let lead = devices.iter().find_map(idle)?;
        for used in devices.iter().filter_map(idle) {
            used.draining.set(Some(lead.device));
        }
        lead.retiring.set(retiring);
        lead.drained.store(false, Ordering::Relaxed);
        Some((lead.device, lead.drained.clone()))
    }

    /// Ends the drain that `lead` stands for. Returns the banks to be retired.
    pub(super) fn close_drain(&self, lead: DeviceId) -> Set {
        for used in self.uses().filter(|used| used.draining.get() == Some(lead)) {
            used.draining.set(None);
        }
        self.used_by(lead).map_or(0, |used| used.retiring.take())
    }

    /// A device that stands for a drain that the hardware has confirmed.
    pub(super) fn announced(&self) -> Option<DeviceId> {
        self.uses().find(|used| used.is_drained()).map(|used| used.device)
    }

    // --- entries ---

    pub(super) fn entry(&self, number: EntryIndex) -> Option<&Entry> {
        self.entries.get(usize::from(number))
    }

    pub(super) fn entry_mut(&mut self, number: EntryIndex) -> Option<&mut Entry> {
        self.entries.get_mut(usize::from(number))
    }

    pub(super) fn cube(&self, number: EntryIndex) -> Option<Cube> {
        self.entry(number).and_then(|entry| entry.cube)
    }

    /// How many of a device's streams meet what an entry matches.
    pub(super) fn pairs(&self, device: DeviceId, number: EntryIndex) -> usize {
        self.used_by(device).zip(self.cube(number)).map_or(0, |(used, cube)| used.pairs_with(cube))
    }

    pub(super) fn entry_count(&self) -> usize {
        self.entries.len()
    }

    /// All entries.
    pub(super) fn entries(&self) -> impl Iterator<Item = (EntryIndex, &Entry)> {
        (0..=u8::MAX).zip(&self.entries)
    }

    /// The free entries, lowest first.
    pub(super) fn free_entries(&self) -> impl Iterator<Item = EntryIndex> {
        self.entries().filter(|(_, entry)| entry.is_free()).map(|(number, _)| number)
    }

    /// Whether an entry translates.
    pub(super) fn is_live(&self, number: EntryIndex) -> bool {
        self.entry(number).is_some_and(|entry| entry.assigned > 0)
    }

    /// The entry that matches a stream ID.
    pub(super) fn matching(&self, id: u32) -> Option<&Entry> {
        self.index.matching(id).and_then(|number| self.entry(number))
    }

    /// The entries that match some ID of `wanted`.
    pub(super) fn meeting(&self, wanted: Cube) -> Set {
        self.index.meeting(wanted)
    }

    /// The entries that match some ID of `streams`.
    pub(super) fn meeting_any(&self, streams: &[Cube]) -> Set {
        streams.iter().fold(0, |all, stream| all | self.index.meeting(*stream))
    }

    /// Makes an entry match `cube`, or something else than before, or nothing. Who uses it is counted later.
    pub(super) fn set_cube(&mut self, number: EntryIndex, cube: Option<Cube>) {
        self.index.remove(number);
        if let Some(cube) = cube {
            self.index.insert(cube, number);
        }
        if let Some(entry) = self.entry_mut(number) {
            entry.cube = cube;
        }
        self.generation = self.generation.wrapping_add(1);
    }

    /// Finds out anew who of the devices uses an entry (invariants 2 and 4).
    pub(super) fn recount(&mut self, number: EntryIndex) {
        let Some(cube) = self.cube(number) else { return };
        let (mut registered, mut assigned, mut user) = (0_usize, 0_usize, None);
        for used in self.uses.iter().filter(|used| used.entries.get() & one(number) != 0) {
            let pairs = used.pairs_with(cube);
            registered = registered.saturating_add(pairs);
            if used.bank.get().is_some() {
                assigned = assigned.saturating_add(pairs);
            }
            user = user.or(Some(used.device));
        }
        if let Some(entry) = self.entry_mut(number) {
            *entry = Entry { registered, assigned, user, ..*entry };
        }
    }

    // --- banks ---

    pub(super) fn bank(&self, index: BankIndex) -> Option<&Bank> {
        self.banks.get(usize::from(index))
    }

    pub(super) fn bank_mut(&mut self, index: BankIndex) -> Option<&mut Bank> {
        self.banks.get_mut(usize::from(index))
    }

    /// The bank that translates for a device.
    pub(super) fn bank_of(&self, used: &Use) -> Option<&Bank> {
        used.bank.get().and_then(|bank| self.bank(bank))
    }

    /// The first bank that `wanted` accepts. Banks that can only do stage 2 come first (quirk Q24).
    pub(super) fn find_bank(&self, wanted: impl Fn(&Bank) -> bool) -> Option<BankIndex> {
        self.banks().find(|(_, bank)| wanted(bank)).map(|(index, _)| index)
    }

    /// All banks.
    pub(super) fn banks(&self) -> impl Iterator<Item = (BankIndex, &Bank)> {
        (0..=u8::MAX).zip(&self.banks)
    }
}
