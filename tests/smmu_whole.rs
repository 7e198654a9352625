//! All of the hardware is driven: every instance that firmware lists, every register that exists. What is left out passes
//! DMA untranslated, and nobody sees it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

mod common;
#[path = "dt_support/builder.rs"]
mod dt_builder;

use std::sync::Arc;

use common::parts::named;
use common::{Bench, EMPTY, PAGE, SMMU, described};
use dt_builder::Builder;
use iommu_assign::assign::{IommuKey, StreamId};
use iommu_assign::dt::Board;
use iommu_assign::smmu::{ProbeError, Registers, Smmu};
use iommu_assign::sync::Spin;
use machine::{ModelRegisters, Reached};
use smmu_model::Config;

const MIRROR: IommuKey = IommuKey::new(0x6000_0000);

/// A tree with one SMMU of two regions, as Tegra234 has them.
fn pair(sizes: [u32; 2]) -> Vec<u8> {
    let mut board = Builder::board();
    let base = |key: IommuKey| u32::try_from(key.base()).unwrap();
    board
        .begin("iommu@50000000")
        .strings("compatible", &["nvidia,tegra234-smmu", "nvidia,smmu-500"])
        .cells("reg", &[0, base(SMMU), 0, sizes[0], 0, base(MIRROR), 0, sizes[1]])
        .cells("#iommu-cells", &[1])
        .cells("#global-interrupts", &[0])
        .end();
    board.finish()
}

const WHOLE: u32 = 0x80_0000;

fn refused(bench: &Bench, config: iommu_assign::smmu::SmmuConfig, registers: impl Registers) -> ProbeError {
    let error = Smmu::<Spin, _>::probe(config, registers, bench.masters.clone()).unwrap_err();
    println!("{error}");
    error
}

/// Case 26 of the field: probe succeeded, the audit was empty, and what went through the second instance passed untranslated.
#[test]
fn q9_a_pair_is_not_driven_over_one_of_its_regions() {
    let bench = Bench::new();
    let blob = pair([WHOLE, WHOLE]);
    let board = Board::read(&blob).unwrap();
    let node = &board.smmus()[0];
    let first = bench.machine.add_smmu(node.key, named("tegra194").model);
    let error = refused(&bench, node.config(EMPTY), first);
    assert_eq!(error, ProbeError::Instances { iommu: SMMU, listed: 2, given: 1 });
    assert!(error.to_string().contains("2 instances") && error.to_string().contains("of 1 are given"), "{error}");
    assert_eq!(bench.machine.counters(SMMU).writes, 0);

    // The way of the README.
    let part = |region: iommu_assign::dt::Region| {
        Ok::<_, &str>(bench.machine.add_smmu(IommuKey::new(region.base()), named("tegra194").model.seed(region.base())))
    };
    let registers = node.map(part).unwrap();
    let smmu = Smmu::<Spin, _>::probe(node.config(EMPTY), registers, bench.masters.clone()).unwrap();
    bench.service.register_iommu(Arc::new(smmu)).unwrap();
    bench.audit();
    for key in [SMMU, MIRROR] {
        assert_eq!(bench.machine.dma_write(key, StreamId::new(0x77), PAGE), Some(Reached::Fault), "{key}");
    }
    assert_eq!(node.map(|_| Err::<ModelRegisters, _>("not mapped")).unwrap_err(), "not mapped");
}

/// More registers than firmware lists are as wrong: somebody takes another SMMU for a mirror.
#[test]
fn q9_one_region_is_not_driven_as_a_pair() {
    let bench = Bench::new();
    let (config, model) = (described(SMMU, &Config::generic_v2()), Config::generic_v2());
    let both = [SMMU, MIRROR].map(|key| bench.machine.add_smmu(key, model.clone()));
    let both = both.into_iter().collect::<iommu_assign::smmu::Lockstep<_>>();
    assert_eq!(refused(&bench, config, both), ProbeError::Instances { iommu: SMMU, listed: 1, given: 2 });
}

/// What is written to the first is lost where the second has no such register.
#[test]
fn q9_a_mirror_that_is_shorter_or_smaller_is_refused() {
    let bench = Bench::new();
    let model = named("tegra194").model;
    for sizes in [[WHOLE, WHOLE / 4], [WHOLE / 4, WHOLE]] {
        let blob = pair(sizes);
        let board = Board::read(&blob).unwrap();
        let node = &board.smmus()[0];
        let registers = node
            .map(|region| Ok::<_, ()>(bench.machine.add_smmu(IommuKey::new(region.base()), model.clone())))
            .unwrap();
        let error = refused(&bench, node.config(EMPTY), registers);
        assert!(matches!(error, ProbeError::RegionTooSmall { given: 0x20_0000, .. }), "{error}");
    }
    let blob = pair([WHOLE, WHOLE]);
    let board = Board::read(&blob).unwrap();
    let smaller = Config { groups: 64, ..model.clone() };
    let registers = board.smmus()[0]
        .map(|region| {
            let model = if region.base() == SMMU.base() { smaller.clone() } else { model.clone() };
            Ok::<_, ()>(bench.machine.add_smmu(IommuKey::new(region.base()), model))
        })
        .unwrap();
    let error = refused(&bench, board.smmus()[0].config(EMPTY), registers);
    assert!(matches!(error, ProbeError::Contradiction { what, .. } if what.contains("instances")), "{error}");
}

/// Registers of which only so many bytes are mapped, as `Mmio` answers then.
#[derive(Debug)]
struct Short(ModelRegisters, u32);

impl Registers for Short {
    fn read32(&self, offset: u32) -> u32 {
        if offset < self.1 { self.0.read32(offset) } else { u32::MAX }
    }

    fn write32(&self, offset: u32, value: u32) {
        if offset < self.1 {
            self.0.write32(offset, value);
        }
    }

    fn read64(&self, offset: u32) -> u64 {
        if offset < self.1 { self.0.read64(offset) } else { u64::MAX }
    }

    fn write64(&self, offset: u32, value: u64) {
        if offset < self.1 {
            self.0.write64(offset, value);
        }
    }
}

#[test]
fn registers_that_are_mapped_in_part_are_refused() {
    let bench = Bench::new();
    let model = Config::generic_v2();
    let (config, all) = (described(SMMU, &model), model.bank_base() + 8 * 0x1_0000);
    for mapped in [all - 0x1_0000, model.bank_base(), 0x1000] {
        let registers = Short(bench.machine.add_smmu(SMMU, model.clone()), mapped);
        assert_eq!(refused(&bench, config.clone(), registers), ProbeError::NotMapped { iommu: SMMU, bank: 7 });
        assert_eq!(bench.machine.counters(SMMU).writes, 0);
    }
    let registers = Short(bench.machine.add_smmu(SMMU, model.clone()), all);
    Smmu::<Spin, _>::probe(config, registers, bench.masters.clone()).unwrap();
}

/// A stream ID is the index of its S2CR, and there are 128 of these.
#[test]
fn stream_ids_beyond_the_last_s2cr_are_refused() {
    let bench = Bench::new();
    let model = Config { stream_id_bits: 8, ..Config::stream_indexing() };
    let registers = bench.machine.add_smmu(SMMU, model.clone());
    let error = refused(&bench, described(SMMU, &model), registers);
    assert!(matches!(error, ProbeError::Contradiction { what, .. } if what.contains("NUMSIDB")), "{error}");
}
