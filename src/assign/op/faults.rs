//! Faults: named and told, and storms ended (contract A-12).
//!
//! # Locking
//!
//! Level `Instances` and level `Registry` for look-ups; nothing is held over a driver or a sink.

use alloc::vec::Vec;

use super::deassign::Quarantine;
use crate::assign::{
    Device, Error, Event, FaultAnswer, FaultLine, FaultRecord, IommuKey, Label, Operation, RawFault, Service,
    StormReport, StreamId,
};
use crate::few;
use crate::sync::Platform;
use crate::sync::order::Held;

/// Something that faulted too often.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Storm {
    /// The stream, where it is known.
    pub stream: Option<StreamId>,
    /// The domain whose context faulted.
    pub domain: Option<Label>,
    /// How many faults were taken of it.
    pub faults: u32,
    /// The device that was quarantined, or why that failed: the storm goes on then. `None` where no device is to blame.
    pub ended: Option<Result<Device, Error>>,
    /// No device is to blame, and the reports that it came by are silenced until a later call finds them quiet.
    pub silenced: bool,
}

/// How many storms one call deals with; further ones are named by the next.
const STORMS: usize = 64;

impl<P: Platform> Service<P> {
    /// Reads, clears and names what faulted at `iommu` on `line`, and says whether the line should be masked.
    ///
    /// # Context
    ///
    /// Waiting context: the handler's bottom half. `sink` is called with no lock held.
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`](crate::assign::Cause::NotFound) for an IOMMU that is not registered.
    pub fn handle_fault(
        &self,
        iommu: IommuKey,
        line: FaultLine,
        sink: &mut dyn FnMut(&FaultRecord),
    ) -> Result<FaultAnswer, Error> {
        let mut held = Held::enter();
        let instance = self.named_instance(&mut held, Operation::HandleFault, iommu)?;
        let mut faults: Vec<RawFault> = Vec::new();
        let mut dropped = 0_usize;
        let answer = instance.iommu.call(&mut held).take_faults(line, &mut |fault| {
            dropped = dropped.saturating_add(few::push(&mut faults, fault).is_err().into());
        });
        if dropped > 0 {
            log::warn!("{iommu}: {dropped} faults were read and not told, for want of memory");
        }
        for raw in faults {
            let owner = raw.stream.and_then(|stream| instance.iommu.call(&mut held).owner_of(stream, raw.domain));
            let record = {
                let registry = self.registry.lock(&mut held);
                let device = owner.and_then(|id| registry.by_id(id)).map(|record| record.device.label().clone());
                let domain = raw.domain.and_then(|id| registry.domain(id)).map(|record| record.domain.label().clone());
                FaultRecord { raw, device, domain }
            };
            log::warn!("{record}");
            sink(&record);
            self.tell(&mut held, || Event::Fault(record));
        }
        Ok(answer)
    }

    /// The worker's part of fault handling at `iommu`: quarantines the group of every device that has stormed since the
    /// last call, as `place` says, and tells `sink` of each storm with its number of faults. Afterwards the lines that
    /// handlers asked to mask can be unmasked. To be called from time to time also without a storm: limits on records
    /// count from one call to the next (contract A-12).
    ///
    /// A storm of streams that no device has is ended by silencing the reports that it came by, until a later call finds them
    /// quiet. What [`Storm::ended`] says did not work goes on: try again before unmasking.
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`](crate::assign::Cause::NotFound).
    ///
    /// # Context
    ///
    /// Waiting context. `sink` is called with no lock held.
    pub fn tend_faults(&self, iommu: IommuKey, place: Quarantine, sink: &mut dyn FnMut(&Storm)) -> Result<(), Error> {
        let mut held = Held::enter();
        let instance = self.named_instance(&mut held, Operation::TendFaults, iommu)?;
        let mut storms: [Option<StormReport>; STORMS] = [None; STORMS];
        let mut free = storms.iter_mut();
        instance.iommu.call(&mut held).tend_faults(&mut |storm| {
            if let Some(slot) = free.next() {
                *slot = Some(storm);
            }
        });
        for StormReport { stream, domain, faults, device, silenced } in storms.into_iter().flatten() {
            let device = device.and_then(|id| self.find_by_id(&mut held, id));
            let domain = domain
                .and_then(|id| self.registry.lock(&mut held).domain(id).map(|record| record.domain.label().clone()));
            let ended = device.map(|device| self.quarantine(&device, place).map(|()| device));
            sink(&Storm { stream, domain, faults, ended, silenced });
        }
        Ok(())
    }
}
