//! Who may own what: the group's one owner, the policy's yes, the hold on a domain (contract I-10, I-11, A-11).

use super::device::{Device, DeviceState};
use super::domain::Domain;
use super::error::{Cause, ConflictReason, Operation};
use super::guarded;
use super::identity::{DeviceId, DomainId};
use super::policy::{PolicyRequest, Why};
use super::service::Service;
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

impl<P: Platform> Service<P> {
    /// Refuses what the group's ownership forbids (contract I-11).
    pub(super) fn check_owner(
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
    pub(super) fn ask(
        &self,
        held: &mut Held<'_, Unlocked>,
        subjects: &[Device],
        domain: &Domain<P>,
    ) -> Result<(), Cause> {
        let denied = || Cause::Denied { domain: domain.label().clone() };
        for device in subjects {
            let request = PolicyRequest { device, domain: domain.label(), why: Why::Assign };
            if !self.permits(held, &request) {
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
                    if !self.permits(held, &request) {
                        return Err(denied());
                    }
                }
            }
        }
        Ok(())
    }

    /// The policy's answer.
    pub(super) fn permits(&self, held: &mut Held<'_, Unlocked>, request: &PolicyRequest<'_>) -> bool {
        let policy = self.policy.call(held);
        guarded::verdict(|| policy.allows(request))
    }

    fn mate_in_fault(&self, held: &mut Held<'_, Unlocked>, id: DeviceId) -> Option<Device> {
        let registry = self.registry.lock(held);
        let record = registry.device_by_id(id)?;
        match record.state.get() {
            // A device that is being added is not of this group yet: when it comes to join, it meets this claim, or finds
            // the new owner and asks for itself.
            DeviceState::Adding | DeviceState::Assigned(_) => None,
            DeviceState::Blocked | DeviceState::Quarantined => Some(record.device.clone()),
        }
    }

    pub(super) fn hold(&self, held: &mut Held<'_, Unlocked>, domain: &Domain<P>) -> Result<(), Cause> {
        let registry = self.registry.lock(held);
        let record =
            registry.domain(domain.id()).ok_or_else(|| Cause::DomainGone { domain: domain.label().clone() })?;
        if record.destroying.get() {
            return Err(Cause::Busy { running: Operation::DestroyDomain });
        }
        record.holds.set(record.holds.get().saturating_add(1));
        Ok(())
    }

    pub(super) fn unhold(&self, held: &mut Held<'_, Unlocked>, domain: &Domain<P>) {
        if cfg!(broken = "forgotten_hold") {
            return;
        }
        let registry = self.registry.lock(held);
        if let Some(record) = registry.domain(domain.id()) {
            record.holds.set(record.holds.get().saturating_sub(1));
        }
        // Whoever destroys the domain may wait for that; the claim's end, which follows, wakes.
    }
}
