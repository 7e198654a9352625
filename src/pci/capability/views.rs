//! What the capabilities say, field by field. Offsets are from the start of a capability.

use bitflags::bitflags;

use super::super::config::{ConfigSpace, FunctionConfig};

/// What a PCI Express function is (7.5.3.2, Device/Port Type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PortType {
    /// An endpoint.
    Endpoint,
    /// A legacy endpoint.
    LegacyEndpoint,
    /// A root port.
    RootPort,
    /// The upstream port of a switch.
    SwitchUpstream,
    /// A downstream port of a switch.
    SwitchDownstream,
    /// A bridge from PCI Express to PCI or PCI-X.
    ExpressToPci,
    /// A bridge from PCI or PCI-X to PCI Express.
    PciToExpress,
    /// An endpoint that is part of the root complex.
    IntegratedEndpoint,
    /// A root complex event collector.
    EventCollector,
    /// A number that the specification does not assign.
    Unknown(u8),
}

impl PortType {
    const fn from_number(number: u8) -> Self {
        match number {
            0x0 => Self::Endpoint,
            0x1 => Self::LegacyEndpoint,
            0x4 => Self::RootPort,
            0x5 => Self::SwitchUpstream,
            0x6 => Self::SwitchDownstream,
            0x7 => Self::ExpressToPci,
            0x8 => Self::PciToExpress,
            0x9 => Self::IntegratedEndpoint,
            0xa => Self::EventCollector,
            other => Self::Unknown(other),
        }
    }

    /// Whether a link leads down from it, so that only device 0 is below (7.3.1).
    #[must_use]
    pub const fn is_downstream_port(self) -> bool {
        matches!(self, Self::RootPort | Self::SwitchDownstream | Self::PciToExpress)
    }
}

/// The PCI Express capability (7.5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Express {
    /// Where the capability is.
    pub offset: u16,
    /// Version of the capability, 4 bits. Registers with a 2 in their name exist from version 2 on.
    pub version: u8,
    /// What the function is.
    pub port_type: PortType,
    /// How many of the upper bits of the function number phantom functions use: 0 to 3 (Device Capabilities 4:3).
    pub phantom_bits: u8,
    /// Whether phantom functions are enabled (Device Control 9).
    pub phantom_enabled: bool,
    /// Whether the function can be reset alone (Device Capabilities 28).
    pub function_level_reset: bool,
    /// Whether the port forwards to 256 functions of device 0 (Device Control 2 bit 5).
    pub ari_forwarding: bool,
}

impl Express {
    pub(super) fn read<C: ConfigSpace + ?Sized>(config: &FunctionConfig<'_, C>, offset: u16) -> Self {
        let [kind, _] = config.read_u16(at(offset, 0x2)).to_le_bytes();
        let version = kind & 0xf;
        let capabilities = config.read(at(offset, DEVICE_CAPABILITIES));
        let [phantom, ..] = capabilities.to_le_bytes();
        let control_2 = if version >= 2 { config.read_u16(at(offset, DEVICE_CONTROL_2)) } else { 0 };
        Self {
            offset,
            version,
            port_type: PortType::from_number(kind >> 4),
            phantom_bits: phantom >> 3 & 3,
            phantom_enabled: config.read_u16(at(offset, DEVICE_CONTROL)) & PHANTOM_ENABLE != 0,
            function_level_reset: capabilities & 1 << 28 != 0,
            ari_forwarding: control_2 & ARI_FORWARDING != 0,
        }
    }

    /// Where Device Control is; Device Status is its upper half.
    #[must_use]
    pub const fn device_control(&self) -> u16 {
        at(self.offset, DEVICE_CONTROL)
    }

    /// Where Device Status is.
    #[must_use]
    pub const fn device_status(&self) -> u16 {
        at(self.offset, DEVICE_STATUS)
    }

    /// Where Link Control is.
    #[must_use]
    pub const fn link_control(&self) -> u16 {
        at(self.offset, 0x10)
    }

    /// Where Link Control 2 is, if the capability has it.
    #[must_use]
    pub const fn link_control_2(&self) -> Option<u16> {
        if self.version >= 2 { Some(at(self.offset, 0x30)) } else { None }
    }

    /// Where Device Control 2 is, if the capability has it.
    #[must_use]
    pub const fn device_control_2(&self) -> Option<u16> {
        if self.version >= 2 { Some(at(self.offset, DEVICE_CONTROL_2)) } else { None }
    }
}

/// Message signalled interrupts (7.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Msi {
    /// Where the capability is.
    pub offset: u16,
    /// Whether messages are sent.
    pub enabled: bool,
}

impl Msi {
    pub(super) fn read<C: ConfigSpace + ?Sized>(config: &FunctionConfig<'_, C>, offset: u16) -> Self {
        Self { offset, enabled: config.read_u16(at(offset, 2)) & 1 != 0 }
    }
}

/// MSI-X (7.7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct MsiX {
    /// Where the capability is.
    pub offset: u16,
    /// Whether messages are sent.
    pub enabled: bool,
    /// How many entries the table has: 1 to 2048.
    pub entries: u16,
    /// Which base address register the table is behind.
    pub table_bar: u8,
    /// Where in it the table begins, in bytes.
    pub table_offset: u32,
}

impl MsiX {
    pub(super) fn read<C: ConfigSpace + ?Sized>(config: &FunctionConfig<'_, C>, offset: u16) -> Self {
        let control = config.read_u16(at(offset, 2));
        let table = config.read(at(offset, 4));
        let [bar, ..] = table.to_le_bytes();
        Self {
            offset,
            enabled: control & 1 << 15 != 0,
            entries: (control & 0x7ff).saturating_add(1),
            table_bar: bar & 7,
            table_offset: table & !7,
        }
    }
}

bitflags! {
    /// What access control services do, in the capability and in the control register alike (7.7.11.2, 7.7.11.3).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AcsControls: u16 {
        /// Requests whose bus number is not of this port's buses are refused.
        const SOURCE_VALIDATION = 1 << 0;
        /// Requests with translated addresses are refused.
        const TRANSLATION_BLOCKING = 1 << 1;
        /// Requests between peers go up.
        const REQUEST_REDIRECT = 1 << 2;
        /// Completions between peers go up.
        const COMPLETION_REDIRECT = 1 << 3;
        /// What was redirected up and comes back is forwarded.
        const UPSTREAM_FORWARDING = 1 << 4;
        /// Single peers can be blocked.
        const EGRESS_CONTROL = 1 << 5;
        /// Translated requests may go to peers directly.
        const DIRECT_TRANSLATED = 1 << 6;
    }
}

/// Access control services (7.7.11).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Acs {
    /// Where the capability is.
    pub offset: u16,
    /// What the function can do.
    pub supported: AcsControls,
    /// What it is told to do.
    pub enabled: AcsControls,
}

impl Acs {
    pub(super) fn read<C: ConfigSpace + ?Sized>(config: &FunctionConfig<'_, C>, offset: u16) -> Self {
        let [supported, enabled] = [4, 6].map(|by| AcsControls::from_bits_truncate(config.read_u16(at(offset, by))));
        Self { offset, supported, enabled }
    }

    /// Where its control register is.
    #[must_use]
    pub const fn control(&self) -> u16 {
        at(self.offset, 0x06)
    }
}

/// Address translation services (10.5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ats {
    /// Where the capability is.
    pub offset: u16,
    /// Whether the function may ask for translations and send translated requests.
    pub enabled: bool,
}

impl Ats {
    pub(super) fn read<C: ConfigSpace + ?Sized>(config: &FunctionConfig<'_, C>, offset: u16) -> Self {
        let control = at(offset, ATS_CONTROL);
        Self { offset, enabled: config.read_u16(control) & ATS_ENABLE != 0 }
    }

    /// Where its control register is.
    #[must_use]
    pub const fn control(&self) -> u16 {
        at(self.offset, ATS_CONTROL)
    }
}

/// Page requests (10.5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pri {
    /// Where the capability is.
    pub offset: u16,
    /// Whether the function may send page requests.
    pub enabled: bool,
}

impl Pri {
    pub(super) fn read<C: ConfigSpace + ?Sized>(config: &FunctionConfig<'_, C>, offset: u16) -> Self {
        let control = at(offset, PRI_CONTROL);
        Self { offset, enabled: config.read_u16(control) & PRI_ENABLE != 0 }
    }

    /// Where its control register is; its status is the upper half.
    #[must_use]
    pub const fn control(&self) -> u16 {
        at(self.offset, PRI_CONTROL)
    }
}

/// Process address space IDs (7.8.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pasid {
    /// Where the capability is.
    pub offset: u16,
    /// Whether the function may send requests with a PASID.
    pub enabled: bool,
}

impl Pasid {
    pub(super) fn read<C: ConfigSpace + ?Sized>(config: &FunctionConfig<'_, C>, offset: u16) -> Self {
        let control = at(offset, PASID_CONTROL);
        Self { offset, enabled: config.read_u16(control) & PASID_ENABLE != 0 }
    }

    /// Where its control register is.
    #[must_use]
    pub const fn control(&self) -> u16 {
        at(self.offset, PASID_CONTROL)
    }
}

/// Base addresses of a size that can be set (7.8.6); for those of virtual functions the same (7.8.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ResizableBars {
    /// Where the capability is.
    pub offset: u16,
    /// How many base addresses there are, 0 to 7; good hardware says 1 to 6.
    pub count: u8,
}

impl ResizableBars {
    pub(super) fn read<C: ConfigSpace + ?Sized>(config: &FunctionConfig<'_, C>, offset: u16) -> Self {
        Self { offset, count: (config.read_u16(at(offset, 8)) >> 5 & 7) as u8 }
    }

    /// Where the control register of each is.
    pub(in super::super) fn controls(self) -> impl Iterator<Item = u16> {
        (0..u16::from(self.count)).map(move |index| at(self.offset, index.wrapping_mul(8).wrapping_add(8)))
    }
}

/// Where the control register of the ARI capability is (7.8.8.3).
pub(in super::super) const fn ari_control(offset: u16) -> u16 {
    at(offset, 0x06)
}

/// A register of a capability. One that would lie past the end of configuration space wraps into it: a lie of the
/// function's, and reads of it are as good as any.
pub(super) const fn at(offset: u16, by: u16) -> u16 {
    offset.wrapping_add(by) & 0xfff
}

const DEVICE_CAPABILITIES: u16 = 0x04;
const DEVICE_CONTROL: u16 = 0x08;
const DEVICE_STATUS: u16 = 0x0a;
const DEVICE_CONTROL_2: u16 = 0x28;
const PHANTOM_ENABLE: u16 = 1 << 9;
const ARI_FORWARDING: u16 = 1 << 5;
const ATS_CONTROL: u16 = 0x06;
pub(in super::super) const ATS_ENABLE: u16 = 1 << 15;
const PRI_CONTROL: u16 = 0x04;
pub(in super::super) const PRI_ENABLE: u16 = 1 << 0;
const PASID_CONTROL: u16 = 0x06;
pub(in super::super) const PASID_ENABLE: u16 = 1 << 0;
