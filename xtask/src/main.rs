//! What the project does to itself.
//!
//! `cargo xtask schedules`: explores the interleavings of operations, with builds of their own beside the ordinary one.
//! `cargo xtask instructions`: counts the instructions of each operation, with callgrind.

mod instructions;

use std::path::Path;
use std::process::{Command, ExitCode};

/// Deliberately broken variants of the library (`--cfg broken="NAME"`), and what is wrong in each. Every one must be
/// caught, by the pairs under loom: a suite that passes on a broken library proves nothing about the whole one.
const BROKEN: &[(&str, &str)] = &[
    ("blind_start", "the worker of a queue starts a request without looking whether it was cancelled"),
    ("dropped_mark", "a removal that meets a running operation leaves no mark"),
    ("early_end", "a deassign lets its group go before it has said how it ended"),
    ("early_release", "add lets the registry's lock go between its look-up and its insertion"),
    ("forgotten_hold", "an operation that ends forgets its hold on the domain"),
    ("late_flush_list", "an IOMMU joins the domain's flush list after its context went live"),
    ("shared_destroy", "destroying a domain does not keep new operations off it"),
    ("unheard_request", "a request is put into the queue and the worker sleeps on"),
    ("unclaimed_join", "add joins groups that other operations have claimed"),
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
            for (name, what) in BROKEN {
                println!("{name:<16} {what}");
            }
            ExitCode::SUCCESS
        }
        ["schedules", "--broken", name, rest @ ..] => match BROKEN.iter().find(|(known, _)| known == name) {
            Some((name, what)) => broken(name, what, rest),
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

/// A broken variant passes when exploration finds what is wrong with it.
fn broken(name: &str, what: &str, rest: &[&str]) -> ExitCode {
    println!("{name}: {what}");
    let mut arguments = vec!["--quick", "--first"];
    arguments.extend(rest);
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

/// Builds and runs the explorer; whether it found no violation.
fn explore(explorer: &str, broken: Option<&str>, arguments: &[&str]) -> Result<bool, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the workspace has no folder")?;
    let mut flags = format!("--cfg {explorer}");
    let mut folder = String::from(explorer);
    if let Some(name) = broken {
        flags += &format!(" --cfg broken=\"{name}\"");
        folder += &format!("-{name}");
    }
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args(["run", "--quiet", "--release", "--package", "schedules", "--target-dir"])
        .arg(root.join("target").join(folder))
        .arg("--")
        .args(arguments)
        .env("RUSTFLAGS", flags)
        .status()
        .map_err(|error| format!("cargo: {error}"))?;
    Ok(status.success())
}

fn refuse(message: &str) -> ExitCode {
    eprintln!("{message}");
    ExitCode::from(2)
}
