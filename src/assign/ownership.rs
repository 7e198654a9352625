//! Who may own what: the group's one owner, and the policy's yes (contract I-10, I-11, A-11).

use super::claim::{Claim, Request};
use super::device::{Device, DeviceState};
use super::domain::Domain;
use super::error::{Cause, ConflictReason, Operation};
use super::guarded;
use super::identity::{DeviceId, DomainId};
use super::nested::{Claims, Frame};
use super::policy::{PolicyRequest, Why};
use super::registry::{DeviceRecord, Registry};
use super::service::Service;
use super::steps::Steps;
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

const fn owned(state: DeviceState) -> Option<DomainId> {
    match state {
        DeviceState::Assigned(owner) => Some(owner),
        _ => None,
    }
}

/// Refuses what the group's ownership forbids (contract I-11), where an operation above may be changing it.
pub(super) fn check_owner<P: Platform>(
    registry: &Registry<P>,
    request: &Request<'_>,
    record: &DeviceRecord,
    subjects: &[Device],
    domain: &Domain<P>,
) -> Result<(), Cause> {
    let first = subjects.first().ok_or(Cause::Gone)?;
    if subjects.iter().any(Device::is_stray) {
        // Whatever the policy would say: nobody knows what it is (contract ).
        return Err(Cause::Stray);
    }
    let name = |id: DomainId| {
        registry.domain(id).map_or_else(|| domain.label().clone(), |record| record.domain.label().clone())
    };
    let is_subject = |id: DeviceId| subjects.iter().any(|subject| subject.id() == id);
    let mut states = subjects.iter().filter_map(|subject| registry.registration(subject));
    match request.operation {
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
    let conflict = |mate: &Device| {
        let reason = first.meets(mate).unwrap_or(ConflictReason::SharedBus);
        Cause::GroupConflict { with: mate.label().clone(), reason }
    };
    if let Some(mate) = request.above.bound_elsewhere(registry, record, domain.id()) {
        return Err(conflict(mate));
    }
    // Any mate that is to stay where it is must be where the subjects go.
    let elsewhere = |mate: &&DeviceRecord| owned(mate.state.get()).is_some_and(|owner| owner != domain.id());
    let mut mates = registry.members(record).filter(|mate| !is_subject(mate.device.id()));
    if let Some(mate) = mates.find(elsewhere) {
        return Err(conflict(&mate.device));
    }
    // A whole-group assign meets owned members among its own subjects.
    if request.operation == Operation::Assign
        && let Some((member, owner)) = registry.owner(record)
        && owner != domain.id()
    {
        return Err(conflict(&member.device));
    }
    Ok(())
}

impl<P: Platform> Service<P> {
    /// Asks the policy about every subject.
    pub(super) fn ask(
        &self,
        held: &mut Held<'_, Unlocked>,
        frame: &Frame<'_>,
        domain: &Domain<P>,
    ) -> Result<(), Cause> {
        let claims = Claims::of(frame);
        let may = |device| PolicyRequest { device, domain: domain.label(), why: Why::Assign, claims };
        let allowed = frame.subjects.iter().all(|device| self.permits(held, &may(device)));
        if allowed { Ok(()) } else { Err(Cause::Denied { domain: domain.label().clone() }) }
    }

    /// Asks the policy about every mate whose DMA would go along through a shared entry, as the plans say.
    pub(super) fn ask_for_sharers(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &Claim,
        frame: &Frame<'_>,
        domain: &Domain<P>,
        steps: &Steps,
    ) -> Result<(), Cause> {
        let claims = Claims::of(frame);
        for (with, id) in steps.sharers() {
            let Some(with) = frame.subjects.iter().find(|subject| subject.id() == with) else { continue };
            // Who is not a member is being added: when it comes to join, it meets this claim, or finds the new owner and
            // asks for itself. Who has an owner has it already.
            let mate = claim.members.find(id).filter(|(_, state)| owned(*state).is_none());
            let mate = mate.filter(|_| frame.subjects.iter().all(|subject| subject.id() != id));
            let Some((device, _)) = mate else { continue };
            let request = PolicyRequest { device, domain: domain.label(), why: Why::Shares { with }, claims };
            if !self.permits(held, &request) {
                return Err(Cause::Denied { domain: domain.label().clone() });
            }
        }
        Ok(())
    }

    /// The policy's answer.
    pub(super) fn permits(&self, held: &mut Held<'_, Unlocked>, request: &PolicyRequest<'_>) -> bool {
        let policy = self.policy.call(held);
        guarded::verdict(|| policy.allows(request))
    }
}
