//! The prototype as a user meets it: what it prints, and with which status it ends.

#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test fails by panicking")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::Path;

use common::{fits, own, prototype, real_boards, scratch};

fn command<'a>(name: &'a str, board: &'a Path) -> [&'a OsStr; 2] {
    [name.as_ref(), board.as_ref()]
}

#[test]
fn without_an_argument_the_scenario_is_played_and_all_of_it_holds() {
    let run = prototype::<&str>([]).ended(0);
    assert_eq!(run.err, "");
    fits(&run.out, "showcase");
    assert!(!run.out.contains("FAILED"), "{}", run.out);
    let expected = [
        "SMMUv2 r2p1, 128 match entries, 15-bit stream IDs",
        "SMMUv1 r1p0, 32 match entries, 15-bit stream IDs",
        // Assignments from both sources, and one that the policy does not allow.
        "assign   display@20000000 to guest-1               assigned",
        "assign   0000:00:01.0 to guest-1                   assigned",
        "the policy does not allow it to go to guest-1; nothing changed",
        // A message signalled interrupt is a write to a doorbell that the guest has mapped.
        "MSIs through msi-controller@2f180000, which",
        "msi      0000:00:01.0 id 0x88                      reaches 0x2f190040",
        // A member of a group: both are named, and nothing is written.
        "assign   crypto@22010000 to guest-2                refused                         0      0",
        "dma-controller@22000000 of the same group has another owner: their streams overlap",
        "0000:01:00.0 of the same group has another owner: their bus does not isolate them",
        "what it shares with crypto@22010000 stays translated",
        // A move with DMA in the middle, a stale translation, a removal.
        "dma      display@20000000 in quiesce, 2 IDs        faults",
        "write of 0x40100000 by display@20000000, id 0x800, in guest-1",
        "still reaches 0xa0000000",
        "pull     0000:00:01.0                              reads all ones",
        "0 differences",
        "0 violations",
    ];
    for text in expected {
        assert!(run.out.contains(text), "missing: {text}\n{}", run.out);
    }
    // Hundreds of lines: the first say what is shown, the last what came out.
    let lines: Vec<&str> = run.out.lines().collect();
    assert!(lines[1].starts_with("Shown: 3 SMMUs, ") && lines[2].contains("`ok`"), "{:?}", &lines[..3]);
    let end = &lines[lines.len() - 3..];
    let (came_out, isolated, last) = (end[0], end[1], end[2]);
    assert!(came_out.starts_with("Came out: 13 steps with ") && came_out.ends_with(" at 3 SMMUs."), "{came_out}");
    assert!(isolated.ends_with(" all streams were looked at: 0 violations of isolation."), "{isolated}");
    assert!(last.starts_with("All ") && last.ends_with(" expectations held."), "{last}");
}

#[test]
fn the_same_run_prints_the_same() {
    assert_eq!(prototype::<&str>([]).out, prototype::<&str>([]).out);
}

#[test]
fn a3_devices_that_come_and_go_while_guests_do_leave_nothing_behind() {
    let run = prototype(["hotplug", "150"]).ended(0);
    assert_eq!(run.err, "");
    fits(&run.out, "hotplug");
    let expected = ["One MMU-500 with 20 stream-map entries and 3 context banks", "The end is the start: "];
    for text in expected {
        assert!(run.out.contains(text), "missing: {text}\n{}", run.out);
    }
    // Each operation was done, whatever else was refused.
    let done: BTreeMap<&str, usize> = run.out.lines().filter_map(done).collect();
    assert_eq!(done.len(), 13, "{}", run.out);
    assert!(done.values().all(|count| *count > 0), "{done:?}");
    let last = run.out.lines().last().unwrap();
    assert!(last.starts_with("hotplug: ") && last.ends_with(" overlays, 0 violations"), "{last}");
}

#[test]
fn the_image_s_scenario_is_played_on_threads() {
    let run = prototype(["cpus", "--seconds", "1", "--cpus", "3"]).ended(0);
    let last = run.out.lines().last().unwrap();
    assert!(last.starts_with("cpus: ") && last.ends_with(" faults by interrupt, 0 violations"), "{last}");
    assert!(last.contains(" operations on 3 CPUs, 0 hot-plug events, "), "{last}");
    // The log tells what else there was.
    for text in [" begins to storm", " is over after ", "audit with nothing registered: 0 findings"] {
        assert!(run.err.contains(text), "missing: {text}\n{}", run.err);
    }
    assert!(!run.err.contains("violation:"), "{}", run.err);
}

/// The operation in a line of the table, and how often it was done.
fn done(line: &str) -> Option<(&str, usize)> {
    let (words, figures) = line.get(13..)?.split_at_checked(22)?;
    line.get(11..13).filter(|gap| *gap == "  ")?;
    // The next line of a list of reasons names no operation.
    let words = Some(words.trim()).filter(|words| !words.is_empty())?;
    Some((words, figures.split_whitespace().next()?.parse().ok()?))
}

fn played_by_an_operator(name: &str) {
    let run = prototype(command("run", &own(name))).ended(0);
    fits(&run.out, name);
    assert!(run.out.contains("the policy does not allow it to go to guest-1"), "{name}: {}", run.out);
    assert!(run.out.contains("by the operator"), "{name}: {}", run.out);
}

#[test]
fn any_board_can_be_played() {
    played_by_an_operator("showcase");
}

#[test]
fn the_board_with_every_oddity_can_be_played() {
    played_by_an_operator("oddities");
}

/// Faults reach their handlers where firmware hides banks, lists a line twice, or lists too few.
#[test]
fn s4_each_interrupt_list_can_be_played() {
    let run = prototype(command("run", &own("lines"))).ended(0);
    fits(&run.out, "lines");
}

/// What reports call nodes: one name for each, the same everywhere, and one that can be typed.
#[test]
fn a_name_means_one_node_in_text_events_and_errors() {
    for board in ["handover", "oddities", "heirloom", "showcase"]
        .map(own)
        .into_iter()
        .chain(real_boards("a_name_means_one_node"))
    {
        let json = prototype(["inspect".as_ref(), "--json".as_ref(), board.as_os_str()]);
        if json.status != Some(0) {
            continue;
        }
        let found: serde_json::Value = serde_json::from_str(&json.out).unwrap();
        let named = |list: &str| {
            let all = found.get(list).unwrap().as_array().unwrap().iter();
            let text = |one: &serde_json::Value, key: &str| one.get(key).unwrap().as_str().unwrap().to_owned();
            all.map(|one| (text(one, "name"), text(one, "path"))).collect::<Vec<_>>()
        };
        let all: BTreeMap<String, String> = ["smmus", "devices", "bridges"].into_iter().flat_map(named).collect();
        let paths: BTreeSet<&String> = all.values().collect();
        assert_eq!(paths.len(), all.len(), "{}: two nodes have one name", board.display());
        let text = prototype(command("inspect", &board)).ended(0).out;
        let run = prototype(command("run", &board)).out;
        // A name that goes on in the next line is all there.
        let pressed = |text: &str| text.split_whitespace().collect::<String>();
        for (name, path) in named("devices") {
            let typed = prototype(["inspect".as_ref(), "--json".as_ref(), board.as_os_str(), name.as_ref()]).ended(0);
            let only: serde_json::Value = serde_json::from_str(&typed.out).unwrap();
            let devices = only.get("devices").unwrap().as_array().unwrap();
            assert!(devices.iter().any(|device| device.get("path").unwrap() == &path), "{name}");
            if name.chars().count() <= 30 {
                assert!(text.contains(&name), "{name}: {text}");
            }
            if run.contains("expectations held") && found_enabled(&found, &path) && name.chars().count() <= 30 {
                assert!(pressed(&run).contains(&name), "{name}: {run}");
            }
        }
        assert!(!text.contains('…') && !run.contains("…/"), "{}", board.display());
    }
}

fn found_enabled(found: &serde_json::Value, path: &str) -> bool {
    let devices = found.get("devices").unwrap().as_array().unwrap();
    devices.iter().any(|device| device.get("path").unwrap() == path && device.get("enabled").unwrap() == true)
}

#[test]
fn what_cannot_be_isolated_is_refused_with_its_reason() {
    let run = prototype(command("run", &own("oddities")));
    let lines = run.out.lines().collect::<Vec<_>>().join(" ");
    let words = lines.split_whitespace().collect::<Vec<_>>().join(" ");
    let expected = [
        "no MSIs: v2m@2f600000 does not tell devices apart, its doorbell is not mapped",
        "usb@3000000 an SMMU that sees its DMA is disabled by firmware",
        "display@3400000 an IOMMU that is no SMMUv1/v2 sees its DMA too, and nobody programs it",
        "0001:00:00.0 cannot be isolated: requester ID 00:00.0 is in no entry of the host bridge's map",
    ];
    for text in expected {
        assert!(words.contains(text), "missing: {text}\n{}", run.out);
    }
}

#[test]
fn real_boards_are_inspected_and_played() {
    for board in real_boards("real_boards_are_inspected_and_played") {
        let name = board.file_stem().unwrap().to_string_lossy();
        let (inspect, run) = (prototype(command("inspect", &board)), prototype(command("run", &board)));
        match &*name {
            "fvp-base-revc" => {
                let none = "no SMMUv1 or SMMUv2 in this device tree; there is /iommu@2b400000 (an SMMUv3)";
                assert!(inspect.refused().ends_with(none));
                assert!(run.refused().ends_with(none));
            }
            "armada-8040-mcbin" => {
                fits(&inspect.ended(0).out, &name);
                let error = run.refused();
                assert!(error.contains("no SMMU is enabled: firmware disables /ap806/"), "{error}");
            }
            _ => {
                fits(&inspect.ended(0).out, &name);
                let run = run.ended(0);
                fits(&run.out, &name);
                assert!(!run.out.contains("FAILED"), "{name}: {}", run.out);
            }
        }
    }
}

#[test]
fn help_and_version_are_no_errors() {
    for option in ["--help", "-h"] {
        let run = prototype([option]).ended(0);
        assert!(run.out.contains("prototype run BOARD.dtb") && run.err.is_empty(), "{}", run.out);
        fits(&run.out, option);
    }
    assert_eq!(prototype(["--version"]).ended(0).out, format!("prototype {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn each_error_is_one_line_that_says_what_and_where() {
    let blob = fs::read(own("showcase")).unwrap();
    let (empty, truncated) = (scratch("empty.dtb", &[]), scratch("truncated.dtb", &blob[..blob.len() / 2]));
    let text = scratch("text.dtb", b"/dts-v1/;\n\n/ { };\n#################################################");
    let [empty, truncated, text, other, overlay, alike] =
        [empty, truncated, text, own("smmuv3"), own("overlay"), own("handover")]
            .map(|path| path.into_os_string().into_string().unwrap());
    let cases: [(&[&str], &str); 18] = [
        (&["run"], "`run` needs the file name of a device tree blob (see --help)"),
        (&["inspect"], "`inspect` needs the file name of a device tree blob (see --help)"),
        (&["inspect", "--json"], "`inspect` needs the file name of a device tree blob (see --help)"),
        (&["--jason"], "unknown option `--jason` (see --help)"),
        (&["inspect", "-x", "a"], "unknown option `-x` (see --help)"),
        (&["run", "a", "b"], "unexpected argument `b` (see --help)"),
        (&["board.dtb"], "unknown command `board.dtb` (see --help)"),
        (&["run", "no/such.dtb"], "no/such.dtb: No such file or directory"),
        (&["inspect", "no/such\nfile"], "no/such?file: No such file or directory"),
        (&["run", env!("CARGO_MANIFEST_DIR")], "prototype: Is a directory"),
        (&["run", &empty], "empty.dtb: device tree blob: "),
        (&["run", &truncated], "truncated.dtb: device tree blob: "),
        (&["inspect", "--json", &text], "text.dtb: device tree blob: "),
        (
            &["inspect", "--json", &other],
            "smmuv3.dtb: no SMMUv1 or SMMUv2 in this device tree; there is /iommu@2b400000 (an SMMUv3), /iommu@1ef0000 \
             (`qcom,msm8916-iommu`), ",
        ),
        (&["inspect", &overlay], "/fragment@0 makes this an overlay, not a board: merge it into its base tree first"),
        (&["run", &overlay], "/fragment@0 makes this an overlay, not a board: merge it into its base tree first"),
        (
            &["inspect", &alike, "no-such@1"],
            "`no-such@1` names no SMMU, device, host bridge or refused node of this board",
        ),
        (
            &["inspect", &alike, "compute-cb@3"],
            "`compute-cb@3` could be remoteproc-adsp//compute-cb@3, remoteproc-cdsp//compute-cb@3, remoteproc-slpi//",
        ),
    ];
    for (arguments, message) in cases {
        let error = prototype(arguments).refused();
        assert!(error.contains(message), "{arguments:?}: {error}");
    }
}

#[cfg(unix)]
#[test]
fn names_that_are_no_text_are_no_panic() {
    use std::os::unix::ffi::OsStringExt;
    let name = OsString::from_vec(b"bad\xffname\n.dtb".to_vec());
    prototype([OsString::from("run"), name.clone()]).refused();
    prototype([name]).refused();
}

/// Each damaged blob is played or refused, or inspected without its bad nodes, which are told; nothing in it makes the prototype panic, hang, or end in another way.
#[test]
fn damaged_blobs_are_played_or_refused() {
    let blob = fs::read(own("showcase")).unwrap();
    let judge = |arguments: &[&OsStr], what: &str| {
        let run = prototype(arguments);
        let tells_bad_nodes = run.out.contains("\"refused\": [");
        match run.status {
            Some(0) => assert!(run.err.is_empty() && !tells_bad_nodes, "{what}: {}", run.err),
            Some(1) if arguments.contains(&"inspect".as_ref()) => {
                assert!(run.err.is_empty() && tells_bad_nodes, "{what}: {}{}", run.err, run.out);
            }
            _ => drop(run.refused()),
        }
    };
    // `cargo xtask search` asks for more.
    let count = std::env::var("DAMAGED_BLOBS").map_or(120, |count| count.parse().unwrap());
    for (number, at) in (0..blob.len()).step_by((blob.len() / count).max(1)).enumerate() {
        let mut damaged = blob.clone();
        damaged[at] ^= [0xff, 0x01, 0x80, 0x20][number % 4];
        let path = scratch("damaged.dtb", &damaged);
        judge(&["inspect".as_ref(), "--json".as_ref(), path.as_ref()], &format!("byte {at}"));
        if number % 5 == 0 {
            judge(&["run".as_ref(), path.as_ref()], &format!("byte {at}, run"));
        }
    }
    for length in (0..blob.len()).step_by((blob.len() * 4 / count).max(1)) {
        let path = scratch("damaged.dtb", &blob[..length]);
        let _ = prototype(command("inspect", &path)).refused();
    }
}

/// A reader that has seen enough closes the pipe; that is no error and no panic.
#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_error() {
    use std::process::{Command, Stdio};
    let mut child =
        Command::new(env!("CARGO_BIN_EXE_prototype")).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &[][..]));
}
