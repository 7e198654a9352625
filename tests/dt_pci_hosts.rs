//! PCI host bridges as firmware describes them, and what enumeration takes.

#![allow(
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

use builder::{Builder, stream};
use iommu_assign::dt::{Board, DtError, MsiIsolation, NoPciHost, NodeFault, NotOffered, PciHost};
use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
use iommu_assign::pci::{Bus, ConfigLayout, HostBridgeNumber, PortType, RequesterId, Segment, enumerate};

fn read(board: &mut Builder) -> Vec<PciHost> {
    Board::read(&board.finish()).unwrap().pci_hosts().unwrap()
}

/// Opens the node of a host bridge whose registers are at `base`.
fn host<'b>(board: &'b mut Builder, base: u32, compatible: &str) -> &'b mut Builder {
    board
        .begin(&format!("pcie@{base:x}"))
        .strings("compatible", &[compatible])
        .strings("device_type", &["pci"])
        .cells("reg", &[0, base, 0, 0x20_0000])
}

#[test]
fn everything_that_enumeration_takes_comes_by_one_call() {
    let mut board = Builder::board();
    board.smmu(0x1000, 1, 1);
    board
        .begin("its@9000")
        .strings("compatible", &["arm,gic-v3-its"])
        .property("msi-controller", &[])
        .cells("#msi-cells", &[1])
        .cells("reg", &[0, 0x9000, 0, 0x20000])
        .cells("phandle", &[7])
        .end();
    host(&mut board, 0x4000_0000, "pci-host-ecam-generic")
        .cells("bus-range", &[0x10, 0x11])
        .cells("linux,pci-domain", &[1])
        .cells("iommu-map", &[0x1000, 1, 0x40, 0x200])
        .cells("msi-map", &[0x1000, 7, 0x800, 0x200])
        .property("xen,passthrough", &[])
        .end();
    host(&mut board, 0x5000_0000, "pci-host-cam-generic").cells("iommu-map", &[0, 1, 0x300, 0x100]).end();
    host(&mut board, 0x6000_0000, "acme,pcie").cells("iommu-map", &[0, 1, 0x400, 0x100]).end();
    let hosts = read(&mut board);

    let ecam = &hosts[0];
    let bridge = ecam.host.as_ref().unwrap();
    assert_eq!(
        (bridge.number, bridge.segment, bridge.buses.clone()),
        (HostBridgeNumber(0), Segment(1), Bus(0x10)..=Bus(0x11))
    );
    assert_eq!(bridge.map.stream(RequesterId(0x1008)), Ok(stream(0x48, 0)));
    assert!(bridge.passthrough && !ecam.shares_streams);
    let access = ecam.access.unwrap();
    assert_eq!(
        (access.layout, access.region.base(), access.region.size()),
        (ConfigLayout::Ecam, 0x4000_0000, 0x20_0000)
    );
    let msi = ecam.msi.as_ref().unwrap().as_ref().unwrap();
    assert_eq!(msi.isolation(), MsiIsolation::ByDevice);
    assert_eq!(msi.targets(RequesterId(0x1008)).unwrap().next().unwrap().id, Some(0x808));

    // No segment of their own: the lowest that no other has, whatever the order.
    let rest: Vec<_> = hosts[1..].iter().map(|host| host.host.as_ref().unwrap()).collect();
    assert_eq!(rest.iter().map(|host| (host.number.0, host.segment.0)).collect::<Vec<_>>(), [(1, 0), (2, 2)]);
    assert_eq!(hosts[1].access.unwrap().layout, ConfigLayout::Cam);
    assert_eq!(hosts[2].access, None, "what is not known to be plain is not guessed");
}

#[test]
fn i_11_functions_behind_a_bridge_with_iommus_share_its_streams_and_one_owner() {
    let mut board = Builder::board();
    board.smmu(0x1000, 1, 1);
    host(&mut board, 0xfd0e_0000, "xlnx,nwl-pcie-2.11").cells("iommus", &[1, 0x4d0, 1, 0x4d1]);
    // A bridge in the tree is none of its own.
    board.begin("pcie@0").strings("device_type", &["pci"]).cells("iommus", &[1, 0x77]).end().end();
    let blob = board.finish();
    let board = Board::read(&blob).unwrap();
    let hosts = board.pci_hosts().unwrap();
    assert_eq!(hosts.len(), 1);
    assert!(hosts[0].shares_streams);
    let bridge = hosts[0].host.as_ref().unwrap();
    assert_eq!(bridge.buses, Bus(0)..=Bus(0xff));

    let mut space = FakeConfigSpace::new();
    for place in ["00:01.0", "00:02.0"] {
        let function = FakeFunction::endpoint(0x8086, 0x10d3, 0x02_0000).express(PortType::IntegratedEndpoint);
        space.insert(place.parse().unwrap(), function);
    }
    let found = enumerate(&space, bridge).unwrap();
    let all = [stream(0x4d0, 0), stream(0x4d1, 0)];
    for function in &found.functions {
        assert_eq!(bridge.streams(function).unwrap(), all);
        assert_eq!(function.spec(bridge, &found).unwrap().streams, all);
    }
    // The node's own device has them too: by that all of them are one group.
    assert_eq!(board.device(hosts[0].node).unwrap().streams, all);
}

#[test]
fn a_6_a_bridge_that_cannot_be_offered_says_why_and_takes_no_other_away() {
    let mut board = Builder::board();
    board.smmu(0x1000, 1, 1);
    host(&mut board, 0x4000_0000, "acme,pcie").cells("iommus", &[1, 5]).cells("bus-range", &[3, 2]).end();
    host(&mut board, 0x5000_0000, "acme,pcie").cells("iommus", &[1, 6]).cells("linux,pci-domain", &[0x1_0000]).end();
    host(&mut board, 0x6000_0000, "acme,pcie").cells("iommus", &[1, 7]).strings("status", &["disabled"]).end();
    host(&mut board, 0x7000_0000, "acme,pcie").cells("iommus", &[1, 8]).end();
    let hosts = read(&mut board);
    let error = |index: usize| hosts[index].host.clone().unwrap_err();
    let node = |path: &str, cause| NoPciHost::Node(DtError::Node { path: path.into(), cause });
    assert_eq!(error(0), node("/pcie@40000000", NodeFault::BusRange { first: 3, last: 2 }));
    assert_eq!(error(1), node("/pcie@50000000", NodeFault::Segment { segment: 0x1_0000 }));
    assert_eq!(error(2), NoPciHost::NotOffered(NotOffered::Disabled));
    assert_eq!(hosts[3].host.as_ref().unwrap().number, HostBridgeNumber(3));
    assert_eq!(error(0).to_string(), "/pcie@40000000: `bus-range` 0x3..=0x2 is no range of bus numbers");
}

/// The project's own boards, and those of the field if they are there.
#[test]
fn every_host_bridge_of_the_field_is_offered_or_says_why() {
    let own = files::OWN.map(|(name, blob)| (name.to_owned(), blob.to_vec()));
    for (name, blob) in own.into_iter().chain(files::real_boards("every_host_bridge_of_the_field")) {
        let Ok(board) = Board::read_lenient(&blob) else { continue };
        let hosts = board.pci_hosts().unwrap();
        let by_map = board.host_bridges().iter().filter(|bridge| bridge.is_pci).count();
        assert_eq!(hosts.iter().filter(|host| !host.shares_streams).count(), by_map, "{name}");
        let numbers: Vec<_> = hosts.iter().filter_map(|host| host.host.as_ref().ok()).map(|host| host.number).collect();
        assert!(numbers.is_sorted_by(|one, next| one < next), "{name}");
        for host in hosts {
            match host.host {
                Ok(bridge) => println!("{name}: {} is {:04x}, {:?}", host.path, bridge.segment.0, host.access),
                Err(reason) => println!("{name}: {}: {reason}", host.path),
            }
        }
    }
}
