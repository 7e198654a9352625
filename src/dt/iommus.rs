//! References to IOMMUs: the `iommus` property (binding `iommu`), and what `iommu-map` shares with it.

use alloc::vec::Vec;

use super::cells::Cells;
use super::refusal::Refused;
use super::smmu::{self, IOMMU_CELLS, SmmuNode};
use super::tree::{Node, NodeId};
use super::{DtError, NodeFault};
use crate::assign::{IommuKey, Stream, StreamId, StreamMask};

/// How many specifiers of a device name an SMMU, as written: repeated and overlapping ones counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpecifierCount {
    /// The SMMU.
    pub smmu: IommuKey,
    /// How many specifiers name it, at least 1.
    pub count: usize,
}

/// What an `iommus` property says.
#[derive(Debug)]
pub(super) struct Masters {
    /// Canonical, sorted, without repetition.
    pub(super) streams: Vec<Stream>,
    /// In the order in which the SMMUs are first named.
    pub(super) specifiers: Vec<SpecifierCount>,
    /// IOMMUs of other kinds, without repetition.
    pub(super) foreign: Vec<NodeId>,
    pub(super) on_disabled_smmu: bool,
}

/// Reads `iommus` of `node`; `None` without the property, or where no entry names one of `smmus`.
pub(super) fn read(node: &Node<'_, '_>, smmus: &[SmmuNode<'_>]) -> Result<Option<Masters>, DtError> {
    let Some(property) = node.property(IOMMUS) else { return Ok(None) };
    let mut masters =
        Masters { streams: Vec::new(), specifiers: Vec::new(), foreign: Vec::new(), on_disabled_smmu: false };
    let mut entry = 0_usize;
    let (mut cells, partial_cell) = Cells::whole_cells(property.value());
    while !cells.is_empty() || partial_cell {
        let truncated = || node.error(NodeFault::Truncated { property: IOMMUS, entry });
        let phandle = cells.next().ok_or_else(truncated)?;
        let target = resolve(node, IOMMUS, entry, phandle)?;
        let mut specifier = cells.split(iommu_cells(node, &target, IOMMUS, entry)?).ok_or_else(truncated)?;
        match smmu::find(smmus, target.id()) {
            Some(smmu) => {
                // An SMMU's width is 1 or 2, checked where its node was read.
                let id = specifier.next().ok_or_else(truncated)?;
                let mask = specifier.next().map_or(smmu.stream_match_mask, StreamMask::new);
                masters.streams.try_reserve(1)?;
                masters.streams.push(Stream::new(smmu.key, StreamId::new(id), mask));
                masters.on_disabled_smmu |= !smmu.enabled;
                count(&mut masters.specifiers, smmu.key)?;
            }
            None => {
                masters.foreign.try_reserve(1)?;
                masters.foreign.push(target.id());
            }
        }
        entry = entry.saturating_add(1);
    }
    masters.streams.sort_unstable();
    masters.streams.dedup();
    masters.foreign.sort_unstable();
    masters.foreign.dedup();
    Ok(if masters.streams.is_empty() { None } else { Some(masters) })
}

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
        None => Err(node.error(NodeFault::MissingIommuCells { property, entry, target: target.path()? })),
    }
}

fn count(specifiers: &mut Vec<SpecifierCount>, smmu: IommuKey) -> Result<(), DtError> {
    match specifiers.iter_mut().find(|specifier| specifier.smmu == smmu) {
        Some(specifier) => specifier.count = specifier.count.saturating_add(1),
        None => {
            specifiers.try_reserve(1)?;
            specifiers.push(SpecifierCount { smmu, count: 1 });
        }
    }
    Ok(())
}

pub(super) const IOMMUS: &str = "iommus";
