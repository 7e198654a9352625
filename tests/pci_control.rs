//! What keeps a function quiet while it changes owners.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::cell::RefCell;

use iommu_assign::pci::control::{ControlError, Progress, Quiesce, Reset, Service, turn_translation_services_off};
use iommu_assign::pci::fake::{FakeConfigSpace, FakeFunction};
use iommu_assign::pci::{AcsControls, Capabilities, ConfigError, ConfigSpace, FunctionConfig, PortType, Sbdf};

fn here() -> Sbdf {
    "00:02.0".parse().unwrap()
}

fn endpoint() -> FakeFunction {
    FakeFunction::endpoint(0x8086, 0x10d3, 0x02_0000).express(PortType::Endpoint)
}

fn space(function: FakeFunction) -> FakeConfigSpace {
    let mut space = FakeConfigSpace::new();
    space.insert(here(), function);
    space
}

/// All registers but those that a read changes.
fn snapshot(space: &FakeConfigSpace) -> Vec<u32> {
    let function = space.function(here()).unwrap();
    (0..4096).step_by(4).map(|offset| function.peek(offset)).collect()
}

#[test]
fn s_7_translation_services_go_off_and_nothing_else_changes() {
    let space = space(endpoint().ats().pri().pasid());
    let config = FunctionConfig::new(&space, here()).unwrap();
    let before = snapshot(&space);
    let capabilities = Capabilities::read(&config).unwrap();
    assert!(capabilities.ats.unwrap().enabled && capabilities.pri.unwrap().enabled);
    turn_translation_services_off(&config, &capabilities).unwrap();
    let after = Capabilities::read(&config).unwrap();
    assert!(!after.ats.unwrap().enabled && !after.pri.unwrap().enabled && !after.pasid.unwrap().enabled);
    let changed: u32 = before.iter().zip(snapshot(&space)).map(|(old, new)| (old ^ new).count_ones()).sum();
    assert_eq!(changed, 3);
    let accesses = space.accesses();
    turn_translation_services_off(&config, &after).unwrap();
    assert!(space.accesses() > accesses, "what is off already is looked at again");
}

#[test]
fn s_7_a_function_that_cannot_turn_ats_off_is_refused() {
    let space = space(endpoint().stuck_ats());
    let config = FunctionConfig::new(&space, here()).unwrap();
    let capabilities = Capabilities::read(&config).unwrap();
    let refused = ControlError::StaysOn { function: here(), service: Service::Ats };
    assert_eq!(turn_translation_services_off(&config, &capabilities), Err(refused));
    assert_eq!(refused.to_string(), "0000:00:02.0 does not turn ATS off");
}

#[test]
fn bus_mastering_goes_off_and_pending_transactions_are_waited_for() {
    let space = space(endpoint());
    space.write(here(), 4, 0x0006);
    let config = FunctionConfig::new(&space, here()).unwrap();
    let capabilities = Capabilities::read(&config).unwrap();
    space.function(here()).unwrap().set_pending(2);
    let mut quiesce = Quiesce::begin(&config, &capabilities, 10).unwrap();
    assert_eq!(space.read(here(), 4) & 0xffff, 0x0002);
    let steps = [quiesce.step(&config), quiesce.step(&config), quiesce.step(&config)];
    assert_eq!(steps, [Ok(Progress::Waiting), Ok(Progress::Waiting), Ok(Progress::Done)]);

    space.function(here()).unwrap().set_pending(u32::MAX);
    let mut stuck = Quiesce::begin(&config, &capabilities, 3).unwrap();
    assert!((0..3).all(|_| stuck.step(&config) == Ok(Progress::Waiting)));
    assert_eq!(stuck.step(&config), Err(ControlError::StillPending { function: here() }));
}

#[test]
fn status_bits_that_a_one_clears_survive() {
    let space = space(endpoint().broken(4, 0xf810_0006));
    let config = FunctionConfig::new(&space, here()).unwrap();
    let capabilities = Capabilities::read(&config).unwrap();
    let _ = Quiesce::begin(&config, &capabilities, 1).unwrap();
    assert_eq!(space.read(here(), 4), 0xf810_0002);
}

/// Passes accesses on and keeps what is written.
struct Log<'a> {
    space: &'a FakeConfigSpace,
    writes: RefCell<Vec<(u16, u32)>>,
}

impl ConfigSpace for Log<'_> {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        self.space.read(function, offset)
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        self.writes.borrow_mut().push((offset, value));
        self.space.write(function, offset, value);
    }
}

#[test]
fn a_reset_is_asked_for_once_and_clears_no_status() {
    // A function that wrongly reads the reset bit as set, with errors waiting to be reported.
    let function = endpoint();
    let control = function.last_capability() + 8;
    let space = space(function.broken(control, 0x000f_8000));
    space.write(here(), 4, 0x0006);
    let log = Log { space: &space, writes: RefCell::default() };
    let config = FunctionConfig::new(&log, here()).unwrap();
    let capabilities = Capabilities::read(&config).unwrap();
    let mut reset = Reset::begin(&config, &capabilities, 1).unwrap();
    assert_eq!(log.writes.take(), [(control, 0x8000)]);
    assert_eq!(reset.step(&log), Ok(Progress::Done));
    let again = log.writes.take().into_iter().find(|(offset, _)| *offset == control);
    assert_eq!(again, Some((control, 0)));
    assert_eq!(space.read(here(), 4) & 0xffff, 0x0002, "bus mastering stays off even if it was not turned off before");
}

#[test]
fn a_reset_comes_back_with_its_addresses_and_without_bus_mastering() {
    let space = space(endpoint().ats().slow_reset(2));
    space.write(here(), 0x04, 0x0006);
    space.write(here(), 0x10, 0x4000_0000);
    space.write(here(), 0x3c, 0x2a);
    let config = FunctionConfig::new(&space, here()).unwrap();
    let capabilities = Capabilities::read(&config).unwrap();
    let control = capabilities.express.unwrap().device_control();
    space.write(here(), control, 0x2810);
    turn_translation_services_off(&config, &capabilities).unwrap();
    let _ = Quiesce::begin(&config, &capabilities, 1).unwrap();

    let mut reset = Reset::begin(&config, &capabilities, 5).unwrap();
    assert_eq!(space.function(here()).unwrap().peek(0x10), 0, "the fake lost it");
    assert_eq!(reset.step(&space), Ok(Progress::Waiting));
    assert_eq!(reset.step(&space), Ok(Progress::Waiting));
    assert_eq!(reset.step(&space), Ok(Progress::Done));
    assert_eq!((space.read(here(), 0x10), space.read(here(), 0x3c)), (0x4000_0000, 0x2a));
    assert_eq!((space.read(here(), 4) & 0xffff, space.read(here(), control)), (0x0002, 0x2810));
}

#[test]
fn i_11_access_control_comes_back_from_a_reset_before_the_function_can_send() {
    let controls = AcsControls::all() - AcsControls::EGRESS_CONTROL;
    let space = space(endpoint().acs(AcsControls::all(), controls));
    let config = FunctionConfig::new(&space, here()).unwrap();
    let capabilities = Capabilities::read(&config).unwrap();
    assert_eq!(capabilities.acs.unwrap().enabled, controls);
    let mut reset = Reset::begin(&config, &capabilities, 1).unwrap();
    assert!(Capabilities::read(&config).unwrap().acs.unwrap().enabled.is_empty(), "the fake lost it");
    assert_eq!(reset.step(&space), Ok(Progress::Done));
    assert_eq!(Capabilities::read(&config).unwrap().acs.unwrap().enabled, controls);
}

#[test]
fn a_reset_gives_no_base_address_another_size() {
    let space = space(endpoint().resizable_bar(5));
    let config = FunctionConfig::new(&space, here()).unwrap();
    let capabilities = Capabilities::read(&config).unwrap();
    let control = capabilities.resizable.unwrap().offset + 8;
    let before = config.read(control);
    let mut reset = Reset::begin(&config, &capabilities, 1).unwrap();
    assert_ne!(config.read(control), before, "the fake lost it");
    assert_eq!(reset.step(&space), Ok(Progress::Done));
    assert_eq!(config.read(control), before);
}

#[test]
fn i_11_access_control_that_does_not_come_back_fails_the_reset() {
    // What a reset loses on such a part cannot be written back.
    let function = endpoint().stuck_acs(AcsControls::all());
    let space = space(function);
    let config = FunctionConfig::new(&space, here()).unwrap();
    let capabilities = Capabilities::read(&config).unwrap();
    let mut reset = Reset::begin(&config, &capabilities, 1).unwrap();
    assert_eq!(reset.step(&space), Err(ControlError::AccessControlLost { function: here() }));
}

#[test]
fn a_reset_that_never_ends_is_an_error() {
    let space = space(endpoint().slow_reset(u32::MAX));
    let config = FunctionConfig::new(&space, here()).unwrap();
    let capabilities = Capabilities::read(&config).unwrap();
    let mut reset = Reset::begin(&config, &capabilities, 2).unwrap();
    let steps = [reset.step(&space), reset.step(&space), reset.step(&space)];
    assert_eq!(
        steps,
        [Ok(Progress::Waiting), Ok(Progress::Waiting), Err(ControlError::ResetTimeout { function: here() })]
    );
}

#[test]
fn what_cannot_be_reset_alone_says_so() {
    let cases = [
        endpoint().without_reset(),
        FakeFunction::endpoint(0x10ec, 0x8139, 0x02_0000),
        FakeFunction::bridge(0x1b36, 0xc, 0, 1, 1).express(PortType::RootPort),
    ];
    for function in cases {
        let space = space(function);
        let before = snapshot(&space);
        let config = FunctionConfig::new(&space, here()).unwrap();
        let capabilities = Capabilities::read(&config).unwrap();
        assert_eq!(Reset::begin(&config, &capabilities, 1), Err(ControlError::NoReset { function: here() }));
        assert_eq!(snapshot(&space), before);
    }
}

#[test]
fn a_6_a_function_that_is_gone_never_counts_as_quiet() {
    let gone = ControlError::Config(ConfigError::NotPresent { function: here() });
    let make = || space(endpoint().ats());
    let whole = make();
    let config = FunctionConfig::new(&whole, here()).unwrap();
    let capabilities = Capabilities::read(&config).unwrap();
    whole.remove(here());
    assert_eq!(FunctionConfig::new(&whole, here()).unwrap_err(), ConfigError::NotPresent { function: here() });
    assert_eq!(turn_translation_services_off(&config, &capabilities), Err(gone));
    assert_eq!(Quiesce::begin(&config, &capabilities, 1), Err(gone));
    assert_eq!(Reset::begin(&config, &capabilities, 1), Err(gone));
}

#[test]
fn a_6_a_function_that_vanishes_midway_never_counts_as_quiet() {
    let gone = ControlError::Config(ConfigError::NotPresent { function: here() });
    let run = |space: &FakeConfigSpace, accesses: u32| {
        let config = FunctionConfig::new(space, here()).unwrap();
        let capabilities = Capabilities::read(&config).unwrap();
        let before = space.accesses();
        space.vanish_after(accesses);
        let result = turn_translation_services_off(&config, &capabilities)
            .and_then(|()| Quiesce::begin(&config, &capabilities, 1))
            .and_then(|mut quiesce| quiesce.step(&config));
        (result, space.accesses() - before)
    };
    let make = || space(endpoint().ats().pri().pasid());
    let (whole, needed) = run(&make(), 1000);
    assert_eq!(whole, Ok(Progress::Done));
    for accesses in 0..needed {
        assert_eq!(run(&make(), accesses).0, Err(gone), "after {accesses} of {needed}");
    }
    assert_eq!(run(&make(), needed).0, Ok(Progress::Done));
}

/// Answers all ones once at one place, as while one card is pulled and another comes.
struct Flickers {
    space: FakeConfigSpace,
    at: u16,
    left: std::cell::Cell<u32>,
}

impl ConfigSpace for Flickers {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        // From the first answer of all ones on, the vendor ID is gone too.
        let left = self.left.get();
        if offset == self.at && left == 1 || offset == 0 && left == 0 {
            self.left.set(0);
            return u32::MAX;
        }
        self.space.read(function, offset)
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        self.space.write(function, offset, value);
    }
}

#[test]
fn a_6_a_service_that_reads_as_all_ones_is_not_written_before_the_function_has_answered() {
    let function = endpoint().ats();
    let at = function.last_extended_capability() + 4;
    let whole = space(function);
    let capabilities = Capabilities::read(&FunctionConfig::new(&whole, here()).unwrap()).unwrap();
    let flickers = Flickers { space: whole, at, left: std::cell::Cell::new(1) };
    let config = FunctionConfig::new(&flickers, here()).unwrap();
    let before = snapshot(&flickers.space);
    let gone = ControlError::Config(ConfigError::NotPresent { function: here() });
    assert_eq!(turn_translation_services_off(&config, &capabilities), Err(gone));
    assert_eq!(snapshot(&flickers.space), before, "nothing was written");
}

#[test]
fn every_reason_of_a_hook_is_in_the_document() {
    let document = include_str!("../docs/pci.md");
    let function = here();
    let errors = [
        ControlError::Config(ConfigError::NotPresent { function }),
        ControlError::Config(ConfigError::NotReady { function }),
        ControlError::Config(ConfigError::CapabilityLoop { function, offset: 0x40 }),
        ControlError::StaysOn { function, service: Service::BusMaster },
        ControlError::StaysOn { function, service: Service::Ats },
        ControlError::StillPending { function },
        ControlError::NoReset { function },
        ControlError::AccessControlLost { function },
        ControlError::RenumbersOthers { function },
        ControlError::ResetTimeout { function },
        ControlError::OutOfMemory { function },
    ];
    for error in errors {
        assert!(document.contains(&format!("| `{}` |", error.short())), "docs/pci.md lacks: {}", error.short());
        assert!(error.to_string().contains("0000:00:02.0"), "{error}");
    }
}
