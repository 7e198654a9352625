//! The entries that real boards need, where `BOARDS_DIR` says where their device trees lie.

#![expect(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "a test fails by panicking")]

use std::io::Write;
use std::path::PathBuf;

use iommu_assign::assign::{IommuKey, Stream};
use iommu_assign::dt::Board;
use iommu_assign::pci::{MapEntry, Provider};
use iommu_assign::smmu::cover::{CoverOptions, Cube, least_cover};

const V2: CoverOptions = CoverOptions::new(0x7fff, 0x7fff);
/// Extended stream IDs, for maps of the whole requester ID space.
const EXTENDED: CoverOptions = CoverOptions::new(0xffff, 0xffff);

fn boards(test: &str) -> Vec<(String, Vec<u8>)> {
    let Some(directory) = std::env::var_os("BOARDS_DIR") else {
        // Straight to the terminal: the test runner keeps back what a passing test prints.
        let _ = writeln!(std::io::stderr(), "{test}: skipped, BOARDS_DIR is not set");
        return Vec::new();
    };
    let files = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|path| path.extension().is_some_and(|end| end == "dtb")).collect();
    files.sort();
    files
        .iter()
        .map(|path| (path.file_stem().unwrap().to_string_lossy().into(), std::fs::read(path).unwrap()))
        .collect()
}

/// The IDs of each group of enabled devices on an SMMU: those whose streams overlap, over any number of steps.
fn groups(board: &Board<'_>, smmu: IommuKey) -> Vec<Vec<Cube>> {
    let mut groups: Vec<Vec<Stream>> = Vec::new();
    for device in board.devices().iter().filter(|device| device.enabled) {
        let mut joined: Vec<Stream> = device.streams.iter().filter(|stream| stream.iommu() == smmu).copied().collect();
        let overlaps = |group: &Vec<Stream>| group.iter().any(|one| joined.iter().any(|two| one.overlaps(*two)));
        let (joining, apart): (Vec<_>, Vec<_>) = groups.into_iter().partition(overlaps);
        joined.extend(joining.concat());
        groups = apart;
        groups.push(joined);
    }
    groups.into_iter().map(|group| group.into_iter().map(Cube::from).collect()).collect()
}

/// Entries when each group is merged for itself: all proven least.
fn merged(name: &str, board: &Board<'_>, smmu: IommuKey) -> usize {
    let covers = groups(board, smmu).into_iter().map(|ids| {
        let cover = least_cover(&ids, &V2).unwrap();
        assert!(cover.exact, "{name}: {ids:?}");
        cover.cubes.len()
    });
    covers.sum()
}

#[test]
fn groups_of_real_boards_need_as_many_entries_as_is_known() {
    let known = [
        ("amd-overdrive-rev-b1", vec![1, 3, 1, 1]),
        ("armada-8040-mcbin", vec![6]),
        ("juno-r2", vec![1, 2, 1, 1, 1]),
        ("sdm845-db845c", vec![27, 2]),
    ];
    for (name, blob) in boards("groups_of_real_boards_need_as_many_entries_as_is_known") {
        let board = Board::read(&blob).unwrap();
        let mut counts: Vec<usize> = board.smmus().iter().map(|smmu| merged(&name, &board, smmu.key)).collect();
        counts.retain(|count| *count != 0);
        counts.sort_unstable();
        if let Some((_, expected)) = known.iter().find(|(known, _)| *known == name) {
            let mut expected = expected.clone();
            expected.sort_unstable();
            assert_eq!(counts, expected, "{name}");
        }
        println!("{name}: {counts:?}");
    }
}

#[test]
fn one_domain_over_all_devices_of_an_smmu_is_solved_exactly_too() {
    for (name, blob) in boards("one_domain_over_all_devices_of_an_smmu_is_solved_exactly_too") {
        let board = Board::read(&blob).unwrap();
        for smmu in board.smmus() {
            let ids = groups(&board, smmu.key).concat();
            let cover = least_cover(&ids, &V2).unwrap();
            assert!(cover.exact, "{name}: {}", smmu.path);
            assert!(cover.cubes.len() <= merged(&name, &board, smmu.key));
        }
    }
}

/// The naturally aligned cubes of a range.
fn range(first: u32, length: u32) -> Vec<Cube> {
    let (mut at, end, mut cubes) = (first, first + length, Vec::new());
    while at < end {
        let bits = at.trailing_zeros().min((end - at).ilog2());
        cubes.push(Cube::new(at, (1 << bits) - 1));
        at += 1 << bits;
    }
    cubes
}

#[test]
fn host_bridges_need_few_entries() {
    for (name, blob) in boards("host_bridges_need_few_entries") {
        let board = Board::read(&blob).unwrap();
        for bridge in board.host_bridges() {
            let ours = |entry: &&MapEntry| matches!(entry.iommu, Provider::Smmu(_));
            let entries = bridge.requesters.entries().iter().filter(ours);
            let ids: Vec<Cube> = entries.flat_map(|entry| range(entry.stream_base, entry.length)).collect();
            let cover = least_cover(&ids, &EXTENDED).unwrap();
            assert!(cover.exact && cover.cubes.len() <= 4, "{name}: {} needs {:?}", bridge.path, cover.cubes);
        }
    }
}
