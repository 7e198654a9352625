//! `inspect --json` against what the sources of our boards say, read by hand, and against measured facts of real ones.

#![expect(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::{own, prototype, real_boards, scratch};
use serde_json::{Value, json};

fn inspected(board: &Path) -> Value {
    let run = prototype(["inspect".as_ref(), "--json".as_ref(), board.as_os_str()]).ended(0);
    serde_json::from_str(&run.out).unwrap()
}

fn array<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap()
}

/// Asserts that all of `expected` is there; `found` may say more.
fn covers(found: &Value, expected: &Value) {
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            for (key, value) in expected {
                covers(found.get(key).unwrap_or_else(|| panic!("no {key} in {found:?}")), value);
            }
        }
        (Value::Array(found), Value::Array(expected)) => {
            assert_eq!(found.len(), expected.len(), "{found:?}");
            found.iter().zip(expected).for_each(|(found, expected)| covers(found, expected));
        }
        _ => assert_eq!(found, expected),
    }
}

/// The object of a list whose path ends so.
fn at<'a>(value: &'a Value, list: &str, tail: &str) -> &'a Value {
    array(value, list).iter().find(|one| text(one, "path").ends_with(tail)).unwrap()
}

/// Which devices stand together, whatever the groups are called; those that stand alone are left out.
fn groups(value: &Value) -> Vec<Vec<&str>> {
    let mut groups: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for device in array(value, "devices") {
        groups.entry(device.get("group").unwrap().to_string()).or_default().push(text(device, "path"));
    }
    let mut groups: Vec<_> = groups.into_values().filter(|group| group.len() > 1).collect();
    groups.sort();
    groups
}

/// Devices with their streams as `smmu-number id/mask`.
fn devices(value: &Value) -> Vec<(&str, bool, String)> {
    let smmus: Vec<&str> = array(value, "smmus").iter().map(|smmu| text(smmu, "path")).collect();
    let stream = |stream: &Value| {
        let number = smmus.iter().position(|path| *path == text(stream, "smmu")).unwrap();
        format!("{number} {}/{}", text(stream, "id"), text(stream, "mask"))
    };
    let one = |device| {
        let mut streams: Vec<String> = array(device, "streams").iter().map(stream).collect();
        streams.sort();
        (text(device, "path"), device.get("enabled").unwrap().as_bool().unwrap(), streams.join(", "))
    };
    array(value, "devices").iter().map(one).collect()
}

#[test]
fn the_showcase_is_what_its_source_says() {
    let found = inspected(&own("showcase"));
    covers(
        found.get("smmus").unwrap(),
        &json!([
            {"path": "/soc/iommu@12000000", "enabled": true, "base": "0x12000000", "size": "0x40000", "iommu_cells": 2,
             "global_irqs": 1, "context_irqs": 16, "coherent": true, "entries": {"per_specifier": 15, "merged": 8}},
            {"path": "/soc/iommu@14000000", "enabled": true, "base": "0x14000000", "size": "0x80000", "iommu_cells": 1,
             "global_irqs": 2, "context_irqs": 8, "coherent": false, "entries": {"per_specifier": 5, "merged": 4}},
            {"path": "/soc/iommu@16000000", "enabled": true, "base": "0x16000000", "size": "0x10000", "iommu_cells": 1,
             "global_irqs": 1, "context_irqs": 1, "coherent": false, "entries": {"per_specifier": 10, "merged": 3}},
        ]),
    );
    assert_eq!(
        devices(&found),
        [
            ("/soc/display@20000000", true, "0 0x800/0x0, 0 0x801/0x0".to_owned()),
            (
                "/soc/camera@20100000",
                true,
                "0 0x820/0x0, 0 0x821/0x0, 0 0x822/0x0, 0 0x823/0x0, 0 0x840/0x420".to_owned()
            ),
            ("/soc/video-codec@20200000", true, "0 0x8c0/0xf, 0 0x8d0/0x0".to_owned()),
            ("/soc/video-codec@20200000/video-firmware", true, "0 0x8e0/0x0".to_owned()),
            ("/soc/jpeg@20300000", false, "0 0x8a0/0x3".to_owned()),
            ("/soc/gpu@21000000", true, "0 0x900/0x3f".to_owned()),
            ("/soc/dma-controller@22000000", true, "0 0x704/0x1, 0 0x706/0x1".to_owned()),
            ("/soc/crypto@22010000", true, "0 0x704/0x1, 0 0x706/0x1".to_owned()),
            ("/soc/ethernet@24000000", true, "1 0x20/0x7c00".to_owned()),
            ("/soc/ethernet@24010000", true, "1 0x21/0x7c00".to_owned()),
            ("/soc/mmc@24100000", true, "1 0x28/0x7c00".to_owned()),
            ("/soc/usb-glue@24200000/usb@24300000", true, "1 0x30/0x7c00, 1 0x31/0x7c00".to_owned()),
            (
                "/soc/dma-controller@28000000",
                true,
                (0..9).map(|id| format!("2 {id:#x}/0x0")).collect::<Vec<_>>().join(", ")
            ),
            ("/soc/audio@28100000", true, "2 0x10/0x0".to_owned()),
        ]
    );
    assert_eq!(groups(&found), [["/soc/crypto@22010000", "/soc/dma-controller@22000000"]].map(sorted));
    covers(
        found.get("bridges").unwrap(),
        &json!([{"path": "/soc/pcie@30000000", "enabled": true, "mask": "0x11f", "map": [
            {"rid": "0x0", "smmu": "/soc/iommu@14000000", "stream": "0x80", "length": "0x20"},
            {"rid": "0x100", "smmu": "/soc/iommu@14000000", "stream": "0xc0", "length": "0x20"},
        ]}]),
    );
}

#[test]
fn s7_doorbells_and_msi_ids_are_listed() {
    let found = inspected(&own("showcase"));
    let its = "/interrupt-controller@2f000000/msi-controller@2f180000";
    let controllers = json!([
        {"path": its, "kind": "ITS", "enabled": true, "doorbell": "0x2f190040", "page": "0x2f190000"}
    ]);
    covers(
        found.get("msi").unwrap(),
        &json!([
            {"path": "/soc/ethernet@24010000", "isolation": "by device", "controllers": controllers,
             "ids": [{"controller": its, "id": "0x40", "length": "0x1"}]},
            {"path": "/soc/pcie@30000000", "isolation": "by device", "controllers": controllers, "ids": [
                {"controller": its, "rid": "0x0", "mask": "0x11f", "id": "0x100", "length": "0x20"},
                {"controller": its, "rid": "0x100", "mask": "0x11f", "id": "0x120", "length": "0x20"}]},
        ]),
    );
    let odd = inspected(&own("oddities"));
    let said: Vec<_> = array(&odd, "msi").iter().map(|one| (text(one, "path"), text(one, "isolation"))).collect();
    let bad = "not isolated";
    assert_eq!(said, [("/pcie@40000000", bad), ("/pcie@60000000", bad), ("/pcie@70000000", "unknown")]);
}

/// In the order of the blob, which is that of the output.
fn sorted(mut group: [&str; 2]) -> Vec<&str> {
    group.sort_by_key(|path| !path.contains("dma-controller"));
    group.to_vec()
}

#[test]
fn the_oddities_are_what_their_source_says() {
    let found = inspected(&own("oddities"));
    let smmu = |path: &str, enabled, base: &str, size: &str, cells, irqs: (u32, u32), coherent, entries: (u32, u32)| {
        json!({"path": path, "enabled": enabled, "base": base, "size": size, "iommu_cells": cells,
               "global_irqs": irqs.0, "context_irqs": irqs.1, "coherent": coherent,
               "entries": {"per_specifier": entries.0, "merged": entries.1}})
    };
    let far = "/chiplet@f0000000/config-space@f0000000/iommu@5000000";
    covers(
        found.get("smmus").unwrap(),
        &json!([
            smmu("/iommu@2000000", true, "0x2000000", "0x20000", 2, (0, 3), false, (10, 7)),
            smmu("/iommu@2100000", true, "0x2100000", "0x10000", 1, (1, 1), false, (0, 0)),
            smmu("/iommu@2200000", false, "0x2200000", "0x10000", 1, (1, 1), false, (1, 1)),
            smmu("/iommu@2400000", true, "0x2400000", "0x10000", 1, (3, 1), false, (1, 1)),
            smmu(far, true, "0x1f0100000", "0x100000", 1, (1, 3), true, (1, 1)),
        ]),
    );
    let deep = "/audio-subsystem/link/compute-context-with-a-name-of-far-more-than-thirty-one-characters";
    let expected = [
        ("/trace-router@1000000", true, "0 0x480/0x20"),
        ("/camera@1100000", true, "0 0x800/0x400, 0 0x820/0x400"),
        ("/camera-debug@1200000", true, "0 0x800/0xf"),
        ("/chiplet@f0000000/config-space@f0000000/sata@540000", true, "4 0x444/0x0"),
        ("/usb@3000000", true, "2 0x10/0x0"),
        ("/crypto@3100000", false, "0 0x100/0x0"),
        ("/modem@3200000", false, "0 0x110/0x0"),
        (deep, false, "0 0x121/0x0"),
        ("/processor@3300000", true, "0 0x130/0x0"),
        ("/processor@3300000/contexts/context", true, "0 0x131/0x0"),
        ("/display@3400000", true, "0 0x140/0x3"),
        ("/dma-controller@3600000", true, "3 0x1/0x7f80"),
    ];
    assert_eq!(devices(&found), expected.map(|(path, enabled, streams)| (path, enabled, streams.to_owned())));
    assert_eq!(groups(&found), [["/camera@1100000", "/camera-debug@1200000"]]);
    let map = |rid: &str, smmu: &str, stream: &str, length: &str| json!({"rid": rid, "smmu": smmu, "stream": stream, "length": length});
    covers(
        found.get("bridges").unwrap(),
        &json!([
            {"path": "/pcie@40000000", "enabled": true, "mask": "0x0", "map": [map("0x0", "/iommu@2400000", "0x0", "0x1")]},
            {"path": "/pcie@60000000", "enabled": true, "mask": "0xffffffff", "map": [
                map("0x100", "/iommu@2000000", "0x1480", "0x1"), map("0x200", "/iommu@2000000", "0x1490", "0x8")]},
            {"path": "/pcie@70000000", "enabled": false, "mask": "0xffffffff", "map": [map("0x0", far, "0x0", "0x10000")]},
            {"path": "/object-bus@3700000", "enabled": true, "mask": "0xffffffff", "map": [map("0x0", far, "0x0", "0x0")]},
            {"path": "/video@3800000", "enabled": true, "mask": "0xffffffff",
             "map": [map("0x0", "/iommu@2000000", "0x1940", "0x1")]},
        ]),
    );
}

#[test]
fn keys_stand_as_they_are_documented() {
    let run = prototype(["inspect".as_ref(), "--json".as_ref(), own("showcase").as_os_str()]).ended(0);
    let order = [
        "\"smmus\"",
        "\"iommu_cells\"",
        "\"global_irqs\"",
        "\"context_irqs\"",
        "\"per_specifier\"",
        "\"merged\"",
        "\"devices\"",
        "\"streams\"",
        "\"group\"",
        "\"bridges\"",
        "\"rid\"",
        "\"stream\"",
        "\"length\"",
    ];
    let places: Vec<usize> = order.iter().map(|key| run.out.find(key).unwrap()).collect();
    assert!(places.first() < places.get(6) && places.get(6) < places.get(9), "{places:?}");
    assert!(!run.out.contains("merged_exact"), "the search gives up only where it must");
}

#[test]
fn real_boards_have_the_measured_numbers() {
    for board in real_boards("real_boards_have_the_measured_numbers") {
        let name = board.file_stem().unwrap().to_string_lossy().into_owned();
        if name == "fvp-base-revc" {
            continue;
        }
        let found = inspected(&board);
        let entries = |tail: &str| {
            let entries = at(&found, "smmus", tail).get("entries").unwrap();
            (entries.get("per_specifier").unwrap().as_u64().unwrap(), entries.get("merged").unwrap().as_u64().unwrap())
        };
        let count = |list: &str, enabled: bool| {
            array(&found, list).iter().filter(|one| one.get("enabled") == Some(&Value::Bool(enabled))).count()
        };
        match name.as_str() {
            "amd-overdrive-rev-b1" => {
                let cells: Vec<&Value> =
                    array(&found, "smmus").iter().map(|smmu| smmu.get("iommu_cells").unwrap()).collect();
                assert_eq!(cells, [2, 1, 1, 2, 2]);
                assert_eq!((entries("e0c00000"), count("devices", true)), ((7, 3), 5));
                assert_eq!(text(&array(at(&found, "bridges", "pcie@f0000000"), "map")[0], "length"), "0x10000");
            }
            "armada-8040-mcbin" => {
                let smmu = at(&found, "smmus", "iommu@5000000");
                assert_eq!((text(smmu, "base"), count("smmus", false)), ("0xf0100000", 1));
                let bridge = at(&found, "bridges", "pcie@f2600000");
                assert_eq!((text(bridge, "mask"), array(bridge, "map").len()), ("0x31f", 3));
            }
            "fsl-ls1028a-rdb" => {
                let smmu = at(&found, "smmus", "iommu@5000000");
                assert_eq!(
                    (smmu.get("global_irqs").unwrap(), smmu.get("context_irqs").unwrap()),
                    (&json!(8), &json!(64))
                );
                assert_eq!(entries("iommu@5000000"), (0, 0));
                let enetc = &array(at(&found, "bridges", "pcie@1f0000000"), "map")[0];
                assert_eq!((text(enetc, "stream"), text(enetc, "length")), ("0x17", "0xe"));
            }
            "juno-r2" => {
                assert_eq!((count("smmus", true), count("smmus", false)), (6, 1));
                assert_eq!(entries("iommu@7fb00000"), (9, 2), "the DMA controller's");
                assert_eq!(groups(&found), [["/usb@7ffb0000", "/usb@7ffc0000"]]);
                assert_eq!(text(at(&found, "bridges", "pcie@40000000"), "mask"), "0x0");
            }
            "msm8998-mtp" => {
                let none = |smmu: &Value| smmu.get("global_irqs") == Some(&json!(0));
                assert!(array(&found, "smmus").len() == 4 && array(&found, "smmus").iter().all(none));
                assert_eq!(text(&array(at(&found, "bridges", "pci@1c00000"), "map")[0], "rid"), "0x100");
            }
            "sdm845-db845c" => {
                assert_eq!(entries("iommu@15000000"), (38, 27));
                assert_eq!((count("devices", true), count("devices", false)), (29, 1));
                let crypto = ["/soc@0/dma-controller@1dc4000", "/soc@0/crypto@1dfa000"];
                assert_eq!(groups(&found), [crypto, ["/soc@0/slim@171c0000", "/soc@0/dma-controller@17184000"]]);
                assert!(array(&found, "bridges").iter().all(|bridge| array(bridge, "map").len() == 16));
            }
            _ => {}
        }
    }
}

// Schema 2: what may be assigned.

/// (path, may be assigned, reason) of each device.
fn verdicts(found: &Value) -> Vec<(&str, &str, &str)> {
    let verdict = |device| (text(device, "path"), text(device, "assignable"), text(device, "reason"));
    array(found, "devices").iter().map(verdict).collect()
}

#[test]
fn each_device_says_whether_it_may_be_assigned_with_whom_and_why_not() {
    let found = inspected(&own("oddities"));
    assert_eq!(found.get("schema"), Some(&json!(2)));
    assert_eq!(
        (text(&found, "model"), found.get("compatible").unwrap()),
        ("Example Flotsam", &json!(["example,flotsam"]))
    );
    let verdicts = verdicts(&found);
    let expect = |path: &str, may: &str, reason: &str| {
        assert!(verdicts.contains(&(path, may, reason)), "{path}: {verdicts:#?}");
    };
    expect("/usb@3000000", "no", "behind iommu@2200000, which firmware disables");
    expect("/crypto@3100000", "no", "its status is `disable`");
    let deep = "/audio-subsystem/link/compute-context-with-a-name-of-far-more-than-thirty-one-characters";
    expect(deep, "no", "below audio-subsystem, whose status is `disabled`");
    let foreign = "iommu@2300000 (example,flotsam-iommu) sees its DMA too, and nobody programs it";
    expect("/display@3400000", "no", foreign);
    expect("/camera@1100000", "if marked", "not marked");
    let camera = at(&found, "devices", "/camera@1100000");
    assert_eq!(camera.get("with").unwrap(), &json!(["camera-debug@1200000"]));
    let showcase = inspected(&own("showcase"));
    let ethernet = at(&showcase, "devices", "/soc/ethernet@24010000");
    assert_eq!((text(ethernet, "assignable"), ethernet.get("marked")), ("yes", Some(&json!(true))));
}

#[test]
fn groups_name_what_ties_each_pair() {
    let found = inspected(&own("showcase"));
    let [group] = array(&found, "groups") else { panic!("not one group") };
    assert_eq!(group.get("members").unwrap(), &json!(["dma-controller@22000000", "crypto@22010000"]));
    let tie = json!([{"one": "dma-controller@22000000", "other": "crypto@22010000", "by": "stream 0x704/0x1 at iommu@12000000"}]);
    assert_eq!(group.get("ties").unwrap(), &tie);
    // What a function's requester ID gives it, a device has too.
    let old = inspected(&own("heirloom"));
    let dma = at(&old, "devices", "/dma-controller@10000000");
    assert_eq!(dma.get("with").unwrap(), &json!(["functions of pcie@40000000"]));
}

#[test]
fn host_bridges_that_share_a_stream_are_tied() {
    let mut blob = std::fs::read(own("handover")).unwrap();
    // The second bridge's map, moved so that its requester ID 3 has the first one's only stream.
    let place = blob.windows(8).position(|cells| cells == [0, 0, 0, 0x60, 0, 0, 0, 0x10]).unwrap();
    blob[place + 3] = 0x50;
    let found = inspected(&scratch("tied-bridges.dtb", &blob));
    let (one, other) = ("functions of pcie@40000000", "functions of pcie@60000000");
    let [group] = array(&found, "groups") else { panic!("not one group") };
    assert_eq!(
        group.get("ties").unwrap(),
        &json!([{"one": one, "other": other, "by": "stream 0x53 at iommu@1000000"}])
    );
    let with = |path: &str| at(&found, "bridges", path).get("with").unwrap().to_string();
    assert!(with("/pcie@40000000").contains(other) && with("/pcie@60000000").contains(one));
}

#[test]
fn lines_that_couple_domains_are_named() {
    let found = inspected(&own("lines"));
    let lines = |tail: &str| at(&found, "smmus", tail).get("lines").unwrap().clone();
    covers(&lines("@1000000"), &json!({"count": 17, "couples": false, "what": "one for each bank"}));
    covers(&lines("@2000000"), &json!({"count": 16, "couples": true, "what": "banks 1-2 share one"}));
    covers(&lines("@3000000"), &json!({"count": 1, "couples": true, "what": "one for all banks"}));
    covers(&lines("@4000000"), &json!({"count": 2, "couples": true, "what": "2 for 16 banks, and nothing says which"}));
    covers(&lines("@5000000"), &json!({"count": 2, "couples": true}));
}

#[test]
fn what_comes_out_of_a_map_is_told_with_its_mask() {
    let found = inspected(&own("handover"));
    let run = |rid: &str, stream: &str, length: &str| json!({"smmu": "/iommu@1000000", "rid": rid, "stream": stream, "stream_mask": "0x7f80", "length": length});
    let bridge = at(&found, "bridges", "pcie@40000000");
    assert_eq!(bridge.get("reached").unwrap(), &json!([run("0x0", "0x53", "0x1")]), "the mask leaves one requester ID");
    covers(bridge.get("map").unwrap(), &json!([{"rid": "0x0", "stream": "0x53", "length": "0x1000"}]));
    let bridge = at(&found, "bridges", "pcie@60000000");
    assert_eq!(bridge.get("reached").unwrap(), &json!([run("0x0", "0x60", "0x4"), run("0x8", "0x68", "0x4")]));
}

#[test]
fn s6_reserved_addresses_are_listed_with_whose_they_are() {
    let found = inspected(&own("handover"));
    let listed: Vec<_> = array(&found, "reserved")
        .iter()
        .map(|one| {
            (text(one, "device_name"), text(one, "iova"), one.get("memory").cloned(), one.get("offered").cloned())
        })
        .collect();
    let (yes, no) = (Some(json!(true)), Some(json!(false)));
    assert_eq!(
        listed,
        [
            ("display@10000000", "0x90000000", Some(json!("0x90000000")), yes.clone()),
            ("firmware", "0x0", Some(json!("0x91000000")), yes.clone()),
            ("firmware", "0x60000000", None, no.clone()),
            ("video-codec@10010000", "0x100000000", None, no),
            ("trace@0", "0x92000000", Some(json!("0x92000000")), yes),
        ]
    );
}

#[test]
fn a6_marked_nodes_that_no_smmu_sees_and_mixed_bindings_are_told() {
    let found = inspected(&own("heirloom"));
    let unseen: Vec<&str> = array(&found, "unseen").iter().map(|one| text(one, "path")).collect();
    assert_eq!(unseen, ["/audio@10040000", "/serial@10050000", "/scaler@10060000"]);
    let remarks = found.get("remarks").unwrap().to_string();
    assert!(remarks.contains("mixes both bindings: usb@10020000 names its SMMU itself"), "{remarks}");
    let unconfined = at(&found, "unconfined", "scaler@10060000");
    assert_eq!(text(unconfined, "why"), "behind iommu@4000000, which is no SMMUv1 or SMMUv2");
}

#[test]
fn s7_what_is_wrong_beside_a_good_msi_map_is_told_and_the_map_counts() {
    let found = inspected(&own("handover"));
    let pcie = at(&found, "msi", "pcie@40000000");
    covers(pcie, &json!({"isolation": "by device", "ids": [{"rid": "0x0", "id": "0x7", "length": "0x1"}]}));
    assert_eq!(text(pcie, "own_error"), "/pcie@40000000: `msi-parent` ends inside entry 0");
}
