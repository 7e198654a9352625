//! Least covers: the fewest stream-map entries that capture exactly a set of stream IDs.
//!
//! An entry captures all IDs that equal SMR.ID in the bits that SMR.MASK does not ignore: a *cube* of the ID space.
//! Two valid entries must never match one ID (contract I-1), so a set of IDs needs pairwise disjoint cubes, and
//! entries are scarce (2 to 128 in an SMMU), so it should be the least number of them.
//!
//! All here is pure: lists in, lists out, no register and no lock. Any context may call it that may allocate.
//!
//! # How
//!
//! 1. The input is made a list of disjoint cubes (`list.rs`); what the hardware cannot ignore is enumerated.
//! 2. The list is split into components that no cube can join: their least covers add up.
//! 3. Bits on which a component does not depend are set aside: they come back as ignored bits of every cube.
//!    That loses nothing: a least cover restricted to one value of such a bit covers the rest with no more cubes.
//! 4. A component whose neighbours were joined has often as few cubes as a lower bound says. Where it has more, and at
//!    most 128 IDs, it is solved by branch and bound over *all* cubes inside it (not prime cubes only: disjoint covers
//!    can need others). A larger one stays as it is: that is next to least for ranges, and no board has large sets of
//!    another kind.
//! 5. [`check`], which shares nothing with the search, looks at every result before it is returned.
//!
//! | file | what |
//! |---|---|
//! | `cube.rs` | one entry seen as a set of IDs |
//! | `check.rs` | the judge of every cover |
//! | `list.rs` | lists of disjoint cubes, and why one cannot be made |
//! | `search.rs` | fewer cubes for a component |
//! | `least_cover.rs` | all of this, for a set of IDs |
//!
//! # Bounds
//!
//! No function here recurses. Time is bounded by [`CoverOptions::nodes`] and [`CoverOptions::max_cubes`], memory by the
//! latter, and is reserved fallibly. The result depends on the set of input cubes alone, not on their order (contract
//!

mod cube;
mod check;
mod list;
mod search;
mod least_cover;

pub use check::{Flaw, check};
pub use cube::{Cube, Remainder};
pub use least_cover::{Cover, CoverOptions, least_cover};
pub use list::CoverError;
