//! An overlay put onto a tree.
//!
//! The first time it is *resolved*: each fragment finds its target, each reference its phandle. What was found is kept, so
//! that the overlay can be put on again, over a tree from which another one was taken, with the same phandles.
//!
//! An overlay's own phandles are moved behind the tree's. A node that the tree has keeps the phandle that it has, and
//! what the overlay says of the node refers to that.

use alloc::string::String;
use alloc::vec::Vec;

use super::edited::{Edited, Origin, Place, plain};
use super::fixups::{self, Cell, External, Local, SYMBOLS, child_of_root, hexadecimal, owned, property_of};
use super::overlay_error::{OverlayError, OverlayFault, OverlayId};
use crate::dt::DtError;
use crate::dt::flatten::append;
use crate::dt::tree::{Node, NodeId, Tree};
use crate::few;

/// What an overlay was found to mean.
#[derive(Debug, Default)]
pub(super) struct Resolution {
    /// The target of each fragment that has an `__overlay__`.
    targets: Vec<(NodeId, String)>,
    /// The phandle of each node of the overlay that has one, by node.
    phandles: Vec<(NodeId, u32)>,
    /// What stands in place of each reference.
    references: Vec<(Cell, u32)>,
    /// Nodes that other overlays brought and that this one refers to: the first of each.
    needs: Vec<(OverlayId, String)>,
}

impl Resolution {
    /// The node of `other` that this overlay refers to, if it does.
    pub(super) fn needs(&self, other: OverlayId) -> Option<&str> {
        self.needs.iter().find(|need| need.0 == other).map(|need| need.1.as_str())
    }

    /// The first fragment's target.
    pub(super) fn first_target(&self) -> &str {
        self.targets.first().map_or("/", |target| target.1.as_str())
    }
}

/// An overlay on its way into a tree.
struct Merge<'m, 'a> {
    tree: &'m mut Edited<'a>,
    overlay: &'m Tree<'a>,
    id: OverlayId,
    /// Where each node of the overlay went.
    places: Vec<Option<Place>>,
    /// Phandles that nodes had the first time.
    known: &'m [(NodeId, u32)],
    /// Nodes that other overlays brought and that this one refers to.
    needs: Vec<(OverlayId, String)>,
    /// The greatest phandle of the tree before.
    behind: u32,
}

/// Puts `overlay` onto `tree` for the first time.
pub(super) fn resolve<'a>(
    tree: &mut Edited<'a>,
    overlay: &Tree<'a>,
    id: OverlayId,
) -> Result<Resolution, OverlayError> {
    let external = fixups::external(overlay, tree)?;
    let local = fixups::local(overlay)?;
    let mut merge = Merge::new(tree, overlay, id, &[])?;
    let mut resolution = Resolution::default();
    for external in &external {
        merge.need(external.target, external.label_by)?;
    }
    for fragment in fragments(overlay) {
        let target = merge.target(&fragment, &external, &local)?;
        merge.need(target, 0)?;
        let path = merge.tree.path(target)?;
        few::push(&mut resolution.targets, (fragment.id(), path))?;
        merge.graft(&fragment, target)?;
    }
    if resolution.targets.is_empty() {
        return Err(OverlayError::at(owned("/")?, OverlayFault::NoFragment));
    }
    merge.settle(&mut resolution, &external, &local)?;
    merge.finish(&resolution)?;
    resolution.needs = merge.needs;
    Ok(resolution)
}

/// Puts it on again.
pub(super) fn replay<'a>(
    tree: &mut Edited<'a>,
    overlay: &Tree<'a>,
    id: OverlayId,
    resolution: &Resolution,
) -> Result<(), OverlayError> {
    let mut merge = Merge::new(tree, overlay, id, &resolution.phandles)?;
    for (fragment, (_, path)) in fragments(overlay).zip(&resolution.targets) {
        let place = merge.tree.find(path).ok().flatten();
        let missing = || Ok::<_, DtError>(OverlayFault::TargetMissing { target: owned(path)? });
        let Some(place) = place else { return Err(fault(&fragment, missing()?)) };
        merge.graft(&fragment, place)?;
    }
    merge.finish(resolution)
}

/// The fragments, in the order of the blob.
fn fragments<'t, 'a>(overlay: &'t Tree<'a>) -> impl Iterator<Item = Node<'t, 'a>> {
    overlay.root().into_iter().flat_map(|root| root.children()).filter(|node| contents(node).is_some())
}

fn contents<'t, 'a>(fragment: &Node<'t, 'a>) -> Option<Node<'t, 'a>> {
    fragment.children().find(|child| child.name() == "__overlay__")
}

impl<'m, 'a> Merge<'m, 'a> {
    fn new(
        tree: &'m mut Edited<'a>,
        overlay: &'m Tree<'a>,
        id: OverlayId,
        known: &'m [(NodeId, u32)],
    ) -> Result<Self, OverlayError> {
        let mut places = Vec::new();
        few::extend(&mut places, (0..overlay.len()).map(|_| None))?;
        let behind = tree.greatest_phandle();
        Ok(Self { tree, overlay, id, places, known, needs: Vec::new(), behind })
    }

    /// What `fragment` is put onto.
    fn target(&self, fragment: &Node<'_, 'a>, external: &[External], local: &[Local]) -> Result<Place, OverlayError> {
        let target = fragment.properties().enumerate().find(|(_, property)| property.name() == "target");
        if let Some((at, property)) = target {
            let cell = Cell { node: fragment.id(), property: at, offset: 0 };
            if let Some(found) = external.iter().rev().find(|external| external.cell == cell) {
                return Ok(found.target);
            }
            if let Some(found) = local.iter().rev().find(|local| local.cell == cell) {
                return self.placed(found.target).ok_or_else(|| self.unplaced(fragment.id(), "target", found.target));
            }
            let no_target = || fault(fragment, OverlayFault::NoTarget);
            let phandle = <[u8; 4]>::try_from(property.value()).map_err(|_| no_target())?;
            let phandle = u32::from_be_bytes(phandle);
            let missing = |target| fault(fragment, OverlayFault::TargetMissing { target });
            return match self.tree.by_phandle(phandle) {
                Some(place) => Ok(place),
                None => Err(missing(hexadecimal(phandle)?)),
            };
        }
        let path = fragment.property("target-path").and_then(|property| plain(property.value()));
        let path = path.ok_or_else(|| fault(fragment, OverlayFault::NoTarget))?;
        match self.tree.find(path) {
            Ok(Some(place)) => Ok(place),
            Ok(None) => Err(fault(fragment, OverlayFault::TargetMissing { target: owned(path)? })),
            Err(_) => Err(fault(fragment, OverlayFault::AmbiguousTarget { target: owned(path)? })),
        }
    }

    /// Puts what `fragment` has onto `target`.
    fn graft(&mut self, fragment: &Node<'m, 'a>, target: Place) -> Result<(), OverlayError> {
        let Some(top) = contents(fragment) else { return Ok(()) };
        let first = top.id().index();
        for node in self.overlay.nodes().skip(first) {
            let place = match node.parent() {
                _ if node.id() == top.id() => target,
                Some(parent) if parent.id().index() >= first => {
                    let Some(above) = self.placed(parent.id()) else { continue };
                    match self.tree.child(above, node.name()) {
                        Some(place) => {
                            self.need(place, 0)?;
                            place
                        }
                        None => self.tree.add(above, node.name(), self.id.0)?,
                    }
                }
                // All below is done.
                _ => break,
            };
            if let Some(slot) = self.places.get_mut(node.id().index()) {
                *slot = Some(place);
            }
            self.take_properties(&node, place)?;
        }
        Ok(())
    }

    fn take_properties(&mut self, node: &Node<'_, 'a>, place: Place) -> Result<(), OverlayError> {
        let kept = self.tree.phandle(place);
        if let (None, Some(phandle)) = (kept, node.phandle()) {
            let known = self.known.binary_search_by_key(&node.id(), |entry| entry.0);
            let known = known.ok().and_then(|at| self.known.get(at)).map(|entry| entry.1);
            // The last one means "not known yet".
            let moved = || phandle.checked_add(self.behind).filter(|moved| *moved != u32::MAX);
            let number = known.or_else(moved).ok_or_else(|| fault(node, OverlayFault::PhandlesExhausted))?;
            self.tree.set_phandle(place, number, true)?;
        }
        let phandle = self.tree.phandle(place);
        for (at, property) in node.properties().enumerate() {
            let origin = Origin { overlay: self.id.0, source: Some((node.id(), at)) };
            let mut own = None;
            if matches!(property.name(), "phandle" | "linux,phandle") {
                if kept.is_some() {
                    continue;
                }
                let mut bytes = Vec::new();
                append(&mut bytes, &phandle.unwrap_or_default().to_be_bytes())?;
                own = Some(bytes);
            }
            self.tree.set(place, property.name(), property.value(), own, origin)?;
        }
        Ok(())
    }

    /// Notes the phandles that nodes and references have got.
    fn settle(&self, resolution: &mut Resolution, external: &[External], local: &[Local]) -> Result<(), OverlayError> {
        for node in self.overlay.nodes().filter(|node| node.phandle().is_some()) {
            if let Some(phandle) = self.placed(node.id()).and_then(|place| self.tree.phandle(place)) {
                few::push(&mut resolution.phandles, (node.id(), phandle))?;
            }
        }
        resolution.references.try_reserve(external.len().saturating_add(local.len()))?;
        for local in local {
            let phandle = self.placed(local.target).and_then(|place| self.tree.phandle(place));
            // What goes nowhere needs no phandle.
            if self.placed(local.cell.node).is_some() {
                let property = property_of(self.overlay, local.cell).map_or("", |property| property.name());
                let phandle = phandle.ok_or_else(|| self.unplaced(local.cell.node, property, local.target))?;
                few::push_within(&mut resolution.references, (local.cell, phandle));
            }
        }
        few::extend_within(
            &mut resolution.references,
            external.iter().map(|external| (external.cell, external.phandle)),
        );
        Ok(())
    }

    /// Writes the references and the symbols.
    fn finish(&mut self, resolution: &Resolution) -> Result<(), OverlayError> {
        for (cell, phandle) in &resolution.references {
            let (Some(place), Some(property)) = (self.placed(cell.node), property_of(self.overlay, *cell)) else {
                continue;
            };
            let origin = Origin { overlay: self.id.0, source: Some((cell.node, cell.property)) };
            self.tree.patch(place, property.name(), origin, cell.offset, *phandle)?;
        }
        let Some(symbols) = child_of_root(self.overlay, SYMBOLS) else { return Ok(()) };
        for symbol in symbols.properties() {
            let path = plain(symbol.value()).and_then(|path| path.strip_prefix('/'));
            let Some(path) = path else {
                return Err(fault(&symbols, OverlayFault::Symbol { label: owned(symbol.name())? }));
            };
            // What stands outside the fragments does not come into the tree.
            if let Some(bytes) = self.symbol(resolution, path)? {
                let origin = Origin { overlay: self.id.0, source: None };
                let at = self.symbols_of_tree()?;
                self.tree.set(at, symbol.name(), &[], Some(bytes), origin)?;
            }
        }
        Ok(())
    }

    /// Where `fragment/__overlay__/below` has gone.
    fn symbol(&self, resolution: &Resolution, path: &str) -> Result<Option<Vec<u8>>, DtError> {
        let Some((fragment, below)) = path.split_once('/') else { return Ok(None) };
        let below = below.strip_prefix("__overlay__").filter(|below| below.is_empty() || below.starts_with('/'));
        let target = child_of_root(self.overlay, fragment)
            .and_then(|fragment| resolution.targets.iter().find(|target| target.0 == fragment.id()));
        let (Some(below), Some((_, target))) = (below, target) else { return Ok(None) };
        let (target, below) = (target.trim_end_matches('/'), below.trim_end_matches('/'));
        let mut bytes = Vec::new();
        append(&mut bytes, target.as_bytes())?;
        append(&mut bytes, below.as_bytes())?;
        if bytes.is_empty() {
            append(&mut bytes, b"/")?;
        }
        append(&mut bytes, b"\0")?;
        Ok(Some(bytes))
    }

    fn symbols_of_tree(&mut self) -> Result<Place, OverlayError> {
        let root = self.tree.root().ok_or(DtError::OutOfMemory)?;
        match self.tree.child(root, SYMBOLS) {
            Some(symbols) => Ok(symbols),
            None => self.tree.add(root, SYMBOLS, self.id.0),
        }
    }

    fn placed(&self, node: NodeId) -> Option<Place> {
        self.places.get(node.index()).copied().flatten()
    }

    /// Notes that this overlay refers to a node, and to what `label_by` brought.
    fn need(&mut self, place: Place, label_by: u64) -> Result<(), OverlayError> {
        for other in [self.tree.brought_by(place), label_by].map(OverlayId) {
            if other.0 != 0 && other != self.id && self.needs.iter().all(|need| need.0 != other) {
                let path = self.tree.path(place)?;
                few::push(&mut self.needs, (other, path))?;
            }
        }
        Ok(())
    }

    fn unplaced(&self, node: NodeId, property: &str, target: NodeId) -> OverlayError {
        let named = || -> Result<OverlayError, DtError> {
            let target = self.overlay.path_of(target)?;
            let fault = OverlayFault::Unplaced { property: owned(property)?, target };
            Ok(OverlayError::at(self.overlay.path_of(node)?, fault))
        };
        named().unwrap_or_else(OverlayError::Tree)
    }
}

fn fault(node: &Node<'_, '_>, fault: OverlayFault) -> OverlayError {
    match node.path() {
        Ok(path) => OverlayError::at(path, fault),
        Err(error) => error.into(),
    }
}
