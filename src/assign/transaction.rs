//! Moves: a claimed group goes from fault into a domain, between domains, and back (contract I-13, I-14).

use alloc::vec::Vec;

#[cfg(broken = "early_end")]
use super::claim::Claim;
use super::device::{Device, DeviceState};
use super::domain::Domain;
use super::error::{Cause, Error, Left, Operation};
use super::event::Event;
use super::guarded;
use super::identity::{DeviceId, Label};
use super::policy::HookContext;
use super::removal::Outcome;
use super::service::{Deassigned, Service};
use super::steps::Steps;
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

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
        self.move_in(device, domain, Operation::Assign, false)
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
        self.move_in(device, domain, Operation::Assign, true)
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
        self.move_in(device, domain, Operation::Reassign, false)
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
        self.move_in(device, domain, Operation::Reassign, true)
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
        self.move_out(device, false)
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
        self.move_out(device, true)
    }

    fn move_in(
        &self,
        device: &Device,
        domain: &Domain<P>,
        operation: Operation,
        whole_group: bool,
    ) -> Result<(), Error> {
        let mut held = Held::enter();
        let result = self.move_in_held(&mut held, device, domain, operation, whole_group);
        self.report(&result);
        result
    }

    fn move_in_held(
        &self,
        held: &mut Held<'_, Unlocked>,
        device: &Device,
        domain: &Domain<P>,
        operation: Operation,
        whole_group: bool,
    ) -> Result<(), Error> {
        let (claim, mut subjects) = self.begin(held, device, operation, whole_group)?;
        let fail = |cause, left| Error { operation, subject: device.label().clone(), cause, left };
        let result = match self.prepare(held, operation, &mut subjects, domain) {
            Err(cause) => Err(fail(cause, Left::Unchanged)),
            Ok(steps) => self
                .carry_out(held, operation, &subjects, domain, steps)
                .map_err(|cause| fail(cause, Left::Quarantined)),
        };
        match self.conclude(held, claim) {
            Outcome::Stays => result,
            Outcome::Removed(_) => Err(fail(Cause::Removed, Left::Removed)),
        }
    }

    fn move_out(&self, device: &Device, whole_group: bool) -> Result<Deassigned, Error> {
        let mut held = Held::enter();
        let held = &mut held;
        let result = self.move_out_held(held, device, whole_group);
        self.report(&result);
        result
    }

    fn move_out_held(
        &self,
        held: &mut Held<'_, Unlocked>,
        device: &Device,
        whole_group: bool,
    ) -> Result<Deassigned, Error> {
        let operation = Operation::Deassign;
        let (claim, mut subjects) = self.begin(held, device, operation, whole_group)?;
        let fail = |cause, left| Error { operation, subject: device.label().clone(), cause, left };
        self.retain(held, &mut subjects, |state| matches!(state, DeviceState::Assigned(_)));
        let result = if subjects.is_empty() {
            Err(fail(Cause::NotAssigned, Left::Unchanged))
        } else {
            match Steps::of(&subjects) {
                Err(cause) => Err(fail(cause, Left::Unchanged)),
                Ok(steps) => {
                    let (sharers, failed) = steps.block(held);
                    let failed = failed.or_else(|| Self::cleanse(held, &subjects).err());
                    let state = if failed.is_none() { DeviceState::Blocked } else { DeviceState::Quarantined };
                    #[cfg(broken = "early_end")]
                    drop(self.conclude(held, Claim { device: device.clone() }));
                    self.settle(held, &subjects, state, None);
                    failed.map_or_else(
                        || Ok(Deassigned { still_reachable: self.labels(held, sharers) }),
                        |cause| Err(fail(cause, Left::Quarantined)),
                    )
                }
            }
        };
        match self.conclude(held, claim) {
            Outcome::Stays => result,
            Outcome::Removed(_) => Err(fail(Cause::Removed, Left::Removed)),
        }
    }

    /// All that can fail without a register write: states, group, policy, the IOMMUs' plans. Holds the domain when it
    /// succeeds.
    pub(super) fn prepare(
        &self,
        held: &mut Held<'_, Unlocked>,
        operation: Operation,
        subjects: &mut Vec<Device>,
        domain: &Domain<P>,
    ) -> Result<Steps, Cause> {
        let wanted = domain.id();
        let reassigning = operation == Operation::Reassign;
        self.check_owner(held, operation, subjects, domain)?;
        self.retain(held, subjects, |state| match state {
            DeviceState::Assigned(owner) => reassigning && owner != wanted,
            DeviceState::Blocked | DeviceState::Quarantined => !reassigning,
            DeviceState::Adding => false,
        });
        let mut steps = Steps::of(subjects)?;
        self.ask(held, subjects, domain)?;
        self.hold(held, domain)?;
        let planned = match steps.plan(held, domain.space()) {
            Ok(()) if cfg!(broken = "late_flush_list") => Ok(()),
            Ok(()) => steps.join(held, domain).inspect_err(|_| steps.abandon(held)),
            Err(cause) => Err(cause),
        };
        match planned {
            Ok(()) => Ok(steps),
            Err(cause) => {
                self.unhold(held, domain);
                Err(cause)
            }
        }
    }

    /// Everything after the plan: the register writes, the new state, the end of the hold on the domain.
    pub(super) fn carry_out(
        &self,
        held: &mut Held<'_, Unlocked>,
        operation: Operation,
        subjects: &[Device],
        domain: &Domain<P>,
        steps: Steps,
    ) -> Result<(), Cause> {
        #[cfg(broken = "late_flush_list")]
        let late = Steps::of(subjects);
        let moved = self.commit(held, operation, subjects, steps);
        #[cfg(broken = "late_flush_list")]
        let _ = late.map(|late| late.join(held, domain));
        let state = if moved.is_ok() { DeviceState::Assigned(domain.id()) } else { DeviceState::Quarantined };
        self.settle(held, subjects, state, Some(domain.label()));
        self.unhold(held, domain);
        moved
    }

    /// The register writes.
    fn commit(
        &self,
        held: &mut Held<'_, Unlocked>,
        operation: Operation,
        subjects: &[Device],
        mut steps: Steps,
    ) -> Result<(), Cause> {
        if operation == Operation::Reassign {
            let failed = steps.block(held).1.or_else(|| Self::cleanse(held, subjects).err());
            if let Some(cause) = failed {
                steps.abandon(held);
                return Err(cause);
            }
        }
        steps.install(held)
    }

    /// Lets the source stop and reset its devices, which are in fault.
    fn cleanse(held: &mut Held<'_, Unlocked>, subjects: &[Device]) -> Result<(), Cause> {
        for device in subjects {
            let context = HookContext { device };
            let hooks = device.hooks().call(held);
            guarded::hook(|| hooks.quiesce(&context))
                .map_err(|error| Cause::Hook { step: "quiesce", reason: error.0 })?;
            guarded::hook(|| hooks.reset(&context)).map_err(|error| Cause::Hook { step: "reset", reason: error.0 })?;
        }
        Ok(())
    }

    /// Keeps the subjects whose state fits.
    fn retain(&self, held: &mut Held<'_, Unlocked>, subjects: &mut Vec<Device>, fits: impl Fn(DeviceState) -> bool) {
        // `retain` drops handles: never the last one, for the registry and the claim's owner have their own.
        let registry = self.registry.lock(held);
        subjects.retain(|device| registry.registration(device).is_some_and(|record| fits(record.state.get())));
    }

    /// Ends a move: the subjects are in `state` now.
    pub(super) fn settle(
        &self,
        held: &mut Held<'_, Unlocked>,
        subjects: &[Device],
        state: DeviceState,
        domain: Option<&Label>,
    ) {
        {
            let registry = self.registry.lock(held);
            for record in subjects.iter().filter_map(|device| registry.registration(device)) {
                registry.set_state(record, state);
            }
        }
        for device in subjects.iter().map(|device| device.label().clone()) {
            let event = match (state, domain) {
                (DeviceState::Assigned(_), Some(domain)) => Event::Assigned { device, domain: domain.clone() },
                (DeviceState::Quarantined, _) => Event::Quarantined { device },
                _ => Event::Deassigned { device },
            };
            self.tell(held, &event);
        }
    }

    fn labels(&self, held: &mut Held<'_, Unlocked>, ids: Vec<DeviceId>) -> Vec<Label> {
        let mut labels = Vec::new();
        for id in ids {
            let label = self.registry.lock(held).device_by_id(id).map(|record| record.device.label().clone());
            labels.extend(label.filter(|label| !labels.contains(label)));
        }
        labels
    }
}
