//! Schedule exploration: every way in which two operations can interleave, and random ways for four threads.
//!
//! Built with `--cfg loom` or `--cfg shuttle` by `cargo xtask schedules`; as an ordinary program it only says so.

#[cfg(loom)]
mod driver;
#[cfg(any(loom, shuttle))]
mod fake;
#[cfg(loom)]
mod pairs;
#[cfg(loom)]
mod queue;
#[cfg(all(shuttle, not(loom)))]
mod threads;
#[cfg(any(loom, shuttle))]
mod universe;
#[cfg(any(loom, shuttle))]
mod world;

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    #[cfg(loom)]
    return pairs::explore(&arguments);
    #[cfg(all(shuttle, not(loom)))]
    return threads::explore(&arguments);
    #[cfg(not(any(loom, shuttle)))]
    {
        eprintln!(
            "schedules: this build explores nothing ({} arguments ignored); run `cargo xtask schedules`",
            arguments.len()
        );
        ExitCode::from(2)
    }
}
