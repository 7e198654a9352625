//! What can be asked for, and how it is carried out.

use core::fmt;

use crate::assign::chain::Attempt;
use crate::assign::{
    CallChain, Cause, Deassigned, Device, DeviceKey, DeviceSpec, Domain, Error, Label, Operation, Quarantine, Removal,
    Service, Target,
};
use crate::sync::Platform;

/// An operation to be carried out by the queue's worker. Each is the method of [`Service`] of the same name.
#[derive(Clone)]
#[non_exhaustive]
pub enum Request<P: Platform> {
    /// [`Service::add`].
    Add(DeviceSpec),
    /// [`Service::assign`].
    Assign(Target, Domain<P>),
    /// [`Service::assign_group`].
    AssignGroup(Target, Domain<P>),
    /// [`Service::deassign`].
    Deassign(Target),
    /// [`Service::deassign_group`].
    DeassignGroup(Target),
    /// [`Service::quarantine`].
    Quarantine(Target, Quarantine),
    /// [`Service::reassign`].
    Reassign(Target, Domain<P>),
    /// [`Service::reassign_group`].
    ReassignGroup(Target, Domain<P>),
    /// [`Service::remove`].
    Remove(Target),
    /// [`Service::remove_tree`].
    RemoveTree(Target),
}

/// What a request that was carried out says.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Answer {
    /// The device's handle.
    Added(Device),
    /// What a deassign left.
    Deassigned(Deassigned),
    /// It is done.
    Done,
    /// What a removal did.
    Removed(Removal),
}

impl<P: Platform> Request<P> {
    /// The operation.
    #[must_use]
    pub const fn operation(&self) -> Operation {
        match self {
            Self::Add(_) => Operation::Add,
            Self::Assign(..) | Self::AssignGroup(..) => Operation::Assign,
            Self::Deassign(_) | Self::DeassignGroup(_) => Operation::Deassign,
            Self::Quarantine(..) => Operation::Quarantine,
            Self::Reassign(..) | Self::ReassignGroup(..) => Operation::Reassign,
            Self::Remove(_) | Self::RemoveTree(_) => Operation::Remove,
        }
    }

    /// The device, by the key under which its requests keep their order.
    #[must_use]
    pub fn key(&self) -> DeviceKey {
        match self.target() {
            Ok(target) => target.key(),
            Err(spec) => spec.key,
        }
    }

    /// What people call the device, as far as the request knows.
    pub(super) fn label(&self) -> Label {
        match self.target() {
            Ok(target) => target.label(),
            Err(spec) => spec.label.clone(),
        }
    }

    /// The device, or what is to become one.
    const fn target(&self) -> Result<&Target, &DeviceSpec> {
        match self {
            Self::Add(spec) => Err(spec),
            Self::Assign(target, _)
            | Self::AssignGroup(target, _)
            | Self::Deassign(target)
            | Self::DeassignGroup(target)
            | Self::Quarantine(target, _)
            | Self::Reassign(target, _)
            | Self::ReassignGroup(target, _)
            | Self::Remove(target)
            | Self::RemoveTree(target) => Ok(target),
        }
    }

    /// Carries it out, in the try form. It can be tried again. `tries` counts what the tries give back.
    pub(super) fn carry_out(&self, service: &Service<P>, tries: &Attempt) -> Result<Answer, Error> {
        let device = |target: &Target| match target {
            Target::Device(device) => Ok(device.clone()),
            target => service.find(target.key()).map(|info| info.device).ok_or_else(|| self.refuse(Cause::NotFound)),
        };
        let service = service.within(CallChain::NONE.trying(tries));
        match self {
            Self::Add(spec) => service.add(spec.copied().map_err(|cause| self.refuse(cause))?).map(Answer::Added),
            Self::Assign(target, domain) => service.assign(&device(target)?, domain).map(done),
            Self::AssignGroup(target, domain) => service.assign_group(&device(target)?, domain).map(done),
            Self::Deassign(target) => service.deassign(&device(target)?).map(Answer::Deassigned),
            Self::DeassignGroup(target) => service.deassign_group(&device(target)?).map(Answer::Deassigned),
            Self::Quarantine(target, place) => service.quarantine(&device(target)?, *place).map(done),
            Self::Reassign(target, domain) => service.reassign(&device(target)?, domain).map(done),
            Self::ReassignGroup(target, domain) => service.reassign_group(&device(target)?, domain).map(done),
            Self::Remove(target) => service.remove(target.clone()).map(Answer::Removed),
            Self::RemoveTree(target) => service.remove_tree(target.clone()).map(Answer::Removed),
        }
    }

    fn refuse(&self, cause: Cause) -> Error {
        Error::unchanged(self.operation(), self.label(), cause)
    }
}

const fn done((): ()) -> Answer {
    Answer::Done
}

impl<P: Platform> fmt::Debug for Request<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.operation(), self.label())
    }
}
