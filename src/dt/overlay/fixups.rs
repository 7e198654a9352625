//! The references of an overlay: `__fixups__` to labels of the tree, `__local_fixups__` within it.
//!
//! The device-tree compiler writes both (`dtc -@`). An entry of the first is `path:property:offset`, below the name of a
//! label; the second repeats the overlay's nodes, whose properties list offsets. At each such place stands a phandle.

use alloc::string::String;
use alloc::vec::Vec;

use super::edited::{Edited, Place};
use super::overlay_error::{OverlayError, OverlayFault};
use crate::dt::flatten::append;
use crate::dt::tree::{Node, NodeId, Tree};
use crate::dt::{DtError, Property};
use crate::few;

/// Four bytes of a property of the overlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cell {
    /// The node in the overlay's tree.
    pub(super) node: NodeId,
    /// Which of its properties.
    pub(super) property: usize,
    /// Where in its value.
    pub(super) offset: usize,
}

/// A reference to a label of the tree.
#[derive(Clone, Copy, Debug)]
pub(super) struct External {
    pub(super) cell: Cell,
    /// The label's node.
    pub(super) target: Place,
    pub(super) phandle: u32,
    /// The overlay that brought the label.
    pub(super) label_by: u64,
}

/// A reference within the overlay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Local {
    pub(super) cell: Cell,
    /// The node in the overlay's tree.
    pub(super) target: NodeId,
}

/// The references to labels, each with what it means in `tree`.
pub(super) fn external(overlay: &Tree<'_>, tree: &Edited<'_>) -> Result<Vec<External>, OverlayError> {
    let mut all = Vec::new();
    let Some(fixups) = child_of_root(overlay, "__fixups__") else { return Ok(all) };
    let symbols = tree.root().and_then(|root| tree.child(root, SYMBOLS));
    for label in fixups.properties() {
        let fault = || malformed(&fixups, label.name());
        let text = core::str::from_utf8(label.value()).ok().and_then(|text| text.strip_suffix('\0'));
        for entry in text.ok_or_else(fault)?.split('\0') {
            let (node, cell, property) = place(overlay, entry).ok_or_else(fault)?;
            let names = |make: fn(String, String) -> OverlayFault| -> Result<OverlayError, DtError> {
                Ok(OverlayError::at(node.path()?, make(owned(property)?, owned(label.name())?)))
            };
            let target = symbols.and_then(|symbols| Some((symbols, tree.text(symbols, label.name())?)));
            let Some((symbols, path)) = target else {
                return Err(names(|property, label| OverlayFault::LabelMissing { property, label })?);
            };
            let Some(target) = tree.find(path).ok().flatten().filter(|_| path.starts_with('/')) else {
                let fault = OverlayFault::LabelStale {
                    property: owned(property)?,
                    label: owned(label.name())?,
                    target: owned(path)?,
                };
                return Err(OverlayError::at(node.path()?, fault));
            };
            let Some(phandle) = tree.phandle(target) else {
                let fault = OverlayFault::NoPhandle {
                    property: owned(property)?,
                    label: owned(label.name())?,
                    target: owned(path)?,
                };
                return Err(OverlayError::at(node.path()?, fault));
            };
            let label_by = tree.property_brought_by(symbols, label.name());
            few::push(&mut all, External { cell, target, phandle, label_by })?;
        }
    }
    Ok(all)
}

/// The references within the overlay.
pub(super) fn local(overlay: &Tree<'_>) -> Result<Vec<Local>, OverlayError> {
    let mut all = Vec::new();
    let Some(fixups) = child_of_root(overlay, "__local_fixups__") else { return Ok(all) };
    let first = fixups.id().index();
    // Which node of the overlay each node below stands for.
    let mut means: Vec<NodeId> = Vec::new();
    for node in overlay.nodes().skip(first) {
        let above = node.parent().and_then(|parent| parent.id().index().checked_sub(first));
        let meant = match (node.id() == fixups.id(), above) {
            (true, _) => overlay.root(),
            (false, Some(above)) => {
                let above = means.get(above).and_then(|id| overlay.node(*id));
                above.and_then(|above| above.children().find(|child| child.name() == node.name()))
            }
            // All below is read.
            (false, None) => break,
        };
        let meant = meant.ok_or_else(|| malformed_at(&node, node.name()))?;
        few::push(&mut means, meant.id())?;
        for property in node.properties() {
            if !property.value().len().is_multiple_of(4) {
                return Err(malformed_at(&node, property.name()));
            }
            for offset in property.value().chunks_exact(4) {
                let found = number(offset).and_then(|offset| {
                    let cell = cell(&meant, property.name(), offset)?;
                    Some((cell, value_at(overlay, cell)?))
                });
                let (cell, phandle) = found.ok_or_else(|| malformed_at(&node, property.name()))?;
                let Some(target) = overlay.by_phandle(phandle) else {
                    let target = hexadecimal(phandle)?;
                    let fault = OverlayFault::Unplaced { property: owned(property.name())?, target };
                    return Err(OverlayError::at(meant.path()?, fault));
                };
                few::push(&mut all, Local { cell, target: target.id() })?;
            }
        }
    }
    Ok(all)
}

/// The child of the root that is of this name.
pub(super) fn child_of_root<'t, 'a>(tree: &'t Tree<'a>, name: &str) -> Option<Node<'t, 'a>> {
    tree.root()?.children().find(|child| child.name() == name)
}

/// The property that a cell is of.
pub(super) fn property_of<'a>(overlay: &Tree<'a>, cell: Cell) -> Option<Property<'a>> {
    overlay.node(cell.node)?.properties().nth(cell.property)
}

fn value_at(overlay: &Tree<'_>, cell: Cell) -> Option<u32> {
    number(property_of(overlay, cell)?.value().get(cell.offset..)?.get(..4)?)
        .and_then(|value| u32::try_from(value).ok())
}

/// `path:property:offset`.
fn place<'t, 'a, 'n>(overlay: &'t Tree<'a>, entry: &'n str) -> Option<(Node<'t, 'a>, Cell, &'n str)> {
    let (path, rest) = entry.split_once(':')?;
    let (property, offset) = rest.split_once(':')?;
    let node = overlay.find(path)?;
    let offset = offset.bytes().all(|byte| byte.is_ascii_digit()).then(|| offset.parse().ok()).flatten()?;
    Some((node, cell(&node, property, offset)?, property))
}

fn cell(node: &Node<'_, '_>, name: &str, offset: usize) -> Option<Cell> {
    let (property, found) = node.properties().enumerate().find(|(_, property)| property.name() == name)?;
    let end = offset.checked_add(4)?;
    (end <= found.value().len()).then_some(Cell { node: node.id(), property, offset })
}

fn number(bytes: &[u8]) -> Option<usize> {
    usize::try_from(u32::from_be_bytes(bytes.try_into().ok()?)).ok()
}

fn malformed(node: &Node<'_, '_>, property: &str) -> OverlayError {
    malformed_at(node, property)
}

fn malformed_at(node: &Node<'_, '_>, property: &str) -> OverlayError {
    let named = || -> Result<OverlayError, DtError> {
        Ok(OverlayError::at(node.path()?, OverlayFault::Fixup { property: owned(property)? }))
    };
    named().unwrap_or_else(OverlayError::Tree)
}

/// A copy of a name.
pub(super) fn owned(name: &str) -> Result<String, DtError> {
    Ok(few::text(name)?)
}

/// A phandle as errors say it.
pub(super) fn hexadecimal(phandle: u32) -> Result<String, DtError> {
    let mut bytes = Vec::new();
    append(&mut bytes, b"phandle 0x")?;
    for shift in (0..8_u32).rev() {
        let digit = phandle >> shift.saturating_mul(4) & 0xf;
        if phandle >> shift.saturating_mul(4) != 0 || shift == 0 {
            append(&mut bytes, &[*b"0123456789abcdef".get(digit as usize).unwrap_or(&b'0')])?;
        }
    }
    Ok(String::from_utf8(bytes).unwrap_or_default())
}

pub(super) const SYMBOLS: &str = "__symbols__";
