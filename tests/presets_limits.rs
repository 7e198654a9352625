//! Atomicity, limits and bad input on every part that the model offers: a test for each of the lines of the
//! contract that depend on the part. The oracle of `common` looks after each write of each test.
//!
//! A-4 has its test in `smmu_drains.rs`. What firmware describes, the order of
//! operations and the policy are the same whatever the part is.

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

use common::parts::{Part, parts};
use common::presets::{is_fault, on_every_part, scr0, stuck, timed_out, used, with_banks};
use common::{Bench, Guest, NOT_DRAINED, PAGE, SMMU};
use iommu_assign::assign::{
    Access, Cause, Device, DeviceState, Error, FaultCause, FaultLine, IommuError, Label, Left, Resource, Service,
    StreamId,
};
use iommu_assign::smmu::{Masters, ProbeError, Smmu, SmmuConfig};
use iommu_assign::sync::Spin;
use machine::{Machine, Reached};
use smmu_model::{Architecture, Config, Injection};

/// The entry that a device with stream 0x10 gets first.
fn first(model: &Config) -> u8 {
    if model.stream_matching { 0 } else { 0x10 }
}

fn exhausted(error: &Error, wanted: Resource) -> bool {
    let of = |error: &IommuError| matches!(error, IommuError::Exhausted { resource, needed: 1, free: 0, .. } if *resource == wanted);
    error.left == Left::Unchanged && matches!(&error.cause, Cause::Iommu { error, .. } if of(error))
}

#[test]
fn a1_what_the_plan_refuses_changes_nothing_and_what_fails_later_ends_in_fault_on_every_part() {
    for part in with_banks(1) {
        let mut bench = Bench::new();
        bench.part(part);
        let (one, two) = (bench.guest("one"), bench.guest("two"));
        let (device, other) = (bench.add("dma", &[(0x10, 0)]), bench.add("other", &[(0x20, 0)]));
        bench.assign(&device, &one).unwrap();
        let before = bench.machine.smmu(SMMU, |smmu| smmu.clone()).unwrap();
        assert!(exhausted(&bench.assign(&other, &two).unwrap_err(), Resource::ContextBanks));
        assert!(before == bench.machine.smmu(SMMU, |smmu| smmu.clone()).unwrap(), "not even a register was read");
        assert_eq!(bench.state(&other), DeviceState::Blocked);
        // The same domain needs no bank, and the bank that a reassign frees counts.
        bench.reassign(&device, &two).unwrap();
        bench.audit();
        bench.machine.smmu(SMMU, |smmu| smmu.inject(stuck()));
        let error = bench.reassign(&device, &one).unwrap_err();
        assert!(timed_out(&error.cause) && error.left == Left::Quarantined, "{error}");
        assert_eq!(bench.dma(0x10), Reached::Fault);
        assert_eq!(bench.state(&device), NOT_DRAINED);
    }
}

#[test]
fn a2_every_illegal_pair_of_state_and_operation_touches_no_register_on_every_part() {
    on_every_part(|_, mut bench| {
        let (one, two) = (bench.guest("one"), bench.guest("two"));
        let device = bench.add("dma", &[(0x10, 0)]);
        let refused = |bench: &Bench, act: &dyn Fn(&Service<Spin>) -> Result<(), Error>| {
            let (reads, writes, refused) = bench.cost(|| act(&bench.service));
            let error = refused.unwrap_err();
            assert_eq!((reads, writes, error.left), (0, 0, Left::Unchanged));
            error.cause
        };
        let assign = |guest: &Guest| refused(&bench, &|service| service.assign(&device, &guest.domain));
        let reassign = |guest: &Guest| refused(&bench, &|service| service.reassign(&device, &guest.domain));
        let deassign = || refused(&bench, &|service| service.deassign(&device).map(drop));
        assert_eq!([reassign(&one), deassign()], [Cause::NotAssigned, Cause::NotAssigned]);
        bench.oracle.allow(device.label(), &[(0x10, 0)], &[one.backing]);
        bench.service.assign(&device, &one.domain).unwrap();
        let already = Cause::AlreadyAssigned { domain: Label::from("one") };
        for cause in [assign(&one), assign(&two), reassign(&one)] {
            assert_eq!(cause, already);
        }
        assert_eq!(bench.dma(0x10), Reached::Memory(one.backing));
        bench.service.remove(device.key()).unwrap();
        for cause in [assign(&one), reassign(&one), deassign()] {
            assert_eq!(cause, Cause::Gone);
        }
        bench.audit();
    });
}

#[test]
fn a3_add_then_remove_leaks_nothing_on_every_part() {
    on_every_part(|model, mut bench| {
        let guests = [bench.guest("even"), bench.guest("odd")];
        // More often than there are entries or banks.
        for round in 0..usize::from(model.groups.max(model.banks)) + 3 {
            let device = bench.add("plug", &[(0x10, 0x1), (0x24, 0)]);
            bench.assign(&device, &guests[round % 2]).unwrap_or_else(|error| panic!("round {round}: {error}"));
            if round % 3 == 0 {
                drop(bench.deassign(&device).unwrap());
            }
            bench.remove(&device).unwrap();
            assert_eq!(used(&bench), (0, 0), "round {round}");
            if round == 8 {
                // The oracle has seen it all by now, and it is what takes its time.
                bench.machine.observe(SMMU, Box::new(|_, _| ()));
            }
        }
        bench.audit();
    });
}

#[test]
fn a5_running_out_changes_nothing_and_says_of_what_and_what_has_it_on_every_part() {
    // Banks. Fewer than there are, and fewer than entries, so that it is banks that end.
    for part in with_banks(3) {
        let mut bench = Bench::new();
        let banks = bench.part(part).geometry().banks;
        let devices: Vec<Device> =
            (0..=banks).map(|n| bench.add(&format!("dev{n}"), &[(u32::from(n) * 8, 0)])).collect();
        let guests: Vec<Guest> = (0..=banks).map(|n| bench.guest(&format!("guest{n}"))).collect();
        let last = usize::from(banks);
        for n in 0..last {
            bench.assign(&devices[n], &guests[n]).unwrap();
        }
        let (reads, writes, refused) = bench.cost(|| bench.service.assign(&devices[last], &guests[last].domain));
        assert!(exhausted(&refused.unwrap_err(), Resource::ContextBanks));
        assert_eq!((reads, writes), (0, 0));
        let mut users = Vec::new();
        bench
            .service
            .usage(SMMU, &mut |usage| {
                users.extend(usage.domain.clone().filter(|_| usage.resource == Resource::ContextBanks));
            })
            .unwrap();
        let expected: Vec<Label> = (0..banks).map(|n| Label::from(format!("guest{n}").as_str())).collect();
        assert_eq!(users, expected);
        drop(bench.deassign(&devices[0]).unwrap());
        bench.assign(&devices[last], &guests[last]).unwrap();
        bench.audit();
    }
    // Entries, where there are more IDs than entries.
    on_every_part(|model, mut bench| {
        if !model.stream_matching || u32::from(model.groups) > model.smr_id.into() {
            return;
        }
        for n in 0..model.groups {
            bench.add(&format!("dev{n}"), &[(n.into(), 0)]);
        }
        let spec = bench.spec("late", &[(model.groups.into(), 0)]);
        let (reads, writes, refused) = bench.cost(|| bench.service.add(spec));
        assert!(exhausted(&refused.unwrap_err(), Resource::StreamMapEntries));
        assert_eq!((reads, writes), (0, 0));
        let mut users = std::collections::BTreeSet::new();
        bench.service.usage(SMMU, &mut |usage| users.extend(usage.device.clone())).unwrap();
        assert_eq!(users, (0..model.groups).map(|n| Label::from(format!("dev{n}").as_str())).collect());
        assert!(bench.service.devices().count() == model.groups.into());
        bench.audit();
    });
}

#[test]
fn a6_ids_and_masks_that_the_part_cannot_tell_apart_are_refused_at_add_on_every_part() {
    on_every_part(|model, mut bench| {
        let (widest, carried) = match (model.stream_matching, model.extended_ids) {
            (false, _) => (0x7f, 0x7f),
            (true, true) => (0xffff, 0xffff),
            (true, false) => (u32::from(model.smr_id), 0x7fff),
        };
        for (id, mask) in [(widest + 1, 0), (widest + 0x11, 0), (u32::MAX, 0), (0x10, carried + 1), (0, u32::MAX)] {
            let spec = bench.spec("wide", &[(0x3, 0), (id, mask)]);
            let (reads, writes, refused) = bench.cost(|| bench.service.add(spec));
            let error = refused.unwrap_err();
            assert!(matches!(error.cause, Cause::Iommu { error: IommuError::TooWide { .. }, .. }), "{error}");
            assert_eq!((reads, writes, error.left, error.subject), (0, 0, Left::Unchanged, Label::from("wide")));
        }
        assert_eq!((bench.service.devices().count(), used(&bench)), (0, (0, 0)));
        let guest = bench.guest("guest");
        let device = bench.add("just fits", &[(widest, 0)]);
        if widest == 0x7f {
            // The oracle asks about this one too: the bus carries seven bits of it, or an SMR compares no more (Q22).
            bench.oracle.allow(&"seven bits".into(), &[(0x7fff, 0)], &[guest.backing]);
        }
        bench.assign(&device, &guest).unwrap();
        assert_eq!(bench.dma(widest), Reached::Memory(guest.backing));
        assert_eq!(bench.dma(widest & !1), Reached::Fault);
        bench.audit();
    });
}

#[test]
fn a7_a_part_that_lies_fails_its_probe_or_the_operation_that_meets_it_on_every_part() {
    let probe = |part: Part, lie: Option<Injection>| {
        let machine = Machine::new();
        let registers = machine.add_smmu(SMMU, part.model);
        machine.smmu(SMMU, |smmu| lie.into_iter().for_each(|lie| smmu.inject(lie)));
        Smmu::<Spin, _>::probe(part.config, registers, Arc::new(Masters::new())).map(drop).unwrap_err()
    };
    for n in 0..parts().len() {
        let part = || parts().remove(n);
        let model = part().model;
        println!("on {}", part().name);
        assert_eq!(probe(part(), Some(Injection::AllOnes)), ProbeError::NotThere(SMMU));
        assert!(matches!(probe(part(), Some(stuck())), ProbeError::SyncTimeout { .. }));
        let deaf = probe(part(), Some(Injection::WriteDoesNotStick(scr0(&model))));
        assert!(matches!(deaf, ProbeError::ControlNotTaken { .. }), "{deaf}");
        let stage1 = Config { stage1: true, stage2: false, nested: false, stage2_banks: 0, ..model.clone() };
        assert_eq!(probe(Part { model: stage1, ..part() }, None), ProbeError::NoStage2(SMMU));
        // In read-back mode a write that does not hold is found at once.
        let mut bench = Bench::new();
        let lost = |error: &Error| matches!(error.cause, Cause::Iommu { error: IommuError::WriteLost { .. }, .. });
        bench.smmu_as(SmmuConfig { read_back: true, ..part().config }, part().model);
        let guest = bench.guest("guest");
        if model.stream_matching {
            bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::WriteDoesNotStick(smmu.smr(0))));
            let spec = bench.spec("dma", &[(0x10, 0)]);
            assert!(lost(&bench.service.add(spec).unwrap_err()));
            bench.machine.smmu(SMMU, smmu_model::Smmu::clear_injections);
        }
        let device = bench.add("dma", &[(0x10, 0)]);
        bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::WriteDoesNotStick(smmu.s2cr(first(&model)))));
        let error = bench.assign(&device, &guest).unwrap_err();
        assert!(lost(&error) && error.left == Left::Quarantined, "{error}");
        assert_eq!(bench.dma(0x10), Reached::Fault);
    }
}

#[test]
fn a8_nothing_panics_on_a_part_that_has_lost_its_clock_on_every_part() {
    on_every_part(|_, mut bench| {
        let (one, two) = (bench.guest("one"), bench.guest("two"));
        let (device, idle) = (bench.add("dma", &[(0x10, 0)]), bench.add("idle", &[(0x20, 0)]));
        bench.assign(&device, &one).unwrap();
        bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::AllOnes));
        // What it does is not what it is told: the oracle is content where the device still reaches its first owner.
        assert!(timed_out(&bench.service.flush(&one.domain).unwrap_err().cause));
        let handle = bench.service.iommu(SMMU).unwrap();
        for line in [FaultLine::Global, FaultLine::Context(0), FaultLine::Context(u8::MAX)] {
            let mut faults = 0;
            let _ = handle.take_faults(line, &mut |_| faults += 1);
            assert!(faults <= 1000, "{faults}");
        }
        let mut findings = 0;
        bench.service.audit(&mut |_| findings += 1);
        assert!(findings > 0);
        assert_eq!(bench.service.reassign(&device, &two.domain).unwrap_err().left, Left::Quarantined);
        assert!(timed_out(&bench.service.assign(&device, &two.domain).unwrap_err().cause), "a drain is owed");
        let late = bench.spec("late", &[(0x30, 0)]);
        let _ = bench.service.add(late);
        let _ = bench.service.remove(idle.key());
        assert!(timed_out(&bench.service.destroy_domain(&one.domain).unwrap_err().cause), "its tables must stay");
        assert!(handle.crash().is_err());
    });
}

#[test]
fn a10_audit_names_each_register_that_differs_and_writes_nothing_on_every_part() {
    on_every_part(|model, mut bench| {
        let guest = bench.guest("guest");
        let device = bench.add("dma", &[(0x10, 0)]);
        bench.assign(&device, &guest).unwrap();
        bench.audit();
        let (entry, control) = (first(model), scr0(model));
        let at = bench.machine.smmu(SMMU, |smmu| {
            let bank = |register| smmu.bank(0, register);
            let fault = if is_fault(model, 1 << 16) { 1 << 16 } else { 2 << 16 };
            let mut at = vec![
                ("S2CR", smmu.s2cr(entry), fault),
                ("SCTLR.M", bank(0), 1),
                ("TTBR0", bank(0x20), 0x2000),
                ("TCR", bank(0x30), 1),
                ("sCR0", control, 1 << 10),
            ];
            // Where the VMID stands, and what decides how TCR and TTBR0 are read.
            at.push(if model.vmid16 { ("CBA2R", smmu.cba2r(0), 1 << 16) } else { ("CBAR", smmu.cbar(0), 1) });
            if model.architecture != Architecture::V1 {
                at.push(("CBA2R", smmu.cba2r(0), 1));
            }
            if model.stream_matching {
                at.push(("SMR", smmu.smr(entry), 1));
            }
            at
        });
        for (what, register, bits) in at.unwrap() {
            let before = bench.machine.smmu(SMMU, |smmu| smmu.clone()).unwrap();
            bench.machine.smmu(SMMU, |smmu| {
                let value = smmu.peek32(register);
                smmu.write32(register, value ^ bits);
            });
            let mut findings = Vec::new();
            let (_, writes, ()) = bench.cost(|| bench.service.audit(&mut |finding| findings.push(finding.to_string())));
            assert_eq!(writes, 0);
            let named = |line: &String| line.contains(&format!(" {what}["));
            assert!(findings.len() == 1 && findings.iter().all(named), "{what}: {findings:?}");
            bench.machine.smmu(SMMU, |smmu| *smmu = before);
        }
        bench.audit();
    });
}

#[test]
fn a12_a_fault_record_names_device_domain_address_access_and_cause_once_on_every_part() {
    for part in parts() {
        println!("on {}", part.name);
        let mut bench = Bench::new();
        let smmu = bench.part(part);
        let guest = bench.guest("guest");
        let device = bench.add("dma", &[(0x10, 0)]);
        bench.assign(&device, &guest).unwrap();
        let take = |bench: &Bench, line| {
            let mut records = Vec::new();
            let _ = bench.service.handle_fault(SMMU, line, &mut |fault| records.push(fault.clone())).unwrap();
            records
        };
        let line = FaultLine::Context(smmu.line_of(0).unwrap_or(0));
        bench.machine.dma_write(SMMU, StreamId::new(0x10), PAGE + 0x5000).unwrap();
        let records = take(&bench, line);
        let [record] = records.as_slice() else { panic!("{records:?}") };
        assert_eq!((&record.device, &record.domain), (&Some(Label::from("dma")), &Some(Label::from("guest"))));
        let raw = record.raw;
        assert_eq!((raw.iommu, raw.bank, raw.stream), (SMMU, Some(0), Some(StreamId::new(0x10))));
        assert_eq!((raw.address, raw.access, raw.cause), (Some(PAGE + 0x5000), Access::Write, FaultCause::Translation));
        assert_eq!((raw.more_lost, take(&bench, line)), (false, vec![]), "delivered once");
        for _ in 0..2 {
            bench.machine.dma_write(SMMU, StreamId::new(0x10), PAGE + 0x6000).unwrap();
        }
        let lost: Vec<bool> = take(&bench, line).iter().map(|record| record.raw.more_lost).collect();
        assert_eq!(lost, [true], "MULTI counts as lost");
        // Global faults have no bank.
        drop(bench.deassign(&device).unwrap());
        bench.dma(0x10);
        let records = take(&bench, FaultLine::Global);
        let [record] = records.as_slice() else { panic!("{records:?}") };
        assert_eq!((record.raw.bank, &record.device), (None, &Some(Label::from("dma"))));
        assert_eq!(record.raw.stream, Some(StreamId::new(0x10)));
    }
}
