//! ZynqMP's interrupt glue: all faults of its SMMU reach the interrupt controller through one latch, on one line.
//!
//! An example of what a platform puts between an SMMU and its interrupts. A fault sets a bit of the latch, which stays set
//! until software writes it, whatever the SMMU's own status says. So the latch is acknowledged first and the SMMU is asked
//! then: a fault in between sets the bit again.

use iommu_assign::smmu::{Mmio, Registers};

use crate::boot::mmu;

/// The latch of an SMMU.
#[derive(Debug)]
pub(crate) struct Latch(Mmio);

/// Where ZynqMP has it, for the SMMU at [`SMMU`].
const BASE: u64 = 0xfd5f_0000;
const SMMU: u64 = 0xfd80_0000;
const STATUS: u32 = 0x10;
const ENABLE: u32 = 0x18;

impl Latch {
    /// The latch of the SMMU at `base` on this chip, where there is one, with every source let through.
    pub(crate) fn of(base: u64, is_zynqmp: bool) -> Option<Self> {
        if base != SMMU || !is_zynqmp {
            return None;
        }
        let registers = mmu::map_device(BASE, 0x1000)?;
        // SAFETY: mapped as device memory for ever; this is the only user.
        let latch = Self(unsafe { Mmio::new(registers, 0x1000) }?);
        latch.acknowledge();
        latch.0.write32(ENABLE, u32::MAX);
        Some(latch)
    }

    /// Clears what is latched.
    pub(crate) fn acknowledge(&self) {
        let status = self.0.read32(STATUS);
        self.0.write32(STATUS, status);
    }
}
