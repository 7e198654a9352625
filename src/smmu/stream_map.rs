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
//! 3. Devices that share an entry and are in a space are in the same one: the caller keeps groups (contract I-11), and
//!    [`StreamMap::conflicts`] refuses a caller that does not.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::Cell;

use intrusive_collections::{KeyAdapter, RBTree, RBTreeLink, intrusive_adapter};

use super::context::{Bank, BankIndex};
use super::cover::Cube;
use super::registers::S2cr;
use super::tlb::Ticket;
use crate::assign::DeviceId;

/// The index of an entry, 0..=127.
pub(super) type EntryIndex = u8;

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
}

impl Entry {
    const FREE: Self = Self { cube: None, action: S2cr::Fault, registered: 0, assigned: 0 };
}

/// One entry of a device, and how many of the device's streams meet it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EntryUse {
    pub(super) entry: EntryIndex,
    pub(super) pairs: usize,
}

/// What a device uses of the map.
pub(super) struct Use {
    link: RBTreeLink,
    pub(super) device: DeviceId,
    pub(super) streams: Vec<Cube>,
    entries: Cell<Vec<EntryUse>>,
    /// The bank that translates for it.
    pub(super) bank: Cell<Option<BankIndex>>,
    /// A move is planned.
    pub(super) planned: Cell<bool>,
    /// The sync after its last block that has not been confirmed.
    pub(super) undrained: Cell<Option<Ticket>>,
}

impl Use {
    pub(super) fn new(device: DeviceId, streams: Vec<Cube>) -> Box<Self> {
        Box::new(Self {
            link: RBTreeLink::new(),
            device,
            streams,
            entries: Cell::new(Vec::new()),
            bank: Cell::new(None),
            planned: Cell::new(false),
            undrained: Cell::new(None),
        })
    }

    /// Looks at the entries of the device. An empty list: it is not enrolled.
    pub(super) fn with_entries<T>(&self, look: impl FnOnce(&[EntryUse]) -> T) -> T {
        let entries = self.entries.take();
        let seen = look(&entries);
        self.entries.set(entries);
        seen
    }

    /// Sets the entries of the device and returns the list's old memory, to be dropped when the lock is free.
    pub(super) fn replace_entries(&self, entries: Vec<EntryUse>) -> Vec<EntryUse> {
        self.entries.replace(entries)
    }

    /// How many of the device's streams meet `cube`.
    pub(super) fn pairs_with(&self, cube: Cube) -> usize {
        self.streams.iter().filter(|stream| stream.meets(cube)).count()
    }

    fn uses(&self, entry: EntryIndex) -> bool {
        self.with_entries(|entries| entries.iter().any(|used| used.entry == entry))
    }
}

intrusive_adapter!(ByDevice = Box<Use>: Use { link => RBTreeLink });

impl<'a> KeyAdapter<'a> for ByDevice {
    type Key = DeviceId;

    fn get_key(&self, used: &'a Use) -> DeviceId {
        used.device
    }
}

/// The stream map and the context banks of one instance: its shadow, which is the truth (rule O21).
pub(super) struct StreamMap {
    pub(super) entries: Vec<Entry>,
    pub(super) banks: Vec<Bank>,
    uses: RBTree<ByDevice>,
    /// Changes whenever an entry starts or stops to match.
    pub(super) generation: u64,
}

impl StreamMap {
    /// All entries free, all banks free. `None` when memory could not be reserved.
    pub(super) fn new(entries: u8, banks: u8) -> Option<Self> {
        let mut map = Self { entries: Vec::new(), banks: Vec::new(), uses: RBTree::new(ByDevice::NEW), generation: 0 };
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
    }

    pub(super) fn take_use(&mut self, device: DeviceId) -> Option<Box<Use>> {
        self.uses.find_mut(&device).remove()
    }

    /// The devices other than `device` that use one of its entries.
    pub(super) fn sharers<'a>(&'a self, used: &'a Use) -> impl Iterator<Item = &'a Use> {
        self.uses.iter().filter(move |other| {
            other.device != used.device
                && used.with_entries(|entries| entries.iter().any(|mine| other.uses(mine.entry)))
        })
    }

    /// Whether an entry of `used` translates to another bank than `bank` for a device outside `moving`.
    pub(super) fn conflicts(&self, used: &Use, bank: BankIndex, moving: &[DeviceId]) -> bool {
        self.sharers(used)
            .any(|other| !moving.contains(&other.device) && other.bank.get().is_some_and(|theirs| theirs != bank))
    }

    // --- entries ---

    pub(super) fn entry(&self, index: EntryIndex) -> Option<&Entry> {
        self.entries.get(usize::from(index))
    }

    pub(super) fn entry_mut(&mut self, index: EntryIndex) -> Option<&mut Entry> {
        self.entries.get_mut(usize::from(index))
    }

    /// The entries that match, with what they match.
    pub(super) fn matching(&self) -> impl Iterator<Item = (EntryIndex, Cube)> {
        (0..=u8::MAX).zip(&self.entries).filter_map(|(index, entry)| Some((index, entry.cube?)))
    }

    /// The free entries, lowest first.
    pub(super) fn free_entries(&self) -> impl Iterator<Item = EntryIndex> {
        (0..=u8::MAX).zip(&self.entries).filter(|(_, entry)| entry.cube.is_none()).map(|(index, _)| index)
    }

    // --- banks ---

    pub(super) fn bank(&self, index: BankIndex) -> Option<&Bank> {
        self.banks.get(usize::from(index))
    }

    pub(super) fn bank_mut(&mut self, index: BankIndex) -> Option<&mut Bank> {
        self.banks.get_mut(usize::from(index))
    }

    /// The first bank that `wanted` accepts. Banks that can only do stage 2 come first (quirk Q24).
    pub(super) fn find_bank(&self, wanted: impl Fn(&Bank) -> bool) -> Option<BankIndex> {
        (0..=u8::MAX).zip(&self.banks).find(|(_, bank)| wanted(bank)).map(|(index, _)| index)
    }
}
