//! Short lists: up to eight stand in place, more in memory that is reserved in a way that can fail.
//!
//! Eight are the functions of one PCI device, and more devices than most groups have: for these an operation allocates
//! nothing (contract A-8).

use smallvec::SmallVec;

/// For how many elements room is made before their number is known.
pub(crate) const USUAL: usize = 8;

/// A list that allocates from its ninth element on.
pub(crate) type Few<T> = SmallVec<[T; USUAL]>;

/// An empty list with room for `count`; `None` where there is no memory.
pub(crate) fn with_room<T>(count: usize) -> Option<Few<T>> {
    let mut list = Few::new();
    list.try_reserve_exact(count).ok()?;
    Some(list)
}
