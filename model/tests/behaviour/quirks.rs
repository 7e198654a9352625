//! Parts and firmware that depart from the architecture, as a driver meets them.

use smmu_model::registers::{cb, gfsr, gr0, scr0, stream};
use smmu_model::{Access, Chip, Config, Hazard, Path, Quirks, Smmu, Transaction, Unimplemented, Verdict, WideAccess};

use crate::rig::{OTHER_ROOT, ROOT, Rig, quick};

#[test]
fn ap806_loses_64_bit_accesses() {
    let mut smmu = Smmu::new(Config::ap806());
    let root = smmu.bank(0, cb::TTBR0);
    smmu.write32(root + 4, 1);
    smmu.write32(root, 0x2000);
    smmu.write64(root, 0x7777_7777_7777_7777);
    assert_eq!((smmu.read32(root), smmu.read32(root + 4)), (0x2000, 1));
    assert_eq!(smmu.read64(root), 0);
    let mut smmu = Smmu::new(Config::ap806().quirks(Quirks { wide_access: WideAccess::LowWord, ..Quirks::NONE }));
    smmu.write32(root + 4, 1);
    smmu.write64(root, 0x7777_7777_7777_7777);
    assert_eq!((smmu.read32(root), smmu.read32(root + 4)), (0x7777_7777, 1));
}

#[test]
fn qualcomm_firmware_turns_bypass_into_fault_and_ignores_fault() {
    let mut smmu = Smmu::new(Config::qualcomm());
    let at = smmu.s2cr(127);
    smmu.write32(at, stream::S2CR_TRANSLATE | 3);
    smmu.write32(at, stream::S2CR_FAULT);
    assert_eq!(smmu.read32(at), 3, "the fault write is lost");
    smmu.write32(at, stream::S2CR_BYPASS);
    assert_eq!(smmu.read32(at) & stream::S2CR_TYPE, stream::S2CR_FAULT);
}

#[test]
fn qualcomm_reports_groups_that_do_not_exist() {
    let mut smmu = Smmu::new(Config::qualcomm());
    assert_eq!(smmu.read32(gr0::IDR0) & 0xff, 255);
    assert_eq!(smmu.config().groups, 128);
}

#[test]
fn qualcomms_groups_go_on_behind_the_manuals_128() {
    let mut smmu = Smmu::new(Config::qualcomm_el2());
    assert_eq!(smmu.read32(gr0::IDR0) & 0xff, 200);
    for n in 0..200 {
        smmu.write32(smmu.s2cr(n), stream::S2CR_FAULT);
        smmu.write32(smmu.smr(n), 0);
    }
    let (smr, s2cr) = (smmu.smr(199), smmu.s2cr(199));
    assert_eq!((smr, s2cr), (0xb1c, 0xf1c));
    smmu.write32(s2cr, stream::S2CR_BYPASS);
    smmu.write32(smr, stream::SMR_VALID | 0x42);
    assert_eq!((smmu.matching_entries(0x42), smmu.read32(s2cr)), (vec![199], stream::S2CR_BYPASS));
    smmu.write32(smmu.s2cr(200), stream::S2CR_BYPASS);
    assert_eq!(smmu.read32(smmu.s2cr(200)), 0, "there is none");
    assert_eq!(smmu.read32(0xfd0), 4, "PIDR4");
    let mut smmu = Smmu::new(Config { unimplemented: Unimplemented::Fault, ..Config::mmu500_layerscape() });
    smmu.write32(gr0::SGFSR, u32::MAX);
    smmu.write32(smr, u32::MAX);
    assert_eq!((smmu.read32(smr), smmu.read32(gr0::SGFSR) & gfsr::CAF), (0, gfsr::CAF), "a part with 128 groups");
}

#[test]
fn qualcomm_firmware_does_not_know_the_groups_from_128_on() {
    let mut smmu = Smmu::new(Config { groups: 200, ..Config::qualcomm() });
    for (n, kind) in [(127, stream::S2CR_FAULT), (128, stream::S2CR_BYPASS)] {
        let at = smmu.s2cr(n);
        smmu.write32(at, stream::S2CR_BYPASS);
        assert_eq!(smmu.read32(at) & stream::S2CR_TYPE, kind, "{n}");
    }
}

#[test]
fn qualcomm_loses_maintenance_writes_of_zero() {
    let mut smmu = Smmu::new(Config::qualcomm());
    smmu.write32(gr0::TLBIALLNSNH, 0);
    assert!(!smmu.has_posted_maintenance());
    smmu.write32(gr0::STLBGSYNC, 0);
    assert_eq!(smmu.hazards(), [gr0::TLBIALLNSNH, gr0::STLBGSYNC].map(Hazard::ZeroWriteLost));
    smmu.write32(gr0::TLBIVMID, 0);
    assert!(smmu.has_posted_maintenance(), "zero is a VMID");
    let mut smmu = Smmu::new(Config::qualcomm());
    smmu.write32(gr0::TLBIALLNSNH, u32::MAX);
    assert!(smmu.has_posted_maintenance());
}

#[test]
fn touching_a_hidden_bank_is_a_hazard() {
    let mut smmu = Smmu::new(Config::qualcomm());
    smmu.write32(smmu.bank(6, cb::SCTLR), 0);
    assert!(smmu.hazards().is_empty());
    assert_eq!(smmu.read32(gr0::IDR1) & 0xff, 21, "the register counts it");
    smmu.write32(smmu.bank(7, cb::SCTLR), 0);
    assert_eq!(smmu.hazards(), [Hazard::HiddenBank(7)]);
}

#[test]
fn the_cache_lock_guards_actlr() {
    let mut smmu = Smmu::new(Config::mmu500_zynqmp());
    let at = smmu.bank(0, cb::ACTLR);
    assert_eq!(smmu.read32(at), 3);
    smmu.write32(at, 1);
    assert_eq!(smmu.read32(at), 3);
    let unlocked = smmu.read32(gr0::SACR) & !(1 << 26);
    smmu.write32(gr0::SACR, unlocked);
    smmu.write32(at, 1);
    assert_eq!(smmu.read32(at), 1);
}

#[test]
fn mmu_500_holds_some_of_scr0_fixed() {
    let mut smmu = Smmu::new(Config::mmu500_zynqmp());
    smmu.write32(gr0::SCR0, !scr0::SMCFCFG);
    let expected = scr0::SMCFCFG;
    let fixed = expected | scr0::GSE | scr0::STALLD | scr0::GCFGFIE | scr0::GCFGFRE;
    assert_eq!(smmu.read32(gr0::SCR0) & fixed, expected);
}

#[test]
fn calxeda_needs_the_aliases() {
    let mut rig = Rig::new(Config::calxeda());
    let before = rig.clone();
    rig.smmu.write32(gr0::SCR0, 0);
    assert_ne!(rig, before);
    assert_eq!((rig.smmu.read32(gr0::SCR0), rig.smmu.read32(gr0::SCR0 + gr0::NONSECURE) & 1), (0, 1));
    assert!(rig.read(5, 0x1000).physical().is_some(), "that was the Secure copy");
    let status = rig.smmu.read32(gr0::SGFSR + gr0::NONSECURE);
    rig.smmu.write32(gr0::SGFSR + gr0::NONSECURE, status);
    for n in 0..32 {
        rig.smmu.write32(rig.smmu.smr(n), 0);
    }
    rig.smmu.write32(gr0::SCR0 + gr0::NONSECURE, scr0::USFCFG);
    assert!(rig.read(5, 0x1000).fault().is_some());
    assert_eq!(rig.smmu.read32(gr0::SGFSR + gr0::NONSECURE), gfsr::USF);
}

#[test]
fn elsewhere_the_aliases_do_not_exist() {
    let mut rig = Rig::new(quick());
    let before = rig.smmu.read32(gr0::SCR0);
    rig.smmu.write32(gr0::SCR0 + gr0::NONSECURE, 0);
    assert_eq!(rig.smmu.read32(gr0::SCR0), before);
}

#[test]
fn msm8974_has_its_banks_elsewhere_and_lies_about_coherence() {
    let mut smmu = Smmu::new(Config::msm8974());
    let idr1 = smmu.read32(gr0::IDR1);
    let reported = 2_u32 << ((idr1 >> 28) & 7) << 12;
    assert_eq!(reported, 0x4000);
    smmu.write32(0x4000 + cb::TCR, 0x77);
    assert_eq!(smmu.read32(0x4000 + cb::TCR), 0);
    smmu.write32(0x8000 + cb::TCR, 0x77);
    assert_eq!(smmu.read32(0x8000 + cb::TCR), 0x77);
    assert_eq!(smmu.read32(gr0::IDR0) & (1 << 14), 1 << 14, "CTTW");
    assert!(!smmu.config().coherent_walk);
}

#[test]
fn a_forgotten_lockstep_member_lets_its_addresses_through() {
    let mut chip = Chip::lockstep(&quick(), 2);
    let mut memory = smmu_model::Memory::new();
    chip.with(0, |smmu| {
        for n in 0..32 {
            smmu.write32(smmu.smr(n), 0);
        }
        smmu.write32(gr0::SCR0, scr0::USFCFG);
    });
    let outcome = chip.dma(&mut memory, Transaction::read(5, 0x1000, 4)).and_then(|outcome| outcome.physical());
    assert_eq!(outcome, Some(0x1000));
    let outcome = chip.dma(&mut memory, Transaction::read(5, 0x2000, 4)).and_then(|outcome| outcome.fault());
    assert!(outcome.is_some());
    let open = |one: &smmu_model::Reach| matches!(one.verdict, Verdict::Reaches { path: Path::Bypass(_), .. });
    assert!(chip.reach(&memory, 5, 0, Access::Read).iter().any(open));
}

#[test]
fn lockstep_members_share_their_interrupts() {
    let mut chip = Chip::lockstep(&quick(), 2);
    for n in 0..2 {
        chip.with(n, |smmu| smmu.write32(gr0::SGFSR, u32::MAX));
        chip.with(n, |smmu| smmu.write32(gr0::SCR0, scr0::GFIE));
    }
    assert!(!chip.global_irq());
    chip.with(1, |smmu| smmu.write32(gr0::SGFSRRESTORE, gfsr::USF));
    assert!(chip.global_irq());
    assert!(chip.members().first().is_some_and(|member| !member.global_irq()));
}

#[test]
fn tegra_walk_cache_entries_survive_an_invalidate_by_page() {
    let mut rig = Rig::live(Config { quirks: Config::tegra194().quirks, ..quick() });
    rig.map(ROOT, 0, 0x8_0000);
    rig.read(5, 0);
    rig.smmu.write64(rig.smmu.bank(0, cb::TLBIIPAS2), 0);
    assert!(rig.sync_bank(0));
    assert_eq!((rig.smmu.tlb().len(), rig.smmu.walk_cache().len()), (0, 2));
    rig.smmu.write32(gr0::TLBIVMID, 1);
    assert!(rig.sync());
    assert!(rig.smmu.walk_cache().is_empty());
}

#[test]
fn cn88xx_smmus_share_one_space_of_vmids() {
    let mut chip = Chip::shared_vmids(&[quick(), quick()]);
    let mut memory = smmu_model::Memory::new();
    for (n, root, output) in [(0, ROOT, 0x8_0000), (1, OTHER_ROOT, 0x9_0000)] {
        let outcome = chip.with(n, |smmu| {
            let mut rig = Rig { smmu: smmu.clone(), memory: memory.clone() };
            rig.neutralise();
            rig.bank(0, 1, root);
            rig.stream(0, 5, 0);
            rig.enable();
            rig.map(root, 0, output);
            (*smmu, memory) = (rig.smmu, rig.memory);
        });
        assert!(outcome.is_some());
    }
    let mut read = |n| chip.with(n, |smmu| smmu.dma(&mut memory, Transaction::read(5, 0, 4)).physical());
    assert_eq!(read(0), Some(Some(0x8_0000)));
    assert_eq!(read(1), Some(Some(0x8_0000)), "VMID 1 means the first one's tables here, too");
    chip.with(1, |smmu| smmu.write32(gr0::TLBIVMID, 1));
    chip.with(1, |smmu| smmu.write32(gr0::STLBGSYNC, 1));
    assert_eq!(chip.with(1, |smmu| smmu.read32(gr0::STLBGSTATUS)), Some(0));
    assert!(chip.members().iter().all(|member| member.tlb().is_empty()));
}

#[test]
fn cn88xx_has_no_stall_and_faults_on_conflicts() {
    let fixed = Config::cn88xx().cr0_fixed;
    for seed in 0..8 {
        assert_eq!(Smmu::new(Config::cn88xx().seed(seed)).peek32(gr0::SCR0) & fixed.mask, fixed.value);
    }
    let mut smmu = Smmu::new(Config::cn88xx());
    smmu.write32(gr0::SCR0, 0);
    assert_eq!(smmu.read32(gr0::SCR0), scr0::SMCFCFG);
    smmu.write32(smmu.bank(0, cb::SCTLR), u32::MAX);
    assert_eq!(smmu.read32(smmu.bank(0, cb::SCTLR)) & 0x80, 0);
}

/// Found by the fuzz target: a bank base inside GR0 hid the ID registers.
#[test]
fn a_bank_base_never_covers_the_global_space() {
    for base in [0, 0x0c80, 0x1004] {
        let config = quick().quirks(Quirks { bank_base: Some(base), ..Quirks::NONE });
        let mut smmu = Smmu::new(config);
        assert_eq!(smmu.bank(0, 0), 0x2_0000);
        assert_eq!(smmu.read32(gr0::CIDR0), 0x0d);
    }
}
