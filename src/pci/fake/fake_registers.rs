//! The registers of a function: what a write can change, and what a reset leaves.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

#[derive(Debug)]
pub(super) struct FakeRegisters {
    registers: Box<[AtomicU32; WORDS]>,
    /// What a reset leaves.
    initial: Box<[u32; WORDS]>,
    writable: Box<[u32; WORDS]>,
    clear_by_one: Box<[u32; WORDS]>,
}

impl FakeRegisters {
    /// All of them 0 and read-only.
    pub(super) fn new() -> Self {
        Self {
            registers: Box::new([const { AtomicU32::new(0) }; WORDS]),
            initial: Box::new([0; WORDS]),
            writable: Box::new([0; WORDS]),
            clear_by_one: Box::new([0; WORDS]),
        }
    }

    pub(super) fn peek(&self, offset: u16) -> u32 {
        self.registers.get(word(offset)).map_or(u32::MAX, |register| register.load(Relaxed))
    }

    pub(super) fn write(&self, offset: u16, value: u32) {
        let index = word(offset);
        let writable = self.writable.get(index).copied().unwrap_or(0);
        let clears = self.clear_by_one.get(index).copied().unwrap_or(0) & value;
        let Some(register) = self.registers.get(index) else { return };
        register.store((register.load(Relaxed) & !writable | value & writable) & !clears, Relaxed);
    }

    /// Sets 32 bits until a reset, whatever a write can change.
    pub(super) fn poke(&self, offset: u16, value: u32) {
        if let Some(register) = self.registers.get(word(offset)) {
            register.store(value, Relaxed);
        }
    }

    /// What a reset leaves.
    pub(super) fn initial(&self, offset: u16) -> u32 {
        self.initial.get(word(offset)).copied().unwrap_or(u32::MAX)
    }

    pub(super) fn reset(&self) {
        for (register, initial) in self.registers.iter().zip(self.initial.iter()) {
            register.store(*initial, Relaxed);
        }
    }

    /// Sets the bits of `mask`, now and after a reset.
    pub(super) fn set(&mut self, offset: u16, value: u32, mask: u32) {
        let index = word(offset);
        if let (Some(register), Some(initial)) = (self.registers.get_mut(index), self.initial.get_mut(index)) {
            *initial = *initial & !mask | value & mask;
            *register.get_mut() = *initial;
        }
    }

    pub(super) fn set_byte(&mut self, offset: u16, value: u8) {
        let shift = u32::from(offset & 3).wrapping_mul(8);
        self.set(offset, u32::from(value) << shift, 0xff << shift);
    }

    pub(super) fn set_bytes(&mut self, offset: u16, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            self.set_byte(at, *byte);
        }
    }

    pub(super) fn set_writable(&mut self, offset: u16, bits: u32) {
        if let Some(writable) = self.writable.get_mut(word(offset)) {
            *writable |= bits;
        }
    }

    pub(super) fn set_not_writable(&mut self, offset: u16, bits: u32) {
        if let Some(writable) = self.writable.get_mut(word(offset)) {
            *writable &= !bits;
        }
    }

    pub(super) fn set_clear_by_one(&mut self, offset: u16, bits: u32) {
        if let Some(clear) = self.clear_by_one.get_mut(word(offset)) {
            *clear |= bits;
        }
    }

    /// Lets a reset clear bits.
    pub(super) fn set_lost(&mut self, offset: u16, bits: u32) {
        if let Some(initial) = self.initial.get_mut(word(offset)) {
            *initial &= !bits;
        }
    }
}

fn word(offset: u16) -> usize {
    usize::from(offset >> 2)
}

const WORDS: usize = 1024;
