//! Typed access to properties, and addresses as the CPU sees them (Devicetree Specification v0.4, 2.2.4 and 2.3).

use alloc::vec::Vec;
use core::{fmt, str};

use super::tree::Node;
use super::{DtError, NodeFault};
use crate::few;

/// A range of CPU physical addresses.
///
/// # Invariants
///
/// The last byte's address fits in 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Region {
    pub(super) base: u64,
    pub(super) size: u64,
}

impl Region {
    /// The address of the first byte.
    #[must_use]
    pub const fn base(self) -> u64 {
        self.base
    }

    /// The size in bytes; 0 where firmware describes an empty region.
    #[must_use]
    pub const fn size(self) -> u64 {
        self.size
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({:#x} + {:#x})", self.base, self.size)
    }
}

/// Typed access. Every error names the node.
impl<'a> Node<'_, 'a> {
    /// A property of exactly one cell, if it is there.
    ///
    /// # Errors
    ///
    /// [`DtError::Node`] for a property of another length.
    pub fn u32(&self, property: &'static str) -> Result<Option<u32>, DtError> {
        let Some(found) = self.property(property) else { return Ok(None) };
        let value = found.value();
        match <[u8; 4]>::try_from(value) {
            Ok(cell) => Ok(Some(u32::from_be_bytes(cell))),
            Err(_) => Err(self.error(NodeFault::Length { property, length: value.len(), expected: 4 })),
        }
    }

    /// A property of exactly one cell.
    pub(super) fn required_u32(&self, property: &'static str) -> Result<u32, DtError> {
        self.u32(property)?.ok_or_else(|| self.error(NodeFault::MissingProperty { property }))
    }

    /// A property that is a list of cells; a missing one has none.
    pub(super) fn cells(&self, property: &'static str) -> Result<Cells<'a>, DtError> {
        let value = self.property(property).map_or(&[][..], |property| property.value());
        if value.len().is_multiple_of(4) {
            Ok(Cells(value))
        } else {
            Err(self.error(NodeFault::LengthMultiple { property, length: value.len(), entry: 4 }))
        }
    }

    /// A property that is a list of NUL-terminated strings; a missing or empty one has none.
    ///
    /// # Errors
    ///
    /// [`DtError::Node`] for a property that is no such list.
    pub fn strings(&self, property: &'static str) -> Result<impl Iterator<Item = &'a str> + Clone, DtError> {
        let value = self.property(property).map_or(&[][..], |property| property.value());
        let text = str::from_utf8(value).ok().filter(|text| text.is_empty() || text.ends_with('\0'));
        let text = text.ok_or_else(|| self.error(NodeFault::NotStrings { property }))?;
        Ok(text.split_terminator('\0'))
    }

    /// The regions of `reg`, as the CPU sees them; a node without the property has none. For the hypervisor's own devices:
    /// memory, interrupt controller, console.
    ///
    /// # Errors
    ///
    /// [`DtError::Node`] for a `reg` that is malformed, or that the `ranges` of the buses above do not lead to the CPU;
    /// [`DtError::OutOfMemory`].
    pub fn regions(&self) -> Result<Vec<Region>, DtError> {
        let mut regions = Vec::new();
        let (Some(bus), Some(reg)) = (self.parent(), self.property(REG)) else { return Ok(regions) };
        let (address_cells, size_cells) = (bus.address_cells()?, bus.size_cells()?);
        let mut cells = self.entries(REG, reg.value(), &[address_cells, size_cells])?;
        while !cells.is_empty() {
            let base = self.number(REG, &mut cells, address_cells)?;
            let size = self.number(REG, &mut cells, size_cells)?;
            let region = self.region(REG, base, size)?;
            few::push(&mut regions, self.as_the_cpu_sees(region)?)?;
        }
        Ok(regions)
    }

    /// Follows `ranges` from this node's bus up to the root, whose addresses are the CPU's.
    pub(super) fn as_the_cpu_sees(&self, region: Region) -> Result<Region, DtError> {
        self.translated(region, RANGES)
    }

    /// Follows `dma-ranges` from this node's bus up to the root. A bus without that property changes nothing.
    pub(super) fn as_its_iommu_sees(&self, region: Region) -> Result<Region, DtError> {
        self.translated(region, DMA_RANGES)
    }

    fn translated(&self, mut region: Region, property: &'static str) -> Result<Region, DtError> {
        for bus in self.ancestors() {
            let Some(above) = bus.parent() else { break };
            let ranges = match bus.property(property) {
                Some(ranges) => ranges,
                None if property == DMA_RANGES => continue,
                None => {
                    let address = region.base;
                    return Err(self.error(NodeFault::NoRanges { bus: bus.path()?, address }));
                }
            };
            if ranges.value().is_empty() {
                continue;
            }
            let (child_cells, parent_cells, size_cells) =
                (bus.address_cells()?, above.address_cells()?, bus.size_cells()?);
            let mut cells = bus.entries(property, ranges.value(), &[child_cells, parent_cells, size_cells])?;
            let mut found = None;
            while !cells.is_empty() && found.is_none() {
                // An entry whose numbers need more than 64 bits (PCI's carry flags) holds none of our addresses.
                let child = cells.number(child_cells);
                let parent = cells.number(parent_cells);
                let size = cells.number(size_cells);
                let (Some(child), Some(parent), Some(size)) = (child, parent, size) else { continue };
                let into = region.base.checked_sub(child);
                let left = into.and_then(|into| size.checked_sub(into));
                if let (Some(into), Some(left)) = (into, left)
                    && left >= region.size.max(1)
                {
                    let overflow = NodeFault::AddressOverflow { property, address: parent, size };
                    found = Some(parent.checked_add(into).ok_or_else(|| bus.error(overflow))?);
                }
            }
            let Region { base: address, size } = region;
            region = match found {
                Some(base) => bus.region(property, base, size)?,
                None => return Err(self.error(NodeFault::OutsideRanges { property, bus: bus.path()?, address, size })),
            };
        }
        Ok(region)
    }

    pub(super) fn region(&self, property: &'static str, base: u64, size: u64) -> Result<Region, DtError> {
        match base.checked_add(size.saturating_sub(1)) {
            Some(_) => Ok(Region { base, size }),
            None => Err(self.error(NodeFault::AddressOverflow { property, address: base, size })),
        }
    }

    /// `value` as cells, if it is a whole number of entries of so many cells together.
    pub(super) fn entries(
        &self,
        property: &'static str,
        value: &'a [u8],
        widths: &[u32],
    ) -> Result<Cells<'a>, DtError> {
        let entry = widths.iter().fold(0_u64, |sum, &width| sum.saturating_add(u64::from(width))).saturating_mul(4);
        let length = value.len();
        let whole = u64::try_from(length).ok().and_then(|length| length.checked_rem(entry)) == Some(0);
        if whole { Ok(Cells(value)) } else { Err(self.error(NodeFault::LengthMultiple { property, length, entry })) }
    }

    pub(super) fn number(&self, property: &'static str, cells: &mut Cells<'a>, count: u32) -> Result<u64, DtError> {
        cells.number(count).ok_or_else(|| self.error(NodeFault::NumberTooWide { property }))
    }

    /// Cells of an address and of a size on the nearest bus above that says so, as kernels look for them.
    pub(super) fn bus_cells(&self) -> Result<(u32, u32), DtError> {
        let says = |property: &'static str| {
            let bus = self.ancestors().find(|bus| bus.property(property).is_some());
            bus.or_else(|| self.parent())
        };
        let address = says(ADDRESS_CELLS).map_or(Ok(2), |bus| bus.address_cells())?;
        let size = says(SIZE_CELLS).map_or(Ok(1), |bus| bus.size_cells())?;
        Ok((address, size))
    }

    /// Cells of an address on the bus that this node is. The default is the specification's, 2.3.5.
    pub(super) fn address_cells(&self) -> Result<u32, DtError> {
        self.cell_count(ADDRESS_CELLS, 2, 1, "1 to 4")
    }

    pub(super) fn size_cells(&self) -> Result<u32, DtError> {
        self.cell_count(SIZE_CELLS, 1, 0, "0 to 4")
    }

    fn cell_count(
        &self,
        property: &'static str,
        default: u32,
        least: u32,
        allowed: &'static str,
    ) -> Result<u32, DtError> {
        match self.u32(property)?.unwrap_or(default) {
            count if (least..=4).contains(&count) => Ok(count),
            count => Err(self.error(NodeFault::CellCount { property, count, allowed })),
        }
    }
}

/// A list of big-endian 32-bit cells, read from the front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cells<'a>(&'a [u8]);

impl<'a> Cells<'a> {
    /// The whole cells of `value`, and whether bytes of a broken one follow.
    pub(super) fn whole_cells(value: &'a [u8]) -> (Self, bool) {
        let broken = value.len() & 3;
        let whole = value.get(..value.len().saturating_sub(broken)).unwrap_or_default();
        (Self(whole), broken != 0)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes the next `count` cells; takes none where fewer are left.
    pub(super) fn split(&mut self, count: u32) -> Option<Cells<'a>> {
        let length = usize::try_from(count).ok()?.checked_mul(4)?;
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(Cells(taken))
    }

    /// Takes `count` cells as one number; `None` where fewer are left or the number needs more than 64 bits. The
    /// cells are taken even so.
    pub(super) fn number(&mut self, count: u32) -> Option<u64> {
        let mut value = Some(0_u64);
        for cell in self.split(count)? {
            value = value.filter(|value| value >> 32 == 0).map(|value| value << 32 | u64::from(cell));
        }
        value
    }
}

impl Iterator for Cells<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        let (cell, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_be_bytes(*cell))
    }
}

pub(super) const ADDRESS_CELLS: &str = "#address-cells";
pub(super) const DMA_RANGES: &str = "dma-ranges";
pub(super) const RANGES: &str = "ranges";
pub(super) const REG: &str = "reg";
pub(super) const SIZE_CELLS: &str = "#size-cells";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_at_most_64_bits() {
        let value = [0_u8, 0, 0, 0, 0, 0, 0, 1, 0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff];
        let (mut cells, broken) = Cells::whole_cells(&value);
        assert!(!broken);
        assert_eq!(Cells(cells.0).number(1), Some(0));
        assert_eq!(Cells(cells.0).number(3), Some(0x1_8000_0000));
        assert_eq!(Cells(cells.0).number(4), None);
        assert_eq!(Cells(cells.0).number(0), Some(0));
        assert_eq!(cells.number(5), None);
        assert_eq!(cells.number(2), Some(1));
    }

    #[test]
    fn more_cells_than_there_are_take_none() {
        let (mut cells, broken) = Cells::whole_cells(&[0, 0, 0, 7, 9]);
        assert!(broken);
        assert_eq!(cells.split(2), None);
        assert_eq!(cells.split(u32::MAX), None);
        assert_eq!((cells.next(), cells.next()), (Some(7), None));
    }
}
