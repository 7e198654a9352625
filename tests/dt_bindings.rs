//! What firmware may get wrong about SMMUs and those whom they watch, one thing at a time (contract A-6): each is its own
//! error, which names the node. What is merely unusual is read.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

#[path = "dt_support/builder.rs"]
mod builder;

use builder::{Builder, at, fault, stream, with_iommus, with_map};
use iommu_assign::assign::{IommuKey, PhysicalAddress, Stream, StreamId, StreamMask};
use iommu_assign::dt::{Board, NodeFault};
use iommu_assign::pci::{MapFault, Provider};
use iommu_assign::smmu::{Architecture, Chip, EmptyRoot, Implementation, SmmuConfig};

// `iommus`.

#[test]
fn a6_truncated_iommus_names_the_node() {
    let truncated = |entry| at("/dma", NodeFault::Truncated { property: "iommus", entry });
    assert_eq!(fault(&mut with_iommus(1, &[1])), truncated(0));
    assert_eq!(fault(&mut with_iommus(2, &[1, 5])), truncated(0));
    assert_eq!(fault(&mut with_iommus(2, &[1, 5, 0, 1, 6])), truncated(1));
    for length in [1, 3, 5, 9, 11] {
        let mut board = Builder::board();
        let value = [0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0, 1];
        board.smmu(0x1000, 1, 1).begin("dma").property("iommus", &value[..length]).end();
        assert_eq!(fault(&mut board), truncated(length / 8), "{length}");
    }
    let error = Board::read(&with_iommus(2, &[1, 5, 0, 1, 6]).finish()).unwrap_err();
    assert_eq!(error.to_string(), "/dma: `iommus` ends inside entry 1");
}

#[test]
fn a6_iommus_that_name_no_iommu() {
    let zero = NodeFault::PhandleZero { property: "iommus", entry: 1 };
    assert_eq!(fault(&mut with_iommus(1, &[1, 5, 0, 6])), at("/dma", zero));
    for phandle in [2, u32::MAX] {
        let dangling = NodeFault::DanglingPhandle { property: "iommus", entry: 1, phandle };
        assert_eq!(fault(&mut with_iommus(1, &[1, 5, phandle, 6])), at("/dma", dangling));
    }
    let mut board = with_iommus(1, &[1, 5, 2, 6]);
    board.begin("serial").cells("phandle", &[2]).end();
    let target = "/serial".to_owned();
    assert_eq!(fault(&mut board), at("/dma", NodeFault::MissingIommuCells { property: "iommus", entry: 1, target }));
}

#[test]
fn a6_a_disabled_devices_iommus_is_checked_too() {
    let mut board = Builder::board();
    board.smmu(0x1000, 1, 1).begin("dma").strings("status", &["disabled"]).cells("iommus", &[9, 5]).end();
    let dangling = NodeFault::DanglingPhandle { property: "iommus", entry: 0, phandle: 9 };
    assert_eq!(fault(&mut board), at("/dma", dangling));
}

#[test]
fn widths_are_those_of_each_target() {
    let mut board = Builder::board();
    // The device comes first: its targets are known only later.
    board.begin("dma").cells("iommus", &[3, 2, 7, 1, 0x81, 0xff, 3, 4, 11, 12, 13, 2, 8]).end();
    board.smmu(0x1000, 1, 2).smmu(0x2_0000, 2, 1);
    for (name, phandle, cells) in [("none", 3, 0), ("three", 4, 3)] {
        board.begin(name).cells("phandle", &[phandle]).cells("#iommu-cells", &[cells]).end();
    }
    let blob = board.finish();
    let board = Board::read(&blob).unwrap();
    let device = &board.devices()[0];
    let other = |id| Stream::new(IommuKey::new(0x2_0000), StreamId::new(id), StreamMask::NONE);
    assert_eq!(device.streams, [stream(0, 0xff), other(7), other(8)]);
    let counts: Vec<_> = device.specifiers.iter().map(|count| (count.smmu.base(), count.count)).collect();
    assert_eq!(counts, [(0x2_0000, 2), (0x1000, 1)]);
    let foreign = ["/none", "/three"].map(|path| board.tree().find(path).unwrap().id());
    assert_eq!(device.foreign_iommus, foreign);
}

#[test]
fn wide_ids_are_kept_whole() {
    let blob = with_iommus(2, &[1, 0xdead_8001, 0x4000_0000]).finish();
    let board = Board::read(&blob).unwrap();
    assert_eq!(board.devices()[0].streams, [stream(0x9ead_8001, 0x4000_0000)]);
}

#[test]
fn a_property_without_entries_offers_nothing() {
    let blob = with_iommus(1, &[]).finish();
    assert!(Board::read(&blob).unwrap().devices().is_empty());
    let blob = with_map(1, &[]).finish();
    assert!(Board::read(&blob).unwrap().host_bridges().is_empty());
}

// SMMU nodes.

#[test]
fn a6_smmus_that_lack_what_is_required() {
    let missing = |property| at("/smmu", NodeFault::MissingProperty { property });
    let mut board = Builder::board();
    board.open_smmu("smmu").cells("#iommu-cells", &[1]).end();
    assert_eq!(fault(&mut board), missing("reg"));
    let mut board = Builder::board();
    board.open_smmu("smmu").cells("reg", &[0, 0x1000, 0, 0x1000]).end();
    assert_eq!(fault(&mut board), missing("#iommu-cells"));
    let mut board = Builder::board();
    board.begin("smmu").strings("compatible", &["arm,mmu-500"]);
    board.cells("reg", &[0, 0x1000, 0, 0x1000]).cells("#iommu-cells", &[1]).end();
    assert_eq!(fault(&mut board), missing("#global-interrupts"));
}

#[test]
fn a6_smmus_that_contradict_themselves() {
    let smmu = |reg: &[u32], cells: u32| {
        let mut board = Builder::board();
        board.open_smmu("smmu").cells("reg", reg).cells("#iommu-cells", &[cells]).end();
        fault(&mut board)
    };
    let good = [0, 0x1000, 0, 0x1000];
    let length = NodeFault::LengthMultiple { property: "reg", length: 12, entry: 16 };
    assert_eq!(smmu(&good[..3], 1), at("/smmu", length));
    assert_eq!(smmu(&[0, 0x1000, 0, 0], 1), at("/smmu", NodeFault::EmptyRegion { region: 0 }));
    let mirrors = [0, 0x1000, 0, 0x1000, 0, 0x4000, 0, 0];
    assert_eq!(smmu(&mirrors, 1), at("/smmu", NodeFault::EmptyRegion { region: 1 }));
    let (address, size) = (0xffff_ffff_ffff_f000, 0x1001);
    let overflow = NodeFault::AddressOverflow { property: "reg", address, size };
    assert_eq!(smmu(&[0xffff_ffff, 0xffff_f000, 0, 0x1001], 1), at("/smmu", overflow));
    for count in [0, 3, u32::MAX] {
        let cells = NodeFault::CellCount { property: "#iommu-cells", count, allowed: "1 or 2" };
        assert_eq!(smmu(&good, count), at("/smmu", cells));
    }
    let mut board = Builder::board();
    board.smmu(0x1000, 1, 1).begin("bus").cells("#address-cells", &[1]).cells("#size-cells", &[1]);
    board.cells("ranges", &[0, 0, 0x1000, 0x1000]);
    board.open_smmu("smmu@0").cells("reg", &[0, 0x100]).cells("#iommu-cells", &[1]).end().end();
    let other = "/iommu@1000".to_owned();
    assert_eq!(fault(&mut board), at("/bus/smmu@0", NodeFault::DuplicateBase { base: 0x1000, other }));
    let mut board = Builder::board();
    board.begin("smmu").property("compatible", b"arm,mmu-500").end();
    assert_eq!(fault(&mut board), at("/smmu", NodeFault::NotStrings { property: "compatible" }));
}

/// An SMMU on a bus with these `ranges` (one address cell, one size cell; the root has two of each).
fn behind(ranges: Option<&[u32]>, reg: [u32; 2]) -> Builder {
    let mut board = Builder::board();
    board.begin("bus").cells("#address-cells", &[1]).cells("#size-cells", &[1]);
    if let Some(ranges) = ranges {
        board.cells("ranges", ranges);
    }
    board.open_smmu("smmu").cells("reg", &reg).cells("#iommu-cells", &[1]).end().end();
    board
}

#[test]
fn addresses_are_translated_on_the_way_up() {
    let base = |board: &mut Builder| Board::read(&board.finish()).unwrap().smmus()[0].key.base();
    assert_eq!(base(&mut behind(Some(&[]), [0x1000, 0x1000])), 0x1000);
    let ranges = [0x8000, 0, 0x5000, 0x100, 0x1000, 0x12, 0x4000, 0x2000];
    assert_eq!(base(&mut behind(Some(&ranges), [0x1800, 0x1800])), 0x12_0000_4800);
    assert_eq!(base(&mut behind(Some(&[0, 0xffff_ffff, 0xffff_f000, 0x1000]), [0, 0x1000])), 0xffff_ffff_ffff_f000);
}

#[test]
fn a6_addresses_that_are_not_the_cpus() {
    let bus = || "/bus".to_owned();
    let fault_behind = |ranges, reg| fault(&mut behind(ranges, reg));
    let none = NodeFault::NoRanges { bus: bus(), address: 0x1000 };
    assert_eq!(fault_behind(None, [0x1000, 0x1000]), at("/bus/smmu", none));
    // Before, behind, and across the end of what is translated.
    for (address, size) in [(0xfff, 0x10), (0x3000, 0x10), (0x2fff, 2)] {
        let (wide_address, wide_size) = (u64::from(address), u64::from(size));
        let outside =
            NodeFault::OutsideRanges { property: "ranges", bus: bus(), address: wide_address, size: wide_size };
        assert_eq!(fault_behind(Some(&[0x1000, 0, 0, 0x2000]), [address, size]), at("/bus/smmu", outside));
    }
    let length = NodeFault::LengthMultiple { property: "ranges", length: 12, entry: 16 };
    assert_eq!(fault_behind(Some(&[0, 0, 0]), [0, 1]), at("/bus", length));
    let (address, size) = (0xffff_ffff_ffff_f000, 0x3000);
    let overflow = NodeFault::AddressOverflow { property: "ranges", address, size };
    assert_eq!(fault_behind(Some(&[0, 0xffff_ffff, 0xffff_f000, 0x3000]), [0x2000, 0x100]), at("/bus", overflow));
    let mut board = Builder::new();
    board.begin("").cells("#address-cells", &[3]).cells("#size-cells", &[1]);
    board.open_smmu("smmu").cells("reg", &[1, 0, 0, 1]).cells("#iommu-cells", &[1]).end();
    assert_eq!(fault(&mut board), at("/smmu", NodeFault::NumberTooWide { property: "reg" }));
    for count in [0, 5, u32::MAX] {
        let mut board = Builder::new();
        board.begin("").cells("#address-cells", &[count]);
        board.open_smmu("smmu").cells("reg", &[0, 1]).cells("#iommu-cells", &[1]).end();
        let allowed = "1 to 4";
        assert_eq!(fault(&mut board), at("/", NodeFault::CellCount { property: "#address-cells", count, allowed }));
    }
}

#[test]
fn a6_interrupts_that_cannot_be_counted() {
    let board = |global: u32, interrupts: &[u32], width: Option<u32>| {
        let mut board = Builder::board();
        board.begin("gic").cells("phandle", &[7]);
        if let Some(width) = width {
            board.cells("#interrupt-cells", &[width]);
        }
        board.end().begin("smmu").strings("compatible", &["arm,mmu-500"]).cells("reg", &[0, 0x1000, 0, 0x1000]);
        board.cells("#iommu-cells", &[1]).cells("#global-interrupts", &[global]).cells("interrupt-parent", &[7]);
        board.cells("interrupts", interrupts).end();
        board
    };
    let few = NodeFault::TooFewInterrupts { global: 2, listed: 1 };
    assert_eq!(fault(&mut board(2, &[0, 1, 4], Some(3))), at("/smmu", few));
    let truncated = NodeFault::Truncated { property: "interrupts", entry: 1 };
    assert_eq!(fault(&mut board(1, &[0, 1, 4, 0], Some(3))), at("/smmu", truncated));
    let none = NodeFault::CellCount { property: "#interrupt-cells", count: 0, allowed: "1 or more" };
    assert_eq!(fault(&mut board(1, &[0], Some(0))), at("/smmu", none));
    assert_eq!(fault(&mut board(1, &[0], None)), at("/smmu", NodeFault::NoInterruptParent));
    let wide = NodeFault::Truncated { property: "interrupts", entry: 0 };
    assert_eq!(fault(&mut board(1, &[0], Some(u32::MAX))), at("/smmu", wide));
    // Without interrupts nobody needs a parent.
    assert!(Board::read(&board(0, &[], None).finish()).is_ok());
}

#[test]
fn a8_interrupt_parents_in_a_circle_end() {
    let mut board = Builder::board();
    board.begin("a").cells("phandle", &[7]).cells("interrupt-parent", &[8]).end();
    board.begin("b").cells("phandle", &[8]).cells("interrupt-parent", &[7]).end();
    board.open_smmu("smmu").cells("reg", &[0, 0x1000, 0, 0x1000]).cells("#iommu-cells", &[1]);
    board.cells("interrupt-parent", &[7]).cells("interrupts", &[1]).end();
    assert_eq!(fault(&mut board), at("/smmu", NodeFault::NoInterruptParent));
}

#[test]
fn s4_what_firmware_says_of_an_smmu_is_what_its_driver_is_told() {
    let mut board = Builder::board();
    board.begin("gic").cells("phandle", &[7]).cells("#interrupt-cells", &[1]).end();
    board.begin("other").cells("phandle", &[8]).cells("#interrupt-cells", &[1]).end();
    board.begin("smmu").strings("compatible", &["qcom,msm8998-smmu-v2", "qcom,adreno-smmu", "qcom,smmu-v2"]);
    board.cells("reg", &[0, 0x1000, 0, 0x4_0000]).cells("#iommu-cells", &[1]).cells("#global-interrupts", &[1]);
    // Three different lines behind the global one: 2 (three times), 3, and 3 of another controller.
    board.cells("interrupts-extended", &[7, 1, 7, 2, 7, 3, 7, 2, 8, 3, 7, 2]);
    board.property("dma-coherent", &[]).property("calxeda,smmu-secure-config-access", &[]).end();
    let blob = board.finish();
    let board = Board::read(&blob).unwrap();
    let [node] = board.smmus() else { panic!("one SMMU") };
    let lines = [0, 1, 2, 3, 4].map(|interrupt| node.context_lines.line(interrupt));
    assert_eq!((node.context_irqs, node.context_lines.count()), (5, 3));
    assert_eq!(lines, [Some(0), Some(1), Some(0), Some(2), Some(0)], "a line that is listed again is no further line");
    let specifiers: Vec<_> = node.context_line_interrupts().map(|line| line.specifier().collect::<Vec<_>>()).collect();
    assert_eq!(specifiers, [[2], [3], [3]]);
    let empty = EmptyRoot { address: PhysicalAddress::new(0x10_0000), size: 0x10_0000 };
    let config = SmmuConfig {
        implementation: Implementation::Qualcomm,
        coherent: true,
        context_lines: node.context_lines.clone(),
        chip: Chip::Msm8998,
        secure_config_access: true,
        adreno: true,
        ..SmmuConfig::new(IommuKey::new(0x1000), 0x4_0000, Architecture::V2, empty)
    };
    assert_eq!(node.config(empty), config);
}

#[test]
fn the_extended_interrupt_list_wins() {
    let mut board = Builder::board();
    board.begin("gic").cells("phandle", &[7]).cells("#interrupt-cells", &[3]).end();
    board.open_smmu("smmu").cells("reg", &[0, 0x1000, 0, 0x1000]).cells("#iommu-cells", &[1]);
    board.cells("interrupts", &[1, 2, 3]).cells("interrupts-extended", &[7, 0, 1, 4, 7, 0, 2, 4]).end();
    assert_eq!(Board::read(&board.finish()).unwrap().smmus()[0].context_irqs, 2);
    let mut board = Builder::board();
    board.open_smmu("smmu").cells("reg", &[0, 0x1000, 0, 0x1000]).cells("#iommu-cells", &[1]);
    board.cells("interrupts-extended", &[7]).end();
    let dangling = NodeFault::DanglingPhandle { property: "interrupts-extended", entry: 0, phandle: 7 };
    assert_eq!(fault(&mut board), at("/smmu", dangling));
}

#[test]
fn only_the_bindings_compatibles_are_claimed() {
    let smmus = |compatibles: &[&str]| {
        let mut board = Builder::board();
        board.begin("smmu").strings("compatible", compatibles).cells("reg", &[0, 0x1000, 0, 0x1000]);
        board.cells("#iommu-cells", &[1]).cells("#global-interrupts", &[0]).end();
        Board::read(&board.finish()).unwrap().smmus().len()
    };
    let ours = [
        "arm,smmu-v1",
        "arm,smmu-v2",
        "arm,mmu-400",
        "arm,mmu-401",
        "arm,mmu-500",
        "cavium,smmu-v2",
        "marvell,ap806-smmu-500",
        "nvidia,smmu-500",
        "nvidia,tegra186-smmu",
        "nvidia,tegra194-smmu",
        "nvidia,tegra234-smmu",
        "qcom,smmu-v2",
        "qcom,smmu-500",
        "qcom,sdm845-smmu-v2",
        "qcom,sc8280xp-smmu-500",
    ];
    for compatible in ours {
        assert_eq!(smmus(&["example,smmu", compatible]), 1, "{compatible}");
    }
    let look_alikes = [
        "arm,smmu-v3",
        "qcom,msm-iommu-v1",
        "qcom,adreno-smmu",
        "qcom,-smmu-v2",
        "qcom,sdm845-smmu-v3",
        "arm,mmu-600",
        "rockchip,iommu",
        "allwinner,sun50i-h6-iommu",
        "renesas,ipmmu-r8a7795",
        "nvidia,tegra30-smmu",
        "smmu-v2",
        "",
        "example,smmu-500",
        "arm,smmu-v2x",
        "xarm,smmu-v2",
    ];
    for compatible in look_alikes {
        assert_eq!(smmus(&[compatible]), 0, "{compatible}");
    }
    assert_eq!(smmus(&["qcom,adreno-smmu", "qcom,smmu-v2"]), 1);
    assert_eq!(smmus(&[]), 0);
}

// `iommu-map`.

#[test]
fn maps_of_four_cells_are_read_whatever_the_target_says() {
    for cells in [1, 2] {
        let blob = with_map(cells, &[0, 1, 0x480, 0x20, 0x100, 1, 0x4a0, 0x20]).finish();
        let board = Board::read(&blob).unwrap();
        let entries: Vec<_> = board.host_bridges()[0].entries.iter().map(|it| (it.rid_base, it.stream_base)).collect();
        assert_eq!(entries, [(0, 0x480), (0x100, 0x4a0)]);
    }
}

#[test]
fn a6_maps_that_fit_no_form() {
    let length =
        |cells: usize| at("/bus", NodeFault::LengthMultiple { property: "iommu-map", length: cells * 4, entry: 16 });
    assert_eq!(fault(&mut with_map(1, &[0, 1, 5])), length(3));
    assert_eq!(fault(&mut with_map(1, &[0, 1, 5, 1, 0])), length(5));
    assert_eq!(fault(&mut with_map(2, &[0, 1, 5, 0, 1, 0x100])), length(6));
    let zero = NodeFault::PhandleZero { property: "iommu-map", entry: 1 };
    assert_eq!(fault(&mut with_map(1, &[0, 1, 5, 1, 0x100, 0, 6, 1])), at("/bus", zero));
    let dangling = NodeFault::DanglingPhandle { property: "iommu-map", entry: 0, phandle: 9 };
    assert_eq!(fault(&mut with_map(1, &[0, 9, 5, 1])), at("/bus", dangling));
    let mut board = Builder::board();
    board.smmu(0x1000, 1, 1).begin("bus").property("iommu-map", &[0; 15]).end();
    let zero = NodeFault::PhandleZero { property: "iommu-map", entry: 0 };
    assert_eq!(fault(&mut board), at("/bus", zero));
}

#[test]
fn maps_as_wide_as_the_target_says_are_read_where_nothing_else_fits() {
    let blob = with_map(2, &[0x100, 1, 0x1940, 0x20, 1]).finish();
    let board = Board::read(&blob).unwrap();
    let entry = board.host_bridges()[0].entries[0];
    assert_eq!((entry.rid_base, entry.stream_base, entry.stream_mask.value(), entry.length), (0x100, 0x1940, 0x20, 1));
    // Four entries of five cells are as long as five of four, but those would refer to phandle 0x30 and others.
    let entries = [[0, 1, 0x10, 0, 1], [1, 1, 0x20, 0, 1], [2, 1, 0x30, 0, 1], [3, 1, 0x40, 0, 1]].concat();
    assert_eq!(Board::read(&with_map(2, &entries).finish()).unwrap().host_bridges()[0].entries.len(), 4);
    let range = NodeFault::MapRange { property: "iommu-map", entry: 0, length: 2, cells: 2 };
    assert_eq!(fault(&mut with_map(2, &[0, 1, 0x10, 0, 2])), at("/bus", range));
}

#[test]
fn a6_a_map_that_reads_in_two_ways_is_refused() {
    // Read with four cells all entries refer to phandle 1; read with five they do too.
    let mut map = [0; 20];
    for index in [1, 5, 9, 13, 17, 6, 11, 16] {
        map[index] = 1;
    }
    let ambiguous = NodeFault::AmbiguousMap { property: "iommu-map", four: 5, other: 4 };
    assert_eq!(fault(&mut with_map(2, &map)), at("/bus", ambiguous));
}

#[test]
fn a6_map_entries_that_can_never_hit_or_run_over() {
    let mut board = Builder::board();
    board.smmu(0x1000, 1, 1).begin("bus").cells("iommu-map", &[0, 1, 0, 8, 0x400, 1, 8, 8]);
    board.cells("iommu-map-mask", &[0x31f]).end();
    let map = |fault| at("/bus", NodeFault::Map { property: "iommu-map", fault });
    assert_eq!(fault(&mut board), map(MapFault::OutsideMask { index: 1, rid_base: 0x400, mask: 0x31f }));
    for (rid, stream) in [(0xffff_fff0, 0), (0, 0xffff_fff0)] {
        assert_eq!(fault(&mut with_map(1, &[rid, 1, stream, 0x11])), map(MapFault::Overflow { index: 0 }));
        assert!(Board::read(&with_map(1, &[rid, 1, stream, 0x10]).finish()).is_ok());
    }
    let overlap = MapFault::Overlap { first: 0, second: 1 };
    assert_eq!(fault(&mut with_map(1, &[0, 1, 0, 8, 7, 1, 8, 8])), map(overlap));
    let mut board = with_map(1, &[0, 1, 0, 1]);
    board.begin("other").cells("iommu-map", &[0, 1, 0, 1]).property("iommu-map-mask", &[0; 3]).end();
    let length = NodeFault::Length { property: "iommu-map-mask", length: 3, expected: 4 };
    assert_eq!(fault(&mut board), at("/other", length));
}

#[test]
fn a6_maps_that_name_other_iommus_say_so() {
    let mut board = with_map(1, &[0, 1, 5, 1, 0x100, 2, 6, 1]);
    board.begin("other").cells("phandle", &[2]).cells("#iommu-cells", &[1]).end();
    board.begin("elsewhere").cells("iommu-map", &[0, 2, 0, 0x100]).end();
    let blob = board.finish();
    let board = Board::read(&blob).unwrap();
    let [bridge] = board.host_bridges() else { panic!("not one bridge") };
    let providers: Vec<Provider> = bridge.entries.iter().map(|entry| entry.iommu).collect();
    assert_eq!(providers, [Provider::Smmu(IommuKey::new(0x1000)), Provider::Foreign]);
    assert_eq!(bridge.foreign_iommus, [board.tree().find("/other").unwrap().id()]);
}

#[test]
fn a6_bridges_with_impossible_buses() {
    let bridge = |property: &str, cells: &[u32]| {
        let mut board = Builder::board();
        board.smmu(0x1000, 1, 1).begin("pci").cells("iommu-map", &[0, 1, 0, 1]).cells(property, cells).end();
        fault(&mut board)
    };
    for (first, last) in [(0, 0x100), (2, 1), (0x1_0000_u32, 0x1_0001)] {
        assert_eq!(bridge("bus-range", &[first, last]), at("/pci", NodeFault::BusRange { first, last }));
    }
    let length = NodeFault::Length { property: "bus-range", length: 4, expected: 8 };
    assert_eq!(bridge("bus-range", &[0]), at("/pci", length));
    assert_eq!(bridge("linux,pci-domain", &[0x1_0000]), at("/pci", NodeFault::Segment { segment: 0x1_0000 }));
}
