//! What callers are told of devices and faults.

use core::ffi::{c_char, c_void};
use core::fmt;

use iommu_assign::assign::{
    Access, Deassigned, DeviceInfo, DeviceState, DomainId, FaultCause, FaultLine, Label, RawFault, Removal, StreamId,
};

use crate::border::Text;
use crate::error::{Failure, IOMMU_TEXT_SIZE};
use crate::values::iommu_device_key;

// --- what is told of devices ---

/// Where a device's DMA goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum iommu_device_state {
    /// It is being added, or is in a state that this version has no code for.
    Adding = 0,
    /// In faults.
    Blocked,
    /// In faults, or in its scratch page; it lacks what `lacks_drain` and `lacks_reset` say.
    Quarantined,
    /// Through the domain's tables.
    Assigned,
    /// It is on its way out.
    Going,
}

/// A device as a traversal shows it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct iommu_device_info {
    /// What its source calls it.
    pub key: iommu_device_key,
    /// The key of one of its group's members, the same for all of them.
    pub group: iommu_device_key,
    /// The key of the device that it stands behind; meaningful where `depth` is not 0.
    pub parent: iommu_device_key,
    /// This registration's number.
    pub id: u64,
    /// The number of the domain that it is assigned to; 0 without one.
    pub domain: u64,
    /// Its state.
    pub state: iommu_device_state,
    /// What it had in flight may still reach its last owner's memory: an assign drains it first.
    pub lacks_drain: bool,
    /// It may carry something over from its last owner: an assign quiesces and resets it first.
    pub lacks_reset: bool,
    /// Firmware marked it for passthrough.
    pub passthrough: bool,
    /// How many devices it stands behind.
    pub depth: u16,
    /// How many streams it has.
    pub streams: usize,
}

impl From<&DeviceInfo> for iommu_device_info {
    fn from(info: &DeviceInfo) -> Self {
        let (mut domain, mut drain, mut reset) = (0, false, false);
        let state = match info.state {
            DeviceState::Blocked => iommu_device_state::Blocked,
            DeviceState::Quarantined(lacks) => {
                (drain, reset) = (lacks.drain, lacks.reset);
                iommu_device_state::Quarantined
            }
            DeviceState::Assigned(id) => {
                domain = id.number();
                iommu_device_state::Assigned
            }
            DeviceState::Going => iommu_device_state::Going,
            _ => iommu_device_state::Adding,
        };
        Self {
            key: info.device.key().into(),
            group: info.group.into(),
            parent: info.device.parent().map(Into::into).unwrap_or_default(),
            id: info.device.id().number(),
            domain,
            state,
            lacks_drain: drain,
            lacks_reset: reset,
            passthrough: info.device.passthrough(),
            depth: info.device.depth(),
            streams: info.device.streams().len(),
        }
    }
}

/// What a removal did.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum iommu_removal {
    /// The device is gone.
    Done = 0,
    /// The device is gone, but devices of its group keep a live entry that captures its streams: they reach that domain
    /// until the entry is in fault.
    StillReachable,
    /// Another operation of its group is running: it finishes the removal when it ends.
    Pending,
}

/// Whom a deassign or a removal did not cut off, and why.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct iommu_outcome {
    /// What the removal did. For a deassign `IOMMU_REMOVAL_DONE` or `IOMMU_REMOVAL_STILL_REACHABLE`.
    pub removal: iommu_removal,
    /// How many devices keep a shared stream translated; 0 where the device is cut off.
    pub count: usize,
    /// Their names, with ", " between; cut where they do not fit.
    pub names: [c_char; IOMMU_TEXT_SIZE],
}

impl iommu_outcome {
    fn of(removal: iommu_removal, keepers: &[Label]) -> Self {
        Self { removal, count: keepers.len(), names: Text::of(Names(keepers)).into_bytes() }
    }
}

impl From<&Deassigned> for iommu_outcome {
    fn from(done: &Deassigned) -> Self {
        let reached = !done.still_reachable.is_empty();
        Self::of(if reached { iommu_removal::StillReachable } else { iommu_removal::Done }, &done.still_reachable)
    }
}

impl From<&Removal> for iommu_outcome {
    fn from(done: &Removal) -> Self {
        match done {
            Removal::StillReachable(keepers) => Self::of(iommu_removal::StillReachable, keepers),
            Removal::Pending => Self::of(iommu_removal::Pending, &[]),
            _ => Self::of(iommu_removal::Done, &[]),
        }
    }
}

impl fmt::Debug for iommu_outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.removal, self.count)
    }
}

struct Names<'a>(&'a [Label]);

impl fmt::Display for Names<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, label) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{label}")?;
        }
        Ok(())
    }
}

// --- faults ---

/// The line of faults that belong to no context; other values are context interrupt lines, counted from 0 in firmware's
/// order, one that is listed several times once.
pub const IOMMU_LINE_GLOBAL: u32 = u32::MAX;

pub(crate) fn line(line: u32) -> Result<FaultLine, Failure> {
    match line {
        IOMMU_LINE_GLOBAL => Ok(FaultLine::Global),
        line => u8::try_from(line).map(FaultLine::Context).map_err(|_| Failure::Argument("there is no such line")),
    }
}

/// What a transaction wanted.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum iommu_access {
    /// To read.
    Read = 0,
    /// To write.
    Write,
    /// To fetch instructions.
    Execute,
    /// Something that this version has no code for.
    Other,
}

/// Why a transaction was stopped.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum iommu_fault_cause {
    /// Another cause.
    Other = 0,
    /// The address is not mapped.
    Translation,
    /// The mapping does not allow the access.
    Permission,
    /// The mapping's access flag is clear.
    AccessFlag,
    /// An address is too large.
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
}

/// A fault, valid while the callback runs that is told of it.
#[repr(C)]
#[derive(Debug)]
pub struct iommu_fault {
    /// The IOMMU.
    pub iommu: u64,
    /// The address that the device asked for, where `has_address`.
    pub address: u64,
    /// The number of the domain whose context faulted; 0 without one.
    pub domain_id: u64,
    /// The stream, where `has_stream`.
    pub stream: u32,
    /// The context bank; -1 without one.
    pub bank: i32,
    /// What the device wanted.
    pub access: iommu_access,
    /// Why it was stopped.
    pub cause: iommu_fault_cause,
    /// Whether the hardware named an address.
    pub has_address: bool,
    /// Whether the hardware named a stream.
    pub has_stream: bool,
    /// At least one more came and was not recorded.
    pub more_lost: bool,
    /// The device's name; NULL where none is known, and in interrupt handlers.
    pub device: *const c_char,
    /// The domain's name; NULL where none is known, and in interrupt handlers.
    pub domain: *const c_char,
}

/// A name in memory that lives as long as a callback runs; NULL for none.
pub(crate) fn name(text: Option<&Text<256>>) -> *const c_char {
    text.map_or(core::ptr::null(), Text::as_ptr)
}

impl iommu_fault {
    pub(crate) fn of(raw: &RawFault, device: Option<&Text<256>>, domain: Option<&Text<256>>) -> Self {
        Self {
            iommu: raw.iommu.base(),
            address: raw.address.unwrap_or_default(),
            domain_id: raw.domain.map_or(0, DomainId::number),
            stream: raw.stream.map_or(0, StreamId::value),
            bank: raw.bank.map_or(-1, i32::from),
            access: match raw.access {
                Access::Read => iommu_access::Read,
                Access::Write => iommu_access::Write,
                Access::Execute => iommu_access::Execute,
                _ => iommu_access::Other,
            },
            cause: match raw.cause {
                FaultCause::Translation => iommu_fault_cause::Translation,
                FaultCause::Permission => iommu_fault_cause::Permission,
                FaultCause::AccessFlag => iommu_fault_cause::AccessFlag,
                FaultCause::AddressSize => iommu_fault_cause::AddressSize,
                FaultCause::External => iommu_fault_cause::External,
                FaultCause::Blocked => iommu_fault_cause::Blocked,
                FaultCause::UnknownStream => iommu_fault_cause::UnknownStream,
                FaultCause::StreamConflict => iommu_fault_cause::StreamConflict,
                FaultCause::Configuration => iommu_fault_cause::Configuration,
                FaultCause::BadContext => iommu_fault_cause::BadContext,
                _ => iommu_fault_cause::Other,
            },
            has_address: raw.address.is_some(),
            has_stream: raw.stream.is_some(),
            more_lost: raw.more_lost,
            device: name(device),
            domain: name(domain),
        }
    }
}

/// A function of the caller's that is told of faults.
pub type iommu_fault_sink = Option<extern "C" fn(context: *mut c_void, fault: &iommu_fault)>;
