//! Devices that get other streams and stay with their owners: block, register anew, restore (contract C-18).
//!
//! A registration's streams never change, so that a device whose streams do is removed and added under the same key. What makes
//! one operation of that: the domains are held meanwhile, so that none ends; a device that somebody had is quarantined until
//! it is back, so that whoever takes it in between gets it quiesced and reset (contract I-14); and where a device cannot be
//! removed, those that were are put back as they were.

use alloc::vec::Vec;

use super::moves::{Move, choose_movers};
use super::on_all_iommus::Power;
use crate::assign::{
    CallChain, Cause, Claim, Device, DeviceSpec, DeviceState, Domain, Error, Instance, Label, Lacks, Left, Member,
    Operation, Registry, Removal, Service,
};
use crate::few;
use crate::sync::Platform;
use crate::sync::broken::broken;
use crate::sync::order::Held;

/// What became of a device that was to be registered anew.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Reregistered {
    /// The handle until now: it answers [`Cause::Gone`], unless its removal failed.
    pub before: Device,
    /// The device that is registered under the key now, if one is.
    pub device: Option<Device>,
    /// Whether all went well: it is registered, and its owner has it, if it had one.
    pub result: Result<(), Error>,
}

/// A device in the operation.
struct Entry<P: Platform> {
    before: Device,
    /// Its owner, on which the operation has a hold.
    owner: Option<Domain<P>>,
    /// In which state it is registered anew.
    state: DeviceState,
    /// As it was offered.
    spec: DeviceSpec,
    is_removed: bool,
    device: Option<Device>,
    result: Result<(), Error>,
}

/// It carries over what its owner left in it.
const UNCLEAN: DeviceState = DeviceState::Quarantined(Lacks { drain: false, reset: true });

/// The first of some devices that has streams at an IOMMU.
fn first_at(devices: &[Device], instance: &Instance) -> Label {
    let first = devices.iter().find(|device| device.attachment_to(instance).is_some());
    first.map_or_else(|| Label::of_iommu(instance.key), |device| device.label().clone())
}

impl<P: Platform> Service<P> {
    /// Registers devices anew, with other streams under the same keys, and gives each back to the domain that owned it,
    /// without a reset: their owners stay the same.
    ///
    /// Each device is removed, children before parents, so that its streams are in fault and have drained; `release` of its
    /// hooks is called. Then `change` does what gives the devices their new streams, and tells how each is offered now. Each is
    /// added, parents before children, and assigned to its owner. Domains that own one cannot be destroyed meanwhile
    /// ([`Cause::Busy`]). `devices` are parents before children; a device without a spec of its key stays out.
    ///
    /// Where a device cannot be removed all the same ([`Cause::HasChildren`], a sync that times out, another operation that came
    /// in between), `change` is not called: those that were removed are registered again as they were, and go back to their
    /// owners.
    ///
    /// To other callers this is a removal, an add and an assign of each device, and they may come in between. Whose removal is
    /// asked for while it is being removed stays out ([`Cause::Removed`]). `again` is asked where an add or an assign meets
    /// another operation: whether that is tried once more, after some time that it lets pass. Where it says no, the device is
    /// out, or quarantined ([`Cause::Busy`]).
    ///
    /// # Errors
    ///
    /// [`Cause::Gone`], [`Cause::Busy`], [`Cause::StillInUse`] of one of them, [`Cause::Iommu`] with `NoPower`,
    /// [`Cause::OutOfMemory`]: nothing was done. Everything else is in the results, in the order of `devices`. A device that its
    /// owner could not be given back ([`Left::Unchanged`], [`Left::Quarantined`]) is quarantined, and an assign resets it
    /// first.
    ///
    /// # Context
    ///
    /// Waiting context; `change` and `again` are called with no lock held, and may use the service. Contract C-18, I-14.
    pub fn reregister(
        &self,
        devices: &[Device],
        change: &mut dyn FnMut() -> Vec<DeviceSpec>,
        again: &mut dyn FnMut() -> bool,
    ) -> Result<Vec<Reregistered>, Error> {
        let mut entries = self.entries(devices)?;
        let mut results = Vec::new();
        if let (Err(_), Some(first)) = (results.try_reserve_exact(entries.len()), devices.first()) {
            return Err(Error::unchanged(Operation::Remove, first.label().clone(), Cause::OutOfMemory));
        }
        self.check_all(devices)?;
        // From several devices a failure on the way could not be undone without power.
        let power = Power::of(&mut Held::enter(), devices.iter()).map_err(|(instance, error)| {
            let (iommu, subject) = (instance.key, first_at(devices, &instance));
            Error::unchanged(Operation::Remove, subject, Cause::Iommu { iommu, error })
        })?;
        let all_removed = entries.iter_mut().rev().all(|entry| self.clear_out(entry));
        let specs = if all_removed { change() } else { Vec::new() };
        for entry in entries.iter_mut().filter(|entry| entry.is_removed) {
            let spec =
                if all_removed { specs.iter().find(|spec| spec.key == entry.spec.key) } else { Some(&entry.spec) };
            let stay_out = |cause| {
                let subject = entry.before.label().clone();
                Err(Error { operation: Operation::Add, subject, cause, left: Left::Removed })
            };
            let result = match spec {
                // Whoever asked for its removal meanwhile was told that it goes (contract C-2).
                _ if entry.before.is_unwanted() && !broken!("mark_passed_over") => stay_out(Cause::Removed),
                Some(spec) => self.bring_back(spec, entry.state, entry.owner.as_ref(), &mut entry.device, again),
                None => stay_out(Cause::NotFound),
            };
            // Why it was not registered anew is the better reason.
            entry.result = core::mem::replace(&mut entry.result, Ok(())).and(result);
        }
        {
            let mut held = Held::enter();
            let registry = self.registry.lock(&mut held);
            entries.iter().filter_map(|entry| entry.owner.as_ref()).for_each(|owner| registry.unhold(owner.id()));
        }
        power.release(&mut Held::enter());
        self.count_end();
        for Entry { before, device, result, .. } in entries {
            few::push_within(&mut results, Reregistered { before, device, result });
        }
        Ok(results)
    }

    /// Refuses while one of them is not there, is busy, or has calls inside: nothing has changed then.
    fn check_all(&self, devices: &[Device]) -> Result<(), Error> {
        let mut held = Held::enter();
        let registry = self.registry.lock(&mut held);
        let checked = devices.iter().try_for_each(|device| {
            let refuse = |cause| Error::unchanged(Operation::Remove, device.label().clone(), cause);
            let record = registry.registration(device).filter(|record| record.is_shown() && !record.is_leaving());
            let record = record.ok_or_else(|| refuse(Cause::Gone))?;
            let leader = registry.leader_of(record);
            if leader.is_out() {
                return Err(refuse(registry.busy(leader, CallChain::NONE)));
            }
            match device.in_flight() {
                0 => Ok(()),
                calls => Err(refuse(Cause::StillInUse { calls })),
            }
        });
        drop(registry);
        Error::reported(checked)
    }

    fn entries(&self, devices: &[Device]) -> Result<Vec<Entry<P>>, Error> {
        let mut entries = Vec::new();
        for device in devices {
            let refuse = |cause| Error::unchanged(Operation::Remove, device.label().clone(), cause);
            let entry = Entry {
                before: device.clone(),
                owner: None,
                state: DeviceState::Blocked,
                spec: device.spec(&mut Held::enter()).map_err(refuse)?,
                is_removed: false,
                device: None,
                result: Ok(()),
            };
            few::push(&mut entries, entry).map_err(|_| refuse(Cause::OutOfMemory))?;
        }
        Ok(entries)
    }

    /// Removes a device, and keeps its owner. Says whether it is out.
    fn clear_out(&self, entry: &mut Entry<P>) -> bool {
        let Entry { before, owner, state, is_removed, result, .. } = entry;
        let removed = self.remove_looking(before, &mut |registry, record| {
            let domain = registry.owner_of(record);
            if let Some(domain) = domain {
                registry.hold(domain)?;
            }
            *owner = domain.cloned();
            *state = match record.state.get() {
                DeviceState::Assigned(_) | DeviceState::Quarantined(_) if !broken!("clean_in_between") => UNCLEAN,
                _ => DeviceState::Blocked,
            };
            Ok(())
        });
        match removed {
            Ok(Removal::Done | Removal::StillReachable(_)) => *is_removed = true,
            Ok(Removal::Pending) => {}
            Err(error) => {
                // An IOMMU of it is out of service.
                *is_removed = error.left == Left::Removed;
                *result = Err(error);
            }
        }
        *is_removed
    }

    fn bring_back(
        &self,
        spec: &DeviceSpec,
        state: DeviceState,
        owner: Option<&Domain<P>>,
        device: &mut Option<Device>,
        again: &mut dyn FnMut() -> bool,
    ) -> Result<(), Error> {
        let refuse = |cause| Error::unchanged(Operation::Add, spec.label.clone(), cause);
        let add = || self.add_as(CallChain::NONE, spec.copied().map_err(refuse)?, state);
        let added = Error::while_busy(again, add).map_err(|error| match error.left {
            Left::Unchanged => Error { left: Left::Removed, ..error },
            _ => error,
        })?;
        *device = Some(added.clone());
        owner.map_or(Ok(()), |owner| Error::while_busy(again, || self.restore(&added, owner)))
    }

    /// Assigns a device that was registered anew to the domain that owned it, which left in it what it carries.
    fn restore(&self, device: &Device, domain: &Domain<P>) -> Result<(), Error> {
        let asked = Move { operation: Operation::Assign, device, whole_group: false, domain };
        let change = |claim: &Claim<'_>, from, to| {
            // Where another has had it meanwhile, it carries that one's state, and is reset as any other.
            let is_own = |member: &&Member| member.untouched.get() || broken!("touched_restored");
            let own = claim.member(device.id()).filter(is_own).filter(|member| member.state.get() == from);
            own.inspect(|member| member.state.set(to));
        };
        let check = |registry: &Registry<P>, claim: &mut Claim<'_>| {
            change(claim, UNCLEAN, DeviceState::Blocked);
            choose_movers(registry, claim, &asked).inspect_err(|_| change(claim, DeviceState::Blocked, UNCLEAN))
        };
        self.operate(CallChain::NONE, device, Operation::Assign, check, |held, claim, crew| {
            let prepared = self.prepare(held, claim, crew, domain);
            let moved = prepared.and_then(|()| self.carry_out_move(held, claim, crew, domain));
            moved.inspect_err(|_| change(claim, DeviceState::Blocked, UNCLEAN))
        })
    }

    /// [`add`](Self::add) of a device that carries what an owner left in it: no instant is left in which another gets it so.
    pub(crate) fn add_unclean(&self, spec: DeviceSpec) -> Result<Device, Error> {
        self.add_as(CallChain::NONE, spec, UNCLEAN)
    }

    /// [`add`](Self::add), with a spec that its caller keeps for another try.
    pub(crate) fn add_copy(&self, spec: &DeviceSpec) -> Result<Device, Error> {
        let refuse = |cause| Error::unchanged(Operation::Add, spec.label.clone(), cause);
        self.add(spec.copied().map_err(refuse)?)
    }
}

#[cfg(test)]
#[path = "reregistration_tests.rs"]
#[expect(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests;
