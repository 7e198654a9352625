//! Which modelled part stands for an SMMU node, and how the driver is told of it.
//!
//! A device tree names an implementation and gives a region and interrupts; how many entries and banks there are only
//! ID registers say. The part that is chosen is one that is sold under that name, made to fit the region.

use iommu_assign::assign::PhysicalAddress;
use iommu_assign::dt::SmmuNode;
use iommu_assign::smmu::{Architecture, Chip, EmptyRoot, Implementation, SmmuConfig};
use smmu_model::{Config, PageSize, Quirks, Wiring};

/// Where the machine keeps zeros for banks that nobody uses.
pub(crate) const EMPTY_ROOT: EmptyRoot = EmptyRoot { address: PhysicalAddress::new(0x100_0000), size: 0x10_0000 };

/// What firmware does on Qualcomm's chips.
const QUALCOMM: Quirks = Quirks {
    bypass_becomes_fault: true,
    fault_write_ignored: true,
    zero_maintenance_lost: true,
    reported_groups: Some(255),
    ..Quirks::NONE
};

/// The same around an MMU-500.
const QUALCOMM_MMU500: Quirks = Quirks { cache_lock: true, ..QUALCOMM };

/// The modelled part for a node.
pub(crate) fn part(node: &SmmuNode<'_>) -> Config {
    let size = node.registers.size();
    let mut part = match node.implementation {
        // A quarter of a megabyte and more is what parts with many banks have; ZynqMP's is the best known small one.
        Implementation::Mmu500 if size <= 0x2_0000 => Config::mmu500_zynqmp(),
        Implementation::Mmu500 => Config::mmu500_layerscape(),
        Implementation::QualcommMmu500 => Config::mmu500_layerscape().quirks(QUALCOMM_MMU500),
        Implementation::Mmu400 if node.secure_config_access => Config::calxeda(),
        Implementation::Mmu400 => Config::mmu400(),
        // Juno's have 1 to 4 banks, and no register of the device tree says which.
        Implementation::Mmu401 => Config::mmu401_juno_large(),
        Implementation::Cavium => Config::cn88xx(),
        Implementation::MarvellAp806 => Config::ap806(),
        Implementation::Nvidia => Config::tegra194(),
        Implementation::Qualcomm => Config::qualcomm().quirks(QUALCOMM),
        _ if node.architecture == Architecture::V1 => Config::generic_v1(),
        _ => Config::generic_v2(),
    };
    fit(&mut part, size);
    if Chip::of(&node.compatibles) == Chip::Sdm630 && part.banks == 21 {
        part.quirks.hidden_banks_from = Some(7);
    }
    part.coherent_walk = node.coherent;
    // Each context interrupt is told apart; on which line it reaches the interrupt controller `ContextLines` says.
    part.wiring = Wiring::Separate;
    if node.architecture == Architecture::V1 {
        part.context_interrupts = u8::try_from(node.context_irqs).unwrap_or(u8::MAX).max(1);
    }
    // Two instances of one part differ in what their reset leaves undefined.
    part.seed(node.key.base())
}

/// What the driver is told of a node.
pub(crate) fn described(node: &SmmuNode<'_>) -> SmmuConfig {
    // The model completes a sync after two reads; a run must not hang where it does not.
    SmmuConfig { polls: 1000, ..node.config(EMPTY_ROOT) }
}

/// Makes the register map fill the region and no more.
fn fit(part: &mut Config, region: u64) {
    part.page_size = if region >= 0x80_0000 { PageSize::Large } else { PageSize::Small };
    part.num_page_index_bits = 0;
    let fits = |part: &Config| u64::from(part.half_bytes()).saturating_mul(2) <= region;
    for bits in 0..=7 {
        let wider = Config { num_page_index_bits: bits, ..part.clone() };
        if fits(&wider) {
            part.num_page_index_bits = bits;
        }
    }
    part.banks = part.banks.min(u8::try_from(part.pages()).unwrap_or(u8::MAX));
    part.stage2_banks = part.stage2_banks.min(part.banks);
}
