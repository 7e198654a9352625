//! A board made into a machine: SMMUs probed and in service, devices of both sources added.

use std::rc::Rc;
use std::sync::Arc;

use iommu_assign::assign::{DeviceKey, DeviceSpec, Iommu, IommuKey, Label, Service};
use iommu_assign::dt::{Board, NotOffered, SmmuNode};
use iommu_assign::pci::{FunctionHooks, FunctionKind, Sbdf};
use iommu_assign::smmu::{ContextLines, Geometry, Masters, Quirk, Registers, Remedy, Smmu, quirks_of};
use iommu_assign::sync::Spin;
use machine::Machine;
use smmu_model::Counters;

use crate::doorbells::{self, Doorbells};
use crate::error::Failure;
use crate::hooks::{Attempts, Hooks};
use crate::names::Names;
use crate::pci_world::{self, Bridge, Space};
use crate::policy::Rules;
use crate::{inspect, presets};

/// The machine, and the hypervisor's view of it.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) title: String,
    pub(crate) names: Names,
    pub(crate) machine: Machine,
    pub(crate) service: Service<Spin>,
    pub(crate) rules: Rules,
    pub(crate) attempts: Attempts,
    pub(crate) units: Vec<Unit>,
    pub(crate) bridges: Vec<Bridge>,
    pub(crate) doorbells: Doorbells,
    pub(crate) subjects: Vec<Rc<Subject>>,
    /// How many devices firmware disabled: they are not offered.
    pub(crate) disabled: usize,
    /// What firmware says that cannot be followed, by node: those are not offered either.
    pub(crate) refused: Vec<String>,
}

/// An SMMU of the board.
#[derive(Debug)]
pub(crate) struct Unit {
    pub(crate) key: IommuKey,
    pub(crate) path: String,
    pub(crate) compatible: String,
    pub(crate) size: u64,
    pub(crate) irqs: (u32, u32),
    /// How its context interrupts reach the interrupt controller.
    pub(crate) lines: ContextLines,
    pub(crate) coherent: bool,
    pub(crate) state: State,
}

/// What became of an SMMU.
#[derive(Debug)]
pub(crate) enum State {
    /// Firmware disabled it.
    Disabled,
    /// It cannot be driven, in the driver's words.
    Unusable(String),
    /// In service.
    InService(Box<InService>),
}

/// An SMMU in service.
#[derive(Debug)]
pub(crate) struct InService {
    pub(crate) geometry: Geometry,
    /// The quirks for which the driver does something on this part.
    pub(crate) quirks: Vec<&'static Quirk>,
    /// What bringing it up cost.
    pub(crate) cost: Counters,
    /// For the worker that tends faults.
    pub(crate) driver: Arc<dyn Iommu>,
}

/// A device that was offered to the service.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) label: Label,
    /// What it is, where its label does not say.
    pub(crate) kind: &'static str,
    pub(crate) key: DeviceKey,
    pub(crate) spec: DeviceSpec,
    /// Where a PCI function is: the number of its host bridge among [`World::bridges`], and its address.
    pub(crate) slot: Option<(usize, Sbdf)>,
    pub(crate) is_bridge: bool,
    /// Why it was not added, in one line.
    pub(crate) refused: Option<String>,
    /// What adding it cost.
    pub(crate) cost: Counters,
}

impl World {
    /// Makes a machine of a blob that messages call `name`, and brings it up. `firmware_decides`: firmware's marks say
    /// who may be assigned; otherwise an operator does.
    pub(crate) fn build(blob: &[u8], name: &str, firmware_decides: bool) -> Result<Self, Failure> {
        let board = inspect::read(blob, name)?;
        let names = Names::of(&board);
        let refused = board.refusals().iter().map(|refusal| names.in_text(&refusal.to_string())).collect();
        let rules = if firmware_decides { Rules::Firmware } else { Rules::operator() };
        let mut world = Self {
            title: inspect::title(&board, name),
            names,
            machine: Machine::new(),
            service: Service::new(rules.policy()),
            rules,
            attempts: Attempts::default(),
            units: Vec::new(),
            bridges: Vec::new(),
            doorbells: Doorbells::default(),
            subjects: Vec::new(),
            disabled: board.devices().iter().filter(|device| !device.enabled).count(),
            refused,
        };
        let masters = Arc::new(Masters::new());
        for node in board.smmus() {
            let unit = world.bring_up(node, &masters);
            world.units.push(unit);
        }
        world.refuse_without_smmu(name)?;
        world.offer_nodes(&board);
        world.plug_cards(&board);
        world.offer_functions();
        Ok(world)
    }

    /// The SMMUs that are in service.
    pub(crate) fn in_service(&self) -> impl Iterator<Item = (&Unit, &InService)> {
        self.units.iter().filter_map(|unit| match &unit.state {
            State::InService(service) => Some((unit, &**service)),
            _ => None,
        })
    }

    fn bring_up(&self, node: &SmmuNode<'_>, masters: &Arc<Masters<Spin>>) -> Unit {
        let state = if node.enabled { self.probe(node, masters) } else { State::Disabled };
        Unit {
            key: node.key,
            path: node.path.clone(),
            compatible: node.compatibles.join(", "),
            size: node.registers.size(),
            irqs: (node.global_irqs, node.context_irqs),
            lines: node.context_lines.clone(),
            coherent: node.coherent,
            state,
        }
    }

    fn probe(&self, node: &SmmuNode<'_>, masters: &Arc<Masters<Spin>>) -> State {
        let before = self.machine.all_counters();
        let part = machine::part_of(node);
        let started = node
            .map(|region| Ok(self.machine.add_smmu(IommuKey::new(region.base()), part.clone())))
            .and_then(|registers| self.start(node, registers, masters));
        match started {
            Ok((geometry, driver)) => {
                let config = presets::described(node);
                let does = |quirk: &&Quirk| matches!(quirk.remedy, Remedy::Effect(_));
                let quirks = quirks_of(&config, geometry.revision).filter(does).collect();
                let cost = between(before, self.machine.all_counters());
                State::InService(Box::new(InService { geometry, quirks, cost, driver }))
            }
            Err(why) => State::Unusable(why),
        }
    }

    /// Brings an SMMU up. Handlers stand on all lines: from then on it reports faults.
    fn start<R: Registers + 'static>(
        &self,
        node: &SmmuNode<'_>,
        registers: R,
        masters: &Arc<Masters<Spin>>,
    ) -> Result<(Geometry, Arc<dyn Iommu>), String> {
        let smmu = Smmu::<Spin, R>::probe(presets::described(node), registers, masters.clone());
        let smmu = smmu.map_err(|error| error.to_string())?;
        let geometry = *smmu.geometry();
        let driver: Arc<dyn Iommu> = Arc::new(smmu);
        self.service.register_iommu(driver.clone()).map_err(|error| error.to_string())?;
        driver.enable_reports().map_err(|error| error.to_string())?;
        Ok((geometry, driver))
    }

    fn refuse_without_smmu(&self, name: &str) -> Result<(), Failure> {
        if self.in_service().next().is_some() {
            return Ok(());
        }
        let unusable = self.units.iter().find_map(|unit| match &unit.state {
            State::Unusable(why) => Some(format!("no SMMU can be driven: {}: {why}", unit.path)),
            _ => None,
        });
        let why = unusable.unwrap_or_else(|| {
            let paths: Vec<&str> = self.units.iter().map(|unit| unit.path.as_str()).collect();
            format!("no SMMU is enabled: firmware disables {}", paths.join(", "))
        });
        Err(Failure::new(format!("{name}: {why}")))
    }

    // --- devices of the device tree ---

    fn offer_nodes(&mut self, board: &Board<'_>) {
        for device in board.devices() {
            let label = Label::from(self.names.name(&device.path).as_str());
            let (mut spec, refused) = match device.spec() {
                Ok(spec) => (DeviceSpec { label, ..spec }, None),
                Err(NotOffered::Disabled) => continue,
                Err(reason) => (DeviceSpec::new(device.device_key(), label, Vec::new()), Some(reason.to_string())),
            };
            spec.parent = spec.parent.filter(|parent| self.service.find(*parent).is_some());
            spec.hooks = Arc::new(self.hooks(None));
            self.offer(spec, "", None, false, refused);
        }
    }

    // --- PCI functions ---

    fn plug_cards(&mut self, board: &Board<'_>) {
        for (mut plugged, node) in pci_world::plug_all(board, &self.names) {
            match board.msi(node) {
                Ok(None) => {}
                Ok(Some(msi)) => {
                    plugged.remarks.extend(doorbells::remark(&msi, &self.names));
                    plugged.doorbell = self.doorbells.place(&msi);
                    plugged.msi = Some(msi);
                }
                Err(error) => plugged.remarks.push(format!("no MSIs: {error}")),
            }
            self.bridges.push(plugged);
        }
    }

    fn offer_functions(&mut self) {
        let mut offers = Vec::new();
        for (index, bridge) in self.bridges.iter().enumerate() {
            for function in &bridge.found.functions {
                let spec = function.spec(&bridge.host, &bridge.found).map_err(|error| error.to_string());
                let hooks = bridge.hooks(function);
                let (spec, refused) = match spec.and_then(|spec| hooks.map(|hooks| (spec, hooks))) {
                    Ok((mut spec, hooks)) => {
                        spec.hooks = Arc::new(self.hooks(Some(hooks)));
                        (spec, None)
                    }
                    Err(why) => {
                        let label = Label::from(function.sbdf.to_string().as_str());
                        (DeviceSpec::new(function.key.into(), label, Vec::new()), Some(why))
                    }
                };
                let is_endpoint = function.kind == FunctionKind::Endpoint;
                offers.push((spec, pci_world::kind(function.class), (index, function.sbdf), !is_endpoint, refused));
            }
        }
        for (mut spec, kind, slot, is_bridge, refused) in offers {
            spec.parent = spec.parent.filter(|parent| self.service.find(*parent).is_some());
            self.offer(spec, kind, Some(slot), is_bridge, refused);
        }
    }

    fn hooks(&self, function: Option<FunctionHooks<Space>>) -> Hooks {
        Hooks { machine: self.machine.clone(), attempts: self.attempts.clone(), function }
    }

    fn offer(
        &mut self,
        spec: DeviceSpec,
        kind: &'static str,
        slot: Option<(usize, Sbdf)>,
        is_bridge: bool,
        refused: Option<String>,
    ) {
        let before = self.machine.all_counters();
        let refused = refused.or_else(|| self.service.add(spec.clone()).err().map(|error| error.cause.to_string()));
        let cost = between(before, self.machine.all_counters());
        let (label, key) = (spec.label.clone(), spec.key);
        self.subjects.push(Rc::new(Subject { label, kind, key, spec, slot, is_bridge, refused, cost }));
    }
}

/// The accesses from one reading of the counters to a later one.
pub(crate) const fn between(before: Counters, after: Counters) -> Counters {
    Counters { reads: after.reads.saturating_sub(before.reads), writes: after.writes.saturating_sub(before.writes) }
}
