use super::*;

fn paths(text: &str) -> Vec<String> {
    read(text).paths.iter().map(|path| path.segments.join("::")).collect()
}

#[test]
fn a_use_tree_is_spread_out() {
    let found = paths("use super::{a::{self, B}, c::*, d as e};\n");
    assert_eq!(found, ["super::a", "super::a::B", "super::c", "super::d"]);
}

#[test]
fn tests_comments_and_strings_are_left_out() {
    let text = "// use super::a;\n/* use super::b; */ const C: &str = \"use super::c;\";\nconst D: char = '\"';\n\
        #[cfg(test)]\nmod tests { use super::d; fn f() { super::e::f() } }\n#[cfg(test)]\nmod more;\n\
        struct S<'a> { #[cfg(test)] x: super::f::F, y: super::g::G<'a> }\nlet r = r#\"super::h::H\"#;";
    assert_eq!(paths(text), ["super::g::G"]);
    assert!(read(text).modules.is_empty());
}

#[test]
fn lines_are_counted_over_comments_and_strings() {
    let text = "/* one\ntwo */\nconst A: &str = \"\n\";\nuse super::a;\n";
    assert_eq!(read(text).paths.first().map(|path| path.line), Some(5));
}

#[test]
fn a_write_over_several_lines_is_one() {
    let text = "fn f() { r.write32(\n  gr0::smr(entry),\n 0); r.read32(gr0::s2cr(1)); }";
    let writes = read(text).writes;
    assert_eq!(writes, [Write { arguments: "gr0::smr(entry),0".into(), line: 1 }]);
}

#[test]
fn visibility_is_not_a_use() {
    assert!(paths("pub(in crate::smmu) fn f() {}").is_empty());
}
