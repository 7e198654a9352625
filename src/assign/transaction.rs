//! Moves: plan on every IOMMU, commit on every IOMMU, or end in fault (contract A-1, I-13, I-14).

use alloc::sync::Arc;
use alloc::vec::Vec;

#[cfg(broken = "early_end")]
use super::claim::Claim;
use super::device::{Device, DeviceState};
use super::domain::Domain;
use super::error::{Cause, ConflictReason, Error, Left, Operation};
use super::identity::{DeviceId, DomainId, Label};
use super::iommu::{Iommu, Prepared};
use super::policy::{HookContext, PolicyRequest, Why};
use super::removal::Outcome;
use super::service::{Deassigned, Service};
use super::space::AddressSpace;
use super::spec::IommuKey;
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};
use crate::sync::outside::Outside;

/// The devices of one operation, by the IOMMU that must act for them.
pub(super) struct Steps(Vec<Step>);

struct Step {
    key: IommuKey,
    iommu: Outside<Arc<dyn Iommu>>,
    devices: Vec<DeviceId>,
    prepared: Option<Prepared>,
}

impl Steps {
    /// What `subjects` need, with all memory reserved (contract A-8).
    pub(super) fn of(subjects: &[Device]) -> Result<Self, Cause> {
        let mut steps: Vec<Step> = Vec::new();
        for device in subjects {
            for attachment in device.attachments() {
                let at = match steps.iter().position(|step| step.key == attachment.key) {
                    Some(at) => at,
                    None => {
                        let mut devices = Vec::new();
                        devices.try_reserve_exact(subjects.len()).map_err(|_| Cause::OutOfMemory)?;
                        steps.try_reserve(1).map_err(|_| Cause::OutOfMemory)?;
                        steps.push(Step {
                            key: attachment.key,
                            iommu: attachment.iommu.clone(),
                            devices,
                            prepared: None,
                        });
                        steps.len().saturating_sub(1)
                    }
                };
                if let Some(step) = steps.get_mut(at) {
                    step.devices.push(device.id());
                }
            }
        }
        // Every operation visits IOMMUs in one order (contract A-9).
        steps.sort_unstable_by_key(|step| step.key);
        Ok(Self(steps))
    }

    /// Reserves on all IOMMUs, or on none.
    fn plan(&mut self, held: &mut Held<'_, Unlocked>, space: &AddressSpace) -> Result<(), Cause> {
        let mut failed = None;
        for step in &mut self.0 {
            match step.iommu.call(held).plan(&step.devices, space) {
                Ok(prepared) => step.prepared = Some(prepared),
                Err(error) => {
                    failed = Some(Cause::Iommu { iommu: step.key, error });
                    break;
                }
            }
        }
        failed.map_or(Ok(()), |cause| {
            self.abandon(held);
            Err(cause)
        })
    }

    /// Gives back what is reserved still.
    fn abandon(&mut self, held: &mut Held<'_, Unlocked>) {
        for step in &mut self.0 {
            if let Some(prepared) = step.prepared.take() {
                step.iommu.call(held).abandon(&step.devices, prepared);
            }
        }
    }

    /// Moves on all IOMMUs, or ends with all of them in fault.
    fn install(&mut self, held: &mut Held<'_, Unlocked>) -> Result<(), Cause> {
        let mut failed = None;
        for step in &mut self.0 {
            if let Some(prepared) = step.prepared.take()
                && let Err(error) = step.iommu.call(held).install(&step.devices, prepared)
            {
                failed = Some(Cause::Iommu { iommu: step.key, error });
                break;
            }
        }
        failed.map_or(Ok(()), |cause| {
            self.abandon(held);
            // The first failure is the one to tell; that one is in fault and what comes after it too.
            let _ = self.block(held);
            Err(cause)
        })
    }

    /// Puts the devices in fault on every IOMMU, also after one of them failed. Returns who keeps a shared entry live,
    /// and the first failure.
    pub(super) fn block(&self, held: &mut Held<'_, Unlocked>) -> (Vec<DeviceId>, Option<Cause>) {
        let mut sharers = Vec::new();
        let mut failed = None;
        for step in &self.0 {
            match step.iommu.call(held).block(&step.devices) {
                Ok(mut still) => sharers.append(&mut still),
                Err(error) => {
                    failed.get_or_insert(Cause::Iommu { iommu: step.key, error });
                }
            }
        }
        (sharers, failed)
    }

    /// Forgets the devices on every IOMMU, also after one of them failed. Returns the first failure.
    pub(super) fn withdraw(&self, held: &mut Held<'_, Unlocked>) -> Option<Cause> {
        let mut failed = None;
        for step in &self.0 {
            for device in &step.devices {
                if let Err(error) = step.iommu.call(held).withdraw(*device) {
                    failed.get_or_insert(Cause::Iommu { iommu: step.key, error });
                }
            }
        }
        failed
    }

    /// Puts the domain's flush list in order, before any context goes live (contract I-9).
    fn join<P: Platform>(&self, held: &mut Held<'_, Unlocked>, domain: &Domain<P>) -> Result<(), Cause> {
        let joined = self.0.iter().all(|step| domain.join(held, step.key, &step.iommu));
        if joined { Ok(()) } else { Err(Cause::OutOfMemory) }
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

    /// Whether [`assign`](Self::assign) would be refused now: the same checks and the same plan, given back at once.
    ///
    /// # Errors
    ///
    /// What `assign` would say.
    ///
    /// # Context
    ///
    /// Waiting context. Writes no register.
    pub fn test_assign(&self, device: &Device, domain: &Domain<P>) -> Result<(), Error> {
        let mut held = Held::enter();
        let held = &mut held;
        let (claim, mut subjects) = self.begin(held, device, Operation::Assign, false)?;
        let tested = self.prepare(held, Operation::Assign, &mut subjects, domain);
        let outcome = tested.map(|mut steps| {
            steps.abandon(held);
            self.unhold(held, domain);
        });
        match self.conclude(held, claim) {
            Outcome::Removed(_) => Err(Error::unchanged(Operation::Assign, device.label().clone(), Cause::Removed)),
            Outcome::Stays => {
                outcome.map_err(|cause| Error::unchanged(Operation::Assign, device.label().clone(), cause))
            }
        }
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
            Ok(steps) => {
                #[cfg(broken = "late_flush_list")]
                let late = Steps::of(&subjects);
                let moved = self.commit(held, operation, &subjects, steps);
                #[cfg(broken = "late_flush_list")]
                let _ = late.map(|late| late.join(held, domain));
                let state = if moved.is_ok() { DeviceState::Assigned(domain.id()) } else { DeviceState::Quarantined };
                self.settle(held, &subjects, state);
                self.unhold(held, domain);
                moved.map_err(|cause| fail(cause, Left::Quarantined))
            }
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
                    self.settle(held, &subjects, state);
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
    fn prepare(
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

    /// Refuses what the group's ownership forbids (contract I-11).
    fn check_owner(
        &self,
        held: &mut Held<'_, Unlocked>,
        operation: Operation,
        subjects: &[Device],
        domain: &Domain<P>,
    ) -> Result<(), Cause> {
        let registry = self.registry.lock(held);
        let first = subjects.first().ok_or(Cause::Gone)?;
        let record = registry.registration(first).ok_or(Cause::Gone)?;
        let name = |id: DomainId| {
            registry.domain(id).map_or_else(|| domain.label().clone(), |record| record.domain.label().clone())
        };
        let is_subject = |id: DeviceId| subjects.iter().any(|subject| subject.id() == id);
        let owned = |state| match state {
            DeviceState::Assigned(owner) => Some(owner),
            _ => None,
        };
        let mut mates = registry.members(record).filter(|mate| !is_subject(mate.device.id()));
        let mut states = subjects.iter().filter_map(|subject| registry.registration(subject));
        match operation {
            Operation::Reassign => {
                if states.all(|record| owned(record.state.get()).is_none()) {
                    return Err(Cause::NotAssigned);
                }
                if registry.owner(record).is_some_and(|(_, owner)| owner == domain.id()) {
                    return Err(Cause::AlreadyAssigned { domain: domain.label().clone() });
                }
            }
            _ => {
                if states.all(|record| owned(record.state.get()).is_some())
                    && let Some(owner) = owned(record.state.get())
                {
                    return Err(Cause::AlreadyAssigned { domain: name(owner) });
                }
            }
        }
        // Any mate that is to stay where it is must be where the subjects go.
        let elsewhere =
            |mate: &&super::registry::DeviceRecord| owned(mate.state.get()).is_some_and(|owner| owner != domain.id());
        if let Some(mate) = mates.find(elsewhere) {
            let reason = first.meets(&mate.device).unwrap_or(ConflictReason::SharedBus);
            return Err(Cause::GroupConflict { with: mate.device.label().clone(), reason });
        }
        // A whole-group assign meets owned members among its own subjects.
        if operation == Operation::Assign
            && let Some((member, owner)) = registry.owner(record)
            && owner != domain.id()
        {
            let reason = first.meets(&member.device).unwrap_or(ConflictReason::SharedBus);
            return Err(Cause::GroupConflict { with: member.device.label().clone(), reason });
        }
        Ok(())
    }

    /// Asks the policy about every subject, and about every mate whose DMA would go along through a shared entry.
    fn ask(&self, held: &mut Held<'_, Unlocked>, subjects: &[Device], domain: &Domain<P>) -> Result<(), Cause> {
        let denied = || Cause::Denied { domain: domain.label().clone() };
        for device in subjects {
            let request = PolicyRequest { device, domain: domain.label(), why: Why::Assign };
            if !self.policy.call(held).allows(&request) {
                return Err(denied());
            }
        }
        for with in subjects {
            for attachment in with.attachments() {
                for id in attachment.iommu.call(held).sharers(with.id()) {
                    if subjects.iter().any(|subject| subject.id() == id) {
                        continue;
                    }
                    let Some(device) = self.mate_in_fault(held, id) else { continue };
                    let request = PolicyRequest { device: &device, domain: domain.label(), why: Why::Shares { with } };
                    if !self.policy.call(held).allows(&request) {
                        return Err(denied());
                    }
                }
            }
        }
        Ok(())
    }

    fn mate_in_fault(&self, held: &mut Held<'_, Unlocked>, id: DeviceId) -> Option<Device> {
        let registry = self.registry.lock(held);
        let record = registry.device_by_id(id)?;
        (!matches!(record.state.get(), DeviceState::Assigned(_))).then(|| record.device.clone())
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
            hooks.quiesce(&context).map_err(|error| Cause::Hook { step: "quiesce", reason: error.0 })?;
            hooks.reset(&context).map_err(|error| Cause::Hook { step: "reset", reason: error.0 })?;
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
    fn settle(&self, held: &mut Held<'_, Unlocked>, subjects: &[Device], state: DeviceState) {
        let registry = self.registry.lock(held);
        for record in subjects.iter().filter_map(|device| registry.registration(device)) {
            registry.set_state(record, state);
        }
    }

    fn hold(&self, held: &mut Held<'_, Unlocked>, domain: &Domain<P>) -> Result<(), Cause> {
        let registry = self.registry.lock(held);
        let record =
            registry.domain(domain.id()).ok_or_else(|| Cause::DomainGone { domain: domain.label().clone() })?;
        if record.destroying.get() {
            return Err(Cause::Busy { running: Operation::DestroyDomain });
        }
        record.holds.set(record.holds.get().saturating_add(1));
        Ok(())
    }

    fn unhold(&self, held: &mut Held<'_, Unlocked>, domain: &Domain<P>) {
        if cfg!(broken = "forgotten_hold") {
            return;
        }
        let registry = self.registry.lock(held);
        if let Some(record) = registry.domain(domain.id()) {
            record.holds.set(record.holds.get().saturating_sub(1));
        }
        // Whoever destroys the domain may wait for that; the claim's end, which follows, wakes.
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
