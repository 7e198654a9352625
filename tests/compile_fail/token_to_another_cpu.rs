//! error: `*mut ()` cannot be sent between threads safely
// What one CPU holds is no other CPU's business.

#[path = "../../src/sync/order.rs"]
mod order;
#[path = "../../src/smmu/levels.rs"]
mod smmu;
mod sync {
    pub(crate) use crate::order;
}

use smmu::Masters;
use order::Held;

fn send<T: Send>(_: T) {}

pub(crate) fn wrong(held: Held<'static, Masters>) {
    send(held);
}
