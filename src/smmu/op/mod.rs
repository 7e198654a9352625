//! The operations, each from top to bottom. They call down into the map, the banks and the TLB; nothing calls back.
//!
//! Every function here that takes `held` with nothing locked takes what it needs itself; it is called between get and put of
//! the power hook where it touches registers.
//!
//! | file | what |
//! |---|---|
//! | `drain.rs` | waiting for a drain, and finishing one that was not confirmed |
//! | `enrol.rs` | a device comes and goes: make, publish, reserve, enrol, withdraw |
//! | `repack.rs` | a smaller cover for a group, when entries run out |
//! | `attach.rs` | from fault into a domain: plan, abandon, install |
//! | `detach.rs` | back to fault: block; and the end of a domain: forget |
//! | `flush.rs` | making the TLB forget a domain, or pages of it |

mod drain;
pub(super) mod enrol;
mod repack;
mod attach;
mod detach;
mod flush;
