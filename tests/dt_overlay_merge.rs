//! Overlays merged and compared (contract ): against the field's own tool, and what is refused.

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

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use builder::Builder;
use files::{CARD, DAUGHTER, FABRIC, OVERLAYS, PCIE, RESTREAM, REWIRE, SLOTS};
use iommu_assign::dt::overlay::{Change, Changes, OverlayError, OverlayFault, compare, merge};
use iommu_assign::dt::{Board, Tree};

/// A tree as nobody's order has it: properties by path and name.
type Shape = BTreeMap<String, BTreeMap<String, Vec<u8>>>;

fn shape(blob: &[u8]) -> Shape {
    let tree = Tree::read(blob).unwrap();
    let properties = |node: iommu_assign::dt::Node<'_, '_>| {
        node.properties().map(|property| (property.name().to_owned(), property.value().to_vec())).collect()
    };
    tree.nodes().map(|node| (node.path().unwrap(), properties(node))).collect()
}

/// Whether one of the tools is there; says so where it is not.
fn have(tool: &str) -> bool {
    let found = Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        files::skipped(&format!("skipped: {tool} is not installed"));
    }
    found
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("iommu-assign-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What Debian's tool makes of a base and overlays; an error is its message.
fn oracle(name: &str, base: &[u8], overlays: &[&[u8]]) -> Result<Vec<u8>, String> {
    let folder = Folder::new(name);
    let out = folder.0.join("out.dtb");
    let mut command = Command::new("fdtoverlay");
    command.arg("-i").arg(folder.write("base.dtb", base)).arg("-o").arg(&out);
    for (at, overlay) in overlays.iter().enumerate() {
        command.arg(folder.write(&format!("{at}.dtbo"), overlay));
    }
    let output = command.output().unwrap();
    if output.status.success() {
        Ok(fs::read(out).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

fn merged(overlays: &[&[u8]]) -> Vec<u8> {
    overlays.iter().fold(SLOTS.to_vec(), |tree, overlay| merge(&tree, overlay).unwrap())
}

#[test]
fn each_blob_is_what_the_compiler_makes_of_its_source() {
    if !have("dtc") {
        return;
    }
    let all = OVERLAYS.map(|(name, blob)| (format!("{name}.dtso"), blob));
    for (name, blob) in [("slots.dts".to_owned(), SLOTS), ("pcie.dtso".to_owned(), PCIE)].into_iter().chain(all) {
        let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("boards/overlays").join(&name);
        let output = Command::new("dtc").args(["-q", "-@", "-I", "dts", "-O", "dtb"]).arg(source).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == blob, "{name}: compile it again");
    }
}

#[test]
fn a_merged_tree_is_what_the_fields_tool_makes() {
    if !have("fdtoverlay") {
        return;
    }
    let cases: [&[&[u8]]; 8] = [
        &[CARD],
        &[FABRIC],
        &[REWIRE],
        &[RESTREAM],
        &[CARD, DAUGHTER],
        &[FABRIC, CARD, DAUGHTER, REWIRE],
        &[CARD, DAUGHTER, FABRIC, REWIRE, RESTREAM],
        &[RESTREAM, REWIRE, FABRIC, CARD, DAUGHTER],
    ];
    for (at, overlays) in cases.into_iter().enumerate() {
        let theirs = oracle(&format!("merge-{at}"), SLOTS, overlays).unwrap();
        assert_eq!(shape(&merged(overlays)), shape(&theirs), "case {at}");
    }
}

#[test]
fn a_merged_tree_is_a_blob_that_all_readers_take() {
    let blob = merged(&[CARD, DAUGHTER, FABRIC, REWIRE]);
    // The base's reservation stays; 0xf0000000 + 0x10000.
    assert_eq!(blob[40..56], [0, 0, 0, 0, 0xf0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
    let other = fdt_edit::Fdt::from_bytes(&blob).unwrap();
    assert_eq!(other.node_count(), shape(&blob).len());
    assert!(fdt::Fdt::new(&blob).unwrap().find_node("/soc/dma@200000/core@2").is_some());
    let board = Board::read(&blob).unwrap();
    let offered = board.devices().iter().filter(|device| device.not_offered().is_none());
    let paths: Vec<&str> = offered.map(|device| device.path.as_str()).collect();
    let expected = [
        "/soc/usb@110000",
        "/soc/crypto@120000",
        "/soc/dma@200000",
        "/soc/dma@200000/core@1",
        "/soc/dma@200000/core@2",
        "/soc/accelerator@300000",
        "/soc/accelerator@310000",
    ];
    assert_eq!(paths, expected);
}

/// Real trees, with names of any length, come through as they are.
#[test]
fn any_board_with_an_overlay_on_it_is_what_the_fields_tool_makes() {
    let mut overlay = onto("/");
    overlay.cells("example,new-property", &[7]).strings("model", &["another"]);
    overlay.begin("example-node").cells("phandle", &[1]).cells("self", &[1]).end().end().end();
    overlay.begin("__local_fixups__").begin("fragment@0").begin("__overlay__").begin("example-node");
    let overlay = overlay.cells("self", &[0]).end().end().end().end().finish();
    let own = files::OWN.map(|(name, blob)| (name.to_owned(), blob.to_vec()));
    let have_tool = have("fdtoverlay");
    for (name, base) in own.into_iter().chain(files::real_boards("dt_overlay_merge")) {
        let merged = merge(&base, &overlay).unwrap();
        let tree = Tree::read(&merged).unwrap();
        let node = tree.find("/example-node").unwrap();
        let reference = node.property("self").unwrap().value();
        assert_eq!(Some(u32::from_be_bytes(reference.try_into().unwrap())), node.phandle(), "{name}");
        let found = changes(&base, &merged);
        let paths: Vec<&str> = found.nodes.iter().map(|node| node.path.as_str()).collect();
        assert_eq!((paths, found.devices.len()), (vec!["/", "/example-node"], 0), "{name}");
        if have_tool {
            let theirs = oracle(&format!("board-{name}"), &base, &[&overlay]).unwrap();
            assert_eq!(shape(&merged), shape(&theirs), "{name}");
        }
    }
}

/// A tree is written as it was read, whatever version and padding it had.
#[test]
fn a_tree_of_version_16_with_padding_is_written_as_it_was_read() {
    let mut base = Builder::new();
    (base.version, base.nops) = (16, true);
    base.begin("").begin("soc").property("a", &[1]).property("b", &[]).property("a-b", &[1, 2, 3, 4, 5]).end();
    let base = base.finish();
    let merged = merge(&base, &closed(&mut onto("/soc"))).unwrap();
    assert_eq!(shape(&merged), shape(&base));
    assert_eq!(merged[20..28], [0, 0, 0, 17, 0, 0, 0, 16]);
}

/// Path, change, and streams that come and go, of each device.
fn told(changes: &Changes) -> Vec<String> {
    let device = |device: &iommu_assign::dt::overlay::DeviceChange| {
        let streams = |streams: &[iommu_assign::assign::Stream]| {
            streams.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        format!("{} {:?} +[{}] -[{}]", device.path, device.change, streams(&device.come), streams(&device.go))
    };
    changes.devices.iter().map(device).collect()
}

fn changes(old: &[u8], new: &[u8]) -> Changes {
    compare(&Board::read(old).unwrap(), &Board::read(new).unwrap()).unwrap()
}

#[test]
fn what_comes_goes_and_changes_is_told_by_path() {
    let with = merged(&[REWIRE]);
    let found = changes(SLOTS, &with);
    let smmu = "iommu@25000000";
    let expected = [
        format!("/soc/usb@110000 Comes +[{smmu}/0x50] -[]"),
        format!("/soc/crypto@120000 Comes +[{smmu}/0x20] -[]"),
        format!("/soc/ethernet@100000 Goes +[] -[{smmu}/0x10]"),
    ];
    assert_eq!(told(&found), expected);
    let nodes: Vec<_> =
        found.nodes.iter().map(|node| (node.path.as_str(), node.change, &node.properties[..])).collect();
    let property = |name: &str| vec![name.to_owned()];
    let (iommus, status) = (property("iommus"), property("status"));
    let expected = [
        ("/soc/ethernet@100000", Change::Changes, &status[..]),
        ("/soc/usb@110000", Change::Changes, &iommus[..]),
        ("/soc/crypto@120000", Change::Changes, &status[..]),
    ];
    assert_eq!(nodes, expected);

    let back = changes(&with, SLOTS);
    assert_eq!(told(&back)[0], format!("/soc/ethernet@100000 Comes +[{smmu}/0x10] -[]"));
    assert_eq!(back.nodes[1].properties, iommus);

    let restreamed = changes(SLOTS, &merged(&[RESTREAM]));
    assert_eq!(told(&restreamed), [format!("/soc/ethernet@100000 Changes +[{smmu}/0x11] -[{smmu}/0x10]")]);

    let fabric = changes(SLOTS, &merged(&[FABRIC]));
    assert_eq!(fabric.smmus.len(), 1);
    assert_eq!((fabric.smmus[0].path.as_str(), fabric.smmus[0].change), ("/soc/iommu@6000000", Change::Comes));
    assert_eq!(fabric.nodes.iter().filter(|node| node.change == Change::Comes).count(), 3);
    assert!(changes(SLOTS, SLOTS).is_empty());
}

/// An overlay with one fragment, whose `target-path` is this.
fn onto(target: &str) -> Builder {
    let mut overlay = Builder::new();
    overlay.begin("").begin("fragment@0").strings("target-path", &[target]).begin("__overlay__");
    overlay
}

/// Ends the fragment of [`onto`].
fn closed(overlay: &mut Builder) -> Vec<u8> {
    overlay.end().end().finish()
}

fn refused(overlay: &[u8]) -> String {
    merge(SLOTS, overlay).unwrap_err().to_string()
}

#[test]
fn a6_what_an_overlay_refers_to_must_be_there_and_the_node_is_named() {
    // A label that only the card brings.
    let core = "/fragment@0: `target` refers to &dma0, and the tree has no such label";
    assert_eq!(refused(DAUGHTER), core);

    let missing = refused(&closed(&mut onto("/soc/none@1")));
    assert_eq!(missing, "/fragment@0: its target /soc/none@1 is not in the tree");

    let mut no_target = Builder::new();
    no_target.begin("").begin("fragment@0").begin("__overlay__").end().end();
    let no_target = refused(&no_target.finish());
    assert_eq!(no_target, "/fragment@0: it has neither a `target` nor a `target-path` that can be read");

    let mut literal = Builder::new();
    literal.begin("").begin("fragment@0").cells("target", &[0x77]).begin("__overlay__").end().end();
    assert_eq!(refused(&literal.finish()), "/fragment@0: its target phandle 0x77 is not in the tree");

    assert_eq!(refused(SLOTS), "/: it has no fragment with an `__overlay__`: this is no overlay");
    let cut = refused(&CARD[..100]);
    assert_eq!(
        cut,
        "the overlay cannot be read: device tree blob: truncated: 764 bytes are needed and 100 are there (byte 0x64)"
    );

    // A device behind no IOMMU that is there, told of the tree that would be.
    let mut dangling = onto("/soc");
    dangling.begin("dma@1").cells("iommus", &[0x99, 1]).end();
    let overlays = iommu_assign::dt::overlay::Overlays::new(SLOTS).unwrap();
    let error = overlays.preview(&closed(&mut dangling)).unwrap_err();
    let says = "with this change /soc/dma@1: entry 0 of `iommus` refers to phandle 0x99, which no node has";
    assert_eq!(error.to_string(), says);
}

#[test]
fn a6_fixups_that_name_no_place_are_refused() {
    let with_fixup = |entry: &str| {
        let mut overlay = onto("/soc");
        overlay.begin("dma@1").cells("iommus", &[u32::MAX, 1]).end().end().end();
        overlay.begin("__fixups__").strings("smmu", &[entry]).end();
        overlay.finish()
    };
    let good = "/fragment@0/__overlay__/dma@1:iommus:0";
    assert!(merge(SLOTS, &with_fixup(good)).is_ok());
    let at = "/fragment@0/__overlay__/dma@1:iommus";
    for bad in [
        "",
        ":",
        "::",
        at,
        &format!("{at}:5"),
        &format!("{at}:+0"),
        &format!("{at}:99999999999999999999"),
        "/none:iommus:0",
    ] {
        let says = "/__fixups__: `smmu` has an entry that names no four bytes of a property of the overlay";
        assert_eq!(refused(&with_fixup(bad)), says, "{bad:?}");
    }

    let with_local = |property: &str, offsets: &[u8], phandle: u32| {
        let mut overlay = onto("/soc");
        overlay
            .begin("dma@1")
            .cells("friend", &[phandle])
            .end()
            .begin("friend")
            .cells("phandle", &[5])
            .end()
            .end()
            .end();
        overlay.begin("__local_fixups__").begin("fragment@0").begin("__overlay__").begin("dma@1");
        overlay.property(property, offsets).end().end().end().end();
        overlay.finish()
    };
    assert!(merge(SLOTS, &with_local("friend", &[0; 4], 5)).is_ok());
    let at = "/__local_fixups__/fragment@0/__overlay__/dma@1";
    for (property, offsets) in [("friend", &[0, 0, 0, 1][..]), ("friend", &[0; 3]), ("enemy", &[0; 4])] {
        let says = format!("{at}: `{property}` has an entry that names no four bytes of a property of the overlay");
        assert_eq!(refused(&with_local(property, offsets, 5)), says);
    }
    let says = "/fragment@0/__overlay__/dma@1: `friend` refers to phandle 0x6, which no fragment up to this one puts into the tree";
    assert_eq!(refused(&with_local("friend", &[0; 4], 6)), says);
}

#[test]
fn phandles_that_the_tree_has_stay_and_the_overlays_own_move_behind_them() {
    let phandle = |blob: &[u8], path: &str| Tree::read(blob).unwrap().find(path).unwrap().phandle();
    let smmu = phandle(SLOTS, "/soc/iommu@5000000").unwrap();
    // Gives the SMMU, which has a phandle, one of its own, and refers to it by that.
    let mut overlay = onto("/soc");
    overlay.begin("iommu@5000000").cells("phandle", &[1]).end();
    overlay.begin("dma@1").cells("iommus", &[1, 9]).cells("phandle", &[2]).end().end().end();
    overlay.begin("__local_fixups__").begin("fragment@0").begin("__overlay__").begin("dma@1").cells("iommus", &[0]);
    let blob = merge(SLOTS, &overlay.end().end().end().end().finish()).unwrap();
    assert_eq!(phandle(&blob, "/soc/iommu@5000000"), Some(smmu));
    let greatest = Tree::read(SLOTS).unwrap().nodes().filter_map(|node| node.phandle()).max().unwrap();
    assert_eq!(phandle(&blob, "/soc/dma@1"), Some(greatest + 2));
    let board = Board::read(&blob).unwrap();
    let streams = |path: &str| board.devices().iter().find(|device| device.path == path).unwrap().streams.clone();
    assert_eq!(streams("/soc/dma@1")[0].to_string(), "iommu@25000000/0x9");
    assert_eq!(streams("/soc/ethernet@100000")[0].to_string(), "iommu@25000000/0x10");

    let mut last = onto("/soc");
    last.begin("dma@1").cells("phandle", &[0xffff_fffe]).end();
    let error = merge(SLOTS, &closed(&mut last)).unwrap_err();
    let fault = OverlayFault::PhandlesExhausted;
    assert_eq!(error, OverlayError::Fault { path: "/fragment@0/__overlay__/dma@1".to_owned(), fault });
}

#[test]
fn targets_are_found_by_alias_and_by_a_name_without_its_address() {
    for target in ["io", "/soc", "io/", "ethernet0/mdio", "/soc/usb"] {
        let mut overlay = onto(target);
        overlay.begin("new").end();
        let blob = merge(SLOTS, &closed(&mut overlay)).unwrap();
        assert_eq!(shape(&blob).len(), shape(SLOTS).len() + 1, "{target}");
        if have("fdtoverlay") {
            let theirs = oracle("targets", SLOTS, &[&closed(&mut overlay)]).unwrap();
            assert_eq!(shape(&blob), shape(&theirs), "{target}");
        }
    }
    let mut two = onto("/soc");
    two.begin("usb@2").end();
    let two = merge(SLOTS, &closed(&mut two)).unwrap();
    let error = merge(&two, &closed(&mut onto("/soc/usb"))).unwrap_err();
    let says = "/fragment@0: its target /soc/usb could be one of several nodes: the unit address is missing";
    assert_eq!(error.to_string(), says);
}

#[test]
fn a8_nodes_do_not_come_deeper_than_can_be_read() {
    let mut overlay = onto("/soc/ethernet@100000/mdio");
    for _ in 0..61 {
        overlay.begin("n");
    }
    for _ in 0..61 {
        overlay.end();
    }
    let error = merge(SLOTS, &closed(&mut overlay)).unwrap_err();
    assert!(matches!(&error, OverlayError::Fault { fault: OverlayFault::TooDeep, .. }), "{error}");
    assert!(error.to_string().ends_with("/n/n: it would be nested more than 64 deep"), "{error}");
}

#[test]
fn a8_cut_and_changed_overlays_are_merged_or_refused() {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random >> 33).unwrap()
    };
    let mut merges = 0;
    for (_, overlay) in OVERLAYS {
        for end in 0..overlay.len() {
            assert!(merge(SLOTS, &overlay[..end]).is_err());
        }
        for _ in 0..2000 {
            let mut overlay = overlay.to_vec();
            for _ in 0..=next() % 3 {
                let at = next() % overlay.len();
                overlay[at] = u8::try_from(next() & 0xff).unwrap();
            }
            if let Ok(blob) = merge(SLOTS, &overlay) {
                merges += 1;
                Board::read_lenient(&blob).unwrap();
            }
        }
    }
    assert!(merges > 100, "only {merges} changed overlays were merged");
}

/// Found by the fuzz target `overlay`: a label's path had a NUL in its middle, and the error printed it.
#[test]
fn a6_paths_with_control_characters_are_not_printed() {
    for bad in ["/soc\0@1", "/soc\x1b[2J", "/so c", ""] {
        let target = refused(&closed(&mut onto(bad)));
        assert_eq!(target, "/fragment@0: it has neither a `target` nor a `target-path` that can be read", "{bad:?}");

        // A label of the base.
        let mut base = Builder::board();
        base.begin("soc").end().begin("__symbols__").strings("soc", &[bad]).end();
        let mut overlay = Builder::new();
        overlay.begin("").begin("fragment@0").cells("target", &[u32::MAX]).begin("__overlay__").end().end();
        overlay.begin("__fixups__").strings("soc", &["/fragment@0:target:0"]).end();
        let error = merge(&base.finish(), &overlay.finish()).unwrap_err().to_string();
        assert_eq!(error, "/fragment@0: `target` refers to &soc, and the tree has no such label", "{bad:?}");

        // A label of the overlay.
        let mut symbol = onto("/soc");
        symbol.end().end().begin("__symbols__").strings("new", &[bad]).end();
        assert_eq!(refused(&symbol.finish()), "/__symbols__: `new` is no path", "{bad:?}");
    }
}
