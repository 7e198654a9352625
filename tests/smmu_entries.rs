//! Stream-map entries: reserved, written, shared, packed anew, refitted, given back (contract I-1, I-11, I-12, I-15, A-5).
//! Most tests call the driver alone.

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

use std::collections::{BTreeMap, BTreeSet};

use common::driver::{
    Driver, device, domain, entries, exhausted, lose_power, spellings, state, unchanged, watch_again,
};
use common::parts::{named, parts};
use common::presets::used;
use common::{Bench, SMMU, stream};
use iommu_assign::assign::{
    Cause, Device, DeviceId, DeviceSpec, Iommu, IommuError, IommuKey, IommuPower, Resource, StreamId, Streams,
    UsageRecord,
};
use machine::Reached;
use smmu_model::Config;

const ENTRIES: Resource = Resource::StreamMapEntries;

// --- reserve and enrol ---

#[test]
fn a1_a5_what_is_reserved_is_kept_from_others_and_costs_no_access() {
    for model in spellings(2) {
        let driver = Driver::new(model);
        assert_eq!(driver.writes(|| assert!(driver.publish(1, &[0x10, 0x21], false))), [""; 0]);
        assert!(!driver.publish(2, &[0x40], false));
        let refused = unchanged(&driver, || driver.reserve(2));
        assert_eq!(refused, Err(IommuError::Exhausted { resource: ENTRIES, needed: 1, free: 0, total: 2 }));
        let mut users = Vec::new();
        driver.smmu.usage(&mut |usage| users.extend(usage.device));
        assert_eq!(users, [device(1), device(1)], "A-5: which devices have them");
        driver.check();
        // Withdrawn before it was written: nothing is written then either.
        assert_eq!(driver.writes(|| assert_eq!(driver.withdraw(1), Ok(Streams::Fault))), [""; 0]);
        assert_eq!(driver.enrol(1), Err(IommuError::Unknown));
        driver.reserve(2).unwrap();
        driver.enrol(2).unwrap();
        driver.check();
    }
}

#[test]
fn i1_two_that_are_reserved_for_one_stream_share_one_entry_which_is_written_once() {
    for model in spellings(2) {
        let driver = Driver::new(model);
        assert!(driver.publish(1, &[0x10], false));
        assert!(!driver.publish(2, &[0x10], false));
        assert!(!driver.smmu.shares(device(1), device(2)));
        driver.reserve(2).unwrap();
        assert!(driver.smmu.shares(device(1), device(2)));
        assert_eq!(driver.writes(|| driver.enrol(1).unwrap()).len(), 2);
        assert_eq!(driver.writes(|| driver.enrol(2).unwrap()), [""; 0]);
        // The second entry is free.
        driver.add(3, &[0x40]);
        driver.check();
    }
}

#[test]
fn c15_an_install_before_enrol_writes_the_entry_and_enrol_writes_nothing_over_it() {
    for model in spellings(2) {
        for enrolled_between in [false, true] {
            let driver = Driver::new(model.clone());
            driver.enter(1, &[0x10], false).unwrap();
            driver.plan(&[1], 0).unwrap();
            if enrolled_between {
                assert_eq!(driver.writes(|| driver.enrol(1).unwrap()).len(), 2);
            }
            driver.install(&[1]).unwrap();
            assert_eq!(driver.writes(|| driver.enrol(1).unwrap()), [""; 0], "no fault over a live entry");
            assert_eq!(driver.reaches(0x10), Some(0));
            assert_eq!(driver.smmu.next_known(None), Some((device(1), Some(domain(0)))));
            driver.check();
        }
    }
}

#[test]
fn c15_a_mate_that_is_withdrawn_between_reserve_and_enrol_leaves_no_hole() {
    for model in spellings(4) {
        let driver = Driver::new(model);
        driver.add(1, &[0x10]);
        driver.publish(2, &[0x10, 0x41], false);
        driver.reserve(2).unwrap();
        driver.withdraw(1).unwrap();
        driver.enrol(2).unwrap();
        driver.assign(&[2], 0).unwrap();
        assert_eq!([0x10, 0x41].map(|id| driver.reaches(id)), [Some(0); 2], "I-13");
        driver.check();
    }
}

#[test]
fn i11_reserve_refuses_an_entry_with_a_user_outside_the_claim_and_takes_nothing() {
    let driver = Driver::new(Config::generic_v2());
    driver.add(1, &[0x10, 0x11]);
    driver.add(3, &[0x40]);
    driver.publish(2, &[0x11, 0x30], false);
    for claimed in [&[][..], &[2], &[3]] {
        assert_eq!(unchanged(&driver, || driver.reserve_among(2, claimed)), Err(IommuError::Foreign(device(1))));
    }
    assert_eq!(driver.reserve_among(2, &[1]), Ok(Streams::Fault));
    driver.enrol(2).unwrap();
    driver.check();
    // Nor does a plan take the entries of a lazy device among strangers.
    assert!(driver.publish(4, &[0x50, 0x51], true));
    driver.add(5, &[0x51]);
    let space = driver.space(0);
    let plan = || driver.smmu.plan(&[device(4)], &space, &|_| false);
    assert_eq!(unchanged(&driver, plan), Err(IommuError::Foreign(device(5))));
    driver.assign(&[4], 0).unwrap();
    assert_eq!(driver.reaches(0x50), Some(0));
    driver.check();
}

#[test]
fn i11_a_reservation_says_that_a_shared_entry_is_live() {
    let driver = Driver::new(Config::generic_v2());
    driver.add(1, &[0x10]);
    driver.assign(&[1], 0).unwrap();
    for (n, ids, streams) in [(2, [0x10, 0x20], Streams::Live), (3, [0x30, 0x31], Streams::Fault)] {
        assert_eq!(driver.enter(n, &ids, false), Ok(streams));
        driver.enrol(n).unwrap();
    }
    assert_eq!(driver.reaches(0x20), None, "an entry of its own is in fault");
    driver.check();
}

#[test]
fn i11_overlapping_names_each_device_with_a_common_id_once_in_order_and_no_other() {
    let driver = Driver::new(Config::generic_v2());
    let mut state = 1_u32;
    let mut random = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) % below
    };
    // Masks of many classes: some are looked up, and wide ones are walked.
    let masks = [0, 0, 0, 1, 3, 5, 0xf, 0x3f, 0x7f, 0x155];
    let mut devices: Vec<(u64, Vec<(u32, u32)>)> = Vec::new();
    for n in 1..=60 {
        let count = 1 + random(3);
        let streams: Vec<_> = (0..count).map(|_| (random(0x200), masks[random(10) as usize])).collect();
        driver.publish_streams(n * 7 % 61, &streams, false);
        devices.push((n * 7 % 61, streams));
    }
    devices.sort_unstable();
    let overlap = |a: &[(u32, u32)], b: &[(u32, u32)]| {
        a.iter().any(|(id, mask)| b.iter().any(|(other, ignored)| (id ^ other) & !(mask | ignored) == 0))
    };
    for (n, streams) in &devices {
        let others = devices.iter().filter(|(other, theirs)| other != n && overlap(streams, theirs));
        let expected: Vec<DeviceId> = others.map(|(other, _)| device(*other)).collect();
        let next = |after: &DeviceId| driver.smmu.overlapping(device(*n), Some(*after));
        let found: Vec<DeviceId> = std::iter::successors(driver.smmu.overlapping(device(*n), None), next).collect();
        assert_eq!(found, expected, "{streams:x?}");
    }
}

#[test]
fn a2_a_call_that_does_not_fit_a_devices_state_is_refused_and_changes_nothing() {
    let driver = Driver::new(Config::generic_v2());
    let unknown = Err(IommuError::Unknown);
    let busy = Err(IommuError::Busy);
    let refused = |what: &str, expected: &Result<(), IommuError>, act: &dyn Fn() -> Result<(), IommuError>| {
        assert_eq!(unchanged(&driver, act), *expected, "{what}");
    };
    refused("reserve of a stranger", &unknown, &|| driver.reserve(1).map(drop));
    refused("enrol of a stranger", &unknown, &|| driver.enrol(1));
    refused("plan of a stranger", &unknown, &|| driver.plan(&[1], 0));
    refused("withdraw of a stranger", &unknown, &|| driver.withdraw(1).map(drop));
    driver.add(3, &[0x10]);
    driver.publish(1, &[0x10], false);
    let again = driver.smmu.make_master(device(1), &[stream(SMMU, 0x20, 0)], false).unwrap();
    assert_eq!(driver.smmu.publish(again), Err(IommuError::Known));
    assert_eq!(driver.smmu.publish(Box::new(0_u32)), Err(IommuError::Unknown));
    refused("enrol before reserve", &unknown, &|| driver.enrol(1));
    refused("plan before reserve", &busy, &|| driver.plan(&[1], 0));
    driver.reserve(1).unwrap();
    refused("reserve twice", &busy, &|| driver.reserve(1).map(drop));
    driver.enrol(1).unwrap();
    refused("install without a plan", &busy, &|| driver.install(&[1]));
    refused("block in fault", &Ok(()), &|| driver.block(&[1]).map(drop));
    refused("abandon without a plan", &Ok(()), &|| {
        driver.abandon(&[1]);
        Ok(())
    });
    driver.plan(&[1], 0).unwrap();
    refused("plan twice", &busy, &|| driver.plan(&[1], 0));
    refused("withdraw with a plan", &busy, &|| driver.withdraw(1).map(drop));
    driver.install(&[1]).unwrap();
    refused("install twice", &busy, &|| driver.install(&[1]));
    refused("withdraw while live", &busy, &|| driver.withdraw(1).map(drop));
    refused("forget a domain in use", &Err(IommuError::InUse), &|| driver.forget(0));
    assert_eq!(driver.block(&[1]), Ok(Streams::Fault));
    driver.withdraw(1).unwrap();
    refused("enrol after withdraw", &unknown, &|| driver.enrol(1));
    driver.check();
}

#[test]
fn s5_what_is_enrolled_while_the_instance_sleeps_is_replayed_and_what_is_only_reserved_is_not() {
    for model in spellings(4) {
        let driver = Driver::new(model.clone());
        for (n, id) in [(1, 0x10), (2, 0x20)] {
            driver.enter(n, &[id], false).unwrap();
        }
        driver.smmu.suspend().unwrap();
        lose_power(&driver.bench, &model, 3);
        assert_eq!(driver.writes(|| driver.enrol(1).unwrap()), [""; 0]);
        driver.smmu.resume().unwrap();
        watch_again(&driver.bench);
        assert_eq!(entries(&driver.bench), [(0x10, 0)]);
        driver.check();
        assert_eq!(driver.writes(|| driver.enrol(2).unwrap()).len(), 2, "reserved before, written after");
        driver.check();
    }
}

// --- what an entry captures ---

#[test]
fn i15_a_devices_ids_merge_into_the_least_entries_that_capture_exactly_them_on_every_part() {
    for part in parts().into_iter().filter(|part| part.model.stream_matching) {
        let name = part.name;
        let mut bench = Bench::new();
        bench.part(part);
        let device = bench.add("dma", &[(0x10, 0), (0x11, 0), (0x12, 0), (0x13, 0)]);
        let guest = bench.guest("guest");
        bench.assign(&device, &guest).unwrap();
        for id in 0..0x40 {
            let expected = if (0x10..0x14).contains(&id) { Reached::Memory(guest.backing) } else { Reached::Fault };
            assert_eq!(bench.dma(id), expected, "{name}: {id:#x}");
        }
        assert_eq!(used(&bench).0, 1, "{name}");
        bench.audit();
    }
}

#[test]
fn i15_a_live_entry_does_not_move_or_widen_for_a_newcomer() {
    for model in spellings(8) {
        let driver = Driver::new(model);
        driver.add(1, &[0x10, 0x11, 0x20]);
        driver.assign(&[1], 0).unwrap();
        let before = entries(&driver.bench);
        // 0x12 and 0x13 would merge with the first entry, 0x21 with the second.
        driver.add(2, &[0x11, 0x12, 0x13, 0x21]);
        let after = entries(&driver.bench);
        assert!(before.iter().all(|entry| after.contains(entry)), "{before:x?} {after:x?}");
        assert_eq!(after.len(), 4, "{after:x?}");
        assert_eq!(
            [0x10, 0x11, 0x12, 0x13, 0x20, 0x21].map(|id| driver.reaches(id).is_some()),
            [true, true, false, false, true, false]
        );
        driver.check();
    }
}

#[test]
fn i15_a_group_in_fault_is_packed_anew_when_entries_run_out() {
    for model in spellings(2) {
        let driver = Driver::new(model);
        driver.add(1, &[0x10, 0x13]);
        driver.publish(2, &[0x11, 0x12, 0x13], false);
        unchanged(&driver, || assert_eq!(driver.reserve_among(2, &[]), Err(IommuError::Foreign(device(1)))));
        assert_eq!(driver.reserve(2), Ok(Streams::Fault));
        // The two old entries end before the new one comes: at no instant do two match. The oracle looks.
        driver.enrol(2).unwrap();
        assert_eq!(entries(&driver.bench), [(0x10, 3)]);
        assert!(driver.smmu.shares(device(1), device(2)));
        driver.check();
        driver.assign(&[1], 0).unwrap();
        assert_eq!(driver.reaches(0x12), Some(0), "a shared entry is open for both");
        assert_eq!(driver.block(&[1]), Ok(Streams::Fault));
        // What is left captures its own IDs again.
        driver.withdraw(2).unwrap();
        assert_eq!(entries(&driver.bench), [(0x10, 0), (0x13, 0)]);
        driver.check();
    }
}

#[test]
fn i15_what_is_live_or_planned_or_a_strangers_is_not_packed_anew() {
    for way in ["live", "planned", "a stranger"] {
        let driver = Driver::new(Config { groups: 2, ..Config::generic_v2() });
        driver.add(1, &[0x10, 0x13]);
        driver.publish(2, &[0x11, 0x12], false);
        match way {
            "live" => driver.assign(&[1], 0).unwrap(),
            "planned" => driver.plan(&[1], 0).unwrap(),
            _ => {}
        }
        let reserve = || if way == "a stranger" { driver.reserve_among(2, &[]) } else { driver.reserve(2) };
        assert!(exhausted(&unchanged(&driver, reserve), ENTRIES), "{way}");
        driver.check();
        // It does not fit where a cover of all is too large either.
        driver.abandon(&[1]);
        driver.block(&[1]).unwrap();
        driver.publish(3, &[0x40, 0x81], false);
        assert!(exhausted(&unchanged(&driver, || driver.reserve(3)), ENTRIES), "{way}");
        assert_eq!(driver.reserve(2), Ok(Streams::Fault), "{way}");
        driver.enrol(2).unwrap();
        driver.check();
    }
}

#[test]
fn i1_i15_entries_that_a_reservation_moved_are_written_by_what_goes_live_first() {
    for (groups, first, second) in [(1, [0x10, 0x11], [0x12, 0x13]), (2, [0x10, 0x13], [0x11, 0x12])] {
        for model in spellings(groups) {
            let driver = Driver::new(model);
            driver.add(1, &first);
            driver.publish(2, &second, false);
            driver.reserve(2).unwrap();
            // Of two entries one goes: what it matched, the other one matches from now on.
            driver.assign(&[1], 0).unwrap();
            assert_eq!(entries(&driver.bench), [(0x10, 3)]);
            assert_eq!(driver.writes(|| driver.enrol(2).unwrap()), [""; 0]);
            assert_eq!([0x10, 0x13].map(|id| driver.reaches(id)), [Some(0); 2]);
            driver.check();
        }
    }
}

#[test]
fn i15_a_newcomer_that_is_withdrawn_after_a_repack_leaves_the_others_their_ids() {
    for enrolled in [false, true] {
        for model in spellings(2) {
            let driver = Driver::new(model);
            driver.add(1, &[0x10, 0x13]);
            driver.publish(2, &[0x11, 0x12], false);
            driver.reserve(2).unwrap();
            if enrolled {
                driver.enrol(2).unwrap();
            }
            driver.withdraw(2).unwrap();
            assert_eq!(entries(&driver.bench), [(0x10, 0), (0x13, 0)], "enrolled: {enrolled}");
            driver.check();
            driver.assign(&[1], 0).unwrap();
            assert_eq!([0x10, 0x11, 0x12, 0x13].map(|id| driver.reaches(id)), [Some(0), None, None, Some(0)]);
            driver.check();
        }
    }
}

#[test]
fn i15_what_a_leaver_captured_is_captured_no_more_in_fault_at_once_and_live_when_next_in_fault() {
    for model in spellings(8) {
        for live in [false, true] {
            let driver = Driver::new(model.clone());
            driver.add(3, &[0x10, 0x11, 0x20, 0x21, 0x30, 0x31]);
            for (n, id) in [(1, 0x10), (2, 0x20), (4, 0x30)] {
                driver.add(n, &[id]);
            }
            if live {
                driver.assign(&[1], 0).unwrap();
            }
            assert_eq!(driver.withdraw(3), Ok(if live { Streams::Live } else { Streams::Fault }));
            let first = if live { (0x10, 1) } else { (0x10, 0) };
            assert_eq!(entries(&driver.bench), [first, (0x20, 0), (0x30, 0)], "live: {live}");
            assert_eq!(driver.reaches(0x11), live.then_some(0), "a live entry is not narrowed");
            driver.check();
            if live {
                // A device with such an ID meets the entry's users.
                driver.publish(5, &[0x11], false);
                assert_eq!(driver.smmu.overlapping(device(5), None), Some(device(1)));
                assert_eq!(driver.reserve_among(5, &[2]), Err(IommuError::Foreign(device(1))));
                driver.withdraw(5).unwrap();
                assert_eq!(driver.block(&[1]), Ok(Streams::Fault));
                assert_eq!(entries(&driver.bench), [(0x10, 0), (0x20, 0), (0x30, 0)]);
            }
            driver.assign(&[1, 2, 4], 0).unwrap();
            assert_eq!([0x11, 0x21, 0x31].map(|id| driver.reaches(id)), [None; 3]);
            driver.check();
        }
    }
}

#[test]
fn i15_where_entries_do_not_suffice_to_refit_one_it_stays_and_a_newcomer_meets_its_users() {
    let driver = Driver::new(Config { groups: 1, ..Config::generic_v2() });
    driver.add(3, &[0x10, 0x11, 0x12, 0x13]);
    driver.add(1, &[0x10]);
    driver.add(2, &[0x13]);
    driver.withdraw(3).unwrap();
    assert_eq!(entries(&driver.bench), [(0x10, 3)]);
    driver.publish(4, &[0x11], false);
    assert_eq!(driver.smmu.overlapping(device(4), None), Some(device(1)));
    assert_eq!(driver.reserve_among(4, &[]), Err(IommuError::Foreign(device(1))));
    driver.check();
    // The next time that it is in fault and one entry is enough, it is refitted.
    driver.withdraw(4).unwrap();
    driver.withdraw(2).unwrap();
    assert_eq!(entries(&driver.bench), [(0x10, 0)]);
    driver.check();
}

// --- counts ---

#[test]
fn i12_a_member_leaves_and_the_dma_of_those_that_share_its_entry_goes_on() {
    for model in spellings(8) {
        let driver = Driver::new(model);
        driver.add(1, &[0x10, 0x11, 0x12, 0x13]);
        driver.add(2, &[0x11]);
        driver.add(3, &[0x12]);
        driver.assign(&[1], 0).unwrap();
        driver.assign(&[2], 0).unwrap();
        driver.assign(&[3], 0).unwrap();
        assert_eq!(driver.block(&[1]), Ok(Streams::Live), "I-6: still reachable");
        assert_eq!([0x11, 0x12].map(|id| driver.reaches(id)), [Some(0); 2]);
        assert_eq!(driver.withdraw(2), Err(IommuError::Busy));
        assert_eq!(driver.block(&[2]), Ok(Streams::Live));
        assert_eq!(driver.reaches(0x12), Some(0));
        driver.check();
        assert_eq!(driver.block(&[3]), Ok(Streams::Fault));
        assert_eq!(driver.reaches(0x12), None);
        driver.check();
    }
}

#[test]
fn i13_a_mate_outside_the_move_that_keeps_an_entry_in_another_domain_makes_the_move_busy() {
    let driver = Driver::new(Config::generic_v2());
    driver.add(1, &[0x10]);
    driver.add(2, &[0x10, 0x20]);
    driver.assign(&[1, 2], 0).unwrap();
    for moves in [1, 2] {
        assert_eq!(unchanged(&driver, || driver.plan(&[moves], 1)), Err(IommuError::Busy), "it would move a mate");
    }
    driver.plan(&[1, 2], 1).unwrap();
    driver.block(&[1, 2]).unwrap();
    driver.install(&[1, 2]).unwrap();
    assert_eq!([0x10, 0x20].map(|id| driver.reaches(id)), [Some(1); 2]);
    driver.block(&[1, 2]).unwrap();
    // Each was planned while the entry was in fault: the second install finds it live elsewhere.
    driver.plan(&[1], 0).unwrap();
    driver.plan(&[2], 2).unwrap();
    driver.install(&[1]).unwrap();
    assert_eq!(unchanged(&driver, || driver.install(&[2])), Err(IommuError::Busy));
    assert_eq!([0x10, 0x20].map(|id| driver.reaches(id)), [Some(0), None]);
    driver.abandon(&[2]);
    driver.check();
}

#[test]
fn a5_a_host_bridge_with_more_ids_than_entries_adds_lazily() {
    let mut bench = Bench::new();
    bench.smmu(SMMU, Config { groups: 2, ..Config::generic_v2() });
    let guest = bench.guest("guest");
    let functions: Vec<Device> = (0..6)
        .map(|n| {
            let mut spec = bench.spec(&format!("function {n}"), &[(0x11 << n, 0)]);
            spec.lazy = true;
            bench.service.add(spec).unwrap()
        })
        .collect();
    assert_eq!(entries(&bench), []);
    bench.audit();
    for function in &functions[..2] {
        bench.assign(function, &guest).unwrap();
    }
    assert_eq!(bench.dma(0x22), Reached::Memory(guest.backing));
    let (_, writes, refused) = bench.cost(|| bench.service.assign(&functions[2], &guest.domain));
    let exhausted = IommuError::Exhausted { resource: ENTRIES, needed: 1, free: 0, total: 2 };
    assert_eq!((writes, refused.unwrap_err().cause), (0, Cause::Iommu { iommu: SMMU, error: exhausted }));
    let mut users = Vec::new();
    let sink = &mut |usage: &UsageRecord| users.extend(usage.device.clone());
    bench.service.usage(SMMU, sink).unwrap();
    assert_eq!(users, ["function 0".into(), "function 1".into()]);
    bench.remove(&functions[0]).unwrap();
    bench.assign(&functions[2], &guest).unwrap();
    bench.audit();
    for function in &functions[1..] {
        bench.remove(function).unwrap();
    }
    assert_eq!(entries(&bench), []);
}

// --- through the service ---

#[test]
fn a5_a_device_that_does_not_fit_is_refused_and_usage_says_what_has_the_entries() {
    let mut bench = Bench::new();
    bench.smmu(SMMU, Config { groups: 2, ..Config::generic_v2() });
    bench.add("hog", &[(0x1, 0)]);
    let spec = bench.spec("late", &[(0x10, 0), (0x23, 0)]);
    let (reads, writes, refused) = bench.cost(|| bench.service.add(spec));
    let error = refused.unwrap_err();
    let exhausted = IommuError::Exhausted { resource: ENTRIES, needed: 1, free: 1, total: 2 };
    assert_eq!(error.cause, Cause::Iommu { iommu: SMMU, error: exhausted });
    assert_eq!((reads, writes), (0, 0));
    let mut users = Vec::new();
    bench.service.usage(SMMU, &mut |usage| users.push(usage.device.clone().unwrap())).unwrap();
    assert_eq!(users, ["hog".into()]);
    // One that no empty map holds says so too.
    let spec = bench.spec("huge", &[(0x10, 0), (0x23, 0), (0x41, 0)]);
    let (_, writes, refused) = bench.cost(|| bench.service.add(spec));
    assert!(matches!(refused.unwrap_err().cause, Cause::Iommu { error: IommuError::Exhausted { .. }, .. }));
    assert_eq!(writes, 0);
}

#[test]
fn i15_a_device_and_its_parent_do_not_merge_into_one_group_when_entries_run_out() {
    let mut bench = Bench::new();
    bench.smmu(SMMU, Config { groups: 2, ..Config::generic_v2() });
    let parent = bench.add("parent", &[(0x18, 0)]);
    bench.add("other", &[(0x40, 0)]);
    let child = DeviceSpec { parent: Some(parent.key()), ..bench.spec("child", &[(0x19, 0)]) };
    let refused = bench.service.add(child.clone()).unwrap_err();
    assert!(matches!(refused.cause, Cause::Iommu { error: IommuError::Exhausted { .. }, .. }), "{refused}");
    // Where their streams overlap they are one, and may be packed together.
    let streams = vec![stream(SMMU, 0x18, 0), stream(SMMU, 0x19, 0)];
    let child = bench.service.add(DeviceSpec { streams, ..child }).unwrap();
    assert_eq!(bench.service.find(child.key()).unwrap().group, bench.service.find(parent.key()).unwrap().group);
    bench.audit();
}

#[test]
fn a12_an_owner_is_found_by_stream_and_by_the_domain_that_translates_it() {
    let driver = Driver::part(named("mmu-500 Layerscape"));
    for n in 0..100_u32 {
        if !driver.publish_streams(u64::from(n) + 1, &[(n << 4, n & 3)], false) {
            driver.reserve(u64::from(n) + 1).unwrap();
        }
        driver.enrol(u64::from(n) + 1).unwrap();
    }
    let owner = |id, domain| driver.smmu.owner_of(StreamId::new(id), domain);
    for n in 0..100_u32 {
        assert_eq!(owner(n << 4, None), Some(device(u64::from(n) + 1)));
    }
    assert_eq!(owner(8, None), None);
    driver.assign(&[2], 0).unwrap();
    assert_eq!(owner(0x10, Some(domain(0))), Some(device(2)));
    assert_eq!(owner(0x10, Some(domain(1))), None, "another domain's record does not blame it");
    assert_eq!(owner(0x20, Some(domain(0))), None, "it is in fault");
}

#[test]
fn i15_what_shares_an_entry_on_an_smmu_that_a_leaver_is_not_on_stays_one_group() {
    const SECOND: IommuKey = IommuKey::new(0x6000_0000);
    let mut bench = Bench::v2();
    bench.smmu(SECOND, Config::generic_v2());
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let mut add = |name: &str, first: &[u32], second: &[u32]| {
        let mut spec = bench.spec(name, &[]);
        spec.streams = first.iter().map(|id| stream(SMMU, *id, 0)).collect();
        spec.streams.extend(second.iter().map(|id| stream(SECOND, *id, 0)));
        let ids: Vec<_> = first.iter().chain(second).map(|id| (*id, 0)).collect();
        bench.oracle.allow(&name.into(), &ids, &[one.backing]);
        bench.service.add(spec).unwrap()
    };
    let wide = add("wide", &[], &[0x10, 0x11]);
    let narrow = add("narrow", &[0x30], &[0x10]);
    let far = add("far", &[], &[0x11]);
    let leaver = add("leaver", &[0x30], &[]);
    bench.service.assign(&narrow, &one.domain).unwrap();
    // The one entry on the second SMMU is live: it outlives the device for which it was made.
    drop(bench.service.remove(wide.key()).unwrap());
    drop(bench.service.remove(leaver.key()).unwrap());
    let refused = bench.service.assign(&far, &two.domain).unwrap_err();
    assert!(matches!(refused.cause, Cause::GroupConflict { .. }), "{refused}");
    bench.audit();
    // In fault each gets an entry of its own.
    drop(bench.service.deassign(&narrow).unwrap());
    bench.oracle.allow(&"far".into(), &[(0x11, 0)], &[two.backing]);
    bench.service.assign(&far, &two.domain).unwrap();
    bench.audit();
}

// --- any order of calls ---

/// A device of the random life.
#[derive(Clone, Default)]
struct Known {
    ids: Vec<u32>,
    live: Option<u64>,
}

#[test]
fn i1_i12_i13_a5_any_order_of_calls_keeps_entries_counts_and_owners() {
    for seed in 1..16 {
        for model in spellings(6) {
            let model = Config { banks: 3, stage2_banks: 0, ..model };
            random_life(seed, model);
        }
    }
}

fn random_life(seed: u32, model: Config) {
    let driver = Driver::new(model);
    // Each ID for itself: a live entry keeps the IDs of a device that has left.
    (0..16).for_each(|id| driver.opens(1000 + u64::from(id), &[(id, 0)], &[0, 1, 2, 3]));
    let mut state = seed.wrapping_mul(0x9e37_79b9);
    let mut random = |below: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 10) % below
    };
    let mut known: BTreeMap<u64, Known> = BTreeMap::new();
    for step in 0..80_u64 {
        let some = known.keys().nth(random(known.len().max(1) as u32) as usize).copied();
        match (random(8), some) {
            (0..=2, _) if known.len() < 6 => {
                let n = step + 1;
                let ids: BTreeSet<u32> = (0..1 + random(4)).map(|_| random(16)).collect();
                let ids: Vec<u32> = ids.into_iter().collect();
                let reserved = driver.publish(n, &ids, random(4) == 0);
                driver.forgets(n);
                let reserve = || if reserved { Ok(Streams::Fault) } else { driver.reserve(n) };
                match unchanged_on_error(&driver, reserve) {
                    Ok(_) => {
                        driver.enrol(n).unwrap();
                        known.insert(n, Known { ids, live: None });
                    }
                    Err(error) => {
                        assert!(matches!(error, IommuError::Exhausted { .. }), "{error}");
                        driver.withdraw(n).unwrap();
                    }
                }
            }
            (3..=4, Some(n)) => {
                // As the service has it: a group has one owner, and moves as a whole.
                let group = group_of(&driver, &known, n);
                let live: Vec<u64> = group.into_iter().filter(|mate| known[mate].live.is_some()).collect();
                let (moves, guest) = match live.first().and_then(|mate| known[mate].live) {
                    Some(owner) if known[&n].live.is_none() => (vec![n], owner),
                    Some(owner) => (live, (owner + 1 + u64::from(random(3))) % 4),
                    None => (vec![n], u64::from(random(4))),
                };
                match unchanged_on_error(&driver, || driver.plan(&moves, guest)) {
                    Ok(()) if random(5) == 0 => driver.abandon(&moves),
                    Ok(()) => {
                        driver.block(&moves).unwrap();
                        driver.install(&moves).unwrap();
                        moves.iter().for_each(|n| known.get_mut(n).unwrap().live = Some(guest));
                    }
                    Err(error) => assert!(matches!(error, IommuError::Exhausted { .. }), "{error}"),
                }
            }
            (5..=6, Some(n)) => {
                let streams = driver.block(&[n]).unwrap();
                known.get_mut(&n).unwrap().live = None;
                let mates = known.values().any(|mate| mate.live.is_some());
                assert!(streams == Streams::Fault || mates);
            }
            (7, Some(n)) if known[&n].live.is_none() => {
                driver.withdraw(n).unwrap();
                known.remove(&n);
            }
            _ => {}
        }
        driver.check();
        for one in known.values() {
            for id in &one.ids {
                let reached = driver.reaches(*id);
                assert!(
                    one.live.is_none() || reached == one.live,
                    "seed {seed}, step {step}: {id:#x} reaches {reached:?}"
                );
            }
        }
        for id in 0..16 {
            let reached = driver.reaches(id);
            let open = known.values().any(|one| one.live.is_some() && one.live == reached);
            assert!(reached.is_none() || open, "seed {seed}, step {step}: {id:#x} reaches {reached:?}");
        }
    }
    for (n, _) in known {
        driver.block(&[n]).unwrap();
        driver.withdraw(n).unwrap();
    }
    assert_eq!((entries(&driver.bench), driver.banks()), (vec![], vec![]), "A-3: nothing is left");
    driver.check();
}

/// The devices that share IDs or entries with device `n`, over any number of steps.
fn group_of(driver: &Driver, known: &BTreeMap<u64, Known>, n: u64) -> BTreeSet<u64> {
    let mut group = BTreeSet::from([n]);
    loop {
        let together = |one: &u64, other: &u64| {
            let common = known[one].ids.iter().any(|id| known[other].ids.contains(id));
            common || driver.smmu.shares(device(*one), device(*other))
        };
        let joins = known.keys().find(|other| !group.contains(other) && group.iter().any(|one| together(one, other)));
        let Some(joins) = joins else { return group };
        group.insert(*joins);
    }
}

fn unchanged_on_error<T>(driver: &Driver, act: impl FnOnce() -> Result<T, IommuError>) -> Result<T, IommuError> {
    let before = state(driver);
    let done = act();
    assert!(done.is_ok() || before == self::state(driver));
    done
}
