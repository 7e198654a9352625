//! What an integrator of the library writes.
//!
//! | file | what |
//! |---|---|
//! | `platform.rs` | lock, barrier, clock, waiting |
//! | `overlay.rs` | modelled SMMUs in the tree of a machine that has none |
//! | `modelled.rs` | a modelled SMMU behind the library's `Registers`, with real interrupts |
//! | `latch.rs` | ZynqMP's interrupt glue |
//! | `smmus.rs` | probe, registration, interrupt handlers |
//! | `guests.rs` | stage-2 tables and memory of guests |
//! | `masters.rs` | devices with the engine that does their DMA |
//! | `gdma.rs` | ZynqMP's DMA engine: real data |

pub(crate) mod gdma;
pub(crate) mod guests;
pub(crate) mod latch;
pub(crate) mod masters;
pub(crate) mod modelled;
pub(crate) mod overlay;
pub(crate) mod platform;
pub(crate) mod smmus;
