//! Devices: who may be assigned, with whom, and why not; groups, and what ties each pair.

use std::collections::BTreeMap;

use iommu_assign::assign::Stream;
use iommu_assign::dt::{Board, DtDevice, HostBridge, NodeId, NotOffered};
use iommu_assign::smmu::cover::Cube;
use serde::Serialize;

use super::Hex;
use super::bridges::{self, Bridge};
use crate::names::Names;

/// A node with streams of its own.
#[derive(Debug, Serialize)]
pub(crate) struct Device {
    pub(crate) path: String,
    pub(crate) name: String,
    pub(crate) compatible: String,
    pub(crate) enabled: bool,
    /// Whether firmware marks it for passing through.
    pub(crate) marked: bool,
    pub(crate) streams: Vec<StreamOf>,
    pub(crate) group: usize,
    #[serde(flatten)]
    pub(crate) assign: Assign,
}

/// A stream of a device.
#[derive(Debug, Serialize)]
pub(crate) struct StreamOf {
    pub(crate) smmu: String,
    pub(crate) id: Hex,
    pub(crate) mask: Hex,
}

/// Whether something may be assigned.
#[derive(Debug, Serialize)]
pub(crate) struct Assign {
    /// `yes`, `if marked`, `no`.
    pub(crate) assignable: &'static str,
    /// Why not, or on what it depends; empty for a plain yes.
    pub(crate) reason: String,
    /// Names of those that must have the same owner.
    pub(crate) with: Vec<String>,
}

/// Devices that cannot be told apart.
#[derive(Debug, Serialize)]
pub(crate) struct Group {
    pub(crate) number: usize,
    pub(crate) members: Vec<String>,
    pub(crate) ties: Vec<Tie>,
}

/// What ties two members of a group.
#[derive(Debug, Serialize)]
pub(crate) struct Tie {
    pub(crate) one: String,
    pub(crate) other: String,
    pub(crate) by: String,
}

/// All devices in the order of the blob, and the groups of two or more.
pub(crate) fn read(board: &Board<'_>, names: &Names) -> (Vec<Device>, Vec<Group>) {
    let all: Vec<&DtDevice> = board.devices().iter().collect();
    let groups = Groups::of(&all);
    let mut members: BTreeMap<usize, Vec<&DtDevice>> = BTreeMap::new();
    for (index, device) in all.iter().enumerate() {
        members.entry(groups.of_device(index)).or_default().push(device);
    }
    let any_marked = board.devices().iter().any(|device| device.passthrough)
        || board.host_bridges().iter().any(|bridge| bridge.passthrough);
    let devices = all.iter().enumerate().map(|(index, device)| {
        let group = groups.of_device(index);
        let mates = members.get(&group).into_iter().flatten().filter(|mate| mate.node != device.node && mate.enabled);
        let mut assign = Assign::of_device(device, board, names, any_marked);
        assign.with = mates.map(|mate| names.name(&mate.path)).collect();
        Device::of(device, group, board, names, assign)
    });
    let devices = devices.collect();
    let several = members.into_iter().filter(|(_, members)| members.len() > 1);
    let groups = several.map(|(number, members)| Group {
        number,
        members: members.iter().map(|device| names.name(&device.path)).collect(),
        ties: ties(&members, names),
    });
    (devices, groups.collect())
}

impl Device {
    fn of(device: &DtDevice, group: usize, board: &Board<'_>, names: &Names, assign: Assign) -> Self {
        let smmu = |stream: &Stream| board.smmu(stream.iommu()).map_or_else(String::new, |smmu| smmu.path.clone());
        let stream = |stream: &Stream| StreamOf {
            smmu: smmu(stream),
            id: Hex(stream.id().value().into()),
            mask: Hex(stream.mask().value().into()),
        };
        let node = board.tree().node(device.node);
        Self {
            path: device.path.clone(),
            name: names.name(&device.path),
            compatible: node.and_then(|node| node.compatible()).unwrap_or_default().to_owned(),
            enabled: device.enabled,
            marked: device.passthrough,
            streams: device.streams.iter().map(stream).collect(),
            group,
            assign,
        }
    }
}

impl Assign {
    fn of_device(device: &DtDevice, board: &Board<'_>, names: &Names, any_marked: bool) -> Self {
        let keys = device.streams.iter().map(|stream| stream.iommu());
        let too_wide = device.streams.iter().find(|stream| (stream.id().value() | stream.mask().value()) > 0xffff);
        let why_not = device.not_offered().map(|reason| match reason {
            NotOffered::Disabled => disabled(board, device.node, names).unwrap_or_default(),
            NotOffered::OnDisabledSmmu => behind_disabled(board, keys, names),
            NotOffered::ForeignIommu { iommu } => foreign(board, iommu, names),
            reason => reason.to_string(),
        });
        let why_not = why_not.or_else(|| {
            too_wide.map(|stream| format!("stream {} has more than 16 bits: no SMMU holds it", stream.id()))
        });
        Self::judged(why_not, device.passthrough, any_marked)
    }

    /// Of the functions behind a host bridge; `share`: requester IDs share streams.
    pub(crate) fn of_bridge(bridge: &HostBridge, board: &Board<'_>, names: &Names, share: bool) -> Self {
        let any_marked = board.devices().iter().any(|device| device.passthrough) || bridge.passthrough;
        let keys = bridge.requesters.entries().iter().filter_map(|entry| match entry.iommu {
            iommu_assign::pci::Provider::Smmu(key) => Some(key),
            _ => None,
        });
        let why_not = disabled(board, bridge.node, names)
            .or_else(|| bridge.on_disabled_smmu.then(|| behind_disabled(board, keys, names)))
            .or_else(|| {
                bridge.requesters.entries().is_empty().then(|| "its map sends no requester ID to an SMMU".to_owned())
            })
            .or_else(|| (!bridge.is_pci).then(|| "no PCI host bridge: its IDs are for its own driver".to_owned()));
        let mut assign = Self::judged(why_not, bridge.passthrough, any_marked);
        if share {
            assign.with.push("functions of one stream: the map's mask hides bits of requester IDs".to_owned());
        }
        if let Some(foreign_iommu) = bridge.foreign_iommus.first().filter(|_| assign.assignable != "no") {
            let but = format!("not those that {} sees", name_of(board, *foreign_iommu, names));
            assign.reason = if assign.reason.is_empty() { but } else { format!("{}; {but}", assign.reason) };
        }
        assign
    }

    fn judged(why_not: Option<String>, marked: bool, any_marked: bool) -> Self {
        let (assignable, reason) = match why_not {
            Some(reason) => ("no", reason),
            None if marked => ("yes", String::new()),
            None if any_marked => ("if marked", "not marked".to_owned()),
            None => ("if marked", String::new()),
        };
        Self { assignable, reason, with: Vec::new() }
    }
}

/// Why a node is not in use, and by whose word.
fn disabled(board: &Board<'_>, node: NodeId, names: &Names) -> Option<String> {
    let node = board.tree().node(node).filter(|node| !node.is_enabled())?;
    let says = |node: &iommu_assign::dt::Node<'_, '_>| {
        let status = node.property("status")?;
        let status = String::from_utf8_lossy(status.value()).trim_end_matches('\0').to_owned();
        Some(status).filter(|status| status != "okay" && status != "ok")
    };
    if let Some(status) = says(&node) {
        return Some(format!("its status is `{status}`"));
    }
    let above = node.ancestors().find_map(|above| Some((above.path().ok()?, says(&above)?)));
    Some(
        above.map_or_else(String::new, |(path, status)| {
            format!("below {}, whose status is `{status}`", names.name(&path))
        }),
    )
}

fn behind_disabled(
    board: &Board<'_>,
    keys: impl Iterator<Item = iommu_assign::assign::IommuKey>,
    names: &Names,
) -> String {
    let mut smmus = keys.filter_map(|key| board.smmu(key)).filter(|smmu| !smmu.enabled);
    let smmu = smmus.next().map(|smmu| names.name(&smmu.path)).unwrap_or_default();
    format!("behind {smmu}, which firmware disables")
}

fn foreign(board: &Board<'_>, iommu: NodeId, names: &Names) -> String {
    let compatible = board.tree().node(iommu).and_then(|node| node.compatible()).unwrap_or("of unknown kind");
    format!("{} ({compatible}) sees its DMA too, and nobody programs it", name_of(board, iommu, names))
}

fn name_of(board: &Board<'_>, node: NodeId, names: &Names) -> String {
    let path = board.tree().node(node).and_then(|node| node.path().ok());
    path.map_or_else(String::new, |path| names.name(&path))
}

fn ties(members: &[&DtDevice], names: &Names) -> Vec<Tie> {
    let mut ties = Vec::new();
    for (index, one) in members.iter().enumerate() {
        for other in members.iter().skip(index.saturating_add(1)) {
            let shared = one.streams.iter().find_map(|stream| {
                let other = other.streams.iter().find(|other| stream.overlaps(**other))?;
                let both = Cube::from(*stream).intersection(Cube::from(*other))?;
                Some((stream.iommu(), both))
            });
            if let Some((smmu, stream)) = shared {
                let (one, other) = (names.name(&one.path), names.name(&other.path));
                ties.push(Tie { one, other, by: format!("stream {} at {smmu}", cube(stream)) });
            }
        }
    }
    ties
}

/// Adds what a device shares with functions behind a host bridge, and two bridges with each other.
pub(crate) fn tie_to_bridges(devices: &mut [Device], groups: &mut Vec<Group>, bridges: &mut [Bridge], names: &Names) {
    tie_bridges(devices.len(), groups, bridges, names);
    for device in devices.iter_mut().filter(|device| device.enabled) {
        for bridge in bridges.iter_mut().filter(|bridge| bridge.enabled) {
            let mut cubes = device.streams.iter().filter_map(|stream| {
                let (id, mask) = (u32::try_from(stream.id.0).ok()?, u32::try_from(stream.mask.0).ok()?);
                Some((&stream.smmu, Cube::new(id, mask)))
            });
            let shared = cubes.find_map(|(smmu, cube)| {
                let mut runs = bridge.reached.iter().filter(|run| run.smmu == *smmu);
                Some((smmu.clone(), runs.find_map(|run| run.meets(cube))?))
            });
            let Some((smmu, stream)) = shared else { continue };
            bridge.assign.with.push(device.name.clone());
            let functions = bridge.behind();
            let by = format!("stream {stream:#x} at {}", names.name(&smmu));
            let tie = Tie { one: device.name.clone(), other: functions.clone(), by };
            device.assign.with.push(functions.clone());
            match groups.iter_mut().find(|group| group.number == device.group) {
                Some(group) => {
                    if !group.members.contains(&functions) {
                        group.members.push(functions);
                    }
                    group.ties.push(tie);
                }
                None => groups.push(Group {
                    number: device.group,
                    members: vec![device.name.clone(), functions],
                    ties: vec![tie],
                }),
            }
        }
    }
}

/// `first`: the number of the first group of host bridges; devices have those below.
fn tie_bridges(first: usize, groups: &mut Vec<Group>, bridges: &mut [Bridge], names: &Names) {
    let mut ties: Vec<(usize, usize, String)> = Vec::new();
    for (index, one) in bridges.iter().enumerate().filter(|(_, bridge)| bridge.enabled) {
        for (at, other) in bridges.iter().enumerate().skip(index.saturating_add(1)).filter(|(_, bridge)| bridge.enabled)
        {
            if let Some((smmu, stream)) = bridges::shared(one, other) {
                ties.push((index, at, format!("stream {stream:#x} at {}", names.name(&smmu))));
            }
        }
    }
    for (one, other, by) in ties {
        let behind = |index: usize| bridges.get(index).map(Bridge::behind).unwrap_or_default();
        let (name, with) = (behind(one), behind(other));
        for (index, mate) in [(one, &with), (other, &name)] {
            if let Some(bridge) = bridges.get_mut(index) {
                bridge.assign.with.push(mate.clone());
            }
        }
        let members = vec![name.clone(), with.clone()];
        let number = first.saturating_add(groups.len());
        groups.push(Group { number, members, ties: vec![Tie { one: name, other: with, by }] });
    }
}

/// A stream as reports write it.
fn cube(stream: Cube) -> String {
    if stream.mask() == 0 { format!("{:#x}", stream.id()) } else { format!("{:#x}/{:#x}", stream.id(), stream.mask()) }
}

/// For each device the least index of a device that it cannot be told apart from.
pub(crate) struct Groups(Vec<usize>);

impl Groups {
    pub(crate) fn of(devices: &[&DtDevice]) -> Self {
        let mut groups = Self((0..devices.len()).collect());
        let mut seen: BTreeMap<_, Vec<(usize, Stream)>> = BTreeMap::new();
        for (index, device) in devices.iter().enumerate() {
            for stream in device.streams.iter().copied() {
                let streams = seen.entry(stream.iommu()).or_default();
                for (other, _) in streams.iter().filter(|(_, other)| stream.overlaps(*other)) {
                    groups.join(index, *other);
                }
                streams.push((index, stream));
            }
        }
        groups
    }

    pub(crate) fn of_device(&self, device: usize) -> usize {
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
