//! The frame of an operation on a group: claim, work, put back, and carry out what was asked for meanwhile.

use super::on_all_iommus::{Crew, Failure};
use super::removal::Outcome;
use crate::assign::{CallChain, Cause, Claim, Device, Error, Left, Operation, Registry, Service};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

impl<P: Platform> Service<P> {
    /// Runs an operation. `check` looks at the claimed group under the registry's lock, marks the members that the operation is
    /// about, and refuses what cannot be; `work` does it, with nothing locked.
    pub(super) fn operate<'a, T>(
        &self,
        above: CallChain<'a>,
        device: &Device,
        operation: Operation,
        mut check: impl FnMut(&Registry<P>, &mut Claim<'a>) -> Result<(), Cause>,
        work: impl FnOnce(&mut Held<'_, Unlocked>, &mut Claim<'a>, &mut Crew) -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let mut held = Held::enter();
        let mut claim = match self.claim(&mut held, above, device, operation, &mut check) {
            Ok(claim) => claim,
            Err(cause) => return Error::reported(Err(Error::unchanged(operation, device.label().clone(), cause))),
        };
        let done = match Crew::of(&claim) {
            Ok(mut crew) => work(&mut held, &mut claim, &mut crew),
            Err(cause) => Err((cause, Left::Unchanged)),
        };
        Error::reported(self.end(&mut held, claim, done))
    }

    /// Ends an operation: what it came to, or that a removal overtook it. Not inlined: its frame is not beside that of the work.
    #[inline(never)]
    pub(super) fn end<T>(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: Claim<'_>,
        done: Result<T, Failure>,
    ) -> Result<T, Error> {
        let (operation, device, above) = (claim.operation, claim.device.clone(), claim.above);
        let marked = self.put_back(held, claim);
        let fail = |(cause, left)| Error { operation, subject: device.label().clone(), cause, left };
        if marked.is_nothing() {
            return done.map_err(fail);
        }
        let mut overtaken: Option<Outcome> = None;
        self.carry_out(held, marked, above, &mut |removed, outcome| {
            if removed.id() == device.id() {
                overtaken = Some(outcome);
            } else {
                outcome.log();
            }
        });
        overtaken.map_or_else(|| done.map_err(fail), |outcome| Err(outcome.overtook(operation, &device)))
    }
}
