//! Claims: an operation has a group to itself from [`begin`](Service::begin) to [`conclude`](Service::conclude).
//!
//! # Locking
//!
//! Level `Registry`, for one bounded look-up at each end; nothing is held in between.
//!
//! # Invariants
//!
//! Whoever holds a [`Claim`] consumes it with `conclude`; forgetting one costs liveness, never isolation.

use alloc::vec::Vec;

use super::device::Device;
use super::error::{Cause, Error, Operation};
use super::identity::DeviceId;
use super::removal::Outcome;
use super::service::Service;
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// Two devices of one group that use the same entry.
pub(super) type Sharing = (DeviceId, DeviceId);

/// What stands between a claim and its end.
enum Step {
    /// Members have left; of those that stay, this many, some may share an entry.
    FindSharing(usize),
    /// This device was asked to go.
    Unregister(Device),
}

/// A claimed group, by one of its members.
#[derive(Debug)]
#[must_use = "the group stays claimed until the claim is concluded"]
pub(super) struct Claim {
    pub(super) device: Device,
}

impl<P: Platform> Service<P> {
    /// Claims the group of `device`, and lists those of it that the operation is about: the device alone, or all.
    pub(super) fn begin(
        &self,
        held: &mut Held<'_, Unlocked>,
        device: &Device,
        operation: Operation,
        whole_group: bool,
    ) -> Result<(Claim, Vec<Device>), Error> {
        let refuse = |cause| Error::unchanged(operation, device.label().clone(), cause);
        let size = {
            let registry = self.registry.lock(held);
            let record = registry.registration(device).ok_or_else(|| refuse(Cause::Gone))?;
            if record.remove_pending.get() {
                return Err(refuse(Cause::Gone));
            }
            registry.claim(record, operation).map_err(refuse)?;
            registry.group_size(record)
        };
        let claim = Claim { device: device.clone() };
        let mut subjects = Vec::new();
        if subjects.try_reserve_exact(size).is_err() {
            // A removal that came in between takes precedence in the registry; the caller hears of the memory.
            let _ = self.conclude(held, claim);
            return Err(refuse(Cause::OutOfMemory));
        }
        if whole_group {
            let registry = self.registry.lock(held);
            if let Some(record) = registry.registration(device) {
                // The claim froze the membership, so that the reserved room suffices.
                subjects.extend(registry.members(record).map(|member| member.device.clone()));
            }
        } else {
            subjects.push(device.clone());
        }
        Ok((claim, subjects))
    }

    /// Ends a claim: first carries out every removal that was asked for while it stood (contract C-2), then lets the
    /// group go. Says what became of the device through which the group was claimed.
    pub(super) fn conclude(&self, held: &mut Held<'_, Unlocked>, claim: Claim) -> Outcome {
        let subject = claim.device;
        let mut outcome = Outcome::Stays;
        let mut via = Some(subject.clone());
        let mut sharing = None;
        while let Some(member) = via.take() {
            let step = {
                let registry = self.registry.lock(held);
                let Some(record) = registry.registration(&member) else { break };
                let leaving = registry.members(record).find(|member| member.may_go());
                match (leaving, &sharing) {
                    (Some(leaving), _) => Step::Unregister(leaving.device.clone()),
                    (None, None) if registry.has_shrunk(record) => Step::FindSharing(registry.group_size(record)),
                    (None, sharing) => {
                        registry.release(record, sharing.as_deref().unwrap_or_default());
                        break;
                    }
                }
            };
            match step {
                Step::FindSharing(size) => {
                    sharing = Some(self.sharing(held, &member, size));
                    via = Some(member);
                }
                Step::Unregister(leaving) => {
                    // Who shares with whom is asked again when one more has left.
                    sharing = None;
                    let (survivor, result) = self.unregister(held, &leaving);
                    if leaving.id() == subject.id() {
                        outcome = Outcome::Removed(result);
                    } else if let Err(error) = result {
                        log::warn!("{error}");
                    }
                    via = survivor.or_else(|| self.claim_parent(held, &leaving));
                }
            }
        }
        P::wake();
        outcome
    }

    /// Claims the group of a removed device's parent, where that was waiting for its last child to go (contract C-5).
    fn claim_parent(&self, held: &mut Held<'_, Unlocked>, removed: &Device) -> Option<Device> {
        let registry = self.registry.lock(held);
        let parent = registry.device(removed.parent()?)?;
        // Whoever has claimed it already sees the mark when it concludes.
        (parent.may_go() && registry.claim(parent, Operation::Remove).is_ok()).then(|| parent.device.clone())
    }

    /// The pairs of the claimed group that use one entry, whether or not their streams meet: an entry outlives the
    /// device for which it was made while another uses it, and must not be in two groups (contract I-15).
    fn sharing(&self, held: &mut Held<'_, Unlocked>, member: &Device, size: usize) -> Vec<Sharing> {
        let mut members: Vec<Device> = Vec::new();
        if members.try_reserve_exact(size).is_ok() {
            let registry = self.registry.lock(held);
            if let Some(record) = registry.registration(member) {
                // The claim froze the membership, so that the reserved room suffices.
                members.extend(registry.members(record).map(|member| member.device.clone()));
            }
        }
        let mut pairs = Vec::new();
        for one in &members {
            for attachment in one.attachments() {
                let sharers = attachment.iommu.call(held).sharers(one.id());
                if pairs.try_reserve(sharers.len()).is_ok() {
                    pairs.extend(sharers.into_iter().map(|other| (one.id(), other)));
                }
            }
        }
        pairs
    }

    /// The members of the claimed group of `device` with which it may share entries though their streams do not meet.
    pub(super) fn merging_mates(&self, held: &mut Held<'_, Unlocked>, device: &Device) -> Result<Vec<DeviceId>, Cause> {
        let mut mates = Vec::new();
        if !device.merges_with(device) {
            return Ok(mates);
        }
        let size = {
            let registry = self.registry.lock(held);
            registry.registration(device).map_or(0, |record| registry.group_size(record))
        };
        mates.try_reserve_exact(size).map_err(|_| Cause::OutOfMemory)?;
        let registry = self.registry.lock(held);
        if let Some(record) = registry.registration(device) {
            // The claim froze the membership, so that the reserved room suffices.
            let merging = |mate: &&super::registry::DeviceRecord| {
                mate.device.id() != device.id() && device.merges_with(&mate.device)
            };
            mates.extend(registry.members(record).filter(merging).map(|mate| mate.device.id()));
        }
        Ok(mates)
    }
}
