//! The header that is checked in is what cbindgen makes of the source. `UPDATE_HEADER=1` writes it anew.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

#[test]
fn the_header_is_what_the_source_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = folder.join("include").join("iommu_assign.h");
    let config = cbindgen::Config::from_file(folder.join("cbindgen.toml")).expect("cbindgen.toml is read");
    let mut made = Vec::new();
    cbindgen::generate_with_config(folder, config).expect("the source is read").write(&mut made);
    if std::env::var_os("UPDATE_HEADER").is_some() {
        fs::write(&path, &made).expect("the header is written");
    }
    let checked_in = fs::read(&path).expect("the header is there");
    if made != checked_in {
        panic!("{} is not what the source says: run this test with UPDATE_HEADER=1", path.display());
    }
}
