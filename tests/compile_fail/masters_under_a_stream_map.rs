//! error: lock order: `Masters` may not be taken while `StreamMap` is held
// A stream map nests inside the tree of masters; here it is taken the other way round.

#[path = "../../src/sync"]
mod sync {
    pub(crate) mod order;
    pub(crate) mod levels;
}

use sync::levels::{Masters, StreamMap};
use sync::order::Held;

pub(crate) fn wrong(held: &mut Held<'_, StreamMap>) {
    let _ = held.nest::<Masters>();
}
