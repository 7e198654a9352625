//! Names of things: stable, ordered, never a pointer's value (contract A-9).

use alloc::sync::Arc;
use core::cmp::Ordering;
use core::fmt;

use super::IommuKey;

/// The bus that describes a device. A label for people; no rule depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Source {
    /// A device-tree node.
    Dt,
    /// A PCI function.
    Pci,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Dt => "dt",
            Self::Pci => "pci",
        })
    }
}

/// What a source calls a device: chosen at add, unique among the registered devices, and never changed (contract
/// C-18).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceKey {
    source: Source,
    /// The number's halves: a `u128` would be aligned to 16 bytes.
    upper: u64,
    lower: u64,
}

impl DeviceKey {
    /// No key is below it.
    pub(super) const LEAST: Self = Self::new(Source::Dt, 0);

    /// The device that `source` knows as `number`.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is what is wanted")]
    pub const fn new(source: Source, number: u128) -> Self {
        Self { source, upper: (number >> 64) as u64, lower: number as u64 }
    }

    /// The bus that chose the key.
    #[must_use]
    pub const fn source(self) -> Source {
        self.source
    }

    /// The source's own number.
    #[must_use]
    pub const fn number(self) -> u128 {
        (self.upper as u128) << 64 | self.lower as u128
    }
}

impl Ord for DeviceKey {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.source, self.number()).cmp(&(other.source, other.number()))
    }
}

impl PartialOrd for DeviceKey {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }

    // Each look-up asks it a dozen times.
    fn le(&self, other: &Self) -> bool {
        if self.source == other.source { self.number() <= other.number() } else { self.source < other.source }
    }
}

impl fmt::Display for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:x}", self.source, self.number())
    }
}

impl fmt::Debug for DeviceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceKey({self})")
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
        }
    }
}
