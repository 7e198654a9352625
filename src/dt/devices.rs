//! The nodes that are offered for assignment: those whose DMA an SMMUv1/v2 sees.

use alloc::string::String;
use alloc::vec::Vec;

use super::mmu_masters::Named;
use super::refusal::Refusals;
use super::smmu::SmmuNode;
use super::specifiers::{self, SpecifierCount};
use super::tree::{Node, NodeId, Refused, Tree};
use super::{DtError, NodeFault};
use crate::assign::Stream;
use crate::few;

/// A node whose `iommus` names at least one SMMUv1/v2, or that one names in its `mmu-masters`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DtDevice {
    /// The node.
    pub node: NodeId,
    /// Full path of the node.
    pub path: String,
    /// The 64-bit FNV-1a hash of `path`: the same in every run (contract A-9), and no other device's.
    pub key: u64,
    /// Whether the node and all its ancestors are enabled.
    pub enabled: bool,
    /// All its streams at SMMUs: canonical, sorted, each once. One may lie within another.
    pub streams: Vec<Stream>,
    /// How many specifiers each SMMU was named by.
    pub specifiers: Vec<SpecifierCount>,
    /// IOMMUs of other kinds that see DMA of this device too, and that nobody here programs.
    pub foreign_iommus: Vec<NodeId>,
    /// Whether one of its SMMUs is not enabled: such a device cannot be isolated, and must not be assigned.
    pub on_disabled_smmu: bool,
    /// Whether an SMMU's `mmu-masters` gives some of its streams, the binding of before `iommus`.
    pub old_binding: bool,
    /// Whether firmware marks the device for passing through (`xen,passthrough`).
    pub passthrough: bool,
    /// The nearest ancestor that is such a device itself.
    pub parent: Option<NodeId>,
    /// The key of the nearest ancestor that is offered for assignment.
    pub(super) offered_parent: Option<u64>,
}

/// The devices of a tree, in the order of the blob: parents before children. Refuses nodes whose `iommus` cannot be
/// followed; one of `smmus` is refused as a device only.
pub(super) fn read(
    tree: &mut Tree<'_>,
    smmus: &[SmmuNode<'_>],
    named: &[Named<'_>],
    refusals: &mut Refusals,
) -> Result<Vec<DtDevice>, DtError> {
    let mut devices: Vec<DtDevice> = Vec::new();
    for index in 0..tree.len() {
        let Some(node) = tree.nth(index).filter(|node| !node.is_metadata()) else { continue };
        let id = node.id();
        match node.refused() {
            // Its map was refused, or all of it.
            Refused::Master | Refused::Whole => continue,
            Refused::Above if node.property(specifiers::IOMMUS).is_some() => {
                refusals.add_below(tree, id)?;
                continue;
            }
            Refused::Above => continue,
            Refused::No => {}
        }
        match read_one(&node, smmus, named, &devices) {
            Ok(None) => {}
            Ok(Some(device)) => {
                few::push(&mut devices, device)?;
            }
            Err(error) => refusals.add(tree, id, Refused::Master, error)?,
        }
    }
    refuse_collisions(tree, refusals, &mut devices)?;
    Ok(devices)
}

fn read_one(
    node: &Node<'_, '_>,
    smmus: &[SmmuNode<'_>],
    named: &[Named<'_>],
    devices: &[DtDevice],
) -> Result<Option<DtDevice>, DtError> {
    let Some(masters) = specifiers::read(node, smmus, named)? else { return Ok(None) };
    Ok(Some(DtDevice {
        node: node.id(),
        path: node.path()?,
        key: node.key(),
        enabled: node.is_enabled(),
        streams: masters.streams,
        specifiers: masters.specifiers,
        foreign_iommus: masters.foreign,
        on_disabled_smmu: masters.on_disabled_smmu,
        old_binding: masters.old_binding,
        passthrough: node.property("xen,passthrough").is_some(),
        parent: parent(node, devices),
        offered_parent: None,
    }))
}

/// The device that `node` is, if it is one.
pub(super) fn find(devices: &[DtDevice], node: NodeId) -> Option<&DtDevice> {
    let index = devices.binary_search_by_key(&node, |device| device.node).ok()?;
    devices.get(index)
}

/// Of two devices with one key neither is offered.
fn refuse_collisions(tree: &mut Tree<'_>, refusals: &mut Refusals, devices: &mut Vec<DtDevice>) -> Result<(), DtError> {
    let mut keys: Vec<(u64, NodeId)> = Vec::new();
    few::extend(&mut keys, devices.iter().map(|device| (device.key, device.node)))?;
    few::sort(&mut keys, &|one, other| one < other);
    for keys in few::runs(&keys, |one, next| one.0 == next.0) {
        let [first, second, ..] = keys else { continue };
        let all = keys.iter().skip(1).map(|other| (other, first)).chain([(first, second)]);
        for (&(key, node), (_, other)) in all {
            let error = tree.error_at(node, NodeFault::KeyCollision { key, other: tree.path_of(*other)? });
            refusals.add(tree, node, Refused::Whole, error)?;
        }
    }
    retain_sound(tree, devices);
    Ok(())
}

/// Takes out those whose nodes have been refused since; what was below one gets the next one above for a parent.
pub(super) fn retain_sound(tree: &Tree<'_>, devices: &mut Vec<DtDevice>) {
    let before = devices.len();
    devices.retain(|device| tree.node(device.node).is_some_and(|node| node.refused() == Refused::No));
    if devices.len() == before {
        return;
    }
    for index in 0..devices.len() {
        let above = devices.get(index).and_then(|device| tree.node(device.node)).map(|node| parent(&node, devices));
        if let (Some(device), Some(parent)) = (devices.get_mut(index), above) {
            device.parent = parent;
        }
    }
}

fn parent(node: &Node<'_, '_>, devices: &[DtDevice]) -> Option<NodeId> {
    node.ancestors().map(|above| above.id()).find(|above| find(devices, *above).is_some())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
mod tests {
    use alloc::string::ToString;

    use super::*;

    const SHOWCASE: &[u8] = include_bytes!("../../boards/showcase.dtb");

    /// No two paths with one hash are known that anybody would write, so the devices are made to collide.
    #[test]
    fn a9_two_devices_with_one_key_are_refused() {
        let mut tree = Tree::read(SHOWCASE).unwrap();
        let mut refusals = Refusals::default();
        let smmus = super::super::smmu::read(&mut tree, &mut refusals).unwrap();
        let mut devices = read(&mut tree, &smmus, &[], &mut refusals).unwrap();
        let codec = devices.iter().position(|device| device.path == "/soc/video-codec@20200000").unwrap();
        let (key, count) = (devices.first().unwrap().key, devices.len());
        devices.get_mut(codec).unwrap().key = key;
        refuse_collisions(&mut tree, &mut refusals, &mut devices).unwrap();
        let [second, first] = &refusals.into_list()[..] else { panic!("not two refusals") };
        let expected = alloc::format!("its key {key:#018x} is also that of");
        assert_eq!(second.to_string(), alloc::format!("{}: {expected} {}", second.path, first.path));
        assert_eq!(first.to_string(), alloc::format!("{}: {expected} {}", first.path, second.path));
        assert_eq!(first.path, "/soc/display@20000000");
        assert_eq!(devices.len(), count - 2);
        // What was below the codec stands on its own.
        let firmware = devices.iter().find(|device| device.path.ends_with("video-firmware")).unwrap();
        assert_eq!(firmware.parent, None);
    }
}
