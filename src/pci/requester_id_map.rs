//! From requester IDs to streams: the `iommu-map` of a host bridge.

use alloc::collections::TryReserveError;
use alloc::vec::Vec;
use core::fmt;
use core::ops::RangeInclusive;

use super::RequesterId;
use super::id_range::{self, IdRange, MapFault};
use crate::assign::{IommuKey, Stream, StreamId, StreamMask};
use crate::few;

/// Who sees the DMA of a range of requester IDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Provider {
    /// An SMMUv1/v2.
    Smmu(IommuKey),
    /// An IOMMU of another kind, which nobody here programs.
    Foreign,
}

/// Requester ID `rid_base + n` is stream ID `stream_base + n` at `iommu`, for n below `length`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MapEntry {
    /// The first requester ID, after the map's mask.
    pub rid_base: u32,
    /// Who sees these IDs.
    pub iommu: Provider,
    /// The first stream ID.
    pub stream_base: u32,
    /// Ignored bits of each stream ID (`stream-match-mask` of the SMMU, or the specifier's own).
    pub stream_mask: StreamMask,
    /// How many IDs. Real maps have entries of 0, which map nothing.
    pub length: u32,
}

impl fmt::Debug for MapEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rid_base, iommu, stream_base, stream_mask, length } = self;
        write!(f, "MapEntry({rid_base:#x} + {length:#x} -> {stream_base:#x} & !{stream_mask} at {iommu:?})")
    }
}

impl MapEntry {
    /// An entry whose stream IDs are compared in all bits.
    #[must_use]
    pub const fn new(rid_base: u32, iommu: Provider, stream_base: u32, length: u32) -> Self {
        Self { rid_base, iommu, stream_base, stream_mask: StreamMask::NONE, length }
    }

    /// The same, with ignored bits in each stream ID.
    #[must_use]
    pub const fn with_stream_mask(mut self, mask: StreamMask) -> Self {
        self.stream_mask = mask;
        self
    }

    const fn range(&self) -> IdRange {
        IdRange { rid_base: self.rid_base, id_base: self.stream_base, length: self.length }
    }
}

/// The map of one host bridge, by the rules of the devicetree binding `pci-iommu`: the requester ID is masked, then the
/// entry that holds it gives the stream.
///
/// # Invariants
///
/// M1. No entry has a requester ID with bits outside the mask in its base, or runs past 32 bits on either side.
/// M2. No two entries hold one requester ID. The binding leaves the order of entries without meaning, and readers that
///     take the first or the last hit would isolate different devices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequesterIdMap {
    /// Ascending by `rid_base`, none of length 0.
    entries: Vec<MapEntry>,
    mask: u32,
    /// What every requester ID may be beside: the second and later streams of a map that all share.
    more: Vec<Stream>,
}

impl RequesterIdMap {
    /// The mask of a map that names none (`iommu-map-mask` absent).
    pub const NO_MASK: u32 = u32::MAX;

    /// A map that keeps the bits `mask` of a requester ID; a mask of 0 sends all to the entry at 0.
    ///
    /// # Errors
    ///
    /// The [`MapFault`] that breaks an invariant, with the index of the entry in the order given.
    pub fn new(entries: impl IntoIterator<Item = MapEntry>, mask: u32) -> Result<Self, MapFault> {
        // Whoever sees the DMA: a requester ID has one stream.
        let entries = id_range::checked(entries, mask, MapEntry::range, |_, _| true)?;
        Ok(Self { entries, mask, more: Vec::new() })
    }

    /// A map that gives every requester ID all of these streams: a host bridge whose node says its streams (`iommus`), and
    /// nothing of requester IDs. Without any, none is mapped.
    ///
    /// # Errors
    ///
    /// [`MapFault::OutOfMemory`].
    pub fn shared(streams: &[Stream]) -> Result<Self, MapFault> {
        let entry = |stream: &Stream| {
            let id = stream.id().value();
            MapEntry::new(0, Provider::Smmu(stream.iommu()), id, 1).with_stream_mask(stream.mask())
        };
        let (first, rest) = streams.split_first().map_or((None, streams), |(first, rest)| (Some(entry(first)), rest));
        let mut map = Self::new(first, 0)?;
        map.more = few::copied(rest).map_err(|_| MapFault::OutOfMemory)?;
        Ok(map)
    }

    /// The same once more.
    pub(crate) fn copied(&self) -> Result<Self, TryReserveError> {
        Ok(Self { entries: few::copied(&self.entries)?, more: few::copied(&self.more)?, mask: self.mask })
    }

    /// The entries that map something, ascending by requester ID.
    #[must_use]
    pub fn entries(&self) -> &[MapEntry] {
        &self.entries
    }

    /// The bits of a requester ID that count.
    #[must_use]
    pub const fn mask(&self) -> u32 {
        self.mask
    }

    /// Streams that every requester ID may be beside the one of its entry: a [shared](Self::shared) map of several.
    #[must_use]
    pub fn more(&self) -> &[Stream] {
        &self.more
    }

    /// The stream ID of a requester ID, and the SMMU that sees it.
    ///
    /// # Errors
    ///
    /// As [`RequesterIdMap::stream`].
    pub fn translate(&self, rid: RequesterId) -> Result<(IommuKey, StreamId), MapError> {
        self.hit(rid).map(|(_, iommu, id)| (iommu, id))
    }

    /// The stream of a requester ID, ignored bits included. Of a [shared](Self::shared) map the first; the others are
    /// [`Self::more`].
    ///
    /// # Errors
    ///
    /// [`MapError::Unmapped`] where no entry holds it: such a function cannot be isolated and must be refused
    /// (contract A-6); [`MapError::Foreign`] where an IOMMU of another kind sees it.
    pub fn stream(&self, rid: RequesterId) -> Result<Stream, MapError> {
        let (entry, iommu, id) = self.hit(rid)?;
        Ok(Stream::new(iommu, id, entry.stream_mask))
    }

    /// The streams of a range of requester IDs, one by one.
    pub fn streams(
        &self,
        rids: RangeInclusive<RequesterId>,
    ) -> impl Iterator<Item = (RequesterId, Result<Stream, MapError>)> {
        (rids.start().0..=rids.end().0).map(RequesterId).map(|rid| (rid, self.stream(rid)))
    }

    fn hit(&self, rid: RequesterId) -> Result<(&MapEntry, IommuKey, StreamId), MapError> {
        let masked = u32::from(rid.0) & self.mask;
        let found = self.entries.iter().find_map(|entry| Some((entry, entry.range().id_of(masked)?)));
        let (entry, id) = found.ok_or(MapError::Unmapped { rid })?;
        match entry.iommu {
            Provider::Smmu(key) => Ok((entry, key, StreamId::new(id))),
            Provider::Foreign => Err(MapError::Foreign { rid }),
        }
    }
}

/// A requester ID that has no stream at an SMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// No entry holds it.
    #[error("requester ID {rid} is in no entry of the host bridge's map")]
    Unmapped {
        /// The requester ID.
        rid: RequesterId,
    },
    /// An IOMMU of another kind sees it.
    #[error("requester ID {rid} belongs to an IOMMU that is no SMMUv1/v2")]
    Foreign {
        /// The requester ID.
        rid: RequesterId,
    },
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use super::*;

    const A: IommuKey = IommuKey::new(0x1500_0000);
    const SMMU: Provider = Provider::Smmu(A);

    fn id(map: &RequesterIdMap, rid: u16) -> Result<u32, MapError> {
        map.translate(RequesterId(rid)).map(|(iommu, id)| {
            assert_eq!(iommu, A);
            id.value()
        })
    }

    fn unmapped(rid: u16) -> Result<u32, MapError> {
        Err(MapError::Unmapped { rid: RequesterId(rid) })
    }

    #[test]
    fn armada_masks_the_requester_id_first() {
        let entries = [(0, 0x480), (0x100, 0x4a0), (0x200, 0x4c0)].map(|(rid, id)| MapEntry::new(rid, SMMU, id, 0x20));
        let map = RequesterIdMap::new(entries, 0x31f).unwrap();
        assert_eq!(id(&map, 0), Ok(0x480));
        assert_eq!(id(&map, 0x011f), Ok(0x4bf));
        assert_eq!(id(&map, 0xfcff), Ok(0x49f), "bits outside the mask do not count");
        assert_eq!(id(&map, 0x0300), unmapped(0x300));
    }

    #[test]
    fn juno_sends_all_to_one_stream() {
        let map = RequesterIdMap::new([MapEntry::new(0, SMMU, 0, 1)], 0).unwrap();
        assert_eq!((id(&map, 0), id(&map, 0xffff)), (Ok(0), Ok(0)));
    }

    #[test]
    fn a_map_need_not_begin_at_zero_and_a_length_of_zero_maps_nothing() {
        let entries = [MapEntry::new(0x100, SMMU, 0x1480, 1), MapEntry::new(0, SMMU, 0, 0)];
        let map = RequesterIdMap::new(entries, RequesterIdMap::NO_MASK).unwrap();
        assert_eq!(map.entries().len(), 1);
        assert_eq!((id(&map, 0), id(&map, 0x100), id(&map, 0x101)), (unmapped(0), Ok(0x1480), unmapped(0x101)));
    }

    #[test]
    fn overdrive_maps_the_whole_space() {
        let map = RequesterIdMap::new([MapEntry::new(0, SMMU, 0, 0x10000)], RequesterIdMap::NO_MASK).unwrap();
        let rids = RequesterId(0xfffe)..=RequesterId(0xffff);
        let ids = map.streams(rids).map(|(_, stream)| stream.unwrap().id().value());
        assert!(ids.eq([0xfffe, 0xffff]));
    }

    #[test]
    fn the_mask_of_the_smmu_is_part_of_each_stream() {
        let entry = MapEntry::new(0, SMMU, 0x17, 0xe).with_stream_mask(StreamMask::new(0x7c00));
        let map = RequesterIdMap::new([entry], RequesterIdMap::NO_MASK).unwrap();
        assert_eq!(map.stream(RequesterId(1)), Ok(Stream::new(A, StreamId::new(0x18), StreamMask::new(0x7c00))));
    }

    #[test]
    fn a_6_another_kind_of_iommu_is_not_passed_through() {
        let entries = [MapEntry::new(0, Provider::Foreign, 0, 8), MapEntry::new(8, SMMU, 0, 8)];
        let map = RequesterIdMap::new(entries, RequesterIdMap::NO_MASK).unwrap();
        assert_eq!(id(&map, 7), Err(MapError::Foreign { rid: RequesterId(7) }));
        assert_eq!(id(&map, 8), Ok(0));
    }

    #[test]
    fn a_6_maps_that_cannot_be_are_refused() {
        let new = |entries: &[MapEntry], mask| RequesterIdMap::new(entries.iter().copied(), mask);
        let outside = MapFault::OutsideMask { index: 1, rid_base: 0x20, mask: 0x31f };
        assert_eq!(new(&[MapEntry::new(0, SMMU, 0, 1), MapEntry::new(0x20, SMMU, 0, 1)], 0x31f), Err(outside));
        for (rid, stream, length) in [(0xffff_fff0, 0, 0x11), (0, 0xffff_fff0, 0x11), (2, 0, u32::MAX)] {
            let result = new(&[MapEntry::new(rid, SMMU, stream, length)], RequesterIdMap::NO_MASK);
            assert_eq!(result, Err(MapFault::Overflow { index: 0 }));
        }
        assert!(new(&[MapEntry::new(0xffff_fff0, SMMU, 0xffff_fff0, 0x10)], RequesterIdMap::NO_MASK).is_ok());
        let overlap = [MapEntry::new(8, SMMU, 0, 8), MapEntry::new(0, SMMU, 0, 9), MapEntry::new(9, SMMU, 0, 0)];
        assert_eq!(new(&overlap, RequesterIdMap::NO_MASK), Err(MapFault::Overlap { first: 0, second: 1 }));
    }
}
