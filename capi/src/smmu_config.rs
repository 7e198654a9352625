//! An SMMU's description, from C and back.

use iommu_assign::assign::{IommuKey, PhysicalAddress};
use iommu_assign::smmu::{Architecture, Chip, ContextLines, EmptyRoot, FaultLimits, Implementation, SmmuConfig};
use iommu_assign::sync::Micros;

use crate::error::Failure;
use crate::status::iommu_status;

/// SMMUv1: `iommu_smmu_config.architecture`.
pub const IOMMU_SMMU_V1: u32 = 1;
/// SMMUv2.
pub const IOMMU_SMMU_V2: u32 = 2;

/// No implementation that is known by name: `iommu_smmu_config.implementation`.
pub const IOMMU_SMMU_GENERIC: u32 = 0;
/// Arm MMU-400.
pub const IOMMU_SMMU_MMU400: u32 = 1;
/// Arm MMU-401.
pub const IOMMU_SMMU_MMU401: u32 = 2;
/// Arm MMU-500.
pub const IOMMU_SMMU_MMU500: u32 = 3;
/// Cavium ThunderX.
pub const IOMMU_SMMU_CAVIUM: u32 = 4;
/// Marvell AP806 and its successors.
pub const IOMMU_SMMU_MARVELL_AP806: u32 = 5;
/// NVIDIA Tegra, one to three instances in step.
pub const IOMMU_SMMU_NVIDIA: u32 = 6;
/// Qualcomm's own SMMUv2.
pub const IOMMU_SMMU_QUALCOMM: u32 = 7;
/// Qualcomm's MMU-500, below its firmware.
pub const IOMMU_SMMU_QUALCOMM_MMU500: u32 = 8;

/// No chip whose firmware keeps context banks to itself: `iommu_smmu_config.chip`.
pub const IOMMU_CHIP_UNNAMED: u32 = 0;
/// Qualcomm MSM8998.
pub const IOMMU_CHIP_MSM8998: u32 = 1;
/// Qualcomm SDM630 and SDM660.
pub const IOMMU_CHIP_SDM630: u32 = 2;

/// An SMMU as firmware and the integrator describe it. `iommu_board_smmu` fills it from a device tree. Members that are 0
/// stand for what suits hardware, where a comment says so.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct iommu_smmu_config {
    /// What names the SMMU everywhere: the CPU physical address of its registers.
    pub base: u64,
    /// Bytes of the register region, as firmware gives it; of several, of the shortest.
    pub region_size: u64,
    /// CPU physical address of zeroed memory that retired context banks are pointed to, aligned to `empty_root_size`. It
    /// stays zero, readable by the walker, for good.
    pub empty_root: u64,
    /// Bytes of it: what the start level of any domain walks, 4 KiB to 1 MiB.
    pub empty_root_size: u64,
    /// `IOMMU_SMMU_V1` or `IOMMU_SMMU_V2`.
    pub architecture: u32,
    /// `IOMMU_SMMU_GENERIC` and so on.
    pub implementation: u32,
    /// `IOMMU_CHIP_UNNAMED` and so on.
    pub chip: u32,
    /// How many register regions firmware lists here, each of an instance that is programmed alike; 0 for one. All of
    /// them must be in `iommu_setup.registers`.
    pub instances: u32,
    /// How many entries of `context_lines` count; 0 where one line is for all context interrupts.
    pub context_interrupts: u32,
    /// Not 0: there are so many lines, and firmware does not say which context interrupt raises which.
    pub unordered_lines: u32,
    /// The line that each context interrupt raises, counted from 0 in firmware's order, one that is listed several times
    /// once.
    pub context_lines: [u8; 128],
    /// Where context bank 0 is, in bytes from the base, on boards where IDR1 does not tell; 0 elsewhere.
    pub bank_base: u32,
    /// Not 0: firmware says that walks are coherent (`dma-coherent`).
    pub coherent: u32,
    /// Not 0: `calxeda,smmu-secure-config-access`.
    pub secure_config_access: u32,
    /// Not 0: a Qualcomm GPU's (`qcom,adreno-smmu`).
    pub adreno: u32,
    /// Not 0: every write that isolates is read back.
    pub read_back: u32,
    /// How long the hardware is waited for, in microseconds, where there is a clock; 0 for a second.
    pub timeout: u64,
    /// The same in atomic context and for a crashing hypervisor; 0 for 2 ms.
    pub atomic_timeout: u64,
    /// How often a status is read where there is no clock; 0 for a million.
    pub polls: u32,
    /// The same in atomic context and for a crashing hypervisor; 0 for 20,000.
    pub atomic_polls: u32,
    /// Records of one stream that are reported between two calls of the worker; 0 for 10.
    pub fault_records: u32,
    /// Records of one stream or context after which it storms; 0 for 100.
    pub fault_storm: u32,
    /// Records on one line after which it is to be masked; 0 for 1,000.
    pub fault_line: u32,
}

const IMPLEMENTATIONS: [Implementation; 9] = [
    Implementation::Generic,
    Implementation::Mmu400,
    Implementation::Mmu401,
    Implementation::Mmu500,
    Implementation::Cavium,
    Implementation::MarvellAp806,
    Implementation::Nvidia,
    Implementation::Qualcomm,
    Implementation::QualcommMmu500,
];
const CHIPS: [Chip; 3] = [Chip::Unnamed, Chip::Msm8998, Chip::Sdm630];

/// The place of a value in a list, as C's constants number it.
fn number<T: PartialEq>(list: &[T], value: &T) -> Option<u32> {
    list.iter().position(|known| known == value).and_then(|index| u32::try_from(index).ok())
}

fn pick<T: Copy>(list: &[T], number: u32, what: &'static str) -> Result<T, Failure> {
    let known = usize::try_from(number).ok().and_then(|index| list.get(index));
    known.copied().ok_or(Failure::Argument(what))
}

impl iommu_smmu_config {
    pub(crate) fn read(&self) -> Result<SmmuConfig, Failure> {
        let architecture = match self.architecture {
            IOMMU_SMMU_V1 => Architecture::V1,
            IOMMU_SMMU_V2 => Architecture::V2,
            _ => return Err(Failure::Argument("an SMMU of an unknown architecture")),
        };
        let empty = EmptyRoot { address: PhysicalAddress::new(self.empty_root), size: self.empty_root_size };
        let mut config = SmmuConfig::new(IommuKey::new(self.base), self.region_size, architecture, empty);
        config.implementation = pick(&IMPLEMENTATIONS, self.implementation, "an SMMU of an unknown implementation")?;
        config.chip = pick(&CHIPS, self.chip, "an SMMU of an unknown chip")?;
        config.coherent = self.coherent != 0;
        config.secure_config_access = self.secure_config_access != 0;
        config.adreno = self.adreno != 0;
        config.read_back = self.read_back != 0;
        config.bank_base = Some(self.bank_base).filter(|base| *base != 0);
        let time = |given: u64, usual: Micros| if given == 0 { usual } else { Micros::new(given) };
        let count = |given: u32, usual: u32| if given == 0 { usual } else { given };
        config.instances = usize::try_from(count(self.instances, 1)).unwrap_or(usize::MAX);
        config.context_lines = self.lines()?;
        config.timeout = time(self.timeout, config.timeout);
        config.atomic_timeout = time(self.atomic_timeout, config.atomic_timeout);
        config.polls = count(self.polls, config.polls);
        config.atomic_polls = count(self.atomic_polls, config.atomic_polls);
        let FaultLimits { records, storm, line } = config.fault_limits;
        config.fault_limits = FaultLimits {
            records: count(self.fault_records, records),
            storm: count(self.fault_storm, storm),
            line: count(self.fault_line, line),
        };
        Ok(config)
    }

    fn lines(&self) -> Result<ContextLines, Failure> {
        let count = usize::try_from(self.context_interrupts).unwrap_or(usize::MAX);
        let listed = self.context_lines.get(..count).ok_or(Failure::Argument("more than 128 context interrupts"))?;
        match (u8::try_from(self.unordered_lines), listed) {
            (Err(_), _) => Err(Failure::Argument("more interrupt lines than there can be")),
            (Ok(0), []) => Ok(ContextLines::ONE),
            (Ok(0), listed) => ContextLines::listed(listed).map_err(|_| Failure::Of(iommu_status::OutOfMemory)),
            (Ok(lines), _) => Ok(ContextLines::each(lines).without_order()),
        }
    }

    /// What the library says, with the members that stand for a usual value left at 0. An implementation that has no
    /// constant here yet is driven as a generic one.
    pub(crate) fn of(config: &SmmuConfig) -> Self {
        let lines = &config.context_lines;
        let mut context_lines = [0; 128];
        let mut context_interrupts = 0_u32;
        let said = (0..128).map_while(|interrupt| lines.line(interrupt)).take(if lines.count() > 1 { 128 } else { 0 });
        for (place, line) in context_lines.iter_mut().zip(said) {
            *place = line;
            context_interrupts = context_interrupts.saturating_add(1);
        }
        let is_unsaid = lines.count() > 1 && context_interrupts == 0;
        Self {
            base: config.key.base(),
            region_size: config.region_size,
            empty_root: config.empty_root.address.value(),
            empty_root_size: config.empty_root.size,
            architecture: if config.architecture == Architecture::V1 { IOMMU_SMMU_V1 } else { IOMMU_SMMU_V2 },
            implementation: number(&IMPLEMENTATIONS, &config.implementation).unwrap_or(IOMMU_SMMU_GENERIC),
            chip: number(&CHIPS, &config.chip).unwrap_or(IOMMU_CHIP_UNNAMED),
            instances: u32::try_from(config.instances).unwrap_or(u32::MAX),
            context_interrupts,
            unordered_lines: if is_unsaid { lines.count().into() } else { 0 },
            context_lines,
            bank_base: config.bank_base.unwrap_or_default(),
            coherent: config.coherent.into(),
            secure_config_access: config.secure_config_access.into(),
            adreno: config.adreno.into(),
            read_back: config.read_back.into(),
            timeout: 0,
            atomic_timeout: 0,
            polls: 0,
            atomic_polls: 0,
            fault_records: 0,
            fault_storm: 0,
            fault_line: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a device tree says comes back from C as it went there.
    #[test]
    fn a_configuration_goes_to_c_and_back() -> Result<(), Failure> {
        let empty = EmptyRoot { address: PhysicalAddress::new(0x4000_0000), size: 0x1000 };
        let mut config = SmmuConfig::new(IommuKey::new(0x1200_0000), 0x4_0000, Architecture::V1, empty);
        for implementation in IMPLEMENTATIONS {
            for chip in CHIPS {
                (config.implementation, config.chip, config.instances) = (implementation, chip, 2);
                (config.coherent, config.adreno, config.bank_base) = (true, true, Some(0x8000));
                assert_eq!(iommu_smmu_config::of(&config).read()?, config);
            }
        }
        let listed = |lines: &[u32]| ContextLines::listed(lines).map_err(|_| Failure::Of(iommu_status::OutOfMemory));
        for lines in [
            ContextLines::ONE,
            ContextLines::each(7),
            ContextLines::each(128),
            ContextLines::each(3).without_order(),
            listed(&[70, 71, 71, 72])?,
            listed(&[7; 9])?,
        ] {
            config.context_lines = lines;
            assert_eq!(iommu_smmu_config::of(&config).read()?, config);
        }
        let mut given = iommu_smmu_config::of(&config);
        given.context_interrupts = 129;
        assert!(given.read().is_err(), "more context interrupts than the list has");
        given.context_interrupts = 0;
        given.implementation = 9;
        assert!(given.read().is_err(), "a number that is no implementation");
        Ok(())
    }
}
