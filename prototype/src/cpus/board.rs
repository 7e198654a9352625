//! The board that the scenario is played on: SMMUs first, then guests and devices, each device in fault.

use std::sync::Arc;

use ::scenario::{Guest as _, Master, Score};
use iommu_assign::assign::{DeviceSpec, Service, Stream};
use iommu_assign::dt::Board;
use iommu_assign::pci::{FunctionHooks, FunctionKind};
use iommu_assign::smmu::Masters;
use iommu_assign::sync::Micros;
use machine::Machine;

use super::engine::{Engine, Stubborn};
use super::interrupts::{self, Line};
use super::leases::Leases;
use super::platform::{self, Threads};
use super::tenant::Tenant;
use super::unit::{Probed, Unit};
use crate::error::Failure;
use crate::inspect;
use crate::names::Names;
use crate::pci_world::{self, Space};

/// What this machine adds to the scenario's world.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) score: Arc<Score>,
    pub(super) line: Line,
}

/// What all CPUs share.
pub(super) type World = ::scenario::World<Host>;

impl ::scenario::Machine for Host {
    type Platform = Threads;
    type Guest = Tenant;
    type Engine = Engine;
    type Unit = Unit;

    fn score(&self) -> &Score {
        &self.score
    }

    fn cpu(&self) -> usize {
        interrupts::cpu()
    }

    fn interrupt_after(&self, span: Micros) {
        interrupts::set_timer(Some(span));
    }

    fn stop_timer(&self) {
        interrupts::set_timer(None);
    }

    fn pass(&self, span: Micros) {
        platform::pass(span);
    }
}

/// Guests: so many, and fewer where an SMMU has few context banks. One bank is for the storm's empty tables.
const GUESTS: u8 = 4;
const FEWEST: u8 = 2;

/// What a test leaves out, to see that it is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Without {
    Nothing,
    /// The flush of a page that was unmapped.
    Flushes,
    /// What the oracles are told of guests: each way to a guest's page is a violation.
    Leases,
}

/// Makes a machine of a blob that messages call `name`, and brings it up. An operator has every device of the board
/// passed through, but for bridges.
pub(super) fn build(blob: &[u8], name: &str, cpus: usize, without: Without) -> Result<World, Failure> {
    let failed = |why: String| Failure::new(format!("{name}: {why}"));
    let board = inspect::read(blob, name)?;
    let (machine, leases, line) = (Machine::new(), Leases::default(), Line::default());
    let score = Arc::new(Score::new(|text| log::error!("violation: {text}")));
    let service = Service::with_events(Box::new(leases.clone()), Box::new(leases.clone()));
    let masters = Arc::new(Masters::new());
    let mut units = Vec::new();
    for node in board.smmus().iter().filter(|node| node.enabled) {
        match Probed::probe(node, &machine, &service, &masters) {
            Ok(probed) => {
                leases.watch(&machine, probed.key);
                units.push(probed);
            }
            Err(why) => return Err(failed(format!("{}: {why}", node.path))),
        }
    }
    let banks = units.iter().map(|unit| unit.banks).min();
    let (Some(banks), Some(limits)) = (banks, service.limits()) else {
        return Err(failed("no SMMU is enabled".to_owned()));
    };
    let flushes = without != Without::Flushes;
    let count = banks.saturating_sub(1).clamp(FEWEST, GUESTS);
    let guests = (1..=u64::from(count)).map(|number| Tenant::create(&service, &machine, number, limits, flushes));
    let guests = guests.collect::<Result<Vec<_>, _>>().map_err(|error| failed(error.to_string()))?;
    for guest in guests.iter().filter(|_| without != Without::Leases) {
        leases.has_guest(guest.domain().label(), guest.memory());
    }
    let Some(stage2) = guests.first().map(Tenant::stage2) else { return Err(failed("no guest".to_owned())) };
    let units = units.into_iter().map(|unit| Arc::new(Unit::new(unit, &machine, &score, &leases, &line, stage2)));
    let units = units.collect();
    let engine = Engine { machine, score: score.clone(), line: line.clone() };
    let specs: Vec<_> = nodes(&board).into_iter().chain(functions(&board)).collect();
    specs.iter().for_each(|(spec, _)| leases.has_device(&spec.label, &spec.streams));
    let all: Vec<Vec<Stream>> = specs.iter().map(|(spec, _)| spec.streams.clone()).collect();
    let masters = specs.into_iter().map(|(spec, function)| {
        let overlapping = all.iter().filter(|streams| overlap(streams, &spec.streams)).count();
        let hooks = Stubborn { engine: engine.clone(), is_alone: overlapping == 1, function };
        Master { spec: DeviceSpec { hooks: Arc::new(hooks), ..spec }, engine: engine.clone() }
    });
    let masters = masters.collect();
    Ok(World::new(Host { score, line }, service, guests, units, masters, cpus))
}

/// What the service is told of a device, and the hooks of a function.
type Offer = (DeviceSpec, Option<FunctionHooks<Space>>);

/// The masters of the device tree. What firmware disabled, or cannot be isolated, is left out.
fn nodes(board: &Board<'_>) -> Vec<Offer> {
    let specs = board.devices().iter().filter_map(|device| device.spec().ok());
    specs.map(|spec| (DeviceSpec { passthrough: true, ..spec }, None)).collect()
}

/// The functions of cards behind the board's host bridges, likewise.
fn functions(board: &Board<'_>) -> Vec<Offer> {
    let mut offers = Vec::new();
    for (bridge, _) in pci_world::plug_all(board, &Names::of(board)) {
        for function in &bridge.found.functions {
            let Ok(spec) = function.spec(&bridge.host, &bridge.found) else { continue };
            let Ok(hooks) = bridge.hooks(function) else { continue };
            let passthrough = function.kind == FunctionKind::Endpoint;
            offers.push((DeviceSpec { passthrough, ..spec }, Some(hooks)));
        }
    }
    offers
}

fn overlap(one: &[Stream], other: &[Stream]) -> bool {
    one.iter().any(|one| other.iter().any(|other| one.overlaps(*other)))
}
