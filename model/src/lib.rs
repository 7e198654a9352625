#![doc = include_str!("../README.md")]
//!
//! ## Map of the modules
//!
//! What a part is: [`Config`], its presets, its [`Quirks`]. What it holds: [`Smmu`], split by the manual's own blocks
//! (global spaces, stream map, context banks, TLB). What goes through it: [`Transaction`], [`Outcome`], [`Path`],
//! [`Fault`]. What stands behind it: [`Memory`]. What a test looks with: [`Reach`], [`Record`], [`Hazard`]. Offsets and
//! fields by their manual's names: [`registers`].
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::arithmetic_side_effects,
        clippy::indexing_slicing,
        reason = "a test may panic, and its numbers are its own"
    )
)]

extern crate alloc;

mod bank;
mod chip;
mod config;
mod fault;
mod fields;
mod flight;
mod global;
mod inject;
mod memory;
mod presets;
mod reach;
pub mod registers;
mod smmu;
mod stream;
mod tlb;
mod trace;
mod transaction;
mod walk;

pub use chip::Chip;
pub use config::{
    Architecture, Config, Conflict, Fixed, PageSize, Quirks, SyncDelay, Unimplemented, Unknown, WideAccess, WideInput,
    Wiring,
};
pub use fault::{ContextFaultKind, Fault, GlobalFaultKind};
pub use flight::{InFlight, Stage, TransactionId};
pub use inject::{Injection, SyncRegister};
pub use memory::Memory;
pub use reach::{Reach, Source, Verdict};
pub use registers::Block;
pub use smmu::{Hazard, Smmu};
pub use tlb::{Leaf, Table};
pub use trace::{Counters, Direction, Record};
pub use transaction::{Access, Bypass, Master, Outcome, Path, Transaction};
