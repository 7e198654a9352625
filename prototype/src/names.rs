//! Names of device-tree nodes: what a report calls a node everywhere, and what a person can type to mean it.
//!
//! A name is the least tail of the node's path that no other path of the board ends with. A long one keeps its first
//! and its last component with `//` between them, which stands for whatever is there. No name is cut.

use std::collections::BTreeMap;

use iommu_assign::dt::Board;

use crate::report::{printable, width};

/// Above this, what is in the middle of a name is left out where it need not be said.
const LONG: usize = 30;

/// The names of a board's nodes.
#[derive(Debug, Default)]
pub(crate) struct Names(BTreeMap<String, String>);

impl Names {
    /// Those of all nodes that a report can speak of: one name for each in every report about the board. An SMMU is called
    /// as the library's errors and events call it.
    pub(crate) fn of(board: &Board<'_>) -> Self {
        let devices = board.devices().iter().map(|device| device.path.clone());
        let bridges = board.host_bridges().iter().map(|bridge| bridge.path.clone());
        let reserved = board.reserved_regions().iter().map(|region| region.path.clone());
        let others = board.tree().nodes().filter(|node| !node.is_metadata()).filter_map(|node| node.path().ok());
        let mut paths: Vec<String> = devices.chain(bridges).chain(reserved).chain(others).collect();
        paths.sort_unstable();
        paths.dedup();
        let borrowed: Vec<&str> = paths.iter().map(String::as_str).collect();
        let names = short(&borrowed);
        let mut names: BTreeMap<String, String> = paths.into_iter().zip(names).collect();
        for smmu in board.smmus() {
            names.insert(smmu.path.clone(), smmu.key.to_string());
        }
        Self(names)
    }

    /// Names that were given before, as (name, path).
    pub(crate) fn given(names: impl IntoIterator<Item = (String, String)>) -> Self {
        Self(names.into_iter().map(|(name, path)| (path, name)).collect())
    }

    /// The name of the node at `path`.
    pub(crate) fn name(&self, path: &str) -> String {
        self.0.get(path).cloned().unwrap_or_else(|| printable(path))
    }

    /// A sentence of the library, with names for the paths in it.
    pub(crate) fn in_text(&self, text: &str) -> String {
        let named = |word: &str| {
            let path = word.trim_end_matches([',', ':', ';', '.', ')']);
            let (name, rest) = (self.0.get(path)?, word.get(path.len()..)?);
            Some(format!("{name}{rest}"))
        };
        text.split(' ').map(|word| named(word).unwrap_or_else(|| word.to_owned())).collect::<Vec<_>>().join(" ")
    }

    /// The paths that `typed` means: the path itself, the node of that name, or each node that it could be the name of.
    pub(crate) fn paths<'n>(&'n self, typed: &str) -> Vec<&'n str> {
        let exact = self.0.iter().find(|(path, name)| *path == typed || *name == typed);
        match exact {
            Some((path, _)) => vec![path.as_str()],
            None => self.0.keys().map(String::as_str).filter(|path| means(typed, path)).collect(),
        }
    }
}

/// A name for each of `paths`, in their order: a different one for each, and one that means no other of them.
pub(crate) fn short(paths: &[&str]) -> Vec<String> {
    let mut shared: BTreeMap<&str, usize> = BTreeMap::new();
    for tail in paths.iter().flat_map(|path| tails(path)) {
        let count = shared.entry(tail).or_default();
        *count = count.saturating_add(1);
    }
    let is_unique = |tail: &&str| shared.get(tail).is_none_or(|count| *count <= 1);
    let least = |path: &str| match tails(path).find(is_unique).unwrap_or(path).trim_start_matches('/') {
        "" => "/".to_owned(),
        tail => tail.to_owned(),
    };
    let means_one = |name: &str| paths.iter().filter(|path| means(name, path)).count() == 1;
    let name = |path: &&str| {
        let name = least(path);
        let ends = name.split_once('/').zip(name.rsplit_once('/')).filter(|_| width(&name) > LONG);
        let ends = ends.map(|((first, _), (_, last))| format!("{first}//{last}"));
        printable(&ends.filter(|ends| width(ends) < width(&name) && means_one(ends)).unwrap_or(name))
    };
    paths.iter().map(name).collect()
}

/// Whether `name` can mean the node at `path`: the components before `//` stand somewhere above those behind it.
fn means(name: &str, path: &str) -> bool {
    let Some((above, tail)) = name.split_once("//") else {
        return path.strip_suffix(name).is_some_and(|before| before.ends_with('/') || before.is_empty());
    };
    let Some(before) = path.strip_suffix(tail).and_then(|before| before.strip_suffix('/')) else { return false };
    let between = format!("{before}/");
    between.contains(&format!("/{above}/"))
}

/// The last component of a path, the last two, and so on.
fn tails(path: &str) -> impl Iterator<Item = &str> {
    path.rmatch_indices('/').filter_map(|(slash, _)| path.get(slash..))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_short_as_they_can_be() {
        let names = short(&["/soc/gpu@1", "/soc/a/dma@2", "/soc/b/dma@2", "/dma@2"]);
        assert_eq!(names, ["gpu@1", "a/dma@2", "b/dma@2", "dma@2"]);
    }

    /// As on a board with three processors of that kind, where the ends of the names were equal.
    #[test]
    fn long_names_keep_both_ends_and_each_means_one_node() {
        let paths = ["adsp", "cdsp", "slpi"].map(|part| format!("/remoteproc-{part}/glink-edge/fastrpc/compute-cb@3"));
        let paths = paths.each_ref().map(String::as_str);
        let names = short(&paths);
        assert_eq!(names.first().map(String::as_str), Some("remoteproc-adsp//compute-cb@3"));
        for (name, path) in names.iter().zip(paths) {
            assert_eq!(paths.iter().filter(|path| means(name, path)).collect::<Vec<_>>(), [&path]);
        }
        // The middle cannot be left out where it is what makes the difference.
        let paths = ["/remoteproc-adsp/glink-edge-0/fastrpc/cb@3", "/remoteproc-adsp/glink-edge-1/fastrpc/cb@3"];
        assert_eq!(short(&paths), ["glink-edge-0/fastrpc/cb@3", "glink-edge-1/fastrpc/cb@3"]);
        let paths = [
            "/remoteproc-adsp/one/glink-edge/fastrpc/compute-cb@3",
            "/remoteproc-adsp/two/glink-edge/fastrpc/compute-cb@3",
            "/two/one/glink-edge/fastrpc/compute-cb@3",
        ];
        let names = short(&paths);
        for name in &names {
            assert_eq!(paths.iter().filter(|path| means(name, path)).count(), 1, "{names:?}");
        }
    }

    #[test]
    fn no_name_is_cut() {
        let long = format!("/{}@1", "x".repeat(70));
        let names = short(&[&format!("/a{long}"), &format!("/b{long}")]);
        assert_eq!(names, [format!("a{long}"), format!("b{long}")]);
    }
}
