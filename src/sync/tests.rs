//! The order in prose equals the order in types.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::levels::{EDGES, LEVELS, Masters, StreamMap};
use super::lock::{Guard, Lock};
use super::order::{Edge, Held};
use super::platform::{Platform, Spin};
#[cfg(feature = "trace-locks")]
use super::trace;

/// C-13: the one documented table shows all levels and edges with their reasons.
#[test]
fn c13_documented_order_equals_the_types() {
    let mut table = String::from("| floor | lock | guards |\n|---|---|---|\n");
    for level in LEVELS {
        table += &format!("| {} | `{}` | {} |\n", level.floor, level.name, level.guards);
    }
    table += "\n| held | then taken | why both at once |\n|---|---|---|\n";
    for edge in EDGES {
        table += &format!("| `{}` | `{}` | {} |\n", edge.outer, edge.inner, edge.reason);
    }
    let page = include_str!("../../docs/locking.md");
    let shown = page.split("<!-- order -->\n").nth(1).unwrap_or("").trim();
    assert_eq!(shown, table.trim(), "docs/locking.md must show between its two `order` marks:\n\n{table}");
}

/// C-13: no circle, so that no two calls can wait for each other.
#[test]
fn c13_the_order_has_no_circle() {
    let mut left: Vec<Edge> = EDGES.to_vec();
    while let Some(at) = left.iter().position(|edge| !left.iter().any(|other| other.inner == edge.outer)) {
        left.swap_remove(at);
    }
    assert!(left.is_empty(), "these edges form a circle: {left:?}");
}

#[test]
fn an_inner_lock_is_taken_through_the_outer_guard() {
    let masters: Lock<Masters, u32, <Spin as Platform>::Lock> = Lock::new(1);
    let map: Lock<StreamMap, u32, <Spin as Platform>::Lock> = Lock::new(2);
    let mut held = Held::enter();
    let mut outer = masters.lock(&mut held);
    let (value, inner_held) = outer.split();
    *value += *map.lock(inner_held);
    assert_eq!(*outer, 3);
}

/// C-13: what the types cannot see, two calls that each mint a token, the recorder does.
#[cfg(feature = "trace-locks")]
#[test]
fn c13_the_recorder_sees_locks_that_are_nested_behind_the_types_back() {
    type Raw = <Spin as Platform>::Lock;
    let masters: Lock<Masters, (), Raw> = Lock::new(());
    let maps: [Lock<StreamMap, (), Raw>; 2] = [Lock::new(()), Lock::new(())];
    let [one, two] = &maps;
    let (seen, trace) = trace::record(|| {
        let (mut first, mut second, mut third) = (Held::enter(), Held::enter(), Held::enter());
        let outer = one.lock(&mut first);
        let inner = two.lock(&mut second);
        let innermost = masters.lock(&mut third);
        trace::register_access();
        // Not in the order of their taking.
        drop(outer);
        trace::register_access();
        let seen = (trace::held(), trace::is_held());
        drop(inner);
        drop(innermost);
        seen
    });
    assert_eq!(seen, (alloc::vec!["StreamMap", "Masters"], true));
    assert!(!trace::is_held() && trace::held().is_empty());
    let edges: Vec<_> = trace.edges().iter().copied().collect();
    assert_eq!(edges, [("StreamMap", "Masters"), ("StreamMap", "StreamMap")]);
    let accesses: Vec<(&str, u64)> = trace.holds().iter().map(|hold| (hold.object.level, hold.accesses)).collect();
    assert_eq!(accesses, [("StreamMap", 1), ("StreamMap", 2), ("Masters", 2)]);
    assert_eq!((trace.acquisitions().len(), trace.most_acquisitions("StreamMap")), (3, 1), "two maps are two locks");
    assert_eq!((trace.longest_hold("StreamMap"), trace.longest_hold("Registry")), (2, 0));
}

/// C-20: a guard is not `Send`, whatever the raw mutex below it says of itself.
#[test]
fn c20_a_guard_does_not_leave_its_cpu() {
    trait No {
        const IS_SEND: bool = false;
    }
    struct Probe<T>(core::marker::PhantomData<T>);
    impl<T> No for Probe<T> {}
    impl<T: Send> Probe<T> {
        const IS_SEND: bool = true;
    }
    type Raw = <Spin as Platform>::Lock;
    const { assert!(Probe::<lock_api::MutexGuard<'static, Raw, ()>>::IS_SEND, "the raw guard alone would be") };
    const { assert!(!Probe::<Guard<'static, Masters, (), Raw>>::IS_SEND) };
}
