//! The machine's SMMUs: probe, registration, and what their interrupts do.
//!
//! A fault's interrupt only takes records in. Naming them, ending storms and unmasking lines is the worker's
//! ([`Unit::tend`]).

use core::cell::UnsafeCell;

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ::scenario::{Recent, Score};
use arm_gic::Trigger;
use iommu_assign::assign::{
    FaultAnswer, FaultLine, IommuHandle, IommuKey, PhysicalAddress, Quarantine, RawFault, Storm,
};
use iommu_assign::dt::{Board, SmmuNode};
use iommu_assign::smmu::{EmptyRoot, Masters, Mmio, Registers, Smmu, SmmuConfig};
use iommu_assign::sync::Micros;
use smmu_model::{Config, SyncDelay};

use super::guests;
use super::latch::Latch;
use super::modelled::{Modelled, SharedMemory};
use super::overlay::MODELLED;
use super::platform::{Hypervisor, Service};
use crate::boot::mmu;
use crate::lock::Lock;
use crate::machine::{gic, interrupts, tree};
use crate::scenario::SCORE;
use crate::scenario::measure::measured;

/// An SMMU in service.
#[derive(Debug)]
pub(crate) struct Unit {
    /// Its name.
    pub(crate) key: IommuKey,
    /// The model behind it, where it is not real.
    pub(crate) model: Option<Arc<Modelled>>,
    handle: IommuHandle,
    latch: Option<Latch>,
    /// Each interrupt, and the lines of the SMMU that reach it.
    interrupts: BTreeMap<u32, Vec<FaultLine>>,
    /// Interrupts that a handler masked, until the worker has ended the storm.
    masked: Lock<BTreeMap<u32, bool>>,
    recent: Lock<Recent>,
}

/// The registers of an SMMU, real or modelled.
#[derive(Debug)]
enum Access {
    Real(Mmio),
    Model(Arc<Modelled>),
}

impl Access {
    fn registers(&self) -> &dyn Registers {
        match self {
            Self::Real(registers) => registers,
            Self::Model(model) => &**model,
        }
    }
}

impl Registers for Access {
    fn read32(&self, offset: u32) -> u32 {
        self.registers().read32(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.registers().write32(offset, value);
    }

    fn read64(&self, offset: u32) -> u64 {
        self.registers().read64(offset)
    }

    fn write64(&self, offset: u32, value: u64) {
        self.registers().write64(offset, value);
    }
}

/// Zeroed memory for retired banks, as large and as aligned as any domain's start level can ask for.
#[repr(C, align(0x10_0000))]
struct Empty(UnsafeCell<[u8; EMPTY_SIZE]>);

const EMPTY_SIZE: usize = 0x10_0000;

// SAFETY: it is never written.
unsafe impl Sync for Empty {}

static EMPTY: Empty = Empty(UnsafeCell::new([0; EMPTY_SIZE]));

/// Where retired banks point to. It is part of the image, and was zeroed with caches off.
fn empty_root() -> EmptyRoot {
    let address = EMPTY.0.get().addr();
    mmu::clean(address..address + EMPTY_SIZE);
    EmptyRoot { address: PhysicalAddress::new(address as u64), size: EMPTY_SIZE as u64 }
}

/// Where the DMA of a quarantined device ends after a storm: in an empty table, without fault reports.
fn silence() -> Quarantine {
    Quarantine::Silence(guests::stage2(PhysicalAddress::new(EMPTY.0.get().addr() as u64)))
}

/// How long an SMMU is waited for. Hardware that takes a second is stuck; on a loaded emulator the CPU that polls may have stood
/// still for as long.
const PATIENCE: Micros = Micros::from_millis(10_000);

/// Probes and registers all SMMUs of the board. From the probe on each of their streams faults.
///
/// # Errors
///
/// The first one that cannot be driven, in words.
pub(crate) fn bring_up(board: &Board<'_>, service: &Service, memory: &SharedMemory) -> Result<Vec<Arc<Unit>>, String> {
    let masters = Arc::new(Masters::<Hypervisor>::new());
    let is_zynqmp = tree::compatible(board.tree(), &["xlnx,zynqmp"]).is_some();
    let mut units = Vec::new();
    for node in board.smmus().iter().filter(|node| node.enabled) {
        let interrupts = lines(node);
        let (access, model) = open(node, &interrupts, memory)?;
        let config = SmmuConfig { timeout: PATIENCE, ..node.config(empty_root()) };
        let (smmu, cost) = measured(|| Smmu::probe(config, access, masters.clone()));
        let smmu = smmu.map_err(|error| format!("{error}"))?;
        let geometry = *smmu.geometry();
        log::info!(
            "{}: {}, {} entries, {} context banks, {} interrupts{}",
            node.path,
            node.compatibles.first().unwrap_or(&"SMMU"),
            geometry.entries,
            geometry.banks,
            interrupts.len(),
            if model.is_some() { ", modelled: real functions' DMA does not pass it" } else { "" }
        );
        let (registered, object) = measured(|| service.register_iommu(Arc::new(smmu)));
        registered.map_err(|error| format!("{error}"))?;
        crate::say!("heap of {}: {} bytes", node.key, cost.heap + object.heap);
        let handle = service.iommu(node.key).ok_or("an SMMU that was registered is not found")?;
        units.push(Arc::new(Unit {
            key: node.key,
            model,
            handle,
            latch: Latch::of(node.key.base(), is_zynqmp),
            interrupts,
            masked: Lock::new(BTreeMap::new()),
            recent: Lock::new(Recent::new()),
        }));
    }
    Ok(units)
}

/// The interrupts of an SMMU with the lines that reach each: the global ones first, then one after the other those that
/// differ (`FaultLine::Context`).
fn lines(node: &SmmuNode<'_>) -> BTreeMap<u32, Vec<FaultLine>> {
    let mut lines: BTreeMap<u32, Vec<FaultLine>> = BTreeMap::new();
    let (mut contexts, mut seen): (u8, Vec<u32>) = (0, Vec::new());
    for (index, interrupt) in (0_u32..).zip(&node.interrupts) {
        let Some(number) = tree::interrupt(interrupt.specifier()) else { continue };
        let line = if index < node.global_irqs {
            FaultLine::Global
        } else if seen.contains(&number) {
            continue;
        } else {
            seen.push(number);
            contexts += 1;
            FaultLine::Context(contexts - 1)
        };
        let known = lines.entry(number).or_default();
        if !known.contains(&line) {
            known.push(line);
        }
    }
    lines
}

fn open(
    node: &SmmuNode<'_>,
    interrupts: &BTreeMap<u32, Vec<FaultLine>>,
    memory: &SharedMemory,
) -> Result<(Access, Option<Arc<Modelled>>), String> {
    if MODELLED.contains(&node.key) {
        let on =
            |wanted: FaultLine| interrupts.iter().find(|(_, lines)| lines.contains(&wanted)).map(|(number, _)| *number);
        let (global, context) =
            on(FaultLine::Global).zip(on(FaultLine::Context(0))).ok_or("a model without interrupts")?;
        // A sync takes a few polls, as under load.
        let config = Config::mmu500_zynqmp().seed(node.key.base()).sync(SyncDelay::Polls(3));
        let model = Arc::new(Modelled::new(config, memory.clone(), global, context));
        return Ok((Access::Model(model.clone()), Some(model)));
    }
    let (base, size) = (node.registers.base(), node.registers.size());
    let registers = mmu::map_device(base, size).ok_or_else(|| format!("{} cannot be mapped", node.path))?;
    // SAFETY: the region that firmware names is mapped as device memory for ever, and this is its only user.
    let registers = unsafe { Mmio::new(registers, size as usize) };
    Ok((Access::Real(registers.ok_or_else(|| format!("{} is misaligned", node.path))?), None))
}

/// Installs the handlers of all units and lets faults raise interrupts, on this CPU.
pub(crate) fn listen(units: &[Arc<Unit>], service: &Service) {
    // SMMUs may share an interrupt.
    let mut sharers: BTreeMap<u32, Vec<Arc<Unit>>> = BTreeMap::new();
    for unit in units {
        for &number in unit.interrupts.keys() {
            // Set pending by software, a modelled one is an edge.
            let trigger = if unit.model.is_some() { Trigger::Edge } else { Trigger::Level };
            if gic::route_here(number, trigger).is_none() {
                log::warn!("interrupt {number} of {} cannot be routed", unit.key);
            }
            unit.masked.lock().insert(number, false);
            sharers.entry(number).or_default().push(unit.clone());
        }
    }
    let handler = |(number, units): (u32, Vec<Arc<Unit>>)| {
        let handler: interrupts::Handler = Box::new(move || units.iter().for_each(|unit| unit.interrupted(number)));
        (number, handler)
    };
    interrupts::install(sharers.into_iter().map(handler).collect());
    for unit in units {
        for &number in unit.interrupts.keys() {
            gic::enable(number, true);
        }
        if let Err(cause) = service.enable_reports(unit.key) {
            log::warn!("{}: no fault reports: {cause}", unit.key);
        }
    }
}

impl Unit {
    /// The interrupt handler: takes in what faulted.
    fn interrupted(&self, number: u32) {
        if let Some(latch) = &self.latch {
            latch.acknowledge();
        }
        for &line in self.interrupts.get(&number).into_iter().flatten() {
            let answer = self.handle.take_faults(line, &mut |fault| {
                SCORE.faults.count();
                self.recent.lock().note(fault);
            });
            if let FaultAnswer::Mask(_) = answer {
                gic::enable(number, false);
                SCORE.masked.count();
                if let Some(masked) = self.masked.lock().get_mut(&number) {
                    *masked = true;
                }
            }
        }
        // Whatever else came meanwhile has its line up still.
        if let Some(model) = &self.model {
            model.raise();
        }
    }

    /// What the handler does first of all.
    pub(crate) fn take_faults(&self, line: FaultLine) -> FaultAnswer {
        self.handle.take_faults(line, &mut |_| ())
    }
}

impl ::scenario::Unit for Unit {
    type Platform = Hypervisor;

    fn look(&self) {
        self.interrupts.keys().for_each(|number| self.interrupted(*number));
    }

    fn tend(&self, service: &Service, sink: &mut dyn FnMut(&Storm)) {
        if let Err(cause) = service.tend_faults(self.key, silence(), sink) {
            log::warn!("{}: faults cannot be tended: {cause}", self.key);
        }
        for &number in self.interrupts.keys() {
            let was_masked = self.masked.lock().get_mut(&number).is_some_and(core::mem::take);
            if was_masked {
                gic::enable(number, true);
            }
        }
        if let Some(model) = &self.model {
            model.raise();
        }
    }

    fn recent(&self) -> Vec<RawFault> {
        self.recent.lock().all()
    }

    fn judge(&self, score: &Score) {
        let hazards = self.model.as_ref().map_or(0, |model| model.hazards());
        if hazards > 0 {
            score.violation(format_args!("{}: the model has seen {hazards} hazards", self.key));
        }
    }
}
