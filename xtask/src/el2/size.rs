//! `cargo xtask el2 --size`: how much of a hypervisor the library takes. Code, from the image's symbols; stack, instructions and
//! masked interrupts of each operation, from a run of that image on one CPU with a clock that counts instructions.
//!
//! The image is built for size (`opt-level = "s"`, LTO over everything, panic = abort), with one kind of SMMU registers.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use object::{Object, ObjectSymbol, SymbolKind};

use super::{EMULATOR, build};

/// Kilobytes of machine code of the main operations: the floors `assign`, `smmu` and `sync`.
const CODE: u64 = 96 << 10;
/// Bytes of stack of an operation, and of what interrupt handlers call.
const STACK: u64 = 2560;
const STACK_IN_INTERRUPTS: u64 = 1024;
/// The longest stretch with interrupts masked, in register accesses and in instructions: of anything but a handler.
const MASKED_ACCESSES: u64 = 8;
const MASKED_INSTRUCTIONS: u64 = 2000;

/// Prints the tables; whether everything is within its bound.
pub(crate) fn report(root: &Path) -> Result<bool, String> {
    let built = build::image(root, build::Profile::Size)?;
    let code = code(&built.elf)?;
    let within_code = print_code(&code);
    println!();
    let text = measure(&built.image)?;
    text.lines().filter_map(|line| line.strip_prefix("el2: heap ")).for_each(|line| println!("heap {line}"));
    println!();
    let within_costs = print_costs(&costs(&text)?)?;
    Ok(within_code && within_costs)
}

/// Bytes of machine code by floor of the library, and of everything else by crate.
#[derive(Debug, Default)]
struct Code {
    floors: BTreeMap<String, u64>,
    others: BTreeMap<&'static str, u64>,
}

fn code(elf: &Path) -> Result<Code, String> {
    let bytes = std::fs::read(elf).map_err(|error| format!("{}: {error}", elf.display()))?;
    let file = object::File::parse(bytes.as_slice()).map_err(|error| format!("{}: {error}", elf.display()))?;
    let mut code = Code::default();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let name = symbol.name().map_err(|error| format!("{}: {error}", elf.display()))?;
        let name = format!("{:#}", rustc_demangle::demangle(name));
        let size = match crate_of(&name) {
            Crate::Floor(floor) => code.floors.entry(floor.to_owned()).or_default(),
            Crate::Other(other) => code.others.entry(other).or_default(),
        };
        *size = size.saturating_add(symbol.size());
    }
    Ok(code)
}

/// The crate of a function: for a generic one the crate that its path or its arguments name first.
enum Crate<'a> {
    Floor(&'a str),
    Other(&'static str),
}

fn crate_of(name: &str) -> Crate<'_> {
    const LIBRARY: &str = "iommu_assign::";
    const OTHERS: [&str; 3] = ["el2::", "scenario::", "smmu_model::"];
    let library = name.find(LIBRARY);
    let other = OTHERS.iter().filter_map(|other| name.find(other).map(|at| (at, *other))).min();
    match (library, other) {
        (Some(at), other) if other.is_none_or(|(first, _)| at < first) => {
            let rest = name.get(at.saturating_add(LIBRARY.len())..).unwrap_or_default();
            Crate::Floor(rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or_default())
        }
        (_, Some((_, "el2::" | "scenario::"))) => Crate::Other("the image itself"),
        (_, Some(_)) => Crate::Other("the SMMU model"),
        _ => Crate::Other("core, alloc and other crates"),
    }
}

fn print_code(code: &Code) -> bool {
    let floor = |name: &str| code.floors.get(name).copied().unwrap_or(0);
    let main = ["assign", "smmu", "sync", "few"].map(floor).iter().sum::<u64>();
    println!("machine code of the library, bytes");
    for (name, size) in &code.floors {
        println!("  {name:<30} {size:>8}");
    }
    println!("  {:<30} {main:>8}  bound {CODE}{}", "assign, smmu, sync together", mark(main, CODE));
    println!("beside it in the image, bytes");
    for (name, size) in &code.others {
        println!("  {name:<30} {size:>8}");
    }
    main <= CODE
}

/// What the image says of an operation.
#[derive(Debug)]
struct Cost {
    operation: String,
    /// Its numbers, by name.
    numbers: BTreeMap<String, u64>,
}

/// What the image says on a machine whose clock counts instructions.
fn measure(image: &Path) -> Result<String, String> {
    let output = Command::new(EMULATOR)
        .args(["-M", "virt,virtualization=on,gic-version=3", "-cpu", "cortex-a57", "-smp", "1", "-m", "512"])
        .args(["-nodefaults", "-display", "none", "-serial", "stdio", "-icount", "shift=0,sleep=off"])
        .args(["-append", "seconds=0 instructions=1", "-kernel"])
        .arg(image)
        .output()
        .map_err(|error| format!("{EMULATOR}: {error} (Debian: qemu-system-arm)"))?;
    Ok(String::from_utf8_lossy(&output.stdout).replace('\r', ""))
}

fn costs(text: &str) -> Result<Vec<Cost>, String> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("el2: cost "));
    let costs: Vec<_> = lines.filter_map(cost).collect();
    if costs.is_empty() { Err(format!("the image has measured nothing:\n{text}")) } else { Ok(costs) }
}

/// `assign: stack 2128, heap 0, ...`
fn cost(line: &str) -> Option<Cost> {
    let (operation, numbers) = line.split_once(": ")?;
    let number = |part: &str| {
        let (name, value) = part.trim().rsplit_once(' ')?;
        // What gives memory back counts as nothing.
        Some((name.to_owned(), value.parse::<i64>().ok()?.max(0).unsigned_abs()))
    };
    Some(Cost { operation: operation.to_owned(), numbers: numbers.split(',').filter_map(number).collect() })
}

fn print_costs(costs: &[Cost]) -> Result<bool, String> {
    println!("operation                stack  bound    heap  accesses  instructions  masked: accesses  instructions");
    let mut within = true;
    for Cost { operation, numbers } in costs {
        let number = |name: &str| numbers.get(name).copied().ok_or(format!("{operation}: no {name}"));
        let in_interrupts = operation.ends_with("-in-interrupts");
        let bound = if in_interrupts { STACK_IN_INTERRUPTS } else { STACK };
        let (stack, accesses, instructions) =
            (number("stack")?, number("masked accesses")?, number("masked instructions")?);
        println!(
            "{operation:<22} {stack:>7} {bound:>6} {:>7} {:>9} {:>13} {accesses:>17} {instructions:>13}{}",
            number("heap")?,
            number("accesses")?,
            number("instructions")?,
            mark(stack, bound),
        );
        within &= stack <= bound;
        // A handler runs with interrupts masked from its first instruction to its last.
        within &= in_interrupts || (accesses <= MASKED_ACCESSES && instructions <= MASKED_INSTRUCTIONS);
    }
    println!("bounds of a masked stretch: {MASKED_ACCESSES} accesses, {MASKED_INSTRUCTIONS} instructions");
    Ok(within)
}

fn mark(value: u64, bound: u64) -> &'static str {
    if value > bound { "  EXCEEDED" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_floor(name: &str, wanted: &str) -> bool {
        matches!(crate_of(name), Crate::Floor(floor) if floor == wanted)
    }

    #[test]
    fn a_function_is_of_the_crate_that_is_named_first() {
        assert!(is_floor("iommu_assign::dt::blob::walk", "dt"));
        assert!(is_floor("<iommu_assign::assign::service::Service<el2::iommu::platform::Hypervisor>>::add", "assign"));
        assert!(is_floor("core::ptr::drop_in_place::<iommu_assign::smmu::Smmu<el2::A, el2::B>>", "smmu"));
        let hook = "<el2::iommu::masters::Stubborn as iommu_assign::assign::device::DeviceHooks>::reset";
        assert!(matches!(crate_of(hook), Crate::Other("the image itself")));
        assert!(matches!(crate_of("<smmu_model::smmu::Smmu>::write32"), Crate::Other("the SMMU model")));
        assert!(matches!(crate_of("memcpy"), Crate::Other("core, alloc and other crates")));
    }

    #[test]
    fn a_line_of_costs_is_read() {
        let cost = cost("remove: stack 2320, heap -80, accesses 1, masked accesses 1");
        let numbers = cost.map(|cost| (cost.operation, cost.numbers.into_iter().collect::<Vec<_>>()));
        let expected = [("accesses", 1), ("heap", 0), ("masked accesses", 1), ("stack", 2320)];
        let expected = expected.map(|(name, value)| (name.to_owned(), value)).to_vec();
        assert_eq!(numbers, Some(("remove".to_owned(), expected)));
    }
}
