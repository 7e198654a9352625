//! C-13: a lock taken out of order does not compile, and the message says so in words.
//!
//! Each file of `tests/compile_fail` is a program over the library's own `src/sync/{order, levels}.rs`. Its first line says
//! what the compiler must answer. The messages are looked for, not compared whole, so that any compiler will do.

#![expect(clippy::expect_used, reason = "a test that cannot go on must say where")]

use std::path::Path;
use std::process::Command;

#[test]
fn c13_locks_out_of_order_do_not_compile() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compile_fail");
    let mut files: Vec<_> =
        std::fs::read_dir(&folder).expect("the folder").map(|file| file.expect("file").path()).collect();
    files.sort();
    assert!(files.len() >= 7, "the cases are there");
    for file in files {
        let source = std::fs::read_to_string(&file).expect("readable");
        let wanted = source.lines().next().and_then(|line| line.strip_prefix("//! ")).expect("a first line");
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let output = Command::new(rustc)
            .args(["--edition", "2024", "--crate-type", "lib", "--emit", "metadata", "--cap-lints", "allow", "-o"])
            .arg(std::env::temp_dir().join(format!("lock-order-{}.rmeta", std::process::id())))
            .arg(&file)
            .output()
            .expect("rustc runs");
        let message = String::from_utf8_lossy(&output.stderr);
        let name = file.display();
        match wanted.strip_prefix("error: ") {
            None => assert!(output.status.success(), "{name} must compile:\n{message}"),
            Some(error) => {
                assert!(!output.status.success(), "{name} must not compile");
                assert!(message.contains(error), "{name}: the message must say '{error}':\n{message}");
            }
        }
    }
}
