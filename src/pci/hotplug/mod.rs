//! Functions that come and go, as events from whoever handles the slots.
//!
//! | event | call | what is done |
//! |---|---|---|
//! | something answers | [`HotPlug::arrived`] | what is there is enumerated, and what is new is added, bridges before what is below |
//! | it is gone, or is going without being asked | [`left`] | each device is cut off by the SMMU and removed, children first; no register of it is touched |
//! | someone wants to take it out | [`HotPlug::requested`] | each device is taken from its owner, made quiet and reset by its hooks, then removed, children first |
//! | its buses get other numbers | [`HotPlug::renumbered`] | each device is made quiet and blocked, registered with its new streams, and given back to its owner |
//!
//! Each is one call with one result for each device. What fails for one does not keep the others, but for those that
//! stand before it: a bridge stays while something behind it does.
//!
//! Power, links, bus numbers and base addresses are the caller's: before `arrived` a function has them, and after `requested` it
//! may lose them.
//!
//! | file | what |
//! |---|---|
//! | `slot.rs` | where functions come and go |
//! | `departures.rs` | out: by surprise, and orderly |
//! | `arrivals.rs` | in |
//! | `renumbering.rs` | buses that get other numbers while functions stay |
//!
//! # Context
//!
//! Waiting context, with no lock held. Calls about different slots may run at once, and beside any operation of the
//! service; about one slot there is one call at a time, in the order of the events.

mod slot;
mod departures;
mod arrivals;
mod renumbering;

pub use arrivals::{Arrival, Arrived, HotPlug, NotOffered};
pub use departures::{Departure, left};
pub use renumbering::RenumberError;
pub use slot::Slot;
