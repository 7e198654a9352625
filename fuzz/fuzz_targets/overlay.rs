//! Any base and any overlays: nothing panics, what is refused changes nothing, and when all is reverted the tree is the base
//! byte for byte and the registry is as it was.
#![no_main]

use std::collections::BTreeMap;
use std::sync::Arc;

use arbitrary::{Arbitrary, Unstructured};
use iommu_assign::assign::{
    DeviceState, Domain, FirmwareMarks, HookError, Iommu, IommuKey, Label, PhysicalAddress, Policy, PolicyRequest,
    Service, Why,
};
use iommu_assign::dt::guest::{GuestBridge, GuestLayout, GuestTree, GuestView};
use iommu_assign::dt::overlay::{OverlayError, OverlayHost, OverlayId, Overlays, merge};
use iommu_assign::dt::{Board, HostBridge, Interrupt, SmmuNode, Tree};
use iommu_assign::smmu::{EmptyRoot, Masters, Smmu, SmmuConfig};
use iommu_assign::sync::Spin;
use libfuzzer_sys::fuzz_target;
use machine::{Machine, Stage2Tables};
use smmu_model::Config;

const BASE: &[u8] = include_bytes!("../../boards/overlays/slots.dtb");
const OVERLAYS: [&[u8]; 5] = [
    include_bytes!("../../boards/overlays/card.dtbo"),
    include_bytes!("../../boards/overlays/daughter.dtbo"),
    include_bytes!("../../boards/overlays/fabric.dtbo"),
    include_bytes!("../../boards/overlays/rewire.dtbo"),
    include_bytes!("../../boards/overlays/restream.dtbo"),
];

/// More steps find nothing that fewer do not.
const MOST: usize = 24;

/// A blob that is one of ours with some bytes changed, or made of nodes.
#[derive(Arbitrary, Debug)]
enum Blob {
    Ours { which: u8, changes: Vec<(u16, u8)> },
    Made { target: Name, nodes: Vec<Made>, labels: Vec<(Name, u8)> },
    Raw(Vec<u8>),
}

/// A node in the making: how deep below the last one, and what it says.
#[derive(Arbitrary, Debug)]
struct Made {
    name: Name,
    up: u8,
    properties: Vec<Said>,
}

/// What a node says.
#[derive(Arbitrary, Debug)]
enum Said {
    /// `iommus`, with a reference to a label, to a node of the overlay, or with any phandle.
    Iommus {
        to: Reference,
        id: u8,
    },
    IommuMap {
        to: Reference,
        base: u8,
        length: u8,
    },
    Status(bool),
    Phandle(u8),
    Smmu {
        base: u8,
    },
    Passthrough,
    Other {
        name: Name,
        value: u32,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Reference {
    Label(Name),
    Own(u8),
    Any(u8),
}

/// Few names, so that they meet.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Name {
    Soc,
    Smmu,
    Ethernet,
    Usb,
    Crypto,
    Clocks,
    Dma,
    Core,
    Mdio,
    Fabric,
}

impl Name {
    const fn node(self) -> &'static str {
        match self {
            Self::Soc => "soc",
            Self::Smmu => "iommu@5000000",
            Self::Ethernet => "ethernet@100000",
            Self::Usb => "usb@110000",
            Self::Crypto => "crypto@120000",
            Self::Clocks => "clock-controller@9000000",
            Self::Dma => "dma@200000",
            Self::Core => "core@1",
            Self::Mdio => "mdio",
            Self::Fabric => "iommu@6000000",
        }
    }

    const fn label(self) -> &'static str {
        match self {
            Self::Soc => "soc",
            Self::Smmu => "smmu",
            Self::Ethernet => "eth0",
            Self::Usb => "usb",
            Self::Crypto => "crypto",
            Self::Clocks => "clocks",
            Self::Dma => "dma0",
            Self::Core => "core",
            Self::Mdio => "phy0",
            Self::Fabric => "fabric",
        }
    }

    fn path(self) -> &'static str {
        match self {
            Self::Soc => "/soc",
            Self::Smmu => "/soc/iommu@5000000",
            Self::Ethernet => "/soc/ethernet@100000",
            Self::Usb => "/soc/usb",
            Self::Crypto => "/soc/crypto@120000",
            Self::Clocks => "/clock-controller@9000000",
            Self::Dma => "io/dma@200000",
            Self::Core => "/",
            Self::Mdio => "ethernet0/mdio",
            Self::Fabric => "io",
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    Apply(Blob),
    Again(u8),
    Revert(u8),
    Assign(u8),
    Deassign(u8),
    Finish,
}

#[derive(Debug)]
struct Sharing;

impl Policy for Sharing {
    fn allows(&self, request: &PolicyRequest<'_>) -> bool {
        matches!(request.why, Why::Assign) || FirmwareMarks.allows(request)
    }
}

struct Host {
    machine: Machine,
    masters: Arc<Masters<Spin>>,
    in_service: Vec<IommuKey>,
}

impl OverlayHost for Host {
    fn probe(&mut self, smmu: &SmmuNode<'_>) -> Result<Arc<dyn Iommu>, HookError> {
        if self.in_service.contains(&smmu.key) {
            return Err(HookError("in service"));
        }
        let empty = EmptyRoot { address: PhysicalAddress::new(0x100_0000), size: 0x10_0000 };
        let model = Config { banks: 4, groups: 16, ..Config::generic_v2() };
        let told = smmu.config(empty);
        let config = SmmuConfig {
            polls: 100,
            ..SmmuConfig::new(smmu.key, u64::from(model.bank_base()) * 2, told.architecture, empty)
        };
        let registers = self.machine.add_smmu(smmu.key, model);
        let smmu = Smmu::probe(config, registers, self.masters.clone()).map_err(|_| HookError("the probe"))?;
        self.in_service.push(smmu_key(&smmu));
        Ok(Arc::new(smmu))
    }

    fn smmu_left(&mut self, smmu: IommuKey) {
        let at = self.in_service.iter().position(|key| *key == smmu).expect("an SMMU left that was not in service");
        self.in_service.swap_remove(at);
    }

    fn bridge_came(&mut self, _: &HostBridge) -> Result<(), HookError> {
        Ok(())
    }

    fn bridge_goes(&mut self, _: &str) -> Result<(), HookError> {
        Ok(())
    }
}

fn smmu_key(smmu: &dyn Iommu) -> IommuKey {
    smmu.key()
}

struct World<'b> {
    service: Service<Spin>,
    host: Host,
    overlays: Overlays<'b>,
    domain: Domain<Spin>,
    seen: Vec<Vec<u8>>,
}

impl World<'_> {
    fn registry(&self) -> String {
        let mut text = String::new();
        self.service.write_tree(&mut text).expect("a string takes all");
        text
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Apply(blob) => self.apply(blob.bytes()),
            Step::Again(which) => {
                if let Some(blob) = pick(&self.seen, which).cloned() {
                    self.apply(blob);
                }
            }
            Step::Revert(which) => {
                let all: Vec<OverlayId> = self.overlays.applied().collect();
                if let Some(id) = pick(&all, which).copied() {
                    let before = (self.registry(), self.overlays.blob().to_vec());
                    let result = self.overlays.revert(&self.service, id, &mut self.host);
                    self.check(before, result.err());
                }
            }
            Step::Assign(which) => {
                let all: Vec<_> = self.service.devices().collect();
                if let Some(info) = pick(&all, which) {
                    let _ = self.service.assign(&info.device, &self.domain);
                }
            }
            Step::Deassign(which) => {
                let all: Vec<_> = self.service.devices().collect();
                if let Some(info) = pick(&all, which) {
                    let _ = self.service.deassign_group(&info.device);
                }
            }
            Step::Finish => self.overlays.finish(&self.service, &mut self.host).expect("nothing stays behind here"),
        }
    }

    fn apply(&mut self, blob: Vec<u8>) {
        let before = (self.registry(), self.overlays.blob().to_vec());
        let preview = self.overlays.preview(&blob);
        let alone = self.overlays.applied().next().is_none();
        match self.overlays.apply(&self.service, &blob, &mut self.host) {
            Ok(outcome) => {
                assert_eq!(preview.as_ref(), Ok(&outcome.changes));
                assert!(outcome.unfinished.is_empty(), "{:?}", outcome.unfinished);
                if alone {
                    assert_eq!(merge(&before.1, &blob).as_deref(), Ok(self.overlays.blob()));
                }
                self.seen.push(blob);
                show(&self.overlays.board().expect("what was applied can be read"));
            }
            Err(error) => self.check(before, Some(error)),
        }
    }

    /// What is refused has changed nothing.
    fn check(&self, before: (String, Vec<u8>), error: Option<OverlayError>) {
        let Some(error) = error else { return };
        let sentence = error.to_string();
        assert!(!sentence.contains(|it: char| it.is_ascii_control()), "{sentence:?}");
        assert!(!matches!(error, OverlayError::NotRestored { .. }), "{sentence}");
        assert!(self.overlays.is_finished(), "{sentence}");
        assert_eq!(before, (self.registry(), self.overlays.blob().to_vec()), "{sentence}");
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Unstructured::new(data);
    let changes = <Vec<(u16, u8)>>::arbitrary(&mut input).unwrap_or_default();
    let base = changed(BASE, &changes);
    let Ok(overlays) = Overlays::new(&base) else { return };
    let machine = Machine::new();
    let mut host = Host { machine: machine.clone(), masters: Arc::new(Masters::new()), in_service: Vec::new() };
    let service = Service::new(Box::new(Sharing));
    let board = overlays.board().expect("it was read");
    for smmu in board.smmus().iter().filter(|smmu| smmu.enabled) {
        if let Ok(iommu) = host.probe(smmu) {
            service.register_iommu(iommu).expect("each has a key of its own");
        }
    }
    // What cannot be added at boot is none of this.
    if board.devices().iter().filter_map(|device| device.spec().ok()).any(|spec| service.add(spec).is_err()) {
        return;
    }
    drop(board);
    let tables = Stage2Tables::new(&machine, 0x8000_0000, 40, 40);
    let domain = service.create_domain(Label::from("guest"), tables.stage2()).expect("a domain");
    let mut world = World { service, host, overlays, domain, seen: Vec::new() };
    let (start, smmus) = (world.registry(), world.host.in_service.len());
    for _ in 0..MOST {
        if input.is_empty() {
            break;
        }
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        world.step(step);
    }

    // Everything back: what is assigned first, then the overlays, the last first.
    for info in world.service.devices().collect::<Vec<_>>() {
        if matches!(info.state, DeviceState::Assigned(_)) {
            let _ = world.service.deassign_group(&info.device);
        }
        assert!(!matches!(info.state, DeviceState::Going));
    }
    for id in world.overlays.applied().collect::<Vec<_>>().into_iter().rev() {
        world.overlays.revert(&world.service, id, &mut world.host).unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(world.overlays.blob() == base);
    assert!(world.overlays.is_finished());
    assert_eq!(world.registry(), start);
    assert_eq!(world.host.in_service.len(), smmus);
    world.service.audit(&mut |finding| panic!("{finding}"));
});

/// What guests would get to see of the devices can be read, and names no IOMMU.
fn show(board: &Board<'_>) {
    let mut tree = GuestTree::new(board, GuestLayout::new(0xfde8, 0x100)).expect("memory");
    for device in board.devices() {
        let _ = tree.device(device.node, &mut Everything);
    }
    for bridge in board.host_bridges() {
        let _ = tree.host_bridge(bridge.node, &GuestBridge::new(0x1000_0000, 0..=0), &mut Everything);
    }
    let part = tree.finish().expect("memory");
    let read = Tree::read(&part.blob).unwrap_or_else(|error| panic!("{error}"));
    for property in read.nodes().flat_map(|node| node.properties().collect::<Vec<_>>()) {
        assert!(!property.name().contains("iommu") && !property.name().contains("smmu"), "{}", property.name());
    }
}

/// A guest that has everything where the host has it.
struct Everything;

impl GuestView for Everything {
    fn interrupt(&mut self, interrupt: &Interrupt<'_>) -> Option<[u32; 3]> {
        interrupt.specifier().collect::<Vec<_>>().try_into().ok()
    }
}

fn pick<T>(all: &[T], which: u8) -> Option<&T> {
    all.get(usize::from(which) % all.len().max(1))
}

fn changed(blob: &[u8], changes: &[(u16, u8)]) -> Vec<u8> {
    let mut blob = blob.to_vec();
    for (at, value) in changes.iter().take(4) {
        let at = usize::from(*at) % blob.len();
        blob[at] = *value;
    }
    blob
}

impl Blob {
    fn bytes(self) -> Vec<u8> {
        match self {
            Self::Ours { which, changes } => changed(OVERLAYS[usize::from(which) % OVERLAYS.len()], &changes),
            Self::Made { target, nodes, labels } => made(target, nodes, &labels),
            Self::Raw(bytes) => bytes,
        }
    }
}

/// A blob in the making, and the places that refer to labels and to nodes of its own.
#[derive(Default)]
struct Maker {
    structure: Vec<u8>,
    strings: Vec<u8>,
}

impl Maker {
    fn cell(&mut self, cell: u32) {
        self.structure.extend(cell.to_be_bytes());
    }

    fn align(&mut self) {
        self.structure.resize(self.structure.len().next_multiple_of(4), 0);
    }

    fn begin(&mut self, name: &str) {
        self.cell(1);
        self.structure.extend(name.bytes().chain([0]));
        self.align();
    }

    fn end(&mut self) {
        self.cell(2);
    }

    fn property(&mut self, name: &str, value: &[u8]) {
        let at = u32::try_from(self.strings.len()).expect("short");
        self.strings.extend(name.bytes().chain([0]));
        self.cell(3);
        self.cell(u32::try_from(value.len()).expect("short"));
        self.cell(at);
        self.structure.extend(value);
        self.align();
    }

    fn finish(mut self) -> Vec<u8> {
        self.cell(9);
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("short");
        let (structure, strings) = (length(&self.structure), length(&self.strings));
        let header = [0xd00d_feed, 56 + structure + strings, 56, 56 + structure, 40, 17, 16, 0, strings, structure];
        let header = header.into_iter().flat_map(u32::to_be_bytes);
        header.chain([0; 16]).chain(self.structure).chain(self.strings).collect()
    }
}

fn made(target: Name, nodes: Vec<Made>, labels: &[(Name, u8)]) -> Vec<u8> {
    let mut maker = Maker::default();
    maker.begin("");
    maker.begin("fragment@0");
    maker.property("target-path", format!("{}\0", target.path()).as_bytes());
    maker.begin("__overlay__");
    let (mut open, mut fixups) = (Vec::<&str>::new(), BTreeMap::<&str, String>::new());
    // Path below `__overlay__`, property, offset.
    let mut own = Vec::<(Vec<&str>, &str, u32)>::new();
    for node in nodes.into_iter().take(12) {
        for _ in 0..node.up % 4 {
            if open.pop().is_some() {
                maker.end();
            }
        }
        maker.begin(node.name.node());
        open.push(node.name.node());
        for said in node.properties.into_iter().take(6) {
            let mut refer = |to: Reference, property: &'static str, offset: u32| match to {
                Reference::Label(name) => {
                    let path = open.join("/");
                    let places = fixups.entry(name.label()).or_default();
                    places.push_str(&format!("/fragment@0/__overlay__/{path}:{property}:{offset}\0"));
                    u32::MAX
                }
                Reference::Own(phandle) => {
                    own.push((open.clone(), property, offset));
                    u32::from(phandle % 8)
                }
                Reference::Any(phandle) => u32::from(phandle),
            };
            let bytes = |cells: &[u32]| cells.iter().flat_map(|cell| cell.to_be_bytes()).collect::<Vec<u8>>();
            match said {
                Said::Iommus { to, id } => {
                    let value = [refer(to, "iommus", 0), u32::from(id % 32)];
                    maker.property("iommus", &bytes(&value));
                }
                Said::IommuMap { to, base, length } => {
                    let value = [0, refer(to, "iommu-map", 4), u32::from(base), u32::from(length)];
                    maker.property("device_type", b"pci\0");
                    maker.property("iommu-map", &bytes(&value));
                }
                Said::Status(on) => maker.property("status", if on { b"okay\0" } else { b"disabled\0" }),
                Said::Phandle(phandle) => maker.property("phandle", &bytes(&[u32::from(phandle % 8)])),
                Said::Smmu { base } => {
                    maker.property("compatible", b"arm,smmu-v2\0");
                    maker.property("reg", &bytes(&[u32::from(base) << 20, 0x2_0000]));
                    maker.property("#iommu-cells", &bytes(&[1]));
                    maker.property("#global-interrupts", &bytes(&[0]));
                }
                Said::Passthrough => maker.property("xen,passthrough", &[]),
                Said::Other { name, value } => maker.property(name.label(), &bytes(&[value])),
            }
        }
    }
    for _ in open {
        maker.end();
    }
    maker.end();
    maker.end();
    maker.begin("__symbols__");
    for (label, path) in labels.iter().take(4) {
        let path = if path % 2 == 0 { "/fragment@0/__overlay__/dma@200000\0" } else { "/fragment@0/__overlay__\0" };
        maker.property(label.label(), path.as_bytes());
    }
    maker.end();
    maker.begin("__fixups__");
    for (label, places) in &fixups {
        maker.property(label, places.as_bytes());
    }
    maker.end();
    maker.begin("__local_fixups__");
    maker.begin("fragment@0");
    maker.begin("__overlay__");
    // One place only: two would need their common nodes once.
    if let Some((path, property, offset)) = own.first() {
        path.iter().for_each(|name| maker.begin(name));
        maker.property(property, &offset.to_be_bytes());
        path.iter().for_each(|_| maker.end());
    }
    for _ in 0..4 {
        maker.end();
    }
    maker.finish()
}
