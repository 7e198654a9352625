//! Why an overlay is not applied or not reverted.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use thiserror::Error;

use crate::assign;
use crate::dt::{DtError, Refusal};

/// Why an overlay was not applied or not reverted. The tree and the service are as they were, unless the error is
/// [`NotRestored`](Self::NotRestored).
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OverlayError {
    /// An earlier operation has left devices or SMMUs on their way out, and they cannot go yet: the first is told.
    #[error("an earlier overlay operation is not finished: {0}")]
    Unfinished(Box<Self>),
    /// The overlay or the tree says something of this node that cannot be followed.
    #[error("{path}: {fault}")]
    Fault {
        /// Full path of the node: in the overlay where it begins with a fragment, else in the tree.
        path: String,
        /// What is wrong.
        fault: OverlayFault,
    },
    /// The integrator refused or could not do its part.
    #[error("{path}: its {step} failed: {reason}")]
    Host {
        /// The SMMU or the host bridge.
        path: String,
        /// What it was asked for.
        step: &'static str,
        /// What it says.
        reason: &'static str,
    },
    /// No overlay of this number is applied.
    #[error("no overlay {0} is applied")]
    NotApplied(OverlayId),
    /// The operation failed, and not all could be put back.
    #[error("{error}; not registered any more: {}", Names(lost))]
    NotRestored {
        /// Paths of devices that were registered before, and are not any more.
        lost: Vec<String>,
        /// Why the operation failed.
        error: Box<Self>,
    },
    /// The overlay's own blob cannot be read.
    #[error("the overlay cannot be read: {0}")]
    Overlay(DtError),
    /// With the overlay, a node would not be offered for what it says.
    #[error("with this change {0}")]
    Refused(Refusal),
    /// The service refused a device or an SMMU.
    #[error("{0}")]
    Service(assign::Error),
    /// The tree cannot be read or written.
    #[error(transparent)]
    Tree(#[from] DtError),
}

impl OverlayError {
    /// Whether another operation was in the way, so that the same call can succeed later.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        match self {
            // An SMMU with a call inside that another CPU is slow to end does not leave yet.
            Self::Service(assign::Error { cause, .. }) => {
                matches!(
                    cause,
                    assign::Cause::Busy { .. } | assign::Cause::Iommu { error: assign::IommuError::Busy, .. }
                )
            }
            Self::Unfinished(error) => error.is_busy(),
            _ => false,
        }
    }

    pub(super) fn at(path: String, fault: OverlayFault) -> Self {
        Self::Fault { path, fault }
    }

    /// What a tree says that `later` would have to be reverted to.
    pub(super) fn out_of_order(self, by: OverlayId) -> Self {
        match self {
            Self::Fault { path, .. } | Self::Refused(Refusal { path, .. }) => {
                Self::at(path, OverlayFault::OutOfOrder { by })
            }
            other => other,
        }
    }
}

impl From<alloc::collections::TryReserveError> for OverlayError {
    fn from(error: alloc::collections::TryReserveError) -> Self {
        Self::Tree(error.into())
    }
}

/// Names an overlay for as long as its [`Overlays`](super::Overlays) lives: 1, 2, ... in the order in which they were
/// applied, and never given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OverlayId(pub(super) u64);

impl OverlayId {
    /// The number itself.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for OverlayId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// What is wrong with a node of an overlay, or with a node of the tree for the overlay's sake.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OverlayFault {
    /// The very same overlay is applied already; the node is its first target.
    #[error("overlay {by}, which is applied here, is this very one")]
    AppliedAlready {
        /// The overlay.
        by: OverlayId,
    },
    /// Two children could be meant by a name without a unit address.
    #[error("its target {target} could be one of several nodes: the unit address is missing")]
    AmbiguousTarget {
        /// The path.
        target: String,
    },
    /// A device would get other streams or another parent while its removal is not complete.
    #[error("its streams or its parent change, and its removal is not finished: remove it again")]
    DeviceGoing,
    /// A device would get other streams or another parent while a domain owns it.
    #[error("its streams or its parent change, and it is assigned to {owner}: deassign it first")]
    DeviceInUse {
        /// The domain that it is assigned to.
        owner: assign::Label,
    },
    /// An entry of `__fixups__` or `__local_fixups__` names no four bytes of the overlay.
    #[error("`{property}` has an entry that names no four bytes of a property of the overlay")]
    Fixup {
        /// The property that has the entry.
        property: String,
    },
    /// A host bridge would get another map, other buses or another segment while its functions are known by the old ones.
    #[error("it is a host bridge in use, and its map or its buses change")]
    HostBridgeChanges,
    /// A label is used that the tree's `__symbols__` does not have.
    #[error("`{property}` refers to &{label}, and the tree has no such label")]
    LabelMissing {
        /// The property.
        property: String,
        /// The label.
        label: String,
    },
    /// A label's node is not in the tree.
    #[error("`{property}` refers to &{label}, which is {target}, and the tree has no such node")]
    LabelStale {
        /// The property.
        property: String,
        /// The label.
        label: String,
        /// What `__symbols__` says.
        target: String,
    },
    /// The blob has no fragment: no child of its root has an `__overlay__`.
    #[error("it has no fragment with an `__overlay__`: this is no overlay")]
    NoFragment,
    /// A label's node has no phandle.
    #[error("`{property}` refers to &{label}, which is {target}, and that node has no phandle")]
    NoPhandle {
        /// The property.
        property: String,
        /// The label.
        label: String,
        /// Path of the node.
        target: String,
    },
    /// A device comes again that left without a reset, and it would join a device that is assigned: it could not be kept from
    /// that guest.
    #[error("it left without a reset, and shares streams with {mate}, which is assigned: deassign that first")]
    NotReset {
        /// The device that is assigned.
        mate: assign::Label,
    },
    /// A fragment has neither `target` nor `target-path`.
    #[error("it has neither a `target` nor a `target-path` that can be read")]
    NoTarget,
    /// A later overlay could not be reverted after this one: what it says of the node would change an SMMU or a host bridge that
    /// this one keeps out of use, or be malformed.
    #[error("overlay {by} could not be reverted after this one: revert that one first")]
    OutOfOrder {
        /// The later overlay.
        by: OverlayId,
    },
    /// There is no phandle left for a node.
    #[error("no phandle is left for it")]
    PhandlesExhausted,
    /// Another overlay refers to a node that would go.
    #[error("overlay {by} refers to it: revert that one first")]
    ReferredTo {
        /// The overlay that refers to it.
        by: OverlayId,
    },
    /// An SMMU in service would get other registers, interrupts or properties.
    #[error("it is an SMMU in service, and what its driver was told changes")]
    SmmuChanges,
    /// An entry of `__symbols__` is no path.
    #[error("`{label}` is no path")]
    Symbol {
        /// The entry.
        label: String,
    },
    /// A fragment's target is not in the tree.
    #[error("its target {target} is not in the tree")]
    TargetMissing {
        /// The path, or the phandle.
        target: String,
    },
    /// The node would be nested too deep.
    #[error("it would be nested more than {} deep", crate::dt::MAX_DEPTH)]
    TooDeep,
    /// A reference within the overlay is to a node that no fragment puts into the tree.
    #[error("`{property}` refers to {target}, which no fragment up to this one puts into the tree")]
    Unplaced {
        /// The property.
        property: String,
        /// Path of the node in the overlay, or its phandle.
        target: String,
    },
}

/// Some names with commas between them.
struct Names<'a>(&'a [String]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, name) in self.0.iter().enumerate() {
            write!(f, "{}{name}", if place == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "overlay_error_tests.rs"]
#[expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]
mod tests;
