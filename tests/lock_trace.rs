//! The locks as they are taken, in every operation: what the recorder saw, beside what `docs/locking.md` says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::everything::{called, every_operation};
use iommu_assign::sync::trace::{self, Trace};

/// What was recorded of each operation, by its name.
fn recorded() -> BTreeMap<&'static str, Vec<Trace>> {
    let mut all: BTreeMap<&'static str, Vec<Trace>> = BTreeMap::new();
    every_operation(&mut |name, act| {
        let ((), trace) = trace::record(act);
        all.entry(name).or_default().push(trace);
        assert!(!trace::is_held(), "{name} has ended with {:?} held", trace::held());
    });
    all
}

/// The names in code spans of a table's rows in docs/locking.md, by column.
fn table(heading: &str) -> Vec<Vec<String>> {
    let page = include_str!("../docs/locking.md").split("<!-- order -->\n").nth(1).unwrap();
    let rows = page.lines().skip_while(|line| *line != heading).skip(2).take_while(|line| line.starts_with('|'));
    let names = |row: &str| row.split('`').skip(1).step_by(2).map(String::from).collect();
    rows.map(names).collect()
}

#[test]
fn c13_the_edges_that_operations_take_are_the_documented_ones_and_make_no_circle() {
    let all = recorded();
    let traces = || all.values().flatten();
    let edges: BTreeSet<(&str, &str)> = traces().flat_map(Trace::edges).copied().collect();
    let documented = table("| held | then taken | why both at once |");
    let documented: BTreeSet<(&str, &str)> = documented.iter().map(|row| (&*row[0], &*row[1])).collect();
    assert_eq!(edges, documented, "taken, and in docs/locking.md");
    let mut left = edges.clone();
    while let Some(&edge) = left.iter().find(|(outer, _)| !left.iter().any(|(_, inner)| inner == outer)) {
        left.remove(&edge);
    }
    assert!(left.is_empty(), "a circle: {left:?}");
    // Every lock of the table was taken, so that an edge that is missing is not there.
    let levels: BTreeSet<&str> = traces().flat_map(Trace::holds).map(|hold| hold.object.level).collect();
    let documented = table("| floor | lock | guards |");
    assert_eq!(levels, documented.iter().map(|row| &*row[0]).collect());
}

#[test]
fn c13_no_two_locks_of_one_level_are_held_together() {
    let all = recorded();
    // Two SMMUs, domains with two of them, and banks with a sync each: there are several of each of these.
    for level in ["StreamMap", "TlbSync", "FlushList"] {
        let objects: BTreeSet<_> = all.values().flatten().flat_map(Trace::holds).map(|hold| hold.object).collect();
        assert!(objects.iter().filter(|object| object.level == level).count() > 1, "{level}");
    }
    for (name, traces) in &all {
        let twice = traces.iter().flat_map(Trace::edges).find(|(outer, inner)| outer == inner);
        assert_eq!(twice, None, "{name}");
    }
}

#[test]
fn c3_c14_nothing_is_called_back_logged_or_polled_under_a_lock() {
    let _ = recorded();
    let called = called();
    for kind in [
        "policy",
        "event",
        "quiesce",
        "reset",
        "release",
        "log",
        "poll",
        "wake",
        "prepare",
        "wait",
        "power get",
        "power put",
        "power get if on",
        "fault sink",
        "intake sink",
        "storm sink",
        "unknown sink",
        "usage sink",
        "page",
    ] {
        assert!(called.contains_key(kind), "{kind} was never called: {:?}", called.keys());
    }
    for (kind, (count, under)) in called {
        assert!(under.is_empty(), "{kind} ({count} times) was called under {under:?}");
    }
}

#[test]
fn c16_fault_intake_takes_no_lock() {
    let all = recorded();
    for name in ["take_faults", "handle counts", "crash"] {
        for trace in &all[name] {
            assert_eq!(trace.holds(), [], "{name}");
        }
    }
}

#[test]
fn c17_a_flush_never_takes_the_registry() {
    let all = recorded();
    for name in ["flush", "flush_range", "flush_range_atomic", "flush, stuck"] {
        for trace in &all[name] {
            assert_eq!(trace.most_acquisitions("Registry"), 0, "{name}");
            assert!(trace.most_acquisitions("FlushList") > 0, "{name}");
        }
    }
}

#[test]
fn c12_a_queue_is_locked_for_its_lists_only_and_not_to_ask_cancel_or_drop() {
    let all = recorded();
    for trace in &all["queue submit"] {
        let levels: Vec<&str> = trace.holds().iter().map(|hold| hold.object.level).collect();
        assert_eq!(levels, ["Queue"]);
    }
    for trace in &all["queue cancel, poll, drop"] {
        assert_eq!(trace.holds(), []);
    }
    for trace in &all["queue drain"] {
        assert!(trace.edges().iter().all(|(outer, inner)| *outer != "Queue" && *inner != "Queue"));
        assert!(trace.most_acquisitions("Queue") > 0);
    }
}
