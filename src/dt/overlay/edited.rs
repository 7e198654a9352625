//! A tree that nodes and properties are merged into.
//!
//! # Invariants
//!
//! E1. Nothing is taken out; a node stands behind its parent in the list, and no deeper than [`MAX_DEPTH`].
//! E2. Each node and property knows which overlay brought it: 0 is the base tree.
//! E3. Look-ups take a binary search, whatever the names are.

use alloc::string::String;
use alloc::vec::Vec;

use super::by_name::ByName;
use super::overlay_error::{OverlayError, OverlayFault};
use crate::dt::flatten::{Writer, append};
use crate::dt::tree::{NodeId, Tree};
use crate::dt::{DtError, MAX_DEPTH};
use crate::few;

/// Names a node of an [`Edited`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place(usize);

/// A property that is to be set: what it says, and which of which node of the overlay it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// The overlay.
    pub(super) overlay: u64,
    /// The property in the overlay's tree: its node, and its place there.
    pub(super) source: Option<(NodeId, usize)>,
}

impl Origin {
    /// The base tree.
    const BASE: Self = Self { overlay: 0, source: None };
}

/// A tree that is being edited. Borrows names and values of the trees that it is made of.
#[derive(Debug)]
pub(super) struct Edited<'a> {
    nodes: Vec<EditedNode<'a>>,
    properties: Vec<EditedProperty<'a>>,
    children: ByName<'a, Place>,
    properties_by_name: ByName<'a, Place>,
    /// Sorted by phandle.
    phandles: Vec<(u32, Place)>,
}

#[derive(Debug)]
struct EditedNode<'a> {
    name: &'a str,
    parent: Option<Place>,
    first_child: Option<Place>,
    last_child: Option<Place>,
    next: Option<Place>,
    first_property: Option<usize>,
    last_property: Option<usize>,
    phandle: Option<u32>,
    depth: usize,
    overlay: u64,
}

#[derive(Debug)]
struct EditedProperty<'a> {
    name: &'a str,
    value: &'a [u8],
    /// Counts in place of `value`.
    own: Option<Vec<u8>>,
    next: Option<usize>,
    origin: Origin,
}

impl<'a> Edited<'a> {
    /// A copy of `base`.
    pub(super) fn new(base: &Tree<'a>) -> Result<Self, OverlayError> {
        let mut edited = Self {
            nodes: Vec::new(),
            properties: Vec::new(),
            children: ByName::new(),
            properties_by_name: ByName::new(),
            phandles: Vec::new(),
        };
        for node in base.nodes() {
            // The base's nodes stand in the same order here, so that a node's place is its number.
            let parent = node.parent().map(|parent| Place(parent.id().index()));
            let place = edited.push_node(node.name(), parent, 0)?;
            for property in node.properties() {
                let at = edited.push_property(place, property.name(), property.value(), Origin::BASE)?;
                edited.properties_by_name.push(place, property.name(), at)?;
            }
            if let (Some(phandle), Some(found)) = (node.phandle(), node.phandle().and_then(|it| base.by_phandle(it))) {
                edited.set_phandle(place, phandle, found.id() == node.id())?;
            }
            if let Some(parent) = parent {
                edited.children.push(parent, node.name(), place.0)?;
            }
        }
        edited.children.sort();
        edited.properties_by_name.sort();
        Ok(edited)
    }

    /// The root, if there is one.
    pub(super) fn root(&self) -> Option<Place> {
        (!self.nodes.is_empty()).then_some(Place(0))
    }

    /// The child of this name.
    pub(super) fn child(&self, parent: Place, name: &str) -> Option<Place> {
        self.children.find(parent, name).map(Place)
    }

    /// The child of this name or, where there is none, the only one that has this name and a unit address.
    fn child_or_abbreviated(&self, parent: Place, name: &str) -> Result<Option<Place>, Ambiguous> {
        if let Some(child) = self.child(parent, name) {
            return Ok(Some(child));
        }
        let mut found = None;
        let mut at = self.node(parent).and_then(|node| node.first_child);
        while let Some(place) = at {
            let Some(node) = self.node(place) else { break };
            if !name.contains('@') && node.name.split('@').next() == Some(name) {
                if found.is_some() {
                    return Err(Ambiguous);
                }
                found = Some(place);
            }
            at = node.next;
        }
        Ok(found)
    }

    /// The node of this path; a path without a slash in front begins with an alias.
    pub(super) fn find(&self, path: &str) -> Result<Option<Place>, Ambiguous> {
        let Some(root) = self.root() else { return Ok(None) };
        let (from, below) = match path.strip_prefix('/') {
            Some(below) => (root, below),
            None => {
                let (alias, below) = path.split_once('/').unwrap_or((path, ""));
                let aliases = self.child(root, "aliases");
                let target = aliases.and_then(|aliases| self.text(aliases, alias));
                match target.and_then(|target| target.strip_prefix('/')) {
                    Some(target) => match self.below(root, target)? {
                        Some(place) => (place, below),
                        None => return Ok(None),
                    },
                    None => return Ok(None),
                }
            }
        };
        self.below(from, below)
    }

    fn below(&self, from: Place, path: &str) -> Result<Option<Place>, Ambiguous> {
        let mut place = from;
        for name in path.split('/').filter(|name| !name.is_empty()) {
            match self.child_or_abbreviated(place, name)? {
                Some(child) => place = child,
                None => return Ok(None),
            }
        }
        Ok(Some(place))
    }

    /// The node that has this phandle.
    pub(super) fn by_phandle(&self, phandle: u32) -> Option<Place> {
        let at = self.phandles.binary_search_by_key(&phandle, |entry| entry.0).ok()?;
        self.phandles.get(at).map(|entry| entry.1)
    }

    /// The greatest phandle in use; 0 where there is none.
    pub(super) fn greatest_phandle(&self) -> u32 {
        self.phandles.last().map_or(0, |entry| entry.0)
    }

    /// The node's phandle.
    pub(super) fn phandle(&self, place: Place) -> Option<u32> {
        self.node(place)?.phandle
    }

    /// Which overlay brought the node.
    pub(super) fn brought_by(&self, place: Place) -> u64 {
        self.node(place).map_or(0, |node| node.overlay)
    }

    /// A property that is one [plain](plain()) string.
    pub(super) fn text(&self, place: Place, name: &str) -> Option<&str> {
        let property = self.property(place, name)?;
        plain(property.own.as_deref().unwrap_or(property.value))
    }

    /// Which overlay brought a property.
    pub(super) fn property_brought_by(&self, place: Place, name: &str) -> u64 {
        self.property(place, name).map_or(0, |property| property.origin.overlay)
    }

    /// Adds a child behind the others.
    pub(super) fn add(&mut self, parent: Place, name: &'a str, overlay: u64) -> Result<Place, OverlayError> {
        if self.node(parent).is_none_or(|parent| parent.depth >= MAX_DEPTH) {
            let mut path = self.path(parent)?;
            super::join(&mut path, name)?;
            return Err(OverlayError::at(path, OverlayFault::TooDeep));
        }
        let place = self.push_node(name, Some(parent), overlay)?;
        self.children.insert(parent, name, place.0)?;
        Ok(place)
    }

    /// Sets a property, behind the others where there is none of this name.
    pub(super) fn set(
        &mut self,
        place: Place,
        name: &'a str,
        value: &'a [u8],
        own: Option<Vec<u8>>,
        origin: Origin,
    ) -> Result<(), DtError> {
        let at = match self.properties_by_name.find(place, name) {
            Some(at) => at,
            None => {
                let at = self.push_property(place, name, value, origin)?;
                self.properties_by_name.insert(place, name, at)?;
                at
            }
        };
        if let Some(property) = self.properties.get_mut(at) {
            *property = EditedProperty { name, value, own, next: property.next, origin };
        }
        Ok(())
    }

    /// Says which phandle a node has, that had none.
    pub(super) fn set_phandle(&mut self, place: Place, phandle: u32, found: bool) -> Result<(), DtError> {
        if let Some(node) = self.nodes.get_mut(place.0) {
            node.phandle = Some(phandle);
        }
        if let (true, Err(at)) = (found, self.phandles.binary_search_by_key(&phandle, |entry| entry.0)) {
            self.phandles.try_reserve(1)?;
            few::insert_within(&mut self.phandles, at, (phandle, place));
        }
        Ok(())
    }

    /// Writes a cell over four bytes of a property, if `origin` is where it has its value from.
    pub(super) fn patch(
        &mut self,
        place: Place,
        name: &str,
        origin: Origin,
        offset: usize,
        cell: u32,
    ) -> Result<(), DtError> {
        let Some(at) = self.properties_by_name.find(place, name) else { return Ok(()) };
        let Some(property) = self.properties.get_mut(at).filter(|property| property.origin == origin) else {
            return Ok(());
        };
        if property.own.is_none() {
            let mut own = Vec::new();
            append(&mut own, property.value)?;
            property.own = Some(own);
        }
        let bytes = property.own.as_mut().and_then(|own| own.get_mut(offset..)?.first_chunk_mut::<4>());
        if let Some(bytes) = bytes {
            *bytes = cell.to_be_bytes();
        }
        Ok(())
    }

    /// The node's full path.
    pub(super) fn path(&self, place: Place) -> Result<String, DtError> {
        let mut names = [""; MAX_DEPTH];
        let mut count = 0_usize;
        let mut at = self.node(place);
        for slot in &mut names {
            let Some((node, parent)) = at.and_then(|node| Some((node, node.parent?))) else { break };
            *slot = node.name;
            count = count.saturating_add(1);
            at = self.node(parent);
        }
        let mut path = String::new();
        few::append(&mut path, "/")?;
        for name in names.iter().take(count).rev() {
            super::join(&mut path, name)?;
        }
        Ok(path)
    }

    /// The tree as a blob.
    pub(super) fn write(&self, reservations: &[u8], boot_cpu: u32) -> Result<Vec<u8>, DtError> {
        let mut writer = Writer::default();
        let mut at = self.root();
        while let Some(place) = at {
            let Some(node) = self.node(place) else { break };
            writer.begin(node.name)?;
            let mut property = node.first_property.and_then(|at| self.properties.get(at));
            while let Some(found) = property {
                writer.property(found.name, found.own.as_deref().unwrap_or(found.value))?;
                property = found.next.and_then(|at| self.properties.get(at));
            }
            at = node.first_child;
            // Without a child: on beside it, or beside the nearest node above that has one.
            let mut ended = Some(place);
            while let (None, Some(place)) = (at, ended) {
                writer.end()?;
                at = self.node(place).and_then(|node| node.next);
                ended = self.node(place).and_then(|node| node.parent);
            }
        }
        writer.finish(reservations, boot_cpu)
    }

    fn node(&self, place: Place) -> Option<&EditedNode<'a>> {
        self.nodes.get(place.0)
    }

    fn property(&self, place: Place, name: &str) -> Option<&EditedProperty<'a>> {
        self.properties.get(self.properties_by_name.find(place, name)?)
    }

    fn push_node(&mut self, name: &'a str, parent: Option<Place>, overlay: u64) -> Result<Place, DtError> {
        let place = Place(self.nodes.len());
        let depth = parent.and_then(|parent| self.node(parent)).map_or(1, |parent| parent.depth.saturating_add(1));
        few::push(
            &mut self.nodes,
            EditedNode {
                name,
                parent,
                first_child: None,
                last_child: None,
                next: None,
                first_property: None,
                last_property: None,
                phandle: None,
                depth,
                overlay,
            },
        )?;
        let Some(parent) = parent.and_then(|parent| self.nodes.get_mut(parent.0)) else { return Ok(place) };
        let before = parent.last_child.replace(place);
        if parent.first_child.is_none() {
            parent.first_child = Some(place);
        }
        if let Some(before) = before.and_then(|before| self.nodes.get_mut(before.0)) {
            before.next = Some(place);
        }
        Ok(place)
    }

    fn push_property(
        &mut self,
        place: Place,
        name: &'a str,
        value: &'a [u8],
        origin: Origin,
    ) -> Result<usize, DtError> {
        let at = self.properties.len();
        few::push(&mut self.properties, EditedProperty { name, value, own: None, next: None, origin })?;
        let Some(node) = self.nodes.get_mut(place.0) else { return Ok(at) };
        let before = node.last_property.replace(at);
        if node.first_property.is_none() {
            node.first_property = Some(at);
        }
        if let Some(before) = before.and_then(|before| self.properties.get_mut(before)) {
            before.next = Some(at);
        }
        Ok(at)
    }
}

/// Two nodes could be meant.
#[derive(Debug)]
pub(super) struct Ambiguous;

/// A value that is one string, not empty, of printable ASCII without blanks: it may stand in an error.
pub(super) fn plain(value: &[u8]) -> Option<&str> {
    let text = core::str::from_utf8(value).ok()?.strip_suffix('\0')?;
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())).then_some(text)
}
