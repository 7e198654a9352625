//! How the driver reaches the registers: what a quirk changes about an access stands here and nowhere else.

use core::sync::atomic::{AtomicU8, Ordering};

use super::mmio::Registers;
use super::quirks::Effects;

/// The registers of an instance, with its quirks.
///
/// # Invariants
///
/// 1. While it is dark no register is touched: reads give 0 and a status all ones, writes go nowhere. Whoever makes it dark has seen to it
///    that nobody works on the instance (the instance's gate), and replays the shadow before light comes back.
#[derive(Debug)]
pub(in crate::smmu) struct Access<R> {
    registers: R,
    effects: Effects,
    /// What keeps an access from going straight to its register: mostly nothing, which one look tells.
    detours: AtomicU8,
}

/// Of the detours: it is dark.
const DARK: u8 = 1;
/// A quirk changes what is accessed.
const QUIRK: u8 = 2;
/// Every write that isolates is read back (contract A-7).
const READ_BACK: u8 = 4;

impl<R: Registers> Access<R> {
    pub(in crate::smmu) const fn new(registers: R, effects: Effects, read_back: bool) -> Self {
        let quirk = effects.intersects(Effects::SECURE_ALIASES.union(Effects::SPLIT_64));
        let detours = if quirk { QUIRK } else { 0 } | if read_back { READ_BACK } else { 0 };
        Self { registers, effects, detours: AtomicU8::new(detours) }
    }

    pub(in crate::smmu) const fn raw(&self) -> &R {
        &self.registers
    }

    pub(in crate::smmu) const fn has(&self, effect: Effects) -> bool {
        self.effects.contains(effect)
    }

    /// From now on nothing reaches the hardware, or everything does.
    pub(in crate::smmu) fn set_dark(&self, dark: bool) {
        if dark {
            self.detours.fetch_or(DARK, Ordering::AcqRel);
        } else {
            self.detours.fetch_and(!DARK, Ordering::AcqRel);
        }
    }

    pub(in crate::smmu) fn is_dark(&self) -> bool {
        self.detours.load(Ordering::Acquire) & DARK != 0
    }

    fn reads_back(&self) -> bool {
        self.detours.load(Ordering::Acquire) & (DARK | READ_BACK) == READ_BACK
    }

    /// The registers, where nothing is to be minded.
    fn straight(&self) -> Option<&R> {
        (self.detours.load(Ordering::Acquire) == 0).then_some(&self.registers)
    }

    pub(in crate::smmu) fn read32(&self, offset: u32) -> u32 {
        if self.is_dark() { 0 } else { self.registers.read32(self.place(offset)) }
    }

    #[inline]
    pub(in crate::smmu) fn write32(&self, offset: u32, value: u32) {
        match self.straight() {
            Some(registers) => registers.write32(offset, value),
            None => self.write32_round(offset, value),
        }
    }

    #[cold]
    fn write32_round(&self, offset: u32, value: u32) {
        if !self.is_dark() {
            self.registers.write32(self.place(offset), value);
        }
    }

    pub(in crate::smmu) fn read64(&self, offset: u32) -> u64 {
        self.read64_of(0, offset)
    }

    /// Writes a 64-bit register; where that takes two writes (Q8) the high half comes first.
    pub(in crate::smmu) fn write64(&self, offset: u32, value: u64) {
        match self.straight() {
            Some(registers) => registers.write64(offset, value),
            None => self.write64_round(offset, value),
        }
    }

    #[cold]
    fn write64_round(&self, offset: u32, value: u64) {
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
    #[inline]
    pub(in crate::smmu) fn write_isolating(&self, offset: u32, value: u32, expected: u32, compared: u32) -> bool {
        match self.straight() {
            Some(registers) => {
                registers.write32(offset, value);
                true
            }
            None => self.write_isolating_round(offset, value, expected, compared),
        }
    }

    #[cold]
    fn write_isolating_round(&self, offset: u32, value: u32, expected: u32, compared: u32) -> bool {
        self.write32_round(offset, value);
        !self.reads_back() || self.read32(offset) & compared == expected & compared
    }

    /// [`write_isolating`](Self::write_isolating) for a 64-bit register.
    pub(in crate::smmu) fn write64_isolating(&self, offset: u32, value: u64) -> bool {
        self.write64(offset, value);
        !self.reads_back() || self.read64(offset) == value
    }

    /// A status of all members in step: active while any of them is (Q9). All ones while it is dark.
    #[inline]
    pub(in crate::smmu) fn status(&self, offset: u32) -> u32 {
        match self.straight() {
            Some(registers) => {
                let members = (0..).map_while(|index| registers.member(index));
                members.fold(0, |all, member| all | member.read32(offset))
            }
            None => self.status_round(offset),
        }
    }

    #[cold]
    fn status_round(&self, offset: u32) -> u32 {
        let members = (0..).map_while(|index| self.member(index));
        let nothing = if self.is_dark() { u32::MAX } else { 0 };
        members.fold(nothing, |all, member| all | member.read32(self.place(offset)))
    }

    /// The members that are programmed alike; usually one.
    pub(in crate::smmu) fn members(&self) -> impl Iterator<Item = usize> {
        (0..).take_while(|member| self.registers.member(*member).is_some())
    }

    fn member(&self, index: usize) -> Option<&dyn Registers> {
        self.registers.member(index).filter(|_| !self.is_dark())
    }

    pub(in crate::smmu) fn read32_of(&self, member: usize, offset: u32) -> u32 {
        self.member(member).map_or(0, |registers| registers.read32(self.place(offset)))
    }

    pub(in crate::smmu) fn write32_of(&self, member: usize, offset: u32, value: u32) {
        if let Some(registers) = self.member(member) {
            registers.write32(self.place(offset), value);
        }
    }

    pub(in crate::smmu) fn read64_of(&self, member: usize, offset: u32) -> u64 {
        if self.has(Effects::SPLIT_64) {
            let high = self.read32_of(member, offset.wrapping_add(4));
            return u64::from(high) << 32 | u64::from(self.read32_of(member, offset));
        }
        self.member(member).map_or(0, |registers| registers.read64(self.place(offset)))
    }

    /// Where a register is for this driver (Q1).
    const fn place(&self, offset: u32) -> u32 {
        if !self.has(Effects::SECURE_ALIASES) {
            return offset;
        }
        match offset {
            0x000 | 0x008 | 0x010 | 0x040..=0x058 | 0x070 | 0x074 => offset | 0x400,
            _ => offset,
        }
    }
}

/// The low and the high word.
pub(in crate::smmu) const fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}
