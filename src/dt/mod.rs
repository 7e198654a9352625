//! Devices, SMMUs and host bridges as firmware's device tree describes them.
//!
//! A blob becomes a [`Tree`] in one validating walk; the tree becomes a [`Board`]: SMMUv1/v2 instances, the nodes
//! that they watch, and the host bridges whose functions they watch. Everything firmware says is checked once, here;
//! what cannot be followed is an error that names the node, never a guess and never a panic (contract A-6, A-8). One bad
//! node is enough for [`Board::read`]; [`Board::read_lenient`] goes on without it. Whether the hardware can hold a stream
//! ID is the driver's to check.
//!
//! ```no_run
//! # fn offer(service: &iommu_assign::assign::Service<iommu_assign::sync::Spin>, blob: &[u8]) -> Result<(), Box<dyn core::error::Error>> {
//! let board = iommu_assign::dt::Board::read(blob)?;
//! for device in board.devices() {
//!     match device.spec() {
//!         Ok(spec) => drop(service.add(spec)?),
//!         Err(reason) => println!("{} is not offered: {reason}", device.path),
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! | file | what |
//! |---|---|
//! | `blob_error.rs` | how the bytes can be malformed |
//! | `blob.rs` | the bytes: one checked walk from front to back |
//! | `unseen.rs` | why no SMMU sees a node's DMA |
//! | `dt_error.rs` | what can be wrong: with the blob, with a node |
//! | `tree.rs` | the nodes, their parents and their properties |
//! | `flatten.rs` | the way back: nodes and properties as a blob |
//! | `cells.rs` | typed values of properties; addresses as the CPU sees them |
//! | `refusal.rs` | nodes that are not offered, and why |
//! | `soundness.rs` | from a blob to a tree: names and phandles that two nodes share |
//! | `references.rs` | references to other nodes, by phandle |
//! | `smmu.rs` | SMMU nodes |
//! | `mmu_masters.rs` | the property `mmu-masters` of SMMUs, the old binding |
//! | `specifiers.rs` | the property `iommus` |
//! | `devices.rs` | nodes with streams of their own |
//! | `iommu_map.rs` | nodes with `iommu-map`: host bridges and others |
//! | `offer.rs` | what the service and PCI enumeration take of a node, or why nothing |
//! | `marked.rs` | nodes marked for passing through whose DMA no SMMU sees |
//! | `reserved.rs` | what firmware reserves of devices' address spaces (`iommu-addresses`) |
//! | `msi.rs` | where message signalled interrupts go |
//! | `pci_host.rs` | PCI host bridges as enumeration takes them |
//! | `guest/` | the tree that a guest gets of what it was assigned |
//! | `overlay/` | overlays: merged, compared, applied to the service and reverted |
//!
//! # Invariants
//!
//! D1. Each SMMU has a CPU address of its own, and each device a key of its own.
//! D2. Each stream, and each map entry that is not foreign, names an SMMU of the same [`Board`] by that address.
//! D3. `enabled` counts ancestors, everywhere.

mod blob_error;
mod blob;
mod unseen;
mod dt_error;
mod tree;
mod flatten;
mod cells;
mod refusal;
mod soundness;
mod references;
mod smmu;
mod mmu_masters;
mod specifiers;
mod devices;
mod iommu_map;
mod offer;
mod marked;
mod reserved;
mod msi;
mod pci_host;
pub mod overlay;
pub mod guest;

use alloc::vec::Vec;

pub use blob_error::{BlobError, BlobErrorKind, Block, MAX_DEPTH, MAX_NAME};
pub use cells::Region;
pub use devices::DtDevice;
pub use dt_error::{DtError, NodeFault};
pub use iommu_map::HostBridge;
pub use msi::{
    Doorbell, Msi, MsiController, MsiControllerKind, MsiIsolation, MsiMap, MsiMapEntry, MsiTarget, UnmappedMsi,
};
pub use offer::NotOffered;
pub use pci_host::{ConfigAccess, NoPciHost, PciHost};
pub use refusal::Refusal;
pub use reserved::ReservedRegion;
pub use smmu::{Interrupt, SmmuNode};
pub use specifiers::SpecifierCount;
pub use tree::{Node, NodeId, Property, Tree};
pub use unseen::Unseen;

use crate::assign::{IommuKey, Stage2};
use crate::smmu::Reserved;
use references::IOMMU_CELLS;
use refusal::Refusals;
use tree::Refused;

/// What a device tree says of SMMUs and of those whom they watch. Borrows names and values from the blob.
#[derive(Clone, Debug)]
pub struct Board<'a> {
    tree: Tree<'a>,
    smmus: Vec<SmmuNode<'a>>,
    devices: Vec<DtDevice>,
    host_bridges: Vec<HostBridge>,
    reserved: Vec<ReservedRegion>,
    refusals: Vec<Refusal>,
}

impl<'a> Board<'a> {
    /// Reads a flattened device tree, version 16 or 17. Bytes past its `totalsize` are ignored.
    ///
    /// A board without an SMMU is read too: [`Self::smmus`] is empty then.
    ///
    /// # Errors
    ///
    /// [`DtError::Blob`] for a malformed or truncated blob; [`DtError::Overlay`]; [`DtError::Node`] for a node that the tree has twice, for
    /// an SMMU whose registers, interrupts or `#iommu-cells` cannot be followed, and for an `iommus` or `iommu-map`
    /// that is malformed or refers to no IOMMU, be the node enabled or not; [`DtError::OutOfMemory`]. Of several bad
    /// nodes one is told.
    pub fn read(blob: &'a [u8]) -> Result<Self, DtError> {
        let mut board = Self::read_lenient(blob)?;
        board.refusals = Refusals::first(board.refusals)?;
        Ok(board)
    }

    /// The same, where one bad node does not take the board away: it is not offered, and is among [`Self::refusals`].
    ///
    /// With an SMMU whose node is bad go all that refer to it, with a node that is there twice or has a property twice all
    /// below it. Whatever is offered was read from sound nodes alone, as [`Self::read`] would have read it.
    ///
    /// # Errors
    ///
    /// [`DtError::Blob`], [`DtError::Overlay`], [`DtError::OutOfMemory`].
    pub fn read_lenient(blob: &'a [u8]) -> Result<Self, DtError> {
        let mut refusals = Refusals::default();
        let mut tree = Tree::read_lenient(blob, &mut refusals)?;
        if let Some(fragment) = tree.overlay_fragment() {
            return Err(DtError::Overlay { fragment: fragment.path()? });
        }
        let mut smmus = smmu::read(&mut tree, &mut refusals)?;
        let named = mmu_masters::read(&mut tree, &mut refusals, &mut smmus)?;
        let reserved = reserved::read(&mut tree, &mut refusals)?;
        let mut devices = devices::read(&mut tree, &smmus, &named, &mut refusals)?;
        let host_bridges = iommu_map::read(&mut tree, &smmus, &named, &mut refusals)?;
        devices::retain_sound(&tree, &mut devices);
        offer::name_parents(&tree, &mut devices);
        marked::tell(&tree, &smmus, &devices, &host_bridges, &mut refusals)?;
        Ok(Self { tree, smmus, devices, host_bridges, reserved, refusals: refusals.into_list() })
    }

    /// The tree itself.
    #[must_use]
    pub const fn tree(&self) -> &Tree<'a> {
        &self.tree
    }

    /// All SMMUv1/v2 instances, disabled ones too, in the order of the blob.
    #[must_use]
    pub fn smmus(&self) -> &[SmmuNode<'a>] {
        &self.smmus
    }

    /// The SMMU that `key` names.
    #[must_use]
    pub fn smmu(&self, key: IommuKey) -> Option<&SmmuNode<'a>> {
        self.smmus.iter().find(|smmu| smmu.key == key)
    }

    /// All nodes whose `iommus` names an SMMU, or that one names in its `mmu-masters`, disabled ones too, in the order of the blob.
    #[must_use]
    pub fn devices(&self) -> &[DtDevice] {
        &self.devices
    }

    /// The device that `node` is, if it is one.
    #[must_use]
    pub fn device(&self, node: NodeId) -> Option<&DtDevice> {
        devices::find(&self.devices, node)
    }

    /// All nodes whose `iommu-map` names an SMMU, and PCI host bridges that one names in its `mmu-masters`, disabled ones too, in the order of the blob.
    #[must_use]
    pub fn host_bridges(&self) -> &[HostBridge] {
        &self.host_bridges
    }

    /// IOMMUs of other kinds: what else says `#iommu-cells`, in the order of the blob.
    pub fn other_iommus(&self) -> impl Iterator<Item = Node<'_, 'a>> {
        let nodes = self.tree.nodes().filter(|node| !node.is_metadata() && node.property(IOMMU_CELLS).is_some());
        nodes.filter(|node| smmu::find(&self.smmus, node.id()).is_none() && node.refused() == Refused::No)
    }

    /// What firmware reserves of devices' address spaces, in the order of the blob.
    #[must_use]
    pub fn reserved_regions(&self) -> &[ReservedRegion] {
        &self.reserved
    }

    /// The streams at `smmu` that firmware has set up and that must go on, for [`Setup::reserved`](crate::smmu::Setup) of
    /// its probe: those of each enabled device with reserved regions that have memory behind them. `tables` makes the
    /// device's stage 2, in which exactly these regions are mapped.
    ///
    /// # Errors
    ///
    /// What `tables` says; [`DtError::OutOfMemory`].
    pub fn reserved<E: From<DtError>>(
        &self,
        smmu: IommuKey,
        tables: impl FnMut(&DtDevice, &[&ReservedRegion]) -> Result<Stage2, E>,
    ) -> Result<Vec<Reserved>, E> {
        reserved::offer(&self.devices, &self.reserved, smmu, tables)
    }

    /// The nodes that are not offered, each with what is wrong. Where [`Self::read`] has read the board, only such as are
    /// marked for passing through though no SMMU that can be used sees their DMA: an operator wants to know.
    #[must_use]
    pub fn refusals(&self) -> &[Refusal] {
        &self.refusals
    }

    /// Where the message signalled interrupts of a device go, or of the functions below a host bridge; `None` where the
    /// node does not say. Read when asked for: what is wrong with interrupts takes no device's isolation away.
    ///
    /// # Errors
    ///
    /// [`DtError::Node`] for an `msi-parent` or `msi-map` that is malformed or refers to no MSI controller, and for a
    /// controller whose registers do not hold its doorbell; [`DtError::OutOfMemory`].
    pub fn msi(&self, node: NodeId) -> Result<Option<Msi>, DtError> {
        self.tree.node(node).map_or(Ok(None), |node| msi::read(&node))
    }
}
