//! Configuration space mapped into memory: ECAM, and CAM of before PCI Express.

use core::fmt;
use core::ops::RangeInclusive;
use core::ptr::NonNull;

use super::{Bus, ConfigSpace, Sbdf, Segment};

/// How much of a mapped region each function has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConfigLayout {
    /// 4 KiB, so 1 MiB a bus (PCI Express Base Specification 7.2.2; `pci-host-ecam-generic`).
    Ecam,
    /// 256 bytes, so 64 KiB a bus, without extended capabilities (`pci-host-cam-generic`).
    Cam,
}

impl ConfigLayout {
    /// How many address bits are offsets in one function.
    const fn function_shift(self) -> u32 {
        match self {
            Self::Ecam => 12,
            Self::Cam => 8,
        }
    }

    /// Bytes that one bus has.
    #[must_use]
    pub const fn bus_size(self) -> usize {
        256 << self.function_shift()
    }
}

/// The configuration space of one host bridge, mapped into the hypervisor's address space: a [`ConfigSpace`].
///
/// An address that is not in the region is not accessed: another segment, a bus outside the bridge's, an offset past what
/// a function has, a bus past the end of the region. It reads as all ones, and writes to it are lost.
///
/// Whether an access to a function that is not there, or has gone, ends in all ones or in an abort is the host bridge's
/// matter. Where it aborts, the hypervisor's handler of synchronous external aborts skips the access, with all ones.
///
/// # Invariants
///
/// 1. `base..base + size` is mapped, readable and writable, for as long as this lives.
/// 2. `base` is aligned to 4 bytes.
pub struct Ecam {
    base: NonNull<u8>,
    size: usize,
    layout: ConfigLayout,
    segment: Segment,
    buses: RangeInclusive<Bus>,
}

#[expect(unsafe_code, reason = "a pointer to device memory is valid on every CPU")]
// SAFETY: invariant 1 does not depend on the CPU or thread, and no Rust reference to the memory exists.
unsafe impl Send for Ecam {}
#[expect(unsafe_code, reason = "a pointer to device memory is valid on every CPU")]
// SAFETY: as for `Send`; all accesses are single volatile instructions.
unsafe impl Sync for Ecam {}

impl Ecam {
    /// The configuration space at `base`, `size` bytes of it, which begins with the first of `buses`. `None` when `base` is
    /// not aligned to 4 bytes.
    ///
    /// `segment` and `buses` are those of the [`HostBridge`](super::HostBridge). A region that is smaller than its buses
    /// would need is taken: the last of them cannot be reached.
    ///
    /// # Safety
    ///
    /// `base..base + size` must be mapped as device memory, best as nGnRnE (with nGnRE a write may still be on its way when it
    /// returns), readable and writable, hold configuration space of this layout and nothing else, and stay so for as long
    /// as the value lives.
    /// An access to a function that is not there must not raise an exception that nobody handles.
    #[must_use]
    #[expect(unsafe_code, reason = "only the caller knows what is mapped there")]
    pub unsafe fn new(
        base: NonNull<u8>,
        size: usize,
        layout: ConfigLayout,
        segment: Segment,
        buses: RangeInclusive<Bus>,
    ) -> Option<Self> {
        base.as_ptr().addr().is_multiple_of(4).then_some(Self { base, size, layout, segment, buses })
    }

    /// The address of an access, where it is aligned and inside the region.
    fn at<T>(&self, function: Sbdf, offset: u16) -> Option<*mut T> {
        let shift = self.layout.function_shift();
        if function.segment != self.segment || !self.buses.contains(&function.bus) || offset >> shift != 0 {
            return None;
        }
        let bus = usize::from(function.bus.0.checked_sub(self.buses.start().0)?);
        let place = usize::from(function.device_function.0);
        let at = (bus << 8 | place) << shift | usize::from(offset);
        let inside = at.checked_add(size_of::<T>())? <= self.size && at.is_multiple_of(size_of::<T>());
        inside.then(|| self.base.as_ptr().wrapping_add(at).cast::<T>())
    }

    /// One access, for unsigned integers only.
    fn write_one<T>(&self, function: Sbdf, offset: u16, value: T) {
        if let Some(register) = self.at::<T>(function, offset) {
            #[expect(unsafe_code, reason = "the access itself")]
            // SAFETY: `at` returns aligned addresses inside the region (invariants 1 and 2).
            unsafe {
                register.write_volatile(value);
            }
        }
    }
}

impl ConfigSpace for Ecam {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        #[expect(unsafe_code, reason = "the access itself")]
        // SAFETY: `at` returns aligned addresses inside the region (invariants 1 and 2); any bits are an integer.
        let read = self.at::<u32>(function, offset).map(|register| unsafe { register.read_volatile() });
        read.map_or(u32::MAX, u32::from_le)
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        self.write_one(function, offset, value.to_le());
    }

    fn write_u16(&self, function: Sbdf, offset: u16, value: u16) {
        self.write_one(function, offset, value.to_le());
    }

    fn write_u8(&self, function: Sbdf, offset: u16, value: u8) {
        self.write_one(function, offset, value);
    }
}

impl fmt::Debug for Ecam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { base, size, layout, segment, buses } = self;
        let (first, last) = (buses.start().0, buses.end().0);
        write!(f, "Ecam({layout:?} at {base:p}, {size:#x} bytes, {:04x}:{first:02x}-{last:02x})", segment.0)
    }
}
