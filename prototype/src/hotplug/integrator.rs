//! The integrator's part for nodes of the device tree, at boot and when overlays come and go.

use std::sync::Arc;

use iommu_assign::assign::{DeviceSpec, HookError, Iommu, IommuKey};
use iommu_assign::dt::overlay::OverlayHost;
use iommu_assign::dt::{DtDevice, HostBridge, SmmuNode};
use iommu_assign::smmu::{Masters, Smmu};
use iommu_assign::sync::Spin;
use machine::{Machine, ModelRegisters};
use smmu_model::Config;

use super::ledger::Ledger;
use super::watched_hooks::{Kind, Resets, WatchedHooks};
use crate::presets;

/// Who brings SMMUs up and offers nodes.
#[derive(Debug)]
pub(super) struct Integrator {
    pub(super) machine: Machine,
    pub(super) masters: Arc<Masters<Spin>>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) resets: Arc<Resets>,
}

/// The entries and banks of the board's SMMU, and of one that an overlay brings: fewer than all devices and guests at once
/// would need.
pub(super) const BOARD_ENTRIES: u8 = 20;
pub(super) const BOARD_BANKS: u8 = 3;
pub(super) const OVERLAY_ENTRIES: u8 = 4;
pub(super) const OVERLAY_BANKS: u8 = 2;

impl OverlayHost for Integrator {
    fn probe(&mut self, node: &SmmuNode<'_>) -> Result<Arc<dyn Iommu>, HookError> {
        let is_boards = node.compatibles.contains(&"arm,mmu-500");
        let (groups, banks) = if is_boards { (BOARD_ENTRIES, BOARD_BANKS) } else { (OVERLAY_ENTRIES, OVERLAY_BANKS) };
        let registers = self.machine.add_smmu(node.key, Config { groups, banks, ..machine::part_of(node) });
        let smmu = Smmu::<Spin, ModelRegisters>::probe(presets::described(node), registers, self.masters.clone());
        let smmu = smmu.map_err(|_| HookError("it cannot be driven"))?;
        self.ledger.watch(node.key);
        Ok(Arc::new(smmu))
    }

    fn smmu_left(&mut self, _: IommuKey) {}

    fn offer(&mut self, _: &DtDevice, spec: DeviceSpec) -> Option<DeviceSpec> {
        let kind = Kind::Node(self.resets.clone());
        let hooks = Arc::new(WatchedHooks { ledger: self.ledger.clone(), kind });
        Some(DeviceSpec { hooks, passthrough: true, ..spec })
    }

    fn bridge_came(&mut self, _: &HostBridge) -> Result<(), HookError> {
        Err(HookError("no overlay here brings one"))
    }

    fn bridge_goes(&mut self, _: &str) -> Result<(), HookError> {
        Err(HookError("no overlay here takes one away"))
    }
}
