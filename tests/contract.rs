//! The contract as a whole: a device's way under it, and that every line of `docs/contract.md` has a test.

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

use std::collections::BTreeSet;
use std::path::Path;

use common::Bench;
use iommu_assign::assign::{Cause, DeviceState};
use machine::Reached;

#[test]
fn a_device_reaches_its_owner_and_nobody_else_from_add_to_remove() {
    let mut bench = Bench::v2();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    assert_eq!(bench.dma(0x10), Reached::Fault, "unknown streams fault");
    let device = bench.add("dma", &[(0x10, 0x3)]);
    assert_eq!(bench.dma(0x10), Reached::Fault, "blocked after add");
    bench.assign(&device, &one).unwrap();
    assert_eq!(bench.dma(0x13), Reached::Memory(one.backing));
    bench.audit();
    bench.reassign(&device, &two).unwrap();
    assert_eq!(bench.dma(0x13), Reached::Memory(two.backing));
    bench.audit();
    assert_eq!(bench.deassign(&device).unwrap().still_reachable, []);
    assert_eq!(bench.dma(0x10), Reached::Fault);
    bench.audit();
    bench.remove(&device).unwrap();
    assert_eq!(bench.assign(&device, &one).unwrap_err().cause, Cause::Gone);
    assert_eq!(bench.service.next_device(None).map(|info| info.state), None::<DeviceState>);
    bench.audit();
    bench.service.destroy_domain(&one.domain).unwrap();
    bench.service.destroy_domain(&two.domain).unwrap();
}

/// The lines of the contract, as test names spell them: `c1`, `i15`.
fn lines() -> BTreeSet<String> {
    let page = include_str!("../docs/contract.md");
    let numbered = page.lines().filter_map(|line| line.strip_prefix("- **")?.split([' ', '*']).next());
    numbered.map(|number| number.to_lowercase().replace('-', "")).collect()
}

/// The names of all functions in the Rust files below `folder`.
fn functions(folder: &Path, names: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if path.is_dir() {
            functions(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let named = text.lines().filter_map(|line| line.trim_start().strip_prefix("fn ")?.split(['(', '<']).next());
            names.extend(named.map(String::from));
        }
    }
}

#[test]
fn every_line_of_the_contract_is_named_by_a_test() {
    let lines = lines();
    assert_eq!(lines.len(), 20 + 15 + 12 + 8, "{lines:?}");
    let mut names = Vec::new();
    for folder in ["tests", "src"] {
        functions(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut names);
    }
    let cited: BTreeSet<&str> = names.iter().flat_map(|name| name.split('_')).collect();
    let silent: Vec<&String> = lines.iter().filter(|line| !cited.contains(line.as_str())).collect();
    assert!(silent.is_empty(), "no test is named after {silent:?}");
}

/// Whoever opens the page of `Service` finds each of its methods by what it is for.
#[test]
fn the_table_at_the_head_of_service_has_every_method() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/assign");
    let read = |folder: &Path| -> Vec<String> {
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        files.filter(|file| file.is_file()).map(|file| std::fs::read_to_string(file).unwrap()).collect()
    };
    let mut methods = BTreeSet::new();
    for text in read(&folder).into_iter().chain(read(&folder.join("op"))) {
        for block in
            text.split("\nimpl<P: ").filter(|block| block[..block.find('{').unwrap()].ends_with("> Service<P> "))
        {
            let body = &block[..block.find("\n}\n").unwrap()];
            let names = body.lines().filter_map(|line| line.strip_prefix("    pub ")?.split_once("fn "));
            methods.extend(names.map(|(_, rest)| rest[..rest.find(['(', '<']).unwrap()].to_owned()));
        }
    }
    assert!(methods.len() > 40, "{methods:?}");
    let service = std::fs::read_to_string(folder.join("service.rs")).unwrap();
    let missing: Vec<_> =
        methods.iter().filter(|name| !service.contains(&format!("[`{name}`](Self::{name})"))).collect();
    assert_eq!(missing, Vec::<&String>::new());
}
