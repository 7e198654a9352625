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
//! | `removal` | remove, the whole-tree form, and what a mark leads to |
//! | `run` | no operation: the frame of one on a group |
//! | `add` | add |
//! | `moves` | assign, reassign, deassign, their group forms, quarantine |
//! | `reservation` | test an assign, or reserve it |
//! | `domains` | create, destroy, retire a domain |
//! | `flush` | flush a domain, or part of it |
//! | `iommus` | register, unregister, suspend, resume, shut down |
//! | `faults` | handle and tend faults |
//! | `enter` | enter a device, or the service from interrupts |
//! | `within` | the operations from inside a callback |

mod on_all_iommus;
mod removal;
mod run;
mod add;
mod moves;
mod reservation;
mod domains;
mod flush;
mod iommus;
mod faults;
mod enter;
mod within;

pub use domains::TablesHeld;
pub use enter::{DeviceCall, InterruptHandle};
pub use faults::Storm;
pub use iommus::IommuHandle;
pub use moves::{Deassigned, Quarantine};
pub use removal::Removal;
pub use reservation::Reservation;
pub use within::Within;
