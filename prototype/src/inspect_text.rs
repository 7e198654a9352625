//! `inspect` for people.

use std::collections::BTreeMap;

use crate::inspect::{Device, Hex, Inspection, Mapped, StreamOf};
use crate::report::{HARD_BLANK, Page, Set, Table, printable};
use crate::{inspect_msi, names};

/// The whole output.
pub(crate) fn page(inspection: &Inspection) -> String {
    let mut page = Page::new();
    page.text(0, &inspection.title);
    let paths: Vec<&str> = inspection.smmus.iter().map(|smmu| smmu.path.as_str()).collect();
    let names: BTreeMap<&str, String> = paths.iter().copied().zip(names::short(&paths)).collect();
    smmus(&mut page, inspection);
    devices(&mut page, inspection, &names);
    bridges(&mut page, inspection, &names);
    inspect_msi::print(&mut page, &inspection.msi);
    let both = [&inspection.refused, &inspection.unseen];
    let errors: Vec<&str> = both.into_iter().flatten().map(|refused| refused.error.as_str()).collect();
    refused(&mut page, errors.into_iter());
    page.into_text()
}

fn smmus(page: &mut Page, inspection: &Inspection) {
    page.heading("SMMUs");
    let mut table = Table::new(&[
        ("node", Set::Path),
        ("compatible", Set::Path),
        ("on", Set::Left),
        ("base", Set::Right),
        ("size", Set::Right),
        ("cells", Set::Right),
        ("irqs", Set::Right),
        ("walks", Set::Left),
        ("entries", Set::Right),
    ]);
    for smmu in &inspection.smmus {
        let entries = &smmu.entries;
        let least = if entries.merged_exact.is_some() { "≤" } else { "" };
        table.row([
            smmu.path.clone(),
            smmu.kind.clone(),
            yes(smmu.enabled),
            format!("{:x}", smmu.base.0),
            format!("{:x}", smmu.size.0),
            smmu.iommu_cells.to_string(),
            format!("{}+{}", smmu.global_irqs, smmu.context_irqs),
            if smmu.coherent { "coherent" } else { "plain" }.to_owned(),
            format!("{} → {least}{}", entries.per_specifier, entries.merged),
        ]);
    }
    table.print(page, 2);
    page.gap();
    page.text(
        2,
        "on: enabled, with all ancestors. base, size: hexadecimal. irqs: global + context. entries: one for each \
         specifier → merged.",
    );
}

fn devices(page: &mut Page, inspection: &Inspection, names: &BTreeMap<&str, String>) {
    let devices = &inspection.devices;
    page.heading(&format!("Devices: {}, {} enabled", devices.len(), devices.iter().filter(|one| one.enabled).count()));
    let mut table = Table::new(&[
        ("node", Set::Path),
        ("on", Set::Left),
        ("SMMU", Set::Left),
        ("streams", Set::Wrap),
        ("group", Set::Left),
    ]);
    let mut shared: Vec<usize> = Vec::new();
    for device in devices {
        let mates = devices.iter().filter(|other| other.group == device.group).count();
        if mates > 1 && !shared.contains(&device.group) {
            shared.push(device.group);
        }
        let number = shared.iter().position(|group| *group == device.group);
        let group = number.map_or_else(String::new, |number| format!("g{}", number.saturating_add(1)));
        for (at, (smmu, streams)) in streams_by_smmu(device).into_iter().enumerate() {
            let off = inspection.smmus.iter().any(|one| one.path == smmu && !one.enabled);
            let smmu = names.get(smmu).map_or_else(|| printable(smmu), Clone::clone);
            let smmu = if off { smmu + " (off)" } else { smmu };
            let (path, on, group) = match at {
                0 => (device.path.clone(), yes(device.enabled), group.clone()),
                _ => Default::default(),
            };
            table.row([path, on, smmu, streams, group]);
        }
    }
    table.print(page, 2);
    if devices.is_empty() {
        page.line("  none");
    } else {
        page.gap();
        page.text(2, "streams: ID, or ID/mask where a mask bit of 1 is ignored. Devices of one group share streams.");
    }
}

fn streams_by_smmu(device: &Device) -> Vec<(&str, String)> {
    let text = |stream: &StreamOf| match stream.mask {
        Hex(0) => format!("{:#x}", stream.id.0),
        Hex(mask) => format!("{:#x}/{mask:#x}", stream.id.0),
    };
    let of_one = |streams: &[StreamOf]| streams.iter().map(text).collect::<Vec<_>>().join(" ");
    let chunks = device.streams.chunk_by(|one, next| one.smmu == next.smmu);
    chunks.filter_map(|chunk| Some((chunk.first()?.smmu.as_str(), of_one(chunk)))).collect()
}

fn bridges(page: &mut Page, inspection: &Inspection, names: &BTreeMap<&str, String>) {
    page.heading(&format!("Host bridges: {}", inspection.bridges.len()));
    let mut table = Table::new(&[
        ("node", Set::Path),
        ("on", Set::Left),
        ("bus", Set::Left),
        ("mask", Set::Right),
        ("SMMU", Set::Left),
        ("requester IDs → streams", Set::Wrap),
    ]);
    for bridge in &inspection.bridges {
        for (at, chunk) in bridge.map.chunk_by(|one, next| one.smmu == next.smmu).enumerate() {
            let smmu = chunk.first().map_or("", |mapped| mapped.smmu.as_str());
            let smmu = names.get(smmu).map_or_else(|| printable(smmu), Clone::clone);
            let map = chunk.iter().map(mapped).collect::<Vec<_>>().join("; ");
            let bus = if bridge.is_pci { "PCI" } else { "other" }.to_owned();
            let (path, on, bus, mask) = match at {
                0 => (bridge.path.clone(), yes(bridge.enabled), bus, format!("{:x}", bridge.mask.0)),
                _ => Default::default(),
            };
            table.row([path, on, bus, mask, smmu, map]);
        }
    }
    table.print(page, 2);
    if inspection.bridges.is_empty() {
        page.line("  none");
    }
}

fn mapped(mapped: &Mapped) -> String {
    let range = |first: Hex| match mapped.length.0.checked_sub(1).map(|more| (more, first.0.checked_add(more))) {
        Some((1.., Some(last))) => format!("{:#x}..{last:#x}", first.0),
        _ => format!("{:#x}", first.0),
    };
    let nothing = if mapped.length.0 == 0 { format!("{HARD_BLANK}(empty)") } else { String::new() };
    format!("{}{HARD_BLANK}→{HARD_BLANK}{}{nothing}", range(mapped.rid), range(mapped.stream))
}

/// The nodes that are not offered. Says nothing where there are none.
pub(crate) fn refused<'a>(page: &mut Page, errors: impl ExactSizeIterator<Item = &'a str>) {
    if errors.len() > 0 {
        page.heading(&format!("Refused nodes: {}", errors.len()));
        errors.for_each(|error| page.text(2, error));
    }
}

fn yes(on: bool) -> String {
    if on { "yes" } else { "no" }.to_owned()
}
