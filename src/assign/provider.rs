//! IOMMU instances as the integrator deals with them: flushes of a range, fault lines, quarantine, power, end of life.
//!
//! # Locking
//!
//! Level `Registry` for look-ups; nothing is held over a driver. An [`IommuHandle`] reaches its driver without the
//! registry, so that interrupt handlers and a crashing hypervisor can use it (contract C-16, C-17, S-8).

use alloc::sync::Arc;
use core::fmt;

use super::claim::{End, Request};
use super::device::{Device, DeviceState};
use super::error::{Cause, Error, Left, Operation};
use super::event::Event;
use super::fault::{FaultAnswer, FaultCounts, FaultLine, RawFault};
use super::identity::Label;
use super::iommu::{Iommu, IommuError, Resource, Usage, own_space};
use super::nested::Claims;
use super::service::Service;
use super::space::{AddressSpace, Stage2};
use super::spec::{IommuKey, StreamId};
use super::steps::Steps;
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};
use crate::sync::outside::Outside;

/// An IOMMU instance, pinned: its memory lives as long as a handle does, its service may end before.
#[derive(Clone)]
pub struct IommuHandle {
    key: IommuKey,
    iommu: Outside<Arc<dyn Iommu>>,
}

/// Where a quarantined device's DMA ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quarantine {
    /// In faults, which are reported.
    Faults,
    /// Nowhere, and nobody hears of it: the tables are empty, and the integrator supplies their root. For a device that
    /// storms.
    Silence(Stage2),
    /// In a scratch page of the integrator's tables, for a device that does not bear faults. Nobody hears of what misses
    /// the page.
    Scratch(Stage2),
}

impl Quarantine {
    /// The space in which a device is kept so; none where it faults.
    const fn space(self) -> Option<AddressSpace> {
        match self {
            Self::Faults => None,
            Self::Silence(stage2) => Some(AddressSpace { domain: own_space::EMPTY, stage2 }),
            Self::Scratch(stage2) => Some(AddressSpace { domain: own_space::SCRATCH, stage2 }),
        }
    }
}

/// A stream that faulted too often.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Storm {
    /// The stream.
    pub stream: StreamId,
    /// How many faults were taken of it.
    pub faults: u32,
    /// The device that was quarantined, or why that failed: the storm goes on then. A stream that no device has is
    /// quarantined as a stray, a device of its own ([`Source::Stray`](super::Source::Stray)). `None` where nothing was
    /// tried: no device has the stream and it is to fault, as it does already, or its device is just being added or removed.
    pub ended: Option<Result<Device, Error>>,
}

/// One of something scarce that is in use, with the names that the service knows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UsageRecord {
    /// What it is one of.
    pub resource: Resource,
    /// Its number.
    pub index: u8,
    /// A device that uses it.
    pub device: Option<Label>,
    /// The domain that it serves.
    pub domain: Option<Label>,
}

impl IommuHandle {
    /// The instance's name.
    #[must_use]
    pub const fn key(&self) -> IommuKey {
        self.key
    }

    /// Reads, clears and reports what faulted on `line`, and says whether the line should be masked.
    ///
    /// # Context
    ///
    /// Interrupt handlers: it takes no lock, allocates and frees nothing (contract C-16). So must `report`.
    pub fn take_faults(&self, line: FaultLine, report: &mut dyn FnMut(RawFault)) -> FaultAnswer {
        self.iommu.call(&mut Held::enter()).take_faults(line, report)
    }

    /// What was counted instead of being reported.
    ///
    /// # Context
    ///
    /// Any.
    #[must_use]
    pub fn fault_counts(&self) -> FaultCounts {
        self.iommu.call(&mut Held::enter()).fault_counts()
    }

    /// Streams that no entry matched, with how often they came.
    ///
    /// # Context
    ///
    /// Any.
    pub fn unknown_streams(&self, report: &mut dyn FnMut(StreamId, u32)) {
        self.iommu.call(&mut Held::enter()).unknown_streams(report);
    }

    /// Every stream to fault, for a hypervisor that is crashing: no lock, a bounded number of polls, and nothing of the
    /// instance may be used afterwards (contract S-8).
    ///
    /// # Errors
    ///
    /// [`Cause::Iommu`] when what was in flight may not have drained; with [`IommuError::NoPower`] nothing was touched, and
    /// streams reach again what they did once the power is back: give it power, and call again.
    ///
    /// # Context
    ///
    /// Any.
    pub fn crash(&self) -> Result<(), Cause> {
        let stopped = self.iommu.call(&mut Held::enter()).crash();
        stopped.map_err(|error| Cause::Iommu { iommu: self.key, error })
    }
}

impl fmt::Debug for IommuHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IommuHandle({})", self.key)
    }
}

impl<P: Platform> Service<P> {
    /// The instance with this name, for its fault handlers and for the end.
    #[must_use]
    pub fn iommu(&self, key: IommuKey) -> Option<IommuHandle> {
        let mut held = Held::enter();
        let iommu = self.instances.lock(&mut held).find(key).cloned();
        iommu.map(|iommu| IommuHandle { key, iommu })
    }

    // --- faults ---

    /// Lets faults of `iommu` raise interrupts: handlers stand on all of its lines (contract S-4).
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`], and what the driver says.
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn enable_reports(&self, iommu: IommuKey) -> Result<(), Cause> {
        self.on_iommu(iommu, |iommu| iommu.enable_reports())
    }

    /// The worker's part of fault handling at `iommu`: quarantines the group of every stream that has stormed since the
    /// last call, as `place` says, and tells `sink` of each with its number of faults. Afterwards the lines that
    /// handlers asked to mask can be unmasked. To be called from time to time also without a storm: limits on records
    /// count from one call to the next (contract A-12).
    ///
    /// A storming stream that no device has becomes a *stray*: a device of its own, under
    /// [`DeviceKey::stray`](super::DeviceKey::stray), with an entry for exactly this ID. It is quarantined, can be assigned
    /// to nobody, and makes way when a device that has the stream is added, or its IOMMU is unregistered; like any device it
    /// can be removed by its key. With [`Quarantine::Faults`] such a stream is only told of.
    ///
    /// What [`Storm::ended`] says did not work goes on: a stream whose group is busy ([`Cause::Busy`]; try again before
    /// unmasking), or a stray for which no entry or bank was left ([`Cause::Iommu`]; nothing changed).
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`].
    ///
    /// # Context
    ///
    /// Waiting context. `sink` is called with no lock held.
    pub fn tend_faults(&self, iommu: IommuKey, place: Quarantine, sink: &mut dyn FnMut(&Storm)) -> Result<(), Cause> {
        let handle = self.iommu(iommu).ok_or(Cause::NotFound)?;
        let mut storming: [Option<(StreamId, u32)>; 64] = [None; 64];
        let mut free = storming.iter_mut();
        handle.iommu.call(&mut Held::enter()).tend_faults(&mut |stream, count| {
            if let Some(slot) = free.next() {
                *slot = Some((stream, count));
            }
        });
        for (stream, faults) in storming.into_iter().flatten() {
            let owner = handle.iommu.call(&mut Held::enter()).owner_of(stream);
            let device = owner.and_then(|id| {
                let mut held = Held::enter();
                let registry = self.registry.lock(&mut held);
                registry.device_by_id(id).map(|record| record.device.clone())
            });
            let ended = match device {
                Some(device) => Some(self.quarantine(&device, place).map(|()| device)),
                None if owner.is_some() => None,
                None => place.space().map(|space| self.silence_stray(iommu, stream, &space)),
            };
            sink(&Storm { stream, faults, ended });
        }
        Ok(())
    }

    /// Takes the group of `device` from its domain, if it has one, and keeps it quarantined: it is owned by nobody, and
    /// its DMA ends where `place` says. It can be assigned again.
    ///
    /// # Errors
    ///
    /// [`Cause::Busy`], [`Cause::Gone`], [`Cause::OutOfMemory`]: nothing changed. [`Cause::Iommu`] with
    /// [`Left::Quarantined`]: its DMA faults.
    ///
    /// # Context
    ///
    /// Waiting context. Contract A-12, S-6.
    pub fn quarantine(&self, device: &Device, place: Quarantine) -> Result<(), Error> {
        let mut held = Held::enter();
        let held = &mut held;
        let request = Request { operation: Operation::Deassign, device, whole_group: true, above: Claims::NONE };
        let (claim, subjects) = self.begin(held, &request, |_, _, _| Ok(()))?;
        let fail = |cause, left| Error { operation: Operation::Deassign, subject: device.label().clone(), cause, left };
        let mut end = End::UNCHANGED;
        let result = match Steps::of(&subjects) {
            Err(cause) => Err(fail(cause, Left::Unchanged)),
            Ok(mut steps) => {
                let mut failed = steps.block(held).1;
                if let (None, Some(space)) = (&failed, place.space()) {
                    failed = steps.plan(held, &space).and_then(|()| steps.install(held)).err();
                }
                self.tell_moved(held, &subjects, DeviceState::Quarantined, None);
                end = End::in_state(&subjects, DeviceState::Quarantined);
                failed.map_or(Ok(()), |cause| Err(fail(cause, Left::Quarantined)))
            }
        };
        let result = match self.conclude(held, claim, end, Claims::NONE).overtaken() {
            None => result,
            Some(left) => Err(fail(Cause::Removed, left)),
        };
        self.report(&result);
        result
    }

    // --- limits ---

    /// Who uses what there is a fixed number of at `iommu` (contract A-5).
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`].
    ///
    /// # Context
    ///
    /// Waiting context. `sink` is called with no lock of the service held; it must not call the service.
    pub fn usage(&self, iommu: IommuKey, sink: &mut dyn FnMut(&UsageRecord)) -> Result<(), Cause> {
        let handle = self.iommu(iommu).ok_or(Cause::NotFound)?;
        handle.iommu.call(&mut Held::enter()).usage(&mut |usage| sink(&self.named(&usage)));
        Ok(())
    }

    fn named(&self, usage: &Usage) -> UsageRecord {
        let mut held = Held::enter();
        let registry = self.registry.lock(&mut held);
        let device = usage.device.and_then(|id| registry.device_by_id(id));
        let domain = usage.domain.and_then(|id| registry.domain(id));
        UsageRecord {
            resource: usage.resource,
            index: usage.index,
            device: device.map(|record| record.device.label().clone()),
            domain: domain.map(|record| record.domain.label().clone()),
        }
    }

    // --- power and end of life ---

    /// `iommu` is about to lose its power. All of its masters must have been stopped (contract S-5). Operations go on,
    /// on paper, and count from [`resume_iommu`](Self::resume_iommu) on.
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`], [`Cause::Iommu`] with `Busy` where an operation that is under way there does not end in time.
    /// A stream of callers does not hold it up: they wait while it waits (contract C-1).
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn suspend_iommu(&self, iommu: IommuKey) -> Result<(), Cause> {
        self.on_iommu(iommu, |iommu| iommu.suspend())
    }

    /// Brings `iommu` back to what the service believes of it.
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`], [`Cause::Iommu`]: it stays suspended.
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn resume_iommu(&self, iommu: IommuKey) -> Result<(), Cause> {
        self.on_iommu(iommu, |iommu| iommu.resume())
    }

    /// The forced form of [`unregister_iommu`](Self::unregister_iommu): faults every stream, then takes the instance out
    /// of service though devices use it. What they acquire there gets `ProviderGone`; what they release is done in
    /// software and says so (contract C-9).
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`]; [`Cause::Iommu`]: nothing new gets in, but it is not out of service yet: call again.
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn force_unregister_iommu(&self, key: IommuKey) -> Result<(), Error> {
        let refuse = |cause| {
            let label = Label::of_iommu(key);
            Error::unchanged(Operation::UnregisterIommu, label, cause)
        };
        let mut held = Held::enter();
        let result = self.close_iommu(&mut held, key).map_err(refuse);
        self.report(&result);
        self.revoke_iommu(&mut held, &result?);
        // One in which a call is goes when that has ended.
        let _ = self.evict_strays(&mut held, key);
        self.tell(&mut held, &Event::IommuUnregistered { iommu: key });
        P::wake();
        Ok(())
    }

    /// Has an instance fault every stream, and ends its registration. Returns it.
    fn close_iommu(&self, held: &mut Held<'_, Unlocked>, key: IommuKey) -> Result<Outside<Arc<dyn Iommu>>, Cause> {
        let IommuHandle { iommu, .. } = self.iommu(key).ok_or(Cause::NotFound)?;
        iommu.call(held).close().map_err(|error| Cause::Iommu { iommu: key, error })?;
        // Who was faster may have registered another one under the key.
        let (was_there, _) = self.end_leaving(held, key, &iommu, true);
        if was_there { Ok(iommu) } else { Err(Cause::NotFound) }
    }

    /// Ends all instances: every stream faults, and clients stay enabled (contract S-8). Goes on past a failure and
    /// returns the first.
    ///
    /// # Errors
    ///
    /// [`Cause::Iommu`]: that instance is not out of service; call again.
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn shutdown(&self) -> Result<(), Cause> {
        let mut held = Held::enter();
        let held: &mut Held<'_, Unlocked> = &mut held;
        let mut failed = None;
        let mut after = None;
        loop {
            let next = self.registry.lock(held).next_iommu(after).map(|record| record.iommu.clone());
            let Some(iommu) = next else { break };
            let iommu = iommu.call(held);
            let key = iommu.key();
            after = Some(key);
            if let Err(error) = iommu.close() {
                failed.get_or_insert(Cause::Iommu { iommu: key, error });
            }
        }
        failed.map_or(Ok(()), Err)
    }

    fn on_iommu(
        &self,
        key: IommuKey,
        act: impl FnOnce(&Arc<dyn Iommu>) -> Result<(), IommuError>,
    ) -> Result<(), Cause> {
        let handle = self.iommu(key).ok_or(Cause::NotFound)?;
        act(handle.iommu.call(&mut Held::enter())).map_err(|error| Cause::Iommu { iommu: key, error })
    }
}
