//! The service brought from one board to another: all or nothing.
//!
//! # Order
//!
//! 1. What no service could follow is refused: devices in use that change. SMMUs and host bridges in use do not change: the
//!    caller has looked.
//! 2. SMMUs that come are probed and registered.
//! 3. Devices that change are removed, children first.
//! 4. Devices that come or change are added, parents first.
//! 5. Host bridges that come are told of.
//! 6. What goes goes, children first: host bridges, devices with all that stands behind them, SMMUs.
//!
//! Up to 5 a failure is undone in reverse. 6 cannot be refused: a removal that fails leaves its device in fault and going
//! (contract C-8), and it is tried again until it is gone.
//!
//! # Invariants
//!
//! V1. Memory for what is noted from 2 on is reserved before.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;

use super::changes::{Change, Pairs, is_same_device, offered, push};
use super::fixups::owned;
use super::overlay_error::{OverlayError, OverlayFault};
use super::overlay_host::OverlayHost;
use crate::assign::{
    Cause, Device, DeviceInfo, DeviceKey, DeviceState, Error, HookError, IommuKey, Label, Removal, Service, Target,
};
use crate::dt::{Board, DtDevice, DtError, HostBridge, SmmuNode};
use crate::few;
use crate::sync::Platform;

/// What is to go and has not gone yet.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    bridges: Vec<String>,
    devices: Vec<Target>,
    smmus: Vec<IommuKey>,
    /// Devices that have gone without a confirmed drain and a reset since their last guest. One that comes again is
    /// quarantined, so that it is reset before its next guest (contract I-14).
    not_reset: Vec<DeviceKey>,
}

/// What becomes of SMMUs, devices and host bridges.
#[derive(Default)]
struct Plan<'p> {
    smmus_come: Vec<&'p SmmuNode<'p>>,
    smmus_go: Vec<IommuKey>,
    /// As they were, parents first: those that change, and those that go behind one of them.
    devices_change: Vec<&'p DtDevice>,
    /// Those that change too; as they are to be, parents first.
    devices_come: Vec<&'p DtDevice>,
    /// Parents first.
    devices_go: Vec<&'p DtDevice>,
    /// Each with a copy of its path, for the undoing.
    bridges_come: Vec<(&'p HostBridge, String)>,
    bridges_go: Vec<String>,
}

/// A step that can be undone.
enum Step<'p> {
    Registered(IommuKey),
    Removed(&'p DtDevice),
    Added(Device),
    BridgeCame(String),
}

/// The service, the integrator, and what both still have to let go of.
pub(super) struct Transition<'t, P: Platform> {
    pub(super) service: &'t Service<P>,
    pub(super) host: &'t mut dyn OverlayHost,
    pub(super) leaving: &'t mut Leaving,
}

impl<P: Platform> Transition<'_, P> {
    /// Brings the service from `old` to `new`. Says what has not gone yet.
    pub(super) fn run(&mut self, old: &Board<'_>, new: &Board<'_>) -> Result<Vec<OverlayError>, OverlayError> {
        let pairs = Pairs::new(old, new)?;
        let mut plan = self.plan(&pairs)?;
        let come = [plan.smmus_come.len(), plan.devices_come.len(), plan.bridges_come.len()];
        let steps = come.iter().fold(plan.devices_change.len(), |sum, more| sum.saturating_add(*more));
        let mut done = Vec::new();
        done.try_reserve_exact(steps)?;
        self.leaving.reserve(&plan)?;
        let mut failures = Vec::new();
        let most = plan.bridges_go.len().saturating_add(plan.devices_go.len()).saturating_add(plan.smmus_go.len());
        failures.try_reserve(most)?;

        let mut lost = Vec::new();
        lost.try_reserve_exact(plan.devices_change.len())?;
        let room = Box::new(OverlayError::Tree(DtError::OutOfMemory));
        if let Err(error) = self.come(&mut plan, &mut done) {
            return Err(self.undo(done, lost, room, error));
        }
        few::extend_within(&mut self.leaving.bridges, plan.bridges_go.drain(..));
        let devices = plan.devices_go.iter().rev().map(|device| Target::from(*device));
        few::extend_within(&mut self.leaving.devices, devices);
        few::extend_within(&mut self.leaving.smmus, plan.smmus_go.drain(..));
        self.depart(&mut failures);
        Ok(failures)
    }

    /// Tries again what has not gone yet. Says what still has not.
    pub(super) fn depart(&mut self, failures: &mut Vec<OverlayError>) {
        let Leaving { bridges, devices, smmus, not_reset } = &mut *self.leaving;
        let host = &mut *self.host;
        let mut stays = |outcome: Result<(), OverlayError>| match outcome {
            Ok(()) => false,
            Err(error) => {
                // Without memory it is not told.
                let _ = few::push(failures, error);
                true
            }
        };
        bridges.retain(|path| stays(host.bridge_goes(path).map_err(|error| refused(path, "departure", error))));
        devices.retain(|target| stays(let_go(self.service, target, not_reset)));
        smmus.retain(|key| {
            stays(match self.service.unregister_iommu(*key) {
                Ok(()) => {
                    host.smmu_left(*key);
                    Ok(())
                }
                Err(Error { cause: Cause::NotFound, .. }) => Ok(()),
                Err(error) => Err(OverlayError::Service(error)),
            })
        });
    }

    fn plan<'p>(&self, pairs: &Pairs<'p, 'p, 'p>) -> Result<Plan<'p>, OverlayError> {
        let mut plan = Plan::default();
        for (change, smmu) in pairs.smmus() {
            match change {
                Change::Comes => push(&mut plan.smmus_come, smmu)?,
                Change::Goes => push(&mut plan.smmus_go, smmu.key)?,
                Change::Changes => {}
            }
        }
        for (change, bridge) in pairs.host_bridges() {
            match change {
                Change::Comes => push(&mut plan.bridges_come, (bridge, owned(&bridge.path)?))?,
                Change::Goes => push(&mut plan.bridges_go, owned(&bridge.path)?)?,
                Change::Changes => {}
            }
        }
        // Keys of those that are registered anew: what stands behind them must be, too.
        let mut anew: Vec<u64> = Vec::new();
        let is_behind = |anew: &[u64], device: &DtDevice| {
            device.offered_parent.is_some_and(|parent| anew.binary_search(&parent).is_ok())
        };
        for (one, other) in pairs.all(|board| board.devices().iter().map(|device| device.node), offered) {
            match (one, other) {
                (Some(one), Some(other)) => {
                    if !is_behind(&anew, other) && is_same_device(one, other) {
                        continue;
                    }
                    insert(&mut anew, other.key)?;
                    if self.may_change(one)? {
                        push(&mut plan.devices_change, one)?;
                    }
                    push(&mut plan.devices_come, other)?;
                }
                (None, Some(other)) => push(&mut plan.devices_come, other)?,
                (Some(one), None) if is_behind(&anew, one) => {
                    // Before what it stands behind can be registered anew.
                    insert(&mut anew, one.key)?;
                    if self.may_change(one)? {
                        push(&mut plan.devices_change, one)?;
                    }
                }
                (Some(one), None) => push(&mut plan.devices_go, one)?,
                (None, None) => {}
            }
        }
        // In the order of the old board, so that parents come first.
        few::sort(&mut plan.devices_change, &|one, other| one.node < other.node);
        Ok(plan)
    }

    /// Whether a device that changes is registered. One that a domain owns, or that is going, is not registered anew.
    fn may_change(&self, device: &DtDevice) -> Result<bool, OverlayError> {
        match self.service.find(device.device_key()) {
            Some(DeviceInfo { domain: Some(owner), .. }) => Err(in_use(device, owner)?),
            Some(DeviceInfo { state: DeviceState::Going, .. }) => Err(going(device)?),
            info => Ok(info.is_some()),
        }
    }

    fn come<'p>(&mut self, plan: &mut Plan<'p>, done: &mut Vec<Step<'p>>) -> Result<(), OverlayError> {
        for smmu in &plan.smmus_come {
            let iommu = self.host.probe(smmu).map_err(|error| refused(&smmu.path, "probe", error))?;
            if let Err(error) = self.service.register_iommu(iommu) {
                self.host.smmu_left(smmu.key);
                return Err(OverlayError::Service(error));
            }
            few::push_within(done, Step::Registered(smmu.key));
        }
        for device in plan.devices_change.iter().rev() {
            let Some(info) = self.service.find(device.device_key()) else { continue };
            // Nobody owned it when the plan was made; somebody may since.
            match remove_unowned(self.service, &info) {
                Ok(_) => _ = few::push_within(done, Step::Removed(device)),
                Err(Error { cause: Cause::NotFound, .. }) => {}
                Err(Error { cause: Cause::AlreadyAssigned { domain }, .. }) => return Err(in_use(device, domain)?),
                Err(Error { cause: Cause::NotAssigned, .. }) => return Err(going(device)?),
                Err(error) => return Err(OverlayError::Service(error)),
            }
        }
        for device in &plan.devices_come {
            if let Some(added) = self.add(device)? {
                few::push_within(done, Step::Added(added));
            }
        }
        for (bridge, path) in plan.bridges_come.drain(..) {
            self.host.bridge_came(bridge).map_err(|error| refused(&bridge.path, "arrival", error))?;
            few::push_within(done, Step::BridgeCame(path));
        }
        Ok(())
    }

    fn add(&mut self, device: &DtDevice) -> Result<Option<Device>, OverlayError> {
        let Some(spec) = device.spec().ok().and_then(|spec| self.host.offer(device, spec)) else { return Ok(None) };
        let Some(at) = self.leaving.not_reset.iter().position(|known| *known == spec.key) else {
            return Ok(Some(self.service.add(spec).map_err(OverlayError::Service)?));
        };
        let added = self.service.add_unclean(spec).map_err(OverlayError::Service)?;
        if let Err(error) = self.check_mates(&added, device) {
            // There is room: one for each that comes.
            few::push_within(&mut self.leaving.devices, Target::from(&added));
            return Err(error);
        }
        few::take(&mut self.leaving.not_reset, at);
        Ok(Some(added))
    }

    /// Refuses a device that was not reset in the group of one that a guest has.
    fn check_mates(&self, added: &Device, device: &DtDevice) -> Result<(), OverlayError> {
        let group = self.service.find(added.key()).map(|info| info.group);
        let in_use = |info: &DeviceInfo| {
            let is_mate = Some(info.group) == group && info.device.id() != added.id();
            is_mate && matches!(info.state, DeviceState::Assigned(_))
        };
        match self.service.devices().find(in_use) {
            Some(info) => {
                let mate = info.device.label().clone();
                Err(OverlayError::at(owned(&device.path)?, OverlayFault::NotReset { mate }))
            }
            None => Ok(()),
        }
    }

    /// Takes back what was done, in reverse. `lost` has room for all that was removed, `room` for the error.
    fn undo(
        &mut self,
        done: Vec<Step<'_>>,
        mut lost: Vec<String>,
        mut room: Box<OverlayError>,
        error: OverlayError,
    ) -> OverlayError {
        for step in done.into_iter().rev() {
            match step {
                Step::Registered(key) => _ = few::push_within(&mut self.leaving.smmus, key),
                Step::Added(device) => _ = few::push_within(&mut self.leaving.devices, Target::from(&device)),
                Step::BridgeCame(path) => _ = few::push_within(&mut self.leaving.bridges, path),
                Step::Removed(device) => {
                    // Those that were added in its place go first.
                    self.depart(&mut Vec::new());
                    if !matches!(self.add(device), Ok(Some(_))) {
                        log::warn!("{} was registered, and could not be put back", device.path);
                        few::push_within(&mut lost, owned(&device.path).unwrap_or_default());
                    }
                }
            }
        }
        self.depart(&mut Vec::new());
        if lost.is_empty() {
            return error;
        }
        *room = error;
        OverlayError::NotRestored { lost, error: room }
    }
}

impl Leaving {
    pub(super) fn is_empty(&self) -> bool {
        self.bridges.is_empty() && self.devices.is_empty() && self.smmus.is_empty()
    }

    /// Room for all that a plan could leave, whether it fails or not.
    fn reserve(&mut self, plan: &Plan<'_>) -> Result<(), DtError> {
        self.bridges.try_reserve(plan.bridges_go.len().max(plan.bridges_come.len()))?;
        let devices = plan.devices_go.len().max(plan.devices_come.len());
        self.devices.try_reserve(devices)?;
        self.not_reset.try_reserve(devices)?;
        self.smmus.try_reserve(plan.smmus_go.len().max(plan.smmus_come.len()))?;
        Ok(())
    }
}

/// Removes a device, unless a domain owns it. One that is quarantined gets first what it lacks, as by its next assign, so that
/// nothing is lost with its registration (contract I-14). It may have changed since it was looked at.
fn remove_unowned<P: Platform>(service: &Service<P>, seen: &DeviceInfo) -> Result<Removal, Error> {
    if !matches!(seen.state, DeviceState::Quarantined(_)) {
        match service.remove_blocked(&seen.device) {
            Err(Error { cause: Cause::NotAssigned, .. }) => {}
            removed => return removed,
        }
    }
    match service.reset_quarantined(&seen.device) {
        Ok(_) | Err(Error { cause: Cause::NotAssigned | Cause::Gone, .. }) => service.remove_blocked(&seen.device),
        Err(error) => Err(error),
    }
}

fn in_use(device: &DtDevice, owner: Label) -> Result<OverlayError, DtError> {
    Ok(OverlayError::at(owned(&device.path)?, OverlayFault::DeviceInUse { owner }))
}

fn going(device: &DtDevice) -> Result<OverlayError, DtError> {
    Ok(OverlayError::at(owned(&device.path)?, OverlayFault::DeviceGoing))
}

/// Removes a device with all that stands behind it, children first. One that is assigned is taken from its guest in order
/// first: it was quiesced and reset then, if it could be. What it lacks all the same is noted.
fn let_go<P: Platform>(
    service: &Service<P>,
    target: &Target,
    not_reset: &mut Vec<DeviceKey>,
) -> Result<(), OverlayError> {
    let key = target.key();
    let Some(DeviceInfo { device, state, .. }) = service.find(key) else { return Ok(()) };
    if matches!(target, Target::Device(only) if only.id() != device.id()) {
        return Ok(());
    }
    // Each by itself, for each may lack something.
    while let Some(info) = service.devices().find(|info| info.device.parent() == Some(key)) {
        let_go(service, &Target::from(&info.device), not_reset)?;
    }
    if matches!(state, DeviceState::Assigned(_)) {
        match service.deassign(&device) {
            Err(error) if matches!(error.cause, Cause::Busy { .. }) => return Err(OverlayError::Service(error)),
            // What it lacks now is in its state.
            Ok(_) | Err(_) => {}
        }
    }
    // Another CPU may have assigned it since: the state counts that is found in the hold that claims it.
    let removed = match service.remove_blocked(&device) {
        Err(Error { cause: Cause::AlreadyAssigned { .. } | Cause::NotAssigned, .. }) => {
            if !not_reset.contains(&key) {
                few::push(not_reset, key)?;
            }
            service.remove_tree(&device)
        }
        removed => removed,
    };
    match removed {
        Ok(Removal::Pending) => Err(OverlayError::Service(Error::removal_is_pending(target.label()))),
        Ok(_) | Err(Error { cause: Cause::NotFound, .. }) => Ok(()),
        Err(error) => Err(OverlayError::Service(error)),
    }
}

/// Puts a key in its place.
fn insert(keys: &mut Vec<u64>, key: u64) -> Result<(), DtError> {
    keys.try_reserve(1)?;
    let at = keys.binary_search(&key).unwrap_or_else(|at| at);
    few::insert_within(keys, at, key);
    Ok(())
}

fn refused(path: &str, step: &'static str, HookError(reason): HookError) -> OverlayError {
    match owned(path) {
        Ok(path) => OverlayError::Host { path, step, reason },
        Err(error) => error.into(),
    }
}
