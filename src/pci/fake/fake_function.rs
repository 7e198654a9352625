//! A function, built capability by capability.

use alloc::boxed::Box;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use super::fake_registers::FakeRegisters;
use super::fake_resets::{self, BRIDGE_CONTROL, BUS_RESET, FakeResets};
use super::fake_sriov::FakeSriov;
use crate::pci::{AcsControls, Capability, ExtendedCapability, PortType};

/// One function: 4 KiB of registers with what a write can change.
#[derive(Debug)]
pub struct FakeFunction {
    pub(super) registers: FakeRegisters,
    pub(super) sriov: FakeSriov,
    /// What stands in the places of its virtual functions.
    pub(super) virtuals: Box<[Self]>,
    present: AtomicBool,
    /// Where the PCI Express capability is; 0: none.
    express_at: u16,
    next_free: u16,
    next_free_extended: u16,
    last_capability: u16,
    last_extended: u16,
    resets: FakeResets,
    reset_reads: u32,
    /// How many more reads of the vendor ID are answered with "try again".
    retries: AtomicU32,
    /// How many more reads of Device Status show transactions pending.
    pending: AtomicU32,
}

impl FakeFunction {
    /// An endpoint with memory decoding, bus mastering and base addresses of 1 MiB.
    #[must_use]
    pub fn endpoint(vendor: u16, device: u16, class: u32) -> Self {
        let mut function = Self::blank(vendor, device, class);
        for offset in (0x10..=0x24).step_by(4) {
            function.registers.set_writable(offset, 0xfff0_0000);
        }
        function
    }

    /// A PCI-to-PCI bridge with its bus numbers.
    #[must_use]
    pub fn bridge(vendor: u16, device: u16, primary: u8, secondary: u8, subordinate: u8) -> Self {
        let mut function = Self::blank(vendor, device, 0x06_0400);
        function.registers.set(0x0c, 1 << 16, 1 << 16);
        function.registers.set(0x18, u32::from_le_bytes([primary, secondary, subordinate, 0]), 0x00ff_ffff);
        function.registers.set_writable(0x18, 0x00ff_ffff);
        function.registers.set_writable(BRIDGE_CONTROL, BUS_RESET);
        function
    }

    /// Says that the device has more functions.
    #[must_use]
    pub fn multi_function(mut self) -> Self {
        self.registers.set(0x0c, 1 << 23, 1 << 23);
        self
    }

    /// Sets the subsystem vendor ID and the subsystem ID of an endpoint.
    #[must_use]
    pub fn subsystem(mut self, vendor: u16, id: u16) -> Self {
        self.registers.set(0x2c, u32::from(vendor) | u32::from(id) << 16, u32::MAX);
        self
    }

    /// Adds a capability to the standard list, with `body` after its header (the first two bytes of `body` share the
    /// header's 32 bits). Nothing happens when there is no room.
    #[must_use]
    pub fn capability(mut self, id: u8, body: &[u8]) -> Self {
        let Some((offset, next)) = room(self.next_free, body.len().saturating_add(2), 0x100) else { return self };
        self.next_free = next;
        self.registers.set(0x04, 1 << 20, 1 << 20);
        self.registers
            .set_byte(if self.last_capability == 0 { 0x34 } else { self.last_capability | 1 }, (offset & 0xff) as u8);
        self.last_capability = offset;
        self.registers.set_byte(offset, id);
        self.registers.set_bytes(offset.wrapping_add(2), body);
        self
    }

    /// Adds an extended capability with `body` after its 4-byte header. Nothing happens when there is no room.
    #[must_use]
    pub fn extended(mut self, id: u16, version: u8, body: &[u8]) -> Self {
        let length = body.len().saturating_add(4);
        let Some((offset, next)) = room(self.next_free_extended, length, 0x1000) else { return self };
        self.next_free_extended = next;
        if self.last_extended != 0 {
            self.registers.set(self.last_extended, u32::from(offset) << 20, 0xfff0_0000);
        }
        self.last_extended = offset;
        self.registers.set(offset, u32::from(id) | u32::from(version & 0xf) << 16, 0x000f_ffff);
        self.registers.set_bytes(offset.wrapping_add(4), body);
        self
    }

    /// Adds a PCI Express capability of version 2 with function-level reset.
    #[must_use]
    pub fn express(mut self, port_type: PortType) -> Self {
        let number = match port_type {
            PortType::Endpoint => 0x0,
            PortType::LegacyEndpoint => 0x1,
            PortType::RootPort => 0x4,
            PortType::SwitchUpstream => 0x5,
            PortType::SwitchDownstream => 0x6,
            PortType::ExpressToPci => 0x7,
            PortType::PciToExpress => 0x8,
            PortType::IntegratedEndpoint => 0x9,
            PortType::EventCollector => 0xa,
            PortType::Unknown(number) => number & 0xf,
        };
        let mut body = [0; 0x3a];
        let [low, ..] = &mut body;
        *low = 2 | number << 4;
        self = self.capability(Capability::EXPRESS, &body);
        self.express_at = self.last_capability;
        self.registers.set(self.express_register(0x04), 1 << 28, 1 << 28);
        // All of Device Control, and the four error bits of Device Status that a 1 clears.
        self.registers.set_writable(self.express_register(0x08), 0xffff);
        self.registers.set_clear_by_one(self.express_register(0x08), 0x000f_0000);
        self.registers.set_writable(self.express_register(0x28), 0xffff);
        self
    }

    /// Lets phantom functions use the upper `bits` (0 to 3) of the function number. Only after [`Self::express`].
    #[must_use]
    pub fn phantom_functions(mut self, bits: u8) -> Self {
        self.registers.set(self.express_register(0x04), u32::from(bits & 3) << 3, 3 << 3);
        self
    }

    /// Takes function-level reset away. Only after [`Self::express`].
    #[must_use]
    pub fn without_reset(mut self) -> Self {
        self.registers.set(self.express_register(0x04), 0, 1 << 28);
        self
    }

    /// Forwards to 256 functions below. Only after [`Self::express`].
    #[must_use]
    pub fn ari_forwarding(mut self) -> Self {
        self.registers.set(self.express_register(0x28), 1 << 5, 1 << 5);
        self
    }

    /// Adds access control services, supported and switched on. A reset switches them off.
    #[must_use]
    pub fn acs(self, supported: AcsControls, enabled: AcsControls) -> Self {
        let [a, b] = supported.bits().to_le_bytes();
        let [c, d] = enabled.bits().to_le_bytes();
        self.extended(ExtendedCapability::ACS, 1, &[a, b, c, d])
            .last_extended_writable(4, 0xffff_0000)
            .last_extended_lost(4, 0xffff_0000)
    }

    /// Adds access control services that are on until a reset and cannot be switched.
    #[must_use]
    pub fn stuck_acs(self, supported: AcsControls) -> Self {
        let [a, b] = supported.bits().to_le_bytes();
        self.extended(ExtendedCapability::ACS, 1, &[a, b, a, b]).last_extended_lost(4, 0xffff_0000)
    }

    /// Adds one base address of a size that can be set, and is set to `size` (as log2 of MiB) until a reset.
    #[must_use]
    pub fn resizable_bar(self, size: u8) -> Self {
        self.extended(ExtendedCapability::RESIZABLE_BAR, 1, &[0xf0, 0xff, 0xff, 0xff, 1 << 5, size & 0x3f, 0, 0])
            .last_extended_writable(8, 0x3f00)
            .last_extended_lost(8, 0x3f00)
    }

    /// Adds the ARI capability.
    #[must_use]
    pub fn ari(self) -> Self {
        self.extended(ExtendedCapability::ARI, 1, &[0; 4])
    }

    /// Adds ATS, switched on.
    #[must_use]
    pub fn ats(self) -> Self {
        self.extended(ExtendedCapability::ATS, 1, &[0, 0, 0, 0x80]).last_extended_writable(4, 0x801f_0000)
    }

    /// Adds ATS that cannot be switched off.
    #[must_use]
    pub fn stuck_ats(self) -> Self {
        self.extended(ExtendedCapability::ATS, 1, &[0, 0, 0, 0x80])
    }

    /// Adds page requests, switched on.
    #[must_use]
    pub fn pri(self) -> Self {
        self.extended(ExtendedCapability::PRI, 1, &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]).last_extended_writable(4, 0x3)
    }

    /// Adds PASIDs, switched on.
    #[must_use]
    pub fn pasid(self) -> Self {
        self.extended(ExtendedCapability::PASID, 1, &[0, 0, 1, 0]).last_extended_writable(4, 0x7_0000)
    }

    /// Overwrites 32 bits whatever they mean, as broken hardware would have them: a looping list, for example.
    #[must_use]
    pub fn broken(mut self, offset: u16, value: u32) -> Self {
        self.registers.set(offset, value, u32::MAX);
        self
    }

    /// Adds power management. `resets`: going from D3hot to D0 resets the function.
    #[must_use]
    pub fn power_management(self, resets: bool) -> Self {
        let mut function = self.capability(Capability::POWER, &[3, 0, if resets { 0 } else { 1 << 3 }, 0, 0, 0]);
        function.resets.power = function.last_capability;
        function.registers.set_writable(function.last_capability.wrapping_add(4), 0x0103);
        function.registers.set_clear_by_one(function.last_capability.wrapping_add(4), 0x8000);
        function
    }

    /// Adds advanced features, by which the function can be reset and tells what is pending.
    #[must_use]
    pub fn advanced_features(self) -> Self {
        let mut function = self.capability(Capability::ADVANCED_FEATURES, &[6, 3, 0, 0]);
        function.resets.advanced = function.last_capability;
        function
    }

    /// Answers the first `reads` of the vendor ID after a reset with "try again".
    #[must_use]
    pub fn slow_reset(mut self, reads: u32) -> Self {
        self.reset_reads = reads;
        self
    }

    /// Shows transactions pending in the next `reads` of Device Status.
    pub fn set_pending(&self, reads: u32) {
        self.pending.store(reads, Relaxed);
    }

    /// Where the capability is that was added last.
    #[must_use]
    pub const fn last_capability(&self) -> u16 {
        self.last_capability
    }

    /// Where the extended capability is that was added last.
    #[must_use]
    pub const fn last_extended_capability(&self) -> u16 {
        self.last_extended
    }

    /// Reads 32 bits as they are, without side effects.
    #[must_use]
    pub fn peek(&self, offset: u16) -> u32 {
        self.registers.peek(offset)
    }

    pub(super) fn blank(vendor: u16, device: u16, class: u32) -> Self {
        let mut function = Self {
            registers: FakeRegisters::new(),
            sriov: FakeSriov::default(),
            virtuals: Box::default(),
            present: AtomicBool::new(true),
            express_at: 0,
            next_free: 0x40,
            next_free_extended: 0x100,
            last_capability: 0,
            last_extended: 0,
            resets: FakeResets::default(),
            reset_reads: 0,
            retries: AtomicU32::new(0),
            pending: AtomicU32::new(0),
        };
        function.registers.set(0x00, u32::from(vendor) | u32::from(device) << 16, u32::MAX);
        function.registers.set(0x08, class << 8, u32::MAX);
        function.registers.set_writable(0x04, 0x0547);
        function.registers.set_clear_by_one(0x04, 0xf900_0000);
        function.registers.set_writable(0x0c, 0xff);
        function.registers.set_writable(0x3c, 0xff);
        function
    }

    pub(super) fn pull_out(&self) {
        self.present.store(false, Relaxed);
    }

    pub(super) fn is_present(&self) -> bool {
        self.present.load(Relaxed)
    }

    /// Plugs it in again, as it is after a reset.
    pub(super) fn plug_in(&self) {
        self.reset();
        self.present.store(true, Relaxed);
    }

    pub(super) fn read(&self, offset: u16, now: u64) -> u32 {
        self.sriov.asked(&self.registers, offset, now);
        if offset < 4 && take_one(&self.retries) {
            return 0xffff_0001;
        }
        let pending = self.express_at != 0 && offset & 0xffc == self.express_register(0x08) && take_one(&self.pending);
        let advanced = self.resets.has_status_at(offset) && take_one(&self.pending);
        self.peek(offset) | if pending { 1 << 21 } else { 0 } | if advanced { 1 << 8 } else { 0 }
    }

    pub(super) fn write(&self, offset: u16, value: u32, now: u64) {
        let control = self.sriov.asked(&self.registers, offset, now);
        let before = self.peek(offset);
        self.registers.write(offset, value);
        if self.resets.are_begun(offset, before, value) {
            self.reset();
        }
        let resets = self.express_at != 0 && offset & 0xffc == self.express_register(0x08) && value & 1 << 15 != 0;
        if resets && self.peek(self.express_register(0x04)) & 1 << 28 != 0 {
            self.reset();
        }
        if self.sriov.wrote(&self.registers, offset, control, now) {
            self.virtuals.iter().for_each(Self::reset);
        }
    }

    pub(super) fn has_virtual_functions(&self) -> bool {
        !self.virtuals.is_empty()
    }

    /// The virtual function with requester ID `wanted`, if it answers; `own` is that of this function.
    pub(super) fn virtual_with(&self, own: u16, wanted: u16, now: u64) -> Option<&Self> {
        let number = self.sriov.number_of(&self.registers, own, wanted, now).filter(|_| self.is_present())?;
        self.virtuals.get(usize::from(number)).filter(|function| function.is_present())
    }

    /// Leaves every register as after a reset, and answers with "try again" for as long as was asked.
    pub(super) fn reset(&self) {
        self.registers.reset();
        self.retries.store(self.reset_reads, Relaxed);
    }

    /// Whether it is a bridge to `bus` that holds it in reset.
    pub(super) fn holds_in_reset(&self, bus: u8) -> bool {
        fake_resets::is_held(&self.registers, bus)
    }

    /// A register of the PCI Express capability.
    const fn express_register(&self, by: u16) -> u16 {
        self.express_at.wrapping_add(by)
    }

    fn last_extended_writable(mut self, by: u16, bits: u32) -> Self {
        self.registers.set_writable(self.last_extended.wrapping_add(by), bits);
        self
    }

    /// Lets a reset clear bits.
    fn last_extended_lost(mut self, by: u16, bits: u32) -> Self {
        self.registers.set_lost(self.last_extended.wrapping_add(by), bits);
        self
    }
}

/// Where `length` bytes fit from `from` up, below `end`, and what follows them.
fn room(from: u16, length: usize, end: u16) -> Option<(u16, u16)> {
    let next = from.checked_add(u16::try_from(length).ok()?)?.checked_next_multiple_of(4)?;
    (next <= end).then_some((from, next))
}

fn take_one(count: &AtomicU32) -> bool {
    count.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
}
