//! What a test makes go wrong.

use smmu_model::registers::{cb, gr0};
use smmu_model::{Hazard, Injection, SyncRegister};

use crate::rig::{ROOT, Rig, quick};

#[test]
fn a_status_can_be_stuck() {
    let mut rig = Rig::live(quick());
    rig.smmu.inject(Injection::StatusNeverClears(SyncRegister::Global));
    assert!(!rig.sync());
    assert!(rig.sync_bank(0), "only that register");
    rig.smmu.clear_injections();
    assert!(rig.sync());
    rig.smmu.inject(Injection::StatusNeverClears(SyncRegister::Bank(0)));
    assert!(!rig.sync_bank(0));
}

#[test]
fn the_kth_sync_can_time_out() {
    let mut rig = Rig::live(quick());
    rig.smmu.inject(Injection::SyncTimesOut(2));
    let syncs: Vec<_> = (0..4).map(|_| rig.sync()).collect();
    assert_eq!(syncs, [true, false, true, true]);
    rig.smmu.inject(Injection::SyncTimesOut(1));
    rig.smmu.inject(Injection::SyncTimesOut(3));
    let syncs: Vec<_> = (0..4).map(|_| rig.sync()).collect();
    assert_eq!(syncs, [false, true, false, true]);
}

#[test]
fn a_sync_that_timed_out_has_removed_nothing() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, 0x8_0000);
    rig.read(5, 0);
    rig.smmu.inject(Injection::SyncTimesOut(1));
    rig.smmu.write32(gr0::TLBIVMID, 1);
    assert!(!rig.sync());
    assert_eq!(rig.smmu.tlb().len(), 1);
    assert!(rig.sync(), "a later one completes it");
    assert!(rig.smmu.tlb().is_empty());
}

#[test]
fn a_write_can_fail_to_stick() {
    let mut rig = Rig::live(quick());
    let at = rig.smmu.s2cr(3);
    let before = rig.smmu.read32(at);
    rig.smmu.inject(Injection::WriteDoesNotStick(at));
    rig.smmu.write32(at, 0x1_0005);
    assert_eq!(rig.smmu.read32(at), before);
    rig.smmu.clear_injections();
    rig.smmu.write32(at, 0x1_0005);
    assert_eq!(rig.smmu.read32(at), 0x1_0005);
}

#[test]
fn one_write_of_many_can_be_lost() {
    let mut rig = Rig::live(quick());
    rig.smmu.inject(Injection::WriteIsLost(2));
    for n in 0..4 {
        rig.set(n, cb::TCR, 0x77);
    }
    let kept: Vec<_> = (0..4).map(|n| rig.get(n, cb::TCR) == 0x77).collect();
    assert_eq!(kept, [true, false, true, true]);
}

#[test]
fn a_64_bit_write_is_lost_as_a_whole() {
    let mut rig = Rig::live(quick());
    let root = rig.smmu.bank(0, cb::TTBR0);
    for injection in [Injection::WriteIsLost(1), Injection::WriteDoesNotStick(root)] {
        rig.smmu.inject(injection);
        rig.smmu.write64(root, u64::MAX);
        assert_eq!(rig.smmu.read64(root), ROOT);
    }
}

#[test]
fn identification_can_contradict_itself() {
    let mut rig = Rig::live(quick());
    rig.smmu.inject(Injection::ReadsAs(gr0::IDR1, 0x00ff_0001));
    assert_eq!(rig.smmu.read32(gr0::IDR1), 0x00ff_0001, "255 stage-2 banks of 1");
}

#[test]
fn a_part_without_power_reads_all_ones() {
    let mut rig = Rig::live(quick());
    let before = rig.smmu.read32(gr0::SCR0);
    rig.smmu.inject(Injection::AllOnes);
    assert_eq!(rig.smmu.read32(gr0::IDR0), u32::MAX);
    assert_eq!(rig.smmu.read64(gr0::SGFAR), u64::MAX);
    rig.smmu.write32(gr0::SCR0, 1);
    rig.smmu.write64(rig.smmu.bank(0, cb::TTBR0), 1);
    rig.smmu.clear_injections();
    assert_eq!(rig.smmu.read32(gr0::SCR0), before);
    assert_eq!(rig.smmu.hazards(), [Hazard::PoweredOff]);
}
