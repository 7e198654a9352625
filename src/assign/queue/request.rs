//! What can be asked for, and how it is carried out.

use alloc::vec::Vec;
use core::fmt;

use crate::assign::chain::Attempt;
use crate::assign::{
    CallChain, Cause, Deassigned, Device, DeviceKey, DeviceSpec, Domain, Error, Label, Operation, Quarantine, Removal,
    Service,
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
    Remove(DeviceKey),
    /// [`Service::remove_tree`].
    RemoveTree(DeviceKey),
}

/// The device that a request is about.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Target {
    /// This registration, and no later one under its key.
    Device(Device),
    /// Whoever is registered under the key when the request's turn comes: for a request behind the device's own add.
    Key(DeviceKey),
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
            Self::Deassign(_) | Self::DeassignGroup(_) | Self::Quarantine(..) => Operation::Deassign,
            Self::Reassign(..) | Self::ReassignGroup(..) => Operation::Reassign,
            Self::Remove(_) | Self::RemoveTree(_) => Operation::Remove,
        }
    }

    /// The device, by the key under which its requests keep their order.
    #[must_use]
    pub fn key(&self) -> DeviceKey {
        match self {
            Self::Add(spec) => spec.key,
            Self::Assign(target, _)
            | Self::AssignGroup(target, _)
            | Self::Deassign(target)
            | Self::DeassignGroup(target)
            | Self::Quarantine(target, _)
            | Self::Reassign(target, _)
            | Self::ReassignGroup(target, _) => target.key(),
            Self::Remove(key) | Self::RemoveTree(key) => *key,
        }
    }

    /// What people call the device, as far as the request knows.
    pub(super) fn label(&self) -> Label {
        match self {
            Self::Add(spec) => spec.label.clone(),
            Self::Assign(Target::Device(device), _)
            | Self::AssignGroup(Target::Device(device), _)
            | Self::Deassign(Target::Device(device))
            | Self::DeassignGroup(Target::Device(device))
            | Self::Quarantine(Target::Device(device), _)
            | Self::Reassign(Target::Device(device), _)
            | Self::ReassignGroup(Target::Device(device), _) => device.label().clone(),
            _ => Label::of_key(self.key()),
        }
    }

    /// Carries it out, in the try form. It can be tried again. `tries` counts what the tries give back.
    pub(super) fn carry_out(&self, service: &Service<P>, tries: &Attempt) -> Result<Answer, Error> {
        let device = |target: &Target| target.resolve(service).ok_or_else(|| self.refuse(Cause::NotFound));
        let service = service.within(CallChain::NONE.trying(tries));
        match self {
            Self::Add(spec) => service.add(copied(spec).map_err(|cause| self.refuse(cause))?).map(Answer::Added),
            Self::Assign(target, domain) => service.assign(&device(target)?, domain).map(done),
            Self::AssignGroup(target, domain) => service.assign_group(&device(target)?, domain).map(done),
            Self::Deassign(target) => service.deassign(&device(target)?).map(Answer::Deassigned),
            Self::DeassignGroup(target) => service.deassign_group(&device(target)?).map(Answer::Deassigned),
            Self::Quarantine(target, place) => service.quarantine(&device(target)?, *place).map(done),
            Self::Reassign(target, domain) => service.reassign(&device(target)?, domain).map(done),
            Self::ReassignGroup(target, domain) => service.reassign_group(&device(target)?, domain).map(done),
            Self::Remove(key) => service.remove(*key).map(Answer::Removed),
            Self::RemoveTree(key) => service.remove_tree(*key).map(Answer::Removed),
        }
    }

    fn refuse(&self, cause: Cause) -> Error {
        Error::unchanged(self.operation(), self.label(), cause)
    }
}

const fn done((): ()) -> Answer {
    Answer::Done
}

/// The spec again, for one try: add consumes it.
fn copied(spec: &DeviceSpec) -> Result<DeviceSpec, Cause> {
    let mut streams = Vec::new();
    streams.try_reserve_exact(spec.streams.len()).map_err(|_| Cause::OutOfMemory)?;
    streams.extend_from_slice(&spec.streams);
    let (label, source, hooks) = (spec.label.clone(), spec.source.clone(), spec.hooks.clone());
    Ok(DeviceSpec { streams, label, source, hooks, ..*spec })
}

impl Target {
    /// The device's key.
    #[must_use]
    pub fn key(&self) -> DeviceKey {
        match self {
            Self::Device(device) => device.key(),
            Self::Key(key) => *key,
        }
    }

    fn resolve<P: Platform>(&self, service: &Service<P>) -> Option<Device> {
        match self {
            Self::Device(device) => Some(device.clone()),
            Self::Key(key) => service.find(*key).map(|info| info.device),
        }
    }
}

impl From<&Device> for Target {
    fn from(device: &Device) -> Self {
        Self::Device(device.clone())
    }
}

impl From<DeviceKey> for Target {
    fn from(key: DeviceKey) -> Self {
        Self::Key(key)
    }
}

impl<P: Platform> fmt::Debug for Request<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.operation(), self.label())
    }
}
