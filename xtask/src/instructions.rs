//! `cargo xtask instructions`: instructions of each operation, counted by callgrind.

use std::path::Path;
use std::process::Command;

/// Times that each operation runs; a run is the same each time, so that few are enough.
const TIMES: u64 = 100;

/// Prints the table.
pub(crate) fn table() -> Result<(), String> {
    let valgrind = Command::new("valgrind").arg("--version").output();
    let version = valgrind.map_err(|_| "valgrind is not there, and it counts (Debian: apt-get install valgrind)")?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the workspace has no folder")?;
    let target = root.join("target").join("instructions");
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args(["build", "--quiet", "--release", "--package", "instructions", "--target-dir"])
        .arg(&target)
        .status()
        .map_err(|error| format!("cargo: {error}"))?;
    if !built.success() {
        return Err("the program to measure does not build".into());
    }
    let program = target.join("release").join("instructions");
    let names = Command::new(&program).output().map_err(|error| format!("{}: {error}", program.display()))?;
    let measured_with = [text(&version.stdout), compiler()].join(", ");
    println!("instructions on {}, {measured_with}, release build\n", std::env::consts::ARCH);
    println!("{:<28} {:>12}", "operation", "instructions");
    for operation in text(&names.stdout).lines() {
        let each = count(&program, operation)?.checked_div(TIMES).unwrap_or_default();
        println!("{operation:<28} {each:>12}");
    }
    Ok(())
}

/// Instructions under `measured` in all runs of `operation` together.
fn count(program: &Path, operation: &str) -> Result<u64, String> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args(["--collect-atstart=no", "--toggle-collect=instructions::measured*"])
        .arg(program)
        .args([operation, &TIMES.to_string()])
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    let told = text(&output.stderr);
    let collected = told.lines().find_map(|line| line.split_once("Collected : "));
    match collected.and_then(|(_, count)| count.trim().parse().ok()) {
        Some(count) if output.status.success() && count > 0 => Ok(count),
        _ => Err(format!("nothing was counted of {operation}:\n{told}")),
    }
}

fn compiler() -> String {
    let version = Command::new("rustc").arg("--version").output();
    version.map_or_else(|_| "rustc".into(), |output| text(&output.stdout))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}
