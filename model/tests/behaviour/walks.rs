//! Stage-2 walks: granules, start levels, blocks, limits, permissions, visibility.

use smmu_model::registers::{bank_attributes, cb, sctlr};
use smmu_model::{Config, ContextFaultKind, Fault, Outcome, Transaction};

use crate::rig::{LEAF, LIVE, ROOT, RW, Rig, quick};

fn faulted(kind: ContextFaultKind, level: u8) -> Option<Fault> {
    Some(Fault::Context { bank: 0, kind, level })
}

/// A live part whose bank 0 has this TCR and root.
fn shaped(config: Config, tcr: u32, root: u64) -> Rig {
    let mut rig = Rig::live(config);
    rig.set(0, cb::TCR, tcr);
    rig.smmu.write64(rig.smmu.bank(0, cb::TTBR0), root);
    rig
}

const TG_64K: u32 = 1 << 14;
const TG_16K: u32 = 2 << 14;
const PA_48: u32 = 5 << 16;

#[test]
fn each_granule_is_walked() {
    // Granule, T0SZ, SL0, and the levels' shifts from the start level down.
    let shapes: [(u32, u32, u32, &[u32]); 6] = [
        (0, 16, 2, &[39, 30, 21, 12]),
        (0, 25, 1, &[30, 21, 12]),
        (0, 34, 0, &[21, 12]),
        (TG_16K, 25, 1, &[25, 14]),
        (TG_16K, 17, 2, &[36, 25, 14]),
        (TG_64K, 22, 1, &[29, 16]),
    ];
    for (granule, size, start, shifts) in shapes {
        let tcr = PA_48 | granule | (start << 6) | size;
        let mut rig = shaped(quick(), tcr, 0x1000_0000);
        let input = (0x0a5a_5a5a_5a5a_u64) & ((1 << (64 - size)) - 1);
        let page = *shifts.last().expect("there is a last level");
        let mut table = 0x1000_0000_u64;
        for (at, shift) in shifts.iter().enumerate() {
            let upper = if at == 0 { 64 - size } else { shifts[at - 1] };
            let index = (input >> shift) & ((1 << (upper - shift)) - 1);
            let next = 0x2000_0000 + ((at as u64) << 20);
            let entry = if *shift == page { (0x3000_0000 & !((1 << page) - 1)) | LEAF | RW | 3 } else { next | 3 };
            rig.memory.write_u64(table + index * 8, entry);
            table = next;
        }
        rig.memory.publish_all();
        let expected = 0x3000_0000 + (input & ((1 << page) - 1));
        assert_eq!(rig.read(5, input).physical(), Some(expected), "granule {granule:#x}, start {start}");
    }
}

#[test]
fn the_32_bit_format_starts_at_level_1_or_2() {
    for (tcr, root_index, levels) in [(1 << 6, 0x4000_0000_u64 >> 30, 3), (7, 0, 2), ((1 << 6) | 0x18, 0, 3)] {
        let mut rig = shaped(Config::generic_v1(), tcr, ROOT);
        let input = if root_index == 0 { 0x5000 } else { 0x4000_5000 };
        if levels == 3 {
            rig.map(ROOT, input, 0x8_0000);
        } else {
            rig.memory.write_u64(ROOT, (ROOT + 0x9000) | 3);
            rig.memory.write_u64(ROOT + 0x9000 + 5 * 8, 0x8_0000 | LEAF | RW | 3);
            rig.memory.publish_all();
        }
        assert_eq!(rig.read(5, input).physical(), Some(0x8_0000), "TCR {tcr:#x}");
    }
}

#[test]
fn start_tables_are_concatenated() {
    // 40 bits from level 1: two tables side by side.
    let mut rig = shaped(quick(), PA_48 | (1 << 6) | 24, ROOT);
    let input = 1_u64 << 39;
    rig.memory.write_u64(ROOT + 512 * 8, 0x4000_0000 | LEAF | RW | 1);
    rig.memory.publish_all();
    assert_eq!(rig.read(5, input + 0x1234).physical(), Some(0x4000_1234));
    // 43 bits is the most that 16 tables reach; 44 is refused.
    let mut rig = shaped(quick(), PA_48 | (1 << 6) | 20, ROOT);
    assert_eq!(rig.read(5, 0).fault(), faulted(ContextFaultKind::Translation, 1));
}

#[test]
fn bits_below_the_roots_alignment_are_ignored() {
    // With two concatenated tables, bit 12 is not part of the root.
    let mut rig = shaped(quick(), PA_48 | (1 << 6) | 24, ROOT | 0x1000);
    rig.memory.write_u64(ROOT, 0x4000_0000 | LEAF | RW | 1);
    rig.memory.publish_all();
    assert_eq!(rig.read(5, 0).physical(), Some(0x4000_0000));
}

#[test]
fn blocks_map_where_the_granule_has_them() {
    let mut rig = Rig::live(quick());
    rig.memory.write_u64(ROOT + 8, 0x4000_0000 | LEAF | RW | 1);
    rig.memory.publish_all();
    assert_eq!(rig.read(5, 0x5234_5678).physical(), Some(0x5234_5678));
    // Level 0 has no blocks.
    let mut rig = shaped(quick(), PA_48 | (2 << 6) | 16, ROOT);
    rig.memory.write_u64(ROOT, LEAF | RW | 1);
    rig.memory.publish_all();
    assert_eq!(rig.read(5, 0).fault(), faulted(ContextFaultKind::Translation, 0));
    // Nor has level 1 with 64 KiB.
    let mut rig = shaped(quick(), PA_48 | TG_64K | (2 << 6) | 16, ROOT);
    rig.memory.write_u64(ROOT, LEAF | RW | 1);
    rig.memory.publish_all();
    assert_eq!(rig.read(5, 0).fault(), faulted(ContextFaultKind::Translation, 1));
}

#[test]
fn a_block_encoding_at_level_3_is_invalid() {
    let mut rig = Rig::live(quick());
    rig.map_with(ROOT, 0, 0x8_0000 | LEAF | RW | 1);
    assert_eq!(rig.read(5, 0).fault(), faulted(ContextFaultKind::Translation, 3));
}

#[test]
fn permissions_are_checked_for_each_access() {
    for (permissions, read, write) in [(0, false, false), (1, true, false), (2, false, true), (3, true, true)] {
        let mut rig = Rig::live(quick());
        rig.map_with(ROOT, 0, 0x8_0000 | LEAF | (permissions << 6) | 3);
        let fault = faulted(ContextFaultKind::Permission, 3);
        let (got_read, got_write) = (rig.read(5, 0).fault(), rig.write(5, 0).fault());
        assert_eq!((got_read, got_write), (if read { None } else { fault }, if write { None } else { fault }));
    }
}

#[test]
fn execute_never_stops_instruction_fetches_only() {
    let mut rig = Rig::live(quick());
    rig.map_with(ROOT, 0, 0x8_0000 | LEAF | RW | (1 << 54) | 3);
    assert!(rig.read(5, 0).physical().is_some());
    rig.map(ROOT, 0x1000, 0x9_0000);
    let fetch = Transaction::read(5, 0x1000, 4).instruction();
    assert_eq!(rig.smmu.dma(&mut rig.memory, fetch).physical(), Some(0x9_0000));
    let fetch = Transaction::read(5, 0, 4).instruction();
    assert_eq!(rig.smmu.dma(&mut rig.memory, fetch).fault(), faulted(ContextFaultKind::Permission, 3));
    assert_eq!(rig.get(0, cb::FSYNR0) & 0x40, 0x40, "IND");
}

#[test]
fn a_clear_access_flag_faults_unless_disabled() {
    let mut rig = Rig::live(quick());
    rig.map_with(ROOT, 0, (0x8_0000 | LEAF | RW | 3) & !(1 << 10));
    assert_eq!(rig.read(5, 0).fault(), faulted(ContextFaultKind::AccessFlag, 3));
    assert!(rig.smmu.tlb().is_empty(), "such a descriptor is not cached");
    rig.set(0, cb::SCTLR, LIVE | sctlr::AFFD);
    assert_eq!(rig.read(5, 0).physical(), Some(0x8_0000));
    assert!(rig.smmu.tlb().is_empty());
}

#[test]
fn an_input_above_the_table_or_the_part_is_a_translation_fault() {
    let mut rig = Rig::live(quick());
    assert_eq!(rig.read(5, 1 << 39).fault(), faulted(ContextFaultKind::Translation, 1));
    let mut rig = shaped(Config { intermediate_bits: 32, ..quick() }, PA_48 | (1 << 6) | 25, ROOT);
    rig.map(ROOT, 0, 0x8_0000);
    rig.map(ROOT, 1 << 32, 0x9_0000);
    assert!(rig.read(5, 0).physical().is_some());
    assert_eq!(rig.read(5, 1 << 32).fault(), faulted(ContextFaultKind::Translation, 1));
}

#[test]
fn an_output_or_table_or_root_above_the_limit_is_an_address_size_fault() {
    // PASize 0 is 32 bits.
    let mut rig = shaped(quick(), (1 << 6) | 25, ROOT);
    rig.map(ROOT, 0, 0x1_0000_0000);
    assert_eq!(rig.read(5, 0).fault(), faulted(ContextFaultKind::AddressSize, 3));
    rig.set(0, cb::FSR, u32::MAX);
    rig.memory.write_u64(ROOT, 0x1_0000_0003);
    rig.memory.publish_all();
    assert!(rig.smmu.walk_cache().len() == 2, "the old tables are still cached");
    rig.smmu.write32(smmu_model::registers::gr0::TLBIVMID, 1);
    assert!(rig.sync());
    assert_eq!(rig.read(5, 0).fault(), faulted(ContextFaultKind::AddressSize, 1));
    rig.set(0, cb::FSR, u32::MAX);
    rig.smmu.write64(rig.smmu.bank(0, cb::TTBR0), 1 << 32);
    assert_eq!(rig.read(5, 0).fault(), faulted(ContextFaultKind::AddressSize, 1));
}

#[test]
fn the_parts_output_size_limits_whatever_pasize_says() {
    let mut rig = Rig::live(Config { output_bits: 40, ..quick() });
    rig.map(ROOT, 0, 1 << 40);
    assert_eq!(rig.read(5, 0).fault(), faulted(ContextFaultKind::AddressSize, 3));
}

#[test]
fn the_32_bit_format_reaches_40_bits() {
    for (config, kind) in
        [(quick(), ContextFaultKind::AddressSize), (Config::generic_v1(), ContextFaultKind::Translation)]
    {
        let mut rig = Rig::live(config);
        rig.smmu.write32(rig.smmu.cba2r(0), 0);
        rig.set(0, cb::TCR, 1 << 6);
        rig.map(ROOT, 0, 1 << 40);
        assert_eq!(rig.read(5, 0).fault(), faulted(kind, 3), "v1 has no ASF");
    }
}

#[test]
fn a_start_level_that_does_not_exist_is_a_translation_fault() {
    for (granule, size) in [(0, 25), (TG_16K, 16), (TG_64K, 16), (3 << 14, 25)] {
        let mut rig = shaped(quick(), PA_48 | granule | (3 << 6) | size, ROOT);
        // A descriptor that is a table at every level but the last, and a page there.
        rig.memory.write_u64(ROOT, (ROOT + 0x1_0000) | 3);
        rig.memory.write_u64(ROOT + 0x1_0000, (ROOT + 0x1_0000) | LEAF | RW | 3);
        rig.memory.publish_all();
        assert_eq!(rig.read(5, 0).fault(), faulted(ContextFaultKind::Translation, 1));
    }
}

#[test]
fn a_device_can_write_a_page_table() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, ROOT + 0x9000);
    let leaf = 0x9_0000 | LEAF | RW | 3;
    let write = Transaction::write(5, 8, &leaf.to_le_bytes());
    assert!(rig.smmu.dma(&mut rig.memory, write).physical().is_some());
    assert_eq!(rig.read(5, 0x1000).physical(), Some(0x9_0000), "DMA snoops, so the walker sees it");
}

#[test]
fn a_granule_that_the_part_lacks_is_a_translation_fault() {
    let mut rig = shaped(Config { granule_16k: false, ..quick() }, PA_48 | TG_16K | (1 << 6) | 25, ROOT);
    assert_eq!(rig.read(5, 0).fault(), faulted(ContextFaultKind::Translation, 1));
}

#[test]
fn a_walk_that_meets_a_bus_error_is_an_external_fault() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, 0x8_0000);
    rig.memory.fail(ROOT + 0x8000..ROOT + 0x9000);
    assert_eq!(rig.read(5, 0).fault(), faulted(ContextFaultKind::External, 2));
    assert_eq!(rig.get(0, cb::FSYNR0) & (1 << 10), 1 << 10, "PTWF");
}

#[test]
fn the_walker_sees_only_published_bytes() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, 0x8_0000);
    rig.memory.write_u64(ROOT + 0x9000 + 8, 0x9_0000 | LEAF | RW | 3);
    assert_eq!(rig.read(5, 0x1000).fault(), faulted(ContextFaultKind::Translation, 3));
    rig.memory.publish(ROOT + 0x9000..ROOT + 0xa000);
    assert_eq!(rig.read(5, 0x1000).physical(), Some(0x9_0000));
    let mut rig = Rig::live(Config { coherent_walk: true, ..quick() });
    rig.map(ROOT, 0, 0x8_0000);
    rig.memory.write_u64(ROOT + 0x9000 + 8, 0x9_0000 | LEAF | RW | 3);
    assert_eq!(rig.read(5, 0x1000).physical(), Some(0x9_0000), "a coherent walk needs no publishing");
}

#[test]
fn mmu_401_walks_64_kib_tables() {
    let mut rig = shaped(Config::mmu401_juno_large(), (2 << 16) | TG_64K | (1 << 6) | 24, ROOT);
    assert_eq!(rig.smmu.read32(rig.smmu.cba2r(0)), bank_attributes::VA64);
    rig.memory.write_u64(ROOT, (ROOT + 0x1_0000) | 3);
    rig.memory.write_u64(ROOT + 0x1_0000 + 8, 0x8_0000 | LEAF | RW | 3);
    rig.memory.publish_all();
    assert_eq!(rig.read(5, 0x1_2345).physical(), Some(0x8_2345));
}

#[test]
fn data_goes_where_the_translation_says() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0x5000, 0x8_0000);
    rig.write(5, 0x5010);
    assert_eq!(rig.memory.read_u64(0x8_0010), 0x0403_0201);
    let Outcome::Completed { data, .. } = rig.read(5, 0x5010) else { panic!("did not complete") };
    assert_eq!(data, [1, 2, 3, 4]);
}

#[test]
fn a_master_splits_transfers_at_4_kib() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0x5000, 0x8_0000);
    rig.map(ROOT, 0x6000, 0xa_0000);
    let master = smmu_model::Master::new(5);
    let outcomes = master.write(&mut rig.smmu, &mut rig.memory, 0x5ffe, &[1, 2, 3, 4]);
    let physical: Vec<_> = outcomes.iter().map(Outcome::physical).collect();
    assert_eq!(physical, [Some(0x8_0ffe), Some(0xa_0000)]);
    assert_eq!(rig.memory.read_u64(0xa_0000), 0x0403);
    let outcomes = master.read(&mut rig.smmu, &mut rig.memory, 0x5ffe, 0x2002);
    assert_eq!(outcomes.len(), 3);
    assert!(outcomes.last().is_some_and(|last| last.fault().is_some()));
    assert_eq!(rig.get(0, cb::FSYNR0) & 0x70, 0, "a read, unprivileged, of data");
    rig.set(0, cb::FSR, u32::MAX);
    let master = smmu_model::Master { privileged: true, instruction: true, ..master };
    master.read(&mut rig.smmu, &mut rig.memory, 0x7000, 4);
    assert_eq!(rig.get(0, cb::FSYNR0) & 0x70, 0x60, "PNU and IND");
}

#[test]
fn memory_may_answer_with_a_bus_error() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0, 0x8_0000);
    rig.memory.fail(0x8_0000..0x8_1000);
    assert!(matches!(rig.read(5, 0), Outcome::BusError { physical: 0x8_0000, .. }));
    rig.memory.heal();
    rig.memory.fail(0x8_0003..0x8_0004);
    assert!(matches!(rig.read(5, 0), Outcome::BusError { physical: 0x8_0000, .. }), "the burst's last byte");
    assert!(matches!(rig.read(5, 4), Outcome::Completed { physical: 0x8_0004, .. }));
}

#[test]
fn a_burst_transfers_nothing_beyond_4_kib() {
    let mut rig = Rig::live(quick());
    rig.map(ROOT, 0x5000, 0x8_0000);
    let write = Transaction::write(5, 0x5ffe, &[1, 2, 3, 4]);
    assert!(rig.smmu.dma(&mut rig.memory, write).physical().is_some());
    assert_eq!(rig.memory.read_u64(0x8_0ffe), 0x0201);
    let Outcome::Completed { data, .. } = rig.smmu.dma(&mut rig.memory, Transaction::read(5, 0x5ffe, 4)) else {
        panic!("did not complete")
    };
    assert_eq!(data, [1, 2]);
}
