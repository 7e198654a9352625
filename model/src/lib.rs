//! A register-accurate model of the Arm SMMUv1 and SMMUv2.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod bank;
mod chip;
mod config;
mod fault;
mod fields;
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
pub use inject::{Injection, SyncRegister};
pub use memory::Memory;
pub use reach::{Reach, Source, Verdict};
pub use registers::Block;
pub use smmu::{Hazard, Smmu};
pub use tlb::{Leaf, Table};
pub use trace::{Counters, Direction, Record};
pub use transaction::{Access, Bypass, InFlight, Master, Outcome, Path, Stage, Transaction, TransactionId};
