//! Virtual functions: switched on as devices of their own, refused, undone, kept, and switched off again.

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

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::NOT_RESET;
use common::slots::{DELAY, Slots, at, ids, nic, now, pass, port};
use iommu_assign::assign::{
    Cause, Device, DeviceKey, DeviceSpec, DeviceState, Left, Quarantine, Stream, StreamId, StreamMask,
};
use iommu_assign::pci::control::{Progress, Quiesce, Reset, ResetMethod};
use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
use iommu_assign::pci::sriov::{PhysicalFunction, SriovError, SwitchError, SwitchLeft, VirtualFunction};
use iommu_assign::pci::{
    AcsControls, Bus, Capabilities, ConfigError, ConfigSpace, Function, FunctionHooks, FunctionKind, FunctionQuirk,
    IsolationCause, KNOWN_QUIRKS, PortType, QuirkEffect, Sbdf,
};
use iommu_assign::sync::Micros;
use machine::Reached;
use proptest::prelude::*;

/// A virtual function with what a NIC's has: FLR, ATS (on, as broken hardware would have it) and, maybe, ACS.
fn virtual_nic(_: u16) -> FakeFunction {
    FakeFunction::virtual_function(0x02_0000).express(PortType::Endpoint).ats()
}

fn with_acs(number: u16) -> FakeFunction {
    virtual_nic(number).acs(AcsControls::all(), AcsControls::empty())
}

/// A NIC with eight virtual functions at places 0x10, 0x12, ... behind its own.
fn physical(first_offset: u16, stride: u16, make: impl Fn(u16) -> FakeFunction) -> FakeFunction {
    nic()
        .ari()
        .sr_iov(8, first_offset, stride)
        .virtual_functions(0x1520, make)
        .virtual_bar(0, 0x8_0000_0000, 0x4000)
        .virtual_bar(3, 0x9000_0000, 0x1000)
}

fn ari_port(secondary: u8, subordinate: u8) -> FakeFunction {
    port(secondary, subordinate).ari_forwarding()
}

const PF: &str = "01:00.0";
const ALL: [&str; 2] = ["00:01.0", PF];

/// The usual machine: a port with two buses, and the NIC registered.
fn machine_with(physical: FakeFunction) -> (Slots, Device) {
    let mut slots = Slots::new(vec![("00:01.0", ari_port(1, 2)), (PF, physical)]);
    let device = slots.add(PF);
    (slots, device)
}

fn usual() -> (Slots, Device) {
    machine_with(physical(0x10, 2, with_acs))
}

fn plain(_: &Function, spec: DeviceSpec) -> DeviceSpec {
    spec
}

fn switch_on(slots: &Slots, count: u16) -> Result<Vec<VirtualFunction>, SwitchError> {
    switch_on_with(slots, count, &mut plain)
}

fn switch_on_with(
    slots: &Slots,
    count: u16,
    offer: &mut dyn FnMut(&Function, DeviceSpec) -> DeviceSpec,
) -> Result<Vec<VirtualFunction>, SwitchError> {
    let found = slots.found();
    let key = slots.key(PF);
    let physical = PhysicalFunction::new(&*slots.space, &slots.host, &found, key).unwrap();
    physical.switch_on(&slots.bench.service, count, DELAY, offer)
}

fn switch_off(slots: &Slots) -> Result<(), SwitchError> {
    let found = slots.found();
    let physical = PhysicalFunction::new(&*slots.space, &slots.host, &found, slots.key(PF)).unwrap();
    physical.switch_off(&slots.bench.service, DELAY)
}

/// Switching on is refused, and nothing has changed: no register, no registration.
fn refused(slots: &Slots, count: u16) -> SriovError {
    let (registers, registered, before) = (slots.registers(&ALL), slots.registered(), now());
    let error = switch_on(slots, count).unwrap_err();
    assert_eq!((error.function, error.left), (at(PF), SwitchLeft::Unchanged), "{error}");
    assert!(slots.registers(&ALL) == registers, "{error}: a register changed");
    assert_eq!(slots.registered(), registered);
    assert_eq!(now(), before, "nothing to wait for");
    error.cause
}

#[test]
fn c_5_virtual_functions_are_devices_behind_their_physical_function() {
    let (mut slots, device) = usual();
    let seen = Cell::new(0);
    let on = switch_on_with(&slots, 3, &mut |function, spec| {
        assert_eq!(function.kind, FunctionKind::Virtual);
        seen.set(seen.get() + 1);
        spec
    });
    let on = on.unwrap();
    assert_eq!(seen.get(), 3);
    assert_eq!(slots.registered(), ["0000:00:01.0", "0000:01:00.0", "0000:01:02.0", "0000:01:02.2", "0000:01:02.4"]);
    for (number, one) in (0..).zip(&on) {
        let function = &one.function;
        assert_eq!(one.device.key(), DeviceKey::from(slots.key(PF).virtual_function(number).unwrap()));
        assert_eq!(one.device.parent(), Some(device.key()));
        assert_eq!(one.device.depth(), 2);
        assert_eq!(ids(&one.device), [0x110 + 2 * u32::from(number)]);
        assert_eq!((function.vendor, function.device, function.class), (0x8086, 0x1520, 0x02_0000));
        assert!(one.device.passthrough(), "as the host bridge is marked");
        assert!(function.capabilities.express.unwrap().function_level_reset);
    }
    assert_eq!(slots.space.function(at(PF)).unwrap().early_accesses(), 0);
    assert_eq!(now(), Micros::from_millis(100));

    let (one, two) = (slots.bench.guest("one"), slots.bench.guest("two"));
    slots.bench.assign(&on[0].device, &one).unwrap();
    slots.bench.assign(&on[1].device, &two).unwrap();
    assert_eq!(slots.bench.dma(0x110), Reached::Memory(one.backing));
    assert_eq!(slots.bench.dma(0x112), Reached::Memory(two.backing));
    assert_eq!(slots.bench.dma(0x114), Reached::Fault, "registered, and nobody's");
    assert_eq!(slots.bench.dma(0x116), Reached::Fault, "not on");
    slots.bench.audit();
}

#[test]
fn c_18_virtual_functions_go_on_where_the_bus_of_their_physical_function_ends() {
    let (slots, _) = machine_with(physical(0x80, 0x40, with_acs));
    let on = switch_on(&slots, 5).unwrap();
    let places: Vec<String> = on.iter().map(|one| one.function.sbdf.to_string()).collect();
    assert_eq!(places, ["0000:01:10.0", "0000:01:18.0", "0000:02:00.0", "0000:02:08.0", "0000:02:10.0"]);
    assert_eq!(on.iter().flat_map(|one| ids(&one.device)).collect::<Vec<_>>(), [0x180, 0x1c0, 0x200, 0x240, 0x280]);
    let key = on[4].function.key;
    assert_eq!((key.to_string().as_str(), key.parent()), ("1/01.0/00.0/vf4", Some(slots.key(PF))));
    let found = slots.found();
    let physical = PhysicalFunction::new(&*slots.space, &slots.host, &found, slots.key(PF)).unwrap();
    let listed = physical.virtual_functions().unwrap();
    assert_eq!(listed, on.iter().map(|one| one.function.clone()).collect::<Vec<_>>(), "as they are listed");
    slots.bench.audit();
}

#[test]
fn base_addresses_are_named_one_function_behind_the_other() {
    let (slots, _) = usual();
    let on = switch_on(&slots, 4).unwrap();
    let named = |one: &VirtualFunction| {
        one.base_addresses().map(|bar| (bar.index, bar.address, bar.size, bar.is_prefetchable)).collect::<Vec<_>>()
    };
    assert_eq!(named(&on[0]), [(0, 0x8_0000_0000, 0x4000, true), (3, 0x9000_0000, 0x1000, false)]);
    assert_eq!(named(&on[3]), [(0, 0x8_0000_c000, 0x4000, true), (3, 0x9000_3000, 0x1000, false)]);
    assert!(on[0].bars[0].unwrap().is_64_bit && !on[0].bars[3].unwrap().is_64_bit);
}

#[test]
fn s_7_ats_is_off_at_a_virtual_function_before_the_service_has_it() {
    let (slots, _) = usual();
    let on = switch_on_with(&slots, 2, &mut |function, spec| {
        let config = function.config(&*slots.space).unwrap();
        assert!(!Capabilities::read(&config).unwrap().ats.unwrap().enabled, "before it is added");
        spec
    });
    assert_eq!(on.unwrap().len(), 2);

    let stuck = |n| {
        if n == 1 { FakeFunction::virtual_function(0).express(PortType::Endpoint).stuck_ats() } else { with_acs(n) }
    };
    let (slots, _) = machine_with(physical(0x10, 2, stuck));
    let before = slots.registers(&ALL);
    let error = switch_on(&slots, 2).unwrap_err();
    assert_eq!(
        error.to_string(),
        "virtual functions of 0000:01:00.0: 0000:01:02.2 does not turn ATS off; they are off again"
    );
    assert!(slots.registers(&ALL) == before);
    assert_eq!(slots.registered(), ["0000:00:01.0", "0000:01:00.0"]);
    slots.bench.audit();
}

/// Those that an earlier owner left on are their physical function's owner's, and have ATS of their own.
#[test]
fn s_7_ats_is_off_at_virtual_functions_that_an_earlier_owner_left_on() {
    pass(Micros::from_millis(100));
    let left_on = |make: fn(u16) -> FakeFunction| {
        let card = nic().ari().sr_iov_on(4, 2, 0x10, 2).virtual_functions(0x1520, make);
        Slots::new(vec![("00:01.0", ari_port(1, 2)), (PF, card)])
    };
    let slots = left_on(virtual_nic);
    let found = slots.found();
    let function = found.function(slots.key(PF)).unwrap();
    assert_eq!(function.requester_ids.len(), 3);
    FunctionHooks::new(slots.space.clone(), function, &found, DELAY).unwrap();
    let physical = PhysicalFunction::new(&*slots.space, &slots.host, &found, slots.key(PF)).unwrap();
    let on = physical.virtual_functions().unwrap();
    assert!(on.iter().all(|one| !one.capabilities.ats.unwrap().enabled));

    let slots = left_on(|_| FakeFunction::virtual_function(0).express(PortType::Endpoint).stuck_ats());
    let found = slots.found();
    let function = found.function(slots.key(PF)).unwrap();
    let refused = FunctionHooks::new(slots.space.clone(), function, &found, DELAY).unwrap_err();
    assert_eq!(refused.to_string(), "0000:01:02.0 does not turn ATS off");
}

#[test]
fn s_7_pri_and_pasid_of_the_physical_function_are_off_for_its_virtual_functions() {
    let (slots, _) = machine_with(physical(0x10, 2, with_acs).pri().pasid());
    let pasid = slots.found().function(slots.key(PF)).unwrap().capabilities.pasid.unwrap();
    slots.space.write(at(PF), pasid.control() & !3, 0xffff_0000);
    switch_on(&slots, 1).unwrap();
    let capabilities = slots.found().function(slots.key(PF)).unwrap().capabilities;
    assert!(!capabilities.pri.unwrap().enabled && !capabilities.pasid.unwrap().enabled);
}

#[test]
fn i_11_virtual_functions_are_apart_by_their_access_control_or_their_physical_functions() {
    let cause = |physical: FakeFunction| {
        let (slots, device) = machine_with(physical);
        let on = switch_on(&slots, 2).unwrap();
        let groups: Vec<DeviceKey> =
            on.iter().map(|one| slots.bench.service.find(one.device.key()).unwrap().group).collect();
        let with_physical = groups.contains(&slots.bench.service.find(device.key()).unwrap().group);
        (on[0].function.isolation.cause, groups[0] == groups[1], with_physical)
    };
    let apart = (IsolationCause::Apart, false, false);
    let together = (IsolationCause::Device, true, true);
    let all = AcsControls::all();
    assert_eq!(cause(physical(0x10, 2, with_acs)), apart, "their own, which are switched on");
    assert_eq!(cause(physical(0x10, 2, virtual_nic).acs(all, all)), apart, "their physical function's");
    assert_eq!(cause(physical(0x10, 2, virtual_nic)), together, "none");
    assert_eq!(cause(physical(0x10, 2, virtual_nic).acs(all, AcsControls::empty())), together, "none that is on");
    let stuck = |n| virtual_nic(n).stuck_acs(AcsControls::empty());
    assert_eq!(cause(physical(0x10, 2, stuck)), apart, "no requests to peers at all");
}

/// Virtual functions that keep to themselves are not kept from their physical function, where that does not.
#[test]
fn i_11_a_physical_function_does_not_reach_virtual_functions_that_are_apart_from_it() {
    let all = AcsControls::all();
    let (slots, device) = machine_with(physical(0x10, 2, with_acs).acs(all, AcsControls::empty()));
    let acs = slots.found().function(slots.key(PF)).unwrap().capabilities.acs.unwrap();
    let group = |slots: &Slots, device: &Device| slots.bench.service.find(device.key()).unwrap().group;
    let on = switch_on(&slots, 2).unwrap();
    assert_ne!(group(&slots, &on[0].device), group(&slots, &device));
    let enabled = slots.space.read(at(PF), acs.control() & !3) >> 16;
    assert_eq!(enabled & 0x1d, 0x1d, "its own services are on when they are");

    // One that cannot turn them on has the same owner as all of them.
    let stuck = physical(0x10, 2, with_acs).extended(0x0d, 1, &[0xff, 0, 0, 0]);
    let (slots, device) = machine_with(stuck);
    let on = switch_on(&slots, 2).unwrap();
    assert!(on.iter().all(|one| group(&slots, &one.device) == group(&slots, &device)));
    assert_eq!(on[0].function.isolation.cause, IsolationCause::Device);
}

#[test]
fn i_11_quirks_of_the_physical_function_are_its_virtual_functions_too() {
    const MINE: &[FunctionQuirk] = &[
        FunctionQuirk {
            vendor: 0x8086,
            devices: &[(0x10d3, 0x10d3)],
            subsystem: None,
            effect: QuirkEffect::FunctionIsApart,
            part: "this NIC",
            source: "this test",
        },
        FunctionQuirk {
            vendor: 0x8086,
            devices: &[(0x1520, 0x1520)],
            subsystem: None,
            effect: QuirkEffect::SendsAsFunction(1),
            part: "its virtual functions",
            source: "this test",
        },
    ];
    let (slots, _) = machine_with(physical(0x10, 8, virtual_nic));
    let found = slots.found();
    let physical = PhysicalFunction::new(&*slots.space, &slots.host, &found, slots.key(PF)).unwrap();
    let tables = [KNOWN_QUIRKS, MINE];
    let physical = physical.with_quirks(&tables);
    let on = physical.switch_on(&slots.bench.service, 2, DELAY, &mut plain).unwrap();
    assert_eq!(on[0].function.isolation.cause, IsolationCause::Apart);
    assert_eq!(ids(&on[1].device), [0x118, 0x119], "it sends as function 1 as well");
}

#[test]
fn i_11_a_virtual_function_that_reaches_another_physical_function_is_refused() {
    let all = AcsControls::all();
    // Both physical functions are apart by their own services; this virtual function has some, which do not help.
    let weak = |n| virtual_nic(n).acs(AcsControls::REQUEST_REDIRECT, AcsControls::empty()).broken(0x100, 0);
    let first = physical(0x10, 2, weak).acs(all, all).multi_function();
    let slots = {
        let mut slots =
            Slots::new(vec![("00:01.0", ari_port(1, 2)), (PF, first), ("01:00.1", nic().ari().acs(all, all))]);
        slots.add(PF);
        slots.add("01:00.1");
        slots
    };
    // Without its capability, what stands for the virtual function is what stands for its physical function.
    assert!(switch_on(&slots, 1).is_ok());
    switch_off(&slots).unwrap();

    let stuck = |n| virtual_nic(n).extended(0x0d, 1, &[0xff, 0, 0, 0]);
    let mut slots = Slots::new(vec![
        ("00:01.0", ari_port(1, 2)),
        (PF, physical(0x10, 2, stuck).acs(all, all).multi_function()),
        ("01:00.1", nic().ari().acs(all, all)),
    ]);
    slots.add(PF);
    slots.add("01:00.1");
    let error = switch_on(&slots, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "virtual functions of 0000:01:00.0: 0000:01:02.0 has no access control services and could reach 0000:01:00.1, \
         which is registered as apart; they are off again"
    );
    slots.bench.audit();
}

#[test]
fn a_6_what_bus_numbers_do_not_reach_is_refused() {
    // The port's buses end.
    let mut slots = Slots::new(vec![("00:01.0", ari_port(1, 1)), (PF, physical(0x80, 0x40, with_acs))]);
    slots.add(PF);
    let told = refused(&slots, 3).to_string();
    assert_eq!(told, "virtual function 2 would be at 0000:02:00.0, and buses above it end at 01");
    assert_eq!(switch_on(&slots, 2).unwrap().len(), 2, "two are in reach");

    // The bus is another bridge's. (A device of two functions, of which one is a bridge.)
    let bridge = FakeFunction::bridge(0x1b36, 1, 1, 2, 2).express(PortType::SwitchUpstream);
    let mut slots = Slots::new(vec![
        ("00:01.0", ari_port(1, 2)),
        (PF, physical(0x80, 0x40, with_acs).multi_function()),
        ("01:00.1", bridge),
    ]);
    slots.add(PF);
    let told = refused(&slots, 3).to_string();
    assert_eq!(told, "virtual function 2 would be at 0000:02:00.0, on a bus that bridge 0000:01:00.1 forwards to");

    // The port forwards to device 0 only.
    let mut slots = Slots::new(vec![("00:01.0", port(1, 2)), (PF, physical(0x10, 2, with_acs))]);
    slots.add(PF);
    let told = refused(&slots, 1).to_string();
    assert_eq!(
        told,
        "virtual function 0 would be at 0000:01:02.0, and port 0000:00:01.0 forwards to device 0 only: it needs ARI"
    );

    // There are no more requester IDs.
    let mut slots = Slots::new(vec![("00:02.0", physical(0xff00, 0x80, with_acs))]);
    slots.add("00:02.0");
    let found = slots.found();
    let key = found.functions[0].key;
    let physical = PhysicalFunction::new(&*slots.space, &slots.host, &found, key).unwrap();
    let error = physical.switch_on(&slots.bench.service, 3, DELAY, &mut plain).unwrap_err();
    assert_eq!(error.cause, SriovError::PastEnd { number: 2 });
}

#[test]
fn a_6_a_place_that_another_function_has_is_refused() {
    let mut slots = Slots::new(vec![
        ("00:01.0", ari_port(1, 2)),
        (PF, physical(1, 1, with_acs).multi_function()),
        ("01:00.2", nic().ari()),
    ]);
    slots.add(PF);
    let told = refused(&slots, 2).to_string();
    assert_eq!(told, "virtual function 1 would be at 0000:01:00.2, where another function is");
    let (slots, _) = machine_with(physical(0, 2, with_acs));
    assert_eq!(refused(&slots, 1), SriovError::Taken { number: 0, place: at(PF) });
    let (slots, _) = machine_with(physical(2, 0, with_acs));
    assert_eq!(refused(&slots, 2), SriovError::Stride);
}

#[test]
fn a_6_what_the_map_does_not_have_is_refused() {
    let (mut slots, _) = usual();
    slots.host = common::slots::host(0x114);
    let told = refused(&slots, 3).to_string();
    assert_eq!(told, "0000:01:02.4 cannot be isolated: requester ID 01:02.4 is in no entry of the host bridge's map");
    assert_eq!(switch_on(&slots, 2).unwrap().len(), 2, "two are in the map");
}

#[test]
fn a_2_what_cannot_be_switched_on_is_refused() {
    let (slots, _) = usual();
    for asked in [0, 9, u16::MAX] {
        assert_eq!(refused(&slots, asked), SriovError::Count { asked, total: 8 });
    }
    let found = slots.found();
    let of = |key| PhysicalFunction::new(&*slots.space, &slots.host, &found, key).map(|_| ());
    assert_eq!(of(slots.key("00:01.0")), Err(SriovError::NotPhysical));
    assert_eq!(of(slots.key(PF).child(iommu_assign::pci::DeviceFunction(0)).unwrap()), Err(SriovError::NotPhysical));

    let physical_with = |bytes| {
        let physical = PhysicalFunction::new(&*slots.space, &slots.host, &found, slots.key(PF)).unwrap();
        let physical = physical.with_pages_of(bytes);
        physical.switch_on(&slots.bench.service, 1, DELAY, &mut plain)
    };
    for bytes in [0, 0x800, 0x3000, 0x4000, 1 << 63] {
        assert_eq!(physical_with(bytes).unwrap_err().cause, SriovError::PageSize { bytes });
    }
    assert_eq!(physical_with(0x1_0000).unwrap().len(), 1);
    assert_eq!(slots.found().function(slots.key(PF)).unwrap().capabilities.sr_iov.unwrap().page_size, 0x10);
    // On already; and registered, though they are off: an earlier switch could not take them back.
    let error = switch_on(&slots, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "virtual functions of 0000:01:00.0: 1 are on already: they must be switched off first; nothing changed"
    );
    slots.space.plug_in(at(PF));
    let error = switch_on(&slots, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "virtual functions of 0000:01:00.0: 0000:01:02.0 is registered still: it must be removed first; nothing changed"
    );

    let slots = Slots::new(vec![("00:01.0", ari_port(1, 2)), (PF, physical(0x10, 2, with_acs))]);
    assert_eq!(refused(&slots, 1), SriovError::NotRegistered);
    let (slots, _) = machine_with(physical(0x10, 2, with_acs).virtual_bar(3, 0xffff_e000, 0x1000));
    assert_eq!(refused(&slots, 3), SriovError::Address { index: 3, address: 0xffff_e000, count: 3 });
    assert_eq!(switch_on(&slots, 2).unwrap().len(), 2);
    let (slots, _) = machine_with(physical(0x10, 2, with_acs).virtual_bar(3, 0, 0x1000));
    assert_eq!(refused(&slots, 1), SriovError::Address { index: 3, address: 0, count: 1 });
    let (slots, _) = machine_with(physical(0x10, 2, with_acs).stuck_sr_iov());
    assert_eq!(switch_on(&slots, 1).unwrap_err().cause, SriovError::Stuck);
}

#[test]
fn a_6_another_card_in_its_place_is_not_the_physical_function() {
    let mut slots = Slots::new(vec![("00:01.0", ari_port(1, 2)), (PF, physical(0x10, 2, with_acs))]);
    slots.add(PF);
    let (found, key) = (slots.found(), slots.key(PF));
    let other = FakeFunction::endpoint(0x15b3, 0x1017, 0x02_0000).express(PortType::Endpoint).ari().sr_iov(8, 1, 1);
    Arc::get_mut(&mut slots.space).unwrap().insert(at(PF), other);
    let physical = PhysicalFunction::new(&*slots.space, &slots.host, &found, key).unwrap();
    let writes = slots.space.writes();
    let error = physical.switch_on(&slots.bench.service, 1, DELAY, &mut plain).unwrap_err();
    assert_eq!(error.cause, SriovError::Config(ConfigError::NotPresent { function: at(PF) }));
    assert_eq!((error.left, slots.space.writes()), (SwitchLeft::Unchanged, writes));
}

#[test]
fn the_device_is_told_whether_it_has_all_functions_of_its_bus() {
    let with_ari = |port: FakeFunction| {
        let card = physical(0x100, 1, with_acs).with_ari_layout(0x10, 2);
        let mut slots = Slots::new(vec![("00:01.0", port), (PF, card)]);
        slots.add(PF);
        let on = switch_on(&slots, 2).unwrap();
        let places = [on[0].function.sbdf.to_string(), on[1].function.sbdf.to_string()];
        switch_off(&slots).unwrap();
        places
    };
    assert_eq!(with_ari(ari_port(1, 2)), ["0000:01:02.0", "0000:01:02.2"]);
    assert_eq!(with_ari(port(1, 2)), ["0000:02:00.0", "0000:02:00.1"]);
}

#[test]
fn a_1_all_are_undone_when_one_cannot_be_added() {
    // The key of the third is taken by another source's device, after it was looked for.
    let (slots, _) = usual();
    let (registers, third) = (slots.registers(&ALL), slots.key(PF).virtual_function(2).unwrap());
    let stream = Stream::new(common::SMMU, StreamId::new(0x700), StreamMask::NONE);
    let squatter = || DeviceSpec::new(third.into(), "squatter".into(), vec![stream]);
    let mut registered = slots.registered();
    registered.push("squatter".to_owned());
    let error = switch_on_with(&slots, 4, &mut |function, spec| {
        if function.key.virtual_number() == Some(1) {
            slots.bench.service.add(squatter()).unwrap();
        }
        spec
    });
    let error = error.unwrap_err();
    assert_eq!(
        error.to_string(),
        "virtual functions of 0000:01:00.0: add 0000:01:02.4: squatter is registered under the same key already; nothing \
         changed; they are off again"
    );
    assert_eq!(error.left, SwitchLeft::Off);
    assert!(slots.registers(&ALL) == registers);
    assert_eq!(slots.registered(), registered);
    assert_eq!(now(), Micros::from_millis(1100), "a second to shut down");
    slots.bench.audit();
    let error = switch_on(&slots, 4).unwrap_err();
    assert_eq!(
        error.to_string(),
        "virtual functions of 0000:01:00.0: squatter is registered still: it must be removed first; nothing changed"
    );
    slots.bench.service.remove(DeviceKey::from(third)).unwrap();
    assert_eq!(switch_on(&slots, 4).unwrap().len(), 4);
    assert_eq!(slots.space.function(at(PF)).unwrap().early_accesses(), 0);
}

#[test]
fn a_1_without_power_no_virtual_function_is_left() {
    let functions = vec![("00:01.0", ari_port(1, 2)), (PF, physical(0x10, 2, with_acs))];
    let (mut slots, supply) = Slots::with_supply(functions);
    slots.add(PF);
    let registered = slots.registered();
    let mut left = 2;
    let error = switch_on_with(&slots, 4, &mut |_, spec| {
        left -= 1;
        supply.0.store(left < 0, Ordering::SeqCst);
        spec
    });
    let error = error.unwrap_err();
    assert!(matches!(error.cause, SriovError::Service(_)), "{error}");
    // Those before it have streams in the SMMU, which cannot be taken back without power.
    assert_eq!(error.left, SwitchLeft::On);
    supply.0.store(false, Ordering::SeqCst);
    switch_off(&slots).unwrap();
    assert_eq!(slots.registered(), registered);
    assert_eq!(switch_on(&slots, 4).unwrap().len(), 4);
    switch_off(&slots).unwrap();
    slots.bench.audit();
}

/// A configuration space in which the physical function is not written to when it has just read as all ones: something else
/// may be in its place by then.
struct Wary<'a> {
    inner: &'a FakeConfigSpace,
    doubted: Cell<bool>,
}

impl ConfigSpace for Wary<'_> {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        let value = self.inner.read(function, offset);
        if function == at(PF) {
            self.doubted.set(value == u32::MAX);
        }
        value
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        assert!(function != at(PF) || !self.doubted.get(), "written at {offset:#x} after it read as all ones");
        self.inner.write(function, offset, value);
    }
}

#[test]
fn s_7_a_physical_function_that_has_gone_is_not_written_to_while_its_virtual_functions_are_switched_on() {
    for step in 0..200 {
        let (slots, _) = usual();
        let (space, found) = (Wary { inner: &slots.space, doubted: Cell::new(false) }, slots.found());
        let physical = PhysicalFunction::new(&space, &slots.host, &found, slots.key(PF)).unwrap();
        slots.space.vanish_after(step);
        assert!(physical.switch_on(&slots.bench.service, 3, DELAY, &mut plain).is_err(), "step {step}");
    }
}

#[test]
fn a_6_a_card_that_is_pulled_at_any_step_leaves_nothing_registered() {
    let key = usual().0.key(PF);
    let switch = |slots: &Slots, vanishes: Option<u32>| {
        let found = slots.found();
        let physical = PhysicalFunction::new(&*slots.space, &slots.host, &found, key).unwrap();
        let before = slots.space.accesses();
        vanishes.inspect(|step| slots.space.vanish_after(*step));
        let result = physical.switch_on(&slots.bench.service, 3, DELAY, &mut plain);
        (result, slots.space.accesses() - before)
    };
    let (total, mut step) = (switch(&usual().0, None).1, 0);
    assert!(total > 200);
    while step < total {
        let (slots, _) = usual();
        let registered = slots.registered();
        match switch(&slots, Some(step)).0 {
            Err(error) => {
                let is_gone = matches!(
                    error.cause,
                    SriovError::Config(ConfigError::NotPresent { .. } | ConfigError::CapabilityPointer { .. })
                        | SriovError::Control(_)
                );
                assert!(is_gone, "step {step}: {error}");
                assert!(matches!(error.left, SwitchLeft::Unchanged | SwitchLeft::Gone), "step {step}: {error}");
                assert_eq!(slots.registered(), registered, "step {step}");
            }
            // The last looks do not ask whether it is still there.
            Ok(on) => assert!(step + 2 >= total, "step {step} of {total}: {} are on", on.len()),
        }
        slots.bench.audit();
        step += if step + 20 > total { 1 } else { 3 };
    }
}

#[test]
fn c_5_the_physical_function_stays_with_its_owner_while_virtual_functions_are_registered() {
    let (mut slots, device) = usual();
    let (one, two) = (slots.bench.guest("one"), slots.bench.guest("two"));
    slots.bench.assign(&device, &one).unwrap();
    let on = switch_on(&slots, 3).unwrap();
    slots.bench.assign(&on[1].device, &two).unwrap();
    let kept = Cause::HasChildren { children: 3, first: "0000:01:02.0".into() };
    let refusals = [
        slots.bench.service.deassign(&device).unwrap_err(),
        slots.bench.service.deassign_group(&device).unwrap_err(),
        slots.bench.service.reassign(&device, &two.domain).unwrap_err(),
        slots.bench.service.reassign_group(&device, &two.domain).unwrap_err(),
        slots.bench.service.remove(&device).unwrap_err(),
    ];
    for error in refusals {
        assert_eq!((error.cause.clone(), error.left), (kept.clone(), Left::Unchanged), "{error}");
    }
    assert_eq!(slots.bench.state(&device), DeviceState::Assigned(one.domain.id()));
    assert_eq!(slots.bench.dma(0x100), Reached::Memory(one.backing));
    // A storm ends it all the same, without a reset; then it waits for its virtual functions.
    slots.bench.service.quarantine(&device, Quarantine::Faults).unwrap();
    slots.bench.oracle.allow(device.label(), &[(0x100, 0)], &[]);
    assert_eq!(slots.bench.state(&device), NOT_RESET);
    assert_eq!(slots.bench.service.assign(&device, &one.domain).unwrap_err().cause, kept);
    assert_eq!(slots.bench.dma(0x112), Reached::Memory(two.backing), "nobody took the virtual function");
    drop(slots.bench.deassign(&on[1].device).unwrap());
    switch_off(&slots).unwrap();
    slots.bench.assign(&device, &one).unwrap();
    slots.bench.audit();
}

#[test]
fn c_5_bridges_do_not_keep_what_stands_on_its_own() {
    // Only what would end with its parent keeps it: a function below a bridge does not.
    let (mut slots, _) = usual();
    let guest = slots.bench.guest("one");
    let bridge = slots.bench.service.find(slots.key("00:01.0").into()).unwrap().device;
    slots.bench.assign(&bridge, &guest).unwrap();
    drop(slots.bench.deassign(&bridge).unwrap());
}

#[test]
fn c_8_switching_off_removes_them_first_and_takes_none_from_its_owner() {
    let (mut slots, _) = usual();
    let guest = slots.bench.guest("one");
    let registers = slots.registers(&ALL);
    let on = switch_on(&slots, 3).unwrap();
    slots.bench.assign(&on[2].device, &guest).unwrap();
    let error = switch_off(&slots).unwrap_err();
    assert_eq!(
        error.to_string(),
        "virtual functions of 0000:01:00.0: 0000:01:02.4 is assigned to one: it must be deassigned first; nothing changed"
    );
    assert_eq!(slots.registered().len(), 5);
    assert_eq!(slots.bench.dma(0x114), Reached::Memory(guest.backing));
    drop(slots.bench.deassign(&on[2].device).unwrap());
    switch_off(&slots).unwrap();
    assert_eq!(slots.registered(), ["0000:00:01.0", "0000:01:00.0"]);
    assert!(
        on.iter().all(|one| slots.bench.service.assign(&one.device, &guest.domain).unwrap_err().cause == Cause::Gone)
    );
    assert_eq!(slots.bench.dma(0x110), Reached::Fault);
    // Off is off, and again is legal.
    switch_off(&slots).unwrap();
    let changed = registers.iter().zip(slots.registers(&ALL)).filter(|(before, after)| *before != after).count();
    assert!(changed <= 2, "NumVFs and ARI Capable Hierarchy stay as they were written");
    assert_eq!(slots.space.function(at(PF)).unwrap().early_accesses(), 0);
    slots.bench.audit();
}

#[test]
fn a_3_on_and_off_leaks_nothing() {
    let (slots, _) = usual();
    let usage = |slots: &Slots| {
        let mut lines = Vec::new();
        slots.bench.service.usage(common::SMMU, &mut |record| lines.push(format!("{record:?}"))).unwrap();
        lines
    };
    let before = (slots.registered(), usage(&slots));
    for count in (1..=8).cycle().take(40) {
        assert_eq!(switch_on(&slots, count).unwrap().len(), usize::from(count));
        switch_off(&slots).unwrap();
        assert_eq!((slots.registered(), usage(&slots)), before);
    }
    assert_eq!(slots.space.function(at(PF)).unwrap().early_accesses(), 0);
    slots.bench.audit();
}

#[test]
fn a_virtual_function_is_made_quiet_and_reset_like_any_other() {
    let slow = |n| with_acs(n).slow_reset(2);
    let (slots, _) = machine_with(physical(0x10, 2, slow));
    let on = switch_on(&slots, 2).unwrap();
    let function = &on[1].function;
    let config = function.config(&*slots.space).unwrap();
    assert_eq!(config.ids(), (0x8086, 0x1520), "though it reads all ones");
    slots.space.write(function.sbdf, 4, 0x0007);
    let fake = || slots.space.function(at(PF)).unwrap().virtual_function_at(1).unwrap();
    assert_eq!(fake().peek(4) & 0xffff, 0x0004, "bus mastering is all that it has");
    let mut quiesce = Quiesce::begin(&config, &function.capabilities, 3).unwrap();
    assert_eq!(quiesce.step(&config), Ok(Progress::Done));
    assert_eq!(fake().peek(4) & 0xffff, 0);
    let acs = function.capabilities.acs.unwrap();
    assert!(!acs.enabled.is_empty());
    let mut reset = Reset::begin(&config, &function.capabilities, 3).unwrap();
    let steps = [reset.step(&*slots.space), reset.step(&*slots.space), reset.step(&*slots.space)];
    assert_eq!(steps, [Ok(Progress::Waiting), Ok(Progress::Waiting), Ok(Progress::Done)]);
    assert_eq!(Capabilities::read(&config).unwrap().acs.unwrap().enabled, acs.enabled, "it is apart as before");
    switch_off(&slots).unwrap();
    assert_eq!(function.config(&*slots.space).err(), Some(ConfigError::NotPresent { function: function.sbdf }));
}

#[test]
fn i_14_a_virtual_function_is_reset_between_two_guests_and_its_physical_function_is_not() {
    let (mut slots, _) = usual();
    let (space, found) = (slots.space.clone(), slots.found());
    let mut kept = Vec::new();
    let on = switch_on_with(&slots, 2, &mut |function, spec| {
        let hooks = Arc::new(FunctionHooks::new(space.clone(), function, &found, DELAY).unwrap());
        kept.push(hooks.clone());
        DeviceSpec { hooks, ..spec }
    });
    let on = on.unwrap();
    let (one, two) = (slots.bench.guest("one"), slots.bench.guest("two"));
    let place = on[0].function.sbdf;
    slots.bench.assign(&on[0].device, &one).unwrap();
    slots.space.write(place, 4, 0x0004);
    slots.bench.reassign(&on[0].device, &two).unwrap();
    assert_eq!([kept[0].last_reset(), kept[1].last_reset()], [Some(ResetMethod::FunctionLevel), None]);
    assert_eq!(slots.space.read(place, 4) & 4, 0, "no bus mastering for the next owner");
    assert!(on[1].function.config(&*slots.space).is_ok(), "the others stay on");
    assert_eq!(slots.bench.dma(0x110), Reached::Memory(two.backing));
    slots.bench.audit();
}

/// The lowest physical function says for all of its device how virtual functions are numbered. Its reset would take that back, and
/// others' virtual functions would send by other requester IDs than they are known by.
#[test]
fn i_11_a_reset_that_would_renumber_others_virtual_functions_is_refused() {
    let all = AcsControls::all();
    let lowest = nic().ari().acs(all, all).sr_iov(4, 0x80, 1).multi_function();
    let mut slots = Slots::new(vec![
        ("00:01.0", ari_port(1, 2)),
        (PF, lowest),
        ("01:00.1", physical(0x10, 2, with_acs).acs(all, all)),
    ]);
    slots.add("00:01.0");
    let found = slots.found();
    let lowest = found.function(slots.key(PF)).unwrap();
    let hooks = Arc::new(FunctionHooks::new(slots.space.clone(), lowest, &found, DELAY).unwrap());
    let spec = DeviceSpec { hooks, ..lowest.spec(&slots.host, &found).unwrap() };
    let device = slots.bench.service.add(spec).unwrap();
    slots.add("01:00.1");
    let physical = PhysicalFunction::new(&*slots.space, &slots.host, &found, slots.key("01:00.1")).unwrap();
    let guests = ["one", "two"].map(|name| slots.bench.guest(name));
    slots.bench.assign(&device, &guests[0]).unwrap();
    physical.switch_on(&slots.bench.service, 2, DELAY, &mut plain).unwrap();
    let control = lowest.capabilities.sr_iov.unwrap().control();
    let is_set = |slots: &Slots| slots.space.read(at(PF), control) & 1 << 4 != 0;
    assert!(is_set(&slots), "the device has its bus to itself");
    for refused in [slots.bench.deassign(&device).map(drop), slots.bench.assign(&device, &guests[1])] {
        let error = refused.unwrap_err().to_string();
        assert!(error.contains("its reset would renumber other virtual functions"), "{error}");
        assert!(is_set(&slots));
    }
    physical.switch_off(&slots.bench.service, DELAY).unwrap();
    slots.bench.assign(&device, &guests[1]).unwrap();
}

/// A physical function whose virtual functions are numbered otherwise once they are on: another one of its device was reset.
struct Renumbers<'a> {
    inner: &'a FakeConfigSpace,
    capability: u16,
}

impl ConfigSpace for Renumbers<'_> {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        let value = self.inner.read(function, offset);
        let is_layout = function == at(PF) && offset == self.capability + 0x14;
        if is_layout && self.inner.read(function, self.capability + 8) & 1 != 0 { value + 1 } else { value }
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        self.inner.write(function, offset, value);
    }
}

#[test]
fn c_2_virtual_functions_that_are_numbered_otherwise_meanwhile_are_switched_off() {
    let (slots, _) = usual();
    let (found, key) = (slots.found(), slots.key(PF));
    let capability = found.function(key).unwrap().capabilities.sr_iov.unwrap().offset;
    let space = Renumbers { inner: &slots.space, capability };
    let physical = PhysicalFunction::new(&space, &slots.host, &found, key).unwrap();
    let error = physical.switch_on(&slots.bench.service, 2, DELAY, &mut plain).unwrap_err();
    assert_eq!((error.cause, error.left), (SriovError::Reset, SwitchLeft::Off));
    assert_eq!(slots.registered(), ["0000:00:01.0", "0000:01:00.0"]);
}

#[test]
fn c_2_an_operation_on_the_physical_function_is_waited_for() {
    let (mut slots, device) = usual();
    let guest = slots.bench.guest("one");
    // A reservation has the claim of its group for as long as it stands.
    let reservation = slots.bench.service.reserve(&device, &guest.domain).unwrap();
    let found = slots.found();
    let physical = PhysicalFunction::new(&*slots.space, &slots.host, &found, slots.key(PF)).unwrap();
    let error = physical.switch_on(&slots.bench.service, 2, DELAY, &mut plain).unwrap_err();
    assert!(now() > Micros::from_millis(1000), "it was tried for a while");
    let SriovError::Service(cause) = &error.cause else { panic!("{error}") };
    assert!(matches!(cause.cause, Cause::Busy { .. }), "{error}");
    assert_eq!(error.left, SwitchLeft::Off);
    reservation.abandon().unwrap();
    assert_eq!(switch_on(&slots, 2).unwrap().len(), 2);
}

#[test]
fn c_2_a_reset_of_the_physical_function_before_the_first_one_is_registered_is_noticed() {
    for count in [1, 3] {
        let mut slots = Slots::new(vec![("00:01.0", ari_port(1, 2)), (PF, physical(0x10, 2, with_acs))]);
        let (port, found) = (slots.add("00:01.0"), slots.found());
        let function = found.function(slots.key(PF)).unwrap();
        let hooks = FunctionHooks::new(slots.space.clone(), function, &found, DELAY).unwrap();
        let spec = function.spec(&slots.host, &found).unwrap();
        let device = slots.bench.service.add(DeviceSpec { hooks: Arc::new(hooks), ..spec }).unwrap();
        let guest = slots.bench.guest("guest");
        slots.bench.assign(&device, &guest).unwrap();
        slots.bench.oracle.allow(device.label(), &[(0x100, 0)], &[guest.backing]);
        // Another CPU takes the physical function from its guest, which resets it, just before the add.
        let mut taken = false;
        let error = switch_on_with(&slots, count, &mut |_, spec| {
            if !std::mem::replace(&mut taken, true) {
                drop(slots.bench.service.deassign(&device).unwrap());
            }
            spec
        });
        let error = error.unwrap_err();
        let says = "virtual functions of 0000:01:00.0: it was reset meanwhile, by another operation: try again; they are off again";
        assert_eq!(error.to_string(), says);
        assert_eq!(slots.registered(), [port.label().to_string(), device.label().to_string()]);
        assert_eq!(switch_on(&slots, count).unwrap().len(), usize::from(count));
        slots.bench.audit();
    }
}

/// A configuration space whose physical function another CPU resets at an access.
struct ResetAt<'a> {
    inner: &'a dyn ConfigSpace,
    left: Cell<u32>,
    reset: &'a dyn Fn(),
}

impl ResetAt<'_> {
    fn count(&self) {
        if self.left.get() == 1 {
            (self.reset)();
        }
        self.left.set(self.left.get().saturating_sub(1));
    }
}

impl ConfigSpace for ResetAt<'_> {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        self.count();
        self.inner.read(function, offset)
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        self.count();
        self.inner.write(function, offset, value);
    }
}

#[test]
fn c_2_a_reset_at_any_access_before_the_first_one_is_registered_is_named() {
    let offered_after = Cell::new(u32::MAX);
    let mut lost = 0;
    for access in 1.. {
        if access > offered_after.get() {
            break;
        }
        let (slots, _) = usual();
        let (registered, found, key) = (slots.registered(), slots.found(), slots.key(PF));
        let reset = || slots.space.plug_in(at(PF));
        let before = slots.space.accesses();
        let space = ResetAt { inner: &*slots.space, left: Cell::new(access), reset: &reset };
        let physical = PhysicalFunction::new(&space, &slots.host, &found, key).unwrap();
        let on = physical.switch_on(&slots.bench.service, 2, DELAY, &mut |_, spec| {
            offered_after.set(offered_after.get().min(slots.space.accesses() - before));
            spec
        });
        match on {
            Ok(_) => assert_eq!(physical.virtual_functions().unwrap().len(), 2, "access {access}"),
            Err(error) => {
                assert_eq!(error.cause, SriovError::Reset, "access {access}");
                assert!(matches!(error.left, SwitchLeft::Unchanged | SwitchLeft::Off), "access {access}");
                assert_eq!(slots.registered(), registered, "access {access}");
                lost += 1;
            }
        }
        slots.bench.audit();
    }
    assert!(lost > 20);
}

/// What an operator reads is in the document, word for word.
#[test]
fn every_message_is_in_the_document() {
    let document = include_str!("../docs/pci.md");
    let (first, place) = ("0000:01:02.0", at("02:00.0"));
    let every = [
        SriovError::NotPhysical,
        SriovError::Count { asked: 9, total: 8 },
        SriovError::AlreadyOn { count: 3 },
        SriovError::Registered { first: first.into() },
        SriovError::NotRegistered,
        SriovError::Assigned { device: first.into(), domain: "guest A".into() },
        SriovError::PageSize { bytes: 0x4000 },
        SriovError::Address { index: 0, address: 0, count: 8 },
        SriovError::Stride,
        SriovError::PastEnd { number: 5 },
        SriovError::Buses { number: 5, place, last: Bus(1) },
        SriovError::BusTaken { number: 5, place, bridge: at("01:00.1") },
        SriovError::NeedsAri { number: 0, place: at(first), port: at("00:01.0") },
        SriovError::Taken { number: 1, place: at("01:00.2") },
        SriovError::NotApart { function: at(first), peer: at("01:00.1") },
        SriovError::Stuck,
        SriovError::Reset,
        SriovError::OutOfMemory,
    ];
    for cause in every {
        let name = format!("{cause:?}");
        let row = format!("| `{}` | `{cause}` |", name.split([' ', '{', '(']).next().unwrap());
        assert!(document.contains(&row), "docs/pci.md must have {row}");
    }
    for left in [SwitchLeft::Unchanged, SwitchLeft::Off, SwitchLeft::On, SwitchLeft::Gone] {
        assert!(document.contains(&format!("`{left}`")), "docs/pci.md must have {left}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the capability and the virtual functions answer, and wherever they vanish: a failed switch leaves nothing
    /// registered, a successful one no requester ID twice.
    #[test]
    fn a_8_hostile_capabilities_and_virtual_functions_do_no_harm(
        lies in prop::collection::vec((2_u16..15, prop_oneof![any::<u32>(), 0_u32..0x200, Just(u32::MAX)]), 0..3),
        virtual_lies in prop::collection::vec((1_u16..0x50, any::<u32>()), 0..3),
        (count, vanishes) in (0_u16..10, prop::option::of(0_u32..1200)),
    ) {
        let make = |number| virtual_lies.iter().fold(with_acs(number), |one, (word, value)| one.broken(word * 4, *value));
        let card = physical(0x10, 2, make);
        let capability = card.last_extended_capability();
        let card = lies.iter().fold(card, |card, (word, value)| card.broken(capability + word * 4, *value));
        let mut slots = Slots::new(vec![("00:01.0", ari_port(1, 4)), (PF, card)]);
        // Where some are on already, their streams are the physical function's: it may have more than there are entries.
        let found = slots.found();
        prop_assume!(found.functions.iter().all(|one| one.capabilities.sr_iov.is_none_or(|sr_iov| !sr_iov.enabled)));
        slots.add(PF);
        let (registered, found, key) = (slots.registered(), slots.found(), slots.key(PF));
        let physical = PhysicalFunction::new(&*slots.space, &slots.host, &found, key).unwrap();
        vanishes.inspect(|step| slots.space.vanish_after(*step));
        match physical.switch_on(&slots.bench.service, count, DELAY, &mut plain) {
            Ok(on) => {
                let mut streams: Vec<u32> = on.iter().flat_map(|one| ids(&one.device)).collect();
                streams.sort_unstable();
                prop_assert!(streams.is_sorted_by(|one, next| one < next) && !streams.contains(&0x100), "{streams:x?}");
                prop_assert_eq!(slots.registered().len(), registered.len() + usize::from(count));
                let off = physical.switch_off(&slots.bench.service, DELAY);
                prop_assert!(off.is_ok() || matches!(off, Err(SwitchError { left: SwitchLeft::Gone, .. })), "{off:?}");
            }
            Err(error) => prop_assert!(error.left != SwitchLeft::On, "{error}"),
        }
        prop_assert_eq!(slots.registered(), registered);
        slots.bench.audit();
    }
}
