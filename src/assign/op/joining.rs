//! Which groups a new device joins, and whether it may: one owner for all, and the policy where a live entry is shared
//! (contract I-11, A-6).

use crate::assign::{
    Cause, Claim, ConflictReason, Device, DomainId, PolicyRequest, Service, Why, shared_at, why_joined,
};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// The domain that owns the claimed groups that the device's will join: those with a member that overlaps it by stream, bus or
/// entry. Two owners are refused.
pub(super) fn owner_of_joined(
    held: &mut Held<'_, Unlocked>,
    claim: &Claim<'_>,
    device: &Device,
) -> Result<Option<DomainId>, Cause> {
    let mut owner: Option<DomainId> = None;
    for group in claim.others.iter() {
        let Some((reason, found)) = why_joined(held, device, group).zip(group.owner()) else { continue };
        let assigned = group.members.iter().find(|member| member.state.get().owner().is_some());
        if owner.is_some_and(|owner| owner != found)
            && let Some(mate) = assigned.or(group.members.front().get())
        {
            return Err(Cause::GroupConflict { with: mate.device.label().clone(), reason });
        }
        owner = Some(found);
    }
    Ok(owner)
}

impl<P: Platform> Service<P> {
    /// Asks the policy whether a device may share an entry of an owner (contract I-11): one that is live, or that an operation
    /// above will turn. Of a group that is on its way from one domain to another both are asked for: the entry is live in the
    /// first, and will be in the second.
    pub(super) fn ask_to_share(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &mut Claim<'_>,
        device: &Device,
        owner: DomainId,
    ) -> Result<(), Cause> {
        let shared = {
            let members = claim.others.iter().flat_map(|group| group.members.iter());
            let mut moving = members.filter(|member| member.state.get().owner().is_some() || member.work.get() != 0);
            moving.find_map(|member| {
                let iommu = shared_at(held, device, &member.device)?;
                Some((iommu, member.device.clone(), member.state.get().owner()))
            })
        };
        let Some((iommu, with, now)) = shared else { return Ok(()) };
        claim.set_target(owner);
        let target = claim.target(owner);
        claim.others.iter_mut(|group| {
            if why_joined(held, device, group).is_some() {
                group.target = group.target.or(target);
            }
        });
        for domain in now.filter(|now| *now != owner).into_iter().chain([owner]) {
            let label = self.registry.lock(held).domain(domain).map(|record| record.domain.label().clone());
            let allowed = label.is_some_and(|domain| {
                claim.call_out(|chain| {
                    let why = Why::Shares { with: &with };
                    self.permits(held, &PolicyRequest { device, domain: &domain, why, chain })
                })
            });
            if !allowed {
                let reason = ConflictReason::SharedStream(iommu);
                return Err(Cause::GroupConflict { with: with.label().clone(), reason });
            }
        }
        Ok(())
    }
}
