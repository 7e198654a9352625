//! error: lock order: `StreamMap` may not be taken while `StreamMap` is held
// Two instances' stream maps are never held together.

#[path = "../../src/sync/order.rs"]
mod order;
#[path = "../../src/smmu/levels.rs"]
mod smmu;
mod sync {
    pub(crate) use crate::order;
}

use smmu::StreamMap;
use order::Held;

pub(crate) fn wrong(held: &mut Held<'_, StreamMap>) {
    let _ = held.nest::<StreamMap>();
}
