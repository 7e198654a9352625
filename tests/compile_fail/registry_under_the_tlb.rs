//! error: lock order: `Registry` may not be taken while `TlbSync` is held
// A driver's lock must be free before the assignment layer is asked anything.

#[path = "../../src/sync"]
mod sync {
    pub(crate) mod order;
    pub(crate) mod levels;
}

use sync::levels::{Registry, TlbSync};
use sync::order::Held;

pub(crate) fn wrong(held: &mut Held<'_, TlbSync>) {
    let _ = held.nest::<Registry>();
}
