//! Moves: a claimed group goes from fault into a domain, between domains, and back (contract I-13, I-14).

use alloc::vec::Vec;

use super::claim::{Claim, End, Members, Request};
use super::device::{Device, DeviceState};
use super::domain::Domain;
use super::error::{Cause, Error, Left, Operation};
use super::event::Event;
use super::guarded;
use super::identity::{DeviceId, Label};
use super::nested::{Claims, Frame};
use super::ownership::check_owner;
use super::policy::HookContext;
use super::service::{Deassigned, Service};
use super::steps::Steps;
use crate::few::Few;
use crate::sync::Platform;
use crate::sync::broken::broken;
use crate::sync::order::{Held, Unlocked};

/// In which state a move into `domain` leaves its subjects.
pub(super) fn state_after<P: Platform>(result: &Result<(), (Cause, Left)>, domain: &Domain<P>) -> Option<DeviceState> {
    match result {
        Ok(()) => Some(DeviceState::Assigned(domain.id())),
        Err((_, Left::Quarantined)) => Some(DeviceState::Quarantined),
        Err(_) => None,
    }
}

impl<P: Platform> Service<P> {
    /// Lets `domain`'s tables translate the DMA of `device`, and of that device alone.
    ///
    /// # Errors
    ///
    /// [`Cause::GroupConflict`] when a device of its group has another owner, [`Cause::AlreadyAssigned`],
    /// [`Cause::Denied`] by the policy, [`Cause::Busy`], [`Cause::Gone`], and what the IOMMUs say: nothing is changed
    /// then, and no register written. After the first write only a failure of the hardware is left: the device is
    /// quarantined then.
    ///
    /// # Context
    ///
    /// Waiting context. Contract I-4, I-11, I-13, A-1.
    pub fn assign(&self, device: &Device, domain: &Domain<P>) -> Result<(), Error> {
        self.move_in(Claims::NONE, device, domain, Operation::Assign, false)
    }

    /// [`assign`](Self::assign), for all devices of `device`'s group at once.
    ///
    /// # Errors
    ///
    /// As for [`assign`](Self::assign).
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn assign_group(&self, device: &Device, domain: &Domain<P>) -> Result<(), Error> {
        self.move_in(Claims::NONE, device, domain, Operation::Assign, true)
    }

    /// Moves `device` from the domain that owns it to `domain`: it is in fault, drained, quiesced and reset in between
    /// (contract I-14).
    ///
    /// # Errors
    ///
    /// As for [`assign`](Self::assign), and [`Cause::NotAssigned`]. Anything that fails after the first write leaves
    /// the device quarantined.
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn reassign(&self, device: &Device, domain: &Domain<P>) -> Result<(), Error> {
        self.move_in(Claims::NONE, device, domain, Operation::Reassign, false)
    }

    /// [`reassign`](Self::reassign), for all assigned devices of `device`'s group at once.
    ///
    /// # Errors
    ///
    /// As for [`reassign`](Self::reassign).
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn reassign_group(&self, device: &Device, domain: &Domain<P>) -> Result<(), Error> {
        self.move_in(Claims::NONE, device, domain, Operation::Reassign, true)
    }

    /// Takes `device` from its domain: its streams fault, and what was in flight has drained.
    ///
    /// # Errors
    ///
    /// [`Cause::NotAssigned`], [`Cause::Busy`], [`Cause::Gone`]: nothing changed. [`Cause::Iommu`] with `SyncTimeout`
    /// and [`Cause::Hook`]: the device is quarantined.
    ///
    /// # Context
    ///
    /// Waiting context. Contract I-6, I-7, I-12.
    pub fn deassign(&self, device: &Device) -> Result<Deassigned, Error> {
        self.move_out(Claims::NONE, device, false)
    }

    /// [`deassign`](Self::deassign), for all assigned devices of `device`'s group at once.
    ///
    /// # Errors
    ///
    /// As for [`deassign`](Self::deassign).
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn deassign_group(&self, device: &Device) -> Result<Deassigned, Error> {
        self.move_out(Claims::NONE, device, true)
    }

    pub(super) fn move_in(
        &self,
        above: Claims<'_>,
        device: &Device,
        domain: &Domain<P>,
        operation: Operation,
        whole_group: bool,
    ) -> Result<(), Error> {
        let mut held = Held::enter();
        let request = Request { operation, device, whole_group, above };
        let result = self.move_in_held(&mut held, &request, domain);
        self.report(&result);
        result
    }

    fn move_in_held(
        &self,
        held: &mut Held<'_, Unlocked>,
        request: &Request<'_>,
        domain: &Domain<P>,
    ) -> Result<(), Error> {
        let (claim, subjects) = self.begin_move(held, request, domain)?;
        let result = {
            let frame = Self::frame(&claim, request, &subjects, Some(domain));
            match self.prepare(held, &claim, &frame, domain) {
                Err(cause) => Err((cause, Left::Unchanged)),
                Ok(steps) => self.carry_out(held, &frame, domain, steps).map_err(|cause| (cause, Left::Quarantined)),
            }
        };
        let fail = |(cause, left)| Error {
            operation: request.operation,
            subject: request.device.label().clone(),
            cause,
            left,
        };
        match self.end_move(held, claim, &subjects, domain, state_after(&result, domain), request.above) {
            None => result.map_err(fail),
            Some(left) => Err(fail((Cause::Removed, left))),
        }
    }

    /// Claims for a move into `domain`, and holds that: states and owners allow it.
    pub(super) fn begin_move(
        &self,
        held: &mut Held<'_, Unlocked>,
        request: &Request<'_>,
        domain: &Domain<P>,
    ) -> Result<(Claim, Few<Device>), Error> {
        let wanted = domain.id();
        let reassigning = request.operation == Operation::Reassign;
        self.begin(held, request, |registry, record, subjects| {
            check_owner(registry, request, record, subjects, domain)?;
            // What is dropped here is never the last handle: the registry has its own.
            subjects.retain(|device| match registry.registration(device).map(|record| record.state.get()) {
                Some(DeviceState::Assigned(owner)) => reassigning && owner != wanted,
                Some(DeviceState::Blocked | DeviceState::Quarantined) => !reassigning,
                Some(DeviceState::Adding) | None => false,
            });
            registry.hold(domain)
        })
    }

    /// Ends what [`begin_move`](Self::begin_move) began, with the subjects in `state` if it has changed. Says what is left
    /// where a removal overtook it.
    pub(super) fn end_move(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: Claim,
        subjects: &[Device],
        domain: &Domain<P>,
        state: Option<DeviceState>,
        above: Claims<'_>,
    ) -> Option<Left> {
        if let Some(state) = state {
            self.tell_moved(held, subjects, state, Some(domain.label()));
        }
        let end = End { subjects, state, unhold: Some(domain.id()) };
        self.conclude(held, claim, end, above).overtaken()
    }

    /// Where a move that has joined `domain`'s flush list does not succeed: takes the instances from it that went before
    /// they stood there. Whoever unregistered them did not find them. A move that succeeds was faster than that.
    pub(super) fn leave_gone(&self, held: &mut Held<'_, Unlocked>, subjects: &[Device], domain: &Domain<P>) {
        for attachment in subjects.iter().flat_map(Device::attachments) {
            let is_there = self.registry.lock(held).instance(attachment.key, &attachment.iommu).is_some();
            if !is_there {
                domain.leave(held, &attachment.iommu);
            }
        }
    }

    pub(super) fn move_out(&self, above: Claims<'_>, device: &Device, whole_group: bool) -> Result<Deassigned, Error> {
        let mut held = Held::enter();
        let request = Request { operation: Operation::Deassign, device, whole_group, above };
        let result = self.move_out_held(&mut held, &request);
        self.report(&result);
        result
    }

    fn move_out_held(&self, held: &mut Held<'_, Unlocked>, request: &Request<'_>) -> Result<Deassigned, Error> {
        let (claim, subjects) = self.begin(held, request, |registry, _, subjects| {
            subjects.retain(|device| {
                let state = registry.registration(device).map(|record| record.state.get());
                matches!(state, Some(DeviceState::Assigned(_)))
            });
            if subjects.is_empty() { Err(Cause::NotAssigned) } else { Ok(()) }
        })?;
        let device = request.device;
        let fail = |cause, left| Error { operation: request.operation, subject: device.label().clone(), cause, left };
        let mut end = End::UNCHANGED;
        let result = match Steps::of(&subjects) {
            Err(cause) => Err(fail(cause, Left::Unchanged)),
            Ok(steps) => {
                let (mut sharers, failed) = steps.block(held);
                let frame = Self::frame(&claim, request, &subjects, None);
                let mut done = failed.map_or_else(|| Self::cleanse(held, &frame), Err);
                if done.is_ok() && !claim.members.are_all_among(&subjects) {
                    // A hook may have assigned a mate: who shares is asked again, at no access.
                    let (now, failed) = steps.block(held);
                    sharers = now;
                    done = failed.map_or(Ok(()), Err);
                }
                let done = done.and_then(|()| self.names(held, sharers, &claim.members));
                let state = if done.is_ok() { DeviceState::Blocked } else { DeviceState::Quarantined };
                if broken!("early_end") {
                    let early = Claim::new(device.clone(), Members::default(), false);
                    drop(self.conclude(held, early, End::UNCHANGED, Claims::NONE));
                }
                self.tell_moved(held, &subjects, state, None);
                end = End::in_state(&subjects, state);
                done.map(|still_reachable| Deassigned { still_reachable })
                    .map_err(|cause| fail(cause, Left::Quarantined))
            }
        };
        match self.conclude(held, claim, end, request.above).overtaken() {
            None => result,
            Some(left) => Err(fail(Cause::Removed, left)),
        }
    }

    /// All that is left to fail without a register write: the policy, the IOMMUs' plans.
    pub(super) fn prepare(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &Claim,
        frame: &Frame<'_>,
        domain: &Domain<P>,
    ) -> Result<Steps, Cause> {
        let mut steps = Steps::of(frame.subjects)?;
        self.ask(held, frame, domain)?;
        steps.plan(held, domain.space())?;
        let allowed = self.ask_for_sharers(held, claim, frame, domain, &steps);
        let mut joins = || if broken!("late_flush_list") { Ok(()) } else { steps.join(held, domain) };
        match allowed.and_then(|()| joins()) {
            Ok(()) => Ok(steps),
            Err(cause) => {
                steps.abandon(held);
                Err(cause)
            }
        }
    }

    /// Everything after the plan.
    pub(super) fn carry_out(
        &self,
        held: &mut Held<'_, Unlocked>,
        frame: &Frame<'_>,
        domain: &Domain<P>,
        mut steps: Steps,
    ) -> Result<(), Cause> {
        let moved = Self::write(held, frame, &mut steps);
        if broken!("late_flush_list") {
            let _ = steps.join(held, domain);
        }
        if moved.is_err() {
            self.leave_gone(held, frame.subjects, domain);
        }
        moved
    }

    /// The register writes.
    fn write(held: &mut Held<'_, Unlocked>, frame: &Frame<'_>, steps: &mut Steps) -> Result<(), Cause> {
        if frame.operation == Operation::Reassign {
            let ready = steps.cut(held).and_then(|()| Self::cleanse(held, frame));
            if let Err(cause) = ready {
                steps.abandon(held);
                return Err(cause);
            }
        }
        steps.install(held)
    }

    /// Lets the source stop and reset its devices, which are in fault.
    fn cleanse(held: &mut Held<'_, Unlocked>, frame: &Frame<'_>) -> Result<(), Cause> {
        for device in frame.subjects {
            let context = HookContext { device, claims: Claims::of(frame) };
            let hooks = device.hooks().call(held);
            guarded::hook(|| hooks.quiesce(&context))
                .map_err(|error| Cause::Hook { step: "quiesce", reason: error.0 })?;
            guarded::hook(|| hooks.reset(&context)).map_err(|error| Cause::Hook { step: "reset", reason: error.0 })?;
        }
        Ok(())
    }

    /// Tells of a move that the hardware has followed.
    pub(super) fn tell_moved(
        &self,
        held: &mut Held<'_, Unlocked>,
        subjects: &[Device],
        state: DeviceState,
        domain: Option<&Label>,
    ) {
        for device in subjects.iter().map(|device| device.label().clone()) {
            let event = match (state, domain) {
                (DeviceState::Assigned(_), Some(domain)) => Event::Assigned { device, domain: domain.clone() },
                (DeviceState::Quarantined, _) => Event::Quarantined { device },
                _ => Event::Deassigned { device },
            };
            self.tell(held, &event);
        }
    }

    /// What people call the devices `ids`, which are of a claimed group.
    pub(super) fn names(
        &self,
        held: &mut Held<'_, Unlocked>,
        mut ids: Few<DeviceId>,
        members: &Members,
    ) -> Result<Vec<Label>, Cause> {
        ids.sort_unstable();
        ids.dedup();
        let mut labels = Vec::new();
        labels.try_reserve_exact(ids.len()).map_err(|_| Cause::OutOfMemory)?;
        for id in ids {
            let label = members.find(id).map(|(device, _)| device.label().clone()).or_else(|| {
                let registry = self.registry.lock(held);
                registry.device_by_id(id).map(|record| record.device.label().clone())
            });
            labels.extend(label);
        }
        Ok(labels)
    }
}
