//! PCI host bridges as enumeration takes them, with how their configuration space is reached and where MSIs go.

use alloc::string::String;
use alloc::vec::Vec;

use super::cells::Region;
use super::devices::DtDevice;
use super::iommu_map::{self, HostBridge};
use super::mmu_masters::is_pci;
use super::msi::{self, Msi};
use super::offer::NotOffered;
use super::specifiers::IOMMUS;
use super::tree::{Node, NodeId, Refused, Tree};
use super::{Board, DtError, NodeFault};
use crate::few;
use crate::pci::{self, Bus, ConfigLayout, HostBridgeNumber, MapFault, RequesterIdMap, Segment};

/// A PCI host bridge whose functions' DMA an SMMUv1/v2 sees.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PciHost {
    /// The node.
    pub node: NodeId,
    /// Full path of the node.
    pub path: String,
    /// The host bridge as [`pci::enumerate`] takes it, or why no function behind it can be offered.
    pub host: Result<pci::HostBridge, NoPciHost>,
    /// Where its configuration space is and how it is laid out, where the compatible says that it is plain.
    pub access: Option<ConfigAccess>,
    /// Whether all functions share the streams of the node itself (`iommus` in place of `iommu-map`). The node is one of
    /// [`Board::devices`] then too, and of one group with its functions.
    pub shares_streams: bool,
    /// Where MSIs go: [`Board::msi`] of the node.
    pub msi: Result<Option<Msi>, DtError>,
}

/// Where plain configuration space is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConfigAccess {
    /// How it is laid out.
    pub layout: ConfigLayout,
    /// Where it is, as the CPU addresses it: the first bus of the host bridge comes first.
    pub region: Region,
}

/// Why no function behind a host bridge can be offered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoPciHost {
    /// Firmware gives it no streams that could be used.
    #[error(transparent)]
    NotOffered(NotOffered),
    /// The node is malformed, or there is no memory.
    #[error(transparent)]
    Node(#[from] DtError),
}

impl<'a> Board<'a> {
    /// All PCI host bridges whose functions' DMA an SMMU sees, disabled ones too, in the order of the blob: those of
    /// [`Self::host_bridges`], and those whose node has `iommus` in place of a map, all functions of which share its
    /// streams (ZynqMP).
    ///
    /// Its [`number`](pci::HostBridge::number) is the place in this list, the same in every run with one blob. The segment is
    /// `linux,pci-domain`, or else the lowest that no other host bridge has.
    ///
    /// # Errors
    ///
    /// [`DtError::OutOfMemory`]. What is wrong with one node is told with it.
    ///
    /// # Context
    ///
    /// Waiting context: it allocates.
    pub fn pci_hosts(&self) -> Result<Vec<PciHost>, DtError> {
        let mut found: Vec<Found<'_, 'a>> = Vec::new();
        for node in self.tree.nodes().filter(|node| !node.is_metadata() && node.refused() == Refused::No) {
            let by_map =
                self.host_bridges.iter().find(|bridge| bridge.node == node.id()).filter(|bridge| bridge.is_pci);
            let streams = match (by_map, self.device(node.id())) {
                (Some(bridge), _) => Streams::ByMap(bridge),
                // What is below a host bridge can look like one.
                (None, Some(device)) if is_root(&node) => Streams::Shared(device),
                _ => continue,
            };
            few::push(&mut found, Found { node, streams })?;
        }
        let mut segments = Vec::new();
        few::extend(&mut segments, found.iter().map(|found| iommu_map::segment(&found.node).ok().flatten()))?;
        let mut hosts = Vec::new();
        for (index, found) in (0..u16::MAX).zip(&found) {
            let segment =
                segments.get(usize::from(index)).copied().flatten().unwrap_or_else(|| free(&mut segments, index));
            few::push(&mut hosts, found.read(&self.tree, HostBridgeNumber(index), Segment(segment))?)?;
        }
        Ok(hosts)
    }
}

/// Gives the host bridge at `index` the lowest segment that no other has.
fn free(segments: &mut [Option<u16>], index: u16) -> u16 {
    let lowest = (0..u16::MAX).find(|segment| !segments.contains(&Some(*segment))).unwrap_or(u16::MAX);
    if let Some(own) = segments.get_mut(usize::from(index)) {
        *own = Some(lowest);
    }
    lowest
}

/// Whether the node is a host bridge by its own word, and below none.
fn is_root(node: &Node<'_, '_>) -> bool {
    let is = |node: &Node<'_, '_>| is_pci(node).unwrap_or(false);
    is(node) && !node.ancestors().any(|above| is(&above))
}

struct Found<'b, 'a> {
    node: Node<'b, 'a>,
    streams: Streams<'b>,
}

enum Streams<'b> {
    ByMap(&'b HostBridge),
    Shared(&'b DtDevice),
}

impl Found<'_, '_> {
    fn read(&self, tree: &Tree<'_>, number: HostBridgeNumber, segment: Segment) -> Result<PciHost, DtError> {
        let node = &self.node;
        let host = match self.streams {
            Streams::ByMap(bridge) => bridge.pci(number, segment).map_err(NoPciHost::NotOffered),
            Streams::Shared(device) => shared(node, device, number, segment),
        };
        Ok(PciHost {
            node: node.id(),
            path: tree.path_of(node.id())?,
            host,
            access: access(node),
            shares_streams: matches!(self.streams, Streams::Shared(_)),
            msi: msi::read(node),
        })
    }
}

fn shared(
    node: &Node<'_, '_>,
    device: &DtDevice,
    number: HostBridgeNumber,
    segment: Segment,
) -> Result<pci::HostBridge, NoPciHost> {
    if let Some(reason) = device.not_offered() {
        return Err(NoPciHost::NotOffered(reason));
    }
    // A number that is no segment is told of.
    let fixed = iommu_map::segment(node)?;
    let buses = iommu_map::buses(node)?;
    let map = RequesterIdMap::shared(&device.streams).map_err(|fault| match fault {
        MapFault::OutOfMemory => DtError::OutOfMemory,
        fault => node.error(NodeFault::Map { property: IOMMUS, fault }),
    })?;
    Ok(pci::HostBridge {
        number,
        segment: fixed.map_or(segment, Segment),
        buses: Bus(*buses.start())..=Bus(*buses.end()),
        map,
        passthrough: device.passthrough,
    })
}

/// Plain configuration space, where the compatible says so and `reg` can be followed.
fn access(node: &Node<'_, '_>) -> Option<ConfigAccess> {
    let layout = node.strings("compatible").ok()?.find_map(|name| match name {
        "pci-host-ecam-generic" => Some(ConfigLayout::Ecam),
        "pci-host-cam-generic" => Some(ConfigLayout::Cam),
        _ => None,
    })?;
    node.regions().ok()?.first().map(|region| ConfigAccess { layout, region: *region })
}
