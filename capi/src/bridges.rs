//! A board's host bridges, and what firmware reserves of devices' address spaces.

use core::mem::MaybeUninit;

use iommu_assign::dt::{HostBridge, Region};
use iommu_assign::pci::RequesterId;

use crate::board::iommu_board;
use crate::border::{self, need};
use crate::error::{Failure, iommu_error};
use crate::status::iommu_status;
use crate::values::iommu_stream;

// --- what goes on through the take-over ---

/// A range of addresses that a device sends, and that firmware reserves (`iommu-addresses`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct iommu_board_reserved {
    /// First address, as the device's SMMU sees it.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// First byte of the memory that it reaches, where `has_memory`: a mapping that must go on, and belongs into the tables
    /// of an `iommu_reserved`.
    pub memory: u64,
    /// The device's index on the board, where `has_device`.
    pub device: usize,
    /// Whether there is memory behind it. Else it is a hole: addresses that the device must not be given.
    pub has_memory: bool,
    /// Whether the device is one of the board's.
    pub has_device: bool,
}

/// Counts what firmware reserves of devices' address spaces.
///
/// @return how many ranges; 0 for NULL.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_reserved_ranges(board: Option<&iommu_board>) -> usize {
    board.map_or(0, |board| board.0.reserved_regions().len())
}

/// What firmware reserves.
///
/// @param index below `iommu_board_reserved_ranges`.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_get_reserved(
    board: Option<&iommu_board>,
    index: usize,
    range: Option<&mut MaybeUninit<iommu_board_reserved>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let (place, board) = (need(range)?, &need(board)?.0);
        let region = board.reserved_regions().get(index);
        let region = region.ok_or(Failure::Argument("the board has no reserved range of that index"))?;
        let device = board.devices().iter().position(|device| device.node == region.device);
        place.write(iommu_board_reserved {
            iova: region.iova.base(),
            size: region.iova.size(),
            memory: region.memory.map_or(0, Region::base),
            device: device.unwrap_or_default(),
            has_memory: region.memory.is_some(),
            has_device: device.is_some(),
        });
        Ok(())
    })
}

// --- PCI ---

/// A host bridge's node, or another one with an `iommu-map`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct iommu_board_bridge {
    /// CPU physical address of its configuration space, where that is plain ECAM; else 0.
    pub ecam: u64,
    /// Bytes of it.
    pub ecam_size: u64,
    /// PCI segment, where firmware fixes it; else -1.
    pub segment: i32,
    /// First bus below.
    pub first_bus: u8,
    /// Last bus below.
    pub last_bus: u8,
    /// It is a PCI host bridge.
    pub is_pci: bool,
    /// Whether the node and all its ancestors are enabled.
    pub enabled: bool,
    /// An entry names an SMMU that is not enabled: its functions cannot be isolated.
    pub on_disabled_smmu: bool,
    /// Firmware marks it for passthrough.
    pub passthrough: bool,
}

fn bridge(board: Option<&iommu_board>, index: usize) -> Result<&HostBridge, Failure> {
    need(board)?.0.host_bridges().get(index).ok_or(Failure::Argument("the board has no host bridge of that index"))
}

/// Counts the nodes of a board that have an `iommu-map` to an SMMU.
///
/// @return how many; 0 for NULL.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_bridges(board: Option<&iommu_board>) -> usize {
    board.map_or(0, |board| board.0.host_bridges().len())
}

/// What a board says of a host bridge.
///
/// @param index below `iommu_board_bridges`.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_get_bridge(
    board: Option<&iommu_board>,
    index: usize,
    info: Option<&mut MaybeUninit<iommu_board_bridge>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let (place, node) = (need(info)?, bridge(board, index)?);
        place.write(iommu_board_bridge {
            ecam: node.ecam.map_or(0, Region::base),
            ecam_size: node.ecam.map_or(0, Region::size),
            segment: node.segment.map_or(-1, i32::from),
            first_bus: *node.buses.start(),
            last_bus: *node.buses.end(),
            is_pci: node.is_pci,
            enabled: node.enabled,
            on_disabled_smmu: node.on_disabled_smmu,
            passthrough: node.passthrough,
        });
        Ok(())
    })
}

/// The stream that a requester ID below a host bridge has. A function has one for itself and for each alias (phantom
/// functions, bridges to conventional PCI), all of which belong to its `iommu_device_spec`.
///
/// @param requester bus, device and function: `bus << 8 | device << 3 | function`.
/// @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_NO_STREAMS` for an ID that no entry maps to an SMMU: the sentence says why.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_board_requester_stream(
    board: Option<&iommu_board>,
    index: usize,
    requester: u16,
    stream: Option<&mut MaybeUninit<iommu_stream>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let (place, node) = (need(stream)?, bridge(board, index)?);
        place.write(node.requesters.stream(RequesterId(requester)).map_err(Failure::Unmapped)?.into());
        Ok(())
    })
}
