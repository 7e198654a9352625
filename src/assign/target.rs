//! Which device an operation is about, as far as the caller knows.

use super::{Device, DeviceKey, Label};

/// The device that a removal or a request is about.
///
/// A key alone is a number, for a device-tree node the hash of its path. Where nothing is registered under it, an error can
/// only say the number. A caller that knows the name says [`Named`](Self::Named).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Target {
    /// This registration, and no later one under its key.
    Device(Device),
    /// What is registered under the key when the operation begins.
    Key(DeviceKey),
    /// The same, with the name that errors say where nothing is registered.
    Named(DeviceKey, Label),
}

impl Target {
    /// The device's key.
    #[must_use]
    pub fn key(&self) -> DeviceKey {
        match self {
            Self::Device(device) => device.key(),
            Self::Key(key) | Self::Named(key, _) => *key,
        }
    }

    /// What people call it, or its key.
    #[must_use]
    pub fn label(&self) -> Label {
        match self {
            Self::Device(device) => device.label().clone(),
            Self::Key(key) => Label::of_key(*key),
            Self::Named(_, label) => label.clone(),
        }
    }
}

impl From<&Device> for Target {
    fn from(device: &Device) -> Self {
        Self::Device(device.clone())
    }
}

impl From<DeviceKey> for Target {
    fn from(key: DeviceKey) -> Self {
        Self::Key(key)
    }
}
