//! What the README's loop offers: `DtDevice::spec` and `Function::spec` say everything that firmware says, or why nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

#[path = "dt_support/builder.rs"]
mod builder;
mod common;

use builder::Builder;
use common::{Bench, SMMU};
use iommu_assign::assign::{Cause, DeviceSpec, Removal, Target};
use iommu_assign::dt::{Board, DtDevice, NotOffered};
use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
use iommu_assign::pci::{
    Enumeration, HostBridge, HostBridgeNumber, MapEntry, PortType, Provider, RequesterIdMap, Sbdf, Segment,
    StreamsError, enumerate,
};

/// As sc7180 has it: a Wi-Fi controller, and below it the streams of its firmware; then what must not be offered.
fn board() -> Vec<u8> {
    let mut board = Builder::board();
    board.smmu(0x5000_0000, 1, 2);
    board.begin("wifi@18800000").property("xen,passthrough", &[]).cells("iommus", &[1, 0xc0, 1]);
    board.begin("wifi-firmware").cells("iommus", &[1, 0xc2, 1]).end();
    board.end();
    board.begin("off").strings("status", &["disabled"]).cells("iommus", &[1, 0x10, 0]).end();
    // Another kind of IOMMU sees the outer one too; what is below it is seen by the SMMU alone.
    board.begin("other").cells("phandle", &[2]).cells("#iommu-cells", &[0]).end();
    board.begin("codec").cells("iommus", &[1, 0x20, 0, 2]);
    board.begin("non-pixel").cells("iommus", &[1, 0x21, 0]).end();
    board.end();
    board.open_smmu("iommu@60000000").strings("status", &["disabled"]).cells("reg", &[0, 0x6000_0000, 0, 0x10000]);
    board.cells("#iommu-cells", &[1]).cells("phandle", &[3]).end();
    board.begin("dark").cells("iommus", &[3, 7]).end();
    board.finish()
}

fn device<'b>(board: &'b Board<'_>, path: &str) -> &'b DtDevice {
    board.devices().iter().find(|device| device.path == path).unwrap()
}

#[test]
fn c5_a_node_below_another_is_removed_before_it() {
    let blob = board();
    let board = Board::read(&blob).unwrap();
    let bench = Bench::v2();
    let specs: Vec<DeviceSpec> = board.devices().iter().filter_map(|device| device.spec().ok()).collect();
    for spec in specs {
        bench.service.add(spec).unwrap();
    }
    let added: Vec<String> = bench.service.devices().map(|info| info.device.label().to_string()).collect();
    assert_eq!(added.len(), 3, "{added:?}");
    let (wifi, firmware) = (device(&board, "/wifi@18800000"), device(&board, "/wifi@18800000/wifi-firmware"));
    let registered = bench.service.find(firmware.device_key()).unwrap().device;
    assert_eq!(registered.parent(), Some(wifi.device_key()));
    assert!(bench.service.find(wifi.device_key()).unwrap().device.passthrough() && !registered.passthrough());

    let first = firmware.path.as_str().into();
    assert_eq!(bench.service.remove(wifi).unwrap_err().cause, Cause::HasChildren { children: 1, first });
    assert_eq!(bench.service.remove(firmware), Ok(Removal::Done));
    assert_eq!(bench.service.remove(wifi), Ok(Removal::Done));
    let told = "remove /wifi@18800000: nothing of this name is registered; nothing changed";
    assert_eq!(bench.service.remove(wifi).unwrap_err().to_string(), told);
    // Together, the child goes first.
    bench.service.add(wifi.spec().unwrap()).unwrap();
    bench.service.add(firmware.spec().unwrap()).unwrap();
    assert_eq!(bench.service.remove_tree(Target::from(wifi)), Ok(Removal::Done));
    assert!(bench.service.find(firmware.device_key()).is_none());
    bench.audit();
}

#[test]
fn a6_what_could_not_be_confined_is_not_offered_and_says_why() {
    let blob = board();
    let board = Board::read(&blob).unwrap();
    let reason = |path| device(&board, path).spec().unwrap_err();
    assert_eq!(reason("/off"), NotOffered::Disabled);
    assert_eq!(reason("/dark"), NotOffered::OnDisabledSmmu);
    let iommu = board.tree().find("/other").unwrap().id();
    assert_eq!(reason("/codec"), NotOffered::ForeignIommu { iommu });
    // Its parent is never registered, so that it has none to wait for.
    let below = device(&board, "/codec/non-pixel");
    assert_eq!((below.parent, below.spec().unwrap().parent), (Some(device(&board, "/codec").node), None));
    let bench = Bench::v2();
    bench.service.add(below.spec().unwrap()).unwrap();
}

fn host(first_mapped: u32) -> HostBridge {
    let entry = MapEntry::new(first_mapped, Provider::Smmu(SMMU), first_mapped, 0x1000 - first_mapped);
    HostBridge {
        number: HostBridgeNumber(0),
        segment: Segment(0),
        buses: iommu_assign::pci::Bus(0)..=iommu_assign::pci::Bus(0xf),
        map: RequesterIdMap::new([entry], RequesterIdMap::NO_MASK).unwrap(),
        passthrough: true,
    }
}

/// A root port, and a network controller of two functions behind it.
fn fabric(host: &HostBridge) -> Enumeration {
    let mut space = FakeConfigSpace::new();
    let port = FakeFunction::bridge(0x1b36, 0xc, 0, 1, 1).express(PortType::RootPort);
    space.insert("00:01.0".parse().unwrap(), port);
    for at in ["01:00.0", "01:00.1"] {
        let nic = FakeFunction::endpoint(0x8086, 0x1521, 0x02_0000).express(PortType::Endpoint).multi_function();
        space.insert(at.parse::<Sbdf>().unwrap(), nic);
    }
    enumerate(&space, host).unwrap()
}

#[test]
fn a_function_is_offered_behind_its_port_in_its_isolation_group() {
    let host = host(0);
    let found = fabric(&host);
    let bench = Bench::v2();
    for function in &found.functions {
        bench.service.add(function.spec(&host, &found).unwrap()).unwrap();
    }
    let all: Vec<_> = bench.service.devices().collect();
    let told = |n: usize| (all[n].device.label().to_string(), all[n].device.parent());
    let port = all[0].device.key();
    assert_eq!(told(0), ("0000:00:01.0".into(), None));
    assert_eq!(told(1), ("0000:01:00.0".into(), Some(port)));
    assert_eq!(told(2), ("0000:01:00.1".into(), Some(port)));
    assert!(all.iter().all(|info| info.device.passthrough()));
    // The port has no access control services: it and what is below it are one group.
    assert!(all.iter().all(|info| info.group == all[0].group));
}

#[test]
fn a_function_behind_a_port_that_no_smmu_sees_has_no_parent() {
    let host = host(0x100);
    let found = fabric(&host);
    let port = found.functions[0].spec(&host, &found).unwrap_err();
    assert!(matches!(port, StreamsError::Map { .. }), "{port}");
    assert_eq!(found.functions[1].spec(&host, &found).unwrap().parent, None);
}
