//! The machine that the scenario is played on here: what the board has, brought up.

use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;

use ::scenario::{Machine, Rules, Score};
use iommu_assign::assign::DeviceSpec;
use iommu_assign::dt::{self, Board};
use iommu_assign::pci::{Ecam, Enumeration, Function, FunctionKind, HostBridge, enumerate};
use iommu_assign::sync::Micros;
use smmu_model::Memory;

use super::SCORE;
use crate::iommu::gdma;
use crate::iommu::guests::Guest;
use crate::iommu::masters::{self, Engine, Master};
use crate::iommu::modelled::SharedMemory;
use crate::iommu::platform::{Hypervisor, Service};
use crate::iommu::smmus::{self, Unit};
use crate::lock::Lock;
use crate::machine::{console, time};
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

/// What this machine adds to the scenario's world.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) bridges: Vec<Bridge>,
}

/// What all CPUs share.
pub(crate) type World = ::scenario::World<Image>;

impl Machine for Image {
    type Platform = Hypervisor;
    type Guest = Guest;
    type Engine = Engine;
    type Unit = Unit;

    fn score(&self) -> &Score {
        &SCORE
    }

    fn cpu(&self) -> usize {
        console::cpu()
    }

    fn interrupt_after(&self, span: Micros) {
        time::interrupt_after(span);
    }

    fn stop_timer(&self) {
        time::stop();
    }

    fn pass(&self, span: Micros) {
        time::pass(span);
    }
}

/// Brings up what the board has: SMMUs first, then devices, each in fault.
///
/// # Errors
///
/// What cannot be brought up, in words.
pub(crate) fn build(board: &Board<'_>, cpus: usize) -> Result<World, String> {
    let channels = gdma::channels(board.tree());
    let service = Service::new(Box::new(Rules));
    let memory: SharedMemory = Arc::new(Lock::new(Memory::new()));
    let units = smmus::bring_up(board, &service, &memory)?;
    let guests = GUESTS.iter().map(|name| Guest::create(&service, name, &memory)).collect::<Result<Vec<_>, _>>()?;
    let mut masters = masters::of_tree(board, &units, &channels);
    let mut bridges = Vec::new();
    for host in board.pci_hosts().map_err(|error| format!("{error}"))? {
        let path = host.path.clone();
        match Bridge::open(host) {
            Ok(bridge) => {
                masters.extend(bridge.look_behind(&units)?);
                bridges.push(bridge);
            }
            Err(why) => log::warn!("{path}: {why}"),
        }
    }
    Ok(World::new(Image { bridges }, service, guests, units, masters, cpus))
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

    /// The functions behind it, as devices. Says what each is, and what cannot be isolated.
    fn look_behind(&self, units: &[Arc<Unit>]) -> Result<Vec<Master>, String> {
        let found = enumerate(&*self.space, &self.host).map_err(|error| format!("{error}"))?;
        found.problems.iter().for_each(|problem| log::warn!("{problem}"));
        let spec = |function: &Function| {
            let spec = function.spec(&self.host, &found).map_err(|why| not_offered(function, &why)).ok()?;
            self.master(spec, function, &found, units)
        };
        Ok(found.functions.iter().filter_map(spec).collect())
    }

    /// A function as a device; says what it is.
    pub(crate) fn master(
        &self,
        spec: DeviceSpec,
        function: &Function,
        found: &Enumeration,
        units: &[Arc<Unit>],
    ) -> Option<Master> {
        log::info!("{}: {}", function.sbdf, describe(function));
        let master = masters::of_function(spec, function, found, &self.space, units);
        master.map_err(|why| not_offered(function, &why)).ok()
    }
}

fn not_offered(function: &Function, why: &dyn fmt::Display) {
    log::warn!("{}: not offered: {why}", function.sbdf);
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
