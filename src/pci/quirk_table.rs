//! Functions that do otherwise than their registers say: that send as somebody else, or that are kept apart though no
//! capability says so.
//!
//! [`KNOWN_QUIRKS`] has the public, well-known parts, each with the source of the fact. [`enumerate_with`] takes other
//! tables, and more of them. `docs/pci-quirks.md` is made from this table and compared with it by a test.
//!
//! Left out: bridges to PCI without the PCI Express capability, which are told from where they stand
//! ([`topology`](super::topology)), and ports that keep functions apart only after registers of their own were written.
//!
//! [`enumerate_with`]: super::enumerate_with

use super::topology::{Alias, AliasKind};
use super::{Capabilities, DeviceFunction, PortType, RequesterId};

/// What functions with these IDs do otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FunctionQuirk {
    /// The vendor ID.
    pub vendor: u16,
    /// The device IDs: ranges, with their first and last.
    pub devices: &'static [(u16, u16)],
    /// Subsystem vendor ID and subsystem ID, where only cards with these are meant.
    pub subsystem: Option<(u16, u16)>,
    /// What is different.
    pub effect: QuirkEffect,
    /// Which part it is.
    pub part: &'static str,
    /// Where the fact was published.
    pub source: &'static str,
}

/// What a function does otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuirkEffect {
    /// Its DMA can carry this function number of its own device, whether that function is there or not.
    SendsAsFunction(u8),
    /// Its DMA can carry these places on its own bus.
    SendsAs(&'static [DeviceFunction]),
    /// Its DMA can carry functions 0 to this one of every device of its own bus.
    SendsAsAnyDevice(u8),
    /// A root port or a downstream port of a switch that keeps apart what is below it, as if it had access control services
    /// and they were on.
    PortIsolates,
    /// A function of a device of several that does not reach the others directly.
    FunctionIsApart,
}

impl FunctionQuirk {
    /// Whether it is about functions with these IDs.
    #[must_use]
    pub fn is_about(&self, vendor: u16, device: u16, subsystem: Option<(u16, u16)>) -> bool {
        let is_listed = self.devices.iter().any(|(first, last)| (*first..=*last).contains(&device));
        self.vendor == vendor && is_listed && (self.subsystem.is_none() || self.subsystem == subsystem)
    }
}

/// The tables that count.
#[derive(Clone, Copy, Debug)]
pub(super) struct Quirks<'a>(pub(super) &'a [&'a [FunctionQuirk]]);

impl<'a> Quirks<'a> {
    fn of(self, (vendor, device): (u16, u16), subsystem: Option<(u16, u16)>) -> impl Iterator<Item = QuirkEffect> + 'a {
        let rows = self.0.iter().flat_map(|table| table.iter());
        rows.filter(move |row| row.is_about(vendor, device, subsystem)).map(|row| row.effect)
    }

    /// The requester IDs that a function's DMA can carry beside its own.
    pub(super) fn aliases(
        self,
        own: RequesterId,
        ids: (u16, u16),
        subsystem: Option<(u16, u16)>,
    ) -> impl Iterator<Item = Alias> + 'a {
        let places = move |effect| {
            let (one, listed, all) = match effect {
                QuirkEffect::SendsAsFunction(function) => (Some(function & 7), &[][..], None),
                QuirkEffect::SendsAs(places) => (None, places, None),
                QuirkEffect::SendsAsAnyDevice(last) => (None, &[][..], Some(last & 7)),
                QuirkEffect::PortIsolates | QuirkEffect::FunctionIsApart => (None, &[][..], None),
            };
            let first = own.device_function().first_of_device().0;
            let one = one.map(|function| DeviceFunction(first | function));
            let is_meant = move |place: &DeviceFunction| all.is_some_and(|last| place.function() <= last);
            let all = (0..=u8::MAX).map(DeviceFunction).filter(is_meant);
            one.into_iter().chain(listed.iter().copied()).chain(all)
        };
        let rids = self.of(ids, subsystem).flat_map(places).map(move |place| RequesterId::new(own.bus(), place));
        rids.filter(move |rid| *rid != own).map(|rid| Alias { rid, kind: AliasKind::Quirk })
    }

    /// Whether a function without access control services is kept apart from its peers all the same.
    pub(super) fn keep_apart(self, ids: (u16, u16), capabilities: &Capabilities) -> bool {
        let is_port = match capabilities.express.map(|express| express.port_type) {
            Some(PortType::RootPort | PortType::SwitchDownstream) => true,
            Some(PortType::Endpoint | PortType::LegacyEndpoint | PortType::IntegratedEndpoint) => false,
            _ => return false,
        };
        let counts = |effect| match effect {
            QuirkEffect::PortIsolates => is_port,
            QuirkEffect::FunctionIsApart => !is_port,
            _ => false,
        };
        capabilities.acs.is_none() && self.of(ids, None).any(counts)
    }
}

const fn row(
    vendor: u16,
    devices: &'static [(u16, u16)],
    effect: QuirkEffect,
    part: &'static str,
    source: &'static str,
) -> FunctionQuirk {
    FunctionQuirk { vendor, devices, subsystem: None, effect, part, source }
}

const fn of_card(subsystem: (u16, u16), quirk: FunctionQuirk) -> FunctionQuirk {
    FunctionQuirk { subsystem: Some(subsystem), ..quirk }
}

const BUG_42679: &str = "kernel bugzilla 42679";
const LINUX: &str = "Linux, drivers/pci/quirks.c";
const PORTS: &str = "Linux, pci_dev_acs_enabled: no peer-to-peer through the port";
const CHECKED_PORTS: &str = "Linux, pci_dev_acs_enabled: no peer-to-peer through the port, bus numbers checked";
const FUNCTIONS: &str = "Linux, pci_dev_acs_enabled: the vendor has verified that functions do not reach each other";

/// The public, well-known parts.
pub const KNOWN_QUIRKS: &[FunctionQuirk] = {
    use QuirkEffect::{FunctionIsApart, PortIsolates, SendsAs, SendsAsAnyDevice, SendsAsFunction};
    const ONE_0: &[DeviceFunction] = &[DeviceFunction(0x08)];
    const X200: &[DeviceFunction] = &[DeviceFunction(0x80), DeviceFunction(0x88), DeviceFunction(0x93)];
    &[
        // Devices that send as somebody else.
        row(
            0x1180,
            &[(0xe476, 0xe476), (0xe832, 0xe832)],
            SendsAsFunction(0),
            "Ricoh SD and FireWire controllers",
            "Red Hat bugzilla 605888",
        ),
        row(0x6766, &[(0x3d40, 0x3d41)], SendsAsFunction(0), "Glenfly Arise audio", LINUX),
        row(
            0x1b4b,
            &[
                (0x9120, 0x9120),
                (0x9123, 0x9123),
                (0x9125, 0x9125),
                (0x9128, 0x9128),
                (0x9130, 0x9130),
                (0x9170, 0x9170),
                (0x9172, 0x9172),
                (0x917a, 0x917a),
                (0x9182, 0x9183),
                (0x91a0, 0x91a0),
                (0x9215, 0x9215),
                (0x9220, 0x9220),
                (0x9230, 0x9230),
                (0x9235, 0x9235),
            ],
            SendsAsFunction(1),
            "Marvell 88SE91xx and 88SE92xx SATA controllers",
            BUG_42679,
        ),
        row(
            0x1103,
            &[(0x0642, 0x0642), (0x0645, 0x0645)],
            SendsAsFunction(1),
            "HighPoint RocketRAID 642L, 644L",
            BUG_42679,
        ),
        row(0x197b, &[(0x2392, 0x2392)], SendsAsFunction(1), "JMicron JMB388 SD controller", "Gentoo bug 497630"),
        row(0x1c28, &[(0x0122, 0x0122)], SendsAsFunction(1), "Plextor M6e SSD (Marvell 88SS9183)", BUG_42679),
        of_card((0x9005, 0x02bb), row(0x9005, &[(0x0285, 0x0285)], SendsAs(ONE_0), "Adaptec 3405 RAID", LINUX)),
        of_card((0x9005, 0x02bc), row(0x9005, &[(0x0285, 0x0285)], SendsAs(ONE_0), "Adaptec 3805 RAID", LINUX)),
        row(0x8086, &[(0x2260, 0x2260), (0x2264, 0x2264)], SendsAs(X200), "Intel Xeon Phi x200 bridge", LINUX),
        row(
            0x8086,
            &[(0x2954, 0x2956), (0x2958, 0x295a)],
            SendsAsAnyDevice(4),
            "Intel Visual Compute Accelerator bridge",
            LINUX,
        ),
        // Ports that keep apart what is below them.
        row(0x17cb, &[(0x0400, 0x0401)], PortIsolates, "Qualcomm QDF2xxx root ports", CHECKED_PORTS),
        row(
            0x17cb,
            &[(0x0111, 0x0111), (0x0115, 0x0115), (0x0120, 0x0120)],
            PortIsolates,
            "Qualcomm X1E, SA8775P, Glymur root ports",
            CHECKED_PORTS,
        ),
        row(0x1dbf, &[(0x0401, 0x0401)], PortIsolates, "HXT SD4800 root ports", CHECKED_PORTS),
        row(
            0x177d,
            &[(0xa000, 0xa7ff), (0xaf84, 0xaf84), (0xb884, 0xb884)],
            PortIsolates,
            "Cavium ThunderX, X2, X3 root ports",
            CHECKED_PORTS,
        ),
        row(0x10e8, &[(0xe004, 0xe004)], PortIsolates, "APM X-Gene root ports", PORTS),
        row(0x1def, &[(0xe005, 0xe00c)], PortIsolates, "Ampere root ports", PORTS),
        row(0x14e4, &[(0xd714, 0xd714)], PortIsolates, "Broadcom iProc PAXB root ports", PORTS),
        row(0x1c36, &[(0x0031, 0x0031)], PortIsolates, "Annapurna Labs root ports", PORTS),
        row(
            0x1957,
            &[
                (0x8d80, 0x8d83),
                (0x8d88, 0x8d8b),
                (0x8d90, 0x8d93),
                (0x8d98, 0x8d9b),
                (0x8da0, 0x8da1),
                (0x8da8, 0x8da9),
                (0x8db0, 0x8db1),
                (0x8db8, 0x8db9),
            ],
            PortIsolates,
            "NXP LX2160A, LX2162A family root ports",
            CHECKED_PORTS,
        ),
        // Functions of one device that do not reach each other.
        row(
            0x8086,
            &[(0x105e, 0x1060), (0x10d9, 0x10d9)],
            FunctionIsApart,
            "Intel 82571 Ethernet (but for quad cards)",
            FUNCTIONS,
        ),
        row(
            0x8086,
            &[(0x10a7, 0x10a7), (0x10a9, 0x10a9), (0x10d6, 0x10d6)],
            FunctionIsApart,
            "Intel 82575 Ethernet",
            FUNCTIONS,
        ),
        row(
            0x8086,
            &[
                (0x10c9, 0x10c9),
                (0x10e6, 0x10e8),
                (0x150a, 0x150a),
                (0x150d, 0x150d),
                (0x1518, 0x1518),
                (0x1526, 0x1526),
            ],
            FunctionIsApart,
            "Intel 82576 Ethernet",
            FUNCTIONS,
        ),
        row(
            0x8086,
            &[(0x1509, 0x1509), (0x150e, 0x1511), (0x1516, 0x1516), (0x1527, 0x1527)],
            FunctionIsApart,
            "Intel 82580 Ethernet",
            FUNCTIONS,
        ),
        row(0x8086, &[(0x1521, 0x1524)], FunctionIsApart, "Intel I350 Ethernet", FUNCTIONS),
        row(0x8086, &[(0x15b7, 0x15b8)], FunctionIsApart, "Intel I219 Ethernet", FUNCTIONS),
        row(
            0x8086,
            &[
                (0x10c6, 0x10c6),
                (0x10db, 0x10db),
                (0x10dd, 0x10dd),
                (0x10e1, 0x10e1),
                (0x10f1, 0x10f1),
                (0x10f7, 0x10fc),
                (0x1507, 0x1507),
                (0x1514, 0x1514),
                (0x151c, 0x151c),
                (0x1529, 0x152a),
                (0x154d, 0x154d),
                (0x154f, 0x154f),
                (0x1551, 0x1551),
                (0x1558, 0x1558),
            ],
            FunctionIsApart,
            "Intel 82598 and 82599 Ethernet",
            FUNCTIONS,
        ),
        row(
            0x1924,
            &[(0x0903, 0x0903), (0x0923, 0x0923), (0x0a03, 0x0a03)],
            FunctionIsApart,
            "Solarflare Ethernet",
            FUNCTIONS,
        ),
        row(0x19a2, &[(0x0710, 0x0710)], FunctionIsApart, "Emulex BE3-R", FUNCTIONS),
        row(0x10df, &[(0x0720, 0x0720)], FunctionIsApart, "Emulex Skyhawk-R", FUNCTIONS),
        row(
            0x177d,
            &[(0xa026, 0xa026), (0xa059, 0xa059), (0xa060, 0xa060)],
            FunctionIsApart,
            "Cavium ThunderX devices",
            FUNCTIONS,
        ),
        row(
            0x14e4,
            &[(0x16d7, 0x16d7), (0x1750, 0x1752), (0x1760, 0x1763)],
            FunctionIsApart,
            "Broadcom NetXtreme-E Ethernet",
            FUNCTIONS,
        ),
    ]
};
