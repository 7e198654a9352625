//! Functions that only their bus brings together, merged into one stream-map entry where they ask for it: contract I-11,
//! I-12, I-15.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

mod common;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use common::{Bench, Guest, PAGE, SMMU};
use iommu_assign::assign::{Cause, Device, Label, Policy, PolicyRequest, Why};
use machine::Reached;
use smmu_model::Config;

/// A bench whose SMMU notes every ID that ever matches an entry.
struct Bus {
    bench: Bench,
    captured: Arc<Mutex<BTreeSet<u16>>>,
}

const IDS: std::ops::Range<u32> = 0x10..0x18;

impl Bus {
    fn new(model: Config, policy: Option<Box<dyn Policy>>) -> Self {
        let bench = policy.map_or_else(Bench::new, Bench::with_policy);
        bench.smmu(SMMU, model);
        let captured: Arc<Mutex<BTreeSet<u16>>> = Arc::default();
        let (oracle, noted) = (bench.oracle.clone(), captured.clone());
        let observer = move |smmu: &smmu_model::Smmu, memory: &smmu_model::Memory| {
            oracle.look(smmu, memory, PAGE);
            noted.lock().unwrap().extend((0..0x80).filter(|id| !smmu.matching_entries(*id).is_empty()));
        };
        bench.machine.observe(SMMU, Box::new(observer));
        Self { bench, captured }
    }

    /// A function without ACS between it and the others of bus 1.
    fn function(&mut self, id: u32, merge: bool) -> Result<Device, Cause> {
        let mut spec = self.bench.spec(&format!("function {id:#x}"), &[(id, 0)]);
        spec.isolation = Some(1);
        spec.merge_with_group = merge;
        self.bench.service.add(spec).map_err(|error| error.cause)
    }

    fn functions(&mut self, merge: bool) -> Vec<Device> {
        IDS.map(|id| self.function(id, merge).unwrap()).collect()
    }

    fn guest(&mut self, devices: &[Device]) -> Guest {
        let guest = self.bench.guest("guest");
        for device in devices {
            self.bench.shares(device, &guest);
        }
        guest
    }

    fn entries(&self) -> usize {
        let valid = |smmu: &mut smmu_model::Smmu| {
            (0..0x80).flat_map(|id| smmu.matching_entries(id)).collect::<BTreeSet<_>>().len()
        };
        self.bench.machine.smmu(SMMU, valid).unwrap()
    }

    /// The IDs that reach the guest now.
    fn open(&self, guest: &Guest) -> Vec<u32> {
        (0..0x40).filter(|id| self.bench.dma(*id) == Reached::Memory(guest.backing)).collect()
    }

    fn check(&self) {
        let group: BTreeSet<u16> = IDS.map(|id| id.try_into().unwrap()).collect();
        let captured = self.captured.lock().unwrap();
        assert!(captured.is_subset(&group), "I-15: more than the group's IDs were captured: {captured:x?}");
        self.bench.audit();
        let (_, violations) = self.bench.oracle.verdict();
        assert!(violations.is_empty(), "{violations:#?}");
    }
}

/// Validity in the SMR, and in the S2CR.
fn spellings() -> [Config; 2] {
    [Config::generic_v2(), Config { extended_ids: true, ..Config::generic_v2() }]
}

#[test]
fn i15_eight_functions_of_one_bus_are_one_entry_only_where_they_ask_for_it() {
    for model in spellings() {
        for (merge, entries) in [(false, 8), (true, 1)] {
            let mut bus = Bus::new(model.clone(), None);
            let functions = bus.functions(merge);
            assert_eq!(bus.entries(), entries, "merge: {merge}");
            let guest = bus.guest(if merge { &functions } else { &functions[..1] });
            bus.bench.service.assign(&functions[0], &guest.domain).unwrap();
            assert_eq!(bus.open(&guest), IDS.take(if merge { 8 } else { 1 }).collect::<Vec<_>>(), "merge: {merge}");
            bus.check();
        }
    }
}

#[test]
fn i15_one_that_did_not_ask_keeps_its_own_entry() {
    let mut bus = Bus::new(Config::generic_v2(), None);
    bus.function(0x10, true).unwrap();
    bus.function(0x11, false).unwrap();
    assert_eq!(bus.entries(), 2);
    bus.function(0x12, true).unwrap();
    bus.function(0x13, true).unwrap();
    // 0x12 and 0x13 merge, 0x10 would with 0x11 only.
    assert_eq!(bus.entries(), 3);
    bus.check();
}

#[test]
fn i12_a_member_leaves_and_the_others_dma_goes_on() {
    for model in spellings() {
        let mut bus = Bus::new(model, None);
        let functions = bus.functions(true);
        let guest = bus.guest(&functions);
        bus.bench.service.assign_group(&functions[3], &guest.domain).unwrap();
        assert_eq!(bus.open(&guest).len(), 8);
        let left = bus.bench.service.deassign(&functions[3]).unwrap();
        assert_eq!(left.still_reachable.len(), 7, "I-6: StillReachable, and by whom");
        assert_eq!(bus.open(&guest).len(), 8);
        let (_, writes, left) = bus.bench.cost(|| bus.bench.service.deassign_group(&functions[0]).unwrap());
        assert!(left.still_reachable.is_empty());
        assert!(writes <= 5, "one entry, one bank: {writes} writes");
        assert_eq!(bus.open(&guest), [0_u32; 0]);
        // In fault, what one leaves is packed anew without its ID: seven IDs are three entries.
        bus.bench.service.remove(functions[3].key()).unwrap();
        assert_eq!(bus.entries(), 3);
        bus.bench.service.assign(&functions[0], &guest.domain).unwrap();
        assert!(!bus.open(&guest).contains(&0x13));
        drop(bus.bench.service.deassign(&functions[0]).unwrap());
        // Back again: one entry.
        bus.function(0x13, true).unwrap();
        assert_eq!(bus.entries(), 1);
        let group = |device: &Device| bus.bench.service.find(device.key()).unwrap().group;
        assert!(
            functions
                .iter()
                .filter(|one| one.key() != functions[3].key())
                .all(|one| group(one) == group(&functions[0]))
        );
        bus.check();
    }
}

#[test]
fn i15_one_that_joins_an_assigned_group_waits_with_an_entry_of_its_own() {
    let mut bus = Bus::new(Config::generic_v2(), None);
    let first = bus.function(0x10, true).unwrap();
    let guest = bus.guest(std::slice::from_ref(&first));
    bus.bench.service.assign(&first, &guest.domain).unwrap();
    let second = bus.function(0x11, true).unwrap();
    assert_eq!((bus.entries(), bus.open(&guest)), (2, vec![0x10]), "a live entry captures nothing new");
    drop(bus.bench.service.deassign(&first).unwrap());
    bus.function(0x12, true).unwrap();
    bus.function(0x13, true).unwrap();
    assert_eq!(bus.entries(), 1, "packed anew, all in fault");
    bus.bench.shares(&second, &guest);
    bus.check();
}

#[test]
fn a11_the_policy_is_asked_about_every_function_that_goes_along() {
    /// Lets one function not go along.
    #[derive(Debug)]
    struct AllBut(Label);
    impl Policy for AllBut {
        fn allows(&self, request: &PolicyRequest<'_>) -> bool {
            !(matches!(request.why, Why::Shares { .. }) && *request.device.label() == self.0)
        }
    }
    for (merge, denied) in [(true, true), (false, false)] {
        let mut bus = Bus::new(Config::generic_v2(), Some(Box::new(AllBut("function 0x15".into()))));
        let functions = bus.functions(merge);
        let guest = bus.guest(if merge { &[] } else { &functions[..1] });
        let (_, writes, result) = bus.bench.cost(|| bus.bench.service.assign(&functions[0], &guest.domain));
        assert_eq!(matches!(result, Err(error) if matches!(error.cause, Cause::Denied { .. })), denied);
        assert_eq!(writes == 0, denied, "a refusal writes nothing");
        bus.check();
    }
}

#[test]
fn a3_functions_that_shared_an_entry_leave_nothing_behind() {
    let mut bus = Bus::new(Config::generic_v2(), None);
    for _ in 0..3 {
        let functions = bus.functions(true);
        for function in &functions {
            bus.bench.service.remove(function.key()).unwrap();
        }
        assert_eq!(bus.entries(), 0);
        bus.check();
    }
}
