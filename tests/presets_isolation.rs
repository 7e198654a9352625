//! Isolation on every part that the model offers: a test for each of the lines I-1 to I-6 of the contract. I-7 and I-8
//! have theirs in `smmu_drains.rs`, I-9 in `smmu_flush.rs`, the lines on groups in `presets_groups.rs`. The oracle of
//! `common` looks after each write of each test.

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

use common::presets::{
    accesses, at_every_write, entries, is_fault, names, on_every_part, selecting, timed_out, vmid, writes,
};
use common::{Bench, Guest, PAGE, SMMU};
use iommu_assign::assign::Label;
use machine::Reached;
use smmu_model::{Architecture, Config, Direction, Record, Smmu, Transaction, WideAccess};

#[test]
fn i1_at_most_one_entry_matches_while_a_group_is_packed_anew_on_every_part() {
    on_every_part(|model, mut bench| {
        let guest = bench.guest("guest");
        let ids = || (0..0x80).chain(0x7f80..0x8080);
        let seen = at_every_write(&bench, move |smmu, _| {
            ids().map(|id| smmu.matching_entries(id).len()).max().unwrap_or_default()
        });
        let one = bench.add("one", &[(0x10, 0), (0x11, 0)]);
        let two = bench.add("two", &[(0x11, 0), (0x12, 0), (0x13, 0)]);
        bench.remove(&two).unwrap();
        bench.assign(&one, &guest).unwrap();
        // Shares 0x11, and where entries merge the others go along.
        bench.oracle.allow(&"late".into(), &[(0x11, 0), (0x12, 1)], &[guest.backing]);
        let late = bench.add("late", &[(0x11, 0), (0x12, 0), (0x13, 0)]);
        drop(bench.deassign(&one).unwrap());
        bench.remove(&one).unwrap();
        bench.remove(&late).unwrap();
        let seen = seen.take();
        assert!(seen.len() > 10, "{seen:?}");
        assert!(seen.iter().all(|most| *most <= 1), "{seen:?}");
        assert!(!model.stream_matching || seen.contains(&0) && seen.contains(&1), "entries came and went");
        bench.audit();
    });
}

/// The roots of the banks that S2CRs name, and what is wrong with such a bank.
fn steered(smmu: &Smmu) -> (BTreeSet<u64>, Vec<String>) {
    let (mut roots, mut wrong) = (BTreeSet::new(), Vec::new());
    for entry in selecting(smmu) {
        let Some(bank) = entry.bank() else {
            if entry.s2cr >> 16 & 3 != 2 {
                wrong.push(format!("neither fault nor translate: {entry:x?}"));
            }
            continue;
        };
        let at = |register| smmu.peek32(smmu.bank(bank, register));
        if at(0) & 1 == 0 || smmu.peek32(smmu.cbar(bank)) >> 16 & 3 != 0 {
            wrong.push(format!("M = 0, or not stage 2: {entry:x?}"));
        }
        roots.insert(u64::from(at(0x20)) & !0xfff);
    }
    (roots, wrong)
}

#[test]
fn i2_each_s2cr_is_fault_or_names_a_full_bank_with_the_owners_root_on_every_part() {
    on_every_part(|_, mut bench| {
        let (one, two) = (bench.guest("one"), bench.guest("two"));
        let seen = at_every_write(&bench, |smmu, _| steered(smmu));
        let device = bench.add("dma", &[(0x10, 0), (0x21, 0)]);
        let step = |bench: &mut Bench, act: &dyn Fn(&mut Bench), before: Option<u64>, after: Option<u64>| {
            act(bench);
            let seen = seen.take();
            let wrong: Vec<&String> = seen.iter().flat_map(|(_, wrong)| wrong).collect();
            assert!(wrong.is_empty(), "{wrong:#?}");
            let may: BTreeSet<u64> = before.into_iter().chain(after).collect();
            assert!(seen.iter().all(|(roots, _)| roots.len() <= 1 && roots.is_subset(&may)), "{seen:x?}");
            assert_eq!(seen.last().unwrap().0, after.into_iter().collect(), "where it ends");
        };
        let root = |guest: &Guest| Some(guest.tables.stage2().root.value());
        step(&mut bench, &|bench| bench.assign(&device, &one).unwrap(), None, root(&one));
        step(&mut bench, &|bench| bench.reassign(&device, &two).unwrap(), root(&one), root(&two));
        step(&mut bench, &|bench| drop(bench.deassign(&device).unwrap()), root(&two), None);
        bench.audit();
    });
}

#[test]
fn i3_nothing_is_bypass_and_unmatched_and_conflicting_streams_fault_on_every_part() {
    on_every_part(|model, mut bench| {
        let (guest, control) = (bench.guest("guest"), if model.quirks.secure_accesses { 0x400 } else { 0 });
        let groups = model.groups;
        let seen = at_every_write(&bench, move |smmu, _| {
            let scr0 = smmu.peek32(control);
            let open = (0..groups).filter(|n| smmu.peek32(smmu.s2cr(*n)) >> 16 & 3 == 1).count();
            // CLIENTPD; USFCFG and SMCFCFG.
            (open, scr0 & 1, scr0 & (1 << 10 | 1 << 21))
        });
        let device = bench.add("dma", &[(0x10, 0)]);
        bench.assign(&device, &guest).unwrap();
        bench.service.enable_reports(SMMU).unwrap();
        assert_eq!(bench.dma(0x3f), Reached::Fault, "unmatched");
        if model.stream_matching {
            // Somebody else makes a second entry match the stream, with a copy of the first.
            let before = bench.machine.smmu(SMMU, |smmu| smmu.clone()).unwrap();
            bench.machine.smmu(SMMU, |smmu| {
                let (smr, s2cr) = (smmu.peek32(smmu.smr(0)), smmu.peek32(smmu.s2cr(0)));
                let last = (smmu.smr(groups - 1), smmu.s2cr(groups - 1));
                smmu.write32(last.1, s2cr);
                smmu.write32(last.0, smr);
                assert_eq!(smmu.matching_entries(0x10).len(), 2);
            });
            assert_eq!(bench.dma(0x10), Reached::Fault, "matched twice");
            bench.machine.smmu(SMMU, |smmu| *smmu = before);
        }
        assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
        bench.remove(&device).unwrap();
        let seen = seen.take();
        assert!(!seen.is_empty() && seen.iter().all(|now| *now == (0, 0, 1 << 10 | 1 << 21)), "{seen:x?}");
    });
}

/// What programs bank 0, in order.
fn programming(model: &Config) -> Vec<&'static str> {
    let mut registers = if model.architecture == Architecture::V1 { vec![] } else { vec!["CBA2R0"] };
    registers.extend(["CBAR0", "TCR"]);
    if model.quirks.wide_access != WideAccess::Atomic {
        registers.push("TTBR0.high");
    }
    registers.extend(["TTBR0", "FSR", "SCTLR"]);
    registers
}

/// The register of the entry that a device with stream 0x10 gets first.
fn first(model: &Config, register: &str) -> String {
    format!("{register}{}", if model.stream_matching { 0 } else { 0x10 })
}

#[test]
fn i4_a_bank_is_programmed_in_full_before_an_entry_names_it_on_every_part() {
    on_every_part(|model, mut bench| {
        let guest = bench.guest("guest");
        let device = bench.add("dma", &[(0x10, 0)]);
        let assign = writes(&mut bench, |bench| bench.assign(&device, &guest).unwrap());
        let (s2cr, programmed) = (first(model, "S2CR"), programming(model));
        let (last, registers) =
            names(&assign).split_last().map(|(last, rest)| (last.to_string(), rest.to_vec())).unwrap();
        assert_eq!((registers, last), (programmed, s2cr.clone()));
        let value = |name: &str| assign.iter().find(|write| write.name == name).unwrap().value;
        assert_eq!(value("SCTLR") & 1, 1, "M");
        assert_eq!(value("TTBR0") & !0xfff, guest.tables.stage2().root.value());
        assert_eq!(value(&s2cr) & 0x3_00ff, 0, "translate, through bank 0");
        // M is cleared only when no S2CR names the bank and what was in flight has drained.
        let deassign = accesses(&mut bench, |bench| drop(bench.deassign(&device).unwrap()));
        let off = deassign.iter().position(|one| one.name == "SCTLR" && one.direction == Direction::Write).unwrap();
        let before = names(&deassign[..off]);
        assert!(before.contains(&s2cr.as_str()) && before.last().unwrap().ends_with("TLBGSTATUS"), "{before:?}");
        assert_eq!(deassign[off - 1].value & 1, 0, "the sync had completed");
    });
}

#[test]
fn i5_validity_comes_last_and_goes_after_fault_on_every_part() {
    const EXIDVALID: u64 = 1 << 10;
    const VALID: u64 = 1 << 31;
    on_every_part(|model, mut bench| {
        let guest = bench.guest("guest");
        let (s2cr, smr) = (first(model, "S2CR"), first(model, "SMR"));
        let mut device = None;
        let inwards = writes(&mut bench, |bench| device = Some(bench.add("dma", &[(0x10, 0)])));
        let device = device.unwrap();
        let order = match (model.stream_matching, model.extended_ids) {
            (false, _) => vec![&s2cr],
            (true, false) => vec![&s2cr, &smr],
            (true, true) => vec![&smr, &s2cr],
        };
        assert_eq!(names(&inwards), order);
        assert!(inwards.iter().all(|write| write.name != s2cr || is_fault(model, write.value)));
        bench.assign(&device, &guest).unwrap();
        let mut outwards = writes(&mut bench, |bench| drop(bench.remove(&device).unwrap()));
        outwards.retain(|write| write.name == s2cr || write.name == smr);
        let [fault, rest @ ..] = outwards.as_slice() else { panic!("{outwards:?}") };
        assert!(fault.name == s2cr && is_fault(model, fault.value), "{outwards:?}");
        match (model.stream_matching, model.extended_ids, rest) {
            (false, _, []) => {}
            (true, false, [invalid]) => assert!(invalid.name == smr && invalid.value & VALID == 0, "{invalid}"),
            // The SMR of an entry whose S2CR says that it is not valid may stay.
            (true, true, [invalid, ..]) => {
                assert_ne!(fault.value & EXIDVALID, 0, "FAULT keeps EXIDVALID: {fault}");
                assert!(invalid.name == s2cr && invalid.value & EXIDVALID == 0, "{invalid}");
                assert!(is_fault(model, invalid.value), "{invalid}");
            }
            (_, _, rest) => panic!("{rest:?}"),
        }
        bench.audit();
    });
}

#[test]
fn i6_deassign_is_ok_only_behind_an_invalidate_and_a_completed_sync_on_every_part() {
    on_every_part(|model, mut bench| {
        let (guest, next) = (bench.guest("guest"), bench.guest("next"));
        let [dma, mate, far] =
            [("dma", 0x10), ("mate", 0x10), ("far", 0x20)].map(|(name, id)| bench.add(name, &[(id, 0)]));
        for device in [&dma, &mate, &far] {
            bench.assign(device, &guest).unwrap();
        }
        // A group-mate keeps the entry: the result says so.
        assert_eq!(bench.deassign(&mate).unwrap().still_reachable, [Label::from("dma")]);
        let old = bench.machine.smmu(SMMU, |smmu| vmid(smmu, 0)).unwrap();
        // The bank has another user, and has none: both drain.
        for (device, id) in [(&dma, 0x10), (&far, 0x20)] {
            let trace = accesses(&mut bench, |bench| assert_eq!(bench.deassign(device).unwrap().still_reachable, []));
            let is_write =
                |n: usize, name: &str| trace[n].direction == Direction::Write && names(&trace[n..=n]) == [name];
            let cut = (0..trace.len())
                .rfind(|n| trace[*n].name.starts_with("S2CR") && is_fault(model, trace[*n].value))
                .unwrap();
            let invalidated =
                (cut..trace.len()).find(|n| is_write(*n, "TLBIVMID")).expect("an invalidate behind the cut");
            assert_eq!(trace[invalidated].value, u64::from(old), "of the old VMID");
            let synced = (invalidated..trace.len()).find(|n| is_write(*n, "sTLBGSYNC")).expect("a sync behind that");
            let completed = |access: &Record| access.name.ends_with("TLBGSTATUS") && access.value & 1 == 0;
            assert!(trace[synced..].iter().any(completed), "which has completed");
            assert_eq!(bench.dma(id), Reached::Fault);
        }
        assert!(!entries(&bench).iter().any(|entry| entry.bank().is_some()), "no S2CR names the bank");
        // While a transaction that was steered to the bank may still arrive, it is not Ok.
        bench.assign(&far, &guest).unwrap();
        let id = bench.machine.smmu(SMMU, |smmu| smmu.accept(Transaction::read(0x20, PAGE, 8))).unwrap();
        bench.machine.with_memory(SMMU, |smmu, memory| smmu.step(memory, id)).unwrap();
        assert!(timed_out(&bench.deassign(&far).unwrap_err().cause));
        assert!(bench.assign(&far, &next).is_err(), "nor is it given away");
        bench.machine.with_memory(SMMU, |smmu, memory| smmu.finish(memory, id)).unwrap();
        bench.assign(&far, &next).unwrap();
        assert_eq!(bench.dma(0x20), Reached::Memory(next.backing));
        bench.audit();
    });
}
