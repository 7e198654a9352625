//! Names of things: stable, ordered, never a pointer's value (contract A-9).

use alloc::sync::Arc;
use core::fmt;

use super::spec::{IommuKey, StreamId};

/// The bus that describes a device. A label for people; no rule depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Source {
    /// A device-tree node.
    Dt,
    /// A PCI function.
    Pci,
    /// A stream that no source has described, and that stormed. The service alone registers these, in
    /// [`tend_faults`](super::Service::tend_faults), and they can be assigned to nobody.
    Stray,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dt => "dt",
            Self::Pci => "pci",
            Self::Stray => "stray",
        })
    }
}

/// What a source calls a device: chosen at add, unique among the registered devices, and never changed (contract
/// C-18).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceKey {
    source: Source,
    number: u128,
}

impl DeviceKey {
    /// The device that `source` knows as `number`.
    #[must_use]
    pub const fn new(source: Source, number: u128) -> Self {
        Self { source, number }
    }

    /// The stray that stands for `stream` at `iommu`, where there is one.
    #[must_use]
    pub const fn stray(iommu: IommuKey, stream: StreamId) -> Self {
        Self { source: Source::Stray, number: (iommu.base() as u128) << 32 | stream.value() as u128 }
    }

    /// The bus that chose the key.
    #[must_use]
    pub const fn source(self) -> Source {
        self.source
    }

    /// The source's own number.
    #[must_use]
    pub const fn number(self) -> u128 {
        self.number
    }
}

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:x}", self.source, self.number)
    }
}

/// One registration of a device: given at add, never given again (contract C-7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId(u64);

impl DeviceId {
    /// The registration with this number. The service counts from 1; a caller that drives an IOMMU without the
    /// service counts for itself.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number itself.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "device #{}", self.0)
    }
}

/// One domain, for as long as it exists; never given again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(u64);

impl DomainId {
    /// The domain with this number. The service counts from 1; a caller that drives an IOMMU without the service
    /// counts for itself.
    #[must_use]
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// The number itself.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain #{}", self.0)
    }
}

/// How people call something: a node's path, a function's address, a guest's name, or what it is known by where nobody
/// gave it a name.
///
/// Shared, so that an error can carry it without a copy; only [`from`](Label::from) allocates.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Label(Name);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Name {
    Given(Arc<str>),
    Device(DeviceKey),
    Iommu(IommuKey),
    Stray(IommuKey, StreamId),
}

impl Label {
    /// Of a device that nobody named.
    pub(super) const fn of_key(key: DeviceKey) -> Self {
        Self(Name::Device(key))
    }

    /// Of an IOMMU instance.
    pub(super) const fn of_iommu(key: IommuKey) -> Self {
        Self(Name::Iommu(key))
    }

    /// Of a stream that no device has.
    pub(super) const fn of_stray(iommu: IommuKey, stream: StreamId) -> Self {
        Self(Name::Stray(iommu, stream))
    }
}

impl From<&str> for Label {
    fn from(text: &str) -> Self {
        Self(Name::Given(Arc::from(text)))
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Name::Given(text) => f.pad(text),
            Name::Device(key) => key.fmt(f),
            Name::Iommu(key) => key.fmt(f),
            Name::Stray(iommu, stream) => write!(f, "stray stream {stream} at {iommu}"),
        }
    }
}
