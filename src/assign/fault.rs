//! Faults as a driver reports them: which line, what a transaction wanted, why it was stopped (contract A-12).

use core::fmt;

use super::{DeviceId, DomainId, IommuKey, Label, StreamId};

/// What a fault handler should do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a storm goes on until its line is masked"]
pub enum FaultAnswer {
    /// Return from the interrupt.
    Done,
    /// Mask this line at the interrupt controller, and wake the worker, which has it unmasked when it has ended the
    /// storm.
    Mask(FaultLine),
}

/// Faults that were not reported, since the instance was probed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// At least this many came while a record stood, and were never recorded by the hardware.
    pub lost: u64,
    /// Recorded, and beyond their stream's limit.
    pub limited: u64,
    /// By unknown streams for which there was no room to count them one by one.
    pub unknown_elsewhere: u64,
}

/// An interrupt line of an IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultLine {
    /// Faults that belong to no context: unknown streams, blocked streams, conflicts.
    Global,
    /// Faults of contexts. Lines are counted from 0, in firmware's order, one that is listed several times once. A driver
    /// looks at all live contexts that report on this one.
    Context(u8),
}

/// What a transaction wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// A read.
    Read,
    /// A write.
    Write,
    /// An instruction fetch.
    Execute,
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Execute => "execute",
        })
    }
}

/// Why a transaction was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum FaultCause {
    /// The address is not mapped.
    Translation,
    /// The mapping does not allow this access.
    Permission,
    /// The mapping's access flag is clear.
    AccessFlag,
    /// An address is larger than the hardware or the tables allow.
    AddressSize,
    /// A table could not be read, or the access failed on the bus.
    External,
    /// The stream is known and blocked.
    Blocked,
    /// No entry matches the stream.
    UnknownStream,
    /// Several entries match the stream.
    StreamConflict,
    /// A register access was refused.
    Configuration,
    /// The context is not usable.
    BadContext,
    /// The hardware names a cause that is none of these.
    Other,
}

impl fmt::Display for FaultCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Translation => "translation fault",
            Self::Permission => "permission fault",
            Self::AccessFlag => "access-flag fault",
            Self::AddressSize => "address-size fault",
            Self::External => "external abort",
            Self::Blocked => "blocked stream",
            Self::UnknownStream => "unknown stream",
            Self::StreamConflict => "stream match conflict",
            Self::Configuration => "configuration access",
            Self::BadContext => "unusable context",
            Self::Other => "unnamed cause",
        })
    }
}

/// A fault as the driver reads it, before anyone looked up whose stream it is (contract A-12).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RawFault {
    /// The instance.
    pub iommu: IommuKey,
    /// The context's number, for a context fault.
    pub bank: Option<u8>,
    /// The domain whose context faulted.
    pub domain: Option<DomainId>,
    /// The stream, where the hardware names it.
    pub stream: Option<StreamId>,
    /// The address that the device asked for, where the hardware names it.
    pub address: Option<u64>,
    /// What the device wanted.
    pub access: Access,
    /// Why it was stopped.
    pub cause: FaultCause,
    /// At least one more fault came and was not recorded.
    pub more_lost: bool,
}

/// A number that is no quantity.
struct Hex(u64);

impl fmt::Debug for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Debug for RawFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RawFault")
            .field("iommu", &self.iommu)
            .field("bank", &self.bank)
            .field("domain", &self.domain)
            .field("stream", &self.stream)
            .field("address", &self.address.map(Hex))
            .field("access", &self.access)
            .field("cause", &self.cause)
            .field("more_lost", &self.more_lost)
            .finish()
    }
}

/// What has stormed, as a driver tells its worker (contract A-12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StormReport {
    /// The stream, where the hardware named one that uses the context that faulted, or that no device has.
    pub stream: Option<StreamId>,
    /// The domain whose context faulted; `None` for faults that belong to no context.
    pub domain: Option<DomainId>,
    /// How many faults were taken since the last call.
    pub faults: u32,
    /// The device to quarantine, as the driver knows it.
    pub device: Option<DeviceId>,
    /// What the driver has silenced already: a storm without a device.
    pub silenced: bool,
}

/// A fault with the names that the service knows (contract A-12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultRecord {
    /// What the hardware said.
    pub raw: RawFault,
    /// The device whose stream it is.
    pub device: Option<Label>,
    /// The domain whose tables refused it.
    pub domain: Option<Label>,
}

impl fmt::Display for FaultRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} on {}", self.raw.iommu, self.raw.cause, self.raw.access)?;
        if let Some(address) = self.raw.address {
            write!(f, " of {address:#x}")?;
        }
        match (&self.device, self.raw.stream) {
            (Some(device), Some(stream)) => write!(f, " by {device} (stream {stream})")?,
            (None, Some(stream)) => write!(f, " by unknown stream {stream}")?,
            _ => {}
        }
        if let Some(domain) = &self.domain {
            write!(f, " in {domain}")?;
        }
        if let Some(bank) = self.raw.bank {
            write!(f, " (bank {bank})")?;
        }
        if self.raw.more_lost { f.write_str("; more were lost") } else { Ok(()) }
    }
}
