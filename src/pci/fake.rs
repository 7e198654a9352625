//! A configuration space made of memory: for host tests and prototypes (feature `fakes`).
//!
//! It behaves where isolation depends on it: read-only bits, bits that a 1 clears, a reset that takes a while, all
//! ones after a removal, transactions that stay pending. It can also be broken on purpose.
//!
//! ```
//! use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
//! use iommu_assign::pci::{ConfigSpace, PortType};
//!
//! let mut space = FakeConfigSpace::new();
//! let port = "00:01.0".parse()?;
//! space.insert(port, FakeFunction::bridge(0x1b36, 0x000c, 0, 1, 1).express(PortType::RootPort));
//! space.insert("01:00.0".parse()?, FakeFunction::endpoint(0x8086, 0x10d3, 0x02_0000).express(PortType::Endpoint));
//! assert_eq!(space.read(port, 0), 0x000c_1b36);
//! # Ok::<(), iommu_assign::pci::AddressError>(())
//! ```

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use super::{AcsControls, Capability, ConfigSpace, ExtendedCapability, PortType, Sbdf};

/// A configuration space of [`FakeFunction`]s. What is not there reads as all ones.
///
/// Accesses go through atomics, so that tests can share it between threads; several CPUs changing one function at a
/// time is as wrong as in hardware.
#[derive(Debug, Default)]
pub struct FakeConfigSpace {
    functions: BTreeMap<Sbdf, FakeFunction>,
    accesses: AtomicU32,
    /// After so many accesses everything is gone; 0: never.
    gone_after: AtomicU32,
}

impl FakeConfigSpace {
    /// A space without functions.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Plugs a function in, in the place of the one that was there.
    pub fn insert(&mut self, at: Sbdf, function: FakeFunction) {
        self.functions.insert(at, function);
    }

    /// Pulls a function out: from now on it reads as all ones. Legal at any time, from any thread.
    pub fn remove(&self, at: Sbdf) {
        if let Some(function) = self.functions.get(&at) {
            function.present.store(false, Relaxed);
        }
    }

    /// The function at this place, present or not.
    #[must_use]
    pub fn function(&self, at: Sbdf) -> Option<&FakeFunction> {
        self.functions.get(&at)
    }

    /// How many reads and writes there were.
    #[must_use]
    pub fn accesses(&self) -> u32 {
        self.accesses.load(Relaxed)
    }

    /// Lets all functions vanish after `accesses` more reads and writes.
    pub fn vanish_after(&self, accesses: u32) {
        self.gone_after.store(self.accesses().saturating_add(accesses).saturating_add(1), Relaxed);
    }

    fn reached(&self, at: Sbdf) -> Option<&FakeFunction> {
        let count = self.accesses.fetch_add(1, Relaxed).saturating_add(1);
        let limit = self.gone_after.load(Relaxed);
        let function = self.functions.get(&at).filter(|function| function.present.load(Relaxed))?;
        (limit == 0 || count < limit).then_some(function)
    }
}

impl ConfigSpace for FakeConfigSpace {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        self.reached(function).map_or(u32::MAX, |function| function.read(offset))
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        if let Some(function) = self.reached(function) {
            function.write(offset, value);
        }
    }
}

/// One function: 4 KiB of registers with what a write can change.
#[derive(Debug)]
pub struct FakeFunction {
    registers: Box<[AtomicU32; WORDS]>,
    /// What a reset leaves.
    initial: Box<[u32; WORDS]>,
    writable: Box<[u32; WORDS]>,
    clear_by_one: Box<[u32; WORDS]>,
    present: AtomicBool,
    /// Where the PCI Express capability is; 0: none.
    express_at: u16,
    next_free: u16,
    next_free_extended: u16,
    last_capability: u16,
    last_extended: u16,
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
            function.set_writable(offset, 0xfff0_0000);
        }
        function
    }

    /// A PCI-to-PCI bridge with its bus numbers.
    #[must_use]
    pub fn bridge(vendor: u16, device: u16, primary: u8, secondary: u8, subordinate: u8) -> Self {
        let mut function = Self::blank(vendor, device, 0x06_0400);
        function.set(0x0c, 1 << 16, 1 << 16);
        function.set(0x18, u32::from_le_bytes([primary, secondary, subordinate, 0]), 0x00ff_ffff);
        function.set_writable(0x18, 0x00ff_ffff);
        function
    }

    /// Says that the device has more functions.
    #[must_use]
    pub fn multi_function(mut self) -> Self {
        self.set(0x0c, 1 << 23, 1 << 23);
        self
    }

    /// Adds a capability to the standard list, with `body` after its header (the first two bytes of `body` share the
    /// header's 32 bits). Nothing happens when there is no room.
    #[must_use]
    pub fn capability(mut self, id: u8, body: &[u8]) -> Self {
        let Some((offset, next)) = room(self.next_free, body.len().saturating_add(2), 0x100) else { return self };
        self.next_free = next;
        self.set(0x04, 1 << 20, 1 << 20);
        self.set_byte(if self.last_capability == 0 { 0x34 } else { self.last_capability | 1 }, (offset & 0xff) as u8);
        self.last_capability = offset;
        self.set_byte(offset, id);
        self.set_bytes(offset.wrapping_add(2), body);
        self
    }

    /// Adds an extended capability with `body` after its 4-byte header. Nothing happens when there is no room.
    #[must_use]
    pub fn extended(mut self, id: u16, version: u8, body: &[u8]) -> Self {
        let length = body.len().saturating_add(4);
        let Some((offset, next)) = room(self.next_free_extended, length, 0x1000) else { return self };
        self.next_free_extended = next;
        if self.last_extended != 0 {
            self.set(self.last_extended, u32::from(offset) << 20, 0xfff0_0000);
        }
        self.last_extended = offset;
        self.set(offset, u32::from(id) | u32::from(version & 0xf) << 16, 0x000f_ffff);
        self.set_bytes(offset.wrapping_add(4), body);
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
        self.set(self.express_register(0x04), 1 << 28, 1 << 28);
        // All of Device Control, and the four error bits of Device Status that a 1 clears.
        self.set_writable(self.express_register(0x08), 0xffff);
        self.set_clear_by_one(self.express_register(0x08), 0x000f_0000);
        self.set_writable(self.express_register(0x28), 0xffff);
        self
    }

    /// Lets phantom functions use the upper `bits` (0 to 3) of the function number. Only after [`Self::express`].
    #[must_use]
    pub fn phantom_functions(mut self, bits: u8) -> Self {
        self.set(self.express_register(0x04), u32::from(bits & 3) << 3, 3 << 3);
        self
    }

    /// Takes function-level reset away. Only after [`Self::express`].
    #[must_use]
    pub fn without_reset(mut self) -> Self {
        self.set(self.express_register(0x04), 0, 1 << 28);
        self
    }

    /// Forwards to 256 functions below. Only after [`Self::express`].
    #[must_use]
    pub fn ari_forwarding(mut self) -> Self {
        self.set(self.express_register(0x28), 1 << 5, 1 << 5);
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

    /// Adds SR-IOV with `count` of `total` virtual functions switched on, as an earlier owner may have left it.
    #[must_use]
    pub fn sr_iov_on(self, total: u16, count: u16, first_offset: u16, stride: u16) -> Self {
        let mut function = self.sr_iov(total, first_offset, stride);
        let at = function.last_extended;
        function.set(at.wrapping_add(0x08), 1, 0xffff);
        function.set(at.wrapping_add(0x10), u32::from(count), 0xffff);
        function
    }

    /// Adds SR-IOV for `total` virtual functions, none of them switched on.
    #[must_use]
    pub fn sr_iov(self, total: u16, first_offset: u16, stride: u16) -> Self {
        let mut body = [0; 0x3c];
        let fields = [(0x08, total), (0x0a, total), (0x10, first_offset), (0x12, stride)];
        for (at, value) in fields {
            if let Some(place) = body.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
                *place = value.to_le_bytes();
            }
        }
        self.extended(ExtendedCapability::SR_IOV, 1, &body).last_extended_writable(8, 0xffff)
    }

    /// Overwrites 32 bits whatever they mean, as broken hardware would have them: a looping list, for example.
    #[must_use]
    pub fn broken(mut self, offset: u16, value: u32) -> Self {
        self.set(offset, value, u32::MAX);
        self
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
        self.registers.get(word(offset)).map_or(u32::MAX, |register| register.load(Relaxed))
    }

    fn blank(vendor: u16, device: u16, class: u32) -> Self {
        let mut function = Self {
            registers: Box::new([const { AtomicU32::new(0) }; WORDS]),
            initial: Box::new([0; WORDS]),
            writable: Box::new([0; WORDS]),
            clear_by_one: Box::new([0; WORDS]),
            present: AtomicBool::new(true),
            express_at: 0,
            next_free: 0x40,
            next_free_extended: 0x100,
            last_capability: 0,
            last_extended: 0,
            reset_reads: 0,
            retries: AtomicU32::new(0),
            pending: AtomicU32::new(0),
        };
        function.set(0x00, u32::from(vendor) | u32::from(device) << 16, u32::MAX);
        function.set(0x08, class << 8, u32::MAX);
        function.set_writable(0x04, 0x0547);
        function.set_clear_by_one(0x04, 0xf900_0000);
        function.set_writable(0x0c, 0xff);
        function.set_writable(0x3c, 0xff);
        function
    }

    fn read(&self, offset: u16) -> u32 {
        if offset < 4 && take_one(&self.retries) {
            return 0xffff_0001;
        }
        let pending = self.express_at != 0 && offset & 0xffc == self.express_register(0x08) && take_one(&self.pending);
        self.peek(offset) | if pending { 1 << 21 } else { 0 }
    }

    fn write(&self, offset: u16, value: u32) {
        let index = word(offset);
        let writable = self.writable.get(index).copied().unwrap_or(0);
        let clears = self.clear_by_one.get(index).copied().unwrap_or(0) & value;
        let Some(register) = self.registers.get(index) else { return };
        register.store((register.load(Relaxed) & !writable | value & writable) & !clears, Relaxed);
        let resets = self.express_at != 0 && offset & 0xffc == self.express_register(0x08) && value & 1 << 15 != 0;
        if resets && self.peek(self.express_register(0x04)) & 1 << 28 != 0 {
            for (register, initial) in self.registers.iter().zip(self.initial.iter()) {
                register.store(*initial, Relaxed);
            }
            self.retries.store(self.reset_reads, Relaxed);
        }
    }

    /// A register of the PCI Express capability.
    const fn express_register(&self, by: u16) -> u16 {
        self.express_at.wrapping_add(by)
    }

    fn last_extended_writable(mut self, by: u16, bits: u32) -> Self {
        self.set_writable(self.last_extended.wrapping_add(by), bits);
        self
    }

    /// Lets a reset clear bits.
    fn last_extended_lost(mut self, by: u16, bits: u32) -> Self {
        if let Some(initial) = self.initial.get_mut(word(self.last_extended.wrapping_add(by))) {
            *initial &= !bits;
        }
        self
    }

    /// Sets the bits of `mask`, now and after a reset.
    fn set(&mut self, offset: u16, value: u32, mask: u32) {
        let index = word(offset);
        if let (Some(register), Some(initial)) = (self.registers.get_mut(index), self.initial.get_mut(index)) {
            *initial = *initial & !mask | value & mask;
            *register.get_mut() = *initial;
        }
    }

    fn set_byte(&mut self, offset: u16, value: u8) {
        let shift = u32::from(offset & 3).wrapping_mul(8);
        self.set(offset, u32::from(value) << shift, 0xff << shift);
    }

    fn set_bytes(&mut self, offset: u16, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            self.set_byte(at, *byte);
        }
    }

    fn set_writable(&mut self, offset: u16, bits: u32) {
        if let Some(writable) = self.writable.get_mut(word(offset)) {
            *writable |= bits;
        }
    }

    fn set_clear_by_one(&mut self, offset: u16, bits: u32) {
        if let Some(clear) = self.clear_by_one.get_mut(word(offset)) {
            *clear |= bits;
        }
    }
}

fn word(offset: u16) -> usize {
    usize::from(offset >> 2)
}

/// Where `length` bytes fit from `from` up, below `end`, and what follows them.
fn room(from: u16, length: usize, end: u16) -> Option<(u16, u16)> {
    let next = from.checked_add(u16::try_from(length).ok()?)?.checked_next_multiple_of(4)?;
    (next <= end).then_some((from, next))
}

fn take_one(count: &AtomicU32) -> bool {
    count.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)).is_ok()
}

const WORDS: usize = 1024;
