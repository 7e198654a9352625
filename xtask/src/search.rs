//! `cargo xtask search`: the long searches, which `cargo test` does a little of.
//!
//! Each is a test that takes its length from an environment variable. They are built with the profile `search`: optimised, with
//! overflow checks and debug assertions.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

/// One search: the package and the test target, the tests in it, the variable, its value here, and what that comes to.
struct Search {
    package: &'static str,
    target: &'static str,
    tests: &'static str,
    variable: &'static str,
    length: u32,
    what: &'static str,
}

const SEARCHES: &[Search] = &[
    Search {
        package: "iommu-assign",
        target: "properties",
        tests: "sequences_of",
        variable: "PROPERTIES_CASES",
        length: 400,
        what: "sequences of operations on each of eight boards, of a fixed and of a fresh seed, against the specification",
    },
    Search {
        package: "iommu-assign",
        target: "driver_walks",
        tests: "random_walks",
        variable: "WALKS",
        length: 120,
        what: "random walks over the driver alone, on each of six small parts",
    },
    Search {
        package: "iommu-assign",
        target: "cover_properties",
        tests: "",
        variable: "COVER_CASES",
        length: 1_000,
        what: "sets of stream IDs for each property of their covers, against a search of everything",
    },
    Search {
        package: "iommu-assign",
        target: "dt_corrupt",
        tests: "",
        variable: "CORRUPTIONS",
        length: 40_000,
        what: "corruptions of each board of our own",
    },
    Search {
        package: "prototype",
        target: "cli",
        tests: "damaged_blobs",
        variable: "DAMAGED_BLOBS",
        length: 500,
        what: "damaged blobs, inspected and played",
    },
];

/// Runs the searches, `times` as long as usual, and says whether all found nothing.
pub(crate) fn run(times: u32) -> Result<bool, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the workspace has no folder")?;
    let mut found_nothing = true;
    for (search, number) in SEARCHES.iter().zip(1_u32..) {
        let Search { package, target, tests, variable, length, what } = search;
        let length = length.saturating_mul(times);
        println!("search {number} of {}: {length} {what}", SEARCHES.len());
        let start = Instant::now();
        let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .current_dir(root)
            .args(["test", "--quiet", "--profile", "search", "--package", package, "--test", target, tests])
            .env(variable, length.to_string())
            .status()
            .map_err(|error| format!("cargo: {error}"))?;
        let seconds = start.elapsed().as_secs();
        println!(
            "search {number} of {}: {} in {seconds} s",
            SEARCHES.len(),
            if status.success() { "nothing found" } else { "FOUND" }
        );
        found_nothing &= status.success();
    }
    Ok(found_nothing)
}
