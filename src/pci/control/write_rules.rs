//! The table: what comes of a guest's write, register by register.

use core::fmt;

use super::super::capability::{Capability, ExtendedCapability};
use Reason::{
    AccessControl, Addresses, Ats, Decoding, Errors, Harmless, Interrupts, Link, Pasid, Persistent, Phantom, Power,
    Pri, ReadOnly, Reset, Routing, Vendor, VirtualFunctions,
};
use Treatment::{Emulated, Ignored, Passes};

/// What comes of a guest's write to bits of its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Treatment {
    /// It reaches the function.
    Passes,
    /// It does not. The guest reads back what it wrote, or what the hypervisor makes of it.
    Emulated,
    /// It does not, and the guest reads what the function says.
    Ignored,
}

/// What such a write could do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Nothing that is not the guest's own matter.
    Harmless,
    /// Turn ATS on: the function would send requests that claim to be translated.
    Ats,
    /// Turn page requests on, which nobody answers.
    Pri,
    /// Turn PASIDs on.
    Pasid,
    /// Give the function requester IDs that have no stream-map entry: phantom functions.
    Phantom,
    /// Make virtual functions appear, which are nobody's.
    VirtualFunctions,
    /// Take the function out of its isolation: access control services, and the function groups that they go by.
    AccessControl,
    /// Change what comes from below and what goes there: any register of a bridge, multicast.
    Routing,
    /// Put the function in the place of others in the address space, so that what is meant for them reaches it.
    Addresses,
    /// Have the function not answer at its addresses: an access by the guest may then end in an abort that the hypervisor
    /// takes.
    Decoding,
    /// Change which interrupts come, and where: the guest's numbers and addresses are not the machine's.
    Interrupts,
    /// Send the function to a power state in which it does not answer, and from which it comes back without its addresses.
    Power,
    /// Reset the function, so that what the hypervisor has set up is lost.
    Reset,
    /// Change what is reported to the root port, or hide it.
    Errors,
    /// Change what both ends of the link, or all on the way to memory, must agree on.
    Link,
    /// Leave something behind that no reset takes away.
    Persistent,
    /// Nobody here knows: a capability that is not in the table.
    Unknown,
    /// Nobody here knows: registers of the vendor's, in a capability for them or in none.
    Vendor,
    /// Nothing: the bits are read-only or reserved.
    ReadOnly,
    /// Start DMA while the function changes owners.
    Transition,
    /// Nothing: no such access exists.
    Malformed,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Harmless => "its own matter",
            Self::Ats => "ATS",
            Self::Pri => "page requests",
            Self::Pasid => "PASIDs",
            Self::Phantom => "phantom functions",
            Self::VirtualFunctions => "virtual functions",
            Self::AccessControl => "access control",
            Self::Routing => "routing",
            Self::Addresses => "addresses",
            Self::Decoding => "decoding",
            Self::Interrupts => "interrupts",
            Self::Power => "power state",
            Self::Reset => "reset",
            Self::Errors => "error reporting",
            Self::Link => "link",
            Self::Persistent => "outlives a reset",
            Self::Unknown => "not known here",
            Self::Vendor => "the vendor's",
            Self::ReadOnly => "read-only",
            Self::Transition => "between owners",
            Self::Malformed => "no such access",
        })
    }
}

/// What a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleOf {
    /// The header of an endpoint.
    Header,
    /// A capability of the standard list with this ID.
    Standard(u8),
    /// A capability of the extended list with this ID.
    Extended(u16),
}

/// What comes of a guest's write to a capability, or the header, where no [`WriteRule`] says otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CapabilityRule {
    /// Which.
    pub of: RuleOf,
    /// What people call it.
    pub name: &'static str,
    /// How many bytes it has at most. Less where another capability begins before.
    pub length: u16,
    /// What comes of a write.
    pub treatment: Treatment,
    /// Why.
    pub reason: Reason,
}

/// What comes of a guest's write to some bits of a register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WriteRule {
    /// Whose register it is.
    pub of: RuleOf,
    /// What people call it.
    pub name: &'static str,
    /// Where the 32 bits are that hold it, from the start of the header or the capability: a multiple of 4.
    pub register: u16,
    /// How many registers in a row the rule is about.
    pub registers: u16,
    /// Which bits of each.
    pub bits: u32,
    /// What comes of a write.
    pub treatment: Treatment,
    /// Why.
    pub reason: Reason,
    /// Whether a 1 clears the bit.
    pub clears: bool,
}

impl WriteRule {
    const fn emulated(of: RuleOf, name: &'static str, register: u16, bits: u32, reason: Reason) -> Self {
        Self { of, name, register, registers: 1, bits, treatment: Emulated, reason, clears: false }
    }

    const fn ignored(of: RuleOf, name: &'static str, register: u16, bits: u32, reason: Reason) -> Self {
        Self { treatment: Ignored, ..Self::emulated(of, name, register, bits, reason) }
    }

    const fn passes(of: RuleOf, name: &'static str, register: u16, bits: u32) -> Self {
        Self { treatment: Passes, ..Self::emulated(of, name, register, bits, Harmless) }
    }

    const fn clearing(of: RuleOf, name: &'static str, register: u16, bits: u32) -> Self {
        Self { clears: true, ..Self::passes(of, name, register, bits) }
    }

    const fn in_a_row(self, registers: u16) -> Self {
        Self { registers, ..self }
    }
}

const fn emulated(of: RuleOf, name: &'static str, length: u16, reason: Reason) -> CapabilityRule {
    CapabilityRule { of, name, length, treatment: Emulated, reason }
}

const fn ignored(of: RuleOf, name: &'static str, length: u16, reason: Reason) -> CapabilityRule {
    CapabilityRule { of, name, length, treatment: Ignored, reason }
}

const HEADER: RuleOf = RuleOf::Header;
const EXPRESS: RuleOf = RuleOf::Standard(Capability::EXPRESS);
const WHOLE: u32 = u32::MAX;

/// The header and the capabilities that are known here. One that is not is ignored, as [`Reason::Unknown`].
///
/// PCI Code and ID Assignment Specification 1.15; lengths by the PCI Express Base Specification, revision 6.
pub const CAPABILITY_RULES: &[CapabilityRule] = &[
    ignored(HEADER, "header", 0x40, ReadOnly),
    emulated(RuleOf::Standard(Capability::POWER), "power management", 8, Power),
    emulated(RuleOf::Standard(0x03), "vital product data", 8, Persistent),
    emulated(RuleOf::Standard(Capability::MSI), "MSI", 24, Interrupts),
    ignored(RuleOf::Standard(0x09), "vendor-specific", 0x100, Vendor),
    ignored(RuleOf::Standard(0x0d), "subsystem IDs", 8, ReadOnly),
    ignored(EXPRESS, "PCI Express", 0x3c, ReadOnly),
    emulated(RuleOf::Standard(Capability::MSI_X), "MSI-X", 12, Interrupts),
    emulated(RuleOf::Standard(Capability::ADVANCED_FEATURES), "advanced features", 8, Reset),
    ignored(RuleOf::Standard(0x14), "enhanced allocation", 0x100, Addresses),
    emulated(RuleOf::Extended(0x01), "advanced error reporting", 0x48, Errors),
    ignored(RuleOf::Extended(0x02), "virtual channels", 0x1000, Link),
    ignored(RuleOf::Extended(0x03), "device serial number", 12, ReadOnly),
    ignored(RuleOf::Extended(0x04), "power budgeting", 16, Power),
    ignored(RuleOf::Extended(0x08), "multi-function virtual channels", 0x1000, Link),
    ignored(RuleOf::Extended(0x09), "virtual channels", 0x1000, Link),
    ignored(RuleOf::Extended(0x0b), "vendor-specific", 0x1000, Vendor),
    ignored(RuleOf::Extended(ExtendedCapability::ACS), "access control services", 40, AccessControl),
    ignored(RuleOf::Extended(ExtendedCapability::ARI), "ARI", 8, AccessControl),
    ignored(RuleOf::Extended(ExtendedCapability::ATS), "ATS", 8, Ats),
    ignored(RuleOf::Extended(ExtendedCapability::SR_IOV), "SR-IOV", 0x40, VirtualFunctions),
    ignored(RuleOf::Extended(0x12), "multicast", 0x30, Routing),
    ignored(RuleOf::Extended(ExtendedCapability::PRI), "page requests", 16, Pri),
    emulated(RuleOf::Extended(ExtendedCapability::RESIZABLE_BAR), "resizable base addresses", 0x34, Addresses),
    ignored(RuleOf::Extended(0x16), "dynamic power allocation", 48, Power),
    ignored(RuleOf::Extended(ExtendedCapability::LTR), "latency tolerance reporting", 8, Link),
    ignored(RuleOf::Extended(0x19), "secondary PCI Express", 0x4c, Link),
    ignored(RuleOf::Extended(ExtendedCapability::PASID), "PASID", 8, Pasid),
    ignored(RuleOf::Extended(0x1d), "downstream port containment", 0x5c, Errors),
    ignored(RuleOf::Extended(0x1e), "L1 power substates", 20, Link),
    ignored(RuleOf::Extended(0x1f), "precision time measurement", 12, Link),
    ignored(
        RuleOf::Extended(ExtendedCapability::VF_RESIZABLE_BAR),
        "VF resizable base addresses",
        0x34,
        VirtualFunctions,
    ),
    ignored(RuleOf::Extended(0x25), "data link feature", 12, Link),
    ignored(RuleOf::Extended(0x26), "16 GT/s physical layer", 0x40, Link),
    ignored(RuleOf::Extended(0x27), "lane margining", 0x48, Link),
    ignored(RuleOf::Extended(0x2a), "32 GT/s physical layer", 0x40, Link),
];

/// Bits of the header (7.5.1) and of PCI Express (7.5.3) that are not as the rest of it.
pub const WRITE_RULES: &[WriteRule] = &[
    WriteRule::passes(HEADER, "Command: bus mastering", 0x04, 1 << 2),
    WriteRule::passes(HEADER, "Command: memory write and invalidate", 0x04, 1 << 4),
    WriteRule::emulated(HEADER, "Command: I/O and memory space", 0x04, 0b11, Decoding),
    WriteRule::emulated(HEADER, "Command: parity errors, SERR#", 0x04, 1 << 6 | 1 << 8, Errors),
    WriteRule::emulated(HEADER, "Command: interrupt disable", 0x04, 1 << 10, Interrupts),
    WriteRule::clearing(HEADER, "Status: errors", 0x04, 0xf900_0000),
    WriteRule::passes(HEADER, "Cache Line Size, Latency Timer", 0x0c, 0xffff),
    WriteRule::ignored(HEADER, "BIST", 0x0c, 0xff00_0000, Reset),
    WriteRule::emulated(HEADER, "Base Addresses", 0x10, WHOLE, Addresses).in_a_row(6),
    WriteRule::emulated(HEADER, "Expansion ROM Base Address", 0x30, WHOLE, Addresses),
    WriteRule::emulated(HEADER, "Interrupt Line", 0x3c, 0xff, Interrupts),
    WriteRule::passes(EXPRESS, "Device Control: relaxed ordering, no snoop", 0x08, 1 << 4 | 1 << 11),
    WriteRule::passes(EXPRESS, "Device Control: read request size", 0x08, 7 << 12),
    WriteRule::emulated(EXPRESS, "Device Control: errors", 0x08, 0xf, Errors),
    WriteRule::emulated(EXPRESS, "Device Control: payload size, extended tags", 0x08, 7 << 5 | 1 << 8, Link),
    WriteRule::ignored(EXPRESS, "Device Control: phantom functions", 0x08, 1 << 9, Phantom),
    WriteRule::emulated(EXPRESS, "Device Control: auxiliary power", 0x08, 1 << 10, Power),
    WriteRule::emulated(EXPRESS, "Device Control: function-level reset", 0x08, 1 << 15, Reset),
    WriteRule::clearing(EXPRESS, "Device Status: errors", 0x08, 0x004f_0000),
    WriteRule::emulated(EXPRESS, "Link Control", 0x10, 0xffff, Link),
    WriteRule::ignored(EXPRESS, "slot and root registers", 0x18, WHOLE, Routing).in_a_row(2),
    WriteRule::passes(EXPRESS, "Device Control 2: completion timeout", 0x28, 0x1f),
    WriteRule::passes(EXPRESS, "Device Control 2: ID-based ordering", 0x28, 3 << 8),
    WriteRule::ignored(EXPRESS, "Device Control 2: ARI forwarding", 0x28, 1 << 5, Routing),
    WriteRule::emulated(EXPRESS, "Device Control 2: atomic operations, LTR, tags, OBFF, prefixes", 0x28, 0xfcc0, Link),
    WriteRule::emulated(EXPRESS, "Link Control 2", 0x30, 0xffff, Link),
];
