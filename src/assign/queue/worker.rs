//! The worker: takes requests one after the other and carries them out.

use alloc::sync::Arc;
use core::fmt;

use super::RequestQueue;
use super::node::Node;
use crate::assign::chain::Attempt;
use crate::assign::{Cause, DeviceKey, Error, Service, take_all};
use crate::sync::atomic::Ordering;
use crate::sync::order::Held;
use crate::sync::{Platform, Waiter};

/// The one who carries out what a queue holds. Dropping it gives it back to the queue.
pub struct Worker<'q, P: Platform> {
    queue: &'q RequestQueue<P>,
    round: Round,
}

/// How far the worker has come since it began anew.
#[derive(Clone, Copy, Debug)]
enum Round {
    /// Trying again what is aside, device by device: past this one.
    Aside(Option<DeviceKey>),
    /// Going through the line.
    Line,
}

/// What the worker has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// One request was answered.
    Answered,
    /// There is nothing to do now. The next call begins anew.
    Idle {
        /// So many requests wait for a claim to end, or for one of their device that does; those among them that were
        /// cancelled since are counted until the next round.
        waiting: usize,
    },
}

/// What is to be done with a request.
enum Step<P: Platform> {
    Try(Arc<Node<P>>),
    Look,
    Idle(usize),
}

impl<'q, P: Platform> Worker<'q, P> {
    pub(super) const fn new(queue: &'q RequestQueue<P>) -> Self {
        Self { queue, round: Round::Aside(None) }
    }

    /// Carries out one request.
    ///
    /// Each round first tries again what had met a claimed group, once for each device, then goes through the line. It
    /// does not wait: where everything that is left meets claimed groups the round is over, and the next one is worth
    /// while when a claim has ended or a request has come ([`Platform::wake`] tells of both).
    ///
    /// # Context
    ///
    /// Waiting context, and not from inside a hook.
    pub fn run_one(&mut self, service: &Service<P>) -> Progress {
        self.run_counted(service, &Attempt::default())
    }

    fn run_counted(&mut self, service: &Service<P>, tries: &Attempt) -> Progress {
        loop {
            match self.step() {
                Step::Try(node) if node.start() => {
                    if self.attempt(service, &node, tries) {
                        return Progress::Answered;
                    }
                }
                // Cancelled: what is behind it comes next.
                Step::Try(_) | Step::Look => {}
                Step::Idle(waiting) => {
                    self.round = Round::Aside(None);
                    self.tidy();
                    return Progress::Idle { waiting };
                }
            }
        }
    }

    /// Carries out all that can be now. Returns how many requests wait for a claim to end.
    ///
    /// # Context
    ///
    /// As for [`run_one`](Self::run_one).
    pub fn drain(&mut self, service: &Service<P>) -> usize {
        loop {
            if let Progress::Idle { waiting } = self.run_one(service) {
                return waiting;
            }
        }
    }

    /// Carries out what comes until `deadline`; for ever without one. Waits while there is nothing to do.
    ///
    /// # Context
    ///
    /// As for [`run_one`](Self::run_one).
    pub fn serve(&mut self, service: &Service<P>, deadline: Option<P::Deadline>)
    where
        P: Waiter,
    {
        loop {
            // Read before the round, so that what ends during it begins another one.
            let (ends, tries) = (service.ends.load(Ordering::Acquire), Attempt::default());
            while self.run_counted(service, &tries) == Progress::Answered {}
            // What its own tries gave back nothing of its own waits for: it would not sleep beside an add that is busy.
            let ends = ends.wrapping_add(tries.ends.get());
            let lists = &self.queue.lists;
            let is_idle =
                |held: &mut Held<'_, _>| service.ends.load(Ordering::Acquire) == ends && !lists.lock(held).has_new();
            if service.wait_while(deadline, is_idle).is_err() {
                return;
            }
        }
    }

    /// Takes the next request, or moves one out of the way.
    fn step(&mut self) -> Step<P> {
        let mut held = Held::enter();
        let mut lists = self.queue.lists.lock(&mut held);
        if let Round::Aside(after) = self.round {
            match lists.take_aside(after) {
                Some(node) => return Step::Try(node),
                None => self.round = Round::Line,
            }
        }
        match lists.take_first() {
            None => Step::Idle(lists.aside()),
            // Behind what is aside of its device (the queue's invariant 2).
            Some(node) if lists.has_aside(node.key()) => {
                lists.put_aside(node);
                Step::Look
            }
            Some(node) => Step::Try(node),
        }
    }

    /// Tries a started request. False: it met a claimed group, and is where it will be tried again.
    fn attempt(&mut self, service: &Service<P>, node: &Arc<Node<P>>, tries: &Attempt) -> bool {
        match node.request.carry_out(service, tries) {
            Err(Error { cause: Cause::Busy { .. }, .. }) => {
                if let Round::Aside(after) = &mut self.round {
                    // This device's turn is over for this round.
                    *after = Some(node.key());
                }
                if node.put_back() {
                    self.queue.lists.lock(&mut Held::enter()).put_aside(node.clone());
                    return false;
                }
            }
            result => node.conclude(result),
        }
        P::wake();
        true
    }

    /// Lets go of what nobody refers to any more.
    fn tidy(&self) {
        let mut held = Held::enter();
        take_all(|| {
            let mut lists = self.queue.lists.lock(&mut held);
            (lists.take_unused(), lists.rounds())
        });
    }
}

impl<P: Platform> Drop for Worker<'_, P> {
    fn drop(&mut self) {
        self.queue.worker.store(0, Ordering::Release);
    }
}

impl<P: Platform> fmt::Debug for Worker<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Worker({:?})", self.round)
    }
}
