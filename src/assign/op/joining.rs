//! Which groups a new device joins, and whether it may: one owner for all, and the policy where a live entry is shared
//! (contract I-11, A-6).

use alloc::sync::Arc;

use super::on_all_iommus::shares_entry;
use crate::assign::{
    Cause, Claim, ConflictReason, Device, DomainId, Groups, Instance, Label, PolicyRequest, Service, Why,
    belong_together,
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

/// An assigned device that shares an entry with a new one.
fn keeper(
    held: &mut Held<'_, Unlocked>,
    groups: &Groups,
    device: &Device,
    owner: DomainId,
    instance: &Instance,
) -> Option<Device> {
    let members = groups.iter().flat_map(|group| group.members.iter());
    let mut assigned = members.filter(|member| member.state.get().owner() == Some(owner));
    let keeper = assigned
        .find(|member| member.device.attachment_to(instance).is_some() && shares_entry(held, device, &member.device));
    keeper.map(|member| member.device.clone())
}

impl<P: Platform> Service<P> {
    /// Asks the policy whether a device may share the live entries of an owner (contract I-11).
    pub(super) fn ask_to_share(
        &self,
        held: &mut Held<'_, Unlocked>,
        claim: &mut Claim<'_>,
        device: &Device,
        owner: DomainId,
        instance: &Arc<Instance>,
    ) -> Result<(), Cause> {
        let with = keeper(held, &claim.others, device, owner, instance);
        let label = self.registry.lock(held).domain(owner).map(|record| record.domain.label().clone());
        let (Some(with), Some(domain)) = (with, label) else { return Ok(()) };
        let allowed = claim.call_out(|chain| {
            self.permits(held, &PolicyRequest { device, domain: &domain, why: Why::Shares { with: &with }, chain })
        });
        let reason = ConflictReason::SharedStream(instance.key);
        if allowed { Ok(()) } else { Err(Cause::GroupConflict { with: with.label().clone(), reason }) }
    }
}
