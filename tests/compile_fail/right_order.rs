//! ok
// The control: the documented order compiles, so that the other files fail for the reason that they name.

extern crate alloc;

#[path = "../../src/sync/order.rs"]
mod order;
#[path = "../../src/sync/outside.rs"]
mod outside;
#[path = "../../src/smmu/levels.rs"]
mod smmu;
#[path = "../../src/assign/levels.rs"]
mod assign;
mod sync {
    pub(crate) use crate::order;
}

use assign::Registry;
use smmu::{Masters, StreamMap, TlbSync};
use order::{Held, Unlocked};
use outside::Outside;

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
