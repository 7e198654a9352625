//! Where MSIs go (contract S-7): doorbells, the IDs that a controller tells devices apart by, and who is not told apart.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

#[path = "dt_support/builder.rs"]
mod builder;
#[path = "dt_support/files.rs"]
mod files;

use builder::{Builder, at};
use iommu_assign::assign::{Granule, PhysicalAddress};
use iommu_assign::dt::{
    Board, DtError, Msi, MsiController, MsiControllerKind, MsiIsolation, MsiTarget, NodeFault, UnmappedMsi,
};
use iommu_assign::pci::{MapFault, RequesterId};

fn msi(board: &Board<'_>, path: &str) -> Msi {
    board.msi(board.tree().find(path).unwrap().id()).unwrap().unwrap_or_else(|| panic!("{path} says nothing of MSIs"))
}

/// Doorbell register, frame base and frame size.
fn doorbell(controller: &MsiController) -> (u64, u64, u64) {
    let doorbell = controller.doorbell.unwrap();
    (doorbell.register().value(), doorbell.frame().base(), doorbell.frame().size())
}

/// Names of controllers' nodes with the ID there.
fn named(board: &Board<'_>, targets: impl IntoIterator<Item = MsiTarget>) -> Vec<(String, Option<u32>)> {
    let name = |target: MsiTarget| board.tree().node(target.controller).unwrap().name().to_owned();
    targets.into_iter().map(|target| (name(target), target.id)).collect()
}

fn targets(board: &Board<'_>, msi: &Msi, rid: u16) -> Result<Vec<(String, Option<u32>)>, UnmappedMsi> {
    msi.targets(RequesterId(rid)).map(|targets| named(board, targets))
}

fn one(name: &str, id: Option<u32>) -> Vec<(String, Option<u32>)> {
    vec![(name.to_owned(), id)]
}

// Our own boards.

#[test]
fn s7_the_doorbell_and_the_ids_of_an_its_are_listed() {
    let board = Board::read(files::OWN[0].1).unwrap();
    let its = "msi-controller@2f180000";
    let pcie = msi(&board, "/soc/pcie@30000000");
    let [controller] = &pcie.controllers[..] else { panic!("not one controller") };
    assert_eq!((controller.kind, controller.enabled), (MsiControllerKind::GicV3Its, true));
    assert_eq!(controller.path, format!("/interrupt-controller@2f000000/{its}"));
    assert_eq!(doorbell(controller), (0x2f19_0040, 0x2f19_0000, 0x1_0000));
    assert_eq!(pcie.isolation(), MsiIsolation::ByDevice);
    assert!(pcie.own.is_empty());
    assert_eq!(targets(&board, &pcie, 0x0008), Ok(one(its, Some(0x108))));
    assert_eq!(targets(&board, &pcie, 0x011f), Ok(one(its, Some(0x13f))));
    assert_eq!(targets(&board, &pcie, 0xfe1f), Ok(one(its, Some(0x11f))), "bits outside the mask do not count");
    assert_eq!(pcie.map.as_ref().unwrap().mask(), 0x11f);

    let ethernet = msi(&board, "/soc/ethernet@24010000");
    assert_eq!(named(&board, ethernet.own.clone()), one(its, Some(0x40)));
    assert!(ethernet.map.is_none() && ethernet.controllers == pcie.controllers);
    let silent = board.tree().find("/soc/ethernet@24000000").unwrap();
    assert_eq!(board.msi(silent.id()), Ok(None));
}

#[test]
fn s7_an_its_has_its_doorbell_on_a_page_of_its_own() {
    let board = Board::read(files::OWN[0].1).unwrap();
    let pcie = msi(&board, "/soc/pcie@30000000");
    let doorbell = pcie.controllers[0].doorbell.unwrap();
    for granule in [Granule::Kib4, Granule::Kib16, Granule::Kib64] {
        assert_eq!(doorbell.page(granule), PhysicalAddress::new(0x2f19_0000));
        assert!(doorbell.has_page(granule), "{granule:?}");
    }
}

#[test]
fn s7_where_msis_are_not_isolated_it_is_said() {
    let board = Board::read(files::OWN[1].1).unwrap();
    let v2m = msi(&board, "/pcie@40000000");
    assert_eq!(v2m.isolation(), MsiIsolation::NotIsolated);
    assert_eq!(v2m.controllers[0].kind, MsiControllerKind::GicV2m);
    assert_eq!(doorbell(&v2m.controllers[0]), (0x2f60_0040, 0x2f60_0000, 0x1000));
    // Nothing tells its functions apart, so no ID is made up for them.
    assert_eq!(targets(&board, &v2m, 0x1234), Ok(one("v2m@2f600000", None)));
    let register = v2m.controllers[0].doorbell.unwrap();
    assert_eq!(register.page(Granule::Kib64), PhysicalAddress::new(0x2f60_0000));
    assert!(register.has_page(Granule::Kib4));
    assert!(!register.has_page(Granule::Kib16) && !register.has_page(Granule::Kib64), "a larger page has more in it");

    // One good controller does not make up for a bad one.
    let both = msi(&board, "/pcie@60000000");
    assert_eq!(both.isolation(), MsiIsolation::NotIsolated);
    let kinds: Vec<_> = both.controllers.iter().map(|controller| controller.kind).collect();
    assert_eq!(kinds, [MsiControllerKind::GicV2m, MsiControllerKind::GicV3Its]);
    let its = || one("msi-controller@2f700000", Some(0x8008));
    assert_eq!(targets(&board, &both, 0x108), Ok([its(), one("v2m@2f600000", Some(8))].concat()));
    assert_eq!(targets(&board, &both, 0x2ff), Ok(one("msi-controller@2f700000", Some(0x81ff))));
    for rid in [0, 0xff, 0x300, 0xffff] {
        assert_eq!(targets(&board, &both, rid), Err(UnmappedMsi { rid: RequesterId(rid) }));
    }
    let words = UnmappedMsi { rid: RequesterId(0x300) }.to_string();
    assert_eq!(words, "requester ID 03:00.0 is in no entry of the host bridge's `msi-map`");
}

#[test]
fn s7_an_unknown_controller_is_named_and_not_guessed() {
    let board = Board::read(files::OWN[1].1).unwrap();
    let unknown = msi(&board, "/pcie@70000000");
    let [controller] = &unknown.controllers[..] else { panic!("not one controller") };
    assert_eq!((controller.kind, controller.doorbell), (MsiControllerKind::Unknown, None));
    assert_eq!((controller.path.as_str(), controller.enabled), ("/msi-controller@2f800000", false));
    assert_eq!(unknown.isolation(), MsiIsolation::Unknown);
    assert_eq!(named(&board, unknown.own.clone()), one("msi-controller@2f800000", None), "two cells are no ID");
}

// Real boards: what their properties say was listed by other means.

#[test]
fn s7_real_boards_doorbells() {
    const V2M: MsiIsolation = MsiIsolation::NotIsolated;
    let expected = [
        ("amd-overdrive-rev-b1", "/smb/pcie@f0000000", "v2m@e0080000", 0xe118_0040, V2M),
        ("armada-8040-mcbin", "/cp0/pcie@f2600000", "v2m@280000", 0xf028_0040, V2M),
        ("juno-r2", "/pcie@40000000", "v2m@0", 0x2c1c_0040, V2M),
        ("fsl-ls1028a-rdb", "/soc/pcie@1f0000000", "gic-its@6020000", 0x603_0040, MsiIsolation::ByDevice),
        ("fsl-ls1028a-rdb", "/soc/pcie@3400000", "gic-its@6020000", 0x603_0040, MsiIsolation::ByDevice),
        ("fvp-base-revc", "/pci@40000000", "msi-controller@2f020000", 0x2f03_0040, MsiIsolation::ByDevice),
    ];
    for (name, blob) in files::real_boards("s7_real_boards_doorbells") {
        let board = Board::read(&blob).unwrap();
        for (_, path, controller, register, isolation) in expected.iter().filter(|(board, ..)| *board == name) {
            let msi = msi(&board, path);
            let [only] = &msi.controllers[..] else { panic!("{name}: {path}: not one controller") };
            assert!(only.path.ends_with(controller), "{name}: {}", only.path);
            assert_eq!((doorbell(only).0, msi.isolation()), (*register, *isolation), "{name}: {path}");
        }
        // Whatever a node says of MSIs, on these boards it can be followed.
        for node in board.tree().nodes() {
            assert!(board.msi(node.id()).is_ok(), "{name}: {}", node.path().unwrap());
        }
        if name == "fsl-ls1028a-rdb" {
            let its = "gic-its@6020000";
            let enetc = msi(&board, "/soc/pcie@1f0000000");
            assert_eq!(targets(&board, &enetc, 3), Ok(one(its, Some(0x1a))));
            assert_eq!(targets(&board, &enetc, 0xe), Err(UnmappedMsi { rid: RequesterId(0xe) }));
            // The IDs of its other bridges' functions are for the boot loader to write, and it has not.
            assert_eq!(targets(&board, &msi(&board, "/soc/pcie@3400000"), 0), Ok(one(its, None)));
        }
        if name == "fvp-base-revc" {
            assert_eq!(named(&board, msi(&board, "/iommu@2b400000").own)[0].1, Some(0x1_0000));
        }
    }
}

// What firmware may get wrong.

/// An ITS with phandle 1 and `#msi-cells` 1, a frame with phandle 2, a node with phandle 3 that is no controller, and
/// `/dev` with what `device` adds.
fn board(device: impl FnOnce(&mut Builder)) -> Vec<u8> {
    let mut board = Builder::board();
    board.begin("its").strings("compatible", &["arm,gic-v3-its"]).property("msi-controller", &[]);
    board.cells("reg", &[0, 0x10_0000, 0, 0x2_0000]).cells("#msi-cells", &[1]).cells("phandle", &[1]).end();
    board.begin("v2m").strings("compatible", &["arm,gic-v2m-frame"]).property("msi-controller", &[]);
    board.cells("reg", &[0, 0x20_0000, 0, 0x1000]).cells("phandle", &[2]).end();
    board.begin("serial").cells("phandle", &[3]).end();
    board.begin("dev");
    device(&mut board);
    board.end().finish()
}

fn fault(blob: &[u8]) -> (String, NodeFault) {
    let board = Board::read(blob).unwrap();
    match board.msi(board.tree().find("/dev").unwrap().id()) {
        Err(DtError::Node { path, cause }) => (path, cause),
        other => panic!("{other:?}"),
    }
}

#[test]
fn s7_a6_an_msi_parent_that_cannot_be_followed_names_the_node() {
    let parent = |cells: &[u32]| {
        fault(&board(|dev| {
            dev.cells("msi-parent", cells);
        }))
    };
    let property = "msi-parent";
    assert_eq!(parent(&[1]), at("/dev", NodeFault::Truncated { property, entry: 0 }));
    assert_eq!(parent(&[2, 1]), at("/dev", NodeFault::Truncated { property, entry: 1 }));
    assert_eq!(parent(&[1, 7, 0]), at("/dev", NodeFault::PhandleZero { property, entry: 1 }));
    assert_eq!(parent(&[9]), at("/dev", NodeFault::DanglingPhandle { property, entry: 0, phandle: 9 }));
    let target = "/serial".to_owned();
    assert_eq!(parent(&[2, 3]), at("/dev", NodeFault::NoMsiController { property, entry: 1, target }));
    let broken = fault(&board(|dev| {
        dev.property("msi-parent", &[0, 0, 0, 2, 0, 0]);
    }));
    assert_eq!(broken, at("/dev", NodeFault::Truncated { property, entry: 1 }));
}

#[test]
fn s7_a6_an_msi_map_that_cannot_be_followed_names_the_node() {
    let property = "msi-map";
    let map = |cells: &[u32]| {
        fault(&board(|dev| {
            dev.cells("msi-map", cells);
        }))
    };
    for length in [1, 3, 5] {
        let cells = &[0, 1, 0, 8, 0][..length];
        let expected = NodeFault::LengthMultiple { property, length: length * 4, entry: 16 };
        assert_eq!(map(cells), at("/dev", expected));
    }
    assert_eq!(map(&[0, 0, 0, 8]), at("/dev", NodeFault::PhandleZero { property, entry: 0 }));
    let dangling = NodeFault::DanglingPhandle { property, entry: 1, phandle: 7 };
    assert_eq!(map(&[0, 1, 0, 8, 8, 7, 0, 8]), at("/dev", dangling));
    let target = "/serial".to_owned();
    assert_eq!(map(&[0, 3, 0, 8]), at("/dev", NodeFault::NoMsiController { property, entry: 0, target }));
    let of = |fault| at("/dev", NodeFault::Map { property, fault });
    // Entries of another controller and of no length in between do not hide it.
    let overlap = [0, 1, 0, 8, 0, 2, 0, 0x10000, 3, 1, 0, 0, 7, 1, 0, 1];
    assert_eq!(map(&overlap), of(MapFault::Overlap { first: 0, second: 3 }));
    assert_eq!(map(&[0, 1, u32::MAX, 2]), of(MapFault::Overflow { index: 0 }));
    assert_eq!(map(&[u32::MAX, 1, 0, 2]), of(MapFault::Overflow { index: 0 }));
    let masked = fault(&board(|dev| {
        dev.cells("msi-map", &[8, 1, 0, 8]).cells("msi-map-mask", &[7]);
    }));
    assert_eq!(masked, of(MapFault::OutsideMask { index: 0, rid_base: 8, mask: 7 }));
    let long = fault(&board(|dev| {
        dev.cells("msi-map", &[0, 1, 0, 8]).cells("msi-map-mask", &[0, 7]);
    }));
    assert_eq!(long, at("/dev", NodeFault::Length { property: "msi-map-mask", length: 8, expected: 4 }));
}

#[test]
fn s7_a6_a_controller_that_cannot_be_followed_is_named_itself() {
    let with = |compatible: &str, reg: &[u32], cells: &[u32]| {
        fault(&board(|dev| {
            dev.cells("msi-map", &[0, 4, 0, 8]);
            dev.end().begin("msi").strings("compatible", &[compatible]).property("msi-controller", &[]);
            dev.cells("reg", reg).cells("#msi-cells", cells).cells("phandle", &[4]);
        }))
    };
    let outside = |offset, size| at("/msi", NodeFault::DoorbellOutside { offset, size });
    assert_eq!(with("arm,gic-v3-its", &[0, 0x30_0000, 0, 0x1_0040], &[1]), outside(0x1_0040, 0x1_0040));
    assert_eq!(with("arm,gic-v2m-frame", &[0, 0x30_0000, 0, 0x40], &[0]), outside(0x40, 0x40));
    let missing = NodeFault::MissingProperty { property: "reg" };
    assert_eq!(with("arm,gic-v2m-frame", &[], &[0]), at("/msi", missing));
    let count = |count| NodeFault::CellCount { property: "#msi-cells", count, allowed: "0 or 1" };
    assert_eq!(with("arm,gic-v3-its", &[0, 0x30_0000, 0, 0x2_0000], &[2]), at("/msi", count(2)));
    let length = NodeFault::Length { property: "#msi-cells", length: 8, expected: 4 };
    assert_eq!(with("arm,gic-v3-its", &[0, 0x30_0000, 0, 0x2_0000], &[1, 1]), at("/msi", length));
}

#[test]
fn s7_an_its_behind_a_part_of_its_own_has_no_known_doorbell() {
    let blob = board(|dev| {
        dev.cells("msi-parent", &[4, 5]);
        dev.end().begin("msi").strings("compatible", &["arm,gic-v3-its"]).property("msi-controller", &[]);
        dev.cells("reg", &[0, 0x30_0000, 0, 0x2_0000]).cells("#msi-cells", &[1]).cells("phandle", &[4]);
        dev.cells("socionext,synquacer-pre-its", &[0x5800_0000, 0x20_0000]);
    });
    let board = Board::read(&blob).unwrap();
    let msi = msi(&board, "/dev");
    assert_eq!((msi.controllers[0].doorbell, msi.isolation()), (None, MsiIsolation::Unknown));
    assert_eq!(msi.own[0].id, Some(5));
}

#[test]
fn s7_a_broken_msi_map_takes_no_device_away() {
    let mut bad = Builder::board();
    bad.smmu(0x1000, 1, 1).begin("pcie").cells("iommu-map", &[0, 1, 0, 8]).cells("msi-map", &[0, 9, 0, 8]).end();
    let blob = bad.finish();
    let board = Board::read(&blob).unwrap();
    let [bridge] = board.host_bridges() else { panic!("not one bridge") };
    assert!(board.msi(bridge.node).is_err());
}

#[test]
fn s7_the_id_of_a_bridges_own_msis_is_not_its_functions() {
    let blob = board(|dev| {
        dev.cells("msi-parent", &[1, 7]);
    });
    let board = Board::read(&blob).unwrap();
    let bridge = msi(&board, "/dev");
    assert_eq!(named(&board, bridge.own.clone()), one("its", Some(7)));
    assert_eq!(targets(&board, &bridge, 0x100), Ok(one("its", None)));
}

#[test]
fn s7_an_empty_map_and_an_empty_list_name_nobody() {
    let blob = board(|dev| {
        dev.cells("msi-map", &[]);
    });
    let tree = Board::read(&blob).unwrap();
    let nobody = msi(&tree, "/dev");
    assert_eq!(nobody.targets(RequesterId(0)).err(), Some(UnmappedMsi { rid: RequesterId(0) }));
    assert_eq!(nobody.isolation(), MsiIsolation::Unknown);
    let blob = board(|dev| {
        dev.cells("msi-parent", &[]);
    });
    let tree = Board::read(&blob).unwrap();
    assert_eq!(msi(&tree, "/dev").targets(RequesterId(0)).unwrap().count(), 0);
}
