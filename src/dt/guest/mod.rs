//! The guest's side: the part of a device tree that shows a guest what it was assigned.
//!
//! A [`GuestTree`] is a root with a bus `/passthrough`, as Xen's partial trees are: the integrator copies that bus into the
//! guest's own tree, or takes the blob for a start. It has the assigned nodes with their registers and interrupts where
//! the guest has them, and a host bridge for assigned functions. It has nothing of IOMMUs, and nothing that a guest could not reach: what a node
//! depends on is listed instead ([`Missing`]).
//!
//! | file | what |
//! |---|---|
//! | `guest_error.rs` | why a node cannot be shown to a guest |
//! | `dependencies.rs` | which properties refer to what, and which are left out |
//! | `output.rs` | where it is written to |
//! | `values.rs` | values of properties in the making |
//! | `subtree.rs` | one node with what is below it, as the guest sees it |
//! | `guest_bridge.rs` | a host bridge for functions |
//! | `guest_tree.rs` | the tree |

mod guest_error;
mod dependencies;
mod output;
mod values;
mod subtree;
mod guest_bridge;
mod guest_tree;

pub use dependencies::{Dependency, Missing};
pub use guest_bridge::GuestBridge;
pub use guest_error::GuestError;
pub use guest_tree::{GuestPart, GuestTree};
pub use subtree::{GuestLayout, GuestView};
