//! Groups and moves on every part that the model offers: a test for each of the lines I-10 to I-15 of the contract. The
//! oracle of `common` looks after each write of each test.

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

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::parts::parts;
use common::presets::{
    Selecting, accesses, at_every_write, entries, is_fault, names, on_every_part, reached, stuck, timed_out, used,
};
use common::{Bench, Guest, NOT_DRAINED, NOT_RESET, PAGE, SMMU, stream};
use iommu_assign::assign::{
    Cause, ConflictReason, Device, DeviceHooks, FirmwareMarks, HookContext, HookError, IommuKey, Label, Left, Removal,
    StreamId,
};
use machine::{Machine, Reached};
use smmu_model::{Config, Direction, Record, Smmu};

const SECOND: IommuKey = IommuKey::new(0x6000_0000);

#[test]
fn i10_a_domain_is_not_destroyed_while_a_device_refers_to_it_on_every_part() {
    on_every_part(|_, mut bench| {
        let guest = bench.guest("guest");
        let device = bench.add("dma", &[(0x10, 0)]);
        bench.assign(&device, &guest).unwrap();
        let (reads, writes, refused) = bench.cost(|| bench.service.destroy_domain(&guest.domain));
        assert_eq!(
            (reads, writes, refused.unwrap_err().cause),
            (0, 0, Cause::InUse { devices: 1, first: "dma".into() })
        );
        assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
        drop(bench.deassign(&device).unwrap());
        bench.service.destroy_domain(&guest.domain).unwrap();
        assert!(matches!(bench.assign(&device, &guest).unwrap_err().cause, Cause::DomainGone { .. }));
        assert_eq!(bench.dma(0x10), Reached::Fault);
        bench.audit();
    });
}

#[test]
fn i11_devices_whose_streams_meet_have_one_owner_and_refusals_write_nothing_on_every_part() {
    on_every_part(|model, mut bench| {
        let (one, two) = (bench.guest("one"), bench.guest("two"));
        let (ohci, ehci) = (bench.add("ohci", &[(0x10, 0x1)]), bench.add("ehci", &[(0x11, 0)]));
        let group = |bench: &Bench, device: &Device| bench.service.find(device.key()).unwrap().group;
        assert_eq!(group(&bench, &ohci), group(&bench, &ehci));
        bench.shares(&ehci, &one);
        bench.assign(&ohci, &one).unwrap();
        let (_, writes, refused) = bench.cost(|| bench.service.assign(&ehci, &two.domain));
        let error = refused.unwrap_err();
        let reason = ConflictReason::SharedStream(SMMU);
        assert_eq!(error.cause, Cause::GroupConflict { with: Label::from("ohci"), reason });
        assert_eq!((error.subject, error.left, writes), (Label::from("ehci"), Left::Unchanged, 0));
        // Who would bridge two owners is refused; that takes a bank and an entry more.
        if model.banks > 1 {
            let far = bench.add("far", &[(0x20, 0)]);
            bench.assign(&far, &two).unwrap();
            let bridge = bench.spec("bridge", &[(0x11, 0), (0x20, 0)]);
            let (_, writes, refused) = bench.cost(|| bench.service.add(bridge));
            assert!(matches!(refused.unwrap_err().cause, Cause::GroupConflict { .. }));
            assert_eq!(writes, 0);
            assert_ne!(group(&bench, &ohci), group(&bench, &far));
        }
        bench.audit();
    });
    // Who shares a live entry is added only with the policy's yes.
    for part in parts() {
        println!("on {}", part.name);
        let mut bench = Bench::with_policy(Box::new(FirmwareMarks));
        bench.part(part);
        let guest = bench.guest("guest");
        let mut marked = bench.spec("marked", &[(0x10, 0)]);
        marked.passthrough = true;
        let marked = bench.service.add(marked).unwrap();
        bench.assign(&marked, &guest).unwrap();
        let late = bench.spec("late", &[(0x10, 0)]);
        let (_, writes, refused) = bench.cost(|| bench.service.add(late));
        assert!(matches!(refused.unwrap_err().cause, Cause::GroupConflict { .. }));
        assert_eq!(writes, 0);
        bench.audit();
    }
}

#[test]
fn i12_detaching_one_member_leaves_the_others_working_and_the_counts_true_on_every_part() {
    on_every_part(|_, mut bench| {
        let guest = bench.guest("guest");
        let (ohci, ehci) = (bench.add("ohci", &[(0, 0), (1, 0)]), bench.add("ehci", &[(0, 0)]));
        let live = |bench: &Bench| [0, 1].map(|id| bench.dma(id) == Reached::Memory(guest.backing));
        bench.audit();
        bench.assign(&ohci, &guest).unwrap();
        bench.assign(&ehci, &guest).unwrap();
        assert_eq!(live(&bench), [true, true]);
        bench.audit();
        assert_eq!(bench.deassign(&ohci).unwrap().still_reachable, [Label::from("ehci")]);
        assert!(live(&bench)[0], "the other's DMA goes on");
        bench.audit();
        bench.assign(&ohci, &guest).unwrap();
        bench.audit();
        bench.remove(&ehci).unwrap();
        assert_eq!(live(&bench), [true, true], "and the other way round");
        bench.audit();
        assert_eq!(bench.deassign(&ohci).unwrap().still_reachable, []);
        assert_eq!(live(&bench), [false, false]);
        bench.audit();
        bench.remove(&ohci).unwrap();
        assert_eq!((used(&bench), entries(&bench)), ((0, 0), vec![]), "registered 0: it matches nothing");
        bench.audit();
    });
}

#[test]
fn i13_all_streams_of_a_device_change_their_owner_or_none_on_every_part() {
    on_every_part(|_, mut bench| {
        let (one, two) = (bench.guest("one"), bench.guest("two"));
        bench.smmu(SECOND, Config { banks: 1, ..Config::generic_v2() });
        let add = |bench: &mut Bench, name: &str, here: &[(u32, u32)], there: u32| {
            let mut spec = bench.spec(name, here);
            spec.streams.push(stream(SECOND, there, 0));
            bench.service.add(spec).unwrap()
        };
        let both = add(&mut bench, "both", &[(0x10, 0), (0x21, 0)], 0x30);
        let hog = add(&mut bench, "hog", &[], 0x32);
        bench.assign(&hog, &two).unwrap();
        // The second SMMU has no bank for domain one: nothing is written on this one either.
        let (_, writes, refused) = bench.cost(|| bench.service.assign(&both, &one.domain));
        assert!(matches!(refused.unwrap_err().cause, Cause::Iommu { iommu: SECOND, .. }));
        assert_eq!((writes, used(&bench).1), (0, 0), "nor is a bank kept");
        bench.remove(&hog).unwrap();
        bench.assign(&both, &one).unwrap();
        // Old owner, or fault; then fault, or new owner; at no write mixed, and never back.
        let seen = at_every_write(&bench, |smmu, memory| [0x10, 0x21].map(|id| reached(smmu, memory, id)));
        bench.reassign(&both, &two).unwrap();
        let seen = seen.take();
        let of = |guest: &Guest| vec![guest.backing];
        let was = |at: &[Vec<u64>; 2]| at.contains(&of(&one));
        let is = |at: &[Vec<u64>; 2]| at.contains(&of(&two));
        let last_old = seen.iter().rposition(was).expect("one entry after the other");
        let first_new = seen.iter().position(is).unwrap();
        let fault = |at: &[Vec<u64>; 2]| at.iter().all(Vec::is_empty);
        assert!(last_old < first_new && seen[last_old + 1..first_new].iter().all(fault), "{seen:x?}");
        assert_eq!(seen.last().unwrap(), &[of(&two), of(&two)]);
        bench.audit();
        // What fails at the second leaves neither with an owner.
        bench.machine.smmu(SECOND, |smmu| smmu.inject(stuck()));
        let error = bench.reassign(&both, &one).unwrap_err();
        assert!(timed_out(&error.cause) && error.left == Left::Quarantined, "{error}");
        assert_eq!([0x10, 0x21].map(|id| bench.dma(id)), [Reached::Fault; 2]);
        assert_eq!(bench.machine.dma_write(SECOND, StreamId::new(0x30), PAGE), Some(Reached::Fault));
    });
}

/// How far an operation had come when its source was asked.
#[derive(Debug)]
struct Asked {
    machine: Machine,
    accesses: Mutex<Vec<(&'static str, usize)>>,
    fails: AtomicBool,
}

impl Asked {
    fn note(&self, step: &'static str) {
        let accesses = self.machine.smmu(SMMU, |smmu| smmu.trace().len()).unwrap();
        self.accesses.lock().unwrap().push((step, accesses));
    }
}

impl DeviceHooks for Asked {
    fn quiesce(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        self.note("quiesce");
        Ok(())
    }

    fn reset(&self, _: &HookContext<'_>) -> Result<(), HookError> {
        self.note("reset");
        if self.fails.load(Ordering::SeqCst) { Err(HookError("it does not answer")) } else { Ok(()) }
    }

    fn release(&self, _: &HookContext<'_>) {}
}

#[test]
fn i14_reassign_is_fault_invalidate_sync_quiesce_reset_then_the_new_bank_on_every_part() {
    on_every_part(|model, mut bench| {
        let (one, two) = (bench.guest("one"), bench.guest("two"));
        let asked = Arc::new(Asked {
            machine: bench.machine.clone(),
            accesses: Mutex::default(),
            fails: AtomicBool::new(false),
        });
        let mut spec = bench.spec("dma", &[(0x10, 0), (0x21, 0)]);
        spec.hooks = asked.clone();
        let device = bench.service.add(spec).unwrap();
        bench.assign(&device, &one).unwrap();
        asked.accesses.lock().unwrap().clear();
        let trace = accesses(&mut bench, |bench| bench.reassign(&device, &two).unwrap());
        let steps = std::mem::take(&mut *asked.accesses.lock().unwrap());
        let [("quiesce", middle), ("reset", end)] = steps[..] else { panic!("{steps:?}") };
        assert_eq!(middle, end, "nothing in between");
        let (cut, turned) = trace.split_at(middle);
        let written = |part: &[Record]| -> Vec<Record> {
            part.iter().filter(|one| one.direction == Direction::Write).cloned().collect()
        };
        let (cut_writes, turn_writes) = (written(cut), written(turned));
        let s2crs = |part: &[Record]| part.iter().take_while(|one| one.name.starts_with("S2CR")).count();
        assert_eq!(s2crs(&cut_writes), 2, "all entries first: {:?}", names(&cut_writes));
        assert!(cut_writes[..2].iter().all(|one| is_fault(model, one.value)));
        let at =
            |name: &str| names(&cut_writes).iter().position(|one| *one == name).unwrap_or_else(|| panic!("{name}"));
        assert!(at("TLBIVMID") > 1 && at("sTLBGSYNC") > at("TLBIVMID"), "{:?}", names(&cut_writes));
        let status = cut.iter().rfind(|one| one.name.ends_with("TLBGSTATUS")).unwrap();
        assert_eq!(status.value & 1, 0, "completed");
        assert!(!cut_writes[2..].iter().any(|one| one.name.starts_with("S2CR")));
        let last: Vec<&Record> = turn_writes.iter().rev().take(2).collect();
        assert!(last.iter().all(|one| one.name.starts_with("S2CR") && one.value >> 16 & 3 == 0), "{turn_writes:?}");
        assert_eq!(turn_writes.iter().filter(|one| one.name.starts_with("S2CR")).count(), 2);
        // Whatever fails after the first write: quarantined, owned by no domain, and said. Nobody gets the device, its last owner
        // included, before what it lacks has been done.
        for hook in [false, true] {
            asked.fails.store(hook, Ordering::SeqCst);
            if !hook {
                bench.machine.smmu(SMMU, |smmu| smmu.inject(stuck()));
            }
            let lacks = if hook { NOT_RESET } else { NOT_DRAINED };
            let error = bench.reassign(&device, &one).unwrap_err();
            assert!(timed_out(&error.cause) != hook && error.left == Left::Quarantined, "{error}");
            for guest in [&one, &two] {
                assert_eq!([0x10, 0x21].map(|id| bench.dma(id)), [Reached::Fault; 2]);
                assert_eq!(bench.state(&device), lacks);
                let error = bench.assign(&device, guest).unwrap_err();
                assert!(timed_out(&error.cause) != hook, "{error}");
            }
            bench.machine.smmu(SMMU, Smmu::clear_injections);
            asked.fails.store(false, Ordering::SeqCst);
            asked.accesses.lock().unwrap().clear();
            bench.assign(&device, &two).unwrap();
            let steps: Vec<&str> = asked.accesses.lock().unwrap().iter().map(|(step, _)| *step).collect();
            assert_eq!((bench.dma(0x10), steps), (Reached::Memory(two.backing), vec!["quiesce", "reset"]));
            bench.audit();
        }
    });
}

#[test]
fn i15_a_live_entry_stays_as_it_is_and_is_fitted_to_who_is_left_when_it_goes_to_fault_on_every_part() {
    on_every_part(|model, mut bench| {
        let guest = bench.guest("guest");
        let captured = |bench: &Bench, all: &[(u32, u32)]| {
            let entries: BTreeSet<(u32, u32)> = entries(bench).iter().map(|one| one.stream).collect();
            // Without SMRs an entry is a stream ID.
            assert!(!model.stream_matching || entries == all.iter().copied().collect(), "{entries:x?}");
        };
        let one = bench.add("one", &[(0x10, 0), (0x11, 0)]);
        captured(&bench, &[(0x10, 1)]);
        bench.assign(&one, &guest).unwrap();
        let before: Vec<Selecting> = entries(&bench);
        bench.oracle.allow(&"late".into(), &[(0x11, 0)], &[guest.backing]);
        let late = bench.add("late", &[(0x11, 0), (0x12, 0)]);
        assert!(before.iter().all(|entry| entries(&bench).contains(entry)), "{before:x?}");
        captured(&bench, &[(0x10, 1), (0x12, 0)]);
        assert_eq!([0x10, 0x12].map(|id| bench.dma(id)), [Reached::Memory(guest.backing), Reached::Fault]);
        bench.assign(&late, &guest).unwrap();
        let removed = bench.remove(&one).unwrap();
        assert_eq!(removed, Removal::StillReachable(vec![Label::from("late")]));
        captured(&bench, &[(0x10, 1), (0x12, 0)]);
        assert_eq!(bench.dma(0x11), Reached::Memory(guest.backing));
        bench.audit();
        drop(bench.deassign(&late).unwrap());
        captured(&bench, &[(0x11, 0), (0x12, 0)]);
        assert_eq!([0x10, 0x11, 0x12].map(|id| bench.dma(id)), [Reached::Fault; 3]);
        bench.remove(&late).unwrap();
        captured(&bench, &[]);
        bench.audit();
    });
}
