//! IOMMU instances: into service and out of it, power, and the handle for interrupt handlers.
//!
//! # Locking
//!
//! Level `Instances` for look-ups by name, level `Registry` where an instance changes its state; nothing is held over a driver.
//! An [`IommuHandle`] reaches its driver with no lock, so that interrupt handlers and a crashing hypervisor can use it
//! (contract C-16, C-17, S-8).

use alloc::sync::Arc;
use core::fmt;

use crate::assign::{
    CallChain, Cause, DeviceRecord, Error, Event, FaultAnswer, FaultCounts, FaultLine, Instance, InstanceState, Iommu,
    IommuError, IommuKey, Label, Left, Obstacle, Operation, RawFault, Service, StreamId,
};
use crate::sync::Platform;
use crate::sync::order::{Held, Unlocked};

/// An IOMMU instance, pinned: its memory lives as long as a handle does, its service may end before.
#[derive(Clone)]
pub struct IommuHandle(Arc<Instance>);

impl IommuHandle {
    /// The instance's name.
    #[must_use]
    pub fn key(&self) -> IommuKey {
        self.0.key
    }

    /// Reads, clears and reports what faulted on `line`, and says whether the line should be masked.
    ///
    /// # Context
    ///
    /// Interrupt handlers: it takes no lock, allocates and frees nothing (contract C-16). So must `report`.
    pub fn take_faults(&self, line: FaultLine, report: &mut dyn FnMut(RawFault)) -> FaultAnswer {
        self.0.iommu.call(&mut Held::enter()).take_faults(line, report)
    }

    /// What was counted instead of being reported.
    ///
    /// # Context
    ///
    /// Any.
    #[must_use]
    pub fn fault_counts(&self) -> FaultCounts {
        self.0.iommu.call(&mut Held::enter()).fault_counts()
    }

    /// Streams that no entry matched, with how often they came.
    ///
    /// # Context
    ///
    /// Any.
    pub fn unknown_streams(&self, report: &mut dyn FnMut(StreamId, u32)) {
        self.0.iommu.call(&mut Held::enter()).unknown_streams(report);
    }

    /// Every stream to fault, for a hypervisor that is crashing: no lock, a bounded number of polls, and nothing of the
    /// instance may be used afterwards (contract S-8).
    ///
    /// # Errors
    ///
    /// [`Cause::Iommu`] with [`Left::Closing`] when what was in flight may not have drained; with [`IommuError::NoPower`]
    /// nothing was touched, and streams reach again what they did once the power is back: give it power, and call again.
    ///
    /// # Context
    ///
    /// Any.
    pub fn crash(&self) -> Result<(), Error> {
        let stopped = self.0.iommu.call(&mut Held::enter()).crash();
        stopped.map_err(|error| {
            let off = matches!(error, IommuError::NoPower(_));
            let left = if off { Left::Unchanged } else { Left::Closing };
            Error { left, ..of_driver(Operation::CrashIommu, self.0.key, error) }
        })
    }
}

impl fmt::Debug for IommuHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IommuHandle({})", self.0.key)
    }
}

impl<P: Platform> Service<P> {
    /// Puts a probed IOMMU instance into service.
    ///
    /// # Errors
    ///
    /// [`Cause::AlreadyRegistered`] when its key is in use.
    pub fn register_iommu(&self, iommu: Arc<dyn Iommu>) -> Result<(), Error> {
        let mut held = Held::enter();
        let number = self.instances.lock(&mut held).next_number();
        let instance = Instance::new(number, iommu);
        let key = instance.key;
        let (is_new, _unused) = {
            let mut instances = self.instances.lock(&mut held);
            (instances.insert(instance.clone()), instances.unused())
        };
        if !is_new {
            let label = Label::of_iommu(key);
            let cause = Cause::AlreadyRegistered { by: label.clone() };
            return Error::reported(Err(Error::unchanged(Operation::RegisterIommu, label, cause)));
        }
        self.tell(&mut held, || Event::IommuRegistered { iommu: key });
        Ok(())
    }

    /// Takes an IOMMU instance out of service. No device may be registered on it. Afterwards none of its registers is touched.
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`], [`Cause::InUse`], [`Cause::Busy`], and [`Cause::Iommu`] when an earlier drain has still not been
    /// confirmed: it stays in service, since nothing could find out later when the tables of that domain are free (contract I-8).
    pub fn unregister_iommu(&self, key: IommuKey) -> Result<(), Error> {
        self.unregister_within(CallChain::NONE, key)
    }

    pub(in crate::assign) fn unregister_within(&self, above: CallChain<'_>, key: IommuKey) -> Result<(), Error> {
        let result = self.unregister_in(&mut Held::enter(), above, key);
        Error::reported(result.map_err(|cause| Error::of_iommu(Operation::UnregisterIommu, key, cause)))
    }

    fn unregister_in(&self, held: &mut Held<'_, Unlocked>, above: CallChain<'_>, key: IommuKey) -> Result<(), Cause> {
        let instance = self.instance(held, key).ok_or(Cause::NotFound)?;
        {
            let registry = self.registry.lock(held);
            match (instance.state(), instance.devices()) {
                (InstanceState::InService, 0) => instance.set_state(InstanceState::Leaving),
                (InstanceState::InService, _) if instance.is_being_left() => {
                    // Every other operation on these devices says already that they are gone (contract C-15).
                    above.meet(Obstacle::Driver);
                    return Err(Cause::busy(Operation::Remove));
                }
                (InstanceState::InService, devices) => {
                    let uses = |record: &DeviceRecord| record.device.attachment_to(&instance).is_some();
                    return Err(registry.in_use(devices, uses));
                }
                (InstanceState::Leaving, _) => {
                    above.meet(Obstacle::Instance(key));
                    return Err(Cause::busy(Operation::UnregisterIommu));
                }
                (InstanceState::Gone, _) => return Err(Cause::NotFound),
            }
        }
        let retired = instance.iommu.call(held).retire().map_err(|error| Cause::Iommu { iommu: key, error });
        let taken = {
            let _registry = self.registry.lock(held);
            let was_leaving = instance.state() == InstanceState::Leaving;
            if was_leaving {
                let next = if retired.is_ok() { InstanceState::Gone } else { InstanceState::InService };
                instance.set_state(next);
            }
            was_leaving
        };
        self.count_end();
        retired?;
        // A forced unregister may have come in between.
        if !taken {
            return Err(Cause::NotFound);
        }
        self.take_out(held, &instance);
        Ok(())
    }

    /// The forced form of [`unregister_iommu`](Self::unregister_iommu): faults every stream, then takes the instance out
    /// of service though devices use it. What they acquire there gets `ProviderGone`; what they release is done in
    /// software and says so (contract C-9).
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`]; [`Cause::Iommu`] with [`Left::Closing`]: nothing new gets in, but it is not out of service yet: call again. With
    /// [`IommuError::NotResumed`] or [`IommuError::NoPower`] its streams could not be silenced.
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn force_unregister_iommu(&self, key: IommuKey) -> Result<(), Error> {
        let mut held = Held::enter();
        let held = &mut held;
        let not_found = || Error::of_iommu(Operation::UnregisterIommu, key, Cause::NotFound);
        let closed = (|| {
            let instance = self.instance(held, key).ok_or_else(not_found)?;
            close(held, Operation::UnregisterIommu, &instance)?;
            let _registry = self.registry.lock(held);
            let was_there = instance.state() != InstanceState::Gone;
            instance.set_state(InstanceState::Gone);
            if was_there { Ok(instance) } else { Err(not_found()) }
        })();
        self.take_out(held, &Error::reported(closed)?);
        self.count_end();
        Ok(())
    }

    /// Takes an instance, which is out of service, from where it is found: by name, and in every domain's flush list.
    fn take_out(&self, held: &mut Held<'_, Unlocked>, instance: &Arc<Instance>) {
        self.instances.lock(held).bury(instance);
        let mut after = None;
        loop {
            let next = self.registry.lock(held).next_domain(after).map(|record| record.domain.clone());
            let Some(domain) = next else { break };
            domain.leave(held, instance);
            after = Some(domain.id());
        }
        self.tell(held, || Event::IommuUnregistered { iommu: instance.key });
    }

    /// Ends all instances: every stream faults, and clients stay enabled (contract S-8). Goes on past a failure and
    /// returns the first.
    ///
    /// # Errors
    ///
    /// [`Cause::Iommu`] with [`Left::Closing`]: that instance, which the error is about, is not out of service; call again.
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn shutdown(&self) -> Result<(), Error> {
        let mut held = Held::enter();
        let (mut failed, mut after) = (None, None);
        while let Some(instance) = self.next_instance(&mut held, after) {
            after = Some(instance.key);
            let closed = Error::reported(close(&mut held, Operation::Shutdown, &instance));
            failed = failed.or(closed.err());
        }
        failed.map_or(Ok(()), Err)
    }

    /// The instance with this name, for its fault handlers and for the end.
    #[must_use]
    pub fn iommu(&self, key: IommuKey) -> Option<IommuHandle> {
        self.instance(&mut Held::enter(), key).map(IommuHandle)
    }

    /// Lets faults of `iommu` raise interrupts: handlers stand on all of its lines (contract S-4).
    ///
    /// # Errors
    ///
    /// [`Cause::NotFound`], and what the driver says.
    ///
    /// # Context
    ///
    /// Waiting context.
    pub fn enable_reports(&self, iommu: IommuKey) -> Result<(), Error> {
        self.on_iommu(Operation::EnableReports, iommu, |iommu| iommu.enable_reports())
    }

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
    pub fn suspend_iommu(&self, iommu: IommuKey) -> Result<(), Error> {
        self.on_iommu(Operation::SuspendIommu, iommu, |iommu| iommu.suspend())
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
    pub fn resume_iommu(&self, iommu: IommuKey) -> Result<(), Error> {
        self.on_iommu(Operation::ResumeIommu, iommu, |iommu| iommu.resume())
    }

    fn on_iommu(
        &self,
        operation: Operation,
        key: IommuKey,
        act: impl FnOnce(&dyn Iommu) -> Result<(), IommuError>,
    ) -> Result<(), Error> {
        let mut held = Held::enter();
        let instance = self.named_instance(&mut held, operation, key)?;
        let done = act(instance.iommu.call(&mut held).as_ref());
        Error::reported(done.map_err(|error| of_driver(operation, key, error)))
    }
}

/// Every stream of an instance to fault, and nothing new in.
fn close(held: &mut Held<'_, Unlocked>, operation: Operation, instance: &Instance) -> Result<(), Error> {
    let closed = instance.iommu.call(held).close();
    closed.map_err(|error| Error { left: Left::Closing, ..of_driver(operation, instance.key, error) })
}

/// What a driver says, of an operation on its instance.
const fn of_driver(operation: Operation, iommu: IommuKey, error: IommuError) -> Error {
    Error::of_iommu(operation, iommu, Cause::Iommu { iommu, error })
}
