//! Which groups a new device joins, and whether it may: one owner for all, and the policy where a live entry is shared
//! (contract I-11, A-6).

use crate::assign::{
    Cause, Claim, ConflictReason, Device, DomainId, Label, PolicyRequest, Service, Why, belong_together, shared_at,
};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// Chooses which of the claimed groups join the device's: those with a member that overlaps it by stream, bus or entry. Returns
/// the domain that owns them; two owners are refused.
pub(super) fn choose_joining(
    held: &mut Held<'_, Unlocked>,
    claim: &mut Claim<'_>,
    device: &Device,
) -> Result<Option<DomainId>, Cause> {
    let mut owner: Option<(DomainId, Label)> = None;
    let (mut conflict, level) = (None, claim.level);
    claim.others.iter_mut(|group| {
        let reason = group.members.iter().find_map(|member| belong_together(held, device, &member.device));
        group.set_joins(level, reason.is_some());
        let found = group.owner().filter(|_| reason.is_some());
        let assigned = group.members.iter().find(|member| member.state.get().owner().is_some());
        let name = assigned.or(group.members.front().get()).map(|member| member.device.label().clone());
        match (&owner, found.zip(name)) {
            (Some((one, _)), Some((two, with))) if *one != two => {
                let reason = reason.unwrap_or(ConflictReason::SharedBus);
                conflict.get_or_insert(Cause::GroupConflict { with, reason });
            }
            (None, found) => owner = found,
            _ => {}
        }
    });
    conflict.map_or(Ok(owner.map(|(owner, _)| owner)), Err)
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
