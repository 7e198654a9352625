//! How the driver reaches the registers: what a quirk changes about an access stands here and nowhere else.

use core::sync::atomic::{AtomicBool, Ordering};

use super::mmio::Registers;
use super::quirks::Effects;

/// The registers of an instance, with its quirks.
///
/// # Invariants
///
/// 1. While it is dark no register is touched: reads give 0, writes go nowhere. Whoever makes it dark has seen to it
///    that nobody works on the instance ([`Gate`](super::gate::Gate)), and replays the shadow before light comes back.
#[derive(Debug)]
pub(super) struct Access<R> {
    registers: R,
    effects: Effects,
    /// Every write that isolates is read back (contract A-7).
    read_back: bool,
    dark: AtomicBool,
}

impl<R: Registers> Access<R> {
    pub(super) const fn new(registers: R, effects: Effects, read_back: bool) -> Self {
        Self { registers, effects, read_back, dark: AtomicBool::new(false) }
    }

    pub(super) const fn raw(&self) -> &R {
        &self.registers
    }

    pub(super) const fn has(&self, effect: Effects) -> bool {
        self.effects.contains(effect)
    }

    /// From now on nothing reaches the hardware, or everything does.
    pub(super) fn set_dark(&self, dark: bool) {
        self.dark.store(dark, Ordering::Release);
    }

    pub(super) fn is_dark(&self) -> bool {
        self.dark.load(Ordering::Acquire)
    }

    pub(super) fn read32(&self, offset: u32) -> u32 {
        if self.is_dark() { 0 } else { self.registers.read32(self.place(offset)) }
    }

    pub(super) fn write32(&self, offset: u32, value: u32) {
        if !self.is_dark() {
            self.registers.write32(self.place(offset), value);
        }
    }

    pub(super) fn read64(&self, offset: u32) -> u64 {
        self.read64_of(0, offset)
    }

    /// Writes a 64-bit register; where that takes two writes (Q8) the high half comes first.
    pub(super) fn write64(&self, offset: u32, value: u64) {
        if self.has(Effects::SPLIT_64) {
            let [low, high] = halves(value);
            self.write32(offset.wrapping_add(4), high);
            self.write32(offset, low);
        } else if !self.is_dark() {
            self.registers.write64(self.place(offset), value);
        }
    }

    /// A write on which isolation rests. Says whether it holds, where that is asked for: `expected` is what must be
    /// read back in the bits of `compared`.
    pub(super) fn write_isolating(&self, offset: u32, value: u32, expected: u32, compared: u32) -> bool {
        self.write32(offset, value);
        !self.read_back || self.is_dark() || self.read32(offset) & compared == expected & compared
    }

    /// [`write_isolating`](Self::write_isolating) for a 64-bit register.
    pub(super) fn write64_isolating(&self, offset: u32, value: u64) -> bool {
        self.write64(offset, value);
        !self.read_back || self.is_dark() || self.read64(offset) == value
    }

    /// A status of all members in step: active while any of them is (Q9).
    pub(super) fn status(&self, offset: u32) -> u32 {
        self.members().fold(0, |all, member| all | self.read32_of(member, offset))
    }

    /// The members that are programmed alike; usually one.
    pub(super) fn members(&self) -> impl Iterator<Item = usize> + use<R> {
        0..self.registers.members()
    }

    pub(super) fn read32_of(&self, member: usize, offset: u32) -> u32 {
        if self.is_dark() { 0 } else { self.registers.read32_of(member, self.place(offset)) }
    }

    pub(super) fn write32_of(&self, member: usize, offset: u32, value: u32) {
        if !self.is_dark() {
            self.registers.write32_of(member, self.place(offset), value);
        }
    }

    pub(super) fn read64_of(&self, member: usize, offset: u32) -> u64 {
        if self.has(Effects::SPLIT_64) {
            let high = self.read32_of(member, offset.wrapping_add(4));
            let low = self.read32_of(member, offset);
            u64::from(high) << 32 | u64::from(low)
        } else if self.is_dark() {
            0
        } else {
            self.registers.read64_of(member, self.place(offset))
        }
    }

    /// Where a register is for this driver (Q1).
    const fn place(&self, offset: u32) -> u32 {
        match offset {
            0x000 | 0x008 | 0x010 | 0x040..=0x058 | 0x070 | 0x074 if self.has(Effects::SECURE_ALIASES) => {
                offset | 0x400
            }
            _ => offset,
        }
    }
}

/// The low and the high word.
pub(super) const fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}
