//! What a second look at the assignment layer found: instances that go and come under an operation, callbacks that come
//! back, and what ends unheard.

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

use std::cell::Cell;
use std::sync::{Arc, Mutex, OnceLock};

use common::callbacks::{Asked, Hooks};
use common::{Anyone, Bench, SMMU};
use iommu_assign::assign::{
    AddressSpace, Cause, Device, DeviceId, DeviceKey, DeviceSpec, Difference, Domain, DomainId, Event, EventSink,
    FaultAnswer, FaultLine, HookContext, Iommu, IommuError, IommuKey, NewMaster, Operation, PolicyRequest, Prepared,
    RawFault, Service, Sharing, Stage2Limits, Stream, StreamId, Why, Withdrawn,
};
use iommu_assign::smmu::Smmu;
use iommu_assign::sync::{ManyCpus, Platform, Spin, TimedOut, Waiter};
use machine::{ModelRegisters, Reached};
use smmu_model::Config;

type Way = common::callbacks::Way<Host>;
type Then = Mutex<Option<Box<dyn FnOnce(&Service<Host>) + Send>>>;

thread_local! {
    static WAKES: Cell<u64> = const { Cell::new(0) };
}

/// A platform on which nobody but the test's own thread wakes: whoever would sleep is told that time is up.
#[derive(Debug)]
enum Host {}

impl Platform for Host {
    type Lock = <Spin as Platform>::Lock;
    type Sharing = ManyCpus;

    fn barrier() {}

    fn wake() {
        WAKES.set(WAKES.get() + 1);
    }
}

impl Waiter for Host {
    type Ticket = u64;
    type Deadline = ();

    fn prepare() -> u64 {
        WAKES.get()
    }

    fn wait(ticket: u64, _: Option<()>) -> Result<(), TimedOut> {
        if WAKES.get() == ticket { Err(TimedOut) } else { Ok(()) }
    }
}

/// A driver in which, once, something else happens between two steps.
struct Between {
    inner: Arc<Smmu<Spin, ModelRegisters>>,
    way: Way,
    /// After `publish`, `plan` and `retire`, and before `close`.
    then: [Then; 4],
    /// Whom the next `publish` meets too.
    meets: Mutex<Option<DeviceId>>,
}

impl std::fmt::Debug for Between {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Between")
    }
}

const PUBLISH: usize = 0;
const PLAN: usize = 1;
const RETIRE: usize = 2;
const CLOSE: usize = 3;

impl Between {
    fn on(&self, step: usize, act: impl FnOnce(&Service<Host>) + Send + 'static) {
        *self.then[step].lock().unwrap() = Some(Box::new(act));
    }

    fn passed(&self, step: usize) {
        let act = self.then[step].lock().unwrap().take();
        if let Some(act) = act {
            act(&self.way.service().unwrap());
        }
    }
}

impl Iommu for Between {
    fn owner_of(&self, stream: StreamId) -> Option<DeviceId> {
        self.inner.owner_of(stream)
    }

    fn key(&self) -> IommuKey {
        self.inner.key()
    }

    fn limits(&self) -> Stage2Limits {
        self.inner.limits()
    }

    fn new_master(&self, device: DeviceId, streams: &[Stream], kin: Option<u64>) -> Result<NewMaster, IommuError> {
        self.inner.new_master(device, streams, kin)
    }

    fn publish(&self, master: &mut NewMaster, met: &mut dyn FnMut(DeviceId)) -> Result<(), IommuError> {
        let published = self.inner.publish(master, met);
        self.meets.lock().unwrap().take().map(met);
        self.passed(PUBLISH);
        published
    }

    fn allot(&self, master: &mut NewMaster) -> Result<usize, IommuError> {
        self.inner.allot(master)
    }

    fn enrol(&self, master: &mut NewMaster) -> Result<(), IommuError> {
        self.inner.enrol(master)
    }

    fn sharing(&self, devices: &[DeviceId], tell: &mut dyn FnMut(Sharing)) -> Result<(), IommuError> {
        self.inner.sharing(devices, tell)
    }

    fn plan(
        &self,
        devices: &[DeviceId],
        space: &AddressSpace,
        along: &mut dyn FnMut((DeviceId, DeviceId)),
    ) -> Result<Prepared, IommuError> {
        let planned = self.inner.plan(devices, space, along);
        self.passed(PLAN);
        planned
    }

    fn abandon(&self, devices: &[DeviceId], prepared: Prepared) {
        self.inner.abandon(devices, prepared);
    }

    fn install(&self, devices: &[DeviceId], prepared: Prepared) -> Result<(), IommuError> {
        self.inner.install(devices, prepared)
    }

    fn block(&self, devices: &[DeviceId], tell: &mut dyn FnMut(DeviceId)) -> Result<(), IommuError> {
        self.inner.block(devices, tell)
    }

    fn cut(&self, devices: &[DeviceId]) -> Result<(), IommuError> {
        self.inner.cut(devices)
    }

    fn withdraw(&self, device: DeviceId, rest: &[DeviceId], tell: &mut dyn FnMut(Withdrawn)) -> Result<(), IommuError> {
        self.inner.withdraw(device, rest, tell)
    }

    fn flush(&self, domain: DomainId) -> Result<(), IommuError> {
        self.inner.flush(domain)
    }

    fn forget(&self, domain: DomainId) -> Result<(), IommuError> {
        self.inner.forget(domain)
    }

    fn reclaim(&self) -> Result<bool, IommuError> {
        self.inner.reclaim()
    }

    fn retire(&self) -> Result<(), IommuError> {
        let retired = self.inner.retire();
        self.passed(RETIRE);
        retired
    }

    fn close(&self) -> Result<(), IommuError> {
        self.passed(CLOSE);
        self.inner.close()
    }

    fn take_faults(&self, line: FaultLine, report: &mut dyn FnMut(RawFault)) -> FaultAnswer {
        self.inner.take_faults(line, report)
    }

    fn audit(&self, report: &mut dyn FnMut(Difference)) {
        self.inner.audit(report);
    }

    fn placement(&self, device: DeviceId) -> Result<Option<DomainId>, IommuError> {
        self.inner.placement(device)
    }
}

struct Rig {
    bench: Bench,
    service: Arc<Service<Host>>,
    driver: Arc<Between>,
    way: Way,
    domains: [Domain<Host>; 2],
}

impl Rig {
    fn new() -> Self {
        Self::asking(|_, _| true)
    }

    fn asking(ask: impl Fn(&Service<Host>, &PolicyRequest<'_>) -> bool + Send + Sync + 'static) -> Self {
        let mut bench = Bench::with_policy(Box::new(Anyone));
        let inner = bench.smmu(SMMU, Config::generic_v2());
        let way = Way::new();
        let service = Arc::new(Service::new(Box::new(Asked::new(&way, ask))));
        way.lead_to(&service);
        let driver = Arc::new(Between { inner, way: way.clone(), then: Default::default(), meets: Mutex::default() });
        service.register_iommu(driver.clone()).unwrap();
        let (one, two) = (bench.guest("one"), bench.guest("two"));
        let domains = [("one", &one), ("two", &two)]
            .map(|(name, guest)| service.create_domain(name.into(), guest.domain.space().stage2).unwrap());
        // What this is about is who may do what when; that nothing leaks in between is the other suites'.
        for name in ["a", "b", "c"] {
            let streams: Vec<(u32, u32)> = (0x10..0x16).map(|id| (id, 0)).collect();
            bench.oracle.allow(&name.into(), &streams, &[one.backing, two.backing]);
        }
        Self { bench, service, driver, way, domains }
    }

    fn add(&mut self, name: &str, streams: &[(u32, u32)]) -> Device {
        let spec = self.bench.spec(name, streams);
        self.service.add(spec).unwrap()
    }

    /// Probes the same part once more.
    fn again(&self) -> Arc<Smmu<Spin, ModelRegisters>> {
        self.bench.service.force_unregister_iommu(SMMU).unwrap();
        self.bench.smmu(SMMU, Config::generic_v2())
    }

    fn group(&self, device: &Device) -> DeviceKey {
        self.service.find(device.key()).unwrap().group
    }
}

#[test]
fn c9_devices_of_the_old_and_of_the_new_instance_of_one_name_are_each_blocked_where_they_are() {
    let mut rig = Rig::new();
    let on_bus = |spec: DeviceSpec| DeviceSpec { isolation: Some(7), ..spec };
    let old = on_bus(rig.bench.spec("a", &[(0x10, 0)]));
    let old = rig.service.add(old).unwrap();
    rig.service.assign(&old, &rig.domains[0]).unwrap();
    rig.service.force_unregister_iommu(SMMU).unwrap();
    let smmu = rig.again();
    rig.service.register_iommu(smmu).unwrap();
    let new = on_bus(rig.bench.spec("b", &[(0x11, 0)]));
    let new = rig.service.add(new).unwrap();
    rig.service.assign(&new, &rig.domains[0]).unwrap();
    assert!(matches!(rig.bench.dma(0x11), Reached::Memory(_)));
    let error = rig.service.deassign_group(&old).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::ProviderGone, .. }), "{error}");
    assert_eq!(rig.bench.dma(0x11), Reached::Fault, "it is owned by nobody now");
}

#[test]
fn c9_i10_a_domain_can_end_though_an_instance_went_under_its_assign() {
    let mut rig = Rig::new();
    let device = rig.add("a", &[(0x10, 0)]);
    rig.driver.on(PLAN, |service| service.force_unregister_iommu(SMMU).unwrap());
    let error = rig.service.assign(&device, &rig.domains[0]).unwrap_err();
    assert!(matches!(error.cause, Cause::Iommu { error: IommuError::ProviderGone, .. }), "{error}");
    rig.service.flush(&rig.domains[0]).unwrap();
    rig.service.destroy_domain(&rig.domains[0]).unwrap();
}

#[test]
fn c9_an_unregister_does_not_take_the_instance_that_came_after() {
    for forced in [false, true] {
        let rig = Rig::new();
        let (inner, way) = (rig.driver.inner.clone(), rig.way.clone());
        let after = Arc::new(Between { inner, way, then: Default::default(), meets: Mutex::default() });
        rig.driver.on(if forced { CLOSE } else { RETIRE }, move |service| {
            service.force_unregister_iommu(SMMU).unwrap();
            service.register_iommu(after).unwrap();
        });
        let result = if forced { rig.service.force_unregister_iommu(SMMU) } else { rig.service.unregister_iommu(SMMU) };
        assert_eq!(result.unwrap_err().cause, Cause::NotFound, "forced {forced}");
        assert!(rig.service.iommu(SMMU).is_some(), "forced {forced}");
    }
}

#[test]
fn c2_what_is_removed_from_a_release_hook_is_removed_once() {
    let mut rig = Rig::new();
    let keeper = rig.add("a", &[(0x10, 0)]);
    let released: Arc<Mutex<Vec<u8>>> = Arc::default();
    let specs = [rig.bench.spec("b", &[(0x10, 0)]), rig.bench.spec("c", &[(0x10, 0)])];
    let keys = [specs[0].key, specs[1].key];
    for (n, spec) in specs.into_iter().enumerate() {
        let (seen, other) = (released.clone(), keys[1 - n]);
        let way = rig.way.clone();
        let hooks = Hooks::new().release(move |context| {
            seen.lock().unwrap().push(n as u8);
            let _ = way.service().unwrap().within(context.claims).remove(other);
        });
        rig.service.add(DeviceSpec { hooks: Arc::new(hooks), ..spec }).unwrap();
    }
    // Both are asked to go while the group is claimed.
    rig.driver.on(PLAN, move |service| {
        for key in keys {
            service.remove(key).unwrap();
        }
    });
    rig.service.assign(&keeper, &rig.domains[0]).unwrap();
    released.lock().unwrap().sort_unstable();
    assert_eq!(*released.lock().unwrap(), [0, 1]);
    assert!(keys.iter().all(|key| rig.service.find(*key).is_none()));
    drop(rig.service.deassign(&keeper).unwrap());
}

#[test]
fn c5_nobody_stands_behind_a_device_whose_add_has_not_ended() {
    let child: Arc<Mutex<Option<DeviceSpec>>> = Arc::default();
    let (offered, came) = (child.clone(), Arc::new(Mutex::new(None)));
    let seen = came.clone();
    let mut rig = Rig::asking(move |service, request| {
        if !matches!(request.why, Why::Shares { .. }) {
            return true;
        }
        if let Some(child) = offered.lock().unwrap().take() {
            let child = DeviceSpec { parent: Some(request.device.key()), ..child };
            *seen.lock().unwrap() = Some(service.within(request.claims).add(child));
            return false;
        }
        true
    });
    *child.lock().unwrap() = Some(rig.bench.spec("c", &[(0x12, 0)]));
    let owner = rig.add("a", &[(0x10, 0)]);
    rig.service.assign(&owner, &rig.domains[0]).unwrap();
    let parent = rig.bench.spec("b", &[(0x10, 0)]);
    rig.service.add(parent).unwrap_err();
    let came = came.lock().unwrap().take().unwrap();
    assert_eq!(came.unwrap_err().cause, Cause::Busy { running: Operation::Add });
    assert_eq!(rig.service.devices().count(), 1, "nobody is left behind a parent that never was");
}

#[test]
fn i11_a_new_device_joins_the_mates_of_one_that_went_while_it_came() {
    let mut rig = Rig::new();
    let (one, two) = (rig.add("a", &[(0x10, 0)]), rig.add("b", &[(0x10, 0)]));
    let gone = one.key();
    rig.driver.on(PUBLISH, move |service| drop(service.remove(gone).unwrap()));
    let late = rig.bench.spec("c", &[(0x10, 0)]);
    let late = match rig.service.add(late.clone()) {
        Err(error) => {
            assert_eq!(error.cause, Cause::Busy { running: Operation::Remove });
            rig.service.add(late).unwrap()
        }
        Ok(late) => late,
    };
    assert_eq!(rig.group(&two), rig.group(&late));
}

#[test]
fn i11_the_owner_of_a_shared_stream_stays_while_the_policy_is_asked_about_it() {
    let target: Arc<OnceLock<(Device, Domain<Host>)>> = Arc::default();
    let once = std::sync::Once::new();
    let (owner, came) = (target.clone(), Arc::new(Mutex::new(None)));
    let seen = came.clone();
    let mut rig = Rig::asking(move |service, request| {
        if request.device.label().to_string() != "b" || request.domain.to_string() != "one" {
            return true;
        }
        once.call_once(|| {
            let ((owner, domain), within) = (owner.get().unwrap(), service.within(request.claims));
            drop(within.deassign(owner).unwrap());
            *seen.lock().unwrap() = Some(within.assign(owner, domain));
        });
        true
    });
    let owner = rig.add("a", &[(0x10, 0)]);
    rig.service.assign(&owner, &rig.domains[0]).unwrap();
    target.set((owner, rig.domains[1].clone())).unwrap();
    let late = rig.bench.spec("b", &[(0x10, 0)]);
    rig.service.add(late).unwrap();
    let came = came.lock().unwrap().take().unwrap();
    assert!(matches!(came.unwrap_err().cause, Cause::GroupConflict { .. }));
}

#[test]
fn i6_a_mate_that_a_hook_assigned_is_named_as_keeping_the_stream() {
    let mut rig = Rig::new();
    let mate = rig.add("b", &[(0x10, 0)]);
    let spec = rig.bench.spec("a", &[(0x10, 0)]);
    let (other, domain) = (mate, rig.domains[0].clone());
    let once = std::sync::Once::new();
    let way = rig.way.clone();
    let hooks = Hooks::new().reset(move |context| {
        once.call_once(|| way.service().unwrap().within(context.claims).assign(&other, &domain).unwrap());
        Ok(())
    });
    let device = rig.service.add(DeviceSpec { hooks: Arc::new(hooks), ..spec }).unwrap();
    rig.service.assign(&device, &rig.domains[0]).unwrap();
    let deassigned = rig.service.deassign(&device).unwrap();
    assert!(matches!(rig.bench.dma(0x10), Reached::Memory(_)));
    assert_eq!(deassigned.still_reachable.iter().map(ToString::to_string).collect::<Vec<_>>(), ["b"]);
}

#[test]
fn i11_the_policy_is_asked_about_a_stream_that_went_live_while_a_device_came() {
    let mut rig = Rig::asking(|_, request| request.device.label().to_string() != "c");
    let [_, mate] = ["a", "b"].map(|name| rig.add(name, &[(0x10, 0)]));
    let domain = rig.domains[0].clone();
    rig.driver.on(PUBLISH, move |service| service.assign(&mate, &domain).unwrap());
    let late = rig.bench.spec("c", &[(0x10, 0)]);
    let error = rig.service.add(late).unwrap_err();
    assert!(matches!(error.cause, Cause::GroupConflict { .. }), "{error}");
    assert!(matches!(rig.bench.dma(0x10), Reached::Memory(_)));
}

#[test]
fn i11_who_shares_a_live_stream_is_the_one_that_shares_it_when_the_policy_is_asked() {
    let asked: Arc<Mutex<Vec<String>>> = Arc::default();
    let seen = asked.clone();
    let mut rig = Rig::asking(move |_, request| {
        if let Why::Shares { with } = request.why {
            seen.lock().unwrap().push(format!(
                "{} with {} in {}",
                request.device.label(),
                with.label(),
                request.domain
            ));
        }
        request.device.label().to_string() != "c"
    });
    let [one, two] = ["a", "b"].map(|name| rig.add(name, &[(0x10, 0)]));
    rig.service.assign(&one, &rig.domains[0]).unwrap();
    let domain = rig.domains[1].clone();
    rig.driver.on(PUBLISH, move |service| {
        drop(service.deassign(&one).unwrap());
        service.assign(&two, &domain).unwrap();
    });
    let late = rig.bench.spec("c", &[(0x10, 0)]);
    let error = rig.service.add(late).unwrap_err();
    assert!(matches!(error.cause, Cause::GroupConflict { .. }), "{error}");
    assert_eq!(asked.lock().unwrap().last().unwrap(), "c with b in two");
}

#[test]
fn i11_a_new_device_joins_those_that_one_that_went_kept_together() {
    for first in ["wide", "narrow"] {
        let mut rig = Rig::new();
        let wide = |rig: &mut Rig| rig.add("a", &[(0x10, 3)]);
        let (going, mates) = if first == "wide" {
            let going = wide(&mut rig);
            (going, [rig.add("b", &[(0x10, 0)]), rig.add("c", &[(0x11, 0)])])
        } else {
            let mates = [rig.add("b", &[(0x10, 0)]), rig.add("c", &[(0x11, 0)])];
            (wide(&mut rig), mates)
        };
        let gone = going.key();
        rig.driver.on(PUBLISH, move |service| drop(service.remove(gone).unwrap()));
        for (name, id, n) in [("d", 0x10, 0_usize), ("e", 0x11, 1)] {
            let late = rig.bench.spec(name, &[(id, 0)]);
            let late = rig.service.add(late.clone()).or_else(|_| rig.service.add(late)).unwrap();
            assert_eq!(rig.group(&mates[n]), rig.group(&late), "{first} {name}");
        }
    }
}

#[test]
fn c9_a_device_that_was_made_ready_for_an_instance_that_went_is_not_added_to_the_next() {
    for forced in [false, true] {
        let mut rig = Rig::new();
        let spec = rig.bench.spec("a", &[(0x10, 0)]);
        let new = rig.service.new_device(spec.clone()).unwrap();
        let end = |rig: &Rig| {
            if forced { rig.service.force_unregister_iommu(SMMU) } else { rig.service.unregister_iommu(SMMU) }.unwrap();
        };
        end(&rig);
        let smmu = rig.again();
        rig.service.register_iommu(smmu).unwrap();
        let error = rig.service.add_new(new).unwrap_err();
        assert_eq!(error.cause, Cause::ProviderMissing(SMMU), "forced {forced}");
        let device = rig.service.add(spec).unwrap();
        rig.service.assign(&device, &rig.domains[0]).unwrap();
        assert!(matches!(rig.bench.dma(0x10), Reached::Memory(_)), "forced {forced}");
    }
}

#[test]
fn c19_an_add_that_met_who_has_gone_unheard_does_not_sleep() {
    let mut rig = Rig::new();
    let gone = rig.add("a", &[(0x10, 0)]);
    rig.service.remove(gone.key()).unwrap();
    *rig.driver.meets.lock().unwrap() = Some(gone.id());
    let spec = rig.bench.spec("b", &[(0x10, 0)]);
    rig.service.wait(None, |service| service.add(spec.clone())).unwrap();
}

#[test]
fn c4_who_met_an_add_before_it_was_registered_is_woken_as_soon_as_it_is() {
    let met: Arc<OnceLock<u64>> = Arc::default();
    let (seen, asked) = (met.clone(), Arc::new(OnceLock::new()));
    let heard = asked.clone();
    let mut rig = Rig::asking(move |_, request| {
        if request.device.label().to_string() == "b" {
            let _ = heard.set(WAKES.get() > *seen.get().unwrap());
        }
        true
    });
    let owner = rig.add("a", &[(0x10, 0)]);
    rig.service.assign(&owner, &rig.domains[0]).unwrap();
    let late = rig.bench.spec("c", &[(0x10, 0)]);
    rig.driver.on(PUBLISH, move |service| {
        let before = WAKES.get();
        let error = service.add(late).unwrap_err();
        assert_eq!(error.cause, Cause::Busy { running: Operation::Add });
        assert_eq!(WAKES.get(), before, "it would try without end, instead of sleeping");
        met.set(before).unwrap();
    });
    rig.add("b", &[(0x10, 0)]);
    assert_eq!(asked.get(), Some(&true), "its hooks may wait for what the other one holds");
}

#[test]
fn c2_c15_a_domain_that_is_being_left_is_busy_and_not_in_use() {
    // The IOMMUs have cut the device off already: who forced one out of service now would be too late to stop the move, so
    // that nobody may be told that the device still is where it was.
    let mut rig = Rig::new();
    let seen: Arc<Mutex<Vec<Cause>>> = Arc::default();
    let (way, left, noted) = (rig.way.clone(), rig.domains[0].clone(), seen.clone());
    let ask = move |_: &HookContext<'_>| {
        let refused = way.service().unwrap().destroy_domain(&left).unwrap_err();
        noted.lock().unwrap().push(refused.cause);
        Ok(())
    };
    let mut spec = rig.bench.spec("a", &[(0x10, 0)]);
    spec.hooks = Arc::new(Hooks::new().reset(ask));
    let device = rig.service.add(spec).unwrap();
    let [old, new] = &rig.domains;
    rig.service.assign(&device, old).unwrap();
    assert_eq!(rig.service.destroy_domain(old).unwrap_err().cause, Cause::InUse { devices: 1 });
    rig.service.reassign(&device, new).unwrap();
    assert_eq!(*seen.lock().unwrap(), [Cause::Busy { running: Operation::Reassign }]);
    rig.service.destroy_domain(old).unwrap();
}

#[test]
fn i11_the_policy_is_asked_though_the_one_that_was_met_has_left_the_owner() {
    for cut_inside in [false, true] {
        let mut rig = Rig::asking(|_, request| request.device.label().to_string() != "c");
        let [one, two] = ["a", "b"].map(|name| rig.add(name, &[(0x10, 0)]));
        for device in [&one, &two] {
            rig.service.assign(device, &rig.domains[0]).unwrap();
        }
        let inside = one.enter::<Host>().filter(|_| cut_inside);
        let left = one.clone();
        rig.driver.on(PUBLISH, move |service| {
            if cut_inside {
                service.remove(left.key()).unwrap_err();
            } else {
                drop(service.deassign(&left).unwrap());
            }
        });
        let late = rig.bench.spec("c", &[(0x10, 0)]);
        let error = rig.service.add(late).unwrap_err();
        assert!(matches!(error.cause, Cause::GroupConflict { .. }), "{error}");
        assert!(matches!(rig.bench.dma(0x10), Reached::Memory(_)), "the other one keeps it live");
        drop(inside);
    }
}

#[test]
fn c2_c5_a_child_whose_add_may_still_fail_is_no_child_yet() {
    let (seen, bridge) = (Arc::new(Mutex::new(Vec::new())), Arc::new(OnceLock::<DeviceKey>::new()));
    let (noted, parent) = (seen.clone(), bridge.clone());
    let mut rig = Rig::asking(move |service, request| {
        let shares = matches!(request.why, Why::Shares { .. });
        if shares {
            noted.lock().unwrap().push(service.remove(*parent.get().unwrap()).unwrap_err().cause);
        }
        !shares
    });
    let parent = rig.add("a", &[(0x10, 0)]);
    bridge.set(parent.key()).unwrap();
    let owner = rig.add("b", &[(0x11, 0)]);
    rig.service.assign(&owner, &rig.domains[0]).unwrap();
    let child = rig.bench.spec("c", &[(0x11, 0)]);
    let error = rig.service.add(DeviceSpec { parent: Some(parent.key()), ..child }).unwrap_err();
    assert!(matches!(error.cause, Cause::GroupConflict { .. }), "{error}");
    assert_eq!(*seen.lock().unwrap(), [Cause::Busy { running: Operation::Add }], "it never had a child");
    rig.service.remove(parent.key()).unwrap();
}

/// A listener that forces the SMMU out of service when it hears of a device.
struct Forcing(Way);

impl std::fmt::Debug for Forcing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Forcing")
    }
}

impl EventSink for Forcing {
    fn event(&self, event: &Event) {
        if let (Event::Added { .. }, Some(service)) = (event, self.0.service()) {
            service.force_unregister_iommu(SMMU).unwrap();
        }
    }
}

#[test]
fn c9_c15_an_add_that_a_forced_unregister_has_overtaken_has_no_iommu() {
    let mut bench = Bench::with_policy(Box::new(Anyone));
    let smmu = bench.smmu(SMMU, Config::generic_v2());
    let way = Way::new();
    let service = Arc::new(Service::with_events(Box::new(Anyone), Box::new(Forcing(way.clone()))));
    way.lead_to(&service);
    service.register_iommu(smmu).unwrap();
    let spec = bench.spec("a", &[(0x10, 0)]);
    let key = spec.key;
    let error = service.add(spec).unwrap_err();
    assert_eq!(error.cause, Cause::ProviderMissing(SMMU), "nobody has seen it before its SMMU went");
    assert!(service.find(key).is_none());
}
