//! What a hypervisor does with `iommu-assign` on several CPUs at once, and what is compared of it.
//!
//! Each CPU has devices of its own, which it adds, assigns, reassigns, deassigns, flushes and removes at random; after each step
//! every one of their streams makes an access. Timer interrupts flush and submit requests meanwhile, a device storms, and at the
//! end everything is taken back and audited. The bare-metal image (`el2/`) plays it with CPUs, the host prototype
//! (`prototype cpus`) with threads. What differs between them is behind the traits of `machine.rs`.
//!
//! | file | what |
//! |---|---|
//! | `score.rs` | operations, and violations: what was not as it must be |
//! | `random.rs` | small random numbers, each CPU's own |
//! | `rules.rs` | who may be assigned |
//! | `recent.rs` | the last faults of an SMMU |
//! | `machine.rs` | what the scenario is played on: guests, engines of devices, SMMUs, timer |
//! | `master.rs` | a device: what the service is told of it, and the engine that does its DMA |
//! | `world.rs` | what all CPUs share |
//! | `ticks.rs` | timer interrupts: flushes, requests for the worker |
//! | `life.rs` | one CPU's devices: added, assigned, moved, unmapped under, taken back, removed |
//! | `storm.rs` | a device that faults without end |
//! | `play.rs` | all of it, on the boot CPU and on every other |
//! | `ending.rs` | everything taken back, the audit, the sums |

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod score;
mod random;
mod rules;
mod recent;
mod machine;
mod master;
mod world;
mod ticks;
mod life;
mod storm;
mod play;
mod ending;

use iommu_assign::sync::{Micros, Platform};

pub use machine::{Engine, Guest, Machine, PAGE, PAGES, Unit};
pub use master::{Master, compare};
pub use play::Sideline;
pub use random::Random;
pub use recent::Recent;
pub use rules::Rules;
pub use score::Score;
pub use world::World;

/// How long an operation may stay busy.
const PATIENCE: u64 = 20_000_000;

/// The time on the platform's clock. A machine without one plays no scenario: its time does not pass.
pub fn now<P: Platform>() -> Micros {
    P::now().unwrap_or(Micros::new(0))
}

/// When an operation must have been carried out that begins now.
#[must_use]
pub fn deadline<P: Platform>() -> Option<Micros> {
    Some(Micros::new(now::<P>().value().saturating_add(PATIENCE)))
}

/// The one whose turn it is, of all of them in turn.
fn turn<T>(all: &[T], number: u64) -> Option<&T> {
    let at = number.checked_rem(u64::try_from(all.len()).ok()?)?;
    all.get(usize::try_from(at).ok()?)
}
