//! Between two owners: what an assign of a quarantined device does first, and what a device is while it cannot be cut off
//! (contract I-14, A-1, C-8, I-11). One device's own drains and resets are in `smmu_drains.rs` and `smmu_lifecycle.rs`.

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

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use common::callbacks::Hooks;
use common::parts::named;
use common::supply::Supply;
use common::{Bench, NOT_RESET, PAGE, SMMU};
use iommu_assign::assign::{
    Cause, Device, DeviceState, FaultCause, FaultLine, FirmwareMarks, HookError, IommuError, Left, Quarantine, Stage2,
    StreamId,
};
use iommu_assign::smmu::Setup;
use machine::{Reached, Stage2Tables};
use smmu_model::Config;

/// A device whose resets are counted, and fail while the test says so.
struct Watched {
    device: Device,
    resets: Arc<AtomicUsize>,
    fails: Arc<AtomicBool>,
}

impl Watched {
    fn add(bench: &mut Bench, name: &str, stream: u32) -> Self {
        let (resets, fails) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, is_down) = (resets.clone(), fails.clone());
        let mut spec = bench.spec(name, &[(stream, 0)]);
        spec.hooks = Arc::new(Hooks::new().reset(move |_| {
            if is_down.load(Ordering::SeqCst) {
                return Err(HookError("no answer"));
            }
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }));
        Self { device: bench.service.add(spec).unwrap(), resets, fails }
    }

    /// Successful resets since the last time.
    fn resets(&self) -> usize {
        self.resets.swap(0, Ordering::SeqCst)
    }

    fn fail(&self, fails: bool) {
        self.fails.store(fails, Ordering::SeqCst);
    }
}

fn root(bench: &Bench, page: Option<u64>) -> Stage2 {
    let pool = if page.is_some() { 0x9000_0000 } else { 0x9800_0000 };
    let mut tables = Stage2Tables::new(&bench.machine, pool, 40, 40);
    page.into_iter().for_each(|page| tables.map(PAGE, page, true));
    tables.stage2()
}

#[test]
fn i14_from_quarantine_of_any_kind_the_next_guest_gets_the_device_behind_one_successful_reset() {
    const SCRATCH: u64 = 0x3_0000_0000;
    let mut bench = Bench::v2();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let watched = Watched::add(&mut bench, "dma", 0x10);
    let device = &watched.device;
    let places = [
        (Quarantine::Faults, Reached::Fault),
        (Quarantine::Silence(root(&bench, None)), Reached::Fault),
        (Quarantine::Scratch(root(&bench, Some(SCRATCH))), Reached::Memory(SCRATCH)),
    ];
    for (place, reaches) in places {
        bench.assign(device, &one).unwrap();
        watched.resets();
        bench.oracle.allow(device.label(), &[(0x10, 0)], &[one.backing, SCRATCH]);
        bench.service.quarantine(device, place).unwrap();
        bench.oracle.allow(device.label(), &[(0x10, 0)], &[SCRATCH, two.backing]);
        assert_eq!((bench.dma(0x10), watched.resets(), bench.state(device)), (reaches, 0, NOT_RESET), "{place:?}");
        // Not even the domain that it came from, and from fault while the reset fails.
        watched.fail(true);
        let error = bench.service.assign(device, &two.domain).unwrap_err();
        assert_eq!((error.cause, error.left), (Cause::Hook { step: "reset", reason: "no answer" }, Left::Quarantined));
        assert_eq!((bench.dma(0x10), bench.state(device)), (Reached::Fault, NOT_RESET));
        watched.fail(false);
        bench.service.assign(device, &two.domain).unwrap();
        assert_eq!((bench.dma(0x10), watched.resets()), (Reached::Memory(two.backing), 1), "{place:?}");
        bench.audit();
        bench.oracle.allow(device.label(), &[(0x10, 0)], &[two.backing]);
        drop(bench.service.deassign(device).unwrap());
        // From fault behind a reset there is nothing left to do.
        watched.resets();
        bench.assign(device, &one).unwrap();
        assert_eq!(watched.resets(), 0);
        drop(bench.deassign(device).unwrap());
    }
}

#[test]
fn i14_a_quarantined_mate_is_reset_too_before_an_assign_opens_the_entry_that_it_shares() {
    let mut bench = Bench::v2();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let [moves, shares] = [("moves", 0x10), ("shares", 0x10)].map(|(name, id)| Watched::add(&mut bench, name, id));
    for watched in [&moves, &shares] {
        bench.assign(&watched.device, &one).unwrap();
    }
    bench.service.quarantine(&moves.device, Quarantine::Faults).unwrap();
    bench.oracle.allow(moves.device.label(), &[(0x10, 0)], &[two.backing]);
    bench.oracle.allow(shares.device.label(), &[(0x10, 0)], &[two.backing]);
    shares.fail(true);
    let error = bench.service.assign(&moves.device, &two.domain).unwrap_err();
    assert_eq!((error.cause, error.left), (Cause::Hook { step: "reset", reason: "no answer" }, Left::Quarantined));
    assert_eq!(bench.dma(0x10), Reached::Fault);
    shares.fail(false);
    moves.resets();
    bench.service.assign(&moves.device, &two.domain).unwrap();
    assert_eq!((bench.dma(0x10), moves.resets(), shares.resets()), (Reached::Memory(two.backing), 1, 1));
    assert_eq!(bench.state(&shares.device), DeviceState::Blocked, "it lacks nothing any more");
    bench.audit();
}

// --- without power ---

fn powered(bench: &Bench) -> Arc<Supply> {
    let (supply, part) = (Arc::new(Supply::default()), named("generic v2"));
    let setup = Setup { power: Some(supply.clone()), ..Setup::default() };
    bench.smmu_through(part.config, setup, part.model, |registers| registers);
    supply
}

#[test]
fn a1_c8_without_power_no_operation_takes_a_group_from_its_domain_and_the_state_says_so() {
    let mut bench = Bench::new();
    let supply = powered(&bench);
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let [first, mate] = [("first", 0x10), ("mate", 0x11)].map(|(name, id)| {
        let mut spec = bench.spec(name, &[(id, 0)]);
        spec.isolation = Some(1);
        bench.service.add(spec).unwrap()
    });
    for device in [&first, &mate] {
        bench.assign(device, &one).unwrap();
    }
    supply.0.store(true, Ordering::SeqCst);
    let (_, writes, results) = bench.cost(|| {
        let service = &bench.service;
        [
            service.deassign_group(&first).map(drop),
            service.reassign_group(&first, &two.domain),
            service.quarantine(&mate, Quarantine::Faults),
        ]
    });
    assert_eq!(writes, 0);
    for error in results.map(Result::unwrap_err) {
        let no_power = matches!(error.cause, Cause::Iommu { error: IommuError::NoPower(_), .. });
        assert!(no_power && error.left == Left::Unchanged, "{error}");
    }
    for (device, id) in [(&first, 0x10), (&mate, 0x11)] {
        assert_eq!(bench.state(device), DeviceState::Assigned(one.domain.id()));
        assert_eq!(bench.dma(id), Reached::Memory(one.backing));
    }
    supply.0.store(false, Ordering::SeqCst);
    bench.audit();
    bench.service.quarantine(&mate, Quarantine::Faults).unwrap();
    assert_eq!([0x10, 0x11].map(|id| bench.dma(id)), [Reached::Fault; 2]);
}

#[test]
fn c8_i11_a11_the_policy_is_asked_about_a_newcomer_to_the_stream_of_a_removal_that_found_no_power() {
    let mut bench = Bench::with_policy(Box::new(FirmwareMarks));
    let supply = powered(&bench);
    let guest = bench.guest("guest");
    let mut spec = bench.spec("marked", &[(0x10, 0)]);
    spec.passthrough = true;
    let device = bench.service.add(spec).unwrap();
    bench.assign(&device, &guest).unwrap();
    supply.0.store(true, Ordering::SeqCst);
    assert_eq!(bench.remove(&device).unwrap_err().left, Left::GoingLive);
    supply.0.store(false, Ordering::SeqCst);
    bench.audit();
    let late = bench.spec("late", &[(0x10, 0)]);
    let error = bench.service.add(late.clone()).unwrap_err();
    assert!(matches!(&error.cause, Cause::GroupConflict { with, .. } if *with == *device.label()), "{error}");
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing), "it is live, and said to be");
    bench.remove(&device).unwrap();
    bench.service.add(late).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Fault);
    bench.audit();
}

// --- an instance that came after ---

#[test]
fn c9_a12_a_fault_at_a_new_instance_is_not_blamed_on_a_device_of_the_one_before() {
    let mut bench = Bench::v2();
    let old = bench.add("nic", &[(0x10, 0)]);
    bench.service.force_unregister_iommu(SMMU).unwrap();
    bench.smmu(SMMU, Config::generic_v2());
    bench.service.enable_reports(SMMU).unwrap();
    let faults = |bench: &Bench| {
        let _ = bench.machine.dma_write(SMMU, StreamId::new(0x10), PAGE);
        let mut told = Vec::new();
        let sink =
            &mut |record: &iommu_assign::assign::FaultRecord| told.push((record.raw.cause, record.device.clone()));
        let _ = bench.service.handle_fault(SMMU, FaultLine::Global, sink).unwrap();
        told
    };
    assert_eq!(faults(&bench), [(FaultCause::UnknownStream, None)], "the new instance has no device yet");
    // The old one's registration ends in software, and its stream is free.
    assert_eq!(bench.service.remove(old.key()).unwrap_err().left, Left::Removed);
    let new = bench.add("nic", &[(0x10, 0)]);
    assert_eq!(faults(&bench), [(FaultCause::Blocked, Some(new.label().clone()))]);
    bench.audit();
}
