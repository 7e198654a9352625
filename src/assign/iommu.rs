//! The one trait between the assignment layer and an IOMMU driver.
//!
//! A device's way through it: [`publish`](Iommu::publish) makes its streams known and says whom they meet;
//! [`enrol`](Iommu::enrol) takes what the streams need and leaves them in fault; [`plan`](Iommu::plan) reserves all
//! that a move into a domain can lack; [`install`](Iommu::install) moves; [`block`](Iommu::block) brings back to
//! fault; [`withdraw`](Iommu::withdraw) takes everything back.
//!
//! # Locking
//!
//! The service holds no lock over any method (contract C-3). A driver is sound on its own for any caller: it takes its
//! own locks, and answers [`IommuError::Busy`] where two callers would change the same device at once.

use alloc::vec::Vec;
use core::fmt;

use thiserror::Error;

use super::identity::{DeviceId, DomainId};
use super::space::{AddressSpace, Incompatible, Stage2Limits};
use super::spec::{IommuKey, Stream, StreamId};

/// A driver for one IOMMU instance.
///
/// # Context
///
/// Waiting context, but for [`take_faults`](Iommu::take_faults), which an interrupt handler calls. Any method may be
/// called from several CPUs at once.
pub trait Iommu: Send + Sync + fmt::Debug {
    /// The instance's name.
    fn key(&self) -> IommuKey;

    /// What tables the instance can follow.
    fn limits(&self) -> Stage2Limits;

    /// Makes `streams` of `device` known, without a register access, and lists whom they meet.
    ///
    /// # Errors
    ///
    /// [`IommuError::TooWide`] when an ID or mask has bits that the hardware does not keep, [`IommuError::Known`] when
    /// the device is published already. Nothing has changed then.
    fn publish(&self, device: DeviceId, streams: &[Stream]) -> Result<Vec<DeviceId>, IommuError>;

    /// Takes the entries that `device` needs and leaves its streams in fault. Returns how many entries it uses.
    ///
    /// # Errors
    ///
    /// [`IommuError::Exhausted`] when the entries do not suffice: nothing is taken and nothing written then.
    fn enrol(&self, device: DeviceId) -> Result<usize, IommuError>;

    /// The devices that share a live entry with `device`, and so cannot be told apart from it by the hardware.
    fn sharers(&self, device: DeviceId) -> Vec<DeviceId>;

    /// Reserves all that moving `devices` into `space` can lack. Writes nothing.
    ///
    /// A context that this very move frees counts (contract A-1).
    ///
    /// # Errors
    ///
    /// [`IommuError::Incompatible`], [`IommuError::Exhausted`], [`IommuError::Busy`], [`IommuError::SyncTimeout`]
    /// where an earlier drain of a device has still not completed: nothing is reserved then.
    fn plan(&self, devices: &[DeviceId], space: &AddressSpace) -> Result<Prepared, IommuError>;

    /// Gives back what `plan` reserved for `devices`.
    fn abandon(&self, devices: &[DeviceId], prepared: Prepared);

    /// Moves `devices`, which are in fault, into the space that was planned for them.
    ///
    /// # Errors
    ///
    /// [`IommuError::SyncTimeout`] when the context that was to be reused did not drain: the devices stay in fault and
    /// the plan is given back.
    fn install(&self, devices: &[DeviceId], prepared: Prepared) -> Result<(), IommuError>;

    /// Puts `devices` in fault, invalidates, and waits until what was in flight has left; retires contexts that have
    /// become unused (contract I-6, I-7).
    ///
    /// Devices that are in fault already are left alone, at no cost. Where a device outside `devices` keeps an entry
    /// live, it is listed in the result.
    ///
    /// # Errors
    ///
    /// [`IommuError::SyncTimeout`]: the devices are in fault, but the hardware has not said that it drained; what it
    /// may still use is poisoned (contract I-8).
    fn block(&self, devices: &[DeviceId]) -> Result<Vec<DeviceId>, IommuError>;

    /// Forgets `device`, which is in fault: its entries, where it was the last to use them, become free.
    ///
    /// # Errors
    ///
    /// [`IommuError::Busy`] when the device is still in a domain.
    fn withdraw(&self, device: DeviceId) -> Result<(), IommuError>;

    /// Removes what the instance has cached of `domain`. A domain without a context here costs no register access.
    ///
    /// # Errors
    ///
    /// [`IommuError::SyncTimeout`]: stale translations may still be in use.
    fn flush(&self, domain: DomainId) -> Result<(), IommuError>;

    /// Reads, clears and reports what faulted on `line`.
    ///
    /// # Context
    ///
    /// Interrupt handlers may call it, where the platform's lock is interrupt-safe; it takes no lock of its own.
    fn take_faults(&self, line: FaultLine, report: &mut dyn FnMut(RawFault));

    /// Who owns a stream ID here: the device whose streams contain it.
    fn owner_of(&self, stream: StreamId) -> Option<DeviceId>;

    /// Compares what the driver believes with the registers and with its own counts. Changes nothing.
    fn audit(&self, report: &mut dyn FnMut(Difference));

    /// In which domain `device` is here, as the driver believes; `None` when in fault.
    ///
    /// # Errors
    ///
    /// [`IommuError::Unknown`] for a device that was never published.
    fn placement(&self, device: DeviceId) -> Result<Option<DomainId>, IommuError>;
}

/// What a driver has reserved for one move. Given to [`Iommu::install`] or [`Iommu::abandon`].
#[derive(Debug)]
#[must_use = "what was reserved stays reserved until it is installed or abandoned"]
pub struct Prepared {
    /// The space that the devices move to.
    pub space: AddressSpace,
    /// The driver's own number for what it reserved.
    pub ticket: u64,
}

/// What an IOMMU can run out of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Resource {
    /// Stream-map entries.
    StreamMapEntries,
    /// Contexts for address spaces.
    ContextBanks,
    /// Tags for cached translations.
    Vmids,
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StreamMapEntries => "stream-map entries",
            Self::ContextBanks => "context banks",
            Self::Vmids => "VMIDs",
        })
    }
}

/// Why an IOMMU driver did not do what it was asked.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum IommuError {
    /// Another caller is changing the same device.
    #[error("another operation on the same device is running")]
    Busy,
    /// The domain's tables cannot be followed here.
    #[error("the domain has {0}")]
    Incompatible(Incompatible),
    /// The hardware has no more of something.
    #[error("{needed} more {resource} needed, {free} of {total} are free")]
    Exhausted {
        /// What ran out.
        resource: Resource,
        /// How many the operation lacks.
        needed: usize,
        /// How many are free.
        free: usize,
        /// How many there are.
        total: usize,
    },
    /// The device is published already.
    #[error("the device is registered here already")]
    Known,
    /// The instance was taken out of service.
    #[error("the IOMMU is gone")]
    ProviderGone,
    /// Memory could not be reserved.
    #[error("out of memory")]
    OutOfMemory,
    /// The hardware did not confirm an invalidation.
    #[error("the IOMMU did not confirm an invalidation within {polls} polls")]
    SyncTimeout {
        /// How often the status was read.
        polls: u32,
    },
    /// A stream ID or mask has bits that the hardware does not keep.
    #[error("stream {stream} does not fit: the hardware keeps ID bits {id_bits:#x} and mask bits {mask_bits:#x}")]
    TooWide {
        /// The stream.
        stream: Stream,
        /// ID bits that can be written.
        id_bits: u32,
        /// Mask bits that can be written.
        mask_bits: u32,
    },
    /// The device was never published, or was withdrawn.
    #[error("the device is not registered here")]
    Unknown,
}

/// An interrupt line of an IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultLine {
    /// Faults that belong to no context: unknown streams, blocked streams, conflicts.
    Global,
    /// Faults of contexts. A driver looks at all live contexts that report on this line, counted from 0.
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// One thing that is not as the driver believes (contract A-10).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The instance.
    pub iommu: IommuKey,
    /// Which register or count, as the manual or the driver calls it.
    pub what: &'static str,
    /// Its index, where there are several.
    pub index: usize,
    /// What the driver believes.
    pub expected: u64,
    /// What was found.
    pub found: u64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {}[{}]: expected {:#x}, found {:#x}",
            self.iommu, self.what, self.index, self.expected, self.found
        )
    }
}
