//! `inspect --html`: the page says what the JSON says, refers to nothing outside, and nothing in a blob becomes a part of it.
//! How it looks and filters in a browser is for `.ci/page`.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{own, prototype, real_boards, scratch};
use serde_json::Value;

fn page(board: &Path, status: i32) -> String {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(board.file_stem().unwrap()).with_extension("html");
    let arguments = ["inspect".as_ref(), "--html".as_ref(), file.as_os_str(), board.as_os_str()];
    let run = prototype(arguments).ended(status);
    assert!(run.out.ends_with(".html: written\n"), "{}", run.out);
    fs::read_to_string(file).unwrap()
}

/// As a page writes it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[test]
fn the_page_says_what_the_json_says() {
    let mine = ["showcase", "oddities", "heirloom", "handover", "lines"].map(own);
    for board in mine.into_iter().chain(real_boards("the_page_says_what_the_json_says")) {
        let json = prototype(["inspect".as_ref(), "--json".as_ref(), board.as_os_str()]);
        if json.status != Some(0) {
            continue;
        }
        let page = page(&board, 0);
        let found: Value = serde_json::from_str(&json.out).unwrap();
        let array = |list: &str| found.get(list).unwrap().as_array().unwrap().clone();
        for line in array("summary") {
            assert!(page.contains(&escaped(line.as_str().unwrap())), "{line}");
        }
        for one in ["smmus", "devices", "bridges", "unconfined"].into_iter().flat_map(array) {
            for key in ["name", "reason"] {
                let text = one.get(key).and_then(Value::as_str).unwrap_or_default();
                assert!(page.contains(&escaped(text)), "{}: {text}", board.display());
            }
        }
        assert_eq!(page.matches("<svg").count(), 1);
        for outside in ["src=", "href=", "url(", "@import", "<link", "<img"] {
            assert!(!page.contains(outside), "{}: {outside}", board.display());
        }
    }
}

#[test]
fn nothing_in_a_blob_becomes_a_part_of_the_page() {
    let mut blob = fs::read(own("showcase")).unwrap();
    let (name, evil) = (b"audio@28100000\0", b"<i>&\"'@281<i>0\0");
    let at = blob.windows(name.len()).position(|bytes| bytes == name).unwrap();
    blob[at..at + name.len()].copy_from_slice(evil);
    let model = blob.windows(7).position(|bytes| bytes == b"Example").unwrap();
    blob[model..model + 7].copy_from_slice(b"<script");
    let board: PathBuf = scratch("evil.dtb", &blob);
    let page = page(&board, 0);
    assert!(page.contains("&lt;i&gt;&amp;") && !page.contains("<i>"), "{page}");
    assert_eq!(page.matches("<script").count(), 1, "its own");
}

#[test]
fn a_page_that_cannot_be_written_is_an_error() {
    let board = own("showcase");
    let arguments = ["inspect".as_ref(), "--html".as_ref(), "no/such/folder/x.html".as_ref(), board.as_os_str()];
    let error = prototype(arguments).refused();
    assert!(error.contains("no/such/folder/x.html: No such file or directory"), "{error}");
}
