//! SMMUs: probe, registration, and what their interrupts do.

use std::sync::Arc;

use ::scenario::{Recent, Score};
use iommu_assign::assign::{
    FaultAnswer, FaultLine, IommuHandle, IommuKey, Quarantine, RawFault, Service, Stage2, Storm,
};
use iommu_assign::dt::SmmuNode;
use iommu_assign::smmu::{ContextLines, Masters, Registers, Smmu, SmmuConfig};
use iommu_assign::sync::Micros;
use machine::Machine;

use super::interrupts::Line;
use super::leases::Leases;
use super::platform::{Lock, Threads};
use crate::dma;
use crate::presets::{self, EMPTY_ROOT};

/// An SMMU that was probed.
#[derive(Debug)]
pub(super) struct Probed {
    pub(super) key: IommuKey,
    pub(super) banks: u8,
    handle: IommuHandle,
    lines: ContextLines,
}

/// An SMMU in service.
#[derive(Debug)]
pub(super) struct Unit {
    probed: Probed,
    machine: Machine,
    score: Arc<Score>,
    leases: Leases,
    line: Line,
    /// Where the DMA of a quarantined device ends after a storm: in an empty table, without fault reports.
    silence: Stage2,
    /// What the handler masked, until the worker has ended the storm.
    masked: Lock<Vec<FaultLine>>,
    recent: Lock<Recent>,
}

/// How long an SMMU is waited for: the thread that polls may have stood still for as long.
const PATIENCE: Micros = Micros::from_millis(10_000);

impl Probed {
    /// Brings the SMMU of a node up. From then on each of its streams faults, and it reports faults.
    ///
    /// # Errors
    ///
    /// Why it cannot be driven, in words.
    pub(super) fn probe(
        node: &SmmuNode<'_>,
        machine: &Machine,
        service: &Service<Threads>,
        masters: &Arc<Masters<Threads>>,
    ) -> Result<Self, String> {
        let part = machine::part_of(node);
        node.map(|region| Ok(machine.add_smmu(IommuKey::new(region.base()), part.clone())))
            .and_then(|registers| Self::start(node, registers, service, masters))
    }

    fn start<R: Registers + 'static>(
        node: &SmmuNode<'_>,
        registers: R,
        service: &Service<Threads>,
        masters: &Arc<Masters<Threads>>,
    ) -> Result<Self, String> {
        let config = SmmuConfig { timeout: PATIENCE, ..presets::described(node) };
        let smmu = Smmu::<Threads, R>::probe(config, registers, masters.clone()).map_err(|error| error.to_string())?;
        let banks = smmu.geometry().banks;
        service.register_iommu(Arc::new(smmu)).map_err(|error| error.to_string())?;
        service.enable_reports(node.key).map_err(|error| error.to_string())?;
        let handle = service.iommu(node.key).ok_or("an SMMU that was registered is not found")?;
        Ok(Self { key: node.key, banks, handle, lines: node.context_lines.clone() })
    }
}

impl Unit {
    /// The SMMU with what its handlers need.
    pub(super) fn new(
        probed: Probed,
        machine: &Machine,
        score: &Arc<Score>,
        leases: &Leases,
        line: &Line,
        guests: Stage2,
    ) -> Self {
        Self {
            probed,
            machine: machine.clone(),
            score: score.clone(),
            leases: leases.clone(),
            line: line.clone(),
            silence: Stage2 { root: EMPTY_ROOT.address, ..guests },
            masked: Lock::new(Vec::new()),
            recent: Lock::new(Recent::new()),
        }
    }

    /// The interrupt handler: takes in what faulted.
    pub(super) fn interrupted(&self) {
        let up = dma::raised(&self.machine, self.probed.key, Some(&self.probed.lines));
        for line in up.into_iter().filter(|line| !self.masked.lock().contains(line)) {
            let answer = self.probed.handle.take_faults(line, &mut |fault| {
                self.score.faults.count();
                self.recent.lock().note(fault);
            });
            if let FaultAnswer::Mask(_) = answer {
                self.score.masked.count();
                self.masked.lock().push(line);
            }
        }
    }
}

impl ::scenario::Unit for Unit {
    type Platform = Threads;

    fn look(&self) {
        self.interrupted();
    }

    fn tend(&self, service: &Service<Threads>, sink: &mut dyn FnMut(&Storm)) {
        if let Err(cause) = service.tend_faults(self.probed.key, Quarantine::Silence(self.silence), sink) {
            log::warn!("{}: faults cannot be tended: {cause}", self.probed.key);
        }
        let masked = std::mem::take(&mut *self.masked.lock());
        if !masked.is_empty() {
            // A line that was masked may have been up all the time.
            self.line.raise();
        }
    }

    fn recent(&self) -> Vec<RawFault> {
        self.recent.lock().all()
    }

    fn judge(&self, score: &Score) {
        let (key, banks) = (self.probed.key, self.probed.banks);
        let writes = self.leases.judge(key, score);
        log::info!("{key}, {banks} context banks: after each of {writes} register writes all streams were looked at");
    }
}
