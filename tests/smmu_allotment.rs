//! Between `allot` and `enrol`: what is promised on paper, whoever calls the driver meanwhile. Contract A-1, C-15.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use common::{Bench, PAGE, SMMU, block, described, sharing, stream, withdraw};
use iommu_assign::assign::{
    AddressSpace, DeviceId, DomainId, Iommu, IommuError, Label, NewMaster, Prepared, Resource, Withdrawn,
};
use iommu_assign::smmu::{Setup, Smmu};
use iommu_assign::sync::Spin;
use machine::{ModelRegisters, Stage2Tables};
use smmu_model::{Config, Direction};

/// The driver alone, with as many entries as a test wants, under the oracle.
struct Driver {
    bench: Bench,
    smmu: Arc<Smmu<Spin, ModelRegisters>>,
    tables: Stage2Tables,
    masters: RefCell<BTreeMap<u64, NewMaster>>,
}

const BACKING: u64 = 0x1_0000_0000;

const fn device(n: u64) -> DeviceId {
    DeviceId::new(n)
}

impl Driver {
    fn new(model: Config) -> Self {
        Self::with(Setup::default(), model)
    }

    fn with(setup: Setup, model: Config) -> Self {
        let bench = Bench::new();
        let registers = bench.machine.add_smmu(SMMU, model.clone());
        let smmu = Smmu::probe_with(described(SMMU, &model), setup, registers, bench.masters.clone()).unwrap();
        bench.oracle.watch(&bench.machine, SMMU, PAGE);
        let mut tables = Stage2Tables::new(&bench.machine, 0x9000_0000, 40, 40);
        tables.map(PAGE, BACKING, true);
        Self { bench, smmu: Arc::new(smmu), tables, masters: RefCell::default() }
    }

    /// Returns whom it meets.
    fn publish(&self, n: u64, ids: &[u32]) -> Vec<DeviceId> {
        let streams: Vec<_> = ids.iter().map(|id| stream(SMMU, *id, 0)).collect();
        let mut master = self.smmu.new_master(device(n), &streams, None).unwrap();
        let mut met = Vec::new();
        self.smmu.publish(&mut master, &mut |device| met.push(device)).unwrap();
        self.masters.borrow_mut().insert(n, master);
        met
    }

    fn allot(&self, n: u64) -> Result<usize, IommuError> {
        self.smmu.allot(self.masters.borrow_mut().get_mut(&n).unwrap())
    }

    fn enrol(&self, n: u64) -> Result<(), IommuError> {
        self.smmu.enrol(self.masters.borrow_mut().get_mut(&n).unwrap())
    }

    fn add(&self, n: u64, ids: &[u32]) {
        self.publish(n, ids);
        self.allot(n).unwrap();
        self.enrol(n).unwrap();
    }

    /// From now on these IDs may reach the one space that there is.
    fn opens(&self, ids: &[u32]) {
        let pairs: Vec<_> = ids.iter().map(|id| (*id, 0)).collect();
        self.bench.oracle.allow(&Label::from(format!("{ids:x?}").as_str()), &pairs, &[BACKING]);
    }

    fn plan(&self, n: u64) -> Result<Prepared, IommuError> {
        let space = AddressSpace { domain: DomainId::new(1), stage2: self.tables.stage2() };
        self.smmu.plan(&[device(n)], &space, &mut |_| ())
    }

    fn assign(&self, n: u64) -> Result<(), IommuError> {
        self.smmu.install(&[device(n)], self.plan(n)?)
    }

    /// The registers that `act` writes.
    fn writes(&self, act: impl FnOnce()) -> Vec<String> {
        self.bench.machine.smmu(SMMU, smmu_model::Smmu::start_trace);
        act();
        let trace = self.bench.machine.smmu(SMMU, smmu_model::Smmu::take_trace).unwrap();
        trace.into_iter().filter(|access| access.direction == Direction::Write).map(|access| access.name).collect()
    }

    fn check(&self) {
        let mut differences = Vec::new();
        self.smmu.audit(&mut |difference| differences.push(difference.to_string()));
        assert_eq!(differences, [""; 0]);
        let (_, violations) = self.bench.oracle.verdict();
        assert!(violations.is_empty(), "{violations:#?}");
    }
}

/// Validity in the SMR, and in the S2CR.
fn spellings(groups: u32) -> [Config; 2] {
    let groups = groups.try_into().unwrap();
    let plain = Config { groups, ..Config::generic_v2() };
    [Config { extended_ids: true, ..plain.clone() }, plain]
}

#[test]
fn a1_what_is_allotted_is_kept_from_others_and_costs_no_access() {
    for model in spellings(2) {
        let driver = Driver::new(model);
        driver.publish(1, &[0x10, 0x21]);
        driver.publish(2, &[0x40]);
        assert_eq!(driver.writes(|| assert_eq!(driver.allot(1), Ok(2))), [""; 0]);
        let exhausted = IommuError::Exhausted { resource: Resource::StreamMapEntries, needed: 1, free: 0, total: 2 };
        assert_eq!(driver.allot(2), Err(exhausted));
        assert_eq!(driver.plan(2).unwrap_err(), exhausted);
        let mut users = Vec::new();
        driver.smmu.usage(&mut |usage| users.extend(usage.device));
        assert_eq!(users, [device(1), device(1)], "A-5: who has them");
        driver.check();
        // Withdrawn before it was written: nothing is written then either.
        assert_eq!(driver.writes(|| drop(withdraw(&*driver.smmu, device(1), &[]).unwrap())), [""; 0]);
        assert_eq!(driver.enrol(1), Err(IommuError::Unknown));
        driver.masters.borrow_mut().remove(&1);
        assert_eq!(driver.allot(2), Ok(1));
        assert_eq!(driver.enrol(2), Ok(()));
        driver.check();
    }
}

#[test]
fn c15_an_install_between_allot_and_enrol_writes_the_entry_and_enrol_leaves_it() {
    for model in spellings(2) {
        let driver = Driver::new(model);
        driver.publish(1, &[0x10]);
        driver.allot(1).unwrap();
        driver.opens(&[0x10]);
        driver.assign(1).unwrap();
        assert_eq!(driver.writes(|| driver.enrol(1).unwrap()), [""; 0], "no fault over a live entry");
        assert_eq!(driver.smmu.placement(device(1)), Ok(Some(DomainId::new(1))));
        driver.check();
    }
}

#[test]
fn c15_an_enrol_between_plan_and_install_writes_the_entry_once() {
    for model in spellings(2) {
        let driver = Driver::new(model);
        driver.publish(1, &[0x10]);
        let plan = driver.plan(1).unwrap();
        assert_eq!(driver.writes(|| driver.enrol(1).unwrap()).len(), 2);
        driver.opens(&[0x10]);
        let turned = driver.writes(|| driver.smmu.install(&[device(1)], plan).unwrap());
        assert_eq!(turned.iter().filter(|name| name.starts_with("SMR")).count(), 0, "{turned:?}");
        assert_eq!(turned.iter().filter(|name| name.starts_with("S2CR")).count(), 1, "{turned:?}");
        driver.check();
    }
}

#[test]
fn i15_entries_that_went_live_since_allot_are_not_packed_anew_by_enrol() {
    for model in spellings(4) {
        let driver = Driver::new(model);
        driver.add(1, &[0x10, 0x11]);
        driver.publish(2, &[0x11, 0x12, 0x13]);
        // One entry for both, in the place of the one that is there.
        assert_eq!(driver.allot(2), Ok(1));
        driver.opens(&[0x10, 0x11]);
        driver.assign(1).unwrap();
        driver.opens(&[0x12, 0x13]);
        let writes = driver.writes(|| driver.enrol(2).unwrap());
        assert!(!writes.iter().any(|name| name.starts_with("S2CR")), "a live entry moved: {writes:?}");
        driver.check();
    }
}

#[test]
fn c15_a_mate_that_is_withdrawn_between_allot_and_enrol_leaves_no_hole() {
    for model in spellings(4) {
        let driver = Driver::new(model);
        driver.add(1, &[0x10]);
        // It counts on the mate's entry, and on one of its own.
        driver.publish(2, &[0x10, 0x41]);
        driver.allot(2).unwrap();
        withdraw(&*driver.smmu, device(1), &[]).unwrap();
        driver.enrol(2).unwrap();
        driver.opens(&[0x10, 0x41]);
        driver.assign(2).unwrap();
        for id in [0x10, 0x41] {
            assert_eq!(driver.bench.dma(id), machine::Reached::Memory(BACKING), "I-13: {id:#x}");
        }
        driver.check();
    }
}

#[test]
fn i1_two_that_are_allotted_for_one_stream_do_not_both_write_an_entry() {
    for model in spellings(2) {
        let driver = Driver::new(model);
        driver.publish(1, &[0x10]);
        driver.publish(2, &[0x10]);
        driver.allot(1).unwrap();
        driver.allot(2).unwrap();
        driver.enrol(1).unwrap();
        assert_eq!(driver.writes(|| driver.enrol(2).unwrap()), [""; 0], "it shares the entry");
        driver.check();
        // What was kept for the second is free again.
        driver.add(3, &[0x40]);
    }
}

#[test]
fn i15_an_id_that_was_to_be_captured_loosely_is_not_when_its_device_has_come() {
    for lazy in [false, true] {
        let setup = Setup { unused: vec![stream(SMMU, 0x10, 0xf)], ..Setup::default() };
        let driver = Driver::with(setup, Config::generic_v2());
        driver.publish(1, &[0x10, 0x11, 0x12]);
        assert_eq!(driver.allot(1), Ok(1));
        assert_eq!(driver.publish(2, &[0x13]), [], "nothing of the first captures it");
        if !lazy {
            driver.allot(2).unwrap();
            driver.enrol(2).unwrap();
        }
        driver.enrol(1).unwrap();
        assert_eq!(sharing(&*driver.smmu, &[device(1), device(2)]), []);
        driver.opens(&[0x10, 0x11, 0x12]);
        driver.assign(1).unwrap();
        assert_ne!(driver.bench.dma(0x13), machine::Reached::Memory(BACKING));
        driver.check();
    }
}

#[test]
fn i15_loose_entries_do_not_capture_the_ids_of_a_device_without_entries() {
    let setup = Setup { unused: vec![stream(SMMU, 0x10, 0xf)], ..Setup::default() };
    let driver = Driver::with(setup, Config::generic_v2());
    // Added lazily: it meets nobody, and is nobody's mate.
    driver.publish(1, &[0x13]);
    driver.publish(2, &[0x10, 0x11, 0x12]);
    assert_eq!(driver.allot(2), Ok(2));
    driver.enrol(2).unwrap();
    assert_eq!(sharing(&*driver.smmu, &[device(1), device(2)]), []);
    driver.check();
}

#[test]
fn s5_what_is_enrolled_while_the_instance_sleeps_is_replayed() {
    for model in spellings(4) {
        let driver = Driver::new(model);
        driver.publish(1, &[0x10]);
        driver.publish(2, &[0x20]);
        driver.allot(1).unwrap();
        driver.allot(2).unwrap();
        driver.smmu.suspend().unwrap();
        assert_eq!(driver.writes(|| driver.enrol(1).unwrap()), [""; 0]);
        driver.smmu.resume().unwrap();
        driver.check();
        assert_eq!(driver.writes(|| driver.enrol(2).unwrap()).len(), 2, "allotted before, written after");
        driver.check();
    }
}

#[test]
fn a1_a_refused_plan_leaves_what_was_allotted() {
    let driver = Driver::new(Config { groups: 2, banks: 1, ..Config::generic_v2() });
    driver.add(1, &[0x10]);
    driver.opens(&[0x10]);
    driver.assign(1).unwrap();
    driver.publish(2, &[0x20]);
    driver.allot(2).unwrap();
    let elsewhere = AddressSpace { domain: DomainId::new(2), stage2: driver.tables.stage2() };
    let refused = driver.smmu.plan(&[device(2)], &elsewhere, &mut |_| ()).unwrap_err();
    assert!(matches!(refused, IommuError::Exhausted { resource: Resource::ContextBanks, .. }), "{refused}");
    driver.publish(3, &[0x30]);
    assert!(driver.allot(3).is_err());
    driver.enrol(2).unwrap();
    driver.check();
}

#[test]
fn i13_a_mate_that_came_since_allot_is_not_cut_off_by_packing_anew() {
    for model in spellings(1) {
        let driver = Driver::new(model);
        driver.add(1, &[0x10, 0x11]);
        driver.add(2, &[0x11, 0x12, 0x13]);
        driver.opens(&[0x10, 0x11]);
        driver.opens(&[0x12, 0x13]);
        driver.assign(1).unwrap();
        // Its IDs stay in the entry, which is live.
        withdraw(&*driver.smmu, device(2), &[]).unwrap();
        block(&*driver.smmu, &[device(1)]).unwrap();
        driver.publish(3, &[0x11]);
        assert_eq!(driver.allot(3), Ok(1), "packed anew, without them");
        driver.add(4, &[0x12]);
        driver.enrol(3).unwrap();
        driver.assign(4).unwrap();
        assert_eq!(driver.bench.dma(0x12), machine::Reached::Memory(BACKING));
        driver.check();
    }
}

#[test]
fn i15_a_withdrawal_says_who_of_the_rest_shares_entries_when_it_has_ended() {
    for live in [true, false] {
        let driver = Driver::new(Config::generic_v2());
        driver.add(1, &[0x10]);
        driver.add(2, &[0x11]);
        driver.add(4, &[0x20]);
        // One entry for the three, though the first two do not meet.
        driver.add(3, &[0x10, 0x11]);
        let rest = [device(4), device(1), device(2), device(9)];
        let shared = [(device(1), device(2))];
        assert_eq!(sharing(&*driver.smmu, &rest), shared);
        driver.opens(&[0x10, 0x11]);
        if live {
            driver.assign(1).unwrap();
        }
        let left = withdraw(&*driver.smmu, device(3), &rest).unwrap();
        // What is live does not move; in fault each gets an entry of its own.
        let keeper = [Withdrawn::Keeper(device(1)), Withdrawn::Sharing(shared[0])];
        assert_eq!(left, if live { &keeper[..] } else { &[] }, "live: {live}");
        assert_eq!(sharing(&*driver.smmu, &rest), if live { &shared[..] } else { &[] });
        driver.check();
    }
}

#[test]
fn i15_sharing_is_told_over_any_number_of_steps() {
    let driver = Driver::new(Config::generic_v2());
    // No two neighbours in this order share; the fourth shares with each.
    driver.add(1, &[0x10]);
    driver.add(2, &[0x20]);
    driver.add(3, &[0x40]);
    driver.add(4, &[0x10, 0x20, 0x40]);
    let told = sharing(&*driver.smmu, &[device(1), device(2), device(3), device(4)]);
    let lots: Vec<_> = told.iter().map(|(first, _)| *first).collect();
    assert_eq!(lots.len(), 3, "{told:?}");
    assert!(lots.iter().all(|first| *first == lots[0]), "{told:?}");
    assert_eq!(sharing(&*driver.smmu, &[device(1), device(2), device(3)]), [], "they do not meet, nor share");
}

#[test]
fn i15_loosely_merged_entries_that_went_live_since_allot_are_not_packed_anew_either() {
    let setup = Setup { unused: vec![stream(SMMU, 0x40, 0xf)], ..Setup::default() };
    let driver = Driver::with(setup, Config::generic_v2());
    driver.add(1, &[0x10, 0x11]);
    driver.publish(2, &[0x11, 0x12, 0x13]);
    assert_eq!(driver.allot(2), Ok(1), "one entry for both");
    driver.opens(&[0x10, 0x11]);
    driver.assign(1).unwrap();
    driver.opens(&[0x12, 0x13]);
    let writes = driver.writes(|| driver.enrol(2).unwrap());
    assert!(!writes.iter().any(|name| name.starts_with("S2CR")), "a live entry moved: {writes:?}");
    assert_eq!(driver.bench.dma(0x10), machine::Reached::Memory(BACKING));
    driver.check();
}

#[test]
fn i15_what_a_leaver_brought_is_captured_no_more_wherever_it_had_joined_others() {
    for unused in [vec![], vec![stream(SMMU, 0x40, 0xf)]] {
        let driver = Driver::with(Setup { unused, ..Setup::default() }, Config::generic_v2());
        driver.add(1, &[0x10]);
        driver.add(2, &[0x20]);
        driver.add(4, &[0x30]);
        // An entry with each of the three.
        driver.add(3, &[0x10, 0x11, 0x20, 0x21, 0x30, 0x31]);
        withdraw(&*driver.smmu, device(3), &[]).unwrap();
        for (n, id) in [(1, 0x10), (2, 0x20), (4, 0x30)] {
            driver.opens(&[id]);
            driver.assign(n).unwrap();
            assert_eq!(driver.bench.dma(id + 1), machine::Reached::Fault, "{id:#x}");
        }
        driver.check();
    }
}

#[test]
fn a3_what_was_allotted_to_one_that_has_left_is_not_written_for_the_next_of_its_number() {
    let driver = Driver::new(Config { groups: 2, ..Config::generic_v2() });
    driver.publish(1, &[0x10, 0x40]);
    driver.allot(1).unwrap();
    withdraw(&*driver.smmu, device(1), &[]).unwrap();
    let mut late = driver.masters.borrow_mut().remove(&1).unwrap();
    driver.publish(1, &[0x10]);
    assert_eq!(driver.smmu.enrol(&mut late), Err(IommuError::Unknown));
    drop(late);
    driver.enrol(1).unwrap();
    driver.add(2, &[0x20]);
    driver.check();
}
