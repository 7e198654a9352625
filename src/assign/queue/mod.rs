//! A queue in front of the service, for those who want no locks: requests from any context, one worker (contract C-12).
//!
//! ```text
//!  waiting context        any context                   the worker, waiting context
//!  queue.prepare(request) ──> queue.submit(ready) ──> [queue] ──> worker.run_one(&service)
//!                                   │                                  │
//!                                   └── Completion: poll, wait, cancel, drop  <──┘ answer
//! ```
//!
//! Making a request allocates, so that it comes first, in waiting context. Submitting, asking for the answer, cancelling
//! and dropping neither allocate nor free nor wait. The worker is whoever has the [`Worker`], of which there is one.
//!
//! | file | what |
//! |---|---|
//! | `request.rs` | what can be asked for, and its answer |
//! | `node.rs` | a request in the queue: its state, its answer, its completion |
//! | `lists.rs` | the lists that a request moves between |
//! | `worker.rs` | the one worker |
//!
//! # Order
//!
//! Requests about one device (by key) are carried out in the order of their submission. Over devices the order is that of
//! submission too, but for a request that meets a claimed group ([`Cause::Busy`](super::Cause::Busy)): it steps aside with
//! all later ones about its device, the worker goes on with the others, and tries it again when it begins anew.
//!
//! # Locking
//!
//! Level `Queue`: one for a queue, held to move one request from one list to another, never over an operation. Whether a
//! request has started, and its answer, stand in atomics of its own: `poll`, `cancel` and drops take no lock.
//!
//! # Invariants
//!
//! 1. The queue keeps a reference of every request from [`prepare`](RequestQueue::prepare) until it is the last one. It is
//!    let go in waiting context: by the worker, by `prepare`, or when the queue itself goes. So no other drop frees.
//! 2. A submitted request is in one place: in line, aside, or with the worker. Of one device, everything aside is older
//!    than everything in line.
//! 3. A request's state goes `Made`, `Submitted`, `Started`, `Answered`; or from `Submitted` to `Cancelled`; and from
//!    `Started` back to `Submitted` where nothing was done. The answer is written once, before `Answered`.

mod request;
mod node;
mod lists;
mod worker;

use core::fmt;
use core::marker::PhantomData;

use lists::Lists;
use node::Node;

pub use node::{Completion, NoAnswer, ReadyRequest};
pub use request::{Answer, Request};
pub use worker::{Progress, Worker};

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::broken::broken;
use crate::sync::levels;
use crate::sync::lock::Lock;
use crate::sync::order::Held;
use crate::sync::{InterruptSafe, Platform};

/// Requests on their way to the one worker.
///
/// To be dropped in waiting context; what was not started by then is cancelled.
pub struct RequestQueue<P: Platform> {
    lists: Lock<levels::Queue, Lists<P>, P::Lock>,
    /// Whether the worker is out: 0 or 1.
    worker: AtomicU64,
    sharing: PhantomData<P::Sharing>,
}

impl<P: Platform> RequestQueue<P> {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self { lists: Lock::new(Lists::new()), worker: AtomicU64::new(0), sharing: PhantomData }
    }

    /// Makes a request ready to be submitted. Dropping it takes it back.
    ///
    /// # Context
    ///
    /// Waiting context: it allocates, and where the allocator fails that is the allocator's to handle (contract A-8).
    pub fn prepare(&self, request: Request<P>) -> ReadyRequest<P> {
        let node = Node::new(request);
        let mut held = Held::enter();
        let unused = {
            let mut lists = self.lists.lock(&mut held);
            lists.keep(node.clone());
            // Two for one, so that what was let go is not there for ever, where nobody drains the queue.
            [lists.take_unused(), lists.take_unused()]
        };
        drop(unused);
        ReadyRequest(node)
    }

    /// Puts a request at the end of the line.
    ///
    /// # Context
    ///
    /// Where nothing may sleep, under a spin lock of the caller's own, and in waiting context; interrupt handlers have
    /// [`in_interrupts`](Self::in_interrupts). It allocates nothing.
    pub fn submit(&self, request: ReadyRequest<P>) -> Completion<P> {
        let node = request.0;
        node.submit();
        self.lists.lock(&mut Held::enter()).line_up(node.clone());
        // The worker may be waiting.
        if !broken!("unheard_request") {
            P::wake();
        }
        Completion::of(node)
    }

    /// The queue as interrupt handlers may use it: only where the platform's lock keeps interrupts off (contract C-10).
    ///
    /// ```compile_fail,E0599
    /// use iommu_assign::{assign::RequestQueue, sync::Spin};
    /// fn handler(queue: &RequestQueue<Spin>) {
    ///     let _ = queue.in_interrupts();
    /// }
    /// ```
    #[must_use]
    pub const fn in_interrupts(&self) -> Submitter<'_, P>
    where
        P: InterruptSafe,
    {
        Submitter { queue: self }
    }

    /// The worker, if nobody has it.
    #[must_use]
    pub fn worker(&self) -> Option<Worker<'_, P>> {
        let free = self.worker.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok();
        free.then(|| Worker::new(self))
    }
}

impl<P: Platform> Default for RequestQueue<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Platform> fmt::Debug for RequestQueue<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestQueue").field("lists", &self.lists).finish_non_exhaustive()
    }
}

/// What interrupt handlers may do with a queue. All that a [`Completion`] offers but waiting is legal there too.
pub struct Submitter<'q, P: InterruptSafe> {
    queue: &'q RequestQueue<P>,
}

impl<P: InterruptSafe> Submitter<'_, P> {
    /// [`RequestQueue::submit`].
    ///
    /// # Context
    ///
    /// Any, interrupts included.
    pub fn submit(&self, request: ReadyRequest<P>) -> Completion<P> {
        self.queue.submit(request)
    }
}

impl<P: InterruptSafe> fmt::Debug for Submitter<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Submitter")
    }
}
