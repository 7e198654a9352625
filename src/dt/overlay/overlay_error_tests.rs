//! Every message about overlays and guests' trees, as the tables of `docs/errors.md`.

extern crate std;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;
use std::println;

use super::*;
use crate::dt::guest::GuestError;
use crate::dt::overlay::Overlays;
use crate::dt::{Board, NodeFault};

const DOCUMENT: &str = include_str!("../../../docs/errors.md");

/// One row for each variant of an enum. The patterns go into a `match` without a wildcard, so that a variant without a
/// row does not compile.
macro_rules! every {
    ($type:ty: $($pattern:pat => $row:expr,)*) => {{
        const _: fn(&$type) = |one| match one { $($pattern => {})* };
        [$((stringify!($pattern), $row)),*]
    }};
}

/// The rows: the variant that each pattern is about, the line, what to do.
fn rows<E: ToString>(all: impl IntoIterator<Item = (&'static str, (E, &'static str))>) -> String {
    let variant = |pattern: &str| {
        let name = pattern.rsplit("::").next().unwrap_or_default();
        name.split([' ', '(', '{']).next().map(String::from).unwrap_or_default()
    };
    let code = |text: String| if text.contains('`') { format!("`` {text} ``") } else { format!("`{text}`") };
    all.into_iter()
        .map(|(pattern, (error, advice))| {
            format!("| `{}` | {} | {advice} |\n", variant(pattern), code(error.to_string()))
        })
        .collect()
}

fn missing_label() -> OverlayError {
    let fault = OverlayFault::LabelMissing { property: "iommus".into(), label: "smmu1".into() };
    OverlayError::at("/fragment@0/__overlay__/dma@1".into(), fault)
}

fn errors() -> String {
    let busy = assign::Cause::Busy { running: assign::Operation::Assign };
    let refused = |cause| assign::Error {
        operation: assign::Operation::Add,
        subject: "/soc/dma@1".into(),
        cause,
        left: assign::Left::Unchanged,
    };
    let bad_board: &[u8] = &[];
    let unreadable = Board::read(bad_board).map(|_| ()).unwrap_err();
    let dangling = NodeFault::DanglingPhandle { property: "iommus", entry: 0, phandle: 0x99 };
    let path = || String::from("/soc/dma@1");
    let refusal = Refusal {
        node: Overlays::new(include_bytes!("../../../boards/showcase.dtb")).unwrap().board().unwrap().devices()[0].node,
        path: path(),
        error: DtError::Node { path: path(), cause: dangling },
    };
    let host = OverlayError::Host { path: "/soc/iommu@6000000".into(), step: "probe", reason: "no power" };
    rows(every! { OverlayError:
        OverlayError::Fault { .. } => (missing_label(), "See the next table."),
        OverlayError::Host { .. } => (host.clone(), "The integrator's own part failed: the reason is its own."),
        OverlayError::NotApplied(_) => (OverlayError::NotApplied(OverlayId(3)), "Nothing: it was reverted before, or never applied."),
        OverlayError::NotRestored { .. } =>
            (OverlayError::NotRestored { lost: vec![path()], error: Box::new(host) }, "Add these devices again: `DtDevice::spec` of `Overlays::board`."),
        OverlayError::Overlay(_) => (OverlayError::Overlay(unreadable.clone()), "Compile the overlay again, or read the whole file."),
        OverlayError::Refused(_) => (OverlayError::Refused(refusal), "Correct the overlay: that node could not be confined."),
        OverlayError::Service(_) => (OverlayError::Service(refused(busy)), "As the service's own line says."),
        OverlayError::Tree(_) => (OverlayError::Tree(DtError::TooLarge), "Base and overlays together are larger than 4 GiB."),
        OverlayError::Unfinished(_) =>
            (OverlayError::Unfinished(Box::new(OverlayError::Service(refused(assign::Cause::OutOfMemory)))), "Do away with what the line names; then `Overlays::finish`, or the same call again."),
    })
}

fn faults() -> String {
    let at = |path: &str, fault| OverlayError::at(path.into(), fault);
    let here = |fault| at("/fragment@0/__overlay__/dma@1", fault);
    let soc = |fault| at("/soc/dma@200000", fault);
    let text = String::from;
    let (property, label) = (|| text("iommus"), || text("smmu1"));
    rows(every! { OverlayFault:
        OverlayFault::AmbiguousTarget { .. } =>
            (at("/fragment@0", OverlayFault::AmbiguousTarget { target: text("/soc/usb") }), "Write the target's full path."),
        OverlayFault::AppliedAlready { .. } => (at("/soc", OverlayFault::AppliedAlready { by: OverlayId(1) }), "Nothing, or revert it first."),
        OverlayFault::DeviceGoing => (soc(OverlayFault::DeviceGoing), "Remove the device again, then try again."),
        OverlayFault::DeviceInUse { .. } =>
            (soc(OverlayFault::DeviceInUse { owner: "guest A".into() }), "Deassign the device, then try again."),
        OverlayFault::Fixup { .. } => (at("/__fixups__", OverlayFault::Fixup { property: label() }), "Compile the overlay again (`dtc -@`)."),
        OverlayFault::HostBridgeChanges => (at("/soc/pcie@400000", OverlayFault::HostBridgeChanges), "Make the bridge go first, with its functions."),
        OverlayFault::LabelMissing { .. } => (missing_label(), "Compile the base with symbols (`dtc -@`), or apply the overlay first that brings the label."),
        OverlayFault::LabelStale { .. } =>
            (here(OverlayFault::LabelStale { property: property(), label: label(), target: text("/soc/iommu@1") }), "Correct the base: its `__symbols__` names a node that it does not have."),
        OverlayFault::NoFragment => (at("/", OverlayFault::NoFragment), "This is no overlay."),
        OverlayFault::NoPhandle { .. } =>
            (here(OverlayFault::NoPhandle { property: property(), label: label(), target: text("/soc/iommu@1") }), "Compile the base with symbols (`dtc -@`)."),
        OverlayFault::NoTarget => (at("/fragment@0", OverlayFault::NoTarget), "Correct the overlay."),
        OverlayFault::NotReset { .. } => (soc(OverlayFault::NotReset { mate: "/soc/usb@1".into() }), "Deassign that device, then try again."),
        OverlayFault::OutOfOrder { .. } => (at("/pcie@40000000", OverlayFault::OutOfOrder { by: OverlayId(2) }), "Revert that overlay first."),
        OverlayFault::PhandlesExhausted => (here(OverlayFault::PhandlesExhausted), "Correct the overlay: its phandles are too large."),
        OverlayFault::ReferredTo { .. } => (soc(OverlayFault::ReferredTo { by: OverlayId(2) }), "Revert that overlay first."),
        OverlayFault::SmmuChanges => (at("/soc/iommu@5000000", OverlayFault::SmmuChanges), "Make the SMMU go first, with its masters: `status = \"disabled\"`."),
        OverlayFault::Symbol { .. } => (at("/__symbols__", OverlayFault::Symbol { label: label() }), "Compile the overlay again (`dtc -@`)."),
        OverlayFault::TargetMissing { .. } =>
            (at("/fragment@0", OverlayFault::TargetMissing { target: text("/soc/none@1") }), "Apply the overlay first that brings the node."),
        OverlayFault::TooDeep => (at("/soc/n/n", OverlayFault::TooDeep), "Correct the overlay."),
        OverlayFault::Unplaced { .. } =>
            (here(OverlayFault::Unplaced { property: property(), target: text("/fragment@1/__overlay__/iommu@6000000") }), "Put the fragment that is referred to in front."),
    })
}

fn guests() -> String {
    let path = || String::from("/soc/dma@200000");
    rows(every! { GuestError:
        GuestError::Disabled { .. } => (GuestError::Disabled { path: path() }, "Nothing: no guest gets it."),
        GuestError::HostBridge { .. } => (GuestError::HostBridge { path: "/soc/pcie@400000".into() }, "`GuestTree::host_bridge`."),
        GuestError::Iommu { .. } => (GuestError::Iommu { path: "/soc/iommu@300000".into() }, "Show the devices behind it."),
        GuestError::NoNode => (GuestError::NoNode, "Take the node's number from this very board."),
        GuestError::NotPlaced { .. } => (GuestError::NotPlaced { path: path(), base: 0x2020_0000, size: 0x1000 }, "Give the registers a place: `GuestView::place`."),
        GuestError::PhandlesExhausted { .. } => (GuestError::PhandlesExhausted { path: path() }, "Begin with a smaller phandle: `GuestLayout`."),
        GuestError::SameName { .. } =>
            (GuestError::SameName { path: "/bus@1/dsp".into(), name: "dsp".into(), other: "/bus@0/dsp".into() }, "Show one of them in a tree of its own."),
        GuestError::Tree(_) => (GuestError::Tree(DtError::OutOfMemory), "As the line says."),
    })
}

/// `cargo test -p iommu-assign every_message -- --nocapture` prints the tables.
#[test]
fn every_message_about_overlays_and_guests_is_in_the_document() {
    let tables = [errors(), faults(), guests()];
    tables.iter().for_each(|table| println!("{table}"));
    let missing = tables.iter().flat_map(|table| table.lines()).find(|line| !DOCUMENT.contains(line));
    assert_eq!(missing, None, "docs/errors.md must have what is printed above");
}

/// Found by the scenario `hotplug` on a busy machine: an SMMU that left while another thread was inside was taken for stuck.
#[test]
fn what_waits_for_another_operation_is_busy_and_nothing_else_is() {
    let of = |cause| {
        let (operation, subject) = (assign::Operation::UnregisterIommu, "iommu@26000000".into());
        OverlayError::Service(assign::Error { operation, subject, cause, left: assign::Left::Unchanged })
    };
    let iommu = |error| of(assign::Cause::Iommu { iommu: assign::IommuKey::new(0x2600_0000), error });
    let busy = [of(assign::Cause::Busy { running: assign::Operation::Assign }), iommu(assign::IommuError::Busy)];
    assert!(busy.iter().all(OverlayError::is_busy));
    assert!(busy.into_iter().all(|error| OverlayError::Unfinished(Box::new(error)).is_busy()));
    assert!(!iommu(assign::IommuError::NoPower("off")).is_busy() && !of(assign::Cause::NotFound).is_busy());
}
