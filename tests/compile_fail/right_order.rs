//! ok
// The control: the documented order compiles, so that the other files fail for the reason that they name.

extern crate alloc;

#[path = "../../src/sync"]
mod sync {
    pub(crate) mod order;
    pub(crate) mod levels;
    pub(crate) mod outside;
}

use sync::levels::{Masters, Registry, StreamMap, TlbSync};
use sync::order::{Held, Unlocked};
use sync::outside::Outside;

pub(crate) fn right(hook: &Outside<fn()>, held: &mut Held<'_, Unlocked>) {
    {
        let mut masters = held.nest::<Masters>();
        let mut map = masters.nest::<StreamMap>();
        let _ = map.nest::<TlbSync>();
    }
    let _ = held.nest::<TlbSync>();
    let _ = held.nest::<Registry>();
    hook.call(held)();
}
