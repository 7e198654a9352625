//! Functions that arrive, that leave by surprise, and that are taken out.

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

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use common::callbacks::Hooks;
use common::slots::{DELAY, Slots, at, nic, now, port, sr_iov_nic};
use common::{Guest, NOT_RESET};
use iommu_assign::assign::{
    Cause, Device, DeviceCall, DeviceHooks, DeviceKey, DeviceSpec, DeviceState, Error, HookError, Left, Removal,
    Source, Stream, StreamId, StreamMask,
};
use iommu_assign::pci::control::ControlError;
use iommu_assign::pci::fake::FakeFunction;
use iommu_assign::pci::hotplug::{Arrival, Departure, HotPlug, NotOffered, RenumberError, Slot, left};
use iommu_assign::pci::sriov::PhysicalFunction;
use iommu_assign::pci::{
    AcsControls, AliasKind, ConfigSpace, Enumeration, Function, FunctionHooks, HostBridgeNumber, MapError, OutOfMemory,
    PortType, Problem, Sbdf, StreamsError,
};
use iommu_assign::sync::{Micros, Spin};
use machine::Reached;

const PORT: &str = "00:01.0";
/// What is plugged in: a switch with two ports, an endpoint behind each.
const CARD: [&str; 5] = ["01:00.0", "02:00.0", "02:01.0", "03:00.0", "04:00.0"];

fn downstream(secondary: u8) -> FakeFunction {
    FakeFunction::bridge(0x1b36, 0x000d, 2, secondary, secondary)
        .express(PortType::SwitchDownstream)
        .acs(AcsControls::all(), AcsControls::all())
}

fn functions() -> Vec<(&'static str, FakeFunction)> {
    let upstream = FakeFunction::bridge(0x1b36, 0x000d, 1, 2, 4).express(PortType::SwitchUpstream);
    vec![
        (PORT, port(1, 4)),
        ("00:02.0", port(5, 5)),
        ("05:00.0", nic()),
        (CARD[0], upstream),
        (CARD[1], downstream(3)),
        (CARD[2], downstream(4)),
        (CARD[3], nic().ats()),
        (CARD[4], nic()),
    ]
}

/// A machine whose port is registered; the card is plugged in and not looked at yet.
fn plugged() -> Slots {
    let mut slots = Slots::new(functions());
    slots.add(PORT);
    slots
}

fn slot(slots: &Slots) -> Slot {
    Slot::Below(slots.key(PORT))
}

fn plain(_: &Function, _: &Enumeration, spec: DeviceSpec) -> DeviceSpec {
    spec
}

fn arrived(slots: &Slots) -> Arrival {
    arrived_with(slots, &mut plain)
}

fn arrived_with(slots: &Slots, offer: &mut dyn FnMut(&Function, &Enumeration, DeviceSpec) -> DeviceSpec) -> Arrival {
    let slot = slot(slots);
    HotPlug::new(&slots.bench.service, &*slots.space, &slots.host, DELAY).arrived(slot, offer).unwrap()
}

fn requested(slots: &Slots) -> Vec<Departure> {
    HotPlug::new(&slots.bench.service, &*slots.space, &slots.host, DELAY).requested(slot(slots)).unwrap()
}

fn pull(slots: &Slots) {
    CARD.iter().for_each(|place| slots.space.remove(at(place)));
}

fn device(arrival: &Arrival, place: &str) -> Device {
    let arrived = arrival.functions.iter().find(|arrived| arrived.function.sbdf == at(place)).unwrap();
    arrived.result.clone().unwrap()
}

fn labels(departures: &[Departure]) -> Vec<String> {
    departures.iter().map(|departure| departure.device.label().to_string()).collect()
}

fn errors(departures: &[Departure]) -> Vec<String> {
    departures.iter().filter_map(|departure| departure.result.as_ref().err()).map(Error::to_string).collect()
}

/// Gives both endpoints to guests.
fn assigned(slots: &mut Slots, arrival: &Arrival) -> [(Device, Guest); 2] {
    [(CARD[3], "one"), (CARD[4], "two")].map(|(place, name)| {
        let (device, guest) = (device(arrival, place), slots.bench.guest(name));
        slots.bench.assign(&device, &guest).unwrap();
        (device, guest)
    })
}

/// Everything of the card is out, and nothing else.
fn all_out(slots: &Slots) {
    assert_eq!(slots.registered(), ["0000:00:01.0"]);
    for stream in [0x100, 0x200, 0x208, 0x300, 0x400] {
        assert_eq!(slots.bench.dma(stream), Reached::Fault);
    }
    slots.bench.audit();
}

/// A configuration space that keeps which buses were read.
struct Watched<'a> {
    inner: &'a dyn ConfigSpace,
    buses: RefCell<BTreeSet<u8>>,
}

impl ConfigSpace for Watched<'_> {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        self.buses.borrow_mut().insert(function.bus.0);
        self.inner.read(function, offset)
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        self.inner.write(function, offset, value);
    }
}

#[test]
fn c_5_a_bridge_arrives_with_all_below_it_parents_first() {
    let mut slots = plugged();
    let arrival = arrived(&slots);
    assert_eq!(
        arrival.functions.iter().map(|one| one.function.sbdf.to_string()).collect::<Vec<_>>(),
        ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0", "0000:02:01.0", "0000:04:00.0"]
    );
    assert!(arrival.found.problems.is_empty());
    let depths: Vec<u16> = arrival.functions.iter().map(|one| one.result.as_ref().unwrap().depth()).collect();
    assert_eq!(depths, [1, 2, 3, 2, 3]);
    assert!(!slots.found().function(slots.key(CARD[3])).unwrap().capabilities.ats.unwrap().enabled, "S-7");
    for (device, guest) in assigned(&mut slots, &arrival) {
        let stream = device.streams()[0].id().value();
        assert_eq!(slots.bench.dma(stream), Reached::Memory(guest.backing));
    }
    // Again: nothing is new.
    let again = arrived(&slots);
    assert!(again.functions.iter().all(|one| one.result.as_ref().err() == Some(&NotOffered::Known)));
    assert_eq!(slots.registered().len(), 6);
    slots.bench.audit();
}

#[test]
fn an_arrival_looks_at_no_bus_that_does_not_lead_to_its_slot() {
    let slots = plugged();
    let watched = Watched { inner: &*slots.space, buses: RefCell::default() };
    let key = slots.key("02:01.0");
    let hot_plug = HotPlug::new(&slots.bench.service, &watched, &slots.host, DELAY);
    let arrival = hot_plug.arrived(Slot::Below(key), &mut plain).unwrap();
    assert_eq!(*watched.buses.borrow(), BTreeSet::from([0, 1, 2, 4]));
    // Its bridges were not added: the nearest one that has streams stands for them.
    let Err(NotOffered::Service(error)) = &arrival.functions[0].result else { panic!("{arrival:?}") };
    assert_eq!(error.cause, Cause::ParentMissing);
    watched.buses.borrow_mut().clear();
    let arrival = hot_plug.arrived(Slot::Device(slots.key(CARD[0])), &mut plain).unwrap();
    assert_eq!((arrival.functions.len(), arrival.functions.iter().all(|one| one.result.is_ok())), (5, true));
    assert_eq!(*watched.buses.borrow(), BTreeSet::from([0, 1, 2, 3, 4]));
    let all = hot_plug.arrived(Slot::Host(HostBridgeNumber(1)), &mut plain).unwrap();
    assert_eq!(all.functions.len(), 8);
    assert_eq!(slots.registered().len(), 8);
}

#[test]
fn c_8_what_left_by_surprise_is_removed_children_first_and_not_touched() {
    let mut slots = plugged();
    let hooked: Arc<Mutex<Vec<String>>> = Arc::default();
    let arrival = arrived_with(&slots, &mut |_, _, spec| {
        let note = |what: &'static str| {
            let hooked = hooked.clone();
            move |label: String| hooked.lock().unwrap().push(format!("{what} {label}"))
        };
        let (quiet, reset, release) = (note("quiesce"), note("reset"), note("release"));
        let hooks = Hooks::new()
            .quiesce(move |context| {
                quiet(context.device.label().to_string());
                Ok(())
            })
            .reset(move |context| {
                reset(context.device.label().to_string());
                Ok(())
            })
            .release(move |context| release(context.device.label().to_string()));
        DeviceSpec { hooks: Arc::new(hooks) as Arc<dyn DeviceHooks>, ..spec }
    });
    let devices = assigned(&mut slots, &arrival);
    let slot = slot(&slots);
    pull(&slots);
    let accesses = slots.space.accesses();
    let departures = left(&slots.bench.service, slot).unwrap();
    assert_eq!(slots.space.accesses(), accesses, "no register of a function is touched");
    assert_eq!(labels(&departures), ["0000:03:00.0", "0000:02:00.0", "0000:04:00.0", "0000:02:01.0", "0000:01:00.0"]);
    assert!(departures.iter().all(|departure| departure.result == Ok(Removal::Done) && departure.is_gone()));
    let all: Vec<String> = labels(&departures).iter().map(|label| format!("release {label}")).collect();
    let mut told = hooked.lock().unwrap().clone();
    told.sort_unstable();
    assert_eq!(
        told,
        {
            let mut all = all;
            all.sort_unstable();
            all
        },
        "neither quiesce nor reset"
    );
    for (device, _) in &devices {
        slots.bench.oracle.forget(device.label());
        assert_eq!(slots.bench.service.deassign(device).unwrap_err().cause, Cause::Gone);
    }
    all_out(&slots);
    assert!(left(&slots.bench.service, slot).unwrap().is_empty(), "again is legal");
    assert_eq!(slots.space.accesses(), accesses);
}

#[test]
fn c_2_a_device_that_another_operation_has_goes_when_that_ends() {
    let mut slots = plugged();
    let arrival = arrived(&slots);
    let (nic, guest) = (device(&arrival, CARD[3]), slots.bench.guest("one"));
    let reservation = slots.bench.service.reserve(&nic, &guest.domain).unwrap();
    let departures = left(&slots.bench.service, slot(&slots)).unwrap();
    let pending: Vec<String> = labels(&departures).split_off(2);
    assert_eq!(labels(&departures)[..2], ["0000:04:00.0", "0000:02:01.0"]);
    assert_eq!(pending, ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"]);
    assert!(departures[2..].iter().all(|departure| departure.result == Ok(Removal::Pending) && !departure.is_gone()));
    // From the call on nothing is added there.
    let Err(NotOffered::Service(error)) = &arrived(&slots).functions[3].result else { panic!() };
    assert_eq!(error.cause, Cause::ParentMissing);
    assert_eq!(reservation.commit().unwrap_err().cause, Cause::Removed);
    all_out(&slots);
}

#[test]
fn i_14_what_is_taken_out_on_request_is_quiet_and_reset_first() {
    let mut slots = plugged();
    let (space, mut kept) = (slots.space.clone(), Vec::new());
    let arrival = arrived_with(&slots, &mut |function, found, spec| {
        let hooks = Arc::new(FunctionHooks::new(space.clone(), function, found, DELAY).unwrap());
        kept.push((function.sbdf, hooks.clone()));
        DeviceSpec { hooks, ..spec }
    });
    let devices = assigned(&mut slots, &arrival);
    for (place, _) in [(CARD[3], 0), (CARD[4], 0)] {
        slots.space.write(at(place), 4, 0x0006);
    }
    for (device, _) in &devices {
        let streams: Vec<(u32, u32)> = device.streams().iter().map(|one| (one.id().value(), 0)).collect();
        // On its way out it may be where it was.
        slots.bench.oracle.allow(device.label(), &streams, &[devices[0].1.backing, devices[1].1.backing]);
    }
    let departures = requested(&slots);
    assert_eq!(labels(&departures), ["0000:04:00.0", "0000:02:01.0", "0000:03:00.0", "0000:02:00.0", "0000:01:00.0"]);
    assert!(departures.iter().all(Departure::is_gone), "{:?}", errors(&departures));
    for (place, hooks) in kept {
        let is_endpoint = place == at(CARD[3]) || place == at(CARD[4]);
        assert_eq!(hooks.last_reset().is_some(), is_endpoint, "{place}");
        assert!(!is_endpoint || slots.space.read(place, 4) & 4 == 0);
    }
    devices.iter().for_each(|(device, _)| slots.bench.oracle.forget(device.label()));
    all_out(&slots);
    assert!(requested(&slots).is_empty());
}

#[test]
fn a_4_a_hook_that_fails_keeps_its_device_and_the_bridges_above() {
    let mut slots = plugged();
    let arrival = arrived_with(&slots, &mut |function, _, spec| {
        let fails = function.sbdf == at(CARD[3]);
        let hooks = Hooks::new().reset(move |_| if fails { Err(HookError("no answer")) } else { Ok(()) });
        DeviceSpec { hooks: Arc::new(hooks), ..spec }
    });
    let devices = assigned(&mut slots, &arrival);
    let departures = requested(&slots);
    devices.iter().for_each(|(device, _)| slots.bench.oracle.forget(device.label()));
    assert_eq!(
        errors(&departures),
        [
            "deassign 0000:03:00.0: its reset failed: no answer; the device is quarantined",
            "remove 0000:02:00.0: 0000:03:00.0 behind it must be removed first; nothing changed",
            "remove 0000:01:00.0: 0000:02:00.0 behind it must be removed first; nothing changed"
        ]
    );
    assert_eq!(slots.registered(), ["0000:00:01.0", "0000:01:00.0", "0000:02:00.0", "0000:03:00.0"]);
    assert_eq!(slots.bench.state(&devices[0].0), NOT_RESET);
    // It is pulled all the same.
    let slot = slot(&slots);
    pull(&slots);
    assert!(left(&slots.bench.service, slot).unwrap().iter().all(Departure::is_gone));
    all_out(&slots);
}

/// Asked for again, what was quarantined for want of a reset gets it: it may be added again, for another guest.
#[test]
fn i_14_what_was_not_reset_does_not_leave_without_it_when_it_is_asked_for_again() {
    let mut slots = plugged();
    let (fails, resets) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU32::new(0)));
    let arrival = arrived_with(&slots, &mut |function, _, spec| {
        let (fails, resets, is_it) = (fails.clone(), resets.clone(), function.sbdf == at(CARD[3]));
        let hooks = Hooks::new().reset(move |_| match is_it && fails.load(Ordering::Relaxed) {
            true => Err(HookError("no answer")),
            false => {
                resets.fetch_add(u32::from(is_it), Ordering::Relaxed);
                Ok(())
            }
        });
        DeviceSpec { hooks: Arc::new(hooks), ..spec }
    });
    let devices = assigned(&mut slots, &arrival);
    for _ in 0..2 {
        let departures = requested(&slots);
        let first = "deassign 0000:03:00.0: its reset failed: no answer; the device is quarantined";
        assert_eq!((errors(&departures).len(), errors(&departures)[0].as_str()), (3, first));
        assert_eq!(slots.bench.state(&devices[0].0), NOT_RESET);
    }
    devices.iter().for_each(|(device, _)| slots.bench.oracle.forget(device.label()));
    fails.store(false, Ordering::Relaxed);
    assert!(requested(&slots).iter().all(Departure::is_gone));
    assert_eq!(resets.load(Ordering::Relaxed), 1);
    all_out(&slots);
}

#[test]
fn a_6_a_card_that_is_pulled_while_it_is_taken_out_is_cut_off_all_the_same() {
    let mut step = 0;
    loop {
        let mut slots = plugged();
        let space = slots.space.clone();
        let arrival = arrived_with(&slots, &mut |function, found, spec| {
            let hooks = FunctionHooks::new(space.clone(), function, found, DELAY).unwrap();
            DeviceSpec { hooks: Arc::new(hooks), ..spec }
        });
        let (slot, devices) = (slot(&slots), assigned(&mut slots, &arrival));
        slots.space.vanish_after(step);
        let hot_plug = HotPlug::new(&slots.bench.service, &*slots.space, &slots.host, DELAY);
        let departures = hot_plug.requested(slot).unwrap();
        devices.iter().for_each(|(device, _)| slots.bench.oracle.forget(device.label()));
        let all_gone = departures.iter().all(Departure::is_gone);
        for (device, _) in &devices {
            let state = slots.bench.service.find(device.key()).map(|info| info.state);
            assert!(matches!(state, None | Some(DeviceState::Quarantined(_))), "step {step}: {state:?}");
            assert_eq!(slots.bench.dma(device.streams()[0].id().value()), Reached::Fault, "step {step}");
        }
        let accesses = slots.space.accesses();
        assert!(left(&slots.bench.service, slot).unwrap().iter().all(Departure::is_gone));
        assert_eq!(slots.space.accesses(), accesses);
        all_out(&slots);
        if all_gone {
            break;
        }
        step += 7;
    }
    assert!(step > 40);
}

#[test]
fn a_6_a_card_that_is_pulled_while_it_arrives_is_not_half_believed() {
    let total = {
        let slots = plugged();
        let before = slots.space.accesses();
        arrived(&slots);
        slots.space.accesses() - before
    };
    for step in (0..total).step_by(11) {
        let slots = plugged();
        let slot = slot(&slots);
        let hot_plug = HotPlug::new(&slots.bench.service, &*slots.space, &slots.host, DELAY);
        slots.space.vanish_after(step);
        let arrival = hot_plug.arrived(slot, &mut plain).unwrap();
        for one in &arrival.functions {
            match &one.result {
                Ok(device) => assert_eq!(one.function.requester_ids.len(), device.streams().len()),
                Err(NotOffered::Control(ControlError::Config(_))) => {}
                Err(NotOffered::Service(error)) => assert_eq!(error.cause, Cause::ParentMissing, "step {step}"),
                Err(error) => panic!("step {step}: {error}"),
            }
        }
        for departure in left(&slots.bench.service, slot).unwrap() {
            assert!(departure.is_gone());
        }
        all_out(&slots);
    }
}

/// The card goes between the last look at it and its add: whoever handles the slot has said so by then, and says it no more.
#[test]
fn c_2_what_left_while_it_arrived_is_not_registered_afterwards() {
    for place in CARD {
        let slots = plugged();
        let slot = slot(&slots);
        let arrival = arrived_with(&slots, &mut |function, _, spec| {
            if function.sbdf == at(place) {
                pull(&slots);
                assert!(left(&slots.bench.service, slot).unwrap().iter().all(Departure::is_gone));
            }
            spec
        });
        let arrived = arrival.functions.iter().find(|arrived| arrived.function.sbdf == at(place)).unwrap();
        assert!(arrived.result.is_err(), "{place}");
        all_out(&slots);
    }
}

#[test]
fn s_7_a_function_that_keeps_ats_on_does_not_arrive_and_the_others_do() {
    let mut functions = functions();
    functions[6].1 = nic().stuck_ats();
    let mut slots = Slots::new(functions);
    slots.add(PORT);
    let arrival = arrived(&slots);
    let refused: Vec<String> =
        arrival.functions.iter().filter_map(|one| one.result.as_ref().err()).map(ToString::to_string).collect();
    assert_eq!(refused, ["0000:03:00.0 does not turn ATS off"]);
    assert_eq!(slots.registered().len(), 5);
}

#[test]
fn c_18_a_key_that_another_device_has_is_known_and_the_others_arrive() {
    let slots = plugged();
    let key = DeviceKey::from(slots.key(CARD[4]));
    let stream = Stream::new(common::SMMU, StreamId::new(0x700), StreamMask::NONE);
    slots.bench.service.add(DeviceSpec::new(key, "squatter".into(), vec![stream])).unwrap();
    let arrival = arrived(&slots);
    let results: Vec<Option<&NotOffered>> = arrival.functions.iter().map(|one| one.result.as_ref().err()).collect();
    assert_eq!(results, [None, None, None, None, Some(&NotOffered::Known)]);
    // Between the look and the add, the service is the judge.
    let slots = plugged();
    let arrival = arrived_with(&slots, &mut |function, _, spec| {
        if function.sbdf == at(CARD[4]) {
            slots.bench.service.add(DeviceSpec::new(key, "squatter".into(), vec![stream])).unwrap();
        }
        spec
    });
    let Err(NotOffered::Service(error)) = &arrival.functions[4].result else { panic!() };
    assert_eq!(error.cause, Cause::AlreadyRegistered { by: "squatter".into() });
}

/// A function without access control comes to others that were apart until now: nothing keeps it from them.
#[test]
fn i_11_a_function_that_reaches_what_is_registered_as_apart_does_not_arrive() {
    let apart = || nic().acs(AcsControls::all(), AcsControls::all());
    let device_at = |function: u8| format!("01:00.{function}");
    let cards =
        vec![(PORT, port(1, 1)), ("01:00.0", apart().multi_function()), ("01:00.1", apart()), ("01:00.2", nic())];
    let mut slots = Slots::new(cards);
    slots.space.remove(at("01:00.2"));
    slots.add(PORT);
    let apart = device(&arrived(&slots), "01:00.1");
    let guest = slots.bench.guest("one");
    slots.bench.assign(&apart, &guest).unwrap();
    slots.space.plug_in(at("01:00.2"));
    let arrival = arrived(&slots);
    let refused = arrival.functions[2].result.as_ref().unwrap_err();
    assert_eq!(
        refused.to_string(),
        "0000:01:00.2 could reach 0000:01:00.1, which is registered as apart: both must arrive together"
    );
    // Where all arrive together they are one group.
    let _ = slots.bench.deassign(&apart).unwrap();
    let slot = slot(&slots);
    assert!(left(&slots.bench.service, slot).unwrap().iter().all(Departure::is_gone));
    let arrival = arrived(&slots);
    let keys = [0, 1, 2].map(|function| device(&arrival, &device_at(function)).key());
    let groups = keys.map(|key| slots.bench.service.find(key).unwrap().group);
    assert!(groups[0] == groups[1] && groups[1] == groups[2]);

    // What stands behind the function that names the group is apart, too.
    let all = AcsControls::all();
    let physical = sr_iov_nic(all).acs(all, all).multi_function();
    let mut slots = Slots::new(vec![(PORT, port(1, 1).ari_forwarding()), ("01:00.0", physical), ("01:00.2", nic())]);
    slots.space.remove(at("01:00.2"));
    slots.add("01:00.0");
    let (found, key) = (slots.found(), slots.key("01:00.0"));
    let physical = PhysicalFunction::new(&*slots.space, &slots.host, &found, key).unwrap();
    physical.switch_on(&slots.bench.service, 1, DELAY, &mut |_, spec| spec).unwrap();
    slots.space.plug_in(at("01:00.2"));
    let refused = arrived(&slots).functions[1].result.as_ref().unwrap_err().to_string();
    assert!(refused.starts_with("0000:01:00.2 could reach 0000:01:02.0, which is registered as apart"), "{refused}");
}

#[test]
fn a_6_what_the_map_does_not_have_does_not_arrive() {
    let mut slots = plugged();
    slots.host = common::slots::host(0x301);
    let arrival = arrived(&slots);
    let refused: Vec<String> =
        arrival.functions.iter().filter_map(|one| one.result.as_ref().err()).map(ToString::to_string).collect();
    assert_eq!(
        refused,
        ["0000:04:00.0 cannot be isolated: requester ID 04:00.0 is in no entry of the host bridge's map"]
    );
}

#[test]
fn a_1_without_power_what_left_is_going_and_goes_later() {
    let (mut slots, supply) = Slots::with_supply(functions());
    slots.add(PORT);
    let arrival = arrived(&slots);
    let devices = assigned(&mut slots, &arrival);
    let slot = slot(&slots);
    pull(&slots);
    supply.0.store(true, Ordering::SeqCst);
    let departures = left(&slots.bench.service, slot).unwrap();
    let live = |departure: &Departure| departure.result.as_ref().is_err_and(|error| error.left == Left::GoingLive);
    assert_eq!(departures.iter().filter(|one| live(one)).count(), 2, "{:?}", errors(&departures));
    assert!(!departures.iter().any(Departure::is_gone), "their bridges stay with them");
    supply.0.store(false, Ordering::SeqCst);
    let departures = left(&slots.bench.service, slot).unwrap();
    assert!(departures.iter().all(Departure::is_gone), "{:?}", errors(&departures));
    devices.iter().for_each(|(device, _)| slots.bench.oracle.forget(device.label()));
    all_out(&slots);
}

#[test]
fn a_function_that_starts_up_is_waited_for() {
    let with = |reads: u32| {
        let mut functions = functions();
        functions[7].1 = nic().slow_reset(reads);
        let mut slots = Slots::new(functions);
        slots.space.plug_in(at(CARD[4]));
        slots.add(PORT);
        // The looks of this test's own ask it as well.
        slots.space.plug_in(at(CARD[4]));
        let (slot, before) = (Slot::Below(slots.key(PORT)), now());
        slots.space.plug_in(at(CARD[4]));
        let arrival = HotPlug::new(&slots.bench.service, &*slots.space, &slots.host, DELAY).arrived(slot, &mut plain);
        (arrival.unwrap(), now().since(before))
    };
    let (arrival, took) = with(3);
    assert!(arrival.functions.iter().all(|one| one.result.is_ok()) && arrival.found.problems.is_empty());
    assert_eq!((arrival.functions.len(), took), (5, Micros::from_millis(30)));
    let (arrival, took) = with(u32::MAX);
    assert_eq!((arrival.functions.len(), took), (4, Micros::from_millis(1000)));
    assert!(matches!(arrival.found.problems[..], [Problem::Config(_)]), "it is named");
}

#[test]
fn c_5_a_card_that_leaves_takes_its_virtual_functions_with_it() {
    for orderly in [false, true] {
        let card = sr_iov_nic(AcsControls::empty());
        let mut slots = Slots::new(vec![(PORT, port(1, 1).ari_forwarding()), ("01:00.0", card)]);
        slots.add(PORT);
        let arrival = arrived(&slots);
        let (found, slot) = (slots.found(), slot(&slots));
        let physical = PhysicalFunction::new(&*slots.space, &slots.host, &found, slots.key("01:00.0")).unwrap();
        let on = physical.switch_on(&slots.bench.service, 3, DELAY, &mut |_, spec| spec).unwrap();
        let (one, two) = (slots.bench.guest("one"), slots.bench.guest("two"));
        slots.bench.assign(&device(&arrival, "01:00.0"), &one).unwrap();
        slots.bench.assign(&on[1].device, &two).unwrap();
        let departures = if orderly {
            requested(&slots)
        } else {
            slots.space.remove(at("01:00.0"));
            left(&slots.bench.service, slot).unwrap()
        };
        for device in [device(&arrival, "01:00.0"), on[1].device.clone()] {
            slots.bench.oracle.forget(device.label());
        }
        assert!(departures.iter().all(Departure::is_gone), "{:?}", errors(&departures));
        let last = departures.last().unwrap();
        assert_eq!((departures.len(), last.device.label().to_string()), (4, "0000:01:00.0".to_owned()));
        assert_eq!(slots.registered(), ["0000:00:01.0"]);
        assert_eq!([0x100, 0x110, 0x112, 0x114].map(|stream| slots.bench.dma(stream)), [Reached::Fault; 4]);
        slots.bench.audit();
    }
}

#[test]
fn a_3_in_and_out_leaks_nothing() {
    let slots = plugged();
    let usage = |slots: &Slots| {
        let mut lines = Vec::new();
        slots.bench.service.usage(common::SMMU, &mut |record| lines.push(format!("{record:?}"))).unwrap();
        lines
    };
    let (before, slot) = (usage(&slots), slot(&slots));
    for round in 0..40 {
        let hot_plug = HotPlug::new(&slots.bench.service, &*slots.space, &slots.host, DELAY);
        assert!(hot_plug.arrived(slot, &mut plain).unwrap().functions.iter().all(|one| one.result.is_ok()));
        if round % 2 == 0 {
            pull(&slots);
            assert!(left(&slots.bench.service, slot).unwrap().iter().all(Departure::is_gone));
            CARD.iter().for_each(|place| slots.space.plug_in(at(place)));
        } else {
            assert!(hot_plug.requested(slot).unwrap().iter().all(Departure::is_gone));
        }
        assert_eq!(usage(&slots), before);
    }
    all_out(&slots);
}

/// Gives the port and what is behind it other bus numbers: 1 to 4 become 9 to 12.
fn renumber(slots: &Slots, by: i16) {
    let numbers = |place: &str, secondary: i16, subordinate: i16, primary: i16| {
        let [primary, secondary, subordinate] = [primary, secondary, subordinate].map(|bus| bus as u8);
        slots.space.write(at(place), 0x18, u32::from_le_bytes([primary, secondary, subordinate, 0]));
    };
    let bus = |number: i16| if by > 0 { number + by } else { number };
    // From the port down: what is below answers at its new number from then on.
    numbers(PORT, bus(1), bus(4), 0);
    numbers(&format!("{:02x}:00.0", bus(1)), bus(2), bus(4), bus(1));
    numbers(&format!("{:02x}:00.0", bus(2)), bus(3), bus(3), bus(2));
    numbers(&format!("{:02x}:01.0", bus(2)), bus(4), bus(4), bus(2));
}

#[test]
fn c_18_renumbered_buses_change_streams_and_neither_keys_nor_owners() {
    let mut slots = plugged();
    let resets: Arc<Mutex<Vec<String>>> = Arc::default();
    let hooked = |spec: DeviceSpec| {
        let resets = resets.clone();
        let hooks = Hooks::new().reset(move |context| {
            resets.lock().unwrap().push(context.device.label().to_string());
            Ok(())
        });
        DeviceSpec { hooks: Arc::new(hooks) as Arc<dyn DeviceHooks>, ..spec }
    };
    let arrival = arrived_with(&slots, &mut |_, _, spec| hooked(spec));
    let devices = assigned(&mut slots, &arrival);
    let idle = slots.bench.service.find(slots.key("02:01.0").into()).unwrap();
    slots.space.write(at(CARD[3]), 4, 0x0006);
    let (slot, backing) = (slot(&slots), devices.each_ref().map(|(_, guest)| guest.backing));
    for (label, stream, backing) in [("0000:0b:00.0", 0xb00, backing[0]), ("0000:0c:00.0", 0xc00, backing[1])] {
        slots.bench.oracle.allow(&label.into(), &[(stream, 0)], &[backing]);
    }
    let hot_plug = HotPlug::new(&slots.bench.service, &*slots.space, &slots.host, DELAY);
    let mut calls = 0;
    let results = hot_plug.renumbered(
        slot,
        &mut || {
            calls += 1;
            for (stream, place) in [(0x300, CARD[3]), (0x400, CARD[4])] {
                assert_eq!(slots.bench.dma(stream), Reached::Fault, "blocked before a number changes");
                assert_eq!(slots.space.read(at(place), 4) & 4, 0, "and quiet");
            }
            let error = slots.bench.service.destroy_domain(&devices[0].1.domain).unwrap_err();
            assert!(matches!(error.cause, Cause::Busy { .. }), "its owner waits for it");
            renumber(&slots, 8);
        },
        &mut |_, _, spec| hooked(spec),
    );
    let results = results.unwrap();
    assert_eq!(calls, 1);
    devices.iter().for_each(|(device, _)| slots.bench.oracle.forget(device.label()));
    assert!(results.iter().all(|one| one.result.is_ok()), "{results:?}");
    assert_eq!(results.len(), 5);
    for one in &results {
        let now = one.device.as_ref().unwrap();
        assert_eq!(one.before.key(), now.key());
        assert_eq!(slots.bench.service.deassign(&one.before).unwrap_err().cause, Cause::Gone);
        assert_eq!(slots.bench.service.find(now.key()).unwrap().device.id(), now.id());
    }
    assert_eq!(
        slots.registered()[1..],
        ["0000:09:00.0", "0000:0a:00.0", "0000:0b:00.0", "0000:0a:01.0", "0000:0c:00.0"]
    );
    for (stream, backing) in [(0xb00, backing[0]), (0xc00, backing[1])] {
        assert_eq!(slots.bench.dma(stream), Reached::Memory(backing));
    }
    assert_eq!([0x300, 0x400].map(|stream| slots.bench.dma(stream)), [Reached::Fault; 2], "nobody's any more");
    assert_eq!(slots.bench.service.find(idle.device.key()).unwrap().state, DeviceState::Blocked);
    assert_eq!(*resets.lock().unwrap(), Vec::<String>::new(), "its owner is the same");
    assert_eq!(slots.space.read(at("0b:00.0"), 4) & 6, 6, "it masters the bus again");
    assert_eq!(slots.space.read(at("0c:00.0"), 4) & 4, 0, "and this one did not before");
    slots.bench.audit();
    // Its domain can end as ever.
    let now = slots.bench.service.find(devices[0].0.key()).unwrap().device;
    let kept = slots.bench.service.destroy_domain(&devices[0].1.domain).unwrap_err();
    assert_eq!(kept.cause, Cause::InUse { devices: 1, first: "0000:0b:00.0".into() });
    drop(slots.bench.service.deassign(&now).unwrap());
    slots.bench.oracle.forget(now.label());
    slots.bench.service.destroy_domain(&devices[0].1.domain).unwrap();
    assert_eq!(resets.lock().unwrap().len(), 1);
}

/// The same while buses are renumbered, when the functions were found at their new places already.
#[test]
fn c_2_what_left_while_it_was_renumbered_is_not_registered_afterwards() {
    let mut slots = plugged();
    let arrival = arrived(&slots);
    let devices = assigned(&mut slots, &arrival);
    let slot = slot(&slots);
    for (label, stream, (_, guest)) in [("0000:0b:00.0", 0xb00, &devices[0]), ("0000:0c:00.0", 0xc00, &devices[1])] {
        slots.bench.oracle.allow(&label.into(), &[(stream, 0)], &[guest.backing]);
    }
    let hot_plug = HotPlug::new(&slots.bench.service, &*slots.space, &slots.host, DELAY);
    let results = hot_plug.renumbered(slot, &mut || renumber(&slots, 8), &mut |function, _, spec| {
        if function.sbdf == at("0c:00.0") {
            pull(&slots);
            assert!(left(&slots.bench.service, slot).unwrap().is_empty());
        }
        spec
    });
    devices.iter().for_each(|(device, _)| slots.bench.oracle.forget(device.label()));
    let results = results.unwrap();
    assert!(results.iter().all(|one| one.device.is_none() && one.result.is_err()), "{results:?}");
    assert_eq!(
        results[2].result.as_ref().unwrap_err().to_string(),
        "add 0000:0b:00.0: it was removed meanwhile; the device is removed"
    );
    all_out(&slots);
    assert_eq!([0xb00, 0xc00].map(|stream| slots.bench.dma(stream)), [Reached::Fault; 2]);
}

/// Does something else when a function is written to for the first time.
struct Meanwhile<'a> {
    inner: &'a dyn ConfigSpace,
    place: Sbdf,
    what: RefCell<Option<Box<dyn FnOnce() + 'a>>>,
}

impl ConfigSpace for Meanwhile<'_> {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        self.inner.read(function, offset)
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        if function == self.place
            && let Some(what) = self.what.take()
        {
            what();
        }
        self.inner.write(function, offset, value);
    }
}

/// One loses its owner when it has been made quiet already: it stays so, whoever gets it next.
#[test]
fn i_14_what_lost_its_owner_while_it_was_renumbered_stays_quiet() {
    let mut slots = plugged();
    let arrival = arrived(&slots);
    let devices = assigned(&mut slots, &arrival);
    let slot = slot(&slots);
    slots.bench.oracle.allow(&"0000:0c:00.0".into(), &[(0xc00, 0)], &[devices[1].1.backing]);
    [CARD[3], CARD[4]].iter().for_each(|place| slots.space.write(at(place), 4, 0x0006));
    let what = || drop(slots.bench.service.deassign(&devices[0].0).unwrap());
    let space = Meanwhile { inner: &*slots.space, place: at(CARD[4]), what: RefCell::new(Some(Box::new(what))) };
    let hot_plug = HotPlug::new(&slots.bench.service, &space, &slots.host, DELAY);
    let results = hot_plug.renumbered(slot, &mut || renumber(&slots, 8), &mut plain).unwrap();
    assert!(results.iter().all(|one| one.result.is_ok()), "{results:?}");
    assert_eq!(slots.space.read(at("0c:00.0"), 4) & 6, 6, "its owner has it as before");
    assert_eq!(slots.space.read(at("0b:00.0"), 4) & 6, 2, "nobody has this one");
}

/// A function learns its bus number from a write: one that nobody has registered would go on sending by its old number, which may
/// be another's by now.
#[test]
fn c_18_functions_that_are_no_devices_learn_their_new_numbers_too() {
    let mut slots = plugged();
    // What is on bus 3 is not added.
    slots.add(CARD[4]);
    let told = RefCell::new(Vec::new());
    let space = Told { inner: &*slots.space, told: &told };
    let hot_plug = HotPlug::new(&slots.bench.service, &space, &slots.host, DELAY);
    let results = hot_plug.renumbered(slot(&slots), &mut || renumber(&slots, 8), &mut |function, _, spec| {
        assert!(told.borrow().contains(&at("0b:00.0")), "before {} is a device again", function.sbdf);
        spec
    });
    assert!(results.unwrap().iter().all(|one| one.result.is_ok()));
}

/// A configuration space that keeps to whom was written by number, with nothing changed.
struct Told<'a> {
    inner: &'a dyn ConfigSpace,
    told: &'a RefCell<Vec<Sbdf>>,
}

impl ConfigSpace for Told<'_> {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        self.inner.read(function, offset)
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        if offset == 0 {
            self.told.borrow_mut().push(function);
        }
        self.inner.write(function, offset, value);
    }
}

#[test]
fn c_18_virtual_functions_move_with_their_physical_function() {
    let card = nic()
        .ari()
        .sr_iov(4, 0x80, 0x40)
        .virtual_functions(0x1520, |_| {
            FakeFunction::virtual_function(0x02_0000)
                .express(PortType::Endpoint)
                .acs(AcsControls::all(), AcsControls::empty())
        })
        .virtual_bar(0, 0x8_0000_0000, 0x4000);
    let mut slots = Slots::new(vec![(PORT, port(1, 2).ari_forwarding()), ("01:00.0", card)]);
    slots.add(PORT);
    slots.add("01:00.0");
    let (found, slot, key) = (slots.found(), slot(&slots), slots.key("01:00.0"));
    let physical = PhysicalFunction::new(&*slots.space, &slots.host, &found, key).unwrap();
    let on = physical.switch_on(&slots.bench.service, 3, DELAY, &mut |_, spec| spec).unwrap();
    let guest = slots.bench.guest("one");
    slots.bench.assign(&on[2].device, &guest).unwrap();
    slots.bench.oracle.allow(&"0000:09:00.0".into(), &[(0x900, 0)], &[guest.backing]);
    let hot_plug = HotPlug::new(&slots.bench.service, &*slots.space, &slots.host, DELAY);
    let port = u32::from_le_bytes([0, 8, 9, 0]);
    let results = hot_plug.renumbered(slot, &mut || slots.space.write(at(PORT), 0x18, port), &mut plain).unwrap();
    slots.bench.oracle.forget(on[2].device.label());
    assert!(results.iter().all(|one| one.result.is_ok()), "{results:?}");
    assert_eq!(slots.registered()[1..], ["0000:08:00.0", "0000:08:10.0", "0000:08:18.0", "0000:09:00.0"]);
    let keys: Vec<DeviceKey> = results.iter().map(|one| one.device.as_ref().unwrap().key()).collect();
    assert_eq!(keys[3], DeviceKey::from(key.virtual_function(2).unwrap()));
    assert_eq!(slots.bench.dma(0x900), Reached::Memory(guest.backing));
    assert_eq!(results[0].device.as_ref().unwrap().streams().len(), 1, "it does not send as its virtual functions");
    // They keep their physical function as before.
    let kept = slots.bench.service.remove(results[0].device.as_ref().unwrap()).unwrap_err();
    assert!(matches!(kept.cause, Cause::HasChildren { children: 3, .. }));
    slots.bench.audit();
}

#[test]
fn a_1_where_one_cannot_be_taken_out_no_number_changes() {
    let (mut slots, supply) = Slots::with_supply(functions());
    slots.add(PORT);
    let arrival = arrived(&slots);
    let devices = assigned(&mut slots, &arrival);
    slots.space.write(at(CARD[4]), 4, 0x0006);
    let before: Vec<_> = slots.bench.service.devices().map(|info| (info.device.id(), info.state)).collect();
    let unchanged = |slots: &Slots, told: &str| {
        let hot_plug = HotPlug::new(&slots.bench.service, &*slots.space, &slots.host, DELAY);
        let error = hot_plug.renumbered(slot(slots), &mut || panic!("renumbered"), &mut plain).unwrap_err();
        assert_eq!(error.to_string(), told);
        let after: Vec<_> = slots.bench.service.devices().map(|info| (info.device.id(), info.state)).collect();
        assert_eq!(after, before);
        assert_eq!(slots.space.read(at(CARD[4]), 4) & 6, 6, "it masters the bus again");
        for (device, guest) in &devices {
            assert_eq!(slots.bench.dma(device.streams()[0].id().value()), Reached::Memory(guest.backing));
        }
    };
    let bridge = slots.bench.service.find(slots.key(CARD[0]).into()).unwrap().device;
    let call: DeviceCall<'_, Spin> = bridge.enter().unwrap();
    unchanged(&slots, "remove 0000:01:00.0: 1 call is still inside it; nothing changed");
    drop(call);
    let idle = slots.bench.service.find(slots.key(CARD[2]).into()).unwrap().device;
    let reservation = slots.bench.service.reserve(&idle, &devices[0].1.domain).unwrap();
    unchanged(&slots, "remove 0000:02:01.0: busy with another operation (assign); try again; nothing changed");
    reservation.abandon().unwrap();
    supply.0.store(true, Ordering::SeqCst);
    unchanged(&slots, "remove 0000:01:00.0: iommu@50000000: it has no power: the supply is broken; nothing changed");
    supply.0.store(false, Ordering::SeqCst);
    // A device of another source stands behind one: all that was taken out before comes back.
    let stream = Stream::new(common::SMMU, StreamId::new(0x700), StreamMask::NONE);
    let key = DeviceKey::new(Source::Dt, 7);
    let behind = DeviceSpec { parent: Some(bridge.key()), ..DeviceSpec::new(key, "leds".into(), vec![stream]) };
    slots.bench.service.add(behind).unwrap();
    let hot_plug = HotPlug::new(&slots.bench.service, &*slots.space, &slots.host, DELAY);
    let results = hot_plug.renumbered(slot(&slots), &mut || panic!("renumbered"), &mut plain).unwrap();
    let failed: Vec<String> =
        results.iter().filter_map(|one| one.result.as_ref().err()).map(Error::to_string).collect();
    assert_eq!(failed, ["remove 0000:01:00.0: leds behind it must be removed first; nothing changed"]);
    for (device, guest) in &devices {
        assert_eq!(slots.bench.dma(device.streams()[0].id().value()), Reached::Memory(guest.backing));
        assert_eq!(slots.bench.service.find(device.key()).unwrap().state, DeviceState::Assigned(guest.domain.id()));
    }
    assert_eq!(slots.space.read(at(CARD[4]), 4) & 6, 6);
    slots.bench.audit();
}

#[test]
fn c_18_a_function_that_does_not_become_quiet_is_not_renumbered() {
    let mut slots = plugged();
    let arrival = arrived(&slots);
    let devices = assigned(&mut slots, &arrival);
    for place in [CARD[3], CARD[4]] {
        slots.space.write(at(place), 4, 0x0006);
    }
    slots.space.function(at(CARD[4])).unwrap().set_pending(u32::MAX);
    let hot_plug = HotPlug::new(&slots.bench.service, &*slots.space, &slots.host, DELAY);
    let error = hot_plug.renumbered(slot(&slots), &mut || panic!("renumbered"), &mut plain).unwrap_err();
    assert_eq!(error.to_string(), "0000:04:00.0 still has transactions pending");
    for (place, (device, guest)) in [CARD[3], CARD[4]].iter().zip(&devices) {
        assert_eq!(slots.space.read(at(place), 4) & 6, 6, "as it was");
        assert_eq!(slots.bench.dma(device.streams()[0].id().value()), Reached::Memory(guest.backing));
    }
    slots.bench.audit();
}

#[test]
fn c_18_what_is_not_found_again_stays_out_and_the_others_go_on() {
    let mut slots = plugged();
    let arrival = arrived(&slots);
    let devices = assigned(&mut slots, &arrival);
    slots.bench.oracle.allow(&"0000:0c:00.0".into(), &[(0xc00, 0)], &[devices[1].1.backing]);
    let slot = slot(&slots);
    let hot_plug = HotPlug::new(&slots.bench.service, &*slots.space, &slots.host, DELAY);
    let results = hot_plug.renumbered(
        slot,
        &mut || {
            renumber(&slots, 8);
            slots.space.remove(at(CARD[3]));
        },
        &mut plain,
    );
    let results = results.unwrap();
    let failed: Vec<String> =
        results.iter().filter_map(|one| one.result.as_ref().err()).map(Error::to_string).collect();
    assert_eq!(failed, ["add 0000:03:00.0: nothing of this name is registered; the device is removed"]);
    devices.iter().for_each(|(device, _)| slots.bench.oracle.forget(device.label()));
    assert_eq!(slots.registered().len(), 5);
    assert_eq!(slots.bench.dma(0xc00), Reached::Memory(devices[1].1.backing));
    slots.bench.service.destroy_domain(&devices[0].1.domain).unwrap();
    slots.bench.audit();
}

#[test]
fn i_14_a_device_that_its_owner_does_not_get_back_is_reset_before_it_goes_to_another() {
    let mut slots = plugged();
    let resets: Arc<Mutex<u32>> = Arc::default();
    let hooked = |spec: DeviceSpec| {
        let resets = resets.clone();
        let hooks = Hooks::new().reset(move |_| {
            *resets.lock().unwrap() += 1;
            Ok(())
        });
        DeviceSpec { hooks: Arc::new(hooks) as Arc<dyn DeviceHooks>, ..spec }
    };
    let device = {
        let arrival = arrived_with(&slots, &mut |_, _, spec| hooked(spec));
        device(&arrival, CARD[3])
    };
    let (one, two) = (slots.bench.guest("one"), slots.bench.guest("two"));
    slots.bench.assign(&device, &one).unwrap();
    slots.bench.oracle.allow(&"0000:03:00.0".into(), &[(0x300, 0)], &[one.backing, two.backing]);
    let key = device.key();
    let mut spec = Some(hooked(DeviceSpec::new(key, "0000:03:00.0".into(), device.streams().to_vec())));
    let results = slots.bench.service.reregister(&[device], &mut || vec![spec.take().unwrap()], &mut || false).unwrap();
    assert!(results[0].result.is_ok());
    assert_eq!(*resets.lock().unwrap(), 0, "back with its owner");
    let now = results[0].device.clone().unwrap();
    // The owner cannot have it back: its spec has a stream that another domain's device has, too.
    let stream = Stream::new(common::SMMU, StreamId::new(0x700), StreamMask::NONE);
    let other = slots.bench.add("other", &[(0x700, 0)]);
    slots.bench.assign(&other, &two).unwrap();
    let mut streams = now.streams().to_vec();
    streams.push(stream);
    slots.bench.oracle.allow(&"0000:03:00.0".into(), &[(0x300, 0), (0x700, 0)], &[one.backing, two.backing]);
    let mut spec = Some(hooked(DeviceSpec::new(key, "0000:03:00.0".into(), streams)));
    let results = slots.bench.service.reregister(&[now], &mut || vec![spec.take().unwrap()], &mut || false).unwrap();
    let error = results[0].result.as_ref().unwrap_err();
    assert!(matches!(error.cause, Cause::GroupConflict { .. }), "{error}");
    let now = results[0].device.clone().unwrap();
    assert_eq!(slots.bench.service.find(key).unwrap().state, NOT_RESET, "owned by nobody, and not clean");
    slots.bench.service.assign(&now, &two.domain).unwrap();
    assert_eq!(*resets.lock().unwrap(), 1, "between two owners there is a reset");
    assert_eq!(slots.bench.dma(0x300), Reached::Memory(two.backing));
    slots.bench.oracle.allow(&"0000:03:00.0".into(), &[(0x300, 0), (0x700, 0)], &[two.backing]);
    slots.bench.audit();
}

/// What an operator reads is in the document, word for word.
#[test]
fn every_message_is_in_the_document() {
    let document = include_str!("../docs/pci.md");
    let function = at(CARD[3]);
    let stays_on = ControlError::StaysOn { function, service: iommu_assign::pci::control::Service::Ats };
    let gone = ControlError::Config(iommu_assign::pci::ConfigError::NotPresent { function });
    let cause = MapError::Unmapped { rid: function.requester_id() };
    let unmapped = StreamsError::Map { function, kind: AliasKind::Own, cause };
    let reaches = NotOffered::NotApart { function, peer: "0000:03:00.1".into() };
    let offers = [
        NotOffered::Known,
        NotOffered::Streams(unmapped),
        NotOffered::Control(stays_on),
        NotOffered::Control(gone),
        reaches,
    ];
    let renumbers = [
        RenumberError::OutOfMemory(OutOfMemory),
        RenumberError::Control(ControlError::StillPending { function: at(CARD[4]) }),
    ];
    let told = offers.iter().map(ToString::to_string).chain(renumbers.iter().map(ToString::to_string));
    for line in told {
        assert!(document.contains(&format!("`{line}`")), "docs/pci.md must have {line}");
    }
}
