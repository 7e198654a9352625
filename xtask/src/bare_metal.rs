//! Builds for bare metal: with rustup's target where it is installed, else with Debian's compiler and a core of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "aarch64-unknown-none";
const LINKER: &str = "aarch64-linux-gnu-ld";
const DEBIAN: &str = "/usr/bin/rustc";

/// `cargo build` in the folder `source`, with the compiler's `flags`. What is built goes to a folder of its own, called `name`.
pub(crate) fn cargo(source: &Path, name: &str, flags: &[&str]) -> Result<Command, String> {
    let mut flags = flags.to_vec();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(source).args(["build", "--locked", "--quiet", "--target", TARGET]);
    let linker = format!("-Clinker={LINKER}");
    if !has_rustup_target() {
        if !Path::new(DEBIAN).exists() {
            return Err(format!("neither rustup's target {TARGET} nor Debian's {DEBIAN} (rustc-web, rust-web-src)"));
        }
        flags.extend([linker.as_str(), "-Clinker-flavor=ld"]);
        cargo.arg("-Zbuild-std=core,alloc").env("RUSTC", DEBIAN).env("RUSTC_BOOTSTRAP", "1");
        // The toolchain that runs this task is another one.
        cargo.env_remove("RUSTUP_TOOLCHAIN");
    }
    cargo.env("CARGO_TARGET_DIR", folder(name)).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    Ok(cargo)
}

/// Runs it to its end. `what` is built.
pub(crate) fn run(mut cargo: Command, what: &str) -> Result<(), String> {
    let status = cargo.status().map_err(|error| format!("cargo: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{what} does not build")) }
}

/// Where the profile's files are.
pub(crate) fn output(name: &str, profile: &str) -> PathBuf {
    folder(name).join(TARGET).join(profile)
}

fn folder(name: &str) -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    target.join(name)
}

fn has_rustup_target() -> bool {
    let listed = Command::new("rustup").args(["target", "list", "--installed"]).output();
    listed.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).lines().any(|line| line == TARGET))
}
