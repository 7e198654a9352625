//! error: lock order: `Registry` may not be taken while `TlbSync` is held
// A driver's lock must be free before the assignment layer is asked anything.

#[path = "../../src/sync/order.rs"]
mod order;
#[path = "../../src/smmu/levels.rs"]
mod smmu;
#[path = "../../src/assign/levels.rs"]
mod assign;
mod sync {
    pub(crate) use crate::order;
}

use assign::Registry;
use smmu::TlbSync;
use order::Held;

pub(crate) fn wrong(held: &mut Held<'_, TlbSync>) {
    let _ = held.nest::<Registry>();
}
