//! Enumeration on fake buses: keys, aliases, groups, streams; and what is broken on purpose.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

use iommu_assign::assign::{IommuKey, Stream, StreamId, StreamMask};
use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
use iommu_assign::pci::{
    AcsControls, AliasKind, Bus, ConfigError, ConfigSpace, Enumeration, Function, FunctionKind, HostBridge,
    HostBridgeNumber, IsolationCause, KeyError, MapEntry, MapError, PciKey, PortType, Problem, Provider, RequesterId,
    RequesterIdMap, Sbdf, Segment, StreamsError, enumerate,
};

const SMMU: IommuKey = IommuKey::new(0x1500_0000);
const NIC: u32 = 0x02_0000;

fn at(text: &str) -> Sbdf {
    text.parse().unwrap()
}

fn host() -> HostBridge {
    let map = RequesterIdMap::new([MapEntry::new(0, Provider::Smmu(SMMU), 0, 0x10000)], RequesterIdMap::NO_MASK);
    HostBridge {
        number: HostBridgeNumber(1),
        segment: Segment(0),
        buses: Bus(0)..=Bus(0xff),
        map: map.unwrap(),
        passthrough: false,
    }
}

fn endpoint() -> FakeFunction {
    FakeFunction::endpoint(0x8086, 0x10d3, NIC).express(PortType::Endpoint)
}

fn bridge(kind: PortType, primary: u8, secondary: u8, subordinate: u8) -> FakeFunction {
    FakeFunction::bridge(0x1b36, 0x000c, primary, secondary, subordinate).express(kind)
}

/// A bridge with access control services on.
fn isolating(kind: PortType, primary: u8, secondary: u8, subordinate: u8) -> FakeFunction {
    bridge(kind, primary, secondary, subordinate).acs(AcsControls::all(), AcsControls::all())
}

fn found(functions: Vec<(&str, FakeFunction)>) -> Enumeration {
    let mut space = FakeConfigSpace::new();
    for (address, function) in functions {
        space.insert(at(address), function);
    }
    enumerate(&space, &host()).unwrap()
}

fn clean(functions: Vec<(&str, FakeFunction)>) -> Vec<Function> {
    let enumeration = found(functions);
    assert_eq!(enumeration.problems, []);
    enumeration.functions
}

fn get<'a>(functions: &'a [Function], address: &str) -> &'a Function {
    functions.iter().find(|function| function.sbdf == at(address)).unwrap()
}

fn group(functions: &[Function], address: &str) -> PciKey {
    get(functions, address).isolation.group
}

fn rids(function: &Function) -> Vec<u16> {
    function.requester_ids.iter().map(|alias| alias.rid.0).collect()
}

#[test]
fn a_tree_of_switches_is_listed_parents_first_with_its_identity() {
    let functions = clean(vec![
        ("00:00.0", FakeFunction::endpoint(0x1b36, 8, 0x06_0000)),
        ("00:01.0", isolating(PortType::RootPort, 0, 1, 5)),
        ("01:00.0", bridge(PortType::SwitchUpstream, 1, 2, 5)),
        ("02:00.0", isolating(PortType::SwitchDownstream, 2, 3, 3)),
        ("02:03.0", isolating(PortType::SwitchDownstream, 2, 4, 5)),
        ("03:00.0", endpoint()),
        ("04:00.0", endpoint()),
    ]);
    let keys: Vec<String> = functions.iter().map(|function| function.key.to_string()).collect();
    assert_eq!(
        keys,
        [
            "1/00.0",
            "1/01.0",
            "1/01.0/00.0",
            "1/01.0/00.0/00.0",
            "1/01.0/00.0/00.0/00.0",
            "1/01.0/00.0/03.0",
            "1/01.0/00.0/03.0/00.0"
        ]
    );
    let leaf = get(&functions, "04:00.0");
    assert_eq!(leaf.key.parent(), Some(get(&functions, "02:03.0").key));
    assert_eq!((leaf.vendor, leaf.device, leaf.class, leaf.kind), (0x8086, 0x10d3, NIC, FunctionKind::Endpoint));
    assert_eq!(get(&functions, "02:03.0").kind, FunctionKind::Bridge { secondary: Bus(4), subordinate: Bus(5) });
    assert!(functions.iter().all(|function| function.isolation.cause == IsolationCause::Apart));
    assert!(functions.iter().all(|function| function.isolation.group == function.key));
}

#[test]
fn c_18_renumbering_buses_changes_no_key() {
    let tree = |first: u8| {
        let below = format!("{first:02x}:00.0");
        let functions = vec![("00:01.0", bridge(PortType::RootPort, 0, first, first)), (below.as_str(), endpoint())];
        clean(functions).iter().map(|function| function.key).collect::<Vec<_>>()
    };
    assert_eq!(tree(1), tree(0x40));
}

#[test]
fn one_device_is_below_a_link_and_thirty_two_on_the_root_bus() {
    let functions = clean(vec![
        ("00:01.0", bridge(PortType::RootPort, 0, 1, 1)),
        ("01:00.0", endpoint()),
        ("01:1f.0", endpoint()),
        ("00:1f.0", endpoint()),
    ]);
    assert_eq!(functions.len(), 3);
}

#[test]
fn functions_are_looked_for_where_function_zero_says_so() {
    let functions = clean(vec![
        ("00:01.0", endpoint()),
        ("00:01.1", endpoint()),
        ("00:02.0", endpoint().multi_function()),
        ("00:02.7", endpoint()),
        ("00:03.1", endpoint()),
    ]);
    let found: Vec<String> = functions.iter().map(|function| function.sbdf.to_string()).collect();
    assert_eq!(found, ["0000:00:01.0", "0000:00:02.0", "0000:00:02.7"]);
}

#[test]
fn an_ari_port_forwards_to_256_functions() {
    let functions = |port: FakeFunction, first: FakeFunction| {
        clean(vec![("00:01.0", port), ("01:00.0", first), ("01:04.3", endpoint().ari())]).len()
    };
    let port = || bridge(PortType::RootPort, 0, 1, 1);
    assert_eq!(functions(port().ari_forwarding(), endpoint().ari()), 3);
    assert_eq!(functions(port().ari_forwarding(), endpoint()), 2);
    assert_eq!(functions(port(), endpoint().ari()), 2);
}

#[test]
fn bridges_to_pci_add_the_requester_ids_that_they_substitute() {
    let functions = clean(vec![
        ("00:01.0", isolating(PortType::RootPort, 0, 1, 3)),
        ("01:00.0", bridge(PortType::ExpressToPci, 1, 2, 3)),
        ("02:04.0", FakeFunction::endpoint(0x10ec, 0x8139, NIC)),
        ("02:05.0", FakeFunction::bridge(0x3388, 0x0021, 2, 3, 3)),
        ("03:09.0", FakeFunction::endpoint(0x1274, 0x5880, 0x04_0100)),
    ]);
    assert_eq!(rids(get(&functions, "01:00.0")), [0x100]);
    assert_eq!(rids(get(&functions, "02:04.0")), [0x220, 0x200]);
    let sound = get(&functions, "03:09.0");
    assert_eq!(rids(sound), [0x348, 0x228, 0x200]);
    assert_eq!(sound.requester_ids[0].kind, AliasKind::Own);
    assert_eq!(sound.requester_ids[2].kind, AliasKind::Bridge(get(&functions, "01:00.0").key));
    // All of it shares wires.
    let bus = group(&functions, "01:00.0");
    for address in ["02:04.0", "02:05.0", "03:09.0"] {
        assert_eq!(
            (group(&functions, address), get(&functions, address).isolation.cause),
            (bus, IsolationCause::Bridge)
        );
    }
    assert_ne!(group(&functions, "00:01.0"), bus);
}

#[test]
fn phantom_functions_are_requester_ids_too() {
    let functions = clean(vec![("00:02.0", endpoint().phantom_functions(2))]);
    assert_eq!(rids(&functions[0]), [0x10, 0x12, 0x14, 0x16]);
}

#[test]
fn i_11_virtual_functions_that_are_on_are_requester_ids_of_their_physical_function() {
    let with = |count, first, stride| {
        let port = isolating(PortType::RootPort, 0, 1, 2);
        let card = endpoint().sr_iov_on(8, count, first, stride);
        let functions = clean(vec![("00:01.0", port), ("01:00.0", card)]);
        let kinds: Vec<_> = functions[1].requester_ids.iter().skip(1).map(|alias| alias.kind).collect();
        assert!(kinds.iter().all(|kind| *kind == AliasKind::Virtual));
        rids(&functions[1])
    };
    assert_eq!(with(3, 1, 1), [0x100, 0x101, 0x102, 0x103]);
    assert_eq!(with(3, 0x80, 0x40), [0x100, 0x180, 0x1c0, 0x200], "the third is on the next bus");
    assert_eq!(with(0, 1, 1), [0x100]);
    // Hardware that contradicts itself: none is listed twice.
    assert_eq!(with(3, 8, 0), [0x100, 0x108]);
    // Carries are dropped (9.2.1.2): they may be below their physical function, and are another's past the last requester ID.
    assert_eq!(with(2, 0xfffe, 1), [0x100, 0xfe, 0xff]);
    assert_eq!(with(3, 0xfeff, 1), [0x100, 0xffff, 0, 1]);
    // Off they are no requester IDs: nobody may switch them on.
    let functions = clean(vec![("00:02.0", endpoint().sr_iov(8, 1, 1))]);
    assert_eq!(rids(&functions[0]), [0x10]);
}

#[test]
fn i_11_a_virtual_function_that_folds_onto_another_function_is_seen_in_the_streams() {
    // The host bridge hands on one bit of the device number: 01:02.0 looks like 01:00.0 does.
    let map = RequesterIdMap::new([MapEntry::new(0x100, Provider::Smmu(SMMU), 0, 0x10)], 0x10f).unwrap();
    let host = HostBridge { map, ..host() };
    let port = || isolating(PortType::RootPort, 0, 1, 1);
    let several = |function: FakeFunction| function.multi_function().acs(AcsControls::all(), AcsControls::all());
    let functions = clean(vec![
        ("00:01.0", port()),
        ("01:00.0", several(endpoint())),
        ("01:00.1", several(endpoint().sr_iov_on(1, 1, 0x0f, 1))),
    ]);
    let [one, other] = ["01:00.0", "01:00.1"].map(|address| host.streams(get(&functions, address)).unwrap());
    assert!(other.iter().any(|stream| one.contains(stream)), "{one:?} {other:?}");
}

#[test]
fn a_6_a_virtual_function_that_is_on_and_unmapped_is_refused() {
    let map = RequesterIdMap::new([MapEntry::new(0x10, Provider::Smmu(SMMU), 0, 2)], RequesterIdMap::NO_MASK).unwrap();
    let host = HostBridge { map, ..host() };
    let functions = clean(vec![("00:02.0", endpoint().sr_iov_on(4, 2, 1, 1))]);
    let unmapped = MapError::Unmapped { rid: RequesterId(0x12) };
    let refused = StreamsError::Map { function: at("00:02.0"), kind: AliasKind::Virtual, cause: unmapped };
    assert_eq!(host.streams(&functions[0]), Err(refused));
}

#[test]
fn without_access_control_all_below_a_port_is_one_group_with_it() {
    let functions = clean(vec![
        ("00:01.0", bridge(PortType::RootPort, 0, 1, 4)),
        ("01:00.0", bridge(PortType::SwitchUpstream, 1, 2, 4)),
        ("02:00.0", isolating(PortType::SwitchDownstream, 2, 3, 3)),
        ("02:01.0", isolating(PortType::SwitchDownstream, 2, 4, 4)),
        ("03:00.0", endpoint()),
        ("04:00.0", endpoint()),
        ("00:02.0", isolating(PortType::RootPort, 0, 5, 5)),
        ("05:00.0", endpoint()),
    ]);
    let port = get(&functions, "00:01.0").key;
    for address in ["00:01.0", "01:00.0", "02:00.0", "03:00.0", "04:00.0"] {
        assert_eq!(group(&functions, address), port, "{address}");
    }
    assert_eq!(group(&functions, "05:00.0"), get(&functions, "05:00.0").key);
}

#[test]
fn one_port_of_a_switch_without_access_control_exposes_the_others() {
    let functions = clean(vec![
        ("00:01.0", isolating(PortType::RootPort, 0, 1, 4)),
        ("01:00.0", bridge(PortType::SwitchUpstream, 1, 2, 4)),
        ("02:00.0", isolating(PortType::SwitchDownstream, 2, 3, 3)),
        ("02:01.0", bridge(PortType::SwitchDownstream, 2, 4, 4)),
        ("03:00.0", endpoint()),
        ("04:00.0", endpoint()),
    ]);
    assert_eq!(group(&functions, "03:00.0"), group(&functions, "04:00.0"));
    assert_eq!(group(&functions, "02:00.0"), group(&functions, "04:00.0"));
    assert_eq!(get(&functions, "02:01.0").isolation.cause, IsolationCause::Switch);
    assert_ne!(group(&functions, "01:00.0"), group(&functions, "04:00.0"));
}

#[test]
fn a_switch_port_must_offer_all_services_and_a_root_port_what_it_needs() {
    let some = AcsControls::SOURCE_VALIDATION | AcsControls::TRANSLATION_BLOCKING;
    let partly = |kind, primary, secondary, last| bridge(kind, primary, secondary, last).acs(some, some);
    let functions = clean(vec![
        ("00:01.0", partly(PortType::RootPort, 0, 1, 4)),
        ("01:00.0", bridge(PortType::SwitchUpstream, 1, 2, 4)),
        ("02:00.0", partly(PortType::SwitchDownstream, 2, 3, 3)),
        ("03:00.0", endpoint()),
    ]);
    assert_eq!(get(&functions, "01:00.0").isolation.cause, IsolationCause::Apart);
    assert_eq!(get(&functions, "02:00.0").isolation.cause, IsolationCause::Apart);
    assert_eq!(group(&functions, "03:00.0"), get(&functions, "02:00.0").key);
}

#[test]
fn the_functions_of_a_device_are_one_group_unless_each_has_access_control() {
    let acs = || endpoint().acs(AcsControls::all(), AcsControls::all());
    let functions = clean(vec![
        ("00:02.0", acs().multi_function()),
        ("00:02.1", acs()),
        ("00:03.0", acs().multi_function()),
        ("00:03.1", endpoint()),
        ("00:04.0", endpoint()),
    ]);
    assert_ne!(group(&functions, "00:02.0"), group(&functions, "00:02.1"));
    assert_eq!(group(&functions, "00:03.0"), group(&functions, "00:03.1"));
    assert_eq!(get(&functions, "00:03.0").isolation.cause, IsolationCause::Device);
    assert_eq!(get(&functions, "00:04.0").isolation.cause, IsolationCause::Apart);
}

#[test]
fn below_root_ports_of_one_device_the_weakest_decides() {
    let functions = clean(vec![
        ("00:1c.0", isolating(PortType::RootPort, 0, 1, 1).multi_function()),
        ("00:1c.1", bridge(PortType::RootPort, 0, 2, 2)),
        ("01:00.0", endpoint()),
        ("02:00.0", endpoint()),
    ]);
    let device = get(&functions, "00:1c.0").key;
    assert!(functions.iter().all(|function| function.isolation.group == device));
}

#[test]
fn a_broken_function_of_a_device_keeps_its_siblings_together() {
    let acs = || endpoint().acs(AcsControls::all(), AcsControls::all());
    let enumeration = found(vec![("00:02.0", acs().multi_function()), ("00:02.1", acs().broken(0x40, 0x4010))]);
    assert_eq!(enumeration.functions.len(), 1);
    assert_eq!(enumeration.functions[0].isolation.cause, IsolationCause::Device);
}

#[test]
fn a_6_requester_ids_become_streams_or_a_reason() {
    let functions = clean(vec![("00:02.0", endpoint().phantom_functions(2)), ("00:03.0", endpoint())]);
    let (phantom, plain) = (&functions[0], &functions[1]);
    let with = |entries: &[MapEntry]| {
        let map = RequesterIdMap::new(entries.iter().copied(), RequesterIdMap::NO_MASK).unwrap();
        HostBridge { map, ..host() }
    };
    let ids = |streams: Vec<Stream>| streams.iter().map(|stream| stream.id().value()).collect::<Vec<_>>();

    assert_eq!(ids(host().streams(phantom).unwrap()), [0x10, 0x12, 0x14, 0x16]);
    let all_one = RequesterIdMap::new([MapEntry::new(0, Provider::Smmu(SMMU), 7, 1)], 0).unwrap();
    let all_one = HostBridge { map: all_one, ..host() };
    assert_eq!(all_one.streams(phantom).unwrap(), [Stream::new(SMMU, StreamId::new(7), StreamMask::NONE)]);

    let narrow = with(&[MapEntry::new(0x10, Provider::Smmu(SMMU), 0x100, 1)]);
    assert_eq!(ids(narrow.streams(phantom).unwrap()), [0x100], "phantom functions that are off need no entry");
    let mut space = FakeConfigSpace::new();
    let enabled = endpoint().phantom_functions(2);
    let control = enabled.last_capability() + 8;
    space.insert(at("00:02.0"), enabled);
    space.write(at("00:02.0"), control, 1 << 9);
    let enabled = enumerate(&space, &host()).unwrap().functions;
    let cause = MapError::Unmapped { rid: RequesterId(0x12) };
    let refused = StreamsError::Map { function: at("00:02.0"), kind: AliasKind::Phantom, cause };
    assert_eq!(narrow.streams(&enabled[0]), Err(refused), "those that are on do");
    let cause = MapError::Unmapped { rid: RequesterId(0x18) };
    assert_eq!(narrow.streams(plain), Err(StreamsError::Map { function: at("00:03.0"), kind: AliasKind::Own, cause }));
    let foreign = with(&[MapEntry::new(0, Provider::Foreign, 0, 0x100)]);
    let cause = MapError::Foreign { rid: RequesterId(0x18) };
    assert_eq!(foreign.streams(plain), Err(StreamsError::Map { function: at("00:03.0"), kind: AliasKind::Own, cause }));
}

#[test]
fn a_6_a_looping_list_names_its_function_and_stops_nothing_else() {
    let looping = endpoint().broken(0x40, 0x0001_4010);
    let enumeration = found(vec![("00:02.0", looping), ("00:03.0", endpoint())]);
    let error = ConfigError::CapabilityLoop { function: at("00:02.0"), offset: 0x40 };
    assert_eq!(enumeration.problems, [Problem::Config(error)]);
    assert_eq!(enumeration.functions.len(), 1);
    assert_eq!(error.to_string(), "the capability list of 0000:00:02.0 loops at 0x40");

    let extended = endpoint().ari().broken(0x100, 0x1000_0000 | 0xe);
    let error = ConfigError::CapabilityLoop { function: at("00:02.0"), offset: 0x100 };
    assert_eq!(found(vec![("00:02.0", extended)]).problems, [Problem::Config(error)]);
}

#[test]
fn a_6_pointers_into_the_header_and_unknown_layouts_are_named() {
    let function = at("00:02.0");
    let cases = [
        (endpoint().broken(0x34, 0x10), ConfigError::CapabilityPointer { function, offset: 0x10 }),
        (endpoint().broken(0x40, u32::MAX), ConfigError::CapabilityPointer { function, offset: 0x40 }),
        (endpoint().ari().broken(0x100, 0x0800_000e), ConfigError::CapabilityPointer { function, offset: 0x80 }),
        (endpoint().broken(0x0c, 0x0003_0000), ConfigError::HeaderLayout { function, layout: 3 }),
    ];
    for (broken, error) in cases {
        assert_eq!(found(vec![("00:02.0", broken)]).problems, [Problem::Config(error)]);
    }
}

#[test]
fn a_function_that_is_not_ready_is_listed_as_that_and_keeps_its_siblings_together() {
    let acs = || endpoint().acs(AcsControls::all(), AcsControls::all());
    let enumeration = found(vec![("00:02.0", acs().multi_function()), ("00:02.1", acs().broken(0, 0xffff_0001))]);
    let error = ConfigError::NotReady { function: at("00:02.1") };
    assert_eq!(enumeration.problems, [Problem::Config(error)]);
    assert_eq!(enumeration.functions[0].isolation.cause, IsolationCause::Device);
}

#[test]
fn bridges_that_claim_buses_of_others_are_refused() {
    let enumeration = found(vec![
        ("00:01.0", bridge(PortType::RootPort, 0, 1, 4)),
        ("00:02.0", bridge(PortType::RootPort, 0, 4, 6)),
        ("00:03.0", bridge(PortType::RootPort, 0, 0, 0)),
        ("00:04.0", bridge(PortType::RootPort, 0, 9, 8)),
        ("01:00.0", bridge(PortType::SwitchUpstream, 1, 0, 9)),
        ("04:00.0", endpoint()),
    ]);
    let problem = |address, secondary, subordinate| Problem::Buses {
        bridge: at(address),
        secondary: Bus(secondary),
        subordinate: Bus(subordinate),
    };
    assert_eq!(enumeration.problems, [problem("00:02.0", 4, 6), problem("00:04.0", 9, 8)]);
    assert_eq!(enumeration.functions.len(), 5);
}

#[test]
fn a_bridge_that_leads_to_itself_ends() {
    let enumeration = found(vec![
        ("00:01.0", bridge(PortType::RootPort, 0, 1, 255)),
        ("01:00.0", bridge(PortType::SwitchUpstream, 1, 1, 255)),
    ]);
    assert!(matches!(enumeration.problems[..], [Problem::Buses { secondary: Bus(1), .. }]));
    assert_eq!(enumeration.functions.len(), 2);
}

#[test]
fn a_chain_deeper_than_a_key_is_a_problem_not_a_panic() {
    let mut space = FakeConfigSpace::new();
    for bus in 0..20u8 {
        let address = format!("{bus:02x}:00.0");
        space.insert(at(&address), FakeFunction::bridge(0x1b36, 1, bus, bus + 1, 20));
    }
    let enumeration = enumerate(&space, &host()).unwrap();
    assert_eq!(enumeration.functions.len(), PciKey::MAX_DEPTH);
    assert!(matches!(enumeration.problems[..], [Problem::Depth(KeyError::TooDeep { .. })]));
}

#[test]
fn only_the_buses_of_the_host_bridge_are_looked_at() {
    let mut space = FakeConfigSpace::new();
    space.insert(at("0002:10:00.0"), endpoint());
    space.insert(at("0002:00:00.0"), endpoint());
    space.insert(at("0000:10:00.0"), endpoint());
    let host = HostBridge { segment: Segment(2), buses: Bus(0x10)..=Bus(0x1f), ..host() };
    let functions = enumerate(&space, &host).unwrap().functions;
    assert_eq!(functions.iter().map(|function| function.sbdf).collect::<Vec<_>>(), [at("0002:10:00.0")]);
    let empty = HostBridge { buses: Bus(9)..=Bus(8), ..host };
    assert_eq!(enumerate(&space, &empty).unwrap(), Enumeration::default());
}

#[test]
fn a_6_a_function_that_vanishes_midway_is_never_half_believed() {
    let make = || {
        let mut space = FakeConfigSpace::new();
        space.insert(at("00:01.0"), isolating(PortType::RootPort, 0, 1, 1));
        space.insert(at("01:00.0"), endpoint().multi_function().ats().pri().pasid().sr_iov(8, 1, 1));
        space.insert(at("01:00.1"), endpoint());
        space
    };
    let whole = make();
    let before = enumerate(&whole, &host()).unwrap();
    for accesses in 0..whole.accesses() {
        let space = make();
        space.vanish_after(accesses);
        for function in enumerate(&space, &host()).unwrap().functions {
            let known = before.functions.iter().find(|known| known.sbdf == function.sbdf).unwrap();
            assert_eq!((known.key, known.capabilities), (function.key, function.capabilities), "after {accesses}");
        }
    }
}
