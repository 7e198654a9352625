//! Schedule exploration: every way in which two operations can interleave, and random ways for four threads.
//!
//! Built with `--cfg loom` or `--cfg shuttle` by `cargo xtask schedules`; as an ordinary program it only says so.

#[cfg(loom)]
mod anew;
#[cfg(loom)]
mod door;
#[cfg(loom)]
mod driver;
#[cfg(loom)]
mod driver_scenes;
#[cfg(loom)]
mod explorer;
#[cfg(loom)]
mod fake;
#[cfg(loom)]
mod nested;
#[cfg(loom)]
mod pairs;
#[cfg(loom)]
mod queue;
#[cfg(loom)]
mod stage;
#[cfg(all(shuttle, not(loom)))]
mod threads;
#[cfg(loom)]
mod universe;
#[cfg(loom)]
mod waiting;
#[cfg(loom)]
mod world;

use std::process::ExitCode;

#[cfg(loom)]
fn everything(explorer: &mut explorer::Explorer) {
    door::explore(explorer);
    stage::explore(explorer, "waiting", waiting::CASES);
    stage::explore(explorer, "nested", nested::CASES);
    stage::explore(explorer, "anew", anew::CASES);
    pairs::explore::<world::World>(explorer);
    pairs::explore::<driver::Driver>(explorer);
    pairs::explore_triples::<world::World>(explorer);
    let scenes = queue::SCENES.iter().map(|scene| ("queue  ", scene));
    for (suite, (name, run)) in scenes.chain(driver_scenes::SCENES.iter().map(|scene| ("driver ", scene))) {
        explorer.explore(&format!("{suite} {name}"), explorer::Reach::Bounded, *run, || None);
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    #[cfg(loom)]
    {
        let mut explorer = explorer::Explorer::new(&arguments);
        // Once to count the lines, and once to explore them.
        everything(&mut explorer);
        explorer.begin();
        everything(&mut explorer);
        return explorer.finish();
    }
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
