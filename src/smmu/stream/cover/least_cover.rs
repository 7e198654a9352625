//! The least cover of a set of stream IDs.

use alloc::vec::Vec;

use super::check::{Flaw, check};
use super::cube::Cube;
use super::list::{CoverError, disjoint, independent_bits, merge, take_component, with_room};
use super::search;
use crate::few;

/// What the hardware can hold, and how long to search.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoverOptions {
    /// The stream ID bits that the SMMU compares (1 = implemented): 0x7fff, or 0xffff with extended IDs, or fewer
    /// where SMR.ID does not keep them all.
    pub id_bits: u32,
    /// The bits that the SMMU can ignore (1 = SMR.MASK keeps it).
    pub mask_bits: u32,
    /// How many search nodes may be visited in one call. One costs about 5 microseconds at most, mostly far less; with
    /// many cubes to choose from it counts as several.
    pub nodes: u32,
    /// How many cubes the set may be given as, and may fall into, before [`CoverError::TooComplex`].
    pub max_cubes: usize,
}

impl CoverOptions {
    /// Enough for every board known, and 10 milliseconds at worst.
    pub const DEFAULT_NODES: u32 = 2_000;
    /// Eight times as many as an SMMU has entries.
    pub const DEFAULT_MAX_CUBES: usize = 1024;

    /// Options for hardware that compares `id_bits` and can ignore `mask_bits`, with the default bounds.
    #[must_use]
    pub const fn new(id_bits: u32, mask_bits: u32) -> Self {
        Self { id_bits, mask_bits, nodes: Self::DEFAULT_NODES, max_cubes: Self::DEFAULT_MAX_CUBES }
    }
}

/// Pairwise disjoint cubes, in ascending order of their IDs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cover {
    /// One stream-map entry each.
    pub cubes: Vec<Cube>,
    /// Whether no smaller cover exists. False: the search gave up, and a smaller one may exist.
    pub exact: bool,
}

/// The fewest disjoint cubes whose union is exactly the union of `ids`, which may overlap.
///
/// An empty input has an empty cover.
///
/// # Errors
///
/// [`CoverError::TooWide`] for input that the hardware cannot tell apart; [`CoverError::TooComplex`] past
/// `options.max_cubes`; [`CoverError::OutOfMemory`].
pub fn least_cover(ids: &[Cube], options: &CoverOptions) -> Result<Cover, CoverError> {
    let CoverOptions { id_bits, mask_bits, mut nodes, max_cubes } = *options;
    if let Some(&cube) = ids.iter().find(|cube| cube.last() & !id_bits != 0) {
        return Err(CoverError::TooWide { cube, id_bits });
    }
    if stand_alone(ids, mask_bits) {
        let mut cubes = with_room(ids.len())?;
        few::extend_within(&mut cubes, ids.iter().copied());
        few::sort(&mut cubes, &Cube::is_before);
        return Ok(Cover { cubes, exact: true });
    }
    let mut rest = disjoint(ids, mask_bits, max_cubes)?;
    merge(&mut rest, mask_bits);
    // No step makes a list longer than it was, so that there is room in both for good.
    let (mut cubes, mut component) = (with_room(rest.len())?, with_room(rest.len())?);
    let mut exact = true;
    while let Some(seed) = rest.pop() {
        take_component(seed, &mut rest, &mut component, mask_bits);
        let free = independent_bits(&component, mask_bits);
        component.retain(|cube| cube.id() & free == 0);
        component.iter_mut().for_each(|cube| *cube = Cube::new(cube.id(), cube.mask() & !free));
        merge(&mut component, mask_bits);
        exact &= search::improve(&mut component, mask_bits, &mut nodes)?;
        few::extend_within(&mut cubes, component.drain(..).map(|cube| cube.widened(free)));
    }
    few::sort(&mut cubes, &Cube::is_before);
    match check(ids, &cubes) {
        Ok(()) => Ok(Cover { cubes, exact }),
        Err(Flaw::Unchecked { limit }) => Err(CoverError::TooComplex { limit }),
        Err(flaw) => Err(CoverError::Unsound(flaw)),
    }
}

/// As many cubes as are compared with each other: an SMMU has no more entries.
const COMPARED: usize = 128;

/// Whether no cube captures more than one of `ids` and nothing else: they ignore the same bits, and no two differ in nothing but
/// one bit that could be ignored. A larger cube would hold two such neighbours, for it can be walked from ID to ID by one bit at
/// a time. So they are their own least cover; a device with a few streams, as most are, needs no search.
fn stand_alone(ids: &[Cube], mask_bits: u32) -> bool {
    let mask = ids.first().map_or(0, |cube| cube.mask());
    let mut rest = ids;
    ids.len() <= COMPARED
        && mask & !mask_bits == 0
        && core::iter::from_fn(|| rest.split_first().inspect(|(_, after)| rest = after)).all(|(one, after)| {
            // Without a way out in the middle the loop is vectorised.
            let near = after.iter().fold(false, |near, other| {
                let apart = one.id() ^ other.id();
                near | ((apart & apart.wrapping_sub(1) == 0) & (apart & !mask_bits == 0))
            });
            one.mask() == mask && !near
        })
}
