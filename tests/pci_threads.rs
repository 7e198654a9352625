//! Cards, virtual functions and bus numbers that come and go on one thread each, while guests come and go on another: the oracle
//! looks at every register write, and the end is the start.

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

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use common::slots::{DELAY, Slots, at, nic, port, sr_iov_nic};
use iommu_assign::assign::{Cause, DeviceSpec, DeviceState, Domain, Service, UsageRecord};
use iommu_assign::pci::fake::FakeFunction;
use iommu_assign::pci::hotplug::{Departure, HotPlug, Slot, left};
use iommu_assign::pci::sriov::{PhysicalFunction, SriovError};
use iommu_assign::pci::{AcsControls, ConfigSpace, Enumeration, Function};
use iommu_assign::sync::Spin;
use machine::Reached;

const ROUNDS: u32 = 10;
/// What is plugged in and out; what has virtual functions; what is renumbered.
const CARDS: [&str; 3] = ["05:00.0", "01:00.0", "07:00.0"];
/// All streams that any of them has at any time.
const STREAMS: [u32; 9] = [0x500, 0x100, 0x110, 0x112, 0x114, 0x116, 0x700, 0x800, 0x28];

fn functions() -> Vec<(&'static str, FakeFunction)> {
    vec![
        ("00:01.0", port(1, 1).ari_forwarding()),
        ("00:02.0", port(5, 5)),
        ("00:03.0", port(7, 8)),
        (CARDS[0], nic()),
        (CARDS[1], sr_iov_nic(AcsControls::all())),
        (CARDS[2], nic()),
    ]
}

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

fn plain(_: &Function, _: &Enumeration, spec: DeviceSpec) -> DeviceSpec {
    spec
}

/// Guests take and lose whatever is there.
fn guests(service: &Service<Spin>, domains: &[Domain<Spin>; 2], over: &AtomicBool, assigned: &AtomicU32) {
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    while !over.load(Ordering::Relaxed) {
        for info in service.devices().filter(|info| info.device.parent().is_some()) {
            let domain = &domains[dice.roll(2) as usize];
            let _ = match dice.roll(3) {
                0 => service.assign(&info.device, domain).map(|()| assigned.fetch_add(1, Ordering::Relaxed)),
                1 => service.deassign(&info.device).map(|_| 0),
                _ => service.reassign(&info.device, domain).map(|()| 0),
            };
        }
        // The locks are fair: who spins for one on a busy machine keeps the others from theirs.
        std::thread::sleep(Duration::from_micros(200));
    }
}

#[test]
fn c_15_everything_comes_and_goes_at_once_and_the_end_is_the_start() {
    let mut slots = Slots::new(functions());
    let pf = slots.key(CARDS[1]);
    let ports = ["00:01.0", "00:02.0", "00:03.0"].map(|place| slots.key(place));
    for place in ["00:01.0", "00:02.0", "00:03.0", CARDS[1], CARDS[2]] {
        if slots.bench.service.find(slots.key(place).into()).is_none() {
            slots.add(place);
        }
    }
    let (one, two) = (slots.bench.guest("one"), slots.bench.guest("two"));
    for stream in STREAMS {
        let label = format!("stream {stream:#x}");
        slots.bench.oracle.allow(&label.as_str().into(), &[(stream, 0)], &[one.backing, two.backing]);
    }
    // Which of them a device has is a matter of who came first.
    let usage = |slots: &Slots| {
        let mut lines = Vec::new();
        let mut note = |record: &UsageRecord| lines.push(format!("{:?} {:?}", record.resource, record.device));
        slots.bench.service.usage(common::SMMU, &mut note).unwrap();
        lines
    };
    let (before, found) = ((slots.registered(), usage(&slots)), slots.found());
    let (service, space, host) = (&slots.bench.service, &*slots.space, &slots.host);
    let domains = [one.domain.clone(), two.domain.clone()];
    let (over, assigned) = (AtomicBool::new(false), AtomicU32::new(0));
    let counts = std::thread::scope(|scope| {
        let guests = scope.spawn(|| guests(service, &domains, &over, &assigned));
        // Plugged in; pulled or taken out.
        let cards = scope.spawn(|| {
            let (hot_plug, slot) = (HotPlug::new(service, space, host, DELAY), Slot::Below(ports[1]));
            let mut out = 0;
            for round in 0..ROUNDS {
                let arrival = hot_plug.arrived(slot, &mut plain).unwrap();
                assert!(arrival.functions.iter().all(|one| one.result.is_ok()), "{arrival:?}");
                std::thread::sleep(Duration::from_micros(50));
                let mut departures = if round % 2 == 0 {
                    space.remove(at(CARDS[0]));
                    left(service, slot).unwrap()
                } else {
                    hot_plug.requested(slot).unwrap()
                };
                // What another operation had has gone when that has ended.
                while !departures.iter().all(Departure::is_gone) {
                    std::thread::sleep(Duration::from_micros(50));
                    departures = left(service, slot).unwrap();
                }
                space.plug_in(at(CARDS[0]));
                out += 1;
            }
            out
        });
        // Switched on, and off when guests have lost them.
        let switched = scope.spawn(|| {
            let physical = PhysicalFunction::new(space, host, &found, pf).unwrap();
            let (mut on, mut kept) = (0, 0);
            for round in 0..ROUNDS {
                match physical.switch_on(service, 1 + round as u16 % 4, DELAY, &mut |_, spec| spec) {
                    Ok(all) => on += all.len(),
                    Err(error) => assert!(matches!(error.cause, SriovError::Service(_)), "{error}"),
                }
                std::thread::sleep(Duration::from_micros(50));
                while let Err(error) = physical.switch_off(service, DELAY) {
                    kept += 1;
                    assert!(matches!(error.cause, SriovError::Assigned { .. } | SriovError::Service(_)), "{error}");
                    for info in service.devices().filter(|info| info.device.parent() == Some(pf.into())) {
                        drop(service.deassign(&info.device));
                    }
                }
            }
            (on, kept)
        });
        // Bus 7 is bus 8 is bus 7.
        let renumbered = scope.spawn(|| {
            let (hot_plug, slot) = (HotPlug::new(service, space, host, DELAY), Slot::Below(ports[2]));
            let (mut moved, mut refused) = (0, 0);
            for round in 0..ROUNDS {
                let bus = if round % 2 == 0 { 8 } else { 7 };
                let mut write = || space.write(at("00:03.0"), 0x18, u32::from_le_bytes([0, bus, 8, 0]));
                // Guests are quick: another operation has the device now and then.
                loop {
                    match hot_plug.renumbered(slot, &mut write, &mut plain) {
                        Ok(results) if results.iter().all(|one| one.device.is_some()) => break,
                        Ok(results) => {
                            let error = results.iter().find_map(|one| one.result.as_ref().err()).unwrap();
                            assert!(matches!(error.cause, Cause::Busy { .. }), "{error}");
                        }
                        Err(error) => assert!(error.to_string().contains("busy"), "{error}"),
                    }
                    refused += 1;
                    std::thread::sleep(Duration::from_micros(50));
                }
                moved += 1;
            }
            (moved, refused)
        });
        let counts = (cards.join().unwrap(), switched.join().unwrap(), renumbered.join().unwrap());
        over.store(true, Ordering::Relaxed);
        guests.join().unwrap();
        counts
    });
    let (out, (on, _), (moved, _)) = counts;
    assert_eq!((out, moved), (ROUNDS, ROUNDS), "{counts:?}");
    assert!(on > 0 && assigned.load(Ordering::Relaxed) > 0, "{counts:?} {assigned:?}");

    for info in slots.bench.service.devices() {
        if matches!(info.state, DeviceState::Assigned(_)) {
            drop(slots.bench.service.deassign(&info.device).unwrap());
        }
    }
    assert_eq!((slots.registered(), usage(&slots)), before);
    slots.bench.audit();
    for stream in STREAMS {
        assert_eq!(slots.bench.dma(stream), Reached::Fault);
    }
    for guest in [one, two] {
        slots.bench.service.destroy_domain(&guest.domain).unwrap();
    }
}
