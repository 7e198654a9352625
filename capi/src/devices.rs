//! Devices: in and out, to a guest and back.

#![expect(
    clippy::redundant_closure_for_method_calls,
    reason = "the method itself has one lifetime where any is wanted"
)]

use alloc::boxed::Box;
use core::ffi::c_char;
use core::mem::MaybeUninit;

use iommu_assign::assign::{
    DeviceCall, DeviceInfo, DeviceKey, DeviceSpec, Error, Removal, SourceObject, Stream, Within,
};

use crate::border::{self, Out, label, need, put};
use crate::callbacks::iommu_hooks;
use crate::error::{Failure, iommu_error};
use crate::platform::Hypervisor;
use crate::service::iommu_service;
use crate::status::iommu_status;
use crate::told::{iommu_device_info, iommu_outcome};
use crate::values::{Form, iommu_call, iommu_device, iommu_device_key, iommu_stream};

/// A source's own object: while it lives, so do the registrations that name it.
#[derive(Debug)]
pub struct iommu_source(SourceObject<Hypervisor>);

/// Firmware marked the device for passthrough: `iommu_device_spec.flags`.
pub const IOMMU_DEVICE_PASSTHROUGH: u32 = 1;
/// Its stream-map entries are taken at its first assign, not at its add.
pub const IOMMU_DEVICE_LAZY: u32 = 2;
/// Devices with the same `isolation` are not isolated from each other by their bus (missing ACS): one group.
pub const IOMMU_DEVICE_SHARES_BUS: u32 = 4;

/// A device as its source offers it. Everything is copied.
#[repr(C)]
#[derive(Debug)]
pub struct iommu_device_spec<'a> {
    /// What the source calls it.
    pub key: iommu_device_key,
    /// What people call it: UTF-8, not empty.
    pub name: *const c_char,
    /// The device that it stands behind, which must be registered; NULL for none.
    pub parent: Option<&'a iommu_device_key>,
    /// All streams that its DMA can carry, aliases and phantom functions included.
    pub streams: *const iommu_stream,
    /// How many.
    pub stream_count: usize,
    /// `IOMMU_DEVICE_PASSTHROUGH` and so on.
    pub flags: u32,
    /// A number for `IOMMU_DEVICE_SHARES_BUS`.
    pub isolation: u64,
    /// The object with which the registration ends; NULL for none.
    pub source: Option<&'a iommu_source>,
    /// What the source does for it; NULL for nothing.
    pub hooks: Option<&'a iommu_hooks>,
}

impl iommu_device_spec<'_> {
    fn read(&self) -> Result<DeviceSpec, Failure> {
        let streams = border::slice(self.streams, self.stream_count)?;
        let streams = border::list(streams.len(), streams.iter().map(|stream| Ok(Stream::from(*stream))))?;
        Ok(DeviceSpec {
            parent: self.parent.map(|parent| parent.read()).transpose()?,
            isolation: (self.flags & IOMMU_DEVICE_SHARES_BUS != 0).then_some(self.isolation),
            passthrough: self.flags & IOMMU_DEVICE_PASSTHROUGH != 0,
            lazy: self.flags & IOMMU_DEVICE_LAZY != 0,
            source: self.source.map(|source| source.0.life()),
            hooks: iommu_hooks::read(self.hooks),
            ..DeviceSpec::new(self.key.read()?, label(self.name)?, streams)
        })
    }
}

// --- in and out ---

/// Registers a device: its streams take their stream-map entries, in fault, and it joins the group that they overlap.
///
/// @param device gets a handle that the caller owns until `iommu_device_put`; NULL is written there on failure.
/// @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_NO_STREAMS`; `IOMMU_STATUS_PROVIDER_MISSING`: offer it again when the IOMMU is
/// registered; `IOMMU_STATUS_ALREADY_REGISTERED`; `IOMMU_STATUS_PARENT_MISSING`; `IOMMU_STATUS_GROUP_CONFLICT`;
/// `IOMMU_STATUS_BUSY`; `IOMMU_STATUS_SOURCE_ENDED`; `IOMMU_STATUS_REMOVED`; `IOMMU_STATUS_OUT_OF_MEMORY`; and what the
/// IOMMUs say. Nothing is changed then, but with `IOMMU_LEFT_GOING`: the device is registered, and is to be removed.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_add(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    spec: Option<&iommu_device_spec<'_>>,
    device: Option<&mut MaybeUninit<Option<Box<iommu_device>>>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || add(service, call, device, || need(spec)?.read()))
}

/// Registers what `spec` says.
pub(crate) fn add(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    device: Option<&mut MaybeUninit<Option<Box<iommu_device>>>>,
    spec: impl FnOnce() -> Result<DeviceSpec, Failure>,
) -> Result<(), Failure> {
    let (out, spec) = (Out::at(device)?, spec()?);
    let added = Form::of(call)?.run(&need(service)?.service, |within| within.add(spec.clone()))?;
    out.give(iommu_device(added));
    Ok(())
}

fn remove(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    key: Option<&iommu_device_key>,
    outcome: Option<&mut MaybeUninit<iommu_outcome>>,
    operation: impl Fn(&Within<'_, Hypervisor>, DeviceKey) -> Result<Removal, Error>,
) -> Result<(), Failure> {
    let (service, key, form) = (need(service)?, need(key)?.read()?, Form::of(call)?);
    let done = form.run(&service.service, |within| operation(within, key))?;
    put(outcome, iommu_outcome::from(&done));
    Ok(())
}

/// Removes a device, whatever its state: its DMA is cut, then it is forgotten. To remove an assigned device is legal: a
/// surprise unplug, the domain loses it.
///
/// @param key what its source calls it.
/// @param outcome what the removal did; may be NULL. With `IOMMU_REMOVAL_PENDING` the running operation finishes it. A
/// call that waits does so until the device is gone.
/// @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_NOT_FOUND`; `IOMMU_STATUS_HAS_CHILDREN`; `IOMMU_STATUS_BUSY`;
/// `IOMMU_STATUS_STILL_IN_USE` while calls are inside the device: its DMA is cut, call again; what an IOMMU says, with
/// `IOMMU_LEFT_GOING` or `IOMMU_LEFT_GOING_LIVE`: call again.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_remove(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    key: Option<&iommu_device_key>,
    outcome: Option<&mut MaybeUninit<iommu_outcome>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || {
        let Form { chain, wait: Some(deadline) } = Form::of(call)? else {
            return remove(service, call, key, outcome, |within, key| within.remove(key));
        };
        need(service)?.service.within(chain).remove_and_wait(need(key)?.read()?, deadline)?;
        put(outcome, iommu_outcome::from(&Removal::Done));
        Ok(())
    })
}

/// Removes a device and everything that stands behind it, children first. From the call on no child can be added there.
///
/// @return as for `iommu_remove`, but for children; of several failures the first.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_remove_tree(
    service: Option<&iommu_service>,
    call: Option<&iommu_call<'_>>,
    key: Option<&iommu_device_key>,
    outcome: Option<&mut MaybeUninit<iommu_outcome>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || remove(service, call, key, outcome, |within, key| within.remove_tree(key)))
}

/// Makes an object for a source to keep: when it goes, what names it is removed.
///
/// @param source gets a handle that the caller owns until `iommu_source_end` or `iommu_source_put`.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_source_new(
    service: Option<&iommu_service>,
    source: Option<&mut MaybeUninit<Option<Box<iommu_source>>>>,
) -> iommu_status {
    border::run(None, || {
        let out = Out::at(source)?;
        out.give(iommu_source(need(service)?.service.source_object()));
        Ok(())
    })
}

/// Ends a source's object and the registrations that name it, the last one first.
///
/// @param source is freed in every case.
/// @return as for `iommu_remove`: the first failure. `iommu_reap` goes on with what is left.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_source_end(
    service: Option<&iommu_service>,
    source: Option<Box<iommu_source>>,
    error: Option<&mut MaybeUninit<iommu_error>>,
) -> iommu_status {
    border::run(error, || Ok(need(service)?.service.end_source(need(source)?.0)?))
}

/// Ends a source's object: the registrations that name it end with the next `iommu_reap`, for which it wakes.
///
/// @param source may be NULL.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_source_put(source: Option<Box<iommu_source>>) {
    border::quietly((), || drop(source));
}

// --- look-up and traversal ---

/// Finds the device that is registered under a key.
///
/// @param device gets a handle that the caller owns until `iommu_device_put`; NULL is written there on failure.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_NOT_FOUND`.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_find(
    service: Option<&iommu_service>,
    key: Option<&iommu_device_key>,
    device: Option<&mut MaybeUninit<Option<Box<iommu_device>>>>,
) -> iommu_status {
    border::run(None, || {
        let out = Out::at(device)?;
        let found = need(service)?.service.find(need(key)?.read()?);
        out.give(iommu_device(found.ok_or(Failure::Of(iommu_status::NotFound))?.device));
        Ok(())
    })
}

/// Steps to the device after a key, in the order of keys. A traversal of such steps holds nothing between them, never
/// skips or repeats a device that stays, and survives the removal of the one that it stands on.
///
/// @param after NULL for the first device.
/// @param info what it is now; may be NULL.
/// @param device gets a handle that the caller owns until `iommu_device_put`; may be NULL.
/// @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_NOT_FOUND` after the last device.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_next_device(
    service: Option<&iommu_service>,
    after: Option<&iommu_device_key>,
    info: Option<&mut MaybeUninit<iommu_device_info>>,
    device: Option<&mut MaybeUninit<Option<Box<iommu_device>>>>,
) -> iommu_status {
    border::run(None, || {
        let out = device.map(|place| Out::at(Some(place))).transpose()?;
        let after = after.map(|key| key.read()).transpose()?;
        let found: DeviceInfo = need(service)?.service.next_device(after).ok_or(Failure::Of(iommu_status::NotFound))?;
        put(info, iommu_device_info::from(&found));
        if let Some(out) = out {
            out.give(iommu_device(found.device));
        }
        Ok(())
    })
}

/// Makes a second handle of a device: the way to keep one that a callback was handed.
///
/// @param copy gets a handle that the caller owns until `iommu_device_put`; NULL is written there on failure.
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_device_get(
    device: Option<&iommu_device>,
    copy: Option<&mut MaybeUninit<Option<Box<iommu_device>>>>,
) -> iommu_status {
    border::run(None, || {
        let out = Out::at(copy)?;
        out.give(iommu_device(need(device)?.0.clone()));
        Ok(())
    })
}

/// Gives a device's handle back. The device stays registered.
///
/// @param device may be NULL; not one that a callback was handed.
///
/// Context: waiting.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_device_put(device: Option<Box<iommu_device>>) {
    border::quietly((), || drop(device));
}

/// What a device's source calls it.
///
/// @return `IOMMU_STATUS_OK`, `IOMMU_STATUS_INVALID_ARGUMENT`.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_device_get_key(
    device: Option<&iommu_device>,
    key: Option<&mut MaybeUninit<iommu_device_key>>,
) -> iommu_status {
    border::run(None, || {
        let place = need(key)?;
        place.write(need(device)?.0.key().into());
        Ok(())
    })
}

/// What people call a device, in the caller's buffer.
///
/// @param text may be NULL with a `size` of 0.
/// @return the name's length without its NUL. Where it is not below `size`, it was cut; 0 for a device that is NULL.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_device_name(device: Option<&iommu_device>, text: *mut c_char, size: usize) -> usize {
    border::quietly(0, || device.map_or(0, |device| border::describe(device.0.label(), text, size)))
}

/// A device's streams, canonical and without repetition, in the caller's array.
///
/// @param streams may be NULL with a `room` of 0.
/// @param room how many fit.
/// @return how many there are; where that is more than `room`, only the first were written.
///
/// Context: any.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_device_streams(
    device: Option<&iommu_device>,
    streams: *mut iommu_stream,
    room: usize,
) -> usize {
    border::quietly(0, || device.map_or(0, |device| copy(device.0.streams(), streams, room)))
}

/// Copies as many streams as fit; returns how many there are.
pub(crate) fn copy(from: &[Stream], to: *mut iommu_stream, room: usize) -> usize {
    let Ok(places) = border::buffer(to, room) else { return from.len() };
    for (place, stream) in places.iter_mut().zip(from) {
        place.write((*stream).into());
    }
    from.len()
}

// --- calls inside a device ---

/// Room for a call that touches a device's own registers. What is in it is the library's.
#[repr(C)]
#[derive(Debug)]
pub struct iommu_device_call {
    words: [u64; 4],
}

type Inside = DeviceCall<'static, Hypervisor>;
const _: () = assert!(size_of::<Inside>() <= size_of::<iommu_device_call>());
const _: () = assert!(align_of::<Inside>() <= align_of::<iommu_device_call>());

/// Enters a device: until `iommu_device_leave` a removal does not get past the point where the device's own registers may
/// not be touched any more. It must not be held over a callback, nor over a call of the library about the device.
///
/// @param device stays the caller's, who keeps it until he has left.
/// @param inside is filled in, and is not moved or copied until he has left.
/// @return `IOMMU_STATUS_OK`; `IOMMU_STATUS_GONE` once a removal was asked for: nothing of the device may be touched.
///
/// Context: any, interrupts included.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_device_enter(
    device: Option<&'static iommu_device>,
    inside: Option<&mut MaybeUninit<iommu_device_call>>,
) -> iommu_status {
    border::run(None, || {
        let place = need(inside)?;
        let entered: Inside = need(device)?.0.enter().ok_or(Failure::Of(iommu_status::Gone))?;
        // SAFETY: the place is valid, and large and aligned enough (asserted above). `iommu_device_leave` takes it out.
        unsafe {
            place.as_mut_ptr().cast::<Inside>().write(entered);
        }
        Ok(())
    })
}

/// Leaves a device that `iommu_device_enter` has entered, once.
///
/// Context: any, interrupts included; whoever leaves last calls `wake`.
#[unsafe(no_mangle)]
pub extern "C" fn iommu_device_leave(inside: Option<&mut iommu_device_call>) {
    border::quietly((), || {
        let Some(place) = inside else { return };
        // SAFETY: `iommu_device_enter` has written it there, and it is taken out once (contract of both functions).
        let entered = unsafe { core::ptr::from_mut(place).cast::<Inside>().read() };
        drop(entered);
    });
}
