//! The second thread: overlays that are applied and reverted.

use iommu_assign::assign::Source;
use iommu_assign::dt::overlay::{OverlayError, OverlayHost, OverlayId, Overlays};

use super::dice::Dice;
use super::integrator::Integrator;
use super::rig::Rig;
use super::tally::Work;

/// The tree, and what it knows of the overlays on it.
pub(super) struct Nodes<'a> {
    rig: &'a Rig,
    dice: Dice,
    overlays: Overlays<'a>,
    integrator: Integrator,
    /// Which of [`OVERLAYS`] are applied, and as what.
    applied: Vec<(usize, OverlayId)>,
    /// One that was reverted.
    old: Option<OverlayId>,
}

impl<'a> Nodes<'a> {
    pub(super) fn new(rig: &'a Rig) -> Result<Self, OverlayError> {
        let overlays = Overlays::new(&rig.base)?;
        Ok(Self { rig, dice: Dice::new(2), overlays, integrator: rig.integrator(), applied: Vec::new(), old: None })
    }

    pub(super) fn play(&mut self, rounds: usize) {
        for _ in 0..rounds {
            self.step();
            (0..DMA).for_each(|_| self.rig.ledger.try_any(&mut self.dice));
        }
    }

    fn step(&mut self) {
        match self.dice.below(10) {
            // Also one that is applied, and one whose target is not there.
            0..=5 => {
                let which = self.dice.below(OVERLAYS.len());
                self.apply(which);
            }
            6..=8 => {
                if let Some((_, overlay)) = self.dice.pick(&self.applied).copied() {
                    self.revert(overlay);
                }
            }
            _ => {
                if let Some(overlay) = self.old {
                    self.revert(overlay);
                }
            }
        }
        self.restore();
    }

    fn apply(&mut self, which: usize) {
        let Some(overlay) = OVERLAYS.get(which) else { return };
        let is_applied = self.applied.iter().any(|(applied, _)| *applied == which);
        let result = self.overlays.apply(&self.rig.service, overlay, &mut self.integrator);
        self.rig.tally.overlaid(Work::Apply, &result);
        if let Ok(outcome) = result {
            if is_applied {
                self.rig.tally.violation("an overlay was applied twice");
            }
            self.applied.push((which, outcome.overlay));
        }
        self.meet();
    }

    fn revert(&mut self, overlay: OverlayId) {
        let is_applied = self.applied.iter().any(|(_, applied)| *applied == overlay);
        let result = self.overlays.revert(&self.rig.service, overlay, &mut self.integrator);
        self.rig.tally.overlaid(Work::Revert, &result);
        if result.is_ok() {
            if !is_applied {
                self.rig.tally.violation("an overlay was reverted twice");
            }
            self.applied.retain(|(_, applied)| *applied != overlay);
            self.old = Some(overlay);
        }
        self.meet();
    }

    /// Nodes that have come are known, and what is on its way out goes before the next step.
    fn meet(&mut self) {
        for info in self.rig.service.devices().take_while(|info| info.device.key().source() == Source::Dt) {
            self.rig.ledger.meet(&info.device);
        }
        for _ in 0..PATIENCE {
            match self.overlays.finish(&self.rig.service, &mut self.integrator) {
                Ok(()) => return,
                Err(error) if error.is_busy() => std::thread::yield_now(),
                Err(error) => return self.rig.tally.violation(format!("what an overlay left behind stays: {error}")),
            }
        }
        self.rig.tally.violation("what an overlay left behind stays busy");
    }

    /// Offers again what firmware lists and could not be put back when an overlay was refused, as at boot.
    fn restore(&mut self) {
        let Ok(board) = self.overlays.board() else {
            return self.rig.tally.violation("the tree cannot be read");
        };
        for device in board.devices() {
            if self.rig.service.find(device.device_key()).is_some() {
                continue;
            }
            let spec = device.spec().ok().and_then(|spec| self.integrator.offer(device, spec));
            if let Some(Ok(device)) = spec.map(|spec| self.rig.service.add(spec)) {
                self.rig.ledger.meet(&device);
            }
        }
    }

    /// Reverts everything, the last one first, with nobody else there.
    pub(super) fn finish(&mut self) {
        while let Some((_, overlay)) = self.applied.last().copied() {
            self.revert(overlay);
            if self.applied.last().is_some_and(|(_, last)| *last == overlay) {
                return self.rig.tally.violation(format!("overlay {overlay} could not be reverted at the end"));
            }
        }
        self.restore();
        if self.overlays.blob() != self.rig.base {
            self.rig.tally.violation("the tree is not the one that it was");
        }
        if !self.overlays.is_finished() {
            self.rig.tally.violation("an overlay has left something behind");
        }
    }
}

/// A card, a board upon that card, an SMMU with its masters, other streams for a device, and nodes switched on and off.
pub(super) const OVERLAYS: [&[u8]; 5] = [
    include_bytes!("../../../boards/overlays/card.dtbo"),
    include_bytes!("../../../boards/overlays/daughter.dtbo"),
    include_bytes!("../../../boards/overlays/fabric.dtbo"),
    include_bytes!("../../../boards/overlays/restream.dtbo"),
    include_bytes!("../../../boards/overlays/rewire.dtbo"),
];

/// DMA that is tried after each step.
const DMA: usize = 4;

/// How often what waits for another operation is tried again.
const PATIENCE: usize = 1_000_000;
