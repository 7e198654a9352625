//! Lists whose memory is reserved in a way that can fail. Short ones: up to eight stand in place.
//!
//! `Vec::push`, `extend`, `insert` and `remove` end in a panic where memory or an index is wrong. What is here for them has no such
//! end, so that none is linked (`cargo xtask no-panic`).
//!
//! Eight are the functions of one PCI device, and more devices than most groups have: for these an operation allocates
//! nothing (contract A-8).

use alloc::collections::TryReserveError;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use smallvec::{Array, SmallVec};

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

/// One more at the end of a short list, where there is room for it: whether there was.
pub(crate) fn put<A: Array>(list: &mut SmallVec<A>, item: A::Item) -> bool {
    let has_room = list.len() < list.capacity();
    if has_room {
        list.push(item);
    }
    has_room
}

/// All of these at the end of a short list, as far as there is room: whether there was for all.
pub(crate) fn put_all<A: Array>(list: &mut SmallVec<A>, items: impl IntoIterator<Item = A::Item>) -> bool {
    items.into_iter().all(|item| put(list, item))
}

/// One more at the end.
pub(crate) fn push<T>(list: &mut Vec<T>, item: T) -> Result<(), TryReserveError> {
    list.try_reserve(1)?;
    push_within(list, item);
    Ok(())
}

/// One more at the end, where there is room for it: whether there was.
pub(crate) fn push_within<T>(list: &mut Vec<T>, item: T) -> bool {
    let has_room = list.len() < list.capacity();
    if has_room {
        list.push(item);
    }
    has_room
}

/// All of these at the end, as far as there is room: whether there was for all.
pub(crate) fn extend_within<T>(list: &mut Vec<T>, items: impl IntoIterator<Item = T>) -> bool {
    items.into_iter().all(|item| push_within(list, item))
}

/// All of these at the end.
pub(crate) fn extend<T>(list: &mut Vec<T>, items: impl IntoIterator<Item = T>) -> Result<(), TryReserveError> {
    let mut items = items.into_iter();
    list.try_reserve(items.size_hint().0)?;
    items.try_for_each(|item| push(list, item))
}

/// One more at `at`, where there is room for it and `at` is not past the end: whether it is in.
pub(crate) fn insert_within<T>(list: &mut Vec<T>, at: usize, item: T) -> bool {
    let fits = at <= list.len() && list.len() < list.capacity();
    if fits {
        list.insert(at, item);
    }
    fits
}

/// Takes out the one at `at`.
pub(crate) fn take<T>(list: &mut Vec<T>, at: usize) -> Option<T> {
    (at < list.len()).then(|| list.remove(at))
}

/// The list in pieces: each as long as its elements are the `same` as its first.
pub(crate) fn runs<T>(list: &[T], same: impl Fn(&T, &T) -> bool) -> impl Iterator<Item = &[T]> {
    let mut rest = list;
    core::iter::from_fn(move || {
        let first = rest.first()?;
        let (run, behind) = rest.split_at_checked(rest.iter().take_while(|one| same(first, one)).count())?;
        rest = behind;
        Some(run)
    })
}

/// Another list of the same.
pub(crate) fn copied<T: Copy>(items: &[T]) -> Result<Vec<T>, TryReserveError> {
    let mut list = Vec::new();
    list.try_reserve_exact(items.len())?;
    extend_within(&mut list, items.iter().copied());
    Ok(list)
}

/// More bytes at the end.
pub(crate) fn append_bytes(list: &mut Vec<u8>, more: &[u8]) -> Result<(), TryReserveError> {
    extend(list, more.iter().copied())
}

/// More text at the end.
#[inline(never)]
pub(crate) fn append(text: &mut String, more: &str) -> Result<(), TryReserveError> {
    text.try_reserve(more.len())?;
    if more.len() <= text.capacity().wrapping_sub(text.len()) {
        text.push_str(more);
    }
    Ok(())
}

/// A text of its own.
pub(crate) fn text(of: &str) -> Result<String, TryReserveError> {
    let mut text = String::new();
    append(&mut text, of)?;
    Ok(text)
}

/// What `value` shows, as a text of its own; `None` where there is no memory.
pub(crate) fn shown(value: &dyn fmt::Display) -> Option<String> {
    struct Growing(String);
    impl fmt::Write for Growing {
        fn write_str(&mut self, more: &str) -> fmt::Result {
            append(&mut self.0, more).map_err(|_| fmt::Error)
        }
    }
    let mut text = Growing(String::new());
    fmt::Write::write_fmt(&mut text, format_args!("{value}")).ok()?;
    Some(text.0)
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
    fn what_has_no_room_or_no_place_is_not_put_in() {
        let mut list = Vec::with_capacity(4);
        assert!(extend_within(&mut list, 0..3));
        assert!(!insert_within(&mut list, 4, 9));
        assert!(insert_within(&mut list, 1, 9));
        assert_eq!(list, [0, 9, 1, 2]);
        let room = list.capacity() - list.len();
        assert!(extend_within(&mut list, (0..).take(room)));
        assert!(!push_within(&mut list, 7) && !insert_within(&mut list, 0, 7));
        list.truncate(4);
        assert_eq!((take(&mut list, 1), take(&mut list, 3), take(&mut list, 2)), (Some(9), None, Some(2)));
        assert!(insert_within(&mut list, 2, 5) && insert_within(&mut list, 0, 6));
        assert_eq!(list, [6, 0, 1, 5]);
    }

    #[test]
    fn runs_are_the_list_in_pieces() {
        let list = [1, 1, 2, 3, 3, 3, 1];
        let runs: Vec<&[i32]> = runs(&list, |one, other| one == other).collect();
        assert_eq!(runs, [&list[0..2], &list[2..3], &list[3..6], &list[6..]]);
    }

    #[test]
    fn texts_grow() {
        assert_eq!(shown(&format_args!("{:04x}:{}", 0x1f, "0")).as_deref(), Some("001f:0"));
        assert_eq!(text("pcie@1000").as_deref(), Ok("pcie@1000"));
        assert_eq!(copied(&[1, 2, 3]), Ok(Vec::from([1, 2, 3])));
    }

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
