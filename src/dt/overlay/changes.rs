//! Two boards compared: what comes, what goes, what changes, by path.

use alloc::string::String;
use alloc::vec::Vec;

use super::by_name::ByName;
use super::fixups::owned;
use super::overlay_error::{OverlayError, OverlayFault};
use crate::assign::Stream;
use crate::dt::tree::{Node, NodeId, Tree};
use crate::dt::{Board, DtDevice, DtError, HostBridge, Interrupt, SmmuNode};
use crate::few;

/// What becomes of a node, a device, an SMMU or a host bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// It is there, or in use, in the second board only.
    Comes,
    /// It is there, or in use, in the first board only.
    Goes,
    /// It is in both, and not the same.
    Changes,
}

/// How one board differs from another.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changes {
    /// Nodes that come or go, and those of which a property does: `__symbols__` and its like left out. Those that go
    /// stand behind the others.
    pub nodes: Vec<NodeChange>,
    /// Devices that are offered for assignment in one board only, or with other streams or behind another device.
    pub devices: Vec<DeviceChange>,
    /// SMMUs that are enabled in one board only, or of which a driver would be told something else.
    pub smmus: Vec<Changed>,
    /// Host bridges whose functions are offered in one board only, or with another map.
    pub host_bridges: Vec<Changed>,
}

impl Changes {
    /// Whether the two are the same.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty() && self.devices.is_empty() && self.smmus.is_empty() && self.host_bridges.is_empty()
    }

    /// Refuses a change of an SMMU or a host bridge that is in use before and after.
    pub(super) fn check_in_use(&self) -> Result<(), OverlayError> {
        for (all, fault) in
            [(&self.smmus, OverlayFault::SmmuChanges), (&self.host_bridges, OverlayFault::HostBridgeChanges)]
        {
            if let Some(Changed { path, .. }) = all.iter().find(|one| one.change == Change::Changes) {
                return Err(OverlayError::at(owned(path)?, fault));
            }
        }
        Ok(())
    }
}

/// A node that comes, goes or changes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeChange {
    /// Its full path.
    pub path: String,
    /// What becomes of it.
    pub change: Change,
    /// The properties that come, go or change, of a node that is in both.
    pub properties: Vec<String>,
}

/// A device that comes, goes or changes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceChange {
    /// Its full path.
    pub path: String,
    /// What becomes of it.
    pub change: Change,
    /// Streams that it has in the second board only.
    pub come: Vec<Stream>,
    /// Streams that it has in the first board only.
    pub go: Vec<Stream>,
}

/// An SMMU or a host bridge that comes, goes or changes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Changed {
    /// Its full path.
    pub path: String,
    /// What becomes of it.
    pub change: Change,
}

/// How `new` differs from `old`.
///
/// # Errors
///
/// [`DtError::OutOfMemory`].
pub fn compare(old: &Board<'_>, new: &Board<'_>) -> Result<Changes, DtError> {
    let pairs = Pairs::new(old, new)?;
    let mut changes = Changes { nodes: nodes(&pairs)?, ..Changes::default() };
    for (one, other) in pairs.all(|board| board.devices().iter().map(|device| device.node), offered) {
        let Some((change, device)) = change_of(one, other, is_same_device) else { continue };
        let streams = |has: Option<&DtDevice>, lacks: Option<&DtDevice>| -> Result<Vec<Stream>, DtError> {
            let has = has.map_or(&[][..], |device| device.streams.as_slice());
            let lacks = lacks.map_or(&[][..], |device| device.streams.as_slice());
            let mut only = Vec::new();
            for stream in has.iter().filter(|stream| lacks.binary_search(stream).is_err()) {
                push(&mut only, *stream)?;
            }
            Ok(only)
        };
        let (path, come, go) = (owned(&device.path)?, streams(other, one)?, streams(one, other)?);
        push(&mut changes.devices, DeviceChange { path, change, come, go })?;
    }
    for (change, smmu) in pairs.smmus() {
        push(&mut changes.smmus, Changed { path: owned(&smmu.path)?, change })?;
    }
    for (change, bridge) in pairs.host_bridges() {
        push(&mut changes.host_bridges, Changed { path: owned(&bridge.path)?, change })?;
    }
    Ok(changes)
}

/// Two boards, and which node of the one is which of the other.
pub(super) struct Pairs<'p, 'o, 'n> {
    pub(super) old: &'p Board<'o>,
    pub(super) new: &'p Board<'n>,
    /// By the node of the new board.
    to_old: Vec<Option<NodeId>>,
    /// By the node of the old board.
    to_new: Vec<Option<NodeId>>,
}

impl<'p, 'o, 'n> Pairs<'p, 'o, 'n> {
    pub(super) fn new(old: &'p Board<'o>, new: &'p Board<'n>) -> Result<Self, DtError> {
        let mut by_name = ByName::new();
        for node in old.tree().nodes() {
            if let Some(parent) = node.parent() {
                by_name.push(parent.id(), node.name(), node.id().index())?;
            }
        }
        by_name.sort();
        let mut pairs = Self { old, new, to_old: nothing(new.tree())?, to_new: nothing(old.tree())? };
        for node in new.tree().nodes() {
            let one = match node.parent() {
                None => old.tree().root(),
                Some(parent) => pairs
                    .to_old(parent.id())
                    .and_then(|parent| by_name.find(parent, node.name()))
                    .and_then(|at| old.tree().nth(at)),
            };
            let Some(one) = one else { continue };
            if let (Some(to_old), Some(to_new)) =
                (pairs.to_old.get_mut(node.id().index()), pairs.to_new.get_mut(one.id().index()))
            {
                (*to_old, *to_new) = (Some(one.id()), Some(node.id()));
            }
        }
        Ok(pairs)
    }

    /// The old board's node of the path that `node` of the new one has.
    pub(super) fn to_old(&self, node: NodeId) -> Option<NodeId> {
        self.to_old.get(node.index()).copied().flatten()
    }

    /// The new board's node of the path that `node` of the old one has.
    pub(super) fn to_new(&self, node: NodeId) -> Option<NodeId> {
        self.to_new.get(node.index()).copied().flatten()
    }

    /// What `find` finds at the same path in each: first all that are in the new board in its order, then those that are
    /// in the old one only.
    pub(super) fn all<'s, T: 'p, I: Iterator<Item = NodeId> + 's>(
        &'s self,
        of: impl Fn(&'p Board<'p>) -> I,
        find: impl Fn(&'p Board<'p>, NodeId) -> Option<&'p T> + Copy + 's,
    ) -> impl Iterator<Item = (Option<&'p T>, Option<&'p T>)> + 's
    where
        'o: 'p,
        'n: 'p,
    {
        let (old, new): (&'p Board<'p>, &'p Board<'p>) = (self.old, self.new);
        let both = of(new).filter_map(move |node| {
            let other = find(new, node)?;
            Some((self.to_old(node).and_then(|node| find(old, node)), Some(other)))
        });
        let gone = of(old).filter_map(move |node| {
            let one = find(old, node)?;
            let stays = self.to_new(node).is_some_and(|node| find(new, node).is_some());
            (!stays).then_some((Some(one), None))
        });
        both.chain(gone)
    }

    /// What becomes of SMMUs that are enabled in one board or both.
    pub(super) fn smmus(&self) -> impl Iterator<Item = (Change, &'p SmmuNode<'p>)>
    where
        'o: 'p,
        'n: 'p,
    {
        let all = self.all(|board| board.smmus().iter().map(|smmu| smmu.node), enabled_smmu);
        all.filter_map(|(one, other)| change_of(one, other, |one, other| self.is_same_smmu(one, other)))
    }

    /// What becomes of host bridges whose functions are offered in one board or both.
    pub(super) fn host_bridges(&self) -> impl Iterator<Item = (Change, &'p HostBridge)>
    where
        'o: 'p,
        'n: 'p,
    {
        let all = self.all(|board| board.host_bridges().iter().map(|bridge| bridge.node), used_bridge);
        all.filter_map(|(one, other)| change_of(one, other, is_same_bridge))
    }

    /// Whether a driver was told all of it before. That its interrupts are the same is for its handlers' sake.
    fn is_same_smmu(&self, old: &SmmuNode<'_>, new: &SmmuNode<'_>) -> bool {
        let same_line = |one: &Interrupt<'_>, other: &Interrupt<'_>| {
            self.to_old(other.controller()) == Some(one.controller()) && one.specifier().eq(other.specifier())
        };
        old.key == new.key
            && old.registers == new.registers
            && old.mirrors == new.mirrors
            && old.global_irqs == new.global_irqs
            && old.interrupts.len() == new.interrupts.len()
            && old.interrupts.iter().zip(&new.interrupts).all(|(one, other)| same_line(one, other))
            && old.coherent == new.coherent
            && old.architecture == new.architecture
            && old.implementation == new.implementation
            && old.adreno == new.adreno
            && old.compatibles == new.compatibles
            && old.secure_config_access == new.secure_config_access
    }
}

/// The device that `node` is, where it is offered for assignment.
pub(super) fn offered<'b>(board: &'b Board<'b>, node: NodeId) -> Option<&'b DtDevice> {
    board.device(node).filter(|device| device.not_offered().is_none())
}

/// The SMMU that `node` is, where it is enabled.
fn enabled_smmu<'b>(board: &'b Board<'b>, node: NodeId) -> Option<&'b SmmuNode<'b>> {
    board.smmus().iter().find(|smmu| smmu.node == node && smmu.enabled)
}

/// The host bridge that `node` is, where functions behind it are offered.
fn used_bridge<'b>(board: &'b Board<'b>, node: NodeId) -> Option<&'b HostBridge> {
    board.host_bridges().iter().find(|bridge| bridge.node == node && bridge.enabled && !bridge.on_disabled_smmu)
}

/// Whether the service was told all of it before.
pub(super) fn is_same_device(old: &DtDevice, new: &DtDevice) -> bool {
    old.streams == new.streams && old.passthrough == new.passthrough && old.offered_parent == new.offered_parent
}

/// Whether functions behind it were found with all of it.
fn is_same_bridge(old: &HostBridge, new: &HostBridge) -> bool {
    old.requesters == new.requesters
        && old.entries == new.entries
        && old.is_pci == new.is_pci
        && old.buses == new.buses
        && old.segment == new.segment
        && old.ecam == new.ecam
        && old.passthrough == new.passthrough
}

/// What becomes of something, and how it is to be, or was.
fn change_of<'p, T>(
    old: Option<&'p T>,
    new: Option<&'p T>,
    is_same: impl Fn(&T, &T) -> bool,
) -> Option<(Change, &'p T)> {
    match (old, new) {
        (None, None) => None,
        (None, Some(new)) => Some((Change::Comes, new)),
        (Some(old), None) => Some((Change::Goes, old)),
        (Some(old), Some(new)) => (!is_same(old, new)).then_some((Change::Changes, new)),
    }
}

fn nodes(pairs: &Pairs<'_, '_, '_>) -> Result<Vec<NodeChange>, DtError> {
    let (old_names, new_names) = (names(pairs.old.tree())?, names(pairs.new.tree())?);
    let mut all = Vec::new();
    for node in pairs.new.tree().nodes().filter(|node| !node.is_metadata()) {
        let Some(one) = pairs.to_old(node.id()).and_then(|one| pairs.old.tree().node(one)) else {
            push(&mut all, NodeChange { path: node.path()?, change: Change::Comes, properties: Vec::new() })?;
            continue;
        };
        let mut properties = Vec::new();
        for property in node.properties() {
            let before = old_names.find(one.id(), property.name()).and_then(|at| nth(&one, at));
            if before != Some(property.value()) {
                push(&mut properties, owned(property.name())?)?;
            }
        }
        for property in one.properties() {
            if new_names.find(node.id(), property.name()).is_none() {
                push(&mut properties, owned(property.name())?)?;
            }
        }
        if !properties.is_empty() {
            push(&mut all, NodeChange { path: node.path()?, change: Change::Changes, properties })?;
        }
    }
    let gone = |node: &Node<'_, '_>| !node.is_metadata() && pairs.to_new(node.id()).is_none();
    for node in pairs.old.tree().nodes().filter(gone) {
        push(&mut all, NodeChange { path: node.path()?, change: Change::Goes, properties: Vec::new() })?;
    }
    Ok(all)
}

/// Each property by its node and name.
fn names<'a>(tree: &Tree<'a>) -> Result<ByName<'a, NodeId>, DtError> {
    let mut names = ByName::new();
    for node in tree.nodes() {
        for (at, property) in node.properties().enumerate() {
            names.push(node.id(), property.name(), at)?;
        }
    }
    names.sort();
    Ok(names)
}

fn nth<'a>(node: &Node<'_, 'a>, at: usize) -> Option<&'a [u8]> {
    node.properties().nth(at).map(|property| property.value())
}

fn nothing(tree: &Tree<'_>) -> Result<Vec<Option<NodeId>>, DtError> {
    let mut all = Vec::new();
    few::extend(&mut all, (0..tree.len()).map(|_| None))?;
    Ok(all)
}

pub(super) fn push<T>(all: &mut Vec<T>, one: T) -> Result<(), DtError> {
    Ok(few::push(all, one)?)
}
