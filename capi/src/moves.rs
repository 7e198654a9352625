//! Devices to a guest and back, and trials of that.

#![expect(
    clippy::redundant_closure_for_method_calls,
    reason = "the method itself has one lifetime where any is wanted"
)]

use alloc::boxed::Box;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering;

use iommu_assign::assign::{Deassigned, Device, Domain, Error, Reservation, Within};

use crate::border::{self, Out, need, put};
use crate::domains::iommu_domain;
use crate::error::{Failure, iommu_error};
use crate::platform::Hypervisor;
use crate::service::iommu_service;
use crate::status::iommu_status;
use crate::told::iommu_outcome;
use crate::values::{Form, iommu_call, iommu_device, iommu_quarantine};

/// An assign that has been planned and cannot be refused any more. It ends with `iommu_reservation_commit` or
/// `iommu_reservation_abandon`; until then its service cannot be put.
#[derive(Debug)]
pub struct iommu_reservation {
    kept: Reservation<'static, Hypervisor>,
    service: &'static iommu_service,
}

/// Ends a reservation, and then what it counts for.
fn end(
    reservation: Option<Box<iommu_reservation>>,
    operation: fn(Reservation<'static, Hypervisor>) -> Result<(), Error>,
) -> Result<(), Failure> {
    let iommu_reservation { kept, service } = *need(reservation)?;
    let ended = operation(kept);
    service.reserved.fetch_sub(1, Ordering::Release);
    Ok(ended?)
}

fn move_to(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    device: Option<&iommu_device>,
    domain: Option<&iommu_domain>,
    operation: impl Fn(&Within<'_, Hypervisor>, &Device, &Domain<Hypervisor>) -> Result<(), Error>,
) -> Result<(), Failure> {
    let (device, domain) = (&need(device)?.0, &need(domain)?.0);
    Form::of(call)?.run(&need(service)?.service, |within| operation(within, device, domain))
}

/// Lets a domain's tables translate a device's DMA. A quarantined device is drained, quiesced and reset first.
///
/// @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_GROUP_CONFLICT`, `IOMMU_STATUS_ALREADY_ASSIGNED`, `IOMMU_STATUS_DENIED`,
/// `IOMMU_STATUS_BUSY`, `IOMMU_STATUS_GONE`, `IOMMU_STATUS_DOMAIN_GONE`, and what the IOMMUs say: nothing is changed then,
/// and no register written. With `IOMMU_LEFT_QUARANTINED` the hardware or a hook failed after the first write.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_assign(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    device: Option<&iommu_device>,
    domain: Option<&iommu_domain>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        move_to(service, call, device, domain, |within, device, domain| within.assign(device, domain))
    })
}

/// `iommu_assign`, for all devices of the device's group at once.
///
/// @return as for `iommu_assign`.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_assign_group(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    device: Option<&iommu_device>,
    domain: Option<&iommu_domain>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        move_to(service, call, device, domain, |within, device, domain| within.assign_group(device, domain))
    })
}

/// Moves a device from the domain that owns it to another: it is in fault, drained, quiesced and reset in between.
///
/// @return as for `iommu_assign`, and `IOMMU_STATUS_NOT_ASSIGNED`.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_reassign(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    device: Option<&iommu_device>,
    domain: Option<&iommu_domain>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        move_to(service, call, device, domain, |within, device, domain| within.reassign(device, domain))
    })
}

/// `iommu_reassign`, for all assigned devices of the device's group at once.
///
/// @return as for `iommu_reassign`.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_reassign_group(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    device: Option<&iommu_device>,
    domain: Option<&iommu_domain>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        move_to(service, call, device, domain, |within, device, domain| within.reassign_group(device, domain))
    })
}

fn take_back(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    device: Option<&iommu_device>,
    outcome: Option<&mut MaybeUninit<iommu_outcome>>,
    operation: impl Fn(&Within<'_, Hypervisor>, &Device) -> Result<Deassigned, Error>,
) -> Result<(), Failure> {
    let device = &need(device)?.0;
    let done = Form::of(call)?.run(&need(service)?.service, |within| operation(within, device))?;
    put(outcome, iommu_outcome::from(&done));
    Ok(())
}

/// Takes a device from its domain: its streams fault, what was in flight has drained, and it was quiesced and reset.
///
/// @param outcome says who keeps a shared stream translated, through which the device still reaches the domain. May be
/// NULL.
/// @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_NOT_ASSIGNED`, `IOMMU_STATUS_BUSY`, `IOMMU_STATUS_GONE`,
/// `IOMMU_STATUS_NO_POWER`: nothing changed; `IOMMU_STATUS_SYNC_TIMEOUT`, `IOMMU_STATUS_HOOK_FAILED`: it is quarantined.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_deassign(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    device: Option<&iommu_device>,
    outcome: Option<&mut MaybeUninit<iommu_outcome>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || take_back(service, call, device, outcome, |within, device| within.deassign(device)))
}

/// `iommu_deassign`, for all assigned devices of the device's group at once.
///
/// @return as for `iommu_deassign`.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_deassign_group(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    device: Option<&iommu_device>,
    outcome: Option<&mut MaybeUninit<iommu_outcome>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || take_back(service, call, device, outcome, |within, device| within.deassign_group(device)))
}

/// Takes the group of a device from its domain, if it has one, and keeps it owned by nobody; its DMA ends where `place`
/// says. An assign drains, quiesces and resets it first.
///
/// @param place NULL for faults.
/// @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_BUSY`, `IOMMU_STATUS_GONE`, `IOMMU_STATUS_OUT_OF_MEMORY`,
/// `IOMMU_STATUS_NO_POWER`: nothing changed; others with `IOMMU_LEFT_QUARANTINED`: its DMA faults.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_quarantine_group(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    device: Option<&iommu_device>,
    place: Option<&iommu_quarantine>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let (device, place) = (&need(device)?.0, place.copied().unwrap_or_default().read()?);
        Form::of(call)?.run(&need(service)?.service, |within| within.quarantine(device, place))
    })
}

/// Says whether `iommu_assign` would be refused now.
///
/// @return what `iommu_assign` would say.
///
/// Context: waiting. It writes no register, but to finish an earlier drain that keeps back all contexts there are.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_test_assign(
    service: Option<&iommu_service>,
    device: Option<&iommu_device>,
    domain: Option<&iommu_domain>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || Ok(need(service)?.service.test_assign(&need(device)?.0, &need(domain)?.0)?))
}

/// Checks and plans an assign, and keeps the plan. Until it ends every other operation on the group gets
/// `IOMMU_STATUS_BUSY`, and a removal waits for it.
///
/// @param reservation gets a handle that the caller ends with `iommu_reservation_commit` or `_abandon`; NULL is written
/// there on failure.
/// @return what `iommu_assign` would say: nothing is kept then.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_reserve(
    service: Option<&'static iommu_service>,
    device: Option<&iommu_device>,
    domain: Option<&iommu_domain>,
    reservation: Option<&mut MaybeUninit<Option<Box<iommu_reservation>>>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let out = Out::at(reservation)?;
        let service = need(service)?;
        let kept = service.service.reserve(&need(device)?.0, &need(domain)?.0)?;
        service.reserved.fetch_add(1, Ordering::AcqRel);
        out.give(iommu_reservation { kept, service });
        Ok(())
    })
}

/// Carries a reserved assign out.
///
/// @param reservation is freed in every case.
/// @return `IOMMU_STATUS_OK`; what an IOMMU says when the hardware fails: the device is quarantined;
/// `IOMMU_STATUS_REMOVED` when a removal was asked for meanwhile.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_reservation_commit(
    reservation: Option<Box<iommu_reservation>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || end(reservation, Reservation::commit))
}

/// Gives back what was reserved.
///
/// @param reservation is freed in every case.
/// @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_REMOVED` when a removal was asked for meanwhile: it is carried out now.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_reservation_abandon(
    reservation: Option<Box<iommu_reservation>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || end(reservation, Reservation::abandon))
}
