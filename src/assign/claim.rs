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
use super::removal::Outcome;
use super::service::Service;
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

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
        while let Some(member) = via.take() {
            let pending = {
                let registry = self.registry.lock(held);
                let Some(record) = registry.registration(&member) else { break };
                let pending = registry.members(record).find(|member| member.may_go());
                if pending.is_none() {
                    registry.release(record);
                }
                pending.map(|record| record.device.clone())
            };
            let Some(leaving) = pending else { break };
            let (survivor, result) = self.unregister(held, &leaving);
            if leaving.id() == subject.id() {
                outcome = Outcome::Removed(result);
            } else if let Err(error) = result {
                log::warn!("{error}");
            }
            via = survivor.or_else(|| self.claim_parent(held, &leaving));
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
}
