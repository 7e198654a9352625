//! A function-level reset, and what is put back after it.

use super::super::Sbdf;
use super::super::capability::{self, Capabilities};
use super::super::config::{COMMAND, ConfigSpace, FunctionConfig, HeaderType, OtherHalf};
use super::quiesce::{BUS_MASTER, ControlError, Progress};

/// A function that is being reset.
///
/// What a reset loses and a hypervisor has set up is put back: access control services, base addresses and their sizes, and
/// how the function behaves on its link. Bus mastering, interrupts, ATS, PRI, PASID and virtual functions stay off, as the
/// reset leaves them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the function answers again only when a step says Done"]
pub struct Reset {
    function: Sbdf,
    header: [u32; SAVED_HEADER.len()],
    /// Device Control and Device Control 2, with where they are.
    device_control: (u16, u16),
    device_control_2: Option<(u16, u16)>,
    /// Access control services and the function groups that they go by.
    access_control: [Option<(u16, u16)>; 2],
    sizes: [Option<(u16, u32)>; MAX_SIZES],
    steps: u32,
}

impl Reset {
    /// Begins a function-level reset (6.6.2).
    ///
    /// The caller has made the function [quiet](super::Quiesce), and lets 100 ms pass before the first step: until then the
    /// function need not answer, and may not be asked. `steps`: after so many steps without an answer it has failed;
    /// a function may take a second in all.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoReset`], [`ConfigError::NotPresent`](crate::pci::ConfigError::NotPresent).
    pub fn begin<C: ConfigSpace + ?Sized>(
        config: &FunctionConfig<'_, C>,
        capabilities: &Capabilities,
        steps: u32,
    ) -> Result<Self, ControlError> {
        let function = config.function();
        let express = capabilities.express.filter(|express| express.function_level_reset);
        let express = express.ok_or(ControlError::NoReset { function })?;
        if config.header_type()? != HeaderType::Endpoint {
            return Err(ControlError::NoReset { function });
        }
        let control = express.device_control();
        let saved = Self {
            function,
            header: SAVED_HEADER.map(|offset| config.read(offset)),
            device_control: (control, config.read_u16(control)),
            device_control_2: express.device_control_2().map(|offset| (offset, config.read_u16(offset))),
            access_control: [capabilities.acs.map(|acs| acs.control()), capabilities.ari.map(capability::ari_control)]
                .map(|offset| offset.map(|offset| (offset, config.read_u16(offset)))),
            sizes: {
                let mut controls = capabilities.resizable.into_iter().flat_map(capability::ResizableBars::controls);
                [(); MAX_SIZES].map(|()| controls.next().map(|offset| (offset, config.read(offset))))
            },
            steps,
        };
        // All ones read from a function that is gone must not be put back into one that comes in its place.
        config.still_present()?;
        // Device Status has bits that a 1 clears.
        config.change_u16(control, 0, FUNCTION_LEVEL_RESET, OtherHalf::Zero);
        Ok(saved)
    }

    /// Looks whether the function answers again, and if so puts back what it lost.
    ///
    /// # Errors
    ///
    /// [`ControlError::ResetTimeout`] when the steps are used up, [`ControlError::AccessControlLost`] when it takes its
    /// access control services back no more, [`ConfigError::NotPresent`](crate::pci::ConfigError::NotPresent) when it goes away after it answered.
    pub fn step<C: ConfigSpace + ?Sized>(&mut self, space: &C) -> Result<Progress, ControlError> {
        let Ok(config) = FunctionConfig::new(space, self.function) else {
            self.steps = self.steps.checked_sub(1).ok_or(ControlError::ResetTimeout { function: self.function })?;
            return Ok(Progress::Waiting);
        };
        // Before anything else: with Command the function answers to its peers again.
        for (offset, value) in self.access_control.into_iter().flatten() {
            config.change_u16(offset, u16::MAX, value, OtherHalf::Zero);
            if config.read_u16(offset) != value {
                config.still_present()?;
                return Err(ControlError::AccessControlLost { function: self.function });
            }
        }
        // Sizes before addresses, whose bits depend on them.
        for (offset, value) in self.sizes.into_iter().flatten() {
            config.write(offset, value);
        }
        for (offset, value) in SAVED_HEADER.into_iter().zip(self.header) {
            match offset {
                COMMAND => config.change_u16(COMMAND, u16::MAX, (value & 0xffff) as u16 & !BUS_MASTER, OtherHalf::Zero),
                _ => config.write(offset, value),
            }
        }
        for (offset, value) in core::iter::once(self.device_control).chain(self.device_control_2) {
            config.change_u16(offset, u16::MAX, value & !FUNCTION_LEVEL_RESET, OtherHalf::Zero);
        }
        config.still_present()?;
        Ok(Progress::Done)
    }
}

/// Device Control 15 (7.5.3.4).
const FUNCTION_LEVEL_RESET: u16 = 1 << 15;
/// What a reset of a type 0 function loses: cache line, base addresses, expansion ROM, interrupt line; Command last,
/// so that no address is decoded before it is whole.
const SAVED_HEADER: [u16; 10] = [0x0c, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30, 0x3c, COMMAND];
/// As many as the count in the capability can say.
const MAX_SIZES: usize = 7;
