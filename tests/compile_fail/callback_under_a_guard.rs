//! error: mismatched types
// What was given to the library can only be called with no lock held (contract C-3).

extern crate alloc;

#[path = "../../src/sync/order.rs"]
mod order;
#[path = "../../src/sync/outside.rs"]
mod outside;
#[path = "../../src/assign/levels.rs"]
mod assign;
mod sync {
    pub(crate) use crate::order;
}

use assign::Registry;
use order::Held;
use outside::Outside;

pub(crate) fn wrong(hook: &Outside<fn()>, held: &mut Held<'_, Registry>) {
    hook.call(held)();
}
