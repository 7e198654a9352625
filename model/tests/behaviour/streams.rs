//! Stream matching, S2CR types, conflicts, extended IDs, and the ways past the SMMU.

use crate::rig::{OTHER_ROOT, ROOT, Rig, quick};
use smmu_model::registers::{extended, gfsr, gr0, scr0, stream};
use smmu_model::{Access, Bypass, Config, Conflict, Fault, GlobalFaultKind, Outcome, Path, Source, Unknown, Verdict};

fn global(kind: GlobalFaultKind) -> Fault {
    Fault::Global { kind, bank: None, nested: false }
}

fn path(outcome: &Outcome) -> Option<Path> {
    match outcome {
        Outcome::Completed { path, .. } => Some(*path),
        _ => None,
    }
}

#[test]
fn clients_disabled_pass_untranslated() {
    let mut rig = Rig::new(quick());
    let outcome = rig.read(5, 0x1234);
    assert_eq!(path(&outcome), Some(Path::Bypass(Bypass::ClientsDisabled)));
    assert_eq!(outcome.physical(), Some(0x1234));
}

#[test]
fn a_bypassed_address_is_truncated_to_the_output_size() {
    let mut rig = Rig::new(Config::generic_v1());
    assert_eq!(rig.read(5, 0x1ff_0000_1000).physical(), Some(0xff_0000_1000));
}

#[test]
fn a_stream_is_translated_by_its_bank() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0x5000, 0x8_0000);
    let outcome = rig.read(5, 0x5678);
    assert_eq!(outcome.physical(), Some(0x8_0678));
    let expected = Path::Translated { entry: 0, bank: 0, vmid: 1, root: ROOT, cached: false };
    assert_eq!(path(&outcome), Some(expected));
}

#[test]
fn an_unmatched_stream_faults_or_passes() {
    let mut rig = Rig::live(quick());
    assert_eq!(rig.read(6, 0).fault(), Some(global(GlobalFaultKind::UnidentifiedStream)));
    rig.smmu.write32(gr0::SCR0, scr0::SMCFCFG);
    assert_eq!(path(&rig.read(6, 0)), Some(Path::Bypass(Bypass::Unmatched)));
}

#[test]
fn overlapping_entries_conflict_even_into_one_bank() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, 0x8_0000);
    rig.smmu.write32(rig.smmu.s2cr(1), 0);
    rig.smmu.write32(rig.smmu.smr(1), stream::SMR_VALID | (1 << 16) | 4);
    assert_eq!(rig.smmu.matching_entries(5), [0, 1]);
    assert_eq!(rig.read(5, 0).fault(), Some(global(GlobalFaultKind::StreamMatchConflict)));
    assert_eq!(rig.read(4, 0).physical(), Some(0x8_0000));
    rig.smmu.write32(gr0::SCR0, scr0::USFCFG);
    assert_eq!(path(&rig.read(5, 0)), Some(Path::Bypass(Bypass::Conflict)));
}

#[test]
fn an_undetected_conflict_uses_one_of_the_entries() {
    for (conflict, expected) in [(Conflict::Lowest, ROOT), (Conflict::Highest, OTHER_ROOT)] {
        let mut rig = Rig::live(Config { conflict, conflict_reported: false, ..quick() });
        rig.bank(1, 2, OTHER_ROOT);
        rig.stream(1, 5, 1);
        rig.map(ROOT, 0, ROOT);
        rig.map(OTHER_ROOT, 0, OTHER_ROOT);
        assert_eq!(rig.read(5, 0).physical(), Some(expected));
    }
}

#[test]
fn a_varying_conflict_reaches_every_outcome_and_the_probe_knows_them() {
    let mut rig = Rig::live(Config { conflict: Conflict::Varies, ..quick() });
    rig.bank(1, 2, OTHER_ROOT);
    rig.stream(1, 5, 1);
    rig.map(ROOT, 0, ROOT);
    rig.map(OTHER_ROOT, 0, OTHER_ROOT);
    let all: Vec<_> = rig.smmu.reach(&rig.memory, 5, 0, Access::Read);
    assert_eq!(all.len(), 3);
    let outcomes: Vec<_> = (0..60).map(|_| rig.read(5, 0).physical()).collect();
    for expected in [None, Some(ROOT), Some(OTHER_ROOT)] {
        assert!(outcomes.contains(&expected), "never saw {expected:?}");
    }
}

#[test]
fn a_mask_bit_of_one_is_ignored() {
    let mut rig = Rig::live(quick());
    rig.smmu.write32(rig.smmu.smr(0), stream::SMR_VALID | (0xf << 16) | 0x40);
    assert_eq!(rig.smmu.matching_entries(0x4f), [0]);
    assert_eq!(rig.smmu.matching_entries(0x50), []);
}

#[test]
fn unimplemented_bits_read_as_zero_and_do_not_match() {
    let mut rig = Rig::live(Config::tegra186());
    rig.smmu.write32(rig.smmu.smr(0), 0x7fff_7fff);
    assert_eq!(rig.smmu.read32(rig.smmu.smr(0)), 0x7fff_007f);
    rig.smmu.write32(rig.smmu.smr(0), stream::SMR_VALID | 0x05);
    assert_eq!(rig.smmu.matching_entries(0x2a85), [0], "bits above 6 take no part");
}

#[test]
fn a_stream_id_is_cut_to_what_the_bus_carries() {
    let mut rig = Rig::live(Config { stream_id_bits: 4, ..quick() });
    assert_eq!(rig.smmu.matching_entries(0x15), [0]);
    rig.stream(0, 0x15, 0);
    assert_eq!(rig.smmu.matching_entries(0x15), []);
    rig.read(0x7ff6, 0);
    assert_eq!(rig.smmu.read32(gr0::SGFSYNR1), 6, "the syndrome has no more of it");
}

#[test]
fn zero_in_an_s2cr_is_translate_to_bank_0() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, 0x8_0000);
    rig.smmu.write32(rig.smmu.s2cr(3), 0);
    rig.smmu.write32(rig.smmu.smr(3), stream::SMR_VALID | 9);
    assert_eq!(rig.read(9, 0).physical(), Some(0x8_0000));
}

#[test]
fn types_2_and_3_fault_and_type_1_bypasses() {
    let mut rig = Rig::live(quick());
    for kind in [2, 3] {
        rig.smmu.write32(rig.smmu.s2cr(0), kind << 16);
        assert_eq!(rig.read(5, 0).fault(), Some(global(GlobalFaultKind::InvalidContext)));
    }
    rig.smmu.write32(rig.smmu.s2cr(0), stream::S2CR_BYPASS | 7);
    assert_eq!(path(&rig.read(5, 0)), Some(Path::Bypass(Bypass::Stream { entry: 0, vmid: 7 })));
}

#[test]
fn a_stream_indexes_where_it_is_not_matched() {
    let mut rig = Rig::new(Config::stream_indexing());
    rig.neutralise();
    rig.bank(0, 1, ROOT);
    rig.map(ROOT, 0, 0x8_0000);
    rig.smmu.write32(rig.smmu.smr(5), u32::MAX);
    assert_eq!(rig.smmu.read32(rig.smmu.smr(5)), 0);
    rig.smmu.write32(rig.smmu.s2cr(5), 0);
    rig.enable();
    assert_eq!(rig.read(5, 0).physical(), Some(0x8_0000));
    assert_eq!(rig.read(6, 0).fault(), Some(global(GlobalFaultKind::InvalidContext)));
}

#[test]
fn with_extended_ids_validity_is_in_the_s2cr() {
    let mut rig = Rig::live(Config::extended());
    let cr0 = scr0::EXIDENABLE | scr0::USFCFG | scr0::SMCFCFG;
    rig.smmu.write32(gr0::SCR0, cr0);
    rig.smmu.write32(rig.smmu.smr(0), 0xc005);
    rig.smmu.write32(rig.smmu.s2cr(0), stream::S2CR_FAULT);
    assert_eq!(rig.smmu.matching_entries(0xc005), []);
    rig.smmu.write32(rig.smmu.s2cr(0), stream::S2CR_FAULT | stream::S2CR_EXIDVALID);
    assert_eq!(rig.smmu.matching_entries(0xc005), [0]);
    assert_eq!(rig.smmu.read32(rig.smmu.smr(0)), 0xc005);
}

#[test]
fn the_wrong_write_order_with_extended_ids_is_seen_at_the_instant_between() {
    let mut rig = Rig::live(Config::extended());
    rig.smmu.write32(gr0::SCR0, scr0::EXIDENABLE | scr0::USFCFG | scr0::SMCFCFG);
    rig.smmu.write32(rig.smmu.s2cr(0), stream::S2CR_FAULT);
    rig.smmu.write32(rig.smmu.smr(0), 0xffff_0000);
    let (s2cr, smr) = (rig.smmu.s2cr(0), rig.smmu.smr(0));
    let mut captured = Vec::new();
    let mut look = |smmu: &smmu_model::Smmu| captured.push(smmu.matching_entries(0x777).len());
    rig.smmu.write32_observed(s2cr, stream::S2CR_EXIDVALID, &mut look);
    rig.smmu.write32_observed(smr, 5, &mut look);
    assert_eq!(captured, [1, 0], "S2CR first captures everything for one write");
}

#[test]
fn privilege_and_instruction_can_be_overridden() {
    let mut rig = Rig::live(quick());
    rig.map_with(ROOT, 0, 0x8_0000 | crate::rig::LEAF | crate::rig::RW | (1 << 54) | 3);
    assert_eq!(rig.read(5, 0).physical(), Some(0x8_0000));
    rig.smmu.write32(rig.smmu.s2cr(0), 3 << 26);
    assert!(rig.read(5, 0).fault().is_some(), "execute never");
    let fetch = smmu_model::Transaction::read(5, 0, 4).instruction();
    rig.smmu.write32(rig.smmu.s2cr(0), 2 << 26);
    assert_eq!(rig.smmu.dma(&mut rig.memory, fetch).physical(), Some(0x8_0000));
    for (config, marked, recorded) in [(2, true, 0), (3, false, 0x20), (0, true, 0x20)] {
        rig.smmu.write32(rig.smmu.s2cr(0), config << 24);
        rig.set(0, smmu_model::registers::cb::FSR, u32::MAX);
        let read = smmu_model::Transaction { privileged: marked, ..smmu_model::Transaction::read(5, 0x9000, 4) };
        rig.smmu.dma(&mut rig.memory, read);
        assert_eq!(rig.get(0, smmu_model::registers::cb::FSYNR0) & 0x20, recorded, "PRIVCFG {config}");
    }
}

#[test]
fn a_driver_that_relies_on_zeroes_after_reset_is_found_out() {
    let lazy = |unknown| {
        let mut rig = Rig::new(Config { unknown, ..quick() });
        rig.smmu.write32(gr0::SCR0, scr0::USFCFG | scr0::SMCFCFG);
        (0..0x100).all(|id| rig.smmu.matching_entries(id).is_empty())
    };
    assert!(lazy(Unknown::Zeroes));
    assert!((0..8).any(|seed| !lazy(Unknown::Seed(seed))));
    let mut rig = Rig::new(quick());
    assert_ne!(rig.smmu.read32(gr0::SGFSR), 0, "a first fault would be lost");
}

#[test]
fn equal_seeds_give_equal_parts() {
    assert_eq!(Rig::new(quick().seed(7)), Rig::new(quick().seed(7)));
    assert_ne!(Rig::new(quick().seed(7)), Rig::new(quick().seed(8)));
}

#[test]
fn extended_groups_stand_in_for_the_others_while_they_are_enabled() {
    let config = Config { unknown: Unknown::Zeroes, ..Config::extended_groups() };
    let mut rig = Rig::live(config);
    rig.map(ROOT, 0x5000, 0x8_0000);
    assert_eq!((rig.smmu.read32(gr0::IDR0) >> 15 & 1, rig.smmu.read32(gr0::IDR2) >> 16 & 0x7ff), (1, 64));
    let page = |page: usize| page * rig.smmu.config().page_bytes() as usize;
    let (exsmr, exs2cr) = (page(extended::EXSMR_PAGE) + 63 * 4, page(extended::EXS2CR_PAGE) + 63 * 4);
    rig.smmu.write32(exs2cr, stream::S2CR_BYPASS);
    rig.smmu.write32(exsmr, stream::SMR_VALID | 7);
    assert_eq!(rig.read(5, 0x5000).physical(), Some(0x8_0000), "not in force");
    assert_eq!(rig.read(7, 0x5000).fault(), Some(global(GlobalFaultKind::UnidentifiedStream)));
    rig.smmu.write32(gr0::SCR2, u32::MAX);
    assert_eq!(rig.smmu.read32(gr0::SCR2), extended::EXSMRGENABLE | 0xff);
    assert_eq!(rig.smmu.matching_entries(7), [63]);
    assert_eq!(path(&rig.read(7, 0x5000)), Some(Path::Bypass(Bypass::Stream { entry: 63, vmid: 0 })));
    assert_eq!(rig.read(5, 0x5000).fault(), Some(global(GlobalFaultKind::UnidentifiedStream)));
    // Without the extension there is neither the bit nor the registers.
    let mut rig = Rig::live(quick());
    rig.smmu.write32(gr0::SCR2, u32::MAX);
    rig.smmu.write32(exsmr, stream::SMR_VALID | 7);
    assert_eq!((rig.smmu.read32(gr0::SCR2), rig.smmu.read32(exsmr)), (0xff, 0));
}

#[test]
fn global_faults_are_recorded_once_and_then_counted_as_several() {
    let mut rig = Rig::live(quick());
    let write = smmu_model::Transaction::write(0x123, 0xabc0, &[0]).privileged();
    assert_eq!(
        rig.smmu.dma(&mut rig.memory, write),
        Outcome::Faulted { fault: global(GlobalFaultKind::UnidentifiedStream), aborted: true }
    );
    assert_eq!(rig.smmu.read32(gr0::SGFSR), gfsr::USF);
    assert_eq!(rig.smmu.read64(gr0::SGFAR), 0xabc0);
    assert_eq!(rig.smmu.read32(gr0::SGFSYNR0), 0x36, "NSATTR, NSSTATE, PNU, WNR");
    assert_eq!(rig.smmu.read32(gr0::SGFSYNR1), 0x123);
    assert!(rig.smmu.global_irq());
    rig.read(0x456, 0xdef0);
    assert_eq!(rig.smmu.read32(gr0::SGFSR), gfsr::USF | gfsr::MULTI);
    assert_eq!(rig.smmu.read32(gr0::SGFSYNR1), 0x123, "the first one is kept");
    rig.smmu.write32(gr0::SGFSR, gfsr::USF | gfsr::MULTI);
    assert_eq!(rig.smmu.read32(gr0::SGFSR), 0);
    assert!(!rig.smmu.global_irq());
    rig.smmu.write32(gr0::SGFSRRESTORE, gfsr::USF | gfsr::ICF);
    rig.smmu.write32(gr0::SGFSR, gfsr::USF);
    assert_eq!(rig.smmu.read32(gr0::SGFSR), gfsr::ICF, "only what was written");
}

#[test]
fn an_abort_and_an_interrupt_need_their_enables() {
    let mut rig = Rig::live(quick());
    rig.smmu.write32(gr0::SCR0, scr0::USFCFG);
    let fault = global(GlobalFaultKind::UnidentifiedStream);
    assert_eq!(rig.read(6, 0), Outcome::Faulted { fault, aborted: false });
    assert!(!rig.smmu.global_irq());
    rig.smmu.write32(gr0::SCR0, scr0::USFCFG | scr0::GFIE);
    assert!(rig.smmu.global_irq(), "a level, not an edge");
}

#[test]
fn restore_sets_the_status_and_the_interrupt() {
    let mut rig = Rig::live(quick());
    rig.smmu.write32(gr0::SGFSRRESTORE, gfsr::ICF | gfsr::MULTI);
    assert_eq!(rig.smmu.read32(gr0::SGFSR), gfsr::ICF | gfsr::MULTI);
    assert!(rig.smmu.global_irq());
    rig.smmu.write32(gr0::SGFSRRESTORE, u32::MAX);
    assert_eq!(rig.smmu.read32(gr0::SGFSR), 0x8000_006f, "the bits that v2 has");
}

#[test]
fn the_probe_changes_nothing() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, 0x8_0000);
    let before = rig.clone();
    for stream in [5, 6] {
        let all = rig.smmu.reach(&rig.memory, stream, 0, Access::Write);
        assert_eq!(all.len(), 1);
        assert_eq!(all.first().map(|one| one.source), Some(Source::New));
    }
    assert_eq!(rig, before);
    rig.map_with(ROOT, 0, 0x8_0000 | crate::rig::LEAF | crate::rig::RW | (1 << 54) | 3);
    rig.smmu.write32(rig.smmu.s2cr(0), 3 << 26);
    let found = rig.smmu.reach(&rig.memory, 5, 0, Access::Read);
    let fetch = found.first().map(|one| one.verdict);
    assert!(matches!(fetch, Some(Verdict::Faults(_))), "it, too, follows INSTCFG: {fetch:?}");
    let found = rig.smmu.reach(&rig.memory, 6, 0, Access::Read);
    let verdict = Verdict::Faults(global(GlobalFaultKind::UnidentifiedStream));
    assert_eq!(found.first().map(|one| one.verdict), Some(verdict));
}

#[test]
fn parts_without_extended_ids_have_none_of_their_bits() {
    let mut rig = Rig::live(quick());
    rig.smmu.write32(gr0::SCR0, u32::MAX);
    assert_eq!(rig.smmu.read32(gr0::SCR0) & (scr0::EXIDENABLE | scr0::VMID16EN), 0);
    rig.smmu.write32(rig.smmu.s2cr(0), stream::S2CR_EXIDVALID);
    assert_eq!(rig.smmu.read32(rig.smmu.s2cr(0)), 0);
    rig.smmu.write32(rig.smmu.cba2r(0), u32::MAX);
    assert_eq!(rig.smmu.read32(rig.smmu.cba2r(0)), 3);
}
