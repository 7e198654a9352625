//! What firmware reserves of a device's address space: `iommu-addresses` of nodes below `reserved-memory` (binding
//! `reserved-memory`; quirk Q17, contract S-6).
//!
//! With memory behind it (`reg`) a reservation is a mapping that must go on: a display that shows a boot picture, the
//! firmware of a video codec. Without, it is a hole: addresses that the device must not be given.

use alloc::string::String;
use alloc::vec::Vec;

use super::cells::{Cells, Region};
use super::devices::DtDevice;
use super::references::resolve;
use super::refusal::Refusals;
use super::tree::{Node, NodeId, Refused, Tree};
use super::{DtError, NodeFault};
use crate::assign::{IommuKey, Stage2};
use crate::few;
use crate::smmu::Reserved;

/// A range of addresses that a device sends, and that firmware reserves.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReservedRegion {
    /// The node below `reserved-memory`.
    pub node: NodeId,
    /// Full path of that node.
    pub path: String,
    /// The device's node. Not each is one of the board's devices: nothing else is known of its streams then.
    pub device: NodeId,
    /// The addresses as the device's SMMU sees them, never empty.
    pub iova: Region,
    /// The memory that they reach, of the same size; `None` for a hole.
    pub memory: Option<Region>,
}

/// All regions of enabled nodes, in the order of the blob; refuses nodes that cannot be followed.
pub(super) fn read(tree: &mut Tree<'_>, refusals: &mut Refusals) -> Result<Vec<ReservedRegion>, DtError> {
    let mut regions = Vec::new();
    for index in 0..tree.len() {
        let Some(node) = tree.nth(index).filter(Node::is_enabled) else { continue };
        let Some(property) = node.property(ADDRESSES) else { continue };
        let id = node.id();
        match node.refused() {
            Refused::Master | Refused::Whole => {}
            Refused::Above => refusals.add_below(tree, id)?,
            Refused::No => match read_one(&node, property.value()) {
                Ok(read) => {
                    few::extend(&mut regions, read)?;
                }
                Err(error) => refusals.add(tree, id, Refused::Master, error)?,
            },
        }
    }
    Ok(regions)
}

/// For each enabled device with streams at `smmu` and a mapping that must go on: those streams, with the tables that
/// `tables` makes of its regions.
pub(super) fn offer<'b, E: From<DtError>>(
    devices: &'b [DtDevice],
    regions: &'b [ReservedRegion],
    smmu: IommuKey,
    mut tables: impl FnMut(&'b DtDevice, &[&'b ReservedRegion]) -> Result<Stage2, E>,
) -> Result<Vec<Reserved>, E> {
    let mut offered: Vec<Reserved> = Vec::new();
    for device in devices.iter().filter(|device| device.enabled) {
        let live = |region: &&ReservedRegion| region.device == device.node && region.memory.is_some();
        let live: Vec<&ReservedRegion> = collected(regions.iter().filter(live))?;
        let streams = collected(device.streams.iter().copied().filter(|stream| stream.iommu() == smmu))?;
        if !live.is_empty() && !streams.is_empty() {
            offered.try_reserve(1).map_err(DtError::from)?;
            few::push_within(&mut offered, Reserved { streams, space: tables(device, &live)? });
        }
    }
    Ok(offered)
}

fn collected<T>(items: impl Iterator<Item = T>) -> Result<Vec<T>, DtError> {
    let mut all = Vec::new();
    for item in items {
        few::push(&mut all, item)?;
    }
    Ok(all)
}

/// Reads the list by the cells of the device's bus, as kernels do; where that makes no list, by those of the node's own
/// bus, as the binding's example has it.
fn read_one(node: &Node<'_, '_>, value: &[u8]) -> Result<Vec<ReservedRegion>, DtError> {
    read_as(node, value, true).or_else(|error| match error {
        DtError::Node { .. } => read_as(node, value, false).map_err(|_| error),
        error => Err(error),
    })
}

fn read_as(node: &Node<'_, '_>, value: &[u8], by_device: bool) -> Result<Vec<ReservedRegion>, DtError> {
    let memory = node.regions()?;
    let mut regions: Vec<ReservedRegion> = Vec::new();
    let (mut cells, broken) = Cells::whole_cells(value);
    while !cells.is_empty() || broken {
        let entry = regions.len();
        let truncated = || node.error(NodeFault::Truncated { property: ADDRESSES, entry });
        let device = resolve(node, ADDRESSES, entry, cells.next().ok_or_else(truncated)?)?;
        let (address_cells, size_cells) = if by_device { device.bus_cells()? } else { node.bus_cells()? };
        let mut address = cells.split(address_cells).ok_or_else(truncated)?;
        let mut size = cells.split(size_cells).ok_or_else(truncated)?;
        let wide = || node.error(NodeFault::NumberTooWide { property: ADDRESSES });
        let base = address.number(address_cells).ok_or_else(wide)?;
        let size = size.number(size_cells).ok_or_else(wide)?;
        if size == 0 {
            return Err(node.error(NodeFault::EmptyReservation { property: ADDRESSES, entry }));
        }
        let iova = device.as_its_iommu_sees(node.region(ADDRESSES, base, size)?)?;
        let same = memory.iter().find(|memory| **memory == iova);
        let same_size = || memory.iter().find(|memory| memory.size() == size);
        let memory = match same.or_else(same_size) {
            Some(memory) => Some(*memory),
            None if memory.is_empty() => None,
            None => return Err(node.error(NodeFault::ReservationSize { property: ADDRESSES, entry, size })),
        };
        few::push(
            &mut regions,
            ReservedRegion { node: node.id(), path: node.path()?, device: device.id(), iova, memory },
        )?;
    }
    Ok(regions)
}

const ADDRESSES: &str = "iommu-addresses";
