//! From a tree's reservations to a take-over (contract S-6, quirk Q17): what firmware reserves for a device goes on, and the
//! device reaches nothing else.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use iommu_assign::assign::{PhysicalAddress, StreamId};
use iommu_assign::dt::{Board, DtError};
use iommu_assign::smmu::{EmptyRoot, Masters, Setup, Smmu, SmmuConfig};
use iommu_assign::sync::Spin;
use machine::{Machine, Reached, Stage2Tables};
use smmu_model::Config;

const PAGE: u64 = 0x1000;

#[test]
fn q17_what_the_tree_reserves_goes_on_and_reaches_nothing_else() {
    let board = Board::read(include_bytes!("../boards/handover.dtb")).unwrap();
    let node = board.smmus().first().unwrap();
    let machine = Machine::new();
    let mut all_tables = Vec::new();
    let reserved = board.reserved(node.key, |_, regions| {
        let pool = 0x2_0000_0000 + 0x100_0000 * all_tables.len() as u64;
        let mut tables = Stage2Tables::new(&machine, pool, 40, 40);
        for region in regions {
            for offset in (0..region.iova.size() / PAGE).map(|page| page * PAGE) {
                tables.map(region.iova.base() + offset, region.memory.unwrap().base() + offset, true);
            }
        }
        let stage2 = tables.stage2();
        all_tables.push(tables);
        Ok::<_, DtError>(stage2)
    });
    let empty = EmptyRoot { address: PhysicalAddress::new(0x100_0000), size: 0x10_0000 };
    let config = SmmuConfig { polls: 1000, ..node.config(empty) };
    let setup = Setup { reserved: reserved.unwrap(), ..Setup::default() };
    let registers = machine.add_smmu(node.key, Config::mmu500_zynqmp());
    let _smmu = Smmu::<Spin, _>::probe_with(config, setup, registers, Arc::new(Masters::new())).unwrap();

    let reached = |stream: u32, address: u64| machine.dma_write(node.key, StreamId::new(stream), address).unwrap();
    // The display, from the first byte of its picture to the last page, by both of its streams.
    for stream in [0x10, 0x11] {
        assert_eq!(reached(stream, 0x9000_0000), Reached::Memory(0x9000_0000));
        assert_eq!(reached(stream, 0x907f_f000), Reached::Memory(0x907f_f000));
        for outside in [0x8fff_f000, 0x9080_0000, 0x9100_0000, 0] {
            assert_eq!(reached(stream, outside), Reached::Fault, "{outside:#x}");
        }
    }
    // The codec's firmware, where it is for the device; and the trace buffer, behind its bus.
    assert_eq!(reached(0x13, 0), Reached::Memory(0x9100_0000));
    assert_eq!(reached(0x13, 0x6000_0000), Reached::Fault, "a hole");
    assert_eq!(reached(0x14, 0x9200_0000), Reached::Memory(0x9200_0000));
    // Who has a hole at most, and who has nothing.
    for stream in [0x12, 0x23, 0x53, 0x7] {
        assert_eq!(reached(stream, 0x9000_0000), Reached::Fault, "{stream:#x}");
    }
}
