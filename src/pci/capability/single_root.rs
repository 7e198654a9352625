//! What the SR-IOV capability says, field by field (9.3.3). Offsets are from the start of the capability.

use super::super::config::{ConfigSpace, FunctionConfig};
use super::views::at;

/// Single root I/O virtualization (9.3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SrIov {
    /// Where the capability is.
    pub offset: u16,
    /// Whether the virtual functions exist now (VF Enable).
    pub enabled: bool,
    /// Whether they answer to their base addresses (VF MSE).
    pub memory_enabled: bool,
    /// Whether the device was told that it has 256 functions to itself (ARI Capable Hierarchy). The lowest physical
    /// function of a device has the bit for all of them.
    pub ari_hierarchy: bool,
    /// How many virtual functions there can be.
    pub total: u16,
    /// How many there are when enabled.
    pub count: u16,
    /// The first virtual function's requester ID, from the physical function's. What it is depends on `count` and on
    /// `ari_hierarchy`.
    pub first_offset: u16,
    /// From one virtual function's requester ID to the next; depends on the same.
    pub stride: u16,
    /// The device ID of the virtual functions.
    pub device_id: u16,
    /// Bit n: base addresses can be aligned to pages of 4 KiB << n.
    pub page_sizes: u32,
    /// The one bit of these that is in use.
    pub page_size: u32,
}

impl SrIov {
    pub(super) fn read<C: ConfigSpace + ?Sized>(config: &FunctionConfig<'_, C>, offset: u16) -> Self {
        let read = |by| config.read_u16(at(offset, by));
        let control = read(CONTROL);
        Self {
            offset,
            enabled: control & VF_ENABLE != 0,
            memory_enabled: control & VF_MEMORY_ENABLE != 0,
            ari_hierarchy: control & ARI_HIERARCHY != 0,
            total: read(0x0e),
            count: read(NUMBER),
            first_offset: read(LAYOUT),
            stride: read(LAYOUT + 2),
            device_id: read(0x1a),
            page_sizes: config.read(at(offset, 0x1c)),
            page_size: config.read(at(offset, PAGE_SIZE)),
        }
    }

    /// Where its control register is; its status is the upper half.
    #[must_use]
    pub const fn control(&self) -> u16 {
        at(self.offset, CONTROL)
    }

    /// Where the number of virtual functions is, 16 bits.
    #[must_use]
    pub const fn number(&self) -> u16 {
        at(self.offset, NUMBER)
    }

    /// Whether First VF Offset and VF Stride are what they were.
    pub(in super::super) fn is_numbered_so<C: ConfigSpace + ?Sized>(&self, config: &FunctionConfig<'_, C>) -> bool {
        config.read(at(self.offset, LAYOUT)) == u32::from(self.first_offset) | u32::from(self.stride) << 16
    }

    /// Where the page size is, 32 bits.
    pub(in super::super) const fn page_size_at(&self) -> u16 {
        at(self.offset, PAGE_SIZE)
    }

    /// Where the six base addresses of the virtual functions are.
    pub(in super::super) fn bars(self) -> impl Iterator<Item = u16> {
        [0x24, 0x28, 0x2c, 0x30, 0x34, 0x38].into_iter().map(move |by| at(self.offset, by))
    }
}

const CONTROL: u16 = 0x08;
const NUMBER: u16 = 0x10;
/// First VF Offset; VF Stride is the upper half.
const LAYOUT: u16 = 0x14;
const PAGE_SIZE: u16 = 0x20;
pub(in super::super) const VF_ENABLE: u16 = 1 << 0;
pub(in super::super) const VF_MEMORY_ENABLE: u16 = 1 << 3;
pub(in super::super) const ARI_HIERARCHY: u16 = 1 << 4;
