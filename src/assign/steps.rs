//! One operation on all IOMMUs that it concerns: plan on all or on none, commit on all or end in fault (contract A-1).

use alloc::sync::Arc;

use smallvec::SmallVec;

use super::device::Device;
use super::domain::Domain;
use super::error::Cause;
use super::identity::DeviceId;
use super::iommu::{Iommu, IommuError, Prepared, Resource, Sharing};
use super::space::AddressSpace;
use super::spec::IommuKey;
use crate::few::{self, Few};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};
use crate::sync::outside::Outside;

/// The devices of one operation, by the IOMMU that must act for them.
pub(super) struct Steps(SmallVec<[Step; 2]>);

struct Step {
    key: IommuKey,
    iommu: Outside<Arc<dyn Iommu>>,
    devices: Few<DeviceId>,
    prepared: Option<Prepared>,
    /// Whose DMA would go along with what is planned.
    sharers: Few<Sharing>,
}

impl Steps {
    /// What `subjects` need, with all memory reserved (contract A-8).
    pub(super) fn of(subjects: &[Device]) -> Result<Self, Cause> {
        let mut steps: SmallVec<[Step; 2]> = SmallVec::new();
        for device in subjects {
            for attachment in device.attachments() {
                // Not by name: a device may still be with an instance that went, its mate with the one that came after.
                let same = |step: &Step| step.iommu.is_same(&attachment.iommu);
                let at = match steps.iter().position(same) {
                    Some(at) => at,
                    None => {
                        let devices = few::with_room(subjects.len()).ok_or(Cause::OutOfMemory)?;
                        steps.try_reserve(1).map_err(|_| Cause::OutOfMemory)?;
                        steps.push(Step {
                            key: attachment.key,
                            iommu: attachment.iommu.clone(),
                            devices,
                            prepared: None,
                            sharers: Few::new(),
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
    pub(super) fn plan(&mut self, held: &mut Held<'_, Unlocked>, space: &AddressSpace) -> Result<(), Cause> {
        let mut failed = None;
        for step in &mut self.0 {
            match plan(step.iommu.call(held).as_ref(), &step.devices, space, &mut step.sharers) {
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

    /// Whose DMA would go along with what is planned.
    pub(super) fn sharers(&self) -> impl Iterator<Item = Sharing> {
        self.0.iter().flat_map(|step| step.sharers.iter().copied())
    }

    /// Gives back what is reserved still.
    pub(super) fn abandon(&mut self, held: &mut Held<'_, Unlocked>) {
        for step in &mut self.0 {
            if let Some(prepared) = step.prepared.take() {
                step.iommu.call(held).abandon(&step.devices, prepared);
            }
        }
    }

    /// Moves on all IOMMUs, or ends with all of them in fault.
    pub(super) fn install(&mut self, held: &mut Held<'_, Unlocked>) -> Result<(), Cause> {
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
    pub(super) fn block(&self, held: &mut Held<'_, Unlocked>) -> (Few<DeviceId>, Option<Cause>) {
        let mut keepers = Few::new();
        let mut failed = None;
        for step in &self.0 {
            let mut all_told = true;
            let blocked = step.iommu.call(held).block(&step.devices, &mut |keeper| {
                all_told &= few::put(&mut keepers, keeper);
            });
            if let Err(error) = blocked {
                failed.get_or_insert(Cause::Iommu { iommu: step.key, error });
            } else if !all_told {
                failed.get_or_insert(Cause::OutOfMemory);
            }
        }
        (keepers, failed)
    }

    /// [`block`](Self::block) before an [`install`](Self::install) or an [`abandon`](Self::abandon): what the drains end
    /// with is left to that.
    pub(super) fn cut(&self, held: &mut Held<'_, Unlocked>) -> Result<(), Cause> {
        let mut failed = None;
        for step in &self.0 {
            if let Err(error) = step.iommu.call(held).cut(&step.devices) {
                failed.get_or_insert(Cause::Iommu { iommu: step.key, error });
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Puts the domain's flush list in order, before any context goes live (contract I-9).
    pub(super) fn join<P: Platform>(&self, held: &mut Held<'_, Unlocked>, domain: &Domain<P>) -> Result<(), Cause> {
        let joined = domain.join(held, self.0.iter().map(|step| (step.key, &step.iommu)));
        if joined { Ok(()) } else { Err(Cause::OutOfMemory) }
    }
}

/// Plans; where contexts are lacking that an earlier, unconfirmed drain keeps back, once more when it is finished
/// (contract A-4).
fn plan(
    iommu: &dyn Iommu,
    devices: &[DeviceId],
    space: &AddressSpace,
    sharers: &mut Few<Sharing>,
) -> Result<Prepared, IommuError> {
    let refused = match plan_once(iommu, devices, space, sharers) {
        Err(error @ IommuError::Exhausted { resource: Resource::ContextBanks | Resource::Vmids, .. }) => error,
        planned => return planned,
    };
    if iommu.reclaim()? { plan_once(iommu, devices, space, sharers) } else { Err(refused) }
}

/// Lists in `sharers` whose DMA would go along. A list that cannot be complete is no plan.
fn plan_once(
    iommu: &dyn Iommu,
    devices: &[DeviceId],
    space: &AddressSpace,
    sharers: &mut Few<Sharing>,
) -> Result<Prepared, IommuError> {
    let mut listed = Ok(());
    let mut list = |sharing| {
        listed = listed.and_then(|()| sharers.try_reserve(1).map_err(|_| IommuError::OutOfMemory));
        if listed.is_ok() {
            sharers.push(sharing);
        }
    };
    let prepared = iommu.plan(devices, space, &mut list)?;
    if let Err(error) = listed {
        iommu.abandon(devices, prepared);
        return Err(error);
    }
    Ok(prepared)
}
