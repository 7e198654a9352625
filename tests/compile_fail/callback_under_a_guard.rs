//! error: mismatched types
// What was given to the library can only be called with no lock held (contract C-3).

extern crate alloc;

#[path = "../../src/sync"]
mod sync {
    pub(crate) mod order;
    pub(crate) mod levels;
    pub(crate) mod outside;
}

use sync::levels::Registry;
use sync::order::Held;
use sync::outside::Outside;

pub(crate) fn wrong(hook: &Outside<fn()>, held: &mut Held<'_, Registry>) {
    hook.call(held)();
}
