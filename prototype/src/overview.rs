//! What the machine is made of: SMMUs, host bridges and devices, before anything is assigned.

use std::collections::BTreeMap;

use iommu_assign::assign::{DeviceKey, Stream, StreamMask};
use iommu_assign::smmu::{Architecture, Geometry};

use crate::inspect;
use crate::report::{Page, Set, Table, WIDTH, broken, printable, width, wrapped};
use crate::stage::many;
use crate::world::{State, Subject, World};

/// Prints all of it.
pub(crate) fn print(page: &mut Page, world: &World) {
    page.text(0, &format!("prototype {} on {}", env!("CARGO_PKG_VERSION"), world.title));
    let (unit_count, device_count) = (many(world.units.len(), "SMMU"), many(world.subjects.len(), "device"));
    page.text(
        0,
        &format!("Shown: {unit_count}, modelled register by register; {device_count}; guests that get them and lose them again."),
    );
    page.text(0, "A line is `ok` where what came out must come out. Its last numbers: registers read and written.");
    smmus(page, world);
    bridges(page, world);
    devices(page, world);
    inspect::text::refused(page, world.refused.iter().map(String::as_str));
}

fn smmus(page: &mut Page, world: &World) {
    page.heading("SMMUs");
    for (index, unit) in world.units.iter().enumerate() {
        if index > 0 {
            page.gap();
        }
        let key = unit.key.to_string();
        let room = WIDTH.saturating_sub(4).saturating_sub(width(&key));
        let mut start = format!("  {key}  ");
        for line in broken(&printable(&unit.path), room) {
            page.line(format!("{start}{line}"));
            start = " ".repeat(width(&start));
        }
        let (global, context) = unit.irqs;
        let walks = if unit.coherent { ", coherent walks" } else { "" };
        let firmware = format!(
            "{}; {:#x} bytes, {global} global and {context} context interrupts{walks}",
            unit.compatible, unit.size
        );
        said(page, "firmware", &firmware);
        match &unit.state {
            State::Disabled => said(page, "state", "disabled by firmware: not touched"),
            State::Unusable(why) => said(page, "state", &format!("not in service: {why}")),
            State::InService(service) => {
                said(page, "part", &part(&service.geometry));
                said(page, "banks", &banks(&service.geometry));
                let quirks = service.quirks.iter().map(|quirk| format!("Q{} {}", quirk.number, quirk.what));
                let quirks: Vec<String> = quirks.collect();
                if !quirks.is_empty() {
                    said(page, "quirks", &quirks.join("; "));
                }
                let cost = service.cost;
                said(page, "probe", &format!("{} reads, {} writes; every stream faults", cost.reads, cost.writes));
            }
        }
    }
}

fn said(page: &mut Page, what: &str, text: &str) {
    let lines = wrapped(&printable(text), WIDTH.saturating_sub(15));
    for (index, line) in lines.iter().enumerate() {
        page.line(format!("    {:<9}  {line}", if index == 0 { what } else { "" }));
    }
}

fn part(geometry: &Geometry) -> String {
    let version = if geometry.architecture == Architecture::V1 { 1 } else { 2 };
    let streams = if geometry.matching { "match entries" } else { "indexed streams" };
    let (major, minor) = (geometry.revision >> 4, geometry.revision & 0xf);
    let bits = geometry.stream_id_bits;
    format!("SMMUv{version} r{major}p{minor}, {} {streams}, {bits}-bit stream IDs", geometry.entries)
}

fn banks(geometry: &Geometry) -> String {
    let only = match geometry.stage2_banks {
        0 => String::new(),
        only => format!(" ({only} for stage 2 only)"),
    };
    let granules = geometry.long_granules;
    let has = [(granules.kib4, "4K"), (granules.kib16, "16K"), (granules.kib64, "64K")];
    let mut formats: Vec<String> = Vec::new();
    let long: Vec<&str> = has.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect();
    if !long.is_empty() {
        formats.push(format!("AArch64 {}", long.join("/")));
    }
    if geometry.aarch32_long {
        formats.push("AArch32".to_owned());
    }
    let (from, to) = (geometry.ipa_bits, geometry.output_bits);
    format!("{}{only}, {from}-bit IPA to {to}-bit PA, tables {}", geometry.banks, formats.join(" and "))
}

fn bridges(page: &mut Page, world: &World) {
    if world.bridges.is_empty() {
        return;
    }
    page.heading("Host bridges");
    let mut table =
        Table::new(&[("node", Set::Path), ("segment", Set::Right), ("buses", Set::Left), ("behind it", Set::Wrap)]);
    for bridge in &world.bridges {
        let (first, last) = (bridge.host.buses.start().0, bridge.host.buses.end().0);
        let found = match bridge.found.functions.len() {
            0 => None,
            1 => Some("1 function found".to_owned()),
            found => Some(format!("{found} functions found")),
        };
        let behind: Vec<String> = found.into_iter().chain(bridge.remarks.iter().cloned()).collect();
        let segment = bridge.host.segment.0.to_string();
        table.row([world.names.name(&bridge.path), segment, format!("{first:02x}-{last:02x}"), behind.join("; ")]);
    }
    table.print(page, 2);
}

fn devices(page: &mut Page, world: &World) {
    page.heading("Devices");
    let groups = groups(world);
    let mut table = Table::new(&[
        ("source", Set::Left),
        ("device", Set::Path),
        ("SMMU", Set::Left),
        ("streams", Set::Wrap),
        ("group", Set::Left),
        ("reads", Set::Right),
        ("writes", Set::Right),
    ]);
    let added = || world.subjects.iter().filter(|subject| subject.refused.is_none());
    for subject in added() {
        let group = groups.get(&subject.key).cloned().unwrap_or_default();
        for (index, chunk) in subject.spec.streams.chunk_by(|one, next| one.iommu() == next.iommu()).enumerate() {
            let smmu = chunk.first().map_or_else(String::new, |stream| stream.iommu().to_string());
            let (source, title, group, reads, writes) = match index {
                0 => (
                    subject.key.source().to_string(),
                    title(subject),
                    group.clone(),
                    subject.cost.reads.to_string(),
                    subject.cost.writes.to_string(),
                ),
                _ => Default::default(),
            };
            table.row([source, title, smmu, streams(chunk), group, reads, writes]);
        }
    }
    table.print(page, 2);
    if added().next().is_none() {
        page.line("  none can be added");
    }
    notes(page, world);
    let mut refused = Table::new(&[("source", Set::Left), ("refused", Set::Path), ("why", Set::Wrap)]);
    for subject in &world.subjects {
        if let Some(why) = &subject.refused {
            refused.row([subject.key.source().to_string(), title(subject), why.clone()]);
        }
    }
    if world.subjects.iter().any(|subject| subject.refused.is_some()) {
        page.gap();
    }
    refused.print(page, 2);
}

fn notes(page: &mut Page, world: &World) {
    let disabled = match world.disabled {
        0 => String::new(),
        1 => "One more device is disabled by firmware. ".to_owned(),
        more => format!("{more} more devices are disabled by firmware. "),
    };
    page.gap();
    page.text(
        2,
        &format!(
            "{disabled}Streams: ID, or ID/mask where mask bits are ignored. Devices of one group cannot be told apart. \
             Reads and writes: register accesses to add the device."
        ),
    );
}

fn title(subject: &Subject) -> String {
    let label = &subject.label.to_string();
    if subject.kind.is_empty() { label.to_owned() } else { format!("{label} {}", subject.kind) }
}

fn streams(streams: &[Stream]) -> String {
    let text = |stream: &Stream| match stream.mask() {
        StreamMask::NONE => stream.id().to_string(),
        mask => format!("{}/{mask}", stream.id()),
    };
    streams.iter().map(text).collect::<Vec<_>>().join(" ")
}

/// Names for the groups that have more than one member.
fn groups(world: &World) -> BTreeMap<DeviceKey, String> {
    let mut members: BTreeMap<DeviceKey, Vec<DeviceKey>> = BTreeMap::new();
    let mut order = Vec::new();
    for subject in &world.subjects {
        if let Some(info) = world.service.find(subject.key) {
            let group = members.entry(info.group).or_default();
            if group.is_empty() {
                order.push(info.group);
            }
            group.push(subject.key);
        }
    }
    let shared = order.iter().filter_map(|group| members.get(group)).filter(|group| group.len() > 1);
    let named = shared.zip(1..).map(|(group, number)| (group, format!("g{number}")));
    named.flat_map(|(group, name): (_, String)| group.iter().map(move |key| (*key, name.clone()))).collect()
}
