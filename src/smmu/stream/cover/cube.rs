//! One stream-map entry seen as a set of IDs.

use core::fmt;

use crate::assign::{IommuKey, Stream, StreamId, StreamMask};

/// All 32-bit IDs that equal `id` in the bits that `mask` does not ignore (a 1 in `mask` means ignored, as in
/// SMR.MASK, IHI 0062D SMRn).
///
/// # Invariants
///
/// Canonical: the bits of `id` under `mask` are zero, so equal sets are equal values, and `id` is the lowest member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cube {
    id: u32,
    mask: u32,
}

impl Cube {
    /// The IDs that match `id` under `mask`; ID bits under the mask are cleared.
    #[must_use]
    pub const fn new(id: u32, mask: u32) -> Self {
        Self { id: id & !mask, mask }
    }

    /// The cube of one ID.
    #[must_use]
    pub const fn point(id: u32) -> Self {
        Self { id, mask: 0 }
    }

    /// The lowest ID.
    #[must_use]
    pub const fn id(self) -> u32 {
        self.id
    }

    /// The ignored bits.
    #[must_use]
    pub const fn mask(self) -> u32 {
        self.mask
    }

    /// The highest ID.
    #[must_use]
    pub const fn last(self) -> u32 {
        self.id | self.mask
    }

    /// How many IDs it holds: 1 to 2^32.
    #[must_use]
    pub const fn size(self) -> u64 {
        1u64.wrapping_shl(self.mask.count_ones())
    }

    /// Whether `id` is in it.
    #[must_use]
    pub const fn holds(self, id: u32) -> bool {
        (id ^ self.id) & !self.mask == 0
    }

    /// Ascending order, by ID and mask.
    pub(in crate::smmu) const fn is_before(&self, other: &Self) -> bool {
        self.id < other.id || (self.id == other.id && self.mask < other.mask)
    }

    /// The bits in which every ID of the one differs from every ID of the other.
    const fn apart(self, other: Self) -> u32 {
        (self.id ^ other.id) & !(self.mask | other.mask)
    }

    /// Whether some ID is in both.
    #[must_use]
    pub const fn meets(self, other: Self) -> bool {
        self.apart(other) == 0
    }

    /// Whether every ID of `other` is in it.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        other.mask & !self.mask == 0 && self.holds(other.id)
    }

    /// The IDs in both: a cube again, or nothing.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Option<Self> {
        if self.meets(other) { Some(Self::new(self.id | other.id, self.mask & other.mask)) } else { None }
    }

    /// The smallest cube that holds both.
    #[must_use]
    pub const fn span(self, other: Self) -> Self {
        Self::new(self.id, self.mask | other.mask | (self.id ^ other.id))
    }

    /// Whether the nearest IDs of the two differ in exactly one bit, one of `bits`.
    pub(super) const fn touches(self, other: Self, bits: u32) -> bool {
        self.apart(other).is_power_of_two() && self.apart(other) & bits != 0
    }

    /// The cube that ignores `bits` too.
    #[must_use]
    pub const fn widened(self, bits: u32) -> Self {
        Self::new(self.id, self.mask | bits)
    }

    /// What is left of it without `other`: disjoint cubes, at most 32, together exactly the rest.
    ///
    /// Nothing is left when `other` contains it; all of it is left when they do not meet.
    #[must_use]
    pub const fn minus(self, other: Self) -> Remainder {
        Remainder { rest: Some(self), other }
    }

    /// Its parts that ignore none of `bits`, ascending.
    pub(super) fn parts(self, bits: u32) -> impl Iterator<Item = Self> {
        let cut = self.mask & bits;
        // The next subset of `cut`, as a number.
        let next = move |value: &u32| Some(value.wrapping_sub(cut) & cut).filter(|value| *value != 0);
        let values = core::iter::successors(Some(0_u32), next);
        values.map(move |value| Self { id: self.id | value, mask: self.mask & !cut })
    }

    /// This set of IDs at one IOMMU.
    #[must_use]
    pub const fn at(self, iommu: IommuKey) -> Stream {
        Stream::new(iommu, StreamId::new(self.id), StreamMask::new(self.mask))
    }
}

/// The IDs of a stream, without its IOMMU.
impl From<Stream> for Cube {
    fn from(stream: Stream) -> Self {
        Self::new(stream.id().value(), stream.mask().value())
    }
}

impl fmt::Display for Cube {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.id)?;
        if self.mask == 0 { Ok(()) } else { write!(f, "&~{:#x}", self.mask) }
    }
}

/// The disjoint cubes of [`Cube::minus`].
#[derive(Clone, Debug)]
pub struct Remainder {
    rest: Option<Cube>,
    other: Cube,
}

impl Iterator for Remainder {
    type Item = Cube;

    fn next(&mut self) -> Option<Cube> {
        let rest = self.rest.take()?;
        if !rest.meets(self.other) {
            return Some(rest);
        }
        // The highest bit first: what is split off is then as aligned, and as mergeable, as can be.
        let bit = 1_u32.wrapping_shl((rest.mask & !self.other.mask).checked_ilog2()?);
        let half = |id| Cube { id: rest.id | id & bit, mask: rest.mask & !bit };
        self.rest = Some(half(self.other.id));
        Some(half(!self.other.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::vec::Vec;

    #[test]
    fn a_cube_is_canonical() {
        assert_eq!(Cube::new(0x4a0, 0x20), Cube::new(0x480, 0x20));
        assert_eq!(Cube::new(0xffff_ffff, 0xffff_ffff).size(), 1 << 32);
        assert_eq!(Cube::point(7).size(), 1);
    }

    #[test]
    fn meeting_and_containing() {
        let wide = Cube::new(0x1000, 0x460);
        assert!(wide.contains(Cube::new(0x1040, 0x420)));
        assert!(!Cube::new(0x1040, 0x420).contains(wide));
        assert_eq!(wide.intersection(Cube::new(0x1000, 0x403)), Some(Cube::new(0x1000, 0x400)));
        assert_eq!(Cube::new(0, 3).intersection(Cube::new(4, 3)), None);
        assert_eq!(Cube::new(0, 3).span(Cube::new(4, 3)), Cube::new(0, 7));
        assert!(Cube::new(0, 3).touches(Cube::new(4, 3), 4) && !Cube::new(0, 3).touches(Cube::new(4, 3), 3));
    }

    #[test]
    fn minus_is_disjoint_and_exact_over_four_bits() {
        let cubes: Vec<Cube> = (0..16)
            .flat_map(|mask| (0..16).filter(move |id| id & mask == 0).map(move |id| Cube::new(id, mask)))
            .collect();
        for &a in &cubes {
            for &b in &cubes {
                let pieces: Vec<Cube> = a.minus(b).collect();
                for id in 0..16 {
                    let times = pieces.iter().filter(|piece| piece.holds(id)).count();
                    assert_eq!(times, usize::from(a.holds(id) && !b.holds(id)), "{a} minus {b} at {id}");
                }
            }
        }
    }

    #[test]
    fn parts_are_all_that_ignore_none_of_the_bits() {
        let parts: Vec<Cube> = Cube::new(0x40, 0x25).parts(0x0f).collect();
        assert_eq!(parts, [0x40, 0x41, 0x44, 0x45].map(|id| Cube::new(id, 0x20)));
        assert_eq!(Cube::new(0, u32::MAX).parts(0x8000_0001).count(), 4);
    }

    #[test]
    fn minus_in_the_whole_id_space_is_thirty_two_pieces() {
        let all = Cube::new(0, u32::MAX);
        assert_eq!(all.minus(Cube::point(0xdead_beef)).count(), 32);
        assert_eq!(all.minus(Cube::point(1)).map(Cube::size).sum::<u64>(), (1 << 32) - 1);
        assert_eq!(Cube::point(3).minus(all).count(), 0);
    }

    #[test]
    fn a_stream_becomes_its_ids_and_back() {
        let stream = Cube::new(0x800, 0x400).at(IommuKey::new(0x1000));
        assert_eq!(Cube::from(stream), Cube::new(0xc00, 0x400));
    }
}
