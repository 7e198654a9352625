//! Runs one case under callgrind, and reads what it wrote.

use std::path::Path;
use std::process::Command;

use super::{Cost, Measured, OPERATIONS, text};

/// Runs the case and pairs callgrind's files with the program's lines.
pub(super) fn measure(program: &Path, folder: &Path, case: &str) -> Result<Measured, String> {
    let stem = case.replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    let file = folder.join(stem);
    // Both options take the same pattern, which has to begin with `*`: callgrind 3.19 forgets the second one otherwise.
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--compress-strings=no", "--zero-before=*measured", "--dump-after=*measured"])
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg(program)
        .arg(case)
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    if !output.status.success() {
        return Err(format!("{case}:\n{}", text(&output.stderr)));
    }
    let mut measured = Measured::default();
    let mut times = std::collections::BTreeMap::<String, u64>::new();
    let mut part = 0_u32;
    for line in text(&output.stdout).lines() {
        if let Some(heap) = line.strip_prefix("# ") {
            let (what, bytes) = heap.split_once('\t').ok_or_else(|| format!("{case}: {line}"))?;
            measured.heap.insert(what.into(), number(bytes)?);
            continue;
        }
        part = part.saturating_add(1);
        let path = format!("{}.{part}", file.display());
        let written = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        let instructions = without_allocator(&written).ok_or_else(|| format!("{path}: nothing was counted"))?;
        // Read, and not to be taken for a later run's.
        std::fs::remove_file(&path).map_err(|error| format!("{path}: {error}"))?;
        let mut words = line.split('\t');
        let operation = words.next().unwrap_or_default();
        if !OPERATIONS.contains(&operation) {
            return Err(format!("{case}: no operation '{operation}'"));
        }
        let mut next = || words.next().map_or(Ok(0), number);
        let (allocations, carried) = (next()?, next()?);
        let cost = measured.costs.entry(operation.into()).or_default();
        let times = times.entry(operation.into()).or_default();
        *times = times.saturating_add(1);
        cost.instructions = cost.instructions.saturating_add(instructions);
        cost.allocations = cost.allocations.max(allocations);
        cost.carried = cost.carried.max(carried);
    }
    if measured.costs.is_empty() {
        return Err(format!("{case}: nothing was measured"));
    }
    for (operation, Cost { instructions, .. }) in &mut measured.costs {
        *instructions = instructions.div_ceil(times.get(operation).copied().unwrap_or(1));
    }
    Ok(measured)
}

fn number(word: &str) -> Result<u64, String> {
    word.parse().map_err(|_| format!("'{word}' is no number"))
}

/// The instructions of one file, without those of calls into the allocator. `None` if the file is not understood.
///
/// A line `calls=` stands after `cfn=`, and the line after it has the inclusive cost of these calls.
fn without_allocator(written: &str) -> Option<u64> {
    let (mut caller, mut callee) = ("", "");
    let (mut total, mut excluded) = (None, 0_u64);
    let mut lines = written.lines();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("fn=") {
            caller = name;
        } else if let Some(name) = line.strip_prefix("cfn=") {
            callee = name;
        } else if line.starts_with("calls=") {
            let cost: u64 = lines.next()?.split_whitespace().nth(1)?.parse().ok()?;
            if is_allocator(callee) && !is_allocator(caller) {
                excluded = excluded.saturating_add(cost);
            }
        } else if let Some(sum) = line.strip_prefix("totals: ") {
            total = sum.trim().parse::<u64>().ok();
        }
    }
    total?.checked_sub(excluded).filter(|left| *left > 0)
}

fn is_allocator(function: &str) -> bool {
    let shims = ["__rust_alloc", "__rust_dealloc", "__rust_realloc", "__rust_no_alloc_shim"];
    let ours = ["instructions::memory::take", "instructions::memory::give_back"];
    ours.iter().any(|name| function.starts_with(name)) || shims.iter().any(|name| function.contains(name))
}

#[cfg(test)]
mod tests {
    use super::without_allocator;

    const FILE: &str = "fn=a::add\n0 10\ncfn=__rustc::__rust_alloc\ncalls=2 0\n0 60\n0 5\n\n\
        fn=__rustc::__rust_alloc\n0 20\ncfn=instructions::memory::take\ncalls=2 0\n* 40\n\n\
        fn=instructions::memory::take\n0 40\n\ntotals: 75\n";

    #[test]
    fn a_call_through_the_shim_is_subtracted_once() {
        assert_eq!(without_allocator(FILE), Some(15));
    }

    #[test]
    fn a_file_without_a_total_is_refused() {
        assert_eq!(without_allocator("fn=a\n0 1\n"), None);
    }
}
