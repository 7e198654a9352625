//! Sets of stream-map entries, and of context banks.

use core::cell::Cell;
use core::ops::{BitAnd, BitOr, BitOrAssign, Not};

/// A set of numbers, of which it has a bit each. The words are named instead of walked over, so that they stay in CPU
/// registers: most sets are looked at where they are made.
macro_rules! set {
    ($(#[$doc:meta])* $name:ident of $words:literal: $($word:ident $other:ident from $first:literal),+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub(in crate::smmu) struct $name([u64; $words]);

        impl $name {
            pub(in crate::smmu) const EMPTY: Self = Self([0; $words]);

            /// The numbers below `count`.
            pub(in crate::smmu) fn below(count: u8) -> Self {
                (0..count).collect()
            }

            pub(in crate::smmu) const fn is_empty(self) -> bool {
                let [$($word),+] = self.0;
                0 $(| $word)+ == 0
            }

            pub(in crate::smmu) fn lowest(self) -> Option<u8> {
                self.each().next()
            }

            /// Puts a number in, or takes it out.
            pub(in crate::smmu) fn put(&mut self, number: u8, member: bool) {
                if let Some(word) = self.0.get_mut(word_of(number)) {
                    *word = if member { *word | bit_of(number) } else { *word & !bit_of(number) };
                }
            }

            /// The members that `wanted` accepts.
            pub(in crate::smmu) fn filter(self, mut wanted: impl FnMut(u8) -> bool) -> Self {
                self.each().filter(|number| wanted(*number)).collect()
            }

            /// The members, lowest first.
            pub(in crate::smmu) fn each(self) -> impl Iterator<Item = u8> + Clone {
                let [$(mut $word),+] = self.0;
                core::iter::from_fn(move || {
                    $(if $word != 0 {
                        let [lowest, ..] = $word.trailing_zeros().to_le_bytes();
                        $word &= $word.wrapping_sub(1);
                        return Some($first | lowest);
                    })+
                    None
                })
            }
        }

        impl FromIterator<u8> for $name {
            fn from_iter<I: IntoIterator<Item = u8>>(numbers: I) -> Self {
                let mut set = Self::EMPTY;
                numbers.into_iter().for_each(|number| set.put(number, true));
                set
            }
        }

        impl BitOr for $name {
            type Output = Self;

            fn bitor(self, other: Self) -> Self {
                let ([$($word),+], [$($other),+]) = (self.0, other.0);
                Self([$($word | $other),+])
            }
        }

        impl BitOrAssign for $name {
            fn bitor_assign(&mut self, other: Self) {
                *self = *self | other;
            }
        }

        impl BitAnd for $name {
            type Output = Self;

            fn bitand(self, other: Self) -> Self {
                let ([$($word),+], [$($other),+]) = (self.0, other.0);
                Self([$($word & $other),+])
            }
        }

        impl Not for $name {
            type Output = Self;

            fn not(self) -> Self {
                let [$($word),+] = self.0;
                Self([$(!$word),+])
            }
        }
    };
}

set! {
    /// A set of stream-map entries: of any numbers.
    Set of 4: a e from 0, b f from 64, c g from 128, d h from 192
}

set! {
    /// A set of context banks: of numbers below 128.
    BankSet of 2: a c from 0, b d from 64
}

impl Set {
    /// The set with one member.
    pub(in crate::smmu) fn one(number: u8) -> Self {
        [number].into_iter().collect()
    }

    pub(in crate::smmu) fn has(self, number: u8) -> bool {
        self.0.get(word_of(number)).is_some_and(|word| word & bit_of(number) != 0)
    }

    pub(in crate::smmu) fn len(self) -> usize {
        self.each().count()
    }
}

/// A set of entries that is changed through a shared reference, a word at a time.
#[derive(Debug, Default)]
pub(in crate::smmu) struct SetCell([Cell<u64>; 4]);

impl SetCell {
    pub(in crate::smmu) fn get(&self) -> Set {
        let [a, b, c, d] = &self.0;
        Set([a.get(), b.get(), c.get(), d.get()])
    }

    /// Leaves the empty set.
    pub(in crate::smmu) fn take(&self) -> Set {
        let [a, b, c, d] = &self.0;
        Set([a.take(), b.take(), c.take(), d.take()])
    }

    pub(in crate::smmu) fn has(&self, number: u8) -> bool {
        self.0.get(word_of(number)).is_some_and(|word| word.get() & bit_of(number) != 0)
    }

    /// Puts a number in, or takes it out.
    pub(in crate::smmu) fn put(&self, number: u8, member: bool) {
        if let Some(word) = self.0.get(word_of(number)) {
            word.set(if member { word.get() | bit_of(number) } else { word.get() & !bit_of(number) });
        }
    }
}

fn word_of(number: u8) -> usize {
    usize::from(number >> 6)
}

const fn bit_of(number: u8) -> u64 {
    1 << (number & 63)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_come_lowest_first() {
        let set = Set::one(3) | Set::one(64) | Set::one(255) | Set::one(191) | Set::one(0);
        assert!(set.each().eq([0, 3, 64, 191, 255]));
        assert_eq!((set.len(), Set::below(244).len(), Set::below(5).lowest()), (5, 244, Some(0)));
        assert!(set.has(255) && !set.has(127) && !(set & !Set::one(255)).has(255));
        assert!(Set::EMPTY.is_empty() && !Set::one(128).is_empty() && !Set::one(200).is_empty());
        let cell = SetCell::default();
        set.each().for_each(|number| cell.put(number, true));
        cell.put(3, false);
        assert!(cell.has(191) && !cell.has(3) && cell.take() | Set::one(3) == set && cell.get().is_empty());
    }

    #[test]
    fn a_bank_that_does_not_exist_is_in_no_set() {
        let mut set = BankSet::below(128);
        set.put(128, true);
        assert!(set.each().eq(0..128) && (!set).is_empty());
    }
}
