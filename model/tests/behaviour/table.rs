//! The README's table of behaviours names every test of this folder, and no other.

use std::collections::BTreeSet;

const SOURCES: [(&str, &str); 10] = [
    ("banks", include_str!("banks.rs")),
    ("faults", include_str!("faults.rs")),
    ("flight", include_str!("flight.rs")),
    ("identity", include_str!("identity.rs")),
    ("inject", include_str!("inject.rs")),
    ("quirks", include_str!("quirks.rs")),
    ("streams", include_str!("streams.rs")),
    ("tlb", include_str!("tlb.rs")),
    ("trace", include_str!("trace.rs")),
    ("walks", include_str!("walks.rs")),
];

#[test]
fn the_readme_names_every_test_and_no_other() {
    let mut tests = BTreeSet::new();
    for (module, source) in SOURCES {
        let mut lines = source.lines();
        while lines.by_ref().any(|line| line.trim() == "#[test]") {
            let name = lines.next().and_then(|line| line.strip_prefix("fn ")).expect("a test is a function");
            tests.insert(format!("{module}::{}", name.trim_end_matches("() {")));
        }
    }
    assert!(tests.len() > 100, "the sources were read");
    let readme = include_str!("../../README.md");
    let rows = readme.lines().filter_map(|line| line.strip_suffix("` |")?.rsplit_once('`'));
    let named: BTreeSet<_> = rows.map(|(_, name)| name.to_owned()).filter(|name| is_test(name)).collect();
    let missing: Vec<_> = named.symmetric_difference(&tests).collect();
    assert!(missing.is_empty(), "in the table or in the sources only: {missing:#?}");
}

/// Rows of other tables end in the names of types.
fn is_test(name: &str) -> bool {
    name.contains("::") && name.starts_with(|first: char| first.is_ascii_lowercase())
}
