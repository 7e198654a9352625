//! The lock order, as types: what may be taken while what is held.
//!
//! A [`Level`] names a place in the order. [`Held`] is a token of zero size that says which level the running call
//! holds; taking a lock of level `L` asks the token for [`Held::nest`], which exists only where `H: Before<L>`. A
//! lock taken against the order therefore does not compile, and the compiler's message names both levels.
//!
//! `levels.rs` declares all levels and edges with [`lock_order!`](crate::sync::order::lock_order), the reason of each edge
//! beside it. The same macro makes the table that `docs/locking.md` shows; a test compares them.
//!
//! # Invariants
//!
//! 1. While a token of an inner level lives, the outer token is mutably borrowed: nothing else can be nested under it.
//! 2. A token of [`Unlocked`] is minted only where a call enters the library ([`Held::enter`]); it never leaves a public signature (contract C-13).
//! 3. A callback takes `&mut Held<Unlocked>`, so that it cannot be called under a guard (contract C-3).

use core::marker::PhantomData;

/// A place in the lock order.
pub(crate) trait Level: 'static {
    /// The level's name, as docs/locking.md spells it.
    const NAME: &'static str;
}

/// `Self` may be held while a lock of level `L` is taken.
#[diagnostic::on_unimplemented(
    message = "lock order: `{L}` may not be taken while `{Self}` is held",
    label = "this takes `{L}` under `{Self}`",
    note = "the whole order, with the reason of each edge, stands in docs/locking.md"
)]
pub(crate) trait Before<L: Level> {}

/// No lock of the library is held: every lock may be taken, every callback called.
#[derive(Debug)]
pub(crate) enum Unlocked {}

impl<L: Level> Before<L> for Unlocked {}

/// Proof that the running call holds a lock of level `H`, and nothing below it.
///
/// Not `Send`: what one CPU holds is no other CPU's business.
#[must_use = "a lock can only be taken through the token"]
pub(crate) struct Held<'outer, H> {
    outer: PhantomData<&'outer mut H>,
    not_send: PhantomData<*mut ()>,
}

impl Held<'static, Unlocked> {
    /// The token of a call that enters the library from outside.
    ///
    /// Only public entry points call this (invariant 2).
    pub(crate) fn enter() -> Self {
        Self { outer: PhantomData, not_send: PhantomData }
    }
}

impl<H> Held<'_, H> {
    /// The token of level `L`, while `self` stays borrowed (invariant 1).
    pub(crate) fn nest<L: Level>(&mut self) -> Held<'_, L>
    where
        H: Before<L>,
    {
        Held { outer: PhantomData, not_send: PhantomData }
    }
}

impl<H> core::fmt::Debug for Held<'_, H> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(core::any::type_name::<H>())
    }
}

/// One line of the documented order.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Edge {
    /// What is held.
    pub(crate) outer: &'static str,
    /// What is taken under it.
    pub(crate) inner: &'static str,
    /// Why both are needed at once.
    pub(crate) reason: &'static str,
}

/// One lock, as documented.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LevelDoc {
    /// The floor that takes it.
    pub(crate) floor: &'static str,
    /// The level's name.
    pub(crate) name: &'static str,
    /// What the lock of this level guards.
    pub(crate) guards: &'static str,
}

/// Declares levels and the edges between them, as types and as a table.
///
/// ```text
/// lock_order! {
///     levels { floor { Outer: "what its lock guards", Inner: "what its lock guards" } }
///     edges { Outer => Inner: "why both are held at once" }
/// }
/// ```
macro_rules! lock_order {
    (
        levels { $($floor:ident { $($level:ident: $guards:literal),* $(,)? })* }
        edges { $($outer:ident => $inner:ident: $reason:literal),* $(,)? }
    ) => {
        $($(
            #[doc = $guards]
            #[derive(Debug)]
            pub(crate) enum $level {}

            impl $crate::sync::order::Level for $level {
                const NAME: &'static str = stringify!($level);
            }
        )*)*
        $(
            impl $crate::sync::order::Before<$inner> for $outer {}
        )*
        /// The locks, for the test that compares them with docs/locking.md.
        #[cfg(test)]
        pub(crate) const LEVELS: &[$crate::sync::order::LevelDoc] = &[
            $($($crate::sync::order::LevelDoc {
                floor: stringify!($floor),
                name: stringify!($level),
                guards: $guards,
            }),*),*
        ];
        /// The edges, for the same test.
        #[cfg(test)]
        pub(crate) const EDGES: &[$crate::sync::order::Edge] = &[
            $($crate::sync::order::Edge { outer: stringify!($outer), inner: stringify!($inner), reason: $reason }),*
        ];
    };
}
pub(crate) use lock_order;
