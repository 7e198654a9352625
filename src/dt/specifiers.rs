//! The specifiers in an `iommus` property (binding `iommu`): which streams of which SMMUs a node's DMA has.

use alloc::vec::Vec;

use super::cells::Cells;
use super::references::{iommu_cells, resolve};
use super::smmu::{self, SmmuNode};
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
