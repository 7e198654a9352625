//! All of the library's public functions in one bare-metal binary, so that `cargo xtask no-panic` sees the machine code of each.
//!
//! It is linked and never run. What the hypervisor supplies is taken from outside, where the optimiser knows nothing of it. The
//! platform is the largest one, `TimedSpinIrq`; the registers are those of several instances in step.
//!
//! Nothing is called here with values of its own: functions are kept by their addresses. What is generic over more than the
//! platform stands in a function that hands its own arguments on.

#![cfg_attr(target_os = "none", no_std, no_main)]

extern crate alloc;

mod assign;
mod dt;
mod dt_changes;
mod pci;
mod platform;
mod smmu;

use core::hint::black_box;

/// Keeps functions in the image.
macro_rules! keep {
    ($($function:expr),* $(,)?) => { $(core::hint::black_box($function as *const ());)* };
}
use keep;

/// Keeps what shows a value, and what ends it.
macro_rules! keep_types {
    ($($type:ty),* $(,)?) => { $(
        core::hint::black_box(<$type as core::fmt::Debug>::fmt as *const ());
        core::hint::black_box(core::ptr::drop_in_place::<$type> as *const ());
    )* };
}
use keep_types;

/// Keeps what is printed for a person.
macro_rules! keep_messages {
    ($($type:ty),* $(,)?) => { $(core::hint::black_box(<$type as core::fmt::Display>::fmt as *const ());)* };
}
use keep_messages;

fn all() {
    assign::keep_all();
    smmu::keep_all();
    pci::keep_all();
    dt::keep_all();
    dt_changes::keep_all();
    platform::keep_all();
}

/// Reads what an iterator gives.
fn exhaust<T>(items: impl Iterator<Item = T>) {
    items.for_each(|item| drop(black_box(item)));
}

#[cfg(not(target_os = "none"))]
fn main() {
    all();
}
