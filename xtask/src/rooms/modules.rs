//! The tree of modules: where a path leads, over re-exports.

use std::collections::BTreeMap;

use super::source::{Form, Path, Source, read};

/// A module's path from the crate's root, which is empty.
pub(super) type Name = Vec<String>;

pub(super) struct Module {
    /// From the root of the repository: `src/assign/add.rs`.
    pub(super) file: String,
    pub(super) source: Source,
}

pub(super) struct Modules(pub(super) BTreeMap<Name, Module>);

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Goal {
    /// The file's module.
    pub(super) module: Name,
    /// Whether it is the module that is named, and nothing in it.
    pub(super) whole: bool,
}

/// A re-export of a re-export, and so on: no more than this.
const HOPS: usize = 8;

impl Modules {
    /// Of files given by name and text.
    pub(super) fn new<'a>(files: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let module = |(file, text): (&str, &str)| (name_of(file), Module { file: file.into(), source: read(text) });
        Self(files.into_iter().map(module).collect())
    }

    /// What `path`, which stands in `from`, leads to; `None` for what is outside the crate.
    pub(super) fn goal(&self, from: &Name, path: &Path) -> Option<Goal> {
        self.resolve(from, path, HOPS)
    }

    fn resolve(&self, from: &Name, path: &Path, hops: usize) -> Option<Goal> {
        let hops = hops.checked_sub(1)?;
        let (first, rest) = path.segments.split_first()?;
        if first == "crate" {
            return self.walk(Vec::new(), rest, hops);
        }
        let mut here = from.clone();
        here.extend(path.inside.iter().cloned());
        if first == "super" || first == "self" {
            return self.walk(here, &path.segments, hops);
        }
        let child = here.iter().chain([first]).cloned().collect();
        if self.0.contains_key(&child) {
            return self.walk(child, rest, hops);
        }
        // A name that this file has by a `use`. That line is looked at; what is new here is only what is reached through
        // a module: `cover::Cube` after `use super::cover`.
        let bound = self.bound(from, first).filter(|bound| *bound != path)?;
        let goal = self.resolve(from, bound, hops)?;
        if !goal.whole {
            return (path.form != Form::Inline).then_some(goal);
        }
        let further = self.walk(goal.module.clone(), rest, hops)?;
        (path.form != Form::Inline || further.module != goal.module).then_some(further)
    }

    fn bound(&self, module: &Name, name: &str) -> Option<&Path> {
        let paths = &self.0.get(module)?.source.paths;
        paths.iter().find(|path| matches!(&path.form, Form::Use { name: one, .. } if one == name))
    }

    fn walk(&self, mut at: Name, segments: &[String], hops: usize) -> Option<Goal> {
        let mut segments = segments.iter();
        while let Some(segment) = segments.next() {
            match segment.as_str() {
                "super" => {
                    at.pop();
                    continue;
                }
                "self" => continue,
                _ => (),
            }
            let child = at.iter().chain([segment]).cloned().collect();
            if self.0.contains_key(&child) {
                at = child;
                continue;
            }
            let rest = segments.as_slice();
            return self.item(at, segment, rest, hops);
        }
        let whole = self.0.contains_key(&at);
        Some(Goal { module: self.file_of(at), whole })
    }

    /// Something in a module. Only a folder's own file passes on what others have.
    fn item(&self, at: Name, name: &str, rest: &[String], hops: usize) -> Option<Goal> {
        let Some(module) = self.0.get(&at) else {
            return Some(Goal { module: self.file_of(at), whole: false });
        };
        let source = &module.source;
        if source.items.contains(name) || (source.modules.is_empty() && !at.is_empty()) {
            return Some(Goal { module: at, whole: false });
        }
        if let Some(bound) = self.bound(&at, name) {
            let goal = self.resolve(&at, bound, hops)?;
            return if goal.whole { self.walk(goal.module, rest, hops) } else { Some(goal) };
        }
        for glob in source.paths.iter().filter(|path| matches!(path.form, Form::Glob { .. })) {
            let Some(goal) = self.resolve(&at, glob, hops) else { continue };
            let has = self.0.get(&goal.module).is_some_and(|module| module.source.items.contains(name));
            if goal.whole && has && goal.module != at {
                return Some(Goal { module: goal.module, whole: false });
            }
        }
        Some(Goal { module: at, whole: false })
    }

    /// The nearest module that is a file: an inline one stands in its file.
    fn file_of(&self, mut at: Name) -> Name {
        while !at.is_empty() && !self.0.contains_key(&at) {
            at.pop();
        }
        at
    }
}

/// `src/assign/mod.rs` is `assign`, `src/smmu/cover.rs` is `smmu::cover`, `src/lib.rs` the root.
fn name_of(file: &str) -> Name {
    let inner = file.strip_prefix("src/").unwrap_or(file);
    let inner = inner.strip_suffix(".rs").unwrap_or(inner);
    let mut name: Name = inner.split('/').map(str::to_owned).collect();
    if name.last().is_some_and(|last| last == "mod") || name == ["lib"] {
        name.pop();
    }
    name
}
