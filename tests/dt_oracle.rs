//! The reader against two others: on every tree that all accept, all must see the same.
//!
//! Both oracles panic on many malformed blobs, so they are asked about well-formed ones only.

#![expect(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "a test fails by panicking")]

#[path = "dt_support/files.rs"]
mod files;

use iommu_assign::dt::{Board, Node, Tree};

fn trees(test: &str) -> Vec<(String, Vec<u8>)> {
    let own = files::OWN.iter().map(|(name, blob)| ((*name).to_owned(), blob.to_vec()));
    own.chain(files::real_boards(test)).collect()
}

#[test]
fn fdt_sees_the_same() {
    for (name, blob) in trees("fdt_sees_the_same") {
        let tree = Tree::read(&blob).unwrap();
        let oracle = fdt::Fdt::new(&blob).unwrap();
        let mut seen = 0;
        // It calls the root "/"; the rest of a path is the same.
        compare_with_fdt(&name, tree.root().unwrap(), oracle.find_node("/").unwrap(), &mut seen);
        assert_eq!(seen, tree.nodes().count(), "{name}");
        for (node, phandle) in tree.nodes().filter_map(|node| Some((node, node.phandle()?))) {
            assert_eq!(oracle.find_phandle(phandle).unwrap().name, node.name(), "{name}: phandle {phandle:#x}");
            assert_eq!(tree.by_phandle(phandle).unwrap().id(), node.id(), "{name}: phandle {phandle:#x}");
        }
    }
}

fn compare_with_fdt(name: &str, node: Node<'_, '_>, oracle: fdt::node::FdtNode<'_, '_>, seen: &mut usize) {
    *seen += 1;
    let path = node.path().unwrap();
    let oracle_properties: Vec<_> = oracle.properties().map(|property| (property.name, property.value)).collect();
    let properties: Vec<_> = node.properties().map(|property| (property.name(), property.value())).collect();
    assert_eq!(properties, oracle_properties, "{name}: {path}");
    let children: Vec<_> = node.children().collect();
    let oracle_children: Vec<_> = oracle.children().collect();
    assert_eq!(children.len(), oracle_children.len(), "{name}: {path}");
    for (child, oracle_child) in children.into_iter().zip(oracle_children) {
        assert_eq!(child.name(), oracle_child.name, "{name}: {path}");
        assert_eq!(child.parent().unwrap().id(), node.id(), "{name}: {path}");
        compare_with_fdt(name, child, oracle_child, seen);
    }
}

#[test]
fn fdt_edit_sees_the_same() {
    for (name, blob) in trees("fdt_edit_sees_the_same") {
        let tree = Tree::read(&blob).unwrap();
        let oracle = fdt_edit::Fdt::from_bytes(&blob).unwrap();
        assert_eq!(tree.nodes().count(), oracle.node_count(), "{name}");
        for node in tree.nodes() {
            let path = node.path().unwrap();
            assert_eq!(tree.find(&path).unwrap().id(), node.id(), "{name}: {path}");
            // By phandle where there is one, so that its phandle table is compared too.
            let id = match node.phandle() {
                Some(phandle) => oracle.get_by_phandle_id(fdt_edit::Phandle::from(phandle)).unwrap(),
                None => oracle.get_by_path_id(&path).unwrap(),
            };
            assert_eq!(oracle.path_of(id), path, "{name}");
            let parent = oracle.parent_of(id).map(|parent| oracle.path_of(parent));
            assert_eq!(parent, node.parent().map(|parent| parent.path().unwrap()), "{name}: {path}");
            let oracle_node = oracle.node(id).unwrap();
            let theirs: Vec<_> =
                oracle_node.properties().iter().map(|property| (property.name(), property.data.as_slice())).collect();
            let ours: Vec<_> = node.properties().map(|property| (property.name(), property.value())).collect();
            assert_eq!(ours, theirs, "{name}: {path}");
        }
    }
}

/// An SMMU's base follows from `ranges`. `fdt-edit` follows those of the nearest bus only, so it is asked where no
/// other bus translates.
#[test]
fn fdt_edit_finds_smmus_at_the_same_addresses() {
    let mut compared = 0;
    for (name, blob) in trees("fdt_edit_finds_smmus_at_the_same_addresses") {
        let board = Board::read(&blob).unwrap();
        let oracle = fdt_edit::Fdt::from_bytes(&blob).unwrap();
        for smmu in board.smmus() {
            let buses = board.tree().node(smmu.node).unwrap().ancestors().skip(1);
            if buses.filter_map(|bus| bus.property("ranges")).any(|ranges| !ranges.value().is_empty()) {
                continue;
            }
            let node = oracle.get_by_path(&smmu.path).unwrap();
            let regions: Vec<_> = node.regs().iter().map(|region| (region.address, region.size)).collect();
            let ours = std::iter::once(&smmu.registers).chain(&smmu.mirrors);
            let ours: Vec<_> = ours.map(|region| (region.base(), Some(region.size()))).collect();
            assert_eq!(ours, regions, "{name}: {}", smmu.path);
            compared += 1;
        }
    }
    assert!(compared >= 7);
}
