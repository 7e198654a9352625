//! What trees of the field say in ways of their own: the old binding, overlays, reservations, nodes that no SMMU sees
//! (contract A-6, S-6, S-7). Each was met in a report from the field; the boards are our own.

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

use builder::{Builder, at, fault};
use iommu_assign::assign::{Granule, IommuKey, PhysicalAddress, Stage2, Stream, StreamId, StreamMask, TableMemory};
use iommu_assign::dt::{Board, DtDevice, DtError, NodeFault, Region, ReservedRegion, Unseen};
use iommu_assign::pci::RequesterId;
use iommu_assign::smmu::Reserved;

fn own(name: &str) -> &'static [u8] {
    files::OWN.iter().find(|(own, _)| *own == name).unwrap().1
}

fn device<'b>(board: &'b Board<'_>, path: &str) -> &'b DtDevice {
    board.devices().iter().find(|device| device.path == path).unwrap_or_else(|| panic!("no device {path}"))
}

fn streams(device: &DtDevice) -> Vec<(u64, u32, u32)> {
    let plain = |stream: &Stream| (stream.iommu().base(), stream.id().value(), stream.mask().value());
    device.streams.iter().map(plain).collect()
}

// The binding of before `iommus`.

const OLD: u64 = 0x100_0000;
const BOTH: u64 = 0x200_0000;
const OFF: u64 = 0x300_0000;

#[test]
fn a6_masters_that_the_smmu_lists_are_read() {
    let board = Board::read(own("heirloom")).unwrap();
    let cells: Vec<_> = board.smmus().iter().map(|smmu| (smmu.mmu_masters, smmu.iommu_cells)).collect();
    assert_eq!(cells, [(true, 0), (true, 1), (true, 0)]);
    let dma = device(&board, "/dma-controller@10000000");
    assert_eq!(streams(dma), [(OLD, 0x10, 0), (OLD, 0x11, 0)]);
    assert!(dma.old_binding && dma.passthrough && dma.specifiers[0].count == 3);
    assert_eq!(streams(device(&board, "/ethernet@10010000")), [(OLD, 0x20, 0), (BOTH, 0x50, 0)]);
    let usb = device(&board, "/usb@10020000");
    assert_eq!((streams(usb), usb.old_binding), (vec![(BOTH, 0x40, 0), (BOTH, 0x41, 0)], false), "both say the same");
    assert!(!device(&board, "/modem@10030000").enabled);
    let audio = device(&board, "/audio@10040000");
    assert_eq!((streams(audio), audio.on_disabled_smmu), (vec![(OFF, 0x60, 0)], true));
}

#[test]
fn a6_by_the_old_binding_a_functions_stream_is_its_requester_id() {
    let board = Board::read(own("heirloom")).unwrap();
    let [pcie] = board.host_bridges() else { panic!("not one bridge") };
    assert!(pcie.old_binding && pcie.is_pci && pcie.buses == (0..=3));
    let old = IommuKey::new(OLD);
    for rid in [0, 0x108, 0xffff] {
        let stream = Stream::new(old, StreamId::new(rid.into()), StreamMask::NONE);
        assert_eq!(pcie.requesters.stream(RequesterId(rid)), Ok(stream));
    }
    assert!(board.devices().iter().all(|device| device.node != pcie.node), "the bridge has no streams of its own");
}

/// An SMMU at 0x1000 that lists `masters`, with `#iommu-cells` or without.
fn listing(masters: &[u32], cells: Option<u32>) -> Builder {
    let mut board = Builder::board();
    board.open_smmu("smmu").cells("reg", &[0, 0x1000, 0, 0x1_0000]).cells("mmu-masters", masters);
    board.cells("phandle", &[1]);
    if let Some(cells) = cells {
        board.cells("#iommu-cells", &[cells]);
    }
    board.end();
    board
}

#[test]
fn a6_a_list_of_masters_that_cannot_be_followed_takes_its_smmu_away() {
    let truncated = |entry| at("/smmu", NodeFault::Truncated { property: "mmu-masters", entry });
    let mut board = listing(&[2, 5, 2], None);
    board.begin("dma").cells("phandle", &[2]).cells("#stream-id-cells", &[1]).end();
    assert_eq!(fault(&mut board), truncated(1));
    let dangling = NodeFault::DanglingPhandle { property: "mmu-masters", entry: 0, phandle: 9 };
    assert_eq!(fault(&mut listing(&[9, 5], None)), at("/smmu", dangling));
    let mut board = listing(&[2, 5], None);
    board.begin("dma").cells("phandle", &[2]).end();
    let target = "/dma".to_owned();
    let missing = NodeFault::MissingStreamIdCells { property: "mmu-masters", entry: 0, target };
    assert_eq!(fault(&mut board), at("/smmu", missing));
    // Nobody of such a list is offered.
    let mut board = listing(&[2, 5, 9, 9], None);
    board.begin("dma").cells("phandle", &[2]).cells("#stream-id-cells", &[1]).end();
    let blob = board.finish();
    let board = Board::read_lenient(&blob).unwrap();
    assert!(board.smmus().is_empty() && board.devices().is_empty());
}

#[test]
fn a6_a_bad_master_takes_no_other_away() {
    let mut board = listing(&[2, 5, 6, 3, 7], None);
    board.begin("twice").cells("phandle", &[2]).cells("#stream-id-cells", &[2]).cells("x", &[]).cells("x", &[]).end();
    board.begin("dma").cells("phandle", &[3]).cells("#stream-id-cells", &[1]).end();
    let blob = board.finish();
    let board = Board::read_lenient(&blob).unwrap();
    let [dma] = board.devices() else { panic!("not one device: {:?}", board.devices()) };
    assert_eq!(streams(dma), [(0x1000, 7, 0)]);
}

#[test]
fn a6_where_two_bindings_differ_the_node_is_refused_with_the_reason() {
    let mut board = listing(&[2, 5], Some(1));
    board.begin("dma").cells("phandle", &[2]).cells("#stream-id-cells", &[1]).cells("iommus", &[1, 6]).end();
    let refused = Board::read(&board.finish()).unwrap_err();
    let says = "/dma: `mmu-masters` of /smmu and the node's own `iommus` give it different streams: neither is certain";
    assert_eq!(refused.to_string(), says);
    let mut board = listing(&[2, 5], None);
    board.begin("dma").cells("phandle", &[2]).cells("#stream-id-cells", &[1]).end();
    board.begin("usb").cells("iommus", &[1, 6]).end();
    let blob = board.finish();
    let board = Board::read_lenient(&blob).unwrap();
    let says = "/usb: entry 0 of `iommus` refers to /smmu, which has no `#iommu-cells` and lists its masters in \
                `mmu-masters`: the tree mixes the two bindings";
    assert_eq!(board.refusals().iter().map(ToString::to_string).collect::<Vec<_>>(), [says]);
    assert_eq!(board.devices().len(), 1, "who is listed is offered");
    let mut board = listing(&[2, 5], Some(1));
    board.begin("pcie").cells("phandle", &[2]).cells("#stream-id-cells", &[1]).strings("device_type", &["pci"]);
    board.cells("iommu-map", &[0, 1, 0, 0x100]).end();
    let smmu = "/smmu".to_owned();
    assert_eq!(fault(&mut board), at("/pcie", NodeFault::TwoBindings { property: "iommu-map", smmu }));
}

// Nodes that no SMMU sees.

#[test]
fn a6_a_node_marked_for_passing_through_that_no_smmu_sees_is_told_with_the_reason() {
    let board = Board::read(own("heirloom")).unwrap();
    let told: Vec<_> = board.refusals().iter().map(|refusal| (refusal.path.as_str(), &refusal.error)).collect();
    let unseen = |path: &str, why| DtError::Node { path: path.to_owned(), cause: NodeFault::Unseen { why } };
    let (audio, serial, scaler) = ("/audio@10040000", "/serial@10050000", "/scaler@10060000");
    assert_eq!(
        told,
        [
            (audio, &unseen(audio, Unseen::Disabled { smmu: "/iommu@3000000".to_owned() })),
            (serial, &unseen(serial, Unseen::NoIommu)),
            (scaler, &unseen(scaler, Unseen::Foreign { iommu: "/iommu@4000000".to_owned() })),
        ]
    );
    assert_eq!(
        board.refusals()[1].to_string(),
        "/serial@10050000: it is marked `xen,passthrough`, and no SMMU confines its DMA: firmware names no IOMMU for it"
    );
}

#[test]
fn other_iommus_are_listed() {
    let named = |name| {
        let board = Board::read(own(name)).unwrap();
        let others =
            board.other_iommus().map(|node| (node.path().unwrap(), node.compatible().unwrap_or("").to_owned()));
        others.collect::<Vec<_>>()
    };
    assert_eq!(named("heirloom"), [("/iommu@4000000".to_owned(), "example,heirloom-iommu".to_owned())]);
    assert!(named("smmuv3").iter().any(|(_, compatible)| compatible == "arm,smmu-v3"), "{:?}", named("smmuv3"));
    assert!(named("lines").is_empty());
}

#[test]
fn a6_an_overlay_is_told_to_be_merged() {
    for read in [Board::read, Board::read_lenient] {
        let refused = read(files::OVERLAY.1).unwrap_err();
        assert_eq!(refused, DtError::Overlay { fragment: "/fragment@0".to_owned() });
        let says = "/fragment@0 makes this an overlay, not a board: merge it into its base tree first (`fdtoverlay`)";
        assert_eq!(refused.to_string(), says);
    }
}

// Reservations.

const SMMU: u64 = 0x100_0000;

fn stage2(root: u64) -> Stage2 {
    Stage2 {
        root: PhysicalAddress::new(root),
        ipa_bits: 40,
        start_level: 1,
        granule: Granule::Kib4,
        output_bits: 40,
        tables: TableMemory::NonCacheable,
    }
}

#[test]
fn s6_reserved_addresses_are_read_with_whose_they_are() {
    let board = Board::read(own("handover")).unwrap();
    let plain = |region: &ReservedRegion| {
        let device = board.tree().node(region.device).unwrap().path().unwrap();
        let memory = region.memory.map(Region::base);
        (region.path.rsplit('/').next().unwrap().to_owned(), device, region.iova.base(), region.iova.size(), memory)
    };
    let found: Vec<_> = board.reserved_regions().iter().map(plain).collect();
    let (codec, firmware) = ("/video-codec@10010000", "/video-codec@10010000/firmware");
    let expected = [
        ("framebuffer@90000000", "/display@10000000", 0x9000_0000, 0x80_0000, Some(0x9000_0000)),
        ("codec-image@91000000", firmware, 0, 0x10_0000, Some(0x9100_0000)),
        ("reservation-codec", firmware, 0x6000_0000, 0x100_0000, None),
        ("reservation-codec", codec, 0x1_0000_0000, 0xf_0000_0000, None),
        // By the cells of the node's own bus, through the `dma-ranges` of the device's.
        ("trace-buffer@92000000", "/bus@20000000/trace@0", 0x9200_0000, 0x1_0000, Some(0x9200_0000)),
    ];
    let expected = expected.map(|(node, device, iova, size, memory): (&str, &str, u64, u64, Option<u64>)| {
        (node.to_owned(), device.to_owned(), iova, size, memory)
    });
    assert_eq!(found, expected);
}

#[test]
fn s6_streams_that_must_go_on_are_offered_for_the_take_over() {
    let board = Board::read(own("handover")).unwrap();
    let mut asked = Vec::new();
    let offered: Vec<Reserved> = board
        .reserved(IommuKey::new(SMMU), |device, regions| {
            asked.push((device.path.clone(), regions.iter().map(|region| region.iova.base()).collect::<Vec<_>>()));
            Ok::<_, DtError>(stage2(device.streams[0].id().value().into()))
        })
        .unwrap();
    let paths = ["/display@10000000", "/video-codec@10010000/firmware", "/bus@20000000/trace@0"];
    let bases = [0x9000_0000, 0, 0x9200_0000];
    assert_eq!(asked, paths.iter().zip(bases).map(|(path, base)| ((*path).to_owned(), vec![base])).collect::<Vec<_>>());
    let display = &offered[0];
    assert_eq!((&display.streams, display.space), (&device(&board, paths[0]).streams, stage2(0x10)));
    assert_eq!(offered.len(), 3, "a hole is no reason to let DMA go on");
    let elsewhere = board.reserved(IommuKey::new(7), |_, _| Ok::<_, DtError>(stage2(0))).unwrap();
    assert!(elsewhere.is_empty());
}

#[test]
fn a6_reservations_that_cannot_be_followed_name_the_node() {
    let reservation = |list: &[u32], reg: &[u32]| {
        let mut board = Builder::board();
        board.smmu(0x1000, 1, 1).begin("dma").cells("phandle", &[2]).cells("iommus", &[1, 5]).end();
        board.begin("reserved-memory").cells("#address-cells", &[2]).cells("#size-cells", &[2]).property("ranges", &[]);
        board.begin("region").cells("iommu-addresses", list);
        if !reg.is_empty() {
            board.cells("reg", reg);
        }
        board.end().end();
        board
    };
    let path = "/reserved-memory/region";
    let (property, entry) = ("iommu-addresses", 0);
    assert_eq!(fault(&mut reservation(&[2, 0, 1, 0], &[])), at(path, NodeFault::Truncated { property, entry }));
    let zero = NodeFault::EmptyReservation { property, entry };
    assert_eq!(fault(&mut reservation(&[2, 0, 1, 0, 0], &[])), at(path, zero));
    let dangling = NodeFault::DanglingPhandle { property, entry, phandle: 9 };
    assert_eq!(fault(&mut reservation(&[9, 0, 1, 0, 1], &[])), at(path, dangling));
    let size = NodeFault::ReservationSize { property, entry, size: 0x2000 };
    assert_eq!(fault(&mut reservation(&[2, 0, 0x1000, 0, 0x2000], &[0, 0x1000, 0, 0x1000])), at(path, size));
    let past = NodeFault::AddressOverflow { property, address: u64::MAX, size: 2 };
    assert_eq!(fault(&mut reservation(&[2, u32::MAX, u32::MAX, 0, 2], &[])), at(path, past));
}

// Message interrupts.

#[test]
fn s7_a_short_msi_parent_beside_a_good_map_is_told_and_the_map_counts() {
    let board = Board::read(own("handover")).unwrap();
    let pcie = board.tree().find("/pcie@40000000").unwrap().id();
    let msi = board.msi(pcie).unwrap().unwrap();
    let targets: Vec<_> = msi.targets(RequesterId(0x10)).unwrap().map(|target| target.id).collect();
    assert_eq!(targets, [Some(7)]);
    assert!(msi.own.is_empty());
    assert_eq!(msi.own_error.as_ref().unwrap().to_string(), "/pcie@40000000: `msi-parent` ends inside entry 0");
}

#[test]
fn s7_whatever_is_wrong_with_msi_parent_alone_leaves_the_map() {
    let with_parent = |parent: &[u32]| {
        let mut board = Builder::board();
        board.begin("its").strings("compatible", &["arm,gic-v3-its"]).cells("reg", &[0, 0x10_0000, 0, 0x2_0000]);
        board.property("msi-controller", &[]).cells("#msi-cells", &[1]).cells("phandle", &[1]).end();
        // Its registers end before its doorbell.
        board.begin("short").strings("compatible", &["arm,gic-v3-its"]).cells("reg", &[0, 0x20_0000, 0, 0x1000]);
        board.property("msi-controller", &[]).cells("phandle", &[2]).end();
        board.begin("pcie").cells("msi-parent", parent).cells("msi-map", &[0, 1, 0x40, 0x10]).end();
        board.finish()
    };
    for parent in [&[1][..], &[9, 5], &[0, 5], &[2]] {
        let blob = with_parent(parent);
        let board = Board::read(&blob).unwrap();
        let msi = board.msi(board.tree().find("/pcie").unwrap().id()).unwrap().unwrap();
        assert!(msi.own.is_empty() && matches!(msi.own_error, Some(DtError::Node { .. })), "{parent:?}: {msi:?}");
        assert_eq!(msi.targets(RequesterId(2)).unwrap().map(|target| target.id).collect::<Vec<_>>(), [Some(0x42)]);
        assert_eq!(msi.controllers.len(), 1);
    }
    let sound = with_parent(&[1, 5]);
    let board = Board::read(&sound).unwrap();
    let msi = board.msi(board.tree().find("/pcie").unwrap().id()).unwrap().unwrap();
    assert_eq!((msi.own.len(), &msi.own_error), (1, &None));
}
