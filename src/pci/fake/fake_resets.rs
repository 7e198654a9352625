//! Resets of a function by other ways than PCI Express.

use super::fake_registers::FakeRegisters;

/// Where the capabilities are by which a function is reset; 0: it has none.
#[derive(Debug, Default)]
pub(super) struct FakeResets {
    pub(super) power: u16,
    pub(super) advanced: u16,
}

impl FakeResets {
    /// Whether writing `value` over `before` is a reset, by power management or by advanced features.
    pub(super) fn are_begun(&self, offset: u16, before: u32, value: u32) -> bool {
        let word = offset & 0xffc;
        let by_power = self.power != 0 && word == self.power.wrapping_add(4);
        let by_power = by_power && before & 0b1011 == 3 && value & 3 == 0;
        by_power || self.has_status_at(offset) && value & 1 != 0
    }

    /// Whether advanced features tell there what is pending.
    pub(super) fn has_status_at(&self, offset: u16) -> bool {
        self.advanced != 0 && offset & 0xffc == self.advanced.wrapping_add(4)
    }
}

/// Whether these are the registers of a bridge to `bus` that holds it in reset.
pub(super) fn is_held(registers: &FakeRegisters, bus: u8) -> bool {
    let [_, secondary, subordinate, _] = registers.peek(0x18).to_le_bytes();
    let is_bridge = registers.peek(0x0c) >> 16 & 0x7f == 1;
    is_bridge && (secondary..=subordinate).contains(&bus) && registers.peek(BRIDGE_CONTROL) & BUS_RESET != 0
}

/// The 32 bits that Bridge Control is the upper half of.
pub(super) const BRIDGE_CONTROL: u16 = 0x3c;
/// Bridge Control 6.
pub(super) const BUS_RESET: u32 = 1 << 22;
