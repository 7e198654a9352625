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

/// Sorts a list, as most are here: short, and in order already. The general sort would be a dozen times as large, for each kind
/// of list again; this one (Shell's method) takes a few times as long on a long list that is not in order.
///
/// `before` says whether the first of two stands before the second; what stands before neither way keeps no order.
#[inline(never)]
pub(crate) fn sort<T>(list: &mut [T], before: &dyn Fn(&T, &T) -> bool) {
    if list.is_sorted_by(|one, next| !before(next, one)) {
        return;
    }
    for gap in [701, 301, 132, 57, 23, 10, 4, 1] {
        for start in gap..list.len() {
            let mut at = start;
            while let Some(earlier) = at.checked_sub(gap)
                && list.get(at).zip(list.get(earlier)).is_some_and(|(one, other)| before(one, other))
            {
                list.swap(at, earlier);
                at = earlier;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_any_length_come_in_order() {
        for count in [0, 1, 2, 3, 9, 64, 1000, 5000] {
            let number = |index: u32| index.wrapping_mul(0x9e37_79b9) >> 19;
            let mut list: SmallVec<[u32; 4]> = (0..count).map(number).collect();
            let mut wanted = list.clone();
            wanted.sort_unstable();
            sort(&mut list, &|one, other| one < other);
            assert_eq!(list, wanted);
            sort(&mut list, &|one, other| one > other);
            assert!(list.iter().eq(wanted.iter().rev()));
        }
    }
}
