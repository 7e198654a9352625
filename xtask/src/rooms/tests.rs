use super::{LINES, violations};

/// `rule file:line` of each violation.
fn found(files: &[(&str, &str)]) -> Vec<String> {
    let all = violations(files, &[("SMR", "gr0::smr(", &["src/smmu/entry.rs"]), ("TCR", "cb::TCR", &[])]);
    let expected = |what: &str| what.starts_with("is named as a writer");
    let all = all.iter().filter(|one| !expected(&one.what));
    all.map(|one| format!("{} {}:{}", one.rule, one.file, one.line)).collect()
}

const LIB: (&str, &str) = ("src/lib.rs", "pub mod assign;\npub mod dt;\npub mod pci;\npub mod smmu;\npub mod sync;\n");
const DOC: &str = "//! `a` `b` `c`\n";

fn folder(order: &str) -> String {
    format!("{DOC}{order}")
}

#[test]
fn a_file_uses_what_is_listed_before_it() {
    let (before, after) = (folder("mod a;\nmod b;\n"), folder("mod b;\nmod a;\n"));
    for text in ["use super::a::A;", "fn f() { super::a::g() }", "use crate::assign::a::A;", "use super::a;"] {
        let files = |order| {
            [LIB, ("src/assign/mod.rs", order), ("src/assign/a.rs", "pub struct A;"), ("src/assign/b.rs", text)]
        };
        assert!(found(&files(&before)).is_empty(), "{text}");
        assert_eq!(found(&files(&after)), ["1 src/assign/b.rs:1"], "{text}");
    }
}

#[test]
fn a_re_export_does_not_hide_a_use() {
    let order = folder("mod b;\nmod a;\npub use a::A;\n");
    let glob = folder("mod b;\nmod a;\npub use a::*;\n");
    let private = folder("mod b;\nmod a;\nuse a::A;\n");
    for order in [&order, &glob, &private] {
        let files = [
            LIB,
            ("src/assign/mod.rs", order),
            ("src/assign/a.rs", "pub struct A;"),
            ("src/assign/b.rs", "use super::A;"),
        ];
        assert_eq!(found(&files), ["1 src/assign/b.rs:1"], "{order}");
    }
}

#[test]
fn a_folder_inside_uses_what_stands_before_it_in_the_one_above() {
    let order = folder("mod a;\nmod b;\nmod c;\n");
    let files = [
        LIB,
        ("src/assign/mod.rs", &order),
        ("src/assign/a.rs", "pub struct A;"),
        ("src/assign/b/mod.rs", "//! `x` `y`\nmod x;\nmod y;\npub use y::Y;\n"),
        ("src/assign/b/x.rs", "use super::super::a::A;\nuse super::super::c::C;\nuse super::y::Y;\n"),
        ("src/assign/b/y.rs", "use super::x::X;\nuse crate::assign::a::A;\n"),
        ("src/assign/c.rs", "use super::b::Y;\n"),
    ];
    let found = found(&files);
    assert_eq!(
        found,
        ["1 src/assign/b/x.rs:2", "1 src/assign/b/x.rs:3", "2 src/assign/b/x.rs:2", "2 src/assign/b/x.rs:3"]
    );
}

#[test]
fn floors_are_not_used_upwards_or_sideways() {
    let files = [
        LIB,
        ("src/sync/mod.rs", "pub struct S;\nuse crate::assign::A;\n"),
        ("src/assign/mod.rs", "pub struct A;\nuse crate::sync::S;\n"),
        ("src/smmu/mod.rs", "use crate::pci::P;\nuse crate::assign::A;\n"),
        ("src/pci/mod.rs", "pub struct P;\n"),
        ("src/dt/mod.rs", "use crate::{smmu::X, pci::P};\nuse super::sync::S;\nuse core::fmt;\n"),
    ];
    assert_eq!(found(&files), ["1 src/smmu/mod.rs:1", "1 src/sync/mod.rs:2"]);
}

#[test]
fn a_circle_is_found_once_and_told_with_its_way() {
    let order = folder("mod a;\nmod b;\nmod c;\n");
    let files = [
        LIB,
        ("src/assign/mod.rs", order.as_str()),
        ("src/assign/a.rs", "use super::c::C;"),
        ("src/assign/b.rs", "use super::a::A;"),
        ("src/assign/c.rs", "use super::b::B;"),
    ];
    let all = violations(&files, &[]);
    let circles: Vec<_> = all.iter().filter(|one| one.rule == 2).collect();
    assert_eq!(circles.len(), 1);
    assert!(circles.iter().all(|one| one.what.contains("circle of 3 in `assign`: a, b, c")), "{circles:?}");
}

#[test]
fn what_mod_rs_defines_and_its_files_use_is_a_circle_only_where_it_uses_them() {
    let of = |text: &str| {
        let order = folder(text);
        let files = [LIB, ("src/assign/mod.rs", order.as_str()), ("src/assign/a.rs", "use super::Top;\npub struct A;")];
        found(&files)
    };
    assert!(of("mod a;\npub use a::A;\npub struct Top;\n").is_empty());
    assert_eq!(of("mod a;\nuse a::A;\npub struct Top(A);\n"), ["2 src/assign/a.rs:1"]);
}

#[test]
fn a_glob_of_the_own_folder_hides_what_is_used() {
    let order = folder("mod a;\n");
    let files = [LIB, ("src/assign/mod.rs", order.as_str()), ("src/assign/a.rs", "use super::*;\n")];
    assert_eq!(found(&files), ["1 src/assign/a.rs:1"]);
}

#[test]
fn tests_may_use_anything() {
    let order = folder("mod a;\nmod b;\n");
    let text = "#[cfg(test)]\nmod tests {\n use super::super::b::B;\n use super::*;\n}\n";
    let folder = [LIB, ("src/assign/mod.rs", order.as_str()), ("src/assign/a.rs", text), ("src/assign/b.rs", "")];
    assert!(found(&folder).is_empty());
    let apart = "use super::super::b::B;\nuse super::*;\n";
    assert!(found(&[&folder[..], &[("src/assign/a_tests.rs", apart)]].concat()).is_empty());
}

#[test]
fn a_name_twice_and_a_file_too_long() {
    let long = "\n".repeat(LINES + 1);
    let files = [
        LIB,
        ("src/assign/mod.rs", "//! error.rs   a\nmod error;\n"),
        ("src/assign/error.rs", "\n"),
        ("src/pci/mod.rs", "mod error; // what fails\n"),
        ("src/pci/error.rs", long.as_str()),
    ];
    assert_eq!(found(&files), ["3 src/pci/error.rs:1", "4 src/pci/error.rs:401"]);
}

#[test]
fn each_file_has_its_line_in_mod_rs() {
    let text = "//! | `one` | first |\n//! two.rs  second\n/// Third.\nmod three;\nmod one;\n#[cfg(loom)]\nmod two;\nmod four;\n";
    let files = [LIB, ("src/sync/mod.rs", text)];
    assert_eq!(found(&files), ["5 src/sync/mod.rs:8"]);
}

#[test]
fn a_register_has_its_writers() {
    let writes =
        "fn f() {\n r.write32(gr0::smr(1), 0);\n r.read32(gr0::smr(1));\n r.write32(at(cb::TCR2), 0);\n w(cb::TCR);\n}";
    let order = "//! `entry` `bank`\nmod entry;\nmod bank;\n";
    let files = [LIB, ("src/smmu/mod.rs", order), ("src/smmu/entry.rs", writes), ("src/smmu/bank.rs", writes)];
    assert_eq!(found(&files), ["6 src/smmu/bank.rs:2"]);
}

#[test]
fn a_name_for_a_folder_does_not_hide_what_is_used_in_it() {
    let order = folder("mod b;\nmod a;\n");
    let text = "use crate::assign;\nfn f() { assign::a::g(); core::mem::drop(1) }\n";
    let files =
        [LIB, ("src/assign/mod.rs", order.as_str()), ("src/assign/a.rs", "pub fn g() {}"), ("src/assign/b.rs", text)];
    assert_eq!(found(&files), ["1 src/assign/b.rs:2"]);
}

#[test]
fn a_name_that_is_used_again_is_one_violation() {
    let order = folder("mod b;\nmod a;\n");
    let text = "use super::a::A;\nfn f() -> A { A::new() }\n";
    let files =
        [LIB, ("src/assign/mod.rs", order.as_str()), ("src/assign/a.rs", "pub struct A;"), ("src/assign/b.rs", text)];
    assert_eq!(found(&files), ["1 src/assign/b.rs:1"]);
}
