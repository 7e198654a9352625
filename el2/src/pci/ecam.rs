//! Configuration space, mapped.

use iommu_assign::dt::ConfigAccess;
use iommu_assign::pci::{Ecam, HostBridge};

use crate::boot::mmu;

/// Maps the configuration space that the tree names for `host`.
pub(crate) fn map(access: ConfigAccess, host: &HostBridge) -> Option<Ecam> {
    let (region, size) = (access.region, usize::try_from(access.region.size()).ok()?);
    let base = mmu::map_device(region.base(), region.size())?;
    // SAFETY: mapped as device memory for ever, and nothing else is there. QEMU answers what is not there with all ones.
    unsafe { Ecam::new(base, size, access.layout, host.segment, host.buses.clone()) }
}
