//! Objects found by their numbers: a list for each remainder.
//!
//! Numbers are given out one after the other, so that the lists are equally short: a step or two find what a tree has as deep
//! as it is high. Putting an object in or taking it out allocates nothing.

use alloc::boxed::Box;
use alloc::vec::Vec;

use intrusive_collections::singly_linked_list::{SinglyLinkedList, SinglyLinkedListOps};
use intrusive_collections::{Adapter, PointerOps};

use crate::few;

/// What has a number that no other object beside it has.
pub(crate) trait Numbered {
    fn number(&self) -> u64;
}

/// The objects. `LISTS` is a power of two.
pub(crate) struct ByNumber<A: Adapter, const LISTS: usize>(Box<[SinglyLinkedList<A>; LISTS]>)
where
    A::LinkOps: SinglyLinkedListOps;

impl<A: Adapter + Default, T: Numbered, const LISTS: usize> ByNumber<A, LISTS>
where
    A::LinkOps: SinglyLinkedListOps,
    A::PointerOps: PointerOps<Value = T, Pointer = Box<T>>,
{
    /// In empty lists. `None` when memory could not be reserved.
    pub(crate) fn new() -> Option<Self> {
        let mut lists = Vec::new();
        lists.try_reserve_exact(LISTS).ok()?;
        few::extend_within(&mut lists, (0..LISTS).map(|_| SinglyLinkedList::new(A::default())));
        Some(Self(lists.into_boxed_slice().try_into().ok()?))
    }

    pub(crate) fn find(&self, number: u64) -> Option<&T> {
        self.0.get(Self::place(number))?.iter().find(|one| one.number() == number)
    }

    pub(crate) fn insert(&mut self, one: Box<T>) {
        if let Some(list) = self.0.get_mut(Self::place(one.number())) {
            list.push_front(one);
        }
    }

    pub(crate) fn take(&mut self, number: u64) -> Option<Box<T>> {
        let mut before = self.0.get_mut(Self::place(number))?.cursor_mut();
        while before.peek_next().get()?.number() != number {
            before.move_next();
        }
        before.remove_next()
    }

    /// All of them, in no order.
    pub(crate) fn each(&self) -> impl Iterator<Item = &T> {
        self.0.iter().flat_map(SinglyLinkedList::iter)
    }

    fn place(number: u64) -> usize {
        let [low, high, ..] = number.to_le_bytes();
        usize::from(u16::from_le_bytes([low, high])) & LISTS.wrapping_sub(1)
    }
}
