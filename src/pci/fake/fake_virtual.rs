//! A function with virtual functions, built capability by capability.

use alloc::vec::Vec;
use core::sync::atomic::Ordering::Relaxed;

use super::fake_function::FakeFunction;
use super::fake_sriov::{CONTROL, NUMBER};
use crate::pci::ExtendedCapability;

impl FakeFunction {
    /// Adds SR-IOV with `count` of `total` virtual functions switched on, as an earlier owner may have left it.
    #[must_use]
    pub fn sr_iov_on(self, total: u16, count: u16, first_offset: u16, stride: u16) -> Self {
        let mut function = self.sr_iov(total, first_offset, stride);
        let at = function.last_extended_capability();
        function.registers.set(at.wrapping_add(CONTROL), 1, 0xffff);
        function.registers.set(at.wrapping_add(NUMBER), u32::from(count), 0xffff);
        function
    }

    /// Adds SR-IOV for `total` virtual functions, none of them switched on, that are in pages of 4 KiB to 64 KiB.
    #[must_use]
    pub fn sr_iov(self, total: u16, first_offset: u16, stride: u16) -> Self {
        let mut body = [0; 0x3c];
        let fields = [(0x08, total), (0x0a, total), (0x10, first_offset), (0x12, stride), (0x18, 0x13), (0x1c, 1)];
        for (at, value) in fields {
            if let Some(place) = body.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
                *place = value.to_le_bytes();
            }
        }
        let mut function = self.extended(ExtendedCapability::SR_IOV, 1, &body);
        let at = function.last_extended_capability();
        function.registers.set_writable(at.wrapping_add(CONTROL), 0xffff);
        function.registers.set_writable(at.wrapping_add(NUMBER), 0xffff);
        function.registers.set_writable(at.wrapping_add(0x20), 0x1f);
        function.sriov.capability = at;
        function.sriov.plain = (first_offset, stride);
        function.sriov.with_ari = (first_offset, stride);
        function
    }

    /// Puts a function into the place of each virtual function, with its number; they are there while they are on. Only
    /// after [`Self::sr_iov`].
    #[must_use]
    pub fn virtual_functions(mut self, device: u16, make: impl Fn(u16) -> Self) -> Self {
        let at = self.sriov.capability;
        let total = (self.peek(at.wrapping_add(0x0c)) >> 16) as u16;
        self.registers.set(at.wrapping_add(0x18), u32::from(device) << 16, 0xffff_0000);
        self.virtuals = (0..total).map(make).collect::<Vec<_>>().into_boxed_slice();
        self
    }

    /// A virtual function: its vendor and device ID read all ones, and its base addresses 0.
    #[must_use]
    pub fn virtual_function(class: u32) -> Self {
        let mut function = Self::blank(0xffff, 0xffff, class);
        function.registers.set_not_writable(0x04, !0x0004 & 0xffff);
        function
    }

    /// Gives its virtual functions a base address of 64 bits, or of 32 below 4 GiB, with `size` bytes for each. Only after
    /// [`Self::sr_iov`].
    #[must_use]
    pub fn virtual_bar(mut self, index: u8, address: u64, size: u64) -> Self {
        let at = self.sriov.capability.wrapping_add(0x24).wrapping_add(u16::from(index).wrapping_mul(4));
        let is_64_bit = address >> 32 != 0;
        let mask = !size.wrapping_sub(1);
        let halves = |value: u64| ((value & 0xffff_ffff) as u32, (value >> 32) as u32);
        self.registers.set(at, halves(address).0 | if is_64_bit { 0xc } else { 0 }, u32::MAX);
        self.registers.set_writable(at, halves(mask).0 & !0xf);
        if is_64_bit {
            self.registers.set(at.wrapping_add(4), halves(address).1, u32::MAX);
            self.registers.set_writable(at.wrapping_add(4), halves(mask).1);
        }
        self
    }

    /// First VF Offset and VF Stride while ARI Capable Hierarchy is set. Only after [`Self::sr_iov`].
    #[must_use]
    pub fn with_ari_layout(mut self, first_offset: u16, stride: u16) -> Self {
        self.sriov.with_ari = (first_offset, stride);
        self
    }

    /// Takes no write to SR-IOV Control. Only after [`Self::sr_iov`].
    #[must_use]
    pub fn stuck_sr_iov(mut self) -> Self {
        self.sriov.stuck = true;
        self
    }

    /// The function that is put where this virtual function is.
    #[must_use]
    pub fn virtual_function_at(&self, number: u16) -> Option<&Self> {
        self.virtuals.get(usize::from(number))
    }

    /// How many accesses to virtual functions came less than 100 ms after VF Enable, and to the capability less than a second
    /// after its end.
    #[must_use]
    pub fn early_accesses(&self) -> u32 {
        self.sriov.early.load(Relaxed)
    }
}
