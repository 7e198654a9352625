//! What another domain has had between the two halves of a registration anew.

#![cfg(not(any(loom, shuttle)))]

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec;
use core::any::Any;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::assign::{
    AddressSpace, DeviceHooks, DeviceId, DeviceKey, Difference, DomainId, FaultAnswer, FaultLine, FlushRange, Granule,
    Granules, HookContext, HookError, Iommu, IommuError, IommuFaults, IommuKey, IommuPower, Patience, PhysicalAddress,
    Policy, PolicyRequest, RawFault, Source, Stage2, Stage2Limits, Stream, StreamId, StreamMask, Streams, TableMemory,
};
use crate::sync::Spin;

/// An IOMMU that does whatever it is told.
#[derive(Debug)]
struct Willing;

impl IommuPower for Willing {}

impl IommuFaults for Willing {
    fn take_faults(&self, _: FaultLine, _: &mut dyn FnMut(RawFault)) -> FaultAnswer {
        FaultAnswer::Done
    }
}

impl Iommu for Willing {
    fn key(&self) -> IommuKey {
        IommuKey::new(1)
    }
    fn limits(&self) -> Stage2Limits {
        let granules = Granules { kib4: true, kib16: false, kib64: false };
        Stage2Limits { ipa_bits: 40, output_bits: 40, granules, coherent: true, blocks: true }
    }
    fn make_master(&self, _: DeviceId, _: &[Stream], _: bool) -> Result<Box<dyn Any + Send>, IommuError> {
        Ok(Box::new(()))
    }
    fn publish(&self, _: Box<dyn Any + Send>) -> Result<bool, IommuError> {
        Ok(true)
    }
    fn overlapping(&self, _: DeviceId, _: Option<DeviceId>) -> Option<DeviceId> {
        None
    }
    fn reserve(&self, _: DeviceId, _: &dyn Fn(DeviceId) -> bool) -> Result<Streams, IommuError> {
        Ok(Streams::Fault)
    }
    fn enrol(&self, _: DeviceId) -> Result<(), IommuError> {
        Ok(())
    }
    fn shares(&self, _: DeviceId, _: DeviceId) -> bool {
        false
    }
    fn plan(&self, _: &[DeviceId], _: &AddressSpace, _: &dyn Fn(DeviceId) -> bool) -> Result<(), IommuError> {
        Ok(())
    }
    fn abandon(&self, _: &[DeviceId]) {}
    fn install(&self, _: &[DeviceId]) -> Result<(), IommuError> {
        Ok(())
    }
    fn block(&self, _: &[DeviceId]) -> Result<Streams, IommuError> {
        Ok(Streams::Fault)
    }
    fn withdraw(&self, _: DeviceId) -> Result<Streams, IommuError> {
        Ok(Streams::Fault)
    }
    fn flush(&self, _: DomainId, _: Option<&FlushRange>, _: Patience) -> Result<(), IommuError> {
        Ok(())
    }
    fn forget(&self, _: DomainId) -> Result<(), IommuError> {
        Ok(())
    }
    fn owner_of(&self, _: StreamId, _: Option<DomainId>) -> Option<DeviceId> {
        None
    }
    fn next_known(&self, _: Option<DeviceId>) -> Option<(DeviceId, Option<DomainId>)> {
        None
    }
    fn audit(&self, _: &mut dyn FnMut(Difference)) {}
}

#[derive(Debug)]
struct Anyone;

impl Policy for Anyone {
    fn allows(&self, _: &PolicyRequest<'_>) -> bool {
        true
    }
}

#[derive(Debug, Default)]
struct Resets {
    done: AtomicU32,
    fail: AtomicBool,
}

impl DeviceHooks for Resets {
    fn quiesce(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        Ok(())
    }
    fn reset(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        if self.fail.load(Ordering::Relaxed) {
            return Err(HookError("no answer"));
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
    fn release(&self, _: &HookContext<'_>) {}
}

/// Another CPU was faster than the restoring, and its guest's device could not be reset: it is not the old owner's as it is.
#[test]
fn i14_what_another_had_before_it_was_restored_is_reset_first() {
    let service = Service::<Spin>::new(Box::new(Anyone));
    service.register_iommu(Arc::new(Willing)).unwrap();
    let stage2 = Stage2 {
        root: PhysicalAddress::new(0x1_0000),
        ipa_bits: 40,
        start_level: 1,
        granule: Granule::Kib4,
        output_bits: 40,
        tables: TableMemory::WriteBackInnerShareable,
    };
    let [owner, other] = ["owner", "other"].map(|name| service.create_domain(name.into(), stage2).unwrap());
    let resets = Arc::new(Resets::default());
    let stream = Stream::new(IommuKey::new(1), StreamId::new(1), StreamMask::NONE);
    let spec = DeviceSpec {
        hooks: resets.clone(),
        ..DeviceSpec::new(DeviceKey::new(Source::Dt, 1), "dma".into(), vec![stream])
    };
    let added = || service.add_as(CallChain::NONE, spec.copied().unwrap(), UNCLEAN).unwrap();
    let count = || resets.done.load(Ordering::Relaxed);
    // As it was left: no reset.
    let device = added();
    service.restore(&device, &owner).unwrap();
    assert_eq!(count(), 0);
    let _ = service.remove(&device).unwrap();
    // Another gets it, after a reset, and leaves its own state in it.
    let device = added();
    service.assign(&device, &other).unwrap();
    assert_eq!(count(), 1);
    resets.fail.store(true, Ordering::Relaxed);
    assert!(service.deassign(&device).is_err());
    assert_eq!(service.find(device.key()).unwrap().state, UNCLEAN);
    resets.fail.store(false, Ordering::Relaxed);
    service.restore(&device, &owner).unwrap();
    assert_eq!(count(), 2, "the owner got what the other guest left");
    // Who resets what is quarantined comes too late, and takes it from nobody.
    let error = service.reset_quarantined(&device).unwrap_err();
    assert_eq!((error.cause, count()), (Cause::NotAssigned, 2));
    assert_eq!(service.find(device.key()).unwrap().state, DeviceState::Assigned(owner.id()));
}
