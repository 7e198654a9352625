//! The SR-IOV capability of a function: what a write to it does beside the bits that it changes, and the times to keep.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::fake_registers::FakeRegisters;

#[derive(Debug, Default)]
pub(super) struct FakeSriov {
    /// Where it is; 0: none.
    pub(super) capability: u16,
    /// First VF Offset and VF Stride without ARI Capable Hierarchy, and with.
    pub(super) plain: (u16, u16),
    pub(super) with_ari: (u16, u16),
    /// Takes no write to its control register.
    pub(super) stuck: bool,
    /// When VF Enable was set.
    on_since: AtomicU64,
    /// When it was cleared, from 1 up; 0: never.
    off_since: AtomicU64,
    /// Accesses that came sooner than the specification allows.
    pub(super) early: AtomicU32,
}

impl FakeSriov {
    /// An access is made. Returns the control register, and takes a note where it comes too early.
    pub(super) fn asked(&self, registers: &FakeRegisters, offset: u16, now: u64) -> u32 {
        let at = self.capability;
        if at == 0 {
            return 0;
        }
        let off_since = self.off_since.load(Relaxed);
        let is_shutting_down = off_since != 0 && now.saturating_sub(off_since) < SHUT_DOWN && now != u64::MAX;
        if is_shutting_down && (at..at.saturating_add(SIZE)).contains(&offset) {
            self.early.fetch_add(1, Relaxed);
        }
        registers.peek(at.wrapping_add(CONTROL))
    }

    /// A write was made; `control` is what the control register had before. Says whether it switched virtual functions on.
    pub(super) fn wrote(&self, registers: &FakeRegisters, offset: u16, control: u32, now: u64) -> bool {
        let at = self.capability;
        if at == 0 {
            return false;
        }
        if offset == at.wrapping_add(CONTROL) && self.stuck {
            registers.poke(offset, control);
            return false;
        }
        let after = registers.peek(at.wrapping_add(CONTROL));
        let (first, stride) = if after & ARI_HIERARCHY != 0 { self.with_ari } else { self.plain };
        registers.poke(at.wrapping_add(LAYOUT), u32::from(first) | u32::from(stride) << 16);
        match (control & VF_ENABLE != 0, after & VF_ENABLE != 0) {
            (false, true) => {
                self.on_since.store(now, Relaxed);
                true
            }
            (true, false) => {
                self.off_since.store(now.max(1), Relaxed);
                false
            }
            _ => false,
        }
    }

    /// The number of the virtual function with requester ID `wanted` that answers; `own` is that of its physical function.
    pub(super) fn number_of(&self, registers: &FakeRegisters, own: u16, wanted: u16, now: u64) -> Option<u16> {
        let at = self.capability;
        if at == 0 || registers.peek(at.wrapping_add(CONTROL)) & VF_ENABLE == 0 {
            return None;
        }
        let layout = registers.peek(at.wrapping_add(LAYOUT));
        let (first, stride) = ((layout & 0xffff) as u16, (layout >> 16) as u16);
        let behind = wanted.checked_sub(own)?.checked_sub(first)?;
        let number = behind.checked_div(stride).unwrap_or(0);
        let count = registers.peek(at.wrapping_add(NUMBER)) & 0xffff;
        if number.checked_mul(stride) != Some(behind) || u32::from(number) >= count {
            return None;
        }
        if now.saturating_sub(self.on_since.load(Relaxed)) < START_UP && now != u64::MAX {
            self.early.fetch_add(1, Relaxed);
            return None;
        }
        Some(number)
    }
}

pub(super) const CONTROL: u16 = 0x08;
pub(super) const NUMBER: u16 = 0x10;
const LAYOUT: u16 = 0x14;
const SIZE: u16 = 0x40;
const VF_ENABLE: u32 = 1 << 0;
const ARI_HIERARCHY: u32 = 1 << 4;
/// In microseconds (9.3.3.3.1).
const START_UP: u64 = 100_000;
const SHUT_DOWN: u64 = 1_000_000;
