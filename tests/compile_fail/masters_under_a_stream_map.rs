//! error: lock order: `Masters` may not be taken while `StreamMap` is held
// A stream map nests inside the tree of masters; here it is taken the other way round.

#[path = "../../src/sync/order.rs"]
mod order;
#[path = "../../src/smmu/levels.rs"]
mod smmu;
mod sync {
    pub(crate) use crate::order;
}

use smmu::{Masters, StreamMap};
use order::Held;

pub(crate) fn wrong(held: &mut Held<'_, StreamMap>) {
    let _ = held.nest::<Masters>();
}
