//! The scenario of the bare-metal image on the host: threads in the place of CPUs, modelled SMMUs in the place of real ones,
//! and an oracle that looks at every write to their registers.
//!
//! | file | what |
//! |---|---|
//! | `interrupts.rs` | a CPU's mask, its timer, the line of the SMMUs |
//! | `platform.rs` | the hypervisor under the library |
//! | `leases.rs` | which guest's page each device may reach, for the oracles |
//! | `tenant.rs` | guests: tables and memory |
//! | `engine.rs` | what does devices' DMA, also in hooks |
//! | `unit.rs` | SMMUs, and the handler of their faults |
//! | `board.rs` | the board brought up |
//!
//! What is played is in the crate `scenario`. PCI functions do not come and go here: `hotplug` is about that. How the threads
//! meet differs from run to run.

mod interrupts;
mod platform;
mod leases;
mod tenant;
mod engine;
mod unit;
mod board;

use std::sync::Arc;
use std::thread;

use iommu_assign::sync::Micros;

use crate::args::Board;
use crate::error::Failure;
use crate::input;
use crate::report::Page;
use board::{Without, World};
use interrupts::Handlers;

/// How it is played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// For how long.
    pub(crate) seconds: u64,
    /// On how many CPUs.
    pub(crate) cpus: usize,
}

/// Where the command line does not say.
pub(crate) const PLAN: Plan = Plan { seconds: 10, cpus: 4 };

/// The most CPUs.
pub(crate) const MOST: usize = 64;

/// Plays it. What is printed, and the exit status. The log goes to standard error meanwhile.
pub(crate) fn play(board: &Board, plan: Plan) -> Result<(String, u8), Failure> {
    if log::set_logger(&Log).is_ok() {
        log::set_max_level(log::LevelFilter::Info);
    }
    let world = board::build(&input::read(board)?, &input::name(board), plan.cpus, Without::Nothing)?;
    let score = run(world, Micros::from_millis(plan.seconds.saturating_mul(1000)));
    let mut page = Page::new();
    page.line(format!("cpus: {}", score.line(plan.cpus)));
    Ok((page.into_text(), score.status()))
}

/// From the start to the end. What it came to.
fn run(world: World, span: Micros) -> Arc<::scenario::Score> {
    let world = Arc::new(world);
    world.print();
    thread::scope(|scope| {
        for cpu in 1..world.cpus {
            let world = &world;
            scope.spawn(move || {
                let _last_words = LastWords;
                interrupts::start(cpu, handlers(world, false));
                world.follow();
                interrupts::stop();
            });
        }
        // This thread is the boot CPU, to which the SMMUs' line is routed.
        let _last_words = LastWords;
        interrupts::start(0, handlers(&world, true));
        world.lead(span, &mut ());
    });
    world.end();
    interrupts::stop();
    world.machine.score.clone()
}

fn handlers(world: &Arc<World>, has_line: bool) -> Handlers {
    let (ticking, faulting) = (world.clone(), world.clone());
    let handler = move || faulting.units.iter().for_each(|unit| unit.interrupted());
    let faults = has_line.then(|| (world.machine.line.clone(), Box::new(handler) as Box<dyn Fn()>));
    Handlers { tick: Box::new(move || ticking.tick()), faults }
}

/// A CPU that panics leaves devices that all others would wait for: none goes on.
struct LastWords;

impl Drop for LastWords {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

/// The log of a hypervisor: time, CPU, and what is said. The library says much that was expected here.
struct Log;

impl log::Log for Log {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        !metadata.target().starts_with("iommu_assign")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let (now, cpu) = (platform::clock().value(), interrupts::cpu());
            let level = match record.level() {
                log::Level::Error => "error: ",
                log::Level::Warn => "warning: ",
                _ => "",
            };
            let text = crate::report::printable(&record.args().to_string());
            eprintln!("[{:5}.{:06}] cpu{cpu} {level}{text}", now / 1_000_000, now % 1_000_000);
        }
    }

    fn flush(&self) {}
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    fn played(without: Without) -> Arc<::scenario::Score> {
        let blob = input::read(&Board::Showcase).unwrap();
        run(board::build(&blob, "showcase", 2, without).unwrap(), Micros::from_millis(300))
    }

    #[test]
    fn all_that_is_expected_holds() {
        let score = played(Without::Nothing);
        assert_eq!(score.status(), 0, "{}", score.line(2));
        let counters = [&score.operations, &score.flushes, &score.requests, &score.faults, &score.accesses];
        assert!(counters.iter().all(|counter| counter.value() > 0), "{score:?}");
    }

    #[test]
    fn a_page_that_is_unmapped_without_a_flush_is_a_violation() {
        let score = played(Without::Flushes);
        assert_eq!(score.status(), 1, "{}", score.line(2));
    }

    #[test]
    fn what_no_lease_allows_is_seen_at_the_register_write() {
        let score = played(Without::Leases);
        assert_eq!(score.status(), 1, "{}", score.line(2));
    }
}
