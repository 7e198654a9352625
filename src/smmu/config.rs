//! What the driver is told about an instance, because no register says it.

use crate::assign::{IommuKey, PhysicalAddress};

/// The architecture version. No register tells it (IDR7 is the product's revision): firmware's compatible does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Architecture {
    /// SMMUv1.
    V1,
    /// SMMUv2.
    V2,
}

/// The implementation that firmware's compatible names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Implementation {
    /// None: only an architecture is named.
    Generic,
    /// Arm MMU-400.
    Mmu400,
    /// Arm MMU-401.
    Mmu401,
    /// Arm MMU-500.
    Mmu500,
    /// Cavium ThunderX.
    Cavium,
    /// The MMU-500 of Marvell's AP806 and its successors.
    MarvellAp806,
    /// The MMU-500 of NVIDIA's Tegra, one to three in step.
    Nvidia,
    /// Qualcomm's own SMMUv2.
    Qualcomm,
    /// The MMU-500 of Qualcomm's chips, below Qualcomm's firmware.
    QualcommMmu500,
}

/// Zeroed memory that a retired context bank is pointed to: a walk from it finds nothing (contract I-7, S-6).
///
/// The integrator keeps `address..address + size` zero, readable by the walker, and never reuses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EmptyRoot {
    /// Where it is; aligned to `size`.
    pub address: PhysicalAddress,
    /// How many bytes of zeros there are: at least what the start level of any domain walks, 4 KiB to 1 MiB.
    pub size: u64,
}

/// One SMMU instance as firmware and the integrator describe it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SmmuConfig {
    /// The instance's name: the CPU address of its registers.
    pub key: IommuKey,
    /// Bytes of the register region, as firmware gives it.
    pub region_size: u64,
    /// The architecture version.
    pub architecture: Architecture,
    /// The implementation.
    pub implementation: Implementation,
    /// Whether firmware says that table walks are coherent (`dma-coherent`); it wins over IDR0.CTTW (quirk Q19).
    pub coherent: bool,
    /// How many distinct interrupt lines report context faults. With one for each bank a line means its bank.
    pub context_lines: u32,
    /// Where retired banks point to.
    pub empty_root: EmptyRoot,
    /// How often a status register is read before the hardware is taken for stuck.
    pub polls: u32,
}

impl SmmuConfig {
    /// Reads of a status register before a sync counts as timed out. A read of device memory takes on the order of
    /// 100 ns, a sync of a loaded unit up to milliseconds.
    pub const DEFAULT_POLLS: u32 = 1_000_000;

    /// An instance with the bound on polls that suits hardware, one context interrupt line, and walks that are not
    /// coherent.
    #[must_use]
    pub const fn new(key: IommuKey, region_size: u64, architecture: Architecture, empty_root: EmptyRoot) -> Self {
        Self {
            key,
            region_size,
            architecture,
            implementation: Implementation::Generic,
            coherent: false,
            context_lines: 1,
            empty_root,
            polls: Self::DEFAULT_POLLS,
        }
    }
}
