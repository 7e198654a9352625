//! Runs the prototype's binary as a user does.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// What a run of the binary came to.
pub(crate) struct Run {
    pub(crate) status: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Run {
    /// Asserts that the run ended with this status, and did not panic in doing so.
    pub(crate) fn ended(self, status: i32) -> Self {
        assert_eq!(self.status, Some(status), "stderr: {}\nstdout: {}", self.err, self.out);
        assert!(!self.err.contains("panicked"), "{}", self.err);
        self
    }

    /// Asserts that the run printed one line of error, and nothing else.
    pub(crate) fn refused(self) -> String {
        let run = self.ended(2);
        assert_eq!((run.out.as_str(), run.err.lines().count()), ("", 1), "stderr: {}", run.err);
        assert!(run.err.starts_with("prototype: ") && run.err.ends_with('\n'), "{}", run.err);
        run.err.trim_end().to_owned()
    }
}

/// Runs the binary with these arguments.
pub(crate) fn prototype<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Run {
    let output: Output = Command::new(env!("CARGO_BIN_EXE_prototype")).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { status: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// A board of our own.
pub(crate) fn own(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../boards").join(name).with_extension("dtb")
}

/// The boards in `BOARDS_DIR`, in order; none, and a line that says so, where it is not set.
pub(crate) fn real_boards(test: &str) -> Vec<PathBuf> {
    let Some(directory) = std::env::var_os("BOARDS_DIR") else {
        // Straight to the terminal: the test runner keeps back what a passing test prints.
        let _ = writeln!(std::io::stderr(), "{test}: skipped for real boards: BOARDS_DIR is not set");
        return Vec::new();
    };
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut boards: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|it| it == "dtb")).collect();
    boards.sort();
    boards
}

/// A file of this test's own.
pub(crate) fn scratch(name: &str, bytes: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    fs::write(&path, bytes).unwrap();
    path
}

/// Asserts that each line fits a terminal of 100 columns.
pub(crate) fn fits(text: &str, what: &str) {
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{what}: {line}");
    }
}
