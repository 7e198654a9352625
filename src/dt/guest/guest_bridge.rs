//! A host bridge for assigned functions: a generic one with ECAM, which the hypervisor emulates.
//!
//! Of the host's bridge it has the windows for memory and I/O, and whether DMA is coherent. Interrupt pins are the
//! integrator's four, for every slot alike: the host's `interrupt-map` goes by the host's slots.

use core::ops::RangeInclusive;

use super::guest_error::GuestError;
use super::output::Output;
use super::subtree::{GuestView, is_coherent};
use super::values::{Value, node_name};
use crate::dt::cells::{ADDRESS_CELLS, RANGES, REG, SIZE_CELLS};
use crate::dt::tree::Node;
use crate::dt::{NodeFault, Region};

/// What the integrator has of a host bridge in the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuestBridge {
    /// Where its configuration space is in the guest: 1 MiB for each bus.
    pub ecam: u64,
    /// Its buses.
    pub buses: RangeInclusive<u8>,
    /// Its PCI segment, where the guest has several host bridges.
    pub segment: Option<u16>,
    /// The phandle of the guest's MSI controller, an ITS, and the device ID of requester ID 0.
    pub msi: Option<(u32, u32)>,
    /// The guest's interrupts for INTA to INTD, as the guest's GIC has them.
    pub pins: Option<[[u32; 3]; 4]>,
}

impl GuestBridge {
    /// A bridge with configuration space at `ecam` of the guest, without interrupts.
    #[must_use]
    pub const fn new(ecam: u64, buses: RangeInclusive<u8>) -> Self {
        Self { ecam, buses, segment: None, msi: None, pins: None }
    }
}

/// Writes a host bridge with the windows of `node`. `name` is its name in the guest.
pub(super) fn write(
    node: &Node<'_, '_>,
    name: &str,
    bridge: &GuestBridge,
    view: &mut dyn GuestView,
    output: &mut Output<'_>,
) -> Result<(), GuestError> {
    output.writer.begin(name)?;
    output.writer.property("compatible", b"pci-host-ecam-generic\0")?;
    output.writer.property("device_type", b"pci\0")?;
    let mut registers = Value::default();
    registers.number(bridge.ecam)?;
    registers.number(ecam_size(bridge))?;
    output.writer.property(REG, registers.bytes())?;
    output.writer.property(ADDRESS_CELLS, &3_u32.to_be_bytes())?;
    output.writer.property(SIZE_CELLS, &2_u32.to_be_bytes())?;
    let buses = [u32::from(*bridge.buses.start()), u32::from(*bridge.buses.end())];
    output.writer.property("bus-range", Value::cells(&buses)?.bytes())?;
    let windows = windows(node, view)?;
    if !windows.is_empty() {
        output.writer.property(RANGES, windows.bytes())?;
    }
    if is_coherent(node) {
        output.writer.property("dma-coherent", &[])?;
    }
    if let Some(segment) = bridge.segment {
        output.writer.property("linux,pci-domain", &u32::from(segment).to_be_bytes())?;
    }
    if let Some((controller, first)) = bridge.msi {
        output.writer.property("msi-map", Value::cells(&[0, controller, first, 0x1_0000])?.bytes())?;
    }
    if let Some(pins) = &bridge.pins {
        output.writer.property("#interrupt-cells", &1_u32.to_be_bytes())?;
        // Only the pin counts.
        output.writer.property("interrupt-map-mask", Value::cells(&[0, 0, 0, 7])?.bytes())?;
        let mut map = Value::default();
        for (pin, interrupt) in (1_u32..).zip(pins) {
            let entry = [0, 0, 0, pin, output.interrupt_controller];
            entry.iter().chain(interrupt).try_for_each(|cell| map.cell(*cell))?;
        }
        output.writer.property("interrupt-map", map.bytes())?;
    }
    output.writer.end()?;
    Ok(())
}

/// The bridge's name in the guest.
pub(super) fn name(bridge: &GuestBridge) -> Result<alloc::string::String, GuestError> {
    Ok(node_name("pcie", Some(bridge.ecam))?)
}

fn ecam_size(bridge: &GuestBridge) -> u64 {
    let buses = u64::from(*bridge.buses.end()).saturating_sub(u64::from(*bridge.buses.start())).saturating_add(1);
    buses << 20
}

/// The host's windows, where the guest has them: PCI address as on the host, guest address, size. One that the guest does
/// not have is left out.
fn windows(node: &Node<'_, '_>, view: &mut dyn GuestView) -> Result<Value, GuestError> {
    let mut value = Value::default();
    let Some(ranges) = node.property(RANGES) else { return Ok(value) };
    let parent_cells = node.parent().map_or(Ok(2), |parent| parent.address_cells())?;
    let (child_cells, size_cells) = (node.address_cells()?, node.size_cells()?);
    if child_cells != 3 {
        let fault = NodeFault::CellCount { property: ADDRESS_CELLS, count: child_cells, allowed: "3" };
        return Err(node.error(fault).into());
    }
    let mut cells = node.entries(RANGES, ranges.value(), &[child_cells, parent_cells, size_cells])?;
    while !cells.is_empty() {
        let (Some(kind), Some(high), Some(low)) = (cells.next(), cells.next(), cells.next()) else { break };
        let base = node.number(RANGES, &mut cells, parent_cells)?;
        let size = node.number(RANGES, &mut cells, size_cells)?;
        // The space code: 0 is configuration space, which is no window.
        if kind >> 24 & 3 == 0 || size == 0 {
            continue;
        }
        let window = node.as_the_cpu_sees(node.region(RANGES, base, size)?)?;
        let place =
            view.place(window).and_then(|base| base.checked_add(size.saturating_sub(1)).map(|_| Region { base, size }));
        if let Some(place) = place {
            [kind, high, low].iter().try_for_each(|cell| value.cell(*cell))?;
            value.number(place.base())?;
            value.number(place.size())?;
        }
    }
    Ok(value)
}
