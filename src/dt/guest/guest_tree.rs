//! The tree for a guest: what it was assigned, below one bus.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::dependencies::Missing;
use super::guest_bridge::{self, GuestBridge};
use super::guest_error::GuestError;
use super::output::{Output, copy};
use super::subtree::{self, GuestLayout, GuestView, placed};
use super::values::{Value, dma_ranges, node_name, numbered};
use crate::dt::cells::{ADDRESS_CELLS, DMA_RANGES, RANGES, SIZE_CELLS};
use crate::dt::flatten::Writer;
use crate::dt::mmu_masters::is_pci;
use crate::dt::tree::{Node, NodeId};
use crate::dt::{Board, DtError};
use crate::few;

/// A guest's tree in the making.
///
/// ```no_run
/// # use iommu_assign::dt::{Board, Interrupt, NodeId, guest::{GuestError, GuestLayout, GuestTree, GuestView}};
/// struct Guest;
///
/// impl GuestView for Guest {
///     // The guest's interrupts have the host's numbers, and both have a GIC.
///     fn interrupt(&mut self, interrupt: &Interrupt<'_>) -> Option<[u32; 3]> {
///         let mut cells = interrupt.specifier();
///         Some([cells.next()?, cells.next()?, cells.next()?])
///     }
/// }
///
/// # fn show(board: &Board<'_>, node: NodeId) -> Result<(), GuestError> {
/// let mut tree = GuestTree::new(board, GuestLayout::new(0xfde8, 0x100))?;
/// tree.device(node, &mut Guest)?;
/// let part = tree.finish()?;
/// for missing in &part.missing {
///     println!("{}: {:?} {:?}", missing.node, missing.kind, missing.name);
/// }
/// # Ok(())
/// # }
/// ```
pub struct GuestTree<'b, 'a> {
    board: &'b Board<'a>,
    layout: GuestLayout,
    writer: Writer,
    missing: Vec<Missing>,
    next_phandle: u32,
    /// What stands on the bus: its name in the guest, its path on the host.
    shown: Vec<(String, String)>,
}

/// What a guest gets to see.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuestPart {
    /// The tree as a blob: the bus `/passthrough` with the nodes.
    pub blob: Vec<u8>,
    /// What the nodes depend on and the guest's tree does not have: the integrator emulates it, leaves it as firmware set it
    /// up, or the device does not work in the guest.
    pub missing: Vec<Missing>,
}

impl<'b, 'a> GuestTree<'b, 'a> {
    /// A tree without nodes.
    ///
    /// # Errors
    ///
    /// [`GuestError::Tree`] where there is no memory.
    pub fn new(board: &'b Board<'a>, layout: GuestLayout) -> Result<Self, GuestError> {
        let mut writer = Writer::default();
        writer.begin("")?;
        writer.property(ADDRESS_CELLS, &2_u32.to_be_bytes())?;
        writer.property(SIZE_CELLS, &2_u32.to_be_bytes())?;
        writer.begin("passthrough")?;
        writer.property("compatible", b"simple-bus\0")?;
        write_bus(&mut writer)?;
        writer.property("interrupt-parent", &layout.interrupt_controller.to_be_bytes())?;
        let (missing, shown) = (Vec::new(), Vec::new());
        Ok(Self { board, layout, writer, missing, next_phandle: layout.first_phandle, shown })
    }

    /// Adds a node with what is below it: one of [`Board::devices`], or another one that the guest may reach. Its streams
    /// are not shown; that it is assigned is the caller's to see to.
    ///
    /// Properties of bindings that are known not to refer to other nodes, and those of vendors, are copied. Those that
    /// refer to a node that is not copied are left out and listed. Every property with an IOMMU in its name is left out, and
    /// every IOMMU below the node.
    ///
    /// # Errors
    ///
    /// [`GuestError::Disabled`], [`GuestError::HostBridge`], [`GuestError::Iommu`], [`GuestError::NotPlaced`], [`GuestError::SameName`],
    /// [`GuestError::PhandlesExhausted`], [`GuestError::Tree`] for registers or interrupts that cannot be followed.
    pub fn device(&mut self, node: NodeId, view: &mut dyn GuestView) -> Result<(), GuestError> {
        let node = self.board.tree().node(node).ok_or(GuestError::NoNode)?;
        if !node.is_enabled() {
            return Err(GuestError::Disabled { path: node.path()? });
        }
        if subtree::is_iommu(self.board, &node) {
            return Err(GuestError::Iommu { path: node.path()? });
        }
        if is_pci(&node)? {
            return Err(GuestError::HostBridge { path: node.path()? });
        }
        let places = placed(&node, view)?;
        let name = node_name(node.name(), places.first().map(|place| place.base()))?;
        self.add(&node, name, |board, name, output| subtree::write(board, &node, name, &places, view, output))
    }

    /// Adds a host bridge, with the windows of the host bridge that `node` is, for assigned functions behind it.
    ///
    /// # Errors
    ///
    /// [`GuestError::SameName`], [`GuestError::Tree`] for `ranges` that cannot be followed.
    pub fn host_bridge(
        &mut self,
        node: NodeId,
        bridge: &GuestBridge,
        view: &mut dyn GuestView,
    ) -> Result<(), GuestError> {
        let node = self.board.tree().node(node).ok_or(GuestError::NoNode)?;
        self.add(&node, guest_bridge::name(bridge)?, |_, name, output| {
            guest_bridge::write(&node, name, bridge, view, output)
        })
    }

    /// The tree, and what its nodes miss.
    ///
    /// # Errors
    ///
    /// [`GuestError::Tree`] where there is no memory.
    pub fn finish(mut self) -> Result<GuestPart, GuestError> {
        self.writer.end()?;
        self.writer.end()?;
        // A guest's memory is its own: nothing is reserved.
        let blob = self.writer.finish(&[0; 16], 0)?;
        Ok(GuestPart { blob, missing: self.missing })
    }

    /// Writes a node with `write`, in a bus of its own where its DMA addresses are others than its SMMU's. What fails leaves
    /// nothing behind.
    fn add(
        &mut self,
        node: &Node<'_, '_>,
        name: String,
        write: impl FnOnce(&Board<'a>, &str, &mut Output<'_>) -> Result<(), GuestError>,
    ) -> Result<(), GuestError> {
        let path = node.path()?;
        if let Some((_, other)) = self.shown.iter().find(|shown| shown.0 == name) {
            return Err(GuestError::SameName { path, name, other: copy(other)? });
        }
        self.shown.try_reserve(1)?;
        let (mark, missing, phandle) = (self.writer.mark(), self.missing.len(), self.next_phandle);
        let written = self.write(node, &name, write);
        match written {
            Ok(()) => _ = few::push_within(&mut self.shown, (name, path)),
            Err(_) => {
                self.writer.back_to(mark);
                self.missing.truncate(missing);
                self.next_phandle = phandle;
            }
        }
        written
    }

    fn write(
        &mut self,
        node: &Node<'_, '_>,
        name: &str,
        write: impl FnOnce(&Board<'a>, &str, &mut Output<'_>) -> Result<(), GuestError>,
    ) -> Result<(), GuestError> {
        let dma = dma_above(node)?;
        if let Some(dma) = &dma {
            let place = u64::try_from(self.shown.len()).map_err(|_| DtError::TooLarge)?;
            self.writer.begin(&numbered("dma-bus", place)?)?;
            self.writer.property("compatible", b"simple-bus\0")?;
            write_bus(&mut self.writer)?;
            self.writer.property(DMA_RANGES, dma.bytes())?;
        }
        let mut output = Output {
            writer: &mut self.writer,
            missing: &mut self.missing,
            next_phandle: &mut self.next_phandle,
            interrupt_controller: self.layout.interrupt_controller,
        };
        write(self.board, name, &mut output)?;
        if dma.is_some() {
            self.writer.end()?;
        }
        Ok(())
    }
}

/// A bus whose addresses are the root's.
fn write_bus(writer: &mut Writer) -> Result<(), DtError> {
    writer.property(ADDRESS_CELLS, &2_u32.to_be_bytes())?;
    writer.property(SIZE_CELLS, &2_u32.to_be_bytes())?;
    writer.property(RANGES, &[])
}

/// The `dma-ranges` of the nearest bus above that translates, as if it stood below the root. Those of buses above it are in its
/// parent addresses.
fn dma_above(node: &Node<'_, '_>) -> Result<Option<Value>, DtError> {
    for bus in node.ancestors() {
        if let Some(value) = dma_ranges(&bus, true)? {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

impl fmt::Debug for GuestTree<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestTree").field("shown", &self.shown).field("missing", &self.missing.len()).finish()
    }
}
