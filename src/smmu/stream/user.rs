//! What one device uses of one instance.
//!
//! # Locking
//!
//! A user is reached through its stream map, whose lock guards the cells.

use alloc::boxed::Box;
use core::cell::Cell;

use intrusive_collections::{SinglyLinkedListLink, intrusive_adapter};
use smallvec::SmallVec;

use super::cover::Cube;
use super::entry::Entry as StreamEntry;
use super::masters::{Nodes, nodes_of};
use super::number_set::{Set, SetCell};
use crate::assign::{DeviceId, IommuKey};
use crate::by_number::{ByNumber, Numbered};
use crate::smmu::hardware::part::BankIndex;

/// A few cubes; one or two stand in place.
pub(in crate::smmu) type Cubes = SmallVec<[Cube; 2]>;

/// A device as one instance sees it.
///
/// # Invariants
///
/// 1. `bank` is set exactly while the device's entries translate through it.
/// 2. A device with a plan (`planned`) counts in that bank's `plans`.
/// 3. A device that is `joined` uses every entry that overlaps its streams. One that is not lazy, or is planned or live,
///    has all of its streams captured by them.
pub(in crate::smmu) struct StreamUser {
    link: SinglyLinkedListLink,
    /// The instance that it was made for.
    pub(in crate::smmu) iommu: IommuKey,
    pub(in crate::smmu) device: DeviceId,
    /// Its streams in canonical order, each once, and behind them their least cover.
    cubes: Cubes,
    streams: usize,
    /// It takes entries of its own only when it is first assigned.
    pub(in crate::smmu) lazy: bool,
    /// It uses entries, or will: its reservation was granted.
    pub(in crate::smmu) joined: Cell<bool>,
    /// Its reservation has moved entries of others, which its enrolment writes.
    pub(in crate::smmu) repacked: Cell<bool>,
    pub(in crate::smmu) bank: Cell<Option<BankIndex>>,
    pub(in crate::smmu) planned: Cell<Option<BankIndex>>,
    pub(in crate::smmu) entries: SetCell,
    /// The nodes of its streams, while they are not in the tree of masters.
    pub(in crate::smmu) nodes: Cell<Nodes>,
}

impl StreamUser {
    pub(in crate::smmu) fn new(
        iommu: IommuKey,
        device: DeviceId,
        cubes: Cubes,
        streams: usize,
        lazy: bool,
    ) -> Box<Self> {
        let nodes = Cell::new(nodes_of(iommu, device, cubes.get(..streams).unwrap_or_default()));
        Box::new(Self {
            link: SinglyLinkedListLink::new(),
            iommu,
            device,
            cubes,
            streams,
            lazy,
            joined: Cell::new(false),
            repacked: Cell::new(false),
            bank: Cell::new(None),
            planned: Cell::new(None),
            entries: SetCell::default(),
            nodes,
        })
    }

    pub(in crate::smmu) fn streams(&self) -> &[Cube] {
        self.cubes.get(..self.streams).unwrap_or_default()
    }

    pub(in crate::smmu) fn cover(&self) -> &[Cube] {
        self.cubes.get(self.streams..).unwrap_or_default()
    }

    /// The entries that it takes when it comes.
    pub(in crate::smmu) fn first_cover(&self) -> &[Cube] {
        if self.lazy { &[] } else { self.cover() }
    }

    /// How many of the device's streams overlap what an entry is to match.
    pub(in crate::smmu) fn pairs_in(&self, entry: &StreamEntry) -> u32 {
        entry.cube.map_or(0, |cube| self.pairs_with(cube))
    }

    /// How many of the device's streams overlap `cube`.
    pub(in crate::smmu) fn pairs_with(&self, cube: Cube) -> u32 {
        match self.streams() {
            [only] => only.meets(cube).into(),
            // The sum cannot wrap, and without a check the loop is vectorised.
            all => all.iter().map(|stream| u32::from(stream.meets(cube))).fold(0, u32::wrapping_add),
        }
    }

    /// How many of the device's streams overlap an entry that it uses: one at least does.
    pub(in crate::smmu) fn pairs_in_used(&self, entry: &StreamEntry) -> u32 {
        if self.streams == 1 { 1 } else { self.pairs_in(entry) }
    }

    pub(in crate::smmu) fn use_entry(&self, number: u8, used: bool) {
        self.entries.put(number, used);
    }

    /// Whether its entries may change what they match.
    pub(in crate::smmu) fn is_at_rest(&self) -> bool {
        self.bank.get().is_none() && self.planned.get().is_none()
    }
}

intrusive_adapter!(ByDevice = Box<StreamUser>: StreamUser { link => SinglyLinkedListLink });

impl Numbered for StreamUser {
    fn number(&self) -> u64 {
        self.device.number()
    }
}

/// All devices of one instance.
pub(in crate::smmu) struct Users(ByNumber<ByDevice, 64>);

impl Users {
    /// Without any. `None` when memory could not be reserved.
    pub(in crate::smmu) fn new() -> Option<Self> {
        ByNumber::new().map(Self)
    }

    pub(in crate::smmu) fn find(&self, device: DeviceId) -> Option<&StreamUser> {
        self.0.find(device.number())
    }

    /// A device that uses entries.
    pub(in crate::smmu) fn joined(&self, device: DeviceId) -> Option<&StreamUser> {
        self.find(device).filter(|user| user.joined.get())
    }

    /// The next one after `after`, by number, that is `wanted`. It looks at all of them.
    pub(in crate::smmu) fn next(
        &self,
        after: Option<DeviceId>,
        wanted: impl Fn(&StreamUser) -> bool,
    ) -> Option<&StreamUser> {
        let users = self.each().filter(|user| Some(user.device) > after && wanted(user));
        users.min_by_key(|user| user.device)
    }

    /// All of them, in no order: for what looks at everything.
    pub(in crate::smmu) fn each(&self) -> impl Iterator<Item = &StreamUser> {
        self.0.each()
    }

    /// Those of `devices` that are known; the first one is looked up once.
    pub(in crate::smmu) fn all_of<'a>(&'a self, devices: &'a [DeviceId]) -> Members<'a> {
        let mut rest = devices.iter();
        Members { first: rest.next().and_then(|device| self.find(*device)), rest, users: self }
    }

    /// Whether each of `devices` is named once.
    pub(in crate::smmu) fn are_distinct(devices: &[DeviceId]) -> bool {
        let twice = |(place, device)| devices.iter().take(place).any(|before| before == device);
        devices.len() <= 1 || !devices.iter().enumerate().any(twice)
    }

    /// Puts a device in whose number is not known.
    pub(in crate::smmu) fn insert(&mut self, user: Box<StreamUser>) {
        self.0.insert(user);
    }

    /// Takes a device out. The caller drops it when the lock is free.
    pub(in crate::smmu) fn take(&mut self, device: DeviceId) -> Option<Box<StreamUser>> {
        self.0.take(device.number())
    }
}

/// Devices of one call. Most calls are about a single one.
#[derive(Clone)]
pub(in crate::smmu) struct Members<'a> {
    first: Option<&'a StreamUser>,
    rest: core::slice::Iter<'a, DeviceId>,
    users: &'a Users,
}

impl Members<'_> {
    /// The entries that one of them uses.
    pub(in crate::smmu) fn entries(self) -> Set {
        self.fold(Set::EMPTY, |all, user| all | user.entries.get())
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = &'a StreamUser;

    #[inline]
    fn next(&mut self) -> Option<&'a StreamUser> {
        self.first.take().or_else(|| self.rest.find_map(|device| self.users.find(*device)))
    }
}
