//! Streams as every source states them: plain (IOMMU, ID, mask) values.
//!
//! This floor stores, orders and prints them. What they capture is for the driver to say.

use core::fmt;

/// Names one IOMMU instance for as long as the machine runs: the CPU physical address of its registers.
///
/// The address is unique, known to every source (device tree, PCI `iommu-map`), the same in every run
/// (contract A-9), and what an operator finds in the device tree.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IommuKey(u64);

impl IommuKey {
    /// The instance whose registers start at CPU physical address `base`.
    #[must_use]
    pub const fn new(base: u64) -> Self {
        Self(base)
    }

    /// The CPU physical address of the instance's registers.
    #[must_use]
    pub const fn base(self) -> u64 {
        self.0
    }
}

impl fmt::Display for IommuKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iommu@{:x}", self.0)
    }
}

impl fmt::Debug for IommuKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IommuKey({:#x})", self.0)
    }
}

/// The number that a DMA transaction carries to its IOMMU, as firmware states it: any 32-bit value.
///
/// Whether the hardware can hold it is checked by the driver at add (contract A-6).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(u32);

impl StreamId {
    /// A stream ID as firmware states it.
    #[must_use]
    pub const fn new(id: u32) -> Self {
        Self(id)
    }

    /// The number itself.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamId({:#x})", self.0)
    }
}

/// Bits of a stream ID that are ignored: a 1 means "any value" (SMR.MASK polarity, IHI 0062D SMRn).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamMask(u32);

impl StreamMask {
    /// No bit is ignored: exactly one stream ID.
    pub const NONE: Self = Self(0);

    /// A mask whose 1 bits are ignored in the comparison.
    #[must_use]
    pub const fn new(ignored: u32) -> Self {
        Self(ignored)
    }

    /// The ignored bits.
    #[must_use]
    pub const fn value(self) -> u32 {
        self.0
    }
}

impl fmt::Display for StreamMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for StreamMask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamMask({:#x})", self.0)
    }
}

/// A set of stream IDs at one IOMMU: all IDs that equal `id` in the bits that `mask` does not ignore.
///
/// # Invariants
///
/// Canonical: the bits of `id` under `mask` are zero, so that two equal sets are equal values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stream {
    iommu: IommuKey,
    id: StreamId,
    mask: StreamMask,
}

impl Stream {
    /// The set of IDs that match `id` under `mask` at `iommu`; ID bits under the mask are cleared.
    #[must_use]
    pub const fn new(iommu: IommuKey, id: StreamId, mask: StreamMask) -> Self {
        Self { iommu, id: StreamId(id.0 & !mask.0), mask }
    }

    /// The IOMMU that sees these IDs.
    #[must_use]
    pub const fn iommu(self) -> IommuKey {
        self.iommu
    }

    /// The lowest ID of the set.
    #[must_use]
    pub const fn id(self) -> StreamId {
        self.id
    }

    /// The ignored bits.
    #[must_use]
    pub const fn mask(self) -> StreamMask {
        self.mask
    }

    /// Whether some transaction could belong to both sets: same IOMMU and a common ID.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        self.iommu.0 == other.iommu.0 && (self.id.0 ^ other.id.0) & !(self.mask.0 | other.mask.0) == 0
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.iommu, self.id)?;
        if self.mask == StreamMask::NONE { Ok(()) } else { write!(f, "&~{}", self.mask) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: IommuKey = IommuKey::new(0x1000);

    fn stream(id: u32, mask: u32) -> Stream {
        Stream::new(A, StreamId::new(id), StreamMask::new(mask))
    }

    #[test]
    fn id_bits_under_the_mask_are_cleared() {
        assert_eq!(stream(0xc00, 0x400), stream(0x800, 0x400));
    }

    #[test]
    fn sets_meet_when_they_share_an_id() {
        assert!(stream(0x10, 0xf).overlaps(stream(0x1f, 0)));
        assert!(!stream(0x10, 0xf).overlaps(stream(0x20, 0xf)));
        assert!(stream(0x400, 0x060).overlaps(stream(0x420, 0x003)));
        let elsewhere = Stream::new(IommuKey::new(0x2000), StreamId::new(0x10), StreamMask::NONE);
        assert!(!stream(0x10, 0).overlaps(elsewhere));
    }
}
