//! The nodes of a device tree with their parents, in the order of the blob.
//!
//! # Invariants
//!
//! T1. Nodes stand in document order: a parent before its children, a node's descendants right behind it.
//! T2. A path names one node, a property name one property of its node, a phandle one node: of those nodes that were
//!     not refused (`soundness.rs`).
//! T3. Nothing below a root child named `__like_this__` (`__symbols__`, `__local_fixups__`) is a device: such a
//!     subtree repeats names and values of real nodes. Its nodes are disabled and have no phandle.
//! T4. Nothing depends on where the blob lies in memory: a [`NodeId`] counts nodes, and is the same in every run
//!     (contract A-9).

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::iter;
use core::ops::Range;

use super::blob::{Event, Walk};
use super::{DtError, MAX_DEPTH, NodeFault};
use crate::few;

/// A device tree that was read from a blob, whose names and values it borrows.
#[derive(Clone)]
pub struct Tree<'a> {
    nodes: Vec<NodeData<'a>>,
    properties: Vec<Property<'a>>,
    /// Sorted by phandle.
    phandles: Vec<(u32, NodeId)>,
}

impl<'a> Tree<'a> {
    /// The root node.
    #[must_use]
    pub fn root(&self) -> Option<Node<'_, 'a>> {
        self.node(NodeId(0))
    }

    /// The node that `id` names, if it is one of this tree.
    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<Node<'_, 'a>> {
        self.nodes.get(id.0).map(|data| Node { tree: self, id, data })
    }

    /// All nodes, in the order of the blob.
    pub fn nodes(&self) -> impl Iterator<Item = Node<'_, 'a>> {
        self.nodes.iter().enumerate().map(|(index, data)| Node { tree: self, id: NodeId(index), data })
    }

    /// The node with this phandle.
    #[must_use]
    pub fn by_phandle(&self, phandle: u32) -> Option<Node<'_, 'a>> {
        let index = self.phandles.binary_search_by_key(&phandle, |entry| entry.0).ok()?;
        self.node(self.phandles.get(index)?.1)
    }

    /// The node with this full path, such as `/soc/iommu@5000000`; names are compared with their unit addresses.
    #[must_use]
    pub fn find(&self, path: &str) -> Option<Node<'_, 'a>> {
        let mut node = self.root()?;
        let below = path.strip_prefix('/')?;
        if !below.is_empty() {
            for name in below.split('/') {
                node = node.children().find(|child| child.name() == name)?;
            }
        }
        Some(node)
    }

    /// The first fragment of an overlay, if this is one.
    pub(super) fn overlay_fragment(&self) -> Option<Node<'_, 'a>> {
        let is_fragment = |node: &Node<'_, 'a>| node.children().any(|child| child.name() == "__overlay__");
        self.root()?.children().find(is_fragment)
    }

    /// The node at this place in the order of the blob, the root being 0.
    pub(super) fn nth(&self, index: usize) -> Option<Node<'_, 'a>> {
        self.node(NodeId(index))
    }

    /// How many nodes there are.
    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// How many properties all nodes have together.
    pub(super) fn property_count(&self) -> usize {
        self.properties.len()
    }

    /// The nodes and properties that `walk` meets, whatever they say. What is left is for `soundness.rs`.
    pub(super) fn collect(mut walk: Walk<'a>) -> Result<Self, DtError> {
        let mut tree = Self { nodes: Vec::new(), properties: Vec::new(), phandles: Vec::new() };
        let mut open: Option<NodeId> = None;
        while let Some(event) = walk.step()? {
            match event {
                Event::Begin { name } => {
                    let id = NodeId(tree.nodes.len());
                    let parent = open.and_then(|id| tree.nodes.get(id.0));
                    let data = NodeData {
                        name,
                        parent: open,
                        end: id.0,
                        properties: tree.properties.len()..tree.properties.len(),
                        phandle: None,
                        enabled: false,
                        refused: Refused::No,
                        metadata: parent.is_some_and(|parent| {
                            parent.metadata || parent.parent.is_none() && name.starts_with("__") && name.ends_with("__")
                        }),
                        path_hash: match parent {
                            Some(parent) => fnv1a(fnv1a(parent.path_hash, b"/"), name.as_bytes()),
                            None => FNV_OFFSET_BASIS,
                        },
                    };
                    few::push(&mut tree.nodes, data)?;
                    open = Some(id);
                }
                Event::Property { name, value } => {
                    few::push(&mut tree.properties, Property { name, value })?;
                    if let Some(node) = open.and_then(|id| tree.nodes.get_mut(id.0)) {
                        node.properties.end = tree.properties.len();
                    }
                }
                Event::End => {
                    let end = tree.nodes.len();
                    if let Some(node) = open.and_then(|id| tree.nodes.get_mut(id.0)) {
                        node.end = end;
                        open = node.parent;
                    }
                }
            }
        }
        Ok(tree)
    }

    /// Marks a node as refused.
    pub(super) fn refuse(&mut self, id: NodeId, how: Refused) {
        if let Some(node) = self.nodes.get_mut(id.0) {
            node.refused = how;
        }
    }

    /// Parents come first (T1), so one pass carries `status` down to all descendants.
    pub(super) fn mark_enabled(&mut self) {
        for index in 0..self.nodes.len() {
            let Some(node) = self.node(NodeId(index)) else { continue };
            let above = node.parent().is_none_or(|parent| parent.is_enabled());
            // Anything but the two words means no: boards say "disable", "reserved", "fail-sss".
            let own = node.property("status").is_none_or(|status| matches!(status.value, b"okay\0" | b"ok\0"));
            let enabled = above && own && !node.data.metadata;
            if let Some(node) = self.nodes.get_mut(index) {
                node.enabled = enabled;
            }
        }
    }

    /// Says which nodes have phandles, ascending by phandle. Where several have one, a reference to it finds the first.
    pub(super) fn set_phandles(&mut self, mut phandles: Vec<(u32, NodeId)>) {
        for (phandle, id) in &phandles {
            if let Some(node) = self.nodes.get_mut(id.0) {
                node.phandle = Some(*phandle);
            }
        }
        phandles.dedup_by_key(|(phandle, _)| *phandle);
        self.phandles = phandles;
    }

    /// The full path of the node that `id` names; of no node, the empty string.
    pub(super) fn path_of(&self, id: NodeId) -> Result<String, DtError> {
        self.node(id).map_or(Ok(String::new()), |node| node.path())
    }

    pub(super) fn error_at(&self, id: NodeId, cause: NodeFault) -> DtError {
        match self.path_of(id) {
            Ok(path) => DtError::Node { path, cause },
            Err(error) => error,
        }
    }
}

impl fmt::Debug for Tree<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree")
            .field("nodes", &self.nodes.len())
            .field("properties", &self.properties.len())
            .field("phandles", &self.phandles.len())
            .finish()
    }
}

/// Names a node of one tree: its place in the order of the blob, the root being 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(usize);

impl NodeId {
    /// The node's place in the order of the blob.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0
    }
}

/// What of a node was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Nothing.
    No,
    /// What it says of its DMA. What refers to it can be followed.
    Master,
    /// All of it, and it was told.
    Whole,
    /// All of it, for what is above. It was not told of, since most nodes are nobody's matter here.
    Above,
}

/// A node of a tree.
#[derive(Clone, Copy)]
pub struct Node<'t, 'a> {
    tree: &'t Tree<'a>,
    id: NodeId,
    data: &'t NodeData<'a>,
}

impl<'t, 'a> Node<'t, 'a> {
    /// What names this node in its tree.
    #[must_use]
    pub const fn id(&self) -> NodeId {
        self.id
    }

    /// The node's name with its unit address; the root's is empty.
    #[must_use]
    pub const fn name(&self) -> &'a str {
        self.data.name
    }

    /// The full path, `/` for the root.
    ///
    /// # Errors
    ///
    /// [`DtError::OutOfMemory`].
    pub fn path(&self) -> Result<String, DtError> {
        let mut names = [""; MAX_DEPTH];
        let mut count = 0_usize;
        let mut length = 1_usize;
        let line = iter::successors(Some(*self), Self::parent).filter(|node| node.data.parent.is_some());
        for (slot, node) in names.iter_mut().zip(line) {
            *slot = node.data.name;
            count = count.saturating_add(1);
            length = length.saturating_add(slot.len()).saturating_add(1);
        }
        let mut path = String::new();
        path.try_reserve_exact(length)?;
        for name in names.iter().take(count).rev() {
            few::append(&mut path, "/")?;
            few::append(&mut path, name)?;
        }
        if count == 0 {
            few::append(&mut path, "/")?;
        }
        Ok(path)
    }

    /// A key for the node that is the same in every run and for every build of the board's firmware that keeps the
    /// node's name: the 64-bit FNV-1a hash of its full path. Two paths can have the same key.
    #[must_use]
    pub fn key(&self) -> u64 {
        if self.data.parent.is_none() { fnv1a(FNV_OFFSET_BASIS, b"/") } else { self.data.path_hash }
    }

    /// The parent; `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.tree.node(self.data.parent?)
    }

    /// The parent, its parent, and so on up to the root.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> + use<'t, 'a> {
        iter::successors(self.parent(), Self::parent)
    }

    /// The children, in the order of the blob.
    pub fn children(&self) -> impl Iterator<Item = Self> + use<'t, 'a> {
        let tree = self.tree;
        let end = self.data.end;
        let child = move |index: usize| if index < end { tree.node(NodeId(index)) } else { None };
        let first = self.id.0.checked_add(1).and_then(child);
        iter::successors(first, move |previous| child(previous.data.end))
    }

    /// The properties, in the order of the blob.
    pub fn properties(&self) -> impl Iterator<Item = Property<'a>> + use<'t, 'a> {
        self.tree.properties.get(self.data.properties.clone()).unwrap_or_default().iter().copied()
    }

    /// The property of this name.
    #[must_use]
    pub fn property(&self, name: &str) -> Option<Property<'a>> {
        self.properties().find(|property| property.name == name)
    }

    /// The most specific of its compatibles, if it has any.
    #[must_use]
    pub fn compatible(&self) -> Option<&'a str> {
        let value = self.property("compatible")?.value();
        let first = value.split(|byte| *byte == 0).next().unwrap_or_default();
        core::str::from_utf8(first).ok().filter(|name| !name.is_empty())
    }

    /// The node's phandle, by either of its property names.
    #[must_use]
    pub const fn phandle(&self) -> Option<u32> {
        self.data.phandle
    }

    /// Whether the node and each of its ancestors has no `status`, or one of `okay` and `ok`.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        self.data.enabled
    }

    /// Whether the node repeats real ones for tools (`__symbols__` and its like) and describes no device.
    #[must_use]
    pub const fn is_metadata(&self) -> bool {
        self.data.metadata
    }

    /// Whether the node can be relied on.
    pub(super) const fn refused(&self) -> Refused {
        self.data.refused
    }

    /// The tree that the node stands in.
    pub(super) const fn tree(&self) -> &'t Tree<'a> {
        self.tree
    }

    /// The error that names this node.
    pub(super) fn error(&self, cause: NodeFault) -> DtError {
        self.tree.error_at(self.id, cause)
    }
}

impl fmt::Debug for Node<'_, '_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("id", &self.id.0).field("name", &self.data.name).finish()
    }
}

/// A property: a name and bytes, which mean what the binding says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Property<'a> {
    name: &'a str,
    value: &'a [u8],
}

impl<'a> Property<'a> {
    /// The property's name.
    #[must_use]
    pub const fn name(&self) -> &'a str {
        self.name
    }

    /// The property's bytes, unaligned.
    #[must_use]
    pub const fn value(&self) -> &'a [u8] {
        self.value
    }
}

#[derive(Clone, Debug)]
struct NodeData<'a> {
    name: &'a str,
    parent: Option<NodeId>,
    /// Index behind the last descendant.
    end: usize,
    properties: Range<usize>,
    phandle: Option<u32>,
    enabled: bool,
    metadata: bool,
    refused: Refused,
    /// FNV-1a of the path; of the empty string for the root, so that children go on from it.
    path_hash: u64,
}

/// FNV-1a, 64 bits, going on from `hash`.
fn fnv1a(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME))
}

const FNV_OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
