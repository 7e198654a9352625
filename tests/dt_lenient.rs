//! Boards with bad nodes (contract ): the others stay usable, each bad one is told, and none is offered.

#![expect(clippy::unwrap_used, clippy::panic, clippy::arithmetic_side_effects, reason = "a test fails by panicking")]

#[path = "dt_support/builder.rs"]
mod builder;
#[path = "dt_support/files.rs"]
mod files;

use builder::Builder;
use iommu_assign::dt::{BlobErrorKind, Board, DtError};

/// What is offered and what is told, by path and sentence.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    smmus: Vec<String>,
    devices: Vec<String>,
    bridges: Vec<String>,
    refused: Vec<String>,
}

fn outcome(board: &Board<'_>) -> Outcome {
    Outcome {
        smmus: board.smmus().iter().map(|smmu| smmu.path.clone()).collect(),
        devices: board.devices().iter().map(|device| device.path.clone()).collect(),
        bridges: board.host_bridges().iter().map(|bridge| bridge.path.clone()).collect(),
        refused: board.refusals().iter().map(ToString::to_string).collect(),
    }
}

/// Reads a board with bad nodes, which the strict reader refuses for the first of them.
fn read(board: &mut Builder) -> Outcome {
    let blob = board.finish();
    let lenient = Board::read_lenient(&blob).unwrap();
    assert_eq!(Board::read(&blob).err(), lenient.refusals().first().map(|refusal| refusal.error.clone()));
    outcome(&lenient)
}

fn lists<const S: usize, const D: usize, const B: usize, const R: usize>(
    smmus: [&str; S],
    devices: [&str; D],
    bridges: [&str; B],
    refused: [&str; R],
) -> Outcome {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    Outcome { smmus: owned(&smmus), devices: owned(&devices), bridges: owned(&bridges), refused: owned(&refused) }
}

/// SMMUs at 0x1000 and 0x2_0000 with phandles 1 and 2, and a device behind each.
fn two() -> Builder {
    let mut board = Builder::board();
    board.smmu(0x1000, 1, 1).smmu(0x2_0000, 2, 1);
    board.begin("one").cells("iommus", &[1, 5]).end();
    board.begin("two").cells("iommus", &[2, 6]).end();
    board
}

const FIRST: &str = "/iommu@1000";
const SECOND: &str = "/iommu@20000";

#[test]
fn a6_a_sound_board_reads_the_same_in_both_ways() {
    let own = files::OWN.iter().map(|(name, blob)| ((*name).to_owned(), blob.to_vec()));
    for (name, blob) in own.chain(files::real_boards("a6_a_sound_board_reads_the_same_in_both_ways")) {
        let (strict, lenient) = (Board::read(&blob).unwrap(), Board::read_lenient(&blob).unwrap());
        assert_eq!(strict.refusals(), lenient.refusals(), "{name}");
        assert!(strict.refusals().iter().all(|refusal| !refusal.is_malformed()), "{name}");
        assert_eq!(strict.smmus(), lenient.smmus(), "{name}");
        assert_eq!(strict.devices(), lenient.devices(), "{name}");
        assert_eq!(strict.host_bridges(), lenient.host_bridges(), "{name}");
    }
}

#[test]
fn a6_a_bad_device_takes_no_other_away() {
    let mut board = two();
    board.begin("truncated").cells("iommus", &[1, 7, 2]).end();
    board.begin("dangling").cells("iommus", &[9, 7]).end();
    board.begin("three").cells("iommus", &[1, 8]).end();
    let refused = [
        "/truncated: `iommus` ends inside entry 1",
        "/dangling: entry 0 of `iommus` refers to phandle 0x9, which no node has",
    ];
    assert_eq!(read(&mut board), lists([FIRST, SECOND], ["/one", "/two", "/three"], [], refused));
}

#[test]
fn a6_a_bad_smmu_goes_with_all_that_refer_to_it() {
    let mut board = two();
    board.open_smmu("bad").cells("reg", &[0, 0x3_0000, 0, 0x1000]).cells("#iommu-cells", &[3]);
    board.cells("phandle", &[3]).end();
    board.begin("behind").cells("iommus", &[3, 1, 2, 3]).end();
    // One foot on a sound SMMU does not help.
    board.begin("both").cells("iommus", &[1, 9, 3, 1, 2, 3]).end();
    board.begin("pcie").cells("iommu-map", &[0, 1, 0, 8, 8, 3, 0, 8]).end();
    board.begin("good").cells("iommu-map", &[0, 2, 0, 8]).end();
    let refused = [
        "/bad: `#iommu-cells` is 3, not 1 or 2",
        "/behind: entry 0 of `iommus` refers to /bad, which was refused",
        "/both: entry 1 of `iommus` refers to /bad, which was refused",
        "/pcie: entry 1 of `iommu-map` refers to /bad, which was refused",
    ];
    assert_eq!(read(&mut board), lists([FIRST, SECOND], ["/one", "/two"], ["/good"], refused));
}

#[test]
fn a6_a_bad_smmu_does_not_pass_for_another_iommu() {
    for compatible in [&b"arm,smmu-v2"[..], b"arm,\xff\0"] {
        let mut board = two();
        // What cannot be read may have been an SMMU's.
        board.begin("bad").property("compatible", compatible).cells("#iommu-cells", &[1]).cells("phandle", &[3]).end();
        board.begin("both").cells("iommus", &[1, 9, 3, 1]).end();
        let refused = [
            "/bad: `compatible` is no list of NUL-terminated strings",
            "/both: entry 1 of `iommus` refers to /bad, which was refused",
        ];
        assert_eq!(read(&mut board), lists([FIRST, SECOND], ["/one", "/two"], [], refused));
    }
}

#[test]
fn a6_a_map_that_reads_well_past_a_refused_iommu_is_refused() {
    let mut board = two();
    board.begin("bad").property("compatible", b"\xff").cells("#iommu-cells", &[1]).cells("phandle", &[3]).end();
    board.smmu(0x4_0000, 4, 2);
    // As entries of five cells all of it is sound; as entries of four the second refers to the bad one.
    board.begin("pcie");
    board.cells("iommu-map", &[0, 4, 0x10, 0, 1, 3, 4, 0x20, 0, 1, 5, 4, 0x30, 0, 1, 6, 4, 0x40, 0, 1]).end();
    let found = read(&mut board);
    assert!(found.bridges.is_empty(), "{found:?}");
    assert_eq!(found.refused.len(), 2, "{found:?}");
}

#[test]
fn a6_of_smmus_at_one_address_none_is_offered() {
    let mut board = two();
    board.open_smmu("twin").cells("reg", &[0, 0x1000, 0, 0x1000]).cells("#iommu-cells", &[1]).cells("phandle", &[3]);
    board.end().begin("three").cells("iommus", &[3, 5]).end();
    let refused = [
        "/twin: its registers at 0x1000 are also those of /iommu@1000",
        "/iommu@1000: its registers at 0x1000 are also those of /twin",
        "/one: entry 0 of `iommus` refers to /iommu@1000, which was refused",
        "/three: entry 0 of `iommus` refers to /twin, which was refused",
    ];
    assert_eq!(read(&mut board), lists([SECOND], ["/two"], [], refused));
}

#[test]
fn a6_of_two_nodes_with_one_phandle_neither_can_be_meant() {
    let mut board = two();
    board.begin("impostor").cells("phandle", &[1]).cells("iommus", &[2, 9]).end();
    let refused = [
        "/impostor: phandle 0x1 is also that of /iommu@1000",
        "/iommu@1000: phandle 0x1 is also that of /impostor",
        "/one: entry 0 of `iommus` refers to /iommu@1000, which was refused",
    ];
    assert_eq!(read(&mut board), lists([SECOND], ["/two"], [], refused));
    let mut board = two();
    board.begin("serial").cells("phandle", &[0]).end();
    let refused = ["/serial: phandle 0x0 is reserved"];
    assert_eq!(read(&mut board), lists([FIRST, SECOND], ["/one", "/two"], [], refused));
}

#[test]
fn a6_below_a_property_or_a_node_that_is_there_twice_nothing_is_offered() {
    let mut board = two();
    // Which `status` counts, and which `ranges`?
    board.begin("bus").strings("status", &["disabled"]).strings("status", &["okay"]).property("ranges", &[]);
    board.open_smmu("iommu").cells("phandle", &[3]).end();
    board.begin("inner").begin("dma").cells("iommus", &[1, 9]).end().end();
    board.begin("pcie").cells("iommu-map", &[0, 1, 0, 8]).end();
    board.begin("serial").end().end();
    board.begin("behind").cells("iommus", &[3, 9]).end();
    let refused = [
        "/bus: two properties are named `status`",
        "/bus/iommu: it is below /bus, which was refused",
        "/bus/inner/dma: it is below /bus, which was refused",
        "/behind: entry 0 of `iommus` refers to /bus/iommu, which was refused",
        "/bus/pcie: it is below /bus, which was refused",
    ];
    assert_eq!(read(&mut board), lists([FIRST, SECOND], ["/one", "/two"], [], refused));

    let mut board = two();
    board.begin("twin").begin("dma").cells("iommus", &[1, 9]).end().end();
    board.begin("twin").cells("iommus", &[1, 10]).end();
    let refused = [
        "/twin: two nodes have this path",
        "/twin: two nodes have this path",
        "/twin/dma: it is below /twin, which was refused",
    ];
    assert_eq!(read(&mut board), lists([FIRST, SECOND], ["/one", "/two"], [], refused));
}

#[test]
fn a6_a_node_is_offered_in_no_part_when_one_part_is_bad() {
    let mut board = two();
    board.begin("pcie").cells("iommus", &[1, 9]).cells("iommu-map", &[0, 1, 0]);
    // Its own streams are sound, and its parent is not there any more.
    board.begin("port").cells("iommus", &[1, 10]).end().end();
    board.begin("other").cells("iommus", &[1]).cells("iommu-map", &[0, 1, 0, 8]).end();
    let blob = board.finish();
    let lenient = Board::read_lenient(&blob).unwrap();
    let refused = ["/other: `iommus` ends inside entry 0", "/pcie: `iommu-map` is 12 bytes long, no multiple of 16"];
    assert_eq!(outcome(&lenient), lists([FIRST, SECOND], ["/one", "/two", "/pcie/port"], [], refused));
    let port = lenient.devices().last().unwrap();
    assert_eq!((port.path.as_str(), port.parent), ("/pcie/port", None));
}

#[test]
fn a6_a_refused_interrupt_controller_is_nobodys_width() {
    let mut board = two();
    board.begin("gic").cells("#interrupt-cells", &[3]).cells("#interrupt-cells", &[1]).cells("phandle", &[7]).end();
    board.open_smmu("iommu@30000").cells("reg", &[0, 0x3_0000, 0, 0x1000]).cells("#iommu-cells", &[1]);
    board.cells("interrupt-parent", &[7]).cells("interrupts", &[1, 2, 3]).end();
    let refused = [
        "/gic: two properties are named `#interrupt-cells`",
        "/iommu@30000: entry 0 of `interrupt-parent` refers to /gic, which was refused",
    ];
    assert_eq!(read(&mut board), lists([FIRST, SECOND], ["/one", "/two"], [], refused));
}

#[test]
fn a8_a_damaged_blob_is_refused_as_a_whole() {
    let mut blob = two().finish();
    blob.truncate(blob.len() / 2);
    let error = Board::read_lenient(&blob).unwrap_err();
    let DtError::Blob(cause) = &error else { panic!("{error}") };
    assert!(matches!(cause.kind(), BlobErrorKind::Truncated { .. }));
    let mut board = two();
    board.token(0x77);
    assert!(matches!(Board::read_lenient(&board.finish()), Err(DtError::Blob(_))));
}
