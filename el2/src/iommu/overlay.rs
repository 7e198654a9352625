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

/// The part of the overlay that a machine without PCI has no place for.
const PCI: &str = "fragment@1";

/// The machine's tree with the overlay on it. `None` where that does not fit.
pub(crate) fn apply(blob: &[u8]) -> Option<Vec<u8>> {
    let machine = DeviceTree::from_fdt(&Fdt::new(blob).ok()?);
    let overlay = DeviceTree::from_fdt(&Fdt::new(OVERLAY).ok()?);
    let mut without = overlay.clone();
    without.root.remove_child(PCI);
    without.root.child_mut("__local_fixups__").map(|fixups| fixups.remove_child(PCI));
    [overlay, without].into_iter().find_map(|overlay| {
        let mut tree = machine.clone();
        OverlayApplier::new(&mut tree).apply_overlay_tree(overlay).ok()?;
        Some(tree.to_dtb())
    })
}
