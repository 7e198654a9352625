//! The board: one SMMU, the devices of its tree, and a host bridge with three slots, all of them empty.

use std::sync::Arc;

use iommu_assign::assign::{DeviceKey, IommuKey, Policy, PolicyRequest, Service, Why};
use iommu_assign::dt::Board;
use iommu_assign::dt::overlay::{self, OverlayHost};
use iommu_assign::pci::hotplug::{HotPlug, Slot};
use iommu_assign::pci::{HostBridge, PciKey};
use iommu_assign::smmu::Masters;
use iommu_assign::sync::Spin;
use machine::Machine;

use super::backplane::{Backplane, SLOTS};
use super::clock::DELAY;
use super::integrator::Integrator;
use super::ledger::Ledger;
use super::tally::Tally;
use super::watched_hooks::Resets;
use crate::error::Failure;

/// What all threads share.
#[derive(Debug)]
pub(super) struct Rig {
    pub(super) machine: Machine,
    pub(super) service: Service<Spin>,
    pub(super) masters: Arc<Masters<Spin>>,
    pub(super) tally: Arc<Tally>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) resets: Arc<Resets>,
    pub(super) backplane: Arc<Backplane>,
    /// The board's SMMU.
    pub(super) iommu: IommuKey,
    pub(super) host: HostBridge,
    /// The ports of the slots.
    pub(super) ports: Vec<PciKey>,
    /// The tree of the board.
    pub(super) base: Vec<u8>,
}

/// Endpoints may be assigned; bridges may not, and no device may reach a guest through another one's streams.
#[derive(Debug)]
struct Endpoints;

impl Policy for Endpoints {
    fn allows(&self, request: &PolicyRequest<'_>) -> bool {
        request.device.passthrough() && matches!(request.why, Why::Assign)
    }
}

impl Rig {
    /// Brings the board up.
    pub(super) fn boot() -> Result<Self, Failure> {
        let base = overlay::merge(SLOTS_BLOB, PCIE_BLOB).map_err(failed)?;
        let board = Board::read(&base).map_err(failed)?;
        let hosts = board.pci_hosts().map_err(failed)?;
        let host = hosts.into_iter().next().ok_or_else(|| failed("no host bridge"))?.host.map_err(failed)?;
        let node = board.smmus().first().ok_or_else(|| failed("no SMMU"))?;
        let (machine, tally) = (Machine::new(), Arc::new(Tally::default()));
        let mut rig = Self {
            ledger: Arc::new(Ledger::new(machine.clone(), tally.clone())),
            machine,
            service: Service::new(Box::new(Endpoints)),
            masters: Arc::new(Masters::new()),
            tally,
            resets: Arc::default(),
            backplane: Arc::new(Backplane::new(host.segment)),
            iommu: node.key,
            host,
            ports: Vec::new(),
            base: Vec::new(),
        };
        let mut integrator = rig.integrator();
        let smmu = integrator.probe(node).map_err(|error| failed(error.0))?;
        rig.service.register_iommu(smmu).map_err(failed)?;
        for device in board.devices() {
            let spec = device.spec().ok().and_then(|spec| integrator.offer(device, spec));
            if let Some(spec) = spec {
                rig.ledger.meet(&rig.service.add(spec).map_err(failed)?);
            }
        }
        let slots = HotPlug::new(&rig.service, &*rig.backplane, &rig.host, DELAY);
        let arrival = slots.arrived(Slot::Host(rig.host.number), &mut |_, _, spec| spec).map_err(failed)?;
        for arrived in &arrival.functions {
            rig.ledger.meet(arrived.result.as_ref().map_err(failed)?);
            rig.ports.push(arrived.function.key);
        }
        drop(board);
        rig.base = base;
        if rig.ports.len() == SLOTS { Ok(rig) } else { Err(failed("not all slots are there")) }
    }

    /// The integrator's part for nodes.
    pub(super) fn integrator(&self) -> Integrator {
        Integrator {
            machine: self.machine.clone(),
            masters: self.masters.clone(),
            ledger: self.ledger.clone(),
            resets: self.resets.clone(),
        }
    }

    /// The slot that a device is in.
    pub(super) fn slot_of(&self, key: DeviceKey) -> Option<usize> {
        let function = PciKey::of(key)?;
        self.ports.iter().position(|port| port.is_above(function))
    }

    /// Whether a device is a function whose card is out.
    pub(super) fn is_out(&self, key: DeviceKey) -> bool {
        self.slot_of(key).is_some_and(|slot| self.backplane.is_out(slot))
    }
}

fn failed(why: impl ToString) -> Failure {
    Failure::new(format!("hotplug: {}", why.to_string()))
}

/// A board with room for more, and what makes it the board of this scenario.
const SLOTS_BLOB: &[u8] = include_bytes!("../../../boards/overlays/slots.dtb");
const PCIE_BLOB: &[u8] = include_bytes!("../../../boards/overlays/pcie.dtbo");
