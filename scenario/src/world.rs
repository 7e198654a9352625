//! What all CPUs share.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicUsize};

use iommu_assign::assign::{DeviceKey, Error, Label, RawFault, RequestQueue, Service, Stream, StreamMask, Within};

use super::deadline;
use super::machine::{Engine, Machine, Unit};
use super::master::Master;
use super::score::Score;
use super::ticks::Ticks;

/// Everything.
pub struct World<M: Machine> {
    /// What is the machine's own.
    pub machine: M,
    /// The service.
    pub service: Service<M::Platform>,
    /// The queue in front of it.
    pub queue: RequestQueue<M::Platform>,
    /// All guests.
    pub guests: Vec<M::Guest>,
    /// All SMMUs.
    pub units: Vec<Arc<M::Unit>>,
    /// Groups of devices that can be assigned: one CPU moves each.
    pub groups: Vec<Vec<Master<M::Engine>>>,
    /// A device for each CPU that timer interrupts request operations on. None where there are few devices.
    pub(crate) requested: Vec<Master<M::Engine>>,
    /// The device that is to storm.
    pub(crate) storming: Option<Master<M::Engine>>,
    /// Devices that stay as they are: bridges, and whatever else has devices behind it.
    pub(crate) others: Vec<DeviceKey>,
    /// How many CPUs play.
    pub cpus: usize,
    pub(crate) ticks: Vec<Ticks<M::Platform>>,
    pub(crate) started: AtomicBool,
    pub(crate) stopped: AtomicBool,
    /// How many CPUs beside the boot CPU have taken back all that was theirs.
    pub(crate) finished: AtomicUsize,
}

impl<M: Machine> World<M> {
    /// A world with these devices in it, each in fault. Parents come before their children.
    pub fn new(
        machine: M,
        service: Service<M::Platform>,
        guests: Vec<M::Guest>,
        units: Vec<Arc<M::Unit>>,
        masters: Vec<Master<M::Engine>>,
        cpus: usize,
    ) -> Self {
        let mut world = Self {
            machine,
            service,
            queue: RequestQueue::new(),
            guests,
            units,
            groups: Vec::new(),
            requested: Vec::new(),
            storming: None,
            others: Vec::new(),
            cpus,
            ticks: (0..cpus).map(|_| Ticks::new()).collect(),
            started: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            finished: AtomicUsize::new(0),
        };
        world.add(masters);
        world.cast();
        world
    }

    /// Adds devices, parents first as they come, and sorts them into groups.
    fn add(&mut self, masters: Vec<Master<M::Engine>>) {
        let mut added = Vec::new();
        for mut master in masters {
            // A parent that was not offered is left out.
            master.spec.parent = master.spec.parent.filter(|parent| self.service.find(*parent).is_some());
            match self.service.add(master.spec.clone()) {
                Ok(_) => added.push(master),
                Err(error) => log::warn!("{error}"),
            }
        }
        let parents: Vec<DeviceKey> = added.iter().filter_map(|master| master.spec.parent).collect();
        for master in added {
            // No CPU removes what stands before another CPU's device.
            if !master.spec.passthrough || parents.contains(&master.key()) {
                self.others.push(master.key());
                continue;
            }
            let group_of = |key| self.service.find(key).map(|info| info.group);
            let own = group_of(master.key());
            match self.groups.iter_mut().find(|group| group.first().is_some_and(|first| group_of(first.key()) == own)) {
                Some(group) => group.push(master),
                None => self.groups.push(Vec::from([master])),
            }
        }
    }

    /// Takes the devices with a part of their own out of the groups.
    fn cast(&mut self) {
        let enough = self.groups.len() > self.cpus.saturating_mul(2);
        let take = |groups: &mut Vec<Vec<Master<M::Engine>>>| {
            let index = groups.iter().position(|group| matches!(group.as_slice(), [master] if master.can_stray()))?;
            groups.remove(index).pop()
        };
        if enough {
            self.storming = take(&mut self.groups);
            self.requested = (0..self.cpus).filter_map(|_| take(&mut self.groups)).collect();
        }
    }

    /// What is counted.
    pub fn score(&self) -> &Score {
        self.machine.score()
    }

    /// Carries an operation out that may be busy for a while, and counts it.
    pub fn carry_out<T>(&self, act: impl FnMut(&Within<'_, M::Platform>) -> Result<T, Error>) -> Option<T> {
        self.score().expect(self.service.wait(deadline::<M::Platform>(), act))
    }

    /// Has the device access the page `page`, and compares what that came to ([`Engine::check`]).
    pub fn check(&self, master: &Master<M::Engine>, owner: Option<&M::Guest>, page: u64) {
        self.score().accesses.add(master.engine.check(&master.spec, owner, &self.guests, page));
    }

    /// The device whose stream faulted: for faults that are told when it may have been removed.
    pub(crate) fn name_of(&self, fault: &RawFault) -> Option<Label> {
        let stream = Stream::new(fault.iommu, fault.stream?, StreamMask::NONE);
        let masters = self.groups.iter().flatten().chain(&self.requested).chain(&self.storming);
        let mut faulted = masters.filter(|master| master.spec.streams.iter().any(|own| own.overlaps(stream)));
        faulted.next().map(|master| master.label().clone())
    }

    /// The worker's part of fault handling.
    pub(crate) fn tend(&self) {
        for unit in &self.units {
            unit.tend(&self.service, &mut |storm| match &storm.ended {
                Some(Ok(device)) => {
                    log::info!("storm of {} faults ended: {} is quarantined", storm.faults, device.label());
                }
                Some(Err(error)) => log::info!("storm of {} faults goes on: {error}", storm.faults),
                None => log::info!("storm of {} faults by unknown streams: silenced {}", storm.faults, storm.silenced),
            });
        }
    }

    /// Devices and domains in one line each, as the boot log shows them.
    pub fn print(&self) {
        let mut text = String::new();
        if self.service.write_tree(&mut text).is_ok() {
            text.lines().for_each(|line| log::info!("{line}"));
        }
        let count = self.groups.iter().flatten().count();
        let engines = self.groups.iter().flatten().filter(|master| master.has_engine()).count();
        log::info!(
            "{count} devices in {} groups to be assigned, {engines} of them with DMA that is compared; {} more that stay in fault",
            self.groups.len(),
            self.others.len()
        );
    }
}

impl<M: Machine> fmt::Debug for World<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "World({} CPUs, {} groups)", self.cpus, self.groups.len())
    }
}
