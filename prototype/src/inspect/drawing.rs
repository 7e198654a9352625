//! The board as a picture: devices in their groups, the SMMUs that see them, and where MSIs go.
//!
//! Three columns. A line from a device to an SMMU is a stream; one from an SMMU to a controller stands for the MSIs of
//! devices behind it, which it translates as any other DMA. Attributes are numbers and words of this file: what comes from
//! a blob is text.

use std::collections::{BTreeMap, BTreeSet};

use svg::Document;
use svg::node::element::path::Data;
use svg::node::element::{Group, Line, Path, Rectangle, Text, Title};

use super::devices::Device;
use super::msi::Said;
use super::smmus::Smmu;
use super::{Inspection, text};

/// The picture.
pub(crate) fn draw(inspection: &Inspection) -> Document {
    let plan = Plan::of(inspection);
    let height = plan.height();
    let mut drawing = Document::new().set("viewBox", (0, 0, WIDTH, height)).set("class", "board").set("role", "img");
    drawing = drawing.add(Title::new("Devices, the SMMUs that see them, and where their MSIs go"));
    let controllers = (!plan.controllers.is_empty()).then_some((CONTROLLERS, "MSI controllers"));
    for (x, title) in [(DEVICES, "devices, by group"), (SMMUS, "SMMUs")].into_iter().chain(controllers) {
        drawing = drawing.add(label(x, HEAD - 14, title).set("class", "head"));
    }
    for (from, to) in &plan.streams {
        drawing = drawing.add(curve(DEVICES + DEVICE_WIDTH, *from, SMMUS, *to).set("class", "stream"));
    }
    for (from, to) in &plan.messages {
        drawing = drawing.add(curve(SMMUS + SMMU_WIDTH, *from, CONTROLLERS, *to).set("class", "msi"));
    }
    for group in &plan.groups {
        drawing = drawing.add(group_box(group));
    }
    for smmu in &plan.smmus {
        drawing = drawing.add(smmu_box(smmu));
    }
    for (name, y) in &plan.controllers {
        let place = frame(CONTROLLERS, y.saturating_sub(ROW / 2 + 3), CONTROLLER_WIDTH, ROW + 6);
        drawing = drawing.add(place.set("class", "controller")).add(label(CONTROLLERS + 10, y.saturating_add(5), name));
    }
    drawing
}

/// What stands where.
struct Plan<'a> {
    groups: Vec<Boxed>,
    smmus: Vec<(&'a Smmu, i32)>,
    controllers: Vec<(String, i32)>,
    /// Heights of the two ends.
    streams: BTreeSet<(i32, i32)>,
    messages: BTreeSet<(i32, i32)>,
}

/// A group of devices, or one of its own.
struct Boxed {
    top: i32,
    rows: Vec<Row>,
}

struct Row {
    name: String,
    class: &'static str,
    /// Paths of the SMMUs that see it.
    smmus: Vec<String>,
    path: String,
}

impl<'a> Plan<'a> {
    fn of(inspection: &'a Inspection) -> Self {
        let mut plan = Self {
            groups: Vec::new(),
            smmus: Vec::new(),
            controllers: Vec::new(),
            streams: BTreeSet::new(),
            messages: BTreeSet::new(),
        };
        let mut rest: Vec<Vec<Row>> = rows(inspection);
        let mut y = HEAD;
        let mut lanes: BTreeMap<&str, i32> = BTreeMap::new();
        for smmu in &inspection.smmus {
            let sees = |rows: &Vec<Row>| rows.iter().any(|row| row.smmus.first() == Some(&smmu.path));
            let (here, elsewhere) = rest.into_iter().partition(sees);
            rest = elsewhere;
            let top = y;
            for rows in here {
                y = plan.place(rows, y);
            }
            // An SMMU stands beside the middle of what it sees, and below the one before.
            let bottom = y.max(top.saturating_add(SMMU_HEIGHT + GAP));
            let middle = top.saturating_add(bottom.saturating_sub(GAP)) / 2;
            lanes.insert(&smmu.path, middle);
            plan.smmus.push((smmu, middle));
            y = bottom;
        }
        for rows in rest {
            y = plan.place(rows, y);
        }
        plan.connect(inspection, &lanes);
        plan
    }

    fn place(&mut self, rows: Vec<Row>, top: i32) -> i32 {
        let height = i32::try_from(rows.len()).unwrap_or(0).saturating_mul(ROW);
        self.groups.push(Boxed { top, rows });
        top.saturating_add(height).saturating_add(GAP)
    }

    fn connect(&mut self, inspection: &Inspection, lanes: &BTreeMap<&str, i32>) {
        let mut controllers: BTreeMap<String, i32> = BTreeMap::new();
        let mut next = HEAD.saturating_add(SMMU_HEIGHT / 2);
        for group in &self.groups {
            for (number, row) in (0_i32..).zip(&group.rows) {
                let at = group.top.saturating_add(number.saturating_mul(ROW)).saturating_add(ROW / 2);
                for lane in row.smmus.iter().filter_map(|path| lanes.get(path.as_str())) {
                    self.streams.insert((at, *lane));
                }
                let said = inspection.msi.iter().filter(|one| one.path == row.path).map(|one| &one.said);
                let named = said.flat_map(|said| match said {
                    Said::Routes { controllers, .. } => controllers.as_slice(),
                    Said::Wrong { .. } => &[],
                });
                for controller in named {
                    // Beside the first SMMU that it is reached through, below the one before.
                    let beside = row.smmus.iter().find_map(|path| lanes.get(path.as_str())).copied().unwrap_or(next);
                    let place = *controllers.entry(controller.name.clone()).or_insert_with(|| {
                        let place = next.max(beside);
                        next = place.saturating_add(ROW * 2);
                        place
                    });
                    for lane in row.smmus.iter().filter_map(|path| lanes.get(path.as_str())) {
                        self.messages.insert((*lane, place));
                    }
                }
            }
        }
        self.controllers = controllers.into_iter().collect();
    }

    fn height(&self) -> i32 {
        let devices = self
            .groups
            .iter()
            .map(|group| group.top.saturating_add(i32::try_from(group.rows.len()).unwrap_or(0).saturating_mul(ROW)));
        let smmus = self.smmus.iter().map(|(_, middle)| middle.saturating_add(SMMU_HEIGHT / 2));
        let controllers = self.controllers.iter().map(|(_, y)| y.saturating_add(ROW));
        devices.chain(smmus).chain(controllers).max().unwrap_or(HEAD).saturating_add(GAP)
    }
}

/// Devices by group, then host bridges.
fn rows(inspection: &Inspection) -> Vec<Vec<Row>> {
    let mut groups: Vec<(usize, Vec<Row>)> = Vec::new();
    for device in &inspection.devices {
        let row = Row {
            name: device.name.clone(),
            class: class(device.enabled, device.assign.assignable),
            smmus: smmus_of(device),
            path: device.path.clone(),
        };
        match groups.iter_mut().find(|(number, _)| *number == device.group) {
            Some((_, rows)) => rows.push(row),
            None => groups.push((device.group, vec![row])),
        }
    }
    let bridges = inspection.bridges.iter().map(|bridge| {
        let mut smmus: Vec<String> = bridge.map.iter().map(|mapped| mapped.smmu.clone()).collect();
        smmus.dedup();
        vec![Row {
            name: bridge.behind(),
            class: class(bridge.enabled, bridge.assign.assignable),
            smmus,
            path: bridge.path.clone(),
        }]
    });
    groups.into_iter().map(|(_, rows)| rows).chain(bridges).collect()
}

fn smmus_of(device: &Device) -> Vec<String> {
    text::streams_by_smmu(device).into_iter().map(|(smmu, _)| smmu.to_owned()).collect()
}

const fn class(enabled: bool, assignable: &str) -> &'static str {
    match (enabled, assignable.as_bytes()) {
        (false, _) => "off",
        (true, b"no") => "no",
        (true, b"yes") => "yes",
        (true, _) => "may",
    }
}

fn group_box(group: &Boxed) -> Group {
    let height = i32::try_from(group.rows.len()).unwrap_or(0).saturating_mul(ROW);
    let class = if group.rows.len() > 1 { "group several" } else { "group" };
    let mut drawn = Group::new().add(frame(DEVICES, group.top, DEVICE_WIDTH, height).set("class", class));
    for (number, row) in (0_i32..).zip(&group.rows) {
        let y = group.top.saturating_add(number.saturating_mul(ROW));
        if number > 0 {
            let line = Line::new().set("x1", DEVICES).set("x2", DEVICES + DEVICE_WIDTH).set("y1", y).set("y2", y);
            drawn = drawn.add(line.set("class", "tie"));
        }
        let mark = frame(DEVICES, y.saturating_add(3), 5, ROW - 6).set("class", row.class);
        drawn = drawn
            .add(mark)
            .add(label(DEVICES + 12, y.saturating_add(ROW / 2 + 4), &fitting(&row.name)).set("class", row.class));
    }
    drawn
}

fn smmu_box((smmu, middle): &(&Smmu, i32)) -> Group {
    let top = middle.saturating_sub(SMMU_HEIGHT / 2);
    let class = if smmu.enabled { "smmu" } else { "smmu off" };
    let (needs, banks) = if smmu.enabled {
        let needs = format!("needs {} of {} entries", smmu.entries.merged, smmu.typical.entries);
        (needs, format!("and {} of {} banks", smmu.banks, smmu.typical.banks))
    } else {
        ("disabled".to_owned(), String::new())
    };
    Group::new()
        .add(frame(SMMUS, top, SMMU_WIDTH, SMMU_HEIGHT).set("class", class))
        .add(label(SMMUS + 10, top.saturating_add(20), &smmu.name).set("class", "name"))
        .add(label(SMMUS + 10, top.saturating_add(38), &needs))
        .add(label(SMMUS + 10, top.saturating_add(54), &banks))
}

/// A name as wide as its box: the picture is beside the tables, which have it in full.
fn fitting(name: &str) -> String {
    let count = name.chars().count();
    if count <= LETTERS {
        return name.to_owned();
    }
    let tail: String = name.chars().skip(count.saturating_sub(LETTERS.saturating_sub(1))).collect();
    format!("…{tail}")
}

fn frame(x: i32, y: i32, width: i32, height: i32) -> Rectangle {
    Rectangle::new().set("x", x).set("y", y).set("width", width).set("height", height).set("rx", 4)
}

fn label(x: i32, y: i32, text: &str) -> Text {
    Text::new(text).set("x", x).set("y", y)
}

fn curve(from: i32, from_y: i32, to: i32, to_y: i32) -> Path {
    let middle = from.saturating_add(to) / 2;
    let data = Data::new().move_to((from, from_y)).cubic_curve_to((middle, from_y, middle, to_y, to, to_y));
    Path::new().set("d", data)
}

const WIDTH: i32 = 960;
const HEAD: i32 = 40;
const ROW: i32 = 24;
const GAP: i32 = 10;
const DEVICES: i32 = 10;
const DEVICE_WIDTH: i32 = 330;
const SMMUS: i32 = 430;
const SMMU_WIDTH: i32 = 220;
const SMMU_HEIGHT: i32 = 64;
const CONTROLLERS: i32 = 720;
const CONTROLLER_WIDTH: i32 = 230;
/// How many letters a device's box holds.
const LETTERS: usize = 40;
