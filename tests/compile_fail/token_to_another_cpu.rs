//! error: `*mut ()` cannot be sent between threads safely
// What one CPU holds is no other CPU's business.

#[path = "../../src/sync"]
mod sync {
    pub(crate) mod order;
    pub(crate) mod levels;
}

use sync::levels::Masters;
use sync::order::Held;

fn send<T: Send>(_: T) {}

pub(crate) fn wrong(held: Held<'static, Masters>) {
    send(held);
}
