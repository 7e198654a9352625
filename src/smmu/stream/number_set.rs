//! Sets of stream-map entries, and of context banks.

use core::ops::{BitAnd, BitOr, BitOrAssign, Not};

/// A set of numbers below 128.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::smmu) struct Set(u128);

impl Set {
    pub(in crate::smmu) const EMPTY: Self = Self(0);

    /// The set with one member.
    pub(in crate::smmu) const fn one(number: u8) -> Self {
        Self(1_u128.wrapping_shl(number as u32))
    }

    /// The numbers below `count`.
    pub(in crate::smmu) const fn below(count: u8) -> Self {
        if count >= 128 { Self(u128::MAX) } else { Self(1_u128.wrapping_shl(count as u32).wrapping_sub(1)) }
    }

    pub(in crate::smmu) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(in crate::smmu) const fn has(self, number: u8) -> bool {
        number < 128 && self.0 & Self::one(number).0 != 0
    }

    pub(in crate::smmu) const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    pub(in crate::smmu) const fn lowest(self) -> Option<u8> {
        let [lowest, ..] = self.0.trailing_zeros().to_le_bytes();
        if self.0 == 0 { None } else { Some(lowest) }
    }

    /// Puts a number in, or takes it out.
    pub(in crate::smmu) const fn put(&mut self, number: u8, member: bool) {
        if member { self.0 |= Self::one(number).0 } else { self.0 &= !Self::one(number).0 }
    }

    /// The members that `wanted` accepts.
    pub(in crate::smmu) fn filter(self, mut wanted: impl FnMut(u8) -> bool) -> Self {
        self.each().filter(|number| wanted(*number)).fold(Self::EMPTY, |all, number| all | Self::one(number))
    }

    /// The members, lowest first.
    pub(in crate::smmu) fn each(self) -> impl Iterator<Item = u8> + Clone {
        let mut left = self;
        core::iter::from_fn(move || {
            let lowest = left.lowest()?;
            left.0 &= left.0.wrapping_sub(1);
            Some(lowest)
        })
    }
}

impl BitOr for Set {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Set {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for Set {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl Not for Set {
    type Output = Self;

    fn not(self) -> Self {
        Self(!self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_lowest_first() {
        let set = Set::one(3) | Set::one(127) | Set::one(0);
        assert!(set.each().eq([0, 3, 127]));
        assert_eq!((set.len(), Set::below(128).len(), Set::below(5).len()), (3, 128, 5));
        assert!(set.has(127) && !set.has(128) && !(set & !Set::one(127)).has(127));
    }
}
