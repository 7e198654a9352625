//! Builds the image.

use std::path::{Path, PathBuf};

use object::read::elf::{FileHeader, ProgramHeader};
use object::{Endianness, elf};

use crate::bare_metal;

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

/// Builds it.
pub(crate) fn image(root: &Path, profile: Profile) -> Result<Built, String> {
    let source = root.join("el2");
    let profile = match profile {
        Profile::Release => "release",
        Profile::Size => "size",
    };
    let script = format!("-Clink-arg=-T{}", source.join("image.ld").display());
    let flags = [
        "-Crelocation-model=pic",
        "-Clink-arg=-pie",
        "-Clink-arg=--no-dynamic-linker",
        "-Clink-arg=-znoexecstack",
        // Constants are relocated too: by the image itself, before anything is read-only.
        "-Clink-arg=-znotext",
        &script,
    ];
    let mut cargo = bare_metal::cargo(&source, "el2", &flags)?;
    cargo.args(["--profile", profile]);
    bare_metal::run(cargo, "the image")?;
    let elf = bare_metal::output("el2", profile).join("el2");
    let image = elf.with_extension("img");
    let bytes = std::fs::read(&elf).map_err(|error| format!("{}: {error}", elf.display()))?;
    std::fs::write(&image, flatten(&bytes)?).map_err(|error| format!("{}: {error}", image.display()))?;
    Ok(Built { elf, image })
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
