//! Builds the image: with rustup's target where it is installed, else with Debian's compiler and a core of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};

/// How it is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Profile {
    /// As it is run.
    Release,
    /// For size: `opt-level = "s"`.
    Size,
}

/// What was built.
#[derive(Debug)]
pub(crate) struct Built {
    /// With symbols.
    pub(crate) elf: PathBuf,
    /// As it is loaded: an arm64 Image.
    pub(crate) image: PathBuf,
}

const TARGET: &str = "aarch64-unknown-none";
const LINKER: &str = "aarch64-linux-gnu-ld";
const DEBIAN: &str = "/usr/bin/rustc";

/// Builds it.
pub(crate) fn image(root: &Path, profile: Profile) -> Result<Built, String> {
    let folder = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from).join("el2");
    let source = root.join("el2");
    let (name, dir) = match profile {
        Profile::Release => ("release", "release"),
        Profile::Size => ("size", "size"),
    };
    let mut flags = vec![
        "-Crelocation-model=pic".to_owned(),
        "-Clink-arg=-pie".to_owned(),
        "-Clink-arg=--no-dynamic-linker".to_owned(),
        "-Clink-arg=-znoexecstack".to_owned(),
        // Constants are relocated too: by the image itself, before anything is read-only.
        "-Clink-arg=-znotext".to_owned(),
        format!("-Clink-arg=-T{}", source.join("image.ld").display()),
    ];
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&source).args(["build", "--locked", "--quiet", "--profile", name, "--target", TARGET]);
    if !has_rustup_target() {
        if !Path::new(DEBIAN).exists() {
            return Err(format!("neither rustup's target {TARGET} nor Debian's {DEBIAN} (rustc-web, rust-web-src)"));
        }
        flags.push(format!("-Clinker={LINKER}"));
        flags.push("-Clinker-flavor=ld".to_owned());
        cargo.arg("-Zbuild-std=core,alloc").env("RUSTC", DEBIAN).env("RUSTC_BOOTSTRAP", "1");
        // The toolchain that runs this task is another one.
        cargo.env_remove("RUSTUP_TOOLCHAIN");
    }
    let status = cargo
        .env("CARGO_TARGET_DIR", &folder)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .status()
        .map_err(|error| format!("cargo: {error}"))?;
    if !status.success() {
        return Err("the image does not build".into());
    }
    let elf = folder.join(TARGET).join(dir).join("el2");
    let image = elf.with_extension("img");
    let bytes = std::fs::read(&elf).map_err(|error| format!("{}: {error}", elf.display()))?;
    std::fs::write(&image, flatten(&bytes)?).map_err(|error| format!("{}: {error}", image.display()))?;
    Ok(Built { elf, image })
}

fn has_rustup_target() -> bool {
    let listed = Command::new("rustup").args(["target", "list", "--installed"]).output();
    listed.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).lines().any(|line| line == TARGET))
}

/// The loadable segments, each at its address: what a boot loader copies to memory. `.bss` is left to the image itself.
fn flatten(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let failed = |error: object::Error| format!("the image is no ELF file: {error}");
    let header = elf::FileHeader64::<Endianness>::parse(bytes).map_err(failed)?;
    let endian = header.endian().map_err(failed)?;
    let mut flat = Vec::new();
    for segment in header.program_headers(endian, bytes).map_err(failed)? {
        if segment.p_type(endian) != elf::PT_LOAD {
            continue;
        }
        let data = segment.data(endian, bytes).map_err(|()| "a segment of the image lies outside the file")?;
        let start = usize::try_from(segment.p_paddr(endian)).map_err(|_| "a segment of the image lies too high")?;
        let end = start.checked_add(data.len()).ok_or("a segment of the image lies too high")?;
        if flat.len() < end {
            flat.resize(end, 0);
        }
        if let Some(place) = flat.get_mut(start..end) {
            place.copy_from_slice(data);
        }
    }
    Ok(flat)
}
