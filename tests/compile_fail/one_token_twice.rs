//! error: cannot borrow `*held` as mutable more than once at a time
// While a guard lives, its outer token is borrowed: nothing can be taken beside it, only below it.

#[path = "../../src/sync"]
mod sync {
    pub(crate) mod order;
    pub(crate) mod levels;
}

use sync::levels::{Masters, StreamMap, TlbSync};
use sync::order::Held;

pub(crate) fn wrong(held: &mut Held<'_, Masters>) {
    let mut one = held.nest::<StreamMap>();
    let other = held.nest::<StreamMap>();
    drop((&mut one, other));
    let _: Option<TlbSync> = None;
}
