//! The operations, one in each file, to be read from top to bottom.
//!
//! Their shape: a public method, for a call from outside; a `_within` form that is handed the chain of claims above and makes
//! the token that nothing is locked (`held`); further functions that are passed both. An operation claims a group
//! ([`claim`](super::claim)), works on what it owns, puts it back, and as its last act carries out the removals that were asked
//! for meanwhile ([`removal::carry_out`](removal)).
//!
//! | file | operations |
//! |---|---|
//! | `on_all_iommus` | no operation: a step of one on all IOMMUs that it concerns |
//! | `removal` | remove, and what a mark leads to |
//! | `removal_tree` | remove with all that stands behind, children first |
//! | `run` | no operation: the frame of one on a group |
//! | `joining` | no operation: which groups a new device joins |
//! | `registering` | no operation: a new device's key and its parent |
//! | `add` | add |
//! | `deassign` | deassign and its group form, quarantine |
//! | `moves` | assign, reassign, their group forms |
//! | `reregistration` | register devices anew with other streams, and give them back to their owners |
//! | `reservation` | test an assign, or reserve it |
//! | `domains` | create, destroy, retire a domain |
//! | `iotlb_flush` | flush a domain, or part of it |
//! | `iommus` | register, unregister, suspend, resume, shut down |
//! | `faults` | handle and tend faults |
//! | `enter` | enter a device, or the service from interrupts |
//! | `within` | the operations from inside a callback |

mod on_all_iommus;
mod removal;
mod removal_tree;
mod run;
mod joining;
mod registering;
mod add;
mod deassign;
mod moves;
mod reregistration;
mod reservation;
mod domains;
mod iotlb_flush;
mod iommus;
mod faults;
mod enter;
mod within;

pub use deassign::{Deassigned, Quarantine};
pub use domains::TablesHeld;
pub use enter::{DeviceCall, InterruptHandle};
pub use faults::Storm;
pub use iommus::IommuHandle;
pub use removal::Removal;
pub use reregistration::Reregistered;
pub use reservation::Reservation;
pub use within::Within;
