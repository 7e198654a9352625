//! Which requester IDs a function's DMA can carry, and which functions nothing keeps apart.
//!
//! # Requester IDs
//!
//! A transaction does not always carry the ID of the function that sent it:
//!
//! - *Phantom functions* (PCI Express Base Specification 7.5.3.3): a function may use unused function numbers of its
//!   device as its own, to have more requests outstanding.
//! - *Virtual functions* (9.2.1.2) send with IDs of their own. They are no functions here, so those that are on belong
//!   to their physical function, whose owner has them on.
//! - *A bridge from PCI Express to PCI* (PCI Express to PCI/PCI-X Bridge Specification 1.0, 2.3) sends what comes from
//!   below with its secondary bus number and device 0, function 0. From a PCI-X bus it may keep the sender's ID.
//! - *A bridge on a conventional bus* sends requests that it takes over with its own ID.
//! - *Some parts* send as another function, though nothing says so: `quirk_table.rs`.
//!
//! # Isolation
//!
//! Two functions are in one isolation group when one can reach the other without the IOMMU in between. Going down from
//! the root bus:
//!
//! - *Below a bridge that does not send peers' requests up* all functions are one group, with the bridge. Root ports
//!   and downstream ports of switches do so where access control services are on (6.12.1.1); conventional buses
//!   are shared wires and never do.
//! - *The functions of one device* are one group unless each has access control services (6.12.1.2). If a single one
//!   lacks them it can reach all the others and what is below them, so then none is apart.
//! - *The downstream ports of one switch* likewise, with all that is below them: a request between peers is redirected
//!   by the port that it enters through, so one port without redirection exposes what is below the others.
//! - Devices on a root bus are taken to be apart: what a root complex does between them, no register tells (1.3.1
//!   leaves it to the implementation).
//!
//! Some ports and functions without the capability are known to do the same: `quirk_table.rs`.
//!
//! Required services are source validation, request and completion redirect, and upstream forwarding. A switch must
//! offer them all; others offer what they need (6.12.1): what is not offered, is not done between peers.

use super::{AcsControls, Bus, Capabilities, DeviceFunction, PciKey, PortType, RequesterId};

/// A requester ID that a function's DMA can carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Alias {
    /// The ID.
    pub rid: RequesterId,
    /// Why it can.
    pub kind: AliasKind,
}

/// Why a function's DMA can carry a requester ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum AliasKind {
    /// It is the function's own.
    Own,
    /// It is a phantom function's.
    Phantom,
    /// It is a virtual function's that is on.
    Virtual,
    /// A bridge above substitutes it.
    Bridge(PciKey),
    /// The function is known to send as somebody else ([`KNOWN_QUIRKS`](super::KNOWN_QUIRKS)).
    Quirk,
}

/// The isolation group of a function.
///
/// A hint for grouping beside equal streams: functions with equal `group` are one group, and those are all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Isolation {
    /// Names the group: the bridge that keeps nothing apart, or the first place of the device or of the switch's bus
    /// (where no function may be), or the function itself when it is apart from all others.
    pub group: PciKey,
    /// Why the function is not apart from others.
    pub cause: IsolationCause,
}

impl Isolation {
    /// The group as a number ([`DeviceSpec::isolation`](crate::assign::DeviceSpec::isolation)): the 64-bit FNV-1a hash of its
    /// key, the same in every run. Two groups with the same hash would be treated as one: an assign could then be refused
    /// without need, and isolation is never lost.
    #[must_use]
    pub fn number(self) -> u64 {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        self.group.number().to_be_bytes().into_iter().fold(0xcbf2_9ce4_8422_2325, step)
    }
}

/// Why functions are in one isolation group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum IsolationCause {
    /// The function is apart from all others.
    Apart,
    /// Functions of its device lack access control services.
    Device,
    /// Ports of its switch lack access control services.
    Switch,
    /// A bridge above sends requests from peer to peer.
    Bridge,
}

/// The phantom functions that a function may use, whether enabled or not.
pub(super) fn phantoms(own: RequesterId, capabilities: &Capabilities, ari_below: bool) -> impl Iterator<Item = Alias> {
    // Behind an ARI port all 8 bits are a function's own (6.13).
    let in_use = !(ari_below && capabilities.ari.is_some());
    let bits = capabilities.express.map_or(0, |express| express.phantom_bits).min(3);
    let place = own.device_function();
    let shift = 3u8.saturating_sub(bits);
    // A function whose own number has these bits set contradicts the capability, and has none to itself.
    let has_any = in_use && place.function() >> shift == 0;
    let count = if has_any { 1u8 << bits } else { 1 };
    (1..count).map(move |upper| {
        let rid = RequesterId::new(own.bus(), DeviceFunction(place.0 | upper << shift));
        Alias { rid, kind: AliasKind::Phantom }
    })
}

/// The requester IDs of the virtual functions that are on (9.3.3.9, 9.3.3.10), in 16 bits: carries are dropped (9.2.1.2).
pub(super) fn virtual_functions(own: RequesterId, capabilities: &Capabilities) -> impl Iterator<Item = Alias> {
    let on = capabilities.sr_iov.filter(|sr_iov| sr_iov.enabled);
    let (count, first, stride) = on.map_or((0, 0, 0), |on| (on.count, on.first_offset, on.stride));
    // Behind so many they are the first ones again: each is named once. Without a stride all are one.
    let period = 0x1_0000_u32 >> stride.trailing_zeros();
    let rid = move |number: u16| own.0.wrapping_add(first).wrapping_add(number.wrapping_mul(stride));
    let all = (0..count).zip(0..period).map(|(number, _)| number);
    all.map(rid).map(|rid| Alias { rid: RequesterId(rid), kind: AliasKind::Virtual })
}

/// The IDs that a bridge substitutes for what comes from below it.
///
/// `on_link`: a PCI Express link leads to the bridge. One without the PCI Express capability is then a bridge to PCI
/// all the same, as some parts are, and which ID it takes cannot be known: both are listed.
pub(super) fn substitutes(
    bridge: PciKey,
    own: RequesterId,
    secondary: Bus,
    port_type: Option<PortType>,
    on_link: bool,
) -> impl Iterator<Item = Alias> {
    let below = RequesterId::new(secondary, DeviceFunction(0));
    let (takes_own, takes_below) = match port_type {
        Some(PortType::RootPort | PortType::SwitchUpstream | PortType::SwitchDownstream) => (false, false),
        Some(PortType::ExpressToPci) => (false, true),
        Some(PortType::PciToExpress) => (true, false),
        None => (true, on_link),
        Some(_) => (true, true),
    };
    let ids = [takes_own.then_some(own), takes_below.then_some(below)];
    ids.into_iter().flatten().map(move |rid| Alias { rid, kind: AliasKind::Bridge(bridge) })
}

/// Whether the functions below a bridge are kept apart from each other and from the bridge, which itself is `apart`
/// from its peers. `controlled`: its requests to peers go up.
pub(super) fn isolates_below(port_type: Option<PortType>, controlled: bool, apart: bool) -> bool {
    apart
        && match port_type {
            Some(PortType::RootPort | PortType::SwitchDownstream) => controlled,
            // Requests between peers turn round at its downstream ports, not here.
            Some(PortType::SwitchUpstream) => true,
            _ => false,
        }
}

/// Whether requests to peers go up to the root complex.
pub(super) fn has_access_control(capabilities: &Capabilities) -> bool {
    let required = REQUIRED;
    let is_switch = capabilities.express.is_some_and(|express| express.port_type == PortType::SwitchDownstream);
    capabilities
        .acs
        .is_some_and(|acs| acs.enabled.contains(if is_switch { required } else { required & acs.supported }))
}

/// The access control services that keep a function's requests from its peers.
pub(super) const REQUIRED: AcsControls = AcsControls::SOURCE_VALIDATION
    .union(AcsControls::REQUEST_REDIRECT)
    .union(AcsControls::COMPLETION_REDIRECT)
    .union(AcsControls::UPSTREAM_FORWARDING);

#[cfg(test)]
mod tests {
    use super::super::capability::{Acs, Express, SrIov};
    use super::*;
    use alloc::vec::Vec;

    fn with_phantoms(bits: u8) -> Capabilities {
        let express = Express {
            offset: 0x40,
            version: 2,
            port_type: PortType::Endpoint,
            phantom_bits: bits,
            phantom_enabled: false,
            function_level_reset: true,
            ari_forwarding: false,
        };
        Capabilities { express: Some(express), ..Capabilities::default() }
    }

    fn phantom_functions(function: u8, bits: u8) -> Vec<u8> {
        let own = RequesterId::new(Bus(1), DeviceFunction(0x18 | function));
        phantoms(own, &with_phantoms(bits), false).map(|alias| alias.rid.device_function().function()).collect()
    }

    #[test]
    fn i11_each_virtual_function_is_named_once_however_they_are_numbered() {
        let numbered = |count, first_offset, stride| {
            let sr_iov = SrIov {
                offset: 0x100,
                enabled: true,
                memory_enabled: true,
                ari_hierarchy: false,
                total: count,
                count,
                first_offset,
                stride,
                device_id: 1,
                page_sizes: 1,
                page_size: 1,
            };
            let capabilities = Capabilities { sr_iov: Some(sr_iov), ..Capabilities::default() };
            virtual_functions(RequesterId(0xfff0), &capabilities).map(|alias| alias.rid.0).collect::<Vec<_>>()
        };
        assert_eq!(numbered(3, 8, 4), [0xfff8, 0xfffc, 0]);
        assert_eq!(numbered(4, 1, 0), [0xfff1]);
        assert_eq!(numbered(u16::MAX, 1, 0x8000), [0xfff1, 0x7ff1]);
        assert_eq!(numbered(u16::MAX, 1, 1).len(), 0xffff);
    }

    #[test]
    fn phantom_functions_are_the_unused_upper_numbers() {
        assert_eq!(phantom_functions(0, 0), []);
        assert_eq!(phantom_functions(3, 1), [7]);
        assert_eq!(phantom_functions(0, 2), [2, 4, 6]);
        assert_eq!(phantom_functions(1, 2), [3, 5, 7]);
        assert_eq!(phantom_functions(0, 3), [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(phantom_functions(4, 1), [], "a number that the capability says is unused");
        let mut ari = with_phantoms(3);
        ari.ari = Some(0x100);
        assert_eq!(phantoms(RequesterId(0x100), &ari, true).count(), 0);
        assert_eq!(phantoms(RequesterId(0x100), &ari, false).count(), 7);
    }

    #[test]
    fn bridges_substitute_by_their_kind() {
        let (key, own) = (PciKey::root(super::super::HostBridgeNumber(0), DeviceFunction(0)), RequesterId(0x0208));
        let ids = |port_type, on_link| {
            substitutes(key, own, Bus(3), port_type, on_link).map(|alias| alias.rid.0).collect::<Vec<_>>()
        };
        assert_eq!(ids(Some(PortType::RootPort), false), []);
        assert_eq!(ids(Some(PortType::ExpressToPci), true), [0x300]);
        assert_eq!(ids(Some(PortType::PciToExpress), false), [0x208]);
        assert_eq!(ids(None, false), [0x208]);
        assert_eq!(ids(None, true), [0x208, 0x300]);
        assert_eq!(ids(Some(PortType::Unknown(0xf)), true), [0x208, 0x300]);
    }

    #[test]
    fn what_a_port_offers_must_be_on() {
        let with = |supported, enabled| {
            let acs = Acs { offset: 0x100, supported, enabled };
            has_access_control(&Capabilities { acs: Some(acs), ..Capabilities::default() })
        };
        let all = AcsControls::all();
        assert!(with(all, all));
        assert!(!with(all, AcsControls::empty()));
        assert!(!with(all, all - AcsControls::COMPLETION_REDIRECT));
        assert!(with(all, all - AcsControls::EGRESS_CONTROL));
        assert!(with(AcsControls::empty(), AcsControls::empty()), "no peer traffic to redirect");
        assert!(!has_access_control(&Capabilities::default()));
    }
}
