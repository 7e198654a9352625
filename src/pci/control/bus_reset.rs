//! The reset of a bus that one function has for itself.

use super::super::capability::Capabilities;
use super::super::config::{ConfigSpace, FunctionConfig, HeaderType, Identity, OtherHalf};
use super::super::{DeviceFunction, Sbdf};
use super::quiesce::ControlError;
use crate::sync::Micros;

/// A bus that is held in reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the bus stays in reset until it is ended"]
pub(super) struct BusReset {
    bridge: Sbdf,
}

impl BusReset {
    /// How long the reset is held: T_rst is 1 ms (PCI Local Bus Specification 3.0, 4.3.2; 7.5.1.3.10).
    pub(super) const HOLD: Micros = Micros::from_millis(2);

    /// Begins it, for the function of `config`, which need not answer.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoReset`] where the bridge does not lead to the function's bus, where another function is on that bus,
    /// and where a slot for hot-plug is, whose handler would take the reset for a removal.
    /// [`ConfigError`](crate::pci::ConfigError) of the bridge.
    pub(super) fn begin<C: ConfigSpace + ?Sized>(
        config: &FunctionConfig<'_, C>,
        bridge: Sbdf,
    ) -> Result<Self, ControlError> {
        let (space, function) = (config.space(), config.function());
        let none = ControlError::NoReset { function };
        if config.identity() != Identity::Own {
            // It is alone on no bus: its physical function is there, or others like it, which cannot be seen.
            return Err(none);
        }
        let above = FunctionConfig::new(space, bridge)?;
        match above.header_type()? {
            HeaderType::Bridge { secondary, .. } if secondary == function.bus && bridge.bus < secondary => {}
            _ => return Err(none),
        }
        let capabilities = Capabilities::read(&above)?;
        let express = capabilities.express;
        let has_slot = express.is_some_and(|express| {
            let implemented = above.read(express.offset) & SLOT_IMPLEMENTED != 0;
            implemented && above.read(express.offset.wrapping_add(SLOT_CAPABILITIES)) & HOT_PLUG_CAPABLE != 0
        });
        let is_link = express.is_some_and(|express| express.port_type.is_downstream_port());
        let ari = express.is_some_and(|express| express.ari_forwarding);
        // Below a link only device 0 is there; others may be its echo.
        let last = if is_link && !ari { 7 } else { u8::MAX };
        let others = (0..=last).map(DeviceFunction).filter(|place| *place != function.device_function);
        let is_alone = others.into_iter().all(|place| is_absent(space, function.sibling(place)));
        above.still_present()?;
        if has_slot || !is_alone {
            return Err(none);
        }
        above.change_u16(BRIDGE_CONTROL, 0, BUS_RESET, OtherHalf::Keep)?;
        above.still_present()?;
        Ok(Self { bridge })
    }

    /// Ends it. What is on the bus may be accessed 100 ms later.
    ///
    /// # Errors
    ///
    /// [`ConfigError`](crate::pci::ConfigError) when the bridge has gone.
    pub(super) fn end<C: ConfigSpace + ?Sized>(self, space: &C) -> Result<(), ControlError> {
        let above = FunctionConfig::new(space, self.bridge)?;
        above.change_u16(BRIDGE_CONTROL, BUS_RESET, 0, OtherHalf::Keep)?;
        above.still_present()?;
        Ok(())
    }
}

/// Whether nothing answers there, not even that it is to be tried again.
fn is_absent<C: ConfigSpace + ?Sized>(space: &C, at: Sbdf) -> bool {
    matches!(FunctionConfig::new(space, at), Err(super::super::ConfigError::NotPresent { .. }))
}

const BRIDGE_CONTROL: u16 = 0x3e;
const BUS_RESET: u16 = 1 << 6;
/// PCI Express Capabilities 8, in the upper half of the capability's first 32 bits (7.5.3.2).
const SLOT_IMPLEMENTED: u32 = 1 << 24;
const SLOT_CAPABILITIES: u16 = 0x14;
const HOT_PLUG_CAPABLE: u32 = 1 << 6;
