//! Configuration space through ECAM: 4 KiB for each function, in the order of bus, device and function.

use iommu_assign::dt::Region;
use iommu_assign::pci::{Bus, ConfigSpace, Sbdf};
use iommu_assign::smmu::{Mmio, Registers};

use crate::boot::mmu;

/// The configuration space of one host bridge.
#[derive(Debug)]
pub(crate) struct Ecam {
    registers: Mmio,
    first: Bus,
}

impl Ecam {
    /// Maps the region that the tree names; it begins with the bus `first`.
    pub(crate) fn map(region: Region, first: Bus) -> Option<Self> {
        let base = mmu::map_device(region.base(), region.size())?;
        // SAFETY: mapped as device memory for ever; accesses outside it are answered by `Mmio` with all ones.
        let registers = unsafe { Mmio::new(base, usize::try_from(region.size()).ok()?) }?;
        Some(Self { registers, first })
    }

    /// Where the 32 bits are; past the end for a bus in front of the first.
    fn at(&self, function: Sbdf, offset: u16) -> u32 {
        let bus = function.bus.0.checked_sub(self.first.0).map_or(u32::MAX >> 20, u32::from);
        bus << 20 | u32::from(function.device_function.0) << 12 | u32::from(offset & 0xffc)
    }
}

impl ConfigSpace for Ecam {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        self.registers.read32(self.at(function, offset))
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        self.registers.write32(self.at(function, offset), value);
    }
}
