//! Why a guest's tree cannot be written.

use alloc::string::String;

use thiserror::Error;

use crate::dt::DtError;

/// Why a node cannot be shown to a guest. Nothing of it is written then.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum GuestError {
    /// The node or one above it is disabled.
    #[error("{path}: firmware disables it")]
    Disabled {
        /// Full path of the node.
        path: String,
    },
    /// The node is a PCI host bridge: a guest gets functions, and a bridge of its own.
    #[error("{path}: it is a PCI host bridge, of which a guest gets functions")]
    HostBridge {
        /// Full path of the node.
        path: String,
    },
    /// The node is an IOMMU: who has its registers is confined by nothing.
    #[error("{path}: it is an IOMMU, which no guest gets")]
    Iommu {
        /// Full path of the node.
        path: String,
    },
    /// There is no such node.
    #[error("there is no such node in the tree")]
    NoNode,
    /// The integrator has no place for registers of the node.
    #[error("{path}: the guest has no place for its {size:#x} bytes at {base:#x}")]
    NotPlaced {
        /// Full path of the node.
        path: String,
        /// Where the registers are, as the CPU addresses them.
        base: u64,
        /// How many bytes.
        size: u64,
    },
    /// No phandle is left for the nodes.
    #[error("{path}: no phandle is left for it")]
    PhandlesExhausted {
        /// Full path of the node.
        path: String,
    },
    /// Two nodes would have one name in the guest.
    #[error("{path}: in the guest it would be named {name}, as {other} is already")]
    SameName {
        /// Full path of the node.
        path: String,
        /// The name.
        name: String,
        /// Full path of the other node.
        other: String,
    },
    /// What the tree says of the node cannot be followed, or memory is short.
    #[error(transparent)]
    Tree(#[from] DtError),
}

impl From<alloc::collections::TryReserveError> for GuestError {
    fn from(error: alloc::collections::TryReserveError) -> Self {
        Self::Tree(error.into())
    }
}
