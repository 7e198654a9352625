//! Short names of device-tree nodes: the least tail of the path that no other node shares.

use std::collections::BTreeMap;

use crate::report::{printable, width};

/// The longest name; tables are laid out for it.
pub(crate) const MAX: usize = 30;

/// A name for each of `paths`, in their order: different for different paths, and at most [`MAX`] characters long.
pub(crate) fn short(paths: &[&str]) -> Vec<String> {
    let mut shared: BTreeMap<&str, usize> = BTreeMap::new();
    for tail in paths.iter().flat_map(|path| tails(path)) {
        let count = shared.entry(tail).or_default();
        *count = count.saturating_add(1);
    }
    let is_unique = |tail: &&str| shared.get(tail).is_none_or(|count| *count <= 1);
    let least = |path: &&str| printable(tails(path).find(is_unique).unwrap_or(path).trim_start_matches('/'));
    let mut names: Vec<String> = paths.iter().map(|path| fitted(&least(path))).collect();
    // What had to be cut can have become equal.
    for index in 0..names.len() {
        let (before, rest) = names.split_at_mut(index);
        if let Some(name) = rest.first_mut()
            && before.contains(name)
        {
            *name = format!("{}~{index}", name.chars().take(MAX.saturating_sub(6)).collect::<String>());
        }
    }
    names
}

/// The last component of a path, the last two, and so on.
fn tails(path: &str) -> impl Iterator<Item = &str> {
    path.rmatch_indices('/').filter_map(|(slash, _)| path.get(slash..))
}

/// Keeps the first and the last component of what is too long, or the end of the last one.
fn fitted(name: &str) -> String {
    if width(name) <= MAX {
        return name.to_owned();
    }
    let ends = name.split_once('/').zip(name.rsplit_once('/'));
    let ends = ends.map(|((first, _), (_, last))| format!("{first}/…/{last}"));
    ends.filter(|ends| width(ends) <= MAX).unwrap_or_else(|| {
        let tail: String = name.chars().skip(width(name).saturating_sub(MAX.saturating_sub(1))).collect();
        format!("…{tail}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_short_as_they_can_be() {
        let names = short(&["/soc/gpu@1", "/soc/a/dma@2", "/soc/b/dma@2", "/dma@2"]);
        assert_eq!(names, ["gpu@1", "a/dma@2", "b/dma@2", "dma@2"]);
    }

    #[test]
    fn long_names_keep_both_ends_and_stay_different() {
        let one = "/remoteproc-adsp/glink-edge/fastrpc/compute-cb@3";
        let other = "/remoteproc-cdsp/glink-edge/fastrpc/compute-cb@3";
        assert_eq!(short(&[one, other]), ["remoteproc-adsp/…/compute-cb@3", "remoteproc-cdsp/…/compute-cb@3"]);
        let long = format!("/{}@1", "x".repeat(70));
        let names = short(&[&format!("/a{long}"), &format!("/b{long}")]);
        assert!(names.iter().all(|name| width(name) <= MAX) && names.first() != names.last(), "{names:?}");
    }
}
