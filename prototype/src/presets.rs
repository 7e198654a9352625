//! How the driver is told of a modelled SMMU.

use iommu_assign::assign::PhysicalAddress;
use iommu_assign::dt::SmmuNode;
use iommu_assign::smmu::{EmptyRoot, SmmuConfig};

/// Where the machine keeps zeros for banks that nobody uses.
pub(crate) const EMPTY_ROOT: EmptyRoot = EmptyRoot { address: PhysicalAddress::new(0x100_0000), size: 0x10_0000 };

/// What the driver is told of a node.
pub(crate) fn described(node: &SmmuNode<'_>) -> SmmuConfig {
    // The model completes a sync after two reads; a run must not hang where it does not.
    SmmuConfig { polls: 1000, ..node.config(EMPTY_ROOT) }
}
