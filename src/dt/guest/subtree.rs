//! One assigned node with what is below it, as its guest sees it.
//!
//! Registers get the addresses that they have in the guest, in buses whose addresses are the root's. A bus that has no
//! `ranges`, such as an MDIO bus, stays as it is: its children's addresses are no memory. A disabled node, a device with
//! streams of its own, a host bridge and an IOMMU are left out, with what is below.

use alloc::string::String;
use alloc::vec::Vec;

use super::dependencies::{Binding, Dependency, Missing, Treatment, treatment};
use super::guest_error::GuestError;
use super::output::{Output, copy};
use super::values::{Value, dma_ranges, node_name, reg};
use crate::dt::cells::{ADDRESS_CELLS, Cells, DMA_RANGES, RANGES, REG, SIZE_CELLS};
use crate::dt::mmu_masters::is_pci;
use crate::dt::references::{IOMMU_CELLS, MMU_MASTERS};
use crate::dt::specifiers::IOMMUS;
use crate::dt::tree::{Node, NodeId, Refused};
use crate::dt::{Board, DtError, Interrupt, Region, iommu_map, smmu};
use crate::few;

/// What is free in the guest's tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuestLayout {
    /// The phandle of the guest's interrupt controller, a GIC: its interrupts take three cells.
    pub interrupt_controller: u32,
    /// The first phandle for nodes that are copied and referred to; those behind it are free, too.
    pub first_phandle: u32,
}

impl GuestLayout {
    /// A layout with these two.
    #[must_use]
    pub const fn new(interrupt_controller: u32, first_phandle: u32) -> Self {
        Self { interrupt_controller, first_phandle }
    }
}

/// What the integrator has in the guest.
pub trait GuestView {
    /// Where registers that are at `registers` on the host are in the guest's physical address space; `None` where the guest
    /// does not have them. Without an answer of the integrator's own they are where the host has them.
    fn place(&mut self, registers: Region) -> Option<u64> {
        Some(registers.base())
    }

    /// The specifier that a device's interrupt has at the guest's GIC; `None` where the guest does not get it.
    fn interrupt(&mut self, interrupt: &Interrupt<'_>) -> Option<[u32; 3]>;
}

/// A node that is copied.
#[derive(Clone, Copy, Default)]
struct Copied {
    /// Its phandle in the guest.
    phandle: Option<u32>,
    /// Whether it is a bus whose children's registers are memory.
    is_memory_bus: bool,
}

/// The nodes from `top` on, in the order of the blob; `None` for one that is left out.
struct Subtree<'s, 't, 'a> {
    board: &'s Board<'a>,
    top: Node<'t, 'a>,
    copied: Vec<Option<Copied>>,
}

/// Writes `top` with what is below it. `name` is its name in the guest, `places` are its registers there.
pub(super) fn write(
    board: &Board<'_>,
    top: &Node<'_, '_>,
    name: &str,
    places: &[Region],
    view: &mut dyn GuestView,
    output: &mut Output<'_>,
) -> Result<(), GuestError> {
    let subtree = Subtree::new(board, *top, output)?;
    let mut open: Vec<NodeId> = Vec::new();
    let mut names: Vec<(NodeId, String, NodeId)> = Vec::new();
    for node in board.tree().nodes().skip(top.id().index()).take(subtree.copied.len()) {
        let Some(copied) = subtree.copied(node.id()) else { continue };
        if node.id() == top.id() {
            output.writer.begin(name)?;
            subtree.write_top(places, output)?;
        } else {
            let Some(parent) = node.parent() else { continue };
            while open.last().is_some_and(|last| *last != parent.id()) {
                open.pop();
                output.writer.end()?;
            }
            let in_memory = subtree.copied(parent.id()).is_some_and(|parent| parent.is_memory_bus);
            let places = if in_memory { placed(&node, view)? } else { Vec::new() };
            let name = node_name(node.name(), places.first().map(|place| place.base()))?;
            if let Some((_, _, other)) = names.iter().find(|known| known.0 == parent.id() && known.1 == name) {
                let other = board.tree().path_of(*other)?;
                return Err(GuestError::SameName { path: node.path()?, name, other });
            }
            output.writer.begin(&name)?;
            few::push(&mut names, (parent.id(), name, node.id()))?;
            match node.property(REG) {
                Some(_) if in_memory => output.writer.property(REG, reg(&places)?.bytes())?,
                Some(property) => output.writer.property(REG, property.value())?,
                None => {}
            }
        }
        few::push(&mut open, node.id())?;
        subtree.write_bus(&node, copied, output)?;
        subtree.write_interrupts(&node, view, output)?;
        subtree.write_others(&node, output)?;
        if let Some(phandle) = copied.phandle {
            output.writer.property("phandle", &phandle.to_be_bytes())?;
        }
    }
    for _ in open {
        output.writer.end()?;
    }
    Ok(())
}

/// The registers of `node` where the guest has them.
pub(super) fn placed(node: &Node<'_, '_>, view: &mut dyn GuestView) -> Result<Vec<Region>, GuestError> {
    let mut places = Vec::new();
    for region in node.regions()? {
        let place = view.place(region).and_then(|base| {
            base.checked_add(region.size().saturating_sub(1)).map(|_| Region { base, size: region.size() })
        });
        let Some(place) = place else {
            let (base, size) = (region.base(), region.size());
            return Err(GuestError::NotPlaced { path: node.path()?, base, size });
        };
        few::push(&mut places, place)?;
    }
    Ok(places)
}

impl<'s, 't, 'a> Subtree<'s, 't, 'a> {
    /// Decides what is copied, and gives phandles.
    fn new(board: &'s Board<'a>, top: Node<'t, 'a>, output: &mut Output<'_>) -> Result<Self, GuestError> {
        let mut subtree = Self { board, top, copied: Vec::new() };
        let first = top.id().index();
        for node in board.tree().nodes().skip(first) {
            let is_top = node.id() == top.id();
            let above = node.parent().filter(|_| !is_top);
            if above.is_some_and(|above| above.id().index() < first) || above.is_none() && !is_top {
                break;
            }
            let above = above.map(|above| subtree.copied(above.id()));
            let iommu = is_iommu(board, &node);
            let another = !is_top && (iommu || is_another(board, &node)?);
            let mut copied = None;
            if another && !iommu && matches!(above, Some(Some(_))) && node.is_enabled() {
                let node = node.path()?;
                let target = Some(copy(&node)?);
                let (kind, specifier) = (Dependency::Device, Vec::new());
                output.add(Missing { node, kind, property: None, name: None, target, specifier })?;
            } else if !matches!(above, Some(None)) && node.is_enabled() && !another {
                // Below a bus that is no memory nothing is.
                let in_memory = above.flatten().is_none_or(|above| above.is_memory_bus);
                let is_memory_bus = in_memory && node.property(RANGES).is_some();
                let phandle = node.phandle().map(|_| output.phandle(&node)).transpose()?;
                copied = Some(Copied { phandle, is_memory_bus });
            }
            few::push(&mut subtree.copied, copied)?;
        }
        Ok(subtree)
    }

    fn copied(&self, node: NodeId) -> Option<Copied> {
        let at = node.index().checked_sub(self.top.id().index())?;
        self.copied.get(at).copied().flatten()
    }

    /// The phandle in the guest of the node that has `phandle` on the host, if it is copied.
    fn phandle(&self, phandle: u32) -> Option<u32> {
        self.copied(self.board.tree().by_phandle(phandle)?.id())?.phandle
    }

    /// What the top node has from above.
    fn write_top(&self, places: &[Region], output: &mut Output<'_>) -> Result<(), GuestError> {
        if self.top.property(REG).is_some() {
            output.writer.property(REG, reg(places)?.bytes())?;
        }
        if is_coherent(&self.top) {
            output.writer.property("dma-coherent", &[])?;
        }
        Ok(())
    }

    /// How addresses below the node are to be read.
    fn write_bus(&self, node: &Node<'_, '_>, copied: Copied, output: &mut Output<'_>) -> Result<(), GuestError> {
        if copied.is_memory_bus {
            output.writer.property(ADDRESS_CELLS, &2_u32.to_be_bytes())?;
            output.writer.property(SIZE_CELLS, &2_u32.to_be_bytes())?;
            output.writer.property(RANGES, &[])?;
            if let Some(property) = node.property(DMA_RANGES) {
                let value = dma_ranges(node, false)?;
                let bytes = value.as_ref().map_or(property.value(), Value::bytes);
                output.writer.property(DMA_RANGES, bytes)?;
            }
            return Ok(());
        }
        for name in [ADDRESS_CELLS, SIZE_CELLS, RANGES, DMA_RANGES] {
            if let Some(property) = node.property(name) {
                output.writer.property(name, property.value())?;
            }
        }
        Ok(())
    }

    fn write_interrupts(
        &self,
        node: &Node<'_, '_>,
        view: &mut dyn GuestView,
        output: &mut Output<'_>,
    ) -> Result<(), GuestError> {
        if let Some(property) = node.property("interrupt-map") {
            output.miss(node, Dependency::Interrupt, property.name(), None, None, &[])?;
        }
        let extended = node.property("interrupts-extended").is_some();
        let listed = if extended { "interrupts-extended" } else { "interrupts" };
        let (mut value, mut names, mut all_ours) = (Value::default(), Value::default(), true);
        let mut gic_only = Value::default();
        let mut all_names = node.strings("interrupt-names")?;
        for interrupt in smmu::interrupts(node)? {
            let name = all_names.next();
            let controller = interrupt.controller();
            if let Some(phandle) = self.copied(controller).and_then(|copied| copied.phandle) {
                all_ours = false;
                value.cell(phandle)?;
                interrupt.specifier().try_for_each(|cell| value.cell(cell))?;
            } else if let Some(cells) = view.interrupt(&interrupt) {
                value.cell(output.interrupt_controller)?;
                cells.iter().try_for_each(|cell| value.cell(*cell).and_then(|()| gic_only.cell(*cell)))?;
            } else {
                let mut specifier = Vec::new();
                for cell in interrupt.specifier() {
                    few::push(&mut specifier, cell)?;
                }
                let target = self.board.tree().node(controller);
                output.miss(node, Dependency::Interrupt, listed, name, target, &specifier)?;
                continue;
            }
            if let Some(name) = name {
                names.text(name)?;
            }
        }
        // The guest's bus names its interrupt controller.
        let (property, written) = if all_ours { ("interrupts", &gic_only) } else { ("interrupts-extended", &value) };
        if !written.is_empty() {
            output.writer.property(property, written.bytes())?;
        }
        if !names.is_empty() {
            output.writer.property("interrupt-names", names.bytes())?;
        }
        Ok(())
    }

    fn write_others(&self, node: &Node<'_, 'a>, output: &mut Output<'_>) -> Result<(), GuestError> {
        for property in node.properties() {
            match treatment(property.name()) {
                Treatment::Dropped => {}
                Treatment::Copied => output.writer.property(property.name(), property.value())?,
                Treatment::Refers(binding) => {
                    let written = self.references(node, property.name(), property.value(), binding, output)?;
                    let Some(written) = written else { continue };
                    output.writer.property(property.name(), written.bytes())?;
                    if let Some(names) = binding.names.and_then(|names| node.property(names)) {
                        output.writer.property(names.name(), names.value())?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The list for the guest, if each entry is copied with the node; else what is not is missed.
    fn references(
        &self,
        node: &Node<'_, '_>,
        property: &str,
        value: &[u8],
        binding: Binding,
        output: &mut Output<'_>,
    ) -> Result<Option<Value>, GuestError> {
        let tree = self.board.tree();
        let mut names = binding
            .names
            .and_then(|names| node.property(names))
            .and_then(|names| core::str::from_utf8(names.value()).ok().map(|names| names.split_terminator('\0')));
        let (mut cells, broken) = Cells::whole_cells(value);
        let (mut written, mut is_whole, mut entry) = (Value::default(), !broken, 0_usize);
        while let Some(phandle) = cells.next() {
            // An interconnect's path has two ends and one name.
            let is_named = binding.kind != Dependency::Interconnect || entry.is_multiple_of(2);
            let name = if is_named { names.as_mut().and_then(Iterator::next) } else { None };
            entry = entry.saturating_add(1);
            if phandle == 0 {
                // Nothing is referred to here.
                written.cell(0)?;
                continue;
            }
            let target = tree.by_phandle(phandle);
            let count = target.and_then(|target| count_of(&target, binding));
            let specifier = count.and_then(|count| cells.split(count));
            let Some(specifier) = specifier else {
                // How wide it is nobody knows, nor what follows.
                output.miss(node, binding.kind, property, name, target, &[])?;
                return Ok(None);
            };
            if let Some(phandle) = self.phandle(phandle) {
                written.cell(phandle)?;
                for cell in specifier {
                    written.cell(cell)?;
                }
                continue;
            }
            is_whole = false;
            let mut all = Vec::new();
            for cell in specifier {
                few::push(&mut all, cell).map_err(DtError::from)?;
            }
            output.miss(node, binding.kind, property, name, target, &all)?;
        }
        Ok(is_whole.then_some(written))
    }
}

/// Whether a node is an IOMMU of any kind.
pub(super) fn is_iommu(board: &Board<'_>, node: &Node<'_, '_>) -> bool {
    let says = [IOMMU_CELLS, MMU_MASTERS].into_iter().any(|name| node.property(name).is_some());
    says || smmu::find(board.smmus(), node.id()).is_some()
}

/// Whether DMA of a node goes its own way, whoever sees it: a device, the root of devices, or a node that could not be read as
/// either.
fn is_another(board: &Board<'_>, node: &Node<'_, '_>) -> Result<bool, DtError> {
    let says = [IOMMUS, iommu_map::MAP].into_iter().any(|name| node.property(name).is_some());
    Ok(says || board.device(node.id()).is_some() || node.refused() != Refused::No || is_pci(node)?)
}

/// How many cells a specifier for `target` has.
fn count_of(target: &Node<'_, '_>, binding: Binding) -> Option<u32> {
    let Some(cells) = binding.cells else { return Some(0) };
    match target.u32(cells) {
        Ok(Some(count)) => Some(count),
        // Older than the property: nothing followed.
        Ok(None) if matches!(cells, "#nvmem-cell-cells" | "#msi-cells" | "#thermal-sensor-cells") => Some(0),
        _ => None,
    }
}

/// Whether a node's DMA is coherent: what it says, or the nearest above that does.
pub(super) fn is_coherent(node: &Node<'_, '_>) -> bool {
    let says = |node: &Node<'_, '_>| {
        let yes = node.property("dma-coherent").map(|_| true);
        yes.or_else(|| node.property("dma-noncoherent").map(|_| false))
    };
    core::iter::once(*node).chain(node.ancestors()).find_map(|node| says(&node)).unwrap_or(false)
}
