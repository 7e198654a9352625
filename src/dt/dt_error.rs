//! What can be wrong with a device tree: where, and why.

use alloc::string::String;

use thiserror::Error;

use super::BlobError;
use super::unseen::Unseen;
use crate::pci::MapFault;

/// Why a device tree was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DtError {
    /// The blob is no well-formed flattened device tree.
    #[error("device tree blob: {0}")]
    Blob(#[from] BlobError),
    /// A node says something that cannot be followed.
    #[error("{path}: {cause}")]
    Node {
        /// Full path of the node.
        path: String,
        /// What is wrong there.
        cause: NodeFault,
    },
    /// The blob is an overlay: a fragment of a tree, whose references name nodes that are not there.
    #[error("{fragment} makes this an overlay, not a board: merge it into its base tree first (`fdtoverlay`)")]
    Overlay {
        /// Path of its first fragment.
        fragment: String,
    },
    /// The allocator had no memory for the tree.
    #[error("out of memory while reading the device tree")]
    OutOfMemory,
    /// A tree that is to be written takes more bytes than a blob's header can say.
    #[error("the device tree is larger than a blob can be")]
    TooLarge,
}

impl From<alloc::collections::TryReserveError> for DtError {
    fn from(_: alloc::collections::TryReserveError) -> Self {
        Self::OutOfMemory
    }
}

/// What is wrong with a node. Entries of a property are counted from 0; lengths are in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum NodeFault {
    /// An address range reaches past the last 64-bit address.
    #[error("`{property}` describes {size:#x} bytes at {address:#x}, past the last 64-bit address")]
    AddressOverflow {
        /// The property.
        property: &'static str,
        /// Where the range starts.
        address: u64,
        /// Its size.
        size: u64,
    },
    /// An `iommu-map` can be read both with four cells an entry and with one cell for each of the target's.
    #[error("`{property}` is {four} entries of 4 cells, or {other} of 3 cells and the target's: neither is certain")]
    AmbiguousMap {
        /// The property.
        property: &'static str,
        /// How many entries it has if each has four cells.
        four: usize,
        /// How many it has otherwise.
        other: usize,
    },
    /// `bus-range` is no range of bus numbers.
    #[error("`bus-range` {first:#x}..={last:#x} is no range of bus numbers")]
    BusRange {
        /// First bus number.
        first: u32,
        /// Last bus number.
        last: u32,
    },
    /// A cell count is not one that the binding allows.
    #[error("`{property}` is {count}, not {allowed}")]
    CellCount {
        /// The property.
        property: &'static str,
        /// Its value.
        count: u32,
        /// What it may be.
        allowed: &'static str,
    },
    /// `phandle` and `linux,phandle` differ.
    #[error("`phandle` {phandle:#x} and `linux,phandle` {legacy:#x} differ")]
    ContradictingPhandles {
        /// Value of `phandle`.
        phandle: u32,
        /// Value of `linux,phandle`.
        legacy: u32,
    },
    /// A reference names no node.
    #[error("entry {entry} of `{property}` refers to phandle {phandle:#x}, which no node has")]
    DanglingPhandle {
        /// The property.
        property: &'static str,
        /// Which entry.
        entry: usize,
        /// The phandle.
        phandle: u32,
    },
    /// An MSI controller's registers end before its doorbell.
    #[error("its doorbell is {offset:#x} bytes into its registers, which have {size:#x}")]
    DoorbellOutside {
        /// Where the doorbell is, from the first register on.
        offset: u64,
        /// How large the registers are.
        size: u64,
    },
    /// Two IOMMUs have their registers at the same CPU address.
    #[error("its registers at {base:#x} are also those of {other}")]
    DuplicateBase {
        /// The CPU address.
        base: u64,
        /// Path of the other node.
        other: String,
    },
    /// Two nodes have this path.
    #[error("two nodes have this path")]
    DuplicateNode,
    /// Two nodes have the same phandle.
    #[error("phandle {phandle:#x} is also that of {other}")]
    DuplicatePhandle {
        /// The phandle.
        phandle: u32,
        /// Path of the other node.
        other: String,
    },
    /// Two properties have the same name.
    #[error("two properties are named `{property}`")]
    DuplicateProperty {
        /// The name.
        property: String,
    },
    /// A region of an IOMMU's registers is empty.
    #[error("region {region} of `reg` has no bytes")]
    EmptyRegion {
        /// Which region.
        region: usize,
    },
    /// An entry of a reservation has no bytes.
    #[error("entry {entry} of `{property}` has no bytes")]
    EmptyReservation {
        /// The property.
        property: &'static str,
        /// Which entry.
        entry: usize,
    },
    /// Two devices' paths have the same hash, so that neither has a key of its own.
    #[error("its key {key:#018x} is also that of {other}")]
    KeyCollision {
        /// The key.
        key: u64,
        /// Path of the other device.
        other: String,
    },
    /// A property has not the length that it must have.
    #[error("`{property}` is {length} bytes long, not {expected}")]
    Length {
        /// The property.
        property: &'static str,
        /// Its length.
        length: usize,
        /// What it must be.
        expected: usize,
    },
    /// A property is no whole number of entries.
    #[error("`{property}` is {length} bytes long, no multiple of {entry}")]
    LengthMultiple {
        /// The property.
        property: &'static str,
        /// Its length.
        length: usize,
        /// Length of one entry.
        entry: u64,
    },
    /// An `iommu-map` that is read without doubt makes no map.
    #[error("`{property}`: {fault}")]
    Map {
        /// The property.
        property: &'static str,
        /// Why.
        fault: MapFault,
    },
    /// An entry of an `iommu-map` maps several IDs to specifiers of several cells.
    #[error(
        "entry {entry} of `{property}` maps {length:#x} IDs to specifiers of {cells} cells: only one ID has a meaning"
    )]
    MapRange {
        /// The property.
        property: &'static str,
        /// Which entry.
        entry: usize,
        /// How many IDs.
        length: u32,
        /// Cells of the target's specifier.
        cells: u32,
    },
    /// The node that an entry refers to has no `#iommu-cells`, so that the entry's width is unknown.
    #[error("entry {entry} of `{property}` refers to {target}, which has no `#iommu-cells`")]
    MissingIommuCells {
        /// The property.
        property: &'static str,
        /// Which entry.
        entry: usize,
        /// Path of the node referred to.
        target: String,
    },
    /// A node that `mmu-masters` names has no `#stream-id-cells`, so that the entry's width is unknown.
    #[error("entry {entry} of `{property}` refers to {target}, which has no `#stream-id-cells`")]
    MissingStreamIdCells {
        /// The property.
        property: &'static str,
        /// Which entry.
        entry: usize,
        /// Path of the node referred to.
        target: String,
    },
    /// A property that the binding requires is missing.
    #[error("`{property}` is missing")]
    MissingProperty {
        /// The property.
        property: &'static str,
    },
    /// Interrupts are listed, and no node above says how wide an interrupt specifier is.
    #[error("`interrupts` has no interrupt parent with `#interrupt-cells`")]
    NoInterruptParent,
    /// The node that an entry refers to is no MSI controller.
    #[error("entry {entry} of `{property}` refers to {target}, which is no MSI controller")]
    NoMsiController {
        /// The property.
        property: &'static str,
        /// Which entry.
        entry: usize,
        /// Path of the node referred to.
        target: String,
    },
    /// A bus on the way to the root does not translate addresses.
    #[error("{bus} has no `ranges`: {address:#x} is no CPU address")]
    NoRanges {
        /// Path of the bus.
        bus: String,
        /// The address on that bus.
        address: u64,
    },
    /// A property is no list of strings.
    #[error("`{property}` is no list of NUL-terminated strings")]
    NotStrings {
        /// The property.
        property: &'static str,
    },
    /// A number needs more than 64 bits.
    #[error("a number in `{property}` needs more than 64 bits")]
    NumberTooWide {
        /// The property.
        property: &'static str,
    },
    /// The SMMU that an entry refers to lists its masters itself: the tree mixes two bindings.
    #[error(
        "entry {entry} of `{property}` refers to {target}, which has no `#iommu-cells` and lists its masters in \
         `mmu-masters`: the tree mixes the two bindings"
    )]
    OldBinding {
        /// The property.
        property: &'static str,
        /// Which entry.
        entry: usize,
        /// Path of the SMMU.
        target: String,
    },
    /// A bus on the way to the root translates other addresses, not these.
    #[error("`{property}` of {bus} does not cover {size:#x} bytes at {address:#x}")]
    OutsideRanges {
        /// The property.
        property: &'static str,
        /// Path of the bus.
        bus: String,
        /// The address on that bus.
        address: u64,
        /// The size of the region.
        size: u64,
    },
    /// A reference is 0, which names no node.
    #[error("entry {entry} of `{property}` refers to phandle 0")]
    PhandleZero {
        /// The property.
        property: &'static str,
        /// Which entry.
        entry: usize,
    },
    /// The node is below one that was refused, from which it inherits.
    #[error("it is below {ancestor}, which was refused")]
    RefusedAncestor {
        /// Path of the node above.
        ancestor: String,
    },
    /// The node that an entry refers to was refused itself.
    #[error("entry {entry} of `{property}` refers to {target}, which was refused")]
    RefusedTarget {
        /// The property.
        property: &'static str,
        /// Which entry.
        entry: usize,
        /// Path of the node referred to.
        target: String,
    },
    /// A reservation is not as large as any of its node's memory.
    #[error("entry {entry} of `{property}` has {size:#x} bytes, and no region of `reg` is as large")]
    ReservationSize {
        /// The property.
        property: &'static str,
        /// Which entry.
        entry: usize,
        /// Its size.
        size: u64,
    },
    /// A node has a phandle that none may have: 0 or 0xffffffff.
    #[error("phandle {phandle:#x} is reserved")]
    ReservedPhandle {
        /// The phandle.
        phandle: u32,
    },
    /// `linux,pci-domain` is no PCI segment.
    #[error("`linux,pci-domain` {segment:#x} is no PCI segment: those have 16 bits")]
    Segment {
        /// Its value.
        segment: u32,
    },
    /// Fewer interrupts are listed than `#global-interrupts` says.
    #[error("`#global-interrupts` is {global}, and {listed} interrupts are listed")]
    TooFewInterrupts {
        /// Value of `#global-interrupts`.
        global: u32,
        /// How many are listed.
        listed: u32,
    },
    /// An SMMU's `mmu-masters` and the node's own property say different things of the node's streams.
    #[error("`mmu-masters` of {smmu} and the node's own `{property}` give it different streams: neither is certain")]
    TwoBindings {
        /// The property.
        property: &'static str,
        /// Path of the SMMU.
        smmu: String,
    },
    /// A property ends inside an entry.
    #[error("`{property}` ends inside entry {entry}")]
    Truncated {
        /// The property.
        property: &'static str,
        /// Which entry.
        entry: usize,
    },
    /// Firmware marks the node for passing through, and no SMMU that can be used sees its DMA. Nothing is malformed.
    #[error("it is marked `xen,passthrough`, and no SMMU confines its DMA: {why}")]
    Unseen {
        /// Why.
        why: Unseen,
    },
}

impl NodeFault {
    /// Whether firmware says something that cannot be followed, for which [`Board::read`](super::Board::read) refuses a
    /// board. If not, the node is as it is meant to be, and cannot be confined.
    #[must_use]
    pub const fn is_malformed(&self) -> bool {
        !matches!(self, Self::Unseen { .. })
    }
}
