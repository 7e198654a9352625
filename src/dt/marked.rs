//! Nodes that firmware marks for passing through, and whose DMA no SMMU that can be used sees.
//!
//! Nothing is wrong with such a node: one without DMA may be passed through, and that is for the hypervisor to know. But
//! it is no device here, or one that cannot be confined, and an operator who marked it is told so.

use super::devices::{self, DtDevice};
use super::iommu_map::HostBridge;
use super::references::IOMMU_CELLS;
use super::refusal::Refusals;
use super::smmu::SmmuNode;
use super::specifiers::IOMMUS;
use super::tree::{Node, NodeId, Refused, Tree};
use super::unseen::Unseen;
use super::{DtError, NodeFault};
use crate::assign::IommuKey;
use crate::few;
use crate::pci::{MapEntry, Provider};

/// Tells of each marked node that no SMMU in use sees. Takes nothing away: it was not offered, or its entry says why it
/// must not be assigned.
pub(super) fn tell(
    tree: &Tree<'_>,
    smmus: &[SmmuNode<'_>],
    devices: &[DtDevice],
    bridges: &[HostBridge],
    refusals: &mut Refusals,
) -> Result<(), DtError> {
    let marked = |node: &Node<'_, '_>| node.property("xen,passthrough").is_some() && node.refused() == Refused::No;
    for node in tree.nodes().filter(|node| !node.is_metadata() && marked(node)) {
        let bridge = bridges.iter().find(|bridge| bridge.node == node.id());
        // Functions are seen through their host bridge's map.
        let below =
            node.ancestors().any(|above| bridges.iter().any(|bridge| bridge.is_pci && bridge.node == above.id()));
        let why = match (devices::find(devices, node.id()), bridge) {
            (Some(device), _) => disabled(smmus, device.streams.iter().map(|stream| stream.iommu()))?,
            (None, Some(bridge)) => disabled(smmus, bridge.entries.iter().filter_map(smmu_of))?,
            (None, None) if below => None,
            (None, None) => Some(match foreign(&node) {
                Some(iommu) => Unseen::Foreign { iommu: tree.path_of(iommu)? },
                None => Unseen::NoIommu,
            }),
        };
        if let Some(why) = why {
            refusals.tell(tree, node.id(), NodeFault::Unseen { why })?;
        }
    }
    Ok(())
}

/// The disabled one among these.
fn disabled(smmus: &[SmmuNode<'_>], mut keys: impl Iterator<Item = IommuKey>) -> Result<Option<Unseen>, DtError> {
    let disabled = keys.find_map(|key| smmus.iter().find(|smmu| smmu.key == key && !smmu.enabled));
    Ok(match disabled {
        Some(smmu) => Some(Unseen::Disabled { smmu: few::text(&smmu.path)? }),
        None => None,
    })
}

fn smmu_of(entry: &MapEntry) -> Option<IommuKey> {
    if let Provider::Smmu(key) = entry.iommu { Some(key) } else { None }
}

/// The first IOMMU that a node names which names none of ours.
fn foreign(node: &Node<'_, '_>) -> Option<NodeId> {
    let phandle = node.cells(IOMMUS).ok()?.next()?;
    let iommu = node.tree().by_phandle(phandle)?;
    iommu.property(IOMMU_CELLS).map(|_| iommu.id())
}
