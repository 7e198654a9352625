//! error: lock order: `StreamMap` may not be taken while `StreamMap` is held
// Two instances' stream maps are never held together.

#[path = "../../src/sync"]
mod sync {
    pub(crate) mod order;
    pub(crate) mod levels;
}

use sync::levels::StreamMap;
use sync::order::Held;

pub(crate) fn wrong(held: &mut Held<'_, StreamMap>) {
    let _ = held.nest::<StreamMap>();
}
