//! The trees that tests read: our own boards, and real ones where `BOARDS_DIR` says where they lie.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// The blobs of `boards/`, by name.
pub(crate) const OWN: [(&str, &[u8]); 6] = [
    ("showcase", include_bytes!("../../boards/showcase.dtb")),
    ("oddities", include_bytes!("../../boards/oddities.dtb")),
    ("smmuv3", include_bytes!("../../boards/smmuv3.dtb")),
    ("lines", include_bytes!("../../boards/lines.dtb")),
    ("heirloom", include_bytes!("../../boards/heirloom.dtb")),
    ("handover", include_bytes!("../../boards/handover.dtb")),
];

/// The one that is no board.
pub(crate) const OVERLAY: (&str, &[u8]) = ("overlay", include_bytes!("../../boards/overlay.dtb"));

/// The blobs in `BOARDS_DIR` by file name without `.dtb`, in order; none, and a line that says so, where it is not set.
pub(crate) fn real_boards(test: &str) -> Vec<(String, Vec<u8>)> {
    let Some(directory) = std::env::var_os("BOARDS_DIR") else {
        skipped(&format!("{test}: skipped for real boards: BOARDS_DIR is not set"));
        return Vec::new();
    };
    let files = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
    let mut blobs: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|it| it == "dtb")).collect();
    blobs.sort();
    assert!(!blobs.is_empty(), "no blobs in {}", Path::new(&directory).display());
    let name = |path: &Path| path.file_stem().unwrap().to_string_lossy().into_owned();
    blobs.iter().map(|path| (name(path), fs::read(path).unwrap())).collect()
}

/// Says that something was left out. Straight to the terminal: the test runner keeps back what a passing test prints.
pub(crate) fn skipped(what: &str) {
    // Where even that cannot be written, there is nobody to read it.
    let _ = writeln!(std::io::stderr(), "{what}");
}

/// A board with room for more, of `boards/overlays/`.
pub(crate) const SLOTS: &[u8] = include_bytes!("../../boards/overlays/slots.dtb");

/// The overlays for it, by name.
pub(crate) const OVERLAYS: [(&str, &[u8]); 5] =
    [("card", CARD), ("daughter", DAUGHTER), ("fabric", FABRIC), ("rewire", REWIRE), ("restream", RESTREAM)];

/// What makes it the board of the prototype's `hotplug`: an MMU-500, and a host bridge.
pub(crate) const PCIE: &[u8] = include_bytes!("../../boards/overlays/pcie.dtbo");

pub(crate) const CARD: &[u8] = include_bytes!("../../boards/overlays/card.dtbo");
pub(crate) const DAUGHTER: &[u8] = include_bytes!("../../boards/overlays/daughter.dtbo");
pub(crate) const FABRIC: &[u8] = include_bytes!("../../boards/overlays/fabric.dtbo");
pub(crate) const REWIRE: &[u8] = include_bytes!("../../boards/overlays/rewire.dtbo");
pub(crate) const RESTREAM: &[u8] = include_bytes!("../../boards/overlays/restream.dtbo");
