//! Why no SMMU that can be used sees a node's DMA.

use alloc::string::String;
use core::fmt;

/// Why no SMMU that can be used sees a node's DMA.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unseen {
    /// Firmware names no IOMMU for it.
    NoIommu,
    /// Its SMMU is disabled.
    Disabled {
        /// Path of the SMMU.
        smmu: String,
    },
    /// What sees it is no SMMUv1 or v2.
    Foreign {
        /// Path of the IOMMU.
        iommu: String,
    },
}

impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoIommu => f.write_str("firmware names no IOMMU for it"),
            Self::Disabled { smmu } => write!(f, "{smmu} is disabled"),
            Self::Foreign { iommu } => write!(f, "{iommu}, which does, is no SMMUv1 or SMMUv2"),
        }
    }
}
