//! Nodes with an `iommu-map`: PCI host bridges above all (binding `pci-iommu`).
//!
//! What a map means is [`RequesterIdMap`]'s matter, what it says is read here. Maps in the field have four cells an
//! entry, whatever `#iommu-cells` of the target says; newer ones have three and those of the target. A map that can be
//! read in two ways is refused.

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use super::cells::{Cells, Region};
use super::mmu_masters::{self, BUS_RANGE, Named, is_ecam, is_pci};
use super::references::{MMU_MASTERS, iommu_cells, resolve};
use super::refusal::Refusals;
use super::smmu::{self, SmmuNode};
use super::tree::{Node, NodeId, Refused, Tree};
use super::{DtError, NodeFault};
use crate::assign::StreamMask;
use crate::few;
use crate::pci::{MapEntry, MapFault, Provider, RequesterIdMap};

/// A node whose `iommu-map` names at least one SMMUv1/v2, or a PCI host bridge that one names in its `mmu-masters`. Not each is a PCI host bridge: `fsl,qoriq-mc` is none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostBridge {
    /// The node.
    pub node: NodeId,
    /// Full path of the node.
    pub path: String,
    /// Whether the node and all its ancestors are enabled.
    pub enabled: bool,
    /// From requester IDs to streams, with the bits that count (`iommu-map-mask`).
    pub requesters: RequesterIdMap,
    /// The entries as they are written and in that order: real maps have some of length 0, which map nothing.
    pub entries: Vec<MapEntry>,
    /// IOMMUs of other kinds that see DMA of functions below, and that nobody here programs.
    pub foreign_iommus: Vec<NodeId>,
    /// Whether an entry names an SMMU that is not enabled: such a bridge's functions cannot be isolated.
    pub on_disabled_smmu: bool,
    /// Whether an SMMU's `mmu-masters` names the bridge, the binding of before `iommu-map`: each requester ID is a stream
    /// ID.
    pub old_binding: bool,
    /// Whether the node is a PCI host bridge.
    pub is_pci: bool,
    /// Bus numbers below the bridge (`bus-range`, by default all).
    pub buses: RangeInclusive<u8>,
    /// PCI segment (`linux,pci-domain`), where firmware fixes it.
    pub segment: Option<u16>,
    /// Configuration space as the CPU sees it, where the compatible says that it is plain ECAM.
    pub ecam: Option<Region>,
    /// Whether firmware marks the bridge for passing through (`xen,passthrough`).
    pub passthrough: bool,
}

/// The nodes with a map that names one of `smmus`, in the order of the blob; refuses those whose map cannot be followed.
pub(super) fn read(
    tree: &mut Tree<'_>,
    smmus: &[SmmuNode<'_>],
    all_named: &[Named<'_>],
    refusals: &mut Refusals,
) -> Result<Vec<HostBridge>, DtError> {
    let mut bridges = Vec::new();
    for index in 0..tree.len() {
        let Some(node) = tree.nth(index).filter(|node| !node.is_metadata()) else { continue };
        let id = node.id();
        let property = node.property(MAP);
        let named = mmu_masters::of(all_named, id).find(|named| named.is_pci);
        if property.is_none() && named.is_none() {
            continue;
        }
        match node.refused() {
            Refused::Master | Refused::Whole => continue,
            Refused::Above => {
                refusals.add_below(tree, id)?;
                continue;
            }
            Refused::No => {}
        }
        let ours = |entry: &MapEntry| matches!(entry.iommu, Provider::Smmu(_));
        let map = match (property, named) {
            (Some(_), Some(named)) => {
                let smmu = smmus.iter().find(|smmu| smmu.key == named.smmu).map_or("", |smmu| &smmu.path);
                Err(node.error(NodeFault::TwoBindings { property: MAP, smmu: few::text(smmu)? }))
            }
            (Some(property), None) => read_map(&node, property.value(), smmus),
            (None, _) => named_map(mmu_masters::of(all_named, id)),
        };
        let bridge = map.and_then(|map| {
            let old = named.is_some();
            if map.entries.iter().any(ours) { read_one(&node, map, smmus, old).map(Some) } else { Ok(None) }
        });
        match bridge {
            Ok(None) => {}
            Ok(Some(bridge)) => {
                few::push(&mut bridges, bridge)?;
            }
            Err(error) => refusals.add(tree, id, Refused::Master, error)?,
        }
    }
    Ok(bridges)
}

/// By the old binding each requester ID is a stream ID.
fn named_map<'n, 'a: 'n>(named: impl Iterator<Item = &'n Named<'a>>) -> Result<Map, DtError> {
    let mut map = Map { entries: Vec::new(), foreign: Vec::new() };
    for named in named {
        few::push(&mut map.entries, MapEntry::new(0, Provider::Smmu(named.smmu), 0, 0x1_0000))?;
    }
    Ok(map)
}

fn read_one(node: &Node<'_, '_>, map: Map, smmus: &[SmmuNode<'_>], old_binding: bool) -> Result<HostBridge, DtError> {
    let mask = node.u32("iommu-map-mask")?.unwrap_or(RequesterIdMap::NO_MASK);
    let requesters = RequesterIdMap::new(map.entries.iter().copied(), mask).map_err(|fault| match fault {
        MapFault::OutOfMemory => DtError::OutOfMemory,
        fault => node.error(NodeFault::Map { property: if old_binding { MMU_MASTERS } else { MAP }, fault }),
    })?;
    let disabled = |key| smmus.iter().any(|smmu| smmu.key == key && !smmu.enabled);
    let on_disabled_smmu = map.entries.iter().any(|entry| matches!(entry.iommu, Provider::Smmu(key) if disabled(key)));
    Ok(HostBridge {
        node: node.id(),
        path: node.path()?,
        enabled: node.is_enabled(),
        requesters,
        entries: map.entries,
        foreign_iommus: map.foreign,
        on_disabled_smmu,
        old_binding,
        is_pci: is_pci(node)?,
        buses: buses(node)?,
        segment: segment(node)?,
        ecam: if is_ecam(node)? { node.regions()?.first().copied() } else { None },
        passthrough: node.property("xen,passthrough").is_some(),
    })
}

/// The segment that firmware fixes.
pub(super) fn segment(node: &Node<'_, '_>) -> Result<Option<u16>, DtError> {
    let Some(segment) = node.u32("linux,pci-domain")? else { return Ok(None) };
    u16::try_from(segment).map(Some).map_err(|_| node.error(NodeFault::Segment { segment }))
}

/// The bus numbers below a host bridge.
pub(super) fn buses(node: &Node<'_, '_>) -> Result<RangeInclusive<u8>, DtError> {
    let Some(property) = node.property(BUS_RANGE) else { return Ok(0..=u8::MAX) };
    let (mut cells, broken) = Cells::whole_cells(property.value());
    let length = NodeFault::Length { property: BUS_RANGE, length: property.value().len(), expected: 8 };
    let (Some(first), Some(last), None, false) = (cells.next(), cells.next(), cells.next(), broken) else {
        return Err(node.error(length));
    };
    match (u8::try_from(first), u8::try_from(last)) {
        (Ok(from), Ok(to)) if from <= to => Ok(from..=to),
        _ => Err(node.error(NodeFault::BusRange { first, last })),
    }
}

/// What an `iommu-map` says.
#[derive(PartialEq, Eq)]
struct Map {
    entries: Vec<MapEntry>,
    /// IOMMUs of other kinds, sorted, each once.
    foreign: Vec<NodeId>,
}

/// Reads a map by both of its forms and takes the one that makes sense, if only one does.
fn read_map(node: &Node<'_, '_>, value: &[u8], smmus: &[SmmuNode<'_>]) -> Result<Map, DtError> {
    let whole = value.len().is_multiple_of(16);
    let by_target = read_entries(node, value, smmus, Form::ByTarget);
    let length = || node.error(NodeFault::LengthMultiple { property: MAP, length: value.len(), entry: 16 });
    if !whole {
        return by_target.map_err(|error| match error {
            DtError::Node { cause: NodeFault::Truncated { .. }, .. } => length(),
            error => error,
        });
    }
    match (read_entries(node, value, smmus, Form::FourCells), by_target) {
        // What would be read past a reference to a refused IOMMU is no reading.
        (Err(error @ DtError::Node { cause: NodeFault::RefusedTarget { .. }, .. }), _)
        | (_, Err(error @ DtError::Node { cause: NodeFault::RefusedTarget { .. }, .. })) => Err(error),
        (Ok(four), Ok(other)) if four != other => Err(node.error(NodeFault::AmbiguousMap {
            property: MAP,
            four: four.entries.len(),
            other: other.entries.len(),
        })),
        (Ok(map), _) | (Err(_), Ok(map)) => Ok(map),
        (Err(error), Err(_)) => Err(error),
    }
}

/// How wide the entries of a map are.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    FourCells,
    ByTarget,
}

fn read_entries(node: &Node<'_, '_>, value: &[u8], smmus: &[SmmuNode<'_>], form: Form) -> Result<Map, DtError> {
    let mut map = Map { entries: Vec::new(), foreign: Vec::new() };
    let (mut cells, broken) = Cells::whole_cells(value);
    while !cells.is_empty() || broken {
        let entry = map.entries.len();
        let truncated = || node.error(NodeFault::Truncated { property: MAP, entry });
        let rid_base = cells.next().ok_or_else(truncated)?;
        let target = resolve(node, MAP, entry, cells.next().ok_or_else(truncated)?)?;
        let target_cells = iommu_cells(node, &target, MAP, entry)?;
        let width = if form == Form::FourCells { 1 } else { target_cells };
        let mut specifier = cells.split(width).ok_or_else(truncated)?;
        let length = cells.next().ok_or_else(truncated)?;
        if width > 1 && length > 1 {
            return Err(node.error(NodeFault::MapRange { property: MAP, entry, length, cells: width }));
        }
        let stream_base = specifier.next().unwrap_or(0);
        let own_mask = specifier.next().map(StreamMask::new);
        let (iommu, mask) = match smmu::find(smmus, target.id()) {
            Some(smmu) => (Provider::Smmu(smmu.key), own_mask.unwrap_or(smmu.stream_match_mask)),
            None => {
                few::push(&mut map.foreign, target.id())?;
                (Provider::Foreign, StreamMask::NONE)
            }
        };
        few::push(&mut map.entries, MapEntry::new(rid_base, iommu, stream_base, length).with_stream_mask(mask))?;
    }
    few::sort(&mut map.foreign, &|one, other| one < other);
    map.foreign.dedup();
    Ok(map)
}

pub(super) const MAP: &str = "iommu-map";
