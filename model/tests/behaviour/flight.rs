//! Transactions in flight: what one that has seen older registers can still do.

use std::sync::Mutex;

use smmu_model::registers::{cb, gr0, stream};
use smmu_model::{Access, Outcome, Source, Stage, Transaction, TransactionId, Verdict};

use crate::rig::{LIVE, OTHER_ROOT, ROOT, Rig, quick};

/// A live part with a mapped page 0, and a write to it that has come this far.
fn under_way(stages: usize) -> (Rig, TransactionId) {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, 0x8_0000);
    let id = rig.smmu.accept(Transaction::write(5, 0, &[7]));
    for _ in 0..stages {
        rig.smmu.step(&mut rig.memory, id);
    }
    (rig, id)
}

fn end(rig: &mut Rig, id: TransactionId) -> Option<u64> {
    rig.smmu.finish(&mut rig.memory, id).and_then(|outcome| outcome.physical())
}

#[test]
fn a_transaction_passes_through_five_stages() {
    let (mut rig, id) = under_way(0);
    let stages: Vec<_> = (0..4).map(|_| rig.smmu.step(&mut rig.memory, id)).collect();
    assert_eq!(stages[..3], [Some(Stage::Steered), Some(Stage::Latched), Some(Stage::Translated)]);
    assert!(matches!(stages[3], Some(Stage::Done(Outcome::Completed { physical: 0x8_0000, .. }))));
    assert_eq!(rig.smmu.step(&mut rig.memory, id), None);
}

#[test]
fn a_steered_transaction_uses_the_old_s2cr() {
    let (mut rig, accepted) = under_way(0);
    let steered = rig.smmu.accept(Transaction::write(5, 0, &[7]));
    rig.smmu.step(&mut rig.memory, steered);
    rig.smmu.write32(rig.smmu.s2cr(0), stream::S2CR_FAULT);
    assert_eq!(end(&mut rig, steered), Some(0x8_0000));
    assert_eq!(end(&mut rig, accepted), None, "one that was only accepted sees the new one");
}

#[test]
fn a_steered_transaction_passes_through_a_bank_that_is_switched_off() {
    let (mut rig, id) = under_way(1);
    rig.smmu.write32(rig.smmu.s2cr(0), stream::S2CR_FAULT);
    rig.set(0, cb::SCTLR, 0);
    assert_eq!(end(&mut rig, id), Some(0), "blocked by clearing M, and so untranslated");
}

#[test]
fn a_latched_transaction_uses_the_old_m_and_root() {
    let (mut rig, id) = under_way(2);
    rig.map(OTHER_ROOT, 0, 0x9_0000);
    rig.smmu.write64(rig.smmu.bank(0, cb::TTBR0), OTHER_ROOT);
    rig.set(0, cb::SCTLR, LIVE & !1);
    assert_eq!(end(&mut rig, id), Some(0x8_0000));
}

#[test]
fn a_steered_transaction_uses_the_new_root() {
    let (mut rig, id) = under_way(1);
    rig.map(OTHER_ROOT, 0, 0x9_0000);
    rig.smmu.write64(rig.smmu.bank(0, cb::TTBR0), OTHER_ROOT);
    assert_eq!(end(&mut rig, id), Some(0x9_0000));
}

#[test]
fn a_translated_transaction_still_reaches_the_old_page() {
    let (mut rig, id) = under_way(3);
    rig.memory.write_u64(ROOT, 0);
    rig.memory.publish_all();
    assert_eq!(rig.memory.read_u64(0x8_0000), 0);
    assert_eq!(end(&mut rig, id), Some(0x8_0000));
    assert_eq!(rig.memory.read_u64(0x8_0000), 7);
}

#[test]
fn a_sync_waits_for_what_its_invalidates_concern() {
    for stages in 1..=3 {
        let (mut rig, id) = under_way(stages);
        rig.smmu.write32(rig.smmu.s2cr(0), stream::S2CR_FAULT);
        rig.smmu.write32(gr0::TLBIVMID, 1);
        assert!(!rig.sync(), "stage {stages}");
        assert!(end(&mut rig, id).is_some());
        assert!(rig.sync());
    }
}

#[test]
fn a_sync_alone_waits_for_nothing() {
    let (mut rig, id) = under_way(3);
    assert!(rig.sync());
    assert_eq!(end(&mut rig, id), Some(0x8_0000), "and so it proves nothing");
}

#[test]
fn a_sync_does_not_wait_for_other_vmids_or_later_transactions() {
    let (mut rig, _) = under_way(2);
    rig.smmu.write32(gr0::TLBIVMID, 2);
    assert!(rig.sync());
    let (mut rig, id) = under_way(0);
    rig.smmu.write32(gr0::TLBIVMID, 1);
    rig.smmu.step(&mut rig.memory, id);
    assert!(rig.sync(), "steered after the invalidate");
}

#[test]
fn an_invalidate_by_page_waits_for_that_page() {
    let (mut rig, _) = under_way(3);
    rig.smmu.write64(rig.smmu.bank(0, cb::TLBIIPAS2L), 1);
    assert!(rig.sync_bank(0), "another page");
    rig.smmu.write64(rig.smmu.bank(0, cb::TLBIIPAS2L), 0);
    assert!(!rig.sync_bank(0));
    let (mut rig, _) = under_way(3);
    rig.bank(1, 2, ROOT);
    rig.smmu.write64(rig.smmu.bank(1, cb::TLBIIPAS2L), 0);
    assert!(rig.sync_bank(1), "another VMID");
}

#[test]
fn an_invalidate_by_page_waits_for_users_of_the_same_block() {
    let mut rig = Rig::live(quick());
    rig.memory.write_u64(ROOT, 0x4000_0000 | crate::rig::LEAF | crate::rig::RW | 1);
    rig.memory.publish_all();
    let id = rig.smmu.accept(Transaction::read(5, 0x20_0000, 4));
    for _ in 0..3 {
        rig.smmu.step(&mut rig.memory, id);
    }
    rig.smmu.write64(rig.smmu.bank(0, cb::TLBIIPAS2L), 0);
    assert!(!rig.sync_bank(0), "one block translates both addresses");
    rig.smmu.drain(&mut rig.memory);
    assert!(rig.sync_bank(0));
}

#[test]
fn an_invalidate_of_a_table_waits_for_users_of_the_table() {
    for (register, waits) in [(cb::TLBIIPAS2L, false), (cb::TLBIIPAS2, true)] {
        let (mut rig, _) = under_way(3);
        rig.smmu.write64(rig.smmu.bank(0, register), 1);
        assert_eq!(rig.sync_bank(0), !waits);
    }
}

#[test]
fn a_sync_does_not_wait_for_a_stalled_transaction() {
    let mut rig = Rig::live(quick());
    rig.set(0, cb::SCTLR, LIVE | smmu_model::registers::sctlr::CFCFG);
    assert!(matches!(rig.read(5, 0), Outcome::Stalled { .. }));
    rig.smmu.write32(gr0::TLBIVMID, 1);
    assert!(rig.sync());
}

#[test]
fn an_old_root_latched_before_an_invalidate_caches_nothing_beyond_the_sync() {
    let (mut rig, id) = under_way(2);
    rig.smmu.write64(rig.smmu.bank(0, cb::TTBR0), OTHER_ROOT);
    rig.smmu.write32(gr0::TLBIVMID, 1);
    assert!(end(&mut rig, id).is_some());
    assert_eq!(rig.smmu.tlb().len(), 1, "it walked the old tables after the invalidate");
    assert!(rig.sync());
    assert!(rig.smmu.tlb().is_empty());
}

#[test]
fn the_probe_names_what_is_in_flight() {
    let (mut rig, id) = under_way(1);
    rig.smmu.write32(rig.smmu.s2cr(0), stream::S2CR_FAULT);
    let other = rig.smmu.accept(Transaction::write(6, 0, &[7]));
    let before = rig.clone();
    let all = rig.smmu.reach(&rig.memory, 5, 0, Access::Write);
    assert!(all.iter().all(|one| one.source != Source::InFlight(other)), "another stream's");
    for (address, access) in [(0x1000, Access::Write), (0, Access::Read)] {
        let all = rig.smmu.reach(&rig.memory, 5, address, access);
        assert!(all.iter().all(|one| one.source == Source::New), "another page's, another access's");
    }
    assert_eq!(rig, before);
    let old = all.iter().find(|one| one.source == Source::InFlight(id)).map(|one| one.verdict);
    assert!(matches!(old, Some(Verdict::Reaches { physical: 0x8_0000, .. })));
    let new = all.iter().find(|one| one.source == Source::New).map(|one| one.verdict);
    assert!(matches!(new, Some(Verdict::Faults(_))));
    assert_eq!(rig.smmu.reach_of_all_in_flight(&rig.memory).len(), 2);
}

#[test]
fn many_can_be_in_flight() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, 0x8_0000);
    for at in 0..50 {
        rig.smmu.accept(Transaction::write(5, at, &[1]));
    }
    let outcomes = rig.smmu.drain(&mut rig.memory);
    assert_eq!(outcomes.iter().filter(|(_, outcome)| outcome.physical().is_some()).count(), 50);
    assert!(rig.smmu.in_flight().is_empty());
}

/// What a host test wraps the model in: registers behind a shared reference, and time that passes while a driver polls.
struct Bus(Mutex<Rig>);

impl Bus {
    fn read32(&self, offset: usize) -> u32 {
        let mut rig = self.0.lock().expect("no test panics while it holds this");
        let Rig { smmu, memory } = &mut *rig;
        let value = smmu.read32(offset);
        smmu.drain(memory);
        value
    }

    fn write32(&self, offset: usize, value: u32) {
        self.0.lock().expect("no test panics while it holds this").smmu.write32(offset, value);
    }
}

#[test]
fn a_register_wrapper_can_let_time_pass() {
    let (rig, _) = under_way(2);
    let bus = Bus(Mutex::new(rig));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            bus.write32(gr0::TLBIVMID, 1);
            bus.write32(gr0::STLBGSYNC, 1);
            let polls = (0..10).position(|_| bus.read32(gr0::STLBGSTATUS) & 1 == 0);
            assert_eq!(polls, Some(1), "the first poll waits, and what it waits for then drains");
        });
    });
    assert_eq!(bus.0.lock().expect("no test panics while it holds this").memory.read_u64(0x8_0000), 7);
}
