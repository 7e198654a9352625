//! The checks that a bank has to pass before it translates, and what its attributes mean.

use smmu_model::registers::{bank_attributes, cb, gr0, scr0, stream};
use smmu_model::{Config, Fault, GlobalFaultKind, Outcome, Path, WideInput};

use crate::rig::{LIVE, OTHER_ROOT, ROOT, Rig, quick};

fn refused(kind: GlobalFaultKind, bank: u8, nested: bool) -> Option<Fault> {
    Some(Fault::Global { kind, bank: Some(bank), nested })
}

fn untranslated(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Completed { path: Path::BankOff { .. }, .. })
}

#[test]
fn a_bank_that_does_not_exist_is_a_fault() {
    let mut rig = Rig::live(quick());
    rig.stream(0, 5, 8);
    assert_eq!(rig.read(5, 0).fault(), refused(GlobalFaultKind::UnimplementedBank, 8, false));
}

#[test]
fn a_bank_of_type_2_ends_every_transaction() {
    let mut rig = Rig::live(quick());
    rig.smmu.write32(rig.smmu.cbar(0), bank_attributes::STAGE1_FAULT);
    assert_eq!(rig.read(5, 0).fault(), refused(GlobalFaultKind::InvalidContext, 0, true));
}

#[test]
fn a_stage_that_the_part_lacks_is_a_fault() {
    let mut rig = Rig::live(Config { fixed_bank_type: false, stage1: false, nested: false, ..quick() });
    rig.smmu.write32(rig.smmu.cbar(0), bank_attributes::STAGE1_BYPASS | 1);
    assert_eq!(rig.read(5, 0).fault(), refused(GlobalFaultKind::InvalidContext, 0, true));
    let mut rig = Rig::live(Config { stage2: false, nested: false, ..quick() });
    assert_eq!(rig.read(5, 0).fault(), refused(GlobalFaultKind::InvalidContext, 0, true));
}

#[test]
fn a_stage_2_only_bank_takes_no_other_type() {
    let config = Config { stage2_banks: 1, ..quick() };
    let mut rig = Rig::live(config.clone());
    rig.smmu.write32(rig.smmu.cbar(0), bank_attributes::NESTED | 1);
    assert_eq!(rig.smmu.read32(rig.smmu.cbar(0)), 1, "the field is fixed");
    let mut rig = Rig::live(Config { fixed_bank_type: false, ..config });
    rig.smmu.write32(rig.smmu.cbar(0), bank_attributes::STAGE1_BYPASS | 1);
    assert_eq!(rig.read(5, 0).fault(), refused(GlobalFaultKind::InvalidContext, 0, true));
}

#[test]
fn clearing_m_passes_untranslated() {
    let mut rig = Rig::live(quick());
    rig.set(0, cb::SCTLR, LIVE & !1);
    let outcome = rig.read(5, 0xdead_b000);
    assert!(untranslated(&outcome));
    assert_eq!(outcome.physical(), Some(0xdead_b000));
}

#[test]
fn a_stage_1_bank_with_m_clear_passes_untranslated() {
    let mut rig = Rig::live(quick());
    rig.smmu.write32(rig.smmu.cbar(0), bank_attributes::STAGE1_BYPASS | 1);
    rig.set(0, cb::SCTLR, 0);
    assert!(untranslated(&rig.read(5, 0x9000)));
    assert!(untranslated(&rig.read(5, 1 << 32)));
    rig.smmu.write32(rig.smmu.cba2r(0), 0);
    let kind = smmu_model::ContextFaultKind::Translation;
    let fault = rig.read(5, 1 << 32).fault();
    assert_eq!(fault, Some(Fault::Context { bank: 0, kind, level: 1 }), "VA64 = 0 takes 32 bits");
}

#[test]
fn a_stage_1_walk_is_named_as_not_modelled() {
    let mut rig = Rig::live(quick());
    rig.smmu.write32(rig.smmu.cbar(0), bank_attributes::STAGE1_BYPASS | 1);
    assert_eq!(rig.read(5, 0x9000).fault(), Some(Fault::Unmodelled { bank: 0 }));
    assert_eq!(rig.smmu.hazards(), [smmu_model::Hazard::Unmodelled(0)]);
}

#[test]
fn a_nested_pair_uses_the_second_banks_stage_2() {
    let mut rig = Rig::live(quick());
    rig.map(OTHER_ROOT, 0x5000, 0x8_0000);
    rig.bank(3, 9, OTHER_ROOT);
    rig.stream(0, 5, 2);
    rig.smmu.write32(rig.smmu.cba2r(2), 0);
    rig.smmu.write32(rig.smmu.cbar(2), bank_attributes::NESTED | (3 << 8) | 1);
    let outcome = rig.read(5, 0x5678);
    assert_eq!(outcome.physical(), Some(0x8_0678));
    assert!(matches!(outcome, Outcome::Completed { path: Path::Translated { bank: 3, vmid: 9, .. }, .. }));
    assert!(rig.read(5, 0x6000).fault().is_some());
    assert_eq!(rig.get(2, cb::FSR) & !smmu_model::registers::fsr::FORMAT, 0, "only the second bank records");
    assert_eq!(rig.get(3, cb::FSYNR0) & 0x00ff_0004, 0x0002_0004, "NESTED, and the first bank's number, 2");
}

#[test]
fn a_nested_pair_is_checked() {
    let mut rig = Rig::live(quick());
    rig.smmu.write32(rig.smmu.cbar(0), bank_attributes::NESTED | (8 << 8) | 1);
    assert_eq!(rig.read(5, 0).fault(), refused(GlobalFaultKind::UnimplementedBank, 8, true));
    rig.smmu.write32(gr0::SGFSR, u32::MAX);
    rig.smmu.write32(rig.smmu.cbar(0), bank_attributes::NESTED | (3 << 8) | 1);
    rig.smmu.write32(rig.smmu.cbar(3), bank_attributes::STAGE1_BYPASS);
    assert_eq!(rig.read(5, 0).fault(), refused(GlobalFaultKind::InvalidContext, 3, true));
    rig.smmu.write32(rig.smmu.cbar(3), bank_attributes::STAGE2);
    assert_eq!(rig.read(5, 0).fault(), refused(GlobalFaultKind::InvalidContext, 3, true), "VA64 of the second is 0");
}

#[test]
fn a_wide_input_with_m_clear_has_two_readings() {
    for (wide_input, expected) in [
        (WideInput::AddressSize, smmu_model::ContextFaultKind::AddressSize),
        (WideInput::Translation, smmu_model::ContextFaultKind::Translation),
    ] {
        let mut rig = Rig::live(Config { wide_input, ..quick() });
        rig.smmu.write32(rig.smmu.cba2r(0), 0);
        rig.set(0, cb::SCTLR, LIVE & !1);
        let fault = rig.read(5, 1 << 40).fault();
        assert_eq!(fault, Some(Fault::Context { bank: 0, kind: expected, level: 1 }));
        rig.set(0, cb::FSR, u32::MAX);
        assert!(untranslated(&rig.read(5, 1 << 39)));
        rig.set(0, cb::SCTLR, LIVE);
        let fault = rig.read(5, 1 << 40).fault();
        let translation = smmu_model::ContextFaultKind::Translation;
        assert_eq!(fault, Some(Fault::Context { bank: 0, kind: translation, level: 1 }), "with M = 1 they agree");
    }
}

#[test]
fn sixteen_bit_vmids_live_in_cba2r() {
    let mut rig = Rig::live(Config::extended());
    rig.smmu.write32(gr0::SCR0, scr0::VMID16EN | scr0::USFCFG | scr0::SMCFCFG);
    rig.smmu.write32(rig.smmu.cba2r(0), 0x1234_0001);
    rig.smmu.write32(rig.smmu.cbar(0), 0xff);
    assert_eq!(rig.smmu.read32(rig.smmu.cbar(0)), 0, "VMID in CBAR is reserved then");
    rig.map(ROOT, 0, 0x8_0000);
    let outcome = rig.read(5, 0);
    assert!(matches!(outcome, Outcome::Completed { path: Path::Translated { vmid: 0x1234, .. }, .. }));
    rig.smmu.write32(gr0::TLBIVMID, 0x34);
    assert!(rig.sync());
    assert_eq!(rig.smmu.tlb().len(), 1, "the invalidate compares 16 bits");
}

#[test]
fn changing_the_vmid_width_forgets_programmed_vmids() {
    let mut rig = Rig::live(Config::extended());
    for n in 0..8 {
        rig.smmu.write32(rig.smmu.cbar(n), 7);
    }
    rig.smmu.write32(gr0::SCR0, scr0::VMID16EN);
    rig.smmu.write32(gr0::SCR0, 0);
    assert!((0..8).any(|n| rig.smmu.read32(rig.smmu.cbar(n)) != 7));
}

#[test]
fn a_vmid16_that_is_not_enabled_is_not_the_vmid() {
    let mut rig = Rig::live(Config::extended());
    rig.map(ROOT, 0, 0x8_0000);
    rig.smmu.write32(rig.smmu.cba2r(0), 0x1234_0001);
    let outcome = rig.read(5, 0);
    assert!(matches!(outcome, Outcome::Completed { path: Path::Translated { vmid: 1, .. }, .. }));
    rig.smmu.write32(gr0::TLBIVMID, 0x7701);
    assert!(rig.sync());
    assert!(rig.smmu.tlb().is_empty(), "the invalidate compares 8 bits");
}

#[test]
fn v1_has_no_cba2r_and_no_v2_registers() {
    let mut rig = Rig::live(Config::generic_v1());
    rig.smmu.write32(rig.smmu.cba2r(0), u32::MAX);
    assert_eq!(rig.smmu.read32(rig.smmu.cba2r(0)), 0);
    rig.map(ROOT, 0, 0x8_0000);
    assert_eq!(rig.read(5, 0).physical(), Some(0x8_0000));
    rig.smmu.write64(rig.smmu.bank(0, cb::TLBIIPAS2L), 0);
    assert!(!rig.smmu.has_posted_maintenance(), "no such operation in v1");
    rig.set(0, cb::TLBSYNC, 0);
    assert_eq!(rig.get(0, cb::TLBSTATUS), 0);
    assert_eq!(rig.smmu.tlb().len(), 1);
    rig.set(0, cb::FAR, 0x77);
    assert_eq!(rig.get(0, cb::IPAFAR), 0);
}

#[test]
fn retargeting_a_live_entry_is_one_write() {
    let mut rig = Rig::live(quick());
    rig.bank(1, 2, OTHER_ROOT);
    rig.map(ROOT, 0, 0x8_0000);
    rig.map(OTHER_ROOT, 0, 0x9_0000);
    assert_eq!(rig.read(5, 0).physical(), Some(0x8_0000));
    rig.smmu.write32(rig.smmu.s2cr(0), stream::S2CR_TRANSLATE | 1);
    assert_eq!(rig.read(5, 0).physical(), Some(0x9_0000));
}
