//! In: what answers is enumerated, and what is new is offered to the service.

use alloc::vec::Vec;

use super::super::Sbdf;
use super::super::config::{ConfigError, ConfigSpace};
use super::super::control::{self, ControlError};
use super::super::enumeration::{Enumeration, OutOfMemory, Problem, enumerate_around};
use super::super::function::Function;
use super::super::function_hooks::Delay;
use super::super::host_bridge::{HostBridge, StreamsError};
use super::super::key::PciKey;
use super::super::quirk_table::{FunctionQuirk, KNOWN_QUIRKS};
use super::super::topology::IsolationCause;
use super::departures::{self, ATTEMPTS, Departure};
use super::slot::{Slot, key_of};
use crate::assign::{self, Cause, Device, DeviceSpec, Label, Service};
use crate::few;
use crate::sync::Platform;

/// The slots behind a host bridge.
#[derive(Clone, Copy, Debug)]
pub struct HotPlug<'a, P: Platform, C: ?Sized> {
    pub(super) service: &'a Service<P>,
    pub(super) space: &'a C,
    pub(super) host: &'a HostBridge,
    pub(super) quirks: &'a [&'a [FunctionQuirk]],
    pub(super) delay: Delay,
}

/// What [`HotPlug::arrived`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Arrival {
    /// The functions in the slot, ascending by key, with what became of each.
    pub functions: Vec<Arrived>,
    /// Everything that was enumerated: the functions in the slot, those on the way to it, and what of both cannot be used.
    pub found: Enumeration,
}

/// A function that was found in a slot.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Arrived {
    /// What was read there.
    pub function: Function,
    /// Its device, in fault until it is assigned.
    pub result: Result<Device, NotOffered>,
}

/// Why a function is not a new device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotOffered {
    /// A device is registered under its key: it was here before. Where another card was plugged in without
    /// [`left`](super::left), call that first.
    #[error("it is registered already")]
    Known,
    /// It cannot be isolated.
    #[error(transparent)]
    Streams(#[from] StreamsError),
    /// It cannot be brought under control, or it is gone.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// It could reach a function of its device, or below its switch, that is in another isolation group: when that was registered,
    /// all there had access control services.
    #[error("{function} could reach {peer}, which is registered as apart: both must arrive together")]
    NotApart {
        /// The function.
        function: Sbdf,
        /// The other one.
        peer: Label,
    },
    /// The service does not take it.
    #[error("{0}")]
    Service(assign::Error),
}

impl<'a, P: Platform, C: ConfigSpace + ?Sized> HotPlug<'a, P, C> {
    /// The slots behind `host`.
    #[must_use]
    pub const fn new(service: &'a Service<P>, space: &'a C, host: &'a HostBridge, delay: Delay) -> Self {
        Self { service, space, host, quirks: &[KNOWN_QUIRKS], delay }
    }

    /// The same with other tables of quirks ([`enumerate_with`](super::super::enumerate_with)).
    #[must_use]
    pub const fn with_quirks(mut self, quirks: &'a [&'a [FunctionQuirk]]) -> Self {
        self.quirks = quirks;
        self
    }

    /// Something is in a slot that answers, or soon will: what is there is enumerated, and each function that is not
    /// registered is added, with ATS, PRI and PASID off, bridges before what is below them.
    ///
    /// A function that asks to be tried again is waited for, a second at most. `offer` is shown each function with its
    /// spec before it is added, to set hooks, label, mark and source; the key stays.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] while enumerating: nothing was added. What keeps single functions out is in their results, and what could
    /// not be read in [`Enumeration::problems`]. A function below a bridge that was not added has
    /// [`Cause::ParentMissing`](crate::assign::Cause::ParentMissing).
    ///
    /// # Context
    ///
    /// Waiting context; the delay passes and `offer` is called with no lock held. An add that meets another operation is tried
    /// again for a second. A function that goes away meanwhile reads as all ones: it is not added, or, where it was read whole,
    /// removed again.
    pub fn arrived(
        &self,
        slot: Slot,
        offer: &mut dyn FnMut(&Function, &Enumeration, DeviceSpec) -> DeviceSpec,
    ) -> Result<Arrival, OutOfMemory> {
        let found = self.enumerate(slot)?;
        let mut functions = Vec::new();
        for function in found.functions.iter().filter(|function| slot.has(function.key)) {
            few::push(
                &mut functions,
                Arrived { function: function.copied().map_err(|_| OutOfMemory)?, result: Err(NotOffered::Known) },
            )
            .map_err(|_| OutOfMemory)?;
        }
        for arrived in &mut functions {
            arrived.result = self.offered(&arrived.function, &found, offer);
            if let Err(error) = &arrived.result
                && *error != NotOffered::Known
            {
                log::warn!("{} is not offered: {error}", arrived.function.sbdf);
            }
        }
        Ok(Arrival { functions, found })
    }

    /// Someone wants to take out what is in a slot: each device is taken from its owner, whose hooks make it quiet and reset it,
    /// and is then removed, children first, in the order of the results.
    ///
    /// A device that is blocked is removed as it is: it was made quiet and reset when its last owner lost it. What fails,
    /// a hook above all, leaves that device registered, quarantined, and with it the bridges above: call again, which makes it
    /// quiet and resets it before it goes, or [`left`](super::left), which asks nobody.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`]: nothing was done.
    ///
    /// # Context
    ///
    /// Waiting context. An operation that meets another one is tried again for a second. Contract C-5, I-14.
    pub fn requested(&self, slot: Slot) -> Result<Vec<Departure>, OutOfMemory> {
        departures::requested(self.service, slot, self.delay)
    }

    pub(super) fn enumerate(&self, slot: Slot) -> Result<Enumeration, OutOfMemory> {
        let mut attempts = 0..ATTEMPTS;
        loop {
            let found = enumerate_around(self.space, self.host, self.quirks, &|bridge| slot.is_behind(bridge))?;
            let starts = |problem: &Problem| matches!(problem, Problem::Config(ConfigError::NotReady { .. }));
            if !found.problems.iter().any(starts) || attempts.next().is_none() {
                return Ok(found);
            }
            self.delay.pass(Delay::STEP);
        }
    }

    /// Refuses a function of an isolation group to which devices would belong now that are registered as none of it. All that is
    /// below a member is one.
    fn check_peers(&self, function: &Function, found: &Enumeration) -> Result<(), NotOffered> {
        if function.isolation.cause == IsolationCause::Apart {
            return Ok(());
        }
        let group = function.isolation.number();
        let is_member = |key: PciKey| {
            let mut peers = found.functions.iter().filter(|peer| peer.isolation.number() == group);
            peers.any(|peer| peer.key == key || peer.key.is_above(key))
        };
        let mut devices = Slot::Host(self.host.number).devices(self.service).map(|info| info.device);
        let apart = devices.find(|device| {
            device.isolation().is_some_and(|other| other != group) && key_of(device).is_some_and(is_member)
        });
        match apart {
            Some(device) => Err(NotOffered::NotApart { function: function.sbdf, peer: device.label().clone() }),
            None => Ok(()),
        }
    }

    fn offered(
        &self,
        function: &Function,
        found: &Enumeration,
        offer: &mut dyn FnMut(&Function, &Enumeration, DeviceSpec) -> DeviceSpec,
    ) -> Result<Device, NotOffered> {
        if self.service.find(function.key.into()).is_some() {
            return Err(NotOffered::Known);
        }
        self.check_peers(function, found)?;
        let spec = function.spec(self.host, found)?;
        let config = function.config(self.space).map_err(ControlError::Config)?;
        control::turn_translation_services_off(&config, &function.capabilities)?;
        let key = spec.key;
        let spec = DeviceSpec { key, ..offer(function, found, spec) };
        let device = self.delay.persist(ATTEMPTS, || self.service.add_copy(&spec)).map_err(NotOffered::Service)?;
        // That it left may have been said before it was added, and is not said again.
        if let Err(gone @ ConfigError::NotPresent { .. }) = config.still_present() {
            return Err(match self.service.remove_tree(&device) {
                Err(error) if error.cause != Cause::NotFound => NotOffered::Service(error),
                _ => ControlError::Config(gone).into(),
            });
        }
        Ok(device)
    }
}
