//! Suspend and the end against calls in flight: new ones wait outside, those inside are waited for (contract C-1, C-17).

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
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::parts::named;
use common::stopping::{Held, STLBGSTATUS, Stop};
use common::{Bench, SMMU};
use iommu_assign::assign::{Cause, Deassigned, Error, FaultLine, IommuError, IommuHandle, Removal};
use iommu_assign::smmu::{Setup, SmmuConfig};
use machine::Reached;

const SGFSR: u32 = 0x48;

/// A bench on held registers, with `polls` as the bound.
fn bench(polls: u32) -> (Bench, Arc<Stop>) {
    let (bench, part) = (Bench::new(), named("generic v2"));
    let stop = Stop::nowhere();
    let config = SmmuConfig { polls, ..part.config };
    let shared = stop.clone();
    bench.smmu_through(config, Setup::default(), part.model, |registers| Held::new(registers, shared));
    (bench, stop)
}

const BUSY: Cause = Cause::Iommu { iommu: SMMU, error: IommuError::Busy };
fn cause(result: Result<(), Error>) -> Result<(), Cause> {
    result.map_err(|error| error.cause)
}

/// A bound that no wait here reaches: about a minute of looks.
const PATIENT: u32 = 200_000_000;

fn a_moment() {
    thread::sleep(Duration::from_millis(50));
}

#[test]
fn c1_s5_suspend_keeps_new_calls_out_and_waits_for_those_inside() {
    let (mut bench, stop) = bench(PATIENT);
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    let (service, domain) = (&bench.service, &guest.domain);
    let (suspended, later) = (AtomicBool::new(false), AtomicBool::new(false));
    let mut seen = (true, true, true);
    let (mut suspension, mut flush) = (Err(BUSY), Ok(()));
    thread::scope(|scope| {
        stop.at(STLBGSTATUS);
        scope.spawn(|| service.flush(domain));
        stop.meet();
        scope.spawn(|| {
            suspension = cause(service.suspend_iommu(SMMU));
            suspended.store(true, Ordering::SeqCst);
        });
        a_moment();
        let before = bench.machine.counters(SMMU);
        scope.spawn(|| {
            flush = service.flush(domain);
            later.store(true, Ordering::SeqCst);
        });
        a_moment();
        let touched = bench.machine.counters(SMMU) != before;
        seen = (suspended.load(Ordering::SeqCst), later.load(Ordering::SeqCst), touched);
        stop.meet();
    });
    assert_eq!(seen, (false, false, false), "both wait for the call inside, and no register is touched");
    assert_eq!((suspension, flush), (Ok(()), Ok(())));
    bench.service.resume_iommu(SMMU).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
}

#[test]
fn c1_a_stream_of_callers_does_not_keep_suspend_out() {
    let (mut bench, _) = bench(PATIENT);
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    let (service, stopped) = (&bench.service, AtomicBool::new(false));
    let mut changes = Vec::new();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stopped.load(Ordering::SeqCst) {
                    service.flush(&guest.domain).unwrap();
                }
            });
        }
        for _ in 0..5 {
            changes.extend([service.suspend_iommu(SMMU), service.resume_iommu(SMMU)]);
        }
        stopped.store(true, Ordering::SeqCst);
    });
    assert_eq!(changes, [const { Ok(()) }; 10]);
    bench.audit();
}

#[test]
fn c1_c9_a_change_that_waits_in_vain_gives_up_within_its_bound_and_a_begun_end_lets_nothing_in() {
    let (mut bench, stop) = bench(1000);
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    let (service, domain) = (&bench.service, &guest.domain);
    let (mut suspension, mut findings, mut end, mut flush) = (Ok(()), 0, Ok(()), Ok(()));
    thread::scope(|scope| {
        stop.at(STLBGSTATUS);
        scope.spawn(|| service.flush(domain));
        stop.meet();
        suspension = cause(service.suspend_iommu(SMMU));
        let before = bench.machine.counters(SMMU);
        service.audit(&mut |_| findings += 1);
        findings += u32::from(bench.machine.counters(SMMU) == before);
        end = service.force_unregister_iommu(SMMU);
        flush = service.flush(domain);
        stop.meet();
    });
    assert_eq!(suspension, Err(BUSY));
    assert_eq!(findings, 0, "it is in service as before: an audit reads its registers");
    assert_eq!(end.map_err(|error| error.cause), Err(BUSY));
    let gone = Cause::Iommu { iommu: SMMU, error: IommuError::ProviderGone };
    assert_eq!(flush.map_err(|error| error.cause), Err(gone), "the end lets nothing in, though it cannot come yet");
    bench.oracle.allow(device.label(), &[(0x10, 0)], &[]);
    bench.service.force_unregister_iommu(SMMU).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Fault);
}

#[test]
fn c16_c17_a_fault_handler_is_waited_for_too() {
    let (bench, stop) = bench(1000);
    bench.dma(0x33);
    let handle: IommuHandle = bench.service.iommu(SMMU).unwrap();
    let (mut faults, mut suspension) = (0, Ok(()));
    thread::scope(|scope| {
        stop.at(SGFSR);
        scope.spawn(|| handle.take_faults(FaultLine::Global, &mut |_| faults += 1));
        stop.meet();
        suspension = cause(bench.service.suspend_iommu(SMMU));
        stop.meet();
    });
    assert_eq!((suspension, faults), (Err(BUSY), 1), "its registers were being read");
    bench.service.suspend_iommu(SMMU).unwrap();
    let before = bench.machine.counters(SMMU);
    let _ = handle.take_faults(FaultLine::Global, &mut |_| panic!("it is dark"));
    assert_eq!(bench.machine.counters(SMMU), before);
}

/// Two changes had the instance at once: the end found it changing, took that for its own, and no register was touched from
/// then on, so that the resume did not come to its enabling write and said that it had.
#[test]
fn c1_c9_an_end_does_not_overtake_a_resume() {
    let (mut bench, stop) = bench(1000);
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    let service = &bench.service;
    service.suspend_iommu(SMMU).unwrap();
    let (mut resumed, mut end) = (Err(BUSY), Ok(()));
    thread::scope(|scope| {
        stop.at(STLBGSTATUS);
        scope.spawn(|| resumed = cause(service.resume_iommu(SMMU)));
        stop.meet();
        end = service.force_unregister_iommu(SMMU);
        stop.meet();
    });
    assert_eq!((resumed, end.map_err(|error| error.cause)), (Ok(()), Err(BUSY)));
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing), "it came back, though its end was asked for meanwhile");
    bench.oracle.allow(device.label(), &[(0x10, 0)], &[]);
    service.force_unregister_iommu(SMMU).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Fault);
}

/// The same with two ends: the second was done before what was in flight had drained, and kept the first from its writes.
#[test]
fn c1_c9_an_end_is_not_done_before_another_one_that_has_begun() {
    let (mut bench, stop) = bench(1000);
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    bench.oracle.allow(device.label(), &[(0x10, 0)], &[]);
    let service = &bench.service;
    let (mut first, mut second) = (Ok(()), Ok(()));
    thread::scope(|scope| {
        stop.at(STLBGSTATUS);
        scope.spawn(|| first = service.force_unregister_iommu(SMMU));
        stop.meet();
        second = service.force_unregister_iommu(SMMU);
        stop.meet();
    });
    assert_eq!((first, second.map_err(|error| error.cause)), (Ok(()), Err(BUSY)));
    assert_eq!(bench.dma(0x10), Reached::Fault);
}

/// A deassign that waited for a resume as long as it may gave up: the device was quarantined for the service, and in the
/// domain for the SMMU, which came back. The domain was destroyed, and its tables were walked.
#[test]
fn c1_i6_i10_a_deassign_or_removal_waits_until_a_resume_has_ended() {
    let (mut bench, stop) = bench(1000);
    let guest = bench.guest("guest");
    let devices = ["one", "two"].into_iter().zip(1..).map(|(name, n)| bench.add(name, &[(n << 4, 0)]));
    let devices: Vec<_> = devices.collect();
    devices.iter().for_each(|device| bench.assign(device, &guest).unwrap());
    let service = &bench.service;
    service.suspend_iommu(SMMU).unwrap();
    let (mut resumed, mut deassigned, mut removed) = (Err(BUSY), None, None);
    thread::scope(|scope| {
        stop.at(STLBGSTATUS);
        scope.spawn(|| resumed = cause(service.resume_iommu(SMMU)));
        stop.meet();
        scope.spawn(|| deassigned = Some(service.deassign(&devices[0])));
        scope.spawn(|| removed = Some(service.remove(devices[1].key())));
        a_moment();
        stop.meet();
    });
    assert_eq!(resumed, Ok(()));
    assert_eq!(deassigned, Some(Ok(Deassigned::default())));
    assert_eq!(removed, Some(Ok(Removal::Done)));
    bench.service.destroy_domain(&guest.domain).unwrap();
    bench.audit();
    bench.oracle.allow(devices[0].label(), &[(0x10, 0)], &[]);
    assert_eq!([0x10, 0x20].map(|id| bench.dma(id)), [Reached::Fault; 2]);
}
