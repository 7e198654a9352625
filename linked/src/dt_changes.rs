//! Overlays, and the trees of guests.

use iommu_assign::dt::guest::*;
use iommu_assign::dt::overlay::*;

use super::platform::P;
use super::{exhaust, keep, keep_messages, keep_types};

pub(crate) fn keep_all() {
    keep![
        Changes::is_empty,
        GuestBridge::new,
        GuestLayout::new,
        GuestTree::device,
        GuestTree::finish,
        GuestTree::host_bridge,
        GuestTree::new,
        OverlayError::is_busy,
        OverlayId::number,
        Overlays::apply::<P>,
        Overlays::blob,
        Overlays::board,
        Overlays::finish::<P>,
        Overlays::is_finished,
        Overlays::new,
        Overlays::preview,
        Overlays::revert::<P>,
        Overlays::applied,
        applied,
        compare,
        merge,
    ];
    keep_types![
        Change,
        Changed,
        Changes,
        Dependency,
        DeviceChange,
        GuestBridge,
        GuestError,
        GuestLayout,
        GuestPart,
        GuestTree<'_, '_>,
        Missing,
        NodeChange,
        Outcome,
        OverlayError,
        OverlayFault,
        OverlayId,
        Overlays<'_>,
    ];
    keep_messages![GuestError, OverlayError, OverlayFault];
}

fn applied(overlays: &Overlays<'_>) {
    exhaust(overlays.applied());
}
