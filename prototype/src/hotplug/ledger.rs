//! Who may reach what, whatever the three threads do: the oracle's rules, and the devices' DMA.
//!
//! A registered device has an entry from when it is met until its release hook runs. Who is about to assign it widens the
//! entry first, and makes it what the registry says afterwards; the release hook ends it. So an entry is never narrower
//! than what the contract allows, and wider only while an assignment of that device runs.
//!
//! # Locking
//!
//! One mutex, taken with no lock of the library held; those of the machine and the oracles are inside it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iommu_assign::assign::{Device, DeviceId, DeviceInfo, DeviceKey, IommuKey, Label, Stream, StreamId, StreamMask};
use machine::oracle::Oracle;
use machine::{Machine, Reached};

use super::dice::Dice;
use super::tally::Tally;
use crate::guests::{HOLE, PAGE};

/// Streams with the memory that they may reach.
#[derive(Debug)]
struct Master {
    /// What the oracle calls it: labels come again, registrations do not.
    name: Label,
    streams: Vec<Stream>,
    may: BTreeSet<u64>,
}

/// Where DMA went.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Dma {
    /// To the owner's page.
    pub(super) reached: usize,
    /// Into a fault.
    pub(super) faulted: usize,
    /// Those among them that were tried inside a hook.
    pub(super) in_hooks: usize,
}

/// A device's resets, and the last guest that got it.
#[derive(Debug, Default)]
struct Life {
    resets: u64,
    /// With the number of resets when it was about to be given.
    last: Option<(Label, u64)>,
}

#[derive(Debug, Default)]
struct Entries {
    masters: BTreeMap<DeviceId, Master>,
    /// Registrations whose release hook has run.
    released: BTreeSet<DeviceId>,
    /// Who may join the group that is being assigned, and is not met yet.
    visitors: Option<Master>,
    /// What is known of each device's resets and guests, over all its registrations.
    lives: BTreeMap<DeviceKey, Life>,
    oracles: BTreeMap<IommuKey, Oracle>,
    /// Those of SMMUs that have left.
    past: Vec<Oracle>,
    dma: Dma,
}

/// The ledger.
#[derive(Debug)]
pub(super) struct Ledger {
    machine: Machine,
    tally: Arc<Tally>,
    entries: Mutex<Entries>,
}

impl Ledger {
    pub(super) fn new(machine: Machine, tally: Arc<Tally>) -> Self {
        Self { machine, tally, entries: Mutex::default() }
    }

    /// An SMMU is up: each write to it is looked at from now on.
    pub(super) fn watch(&self, iommu: IommuKey) {
        let oracle = Oracle::default();
        oracle.watch_only(&self.machine, iommu, PAGE, STRANGERS);
        let mut entries = self.lock();
        if let Some(past) = entries.oracles.insert(iommu, oracle) {
            entries.past.push(past);
        }
    }

    // --- entries ---

    /// A device is registered.
    pub(super) fn meet(&self, device: &Device) {
        self.lock().change(device, |_| {});
    }

    /// An assignment of the device to the guest whose page is at `backing` begins.
    pub(super) fn permit(&self, device: &Device, backing: u64) {
        self.lock().change(device, |may| {
            may.insert(backing);
        });
    }

    /// An assignment of the device's whole group begins, which other functions of the same card can join.
    pub(super) fn permit_card(&self, device: &Device, backing: u64) {
        let mut entries = self.lock();
        let wide = |stream: &Stream| {
            let (id, mask) = (stream.id().value() & !7, stream.mask().value() | 7);
            Stream::new(stream.iommu(), StreamId::new(id), StreamMask::new(mask))
        };
        let streams = device.streams().iter().map(wide).collect();
        let visitors = Master { name: Label::from("visitors"), streams, may: BTreeSet::from([backing]) };
        entries.tell(&visitors);
        entries.visitors = Some(visitors);
    }

    /// That assignment has ended, and all members of the group have been settled.
    pub(super) fn close_card(&self) {
        let mut entries = self.lock();
        if let Some(visitors) = entries.visitors.take() {
            entries.oracles.values().for_each(|oracle| oracle.forget(&visitors.name));
        }
    }

    /// The registry says that the device reaches this memory, or nothing.
    pub(super) fn settle(&self, info: &DeviceInfo, backing: Option<u64>) {
        self.lock().change(&info.device, |may| *may = backing.into_iter().collect());
    }

    /// The device's registration has ended.
    pub(super) fn released(&self, device: &Device) {
        let mut entries = self.lock();
        entries.released.insert(device.id());
        if let Some(master) = entries.masters.remove(&device.id()) {
            entries.oracles.values().for_each(|oracle| oracle.forget(&master.name));
        }
    }

    /// The guest whose page was at `backing` has ended.
    pub(super) fn ended(&self, backing: u64) {
        let mut entries = self.lock();
        for master in entries.masters.values_mut() {
            master.may.remove(&backing);
        }
        let Entries { masters, oracles, .. } = &*entries;
        masters.values().for_each(|master| tell(oracles, master));
    }

    // --- what a device carries from one guest to the next ---

    /// How many resets a device has seen that is about to be given to a guest.
    pub(super) fn resets(&self, device: &Device) -> u64 {
        self.lock().lives.entry(device.key()).or_default().resets
    }

    /// A device was given to a guest. It carries nothing over from the last one: there was a reset in between (I-14).
    /// `before` is what [`resets`](Self::resets) was.
    pub(super) fn given(&self, device: &Device, guest: &Label, before: u64) {
        let mut entries = self.lock();
        let life = entries.lives.entry(device.key()).or_default();
        let last = life.last.replace((guest.clone(), before));
        // A whole group is given again to the guest that has a part of it.
        if let Some((last, since)) = last.filter(|(last, since)| last != guest && life.resets <= *since) {
            let label = device.label();
            self.tally.violation(format!("I-14: {label} went from {last} to {guest} without a reset ({since} before)"));
        }
    }

    /// Devices were reset, or their power was off.
    pub(super) fn was_reset(&self, which: impl Fn(DeviceKey) -> bool) {
        let mut entries = self.lock();
        for (_, life) in entries.lives.iter_mut().filter(|(key, _)| which(**key)) {
            life.resets = life.resets.saturating_add(1);
        }
    }

    // --- DMA ---

    /// Some device tries DMA: it ends in its owner's page or in a fault.
    pub(super) fn try_any(&self, dice: &mut Dice) {
        let mut entries = self.lock();
        let place = dice.below(entries.masters.len());
        let Some(master) = entries.masters.values().nth(place) else { return };
        let Some(stream) = dice.pick(&master.streams).copied() else { return };
        let (name, page) = (master.name.clone(), if dice.once_in(8) { HOLE } else { PAGE });
        let overlapping = entries.masters.values().chain(&entries.visitors);
        let overlapping = overlapping.filter(|other| other.streams.iter().any(|one| one.overlaps(stream)));
        let may: BTreeSet<u64> = overlapping.flat_map(|other| other.may.iter().copied()).collect();
        match self.machine.dma_write(stream.iommu(), stream.id(), page) {
            Some(Reached::Fault) => entries.dma.faulted = entries.dma.faulted.saturating_add(1),
            Some(Reached::Memory(at)) if page == PAGE && may.contains(&(at & !0xfff)) => {
                entries.dma.reached = entries.dma.reached.saturating_add(1);
            }
            other => self.tally.violation(format!("DMA of {name} to {page:#x}: {other:x?}, allowed is {may:x?}")),
        }
    }

    /// DMA of each stream of the device must fault now; `when` says why.
    pub(super) fn must_fault(&self, device: &Device, when: &str) {
        for stream in device.streams() {
            let reached = self.machine.dma_write(stream.iommu(), stream.id(), PAGE);
            let mut entries = self.lock();
            entries.dma.faulted = entries.dma.faulted.saturating_add(1);
            drop(entries);
            if reached != Some(Reached::Fault) {
                self.tally.violation(format!("DMA of {} {when}: {reached:x?}", device.label()));
            }
        }
    }

    /// The same in one of the device's hooks.
    pub(super) fn must_fault_in(&self, device: &Device, hook: &str) {
        self.must_fault(device, hook);
        let mut entries = self.lock();
        entries.dma.in_hooks = entries.dma.in_hooks.saturating_add(device.streams().len());
    }

    /// Whether DMA of all streams of the device reaches this memory.
    pub(super) fn reaches(&self, device: &Device, backing: u64) -> bool {
        let reaches = |stream: &Stream| {
            let reached = self.machine.dma_write(stream.iommu(), stream.id(), PAGE);
            matches!(reached, Some(Reached::Memory(at)) if at & !0xfff == backing)
        };
        let all = device.streams().iter().all(reaches);
        let mut entries = self.lock();
        let (dma, tried) = (&mut entries.dma, device.streams().len());
        if all {
            dma.reached = dma.reached.saturating_add(tried);
        } else {
            dma.faulted = dma.faulted.saturating_add(tried);
        }
        all
    }

    // --- what was seen ---

    /// Where DMA went.
    pub(super) fn dma(&self) -> Dma {
        self.lock().dma
    }

    /// How many writes the oracles looked at, and what they saw that must not be.
    pub(super) fn verdict(&self) -> (u64, Vec<String>) {
        let entries = self.lock();
        let all = entries.past.iter().chain(entries.oracles.values()).map(Oracle::verdict);
        all.fold((0, Vec::new()), |(writes, mut seen), (more, also)| {
            seen.extend(also);
            (writes.saturating_add(more), seen)
        })
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    /// Changes what a device may reach, unless its registration has ended.
    fn change(&mut self, device: &Device, change: impl FnOnce(&mut BTreeSet<u64>)) {
        if self.released.contains(&device.id()) {
            return;
        }
        let master = self.masters.entry(device.id()).or_insert_with(|| Master {
            name: Label::from(format!("{} ({})", device.label(), device.id()).as_str()),
            streams: device.streams().to_vec(),
            may: BTreeSet::new(),
        });
        change(&mut master.may);
        tell(&self.oracles, master);
    }

    fn tell(&self, master: &Master) {
        tell(&self.oracles, master);
    }
}

/// Tells each SMMU's oracle what a master may reach there.
fn tell(oracles: &BTreeMap<IommuKey, Oracle>, master: &Master) {
    let may: Vec<u64> = master.may.iter().copied().collect();
    for (iommu, oracle) in oracles {
        let streams = master.streams.iter().filter(|stream| stream.iommu() == *iommu);
        let streams: Vec<(u32, u32)> = streams.map(|one| (one.id().value(), one.mask().value())).collect();
        if !streams.is_empty() {
            oracle.allow(&master.name, &streams, &may);
        }
    }
}

/// Stream IDs that belong to nobody.
const STRANGERS: [u16; 3] = [0, 0x7e, 0x7fff];
