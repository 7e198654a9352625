//! Ranges of requester IDs that become ranges of other IDs: what `iommu-map` and `msi-map` have in common.

use alloc::vec::Vec;

use crate::few;

/// Requester ID `rid_base + n`, after the map's mask, becomes `id_base + n`, for n below `length`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IdRange {
    pub(crate) rid_base: u32,
    pub(crate) id_base: u32,
    pub(crate) length: u32,
}

impl IdRange {
    /// What a masked requester ID becomes, where the range holds it and its ends are in 32 bits.
    pub(crate) fn id_of(self, masked: u32) -> Option<u32> {
        let place = masked.checked_sub(self.rid_base).filter(|place| *place < self.length)?;
        self.id_base.checked_add(place)
    }

    fn holds(self, masked: u32) -> bool {
        masked.checked_sub(self.rid_base).is_some_and(|place| place < self.length)
    }
}

/// The entries that map something, ascending by first requester ID, if they make a map: no base has bits outside the
/// mask, no range runs past 32 bits on either side, and no two `rivals` hold one requester ID.
///
/// # Errors
///
/// What is wrong, with the place of the entry in the order given.
pub(crate) fn checked<E: Copy>(
    entries: impl IntoIterator<Item = E>,
    mask: u32,
    range: impl Fn(&E) -> IdRange,
    rivals: impl Fn(&E, &E) -> bool,
) -> Result<Vec<E>, MapFault> {
    let mut kept: Vec<(usize, E)> = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let IdRange { rid_base, id_base, length } = range(&entry);
        if rid_base & !mask != 0 {
            return Err(MapFault::OutsideMask { index, rid_base, mask });
        }
        let Some(last) = length.checked_sub(1) else { continue };
        if rid_base.checked_add(last).is_none() || id_base.checked_add(last).is_none() {
            return Err(MapFault::Overflow { index });
        }
        few::push(&mut kept, (index, entry)).map_err(|_| MapFault::OutOfMemory)?;
    }
    few::sort(&mut kept, &|one, other| (range(&one.1).rid_base, one.0) < (range(&other.1).rid_base, other.0));
    for (place, (first, one)) in kept.iter().enumerate() {
        // Ascending: who begins behind the end of `one` is the first of those that cannot meet it.
        let behind = kept.iter().skip(place.saturating_add(1));
        let near = behind.take_while(|(_, two)| range(one).holds(range(two).rid_base));
        for (second, two) in near {
            if rivals(one, two) {
                return Err(MapFault::Overlap { first: *first.min(second), second: *first.max(second) });
            }
        }
    }
    let mut checked = Vec::new();
    few::extend(&mut checked, kept.into_iter().map(|(_, entry)| entry)).map_err(|_| MapFault::OutOfMemory)?;
    Ok(checked)
}

/// A map that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapFault {
    /// An entry's first requester ID has bits that the mask removes, so that it could never be hit as written.
    #[error("entry {index} begins at requester ID {rid_base:#x}, outside the mask {mask:#x}")]
    OutsideMask {
        /// Which entry.
        index: usize,
        /// Its first requester ID.
        rid_base: u32,
        /// The map's mask.
        mask: u32,
    },
    /// An entry runs past 32 bits.
    #[error("entry {index} runs past 32 bits")]
    Overflow {
        /// Which entry.
        index: usize,
    },
    /// Two entries hold one requester ID.
    #[error("entries {first} and {second} overlap")]
    Overlap {
        /// One entry.
        first: usize,
        /// The other.
        second: usize,
    },
    /// No memory for the map.
    #[error("out of memory for a requester ID map")]
    OutOfMemory,
}
