//! error: cannot borrow `*held` as mutable more than once at a time
// While a guard lives, its outer token is borrowed: nothing can be taken beside it, only below it.

#[path = "../../src/sync/order.rs"]
mod order;
#[path = "../../src/smmu/levels.rs"]
mod smmu;
mod sync {
    pub(crate) use crate::order;
}

use smmu::{Masters, StreamMap, TlbSync};
use order::Held;

pub(crate) fn wrong(held: &mut Held<'_, Masters>) {
    let mut one = held.nest::<StreamMap>();
    let other = held.nest::<StreamMap>();
    drop((&mut one, other));
    let _: Option<TlbSync> = None;
}
