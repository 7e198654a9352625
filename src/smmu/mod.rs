//! The SMMUv1/v2 driver, as Arm IHI 0062D describes the hardware.
//!
//! One [`Smmu`] for each instance; it implements [`Iommu`](crate::assign::Iommu) and is sound on its own for any caller.
//! The way of a stream through it: [`Masters`] knows whose it is, the stream map's entries match it, a context bank
//! translates for it, the TLB forgets it.
//!
//! # Locking
//!
//! `Masters` > `StreamMap` of one instance; `TlbSync` alone. See `docs/locking.md`.
//!
//! # Invariants
//!
//! After [`Smmu::probe`], at every single register write: at most one entry matches a stream, and what it selects is
//! fault or a fully programmed bank of its owner (contract I-1 to I-4). The modules say which write keeps which.

mod access;
mod audit;
mod banks;
mod budget;
mod claims;
mod config;
mod context;
pub mod cover;
mod cut;
mod drain;
mod entries;
mod fault;
mod flush;
mod gate;
mod geometry;
mod index;
mod instance;
mod layout;
pub(crate) mod levels;
mod lifecycle;
mod lines;
mod lockstep;
mod master;
mod mmio;
mod moves;
mod probe;
mod provider;
mod quirks;
mod registers;
mod reserved;
mod setup;
mod stream_map;
mod tlb;

pub use config::{Architecture, Chip, EmptyRoot, FaultLimits, Implementation, SmmuConfig};
pub use geometry::{Geometry, ProbeError};
pub use instance::{Notes, Smmu};
pub use lockstep::Lockstep;
pub use master::Masters;
pub use mmio::{Mmio, Registers};
pub use quirks::{Effects, Quirk, Remedy, quirks, quirks_of};
pub use setup::{AlwaysOn, Power, PowerError, Reserved, Setup};
