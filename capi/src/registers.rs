//! How an SMMU's registers are reached: mapped memory, or functions of the integrator's; several instances in step.

use core::ffi::c_void;
use core::fmt;
use core::ptr::NonNull;

use iommu_assign::smmu::{Lockstep, Mmio, Registers};

use crate::border::Context;
use crate::error::Failure;

/// The registers of one SMMU instance. Either `base` says where they are mapped, or the four functions access them.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct iommu_registers {
    /// Where they are mapped as device memory (nGnRE or stronger), aligned to 8 bytes, readable and writable for as long as
    /// the SMMU is registered and handles of it live. NULL: the functions below.
    pub base: *mut c_void,
    /// Bytes that are mapped.
    pub size: u64,
    /// Handed to each function below.
    pub context: *mut c_void,
    /// Reads the 32-bit register at a byte offset. None of the four may block, take a lock that is ever held around a call
    /// of the library, or call the library: locks of the library are held. Writes reach the hardware in their order.
    pub read32: Option<extern "C" fn(context: *mut c_void, offset: u32) -> u32>,
    /// Writes the 32-bit register at a byte offset.
    pub write32: Option<extern "C" fn(context: *mut c_void, offset: u32, value: u32)>,
    /// Reads the 64-bit register at a byte offset.
    pub read64: Option<extern "C" fn(context: *mut c_void, offset: u32) -> u64>,
    /// Writes the 64-bit register at a byte offset, in one access.
    pub write64: Option<extern "C" fn(context: *mut c_void, offset: u32, value: u64)>,
}

/// One instance.
pub(crate) enum Member {
    Mapped(Mmio),
    Called(Calls),
}

pub(crate) struct Calls {
    context: Context,
    read32: extern "C" fn(*mut c_void, u32) -> u32,
    write32: extern "C" fn(*mut c_void, u32, u32),
    read64: extern "C" fn(*mut c_void, u32) -> u64,
    write64: extern "C" fn(*mut c_void, u32, u64),
}

impl Member {
    fn read(given: &iommu_registers) -> Result<Self, Failure> {
        if let Some(base) = NonNull::new(given.base.cast::<u8>()) {
            let size = usize::try_from(given.size).map_err(|_| Failure::Argument("registers of too many bytes"))?;
            // SAFETY: `base` and `size` describe mapped registers for as long as the instance lives: the struct demands it.
            let mapped = unsafe { Mmio::new(base, size) };
            return mapped.map(Self::Mapped).ok_or(Failure::Argument("registers that are not aligned to 8 bytes"));
        }
        match *given {
            iommu_registers {
                context,
                read32: Some(read32),
                write32: Some(write32),
                read64: Some(read64),
                write64: Some(write64),
                ..
            } => Ok(Self::Called(Calls { context: Context(context), read32, write32, read64, write64 })),
            _ => Err(Failure::Argument("registers that are neither mapped nor accessed by four functions")),
        }
    }
}

impl Registers for Member {
    fn read32(&self, offset: u32) -> u32 {
        match self {
            Self::Mapped(mapped) => mapped.read32(offset),
            Self::Called(calls) => (calls.read32)(calls.context.0, offset),
        }
    }

    fn write32(&self, offset: u32, value: u32) {
        match self {
            Self::Mapped(mapped) => mapped.write32(offset, value),
            Self::Called(calls) => (calls.write32)(calls.context.0, offset, value),
        }
    }

    fn read64(&self, offset: u32) -> u64 {
        match self {
            Self::Mapped(mapped) => mapped.read64(offset),
            Self::Called(calls) => (calls.read64)(calls.context.0, offset),
        }
    }

    fn write64(&self, offset: u32, value: u64) {
        match self {
            Self::Mapped(mapped) => mapped.write64(offset, value),
            Self::Called(calls) => (calls.write64)(calls.context.0, offset, value),
        }
    }
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mapped(mapped) => mapped.fmt(f),
            Self::Called(_) => f.write_str("Called"),
        }
    }
}

/// The instances of an SMMU, the one that firmware lists first in front.
pub(crate) type Instances = Lockstep<Member>;

pub(crate) fn read(given: &[iommu_registers]) -> Result<Instances, Failure> {
    given.iter().map(Member::read).collect()
}
