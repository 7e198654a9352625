//! What a board's device tree says of SMMUs and of those whom they watch: the data behind `inspect`.
//!
//! The field names are those of the JSON output.

use std::collections::BTreeMap;

use iommu_assign::assign::{IommuKey, Stream};
use iommu_assign::dt::{Board, DtDevice, HostBridge, Refusal, SmmuNode};
use iommu_assign::pci::{MapEntry, Provider};
use iommu_assign::smmu::cover::{CoverOptions, Cube, least_cover};
use serde::{Serialize, Serializer};

use crate::error::Failure;
use crate::inspect_msi::{self, Messages};

/// What `inspect` shows.
#[derive(Debug, Serialize)]
pub(crate) struct Inspection {
    /// What the board calls itself.
    #[serde(skip)]
    pub(crate) title: String,
    pub(crate) smmus: Vec<Smmu>,
    pub(crate) devices: Vec<Device>,
    pub(crate) bridges: Vec<Bridge>,
    /// Only where a device or a bridge says where its message signalled interrupts go.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) msi: Vec<Messages>,
    /// Only where nodes cannot be followed: what is wrong with each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) refused: Vec<Refused>,
    /// Only where nodes are marked for passing through that no SMMU in use sees.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) unseen: Vec<Refused>,
}

/// A node that is not offered.
#[derive(Debug, Serialize)]
pub(crate) struct Refused {
    pub(crate) path: String,
    pub(crate) error: String,
}

/// An SMMUv1/v2.
#[derive(Debug, Serialize)]
pub(crate) struct Smmu {
    pub(crate) path: String,
    #[serde(skip)]
    pub(crate) kind: String,
    pub(crate) enabled: bool,
    pub(crate) base: Hex,
    pub(crate) size: Hex,
    pub(crate) iommu_cells: u32,
    pub(crate) global_irqs: u32,
    pub(crate) context_irqs: u32,
    pub(crate) coherent: bool,
    pub(crate) entries: Entries,
}

/// How many stream-map entries the enabled devices of an SMMU need.
#[derive(Debug, Serialize)]
pub(crate) struct Entries {
    pub(crate) per_specifier: usize,
    pub(crate) merged: usize,
    /// Only where the search gave up: fewer could be enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) merged_exact: Option<bool>,
}

/// A node whose `iommus` names an SMMU.
#[derive(Debug, Serialize)]
pub(crate) struct Device {
    pub(crate) path: String,
    pub(crate) enabled: bool,
    pub(crate) streams: Vec<StreamOf>,
    pub(crate) group: usize,
}

/// A stream of a device.
#[derive(Debug, Serialize)]
pub(crate) struct StreamOf {
    pub(crate) smmu: String,
    pub(crate) id: Hex,
    pub(crate) mask: Hex,
}

/// A node whose `iommu-map` names an SMMU.
#[derive(Debug, Serialize)]
pub(crate) struct Bridge {
    pub(crate) path: String,
    #[serde(skip)]
    pub(crate) is_pci: bool,
    pub(crate) enabled: bool,
    pub(crate) map: Vec<Mapped>,
    pub(crate) mask: Hex,
}

/// An entry of an `iommu-map`, as it is written.
#[derive(Debug, Serialize)]
pub(crate) struct Mapped {
    pub(crate) rid: Hex,
    pub(crate) smmu: String,
    pub(crate) stream: Hex,
    pub(crate) length: Hex,
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
        let paths = Paths(board.smmus().iter().map(|smmu| (smmu.key, smmu.path.as_str())).collect());
        let enabled: Vec<&DtDevice> = board.devices().iter().filter(|device| device.enabled).collect();
        let groups_of_enabled = Groups::of(&enabled);
        let groups = Groups::of(&board.devices().iter().collect::<Vec<_>>());
        let smmus = board.smmus().iter().map(|smmu| Smmu::of(smmu, &enabled, &groups_of_enabled));
        let devices = board.devices().iter().enumerate();
        let refusals = |malformed| {
            let wanted = board.refusals().iter().filter(|refusal| refusal.is_malformed() == malformed);
            wanted.map(Refused::of).collect()
        };
        Ok(Self {
            title: title(&board, name),
            smmus: smmus.collect(),
            devices: devices.map(|(index, device)| Device::of(device, groups.of_device(index), &paths)).collect(),
            bridges: board.host_bridges().iter().map(|bridge| Bridge::of(bridge, &paths)).collect(),
            msi: inspect_msi::read(&board),
            refused: refusals(true),
            unseen: refusals(false),
        })
    }

    /// The same as JSON.
    pub(crate) fn json(&self) -> Result<String, Failure> {
        let text = serde_json::to_string_pretty(self);
        text.map(|text| text + "\n").map_err(|error| Failure::new(format!("JSON: {error}")))
    }
}

/// Reads a board that has an SMMU at all; bad nodes are left out.
pub(crate) fn read<'a>(blob: &'a [u8], name: &str) -> Result<Board<'a>, Failure> {
    let board = Board::read_lenient(blob).map_err(|error| Failure::new(format!("{name}: {error}")))?;
    if board.smmus().is_empty() {
        let none = "no SMMUv1 or SMMUv2 in this device tree".to_owned();
        let why = board.refusals().first().map_or(none, |refusal| format!("no SMMU can be used: {refusal}"));
        return Err(Failure::new(format!("{name}: {why}")));
    }
    Ok(board)
}

/// What the board calls itself, and where it comes from.
pub(crate) fn title(board: &Board<'_>, name: &str) -> String {
    let model = board.tree().root().and_then(|root| root.property("model"));
    let model = model.map(|model| String::from_utf8_lossy(model.value()).trim_end_matches('\0').to_owned());
    match model.filter(|model| !model.is_empty()) {
        Some(model) => format!("{model} ({name})"),
        None => name.to_owned(),
    }
}

impl Refused {
    fn of(refusal: &Refusal) -> Self {
        Self { path: refusal.path.clone(), error: refusal.to_string() }
    }
}

/// The paths of SMMUs.
struct Paths<'a>(BTreeMap<IommuKey, &'a str>);

impl Paths<'_> {
    fn of(&self, key: IommuKey) -> String {
        // The reader names no SMMU that it does not list.
        self.0.get(&key).map_or_else(|| key.to_string(), |path| (*path).to_owned())
    }
}

impl Smmu {
    fn of(smmu: &SmmuNode<'_>, enabled: &[&DtDevice], groups: &Groups) -> Self {
        let counts = enabled.iter().flat_map(|device| &device.specifiers);
        let per_specifier = counts.filter(|count| count.smmu == smmu.key).map(|count| count.count).sum();
        let mut unions: BTreeMap<usize, Vec<Cube>> = BTreeMap::new();
        for (index, device) in enabled.iter().enumerate() {
            let cubes = device.streams.iter().filter(|stream| stream.iommu() == smmu.key).map(|one| Cube::from(*one));
            unions.entry(groups.of_device(index)).or_default().extend(cubes);
        }
        let covers = unions.values().map(|cubes| entries_for(cubes));
        let (merged, exact) =
            covers.fold((0_usize, true), |(sum, all), (count, exact)| (sum.saturating_add(count), all && exact));
        Self {
            path: smmu.path.clone(),
            kind: smmu.compatibles.first().map_or_else(String::new, |name| (*name).to_owned()),
            enabled: smmu.enabled,
            base: Hex(smmu.registers.base()),
            size: Hex(smmu.registers.size()),
            iommu_cells: smmu.iommu_cells,
            global_irqs: smmu.global_irqs,
            context_irqs: smmu.context_irqs,
            coherent: smmu.coherent,
            entries: Entries { per_specifier, merged, merged_exact: (!exact).then_some(false) },
        }
    }
}

/// The least number of entries for these streams, whatever the hardware, and whether it is known to be the least.
fn entries_for(cubes: &[Cube]) -> (usize, bool) {
    let options = CoverOptions::new(u32::MAX, u32::MAX);
    match least_cover(cubes, &options) {
        Ok(cover) => (cover.cubes.len(), cover.exact),
        Err(_) => {
            let mut distinct = cubes.to_vec();
            distinct.sort_unstable();
            distinct.dedup();
            (distinct.len(), false)
        }
    }
}

impl Device {
    fn of(device: &DtDevice, group: usize, paths: &Paths<'_>) -> Self {
        let stream = |stream: &Stream| StreamOf {
            smmu: paths.of(stream.iommu()),
            id: Hex(stream.id().value().into()),
            mask: Hex(stream.mask().value().into()),
        };
        let streams = device.streams.iter().map(stream).collect();
        Self { path: device.path.clone(), enabled: device.enabled, streams, group }
    }
}

impl Bridge {
    fn of(bridge: &HostBridge, paths: &Paths<'_>) -> Self {
        let mapped = |entry: &MapEntry| match entry.iommu {
            Provider::Smmu(key) => Some(Mapped {
                rid: Hex(entry.rid_base.into()),
                smmu: paths.of(key),
                stream: Hex(entry.stream_base.into()),
                length: Hex(entry.length.into()),
            }),
            _ => None,
        };
        Self {
            path: bridge.path.clone(),
            is_pci: bridge.is_pci,
            enabled: bridge.enabled,
            map: bridge.entries.iter().filter_map(mapped).collect(),
            mask: Hex(bridge.requesters.mask().into()),
        }
    }
}

/// Which devices the SMMUs cannot tell apart: for each the first one of its group.
struct Groups(Vec<usize>);

impl Groups {
    fn of(devices: &[&DtDevice]) -> Self {
        let mut groups = Self((0..devices.len()).collect());
        let mut streams: Vec<(usize, Stream)> = Vec::new();
        for (index, device) in devices.iter().enumerate() {
            for &stream in &device.streams {
                for (other, _) in streams.iter().filter(|(_, other)| stream.overlaps(*other)) {
                    groups.join(index, *other);
                }
                streams.push((index, stream));
            }
        }
        groups
    }

    fn of_device(&self, device: usize) -> usize {
        self.0.get(device).copied().unwrap_or(device)
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.of_device(one), self.of_device(other));
        let (kept, gone) = (one.min(other), one.max(other));
        for group in self.0.iter_mut().filter(|group| **group == gone) {
            *group = kept;
        }
    }
}
