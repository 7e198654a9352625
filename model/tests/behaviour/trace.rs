//! The trace, the counters and the observer.

use smmu_model::registers::{cb, gr0, stream};
use smmu_model::{Config, Counters, Smmu};

use crate::rig::{Rig, quick};

#[test]
fn a_trace_reads_as_text() {
    let mut rig = Rig::new(quick());
    rig.smmu.start_trace();
    rig.smmu.write32(rig.smmu.s2cr(1), stream::S2CR_FAULT);
    rig.smmu.write32(rig.smmu.smr(1), stream::SMR_VALID | (0x7 << 16) | 0x40);
    rig.bank(3, 9, 0x4000_0000);
    rig.smmu.write64(rig.smmu.bank(3, cb::TLBIIPAS2L), 0x12);
    rig.smmu.write32(gr0::STLBGSYNC, u32::MAX);
    rig.smmu.read32(gr0::STLBGSTATUS);
    let text: Vec<_> = rig.smmu.take_trace().iter().map(ToString::to_string).collect();
    let expected = [
        "W GR0+0xc04 S2CR1 = 0x00020000 TYPE=fault",
        "W GR0+0x804 SMR1 = 0x80070040 VALID ID=0x40 MASK=0x7",
        "W GR1+0x80c CBA2R3 = 0x00000001 VA64",
        "W GR1+0x00c CBAR3 = 0x00000009 TYPE=s2 VMID=9",
        "R GR1+0x80c CBA2R3 = 0x00000001 VA64",
        "W CB3+0x030 TCR = 0x00050059 T0SZ=25 SL0=1 TG0=0 PASize=5",
        "W CB3+0x020 TTBR0 = 0x0000000040000000",
        "W CB3+0x000 SCTLR = 0x00000167 HUPCF CFIE CFRE AFE TRE M",
        "W CB3+0x638 TLBIIPAS2L = 0x0000000000000012 IPA=0x12000",
        "W GR0+0x070 sTLBGSYNC = 0xffffffff",
        "R GR0+0x074 sTLBGSTATUS = 0x00000000",
    ];
    assert_eq!(text, expected);
    assert!(rig.smmu.trace().is_empty(), "taken, and off again");
}

#[test]
fn a_trace_names_what_is_not_there() {
    let mut smmu = Smmu::new(Config::generic_v1());
    smmu.start_trace();
    smmu.read32(0x2204);
    smmu.read32(smmu.region_size() + 4);
    let text: Vec<_> = smmu.trace().iter().map(ToString::to_string).collect();
    assert_eq!(text, ["R PAGE2+0x204 - = 0x00000000", "R OUTSIDE+0x20004 - = 0x00000000"]);
}

#[test]
fn accesses_are_counted() {
    let mut smmu = Smmu::new(quick());
    smmu.read32(gr0::IDR0);
    smmu.read64(gr0::SGFAR);
    smmu.write64(smmu.bank(0, cb::TTBR0), 0);
    assert_eq!(smmu.counters(), Counters { reads: 2, writes: 1 });
}

#[test]
fn an_observer_sees_every_instant_of_a_half_written_root() {
    let mut smmu = Smmu::new(quick());
    let root = smmu.bank(0, cb::TTBR0);
    smmu.write64(root, 0x1_1000_0000);
    let mut seen = Vec::new();
    let mut look = |smmu: &Smmu| seen.push(smmu.peek64(root));
    smmu.write32_observed(root + 4, 2, &mut look);
    smmu.write32_observed(root, 0x2000_0000, &mut look);
    smmu.write64_observed(root, 0x3_3000_0000, &mut look);
    assert_eq!(seen, [0x2_1000_0000, 0x2_2000_0000, 0x3_3000_0000]);
}

#[test]
fn peeking_sees_what_reading_gives_and_changes_nothing() {
    for config in [Config::generic_v1(), Config::extended(), Config::mmu500_zynqmp(), Config::calxeda()] {
        let mut smmu = Smmu::new(config);
        smmu.write32(gr0::STLBGSYNC, 1);
        smmu.start_trace();
        let before = smmu.clone();
        let peeked: Vec<_> = (0..smmu.region_size()).step_by(4).map(|at| smmu.peek32(at)).collect();
        assert_eq!(smmu, before);
        assert!(smmu.trace().is_empty() && smmu.hazards().is_empty());
        assert_eq!(smmu.counters(), before.counters());
        let read: Vec<_> = (0..smmu.region_size()).step_by(4).map(|at| smmu.read32(at)).collect();
        assert_eq!(peeked, read);
    }
    assert_eq!(Smmu::new(quick()).peek32(2), 0);
}
