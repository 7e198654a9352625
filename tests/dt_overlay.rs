//! Overlays applied to a running service and reverted (contract, C-5, C-8, C-9, C-18).

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

mod common;
#[path = "dt_support/builder.rs"]
mod builder;
#[path = "dt_support/files.rs"]
mod files;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use builder::Builder;
use common::callbacks::Hooks;
use common::supply::Supply;
use common::{Anyone, Bench, Guest, NOT_RESET, PAGE, described, stream};
use files::{CARD, DAUGHTER, FABRIC, RESTREAM, REWIRE, SLOTS};
use iommu_assign::assign::{
    Cause, Device, DeviceKey, DeviceSpec, DeviceState, Domain, FirmwareMarks, HookError, Iommu, IommuError, IommuKey,
    Left, Operation, Policy, PolicyRequest, Service, Source, StreamId,
};
use iommu_assign::dt::overlay::{OverlayError, OverlayFault, OverlayHost, OverlayId, Overlays};
use iommu_assign::dt::{DtDevice, HostBridge, SmmuNode};
use iommu_assign::smmu::{Setup, Smmu};
use iommu_assign::sync::Spin;
use machine::{Machine, Reached};
use smmu_model::Config;

/// The SMMU of the board, and that of the fabric overlay.
const BOARD: IommuKey = IommuKey::new(0x2500_0000);
const FABRIC_SMMU: IommuKey = IommuKey::new(0x2600_0000);

/// What happened, in order.
type Log = Arc<Mutex<Vec<String>>>;

/// The integrator of these tests.
struct Host {
    machine: Machine,
    masters: Arc<iommu_assign::smmu::Masters<Spin>>,
    supplies: BTreeMap<IommuKey, Arc<Supply>>,
    log: Log,
    /// Supplies break when this device is offered.
    breaks_at: Option<&'static str>,
    refuses_bridges: bool,
    resets_fail: Arc<AtomicBool>,
}

impl Host {
    fn say(&self, what: String) {
        self.log.lock().unwrap().push(what);
    }
}

impl OverlayHost for Host {
    fn probe(&mut self, smmu: &SmmuNode<'_>) -> Result<Arc<dyn Iommu>, HookError> {
        self.say(format!("probe {}", smmu.path));
        let model = Config::generic_v2();
        let supply = Arc::new(Supply::default());
        self.supplies.insert(smmu.key, supply.clone());
        let registers = self.machine.add_smmu(smmu.key, model.clone());
        let setup = Setup { power: Some(supply), ..Setup::default() };
        let smmu = Smmu::probe_with(described(smmu.key, &model), setup, registers, self.masters.clone());
        Ok(Arc::new(smmu.map_err(|_| HookError("the probe"))?))
    }

    fn smmu_left(&mut self, smmu: IommuKey) {
        self.say(format!("left {smmu}"));
    }

    fn offer(&mut self, device: &DtDevice, spec: DeviceSpec) -> Option<DeviceSpec> {
        self.say(format!("offer {}", device.path));
        if self.breaks_at == Some(device.path.as_str()) {
            self.supplies.values().for_each(|supply| supply.0.store(true, Ordering::SeqCst));
        }
        let (log, path) = (self.log.clone(), device.path.clone());
        let hooks = Hooks::new().release(move |_| log.lock().unwrap().push(format!("release {path}")));
        let (log, path, fails) = (self.log.clone(), device.path.clone(), self.resets_fail.clone());
        let hooks = hooks.reset(move |_| {
            log.lock().unwrap().push(format!("reset {path}"));
            if fails.load(Ordering::SeqCst) { Err(HookError("no answer")) } else { Ok(()) }
        });
        Some(DeviceSpec { hooks: Arc::new(hooks), ..spec })
    }

    fn bridge_came(&mut self, bridge: &HostBridge) -> Result<(), HookError> {
        self.say(format!("bridge {}", bridge.path));
        if self.refuses_bridges { Err(HookError("no room in ECAM")) } else { Ok(()) }
    }

    fn bridge_goes(&mut self, path: &str) -> Result<(), HookError> {
        self.say(format!("bridge goes {path}"));
        if self.refuses_bridges { Err(HookError("a function is in use")) } else { Ok(()) }
    }
}

/// A board that runs: its tree, its service, its integrator.
struct Stage {
    bench: Bench,
    host: Host,
    overlays: Overlays<'static>,
}

#[derive(Debug)]
struct Nobody;

impl Policy for Nobody {
    fn allows(&self, request: &PolicyRequest<'_>) -> bool {
        matches!(request.why, iommu_assign::assign::Why::Assign)
    }
}

impl Stage {
    fn new() -> Self {
        Self::on(SLOTS)
    }

    /// As an integrator boots: SMMUs first, then what is offered.
    fn on(base: &'static [u8]) -> Self {
        let bench = Bench::with_policy(Box::new(Nobody));
        let host = Host {
            machine: bench.machine.clone(),
            masters: bench.masters.clone(),
            supplies: BTreeMap::new(),
            log: Log::default(),
            breaks_at: None,
            refuses_bridges: false,
            resets_fail: Arc::default(),
        };
        let mut stage = Self { bench, host, overlays: Overlays::new(base).unwrap() };
        let board = stage.overlays.board().unwrap();
        for smmu in board.smmus() {
            stage.bench.service.register_iommu(stage.host.probe(smmu).unwrap()).unwrap();
        }
        for device in board.devices() {
            let spec = device.spec().ok().and_then(|spec| stage.host.offer(device, spec));
            spec.map(|spec| stage.bench.service.add(spec).unwrap());
        }
        drop(board);
        stage.log();
        stage
    }

    fn apply(&mut self, overlay: &[u8]) -> Result<OverlayId, OverlayError> {
        let outcome = self.overlays.apply(&self.bench.service, overlay, &mut self.host)?;
        assert_eq!(outcome.unfinished, []);
        Ok(outcome.overlay)
    }

    fn revert(&mut self, overlay: OverlayId) -> Result<(), OverlayError> {
        let outcome = self.overlays.revert(&self.bench.service, overlay, &mut self.host)?;
        assert_eq!(outcome.unfinished, []);
        Ok(())
    }

    /// What happened since it was last asked.
    fn log(&self) -> Vec<String> {
        std::mem::take(&mut self.host.log.lock().unwrap())
    }

    /// Everything that the service knows: devices with their states and streams, and the entries in use.
    fn registry(&self) -> String {
        let mut text = String::new();
        self.bench.service.write_tree(&mut text).unwrap();
        for smmu in [BOARD, FABRIC_SMMU] {
            let listed = self.bench.service.usage(smmu, &mut |usage| {
                let device = usage.device.as_ref().map(ToString::to_string);
                text.push_str(&format!("{smmu}: {:?} {device:?}\n", usage.resource));
            });
            text.push_str(if listed.is_ok() { "" } else { "not in service\n" });
        }
        text
    }

    fn device(&self, path: &str) -> iommu_assign::assign::Device {
        let board = self.overlays.board().unwrap();
        let device = board.devices().iter().find(|device| device.path == path).unwrap();
        self.bench.service.find(device.device_key()).unwrap().device
    }

    fn assign(&mut self, path: &str) -> Guest {
        let device = self.device(path);
        let guest = self.bench.guest("guest");
        self.bench.assign(&device, &guest).unwrap();
        guest
    }
}

const ETHERNET: &str = "/soc/ethernet@100000";

#[test]
fn c5_a_card_comes_parents_first_and_goes_children_first() {
    let mut stage = Stage::new();
    let before = stage.registry();
    let card = stage.apply(CARD).unwrap();
    assert_eq!(stage.log(), ["offer /soc/dma@200000", "offer /soc/dma@200000/core@1"]);
    let core = stage.device("/soc/dma@200000/core@1");
    assert_eq!(core.parent(), Some(stage.device("/soc/dma@200000").key()));
    stage.bench.audit();

    stage.revert(card).unwrap();
    assert_eq!(stage.log(), ["release /soc/dma@200000/core@1", "release /soc/dma@200000"]);
    assert_eq!(stage.registry(), before);
    assert!(stage.overlays.blob() == SLOTS, "byte for byte");
    stage.bench.audit();
}

#[test]
fn a3_overlays_that_come_and_go_leave_nothing_behind() {
    let mut stage = Stage::new();
    let before = stage.registry();
    for _ in 0..150 {
        let ids = [CARD, DAUGHTER, FABRIC, REWIRE].map(|overlay| stage.apply(overlay).unwrap());
        for id in ids.into_iter().rev() {
            stage.revert(id).unwrap();
        }
        assert_eq!(stage.registry(), before);
    }
    assert!(stage.overlays.blob() == SLOTS);
    stage.bench.audit();
}

#[test]
fn an_overlay_brings_an_smmu_before_its_masters_and_takes_it_after_them() {
    let mut stage = Stage::new();
    let before = stage.registry();
    let fabric = stage.apply(FABRIC).unwrap();
    let expected = ["probe /soc/iommu@6000000", "offer /soc/accelerator@300000", "offer /soc/accelerator@310000"];
    assert_eq!(stage.log(), expected);
    assert!(stage.bench.service.iommu(FABRIC_SMMU).is_some());
    // It works: a guest reaches its page through the new SMMU, and faults before.
    let dma = |stage: &Stage| stage.bench.machine.dma_write(FABRIC_SMMU, StreamId::new(2), PAGE);
    assert_eq!(dma(&stage), Some(Reached::Fault));
    let device = stage.device("/soc/accelerator@310000");
    assert!(device.passthrough());
    let guest = stage.bench.guest("guest");
    stage.bench.service.assign(&device, &guest.domain).unwrap();
    assert_eq!(dma(&stage), Some(Reached::Memory(guest.backing)));
    stage.bench.audit();

    // It is assigned still: a revert does not ask.
    stage.revert(fabric).unwrap();
    let expected = [
        "reset /soc/accelerator@310000",
        "release /soc/accelerator@310000",
        "release /soc/accelerator@300000",
        "left iommu@26000000",
    ];
    assert_eq!(stage.log(), expected);
    assert_eq!(dma(&stage), Some(Reached::Fault));
    assert_eq!(stage.registry(), before);
    stage.bench.service.destroy_domain(&guest.domain).unwrap();
}

#[test]
fn nodes_that_are_there_become_masters_are_switched_on_and_off_and_come_back() {
    let mut stage = Stage::new();
    let before = stage.registry();
    let guest = stage.assign(ETHERNET);
    let rewire = stage.apply(REWIRE).unwrap();
    // What goes goes last, whatever its state.
    let gone = [format!("reset {ETHERNET}"), format!("release {ETHERNET}")];
    assert_eq!(stage.log(), ["offer /soc/usb@110000", "offer /soc/crypto@120000", &gone[0], &gone[1]]);
    assert_eq!(stage.bench.machine.dma_write(BOARD, StreamId::new(0x10), PAGE), Some(Reached::Fault));
    assert_eq!(stage.device("/soc/usb@110000").streams()[0].id(), StreamId::new(0x50));
    stage.bench.audit();

    stage.revert(rewire).unwrap();
    let back = [&format!("offer {ETHERNET}"), "release /soc/crypto@120000", "release /soc/usb@110000"];
    assert_eq!(stage.log(), back);
    assert_eq!(stage.registry(), before);
    stage.bench.service.destroy_domain(&guest.domain).unwrap();
}

#[test]
fn c18_a_device_whose_streams_change_is_registered_anew_if_it_is_only_blocked() {
    let mut stage = Stage::new();
    let before = stage.registry();
    let old = stage.device(ETHERNET);
    let restream = stage.apply(RESTREAM).unwrap();
    assert_eq!(stage.log(), [format!("release {ETHERNET}"), format!("offer {ETHERNET}")]);
    let new = stage.device(ETHERNET);
    assert_eq!((new.key(), new.streams()[0].id()), (old.key(), StreamId::new(0x11)));
    // The old registration is over (contract C-7).
    assert!(matches!(stage.bench.service.deassign(&old).unwrap_err().cause, Cause::Gone));

    // Back only when it is blocked again.
    let guest = stage.bench.guest("guest");
    stage.bench.assign(&new, &guest).unwrap();
    let error = stage.revert(restream).unwrap_err();
    assert!(matches!(stage.bench.state(&new), DeviceState::Assigned(_)));
    let fault = OverlayFault::DeviceInUse { owner: "guest".into() };
    assert_eq!(error, OverlayError::Fault { path: ETHERNET.to_owned(), fault });
    let says = format!("{ETHERNET}: its streams or its parent change, and it is assigned to guest: deassign it first");
    assert_eq!(error.to_string(), says);
    assert_eq!(stage.overlays.applied().collect::<Vec<_>>(), [restream]);
    let _ = stage.bench.deassign(&new).unwrap();
    stage.revert(restream).unwrap();
    assert_eq!(stage.registry(), before);
    stage.bench.service.destroy_domain(&guest.domain).unwrap();
}

#[test]
fn i14_a_device_that_left_without_a_reset_gets_one_before_its_next_guest() {
    let mut stage = Stage::new();
    let first = stage.assign(ETHERNET);
    stage.host.resets_fail.store(true, Ordering::SeqCst);
    let rewire = stage.apply(REWIRE).unwrap();
    stage.revert(rewire).unwrap();
    // It comes back as what it is, however often.
    assert_eq!(stage.bench.state(&stage.device(ETHERNET)), NOT_RESET);
    let again = stage.apply(REWIRE).unwrap();
    stage.revert(again).unwrap();
    let ethernet = stage.device(ETHERNET);
    assert_eq!(stage.bench.state(&ethernet), NOT_RESET);
    let second = stage.bench.guest("second");
    assert!(stage.bench.assign(&ethernet, &second).is_err());
    stage.log();
    stage.host.resets_fail.store(false, Ordering::SeqCst);
    stage.bench.assign(&ethernet, &second).unwrap();
    assert_eq!(stage.log(), [format!("reset {ETHERNET}")]);
    // From here on it is as any other.
    let once_more = stage.apply(REWIRE).unwrap();
    stage.revert(once_more).unwrap();
    assert_eq!(stage.bench.state(&stage.device(ETHERNET)), DeviceState::Blocked);
    stage.bench.audit();
    stage.bench.service.destroy_domain(&first.domain).unwrap();
    stage.bench.service.destroy_domain(&second.domain).unwrap();
}

/// Another CPU waits for the device, and is there first when it comes again.
#[test]
fn i14_a_device_that_left_without_a_reset_is_nobodys_for_an_instant() {
    let mut stage = Stage::new();
    let key = stage.device(ETHERNET).key();
    let guests = ["one", "two"].map(|name| stage.bench.guest(name));
    for round in 0..40 {
        let owner = &guests[round % 2];
        let ethernet = stage.device(ETHERNET);
        stage.bench.service.assign(&ethernet, &owner.domain).unwrap();
        stage.host.resets_fail.store(true, Ordering::SeqCst);
        let rewire = stage.apply(REWIRE).unwrap();
        stage.host.resets_fail.store(false, Ordering::SeqCst);
        stage.log();
        let done = AtomicBool::new(false);
        let got = std::thread::scope(|scope| {
            let (service, domain, done) = (&stage.bench.service, &guests[(round + 1) % 2].domain, &done);
            let other = scope.spawn(move || {
                loop {
                    let is_last = done.load(Ordering::SeqCst);
                    let got = service.find(key).is_some_and(|info| service.assign(&info.device, domain).is_ok());
                    if got || is_last {
                        return got;
                    }
                }
            });
            let reverted = stage.overlays.revert(service, rewire, &mut stage.host);
            done.store(true, Ordering::SeqCst);
            reverted.unwrap();
            other.join().unwrap()
        });
        assert!(
            got && stage.log().contains(&format!("reset {ETHERNET}")),
            "round {round}: not reset between two guests"
        );
        let _ = stage.bench.service.deassign(&stage.device(ETHERNET)).unwrap();
    }
}

#[test]
fn i14_a_quarantined_device_is_reset_before_it_changes() {
    let mut stage = Stage::new();
    let guest = stage.assign(ETHERNET);
    stage.host.resets_fail.store(true, Ordering::SeqCst);
    let ethernet = stage.device(ETHERNET);
    assert!(stage.bench.deassign(&ethernet).is_err());
    let (registry, blob) = (stage.registry(), stage.overlays.blob().to_vec());
    let error = stage.apply(RESTREAM).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("deassign {ETHERNET}: its reset failed: no answer; the device is quarantined")
    );
    assert_eq!((stage.registry(), stage.overlays.blob()), (registry, &blob[..]));
    stage.log();
    stage.host.resets_fail.store(false, Ordering::SeqCst);
    let restream = stage.apply(RESTREAM).unwrap();
    assert_eq!(stage.log()[0], format!("reset {ETHERNET}"));
    assert_eq!(stage.bench.state(&stage.device(ETHERNET)), DeviceState::Blocked);
    stage.revert(restream).unwrap();
    stage.bench.service.destroy_domain(&guest.domain).unwrap();
    stage.bench.audit();
}

#[test]
fn c8_a_device_that_is_going_does_not_change_before_it_has_gone() {
    let mut stage = Stage::new();
    let guest = stage.assign(ETHERNET);
    let ethernet = stage.device(ETHERNET);
    let call = ethernet.enter::<Spin>();
    assert!(stage.bench.service.remove(&ethernet).is_err());
    drop(call);
    stage.log();
    let error = stage.apply(RESTREAM).unwrap_err();
    assert_eq!(error, OverlayError::Fault { path: ETHERNET.to_owned(), fault: OverlayFault::DeviceGoing });
    assert_eq!(stage.log(), [""; 0]);
    let _ = stage.bench.service.remove(&ethernet).unwrap();
    stage.apply(RESTREAM).unwrap();
    stage.bench.service.destroy_domain(&guest.domain).unwrap();
    stage.bench.audit();
}

#[test]
fn an_overlay_that_is_applied_twice_is_refused_and_its_node_is_named() {
    let mut stage = Stage::new();
    let card = stage.apply(CARD).unwrap();
    let (registry, blob) = (stage.registry(), stage.overlays.blob().to_vec());
    let error = stage.apply(CARD).unwrap_err();
    assert_eq!(error.to_string(), "/soc: overlay 1, which is applied here, is this very one");
    assert_eq!((stage.registry(), stage.overlays.blob()), (registry, &blob[..]));
    stage.revert(card).unwrap();
    assert_eq!(stage.revert(card).unwrap_err(), OverlayError::NotApplied(card));
    assert_eq!(stage.apply(CARD).unwrap().number(), 2);
}

#[test]
fn an_overlay_whose_nodes_a_later_one_refers_to_stays_and_others_may_go() {
    let mut stage = Stage::new();
    let card = stage.apply(CARD).unwrap();
    let fabric = stage.apply(FABRIC).unwrap();
    let daughter = stage.apply(DAUGHTER).unwrap();
    let registry = stage.registry();
    let error = stage.revert(card).unwrap_err();
    assert_eq!(error.to_string(), "/soc/dma@200000: overlay 3 refers to it: revert that one first");
    assert_eq!(stage.registry(), registry);
    // Nothing refers to the fabric: it may go from the middle, and nothing else moves.
    let phandle = |stage: &Stage| stage.overlays.board().unwrap().tree().find("/soc/dma@200000").unwrap().phandle();
    let before = phandle(&stage);
    stage.log();
    stage.revert(fabric).unwrap();
    let expected = ["release /soc/accelerator@310000", "release /soc/accelerator@300000", "left iommu@26000000"];
    assert_eq!(stage.log(), expected);
    assert_eq!((phandle(&stage), before.is_some()), (before, true));
    stage.revert(daughter).unwrap();
    stage.revert(card).unwrap();
    assert!(stage.overlays.blob() == SLOTS);
}

#[test]
fn the_first_of_two_overlays_goes_and_the_second_keeps_its_phandles() {
    let mut stage = Stage::new();
    let card = stage.apply(CARD).unwrap();
    let fabric = stage.apply(FABRIC).unwrap();
    let streams = |stage: &Stage| stage.device("/soc/accelerator@300000").streams().to_vec();
    let phandle = |stage: &Stage| stage.overlays.board().unwrap().tree().find("/soc/iommu@6000000").unwrap().phandle();
    let before = (streams(&stage), phandle(&stage));
    stage.log();
    stage.revert(card).unwrap();
    assert_eq!(stage.log(), ["release /soc/dma@200000/core@1", "release /soc/dma@200000"]);
    assert_eq!((streams(&stage), phandle(&stage)), before);
    // The SMMU of the fabric is the same one for the service.
    stage.revert(fabric).unwrap();
    assert!(stage.overlays.blob() == SLOTS);
}

#[test]
fn an_overlay_that_refers_to_what_has_gone_is_refused() {
    let mut stage = Stage::new();
    let card = stage.apply(CARD).unwrap();
    stage.revert(card).unwrap();
    let error = stage.apply(DAUGHTER).unwrap_err();
    assert_eq!(error.to_string(), "/fragment@0: `target` refers to &dma0, and the tree has no such label");
}

/// Two devices below the bus, the second with the ethernet's stream.
fn with_a_shared_stream() -> Vec<u8> {
    let mut overlay = Builder::new();
    overlay.begin("").begin("fragment@0").strings("target-path", &["/soc"]).begin("__overlay__");
    overlay.begin("dma@1").cells("iommus", &[u32::MAX, 0x60]).end();
    overlay.begin("dma@2").cells("iommus", &[u32::MAX, 0x10]).end();
    overlay.end().end().begin("__fixups__");
    let place = |name: &str| format!("/fragment@0/__overlay__/{name}:iommus:0");
    overlay.strings("smmu", &[&place("dma@1"), &place("dma@2")]).end();
    overlay.finish()
}

#[test]
fn a1_an_add_that_the_policy_refuses_takes_everything_back_and_the_tree_too() {
    let mut stage = Stage::new();
    let guest = stage.assign(ETHERNET);
    let registry = stage.registry();
    let error = stage.apply(&with_a_shared_stream()).unwrap_err();
    let OverlayError::Service(refused) = &error else { panic!("{error}") };
    assert!(matches!(refused.cause, Cause::GroupConflict { .. }), "{refused}");
    assert_eq!((refused.operation, refused.left), (Operation::Add, Left::Unchanged));
    assert!(error.to_string().starts_with("add /soc/dma@2: /soc/ethernet@100000 of the same group has another owner"));
    assert_eq!(stage.log(), ["offer /soc/dma@1", "offer /soc/dma@2", "release /soc/dma@1"]);
    assert_eq!(stage.registry(), registry);
    assert!(stage.overlays.blob() == SLOTS && stage.overlays.is_finished());
    stage.bench.audit();
    // with the cause gone it is applied.
    let ethernet = stage.device(ETHERNET);
    let _ = stage.bench.deassign(&ethernet).unwrap();
    stage.apply(&with_a_shared_stream()).unwrap();
    stage.bench.service.destroy_domain(&guest.domain).unwrap();
}

#[test]
fn a1_an_smmu_that_loses_its_power_half_way_goes_again() {
    let mut stage = Stage::new();
    let registry = stage.registry();
    stage.host.breaks_at = Some("/soc/accelerator@310000");
    let error = stage.apply(FABRIC).unwrap_err();
    let OverlayError::Service(refused) = &error else { panic!("{error}") };
    assert!(matches!(refused.cause, Cause::Iommu { error: IommuError::NoPower(_), .. }), "{refused}");
    // What was added cannot be cut without power: it is going, and so is its SMMU.
    assert!(!stage.overlays.is_finished());
    assert!(stage.overlays.blob() == SLOTS);
    let waits = stage.apply(CARD).unwrap_err();
    assert!(matches!(&waits, OverlayError::Unfinished(_)), "{waits}");
    assert!(
        waits.to_string().starts_with("an earlier overlay operation is not finished: remove /soc/accelerator@300000: ")
    );

    stage.host.supplies.values().for_each(|supply| supply.0.store(false, Ordering::SeqCst));
    stage.host.breaks_at = None;
    stage.overlays.finish(&stage.bench.service, &mut stage.host).unwrap();
    assert_eq!(stage.registry(), registry);
    assert_eq!(stage.log().last().unwrap(), "left iommu@26000000");
    stage.apply(FABRIC).unwrap();
}

#[test]
fn c8_a_revert_without_power_is_finished_when_there_is_power() {
    let mut stage = Stage::new();
    let before = stage.registry();
    let card = stage.apply(CARD).unwrap();
    let supply = stage.host.supplies[&BOARD].clone();
    supply.0.store(true, Ordering::SeqCst);
    let outcome = stage.overlays.revert(&stage.bench.service, card, &mut stage.host).unwrap();
    assert_eq!(outcome.unfinished.len(), 2);
    let says = outcome.unfinished[0].to_string();
    assert!(says.starts_with("remove /soc/dma@200000/core@1: iommu@25000000: it has no power"), "{says}");
    assert!(stage.overlays.blob() == SLOTS && !stage.overlays.is_finished());
    supply.0.store(false, Ordering::SeqCst);
    stage.overlays.finish(&stage.bench.service, &mut stage.host).unwrap();
    assert!(stage.overlays.is_finished());
    assert_eq!(stage.registry(), before);
    stage.bench.audit();
}

#[test]
fn a1_a_device_that_changes_comes_back_as_it_was_when_a_later_step_is_refused() {
    let mut stage = Stage::new();
    let before = stage.registry();
    // The ethernet gets another stream, and a host bridge comes that the integrator cannot use.
    let mut overlay = Builder::new();
    overlay.begin("").begin("fragment@0").strings("target-path", &["/soc"]).begin("__overlay__");
    overlay.begin("ethernet@100000").cells("iommus", &[u32::MAX, 0x11]).end();
    overlay
        .begin("pcie@400000")
        .strings("device_type", &["pci"])
        .cells("iommu-map", &[0, u32::MAX, 0x100, 0x100])
        .end();
    overlay.end().end().begin("__fixups__");
    let places = ["ethernet@100000:iommus:0", "pcie@400000:iommu-map:4"];
    let places = places.map(|place| format!("/fragment@0/__overlay__/{place}"));
    overlay.strings("smmu", &[&places[0], &places[1]]).end();
    let overlay = overlay.finish();
    stage.host.refuses_bridges = true;
    let error = stage.apply(&overlay).unwrap_err();
    assert_eq!(error.to_string(), "/soc/pcie@400000: its arrival failed: no room in ECAM");
    let offered = format!("offer {ETHERNET}");
    let released = format!("release {ETHERNET}");
    assert_eq!(stage.log(), [&released, &offered, "bridge /soc/pcie@400000", &released, &offered]);
    assert_eq!(stage.registry(), before);

    stage.host.refuses_bridges = false;
    let bridge = stage.apply(&overlay).unwrap();
    stage.host.refuses_bridges = true;
    let outcome = stage.overlays.revert(&stage.bench.service, bridge, &mut stage.host).unwrap();
    assert_eq!(outcome.unfinished[0].to_string(), "/soc/pcie@400000: its departure failed: a function is in use");
    stage.host.refuses_bridges = false;
    stage.overlays.finish(&stage.bench.service, &mut stage.host).unwrap();
    assert_eq!(stage.registry(), before);
    stage.bench.audit();
}

#[test]
fn an_smmu_in_service_does_not_change_under_its_driver() {
    let mut stage = Stage::new();
    let registry = stage.registry();
    let mut overlay = Builder::new();
    overlay.begin("").begin("fragment@0").strings("target-path", &["/soc/iommu@5000000"]).begin("__overlay__");
    let overlay = overlay.cells("reg", &[0x500_0000, 0x4_0000]).end().end().finish();
    let error = stage.apply(&overlay).unwrap_err();
    let says = "/soc/iommu@5000000: it is an SMMU in service, and what its driver was told changes";
    assert_eq!(error.to_string(), says);
    assert_eq!(stage.registry(), registry);
}

#[test]
fn an_smmu_that_is_switched_off_takes_its_masters_with_it_and_comes_back_with_them() {
    let mut stage = Stage::new();
    let before = stage.registry();
    let mut overlay = Builder::new();
    overlay.begin("").begin("fragment@0").strings("target-path", &["/soc/iommu@5000000"]).begin("__overlay__");
    let overlay = overlay.strings("status", &["disabled"]).end().end().finish();
    let off = stage.apply(&overlay).unwrap();
    assert_eq!(stage.log(), [&format!("release {ETHERNET}"), "left iommu@25000000"]);
    assert!(stage.bench.service.iommu(BOARD).is_none());
    stage.revert(off).unwrap();
    assert_eq!(stage.log(), ["probe /soc/iommu@5000000", &format!("offer {ETHERNET}")]);
    assert_eq!(stage.registry(), before);
}

#[test]
fn a_preview_changes_nothing_and_says_what_apply_does() {
    let mut stage = Stage::new();
    let registry = stage.registry();
    let preview = stage.overlays.preview(FABRIC).unwrap();
    assert_eq!((stage.registry(), stage.log().len()), (registry, 0));
    let outcome = stage.overlays.apply(&stage.bench.service, FABRIC, &mut stage.host).unwrap();
    assert_eq!(outcome.changes, preview);
    assert_eq!(preview.devices.len(), 2);
}

#[test]
fn a11_what_an_overlay_brings_goes_to_no_guest_unless_the_policy_says_so() {
    let mut stage = Stage::new();
    stage.bench = Bench::with_policy(Box::new(FirmwareMarks));
    let board = stage.overlays.board().unwrap();
    stage.host = Host { machine: stage.bench.machine.clone(), masters: stage.bench.masters.clone(), ..stage.host };
    stage.bench.service.register_iommu(stage.host.probe(&board.smmus()[0]).unwrap()).unwrap();
    drop(board);
    stage.apply(FABRIC).unwrap();
    let guest = stage.bench.guest("guest");
    let unmarked = stage.device("/soc/accelerator@300000");
    let refused = stage.bench.service.assign(&unmarked, &guest.domain).unwrap_err();
    assert!(matches!(refused.cause, Cause::Denied { .. }));
    let marked = stage.device("/soc/accelerator@310000");
    stage.bench.service.assign(&marked, &guest.domain).unwrap();
}

/// One CPU applies and reverts overlays, another gives every device that it sees to a guest and takes it back.
#[test]
fn c15_overlays_come_and_go_while_guests_take_and_return_devices() {
    let mut stage = Stage::new();
    let before = stage.registry();
    let guest = stage.bench.guest("guest");
    let (over, moves, busy) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let (service, host, overlays) = (&stage.bench.service, &mut stage.host, &mut stage.overlays);
        let (over, moves, busy, domain) = (&over, &moves, &busy, &guest.domain);
        scope.spawn(move || {
            while !over.load(Ordering::SeqCst) {
                for info in service.devices() {
                    if service.assign(&info.device, domain).is_ok() {
                        moves.fetch_add(1, Ordering::SeqCst);
                    }
                    let _ = service.deassign(&info.device);
                }
                // Guests come and go less often than that a CPU does nothing else.
                std::thread::sleep(std::time::Duration::from_micros(300));
            }
        });
        let mut again = |step: &mut dyn FnMut(&mut Overlays<'static>, &mut Host) -> Result<(), OverlayError>| {
            while let Err(error) = step(overlays, host) {
                assert!(error.is_busy(), "{error}");
                busy.fetch_add(1, Ordering::SeqCst);
            }
        };
        for _ in 0..15 {
            let ids = Mutex::new(Vec::new());
            for overlay in [CARD, REWIRE, FABRIC] {
                let ids = &ids;
                again(&mut |overlays, host| {
                    ids.lock().unwrap().push(overlays.apply(service, overlay, host)?.overlay);
                    Ok(())
                });
            }
            for id in ids.into_inner().unwrap() {
                again(&mut |overlays, host| overlays.revert(service, id, host).map(drop));
            }
            again(&mut |overlays, host| overlays.finish(service, host));
        }
        over.store(true, Ordering::SeqCst);
    });
    assert!(moves.load(Ordering::SeqCst) > 0, "the other CPU did nothing");
    for info in stage.bench.service.devices().collect::<Vec<_>>() {
        let _ = stage.bench.service.deassign(&info.device);
    }
    assert_eq!(stage.registry(), before, "after {} that met another operation", busy.load(Ordering::SeqCst));
    assert!(stage.overlays.blob() == SLOTS && stage.overlays.is_finished());
    stage.bench.audit();
    stage.bench.service.destroy_domain(&guest.domain).unwrap();
}

/// Found by the fuzz target `overlay`: an overlay that mends a node which the base has wrong could not be reverted, for the
/// node would be refused again.
#[test]
fn an_overlay_that_mends_a_bad_node_of_the_base_can_be_reverted() {
    let mut base = Builder::board();
    base.smmu(0x1000, 1, 1).begin("dma").cells("iommus", &[0x99, 5]).end();
    base.begin("__symbols__").strings("smmu", &["/iommu@1000"]).strings("dma", &["/dma"]).end();
    let base: &'static [u8] = base.finish().leak();
    let mut stage = Stage::on(base);
    assert_eq!(stage.overlays.board().unwrap().refusals().len(), 1);
    let before = stage.registry();
    let mut overlay = Builder::new();
    overlay.begin("").begin("fragment@0").cells("target", &[u32::MAX]).begin("__overlay__");
    overlay.cells("iommus", &[u32::MAX, 5]).end().end().begin("__fixups__");
    overlay.strings("dma", &["/fragment@0:target:0"]).strings("smmu", &["/fragment@0/__overlay__:iommus:0"]).end();
    // The base's label `dma` leads to a node without a phandle.
    let says = "/fragment@0: `target` refers to &dma, which is /dma, and that node has no phandle";
    assert_eq!(stage.apply(&overlay.finish()).unwrap_err().to_string(), says);

    let mut overlay = Builder::new();
    overlay.begin("").begin("fragment@0").strings("target-path", &["/dma"]).begin("__overlay__");
    overlay.cells("iommus", &[u32::MAX, 5]).end().end().begin("__fixups__");
    overlay.strings("smmu", &["/fragment@0/__overlay__:iommus:0"]).end();
    let mended = stage.apply(&overlay.finish()).unwrap();
    assert_eq!(stage.log(), ["offer /dma"]);
    stage.revert(mended).unwrap();
    assert_eq!(stage.log(), ["release /dma"]);
    assert_eq!((stage.registry(), stage.overlays.blob()), (before, base));
}

/// An overlay on one node that exists, with what `says` writes.
fn on_node(path: &str, says: impl FnOnce(&mut Builder)) -> Vec<u8> {
    let mut overlay = Builder::new();
    overlay.begin("").begin("fragment@0").strings("target-path", &[path]).begin("__overlay__");
    says(&mut overlay);
    overlay.end().end().finish()
}

/// Found by the fuzz target `overlay`: while its SMMU was off, a host bridge got another map; with the first overlay gone the
/// second could not be reverted any more, for the bridge was in use.
#[test]
fn an_overlay_stays_under_one_that_could_not_be_reverted_without_it() {
    const BRIDGE: &str = "/soc/pcie@400000";
    let mut stage = Stage::new();
    let mut pcie = Builder::new();
    pcie.begin("").begin("fragment@0").strings("target-path", &["/soc"]).begin("__overlay__").begin("pcie@400000");
    pcie.strings("device_type", &["pci"]).cells("iommu-map", &[0, u32::MAX, 0x100, 0x100]).end().end().end();
    pcie.begin("__fixups__").strings("smmu", &["/fragment@0/__overlay__/pcie@400000:iommu-map:4"]).end();
    let pcie = stage.apply(&pcie.finish()).unwrap();
    let before = stage.registry();
    let off = on_node("/soc/iommu@5000000", |node| _ = node.strings("status", &["disabled"]));
    let off = stage.apply(&off).unwrap();
    // It is not in use: it may change, and so may the SMMU.
    let moved = stage.apply(&on_node(BRIDGE, |node| _ = node.cells("bus-range", &[0, 3]))).unwrap();
    let wider = on_node("/soc/iommu@5000000", |node| _ = node.cells("reg", &[0x500_0000, 0x4_0000]));
    let wider = stage.apply(&wider).unwrap();
    let harmless = stage.apply(CARD).unwrap();
    stage.log();
    let (registry, blob) = (stage.registry(), stage.overlays.blob().to_vec());
    let error = stage.revert(off).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{BRIDGE}: overlay 3 could not be reverted after this one: revert that one first")
    );
    assert_eq!((stage.registry(), stage.overlays.blob(), stage.log().len()), (registry, &blob[..], 0));
    stage.revert(moved).unwrap();
    let error = stage.revert(off).unwrap_err();
    let says = "/soc/iommu@5000000: overlay 4 could not be reverted after this one: revert that one first";
    assert_eq!(error.to_string(), says);
    stage.revert(wider).unwrap();
    stage.revert(off).unwrap();
    stage.revert(harmless).unwrap();
    assert_eq!(stage.registry(), before);
    stage.revert(pcie).unwrap();
    assert!(stage.overlays.blob() == SLOTS);
}

/// An integrator beside whom another CPU gives a device to a guest while an SMMU is probed.
struct Overtaken<'a> {
    host: &'a mut Host,
    service: &'a Service<Spin>,
    device: &'a Device,
    domain: &'a Domain<Spin>,
}

impl OverlayHost for Overtaken<'_> {
    fn probe(&mut self, smmu: &SmmuNode<'_>) -> Result<Arc<dyn Iommu>, HookError> {
        self.service.assign(self.device, self.domain).unwrap();
        self.host.probe(smmu)
    }

    fn smmu_left(&mut self, smmu: IommuKey) {
        self.host.smmu_left(smmu);
    }

    fn bridge_came(&mut self, bridge: &HostBridge) -> Result<(), HookError> {
        self.host.bridge_came(bridge)
    }

    fn bridge_goes(&mut self, path: &str) -> Result<(), HookError> {
        self.host.bridge_goes(path)
    }
}

/// Found by the fuzz target `overlay`: the parent could not be registered anew while the child was there that went.
#[test]
fn a1_a_child_goes_before_the_parent_that_changes_with_it() {
    let mut stage = Stage::new();
    let card = stage.apply(CARD).unwrap();
    let before = stage.registry();
    let mut overlay = Builder::new();
    overlay.begin("").begin("fragment@0").strings("target-path", &["/soc/dma@200000"]).begin("__overlay__");
    overlay.cells("iommus", &[u32::MAX, 0x33]).begin("core@1").strings("status", &["disabled"]).end();
    overlay.end().end().begin("__fixups__").strings("smmu", &["/fragment@0/__overlay__:iommus:0"]).end();
    let overlay = overlay.finish();
    let (service, host) = (&stage.bench.service, &mut stage.host);
    let id = stage.overlays.apply(service, &overlay, host).unwrap().overlay;
    let names: Vec<String> = service.devices().map(|info| info.device.label().to_string()).collect();
    assert!(!names.iter().any(|name| name.contains("core@1")), "{names:?}");
    stage.overlays.revert(service, id, host).unwrap();
    assert_eq!(stage.registry(), before);
    stage.revert(card).unwrap();
    stage.bench.audit();
}

#[test]
fn i14_a_device_that_changes_and_is_assigned_meanwhile_stays_with_its_guest() {
    let mut stage = Stage::new();
    let (ethernet, guest) = (stage.device(ETHERNET), stage.bench.guest("guest"));
    let mut overlay = Builder::new();
    overlay.begin("").begin("fragment@0").strings("target-path", &["/soc"]).begin("__overlay__");
    overlay.begin("iommu@6000000").strings("compatible", &["arm,smmu-v2"]).cells("reg", &[0x600_0000, 0x2_0000]);
    overlay.cells("#iommu-cells", &[1]).cells("#global-interrupts", &[1]).cells("interrupts", &[0, 60, 4, 0, 61, 4]);
    overlay.end().begin("ethernet@100000").cells("iommus", &[u32::MAX, 0x11]).end();
    overlay.end().end().begin("__fixups__");
    overlay.strings("smmu", &["/fragment@0/__overlay__/ethernet@100000:iommus:0"]).end();
    let overlay = overlay.finish();

    let service = &stage.bench.service;
    let mut host = Overtaken { host: &mut stage.host, service, device: &ethernet, domain: &guest.domain };
    let error = stage.overlays.apply(service, &overlay, &mut host).unwrap_err();
    let fault = OverlayFault::DeviceInUse { owner: "guest".into() };
    assert_eq!(error, OverlayError::Fault { path: ETHERNET.to_owned(), fault });
    assert_eq!(stage.bench.state(&ethernet), DeviceState::Assigned(guest.domain.id()));
    assert!(stage.overlays.is_finished() && stage.overlays.blob() == SLOTS);
    assert!(stage.bench.service.iommu(FABRIC_SMMU).is_none());
    let _ = stage.bench.deassign(&ethernet).unwrap();
    stage.bench.service.destroy_domain(&guest.domain).unwrap();
}

#[test]
fn i14_a_child_that_is_busy_is_not_taken_along_without_a_reset() {
    let mut stage = Stage::new();
    stage.bench = Bench::with_policy(Box::new(Anyone));
    let board = stage.overlays.board().unwrap();
    stage.host = Host { machine: stage.bench.machine.clone(), masters: stage.bench.masters.clone(), ..stage.host };
    stage.bench.service.register_iommu(stage.host.probe(&board.smmus()[0]).unwrap()).unwrap();
    drop(board);
    let card = stage.apply(CARD).unwrap();
    let (core, guest) = (stage.device("/soc/dma@200000/core@1"), stage.bench.guest("guest"));
    // A device of another source in the same group, for which another CPU reserves the guest.
    let streams = vec![stream(BOARD, 0x31, 0)];
    let mate = DeviceSpec::new(DeviceKey::new(Source::Pci, 1), "mate".into(), streams);
    let mate = stage.bench.service.add(mate).unwrap();
    stage.bench.service.assign(&core, &guest.domain).unwrap();
    let reservation = stage.bench.service.reserve(&mate, &guest.domain).unwrap();
    stage.log();

    let outcome = stage.overlays.revert(&stage.bench.service, card, &mut stage.host).unwrap();
    assert!(outcome.unfinished.iter().all(OverlayError::is_busy) && outcome.unfinished.len() == 2, "{outcome:?}");
    reservation.abandon().unwrap();
    stage.overlays.finish(&stage.bench.service, &mut stage.host).unwrap();
    let reset = "reset /soc/dma@200000/core@1";
    assert_eq!(stage.log(), [reset, "release /soc/dma@200000/core@1", "release /soc/dma@200000"]);
    stage.apply(CARD).unwrap();
    assert_eq!(stage.bench.state(&stage.device("/soc/dma@200000/core@1")), DeviceState::Blocked);
    stage.bench.service.destroy_domain(&guest.domain).unwrap();
}
