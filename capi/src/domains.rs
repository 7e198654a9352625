//! Guests' address spaces, and what IOMMUs have cached of them.

use alloc::boxed::Box;
use core::ffi::c_char;

use core::mem::MaybeUninit;

use iommu_assign::assign::{Domain, FlushRange, TablesHeld};

use crate::border::{self, Out, label, need};
use crate::error::{Failure, iommu_error};
use crate::platform::{self, Hypervisor};
use crate::service::iommu_service;
use crate::status::iommu_status;
use crate::values::{Form, iommu_call, iommu_flush_range, iommu_stage2};

/// A domain's handle. It keeps the object, not the domain: after it was destroyed every call with it gets
/// `IOMMU_STATUS_GONE` or `IOMMU_STATUS_DOMAIN_GONE`.
#[derive(Debug)]
pub struct iommu_domain(pub(crate) Domain<Hypervisor>);

/// A domain that has ended, whose tables some IOMMU may still read. Their memory must not be given to anyone before
/// `iommu_tables_redeem` says so.
#[derive(Debug)]
pub struct iommu_tables(TablesHeld<Hypervisor>);

/// Makes a domain of a guest's stage 2. Its tables stay the caller's.
///
/// @param name what people call it: UTF-8, not empty. Copied.
/// @param stage2 is copied.
/// @param domain gets a handle that the caller owns until `iommu_domain_put`; NULL is written there on failure.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`; `IOMMU_STATUS_INCOMPATIBLE` for tables that no SMMU could
/// follow.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_create_domain(
    service: Option<&iommu_service>,
    name: *const c_char,
    stage2: Option<&iommu_stage2>,
    domain: Option<&mut MaybeUninit<Option<Box<iommu_domain>>>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let (out, stage2) = (Out::at(domain)?, need(stage2)?.read()?);
        out.give(iommu_domain(need(service)?.service.create_domain(label(name)?, stage2)?));
        Ok(())
    })
}

/// Ends a domain. After `IOMMU_STATUS_OK` no IOMMU uses its tables: they can be freed. The handle stays the caller's.
///
/// @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_IN_USE` while a device refers to it; `IOMMU_STATUS_BUSY`; `IOMMU_STATUS_GONE`;
/// `IOMMU_STATUS_SYNC_TIMEOUT` and others of an IOMMU: the domain and its tables must stay, try again.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_destroy_domain(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    domain: Option<&iommu_domain>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let domain = need(domain)?;
        Form::of(call)?.run(&need(service)?.service, |within| within.destroy_domain(&domain.0))
    })
}

/// `iommu_destroy_domain`, also where an IOMMU does not confirm that it forgot the tables: the domain ends then all the
/// same, and its tables are held.
///
/// @param tables gets NULL where the tables can be freed at once, else a handle that the caller owns: they can be freed
/// when `iommu_tables_redeem` says so.
/// @return as for `iommu_destroy_domain`, but for `IOMMU_STATUS_SYNC_TIMEOUT`.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_retire_domain(
    service: Option<&iommu_service>,
    domain: Option<&iommu_domain>,
    tables: Option<&mut MaybeUninit<Option<Box<iommu_tables>>>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let out = Out::at(tables)?;
        if let Some(held) = need(service)?.service.retire_domain(&need(domain)?.0)? {
            out.give(iommu_tables(held));
        }
        Ok(())
    })
}

/// Asks every IOMMU once more to forget the tables of a domain that has ended.
///
/// @param tables the handle. After `IOMMU_STATUS_OK` it is freed, NULL is written there, and the tables' memory is free;
/// else it stays the caller's, to be tried again.
/// @return `IOMMU_STATUS_OK`, or what the first IOMMU says that does not confirm.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_tables_redeem(
    tables: Option<&mut Option<Box<iommu_tables>>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        // Memory for what may come back is taken before the call.
        let (place, room) = (need(tables)?, border::room()?);
        let held = need(place.take())?;
        held.0.redeem().map_err(|(held, cause)| {
            *place = Some(Box::write(room, iommu_tables(held)));
            cause.into()
        })
    })
}

/// Gives up on tables that no IOMMU confirmed to have forgotten: their memory can never be used again.
///
/// @param tables may be NULL.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_tables_put(tables: Option<Box<iommu_tables>>) {
    border::quietly((), || drop(tables));
}

/// Makes a second handle of a domain.
///
/// @param copy gets a handle that the caller owns until `iommu_domain_put`; NULL is written there on failure.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_domain_get(
    domain: Option<&iommu_domain>,
    copy: Option<&mut MaybeUninit<Option<Box<iommu_domain>>>>,
) -> iommu_status {
    border::run(None, || {
        let out = Out::at(copy)?;
        out.give(iommu_domain(need(domain)?.0.clone()));
        Ok(())
    })
}

/// Gives a domain's handle back. The domain stays until it is destroyed.
///
/// @param domain may be NULL.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_domain_put(domain: Option<Box<iommu_domain>>) {
    border::quietly((), || drop(domain));
}

/// A domain's number.
///
/// @return the number, which is never given again; 0 for NULL.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_domain_id(domain: Option<&iommu_domain>) -> u64 {
    domain.map_or(0, |domain| domain.0.id().number())
}

/// Makes every IOMMU forget what it cached of a domain's tables: needed after a mapping was removed or narrowed, never
/// after one was added.
///
/// @return `IOMMU_STATUS_OK`, or what an IOMMU says: stale translations may still be in use there, the others were flushed.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_flush(
    service: Option<&iommu_service>,
    domain: Option<&iommu_domain>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || Ok(need(service)?.service.flush(&need(domain)?.0)?))
}

/// `iommu_flush` of part of a domain: by page where the hardware can and it is worth it.
///
/// @return as for `iommu_flush`; `IOMMU_STATUS_INVALID_ARGUMENT` for a `leaf` that is no power of two, or below 4096.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_flush_range(
    service: Option<&iommu_service>,
    domain: Option<&iommu_domain>,
    range: Option<&iommu_flush_range>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || Ok(need(service)?.service.flush_range(&need(domain)?.0, &checked(range)?)?))
}

/// `iommu_flush_range` with a smaller bound of its own, and nothing logged.
///
/// @return as for `iommu_flush_range`, and `IOMMU_STATUS_NO_POWER`.
///
/// Context: atomic: where nothing may sleep, under a spin lock of the caller's own. Not in interrupt handlers.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_flush_range_atomic(
    service: Option<&iommu_service>,
    domain: Option<&iommu_domain>,
    range: Option<&iommu_flush_range>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || Ok(need(service)?.service.flush_range_atomic(&need(domain)?.0, &checked(range)?)?))
}

/// `iommu_flush_range_atomic` for interrupt handlers.
///
/// @return as there; `IOMMU_STATUS_NOT_SUPPLIED` where `interrupts_masked` of `struct iommu_platform` is 0.
///
/// Context: any, interrupts included. The caller keeps the domain, and whoever takes an SMMU out of service keeps a
/// handle of it until no handler can be in here.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_flush_range_in_interrupt(
    service: Option<&iommu_service>,
    domain: Option<&iommu_domain>,
    range: Option<&iommu_flush_range>,
) -> iommu_status {
    border::run(None, || {
        if !platform::masks_interrupts() {
            return Err(Failure::Of(iommu_status::NotSupplied));
        }
        Ok(need(service)?.service.in_interrupts().flush_range(&need(domain)?.0, &checked(range)?)?)
    })
}

fn checked(range: Option<&iommu_flush_range>) -> Result<FlushRange, Failure> {
    let range = FlushRange::from(*need(range)?);
    if range.leaf.is_power_of_two() && range.leaf >= 4096 {
        Ok(range)
    } else {
        Err(Failure::Argument("a leaf is no power of two of 4096 bytes or more"))
    }
}
