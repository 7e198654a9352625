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
#[path = "dt_support/files.rs"]
mod files;

use std::collections::BTreeSet;
use std::sync::Arc;

use common::parts::{named, parts};
use common::{Bench, EMPTY, PAGE, SMMU, described};
use dt_builder::Builder;
use iommu_assign::assign::{IommuKey, StreamId};
use iommu_assign::dt::Board;
use iommu_assign::smmu::{ProbeError, Registers, Smmu};
use iommu_assign::sync::Spin;
use machine::{ModelRegisters, Reached};
use smmu_model::{Config, Direction, Quirks};

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

/// The numbers of what exists, as the model says.
fn existing(model: &Config) -> (u8, u8) {
    let entries = if model.stream_matching { model.groups } else { 1 << model.stream_id_bits };
    (entries, model.quirks.hidden_banks_from.unwrap_or(model.banks))
}

fn audited(bench: &Bench) -> Vec<String> {
    let mut findings = Vec::new();
    bench.service.audit(&mut |finding| findings.push(finding.to_string()));
    findings
}

/// Every SMR, S2CR and bank of every part is written by the reset, and what anybody else writes there the audit sees.
#[test]
fn every_register_that_exists_is_written_at_reset_compared_by_the_audit_and_in_fault_at_the_end() {
    for part in parts() {
        println!("on {}", part.name);
        let (bench, model) = (Bench::new(), part.model.clone());
        let (entries, banks) = existing(&model);
        let registers = bench.machine.add_smmu(SMMU, part.model);
        bench.machine.smmu(SMMU, smmu_model::Smmu::start_trace);
        let smmu = Arc::new(Smmu::<Spin, _>::probe(part.config, registers, bench.masters.clone()).unwrap());
        bench.service.register_iommu(smmu).unwrap();
        let trace = bench.machine.smmu(SMMU, smmu_model::Smmu::take_trace).unwrap();
        let written: BTreeSet<usize> =
            trace.iter().filter(|one| one.direction == Direction::Write).map(|one| one.offset).collect();
        assert_eq!(audited(&bench), [""; 0]);
        let at =
            |register: &dyn Fn(&smmu_model::Smmu) -> usize| bench.machine.smmu(SMMU, |smmu| register(smmu)).unwrap();
        // Writes that nobody knows of are found under their names and numbers, and are gone again when they are undone.
        let differ = |what: &str, count: u8, value: u32, register: &dyn Fn(&smmu_model::Smmu, u8) -> usize| {
            let change = |n, value| {
                bench.machine.smmu(SMMU, |smmu| {
                    let offset = register(smmu, n);
                    (smmu.peek32(offset), smmu.write32(offset, value)).0
                })
            };
            let before: Vec<u32> = (0..count).map(|n| change(n, value).unwrap()).collect();
            let found: BTreeSet<String> = audited(&bench).into_iter().collect();
            let seen = |n: &u8| found.iter().any(|one| one.contains(&format!(" {what}[{n}]:")));
            assert_eq!((0..count).find(|n| !seen(n)), None, "{what} is not seen: {found:#?}");
            for (n, before) in (0..count).zip(before) {
                // Firmware that stores bypass as fault takes bypass for it.
                let spelled = what == "S2CR" && model.quirks.fault_write_ignored;
                change(n, if spelled { 1 << 16 } else { before });
            }
            assert_eq!(audited(&bench), [""; 0], "{what}");
        };
        differ("S2CR", entries, 0, &smmu_model::Smmu::s2cr);
        if model.stream_matching && !model.extended_ids {
            differ("SMR.VALID", entries, 1 << 31 | 0x33, &smmu_model::Smmu::smr);
        }
        differ("SCTLR.M", banks, 1, &|smmu, n| smmu.bank(n, 0));
        for n in 0..entries {
            assert!(written.contains(&at(&|smmu| smmu.s2cr(n))), "S2CR{n}");
            assert!(!model.stream_matching || written.contains(&at(&|smmu| smmu.smr(n))), "SMR{n}");
        }
        for n in 0..banks {
            assert!(written.contains(&at(&|smmu| smmu.bank(n, 0))), "SCTLR of bank {n}");
            assert!(written.contains(&at(&|smmu| smmu.bank(n, 0x58))), "FSR of bank {n}");
        }
        // What nobody knows of does not outlive the end either.
        for n in 0..entries {
            bench.machine.smmu(SMMU, |smmu| smmu.write32(smmu.s2cr(n), 0));
        }
        bench.service.force_unregister_iommu(SMMU).unwrap();
        let open = |n: &u8| bench.machine.smmu(SMMU, |smmu| smmu.peek32(smmu.s2cr(*n)) >> 16 & 3 < 2).unwrap();
        assert_eq!((0..entries).filter(open).count(), 0, "the shutdown visits every entry");
        assert_eq!(bench.machine.smmu(SMMU, |smmu| smmu.hazards().to_vec()), Some(vec![]), "{}", part.name);
    }
}

/// The audit read the first instance alone.
#[test]
fn q9_the_audit_compares_every_instance() {
    let bench = Bench::new();
    let part = named("tegra194");
    let second = bench.machine.add_smmu(MIRROR, part.model.clone().seed(99));
    let config = iommu_assign::smmu::SmmuConfig { instances: 2, ..part.config };
    let both = |first| [first, second].into_iter().collect::<iommu_assign::smmu::Lockstep<_>>();
    bench.smmu_through(config, iommu_assign::smmu::Setup::default(), part.model, both);
    assert_eq!(audited(&bench), [""; 0]);
    for (what, offset, value) in [("S2CR[5]", 0xc14, 1 << 16), ("SMR.VALID[5]", 0x814, 1 << 31), ("sCR0[0]", 0, 1)] {
        let change = |value| bench.machine.smmu(MIRROR, |smmu| (smmu.peek32(offset), smmu.write32(offset, value)).0);
        let before = change(value).unwrap();
        let found = audited(&bench);
        assert!(found.len() == 1 && found[0].contains(what), "{found:?}");
        change(before).unwrap();
    }
    assert_eq!(audited(&bench), [""; 0]);
}

/// Firmware's way on a part with many groups: a boot device goes through group 170.
fn boot_device(bench: &Bench, model: &Config, live: bool) -> ModelRegisters {
    let registers = bench.machine.add_smmu(SMMU, model.clone());
    bench.machine.smmu(SMMU, |smmu| {
        for n in 0..model.groups {
            smmu.write32(smmu.s2cr(n), 2 << 16);
            smmu.write32(smmu.smr(n), 0);
        }
        smmu.write32(smmu.s2cr(170), 1 << 16);
        smmu.write32(smmu.smr(170), 1 << 31 | 0x55);
        if live {
            smmu.write32(0, 1 << 21);
        }
    });
    registers
}

/// Case 30 of the field: groups from 128 on kept what firmware had left, and the audit did not see them.
#[test]
fn q13_without_firmwares_hypervisor_all_groups_are_in_fault_used_and_audited() {
    for live in [false, true] {
        let mut bench = Bench::new();
        let part = named("qualcomm at EL2");
        let registers = boot_device(&bench, &part.model, live);
        assert_eq!(bench.dma(0x55), Reached::Untranslated(PAGE), "as firmware left it");
        let smmu = Arc::new(Smmu::<Spin, _>::probe(part.config, registers, bench.masters.clone()).unwrap());
        assert_eq!(smmu.geometry().entries, 200);
        bench.service.register_iommu(smmu).unwrap();
        assert_eq!(bench.dma(0x55), Reached::Fault);
        // As many devices as there are groups, whose streams do not merge. The oracle would take minutes over them.
        let guest = bench.guest("guest");
        let devices: Vec<_> = (0..200).map(|n| bench.add(&format!("device {n}"), &[(n * 0x81, 0)])).collect();
        let one_more = bench.spec("one more", &[(0x7001, 0)]);
        let refused = bench.service.add(one_more).unwrap_err();
        assert!(refused.to_string().contains("of 200"), "{refused}");
        for device in &devices {
            bench.assign(device, &guest).unwrap();
        }
        for n in 0..200 {
            assert_eq!(bench.dma(n * 0x81), Reached::Memory(guest.backing), "device {n}");
        }
        bench.audit();
        bench.service.suspend_iommu(SMMU).unwrap();
        bench.machine.smmu(SMMU, smmu_model::Smmu::reset);
        bench.service.resume_iommu(SMMU).unwrap();
        bench.audit();
        for device in &devices {
            drop(bench.deassign(device).unwrap());
            bench.remove(device).unwrap();
        }
        bench.audit();
    }
}

/// Firmware that stores bypass as fault does not know the groups from 128 on: they are not touched.
#[test]
fn q13_below_firmwares_hypervisor_128_groups_are_used() {
    let bench = Bench::new();
    let part = named("qualcomm at EL2");
    let quirks = Quirks { bypass_becomes_fault: true, fault_write_ignored: true, ..part.model.quirks.clone() };
    let model = Config { quirks, ..part.model };
    let registers = bench.machine.add_smmu(SMMU, model);
    bench.machine.smmu(SMMU, smmu_model::Smmu::start_trace);
    let smmu = Arc::new(Smmu::<Spin, _>::probe(part.config, registers, bench.masters.clone()).unwrap());
    let trace = bench.machine.smmu(SMMU, smmu_model::Smmu::take_trace).unwrap();
    assert_eq!(smmu.geometry().entries, 128);
    let beyond = |record: &&smmu_model::Record| matches!(record.offset, 0xa00..=0xbff | 0xe00..=0xfcf);
    assert_eq!(trace.iter().find(beyond), None);
    bench.service.register_iommu(smmu).unwrap();
    bench.audit();
}

/// SMRs and S2CRs end where PIDR4 begins.
#[test]
fn q13_more_groups_than_there_is_room_for_are_refused() {
    let bench = Bench::new();
    let part = named("qualcomm at EL2");
    for (reported, most) in [(244, Some(244)), (245, None), (255, None)] {
        let quirks = Quirks { reported_groups: Some(reported), ..part.model.quirks.clone() };
        let model = Config { quirks, groups: 244, ..part.model.clone() };
        let registers = bench.machine.add_smmu(SMMU, model);
        let probed = Smmu::<Spin, _>::probe(part.config.clone(), registers, bench.masters.clone());
        assert_eq!(probed.as_ref().ok().map(|smmu| smmu.geometry().entries), most);
        if let Err(error) = probed {
            assert!(
                matches!(error, ProbeError::Contradiction { .. }) && error.to_string().contains("PIDR4"),
                "{error}"
            );
        }
    }
}

/// Where extended groups are enabled, streams go by these: an entry there is as open as one here.
#[test]
fn another_map_is_switched_off_and_stays_off() {
    let part = named("extended groups");
    let page = |n: usize| n * part.model.page_bytes() as usize;
    let firmware = |bench: &Bench, live: bool| {
        let registers = bench.machine.add_smmu(SMMU, part.model.clone());
        bench.machine.smmu(SMMU, |smmu| {
            for n in 0..64 {
                smmu.write32(page(7) + 4 * n, 2 << 16);
                smmu.write32(page(6) + 4 * n, 0);
            }
            smmu.write32(page(7) + 4 * 63, 1 << 16);
            smmu.write32(page(6) + 4 * 63, 1 << 31 | 0x55);
            smmu.write32(8, 1 << 31);
            smmu.write32(0, if live { 1 << 21 } else { 1 });
        });
        registers
    };
    let bench = Bench::new();
    let registers = firmware(&bench, false);
    let smmu = Arc::new(Smmu::<Spin, _>::probe(part.config.clone(), registers, bench.masters.clone()).unwrap());
    bench.service.register_iommu(smmu).unwrap();
    assert_eq!(bench.dma(0x55), Reached::Fault);
    assert_eq!(audited(&bench), [""; 0]);
    bench.machine.smmu(SMMU, |smmu| smmu.write32(8, 1 << 31));
    assert_eq!(bench.dma(0x55), Reached::Untranslated(PAGE), "somebody has switched it on");
    assert!(audited(&bench).iter().any(|one| one.contains("sCR2")), "{:?}", audited(&bench));

    let bench = Bench::new();
    let registers = firmware(&bench, true);
    let before = bench.machine.counters(SMMU).writes;
    assert_eq!(refused(&bench, part.config.clone(), registers), ProbeError::LiveInOtherMode(SMMU));
    assert_eq!(bench.machine.counters(SMMU).writes, before);
}

/// A part with compressed stream indices, whose firmware keeps them switched on.
#[derive(Debug)]
struct Compressed(ModelRegisters);

impl Registers for Compressed {
    fn read32(&self, offset: u32) -> u32 {
        let set = if matches!(offset, 0x008 | 0x028) { 1 << 29 } else { 0 };
        self.0.read32(offset) | set
    }

    fn write32(&self, offset: u32, value: u32) {
        self.0.write32(offset, value);
    }

    fn read64(&self, offset: u32) -> u64 {
        self.0.read64(offset)
    }

    fn write64(&self, offset: u32, value: u64) {
        self.0.write64(offset, value);
    }
}

#[test]
fn a_map_that_cannot_be_switched_off_is_refused() {
    let bench = Bench::new();
    let model = Config::generic_v2();
    let registers = Compressed(bench.machine.add_smmu(SMMU, model.clone()));
    let error = refused(&bench, described(SMMU, &model), registers);
    assert!(matches!(error, ProbeError::ControlNotTaken { register: "sCR2", .. }), "{error}");
    assert_ne!(bench.machine.smmu(SMMU, |smmu| smmu.peek32(0) & 1), Some(0), "it is not enabled");
}

/// Issue of the field: Juno's blob refused both presets of its parts, whose registers did not fit its regions.
#[test]
fn the_part_of_a_node_fits_it_and_comes_up_as_the_readme_does_it() {
    let own = files::OWN.iter().map(|(name, blob)| (name.to_string(), blob.to_vec()));
    for (name, blob) in own.chain(files::real_boards("the_part_of_a_node_fits_it")) {
        let board = Board::read(&blob).unwrap();
        for node in board.smmus() {
            let bench = Bench::new();
            let part = machine::part_of(node);
            let region = |region: iommu_assign::dt::Region| {
                Ok::<_, &str>(bench.machine.add_smmu(IommuKey::new(region.base()), part.clone()))
            };
            let registers = node.map(region).unwrap();
            let probed = Smmu::<Spin, _>::probe(node.config(EMPTY), registers, bench.masters.clone());
            let smmu = probed.unwrap_or_else(|error| panic!("{name}, {}: {error}", node.path));
            assert_eq!(smmu.notes().region, None, "{name}, {}: the registers fill the region", node.path);
            bench.service.register_iommu(Arc::new(smmu)).unwrap();
            bench.audit();
            for region in [node.registers].iter().chain(&node.mirrors) {
                let key = IommuKey::new(region.base());
                let reached = bench.machine.dma_write(key, StreamId::new(0x77), PAGE);
                assert_eq!(reached, Some(Reached::Fault), "{name}, {}", node.path);
            }
        }
    }
}

#[test]
fn presets_follow_a_boards_region() {
    // Juno's, by themselves.
    for preset in [Config::mmu401_juno_small(), Config::mmu401_juno_large(), Config::mmu400()] {
        assert_eq!(preset.half_bytes() * 2, 0x1_0000);
    }
    for (region, bytes) in [(0x1_0000, 0x1_0000), (0x2_0000, 0x2_0000), (0x3_0000, 0x2_0000), (0x80_0000, 0x80_0000)] {
        for part in parts() {
            let fitted = part.model.clone().fit(region);
            assert_eq!(u64::from(fitted.half_bytes()) * 2, bytes, "{}", part.name);
            assert!(u32::from(fitted.banks) <= fitted.pages() && fitted.banks > 0, "{}", part.name);
        }
    }
    assert_eq!(Config::mmu500_layerscape().fit(0x2_0000).banks, 16, "no bank beyond");
}
