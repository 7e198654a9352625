//! Functions that send as somebody else, and ports and functions that are kept apart though no capability says so: the table
//! `pci::KNOWN_QUIRKS`, row by row, and what the integrator can put in its place.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod common;

use std::fmt::Write as _;

use common::{Bench, SMMU};
use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
use iommu_assign::pci::{
    AcsControls, AliasKind, Bus, DeviceFunction, Enumeration, Function, FunctionQuirk, HostBridge, HostBridgeNumber,
    IsolationCause, KNOWN_QUIRKS, MapEntry, MapError, PortType, Provider, QuirkEffect, RequesterId, RequesterIdMap,
    Segment, StreamsError, enumerate, enumerate_with,
};
use machine::Reached;

const SATA: u32 = 0x01_0601;
const NIC: u32 = 0x02_0000;

/// A host bridge whose map sends these requester IDs to the SMMU, each as a stream of the same number.
fn host(first: u32, length: u32) -> HostBridge {
    let entry = MapEntry::new(first, Provider::Smmu(SMMU), first, length);
    HostBridge {
        number: HostBridgeNumber(0),
        segment: Segment(0),
        buses: Bus(0)..=Bus(0xff),
        map: RequesterIdMap::new([entry], RequesterIdMap::NO_MASK).unwrap(),
        passthrough: true,
    }
}

fn space(functions: Vec<(&str, FakeFunction)>) -> FakeConfigSpace {
    let mut space = FakeConfigSpace::new();
    for (address, function) in functions {
        space.insert(address.parse().unwrap(), function);
    }
    space
}

fn found(functions: Vec<(&str, FakeFunction)>) -> Enumeration {
    let enumeration = enumerate(&space(functions), &host(0, 0x10000)).unwrap();
    assert_eq!(enumeration.problems, []);
    enumeration
}

fn get<'a>(found: &'a Enumeration, address: &str) -> &'a Function {
    found.functions.iter().find(|function| function.sbdf == address.parse().unwrap()).unwrap()
}

/// What it is known to send as, beside its own ID.
fn aliases(function: &Function) -> Vec<u16> {
    let quirks = function.requester_ids.iter().filter(|alias| alias.kind == AliasKind::Quirk);
    quirks.map(|alias| alias.rid.0).collect()
}

fn port() -> FakeFunction {
    FakeFunction::bridge(0x1b36, 0x000c, 0, 2, 2).express(PortType::RootPort)
}

/// A SATA controller whose DMA carries function 1, which is not there.
fn marvell() -> FakeFunction {
    FakeFunction::endpoint(0x1b4b, 0x9172, SATA).express(PortType::LegacyEndpoint)
}

fn ethernet(vendor: u16, device: u16) -> FakeFunction {
    FakeFunction::endpoint(vendor, device, NIC).express(PortType::Endpoint)
}

#[test]
fn i11_a_controller_that_sends_as_function_1_has_that_stream_too() {
    let mut bench = Bench::v2();
    let found = found(vec![("00:01.0", port()), ("02:00.0", marvell())]);
    let controller = get(&found, "02:00.0");
    assert_eq!(aliases(controller), [0x201]);
    let host = host(0, 0x10000);
    bench.service.add(get(&found, "00:01.0").spec(&host, &found).unwrap()).unwrap();
    let device = bench.service.add(controller.spec(&host, &found).unwrap()).unwrap();
    let guest = bench.guest("guest");
    bench.oracle.allow(device.label(), &[(0x200, 0), (0x201, 0)], &[guest.backing]);
    bench.oracle.allow(&"0000:00:01.0".into(), &[(0x8, 0)], &[guest.backing]);
    assert_eq!((bench.dma(0x200), bench.dma(0x201)), (Reached::Fault, Reached::Fault));
    // The port, which keeps nothing apart, has to go along.
    bench.service.assign_group(&device, &guest.domain).unwrap();
    let arrived = Reached::Memory(guest.backing);
    assert_eq!((bench.dma(0x200), bench.dma(0x201)), (arrived, arrived), "its DMA is that of function 1");
    assert_eq!(bench.service.deassign_group(&device).map(drop), Ok(()));
    assert_eq!((bench.dma(0x200), bench.dma(0x201)), (Reached::Fault, Reached::Fault));
    bench.audit();
}

#[test]
fn i11_a_function_whose_id_another_sends_with_is_of_its_group() {
    let bench = Bench::v2();
    // Some of these controllers have an IDE function 1. Access control services do not help: the ID is the same.
    let apart = |function: FakeFunction| function.acs(AcsControls::all(), AcsControls::all());
    let ide = FakeFunction::endpoint(0x1b4b, 0x91a4, 0x01_018f).express(PortType::LegacyEndpoint);
    let port = apart(FakeFunction::bridge(0x1b36, 0xc, 0, 2, 2).express(PortType::RootPort));
    let found = found(vec![("00:01.0", port), ("02:00.0", apart(marvell()).multi_function()), ("02:00.1", apart(ide))]);
    let host = host(0, 0x10000);
    for function in &found.functions {
        bench.service.add(function.spec(&host, &found).unwrap()).unwrap();
    }
    let [_, sata, ide] = &bench.service.devices().collect::<Vec<_>>()[..] else { panic!("not three devices") };
    assert_eq!(sata.group, ide.group);
}

#[test]
fn a6_an_alias_that_no_smmu_sees_is_an_error_and_never_dropped() {
    let host = host(0x200, 1);
    let found = enumerate(&space(vec![("00:01.0", port()), ("02:00.0", marvell())]), &host).unwrap();
    let controller = get(&found, "02:00.0");
    let cause = MapError::Unmapped { rid: RequesterId(0x201) };
    let refused = StreamsError::Map { function: controller.sbdf, kind: AliasKind::Quirk, cause };
    assert_eq!(host.streams(controller), Err(refused));
    assert_eq!(controller.spec(&host, &found).unwrap_err(), refused);
}

#[test]
fn tables_can_be_added_and_replaced() {
    const CARD: FunctionQuirk = FunctionQuirk {
        vendor: 0x1234,
        devices: &[(0x10, 0x1f)],
        subsystem: None,
        effect: QuirkEffect::SendsAs(&[DeviceFunction(0x1f)]),
        part: "a card of one's own",
        source: "its errata",
    };
    let space = space(vec![("00:01.0", port()), ("02:00.0", marvell()), ("00:02.0", ethernet(0x1234, 0x15))]);
    let with = |tables: &[&[FunctionQuirk]]| {
        let found = enumerate_with(&space, &host(0, 0x10000), tables).unwrap();
        (aliases(get(&found, "02:00.0")), aliases(get(&found, "00:02.0")))
    };
    assert_eq!(with(&[KNOWN_QUIRKS]), (vec![0x201], vec![]));
    assert_eq!(with(&[KNOWN_QUIRKS, &[CARD]]), (vec![0x201], vec![0x1f]));
    assert_eq!(with(&[&[CARD]]), (vec![], vec![0x1f]));
    assert_eq!(with(&[]), (vec![], vec![]));
}

#[test]
fn every_way_to_send_as_somebody_else() {
    let several = |function: FakeFunction| {
        let first = FakeFunction::endpoint(0x1180, 0x0001, NIC).express(PortType::Endpoint).multi_function();
        aliases(get(&found(vec![("00:03.0", first), ("00:03.2", function)]), "00:03.2"))
    };
    assert_eq!(several(FakeFunction::endpoint(0x1180, 0xe476, NIC)), [0x18], "function 0 of the same device");
    assert_eq!(several(FakeFunction::endpoint(0x8086, 0x2260, 0x06_8000)), [0x80, 0x88, 0x93]);
    let all = several(FakeFunction::endpoint(0x8086, 0x2954, 0x06_8000));
    assert_eq!(all.len(), 32 * 5 - 1, "functions 0 to 4 of all devices, but for its own ID");
    assert!(all.iter().all(|rid| rid & 7 <= 4 && *rid != 0x1a));
    // Of these only two cards are meant.
    let adaptec = || FakeFunction::endpoint(0x9005, 0x0285, 0x01_0400);
    assert_eq!(several(adaptec().subsystem(0x9005, 0x02bb)), [0x08]);
    assert_eq!(several(adaptec().subsystem(0x9005, 0x02bc)), [0x08]);
    assert_eq!(several(adaptec().subsystem(0x9005, 0x02bd)), []);
}

#[test]
fn ports_isolate_that_are_known_to() {
    let below = |port: FakeFunction| {
        let found = found(vec![("00:01.0", port), ("02:00.0", ethernet(0x8086, 0x10d3))]);
        get(&found, "02:00.0").isolation.cause
    };
    let of = |vendor, device| FakeFunction::bridge(vendor, device, 0, 2, 2).express(PortType::RootPort);
    assert_eq!(below(of(0x1957, 0x8d80)), IsolationCause::Apart);
    assert_eq!(below(of(0x177d, 0xa002)), IsolationCause::Apart);
    assert_eq!(below(of(0x1957, 0x8d84)), IsolationCause::Bridge, "another part of the vendor");
    // What the capability says counts where there is one.
    let off = of(0x1957, 0x8d80).acs(AcsControls::all(), AcsControls::empty());
    assert_eq!(below(off), IsolationCause::Bridge);
    // The row is about ports: a bridge to PCI with such an ID shares its wires.
    let bridge = FakeFunction::bridge(0x177d, 0xa002, 0, 2, 2).express(PortType::ExpressToPci);
    assert_eq!(below(bridge), IsolationCause::Bridge);
}

#[test]
fn a_switch_isolates_where_each_of_its_ports_is_known_to() {
    const PORTS: &[FunctionQuirk] = &[FunctionQuirk {
        vendor: 0x1234,
        devices: &[(1, 1)],
        subsystem: None,
        effect: QuirkEffect::PortIsolates,
        part: "a switch",
        source: "its data sheet",
    }];
    let apart = |second: u16| {
        let down = |device, bus| FakeFunction::bridge(0x1234, device, 2, bus, bus).express(PortType::SwitchDownstream);
        let root = FakeFunction::bridge(0x1957, 0x8d80, 0, 1, 4).express(PortType::RootPort);
        let up = FakeFunction::bridge(0x1234, 9, 1, 2, 4).express(PortType::SwitchUpstream);
        let space = space(vec![
            ("00:01.0", root),
            ("01:00.0", up),
            ("02:00.0", down(1, 3)),
            ("02:01.0", down(second, 4)),
            ("03:00.0", ethernet(0x8086, 0x10d3)),
            ("04:00.0", ethernet(0x8086, 0x10d3)),
        ]);
        let found = enumerate_with(&space, &host(0, 0x10000), &[KNOWN_QUIRKS, PORTS]).unwrap();
        get(&found, "03:00.0").isolation.group != get(&found, "04:00.0").isolation.group
    };
    assert!(apart(1));
    assert!(!apart(2), "the port that is not known exposes what is below the other");
}

#[test]
fn functions_are_apart_that_are_known_to_be() {
    let causes = |second: FakeFunction| {
        let first = ethernet(0x8086, 0x1521).multi_function();
        let found = found(vec![("00:02.0", first), ("00:02.1", second)]);
        ["00:02.0", "00:02.1"].map(|address| get(&found, address).isolation.cause)
    };
    assert_eq!(causes(ethernet(0x8086, 0x1521)), [IsolationCause::Apart; 2]);
    assert_eq!(causes(ethernet(0x8086, 0x10d3)), [IsolationCause::Device; 2], "one that is not known reaches all");
}

/// What `docs/pci-quirks.md` must say.
fn document() -> String {
    let mut text = String::from("| vendor | devices | part | what is different | source |\n|---|---|---|---|---|\n");
    for row in KNOWN_QUIRKS {
        let ranges = row.devices.iter().map(|(first, last)| match first == last {
            true => format!("{first:04x}"),
            false => format!("{first:04x}-{last:04x}"),
        });
        let mut devices = ranges.collect::<Vec<_>>().join(", ");
        if let Some((vendor, id)) = row.subsystem {
            write!(devices, " (subsystem {vendor:04x}:{id:04x})").unwrap();
        }
        let what = match row.effect {
            QuirkEffect::SendsAsFunction(function) => format!("sends as function {function}"),
            QuirkEffect::SendsAs(places) => {
                format!("sends as {}", places.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
            }
            QuirkEffect::SendsAsAnyDevice(last) => format!("sends as functions 0 to {last} of any device"),
            QuirkEffect::PortIsolates => "isolates what is below".into(),
            QuirkEffect::FunctionIsApart => "is apart from other functions".into(),
            other => panic!("no words for {other:?}"),
        };
        writeln!(text, "| {:04x} | {devices} | {} | {what} | {} |", row.vendor, row.part, row.source).unwrap();
    }
    text
}

#[test]
fn the_document_has_every_row_and_each_row_a_source() {
    let expected = document();
    println!("{expected}");
    assert!(
        include_str!("../docs/pci-quirks.md").contains(&expected),
        "docs/pci-quirks.md must say what is printed above"
    );
    for row in KNOWN_QUIRKS {
        assert!(!row.source.is_empty() && row.devices.iter().all(|(first, last)| first <= last), "{row:?}");
    }
}
