//! The property `mmu-masters` of an SMMU: the binding of before `iommus`, which trees of the field still use.
//!
//! The SMMU names its masters, each by phandle and with as many stream IDs as the master's `#stream-id-cells` says. Of a
//! PCI host bridge the IDs say nothing: a function's stream ID is its requester ID (Fact: Linux,
//! `drivers/iommu/arm/arm-smmu/arm-smmu.c`, what it does with the old binding). Two bindings in one tree are read side by
//! side; where they contradict each other about a node, the node is refused.

use alloc::vec::Vec;

use super::cells::Cells;
use super::references::MMU_MASTERS;
use super::refusal::Refusals;
use super::smmu::SmmuNode;
use super::tree::{Node, NodeId, Refused, Tree};
use super::{DtError, NodeFault};
use crate::assign::IommuKey;
use crate::few;

/// A node that an SMMU names as its master.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named<'a> {
    node: NodeId,
    /// How many were read before it.
    order: usize,
    /// The SMMU.
    pub(super) smmu: IommuKey,
    /// Its stream IDs as written.
    pub(super) ids: Cells<'a>,
    /// Whether it is a PCI host bridge, whose functions have their requester IDs.
    pub(super) is_pci: bool,
}

/// The masters that SMMUs name, by node. An SMMU whose list cannot be followed is refused: who else is in it nobody
/// knows.
pub(super) fn read<'a>(
    tree: &mut Tree<'a>,
    refusals: &mut Refusals,
    smmus: &mut Vec<SmmuNode<'a>>,
) -> Result<Vec<Named<'a>>, DtError> {
    let mut named = Vec::new();
    for smmu in smmus.iter().filter(|smmu| smmu.mmu_masters) {
        let before = named.len();
        let Some(node) = tree.node(smmu.node) else { continue };
        if let Err(error) = read_one(&node, smmu.key, &mut named) {
            named.truncate(before);
            refusals.add(tree, smmu.node, Refused::Whole, error)?;
        }
    }
    smmus.retain(|smmu| tree.node(smmu.node).is_some_and(|node| node.refused() != Refused::Whole));
    few::sort(&mut named, &|one, other| (one.node, one.order) < (other.node, other.order));
    Ok(named)
}

fn read_one<'a>(smmu: &Node<'_, 'a>, key: IommuKey, named: &mut Vec<Named<'a>>) -> Result<(), DtError> {
    let mut cells = smmu.cells(MMU_MASTERS)?;
    let mut entry = 0_usize;
    while let Some(phandle) = cells.next() {
        let dangling = || smmu.error(NodeFault::DanglingPhandle { property: MMU_MASTERS, entry, phandle });
        let master = smmu.tree().by_phandle(phandle).ok_or_else(dangling)?;
        let Some(count) = master.u32(STREAM_ID_CELLS)? else {
            let target = master.path()?;
            return Err(smmu.error(NodeFault::MissingStreamIdCells { property: MMU_MASTERS, entry, target }));
        };
        let ids = cells.split(count);
        let ids = ids.ok_or_else(|| smmu.error(NodeFault::Truncated { property: MMU_MASTERS, entry }))?;
        // One that was refused is not offered, and how many IDs it has can be read all the same.
        if master.refused() == Refused::No && !ids.is_empty() {
            let (node, order, is_pci) = (master.id(), named.len(), is_pci(&master)?);
            few::push(named, Named { node, order, smmu: key, ids, is_pci })?;
        }
        entry = entry.saturating_add(1);
    }
    Ok(())
}

/// Those that name `node`.
pub(super) fn of<'n, 'a>(named: &'n [Named<'a>], node: NodeId) -> impl Iterator<Item = &'n Named<'a>> + Clone {
    let first = named.partition_point(|named| named.node < node);
    named.get(first..).unwrap_or_default().iter().take_while(move |named| named.node == node)
}

/// Whether `node` is a PCI host bridge.
pub(super) fn is_pci(node: &Node<'_, '_>) -> Result<bool, DtError> {
    let has_pci_type = node.strings("device_type")?.any(|name| name == "pci");
    Ok(has_pci_type || is_ecam(node)? || node.property(BUS_RANGE).is_some())
}

/// Whether its compatible says that its configuration space is plain ECAM.
pub(super) fn is_ecam(node: &Node<'_, '_>) -> Result<bool, DtError> {
    Ok(node.strings("compatible")?.any(|name| name == "pci-host-ecam-generic"))
}

pub(super) const BUS_RANGE: &str = "bus-range";
const STREAM_ID_CELLS: &str = "#stream-id-cells";
