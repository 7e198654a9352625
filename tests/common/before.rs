//! Registers before each of whose accesses something happens.

use std::fmt;

use iommu_assign::smmu::Registers;
use machine::ModelRegisters;

/// Registers of the model, and what happens before each access to them.
pub(crate) struct Before<F> {
    registers: ModelRegisters,
    happens: F,
}

impl<F: Fn() + Send + Sync> Before<F> {
    pub(crate) const fn new(registers: ModelRegisters, happens: F) -> Self {
        Self { registers, happens }
    }

    fn reached(&self) -> &ModelRegisters {
        (self.happens)();
        &self.registers
    }
}

impl<F> fmt::Debug for Before<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Before")
    }
}

impl<F: Fn() + Send + Sync> Registers for Before<F> {
    fn read32(&self, offset: u32) -> u32 {
        self.reached().read32(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.reached().write32(offset, value);
    }

    fn read64(&self, offset: u32) -> u64 {
        self.reached().read64(offset)
    }

    fn write64(&self, offset: u32, value: u64) {
        self.reached().write64(offset, value);
    }
}
