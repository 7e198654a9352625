//! SMMUs: into service and out, asleep and awake.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::mem::MaybeUninit;

use iommu_assign::assign::{IommuHandle, IommuKey, Stream};
use iommu_assign::smmu::{Reserved, Setup, Smmu};

use crate::border::{self, Out, need, put};
use crate::callbacks::iommu_power;
use crate::error::{Failure, iommu_error};
use crate::platform::Hypervisor;
use crate::registers::{self, Instances, iommu_registers};
use crate::service::iommu_service;
use crate::smmu_config::iommu_smmu_config;
use crate::status::iommu_status;
use crate::values::{Form, iommu_call, iommu_stage2, iommu_stream};

/// An SMMU's handle, for fault handlers and for the end. It keeps the object's memory, not its service.
#[derive(Debug)]
pub struct iommu_instance(pub(crate) IommuHandle);

/// Streams that firmware set up and that must go on through the take-over: a display that shows a boot picture.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct iommu_reserved {
    /// The streams.
    pub streams: *const iommu_stream,
    /// How many.
    pub stream_count: usize,
    /// What they may reach until a device that owns them is assigned: tables of the integrator's for these regions.
    pub space: iommu_stage2,
}

/// How an SMMU is reached, beside its description.
#[repr(C)]
#[derive(Debug)]
pub struct iommu_setup<'a> {
    /// One for each instance that is programmed alike; usually one. Copied.
    pub registers: *const iommu_registers,
    /// How many, 1 or more.
    pub register_count: usize,
    /// Copied; NULL for one that always has power.
    pub power: Option<&'a iommu_power>,
    /// Streams that firmware reserved. Copied; may be NULL.
    pub reserved: *const iommu_reserved,
    /// How many.
    pub reserved_count: usize,
}

/// What was odd at an SMMU and worked around.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct iommu_notes {
    /// Bytes of registers as IDR1 tells them, where firmware gives another number; 0 where they agree.
    pub register_bytes: u64,
    /// IDR0.CTTW and firmware's `dma-coherent` differ: firmware is believed.
    pub coherency_differs: bool,
    /// Banks that prefetch still: the Secure side keeps them locked.
    pub prefetching: u8,
}

fn reserved_of(given: &[iommu_reserved]) -> Result<Vec<Reserved>, Failure> {
    let one = |given: &iommu_reserved| {
        let streams = border::slice(given.streams, given.stream_count)?;
        let streams = border::list(streams.len(), streams.iter().map(|stream| Ok(Stream::from(*stream))))?;
        Ok(Reserved { streams, space: given.space.read()? })
    };
    border::list(given.len(), given.iter().map(one))
}

/// Probes an SMMU, brings all of its streams to fault, enables it and puts it into service. From here on what no device
/// is assigned for faults.
///
/// @param config is copied.
/// @param setup is copied.
/// @param notes may be NULL.
/// @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_ALREADY_REGISTERED`, with no register touched; `IOMMU_STATUS_PROBE_FAILED`,
/// `IOMMU_STATUS_SYNC_TIMEOUT`, `IOMMU_STATUS_NO_POWER`, `IOMMU_STATUS_OUT_OF_MEMORY`: it is not enabled.
///
/// Context: waiting; a sync is polled. Not about one SMMU twice at the same time.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_register(
    service: Option<&iommu_service>,
    config: Option<&iommu_smmu_config>,
    setup: Option<&iommu_setup<'_>>,
    notes: Option<&mut MaybeUninit<iommu_notes>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let (service, config, setup) = (need(service)?, need(config)?.read()?, need(setup)?);
        let registers = registers::read(border::slice(setup.registers, setup.register_count)?)?;
        let reserved = reserved_of(border::slice(setup.reserved, setup.reserved_count)?)?;
        let power = setup.power.map_or(Ok(None), iommu_power::read)?;
        if service.service.iommu(config.key).is_some() {
            // To probe it would reset what is live.
            return Err(Failure::Of(iommu_status::AlreadyRegistered));
        }
        let smmu = Smmu::<Hypervisor, Instances>::probe_with(
            config,
            Setup { power, reserved },
            registers,
            service.masters.clone(),
        )?;
        let found = *smmu.notes();
        service.service.register_iommu(Arc::new(smmu))?;
        let register_bytes = found.region.map_or(0, |(_, told)| told);
        let iommu_notes =
            iommu_notes { register_bytes, coherency_differs: found.coherency_differs, prefetching: found.prefetching };
        put(notes, iommu_notes);
        Ok(())
    })
}

/// Takes an SMMU out of service. No device may be registered on it. Afterwards none of its registers is touched.
///
/// @param iommu the CPU physical address of its registers.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`, `IOMMU_STATUS_IN_USE`, `IOMMU_STATUS_BUSY`, and
/// `IOMMU_STATUS_SYNC_TIMEOUT` where an earlier drain is still not confirmed: it stays in service.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_unregister(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    iommu: u64,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let key = IommuKey::new(iommu);
        Form::of(call)?.run(&need(service)?.service, |within| within.unregister_iommu(key))
    })
}

/// Takes an SMMU out of service though devices use it: every stream faults, what they acquire there gets
/// `IOMMU_STATUS_PROVIDER_GONE`, and what they release is done in software.
///
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`; `IOMMU_STATUS_NOT_RESUMED` or `IOMMU_STATUS_NO_POWER`: its
/// streams could not be silenced; others: it is not out of service yet, call again.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_force_unregister(
    service: Option<&iommu_service>,
    iommu: u64,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || Ok(need(service)?.service.force_unregister_iommu(IommuKey::new(iommu))?))
}

/// Ends all SMMUs: every stream faults, clients stay enabled. Goes on past a failure and tells the first.
///
/// @return `IOMMU_STATUS_OK`, or what the first one says that is not out of service: call again.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_shutdown(
    service: Option<&iommu_service>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || Ok(need(service)?.service.shutdown()?))
}

/// Says that an SMMU is about to lose its power. All of its masters must have been stopped. Operations go on, on paper,
/// and count from `iommu_resume` on.
///
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`, `IOMMU_STATUS_BUSY` where an operation there does not end in time.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_suspend(
    service: Option<&iommu_service>,
    iommu: u64,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || Ok(need(service)?.service.suspend_iommu(IommuKey::new(iommu))?))
}

/// Brings an SMMU back to what the service believes of it.
///
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`, or what the driver says: it stays suspended.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_resume(
    service: Option<&iommu_service>,
    iommu: u64,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || Ok(need(service)?.service.resume_iommu(IommuKey::new(iommu))?))
}

/// Lets faults of an SMMU raise interrupts: handlers stand on all of its lines.
///
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`, or what the driver says.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_enable_reports(
    service: Option<&iommu_service>,
    iommu: u64,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || Ok(need(service)?.service.enable_reports(IommuKey::new(iommu))?))
}

/// Finds an SMMU that is in service, for its fault handlers and for the end.
///
/// @param instance gets a handle that the caller owns until `iommu_instance_put`; NULL is written there on failure.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_instance_find(
    service: Option<&iommu_service>,
    iommu: u64,
    instance: Option<&mut MaybeUninit<Option<Box<iommu_instance>>>>,
) -> iommu_status {
    border::run(None, || {
        let out = Out::at(instance)?;
        let found = need(service)?.service.iommu(IommuKey::new(iommu));
        out.give(iommu_instance(found.ok_or(Failure::Of(iommu_status::NotFound))?));
        Ok(())
    })
}

/// Gives an SMMU's handle back.
///
/// @param instance may be NULL. No handler may be using it.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_instance_put(instance: Option<Box<iommu_instance>>) {
    border::quietly((), || drop(instance));
}

/// Every stream of an SMMU to fault, for a hypervisor that is crashing: no lock, a bounded number of polls. Nothing but
/// this may follow.
///
/// @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_SYNC_TIMEOUT`: what was in flight may not have drained;
/// `IOMMU_STATUS_NO_POWER`: nothing was touched, give it power and call again.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_crash(instance: Option<&iommu_instance>) -> iommu_status {
    border::run(None, || Ok(need(instance)?.0.crash()?))
}
