//! `cargo xtask instructions`: what each operation costs, in instructions and in heap, against Xen's and the bounds.
//!
//! One run of callgrind for each case. `--zero-before` and `--dump-after` on the program's `measured` give one file for
//! each operation that ran, and the program prints one line for each, in the same order. The measured loop is outside.
//! The allocator is taken out exactly: from the total of a file goes the inclusive cost of every call from elsewhere
//! into `instructions::memory` (the global allocator, never inlined) or into the compiler's shims in front of it. What
//! stays is the call instruction itself. Xen's figures were taken without its allocator too.

mod callgrind;
mod report;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Operations, in the order in which a device goes through them.
const OPERATIONS: &[&str] = &[
    "add",
    "first assign",
    "assign again, fresh bank",
    "assign again, bank there",
    "deassign, last",
    "deassign, not last",
    "reassign",
    "remove",
    "flush, a page",
    "flush, a domain",
    "fault intake",
];

/// The operations whose sum is gated: a device comes, is assigned, and goes.
const LIFE: &[&str] = &["add", "first assign", "deassign, last", "remove"];

/// The operations that Xen's figures are about, in the order of [`Case::xen`]. It flushes a page as it flushes all.
const XENS: &[&str] =
    &["add", "first assign", "assign again, fresh bank", "deassign, last", "remove", "flush, a domain"];

/// A case, and what is asked of it. `instructions/src/main.rs` says what is there in each.
struct Case {
    name: &'static str,
    /// The head of its column.
    short: &'static str,
    /// Xen's unmodified driver, gcc -O2 on x86-64, locks inlined, allocator excluded.
    xen: Option<[u64; 6]>,
    /// The bound of the sum of [`LIFE`], in percent of Xen's, and the aim.
    bound: (u64, u64),
}

const fn case(name: &'static str, short: &'static str, xen: [u64; 6], bound: (u64, u64)) -> Case {
    Case { name, short, xen: Some(xen), bound }
}

const fn ours(name: &'static str, short: &'static str) -> Case {
    Case { name, short, xen: None, bound: (0, 0) }
}

const THRICE: (u64, u64) = (300, 200);
const EQUAL: (u64, u64) = (100, 50);

const CASES: &[Case] = &[
    case("1 device", "1", [203, 1_646, 394, 182, 80, 51], THRICE),
    case("128 devices, 2 SMMUs", "128 on 2", [297, 2_924, 590, 182, 125, 51], THRICE),
    case("1024 devices, 9 SMMUs", "1,024 on 9", [359, 4_985, 1_458, 182, 176, 51], THRICE),
    case("4096 devices, 33 SMMUs", "4,096 on 33", [497, 9_485, 4_350, 182, 317, 51], EQUAL),
    case("64 SMMUs x 8 devices", "64 x 8", [621, 8_285, 4_738, 182, 476, 51], EQUAL),
    case("127th of 128 entries", "127th of 128", [355, 3_677, 472, 182, 137, 51], THRICE),
    case("16 streams, 100 of 128 entries", "16 streams", [1_580, 44_756, 874, 587, 125, 51], EQUAL),
    ours("16 devices", "16"),
    ours("1 SMMU x 8 devices", "1 x 8"),
    ours("8 live banks", "8 banks"),
    ours("127 live banks", "127 banks"),
    ours("group of 8", "group of 8"),
];

/// Pairs of cases between which no operation may grow by more than [`GROWTH`] percent: the head of the column, from, to.
const GROWING: &[(&str, &str, &str)] = &[
    ("16 to 4,096", "16 devices", "4096 devices, 33 SMMUs"),
    ("1 to 64 SMMUs", "1 SMMU x 8 devices", "64 SMMUs x 8 devices"),
];
const GROWTH: u64 = 250;

/// A flush of a domain on one SMMU, in any case, whatever other banks there are.
const FLUSH: u64 = 200;
/// Heap of a device with one stream: bytes that it keeps, bytes that its add needs at most.
const KEPT: u64 = 700;
const CARRIED: u64 = 2_000;
/// Allocations of an add of a device with one stream. All other operations make none, in any case.
const ALLOCATIONS: u64 = 10;
/// The case of which the heap of a device, a domain and an SMMU is shown.
const HEAP: &str = "16 devices";
/// The case whose device has more than one stream.
const MANY_STREAMS: &str = "16 streams, 100 of 128 entries";

/// What one operation cost in one case: instructions on average, of the rest the most.
#[derive(Clone, Copy, Default)]
struct Cost {
    instructions: u64,
    allocations: u64,
    carried: u64,
}

/// What was measured of one case.
#[derive(Default)]
struct Measured {
    costs: BTreeMap<String, Cost>,
    /// Bytes of heap that an SMMU, a domain, a device keeps.
    heap: BTreeMap<String, u64>,
}

impl Measured {
    fn instructions(&self, operation: &str) -> Option<u64> {
        self.costs.get(operation).map(|cost| cost.instructions)
    }

    /// The sum that is gated.
    fn life(&self) -> Option<u64> {
        LIFE.iter().map(|operation| self.instructions(operation)).sum()
    }
}

impl Case {
    fn xen(&self, operation: &str) -> Option<u64> {
        let place = XENS.iter().position(|one| *one == operation)?;
        self.xen?.get(place).copied()
    }

    fn xen_life(&self) -> Option<u64> {
        LIFE.iter().map(|operation| self.xen(operation)).sum()
    }
}

/// All cases, by name.
type Results = BTreeMap<&'static str, Measured>;

/// Measures, prints, and says whether everything is within its bounds.
pub(crate) fn table(markdown: bool) -> Result<bool, String> {
    let valgrind = Command::new("valgrind").arg("--version").output();
    let version = valgrind.map_err(|_| "valgrind is not there, and it counts (Debian: apt-get install valgrind)")?;
    let (program, folder) = build()?;
    let results = measure_all(&program, &folder)?;
    let tools = [first_line("rustc", "--version"), text(&version.stdout), first_line("date", "+%F")].join(", ");
    Ok(report::print(&results, &format!("{}, fat LTO, {tools}", std::env::consts::ARCH), markdown))
}

/// The program to measure, and a folder for what callgrind writes.
fn build() -> Result<(PathBuf, PathBuf), String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the workspace has no folder")?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |set| root.join(set));
    let target = target.join("instructions");
    let built = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args(["build", "--quiet", "--profile", "measured", "--package", "instructions", "--target-dir"])
        .arg(&target)
        .status()
        .map_err(|error| format!("cargo: {error}"))?;
    if !built.success() {
        return Err("the program to measure does not build".into());
    }
    let folder = target.join("callgrind");
    std::fs::create_dir_all(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    Ok((target.join("measured").join("instructions"), folder))
}

/// Runs the cases, as many at once as there are CPUs: what is counted does not depend on it.
fn measure_all(program: &Path, folder: &Path) -> Result<Results, String> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let work = || {
        while let Some(case) = CASES.get(next.fetch_add(1, Ordering::Relaxed)) {
            let measured = callgrind::measure(program, folder, case.name);
            done.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((case.name, measured));
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(CASES.len());
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let done = done.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    done.into_iter().map(|(name, measured)| Ok((name, measured?))).collect()
}

fn first_line(program: &str, argument: &str) -> String {
    let output = Command::new(program).arg(argument).output();
    output.map_or_else(|_| program.into(), |output| text(&output.stdout))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}
