//! Least covers: the fewest stream-map entries that capture exactly a set of stream IDs.
//!
//! An entry captures all IDs that equal SMR.ID in the bits that SMR.MASK does not ignore: a *cube* of the ID space.
//! Two valid entries must never match one ID (contract I-1), so a set of IDs needs pairwise disjoint cubes, and
//! entries are scarce (2 to 128 in an SMMU), so it should be the least number of them.
//!
//! All here is pure: sets in, sets out, no register and no lock. Any context may call it that may allocate.
//!
//! # How
//!
//! 1. The input is made a list of disjoint cubes ([`IdSet`]); what the hardware cannot ignore is enumerated.
//! 2. The list is split into components that no cube can join: their least covers add up.
//! 3. Bits on which a component does not depend are set aside: they come back as ignored bits of every cube.
//!    That loses nothing: a least cover restricted to one value of such a bit covers the rest with no more cubes.
//! 4. A component of at most [`MAX_POINTS`] IDs is solved by branch and bound over *all* cubes inside it (not prime
//!    cubes only: disjoint covers can need others). Larger ones get a heuristic, which is still known to be least
//!    where it meets a lower bound.
//! 5. [`check`], which shares nothing with the search, looks at every result before it is returned.
//!
//! # Bounds
//!
//! No function here recurses. Time is bounded by [`CoverOptions::nodes`], memory by [`CoverOptions::max_cubes`]
//! and is reserved fallibly. The result depends on the set of input cubes alone, not on their order (contract A-9).
//!
//! # Memory
//!
//! Everything lies in two arenas, which a caller inside the crate brings, so that a search whose arenas have room takes
//! nothing from the system: one for lists that live until the cover is there, one that is emptied for each component.
//! What is public makes arenas of its own.

mod check;
mod cube;
mod heuristic;
mod id_set;
mod loose;
#[cfg(test)]
mod memory;
mod search;
mod set;

use bumpalo::Bump;
use bumpalo::collections::Vec;

pub use check::{Flaw, check};
pub use cube::Cube;
pub use id_set::IdSet;
pub use loose::loose_cover;
pub(super) use loose::loose_in;
pub use search::MAX_POINTS;
pub(super) use set::Set;

/// What the hardware can hold, and how long to search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoverOptions {
    /// The stream ID bits that the SMMU compares (1 = implemented): 0x7fff, or 0xffff with extended IDs, or fewer
    /// where SMR.ID does not keep them all.
    pub id_bits: u32,
    /// The bits that the SMMU can ignore (1 = SMR.MASK keeps it).
    pub mask_bits: u32,
    /// How many search nodes may be visited in one call. One costs about 20 microseconds at most, mostly far less.
    pub nodes: u32,
    /// How many cubes a set may fall into before [`CoverError::TooComplex`].
    pub max_cubes: usize,
}

impl CoverOptions {
    /// Enough for every board known by a factor of a hundred, and half a second at worst.
    pub const DEFAULT_NODES: u32 = 20_000;
    /// As many cubes as any SMMU has entries (IDR2.EXNUMSMRG is 11 bits wide).
    pub const DEFAULT_MAX_CUBES: usize = 2048;

    /// Options for hardware that compares `id_bits` and can ignore `mask_bits`, with the default bounds.
    #[must_use]
    pub const fn new(id_bits: u32, mask_bits: u32) -> Self {
        Self { id_bits, mask_bits, nodes: Self::DEFAULT_NODES, max_cubes: Self::DEFAULT_MAX_CUBES }
    }

    /// The same with another bound on search nodes. With 0 only heuristics run.
    #[must_use]
    pub const fn with_nodes(mut self, nodes: u32) -> Self {
        self.nodes = nodes;
        self
    }

    /// The same with another bound on cubes.
    #[must_use]
    pub const fn with_max_cubes(mut self, max_cubes: usize) -> Self {
        self.max_cubes = max_cubes;
        self
    }
}

/// Pairwise disjoint cubes, in ascending order of their IDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover {
    /// One stream-map entry each.
    pub cubes: alloc::vec::Vec<Cube>,
    /// Whether no smaller cover exists. False: the search gave up, and a smaller one may exist.
    pub exact: bool,
}

/// Why a set has no cover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CoverError {
    /// A stream ID has bits that the hardware does not compare: it would be truncated and alias another (contract A-6).
    #[error("stream ID {cube} is wider than the hardware's ID bits {id_bits:#x}")]
    IdTooWide {
        /// The input.
        cube: Cube,
        /// What the hardware compares.
        id_bits: u32,
    },
    /// A mask has bits that the hardware does not compare (contract A-6).
    #[error("the mask of stream {cube} is wider than the hardware's ID bits {id_bits:#x}")]
    MaskTooWide {
        /// The input.
        cube: Cube,
        /// What the hardware compares.
        id_bits: u32,
    },
    /// A range runs past the 32-bit ID space.
    #[error("{length} stream IDs from {first:#x} run past the ID space")]
    RangeOverflow {
        /// The first ID.
        first: u32,
        /// The number of IDs.
        length: u64,
    },
    /// The set falls into more disjoint cubes than allowed, often because mask bits must be enumerated that the
    /// hardware cannot ignore.
    #[error("the set of stream IDs falls into more than {limit} pieces")]
    TooComplex {
        /// The limit that was met.
        limit: usize,
    },
    /// No memory for the work.
    #[error("out of memory while planning stream-map entries")]
    OutOfMemory,
    /// The result failed its check and was withheld: a defect of this library.
    #[error("a planned cover was wrong and is withheld: {0}")]
    Unsound(Flaw),
}

/// The fewest disjoint cubes whose union is exactly the union of `ids`, which may overlap.
///
/// An empty input has an empty cover.
///
/// # Errors
///
/// [`CoverError::IdTooWide`], [`CoverError::MaskTooWide`] for input that the hardware cannot tell apart;
/// [`CoverError::TooComplex`] past `options.max_cubes`; [`CoverError::OutOfMemory`].
pub fn least_cover(ids: &[Cube], options: &CoverOptions) -> Result<Cover, CoverError> {
    let (arena, mut scratch) = (Bump::new(), Bump::new());
    let (cubes, exact) = least_in(&arena, &mut scratch, ids, options)?;
    Ok(Cover { cubes: owned(&cubes)?, exact })
}

/// [`least_cover`] in arenas: the list of its cubes, and whether no smaller cover exists. `scratch` is emptied.
pub(super) fn least_in<'a>(
    arena: &'a Bump,
    scratch: &mut Bump,
    ids: &[Cube],
    options: &CoverOptions,
) -> Result<(Vec<'a, Cube>, bool), CoverError> {
    let set = admitted(arena, ids, options)?;
    let mut nodes = options.nodes;
    let (cubes, exact) = cover_set(arena, scratch, &set, options, &mut nodes)?;
    Ok((verified(ids, &[], cubes)?, exact))
}

/// The set of `ids` as disjoint cubes that the hardware can hold, merged as far as neighbours go.
fn admitted<'a>(arena: &'a Bump, ids: &[Cube], options: &CoverOptions) -> Result<Set<'a>, CoverError> {
    let id_bits = options.id_bits;
    if let Some(&cube) = ids.iter().find(|cube| cube.id() & !id_bits != 0) {
        return Err(CoverError::IdTooWide { cube, id_bits });
    }
    if let Some(&cube) = ids.iter().find(|cube| cube.mask() & !id_bits != 0) {
        return Err(CoverError::MaskTooWide { cube, id_bits });
    }
    let mut sorted = copied(arena, ids)?;
    sorted.sort_unstable();
    let mut set = Set::with_limit(arena, options.max_cubes);
    for &cube in &sorted {
        set.insert(cube)?;
    }
    set.enumerate_bits(!options.mask_bits)?;
    set.merge(options.mask_bits);
    Ok(set)
}

/// A cover of all components of `set`.
fn cover_set<'a>(
    arena: &'a Bump,
    scratch: &mut Bump,
    set: &Set<'_>,
    options: &CoverOptions,
    nodes: &mut u32,
) -> Result<(Vec<'a, Cube>, bool), CoverError> {
    let mut rest = copied(arena, set.cubes())?;
    let mut cubes = Vec::new_in(arena);
    let mut exact = true;
    while let Some(seed) = rest.pop() {
        scratch.reset();
        let component = component(scratch, seed, &mut rest, set.limit(), options.mask_bits)?;
        let free = component.independent_bits(options.mask_bits);
        let (part, least) = cover_component(scratch, &component, free, options, nodes)?;
        exact &= least;
        try_extend(&mut cubes, part.len(), part.iter().map(|cube| cube.widened(free)))?;
    }
    Ok((cubes, exact))
}

/// A cover of a set that falls into no parts, without the bits `free`, on which it does not depend.
fn cover_component<'a>(
    scratch: &'a Bump,
    set: &Set<'_>,
    free: u32,
    options: &CoverOptions,
    nodes: &mut u32,
) -> Result<(Vec<'a, Cube>, bool), CoverError> {
    let mut core = set.restricted_to_zero(scratch, free)?;
    core.merge(options.mask_bits);
    if core.cubes().len() <= 1 {
        Ok((core.into_cubes(), true))
    } else if core.size() <= MAX_POINTS as u64 {
        search::least(scratch, &core, options.mask_bits, nodes)
    } else {
        heuristic::cover(scratch, &core, options.mask_bits, nodes)
    }
}

/// The part of a set that no cube inside it can join with the others, taken out of `rest`: what is connected with `seed` by
/// steps of one bit that can be ignored.
fn component<'a>(
    scratch: &'a Bump,
    seed: Cube,
    rest: &mut Vec<'_, Cube>,
    limit: usize,
    mask_bits: u32,
) -> Result<Set<'a>, CoverError> {
    let mut part = Vec::new_in(scratch);
    try_push(&mut part, seed)?;
    let mut grown = 0usize;
    while let Some(&from) = part.get(grown) {
        let mut at = 0usize;
        while let Some(&cube) = rest.get(at) {
            if from.touches(cube, mask_bits) {
                rest.swap_remove(at);
                try_push(&mut part, cube)?;
            } else {
                at = at.wrapping_add(1);
            }
        }
        grown = grown.wrapping_add(1);
    }
    part.sort_unstable();
    Ok(Set::from_disjoint(part, limit))
}

/// The last step of every planner: nothing leaves that [`check`] does not confirm.
fn verified<'a>(ids: &[Cube], unused: &[Cube], mut cubes: Vec<'a, Cube>) -> Result<Vec<'a, Cube>, CoverError> {
    cubes.sort_unstable();
    match check(ids, unused, &cubes) {
        Ok(()) => Ok(cubes),
        Err(Flaw::Unchecked { limit }) => Err(CoverError::TooComplex { limit }),
        Err(flaw) => Err(CoverError::Unsound(flaw)),
    }
}

fn try_push<T>(list: &mut Vec<'_, T>, item: T) -> Result<(), CoverError> {
    list.try_reserve(1).map_err(|_| CoverError::OutOfMemory)?;
    list.push(item);
    Ok(())
}

/// Adds at most `count` items.
fn try_extend<T>(list: &mut Vec<'_, T>, count: usize, items: impl Iterator<Item = T>) -> Result<(), CoverError> {
    list.try_reserve(count).map_err(|_| CoverError::OutOfMemory)?;
    list.extend(items.take(count));
    Ok(())
}

/// An empty list with room for `count`.
fn with_room<T>(arena: &Bump, count: usize) -> Result<Vec<'_, T>, CoverError> {
    let mut list = Vec::new_in(arena);
    list.try_reserve_exact(count).map_err(|_| CoverError::OutOfMemory)?;
    Ok(list)
}

fn copied<'a>(arena: &'a Bump, cubes: &[Cube]) -> Result<Vec<'a, Cube>, CoverError> {
    let mut copy = with_room(arena, cubes.len())?;
    copy.extend_from_slice_copy(cubes);
    Ok(copy)
}

/// A list that outlives the arena.
fn owned(cubes: &[Cube]) -> Result<alloc::vec::Vec<Cube>, CoverError> {
    let mut copy = alloc::vec::Vec::new();
    copy.try_reserve_exact(cubes.len()).map_err(|_| CoverError::OutOfMemory)?;
    copy.extend_from_slice(cubes);
    Ok(copy)
}
