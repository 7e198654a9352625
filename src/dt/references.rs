//! References to other nodes by phandle, and how wide what follows them is.

use super::tree::{Node, Refused};
use super::{DtError, NodeFault};

/// The node that an entry's phandle names.
pub(super) fn resolve<'t, 'a>(
    node: &Node<'t, 'a>,
    property: &'static str,
    entry: usize,
    phandle: u32,
) -> Result<Node<'t, 'a>, DtError> {
    if phandle == 0 {
        return Err(node.error(NodeFault::PhandleZero { property, entry }));
    }
    let dangling = || node.error(NodeFault::DanglingPhandle { property, entry, phandle });
    let target = node.tree().by_phandle(phandle).ok_or_else(dangling)?;
    match target.refused() {
        Refused::No | Refused::Master => Ok(target),
        Refused::Whole | Refused::Above => {
            Err(node.error(NodeFault::RefusedTarget { property, entry, target: target.path()? }))
        }
    }
}

/// How many cells follow a reference to `target`.
pub(super) fn iommu_cells(
    node: &Node<'_, '_>,
    target: &Node<'_, '_>,
    property: &'static str,
    entry: usize,
) -> Result<u32, DtError> {
    match target.u32(IOMMU_CELLS)? {
        Some(cells) => Ok(cells),
        None if target.property(MMU_MASTERS).is_some() => {
            Err(node.error(NodeFault::OldBinding { property, entry, target: target.path()? }))
        }
        None => Err(node.error(NodeFault::MissingIommuCells { property, entry, target: target.path()? })),
    }
}

pub(super) const IOMMU_CELLS: &str = "#iommu-cells";
pub(super) const MMU_MASTERS: &str = "mmu-masters";
