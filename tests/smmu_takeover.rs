//! Taking over what firmware left: idle units, live units, and streams that must go on.

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

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use common::before::Before;
use common::parts::named;
use common::{Bench, PAGE, SMMU, described, stream};
use iommu_assign::smmu::{ProbeError, Reserved, Setup, Smmu, SmmuConfig};
use machine::{Machine, ModelRegisters, Reached, Stage2Tables};
use smmu_model::{Access, Config, Memory, SyncDelay, Verdict};

const DISPLAY: u32 = 0x21;
/// Where the boot picture is: the display's tables map it, and nothing else.
const PICTURE: u64 = 0x2_0000_0000;

fn picture(machine: &Machine) -> Stage2Tables {
    let mut tables = Stage2Tables::new(machine, 0x9000_0000, 40, 40);
    tables.map(PAGE, PICTURE, true);
    tables
}

fn setup(tables: &Stage2Tables) -> Setup {
    let streams = vec![stream(SMMU, DISPLAY, 0)];
    Setup { reserved: vec![Reserved { streams, space: tables.stage2() }], ..Setup::default() }
}

/// Firmware's way: clients enabled; entry 3 lets the display through, entry 5 a modem through bank `bank`.
fn firmware(machine: &Machine, config: &SmmuConfig, model: &Config, bank: Option<u8>) -> ModelRegisters {
    let registers = machine.add_smmu(config.key, model.clone());
    machine.smmu(SMMU, |smmu| {
        for n in 0..model.groups {
            smmu.write32(smmu.s2cr(n), 2 << 16);
            smmu.write32(smmu.smr(n), 0);
        }
        for n in 0..model.banks {
            let (sctlr, fsr) = (smmu.bank(n, 0), smmu.bank(n, 0x58));
            smmu.write32(sctlr, 0);
            smmu.write32(fsr, u32::MAX);
        }
        // Bypass, or a bank with M = 0, which passes through as well.
        let display = bank.map_or(1 << 16, u32::from);
        if let Some(bank) = bank {
            // VMID 2 is what the driver would give to bank 1.
            let cbar = smmu.cbar(bank);
            smmu.write32(cbar, 2);
        }
        for (entry, id, s2cr) in [(3, DISPLAY, display), (5, 0x40, 1 << 16)] {
            let (s2cr_at, smr_at) = (smmu.s2cr(entry), smmu.smr(entry));
            smmu.write32(s2cr_at, s2cr);
            smmu.write32(smr_at, 1 << 31 | id);
        }
        smmu.write32(0, 1 << 21);
    });
    registers
}

fn reaches(smmu: &smmu_model::Smmu, memory: &Memory, id: u32) -> Vec<u64> {
    let all = smmu.reach(memory, id as u16, PAGE, Access::Write).into_iter();
    all.filter_map(|one| match one.verdict {
        Verdict::Reaches { physical, .. } => Some(physical),
        _ => None,
    })
    .collect()
}

/// The same for what is sent now.
fn reaches_new(smmu: &smmu_model::Smmu, memory: &Memory, id: u32) -> Vec<u64> {
    let all = smmu.reach(memory, id as u16, PAGE, Access::Write).into_iter();
    let new = all.filter(|one| one.source == smmu_model::Source::New);
    new.filter_map(|one| match one.verdict {
        Verdict::Reaches { physical, .. } => Some(physical),
        _ => None,
    })
    .collect()
}

#[test]
fn q17_a_reserved_stream_of_a_live_unit_never_stops_and_everything_else_faults() {
    for bank in [None, Some(0), Some(4)] {
        let mut bench = Bench::new();
        let model = Config::generic_v2();
        let config = described(SMMU, &model);
        let registers = firmware(&bench.machine, &config, &model, bank);
        let left = bench.machine.dma(SMMU, smmu_model::Transaction::write(DISPLAY as u16, PAGE, &[1])).unwrap();
        assert_eq!(left.physical(), Some(PAGE), "as firmware left it: {bank:?}, {left:?}");
        let tables = picture(&bench.machine);
        // At every write of the take-over the display goes on: first where firmware let it, then where its tables say.
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = seen.clone();
        let look = move |smmu: &smmu_model::Smmu, memory: &Memory| {
            log.lock().unwrap().push((reaches(smmu, memory, DISPLAY), reaches(smmu, memory, 0x40)));
        };
        bench.machine.observe(SMMU, Box::new(look));
        let smmu = Arc::new(Smmu::probe_with(config, setup(&tables), registers, bench.masters.clone()).unwrap());
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert!(seen.iter().all(|(display, _)| *display == [PAGE] || *display == [PICTURE]), "{bank:?}: {seen:x?}");
        assert_eq!(seen.last(), Some(&(vec![PICTURE], vec![])), "{bank:?}");
        let cut = seen.iter().position(|(_, modem)| modem.is_empty()).unwrap();
        assert!(seen[cut..].iter().all(|(_, modem)| modem.is_empty()), "{bank:?}: once cut off it stays cut off");
        bench.service.register_iommu(smmu).unwrap();
        bench.audit();
        // The device's own driver comes along: until it is assigned, the picture stays.
        bench.oracle.watch(&bench.machine, SMMU, PAGE);
        bench.oracle.allow(&"display".into(), &[(DISPLAY, 0)], &[PICTURE]);
        let display = bench.add("display", &[(DISPLAY, 0)]);
        assert_eq!(bench.dma(DISPLAY), Reached::Memory(PICTURE));
        assert_eq!(bench.service.find(display.key()).unwrap().state, iommu_assign::assign::DeviceState::Blocked);
        bench.audit();
        let guest = bench.guest("guest");
        bench.oracle.allow(&"boot".into(), &[(DISPLAY, 0)], &[PICTURE]);
        bench.assign(&display, &guest).unwrap();
        assert_eq!(bench.dma(DISPLAY), Reached::Memory(guest.backing));
        bench.audit();
        drop(bench.deassign(&display).unwrap());
        assert_eq!(bench.dma(DISPLAY), Reached::Fault);
        bench.audit();
    }
}

/// The bank that the stream goes to had the VMID of firmware's bank, or firmware's bank was switched off with transactions
/// steered to it: they went on through firmware's tables, or untranslated.
#[test]
fn q17_i4_s3_a_busy_streams_move_from_firmwares_bank_mixes_no_vmid_and_lets_nothing_pass_untranslated() {
    const BOOT: u64 = 0x3_0000_0000;
    for bank in [0, 4] {
        for vmid in 1..=8 {
            let bench = Bench::new();
            let model = Config::generic_v2();
            let config = described(SMMU, &model);
            let registers = firmware(&bench.machine, &config, &model, Some(bank));
            let mut boot = Stage2Tables::new(&bench.machine, 0xa000_0000, 40, 40);
            boot.map(PAGE, BOOT, true);
            bench.machine.smmu(SMMU, |smmu| {
                smmu.write32(smmu.cba2r(bank), 1);
                smmu.write32(smmu.cbar(bank), vmid);
                smmu.write32(smmu.bank(bank, 0x30), 2 << 16 | 2 << 12 | 1 << 6 | 24);
                smmu.write64(smmu.bank(bank, 0x20), boot.stage2().root.value());
                smmu.write32(smmu.bank(bank, 0), 1);
            });
            assert_eq!(bench.dma(DISPLAY), Reached::Memory(BOOT), "as firmware left it");
            // Before each access to a register the display sends something, and something else is on its way.
            let (machine, accesses) = (bench.machine.clone(), AtomicU32::new(0));
            let sends = move || {
                let write = || smmu_model::Transaction::write(DISPLAY as u16, PAGE, &[1]);
                machine.with_memory(SMMU, |smmu, memory| {
                    smmu.dma(memory, write());
                    // Slowly, so that registers change under it at every stage.
                    let slow = accesses.fetch_add(1, Ordering::Relaxed) % (vmid * 3 + 1) != 0;
                    match smmu.in_flight().first().map(smmu_model::InFlight::id) {
                        Some(_) if slow => {}
                        Some(id) => drop(smmu.step(memory, id)),
                        None => {
                            let id = smmu.accept(write());
                            smmu.step(memory, id);
                        }
                    }
                });
            };
            let seen = Arc::new(Mutex::new(Vec::new()));
            let log = seen.clone();
            let look = move |smmu: &smmu_model::Smmu, memory: &Memory| {
                let entry = smmu.matching_entries(DISPLAY as u16)[0];
                let firmwares = smmu.peek32(smmu.s2cr(entry)) & 0xff == u32::from(bank);
                let untranslated = |one: &smmu_model::Reach| match one.verdict {
                    Verdict::Reaches { path, .. } => path.is_untranslated(),
                    _ => false,
                };
                let passes = smmu.reach_of_all_in_flight(memory).iter().any(untranslated);
                log.lock().unwrap().push((firmwares, passes, reaches_new(smmu, memory, DISPLAY)));
            };
            bench.machine.observe(SMMU, Box::new(look));
            let tables = picture(&bench.machine);
            let busy = Before::new(registers, sends);
            let smmu = Smmu::probe_with(config, setup(&tables), busy, bench.masters.clone()).unwrap();
            let seen = std::mem::take(&mut *seen.lock().unwrap());
            for (firmwares, passes, reached) in seen {
                let only = if firmwares { BOOT } else { PICTURE };
                let right = !reached.is_empty() && reached.iter().all(|at| *at == only);
                assert!(right && !passes, "bank {bank}, VMID {vmid}, {firmwares}, {passes}: {reached:x?}");
            }
            bench.service.register_iommu(Arc::new(smmu)).unwrap();
            bench.audit();
        }
    }
}

#[test]
fn q17_on_an_idle_unit_the_reserved_stream_is_translated_from_the_first_enabled_moment() {
    for name in ["generic v1", "generic v2", "extended", "mmu-500 ZynqMP", "stream indexing", "ap806", "qualcomm"] {
        let bench = Bench::new();
        let part = named(name);
        let registers = bench.machine.add_smmu(SMMU, part.model);
        let tables = picture(&bench.machine);
        let smmu = Smmu::probe_with(part.config, setup(&tables), registers, bench.masters.clone()).unwrap();
        assert_eq!(bench.dma(DISPLAY), Reached::Memory(PICTURE), "{name}");
        assert_eq!(bench.dma(DISPLAY + 1), Reached::Fault, "{name}");
        bench.service.register_iommu(Arc::new(smmu)).unwrap();
        bench.audit();
    }
}

/// Its SMMU was unregistered, and the stream went on through the integrator's tables, which were nobody's any more.
#[test]
fn q17_c9_a_reserved_stream_ends_with_its_smmu() {
    for name in ["generic v2", "extended", "stream indexing", "ap806"] {
        let (bench, part) = (Bench::new(), named(name));
        let registers = bench.machine.add_smmu(SMMU, part.model);
        let tables = picture(&bench.machine);
        let smmu = Smmu::probe_with(part.config, setup(&tables), registers, bench.masters.clone()).unwrap();
        bench.service.register_iommu(Arc::new(smmu)).unwrap();
        assert_eq!(bench.dma(DISPLAY), Reached::Memory(PICTURE), "{name}");
        bench.service.unregister_iommu(SMMU).unwrap();
        assert_eq!(bench.dma(DISPLAY), Reached::Fault, "{name}");
    }
}

#[test]
fn a_live_unit_without_reserved_streams_faults_everything() {
    let bench = Bench::new();
    let model = Config::generic_v2();
    let config = described(SMMU, &model);
    let registers = firmware(&bench.machine, &config, &model, None);
    let before = bench.machine.counters(SMMU);
    let smmu = Smmu::probe(config, registers, bench.masters.clone()).unwrap();
    for id in [DISPLAY, 0x40, 0x41] {
        assert_eq!(bench.dma(id), Reached::Fault);
    }
    let cost = bench.machine.counters(SMMU);
    assert!(cost.reads - before.reads <= 16 + 2 * u64::from(model.groups), "the bound for a live unit");
    bench.service.register_iommu(Arc::new(smmu)).unwrap();
    bench.audit();
}

#[test]
fn a7_a_live_unit_in_another_mode_is_refused_untouched() {
    let bench = Bench::new();
    let model = Config::extended();
    let config = described(SMMU, &model);
    let registers = bench.machine.add_smmu(SMMU, model);
    bench.machine.smmu(SMMU, |smmu| smmu.write32(0, 1 << 21));
    let before = bench.machine.counters(SMMU).writes;
    let refused = Smmu::probe(config, registers, bench.masters.clone()).unwrap_err();
    assert_eq!(refused, ProbeError::LiveInOtherMode(SMMU));
    assert_eq!(bench.machine.counters(SMMU).writes, before);
}

#[test]
fn q7_a_live_units_stalled_transaction_does_not_hold_up_the_take_over() {
    let bench = Bench::new();
    let model = Config { sync_delay: SyncDelay::Polls(1), ..Config::generic_v2() };
    let config = described(SMMU, &model);
    let registers = firmware(&bench.machine, &config, &model, Some(0));
    // Firmware's bank stalls what it cannot translate: M, AFE, TRE, CFRE, CFCFG over an empty table.
    bench.machine.smmu(SMMU, |smmu| {
        let (cba2r, tcr) = (smmu.cba2r(0), smmu.bank(0, 0x30));
        smmu.write32(cba2r, 1);
        smmu.write32(tcr, 2 << 16 | 1 << 6 | 24);
        let (ttbr, fsr, sctlr) = (smmu.bank(0, 0x20), smmu.bank(0, 0x58), smmu.bank(0, 0));
        smmu.write64(ttbr, 0x100_0000);
        smmu.write32(fsr, u32::MAX);
        smmu.write32(sctlr, 1 | 1 << 1 | 1 << 2 | 1 << 5 | 1 << 7);
    });
    let outcome = bench.machine.dma(SMMU, smmu_model::Transaction::read(DISPLAY as u16, PAGE, 8)).unwrap();
    assert!(matches!(outcome, smmu_model::Outcome::Stalled { .. }), "{outcome:?}");
    let probed = Smmu::probe(config, registers, bench.masters.clone());
    // The part may need its stalled transaction carried to its end on the bus before the second sync completes.
    match probed {
        Ok(_) => {}
        Err(ProbeError::SyncTimeout { .. }) => {
            bench.machine.with_memory(SMMU, |smmu, memory| drop(smmu.drain(memory)));
            panic!("the stall held up the take-over");
        }
        Err(other) => panic!("{other}"),
    }
    for id in [DISPLAY, 0x40] {
        assert_eq!(bench.dma(id), Reached::Fault);
    }
}

#[test]
fn s6_reserved_streams_that_cannot_be_translated_fail_the_probe() {
    let bench = Bench::new();
    let part = named("generic v2");
    let registers = bench.machine.add_smmu(SMMU, part.model);
    let mut space = picture(&bench.machine).stage2();
    space.ipa_bits = 52;
    let reserved = vec![Reserved { streams: vec![stream(SMMU, DISPLAY, 0)], space }];
    let setup = Setup { reserved, ..Setup::default() };
    let refused = Smmu::probe_with(part.config, setup, registers, bench.masters.clone()).unwrap_err();
    assert!(matches!(refused, ProbeError::Reserved { .. }), "{refused}");
    assert_ne!(bench.machine.smmu(SMMU, |smmu| smmu.peek32(0) & 1), Some(0), "it is not enabled");
}

#[test]
fn q17_a_stream_that_two_reservations_name_goes_on() {
    for reserved_of_others in [DISPLAY, DISPLAY ^ 1] {
        let bench = Bench::new();
        let part = named("generic v2");
        let model = Config { groups: 6, ..part.model };
        let registers = firmware(&bench.machine, &part.config, &model, None);
        let tables = picture(&bench.machine);
        let mut setup = setup(&tables);
        let again = vec![stream(SMMU, DISPLAY, 0), stream(SMMU, reserved_of_others, 0)];
        setup.reserved.push(Reserved { streams: again, ..setup.reserved[0].clone() });
        let smmu = Smmu::probe_with(part.config, setup, registers, bench.masters.clone()).unwrap();
        assert_eq!(bench.dma(DISPLAY), Reached::Memory(PICTURE));
        bench.service.register_iommu(Arc::new(smmu)).unwrap();
        bench.audit();
    }
}
