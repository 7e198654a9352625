//! What comes between a block and its install: hooks that run there, and who calls the service from them. Contract I-6, I-14, C-8, C-9.

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

use common::callbacks::{Asked, Hooks, Way};
use common::driver::{IDS, two_banks};
use common::parts::{Part, named, parts};
use common::{Anyone, Bench, SMMU};
use iommu_assign::assign::{Cause, Device, DeviceSpec, DeviceState, Domain, IommuError, Left, Removal, Service};
use iommu_assign::sync::Spin;
use machine::Reached;

/// A service over an SMMU with two banks, and devices that may reach all its guests.
struct Rig {
    bench: Bench,
    service: Arc<Service<Spin>>,
    way: Way<Spin>,
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
fn i14_a_bank_is_free_while_the_hooks_of_a_reassign_run() {
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
fn c8_i10_a_domain_ends_and_its_bank_is_free_though_a_removal_found_a_call_inside() {
    for part in parts() {
        let name = part.name;
        let mut rig = Rig::new(&part);
        let (moves, comes, stays) = (rig.add("moves", IDS[0]), rig.add("comes", IDS[2]), rig.add("stays", IDS[1]));
        let [one, two, three] = rig.domains.clone();
        rig.service.assign(&moves, &one).unwrap();
        rig.service.assign(&stays, &two).unwrap();
        let inside = moves.enter::<Spin>().unwrap();
        let error = rig.service.remove(moves.key()).unwrap_err();
        assert_eq!((error.cause, error.left), (Cause::StillInUse { calls: 1 }, Left::Going), "{name}");
        assert_eq!(rig.bench.dma(IDS[0]), Reached::Fault, "{name}");
        assert_eq!(rig.service.find(moves.key()).map(|info| info.state), Some(DeviceState::Going), "{name}");
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
