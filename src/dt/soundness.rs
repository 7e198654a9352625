//! From a blob to a [`Tree`] whose nodes can be relied on: what two nodes or two properties share is refused.

use alloc::vec::Vec;

use super::blob::Walk;
use super::refusal::Refusals;
use super::tree::{Node, NodeId, Refused, Tree};
use super::{DtError, NodeFault};
use crate::few;

impl<'a> Tree<'a> {
    /// Reads the tree of `blob`; what follows the blob's `totalsize` bytes is ignored.
    ///
    /// # Errors
    ///
    /// [`DtError::Blob`] for a malformed or truncated blob, [`DtError::Node`] for a name or phandle that two nodes
    /// or properties share, [`DtError::OutOfMemory`] when there is no room for the tree.
    pub fn read(blob: &'a [u8]) -> Result<Self, DtError> {
        let mut refusals = Refusals::default();
        let tree = Self::read_lenient(blob, &mut refusals)?;
        Refusals::first(refusals.into_list())?;
        Ok(tree)
    }

    /// The same with bad nodes: of names and phandles that two have, all are refused, with what is below.
    pub(super) fn read_lenient(blob: &'a [u8], refusals: &mut Refusals) -> Result<Self, DtError> {
        let mut tree = Self::collect(Walk::new(blob)?)?;
        refuse_repeated_properties(&mut tree, refusals)?;
        refuse_repeated_names(&mut tree, refusals)?;
        hand_refusals_down(&mut tree);
        tree.mark_enabled();
        // Nobody inherits a phandle.
        collect_phandles(&mut tree, refusals)?;
        Ok(tree)
    }
}

fn refuse_repeated_properties(tree: &mut Tree<'_>, refusals: &mut Refusals) -> Result<(), DtError> {
    let properties = tree.nodes().flat_map(|node| node.properties().map(move |property| (node.id(), property.name())));
    let mut last = None;
    for (id, name) in repeated(properties, tree.property_count())? {
        if last != Some(id) {
            let error = tree.error_at(id, NodeFault::DuplicateProperty { property: few::text(name)? });
            refusals.add(tree, id, Refused::Whole, error)?;
        }
        last = Some(id);
    }
    Ok(())
}

fn refuse_repeated_names(tree: &mut Tree<'_>, refusals: &mut Refusals) -> Result<(), DtError> {
    let children = tree.nodes().filter_map(|node| Some((node.parent()?.id(), node.name())));
    let names = repeated(children, tree.len())?;
    if names.is_empty() {
        return Ok(());
    }
    for index in 0..tree.len() {
        let Some(node) = tree.nth(index) else { continue };
        let Some(parent) = node.parent() else { continue };
        if names.binary_search(&(parent.id(), node.name())).is_ok() {
            let (id, error) = (node.id(), node.error(NodeFault::DuplicateNode));
            refusals.add(tree, id, Refused::Whole, error)?;
        }
    }
    Ok(())
}

/// The pairs that `pairs` has twice or more, by order, each once.
fn repeated<'a>(
    pairs: impl Iterator<Item = (NodeId, &'a str)>,
    at_most: usize,
) -> Result<Vec<(NodeId, &'a str)>, DtError> {
    let mut sorted: Vec<(NodeId, &'a str)> = Vec::new();
    sorted.try_reserve_exact(at_most)?;
    few::extend_within(&mut sorted, pairs);
    few::sort(&mut sorted, &|one, other| one < other);
    let mut found: Vec<(NodeId, &'a str)> = Vec::new();
    for (one, next) in sorted.iter().zip(sorted.iter().skip(1)) {
        if one == next && found.last() != Some(one) {
            few::push(&mut found, *one)?;
        }
    }
    Ok(found)
}

/// What a node inherits it has from above: below one that is not sound nothing is (R3).
fn hand_refusals_down(tree: &mut Tree<'_>) {
    for index in 0..tree.len() {
        let Some(node) = tree.nth(index) else { continue };
        if node.parent().is_some_and(|parent| parent.refused() != Refused::No) && node.refused() == Refused::No {
            tree.refuse(node.id(), Refused::Above);
        }
    }
}

fn collect_phandles(tree: &mut Tree<'_>, refusals: &mut Refusals) -> Result<(), DtError> {
    let mut phandles = Vec::new();
    for index in 0..tree.len() {
        let Some(node) = tree.nth(index).filter(|node| !node.is_metadata()) else { continue };
        let id = node.id();
        match stated_phandle(&node) {
            Ok(None) => {}
            Ok(Some(phandle)) => {
                few::push(&mut phandles, (phandle, id))?;
            }
            Err(error) => refusals.add(tree, id, Refused::Whole, error)?,
        }
    }
    few::sort(&mut phandles, &|one, other| one < other);
    refuse_repeated_phandles(tree, refusals, &phandles)?;
    tree.set_phandles(phandles);
    Ok(())
}

fn stated_phandle(node: &Node<'_, '_>) -> Result<Option<u32>, DtError> {
    let phandle = node.u32("phandle")?;
    let legacy = node.u32("linux,phandle")?;
    match (phandle.or(legacy), legacy) {
        (Some(phandle @ (0 | u32::MAX)), _) => Err(node.error(NodeFault::ReservedPhandle { phandle })),
        (Some(phandle), Some(legacy)) if phandle != legacy => {
            Err(node.error(NodeFault::ContradictingPhandles { phandle, legacy }))
        }
        (phandle, _) => Ok(phandle),
    }
}

/// Which of the nodes a reference means nobody can say: none of them is sound. What refers to one finds it refused.
fn refuse_repeated_phandles(
    tree: &mut Tree<'_>,
    refusals: &mut Refusals,
    sorted: &[(u32, NodeId)],
) -> Result<(), DtError> {
    let mut last = None;
    for (&(phandle, first), &(next, second)) in sorted.iter().zip(sorted.iter().skip(1)) {
        if phandle != next {
            continue;
        }
        let mut refuse = |id, other| {
            let error = tree.error_at(id, NodeFault::DuplicatePhandle { phandle, other: tree.path_of(other)? });
            refusals.add(tree, id, Refused::Whole, error)
        };
        refuse(second, first)?;
        if last != Some(phandle) {
            refuse(first, second)?;
        }
        last = Some(phandle);
    }
    Ok(())
}
