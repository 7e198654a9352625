//! Several instances that hardware uses as one (quirk Q9).

use super::mmio::Registers;

/// `N` instances that are programmed alike: writes go to all of them, reads come from the first.
///
/// What differs between them, a sync's status and recorded faults, the driver asks of each.
#[derive(Debug)]
pub struct Lockstep<R, const N: usize>([R; N]);

impl<R: Registers, const N: usize> Lockstep<R, N> {
    /// The instances, the one that firmware lists first in front. Without any, reads give all ones.
    #[must_use]
    pub const fn new(members: [R; N]) -> Self {
        Self(members)
    }
}

impl<R: Registers, const N: usize> Registers for Lockstep<R, N> {
    fn read32(&self, offset: u32) -> u32 {
        self.read32_of(0, offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        for member in &self.0 {
            member.write32(offset, value);
        }
    }

    fn read64(&self, offset: u32) -> u64 {
        self.read64_of(0, offset)
    }

    fn write64(&self, offset: u32, value: u64) {
        for member in &self.0 {
            member.write64(offset, value);
        }
    }

    fn members(&self) -> usize {
        N
    }

    fn read32_of(&self, member: usize, offset: u32) -> u32 {
        self.0.get(member).map_or(u32::MAX, |registers| registers.read32(offset))
    }

    fn read64_of(&self, member: usize, offset: u32) -> u64 {
        self.0.get(member).map_or(u64::MAX, |registers| registers.read64(offset))
    }

    fn write32_of(&self, member: usize, offset: u32, value: u32) {
        if let Some(registers) = self.0.get(member) {
            registers.write32(offset, value);
        }
    }
}
