//! What may only be called with no lock held.

use core::fmt;

use super::order::{Held, Unlocked};

/// Something given to the library by its user: a hook, a policy, an IOMMU driver.
///
/// It can only be reached through a token that says that nothing is locked, so that a callback under a guard does not
/// compile (contract C-3).
#[derive(Clone)]
pub(crate) struct Outside<T>(T);

impl<T> Outside<T> {
    /// Keeps `given` where only unlocked code reaches it.
    pub(crate) const fn new(given: T) -> Self {
        Self(given)
    }

    /// The thing itself, for as long as nothing is locked.
    pub(crate) fn call<'a>(&'a self, _unlocked: &'a mut Held<'_, Unlocked>) -> &'a T {
        &self.0
    }
}

impl<T> fmt::Debug for Outside<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outside")
    }
}
