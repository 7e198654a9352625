//! What the project does to itself.
//!
//! `cargo xtask schedules`: explores the interleavings of operations, with builds of their own beside the ordinary one.
//! `cargo xtask search`: the long searches, which `cargo test` does a little of.
//! `cargo xtask instructions`: what each operation costs, against Xen's and the bounds.
//! `cargo xtask rooms`: checks the rules of the house: what uses what, what writes which register.
//! `cargo xtask no-panic`: shows that no panic begins in the library's own code, as it is linked.
//! `cargo xtask el2`: boots the bare-metal image under QEMU, with functions plugged in and out.

mod bare_metal;
mod el2;
mod instructions;
mod no_panic;
mod rooms;
mod search;

use std::path::Path;
use std::process::{Command, ExitCode};

/// Deliberately broken variants of the library (`src/sync/broken.rs`), and what is wrong in each. Every one must be
/// caught by the lines under loom that contain the words beside it: a suite that passes on a broken library proves nothing
/// about the whole one. Those of the protocol name its rule (`docs/architecture.md`).
const BROKEN: &[(&str, &str, &str)] = &[
    ("adding_is_registered", "nested", "rule 7: the key of a device whose add may be undone is taken for registered"),
    ("bank_freed_before_sync", "driver  a drain", "a bank is retired before its sync has completed"),
    ("blind_start", "queue", "the worker of a queue starts a request without looking whether it was cancelled"),
    ("child_left_behind", "anew    a child", "a device is marked to go with its tree, and its children are not"),
    (
        "clean_in_between",
        "anew    reregister",
        "what its owner left in a device is forgotten when it is registered anew",
    ),
    ("counted_refusal", "door", "a refused entry of revocable access is counted"),
    ("dependents_ignored", "anew    a child", "a reset does not look for children that end with it"),
    ("draining_bank_joined", "driver  leave", "rule 9: a bank that drains is joined by a device of its domain"),
    ("dropped_mark", "service", "a removal that meets a running operation leaves no mark"),
    ("early_release", "service", "add lets the registry's lock go between its look-up and its insertion"),
    (
        "early_unhold",
        "service",
        "an operation gives back its hold on the domain before it has written down how it ended",
    ),
    ("forgotten_hold", "service", "an operation that ends forgets its hold on the domain"),
    ("forgotten_leave", "door", "the drop of a call that is inside forgets to count it out"),
    ("late_flush_list", "service", "an IOMMU joins the domain's flush list after its context went live"),
    ("late_target", "nested", "rule 5: a group's target is not set before the first callback"),
    ("mark_acted_on_in_a_frame", "nested", "rule 4: a mark is acted on where a group goes back into a frame"),
    ("mark_not_consumed", "waiting same device: remove", "rule 4: the mark of a removal that failed stands"),
    (
        "mark_passed_over",
        "anew    reregister",
        "a removal asked for while a device is registered anew is not looked at",
    ),
    ("merged_group_forgotten", "nested", "rule 6: after a callback a group is not looked for in the frames above"),
    ("never_split", "nested", "rule 11: a group that lost a member is never split"),
    (
        "next_bank_joined",
        "driver  reassign",
        "rule 9: a bank that is promised to another domain is passed over or joined",
    ),
    ("owed_drain_ignored", "driver  an owed", "a drain that is owed is taken for finished"),
    ("own_group_is_out", "waiting parent shares", "rule 3: a group that this very add has taken is taken for claimed"),
    ("parent_mark_ignored", "service parent, child", "rule 8: a child's add does not look at its parent's mark"),
    ("power_after_change", "driver", "power is had after the first change"),
    ("refit_left_out", "driver  leave", "an entry that a device has left is not fitted to those that stay"),
    ("reserve_without_judge", "driver  reserve", "an entry is shared with a device that the caller has not claimed"),
    ("self_satisfied_wait", "waiting", "rule 10: a wait form waits for nothing, and tries again at once"),
    ("shared_destroy", "service", "destroying a domain does not keep new operations off it"),
    ("swapped_claim_order", "waiting unrelated: each", "a nested wait for a group before a claim above it is allowed"),
    (
        "touched_restored",
        "anew    reregister",
        "what another guest had in between goes back to its owner without a reset",
    ),
    ("unclaimed_join", "service same group", "add joins groups that other operations have claimed"),
    ("uncleansed_mate", "nested  a quarantined", "a quarantined mate is not reset before its shared entry opens"),
    ("uncounted_mark", "service", "rule 14: a mark is not counted, and no put-back looks for it"),
    ("unheard_request", "queue", "a request is put into the queue and the worker sleeps on"),
    ("unnamed_leader", "service same group", "rule 1: a group whose leader is unregistered gets no new one"),
    ("unnamed_part", "nested  a bridge", "rule 2: a part that is kept back for a mark gets no leader in the same hold"),
    ("unpowered_cut", "service two IOMMUs", "one of several IOMMUs is cut before there is power on all of them"),
];

const HELP: &str =
    "usage: cargo xtask schedules [--quick] [--schedules N] [--seed S] [--broken NAME | --list-broken] [FILTER]

Four threads of random operations (shuttle), then every pair of operations, triples and scenes (loom).

  --quick          up to three preemptions, and without a bound only where that ends at once; else that takes up to 2 s a pair
  --schedules N    threads: how many schedules for each scheduler, 10000 without it
  --seed S         threads: the seed that is fresh each time without it
  --broken NAME    explores a deliberately broken variant, and must find a violation
  --list-broken    names the broken variants
  FILTER           explores only the pairs whose line contains it

       cargo xtask search [--times N]

The long searches of the tests: operations against the specification, the driver alone, covers, corrupted and damaged blobs.

  --times N        N times as long as usual

       cargo xtask instructions [--markdown]

What each operation costs, in instructions (counted by valgrind's callgrind) and heap, beside Xen's figures. Fails past the
bounds. The same each time with the same compiler.

  --markdown       tables for docs/performance.md

       cargo xtask rooms

The rules of the house, checked from the source; prints each place where one does not hold.

       cargo xtask no-panic

Links all of the library's public functions for bare metal, and fails where a panic begins in its own code, or where one that
a dependency or the compiler's crates leave has no reason in xtask/src/no_panic/reasons.txt.

       cargo xtask el2 [--minutes N | --seconds N] [--gic 2|3 | --zynqmp] [--size | --image]

Builds the bare-metal image (el2/), boots it at EL2 under qemu-system-aarch64 with four CPUs, plugs functions in and out over
QMP, and fails unless its last line says that there was no violation.

  --minutes N      how long the scenario goes on, 40 seconds without it
  --gic N          the version of the interrupt controller, 3 without it
  --zynqmp         on QEMU's xlnx-zcu102 instead, without hot-plug
  --size           instead: how large the library is in an image built for size, against its bounds
  --image          instead: builds the image and prints where it is";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["schedules", "--list-broken"] => {
            for (name, suite, what) in BROKEN {
                println!("{name:<24} {suite:<27} {what}");
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
        ["search", rest @ ..] if matches!(rest, [] | ["--times", _]) => {
            let times = rest.get(1).map_or(Ok(1), |times| times.parse::<u32>());
            match times.map_err(|_| format!("--times wants a number\n\n{HELP}")).and_then(search::run) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(message) => refuse(&message),
            }
        }
        ["instructions", rest @ ..] if matches!(rest, [] | ["--markdown"]) => {
            match instructions::table(!rest.is_empty()) {
                Ok(true) => ExitCode::SUCCESS,
                Ok(false) => ExitCode::FAILURE,
                Err(message) => refuse(&message),
            }
        }
        ["el2", rest @ ..] => match el2::run(rest) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(message) => refuse(&message),
        },
        ["no-panic"] => match no_panic::run() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(message) => refuse(&message),
        },
        ["rooms"] => match rooms::check() {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
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
