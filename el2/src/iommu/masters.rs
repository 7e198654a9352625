//! Devices as the scenario uses them: what the service is told of each, and the engine that does its DMA.

use alloc::collections::BTreeMap;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ::scenario::{Guest as _, PAGES, compare};
use iommu_assign::assign::{Device, DeviceHooks, DeviceSpec, HookContext, HookError, Stream};
use iommu_assign::dt::{Board, NodeId};
use iommu_assign::pci::control::ControlError;
use iommu_assign::pci::{Ecam, Enumeration, Function, FunctionKind};

use super::gdma::Channel;
use super::guests::Guest;
use super::modelled::{Modelled, Reached};
use super::smmus::Unit;
use crate::pci::functions::Counted;
use crate::scenario::SCORE;

/// A device of this machine.
pub(crate) type Master = ::scenario::Master<Engine>;

/// What does a device's DMA.
#[derive(Clone, Debug)]
pub(crate) enum Engine {
    /// The model's own master, with every stream of the device.
    Modelled(Arc<Modelled>),
    /// A channel of ZynqMP's DMA engine.
    Gdma(Arc<Channel>),
    /// Nothing that the image could start.
    None,
}

/// Hooks of a master of the device tree: it is told to stop, and does not. That is what isolation is for.
#[derive(Debug)]
struct Stubborn(Option<Arc<Modelled>>);

impl Stubborn {
    fn try_dma(&self, device: &Device) {
        let Some(model) = &self.0 else { return };
        for stream in device.streams() {
            let reached = model.dma(stream.id(), Guest::address(0));
            if reached != Reached::Fault {
                crate::violation!("{} reaches {reached:x?} while it changes owners", device.label());
            }
        }
    }
}

impl DeviceHooks for Stubborn {
    fn quiesce(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        self.try_dma(context.device);
        Ok(())
    }

    fn reset(&self, context: &HookContext<'_>) -> Result<(), HookError> {
        self.try_dma(context.device);
        Ok(())
    }

    fn release(&self, context: &HookContext<'_>) {
        self.try_dma(context.device);
    }
}

/// The masters of the device tree.
pub(crate) fn of_tree(
    board: &Board<'_>,
    units: &[Arc<Unit>],
    channels: &BTreeMap<NodeId, Arc<Channel>>,
) -> Vec<Master> {
    let mut masters = Vec::new();
    for node in board.devices() {
        let Ok(mut spec) = node.spec() else { continue };
        let model = node.streams.first().and_then(|stream| model_of(units, stream.iommu()));
        let channel = channels.get(&node.node).cloned();
        let is_gdma = channel.is_some();
        let engine = match (&model, channel) {
            (Some(model), _) => Engine::Modelled(model.clone()),
            (None, Some(channel)) => Engine::Gdma(channel),
            (None, None) => Engine::None,
        };
        // DMA engines have no other use here than to be given to guests.
        spec.passthrough |= is_gdma;
        spec.hooks = Arc::new(Stubborn(model));
        masters.push(Master { spec, engine });
    }
    masters
}

/// A PCI function with the spec that the library has made of it, where `found` is all that was found.
///
/// # Errors
///
/// It cannot be brought under control.
pub(crate) fn of_function(
    mut spec: DeviceSpec,
    function: &Function,
    found: &Enumeration,
    space: &Arc<Ecam>,
    units: &[Arc<Unit>],
) -> Result<Master, ControlError> {
    let model = spec.streams.first().and_then(|stream| model_of(units, stream.iommu()));
    // The host bridge shows itself as a function, of class 06.00, and stays the host's.
    spec.passthrough = function.kind == FunctionKind::Endpoint && function.class >> 8 != 0x0600;
    spec.hooks = Arc::new(Counted::new(space, function, found)?);
    Ok(Master { spec, engine: model.map_or(Engine::None, Engine::Modelled) })
}

fn model_of(units: &[Arc<Unit>], key: iommu_assign::assign::IommuKey) -> Option<Arc<Modelled>> {
    units.iter().find(|unit| unit.key == key)?.model.clone()
}

impl ::scenario::Engine for Engine {
    type Guest = Guest;

    fn is_there(&self) -> bool {
        !matches!(self, Self::None)
    }

    fn stray(&self, spec: &DeviceSpec) {
        match self {
            Self::Modelled(model) => {
                spec.streams.iter().for_each(|stream| _ = model.dma(stream.id(), Guest::address(0)));
            }
            Self::Gdma(channel) => _ = channel.copy(Guest::address(0), Guest::address(1), 64),
            Self::None => {}
        }
    }

    fn check(&self, spec: &DeviceSpec, owner: Option<&Guest>, guests: &[Guest], page: u64) -> u64 {
        match self {
            Self::Modelled(model) => {
                let expected = owner.map_or(Reached::Fault, |guest| Reached::Memory(guest.physical(page)));
                let access = |stream: Stream| model.dma(stream.id(), Guest::address(page));
                compare(&SCORE, &spec.label, &spec.streams, &expected, access)
            }
            Self::Gdma(channel) => {
                copy_and_compare(spec, channel, owner, guests, page);
                1
            }
            Self::None => 0,
        }
    }
}

/// A copy from a page that differs in each guest to `page`: afterwards the owner's has the owner's pattern, and no other
/// guest's has changed.
fn copy_and_compare(spec: &DeviceSpec, channel: &Channel, owner: Option<&Guest>, guests: &[Guest], page: u64) {
    let source = page + PAGES / 2;
    const SIZE: usize = 256;
    let pattern = |guest: &Guest| [guest.domain.id().number() as u8 ^ page as u8 ^ 0xa5; SIZE];
    let blank = [0_u8; SIZE];
    for guest in guests {
        guest.write(page, &blank);
    }
    if let Some(owner) = owner {
        owner.write(source, &pattern(owner));
    }
    let done = channel.copy(Guest::address(source), Guest::address(page), SIZE as u32);
    if owner.is_some() && !done {
        crate::violation!("{} did not copy its guest's page", spec.label);
    }
    for guest in guests {
        let mut found = [0_u8; SIZE];
        guest.read(page, &mut found);
        let is_owner = owner.is_some_and(|owner| owner.domain.id() == guest.domain.id());
        let expected = if is_owner { pattern(guest) } else { blank };
        if found != expected {
            crate::violation!(
                "{}: {} has {:#x} where {:#x} belongs",
                spec.label,
                guest.domain.label(),
                found[0],
                expected[0]
            );
        }
    }
}
