//! Every part that the model offers, as firmware would describe it to the driver.

use iommu_assign::smmu::{Chip, Implementation, SmmuConfig};
use smmu_model::Config;

use super::{SMMU, described};

/// A preset of the model, and what the driver is told.
pub(crate) struct Part {
    pub(crate) name: &'static str,
    pub(crate) model: Config,
    pub(crate) config: SmmuConfig,
}

fn part(name: &'static str, model: Config, implementation: Implementation) -> Part {
    let mut config = described(SMMU, &model);
    config.implementation = implementation;
    Part { name, model, config }
}

/// All presets.
pub(crate) fn parts() -> Vec<Part> {
    use Implementation::{Cavium, Generic, MarvellAp806, Mmu400, Mmu401, Mmu500, Nvidia, Qualcomm, QualcommMmu500};
    let mut all = vec![
        part("generic v1", Config::generic_v1(), Generic),
        part("generic v2", Config::generic_v2(), Generic),
        part("stream indexing", Config::stream_indexing(), Generic),
        part("extended", Config::extended(), Generic),
        part("mmu-400", Config::mmu400(), Mmu400),
        part("mmu-401 small", Config::mmu401_juno_small(), Mmu401),
        part("mmu-401 large", Config::mmu401_juno_large(), Mmu401),
        part("mmu-500 ZynqMP", Config::mmu500_zynqmp(), Mmu500),
        part("mmu-500 Layerscape", Config::mmu500_layerscape(), Mmu500),
        part("ap806", Config::ap806(), MarvellAp806),
        part("qualcomm", Config::qualcomm(), Qualcomm),
        part("qualcomm at EL2", Config::qualcomm_el2(), QualcommMmu500),
        part("extended groups", Config::extended_groups(), Generic),
        part("msm8974", Config::msm8974(), Generic),
        part("tegra194", Config::tegra194(), Nvidia),
        part("tegra186", Config::tegra186(), Nvidia),
        part("cn88xx", Config::cn88xx(), Cavium),
        part("calxeda", Config::calxeda(), Mmu400),
    ];
    for part in &mut all {
        match part.name {
            "qualcomm" => part.config.chip = Chip::Sdm630,
            "msm8974" => part.config.bank_base = part.model.quirks.bank_base,
            "calxeda" => part.config.secure_config_access = true,
            _ => {}
        }
    }
    all
}

/// The preset of this name.
pub(crate) fn named(name: &str) -> Part {
    parts().into_iter().find(|part| part.name == name).unwrap()
}
