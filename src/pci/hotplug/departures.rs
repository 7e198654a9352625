//! Out: by surprise, and orderly. Nothing here can reach a function: configuration space is not known here. What an orderly
//! departure does to a function, its hooks do.

use alloc::vec::Vec;

use super::super::enumeration::OutOfMemory;
use super::super::function_hooks::Delay;
use super::slot::Slot;
use crate::assign::{Cause, Device, Error, Removal, Service};
use crate::few;
use crate::sync::Platform;

/// What became of a device that was to go.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Departure {
    /// The device.
    pub device: Device,
    /// [`Removal::Pending`]: another operation has its group, and removes it when it ends.
    pub result: Result<Removal, Error>,
}

impl Departure {
    /// Whether the device is not registered any more.
    #[must_use]
    pub const fn is_gone(&self) -> bool {
        matches!(self.result, Ok(Removal::Done | Removal::StillReachable(_)))
    }
}

/// What is in a slot has gone: it was pulled out, lost its power, or answers no more.
///
/// Every device there is removed as [`Service::remove_tree`] does it, children first, whoever owns it: its streams fault, and
/// its hooks are not called but for `release`. Nothing is read or written at the functions, which would not answer. From the
/// call on nothing can be added behind a device of the slot.
///
/// The results come in the order in which the devices went; what an operation that still runs will remove is last. Devices
/// of other sources that stand behind one in the slot are among them. A device that could not be cut off
/// ([`Left::GoingLive`](crate::assign::Left::GoingLive)) is registered still: call again.
///
/// # Errors
///
/// [`OutOfMemory`]: nothing was done.
///
/// # Context
///
/// Waiting context. Contract C-5, C-8.
pub fn left<P: Platform>(service: &Service<P>, slot: Slot) -> Result<Vec<Departure>, OutOfMemory> {
    let devices = listed(service, slot)?;
    let mut departures = Vec::new();
    departures.try_reserve(devices.len()).map_err(|_| OutOfMemory)?;
    for root in &devices {
        let is_inside = root.parent().is_some_and(|parent| devices.iter().any(|device| device.key() == parent));
        if is_inside {
            continue;
        }
        // Where the root has gone meanwhile, so has what was behind it.
        let _ = service.remove_tree_telling(root, &mut |device, result| {
            // Without memory it is not told.
            let _ = few::push(&mut departures, Departure { device: device.clone(), result });
        });
    }
    for device in devices {
        let is_told = departures.iter().any(|departure| departure.device.id() == device.id());
        let stays = service.find(device.key()).is_some_and(|info| info.device.id() == device.id());
        if !is_told && stays {
            let _ = few::push(&mut departures, Departure { device, result: Ok(Removal::Pending) });
        }
    }
    Ok(departures)
}

/// Takes out what is in a slot, at someone's request. See [`HotPlug::requested`](super::HotPlug::requested).
pub(super) fn requested<P: Platform>(
    service: &Service<P>,
    slot: Slot,
    delay: Delay,
) -> Result<Vec<Departure>, OutOfMemory> {
    let mut devices = listed(service, slot)?;
    let mut departures = Vec::new();
    departures.try_reserve(devices.len()).map_err(|_| OutOfMemory)?;
    // Ascending by key, a bridge comes before what is below it, and a physical function before its virtual ones.
    while let Some(device) = devices.pop() {
        let result = delay.persist(ATTEMPTS, || take_out(service, &device));
        few::push_within(&mut departures, Departure { device, result });
    }
    Ok(departures)
}

/// One device: from its owner, quiet and reset, also where that failed before; then out.
fn take_out<P: Platform>(service: &Service<P>, device: &Device) -> Result<Removal, Error> {
    match service.deassign_or_reset(device) {
        Ok(_) | Err(Error { cause: Cause::NotAssigned | Cause::Gone, .. }) => {}
        Err(error) => return Err(error),
    }
    match service.remove_unassigned(device) {
        // Somebody else was faster.
        Err(Error { cause: Cause::NotFound, .. }) => Ok(Removal::Done),
        removed => removed,
    }
}

/// The registered devices in a slot, ascending by key.
pub(super) fn listed<P: Platform>(service: &Service<P>, slot: Slot) -> Result<Vec<Device>, OutOfMemory> {
    let mut devices = Vec::new();
    for info in slot.devices(service) {
        few::push(&mut devices, info.device).map_err(|_| OutOfMemory)?;
    }
    Ok(devices)
}

/// How often something is tried again: for a second.
pub(super) const ATTEMPTS: u32 = 100;
