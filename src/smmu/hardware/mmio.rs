//! Access to an instance's registers: the trait that the driver is written against, the real thing, and several
//! instances that hardware uses as one (quirk Q9).

use core::fmt;
use core::ptr::NonNull;

use crate::few;
use smallvec::SmallVec;

/// The registers of one SMMU instance, at byte offsets from its base.
///
/// # Context
///
/// A leaf: implementations may not block, take a lock that is ever held around a call into the library, or call the
/// library (contract C-3). The driver calls them with its stream-map or TLB lock held.
///
/// Writes reach the hardware in the order in which they are made. An offset outside the region reads as all ones and
/// ignores writes.
pub trait Registers: Send + Sync + fmt::Debug {
    /// Reads a 32-bit register.
    fn read32(&self, offset: u32) -> u32;

    /// Writes a 32-bit register.
    fn write32(&self, offset: u32, value: u32);

    /// Reads a 64-bit register.
    fn read64(&self, offset: u32) -> u64;

    /// Writes a 64-bit register in one access.
    fn write64(&self, offset: u32, value: u64);

    /// One of the instances behind it that are programmed alike (quirk Q9), counted from 0; usually there is one.
    fn member(&self, index: usize) -> Option<&dyn Registers>
    where
        Self: Sized,
    {
        (index == 0).then_some(self as &dyn Registers)
    }
}

/// Registers mapped into the hypervisor's address space as device memory.
///
/// # Invariants
///
/// 1. `base..base + size` is mapped as device memory, readable and writable, for as long as this lives.
/// 2. `base` is aligned to 8 bytes.
pub struct Mmio {
    base: NonNull<u8>,
    size: usize,
}

// The driver's own locks order what must be ordered; single accesses are atomic in the hardware.
#[expect(unsafe_code, reason = "a pointer to device memory is valid on every CPU")]
// SAFETY: invariant 1 does not depend on the CPU or thread, and no Rust reference to the memory exists.
unsafe impl Send for Mmio {}
#[expect(unsafe_code, reason = "a pointer to device memory is valid on every CPU")]
// SAFETY: as for `Send`; all accesses are single volatile instructions.
unsafe impl Sync for Mmio {}

impl Mmio {
    /// The registers at `base`, `size` bytes of them. `None` when `base` is not aligned to 8 bytes.
    ///
    /// # Safety
    ///
    /// `base..base + size` must be mapped as device memory (nGnRE or stronger), readable and writable, hold the
    /// registers of one SMMU and nothing else, and stay so for as long as the value lives.
    #[must_use]
    #[expect(unsafe_code, reason = "only the caller knows what is mapped there")]
    pub unsafe fn new(base: NonNull<u8>, size: usize) -> Option<Self> {
        base.as_ptr().addr().is_multiple_of(8).then_some(Self { base, size })
    }

    /// The address of an access of `width` bytes, where it is aligned and inside the region.
    fn at<T>(&self, offset: u32) -> Option<*mut T> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(size_of::<T>())?;
        let inside = end <= self.size && offset.is_multiple_of(size_of::<T>());
        inside.then(|| self.base.as_ptr().wrapping_add(offset).cast::<T>())
    }

    /// One access, for `u32` and `u64` only.
    fn read<T>(&self, offset: u32) -> Option<T> {
        #[expect(unsafe_code, reason = "the access itself")]
        // SAFETY: `at` returns aligned addresses inside the region (invariants 1 and 2); any bits are an integer.
        self.at::<T>(offset).map(|register| unsafe { register.read_volatile() })
    }

    /// One access, for `u32` and `u64` only.
    fn write<T>(&self, offset: u32, value: T) {
        if let Some(register) = self.at::<T>(offset) {
            #[expect(unsafe_code, reason = "the access itself")]
            // SAFETY: `at` returns aligned addresses inside the region (invariants 1 and 2).
            unsafe {
                register.write_volatile(value);
            }
        }
    }
}

impl Registers for Mmio {
    fn read32(&self, offset: u32) -> u32 {
        self.read(offset).unwrap_or(u32::MAX)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.write(offset, value);
    }

    fn read64(&self, offset: u32) -> u64 {
        self.read(offset).unwrap_or(u64::MAX)
    }

    fn write64(&self, offset: u32, value: u64) {
        self.write(offset, value);
    }
}

impl fmt::Debug for Mmio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mmio({:p}, {:#x} bytes)", self.base, self.size)
    }
}

/// Instances that are programmed alike (quirk Q9), on most boards one: writes go to all of them, reads come from the first.
///
/// It is collected from the instances, the one that firmware lists first in front. Without any, reads give all ones; where
/// memory for a fourth is lacking it ends, and a probe refuses it.
///
/// What differs between them, a sync's status and recorded faults, the driver asks of each.
#[derive(Debug)]
pub struct Lockstep<R>(SmallVec<[R; 3]>);

impl<R> FromIterator<R> for Lockstep<R> {
    fn from_iter<I: IntoIterator<Item = R>>(instances: I) -> Self {
        let mut all = SmallVec::new();
        for instance in instances {
            if all.try_reserve(1).is_err() || !few::put(&mut all, instance) {
                break;
            }
        }
        Self(all)
    }
}

impl<R: Registers> Registers for Lockstep<R> {
    fn read32(&self, offset: u32) -> u32 {
        self.0.first().map_or(u32::MAX, |first| first.read32(offset))
    }

    fn write32(&self, offset: u32, value: u32) {
        self.0.iter().for_each(|member| member.write32(offset, value));
    }

    fn read64(&self, offset: u32) -> u64 {
        self.0.first().map_or(u64::MAX, |first| first.read64(offset))
    }

    fn write64(&self, offset: u32, value: u64) {
        self.0.iter().for_each(|member| member.write64(offset, value));
    }

    fn member(&self, index: usize) -> Option<&dyn Registers> {
        self.0.get(index).map(|member| member as &dyn Registers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::expect_used, reason = "a test fails by panicking")]
    fn accesses_stay_inside_and_aligned() {
        let mut memory = [0_u64; 4];
        let base = NonNull::from(&mut memory).cast();
        #[expect(unsafe_code, reason = "ordinary memory stands for registers")]
        // SAFETY: the array is aligned, 32 bytes long and outlives `registers`.
        let registers = unsafe { Mmio::new(base, 32) }.expect("aligned");
        registers.write64(8, 0x1122_3344_5566_7788);
        assert_eq!(registers.read32(8), 0x5566_7788);
        assert_eq!(registers.read32(12), 0x1122_3344);
        registers.write32(32, 1);
        registers.write64(28, 1);
        registers.write32(2, 1);
        assert_eq!(registers.read32(32), u32::MAX);
        assert_eq!(registers.read64(28), u64::MAX);
        assert_eq!(memory, [0, 0x1122_3344_5566_7788, 0, 0]);
    }
}
