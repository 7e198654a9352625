//! The standard hooks of a function: quiet, then reset, by each method and in its times (contract S-7, A-6).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

mod common;

use std::cell::{Cell, RefCell};
use std::sync::{Arc, Mutex};

use common::{Bench, SMMU};
use iommu_assign::assign::{Cause, Device, DeviceHooks, DeviceState, Error};
use iommu_assign::pci::control::{ControlError, ResetMethod, Service as Turned};
use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
use iommu_assign::pci::{
    AcsControls, Bus, ConfigSpace, Delay, Enumeration, FunctionHooks, HostBridge, HostBridgeNumber, MapEntry, PortType,
    Provider, RequesterIdMap, Sbdf, Segment, enumerate,
};
use iommu_assign::sync::{Micros, Platform, Spin};
use machine::Reached;

thread_local! {
    /// How long each wait was.
    static WAITS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
    static NOW: Cell<u64> = const { Cell::new(0) };
}

fn sleep(time: Micros) {
    WAITS.with_borrow_mut(|waits| waits.push(time.value()));
}

const SLEEPING: Delay = Delay::sleeping(sleep);

fn port() -> Sbdf {
    "00:01.0".parse().unwrap()
}

fn here() -> Sbdf {
    "01:00.0".parse().unwrap()
}

fn beside() -> Sbdf {
    "01:00.1".parse().unwrap()
}

/// Any function without a capability, and its capabilities one by one.
fn endpoint() -> FakeFunction {
    FakeFunction::endpoint(0x8086, 0x10d3, 0x02_0000)
}

fn express() -> FakeFunction {
    endpoint().express(PortType::Endpoint)
}

/// What an access was: a write if there is a value.
type Access = (Sbdf, u16, Option<u32>);

/// A space that notes writes, and that nothing may be written to once it has shown to be gone.
#[derive(Debug, Default)]
struct Watched {
    space: FakeConfigSpace,
    writes: Mutex<Vec<Access>>,
    /// Who has read as all ones, and not as present since.
    doubted: Mutex<Vec<Sbdf>>,
    /// Writes to such a function. A panic in a hook would be taken for the hook's failure.
    stray: Mutex<Vec<Access>>,
}

impl ConfigSpace for Watched {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        let value = self.space.read(function, offset);
        let mut doubted = self.doubted.lock().unwrap();
        if value == u32::MAX {
            doubted.push(function);
        } else if offset == 0 {
            doubted.retain(|other| *other != function);
        }
        value
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        if self.doubted.lock().unwrap().contains(&function) {
            self.stray.lock().unwrap().push((function, offset, Some(value)));
        }
        self.writes.lock().unwrap().push((function, offset, Some(value)));
        self.space.write(function, offset, value);
    }
}

/// A function that is registered and assigned to a guest, with its hooks.
struct Rig {
    space: Arc<Watched>,
    bench: Bench,
    device: Device,
    hooks: Arc<FunctionHooks<Arc<Watched>>>,
}

fn host() -> HostBridge {
    let entry = MapEntry::new(0, Provider::Smmu(SMMU), 0, 0x1_0000);
    HostBridge {
        number: HostBridgeNumber(0),
        segment: Segment(0),
        buses: Bus(0)..=Bus(1),
        map: RequesterIdMap::new([entry], RequesterIdMap::NO_MASK).unwrap(),
        passthrough: false,
    }
}

fn space(functions: impl IntoIterator<Item = (Sbdf, FakeFunction)>) -> Arc<Watched> {
    let mut space = Watched::default();
    let bridge = FakeFunction::bridge(0x1b36, 0xc, 0, 1, 1).express(PortType::RootPort);
    space.space.insert(port(), bridge.acs(AcsControls::all(), AcsControls::all()));
    for (at, function) in functions {
        space.space.insert(at, function);
    }
    Arc::new(space)
}

fn found(space: &Watched) -> Enumeration {
    enumerate(&space.space, &host()).unwrap()
}

impl Rig {
    fn new(function: FakeFunction) -> Self {
        Self::with(space([(here(), function)]), |hooks| hooks)
    }

    fn with(
        space: Arc<Watched>,
        change: impl FnOnce(FunctionHooks<Arc<Watched>>) -> FunctionHooks<Arc<Watched>>,
    ) -> Self {
        let mut bench = Bench::v2();
        let found = found(&space);
        let function = found.functions.iter().find(|function| function.sbdf == here()).unwrap();
        let hooks = Arc::new(change(FunctionHooks::new(space.clone(), function, &found, SLEEPING).unwrap()));
        let mut spec = function.spec(&host(), &found).unwrap();
        spec.parent = None;
        spec.isolation = None;
        spec.hooks = hooks.clone();
        let device = bench.service.add(spec).unwrap();
        let guest = bench.guest("A");
        bench.assign(&device, &guest).unwrap();
        // As a guest leaves it: all decoded, sending, with addresses.
        space.space.write(here(), 0x10, 0x4000_0000);
        space.space.write(here(), 0x04, 0x0006);
        WAITS.take();
        space.writes.lock().unwrap().clear();
        Self { space, bench, device, hooks }
    }

    fn deassign(&mut self) -> Result<(), Error> {
        self.bench.deassign(&self.device).map(drop)
    }

    fn waits(&self) -> Vec<u64> {
        WAITS.take().into_iter().map(|micros| micros / 1000).collect()
    }

    fn is_quarantined(&self) -> bool {
        matches!(self.bench.state(&self.device), DeviceState::Quarantined(_))
    }
}

#[test]
fn s_7_each_method_is_used_where_the_ones_before_it_are_missing() {
    let cases = [
        (express().power_management(true), ResetMethod::FunctionLevel, vec![100]),
        (endpoint().advanced_features().power_management(true), ResetMethod::AdvancedFeatures, vec![100]),
        (express().without_reset().power_management(true), ResetMethod::Power, vec![10, 10]),
        (express().without_reset().power_management(false), ResetMethod::Bus, vec![2, 100]),
        (endpoint(), ResetMethod::Bus, vec![2, 100]),
    ];
    for (function, method, waits) in cases {
        let mut rig = Rig::new(function);
        rig.deassign().unwrap();
        assert_eq!(rig.hooks.last_reset(), Some(method));
        assert_eq!(rig.waits(), waits, "{method:?}");
        let config = |offset| rig.space.space.read(here(), offset);
        assert_eq!(
            (config(0x10), config(0x04) & 0xffff),
            (0x4000_0000, 0x0002),
            "{method:?}: put back, and not sending"
        );
        assert_eq!(rig.space.space.read(port(), 0x3c), 0, "the bus is not left in reset");
        assert!(!rig.hooks.in_transition());
    }
}

#[test]
fn s_7_what_is_pending_is_waited_for_and_a_slow_reset_too() {
    let mut rig = Rig::new(express().slow_reset(3));
    rig.space.space.function(here()).unwrap().set_pending(2);
    rig.deassign().unwrap();
    // Two looks at what is pending; 100 ms without a look, then three without an answer.
    assert_eq!(rig.waits(), [1, 1, 100, 1, 1, 1]);

    let mut rig = Rig::new(endpoint().advanced_features());
    rig.space.space.function(here()).unwrap().set_pending(1);
    rig.deassign().unwrap();
    assert_eq!(rig.waits(), [1, 100], "conventional functions can say so by advanced features");
}

#[test]
fn s_7_transactions_that_stay_pending_quarantine_and_the_next_assign_tries_again() {
    let mut rig = Rig::new(express());
    rig.space.space.function(here()).unwrap().set_pending(u32::MAX);
    let error = rig.deassign().unwrap_err();
    assert!(matches!(error.cause, Cause::Hook { .. }), "{error}");
    assert!(error.to_string().contains("transactions stay pending"), "{error}");
    assert!(rig.is_quarantined() && rig.hooks.in_transition());
    let guest = rig.bench.guest("B");
    assert!(rig.bench.assign(&rig.device, &guest).is_err());
    rig.space.space.function(here()).unwrap().set_pending(0);
    rig.bench.assign(&rig.device, &guest).unwrap();
    assert!(!rig.hooks.in_transition());
}

#[test]
fn i_8_a_function_that_does_not_come_back_is_reset_by_its_bus_and_else_stays_in_quarantine() {
    let slow = || express().slow_reset(1001);
    // The bus reset makes the fake slow anew: it never answers in a second.
    let mut rig = Rig::new(slow());
    let error = rig.deassign().unwrap_err();
    assert!(error.to_string().contains("did not come back from its reset"), "{error}");
    let waits = rig.waits();
    assert_eq!((waits[0], waits[1001], waits[1002]), (100, 2, 100), "function first, then bus");
    assert!(rig.is_quarantined());
    let toggled: Vec<_> =
        rig.space.writes.lock().unwrap().iter().filter(|access| access.0 == port()).copied().collect();
    assert_eq!(toggled, [(port(), 0x3c, Some(1 << 22)), (port(), 0x3c, Some(0))]);
    assert!(rig.hooks.in_transition());
}

#[test]
fn i_11_a_bus_with_another_function_is_not_reset() {
    let space = space([(here(), endpoint().multi_function()), (beside(), endpoint())]);
    let mut rig = Rig::with(space, |hooks| hooks);
    rig.space.space.write(beside(), 0x10, 0x5000_0000);
    let error = rig.deassign().unwrap_err();
    assert!(error.to_string().contains("the function has no reset of its own"), "{error}");
    assert_eq!(rig.space.space.read(beside(), 0x10), 0x5000_0000);
    assert!(rig.space.writes.lock().unwrap().iter().all(|access| access.0 == here()));
}

#[test]
fn c_8_a_slot_for_hot_plug_is_not_reset() {
    // A reset takes the link down, which the slot's handler would take for a removal.
    let mut space = Watched::default();
    let bridge = FakeFunction::bridge(0x1b36, 0xc, 0, 1, 1).express(PortType::RootPort);
    let express_at = bridge.last_capability();
    let kind = bridge.peek(express_at) | 1 << 24;
    let bridge = bridge.broken(express_at, kind).broken(express_at + 0x14, 1 << 6);
    space.space.insert(port(), bridge);
    space.space.insert(here(), endpoint());
    let mut rig = Rig::with(Arc::new(space), |hooks| hooks);
    assert!(rig.deassign().unwrap_err().to_string().contains("the function has no reset of its own"));
}

#[test]
fn s_7_what_an_owner_changed_is_as_it_was_before_and_what_the_hypervisor_changed_stays() {
    let function = express();
    let control = function.last_capability() + 8;
    let mut rig = Rig::new(function);
    let space = rig.space.clone();
    let config = &space.space;
    config.write(here(), control, 0x2810);
    config.write(here(), 0x14, 0x6000_0000);
    rig.deassign().unwrap();
    assert_eq!(config.read(here(), control), 0, "the owner's payload size is gone");
    assert_eq!(config.read(here(), 0x14), 0x6000_0000, "only the hypervisor moves base addresses");
}

#[test]
fn s_7_a_function_that_sleeps_is_woken_with_its_addresses() {
    let function = express().power_management(true);
    let power = function.last_capability() + 4;
    let mut rig = Rig::new(function);
    rig.space.space.write(here(), power, 3);
    rig.deassign().unwrap();
    assert_eq!(rig.waits(), [10, 100]);
    assert_eq!((rig.space.space.read(here(), 0x10), rig.space.space.read(here(), power) & 3), (0x4000_0000, 0));
}

#[test]
fn s_7_ats_is_off_from_the_beginning_and_a_function_that_keeps_it_gets_no_hooks() {
    let space_with = |function| space([(here(), function)]);
    let make = |space: &Arc<Watched>| {
        let found = found(space);
        let function = found.functions.iter().find(|function| function.sbdf == here()).unwrap();
        FunctionHooks::new(space.clone(), function, &found, SLEEPING).map(drop)
    };
    let space = space_with(express().ats().pri().pasid());
    make(&space).unwrap();
    assert_eq!(space.writes.lock().unwrap().len(), 3);
    let stuck = space_with(express().stuck_ats());
    let error = make(&stuck).unwrap_err();
    assert_eq!(error, ControlError::StaysOn { function: here(), service: Turned::Ats });
}

#[test]
fn a_function_without_a_reset_is_refused_a_second_owner_unless_the_caller_vouches_for_it() {
    let lone = || space([(here(), endpoint().multi_function()), (beside(), endpoint())]);
    assert!(Rig::with(lone(), |hooks| hooks).deassign().is_err());
    let mut rig = Rig::with(lone(), FunctionHooks::without_reset);
    rig.deassign().unwrap();
    assert_eq!(rig.hooks.last_reset(), None);
    assert_eq!(rig.space.space.read(here(), 4) & 4, 0, "it is quiet all the same");
}

#[test]
fn a_bridge_is_left_as_it_is() {
    let space = space([]);
    let found = found(&space);
    let hooks = FunctionHooks::new(space.clone(), &found.functions[0], &found, SLEEPING).unwrap();
    space.space.write(port(), 4, 0x0006);
    let mut bench = Bench::v2();
    let mut spec = found.functions[0].spec(&host(), &found).unwrap();
    spec.hooks = Arc::new(hooks);
    let device = bench.service.add(spec).unwrap();
    let guest = bench.guest("A");
    bench.assign(&device, &guest).unwrap();
    let _ = bench.deassign(&device).unwrap();
    assert_eq!(space.space.read(port(), 4) & 0xffff, 0x0006, "what is below still reaches memory");
    assert_eq!(space.writes.lock().unwrap().len(), 0);
}

#[test]
fn a_6_whenever_a_function_goes_nothing_is_written_to_it_any_more_and_it_is_not_ready_for_another_owner() {
    let full = || express().acs(AcsControls::all(), AcsControls::all()).ats().pri().pasid().resizable_bar(3);
    // The latencies that it tolerates.
    let full = || full().extended(0x18, 1, &[0x10, 0, 0x10, 0]);
    // Registers that are all ones while the function is there: they tell nothing.
    let ones = AcsControls::from_bits_retain(0xffff);
    let lying = || express().acs(ones, ones).resizable_bar(3).broken(0x14, u32::MAX).broken(0x0c, 0x0000_ffff);
    let conventional = || endpoint().power_management(true);
    every_access_is_the_last(|| Rig::new(full()), 60);
    every_access_is_the_last(|| Rig::new(lying()), 30);
    every_access_is_the_last(|| Rig::new(conventional()), 30);
    every_access_is_the_last(|| Rig::new(endpoint()), 30);
}

/// Deassigns a function again and again, which goes one access later each time. `Watched` looks at each write.
fn every_access_is_the_last(make: impl Fn() -> Rig, least: u32) {
    let mut whole = make();
    let before = whole.space.space.accesses();
    whole.deassign().unwrap();
    let needed = whole.space.space.accesses() - before;
    assert!(needed > least, "{needed}");
    for accesses in 0..needed {
        let mut rig = make();
        rig.space.space.vanish_after(accesses);
        assert!(rig.deassign().is_err(), "after {accesses} of {needed}");
        assert!(rig.is_quarantined());
        assert_eq!(*rig.space.stray.lock().unwrap(), [], "after {accesses} of {needed}");
        let stream = rig.device.streams()[0];
        assert_eq!(rig.bench.machine.dma_write(stream.iommu(), stream.id(), common::PAGE), Some(Reached::Fault));
    }
}

/// What a reset loses is put back by the next one where it could not be by this one: whoever owns the function then relies on it.
#[test]
fn i_14_what_a_failed_reset_has_lost_is_back_after_the_next_one() {
    let all = AcsControls::all();
    let mut failed = 0;
    for accesses in 0.. {
        let mut rig = Rig::new(express().acs(all, all).power_management(true));
        let space = rig.space.clone();
        space.space.vanish_after(accesses);
        let is_done = rig.deassign().is_ok();
        space.space.vanish_after(1 << 20);
        let guest = rig.bench.guest("B");
        rig.bench.assign(&rig.device, &guest).unwrap();
        let function = space.space.function(here()).unwrap();
        let access_control = function.peek(function.last_extended_capability() + 4) >> 16;
        assert_eq!(access_control, all.bits().into(), "gone after {accesses}");
        assert_eq!(function.peek(0x10), 0x4000_0000, "gone after {accesses}");
        if is_done {
            break;
        }
        failed += 1;
    }
    assert!(failed > 30, "{failed}");

    // What cannot be put back at all does not become right by being tried again.
    let mut rig = Rig::new(express().stuck_acs(all));
    let guest = rig.bench.guest("B");
    for error in [rig.deassign().unwrap_err(), rig.bench.assign(&rig.device, &guest).unwrap_err()] {
        assert!(error.to_string().contains("access control did not come back from the reset"), "{error}");
        assert!(rig.is_quarantined());
    }
}

/// A clock that goes on by a millisecond whenever it is looked at.
#[derive(Debug)]
enum Clocked {}

impl Platform for Clocked {
    type Lock = <Spin as Platform>::Lock;
    type Sharing = <Spin as Platform>::Sharing;

    fn barrier() {}

    fn now() -> Option<Micros> {
        NOW.set(NOW.get() + 1000);
        Some(Micros::new(NOW.get()))
    }
}

#[test]
fn time_is_the_platforms_and_a_platform_without_a_clock_must_bring_a_sleep() {
    assert!(Delay::spinning::<Spin>().is_none());
    let delay = Delay::spinning::<Clocked>().unwrap();
    let space = space([(here(), express())]);
    let found = found(&space);
    let function = found.functions.iter().find(|function| function.sbdf == here()).unwrap();
    let hooks: Arc<dyn DeviceHooks> = Arc::new(FunctionHooks::new(space, function, &found, delay).unwrap());
    let mut bench = Bench::v2();
    let mut spec = function.spec(&host(), &found).unwrap();
    (spec.parent, spec.hooks) = (None, hooks);
    let device = bench.service.add(spec).unwrap();
    let guest = bench.guest("A");
    bench.assign(&device, &guest).unwrap();
    let before = NOW.get();
    let _ = bench.deassign(&device).unwrap();
    let passed = (NOW.get() - before) / 1000;
    assert!((100..110).contains(&passed), "{passed} ms");
}
