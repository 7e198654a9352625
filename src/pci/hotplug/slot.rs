//! Where functions come and go.

use core::fmt;

use super::super::key::{HostBridgeNumber, PciKey};
use crate::assign::{Device, DeviceInfo, DeviceKey, Service, Source};
use crate::sync::Platform;

/// Where functions come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Slot {
    /// Everything behind a host bridge: at boot, or when that goes.
    Host(HostBridgeNumber),
    /// All that is below this bridge, which stays: what is plugged into a port.
    Below(PciKey),
    /// The device of this function, with all its functions and what is below them: a bridge that comes or goes itself, or a
    /// card on a bus with several places. Not below a port that forwards ARI, where functions from 8 on would be taken for
    /// another device's: what is there is [`Below`](Self::Below) the port.
    Device(PciKey),
}

impl Slot {
    /// Whether a function is in it.
    #[must_use]
    pub fn has(self, key: PciKey) -> bool {
        match self {
            Self::Host(host) => key.host() == host,
            Self::Below(bridge) => bridge.is_above(key),
            Self::Device(one) => {
                let is_same = |other: PciKey| {
                    let devices = [one, other].map(|key| key.device_function().device());
                    let [one_device, other_device] = devices;
                    other.host() == one.host() && other.parent() == one.parent() && one_device == other_device
                };
                core::iter::successors(Some(key), |key| key.parent()).any(is_same)
            }
        }
    }

    /// Whether what is below a bridge must be looked at to see what is in it.
    pub(super) fn is_behind(self, bridge: PciKey) -> bool {
        match self {
            Self::Host(host) => bridge.host() == host,
            Self::Below(key) => bridge == key || bridge.is_above(key) || key.is_above(bridge),
            Self::Device(key) => bridge.is_above(key) || self.has(bridge),
        }
    }

    /// The registered devices in it, ascending by key: bridges before what is below them.
    pub(super) fn devices<P: Platform>(self, service: &Service<P>) -> impl Iterator<Item = DeviceInfo> + use<'_, P> {
        // All keys of PCI are above those of the device tree, and those of a host bridge are together.
        let host = match self {
            Self::Host(host) => host,
            Self::Below(key) | Self::Device(key) => key.host(),
        };
        let before = u128::from(host.0).wrapping_shl(112);
        let first = service.next_device(Some(DeviceKey::new(Source::Pci, before)));
        let all = core::iter::successors(first, |last| service.next_device(Some(last.device.key())));
        let of_host = all.take_while(move |info| key_of(&info.device).is_none_or(|key| key.host() == host));
        of_host.filter(move |info| key_of(&info.device).is_some_and(|key| self.has(key)))
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => write!(f, "all behind host bridge {host}"),
            Self::Below(bridge) => write!(f, "all below {bridge}"),
            Self::Device(one) => write!(f, "the device of {one}"),
        }
    }
}

/// The function that a device is, if it is one.
pub(super) fn key_of(device: &Device) -> Option<PciKey> {
    PciKey::of(device.key())
}
