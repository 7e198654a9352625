//! Nodes that can do DMA and that no SMMU sees; and what firmware reserves of devices' address spaces.

use iommu_assign::dt::{Board, Node, ReservedRegion};
use serde::Serialize;

use super::Hex;
use crate::names::Names;

/// An enabled node that does DMA, as far as its node shows, and that no SMMUv1 or v2 confines.
#[derive(Debug, Serialize)]
pub(crate) struct Unconfined {
    pub(crate) path: String,
    pub(crate) name: String,
    pub(crate) compatible: String,
    /// What shows that it does DMA, or what sees it instead.
    pub(crate) why: String,
}

/// A range of a device's addresses that firmware reserves.
#[derive(Debug, Serialize)]
pub(crate) struct Reserved {
    pub(crate) path: String,
    pub(crate) name: String,
    pub(crate) device: String,
    pub(crate) device_name: String,
    /// Whether the device's streams are known here, so that they can go on.
    pub(crate) offered: bool,
    pub(crate) iova: Hex,
    pub(crate) size: Hex,
    /// What it reaches; nothing for a hole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<Hex>,
}

/// Those that are not below or above a node that an SMMU sees: a wrapper's DMA is its child's.
pub(crate) fn read(board: &Board<'_>, names: &Names) -> Vec<Unconfined> {
    let devices = board.devices().iter().map(|device| device.node);
    let seen: Vec<_> = devices.chain(board.host_bridges().iter().map(|bridge| bridge.node)).collect();
    let mut above: Vec<_> = Vec::new();
    for node in seen.iter().filter_map(|id| board.tree().node(*id)) {
        above.extend(node.ancestors().map(|above| above.id()));
    }
    let ours = |node: &Node<'_, '_>| {
        seen.contains(&node.id())
            || above.contains(&node.id())
            || node.ancestors().any(|above| seen.contains(&above.id()))
            || board.refusals().iter().any(|refusal| refusal.node == node.id() && refusal.is_malformed())
            || board.smmus().iter().any(|smmu| smmu.node == node.id())
    };
    let found = board.tree().nodes().filter(Node::is_enabled).filter_map(|node| {
        let why = shows(board, &node, names)?;
        (!ours(&node)).then_some(())?;
        let path = node.path().ok()?;
        let compatible = node.compatible().unwrap_or_default().to_owned();
        Some(Unconfined { name: names.name(&path), path, compatible, why })
    });
    found.collect()
}

/// What shows that a node does DMA.
fn shows(board: &Board<'_>, node: &Node<'_, '_>, names: &Names) -> Option<String> {
    node.compatible()?;
    if let Some(iommus) = node.property("iommus").or_else(|| node.property("iommu-map")) {
        let cells: Vec<u32> = iommus
            .value()
            .chunks_exact(4)
            .map(|cell| cell.iter().fold(0_u32, |value, byte| value << 8 | u32::from(*byte)))
            .collect();
        let target = cells.iter().find_map(|cell| board.tree().by_phandle(*cell));
        let target = target.filter(|target| target.property("#iommu-cells").is_some())?;
        return Some(format!("behind {}, which is no SMMUv1 or SMMUv2", names.name(&target.path().ok()?)));
    }
    let is = |name: &str| node.property(name).is_some();
    if node.property("device_type").is_some_and(|of| of.value() == b"pci\0") {
        return Some("a PCI host bridge without `iommu-map`".to_owned());
    }
    if is("#dma-cells") {
        return Some("a DMA controller".to_owned());
    }
    if is("dma-coherent") && is("reg") {
        return Some("`dma-coherent`".to_owned());
    }
    let name = node.name().split('@').next().unwrap_or_default();
    let masters =
        ["ethernet", "usb", "sata", "mmc", "sdhci", "ufs", "ufshc", "nvme", "gpu", "crypto", "dma-controller"];
    (masters.contains(&name) && is("reg")).then(|| format!("`{name}` by its name"))
}

pub(crate) fn reserved(board: &Board<'_>, names: &Names) -> Vec<Reserved> {
    let one = |region: &ReservedRegion| {
        let device = board.tree().node(region.device).and_then(|node| node.path().ok()).unwrap_or_default();
        Reserved {
            path: region.path.clone(),
            name: names.name(&region.path),
            device_name: names.name(&device),
            device,
            offered: board.device(region.device).is_some_and(|device| device.enabled) && region.memory.is_some(),
            iova: Hex(region.iova.base()),
            size: Hex(region.iova.size()),
            memory: region.memory.map(|memory| Hex(memory.base())),
        }
    };
    board.reserved_regions().iter().map(one).collect()
}
