//! Drains whose end is left open: between the cut and the install of a reassign, while hooks run, nobody is kept from a
//! bank, and whoever comes in between may end what the hardware has confirmed (contract I-7, I-14, C-9).

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

use std::sync::{Arc, Mutex};

use common::callbacks::{Asked, Hooks};
use common::parts::{Part, named, parts};
use common::{Anyone, Bench, Guest, PAGE, SMMU, block, withdraw};
use iommu_assign::assign::{
    AddressSpace, Cause, Device, DeviceId, DeviceSpec, DeviceState, Domain, Iommu, IommuError, Left, Prepared, Removal,
    Resource, Service,
};
use iommu_assign::smmu::Smmu;
use iommu_assign::sync::Spin;
use machine::{ModelRegisters, Reached};
use smmu_model::{Config, Injection};

type Way = common::callbacks::Way<Spin>;

/// Whatever a part has, two banks, and an entry for each of three devices.
fn two_banks(part: &Part) -> Config {
    let (groups, stage2_banks) = (part.model.groups.max(3), part.model.stage2_banks.min(1));
    Config { banks: 2, groups, stage2_banks, ..part.model.clone() }
}

/// The driver alone: of three devices, each may reach all four guests, and two have a bank each.
struct Driver {
    bench: Bench,
    smmu: Arc<Smmu<Spin, ModelRegisters>>,
    guests: [Guest; 4],
    devices: [Device; 3],
}

const IDS: [u32; 3] = [0x10, 0x21, 0x42];

impl Driver {
    fn new(part: &Part) -> Self {
        let mut bench = Bench::new();
        let smmu = bench.smmu_as(part.config.clone(), two_banks(part));
        let guests = ["one", "two", "three", "four"].map(|name| bench.guest(name));
        let everywhere: Vec<u64> = guests.iter().map(|guest| guest.backing).collect();
        let devices = IDS.map(|id| bench.add(&format!("{id:x}"), &[(id, 0)]));
        for (device, id) in devices.iter().zip(IDS) {
            bench.oracle.allow(device.label(), &[(id, 0)], &everywhere);
        }
        let driver = Self { bench, smmu, guests, devices };
        driver.move_in(0, 0).unwrap();
        driver.move_in(1, 1).unwrap();
        driver
    }

    fn one(&self, device: usize) -> [DeviceId; 1] {
        [self.devices[device].id()]
    }

    fn space(&self, guest: usize) -> AddressSpace {
        *self.guests[guest].domain.space()
    }

    fn plan(&self, devices: &[DeviceId], space: &AddressSpace) -> Result<Prepared, IommuError> {
        self.smmu.plan(devices, space, &mut |_| ())
    }

    fn move_in(&self, device: usize, guest: usize) -> Result<(), IommuError> {
        let planned = self.plan(&self.one(device), &self.space(guest))?;
        self.smmu.install(&self.one(device), planned)
    }

    fn reaches(&self, device: usize, guest: usize) -> bool {
        self.bench.dma(IDS[device]) == Reached::Memory(self.guests[guest].backing)
    }

    fn differences(&self) -> Vec<String> {
        let mut all = Vec::new();
        self.smmu.audit(&mut |difference| all.push(difference.to_string()));
        all
    }
}

fn exhausted<T>(result: &Result<T, IommuError>) -> bool {
    matches!(result, Err(IommuError::Exhausted { resource: Resource::ContextBanks, .. }))
}

#[test]
fn i7_a_plan_takes_the_bank_whose_drain_is_confirmed_and_not_ended() {
    for part in parts() {
        let (name, driver) = (part.name, Driver::new(&part));
        let moves = driver.one(0);
        // The guest that it goes to has a bank.
        let planned = driver.plan(&moves, &driver.space(1)).unwrap();
        driver.smmu.cut(&moves).unwrap();
        assert_eq!(driver.bench.dma(IDS[0]), Reached::Fault, "{name}");
        assert_eq!(driver.differences(), [""; 0], "{name}");
        let (reads, writes, comes) = driver.bench.cost(|| driver.plan(&driver.one(2), &driver.space(2)));
        assert_eq!((reads, writes), (0, 0), "{name}: a plan costs no access");
        assert_eq!(driver.differences(), [""; 0], "{name}: whether the bank is on is not forgotten");
        driver.smmu.install(&driver.one(2), comes.unwrap()).unwrap();
        assert!(driver.reaches(2, 2), "{name}");
        driver.smmu.install(&moves, planned).unwrap();
        assert!(driver.reaches(0, 1) && driver.reaches(1, 1) && driver.reaches(2, 2), "{name}");
        assert_eq!(driver.differences(), [""; 0], "{name}");
    }
}

#[test]
fn a1_a_bank_that_is_promised_stays_so_whoever_ends_its_drain() {
    for part in parts() {
        let (name, driver) = (part.name, Driver::new(&part));
        let moves = driver.one(0);
        let planned = driver.plan(&moves, &driver.space(2)).unwrap();
        driver.smmu.cut(&moves).unwrap();
        // It ends the drain, and finds that the bank is somebody's all the same.
        assert!(exhausted(&driver.plan(&driver.one(2), &driver.space(3))), "{name}");
        assert_eq!(driver.differences(), [""; 0], "{name}: whether the bank is on is not forgotten");
        let joins = driver.plan(&driver.one(2), &driver.space(2)).unwrap();
        driver.smmu.install(&moves, planned).unwrap();
        driver.smmu.install(&driver.one(2), joins).unwrap();
        assert!(driver.reaches(0, 2) && driver.reaches(2, 2), "{name}");
        assert_eq!(driver.differences(), [""; 0], "{name}");
    }
}

#[test]
fn a3_what_a_cut_leaves_open_is_ended_by_whatever_comes_next_for_the_device() {
    for part in parts() {
        for next in ["abandon", "withdraw", "block", "flush", "another's withdraw"] {
            let (name, driver) = (part.name, Driver::new(&part));
            let both = [driver.devices[0].id(), driver.devices[2].id()];
            driver.move_in(2, 0).unwrap();
            let planned = (next == "abandon").then(|| driver.plan(&both, &driver.space(2)).unwrap());
            driver.smmu.cut(&both).unwrap();
            match next {
                "abandon" => driver.smmu.abandon(&both, planned.unwrap()),
                "withdraw" => drop(withdraw(&*driver.smmu, both[0], &[]).unwrap()),
                // The one that does not stand for the drain of both.
                "another's withdraw" => drop(withdraw(&*driver.smmu, both[1], &[]).unwrap()),
                "flush" => driver.smmu.flush(driver.guests[0].domain.id()).unwrap(),
                _ => assert_eq!(block(&*driver.smmu, &both[1..]), Ok(vec![]), "{name}"),
            }
            let mut banks = Vec::new();
            driver.smmu.usage(&mut |usage| {
                banks.extend(usage.domain.filter(|_| usage.resource == Resource::ContextBanks));
            });
            assert_eq!(banks, [driver.guests[1].domain.id()], "{name}, {next}: the bank is free");
            let left = if next == "another's withdraw" { 0 } else { 2 };
            driver.move_in(left, 3).unwrap();
            assert!(driver.reaches(left, 3), "{name}, {next}");
            assert_eq!(driver.differences(), [""; 0], "{name}, {next}");
        }
    }
}

#[test]
fn i8_a_cut_that_is_not_confirmed_leaves_nothing_for_others_to_end() {
    for part in parts() {
        let (name, driver) = (part.name, Driver::new(&part));
        let moves = driver.one(0);
        driver.bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::SyncTimesOut(1)));
        assert!(matches!(driver.smmu.cut(&moves), Err(IommuError::SyncTimeout(_))), "{name}");
        assert!(exhausted(&driver.plan(&driver.one(2), &driver.space(2))), "{name}: it is poisoned");
        // Its device may go all the same.
        assert_eq!(withdraw(&*driver.smmu, moves[0], &[]), Ok(vec![]), "{name}");
        assert_eq!(driver.smmu.reclaim(), Ok(true), "{name}");
        driver.move_in(2, 2).unwrap();
        assert!(driver.reaches(2, 2), "{name}");
    }
}

#[test]
fn s5_a_suspend_between_a_cut_and_its_install_takes_nothing_from_either() {
    for part in [named("generic v2"), named("ap806"), named("mmu-401 small")] {
        for ends in [false, true] {
            let (name, driver) = (part.name, Driver::new(&part));
            let moves = driver.one(0);
            let planned = driver.plan(&moves, &driver.space(2)).unwrap();
            driver.smmu.cut(&moves).unwrap();
            if ends {
                assert!(exhausted(&driver.plan(&driver.one(2), &driver.space(3))), "{name}");
            }
            driver.smmu.suspend().unwrap();
            // The power goes: until the end of the reset all is unknown.
            let bench = &driver.bench;
            bench.machine.observe(SMMU, Box::new(|_, _| ()));
            bench.machine.smmu(SMMU, |smmu| *smmu = smmu_model::Smmu::new(two_banks(&part).seed(7)));
            driver.smmu.resume().unwrap();
            bench.oracle.watch(&bench.machine, SMMU, PAGE);
            bench.oracle.look_now(&bench.machine, SMMU, PAGE);
            assert_eq!(driver.bench.dma(IDS[0]), Reached::Fault, "{name}");
            driver.smmu.install(&moves, planned).unwrap();
            assert!(driver.reaches(0, 2) && driver.reaches(1, 1), "{name}");
            assert_eq!(driver.differences(), [""; 0], "{name}");
        }
    }
}

// --- through the service, from a hook that runs between the two ---

/// A service over an SMMU with two banks, and devices that may reach all its guests.
struct Rig {
    bench: Bench,
    service: Arc<Service<Spin>>,
    way: Way,
    domains: [Domain<Spin>; 3],
    backing: [u64; 3],
}

impl Rig {
    fn new(part: &Part) -> Self {
        let mut bench = Bench::with_policy(Box::new(Anyone));
        let smmu = bench.smmu_as(part.config.clone(), two_banks(part));
        let way = Way::new();
        let service = Arc::new(Service::new(Box::new(Asked::new(&way, |_, _| true))));
        way.lead_to(&service);
        service.register_iommu(smmu).unwrap();
        let guests = ["one", "two", "three"].map(|name| (name, bench.guest(name)));
        let backing = [0, 1, 2].map(|n: usize| guests[n].1.backing);
        let domains =
            guests.map(|(name, guest)| service.create_domain(name.into(), guest.domain.space().stage2).unwrap());
        for (name, id) in [("moves", IDS[0]), ("stays", IDS[1]), ("comes", IDS[2])] {
            bench.oracle.allow(&name.into(), &[(id, 0)], &backing);
        }
        Self { bench, service, way, domains, backing }
    }

    fn add(&mut self, name: &str, id: u32) -> Device {
        let spec = self.bench.spec(name, &[(id, 0)]);
        self.service.add(spec).unwrap()
    }

    /// A device whose reset does this, once.
    fn hooked(&mut self, name: &str, id: u32, act: impl FnOnce(&Service<Spin>) + Send + 'static) -> Device {
        let (way, act) = (self.way.clone(), Mutex::new(Some(act)));
        let hooks = Hooks::new().reset(move |_| {
            if let Some(act) = act.lock().unwrap().take() {
                act(&way.service().unwrap());
            }
            Ok(())
        });
        let spec = self.bench.spec(name, &[(id, 0)]);
        self.service.add(DeviceSpec { hooks: Arc::new(hooks), ..spec }).unwrap()
    }

    fn reaches(&self, id: u32, domain: usize) -> bool {
        self.bench.dma(id) == Reached::Memory(self.backing[domain])
    }

    fn audit(&self) {
        let mut findings = Vec::new();
        self.service.audit(&mut |finding| findings.push(finding.to_string()));
        assert_eq!(findings, [""; 0]);
    }
}

#[test]
fn i14_a_bank_is_anybodys_while_the_hooks_of_a_reassign_run() {
    for part in parts() {
        let mut rig = Rig::new(&part);
        let (stays, comes) = (rig.add("stays", IDS[1]), rig.add("comes", IDS[2]));
        let [one, two, three] = rig.domains.clone();
        let (came, third) = (comes.clone(), three.clone());
        let moves = rig.hooked("moves", IDS[0], move |service| service.assign(&came, &third).unwrap());
        rig.service.assign(&moves, &one).unwrap();
        rig.service.assign(&stays, &two).unwrap();
        rig.service.reassign(&moves, &two).unwrap();
        assert!(rig.reaches(IDS[0], 1) && rig.reaches(IDS[1], 1) && rig.reaches(IDS[2], 2), "{}", part.name);
        rig.audit();
        drop(rig.service.deassign(&comes).unwrap());
        rig.service.assign(&comes, &one).unwrap();
        assert!(rig.reaches(IDS[2], 0), "{}", part.name);
    }
}

#[test]
fn c9_i14_an_smmu_that_goes_while_the_hooks_of_a_reassign_run_leaves_its_device_in_fault() {
    let mut rig = Rig::new(&named("generic v2"));
    let [one, two, _] = rig.domains.clone();
    let moves = rig.hooked("moves", IDS[0], |service| service.force_unregister_iommu(SMMU).unwrap());
    rig.service.assign(&moves, &one).unwrap();
    let error = rig.service.reassign(&moves, &two).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::ProviderGone, .. }), "{error}");
    assert_eq!(error.left, Left::Quarantined);
    assert_eq!(rig.bench.dma(IDS[0]), Reached::Fault);
    rig.service.destroy_domain(&one).unwrap();
}

#[test]
fn c8_i8_a_domain_ends_though_a_removal_that_found_a_call_inside_left_a_drain_open() {
    for part in parts() {
        let name = part.name;
        let mut rig = Rig::new(&part);
        let (moves, comes, stays) = (rig.add("moves", IDS[0]), rig.add("comes", IDS[2]), rig.add("stays", IDS[1]));
        let [one, two, three] = rig.domains.clone();
        rig.service.assign(&moves, &one).unwrap();
        rig.service.assign(&stays, &two).unwrap();
        let inside = moves.enter::<Spin>().unwrap();
        let error = rig.service.remove(moves.key()).unwrap_err();
        assert_eq!(error.cause, Cause::StillInUse { calls: 1 }, "{name}");
        assert_eq!(rig.bench.dma(IDS[0]), Reached::Fault, "{name}");
        assert_eq!(rig.service.find(moves.key()).map(|info| info.state), Some(DeviceState::Blocked), "{name}");
        rig.audit();
        rig.service.destroy_domain(&one).unwrap();
        rig.service.assign(&comes, &three).unwrap();
        assert!(rig.reaches(IDS[2], 2), "{name}");
        drop(inside);
        assert_eq!(rig.service.remove(moves.key()), Ok(Removal::Done), "{name}");
        rig.audit();
        for device in [&comes, &stays] {
            rig.service.remove(device.key()).unwrap();
        }
        rig.service.unregister_iommu(SMMU).unwrap();
    }
}
