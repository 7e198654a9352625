//! Thousands of corrupted boards (contract ): each is refused with an error that says where, or what was read
//! holds together; and without the bad nodes, where those are not asked for, too. None panics, and each run is the same.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::cast_possible_truncation,
    reason = "a test fails by panicking"
)]

#[path = "dt_support/files.rs"]
mod files;

use std::collections::{BTreeMap, BTreeSet};

use iommu_assign::dt::{Board, DtError, MsiControllerKind, MsiMap, Node};
use iommu_assign::pci::{Provider, RequesterId};

/// Corruptions of each board of our own; real boards, which are longer, get a tenth. `cargo xtask search` asks for more.
fn rounds() -> u64 {
    std::env::var("CORRUPTIONS").map_or(3000, |rounds| rounds.parse().unwrap())
}

#[test]
fn a8_corrupted_boards_never_panic() {
    let mut outcomes = BTreeMap::new();
    for (name, blob) in files::OWN {
        corrupt(name, blob, rounds(), &mut outcomes);
    }
    for (name, blob) in files::real_boards("a8_corrupted_boards_never_panic") {
        corrupt(&name, &blob, rounds() / 10, &mut outcomes);
    }
    // Were all of one kind, the corruptions would not be worth much.
    assert!(outcomes["read"] > 500 && outcomes["blob"] > 500 && outcomes["node"] > 500, "{outcomes:?}");
}

fn corrupt(name: &str, blob: &[u8], rounds: u64, outcomes: &mut BTreeMap<&str, u64>) {
    for seed in 0..rounds {
        let corrupted = Random::new(seed).corrupt(blob);
        let strict = Board::read(&corrupted);
        let context = || format!("{name}, seed {seed}");
        match Board::read_lenient(&corrupted) {
            Ok(board) => {
                check(&board);
                check_refusals(&board);
                let first =
                    board.refusals().iter().find(|refusal| refusal.is_malformed()).map(|refusal| refusal.error.clone());
                assert_eq!(strict.as_ref().err(), first.as_ref(), "{}", context());
            }
            Err(error) => assert_eq!(strict.as_ref().err(), Some(&error), "{}", context()),
        }
        let outcome = match strict {
            Ok(board) => {
                assert!(board.refusals().iter().all(|refusal| !refusal.is_malformed()));
                check_names(&board);
                "read"
            }
            Err(error) => {
                let sentence = error.to_string();
                let context = || format!("{name}, seed {seed}: {sentence:?}");
                assert!(sentence.is_ascii() && !sentence.contains(|it: char| it.is_ascii_control()), "{}", context());
                match error {
                    DtError::Blob(error) => {
                        assert!(error.offset() <= corrupted.len().max(blob.len()) + 4, "{}", context());
                        "blob"
                    }
                    DtError::Node { path, .. } => {
                        assert!(path.starts_with('/') && sentence.starts_with(&path), "{}", context());
                        "node"
                    }
                    _ => "other",
                }
            }
        };
        *outcomes.entry(outcome).or_default() += 1;
    }
}

/// T2.
fn check_names(board: &Board<'_>) {
    let tree = board.tree();
    for node in tree.nodes() {
        assert_eq!(tree.find(&node.path().unwrap()).unwrap().id(), node.id());
        if let Some(phandle) = node.phandle() {
            assert_eq!(tree.by_phandle(phandle).unwrap().id(), node.id());
        }
    }
}

/// What is refused is offered nowhere, and nobody is offered who refers to it, or stands below what is there twice.
fn check_refusals(board: &Board<'_>) {
    let refused: BTreeSet<_> =
        board.refusals().iter().filter(|refusal| refusal.is_malformed()).map(|refusal| refusal.node).collect();
    for refusal in board.refusals() {
        assert!(refusal.to_string().starts_with(&refusal.path), "{refusal}");
    }
    let smmus: BTreeSet<_> = board.smmus().iter().map(|smmu| smmu.node).collect();
    let devices = board.devices().iter().map(|device| (device.node, "iommus"));
    let bridges = board.host_bridges().iter().map(|bridge| (bridge.node, "iommu-map"));
    for (node, property) in devices.chain(bridges) {
        assert!(!refused.contains(&node));
        let node = board.tree().node(node).unwrap();
        // An SMMU's `mmu-masters` names the rest.
        let Some(property_of_node) = node.property(property) else { continue };
        let cells = property_of_node.value().chunks_exact(4);
        let cells: Vec<u32> = cells.map(|cell| u32::from_be_bytes(cell.try_into().unwrap())).collect();
        // The first reference stands where it stands whatever the width of an entry.
        // An empty map sends nothing anywhere, and an empty `iommus` leaves it to `mmu-masters`.
        let Some(phandle) = cells.get(usize::from(property == "iommu-map")) else { continue };
        let target = board.tree().by_phandle(*phandle).unwrap().id();
        assert!(smmus.contains(&target) || !refused.contains(&target));
    }
    for node in board.smmus().iter().map(|smmu| smmu.node).chain(board.devices().iter().map(|device| device.node)) {
        let node = board.tree().node(node).unwrap();
        for inherited in std::iter::once(node).chain(node.ancestors()) {
            let names: Vec<&str> = inherited.properties().map(|property| property.name()).collect();
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
            let twins = inherited
                .parent()
                .map_or(1, |parent| parent.children().filter(|child| child.name() == inherited.name()).count());
            assert_eq!(twins, 1);
        }
    }
}

/// What is promised of a board that was read, whatever it was read from: D1 to D3, T1.
fn check(board: &Board<'_>) {
    let tree = board.tree();
    for node in tree.nodes() {
        assert!(node.parent().is_none_or(|parent| parent.id() < node.id()));
        assert!(node.children().all(|child| child.parent().unwrap().id() == node.id()));
        assert!(!node.is_enabled() || node.ancestors().all(|ancestor| ancestor.is_enabled()));
    }
    let keys: BTreeSet<_> = board.smmus().iter().map(|smmu| smmu.key).collect();
    assert_eq!(keys.len(), board.smmus().len());
    for smmu in board.smmus() {
        assert_eq!(smmu.interrupts.len(), (smmu.global_irqs + smmu.context_irqs) as usize);
        assert!(smmu.registers.size() > 0);
        assert!(matches!(smmu.iommu_cells, 1 | 2) || smmu.iommu_cells == 0 && smmu.mmu_masters);
        assert_eq!(smmu.enabled, tree.node(smmu.node).unwrap().is_enabled());
    }
    for region in board.reserved_regions() {
        assert!(region.iova.size() > 0 && region.memory.is_none_or(|memory| memory.size() == region.iova.size()));
        assert!(tree.node(region.device).is_some());
    }
    assert!(board.other_iommus().all(|node| board.smmus().iter().all(|smmu| smmu.node != node.id())));
    let devices: BTreeSet<_> = board.devices().iter().map(|device| device.key).collect();
    assert_eq!(devices.len(), board.devices().len());
    for device in board.devices() {
        assert!(!device.streams.is_empty() && device.streams.is_sorted_by(|one, next| one < next));
        assert!(device.streams.iter().all(|stream| keys.contains(&stream.iommu())));
        assert!(device.specifiers.iter().map(|count| count.count).sum::<usize>() >= device.streams.len());
        assert!(device.parent.is_none_or(|parent| board.device(parent).is_some()));
        assert_eq!(device.enabled, tree.node(device.node).unwrap().is_enabled());
    }
    for bridge in board.host_bridges() {
        let ours = |provider| matches!(provider, Provider::Smmu(key) if keys.contains(&key));
        assert!(bridge.entries.iter().any(|entry| ours(entry.iommu)));
        assert!(bridge.entries.iter().all(|entry| entry.iommu == Provider::Foreign || ours(entry.iommu)));
    }
    tree.nodes().for_each(|node| check_msi(board, &node));
}

/// S-7: of whatever a node says of MSIs, what was read holds together, and an error says where.
fn check_msi(board: &Board<'_>, node: &Node<'_, '_>) {
    let msi = match board.msi(node.id()) {
        Ok(Some(msi)) => msi,
        Ok(None) => return,
        Err(error) => {
            assert!(matches!(&error, DtError::Node { path, .. } if path.starts_with('/')), "{error}");
            return;
        }
    };
    for controller in &msi.controllers {
        assert_eq!(controller.doorbell.is_none(), controller.kind == MsiControllerKind::Unknown);
        let Some(doorbell) = controller.doorbell else { continue };
        let (register, frame) = (doorbell.register().value(), doorbell.frame());
        assert!(frame.base() <= register && register - frame.base() < frame.size());
    }
    let rids = msi.map.iter().flat_map(MsiMap::entries).map(|entry| entry.rid_base as u16);
    for rid in rids.chain([0, u16::MAX]).map(RequesterId) {
        let Ok(targets) = msi.targets(rid) else { continue };
        let at: Vec<_> = targets.map(|target| target.controller).collect();
        assert!(at.iter().all(|controller| msi.controller(*controller).is_some()));
        let distinct: BTreeSet<_> = at.iter().collect();
        assert!(msi.map.is_none() || distinct.len() == at.len(), "two IDs at one controller");
    }
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn corrupt(&mut self, blob: &[u8]) -> Vec<u8> {
        let mut corrupted = blob.to_vec();
        for _ in 0..=self.below(3) {
            let length = corrupted.len();
            if length < 64 {
                break;
            }
            // A tenth of the changes go to the header, where most of the meaning is.
            let at = if self.below(10) == 0 { self.below(40) } else { self.below(length) };
            match self.below(6) {
                0 => corrupted.truncate(self.below(length)),
                1 => corrupted[at] ^= 1 << self.below(8),
                2 => {
                    const TELLING: [u32; 12] =
                        [0, 1, 2, 3, 4, 5, 9, 0x7fff_ffff, 0x8000_0000, 0xffff_fffc, u32::MAX, 0x0100_0000];
                    let value = TELLING[self.below(TELLING.len())];
                    put(&mut corrupted, at & !3, value);
                }
                3 => {
                    let from = self.below(length) & !3;
                    let bytes: [u8; 4] = corrupted[from..].first_chunk().copied().unwrap_or_default();
                    put(&mut corrupted, at & !3, u32::from_be_bytes(bytes));
                }
                4 => {
                    let cell = corrupted[at & !3..].first_chunk().copied().unwrap_or_default();
                    let step = [1, 2, 4, u32::MAX, 16][self.below(5)];
                    put(&mut corrupted, at & !3, u32::from_be_bytes(cell).wrapping_add(step));
                }
                _ => {
                    let end = (at + 1 + self.below(64)).min(length);
                    corrupted[at..end].fill(self.next() as u8);
                }
            }
        }
        corrupted
    }
}

fn put(blob: &mut [u8], at: usize, value: u32) {
    if let Some(cell) = blob.get_mut(at..at + 4) {
        cell.copy_from_slice(&value.to_be_bytes());
    }
}
