//! Context faults: recording, hit under fault, stall and resume, interrupt lines, configuration access faults.

use smmu_model::registers::{cb, fsr, gfsr, gr0, scr0, sctlr};
use smmu_model::{
    Access, Config, ContextFaultKind, Fault, Outcome, Quirks, Stage, Transaction, Unimplemented, Verdict, Wiring,
};

use crate::rig::{LIVE, ROOT, Rig, quick};

const STALLING: u32 = LIVE | sctlr::CFCFG;

#[test]
fn a_context_fault_is_recorded_in_full() {
    let mut rig = Rig::live(quick());
    let write = Transaction::write(5, 0x12_3450, &[0]).privileged();
    let fault = Fault::Context { bank: 0, kind: ContextFaultKind::Translation, level: 1 };
    assert_eq!(rig.smmu.dma(&mut rig.memory, write), Outcome::Faulted { fault, aborted: true });
    assert_eq!(rig.get(0, cb::FSR), fsr::TF | (2 << 9), "Format says AArch64");
    assert_eq!(rig.smmu.read64(rig.smmu.bank(0, cb::FAR)), 0x12_3450);
    assert_eq!(rig.get(0, cb::IPAFAR), 0x12_3450);
    assert_eq!(rig.get(0, cb::FSYNR0), 0x131, "NSATTR, PNU, WNR, level 1");
    let syndrome = rig.smmu.gr1(smmu_model::registers::gr1::CBFRSYNRA);
    assert_eq!(rig.smmu.read32(syndrome), 5);
    assert_eq!(rig.smmu.read32(gr0::SGFSR), 0, "not a global fault");
}

#[test]
fn the_first_fault_is_kept_and_more_set_multi() {
    let mut rig = Rig::live(quick());
    rig.read(5, 0x1000);
    rig.read(5, 0x2000);
    assert_eq!(rig.get(0, cb::FSR) & fsr::MULTI, fsr::MULTI);
    assert_eq!(rig.get(0, cb::FAR), 0x1000);
}

#[test]
fn status_is_cleared_by_ones_but_not_format() {
    let mut rig = Rig::live(quick());
    rig.read(5, 0x1000);
    rig.set(0, cb::FSR, fsr::PF);
    assert_eq!(rig.get(0, cb::FSR) & fsr::TF, fsr::TF);
    rig.set(0, cb::FSR, u32::MAX);
    assert_eq!(rig.get(0, cb::FSR), 2 << 9);
}

#[test]
fn restore_sets_a_banks_status_and_interrupt() {
    let mut rig = Rig::live(quick());
    assert!(!rig.smmu.context_irq(0));
    rig.set(0, cb::FSRRESTORE, fsr::EF);
    assert_eq!(rig.get(0, cb::FSR) & fsr::EF, fsr::EF);
    assert!(rig.smmu.context_irq(0));
}

#[test]
fn without_hit_under_fault_everything_ends_even_on_a_tlb_hit() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, 0x8_0000);
    rig.set(0, cb::SCTLR, LIVE & !sctlr::HUPCF);
    assert!(rig.read(5, 0).physical().is_some());
    rig.read(5, 0x5000);
    let before = rig.get(0, cb::FSR);
    let fault = rig.read(5, 0).fault();
    assert_eq!(fault, Some(Fault::Context { bank: 0, kind: ContextFaultKind::HitUnderFault, level: 0 }));
    assert_eq!(rig.get(0, cb::FSR), before, "the status is untouched");
    rig.set(0, cb::SCTLR, LIVE);
    assert!(rig.read(5, 0).physical().is_some());
}

#[test]
fn an_abort_of_a_context_fault_needs_cfre() {
    let mut rig = Rig::live(quick());
    rig.set(0, cb::SCTLR, LIVE & !sctlr::CFRE);
    assert!(matches!(rig.read(5, 0), Outcome::Faulted { aborted: false, .. }));
}

#[test]
fn a_stalled_transaction_can_be_retried() {
    let mut rig = Rig::live(quick());
    rig.set(0, cb::SCTLR, STALLING);
    let Outcome::Stalled { id, bank: 0 } = rig.read(5, 0) else { panic!("did not stall") };
    assert_eq!(rig.get(0, cb::FSR) & (fsr::SS | fsr::TF), fsr::SS | fsr::TF);
    assert_eq!(rig.smmu.in_flight().first().and_then(smmu_model::InFlight::stalled_in), Some(0));
    rig.map(ROOT, 0, 0x8_0000);
    assert!(matches!(rig.smmu.finish(&mut rig.memory, id), Some(Outcome::Stalled { .. })), "it waits for RESUME");
    rig.set(0, cb::FSR, u32::MAX);
    assert_eq!(rig.get(0, cb::FSR) & fsr::SS, fsr::SS, "only RESUME clears it");
    assert!(rig.smmu.context_irq(0), "and until then the interrupt stands");
    rig.set(0, cb::RESUME, 0);
    assert_eq!(rig.get(0, cb::FSR) & fsr::SS, 0);
    let outcome = rig.smmu.finish(&mut rig.memory, id);
    assert_eq!(outcome.and_then(|outcome| outcome.physical()), Some(0x8_0000));
    assert!(rig.smmu.in_flight().is_empty());
}

#[test]
fn a_stalled_transaction_can_be_ended_without_a_second_record() {
    let mut rig = Rig::live(quick());
    rig.set(0, cb::SCTLR, STALLING);
    let Outcome::Stalled { id, .. } = rig.read(5, 0) else { panic!("did not stall") };
    rig.set(0, cb::FSR, u32::MAX);
    rig.set(0, cb::RESUME, 1);
    let fault = Fault::Context { bank: 0, kind: ContextFaultKind::ResumeTerminate, level: 0 };
    assert_eq!(rig.smmu.finish(&mut rig.memory, id), Some(Outcome::Faulted { fault, aborted: true }));
    assert_eq!(rig.get(0, cb::FSR) & !fsr::FORMAT, 0);
}

#[test]
fn stalld_turns_stalling_off() {
    let mut rig = Rig::live(quick());
    rig.set(0, cb::SCTLR, STALLING);
    rig.smmu.write32(gr0::SCR0, scr0::STALLD | scr0::USFCFG);
    assert!(rig.read(5, 0).fault().is_some());
    let verdict = |rig: &Rig| rig.smmu.reach(&rig.memory, 5, 0, Access::Read).first().map(|one| one.verdict);
    assert!(matches!(verdict(&rig), Some(Verdict::Faults(_))));
    rig.smmu.write32(gr0::SCR0, scr0::USFCFG);
    assert_eq!(verdict(&rig), Some(Verdict::Waits(Some(0))));
}

#[test]
fn a_change_of_cfcfg_waits_for_a_clear_status() {
    let mut rig = Rig::live(quick());
    rig.read(5, 0x1000);
    rig.set(0, cb::SCTLR, STALLING);
    assert!(rig.read(5, 0x1000).fault().is_some(), "still the old mode");
    rig.set(0, cb::FSR, u32::MAX);
    assert!(matches!(rig.read(5, 0x1000), Outcome::Stalled { .. }));
}

#[test]
fn a_stall_can_block_every_other_stream() {
    for (quirks, cr0) in
        [(Quirks { stall_blocks_all: true, ..Quirks::NONE }, 0), (Quirks::NONE, scr0::GSE), (Quirks::NONE, 0)]
    {
        let blocks = quirks.stall_blocks_all || cr0 != 0;
        let mut rig = Rig::live(quick().quirks(quirks));
        rig.smmu.write32(gr0::SCR0, cr0 | scr0::USFCFG);
        rig.bank(1, 2, crate::rig::OTHER_ROOT);
        rig.stream(1, 9, 1);
        rig.map(crate::rig::OTHER_ROOT, 0, 0x9_0000);
        rig.set(0, cb::SCTLR, STALLING);
        assert!(matches!(rig.read(5, 0), Outcome::Stalled { .. }));
        let outcome = rig.read(9, 0);
        assert_eq!(matches!(outcome, Outcome::Blocked { .. }), blocks);
        if blocks {
            let waits = rig.smmu.reach(&rig.memory, 9, 0, Access::Read);
            assert_eq!(waits.first().map(|one| one.verdict), Some(Verdict::Waits(None)));
            rig.set(0, cb::RESUME, 1);
            let outcomes = rig.smmu.drain(&mut rig.memory);
            assert_eq!(outcomes.last().and_then(|(_, outcome)| outcome.physical()), Some(0x9_0000));
        }
    }
}

#[test]
fn a_write_to_the_banks_attributes_may_retry_what_is_stalled() {
    let mut rig = Rig::live(Config { bank_write_retries: true, ..quick() });
    rig.set(0, cb::SCTLR, STALLING);
    let Outcome::Stalled { id, .. } = rig.read(5, 0) else { panic!("did not stall") };
    rig.smmu.write32(rig.smmu.cbar(0), 1);
    assert_eq!(rig.smmu.step(&mut rig.memory, id), Some(Stage::Steered));
}

#[test]
fn a_context_interrupt_is_a_level_with_an_enable() {
    let mut rig = Rig::live(quick());
    rig.set(0, cb::SCTLR, LIVE & !sctlr::CFIE);
    rig.read(5, 0);
    assert!(!rig.smmu.context_irq(0));
    rig.set(0, cb::SCTLR, LIVE);
    assert!(rig.smmu.context_irq(0));
    assert!(!rig.smmu.context_irq(1));
    rig.set(0, cb::FSR, u32::MAX);
    assert!(!rig.smmu.context_irq(0));
}

#[test]
fn v1_chooses_the_line_by_irptndx() {
    let mut rig = Rig::live(Config::generic_v1());
    rig.smmu.write32(rig.smmu.cbar(0), (2 << 24) | 1);
    rig.read(5, 0);
    assert!(rig.smmu.context_irq(2));
    assert_eq!(rig.smmu.context_line(0), Some(2));
    let mut rig = Rig::live(quick());
    rig.smmu.write32(rig.smmu.cbar(0), (2 << 24) | 1);
    assert_eq!(rig.smmu.read32(rig.smmu.cbar(0)), 1, "fixed 0 in v2");
}

#[test]
fn v1_reports_an_interrupt_that_does_not_exist() {
    let mut rig = Rig::live(Config::generic_v1());
    rig.smmu.write32(rig.smmu.cbar(0), (9 << 24) | 1);
    rig.read(5, 0);
    assert_eq!(rig.smmu.read32(gr0::SGFSR), gfsr::UCIF);
    assert_eq!(rig.get(0, cb::FSR) & fsr::TF, fsr::TF);
    rig.smmu.write32(gr0::SGFSR, u32::MAX);
    rig.set(0, cb::SCTLR, LIVE & !sctlr::CFIE);
    rig.read(5, 0);
    assert_eq!(rig.smmu.read32(gr0::SGFSR), 0, "a bank that does not interrupt needs no line");
}

#[test]
fn banks_can_share_one_line() {
    let mut rig = Rig::live(Config { wiring: Wiring::Combined, ..quick() });
    rig.stream(0, 5, 3);
    rig.bank(3, 1, ROOT);
    rig.read(5, 0);
    assert!(rig.smmu.context_irq(0));
    assert!(!rig.smmu.context_irq(3));
}

#[test]
fn an_unimplemented_register_may_be_a_configuration_access_fault() {
    let mut rig = Rig::live(Config { unimplemented: Unimplemented::Fault, ..quick() });
    rig.smmu.write32(gr0::SGFSYNR1, 0x77);
    rig.smmu.write32(0x00e0, 1);
    assert_eq!(rig.smmu.read32(gr0::SGFSYNR1), 0x77, "it has no stream");
    assert_eq!(rig.smmu.read32(gr0::SGFSR), gfsr::CAF);
    assert_eq!(rig.smmu.read64(gr0::SGFAR), 0xe0);
    assert!(rig.smmu.config_irq());
    assert!(!rig.smmu.global_irq());
    rig.smmu.write32(0x00e0, 1);
    assert!(rig.smmu.global_irq(), "several go to the global line");
    rig.smmu.write32(gr0::SGFSR, u32::MAX);
    rig.set(0, 0x900, 1);
    assert_eq!(rig.smmu.read32(gr0::SGFSR), 0, "v2 banks give none");
    let mut rig = Rig::live(Config { unimplemented: Unimplemented::Fault, ..Config::generic_v1() });
    rig.smmu.write32(gr0::SGFSR, u32::MAX);
    rig.set(1, 0x900, 1);
    assert_eq!(rig.smmu.read32(gr0::SGFSR), gfsr::CAF, "v1 banks do");
    assert_eq!(rig.smmu.read64(gr0::SGFAR), 0x1_1900);
    rig.smmu.write32(gr0::SGFSR, u32::MAX);
    rig.smmu.read32(rig.smmu.gr1(0x204));
    assert_eq!(rig.smmu.read64(gr0::SGFAR), 0x1204);
    rig.smmu.write32(gr0::SGFSR, u32::MAX);
    rig.smmu.write32(0x1_9010, 0);
    assert_eq!(rig.smmu.read64(gr0::SGFAR), 0x1_9010, "above the last bank");
    rig.smmu.write32(gr0::SCR0, scr0::GFIE);
    assert!(!rig.smmu.config_irq(), "gated by GCFGFIE");
}

#[test]
fn by_default_an_unimplemented_register_is_ignored() {
    let mut rig = Rig::live(quick());
    let before = rig.clone();
    rig.smmu.write32(0x00e0, 1);
    assert_eq!(rig.smmu.read32(0x00e0), 0);
    assert_eq!(rig, before);
}
