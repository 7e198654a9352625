//! Host bridges, and what comes out of their maps.

use std::collections::{BTreeMap, BTreeSet};

use iommu_assign::assign::{IommuKey, StreamMask};
use iommu_assign::dt::{Board, HostBridge};
use iommu_assign::pci::{MapEntry, Provider, RequesterId};
use iommu_assign::smmu::cover::Cube;
use serde::Serialize;

use super::Hex;
use super::devices::Assign;
use crate::names::Names;

/// A node whose `iommu-map` names an SMMU.
#[derive(Debug, Serialize)]
pub(crate) struct Bridge {
    pub(crate) path: String,
    pub(crate) name: String,
    pub(crate) compatible: String,
    pub(crate) is_pci: bool,
    pub(crate) enabled: bool,
    pub(crate) marked: bool,
    /// As it is written.
    pub(crate) map: Vec<Mapped>,
    pub(crate) mask: Hex,
    /// What comes out for the requester IDs of its buses.
    pub(crate) reached: Vec<Run>,
    /// What holds for the functions behind it.
    #[serde(flatten)]
    pub(crate) assign: Assign,
}

/// An entry of an `iommu-map`, as it is written.
#[derive(Debug, Serialize)]
pub(crate) struct Mapped {
    pub(crate) rid: Hex,
    pub(crate) smmu: String,
    pub(crate) stream: Hex,
    pub(crate) length: Hex,
}

/// Requester IDs in a row, as they are after the map's mask, and their streams.
#[derive(Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) smmu: String,
    pub(crate) rid: Hex,
    pub(crate) stream: Hex,
    pub(crate) stream_mask: Hex,
    pub(crate) length: Hex,
}

impl Run {
    /// A stream of this run that `cube` meets.
    pub(crate) fn meets(&self, cube: Cube) -> Option<u64> {
        let streams = (0..self.length.0).map(|more| self.stream.0.saturating_add(more));
        let mask = u32::try_from(self.stream_mask.0).unwrap_or(0);
        streams.into_iter().find(|id| u32::try_from(*id).is_ok_and(|id| Cube::new(id, mask).meets(cube)))
    }
}

/// A stream at one SMMU that requester IDs of both have.
pub(crate) fn shared(one: &Bridge, other: &Bridge) -> Option<(String, u64)> {
    let pairs = one.reached.iter().flat_map(|run| other.reached.iter().map(move |with| (run, with)));
    pairs.filter(|(run, with)| run.smmu == with.smmu).find_map(|(run, with)| {
        // Two streams overlap where they are equal in the bits that both compare.
        let compared = !(run.stream_mask.0 | with.stream_mask.0);
        let ids = |run: &Run| {
            let (first, length) = (run.stream.0, run.length.0);
            (0..length).map(move |more| first.saturating_add(more) & compared)
        };
        let all: BTreeSet<u64> = ids(run).collect();
        ids(with).find(|id| all.contains(id)).map(|id| (run.smmu.clone(), id))
    })
}

pub(crate) fn read(board: &Board<'_>, names: &Names) -> Vec<Bridge> {
    board.host_bridges().iter().map(|bridge| Bridge::of(bridge, board, names)).collect()
}

impl Bridge {
    fn of(bridge: &HostBridge, board: &Board<'_>, names: &Names) -> Self {
        let path = |key: IommuKey| board.smmu(key).map_or_else(|| key.to_string(), |smmu| smmu.path.clone());
        let mapped = |entry: &MapEntry| match entry.iommu {
            Provider::Smmu(key) => Some(Mapped {
                rid: Hex(entry.rid_base.into()),
                smmu: path(key),
                stream: Hex(entry.stream_base.into()),
                length: Hex(entry.length.into()),
            }),
            _ => None,
        };
        let node = board.tree().node(bridge.node);
        let outcomes = outcomes(bridge);
        Self {
            path: bridge.path.clone(),
            name: names.name(&bridge.path),
            compatible: node.and_then(|node| node.compatible()).unwrap_or_default().to_owned(),
            is_pci: bridge.is_pci,
            enabled: bridge.enabled,
            marked: bridge.passthrough,
            map: bridge.entries.iter().filter_map(mapped).collect(),
            mask: Hex(bridge.requesters.mask().into()),
            assign: Assign::of_bridge(bridge, board, names, shares_streams(bridge, &outcomes)),
            reached: runs(&outcomes, &path),
        }
    }

    /// What is behind it.
    pub(crate) fn behind(&self) -> String {
        format!("{} of {}", if self.is_pci { "functions" } else { "IDs" }, self.name)
    }

    /// Whether the mask leaves nothing of a requester ID.
    pub(crate) const fn masks_all(&self) -> bool {
        self.mask.0 & 0xffff == 0
    }
}

/// Where each requester ID of the bridge's buses goes: what is left of it after the mask, and the stream.
type Outcomes = BTreeMap<u32, (IommuKey, u32, StreamMask)>;

fn outcomes(bridge: &HostBridge) -> Outcomes {
    let (first, last) = (u32::from(*bridge.buses.start()) << 8, u32::from(*bridge.buses.end()) << 8 | 0xff);
    let ids = (first..=last).filter_map(|rid| u16::try_from(rid).ok());
    let outcome = |rid: u16| {
        let stream = bridge.requesters.stream(RequesterId(rid)).ok()?;
        let masked = u32::from(rid) & bridge.requesters.mask();
        let entry = bridge
            .requesters
            .entries()
            .iter()
            .find(|entry| masked.checked_sub(entry.rid_base).is_some_and(|into| into < entry.length))?;
        let id = entry.stream_base.checked_add(masked.checked_sub(entry.rid_base)?)?;
        Some((masked, (stream.iommu(), id, stream.mask())))
    };
    ids.filter_map(outcome).collect()
}

/// Whether two requester IDs of the buses have one stream.
fn shares_streams(bridge: &HostBridge, outcomes: &Outcomes) -> bool {
    let buses = usize::from(bridge.buses.end().saturating_sub(*bridge.buses.start())).saturating_add(1);
    let hidden = !bridge.requesters.mask() & 0xffff;
    let bits = if buses == 1 { 0xff } else { u32::from(u16::MAX) };
    !outcomes.is_empty() && hidden & bits != 0
}

fn runs(outcomes: &Outcomes, path: &dyn Fn(IommuKey) -> String) -> Vec<Run> {
    let mut runs: Vec<(u32, IommuKey, u32, StreamMask, u32)> = Vec::new();
    for (rid, (smmu, stream, mask)) in outcomes {
        let next = runs.last_mut().filter(|(first, key, base, of, length)| {
            key == smmu
                && of == mask
                && first.checked_add(*length) == Some(*rid)
                && base.checked_add(*length) == Some(*stream)
        });
        match next {
            Some((.., length)) => *length = length.saturating_add(1),
            None => runs.push((*rid, *smmu, *stream, *mask, 1)),
        }
    }
    let run = |(rid, smmu, stream, mask, length): (u32, IommuKey, u32, StreamMask, u32)| Run {
        smmu: path(smmu),
        rid: Hex(rid.into()),
        stream: Hex(stream.into()),
        stream_mask: Hex(mask.value().into()),
        length: Hex(length.into()),
    };
    runs.into_iter().map(run).collect()
}
