//! A driver in which something else happens between two steps of an operation, once.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use iommu_assign::assign::{
    AddressSpace, DeviceId, Difference, DomainId, FaultAnswer, FaultCounts, FaultLine, FlushRange, Iommu, IommuError,
    IommuFaults, IommuKey, IommuPower, Patience, RawFault, Service, Stage2Limits, StormReport, Stream, StreamId,
    Streams, Usage,
};
use iommu_assign::smmu::Smmu;
use iommu_assign::sync::{ManyCpus, Platform, Spin};
use machine::ModelRegisters;

use super::callbacks::Way;

/// When it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Moment {
    AfterMakeMaster,
    AfterPublish,
    AfterPlan,
    AfterInstall,
    BeforeBlock,
    BeforeWithdraw,
    BeforeForget,
    AfterRetire,
    BeforeClose,
}

type Act<P> = Box<dyn FnOnce(&Service<P>) + Send>;

/// A modelled SMMU's driver, and what happens in between.
pub(crate) struct Between<P: Platform> {
    pub(crate) inner: Arc<Smmu<Spin, ModelRegisters>>,
    way: Way<P>,
    then: Mutex<BTreeMap<Moment, Act<P>>>,
    /// What the next `overlapping` names first.
    pub(crate) also_overlaps: Mutex<Option<DeviceId>>,
    /// Every plan meets what another operation is about to give back.
    pub(crate) plans_are_busy: AtomicBool,
}

impl<P: Platform<Sharing = ManyCpus>> Between<P> {
    pub(crate) fn new(inner: Arc<Smmu<Spin, ModelRegisters>>, way: &Way<P>) -> Arc<Self> {
        let (then, also_overlaps, plans_are_busy) = Default::default();
        Arc::new(Self { inner, way: way.clone(), then, also_overlaps, plans_are_busy })
    }

    /// At the next such moment `act` is done.
    pub(crate) fn at(&self, moment: Moment, act: impl FnOnce(&Service<P>) + Send + 'static) {
        self.then.lock().unwrap().insert(moment, Box::new(act));
    }

    fn pass(&self, moment: Moment) {
        let act = self.then.lock().unwrap().remove(&moment);
        if let Some(act) = act {
            act(&self.way.service().unwrap());
        }
    }
}

impl<P: Platform> std::fmt::Debug for Between<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Between")
    }
}

impl<P: Platform<Sharing = ManyCpus>> Iommu for Between<P> {
    fn key(&self) -> IommuKey {
        self.inner.key()
    }

    fn limits(&self) -> Stage2Limits {
        self.inner.limits()
    }

    fn make_master(&self, device: DeviceId, streams: &[Stream], lazy: bool) -> Result<Box<dyn Any + Send>, IommuError> {
        let made = self.inner.make_master(device, streams, lazy);
        self.pass(Moment::AfterMakeMaster);
        made
    }

    fn publish(&self, master: Box<dyn Any + Send>) -> Result<bool, IommuError> {
        let published = self.inner.publish(master);
        self.pass(Moment::AfterPublish);
        published
    }

    fn overlapping(&self, device: DeviceId, after: Option<DeviceId>) -> Option<DeviceId> {
        let also = self.also_overlaps.lock().unwrap().take();
        also.or_else(|| self.inner.overlapping(device, after))
    }

    fn reserve(&self, device: DeviceId, is_claimed: &dyn Fn(DeviceId) -> bool) -> Result<Streams, IommuError> {
        self.inner.reserve(device, is_claimed)
    }

    fn enrol(&self, device: DeviceId) -> Result<(), IommuError> {
        self.inner.enrol(device)
    }

    fn shares(&self, one: DeviceId, other: DeviceId) -> bool {
        self.inner.shares(one, other)
    }

    fn plan(
        &self,
        devices: &[DeviceId],
        space: &AddressSpace,
        is_claimed: &dyn Fn(DeviceId) -> bool,
    ) -> Result<(), IommuError> {
        if self.plans_are_busy.load(Ordering::Relaxed) {
            return Err(IommuError::Busy);
        }
        let planned = self.inner.plan(devices, space, is_claimed);
        self.pass(Moment::AfterPlan);
        planned
    }

    fn abandon(&self, devices: &[DeviceId]) {
        self.inner.abandon(devices);
    }

    fn install(&self, devices: &[DeviceId]) -> Result<(), IommuError> {
        let installed = self.inner.install(devices);
        self.pass(Moment::AfterInstall);
        installed
    }

    fn block(&self, devices: &[DeviceId]) -> Result<Streams, IommuError> {
        self.pass(Moment::BeforeBlock);
        self.inner.block(devices)
    }

    fn withdraw(&self, device: DeviceId) -> Result<Streams, IommuError> {
        self.pass(Moment::BeforeWithdraw);
        self.inner.withdraw(device)
    }

    fn flush(&self, domain: DomainId, range: Option<&FlushRange>, patience: Patience) -> Result<(), IommuError> {
        self.inner.flush(domain, range, patience)
    }

    fn forget(&self, domain: DomainId) -> Result<(), IommuError> {
        self.pass(Moment::BeforeForget);
        self.inner.forget(domain)
    }

    fn owner_of(&self, stream: StreamId, domain: Option<DomainId>) -> Option<DeviceId> {
        self.inner.owner_of(stream, domain)
    }

    fn next_known(&self, after: Option<DeviceId>) -> Option<(DeviceId, Option<DomainId>)> {
        self.inner.next_known(after)
    }

    fn audit(&self, report: &mut dyn FnMut(Difference)) {
        self.inner.audit(report);
    }

    fn usage(&self, report: &mut dyn FnMut(Usage)) {
        self.inner.usage(report);
    }
}

impl<P: Platform<Sharing = ManyCpus>> IommuPower for Between<P> {
    fn hold_power(&self) -> Result<(), IommuError> {
        self.inner.hold_power()
    }

    fn release_power(&self) {
        self.inner.release_power();
    }

    fn retire(&self) -> Result<(), IommuError> {
        let retired = self.inner.retire();
        self.pass(Moment::AfterRetire);
        retired
    }

    fn close(&self) -> Result<(), IommuError> {
        self.pass(Moment::BeforeClose);
        self.inner.close()
    }
}

impl<P: Platform<Sharing = ManyCpus>> IommuFaults for Between<P> {
    fn take_faults(&self, line: FaultLine, report: &mut dyn FnMut(RawFault)) -> FaultAnswer {
        self.inner.take_faults(line, report)
    }

    fn tend_faults(&self, storming: &mut dyn FnMut(StormReport)) {
        self.inner.tend_faults(storming);
    }

    fn fault_counts(&self) -> FaultCounts {
        self.inner.fault_counts()
    }
}
