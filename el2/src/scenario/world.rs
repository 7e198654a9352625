//! What all CPUs share.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;

use iommu_assign::assign::{DeviceKey, Label, RawFault, Stream, StreamMask};
use iommu_assign::dt::{self, Board};
use iommu_assign::pci::{Ecam, Enumeration, Function, FunctionKind, HostBridge, enumerate};
use smmu_model::Memory;

use crate::iommu::gdma;
use crate::iommu::guests::Guest;
use crate::iommu::masters::{self, Master, Rules};
use crate::iommu::modelled::SharedMemory;
use crate::iommu::platform::{RequestQueue, Service};
use crate::iommu::smmus::{self, Unit};
use crate::lock::Lock;
use crate::pci::{buses, ecam};

/// Guests.
const GUESTS: [&str; 4] = ["guest-1", "guest-2", "guest-3", "guest-4"];
/// Virtual functions of each function that can have some.
const VIRTUAL_FUNCTIONS: u16 = 4;

/// A host bridge.
#[derive(Debug)]
pub(crate) struct Bridge {
    pub(crate) host: HostBridge,
    pub(crate) space: Arc<Ecam>,
}

/// Everything.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) service: Service,
    pub(crate) queue: RequestQueue,
    pub(crate) guests: Vec<Guest>,
    pub(crate) units: Vec<Arc<Unit>>,
    pub(crate) bridges: Vec<Bridge>,
    /// Groups of devices that can be assigned: one CPU moves each.
    pub(crate) groups: Vec<Vec<Master>>,
    /// A device for each CPU that timer interrupts request operations on. None where there are few devices.
    pub(crate) requested: Vec<Master>,
    /// The device that is to storm.
    pub(crate) storming: Option<Master>,
    /// Devices that stay as they are: bridges.
    pub(crate) others: Vec<DeviceKey>,
    pub(crate) cpus: usize,
}

impl World {
    /// Brings up what the board has: SMMUs first, then devices, each in fault.
    ///
    /// # Errors
    ///
    /// What cannot be brought up, in words.
    pub(crate) fn build(board: &Board<'_>, cpus: usize) -> Result<Self, String> {
        let channels = gdma::channels(board.tree());
        let service = Service::new(Box::new(Rules));
        let memory: SharedMemory = Arc::new(Lock::new(Memory::new()));
        let units = smmus::bring_up(board, &service, &memory)?;
        let guests = GUESTS.iter().map(|name| Guest::create(&service, name, &memory)).collect::<Result<Vec<_>, _>>()?;
        let mut world = Self {
            service,
            queue: RequestQueue::new(),
            guests,
            units,
            bridges: Vec::new(),
            groups: Vec::new(),
            requested: Vec::new(),
            storming: None,
            others: Vec::new(),
            cpus,
        };
        let mut masters = masters::of_tree(board, &world.units, &channels);
        for host in board.pci_hosts().map_err(|error| format!("{error}"))? {
            let path = host.path.clone();
            match Bridge::open(host) {
                Ok(bridge) => {
                    masters.extend(world.look_behind(&bridge)?);
                    world.bridges.push(bridge);
                }
                Err(why) => log::warn!("{path}: {why}"),
            }
        }
        world.add(masters);
        world.cast();
        Ok(world)
    }

    /// The functions behind a bridge, as devices. Says what each is, and what cannot be isolated.
    fn look_behind(&self, bridge: &Bridge) -> Result<Vec<Master>, String> {
        let found = enumerate(&*bridge.space, &bridge.host).map_err(|error| format!("{error}"))?;
        found.problems.iter().for_each(|problem| log::warn!("{problem}"));
        Ok(found.functions.iter().filter_map(|function| self.master(bridge, &found, function)).collect())
    }

    /// A function as a device; says what it is.
    pub(crate) fn master(&self, bridge: &Bridge, found: &Enumeration, function: &Function) -> Option<Master> {
        log::info!("{}: {}", function.sbdf, describe(function));
        masters::of_function(function, &bridge.host, found, &bridge.space, &self.units)
            .inspect_err(|why| log::warn!("{}: not offered: {why}", function.sbdf))
            .ok()
    }

    /// Adds devices, parents first as they come, and sorts them into groups.
    fn add(&mut self, masters: Vec<Master>) {
        let mut added = Vec::new();
        for mut master in masters {
            // A parent that was not offered is left out.
            master.spec.parent = master.spec.parent.filter(|parent| self.service.find(*parent).is_some());
            match self.service.add(master.spec.clone()) {
                Ok(_) => added.push(master),
                Err(error) => log::warn!("{error}"),
            }
        }
        for master in added {
            if !master.spec.passthrough {
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
        let enough = self.groups.len() > 2 * self.cpus;
        let take = |groups: &mut Vec<Vec<Master>>| {
            let index = groups.iter().position(|group| matches!(group.as_slice(), [master] if master.can_stray()))?;
            groups.remove(index).pop()
        };
        if enough {
            self.storming = take(&mut self.groups);
            self.requested = (0..self.cpus).filter_map(|_| take(&mut self.groups)).collect();
        }
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
                    log::info!("storm of {} faults ended: {} is quarantined", storm.faults, device.label())
                }
                Some(Err(error)) => log::info!("storm of {} faults goes on: {error}", storm.faults),
                None => log::info!("storm of {} faults by unknown streams: silenced {}", storm.faults, storm.silenced),
            });
        }
    }

    /// Devices and domains in one line each, as the boot log shows them.
    pub(crate) fn print(&self) {
        let mut text = String::new();
        if self.service.write_tree(&mut text).is_ok() {
            text.lines().for_each(|line| log::info!("{line}"));
        }
        let count: usize = self.groups.iter().map(Vec::len).sum();
        let engines = self.groups.iter().flatten().filter(|master| master.has_engine()).count();
        log::info!(
            "{count} devices in {} groups to be assigned, {engines} of them with DMA that is compared; {} more that stay in fault",
            self.groups.len(),
            self.others.len()
        );
    }
}

impl Bridge {
    fn open(found: dt::PciHost) -> Result<Self, String> {
        let host = found.host.map_err(|reason| reason.to_string())?;
        let space = found.access.and_then(|access| ecam::map(access, &host)).ok_or("no ECAM that can be mapped")?;
        buses::number(&space, &host);
        let before = enumerate(&space, &host).map_err(|error| error.to_string())?;
        for function in before.functions.iter().filter(|function| function.capabilities.sr_iov.is_some()) {
            let count = buses::enable_virtual_functions(&space, function.sbdf, VIRTUAL_FUNCTIONS);
            log::info!("{}: {count} virtual functions", function.sbdf);
        }
        Ok(Self { host, space: Arc::new(space) })
    }
}

fn describe(function: &Function) -> String {
    let kind = match function.class >> 8 {
        0x0108 => "NVMe",
        0x0200 => "Ethernet",
        0x0600 => "host bridge",
        0x0604 => "PCI bridge",
        0x0c03 => "USB",
        _ => "function",
    };
    let below = match function.kind {
        FunctionKind::Bridge { secondary, subordinate } => {
            format!(" to buses {:02x}-{:02x}", secondary.0, subordinate.0)
        }
        _ => String::new(),
    };
    let reset = function.capabilities.express.is_some_and(|express| express.function_level_reset);
    let ids = function.requester_ids.len();
    format!(
        "{kind} {:04x}:{:04x}{below}{}{}",
        function.vendor,
        function.device,
        if reset { ", function-level reset" } else { "" },
        if ids > 1 { format!(", {ids} requester IDs") } else { String::new() },
    )
}
