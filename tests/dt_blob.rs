//! What can be wrong with a blob and its tree, one thing at a time (contract A-6): each is its own error, which names the
//! byte or the node. What is merely unusual is read.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "a test fails by panicking"
)]

#[path = "dt_support/builder.rs"]
mod builder;

use builder::{BEGIN_NODE, Builder, END, NOP, at, fault, stream, with_iommus};
use iommu_assign::dt::{BlobErrorKind, Block, Board, DtError, MAX_DEPTH, MAX_NAME, NodeFault, Tree};

const SHOWCASE: &[u8] = include_bytes!("../boards/showcase.dtb");
const ODDITIES: &[u8] = include_bytes!("../boards/oddities.dtb");

fn blob_fault(blob: &[u8]) -> BlobErrorKind {
    match Board::read(blob) {
        Err(DtError::Blob(error)) => error.kind(),
        other => panic!("{other:?}"),
    }
}

// The blob.

#[test]
fn a6_truncated_blobs_are_refused() {
    for (name, blob) in [("showcase", SHOWCASE), ("oddities", ODDITIES)] {
        let total = u32::from_be_bytes(*blob[4..].first_chunk().unwrap()) as usize;
        for length in 0..total {
            let cut = &blob[..length];
            let total = match length {
                0..36 => 36,
                36..40 => 40,
                _ => total,
            };
            let expected = BlobErrorKind::Truncated { total, present: length };
            assert_eq!(blob_fault(cut), expected, "{name} cut to {length}");
        }
    }
    let error = Board::read(&SHOWCASE[..1000]).unwrap_err();
    let total = SHOWCASE.len();
    let sentence = format!("device tree blob: truncated: {total} bytes are needed and 1000 are there (byte 0x3e8)");
    assert_eq!(error.to_string(), sentence);
}

#[test]
fn bytes_behind_the_blob_are_ignored() {
    let mut padded = SHOWCASE.to_vec();
    padded.extend([0xff; 4096]);
    assert_eq!(Board::read(&padded).unwrap().devices().len(), 14);
}

#[test]
fn a9_where_the_blob_lies_does_not_matter() {
    let blob = ODDITIES;
    let board = Board::read(blob).unwrap();
    for start in 1..4 {
        let mut shifted = vec![0; start];
        shifted.extend(blob);
        let again = Board::read(&shifted[start..]).unwrap();
        assert_eq!(again.devices(), board.devices());
        assert_eq!(again.host_bridges(), board.host_bridges());
        assert_eq!(again.smmus(), board.smmus());
    }
}

#[test]
fn a6_headers_that_are_none() {
    let good = Builder::board().finish();
    let with = |offset: usize, value: u32| {
        let mut blob = good.clone();
        blob[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
        blob
    };
    assert!(Board::read(&good).is_ok());
    assert_eq!(blob_fault(&with(0, 0xfeed_d00d)), BlobErrorKind::BadMagic(0xfeed_d00d));
    assert_eq!(blob_fault(&with(20, 3)), BlobErrorKind::Version { version: 3, compatible: 16 });
    assert_eq!(blob_fault(&with(24, 18)), BlobErrorKind::Version { version: 17, compatible: 18 });
    let huge = BlobErrorKind::Truncated { total: 0xffff_ffff, present: good.len() };
    assert_eq!(blob_fault(&with(4, 0xffff_ffff)), huge);
    assert_eq!(blob_fault(&with(4, 39)), BlobErrorKind::Truncated { total: 40, present: 39 });
    let misplaced = |block, start| BlobErrorKind::BlockOutside { block, start };
    assert_eq!(blob_fault(&with(8, 0xffff_fffc)), misplaced(Block::Structure, 0xffff_fffc));
    assert_eq!(blob_fault(&with(12, 0x1_0000)), misplaced(Block::Strings, 0x1_0000));
    assert_eq!(blob_fault(&with(16, 0x8000_0000)), misplaced(Block::MemoryReservations, 0x8000_0000));
    assert_eq!(blob_fault(&with(36, 0x1_0000)), misplaced(Block::Structure, 56));
    assert_eq!(blob_fault(&with(8, 58)), BlobErrorKind::Misaligned { block: Block::Structure, start: 58 });
    let block = Block::MemoryReservations;
    assert_eq!(blob_fault(&with(16, 44)), BlobErrorKind::Misaligned { block, start: 44 });
    // Reservations that no pair of zeros ends.
    let end = u32::try_from(good.len() & !7).unwrap();
    assert_eq!(blob_fault(&with(16, end - 8)), BlobErrorKind::BlockEnd(block));
}

#[test]
fn version_16_is_read() {
    let mut board = with_iommus(1, &[1, 5]);
    board.version = 16;
    assert_eq!(Board::read(&board.finish()).unwrap().devices()[0].streams, [stream(5, 0)]);
}

#[test]
fn nops_may_stand_anywhere() {
    let mut board = Builder::new();
    board.nops = true;
    board.begin("").cells("#address-cells", &[2]).cells("#size-cells", &[2]);
    board.smmu(0x1000, 1, 2).begin("dma").cells("iommus", &[1, 0x16, 0x2]).end();
    let blob = board.finish();
    assert_eq!(Board::read(&blob).unwrap().devices()[0].streams, [stream(0x14, 2)]);
}

/// How the blob that `tokens` writes is refused.
fn refused(tokens: impl FnOnce(&mut Builder) -> &mut Builder) -> BlobErrorKind {
    blob_fault(&tokens(&mut Builder::new()).blob())
}

#[test]
fn a6_structures_that_do_not_nest() {
    let ends_early = BlobErrorKind::BlockEnd(Block::Structure);
    assert_eq!(refused(|it| it.token(END)), BlobErrorKind::NoRoot);
    assert_eq!(refused(|it| it.token(NOP)), ends_early);
    assert_eq!(refused(|it| it.begin("").end()), ends_early);
    assert_eq!(refused(|it| it.begin("").token(END)), BlobErrorKind::UnclosedNode);
    assert_eq!(refused(|it| it.begin("").end().end()), BlobErrorKind::UnmatchedEnd);
    assert_eq!(refused(|it| it.begin("").end().begin("").end().token(END)), BlobErrorKind::SecondRoot);
    assert_eq!(refused(|it| it.property("model", &[]).begin("").end()), BlobErrorKind::PropertyOutsideNode);
    let late = refused(|it| it.begin("").begin("a").end().property("model", &[]).end().token(END));
    assert_eq!(late, BlobErrorKind::PropertyAfterChild);
    assert_eq!(refused(|it| it.begin("").token(0xd00d)), BlobErrorKind::UnknownToken(0xd00d));
}

#[test]
fn a6_names_that_no_node_or_property_may_have() {
    assert_eq!(refused(|it| it.begin("board").end().token(END)), BlobErrorKind::RootName);
    assert_eq!(refused(|it| it.begin("").begin("")), BlobErrorKind::EmptyName);
    assert_eq!(refused(|it| it.begin("").begin("a/b")), BlobErrorKind::NameCharacter);
    assert_eq!(refused(|it| it.begin("").begin("a\x1b[2J")), BlobErrorKind::NameCharacter);
    assert_eq!(refused(|it| it.begin("").begin("\u{e9}")), BlobErrorKind::NameCharacter);
    assert_eq!(refused(|it| it.begin("").property("", &[])), BlobErrorKind::EmptyName);
    assert_eq!(refused(|it| it.begin("").property("a b", &[])), BlobErrorKind::NameCharacter);
    assert_eq!(refused(|it| it.begin("").raw_property(0, 7, &[])), BlobErrorKind::NameOutside(7));
    // Old boot loaders write this one.
    let mut board = Builder::new();
    let blob = board.begin("/").begin("a").end().finish();
    assert_eq!(Tree::read(&blob).unwrap().find("/a").unwrap().path().unwrap(), "/a");
}

#[test]
fn a6_lengths_and_names_that_do_not_end() {
    for length in [9, 0x7fff_ffff, 0xffff_fffd, 0xffff_ffff] {
        let mut builder = Builder::new();
        builder.begin("").raw_property(length, 0, &[]).end().token(END);
        builder.strings.extend(b"reg\0");
        assert_eq!(blob_fault(&builder.blob()), BlobErrorKind::BlockEnd(Block::Structure), "{length:#x}");
    }
    let mut builder = Builder::new();
    builder.begin("").raw_property(0, 0, &[]).end().token(END);
    builder.strings.extend(b"reg");
    assert_eq!(blob_fault(&builder.blob()), BlobErrorKind::NameEnd);
    let mut builder = Builder::new();
    builder.token(BEGIN_NODE).structure.extend([b'a'; 64]);
    assert_eq!(blob_fault(&builder.blob()), BlobErrorKind::NameEnd);
}

#[test]
fn a8_nesting_has_a_bound_and_takes_no_stack() {
    let nested = |depth: usize| {
        let mut builder = Builder::new();
        builder.begin("");
        (1..depth).for_each(|_| {
            builder.begin("n");
        });
        (1..depth).for_each(|_| {
            builder.end();
        });
        builder.finish()
    };
    let deepest = nested(MAX_DEPTH);
    let tree = Tree::read(&deepest).unwrap();
    assert_eq!(tree.nodes().last().unwrap().path().unwrap(), "/n".repeat(MAX_DEPTH - 1));
    assert_eq!(blob_fault(&nested(MAX_DEPTH + 1)), BlobErrorKind::TooDeep);
    assert_eq!(blob_fault(&nested(1_000_000)), BlobErrorKind::TooDeep);
}

#[test]
fn a8_names_may_be_longer_than_the_specification_says_and_have_a_bound() {
    let named = |node: &str, property: &str| {
        let mut board = Builder::board();
        board.smmu(0x1000, 1, 1).begin(node).property(property, &[1, 2, 3]).cells("iommus", &[1, 5]).end();
        board.finish()
    };
    let (long, too_long) = ("x".repeat(MAX_NAME), "x".repeat(MAX_NAME + 1));
    let blob = named(&long, &long);
    let board = Board::read(&blob).unwrap();
    assert_eq!(board.devices()[0].path, format!("/{long}"));
    assert_eq!(board.tree().find(&board.devices()[0].path).unwrap().property(&long).unwrap().value(), [1, 2, 3]);
    assert_eq!(blob_fault(&named(&too_long, "x")), BlobErrorKind::NameTooLong);
    assert_eq!(blob_fault(&named("x", &too_long)), BlobErrorKind::NameTooLong);
}

/// Without a bound this blob of a megabyte would have its one name read forty thousand times.
#[test]
fn a8_properties_that_share_one_endless_name_end_the_walk_at_once() {
    let mut board = Builder::new();
    board.begin("");
    for _ in 0..40_000 {
        board.raw_property(0, 0, &[]);
    }
    board.strings.resize(500_000, b'x');
    board.strings.push(0);
    assert_eq!(blob_fault(&board.finish()), BlobErrorKind::NameTooLong);
}

// The tree.

#[test]
fn a6_names_that_stand_twice() {
    let mut board = Builder::board();
    board.begin("bus").begin("a").end().begin("b").end().begin("a").end().end();
    assert_eq!(fault(&mut board), at("/bus/a", NodeFault::DuplicateNode));
    let mut board = Builder::board();
    board.begin("bus").cells("reg", &[1]).cells("ranges", &[]).cells("reg", &[1]).end();
    assert_eq!(fault(&mut board), at("/bus", NodeFault::DuplicateProperty { property: "reg".to_owned() }));
}

#[test]
fn a6_phandles_that_name_no_one_node() {
    let mut board = Builder::board();
    board.begin("a").cells("phandle", &[7]).end().begin("b").cells("linux,phandle", &[7]).end();
    assert_eq!(fault(&mut board), at("/b", NodeFault::DuplicatePhandle { phandle: 7, other: "/a".to_owned() }));
    for phandle in [0, u32::MAX] {
        let mut board = Builder::board();
        board.begin("a").cells("phandle", &[phandle]).end();
        assert_eq!(fault(&mut board), at("/a", NodeFault::ReservedPhandle { phandle }));
    }
    let mut board = Builder::board();
    board.begin("a").cells("phandle", &[7]).cells("linux,phandle", &[8]).end();
    assert_eq!(fault(&mut board), at("/a", NodeFault::ContradictingPhandles { phandle: 7, legacy: 8 }));
    let mut board = Builder::board();
    board.begin("a").property("phandle", &[0, 0, 7]).end();
    assert_eq!(fault(&mut board), at("/a", NodeFault::Length { property: "phandle", length: 3, expected: 4 }));
    // Both names with one value is what old compilers write.
    let mut board = Builder::board();
    board.begin("a").cells("phandle", &[7]).cells("linux,phandle", &[7]).end();
    assert_eq!(Tree::read(&board.finish()).unwrap().by_phandle(7).unwrap().name(), "a");
}

#[test]
fn metadata_describes_no_device() {
    let mut board = with_iommus(1, &[1, 5]);
    board.begin("__local_fixups__").begin("dma").cells("iommus", &[0]).cells("phandle", &[1]).end().end();
    board.begin("bus").begin("__inner__").cells("iommus", &[1, 6]).end().end();
    let blob = board.finish();
    let board = Board::read(&blob).unwrap();
    let paths: Vec<&str> = board.devices().iter().map(|device| device.path.as_str()).collect();
    assert_eq!(paths, ["/dma", "/bus/__inner__"]);
    assert!(!board.tree().find("/__local_fixups__/dma").unwrap().is_enabled());
}

#[test]
fn only_two_words_mean_enabled() {
    let cases: [(&[u8], bool); 8] = [
        (b"okay\0", true),
        (b"ok\0", true),
        (b"okay", false),
        (b"disabled\0", false),
        (b"disable\0", false),
        (b"OKAY\0", false),
        (b"okay\0disabled\0", false),
        (b"", false),
    ];
    for (status, enabled) in cases {
        let mut board = Builder::board();
        board.begin("bus").property("status", status).begin("dma").end().end();
        let blob = board.finish();
        let tree = Tree::read(&blob).unwrap();
        assert_eq!(tree.find("/bus").unwrap().is_enabled(), enabled, "{status:?}");
        assert_eq!(tree.find("/bus/dma").unwrap().is_enabled(), enabled, "below {status:?}");
    }
}

#[test]
fn a9_a_devices_key_is_the_hash_of_its_path() {
    let blob = with_iommus(1, &[1, 5]).finish();
    let board = Board::read(&blob).unwrap();
    let fnv1a = |text: &str| {
        text.bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    };
    assert_eq!(board.devices()[0].key, fnv1a("/dma"));
    for node in board.tree().nodes() {
        assert_eq!(node.key(), fnv1a(&node.path().unwrap()));
    }
    // The published value of the hash for one letter, so that both are not wrong in the same way.
    assert_eq!(fnv1a("a"), 0xaf63_dc4c_8601_ec8c);
}
