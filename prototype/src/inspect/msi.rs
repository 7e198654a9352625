//! Where the message signalled interrupts of devices and bridges go: that part of `inspect`.

use std::collections::BTreeMap;

use iommu_assign::assign::Granule;
use iommu_assign::dt::{Board, DtError, Msi, MsiController, MsiControllerKind, MsiIsolation, NodeId};
use serde::Serialize;

use super::{Hex, Told};
use crate::names::Names;
use crate::report::{HARD_BLANK, Page, Set, Table, printable};

/// What a device or a bridge says of its MSIs, or why that cannot be followed.
#[derive(Debug, Serialize)]
pub(crate) struct Messages {
    pub(crate) path: String,
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) said: Said,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Said {
    Wrong {
        error: Told,
    },
    Routes {
        isolation: &'static str,
        controllers: Vec<Controller>,
        ids: Vec<Ids>,
        /// What is wrong with `msi-parent` beside a map, which counts.
        #[serde(skip_serializing_if = "Option::is_none")]
        own_error: Option<Told>,
    },
}

#[derive(Debug, Serialize)]
pub(crate) struct Controller {
    pub(crate) path: String,
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) enabled: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) doorbell: Option<Hex>,
    /// To map in a guest's stage 2, where pages have 4 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    page: Option<Hex>,
}

/// IDs at a controller: the node's own without a requester ID, else those of functions.
#[derive(Debug, Serialize)]
pub(crate) struct Ids {
    controller: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    rid: Option<Hex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mask: Option<Hex>,
    id: Hex,
    length: Hex,
}

/// What all devices and bridges say that say anything, in the order of the blob.
pub(crate) fn read(board: &Board<'_>, names: &Names) -> Vec<Messages> {
    let devices = board.devices().iter().map(|device| (device.node, &device.path));
    let bridges = board.host_bridges().iter().map(|bridge| (bridge.node, &bridge.path));
    // A node can be both.
    let nodes: BTreeMap<NodeId, &String> = devices.chain(bridges).collect();
    nodes.into_iter().filter_map(|(node, path)| Messages::of(path, names, board.msi(node))).collect()
}

impl Messages {
    fn of(path: &str, names: &Names, read: Result<Option<Msi>, DtError>) -> Option<Self> {
        let said = match read {
            Ok(msi) => Said::of(&msi?, names),
            Err(error) => Said::Wrong { error: Told::of(&error, names) },
        };
        Some(Self { path: path.to_owned(), name: names.name(path), said })
    }
}

impl Said {
    fn of(msi: &Msi, names: &Names) -> Self {
        let name = |node| msi.controller(node).map_or_else(String::new, |controller| controller.path.clone());
        let own = msi.own.iter().filter_map(|target| {
            let (controller, id) = (name(target.controller), Hex(target.id?.into()));
            Some(Ids { controller, rid: None, mask: None, id, length: Hex(1) })
        });
        let mapped = msi.map.iter().flat_map(|map| map.entries().iter().map(move |entry| (map.mask(), entry)));
        let mapped = mapped.map(|(mask, entry)| Ids {
            controller: name(entry.controller),
            rid: Some(Hex(entry.rid_base.into())),
            mask: Some(Hex(mask.into())),
            id: Hex(entry.id_base.into()),
            length: Hex(entry.length.into()),
        });
        Self::Routes {
            isolation: isolation(msi.isolation()),
            controllers: msi.controllers.iter().map(|one| Controller::of(one, names)).collect(),
            ids: own.chain(mapped).collect(),
            own_error: msi.own_error.as_ref().map(|error| Told::of(error, names)),
        }
    }
}

impl Controller {
    fn of(controller: &MsiController, names: &Names) -> Self {
        Self {
            path: controller.path.clone(),
            name: names.name(&controller.path),
            kind: match controller.kind {
                MsiControllerKind::GicV3Its => "ITS",
                MsiControllerKind::GicV2m => "GICv2m",
                _ => "unknown",
            },
            enabled: controller.enabled,
            doorbell: controller.doorbell.map(|doorbell| Hex(doorbell.register().value())),
            page: controller.doorbell.map(|doorbell| Hex(doorbell.page(Granule::Kib4).value())),
        }
    }
}

/// Who can raise whose interrupts, in two words.
pub(crate) const fn isolation(isolation: MsiIsolation) -> &'static str {
    match isolation {
        MsiIsolation::ByDevice => "by device",
        MsiIsolation::NotIsolated => "not isolated",
        _ => "unknown",
    }
}

/// The same for people; nothing where no node says anything.
pub(crate) fn print(page: &mut Page, messages: &[Messages]) {
    if messages.is_empty() {
        return;
    }
    page.heading("Message interrupts");
    let mut table = Table::new(&[
        ("node", Set::Path),
        ("controller", Set::Path),
        ("kind", Set::Left),
        ("doorbell", Set::Right),
        ("apart", Set::Left),
        ("IDs there", Set::Wrap),
    ]);
    for one in messages {
        match &one.said {
            Said::Wrong { error } => {
                table.row([
                    one.name.clone(),
                    String::new(),
                    String::new(),
                    String::new(),
                    "?".to_owned(),
                    printable(&error.told),
                ]);
            }
            Said::Routes { controllers, ids, own_error, .. } => {
                for (at, controller) in controllers.iter().enumerate() {
                    let name = if at == 0 { one.name.clone() } else { String::new() };
                    let off = if controller.enabled { "" } else { " (off)" };
                    table.row([
                        name,
                        controller.name.clone(),
                        format!("{}{off}", if controller.kind == "unknown" { "?" } else { controller.kind }),
                        controller.doorbell.map_or_else(|| "?".to_owned(), |doorbell| format!("{:x}", doorbell.0)),
                        controller.told_apart().to_owned(),
                        controller.ids(ids),
                    ]);
                }
                if let Some(error) = own_error {
                    let beside = format!("the map counts; beside it: {}", error.told);
                    table.row([String::new(), String::new(), String::new(), String::new(), String::new(), beside]);
                }
            }
        }
    }
    table.print(page, 2);
    page.gap();
    page.text(
        2,
        "doorbell: where MSIs are written; a guest whose device interrupts has its page mapped. apart: devices are told apart; if not, \
         such a guest raises any interrupt of the controller. IDs: the node's own, or requester IDs → IDs.",
    );
}

impl Controller {
    /// What IDs there are at this one.
    pub(crate) fn ids(&self, ids: &[Ids]) -> String {
        let here: Vec<&Ids> = ids.iter().filter(|ids| ids.controller == self.path).collect();
        let mask = here.iter().find_map(|ids| ids.mask).filter(|mask| mask.0 != u64::from(u32::MAX));
        let mask = mask.map(|mask| format!("mask{HARD_BLANK}{:x}", mask.0));
        let none = (here.is_empty() && self.kind == "ITS").then(|| "not said by firmware".to_owned());
        here.into_iter().map(Ids::text).chain(mask).chain(none).collect::<Vec<_>>().join("; ")
    }

    pub(crate) fn told_apart(&self) -> &'static str {
        match self.kind {
            "ITS" => "yes",
            "GICv2m" => "NO",
            _ => "?",
        }
    }
}

impl Ids {
    fn text(&self) -> String {
        let range = |first: Hex| match self.length.0.checked_sub(1) {
            Some(more @ 1..) => format!("{:#x}..{:#x}", first.0, first.0.saturating_add(more)),
            _ => format!("{:#x}", first.0),
        };
        match self.rid {
            Some(rid) => format!("{}{HARD_BLANK}→{HARD_BLANK}{}", range(rid), range(self.id)),
            None => range(self.id),
        }
    }
}
