//! From an SMMU's node in a device tree to a modelled part.

use iommu_assign::dt::SmmuNode;
use iommu_assign::smmu::{Architecture, Chip, Implementation};
use smmu_model::{Config, Quirks, Wiring};

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

/// A part that could stand at a node: [`SmmuNode::config`] describes it.
///
/// A device tree names an implementation and gives regions and interrupts; how many entries and banks there are only ID
/// registers say. The part is one that is sold under that name, made to fit the region; one of Qualcomm's is below its
/// firmware. Each region of a node has such a part.
#[must_use]
pub fn part_of(node: &SmmuNode<'_>) -> Config {
    let size = node.mirrors.iter().map(|region| region.size()).fold(node.registers.size(), u64::min);
    let part = match node.implementation {
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
    let mut part = part.fit(size);
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
