//! Buses that get other numbers while functions stay (contract C-18).

use alloc::vec::Vec;

use super::super::capability::Capabilities;
use super::super::config::{COMMAND, ConfigError, ConfigSpace, OtherHalf};
use super::super::control::{BUS_MASTER, ControlError, Progress, Quiesce};
use super::super::enumeration::{Enumeration, OutOfMemory};
use super::super::function::{Function, FunctionKind};
use super::super::key::PciKey;
use super::super::sriov::{PhysicalFunction, SriovError};
use super::super::topology::AliasKind;
use super::arrivals::HotPlug;
use super::departures::{ATTEMPTS, listed};
use super::slot::{Slot, key_of};
use crate::assign::{self, Cause, Device, DeviceSpec, DeviceState, Error, Left, Operation, Removal, Reregistered};
use crate::few;
use crate::sync::{Micros, Platform};

/// Buses could not be renumbered: nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RenumberError {
    /// No memory.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// A function does not become quiet: what it waits for would come to its old requester ID.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The virtual functions that are registered cannot be read.
    #[error(transparent)]
    VirtualFunctions(#[from] SriovError),
    /// The service cannot begin.
    #[error("{0}")]
    Service(assign::Error),
}

/// A function that has an owner, and whose bus mastering was turned off for a while.
#[derive(Clone, Copy)]
struct Paused {
    key: PciKey,
    state: DeviceState,
}

impl<P: Platform, C: ConfigSpace + ?Sized> HotPlug<'_, P, C> {
    /// Buses in a slot get other numbers while the functions stay: `renumber` writes them.
    ///
    /// Every function that is a device there stops bus mastering, and what it has pending comes to an end. Then
    /// [`Service::reregister`](crate::assign::Service::reregister) takes all of them out, children first, calls `renumber`,
    /// adds each with the streams of its new requester IDs, bridges first, and gives each back to its owner, without a reset.
    /// At last those that their owners have again master the bus as before. Virtual functions that are registered move with
    /// their physical function.
    ///
    /// `offer` is shown each function with its spec, as for [`arrived`](Self::arrived): hooks that know an address must know
    /// the new one. Old handles answer `Gone`; keys are the same.
    ///
    /// # Errors
    ///
    /// [`RenumberError`]: nothing has changed. What fails for one device is in its result; where one could not be removed,
    /// `renumber` was not called, and all others are as before. A function that is not found again, or goes meanwhile, stays out.
    ///
    /// # Context
    ///
    /// Waiting context; `renumber` and `offer` are called with no lock held. What meets another operation is tried again for a
    /// second. A guest must not write Command of its functions
    /// meanwhile. Domains that own one cannot be destroyed until it ends.
    pub fn renumbered(
        &self,
        slot: Slot,
        renumber: &mut dyn FnMut(),
        offer: &mut dyn FnMut(&Function, &Enumeration, DeviceSpec) -> DeviceSpec,
    ) -> Result<Vec<Reregistered>, RenumberError> {
        let devices = listed(self.service, slot)?;
        let mut paused = Vec::new();
        paused.try_reserve_exact(devices.len()).map_err(|_| OutOfMemory)?;
        let (_, functions) = self.registered(slot, &devices)?;
        for function in &functions {
            if let Err(error) = self.pause(function, &mut paused) {
                self.resume(&functions, &paused);
                return Err(error.into());
            }
        }
        let mut now = None;
        let mut change = || {
            renumber();
            let found = self.registered(slot, &devices);
            let (found, functions) = now.insert(found.unwrap_or_else(|error| {
                log::warn!("{slot} was renumbered, and cannot be read: {error}");
                (Enumeration::default(), Vec::new())
            }));
            self.specs(slot, found, functions, offer)
        };
        let again = &mut self.delay.again(ATTEMPTS);
        let mut results = match self.service.reregister(&devices, &mut change, again) {
            Ok(results) => results,
            Err(error) => {
                self.resume(&functions, &paused);
                return Err(RenumberError::Service(error));
            }
        };
        let functions = now.as_ref().map_or(&functions, |(_, functions)| functions);
        results.iter_mut().for_each(|one| self.drop_gone(functions, one));
        self.resume(functions, &paused);
        Ok(results)
    }

    /// The functions that `devices` are, as they are found now, with all that was enumerated. A physical function whose virtual
    /// functions are among them does not send as these.
    fn registered(&self, slot: Slot, devices: &[Device]) -> Result<(Enumeration, Vec<Function>), RenumberError> {
        let mut found = self.enumerate(slot)?;
        let is_device = |key: PciKey| devices.iter().any(|device| key_of(device) == Some(key));
        let has_virtual = |key: PciKey| {
            let mut keys = devices.iter().filter_map(key_of);
            keys.any(|one| one.virtual_number().is_some() && one.parent() == Some(key))
        };
        for function in found.functions.iter_mut().filter(|function| has_virtual(function.key)) {
            function.requester_ids.retain(|alias| alias.kind != AliasKind::Virtual);
        }
        let mut functions = Vec::new();
        for function in found.functions.iter().filter(|function| is_device(function.key)) {
            let copied = function.copied().and_then(|copy| few::push(&mut functions, copy));
            copied.map_err(|_| OutOfMemory)?;
            if !has_virtual(function.key) {
                continue;
            }
            let physical = PhysicalFunction::new(self.space, self.host, &found, function.key)?;
            let virtual_functions = physical.with_quirks(self.quirks).virtual_functions()?;
            let registered = virtual_functions.into_iter().filter(|function| is_device(function.key));
            few::extend(&mut functions, registered).map_err(|_| OutOfMemory)?;
        }
        Ok((found, functions))
    }

    /// Takes out again what has gone: that it left may have been said while it was not registered, and is not said again.
    fn drop_gone(&self, functions: &[Function], one: &mut Reregistered) {
        let function = functions.iter().find(|function| key_of(&one.before) == Some(function.key));
        let config = function.map(|function| function.config(self.space));
        if let (Some(device), Some(Err(ConfigError::NotPresent { .. }))) = (&one.device, config) {
            match self.service.remove_tree(device) {
                Ok(Removal::Done | Removal::StillReachable(_)) | Err(Error { cause: Cause::NotFound, .. }) => {
                    let subject = device.label().clone();
                    one.result =
                        Err(Error { operation: Operation::Add, subject, cause: Cause::Removed, left: Left::Removed });
                    one.device = None;
                }
                Ok(Removal::Pending) => one.result = Err(Error::removal_is_pending(device.label().clone())),
                Err(error) => one.result = Err(error),
            }
        }
    }

    /// The functions as they are offered now.
    fn specs(
        &self,
        slot: Slot,
        found: &Enumeration,
        functions: &[Function],
        offer: &mut dyn FnMut(&Function, &Enumeration, DeviceSpec) -> DeviceSpec,
    ) -> Vec<DeviceSpec> {
        let mut specs = Vec::new();
        if specs.try_reserve_exact(functions.len()).is_err() {
            return specs;
        }
        // A function learns its bus number from a write (2.2.6.2). This one changes nothing else. What is no device learns it,
        // too: by its old number it would send as another.
        let in_slot = found.functions.iter().filter(|function| slot.has(function.key));
        for config in in_slot.chain(functions).filter_map(|function| function.config(self.space).ok()) {
            config.write(0, 0);
        }
        for function in functions {
            match function.spec(self.host, found) {
                Ok(spec) => {
                    let key = spec.key;
                    few::push_within(&mut specs, DeviceSpec { key, ..offer(function, found, spec) });
                }
                Err(error) => log::warn!("{} cannot be registered anew: {error}", function.sbdf),
            }
        }
        specs
    }

    /// A function's state, where a domain has it.
    fn owned(&self, key: PciKey) -> Option<DeviceState> {
        let state = self.service.find(key.into()).map(|info| info.state);
        state.filter(|state| matches!(state, DeviceState::Assigned(_)))
    }

    /// Makes a function quiet, and notes whether its owner had it otherwise.
    fn pause(&self, function: &Function, paused: &mut Vec<Paused>) -> Result<(), ControlError> {
        // A bridge begins nothing of its own, and what is below needs it.
        if matches!(function.kind, FunctionKind::Bridge { .. } | FunctionKind::CardBus) {
            return Ok(());
        }
        let config = function.config(self.space)?;
        let was_master = config.read_u16(COMMAND) & BUS_MASTER != 0;
        config.still_present()?;
        if let Some(state) = self.owned(function.key).filter(|_| was_master) {
            few::push_within(paused, Paused { key: function.key, state });
        }
        let mut quiesce = Quiesce::begin(&config, &Capabilities::read(&config)?, STEPS)?;
        while quiesce.step(&config)? == Progress::Waiting {
            self.delay.pass(STEP);
        }
        Ok(())
    }

    /// Lets functions master the bus again that did before, and have the same owner.
    fn resume(&self, functions: &[Function], paused: &[Paused]) {
        for one in paused.iter().filter(|one| self.owned(one.key) == Some(one.state)) {
            let function = functions.iter().find(|function| function.key == one.key);
            if let Some(Ok(config)) = function.map(|function| function.config(self.space)) {
                // One that has gone has nothing to go on with.
                let _ = config.change_u16(COMMAND, 0, BUS_MASTER, OtherHalf::Zero);
            }
        }
    }
}

/// Between two looks at what is pending, and how often: a second in all.
const STEP: Micros = Micros::from_millis(1);
const STEPS: u32 = 1000;
