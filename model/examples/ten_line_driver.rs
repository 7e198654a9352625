//! Tests a driver of ten lines: does it isolate, and does an unmap take effect?
//!
//! `cargo run --example ten_line_driver` prints the trace of its register accesses. The driver is right; take out the
//! loop over the entries, the root, M, USFCFG, or the flush after the unmap, and see which check finds out.

use smmu_model::registers::{cb, gr0, scr0, sctlr, stream};
use smmu_model::{Access, Config, Memory, Record, Smmu, Transaction, Verdict};

/// The driver: gives stream 5 to bank 0, with tables at `root`, and everything else to nobody.
fn assign(smmu: &mut Smmu, root: u64) {
    for n in 0..smmu.config().groups {
        smmu.write32(smmu.s2cr(n), stream::S2CR_FAULT);
        smmu.write32(smmu.smr(n), 0);
    }
    flush(smmu);
    smmu.write32(smmu.cba2r(0), 1);
    smmu.write32(smmu.cbar(0), 1);
    smmu.write32(smmu.bank(0, cb::TCR), (5 << 16) | (1 << 6) | 25);
    smmu.write64(smmu.bank(0, cb::TTBR0), root);
    smmu.write32(smmu.bank(0, cb::FSR), u32::MAX);
    smmu.write32(smmu.bank(0, cb::SCTLR), sctlr::M | sctlr::AFE | sctlr::TRE | sctlr::CFRE | sctlr::HUPCF);
    smmu.write32(smmu.s2cr(0), stream::S2CR_TRANSLATE);
    smmu.write32(smmu.smr(0), stream::SMR_VALID | 5);
    smmu.write32(gr0::SCR0, scr0::USFCFG | scr0::SMCFCFG | scr0::GFRE);
}

/// The driver: invalidates everything and waits, so that an unmapped page is out of reach.
fn flush(smmu: &mut Smmu) {
    smmu.write32(gr0::TLBIALLNSNH, u32::MAX);
    smmu.write32(gr0::STLBGSYNC, u32::MAX);
    for _ in 0..1000 {
        if smmu.read32(gr0::STLBGSTATUS) & 1 == 0 {
            return;
        }
    }
}

fn main() {
    for record in check().iter().skip(2 * 48) {
        println!("{record}");
    }
}

/// The test: gives the trace of the driver's register accesses.
fn check() -> Vec<Record> {
    let mut smmu = Smmu::new(Config::mmu500_zynqmp());
    let mut memory = Memory::new();
    smmu.start_trace();

    // One block of 1 GiB: input 0 to 0x4000_0000, readable and writable.
    let root = 0x10_0000;
    memory.write_u64(root, 0x4000_07fd);
    memory.publish_all();
    assign(&mut smmu, root);

    let outcome = smmu.dma(&mut memory, Transaction::write(5, 0x1000, b"hello"));
    assert_eq!(outcome.physical(), Some(0x4000_1000), "stream 5 is not translated: {outcome:?}");
    for other in (0..0x100).filter(|id| *id != 5) {
        let outcome = smmu.dma(&mut memory, Transaction::read(other, 0x4000_1000, 4));
        assert!(outcome.fault().is_some(), "stream {other:#x} is not isolated: {outcome:?}");
    }

    memory.write_u64(root, 0);
    memory.publish_all();
    flush(&mut smmu);
    let reached = |verdict| matches!(verdict, Verdict::Reaches { .. });
    let still = smmu.reach(&memory, 5, 0x1000, Access::Write).into_iter().find(|one| reached(one.verdict));
    assert!(still.is_none(), "an unmapped page is still in reach: {still:?}");
    smmu.take_trace()
}

#[test]
fn the_driver_isolates() {
    assert!(check().len() > 2 * 48);
}
