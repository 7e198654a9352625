//! A slot with a card in it, and a device tree with overlays on it, for a [`World`](super::World).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use iommu_assign::assign::{DeviceSpec, Error, HookError, Iommu, IommuKey, Removal, Service};
use iommu_assign::dt::overlay::{OverlayError, OverlayFault, OverlayHost, OverlayId, Overlays};
use iommu_assign::dt::{DtDevice, HostBridge as DtHostBridge, SmmuNode};
use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
use iommu_assign::pci::hotplug::{self, HotPlug, NotOffered, Slot as Place};
use iommu_assign::pci::sriov::{PhysicalFunction, SriovError, SwitchError, SwitchLeft};
use iommu_assign::pci::{
    AcsControls, Bus, Delay, Enumeration, Function, HostBridge, MapEntry, PortType, Provider, RequesterIdMap, Segment,
    enumerate,
};
use iommu_assign::sync::{Micros, Spin};

use super::{Hooks, World, removed, told};
use crate::op::{Sheet, Side, Slot};
use crate::specification::{After, Outcome, Refusal};

/// What comes and goes, and what it stands in.
pub(super) struct Comings {
    space: FakeConfigSpace,
    host: HostBridge,
    plugged: bool,
    overlays: Overlays<'static>,
    applied: BTreeMap<Sheet, OverlayId>,
}

const BEHIND: Place = Place::Below(Slot::port());
/// Time is of no account: what takes time has passed when it is looked at.
const DELAY: Delay = Delay::sleeping(|_: Micros| {});

impl Comings {
    /// An empty slot, a tree without overlays. `None` if the map or the tree could not be read.
    pub(super) fn new() -> Option<Self> {
        // Requester IDs 0x100 and up are the streams 0x18 and up of the second SMMU. The port has none.
        let entry = MapEntry::new(0x100, Provider::Smmu(Side::B.key()), 0x18, 8);
        let map = RequesterIdMap::new([entry], RequesterIdMap::NO_MASK).ok()?;
        let host =
            HostBridge { number: Slot::HOST, segment: Segment(0), buses: Bus(0)..=Bus(0xff), map, passthrough: true };
        let port = FakeFunction::bridge(0x1234, 0x0001, 0, 1, 1)
            .express(PortType::RootPort)
            .acs(AcsControls::all(), AcsControls::all());
        let apart = |function: FakeFunction| function.acs(AcsControls::all(), AcsControls::all());
        let virtual_function =
            move |_| apart(FakeFunction::virtual_function(0x02_0000).express(PortType::Endpoint).ats());
        let card = apart(FakeFunction::endpoint(0x1234, 0x0002, 0x02_0000).express(PortType::Endpoint).ats())
            .sr_iov(2, 1, 1)
            .virtual_functions(0x0003, virtual_function)
            .virtual_bar(0, 0x8_0000_0000, 0x4000);
        let mut space = FakeConfigSpace::new();
        space.insert(Slot::PORT, port);
        space.insert(Slot::PLACE, card);
        space.remove(Slot::PLACE);
        let overlays = Overlays::new(Sheet::BASE).ok()?;
        Some(Self { space, host, plugged: false, overlays, applied: BTreeMap::new() })
    }

    /// Whether an overlay has left something behind, which the next one finishes first.
    pub(super) fn are_unfinished(&self) -> bool {
        !self.overlays.is_finished()
    }
}

impl fmt::Debug for Comings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Comings")
            .field("plugged", &self.plugged)
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

impl World<'_> {
    pub(super) fn plug(&mut self) -> Result<Outcome, String> {
        if self.comings.plugged {
            return Ok(Outcome::Skipped);
        }
        self.comings.plugged = true;
        self.comings.space.plug_in(Slot::PLACE);
        let hooks = self.all_hooks();
        let slots = HotPlug::new(self.service, &self.comings.space, &self.comings.host, DELAY);
        let arrival = slots.arrived(BEHIND, &mut |_, _, spec| with(&hooks, spec)).map_err(|error| error.to_string())?;
        let mut each = Vec::new();
        for arrived in arrival.functions {
            let slot =
                Slot::of(arrived.function.key.into()).ok_or_else(|| format!("{:?} arrived", arrived.function))?;
            each.push((
                slot,
                match arrived.result {
                    Ok(device) => {
                        self.keep(slot, &device);
                        Outcome::Done
                    }
                    Err(NotOffered::Known) => Outcome::refused(Refusal::AlreadyRegistered),
                    Err(NotOffered::Service(error)) => Outcome::from(&error),
                    Err(_) => Outcome::refused(Refusal::Unexpected),
                },
            ));
        }
        Ok(Outcome::Each(each))
    }

    pub(super) fn unplug(&mut self) -> Result<Outcome, String> {
        if !self.comings.plugged {
            return Ok(Outcome::Skipped);
        }
        let slots = HotPlug::new(self.service, &self.comings.space, &self.comings.host, DELAY);
        let departures = slots.requested(BEHIND).map_err(|error| error.to_string())?;
        if departures.iter().all(hotplug::Departure::is_gone) {
            self.comings.plugged = false;
            self.comings.space.remove(Slot::PLACE);
        }
        each_of(departures)
    }

    pub(super) fn pull(&mut self) -> Result<Outcome, String> {
        if !self.comings.plugged {
            return Ok(Outcome::Skipped);
        }
        self.comings.plugged = false;
        self.comings.space.remove(Slot::PLACE);
        let accesses = self.comings.space.accesses();
        let departures = hotplug::left(self.service, BEHIND).map_err(|error| error.to_string())?;
        if self.comings.space.accesses() != accesses {
            return Err("S-7: a function was accessed that is gone".into());
        }
        each_of(departures)
    }

    pub(super) fn switch_on(&mut self) -> Result<Outcome, String> {
        let hooks = self.all_hooks();
        let offer = &mut |_: &Function, spec| with(&hooks, spec);
        let switched = self.with_card(|physical, service| physical.switch_on(service, 2, DELAY, offer))?;
        if let Some(Ok(on)) = &switched {
            for one in on {
                let slot = Slot::of(one.device.key()).ok_or_else(|| format!("{:?} was switched on", one.device))?;
                self.keep(slot, &one.device);
            }
        }
        Ok(switched
            .map_or(Outcome::Skipped, |switched| switched.map_or_else(|error| failed(&error), |_| Outcome::Done)))
    }

    pub(super) fn switch_off(&mut self) -> Result<Outcome, String> {
        let switched = self.with_card(|physical, service| physical.switch_off(service, DELAY))?;
        Ok(switched
            .map_or(Outcome::Skipped, |switched| switched.map_or_else(|error| failed(&error), |()| Outcome::Done)))
    }

    /// `None` without a card.
    fn with_card<T>(
        &self,
        act: impl FnOnce(&PhysicalFunction<'_, FakeConfigSpace>, &Service<Spin>) -> Result<T, SwitchError>,
    ) -> Result<Option<Result<T, SwitchError>>, String> {
        if !self.comings.plugged {
            return Ok(None);
        }
        let Comings { space, host, .. } = &self.comings;
        let found: Enumeration = enumerate(space, host).map_err(|error| error.to_string())?;
        let card = Slot::port().child(Slot::PLACE.device_function).map_err(|error| error.to_string())?;
        let physical = PhysicalFunction::new(space, host, &found, card).map_err(|error| error.to_string())?;
        Ok(Some(act(&physical, self.service)))
    }

    pub(super) fn apply(&mut self, sheet: Sheet) -> Outcome {
        let mut host = Source { hooks: self.all_hooks() };
        match self.comings.overlays.apply(self.service, sheet.blob(), &mut host) {
            Ok(outcome) => {
                self.comings.applied.insert(sheet, outcome.overlay);
                if let Some(info) = self.service.find(sheet.slot().key()) {
                    self.keep(sheet.slot(), &info.device);
                }
                unfinished(sheet, &outcome.unfinished)
            }
            Err(error) => not_applied(&error),
        }
    }

    pub(super) fn revert(&mut self, sheet: Sheet) -> Outcome {
        let Some(overlay) = self.comings.applied.get(&sheet).copied() else { return Outcome::Skipped };
        let mut host = Source { hooks: self.all_hooks() };
        match self.comings.overlays.revert(self.service, overlay, &mut host) {
            Ok(outcome) => {
                self.comings.applied.remove(&sheet);
                unfinished(sheet, &outcome.unfinished)
            }
            Err(error) => not_applied(&error),
        }
    }

    /// Whether configuration space and device tree are as they were at the start (contract A-3).
    pub(super) fn nothing_has_come(&self) -> bool {
        !self.comings.plugged && self.comings.overlays.blob() == Sheet::BASE
    }

    fn all_hooks(&mut self) -> BTreeMap<Slot, Arc<Hooks>> {
        Slot::ALL.into_iter().filter(|slot| !slot.is_offered()).map(|slot| (slot, self.hooks(slot))).collect()
    }
}

/// The spec with the universe's name and hooks.
fn with(hooks: &BTreeMap<Slot, Arc<Hooks>>, spec: DeviceSpec) -> DeviceSpec {
    match Slot::of(spec.key).and_then(|slot| Some((slot, hooks.get(&slot)?.clone()))) {
        Some((slot, hooks)) => DeviceSpec { label: slot.label(), hooks, ..spec },
        None => spec,
    }
}

fn each_of(departures: Vec<hotplug::Departure>) -> Result<Outcome, String> {
    let each = departures.into_iter().map(|departure| {
        let slot = Slot::of(departure.device.key()).ok_or_else(|| format!("{:?} left", departure.device))?;
        let result: Result<Removal, Error> = departure.result;
        Ok((slot, told(&result, removed)))
    });
    each.collect::<Result<Vec<_>, String>>().map(Outcome::Each)
}

fn failed(error: &SwitchError) -> Outcome {
    let refusal = match &error.cause {
        SriovError::AlreadyOn { .. } => Refusal::AlreadyOn,
        SriovError::Registered { .. } => Refusal::VirtualRegistered,
        SriovError::NotRegistered => Refusal::NotRegistered,
        SriovError::Assigned { .. } => Refusal::InUse,
        SriovError::Service(error) => Refusal::from(&error.cause),
        _ => Refusal::Unexpected,
    };
    let left = match error.left {
        SwitchLeft::Unchanged => After::Unchanged,
        SwitchLeft::Off => After::Undone,
        SwitchLeft::On => After::SwitchedOn,
        _ => After::PartlyAssigned,
    };
    Outcome::Failed(refusal, left)
}

fn refusal(error: &OverlayError) -> Refusal {
    match error {
        OverlayError::Service(error) => Refusal::from(&error.cause),
        OverlayError::Fault { fault: OverlayFault::AppliedAlready { .. }, .. } => Refusal::AppliedAlready,
        OverlayError::Unfinished(first) => refusal(first),
        _ => Refusal::Unexpected,
    }
}

fn not_applied(error: &OverlayError) -> Outcome {
    match error {
        OverlayError::Unfinished(_) => Outcome::Failed(refusal(error), After::Unfinished),
        OverlayError::Service(error) => Outcome::from(error),
        error => Outcome::refused(refusal(error)),
    }
}

fn unfinished(sheet: Sheet, unfinished: &[OverlayError]) -> Outcome {
    if unfinished.is_empty() {
        return Outcome::Done;
    }
    let each = unfinished.iter().map(|error| (sheet.slot(), Outcome::Failed(refusal(error), After::Unfinished)));
    Outcome::Each(each.collect())
}

/// The integrator's part. No overlay here brings an SMMU or a host bridge.
struct Source {
    hooks: BTreeMap<Slot, Arc<Hooks>>,
}

impl OverlayHost for Source {
    fn probe(&mut self, _: &SmmuNode<'_>) -> Result<Arc<dyn Iommu>, HookError> {
        Err(HookError("no overlay brings an SMMU"))
    }

    fn smmu_left(&mut self, _: IommuKey) {}

    fn offer(&mut self, _: &DtDevice, spec: DeviceSpec) -> Option<DeviceSpec> {
        Some(with(&self.hooks, spec))
    }

    fn bridge_came(&mut self, _: &DtHostBridge) -> Result<(), HookError> {
        Err(HookError("no overlay brings a host bridge"))
    }

    fn bridge_goes(&mut self, _: &str) -> Result<(), HookError> {
        Err(HookError("no overlay takes a host bridge away"))
    }
}
