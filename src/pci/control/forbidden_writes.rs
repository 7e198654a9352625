//! The registers of a function that its owner must not write.

use super::super::capability::{self, Capabilities};
use super::super::config::{BUS_NUMBERS, HeaderType};

/// A register of a function that its owner must not be able to write, although the rest of its configuration space
/// may be his.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ForbiddenWrite {
    /// Where the 32 bits are that hold it, a multiple of 4.
    pub offset: u16,
    /// Which of the 32 bits must not change.
    pub bits: u32,
    /// What a write could do.
    pub reason: Reason,
}

/// What a forbidden write could do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
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
    /// Take the function out of its isolation: access control services.
    AccessControl,
    /// Change what comes from below and what goes there: bus numbers and windows of a bridge, its reset, ARI forwarding.
    Routing,
    /// Put the function in the place of others in the address space, so that what is meant for them reaches it: base
    /// addresses and their sizes.
    Addresses,
}

/// The registers of a function that its owner must not write: they would undo what isolates it (contract S-7).
///
/// What a guest reads there is for the hypervisor to make up: sizes of base addresses above all.
///
/// Where MSIs go is not among them. A device that can write to a doorbell can do so by plain DMA too, whatever its MSI
/// registers say; who must not interrupt has no doorbell mapped (`dt::Msi` tells which there are).
pub fn forbidden_writes(
    header: HeaderType,
    capabilities: &Capabilities,
) -> impl Iterator<Item = ForbiddenWrite> + use<> {
    let express = capabilities.express;
    let is_bridge = !matches!(header, HeaderType::Endpoint);
    let services = [
        capabilities.ats.map(|ats| half(ats.control(), u16::MAX, Reason::Ats)),
        capabilities.pri.map(|pri| half(pri.control(), u16::MAX, Reason::Pri)),
        capabilities.pasid.map(|pasid| half(pasid.control(), u16::MAX, Reason::Pasid)),
        capabilities.acs.map(|acs| half(acs.control(), u16::MAX, Reason::AccessControl)),
        // Its function groups are what access control goes by.
        capabilities.ari.map(|ari| half(capability::ari_control(ari), u16::MAX, Reason::AccessControl)),
        express
            .filter(|express| express.phantom_bits != 0)
            .map(|express| half(express.device_control(), capability::PHANTOM_ENABLE, Reason::Phantom)),
        express
            .filter(|_| is_bridge)
            .and_then(|express| express.device_control_2())
            .map(|offset| half(offset, capability::ARI_FORWARDING, Reason::Routing)),
    ];
    let virtual_functions = capabilities.sr_iov.into_iter().flat_map(|sr_iov| {
        let count = half(sr_iov.number(), u16::MAX, Reason::VirtualFunctions);
        let addresses = sr_iov.addresses().map(|offset| whole(offset, Reason::VirtualFunctions));
        [half(sr_iov.control(), u16::MAX, Reason::VirtualFunctions), count].into_iter().chain(addresses)
    });
    let sizes = capabilities.resizable.into_iter().chain(capabilities.vf_resizable);
    let sizes = sizes.flat_map(capability::ResizableBars::controls).map(|offset| whole(offset, Reason::Addresses));
    let (addresses, routing): (&[u16], &[(u16, u32)]) = match header {
        HeaderType::Endpoint => (&[0x10, 0x14, 0x18, 0x1c, 0x20, 0x24, 0x30], &[]),
        HeaderType::Bridge { .. } => (&[0x10, 0x14, 0x38], &BRIDGE_ROUTING),
        HeaderType::CardBus => (&[0x10], &CARDBUS_ROUTING),
    };
    let addresses = addresses.iter().map(|offset| whole(*offset, Reason::Addresses));
    let routing = routing.iter().map(|&(offset, bits)| ForbiddenWrite { offset, bits, reason: Reason::Routing });
    services.into_iter().flatten().chain(virtual_functions).chain(sizes).chain(addresses).chain(routing)
}

/// Bits of the 16-bit register at an even offset.
fn half(offset: u16, bits: u16, reason: Reason) -> ForbiddenWrite {
    let shift = u32::from(offset & 2).wrapping_mul(8);
    ForbiddenWrite { offset: offset & !3, bits: u32::from(bits) << shift, reason }
}

const fn whole(offset: u16, reason: Reason) -> ForbiddenWrite {
    ForbiddenWrite { offset: offset & !3, bits: u32::MAX, reason }
}

/// Bus numbers, windows and Bridge Control of a type 1 header (7.5.1.3); not its status registers.
const BRIDGE_ROUTING: [(u16, u32); 8] = [
    (BUS_NUMBERS, u32::MAX),
    (0x1c, 0xffff),
    (0x20, u32::MAX),
    (0x24, u32::MAX),
    (0x28, u32::MAX),
    (0x2c, u32::MAX),
    (0x30, u32::MAX),
    (0x3c, 0xffff_0000),
];
/// The same of a CardBus bridge (PC Card Standard), whose windows are whole registers from 0x1c on.
const CARDBUS_ROUTING: [(u16, u32); 10] = [
    (BUS_NUMBERS, u32::MAX),
    (0x1c, u32::MAX),
    (0x20, u32::MAX),
    (0x24, u32::MAX),
    (0x28, u32::MAX),
    (0x2c, u32::MAX),
    (0x30, u32::MAX),
    (0x34, u32::MAX),
    (0x38, u32::MAX),
    (0x3c, 0xffff_0000),
];
