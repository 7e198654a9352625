//! SMMUs: what the board's devices need of them against what there is, and which interrupt lines couple domains.

use std::collections::BTreeMap;

use iommu_assign::dt::{Board, DtDevice, SmmuNode};
use iommu_assign::smmu::cover::{CoverOptions, Cube, least_cover};
use serde::Serialize;

use super::Hex;
use super::bridges::Bridge;
use super::devices::Groups;
use crate::names::Names;

/// An SMMUv1/v2.
#[derive(Debug, Serialize)]
pub(crate) struct Smmu {
    pub(crate) path: String,
    pub(crate) name: String,
    pub(crate) compatible: Vec<String>,
    pub(crate) enabled: bool,
    pub(crate) base: Hex,
    pub(crate) size: Hex,
    pub(crate) iommu_cells: u32,
    pub(crate) global_irqs: u32,
    pub(crate) context_irqs: u32,
    pub(crate) coherent: bool,
    pub(crate) entries: Entries,
    /// Context banks: one for each group, if each has a domain of its own.
    pub(crate) banks: usize,
    /// What a part that is sold under that name has; what this one has only its ID registers say.
    pub(crate) typical: Typical,
    pub(crate) lines: Lines,
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

/// Entries and banks.
#[derive(Debug, Serialize)]
pub(crate) struct Typical {
    pub(crate) entries: u16,
    pub(crate) banks: u16,
}

/// The interrupt lines of context banks.
#[derive(Debug, Serialize)]
pub(crate) struct Lines {
    pub(crate) count: u8,
    /// Whether a line can report faults of several domains, if each group has a domain of its own.
    pub(crate) couples: bool,
    /// Which.
    pub(crate) what: String,
}

pub(crate) fn read(board: &Board<'_>, names: &Names, bridges: &[Bridge]) -> Vec<Smmu> {
    let enabled: Vec<&DtDevice> = board.devices().iter().filter(|device| device.enabled).collect();
    let groups = Groups::of(&enabled);
    board.smmus().iter().map(|smmu| Smmu::of(smmu, board, names, &enabled, &groups, bridges)).collect()
}

impl Smmu {
    fn of(
        smmu: &SmmuNode<'_>,
        board: &Board<'_>,
        names: &Names,
        enabled: &[&DtDevice],
        groups: &Groups,
        bridges: &[Bridge],
    ) -> Self {
        let counts = enabled.iter().flat_map(|device| &device.specifiers);
        let per_specifier = counts.filter(|count| count.smmu == smmu.key).map(|count| count.count).sum();
        let mut unions: BTreeMap<usize, Vec<Cube>> = BTreeMap::new();
        for (index, device) in enabled.iter().enumerate() {
            let cubes = device.streams.iter().filter(|stream| stream.iommu() == smmu.key).map(|one| Cube::from(*one));
            let cubes: Vec<Cube> = cubes.collect();
            if !cubes.is_empty() {
                unions.entry(groups.of_device(index)).or_default().extend(cubes);
            }
        }
        let covers = unions.values().map(|cubes| entries_for(cubes));
        let (merged, exact) =
            covers.fold((0_usize, true), |(sum, all), (count, exact)| (sum.saturating_add(count), all && exact));
        // A bridge has one function at least.
        let behind =
            bridges.iter().filter(|bridge| bridge.enabled && bridge.reached.iter().any(|run| run.smmu == smmu.path));
        let users = unions.len().saturating_add(behind.count());
        let part = machine::part_of(smmu);
        let usable = part.quirks.hidden_banks_from.unwrap_or(part.banks).min(part.banks);
        Self {
            path: smmu.path.clone(),
            name: names.name(&smmu.path),
            compatible: smmu.compatibles.iter().map(|name| (*name).to_owned()).collect(),
            enabled: smmu.enabled,
            base: Hex(smmu.registers.base()),
            size: Hex(smmu.registers.size()),
            iommu_cells: smmu.iommu_cells,
            global_irqs: smmu.global_irqs,
            context_irqs: smmu.context_irqs,
            coherent: smmu.coherent,
            entries: Entries { per_specifier, merged, merged_exact: (!exact).then_some(false) },
            banks: users,
            typical: Typical { entries: part.groups.into(), banks: usable.into() },
            lines: Lines::of(smmu, board, names, usable, users > 1),
        }
    }

    /// What there is too little of, as far as a part of that name has what it usually has.
    pub(crate) fn scarce(&self) -> Option<String> {
        if !self.enabled {
            return None;
        }
        let (entries, banks) = (usize::from(self.typical.entries), usize::from(self.typical.banks));
        let mut scarce = Vec::new();
        if self.entries.merged > entries {
            scarce.push(format!("{} of {entries} entries", self.entries.merged));
        }
        if self.banks > banks {
            scarce.push(format!("{} of {banks} banks", self.banks));
        }
        (!scarce.is_empty()).then(|| format!("{} needs {}", self.name, scarce.join(" and ")))
    }
}

impl Lines {
    fn of(smmu: &SmmuNode<'_>, board: &Board<'_>, names: &Names, banks: u8, several: bool) -> Self {
        let lines = &smmu.context_lines;
        let shared: Vec<String> = board
            .smmus()
            .iter()
            .filter(|other| other.key != smmu.key && other.enabled)
            .filter(|other| other.interrupts.iter().any(|line| smmu.interrupts.contains(line)))
            .map(|other| names.name(&other.path))
            .collect();
        let (couples, mut what) = match (lines.count(), lines.line(banks.saturating_sub(1))) {
            (0, _) => (false, "none: context faults are not reported".to_owned()),
            (1, _) if banks > 1 => (true, "one for all banks".to_owned()),
            (1, _) => (false, "one for each bank".to_owned()),
            (count, None) if count < banks => (true, format!("{count} for {banks} banks, and nothing says which")),
            (count, None) => (true, format!("{count}, and firmware does not say which bank raises which")),
            (..) => {
                let mut by_line: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
                for bank in 0..banks {
                    by_line.entry(lines.line(bank).unwrap_or(0)).or_default().push(bank);
                }
                let pairs: Vec<String> =
                    by_line.values().filter(|banks| banks.len() > 1).map(|banks| ranges(banks)).collect();
                let each = "one for each bank".to_owned();
                if pairs.is_empty() { (false, each) } else { (true, format!("banks {} share one", pairs.join("; "))) }
            }
        };
        if !shared.is_empty() {
            what.push_str(&format!("; shared with {}", shared.join(", ")));
        }
        Self { count: lines.count(), couples: smmu.enabled && (couples && several || !shared.is_empty()), what }
    }
}

/// `0-2, 5`.
fn ranges(numbers: &[u8]) -> String {
    let runs = numbers.chunk_by(|one, next| one.checked_add(1) == Some(*next));
    let text = |run: &[u8]| match run {
        [one] => one.to_string(),
        [first, .., last] => format!("{first}-{last}"),
        [] => String::new(),
    };
    runs.map(text).collect::<Vec<_>>().join(", ")
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
