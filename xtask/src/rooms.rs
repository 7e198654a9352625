//! `cargo xtask rooms`: the rules of the house, checked from the source.
//!
//! 1. A file uses only files that stand before it in its folder: the order of the `mod` lines is the order of use. From
//!    a folder inside, it may use what stands before that folder. The floors are ordered by [`FLOORS`].
//! 2. No circle inside a folder; `mod.rs` is one of its files, but for what it only passes on (`pub use`).
//! 3. No file name twice.
//! 4. No file over [`LINES`] lines.
//! 5. A folder's `mod.rs` says what each of its files is for.
//! 6. A register is written in the files that [`WRITERS`] names, and nowhere else.
//!
//! These are rules for the library's code. Unit tests are left out, but for rule 4: what `#[cfg(test)]` keeps, and files
//! named `tests.rs` or `*_tests.rs`.
//!
//! `rustfmt` sorts `mod` lines that follow each other unless `rustfmt.toml` says `reorder_modules = false`.

mod modules;
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use modules::{Modules, Name};
use source::Form;

/// What stands over what; the same number is side by side, and neither uses the other.
const FLOORS: &[(&str, u8)] =
    &[("few", 0), ("by_number", 1), ("sync", 1), ("assign", 2), ("smmu", 3), ("pci", 3), ("dt", 4)];

/// The most lines that a file has.
const LINES: usize = 400;

/// Registers, what they are called in code, and the files that write them. A write is a call of something with `write`
/// in its name, with the register among its arguments.
const WRITERS: &[(&str, &str, &[&str])] = &[
    ("SMR", "gr0::smr(", &["src/smmu/stream/entry.rs"]),
    ("S2CR", "gr0::s2cr(", &["src/smmu/stream/entry.rs"]),
    ("CBAR", "gr1::cbar(", &["src/smmu/bank/context_bank.rs"]),
    ("CBA2R", "gr1::cba2r(", &["src/smmu/bank/context_bank.rs"]),
    ("TTBR0", "cb::TTBR0", &["src/smmu/bank/context_bank.rs"]),
    ("TCR", "cb::TCR", &["src/smmu/bank/context_bank.rs"]),
    // The reset, and a takeover through it, switch off what firmware left on: banks that `bank/` does not know yet.
    ("SCTLR", "cb::SCTLR", &["src/smmu/bank/context_bank.rs", "src/smmu/reset.rs"]),
    ("SCR0", "gr0::SCR0", &["src/smmu/reset.rs"]),
];

/// One rule that does not hold at one place.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Violation {
    rule: u8,
    file: String,
    line: usize,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rule, file, line, what } = self;
        write!(out, "{file}:{line}: rule {rule}: {what}")
    }
}

/// Prints what does not hold, and says whether everything does.
pub(crate) fn check() -> Result<bool, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("the workspace has no folder")?;
    let files = files(root)?;
    let files: Vec<(&str, &str)> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let found = violations(&files, WRITERS);
    found.iter().for_each(|violation| println!("{violation}"));
    let count = |rule: u8| found.iter().filter(|violation| violation.rule == rule).count();
    let counts: Vec<String> = (1..=6).map(|rule| format!("rule {rule}: {}", count(rule))).collect();
    println!("{} files, {} violations ({})", files.len(), found.len(), counts.join(", "));
    Ok(found.is_empty())
}

/// The library's source: each file's path from `root` on, and its text.
pub(crate) fn files(root: &Path) -> Result<Vec<(String, String)>, String> {
    let mut files = Vec::new();
    collect(root, &root.join("src"), &mut files)?;
    Ok(files)
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<(String, String)>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let mut entries = std::fs::read_dir(folder).map_err(failed)?.collect::<Result<Vec<_>, _>>().map_err(failed)?;
    entries.sort_by_key(std::fs::DirEntry::path);
    for path in entries.iter().map(std::fs::DirEntry::path) {
        if path.is_dir() {
            collect(root, &path, files)?;
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).map_err(failed)?;
            let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().replace('\\', "/");
            files.push((name, text));
        }
    }
    Ok(())
}

type Writers<'a> = &'a [(&'a str, &'a str, &'a [&'a str])];

fn violations(files: &[(&str, &str)], writers: Writers<'_>) -> Vec<Violation> {
    let modules = Modules::new(files.iter().filter(|(name, _)| !is_test(name)).copied());
    let mut found = Vec::new();
    let uses = uses(&modules, &mut found);
    order(&modules, &uses, &mut found);
    circles(&modules, &uses, &mut found);
    names(files, &mut found);
    lengths(files, &mut found);
    documented(&modules, files, &mut found);
    written(&modules, writers, &mut found);
    found.sort();
    found.dedup();
    found
}

fn is_test(file: &str) -> bool {
    file.ends_with("/tests.rs") || file.ends_with("_tests.rs") || file.contains("/tests/")
}

/// One file uses another.
struct Use {
    from: Name,
    to: Name,
    line: usize,
    /// A folder's `mod.rs` passes it on, and has no use for it itself.
    passed_on: bool,
}

fn uses(modules: &Modules, found: &mut Vec<Violation>) -> Vec<Use> {
    let mut uses = Vec::new();
    for (from, module) in &modules.0 {
        for path in &module.source.paths {
            let Some(goal) = modules.goal(from, path).filter(|goal| goal.module != *from) else { continue };
            if from.starts_with(&goal.module) && goal.whole {
                // The folder itself: `use super::*`, or a name for it.
                if matches!(path.form, Form::Glob { .. }) {
                    let what = format!("`{}::*` hides what it uses", path.segments.join("::"));
                    found.push(Violation { rule: 1, file: module.file.clone(), line: path.line, what });
                }
                continue;
            }
            let passed_on = matches!(path.form, Form::Use { public: true, .. } | Form::Glob { public: true });
            uses.push(Use { from: from.clone(), to: goal.module, line: path.line, passed_on });
        }
    }
    uses
}

/// The folder that two modules are both in, and their entries there; none for `mod.rs` itself.
fn entries<'a>(one: &'a [String], other: &'a [String]) -> (&'a [String], Option<&'a str>, Option<&'a str>) {
    let common = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    let entry = |name: &'a [String]| name.get(common).map(String::as_str);
    (one.get(..common).unwrap_or_default(), entry(one), entry(other))
}

fn order(modules: &Modules, uses: &[Use], found: &mut Vec<Violation>) {
    for Use { from, to, line, .. } in uses {
        let (folder, Some(user), Some(used)) = entries(from, to) else { continue };
        let Some(file) = modules.0.get(from).map(|module| module.file.clone()) else { continue };
        let mut say = |what: String| found.push(Violation { rule: 1, file: file.clone(), line: *line, what });
        if folder.is_empty() {
            let floor = |name: &str| FLOORS.iter().find(|(one, _)| *one == name).map(|(_, floor)| *floor);
            match (floor(user), floor(used)) {
                (Some(upper), Some(lower)) if lower < upper => (),
                (Some(_), Some(_)) => say(format!("`{user}` is not over `{used}`, which is used here")),
                (None, _) => say(format!("`{user}` is on no floor")),
                (_, None) => say(format!("`{used}` is on no floor")),
            }
            continue;
        }
        let listed = modules.0.get(folder).map_or(&[][..], |module| &module.source.modules);
        let place = |name: &str| listed.iter().position(|(one, _)| one == name);
        if place(used).zip(place(user)).is_some_and(|(used, user)| used > user) {
            say(format!("uses `{}`, and `{used}` is listed after `{user}`", to.join("::")));
        }
    }
}

/// The uses between files of one folder.
type Graph<'a> = BTreeMap<&'a str, BTreeMap<&'a str, &'a Use>>;

fn circles(modules: &Modules, uses: &[Use], found: &mut Vec<Violation>) {
    let mut graphs: BTreeMap<&[String], Graph<'_>> = BTreeMap::new();
    for one in uses {
        let (folder, user, used) = entries(&one.from, &one.to);
        if folder.is_empty() || (user.is_none() && one.passed_on) {
            continue;
        }
        let graph = graphs.entry(folder).or_default();
        graph.entry(user.unwrap_or("mod.rs")).or_default().entry(used.unwrap_or("mod.rs")).or_insert(one);
    }
    for (folder, graph) in graphs {
        let mut seen = BTreeSet::new();
        for start in graph.keys() {
            let members: BTreeSet<&str> =
                reached(&graph, start).into_iter().filter(|one| reached(&graph, one).contains(start)).collect();
            if members.len() < 2 || !seen.insert(members.clone()) {
                continue;
            }
            let way = shortest(&graph, start);
            let Some(first) = way.first() else { continue };
            let file_of = |one: &Use| modules.0.get(&one.from).map(|module| module.file.clone()).unwrap_or_default();
            let steps: Vec<String> = way.iter().map(|one| format!("{}:{}", file_of(one), one.line)).collect();
            let members: Vec<&str> = members.into_iter().collect();
            let what = format!(
                "circle of {} in `{}`: {}; one way round: {}",
                members.len(),
                folder.join("::"),
                members.join(", "),
                steps.join(" -> ")
            );
            found.push(Violation { rule: 2, file: file_of(first), line: first.line, what });
        }
    }
}

/// What is reached from `start` over one use or more.
fn reached<'a>(graph: &Graph<'a>, start: &str) -> BTreeSet<&'a str> {
    let (mut seen, mut next) = (BTreeSet::new(), vec![start]);
    while let Some(at) = next.pop() {
        for to in graph.get(at).into_iter().flat_map(BTreeMap::keys) {
            if seen.insert(*to) {
                next.push(to);
            }
        }
    }
    seen
}

/// The shortest way from `start` back to it.
fn shortest<'a>(graph: &Graph<'a>, start: &str) -> Vec<&'a Use> {
    let (mut ways, mut seen) = (vec![(start, Vec::new())], BTreeSet::new());
    while !ways.is_empty() {
        let mut longer = Vec::new();
        for (at, way) in ways {
            for (to, one) in graph.get(at).into_iter().flatten() {
                let way: Vec<&Use> = way.iter().copied().chain([*one]).collect();
                if *to == start {
                    return way;
                }
                if seen.insert(*to) {
                    longer.push((*to, way));
                }
            }
        }
        ways = longer;
    }
    Vec::new()
}

fn names(files: &[(&str, &str)], found: &mut Vec<Violation>) {
    let mut first: BTreeMap<&str, &str> = BTreeMap::new();
    for (file, _) in files.iter().filter(|(file, _)| !is_test(file)) {
        let name = file.rsplit('/').next().unwrap_or(file);
        if name == "mod.rs" {
            continue;
        }
        if let Some(other) = first.insert(name, file) {
            found.push(Violation {
                rule: 3,
                file: (*file).into(),
                line: 1,
                what: format!("{other} has the same name"),
            });
        }
    }
}

fn lengths(files: &[(&str, &str)], found: &mut Vec<Violation>) {
    for (file, text) in files {
        let lines = text.lines().count();
        if lines > LINES {
            let what = format!("{lines} lines, at most {LINES}");
            found.push(Violation { rule: 4, file: (*file).into(), line: LINES.saturating_add(1), what });
        }
    }
}

fn documented(modules: &Modules, files: &[(&str, &str)], found: &mut Vec<Violation>) {
    for (_, module) in modules.0.iter().filter(|(name, _)| !name.is_empty()) {
        let Some((_, text)) = files.iter().find(|(file, _)| *file == module.file) else { continue };
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        for (name, line) in &module.source.modules {
            if !is_named(&lines, name, *line) {
                let what = format!("no line says what `{name}` is for");
                found.push(Violation { rule: 5, file: module.file.clone(), line: *line, what });
            }
        }
    }
}

/// A comment names it (`` `name` ``, `name.rs`, `name/`), or stands beside or over its `mod` line.
fn is_named(lines: &[&str], name: &str, line: usize) -> bool {
    let spelled = [format!("`{name}`"), format!("`{name}::"), format!("{name}.rs"), format!("{name}/")];
    let is_start = |text: &str, at: usize| {
        !text.get(..at).unwrap_or_default().ends_with(|before: char| before.is_alphanumeric() || before == '_')
    };
    let names = |text: &&str| {
        spelled.iter().any(|spelled| text.match_indices(spelled.as_str()).any(|(at, _)| is_start(text, at)))
    };
    let comment = |text: &&&str| text.starts_with("//");
    let beside = lines.get(line.wrapping_sub(1)).is_some_and(|text| text.contains("//"));
    let over = lines.get(..line.saturating_sub(1)).unwrap_or_default();
    let over = over
        .iter()
        .rev()
        .find(|text| !text.starts_with("#["))
        .is_some_and(|text| text.starts_with("//") && !text.starts_with("//!"));
    beside || over || lines.iter().filter(comment).any(names)
}

fn written(modules: &Modules, writers: Writers<'_>, found: &mut Vec<Violation>) {
    for (register, constant, allowed) in writers {
        for file in *allowed {
            if !modules.0.values().any(|module| module.file == *file) {
                let what = format!("is named as a writer of {register}, and is not there");
                found.push(Violation { rule: 6, file: (*file).into(), line: 1, what });
            }
        }
        for module in modules.0.values().filter(|module| !allowed.contains(&module.file.as_str())) {
            for write in module.source.writes.iter().filter(|write| mentions(&write.arguments, constant)) {
                let what = format!("writes {register}, which is for {}", allowed.join(", "));
                found.push(Violation { rule: 6, file: module.file.clone(), line: write.line, what });
            }
        }
    }
}

/// Whether the code has the constant, and not a longer name that begins or ends like it.
fn mentions(code: &str, constant: &str) -> bool {
    let is_word = |one: char| one.is_alphanumeric() || one == '_';
    code.match_indices(constant).any(|(at, _)| {
        let before = code.get(..at).unwrap_or_default();
        let after = code.get(at.saturating_add(constant.len())..).unwrap_or_default();
        !before.ends_with(is_word) && (constant.ends_with('(') || !after.starts_with(is_word))
    })
}

#[cfg(test)]
mod tests;
