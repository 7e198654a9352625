//! The service, and what can be seen of it.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ffi::{c_char, c_void};
use core::fmt;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicUsize, Ordering};

use iommu_assign::assign::{Finding, IommuKey, Resource, Service, UsageRecord};
use iommu_assign::smmu::Masters;

use crate::border::{self, Out, Text, need, put};
use crate::callbacks::{iommu_events, iommu_policy};
use crate::error::{Failure, iommu_error};
use crate::platform::Hypervisor;
use crate::status::iommu_status;
use crate::told::name;

/// The assignment service: one for a machine. Every call that is given one may be made from several CPUs at once.
#[derive(Debug)]
pub struct iommu_service {
    pub(crate) service: Service<Hypervisor>,
    pub(crate) masters: Arc<Masters<Hypervisor>>,
    /// Reservations, which refer to it.
    pub(crate) reserved: AtomicUsize,
}

// --- the service ---

/// Makes a service without devices, domains or SMMUs.
///
/// @param policy is copied; NULL as all zero: only what firmware marked is assigned.
/// @param events is copied; may be NULL.
/// @param service gets the service; NULL is written there on failure. The caller owns it until `iommu_service_put`.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`, `IOMMU_STATUS_NOT_INITIALISED`.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_service_new(
    policy: Option<&iommu_policy>,
    events: Option<&iommu_events>,
    service: Option<&mut MaybeUninit<Option<Box<iommu_service>>>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let out = Out::at(service)?;
        let none = iommu_policy { context: core::ptr::null_mut(), allows: None };
        let policy = policy.unwrap_or(&none).read();
        let service = match events.and_then(iommu_events::read) {
            Some(events) => Service::with_events(policy, events),
            None => Service::new(policy),
        };
        out.give(iommu_service { service, masters: Arc::new(Masters::new()), reserved: AtomicUsize::new(0) });
        Ok(())
    })
}

/// Ends a service and frees it. The hardware stays as it is: call `iommu_shutdown` before, where streams are to fault.
///
/// @param service no call with it may be running or follow. Handles of devices, domains and SMMUs may be put later.
/// @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_IN_USE` while a reservation has not ended: the service stays.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_service_put(service: Option<Box<iommu_service>>) -> iommu_status {
    border::run(None, || {
        let service = need(service)?;
        if service.reserved.load(Ordering::Acquire) > 0 {
            // The caller's still.
            let _ = Box::leak(service);
            return Err(Failure::Of(iommu_status::InUse));
        }
        Ok(())
    })
}

/// Releases the memory of what is registered no more, and ends registrations whose source object was put. To be called
/// by a worker after `wake`, or from time to time.
///
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_reap(service: Option<&iommu_service>) -> iommu_status {
    border::run(None, || {
        need(service)?.service.reap();
        Ok(())
    })
}

// --- what can be seen ---

/// What tables every registered SMMU can follow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct iommu_limits {
    /// Most bits of a guest-physical address.
    pub ipa_bits: u8,
    /// Most bits of an output address.
    pub output_bits: u8,
    /// Pages of 4 KiB can be walked.
    pub granule_4k: bool,
    /// Pages of 16 KiB can be walked.
    pub granule_16k: bool,
    /// Pages of 64 KiB can be walked.
    pub granule_64k: bool,
    /// Walks are coherent with the CPU's caches.
    pub coherent: bool,
    /// Blocks above the last level may be used.
    pub blocks: bool,
}

/// Says what tables all registered SMMUs can follow, for a hypervisor that builds a guest's tables before it knows which
/// devices the guest gets.
///
/// @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_NOT_FOUND` without an SMMU.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_get_limits(
    service: Option<&iommu_service>,
    limits: Option<&mut MaybeUninit<iommu_limits>>,
) -> iommu_status {
    border::run(None, || {
        let place = need(limits)?;
        let limits = need(service)?.service.limits().ok_or(Failure::Of(iommu_status::NotFound))?;
        place.write(iommu_limits {
            ipa_bits: limits.ipa_bits,
            output_bits: limits.output_bits,
            granule_4k: limits.granules.kib4,
            granule_16k: limits.granules.kib16,
            granule_64k: limits.granules.kib64,
            coherent: limits.coherent,
            blocks: limits.blocks,
        });
        Ok(())
    })
}

/// Says whether devices came or went.
///
/// @return a number that changes whenever a device is registered or unregistered; 0 for NULL.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_generation(service: Option<&iommu_service>) -> u64 {
    border::quietly(0, || service.map_or(0, |service| service.service.generation()))
}

/// Writes the whole state as a tree for a console: each device with its owner, group and streams.
///
/// @param write is handed pieces of text that do not end with a NUL. It is called with no lock of the library held.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
///
/// Context: waiting. Devices that come or go meanwhile may be there or not.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_write_tree(
    service: Option<&iommu_service>,
    write: Option<extern "C" fn(context: *mut c_void, text: *const c_char, length: usize)>,
    context: *mut c_void,
) -> iommu_status {
    struct Pieces(extern "C" fn(*mut c_void, *const c_char, usize), *mut c_void);
    impl fmt::Write for Pieces {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            (self.0)(self.1, text.as_ptr().cast(), text.len());
            Ok(())
        }
    }
    border::run(None, || {
        let (service, write) = (need(service)?, need(write)?);
        service.service.write_tree(&mut Pieces(write, context)).map_err(|_| Failure::Of(iommu_status::Other))
    })
}

/// One of something scarce that is in use. Valid during the callback.
#[repr(C)]
#[derive(Debug)]
pub struct iommu_usage {
    /// What it is one of, for people: "stream-map entries", "context banks", "VMIDs".
    pub resource: *const c_char,
    /// `IOMMU_RESOURCE_ENTRY` and so on.
    pub kind: iommu_resource,
    /// Its number.
    pub index: u32,
    /// A device that uses it; NULL where none is known.
    pub device: *const c_char,
    /// The domain that it serves; NULL without one.
    pub domain: *const c_char,
}

/// What an SMMU can run out of.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum iommu_resource {
    /// Something that this version has no code for.
    Other = 0,
    /// Stream-map entries.
    Entry,
    /// Context banks.
    Bank,
    /// Tags for cached translations.
    Vmid,
}

/// Tells who uses what there is a fixed number of at an SMMU.
///
/// @param sink is called for each with no lock of the library held, and must not call the library.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_each_usage(
    service: Option<&iommu_service>,
    iommu: u64,
    sink: Option<extern "C" fn(context: *mut c_void, usage: &iommu_usage)>,
    context: *mut c_void,
) -> iommu_status {
    border::run(None, || {
        let (service, sink) = (need(service)?, need(sink)?);
        let mut told = |record: &UsageRecord| {
            let resource = Text::<256>::of(record.resource);
            let (device, domain) = (record.device.as_ref().map(Text::of), record.domain.as_ref().map(Text::of));
            let usage = iommu_usage {
                resource: resource.as_ptr(),
                kind: match record.resource {
                    Resource::StreamMapEntries => iommu_resource::Entry,
                    Resource::ContextBanks => iommu_resource::Bank,
                    Resource::Vmids => iommu_resource::Vmid,
                    _ => iommu_resource::Other,
                },
                index: record.index.into(),
                device: name(device.as_ref()),
                domain: name(domain.as_ref()),
            };
            sink(context, &usage);
        };
        Ok(service.service.usage(IommuKey::new(iommu), &mut told)?)
    })
}

/// Compares the registry with the drivers and these with their registers. Changes nothing.
///
/// @param sink is called for each difference, with a line of text. May be NULL: they are only counted.
/// @param count gets how many there are; may be NULL.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
///
/// Context: waiting. Meaningful while no operation runs.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_audit(
    service: Option<&iommu_service>,
    sink: Option<extern "C" fn(context: *mut c_void, text: *const c_char)>,
    context: *mut c_void,
    count: Option<&mut MaybeUninit<usize>>,
) -> iommu_status {
    border::run(None, || {
        let mut found = 0_usize;
        need(service)?.service.audit(&mut |finding: &Finding| {
            found = found.saturating_add(1);
            if let Some(sink) = sink {
                sink(context, Text::<512>::of(finding).as_ptr());
            }
        });
        put(count, found);
        Ok(())
    })
}
