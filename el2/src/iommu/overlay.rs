//! Modelled SMMUs for a machine that has none: an overlay on the machine's own tree.

use alloc::vec::Vec;

use dtoolkit::fdt::Fdt;
use dtoolkit::model::DeviceTree;
use dtoolkit::model::overlay::OverlayApplier;
use iommu_assign::assign::IommuKey;

/// `modelled.dtso`, compiled.
static OVERLAY: &[u8] = include_bytes!("../../modelled.dtbo");

/// The modelled SMMUs of the overlay.
pub(crate) const MODELLED: [IommuKey; 2] = [IommuKey::new(0xb00_0000), IommuKey::new(0xb10_0000)];

/// The machine's tree with the overlay on it. `None` where that does not fit: the tree has not what it refers to.
pub(crate) fn apply(blob: &[u8]) -> Option<Vec<u8>> {
    let mut tree = DeviceTree::from_fdt(&Fdt::new(blob).ok()?);
    OverlayApplier::new(&mut tree).apply_overlay(&Fdt::new(OVERLAY).ok()?).ok()?;
    Some(tree.to_dtb())
}
