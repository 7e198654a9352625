//! The device tree.

use alloc::vec::Vec;

use iommu_assign::assign::{IommuKey, Stage2};
use iommu_assign::dt::*;
use iommu_assign::pci::RequesterId;
use iommu_assign::smmu::{Lockstep, Mmio, Reserved};

use super::{exhaust, keep, keep_messages, keep_types};

pub(crate) fn keep_all() {
    keep![
        BlobError::offset,
        BlobError::kind,
        Region::base,
        Region::size,
        Node::u32,
        Node::regions,
        NodeFault::is_malformed,
        Board::read,
        Board::read_lenient,
        Board::tree,
        Board::smmus,
        Board::smmu,
        Board::devices,
        Board::device,
        Board::host_bridges,
        Board::reserved_regions,
        Board::refusals,
        Board::msi,
        Msi::controller,
        Msi::isolation,
        MsiController::isolation,
        Doorbell::register,
        Doorbell::frame,
        Doorbell::page,
        Doorbell::has_page,
        MsiMap::entries,
        MsiMap::mask,
        DtDevice::device_key,
        DtDevice::not_offered,
        DtDevice::spec,
        HostBridge::pci,
        Refusal::is_malformed,
        SmmuNode::config,
        Interrupt::controller,
        Tree::read,
        Tree::root,
        Tree::node,
        Tree::by_phandle,
        Tree::find,
        NodeId::index,
        Node::id,
        Node::name,
        Node::path,
        Node::key,
        Node::parent,
        Node::property,
        Node::compatible,
        Node::phandle,
        Node::is_enabled,
        Node::is_metadata,
        Property::name,
        Property::value,
        Board::pci_hosts,
        <DtError as Clone>::clone,
        <NodeFault as Clone>::clone,
        <Refusal as Clone>::clone,
        nodes,
        others,
        targets,
        reserved,
        regions,
        interrupts,
    ];
    keep_types![
        BlobError,
        BlobErrorKind,
        Block,
        Board<'_>,
        Doorbell,
        DtDevice,
        DtError,
        HostBridge,
        Interrupt<'_>,
        Msi,
        MsiController,
        MsiControllerKind,
        MsiIsolation,
        MsiMap,
        MsiMapEntry,
        MsiTarget,
        Node<'_, '_>,
        NodeFault,
        NodeId,
        NotOffered,
        Property<'_>,
        Refusal,
        Region,
        ReservedRegion,
        SmmuNode<'_>,
        SpecifierCount,
        Tree<'_>,
        UnmappedMsi,
        Unseen,
    ];
    keep_messages![BlobError, Block, DtError, NodeFault, NotOffered, Refusal, Unseen];
}

fn nodes(tree: &Tree<'_>) {
    for node in tree.nodes() {
        exhaust(node.ancestors());
        exhaust(node.children());
        exhaust(node.properties());
        node.strings("reg-names").into_iter().for_each(exhaust);
    }
}

fn others(board: &Board<'_>) {
    exhaust(board.other_iommus());
}

fn targets(msi: &Msi, id: RequesterId) {
    msi.targets(id).into_iter().for_each(exhaust);
}

type Tables<'a> = &'a mut dyn FnMut(&DtDevice, &[&ReservedRegion]) -> Result<Stage2, DtError>;

fn reserved(board: &Board<'_>, smmu: IommuKey, tables: Tables<'_>) -> Result<Vec<Reserved>, DtError> {
    board.reserved(smmu, tables)
}

fn regions(
    node: &SmmuNode<'_>,
    map: &mut dyn FnMut(Region) -> Result<Mmio, DtError>,
) -> Result<Lockstep<Mmio>, DtError> {
    node.map(map)
}

fn interrupts(node: &SmmuNode<'_>) {
    exhaust(node.context_line_interrupts());
    keep![Interrupt::specifier];
    node.interrupts.iter().for_each(|interrupt| exhaust(interrupt.specifier()));
}
