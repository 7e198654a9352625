//! The SMMUv1/v2 driver, as Arm IHI 0062D describes the hardware.
//!
//! One [`Smmu`] for each instance; it implements [`Iommu`](crate::assign::Iommu) and is sound on its own for any caller.
//! The way of a stream through it: [`Masters`] knows whose it is, the stream map's entries match it, a context bank
//! translates for it, the TLB forgets it.
//!
//! | file | what |
//! |---|---|
//! | `hardware/` | what a part is, its quirks, its registers |
//! | `faults/` | fault records: read, cleared, counted; storms |
//! | `stream/` | from stream IDs to stream-map entries |
//! | `bank/` | from entries to tables: context banks, the TLB |
//! | `setup.rs`, `supply.rs`, `gate.rs` | what an instance is given; its power; who may work on it now |
//! | `reset.rs` | from a cold or a live unit to one that faults every stream |
//! | `instance.rs` | the object |
//! | `op/` | the operations |
//! | `takeover.rs`, `probe.rs` | streams that firmware reserved; how an instance comes to be |
//! | `suspend.rs` | power lost and regained, and the end: `IommuPower` |
//! | `intake.rs`, `shadow_audit.rs` | interrupt lines: `IommuFaults`; registers and counts compared |
//! | `driver.rs` | the `Iommu` trait, method by method |
//!
//! A file uses only files that stand before it here, or in its folder's own list.
//!
//! # Where is ...
//!
//! | question | file |
//! |---|---|
//! | SMR and S2CR written | `stream/entry.rs`, and nowhere else |
//! | CBAR, CBA2R, SCTLR, TCR, TTBR0 written | `bank/context_bank.rs`; at reset `reset.rs` |
//! | found that two streams overlap | `Tree::each_overlap` in `stream/masters.rs`; what follows from it, `stream/placing.rs` |
//! | decided who may share an entry | `Placing::judge` in `stream/placing.rs` |
//! | a bank chosen | `Banks::choose` in `bank/banks.rs`, called by `op/attach.rs` |
//! | a drain finished that was not confirmed | `op/drain.rs` |
//!
//! # Locking
//!
//! `Masters` > `StreamMap` of one instance > `TlbSync`. See `docs/locking.md`.
//!
//! # Invariants
//!
//! After [`Smmu::probe`], at every single register write: at most one entry matches a stream, and what it selects is
//! fault or a fully programmed bank of its owner (contract I-1 to I-4). The files say which write keeps which.

mod hardware;
mod faults;
mod stream;
mod bank;
mod setup;
mod supply;
mod gate;
mod reset;
mod instance;
mod op;
mod takeover;
mod probe;
mod suspend;
mod intake;
mod shadow_audit;
mod driver;

pub use hardware::{
    Architecture, Chip, ContextLines, Effects, EmptyRoot, FaultLimits, Geometry, Implementation, Lockstep, Mmio,
    ProbeError, Quirk, Registers, Remedy, SmmuConfig, quirks, quirks_of,
};
pub use instance::{Notes, Smmu};
pub use setup::{Power, PowerError, Reserved, Setup};
pub use stream::cover;
pub use stream::masters::Masters;
