//! `cargo xtask no-panic`: no way into the panic machinery begins in the library's own code.
//!
//! All of the library's public functions are linked for bare metal into one image (`linked/`), in one unit, with debug
//! information and relocations. What never returns and comes to the panic handler is the machinery. Every reference to it is
//! a way in, and is laid to the innermost function around it that is not the compiler's: the library's or a dependency's. Where
//! `core` or `alloc` have a way in within a function of theirs, it is laid to whoever calls that function.
//!
//! Each way in that is left stands in `no_panic/reasons.txt` with the reason why it is never gone. The command fails on one that does
//! not, on a line there that is for nothing, and where a public function of `src/` is not in the image.

mod frames;
mod image;
mod names;
mod reasons;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use frames::{Frame, Frames, Origin};
use image::Image;
use names::plain;
use reasons::Reasons;

use crate::bare_metal;

/// What the reasons are.
const REASONS: &str = "xtask/src/no_panic/reasons.txt";
/// Built only for hosts or with features that a hypervisor does not have.
const NOT_LINKED: &[&str] = &["src/pci/fake/", "src/sync/explored.rs", "src/sync/trace.rs"];

/// A way into the machinery.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Way {
    /// The function that it is laid to, and whose that is. The compiler's where nothing else calls it directly.
    from: String,
    origin: Origin,
    /// What that function calls: the machinery, or a function of the compiler's that enters it.
    into: String,
    kind: Kind,
}

/// What the machinery is entered for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// There is no memory.
    Allocation,
    Panic,
}

/// Runs it; whether there is nothing to say.
pub(crate) fn run() -> Result<bool, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the workspace has no folder")?;
    let elf = build(root)?;
    let bytes = std::fs::read(&elf).map_err(|error| format!("{}: {error}", elf.display()))?;
    let file = object::File::parse(bytes.as_slice()).map_err(|error| format!("{}: {error}", elf.display()))?;
    let image = Image::read(&file).map_err(|error| error.to_string())?;
    let frames = Frames::read(&file, root)?;

    let (public, missing) = missing(root, &frames)?;
    missing.iter().for_each(|(file, line)| println!("{file}:{line}: this function is not in the image"));

    let text = std::fs::read_to_string(root.join(REASONS)).map_err(|error| format!("{REASONS}: {error}"))?;
    let mut reasons = Reasons::read(&text)?;
    let ways = ways(&image, &frames)?;
    let mut unexplained = 0_usize;
    for (way, places) in &ways {
        if !reasons.explain(&way.from, &way.into) {
            unexplained = unexplained.saturating_add(1);
            let places: Vec<&str> = places.iter().take(3).map(String::as_str).collect();
            println!("{} | {} |    ({:?}, {})", way.from, way.into, way.origin, places.join(", "));
        }
    }
    let unused: Vec<String> = reasons.unused().collect();
    unused.iter().for_each(|line| println!("{REASONS}: for nothing: {line}"));
    let count = |wanted: &dyn Fn(&Way) -> bool| ways.keys().filter(|way| wanted(way)).count();
    println!(
        "{} public functions and what they need: {} functions, {} bytes of machine code",
        public,
        image.functions.len(),
        image.size()
    );
    println!(
        "{} ways into the panic machinery: {} where an allocation fails, {} through core and alloc, {} through other crates",
        ways.len(),
        count(&|way| way.kind == Kind::Allocation),
        count(&|way| way.kind == Kind::Panic && !matches!(way.origin, Origin::Crate(_))),
        count(&|way| way.kind == Kind::Panic && matches!(way.origin, Origin::Crate(_))),
    );
    println!(
        "{unexplained} without a reason, {} reasons for nothing, {} public functions that are not in the image",
        unused.len(),
        missing.len()
    );
    Ok(unexplained == 0 && unused.is_empty() && missing.is_empty())
}

/// The image: as `linked` is on bare metal, where nothing is merged that would hide which function is which.
fn build(root: &Path) -> Result<std::path::PathBuf, String> {
    let flags = [
        "-Clink-arg=--emit-relocs",
        "-Clink-arg=-Ttext=0x10000",
        "-Cllvm-args=-enable-machine-outliner=never",
        "-Cllvm-args=-enable-tail-merge=0",
        "-Zmerge-functions=disabled",
    ];
    let mut cargo = bare_metal::cargo(root, "no-panic", &flags)?;
    cargo.args(["--package", "linked", "--profile", "measured"]).env("RUSTC_BOOTSTRAP", "1");
    cargo.envs([("CARGO_PROFILE_MEASURED_DEBUG", "2"), ("CARGO_PROFILE_MEASURED_OPT_LEVEL", "s")]);
    bare_metal::run(cargo, "the image of all functions")?;
    Ok(bare_metal::output("no-panic", "measured").join("linked"))
}

/// Every way in, with places of it.
fn ways(image: &Image, frames: &Frames<'_>) -> Result<BTreeMap<Way, BTreeSet<String>>, String> {
    let machinery = image.machinery();
    let callers = image.callers();
    let mut ways: BTreeMap<Way, BTreeSet<String>> = BTreeMap::new();
    for (start, function) in &image.functions {
        for (at, to) in function.references.iter().filter(|(_, to)| machinery.contains(to)) {
            let chain = frames.at(*at)?;
            let kind = if is_allocation(&chain, image.name(*to)) { Kind::Allocation } else { Kind::Panic };
            let mut found = |way: Option<(&Frame, String)>| {
                let Some((owner, into)) = way else { return false };
                let way = Way { from: plain(&owner.name), origin: owner.origin.clone(), into, kind };
                ways.entry(way).or_default().insert(owner.place.clone())
            };
            if owner(&chain).is_some() {
                found(way(&chain, image.name(*to)));
            } else if !machinery.contains(start) {
                // The compiler's: who calls it?
                let mut seen = BTreeSet::from([*start]);
                let mut open = vec![*start];
                let mut is_called = false;
                while let Some(function) = open.pop() {
                    for (from, at) in callers.get(&function).into_iter().flatten() {
                        let chain = frames.at(*at)?;
                        if owner(&chain).is_some() {
                            is_called = true;
                            found(way(&chain, image.name(function)));
                        } else if seen.insert(*from) {
                            open.push(*from);
                        }
                    }
                }
                if !is_called {
                    let place = chain.first().map_or(String::new(), |frame| frame.place.clone());
                    let frame = Frame { name: function.name.clone(), origin: Origin::Standard, place };
                    found(Some((&frame, plain(image.name(*to)))));
                }
            }
        }
    }
    Ok(ways)
}

/// Whose the code is: of the functions around an instruction, the innermost that is not the compiler's.
fn owner(chain: &[Frame]) -> Option<&Frame> {
    chain.iter().find(|frame| frame.origin != Origin::Standard)
}

/// That function, and what it calls: a function of the compiler's that was inlined into it, else `called`.
fn way<'c>(chain: &'c [Frame], called: &str) -> Option<(&'c Frame, String)> {
    let at = chain.iter().position(|frame| frame.origin != Origin::Standard)?;
    let inlined = at.checked_sub(1).and_then(|before| chain.get(before));
    Some((chain.get(at)?, plain(inlined.map_or(called, |frame| &frame.name))))
}

/// Whether it is the end of an allocation that failed.
fn is_allocation(chain: &[Frame], name: &str) -> bool {
    let ends = ["handle_alloc_error", "raw_vec::handle_error"];
    chain.iter().map(|frame| frame.name.as_str()).chain([name]).any(|name| ends.iter().any(|end| name.ends_with(end)))
}

/// How many public functions the library has, and which are not in the image.
fn missing(root: &Path, frames: &Frames<'_>) -> Result<(usize, Vec<(String, u64)>), String> {
    let declared = frames.declared()?;
    let (mut count, mut missing) = (0_usize, Vec::new());
    for (file, text) in crate::rooms::files(root)? {
        if NOT_LINKED.iter().any(|path| file.starts_with(path)) {
            continue;
        }
        let code = text.lines().take_while(|line| !line.starts_with("#[cfg(test)]")).zip(1..);
        let public = code.filter(|(line, _)| names::is_public_function(line)).map(|(_, number)| (file.clone(), number));
        for place in public {
            count = count.saturating_add(1);
            if !declared.contains(&place) {
                missing.push(place);
            }
        }
    }
    Ok((count, missing))
}
