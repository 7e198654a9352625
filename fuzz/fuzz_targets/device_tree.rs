//! Any blob is read or refused: no panic, and what was read holds together.
#![no_main]

use std::collections::BTreeSet;

use iommu_assign::dt::Board;
use iommu_assign::pci::Provider;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|blob: &[u8]| {
    let strict = Board::read(blob);
    if let Ok(board) = Board::read_lenient(blob) {
        check(&board);
        assert_eq!(
            strict.as_ref().err(),
            board.refusals().iter().find(|refusal| refusal.is_malformed()).map(|refusal| &refusal.error)
        );
    }
    match strict {
        Ok(board) => check_phandles(&board),
        Err(error) => {
            let sentence = error.to_string();
            assert!(!sentence.contains(|it: char| it.is_ascii_control()), "{sentence:?}");
        }
    }
});

/// Every look-up finds its way back.
fn check_phandles(board: &Board<'_>) {
    let tree = board.tree();
    for (node, phandle) in tree.nodes().filter_map(|node| Some((node, node.phandle()?))) {
        assert_eq!(tree.by_phandle(phandle).map(|found| found.id()), Some(node.id()));
    }
}

/// D1 to D3 of `dt`.
fn check(board: &Board<'_>) {
    let tree = board.tree();
    for node in tree.nodes() {
        assert!(node.parent().is_none_or(|parent| parent.id() < node.id()));
        assert!(!node.is_enabled() || node.ancestors().all(|ancestor| ancestor.is_enabled()));
        // That it neither panics nor runs on.
        let _ = board.msi(node.id());
    }
    let keys: BTreeSet<_> = board.smmus().iter().map(|smmu| smmu.key).collect();
    assert_eq!(keys.len(), board.smmus().len());
    let devices: BTreeSet<_> = board.devices().iter().map(|device| device.key).collect();
    assert_eq!(devices.len(), board.devices().len());
    for device in board.devices() {
        assert!(!device.streams.is_empty() && device.streams.is_sorted_by(|one, next| one < next));
        assert!(device.streams.iter().all(|stream| keys.contains(&stream.iommu())));
    }
    for bridge in board.host_bridges() {
        let ours = |provider| matches!(provider, Provider::Smmu(key) if keys.contains(&key));
        assert!(bridge.entries.iter().all(|entry| entry.iommu == Provider::Foreign || ours(entry.iommu)));
    }
}
