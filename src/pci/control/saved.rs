//! What a reset loses and a hypervisor has set up: read before, written back after.

use super::super::capability::{self, Capabilities};
use super::super::config::{COMMAND, ConfigError, ConfigSpace, FunctionConfig, OtherHalf};
use super::quiesce::{BUS_MASTER, ControlError};

/// Registers of a function that a reset loses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Saved {
    header: [u32; SAVED_HEADER.len()],
    /// Access control services and the function groups that they go by.
    access_control: [Option<(u16, u16)>; 2],
    sizes: [Option<(u16, u32)>; MAX_SIZES],
    /// How the function behaves on its link: Device Control, Link Control, and both second ones.
    controls: [Option<(u16, u16)>; 4],
    /// The latencies that it tolerates.
    latency: Option<(u16, u32)>,
}

impl Saved {
    /// Reads them.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] when the function is gone: all ones must not be put back into one that comes in its place.
    pub(in super::super) fn read<C: ConfigSpace + ?Sized>(
        config: &FunctionConfig<'_, C>,
        capabilities: &Capabilities,
    ) -> Result<Self, ConfigError> {
        let half = |offset: u16| (offset, config.read_u16(offset));
        let whole = |offset: u16| (offset, config.read(offset));
        let express = capabilities.express;
        let saved = Self {
            header: SAVED_HEADER.map(|offset| config.read(offset)),
            access_control: [capabilities.acs.map(|acs| acs.control()), capabilities.ari.map(capability::ari_control)]
                .map(|offset| offset.map(half)),
            sizes: {
                let mut controls = capabilities.resizable.into_iter().flat_map(capability::ResizableBars::controls);
                [(); MAX_SIZES].map(|()| controls.next().map(whole))
            },
            controls: [
                express.map(|express| express.device_control()),
                express.map(|express| express.link_control()),
                express.and_then(|express| express.device_control_2()),
                express.and_then(|express| express.link_control_2()),
            ]
            .map(|offset| offset.map(half)),
            latency: capabilities.ltr.map(|offset| whole(offset.wrapping_add(4))),
        };
        config.still_present()?;
        Ok(saved)
    }

    /// These, but for what an owner may have changed, which is as `first` has it.
    pub(in super::super) const fn with_controls_of(self, first: &Self) -> Self {
        Self { controls: first.controls, latency: first.latency, ..self }
    }

    /// Writes them back, but for bus mastering, which stays off.
    ///
    /// # Errors
    ///
    /// [`ControlError::AccessControlLost`]; [`ConfigError`] when the function goes away.
    pub(super) fn restore<C: ConfigSpace + ?Sized>(&self, config: &FunctionConfig<'_, C>) -> Result<(), ControlError> {
        // Before anything else: with Command the function answers to its peers again.
        for (offset, value) in self.access_control.into_iter().flatten() {
            config.change_u16(offset, u16::MAX, value, OtherHalf::Zero)?;
            let is_back = config.read_u16(offset) == value;
            // All ones may be what is expected, and no answer all the same.
            config.still_present()?;
            if !is_back {
                return Err(ControlError::AccessControlLost { function: config.function() });
            }
        }
        // Sizes before addresses, whose bits depend on them.
        for (offset, value) in self.sizes.into_iter().flatten() {
            config.write(offset, value);
        }
        for (offset, value) in SAVED_HEADER.into_iter().zip(self.header) {
            match offset {
                COMMAND => {
                    let value = (value & 0xffff) as u16 & !BUS_MASTER;
                    config.change_u16(COMMAND, u16::MAX, value, OtherHalf::Zero)?;
                }
                _ => config.write(offset, value),
            }
        }
        config.still_present()?;
        if let Some((offset, value)) = self.latency {
            config.write(offset, value);
        }
        for (offset, value) in self.controls.into_iter().flatten() {
            // Device Control only: the others have no such bit.
            let once = if self.is_device_control(offset) { FUNCTION_LEVEL_RESET } else { 0 };
            config.change_u16(offset, u16::MAX, value & !once, OtherHalf::Zero)?;
        }
        config.still_present()?;
        Ok(())
    }

    fn is_device_control(&self, offset: u16) -> bool {
        let [first, ..] = self.controls;
        first.is_some_and(|(device_control, _)| device_control == offset)
    }
}

/// Device Control 15 (7.5.3.4).
pub(super) const FUNCTION_LEVEL_RESET: u16 = 1 << 15;
/// What a reset of a type 0 function loses: cache line, base addresses, expansion ROM, interrupt line; Command last,
/// so that no address is decoded before it is whole.
const SAVED_HEADER: [u16; 10] = [0x0c, 0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30, 0x3c, COMMAND];
/// As many as the count in the capability can say.
const MAX_SIZES: usize = 7;
