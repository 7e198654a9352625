//! Resets of one function, by each of the methods that there are, and what is put back after it.

use super::super::capability::{ARI_HIERARCHY, Capabilities};
use super::super::config::{ConfigError, ConfigSpace, FunctionConfig, HeaderType, Identity, OtherHalf};
use super::super::{DeviceFunction, Sbdf};
use super::bus_reset::BusReset;
use super::quiesce::{ControlError, Progress};
use super::saved::{FUNCTION_LEVEL_RESET, Saved};
use crate::sync::Micros;

/// How a function can be reset without another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum ResetMethod {
    /// Function-level reset of PCI Express (6.6.2).
    FunctionLevel,
    /// The same by the capability of advanced features.
    AdvancedFeatures,
    /// From D3hot to D0, where that resets (No_Soft_Reset is 0; 5.3.1.4).
    Power,
    /// The reset of the bus, where the function is alone on it (Bridge Control 6, 7.5.1.3.10).
    Bus,
}

impl ResetMethod {
    /// All of them, the one first that disturbs least.
    pub const ALL: [Self; 4] = [Self::FunctionLevel, Self::AdvancedFeatures, Self::Power, Self::Bus];

    /// What must pass after the reset before the function is accessed (6.6.1, 6.6.2; 5.9 for power states).
    const fn recovery(self) -> Micros {
        match self {
            Self::FunctionLevel | Self::AdvancedFeatures | Self::Bus => Micros::from_millis(100),
            Self::Power => POWER_STATE,
        }
    }
}

/// A function that is being reset.
///
/// What a reset loses and a hypervisor has set up is put back: access control services, base addresses and their sizes, and
/// how the function behaves on its link. Bus mastering, interrupts, ATS, PRI, PASID and virtual functions stay off, as the
/// reset leaves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the function answers again only when a step says Done"]
pub struct Reset {
    function: Sbdf,
    identity: Identity,
    method: ResetMethod,
    saved: Saved,
    phase: Phase,
    steps: u32,
}

/// What the next step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Writes D0 to this register.
    PowerUp(u16),
    /// Ends the reset of the bus.
    Release(BusReset),
    /// Looks for the first time.
    First,
    /// Looks again.
    Again,
}

impl Reset {
    /// Begins a function-level reset (6.6.2).
    ///
    /// The caller has made the function [quiet](super::Quiesce), and lets [`Self::delay`] pass before each step: until the
    /// first the function need not answer, and may not be asked. `steps`: after so many steps without an answer it has
    /// failed; a function may take a second in all.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoReset`], [`ControlError::RenumbersOthers`], [`ConfigError::NotPresent`].
    pub fn begin<C: ConfigSpace + ?Sized>(
        config: &FunctionConfig<'_, C>,
        capabilities: &Capabilities,
        steps: u32,
    ) -> Result<Self, ControlError> {
        Self::begin_by(ResetMethod::FunctionLevel, config, capabilities, None, steps)
    }

    /// The same by `method`. `bridge` is the bridge right above, for [`ResetMethod::Bus`]: it is the hypervisor's own.
    ///
    /// A function in another power state than D0 is to be brought there before.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoReset`] where the function cannot be reset alone by this method; [`ControlError::RenumbersOthers`];
    /// [`ConfigError::NotPresent`].
    pub fn begin_by<C: ConfigSpace + ?Sized>(
        method: ResetMethod,
        config: &FunctionConfig<'_, C>,
        capabilities: &Capabilities,
        bridge: Option<Sbdf>,
        steps: u32,
    ) -> Result<Self, ControlError> {
        let function = config.function();
        if config.header_type()? != HeaderType::Endpoint {
            return Err(ControlError::NoReset { function });
        }
        check_numbering(config, capabilities)?;
        let saved = Saved::read(config, capabilities)?;
        Self::begin_saved(method, config, capabilities, bridge, saved, steps)
    }

    /// The same, of an endpoint whose registers were read before. The function answers, but for [`ResetMethod::Bus`].
    pub(in super::super) fn begin_saved<C: ConfigSpace + ?Sized>(
        method: ResetMethod,
        config: &FunctionConfig<'_, C>,
        capabilities: &Capabilities,
        bridge: Option<Sbdf>,
        saved: Saved,
        steps: u32,
    ) -> Result<Self, ControlError> {
        let function = config.function();
        let none = ControlError::NoReset { function };
        let phase = match method {
            ResetMethod::FunctionLevel => {
                let express = capabilities.express.filter(|express| express.function_level_reset).ok_or(none)?;
                // Device Status has bits that a 1 clears.
                config.change_u16(express.device_control(), 0, FUNCTION_LEVEL_RESET, OtherHalf::Zero)?;
                Phase::First
            }
            ResetMethod::AdvancedFeatures => {
                let advanced = capabilities.advanced.filter(|advanced| advanced.function_level_reset).ok_or(none)?;
                // The other bits of control, status and the rest of the 32 bits are reserved or read-only.
                config.write(advanced.control(), ADVANCED_RESET);
                Phase::First
            }
            ResetMethod::Power => {
                let power = capabilities.power.filter(|power| power.resets).ok_or(none)?;
                set_power_state(config, power.control(), D3_HOT)?;
                Phase::PowerUp(power.control())
            }
            ResetMethod::Bus => Phase::Release(BusReset::begin(config, bridge.ok_or(none)?)?),
        };
        Ok(Self { function, identity: config.identity(), method, saved, phase, steps })
    }

    /// What must pass before the next step.
    #[must_use]
    pub const fn delay(&self) -> Micros {
        match self.phase {
            Phase::PowerUp(_) => POWER_STATE,
            Phase::Release(_) => BusReset::HOLD,
            Phase::First => self.method.recovery(),
            Phase::Again => Micros::from_millis(1),
        }
    }

    /// Takes the next step: ends what the method holds, then looks whether the function answers again, and if so puts back
    /// what it lost.
    ///
    /// # Errors
    ///
    /// [`ControlError::ResetTimeout`] when the steps are used up, [`ControlError::AccessControlLost`] when it takes its
    /// access control services back no more, [`ConfigError::NotPresent`] when it goes away after it answered, or its bridge
    /// does.
    pub fn step<C: ConfigSpace + ?Sized>(&mut self, space: &C) -> Result<Progress, ControlError> {
        match self.phase {
            Phase::PowerUp(control) => {
                let config = FunctionConfig::open(space, self.function, self.identity)?;
                set_power_state(&config, control, D0)?;
                config.still_present()?;
                self.phase = Phase::First;
                return Ok(Progress::Waiting);
            }
            Phase::Release(reset) => {
                reset.end(space)?;
                self.phase = Phase::First;
                return Ok(Progress::Waiting);
            }
            Phase::First | Phase::Again => {}
        }
        self.phase = Phase::Again;
        let Ok(config) = FunctionConfig::open(space, self.function, self.identity) else {
            self.steps = self.steps.checked_sub(1).ok_or(ControlError::ResetTimeout { function: self.function })?;
            return Ok(Progress::Waiting);
        };
        self.saved.restore(&config)?;
        Ok(Progress::Done)
    }
}

/// Refuses a reset that would number virtual functions of another function otherwise: the lowest physical function of a device has
/// ARI Capable Hierarchy for all of them, and loses it by a reset (9.3.3.3.5).
pub(in super::super) fn check_numbering<C: ConfigSpace + ?Sized>(
    config: &FunctionConfig<'_, C>,
    capabilities: &Capabilities,
) -> Result<(), ControlError> {
    let Some(own) = capabilities.sr_iov else { return Ok(()) };
    let has_all = config.read_u16(own.control()) & ARI_HIERARCHY != 0;
    config.still_present()?;
    let function = config.function();
    // With the bit the device has all of its bus.
    let others = (0..=u8::MAX).map(DeviceFunction).filter(|place| has_all && *place != function.device_function);
    let mut others = others.filter_map(|place| FunctionConfig::new(config.space(), function.sibling(place)).ok());
    let is_on = |other: &FunctionConfig<'_, C>| {
        Capabilities::read(other).is_ok_and(|found| found.sr_iov.is_some_and(|sr_iov| sr_iov.enabled))
    };
    if others.any(|other| is_on(&other)) { Err(ControlError::RenumbersOthers { function }) } else { Ok(()) }
}

/// Brings a function that is in another power state to D0. Returns what must pass before it is accessed again, if it was.
///
/// That may reset the function, as [`ResetMethod::Power`] does: base addresses are lost then.
///
/// # Errors
///
/// [`ConfigError::NotPresent`], [`ConfigError::NotReady`].
pub fn power_up<C: ConfigSpace + ?Sized>(
    config: &FunctionConfig<'_, C>,
    capabilities: &Capabilities,
) -> Result<Option<Micros>, ConfigError> {
    let Some(power) = capabilities.power else { return Ok(None) };
    let state = config.read_u16(power.control()) & POWER_STATE_BITS;
    config.still_present()?;
    if state == D0 {
        return Ok(None);
    }
    set_power_state(config, power.control(), D0)?;
    Ok(Some(POWER_STATE))
}

/// PME_Status is cleared by a 1, and is left as it is.
fn set_power_state<C: ConfigSpace + ?Sized>(
    config: &FunctionConfig<'_, C>,
    control: u16,
    state: u16,
) -> Result<(), ConfigError> {
    config.change_u16(control, POWER_STATE_BITS | PME_STATUS, state, OtherHalf::Keep)
}

const POWER_STATE_BITS: u16 = 3;
const PME_STATUS: u16 = 1 << 15;
const D0: u16 = 0;
const D3_HOT: u16 = 3;
/// What a change between D0 and D3hot takes (5.9).
const POWER_STATE: Micros = Micros::from_millis(10);
/// Initiate FLR, in the control register of advanced features.
const ADVANCED_RESET: u32 = 1;
