//! Devices of both sources that come and go while guests do: three threads on one service and one SMMU.
//!
//! | file | what |
//! |---|---|
//! | `clock.rs` | time, which passes when someone waits |
//! | `dice.rs` | what each thread decides by |
//! | `tally.rs` | what the operations came to |
//! | `verdict.rs` | which refusals the contract allows |
//! | `ledger.rs` | who may reach what: the oracle's rules, and DMA |
//! | `backplane.rs` | configuration space with slots |
//! | `watched_hooks.rs` | devices that try DMA in their hooks |
//! | `integrator.rs` | SMMUs brought up, nodes offered |
//! | `rig.rs` | the board |
//! | `functions.rs` | the first thread: hot-plug and virtual functions |
//! | `nodes.rs` | the second thread: overlays |
//! | `tenants.rs` | the third thread: guests |
//! | `ending.rs` | the end compared with the start |
//! | `summary.rs` | what is printed |
//!
//! What each thread does is the same in each run; how the threads meet is not.

mod clock;
mod dice;
mod tally;
mod verdict;
mod ledger;
mod backplane;
mod watched_hooks;
mod integrator;
mod rig;
mod functions;
mod nodes;
mod tenants;
mod ending;
mod summary;

use std::thread;

use crate::error::Failure;
use crate::report::Page;

/// How often the first thread does something, where nobody says.
pub(crate) const ROUNDS: usize = 2000;

/// Plays it. What is printed, and the exit status.
pub(crate) fn play(rounds: usize) -> Result<(String, u8), Failure> {
    let rig = rig::Rig::boot()?;
    let mut page = Page::new();
    summary::begin(&mut page);
    let start = ending::Start::of(&rig);
    let mut functions = functions::Functions::new(&rig);
    let mut nodes = nodes::Nodes::new(&rig).map_err(|error| Failure::new(format!("hotplug: {error}")))?;
    let mut tenants = tenants::Tenants::new(&rig);
    rig.resets.fail_each(RESETS);
    thread::scope(|scope| {
        scope.spawn(|| functions.play(rounds));
        scope.spawn(|| nodes.play(rounds));
        scope.spawn(|| tenants.play(rounds.saturating_mul(TENANTS)));
    });
    rig.resets.fail_each(0);
    tenants.take_all();
    functions.finish();
    nodes.finish();
    // What came back without a reset gets one.
    tenants.take_all();
    tenants.finish();
    start.compare(&rig);
    ending::exhaust(&rig);
    Ok(summary::end(page, &rig))
}

/// One in so many resets of nodes fails.
const RESETS: usize = 13;

/// How often the third thread does something while the others do it once.
const TENANTS: usize = 8;
