//! `inspect` as a page: one file that needs no network, and no script to be read.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::devices::Assign;
use super::msi::Said;
use super::{Inspection, drawing, text};
use crate::report::HARD_BLANK;

/// The whole page.
pub(crate) fn page(inspection: &Inspection) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy"
                    content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";
                title { (inspection.title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (inspection.model.as_deref().unwrap_or(&inspection.title)) }
                    p.quiet { (inspection.compatible.join(", ")) }
                    ul.summary { @for line in &inspection.summary { li { (line) } } }
                    p.filter hidden {
                        label { "Filter " input type="search" id="filter" placeholder="a part of a name"; }
                        " " span id="count" role="status" {}
                    }
                }
                main {
                    section.picture { h2 { "Picture" } div.scroll { (PreEscaped(drawing::draw(inspection).to_string())) } (legend()) }
                    (devices(inspection))
                    (groups(inspection))
                    (smmus(inspection))
                    (streams(inspection))
                    (bridges(inspection))
                    (messages(inspection))
                    (reserved(inspection))
                    (unconfined(inspection))
                    (told(inspection))
                }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    };
    page.into_string()
}

fn legend() -> Markup {
    html! {
        p.quiet {
            "Bars: " span.yes { "may be assigned" } ", " span.may { "if marked" } ", " span.no { "must not be" } ", "
            span.off { "disabled" } ". Devices in one box are one group. A dashed line is where MSIs go."
        }
    }
}

/// A table with a heading; nothing where there are no rows.
fn table(title: &str, columns: &[&str], rows: &[Vec<Markup>], note: &str) -> Markup {
    html! {
        @if !rows.is_empty() {
            section {
                h2 { (title) }
                div.scroll {
                    table {
                        thead { tr { @for column in columns { th scope="col" { (column) } } } }
                        tbody {
                            @for row in rows {
                                tr { @for (cell, column) in row.iter().zip(columns) { td data-of=(column) { (cell) } } }
                            }
                        }
                    }
                }
                @if !note.is_empty() { p.quiet { (note) } }
            }
        }
    }
}

fn plain(text: &str) -> Markup {
    html! { (text.replace(HARD_BLANK, "\u{a0}")) }
}

fn code(text: &str) -> Markup {
    html! { code { (text) } }
}

fn verdict(assign: &Assign) -> Markup {
    let class = match assign.assignable {
        "yes" => "yes",
        "no" => "no",
        _ => "may",
    };
    html! { span class=(class) { (assign.assignable) } }
}

fn devices(inspection: &Inspection) -> Markup {
    let device = inspection.devices.iter().map(|device| {
        let why = plain(&text::because(&device.assign));
        vec![code(&device.name), code(&device.compatible), verdict(&device.assign), why, code(&device.path)]
    });
    let functions = inspection.bridges.iter().map(|bridge| {
        let why = plain(&text::because(&bridge.assign));
        vec![code(&bridge.behind()), code(&bridge.compatible), verdict(&bridge.assign), why, code(&bridge.path)]
    });
    let rows: Vec<_> = device.chain(functions).collect();
    let columns = ["name", "compatible", "may be assigned", "with whom, and why not", "path"];
    table("Devices", &columns, &rows, "if marked: the default policy wants `xen,passthrough`; another may not.")
}

fn groups(inspection: &Inspection) -> Markup {
    let mut rows = Vec::new();
    for (number, group) in (1..).zip(&inspection.groups) {
        for tie in &group.ties {
            rows.push(vec![plain(&format!("g{number}")), code(&tie.one), code(&tie.other), plain(&tie.by)]);
        }
    }
    table("Groups", &["group", "one", "other", "tied by"], &rows, "Devices of one group have the same owner.")
}

fn smmus(inspection: &Inspection) -> Markup {
    let rows: Vec<_> = inspection
        .smmus
        .iter()
        .map(|smmu| {
            let couples = if smmu.lines.couples { "; couples domains" } else { "" };
            vec![
                code(&smmu.name),
                code(smmu.compatible.first().map_or("", String::as_str)),
                plain(if smmu.enabled { "yes" } else { "no" }),
                plain(&format!("{} → {} of {}", smmu.entries.per_specifier, smmu.entries.merged, smmu.typical.entries)),
                plain(&format!("{} of {}", smmu.banks, smmu.typical.banks)),
                plain(&format!("{}{couples}", smmu.lines.what)),
            ]
        })
        .collect();
    let columns = ["name", "compatible", "on", "entries", "banks", "context interrupt lines"];
    let note = "entries: needed, one for each specifier → merged. banks: needed, one for each group or host bridge. of: what \
                a part sold under that name has; what this one has only its ID registers say.";
    table("SMMUs", &columns, &rows, note)
}

fn streams(inspection: &Inspection) -> Markup {
    let mut rows = Vec::new();
    for device in &inspection.devices {
        for (smmu, streams) in text::streams_by_smmu(device) {
            let (smmu, off) = text::smmu_name(inspection, smmu);
            let smmu = html! { code { (smmu) } @if off { " (off)" } };
            rows.push(vec![code(&device.name), smmu, code(&streams)]);
        }
    }
    table("Streams", &["device", "SMMU", "streams"], &rows, "ID, or ID/mask where a mask bit of 1 is ignored.")
}

fn bridges(inspection: &Inspection) -> Markup {
    let mut rows = Vec::new();
    for bridge in &inspection.bridges {
        for (smmu, map) in text::maps(inspection, bridge) {
            let mask = format!("{:#x}", bridge.mask.0);
            rows.push(vec![code(&bridge.name), plain(&mask), code(&smmu), plain(&map)]);
        }
    }
    let columns = ["name", "mask", "SMMU", "requester IDs → streams"];
    table("Host bridges", &columns, &rows, "Requester IDs of the bridge's buses, as they are after the map's mask.")
}

fn messages(inspection: &Inspection) -> Markup {
    let mut rows = Vec::new();
    for one in &inspection.msi {
        match &one.said {
            Said::Wrong { error } => rows.push(vec![code(&one.name), html! {}, html! {}, html! {}, plain(&error.told)]),
            Said::Routes { controllers, ids, own_error, .. } => {
                for controller in controllers {
                    let doorbell = controller.doorbell.map_or_else(|| "?".to_owned(), |at| format!("{:#x}", at.0));
                    let kind = format!("{}{}", controller.kind, if controller.enabled { "" } else { " (off)" });
                    let ids = controller.ids(ids);
                    let ids = own_error
                        .as_ref()
                        .map_or(ids.clone(), |error| format!("{ids}; beside the map: {}", error.told));
                    let place = html! { code { (controller.name) } " " (kind) };
                    let apart = plain(controller.told_apart());
                    rows.push(vec![code(&one.name), place, code(&doorbell), apart, plain(&ids)]);
                }
            }
        }
    }
    let columns = ["node", "controller", "doorbell", "tells devices apart", "IDs there"];
    table("Message interrupts", &columns, &rows, "A guest whose device interrupts has the doorbell's page mapped.")
}

fn reserved(inspection: &Inspection) -> Markup {
    let rows: Vec<_> = inspection
        .reserved
        .iter()
        .map(|one| {
            let last = one.iova.0.saturating_add(one.size.0.saturating_sub(1));
            let memory = one.memory.map_or_else(|| "none: a hole".to_owned(), |memory| format!("{:#x}", memory.0));
            let addresses = format!("{:#x}..{last:#x}", one.iova.0);
            vec![code(&one.device_name), code(&addresses), code(&memory), code(&one.path)]
        })
        .collect();
    table("Reserved addresses", &["device", "addresses", "memory", "by"], &rows, "")
}

fn unconfined(inspection: &Inspection) -> Markup {
    let row = |one: &super::unconfined::Unconfined| vec![code(&one.name), code(&one.compatible), plain(&one.why)];
    let rows: Vec<_> = inspection.unconfined.iter().map(row).collect();
    let note =
        "Enabled, and no SMMUv1 or SMMUv2 sees their DMA. That they do DMA is read from their nodes, and a guess.";
    table("Cannot be confined", &["name", "compatible", "does DMA, as it seems"], &rows, note)
}

fn told(inspection: &Inspection) -> Markup {
    let refused = inspection.refused.iter().chain(&inspection.unseen).map(|one| vec![plain(&one.error.told)]);
    let rows: Vec<_> = refused.collect();
    html! {
        (table("Refused nodes", &["what is wrong"], &rows, ""))
        @if !inspection.remarks.is_empty() {
            section { h2 { "Remarks" } ul { @for remark in &inspection.remarks { li { (remark) } } } }
        }
    }
}

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
