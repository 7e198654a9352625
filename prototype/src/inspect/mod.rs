//! What a board's device tree says of SMMUs and of those whom they watch: one value, from which the text, the JSON and the
//! page are made.
//!
//! The field names are those of the JSON output (`"schema": 2`).
//!
//! | file | what |
//! |---|---|
//! | `devices.rs` | devices: who may be assigned, with whom, and why not; groups and what ties them |
//! | `bridges.rs` | host bridges: what comes out of their maps |
//! | `smmus.rs` | SMMUs: what is needed of them, and which interrupt lines couple domains |
//! | `msi.rs` | where message signalled interrupts go |
//! | `unconfined.rs` | nodes that can do DMA and that no SMMU sees; what firmware reserves |
//! | `text.rs` | the value for people at a terminal |
//! | `drawing.rs`, `html.rs`, `page.css`, `page.js` | the value as a picture, and on a page |

pub(crate) mod bridges;
pub(crate) mod devices;
pub(crate) mod drawing;
pub(crate) mod html;
pub(crate) mod msi;
pub(crate) mod smmus;
pub(crate) mod text;
pub(crate) mod unconfined;

use std::collections::BTreeSet;

use iommu_assign::dt::{Board, Refusal};
use serde::{Serialize, Serializer};

use crate::error::Failure;
use crate::names::Names;
use crate::stage::many;
use bridges::Bridge;
use devices::{Device, Group};
use msi::Messages;
use smmus::Smmu;
use unconfined::{Reserved, Unconfined};

/// What `inspect` shows.
#[derive(Debug, Serialize)]
pub(crate) struct Inspection {
    pub(crate) schema: u32,
    /// What the board calls itself.
    #[serde(skip)]
    pub(crate) title: String,
    pub(crate) model: Option<String>,
    pub(crate) compatible: Vec<String>,
    /// The answer in three lines.
    pub(crate) summary: [String; 3],
    pub(crate) smmus: Vec<Smmu>,
    pub(crate) devices: Vec<Device>,
    pub(crate) bridges: Vec<Bridge>,
    /// Devices that cannot be told apart, two or more.
    pub(crate) groups: Vec<Group>,
    /// Only where a device or a bridge says where its message signalled interrupts go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) msi: Vec<Messages>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) reserved: Vec<Reserved>,
    pub(crate) unconfined: Vec<Unconfined>,
    /// Only where nodes cannot be followed: what is wrong with each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) refused: Vec<Refused>,
    /// Only where nodes are marked for passing through that no SMMU in use sees.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) unseen: Vec<Refused>,
    /// Names and paths of the nodes to which this is limited.
    #[serde(skip)]
    pub(crate) paths: Vec<(String, String)>,
    /// What is worth saying of the tree as a whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) remarks: Vec<String>,
}

/// A node that is not offered.
#[derive(Debug, Serialize)]
pub(crate) struct Refused {
    pub(crate) path: String,
    pub(crate) name: String,
    pub(crate) error: Told,
}

/// An error of the library. Programs get it as it is, with full paths; people with the names of the rest of the report.
#[derive(Debug)]
pub(crate) struct Told {
    error: String,
    pub(crate) told: String,
}

impl Told {
    fn of(error: &impl ToString, names: &Names) -> Self {
        let error = error.to_string();
        Self { told: names.in_text(&error), error }
    }
}

impl Serialize for Told {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.error)
    }
}

/// A number that is written in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hex(pub(crate) u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl Inspection {
    /// Reads a blob, which messages call `name`.
    pub(crate) fn of(blob: &[u8], name: &str) -> Result<Self, Failure> {
        let board = read(blob, name)?;
        let names = Names::of(&board);
        let (mut devices, mut groups) = devices::read(&board, &names);
        let mut bridges = bridges::read(&board, &names);
        devices::tie_to_bridges(&mut devices, &mut groups, &mut bridges, &names);
        let smmus = smmus::read(&board, &names, &bridges);
        let refusals = |malformed| {
            let wanted = board.refusals().iter().filter(|refusal| refusal.is_malformed() == malformed);
            wanted.map(|refusal| Refused::of(refusal, &names)).collect()
        };
        let root = board.tree().root();
        let compatible = root.and_then(|root| root.property("compatible")).map_or(&[][..], |names| names.value());
        let compatible = String::from_utf8_lossy(compatible).split_terminator('\0').map(str::to_owned).collect();
        let mut inspection = Self {
            schema: 2,
            title: title(&board, name),
            model: model(&board),
            compatible,
            summary: Default::default(),
            smmus,
            devices,
            bridges,
            groups,
            msi: msi::read(&board, &names),
            reserved: unconfined::reserved(&board, &names),
            unconfined: unconfined::read(&board, &names),
            refused: refusals(true),
            unseen: refusals(false),
            paths: Vec::new(),
            remarks: remarks(&board, &names),
        };
        inspection.summary = inspection.summarised();
        Ok(inspection)
    }

    /// The same as JSON.
    pub(crate) fn json(&self) -> Result<String, Failure> {
        let text = serde_json::to_string_pretty(self);
        text.map(|text| text + "\n").map_err(|error| Failure::new(format!("JSON: {error}")))
    }

    /// Keeps the nodes that `typed` names, with those of their groups and the SMMUs that see them.
    pub(crate) fn only(&mut self, typed: &[String]) -> Result<(), Failure> {
        let known = self.smmus.iter().map(|smmu| (&smmu.name, &smmu.path));
        let known = known.chain(self.devices.iter().map(|device| (&device.name, &device.path)));
        let known = known.chain(self.bridges.iter().map(|bridge| (&bridge.name, &bridge.path)));
        let told = self.refused.iter().chain(&self.unseen).map(|refused| (&refused.name, &refused.path));
        let known = known.chain(told).chain(self.unconfined.iter().map(|one| (&one.name, &one.path)));
        let known: Vec<(String, String)> = known.map(|(name, path)| (name.clone(), path.clone())).collect();
        let names = Names::given(known);
        let mut wanted: BTreeSet<String> = BTreeSet::new();
        for typed in typed {
            match names.paths(typed)[..] {
                [path] => drop(wanted.insert(path.to_owned())),
                [] => {
                    return Err(Failure::new(format!(
                        "`{typed}` names no SMMU, device, host bridge or refused node of this board"
                    )));
                }
                ref several => {
                    let all: Vec<String> = several.iter().map(|path| names.name(path)).collect();
                    return Err(Failure::new(format!("`{typed}` could be {}", all.join(", "))));
                }
            }
        }
        let numbers = self.devices.iter().filter(|device| wanted.contains(&device.path)).map(|device| device.group);
        let numbers: BTreeSet<usize> = numbers.collect();
        self.devices.retain(|device| wanted.contains(&device.path) || numbers.contains(&device.group));
        self.bridges.retain(|bridge| wanted.contains(&bridge.path));
        self.groups.retain(|group| numbers.contains(&group.number));
        let of_devices = self.devices.iter().flat_map(|device| device.streams.iter().map(|stream| stream.smmu.clone()));
        let of_bridges = self.bridges.iter().flat_map(|bridge| bridge.map.iter().map(|mapped| mapped.smmu.clone()));
        let seen: BTreeSet<String> = of_devices.chain(of_bridges).collect();
        self.smmus.retain(|smmu| wanted.contains(&smmu.path) || seen.contains(&smmu.path));
        let shown = |path: &String| {
            let mut devices = self.devices.iter().map(|device| &device.path);
            devices.any(|one| one == path) || self.bridges.iter().any(|bridge| bridge.path == *path)
        };
        self.msi.retain(|one| shown(&one.path));
        self.reserved.retain(|one| shown(&one.device));
        self.unconfined.retain(|one| wanted.contains(&one.path));
        self.refused.retain(|one| wanted.contains(&one.path));
        self.unseen.retain(|one| wanted.contains(&one.path));
        self.paths = wanted.into_iter().map(|path| (names.name(&path), path)).collect();
        self.summary = self.summarised();
        Ok(())
    }

    fn summarised(&self) -> [String; 3] {
        let enabled = self.devices.iter().filter(|device| device.enabled).count();
        let may = |what| self.devices.iter().filter(|device| device.assign.assignable == what).count();
        let (yes, marked, no) = (may("yes"), may("if marked"), may("no"));
        let cannot = no.saturating_sub(self.devices.len().saturating_sub(enabled));
        let marks = self.devices.iter().any(|device| device.marked) || self.bridges.iter().any(|bridge| bridge.marked);
        let mut first = if enabled == 0 {
            vec!["No enabled device has streams of its own".to_owned()]
        } else if marks {
            let more = (marked > 0).then(|| format!("{marked} more if they were marked"));
            let yes = format!("{yes} of {} may be assigned", many(enabled, "enabled device"));
            [yes].into_iter().chain(more).collect()
        } else {
            let devices = many(enabled, "enabled device");
            vec![format!(
                "{marked} of {devices} may be assigned where the policy asks for no mark: firmware marks none"
            )]
        };
        first.extend((cannot > 0).then(|| format!("{cannot} must not be")));
        let usable = self.bridges.iter().filter(|bridge| bridge.assign.assignable != "no").count();
        first.extend(
            (!self.bridges.is_empty())
                .then(|| format!("{usable} of {} can give functions away", many(self.bridges.len(), "host bridge"))),
        );
        let tied: usize = self.groups.iter().map(|group| group.members.len()).sum();
        let coupling: Vec<&str> = self
            .smmus
            .iter()
            .filter(|smmu| smmu.enabled && smmu.lines.couples)
            .map(|smmu| smmu.name.as_str())
            .collect();
        let second = match self.groups.len() {
            0 => "No group ties devices together".to_owned(),
            1 => format!("1 group ties {tied} devices or host bridges"),
            groups => format!("{groups} groups tie {tied} devices or host bridges"),
        };
        let second = match coupling[..] {
            [] => format!("{second}; no interrupt line couples domains."),
            [one] => format!("{second}; an interrupt line of {one} couples domains."),
            _ => format!("{second}; interrupt lines of {} couple domains.", many(coupling.len(), "SMMU")),
        };
        let scarce: Vec<String> = self.smmus.iter().filter_map(Smmu::scarce).collect();
        let scarce =
            if scarce.is_empty() { "Nothing is scarce".to_owned() } else { format!("Scarce: {}", scarce.join(", ")) };
        let told = self.refused.len().saturating_add(self.unseen.len());
        let mut third = vec![scarce];
        third.extend(
            (!self.unconfined.is_empty())
                .then(|| format!("{} cannot be confined", many(self.unconfined.len(), "node"))),
        );
        third.extend((told > 0).then(|| format!("{} refused", many(told, "node"))));
        [first.join("; ") + ".", second, third.join("; ") + "."]
    }
}

/// Reads a board that has an SMMU at all; bad nodes are left out.
pub(crate) fn read<'a>(blob: &'a [u8], name: &str) -> Result<Board<'a>, Failure> {
    let board = Board::read_lenient(blob).map_err(|error| Failure::new(format!("{name}: {error}")))?;
    if board.smmus().is_empty() {
        let malformed = board.refusals().iter().find(|refusal| refusal.is_malformed());
        let why = malformed.map_or_else(|| no_smmu(&board), |refusal| format!("no SMMU can be used: {refusal}"));
        return Err(Failure::new(format!("{name}: {why}")));
    }
    Ok(board)
}

/// What there is instead.
fn no_smmu(board: &Board<'_>) -> String {
    let mut others: Vec<String> = Vec::new();
    for node in board.other_iommus() {
        let compatible = node.compatible().unwrap_or("no compatible");
        let kind = if compatible == "arm,smmu-v3" { "an SMMUv3".to_owned() } else { format!("`{compatible}`") };
        others.push(format!("{} ({kind})", node.path().unwrap_or_default()));
    }
    let others = if others.is_empty() { "no other IOMMU either".to_owned() } else { others.join(", ") };
    format!("no SMMUv1 or SMMUv2 in this device tree; there is {others}")
}

/// What the board calls itself, and where it comes from.
pub(crate) fn title(board: &Board<'_>, name: &str) -> String {
    model(board).map_or_else(|| name.to_owned(), |model| format!("{model} ({name})"))
}

fn model(board: &Board<'_>) -> Option<String> {
    let model = board.tree().root().and_then(|root| root.property("model"))?;
    let model = String::from_utf8_lossy(model.value()).trim_end_matches('\0').to_owned();
    Some(model).filter(|model| !model.is_empty())
}

fn remarks(board: &Board<'_>, names: &Names) -> Vec<String> {
    let listing: Vec<String> =
        board.smmus().iter().filter(|smmu| smmu.mmu_masters).map(|smmu| names.name(&smmu.path)).collect();
    let by_device = board.devices().iter().find(|device| !device.old_binding).map(|device| &device.path);
    let by_map = board.host_bridges().iter().find(|bridge| !bridge.old_binding).map(|bridge| &bridge.path);
    let mut remarks = Vec::new();
    if !listing.is_empty() {
        let who = listing.join(", ");
        remarks.push(format!("{who}: masters are listed in `mmu-masters`, the binding of before `iommus`."));
        if let Some(path) = by_device.or(by_map) {
            remarks.push(format!(
                "This tree mixes both bindings: {} names its SMMU itself. Each is read; where they contradict each other \
                 about a node, it is refused. Linux drives no SMMU of the one kind beside one of the other.",
                names.name(path)
            ));
        }
    }
    remarks
}

impl Refused {
    fn of(refusal: &Refusal, names: &Names) -> Self {
        let (path, name) = (refusal.path.clone(), names.name(&refusal.path));
        Self { path, name, error: Told::of(refusal, names) }
    }
}
