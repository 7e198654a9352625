//! One request on its way: its state, its answer, and the handles of who asked.

use alloc::sync::Arc;
use core::fmt;

use intrusive_collections::{LinkedListAtomicLink, RBTreeAtomicLink};

use super::request::{Answer, Request};
use crate::assign::{CallChain, Cause, DeviceKey, Error, Label, Operation};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::broken::broken;
use crate::sync::{Once, Platform, Waiter};

/// A request's state, as a number in an atomic.
mod state {
    pub(super) const MADE: u64 = 0;
    pub(super) const SUBMITTED: u64 = 1;
    pub(super) const STARTED: u64 = 2;
    /// Started, and its owner does not want it any more: it is not tried again where nothing was done.
    pub(super) const UNWANTED: u64 = 3;
    pub(super) const ANSWERED: u64 = 4;
    pub(super) const CANCELLED: u64 = 5;
}

/// A request, its answer, and its places in the queue's lists.
pub(super) struct Node<P: Platform> {
    /// In the list of all.
    pub(super) kept: LinkedListAtomicLink,
    /// In line.
    pub(super) line: LinkedListAtomicLink,
    /// Aside.
    pub(super) aside: RBTreeAtomicLink,
    /// Its turn: counted when it lines up, under the queue's lock.
    pub(super) turn: core::sync::atomic::AtomicU64,
    key: DeviceKey,
    pub(super) request: Request<P>,
    state: AtomicU64,
    answer: Once<Result<Answer, Error>>,
    /// The answer of a request that is cancelled, made when memory can be had.
    cancelled: Result<Answer, Error>,
}

impl<P: Platform> Node<P> {
    pub(super) fn new(request: Request<P>) -> Arc<Self> {
        let cancelled = Error::unchanged(request.operation(), request.label(), Cause::Cancelled);
        Arc::new(Self {
            kept: LinkedListAtomicLink::new(),
            line: LinkedListAtomicLink::new(),
            aside: RBTreeAtomicLink::new(),
            turn: core::sync::atomic::AtomicU64::new(0),
            key: request.key(),
            request,
            state: AtomicU64::new(state::MADE),
            answer: Once::new(),
            cancelled: Err(cancelled),
        })
    }

    /// The device whose requests it keeps its place among.
    pub(super) const fn key(&self) -> DeviceKey {
        self.key
    }

    pub(super) fn submit(&self) {
        self.state.store(state::SUBMITTED, Ordering::Release);
    }

    /// The worker has it in hand. False where it was cancelled.
    pub(super) fn start(&self) -> bool {
        if broken!("blind_start") {
            self.state.swap(state::SUBMITTED, Ordering::AcqRel);
        }
        self.turns(state::SUBMITTED, state::STARTED)
    }

    /// It met a claimed group and did nothing. False where nobody wants it tried again.
    pub(super) fn put_back(&self) -> bool {
        let wanted = self.turns(state::STARTED, state::SUBMITTED);
        if !wanted {
            self.state.swap(state::CANCELLED, Ordering::AcqRel);
        }
        wanted
    }

    pub(super) fn conclude(&self, result: Result<Answer, Error>) {
        self.answer.call_once(|| result);
        // Not a plain store: every change is ordered with those of `cancel`, for whoever reads it.
        self.state.swap(state::ANSWERED, Ordering::AcqRel);
    }

    /// Whether it is cancelled: it was never started, and never will be.
    pub(super) fn cancel(&self) -> bool {
        loop {
            match self.state.load(Ordering::Acquire) {
                state::SUBMITTED => {
                    if self.turns(state::SUBMITTED, state::CANCELLED) {
                        return true;
                    }
                }
                state::STARTED => {
                    if self.turns(state::STARTED, state::UNWANTED) {
                        return false;
                    }
                }
                state => return state == state::CANCELLED,
            }
        }
    }

    fn answer(&self) -> Option<&Result<Answer, Error>> {
        match self.state.load(Ordering::Acquire) {
            state::ANSWERED => self.answer.get(),
            state::CANCELLED => Some(&self.cancelled),
            _ => None,
        }
    }

    fn turns(&self, from: u64, to: u64) -> bool {
        self.state.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A request that can be submitted. Dropping it takes it back, in any context.
#[must_use = "a request does nothing until it is submitted"]
pub struct ReadyRequest<P: Platform>(pub(super) Arc<Node<P>>);

/// A submitted request, as who asked sees it.
///
/// Dropping it cancels the request where it has not started, and leaves it to itself where it has. It may be dropped in
/// any context, and frees nothing.
#[must_use = "dropping it cancels the request; `detach` lets it go on"]
pub struct Completion<P: Platform> {
    node: Arc<Node<P>>,
    wanted: bool,
}

/// Why there is no answer to be had by waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoAnswer {
    /// The deadline came first. The request goes on.
    #[error("the request was not answered before the deadline")]
    TimedOut,
    /// The worker, or a claim that the request needs, may be waiting for the caller to return.
    #[error("waiting here could wait for ever: the caller is inside an operation")]
    WouldDeadlock,
}

impl<P: Platform> Completion<P> {
    pub(super) const fn of(node: Arc<Node<P>>) -> Self {
        Self { node, wanted: true }
    }

    /// The operation that was asked for, and on whom.
    #[must_use]
    pub fn subject(&self) -> (Operation, Label) {
        (self.node.request.operation(), self.node.request.label())
    }

    /// The answer, once there is one: it never changes. [`Cause::Cancelled`] for a request that was cancelled.
    ///
    /// # Context
    ///
    /// Any: it takes no lock.
    #[must_use]
    pub fn poll(&self) -> Option<&Result<Answer, Error>> {
        self.node.answer()
    }

    /// Cancels the request if it has not started. Returns whether it is cancelled.
    ///
    /// `false`: it has started or is answered. Where what has started meets a claimed group it does nothing, is not tried
    /// again, and its answer is [`Cause::Cancelled`].
    ///
    /// # Context
    ///
    /// Any: it takes no lock.
    pub fn cancel(&self) -> bool {
        let cancelled = self.node.cancel();
        // Somebody may be waiting for this answer, and the worker may be waiting to go on with what stands behind.
        P::wake();
        cancelled
    }

    /// Lets the request go on without its owner: nobody hears its answer.
    ///
    /// # Context
    ///
    /// Any.
    pub fn detach(mut self) {
        self.wanted = false;
    }

    /// Waits for the answer.
    ///
    /// # Errors
    ///
    /// [`NoAnswer::TimedOut`].
    ///
    /// # Context
    ///
    /// Waiting context, but neither in a callback, which has [`wait_within`](Self::wait_within), nor where the worker itself
    /// works: nobody would answer.
    pub fn wait(&self, deadline: Option<P::Deadline>) -> Result<&Result<Answer, Error>, NoAnswer>
    where
        P: Waiter,
    {
        loop {
            let ticket = P::prepare();
            if let Some(answer) = self.poll() {
                return Ok(answer);
            }
            if P::wait(ticket, deadline).is_err() {
                return self.poll().ok_or(NoAnswer::TimedOut);
            }
        }
    }

    /// The answer, asked for inside a callback, which was handed `chain`. It runs within an operation, which may be the
    /// worker's own, and holds up what the request may need: waiting could close a circle (contract C-4, C-12).
    ///
    /// # Errors
    ///
    /// [`NoAnswer::WouldDeadlock`] where there is no answer yet.
    ///
    /// # Context
    ///
    /// Any; it does not wait.
    pub fn wait_within(&self, _chain: CallChain<'_>) -> Result<&Result<Answer, Error>, NoAnswer> {
        self.poll().ok_or(NoAnswer::WouldDeadlock)
    }
}

impl<P: Platform> Drop for Completion<P> {
    fn drop(&mut self) {
        if self.wanted && self.node.cancel() {
            P::wake();
        }
    }
}

impl<P: Platform> fmt::Debug for ReadyRequest<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReadyRequest({:?})", self.0.request)
    }
}

impl<P: Platform> fmt::Debug for Completion<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Completion({:?}: {:?})", self.node.request, self.poll())
    }
}
