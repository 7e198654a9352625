//! What the model does, one test for each behaviour; the README's table names them.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test may panic, and its numbers are its own"
)]

mod banks;
mod faults;
mod flight;
mod identity;
mod inject;
mod quirks;
mod rig;
mod streams;
mod table;
mod tlb;
mod trace;
mod walks;
