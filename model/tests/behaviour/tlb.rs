//! Cached translations and their maintenance: what a driver that forgets a step sees.

use smmu_model::registers::{cb, gr0};
use smmu_model::{Access, Config, Outcome, Path, SyncDelay, Verdict};

use crate::rig::{LEAF, OTHER_ROOT, ROOT, RW, Rig, quick};

const LEAF_AT: u64 = ROOT + 0x9000;

/// Input page 0 was mapped to 0x80000, used, and then unmapped with its bytes published.
fn stale(config: Config) -> Rig {
    let mut rig = Rig::live(config);
    rig.map(ROOT, 0, 0x8_0000);
    assert_eq!(rig.read(5, 0).physical(), Some(0x8_0000));
    rig.memory.write_u64(LEAF_AT, 0);
    rig.memory.publish_all();
    rig
}

fn is_stale(rig: &mut Rig) -> bool {
    rig.read(5, 0).physical() == Some(0x8_0000)
}

#[test]
fn without_an_invalidate_the_old_translation_stays() {
    let mut rig = stale(quick());
    assert!(is_stale(&mut rig));
    assert!(rig.sync());
    assert!(is_stale(&mut rig), "a sync alone removes nothing");
}

#[test]
fn without_a_sync_the_old_translation_stays() {
    let mut rig = stale(quick());
    rig.smmu.write32(gr0::TLBIVMID, 1);
    assert!(is_stale(&mut rig));
    rig.smmu.write32(gr0::STLBGSYNC, u32::MAX);
    assert!(is_stale(&mut rig), "started is not completed");
    assert_eq!(rig.smmu.read32(gr0::STLBGSTATUS), 0);
    assert!(!is_stale(&mut rig));
}

#[test]
fn a_sync_takes_as_many_polls_as_it_is_told() {
    let mut rig = stale(quick().sync(SyncDelay::Polls(3)));
    rig.smmu.write32(gr0::TLBIVMID, 1);
    rig.smmu.write32(gr0::STLBGSYNC, u32::MAX);
    let polls: Vec<_> = (0..5).map(|_| rig.smmu.read32(gr0::STLBGSTATUS)).collect();
    assert_eq!(polls, [1, 1, 1, 0, 0]);
    assert!(!is_stale(&mut rig));
}

#[test]
fn a_sync_may_never_complete() {
    let mut rig = Rig::new(quick().sync(SyncDelay::Never));
    assert!(!rig.sync());
    assert!(rig.smmu.read32(gr0::STLBGSTATUS) == 1);
}

#[test]
fn an_invalidate_before_the_table_changed_does_not_help() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, 0x8_0000);
    rig.smmu.write32(gr0::TLBIVMID, 1);
    assert!(is_stale(&mut rig), "the mapping is still there, and is cached now");
    rig.memory.write_u64(LEAF_AT, 0);
    rig.memory.publish_all();
    assert!(rig.sync());
    assert!(is_stale(&mut rig), "what was cached after the invalidate survives it");
}

#[test]
fn what_a_stale_table_gives_after_the_invalidate_goes_with_it() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, 0x8_0000);
    rig.map(ROOT, 0x1000, 0x9_0000);
    rig.read(5, 0);
    rig.smmu.write32(gr0::TLBIVMID, 1);
    assert!(rig.read(5, 0x1000).physical().is_some(), "through table entries that are older than the invalidate");
    assert!(rig.sync());
    assert!(rig.smmu.tlb().is_empty());
}

#[test]
fn what_is_walked_anew_after_the_invalidate_stays() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, 0x8_0000);
    rig.smmu.write32(gr0::TLBIVMID, 1);
    rig.read(5, 0);
    assert!(rig.sync());
    assert_eq!((rig.smmu.tlb().len(), rig.smmu.walk_cache().len()), (1, 2));
}

#[test]
fn table_entries_serve_their_own_granule_only() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, 0x8_0000);
    rig.read(5, 0);
    rig.smmu.write64(rig.smmu.bank(0, cb::TLBIIPAS2L), 0);
    assert!(rig.sync_bank(0));
    rig.set(0, cb::TCR, (5 << 16) | (2 << 14) | (1 << 6) | 25);
    assert!(rig.smmu.walk_cache().len() == 2);
    assert!(rig.read(5, 0).fault().is_some(), "a 16 KiB walk starts at the root again");
}

#[test]
fn an_invalidate_after_the_sync_started_is_not_covered() {
    let mut rig = stale(quick());
    rig.smmu.write32(gr0::STLBGSYNC, u32::MAX);
    rig.smmu.write32(gr0::TLBIVMID, 1);
    assert_eq!(rig.smmu.read32(gr0::STLBGSTATUS), 0);
    assert!(is_stale(&mut rig));
}

#[test]
fn entries_are_tagged_by_vmid() {
    let mut rig = stale(quick());
    rig.smmu.write32(gr0::TLBIVMID, 2);
    assert!(rig.sync());
    assert!(is_stale(&mut rig), "another VMID");
    rig.smmu.write32(gr0::TLBIVMID, 1);
    assert!(rig.sync());
    assert!(!is_stale(&mut rig));
}

#[test]
fn banks_that_share_a_vmid_share_entries() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, 0x8_0000);
    rig.map(OTHER_ROOT, 0, 0x9_0000);
    rig.bank(1, 1, OTHER_ROOT);
    rig.stream(1, 6, 1);
    assert_eq!(rig.read(5, 0).physical(), Some(0x8_0000));
    let outcome = rig.read(6, 0);
    assert_eq!(outcome.physical(), Some(0x8_0000), "the other guest's page");
    assert!(matches!(
        outcome,
        Outcome::Completed { path: Path::Translated { bank: 1, root: ROOT, cached: true, .. }, .. }
    ));
}

#[test]
fn a_vmid_given_on_without_an_invalidate_leaks_the_old_owners_page() {
    let mut rig = stale(quick());
    rig.bank(0, 1, OTHER_ROOT);
    rig.map(OTHER_ROOT, 0, 0x9_0000);
    assert!(is_stale(&mut rig));
}

#[test]
fn tlbiallnsnh_removes_everything() {
    let mut rig = stale(quick());
    rig.smmu.write32(gr0::TLBIALLNSNH, 0);
    assert!(rig.sync());
    assert!(rig.smmu.tlb().is_empty() && rig.smmu.walk_cache().is_empty());
}

#[test]
fn a_last_level_invalidate_leaves_table_entries() {
    let mut rig = stale(quick());
    // The level-3 table itself moves; its old page now maps somewhere else.
    rig.memory.write_u64(ROOT + 0x8000, (ROOT + 0xa000) | 3);
    rig.memory.write_u64(LEAF_AT, 0xbad_0000 | LEAF | RW | 3);
    rig.memory.publish_all();
    rig.smmu.write64(rig.smmu.bank(0, cb::TLBIIPAS2L), 0);
    assert!(rig.sync_bank(0));
    assert!(rig.smmu.tlb().is_empty());
    assert_eq!(rig.read(5, 0).physical(), Some(0xbad_0000), "through the freed table");
    rig.smmu.write64(rig.smmu.bank(0, cb::TLBIIPAS2), 0);
    assert!(rig.sync_bank(0));
    assert!(rig.read(5, 0).fault().is_some());
}

#[test]
fn an_invalidate_by_page_removes_the_page_only() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0x1000, 0x8_0000);
    rig.map(ROOT, 0x2000, 0x9_0000);
    rig.read(5, 0x1000);
    rig.read(5, 0x2000);
    rig.smmu.write64(rig.smmu.bank(0, cb::TLBIIPAS2L), 0x2);
    assert!(rig.sync_bank(0));
    let left: Vec<_> = rig.smmu.tlb().iter().map(|leaf| leaf.input).collect();
    assert_eq!(left, [0x1000]);
}

#[test]
fn a_32_bit_write_starts_an_invalidate_by_page() {
    let mut rig = stale(quick());
    rig.set(0, cb::TLBIIPAS2L + 4, 0);
    assert!(!rig.smmu.has_posted_maintenance(), "the high word is ignored");
    rig.set(0, cb::TLBIIPAS2L, 0);
    assert!(rig.sync_bank(0));
    assert!(!is_stale(&mut rig));
}

#[test]
fn a_banks_sync_covers_its_own_invalidates_only() {
    let mut rig = stale(quick());
    rig.smmu.write32(gr0::TLBIVMID, 1);
    assert!(rig.sync_bank(0));
    assert!(is_stale(&mut rig), "posted globally");
    let mut rig = stale(quick());
    rig.smmu.write64(rig.smmu.bank(0, cb::TLBIIPAS2L), 0);
    assert!(rig.sync_bank(1));
    assert!(is_stale(&mut rig), "posted in another bank");
    assert!(rig.sync());
    assert!(!is_stale(&mut rig), "the global one covers both");
}

#[test]
fn stage_1_maintenance_leaves_stage_2_entries() {
    let mut rig = stale(quick());
    rig.smmu.write32(gr0::TLBIVMIDS1, 1);
    rig.set(0, cb::TLBIALL, 0);
    assert!(rig.sync());
    assert!(is_stale(&mut rig));
}

#[test]
fn m_is_not_cached() {
    let mut rig = stale(quick());
    rig.set(0, cb::SCTLR, 0);
    assert_eq!(rig.read(5, 0x70).physical(), Some(0x70));
}

#[test]
fn an_invalid_descriptor_is_not_cached() {
    let mut rig = Rig::live(quick());
    assert!(rig.read(5, 0).fault().is_some());
    rig.map(ROOT, 0, 0x8_0000);
    assert_eq!(rig.read(5, 0).physical(), Some(0x8_0000), "invalid to valid needs no invalidate");
}

#[test]
fn the_probe_sees_the_cached_and_the_new_translation() {
    let rig = stale(quick());
    let verdicts: Vec<_> = rig.smmu.reach(&rig.memory, 5, 0, Access::Read).into_iter().map(|one| one.verdict).collect();
    assert_eq!(verdicts.len(), 2);
    assert!(verdicts.iter().any(|one| matches!(one, Verdict::Reaches { physical: 0x8_0000, .. })));
    assert!(verdicts.iter().any(|one| matches!(one, Verdict::Faults(_))));
}

#[test]
fn a_part_may_invalidate_more_than_it_is_asked() {
    let mut rig = stale(Config { over_invalidate: true, ..quick() });
    rig.smmu.write32(gr0::TLBIVMID, 77);
    assert!(rig.sync());
    assert!(rig.smmu.tlb().is_empty());
}

#[test]
fn a_part_may_prefetch_the_next_page() {
    let mut rig = Rig::live(Config { prefetch: true, ..quick() });
    rig.map(ROOT, 0, 0x8_0000);
    rig.map(ROOT, 0x1000, 0x9_0000);
    rig.read(5, 0);
    rig.memory.write_u64(LEAF_AT + 8, 0);
    rig.memory.publish_all();
    assert_eq!(rig.read(5, 0x1000).physical(), Some(0x9_0000), "never used, yet cached");
}

#[test]
fn a_live_bank_may_prefetch_without_a_stream() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, 0x8_0000);
    rig.smmu.write32(rig.smmu.s2cr(0), smmu_model::registers::stream::S2CR_FAULT);
    rig.smmu.prefetch(&rig.memory, 0, 0);
    assert_eq!(rig.smmu.tlb().len(), 1);
    rig.smmu.write32(gr0::TLBIALLNSNH, 0);
    assert!(rig.sync());
    rig.set(0, cb::SCTLR, 0);
    rig.smmu.prefetch(&rig.memory, 0, 0);
    assert!(rig.smmu.tlb().is_empty(), "not while M is 0");
}

#[test]
fn a_part_may_have_stale_entries_at_reset() {
    let rig = Rig::new(Config { stale_entries: 8, ..quick() });
    assert_eq!(rig.smmu.tlb().len(), 8);
    let rig = Rig::live(Config { stale_entries: 8, ..quick() });
    assert!(rig.smmu.tlb().is_empty());
}

#[test]
fn the_tlb_is_as_large_as_it_is_told() {
    let mut rig = Rig::live(Config { tlb_entries: 2, walk_cache_entries: 0, ..quick() });
    for page in 0..3 {
        rig.map(ROOT, page << 12, 0x8_0000 + (page << 12));
        rig.read(5, page << 12);
    }
    let inputs: Vec<_> = rig.smmu.tlb().iter().map(|leaf| leaf.input).collect();
    assert_eq!(inputs, [0x1000, 0x2000]);
    assert!(rig.smmu.walk_cache().is_empty());
}

#[test]
fn a_second_sync_over_an_active_one_is_a_hazard() {
    let mut rig = Rig::new(quick());
    rig.smmu.write32(gr0::STLBGSYNC, 0);
    rig.smmu.write32(gr0::STLBGSYNC, 0);
    assert_eq!(rig.smmu.hazards(), [smmu_model::Hazard::SyncOverlap]);
}
