//! From `pci_types::ConfigRegionAccess` to [`ConfigSpace`], and back.

use core::ops::RangeInclusive;

use pci_types::{ConfigRegionAccess, PciAddress};

use super::{Bus, ConfigSpace, Sbdf, Segment};

/// A [`ConfigSpace`] made of a `pci_types::ConfigRegionAccess` that the hypervisor has already.
///
/// That trait's methods are `unsafe`: an address must be valid. Here it is looked at first. Another segment, a bus that is
/// not behind the host bridge, and an offset past the end read as all ones, and writes to them are lost.
///
/// # Invariants
///
/// 1. Every function on `buses` of `segment` is valid for accesses at each multiple of 4 below `end`, be it there or not.
#[derive(Clone, Debug)]
pub struct RegionAccess<A> {
    access: A,
    segment: Segment,
    buses: RangeInclusive<Bus>,
    end: u16,
}

impl<A: ConfigRegionAccess> RegionAccess<A> {
    /// The configuration space of the host bridge with this segment and these buses. `is_extended`: functions have 4 KiB
    /// instead of 256 bytes.
    ///
    /// # Safety
    ///
    /// Each function on `buses` of `segment`, be it there or not, must be valid for `access` at each multiple of 4 below
    /// 4096 (below 256 if not `is_extended`), for as long as the value lives. What is not there reads as all ones. Several
    /// CPUs may access at once, where the value is shared.
    #[expect(unsafe_code, reason = "only the caller knows which addresses are valid")]
    pub const unsafe fn new(access: A, segment: Segment, buses: RangeInclusive<Bus>, is_extended: bool) -> Self {
        Self { access, segment, buses, end: if is_extended { 0x1000 } else { 0x100 } }
    }

    fn is_inside(&self, function: Sbdf, offset: u16) -> bool {
        function.segment == self.segment
            && self.buses.contains(&function.bus)
            && offset < self.end
            && offset.is_multiple_of(4)
    }
}

impl<A: ConfigRegionAccess> ConfigSpace for RegionAccess<A> {
    fn read(&self, function: Sbdf, offset: u16) -> u32 {
        if !self.is_inside(function, offset) {
            return u32::MAX;
        }
        #[expect(unsafe_code, reason = "the access itself")]
        // SAFETY: invariant 1, `is_inside`.
        unsafe {
            self.access.read(function.into(), offset)
        }
    }

    fn write(&self, function: Sbdf, offset: u16, value: u32) {
        if self.is_inside(function, offset) {
            #[expect(unsafe_code, reason = "the access itself")]
            // SAFETY: invariant 1, `is_inside`.
            unsafe {
                self.access.write(function.into(), offset, value);
            }
        }
    }
}

/// A `pci_types::ConfigRegionAccess` made of a [`ConfigSpace`]: for drivers that are written against that crate.
///
/// No address is invalid for it.
#[derive(Clone, Copy, Debug)]
pub struct AsRegionAccess<C>(pub C);

#[expect(unsafe_code, reason = "the trait's methods are unsafe to call")]
impl<C: ConfigSpace> ConfigRegionAccess for AsRegionAccess<C> {
    unsafe fn read(&self, address: PciAddress, offset: u16) -> u32 {
        self.0.read(address.into(), offset & 0xffc)
    }

    unsafe fn write(&self, address: PciAddress, offset: u16, value: u32) {
        self.0.write(address.into(), offset & 0xffc, value);
    }
}
