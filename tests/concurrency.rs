//! Concurrency, as far as one thread can show it through hooks that come back: contract section 3.

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

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use common::callbacks::Hooks;
use common::{Anyone, Bench, NOT_RESET, PAGE, SMMU, stream};
use iommu_assign::assign::{
    Cause, Device, DeviceHooks, DeviceKey, Error, Event, EventSink, HookError, IommuError, IommuKey, Left, Operation,
    Removal, Service, Source, StreamId,
};
use iommu_assign::sync::Spin;
use machine::Reached;
use smmu_model::{Config, Injection, SyncRegister};

/// Hooks that run a closure in the middle of an operation.
fn hooked(act: impl Fn(&Device) -> Result<(), HookError> + Send + Sync + 'static) -> Arc<dyn DeviceHooks> {
    Arc::new(Hooks::new().quiesce(move |context| act(context.device)))
}

type Way = common::callbacks::Way<Spin>;

#[test]
fn c1_c2_a_claimed_group_answers_busy_and_i14_faults_in_the_middle() {
    let mut bench = Bench::v2();
    let machine = bench.machine.clone();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = seen.clone();
    let mut spec = bench.spec("dma", &[(0x10, 0)]);
    spec.hooks = hooked(move |_| {
        record.lock().unwrap().push(machine.dma_write(SMMU, StreamId::new(0x10), PAGE).unwrap());
        Ok(())
    });
    let device = bench.service.add(spec).unwrap();
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    bench.assign(&device, &one).unwrap();
    bench.reassign(&device, &two).unwrap();
    assert_eq!(*seen.lock().unwrap(), [Reached::Fault], "in between the device reaches nobody");
}

/// A bench whose service can be reached from hooks.
fn shared() -> (Bench, Way) {
    (Bench::v2(), Way::new())
}

#[test]
fn c1_c2_c4_what_a_hook_may_and_may_not_do() {
    let (mut bench, way) = shared();
    let service: Arc<Service<Spin>> = Arc::new(Service::new(Box::new(Anyone)));
    way.lead_to(&service);
    let smmu = bench.smmu(IommuKey::new(0x6000_0000), Config::generic_v2());
    service.register_iommu(smmu).unwrap();
    let key = IommuKey::new(0x6000_0000);
    let guest = bench.guest("guest");
    let domain = service.create_domain("guest".into(), guest.domain.space().stage2).unwrap();
    let seen: Arc<Mutex<Vec<Result<(), Error>>>> = Arc::default();
    let mut spec = bench.spec("device", &[]);
    spec.streams.push(stream(key, 0x10, 0));
    let mut other = bench.spec("added by the hook", &[]);
    other.streams.push(stream(key, 0x20, 0));
    let (inner, record, target) = (way.clone(), seen.clone(), domain.clone());
    spec.hooks = hooked(move |device| {
        let service = inner.service().unwrap();
        let mut seen = record.lock().unwrap();
        // The same group is claimed: no effect, and no deadlock.
        seen.push(service.assign(device, &target));
        // Another device is free to come and go.
        seen.push(service.add(other.clone()).and_then(|added| service.remove(added.key())).map(drop));
        // A removal of the device itself is not lost: it follows the operation.
        seen.push(service.remove(device.key()).map(|removal| assert_eq!(removal, Removal::Pending)));
        Ok(())
    });
    let device = service.add(spec).unwrap();
    bench.oracle.allow(device.label(), &[(0x10, 0)], &[guest.backing]);
    service.assign(&device, &domain).unwrap();
    let error = service.deassign(&device).unwrap_err();
    assert_eq!((error.cause, error.left), (Cause::Removed, Left::Removed));
    let seen = seen.lock().unwrap();
    let busy = seen[0].as_ref().unwrap_err();
    assert_eq!(busy.cause, Cause::Busy { running: Operation::Deassign });
    assert_eq!(seen[1..], [Ok(()), Ok(())]);
    assert!(service.find(device.key()).is_none(), "C-2: the mark was honoured");
    service.destroy_domain(&domain).unwrap();
}

#[test]
fn c5_a_parent_goes_after_its_children_and_a_child_needs_a_parent() {
    let mut bench = Bench::v2();
    let bridge = bench.add("bridge", &[(0x10, 0)]);
    let mut spec = bench.spec("child", &[(0x20, 0)]);
    spec.parent = Some(bridge.key());
    let child = bench.service.add(spec.clone()).unwrap();
    assert_eq!((bridge.depth(), child.depth()), (0, 1));
    assert_eq!(bench.remove(&bridge).unwrap_err().cause, Cause::HasChildren { children: 1, first: "child".into() });
    bench.remove(&child).unwrap();
    bench.remove(&bridge).unwrap();
    assert_eq!(bench.service.add(spec).unwrap_err().cause, Cause::ParentMissing);
}

#[test]
fn c6_a_traversal_survives_the_removal_of_the_entry_that_it_stands_on() {
    let mut bench = Bench::v2();
    let devices: Vec<Device> = (0..6).map(|id| bench.add(&format!("device {id}"), &[(id * 2, 0)])).collect();
    let generation = bench.service.generation();
    let mut seen = Vec::new();
    let mut at = None;
    while let Some(info) = bench.service.next_device(at) {
        at = Some(info.device.key());
        if seen.len() == 2 {
            bench.service.remove(info.device.key()).unwrap();
        }
        seen.push(info.device.key());
    }
    assert_eq!(seen, devices.iter().map(Device::key).collect::<Vec<_>>());
    assert_ne!(bench.service.generation(), generation);
    assert_eq!(bench.service.devices().count(), 5);
}

#[test]
fn c7_an_old_handle_never_means_the_device_that_came_after() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let spec = bench.spec("plug", &[(0x10, 0)]);
    let old = bench.service.add(spec.clone()).unwrap();
    bench.remove(&old).unwrap();
    let new = bench.service.add(spec).unwrap();
    assert_eq!(old.key(), new.key());
    assert_eq!(bench.assign(&old, &guest).unwrap_err().cause, Cause::Gone);
    assert_eq!(bench.dma(0x10), Reached::Fault);
    bench.assign(&new, &guest).unwrap();
    assert_eq!(bench.deassign(&old).unwrap_err().cause, Cause::Gone);
    assert_eq!(bench.dma(0x10), Reached::Memory(guest.backing));
}

#[test]
fn c8_a_device_that_is_unplugged_while_assigned_is_cut_drained_and_forgotten() {
    let mut bench = Bench::v2();
    let mut guest = bench.guest("guest");
    let device = bench.add("nic", &[(0x10, 0x3)]);
    bench.assign(&device, &guest).unwrap();
    assert_eq!(bench.dma(0x11), Reached::Memory(guest.backing));
    assert_eq!(bench.remove(&device).unwrap(), Removal::Done);
    // The tables may go now: nothing leads into them.
    bench.service.destroy_domain(&guest.domain).unwrap();
    guest.tables.scribble();
    assert_eq!(bench.dma(0x11), Reached::Fault);
    bench.audit();
}

#[test]
fn c9_a_provider_goes_only_when_nobody_needs_it_and_a_missing_one_is_named() {
    let mut bench = Bench::v2();
    let device = bench.add("dma", &[(0x10, 0)]);
    assert_eq!(
        bench.service.unregister_iommu(SMMU).unwrap_err().cause,
        Cause::InUse { devices: 1, first: "dma".into() }
    );
    bench.remove(&device).unwrap();
    bench.service.unregister_iommu(SMMU).unwrap();
    assert_eq!(bench.service.unregister_iommu(SMMU).unwrap_err().cause, Cause::NotFound);
    let spec = bench.spec("later", &[(0x10, 0)]);
    assert_eq!(bench.service.add(spec).unwrap_err().cause, Cause::ProviderMissing(SMMU));
}

#[test]
fn c14_a_sync_that_never_completes_holds_up_nobody_else() {
    let other = IommuKey::new(0x6000_0000);
    let mut bench = Bench::v2();
    bench.smmu(other, Config::generic_v2());
    let guest = bench.guest("guest");
    let stuck = bench.add("stuck", &[(0x10, 0)]);
    let mut spec = bench.spec("free", &[]);
    spec.streams.push(stream(other, 0x20, 0));
    let free = bench.service.add(spec).unwrap();
    bench.assign(&stuck, &guest).unwrap();
    bench.machine.smmu(SMMU, |smmu| smmu.inject(Injection::StatusNeverClears(SyncRegister::Global)));
    let (reads, _, refused) = bench.cost(|| bench.service.deassign(&stuck));
    assert!(matches!(refused.unwrap_err().cause, Cause::Iommu { error: IommuError::SyncTimeout(_), .. }));
    assert_eq!(reads, 100, "the bound that the integrator gave");
    bench.oracle.allow(stuck.label(), &[(0x10, 0)], &[]);
    bench.assign(&free, &guest).unwrap();
    drop(bench.deassign(&free).unwrap());
}

#[test]
fn c20_i14_a_device_whose_hook_failed_goes_to_no_guest_before_a_reset_has_succeeded() {
    // A hook that fails, and one that unwinds.
    let link_is_down: fn() -> Result<(), HookError> = || Err(HookError("link is down"));
    for (fails, reason) in [(link_is_down, "link is down"), (|| panic!("the hook's own bug"), "it panicked")] {
        let mut bench = Bench::v2();
        let (one, two) = (bench.guest("one"), bench.guest("two"));
        let is_down = Arc::new(AtomicBool::new(true));
        let mut spec = bench.spec("device", &[(0x10, 0)]);
        let (down, resets) = (is_down.clone(), Arc::new(AtomicUsize::new(0)));
        let count = resets.clone();
        let hooks = Hooks::new().quiesce(move |_| if down.load(Ordering::SeqCst) { fails() } else { Ok(()) });
        spec.hooks = Arc::new(hooks.reset(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }));
        let device = bench.service.add(spec).unwrap();
        bench.assign(&device, &one).unwrap();
        let error = bench.deassign(&device).unwrap_err();
        assert_eq!((error.cause, error.left), (Cause::Hook { step: "quiesce", reason }, Left::Quarantined));
        // Nobody stays busy, and nobody gets it: not even its last owner.
        for guest in [&two, &one] {
            let error = bench.assign(&device, guest).unwrap_err();
            assert_eq!((error.cause, error.left), (Cause::Hook { step: "quiesce", reason }, Left::Quarantined));
            assert_eq!((bench.dma(0x10), bench.state(&device)), (Reached::Fault, NOT_RESET));
        }
        is_down.store(false, Ordering::SeqCst);
        bench.assign(&device, &two).unwrap();
        assert_eq!((bench.dma(0x10), resets.load(Ordering::SeqCst)), (Reached::Memory(two.backing), 1));
        bench.remove(&device).unwrap();
        for guest in [&one, &two] {
            bench.service.destroy_domain(&guest.domain).unwrap();
        }
        bench.audit();
    }
}

#[test]
fn c15_two_cpus_adding_devices_of_one_group_end_in_one_group_or_busy() {
    let mut bench = Bench::v2();
    let specs: Vec<_> = (0..16).map(|n| bench.spec(&format!("function {n}"), &[(0x40, 0x7), (0x100 + n, 0)])).collect();
    let service = &bench.service;
    std::thread::scope(|scope| {
        for half in specs.chunks(8) {
            scope.spawn(move || {
                for spec in half {
                    loop {
                        match service.add(spec.clone()) {
                            Ok(_) => break,
                            Err(error) => assert!(matches!(error.cause, Cause::Busy { .. }), "{error}"),
                        }
                    }
                }
            });
        }
    });
    let groups: std::collections::BTreeSet<DeviceKey> = bench.service.devices().map(|info| info.group).collect();
    assert_eq!((bench.service.devices().count(), groups.len()), (16, 1));
    bench.audit();
    assert_eq!(specs[0].key.source(), Source::Dt);
}

#[test]
fn a_group_falls_apart_when_the_member_that_joined_it_leaves() {
    let mut bench = Bench::v2();
    let (left, right) = (bench.add("left", &[(0x10, 0)]), bench.add("right", &[(0x11, 0)]));
    let middle = bench.add("middle", &[(0x10, 0x1)]);
    let group = |bench: &Bench, device: &Device| bench.service.find(device.key()).unwrap().group;
    assert_eq!(group(&bench, &left), group(&bench, &right));
    bench.remove(&middle).unwrap();
    assert_ne!(group(&bench, &left), group(&bench, &right));
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    bench.assign(&left, &one).unwrap();
    bench.assign(&right, &two).unwrap();
    bench.audit();
}

type Host = common::waiting::Host<0>;

/// Hooks that say that their operation has come to them, and hold it there until the gate opens.
fn gated(entered: &Arc<std::sync::Barrier>, gate: &Arc<std::sync::Barrier>) -> Arc<dyn DeviceHooks> {
    let (entered, gate) = (entered.clone(), gate.clone());
    hooked(move |_| {
        entered.wait();
        gate.wait();
        Ok(())
    })
}

/// A service whose operations can wait, over an SMMU of `bench`.
fn waiting(bench: &Bench) -> (Service<Host>, IommuKey) {
    let key = IommuKey::new(0x6000_0000);
    let model = Config::generic_v2();
    let registers = bench.machine.add_smmu(key, model.clone());
    let masters = Arc::new(iommu_assign::smmu::Masters::<Host>::new());
    let smmu = iommu_assign::smmu::Smmu::probe(common::described(key, &model), registers, masters).unwrap();
    let service = Service::new(Box::new(Anyone));
    service.register_iommu(Arc::new(smmu)).unwrap();
    (service, key)
}

#[test]
fn c19_the_wait_form_goes_on_when_the_claim_ends_and_times_out_when_it_does_not() {
    let mut bench = Bench::v2();
    let (service, key) = waiting(&bench);
    let guest = bench.guest("guest");
    let stage2 = guest.domain.space().stage2;
    let (one, two) =
        (service.create_domain("one".into(), stage2).unwrap(), service.create_domain("two".into(), stage2).unwrap());
    // The hook of a running deassign holds the group until it is told to go on.
    let (entered, gate) = (Arc::new(std::sync::Barrier::new(2)), Arc::new(std::sync::Barrier::new(2)));
    let mut spec = bench.spec("device", &[]);
    spec.streams.push(stream(key, 0x10, 0));
    spec.hooks = gated(&entered, &gate);
    let device = service.add(spec).unwrap();
    service.assign(&device, &one).unwrap();
    std::thread::scope(|scope| {
        let deassign = scope.spawn(|| service.deassign(&device).map(drop));
        entered.wait();
        assert!(matches!(service.assign(&device, &two).unwrap_err().cause, Cause::Busy { .. }), "the try form");
        let soon = std::time::Instant::now() + std::time::Duration::from_millis(20);
        let error = service.wait(Some(soon), |service| service.assign(&device, &two)).unwrap_err();
        assert_eq!(error.cause, Cause::TimedOut { running: Operation::Deassign });
        let waiting = scope.spawn(|| service.wait(None, |service| service.assign(&device, &two)));
        gate.wait();
        deassign.join().unwrap().unwrap();
        waiting.join().unwrap().unwrap();
    });
    assert_eq!(service.find(device.key()).unwrap().domain, Some("two".into()));
}

#[test]
fn c2_all_who_wait_for_one_removal_see_it_done() {
    let mut bench = Bench::v2();
    let (service, key) = waiting(&bench);
    let (entered, gate) = (Arc::new(std::sync::Barrier::new(2)), Arc::new(std::sync::Barrier::new(2)));
    let mut spec = bench.spec("device", &[]);
    spec.streams.push(stream(key, 0x10, 0));
    spec.hooks = gated(&entered, &gate);
    let device = service.add(spec).unwrap();
    let stage2 = bench.guest("guest").domain.space().stage2;
    let domain = service.create_domain("guest".into(), stage2).unwrap();
    service.assign(&device, &domain).unwrap();
    std::thread::scope(|scope| {
        let deassign = scope.spawn(|| service.deassign(&device).map(drop));
        entered.wait();
        let removals: Vec<_> = (0..3).map(|_| scope.spawn(|| service.remove_and_wait(device.key(), None))).collect();
        while service.find(device.key()).is_some_and(|_| service.remove(device.key()) != Ok(Removal::Pending)) {}
        gate.wait();
        assert_eq!(deassign.join().unwrap().unwrap_err().cause, Cause::Removed);
        for removal in removals {
            // A thread that starts late finds nothing to remove: also an answer, and never a second removal.
            let answer = removal.join().unwrap().map_err(|error| error.cause);
            assert!(matches!(answer, Ok(()) | Err(Cause::NotFound)), "{answer:?}");
        }
    });
    assert!(service.find(device.key()).is_none());
    service.destroy_domain(&domain).unwrap();
}

#[test]
fn c5_the_tree_form_removes_children_first_and_keeps_new_ones_out() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut keys = Vec::new();
    for n in 0..6_u32 {
        let mut spec = bench.spec(&format!("device {n}"), &[(n * 2, 0)]);
        // A chain with a branch: 0 <- 1 <- 2, 0 <- 3, 4 apart, 5 behind 2.
        spec.parent = [None, Some(0), Some(1), Some(0), None, Some(2)][n as usize].map(|at: usize| keys[at]);
        spec.hooks = released(&order);
        keys.push(spec.key);
        let device = bench.service.add(spec).unwrap();
        if n == 5 {
            bench.assign(&device, &guest).unwrap();
            bench.oracle.allow(device.label(), &[(10, 0)], &[guest.backing]);
        }
    }
    assert!(matches!(bench.service.remove(keys[0]).unwrap_err().cause, Cause::HasChildren { children: 2, .. }));
    assert_eq!(bench.service.remove_tree(keys[0]).unwrap(), Removal::Done);
    let order: Vec<DeviceKey> = order.lock().unwrap().clone();
    let at = |n: usize| order.iter().position(|key| *key == keys[n]).unwrap();
    assert_eq!(order.len(), 5);
    assert!(at(5) < at(2) && at(2) < at(1) && at(1) < at(0) && at(3) < at(0), "{order:?}");
    assert_eq!(bench.service.devices().map(|info| info.device.key()).collect::<Vec<_>>(), [keys[4]]);
    assert_eq!(bench.dma(10), Reached::Fault);
    bench.audit();
}

/// Hooks that note when their device is released.
fn released(order: &Arc<Mutex<Vec<DeviceKey>>>) -> Arc<dyn DeviceHooks> {
    let order = order.clone();
    Arc::new(Hooks::new().release(move |context| order.lock().unwrap().push(context.device.key())))
}

/// Keeps the events that it hears, as lines.
#[derive(Debug, Default, Clone)]
struct Console(Arc<Mutex<Vec<String>>>);

impl EventSink for Console {
    fn event(&self, event: &Event) {
        self.0.lock().unwrap().push(event.to_string());
    }
}

#[test]
fn events_tell_a_life_in_order_and_the_state_reads_as_a_tree() {
    let console = Console::default();
    let mut bench = Bench::new();
    let service: Service<Spin> = Service::with_events(Box::new(Anyone), Box::new(console.clone()));
    let smmu = bench.smmu(SMMU, Config::generic_v2());
    service.register_iommu(smmu).unwrap();
    let stage2 = bench.guest("guest").domain.space().stage2;
    let (one, two) =
        (service.create_domain("one".into(), stage2).unwrap(), service.create_domain("two".into(), stage2).unwrap());
    let bridge = service.add(bench.spec("bridge", &[(0x10, 0)])).unwrap();
    let mut spec = bench.spec("function", &[(0x20, 0)]);
    spec.parent = Some(bridge.key());
    let function = service.add(spec).unwrap();
    service.add(bench.spec("mate", &[(0x10, 0)])).unwrap();
    for device in [&bridge, &function] {
        let streams: &[(u32, u32)] = if device.key() == bridge.key() { &[(0x10, 0)] } else { &[(0x20, 0)] };
        bench.oracle.allow(device.label(), streams, &[0x1_1000_0000]);
    }
    service.assign(&function, &one).unwrap();
    let mut tree = String::new();
    service.write_tree(&mut tree).unwrap();
    assert_eq!(
        tree,
        "bridge (blocked) in the group of dt:3 iommu@50000000/0x10\n\
         \x20 function -> one iommu@50000000/0x20\n\
         mate (blocked) iommu@50000000/0x10\n"
    );
    service.reassign(&function, &two).unwrap();
    drop(service.deassign(&function).unwrap());
    service.remove(function.key()).unwrap();
    service.destroy_domain(&one).unwrap();
    assert_eq!(
        *console.0.lock().unwrap(),
        [
            "registered iommu@50000000",
            "created one",
            "created two",
            "added bridge",
            "added function",
            "added mate",
            "assigned function to one",
            "assigned function to two",
            "deassigned function",
            "removed function",
            "destroyed one",
        ]
    );
}

#[test]
fn a_reservation_binds_until_it_ends() {
    let mut bench = Bench::new();
    bench.smmu(SMMU, Config { banks: 1, ..Config::generic_v2() });
    let (one, two) = (bench.guest("one"), bench.guest("two"));
    let (first, second) = (bench.add("first", &[(0x10, 0)]), bench.add("second", &[(0x20, 0)]));
    let (_, writes, reservation) = bench.cost(|| bench.service.reserve(&first, &one.domain));
    assert_eq!(writes, 0);
    let reservation = reservation.unwrap();
    // The only bank is spoken for, and the group is claimed.
    assert!(matches!(bench.service.assign(&second, &two.domain).unwrap_err().cause, Cause::Iommu { .. }));
    assert!(matches!(bench.service.assign(&first, &two.domain).unwrap_err().cause, Cause::Busy { .. }));
    bench.oracle.allow(first.label(), &[(0x10, 0)], &[one.backing]);
    reservation.commit().unwrap();
    assert_eq!(bench.dma(0x10), Reached::Memory(one.backing));
    drop(bench.service.deassign(&first).unwrap());
    bench.service.reserve(&first, &one.domain).unwrap().abandon().unwrap();
    bench.assign(&second, &two).unwrap();
    let reservation = bench.service.reserve(&first, &two.domain).unwrap();
    assert_eq!(bench.service.remove(first.key()).unwrap(), Removal::Pending);
    assert_eq!(reservation.abandon().unwrap_err().cause, Cause::Removed);
    assert!(bench.service.find(first.key()).is_none());
    bench.audit();
}

#[test]
fn a_failed_add_is_nothing_to_release_and_nothing_to_hear_of() {
    let console = Console::default();
    let released = Arc::new(Mutex::new(Vec::new()));
    let mut bench = Bench::new();
    let service: Service<Spin> = Service::with_events(Box::new(Anyone), Box::new(console.clone()));
    service.register_iommu(bench.smmu(SMMU, Config::mmu401_juno_small())).unwrap();
    let mut spec = bench.spec("needs three entries", &[(1, 0), (4, 0), (8, 0)]);
    spec.hooks = self::released(&released);
    let error = service.add(spec).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::Exhausted { .. }, .. }), "{error}");
    assert_eq!(*released.lock().unwrap(), []);
    assert_eq!(*console.0.lock().unwrap(), ["registered iommu@50000000"]);
}

#[test]
fn errors_count_as_people_do() {
    let mut bench = Bench::v2();
    let guest = bench.guest("guest");
    let device = bench.add("dma", &[(0x10, 0)]);
    bench.assign(&device, &guest).unwrap();
    let error = bench.service.destroy_domain(&guest.domain).unwrap_err();
    assert_eq!(error.to_string(), "destroy domain guest: dma still uses it; nothing changed");
}

/// A policy that panics when it is asked about this device.
#[derive(Debug)]
struct Startled(&'static str);

impl iommu_assign::assign::Policy for Startled {
    fn allows(&self, request: &iommu_assign::assign::PolicyRequest<'_>) -> bool {
        assert_ne!(request.device.label().to_string(), self.0, "never heard of it");
        true
    }
}

#[test]
fn c20_a11_a_policy_that_unwinds_has_not_said_yes() {
    let mut bench = Bench::with_policy(Box::new(Startled("unheard of")));
    bench.smmu(SMMU, Config::generic_v2());
    let guest = bench.guest("guest");
    let unheard = bench.add("unheard of", &[(0x20, 0)]);
    assert!(matches!(bench.assign(&unheard, &guest).unwrap_err().cause, Cause::Denied { .. }));
    bench.remove(&unheard).unwrap();
    bench.service.destroy_domain(&guest.domain).unwrap();
    bench.audit();
}
