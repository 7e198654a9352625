//! What the project does to itself.
//!
//! `cargo xtask schedules`: explores the interleavings of operations, with builds of their own beside the ordinary one.
//! `cargo xtask instructions`: counts the instructions of each operation, with callgrind.

mod instructions;

use std::path::Path;
use std::process::{Command, ExitCode};

/// Deliberately broken variants of the library (`src/sync/broken.rs`), and what is wrong in each. Every one must be
/// caught, by the suite under loom that is named beside it: a suite that passes on a broken library proves nothing about
/// the whole one.
const BROKEN: &[(&str, &str, &str)] = &[
    ("blind_start", "queue", "the worker of a queue starts a request without looking whether it was cancelled"),
    ("counted_refusal", "door", "a refused entry of revocable access is counted"),
    ("dropped_mark", "service", "a removal that meets a running operation leaves no mark"),
    ("early_end", "service", "a deassign lets its group go before it has said how it ended"),
    ("early_release", "service", "add lets the registry's lock go between its look-up and its insertion"),
    ("forgotten_hold", "service", "an operation that ends forgets its hold on the domain"),
    ("forgotten_leave", "door", "the drop of a call that is inside forgets to count it out"),
    ("late_flush_list", "service", "an IOMMU joins the domain's flush list after its context went live"),
    ("shared_destroy", "service", "destroying a domain does not keep new operations off it"),
    ("swapped_claim_order", "waiting", "a nested wait for a group that comes before a claim above it is allowed"),
    ("unheard_request", "queue", "a request is put into the queue and the worker sleeps on"),
    ("unclaimed_join", "service", "add joins groups that other operations have claimed"),
];

const HELP: &str =
    "usage: cargo xtask schedules [--quick] [--schedules N] [--seed S] [--broken NAME | --list-broken] [FILTER]

Four threads of random operations (shuttle), then every pair of operations (loom).

  --quick          pairs at bound 3 only: leaves out the search without a bound, which takes up to 30 s for a pair
  --schedules N    threads: how many schedules for each scheduler, 10000 without it
  --seed S         threads: the seed that is fresh each time without it
  --broken NAME    explores a deliberately broken variant, and must find a violation
  --list-broken    names the broken variants
  FILTER           explores only the pairs whose line contains it

       cargo xtask instructions

Instructions of each operation, counted by valgrind's callgrind; the same each time with the same compiler.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["schedules", "--list-broken"] => {
            for (name, suite, what) in BROKEN {
                println!("{name:<19} {suite:<8} {what}");
            }
            ExitCode::SUCCESS
        }
        ["schedules", "--broken", name, rest @ ..] => match BROKEN.iter().find(|(known, ..)| known == name) {
            Some((name, suite, what)) => broken(name, suite, what, rest),
            None => refuse(&format!("no broken variant '{name}'; see --list-broken")),
        },
        ["schedules", rest @ ..] => match suites(rest) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(message) => refuse(&message),
        },
        ["instructions"] => match instructions::table() {
            Ok(()) => ExitCode::SUCCESS,
            Err(message) => refuse(&message),
        },
        _ => refuse(HELP),
    }
}

/// A broken variant passes when the suite finds what is wrong with it.
fn broken(name: &str, suite: &str, what: &str, rest: &[&str]) -> ExitCode {
    println!("{name}: {what}");
    let mut arguments = vec!["--quick", "--first"];
    arguments.extend(rest);
    if rest.is_empty() {
        arguments.push(suite);
    }
    match explore("loom", Some(name), &arguments) {
        Ok(true) => {
            println!("{name}: NOT caught");
            ExitCode::FAILURE
        }
        Ok(false) => {
            println!("{name}: caught");
            ExitCode::SUCCESS
        }
        Err(message) => refuse(&message),
    }
}

/// Both suites; whether they found no violation.
fn suites(arguments: &[&str]) -> Result<bool, String> {
    // Threads first: the last line is the pairs' sum.
    Ok(explore("shuttle", None, arguments)? && explore("loom", None, arguments)?)
}

/// Builds and runs the explorer; whether it found no violation. What does not build has found nothing.
fn explore(explorer: &str, broken: Option<&str>, arguments: &[&str]) -> Result<bool, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the workspace has no folder")?;
    let mut flags = format!("--cfg {explorer}");
    let mut folder = root.join("target").join(explorer);
    if broken.is_some() {
        // One build has all variants; what passes for the whole library is never that build.
        flags += " --cfg broken";
        folder = root.join("target").join("loom-broken");
    }
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args(["build", "--quiet", "--release", "--package", "schedules", "--target-dir"])
        .arg(&folder)
        .env("RUSTFLAGS", flags)
        .status()
        .map_err(|error| format!("cargo: {error}"))?;
    if !built.success() {
        return Err("the explorer does not build".into());
    }
    let explored = Command::new(folder.join("release").join("schedules"))
        .current_dir(root)
        .args(arguments)
        .env("BROKEN", broken.unwrap_or_default())
        .status()
        .map_err(|error| format!("schedules: {error}"))?;
    match explored.code() {
        Some(0) => Ok(true),
        // A deadlock may abort: no code then.
        Some(1) | None => Ok(false),
        Some(_) => Err("nothing was explored".into()),
    }
}

fn refuse(message: &str) -> ExitCode {
    eprintln!("{message}");
    ExitCode::from(2)
}
