//! What the driver is told about an instance, because no register says it.

use super::context_lines::ContextLines;
use crate::assign::{IommuKey, Patience, PhysicalAddress};
use crate::sync::{Bound, Micros};

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

/// A chip whose firmware keeps context banks to itself (quirk Q15), as its SMMU's compatible names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Chip {
    /// None of those below.
    Unnamed,
    /// Qualcomm MSM8998.
    Msm8998,
    /// Qualcomm SDM630 and SDM660.
    Sdm630,
}

impl Chip {
    /// The chip that one of an SMMU's compatibles names.
    #[must_use]
    pub fn of(compatibles: &[&str]) -> Self {
        let names = |compatible: &&str| match *compatible {
            "qcom,msm8998-smmu-v2" => Some(Self::Msm8998),
            "qcom,sdm630-smmu-v2" | "qcom,sdm660-smmu-v2" => Some(Self::Sdm630),
            _ => None,
        };
        compatibles.iter().find_map(names).unwrap_or(Self::Unnamed)
    }
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
    /// Bytes of the register region, as firmware gives it; of several, of the shortest.
    pub region_size: u64,
    /// How many instances, each with a register region, firmware lists here: all of them must be driven, alike (quirk Q9).
    pub instances: usize,
    /// The architecture version.
    pub architecture: Architecture,
    /// The implementation.
    pub implementation: Implementation,
    /// Whether firmware says that table walks are coherent (`dma-coherent`); it wins over IDR0.CTTW (quirk Q19).
    pub coherent: bool,
    /// The interrupt lines that report context faults, and which bank raises which.
    pub context_lines: ContextLines,
    /// Where retired banks point to.
    pub empty_root: EmptyRoot,
    /// How long a status register is read before the hardware is taken for stuck, where the platform has a clock
    /// ([`Platform::now`](crate::sync::Platform::now); contract C-14).
    pub timeout: Micros,
    /// The same for a flush in atomic context and for a hypervisor that is crashing.
    pub atomic_timeout: Micros,
    /// How often a status register is read before the hardware is taken for stuck, where there is no clock.
    pub polls: u32,
    /// The same for a flush in atomic context and for a hypervisor that is crashing.
    pub atomic_polls: u32,
    /// The chip, where its compatible matters.
    pub chip: Chip,
    /// Firmware says `calxeda,smmu-secure-config-access` (quirk Q1).
    pub secure_config_access: bool,
    /// It is a Qualcomm GPU's (`qcom,adreno-smmu`; quirk Q16).
    pub adreno: bool,
    /// Where context bank 0 is, in bytes from the base, on boards where IDR1 does not tell (quirk Q20).
    pub bank_base: Option<u32>,
    /// Every write that isolates is read back (contract A-7). Costs a read for each.
    pub read_back: bool,
    /// When a stream faults too often.
    pub fault_limits: FaultLimits,
}

/// How many faults of one stream are reported, and when it is taken for a storm, between two calls of the worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultLimits {
    /// Records of one stream that are reported; further ones are counted.
    pub records: u32,
    /// Records of one stream, or of one context, after which the handler asks for its line to be masked. Not below
    /// `records`.
    pub storm: u32,
    /// Records on one interrupt line, of whatever streams, after which the handler asks for it to be masked and tells
    /// no more. Not below `storm`.
    pub line: u32,
}

impl SmmuConfig {
    /// One instance with the bounds in time and polls that suit hardware, one context interrupt line, and walks that are
    /// not coherent.
    ///
    /// A sync of a loaded unit takes up to milliseconds; other drivers wait a second for it, as is done here, and 2 ms
    /// in atomic context. A read of device memory takes on the order of 100 ns. Ten faults of a stream are enough to
    /// see what goes wrong; a hundred are no storm for a device that is being stopped.
    #[must_use]
    pub const fn new(key: IommuKey, region_size: u64, architecture: Architecture, empty_root: EmptyRoot) -> Self {
        Self {
            key,
            region_size,
            instances: 1,
            architecture,
            implementation: Implementation::Generic,
            coherent: false,
            context_lines: ContextLines::ONE,
            empty_root,
            timeout: Micros::from_millis(1000),
            atomic_timeout: Micros::from_millis(2),
            polls: 1_000_000,
            atomic_polls: 20_000,
            chip: Chip::Unnamed,
            secure_config_access: false,
            adreno: false,
            bank_base: None,
            read_back: false,
            fault_limits: FaultLimits { records: 10, storm: 100, line: 1000 },
        }
    }

    /// How long the hardware is waited for.
    pub(in crate::smmu) const fn bound(&self, patience: Patience) -> Bound {
        match patience {
            Patience::Waiting => Bound { polls: self.polls, time: self.timeout },
            Patience::Atomic => Bound { polls: self.atomic_polls, time: self.atomic_timeout },
        }
    }

    /// How long another call is waited for that may wait for the hardware itself: a look costs a fraction of a poll.
    pub(in crate::smmu) const fn looks(&self) -> Bound {
        Bound { polls: self.polls.saturating_mul(16), time: self.timeout }
    }
}
