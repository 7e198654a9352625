//! The nodes that are offered for assignment: those whose DMA an SMMUv1/v2 sees.

use alloc::string::String;
use alloc::vec::Vec;

use super::iommus::{self, SpecifierCount};
use super::smmu::SmmuNode;
use super::tree::{Node, NodeId, Tree};
use super::{DtError, NodeFault};
use crate::assign::Stream;

/// A node whose `iommus` names at least one SMMUv1/v2.
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
    /// Whether firmware marks the device for passing through (`xen,passthrough`).
    pub passthrough: bool,
    /// The nearest ancestor that is such a device itself.
    pub parent: Option<NodeId>,
}

/// The devices of a tree, in the order of the blob: parents before children.
pub(super) fn read(tree: &Tree<'_>, smmus: &[SmmuNode<'_>]) -> Result<Vec<DtDevice>, DtError> {
    let mut devices: Vec<DtDevice> = Vec::new();
    for node in tree.nodes().filter(|node| !node.is_metadata()) {
        let Some(masters) = iommus::read(&node, smmus)? else { continue };
        let is_device = |ancestor: &Node<'_, '_>| find(&devices, ancestor.id()).is_some();
        let parent = node.ancestors().find(is_device).map(|ancestor| ancestor.id());
        let device = DtDevice {
            node: node.id(),
            path: node.path()?,
            key: node.key(),
            enabled: node.is_enabled(),
            streams: masters.streams,
            specifiers: masters.specifiers,
            foreign_iommus: masters.foreign,
            on_disabled_smmu: masters.on_disabled_smmu,
            passthrough: node.property("xen,passthrough").is_some(),
            parent,
        };
        devices.try_reserve(1)?;
        devices.push(device);
    }
    refuse_collisions(tree, &devices)?;
    Ok(devices)
}

/// The device that `node` is, if it is one.
pub(super) fn find(devices: &[DtDevice], node: NodeId) -> Option<&DtDevice> {
    let index = devices.binary_search_by_key(&node, |device| device.node).ok()?;
    devices.get(index)
}

fn refuse_collisions(tree: &Tree<'_>, devices: &[DtDevice]) -> Result<(), DtError> {
    let mut keys: Vec<(u64, NodeId)> = Vec::new();
    keys.try_reserve_exact(devices.len())?;
    keys.extend(devices.iter().map(|device| (device.key, device.node)));
    keys.sort_unstable();
    for (&(key, first), &(next, second)) in keys.iter().zip(keys.iter().skip(1)) {
        if key == next {
            return Err(tree.error_at(second, NodeFault::KeyCollision { key, other: tree.path_of(first)? }));
        }
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use alloc::string::ToString;

    use super::*;

    const SHOWCASE: &[u8] = include_bytes!("../../boards/showcase.dtb");

    /// No two paths with one hash are known that anybody would write, so the devices are made to collide.
    #[test]
    fn a9_two_devices_with_one_key_are_refused() {
        let tree = Tree::read(SHOWCASE).unwrap();
        let smmus = super::super::smmu::read(&tree).unwrap();
        let mut devices = read(&tree, &smmus).unwrap();
        let key = devices.first().unwrap().key;
        devices.last_mut().unwrap().key = key;
        let error = refuse_collisions(&tree, &devices).unwrap_err().to_string();
        let expected = alloc::format!("/soc/audio@28100000: its key {key:#018x} is also that of /soc/display@20000000");
        assert_eq!(error, expected);
    }
}
