//! What a guest gets to see of its devices (contract A-6, S-7).

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

#[path = "dt_support/builder.rs"]
mod builder;
#[path = "dt_support/files.rs"]
mod files;

use std::io::Write;
use std::process::{Command, Stdio};

use builder::Builder;
use iommu_assign::dt::guest::{Dependency, GuestBridge, GuestError, GuestLayout, GuestPart, GuestTree, GuestView};
use iommu_assign::dt::{Board, Interrupt, NodeId, Region, Tree};

const GIC: u32 = 0xfde8;
const LAYOUT: GuestLayout = GuestLayout::new(GIC, 0x100);

/// A guest that has everything where the host has it.
struct Same;

impl GuestView for Same {
    fn interrupt(&mut self, interrupt: &Interrupt<'_>) -> Option<[u32; 3]> {
        let cells: Vec<u32> = interrupt.specifier().collect();
        cells.try_into().ok()
    }
}

/// A guest that has registers 0x1000_0000 further up, nothing above `end`, and one interrupt less.
struct Moved {
    end: u64,
    lacks: u32,
}

impl GuestView for Moved {
    fn place(&mut self, registers: Region) -> Option<u64> {
        (registers.base() < self.end).then(|| registers.base() + 0x1000_0000)
    }

    fn interrupt(&mut self, interrupt: &Interrupt<'_>) -> Option<[u32; 3]> {
        let cells: Vec<u32> = interrupt.specifier().collect();
        (cells[1] != self.lacks).then(|| [cells[0], cells[1] + 100, cells[2]])
    }
}

fn node(board: &Board<'_>, path: &str) -> NodeId {
    board.tree().find(path).unwrap_or_else(|| panic!("no {path}")).id()
}

fn shown(blob: &[u8], path: &str, view: &mut dyn GuestView) -> Result<GuestPart, GuestError> {
    let board = Board::read(blob).unwrap();
    let mut tree = GuestTree::new(&board, LAYOUT)?;
    tree.device(node(&board, path), view)?;
    tree.finish()
}

fn cells(tree: &Tree<'_>, path: &str, property: &str) -> Vec<u32> {
    let node = tree.find(path).unwrap_or_else(|| panic!("no {path}"));
    let value = node.property(property).unwrap_or_else(|| panic!("no {property}")).value();
    value.chunks(4).map(|cell| u32::from_be_bytes(cell.try_into().unwrap())).collect()
}

fn text(tree: &Tree<'_>, path: &str, property: &str) -> String {
    let value = tree.find(path).unwrap().property(property).unwrap().value();
    String::from_utf8(value.to_vec()).unwrap()
}

/// What is missing, in short.
fn missing(part: &GuestPart) -> Vec<String> {
    let one = |missing: &iommu_assign::dt::guest::Missing| {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let (property, name, target) = (text(&missing.property), text(&missing.name), text(&missing.target));
        format!("{} {:?} {property} {name} {target} {:?}", missing.node, missing.kind, missing.specifier)
    };
    part.missing.iter().map(one).collect()
}

/// No property of the tree names an IOMMU, and none refers to a node that is not there.
fn check_clean(part: &GuestPart) {
    let tree = Tree::read(&part.blob).unwrap();
    for node in tree.nodes() {
        for property in node.properties() {
            let name = property.name();
            let bad = ["iommu", "smmu", "mmu-masters", "stream-id"].iter().any(|bad| name.contains(bad));
            assert!(!bad, "{:?} has {name}", node.path());
            if ["clocks", "power-domains", "pinctrl-0", "resets", "phys", "phy-handle"].contains(&name) {
                let phandle = u32::from_be_bytes(property.value()[..4].try_into().unwrap());
                assert!(tree.by_phandle(phandle).is_some(), "{:?}: {name} leads nowhere", node.path());
            }
            assert!(node.property("status").is_none());
        }
    }
    assert_eq!(fdt_edit::Fdt::from_bytes(&part.blob).unwrap().node_count(), tree.nodes().count());
    if part.blob.len() < 4096 {
        fdt::Fdt::new(&part.blob).unwrap();
    }
}

/// What the device-tree compiler says of a blob; nothing where it is not installed.
fn compiler_says(blob: &[u8]) -> String {
    let child = Command::new("dtc")
        .args(["-I", "dtb", "-O", "dts", "-o", "/dev/null", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        files::skipped("skipped: dtc is not installed");
        return String::new();
    };
    child.stdin.take().unwrap().write_all(blob).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn a_guest_sees_its_node_with_registers_and_interrupts_and_no_smmu() {
    let part = shown(files::SLOTS, "/soc/ethernet@100000", &mut Same).unwrap();
    check_clean(&part);
    let tree = Tree::read(&part.blob).unwrap();
    let at = "/passthrough/ethernet@20100000";
    assert_eq!(cells(&tree, at, "reg"), [0, 0x2010_0000, 0, 0x1000, 0, 0x2010_2000, 0, 0x100]);
    assert_eq!(text(&tree, at, "reg-names"), "mac\0wrapper\0");
    assert_eq!(cells(&tree, at, "interrupts"), [0, 50, 4, 0, 51, 4]);
    assert_eq!(text(&tree, at, "interrupt-names"), "rx\0tx\0");
    assert_eq!(text(&tree, at, "compatible"), "example,ethernet\0");
    assert!(tree.find(at).unwrap().property("dma-coherent").is_some());
    assert_eq!(cells(&tree, "/passthrough", "interrupt-parent"), [GIC]);
    assert_eq!(text(&tree, "/passthrough", "compatible"), "simple-bus\0");
    // Its PHY is below it and comes with it.
    let phy = tree.find("/passthrough/ethernet@20100000/mdio/ethernet-phy@4").unwrap();
    assert_eq!(cells(&tree, at, "phy-handle"), [phy.phandle().unwrap()]);
    assert_eq!(phy.property("reg").unwrap().value(), [0, 0, 0, 4]);
    assert_eq!(cells(&tree, "/passthrough/ethernet@20100000/mdio", "#size-cells"), [0]);
    let clocks = "/clock-controller@9000000";
    let expected = [
        format!("/soc/ethernet@100000 Clock clocks bus {clocks} [1]"),
        format!("/soc/ethernet@100000 Clock clocks phy {clocks} [2]"),
        format!("/soc/ethernet@100000 Reset resets  {clocks} [7]"),
        format!("/soc/ethernet@100000 PowerDomain power-domains  {clocks} [3]"),
    ];
    assert_eq!(missing(&part), expected);
    // The guest's GIC is the integrator's, and not in this part.
    let says = compiler_says(&part.blob);
    assert!(says.lines().all(|line| line.contains("interrupt")), "{says}");
}

#[test]
fn registers_and_interrupts_are_where_the_integrator_has_them() {
    let mut view = Moved { end: 0x2010_2000, lacks: 50 };
    let refused = shown(files::SLOTS, "/soc/ethernet@100000", &mut view).unwrap_err();
    assert_eq!(refused.to_string(), "/soc/ethernet@100000: the guest has no place for its 0x100 bytes at 0x20102000");
    view.end = u64::MAX;
    let part = shown(files::SLOTS, "/soc/ethernet@100000", &mut view).unwrap();
    let tree = Tree::read(&part.blob).unwrap();
    let at = "/passthrough/ethernet@30100000";
    assert_eq!(cells(&tree, at, "reg")[..4], [0, 0x3010_0000, 0, 0x1000]);
    assert_eq!(cells(&tree, at, "interrupts"), [0, 151, 4]);
    assert_eq!(text(&tree, at, "interrupt-names"), "tx\0");
    let gic = "/interrupt-controller@8000000";
    assert_eq!(missing(&part)[0], format!("/soc/ethernet@100000 Interrupt interrupts rx {gic} [0, 50, 4]"));
}

/// A bus that is a device, with a device of its own below it, one that is not, and one that is disabled.
fn nested() -> Vec<u8> {
    let mut board = Builder::board();
    board.smmu(0x1000, 1, 1);
    board.begin("gpio").cells("phandle", &[7]).cells("#gpio-cells", &[2]).end();
    board.begin("supply").cells("phandle", &[8]).end();
    board.begin("bus").cells("#address-cells", &[1]).cells("#size-cells", &[1]);
    board.cells("ranges", &[0, 0, 0x4000_0000, 0x1000_0000]).cells("dma-ranges", &[0x8000_0000, 0, 0, 0x4000_0000]);
    board.begin("usb@0").cells("reg", &[0, 0x100]).property("ranges", &[]).cells("iommus", &[1, 5]);
    board.cells("#address-cells", &[1]).cells("#size-cells", &[1]).cells("reset-gpios", &[7, 3, 1, 9, 0, 1]);
    board.cells("vbus-supply", &[8]).strings("example,mode", &["host"]).cells("dr-modes", &[1, 2]);
    board.begin("core@100").cells("reg", &[0x100, 0x200]).cells("phys", &[9, 4]).end();
    board.begin("phy@400").cells("reg", &[0x400, 0x100]).cells("#phy-cells", &[1]).cells("phandle", &[9]);
    board.cells("#gpio-cells", &[2]).end();
    board.begin("engine@800").cells("reg", &[0x800, 0x100]).cells("iommus", &[1, 6]).end();
    board.begin("off@900").cells("reg", &[0x900, 0x100]).strings("status", &["disabled"]);
    board.begin("below").end().end();
    board.end().end();
    board.finish()
}

#[test]
fn what_is_below_comes_with_its_node_but_for_other_devices_and_disabled_ones() {
    let part = shown(&nested(), "/bus/usb@0", &mut Same).unwrap();
    check_clean(&part);
    let tree = Tree::read(&part.blob).unwrap();
    // DMA addresses of the bus begin at 0x8000_0000, and so they do in the guest.
    assert_eq!(cells(&tree, "/passthrough/dma-bus-0", "dma-ranges"), [0, 0x8000_0000, 0, 0, 0, 0x4000_0000]);
    let at = "/passthrough/dma-bus-0/usb@40000000";
    let children: Vec<&str> = tree.find(at).unwrap().children().map(|child| child.name()).collect();
    assert_eq!(children, ["core@40000100", "phy@40000400"]);
    assert_eq!(cells(&tree, &format!("{at}/core@40000100"), "reg"), [0, 0x4000_0100, 0, 0x200]);
    assert_eq!(cells(&tree, at, "#address-cells"), [2]);
    assert_eq!(tree.find(at).unwrap().property("ranges").unwrap().value(), []);
    // A reference within stays one.
    let phandle = tree.find(&format!("{at}/phy@40000400")).unwrap().phandle().unwrap();
    assert_eq!(phandle, LAYOUT.first_phandle);
    assert_eq!(cells(&tree, &format!("{at}/core@40000100"), "phys"), [phandle, 4]);
    assert_eq!(text(&tree, at, "example,mode"), "host\0");
    assert_eq!(cells(&tree, at, "dr-modes"), [1, 2]);
    let expected = [
        "/bus/usb@0/engine@800 Device   /bus/usb@0/engine@800 []",
        "/bus/usb@0 Gpio reset-gpios  /gpio [3, 1]",
        "/bus/usb@0 Regulator vbus-supply  /supply []",
    ];
    assert_eq!(missing(&part), expected);
    assert_eq!(compiler_says(&part.blob).lines().filter(|line| line.contains("unit_address")).count(), 0);
}

/// A bus that a guest may reach, with what no guest may below it: IOMMUs, and what does DMA that nobody was told to confine.
fn shared_bus() -> Vec<u8> {
    let mut board = Builder::board();
    board.smmu(0x1000, 1, 1);
    board.begin("bus@40000000").cells("reg", &[0, 0x4000_0000, 0, 0x1000]).property("ranges", &[]);
    board.cells("#address-cells", &[2]).cells("#size-cells", &[2]).cells("iommus", &[1, 5]);
    board.smmu(0x4001_0000, 2, 1);
    board.begin("iommu@40020000").strings("compatible", &["example,iommu"]).cells("reg", &[0, 0x4002_0000, 0, 0x1000]);
    board.cells("#iommu-cells", &[0]).cells("phandle", &[3]).end();
    board.begin("foreign@40030000").cells("reg", &[0, 0x4003_0000, 0, 0x1000]).cells("iommus", &[3]).end();
    board.begin("malformed@40040000").cells("reg", &[0, 0x4004_0000, 0, 0x1000]).cells("iommus", &[1]).end();
    board.begin("pcie@40100000").cells("reg", &[0, 0x4010_0000, 0, 0x10_0000]).strings("device_type", &["pci"]);
    board.cells("#address-cells", &[3]).cells("#size-cells", &[2]).cells("iommu-map", &[0, 1, 0, 0x1_0000]).end();
    board.begin("pcie@40200000").cells("reg", &[0, 0x4020_0000, 0, 0x10_0000]).cells("bus-range", &[0, 0]);
    board.cells("#address-cells", &[3]).cells("#size-cells", &[2]);
    board.begin("below").end().end();
    board.begin("core@40300000").cells("reg", &[0, 0x4030_0000, 0, 0x1000]).end();
    board.end();
    board.finish()
}

#[test]
fn i2_no_iommu_and_no_other_dma_comes_with_a_node() {
    let blob = shared_bus();
    let board = Board::read_lenient(&blob).unwrap();
    let mut tree = GuestTree::new(&board, LAYOUT).unwrap();
    tree.device(node(&board, "/bus@40000000"), &mut Same).unwrap();
    let part = tree.finish().unwrap();
    check_clean(&part);
    let shown = Tree::read(&part.blob).unwrap();
    let children: Vec<&str> =
        shown.find("/passthrough/bus@40000000").unwrap().children().map(|child| child.name()).collect();
    assert_eq!(children, ["core@40300000"]);
    let other = |name: &str| format!("/bus@40000000/{name} Device   /bus@40000000/{name} []");
    let others = ["foreign@40030000", "malformed@40040000", "pcie@40100000", "pcie@40200000"];
    assert_eq!(missing(&part), others.map(other));

    let mut tree = GuestTree::new(&board, LAYOUT).unwrap();
    for path in ["/iommu@1000", "/bus@40000000/iommu@40020000"] {
        let refused = tree.device(node(&board, path), &mut Same).unwrap_err();
        assert_eq!(refused.to_string(), format!("{path}: it is an IOMMU, which no guest gets"));
    }
    let refused = tree.device(node(&board, "/bus@40000000/pcie@40200000"), &mut Same).unwrap_err();
    assert!(matches!(refused, GuestError::HostBridge { .. }), "{refused}");
}

#[test]
fn several_nodes_share_a_tree_and_what_fails_leaves_it_as_it_was() {
    let blob = nested();
    let board = Board::read(&blob).unwrap();
    let mut tree = GuestTree::new(&board, LAYOUT).unwrap();
    let usb = node(&board, "/bus/usb@0");
    tree.device(usb, &mut Same).unwrap();
    let again = tree.device(usb, &mut Same).unwrap_err();
    assert_eq!(again.to_string(), "/bus/usb@0: in the guest it would be named usb@40000000, as /bus/usb@0 is already");
    let off = tree.device(node(&board, "/bus/usb@0/off@900/below"), &mut Same).unwrap_err();
    assert_eq!(off.to_string(), "/bus/usb@0/off@900/below: firmware disables it");
    // The child has no place: nothing of the node stays.
    let mut nowhere = Moved { end: 0x4000_0100, lacks: 0 };
    let mut other = GuestTree::new(&board, LAYOUT).unwrap();
    let refused = other.device(usb, &mut nowhere).unwrap_err();
    assert_eq!(refused.to_string(), "/bus/usb@0/core@100: the guest has no place for its 0x200 bytes at 0x40000100");
    let empty = GuestTree::new(&board, LAYOUT).unwrap().finish().unwrap();
    let left = other.finish().unwrap();
    assert_eq!(shape(&left.blob), shape(&empty.blob));
    assert_eq!(left.missing, []);
    tree.device(node(&board, "/bus/usb@0/engine@800"), &mut Same).unwrap();
    let part = tree.finish().unwrap();
    let paths: Vec<String> = Tree::read(&part.blob).unwrap().nodes().map(|node| node.path().unwrap()).collect();
    assert_eq!(paths.last().unwrap(), "/passthrough/dma-bus-1/engine@40000800");

    let mut none_left = GuestTree::new(&board, GuestLayout::new(GIC, u32::MAX)).unwrap();
    let refused = none_left.device(usb, &mut Same).unwrap_err();
    assert_eq!(refused.to_string(), "/bus/usb@0/phy@400: no phandle is left for it");
}

/// Paths with the names of their properties.
fn shape(blob: &[u8]) -> Vec<(String, Vec<String>)> {
    let tree = Tree::read(blob).unwrap();
    let names = |node: iommu_assign::dt::Node<'_, '_>| node.properties().map(|it| it.name().to_owned()).collect();
    tree.nodes().map(|node| (node.path().unwrap(), names(node))).collect()
}

#[test]
fn s7_functions_get_a_generic_host_bridge_with_the_windows_that_the_guest_has() {
    let mut board = Builder::board();
    board.smmu(0x1000, 1, 1);
    board.begin("pcie@30000000").strings("device_type", &["pci"]).cells("iommu-map", &[0, 1, 0, 0x1_0000]);
    board.cells("#address-cells", &[3]).cells("#size-cells", &[2]).property("dma-coherent", &[]);
    let windows = [
        [0x0100_0000, 0, 0, 0, 0x3eff_0000, 0, 0x1_0000],
        [0x0200_0000, 0, 0x1000_0000, 0, 0x1000_0000, 0, 0x2eff_0000],
        [0x4300_0000, 0x80, 0, 0x80, 0, 0x80, 0],
    ];
    board.cells("ranges", &windows.concat()).end();
    let blob = board.finish();
    let board = Board::read(&blob).unwrap();
    let bridge = &board.host_bridges()[0];
    let mut tree = GuestTree::new(&board, LAYOUT).unwrap();
    let refused = tree.device(bridge.node, &mut Same).unwrap_err();
    assert_eq!(refused.to_string(), "/pcie@30000000: it is a PCI host bridge, of which a guest gets functions");
    let mut shown = GuestBridge::new(0x1000_0000, 0..=0);
    shown.msi = Some((0x99, 0x20));
    shown.pins = Some([[0, 1, 4], [0, 2, 4], [0, 3, 4], [0, 4, 4]]);
    shown.segment = Some(3);
    // The window above 4 GiB is not the guest's.
    let mut view = Moved { end: 0x1_0000_0000, lacks: 0 };
    tree.host_bridge(bridge.node, &shown, &mut view).unwrap();
    let part = tree.finish().unwrap();
    check_clean(&part);
    let tree = Tree::read(&part.blob).unwrap();
    let at = "/passthrough/pcie@10000000";
    assert_eq!(text(&tree, at, "compatible"), "pci-host-ecam-generic\0");
    assert_eq!(cells(&tree, at, "reg"), [0, 0x1000_0000, 0, 0x10_0000]);
    assert_eq!(cells(&tree, at, "bus-range"), [0, 0]);
    let expected = [
        [0x0100_0000, 0, 0, 0, 0x4eff_0000, 0, 0x1_0000],
        [0x0200_0000, 0, 0x1000_0000, 0, 0x2000_0000, 0, 0x2eff_0000],
    ];
    assert_eq!(cells(&tree, at, "ranges"), expected.concat());
    assert_eq!(cells(&tree, at, "msi-map"), [0, 0x99, 0x20, 0x1_0000]);
    assert_eq!(cells(&tree, at, "interrupt-map")[8..16], [0, 0, 0, 2, GIC, 0, 2, 4]);
    assert_eq!(cells(&tree, at, "linux,pci-domain"), [3]);
    assert!(tree.find(at).unwrap().property("dma-coherent").is_some());
    assert_eq!(part.missing, []);
}

#[test]
fn a6_each_device_of_each_board_can_be_shown_or_says_why_not() {
    let own = files::OWN.map(|(name, blob)| (name.to_owned(), blob.to_vec()));
    let (mut devices, mut refused, mut longest) = (0, Vec::new(), 0);
    for (name, blob) in own.into_iter().chain(files::real_boards("dt_guest")) {
        let Ok(board) = Board::read_lenient(&blob) else { continue };
        for device in board.devices().iter().filter(|device| device.enabled) {
            let mut tree = GuestTree::new(&board, LAYOUT).unwrap();
            match tree.device(device.node, &mut Same) {
                Ok(()) => {
                    let part = tree.finish().unwrap();
                    check_clean(&part);
                    devices += 1;
                    longest = longest.max(part.missing.len());
                    // What is missing is told by the path of a node of the board.
                    for missing in &part.missing {
                        assert!(board.tree().find(&missing.node).is_some(), "{missing:?}");
                        let known = |path: &String| board.tree().find(path).is_some();
                        assert!(missing.target.as_ref().is_none_or(known), "{missing:?}");
                        assert!(missing.kind != Dependency::Other || missing.property.is_some());
                    }
                }
                Err(error) => refused.push(format!("{name}: {error}")),
            }
        }
    }
    assert!(devices > 20, "{devices} devices, {refused:#?}");
    assert!(longest > 0);
    // The contexts of a DSP's RPC stand on no bus: a guest cannot have one without the DSP.
    let unknown = |line: &&String| !line.contains("host bridge") && !line.ends_with("is no CPU address");
    assert_eq!(refused.iter().filter(unknown).collect::<Vec<_>>(), Vec::<&String>::new());
}
