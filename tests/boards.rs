//! Boards: that our own are what their sources say, and that real ones read as what they are.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]
#![expect(clippy::arithmetic_side_effects, reason = "a test fails by panicking")]

#[path = "dt_support/files.rs"]
mod files;
#[path = "dt_support/source.rs"]
mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use iommu_assign::assign::{IommuKey, Stream, StreamId, StreamMask};
use iommu_assign::dt::{Board, DtDevice, HostBridge, SmmuNode, Tree};
use iommu_assign::pci::{MapError, Provider, RequesterId};
use iommu_assign::smmu::{Architecture, ContextLines, Implementation};
use source::Source;

fn stream(base: u64, id: u32, mask: u32) -> Stream {
    Stream::new(IommuKey::new(base), StreamId::new(id), StreamMask::new(mask))
}

fn smmu<'b>(board: &'b Board<'_>, base: u64) -> &'b SmmuNode<'b> {
    board.smmu(IommuKey::new(base)).unwrap_or_else(|| panic!("no SMMU at {base:#x}"))
}

fn device<'b>(board: &'b Board<'_>, path: &str) -> &'b DtDevice {
    board.devices().iter().find(|device| device.path == path).unwrap_or_else(|| panic!("no device {path}"))
}

fn bridge<'b>(board: &'b Board<'_>, path: &str) -> &'b HostBridge {
    board.host_bridges().iter().find(|bridge| bridge.path == path).unwrap_or_else(|| panic!("no bridge {path}"))
}

/// The map as (first requester ID, base of the SMMU, first stream ID, length); 0 for a foreign IOMMU.
fn map(bridge: &HostBridge) -> Vec<(u32, u64, u32, u32)> {
    let base = |target| if let Provider::Smmu(key) = target { key.base() } else { 0 };
    bridge.entries.iter().map(|entry| (entry.rid_base, base(entry.iommu), entry.stream_base, entry.length)).collect()
}

/// How many specifiers of enabled devices name the SMMU at `base`.
fn enabled_specifiers(board: &Board<'_>, base: u64) -> usize {
    let enabled = board.devices().iter().filter(|device| device.enabled);
    let counts = enabled.flat_map(|device| &device.specifiers).filter(|count| count.smmu.base() == base);
    counts.map(|count| count.count).sum()
}

/// Sets of devices with exactly the same streams, at least two each.
fn equal_sets<'b>(board: &'b Board<'_>) -> BTreeSet<Vec<&'b str>> {
    let mut sets: BTreeMap<&[Stream], Vec<&str>> = BTreeMap::new();
    for device in board.devices() {
        sets.entry(&device.streams).or_default().push(&device.path);
    }
    sets.into_values().filter(|paths| paths.len() > 1).collect()
}

// Our own boards.

#[test]
fn each_blob_is_what_its_source_says() {
    for (name, blob) in files::OWN.into_iter().chain([files::OVERLAY]) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("boards").join(name).with_extension("dts");
        Source::read(&fs::read_to_string(path).unwrap()).check(&Tree::read(blob).unwrap());
    }
}

#[test]
fn each_blob_is_what_the_compiler_makes_of_its_source() {
    for (name, blob) in files::OWN.into_iter().chain([files::OVERLAY]) {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("boards").join(name).with_extension("dts");
        let symbols: &[&str] = if name == "oddities" { &["-@"] } else { &[] };
        let compiler = Command::new("dtc").args(["-q", "-I", "dts", "-O", "dtb"]).args(symbols).arg(&source).output();
        let Ok(output) = compiler else {
            files::skipped("each_blob_is_what_the_compiler_makes_of_its_source: skipped: dtc is not installed");
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == blob, "boards/{name}.dtb is not what dtc makes of its source: see boards/README.md");
    }
}

#[test]
fn each_blob_of_the_bare_metal_image_is_what_the_compiler_makes_of_its_source() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("el2");
    for (source, blob) in [("modelled.dtso", "modelled.dtbo"), ("zynqmp.dts", "zynqmp.dtb")] {
        let compiler = Command::new("dtc").args(["-q", "-I", "dts", "-O", "dtb"]).arg(folder.join(source)).output();
        let Ok(output) = compiler else {
            files::skipped("each_blob_of_the_bare_metal_image: skipped: dtc is not installed");
            return;
        };
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let found = fs::read(folder.join(blob)).unwrap();
        assert!(output.stdout == found, "el2/{blob} is not what dtc makes of el2/{source}: its head says how");
    }
}

#[test]
fn a_board_of_the_bare_metal_image_has_its_masters_behind_one_smmu() {
    const SMMU: u64 = 0xfd80_0000;
    let blob = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("el2/zynqmp.dtb")).unwrap();
    let board = Board::read(&blob).unwrap();
    let unit = smmu(&board, SMMU);
    assert_eq!((unit.enabled, unit.context_irqs, unit.context_lines.count()), (false, 16, 1));
    assert_eq!(board.devices().len(), 16);
    assert_eq!(device(&board, "/axi/dma-controller@fd500000").streams, [stream(SMMU, 0x14e8, 0)]);
    assert!(board.devices().iter().all(|device| device.enabled && device.on_disabled_smmu));

    let tree = board.tree();
    let regions = |path: &str| tree.find(path).unwrap().regions().unwrap();
    let bases = |path: &str| regions(path).iter().map(|region| region.base()).collect::<Vec<_>>();
    assert_eq!(bases("/memory@0"), [0]);
    assert_eq!(bases("/axi/interrupt-controller@f9010000"), [0xf901_0000, 0xf902_0000]);
    assert_eq!(bases("/chosen"), []);
    let uart = tree.find("/axi/serial@ff000000").unwrap();
    assert!(uart.strings("compatible").unwrap().eq(["xlnx,zynqmp-uart", "cdns,uart-r1p12"]));
    assert_eq!(uart.u32("#clock-cells").unwrap(), None);
}

#[test]
fn the_showcase_shows_what_it_is_for() {
    const MEDIA: u64 = 0x1200_0000;
    const IO: u64 = 0x1400_0000;
    const PERIPHERAL: u64 = 0x1600_0000;
    let board = Board::read(files::OWN[0].1).unwrap();

    assert_eq!(board.smmus().len(), 3);
    let media = smmu(&board, MEDIA);
    assert_eq!((media.iommu_cells, media.global_irqs, media.context_irqs, media.coherent), (2, 1, 16, true));
    assert_eq!((media.path.as_str(), media.registers.size()), ("/soc/iommu@12000000", 0x40000));
    let io = smmu(&board, IO);
    assert_eq!((io.iommu_cells, io.stream_match_mask.value(), io.global_irqs, io.context_irqs), (1, 0x7c00, 2, 8));
    let peripheral = smmu(&board, PERIPHERAL);
    assert_eq!(peripheral.architecture, Architecture::V1);
    assert_eq!(peripheral.implementation, Implementation::Mmu401);
    assert_eq!(peripheral.interrupts[0], peripheral.interrupts[1]);
    assert_eq!(peripheral.interrupts[0].specifier().collect::<Vec<_>>(), [0, 160, 4]);

    assert_eq!(device(&board, "/soc/ethernet@24010000").streams, [stream(IO, 0x21, 0x7c00)]);
    assert!(device(&board, "/soc/ethernet@24010000").passthrough);
    assert!(!device(&board, "/soc/ethernet@24000000").passthrough);
    assert!(!device(&board, "/soc/jpeg@20300000").enabled);
    let codec = device(&board, "/soc/video-codec@20200000");
    assert_eq!(device(&board, "/soc/video-codec@20200000/video-firmware").parent, Some(codec.node));
    assert_eq!(codec.parent, None);
    assert_eq!(equal_sets(&board), BTreeSet::from([vec!["/soc/dma-controller@22000000", "/soc/crypto@22010000"]]));
    assert_eq!([MEDIA, IO, PERIPHERAL].map(|base| enabled_specifiers(&board, base)), [15, 5, 10]);

    let pcie = bridge(&board, "/soc/pcie@30000000");
    assert_eq!(map(pcie), [(0, IO, 0x80, 0x20), (0x100, IO, 0xc0, 0x20)]);
    assert_eq!((pcie.requesters.mask(), pcie.buses.clone(), pcie.segment), (0x11f, 0..=1, Some(0)));
    assert_eq!(pcie.ecam.map(|ecam| (ecam.base(), ecam.size())), Some((0x3000_0000, 0x20_0000)));
    let translate = |rid| pcie.requesters.stream(RequesterId(rid));
    assert_eq!(translate(0x0008), Ok(stream(IO, 0x88, 0x7c00)));
    assert_eq!(translate(0x011f), Ok(stream(IO, 0xdf, 0x7c00)));
}

#[test]
fn a6_oddities_are_read_as_what_they_are() {
    const SMMU: u64 = 0x200_0000;
    const TRIPLE: u64 = 0x240_0000;
    const FAR: u64 = 0x1_f010_0000;
    let board = Board::read(files::OWN[1].1).unwrap();

    let bases: Vec<u64> = board.smmus().iter().map(|smmu| smmu.key.base()).collect();
    assert_eq!(bases, [SMMU, 0x210_0000, 0x220_0000, TRIPLE, FAR]);
    assert!(board.tree().find("/__symbols__").unwrap().property("smmu_far").is_some());
    let first = smmu(&board, SMMU);
    assert_eq!((first.enabled, first.global_irqs, first.context_irqs), (true, 0, 3));
    assert_eq!(first.stream_match_mask, StreamMask::NONE);
    let specifiers: Vec<Vec<u32>> = first.interrupts.iter().map(|irq| irq.specifier().collect()).collect();
    assert_eq!(specifiers, [vec![0, 70, 4], vec![7], vec![0, 72, 4]]);
    assert_eq!(smmu(&board, 0x210_0000).phandle, None);
    assert!(!smmu(&board, 0x220_0000).enabled);
    let mirrors: Vec<u64> = smmu(&board, TRIPLE).mirrors.iter().map(|region| region.base()).collect();
    assert_eq!(mirrors, [0x250_0000, 0x260_0000]);
    assert_eq!(smmu(&board, FAR).implementation, Implementation::MarvellAp806);

    assert_eq!(device(&board, "/trace-router@1000000").streams, [stream(SMMU, 0x480, 0x20)]);
    let camera = device(&board, "/camera@1100000");
    assert_eq!(camera.streams, [stream(SMMU, 0x800, 0x400), stream(SMMU, 0x820, 0x400)]);
    assert_eq!(camera.specifiers[0].count, 4);
    let overlap = |one: &DtDevice, other: &DtDevice| {
        one.streams.iter().any(|stream| other.streams.iter().any(|other| stream.overlaps(*other)))
    };
    assert!(overlap(camera, device(&board, "/camera-debug@1200000")));
    assert_eq!(device(&board, "/dma-controller@3600000").streams, [stream(TRIPLE, 1, 0x7f80)]);

    let not_enabled: Vec<&str> =
        board.devices().iter().filter(|device| !device.enabled).map(|device| device.path.as_str()).collect();
    let deep = "/audio-subsystem/link/compute-context-with-a-name-of-far-more-than-thirty-one-characters";
    assert_eq!(not_enabled, ["/crypto@3100000", "/modem@3200000", deep]);
    let usb = device(&board, "/usb@3000000");
    assert!(usb.enabled && usb.on_disabled_smmu && usb.passthrough);
    let inner = device(&board, "/processor@3300000/contexts/context");
    assert_eq!(inner.parent, Some(device(&board, "/processor@3300000").node));
    assert_eq!((inner.streams.len(), inner.specifiers[0].count), (1, 2));
    let display = device(&board, "/display@3400000");
    assert_eq!(display.foreign_iommus, [board.tree().find("/iommu@2300000").unwrap().id()]);
    assert_eq!(display.streams, [stream(SMMU, 0x140, 3)]);
    assert!(board.devices().iter().all(|device| !device.path.starts_with("/scaler")));

    assert_eq!(bridge(&board, "/pcie@40000000").requesters.mask(), 0);
    let mapped = bridge(&board, "/pcie@60000000");
    assert_eq!(map(mapped), [(0x100, SMMU, 0x1480, 1), (0x200, SMMU, 0x1490, 8), (0x300, 0, 0, 0x100)]);
    assert!(mapped.entries.iter().all(|entry| entry.stream_mask == StreamMask::NONE));
    let rid = RequesterId(0x300);
    assert_eq!(mapped.requesters.stream(rid), Err(MapError::Foreign { rid }));
    assert_eq!(mapped.foreign_iommus, display.foreign_iommus);
    assert!(!bridge(&board, "/pcie@70000000").enabled);
    assert_eq!(map(bridge(&board, "/pcie@70000000")), [(0, FAR, 0, 0x10000)]);
    let objects = bridge(&board, "/object-bus@3700000");
    assert_eq!((objects.is_pci, map(objects)), (false, vec![(0, FAR, 0, 0)]));
    let video = bridge(&board, "/video@3800000");
    assert_eq!((map(video), video.entries[0].stream_mask.value()), (vec![(0, SMMU, 0x1940, 1)], 0x20));
}

#[test]
fn q15_interrupt_lists_name_lines_and_not_banks() {
    let board = Board::read(files::OWN[3].1).unwrap();
    let lines = |base: u64| &smmu(&board, base).context_lines;
    assert_eq!(lines(0x100_0000), &ContextLines::each(17));
    let twice = lines(0x200_0000);
    assert_eq!((twice.count(), [0, 1, 2, 3].map(|bank| twice.line(bank))), (16, [Some(0), Some(1), Some(1), Some(2)]));
    // A line is what its interrupt says it is: the one that the second and the third bank share.
    let interrupt = smmu(&board, 0x200_0000).context_line_interrupts().nth(1).unwrap();
    assert_eq!(interrupt.specifier().collect::<Vec<_>>(), [0, 231, 4]);
    assert_eq!(lines(0x300_0000), &ContextLines::ONE);
    assert_eq!(lines(0x400_0000).line_of_used(0, 16), None, "two lines for sixteen banks");
    let pair = lines(0x500_0000);
    assert_eq!((pair.count(), pair.line(0)), (2, None), "one for each instance, whatever the bank");
}

#[test]
fn look_alikes_are_not_claimed() {
    let board = Board::read(files::OWN[2].1).unwrap();
    assert!(board.smmus().is_empty() && board.devices().is_empty() && board.host_bridges().is_empty());
}

// Real boards, where they are there. What is asserted was counted by other means than this reader.

#[test]
fn real_boards_read_as_what_they_are() {
    for (name, blob) in files::real_boards("real_boards_read_as_what_they_are") {
        let board = Board::read(&blob).unwrap_or_else(|error| panic!("{name}: {error}"));
        match name.as_str() {
            "amd-overdrive-rev-b1" => amd_overdrive(&board),
            "armada-8040-mcbin" => armada_8040(&board),
            "fsl-ls1028a-rdb" => ls1028a(&board),
            "fvp-base-revc" => assert!(board.smmus().is_empty() && board.devices().is_empty()),
            "juno-r2" => juno(&board),
            "msm8998-mtp" => msm8998(&board),
            "sdm845-db845c" => sdm845(&board),
            _ => {}
        }
    }
}

fn amd_overdrive(board: &Board<'_>) {
    assert_eq!(board.smmus().len(), 5);
    assert!(board.smmus().iter().all(|smmu| smmu.implementation == Implementation::Mmu401 && smmu.coherent));
    assert!(board.smmus().iter().all(|smmu| (smmu.global_irqs, smmu.context_irqs) == (1, 1)));
    assert!(board.smmus().iter().all(|smmu| smmu.interrupts[0] == smmu.interrupts[1]));
    let cells: Vec<u32> = board.smmus().iter().map(|smmu| smmu.iommu_cells).collect();
    assert_eq!(cells, [2, 1, 1, 2, 2]);
    assert_eq!(device(board, "/smb/sata@e0300000").streams, [stream(0xe020_0000, 0, 0x1f)]);
    assert_eq!(device(board, "/smb/xgmac@e0700000").streams, [stream(0xe060_0000, 0, 0x17)]);
    assert_eq!(enabled_specifiers(board, 0xe0c0_0000), 7);
    assert_eq!(map(bridge(board, "/smb/pcie@f0000000")), [(0, 0xe0a0_0000, 0, 0x10000)]);
}

fn armada_8040(board: &Board<'_>) {
    let [smmu] = board.smmus() else { panic!("not one SMMU") };
    assert_eq!((smmu.key.base(), smmu.registers.size()), (0xf010_0000, 0x10_0000));
    assert_eq!(smmu.path, "/ap806/config-space@f0000000/iommu@5000000");
    assert_eq!((smmu.enabled, smmu.implementation), (false, Implementation::MarvellAp806));
    assert_eq!((smmu.global_irqs, smmu.context_irqs), (1, 8));
    assert!(smmu.interrupts.iter().all(|irq| *irq == smmu.interrupts[0]));
    assert!(board.devices().iter().all(|device| device.on_disabled_smmu));
    assert!(board.devices().iter().any(|device| device.enabled));
    let [pcie] = board.host_bridges() else { panic!("not one bridge") };
    let base = 0xf010_0000;
    assert_eq!(map(pcie), [(0, base, 0x480, 0x20), (0x100, base, 0x4a0, 0x20), (0x200, base, 0x4c0, 0x20)]);
    assert_eq!((pcie.requesters.mask(), pcie.on_disabled_smmu), (0x31f, true));
}

fn ls1028a(board: &Board<'_>) {
    let [smmu] = board.smmus() else { panic!("not one SMMU") };
    assert_eq!((smmu.key.base(), smmu.registers.size()), (0x500_0000, 0x80_0000));
    assert_eq!((smmu.stream_match_mask.value(), smmu.global_irqs, smmu.context_irqs), (0x7c00, 8, 64));
    assert!(board.devices().is_empty());
    let enetc = bridge(board, "/soc/pcie@1f0000000");
    assert_eq!(map(enetc), [(0, 0x500_0000, 0x17, 0xe)]);
    assert!(enetc.enabled && enetc.entries[0].stream_mask.value() == 0x7c00);
    let others: Vec<_> = board.host_bridges().iter().filter(|bridge| bridge.node != enetc.node).collect();
    assert_eq!(others.len(), 2);
    assert!(others.iter().all(|bridge| map(bridge) == [(0, 0x500_0000, 0, 1)]));
}

fn juno(board: &Board<'_>) {
    assert_eq!(board.smmus().len(), 7);
    assert!(board.smmus().iter().all(|smmu| smmu.architecture == Architecture::V1));
    let disabled: Vec<_> = board.smmus().iter().filter(|smmu| !smmu.enabled).collect();
    let [mmu400] = disabled[..] else { panic!("not one disabled SMMU") };
    assert_eq!((mmu400.implementation, mmu400.phandle), (Implementation::Mmu400, None));
    assert_eq!(equal_sets(board), BTreeSet::from([vec!["/usb@7ffb0000", "/usb@7ffc0000"]]));
    assert_eq!(enabled_specifiers(board, 0x7fb0_0000), 9);
    let pcie = bridge(board, "/pcie@40000000");
    assert_eq!((pcie.requesters.mask(), map(pcie)), (0, vec![(0, 0x2b50_0000, 0, 1)]));
}

fn msm8998(board: &Board<'_>) {
    let context_irqs: Vec<u32> = board.smmus().iter().map(|smmu| smmu.context_irqs).collect();
    assert_eq!(context_irqs, [6, 10, 3, 20]);
    assert!(board.smmus().iter().all(|smmu| smmu.global_irqs == 0 && smmu.enabled));
    assert_eq!(smmu(board, 0xcd0_0000).phandle, None);
    let [pcie] = board.host_bridges() else { panic!("not one bridge") };
    assert_eq!(map(pcie), [(0x100, 0x168_0000, 0x1480, 1)]);
}

fn sdm845(board: &Board<'_>) {
    const APPS: u64 = 0x1500_0000;
    assert_eq!(board.smmus().len(), 2);
    let apps = smmu(board, APPS);
    assert_eq!((apps.iommu_cells, apps.global_irqs, apps.context_irqs), (2, 1, 64));
    let gpu = smmu(board, 0x504_0000);
    assert_eq!((gpu.adreno, gpu.iommu_cells, gpu.global_irqs, gpu.context_irqs), (true, 1, 2, 8));
    assert_eq!(enabled_specifiers(board, APPS), 38);
    let all: usize = board.devices().iter().flat_map(|device| &device.specifiers).map(|count| count.count).sum();
    assert_eq!(all - 2, 40, "two are for the GPU's SMMU");
    let shared = [
        vec!["/soc@0/dma-controller@1dc4000", "/soc@0/crypto@1dfa000"],
        vec!["/soc@0/slim@171c0000", "/soc@0/dma-controller@17184000"],
    ];
    assert_eq!(equal_sets(board), BTreeSet::from(shared));
    let [one, other] = board.host_bridges() else { panic!("not two bridges") };
    for (bridge, base) in [(one, 0x1c10), (other, 0x1c00)] {
        let expected: Vec<_> = (0..16).map(|bus| (bus << 8, APPS, base + bus, 1)).collect();
        assert_eq!(map(bridge), expected);
    }
}
