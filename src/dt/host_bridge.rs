//! Nodes with an `iommu-map`: PCI host bridges above all (binding `pci-iommu`).
//!
//! # Invariants
//!
//! H1. An entry's first requester ID has no bit outside the map's mask, and neither its requester IDs nor its
//!     stream IDs run past 32 bits.
//! H2. A map that can be read in two ways is refused. Maps in the field have four cells an entry, whatever
//!     `#iommu-cells` of the target says; newer ones have three and those of the target.

use alloc::string::String;
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use super::cells::{Cells, Region};
use super::iommus::{iommu_cells, resolve};
use super::smmu::{self, SmmuNode};
use super::tree::{Node, NodeId, Tree};
use super::{DtError, NodeFault};
use crate::assign::{IommuKey, StreamMask};

/// A node whose `iommu-map` names at least one SMMUv1/v2. Not each is a PCI host bridge: `fsl,qoriq-mc` is none.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostBridge {
    /// The node.
    pub node: NodeId,
    /// Full path of the node.
    pub path: String,
    /// Whether the node and all its ancestors are enabled.
    pub enabled: bool,
    /// The map, in the order of the property: the first entry that has a requester ID decides.
    pub map: Vec<MapEntry>,
    /// Bits of a requester ID that the map looks at (`iommu-map-mask`); 0 sends all to the entry at 0.
    pub map_mask: u32,
    /// Whether an entry names an SMMU that is not enabled: such a bridge's functions cannot be isolated.
    pub on_disabled_smmu: bool,
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

/// One entry of an `iommu-map`: requester ID `rid_base + n` has stream ID `stream_base + n`, for n below `length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MapEntry {
    /// The first requester ID, after the map's mask.
    pub rid_base: u32,
    /// The IOMMU.
    pub target: MapTarget,
    /// The first stream ID.
    pub stream_base: u32,
    /// The mask of each stream ID: the SMMU's `stream-match-mask`, or the specifier's own.
    pub stream_mask: StreamMask,
    /// How many IDs; real maps have entries of 0, which never hit.
    pub length: u32,
}

/// The IOMMU that an entry of an `iommu-map` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MapTarget {
    /// An SMMUv1/v2.
    Smmu(IommuKey),
    /// An IOMMU of another kind.
    Foreign(NodeId),
}

/// The nodes with a map that names one of `smmus`, in the order of the blob.
pub(super) fn read(tree: &Tree<'_>, smmus: &[SmmuNode<'_>]) -> Result<Vec<HostBridge>, DtError> {
    let mut bridges = Vec::new();
    for node in tree.nodes().filter(|node| !node.is_metadata()) {
        let Some(property) = node.property(MAP) else { continue };
        let map = read_map(&node, property.value(), smmus)?;
        if map.iter().any(|entry| matches!(entry.target, MapTarget::Smmu(_))) {
            bridges.try_reserve(1)?;
            bridges.push(read_one(&node, map, smmus)?);
        }
    }
    Ok(bridges)
}

fn read_one(node: &Node<'_, '_>, map: Vec<MapEntry>, smmus: &[SmmuNode<'_>]) -> Result<HostBridge, DtError> {
    let map_mask = node.u32("iommu-map-mask")?.unwrap_or(u32::MAX);
    for (entry, &MapEntry { rid_base, stream_base, length, .. }) in map.iter().enumerate() {
        if rid_base & !map_mask != 0 {
            let cause = NodeFault::MapBase { property: MAP, entry, base: rid_base, mask: map_mask };
            return Err(node.error(cause));
        }
        let last = length.saturating_sub(1);
        if let Some(base) = [rid_base, stream_base].into_iter().find(|base| base.checked_add(last).is_none()) {
            return Err(node.error(NodeFault::MapOverflow { property: MAP, entry, base, length }));
        }
    }

    let disabled = |key| smmus.iter().any(|smmu| smmu.key == key && !smmu.enabled);
    let on_disabled_smmu = map.iter().any(|entry| matches!(entry.target, MapTarget::Smmu(key) if disabled(key)));
    let mut compatibles = node.strings("compatible")?;
    let is_ecam = compatibles.any(|name| name == "pci-host-ecam-generic");
    let has_pci_type = node.strings("device_type")?.any(|name| name == "pci");
    let segment = match node.u32("linux,pci-domain")? {
        Some(segment) => Some(u16::try_from(segment).map_err(|_| node.error(NodeFault::Segment { segment }))?),
        None => None,
    };
    Ok(HostBridge {
        node: node.id(),
        path: node.path()?,
        enabled: node.is_enabled(),
        map,
        map_mask,
        on_disabled_smmu,
        is_pci: has_pci_type || is_ecam || node.property(BUS_RANGE).is_some(),
        buses: buses(node)?,
        segment,
        ecam: if is_ecam { node.regions()?.first().copied() } else { None },
        passthrough: node.property("xen,passthrough").is_some(),
    })
}

fn buses(node: &Node<'_, '_>) -> Result<RangeInclusive<u8>, DtError> {
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

/// Reads a map by both of its forms and takes the one that makes sense, if only one does (H2).
fn read_map(node: &Node<'_, '_>, value: &[u8], smmus: &[SmmuNode<'_>]) -> Result<Vec<MapEntry>, DtError> {
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
        (Ok(four), Ok(other)) if four != other => {
            Err(node.error(NodeFault::AmbiguousMap { property: MAP, four: four.len(), other: other.len() }))
        }
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

fn read_entries(
    node: &Node<'_, '_>,
    value: &[u8],
    smmus: &[SmmuNode<'_>],
    form: Form,
) -> Result<Vec<MapEntry>, DtError> {
    let mut map = Vec::new();
    let (mut cells, broken) = Cells::whole_cells(value);
    while !cells.is_empty() || broken {
        let entry = map.len();
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
        let own_mask = specifier.next();
        let smmu = smmu::find(smmus, target.id());
        map.try_reserve(1)?;
        map.push(MapEntry {
            rid_base,
            target: smmu.map_or(MapTarget::Foreign(target.id()), |smmu| MapTarget::Smmu(smmu.key)),
            stream_base,
            stream_mask: own_mask
                .map(StreamMask::new)
                .or(smmu.map(|smmu| smmu.stream_match_mask))
                .unwrap_or(StreamMask::NONE),
            length,
        });
    }
    Ok(map)
}

const BUS_RANGE: &str = "bus-range";
const MAP: &str = "iommu-map";
