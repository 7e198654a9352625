//! Strays: streams that no source has described and that stormed, each kept as a device of its own in a quiet bank
//! (contract A-12).
//!
//! # Invariants
//!
//! 1. A stray meets no other device: who has its stream makes it go, and it is not registered where somebody has.
//! 2. It is quarantined from the moment it is shown, and never assigned.

use alloc::vec::Vec;

use super::add::Met;
use super::claim::{Claim, End, Members};
use super::device::{Device, DeviceSpec};
use super::error::{Cause, ConflictReason, Error, Operation};
use super::identity::{DeviceKey, Label};
use super::nested::Claims;
use super::registry::{DeviceRecord, Registry};
use super::removal::{Going, Outcome};
use super::service::Service;
use super::space::AddressSpace;
use super::spec::{IommuKey, Stream, StreamId, StreamMask};
use super::steps::Steps;
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// Why a stream is no stray: it met somebody.
pub(super) fn not_stray<P: Platform>(registry: &Registry<P>, above: Claims<'_>, stray: &Device, met: &Met) -> Cause {
    let reason = ConflictReason::SharedStream(met.iommu);
    let Some(record) = registry.device_by_id(met.device) else {
        return Cause::GroupConflict { with: Label::from("a reserved stream"), reason };
    };
    match registry.claimed(record) {
        Some(running) => above.busy(registry, record, running),
        // It has come since nobody was found to have the stream.
        None if record.device.meets(stray).is_some() => Cause::Busy { running: Operation::Add },
        None => Cause::GroupConflict { with: record.device.label().clone(), reason },
    }
}

/// Moves a stray, whose entry stands in fault, to the bank where it is to end.
pub(super) fn move_stray(held: &mut Held<'_, Unlocked>, stray: &[Device], space: &AddressSpace) -> Result<(), Cause> {
    let mut steps = Steps::of(stray)?;
    steps.plan(held, space)?;
    steps.install(held)
}

impl DeviceRecord {
    /// Whether it stands for a stream of `iommu` that no source has described.
    pub(super) fn is_stray_of(&self, iommu: IommuKey) -> bool {
        self.device.is_stray() && self.device.attachments().iter().any(|attachment| attachment.key == iommu)
    }
}

impl<P: Platform> Service<P> {
    /// Registers the stray for a stream that nobody has, in `space`; or nothing, where that does not work.
    pub(super) fn silence_stray(
        &self,
        iommu: IommuKey,
        stream: StreamId,
        space: &AddressSpace,
    ) -> Result<Device, Error> {
        let label = Label::of_stray(iommu, stream);
        let mut streams: Vec<Stream> = Vec::new();
        if streams.try_reserve_exact(1).is_err() {
            return Err(Error::unchanged(Operation::Add, label, Cause::OutOfMemory));
        }
        streams.push(Stream::new(iommu, stream, StreamMask::NONE));
        let spec = DeviceSpec::new(DeviceKey::stray(iommu, stream), label, streams);
        let mut held = Held::enter();
        let made = self.make_device(&mut held, spec);
        let result = made.and_then(|stray| self.add_in(&mut held, Claims::NONE, stray, Some(space)));
        self.report(&result);
        result
    }

    /// Removes the strays of an IOMMU that goes, also after one that is busy: returns the first failure.
    pub(super) fn evict_strays(&self, held: &mut Held<'_, Unlocked>, iommu: IommuKey) -> Result<(), Cause> {
        let mut result = Ok(());
        let mut after = None;
        loop {
            let next = {
                let registry = self.registry.lock(held);
                let strays = registry.devices().filter(|record| record.is_stray_of(iommu));
                strays.map(|record| &record.device).find(|stray| Some(stray.key()) > after).cloned()
            };
            let Some(stray) = next else { return result };
            after = Some(stray.key());
            result = result.and(self.evict(held, Claims::NONE, &stray));
        }
    }

    /// Removes a stray: its stream has an owner now, or its IOMMU goes.
    pub(super) fn evict(&self, held: &mut Held<'_, Unlocked>, above: Claims<'_>, stray: &Device) -> Result<(), Cause> {
        let (claim, going) = {
            let registry = self.registry.lock(held);
            let Some(record) = registry.registration(stray) else { return Ok(()) };
            if let Some(running) = registry.claimed(record) {
                return Err(above.busy(&registry, record, running));
            }
            if record.device.await_calls() {
                // A removal that cannot end would let it storm again.
                return Err(Cause::Busy { running: Operation::Remove });
            }
            registry.mark(record);
            registry.claim(record, Operation::Remove)?;
            (Claim::new(stray.clone(), Members::default(), false), Going::of(record))
        };
        match self.finish(held, claim, End::UNCHANGED, Some(going), above) {
            Outcome::Removed(Ok(_)) => Ok(()),
            Outcome::Removed(Err(error)) => {
                // What is still in flight reaches what the stray could reach, which is nobody's.
                log::warn!("{error}");
                Ok(())
            }
            // It goes when the calls inside it have ended.
            Outcome::InUse(_) | Outcome::Stays => Err(Cause::Busy { running: Operation::Remove }),
        }
    }
}
