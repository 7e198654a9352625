//! SMMUs of one chip that share their cached translations (quirk Q2): a VMID must mean one domain on all of them.

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

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex};

use common::oracle::Oracle;
use common::parts::named;
use common::{Bench, Guest, PAGE, stream};
use iommu_assign::assign::{Device, DeviceKey, DeviceSpec, IommuKey, Label, Source};
use iommu_assign::smmu::{Implementation, Registers, Smmu, SmmuConfig};
use machine::Machine;
use smmu_model::{Chip, Transaction};

/// Two SMMUs, and an oracle for each: what one of them writes can open a stream of the other.
#[derive(Clone)]
struct Pair {
    chip: Arc<Mutex<Chip>>,
    machine: Machine,
    oracles: [Oracle; 2],
}

impl Pair {
    fn with<T>(&self, n: usize, act: impl FnOnce(&mut smmu_model::Smmu) -> T) -> T {
        self.chip.lock().unwrap().with(n, act).unwrap()
    }

    fn look(&self) {
        let chip = self.chip.lock().unwrap();
        for (smmu, oracle) in chip.members().iter().zip(&self.oracles) {
            self.machine.memory(|memory| oracle.look(smmu, memory, PAGE));
        }
    }

    /// A write of the stream to [`PAGE`] through one of them, and what both can reach then.
    fn dma(&self, n: usize, id: u16) {
        let write = Transaction::write(id, PAGE, &[1; 8]);
        self.machine.memory(|memory| self.with(n, |smmu| smmu.dma(memory, write)));
        self.look();
    }

    fn violations(&self) -> Vec<String> {
        self.oracles.iter().flat_map(|oracle| oracle.verdict().1).collect()
    }

    /// The VMIDs of the banks that are on.
    fn vmids(&self, n: usize) -> BTreeSet<u32> {
        self.with(n, |smmu| {
            let banks = 0..smmu.config().banks;
            banks
                .filter(|bank| smmu.peek32(smmu.bank(*bank, 0)) & 1 != 0)
                .map(|n| smmu.peek32(smmu.cba2r(n)) >> 16)
                .collect()
        })
    }
}

/// The registers of one of the two.
struct Member(Pair, usize);

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Member({})", self.1)
    }
}

impl Registers for Member {
    fn read32(&self, offset: u32) -> u32 {
        self.0.with(self.1, |smmu| smmu.read32(offset as usize))
    }

    fn write32(&self, offset: u32, value: u32) {
        self.0.with(self.1, |smmu| smmu.write32(offset as usize, value));
        self.0.look();
    }

    fn read64(&self, offset: u32) -> u64 {
        self.0.with(self.1, |smmu| smmu.read64(offset as usize))
    }

    fn write64(&self, offset: u32, value: u64) {
        self.0.with(self.1, |smmu| smmu.write64(offset as usize, value));
        self.0.look();
    }
}

const KEYS: [IommuKey; 2] = [IommuKey::new(0x5000_0000), IommuKey::new(0x6000_0000)];

/// A life of two devices, one at each SMMU, and three guests, for a driver that is told `implementation`. Says what the
/// oracles saw, and whether a VMID ever was live on both SMMUs.
fn life(implementation: Implementation) -> (Vec<String>, bool) {
    let mut bench = Bench::new();
    let part = named("cn88xx");
    let models = [part.model.clone().seed(3), part.model.clone().seed(4)];
    let pair = Pair {
        chip: Arc::new(Mutex::new(Chip::shared_vmids(&models))),
        machine: bench.machine.clone(),
        oracles: <[Oracle; 2]>::default(),
    };
    for (n, key) in KEYS.into_iter().enumerate() {
        let config = SmmuConfig { key, implementation, ..part.config.clone() };
        let smmu = Smmu::probe(config, Member(pair.clone(), n), bench.masters.clone()).unwrap();
        bench.service.register_iommu(Arc::new(smmu)).unwrap();
    }
    let guests: Vec<Guest> = ["one", "two", "three"].map(|name| bench.guest(name)).into();
    let devices: Vec<Device> = (0..2_usize)
        .map(|n| {
            let label = Label::from(if n == 0 { "left" } else { "right" });
            let streams = vec![stream(KEYS[n], 0x10, 0)];
            bench.service.add(DeviceSpec::new(DeviceKey::new(Source::Dt, n as u128), label, streams)).unwrap()
        })
        .collect();
    let mut shared = false;
    let mut at: [Option<usize>; 2] = [None, None];
    // Mostly with different guests; each follows the other to where it was.
    for step in 0..48_usize {
        let (n, goal) = (step % 2, (step / 2 + step / 8 + step % 2 * 2) % 4);
        let goal = (goal < 3).then_some(goal);
        let place = |guest: Option<usize>| guest.map(|guest| guests[guest].backing).into_iter().collect::<Vec<u64>>();
        let during = [place(at[n]), place(goal)].concat();
        pair.oracles[n].allow(devices[n].label(), &[(0x10, 0)], &during);
        let service = &bench.service;
        match (at[n], goal) {
            (None, Some(guest)) => service.assign(&devices[n], &guests[guest].domain).unwrap(),
            (Some(old), Some(guest)) if old != guest => service.reassign(&devices[n], &guests[guest].domain).unwrap(),
            (Some(_), None) => drop(service.deassign(&devices[n]).unwrap()),
            _ => {}
        }
        at[n] = goal;
        pair.oracles[n].allow(devices[n].label(), &[(0x10, 0)], &place(goal));
        shared |= !pair.vmids(0).is_disjoint(&pair.vmids(1));
        pair.dma(n, 0x10);
        pair.dma(1 - n, 0x10);
    }
    bench.audit();
    (pair.violations(), shared)
}

#[test]
fn q2_no_vmid_is_used_by_two_instances_of_a_chip_and_their_guests_stay_apart() {
    let (violations, shared) = life(Implementation::Cavium);
    assert_eq!(violations, [""; 0]);
    assert!(!shared);
}

#[test]
fn q2_without_the_quirk_one_guests_dma_ends_in_anothers_memory() {
    let (violations, shared) = life(Implementation::Generic);
    assert!(shared);
    assert!(violations.iter().any(|violation| violation.contains("I-2")), "{violations:?}");
    println!("{}", violations[0]);
}
