//! The chain of claims above a callback (contract C-4).
//!
//! A callback runs while its operation owns a claim. It may come back into the service. No thread identity tells the service
//! that, so each hook and the policy are handed a [`CallChain`], and [`Service::within`](super::Service::within) gives the
//! operations that know of it.

use core::any::Any;
use core::cell::Cell;
use core::fmt;

use super::{DeviceId, DeviceKey, DomainId, IommuKey, Operation};

/// The claims above a callback: that of the operation that calls, and those of the operations from whose callbacks that came.
#[derive(Clone, Copy, Default)]
pub struct CallChain<'a> {
    innermost: Option<&'a Frame<'a>>,
    attempt: Option<&'a Attempt>,
}

/// One try of a wait form: what it met is what the wait form waits for.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    pub(super) met: Cell<Option<Obstacle>>,
    /// How often the try itself, or what its callbacks nested, has given something back.
    pub(super) ends: Cell<u64>,
}

/// What made an operation `Busy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// The group of the device that is registered under this key is claimed.
    Group(DeviceKey),
    /// This registration is on its way in or out.
    Registration(DeviceId),
    /// The domain is being destroyed, or held.
    Domain(DomainId),
    /// The instance is being taken out of service.
    Instance(IommuKey),
    /// A driver has something that another operation gives back when it ends.
    Driver,
}

/// One running operation that has called out.
pub(super) struct Frame<'a> {
    pub(super) operation: Operation,
    /// Its place in the chain: 1 for the outermost.
    pub(super) level: u16,
    pub(super) above: CallChain<'a>,
    /// The groups that it lends to nested operations, as [`claim`](super::claim) keeps them: this file knows no group.
    pub(super) lent: &'a dyn Any,
}

impl<'a> CallChain<'a> {
    /// The call comes from outside.
    pub(super) const NONE: CallChain<'static> = CallChain { innermost: None, attempt: None };

    /// The chain of a callback of the operation `frame`.
    pub(super) const fn of(frame: &'a Frame<'a>) -> Self {
        Self { innermost: Some(frame), attempt: None }
    }

    /// The same, for one try of a wait form.
    pub(super) const fn trying(self, attempt: &'a Attempt) -> Self {
        Self { attempt: Some(attempt), ..self }
    }

    /// Whether the call waits where it meets something busy.
    pub(super) const fn waits(self) -> bool {
        self.attempt.is_some()
    }

    /// Notes what the call has met.
    pub(super) fn meet(self, obstacle: Obstacle) {
        if let Some(attempt) = self.attempt {
            attempt.met.set(Some(obstacle));
        }
    }

    /// Notes that the call has given something back. The attempts above have done so too: none of them waits for its own end.
    pub(super) fn count_end(self) {
        let mut next = Some(self);
        while let Some(chain) = next {
            if let Some(attempt) = chain.attempt {
                attempt.ends.set(attempt.ends.get().wrapping_add(1));
            }
            next = chain.innermost.map(|frame| frame.above);
        }
    }

    /// The frames, innermost first.
    pub(super) fn frames(self) -> impl Iterator<Item = &'a Frame<'a>> {
        core::iter::successors(self.innermost, |frame| frame.above.innermost)
    }

    /// How many frames there are.
    pub(super) fn depth(self) -> u16 {
        self.innermost.map_or(0, |frame| frame.level)
    }
}

impl fmt::Debug for CallChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.frames().map(|frame| frame.operation)).finish()
    }
}
