//! Capabilities that conventional PCI has: power management and advanced features. By both a function can be reset.

use super::super::config::{ConfigSpace, FunctionConfig};
use super::views::at;

/// Power management (PCI Bus Power Management Interface Specification 1.2, 3.2; PCI Express Base Specification 7.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PowerManagement {
    /// Where the capability is.
    pub offset: u16,
    /// Whether going from D3hot to D0 resets the function (No_Soft_Reset is 0).
    pub resets: bool,
}

impl PowerManagement {
    pub(super) fn read<C: ConfigSpace + ?Sized>(config: &FunctionConfig<'_, C>, offset: u16) -> Self {
        Self { offset, resets: config.read_u16(at(offset, POWER_CONTROL)) & NO_SOFT_RESET == 0 }
    }

    /// Where its control and status register is, 16 bits; the lowest two are the power state.
    #[must_use]
    pub const fn control(&self) -> u16 {
        at(self.offset, POWER_CONTROL)
    }
}

/// Advanced features (PCI Advanced Capabilities ECN of 2006).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AdvancedFeatures {
    /// Where the capability is.
    pub offset: u16,
    /// Whether the function can be reset alone.
    pub function_level_reset: bool,
    /// Whether it tells that transactions are pending.
    pub tells_pending: bool,
}

impl AdvancedFeatures {
    pub(super) fn read<C: ConfigSpace + ?Sized>(config: &FunctionConfig<'_, C>, offset: u16) -> Self {
        let [_, able] = config.read_u16(at(offset, 2)).to_le_bytes();
        Self { offset, function_level_reset: able & 2 != 0, tells_pending: able & 1 != 0 }
    }

    /// Where its control register is, 8 bits; its status is the next byte.
    #[must_use]
    pub const fn control(&self) -> u16 {
        at(self.offset, 4)
    }
}

const POWER_CONTROL: u16 = 4;
const NO_SOFT_RESET: u16 = 1 << 3;
