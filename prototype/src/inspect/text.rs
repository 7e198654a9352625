//! `inspect` for people at a terminal.

use super::bridges::{Bridge, Run};
use super::devices::{Assign, Device, StreamOf};
use super::{Hex, Inspection, msi};
use crate::report::{HARD_BLANK, Page, Set, Table};

/// The whole output.
pub(crate) fn page(inspection: &Inspection) -> String {
    let mut page = Page::new();
    page.text(0, &inspection.title);
    if !inspection.compatible.is_empty() {
        page.text(2, &inspection.compatible.join(", "));
    }
    page.gap();
    inspection.summary.iter().for_each(|line| page.text(0, line));
    if !inspection.paths.is_empty() {
        page.gap();
        inspection.paths.iter().for_each(|(name, path)| page.text(2, &format!("{name}: {path}")));
    }
    devices(&mut page, inspection);
    groups(&mut page, inspection);
    smmus(&mut page, inspection);
    streams(&mut page, inspection);
    bridges(&mut page, inspection);
    msi::print(&mut page, &inspection.msi);
    reserved(&mut page, inspection);
    unconfined(&mut page, inspection);
    let both = [&inspection.refused, &inspection.unseen];
    let errors: Vec<&str> = both.into_iter().flatten().map(|refused| refused.error.told.as_str()).collect();
    refused(&mut page, errors.into_iter());
    if !inspection.remarks.is_empty() {
        page.heading("Remarks");
        inspection.remarks.iter().for_each(|remark| page.text(2, remark));
    }
    page.into_text()
}

fn devices(page: &mut Page, inspection: &Inspection) {
    let devices = &inspection.devices;
    page.heading(&format!("Devices: {}, {} enabled", devices.len(), devices.iter().filter(|one| one.enabled).count()));
    let mut table =
        Table::new(&[("name", Set::Path), ("may be assigned", Set::Left), ("with whom, and why not", Set::Wrap)]);
    for device in devices {
        let assign = &device.assign;
        table.row([device.name.clone(), assign.assignable.to_owned(), because(assign)]);
    }
    for bridge in &inspection.bridges {
        let assign = &bridge.assign;
        table.row([bridge.behind(), assign.assignable.to_owned(), because(assign)]);
    }
    table.print(page, 2);
    if devices.is_empty() && inspection.bridges.is_empty() {
        page.line("  none");
    }
    page.gap();
    page.text(
        2,
        "A name means its node in every report about this board, and can be given to `inspect`: the end of the node's \
         path, `a//b` for b somewhere below a. if marked: the default policy wants `xen,passthrough`, others may not. \
         Of functions the device tree knows no more than their host bridge's map: bus and aliases tie them too.",
    );
}

/// With whom something must be assigned, and why it may not.
pub(crate) fn because(assign: &Assign) -> String {
    let with = (!assign.with.is_empty()).then(|| format!("with {}", assign.with.join(", ")));
    let reason = Some(assign.reason.clone()).filter(|reason| !reason.is_empty());
    with.into_iter().chain(reason).collect::<Vec<_>>().join("; ")
}

fn groups(page: &mut Page, inspection: &Inspection) {
    if inspection.groups.is_empty() {
        return;
    }
    page.heading(&format!("Groups: {}", inspection.groups.len()));
    let mut table = Table::new(&[("", Set::Left), ("one", Set::Path), ("other", Set::Path), ("tied by", Set::Wrap)]);
    for (number, group) in inspection.groups.iter().enumerate() {
        for (at, tie) in group.ties.iter().enumerate() {
            let name = if at == 0 { format!("g{}", number.saturating_add(1)) } else { String::new() };
            table.row([name, tie.one.clone(), tie.other.clone(), tie.by.clone()]);
        }
    }
    table.print(page, 2);
}

fn smmus(page: &mut Page, inspection: &Inspection) {
    page.heading("SMMUs");
    let mut table = Table::new(&[
        ("name", Set::Left),
        ("compatible", Set::Path),
        ("on", Set::Left),
        ("base", Set::Right),
        ("size", Set::Right),
        ("cells", Set::Right),
        ("irqs", Set::Right),
        ("walks", Set::Left),
    ]);
    for smmu in &inspection.smmus {
        table.row([
            smmu.name.clone(),
            smmu.compatible.first().cloned().unwrap_or_default(),
            yes(smmu.enabled),
            format!("{:x}", smmu.base.0),
            format!("{:x}", smmu.size.0),
            smmu.iommu_cells.to_string(),
            format!("{}+{}", smmu.global_irqs, smmu.context_irqs),
            if smmu.coherent { "coherent" } else { "plain" }.to_owned(),
        ]);
    }
    table.print(page, 2);
    page.gap();
    let mut table = Table::new(&[
        ("name", Set::Left),
        ("entries", Set::Right),
        ("of", Set::Right),
        ("banks", Set::Right),
        ("of", Set::Right),
        ("context interrupt lines", Set::Wrap),
    ]);
    for smmu in &inspection.smmus {
        let entries = &smmu.entries;
        let least = if entries.merged_exact.is_some() { "≤" } else { "" };
        let couples = if smmu.lines.couples { " (couples domains)" } else { "" };
        table.row([
            smmu.name.clone(),
            format!("{} → {least}{}", entries.per_specifier, entries.merged),
            smmu.typical.entries.to_string(),
            smmu.banks.to_string(),
            smmu.typical.banks.to_string(),
            format!("{}{couples}", smmu.lines.what),
        ]);
    }
    table.print(page, 2);
    page.gap();
    page.text(
        2,
        "on: enabled, with all ancestors. base, size: hexadecimal. irqs: global + context. entries: needed, one for each \
         specifier → merged. banks: needed, one for each group or host bridge in a domain of its own. of: what a part sold \
         under that name has; what this one has only its ID registers say.",
    );
}

fn streams(page: &mut Page, inspection: &Inspection) {
    if inspection.devices.is_empty() {
        return;
    }
    page.heading("Streams");
    let mut table =
        Table::new(&[("device", Set::Path), ("SMMU", Set::Left), ("streams", Set::Wrap), ("group", Set::Left)]);
    for device in &inspection.devices {
        let number = inspection.groups.iter().position(|group| group.number == device.group);
        let group = number.map_or_else(String::new, |number| format!("g{}", number.saturating_add(1)));
        for (at, (path, streams)) in streams_by_smmu(device).into_iter().enumerate() {
            let (smmu, off) = smmu_name(inspection, path);
            let smmu = if off { smmu + " (off)" } else { smmu };
            let (name, group) = if at == 0 { (device.name.clone(), group.clone()) } else { Default::default() };
            table.row([name, smmu, streams, group]);
        }
    }
    table.print(page, 2);
    page.gap();
    page.text(2, "streams: ID, or ID/mask where a mask bit of 1 is ignored. Devices of one group share streams.");
}

/// What an SMMU is called, and whether it is disabled.
pub(crate) fn smmu_name(inspection: &Inspection, path: &str) -> (String, bool) {
    let smmu = inspection.smmus.iter().find(|smmu| smmu.path == path);
    smmu.map_or_else(|| (path.to_owned(), false), |smmu| (smmu.name.clone(), !smmu.enabled))
}

pub(crate) fn streams_by_smmu(device: &Device) -> Vec<(&str, String)> {
    let text = |stream: &StreamOf| masked(stream.id, stream.mask);
    let of_one = |streams: &[StreamOf]| streams.iter().map(text).collect::<Vec<_>>().join(" ");
    let chunks = device.streams.chunk_by(|one, next| one.smmu == next.smmu);
    chunks.filter_map(|chunk| Some((chunk.first()?.smmu.as_str(), of_one(chunk)))).collect()
}

fn masked(id: Hex, mask: Hex) -> String {
    if mask.0 == 0 { format!("{:#x}", id.0) } else { format!("{:#x}/{:#x}", id.0, mask.0) }
}

fn bridges(page: &mut Page, inspection: &Inspection) {
    page.heading(&format!("Host bridges: {}", inspection.bridges.len()));
    let mut table = Table::new(&[
        ("name", Set::Path),
        ("on", Set::Left),
        ("bus", Set::Left),
        ("mask", Set::Right),
        ("SMMU", Set::Left),
        ("requester IDs → streams", Set::Wrap),
    ]);
    for bridge in &inspection.bridges {
        for (at, (smmu, map)) in maps(inspection, bridge).into_iter().enumerate() {
            let bus = if bridge.is_pci { "PCI" } else { "other" }.to_owned();
            let (name, on, bus, mask) = match at {
                0 => (bridge.name.clone(), yes(bridge.enabled), bus, format!("{:x}", bridge.mask.0)),
                _ => Default::default(),
            };
            table.row([name, on, bus, mask, smmu, map]);
        }
    }
    table.print(page, 2);
    if inspection.bridges.is_empty() {
        page.line("  none");
    } else {
        page.gap();
        page.text(2, "Requester IDs of the bridge's buses, as they are after the map's mask; streams as above.");
    }
}

/// For each SMMU of a map what comes out.
pub(crate) fn maps(inspection: &Inspection, bridge: &Bridge) -> Vec<(String, String)> {
    if bridge.reached.is_empty() {
        let smmu = bridge.map.first().map(|mapped| smmu_name(inspection, &mapped.smmu).0).unwrap_or_default();
        return vec![(smmu, "none: the map is empty".to_owned())];
    }
    let chunks = bridge.reached.chunk_by(|one, next| one.smmu == next.smmu);
    let text = |chunk: &[Run]| {
        let smmu = chunk.first().map(|run| smmu_name(inspection, &run.smmu).0).unwrap_or_default();
        (smmu, chunk.iter().map(|run| outcome(bridge, run)).collect::<Vec<_>>().join("; "))
    };
    chunks.map(text).collect()
}

fn outcome(bridge: &Bridge, run: &Run) -> String {
    let range = |first: Hex| match run.length.0.checked_sub(1) {
        Some(more @ 1..) => format!("{:#x}..{:#x}", first.0, first.0.saturating_add(more)),
        _ => format!("{:#x}", first.0),
    };
    let rid = if bridge.masks_all() { "any".to_owned() } else { range(run.rid) };
    let mask = if run.stream_mask.0 == 0 { String::new() } else { format!("/{:#x}", run.stream_mask.0) };
    format!("{rid}{HARD_BLANK}→{HARD_BLANK}{}{mask}", range(run.stream))
}

fn reserved(page: &mut Page, inspection: &Inspection) {
    if inspection.reserved.is_empty() {
        return;
    }
    page.heading("Reserved addresses");
    let mut table = Table::new(&[
        ("device", Set::Path),
        ("addresses", Set::Left),
        ("memory", Set::Left),
        ("by", Set::Path),
        ("at take-over", Set::Wrap),
    ]);
    for one in &inspection.reserved {
        let range = |first: Hex| format!("{:#x}..{:#x}", first.0, first.0.saturating_add(one.size.0.saturating_sub(1)));
        let then = match (one.offered, one.memory) {
            (true, _) => "its streams go on",
            (false, None) => "a hole: never map these",
            (false, Some(_)) => "no streams are known: nothing can go on",
        };
        let memory = one.memory.map_or_else(|| "none".to_owned(), |memory| format!("{:#x}", memory.0));
        table.row([one.device_name.clone(), range(one.iova), memory, one.name.clone(), then.to_owned()]);
    }
    table.print(page, 2);
}

fn unconfined(page: &mut Page, inspection: &Inspection) {
    if inspection.unconfined.is_empty() {
        return;
    }
    page.heading(&format!("Cannot be confined: {}", inspection.unconfined.len()));
    let mut table = Table::new(&[("name", Set::Path), ("compatible", Set::Path), ("does DMA, as it seems", Set::Wrap)]);
    for one in &inspection.unconfined {
        table.row([one.name.clone(), one.compatible.clone(), one.why.clone()]);
    }
    table.print(page, 2);
    page.gap();
    page.text(
        2,
        "Enabled, and no SMMUv1 or SMMUv2 sees their DMA. That they do DMA is read from their nodes, and a guess.",
    );
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
