//! Identification registers, the map of the register space, and the presets.

use smmu_model::registers::{cb, gr0};
use smmu_model::{Config, Hazard, Smmu};

use crate::rig::{Rig, quick};

fn identity(config: Config) -> [u32; 3] {
    let mut smmu = Smmu::new(config);
    [gr0::IDR0, gr0::IDR1, gr0::IDR2].map(|at| smmu.read32(at))
}

#[test]
fn zynqmp_reads_as_zynqmp() {
    // Bit 31 of IDR0, SES, is hidden from the Non-secure side.
    assert_eq!(identity(Config::mmu500_zynqmp()), [0x7c01_3e30, 0x3000_0f10, 0x5555]);
    let mut smmu = Smmu::new(Config::mmu500_zynqmp());
    assert_eq!(smmu.read32(gr0::SCR0) & 0x0020_0001, 0x0020_0001);
    assert_eq!(smmu.read32(gr0::IDR7), 0x21);
    let peripheral: Vec<_> = (0..4).map(|n| smmu.read32(gr0::PIDR0 + 4 * n)).collect();
    assert_eq!(peripheral, [0x81, 0xb4, 0x1b, 0]);
    let component: Vec<_> = (0..4).map(|n| smmu.read32(gr0::CIDR0 + 4 * n)).collect();
    assert_eq!(component, [0x0d, 0xf0, 0x05, 0xb1]);
    assert_eq!(smmu.read32(smmu.cbar(3)), 0x0002_0000, "a bank faults until it is programmed");
    assert_eq!(smmu.read32(smmu.bank(3, cb::SCTLR)), 0x100);
    assert_eq!(smmu.region_size(), 0x2_0000);
}

#[test]
fn layerscape_has_128_groups_and_64_banks() {
    let [idr0, idr1, _] = identity(Config::mmu500_layerscape());
    assert_eq!((idr0 & 0xff, idr1 & 0xff), (128, 64));
    assert_eq!(Smmu::new(Config::mmu500_layerscape()).region_size(), 0x80_0000);
}

#[test]
fn juno_has_a_small_and_a_large_mmu_401() {
    for (config, groups, banks) in [(Config::mmu401_juno_small(), 2, 1), (Config::mmu401_juno_large(), 32, 4)] {
        let [idr0, idr1, idr2] = identity(config);
        assert_eq!((idr0 & 0xff, idr1 & 0xff), (groups, banks));
        assert_eq!(idr0 >> 28, 0b0010, "stage 2 only");
        assert_eq!((idr1 >> 16) & 0xff, banks, "every bank is stage-2 only");
        assert_eq!(idr2, 0x22, "40 bits, and no v2 formats");
    }
}

#[test]
fn each_preset_agrees_with_its_registers() {
    let presets = [
        Config::generic_v1(),
        Config::generic_v2(),
        Config::stream_indexing(),
        Config::extended(),
        Config::mmu400(),
        Config::mmu401_juno_small(),
        Config::mmu401_juno_large(),
        Config::mmu500_zynqmp(),
        Config::mmu500_layerscape(),
        Config::ap806(),
        Config::qualcomm(),
        Config::qualcomm_el2(),
        Config::extended_groups(),
        Config::msm8974(),
        Config::tegra186(),
        Config::tegra194(),
        Config::cn88xx(),
        Config::calxeda(),
    ];
    for config in presets {
        let [idr0, idr1, idr2] = identity(config.clone());
        let reported = config.quirks.reported_groups.unwrap_or(config.groups);
        assert_eq!(idr0 & 0xff, u32::from(reported));
        assert_eq!(idr1 & 0xff, u32::from(config.banks));
        assert_eq!(idr0 & (1 << 29) != 0, config.stage2);
        assert_eq!(idr0 & (1 << 27) != 0, config.stream_matching);
        assert!(u32::from(config.banks) <= config.pages(), "every bank has its page");
        assert!((idr1 >> 16) & 0xff <= idr1 & 0xff, "NUMS2CB is at most NUMCB");
        let nested_needs_both = config.nested && !(config.stage1 && config.stage2);
        assert!(!nested_needs_both);
        assert_eq!(idr2 & 0xf000 != 0, config.architecture == smmu_model::Architecture::V2);
    }
}

#[test]
fn v2_counts_one_context_interrupt_and_v1_all() {
    for (config, expected) in [(Config::generic_v2(), 1), (Config::generic_v1(), 4)] {
        let [idr0, ..] = identity(Config { context_interrupts: 4, ..config });
        assert_eq!((idr0 >> 16) & 0xff, expected);
    }
}

#[test]
fn identification_cannot_be_written() {
    let mut rig = Rig::new(quick());
    let before = rig.clone();
    for at in (0x20..0x40).chain(0xfd0..0x1000).step_by(4) {
        rig.smmu.write32(at, u32::MAX);
    }
    assert_eq!(rig, before);
}

#[test]
fn banks_start_at_the_second_half_for_both_page_sizes() {
    for config in [Config::generic_v1(), Config::generic_v2()] {
        let mut smmu = Smmu::new(config.clone());
        let base = smmu.region_size() / 2;
        let page = config.page_bytes() as usize;
        smmu.write32(base + 2 * page + cb::TCR, 0x1234);
        assert_eq!(smmu.read32(smmu.bank(2, cb::TCR)), 0x1234);
        smmu.write32(base + usize::from(config.banks) * page + cb::TCR, 0x1234);
        assert_eq!(smmu.read32(base + usize::from(config.banks) * page + cb::TCR), 0, "nothing above the last bank");
    }
}

#[test]
fn a_64_bit_register_takes_either_width() {
    let mut smmu = Smmu::new(quick());
    let root = smmu.bank(0, cb::TTBR0);
    smmu.write64(root, 0x1234_5678_9abc_d000);
    assert_eq!((smmu.read32(root), smmu.read32(root + 4)), (0x9abc_d000, 0x1234_5678));
    smmu.write32(root + 4, 0x77);
    assert_eq!(smmu.read64(root), 0x0000_0077_9abc_d000);
}

#[test]
fn an_access_outside_or_unaligned_is_ignored_and_named() {
    let mut rig = Rig::new(quick());
    let end = rig.smmu.region_size();
    let before = rig.clone();
    assert_eq!(rig.smmu.read32(end), 0);
    rig.smmu.write32(2, u32::MAX);
    rig.smmu.write64(4, u64::MAX);
    rig.smmu.write32(rig.smmu.s2cr(1) + 1, u32::MAX);
    assert_eq!(rig.smmu.read32(gr0::IDR0 + 1), 0);
    assert_eq!(rig, before);
    assert_eq!(rig.smmu.hazards(), [end, 2, 4, 0xc05, 0x21].map(Hazard::BadAccess));
}

#[test]
fn a_reset_gives_the_part_as_it_was_made() {
    let fresh = Rig::new(quick());
    let mut rig = Rig::live(quick());
    rig.read(5, 0);
    rig.smmu.reset();
    assert_eq!(rig.smmu, fresh.smmu);
    let first = rig.smmu.accept(smmu_model::Transaction::read(5, 0, 4));
    rig.smmu.inject(smmu_model::Injection::AllOnes);
    rig.smmu.reset();
    assert_eq!(rig.smmu.read32(gr0::IDR0), u32::MAX, "what a test injected stays");
    assert_ne!(rig.smmu.accept(smmu_model::Transaction::read(5, 0, 4)), first, "a name is never given twice");
}

#[test]
fn parts_in_the_same_state_are_equal_and_others_are_not() {
    let mut rig = Rig::live(quick());
    rig.map(crate::rig::ROOT, 0, 0x8_0000);
    let before = rig.smmu.clone();
    rig.read(5, 0);
    assert_ne!(rig.smmu, before, "something is cached");
    rig.smmu = before.clone();
    rig.smmu.accept(smmu_model::Transaction::read(5, 0, 4));
    assert_ne!(rig.smmu, before, "something is in flight");
    rig.smmu = before.clone();
    rig.smmu.inject(smmu_model::Injection::AllOnes);
    assert_ne!(rig.smmu, before, "something will go wrong");
    rig.smmu = before.clone();
    rig.smmu.write32(gr0::TLBIALLNSNH, 0);
    assert_ne!(rig.smmu, before, "something is posted");
    rig.smmu = before.clone();
    rig.smmu.start_trace();
    assert_eq!(rig.smmu, before, "a trace only looks");
}

#[test]
fn before_and_after_can_be_compared() {
    let mut rig = Rig::live(quick());
    let before = rig.smmu.clone();
    rig.stream(7, 77, 0);
    assert_ne!(rig.smmu, before);
    rig.smmu.write32(rig.smmu.smr(7), 0);
    rig.smmu.write32(rig.smmu.s2cr(7), smmu_model::registers::stream::S2CR_FAULT);
    assert_eq!(rig.smmu, before, "undone, though the counters have moved on");
    assert_ne!(rig.smmu.counters(), before.counters());
}
