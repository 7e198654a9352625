//! Waiting: the event count that the hypervisor supplies.

use super::platform::Platform;

/// A platform that can wait. Without it there are no wait forms, by type (contract C-19).
///
/// An event count: [`prepare`](Waiter::prepare) takes a ticket, the caller looks again, and [`wait`](Waiter::wait)
/// returns when [`Platform::wake`] was called after the ticket was taken: a wake-up between the look and the wait is
/// not lost. Spurious wake-ups are allowed.
///
/// # Context
///
/// `wait` is called in waiting context with no lock of the library held. `wake` is legal in interrupt context.
pub trait Waiter: Platform {
    /// A moment to wait from.
    type Ticket;
    /// A moment to wait until, on the hypervisor's own clock.
    type Deadline: Copy;

    /// Takes a ticket.
    fn prepare() -> Self::Ticket;

    /// Waits until someone woke after `ticket` was taken, or until `deadline`.
    ///
    /// # Errors
    ///
    /// [`TimedOut`] when the deadline came first.
    fn wait(ticket: Self::Ticket, deadline: Option<Self::Deadline>) -> Result<(), TimedOut>;
}

/// The deadline came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimedOut;
