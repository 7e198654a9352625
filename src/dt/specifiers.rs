//! Which streams of which SMMUs a node's DMA has: by its property `iommus` (binding `iommu`), or by the SMMU's `mmu-masters`.

use alloc::vec::Vec;

use super::cells::Cells;
use super::mmu_masters::{self, Named};
use super::references::{iommu_cells, resolve};
use super::smmu::{self, SmmuNode};
use super::tree::{Node, NodeId};
use super::{DtError, NodeFault};
use crate::assign::{IommuKey, Stream, StreamId, StreamMask};
use crate::few;

/// How many specifiers of a device name an SMMU, as written: repeated and overlapping ones counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SpecifierCount {
    /// The SMMU.
    pub smmu: IommuKey,
    /// How many specifiers name it, at least 1.
    pub count: usize,
}

/// What a node's `iommus` and the SMMUs' `mmu-masters` say.
#[derive(Debug)]
pub(super) struct Masters {
    /// Canonical, sorted, without repetition.
    pub(super) streams: Vec<Stream>,
    /// In the order in which the SMMUs are first named.
    pub(super) specifiers: Vec<SpecifierCount>,
    /// IOMMUs of other kinds, without repetition.
    pub(super) foreign: Vec<NodeId>,
    pub(super) on_disabled_smmu: bool,
    /// Whether an SMMU's `mmu-masters` gives some of them.
    pub(super) old_binding: bool,
}

/// Reads `iommus` of `node`, and what `named` says of it; `None` where neither names one of `smmus`.
pub(super) fn read(
    node: &Node<'_, '_>,
    smmus: &[SmmuNode<'_>],
    named: &[Named<'_>],
) -> Result<Option<Masters>, DtError> {
    let mut masters = Masters {
        streams: Vec::new(),
        specifiers: Vec::new(),
        foreign: Vec::new(),
        on_disabled_smmu: false,
        old_binding: false,
    };
    let mut entry = 0_usize;
    let value = node.property(IOMMUS).map_or(&[][..], |property| property.value());
    let (mut cells, partial_cell) = Cells::whole_cells(value);
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
                few::push(&mut masters.streams, Stream::new(smmu.key, StreamId::new(id), mask))?;
                masters.on_disabled_smmu |= !smmu.enabled;
                count(&mut masters.specifiers, smmu.key)?;
            }
            None => {
                few::push(&mut masters.foreign, target.id())?;
            }
        }
        entry = entry.saturating_add(1);
    }
    few::sort(&mut masters.streams, &|one, other| one < other);
    masters.streams.dedup();
    add_named(node, &mut masters, smmus, named)?;
    few::sort(&mut masters.foreign, &|one, other| one < other);
    masters.foreign.dedup();
    Ok(if masters.streams.is_empty() { None } else { Some(masters) })
}

/// Adds what SMMUs say of the node. Where it speaks of such an SMMU itself, it must say the same.
fn add_named(
    node: &Node<'_, '_>,
    masters: &mut Masters,
    smmus: &[SmmuNode<'_>],
    named: &[Named<'_>],
) -> Result<(), DtError> {
    let of_node = mmu_masters::of(named, node.id()).filter(|named| !named.is_pci);
    for smmu in smmus.iter().filter(|smmu| smmu.mmu_masters) {
        let mut streams: Vec<Stream> = Vec::new();
        for id in of_node.clone().filter(|named| named.smmu == smmu.key).flat_map(|named| named.ids) {
            few::push(&mut streams, Stream::new(smmu.key, StreamId::new(id), smmu.stream_match_mask))?;
        }
        let listed = streams.len();
        few::sort(&mut streams, &|one, other| one < other);
        streams.dedup();
        if streams.is_empty() {
            continue;
        }
        let own = || masters.streams.iter().filter(|stream| stream.iommu() == smmu.key);
        if own().next().is_some() {
            if !own().eq(&streams) {
                return Err(node.error(NodeFault::TwoBindings { property: IOMMUS, smmu: few::text(&smmu.path)? }));
            }
            continue;
        }
        few::extend(&mut masters.streams, streams)?;
        masters.on_disabled_smmu |= !smmu.enabled;
        masters.old_binding = true;
        few::push(&mut masters.specifiers, SpecifierCount { smmu: smmu.key, count: listed })?;
    }
    few::sort(&mut masters.streams, &|one, other| one < other);
    Ok(())
}

fn count(specifiers: &mut Vec<SpecifierCount>, smmu: IommuKey) -> Result<(), DtError> {
    match specifiers.iter_mut().find(|specifier| specifier.smmu == smmu) {
        Some(specifier) => specifier.count = specifier.count.saturating_add(1),
        None => {
            few::push(specifiers, SpecifierCount { smmu, count: 1 })?;
        }
    }
    Ok(())
}

pub(super) const IOMMUS: &str = "iommus";
