//! What each node of a tree has of each name: a look-up takes a binary search, whatever the names are.

use alloc::vec::Vec;

use crate::dt::DtError;
use crate::few;

/// Entries by a node of type `K` and a name.
#[derive(Debug)]
pub(super) struct ByName<'a, K>(Vec<(K, &'a str, usize)>);

impl<'a, K: Copy + Ord> ByName<'a, K> {
    pub(super) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(super) fn find(&self, node: K, name: &str) -> Option<usize> {
        let at = self.0.binary_search_by(|entry| (entry.0, entry.1).cmp(&(node, name))).ok()?;
        self.0.get(at).map(|entry| entry.2)
    }

    pub(super) fn insert(&mut self, node: K, name: &'a str, what: usize) -> Result<(), DtError> {
        self.0.try_reserve(1)?;
        let at = self.0.binary_search_by(|entry| (entry.0, entry.1).cmp(&(node, name)));
        few::insert_within(&mut self.0, at.unwrap_or_else(|at| at), (node, name, what));
        Ok(())
    }

    /// Adds an entry; [`sort`](Self::sort) follows when all are there.
    pub(super) fn push(&mut self, node: K, name: &'a str, what: usize) -> Result<(), DtError> {
        few::push(&mut self.0, (node, name, what))?;
        Ok(())
    }

    pub(super) fn sort(&mut self) {
        few::sort(&mut self.0, &|one, other| one < other);
    }
}
