//! Boards with bad nodes, as a user meets them: the rest is shown and played, and each bad node is told.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

mod common;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use common::{fits, own, prototype, scratch};
use serde_json::{Value, json};

/// The built-in board with `iommus` of its last device referring to nobody.
fn with_a_bad_device(name: &str) -> PathBuf {
    let mut blob = std::fs::read(own("showcase")).unwrap();
    let node = blob.windows(15).position(|bytes| bytes == b"audio@28100000\0").unwrap();
    // A property of two cells, the second of which is the stream ID 0x10.
    let is_iommus = |bytes: &[u8]| bytes[..8] == [0, 0, 0, 3, 0, 0, 0, 8] && bytes[16..] == [0, 0, 0, 0x10];
    let property = node + blob[node..].windows(20).position(is_iommus).unwrap();
    blob[property + 12..property + 16].copy_from_slice(&[0, 0, 0, 0x77]);
    scratch(name, &blob)
}

/// In words of the library, and in those of a report.
const WHY: &str = "/soc/audio@28100000: entry 0 of `iommus` refers to phandle 0x77, which no node has";

fn told() -> &'static str {
    WHY.trim_start_matches("/soc/")
}

fn command<'a>(words: &'a [&'a str], board: &'a Path) -> Vec<&'a OsStr> {
    words.iter().map(OsStr::new).chain([board.as_os_str()]).collect()
}

#[test]
fn a6_inspect_shows_the_rest_and_ends_with_one() {
    let board = with_a_bad_device("inspect-bad-device.dtb");
    let run = prototype(command(&["inspect"], &board)).ended(1);
    fits(&run.out, "bad device");
    assert!(run.out.contains("Refused nodes: 1") && run.out.contains(told()), "{}", run.out);
    assert!(run.out.contains("Devices: 13, 12 enabled") && run.out.contains("  display@20000000 "), "{}", run.out);
    let run = prototype(command(&["inspect", "--json"], &board)).ended(1);
    let found: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(
        found.get("refused").unwrap(),
        &json!([{"path": "/soc/audio@28100000", "name": "audio@28100000", "error": WHY}])
    );
    let sound = prototype(command(&["inspect", "--json"], &own("showcase"))).ended(0);
    assert!(!sound.out.contains("refused"));
}

#[test]
fn a6_the_rest_can_be_played() {
    let board = with_a_bad_device("run-bad-device.dtb");
    let run = prototype(command(&["run"], &board)).ended(0);
    fits(&run.out, "bad device");
    assert!(run.out.contains(told()), "{}", run.out);
    assert!(!run.out.contains("audio@28100000 "), "{}", run.out);
}
