//! Quirks Q1 to Q26, each on the model's part that has it. docs/quirks.md is made from the driver's table.

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

use std::fmt::Write;
use std::sync::Arc;

use common::parts::{named, parts};
use common::{Bench, EMPTY, PAGE, SMMU, described, stream};
use iommu_assign::assign::{
    Access, Cause, Changed, FaultLine, FlushRange, Granule, Incompatible, Iommu, IommuError, IommuFaults, IommuKey,
    Patience, PhysicalAddress, Stage2, StreamId, TableMemory,
};
use iommu_assign::smmu::{
    Architecture, Chip, ContextLines, Effects, Implementation, Lockstep, Masters, ProbeError, Registers, Remedy, Setup,
    Smmu, SmmuConfig, quirks, quirks_of,
};
use iommu_assign::sync::Spin;
use machine::Reached;
use smmu_model::{Config, Direction, Hazard, Quirks, Unknown, Wiring};

const SECOND: IommuKey = IommuKey::new(0x6000_0000);

/// What docs/quirks.md must say.
fn page() -> String {
    let mut page = String::from(
        "# Quirks\n\nMade from the table in `src/smmu/hardware/quirks.rs`; a test in `tests/smmu_quirks.rs` compares the two, and \
         the functions `q1_` to `q26_` in that file, in `smmu_takeover.rs`, `smmu_power.rs` and `smmu_lifecycle.rs` show the rows on the model.\n\n\
         *Done*: on the parts that the row names, found by firmware's compatible, its flags and IDR7. *Always*: on every \
         part. *Not concerned*: nothing is done, for the reason given.\n\n\
         | | what is different | where | | what the driver does, or why it need not |\n|---|---|---|---|---|\n",
    );
    for quirk in quirks() {
        let remedy = match quirk.remedy {
            Remedy::Effect(_) => "done",
            Remedy::Always => "always",
            _ => "not concerned",
        };
        writeln!(page, "| Q{} | {} | {} | {remedy} | {} |", quirk.number, quirk.what, quirk.who, quirk.how).unwrap();
    }
    page
}

#[test]
fn the_page_is_made_from_the_table() {
    let shown = include_str!("../docs/quirks.md");
    assert!(shown == page(), "docs/quirks.md must read:\n\n{}", page());
}

#[test]
fn every_row_that_does_something_has_a_test_here() {
    let tests = [
        include_str!("smmu_quirks.rs"),
        include_str!("smmu_takeover.rs"),
        include_str!("smmu_power.rs"),
        include_str!("smmu_lifecycle.rs"),
    ];
    let tests = tests.concat();
    for quirk in quirks().iter().filter(|quirk| quirk.remedy != Remedy::NotConcerned) {
        let name = format!("fn q{}_", quirk.number);
        assert!(tests.contains(&name), "{quirk:?} has no test");
    }
}

#[test]
fn rows_match_by_implementation_architecture_revision_and_flags() {
    let of = |config: &SmmuConfig, revision| -> Vec<u8> {
        quirks_of(config, revision)
            .filter(|quirk| matches!(quirk.remedy, Remedy::Effect(_)))
            .map(|quirk| quirk.number)
            .collect()
    };
    let base = SmmuConfig::new(SMMU, 0x2_0000, Architecture::V2, EMPTY);
    let made = |implementation| SmmuConfig { implementation, ..base.clone() };
    assert_eq!(of(&base, 0x21), [0_u8; 0]);
    assert_eq!(of(&made(Implementation::Mmu500), 0x10), [4]);
    assert_eq!(of(&made(Implementation::Mmu500), 0x21), [3, 4]);
    assert_eq!(of(&made(Implementation::MarvellAp806), 0x21), [3, 4, 8]);
    assert_eq!(of(&made(Implementation::Nvidia), 0x21), [3, 4, 10]);
    assert_eq!(of(&made(Implementation::Cavium), 0x10), [2]);
    assert_eq!(of(&made(Implementation::Qualcomm), 0x10), [12, 13]);
    let adreno = SmmuConfig { adreno: true, chip: Chip::Msm8998, ..made(Implementation::Qualcomm) };
    assert_eq!(of(&adreno, 0x10), [12, 13, 15, 16]);
    assert_eq!(Chip::of(&["qcom,sdm660-smmu-v2", "qcom,smmu-v2"]), Chip::Sdm630);
    let v1 = SmmuConfig { architecture: Architecture::V1, ..made(Implementation::Mmu401) };
    assert_eq!(of(&v1, 0), [25]);
    let calxeda = SmmuConfig { secure_config_access: true, ..made(Implementation::Mmu400) };
    assert_eq!(of(&calxeda, 0), [1]);
}

/// Tables that every part can follow: 64 KiB pages where it has nothing else, else 4 KiB.
fn life(bench: &mut Bench, name: &str) {
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let device = bench.add("dma", &[(0x10, 0x1)]);
    assert_eq!(bench.dma(0x10), Reached::Fault, "{name}");
    bench.assign(&device, &one).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(bench.dma(0x11), Reached::Memory(one.backing), "{name}");
    bench.reassign(&device, &two).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(bench.dma(0x11), Reached::Memory(two.backing), "{name}");
    bench.audit();
    assert_eq!(bench.deassign(&device).unwrap().still_reachable, [], "{name}");
    assert_eq!(bench.dma(0x10), Reached::Fault, "{name}");
    bench.remove(&device).unwrap();
    bench.audit();
    let hazards = bench.machine.smmu(SMMU, |smmu| smmu.hazards().to_vec()).unwrap();
    assert_eq!(hazards, [], "{name}");
}

#[test]
fn a_life_on_every_part_under_the_oracle() {
    for seed in [1, 0x5eed] {
        for mut part in parts() {
            let name = part.name;
            part.model = part.model.seed(seed);
            let mut bench = Bench::new();
            bench.part(part);
            life(&mut bench, name);
        }
    }
}

#[test]
fn s2_one_domain_spans_all_parts_at_once_within_what_all_can_do() {
    let mut bench = Bench::new();
    let keys: Vec<IommuKey> = (0..parts().len() as u64).map(|n| IommuKey::new(0x1_0000_0000 + (n << 24))).collect();
    for (key, part) in keys.iter().zip(parts()) {
        bench.smmu_as(SmmuConfig { key: *key, ..part.config }, part.model);
    }
    let limits = bench.service.limits().unwrap();
    assert_eq!((limits.ipa_bits, limits.output_bits, limits.blocks, limits.coherent), (40, 40, false, false));
    assert!(limits.granules.contains(Granule::Kib4) && !limits.granules.contains(Granule::Kib64));
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let mut spec = bench.spec("everywhere", &[]);
    spec.streams.extend(keys.iter().map(|key| stream(*key, 0x10, 0)));
    let device = bench.service.add(spec).unwrap();
    let everywhere = |bench: &Bench, expected| {
        for key in &keys {
            assert_eq!(bench.machine.dma_write(*key, StreamId::new(0x10), PAGE), Some(expected), "{key}");
        }
    };
    everywhere(&bench, Reached::Fault);
    bench.assign(&device, &one).unwrap();
    everywhere(&bench, Reached::Memory(one.backing));
    bench.reassign(&device, &two).unwrap();
    everywhere(&bench, Reached::Memory(two.backing));
    bench.service.flush(&two.domain).unwrap();
    bench.audit();
    drop(bench.deassign(&device).unwrap());
    everywhere(&bench, Reached::Fault);
    bench.remove(&device).unwrap();
    bench.audit();
}

#[test]
fn q1_secure_accesses_use_the_non_secure_aliases() {
    let part = named("calxeda");
    let mut bench = Bench::new();
    bench.part(part);
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    bench.machine.dma_write(SMMU, StreamId::new(0x33), PAGE).unwrap();
    let mut seen = Vec::new();
    let _ = bench.service.handle_fault(SMMU, FaultLine::Global, &mut |fault| seen.push(fault.raw.stream)).unwrap();
    assert_eq!(seen, [Some(StreamId::new(0x33))], "global faults are read through the alias");
    // Without the flag nothing would be enabled at all.
    let part = named("calxeda");
    let config = SmmuConfig { secure_config_access: false, ..part.config };
    let registers = bench.machine.add_smmu(SECOND, part.model);
    let masters = Arc::new(Masters::<Spin>::new());
    let probed = Smmu::probe(SmmuConfig { key: SECOND, ..config }, registers, masters);
    let enabled = bench.machine.smmu(SECOND, |smmu| smmu.peek32(0x400) & 1 == 0).unwrap();
    assert!(probed.is_err() || !enabled);
}

#[test]
fn q2_vmids_are_unique_on_the_chip() {
    let mut bench = Bench::new();
    for key in [SMMU, SECOND] {
        let part = named("cn88xx");
        bench.smmu_as(SmmuConfig { key, ..part.config }, part.model);
    }
    let guest = bench.guest("guest");
    let mut spec = bench.spec("both", &[(0x10, 0)]);
    spec.streams.push(stream(SECOND, 0x10, 0));
    let both = bench.service.add(spec).unwrap();
    bench.assign(&both, &guest).unwrap();
    let machine = bench.machine.clone();
    let vmid = |key| machine.smmu(key, |smmu| smmu.peek32(smmu.cba2r(0)) >> 16).unwrap();
    assert_eq!((vmid(SMMU), vmid(SECOND)), (1, 129));
    // VMIDs above 255 are in force, not cut to 8 bits.
    let third = IommuKey::new(0x7000_0000);
    let part = named("cn88xx");
    bench.smmu_as(SmmuConfig { key: third, ..part.config }, part.model);
    let mut spec = bench.spec("wide", &[]);
    spec.streams.push(stream(third, 0x20, 0));
    let wide = bench.service.add(spec).unwrap();
    bench.assign(&wide, &guest).unwrap();
    assert_eq!(vmid(third), 257);
    assert_eq!(bench.machine.dma_write(third, StreamId::new(0x20), PAGE), Some(Reached::Memory(guest.backing)));
    let drained = bench.deassign(&wide).unwrap();
    assert_eq!(drained.still_reachable, []);
}

#[test]
fn q2_an_instance_without_vmids_left_is_refused() {
    let masters = Arc::new(Masters::<Spin>::new());
    let machine = machine::Machine::new();
    let probe = |n: u64| {
        let part = named("cn88xx");
        let key = IommuKey::new(0x1000_0000 * (n + 1));
        // Without 16-bit VMIDs there are 255 for the whole chip.
        let registers = machine.add_smmu(key, Config { vmid16: false, ..part.model });
        Smmu::probe(SmmuConfig { key, ..part.config }, registers, masters.clone()).map(|_| ())
    };
    assert_eq!(probe(0), Ok(()));
    assert_eq!(probe(1), Err(ProbeError::NoVmids(IommuKey::new(0x2000_0000))));
}

#[test]
fn q4_the_prefetcher_is_off_in_every_bank() {
    for name in ["mmu-500 ZynqMP", "mmu-500 Layerscape", "ap806", "tegra194"] {
        let part = named(name);
        let banks = part.model.banks;
        let bench = Bench::new();
        let smmu = bench.part(part);
        let on = |smmu: &smmu_model::Smmu| (0..banks).filter(|n| smmu.peek32(smmu.bank(*n, 4)) & 2 != 0).count();
        assert_eq!(bench.machine.smmu(SMMU, |model| on(model)), Some(0), "{name}");
        assert_eq!(smmu.notes().prefetching, 0);
    }
}

#[test]
fn q3_a_lock_that_the_secure_side_keeps_is_noted() {
    let part = named("mmu-500 ZynqMP");
    let banks = part.model.banks;
    let bench = Bench::new();
    let registers = bench.machine.add_smmu(SMMU, part.model);
    // sACR takes no write.
    bench.machine.smmu(SMMU, |smmu| smmu.inject(smmu_model::Injection::WriteDoesNotStick(0x10)));
    let smmu = Smmu::probe(part.config, registers, bench.masters.clone()).unwrap();
    assert_eq!(smmu.notes().prefetching, banks);
}

#[test]
fn q6_q7_no_bank_stalls_and_a_stall_of_a_live_unit_is_ended() {
    let mut bench = Bench::new();
    bench.part(named("mmu-500 ZynqMP"));
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    let sctlr = bench.machine.smmu(SMMU, |smmu| smmu.peek32(smmu.bank(0, 0))).unwrap();
    assert_eq!(sctlr & 1 << 7, 0, "CFCFG");
    let transaction = smmu_model::Transaction::read(0x10, PAGE + 0x9000, 8);
    let outcome = bench.machine.dma(SMMU, transaction).unwrap();
    assert!(outcome.fault().is_some(), "{outcome:?}");
}

#[test]
fn q7_stalld_is_set_where_it_exists() {
    let bench = Bench::v2();
    assert_ne!(bench.machine.smmu(SMMU, |smmu| smmu.peek32(0)).unwrap() & 1 << 8, 0);
}

#[test]
fn q8_64_bit_registers_are_written_in_halves_and_aarch64_tables_are_not_offered() {
    let mut bench = Bench::new();
    let smmu = bench.part(named("ap806"));
    let limits = smmu.limits();
    assert_eq!((limits.ipa_bits, limits.output_bits), (40, 40));
    assert!(!limits.granules.contains(Granule::Kib64));
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.machine.smmu(SMMU, smmu_model::Smmu::start_trace);
    bench.assign(&device, &guest).unwrap();
    drop(bench.deassign(&device).unwrap());
    let trace = bench.machine.smmu(SMMU, smmu_model::Smmu::take_trace).unwrap();
    assert!(trace.iter().all(|access| access.width == 32));
    let writes: Vec<&str> = trace.iter().filter(|a| a.direction == Direction::Write).map(|a| a.name.as_str()).collect();
    // High half of TTBR0 first. A retired bank is drained twice instead of being pointed to the empty root: what it may
    // have walked until it was off is invalidated afterwards.
    assert_eq!((writes[..3].to_vec(), writes[5..7].to_vec()), (vec!["CBA2R0", "CBAR0", "TCR"], vec!["FSR", "SCTLR"]));
    let halves: Vec<usize> = trace.iter().filter(|a| a.name.starts_with("TTBR0")).map(|a| a.within).collect();
    assert_eq!(halves, [0x24, 0x20]);
    assert_eq!(writes[8..], ["S2CR0", "TLBIVMID", "sTLBGSYNC", "SCTLR", "TLBIVMID", "sTLBGSYNC"]);
}

#[test]
fn q9_instances_in_step_are_one() {
    let mut bench = Bench::new();
    let part = named("tegra194");
    let second = bench.machine.add_smmu(SECOND, part.model.clone().seed(99));
    let config = SmmuConfig { instances: 2, ..part.config };
    let both = |first| [first, second].into_iter().collect::<Lockstep<_>>();
    let smmu = bench.smmu_through(config, Setup::default(), part.model, both);
    bench.oracle.watch(&bench.machine, SECOND, PAGE);
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    for key in [SMMU, SECOND] {
        let reached = bench.machine.dma_write(key, StreamId::new(0x10), PAGE);
        assert_eq!(reached, Some(Reached::Memory(guest.backing)), "{key}");
    }
    // Faults are taken from each.
    for key in [SMMU, SECOND] {
        bench.machine.dma_write(key, StreamId::new(0x10), PAGE + 0x5000).unwrap();
    }
    let mut faults = 0;
    let _ = smmu.take_faults(FaultLine::Context(0), &mut |_| faults += 1);
    assert_eq!(faults, 2);
    // A status counts as active while any member's is: the second one alone holds the sync up.
    let stuck = smmu_model::Injection::StatusNeverClears(smmu_model::SyncRegister::Global);
    bench.machine.smmu(SECOND, |smmu| smmu.inject(stuck));
    let error = bench.deassign(&device).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::SyncTimeout(_), .. }), "{error}");
    for key in [SMMU, SECOND] {
        assert_eq!(bench.machine.dma_write(key, StreamId::new(0x10), PAGE), Some(Reached::Fault), "{key}");
    }
}

#[test]
fn q10_no_blocks_and_freed_tables_go_by_vmid() {
    let mut bench = Bench::new();
    let smmu = bench.part(named("tegra194"));
    assert!(!smmu.limits().blocks);
    let mut guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
    guest.tables.unmap(PAGE);
    guest.tables.scribble();
    let range = FlushRange { start: PAGE, size: 0x1000, leaf: 0x1000, changed: Changed::TablesFreed };
    bench.machine.smmu(SMMU, smmu_model::Smmu::start_trace);
    smmu.flush(guest.domain.id(), Some(&range), Patience::Waiting).unwrap();
    let trace = bench.machine.smmu(SMMU, smmu_model::Smmu::take_trace).unwrap();
    assert!(trace.iter().any(|access| access.name == "TLBIVMID"), "{trace:?}");
    assert_eq!(bench.dma(0x10), Reached::Fault);
}

#[test]
fn q12_where_firmware_takes_bypass_for_fault_the_driver_says_bypass() {
    for seed in 0..4 {
        let mut bench = Bench::new();
        let part = named("qualcomm");
        bench.smmu_as(part.config, part.model.seed(seed));
        for id in 0..0x40 {
            assert_eq!(bench.dma(id), Reached::Fault, "seed {seed}, stream {id:#x}");
        }
        life(&mut bench, "qualcomm");
    }
    // The same chip with firmware that leaves S2CR alone.
    let mut bench = Bench::new();
    let part = named("qualcomm");
    bench.smmu_as(part.config, Config { quirks: Quirks::NONE, unknown: Unknown::Ones, ..part.model });
    life(&mut bench, "qualcomm without firmware");
}

#[test]
fn q13_more_than_128_groups_are_128_there_and_a_contradiction_elsewhere() {
    let bench = Bench::new();
    let smmu = bench.part(named("qualcomm"));
    assert_eq!(smmu.geometry().entries, 128);
    let part = named("qualcomm");
    let generic = SmmuConfig { implementation: Implementation::Generic, key: SECOND, ..part.config };
    let registers = bench.machine.add_smmu(SECOND, part.model);
    let refused = Smmu::probe(generic, registers, bench.masters.clone()).unwrap_err();
    assert!(matches!(refused, ProbeError::Contradiction { .. }), "{refused}");
}

#[test]
fn q14_operations_are_never_started_with_zero() {
    let mut bench = Bench::new();
    let part = named("qualcomm");
    let smmu = bench.part(part);
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    // Page 0 would be an operand of 0.
    let range = FlushRange { start: 0, size: 0x2000, leaf: 0x1000, changed: Changed::Leaf };
    bench.machine.smmu(SMMU, smmu_model::Smmu::start_trace);
    smmu.flush(guest.domain.id(), Some(&range), Patience::Waiting).unwrap();
    let trace = bench.machine.smmu(SMMU, smmu_model::Smmu::take_trace).unwrap();
    assert!(trace.iter().all(|access| access.direction == Direction::Read || access.value != 0), "{trace:?}");
    let hazards = bench.machine.smmu(SMMU, |smmu| smmu.hazards().to_vec()).unwrap();
    assert!(!hazards.iter().any(|hazard| matches!(hazard, Hazard::ZeroWriteLost(_))), "{hazards:?}");
}

#[test]
fn q15_hidden_banks_are_not_touched() {
    let bench = Bench::new();
    let smmu = bench.part(named("qualcomm"));
    assert_eq!(smmu.geometry().banks, 7);
    let hazards = bench.machine.smmu(SMMU, |smmu| smmu.hazards().to_vec()).unwrap();
    assert_eq!(hazards, []);
}

#[test]
fn q16_the_gpus_smmu_has_no_16_kib_granule() {
    let bench = Bench::new();
    let config =
        SmmuConfig { adreno: true, implementation: Implementation::Qualcomm, ..described(SMMU, &Config::generic_v2()) };
    let smmu = bench.smmu_as(config, Config::generic_v2());
    assert!(!smmu.limits().granules.contains(Granule::Kib16));
    assert!(smmu.limits().granules.contains(Granule::Kib4));
}

#[test]
fn q19_firmware_decides_whether_walks_are_coherent() {
    let bench = Bench::new();
    let smmu = bench.part(named("msm8974"));
    assert!(smmu.geometry().coherent_walks, "what IDR0 says");
    assert!(!smmu.limits().coherent, "what counts");
    assert!(smmu.notes().coherency_differs);
}

#[test]
fn q20_banks_are_where_idr1_says_unless_the_board_knows_better() {
    // The region is twice as large as IDR1 says.
    let mut bench = Bench::new();
    let model = Config::generic_v2();
    let config = described(SMMU, &model);
    let told = config.region_size;
    let smmu = bench.smmu_as(SmmuConfig { region_size: told * 2, ..config }, model);
    assert_eq!(smmu.notes().region, Some((told * 2, told)));
    life(&mut bench, "larger region");
    let mut bench = Bench::new();
    let smmu = bench.part(named("msm8974"));
    assert_eq!(smmu.geometry().bank_base, 0x8000);
    life(&mut bench, "msm8974");
}

#[test]
fn q22_bits_that_no_smr_compares_are_ignored_or_refused() {
    let mut bench = Bench::new();
    bench.part(named("tegra186"));
    // The mask of the board: the bits of the TBU.
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x12, 0x7f80)]);
    bench.assign(&device, &guest).unwrap();
    assert_eq!(bench.dma(0x12), Reached::Memory(guest.backing));
    assert_eq!(bench.dma(0x7f92), Reached::Memory(guest.backing));
    let wide = bench.spec("wide", &[(0x80, 0)]);
    let error = bench.service.add(wide).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::TooWide { .. }, .. }), "never truncated: {error}");
    let wide = bench.spec("wider", &[(0x1, 0x8000)]);
    assert!(bench.service.add(wide).is_err(), "no stream carries that bit");
}

#[test]
fn q23_a_shared_line_scans_its_live_banks() {
    let mut bench = Bench::new();
    let part = named("mmu-500 ZynqMP");
    assert_eq!(part.model.wiring, Wiring::Combined);
    let smmu = bench.smmu_as(SmmuConfig { context_lines: ContextLines::each(1), ..part.config }, part.model);
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let (first, second) = (bench.add("first", &[(0x10, 0)]), bench.add("second", &[(0x20, 0)]));
    bench.assign(&first, &one).unwrap();
    bench.assign(&second, &two).unwrap();
    for id in [0x10, 0x20] {
        bench.machine.dma_write(SMMU, StreamId::new(id), PAGE + 0x5000).unwrap();
    }
    let mut streams = Vec::new();
    let _ = smmu.take_faults(FaultLine::Context(0), &mut |fault| streams.push((fault.stream, fault.access)));
    assert_eq!(streams, [0x10, 0x20].map(|id| (Some(StreamId::new(id)), Access::Write)));
    let mut coupled = Vec::new();
    smmu.coupled(FaultLine::Context(0), &mut |domain| coupled.push(domain));
    assert_eq!(coupled, [one.domain.id(), two.domain.id()]);
}

#[test]
fn q24_stage_2_only_banks_come_first() {
    let mut bench = Bench::new();
    bench.part(named("generic v1"));
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    let s2cr = bench.machine.smmu(SMMU, |smmu| smmu.peek32(smmu.s2cr(0))).unwrap();
    assert_eq!(s2cr & 0xff, 0);
}

#[test]
fn q25_mmu401_walks_aarch64_tables_of_64_kib_pages() {
    let bench = Bench::new();
    let smmu = bench.part(named("mmu-401 large"));
    let granules = smmu.limits().granules;
    assert!(granules.contains(Granule::Kib64) && granules.contains(Granule::Kib4));
    assert!(!granules.contains(Granule::Kib16));
    let part = named("mmu-400");
    let mut bench = Bench::new();
    bench.part(part);
    let stage2 = Stage2 {
        root: PhysicalAddress::new(0x8000_0000),
        ipa_bits: 40,
        start_level: 2,
        granule: Granule::Kib64,
        output_bits: 40,
        tables: TableMemory::NonCacheable,
    };
    let domain = bench.service.create_domain("wide".into(), stage2).unwrap();
    let device = bench.add("dma", &[(0x10, 0)]);
    let error = bench.service.assign(&device, &domain).unwrap_err();
    let refused = Cause::Iommu { iommu: SMMU, error: IommuError::Incompatible(Incompatible::Granule(Granule::Kib64)) };
    assert_eq!(error.cause, refused);
}

#[test]
fn q26_s3_broadcasts_are_kept_out_and_vmid_0_is_not_used() {
    let mut bench = Bench::v2();
    let scr0 = bench.machine.smmu(SMMU, |smmu| smmu.peek32(0)).unwrap();
    assert_eq!(scr0 & (1 << 11 | 1 << 12), 1 << 11 | 1 << 12, "VMIDPNE, PTM");
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    assert_ne!(bench.machine.smmu(SMMU, |smmu| smmu.peek32(smmu.cbar(0)) & 0xff), Some(0));
}

#[test]
fn effects_are_asked_for_not_implementations() {
    // One flag for each thing that is done differently.
    let all = quirks().iter().fold(Effects::empty(), |all, quirk| match quirk.remedy {
        Remedy::Effect(effects) => all | effects,
        _ => all,
    });
    assert_eq!(all, Effects::all());
}

/// Registers behind a lockstep of none read as all ones, and nothing is there.
#[test]
fn a_lockstep_of_none_is_not_there() {
    let none: Lockstep<machine::ModelRegisters> = [].into_iter().collect();
    assert_eq!((none.read32(0), none.member(0).is_none()), (u32::MAX, true));
    let config = SmmuConfig::new(SMMU, 0x2_0000, Architecture::V2, EMPTY);
    let refused = Smmu::<Spin, _>::probe(config, none, Arc::new(Masters::new())).unwrap_err();
    assert_eq!(refused, ProbeError::Instances { iommu: SMMU, listed: 1, given: 0 });
}
