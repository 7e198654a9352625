//! What the integrator supplies, on every part that the model offers: a test for each of the lines S-1 to S-8 of the
//! contract that depend on the part. S-2 has its test in `smmu_quirks.rs`, S-4 and S-6 in `smmu_faults.rs`, S-5 and S-8 in
//! `smmu_lifecycle.rs`; PCI (S-7) is the same whatever the part is.

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

use std::cell::RefCell;
use std::sync::{Arc, Mutex};

use common::parts::parts;
use common::presets::{accesses, scr0, vmid, with_banks};
use common::{Anyone, Bench, PAGE, SMMU, stream};
use iommu_assign::assign::{DeviceKey, DeviceSpec, Label, Service, Source, StreamId};
use iommu_assign::smmu::{Masters, Smmu};
use iommu_assign::sync::{ManyCpus, Platform, Spin};
use machine::{Machine, Reached, Stage2Tables};
use smmu_model::{Architecture, Direction};

/// A platform whose barrier makes table bytes visible to the walkers, and nothing else does.
#[derive(Debug)]
enum Cleaning {}

thread_local! {
    static MACHINE: RefCell<Option<Machine>> = const { RefCell::new(None) };
}

impl Platform for Cleaning {
    type Lock = <Spin as Platform>::Lock;
    type Sharing = ManyCpus;

    fn barrier() {
        MACHINE.with_borrow(|machine| machine.as_ref().unwrap().memory(smmu_model::Memory::publish_all));
    }
}

#[test]
fn s1_table_bytes_reach_the_walker_before_m_before_translate_and_before_each_tlbi_on_every_part() {
    for part in parts() {
        println!("on {}", part.name);
        let machine = Machine::new();
        MACHINE.set(Some(machine.clone()));
        let registers = machine.add_smmu(SMMU, part.model);
        let smmu = Smmu::<Cleaning, _>::probe(part.config, registers, Arc::new(Masters::new())).unwrap();
        let service = Service::<Cleaning>::new(Box::new(Anyone));
        service.register_iommu(Arc::new(smmu)).unwrap();
        let mut tables = Stage2Tables::new(&machine, 0x8000_0000, 40, 40);
        tables.map(PAGE, 0x1_0000_0000, true);
        // The leaf, as a processor writes it: two tables below the root, each of which has one entry in use.
        let leaf = 0x8000_3000;
        let is = |page: u64| machine.memory(|memory| memory.write_u64(leaf, page << 12 | 0x7ff));
        let domain = service.create_domain(Label::from("guest"), tables.stage2()).unwrap();
        let [one, two] = [0x10, 0x20].map(|id| {
            let key = DeviceKey::new(Source::Dt, id.into());
            service.add(DeviceSpec::new(key, Label::from("dma"), vec![stream(SMMU, id, 0)])).unwrap()
        });
        // Whether the walker sees the newest leaf, at each write that must come behind a barrier.
        let at_writes = |page: u64, of: &[&str], act: &dyn Fn()| {
            is(page);
            let seen = Arc::new(Mutex::new(Vec::new()));
            let (log, wanted): (_, Vec<String>) = (seen.clone(), of.iter().map(ToString::to_string).collect());
            machine.smmu(SMMU, smmu_model::Smmu::start_trace);
            machine.observe(
                SMMU,
                Box::new(move |smmu, memory| {
                    let name = smmu.trace().last().unwrap().name.clone();
                    if let Some(wanted) = wanted.iter().find(|wanted| name.starts_with(wanted.as_str())) {
                        let mut fresh = memory.clone();
                        fresh.publish_all();
                        log.lock().unwrap().push((wanted.clone(), fresh == *memory));
                    }
                }),
            );
            act();
            let seen = std::mem::take(&mut *seen.lock().unwrap());
            let expected: Vec<(String, bool)> = of.iter().map(|name| (name.to_string(), true)).collect();
            assert_eq!(seen, expected);
        };
        at_writes(0x1_0001, &["SCTLR", "S2CR"], &|| service.assign(&one, &domain).unwrap());
        // The second finds the bank on.
        at_writes(0x1_0002, &["S2CR"], &|| service.assign(&two, &domain).unwrap());
        at_writes(0x1_0003, &["TLBI"], &|| service.flush(&domain).unwrap());
        for id in [0x10, 0x20] {
            assert_eq!(machine.dma_write(SMMU, StreamId::new(id), PAGE), Some(Reached::Memory(0x1000_3000)));
        }
    }
}

#[test]
fn s3_vmids_are_the_services_own_and_broadcasts_are_kept_out_on_every_part() {
    for part in with_banks(3) {
        let model = part.model.clone();
        let mut bench = Bench::new();
        let banks = bench.part(part).geometry().banks;
        let mut devices = Vec::new();
        for n in 0..banks {
            let guest = bench.guest(&format!("guest{n}"));
            let device = bench.add(&format!("dev{n}"), &[(u32::from(n) * 8, 0)]);
            bench.assign(&device, &guest).unwrap();
            devices.push(device);
        }
        let (mut vmids, control) = bench
            .machine
            .smmu(SMMU, |smmu| ((0..banks).map(|n| vmid(smmu, n)).collect::<Vec<_>>(), smmu.peek32(scr0(&model))))
            .unwrap();
        assert!(!vmids.contains(&0), "{vmids:?}");
        vmids.sort_unstable();
        vmids.dedup();
        assert_eq!(vmids.len(), usize::from(banks), "one for each");
        // PTM and, where the part has it, VMIDPNE.
        assert_ne!(control & 1 << 12, 0);
        assert!(
            control & 1 << 11 != 0 || model.cr0_fixed.mask & 1 << 11 != 0 || model.architecture != Architecture::V2
        );
        // What the service invalidates is its own too.
        let trace = accesses(&mut bench, |bench| drop(bench.deassign(&devices[0]).unwrap()));
        let tlbi: Vec<u64> = trace
            .iter()
            .filter(|access| access.direction == Direction::Write && access.name == "TLBIVMID")
            .map(|access| access.value)
            .collect();
        let first = bench.machine.smmu(SMMU, |smmu| u64::from(vmid(smmu, 0))).unwrap();
        assert!(!tlbi.is_empty() && tlbi.iter().all(|vmid| *vmid == first), "{tlbi:?}");
    }
}
