//! Where message signalled interrupts go (bindings `msi` and `pci-msi`; contract S-7).
//!
//! An MSI is a DMA write to a doorbell, and an SMMU treats it as any other: a guest's device can interrupt only where
//! the doorbell is mapped in the guest's stage 2. That table is the CPU's too, so what is mapped for the device is the
//! guest's to write with any value. Whether this is safe is the controller's matter: an ITS looks the value up in a
//! table of the device that wrote it; a GICv2m frame raises whatever interrupt of its own the value names, whoever wrote.
//!
//! Controllers of other kinds are listed without a doorbell: what is not known is not guessed.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::cells::{Cells, Region};
use super::references::resolve;
use super::tree::{Node, NodeId};
use super::{DtError, NodeFault};
use crate::assign::{Granule, PhysicalAddress};
use crate::few;
use crate::pci::id_range::{self, IdRange};
use crate::pci::{MapFault, RequesterId, RequesterIdMap};

/// Where the MSIs of a node go, and of the PCI functions below it if it is a host bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Msi {
    /// The controllers that the node names, each once, in the order of the blob.
    pub controllers: Vec<MsiController>,
    /// Where the node's own MSIs can go (`msi-parent`).
    pub own: Vec<MsiTarget>,
    /// Whose the MSIs of requester IDs below are (`msi-map`), where the node says.
    pub map: Option<MsiMap>,
    /// What is wrong with the node's `msi-parent`, where it has a map, which counts: where the node's own MSIs go is not
    /// known then.
    pub own_error: Option<DtError>,
}

impl Msi {
    /// The controller that `node` is, if it is one of these.
    #[must_use]
    pub fn controller(&self, node: NodeId) -> Option<&MsiController> {
        self.controllers.iter().find(|controller| controller.node == node)
    }

    /// Where a function's MSIs can go: any of these controllers, each once.
    ///
    /// Without an `msi-map` the binding lets functions use the host bridge's controllers, and says no ID of theirs.
    ///
    /// # Errors
    ///
    /// [`UnmappedMsi`] where the host bridge has an `msi-map`, and no entry holds the requester ID: no MSI of the function
    /// reaches a controller.
    pub fn targets(&self, rid: RequesterId) -> Result<impl Iterator<Item = MsiTarget> + '_, UnmappedMsi> {
        let bridge = if self.map.is_none() { self.own.as_slice() } else { &[] };
        let bridge = bridge.iter().map(|target| MsiTarget { controller: target.controller, id: None });
        let mapped = self.map.iter().flat_map(move |map| map.hits(rid));
        if self.map.is_some() && mapped.clone().next().is_none() {
            return Err(UnmappedMsi { rid });
        }
        Ok(bridge.chain(mapped))
    }

    /// What a guest could interrupt that has all these doorbells mapped: the worst that is known of one.
    #[must_use]
    pub fn isolation(&self) -> MsiIsolation {
        self.controllers.iter().map(MsiController::isolation).max().unwrap_or(MsiIsolation::Unknown)
    }
}

/// An MSI controller.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MsiController {
    /// The node.
    pub node: NodeId,
    /// Full path of the node.
    pub path: String,
    /// Whether the node and all its ancestors are enabled.
    pub enabled: bool,
    /// What it is.
    pub kind: MsiControllerKind,
    /// Where MSIs are written; `None` for a controller of unknown kind.
    pub doorbell: Option<Doorbell>,
}

impl MsiController {
    /// Whether it tells devices apart.
    #[must_use]
    pub const fn isolation(&self) -> MsiIsolation {
        match self.kind {
            MsiControllerKind::GicV3Its => MsiIsolation::ByDevice,
            MsiControllerKind::GicV2m => MsiIsolation::NotIsolated,
            MsiControllerKind::Unknown => MsiIsolation::Unknown,
        }
    }
}

/// What an MSI controller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum MsiControllerKind {
    /// An interrupt translation service of GICv3 or later.
    GicV3Its,
    /// An MSI frame of GICv2m.
    GicV2m,
    /// Another one: where its doorbell is, and whom it tells apart, is not known here.
    Unknown,
}

/// Who can raise which interrupts of a controller; from good to bad.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum MsiIsolation {
    /// A device raises only what the hypervisor entered for its ID. Devices with one ID are not told apart.
    ByDevice,
    /// Nothing is known of the controller, or none is named.
    Unknown,
    /// Whoever reaches the doorbell raises any interrupt of the controller.
    NotIsolated,
}

/// Where MSIs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Doorbell {
    register: PhysicalAddress,
    frame: Region,
}

impl Doorbell {
    /// The register that is written, as the CPU addresses it.
    #[must_use]
    pub const fn register(self) -> PhysicalAddress {
        self.register
    }

    /// The registers around it that are made to be reached by devices, as the CPU addresses them.
    #[must_use]
    pub const fn frame(self) -> Region {
        self.frame
    }

    /// The page to map in the stage 2 of a guest that gets a device.
    #[must_use]
    pub const fn page(self, granule: Granule) -> PhysicalAddress {
        PhysicalAddress::new(self.register.value() >> granule.page_shift() << granule.page_shift())
    }

    /// Whether that page ends where the frame does or before. If not, the guest reaches what else is in the page.
    #[must_use]
    pub fn has_page(self, granule: Granule) -> bool {
        let first = self.page(granule).value();
        let more = (1_u64 << granule.page_shift()).saturating_sub(1);
        let last = self.frame.base().saturating_add(self.frame.size().saturating_sub(1));
        self.frame.base() <= first && first.saturating_add(more) <= last
    }
}

/// A controller that MSIs can go to, and the ID that they carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct MsiTarget {
    /// The controller.
    pub controller: NodeId,
    /// The ID: an ITS calls it `DeviceID`. `None` where firmware says none.
    pub id: Option<u32>,
}

/// The `msi-map` of a host bridge: the requester ID is masked, then each entry that holds it names a controller.
///
/// # Invariants
///
/// As of [`RequesterIdMap`], but that entries for different controllers may hold one requester ID: its MSIs can go to
/// either.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsiMap {
    entries: Vec<MsiMapEntry>,
    mask: u32,
}

impl MsiMap {
    /// The entries that map something, ascending by requester ID.
    #[must_use]
    pub fn entries(&self) -> &[MsiMapEntry] {
        &self.entries
    }

    /// The bits of a requester ID that count (`msi-map-mask`).
    #[must_use]
    pub const fn mask(&self) -> u32 {
        self.mask
    }

    fn hits(&self, rid: RequesterId) -> impl Iterator<Item = MsiTarget> + Clone + '_ {
        let masked = u32::from(rid.0) & self.mask;
        let hit = move |entry: &MsiMapEntry| {
            Some(MsiTarget { controller: entry.controller, id: Some(entry.range().id_of(masked)?) })
        };
        self.entries.iter().filter_map(hit)
    }
}

/// Requester ID `rid_base + n` is MSI ID `id_base + n` at `controller`, for n below `length`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct MsiMapEntry {
    /// The first requester ID, after the map's mask.
    pub rid_base: u32,
    /// The controller.
    pub controller: NodeId,
    /// The first MSI ID.
    pub id_base: u32,
    /// How many IDs.
    pub length: u32,
}

impl fmt::Debug for MsiMapEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rid_base, controller, id_base, length } = self;
        write!(f, "MsiMapEntry({rid_base:#x} + {length:#x} -> {id_base:#x} at {controller:?})")
    }
}

impl MsiMapEntry {
    const fn range(&self) -> IdRange {
        IdRange { rid_base: self.rid_base, id_base: self.id_base, length: self.length }
    }
}

/// A function whose MSIs reach no controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("requester ID {rid} is in no entry of the host bridge's `msi-map`")]
pub struct UnmappedMsi {
    /// Its requester ID.
    pub rid: RequesterId,
}

/// What `node` says of MSIs; `None` where it says nothing.
pub(super) fn read(node: &Node<'_, '_>) -> Result<Option<Msi>, DtError> {
    if node.property(PARENT).is_none() && node.property(MAP).is_none() {
        return Ok(None);
    }
    let map = read_map(node)?;
    let parents = read_parents(node).and_then(|own| {
        let controllers = own.iter().filter_map(|target| node.tree().node(target.controller));
        controllers.map(|controller| read_controller(&controller)).try_for_each(|read| read.map(drop))?;
        Ok(own)
    });
    let (own, own_error) = match parents {
        Ok(own) => (own, None),
        Err(error @ DtError::Node { .. }) if map.is_some() => (Vec::new(), Some(error)),
        Err(error) => return Err(error),
    };
    let entries = map.iter().flat_map(|map| &map.entries).map(|entry| entry.controller);
    let mut named: Vec<NodeId> = Vec::new();
    for id in own.iter().map(|target| target.controller).chain(entries) {
        few::push(&mut named, id)?;
    }
    few::sort(&mut named, &|one, other| one < other);
    named.dedup();
    let mut controllers = Vec::new();
    for controller in named.into_iter().filter_map(|id| node.tree().node(id)) {
        few::push(&mut controllers, read_controller(&controller)?)?;
    }
    Ok(Some(Msi { controllers, own, map, own_error }))
}

fn read_parents(node: &Node<'_, '_>) -> Result<Vec<MsiTarget>, DtError> {
    let mut targets = Vec::new();
    let Some(property) = node.property(PARENT) else { return Ok(targets) };
    let (mut cells, broken) = Cells::whole_cells(property.value());
    while !cells.is_empty() || broken {
        let entry = targets.len();
        let truncated = || node.error(NodeFault::Truncated { property: PARENT, entry });
        let target = controller(node, PARENT, entry, cells.next().ok_or_else(truncated)?)?;
        let mut specifier = cells.split(target.u32(MSI_CELLS)?.unwrap_or(0)).ok_or_else(truncated)?;
        // What two cells mean would be for a binding to say that is not known here.
        let id = specifier.next().filter(|_| specifier.is_empty());
        few::push(&mut targets, MsiTarget { controller: target.id(), id })?;
    }
    Ok(targets)
}

fn read_map(node: &Node<'_, '_>) -> Result<Option<MsiMap>, DtError> {
    let Some(property) = node.property(MAP) else { return Ok(None) };
    let value = property.value();
    let (mut cells, _) = Cells::whole_cells(value);
    if !value.len().is_multiple_of(16) {
        return Err(node.error(NodeFault::LengthMultiple { property: MAP, length: value.len(), entry: 16 }));
    }
    let mut entries = Vec::new();
    while let (Some(rid_base), Some(phandle), Some(id_base), Some(length)) =
        (cells.next(), cells.next(), cells.next(), cells.next())
    {
        let target = controller(node, MAP, entries.len(), phandle)?;
        match target.u32(MSI_CELLS)? {
            // Trees older than `#msi-cells` have maps to an ITS all the same.
            None | Some(0 | 1) => {}
            Some(count) => {
                return Err(target.error(NodeFault::CellCount { property: MSI_CELLS, count, allowed: "0 or 1" }));
            }
        }
        few::push(&mut entries, MsiMapEntry { rid_base, controller: target.id(), id_base, length })?;
    }
    let mask = node.u32("msi-map-mask")?.unwrap_or(RequesterIdMap::NO_MASK);
    let same_controller = |one: &MsiMapEntry, other: &MsiMapEntry| one.controller == other.controller;
    let entries = id_range::checked(entries, mask, MsiMapEntry::range, same_controller);
    let entries = entries.map_err(|fault| match fault {
        MapFault::OutOfMemory => DtError::OutOfMemory,
        fault => node.error(NodeFault::Map { property: MAP, fault }),
    })?;
    Ok(Some(MsiMap { entries, mask }))
}

/// The MSI controller that an entry's phandle names.
fn controller<'t, 'a>(
    node: &Node<'t, 'a>,
    property: &'static str,
    entry: usize,
    phandle: u32,
) -> Result<Node<'t, 'a>, DtError> {
    let target = resolve(node, property, entry, phandle)?;
    if target.property("msi-controller").is_none() {
        return Err(node.error(NodeFault::NoMsiController { property, entry, target: target.path()? }));
    }
    Ok(target)
}

fn read_controller(node: &Node<'_, '_>) -> Result<MsiController, DtError> {
    let kind = node.strings("compatible")?.find_map(|name| match name {
        "arm,gic-v3-its" => Some(MsiControllerKind::GicV3Its),
        "arm,gic-v2m-frame" => Some(MsiControllerKind::GicV2m),
        _ => None,
    });
    // Between such an ITS and its devices is a part that has the doorbells, and makes the IDs from the address written.
    let kind = kind.filter(|_| node.property("socionext,synquacer-pre-its").is_none());
    let kind = kind.unwrap_or(MsiControllerKind::Unknown);
    let doorbell = match kind {
        MsiControllerKind::GicV3Its => Some(doorbell(node, TRANSLATION_FRAME, TRANSLATER)?),
        MsiControllerKind::GicV2m => Some(doorbell(node, 0, SETSPI)?),
        MsiControllerKind::Unknown => None,
    };
    Ok(MsiController { node: node.id(), path: node.path()?, enabled: node.is_enabled(), kind, doorbell })
}

/// The doorbell `register` bytes into the node's registers; those for devices are 64 KiB at most, from `frame` on.
fn doorbell(node: &Node<'_, '_>, frame: u64, register: u64) -> Result<Doorbell, DtError> {
    let regions = node.regions()?;
    let missing = || node.error(NodeFault::MissingProperty { property: "reg" });
    let registers = *regions.first().ok_or_else(missing)?;
    if registers.size() < register.saturating_add(4) {
        return Err(node.error(NodeFault::DoorbellOutside { offset: register, size: registers.size() }));
    }
    // The region holds the register, so that neither sum wraps.
    let base = registers.base().saturating_add(frame);
    let size = registers.size().saturating_sub(frame).min(TRANSLATION_FRAME);
    let register = PhysicalAddress::new(registers.base().saturating_add(register));
    Ok(Doorbell { register, frame: Region { base, size } })
}

const MAP: &str = "msi-map";
const MSI_CELLS: &str = "#msi-cells";
const PARENT: &str = "msi-parent";

/// The ITS's registers for devices are the second 64 KiB (GICv3 architecture, the ITS register map); in a system with
/// GICv4.1 other ones follow.
const TRANSLATION_FRAME: u64 = 0x1_0000;
/// `GITS_TRANSLATER`.
const TRANSLATER: u64 = 0x1_0040;
/// `MSI_SETSPI_NS` of a GICv2m frame.
const SETSPI: u64 = 0x40;
