//! Nodes that are not offered: one bad node does not take the board away.
//!
//! # Invariants
//!
//! R1. What is malformed is offered nowhere: not as an SMMU, not as a device, not as a host bridge.
//! R2. Nobody who refers to a refused IOMMU is offered: it would pass for one that somebody else programs.
//! R3. What a node inherits is inherited from sound nodes: where a node or property is there twice, all below is refused.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::tree::{NodeId, Refused, Tree};
use super::{DtError, NodeFault};
use crate::few;

/// A node that is not offered, and why.
///
/// Its streams are unknown, so that nothing is entered for them: they fault, except for those that a sound device has too.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The node.
    pub node: NodeId,
    /// Full path of the node.
    pub path: String,
    /// What is wrong: most often there, sometimes with a node that it inherits from or refers to, and which is named.
    pub error: DtError,
}

impl Refusal {
    /// Whether firmware says something of the node that cannot be followed. If not, it is marked for passing through and
    /// no SMMU that can be used sees its DMA ([`NodeFault::Unseen`]): it can still be listed as a device, behind an SMMU
    /// that is disabled.
    #[must_use]
    pub const fn is_malformed(&self) -> bool {
        match &self.error {
            DtError::Node { cause, .. } => cause.is_malformed(),
            _ => true,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.error {
            DtError::Node { path, .. } if *path == self.path => fmt::Display::fmt(&self.error, f),
            error => write!(f, "{}: {error}", self.path),
        }
    }
}

/// The refusals so far, in the order in which they were found.
#[derive(Debug, Default)]
pub(super) struct Refusals(Vec<Refusal>);

impl Refusals {
    /// Refuses a node for what is wrong with it. What is wrong with no node is the caller's.
    pub(super) fn add(
        &mut self,
        tree: &mut Tree<'_>,
        node: NodeId,
        how: Refused,
        error: DtError,
    ) -> Result<(), DtError> {
        if !matches!(error, DtError::Node { .. }) {
            return Err(error);
        }
        let path = tree.path_of(node)?;
        few::push(&mut self.0, Refusal { node, path, error })?;
        tree.refuse(node, how);
        Ok(())
    }

    /// Refuses a node that is below one that was refused.
    pub(super) fn add_below(&mut self, tree: &mut Tree<'_>, node: NodeId) -> Result<(), DtError> {
        let above = tree.node(node).and_then(|node| node.ancestors().find(|above| above.refused() == Refused::Whole));
        let ancestor = above.map_or(Ok(String::new()), |above| above.path())?;
        let error = tree.error_at(node, NodeFault::RefusedAncestor { ancestor });
        self.add(tree, node, Refused::Whole, error)
    }

    /// Tells of a node of which nothing is taken away.
    pub(super) fn tell(&mut self, tree: &Tree<'_>, node: NodeId, cause: NodeFault) -> Result<(), DtError> {
        let path = tree.path_of(node)?;
        few::push(&mut self.0, Refusal { node, path, error: tree.error_at(node, cause) })?;
        Ok(())
    }

    pub(super) fn into_list(self) -> Vec<Refusal> {
        self.0
    }

    /// The first that is malformed as an error, for readers that refuse all for one; else all again.
    pub(super) fn first(mut list: Vec<Refusal>) -> Result<Vec<Refusal>, DtError> {
        let first = list.iter().position(Refusal::is_malformed).and_then(|at| few::take(&mut list, at));
        first.map_or(Ok(list), |first| Err(first.error))
    }
}
