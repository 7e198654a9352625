//! The power of an instance, as everything that touches registers shares it.
//!
//! # Locking
//!
//! None: one atomic word, and the integrator's hook.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use super::setup::{Power, PowerError};
use crate::sync::order::{Held, Unlocked};
use crate::sync::outside::Outside;

/// The power hook, and how many need it now.
///
/// # Invariants
///
/// 1. While `users` is not 0, one `get` is outstanding that is not put before it is 0. So who joins needs no `get`, which could
///    fail where others have the power already.
#[derive(Debug)]
pub(super) struct Supply {
    /// `None`: it is always on, and nobody counts.
    hook: Option<Outside<Arc<dyn Power>>>,
    users: AtomicU32,
}

impl Supply {
    pub(super) fn new(hook: Option<Arc<dyn Power>>) -> Self {
        Self { hook: hook.map(Outside::new), users: AtomicU32::new(0) }
    }

    /// Whether nobody counts.
    pub(super) const fn is_always_on(&self) -> bool {
        self.hook.is_none()
    }

    /// Has power until [`give`](Self::give). Waiting context.
    pub(super) fn take(&self, held: &mut Held<'_, Unlocked>) -> Result<(), PowerError> {
        self.take_by(held, |hook| hook.get())
    }

    /// The same where the power is on already. Any context.
    pub(super) fn take_if_on(&self, held: &mut Held<'_, Unlocked>) -> bool {
        self.take_by(held, |hook| if hook.get_if_on() { Ok(()) } else { Err(()) }).is_ok()
    }

    fn take_by<E>(
        &self,
        held: &mut Held<'_, Unlocked>,
        get: impl FnOnce(&dyn Power) -> Result<(), E>,
    ) -> Result<(), E> {
        self.hook.as_ref().map_or(Ok(()), |hook| self.take_of(hook, held, get))
    }

    #[inline(never)]
    fn take_of<E>(
        &self,
        hook: &Outside<Arc<dyn Power>>,
        held: &mut Held<'_, Unlocked>,
        get: impl FnOnce(&dyn Power) -> Result<(), E>,
    ) -> Result<(), E> {
        let join = |users: u32| if users == 0 { None } else { users.checked_add(1) };
        if self.users.fetch_update(Ordering::AcqRel, Ordering::Acquire, join).is_ok() {
            return Ok(());
        }
        let hook = hook.call(held);
        get(&**hook)?;
        if self.users.fetch_add(1, Ordering::AcqRel) != 0 {
            // Another has got it meanwhile: theirs is enough.
            hook.put();
        }
        Ok(())
    }

    /// Gives back what was taken once. Any context.
    pub(super) fn give(&self, held: &mut Held<'_, Unlocked>) {
        if let Some(hook) = &self.hook {
            self.give_to(hook, held);
        }
    }

    #[inline(never)]
    fn give_to(&self, hook: &Outside<Arc<dyn Power>>, held: &mut Held<'_, Unlocked>) {
        let leave = |users: u32| users.checked_sub(1);
        if self.users.fetch_update(Ordering::AcqRel, Ordering::Acquire, leave) == Ok(1) {
            hook.call(held).put();
        }
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::AtomicI32;

    use super::*;

    /// Counts; refuses every `get` beyond the first.
    #[derive(Debug, Default)]
    struct Once(AtomicI32);

    impl Power for Once {
        fn get(&self) -> Result<(), PowerError> {
            if self.get_if_on() {
                self.put();
                return Err(PowerError("once"));
            }
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }

        fn get_if_on(&self) -> bool {
            let on = self.0.load(Ordering::SeqCst) > 0;
            self.0.fetch_add(on.into(), Ordering::SeqCst);
            on
        }

        fn put(&self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn s5_who_comes_while_it_is_had_asks_for_nothing_and_the_last_gives_it_back() {
        let (hook, held) = (Arc::new(Once::default()), &mut Held::enter());
        let supply = Supply::new(Some(hook.clone()));
        assert!(!supply.take_if_on(held));
        assert_eq!((supply.take(held), supply.take(held)), (Ok(()), Ok(())));
        assert!(supply.take_if_on(held));
        for left in [1, 1, 0] {
            supply.give(held);
            assert_eq!(hook.0.load(Ordering::SeqCst), left);
        }
        // What is given back without having been taken is nobody's.
        supply.give(held);
        assert_eq!(hook.0.load(Ordering::SeqCst), 0);
    }
}
